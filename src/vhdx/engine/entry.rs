//! A group's log entry: what the pages will say, and showing it once the entry has been written.

use super::group::{Change, Kind, LogPage, PAGES_MAX, Sectors};
use super::steps::{PAGE_LEN, RING_RESERVE, Step, TURN};
use super::{Engine, Operation};
use crate::blocks::{Entry, State, WORDS_PER_PAGE};
use crate::vhdx::format::{BatEntry, MIB, PAGE};
use crate::vhdx::source::{BITMAP_PAGES, bits_page_offset, settled};
use crate::vhdx::space::Run;

pub(super) use crate::vhdx::bat::ENTRIES_PER_PAGE;

/// Sectors that a page of bits describes.
const SECTORS_PER_PAGE: u64 = 64 * WORDS_PER_PAGE;

/// A word as the file gets it: no staged space, not busy.
fn filed(word: u64) -> u64 {
    settled(word & (BatEntry::OFFSET_MASK | 7), u64::MAX)
}

/// Set or clear the bits `from..to` of a page.
fn change_bits(page: &mut [u8], from: u64, to: u64, set: bool) {
    let mut at = from;
    while at < to {
        let (byte, bit) = ((at / 8) as usize, at % 8);
        let count = (8 - bit).min(to - at);
        let mask = (0xff_u16 >> (8 - count)) as u8;
        if set {
            page[byte] |= mask << bit;
        } else {
            page[byte] &= !(mask << bit);
        }
        at += count;
    }
}

/// The smallest ring that there can be (section 2.2.2) holds what starts an epoch, the largest entry, and what ends it.
const _: () = assert!((1 + (1 + PAGES_MAX as u64) + 1) * PAGE_LEN + RING_RESERVE <= MIB);

impl Engine {
    /// Write the committing group's entry; before it, turn the epoch where the ring is used up.
    pub(super) fn write_group(&mut self) -> Option<Operation> {
        if self.committing.is_empty() {
            return None;
        }
        let entry_len = (1 + self.committing.entry_pages() as u64) * PAGE_LEN;
        if self.log.head + entry_len + PAGE_LEN + RING_RESERVE > self.log.len_bytes {
            self.script.push_front(Step::WriteGroup);
            for step in TURN.into_iter().rev() {
                self.script.push_front(step);
            }
            return None;
        }
        for at in 0..self.committing.changes.len() {
            let change = self.committing.changes[at];
            self.committing.changes[at].word = self.word_after(&change);
        }
        let pages = self.encode_pages();
        let all = self.committing.entry_pages();
        if all == 0 {
            self.publish();
            return None;
        }
        self.stage_atomics(pages);
        Some(self.write_entry(all, |engine, at| match engine.committing.pages.get(at) {
            Some(page) => engine.page_offset(*page),
            None => engine.atomic_offset(at - pages),
        }))
    }

    /// What a change makes of its block's word.
    fn word_after(&self, change: &Change) -> u64 {
        let old = self.map.entry(change.block).unwrap_or_default();
        match change.kind {
            Kind::Allocate => Entry::new(State::Full, change.offset_bytes).0,
            Kind::Stage => Entry::new(State::Absent, change.offset_bytes).0,
            Kind::Zero => Entry::ZEROS.0,
            Kind::Move { to_bytes } => Entry::new(old.state(), to_bytes).0,
            Kind::Commit if old.state() == State::Full || self.completes(change.block, old) => {
                old.with_state(State::Full).0
            }
            Kind::Commit => old.with_state(State::Partial).0,
            Kind::ZeroInPlace | Kind::Keep | Kind::Void => old.0,
        }
    }

    /// Whether all sectors of a block are in the file with the group's ranges.
    pub(super) fn completes(&self, block: u32, old: Entry) -> bool {
        let all = self.sectors_of(block);
        let ranges = self.committing.ranges_in(all);
        let mut at = all.start;
        while at < all.end {
            let until = ranges.partition_point(|range| range.start <= at);
            let covered = until.checked_sub(1).map_or(0, |last| ranges[last].end);
            if covered > at {
                at = covered;
                continue;
            }
            match self.map.run(at, all.end - at) {
                Ok((true, run)) if old.state() == State::Partial => at += run,
                _ => return false,
            }
        }
        true
    }

