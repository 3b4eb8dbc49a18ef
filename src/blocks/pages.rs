//! A table of 64-bit words in pages, a bounded number of them in memory; readers take no lock.
//!
//! A page is all zeros (costs nothing), resident in a *slot*, or not resident. The directory leads from a page to its
//! slot. A slot's *tag* names the page that it holds, how often that is pinned, and how often the slot was taken.
//!
//! # Why a reader never returns a wrong word
//!
//! A slot is given another page only after its tag has been changed to "nobody's". Words are stored with release and
//! loaded with acquire. A reader loads the tag, the word, and the tag again:
//!
//! * The first load of the tag (acquire) names the page: the stores that filled the slot come before the store of that
//!   tag (release), so the word is at least as new as that fill.
//! * Had the word come from a later fill, then its store (release) is after the store of "nobody's", and the load of
//!   the word (acquire) makes that earlier store visible: the second load of the tag gives another value. The count in
//!   the tag makes every value new, so the same page coming back to the same slot does not look like no change.
//!
//! # Why a pinned page stays
//!
//! A slot is taken from its page, and a page is pinned, by one compare-and-exchange of the tag each: the first fails
//! when the page is pinned, the second when the slot is no longer the page's. The directory is changed after the tag,
//! in both directions, so whoever has pinned a page looks whether the directory has followed.
//!
//! Fills and evictions are done by one thread at a time, which holds the claim; the others are told to try again.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// Words in a page.
pub const WORDS_PER_PAGE: u64 = 512;

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;

/// Pages that one piece of the directory names; the last piece may be shorter. A piece is made when one of its pages is
/// first filled, so that the bits of a large disk that has none cost next to nothing.
const DIRECTORY_PAGES: usize = 1024;

/// Slots that are allocated together: 64 KiB. The last chunk, and so a small table's only one, may be shorter.
const CHUNK_SLOTS: usize = 16;

/// Fewest slots of a table: one for the page that is wanted, one that may be pinned.
const SLOTS_MIN: u32 = 2;

/// Most slots of a table: 2^24 pages have no more.
const SLOTS_MAX: u32 = 1 << 24;

/// Looks at a slot whose page is just changing, before a reader says "not resident".
const READ_TRIES: u32 = 4;

/// In the directory: not in memory.
const NOT_RESIDENT: u32 = 0;
/// In the directory: all words are zero.
const ZEROS: u32 = 1;
/// In the directory: what is added to a slot's number.
const SLOT_BIAS: u32 = 2;

/// In a tag: no page. The low 24 bits of a tag are the page: four times as many as the bits of 64 TiB need.
const NOBODY: u32 = (1 << 24) - 1;
/// In a tag: one pin. Twelve bits are the number of pins.
const PIN: u64 = 1 << 24;
const PINS: u64 = 0xfff * PIN;
/// In a tag: one taking of the slot. A reader would have to sleep through 2^28 of them to be deceived.
const TAKEN: u64 = 1 << 36;

type DirectoryPiece = [AtomicU32];

/// Slots that were allocated together. What a reader looks at beside the word is kept dense.
struct Chunk {
    tags: [AtomicU64; CHUNK_SLOTS],
    used: [AtomicBool; CHUNK_SLOTS],
    words: Box<[AtomicU64]>,
}

/// Why a page was not pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinRefused {
    /// It is not resident: load it.
    NotResident,
    /// As many pages are pinned as may be: write some back and unpin them.
    TooMany,
    /// Another thread is loading a page: try again soon.
    Claimed,
}

/// The table. Shared; every method is safe from any thread, none blocks.
pub struct PagedTable {
    words: u64,
    directory: Box<[OnceLock<Box<DirectoryPiece>>]>,
    chunks: Box<[OnceLock<Box<Chunk>>]>,
    slots_max: u32,
    /// Not every page has a slot: note which are used.
    evicts: bool,
    claim: AtomicBool,
    /// Slots that were ever taken; changed under the claim.
    slots_taken: AtomicU32,
    /// Where the search for a victim goes on; changed under the claim.
    hand: AtomicU32,
    pages_pinned: AtomicU32,
}

