//! Where reservations are kept that outlast the server (APTPL): each disk has a place, which its home shard writes.
//!
//! The place of a disk that is in files is in a file beside them ([`beside`](super::beside)), made when there is first
//! something to keep. For all others, and until then, there is the server's own file: one for all disks, sparse. Where
//! both say something, the one with the higher sequence number holds. The form of a place is [`place`]'s.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::beside::{self, Beside};
use super::error::Refused;
use crate::medium::Disk;
use crate::ring::Fd;
use crate::scsi::reservations::Reservations;
use crate::scsi::reservations::place::{self, COPY_BYTES, Kept, Owner, PLACE_BYTES};
use crate::shard::ReservationStore;

/// The open file.
pub struct Ledger {
    file: Arc<OwnedFd>,
    path: PathBuf,
    /// Places of disks that the configuration has or had, by the disk's name.
    places: HashMap<String, (u64, Kept)>,
    /// Places of disks that are gone, with the sequence numbers that they have come to.
    spare: Vec<(u64, u64)>,
    /// The first place behind all that were ever used.
    end: u64,
}

impl Ledger {
    /// Open the file, and read what is in it. Places of disks of other names than `is_known` says are free.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn open(path: &Path, is_known: impl Fn(&str) -> bool) -> Result<Ledger, Refused> {
        let failed = |e: io::Error| Refused::failed(format!("cannot open {}: {e}", path.display()));
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
        let file = file.map_err(failed)?;
        let end = file.metadata().map_err(failed)?.len().div_ceil(PLACE_BYTES);
        let (mut places, mut spare) = (HashMap::new(), Vec::new());
        for number in 0..end {
            let copies = read_copies(&file, number).map_err(failed)?;
            match place::kept([&copies[0], &copies[1]]) {
                Some(kept) if is_known(&kept.owner.name) => {
                    drop(places.insert(kept.owner.name.clone(), (number, kept)))
                }
                Some(kept) => spare.push((number, kept.sequence)),
                None if place::is_used([&copies[0], &copies[1]]) => tracing::error!(
                    "place {number} of {} is damaged: the reservations of some disk are lost; it is left as it is",
                    path.display()
                ),
                None => spare.push((number, 0)),
            }
        }
        spare.reverse();
        Ok(Ledger { file: Arc::new(file.into()), path: path.to_owned(), places, spare, end })
    }

    /// What was kept of a disk's reservations, and where they are kept from now on. `found` is what is beside it.
    /// Blocking only where something moves from the server's file to the disk's.
    pub(super) fn of(&mut self, disk: &Disk, found: Option<Beside>) -> (Arc<Reservations>, ReservationStore) {
        let owner = beside::owner(disk);
        let here = self.places.remove(disk.name());
        let (number, kept_here) = match here {
            Some((number, kept)) if kept.owner == owner => (Some(number), Some(kept)),
            Some((number, kept)) => {
                // Another disk's that had this name.
                self.spare.push((number, kept.sequence));
                (None, None)
            }
            None => (None, None),
        };
        let kept_beside = found.as_ref().and_then(|found| found.kept.clone());
        let is_newer_here = |here: &Kept| kept_beside.as_ref().is_none_or(|beside| here.sequence > beside.sequence);
        let here = kept_here.filter(is_newer_here);
        let from_here = here.is_some();
        let sequence = here.as_ref().or(kept_beside.as_ref()).map_or(0, |kept| kept.sequence);
        let state = here.or(kept_beside).map(|kept| kept.state).unwrap_or_default();
        let mut reservations = Reservations::new();
        let mut is_readable = true;
        if !state.is_empty() {
            match Reservations::from_bytes(&state) {
                Ok(kept) => reservations = kept,
                Err(error) => {
                    let place = found.as_ref().filter(|_| !from_here).map_or(&self.path, |found| &found.path);
                    let (disk, place) = (disk.name(), place.display());
                    tracing::error!("disk '{disk}' starts without its reservations: {place}: {error}");
                    is_readable = false;
                }
            }
        }
        let moves = from_here && is_readable && found.is_none() && reservations.persists();
        let found = if moves { self.make_beside(disk) } else { found };
        let state = from_here.then_some(state);
        let beside = found.filter(|_| is_readable).and_then(|found| take_place(found, &owner, sequence, state));
        if let Some(store) = beside {
            if let Some(number) = number {
                self.clear(number, disk.name());
            }
            return (Arc::new(reservations), store);
        }
        // A place that cannot be read is left as it is.
        let number = number.filter(|_| is_readable).map(|number| (number, sequence));
        (Arc::new(reservations), self.store(disk, number, sequence))
    }

    /// A place in the server's file. `number` is the one that the disk has, if it has one.
    fn store(&mut self, disk: &Disk, at: Option<(u64, u64)>, sequence: u64) -> ReservationStore {
        let owner = beside::owner(disk);
        let (number, present) = at.or_else(|| self.spare.pop()).unwrap_or_else(|| {
            self.end += 1;
            (self.end - 1, 0)
        });
        let sequence = sequence.max(present);
        self.places.insert(owner.name.clone(), (number, Kept { owner: owner.clone(), sequence, state: Vec::new() }));
        ReservationStore {
            file: Fd(self.file.as_raw_fd()),
            owned: Some(Arc::clone(&self.file)),
            offset_bytes: number * PLACE_BYTES,
            owner,
            sequence,
            asks_for_own: beside::is_possible(disk),
        }
    }

    /// A file beside the disk, for what the server's file has held so far.
    fn make_beside(&self, disk: &Disk) -> Option<Beside> {
        if !beside::is_possible(disk) {
            return None;
        }
        let made = beside::make(disk);
        made.inspect_err(|error| {
            let (disk, path) = (disk.name(), self.path.display());
            tracing::warn!("the reservations of disk '{disk}' stay in {path}, no file can be made beside it: {error}");
        })
        .ok()
    }

    /// What a place holds is held elsewhere now.
    fn clear(&mut self, number: u64, disk: &str) {
        match erase(&self.file, number) {
            Ok(()) => self.spare.push((number, 0)),
            Err(error) => {
                let path = self.path.display();
                tracing::warn!("the former reservations of disk '{disk}' cannot be removed from {path}: {error}");
            }
        }
    }

    /// A disk is gone, and no shard knows it any more: so are its reservations. Blocking.
    ///
    /// # Errors
    /// The file system refuses; another disk of this name has another identity, and never gets them.
    pub fn forget(&mut self, name: &str) -> io::Result<()> {
        let Some((number, _)) = self.places.remove(name) else { return Ok(()) };
        erase(&self.file, number)?;
        self.spare.push((number, 0));
        Ok(())
    }
}

