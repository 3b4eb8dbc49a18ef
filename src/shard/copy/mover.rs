//! A copy, chunk by chunk.
//!
//! A chunk is read by the mover's task as if it were a READ of the source, and written as if it were a WRITE to the
//! destination; [`Work::complete`] comes back here. Where a read gives less than whole blocks of the destination
//! (sectors of another size, a token of odd ranges), the chunk is one block, gathered from several reads.

use super::sharing::{Shares, Way};
use super::{Copies, Runs};
use crate::iscsi::transfer::TaskId;
use crate::limits::{BURST_LENGTH_MAX, WRITE_SAME_BYTES_MAX};
use crate::mem::{Buf, Slice};
use crate::observe::Operation;
use crate::ring::Ring;
use crate::scsi::copy::TokenKey;
use crate::scsi::copy::extended::CopyFault;
use crate::scsi::copy::tokens::TokenRanges;
use crate::scsi::{CopyOut, CopyState, CopyStatus, MediumError, Outcome, Sense, SenseCode};
use crate::shard::peer::HomeRequest;
use crate::shard::session::{Answer, Kind, Resume, Step, Work};
use crate::units::Lun;

/// A copy within one disk to a place that its source reaches into goes from its end in chunks of this size.
const BACKWARD_BYTES: u64 = 64 * 1024;

/// A unit as a side of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Side {
    /// Its disk.
    pub(super) slot: u32,
    /// Under which number the session sees it.
    pub(super) lun: Lun,
}

/// One piece of a copy: without a gap on the destination.
pub(super) struct Leg {
    /// The segment's number.
    pub(super) number: u16,
    /// Where from; `None`: what the token stands for.
    pub(super) source: Option<Side>,
    /// First byte of the source, or of what the token stands for.
    pub(super) source_at: u64,
    pub(super) destination: Side,
    /// First byte on the destination.
    pub(super) destination_at: u64,
    /// More than none, and whole blocks of the destination.
    pub(super) len_bytes: u64,
}

/// What the legs copy from.
pub(super) enum View {
    /// Units, each leg its own.
    Units,
    /// Zeros.
    Zeros,
    /// What a token stands for.
    Token { slot: u32, key: TokenKey, ranges: Box<TokenRanges>, delete: bool },
}

/// What the mover is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Reading,
    Writing,
}

/// What becomes of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    Moved,
    Shared,
    Zeroed,
}

/// A copy that runs.
pub(super) struct Mover {
    pub(super) status: CopyStatus,
    pub(super) list_identifier: Option<u32>,
    /// The command that waits for it.
    pub(super) owner: Option<TaskId>,
    /// COPY OPERATION ABORT commands that wait for its end.
    pub(super) aborters: Vec<TaskId>,
    /// The disk of the unit that the command was sent to.
    pub(super) addressed: u32,
    /// The token stands for less than was asked for.
    pub(super) is_short: bool,
    legs: Vec<Leg>,
    view: View,
    /// The present leg, and how many bytes of it are through.
    leg: usize,
    done: u64,
    stage: Stage,
    /// Bytes of the present chunk.
    chunk: u64,
    /// Those of a chunk that is gathered, and how many have been read.
    gathered: Option<Buf>,
    have: u64,
    /// It ends so when nothing of it is underway.
    cancelled: Option<CopyState>,
    how: How,
    pub(super) shares: Shares,
}

/// What comes next.
enum Next {
    End(CopyState),
    /// Ask whether there is anything to read, or have the page loaded that says so.
    Load(u32, crate::blocks::LevelFault),
    Read {
        slot: u32,
        offset: u64,
        len: u32,
    },
    /// Have the file system share so many bytes.
    Share {
        slot: u32,
        offset: u64,
        len: u32,
    },
    /// So many bytes of the present place are zeros.
    Zeros {
        len: u64,
    },
    /// The gathered block is whole.
    Write,
}

impl Mover {
    pub(super) fn new(what: CopyOut, id: Option<u32>, addressed: u32, legs: Vec<Leg>, view: View) -> Self {
        Self {
            status: CopyStatus::new(what, false, 0),
            list_identifier: id,
            owner: None,
            aborters: Vec::new(),
            addressed,
            is_short: false,
            legs,
            view,
            leg: 0,
            done: 0,
            stage: Stage::Reading,
            chunk: 0,
            gathered: None,
            have: 0,
            cancelled: None,
            how: How::Moved,
            shares: Shares::default(),
        }
    }

