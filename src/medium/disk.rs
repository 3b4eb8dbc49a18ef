//! A disk that is being served: immutable description, shared by all shards.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use uuid::Uuid;

use super::{DiskFormat, DiskKind};
use crate::mem::SharedMemory;
use crate::observe::DiskStats;
use crate::ring::Fd;
use crate::scsi::Unit;
use crate::units::{DiskId, ShardId};
use crate::vhdx::{BatView, Geometry};

/// What stores the blocks.
pub enum Backing {
    /// Nothing.
    Null,
    /// Anonymous memory.
    Memory(SharedMemory),
    /// A file, byte for byte.
    Raw(FileBacking),
    /// A VHDX file.
    Vhdx {
        /// The file.
        file: FileBacking,
        /// The disk's shape.
        geometry: Geometry,
        /// Where its blocks are.
        view: Arc<BatView>,
    },
}

/// An open, locked file.
pub struct FileBacking {
    /// The descriptor that shards use.
    pub(super) file: File,
    /// Holds the lock; a second open description where the first is direct.
    pub(super) _lock: Option<File>,
    pub(super) path: PathBuf,
    pub(super) direct: bool,
}

/// Whether a disk can be trusted with writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// All is well.
    Good,
    /// A write, a flush or a metadata change failed on the host: writes are refused until the disk is opened anew.
    Poisoned,
}

/// A disk, shared by all shards. Dropping the last reference closes the file and releases its lock.
pub struct Disk {
    pub(super) id: DiskId,
    pub(super) name: String,
    pub(super) uuid: Uuid,
    pub(super) format: DiskFormat,
    pub(super) kind: DiskKind,
    pub(super) size_bytes: u64,
    pub(super) read_only: bool,
    pub(super) home: ShardId,
    pub(super) unit: Unit,
    pub(super) unit_read_only: Unit,
    pub(super) backing: Backing,
    pub(super) poisoned: AtomicBool,
    /// One for each shard, made when that shard first needs it: a disk that few shards reach costs little.
    pub(super) stats: Box<[OnceLock<DiskStats>]>,
    pub(super) notes: Vec<String>,
}

impl FileBacking {
    /// The descriptor for the ring.
    pub fn fd(&self) -> Fd {
        Fd(self.file.as_raw_fd())
    }

    /// Whether I/O goes around the page cache.
    pub fn direct(&self) -> bool {
        self.direct
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Disk {
    /// Its number while the process lives.
    pub fn id(&self) -> DiskId {
        self.id
    }

    /// Its name, for people.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The identity that initiators see in the device identification page.
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// What stores it.
    pub fn format(&self) -> DiskFormat {
        self.format
    }

    /// How it gets its space.
    pub fn kind(&self) -> DiskKind {
        self.kind
    }

    /// Size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Bytes of a logical block: 512 or 4096.
    pub fn block_length(&self) -> u32 {
        self.unit.block_length().bytes()
    }

    /// Writes are refused.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// The shard that alone changes its metadata.
    pub fn home(&self) -> ShardId {
        self.home
    }

    /// Its SCSI description; the second form is for mappings that refuse writes.
    pub fn unit(&self, read_only: bool) -> &Unit {
        if read_only { &self.unit_read_only } else { &self.unit }
    }

    /// What stores the blocks.
    pub fn backing(&self) -> &Backing {
        &self.backing
    }

    /// Oddities that were found when the disk was opened, one line each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Counters of one shard. The first call for a shard allocates; later ones do not.
    pub fn stats(&self, shard: ShardId) -> &DiskStats {
        self.stats[usize::from(shard.0)].get_or_init(DiskStats::new)
    }

    /// Counters of every shard that has any.
    pub fn all_stats(&self) -> impl Iterator<Item = &DiskStats> {
        self.stats.iter().filter_map(OnceLock::get)
    }

    /// The file behind the disk.
    pub fn file(&self) -> Option<&FileBacking> {
        match &self.backing {
            Backing::Null | Backing::Memory(_) => None,
            Backing::Raw(file) | Backing::Vhdx { file, .. } => Some(file),
        }
    }

    /// Path of the file behind the disk.
    pub fn path(&self) -> Option<&Path> {
        self.file().map(FileBacking::path)
    }

    /// Space that the disk's file takes on its file system.
    pub fn allocated_bytes(&self) -> u64 {
        self.file()
            .and_then(|file| file.file.metadata().ok())
            .map_or(0, |metadata| metadata.blocks().saturating_mul(512))
    }

    /// Payload block size of a VHDX in bytes.
    pub fn payload_block_bytes(&self) -> Option<u64> {
        match &self.backing {
            Backing::Vhdx { geometry, .. } => Some(u64::from(geometry.block_size_bytes)),
            _ => None,
        }
    }

    /// Whether it can be trusted with writes.
    pub fn health(&self) -> Health {
        let engine_poisoned = matches!(&self.backing, Backing::Vhdx { view, .. } if view.poisoned());
        if engine_poisoned || self.poisoned.load(Ordering::Acquire) { Health::Poisoned } else { Health::Good }
    }

    /// Stop acknowledging writes: one has failed on the host, or a flush has.
    pub fn poison(&self) {
        self.poisoned.store(true, Ordering::Release);
        if let Backing::Vhdx { view, .. } = &self.backing {
            view.poison();
        }
    }
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk").field("id", &self.id).field("name", &self.name).field("format", &self.format).finish()
    }
}
