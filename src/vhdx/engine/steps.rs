//! What the engine does, step by step: opening the session, a group, the turn of an epoch, closing. Each program is a
//! list of steps whose order is what makes every instant of it recoverable; a step gives out at most one operation at
//! a time.

use super::group::Kind;
use super::reclaim::Zeroing;
use super::reserve::{Growth, Reserved};
use super::{AHEAD, Engine, LOADS, Operation, Phase, RECLAIM, RELOCATE, STAGING_LEN, STEPS};
use crate::blocks::{EngineError, Event, IoFailure};
use crate::vhdx::format::{Guid, MIB, PAGE, REGION_TABLE_LEN};
use crate::vhdx::log::{NewEntry, seal};
use crate::vhdx::space::Run;

pub(super) const PAGE_LEN: u64 = PAGE as u64;

/// Steps that may wait: a turn in front of a group is the most.
pub(super) const SCRIPT_MAX: usize = 32;

/// Free space that stays behind the last entry of an epoch, besides the entry that ends it: other readers of the log
/// are known to stumble over a run that ends right before the ring's last sector.
pub(super) const RING_RESERVE: u64 = 2 * PAGE_LEN;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A new FileWriteGuid, and a new DataWriteGuid where the guest writes, in the header to be written (section
    /// 2.2.2).
    RenewWriteGuids,
    /// Write the header to the slot that is not current.
    WriteHeader,
    /// Make everything so far durable.
    Sync,
    /// Write the copy of the region table that is not valid anew. It needs no log: until it is whole, the other copy
    /// serves.
    RepairRegionTable,
    /// Make the tail of the file, behind every object, read as zeros: it may hold what an interrupted session left.
    ZeroSlack,
    /// The same where the file system cannot zero a range: cut the tail off.
    CutSlack,
    /// Make the file end at a whole MiB behind every object.
    PadFile,
    /// Write an empty entry under a new LogGuid at the start of the ring: an epoch's first.
    StartEpoch,
    /// The header to be written names the new LogGuid.
    NameEpoch,
    /// The session is open.
    Opened,
    /// Give the committing group's changes their places, growing the file if need be.
    Reserve(Growth),
    /// Make the data durable that the group's entry makes visible.
    SyncData,
    /// Zero the group's blocks that keep their space, from this one on.
    ZeroInPlace { change: usize, done: u64, zeroing: Zeroing },
    /// Write the group's entry.
    WriteGroup,
    /// Write dirty pages in place, until none is left.
    ApplyPages,
    /// Write the data of atomic writes in place, from this piece of this one on.
    ApplyAtomics { atomic: usize, piece: usize },
    /// The entries of atomic writes cannot be replayed any more.
    AtomicsDone,
    /// Write an empty entry whose Tail is itself: it makes every entry before it superfluous.
    EndEpoch,
    /// Cut the file there.
    CutTail,
    /// The tail has been cut.
    TailCut,
    /// The header to be written names no log.
    NameNoLog,
    /// Give preallocated space back.
    GiveBack,
    /// The file may be closed.
    Closed,
}

/// Opening the session. The empty entry is durable before a header names its GUID, so a header never promises a log
/// that is not there; FileWriteGuid is durable before the first modification; the slack is zero before the first
/// block is published.
const OPEN: [Step; 16] = [
    Step::RenewWriteGuids,
    Step::WriteHeader,
    Step::Sync,
    Step::WriteHeader,
    Step::Sync,
    Step::RepairRegionTable,
    Step::ZeroSlack,
    Step::PadFile,
    Step::StartEpoch,
    Step::Sync,
    Step::NameEpoch,
    Step::WriteHeader,
    Step::Sync,
    Step::WriteHeader,
    Step::Sync,
    Step::Opened,
];

/// A session that has moved blocks only becomes one in which the guest writes.
const RENEW: [Step; 6] =
    [Step::RenewWriteGuids, Step::WriteHeader, Step::Sync, Step::WriteHeader, Step::Sync, Step::Opened];

/// A group. What its entry makes visible is durable before the entry is written.
const GROUP: [Step; 4] = [
    Step::Reserve(Growth::Ahead),
    Step::SyncData,
    Step::ZeroInPlace { change: 0, done: 0, zeroing: Zeroing::Range },
    Step::WriteGroup,
];

/// Writing the pages in place without turning the epoch. The entries that carry them are durable first: a torn page is
/// healed by them.
const APPLY: [Step; 2] = [Step::Sync, Step::ApplyPages];

