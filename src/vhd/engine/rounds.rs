//! Rounds: the part of the waiting requests that is worked on next, what it writes, and what it shows afterwards.

use super::steps::{FILL_AT, FLIGHT_MAX, SLOTS, Step};
use super::{Engine, Operation, Request, RequestKind, ZeroMode};
use crate::blocks::{Done, Entry, PAGE_BYTES, PinRefused, State, WORDS_PER_PAGE};
use crate::vhd::format::{SECTOR, UNUSED};
use crate::vhd::table::to_least_significant_first;

/// Blocks that get a place in one round: each may need a table sector of its own.
pub(super) const FRESH_MAX: usize = SLOTS;

/// Chunks of one round: each may need a sector of a bitmap and one of the table.
pub(super) const CHUNKS_MAX: usize = SLOTS / 2;

/// Blocks that one round releases.
pub(super) const CLEARED_MAX: usize = 16;

/// Sectors of the disk that one sector of a bitmap describes.
const CHUNK_SECTORS: u64 = SECTOR * 8;

/// Table entries in a sector.
const SECTOR_ENTRIES: u32 = SECTOR as u32 / 4;

/// A part of a commit that lies in one sector of a block's bitmap.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk {
    /// Which of the requests that are worked on.
    request: usize,
    block: u32,
    /// Which sector of the bitmap.
    part: u64,
    /// Sectors of the disk.
    first: u64,
    count: u64,
}

impl Chunk {
    fn page(&self) -> u32 {
        (self.first / (PAGE_BYTES as u64 * 8)) as u32
    }
}

/// A block that is released.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cleared {
    request: usize,
    block: u32,
    data: u64,
    /// All of its sectors are here, and are to stay so.
    full: bool,
    /// It has no place in the table yet.
    unnamed: bool,
}

/// What a walk through requests found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Walk {
    Done,
    NeedsSpace,
}

impl Engine {
    /// Put together what comes next, and answer what is done.
    pub(super) fn plan_round(&mut self) {
        assert!(self.fresh.is_empty() && self.chunks.is_empty() && self.cleared.is_empty());
        let mut walk = self.walk_prepares();
        if !self.fresh.is_empty() {
            self.script.push_back(Step::WriteFresh);
        } else if walk == Walk::Done {
            self.walk_commits();
            if !self.chunks.is_empty() {
                self.script.extend([Step::PinPages, Step::WriteChunks]);
            } else {
                walk = self.walk_unmaps();
                self.script_cleared();
            }
        }
        if walk == Walk::NeedsSpace && self.script.is_empty() {
            self.script.push_back(Step::Grow);
        }
        self.answer_done();
    }

    fn script_cleared(&mut self) {
        if self.cleared.is_empty() {
            return;
        }
        self.progress = (0, 0);
        self.script.push_back(Step::ZeroBlocks);
        if self.has_parent() && self.cleared.iter().any(|cleared| !cleared.full) {
            // A bit that is set shows what the block holds there: nothing but zeros by then.
            self.script.push_back(Step::Sync);
        }
        self.script.push_back(Step::WriteCleared);
    }

    /// Answer the requests that are done. Not while a round counts on their numbers.
    fn answer_done(&mut self) {
        if !(self.chunks.is_empty() && self.cleared.is_empty()) {
            return;
        }
        let mut working = std::mem::take(&mut self.working);
        working.retain(|request| {
            let done = request.cursor >= request.end;
            if done {
                self.answer(request.ticket, Ok(Done::Ok));
            }
            !done
        });
        self.working = working;
    }

    fn block_at(&self, position: u64) -> u32 {
        (position >> self.map.shape().block_shift) as u32
    }

    /// Where a block ends, on the disk.
    fn block_end(&self, block: u32) -> u64 {
        (u64::from(block) + 1) << self.map.shape().block_shift
    }

    /// Whether the file must grow for a request to go on.
    pub(super) fn needs_space(&self, request: &Request) -> bool {
        match request.kind {
            RequestKind::Prepare => request.cursor < request.end,
            RequestKind::Commit { .. } => false,
            RequestKind::Unmap => {
                let mut request = *request;
                self.has_parent()
                    && self.next_to_clear(&mut request).is_some_and(|block| !self.entry(block).has_space())
            }
        }
    }

