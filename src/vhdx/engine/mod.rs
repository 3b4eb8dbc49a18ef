//! The engine of a disk that is written: who has which space, and the log; owned by the disk's home shard or by a
//! blocking job. It implements [`blocks::Engine`](crate::blocks::Engine), whose documentation has the caller's loop.
//!
//! # Lanes
//!
//! Operations run in lanes, at most one in each:
//!
//! * **Steps**: the programs of `steps`, in order, because each step depends on the one before it: opening the session,
//!   a group of changes (`group`, `entry`), the turn of an epoch, closing. While one group's entry is being written the
//!   next collects.
//! * **Ahead**: growing the file ahead of need (`reserve`).
//! * **Reclaim**: making space that nothing refers to any more fit for reuse (`reclaim`).
//! * **Relocate**: moving blocks towards the start of the file (`relocate`).
//! * **Loads**: pages of the map (`pages`).
//!
//! # Why a write is never lost, and never shows what it should not
//!
//! *Publishing first.* A block that reads as zeros now (no parent behind it, or its state says zeros) gets space that
//! reads as zeros durably, and shows at once when its log entry has been written; then the data goes there. Whatever
//! survives a power cut, each sector reads as zeros or as the data.
//!
//! *Staging.* Where the absence of a block or of a sector shows the parent, space is reserved unseen (`Stage`), the
//! data is written there, made durable, and one entry with the bits and the block's word makes it visible (`Commit`).
//!
//! *What may meet what.* A block is in at most one change of the group that collects and one of the group that is being
//! written, and both at once only when both are commits: all others wait. Hence:
//!
//! * A commit after the block's space was taken away: the epoch has been bumped behind the new word, and the plan
//!   loaded the epoch before the words, so the commit is old: the write is planned and made again. A commit that is in
//!   a group keeps its block until it is visible: unmap waits for the group.
//! * A write in flight while its block is unmapped: it lands in space that nobody sees and that nobody gets before the
//!   barrier behind the entry; the two commands overlapped, so "first written, then unmapped" is a right order.
//! * Unmap of a block with staged writes: the same, and their commits are old.
//! * Staged space taken back for want of memory (`unstage`): condemned as if unmapped; commits are old.
//! * A block that moves is busy: no new plan writes it. The barrier lets those that planned before end, their commits
//!   included, and only then it is copied: nothing is written into the old place after that. Whoever wants to write it
//!   before the copy has begun cancels the move; later ones wait for its end.
//! * A read that planned before a block was unmapped or moved finds the old bytes: they are zeroed behind a barrier.
//!
//! *Atomic writes* go through the log themselves (`atomic`).
//!
//! *Freed space.* Entry written → [`Barrier`](crate::blocks::MetadataIoKind::Barrier) → sync → punched (else zeroed) →
//! sync → free. The first sync keeps the punch from reaching a block that is still mapped after a power cut, the second
//! keeps old bytes from showing up in the block that is next. Sector bitmap blocks are never moved or freed, because
//! entries of the epoch that a replay applies again name their place.

mod atomic;
mod entry;
mod group;
mod pages;
mod reclaim;
mod relocate;
mod requests;
mod reserve;
mod serve;
mod steps;

use std::collections::VecDeque;
use std::sync::Arc;

use atomic::{ATOMIC_PAGES_MAX, ATOMICS_MAX, Atomic};
use group::{Group, PAGES_MAX};
use pages::Pages;
use reclaim::Reclaim;
use relocate::Relocation;
use requests::{REQUESTS_MAX, Requests};
use steps::Step;

use super::GuidSource;
use super::format::{Guid, PAGE};
use super::geometry::Geometry;
use super::header::CurrentHeader;
use super::region::TableRepair;
use super::space::Space;
use crate::blocks::{
    self, Asked, BlockMap, EngineError, Event, Fault, FlushMark, IoFailure, IoId, MetadataIo, MetadataIoKind, Payload,
    SpaceReport, Ticket,
};

/// The longest entry, and the longest run of pages written in place.
pub(super) const STAGING_LEN: usize = (1 + PAGES_MAX) * PAGE;

/// Events that may wait: one for each request, and the few that have none.
const EVENTS_MAX: usize = REQUESTS_MAX + 8;

