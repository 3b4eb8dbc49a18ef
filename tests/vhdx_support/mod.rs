//! A disk's file in memory that records what is done to it, so that a test can cut the power at any instant; and a
//! host that carries out an engine's operations on it the way a shard does.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use lunaring::vhdx::{
    Access, Allocate, BatView, CreateOptions, DiskKind, Engine, Event, Extent, Geometry, Guid, GuidSource, IoFailure,
    METADATA_WRITE_BYTES_MAX, MetadataIoKind, OpenDisk, OpenOptions, Storage, StorageError, Ticket, WritePlan, open,
    plan_read, plan_write,
};

pub const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;
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
        let inside: Vec<u64> = self
            .pages
            .range(offset.div_ceil(PAGE)..((offset + len) / PAGE).max(offset.div_ceil(PAGE)))
            .map(|(page, _)| *page)
            .collect();
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
                Change::Zero { offset, len } if survives(&mut random) => file.zero(*offset, *len),
                Change::SetLen { len } if survives(&mut random) => file.set_len(*len),
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
    open(storage, OpenOptions { access, guids: guids(seed) })
}

/// Read a range of the virtual disk through the plan.
pub fn read_disk(storage: &mut dyn Storage, geometry: &Geometry, view: &BatView, offset: u64, into: &mut [u8]) {
    let mut done = 0;
    for extent in plan_read(geometry, view, offset, into.len() as u32) {
        match extent {
            Extent::Zeros { len_bytes } => {
                into[done..done + len_bytes as usize].fill(0);
                done += len_bytes as usize;
            }
            Extent::File { offset_bytes, len_bytes } => {
                let part = &mut into[done..done + len_bytes as usize];
                storage.read_at(offset_bytes, part).expect("present blocks are inside the file");
                done += len_bytes as usize;
            }
        }
    }
    assert_eq!(done, into.len());
}

/// An open disk with its file: what a shard does, one operation after another.
pub struct Host {
    pub file: RecordedFile,
    pub geometry: Geometry,
    pub view: Arc<BatView>,
    pub engine: Engine,
    pub events: Vec<Event>,
    pub random: Random,
}

impl Host {
    pub fn open(mut file: RecordedFile, seed: u64) -> Self {
        let disk = open_with(&mut file, Access::ReadWrite, seed).expect("the disk opens");
        let engine = disk.engine.expect("opened for writing");
        Self { file, geometry: disk.geometry, view: disk.view, engine, events: Vec::new(), random: Random(seed) }
    }

    /// Carry out one operation on the file.
    fn carry_out(&mut self, kind: &OwnedIo) -> Result<(), IoFailure> {
        if let Some(left) = &mut self.file.fail_after {
            if *left == 0 {
                return Err(IoFailure::Failed);
            }
            *left -= 1;
        }
        match kind {
            OwnedIo::Write { offset, bytes } => {
                let whole = offset.is_multiple_of(PAGE) && bytes.len().is_multiple_of(PAGE as usize);
                assert!(whole && bytes.len() <= METADATA_WRITE_BYTES_MAX, "direct I/O needs whole pages");
                assert!(offset + bytes.len() as u64 <= self.file.now.len, "metadata stays inside the file");
                self.file.apply(Change::Write { offset: *offset, bytes: bytes.clone() });
            }
            OwnedIo::Sync => self.file.apply(Change::Flush),
            OwnedIo::Extend { from, to } => {
                assert_eq!(*from, self.file.now.len);
                assert!(to > from);
                if self.file.len_max.is_some_and(|max| *to > max) {
                    return Err(IoFailure::OutOfSpace);
                }
                self.file.apply(Change::SetLen { len: *to });
            }
            OwnedIo::ZeroRange { offset, len } => {
                assert_eq!(offset + len, self.file.now.len);
                if self.file.zero_range_unsupported {
                    return Err(IoFailure::Unsupported);
                }
                self.file.apply(Change::Zero { offset: *offset, len: *len });
            }
            OwnedIo::Truncate { len } => {
                assert!(*len < self.file.now.len);
                self.file.apply(Change::SetLen { len: *len });
            }
        }
        Ok(())
    }