    /// Pages of bits that a change writes anew or in part; whether its word changes.
    fn touches(&self, change: &Change) -> (Option<Sectors>, bool) {
        let old = self.map.entry(change.block).unwrap_or_default();
        let new = Entry(change.word);
        match change.kind {
            Kind::Allocate | Kind::Zero | Kind::Move { .. } => (None, true),
            Kind::Stage | Kind::ZeroInPlace | Kind::Keep | Kind::Void => (None, false),
            Kind::Commit if new.state() == State::Full => (None, old.state() != State::Full),
            Kind::Commit if old.state() == State::Absent => (Some(self.sectors_of(change.block)), true),
            Kind::Commit => {
                // Between the first and the last range there may be pages that none touches.
                (Some(self.sectors_of(change.block)), false)
            }
        }
    }

    /// Encode the pages that the group changes behind the staging buffer's first; how many there are. Pages that turned
    /// out not to change are let go.
    fn encode_pages(&mut self) -> usize {
        let mut changed = [false; PAGES_MAX];
        for at in 0..self.committing.changes.len() {
            let change = self.committing.changes[at];
            self.mark_pages(&change, &mut changed);
        }
        for (chunk, _) in &self.committing.bitmaps {
            let page = LogPage::Entries((self.geometry.bitmap_index(*chunk) / ENTRIES_PER_PAGE) as u32);
            let at = self.committing.pages.binary_search(&page).expect("the page of a new bitmap's word is claimed");
            changed[at] = true;
        }
        let mut index = 0;
        let mut pages = std::mem::take(&mut self.committing.pages);
        pages.retain(|page| {
            index += 1;
            if !changed[index - 1] {
                self.unpin(*page);
            }
            changed[index - 1]
        });
        self.committing.pages = pages;
        let mut staging = std::mem::take(&mut self.staging);
        let slots = staging[PAGE..].as_chunks_mut::<PAGE>().0;
        for (page, slot) in self.committing.pages.iter().zip(slots.iter_mut()) {
            self.encode_page(*page, slot);
        }
        for (chunk, offset_bytes) in &self.committing.bitmaps {
            self.put_word(slots, self.geometry.bitmap_index(*chunk), Entry::new(State::Full, *offset_bytes).0);
        }
        for change in &self.committing.changes {
            let (bits, word) = self.touches(change);
            if word {
                self.put_word(slots, self.geometry.bat_index(change.block), filed(change.word));
            }
            if let Some(bits) = bits {
                if word {
                    self.put_bits(slots, bits, false);
                }
                for range in self.committing.ranges_in(bits) {
                    self.put_bits(slots, *range, true);
                }
            }
        }
        self.staging = staging;
        self.committing.pages.len()
    }

    fn mark_pages(&self, change: &Change, changed: &mut [bool; PAGES_MAX]) {
        let mut mark = |page: LogPage| {
            let at = self.committing.pages.binary_search(&page).expect("the pages of a change are claimed");
            changed[at] = true;
        };
        let pages = |sectors: &Sectors| sectors.start / SECTORS_PER_PAGE..=(sectors.end - 1) / SECTORS_PER_PAGE;
        let (bits, word) = self.touches(change);
        if word {
            mark(self.entry_page(change.block));
        }
        if let Some(bits) = bits {
            if word {
                pages(&bits).for_each(|page| mark(LogPage::Bits(page as u32)));
            }
            for range in self.committing.ranges_in(bits) {
                pages(range).for_each(|page| mark(LogPage::Bits(page as u32)));
            }
        }
    }

    /// A page as the file gets it.
    fn encode_page(&self, page: LogPage, into: &mut [u8; PAGE]) {
        let fault = super::pages::fault_of(page);
        assert!(self.map.table(fault.table).copy_out(fault.page, into), "the page is pinned");
        if matches!(page, LogPage::Entries(_)) {
            for word in into.as_chunks_mut::<8>().0 {
                *word = filed(u64::from_le_bytes(*word)).to_le_bytes();
            }
        }
    }

