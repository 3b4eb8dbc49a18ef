//! New disk files, created whole or not at all.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use super::link::vhd_parent;
use super::storage::FileStorage;
use super::{DiskFormat, DiskKind, FileError, ImageDescription, ImageIdentity};
use crate::vhd;
use crate::vhdx::{self, Guid};
use rustix::fs::{FallocateFlags, fallocate};

/// The log of a differencing VHDX: small, for most are frozen sooner or later.
const CHILD_LOG_BYTES: u64 = 2 << 20;

/// What to create.
#[derive(Clone, Debug)]
pub struct CreateSpec {
    /// The file; it must not exist.
    pub path: PathBuf,
    /// A format with a file.
    pub format: DiskFormat,
    /// Whether all space is reserved now.
    pub kind: DiskKind,
    /// The disk's size in bytes.
    pub size_bytes: u64,
    /// VHDX payload block size; `None` chooses.
    pub block_size_bytes: Option<u64>,
    /// Logical sector size: 512 or 4096.
    pub sector_size_bytes: u32,
    /// The parent of a [`DiskKind::Differencing`] image.
    pub parent: Option<NewParent>,
    /// The identity that initiators see, kept in formats that have a place for one; random unless said otherwise.
    pub disk_id: Option<Uuid>,
}

/// The parent of a new image.
#[derive(Clone, Debug)]
pub struct NewParent {
    /// Its file, absolute.
    pub path: PathBuf,
    /// What it is.
    pub description: ImageDescription,
}

/// Create a disk's file. Blocking. The file appears under its name only when it is complete and durable; after a crash
/// at most a file whose name starts with `.creating-` is left.
pub fn create_file(spec: &CreateSpec) -> Result<(), FileError> {
    check_size(spec.size_bytes, spec.sector_size_bytes)?;
    if spec.path.symlink_metadata().is_ok() {
        return Err(FileError::Exists(spec.path.clone()));
    }
    let temporary = temporary_path(&spec.path);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&temporary)
        .map_err(|source| FileError::io("create", &spec.path, source))?;
    let result = fill(spec, &file).and_then(|()| publish(&file, &temporary, &spec.path));
    if result.is_err() {
        // The refusal matters more than a leftover, which the next start removes.
        let _ = fs::remove_file(&temporary);
    }
    result
}

/// Reserve a range of a file, growing it as needed.
pub fn preallocate(file: &File, path: &Path, offset_bytes: u64, len_bytes: u64) -> Result<(), FileError> {
    fallocate(file, FallocateFlags::empty(), offset_bytes, len_bytes)
        .map_err(|errno| FileError::io("reserve space for", path, errno.into()))
}

/// The sizes that SCSI can serve.
pub(super) fn check_size(size_bytes: u64, sector_size_bytes: u32) -> Result<(), FileError> {
    if !matches!(sector_size_bytes, 512 | 4096) {
        return Err(FileError::SectorSize(sector_size_bytes));
    }
    if size_bytes == 0 {
        return Err(FileError::Size { size_bytes, why: "a disk needs at least one sector" });
    }
    if !size_bytes.is_multiple_of(u64::from(sector_size_bytes)) {
        return Err(FileError::Size { size_bytes, why: "it must be a multiple of the sector size" });
    }
    if size_bytes > 1 << 62 {
        return Err(FileError::Size { size_bytes, why: "it must be at most 4 EiB" });
    }
    Ok(())
}

fn fill(spec: &CreateSpec, file: &File) -> Result<(), FileError> {
    match spec.format {
        DiskFormat::Raw => fill_raw(spec, file),
        DiskFormat::Vhdx => fill_vhdx(spec, file),
        DiskFormat::Vhd => fill_vhd(spec, file),
        DiskFormat::Memory | DiskFormat::Null => Err(FileError::Spec(spec.format.as_str(), "has no file")),
    }
}

fn fill_raw(spec: &CreateSpec, file: &File) -> Result<(), FileError> {
    file.set_len(spec.size_bytes).map_err(|source| FileError::io("set the size of", &spec.path, source))?;
    match spec.kind {
        DiskKind::Dynamic => Ok(()),
        DiskKind::Fixed => preallocate(file, &spec.path, 0, spec.size_bytes),
        DiskKind::Differencing => Err(FileError::Spec("raw", "has no parent")),
    }
}