/// Pages that are loaded at once.
const LOAD_LANES: usize = 8;

const STEPS: usize = 0;
const AHEAD: usize = 1;
const RECLAIM: usize = 2;
const RELOCATE: usize = 3;
const LOADS: usize = 4;
const LANES: usize = LOADS + LOAD_LANES;

/// What zeros are written from where the file system cannot make them.
static NOTHING: [u8; 64 * 1024] = [0; 64 * 1024];

/// What `open` knows about the file.
#[derive(Clone, Debug)]
pub(super) struct FileState {
    /// Its size.
    pub file_len_bytes: u64,
    /// What of it is taken.
    pub space: Space,
    /// Sector bitmap blocks.
    pub bitmaps: u32,
    /// FileWriteGuid has changed since the file was opened: a replay did it.
    pub file_write_guid_new: bool,
    /// What DataWriteGuid becomes when it changes; `None`: a random value.
    pub data_write_guid: Option<Guid>,
    /// A copy of the region table to be written anew.
    pub repair: Option<TableRepair>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No session yet: the file is as it was opened.
    Unmodified,
    /// The steps that open the session are running.
    Opening,
    /// Changes are served.
    Open,
    /// The steps that close the disk are running.
    Closing,
    Closed,
    Poisoned,
}

/// An operation that was given out or waits to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    /// From the staging buffer's start.
    Write {
        offset_bytes: u64,
        len: usize,
    },
    /// Zeros.
    WriteZeros {
        offset_bytes: u64,
        len: usize,
    },
    /// A page of the map.
    Read {
        fault: Fault,
        offset_bytes: u64,
        len: u32,
    },
    /// With what it makes durable, and how often the file had been cut.
    Sync {
        mark: FlushMark,
        file_len_bytes: u64,
        cuts: u32,
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
    Barrier,
    Copy {
        from_bytes: u64,
        to_bytes: u64,
        len_bytes: u64,
    },
}

#[derive(Clone, Copy, Debug)]
struct Running {
    id: IoId,
    operation: Operation,
    given_out: bool,
}

/// The part of the log ring that this session uses.
#[derive(Clone, Copy, Debug)]
struct LogState {
    offset_bytes: u64,
    len_bytes: u64,
    /// The GUID of the entries being written: the header's, except while an epoch turns.
    log_guid: Guid,
    /// Ring offset of the next entry.
    head: u64,
    /// Ring offset of the oldest entry whose pages may not be in place: the epoch's first.
    tail: u64,
    /// Of the last entry written.
    sequence_number: u64,
    /// The file size that the epoch's entries say is on stable storage: a shorter file would be refused.
    promised_len_bytes: u64,
}

/// Space, table and log of one open disk.
pub struct Engine {
    geometry: Geometry,
    map: Arc<BlockMap>,
    guids: GuidSource,
    phase: Phase,
    /// A session with a new DataWriteGuid is wanted: the guest writes.
    begin_wanted: bool,
    /// A session is wanted, whatever its DataWriteGuid: blocks are moved.
    layout_wanted: bool,
    close_wanted: bool,
    /// The file's tail is to be cut.
    cut_wanted: bool,
    /// Pages cannot be pinned: write the dirty ones in place.
    apply_wanted: bool,

    header: CurrentHeader,
    file_write_guid_new: bool,
    data_write_guid_new: bool,
    data_write_guid: Option<Guid>,
    log: LogState,

    file_len_bytes: u64,
    /// A file size that is known to be on stable storage.
    file_len_durable_bytes: u64,
    /// How often the file was cut.
    cuts: u32,
    space: Space,
    bitmaps: u32,
    repair: Option<TableRepair>,
    /// Growing ahead of need has failed for lack of space; groups still try for what they need.
    ahead_refused: bool,

    requests: Requests,
    /// Something has changed that those in the queue may wait for.
    retry: bool,
    collecting: Group,
    committing: Group,
    /// Atomic writes whose entry is in the log.
    sealed: Vec<Atomic>,
    /// Where the data of atomic writes waits.
    payload: Option<Arc<dyn Payload>>,
    pages: Pages,
    reclaim: Reclaim,
    relocation: Relocation,