    fn put_word(&self, slots: &mut [[u8; PAGE]], index: u64, word: u64) {
        let page = LogPage::Entries((index / ENTRIES_PER_PAGE) as u32);
        let at = self.committing.pages.binary_search(&page).expect("marked");
        slots[at][(index % ENTRIES_PER_PAGE) as usize * 8..][..8].copy_from_slice(&word.to_le_bytes());
    }

    fn put_bits(&self, slots: &mut [[u8; PAGE]], sectors: Sectors, set: bool) {
        let mut at = sectors.start;
        while at < sectors.end {
            let page = at / SECTORS_PER_PAGE;
            let end = ((page + 1) * SECTORS_PER_PAGE).min(sectors.end);
            let slot = self.committing.pages.binary_search(&LogPage::Bits(page as u32)).expect("marked");
            change_bits(&mut slots[slot], at - page * SECTORS_PER_PAGE, end - page * SECTORS_PER_PAGE, set);
            at = end;
        }
    }

    /// Where a page is in the file.
    pub(super) fn page_offset(&self, page: LogPage) -> u64 {
        match page {
            LogPage::Entries(page) => self.geometry.bat_offset_bytes + u64::from(page) * PAGE_LEN,
            LogPage::Bits(page) => {
                let chunk = page / BITMAP_PAGES;
                let new = self.committing.bitmaps.iter().find(|(other, _)| *other == chunk);
                let block_bytes = match new {
                    Some((_, offset_bytes)) => *offset_bytes,
                    None => self.map.bitmap_entry(chunk).unwrap_or_default().offset_bytes(),
                };
                assert!(block_bytes != 0, "bits that are written have a bitmap block");
                bits_page_offset(block_bytes, page)
            }
        }
    }

    /// The group's entry has left the process: show its changes, and answer those who wait.
    pub(super) fn publish(&mut self) {
        if !self.committing.pages.is_empty() {
            self.map.count_published();
        }
        let bitmaps = std::mem::take(&mut self.committing.bitmaps);
        for (chunk, offset_bytes) in &bitmaps {
            let entry = Entry::new(State::Full, *offset_bytes);
            self.map.store_bitmap(*chunk, entry).expect("the group's pages are pinned");
        }
        self.bitmaps += bitmaps.len() as u32;
        self.committing.bitmaps = bitmaps;
        let mut taken_away = false;
        for at in 0..self.committing.changes.len() {
            let change = self.committing.changes[at];
            taken_away |= self.show(&change);
        }
        if taken_away && self.geometry.has_parent {
            self.map.bump_placement_epoch();
        }
        for at in 0..self.committing.pages.len() {
            let page = self.committing.pages[at];
            if self.pages.mark_dirty(page) {
                self.unpin(page);
            }
        }
        self.seal_atomics();
        let mut group = std::mem::take(&mut self.committing);
        for (_, key) in group.members() {
            self.requests.unlink(key, Ok(()));
        }
        for (_, key) in group.members() {
            // A request may have several changes in the group: the first time settles it.
            if self.requests.is_open(key) {
                self.settle(key);
            }
        }
        group.clear();
        self.committing = group;
        self.retry = true;
    }

