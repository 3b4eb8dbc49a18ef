//! New disks. The caller makes creation atomic (a temporary name, sync, rename).

use std::ops::Range;

use super::error::CreateError;
use super::format::Guid;
use super::storage::Storage;
use super::view::Geometry;

/// How a disk's space is managed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskKind {
    /// Blocks get space when they are first written.
    Dynamic,
    /// Every block has its space from the start.
    Fixed,
}

/// What to create.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// Size of the virtual disk: 3 MiB to 64 TiB, a multiple of the logical sector.
    pub size_bytes: u64,
    /// Dynamic or fixed.
    pub kind: DiskKind,
    /// A power of two from 1 to 256 MiB; `None`: 32 MiB for dynamic disks, 2 MiB for fixed ones.
    pub block_size_bytes: Option<u64>,
    /// 512 or 4096.
    pub logical_sector_bytes: u32,
    /// 512 or 4096, not below the logical sector.
    pub physical_sector_bytes: u32,
    /// Size of the log, a multiple of 1 MiB from 1 to 64 MiB; `None`: 8 MiB.
    pub log_len_bytes: Option<u64>,
    /// The disk's identity, which initiators see.
    pub virtual_disk_id: Guid,
    /// First FileWriteGuid: random.
    pub file_write_guid: Guid,
    /// First DataWriteGuid: random.
    pub data_write_guid: Guid,
}

/// A disk that has been written to its storage, flushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Created {
    /// The disk's shape.
    pub geometry: Geometry,
    /// The file's size now.
    pub file_len_bytes: u64,
    /// Ranges of the file that should be given real space (fallocate): always log and tables, and every block of a fixed disk.
    pub allocate: Vec<Range<u64>>,
}

/// Write a new, empty disk to `storage`, whose old content is discarded.
pub fn create(_options: &CreateOptions, _storage: &mut dyn Storage) -> Result<Created, CreateError> {
    todo!()
}
