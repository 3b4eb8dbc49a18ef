//! A disk that is being served: immutable description, shared by all shards.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use uuid::Uuid;

use super::layer::{FileBacking, LayerFile};
use super::space::Space;
use super::{DiskFormat, DiskKind, FileError, Parents, Payloads, Trouble};
use crate::blocks::{BlockMap, Chain, Level, LevelFault, Status};
use crate::mem::SharedMemory;
use crate::observe::DiskStats;
use crate::ring::Fd;
use crate::scsi::{LogData, TokenTable, Unit};
use crate::units::{DiskId, ShardId};

/// What stores the blocks.
pub enum Backing {
    /// Nothing.
    Null,
    /// Anonymous memory.
    Memory(SharedMemory),
    /// Files.
    Chain {
        /// The leaf, its parent and so on: as [`Extent::File`](crate::blocks::Extent) numbers them.
        layers: Box<[Arc<LayerFile>]>,
        /// Where the bytes are.
        chain: Chain,
    },
}

/// The counts of a [`LogData`].
#[derive(Default)]
pub(super) struct LogBase {
    reads: AtomicU64,
    writes: AtomicU64,
    bytes_received: AtomicU64,
    bytes_transmitted: AtomicU64,
    read_us: AtomicU64,
    write_us: AtomicU64,
    idle_us: AtomicU64,
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
    /// Shared with the forms of the disk that stand on the same leaf.
    pub(super) poisoned: Arc<AtomicBool>,
    /// Shared with all forms of the disk.
    pub(super) trouble: Arc<Trouble>,
    pub(super) space: Arc<Space>,
    /// Commands that have ended before their writes came back, on all shards.
    pub(super) orphans: Arc<AtomicU32>,
    /// What had been counted when LOG SELECT set the log back. Shared with all forms of the disk.
    pub(super) log_base: Arc<LogBase>,
    /// One for each shard, made when that shard first needs it: a disk that few shards reach costs little.
    pub(super) stats: Arc<[OnceLock<DiskStats>]>,
    pub(super) notes: Vec<String>,
    /// Tokens that stand for some of what it holds. Shared with its later forms.
    pub(super) tokens: Arc<TokenTable>,
    /// A raw file without any space of its own, and nothing has been planned to be written since that was seen.
    pub(super) is_hollow: AtomicBool,
    /// Shared with its later forms.
    pub(super) payloads: Arc<Payloads>,
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

