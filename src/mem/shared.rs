//! Memory that all shards read and write at once: the memory disk.
//!
//! **Why concurrent access is sound.** No reference into the area ever exists; every access goes through [`copy_in`],
//! [`copy_out`] and [`zero_bytes`], which act like loops of relaxed atomic byte loads and stores: on x86-64 they are
//! opaque string instructions, elsewhere they are such loops. Two commands that overlap may therefore see each other's
//! bytes in any mixture, as on a disk, and nothing worse.

use std::io;
use std::ptr::NonNull;
#[cfg(any(miri, not(target_arch = "x86_64")))]
use std::sync::atomic::{AtomicU8, Ordering};

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
}

const PAGE: usize = 4096;

impl SharedMemory {
    /// Reserve `len_bytes` bytes of zeros.
    pub fn new(len_bytes: u64) -> Result<SharedMemory, SharedMemoryError> {
        let fail = |source| SharedMemoryError { len_bytes, source };
        let len = usize::try_from(len_bytes).map_err(|_| fail(io::ErrorKind::OutOfMemory.into()))?;
        let align = if cfg!(miri) { PAGE } else { super::CHUNK_LENGTH };
        let mapping = Mapping::new(len, align).map_err(fail)?;
        mapping.advise_hugepages();
        Ok(SharedMemory { mapping })
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
    }

    /// Make a range read as zeros, giving whole pages back to the system. The range must lie inside the area.
    pub fn punch(&self, offset: u64, len: u64) {
        let len = usize::try_from(len).expect("a range inside the address space");
        let start = self.at(offset, len);
        let head = start.as_ptr().align_offset(PAGE).min(len);
        let whole = (len - head) / PAGE * PAGE;
        let tail = len - head - whole;
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