/// The turn of an epoch. The pages are durable in place before an entry says that they need no replay; `EndEpoch` is
/// durable before the ring's start is overwritten: until then every entry's Tail is the entry there. The old header's
/// log stays replayable until the new header is there.
pub(super) const TURN: [Step; 12] = [
    Step::Sync,
    Step::ApplyPages,
    Step::Sync,
    Step::EndEpoch,
    Step::Sync,
    Step::StartEpoch,
    Step::Sync,
    Step::NameEpoch,
    Step::WriteHeader,
    Step::Sync,
    Step::WriteHeader,
    Step::Sync,
];

/// Cutting the tail while the disk is in use, behind a turn: no entry of the log may promise more of the file than is
/// left. The newest one would do by the book (section 2.3.1.1), but QEMU looks at every one.
const CUT: [Step; 3] = [Step::CutTail, Step::Sync, Step::TailCut];

/// Closing. The file is cut only once no log can promise its size.
const CLOSE: [Step; 11] = [
    Step::Sync,
    Step::ApplyPages,
    Step::Sync,
    Step::NameNoLog,
    Step::WriteHeader,
    Step::Sync,
    Step::WriteHeader,
    Step::Sync,
    Step::GiveBack,
    Step::Sync,
    Step::Closed,
];

const _: () = assert!(REGION_TABLE_LEN <= STAGING_LEN);
const _: () = assert!(OPEN.len() <= SCRIPT_MAX && TURN.len() + 2 <= SCRIPT_MAX && CLOSE.len() <= SCRIPT_MAX);

impl Engine {
    /// Run until every lane has an operation in flight or nothing to do.
    pub(super) fn advance(&mut self) {
        if matches!(self.phase, Phase::Poisoned | Phase::Closed) {
            return;
        }
        if self.map.poisoned() {
            return self.poison();
        }
        // Whatever one part does that another may wait for sets `retry`: nobody asks again before an operation has
        // ended.
        loop {
            if std::mem::take(&mut self.retry) {
                self.serve_queue();
            }
            self.start_loads();
            self.advance_steps();
            self.advance_relocation();
            self.advance_reclaim();
            if !self.retry || matches!(self.phase, Phase::Poisoned | Phase::Closed) {
                return;
            }
        }
    }

    fn advance_steps(&mut self) {
        while self.lanes[STEPS].is_none() {
            match self.script.pop_front() {
                Some(step) => {
                    if !self.start(step) {
                        // It waits for another lane.
                        return self.script.push_front(step);
                    }
                }
                None if self.next_program() => {}
                None => return,
            }
        }
    }

    /// Choose what to do next; false when there is nothing.
    fn next_program(&mut self) -> bool {
        match self.phase {
            Phase::Unmodified if self.begin_wanted || self.layout_wanted => {
                self.phase = Phase::Opening;
                self.script.extend(OPEN);
            }
            Phase::Unmodified if self.close_wanted && self.drained() => self.script.extend([Step::Closed]),
            Phase::Open if self.begin_wanted => self.script.extend(RENEW),
            Phase::Open if self.pages.too_many_dirty() || self.apply_wanted => {
                self.apply_wanted = false;
                self.retry = true;
                self.script.extend(APPLY);
            }
            Phase::Open if !self.collecting.is_empty() => {
                assert!(self.committing.is_empty());
                std::mem::swap(&mut self.collecting, &mut self.committing);
                self.committing.settle_ranges(self.geometry.block_shift.into(), self.map.shape().sector_shift.into());
                self.retry = true;
                self.script.extend(GROUP);
            }
            Phase::Open if self.cut_wanted && self.lanes[AHEAD].is_none() => {
                self.script.extend(TURN);
                self.script.extend(CUT);
            }
            Phase::Open if self.close_wanted && self.drained() => {
                self.phase = Phase::Closing;
                self.script.extend(CLOSE);
            }
            _ => return false,
        }
        true
    }

    /// Nothing is asked for or under way besides the steps.
    fn drained(&self) -> bool {
        let lanes = [AHEAD, RECLAIM, RELOCATE].iter().all(|lane| self.lanes[*lane].is_none());
        let loads = self.lanes[LOADS..].iter().all(Option::is_none);
        lanes
            && loads
            && self.requests.open() == 0
            && self.relocation.ticket.is_none()
            && (self.phase == Phase::Unmodified || self.reclaimed())
    }

