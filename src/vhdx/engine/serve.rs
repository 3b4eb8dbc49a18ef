//! Requests become changes of the group that collects, block by block, or wait until they can.

use super::group::{Kind, LogPage, Sectors};
use super::pages::{Blocked, STAGED_MAX};
use super::requests::{Key, Request, Wish};
use super::{Engine, Phase};
use crate::blocks::{Asked, Done, EngineError, Entry, Event, Fault, State, Ticket, WORDS_PER_PAGE};
use crate::vhdx::source::BITMAP_PAGES;

/// Sectors that a page of bits describes.
const SECTORS_PER_PAGE: u64 = 64 * WORDS_PER_PAGE;

impl Engine {
    /// The sectors of a block that the disk has.
    pub(super) fn sectors_of(&self, block: u32) -> Sectors {
        let shift = self.map.shape().sector_shift;
        let start = u64::from(block) << self.geometry.block_shift;
        let end = start + self.geometry.visible_len_bytes(block);
        Sectors { start: start >> shift, end: end >> shift }
    }

    /// Whether the steps that run, or will run next, open a session for the guest's writes.
    pub(super) fn opens_for_writing(&self) -> bool {
        self.phase == Phase::Opening && self.data_write_guid_new
    }

    pub(super) fn ask(
        &mut self,
        wish: Wish,
        offset_bytes: u64,
        len_bytes: u64,
        ticket: Ticket,
    ) -> Result<Asked, EngineError> {
        self.refuse_unless_serving()?;
        self.refuse_if_full()?;
        self.reserve_buffers();
        let end_bytes = offset_bytes + len_bytes;
        assert!(end_bytes <= self.geometry.disk_size_bytes, "the range lies within the disk");
        let size = self.block_len();
        let (block, block_end) = match wish {
            Wish::Load(_) => (0, 1),
            Wish::Unmap if end_bytes == self.geometry.disk_size_bytes => {
                (offset_bytes.div_ceil(size) as u32, self.geometry.block_count)
            }
            Wish::Unmap => (offset_bytes.div_ceil(size) as u32, (end_bytes / size) as u32),
            _ if len_bytes == 0 => (0, 0),
            Wish::Prepare | Wish::Commit { .. } | Wish::Atomic { .. } => {
                ((offset_bytes / size) as u32, end_bytes.div_ceil(size) as u32)
            }
        };
        let request = Request {
            ticket,
            wish,
            start_bytes: offset_bytes,
            end_bytes,
            block,
            block_end,
            links: 0,
            queued: false,
            result: Ok(Done::Ok),
        };
        let key = self.requests.insert(request)?;
        if self.admit(key).is_err() {
            self.requests.enqueue(key);
            return Ok(Asked::Queued);
        }
        let request = *self.requests.at(key);
        if request.links > 0 {
            return Ok(Asked::Queued);
        }
        self.requests.remove(key);
        match request.result {
            Ok(Done::Ok) => Ok(Asked::Already),
            Ok(Done::PlanAgain) => {
                self.push_event(Event::Done { ticket, result: Ok(Done::PlanAgain) });
                Ok(Asked::Queued)
            }
            Err(error) => Err(error),
        }
    }

    /// Let those in the queue go on, as far as they can.
    pub(super) fn serve_queue(&mut self) {
        for _ in 0..self.requests.queue.len() {
            let Some(key) = self.requests.queue.pop_front() else { return };
            self.requests.at_mut(key).queued = false;
            match self.admit(key) {
                Ok(()) => self.settle(key),
                Err(Blocked::Full) => {
                    self.requests.at_mut(key).queued = true;
                    return self.requests.queue.push_front(key);
                }
                Err(Blocked::Waits) => self.requests.enqueue(key),
            }
        }
    }

    /// End a request when it has nothing left to wait for.
    pub(super) fn settle(&mut self, key: Key) {
        let request = *self.requests.at(key);
        if request.links == 0 && !request.queued {
            self.requests.remove(key);
            self.push_event(Event::Done { ticket: request.ticket, result: request.result });
        }
    }

