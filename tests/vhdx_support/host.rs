//! A host of an engine: it carries out the engine's operations on a recorded file the way a shard does, one after
//! another, and guests' writes through plans. Tasks can be held between plan and landing, as other shards' tasks are.

use std::sync::{Arc, Mutex};

use lunaring::blocks::{
    Asked, BlockMap, Chain, Done, Engine as _, Event, Extent, Fault, IoFailure, IoId, Level, METADATA_IO_BYTES_MAX,
    MetadataIoKind, Payload, ReadPlan, Ticket, WritePlan, load_blocking,
};
use lunaring::vhdx::{Access, Engine, Geometry, OpenDisk, Storage};

use super::{Change, PAGE, Random, RecordedFile, SparseFile, open_with};

/// Read as the product's readers do: what is behind the file's end is zeros.
fn read_padded(storage: &mut dyn Storage, offset: u64, into: &mut [u8]) {
    let len = storage.len_bytes().expect("a file has a size");
    let there = len.saturating_sub(offset).min(into.len() as u64) as usize;
    if there > 0 {
        storage.read_at(offset, &mut into[..there]).expect("it is inside the file");
    }
    into[there..].fill(0);
}

/// Read a range of a disk, pages of its map loaded as they are needed. `parent`: the bytes behind it.
pub fn read_disk(
    storage: &mut dyn Storage,
    parent: Option<&SparseFile>,
    map: &Arc<BlockMap>,
    offset: u64,
    into: &mut [u8],
) {
    let chain = chain_of(map, parent);
    let mut done = 0;
    while done < into.len() {
        let left = (into.len() - done) as u32;
        match chain.plan_read(offset + done as u64, left) {
            ReadPlan::Fault(fault) => {
                assert_eq!(fault.level, 0);
                let mut read = |at, bytes: &mut [u8]| {
                    read_padded(storage, at, bytes);
                    Ok::<_, ()>(())
                };
                load_blocking(map, fault.fault, &mut read).expect("reads do not fail");
            }
            ReadPlan::Torn => panic!("it has just been opened"),
            ReadPlan::Extents(extents) => {
                for extent in extents.as_slice() {
                    let part = &mut into[done..done + extent.len_bytes() as usize];
                    match extent {
                        Extent::Zeros { .. } => part.fill(0),
                        Extent::File { layer: 0, offset_bytes, .. } => {
                            read_padded(storage, *offset_bytes, part);
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

fn chain_of(map: &Arc<BlockMap>, parent: Option<&SparseFile>) -> Chain {
    let leaf = Level::Map { layer: 0, map: Arc::clone(map) };
    let parent = parent.map(|parent| Level::Raw { layer: 1, size_bytes: parent.len });
    Chain::new([leaf].into_iter().chain(parent).collect())
}

/// A write that has been planned and whose data is on its way.
pub struct Held {
    offset: u64,
    bytes: Vec<u8>,
    extents: Vec<(u64, u64)>,
    commit: bool,
    epoch: u32,
    covered: u64,
    /// Barriers that were asked for before it was planned do not wait for it.
    planned: u64,
}

/// How a host misbehaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Misdeed {
    #[default]
    None,
    /// Barriers end at once.
    NoBarrier,
    /// A write of the log is said to be done before it is; it is done with the next operation.
    LateEntry,
}

/// An open disk with its file: what a shard does, one operation after another.
pub struct Host {
    pub file: RecordedFile,
    pub geometry: Geometry,
    pub map: Arc<BlockMap>,
    pub engine: Box<Engine>,
    pub events: Vec<Event>,
    pub random: Random,
    pub parent: Option<SparseFile>,
    pub misdeed: Misdeed,
    /// Operations that this host has been asked for, by name: for tests that count them.
    pub asked_for: Vec<&'static str>,
    chain: Chain,
    held: Vec<Option<Held>>,
    plans: u64,
    barriers: Vec<(IoId, u64)>,
    late: Option<Change>,
    payload: Arc<Waiting>,
}

/// Where the data of atomic writes waits.
#[derive(Default)]
struct Waiting(Mutex<Vec<u8>>);

impl Payload for Waiting {
    fn copy_out(&self, at: u64, into: &mut [u8]) {
        into.copy_from_slice(&self.0.lock().expect("nobody panics")[at as usize..][..into.len()]);
    }
}

enum OwnedIo {
    Write { offset: u64, bytes: Arc<[u8]> },
    Read { offset: u64, len: u32 },
    Sync,
    Extend { from: u64, to: u64 },
    ZeroRange { offset: u64, len: u64 },
    PunchHole { offset: u64, len: u64 },
    Truncate { len: u64 },
    Barrier,
    Copy { from: u64, to: u64, len: u64 },
}

impl OwnedIo {
    fn of(kind: MetadataIoKind<'_>) -> Self {
        match kind {
            MetadataIoKind::Write { offset_bytes, bytes } => Self::Write { offset: offset_bytes, bytes: bytes.into() },
            MetadataIoKind::Read { offset_bytes, len_bytes } => Self::Read { offset: offset_bytes, len: len_bytes },
            MetadataIoKind::Sync => Self::Sync,
            MetadataIoKind::Extend { from_bytes, to_bytes } => Self::Extend { from: from_bytes, to: to_bytes },
            MetadataIoKind::ZeroRange { offset_bytes, len_bytes } => {
                Self::ZeroRange { offset: offset_bytes, len: len_bytes }
            }
            MetadataIoKind::PunchHole { offset_bytes, len_bytes } => {
                Self::PunchHole { offset: offset_bytes, len: len_bytes }
            }
            MetadataIoKind::Truncate { len_bytes } => Self::Truncate { len: len_bytes },
            MetadataIoKind::Barrier => Self::Barrier,
            MetadataIoKind::CopyBlock { from_bytes, to_bytes, len_bytes } => {
                Self::Copy { from: from_bytes, to: to_bytes, len: len_bytes }
            }
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Write { .. } => "write",
            Self::Read { .. } => "read",
            Self::Sync => "sync",
            Self::Extend { .. } => "extend",
            Self::ZeroRange { .. } => "zero range",
            Self::PunchHole { .. } => "punch hole",
            Self::Truncate { .. } => "truncate",
            Self::Barrier => "barrier",
            Self::Copy { .. } => "copy",
        }
    }
}

impl Host {
    pub fn open(file: RecordedFile, seed: u64) -> Self {
        Self::open_over(file, None, seed)
    }

    /// Open a differencing disk over these bytes.
    pub fn open_over(mut file: RecordedFile, parent: Option<SparseFile>, seed: u64) -> Self {
        let disk = open_with(&mut file, Access::ReadWrite, seed).expect("the disk opens");
        Self::serve(file, disk, parent, seed)
    }

    pub fn serve(file: RecordedFile, disk: OpenDisk, parent: Option<SparseFile>, seed: u64) -> Self {
        let engine = disk.engine.expect("opened for writing");
        let chain = chain_of(&disk.map, parent.as_ref());
        Self {
            file,
            geometry: disk.geometry,
            map: disk.map,
            engine,
            events: Vec::new(),
            random: Random(seed),
            parent,
            misdeed: Misdeed::None,
            asked_for: Vec::new(),
            chain,
            held: Vec::new(),
            plans: 0,
            barriers: Vec::new(),
            late: None,
            payload: Arc::default(),
        }
    }

    fn apply(&mut self, change: Change) {
        if let Some(late) = self.late.take() {
            self.file.apply(late);
        }
        self.file.apply(change);
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
                assert!(whole && bytes.len() <= METADATA_IO_BYTES_MAX, "direct I/O needs whole pages");
                assert!(offset + bytes.len() as u64 <= self.file.now.len, "metadata stays inside the file");
                let change = Change::Write { offset: *offset, bytes: bytes.clone() };
                if self.misdeed == Misdeed::LateEntry && bytes[..4] == *b"loge" {
                    let _ = self.late.replace(change).map(|late| self.file.apply(late));
                } else {
                    self.apply(change);
                }
            }
            OwnedIo::Sync => self.apply(Change::Flush),
            OwnedIo::Extend { from, to } => {
                assert_eq!(*from, self.file.now.len);
                assert!(to > from);
                if self.file.len_max.is_some_and(|max| *to > max) {
                    return Err(IoFailure::OutOfSpace);
                }
                self.apply(Change::SetLen { len: *to });
            }
            OwnedIo::ZeroRange { offset, len } | OwnedIo::PunchHole { offset, len } => {
                assert!(offset + len <= self.file.now.len && *len > 0);
                let punches = matches!(kind, OwnedIo::PunchHole { .. });
                if self.file.zero_range_unsupported && !punches || self.file.punch_unsupported && punches {
                    return Err(IoFailure::Unsupported);
                }
                self.apply(Change::Zero { offset: *offset, len: *len });
            }
            OwnedIo::Truncate { len } => {
                assert!(*len < self.file.now.len);
                self.apply(Change::SetLen { len: *len });
            }
            OwnedIo::Read { .. } | OwnedIo::Barrier | OwnedIo::Copy { .. } => {}
        }
        Ok(())
    }

    /// Copy payload inside the file; whether all of it is zero.
    fn copy(&mut self, from: u64, to: u64, len: u64) -> bool {
        let mut bytes = vec![0; len as usize];
        self.file.now.read(from, &mut bytes);
        let zeros = bytes.iter().all(|byte| *byte == 0);
        if from != to {
            // The new place reads as zeros: what is zero need not be written.
            for (at, part) in (to..).step_by(PAGE as usize).zip(bytes.chunks(PAGE as usize)) {
                if part.iter().any(|byte| *byte != 0) {
                    self.apply(Change::Write { offset: at, bytes: part.into() });
                }
            }
        }
        zeros
    }

    /// Take every operation that the engine offers now, and carry them out in a random order; false when there is none.
    pub fn turn(&mut self) -> bool {
        let (mut offered, mut some) = (Vec::new(), false);
        while let Some(io) = self.engine.poll_io() {
            some = true;
            if self.random.below(16) == 0 {
                let id = io.id;
                self.engine.not_started(id);
                continue;
            }
            offered.push((io.id, OwnedIo::of(io.kind)));
        }
        while !offered.is_empty() {
            let at = self.random.below(offered.len() as u64) as usize;
            let (id, kind) = offered.swap_remove(at);
            self.asked_for.push(kind.name());
            let result = self.carry_out(&kind);
            match kind {
                OwnedIo::Barrier if result.is_ok() => self.barriers.push((id, self.plans)),
                OwnedIo::Read { offset, len } => {
                    let mut bytes = vec![0; len as usize];
                    self.file.now.read(offset, &mut bytes);
                    self.engine.complete_read(id, result.map(|()| &bytes[..]));
                }
                OwnedIo::Copy { from, to, len } => {
                    let result = result.map(|()| self.copy(from, to, len));
                    self.engine.complete_copy(id, result);
                }
                _ => self.engine.complete(id, result),
            }
        }
        some |= self.end_barriers();
        while let Some(event) = self.engine.poll_event() {
            self.events.push(event);
        }
        some
    }

    fn end_barriers(&mut self) -> bool {
        let oldest = self.held.iter().flatten().map(|held| held.planned).min().unwrap_or(u64::MAX);
        let faulty = self.misdeed == Misdeed::NoBarrier;
        let (ended, waiting): (Vec<_>, Vec<_>) =
            self.barriers.drain(..).partition(|(_, plans)| faulty || oldest > *plans);
        self.barriers = waiting;
        for (id, _) in &ended {
            self.engine.complete(*id, Ok(()));
        }
        !ended.is_empty()
    }

    pub fn settle(&mut self) {
        while self.turn() {}
    }

    /// Wait for a ticket that was queued.
    pub fn wait(&mut self, ticket: Ticket) -> Result<Done, Option<Event>> {
        // The longest file has holes of 128 TiB, which are punched by the GiB.
        for _ in 0..200_000 {
            let is = |event: &Event| matches!(event, Event::Done { ticket: done, .. } if *done == ticket);
            if let Some(at) = self.events.iter().position(is) {
                let event = self.events.swap_remove(at);
                return match event {
                    Event::Done { result: Ok(done), .. } => Ok(done),
                    event => Err(Some(event)),
                };
            }
            // Shards do not ask again when nothing is under way.
            let going = self.turn();
            assert!(going || self.events.iter().any(is), "{ticket:?}: nothing is under way, and it does not end");
        }
        panic!("{ticket:?} does not end: {:?}", self.asked_for.iter().rev().take(8).collect::<Vec<_>>());
    }

    fn ticket(&mut self) -> Ticket {
        self.plans += 1;
        Ticket(1 << 32 | self.plans)
    }

    pub fn plan_write(&self, offset: u64, len: u32) -> WritePlan {
        self.chain.plan_write(offset, len)
    }

    pub fn load(&mut self, fault: Fault) -> Result<(), Option<Event>> {
        let ticket = self.ticket();
        if self.engine.load(fault, ticket).map_err(|_| None)? == Asked::Queued {
            self.wait(ticket)?;
        }
        Ok(())
    }

    /// Plan a write, have prepared what it needs, and hold it with its data on the way.
    pub fn begin_write(&mut self, offset: u64, bytes: &[u8]) -> Result<usize, Option<Event>> {
        loop {
            match self.chain.plan_write(offset, bytes.len() as u32) {
                WritePlan::Poisoned => return Err(None),
                WritePlan::Fault(fault) => self.load(fault.fault)?,
                WritePlan::Prepare => {
                    let ticket = self.ticket();
                    let asked = self.engine.prepare(offset, bytes.len() as u64, ticket).map_err(|_| None)?;
                    if asked == Asked::Queued {
                        self.wait(ticket)?;
                    }
                }
                WritePlan::Ready { extents, commit, epoch } => {
                    let covered = u64::from(extents.covered_bytes());
                    let place = |extent: &Extent| match extent {
                        Extent::File { layer: 0, offset_bytes, len_bytes } => (*offset_bytes, u64::from(*len_bytes)),
                        other => panic!("a ready write has extents in the leaf only: {other:?}"),
                    };
                    let extents = extents.as_slice().iter().map(place).collect();
                    self.plans += 1;
                    let planned = self.plans;
                    let bytes = bytes.to_vec();
                    let held = Held { offset, bytes, extents, commit, epoch, covered, planned };
                    self.held.push(Some(held));
                    return Ok(self.held.len() - 1);
                }
            }
        }
    }

    /// The data of a held write lands, and is made visible; then the rest of it goes the same way.
    pub fn end_write(&mut self, held: usize) -> Result<(), Option<Event>> {
        let mut done = held;
        loop {
            let held = self.held[done].as_ref().expect("held");
            let (offset, bytes, covered) = (held.offset, held.bytes.clone(), held.covered);
            let (commit, epoch, extents) = (held.commit, held.epoch, held.extents.clone());
            let mut landed = 0;
            for (place, len) in extents {
                let part = bytes[landed as usize..(landed + len) as usize].into();
                let inside = place + len <= self.file.now.len;
                assert!(inside || self.misdeed == Misdeed::NoBarrier, "blocks are inside the file");
                self.apply(Change::Write { offset: place, bytes: part });
                landed += len;
            }
            let mut again = false;
            if commit {
                let ticket = self.ticket();
                let asked = self.engine.commit(offset, covered, epoch, ticket).map_err(|_| None)?;
                again = asked == Asked::Queued && self.wait(ticket)? == Done::PlanAgain;
            }
            self.held[done] = None;
            let next = if again { 0 } else { covered };
            if next == bytes.len() as u64 {
                return Ok(());
            }
            done = self.begin_write(offset + next, &bytes[next as usize..])?;
        }
    }

    /// Write guest bytes as a shard does.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Option<Event>> {
        let held = self.begin_write(offset, bytes)?;
        self.end_write(held)
    }

    /// Write these ranges, each of them atomically, as shards do that have them to themselves.
    pub fn write_atomics(&mut self, writes: &[(u64, Vec<u8>)]) -> Result<(), Option<Event>> {
        let mut places = Vec::new();
        {
            let mut waiting = self.payload.0.lock().expect("nobody panics");
            waiting.clear();
            for (_, bytes) in writes {
                places.push(waiting.len() as u64);
                waiting.extend_from_slice(bytes);
            }
        }
        let mut left: Vec<usize> = (0..writes.len()).collect();
        while !left.is_empty() {
            let mut asked = Vec::new();
            for at in std::mem::take(&mut left) {
                let (offset, len) = (writes[at].0, writes[at].1.len() as u64);
                let payload: Arc<dyn Payload> = Arc::clone(&self.payload) as _;
                let ticket = self.ticket();
                let result = self.engine.write_atomic(offset, len, payload, places[at], ticket).map_err(|_| None)?;
                assert_eq!(result, Asked::Queued, "it takes a while");
                asked.push((at, ticket));
            }
            for (at, ticket) in asked {
                if self.wait(ticket)? == Done::PlanAgain {
                    self.make_present(writes[at].0, writes[at].1.len() as u64)?;
                    left.push(at);
                }
            }
        }
        Ok(())
    }

    /// Have a range in the file without changing what is read there.
    fn make_present(&mut self, offset: u64, len: u64) -> Result<(), Option<Event>> {
        if self.parent.is_some() {
            let mut bytes = vec![0; len as usize];
            self.read(offset, &mut bytes);
            return self.write(offset, &bytes);
        }
        let ticket = self.ticket();
        if self.engine.prepare(offset, len, ticket).map_err(|_| None)? == Asked::Queued {
            self.wait(ticket)?;
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

    /// Ask for a step of compaction, and let it happen.
    pub fn begin_relocate(&mut self) {
        let ticket = self.ticket();
        let _ = self.engine.relocate_some(ticket);
    }

    /// One step of compaction; false when there is nothing left.
    pub fn relocate(&mut self) -> bool {
        let ticket = self.ticket();
        match self.engine.relocate_some(ticket) {
            Ok(Asked::Already) => false,
            Ok(Asked::Queued) => self.wait(ticket).is_ok(),
            Err(_) => false,
        }
    }

    pub fn read(&mut self, offset: u64, into: &mut [u8]) {
        let (chain, mut done) = (self.chain.clone(), 0);
        while done < into.len() {
            match chain.plan_read(offset + done as u64, (into.len() - done) as u32) {
                ReadPlan::Fault(fault) => self.load(fault.fault).expect("the page loads"),
                ReadPlan::Torn => panic!("no operation has failed"),
                ReadPlan::Extents(extents) => {
                    for extent in extents.as_slice() {
                        let part = &mut into[done..done + extent.len_bytes() as usize];
                        match extent {
                            Extent::Zeros { .. } => part.fill(0),
                            Extent::File { layer: 0, offset_bytes, .. } => self.file.now.read(*offset_bytes, part),
                            Extent::File { offset_bytes, .. } => {
                                self.parent.as_ref().expect("there is a parent").read(*offset_bytes, part);
                            }
                        }
                        done += part.len();
                    }
                }
            }
        }
    }

    /// Read what lies together in the leaf, or is nowhere, and whose pages are in memory. False: it is refused.
    pub fn try_read(&self, offset: u64, into: &mut [u8]) -> bool {
        let ReadPlan::Extents(extents) = self.chain.plan_read(offset, into.len() as u32) else { return false };
        match extents.as_slice() {
            [Extent::File { layer: 0, offset_bytes, len_bytes }] => {
                assert_eq!(*len_bytes as usize, into.len());
                self.file.now.read(*offset_bytes, into);
            }
            extents => panic!("{extents:?}"),
        }
        true
    }

    /// The guest's SYNCHRONIZE CACHE.
    pub fn flush(&mut self) {
        let mark = self.map.flush_started();
        self.apply(Change::Flush);
        self.map.flush_done(mark);
    }

    pub fn close(mut self) -> (RecordedFile, Event) {
        self.engine.close();
        self.settle();
        let last = self.events.pop().expect("closing ends with an event");
        (self.file, last)
    }
}
