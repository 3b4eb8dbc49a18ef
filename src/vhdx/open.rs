//! Opening: header, log replay, regions, metadata and block allocation table, all validated.

use std::sync::Arc;

use super::GuidSource;
use super::bat::{Table, read_table, visible_len};
use super::engine::{Engine, FileState};
use super::error::OpenError;
use super::format::{BatEntry, Guid, HEADER_SECTION_LEN};
use super::geometry::Geometry;
use super::header::{CurrentHeader, read_headers, read_identifier};
use super::locator::ParentLocator;
use super::metadata::{Metadata, read_metadata};
use super::region::{Regions, Span, TableRepair, read_regions, sort_disjoint};
use super::replay::Overlay;
use super::storage::Storage;
use super::view::BatView;

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
    /// Its table, for all shards.
    pub view: Arc<BatView>,
    /// The engine, for the home shard; `None` when opened read-only.
    pub engine: Option<Engine>,
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
pub(super) struct Loaded<'a> {
    pub overlay: Overlay<'a>,
    pub current: CurrentHeader,
    pub geometry: Geometry,
    pub virtual_disk_id: Guid,
    pub parent: Option<ParentLocator>,
    pub table: Table,
    /// Header section, log and regions, in the order of the file.
    #[allow(dead_code, reason = "the engine maps free space from it")]
    pub spans: Vec<Span>,
    pub repair: Option<TableRepair>,
    pub creator: String,
    pub warnings: Vec<Warning>,
}

/// Read and check everything. Nothing is written.
pub(super) fn load(storage: &mut dyn Storage) -> Result<Loaded<'_>, OpenError> {
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
    if let Some(parent) = parent {
        return Err(OpenError::Differencing { parent: parent.to_string() });
    }
    let table = read_table(&mut overlay, &geometry, bat, &spans)?;
    Ok(Loaded { overlay, current, geometry, virtual_disk_id, parent, table, spans, repair, creator, warnings })
}

/// Open a disk. A file that was closed cleanly is not modified, and neither is one that is refused.
pub fn open(storage: &mut dyn Storage, mut options: OpenOptions) -> Result<OpenDisk, OpenError> {
    let loaded = load(storage)?;
    let Loaded {
        mut overlay, mut current, geometry, virtual_disk_id, parent, table, repair, creator, warnings, ..
    } = loaded;
    let (blocks_present, objects_end_bytes) = (table.present, table.objects_end);
    let view = Arc::new(BatView::new(table.entries));
    let replay = overlay.summary;
    let data_write_guid = current.header.data_write_guid;
    let engine = match options.access {
        Access::ReadOnly => {
            settle_in_memory(&overlay, &geometry, &view)?;
            None
        }
        Access::ReadWrite => {
            let storage = match replay {
                Some(_) => persist_replay(overlay, &mut current, &mut options.guids)?,
                None => overlay.base(),
            };
            let file_len_bytes = storage.len_bytes()?;
            let file = FileState { file_len_bytes, objects_end_bytes, blocks_present, repair };
            Some(Engine::new(geometry, Arc::clone(&view), current, replay.is_some(), file, options.guids))
        }
    };
    Ok(OpenDisk { geometry, view, engine, virtual_disk_id, data_write_guid, parent, creator, replay, warnings })
}

/// Write a replay to the file (section 2.3.3): a new FileWriteGuid first, the LogGuid cleared last.
fn persist_replay<'a>(
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

/// A replay that stays in memory covers the tables only: payload is read from the file as it is. Blocks that the
/// replay would have to create read as zeros; blocks that it would change are beyond this.
fn settle_in_memory(overlay: &Overlay<'_>, geometry: &Geometry, view: &BatView) -> Result<(), OpenError> {
    if overlay.summary.is_none() {
        return Ok(());
    }
    for block in 0..geometry.block_count {
        let entry = view.entry(block);
        if !entry.is_present() {
            continue;
        }
        let start = entry.offset_bytes();
        let end = start + visible_len(geometry, block);
        if start >= overlay.base_len() {
            view.store(block, BatEntry::default());
        } else if end > overlay.base_len() {
            return Err(OpenError::ReadOnlyReplay { rule: "the file ends inside a block that the log created" });
        }
        if overlay.touches(start..end) {
            return Err(OpenError::ReadOnlyReplay { rule: "the log changes the content of a block" });
        }
    }
    Ok(())
}
