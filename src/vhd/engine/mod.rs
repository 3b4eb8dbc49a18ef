//! The engine of a VHD that is written: where blocks get their space, sector bitmaps, and the order of writes that
//! stands in for a log. Owned by the disk's home shard.
//!
//! Requests collect while others are worked on. A batch of requests is carried out in rounds ([`rounds`]); each round
//! is a few steps, one behind the other ([`steps`]), and a step may give out several operations at once. Beside them
//! pages of sector bits are loaded ([`loads`]), which readers wait for.

mod grow;
mod loads;
mod rounds;
mod steps;

use std::collections::VecDeque;
use std::sync::Arc;

use loads::Loads;
use rounds::{Chunk, Cleared};
use steps::{STAGING_LEN, Step};

use super::format::{FOOTER_LEN, Footer};
use super::table::{BlockLayout, TablePlace};
use crate::blocks::{
    Asked, BlockMap, Done, Engine as EngineContract, EngineError, Entry, Event, Fault, FlushMark, IoFailure, IoId,
    MetadataIo, MetadataIoKind, SpaceReport, State, Table, Ticket,
};

/// Requests that may wait, and that may be worked on.
const REQUESTS_MAX: usize = 256;

/// Events that may wait: one for each ticket, and the few that have none.
const EVENTS_MAX: usize = 2 * REQUESTS_MAX + loads::LOADS_MAX + 4;

/// What `open` knows about the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct FileState {
    /// The footer that counts.
    pub footer: Footer,
    /// It is the last 512 bytes of the file.
    pub end_good: bool,
    /// Its copy is at the start.
    pub copy_good: bool,
    pub len_bytes: u64,
    /// Behind every block and structure.
    pub objects_end_bytes: u64,
    pub table_offset_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No write session yet: the file is as it was opened.
    Unmodified,
    /// The steps that open the session are running.
    Opening,
    /// Requests are served.
    Open,
    /// The steps that close the disk are running.
    Closing,
    Closed,
    Poisoned,
}

/// An operation of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    /// From the staging buffer.
    Write {
        offset_bytes: u64,
        at: usize,
        len: usize,
    },
    Sync {
        mark: FlushMark,
    },
    Extend {
        to_bytes: u64,
    },
    ZeroRange {
        offset_bytes: u64,
        len_bytes: u64,
    },
    PunchHole {
        offset_bytes: u64,
        len_bytes: u64,
    },
    Truncate {
        len_bytes: u64,
    },
}

#[derive(Clone, Copy, Debug)]
struct Running {
    id: IoId,
    operation: Operation,
    given_out: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RequestKind {
    Prepare,
    Commit { epoch: u32 },
    Unmap,
}

/// Something that was asked for; it is done up to `cursor`.
#[derive(Clone, Copy, Debug)]
struct Request {
    kind: RequestKind,
    start: u64,
    cursor: u64,
    end: u64,
    ticket: Ticket,
}

/// How blocks are made to read as zeros: the best way that the file system knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ZeroMode {
    Punch,
    ZeroRange,
    Write,
}

/// Space and bitmaps of one open disk.
pub struct Engine {
    map: Arc<BlockMap>,
    layout: BlockLayout,
    table: TablePlace,
    footer: Footer,
    end_good: bool,
    copy_good: bool,

    phase: Phase,
    begin_wanted: bool,
    close_wanted: bool,

    file_len_bytes: u64,
    /// Behind everything that has a place: the next block goes behind it.
    next_bytes: u64,
    /// Up to here the file's size, its footer and the bitmaps of the blocks to come are durable.
    ready_bytes: u64,
    /// Blocks that have a place, staged ones included.
    blocks_placed: u32,
    /// How much to grow next time; less after the file system has refused.
    growth: grow::Growth,
    zero_mode: ZeroMode,

    collecting: Vec<Request>,
    working: Vec<Request>,
    /// Blocks that get a place in this round, and where their data will be; no parent.
    fresh: Vec<(u32, u64)>,
    /// What this round commits.
    chunks: Vec<Chunk>,
    /// Pages of bits that are pinned for it.
    pinned: Vec<u32>,
    /// Blocks that this round releases.
    cleared: Vec<Cleared>,
    /// How far the step has come that goes through them.
    progress: (usize, u64),

    script: VecDeque<Step>,
    step: Option<Step>,
    flight: Vec<Running>,
    flight_failure: Option<IoFailure>,
    /// Something was changed since the last flush.
    changed: bool,
    loads: Loads,
    next_io: u32,
    staging: Vec<u8>,
    events: VecDeque<Event>,
}

