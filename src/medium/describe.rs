//! What an image is, without opening it for service: its description, and what a new child has to know of it.

use std::fmt;
use std::fs::{File, FileTimes};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use uuid::Uuid;

use super::image::{file_size, is_vhd, is_vhdx, open_file};
use super::storage::FileStorage;
use super::{DiskFormat, DiskKind, FileError, ParentLink};
use crate::vhd;
use crate::vhdx::{self, Guid};

/// What children of an image know it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageIdentity {
    /// A VHDX's DataWriteGuid: it changes when the disk's content does.
    Vhdx(Guid),
    /// A VHD's unique id: it never changes.
    Vhd(Uuid),
    /// A raw image has no identity: its size, and its last change in nanoseconds since 1970.
    Raw {
        /// Bytes of the file.
        size_bytes: u64,
        /// Time of the last change.
        modified_ns: u64,
    },
}

/// What an image is.
#[derive(Clone, Debug)]
pub struct ImageDescription {
    /// Its format.
    pub format: DiskFormat,
    /// How it gets its space.
    pub kind: DiskKind,
    /// Size of the disk in bytes.
    pub size_bytes: u64,
    /// Logical sector size in bytes; 512 for a raw image, which does not say.
    pub sector_size_bytes: u32,
    /// Physical sector size in bytes.
    pub physical_sector_bytes: u32,
    /// Bytes of a block.
    pub block_size_bytes: Option<u64>,
    /// The identity that initiators see; a raw image has none.
    pub disk_id: Option<Uuid>,
    /// What its children know it by.
    pub identity: ImageIdentity,
    /// Where its own parent is.
    pub parent: Option<ParentLink>,
    /// A child takes these over.
    pub inherited_items: Vec<vhdx::MetadataItem>,
}

impl fmt::Display for ImageIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vhdx(guid) => write!(f, "{guid}"),
            Self::Vhd(id) => write!(f, "{id}"),
            Self::Raw { size_bytes, modified_ns } => {
                write!(f, "{size_bytes} bytes, changed at {}.{:09}", modified_ns / NS, modified_ns % NS)
            }
        }
    }
}

const NS: u64 = 1_000_000_000;

/// Look at an image without changing it, and without reading its block table. Blocking.
pub fn describe(path: &Path) -> Result<ImageDescription, FileError> {
    let file = open_file(path, true)?;
    let size_bytes = file_size(&file, path)?;
    if is_vhdx(&file, path) {
        return describe_vhdx(&file, path);
    }
    if is_vhd(&file, path, size_bytes) {
        return describe_vhd(&file, path);
    }
    Ok(ImageDescription {
        format: DiskFormat::Raw,
        kind: DiskKind::Dynamic,
        size_bytes,
        sector_size_bytes: 512,
        physical_sector_bytes: 4096,
        block_size_bytes: None,
        disk_id: None,
        identity: ImageIdentity::Raw { size_bytes, modified_ns: modified_ns(&file, path)? },
        parent: None,
        inherited_items: Vec::new(),
    })
}

fn describe_vhd(file: &File, path: &Path) -> Result<ImageDescription, FileError> {
    let found =
        vhd::describe(&mut FileStorage(file)).map_err(|reason| FileError::Vhd { path: path.to_owned(), reason })?;
    Ok(ImageDescription {
        format: DiskFormat::Vhd,
        kind: vhd_kind(found.kind),
        size_bytes: found.size_bytes,
        sector_size_bytes: 512,
        physical_sector_bytes: 512,
        block_size_bytes: found.block_size_bytes,
        disk_id: Some(found.unique_id),
        identity: ImageIdentity::Vhd(found.unique_id),
        parent: found.parent.map(ParentLink::Vhd),
        inherited_items: Vec::new(),
    })
}

pub(super) fn vhd_kind(kind: vhd::Kind) -> DiskKind {
    match kind {
        vhd::Kind::Fixed => DiskKind::Fixed,
        vhd::Kind::Dynamic => DiskKind::Dynamic,
        vhd::Kind::Differencing => DiskKind::Differencing,
    }
}

