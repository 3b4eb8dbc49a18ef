//! Changes to an image that nobody serves at this moment: its size, its parent, its user metadata. Each is made whole
//! or not at all, whenever the power fails. Blocking.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, fallocate};
use uuid::Uuid;

use super::blocking::BlockingDisk;
use super::create::{preallocate, random_guid};
use super::describe::describe;
use super::image::{format_of, is_vhdx, open_file};
use super::layer::lock;
use super::open::{OpenSpec, open};
use super::storage::FileStorage;
use super::{Cache, Disk, DiskFormat, FileError, ImageDescription, ImageIdentity, ParentLink, Parents};
use crate::blocks::{BlockMap, Chain, Engine, Level, MapLimits, StorageError};
use crate::units::{DiskId, ShardId};
use crate::vhd;
use crate::vhdx::{self, Guid, GuidSource, ParentLocator};

/// Who keeps others away from the file meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// The caller holds its lock already.
    Held,
    /// Its lock is taken for the time of the change.
    Lock,
}

/// A user metadata item without its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserItem {
    /// What it is.
    pub id: Uuid,
    /// Bytes of its value.
    pub len_bytes: u64,
}

/// How to change an image's size.
#[derive(Clone, Copy, Debug, Default)]
pub struct ResizePlan {
    /// The new size in bytes.
    pub size_bytes: u64,
    /// Shrinking may cut off data.
    pub allow_shrink: bool,
    /// The size of the parent of a differencing image.
    pub parent_size_bytes: Option<u64>,
    /// All space of a raw image is reserved.
    pub reserve: bool,
    /// What the identity becomes, in formats where it changes with the content; random unless said otherwise.
    pub identifier: Option<Guid>,
}

fn writable(path: &Path, hold: Hold) -> Result<File, FileError> {
    let file = open_file(path, false)?;
    if hold == Hold::Lock {
        lock(&file, path, false)?;
    }
    Ok(file)
}

/// Open a file under an exclusive lock, which lasts as long as what is given.
pub fn lock_alone(path: &Path) -> Result<File, FileError> {
    writable(path, Hold::Lock)
}

/// The format of a file: that of its signature, and raw where it has none.
pub fn format_of_file(path: &Path) -> Result<DiskFormat, FileError> {
    format_of(&open_file(path, true)?, path)
}

fn guids(given: Option<Guid>) -> GuidSource {
    Box::new(move || given.unwrap_or_else(random_guid))
}

fn edited<T>(path: &Path, result: Result<T, vhdx::EditError>) -> Result<T, FileError> {
    result.map_err(|reason| FileError::Edit { path: path.to_owned(), reason })
}

/// Change an image's size.
pub fn resize(path: &Path, hold: Hold, plan: ResizePlan) -> Result<(), FileError> {
    let found = describe(path)?;
    let file = writable(path, hold)?;
    match found.format {
        DiskFormat::Vhdx => resize_vhdx(&file, path, plan),
        DiskFormat::Raw => resize_raw(&file, path, found.size_bytes, plan),
        DiskFormat::Vhd => {
            vhd::resize(&mut FileStorage(&file), plan.size_bytes)
                .map_err(|why| FileError::VhdChange { path: path.to_owned(), why })?;
            flush(&file, path)
        }
        other => Err(FileError::Spec(other.as_str(), "cannot be resized")),
    }
}

fn resize_vhdx(file: &File, path: &Path, plan: ResizePlan) -> Result<(), FileError> {
    let options = vhdx::ResizeOptions {
        allow_cut: plan.allow_shrink,
        parent_size_bytes: plan.parent_size_bytes,
        guids: guids(plan.identifier),
    };
    let resized = edited(path, vhdx::resize(&mut FileStorage(file), plan.size_bytes, options))?;
    for range in resized.allocate {
        preallocate(file, path, range.start, range.end - range.start)?;
    }
    for range in resized.released {
        // Space that a file system does not take back is used by the next blocks.
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let _ = fallocate(file, flags, range.start, range.end - range.start);
    }
    flush(file, path)
}

