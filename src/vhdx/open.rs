//! Opening: header, log replay, regions, metadata and block allocation table, all validated.

use std::sync::Arc;

use super::GuidSource;
use super::bat::{read_table, visible_len};
use super::engine::{Engine, FileState};
use super::error::OpenError;
use super::format::{BatEntry, Guid, HEADER_SECTION_LEN};
use super::header::{CurrentHeader, read_headers, read_identifier};
use super::metadata::read_metadata;
use super::region::{Span, read_regions, sort_disjoint};
use super::replay::Overlay;
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

/// Open a disk. A file that was closed cleanly is not modified, and neither is one that is refused.
pub fn open(storage: &mut dyn Storage, mut options: OpenOptions) -> Result<OpenDisk, OpenError> {
    let mut warnings = Vec::new();
    let (len_bytes, creator) = read_identifier(storage)?;
    let mut current = read_headers(storage, len_bytes, &mut warnings)?;
    let log =
        current.header.log_offset.get()..current.header.log_offset.get() + u64::from(current.header.log_length.get());
    let log_guid = current.header.log_guid;
    let mut overlay = if log_guid == Guid::ZERO {
        Overlay::clean(storage)?
    } else {
        Overlay::replayed(storage, log.clone(), log_guid)?
    };
    let mut regions = read_regions(&mut overlay, &mut warnings)?;
    regions.spans.push(Span { start: 0, end: HEADER_SECTION_LEN, name: "the header section".to_owned() });
    regions.spans.push(Span { start: log.start, end: log.end, name: "the log".to_owned() });
    sort_disjoint(&mut regions.spans)?;
    let metadata = read_metadata(&mut overlay, regions.metadata, regions.bat.offset_bytes)?;
    let geometry = metadata.geometry;
    let table = read_table(&mut overlay, &geometry, regions.bat, &regions.spans)?;
    let (present, objects_end) = (table.present, table.objects_end);
    let view = Arc::new(BatView::new(table.entries));
    let replay = overlay.summary;
    let data_write_guid = current.header.data_write_guid;
    let engine = match options.access {
        Access::ReadOnly => {
            settle_in_memory(&overlay, &geometry, &view)?;
            None
        }
        Access::ReadWrite => {
            if replay.is_some() {
                persist_replay(overlay, &mut current, &mut options.guids)?;
            }
            let file_len_bytes = storage.len_bytes()?;
            let file = FileState { file_len_bytes, objects_end_bytes: objects_end, blocks_present: present };
            let renewed = replay.is_some();
            Some(Engine::new(geometry, Arc::clone(&view), current, renewed, file, options.guids))
        }
    };
    let virtual_disk_id = metadata.virtual_disk_id;
    Ok(OpenDisk { geometry, view, engine, virtual_disk_id, data_write_guid, creator, replay, warnings })
}

/// Write a replay to the file (section 2.3.3): a new FileWriteGuid first, the LogGuid cleared last.
fn persist_replay(
    mut overlay: Overlay<'_>,
    current: &mut CurrentHeader,
    guids: &mut GuidSource,
) -> Result<(), OpenError> {
    current.header.file_write_guid = guids();
    current.replace(overlay.base())?;
    current.header.log_guid = Guid::ZERO;
    let storage = overlay.write_back()?;
    current.replace(storage)?;
    Ok(())
}

/// A replay that stays in memory covers the tables only: payload is read from the file as it is. Blocks that the replay would
/// have to create read as zeros; blocks that it would change are beyond this.
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