impl Chunk {
    fn new(slots: usize) -> Box<Self> {
        Box::new(Self {
            tags: [const { AtomicU64::new(NOBODY as u64) }; CHUNK_SLOTS],
            used: [const { AtomicBool::new(false) }; CHUNK_SLOTS],
            words: (0..slots * WORDS_PER_PAGE as usize).map(|_| AtomicU64::new(0)).collect(),
        })
    }

    fn page(&self, at: usize) -> &[AtomicU64] {
        &self.words[at * WORDS_PER_PAGE as usize..][..WORDS_PER_PAGE as usize]
    }
}

/// The page that a tag names.
fn tag_page(tag: u64) -> u32 {
    tag as u32 & NOBODY
}

/// The tag that follows `tag`, for another page that nobody has pinned.
fn next_tag(tag: u64, page: u32) -> u64 {
    (tag & !(TAKEN - 1)).wrapping_add(TAKEN) | u64::from(page)
}

/// Whether the slot has held the same page all the time between two loads of its tag.
fn same_page(before: u64, after: u64) -> bool {
    (before ^ after) & !PINS == 0
}

/// A slot, and its place.
#[derive(Clone, Copy)]
struct Slot<'a> {
    number: u32,
    chunk: &'a Chunk,
    at: usize,
}

impl<'a> Slot<'a> {
    fn tag(self) -> &'a AtomicU64 {
        &self.chunk.tags[self.at]
    }

    fn used(self) -> &'a AtomicBool {
        &self.chunk.used[self.at]
    }

    fn words(self) -> &'a [AtomicU64] {
        self.chunk.page(self.at)
    }
}

/// The right to change which pages are resident.
struct Claim<'a>(&'a PagedTable);

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.0.claim.store(false, Ordering::Release);
    }
}

impl PagedTable {
    /// A table of `words` words, none of them resident, with at most `resident_pages_max` pages (at least 2) in memory
    /// beside those that are all zeros.
    pub fn new(words: u64, resident_pages_max: u32) -> Self {
        let pages = words.div_ceil(WORDS_PER_PAGE);
        assert!(pages < u64::from(NOBODY), "a table has fewer than 2^24 pages");
        let slots_max =
            u64::from(resident_pages_max.clamp(SLOTS_MIN, SLOTS_MAX)).min(pages.max(u64::from(SLOTS_MIN))) as u32;
        Self {
            words,
            directory: (0..pages.div_ceil(DIRECTORY_PAGES as u64)).map(|_| OnceLock::new()).collect(),
            chunks: (0..(slots_max as usize).div_ceil(CHUNK_SLOTS)).map(|_| OnceLock::new()).collect(),
            slots_max,
            evicts: pages > u64::from(slots_max),
            claim: AtomicBool::new(false),
            slots_taken: AtomicU32::new(0),
            hand: AtomicU32::new(0),
            pages_pinned: AtomicU32::new(0),
        }
    }

    /// Words of the table.
    pub fn words(&self) -> u64 {
        self.words
    }

    /// Pages of the table.
    pub fn pages(&self) -> u32 {
        self.words.div_ceil(WORDS_PER_PAGE) as u32
    }

    /// Pages that may be pinned at once: all slots but one in eight, so that a load always finds a slot.
    pub fn pins_max(&self) -> u32 {
        if self.evicts { self.slots_max - (self.slots_max / 8).max(1) } else { self.slots_max }
    }

    /// Pages that are pinned.
    pub fn pages_pinned(&self) -> u32 {
        self.pages_pinned.load(Ordering::Acquire)
    }

    /// Pages that take memory at most.
    pub fn resident_pages_max(&self) -> u32 {
        self.slots_max
    }

    /// Memory that the table takes now.
    pub fn memory_bytes(&self) -> u64 {
        let pieces = self.directory.iter().filter_map(OnceLock::get).map(|piece| size_of_val(&**piece));
        let chunks = self.chunks.iter().filter_map(OnceLock::get);
        let chunks = chunks.map(|chunk| size_of::<Chunk>() + size_of_val(&*chunk.words));
        (size_of_val(&*self.directory) + size_of_val(&*self.chunks) + pieces.chain(chunks).sum::<usize>()) as u64
    }

