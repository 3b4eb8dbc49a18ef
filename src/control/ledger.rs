//! The file of reservations that outlast the server (APTPL): a place for each disk, which the disk's home shard writes.
//!
//! It is one file for all disks, sparse, so that a server with many disks needs one descriptor for it. The form of a
//! place is [`place`]'s.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

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

    /// What was kept of a disk's reservations, and where they are kept from now on.
    pub fn of(&mut self, disk: &Disk) -> (Arc<Reservations>, ReservationStore) {
        let owner = Owner { uuid: *disk.uuid().as_bytes(), name: disk.name().to_owned() };
        let (mut reservations, mut at) = (Reservations::new(), None);
        if let Some((number, kept)) = self.places.remove(disk.name()) {
            at = Some((number, kept.sequence));
            if kept.owner == owner && !kept.state.is_empty() {
                match Reservations::from_bytes(&kept.state) {
                    Ok(kept) => reservations = kept,
                    Err(error) => {
                        let (disk, path) = (disk.name(), self.path.display());
                        tracing::error!(
                            "disk '{disk}' starts without its reservations: {path}, place {number}: {error}"
                        );
                        at = None;
                    }
                }
            }
        }
        let (number, sequence) = at.or_else(|| self.spare.pop()).unwrap_or_else(|| {
            self.end += 1;
            (self.end - 1, 0)
        });
        let store = ReservationStore {
            file: Fd(self.file.as_raw_fd()),
            owned: Some(Arc::clone(&self.file)),
            offset_bytes: number * PLACE_BYTES,
            owner: owner.clone(),
            sequence,
        };
        self.places.insert(owner.name.clone(), (number, Kept { owner, sequence, state: Vec::new() }));
        (Arc::new(reservations), store)
    }

    /// A disk is gone, and no shard knows it any more: so are its reservations. Blocking.
    ///
    /// # Errors
    /// The file system refuses; another disk of this name has another identity, and never gets them.
    pub fn forget(&mut self, name: &str) -> io::Result<()> {
        let Some((number, _)) = self.places.remove(name) else { return Ok(()) };
        let file = File::from(self.file.try_clone()?);
        let copies = read_copies(&file, number)?;
        let Some(kept) = place::kept([&copies[0], &copies[1]]) else {
            self.spare.push((number, 0));
            return Ok(());
        };
        let sequence = kept.sequence + 1;
        let empty = place::copy(&kept.owner, sequence, &[]);
        file.write_all_at(&empty, number * PLACE_BYTES + place::copy_offset_bytes(sequence))?;
        file.sync_data()?;
        self.spare.push((number, sequence));
        Ok(())
    }
}

/// Both copies of a place, as far as the file goes.
fn read_copies(file: &File, number: u64) -> io::Result<[Vec<u8>; 2]> {
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
        let spec = OpenSpec {
            id: DiskId(1),
            name: name.into(),
            uuid: uuid::Uuid::from_u128(uuid),
            format: DiskFormat::Null,
            kind: None,
            path: None,
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

    #[test]
    fn each_disk_finds_what_was_kept_for_it_and_no_other_disk_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("reservations");
        let open = |known: &'static [&str]| Ledger::open(&path, |name| known.contains(&name)).unwrap();
        // Registered and then gone: persistence is what is kept.
        let state = [&b"LUNARPR1"[..], &[0; 4]].concat();
        let state = [&state[..], &crate::crc32c::crc32c(&state).to_le_bytes()].concat();
        let mut ledger = open(&["a", "b"]);
        let (a, b) = (ledger.of(&disk("a", 1)).1, ledger.of(&disk("b", 2)).1);
        assert_ne!(a.offset_bytes, b.offset_bytes);
        store(&a, &state);
        store(&b, b"damaged in a way that its checksum does not tell");
        drop((ledger, a, b));
        let mut ledger = open(&["a", "b"]);
        let (found, a) = ledger.of(&disk("a", 1));
        assert!(found.persists() && a.sequence == 1);
        let (found, b) = ledger.of(&disk("b", 2));
        assert!(
            *found == Reservations::new() && b.offset_bytes == 2 * PLACE_BYTES,
            "what cannot be read is left alone"
        );
        assert!(!open(&["a"]).of(&disk("a", 7)).0.persists(), "another disk of this name");
        ledger.forget("a").unwrap();
        drop(ledger);
        let mut ledger = open(&["a", "b"]);
        let (found, again) = ledger.of(&disk("a", 1));
        assert!(!found.persists() && again.sequence == 2 && again.offset_bytes == a.offset_bytes);
    }
}
