//! A host of a VHD engine: it carries out the engine's operations on a recorded file in a random order, and guests'
//! writes through plans. The file and its power cuts are those of the VHDX tests.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::sync::Arc;

use lunaring::blocks::{
    Asked, BlockMap, Chain, Done, Engine as _, Event, Extent, IoFailure, IoId, Level, MapLimits, MetadataIoKind,
    ReadPlan, Storage, Ticket, WritePlan, load_blocking,
};
use lunaring::vhd::{
    Access, CreateOptions, Engine, Kind, NewKind, OpenError, OpenOptions, OpenVhd, VhdParent, create, open,
};
use uuid::Uuid;

use crate::vhdx_support::{Change, Random, RecordedFile, SECTOR, SparseFile};

/// Few pages of bits, so that loading and giving up pages is exercised.
pub const LIMITS: MapLimits = MapLimits { entry_pages_max: 2, bit_pages_max: 4 };

pub fn open_with(storage: &mut dyn Storage, access: Access) -> Result<OpenVhd, OpenError> {
    open(storage, OpenOptions { access, limits: LIMITS })
}

pub fn parent_named(unique_id: Uuid) -> VhdParent {
    VhdParent {
        unique_id,
        name: "parent.vhd".to_owned(),
        relative_paths: vec![".\\parent.vhd".to_owned()],
        absolute_paths: vec!["C:\\disks\\parent.vhd".to_owned()],
        ..VhdParent::default()
    }
}

pub fn options(size_bytes: u64, kind: NewKind, block_size_bytes: u64) -> CreateOptions {
    CreateOptions {
        size_bytes,
        kind,
        block_size_bytes: Some(block_size_bytes),
        unique_id: Uuid::from_u128(0x1234_5678_9abc_def0_1122_3344_5566_7788),
        unix_seconds: 1_700_000_000,
    }
}

pub fn new_disk(options: &CreateOptions) -> SparseFile {
    let mut file = SparseFile::default();
    let created = create(options, &mut file).expect("creates");
    assert_eq!(created.file_len_bytes, file.len);
    file
}

/// The levels of a disk: its own, and flat bytes behind it.
pub fn chain_of(disk: &OpenVhd, parent: Option<&SparseFile>) -> Chain {
    let leaf = match (&disk.map, disk.kind) {
        (Some(map), _) => Level::Map { layer: 0, map: Arc::clone(map) },
        (None, Kind::Fixed) => Level::Raw { layer: 0, size_bytes: disk.shape.size_bytes },
        (None, kind) => panic!("a {kind:?} disk has a map"),
    };
    let parent = parent.map(|parent| Level::Raw { layer: 1, size_bytes: parent.len });
    Chain::new([leaf].into_iter().chain(parent).collect())
}

/// Read a range through the plan, pages of bits loaded as they are needed.
pub fn read_chain(chain: &Chain, storage: &mut dyn Storage, parent: Option<&SparseFile>, offset: u64, into: &mut [u8]) {
    let mut done = 0;
    while done < into.len() {
        match chain.plan_read(offset + done as u64, (into.len() - done) as u32) {
            ReadPlan::Fault(fault) => {
                let map = chain.map(fault.level).expect("only maps have faults");
                load_blocking(map, fault.fault, &mut |at, bytes: &mut [u8]| storage.read_at(at, bytes))
                    .expect("bitmaps are inside the file");
            }
            ReadPlan::Torn => panic!("it does not write atomically"),
            ReadPlan::Extents(extents) => {
                for extent in extents.as_slice() {
                    let part = &mut into[done..done + extent.len_bytes() as usize];
                    match extent {
                        Extent::Zeros { .. } => part.fill(0),
                        Extent::File { layer: 0, offset_bytes, .. } => {
                            storage.read_at(*offset_bytes, part).expect("blocks are inside the file");
                        }
                        Extent::File { offset_bytes, .. } => {
                            parent.expect("there is a parent").read(*offset_bytes, part);
                        }
                    }
                    done += part.len();
                }
            }
        }
    }
}

/// How the host fails.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub punch_unsupported: bool,
    pub zero_range_unsupported: bool,
    /// The next operations that succeed: counts down.
    pub fail_after: Option<usize>,
}

/// An open disk with its file.
pub struct Host {
    pub file: RecordedFile,
    pub map: Arc<BlockMap>,
    pub engine: Box<Engine>,
    pub chain: Chain,
    pub parent: Option<SparseFile>,
    pub events: Vec<Event>,
    pub random: Random,
    pub faults: Faults,
    tickets: u64,
}

enum OwnedIo {
    Write { offset: u64, bytes: Arc<[u8]> },
    Read { offset: u64, len: u32 },
    Sync,
    Extend { from: u64, to: u64 },
    Zero { offset: u64, len: u64, punch: bool },
    Truncate { len: u64 },
}

