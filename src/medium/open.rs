//! Opening a disk for service: its layers, the way its files are accessed, and its SCSI description.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use uuid::Uuid;

use super::create::check_size;
use super::disk::{Backing, Disk};
use super::image::{LayerSpec, OpenLayer, check_raw_size, file_size, format_of, open_file, open_layer};
use super::layer::{FileBacking, LayerFile};
use super::{Cache, DiskFormat, DiskKind, FileError, Parents, describe};
use crate::blocks::{ATOMIC_WRITE_BYTES, Chain, Engine};
use crate::limits::{ATOMIC_WRITE_BYTES_MAX, BURST_LENGTH_MAX};
use crate::mem::{SHARED_PAGE_BYTES, SharedMemory};
use crate::scsi::{BlockLength, Features, SenseFormat, Unit, UnitConfig};
use crate::units::{DiskId, ShardId};

/// What a file system gives back at once: the unmap granularity of a raw disk.
const RAW_GRANULARITY_BYTES: u32 = 4096;

/// VHD files are laid out in sectors of 512 bytes, whatever the drive has.
const VHD_ALIGNMENT_BYTES: u32 = 512;

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
    /// Its identity towards initiators; nil: that of its file.
    pub uuid: Uuid,
    /// What stores it.
    pub format: DiskFormat,
    /// How a raw disk gets its space; what else there is says so itself.
    pub kind: Option<DiskKind>,
    /// The file of a disk that has one.
    pub path: Option<PathBuf>,
    /// The parent of a differencing disk, where that is not where the file says.
    pub parent: Option<PathBuf>,
    /// Where parents are opened.
    pub parents: Arc<Parents>,
    /// The disk, of the same number, that this one will take the place of: counters and file locks carry over.
    pub predecessor: Option<Arc<Disk>>,
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
    /// The engine of a leaf that can be written and has a block map, for the home shard.
    pub engine: Option<Box<dyn Engine>>,
}

/// What is known once the backing is open.
struct Parts {
    backing: Backing,
    engine: Option<Box<dyn Engine>>,
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
    let format = format_of(&file, path)?;
    if format == DiskFormat::Raw {
        let size_bytes = file_size(&file, path)?;
        check_raw_size(path, size_bytes, 512)?;
        return Ok(Probed { format, kind: DiskKind::Dynamic, size_bytes, sector_size_bytes: 512 });
    }
    let found = describe(path)?;
    let (kind, size_bytes, sector_size_bytes) = (found.kind, found.size_bytes, found.sector_size_bytes);
    Ok(Probed { format, kind, size_bytes, sector_size_bytes })
}

/// Open a disk for service. Blocking: takes the files' locks, validates everything, replays a pending log, opens the
/// parents that are not open yet.
pub fn open(spec: OpenSpec) -> Result<Opened, FileError> {
    let parts = match (spec.format, &spec.path) {
        (DiskFormat::Null, None) => open_volatile(&spec, Backing::Null)?,
        (DiskFormat::Memory, None) => {
            check_size(spec.size_bytes, spec.sector_size_bytes)?;
            let memory = SharedMemory::new(spec.size_bytes)
                .map_err(|why| FileError::Memory { size_bytes: spec.size_bytes, why: why.to_string() })?;
            open_volatile(&spec, Backing::Memory(memory))?
        }
        (_, Some(path)) => open_files(&spec, path)?,
        (format, None) => return Err(FileError::Spec(format.as_str(), "needs a file")),
    };
    let poisoned = Arc::new(AtomicBool::new(false));
    finish(spec, parts, poisoned)
}

/// Open a new leaf over the layers of a disk that is being served: its present leaf becomes the new one's parent when
/// the new form takes its place. That the new leaf was made for this parent is the caller's word, since the parent's
/// identity changes while it is written. Blocking.
pub fn open_over(spec: OpenSpec, over: &Disk) -> Result<Opened, FileError> {
    let path = spec.path.clone().ok_or(FileError::Spec(spec.format.as_str(), "needs a file"))?;
    let (leaf, rest) = open_leaf(&spec, &path)?;
    let layers: Vec<Arc<LayerFile>> = std::iter::once(leaf).chain(over.layers().iter().cloned()).collect();
    let chain = spec.parents.chain_over(&layers)?;
    let parts = rest.parts(&spec, layers, chain);
    let poisoned = Arc::clone(&over.poisoned);
    finish(spec, parts, poisoned)
}