    /// A word; `None` when its page is not resident. `index` must be below the number of words.
    #[inline]
    pub fn get(&self, index: u64) -> Option<u64> {
        debug_assert!(index < self.words);
        let page = (index / WORDS_PER_PAGE) as u32;
        let entry = self.directory_entry(page)?;
        for _ in 0..READ_TRIES {
            let slot = match entry.load(Ordering::Acquire) {
                NOT_RESIDENT => return None,
                ZEROS => return Some(0),
                biased => self.slot(biased - SLOT_BIAS)?,
            };
            let tag = slot.tag().load(Ordering::Acquire);
            let word = slot.words()[(index % WORDS_PER_PAGE) as usize].load(Ordering::Acquire);
            if tag_page(tag) == page && same_page(tag, slot.tag().load(Ordering::Relaxed)) {
                if self.evicts && !slot.used().load(Ordering::Relaxed) {
                    slot.used().store(true, Ordering::Relaxed);
                }
                return Some(word);
            }
        }
        None
    }

    /// Whether every word of a page is known to be zero without looking at it. `false` says nothing.
    pub fn is_zeros(&self, page: u32) -> bool {
        self.directory_entry(page).is_some_and(|entry| entry.load(Ordering::Acquire) == ZEROS)
    }

    /// Whether a page is resident or all zeros.
    pub fn is_resident(&self, page: u32) -> bool {
        self.directory_entry(page).is_some_and(|entry| entry.load(Ordering::Acquire) != NOT_RESIDENT)
    }

    /// Make a page resident with what was read of it (little-endian words); a page of zeros takes no slot. Evicts the
    /// page that was not used for longest when all slots are taken. A page that is resident already is left as it is:
    /// it may be newer than what was read.
    ///
    /// `false`: another thread holds the claim; try again soon. The caller sees to it that the page was not made
    /// resident, changed, written back and evicted since `bytes` were read: whoever writes a table is the one that
    /// loads it, one load of a page at a time.
    pub fn fill(&self, page: u32, bytes: &[u8; PAGE_BYTES]) -> bool {
        let Some(claim) = self.claim() else { return false };
        let entry = self.directory_entry_or_new(page);
        if entry.load(Ordering::Acquire) != NOT_RESIDENT {
            return true;
        }
        if bytes.iter().all(|byte| *byte == 0) {
            entry.store(ZEROS, Ordering::Release);
            return true;
        }
        let Some(slot) = self.take_slot(&claim) else { return false };
        for (word, bytes) in slot.words().iter().zip(bytes.as_chunks::<8>().0) {
            word.store(u64::from_le_bytes(*bytes), Ordering::Release);
        }
        self.give_slot(slot, page, entry);
        true
    }

