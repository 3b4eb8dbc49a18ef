//! Memory that all shards read and write at once: the memory disk.
//!
//! **Why concurrent access is sound.** No reference into the area ever exists; every access goes through [`copy_in`],
//! [`copy_out`] and [`zero_bytes`], which act like loops of relaxed atomic byte loads and stores: on x86-64 they are
//! opaque string instructions, elsewhere they are such loops. Two commands that overlap may therefore see each other's
//! bytes in any mixture, as on a disk, and nothing worse.
//!
//! **Which pages hold anything** is told by a bit for each, set after a write and cleared before a page is given back:
//! whatever overlaps, a page without its bit reads as zeros.

use std::io;
use std::ptr::NonNull;
#[cfg(any(miri, not(target_arch = "x86_64")))]
use std::sync::atomic::AtomicU8;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::mapping::Mapping;
use crate::units::HumanBytes;

/// Why a memory disk could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot reserve {len} of address space for a memory disk ({source})", len = HumanBytes(*len_bytes))]
pub struct SharedMemoryError {
    len_bytes: u64,
    source: io::Error,
}

/// A fixed number of bytes, zero at first, committed page by page when written.
#[derive(Debug)]
pub struct SharedMemory {
    mapping: Mapping,
    /// [`AtomicU64`]s: bit n of them is one when page n has been written since it was last given back.
    written: Mapping,
    written_pages: AtomicU64,
}

const PAGE: usize = 4096;
/// The most pages that one answer of [`SharedMemory::status`] covers.
const STATUS_PAGES_MAX: usize = 4096;
const PAGES_PER_WORD: usize = u64::BITS as usize;

/// Bytes that are given back at once, from a multiple of it on.
pub const SHARED_PAGE_BYTES: u32 = PAGE as u32;

impl SharedMemory {
    /// Reserve `len_bytes` bytes of zeros.
    pub fn new(len_bytes: u64) -> Result<SharedMemory, SharedMemoryError> {
        let fail = |source| SharedMemoryError { len_bytes, source };
        let len = usize::try_from(len_bytes).map_err(|_| fail(io::ErrorKind::OutOfMemory.into()))?;
        let align = if cfg!(miri) { PAGE } else { super::CHUNK_LENGTH };
        let mapping = Mapping::new(len, align).map_err(fail)?;
        mapping.advise_hugepages();
        let written =
            Mapping::new(len.div_ceil(PAGE).div_ceil(PAGES_PER_WORD) * size_of::<u64>(), PAGE).map_err(fail)?;
        Ok(SharedMemory { mapping, written, written_pages: AtomicU64::new(0) })
    }

    /// Bytes of pages that hold something.
    pub fn used_bytes(&self) -> u64 {
        self.written_pages.load(Ordering::Relaxed) * PAGE as u64
    }

    /// Whether the page at `offset` holds anything (otherwise it reads as zeros), and for how many of the next `len`
    /// bytes it is the same, at most a few MiB. The range, of at least a byte, must lie inside the area.
    pub fn status(&self, offset: u64, len: u64) -> (bool, u64) {
        let len = usize::try_from(len).expect("a range inside the address space");
        self.at(offset, len);
        assert!(len > 0, "a range of no bytes");
        let (start, end) = (offset as usize, offset as usize + len);
        let is_written = |page: usize| {
            self.written_words()[page / PAGES_PER_WORD].load(Ordering::Relaxed) >> (page % PAGES_PER_WORD) & 1 != 0
        };
        let first = start / PAGE;
        let same = is_written(first);
        let mut page = first + 1;
        while page * PAGE < end && page - first < STATUS_PAGES_MAX && is_written(page) == same {
            page += 1;
        }
        (same, ((page * PAGE).min(end) - start) as u64)
    }

    fn written_words(&self) -> &[AtomicU64] {
        let words = self.written.len() / size_of::<u64>();
        // SAFETY: the mapping is aligned to a page, zero-filled, lives as long as `self`, and is accessed in no other
        // way than through this.
        unsafe { std::slice::from_raw_parts(self.written.base().as_ptr().cast::<AtomicU64>(), words) }
    }

