//! From a byte range of the virtual disk to ranges of the file: a few nanoseconds, no allocation, on any shard.

use super::geometry::Geometry;
use super::view::BatView;

/// Where a part of a range is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// No space in the file: reads as zeros.
    Zeros {
        /// Length in bytes.
        len_bytes: u32,
    },
    /// Bytes of the file.
    File {
        /// Byte offset in the file.
        offset_bytes: u64,
        /// Length in bytes.
        len_bytes: u32,
    },
}

/// The extents of a range in order, neighbours merged; together exactly as long as the range. Entries are read as the
/// iterator advances: each extent is true when it is given out. `Clone` restarts from the same place.
#[derive(Clone, Debug)]
pub struct Extents<'a> {
    geometry: &'a Geometry,
    view: &'a BatView,
    position_bytes: u64,
    end_bytes: u64,
}

impl Extents<'_> {
    /// The extent inside one block that starts at `position`.
    fn at(&self, position: u64) -> Extent {
        let within = position & (u64::from(self.geometry.block_size_bytes) - 1);
        let len_bytes = (u64::from(self.geometry.block_size_bytes) - within).min(self.end_bytes - position) as u32;
        let entry = self.view.entry((position >> self.geometry.block_shift) as u32);
        if entry.is_present() {
            Extent::File { offset_bytes: entry.offset_bytes() + within, len_bytes }
        } else {
            Extent::Zeros { len_bytes }
        }
    }
}

impl Iterator for Extents<'_> {
    type Item = Extent;

    fn next(&mut self) -> Option<Extent> {
        if self.position_bytes == self.end_bytes {
            return None;
        }
        let mut extent = self.at(self.position_bytes);
        loop {
            let (Extent::Zeros { len_bytes } | Extent::File { len_bytes, .. }) = extent;
            if self.position_bytes + u64::from(len_bytes) == self.end_bytes {
                self.position_bytes = self.end_bytes;
                return Some(extent);
            }
            match (&mut extent, self.at(self.position_bytes + u64::from(len_bytes))) {
                (Extent::Zeros { len_bytes }, Extent::Zeros { len_bytes: more }) => *len_bytes += more,
                (Extent::File { offset_bytes, len_bytes }, Extent::File { offset_bytes: next, len_bytes: more })
                    if *offset_bytes + u64::from(*len_bytes) == next =>
                {
                    *len_bytes += more;
                }
                _ => {
                    self.position_bytes += u64::from(len_bytes);
                    return Some(extent);
                }
            }
        }
    }
}

/// What a write must do first.
#[derive(Clone, Debug)]
pub enum WritePlan<'a> {
    /// Every byte has its place: only [`Extent::File`] will come.
    Ready(Extents<'a>),
    /// These blocks have no space yet. Send the write to the home shard, which allocates them; then plan again.
    NeedsAllocation {
        /// The first block without space.
        first_block: u32,
        /// Blocks from there that have none, within the range.
        block_count: u32,
    },
    /// The write session is not open: the home shard opens it first; then plan again.
    NeedsWriteSession,
    /// The disk is poisoned: the write must fail.
    Poisoned,
}

/// Plan a read of `len_bytes` at `offset_bytes` of the virtual disk. The range must lie within the disk.
pub fn plan_read<'a>(geometry: &'a Geometry, view: &'a BatView, offset_bytes: u64, len_bytes: u32) -> Extents<'a> {
    let end_bytes = offset_bytes + u64::from(len_bytes);
    assert!(end_bytes <= geometry.disk_size_bytes, "the range passed the check of the LBA");
    Extents { geometry, view, position_bytes: offset_bytes, end_bytes }
}

/// Plan a write of `len_bytes` at `offset_bytes` of the virtual disk. The range must lie within the disk.
pub fn plan_write<'a>(geometry: &'a Geometry, view: &'a BatView, offset_bytes: u64, len_bytes: u32) -> WritePlan<'a> {
    let extents = plan_read(geometry, view, offset_bytes, len_bytes);
    if view.poisoned() {
        return WritePlan::Poisoned;
    }
    if !view.write_session_open() {
        return WritePlan::NeedsWriteSession;
    }
    if len_bytes == 0 {
        return WritePlan::Ready(extents);
    }
    let first = (offset_bytes >> geometry.block_shift) as u32;
    let last = ((extents.end_bytes - 1) >> geometry.block_shift) as u32;
    match (first..=last).find(|block| !view.entry(*block).is_present()) {
        None => WritePlan::Ready(extents),
        Some(first_block) => {
            let absent = (first_block..=last).take_while(|block| !view.entry(*block).is_present());
            WritePlan::NeedsAllocation { first_block, block_count: absent.count() as u32 }
        }
    }
}