    script: VecDeque<Step>,
    step: Option<Step>,
    lanes: [Option<Running>; LANES],
    next_io: u32,
    staging: Vec<u8>,
    events: VecDeque<Event>,
}

impl Engine {
    pub(super) fn new(
        geometry: Geometry,
        map: Arc<BlockMap>,
        header: CurrentHeader,
        file: FileState,
        guids: GuidSource,
    ) -> Self {
        let log = LogState {
            offset_bytes: header.header.log_offset.get(),
            len_bytes: u64::from(header.header.log_length.get()),
            log_guid: Guid::ZERO,
            head: 0,
            tail: 0,
            sequence_number: 0,
            promised_len_bytes: 0,
        };
        Self {
            geometry,
            map,
            guids,
            phase: Phase::Unmodified,
            begin_wanted: false,
            layout_wanted: false,
            close_wanted: false,
            cut_wanted: false,
            apply_wanted: false,
            header,
            file_write_guid_new: file.file_write_guid_new,
            data_write_guid_new: false,
            data_write_guid: file.data_write_guid,
            log,
            file_len_bytes: file.file_len_bytes,
            // A file that was closed or replayed has been flushed; nothing else is known to be.
            file_len_durable_bytes: 0,
            cuts: 0,
            space: file.space,
            bitmaps: file.bitmaps,
            repair: file.repair,
            ahead_refused: false,
            requests: Requests::default(),
            retry: false,
            collecting: Group::default(),
            committing: Group::default(),
            sealed: Vec::new(),
            payload: None,
            pages: Pages::default(),
            reclaim: Reclaim::default(),
            relocation: Relocation::default(),
            script: VecDeque::new(),
            step: None,
            lanes: [None; LANES],
            next_io: 0,
            staging: Vec::new(),
            events: VecDeque::new(),
        }
    }