    /// Every disk that it uses, once for each use.
    pub(super) fn disks(&self) -> impl Iterator<Item = u32> {
        let token = match &self.view {
            View::Token { slot, .. } => Some(*slot),
            View::Units | View::Zeros => None,
        };
        let legs = self.legs.iter().flat_map(|leg| [leg.source.map(|side| side.slot), Some(leg.destination.slot)]);
        legs.flatten().chain(token).chain([self.addressed])
    }

    /// Whether it uses a disk.
    pub(super) fn uses(&self, disk: u32) -> bool {
        self.disks().any(|slot| slot == disk)
    }

    /// Where the next byte is read: the disk, the place, and for how many bytes it goes on there. `None`: what comes is
    /// zeros.
    fn source_run(&self, leg: &Leg, at: u64) -> Option<(u32, u64, u64)> {
        match (&self.view, leg.source) {
            (View::Units, Some(side)) => Some((side.slot, leg.source_at + at, leg.len_bytes - at)),
            (View::Token { slot, ranges, .. }, _) => {
                let mut skip = leg.source_at + at;
                for &(start, len) in ranges.as_slice() {
                    if skip < len {
                        return Some((*slot, start + skip, len - skip));
                    }
                    skip -= len;
                }
                None
            }
            _ => None,
        }
    }

    /// No command waits for it, and nobody ends it: it could go on as another connection's.
    pub(super) fn is_alone(&self) -> bool {
        self.owner.is_none() && self.aborters.is_empty() && self.cancelled.is_none()
    }

    /// Some of the present chunk may be on the destination.
    pub(super) fn is_writing(&self) -> bool {
        self.stage == Stage::Writing
    }

    /// Whether the present piece is copied onto a part of itself.
    pub(super) fn meets_itself(&self) -> bool {
        self.legs.get(self.leg).is_some_and(|leg| {
            leg.source.is_some_and(|source| source.slot == leg.destination.slot)
                && leg.source_at < leg.destination_at + leg.len_bytes
                && leg.destination_at < leg.source_at + leg.len_bytes
        })
    }

    /// Whether its token stands for any of these bytes of the token's disk.
    pub(super) fn token_meets(&self, at: u64, len: u64) -> bool {
        let View::Token { ranges, .. } = &self.view else { return false };
        ranges.as_slice().iter().any(|&(start, range_len)| start < at + len && at < start + range_len)
    }

    /// The present chunk is so long, and is being written.
    pub(super) fn begin_writing(&mut self, len: u64, how: How) {
        (self.chunk, self.how, self.stage) = (len, how, Stage::Writing);
        self.status.segments = self.legs[self.leg].number + 1;
    }

    /// Only so much of the present chunk has been written.
    pub(super) fn shorten_to(&mut self, len: u64) {
        self.chunk = len;
    }

    /// Nothing of the present chunk has been written.
    pub(super) fn forget_chunk(&mut self) {
        (self.chunk, self.stage) = (0, Stage::Reading);
        (self.gathered, self.have) = (None, 0);
        self.shares.end_chunk();
    }

    /// Where the next bytes are written, in a copy that goes forward.
    pub(super) fn destination_at(&self) -> (u32, u64) {
        let leg = &self.legs[self.leg];
        (leg.destination.slot, leg.destination_at + self.done)
    }

    /// The chunk has been written.
    fn chunk_done(&mut self) {
        self.done += self.chunk;
        self.status.transferred_bytes += self.chunk;
        self.status.operations = self.status.operations.wrapping_add(1);
        (self.chunk, self.have, self.gathered) = (0, 0, None);
        self.stage = Stage::Reading;
        if self.done == self.legs[self.leg].len_bytes {
            self.leg += 1;
            self.done = 0;
        }
    }

    /// Where the present chunk begins, counted from the leg's start; `len` is how long it would be.
    fn chunk_at(&self, leg: &Leg, len: u64) -> u64 {
        if leg.goes_backward() { leg.len_bytes - self.done - len } else { self.done }
    }
}

impl Leg {
    /// What is written first would be read later: begin at the end.
    pub(super) fn goes_backward(&self) -> bool {
        self.source.is_some_and(|source| source.slot == self.destination.slot)
            && self.source_at < self.destination_at
            && self.destination_at < self.source_at + self.len_bytes
    }
}

