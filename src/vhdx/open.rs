//! Opening: header, log replay, regions, metadata and block allocation table, all validated.

use std::sync::Arc;

use super::GuidSource;
use super::bat::{Table, read_table};
use super::engine::{Engine, FileState};
use super::error::OpenError;
use super::format::{Guid, HEADER_SECTION_LEN};
use super::geometry::Geometry;
use super::header::{CurrentHeader, read_headers, read_identifier};
use super::locator::ParentLocator;
use super::metadata::{Metadata, read_metadata};
use super::region::{Regions, Span, TableRepair, read_regions, sort_disjoint};
use super::replay::Overlay;
use super::storage::Storage;
use crate::blocks::BlockMap;

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
    /// What DataWriteGuid becomes before the first change that a guest could notice; `None`: a random value. A merge
    /// announces it to the children (`parent_linkage2`) before it changes the parent.
    pub data_write_guid: Option<Guid>,
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
    /// One of the two region tables is not valid; the other is used, and the next write session rewrites it.
    RegionTableCopyInvalid {
        /// Which, 1 or 2.
        copy: u8,
    },
}

/// An open disk.
pub struct OpenDisk {
    /// Its shape.
    pub geometry: Geometry,
    /// Where its blocks are, for all shards.
    pub map: Arc<BlockMap>,
    /// The engine, for the home shard or a job; `None` when opened read-only.
    pub engine: Option<Box<Engine>>,
    /// The Virtual Disk ID (section 2.6.2.3): the identity that initiators see.
    pub virtual_disk_id: Guid,
    /// DataWriteGuid at open: what children of this disk refer to.
    pub data_write_guid: Guid,
    /// Where the parent of a differencing disk is found, and how it is recognised. Whoever opens the disk has to hold
    /// the parent's DataWriteGuid against it.
    pub parent: Option<ParentLocator>,
    /// Who made the file; for people only (section 2.2.1).
    pub creator: String,
    /// What was replayed, if the log was not empty.
    pub replay: Option<ReplaySummary>,
    /// Oddities for the operator.
    pub warnings: Vec<Warning>,
}

/// A file that has passed every check, its replay still in memory.
struct Loaded<'a> {
    overlay: Overlay<'a>,
    current: CurrentHeader,
    geometry: Geometry,
    virtual_disk_id: Guid,
    parent: Option<ParentLocator>,
    table: Table,
    repair: Option<TableRepair>,
    creator: String,
    warnings: Vec<Warning>,
}

/// Read and check everything. Nothing is written. Opened read-only, the map shows the disk with the replay in memory.
fn load(storage: &mut dyn Storage, access: Access) -> Result<Loaded<'_>, OpenError> {
    let mut warnings = Vec::new();
    let (len_bytes, creator) = read_identifier(storage)?;
    let current = read_headers(storage, len_bytes, &mut warnings)?;
    let log_start = current.header.log_offset.get();
    let log = log_start..log_start + u64::from(current.header.log_length.get());
    let log_guid = current.header.log_guid;
    let mut overlay = if log_guid == Guid::ZERO {
        Overlay::clean(storage)?
    } else {
        Overlay::replayed(storage, log.clone(), log_guid)?
    };
    let Regions { bat, metadata, mut spans, repair } = read_regions(&mut overlay, &mut warnings)?;
    spans.push(Span { start: 0, end: HEADER_SECTION_LEN, name: "the header section".to_owned() });
    spans.push(Span { start: log.start, end: log.end, name: "the log".to_owned() });
    sort_disjoint(&mut spans)?;
    let Metadata { geometry, virtual_disk_id, parent, .. } = read_metadata(&mut overlay, metadata, bat.offset_bytes)?;
    let table = read_table(&mut overlay, &geometry, bat, &spans, access == Access::ReadOnly)?;
    Ok(Loaded { overlay, current, geometry, virtual_disk_id, parent, table, repair, creator, warnings })
}

/// Open a disk. A file that was closed cleanly is not modified, and neither is one that is refused.
pub fn open(storage: &mut dyn Storage, mut options: OpenOptions) -> Result<OpenDisk, OpenError> {
    let loaded = load(storage, options.access)?;
    let Loaded { mut overlay, mut current, geometry, virtual_disk_id, parent, table, repair, creator, warnings } =
        loaded;
    let Table { map, mut space, bitmaps, unreadable_unless_replayed, .. } = table;
    let replay = overlay.summary;
    let data_write_guid = current.header.data_write_guid;
    let engine = match options.access {
        Access::ReadOnly => {
            if let Some(rule) = unreadable_unless_replayed {
                return Err(OpenError::ReadOnlyReplay { rule });
            }
            None
        }
        Access::ReadWrite => {
            let storage = match replay {
                Some(_) => persist_replay(overlay, &mut current, &mut options.guids)?,
                None => overlay.base(),
            };
            space.condemn_holes();
            let file = FileState {
                file_len_bytes: storage.len_bytes()?,
                space,
                bitmaps,
                file_write_guid_new: replay.is_some(),
                data_write_guid: options.data_write_guid,
                repair,
            };
            Some(Box::new(Engine::new(geometry, Arc::clone(&map), current, file, options.guids)))
        }
    };
    Ok(OpenDisk { geometry, map, engine, virtual_disk_id, data_write_guid, parent, creator, replay, warnings })
}

/// Write a replay to the file (section 2.3.3): a new FileWriteGuid first, the LogGuid cleared last.
pub(super) fn persist_replay<'a>(
    mut overlay: Overlay<'a>,
    current: &mut CurrentHeader,
    guids: &mut GuidSource,
) -> Result<&'a mut dyn Storage, OpenError> {
    current.header.file_write_guid = guids();
    current.replace(overlay.base())?;
    current.header.log_guid = Guid::ZERO;
    let storage = overlay.write_back()?;
    current.replace(storage)?;
    Ok(storage)
}
