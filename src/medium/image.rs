//! Files that hold layers: what they are, and how each format is opened.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Mutex;

use uuid::Uuid;

use super::create::{check_size, random_guid};
use super::describe::vhd_kind;
use super::layer::{FileBacking, FileId, LayerFile};
use super::storage::FileStorage;
use super::{DiskFormat, DiskKind, FileError, ImageIdentity, ParentLink, modified_ns};
use crate::blocks::{BlockMap, Engine, Fault, MapLimits, load_blocking};
use crate::ring::file;
use crate::vhd;
use crate::vhdx;

/// The first bytes of a VHDX file (MS-VHDX section 2.2.1).
const VHDX_SIGNATURE: &[u8; 8] = b"vhdxfile";

/// A layer, with what only its opening tells.
pub(super) struct OpenLayer {
    pub layer: LayerFile,
    /// Writes it; `None` for one that is read-only, or raw.
    pub engine: Option<Box<dyn Engine>>,
    /// The identity that initiators see, where the format has one.
    pub disk_id: Option<Uuid>,
    pub physical_sector_bytes: u32,
    /// Oddities, for the operator.
    pub notes: Vec<String>,
}

/// How a layer is to be opened.
#[derive(Clone, Copy)]
pub(super) struct LayerSpec<'a> {
    pub path: &'a Path,
    pub format: DiskFormat,
    pub read_only: bool,
    /// Of a raw image, which does not say.
    pub sector_size_bytes: u32,
    /// Locks of this process that the file may be under already.
    pub held: &'a [&'a FileBacking],
}

/// The format of a file: that of its signature, and raw where it has none.
pub(super) fn format_of(file: &File, path: &Path) -> Result<DiskFormat, FileError> {
    if is_vhdx(file, path) {
        return Ok(DiskFormat::Vhdx);
    }
    let size_bytes = file_size(file, path)?;
    Ok(if is_vhd(file, path, size_bytes) { DiskFormat::Vhd } else { DiskFormat::Raw })
}

/// Open a layer to read it only, as a parent.
pub(super) fn open_parent(path: &Path) -> Result<LayerFile, FileError> {
    let format = format_of(&open_file(path, true)?, path)?;
    let spec = LayerSpec { path, format, read_only: true, sector_size_bytes: 512, held: &[] };
    Ok(open_layer(&spec)?.layer)
}

/// Open and lock a layer, and read what it says of itself. Its file is used through the page cache so far.
pub(super) fn open_layer(spec: &LayerSpec<'_>) -> Result<OpenLayer, FileError> {
    let file = FileBacking::open(spec.path, spec.read_only, spec.held)?;
    let id = FileId::of(file.file(), spec.path)?;
    match spec.format {
        DiskFormat::Vhdx => open_vhdx_layer(spec, file, id),
        DiskFormat::Vhd => open_vhd_layer(spec, file, id),
        DiskFormat::Raw => open_raw_layer(spec, file, id),
        DiskFormat::Memory | DiskFormat::Null => Err(FileError::Spec(spec.format.as_str(), "has no file")),
    }
}

fn open_raw_layer(spec: &LayerSpec<'_>, file: FileBacking, id: FileId) -> Result<OpenLayer, FileError> {
    let size_bytes = file_size(file.file(), spec.path)?;
    check_raw_size(spec.path, size_bytes, spec.sector_size_bytes)?;
    let identity = ImageIdentity::Raw { size_bytes, modified_ns: modified_ns(file.file(), spec.path)? };
    let layer = LayerFile {
        file,
        id,
        format: DiskFormat::Raw,
        kind: DiskKind::Dynamic,
        size_bytes,
        sector_size_bytes: spec.sector_size_bytes,
        identity: Mutex::new(identity),
        parent: None,
        map: None,
    };
    Ok(OpenLayer { layer, engine: None, disk_id: None, physical_sector_bytes: 4096, notes: Vec::new() })
}

