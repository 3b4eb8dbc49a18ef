//! Chunks of the arena as fixed buffers: registered when a file operation first uses them.

use crate::bounded::BitSet;
use crate::mem::{Arena, Buf, Slice};

/// Fixed buffers of one ring at most (`IORING_MAX_REG_BUFFERS`).
const BUFFERS_MAX: u32 = 1 << 14;

/// Which chunks of the arena the kernel has pinned for this ring.
#[derive(Debug)]
pub(super) struct FixedBuffers {
    arena: Arena,
    registered: BitSet,
    /// Chunks below this may be registered.
    limit: u32,
}

impl FixedBuffers {
    /// Prepare the ring's table, if the feature is on and the kernel agrees.
    pub(super) fn new(arena: &Arena, on: bool, submitter: &io_uring::Submitter<'_>) -> FixedBuffers {
        let count = arena.chunk_count().min(BUFFERS_MAX);
        let limit = if on && submitter.register_buffers_sparse(count).is_ok() { count } else { 0 };
        FixedBuffers { arena: arena.clone(), registered: BitSet::new(limit as usize), limit }
    }

    #[inline]
    pub(super) fn of_buf(&mut self, buf: &Buf, submitter: &io_uring::Submitter<'_>) -> Option<u16> {
        let chunk = self.arena.chunk_of_buf(buf)?;
        self.index(chunk, submitter)
    }

    #[inline]
    pub(super) fn of_slice(&mut self, slice: &Slice, submitter: &io_uring::Submitter<'_>) -> Option<u16> {
        let chunk = self.arena.chunk_of_slice(slice)?;
        self.index(chunk, submitter)
    }

    #[inline]
    fn index(&mut self, chunk: u32, submitter: &io_uring::Submitter<'_>) -> Option<u16> {
        let there = self.registered.contains(chunk as usize) || (chunk < self.limit && self.register(chunk, submitter));
        there.then_some(chunk as u16)
    }

    #[cfg(test)]
    pub(super) fn registered_count(&self) -> usize {
        self.registered.len()
    }

    #[cold]
    fn register(&mut self, chunk: u32, submitter: &io_uring::Submitter<'_>) -> bool {
        let (start, len) = self.arena.chunk_area(chunk);
        let area = libc::iovec { iov_base: start.cast(), iov_len: len };
        // SAFETY: the arena's mapping outlives the ring (this struct holds a handle and is dropped after the ring), and
        // the kernel pins the pages besides.
        let registered = unsafe { submitter.register_buffers_update(chunk, &[area], None) };
        if registered.is_err() {
            // No memory may be locked any more. Plain operations do the same at a higher price; do not ask each time.
            self.limit = 0;
            return false;
        }
        self.registered.insert(chunk as usize)
    }
}
