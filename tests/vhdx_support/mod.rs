//! A disk's file in memory that records what is done to it, so that a test can cut the power at any instant; and a
//! host that carries out an engine's operations on it the way a shard does.
#![allow(dead_code, reason = "each test binary uses its part")]

pub mod guest;
pub mod host;
pub mod naive;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use lunaring::vhdx::{
    Access, CreateOptions, DiskKind, Guid, GuidSource, OpenDisk, OpenOptions, Storage, StorageError, open,
};

#[allow(unused_imports, reason = "each test binary uses its part")]
pub use host::{Host, read_disk};

pub const MIB: u64 = 1 << 20;
pub const PAGE: u64 = 4096;
pub const SECTOR: u64 = 512;

/// A small generator, so that a failure is a seed.
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Bytes of a file; pages that were never written are absent and read as zeros. Cloning is cheap.
#[derive(Clone, Default)]
pub struct SparseFile {
    pub pages: BTreeMap<u64, Arc<[u8; PAGE as usize]>>,
    pub len: u64,
}

impl SparseFile {
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut file = Self { len: bytes.len() as u64, ..Self::default() };
        file.write(0, bytes);
        file
    }

    pub fn read(&self, offset: u64, into: &mut [u8]) {
        let mut done = 0;
        while done < into.len() {
            let at = offset + done as u64;
            let within = (at % PAGE) as usize;
            let len = (PAGE as usize - within).min(into.len() - done);
            match self.pages.get(&(at / PAGE)) {
                Some(page) => into[done..done + len].copy_from_slice(&page[within..within + len]),
                None => into[done..done + len].fill(0),
            }
            done += len;
        }
    }

    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let within = (at % PAGE) as usize;
            let len = (PAGE as usize - within).min(bytes.len() - done);
            let part = &bytes[done..done + len];
            if part != &[0; PAGE as usize][..len] || self.pages.contains_key(&(at / PAGE)) {
                let page = self.pages.entry(at / PAGE).or_insert_with(|| Arc::new([0; PAGE as usize]));
                Arc::make_mut(page)[within..within + len].copy_from_slice(part);
            }
            done += len;
        }
        self.len = self.len.max(offset + bytes.len() as u64);
    }

    pub fn zero(&mut self, offset: u64, len: u64) {
        let (first, behind) = (offset.div_ceil(PAGE), (offset + len) / PAGE);
        let inside: Vec<u64> = self.pages.range(first..behind.max(first)).map(|(page, _)| *page).collect();
        for page in inside {
            self.pages.remove(&page);
        }
        let (end, keep) = (offset + len, self.len);
        for edge in [offset / PAGE, end / PAGE] {
            let (from, to) = ((edge * PAGE).max(offset), ((edge + 1) * PAGE).min(end));
            if from < to {
                self.write(from, &vec![0; (to - from) as usize]);
            }
        }
        self.len = keep;
    }

    pub fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.zero(len, self.len - len);
            self.pages.split_off(&len.div_ceil(PAGE));
        }
        self.len = len;
    }
}

impl SparseFile {
    /// Store the bytes as a sparse file on the host.
    pub fn save(&self, path: &Path) {
        let file = File::create(path).expect("the temporary directory can be written");
        file.set_len(self.len).expect("sparse files are possible");
        for (page, bytes) in &self.pages {
            let len = (self.len - page * PAGE).min(PAGE) as usize;
            file.write_all_at(&bytes[..len], page * PAGE).expect("the temporary directory has space");
        }
    }

    pub fn load(path: &Path) -> Self {
        let file = File::open(path).expect("the file exists");
        let mut sparse = Self { len: file.metadata().expect("a file has a size").len(), ..Self::default() };
        let (mut bytes, len) = (vec![0; MIB as usize], sparse.len);
        for offset in (0..len).step_by(MIB as usize) {
            let part = &mut bytes[..(len - offset).min(MIB) as usize];
            file.read_exact_at(part, offset).expect("the file can be read");
            sparse.write(offset, part);
        }
        sparse
    }
}

/// A file of the host.
pub struct HostFile(pub File);

impl Storage for HostFile {
    fn len_bytes(&mut self) -> Result<u64, StorageError> {
        self.0.metadata().map(|metadata| metadata.len()).map_err(|error| StorageError::Failed(error.to_string()))
    }