    /// Give blocks their places.
    fn walk_prepares(&mut self) -> Walk {
        for at in 0..self.working.len() {
            let request = self.working[at];
            if request.kind != RequestKind::Prepare {
                continue;
            }
            let mut position = request.cursor;
            while position < request.end {
                let block = self.block_at(position);
                let placed = self.entry(block).has_space() || (self.has_parent() && self.stage(block));
                position = self.block_end(block).min(request.end);
                if placed {
                    // What lies before is not placed yet when it is fresh: the request waits for it.
                    if self.fresh.is_empty() {
                        self.working[at].cursor = position;
                    }
                    continue;
                }
                if self.fresh.iter().any(|(fresh, _)| *fresh == block) {
                    continue;
                }
                if self.fresh.len() == FRESH_MAX {
                    return Walk::Done;
                }
                let Some(data) = (if self.has_parent() { None } else { self.take_place() }) else {
                    return Walk::NeedsSpace;
                };
                self.fresh.push((block, data));
            }
        }
        Walk::Done
    }

    /// Fill a slot with a sector of the table: the blocks that everyone sees, and those that `naming` gives a place.
    fn table_sector(&mut self, slot: usize, sector: u32, naming: impl Fn(&Self, u32) -> Option<u64>) -> u64 {
        let first = sector * SECTOR_ENTRIES;
        let mut bytes = [0xff; SECTOR as usize];
        for (block, word) in (first..self.table.blocks).zip(bytes.as_chunks_mut::<4>().0) {
            let entry = self.entry(block);
            let data = if entry.is_present() { Some(entry.offset_bytes()) } else { naming(self, block) };
            *word = data.map_or(UNUSED, |data| self.layout.sector_of(data)).to_be_bytes();
        }
        *self.slot(slot) = bytes;
        self.table.entry_offset(first)
    }

    pub(super) fn write_fresh(&mut self) {
        let mut slot = 0;
        for at in 0..self.fresh.len() {
            let sector = self.fresh[at].0 / SECTOR_ENTRIES;
            if self.fresh[..at].iter().any(|(block, _)| block / SECTOR_ENTRIES == sector) {
                continue;
            }
            let offset = self.table_sector(slot, sector, |engine, block| {
                engine.fresh.iter().find(|(fresh, _)| *fresh == block).map(|(_, data)| *data)
            });
            self.launch_slot(slot, offset);
            slot += 1;
        }
    }

    /// The table's sectors have left the process: show the blocks.
    pub(super) fn publish_fresh(&mut self) {
        self.map.count_published();
        for (block, data) in &self.fresh {
            assert!(!self.entry(*block).has_space(), "a block gets space once");
            self.store(*block, Entry::new(State::Full, *data));
        }
        self.map.set_blocks_allocated(self.map.blocks_allocated() + self.fresh.len() as u32);
        self.fresh.clear();
    }

    fn walk_commits(&mut self) {
        let mut at = 0;
        while at < self.working.len() {
            let RequestKind::Commit { epoch } = self.working[at].kind else {
                at += 1;
                continue;
            };
            let stale = epoch != self.map.placement_epoch() || !self.walk_commit(at);
            if stale && self.chunks.iter().all(|chunk| chunk.request != at) {
                let request = self.working.remove(at);
                self.answer(request.ticket, Ok(Done::PlanAgain));
                continue;
            }
            if self.chunks.len() == CHUNKS_MAX {
                return;
            }
            at += 1;
        }
    }

    /// Gather chunks of one commit. False: one of its blocks has no place.
    fn walk_commit(&mut self, at: usize) -> bool {
        let (mut position, end) = (self.working[at].cursor, self.working[at].end);
        while position < end && self.chunks.len() < CHUNKS_MAX {
            let block = self.block_at(position);
            let block_start = u64::from(block) << self.map.shape().block_shift;
            let block_end = self.block_end(block).min(end);
            let entry = self.entry(block);
            if !entry.has_space() {
                return false;
            }
            if self.is_full(block) {
                position = block_end;
                if self.chunks.iter().all(|chunk| chunk.request != at) {
                    self.working[at].cursor = position;
                }
                continue;
            }
            let part = (position - block_start) / SECTOR / CHUNK_SECTORS;
            let until = (block_start + (part + 1) * CHUNK_SECTORS * SECTOR).min(block_end);
            let (first, count) = (position / SECTOR, (until - position) / SECTOR);
            self.chunks.push(Chunk { request: at, block, part, first, count });
            position = until;
        }
        true
    }

