//! From a byte range of a disk to where its bytes are: a few nanoseconds, no allocation, on any shard.

use super::disk::{Backing, Disk, Health};
use crate::ring::Fd;
use crate::vhdx;

pub use crate::vhdx::Extent;

/// Most bytes that one plan covers, so that the number of its extents is bounded.
pub const PLAN_BYTES_MAX: u32 = crate::limits::BURST_LENGTH_MAX;

/// Most extents of one plan: VHDX blocks are at least 1 MiB, so a range of 1 MiB touches two.
pub const EXTENTS_MAX: usize = 2;

/// Extents of a range in a file, in order.
#[derive(Clone, Copy, Debug)]
pub struct ExtentList {
    extents: [Extent; EXTENTS_MAX],
    count: u8,
}

/// How to read a range.
#[derive(Clone, Copy, Debug)]
pub enum ReadPlan {
    /// It reads as zeros.
    Zeros,
    /// Copy it out of the disk's memory.
    Memory,
    /// Read these extents of the file.
    File(Fd, ExtentList),
}

/// How to write a range.
#[derive(Clone, Copy, Debug)]
pub enum WritePlan {
    /// Forget it.
    Discard,
    /// Copy it into the disk's memory.
    Memory,
    /// Write these extents of the file; none is [`Extent::Zeros`].
    File(Fd, ExtentList),
    /// Ask the home shard to prepare the range, then plan again.
    Prepare,
    /// The disk takes no more writes.
    Poisoned,
}

impl ExtentList {
    const EMPTY: Self = Self { extents: [Extent::Zeros { len_bytes: 0 }; EXTENTS_MAX], count: 0 };

    fn one(extent: Extent) -> Self {
        let mut list = Self::EMPTY;
        list.push(extent);
        list
    }

    fn push(&mut self, extent: Extent) {
        self.extents[usize::from(self.count)] = extent;
        self.count += 1;
    }

    fn collect(extents: vhdx::Extents<'_>) -> Self {
        let mut list = Self::EMPTY;
        for extent in extents {
            list.push(extent);
        }
        list
    }

    /// Bytes of the range that the extents cover, from its start.
    pub fn covered_bytes(&self) -> u32 {
        let len = |extent: &Extent| match *extent {
            Extent::Zeros { len_bytes } | Extent::File { len_bytes, .. } => len_bytes,
        };
        self.as_slice().iter().map(len).sum()
    }

    /// The extents.
    pub fn as_slice(&self) -> &[Extent] {
        &self.extents[..usize::from(self.count)]
    }
}

impl Disk {
    /// Plan a read of at most [`PLAN_BYTES_MAX`] bytes that lie within the disk.
    pub fn plan_read(&self, offset_bytes: u64, len_bytes: u32) -> ReadPlan {
        debug_assert!(len_bytes <= PLAN_BYTES_MAX);
        match self.backing() {
            Backing::Null => ReadPlan::Zeros,
            Backing::Memory(_) => ReadPlan::Memory,
            Backing::Raw(file) => ReadPlan::File(file.fd(), ExtentList::one(Extent::File { offset_bytes, len_bytes })),
            Backing::Vhdx { file, geometry, view } => {
                let list = ExtentList::collect(vhdx::plan_read(geometry, view, offset_bytes, len_bytes));
                match list.as_slice() {
                    [Extent::Zeros { .. }] => ReadPlan::Zeros,
                    _ => ReadPlan::File(file.fd(), list),
                }
            }
        }
    }

    /// Plan a write of at most [`PLAN_BYTES_MAX`] bytes that lie within the disk.
    pub fn plan_write(&self, offset_bytes: u64, len_bytes: u32) -> WritePlan {
        debug_assert!(len_bytes <= PLAN_BYTES_MAX);
        match self.backing() {
            Backing::Null => WritePlan::Discard,
            Backing::Memory(_) => WritePlan::Memory,
            _ if self.health() == Health::Poisoned => WritePlan::Poisoned,
            Backing::Raw(file) => WritePlan::File(file.fd(), ExtentList::one(Extent::File { offset_bytes, len_bytes })),
            Backing::Vhdx { file, geometry, view } => match vhdx::plan_write(geometry, view, offset_bytes, len_bytes) {
                vhdx::WritePlan::Ready(extents) => WritePlan::File(file.fd(), ExtentList::collect(extents)),
                vhdx::WritePlan::NeedsAllocation { .. } | vhdx::WritePlan::NeedsWriteSession => WritePlan::Prepare,
                vhdx::WritePlan::Poisoned => WritePlan::Poisoned,
            },
        }
    }

    /// Whether a durable (FUA) write must be followed by a flush of the whole file, because the metadata that leads to
    /// it may not be durable yet. Ask after planning.
    pub fn needs_flush_after_durable_write(&self) -> bool {
        matches!(self.backing(), Backing::Vhdx { view, .. } if view.metadata_unflushed())
    }
}