    /// Make a page that is not resident known as all zeros. Needs no slot, and no claim: for the one who opens.
    pub fn fill_zeros(&self, page: u32) {
        let entry = self.directory_entry_or_new(page);
        // Whoever fills meanwhile has content; theirs stays.
        let _ = entry.compare_exchange(NOT_RESIDENT, ZEROS, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Change a word. For the one writer of the table, and only in a page that it has [pinned](Self::pin) or, where
    /// nobody else fills the table, in one that is resident; a page of zeros gets a slot. `false`: not resident.
    pub fn set(&self, index: u64, word: u64) -> bool {
        let page = (index / WORDS_PER_PAGE) as u32;
        if self.pin(page).is_err() {
            return false;
        }
        let stored = self.pinned_slot(page).map(|slot| {
            slot.words()[(index % WORDS_PER_PAGE) as usize].store(word, Ordering::Release);
        });
        self.unpin(page);
        stored.is_some()
    }

    /// Copy a page out as little-endian words. `false`: not resident.
    pub fn copy_out(&self, page: u32, into: &mut [u8; PAGE_BYTES]) -> bool {
        let Some(entry) = self.directory_entry(page) else { return false };
        for _ in 0..READ_TRIES {
            let slot = match entry.load(Ordering::Acquire) {
                NOT_RESIDENT => return false,
                ZEROS => {
                    into.fill(0);
                    return true;
                }
                biased => self.slot(biased - SLOT_BIAS),
            };
            let Some(slot) = slot else { return false };
            let tag = slot.tag().load(Ordering::Acquire);
            for (word, bytes) in slot.words().iter().zip(into.as_chunks_mut::<8>().0) {
                *bytes = word.load(Ordering::Acquire).to_le_bytes();
            }
            if tag_page(tag) == page && same_page(tag, slot.tag().load(Ordering::Relaxed)) {
                return true;
            }
        }
        false
    }

    /// Keep a page in memory until it is unpinned as often as it was pinned. A page of zeros gets a slot, so that it
    /// can be changed. For the one writer of the table.
    pub fn pin(&self, page: u32) -> Result<(), PinRefused> {
        let entry = self.directory_entry(page).ok_or(PinRefused::NotResident)?;
        if entry.load(Ordering::Acquire) == ZEROS {
            self.give_zeros_a_slot(page, entry)?;
        }
        let biased = entry.load(Ordering::Acquire);
        let slot = biased.checked_sub(SLOT_BIAS).and_then(|number| self.slot(number)).ok_or(PinRefused::NotResident)?;
        let pin = |tag: u64| (tag_page(tag) == page && tag & PINS != PINS).then_some(tag + PIN);
        let before = slot
            .tag()
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, pin)
            .map_err(|tag| if tag_page(tag) == page { PinRefused::TooMany } else { PinRefused::NotResident })?;
        if before & PINS == 0 && self.pages_pinned.fetch_add(1, Ordering::AcqRel) >= self.pins_max() {
            self.drop_pin(slot);
            return Err(PinRefused::TooMany);
        }
        // The page may have gone and come back to this slot since the first look, and not be in the directory yet.
        if entry.load(Ordering::Acquire) != biased {
            self.drop_pin(slot);
            return Err(PinRefused::Claimed);
        }
        Ok(())
    }

    /// Undo one [`Self::pin`]. The page must be pinned.
    pub fn unpin(&self, page: u32) {
        let slot = self.pinned_slot(page).expect("a page that is unpinned was pinned");
        assert!(tag_page(slot.tag().load(Ordering::Relaxed)) == page, "a page that is unpinned was pinned");
        self.drop_pin(slot);
    }

    fn drop_pin(&self, slot: Slot<'_>) {
        let before = slot.tag().fetch_sub(PIN, Ordering::AcqRel);
        assert!(before & PINS != 0, "a page that is unpinned was pinned");
        if before & PINS == PIN {
            self.pages_pinned.fetch_sub(1, Ordering::AcqRel);
        }
    }

    fn pinned_slot(&self, page: u32) -> Option<Slot<'_>> {
        let biased = self.directory_entry(page)?.load(Ordering::Acquire);
        self.slot(biased.checked_sub(SLOT_BIAS)?)
    }

    #[inline]
    fn directory_entry(&self, page: u32) -> Option<&AtomicU32> {
        let piece = self.directory[page as usize / DIRECTORY_PAGES].get()?;
        Some(&piece[page as usize % DIRECTORY_PAGES])
    }

    fn directory_entry_or_new(&self, page: u32) -> &AtomicU32 {
        let piece = self.directory[page as usize / DIRECTORY_PAGES].get_or_init(|| {
            let first = page as usize / DIRECTORY_PAGES * DIRECTORY_PAGES;
            let pages = (self.pages() as usize - first).min(DIRECTORY_PAGES);
            (0..pages).map(|_| AtomicU32::new(NOT_RESIDENT)).collect()
        });
        &piece[page as usize % DIRECTORY_PAGES]
    }