    fn read_at(&mut self, offset_bytes: u64, into: &mut [u8]) -> Result<(), StorageError> {
        self.0.read_exact_at(into, offset_bytes).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => StorageError::UnexpectedEnd(offset_bytes + into.len() as u64),
            _ => StorageError::Failed(error.to_string()),
        })
    }

    fn write_at(&mut self, offset_bytes: u64, bytes: &[u8]) -> Result<(), StorageError> {
        self.0.write_all_at(bytes, offset_bytes).map_err(|error| StorageError::Failed(error.to_string()))
    }

    fn flush(&mut self) -> Result<(), StorageError> {
        self.0.sync_data().map_err(|error| StorageError::Failed(error.to_string()))
    }

    fn set_len(&mut self, len_bytes: u64) -> Result<(), StorageError> {
        self.0.set_len(len_bytes).map_err(|error| StorageError::Failed(error.to_string()))
    }
}

impl Storage for SparseFile {
    fn len_bytes(&mut self) -> Result<u64, StorageError> {
        Ok(self.len)
    }

    fn read_at(&mut self, offset_bytes: u64, into: &mut [u8]) -> Result<(), StorageError> {
        let end = offset_bytes + into.len() as u64;
        if end > self.len {
            return Err(StorageError::UnexpectedEnd(end));
        }
        self.read(offset_bytes, into);
        Ok(())
    }

