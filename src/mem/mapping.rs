//! Anonymous memory straight from the system: reserved at once, committed when touched.

use std::io;
use std::ptr::NonNull;

/// A private anonymous mapping, aligned as asked, zero-filled, committed page by page on first touch. Unmapped on drop.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<u8>,
    len: usize,
    #[cfg(miri)]
    layout: std::alloc::Layout,
    #[cfg(not(miri))]
    reserved: (NonNull<u8>, usize),
}

// SAFETY: a mapping is plain memory of the process; nothing about it depends on the thread that made it. What may be
// done with the bytes from several threads is the owner's to prove.
unsafe impl Send for Mapping {}
// SAFETY: as above; `Mapping` itself has no method that touches the bytes.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Reserve `len` bytes at a multiple of `align` (a power of two of at least the page size).
    #[cfg(not(miri))]
    pub(super) fn new(len: usize, align: usize) -> io::Result<Mapping> {
        assert!(align.is_power_of_two() && align >= 4096);
        let too_large = || io::Error::from(io::ErrorKind::OutOfMemory);
        let reserve =
            len.max(1).checked_next_multiple_of(4096).and_then(|l| l.checked_add(align)).ok_or_else(too_large)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: an anonymous mapping at an address of the kernel's choice replaces nothing that exists.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), reserve, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast::<u8>()).expect("mmap does not map page zero");
        let skip = start.as_ptr().addr().next_multiple_of(align) - start.as_ptr().addr();
        // SAFETY: `skip < align`, and the mapping is `align` bytes longer than the `len` that follows.
        let base = unsafe { start.add(skip) };
        Ok(Mapping { base, len, reserved: (start, reserve) })
    }

    /// The same from the allocator, for Miri.
    #[cfg(miri)]
    pub(super) fn new(len: usize, align: usize) -> io::Result<Mapping> {
        let layout = std::alloc::Layout::from_size_align(len.max(1), align).map_err(io::Error::other)?;
        // SAFETY: the layout's size is not zero.
        let start = unsafe { std::alloc::alloc_zeroed(layout) };
        let base = NonNull::new(start).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Ok(Mapping { base, len, layout })
    }

    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Ask for huge pages. A system that has none is no error: the memory then has small pages.
    pub(super) fn advise_hugepages(&self) {
        #[cfg(not(miri))]
        // SAFETY: the range is ours; the advice changes no content.
        unsafe {
            libc::madvise(self.base.as_ptr().cast(), self.len, libc::MADV_HUGEPAGE);
        }
    }

    /// Give pages back: the range reads as zeros afterwards. Both ends must lie on page boundaries inside the mapping.
    #[cfg(not(miri))]
    pub(super) fn discard(&self, offset: usize, len: usize) -> io::Result<()> {
        assert!(offset.is_multiple_of(4096) && len.is_multiple_of(4096));
        assert!(offset <= self.len && len <= self.len - offset);
        // SAFETY: `offset` is inside the mapping.
        let start = unsafe { self.base.add(offset) };
        // SAFETY: the range is inside our private anonymous mapping, where the call leaves zero pages. It counts as
        // a write of zeros; the callers prove that a write is allowed.
        match unsafe { libc::madvise(start.as_ptr().cast(), len, libc::MADV_DONTNEED) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        #[cfg(not(miri))]
        // SAFETY: exactly the range that `new` mapped; every handle into it holds the mapping alive.
        unsafe {
            libc::munmap(self.reserved.0.as_ptr().cast(), self.reserved.1);
        }
        #[cfg(miri)]
        // SAFETY: allocated in `new` with this layout.
        unsafe {
            std::alloc::dealloc(self.base.as_ptr(), self.layout);
        }
    }
}
