//! The file beside a disk's own file that its reservations are kept in (APTPL): it goes where the disk goes.
//!
//! It is one place in the form of [`place`], and says by UUID whose it is, and by name where two disks have one UUID.
//! Whoever has it open has it locked, so that no two disks, and no two servers, ever write to one. A copy of an image
//! has none: reservations are not inherited.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};
use uuid::Uuid;

use super::config::Config;
use super::ledger::read_copies;
use super::state::{StateDir, sync_folder_of};
use crate::medium::{Disk, DiskFormat};
use crate::ring::Fd;
use crate::scsi::reservations::place::{self, Kept, Owner};
use crate::shard::ReservationStore;

/// The end of such a file's name.
const SUFFIX: &str = ".reservations";

/// The open file of a disk, locked.
#[derive(Debug)]
pub(super) struct Beside {
    pub(super) path: PathBuf,
    file: Arc<OwnedFd>,
    /// What it holds, when something whole is in it.
    pub(super) kept: Option<Kept>,
    /// False: it can only be read.
    pub(super) is_writable: bool,
}

impl Beside {
    /// Where the disk's home shard writes from now on. `sequence` is of the copy that holds.
    pub(super) fn store(&self, owner: Owner, sequence: u64) -> ReservationStore {
        use std::os::fd::AsRawFd;
        ReservationStore {
            file: Fd(self.file.as_raw_fd()),
            owned: Some(Arc::clone(&self.file)),
            offset_bytes: 0,
            owner,
            sequence,
            asks_for_own: false,
        }
    }

    /// Write a state that was kept somewhere else, durably. Blocking.
    ///
    /// # Errors
    /// The file system refuses.
    pub(super) fn take_over(&self, owner: &Owner, sequence: u64, state: &[u8]) -> io::Result<()> {
        let file = File::from(self.file.try_clone()?);
        file.write_all_at(&place::copy(owner, sequence, state), place::copy_offset_bytes(sequence))?;
        file.sync_all()
    }
}

/// Whose a disk's reservations are.
pub(super) fn owner(disk: &Disk) -> Owner {
    Owner { uuid: *disk.uuid().as_bytes(), name: disk.name().to_owned() }
}

/// The names that the file can have for an image, the one for a new file first. A VHDX carries its identity and is
/// found by that, whatever its files are called after snapshots and merges; other images are by their names, without
/// what a snapshot puts behind a `~`.
fn names(image: &Path, format: DiskFormat, uuid: Uuid) -> [PathBuf; 2] {
    let stem = image.file_stem().and_then(OsStr::to_str);
    let mut by_name = match stem.and_then(|stem| stem.rsplit_once('~')) {
        Some((stem, _)) => {
            let extension = image.extension().and_then(OsStr::to_str).unwrap_or_default();
            OsString::from(format!("{stem}.{}", if extension == "avhd" { "vhd" } else { extension }))
        }
        None => image.file_name().map(OsString::from).unwrap_or_default(),
    };
    by_name.push(SUFFIX);
    let (by_name, by_identity) = (image.with_file_name(by_name), image.with_file_name(format!("{uuid}{SUFFIX}")));
    if format == DiskFormat::Vhdx { [by_identity, by_name] } else { [by_name, by_identity] }
}

/// Whether a disk can have such a file: it is in regular files. Blocking.
pub(super) fn is_possible(disk: &Disk) -> bool {
    disk.leaf().is_some_and(|leaf| fs::metadata(leaf.path()).is_ok_and(|found| found.is_file()))
}

/// Where a disk's file is looked for, and how it is known.
#[derive(Clone, Debug)]
pub(super) struct Search {
    pub(super) places: Vec<PathBuf>,
    pub(super) owner: Owner,
    /// The one place is where it was last.
    pub(super) is_recorded: bool,
    /// Another disk has the same identity, and may have a file in these places: only what was written under this disk's
    /// name is this disk's.
    pub(super) has_twin: bool,
}