    /// Set or clear the bits of pages.
    fn mark(&self, pages: std::ops::Range<usize>, written: bool) {
        let words = self.written_words();
        let mut page = pages.start;
        while page < pages.end {
            let (word, first) = (&words[page / PAGES_PER_WORD], page % PAGES_PER_WORD);
            let count = (PAGES_PER_WORD - first).min(pages.end - page);
            let mask = (u64::MAX >> (PAGES_PER_WORD - count)) << first;
            // Most writes go where something is already.
            let stale = if written { mask } else { 0 };
            if word.load(Ordering::Relaxed) & mask != stale {
                let before = if written {
                    word.fetch_or(mask, Ordering::AcqRel)
                } else {
                    word.fetch_and(!mask, Ordering::AcqRel)
                };
                let changed = u64::from((if written { !before } else { before } & mask).count_ones());
                match written {
                    true => self.written_pages.fetch_add(changed, Ordering::Relaxed),
                    false => self.written_pages.fetch_sub(changed, Ordering::Relaxed),
                };
            }
            page += count;
        }
    }

    /// Bytes of the area.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u64 {
        self.mapping.len() as u64
    }

    /// Copy bytes out. The range must lie inside the area.
    pub fn read(&self, offset: u64, into: &mut [u8]) {
        let from = self.at(offset, into.len());
        // SAFETY: `at` checked that the source lies in the mapping; `into` is a unique reference, so the ranges are
        // disjoint.
        unsafe { copy_out(from.as_ptr(), into.as_mut_ptr(), into.len()) }
    }

    /// Copy bytes in. The range must lie inside the area.
    pub fn write(&self, offset: u64, from: &[u8]) {
        let to = self.at(offset, from.len());
        // SAFETY: `at` checked that the target lies in the mapping, into which no reference exists; so the ranges are
        // disjoint.
        unsafe { copy_in(from.as_ptr(), to.as_ptr(), from.len()) }
        // The bits are looked at after the bytes are there: who clears them meanwhile gives the pages back after that.
        fence(Ordering::SeqCst);
        let offset = offset as usize;
        self.mark(offset / PAGE..(offset + from.len()).div_ceil(PAGE), true);
    }

    /// Make a range read as zeros, giving whole pages back to the system. The range must lie inside the area.
    pub fn punch(&self, offset: u64, len: u64) {
        let len = usize::try_from(len).expect("a range inside the address space");
        let start = self.at(offset, len);
        let head = start.as_ptr().align_offset(PAGE).min(len);
        let whole = (len - head) / PAGE * PAGE;
        let tail = len - head - whole;
        // The last page is whole when all that there is of it is in the range.
        let (from, to) = (offset as usize, offset as usize + len);
        let end = if to == self.mapping.len() { to.div_ceil(PAGE) } else { to / PAGE };
        self.mark(from.div_ceil(PAGE)..end.max(from.div_ceil(PAGE)), false);
        self.zero(offset, head);
        self.zero(offset + (head + whole) as u64, tail);
        #[cfg(not(miri))]
        if whole > 0 && self.mapping.discard(offset as usize + head, whole).is_ok() {
            return;
        }
        self.zero(offset + head as u64, whole);
    }

    fn zero(&self, offset: u64, len: usize) {
        let start = self.at(offset, len);
        // SAFETY: `at` checked that the range lies in the mapping, into which no reference exists.
        unsafe { zero_bytes(start.as_ptr(), len) }
    }

    fn at(&self, offset: u64, len: usize) -> NonNull<u8> {
        let inside = offset <= self.len() && len as u64 <= self.len() - offset;
        assert!(inside, "bytes {offset}+{len} of a memory disk of {}", self.len());
        // SAFETY: just checked.
        unsafe { self.mapping.base().add(offset as usize) }
    }
}