impl<R: Ring> Work<'_, R> {
    /// Go on in the connection's next turn, so that others have theirs.
    pub(super) fn wait_for_turn(&mut self, task: TaskId) {
        self.set_step(task, Step::Copying);
        self.session.copies.runnable |= 1 << Copies::place_of(task);
        let runs = self.runs_as(task);
        let mover = self.session.copies.mover(task);
        let (list_identifier, status) = (mover.list_identifier, mover.status);
        self.session.ledger.tell(list_identifier, status, runs);
    }

    /// Go on with a copy that waits for nothing.
    pub(crate) fn copy_go_on(&mut self, task: TaskId) {
        let next = match self.next_of(task) {
            Ok(next) => next,
            Err(fault) => Next::End(self.fault_state(task, fault)),
        };
        match next {
            Next::End(state) => self.end_copy(task, state),
            Next::Load(slot, fault) => {
                self.turn_to(task, slot, 0, 0);
                self.ask(task, HomeRequest::Load(fault), Resume::Copy);
            }
            Next::Read { slot, offset, len } => {
                self.turn_to(task, slot, offset, len);
                self.read_in(task);
            }
            Next::Share { slot, offset, len } => self.share(task, slot, offset, len),
            Next::Zeros { len } => self.copy_zeros(task, len),
            Next::Write => {
                let mover = self.session.copies.mover(task);
                if let Some(bytes) = mover.gathered.take() {
                    self.copy_out(task, bytes.freeze());
                }
            }
        }
    }

    /// What the copy does next.
    fn next_of(&mut self, task: TaskId) -> Result<Next, CopyFault> {
        let mover = self.session.copies.movers[Copies::place_of(task)].as_deref().expect("a mover's task has it");
        if let Some(state) = mover.cancelled {
            return Ok(Next::End(state));
        }
        let Some(leg) = mover.legs.get(mover.leg) else {
            let done = CopyState::Done(Outcome::GOOD);
            return Ok(Next::End(if mover.is_short { CopyState::Short } else { done }));
        };
        self.may_copy(leg.destination, true)?;
        if let Some(source) = leg.source {
            self.may_copy(source, false)?;
        } else if let View::Token { slot, .. } = mover.view {
            self.serves_copies(slot)?;
        }
        let block_bytes = u64::from(self.core.disks.of_task(leg.destination.slot).block_length());
        let left = leg.len_bytes - mover.done;
        if mover.gathered.is_some() && mover.have == mover.chunk {
            return Ok(Next::Write);
        }
        let is_gathering = mover.gathered.is_some();
        let chunk = match is_gathering {
            true => mover.chunk,
            false if leg.goes_backward() => left.min(BACKWARD_BYTES),
            false => left,
        };
        let at = mover.chunk_at(leg, chunk) + mover.have;
        let Some((slot, offset, run)) = mover.source_run(leg, at) else {
            return Ok(Next::Zeros { len: chunk - mover.have });
        };
        let run = run.min(chunk - mover.have);
        if !is_gathering && !leg.goes_backward() {
            match self.core.disks.of_task(slot).status(offset, run) {
                Some(Ok(status)) if !status.mapped && status.len_bytes >= block_bytes => {
                    return Ok(Next::Zeros { len: status.len_bytes / block_bytes * block_bytes });
                }
                Some(Err(fault)) => return Ok(Next::Load(slot, fault)),
                _ => {}
            }
        }
        if is_gathering {
            return Ok(Next::Read { slot, offset, len: run.min(u64::from(BURST_LENGTH_MAX)) as u32 });
        }
        Ok(match self.way_of(mover, leg, slot, (offset, run)) {
            Way::Share(len) => Next::Share { slot, offset, len },
            Way::Move(len) => Next::Read { slot, offset, len },
        })
    }

    /// Have the mover's task work on this part of a disk.
    pub(super) fn turn_to(&mut self, task: TaskId, slot: u32, offset: u64, len: u32) {
        self.end_work(task);
        let now = self.core.now;
        let entry = self.task(task);
        entry.kind = Kind::Copy;
        entry.answer = Answer::None;
        entry.disk = Some(slot);
        entry.started = now;
        entry.offset_bytes = offset;
        entry.total = len;
        entry.window = len;
        entry.done = 0;
        entry.through = 0;
        entry.error = None;
        entry.buf = None;
        entry.data = None;
        entry.clear_read();
    }

    /// Bytes of the source are here.
    pub(crate) fn copy_read(&mut self, task: TaskId) {
        let entry = self.task(task);
        let (Some(bytes), Some(slot), started) = (entry.read.take(), entry.disk, entry.started) else { return };
        self.core.record(slot, Operation::Read, bytes.len() as u64, started, true);
        if let Err(sense) = self.token_is_good(task) {
            return self.end_copy(task, CopyState::Done(sense.into()));
        }
        let mover = self.session.copies.mover(task);
        mover.status.operations = mover.status.operations.wrapping_add(1);
        let leg = &mover.legs[mover.leg];
        mover.status.segments = leg.number + 1;
        let block_bytes = self.core.disks.of_task(leg.destination.slot).block_length() as usize;
        let backward = leg.goes_backward();
        let wanted = (leg.len_bytes - mover.done).min(BACKWARD_BYTES);
        let whole = bytes.len() / block_bytes * block_bytes;
        if mover.gathered.is_none() && whole > 0 && (!backward || whole as u64 == wanted) {
            mover.chunk = whole as u64;
            return self.copy_out(task, bytes.slice(0..whole));
        }
        if mover.gathered.is_none() {
            let chunk = if backward { wanted } else { block_bytes as u64 };
            let Some(mut buf) = self.core.io.arena.take(chunk as usize) else {
                // What was read is read again.
                return self.starve(task, Resume::Copy);
            };
            buf.truncate(chunk as usize);
            let mover = self.session.copies.mover(task);
            (mover.gathered, mover.chunk, mover.have) = (Some(buf), chunk, 0);
        }
        let mover = self.session.copies.mover(task);
        let have = mover.have as usize;
        if let Some(buf) = mover.gathered.as_mut() {
            let len = bytes.len().min(buf.len() - have);
            buf[have..have + len].copy_from_slice(&bytes[..len]);
            mover.have += len as u64;
        }
        drop(bytes);
        self.copy_go_on(task);
    }

    /// What was read under the token so far is what it stands for.
    pub(super) fn token_is_good(&mut self, task: TaskId) -> Result<(), Sense> {
        let mover = self.session.copies.mover(task);
        let View::Token { slot, key, .. } = &mover.view else { return Ok(()) };
        let (slot, key) = (*slot, *key);
        self.tokens_of(slot).use_again(key, self.core.now_ms())
    }

    /// The present place reads as zeros for so many bytes: give space back where it can be, else write them.
    fn copy_zeros(&mut self, task: TaskId, len: u64) {
        if let Err(sense) = self.token_is_good(task) {
            return self.end_copy(task, CopyState::Done(sense.into()));
        }
        let mover = self.session.copies.mover(task);
        let leg = &mover.legs[mover.leg];
        mover.status.segments = leg.number + 1;
        if let Some(buf) = mover.gathered.as_mut() {
            // Behind the end of what the token stands for.
            let have = mover.have as usize;
            buf[have..].fill(0);
            mover.have = mover.chunk;
            return self.copy_go_on(task);
        }
        let (slot, at) = (leg.destination.slot, leg.destination_at + mover.done);
        let thin = self.core.disks.of_task(slot).unit(false).thin_provisioned();
        let most = if thin { WRITE_SAME_BYTES_MAX } else { BURST_LENGTH_MAX };
        let len = len.min(u64::from(most)) as u32;
        let mover = self.session.copies.mover(task);
        mover.chunk = u64::from(len);
        if !thin {
            let zeros = self.core.io.arena.zeros(len as usize);
            return self.copy_out(task, zeros);
        }
        mover.begin_writing(u64::from(len), How::Zeroed);
        self.turn_to(task, slot, at, 0);
        self.start_zeroing(task, at, at + u64::from(len));
    }

    /// Write the chunk.
    fn copy_out(&mut self, task: TaskId, bytes: Slice) {
        let mover = self.session.copies.mover(task);
        (mover.stage, mover.how) = (Stage::Writing, How::Moved);
        let leg = &mover.legs[mover.leg];
        let at = leg.destination_at + mover.chunk_at(leg, mover.chunk);
        let slot = leg.destination.slot;
        self.turn_to(task, slot, at, bytes.len() as u32);
        let durable = self.core.disks.at(slot).is_some_and(|slot| slot.settings.writes_through);
        let entry = self.task(task);
        entry.durable = durable;
        entry.data = Some(bytes);
        self.write_out(task);
    }

    /// A step of the mover's task has ended, with this outcome.
    pub(crate) fn copy_step_ended(&mut self, task: TaskId, outcome: Outcome) {
        self.end_work(task);
        let entry = self.task(task);
        (entry.buf, entry.data) = (None, None);
        entry.clear_read();
        let (slot, started) = (entry.disk, entry.started);
        if outcome != Outcome::GOOD {
            return self.copy_failed(task, outcome);
        }
        let mover = self.session.copies.mover(task);
        if mover.stage == Stage::Writing {
            let (chunk, how) = (mover.chunk, mover.how);
            if how == How::Shared
                && let Err(sense) = self.token_is_good(task)
            {
                return self.end_copy(task, CopyState::Done(sense.into()));
            }
            self.chunk_has_been(task, how, chunk);
            self.session.copies.mover(task).chunk_done();
            if let Some(slot) = slot {
                self.core.record(slot, Operation::Write, chunk, started, true);
            }
        }
        self.wait_for_turn(task);
    }

    /// A read or write of the copy has failed. A destination of WRITE USING TOKEN is the unit that the command was sent
    /// to, so that it answers as it would answer a WRITE; all others are third parties.
    fn copy_failed(&mut self, task: TaskId, outcome: Outcome) {
        if outcome == MediumError::Busy.outcome() {
            // The chunk is begun anew, perhaps in another way.
            self.session.copies.mover(task).shares.end_chunk();
            return self.wait_for_turn(task);
        }
        let mover = self.session.copies.mover(task);
        let own = mover.status.what == CopyOut::WriteUsingToken && mover.stage == Stage::Writing;
        let state = match own {
            true => CopyState::Done(outcome),
            false => self.fault_state(task, CopyFault::new(SenseCode::THIRD_PARTY_DEVICE_FAILURE)),
        };
        self.end_copy(task, state);
    }

    /// The copy ends at its present segment.
    fn fault_state(&mut self, task: TaskId, fault: CopyFault) -> CopyState {
        let mover = self.session.copies.mover(task);
        let (number, residual) = match mover.legs.get(mover.leg) {
            Some(leg) => {
                let shift = self.core.disks.of_task(leg.destination.slot).block_length().trailing_zeros();
                let left = (leg.len_bytes - mover.done) >> shift;
                (leg.number, (mover.done > 0).then(|| u32::try_from(left).unwrap_or(u32::MAX)))
            }
            None => (0, None),
        };
        CopyState::Done(fault.sense(number, residual).into())
    }

    /// End a copy as soon as nothing of it is underway.
    pub(super) fn cancel_copy(&mut self, task: TaskId, state: CopyState) {
        self.session.copies.mover(task).cancelled = Some(state);
        if self.task(task).operations == 0 {
            self.end_copy(task, state);
        }
    }

    /// A copy whose task was aborted has nothing underway any more.
    pub(crate) fn copy_aborted(&mut self, task: TaskId) {
        self.end_copy(task, CopyState::Terminated);
    }

    /// The copy is over: tell whoever waits for it, and keep what there is to tell.
    pub(super) fn end_copy(&mut self, task: TaskId, state: CopyState) {
        self.end_work(task);
        self.end_source(task);
        let place = Copies::place_of(task);
        self.session.copies.runnable &= !(1 << place);
        let Some(mut mover) = self.session.copies.movers[place].take() else { return };
        mover.status.state = state;
        if let View::Token { slot, key, delete: true, .. } = &mover.view {
            self.tokens_of(*slot).delete(*key);
        }
        self.let_go_of_disks(&mover);
        self.session.ledger.tell(mover.list_identifier, mover.status, Runs::Ended);
        // The disk is not this task's own.
        self.task(task).disk = None;
        self.free(task);
        let outcome = match state {
            CopyState::Done(outcome) => outcome,
            CopyState::Running | CopyState::Short => Outcome::GOOD,
            CopyState::Terminated => Outcome::check_condition(Sense::new(SenseCode::COMMANDS_CLEARED_BY_DEVICE_SERVER)),
        };
        for (waiting, outcome) in mover
            .owner
            .map(|owner| (owner, outcome))
            .into_iter()
            .chain(mover.aborters.iter().map(|&task| (task, Outcome::GOOD)))
        {
            self.end_operation(waiting);
            if !self.release_if_aborted(waiting) {
                self.complete(waiting, outcome);
            }
        }
    }
}