    /// Show one change; whether it took space away from its block.
    fn show(&mut self, change: &Change) -> bool {
        let old = self.map.entry(change.block).unwrap_or_default();
        let new = Entry(change.word);
        let was_staged = old.state() == State::Absent && old.has_space();
        match change.kind {
            Kind::Void | Kind::Keep | Kind::ZeroInPlace => return false,
            Kind::Stage => self.pages.staged.push_back((change.block, change.offset_bytes)),
            Kind::Commit if new.state() == State::Partial => {
                let all = self.sectors_of(change.block);
                if was_staged {
                    self.map.clear_bits(all.start, all.end - all.start).expect("the group's pages are pinned");
                }
                for range in self.committing.ranges_in(all) {
                    let count = range.end - range.start;
                    self.map.set_bits(range.start, count).expect("the group's pages are pinned");
                }
            }
            Kind::Commit | Kind::Allocate | Kind::Zero | Kind::Move { .. } => {}
        }
        let busy = old.is_busy() && change.kind == Kind::Commit;
        self.map.store(change.block, new.with_busy(busy)).expect("the group's pages are pinned");
        if was_staged {
            self.unpin(self.entry_page(change.block));
        }
        let blocks = self.map.blocks_allocated() + u32::from(new.is_present()) - u32::from(old.is_present());
        self.map.set_blocks_allocated(blocks);
        let takes_away = matches!(change.kind, Kind::Zero | Kind::Move { .. });
        if takes_away && old.has_space() {
            let run = Run { offset_bytes: old.offset_bytes(), len_bytes: self.block_len() };
            self.condemn(run);
        }
        if takes_away && old.is_busy() {
            self.relocation_shown(change.block);
        }
        takes_away
    }

    /// Give a change of the committing group up, and tell those who wait for it.
    pub(super) fn void(&mut self, at: usize, error: crate::blocks::EngineError) {
        let change = self.committing.changes[at];
        self.committing.changes[at].kind = Kind::Void;
        if change.kind == Kind::Stage {
            self.unpin(self.entry_page(change.block));
        }
        let mut group = std::mem::take(&mut self.committing);
        group.dismiss(at, |key| {
            self.requests.unlink(key, Err(error));
            self.settle(key);
        });
        self.committing = group;
    }

    /// Write the next run of dirty pages in place, if there is one.
    pub(super) fn apply_pages(&mut self) -> Option<Operation> {
        let entries = self.pages.dirty_entries.first().map(|page| LogPage::Entries(*page));
        let first = entries.or(self.pages.dirty_bits.first().map(|page| LogPage::Bits(*page)))?;
        let dirty = match first {
            LogPage::Entries(_) => &self.pages.dirty_entries,
            LogPage::Bits(_) => &self.pages.dirty_bits,
        };
        let offset_bytes = self.page_offset(first);
        let mut applying = std::mem::take(&mut self.pages.applying);
        applying.clear();
        for (at, page) in dirty.iter().take(PAGES_MAX + 1).enumerate() {
            let page = match first {
                LogPage::Entries(_) => LogPage::Entries(*page),
                LogPage::Bits(_) => LogPage::Bits(*page),
            };
            if self.page_offset(page) != offset_bytes + at as u64 * PAGE_LEN {
                break;
            }
            applying.push(page);
        }
        let mut staging = std::mem::take(&mut self.staging);
        for (page, slot) in applying.iter().zip(staging.as_chunks_mut::<PAGE>().0) {
            self.encode_page(*page, slot);
        }
        self.staging = staging;
        let len = applying.len() * PAGE;
        self.pages.applying = applying;
        Some(Operation::Write { offset_bytes, len })
    }

    /// They have been written: they need not stay in memory.
    pub(super) fn applied(&mut self) {
        let applying = std::mem::take(&mut self.pages.applying);
        for page in &applying {
            self.pages.mark_clean(*page);
            self.unpin(*page);
        }
        self.pages.applying = applying;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_changed_least_significant_first() {
        let mut page = [0; 4];
        change_bits(&mut page, 3, 13, true);
        assert_eq!(page, [0b1111_1000, 0b0001_1111, 0, 0]);
        change_bits(&mut page, 4, 5, false);
        change_bits(&mut page, 31, 32, true);
        assert_eq!(page, [0b1110_1000, 0b0001_1111, 0, 0x80]);
        change_bits(&mut page, 0, 32, false);
        assert_eq!(page, [0; 4]);
    }

    #[test]
    fn the_file_gets_neither_staged_space_nor_marks() {
        let at = 5 << 20;
        assert_eq!(filed(at | 6 | 8), at | 6);
        assert_eq!(filed(at | 7), at | 7);
        assert_eq!((filed(at), filed(at | 2), filed(3)), (0, 2, 3));
    }
}
