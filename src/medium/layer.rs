//! One file of a disk: the open file, what it is, and its block map.
//!
//! A layer is shared by every disk that stands on it. The file's lock belongs to the layer: exclusive while it is a
//! leaf that can be written, shared while it is only read. A parent is read through the page cache, which so becomes
//! the one cache of all its children; the leaf of a disk that is served is opened direct.

use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::image::{direct_io, open_file};
use super::{Cache, DiskFormat, DiskKind, FileError, ImageIdentity, ParentLink};
use crate::blocks::{BlockMap, Level};
use crate::ring::{Fd, file};

/// How long to wait for a file's lock: a killed server's rings hold on to its files for a moment after it is gone.
const LOCK_PATIENCE: Duration = Duration::from_millis(1500);

/// An open, locked file.
pub struct FileBacking {
    /// What shards use.
    file: Arc<File>,
    /// Holds the lock; the same unless the first is direct.
    locked: Arc<File>,
    path: PathBuf,
    direct: bool,
}

/// A file, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    device: u64,
    inode: u64,
}

/// One layer of a disk.
pub struct LayerFile {
    pub(super) file: FileBacking,
    pub(super) id: FileId,
    pub(super) format: DiskFormat,
    pub(super) kind: DiskKind,
    pub(super) size_bytes: u64,
    pub(super) sector_size_bytes: u32,
    /// For the control plane only.
    pub(super) identity: Mutex<ImageIdentity>,
    pub(super) parent: Option<ParentLink>,
    /// Where its blocks are; `None`: byte for byte from the file's start.
    pub(super) map: Option<Arc<BlockMap>>,
}

impl FileBacking {
    /// Open and lock a file: exclusively to write it. `held` are locks of this process that the file may be under
    /// already; then no other is taken.
    pub(super) fn open(path: &Path, read_only: bool, held: &[&FileBacking]) -> Result<Self, FileError> {
        let file = Arc::new(open_file(path, read_only)?);
        let id = FileId::of(&file, path)?;
        let mut own = None;
        for other in held {
            if FileId::of(&other.locked, &other.path)? == id {
                own = Some(Arc::clone(&other.locked));
            }
        }
        let locked = match own {
            Some(locked) => locked,
            None => {
                lock(&file, path, read_only)?;
                Arc::clone(&file)
            }
        };
        Ok(Self { file, locked, path: path.to_owned(), direct: false })
    }

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

    /// The file as it was opened: through the page cache unless [`Self::direct`].
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Use direct I/O from now on where that was asked for and is possible; otherwise says why not. What was written
    /// through the page cache is made durable first.
    pub(super) fn for_service(
        &mut self,
        read_only: bool,
        cache: Cache,
        alignment_bytes: u32,
    ) -> Result<Option<String>, FileError> {
        if !read_only {
            self.file.sync_all().map_err(|source| FileError::io("flush", &self.path, source))?;
        }
        if cache == Cache::Buffered {
            return Ok(None);
        }
        match direct_io(&self.file, &self.path, read_only, alignment_bytes)? {
            Ok(direct) => {
                self.file = Arc::new(direct);
                self.direct = true;
                Ok(None)
            }
            Err(why) => Ok(Some(format!("served through the page cache: {why}"))),
        }
    }
}

impl FileId {
    pub(super) fn of(file: &File, path: &Path) -> Result<Self, FileError> {
        let metadata = file.metadata().map_err(|source| FileError::io("look at", path, source))?;
        Ok(Self { device: metadata.dev(), inode: metadata.ino() })
    }
}

impl LayerFile {
    /// The open file.
    pub fn file(&self) -> &FileBacking {
        &self.file
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Which file it is.
    pub fn id(&self) -> FileId {
        self.id
    }

    /// Its format.
    pub fn format(&self) -> DiskFormat {
        self.format
    }

    /// How it gets its space.
    pub fn kind(&self) -> DiskKind {
        self.kind
    }

    /// The size of the disk that it is, in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Logical sector size in bytes: 512 or 4096.
    pub fn sector_size_bytes(&self) -> u32 {
        self.sector_size_bytes
    }

    /// What children know it by, as it was when the file was opened or became a parent.
    pub fn identity(&self) -> ImageIdentity {
        *self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_identity(&self, identity: ImageIdentity) {
        *self.identity.lock().unwrap_or_else(PoisonError::into_inner) = identity;
    }

    /// Where its parent is said to be.
    pub fn parent(&self) -> Option<&ParentLink> {
        self.parent.as_ref()
    }

    /// Where its blocks are; `None`: byte for byte from the file's start.
    pub fn map(&self) -> Option<&Arc<BlockMap>> {
        self.map.as_ref()
    }

    /// Space that its file takes on its file system.
    pub fn allocated_bytes(&self) -> u64 {
        self.file.file.metadata().map_or(0, |metadata| metadata.blocks().saturating_mul(512))
    }

    /// The length of its file.
    pub fn file_len_bytes(&self) -> u64 {
        self.file.file.metadata().map_or(0, |metadata| metadata.len())
    }

    /// The level of a chain that it is as layer number `layer`.
    pub fn level(&self, layer: u16) -> Level {
        match &self.map {
            Some(map) => Level::Map { layer, map: Arc::clone(map) },
            None => Level::Raw { layer, size_bytes: self.size_bytes },
        }
    }

    /// The same file once more, to read through the page cache: for jobs.
    pub fn open_reader(&self) -> Result<File, FileError> {
        self.reopen(false)
    }

    /// The same to write as well; for a leaf that no shard serves.
    pub(super) fn open_writer(&self) -> Result<File, FileError> {
        self.reopen(true)
    }

    /// The lock becomes a shared one: the layer is only read from now on, by others too.
    pub fn share_lock(&self) -> Result<(), FileError> {
        lock(&self.file.locked, self.path(), true)
    }

    /// The lock becomes an exclusive one, for a file that is going to be merged into. [`Self::share_lock`] ends that.
    /// Refused while another process reads the file.
    pub fn lock_alone(&self) -> Result<(), FileError> {
        lock(&self.file.locked, self.path(), false).inspect_err(|_| {
            // Trying gave the shared lock up. The refusal matters more than a second one.
            let _ = self.share_lock();
        })
    }

    /// Through the descriptor, so that it is the same file even if the name has moved.
    fn reopen(&self, write: bool) -> Result<File, FileError> {
        OpenOptions::new()
            .read(true)
            .write(write)
            .custom_flags(libc::O_CLOEXEC)
            .open(format!("/proc/self/fd/{}", self.file.file.as_raw_fd()))
            .inspect(file::note_remote)
            .map_err(|source| FileError::io("open", self.path(), source))
    }
}

/// Lock a file, or turn the lock that this opening of it holds into another one.
pub(super) fn lock(file: &File, path: &Path, shared: bool) -> Result<(), FileError> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        let locked = if shared { file.try_lock_shared() } else { file.try_lock() };
        match locked {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => sleep(Duration::from_millis(20)),
            Err(TryLockError::WouldBlock) => return Err(FileError::InUse(path.to_owned())),
            Err(TryLockError::Error(source)) => return Err(FileError::io("lock", path, source)),
        }
    }
}

impl fmt::Debug for LayerFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LayerFile").field("path", &self.path()).field("format", &self.format).finish_non_exhaustive()
    }
}