    fn write_at(&mut self, offset_bytes: u64, bytes: &[u8]) -> Result<(), StorageError> {
        self.write(offset_bytes, bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StorageError> {
        Ok(())
    }

    fn set_len(&mut self, len_bytes: u64) -> Result<(), StorageError> {
        if len_bytes > 1 << 50 {
            return Err(StorageError::OutOfSpace);
        }
        Self::set_len(self, len_bytes);
        Ok(())
    }
}

/// One change of the file, in the order in which they were made.
#[derive(Clone)]
pub enum Change {
    Write { offset: u64, bytes: Arc<[u8]> },
    Zero { offset: u64, len: u64 },
    SetLen { len: u64 },
    Flush,
}

/// A file whose history is kept.
#[derive(Clone, Default)]
pub struct RecordedFile {
    pub start: SparseFile,
    pub now: SparseFile,
    pub history: Vec<Change>,
    /// Flushes so far, and the one that the fault hook makes do nothing.
    pub flushes: usize,
    pub flush_ignored: Option<usize>,
    /// Length of the history where that was.
    pub ignored_at: Option<usize>,
    /// No extension past this size.
    pub len_max: Option<u64>,
    /// The next operations that fail: counts down.
    pub fail_after: Option<usize>,
    pub zero_range_unsupported: bool,
    pub punch_unsupported: bool,
}

impl RecordedFile {
    pub fn new(start: SparseFile) -> Self {
        Self { now: start.clone(), start, ..Self::default() }
    }

    pub fn apply(&mut self, change: Change) {
        match &change {
            Change::Write { offset, bytes } => self.now.write(*offset, bytes),
            Change::Zero { offset, len } => self.now.zero(*offset, *len),
            Change::SetLen { len } => self.now.set_len(*len),
            Change::Flush => {
                self.flushes += 1;
                if self.flush_ignored == Some(self.flushes - 1) {
                    self.ignored_at = Some(self.history.len());
                    return;
                }
            }
        }
        self.history.push(change);
    }

    /// The file after power was lost when `cut` changes had been made. Everything in front of the last flush is
    /// there; of each later change, every sector is or is not, as `random` says (`None`: nothing was lost, only the
    /// process died).
    pub fn cut(&self, durable: &SparseFile, from: usize, cut: usize, mut random: Option<&mut Random>) -> SparseFile {
        let mut file = durable.clone();
        // One draw decides how much survives, so that nothing, nearly nothing and nearly everything are all seen.
        let odds = random.as_mut().map_or(0, |random| random.below(5));
        let survives = |random: &mut Option<&mut Random>| random.as_mut().is_none_or(|r| r.below(4) < odds);
        for change in &self.history[from..cut] {
            match change {
                Change::Write { offset, bytes } => {
                    for (at, sector) in bytes.chunks(SECTOR as usize).enumerate() {
                        let at = offset + at as u64 * SECTOR;
                        // A write that grows the file carries the size with it; otherwise bytes past the end are lost.
                        let reachable = at + sector.len() as u64 <= file.len;
                        if survives(&mut random) && (reachable || random.is_none()) {
                            file.write(at, sector);
                        }
                    }
                }
                Change::Zero { offset, len } => {
                    // A file system zeroes a range piece by piece.
                    let piece = (len / 8).next_multiple_of(PAGE).max(PAGE);
                    for at in (*offset..offset + len).step_by(piece as usize) {
                        if survives(&mut random) {
                            file.zero(at, piece.min(offset + len - at));
                        }
                    }
                }
                Change::SetLen { len } if survives(&mut random) => file.set_len(*len),
                _ => {}
            }
        }
        file
    }
}

impl RecordedFile {
    /// The pieces of a change that can each be lost alone.
    fn units_of(change: &Change) -> Vec<Change> {
        match change {
            Change::Write { offset, bytes } => {
                // Sectors that hold zeros only are most often zeros already: they go with the sector before them.
                let mut units: Vec<Change> = Vec::new();
                for (at, sector) in (*offset..).step_by(SECTOR as usize).zip(bytes.chunks(SECTOR as usize)) {
                    match units.last_mut() {
                        Some(Change::Write { bytes, .. }) if sector.iter().all(|byte| *byte == 0) => {
                            *bytes = [&bytes[..], sector].concat().into();
                        }
                        _ => units.push(Change::Write { offset: at, bytes: sector.into() }),
                    }
                }
                units
            }
            Change::Flush => Vec::new(),
            change => vec![change.clone()],
        }
    }

    /// How many pieces the changes `from..cut` have.
    pub fn units(&self, from: usize, cut: usize) -> usize {
        self.history[from..cut].iter().map(|change| Self::units_of(change).len()).sum()
    }

    /// The file after exactly those pieces whose bit in `kept` is set.
    pub fn cut_units(&self, durable: &SparseFile, from: usize, cut: usize, kept: u64) -> SparseFile {
        let mut file = durable.clone();
        for (at, unit) in self.history[from..cut].iter().flat_map(Self::units_of).enumerate() {
            if kept >> at & 1 == 0 {
                continue;
            }
            match unit {
                Change::Write { offset, bytes } if offset + bytes.len() as u64 <= file.len => {
                    file.write(offset, &bytes);
                }
                Change::Zero { offset, len } => file.zero(offset, len),
                Change::SetLen { len } => file.set_len(len),
                _ => {}
            }
        }
        file
    }
}

impl Storage for RecordedFile {
    fn len_bytes(&mut self) -> Result<u64, StorageError> {
        Ok(self.now.len)
    }

    fn read_at(&mut self, offset_bytes: u64, into: &mut [u8]) -> Result<(), StorageError> {
        self.now.read_at(offset_bytes, into)
    }

    fn write_at(&mut self, offset_bytes: u64, bytes: &[u8]) -> Result<(), StorageError> {
        self.apply(Change::Write { offset: offset_bytes, bytes: bytes.into() });
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StorageError> {
        self.apply(Change::Flush);
        Ok(())
    }

    fn set_len(&mut self, len_bytes: u64) -> Result<(), StorageError> {
        self.apply(Change::SetLen { len: len_bytes });
        Ok(())
    }
}

/// GUIDs that never repeat within a test.
pub fn guids(seed: u64) -> GuidSource {
    let mut random = Random(seed);
    Box::new(move || {
        let (a, b) = (random.next(), random.next());
        Guid::from_u128(u128::from(a) << 64 | u128::from(b) | 1)
    })
}

pub fn create_options(size_bytes: u64, kind: DiskKind, block_size_bytes: u64) -> CreateOptions {
    let mut next = guids(size_bytes ^ block_size_bytes);
    CreateOptions {
        size_bytes,
        kind,
        block_size_bytes: Some(block_size_bytes),
        logical_sector_bytes: 512,
        physical_sector_bytes: 4096,
        log_len_bytes: Some(MIB),
        virtual_disk_id: next(),
        file_write_guid: next(),
        data_write_guid: next(),
        parent: None,
    }
}

pub fn open_with(storage: &mut dyn Storage, access: Access, seed: u64) -> Result<OpenDisk, lunaring::vhdx::OpenError> {
    open(storage, OpenOptions { access, guids: guids(seed), data_write_guid: None })
}
