//! Opening a disk for service: lock, validation, log replay, and the way its file is accessed.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::create::{check_size, random_guid};
use super::disk::{Backing, Disk, FileBacking};
use super::storage::FileStorage;
use super::{Cache, DiskFormat, DiskKind, FileError};
use crate::mem::SharedMemory;
use crate::ring::file;
use crate::scsi::{BlockLength, SenseFormat, Unit, UnitConfig};
use crate::units::{DiskId, ShardId};
use crate::vhdx;

/// Bytes that every buffer of the arena is aligned to; a file system that asks for more cannot be accessed directly.
const BUFFER_ALIGNMENT_BYTES: u32 = 4096;

/// How long to wait for a file's lock: a killed server's rings hold on to its files for a moment after it is gone.
const LOCK_PATIENCE: Duration = Duration::from_millis(1500);

/// The first bytes of a VHDX file (MS-VHDX section 2.2.1).
const VHDX_SIGNATURE: &[u8; 8] = b"vhdxfile";

/// What an existing file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probed {
    /// VHDX, or raw for everything without a known signature.
    pub format: DiskFormat,
    /// Fixed or dynamic.
    pub kind: DiskKind,
    /// Size of the disk in bytes.
    pub size_bytes: u64,
    /// Logical sector size in bytes.
    pub sector_size_bytes: u32,
}

/// Which disk to open, and how.
#[derive(Clone, Debug)]
pub struct OpenSpec {
    /// Its number while the process lives.
    pub id: DiskId,
    /// Its name.
    pub name: String,
    /// Its identity towards initiators; a VHDX has its own in the file.
    pub uuid: Uuid,
    /// What stores it.
    pub format: DiskFormat,
    /// The file of a VHDX or raw disk.
    pub path: Option<PathBuf>,
    /// The size of a memory or null disk.
    pub size_bytes: u64,
    /// Logical sector size of a raw, memory or null disk: 512 or 4096.
    pub sector_size_bytes: u32,
    /// Refuse writes, and write nothing to the file.
    pub read_only: bool,
    /// Around the page cache or through it.
    pub cache: Cache,
    /// The shard that will own its metadata.
    pub home: ShardId,
    /// How many shards there are.
    pub shards: u16,
}

/// An open disk.
pub struct Opened {
    /// The disk, for every shard.
    pub disk: Arc<Disk>,
    /// The engine of a writable VHDX, for the home shard.
    pub engine: Option<Box<vhdx::Engine>>,
}

/// What is known once the backing is open.
struct Parts {
    backing: Backing,
    engine: Option<Box<vhdx::Engine>>,
    kind: DiskKind,
    size_bytes: u64,
    sector_size_bytes: u32,
    physical_sector_bytes: u32,
    uuid: Uuid,
    notes: Vec<String>,
}