    /// The most bytes of one WRITE ATOMIC; 0 where it is not served.
    pub fn atomic_write_bytes(&self) -> u64 {
        u64::from(self.unit.atomic_write_blocks_max()) << self.unit.block_length().shift()
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

    /// The valid tokens of copy offload.
    pub fn tokens(&self) -> &TokenTable {
        &self.tokens
    }

    /// Where the data of atomic writes waits.
    pub fn payloads(&self) -> &Payloads {
        &self.payloads
    }

    /// Counters of one shard. The first call for a shard allocates; later ones do not.
    pub fn stats(&self, shard: ShardId) -> &DiskStats {
        self.stats[usize::from(shard.0)].get_or_init(DiskStats::new)
    }

    /// Counters of every shard that has any.
    pub fn all_stats(&self) -> impl Iterator<Item = &DiskStats> {
        self.stats.iter().filter_map(OnceLock::get)
    }

    /// Its layers, leaf first; none without a file.
    pub fn layers(&self) -> &[Arc<LayerFile>] {
        match &self.backing {
            Backing::Null | Backing::Memory(_) => &[],
            Backing::Chain { layers, .. } => layers,
        }
    }

    /// The leaf.
    pub fn leaf(&self) -> Option<&Arc<LayerFile>> {
        self.layers().first()
    }

    /// Where its bytes are, when they are in files.
    pub fn chain(&self) -> Option<&Chain> {
        match &self.backing {
            Backing::Null | Backing::Memory(_) => None,
            Backing::Chain { chain, .. } => Some(chain),
        }
    }

    /// Whether there is anything at a place, and for how many of the next `len_bytes` bytes that is so, at least; where
    /// there is nothing it reads as zeros. `None`: this kind of disk does not tell, or the range is not within it.
    pub fn status(&self, offset_bytes: u64, len_bytes: u64) -> Option<Result<Status, LevelFault>> {
        if offset_bytes + len_bytes > self.size_bytes {
            return None;
        }
        match &self.backing {
            Backing::Null => None,
            Backing::Memory(memory) => {
                let (mapped, len_bytes) = memory.status(offset_bytes, len_bytes);
                Some(Ok(Status { mapped, len_bytes }))
            }
            Backing::Chain { .. } if self.is_hollow.load(Ordering::Acquire) => {
                Some(Ok(Status { mapped: false, len_bytes }))
            }
            Backing::Chain { chain, .. } => {
                let is_inside = offset_bytes + len_bytes <= chain.size_bytes();
                is_inside.then(|| chain.status(offset_bytes, len_bytes))
            }
        }
    }

    /// All space of the disk has been given back while nobody could write to it. A raw file has no map that tells of
    /// its space; what is known of it is all or nothing, until the next write.
    pub fn was_emptied(&self) {
        if self.format == DiskFormat::Raw {
            self.is_hollow.store(true, Ordering::Release);
        }
    }

    /// A write is planned.
    #[inline]
    pub(super) fn fills(&self) {
        if self.is_hollow.load(Ordering::Relaxed) {
            self.is_hollow.store(false, Ordering::Release);
        }
    }

    /// The leaf's block map, if it has one.
    pub fn map(&self) -> Option<&Arc<BlockMap>> {
        self.leaf().and_then(|leaf| leaf.map())
    }

    /// The descriptor of a layer's file; the number is one of a plan.
    #[inline]
    pub fn fd_of(&self, layer: u16) -> Fd {
        self.layers()[usize::from(layer)].file().fd()
    }

    /// The descriptor of the file whose map a level of the chain is.
    pub fn fd_of_level(&self, level: u16) -> Option<Fd> {
        match self.chain()?.levels().get(usize::from(level))? {
            Level::Map { layer, .. } => Some(self.fd_of(*layer)),
            Level::Raw { .. } | Level::Flat { .. } => None,
        }
    }

    /// Whether bytes past the end of its files are zeros: where a format lets the last block be cut short.
    pub fn ends_with_zeros(&self) -> bool {
        self.map().is_some() || self.layers().len() > 1
    }

    /// The leaf's file.
    pub fn file(&self) -> Option<&FileBacking> {
        self.leaf().map(|leaf| leaf.file())
    }

    /// Path of the file behind the disk.
    pub fn path(&self) -> Option<&Path> {
        self.file().map(FileBacking::path)
    }

    /// Space that the leaf's file takes on its file system.
    pub fn allocated_bytes(&self) -> u64 {
        self.leaf().map_or(0, |leaf| leaf.allocated_bytes())
    }

    /// Block size in bytes, where the leaf has blocks.
    pub fn payload_block_bytes(&self) -> Option<u64> {
        self.map().map(|map| map.shape().block_bytes())
    }

    /// Whether it can be trusted with writes.
    pub fn health(&self) -> Health {
        let poisoned = self.poisoned.load(Ordering::Acquire) || self.map().is_some_and(|map| map.poisoned());
        if poisoned { Health::Poisoned } else { Health::Good }
    }

    /// Stop acknowledging writes: one has failed on the host, or a flush has.
    pub fn poison(&self) {
        self.poisoned.store(true, Ordering::Release);
        if let Some(map) = self.map() {
            map.poison();
        }
    }

    /// What the host did to its file.
    pub fn trouble(&self) -> &Trouble {
        &self.trouble
    }

    /// What of the log's counts is not told any more.
    pub fn log_base(&self) -> LogData {
        let base = &*self.log_base;
        LogData {
            reads: base.reads.load(Ordering::Relaxed),
            writes: base.writes.load(Ordering::Relaxed),
            bytes_received: base.bytes_received.load(Ordering::Relaxed),
            bytes_transmitted: base.bytes_transmitted.load(Ordering::Relaxed),
            read_us: base.read_us.load(Ordering::Relaxed),
            write_us: base.write_us.load(Ordering::Relaxed),
            idle_us: base.idle_us.load(Ordering::Relaxed),
            ..LogData::default()
        }
    }

    /// The log tells what is counted from now on, when it has come to this.
    pub fn set_log_base(&self, counted: &LogData) {
        let base = &*self.log_base;
        base.reads.store(counted.reads, Ordering::Relaxed);
        base.writes.store(counted.writes, Ordering::Relaxed);
        base.bytes_received.store(counted.bytes_received, Ordering::Relaxed);
        base.bytes_transmitted.store(counted.bytes_transmitted, Ordering::Relaxed);
        base.read_us.store(counted.read_us, Ordering::Relaxed);
        base.write_us.store(counted.write_us, Ordering::Relaxed);
        base.idle_us.store(counted.idle_us, Ordering::Relaxed);
    }

    /// Whether something may still be written by a command that has ended.
    #[inline]
    pub fn has_orphans(&self) -> bool {
        self.orphans.load(Ordering::Acquire) > 0
    }

    /// A command ends before its writes have come back.
    pub fn orphan_begun(&self) {
        self.orphans.fetch_add(1, Ordering::AcqRel);
    }

    /// They have.
    pub fn orphan_ended(&self) {
        self.orphans.fetch_sub(1, Ordering::AcqRel);
    }

    /// The same disk with other layers below its leaf (merged, moved, or newly folded).
    pub fn rebased(&self, parents: &Parents, lower: Vec<Arc<LayerFile>>) -> Result<Arc<Self>, FileError> {
        let leaf = self.leaf().ok_or(FileError::Spec(self.format.as_str(), "has no file"))?;
        let layers: Vec<Arc<LayerFile>> = std::iter::once(Arc::clone(leaf)).chain(lower).collect();
        let chain = parents.chain(&layers)?;
        Ok(Arc::new(Self {
            id: self.id,
            name: self.name.clone(),
            uuid: self.uuid,
            format: self.format,
            kind: self.kind,
            size_bytes: self.size_bytes,
            read_only: self.read_only,
            home: self.home,
            unit: self.unit.clone(),
            unit_read_only: self.unit_read_only.clone(),
            backing: Backing::Chain { layers: layers.into(), chain },
            poisoned: Arc::clone(&self.poisoned),
            trouble: Arc::clone(&self.trouble),
            space: Arc::clone(&self.space),
            orphans: Arc::clone(&self.orphans),
            log_base: Arc::clone(&self.log_base),
            stats: Arc::clone(&self.stats),
            notes: self.notes.clone(),
            tokens: Arc::clone(&self.tokens),
            is_hollow: AtomicBool::new(false),
            payloads: Arc::clone(&self.payloads),
        }))
    }
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk").field("id", &self.id).field("name", &self.name).field("format", &self.format).finish()
    }
}