fn open_vhdx_layer(spec: &LayerSpec<'_>, file: FileBacking, id: FileId) -> Result<OpenLayer, FileError> {
    let open = open_vhdx(file.file(), spec.path, spec.read_only)?;
    let mut notes: Vec<String> = open.warnings.iter().map(describe).collect();
    if let Some(replay) = &open.replay {
        notes.push(format!("the log held {} entries of an unclean end; they were replayed", replay.entries));
    }
    let layer = LayerFile {
        file,
        id,
        format: DiskFormat::Vhdx,
        kind: kind_of(&open),
        size_bytes: open.geometry.disk_size_bytes,
        sector_size_bytes: open.geometry.logical_sector_bytes,
        identity: Mutex::new(ImageIdentity::Vhdx(open.data_write_guid)),
        parent: open.parent.map(ParentLink::Vhdx),
        map: Some(open.map),
    };
    Ok(OpenLayer {
        layer,
        engine: open.engine.map(|engine| engine as Box<dyn Engine>),
        disk_id: Some(Uuid::from_bytes_le(open.virtual_disk_id.0)),
        physical_sector_bytes: open.geometry.physical_sector_bytes,
        notes,
    })
}

fn open_vhd_layer(spec: &LayerSpec<'_>, file: FileBacking, id: FileId) -> Result<OpenLayer, FileError> {
    let access = if spec.read_only { vhd::Access::ReadOnly } else { vhd::Access::ReadWrite };
    let options = vhd::OpenOptions { access, limits: MapLimits::default() };
    let open = vhd::open(&mut FileStorage(file.file()), options)
        .map_err(|reason| FileError::Vhd { path: spec.path.to_owned(), reason })?;
    let layer = LayerFile {
        file,
        id,
        format: DiskFormat::Vhd,
        kind: vhd_kind(open.kind),
        size_bytes: open.shape.size_bytes,
        sector_size_bytes: 512,
        identity: Mutex::new(ImageIdentity::Vhd(open.unique_id)),
        parent: open.parent.map(ParentLink::Vhd),
        map: open.map,
    };
    Ok(OpenLayer {
        layer,
        engine: open.engine.map(|engine| engine as Box<dyn Engine>),
        // A VHD's unique id is that of the file: a snapshot's new leaf has another one.
        disk_id: None,
        physical_sector_bytes: 512,
        notes: open.warnings.iter().map(ToString::to_string).collect(),
    })
}

fn open_vhdx(file: &File, path: &Path, read_only: bool) -> Result<vhdx::OpenDisk, FileError> {
    let options = vhdx::OpenOptions {
        access: if read_only { vhdx::Access::ReadOnly } else { vhdx::Access::ReadWrite },
        guids: Box::new(random_guid),
        data_write_guid: None,
    };
    vhdx::open(&mut FileStorage(file), options).map_err(|reason| FileError::Vhdx { path: path.to_owned(), reason })
}

fn kind_of(open: &vhdx::OpenDisk) -> DiskKind {
    match (&open.parent, open.geometry.fixed) {
        (Some(_), _) => DiskKind::Differencing,
        (None, true) => DiskKind::Fixed,
        (None, false) => DiskKind::Dynamic,
    }
}

/// An oddity, for the operator.
fn describe(warning: &vhdx::Warning) -> String {
    match warning {
        vhdx::Warning::HeaderCopyInvalid { copy } => {
            format!("header {copy} is damaged; the other one is used, and the next write repairs it")
        }
        vhdx::Warning::RegionTableCopyInvalid { copy } => {
            format!("region table {copy} is damaged; the other one is used")
        }
    }
}

/// Load a page of a layer's map, through the page cache.
pub(super) fn load_page(layer: &LayerFile, map: &BlockMap, fault: Fault) -> Result<(), FileError> {
    let other;
    let file = if layer.file().direct() {
        other = layer.open_reader()?;
        &other
    } else {
        layer.file().file()
    };
    load_blocking(map, fault, &mut |offset_bytes, into| {
        read_padded(file, offset_bytes, into).map_err(|source| FileError::io("read", layer.path(), source))
    })
}