/// The store in a disk's own file, which holds or gets this state. `None`: it cannot be written.
fn take_place(found: Beside, owner: &Owner, sequence: u64, state: Option<Vec<u8>>) -> Option<ReservationStore> {
    let path = found.path.display();
    if !found.is_writable {
        tracing::warn!("{path} can only be read: reservations are kept in the server's state folder");
        return None;
    }
    match state.map_or(Ok(()), |state| found.take_over(owner, sequence, &state)) {
        Ok(()) => Some(found.store(owner.clone(), sequence)),
        Err(error) => {
            tracing::warn!("{path} cannot be written: {error}; reservations are kept in the server's state folder");
            None
        }
    }
}

/// Make a place hold nothing: the older copy goes first, so that it never comes back.
fn erase(file: &OwnedFd, number: u64) -> io::Result<()> {
    let file = File::from(file.try_clone()?);
    let copies = read_copies(&file, number)?;
    let newest = place::kept([&copies[0], &copies[1]]).map_or(0, |kept| kept.sequence);
    for sequence in [newest + 1, newest] {
        let offset_bytes = place::copy_offset_bytes(sequence);
        if copies[usize::from(offset_bytes > 0)].is_empty() {
            continue;
        }
        file.write_all_at(&[0; place::HEADER_BYTES], number * PLACE_BYTES + offset_bytes)?;
        file.sync_data()?;
    }
    Ok(())
}