    /// The disk's geometry.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn block_len(&self) -> u64 {
        u64::from(self.geometry.block_size_bytes)
    }

    fn refuse_unless_serving(&self) -> Result<(), EngineError> {
        if self.phase == Phase::Poisoned || self.map.poisoned() {
            return Err(EngineError::Poisoned);
        }
        if self.close_wanted { Err(EngineError::Closed) } else { Ok(()) }
    }

    /// What a disk needs once something is asked of it: nothing is allocated after this.
    fn reserve_buffers(&mut self) {
        if self.staging.is_empty() {
            self.staging.resize(STAGING_LEN, 0);
            self.requests = Requests::with_capacity();
            self.collecting = Group::with_capacity();
            self.committing = Group::with_capacity();
            self.sealed.reserve_exact(ATOMICS_MAX);
            self.pages.reserve();
            self.reclaim.reserve();
            self.script.reserve_exact(steps::SCRIPT_MAX);
            self.events.reserve_exact(EVENTS_MAX);
            let blocks = u64::from(self.geometry.block_count.saturating_sub(self.map.blocks_allocated()));
            self.space.reserve(self.space.end_bytes() + blocks * self.block_len());
        }
    }

    fn operation(&mut self, operation: Operation) -> Running {
        self.next_io = self.next_io.wrapping_add(1);
        Running { id: IoId(self.next_io), operation, given_out: false }
    }

    fn start_in(&mut self, lane: usize, operation: Operation) {
        assert!(self.lanes[lane].is_none(), "a lane has one operation at a time");
        self.lanes[lane] = Some(self.operation(operation));
    }

    fn sync(&self) -> Operation {
        Operation::Sync { mark: self.map.flush_started(), file_len_bytes: self.file_len_bytes, cuts: self.cuts }
    }

    fn push_event(&mut self, event: Event) {
        assert!(self.events.len() < EVENTS_MAX, "what is open is bounded, and so are its events");
        self.events.push_back(event);
    }

    /// Take an operation that has ended out of its lane.
    fn take(&mut self, id: IoId) -> (usize, Operation) {
        let is = |running: &mut Running| running.id == id && running.given_out;
        for (lane, running) in self.lanes.iter_mut().enumerate() {
            if let Some(running) = running.take_if(is) {
                return (lane, running.operation);
            }
        }
        panic!("completion of an operation that is not in flight: {id:?}");
    }

    /// What every operation that has gone well changes.
    fn account(&mut self, operation: Operation) {
        match operation {
            Operation::Sync { mark, file_len_bytes, cuts } => {
                self.map.flush_done(mark);
                // A file that was cut while it ran, and has grown again, is not known to have this size.
                if cuts == self.cuts {
                    self.file_len_durable_bytes = file_len_bytes;
                }
            }
            Operation::Extend { to_bytes } => self.file_len_bytes = to_bytes,
            Operation::Truncate { len_bytes } => {
                self.cuts = self.cuts.wrapping_add(1);
                self.file_len_bytes = len_bytes;
                self.file_len_durable_bytes = self.file_len_durable_bytes.min(len_bytes);
            }
            _ => {}
        }
    }

    fn finish(&mut self, lane: usize, operation: Operation, result: Result<(), IoFailure>) {
        if self.phase == Phase::Poisoned {
            return;
        }
        if result.is_ok() {
            self.account(operation);
        }
        match lane {
            STEPS => self.finish_step(result),
            AHEAD => self.finish_ahead(result),
            RECLAIM => self.finish_reclaim(result),
            RELOCATE => self.finish_relocate(result.map(|()| false)),
            _ => self.finish_load(operation, result.map(|()| None)),
        }
        self.retry = true;
    }

    /// Fail everything that waits, for good.
    fn poison(&mut self) {
        self.mark_torn();
        let opening = self.phase == Phase::Opening || self.begin_wanted;
        self.map.poison();
        self.phase = Phase::Poisoned;
        self.script.clear();
        self.step = None;
        for running in &mut self.lanes {
            running.take_if(|running| !running.given_out);
        }
        if opening {
            self.push_event(Event::WriteSession(Err(EngineError::Poisoned)));
        }
        self.fail_requests(EngineError::Poisoned);
        self.collecting.clear();
        self.committing.clear();
        self.sealed.clear();
        if self.close_wanted {
            self.push_event(Event::Closed(Err(EngineError::Poisoned)));
        }
    }

    fn fail_requests(&mut self, error: EngineError) {
        let mut requests = std::mem::take(&mut self.requests);
        requests.fail_all(error, |event| self.push_event(event));
        self.requests = requests;
        if let Some(ticket) = self.relocation.ticket.take() {
            self.push_event(Event::Done { ticket, result: Err(error) });
        }
    }

    /// Whether a new request's event has room.
    fn refuse_if_full(&self) -> Result<(), EngineError> {
        let owed = self.events.len() + self.requests.open() + usize::from(self.relocation.ticket.is_some());
        if owed + 4 >= EVENTS_MAX { Err(EngineError::Busy) } else { Ok(()) }
    }
}

impl blocks::Engine for Engine {
    fn map(&self) -> &Arc<BlockMap> {
        &self.map
    }

    fn data_write_guid(&self) -> Option<[u8; 16]> {
        Some(self.header.header.data_write_guid.0)
    }

    fn begin_write_session(&mut self) -> Result<(), EngineError> {
        self.refuse_unless_serving()?;
        self.reserve_buffers();
        self.begin_wanted |= !self.map.write_session_open() && !self.opens_for_writing();
        Ok(())
    }

    fn prepare(&mut self, offset_bytes: u64, len_bytes: u64, ticket: Ticket) -> Result<Asked, EngineError> {
        self.ask(requests::Wish::Prepare, offset_bytes, len_bytes, ticket)
    }

    fn commit(&mut self, offset_bytes: u64, len_bytes: u64, epoch: u32, ticket: Ticket) -> Result<Asked, EngineError> {
        self.ask(requests::Wish::Commit { epoch }, offset_bytes, len_bytes, ticket)
    }

    fn unmap(&mut self, offset_bytes: u64, len_bytes: u64, ticket: Ticket) -> Result<Asked, EngineError> {
        self.ask(requests::Wish::Unmap, offset_bytes, len_bytes, ticket)
    }

    fn atomic_write_bytes_max(&self) -> u32 {
        (ATOMIC_PAGES_MAX * PAGE) as u32
    }

