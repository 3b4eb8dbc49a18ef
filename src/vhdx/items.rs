//! User metadata (section 2.6.1): named values that travel in the file beside the disk, kept by every reader.

use super::format::{Guid, METADATA_IS_USER, METADATA_IS_VIRTUAL_DISK};
use super::metadata::NewItem;

/// A metadata item that a reader may ignore, with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataItem {
    /// What it is: together with `is_user` unique in the file.
    pub id: Guid,
    /// The user's rather than the system's.
    pub is_user: bool,
    /// Belongs to the virtual disk: children take it over. Otherwise it belongs to the file.
    pub is_virtual_disk: bool,
    /// Its value, at most 1 MiB.
    pub bytes: Vec<u8>,
}

impl From<&MetadataItem> for NewItem {
    fn from(item: &MetadataItem) -> Self {
        let flag = |set, flag| if set { flag } else { 0 };
        let flags = flag(item.is_user, METADATA_IS_USER) | flag(item.is_virtual_disk, METADATA_IS_VIRTUAL_DISK);
        Self { id: item.id, flags, bytes: item.bytes.clone() }
    }
}