    /// Begin a step: it is done, or has an operation in its lane. False: not now.
    fn start(&mut self, step: Step) -> bool {
        let operation = match step {
            Step::RenewWriteGuids => self.renew_write_guids(),
            Step::WriteHeader => self.write_header(),
            Step::Sync => Some(self.sync()),
            Step::RepairRegionTable => self.repair_region_table(),
            Step::ZeroSlack => self.slack().map(|slack| Zeroing::Range.operation(slack, 0)),
            Step::CutSlack => self.slack().map(|slack| Operation::Truncate { len_bytes: slack.offset_bytes }),
            Step::PadFile => (self.file_len_bytes < self.space.end_bytes())
                .then_some(Operation::Extend { to_bytes: self.space.end_bytes() }),
            Step::StartEpoch => Some(self.start_epoch()),
            Step::NameEpoch => self.name_log(self.log.log_guid),
            Step::Opened => self.opened(),
            Step::Reserve(growth) => match self.reserve(growth) {
                Reserved::Done => None,
                Reserved::After(operation) => Some(operation),
                Reserved::Later => return false,
            },
            Step::SyncData => self.committing.follows_data().then(|| self.sync()),
            Step::ZeroInPlace { change, done, zeroing } => self.zero_in_place(change, done, zeroing),
            Step::WriteGroup => self.write_group(),
            Step::ApplyPages => self.apply_pages(),
            Step::ApplyAtomics { atomic, piece } => self.apply_atomic(atomic, piece),
            Step::AtomicsDone => {
                self.atomics_done();
                None
            }
            Step::EndEpoch => Some(self.end_epoch()),
            Step::CutTail => self.cut_tail(),
            Step::TailCut => {
                self.cut_wanted = false;
                self.retry = true;
                None
            }
            Step::NameNoLog => self.name_log(Guid::ZERO),
            Step::GiveBack => self.give_back(),
            Step::Closed => {
                self.phase = Phase::Closed;
                self.map.mark_write_session(false);
                self.push_event(Event::Closed(Ok(())));
                None
            }
        };
        if let Some(operation) = operation {
            // A step that has put others in front of itself has no operation.
            self.step = Some(step);
            self.start_in(STEPS, operation);
        }
        true
    }

    /// The operation of the current step has ended.
    pub(super) fn finish_step(&mut self, result: Result<(), IoFailure>) {
        let step = self.step.take().expect("an operation in flight belongs to a step");
        match (step, result) {
            (_, Ok(())) => self.finish_well(step),
            // Cutting the slack serves as well as zeroing it.
            (Step::ZeroSlack, Err(_)) => self.script.push_front(Step::CutSlack),
            // The file stays a little larger than it needs to be.
            (Step::GiveBack | Step::CutTail, Err(_)) => {}
            (Step::PadFile, Err(IoFailure::OutOfSpace)) => self.give_up_opening(),
            (Step::Reserve(growth), Err(IoFailure::OutOfSpace)) => {
                self.ahead_refused = true;
                self.script.push_front(Step::Reserve(growth.less()));
            }
            (Step::ZeroInPlace { change, zeroing, .. }, Err(IoFailure::Unsupported)) => match zeroing.fallback() {
                Some(zeroing) => self.script.push_front(Step::ZeroInPlace { change, done: 0, zeroing }),
                None => self.poison(),
            },
            (_, Err(_)) => self.poison(),
        }
    }

    fn finish_well(&mut self, step: Step) {
        match step {
            Step::Reserve(growth) => {
                self.ahead_refused &= growth != Growth::Ahead;
                self.script.push_front(step);
            }
            Step::ZeroInPlace { change, done, zeroing } => {
                let done = zeroing.done_after(self.place_of(change), done);
                let whole = done == self.block_len();
                let (change, done) = if whole { (change + 1, 0) } else { (change, done) };
                self.script.push_front(Step::ZeroInPlace { change, done, zeroing });
            }
            Step::WriteGroup => self.publish(),
            Step::ApplyAtomics { atomic, piece } => self.atomic_applied(atomic, piece),
            Step::ApplyPages => {
                self.applied();
                self.script.push_front(step);
            }
            _ => {}
        }
    }

    /// The file cannot grow to where its objects end: nothing was promised yet, and the session may be tried again.
    fn give_up_opening(&mut self) {
        self.script.clear();
        self.phase = Phase::Unmodified;
        self.begin_wanted = false;
        self.layout_wanted = false;
        self.push_event(Event::WriteSession(Err(EngineError::OutOfSpace)));
        self.fail_requests(EngineError::OutOfSpace);
    }

    fn opened(&mut self) -> Option<Operation> {
        let first = self.phase == Phase::Opening;
        self.phase = Phase::Open;
        self.layout_wanted = false;
        self.retry = true;
        if self.data_write_guid_new {
            self.begin_wanted = false;
            self.map.mark_write_session(true);
            self.push_event(Event::WriteSession(Ok(())));
        }
        if first {
            self.reclaim_holes();
        }
        None
    }