/// Look at a file without changing it. Blocking.
pub fn probe(path: &Path) -> Result<Probed, FileError> {
    let file = open_file(path, true)?;
    let size_bytes = file_size(&file, path)?;
    if !is_vhdx(&file, path) {
        if is_vhd(&file, path, size_bytes) {
            return Err(FileError::Vhd(path.to_owned()));
        }
        check_raw_size(path, size_bytes, 512)?;
        return Ok(Probed { format: DiskFormat::Raw, kind: DiskKind::Dynamic, size_bytes, sector_size_bytes: 512 });
    }
    let open = open_vhdx(&file, path, true)?;
    let kind = if open.geometry.fixed { DiskKind::Fixed } else { DiskKind::Dynamic };
    Ok(Probed {
        format: DiskFormat::Vhdx,
        kind,
        size_bytes: open.geometry.disk_size_bytes,
        sector_size_bytes: open.geometry.logical_sector_bytes,
    })
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

/// Open a disk for service. Blocking: takes the file's lock, validates everything, replays a pending log.
pub fn open(spec: OpenSpec) -> Result<Opened, FileError> {
    let parts = match (spec.format, &spec.path) {
        (DiskFormat::Null, None) => open_volatile(&spec, Backing::Null)?,
        (DiskFormat::Memory, None) => {
            check_size(spec.size_bytes, spec.sector_size_bytes)?;
            let memory = SharedMemory::new(spec.size_bytes)
                .map_err(|why| FileError::Memory { size_bytes: spec.size_bytes, why: why.to_string() })?;
            open_volatile(&spec, Backing::Memory(memory))?
        }
        (DiskFormat::Raw, Some(path)) => open_raw_disk(&spec, path)?,
        (DiskFormat::Vhdx, Some(path)) => open_vhdx_disk(&spec, path)?,
        (DiskFormat::Vhd, Some(path)) => return Err(FileError::Vhd(path.clone())),
        (format, Some(_)) => return Err(FileError::Spec(format.as_str(), "has no file")),
        (format, None) => return Err(FileError::Spec(format.as_str(), "needs a file")),
    };
    let unit = unit(&spec, &parts, spec.read_only)?;
    let unit_read_only = unit_for(&spec, &parts, true)?;
    let disk = Disk {
        id: spec.id,
        name: spec.name,
        uuid: parts.uuid,
        format: spec.format,
        kind: parts.kind,
        size_bytes: parts.size_bytes,
        read_only: spec.read_only,
        home: spec.home,
        unit,
        unit_read_only,
        backing: parts.backing,
        poisoned: AtomicBool::new(false),
        stats: (0..spec.shards).map(|_| OnceLock::new()).collect(),
        notes: parts.notes,
    };
    Ok(Opened { disk: Arc::new(disk), engine: parts.engine })
}

fn unit(spec: &OpenSpec, parts: &Parts, read_only: bool) -> Result<Unit, FileError> {
    unit_for(spec, parts, read_only)
}

/// The SCSI description. Write caching is reported for files: a write is answered when it has left the process, and is
/// durable after SYNCHRONIZE CACHE or with FUA. Memory and null disks have nothing behind them that a flush could
/// reach.
fn unit_for(spec: &OpenSpec, parts: &Parts, read_only: bool) -> Result<Unit, FileError> {
    let size = |why| FileError::Size { size_bytes: parts.size_bytes, why };
    let block_length =
        BlockLength::from_bytes(parts.sector_size_bytes).ok_or(FileError::SectorSize(parts.sector_size_bytes))?;
    let physical = parts.physical_sector_bytes.max(parts.sector_size_bytes);
    let config = UnitConfig {
        block_length,
        physical_block_exponent: (physical / parts.sector_size_bytes).trailing_zeros() as u8,
        capacity_blocks: parts.size_bytes / u64::from(parts.sector_size_bytes),
        read_only,
        write_cache_enabled: spec.format.has_file(),
        thin_provisioned: false,
        unmap_granularity_blocks: 0,
        disk_uuid: *parts.uuid.as_bytes(),
        product: match spec.format {
            DiskFormat::Vhdx => "VHDX disk",
            DiskFormat::Vhd => "VHD disk",
            DiskFormat::Raw => "Raw disk",
            DiskFormat::Memory => "Memory disk",
            DiskFormat::Null => "Null disk",
        },
        sense_format: SenseFormat::Fixed,
    };
    Unit::new(&config).map_err(|_| size("it cannot be described to an initiator"))
}

fn open_volatile(spec: &OpenSpec, backing: Backing) -> Result<Parts, FileError> {
    check_size(spec.size_bytes, spec.sector_size_bytes)?;
    Ok(Parts {
        backing,
        engine: None,
        kind: DiskKind::Dynamic,
        size_bytes: spec.size_bytes,
        sector_size_bytes: spec.sector_size_bytes,
        physical_sector_bytes: spec.sector_size_bytes,
        uuid: spec.uuid,
        notes: Vec::new(),
    })
}

fn open_raw_disk(spec: &OpenSpec, path: &Path) -> Result<Parts, FileError> {
    let file = open_locked(path, spec.read_only)?;
    let size_bytes = file_size(&file, path)?;
    check_raw_size(path, size_bytes, spec.sector_size_bytes)?;
    let (backing, notes) = for_service(file, path, spec, spec.sector_size_bytes)?;
    Ok(Parts {
        backing: Backing::Raw(backing),
        engine: None,
        kind: DiskKind::Dynamic,
        size_bytes,
        sector_size_bytes: spec.sector_size_bytes,
        physical_sector_bytes: 4096,
        uuid: spec.uuid,
        notes,
    })
}

fn open_vhdx_disk(spec: &OpenSpec, path: &Path) -> Result<Parts, FileError> {
    let file = open_locked(path, spec.read_only)?;
    let open = open_vhdx(&file, path, spec.read_only)?;
    let (backing, mut notes) = for_service(file, path, spec, open.geometry.logical_sector_bytes)?;
    notes.extend(open.warnings.iter().map(describe));
    if let Some(replay) = &open.replay {
        notes.push(format!("the log held {} entries of an unclean end; they were replayed", replay.entries));
    }
    Ok(Parts {
        backing: Backing::Vhdx { file: backing, geometry: open.geometry, view: open.view },
        engine: open.engine.map(Box::new),
        kind: if open.geometry.fixed { DiskKind::Fixed } else { DiskKind::Dynamic },
        size_bytes: open.geometry.disk_size_bytes,
        sector_size_bytes: open.geometry.logical_sector_bytes,
        physical_sector_bytes: open.geometry.physical_sector_bytes,
        uuid: Uuid::from_bytes_le(open.virtual_disk_id.0),
        notes,
    })
}

fn open_vhdx(file: &File, path: &Path, read_only: bool) -> Result<vhdx::OpenDisk, FileError> {
    let options = vhdx::OpenOptions {
        access: if read_only { vhdx::Access::ReadOnly } else { vhdx::Access::ReadWrite },
        guids: Box::new(random_guid),
    };
    vhdx::open(&mut FileStorage(file), options).map_err(|reason| FileError::Vhdx { path: path.to_owned(), reason })
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

fn check_raw_size(path: &Path, size_bytes: u64, sector_size_bytes: u32) -> Result<(), FileError> {
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
    // O_NONBLOCK only keeps a FIFO from blocking the open above; regular files and block devices ignore it.
    if kind.is_file() || kind.is_block_device() { Ok(file) } else { Err(FileError::NotAFile(path.to_owned())) }
}

fn open_locked(path: &Path, read_only: bool) -> Result<File, FileError> {
    let file = open_file(path, read_only)?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        let locked = if read_only { file.try_lock_shared() } else { file.try_lock() };
        match locked {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
            Err(TryLockError::WouldBlock) => return Err(FileError::InUse(path.to_owned())),
            Err(TryLockError::Error(source)) => return Err(FileError::io("lock", path, source)),
        }
    }
}

/// The size of a regular file or a block device.
pub(super) fn file_size(file: &File, path: &Path) -> Result<u64, FileError> {
    use std::io::{Seek, SeekFrom};
    let mut file = file;
    file.seek(SeekFrom::End(0)).map_err(|source| FileError::io("get the size of", path, source))
}

/// The descriptor that shards will use. The locked file's descriptor stays open beside a direct one.
fn for_service(
    file: File,
    path: &Path,
    spec: &OpenSpec,
    sector_bytes: u32,
) -> Result<(FileBacking, Vec<String>), FileError> {
    if !spec.read_only {
        file.sync_all().map_err(|source| FileError::io("flush", path, source))?;
    }
    if spec.cache == Cache::Buffered {
        return Ok((FileBacking { file, _lock: None, path: path.to_owned(), direct: false }, Vec::new()));
    }
    let why = match open_direct(&file, spec.read_only) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => "its file system has no direct I/O".to_owned(),
        Err(source) => return Err(FileError::io("open (direct)", path, source)),
        Ok(direct) => match file::direct_io_alignment(&direct) {
            Some(alignment) if alignment.offset > sector_bytes => {
                format!("direct I/O there needs {} byte sectors", alignment.offset)
            }
            Some(alignment) if alignment.memory > BUFFER_ALIGNMENT_BYTES => {
                format!("direct I/O there needs memory aligned to {} bytes", alignment.memory)
            }
            _ => {
                let backing = FileBacking { file: direct, _lock: Some(file), path: path.to_owned(), direct: true };
                return Ok((backing, Vec::new()));
            }
        },
    };
    let note = format!("served through the page cache: {why}");
    Ok((FileBacking { file, _lock: None, path: path.to_owned(), direct: false }, vec![note]))
}

/// The same file again, direct. Through the descriptor, so that it is the same file even if the name has moved.
fn open_direct(file: &File, read_only: bool) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(!read_only)
        .custom_flags(libc::O_DIRECT | libc::O_CLOEXEC)
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}