fn finish(spec: OpenSpec, parts: Parts, poisoned: Arc<AtomicBool>) -> Result<Opened, FileError> {
    let unit = unit_for(&spec, &parts, spec.read_only)?;
    let unit_read_only = unit_for(&spec, &parts, true)?;
    let stats = match &spec.predecessor {
        Some(disk) => Arc::clone(&disk.stats),
        None => (0..spec.shards).map(|_| OnceLock::new()).collect(),
    };
    let tokens = spec.predecessor.as_ref().map_or_else(Arc::default, |disk| Arc::clone(&disk.tokens));
    let payloads = spec.predecessor.as_ref().map_or_else(Arc::default, |disk| Arc::clone(&disk.payloads));
    let space = spec.predecessor.as_ref().map(|disk| Arc::clone(&disk.space)).unwrap_or_default();
    let log_base = spec.predecessor.as_ref().map(|disk| Arc::clone(&disk.log_base)).unwrap_or_default();
    let orphans = spec.predecessor.as_ref().map(|disk| Arc::clone(&disk.orphans)).unwrap_or_default();
    let is_hollow = AtomicBool::new(is_hollow(&parts.backing));
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
        poisoned,
        trouble: match &spec.predecessor {
            Some(disk) => Arc::clone(&disk.trouble),
            None => Arc::default(),
        },
        space,
        orphans,
        log_base,
        stats,
        notes: parts.notes,
        tokens,
        is_hollow,
        payloads,
    };
    disk.look_at_space();
    Ok(Opened { disk: Arc::new(disk), engine: parts.engine })
}

/// Whether it is a raw file without any space. A file system that cannot tell says that all of it is data.
fn is_hollow(backing: &Backing) -> bool {
    let Backing::Chain { layers, .. } = backing else { return false };
    let [leaf] = &layers[..] else { return false };
    leaf.format() == DiskFormat::Raw
        && rustix::fs::seek(leaf.file().file(), rustix::fs::SeekFrom::Data(0)) == Err(rustix::io::Errno::NXIO)
}

/// What opening a leaf tells beside the layer.
struct Rest {
    engine: Option<Box<dyn Engine>>,
    disk_id: Option<Uuid>,
    physical_sector_bytes: u32,
    notes: Vec<String>,
}

impl Rest {
    fn parts(self, spec: &OpenSpec, layers: Vec<Arc<LayerFile>>, chain: Chain) -> Parts {
        let leaf = &layers[0];
        let kind = match (leaf.format(), spec.kind) {
            (DiskFormat::Raw, Some(kind)) => kind,
            _ => leaf.kind(),
        };
        Parts {
            engine: self.engine,
            kind,
            size_bytes: leaf.size_bytes(),
            sector_size_bytes: leaf.sector_size_bytes(),
            physical_sector_bytes: self.physical_sector_bytes,
            uuid: if spec.uuid.is_nil() { self.disk_id.unwrap_or_default() } else { spec.uuid },
            notes: self.notes,
            backing: Backing::Chain { layers: layers.into(), chain },
        }
    }
}

fn open_files(spec: &OpenSpec, path: &Path) -> Result<Parts, FileError> {
    let (leaf, rest) = open_leaf(spec, path)?;
    let ancestors = spec.parents.ancestors(&leaf, spec.parent.as_deref())?;
    let layers: Vec<Arc<LayerFile>> = std::iter::once(leaf).chain(ancestors).collect();
    let chain = spec.parents.chain(&layers)?;
    Ok(rest.parts(spec, layers, chain))
}

/// Open the leaf, and choose how its file is accessed.
fn open_leaf(spec: &OpenSpec, path: &Path) -> Result<(Arc<LayerFile>, Rest), FileError> {
    let held: Vec<&FileBacking> =
        spec.predecessor.iter().flat_map(|disk| disk.layers()).map(|layer| layer.file()).collect();
    let (format, read_only, sector_size_bytes) = (spec.format, spec.read_only, spec.sector_size_bytes);
    let opened = open_layer(&LayerSpec { path, format, read_only, sector_size_bytes, held: &held })?;
    let OpenLayer { mut layer, engine, disk_id, physical_sector_bytes, mut notes } = opened;
    let alignment_bytes = match format {
        DiskFormat::Vhd => VHD_ALIGNMENT_BYTES,
        _ => layer.sector_size_bytes,
    };
    notes.extend(layer.file.for_service(read_only, spec.cache, alignment_bytes)?);
    Ok((Arc::new(layer), Rest { engine, disk_id, physical_sector_bytes, notes }))
}