    /// Make changes of as much of a request as can be. `Ok`: it has no more to ask.
    fn admit(&mut self, key: Key) -> Result<(), Blocked> {
        loop {
            let request = *self.requests.at(key);
            if request.result != Ok(Done::Ok) {
                return Ok(());
            }
            if !matches!(request.wish, Wish::Load(_)) && !self.map.write_session_open() {
                self.begin_wanted |= !self.opens_for_writing();
                return Err(Blocked::Waits);
            }
            if request.block >= request.block_end {
                return Ok(());
            }
            let next = match request.wish {
                Wish::Load(fault) => self.admit_load(fault)?,
                Wish::Prepare => self.admit_prepare(key, request.block)?,
                Wish::Commit { epoch } if epoch == self.map.placement_epoch() => self.admit_commit(key, &request)?,
                Wish::Commit { .. } => {
                    self.requests.at_mut(key).result = Ok(Done::PlanAgain);
                    return Ok(());
                }
                Wish::Unmap => self.admit_unmap(key, request.block)?,
                Wish::Atomic { payload_at } => self.admit_atomic(key, payload_at)?,
            };
            self.requests.at_mut(key).block = next;
        }
    }

    fn admit_load(&mut self, fault: Fault) -> Result<u32, Blocked> {
        let table = self.map.table(fault.table);
        if fault.page >= table.pages() || table.is_resident(fault.page) {
            return Ok(1);
        }
        Err(self.want(fault))
    }

    fn join(&mut self, change: usize, key: Key) {
        self.collecting.join(change, key);
        self.requests.at_mut(key).links += 1;
    }

    fn room(&self) -> Result<(), Blocked> {
        if self.collecting.has_room() { Ok(()) } else { Err(Blocked::Full) }
    }

    /// The word of a block that no relocation holds; one that has not begun to copy gives way.
    pub(super) fn entry_to_change(&mut self, block: u32) -> Result<Entry, Blocked> {
        let entry = self.entry(block)?;
        if !entry.is_busy() {
            return Ok(entry);
        }
        if self.cancel_relocation(block) { self.entry(block) } else { Err(Blocked::Waits) }
    }

    fn admit_prepare(&mut self, key: Key, block: u32) -> Result<u32, Blocked> {
        for group in [&mut self.collecting, &mut self.committing] {
            let Some(change) = group.find(block) else { continue };
            match group.changes[change].kind {
                Kind::Allocate | Kind::Stage if group.has_room() => {
                    group.join(change, key);
                    self.requests.at_mut(key).links += 1;
                    return Ok(block + 1);
                }
                // Its space is about to go: plan again then.
                Kind::Allocate | Kind::Stage | Kind::Zero => return Err(Blocked::Waits),
                _ => {}
            }
        }
        let entry = self.entry_to_change(block)?;
        if entry.has_space() {
            return Ok(block + 1);
        }
        self.room()?;
        let kind = if self.geometry.has_parent && entry.state() == State::Absent {
            self.trim_staged();
            if self.pages.staged.len() >= STAGED_MAX && !self.unstage() {
                return Err(Blocked::Full);
            }
            self.pin(self.entry_page(block))?;
            Kind::Stage
        } else {
            self.claim(&[self.entry_page(block)])?;
            Kind::Allocate
        };
        let change = self.collecting.add(block, kind);
        self.join(change, key);
        Ok(block + 1)
    }