    /// Have the pages of this round's bits in memory, and keep them there. False: they are being loaded.
    pub(super) fn pin_pages(&mut self) -> bool {
        for at in 0..self.chunks.len() {
            let page = self.chunks[at].page();
            if self.pinned.contains(&page) {
                continue;
            }
            loop {
                match self.map.bits().pin(page) {
                    Ok(()) => self.pinned.push(page),
                    Err(PinRefused::NotResident) => {
                        if !self.loads.expects(page) {
                            // When the queue is full its progress brings us back here.
                            let _ = self.loads.ask(page, None);
                            self.advance_loads();
                        }
                        if self.map.bits().is_resident(page) {
                            continue;
                        }
                        return false;
                    }
                    Err(PinRefused::TooMany) => {
                        assert!(at > 0, "nobody else pins pages");
                        // The rest comes in the next round.
                        self.chunks.truncate(at);
                        return true;
                    }
                    // Nobody else fills this table, so it can only be a moment.
                    Err(PinRefused::Claimed) => {
                        std::hint::spin_loop();
                        continue;
                    }
                }
                break;
            }
        }
        true
    }

    /// The bits of a bitmap's sector as they will be, as they stand in the file.
    fn bitmap_sector(&mut self, slot: usize, block: u32, part: u64) -> u64 {
        let block_sectors = self.layout.block_bytes / SECTOR;
        let first = u64::from(block) * block_sectors + part * CHUNK_SECTORS;
        let end = (first + CHUNK_SECTORS.min(block_sectors)).min(self.map.shape().sectors().next_multiple_of(64));
        let mut bytes = [0; SECTOR as usize];
        for (index, word) in (first / 64..end / 64).zip(bytes.as_chunks_mut::<8>().0) {
            *word = self.map.bits().get(index).expect("the page is pinned").to_le_bytes();
        }
        for chunk in self.chunks.iter().filter(|chunk| (chunk.block, chunk.part) == (block, part)) {
            for bit in chunk.first - first..chunk.first - first + chunk.count {
                bytes[bit as usize / 8] |= 1 << (bit % 8);
            }
        }
        to_least_significant_first(&mut bytes);
        *self.slot(slot) = bytes;
        self.entry(block).offset_bytes() - self.layout.bitmap_bytes + part * SECTOR
    }

    /// Write the bitmaps' sectors, and the table's for blocks that it does not name yet. These need no flush in
    /// between: the bitmap of such a block is zeros, durably, since the file has grown.
    pub(super) fn write_chunks(&mut self) {
        let mut slot = 0;
        for at in 0..self.chunks.len() {
            let Chunk { block, part, .. } = self.chunks[at];
            if self.chunks[..at].iter().all(|chunk| (chunk.block, chunk.part) != (block, part)) {
                let offset = self.bitmap_sector(slot, block, part);
                self.launch_slot(slot, offset);
                slot += 1;
            }
            let unnamed = |engine: &Self, block| !engine.entry(block).is_present();
            let sector = block / SECTOR_ENTRIES;
            let same = |chunk: &Chunk| chunk.block / SECTOR_ENTRIES == sector && unnamed(self, chunk.block);
            if unnamed(self, block) && !self.chunks[..at].iter().any(same) {
                let offset = self.table_sector(slot, sector, |engine, block| {
                    let held = engine.chunks.iter().any(|chunk| chunk.block == block);
                    held.then(|| engine.entry(block).offset_bytes())
                });
                self.launch_slot(slot, offset);
                slot += 1;
            }
        }
    }

    /// Everything has left the process: show the sectors. Bits first: those of a block that was absent are all zero, so
    /// that nobody who sees it become partial sees a bit that is not its own.
    pub(super) fn publish_chunks(&mut self) {
        self.map.count_published();
        for at in 0..self.chunks.len() {
            let Chunk { request, block, first, count, .. } = self.chunks[at];
            self.map.set_bits(first, count).expect("the page is pinned");
            self.working[request].cursor = (first + count) * SECTOR;
            let entry = self.entry(block);
            if !entry.is_present() {
                self.store(block, Entry::new(State::Partial, entry.offset_bytes()));
                self.map.set_blocks_allocated(self.map.blocks_allocated() + 1);
            }
        }
        for at in 0..self.chunks.len() {
            self.promote_if_full(self.chunks[at].block);
        }
        for page in self.pinned.drain(..) {
            self.map.bits().unpin(page);
        }
        self.chunks.clear();
    }

    /// The next block that an unmap releases; moves its cursor there, or to the end.
    fn next_to_clear(&self, request: &mut Request) -> Option<u32> {
        let shape = self.map.shape();
        let whole = request.start.next_multiple_of(shape.block_bytes());
        let end = if request.end == shape.size_bytes { shape.blocks() } else { self.block_at(request.end) };
        let mut block = self.block_at(request.cursor.max(whole));
        // The last block may be short: its end is not that of a whole block.
        while request.cursor < request.end && block < end {
            let page = (u64::from(block) / WORDS_PER_PAGE) as u32;
            if !self.has_parent() && self.map.entries().is_zeros(page) {
                block = (page + 1) * WORDS_PER_PAGE as u32;
            } else if self.has_parent() || self.entry(block).is_present() {
                request.cursor = u64::from(block) << shape.block_shift;
                return Some(block);
            } else {
                block += 1;
            }
        }
        request.cursor = request.end;
        None
    }