/// What one WRITE ATOMIC may write, in bytes, and of which it is a multiple. A leaf's engine says whether it can: a
/// file that is overwritten in place is not promised to have all of several blocks or none after a power cut. Disks in
/// memory have nothing that could fail by parts; their writes are as long as one window of a command.
fn atomic_write_bytes(parts: &Parts) -> (u32, u32) {
    match (&parts.backing, &parts.engine) {
        (Backing::Null | Backing::Memory(_), _) => (BURST_LENGTH_MAX, parts.sector_size_bytes),
        (Backing::Chain { .. }, Some(engine)) => {
            (engine.atomic_write_bytes_max().min(ATOMIC_WRITE_BYTES_MAX), ATOMIC_WRITE_BYTES)
        }
        (Backing::Chain { .. }, None) => (0, ATOMIC_WRITE_BYTES),
    }
}

/// What shards carry out for every disk beyond the basic commands.
const CARRIED_OUT: Features = Features::COMPARE_AND_WRITE
    .and(Features::OR_WRITE)
    .and(Features::RESERVATIONS)
    .and(Features::PORT_GROUPS)
    .and(Features::EXPLICIT_ACCESS)
    .and(Features::MODE_SELECT)
    .and(Features::LOG_DATA)
    .and(Features::FORMAT)
    .and(Features::COPY)
    .and(Features::TIMESTAMP)
    .and(Features::ECHO_BUFFER);

/// The SCSI description. Write caching is reported for files: a write is answered when it has left the process, and is
/// durable after SYNCHRONIZE CACHE or with FUA. Memory and null disks have nothing behind them that a flush could
/// reach.
fn unit_for(spec: &OpenSpec, parts: &Parts, read_only: bool) -> Result<Unit, FileError> {
    let size = |why| FileError::Size { size_bytes: parts.size_bytes, why };
    let block_length =
        BlockLength::from_bytes(parts.sector_size_bytes).ok_or(FileError::SectorSize(parts.sector_size_bytes))?;
    let physical = parts.physical_sector_bytes.max(parts.sector_size_bytes);
    let granularity = unmap_granularity_bytes(parts);
    let config = UnitConfig {
        block_length,
        physical_block_exponent: (physical / parts.sector_size_bytes).trailing_zeros() as u8,
        capacity_blocks: parts.size_bytes / u64::from(parts.sector_size_bytes),
        read_only,
        write_cache_enabled: spec.format.has_file(),
        thin_provisioned: granularity.is_some(),
        unmap_granularity_blocks: granularity.map_or(0, |bytes| bytes / parts.sector_size_bytes),
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
    let unit = Unit::new(&config).map_err(|_| size("it cannot be described to an initiator"))?;
    // Where parents hold some of the blocks, they would keep them.
    let is_alone = !matches!(&parts.backing, Backing::Chain { layers, .. } if layers.len() > 1);
    let (atomic_max, atomic_granularity) = atomic_write_bytes(parts);
    let blocks = |bytes| bytes / parts.sector_size_bytes;
    let unit = unit.with_features(CARRIED_OUT).with_atomic_writes(blocks(atomic_max), blocks(atomic_granularity));
    Ok(if is_alone { unit.with_features(Features::SANITIZE) } else { unit })
}

/// Largest granularity that is told, in logical blocks. QEMU zeroes at most 65,535 blocks at once and ends with an
/// assertion when it finds that to be less than the granularity. What covers a whole block of the file is released all
/// the same.
const UNMAP_GRANULARITY_BLOCKS_MAX: u32 = 1 << 15;

/// The pieces in which a disk gives space back; `None` for one that keeps it.
fn unmap_granularity_bytes(parts: &Parts) -> Option<u32> {
    let layers = match &parts.backing {
        Backing::Null => return None,
        Backing::Memory(_) => return Some(SHARED_PAGE_BYTES.max(parts.sector_size_bytes)),
        Backing::Chain { layers, .. } => layers,
    };
    match (parts.kind, layers[0].map()) {
        (DiskKind::Fixed, _) => None,
        (_, Some(map)) => {
            let most = UNMAP_GRANULARITY_BLOCKS_MAX * parts.sector_size_bytes;
            Some((map.shape().block_bytes() as u32).min(most))
        }
        (_, None) => Some(RAW_GRANULARITY_BYTES.max(parts.sector_size_bytes)),
    }
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