/// The parent as the new child will name it.
fn vhdx_parent(spec: &CreateSpec) -> Result<Option<vhdx::NewParent>, FileError> {
    let parent = match (&spec.parent, spec.kind) {
        (Some(parent), DiskKind::Differencing) => parent,
        (None, DiskKind::Differencing) => return Err(FileError::Spec("differencing", "needs a parent")),
        (Some(_), _) => return Err(FileError::Spec(spec.kind.as_str(), "has no parent")),
        (None, _) => return Ok(None),
    };
    let folder = spec.path.parent().unwrap_or(Path::new("/"));
    let of = &parent.description;
    let locator = super::offline::locator_to(&parent.path, of, folder, spec.disk_id)?;
    let logical_sector_bytes = match of.format {
        // A raw image does not say.
        DiskFormat::Raw => spec.sector_size_bytes,
        _ => of.sector_size_bytes,
    };
    Ok(Some(vhdx::NewParent {
        locator,
        size_bytes: of.size_bytes,
        logical_sector_bytes,
        items: of.inherited_items.clone(),
    }))
}

fn fill_vhdx(spec: &CreateSpec, file: &File) -> Result<(), FileError> {
    let options = vhdx::CreateOptions {
        size_bytes: spec.size_bytes,
        kind: match spec.kind {
            DiskKind::Dynamic | DiskKind::Differencing => vhdx::DiskKind::Dynamic,
            DiskKind::Fixed => vhdx::DiskKind::Fixed,
        },
        block_size_bytes: spec.block_size_bytes,
        logical_sector_bytes: spec.sector_size_bytes,
        physical_sector_bytes: 4096,
        // A disk has one child for each of its snapshots, and only one of them is written.
        log_len_bytes: (spec.kind == DiskKind::Differencing).then_some(CHILD_LOG_BYTES),
        virtual_disk_id: spec.disk_id.map_or_else(random_guid, |id| Guid(id.to_bytes_le())),
        file_write_guid: random_guid(),
        data_write_guid: random_guid(),
        parent: vhdx_parent(spec)?,
    };
    let created = vhdx::create(&options, &mut FileStorage(file)).map_err(FileError::Options)?;
    for range in created.allocate {
        preallocate(file, &spec.path, range.start, range.end - range.start)?;
    }
    Ok(())
}

fn fill_vhd(spec: &CreateSpec, file: &File) -> Result<(), FileError> {
    if spec.sector_size_bytes != 512 {
        return Err(FileError::Spec("vhd", "has sectors of 512 bytes, always"));
    }
    let folder = spec.path.parent().unwrap_or(Path::new("/"));
    let kind = match (spec.kind, &spec.parent) {
        (DiskKind::Fixed, None) => vhd::NewKind::Fixed,
        (DiskKind::Dynamic, None) => vhd::NewKind::Dynamic,
        (DiskKind::Differencing, Some(parent)) => match parent.description.identity {
            ImageIdentity::Vhd(id) => vhd::NewKind::Differencing(vhd_parent(&parent.path, id, folder)),
            _ => return Err(FileError::Spec("differencing vhd", "needs a vhd as its parent")),
        },
        (DiskKind::Differencing, None) => return Err(FileError::Spec("differencing", "needs a parent")),
        (kind, Some(_)) => return Err(FileError::Spec(kind.as_str(), "has no parent")),
    };
    let options = vhd::CreateOptions {
        size_bytes: spec.size_bytes,
        kind,
        block_size_bytes: spec.block_size_bytes,
        unique_id: Uuid::new_v4(),
        unix_seconds: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
    };
    let created = vhd::create(&options, &mut FileStorage(file)).map_err(FileError::VhdOptions)?;
    for range in created.allocate {
        preallocate(file, &spec.path, range.start, range.end - range.start)?;
    }
    Ok(())
}

/// A fresh random identifier.
pub(super) fn random_guid() -> Guid {
    Guid(Uuid::new_v4().to_bytes_le())
}

/// Give the finished file its name. A hard link fails when the name was taken meanwhile; a rename would replace that
/// file.
fn publish(file: &File, temporary: &Path, path: &Path) -> Result<(), FileError> {
    file.sync_all().map_err(|source| FileError::io("flush", path, source))?;
    fs::hard_link(temporary, path).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => FileError::Exists(path.to_owned()),
        _ => FileError::io("create", path, source),
    })?;
    fs::remove_file(temporary).map_err(|source| FileError::io("tidy up after creating", path, source))?;
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|source| FileError::io("flush the folder of", path, source))
}

fn temporary_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(".creating-");
    name.push(path.file_name().unwrap_or_default());
    path.with_file_name(name)
}
