//! Opening: header, log replay, regions, metadata and block allocation table, all validated.

use std::sync::Arc;

use super::GuidSource;
use super::engine::Engine;
use super::error::OpenError;
use super::format::Guid;
use super::storage::Storage;
use super::view::{BatView, Geometry};

/// What will be done with the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing is written, not even a replay: a pending log is replayed in memory.
    ReadOnly,
    /// A pending log is replayed into the file; the engine can write.
    ReadWrite,
}

/// How to open.
pub struct OpenOptions {
    /// Read only or read-write.
    pub access: Access,
    /// Source of FileWriteGuid, DataWriteGuid and LogGuids.
    pub guids: GuidSource,
}

/// A pending log that was replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplaySummary {
    /// Log entries applied.
    pub entries: u64,
    /// Data and zero descriptors applied.
    pub descriptors: u64,
}

/// Something unusual that does not stop the disk from being used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    /// One of the two headers is not valid; the other is used, and the next write session rewrites it.
    HeaderCopyInvalid {
        /// Which, 1 or 2.
        copy: u8,
    },
    /// One of the two region tables is not valid; the other is used.
    RegionTableCopyInvalid {
        /// Which, 1 or 2.
        copy: u8,
    },
}

/// An open disk.
pub struct OpenDisk {
    /// Its shape.
    pub geometry: Geometry,
    /// Its table, for all shards.
    pub view: Arc<BatView>,
    /// The engine, for the home shard; `None` when opened read-only.
    pub engine: Option<Engine>,
    /// The Virtual Disk ID (section 2.6.2.3): the identity that initiators see.
    pub virtual_disk_id: Guid,
    /// DataWriteGuid at open: what children of this disk refer to.
    pub data_write_guid: Guid,
    /// Who made the file; for people only (section 2.2.1).
    pub creator: String,
    /// What was replayed, if the log was not empty.
    pub replay: Option<ReplaySummary>,
    /// Oddities for the operator.
    pub warnings: Vec<Warning>,
}

/// Open a disk. A file that was closed cleanly is not modified.
pub fn open(_storage: &mut dyn Storage, _options: OpenOptions) -> Result<OpenDisk, OpenError> {
    todo!()
}