impl Engine {
    pub(super) fn new(map: Arc<BlockMap>, file: FileState) -> Self {
        let layout = BlockLayout::new(map.shape().block_bytes());
        let table = TablePlace { offset_bytes: file.table_offset_bytes, blocks: map.shape().blocks() };
        let blocks_placed = map.blocks_allocated();
        Self {
            map,
            layout,
            table,
            footer: file.footer,
            end_good: file.end_good,
            copy_good: file.copy_good,
            phase: Phase::Unmodified,
            begin_wanted: false,
            close_wanted: false,
            file_len_bytes: file.len_bytes,
            next_bytes: file.objects_end_bytes,
            ready_bytes: 0,
            blocks_placed,
            growth: grow::Growth::Ahead,
            zero_mode: ZeroMode::Punch,
            collecting: Vec::new(),
            working: Vec::new(),
            fresh: Vec::new(),
            chunks: Vec::new(),
            pinned: Vec::new(),
            cleared: Vec::new(),
            progress: (0, 0),
            script: VecDeque::new(),
            step: None,
            flight: Vec::new(),
            flight_failure: None,
            changed: false,
            loads: Loads::default(),
            next_io: 0,
            staging: Vec::new(),
            events: VecDeque::new(),
        }
    }

    fn has_parent(&self) -> bool {
        self.map.shape().has_parent
    }

    /// A block's entry: the whole table is resident.
    fn entry(&self, block: u32) -> Entry {
        self.map.entry(block).expect("the whole table is resident")
    }

    fn store(&self, block: u32, entry: Entry) {
        self.map.store(block, entry).expect("the whole table is resident, and nobody else fills it");
    }

    fn refuse_unless_serving(&self) -> Result<(), EngineError> {
        if self.phase == Phase::Poisoned || self.map.poisoned() {
            return Err(EngineError::Poisoned);
        }
        if self.close_wanted { Err(EngineError::Closed) } else { Ok(()) }
    }

    /// What a disk needs once it is written: nothing is allocated after this.
    fn reserve_buffers(&mut self) {
        if self.staging.is_empty() {
            self.staging.resize(STAGING_LEN, 0);
            self.collecting.reserve_exact(REQUESTS_MAX);
            self.working.reserve_exact(REQUESTS_MAX);
            self.fresh.reserve_exact(rounds::FRESH_MAX);
            self.chunks.reserve_exact(rounds::CHUNKS_MAX);
            self.pinned.reserve_exact(rounds::CHUNKS_MAX);
            self.cleared.reserve_exact(rounds::CLEARED_MAX);
            self.flight.reserve_exact(steps::FLIGHT_MAX);
            self.script.reserve_exact(steps::SCRIPT_MAX);
            self.events.reserve_exact(EVENTS_MAX);
        }
    }

    fn ask(&mut self, kind: RequestKind, offset: u64, len: u64, ticket: Ticket) -> Result<Asked, EngineError> {
        let end = offset + len;
        assert!(end <= self.map.shape().size_bytes, "the range lies within the disk");
        self.refuse_unless_serving()?;
        self.reserve_buffers();
        if self.collecting.len() == REQUESTS_MAX {
            return Err(EngineError::Busy);
        }
        self.collecting.push(Request { kind, start: offset, cursor: offset, end, ticket });
        Ok(Asked::Queued)
    }

    fn push_event(&mut self, event: Event) {
        assert!(self.events.len() < EVENTS_MAX, "requests are refused before events overflow");
        self.events.push_back(event);
    }

    fn fresh_id(&mut self) -> IoId {
        self.next_io = self.next_io.wrapping_add(1);
        IoId(self.next_io)
    }

    /// Fail everything that waits, for good. Pages are still loaded: what is there can be read.
    fn poison(&mut self) {
        let opening = self.phase == Phase::Opening || (self.phase == Phase::Unmodified && self.begin_wanted);
        self.map.poison();
        self.phase = Phase::Poisoned;
        self.script.clear();
        self.step = None;
        self.flight.retain(|running| running.given_out);
        if opening {
            self.push_event(Event::WriteSession(Err(EngineError::Poisoned)));
        }
        let requests = self.working.drain(..).chain(self.collecting.drain(..));
        for request in requests {
            self.events.push_back(Event::Done { ticket: request.ticket, result: Err(EngineError::Poisoned) });
        }
        if self.close_wanted {
            self.push_event(Event::Closed(Err(EngineError::Poisoned)));
        }
    }
}

impl EngineContract for Engine {
    fn map(&self) -> &Arc<BlockMap> {
        &self.map
    }

    fn begin_write_session(&mut self) -> Result<(), EngineError> {
        self.refuse_unless_serving()?;
        self.begin_wanted |= self.phase == Phase::Unmodified;
        self.reserve_buffers();
        Ok(())
    }

    fn prepare(&mut self, offset_bytes: u64, len_bytes: u64, ticket: Ticket) -> Result<Asked, EngineError> {
        self.refuse_unless_serving()?;
        if self.phase == Phase::Open && self.place_staged(offset_bytes, len_bytes) {
            return Ok(Asked::Already);
        }
        self.ask(RequestKind::Prepare, offset_bytes, len_bytes, ticket)
    }