    fn admit_commit(&mut self, key: Key, request: &Request) -> Result<u32, Blocked> {
        let block = request.block;
        let takes = |kind| matches!(kind, Some(Kind::Zero | Kind::ZeroInPlace | Kind::Move { .. }));
        if takes(self.collecting.kind_of(block)) || takes(self.committing.kind_of(block)) {
            return Err(Blocked::Waits);
        }
        let entry = self.entry(block)?;
        if entry.state() == State::Full {
            return Ok(block + 1);
        }
        if entry.state() == State::Zeros || !entry.has_space() || !self.geometry.has_parent {
            self.requests.at_mut(key).result = Ok(Done::PlanAgain);
            return Ok(block);
        }
        if entry.is_busy() && self.is_copying(block) {
            return Err(Blocked::Waits);
        }
        let shift = self.map.shape().sector_shift;
        let all = self.sectors_of(block);
        let start = (request.start_bytes >> shift).max(all.start);
        let end = (request.end_bytes >> shift).min(all.end);
        if entry.state() == State::Partial && self.are_set(start, end)? {
            return Ok(block + 1);
        }
        self.room()?;
        let whole = Sectors { start, end } == all;
        let bits = match entry.state() {
            _ if whole => None,
            State::Absent => Some(all),
            _ => Some(Sectors { start, end }),
        };
        self.claim_for_commit(block, bits)?;
        let change = match self.collecting.find(block) {
            Some(change) => {
                self.collecting.changes[change].kind = Kind::Commit;
                change
            }
            None => self.collecting.add(block, Kind::Commit),
        };
        self.collecting.ranges.push(Sectors { start, end });
        self.join(change, key);
        Ok(block + 1)
    }

    /// Whether the bits of all these sectors are set.
    pub(super) fn are_set(&mut self, start: u64, end: u64) -> Result<bool, Blocked> {
        let mut at = start;
        while at < end {
            match self.map.run(at, end - at) {
                Ok((true, run)) => at += run,
                Ok((false, _)) => return Ok(false),
                Err(fault) => return Err(self.want(fault)),
            }
        }
        Ok(true)
    }

    /// Pin the pages that a commit may change: the block's word, the bits, and the word of a bitmap block to come.
    fn claim_for_commit(&mut self, block: u32, bits: Option<Sectors>) -> Result<(), Blocked> {
        let mut wanted = [LogPage::Entries(0); 20];
        wanted[0] = self.entry_page(block);
        let mut count = 1;
        if let Some(bits) = bits {
            let chunk = block / self.geometry.chunk_ratio;
            let bitmap = self.map.bitmap_entry(chunk).map_err(|fault| self.want(fault))?;
            let pages = bits.start / SECTORS_PER_PAGE..=(bits.end - 1) / SECTORS_PER_PAGE;
            if !bitmap.is_present() {
                let index = self.geometry.bitmap_index(chunk);
                wanted[1] = LogPage::Entries((index / super::entry::ENTRIES_PER_PAGE) as u32);
                count = 2;
            }
            for page in pages {
                debug_assert_eq!(page as u32 / BITMAP_PAGES, chunk);
                if !bitmap.is_present() {
                    self.map.bits().fill_zeros(page as u32);
                }
                wanted[count] = LogPage::Bits(page as u32);
                count += 1;
            }
        }
        self.claim(&wanted[..count])
    }

    fn admit_unmap(&mut self, key: Key, block: u32) -> Result<u32, Blocked> {
        if let Some(change) = self.collecting.find(block) {
            if !matches!(self.collecting.changes[change].kind, Kind::Zero | Kind::ZeroInPlace) {
                return Err(Blocked::Waits);
            }
            self.room()?;
            self.join(change, key);
            return Ok(block + 1);
        }
        if self.committing.find(block).is_some() {
            return Err(Blocked::Waits);
        }
        let entry = self.entry_to_change(block)?;
        if !entry.has_space() && (entry.state() == State::Zeros || !self.geometry.has_parent) {
            // Where a whole page of the table is zeros, so are its blocks; one word of it may be a bitmap's.
            let index = self.geometry.bat_index(block);
            let page = (index / WORDS_PER_PAGE) as u32;
            let skip = if self.map.entries().is_zeros(page) { WORDS_PER_PAGE - index % WORDS_PER_PAGE } else { 0 };
            return Ok(block + (skip as u32).saturating_sub(1).max(1));
        }
        self.room()?;
        let kind = if self.geometry.fixed && entry.is_present() {
            Kind::ZeroInPlace
        } else {
            self.claim(&[self.entry_page(block)])?;
            Kind::Zero
        };
        let change = self.collecting.add(block, kind);
        self.join(change, key);
        Ok(block + 1)
    }
}