/// Read; what is behind the file's end reads as zeros.
fn read_padded(file: &File, offset_bytes: u64, into: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < into.len() {
        match file.read_at(&mut into[done..], offset_bytes + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    into[done..].fill(0);
    Ok(())
}

/// A VHDX whose signature is damaged must be refused as one: served as a raw disk, its first write would destroy it.
pub(super) fn is_vhdx(file: &File, path: &Path) -> bool {
    let mut signature = [0; 8];
    (file.read_exact_at(&mut signature, 0).is_ok() && &signature == VHDX_SIGNATURE) || is_named_vhdx(path)
}

/// A VHD says so in its footer, the last 512 (once 511) bytes; a dynamic one repeats it at the start.
pub(super) fn is_vhd(file: &File, path: &Path, size_bytes: u64) -> bool {
    const COOKIE: &[u8; 8] = b"conectix";
    let mut bytes = [0; 8];
    let footers = [Some(0), size_bytes.checked_sub(512), size_bytes.checked_sub(511)];
    path.extension().is_some_and(|end| end.eq_ignore_ascii_case("vhd"))
        || footers.into_iter().flatten().any(|at| file.read_exact_at(&mut bytes, at).is_ok() && &bytes == COOKIE)
}

fn is_named_vhdx(path: &Path) -> bool {
    path.extension().is_some_and(|end| end.eq_ignore_ascii_case("vhdx") || end.eq_ignore_ascii_case("avhdx"))
}

pub(super) fn check_raw_size(path: &Path, size_bytes: u64, sector_size_bytes: u32) -> Result<(), FileError> {
    check_size(size_bytes, sector_size_bytes).map_err(|error| match error {
        FileError::Size { .. } => FileError::RawSize { path: path.to_owned(), size_bytes },
        other => other,
    })
}

pub(super) fn open_file(path: &Path, read_only: bool) -> Result<File, FileError> {
    let file = OpenOptions::new()
        .read(true)
        .write(!read_only)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)
        .map_err(|source| FileError::io("open", path, source))?;
    let kind = file.metadata().map_err(|source| FileError::io("look at", path, source))?.file_type();
    // O_NONBLOCK only keeps a FIFO from blocking the open above.
    file::clear_nonblocking(&file).map_err(|source| FileError::io("open", path, source))?;
    file::note_remote(&file);
    if kind.is_file() || kind.is_block_device() { Ok(file) } else { Err(FileError::NotAFile(path.to_owned())) }
}

/// The size of a regular file or a block device.
pub(super) fn file_size(file: &File, path: &Path) -> Result<u64, FileError> {
    let mut file = file;
    file.seek(SeekFrom::End(0)).map_err(|source| FileError::io("get the size of", path, source))
}

/// The same file again, direct, or why that cannot be. Through the descriptor, so that it is the same file even if the
/// name has moved. Offsets, lengths and memory will be aligned to `alignment_bytes`.
pub(super) fn direct_io(
    file: &File,
    path: &Path,
    read_only: bool,
    alignment_bytes: u32,
) -> Result<Result<File, String>, FileError> {
    let direct = OpenOptions::new()
        .read(true)
        .write(!read_only)
        .custom_flags(libc::O_DIRECT | libc::O_CLOEXEC)
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let direct = match direct {
        Ok(direct) => direct,
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            return Ok(Err("its file system has no direct I/O".to_owned()));
        }
        Err(source) => return Err(FileError::io("open (direct)", path, source)),
    };
    Ok(match file::direct_io_alignment(&direct) {
        Some(alignment) if alignment.offset > alignment_bytes => {
            Err(format!("direct I/O there needs {} byte sectors", alignment.offset))
        }
        Some(alignment) if alignment.memory > alignment_bytes => {
            Err(format!("direct I/O there needs memory aligned to {} bytes", alignment.memory))
        }
        _ => {
            file::note_remote(&direct);
            Ok(direct)
        }
    })
}
