//! The engine of a disk that is written: block allocation and the log, owned by the disk's home shard.
//!
//! One metadata operation is in flight at a time (and beside it at most one extension of the file, ahead of need),
//! because each depends on the one before it. While a group's entry is being written, the next group collects.
//!
//! The caller's loop: after every call, `poll_io` until `None`, then `poll_event` until `None`. Allocations that are
//! asked for between two `poll_io` share a group.

mod group;
mod steps;

use std::collections::VecDeque;
use std::sync::Arc;

use group::{Group, TICKETS_MAX};
use steps::{GROUP_PAGES_MAX, STAGING_LEN, Step};

use super::GuidSource;
use super::format::{Guid, MIB};
use super::geometry::Geometry;
use super::header::CurrentHeader;
use super::region::TableRepair;
use super::view::{BatView, FlushMark};

/// Longest [`MetadataIoKind::Write`].
pub const METADATA_WRITE_BYTES_MAX: usize = STAGING_LEN;

/// Events that may wait: one for each ticket of both groups, and the few that have none.
const EVENTS_MAX: usize = 2 * TICKETS_MAX + 4;

/// The file grows ahead of need by at least this much, so that a fast writer meets the file system seldom.
const EXTEND_MIN: u64 = 64 * MIB;

/// And by at most this much, so that a large disk does not hold space that others need.
const EXTEND_MAX: u64 = 1024 * MIB;

/// The caller's mark of a request that waits for an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(pub u64);

/// Identifies a metadata operation between [`Engine::poll_io`] and [`Engine::complete`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IoId(pub u32);

/// One operation on the disk's file that the caller has to carry out, and to complete exactly once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetadataIo<'a> {
    /// For [`Engine::complete`].
    pub id: IoId,
    /// What to do.
    pub kind: MetadataIoKind<'a>,
}

/// What a [`MetadataIo`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetadataIoKind<'a> {
    /// Write these bytes: offset and length are multiples of 4 KiB, at most `METADATA_WRITE_BYTES_MAX`. Copy them out
    /// (into an aligned buffer) before the next call on the engine.
    Write {
        /// Byte offset in the file.
        offset_bytes: u64,
        /// What to write.
        bytes: &'a [u8],
    },
    /// Make everything completed so far durable, the file size included (fdatasync).
    Sync,
    /// Grow the file so that it ends at `to_bytes`; the new bytes are reserved and read as zeros.
    Extend {
        /// The present end.
        from_bytes: u64,
        /// The new end.
        to_bytes: u64,
    },
    /// Make a range inside the file read as zeros. [`IoFailure::Unsupported`] is a fine answer.
    ZeroRange {
        /// First byte.
        offset_bytes: u64,
        /// Length in bytes.
        len_bytes: u64,
    },
    /// Shorten the file.
    Truncate {
        /// The new end.
        len_bytes: u64,
    },
}

/// Why a metadata operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoFailure {
    /// No space (ENOSPC, EDQUOT, EFBIG).
    OutOfSpace,
    /// The file system does not know this operation (EOPNOTSUPP).
    Unsupported,
    /// Anything else.
    Failed,
}

/// Why the engine refused or failed a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The group that collects is full: try again after the next [`Event`].
    #[error("too many allocations are waiting")]
    Busy,
    /// The file cannot grow. The disk stays healthy; blocks that have space can be written.
    #[error("no space is left for the disk's file")]
    OutOfSpace,
    /// Metadata I/O has failed; the disk must be opened anew.
    #[error("metadata I/O on the disk's file has failed")]
    Poisoned,
    /// The engine is closing or closed.
    #[error("the disk is being closed")]
    Closed,
}

/// What [`Engine::allocate`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocate {
    /// The block has space already: plan again.
    Present,
    /// The ticket will come back in an [`Event::Allocated`].
    Queued,
}

/// What has happened; see [`Engine::poll_event`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The write session is open (or cannot be opened): plan the writes again that waited for it.
    WriteSession(Result<(), EngineError>),
    /// An allocation has ended. `Ok`: its log entry has left the process and the view shows the block.
    Allocated {
        /// The request's mark.
        ticket: Ticket,
        /// How it ended.
        result: Result<(), EngineError>,
    },
    /// [`Engine::close`] has ended; the file may be closed. After an error the log is left to the next open.
    Closed(Result<(), EngineError>),
}