/// Both copies of a place, as far as the file goes.
pub(super) fn read_copies(file: &File, number: u64) -> io::Result<[Vec<u8>; 2]> {
    let read = |offset_bytes: u64| -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; COPY_BYTES];
        let mut len = 0;
        while len < bytes.len() {
            match file.read_at(&mut bytes[len..], offset_bytes + len as u64)? {
                0 => break,
                read => len += read,
            }
            // Most places are empty.
            if !place::is_used([&bytes, &[]]) {
                break;
            }
        }
        bytes.truncate(len);
        Ok(bytes)
    };
    let offset_bytes = number * PLACE_BYTES;
    Ok([read(offset_bytes)?, read(offset_bytes + COPY_BYTES as u64)?])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::medium::{self, Cache, DiskFormat, OpenSpec, Parents};
    use crate::units::{DiskId, ShardId};

    fn disk(name: &str, uuid: u128) -> Arc<Disk> {
        disk_in(name, uuid, None)
    }

    fn disk_in(name: &str, uuid: u128, path: Option<PathBuf>) -> Arc<Disk> {
        let spec = OpenSpec {
            id: DiskId(1),
            name: name.into(),
            uuid: uuid::Uuid::from_u128(uuid),
            format: if path.is_some() { DiskFormat::Raw } else { DiskFormat::Null },
            kind: None,
            path,
            parent: None,
            parents: Parents::new(),
            predecessor: None,
            size_bytes: 1 << 20,
            sector_size_bytes: 512,
            read_only: false,
            cache: Cache::Direct,
            home: ShardId(0),
            shards: 1,
        };
        medium::open(spec).unwrap().disk
    }

    /// What the home shard does.
    fn store(store: &ReservationStore, state: &[u8]) {
        let file = File::from(store.owned.as_ref().unwrap().try_clone().unwrap());
        let sequence = store.sequence + 1;
        let copy = place::copy(&store.owner, sequence, state);
        file.write_all_at(&copy, store.offset_bytes + place::copy_offset_bytes(sequence)).unwrap();
    }

    /// Registered and then gone: persistence is what is kept.
    fn state() -> Vec<u8> {
        let state = [&b"LUNARPR1"[..], &[0; 4]].concat();
        [&state[..], &crate::crc32c::crc32c(&state).to_le_bytes()].concat()
    }

    #[test]
    fn of_two_places_the_newer_holds_and_the_disks_own_is_written_from_then_on() {
        let dir = tempfile::tempdir().unwrap();
        let (path, image) = (dir.path().join("reservations"), dir.path().join("a.raw"));
        File::create(&image).unwrap().set_len(1 << 20).unwrap();
        let a = disk_in("a", 1, Some(image.clone()));
        let open = || Ledger::open(&path, |_| true).unwrap();
        let uuid = a.uuid();
        let find_for = |uuid| {
            let places = vec![dir.path().join("a.raw.reservations")];
            let owner = Owner { uuid, name: String::new() };
            beside::find(&beside::Search { places, owner, is_recorded: false, has_twin: false })
        };
        let find = || find_for(*uuid.as_bytes());
        let kept = |place: Option<Beside>| place.and_then(|place| place.kept).map(|kept| (kept.sequence, kept.state));
        // Kept by a server that knew no other place than its own.
        let (_, server_place) = open().of(&a, find());
        assert!(server_place.asks_for_own && find().is_none());
        store(&server_place, &state());
        let (found, own) = open().of(&a, find());
        assert!(found.persists() && own.offset_bytes == 0 && own.sequence == 1 && !own.asks_for_own);
        assert!(find().is_none(), "somebody has it open");
        drop(own);
        assert_eq!(kept(find()), Some((1, state())), "it has moved");
        assert!(open().places.is_empty(), "and is not kept twice");
        // A crash between the two: both have it, or the disk's own is newer.
        let older = ReservationStore { sequence: 0, ..server_place };
        store(&older, &state());
        let (_, own) = open().of(&a, find());
        assert_eq!((own.sequence, kept(find())), (1, None));
        drop(own);
        assert_eq!(kept(find()), Some((1, state())));
        assert!(open().places.is_empty());
        // The disk's own could not be written for a while.
        store(&ReservationStore { sequence: 4, ..older }, &state());
        let (_, own) = open().of(&a, find());
        assert_eq!(own.sequence, 5);
        drop(own);
        assert_eq!(kept(find()), Some((5, state())));
        drop(a);
        // A disk of the same identity makes one of its own.
        let twin = disk_in("twin", 1, Some(image));
        assert_ne!(beside::make(&twin).unwrap().path, dir.path().join("a.raw.reservations"));
        drop(twin);
        // Another disk's is left alone; an empty one, which a crash may leave, is used.
        let other = disk_in("b", 2, Some(dir.path().join("a.raw")));
        assert!(find_for(*other.uuid().as_bytes()).is_none());
        let made = beside::make(&other).unwrap();
        assert_ne!(made.path, dir.path().join("a.raw.reservations"));
        drop(made);
        assert!(beside::make(&other).unwrap().kept.is_none());
    }

    #[test]
    fn each_disk_finds_what_was_kept_for_it_and_no_other_disk_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("reservations");
        let open = |known: &'static [&str]| Ledger::open(&path, |name| known.contains(&name)).unwrap();
        let state = state();
        let mut ledger = open(&["a", "b"]);
        let (a, b) = (ledger.of(&disk("a", 1), None).1, ledger.of(&disk("b", 2), None).1);
        assert_ne!(a.offset_bytes, b.offset_bytes);
        store(&a, &state);
        store(&b, b"damaged in a way that its checksum does not tell");
        drop((ledger, a, b));
        let mut ledger = open(&["a", "b"]);
        let (found, a) = ledger.of(&disk("a", 1), None);
        assert!(found.persists() && a.sequence == 1);
        let (found, b) = ledger.of(&disk("b", 2), None);
        assert!(
            *found == Reservations::new() && b.offset_bytes == 2 * PLACE_BYTES,
            "what cannot be read is left alone"
        );
        assert!(!open(&["a"]).of(&disk("a", 7), None).0.persists(), "another disk of this name");
        ledger.forget("a").unwrap();
        drop(ledger);
        let mut ledger = open(&["a", "b"]);
        let (found, again) = ledger.of(&disk("a", 1), None);
        assert!(!found.persists() && again.sequence == 0 && again.offset_bytes == a.offset_bytes);
    }
}