fn describe_vhdx(file: &File, path: &Path) -> Result<ImageDescription, FileError> {
    let found =
        vhdx::describe(&mut FileStorage(file)).map_err(|reason| FileError::Vhdx { path: path.to_owned(), reason })?;
    let kind = match (found.parent.is_some(), found.geometry.fixed) {
        (true, _) => DiskKind::Differencing,
        (false, true) => DiskKind::Fixed,
        (false, false) => DiskKind::Dynamic,
    };
    Ok(ImageDescription {
        format: DiskFormat::Vhdx,
        kind,
        size_bytes: found.geometry.disk_size_bytes,
        sector_size_bytes: found.geometry.logical_sector_bytes,
        physical_sector_bytes: found.geometry.physical_sector_bytes,
        block_size_bytes: Some(u64::from(found.geometry.block_size_bytes)),
        disk_id: Some(Uuid::from_bytes_le(found.virtual_disk_id.0)),
        identity: ImageIdentity::Vhdx(found.data_write_guid),
        parent: found.parent.map(ParentLink::Vhdx),
        inherited_items: found.inherited_items,
    })
}

/// A file's last change, in nanoseconds since 1970.
pub fn modified_ns(file: &File, path: &Path) -> Result<u64, FileError> {
    let metadata = file.metadata().map_err(|source| FileError::io("look at", path, source))?;
    let seconds = u64::try_from(metadata.mtime()).unwrap_or(0);
    Ok(seconds.saturating_mul(NS).saturating_add(u64::try_from(metadata.mtime_nsec()).unwrap_or(0)))
}

/// Say that a raw image was last changed then: what its children know it by.
pub fn set_modified_ns(path: &Path, modified_ns: u64) -> Result<(), FileError> {
    let times = FileTimes::new().set_modified(UNIX_EPOCH + Duration::from_nanos(modified_ns));
    let file = open_file(path, true)?;
    file.set_times(times).map_err(|source| FileError::io("set the time of", path, source))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::medium::{CreateSpec, NewParent, create_file};

    fn spec(path: &Path, kind: DiskKind, parent: Option<NewParent>) -> CreateSpec {
        CreateSpec {
            path: path.to_owned(),
            format: DiskFormat::Vhdx,
            kind,
            size_bytes: 8 << 20,
            block_size_bytes: None,
            sector_size_bytes: 512,
            parent,
            disk_id: None,
        }
    }

    #[test]
    fn a_child_names_its_parent_and_has_its_shape() {
        let dir = tempfile::tempdir().unwrap();
        let (golden, child) = (dir.path().join("golden.vhdx"), dir.path().join("child.vhdx"));
        create_file(&spec(&golden, DiskKind::Dynamic, None)).unwrap();
        let parent = NewParent { path: golden.clone(), description: describe(&golden).unwrap() };
        let mut wanted = spec(&child, DiskKind::Differencing, Some(parent.clone()));
        wanted.size_bytes = parent.description.size_bytes;
        create_file(&wanted).unwrap();
        let (golden, child) = (describe(&golden).unwrap(), describe(&child).unwrap());
        assert_eq!((child.kind, child.size_bytes), (DiskKind::Differencing, 8 << 20));
        let link = child.parent.unwrap();
        assert!(link.matches(golden.identity));
        assert_eq!(link.places(dir.path())[0], dir.path().join("./golden.vhdx"));
        assert_ne!(golden.disk_id, child.disk_id, "a clone is another disk");
    }

    #[test]
    fn a_raw_image_is_known_by_its_last_change() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        std::fs::write(&image, [0; 4096]).unwrap();
        let before = describe(&image).unwrap().identity;
        let ImageIdentity::Raw { modified_ns, .. } = before else { panic!("{before:?}") };
        set_modified_ns(&image, 1_234_567_890_123_456_789).unwrap();
        let changed = describe(&image).unwrap().identity;
        assert_ne!(changed, before);
        assert_eq!(changed.to_string(), "4096 bytes, changed at 1234567890.123456789");
        set_modified_ns(&image, modified_ns).unwrap();
        assert_eq!(describe(&image).unwrap().identity, before);
    }
}