/// What `open` knows about the file.
#[derive(Clone, Debug)]
pub(super) struct FileState {
    /// Its size.
    pub file_len_bytes: u64,
    /// Behind every object; a multiple of 1 MiB.
    pub objects_end_bytes: u64,
    /// Payload blocks that have space.
    pub blocks_present: u32,
    /// A copy of the region table to be written anew.
    pub repair: Option<TableRepair>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No write session yet: the file is as it was opened.
    Unmodified,
    /// The steps that open the session are running.
    Opening,
    /// Allocations are served.
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
    /// With what it makes durable.
    Sync {
        mark: FlushMark,
        file_len_bytes: u64,
    },
    Extend {
        to_bytes: u64,
    },
    ZeroRange {
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
}

/// Allocation and log of one open disk.
pub struct Engine {
    geometry: Geometry,
    view: Arc<BatView>,
    guids: GuidSource,
    phase: Phase,
    begin_wanted: bool,
    close_wanted: bool,

    header: CurrentHeader,
    /// FileWriteGuid has changed since the file was opened.
    file_write_guid_new: bool,
    /// DataWriteGuid has changed since the file was opened.
    data_write_guid_new: bool,
    log: LogState,

    file_len_bytes: u64,
    /// A file size that is known to be on stable storage.
    file_len_durable_bytes: u64,
    /// Where the next block goes: behind every object, a multiple of 1 MiB.
    next_block_bytes: u64,
    blocks_present: u32,
    repair: Option<TableRepair>,
    /// Growing ahead of need has failed for lack of space; groups still try for what they need.
    ahead_refused: bool,

    collecting: Group,
    committing: Group,
    /// One bit for each page of the table: the view is newer than the file.
    dirty_pages: Vec<u64>,

    script: VecDeque<Step>,
    step: Option<Step>,
    running: Option<Running>,
    ahead: Option<Running>,
    next_io: u32,
    staging: Vec<u8>,
    events: VecDeque<Event>,
}

impl Engine {
    pub(super) fn new(
        geometry: Geometry,
        view: Arc<BatView>,
        header: CurrentHeader,
        file_write_guid_new: bool,
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
        };
        let pages = (geometry.bat_entries() * 8).div_ceil(super::format::PAGE as u64);
        assert!(file.objects_end_bytes.is_multiple_of(MIB));
        Self {
            geometry,
            view,
            guids,
            phase: Phase::Unmodified,
            begin_wanted: false,
            close_wanted: false,
            header,
            file_write_guid_new,
            data_write_guid_new: false,
            log,
            file_len_bytes: file.file_len_bytes,
            // A file that was closed or replayed has been flushed; nothing else is known to be.
            file_len_durable_bytes: 0,
            next_block_bytes: file.objects_end_bytes,
            blocks_present: file.blocks_present,
            repair: file.repair,
            ahead_refused: false,
            collecting: Group::default(),
            committing: Group::default(),
            dirty_pages: vec![0; pages.div_ceil(64) as usize],
            script: VecDeque::new(),
            step: None,
            running: None,
            ahead: None,
            next_io: 0,
            staging: Vec::new(),
            events: VecDeque::new(),
        }
    }

    /// The disk's geometry.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The view that this engine writes.
    pub fn view(&self) -> &Arc<BatView> {
        &self.view
    }

    /// Open the write session unless it is open or opening. [`Event::WriteSession`] tells when it is; when it is open
    /// already there is no further event.
    pub fn begin_write_session(&mut self) -> Result<(), EngineError> {
        self.refuse_unless_serving()?;
        self.begin_wanted |= self.phase == Phase::Unmodified;
        self.reserve_buffers();
        Ok(())
    }

    /// Give `block` space. Opens the write session where that has not happened. A block may be asked for by many
    /// tickets.
    pub fn allocate(&mut self, block: u32, ticket: Ticket) -> Result<Allocate, EngineError> {
        assert!(block < self.geometry.block_count, "the block lies within the disk");
        self.refuse_unless_serving()?;
        if self.view.entry(block).is_present() {
            return Ok(Allocate::Present);
        }
        self.reserve_buffers();
        let waiting = self.events.len() + self.collecting.tickets() + self.committing.tickets();
        if waiting + 4 >= EVENTS_MAX {
            return Err(EngineError::Busy);
        }
        if self.committing.holds(block) {
            self.committing.join(block, ticket)?;
        } else if self.collecting.holds(block) {
            self.collecting.join(block, ticket)?;
        } else {
            let page = super::bat::page_of(&self.geometry, block);
            self.collecting.add(block, page, GROUP_PAGES_MAX, ticket)?;
        }
        Ok(Allocate::Queued)
    }

