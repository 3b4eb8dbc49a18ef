//! Memory that all shards read and write at once: the memory disk.
//!
//! **Why concurrent access is sound.** No reference into the area ever exists; every access goes through
//! [`copy_bytes`] and [`zero_bytes`], which act like loops of relaxed atomic byte loads and stores: on x86-64 they are
//! opaque string instructions, elsewhere they are such loops. Two commands that overlap may therefore see each other's
//! bytes in any mixture, as on a disk, and nothing worse.

use std::io;
use std::ptr::NonNull;
#[cfg(any(miri, not(target_arch = "x86_64")))]
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

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
        unsafe { copy_bytes(from.as_ptr(), into.as_mut_ptr(), into.len()) }
    }

    /// Copy bytes in. The range must lie inside the area.
    pub fn write(&self, offset: u64, from: &[u8]) {
        let to = self.at(offset, from.len());
        // SAFETY: `at` checked that the target lies in the mapping, into which no reference exists; so the ranges are
        // disjoint.
        unsafe { copy_bytes(from.as_ptr(), to.as_ptr(), from.len()) }
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

/// Copy as if byte by byte with relaxed atomics.
///
/// # Safety
/// Both ranges are valid memory and disjoint; one of them may be accessed by other threads, through these functions only.
#[cfg(all(target_arch = "x86_64", not(miri)))]
unsafe fn copy_bytes(from: *const u8, to: *mut u8, len: usize) {
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
    // SAFETY: as in `copy_bytes`.
    unsafe {
        std::arch::asm!("rep stosb", inout("rcx") len => _, in("al") 0u8, inout("rdi") to => _,
            options(nostack, preserves_flags));
    }
}

/// Copy by relaxed atomics, in words where the shared side is aligned.
///
/// # Safety
/// Both ranges are valid memory and disjoint; one of them may be accessed by other threads, through these functions only.
#[cfg(any(miri, not(target_arch = "x86_64")))]
unsafe fn copy_bytes(from: *const u8, to: *mut u8, len: usize) {
    let mut done = 0;
    let words = from.addr().is_multiple_of(8) && to.addr().is_multiple_of(8);
    while words && len - done >= 8 {
        // SAFETY: eight bytes inside both ranges, aligned; atomics may race with each other.
        let (source, target) = unsafe {
            (AtomicU64::from_ptr(from.add(done).cast_mut().cast()), AtomicU64::from_ptr(to.add(done).cast()))
        };
        target.store(source.load(Ordering::Relaxed), Ordering::Relaxed);
        done += 8;
    }
    while done < len {
        // SAFETY: one byte inside both ranges; atomics may race with each other.
        let (source, target) =
            unsafe { (AtomicU8::from_ptr(from.add(done).cast_mut()), AtomicU8::from_ptr(to.add(done))) };
        target.store(source.load(Ordering::Relaxed), Ordering::Relaxed);
        done += 1;
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
        let target = unsafe { AtomicU8::from_ptr(to.add(at)) };
        target.store(0, Ordering::Relaxed);
    }
}
