//! Space for a group: the lowest free first, then the file grows.

use super::group::Kind;
use super::{AHEAD, Engine, Operation};
use crate::blocks::{EngineError, IoFailure, State};
use crate::vhdx::format::MIB;
use crate::vhdx::space::{FILE_SPACE_MAX, Run};

/// The file grows ahead of need by at least this much, so that a fast writer meets the file system seldom.
const EXTEND_MIN: u64 = 64 * MIB;

/// And by at most this much, so that a large disk does not hold space that others need.
const EXTEND_MAX: u64 = 1024 * MIB;

/// How much space to ask the file system for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Growth {
    /// The group's need and a large step beyond it.
    Ahead,
    /// The group's need.
    Group,
    /// One object.
    One,
    /// No more: take what is there.
    Nothing,
}

impl Growth {
    pub fn less(self) -> Self {
        match self {
            Self::Ahead => Self::Group,
            Self::Group => Self::One,
            Self::One | Self::Nothing => Self::Nothing,
        }
    }
}

/// How far `reserve` came.
pub(super) enum Reserved {
    Done,
    After(Operation),
    Later,
}

impl Engine {
    /// Give the committing group's changes their places.
    pub(super) fn reserve(&mut self, growth: Growth) -> Reserved {
        let block = self.block_len();
        for at in 0..self.committing.changes.len() {
            let change = self.committing.changes[at];
            if !matches!(change.kind, Kind::Allocate | Kind::Stage) || change.offset_bytes != 0 {
                continue;
            }
            match self.take_space(block, growth) {
                Ok(offset_bytes) => self.committing.changes[at].offset_bytes = offset_bytes,
                Err(Some(waits)) => return waits,
                Err(None) => self.void(at, EngineError::OutOfSpace),
            }
        }
        for at in 0..self.committing.changes.len() {
            let change = self.committing.changes[at];
            let chunk = change.block / self.geometry.chunk_ratio;
            if change.kind != Kind::Commit || !self.needs_bitmap(change.block, chunk) {
                continue;
            }
            match self.take_space(MIB, growth) {
                Ok(offset_bytes) => self.committing.bitmaps.push((chunk, offset_bytes)),
                Err(Some(waits)) => return waits,
                Err(None) => self.void(at, EngineError::OutOfSpace),
            }
        }
        self.extend_ahead();
        Reserved::Done
    }

    /// Whether a commit needs a bitmap block that its chunk does not have.
    fn needs_bitmap(&self, block: u32, chunk: u32) -> bool {
        if self.committing.bitmaps.iter().any(|(other, _)| *other == chunk) {
            return false;
        }
        let old = self.map.entry(block).unwrap_or_default();
        let has = self.map.bitmap_entry(chunk).is_ok_and(|entry| entry.is_present());
        !has && old.state() != State::Full && !self.completes(block, old)
    }

    /// Take space. `Err(Some)`: something has to happen first. `Err(None)`: there is none.
    fn take_space(&mut self, len_bytes: u64, growth: Growth) -> Result<u64, Option<Reserved>> {
        let anywhere = self.space.find(len_bytes, FILE_SPACE_MAX).ok_or(None)?;
        if anywhere.end() <= self.file_len_bytes {
            assert!(self.space.take(anywhere), "what was found is free");
            return Ok(anywhere.offset_bytes);
        }
        // Holes that were found at open are being zeroed: nobody has planned on them, so it will not take long.
        if self.reclaim.frees_soon() || self.lanes[AHEAD].is_some() {
            return Err(Some(Reserved::Later));
        }
        let to_bytes = match growth {
            Growth::Ahead if self.ahead_refused => self.need_end(),
            Growth::Ahead => self.ahead_end(self.need_end()),
            Growth::Group => self.need_end(),
            Growth::One => anywhere.end(),
            Growth::Nothing => return Err(None),
        };
        Err(Some(Reserved::After(Operation::Extend { to_bytes: to_bytes.max(anywhere.end()) })))
    }

    /// Where the file would end with all that the committing group still needs.
    fn need_end(&self) -> u64 {
        let mut need = 0;
        for change in &self.committing.changes {
            match change.kind {
                Kind::Allocate | Kind::Stage if change.offset_bytes == 0 => need += self.block_len(),
                _ => {}
            }
        }
        (self.space.end_bytes() + need).min(FILE_SPACE_MAX)
    }

    /// How much to grow ahead of need: a share of the disk, so that large disks meet the file system as seldom as small
    /// ones.
    fn growth_step(&self) -> u64 {
        let share = (self.geometry.disk_size_bytes / 64).clamp(EXTEND_MIN, EXTEND_MAX).next_multiple_of(MIB);
        share.max(self.block_len())
    }

    /// Where the file ends once every block has space: it never needs to be longer.
    fn usable_end(&self) -> u64 {
        let absent = self.geometry.block_count.saturating_sub(self.map.blocks_allocated());
        let chunks =
            if self.geometry.has_parent { self.geometry.chunk_count().saturating_sub(self.bitmaps) } else { 0 };
        let end = self.space.end_bytes() + u64::from(absent) * self.block_len() + u64::from(chunks) * MIB;
        end.min(FILE_SPACE_MAX)
    }

    /// The growth beyond `end`: large steps, but never more than the disk can still use.
    fn ahead_end(&self, end: u64) -> u64 {
        (end + self.growth_step()).min(self.usable_end()).max(end)
    }

    /// Grow the file beside the group's entry when less than half a step is left.
    fn extend_ahead(&mut self) {
        let used = self.space.taken_bytes() + self.space.condemned_bytes();
        let free = self.file_len_bytes.saturating_sub(used);
        let idle = self.lanes[AHEAD].is_some() || self.ahead_refused || self.close_wanted || self.cut_wanted;
        let grows = self.committing.changes.iter().any(|change| change.offset_bytes != 0);
        if idle || !grows || free >= self.growth_step() / 2 {
            return;
        }
        // The group's blocks are not counted as allocated yet, but their space is taken.
        let pending = self.committing.changes.iter().filter(|change| change.offset_bytes != 0).count() as u64;
        let usable = self.usable_end().saturating_sub(pending * self.block_len());
        let to_bytes = usable.min(self.file_len_bytes + self.growth_step());
        if to_bytes > self.file_len_bytes {
            self.start_in(AHEAD, Operation::Extend { to_bytes });
        }
    }

    /// The extension beside the steps has ended.
    pub(super) fn finish_ahead(&mut self, result: Result<(), IoFailure>) {
        match result {
            Ok(()) => {}
            Err(IoFailure::OutOfSpace) => self.ahead_refused = true,
            // The step in flight ends in a poisoned engine; its completion is taken and ignored.
            Err(_) => self.poison(),
        }
    }

    /// What of the file lies behind everything that is not free.
    pub(super) fn slack(&self) -> Option<Run> {
        let end = self.space.end_bytes();
        let len_bytes = self.file_len_bytes.checked_sub(end).filter(|len| *len != 0)?;
        Some(Run { offset_bytes: end, len_bytes })
    }
}