    fn write_atomic(
        &mut self,
        offset_bytes: u64,
        len_bytes: u64,
        payload: Arc<dyn Payload>,
        payload_at: u64,
        ticket: Ticket,
    ) -> Result<Asked, EngineError> {
        let page = PAGE as u64;
        assert!(len_bytes > 0 && len_bytes <= u64::from(self.atomic_write_bytes_max()), "the unit says how much");
        assert!(offset_bytes.is_multiple_of(page) && len_bytes.is_multiple_of(page), "the log holds whole pages");
        self.payload = Some(payload);
        self.ask(requests::Wish::Atomic { payload_at }, offset_bytes, len_bytes, ticket)
    }

    fn relocate_some(&mut self, ticket: Ticket) -> Result<Asked, EngineError> {
        self.refuse_unless_serving()?;
        self.refuse_if_full()?;
        self.reserve_buffers();
        self.ask_relocate(ticket)
    }

    fn load(&mut self, fault: Fault, ticket: Ticket) -> Result<Asked, EngineError> {
        self.ask(requests::Wish::Load(fault), 0, 0, ticket)
    }

    fn poll_io(&mut self) -> Option<MetadataIo<'_>> {
        self.advance();
        let running = self.lanes.iter_mut().flatten().find(|running| !running.given_out)?;
        running.given_out = true;
        let kind = match running.operation {
            Operation::Write { offset_bytes, len } => {
                MetadataIoKind::Write { offset_bytes, bytes: &self.staging[..len] }
            }
            Operation::WriteZeros { offset_bytes, len } => {
                MetadataIoKind::Write { offset_bytes, bytes: &NOTHING[..len] }
            }
            Operation::Read { offset_bytes, len, .. } => MetadataIoKind::Read { offset_bytes, len_bytes: len },
            Operation::Sync { .. } => MetadataIoKind::Sync,
            Operation::Extend { to_bytes } => MetadataIoKind::Extend { from_bytes: self.file_len_bytes, to_bytes },
            Operation::ZeroRange { offset_bytes, len_bytes } => MetadataIoKind::ZeroRange { offset_bytes, len_bytes },
            Operation::PunchHole { offset_bytes, len_bytes } => MetadataIoKind::PunchHole { offset_bytes, len_bytes },
            Operation::Truncate { len_bytes } => MetadataIoKind::Truncate { len_bytes },
            Operation::Barrier => MetadataIoKind::Barrier,
            Operation::Copy { from_bytes, to_bytes, len_bytes } => {
                MetadataIoKind::CopyBlock { from_bytes, to_bytes, len_bytes }
            }
        };
        Some(MetadataIo { id: running.id, kind })
    }

    fn complete(&mut self, id: IoId, result: Result<(), IoFailure>) {
        let (lane, operation) = self.take(id);
        self.finish(lane, operation, result);
    }

    fn complete_read(&mut self, id: IoId, result: Result<&[u8], IoFailure>) {
        let (_, operation) = self.take(id);
        if self.phase != Phase::Poisoned {
            self.finish_load(operation, result.map(Some));
            self.retry = true;
        }
    }

    fn complete_copy(&mut self, id: IoId, result: Result<bool, IoFailure>) {
        let _ = self.take(id);
        if self.phase != Phase::Poisoned {
            self.finish_relocate(result);
            self.retry = true;
        }
    }

    fn not_started(&mut self, id: IoId) {
        let running = self.lanes.iter_mut().flatten().find(|running| running.id == id);
        let running = running.expect("the operation was given out");
        assert!(running.given_out);
        running.given_out = false;
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
        self.lanes.iter().all(Option::is_none)
            && self.script.is_empty()
            && self.requests.open() == 0
            && self.collecting.is_empty()
            && self.committing.is_empty()
            && self.sealed.is_empty()
            && self.relocation.ticket.is_none()
            && self.events.is_empty()
    }

    fn space(&self) -> SpaceReport {
        let used = self.space.taken_bytes() + self.space.condemned_bytes();
        SpaceReport {
            file_len_bytes: self.file_len_bytes,
            allocated_bytes: u64::from(self.map.blocks_allocated()) * self.block_len(),
            free_inside_bytes: self.file_len_bytes.saturating_sub(used),
            condemned_bytes: self.space.condemned_bytes(),
        }
    }
}