fn resize_raw(file: &File, path: &Path, size_bytes: u64, plan: ResizePlan) -> Result<(), FileError> {
    super::create::check_size(plan.size_bytes, 512)?;
    let kind = file.metadata().map_err(|source| FileError::io("look at", path, source))?.file_type();
    if !kind.is_file() {
        return Err(FileError::NotAFile(path.to_owned()));
    }
    if plan.size_bytes < size_bytes && !plan.allow_shrink {
        let (at, len) = (plan.size_bytes, size_bytes - plan.size_bytes);
        if holds_data(file, at, len).map_err(|source| FileError::io("read", path, source))? {
            let why = "it is in use behind that; the part can be cut off with --allow-shrink";
            return Err(FileError::Size { size_bytes: plan.size_bytes, why });
        }
    }
    file.set_len(plan.size_bytes).map_err(|source| FileError::io("set the size of", path, source))?;
    if plan.reserve && plan.size_bytes > size_bytes {
        preallocate(file, path, size_bytes, plan.size_bytes - size_bytes)?;
    }
    flush(file, path)
}

/// Whether a range holds anything but zeros.
fn holds_data(file: &File, offset_bytes: u64, len_bytes: u64) -> std::io::Result<bool> {
    use std::os::unix::fs::FileExt;
    let end = offset_bytes + len_bytes;
    let mut buffer = vec![0; 1 << 20];
    let mut at = offset_bytes;
    while at < end {
        // Holes are passed over at once.
        match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) if data < end => at = data.max(at),
            Ok(_) | Err(rustix::io::Errno::NXIO) => return Ok(false),
            Err(_) => {}
        }
        let len = (end - at).min(buffer.len() as u64) as usize;
        let read = file.read_at(&mut buffer[..len], at)?;
        if read == 0 || buffer[..read].iter().any(|byte| *byte != 0) {
            return Ok(read != 0);
        }
        at += read as u64;
    }
    Ok(false)
}

fn flush(file: &File, path: &Path) -> Result<(), FileError> {
    file.sync_all().map_err(|source| FileError::io("flush", path, source))
}

/// The locator that names `parent`, whose description is given, from an image in `folder`.
pub(super) fn locator_to(
    parent: &Path,
    of: &ImageDescription,
    folder: &Path,
    disk_id: Option<Uuid>,
) -> Result<ParentLocator, FileError> {
    match of.identity {
        ImageIdentity::Vhdx(linkage) => Ok(ParentLocator::Vhdx(vhdx::VhdxParent::new(linkage, parent, folder))),
        ImageIdentity::Raw { size_bytes, modified_ns } => {
            let disk_id = disk_id.map_or(Guid::ZERO, |id| Guid(id.to_bytes_le()));
            let raw = vhdx::RawParent::new(parent, folder, size_bytes, modified_ns, disk_id);
            Ok(ParentLocator::Raw(raw))
        }
        ImageIdentity::Vhd(_) => Err(FileError::Spec("differencing vhdx", "cannot have a vhd as its parent")),
    }
}

/// Let a differencing image name another file as its parent, which shows the same. Both paths are absolute.
pub fn set_parent(path: &Path, hold: Hold, parent: &Path) -> Result<(), FileError> {
    let (own, of) = (describe(path)?, describe(parent)?);
    let folder = path.parent().unwrap_or(Path::new("/"));
    if let (DiskFormat::Vhd, ImageIdentity::Vhd(id)) = (own.format, of.identity) {
        let file = writable(path, hold)?;
        let parent = super::link::vhd_parent(parent, id, folder);
        let set = vhd::set_parent(&mut FileStorage(&file), &parent);
        set.map_err(|why| FileError::VhdChange { path: path.to_owned(), why })?;
        return flush(&file, path);
    }
    let locator = locator_to(parent, &of, folder, own.disk_id)?;
    let file = writable(path, hold)?;
    edited(path, vhdx::set_parent(&mut FileStorage(&file), guids(None), &locator))?;
    flush(&file, path)
}

/// Let a differencing image take a parent of this identity for its own as well: a merge is about to give it that.
pub fn expect_identity(path: &Path, hold: Hold, identifier: Guid) -> Result<(), FileError> {
    let own = describe(path)?;
    let Some(ParentLink::Vhdx(ParentLocator::Vhdx(mut locator))) = own.parent else { return Ok(()) };
    if locator.matches(identifier) {
        return Ok(());
    }
    locator.linkage2 = Some(identifier);
    let file = writable(path, hold)?;
    edited(path, vhdx::set_parent(&mut FileStorage(&file), guids(None), &ParentLocator::Vhdx(locator)))?;
    flush(&file, path)
}