    fn commit(&mut self, offset_bytes: u64, len_bytes: u64, epoch: u32, ticket: Ticket) -> Result<Asked, EngineError> {
        self.ask(RequestKind::Commit { epoch }, offset_bytes, len_bytes, ticket)
    }

    fn unmap(&mut self, offset_bytes: u64, len_bytes: u64, ticket: Ticket) -> Result<Asked, EngineError> {
        self.ask(RequestKind::Unmap, offset_bytes, len_bytes, ticket)
    }

    /// A VHD is compacted offline, by converting it: without a log, a block that moves would need three flushes.
    fn relocate_some(&mut self, _ticket: Ticket) -> Result<Asked, EngineError> {
        self.refuse_unless_serving()?;
        Ok(Asked::Already)
    }

    fn load(&mut self, fault: Fault, ticket: Ticket) -> Result<Asked, EngineError> {
        if fault.table == Table::Entries || self.map.bits().is_resident(fault.page) {
            return Ok(Asked::Already);
        }
        if self.phase == Phase::Closed {
            return Err(EngineError::Closed);
        }
        self.loads.ask(fault.page, Some(ticket))?;
        Ok(Asked::Queued)
    }

    fn poll_io(&mut self) -> Option<MetadataIo<'_>> {
        self.advance_loads();
        self.advance();
        if let Some(running) = self.flight.iter_mut().find(|running| !running.given_out) {
            running.given_out = true;
            let kind = match running.operation {
                Operation::Write { offset_bytes, at, len } => {
                    MetadataIoKind::Write { offset_bytes, bytes: &self.staging[at..at + len] }
                }
                Operation::Sync { .. } => MetadataIoKind::Sync,
                Operation::Extend { to_bytes } => MetadataIoKind::Extend { from_bytes: self.file_len_bytes, to_bytes },
                Operation::ZeroRange { offset_bytes, len_bytes } => {
                    MetadataIoKind::ZeroRange { offset_bytes, len_bytes }
                }
                Operation::PunchHole { offset_bytes, len_bytes } => {
                    MetadataIoKind::PunchHole { offset_bytes, len_bytes }
                }
                Operation::Truncate { len_bytes } => MetadataIoKind::Truncate { len_bytes },
            };
            return Some(MetadataIo { id: running.id, kind });
        }
        let (id, offset_bytes, len_bytes) = self.loads.give_out()?;
        Some(MetadataIo { id, kind: MetadataIoKind::Read { offset_bytes, len_bytes } })
    }

    fn complete(&mut self, id: IoId, result: Result<(), IoFailure>) {
        if let Some(at) = self.flight.iter().position(|running| running.id == id && running.given_out) {
            let running = self.flight.swap_remove(at);
            self.finish_operation(running.operation, result);
        } else {
            let failure = result.expect_err("a read that has succeeded has bytes");
            self.finish_read(id, Err(failure));
        }
    }

    fn complete_read(&mut self, id: IoId, result: Result<&[u8], IoFailure>) {
        self.finish_read(id, result);
    }

    fn complete_copy(&mut self, id: IoId, _result: Result<bool, IoFailure>) {
        panic!("this engine copies nothing: {id:?}");
    }

    fn not_started(&mut self, id: IoId) {
        match self.flight.iter_mut().find(|running| running.id == id) {
            Some(running) => running.given_out = false,
            None => self.loads.not_started(id),
        }
    }

    fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn close(&mut self) {
        if self.phase == Phase::Poisoned && !self.close_wanted {
            self.push_event(Event::Closed(Err(EngineError::Poisoned)));
        }
        self.close_wanted = true;
        self.reserve_buffers();
    }

    fn is_idle(&self) -> bool {
        self.flight.is_empty()
            && self.script.is_empty()
            && self.collecting.is_empty()
            && self.working.is_empty()
            && self.loads.is_idle()
            && self.events.is_empty()
    }

    fn space(&self) -> SpaceReport {
        SpaceReport {
            file_len_bytes: self.file_len_bytes,
            allocated_bytes: u64::from(self.map.blocks_allocated()) * self.layout.unit_bytes(),
            free_inside_bytes: self.file_len_bytes.saturating_sub(self.next_bytes + FOOTER_LEN),
            condemned_bytes: 0,
        }
    }
}

impl Engine {
    /// A request has ended.
    fn answer(&mut self, ticket: Ticket, result: Result<Done, EngineError>) {
        self.push_event(Event::Done { ticket, result });
    }

    /// Whether a block has all of its sectors here.
    fn is_full(&self, block: u32) -> bool {
        self.entry(block).state() == State::Full
    }
}