    fn walk_unmaps(&mut self) -> Walk {
        for at in 0..self.working.len() {
            let mut request = self.working[at];
            if request.kind != RequestKind::Unmap {
                continue;
            }
            let mut first = true;
            while let Some(block) = self.next_to_clear(&mut request) {
                if std::mem::take(&mut first) {
                    self.working[at].cursor = request.cursor;
                }
                if self.cleared.len() == CLEARED_MAX || self.cleared.iter().any(|cleared| cleared.block == block) {
                    break;
                }
                if !self.entry(block).has_space() && !self.stage(block) {
                    return Walk::NeedsSpace;
                }
                let entry = self.entry(block);
                let (full, unnamed) = (entry.state() == State::Full, !entry.is_present());
                self.cleared.push(Cleared { request: at, block, data: entry.offset_bytes(), full, unnamed });
                request.cursor = self.block_end(block);
            }
            if first {
                self.working[at].cursor = request.end;
            }
        }
        Walk::Done
    }

    /// Make the released blocks read as zeros; where the file system can, their space goes back to it.
    pub(super) fn zero_blocks(&mut self) {
        let len_bytes = self.layout.block_bytes;
        self.staging[FILL_AT].fill(0);
        while self.progress.0 < self.cleared.len() && self.flight.len() < FLIGHT_MAX {
            let (at, done) = self.progress;
            let offset_bytes = self.cleared[at].data;
            let step = match self.zero_mode {
                ZeroMode::Punch => {
                    self.launch(Operation::PunchHole { offset_bytes, len_bytes });
                    len_bytes
                }
                ZeroMode::ZeroRange => {
                    self.launch(Operation::ZeroRange { offset_bytes, len_bytes });
                    len_bytes
                }
                ZeroMode::Write => {
                    let (offset_bytes, len) = (offset_bytes + done, FILL_AT.len());
                    self.launch(Operation::Write { offset_bytes, at: FILL_AT.start, len });
                    len as u64
                }
            };
            self.progress = if done + step == len_bytes { (at + 1, 0) } else { (at, done + step) };
        }
    }

    pub(super) fn zeros_left(&self) -> bool {
        self.progress.0 < self.cleared.len()
    }

    /// Over a parent: all bits of the released blocks, and the table's sectors for those that it does not name yet.
    pub(super) fn write_cleared(&mut self) {
        if !self.has_parent() {
            return;
        }
        self.staging[FILL_AT].fill(0xff);
        let mut slot = 0;
        for at in 0..self.cleared.len() {
            let Cleared { block, data, full, unnamed, .. } = self.cleared[at];
            if full {
                continue;
            }
            for part in (0..self.layout.bitmap_bytes).step_by(FILL_AT.len()) {
                let len = (self.layout.bitmap_bytes - part).min(FILL_AT.len() as u64) as usize;
                let offset_bytes = data - self.layout.bitmap_bytes + part;
                self.launch(Operation::Write { offset_bytes, at: FILL_AT.start, len });
            }
            let sector = block / SECTOR_ENTRIES;
            let same = |cleared: &Cleared| cleared.unnamed && cleared.block / SECTOR_ENTRIES == sector;
            if unnamed && !self.cleared[..at].iter().any(same) {
                let offset = self.table_sector(slot, sector, |engine, block| {
                    engine.cleared.iter().find(|cleared| cleared.block == block).map(|cleared| cleared.data)
                });
                self.launch_slot(slot, offset);
                slot += 1;
            }
        }
    }

    /// The released blocks are zeros, and all their sectors are here.
    pub(super) fn publish_cleared(&mut self) {
        self.map.count_published();
        let has_parent = self.has_parent();
        for at in 0..self.cleared.len() {
            let Cleared { request, block, data, full, unnamed } = self.cleared[at];
            if has_parent && !full {
                self.store(block, Entry::new(State::Full, data));
            }
            if unnamed {
                self.map.set_blocks_allocated(self.map.blocks_allocated() + 1);
            }
            let request = &mut self.working[request];
            request.cursor = ((u64::from(block) + 1) << self.map.shape().block_shift).min(request.end);
        }
        self.cleared.clear();
    }
}
