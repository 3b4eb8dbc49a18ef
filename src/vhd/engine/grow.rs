//! Space for blocks: the file grows by many blocks at a time.

use super::steps::{FILL_AT, Step};
use super::{Engine, Operation};
use crate::blocks::{EngineError, Entry, State};
use crate::vhd::format::{FOOTER_LEN, MIB, SECTOR, UNUSED};

/// Data of new blocks starts at a multiple of this, so that the host's pages and the guest's agree.
const DATA_ALIGN: u64 = 4096;

/// The file grows by at least this much, so that a fast writer meets the file system seldom.
const GROW_MIN: u64 = 64 * MIB;

/// And by at most this much, so that a large disk does not hold space that others need.
const GROW_MAX: u64 = 1024 * MIB;

/// How much space to ask the file system for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Growth {
    /// A large step.
    Ahead,
    /// Eight blocks.
    Few,
    /// One block.
    One,
}

impl Growth {
    /// What to try when the file system has refused; `None`: nothing more.
    pub fn less(self) -> Option<Self> {
        match self {
            Self::Ahead => Some(Self::Few),
            Self::Few => Some(Self::One),
            Self::One => None,
        }
    }

    /// What to try next time.
    pub fn more(self) -> Self {
        match self {
            Self::One => Self::Few,
            Self::Few | Self::Ahead => Self::Ahead,
        }
    }
}

impl Engine {
    /// Where the data of a block goes that is placed behind `end`: room for the footer that may be there, padding, and
    /// the bitmap come first.
    fn data_behind(&self, end: u64) -> u64 {
        (end + FOOTER_LEN + self.layout.bitmap_bytes).next_multiple_of(DATA_ALIGN)
    }

    /// Take the next place; its bitmap is durable, and its data reads as zeros. `None`: the file must grow first.
    pub(super) fn take_place(&mut self) -> Option<u64> {
        let data = self.data_behind(self.next_bytes);
        let end = data + self.layout.block_bytes;
        (end + FOOTER_LEN <= self.ready_bytes).then(|| {
            self.next_bytes = end;
            self.blocks_placed += 1;
            data
        })
    }

    /// Over a parent: give every block of the range a place that nobody sees yet, if there is enough. Without: whether
    /// all have one.
    pub(super) fn place_staged(&mut self, offset: u64, len: u64) -> bool {
        let shift = self.map.shape().block_shift;
        if len == 0 {
            return true;
        }
        for block in (offset >> shift) as u32..=((offset + len - 1) >> shift) as u32 {
            let placed = self.entry(block).has_space() || (self.has_parent() && self.stage(block));
            if !placed {
                return false;
            }
        }
        true
    }

    /// Give a block a place that nobody sees yet.
    pub(super) fn stage(&mut self, block: u32) -> bool {
        match self.take_place() {
            Some(data) => self.store(block, Entry::new(State::Absent, data)),
            None => return false,
        }
        true
    }

    /// Grow the file, or `None` where the format has no room.
    pub(super) fn start_growing(&mut self) -> Option<Operation> {
        assert_eq!(self.next_bytes + FOOTER_LEN, self.file_len_bytes, "every place is taken, and the footer is last");
        let absent = u64::from(self.map.shape().blocks() - self.blocks_placed);
        assert!(absent > 0, "a block that needs space has none");
        let first_data = self.data_behind(self.next_bytes);
        let stride = self.data_behind(0) + self.layout.block_bytes;
        let step = (self.map.shape().size_bytes / 64).clamp(GROW_MIN, GROW_MAX) / self.layout.block_bytes;
        let wanted = match self.growth {
            Growth::Ahead => step.max(1),
            Growth::Few => 8,
            Growth::One => 1,
        };
        // The last bitmap must have a sector number.
        let last = (u64::from(UNUSED) - 1) * SECTOR;
        let nameable = (last + self.layout.bitmap_bytes).checked_sub(first_data)? / stride + 1;
        let count = wanted.min(absent).min(nameable);
        let end = first_data + (count - 1) * stride + self.layout.block_bytes;
        Some(Operation::Extend { to_bytes: end + FOOTER_LEN })
    }

    /// Write the new footer, and set the bitmaps of the blocks to come: a disk without a parent has all sectors of a
    /// block or none. Over a parent they stay zeros. `progress` is the part of the bitmap, and the block's place.
    pub(super) fn fill_growth(&mut self) -> bool {
        let (part, end) = self.progress;
        if end == 0 {
            self.write_footer_at(self.file_len_bytes - FOOTER_LEN);
            self.progress = (0, self.next_bytes);
            return true;
        }
        if self.has_parent() {
            return false;
        }
        let data = self.data_behind(end);
        if data + self.layout.block_bytes + FOOTER_LEN > self.file_len_bytes {
            return false;
        }
        let bitmap = self.layout.bitmap_bytes as usize;
        let at = part * FILL_AT.len();
        let len = FILL_AT.len().min(bitmap - at);
        self.staging[FILL_AT].fill(0xff);
        let offset_bytes = data - self.layout.bitmap_bytes + at as u64;
        self.launch(Operation::Write { offset_bytes, at: FILL_AT.start, len });
        self.progress = if at + len == bitmap { (0, data + self.layout.block_bytes) } else { (part + 1, end) };
        true
    }

    /// The file cannot grow: those who need space are refused, the others go on.
    pub(super) fn refuse_space(&mut self) {
        let mut working = std::mem::take(&mut self.working);
        working.retain(|request| {
            let refused = self.needs_space(request);
            if refused {
                self.answer(request.ticket, Err(EngineError::OutOfSpace));
            }
            !refused
        });
        self.working = working;
    }

    /// What follows when the file has grown.
    pub(super) fn growth_steps() -> [Step; 3] {
        [Step::FillGrowth, Step::Sync, Step::Grown]
    }
}