/// Where to look for a disk's file: where it was last, or beside its images.
pub(super) fn search(
    state: &StateDir,
    config: &Config,
    disk: &str,
    images: impl IntoIterator<Item = PathBuf>,
) -> Search {
    let of = config.disks.get(disk);
    let owner = Owner { uuid: *of.map_or(Uuid::nil(), |of| of.uuid).as_bytes(), name: disk.to_owned() };
    let mut search = Search { places: Vec::new(), owner, is_recorded: false, has_twin: false };
    let Some(of) = of else { return search };
    if let Some(recorded) = &of.reservations {
        return Search { places: vec![state.absolute(recorded)], is_recorded: true, ..search };
    }
    let mut seen = HashSet::new();
    let all = images.into_iter().flat_map(|image| names(&image, of.format, of.uuid));
    search.places = all.filter(|path| seen.insert(path.clone())).collect();
    search.has_twin = config.disks.iter().any(|(other, twin)| other != disk && twin.uuid == of.uuid);
    search
}

impl Search {
    /// Whether this is in the disk's file.
    fn knows(&self, kept: &Kept) -> bool {
        if self.has_twin { kept.owner == self.owner } else { kept.owner.uuid == self.owner.uuid }
    }
}

/// Open the first of the files that is the disk's. Blocking.
pub(super) fn find(search: &Search) -> Option<Beside> {
    search.places.iter().find_map(|path| match open(path) {
        Ok(beside) if beside.kept.as_ref().map_or(!search.has_twin, |kept| search.knows(kept)) => Some(beside),
        Err(error) if search.has_twin && error.kind() == io::ErrorKind::WouldBlock => None,
        Ok(_) if search.has_twin => None,
        Ok(_) => {
            tracing::warn!("{} is of another disk, and is left alone", path.display());
            None
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!("{}: reservations in it are not known: {error}", path.display());
            None
        }
    })
}

/// The files that go when the disk does: those that say that they are its, and the one that it was last in, unless that
/// says something else. They are not locked, for a shard may still have one. Blocking.
pub(super) fn owned(search: &Search) -> Vec<PathBuf> {
    let is_owned = |path: &&PathBuf| match kept_in(path) {
        Ok(Some(kept)) => search.knows(&kept),
        Ok(None) => search.is_recorded,
        // Without knowing whose it is.
        Err(_) => false,
    };
    search.places.iter().filter(is_owned).cloned().collect()
}

/// What a file holds. Blocking.
fn kept_in(path: &Path) -> io::Result<Option<Kept>> {
    let copies = read_copies(&File::open(path)?, 0)?;
    Ok(place::kept([&copies[0], &copies[1]]))
}

/// The identity that the file beside an image without one of its own knows it by. Blocking.
pub(super) fn identity_of(image: &Path) -> Option<Uuid> {
    let [by_name, _] = names(image, DiskFormat::Raw, Uuid::nil());
    Some(Uuid::from_bytes(kept_in(&by_name).ok()??.owner.uuid))
}

/// Make the file, or take the one that an interrupted making has left, durably. Blocking.
///
/// # Errors
/// The file system refuses, or files of others have all names that it could have.
pub(super) fn make(disk: &Disk) -> io::Result<Beside> {
    let leaf = disk.leaf().ok_or(io::ErrorKind::Unsupported)?;
    let mut refused = io::Error::from(io::ErrorKind::AlreadyExists);
    for path in names(leaf.path(), disk.format(), disk.uuid()) {
        let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        match created.map(drop) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Ok(()) => sync_folder_of(&path)?,
            Err(_) => {}
        }
        match open(&path) {
            Ok(beside) if !beside.is_writable => {}
            Ok(beside) => match &beside.kept {
                // A disk of the same identity is another one all the same.
                Some(kept) if kept.owner != owner(disk) => {}
                _ => return Ok(beside),
            },
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

/// Open and lock a file, and read what is in it.
fn open(path: &Path) -> io::Result<Beside> {
    let (file, is_writable) = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => (file, true),
        Err(e) if matches!(e.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) => {
            (File::open(path)?, false)
        }
        Err(e) => return Err(e),
    };
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    let copies = read_copies(&file, 0)?;
    let kept = place::kept([&copies[0], &copies[1]]);
    if kept.is_none() && place::is_used([&copies[0], &copies[1]]) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "both copies in it are damaged"));
    }
    Ok(Beside { path: path.to_owned(), file: Arc::new(file.into()), kept, is_writable })
}
