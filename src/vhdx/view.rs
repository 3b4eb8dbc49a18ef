//! What every shard of a disk shares besides its geometry: the lock-free view of its block allocation table.
//!
//! The engine on the home shard is the only writer of BAT entries; every shard reads them. A reader that sees an
//! entry also sees everything that was stored before it (release/acquire), in particular that its log entry is not
//! durable yet.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::format::{BatEntry, MIB};

/// A moment in the history of published log entries: what a file sync that starts now will make durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlushMark(u64);

/// The block allocation table as the shards read it: one word per payload block, and the disk's state flags. Shared by
/// `Arc`; every method is lock-free.
#[derive(Debug)]
pub struct BatView {
    entries: Box<[AtomicU64]>,
    write_session_open: AtomicBool,
    poisoned: AtomicBool,
    /// Log entries whose write has completed, counted since the disk was opened.
    published: AtomicU64,
    /// Of those, how many are known to be durable.
    durable: AtomicU64,
}

impl BatView {
    /// A view of these entries, one per payload block.
    pub(super) fn new(entries: Box<[AtomicU64]>) -> Self {
        Self {
            entries,
            write_session_open: AtomicBool::new(false),
            poisoned: AtomicBool::new(false),
            published: AtomicU64::new(0),
            durable: AtomicU64::new(0),
        }
    }

    /// The entry of a payload block. `block` must be below the geometry's `block_count`.
    pub fn entry(&self, block: u32) -> BatEntry {
        BatEntry(self.entries[block as usize].load(Ordering::Acquire))
    }

    /// Whether the write session is open. While it is not, every write (overwrites too) goes to the home shard first,
    /// so that FileWriteGuid and DataWriteGuid change before the first modification (section 2.2.2).
    pub fn write_session_open(&self) -> bool {
        self.write_session_open.load(Ordering::Acquire)
    }

    /// Whether a published allocation may not survive a power cut yet. A FUA write that has been planned while this
    /// was true needs a sync of the whole file after it. Ask after planning, not before.
    pub fn metadata_unflushed(&self) -> bool {
        // `durable` first: it never passes `published`, so reading it first errs towards "unflushed".
        let durable = self.durable.load(Ordering::Acquire);
        self.published.load(Ordering::Acquire) != durable
    }

    /// Whether metadata I/O has failed: no write may be acknowledged any more, until the disk has been opened anew.
    pub fn poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Acquire)
    }

    /// Poison the disk. Any shard may: a payload write or a sync that failed must not be followed by acknowledged
    /// writes.
    pub fn poison(&self) {
        self.poisoned.store(true, Ordering::Release);
    }

    /// Call before starting a sync of the file, on any shard; hand the mark to [`Self::flush_done`] when it succeeded.
    ///
    /// A guest's SYNCHRONIZE CACHE needs no more than one sync on its own shard: an allocation is published, and the
    /// write that needed it can have been acknowledged, only after its log entry has been written to the file.
    pub fn flush_started(&self) -> FlushMark {
        FlushMark(self.published.load(Ordering::Acquire))
    }

    /// A sync that started after `mark` was taken has succeeded.
    pub fn flush_done(&self, mark: FlushMark) {
        self.durable.fetch_max(mark.0, Ordering::AcqRel);
    }

    /// Payload blocks that have space in the file. Walks the table: for reports, not for the data path.
    pub fn blocks_allocated(&self) -> u32 {
        self.entries.iter().filter(|entry| BatEntry(entry.load(Ordering::Relaxed)).is_present()).count() as u32
    }

    /// A log entry's write has completed; call before storing the entries that it publishes.
    pub(super) fn count_published(&self) {
        self.published.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn store(&self, block: u32, entry: BatEntry) {
        debug_assert!(entry.offset_bytes().is_multiple_of(MIB));
        self.entries[block as usize].store(entry.0, Ordering::Release);
    }

    pub(super) fn mark_write_session(&self, open: bool) {
        self.write_session_open.store(open, Ordering::Release);
    }
}
