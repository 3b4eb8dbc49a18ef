//! Pages of the map that the engine needs: loaded on demand, pinned while the file does not have what they say.

use std::collections::VecDeque;

use super::group::LogPage;
use super::{Engine, LANES, LOADS, Operation};
use crate::blocks::{Entry, Fault, IoFailure, PAGE_BYTES, PieceList, PinRefused, State, Table};

/// Loads that may wait for a lane; more ask again when one has ended.
const WANTED_MAX: usize = 64;

/// Pages of each table that may be newer than the file before they are written in place.
pub(super) const DIRTY_MAX: usize = 1024;

/// Blocks with staged space: each keeps its page of the table in memory. More than commands in flight ever need.
pub(super) const STAGED_MAX: usize = 1024;

/// Why a request does not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blocked {
    /// The group that collects is full.
    Full,
    /// It waits for a page, a block, or the session.
    Waits,
}

/// What is newer in memory, and what is on its way.
#[derive(Debug, Default)]
pub(super) struct Pages {
    /// Sorted, each pinned once: the map is newer than the file's table.
    pub dirty_entries: Vec<u32>,
    pub dirty_bits: Vec<u32>,
    /// Pages of the staging buffer that are being written in place.
    pub applying: Vec<LogPage>,
    /// Blocks that were given staged space, oldest first; those that are not staged any more are skipped.
    pub staged: VecDeque<(u32, u64)>,
    wanted: VecDeque<Fault>,
}

impl Pages {
    pub fn reserve(&mut self) {
        self.dirty_entries.reserve_exact(DIRTY_MAX + 64);
        self.dirty_bits.reserve_exact(DIRTY_MAX + 64);
        self.applying.reserve_exact(super::group::PAGES_MAX + 1);
        self.staged.reserve_exact(STAGED_MAX + 1);
        self.wanted.reserve_exact(WANTED_MAX);
    }

    pub fn none_dirty(&self) -> bool {
        self.dirty_entries.is_empty() && self.dirty_bits.is_empty()
    }

    pub fn too_many_dirty(&self) -> bool {
        self.dirty_entries.len() > DIRTY_MAX || self.dirty_bits.len() > DIRTY_MAX
    }

    fn dirty(&mut self, page: LogPage) -> (&mut Vec<u32>, u32) {
        match page {
            LogPage::Entries(page) => (&mut self.dirty_entries, page),
            LogPage::Bits(page) => (&mut self.dirty_bits, page),
        }
    }

    /// The page is newer than the file; whether it was before.
    pub fn mark_dirty(&mut self, page: LogPage) -> bool {
        let (dirty, page) = self.dirty(page);
        match dirty.binary_search(&page) {
            Ok(_) => true,
            Err(at) => {
                dirty.insert(at, page);
                false
            }
        }
    }

    /// The file has it.
    pub fn mark_clean(&mut self, page: LogPage) {
        let (dirty, page) = self.dirty(page);
        if let Ok(at) = dirty.binary_search(&page) {
            dirty.remove(at);
        }
    }
}

pub(super) fn fault_of(page: LogPage) -> Fault {
    match page {
        LogPage::Entries(page) => Fault { table: Table::Entries, page },
        LogPage::Bits(page) => Fault { table: Table::Bits, page },
    }
}

impl Engine {
    /// A block's word, or wait for its page.
    pub(super) fn entry(&mut self, block: u32) -> Result<Entry, Blocked> {
        self.map.entry(block).map_err(|fault| self.want(fault))
    }

    /// Have a page loaded.
    pub(super) fn want(&mut self, fault: Fault) -> Blocked {
        let loading = |running: &super::Running| match running.operation {
            Operation::Read { fault: other, .. } => other == fault,
            _ => false,
        };
        let known = self.lanes[LOADS..].iter().flatten().any(loading) || self.pages.wanted.contains(&fault);
        if !known && self.pages.wanted.len() < WANTED_MAX {
            self.pages.wanted.push_back(fault);
            self.retry = true;
        }
        Blocked::Waits
    }

    /// Keep a page in memory.
    pub(super) fn pin(&mut self, page: LogPage) -> Result<(), Blocked> {
        let fault = fault_of(page);
        match self.map.table(fault.table).pin(fault.page) {
            Ok(()) => Ok(()),
            Err(PinRefused::NotResident) => Err(self.want(fault)),
            Err(PinRefused::TooMany) => {
                self.retry |= !self.apply_wanted;
                self.apply_wanted = true;
                Err(Blocked::Waits)
            }
            Err(PinRefused::Claimed) => {
                self.retry = true;
                Err(Blocked::Waits)
            }
        }
    }

