//! From a byte range of a disk to where its bytes are: a few nanoseconds, no allocation, on any shard.

use super::disk::{Backing, Disk, Health};
use crate::blocks::{self, Extent, ExtentList, LevelFault};

/// Most bytes that one plan covers.
pub const PLAN_BYTES_MAX: u32 = crate::limits::SHARE_BYTES_MAX;

/// A run of zeros of at least this many bytes is a plan of its own: nothing has to be read or filled for it.
const ZEROS_APART_BYTES: u32 = 64 * 1024;

/// How to read a range. A plan may cover less than was asked for; plan again behind that.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::large_enum_variant, reason = "plans live on the stack of who makes them")]
pub enum ReadPlan {
    /// So many bytes read as zeros.
    Zeros {
        /// Length in bytes.
        len_bytes: u32,
    },
    /// Copy it out of the disk's memory.
    Memory,
    /// Read these extents; [`Disk::fd_of`] says of which files.
    Extents(ExtentList),
    /// Have the home shard load this page, then plan again.
    Fault(LevelFault),
    /// Writing some of the range has broken off between its old content and the new one.
    Torn,
    /// The range does not lie within the disk.
    PastEnd,
}

/// How to write a range. A plan may cover less than was asked for; plan again behind that.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::large_enum_variant, reason = "plans live on the stack of who makes them")]
pub enum WritePlan {
    /// Forget it.
    Discard,
    /// Copy it into the disk's memory.
    Memory,
    /// Write these extents, none of which is [`Extent::Zeros`].
    Ready {
        /// Where.
        extents: ExtentList,
        /// Then have the home shard commit what they cover.
        commit: bool,
        /// For the commit.
        epoch: u32,
    },
    /// Ask the home shard to prepare the range, then plan again.
    Prepare,
    /// Have the home shard load this page, then plan again.
    Fault(LevelFault),
    /// The disk takes no more writes.
    Poisoned,
    /// The range does not lie within the disk.
    PastEnd,
}

impl Disk {
    /// Plan a read of 1 to [`PLAN_BYTES_MAX`] bytes, in whole blocks.
    pub fn plan_read(&self, offset_bytes: u64, len_bytes: u32) -> ReadPlan {
        debug_assert!(len_bytes > 0 && len_bytes <= PLAN_BYTES_MAX);
        if offset_bytes + u64::from(len_bytes) > self.size_bytes {
            return ReadPlan::PastEnd;
        }
        match self.backing() {
            Backing::Null => ReadPlan::Zeros { len_bytes },
            Backing::Memory(_) => ReadPlan::Memory,
            Backing::Chain { chain, .. } => match chain.plan_read(offset_bytes, len_bytes) {
                blocks::ReadPlan::Fault(fault) => ReadPlan::Fault(fault),
                blocks::ReadPlan::Torn => ReadPlan::Torn,
                blocks::ReadPlan::Extents(extents) => without_long_zeros(extents),
            },
        }
    }

    /// Plan a write of 1 to [`PLAN_BYTES_MAX`] bytes, in whole blocks.
    pub fn plan_write(&self, offset_bytes: u64, len_bytes: u32) -> WritePlan {
        debug_assert!(len_bytes > 0 && len_bytes <= PLAN_BYTES_MAX);
        if offset_bytes + u64::from(len_bytes) > self.size_bytes {
            return WritePlan::PastEnd;
        }
        match self.backing() {
            Backing::Null => WritePlan::Discard,
            Backing::Memory(_) => WritePlan::Memory,
            Backing::Chain { .. } if self.health() == Health::Poisoned => WritePlan::Poisoned,
            Backing::Chain { chain, .. } => match chain.plan_write(offset_bytes, len_bytes) {
                blocks::WritePlan::Ready { extents, commit, epoch } => {
                    self.fills();
                    WritePlan::Ready { extents, commit, epoch }
                }
                blocks::WritePlan::Prepare => WritePlan::Prepare,
                blocks::WritePlan::Fault(fault) => WritePlan::Fault(fault),
                blocks::WritePlan::Poisoned => WritePlan::Poisoned,
            },
        }
    }

    /// Whether a durable (FUA) write must be followed by a flush of the whole file, because the metadata that leads to
    /// it may not be durable yet. Ask after planning.
    pub fn needs_flush_after_durable_write(&self) -> bool {
        self.map().is_some_and(|map| map.metadata_unflushed())
    }
}

/// The plan up to a long run of zeros, or that run.
fn without_long_zeros(extents: ExtentList) -> ReadPlan {
    let all = extents.as_slice();
    let long = |extent: &Extent| matches!(extent, Extent::Zeros { len_bytes } if *len_bytes >= ZEROS_APART_BYTES);
    match all {
        [Extent::File { .. }] => ReadPlan::Extents(extents),
        [Extent::Zeros { len_bytes }] => ReadPlan::Zeros { len_bytes: *len_bytes },
        [first @ Extent::Zeros { len_bytes }, ..] if long(first) => ReadPlan::Zeros { len_bytes: *len_bytes },
        _ => match all.iter().position(long) {
            None => ReadPlan::Extents(extents),
            Some(end) => {
                let mut shorter = ExtentList::EMPTY;
                for extent in &all[..end] {
                    shorter.push(*extent);
                }
                ReadPlan::Extents(shorter)
            }
        },
    }
}