/// Copy out as if byte by byte with relaxed atomics on the shared side.
///
/// # Safety
/// Both ranges are valid memory and disjoint; `from` may be accessed by other threads, through these functions only.
#[cfg(all(target_arch = "x86_64", not(miri)))]
unsafe fn copy_out(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller's promise.
    unsafe { move_string(from, to, len) }
}

/// Copy in as if byte by byte with relaxed atomics on the shared side.
///
/// # Safety
/// Both ranges are valid memory and disjoint; `to` may be accessed by other threads, through these functions only.
#[cfg(all(target_arch = "x86_64", not(miri)))]
unsafe fn copy_in(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller's promise.
    unsafe { move_string(from, to, len) }
}

/// # Safety
/// Both ranges are valid memory and disjoint; accesses by other threads are atomic or are this instruction.
#[cfg(all(target_arch = "x86_64", not(miri)))]
unsafe fn move_string(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the instruction reads `len` bytes at `from` and writes them at `to` (the ABI keeps the direction flag
    // clear); both are valid by the caller's promise. What it does could be written as a loop of relaxed atomic loads
    // and stores, so a racing access is no data race.
    unsafe {
        std::arch::asm!("rep movsb", inout("rcx") len => _, inout("rsi") from => _, inout("rdi") to => _,
            options(nostack, preserves_flags));
    }
}

/// Store zeros as if byte by byte with relaxed atomics.
///
/// # Safety
/// The range is valid memory; other threads may access it, through these functions only.
#[cfg(all(target_arch = "x86_64", not(miri)))]
unsafe fn zero_bytes(to: *mut u8, len: usize) {
    // SAFETY: as in `move_string`.
    unsafe {
        std::arch::asm!("rep stosb", inout("rcx") len => _, in("al") 0u8, inout("rdi") to => _,
            options(nostack, preserves_flags));
    }
}

/// Copy byte by byte, with relaxed atomics on the shared side.
///
/// # Safety
/// Both ranges are valid memory and disjoint; `from` may be accessed by other threads, through these functions only.
#[cfg(any(miri, not(target_arch = "x86_64")))]
unsafe fn copy_out(from: *const u8, to: *mut u8, len: usize) {
    for at in 0..len {
        // SAFETY: one byte inside the shared range; atomics may race with each other.
        let byte = unsafe { AtomicU8::from_ptr(from.add(at).cast_mut()) }.load(Ordering::Relaxed);
        // SAFETY: one byte inside the caller's own range.
        unsafe { to.add(at).write(byte) };
    }
}

/// Copy byte by byte, with relaxed atomics on the shared side.
///
/// # Safety
/// Both ranges are valid memory and disjoint; `to` may be accessed by other threads, through these functions only.
#[cfg(any(miri, not(target_arch = "x86_64")))]
unsafe fn copy_in(from: *const u8, to: *mut u8, len: usize) {
    for at in 0..len {
        // SAFETY: one byte inside the caller's own range.
        let byte = unsafe { from.add(at).read() };
        // SAFETY: one byte inside the shared range; atomics may race with each other.
        unsafe { AtomicU8::from_ptr(to.add(at)) }.store(byte, Ordering::Relaxed);
    }
}

/// Store zeros by relaxed atomics.
///
/// # Safety
/// The range is valid memory; other threads may access it, through these functions only.
#[cfg(any(miri, not(target_arch = "x86_64")))]
unsafe fn zero_bytes(to: *mut u8, len: usize) {
    for at in 0..len {
        // SAFETY: one byte inside the range; atomics may race with each other.
        unsafe { AtomicU8::from_ptr(to.add(at)) }.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const LEN: u64 = 16 * PAGE as u64;

    fn content(memory: &SharedMemory) -> Vec<u8> {
        let mut bytes = vec![1; memory.len() as usize];
        memory.read(0, &mut bytes);
        bytes
    }

    #[test]
    fn what_is_written_is_read_and_the_rest_is_zero() {
        let memory = SharedMemory::new(LEN).unwrap();
        let data: Vec<u8> = (0..5000u32).map(|n| n as u8 | 1).collect();
        memory.write(3000, &data);
        let mut expected = vec![0; LEN as usize];
        expected[3000..8000].copy_from_slice(&data);
        assert_eq!(content(&memory), expected);
    }

    #[test]
    fn punching_zeroes_exactly_the_range() {
        for (offset, len) in
            [(0, LEN), (1, 10), (4095, 2), (4096, 4096), (100, 20_000), (4096, 5000), (0, 0), (7, 4089)]
        {
            let memory = SharedMemory::new(LEN).unwrap();
            memory.write(0, &[0xA5; LEN as usize]);
            memory.punch(offset, len);
            let mut expected = vec![0xA5; LEN as usize];
            expected[offset as usize..(offset + len) as usize].fill(0);
            assert_eq!(content(&memory), expected, "{offset}+{len}");
        }
    }

    /// The runs of pages, as they are told from the start on.
    fn runs(memory: &SharedMemory) -> Vec<(bool, u64)> {
        let mut runs: Vec<(bool, u64)> = vec![];
        let mut at = 0;
        while at < memory.len() {
            let (written, len) = memory.status(at, memory.len() - at);
            runs.push((written, len));
            at += len;
        }
        runs
    }

    #[test]
    fn pages_that_hold_something_are_known() {
        const P: u64 = PAGE as u64;
        // The last page is cut short.
        let memory = SharedMemory::new(200 * P + 512).unwrap();
        assert_eq!((runs(&memory), memory.used_bytes()), (vec![(false, 200 * P + 512)], 0));
        memory.write(63 * P + 1, &[1; 2 * PAGE]);
        memory.write(200 * P, &[1; 512]);
        let expected = vec![(false, 63 * P), (true, 3 * P), (false, 134 * P), (true, 512)];
        assert_eq!((runs(&memory), memory.used_bytes()), (expected.clone(), 4 * P));
        assert_eq!(memory.status(64 * P + 100, 10), (true, 10));
        memory.write(64 * P, &[2; 10]);
        memory.punch(63 * P + 1, P);
        assert_eq!((runs(&memory), memory.used_bytes()), (expected, 4 * P), "no whole page");
        memory.punch(63 * P + 1, 3 * P);
        let expected = vec![(false, 63 * P), (true, P), (false, 136 * P), (true, 512)];
        assert_eq!(runs(&memory), expected, "the first page holds a byte still");
        memory.punch(100 * P, 100 * P + 512);
        assert_eq!(runs(&memory).last(), Some(&(false, 136 * P + 512)), "the last page as far as it goes");
        memory.punch(0, 200 * P + 512);
        assert_eq!((runs(&memory), memory.used_bytes()), (vec![(false, 200 * P + 512)], 0));
    }

    #[test]
    fn threads_may_overlap() {
        let memory = SharedMemory::new(LEN).unwrap();
        std::thread::scope(|scope| {
            for byte in 1..4u8 {
                let memory = &memory;
                scope.spawn(move || {
                    for offset in 0..10 {
                        memory.write(offset, &[byte; 100]);
                        memory.punch(50, 100);
                        let mut back = [0; 100];
                        memory.read(offset, &mut back);
                        assert!(back.iter().all(|b| *b < 4));
                    }
                });
            }
        });
        // What is not told to hold anything holds nothing.
        let (written, len) = memory.status(0, LEN);
        assert!(written && len == PAGE as u64);
    }

    #[test]
    #[should_panic(expected = "of a memory disk of")]
    fn nothing_outside_is_reached() {
        SharedMemory::new(LEN).unwrap().write(LEN - 1, &[0; 2]);
    }

    #[test]
    fn an_absurd_size_is_an_error_that_names_it() {
        let message = SharedMemory::new(u64::MAX).unwrap_err().to_string();
        assert!(message.contains("for a memory disk"), "{message}");
    }
}