/// Where a raw parent is the image's, say that the parent was last changed when the image says so: whoever calls this
/// knows that nobody else has changed it.
pub fn restamp_raw_parent(path: &Path, parent: &Path) -> Result<(), FileError> {
    match describe(path)?.parent {
        Some(ParentLink::Vhdx(ParentLocator::Raw(raw))) => super::describe::set_modified_ns(parent, raw.modified_ns),
        _ => Ok(()),
    }
}

/// The user metadata of a VHDX. Nothing is written.
pub fn user_items(path: &Path) -> Result<Vec<UserItem>, FileError> {
    let file = vhdx_file(path, open_file(path, true)?)?;
    let items = vhdx::list_items(&mut FileStorage(&file))
        .map_err(|reason| FileError::Vhdx { path: path.to_owned(), reason })?;
    let entry = |item: vhdx::ItemEntry| UserItem { id: Uuid::from_bytes_le(item.id.0), len_bytes: item.len_bytes };
    Ok(items.into_iter().map(entry).collect())
}

/// The value of a user metadata item. Nothing is written.
pub fn user_item(path: &Path, id: Uuid) -> Result<Option<Vec<u8>>, FileError> {
    let file = vhdx_file(path, open_file(path, true)?)?;
    vhdx::get_item(&mut FileStorage(&file), Guid(id.to_bytes_le()))
        .map_err(|reason| FileError::Vhdx { path: path.to_owned(), reason })
}

/// Set the value of a user metadata item, or delete it.
pub fn set_user_item(path: &Path, hold: Hold, id: Uuid, value: Option<&[u8]>) -> Result<(), FileError> {
    let file = vhdx_file(path, writable(path, hold)?)?;
    let id = Guid(id.to_bytes_le());
    let mut storage = FileStorage(&file);
    edited(
        path,
        match value {
            Some(value) => vhdx::set_item(&mut storage, guids(None), id, false, value),
            None => vhdx::delete_item(&mut storage, guids(None), id),
        },
    )?;
    flush(&file, path)
}

/// User metadata is a matter of VHDX files alone.
fn vhdx_file(path: &Path, file: File) -> Result<File, FileError> {
    match is_vhdx(&file, path) {
        true => Ok(file),
        false => Err(FileError::Spec("disk that is not a VHDX", "has no user metadata")),
    }
}

/// Check a VHDX file: everything that is wrong with it. Nothing is written.
pub fn check_vhdx(path: &Path) -> Result<vhdx::CheckReport, FileError> {
    let file = open_file(path, true)?;
    vhdx::check(&mut FileStorage(&file)).map_err(|reason| FileError::io("read", path, std::io::Error::other(reason)))
}

/// Check a VHD file: everything that is wrong with it. Nothing is written.
pub fn check_vhd(path: &Path) -> Result<vhd::CheckReport, FileError> {
    let file = open_file(path, true)?;
    vhd::check(&mut FileStorage(&file)).map_err(|reason| FileError::io("read", path, std::io::Error::other(reason)))
}

/// What distinguishes two states of the metadata of an image that is being served: while it stays the same, a check of
/// the file sees one state.
pub fn metadata_mark(path: &Path) -> Result<Vec<u32>, FileError> {
    let file = open_file(path, true)?;
    let mark = match format_of(&file, path)? {
        DiskFormat::Vhdx => vhdx::metadata_mark(&mut FileStorage(&file)),
        DiskFormat::Vhd => vhd::metadata_mark(&mut FileStorage(&file)),
        _ => Ok(Vec::new()),
    };
    match mark {
        // It became shorter under our hands: no state at all.
        Err(StorageError::UnexpectedEnd(_)) => Ok(Vec::new()),
        other => other.map_err(|reason| FileError::io("read", path, std::io::Error::other(reason))),
    }
}

/// Repair a VHD file as far as nothing has to be guessed.
pub fn repair_vhd(path: &Path, hold: Hold) -> Result<vhd::Repaired, FileError> {
    let file = writable(path, hold)?;
    let repaired =
        vhd::repair(&mut FileStorage(&file)).map_err(|why| FileError::VhdChange { path: path.to_owned(), why })?;
    flush(&file, path)?;
    Ok(repaired)
}

/// Repair a VHDX file as far as nothing has to be guessed.
pub fn repair_vhdx(path: &Path, hold: Hold) -> Result<vhdx::RepairReport, FileError> {
    let file = writable(path, hold)?;
    let report = edited(path, vhdx::repair(&mut FileStorage(&file), guids(None)))?;
    flush(&file, path)?;
    Ok(report)
}