impl OwnedIo {
    fn of(kind: MetadataIoKind<'_>) -> Self {
        match kind {
            MetadataIoKind::Write { offset_bytes, bytes } => Self::Write { offset: offset_bytes, bytes: bytes.into() },
            MetadataIoKind::Read { offset_bytes, len_bytes } => Self::Read { offset: offset_bytes, len: len_bytes },
            MetadataIoKind::Sync => Self::Sync,
            MetadataIoKind::Extend { from_bytes, to_bytes } => Self::Extend { from: from_bytes, to: to_bytes },
            MetadataIoKind::ZeroRange { offset_bytes, len_bytes } => {
                Self::Zero { offset: offset_bytes, len: len_bytes, punch: false }
            }
            MetadataIoKind::PunchHole { offset_bytes, len_bytes } => {
                Self::Zero { offset: offset_bytes, len: len_bytes, punch: true }
            }
            MetadataIoKind::Truncate { len_bytes } => Self::Truncate { len: len_bytes },
            other => panic!("a VHD engine asks for no {other:?}"),
        }
    }
}

impl Host {
    pub fn open(file: RecordedFile, parent: Option<SparseFile>, seed: u64) -> Self {
        Self::try_open(file, parent, seed).expect("the disk opens")
    }

    pub fn try_open(mut file: RecordedFile, parent: Option<SparseFile>, seed: u64) -> Result<Self, OpenError> {
        let disk = open_with(&mut file, Access::ReadWrite)?;
        let chain = chain_of(&disk, parent.as_ref());
        Ok(Self {
            file,
            map: disk.map.expect("not fixed"),
            engine: disk.engine.expect("opened for writing"),
            chain,
            parent,
            events: Vec::new(),
            random: Random(seed),
            faults: Faults::default(),
            tickets: 0,
        })
    }