    pub(super) fn unpin(&self, page: LogPage) {
        let fault = fault_of(page);
        self.map.table(fault.table).unpin(fault.page);
    }

    /// Have these pages pinned for the group that collects, or none: a group without changes is never written, and what
    /// it held would keep everybody from their pages for good.
    pub(super) fn claim(&mut self, wanted: &[LogPage]) -> Result<(), Blocked> {
        let missing = wanted.iter().filter(|page| !self.collecting.holds(**page)).count();
        if self.collecting.entry_pages() + missing > super::group::PAGES_MAX {
            return Err(Blocked::Full);
        }
        let mut result = Ok(());
        for page in wanted {
            let fault = fault_of(*page);
            if !self.map.table(fault.table).is_resident(fault.page) {
                result = Err(self.want(fault));
            }
        }
        result?;
        let mut added = [false; super::group::PAGES_MAX];
        for (page, added) in wanted.iter().zip(&mut added) {
            if self.collecting.holds(*page) {
                continue;
            }
            result = self.pin(*page);
            if result.is_err() {
                break;
            }
            self.collecting.add_page(*page);
            *added = true;
        }
        if result.is_err() {
            for (page, _) in wanted.iter().zip(added).filter(|(_, added)| *added) {
                self.collecting.remove_page(*page);
                self.unpin(*page);
            }
        }
        result
    }

    pub(super) fn entry_page(&self, block: u32) -> LogPage {
        LogPage::Entries((self.geometry.bat_index(block) / super::entry::ENTRIES_PER_PAGE) as u32)
    }

    /// Begin as many loads as there are lanes.
    pub(super) fn start_loads(&mut self) {
        while let Some(fault) = self.pages.wanted.front().copied() {
            let Some(lane) = (LOADS..LANES).find(|lane| self.lanes[*lane].is_none()) else { return };
            self.pages.wanted.pop_front();
            let table = self.map.table(fault.table);
            if table.is_resident(fault.page) {
                self.retry = true;
                continue;
            }
            let mut pieces = PieceList::new();
            if let Err(other) = self.map.source().pieces(&self.map, fault, &mut pieces) {
                // Who wants this one asks again when the other is there.
                self.want(other);
                continue;
            }
            match pieces.as_slice().first().and_then(|piece| piece.offset_bytes) {
                Some(offset_bytes) => {
                    self.start_in(lane, Operation::Read { fault, offset_bytes, len: PAGE_BYTES as u32 });
                }
                None => {
                    table.fill_zeros(fault.page);
                    self.retry = true;
                }
            }
        }
    }

    /// A load has ended.
    pub(super) fn finish_load(&mut self, operation: Operation, result: Result<Option<&[u8]>, IoFailure>) {
        let Operation::Read { fault, .. } = operation else {
            unreachable!("only pages are loaded in these lanes");
        };
        let page = match result {
            Ok(Some(bytes)) => <&[u8; PAGE_BYTES]>::try_from(bytes).ok(),
            _ => None,
        };
        let Some(page) = page else {
            return self.poison();
        };
        let mut page = *page;
        self.map.source().decode(fault, &mut page);
        if !self.map.table(fault.table).fill(fault.page, &page) {
            // Every slot is pinned.
            self.apply_wanted = true;
            self.want(fault);
        }
    }

    /// Take staged space back from the block that has had it for longest and is not being worked on; false: none.
    pub(super) fn unstage(&mut self) -> bool {
        for _ in 0..self.pages.staged.len() {
            let Some((block, offset_bytes)) = self.pages.staged.pop_front() else { return false };
            // Its page is pinned while it is staged; another word there says that it is not.
            if !self.map.entry(block).is_ok_and(|entry| entry == Entry::new(State::Absent, offset_bytes)) {
                continue;
            }
            if self.collecting.find(block).is_some() || self.committing.find(block).is_some() {
                self.pages.staged.push_back((block, offset_bytes));
                continue;
            }
            self.map.store(block, Entry::ABSENT).expect("the page of a staged block is pinned");
            self.unpin(self.entry_page(block));
            self.map.bump_placement_epoch();
            let run = crate::vhdx::space::Run { offset_bytes, len_bytes: self.block_len() };
            self.condemn(run);
            return true;
        }
        false
    }

    /// Forget those that are not staged any more when the list has become long.
    pub(super) fn trim_staged(&mut self) {
        if self.pages.staged.len() >= STAGED_MAX {
            let map = &self.map;
            self.pages.staged.retain(|(block, offset_bytes)| {
                map.entry(*block).is_ok_and(|entry| entry == Entry::new(State::Absent, *offset_bytes))
            });
        }
    }
}