    #[inline]
    fn slot(&self, number: u32) -> Option<Slot<'_>> {
        let chunk = self.chunks[number as usize / CHUNK_SLOTS].get()?;
        Some(Slot { number, chunk, at: number as usize % CHUNK_SLOTS })
    }

    fn claim(&self) -> Option<Claim<'_>> {
        let taken = self.claim.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
        // Made only when it is ours: dropping it gives it back.
        taken.is_ok().then(|| Claim(self))
    }

    /// Give a page of zeros a slot of zeros.
    fn give_zeros_a_slot(&self, page: u32, entry: &AtomicU32) -> Result<(), PinRefused> {
        let claim = self.claim().ok_or(PinRefused::Claimed)?;
        if entry.load(Ordering::Acquire) != ZEROS {
            return Ok(());
        }
        let slot = self.take_slot(&claim).ok_or(PinRefused::TooMany)?;
        for word in slot.words() {
            word.store(0, Ordering::Release);
        }
        self.give_slot(slot, page, entry);
        Ok(())
    }

    /// A slot that is nobody's: a new one, or that of a page that was not used lately. `None`: all are pinned.
    fn take_slot(&self, _claim: &Claim<'_>) -> Option<Slot<'_>> {
        let taken = self.slots_taken.load(Ordering::Relaxed);
        if taken < self.slots_max {
            let first = taken as usize / CHUNK_SLOTS * CHUNK_SLOTS;
            let slots = (self.slots_max as usize - first).min(CHUNK_SLOTS);
            self.chunks[first / CHUNK_SLOTS].get_or_init(|| Chunk::new(slots));
            self.slots_taken.store(taken + 1, Ordering::Relaxed);
            return self.slot(taken);
        }
        // Second chance: the first round clears the marks. Where readers are quick to set them again, the third round
        // takes what it gets.
        for step in 0..3 * self.slots_max {
            let number = self.hand.load(Ordering::Relaxed);
            self.hand.store((number + 1) % self.slots_max, Ordering::Relaxed);
            let slot = self.slot(number)?;
            let unused = !slot.used().swap(false, Ordering::Relaxed) || step >= 2 * self.slots_max;
            if unused && self.evict(slot) {
                return Some(slot);
            }
        }
        None
    }

    /// Take a slot from its page, unless that is pinned.
    fn evict(&self, slot: Slot<'_>) -> bool {
        let unless_pinned = |tag: u64| (tag & PINS == 0).then_some(next_tag(tag, NOBODY));
        let Ok(before) = slot.tag().fetch_update(Ordering::AcqRel, Ordering::Acquire, unless_pinned) else {
            return false;
        };
        if tag_page(before) != NOBODY {
            self.directory_entry_or_new(tag_page(before)).store(NOT_RESIDENT, Ordering::Release);
        }
        true
    }

    /// Let readers find `page` in a slot that has been filled.
    fn give_slot(&self, slot: Slot<'_>, page: u32, entry: &AtomicU32) {
        let tag = next_tag(slot.tag().load(Ordering::Relaxed), page);
        slot.tag().store(tag, Ordering::Release);
        // The first reader marks it; until then the hand, which has just passed, needs a whole round to come back.
        slot.used().store(false, Ordering::Relaxed);
        entry.store(slot.number + SLOT_BIAS, Ordering::Release);
    }
}

impl std::fmt::Debug for PagedTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PagedTable")
            .field("words", &self.words)
            .field("slots_max", &self.slots_max)
            .field("pages_pinned", &self.pages_pinned())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The step that threads seldom meet: a reader that has found a slot before it was taken, and looks at its tag
    /// before the slot has been filled.
    #[test]
    fn a_slot_that_was_taken_is_nobodys_before_it_is_filled() {
        let table = PagedTable::new(4 * WORDS_PER_PAGE, 2);
        assert!(table.fill(0, &[1; PAGE_BYTES]) && table.fill(1, &[2; PAGE_BYTES]));
        let found = table.pinned_slot(0).expect("it is resident");
        let before = found.tag().load(Ordering::Acquire);
        assert_eq!(tag_page(before), 0);
        let taken = table.take_slot(&table.claim().expect("nobody has it")).expect("none is pinned");
        assert_eq!(taken.number, found.number, "the hand begins with the first");
        let during = found.tag().load(Ordering::Acquire);
        assert!(tag_page(during) == NOBODY && !same_page(before, during));
        assert_eq!((table.get(0), table.get(WORDS_PER_PAGE)), (None, Some(0x0202_0202_0202_0202)));
        // The same page comes back: a reader that slept all the while sees that it was away.
        table.give_slot(taken, 0, table.directory_entry(0).expect("it was there"));
        assert!(!same_page(before, found.tag().load(Ordering::Acquire)));
        assert_eq!(table.get(0), Some(0x0101_0101_0101_0101));
    }
}