/// Open an image and its parents to read them here; `parent` is where the first parent is, if not where the image says.
pub fn open_to_read(path: &Path, parent: Option<PathBuf>) -> Result<Arc<Disk>, FileError> {
    let found = describe(path)?;
    let spec = OpenSpec {
        id: DiskId(0),
        name: String::new(),
        uuid: Uuid::nil(),
        format: found.format,
        kind: Some(found.kind),
        path: Some(path.to_owned()),
        parent,
        parents: Parents::new(),
        predecessor: None,
        size_bytes: found.size_bytes,
        sector_size_bytes: found.sector_size_bytes,
        read_only: true,
        cache: Cache::Buffered,
        home: ShardId(0),
        shards: 1,
    };
    open(spec).map(|opened| opened.disk)
}

/// One layer alone, without what is below it.
pub struct SingleLayer {
    /// The file, through the page cache.
    pub file: File,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Where its blocks are; `None`: byte for byte.
    pub map: Option<Arc<BlockMap>>,
    /// Writes it, where it has a map and is to be written.
    pub engine: Option<Box<dyn Engine>>,
    writable: bool,
}

impl SingleLayer {
    /// Open a layer whose lock the caller holds. `identifier`: what its identity becomes when it is written.
    pub fn open(path: &Path, writable: bool, identifier: Option<Guid>) -> Result<SingleLayer, FileError> {
        let found = describe(path)?;
        let file = open_file(path, !writable)?;
        match found.format {
            DiskFormat::Raw => {
                Ok(SingleLayer { file, size_bytes: found.size_bytes, map: None, engine: None, writable })
            }
            DiskFormat::Vhdx => {
                let options = vhdx::OpenOptions {
                    access: if writable { vhdx::Access::ReadWrite } else { vhdx::Access::ReadOnly },
                    guids: guids(None),
                    data_write_guid: identifier,
                };
                let open = vhdx::open(&mut FileStorage(&file), options)
                    .map_err(|reason| FileError::Vhdx { path: path.to_owned(), reason })?;
                let engine = open.engine.map(|engine| -> Box<dyn Engine> { engine });
                Ok(SingleLayer { file, size_bytes: found.size_bytes, map: Some(open.map), engine, writable })
            }
            DiskFormat::Vhd => {
                let access = if writable { vhd::Access::ReadWrite } else { vhd::Access::ReadOnly };
                let options = vhd::OpenOptions { access, limits: MapLimits::default() };
                let open = vhd::open(&mut FileStorage(&file), options)
                    .map_err(|reason| FileError::Vhd { path: path.to_owned(), reason })?;
                let engine = open.engine.map(|engine| -> Box<dyn Engine> { engine });
                Ok(SingleLayer { file, size_bytes: found.size_bytes, map: open.map, engine, writable })
            }
            other => Err(FileError::Spec(other.as_str(), "has no file")),
        }
    }

    /// The layer as a disk of its own. Where it has a parent, what it does not hold reads as zeros.
    pub fn into_disk(self) -> BlockingDisk<File> {
        let level = match self.map {
            Some(map) => Level::Map { layer: 0, map },
            None => Level::Raw { layer: 0, size_bytes: self.size_bytes },
        };
        BlockingDisk::new(Chain::new(vec![level]), vec![self.file], self.engine, self.writable)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::{Seek, SeekFrom, Write};

    #[test]
    fn a_raw_image_shrinks_only_where_nothing_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let mut file = File::create(&path).unwrap();
        file.set_len(4 << 20).unwrap();
        file.seek(SeekFrom::Start(3 << 20)).unwrap();
        file.write_all(b"x").unwrap();
        let plan = |size_bytes, allow_shrink| ResizePlan { size_bytes, allow_shrink, ..ResizePlan::default() };
        let refused = resize(&path, Hold::Lock, plan(2 << 20, false)).unwrap_err();
        assert!(refused.to_string().contains("--allow-shrink"), "{refused}");
        resize(&path, Hold::Lock, plan((3 << 20) + 4096, false)).unwrap();
        assert_eq!(describe(&path).unwrap().size_bytes, (3 << 20) + 4096);
        resize(&path, Hold::Lock, plan(1 << 20, true)).unwrap();
        resize(&path, Hold::Lock, plan(8 << 20, false)).unwrap();
        assert_eq!(describe(&path).unwrap().size_bytes, 8 << 20);
    }
}