    /// Take every operation that the engine offers now, and carry them out in a random order; false when there is none.
    pub fn turn(&mut self) -> bool {
        let mut offered = Vec::new();
        while let Some(io) = self.engine.poll_io() {
            if self.random.below(16) == 0 {
                let id = io.id;
                self.engine.not_started(id);
                continue;
            }
            let kind = match io.kind {
                MetadataIoKind::Write { offset_bytes, bytes } => {
                    OwnedIo::Write { offset: offset_bytes, bytes: bytes.into() }
                }
                MetadataIoKind::Sync => OwnedIo::Sync,
                MetadataIoKind::Extend { from_bytes, to_bytes } => OwnedIo::Extend { from: from_bytes, to: to_bytes },
                MetadataIoKind::ZeroRange { offset_bytes, len_bytes } => {
                    OwnedIo::ZeroRange { offset: offset_bytes, len: len_bytes }
                }
                MetadataIoKind::Truncate { len_bytes } => OwnedIo::Truncate { len: len_bytes },
            };
            offered.push((io.id, kind));
        }
        let some = !offered.is_empty();
        while !offered.is_empty() {
            let at = self.random.below(offered.len() as u64) as usize;
            let (id, kind) = offered.swap_remove(at);
            let result = self.carry_out(&kind);
            self.engine.complete(id, result);
        }
        while let Some(event) = self.engine.poll_event() {
            self.events.push(event);
        }
        some
    }

    pub fn settle(&mut self) {
        while self.turn() {}
    }

    /// Write guest bytes as a shard does: plan, allocate what is missing, plan again, write the payload.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Option<Event>> {
        loop {
            match plan_write(&self.geometry, &self.view, offset, bytes.len() as u32) {
                WritePlan::Poisoned => return Err(None),
                WritePlan::NeedsWriteSession => {
                    self.engine.begin_write_session().map_err(|_| None)?;
                    self.settle();
                    if let Some(Event::WriteSession(Err(error))) = self.events.drain(..).next_back() {
                        return Err(Some(Event::WriteSession(Err(error))));
                    }
                }
                WritePlan::NeedsAllocation { first_block, block_count } => {
                    for block in first_block..first_block + block_count {
                        match self.engine.allocate(block, Ticket(u64::from(block))) {
                            Ok(Allocate::Queued | Allocate::Present) => {}
                            Err(_) => self.settle(),
                        }
                    }
                    self.settle();
                    let failed = |event: &Event| matches!(event, Event::Allocated { result: Err(_), .. });
                    if let Some(event) = self.events.drain(..).find(failed) {
                        return Err(Some(event));
                    }
                }
                WritePlan::Ready(extents) => {
                    let mut done = 0;
                    for extent in extents {
                        let Extent::File { offset_bytes, len_bytes } = extent else {
                            panic!("a ready write has file extents only");
                        };
                        let part = bytes[done..done + len_bytes as usize].into();
                        assert!(offset_bytes + u64::from(len_bytes) <= self.file.now.len);
                        self.file.apply(Change::Write { offset: offset_bytes, bytes: part });
                        done += len_bytes as usize;
                    }
                    return Ok(());
                }
            }
        }
    }

    pub fn read(&mut self, offset: u64, into: &mut [u8]) {
        read_disk(&mut self.file.now, &self.geometry, &self.view, offset, into);
    }

    /// The guest's SYNCHRONIZE CACHE.
    pub fn flush(&mut self) {
        let mark = self.view.flush_started();
        self.file.apply(Change::Flush);
        self.view.flush_done(mark);
    }

    pub fn close(mut self) -> (RecordedFile, Event) {
        self.engine.close();
        self.settle();
        let last = self.events.pop().expect("closing ends with an event");
        (self.file, last)
    }
}

enum OwnedIo {
    Write { offset: u64, bytes: Arc<[u8]> },
    Sync,
    Extend { from: u64, to: u64 },
    ZeroRange { offset: u64, len: u64 },
    Truncate { len: u64 },
}