    /// The next operation to carry out, if any. Operations that are given out before one has completed may run in any
    /// order.
    pub fn poll_io(&mut self) -> Option<MetadataIo<'_>> {
        self.advance();
        let waits = |running: &&mut Running| !running.given_out;
        let running = self.running.as_mut().filter(waits).or(self.ahead.as_mut().filter(waits))?;
        running.given_out = true;
        let kind = match running.operation {
            Operation::Write { offset_bytes, len } => {
                MetadataIoKind::Write { offset_bytes, bytes: &self.staging[..len] }
            }
            Operation::Sync { .. } => MetadataIoKind::Sync,
            Operation::Extend { to_bytes } => MetadataIoKind::Extend { from_bytes: self.file_len_bytes, to_bytes },
            Operation::ZeroRange { offset_bytes, len_bytes } => MetadataIoKind::ZeroRange { offset_bytes, len_bytes },
            Operation::Truncate { len_bytes } => MetadataIoKind::Truncate { len_bytes },
        };
        Some(MetadataIo { id: running.id, kind })
    }

    /// An operation has ended.
    pub fn complete(&mut self, id: IoId, result: Result<(), IoFailure>) {
        let is = |running: &mut Running| running.id == id && running.given_out;
        if let Some(running) = self.running.take_if(is) {
            self.finish_step(running.operation, result);
        } else if let Some(running) = self.ahead.take_if(is) {
            self.finish_ahead(running.operation, result);
        } else {
            panic!("completion of a metadata operation that is not in flight: {id:?}");
        }
    }

    /// An operation could not be started (no buffer, no slot): [`Self::poll_io`] will give it out again.
    pub fn not_started(&mut self, id: IoId) {
        let running = [&mut self.running, &mut self.ahead].into_iter().flatten().find(|running| running.id == id);
        let running = running.expect("the operation was given out");
        assert!(running.given_out);
        running.given_out = false;
    }

    /// The next event, if any.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// A sync of the file for the guest, on the home shard: call before it starts. Other shards use
    /// [`BatView::flush_started`].
    pub fn flush_started(&self) -> FlushMark {
        self.view.flush_started()
    }

    /// How that sync ended. A failure poisons the disk.
    pub fn flush_done(&mut self, mark: FlushMark, result: Result<(), IoFailure>) {
        match result {
            Ok(()) => self.view.flush_done(mark),
            Err(_) => self.view.poison(),
        }
    }

    /// Finish what is queued, write the table in place, empty the log, give preallocated space back.
    /// [`Event::Closed`] ends it. Call once no payload I/O of the disk is in flight or to come.
    pub fn close(&mut self) {
        if matches!(self.phase, Phase::Poisoned) && !self.close_wanted {
            self.push_event(Event::Closed(Err(EngineError::Poisoned)));
        }
        self.close_wanted = true;
    }

    /// Nothing is queued or in flight.
    pub fn is_idle(&self) -> bool {
        self.running.is_none()
            && self.ahead.is_none()
            && self.script.is_empty()
            && self.collecting.is_empty()
            && self.committing.is_empty()
            && self.events.is_empty()
    }

    fn refuse_unless_serving(&self) -> Result<(), EngineError> {
        if self.phase == Phase::Poisoned || self.view.poisoned() {
            return Err(EngineError::Poisoned);
        }
        if self.close_wanted { Err(EngineError::Closed) } else { Ok(()) }
    }

    /// What a disk needs once it is written: nothing is allocated after this.
    fn reserve_buffers(&mut self) {
        if self.staging.is_empty() {
            self.staging.resize(STAGING_LEN, 0);
            self.collecting = Group::with_capacity(GROUP_PAGES_MAX);
            self.committing = Group::with_capacity(GROUP_PAGES_MAX);
            self.script.reserve_exact(steps::SCRIPT_MAX);
            self.events.reserve_exact(EVENTS_MAX);
        }
    }

    fn push_event(&mut self, event: Event) {
        assert!(self.events.len() < EVENTS_MAX, "allocate() refuses before events overflow");
        self.events.push_back(event);
    }

    /// Fail everything that waits, for good.
    fn poison(&mut self) {
        let opening = self.phase == Phase::Opening || (self.phase == Phase::Unmodified && self.begin_wanted);
        self.view.poison();
        self.phase = Phase::Poisoned;
        self.script.clear();
        self.step = None;
        self.running.take_if(|running| !running.given_out);
        self.ahead.take_if(|running| !running.given_out);
        if opening {
            self.push_event(Event::WriteSession(Err(EngineError::Poisoned)));
        }
        for group in [&mut self.committing, &mut self.collecting] {
            group.fail_all(EngineError::Poisoned, &mut self.events);
        }
        if self.close_wanted {
            self.push_event(Event::Closed(Err(EngineError::Poisoned)));
        }
    }
}