    fn carry_out(&mut self, kind: &OwnedIo) -> Result<(), IoFailure> {
        if let Some(left) = &mut self.faults.fail_after {
            if *left == 0 {
                return Err(IoFailure::Failed);
            }
            *left -= 1;
        }
        match kind {
            OwnedIo::Write { offset, bytes } => {
                assert!(offset.is_multiple_of(SECTOR) && bytes.len().is_multiple_of(SECTOR as usize));
                assert!(offset + bytes.len() as u64 <= self.file.now.len, "metadata stays inside the file");
                self.file.apply(Change::Write { offset: *offset, bytes: bytes.clone() });
            }
            OwnedIo::Read { offset, len } => {
                assert!(offset.is_multiple_of(SECTOR) && u64::from(*len).is_multiple_of(SECTOR));
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
            OwnedIo::Zero { offset, len, punch } => {
                assert!(offset + len <= self.file.now.len && *len > 0);
                let known = if *punch { !self.faults.punch_unsupported } else { !self.faults.zero_range_unsupported };
                if !known {
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
        let mut offered: Vec<(IoId, OwnedIo)> = Vec::new();
        while let Some(io) = self.engine.poll_io() {
            if self.random.below(16) == 0 {
                let id = io.id;
                self.engine.not_started(id);
                continue;
            }
            offered.push((io.id, OwnedIo::of(io.kind)));
        }
        let some = !offered.is_empty();
        while !offered.is_empty() {
            let at = self.random.below(offered.len() as u64) as usize;
            let (id, kind) = offered.swap_remove(at);
            match (self.carry_out(&kind), kind) {
                (Ok(()), OwnedIo::Read { offset, len }) => {
                    let mut bytes = vec![0; len as usize];
                    self.file.now.read(offset, &mut bytes);
                    self.engine.complete_read(id, Ok(&bytes));
                }
                (Err(failure), OwnedIo::Read { .. }) => self.engine.complete_read(id, Err(failure)),
                (result, _) => self.engine.complete(id, result),
            }
        }
        while let Some(event) = self.engine.poll_event() {
            self.events.push(event);
        }
        some
    }

    pub fn settle(&mut self) {
        while self.turn() {}
        // Once more: an operation may not have been started by chance.
        while self.turn() {}
    }

    pub fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }

    /// Wait for a ticket that was queued.
    pub fn wait(&mut self, ticket: Ticket) -> Result<Done, Option<Event>> {
        for _ in 0..100_000 {
            let is = |event: &Event| matches!(event, Event::Done { ticket: done, .. } if *done == ticket);
            if let Some(at) = self.events.iter().position(is) {
                let event = self.events.swap_remove(at);
                return match event {
                    Event::Done { result: Ok(done), .. } => Ok(done),
                    event => Err(Some(event)),
                };
            }
            self.turn();
        }
        panic!("{ticket:?} does not end");
    }

    /// The next part of a write: plan it until there is a place for it, and put the data there. Gives what a commit
    /// needs: the covered length, and the epoch where there must be one.
    pub fn land(&mut self, offset: u64, bytes: &[u8]) -> Result<(u64, Option<u32>), Option<Event>> {
        loop {
            match self.chain.plan_write(offset, bytes.len() as u32) {
                WritePlan::Poisoned => return Err(None),
                WritePlan::Fault(fault) => {
                    assert_eq!(fault.level, 0);
                    let ticket = self.ticket();
                    if self.engine.load(fault.fault, ticket).map_err(|_| None)? == Asked::Queued {
                        self.wait(ticket)?;
                    }
                }
                WritePlan::Prepare if !self.map.write_session_open() && self.random.below(2) == 0 => {
                    self.engine.begin_write_session().map_err(|_| None)?;
                    self.settle();
                    if let Some(Event::WriteSession(Err(error))) = self.events.last() {
                        return Err(Some(Event::WriteSession(Err(*error))));
                    }
                }
                WritePlan::Prepare => {
                    let ticket = self.ticket();
                    let asked = self.engine.prepare(offset, bytes.len() as u64, ticket).map_err(|_| None)?;
                    if asked == Asked::Queued {
                        self.wait(ticket)?;
                    }
                }
                WritePlan::Ready { extents, commit, epoch } => {
                    let mut done = 0;
                    for extent in extents.as_slice() {
                        let Extent::File { layer: 0, offset_bytes, len_bytes } = *extent else {
                            panic!("a ready write has extents in the leaf only: {extent:?}");
                        };
                        let part = bytes[done..done + len_bytes as usize].into();
                        assert!(offset_bytes + u64::from(len_bytes) <= self.file.now.len);
                        self.file.apply(Change::Write { offset: offset_bytes, bytes: part });
                        done += len_bytes as usize;
                    }
                    return Ok((done as u64, commit.then_some(epoch)));
                }
            }
        }
    }

    /// Write guest bytes as a shard does.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Option<Event>> {
        let mut done = 0;
        while done < bytes.len() as u64 {
            let (covered, commit) = self.land(offset + done, &bytes[done as usize..])?;
            if let Some(epoch) = commit {
                let ticket = self.ticket();
                let asked = self.engine.commit(offset + done, covered, epoch, ticket).map_err(|_| None)?;
                if asked == Asked::Queued && self.wait(ticket)? == Done::PlanAgain {
                    continue;
                }
            }
            done += covered;
        }
        Ok(())
    }

    /// Write several ranges, and release blocks, at the same time: all is asked for before anything is waited for.
    pub fn write_together(
        &mut self,
        writes: &[(u64, Vec<u8>)],
        unmap: Option<(u64, u64)>,
    ) -> Result<(), Option<Event>> {
        let mut waiting = Vec::new();
        for (offset, bytes) in writes {
            let ticket = self.ticket();
            if self.engine.prepare(*offset, bytes.len() as u64, ticket).map_err(|_| None)? == Asked::Queued {
                waiting.push(ticket);
            }
        }
        for ticket in waiting.drain(..) {
            self.wait(ticket)?;
        }
        if let Some((offset, len)) = unmap {
            let ticket = self.ticket();
            if self.engine.unmap(offset, len, ticket).map_err(|_| None)? == Asked::Queued {
                waiting.push(ticket);
            }
        }
        for (offset, bytes) in writes {
            let mut done = 0;
            while done < bytes.len() as u64 {
                let (covered, commit) = self.land(offset + done, &bytes[done as usize..])?;
                if let Some(epoch) = commit {
                    let ticket = self.ticket();
                    if self.engine.commit(offset + done, covered, epoch, ticket).map_err(|_| None)? == Asked::Queued {
                        waiting.push(ticket);
                    }
                }
                done += covered;
            }
        }
        for ticket in waiting {
            assert_eq!(self.wait(ticket)?, Done::Ok, "places are never taken away");
        }
        Ok(())
    }

    /// Release the whole blocks of a range.
    pub fn unmap(&mut self, offset: u64, len: u64) -> Result<(), Option<Event>> {
        let ticket = self.ticket();
        if self.engine.unmap(offset, len, ticket).map_err(|_| None)? == Asked::Queued {
            self.wait(ticket)?;
        }
        Ok(())
    }

    pub fn read(&mut self, offset: u64, into: &mut [u8]) {
        read_chain(&self.chain.clone(), &mut self.file.now, self.parent.as_ref(), offset, into);
    }

    /// The guest's SYNCHRONIZE CACHE.
    pub fn flush(&mut self) {
        let mark = self.map.flush_started();
        self.file.apply(Change::Flush);
        self.map.flush_done(mark);
    }

    pub fn close(mut self) -> (RecordedFile, Event) {
        self.engine.close();
        self.settle();
        let last = self.events.pop().expect("closing ends with an event");
        assert!(self.engine.is_idle());
        (self.file, last)
    }
}
