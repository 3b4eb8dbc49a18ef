//! What a file is, without looking at its blocks: quick, whatever its size.

use super::error::OpenError;
use super::format::{Guid, METADATA_IS_REQUIRED, METADATA_IS_VIRTUAL_DISK};
use super::geometry::Geometry;
use super::header::{read_headers, read_identifier};
use super::items::MetadataItem;
use super::locator::ParentLocator;
use super::metadata::{Items, Metadata, read_metadata};
use super::region::{Regions, read_regions};
use super::replay::Overlay;
use super::storage::Storage;

/// What headers and metadata say, as they are after the replay of a pending log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// The disk's shape.
    pub geometry: Geometry,
    /// The Virtual Disk ID (section 2.6.2.3).
    pub virtual_disk_id: Guid,
    /// What children know it by.
    pub data_write_guid: Guid,
    /// Where the parent of a differencing disk is found, and how it is recognised.
    pub parent: Option<ParentLocator>,
    /// Items that children take over: those of the virtual disk that a reader may ignore (section 2.6.1.2).
    pub inherited_items: Vec<MetadataItem>,
    /// The log holds something that the next writable open will replay.
    pub log_pending: bool,
    /// Who made the file; for people only.
    pub creator: String,
}

/// Look at a file's headers and metadata. Nothing is written, and the block allocation table is not read.
pub fn describe(storage: &mut dyn Storage) -> Result<Description, OpenError> {
    let mut warnings = Vec::new();
    let (len_bytes, creator) = read_identifier(storage)?;
    let header = read_headers(storage, len_bytes, &mut warnings)?.header;
    let log_start = header.log_offset.get();
    let log = log_start..log_start + u64::from(header.log_length.get());
    let mut overlay = match header.log_guid {
        Guid::ZERO => Overlay::clean(storage)?,
        guid => Overlay::replayed(storage, log, guid)?,
    };
    let log_pending = overlay.summary.is_some();
    let Regions { bat, metadata, .. } = read_regions(&mut overlay, &mut warnings)?;
    let Metadata { geometry, virtual_disk_id, parent } = read_metadata(&mut overlay, metadata, bat.offset_bytes)?;
    let mut inherited_items = Vec::new();
    // Every rule about items has been held by now.
    let Some(items) = Items::read(&mut overlay, metadata, &mut drop)? else {
        return Err(OpenError::MetadataMissing { name: "metadata table" });
    };
    for item in &items.items {
        let is_virtual_disk = item.flags & METADATA_IS_VIRTUAL_DISK != 0;
        if is_virtual_disk && item.flags & METADATA_IS_REQUIRED == 0 {
            let bytes = items.bytes(&mut overlay, item)?;
            inherited_items.push(MetadataItem { id: item.id, is_user: item.is_user(), is_virtual_disk, bytes });
        }
    }
    let data_write_guid = header.data_write_guid;
    Ok(Description { geometry, virtual_disk_id, data_write_guid, parent, inherited_items, log_pending, creator })
}