    fn fresh_guid(&mut self) -> Guid {
        let guid = (self.guids)();
        assert!(guid != Guid::ZERO && guid != self.log.log_guid, "GUIDs are random");
        guid
    }

    fn renew_write_guids(&mut self) -> Option<Operation> {
        if !self.file_write_guid_new {
            self.header.header.file_write_guid = self.fresh_guid();
            self.file_write_guid_new = true;
        }
        if self.begin_wanted && !self.data_write_guid_new {
            self.header.header.data_write_guid = match self.data_write_guid {
                Some(guid) => guid,
                None => self.fresh_guid(),
            };
            self.data_write_guid_new = true;
        }
        None
    }

    fn write_header(&mut self) -> Option<Operation> {
        let (offset_bytes, page) = self.header.advance();
        self.staging[..PAGE].copy_from_slice(&page);
        Some(Operation::Write { offset_bytes, len: PAGE })
    }

    fn repair_region_table(&mut self) -> Option<Operation> {
        let repair = self.repair.take()?;
        self.staging[..REGION_TABLE_LEN].copy_from_slice(&repair.table);
        Some(Operation::Write { offset_bytes: repair.offset_bytes, len: REGION_TABLE_LEN })
    }

    fn name_log(&mut self, log_guid: Guid) -> Option<Operation> {
        self.header.header.log_guid = log_guid;
        None
    }

    fn start_epoch(&mut self) -> Operation {
        self.log.log_guid = self.fresh_guid();
        (self.log.head, self.log.tail) = (0, 0);
        self.log.promised_len_bytes = 0;
        self.write_entry(0, |_, _| 0)
    }

    fn end_epoch(&mut self) -> Operation {
        assert!(self.pages.none_dirty(), "every page is in place");
        self.log.tail = self.log.head;
        self.write_entry(0, |_, _| 0)
    }

    /// Seal an entry of the `pages` pages in the staging buffer, and write it at the head.
    pub(super) fn write_entry(&mut self, pages: usize, offset_of: impl Fn(&Self, usize) -> u64) -> Operation {
        self.log.sequence_number += 1;
        let end = self.space.end_bytes();
        // Never above LastFileOffset: space that is held ahead is no part of the promise, and other readers refuse an
        // entry that says so.
        let flushed_file_offset = self.file_len_durable_bytes.min(end) / MIB * MIB;
        self.log.promised_len_bytes = self.log.promised_len_bytes.max(flushed_file_offset);
        let new = NewEntry {
            tail: self.log.tail,
            sequence_number: self.log.sequence_number,
            log_guid: self.log.log_guid,
            flushed_file_offset,
            last_file_offset: end,
        };
        let len = (1 + pages) * PAGE;
        let mut staging = std::mem::take(&mut self.staging);
        seal(&new, (0..pages).map(|at| offset_of(self, at)), &mut staging[..len]);
        self.staging = staging;
        let offset_bytes = self.log.offset_bytes + self.log.head;
        self.log.head += len as u64;
        assert!(self.log.head + RING_RESERVE <= self.log.len_bytes, "epochs end before the ring does");
        Operation::Write { offset_bytes, len }
    }

    fn place_of(&self, change: usize) -> Run {
        let block = self.committing.changes[change].block;
        let entry = self.map.entry(block).unwrap_or_default();
        Run { offset_bytes: entry.offset_bytes(), len_bytes: self.block_len() }
    }

    /// Zero the next block that keeps its space.
    fn zero_in_place(&mut self, from: usize, done: u64, zeroing: Zeroing) -> Option<Operation> {
        let is = |change: &super::group::Change| change.kind == Kind::ZeroInPlace;
        let at = from + self.committing.changes.iter().skip(from).position(is)?;
        if at != from {
            self.script.push_front(Step::ZeroInPlace { change: at, done: 0, zeroing });
            return None;
        }
        Some(zeroing.operation(self.place_of(at), done))
    }

    /// Cut what is free at the file's end, but nothing that the epoch's first entry promised: space at the end may have
    /// become free since. The next cut, or closing, gives that back.
    fn cut_tail(&mut self) -> Option<Operation> {
        let slack = self.slack()?;
        let len_bytes = slack.offset_bytes.max(self.log.promised_len_bytes);
        (len_bytes < self.file_len_bytes).then_some(Operation::Truncate { len_bytes })
    }

    /// What a dynamic disk holds ahead goes back to the file system; a fixed disk keeps its space
    /// (LeaveBlocksAllocated).
    fn give_back(&mut self) -> Option<Operation> {
        if self.geometry.fixed {
            return None;
        }
        self.slack().map(|slack| Operation::Truncate { len_bytes: slack.offset_bytes })
    }
}
