//! Copy offload: the commands of [`crate::scsi::copy`] carried out.
//!
//! A copy has a task of its own beside those of the session's commands, the *mover*. It reads a chunk of at most 1 MiB
//! from the source and writes it to the destination the way a READ and a WRITE do (plans, pauses, commits and all), has
//! the file system share it where that can be, or gives space back as UNMAP does where the source has none; then it
//! waits for the connection's next turn. Its command waits for it, or has been answered already (IMMED). Nothing of a
//! copy outlives its session.
//!
//! Sources and destinations are units that this very session sees, under the rules that hold for its own reads and
//! writes: they are asked again at each chunk. A token is the exception that the standard makes of it: whoever has one
//! may read what it stands for, for as long as it is valid.
//!
//! | file | subject |
//! |---|---|
//! | `ledger` | what all connections of a session know of its copies |
//! | `setup` | from a parameter list to what there is to copy |
//! | `mover` | chunk by chunk |
//! | `sharing` | chunks that the file system shares instead |

mod ledger;
mod mover;
mod setup;
mod sharing;

use sha2::{Digest, Sha256};

pub(crate) use self::ledger::CopyLedger;
use self::ledger::{CopyRecord, Runs};
use self::mover::Mover;
pub(crate) use self::sharing::{LeftSource, was_refused};
use super::core::Core;
use super::peer::SiblingOrder;
use super::session::{Answer, Immediate, Kind, Step, Work};
use crate::bounded::Key;
use crate::iscsi::transfer::{TASKS_MAX, TaskId};
use crate::limits::COPIES_PER_SESSION_MAX;
use crate::medium::Disk;
use crate::ring::Ring;
use crate::scsi::copy::{TOKEN_BYTES, TokenTable};
use crate::scsi::{
    CopyIn, CopyOut, CopyState, CopyStatus, MediumError, Outcome, ParameterList, Sense, SenseCode, SenseFormat,
};

/// From the task of a copy to the place that stands for its source.
const SHARES: u16 = COPIES_PER_SESSION_MAX as u16;

/// Tasks of a session: those of its requests, behind them those of its copies, and places for what those share.
pub(crate) const SESSION_TASKS: usize = TASKS_MAX + 2 * COPIES_PER_SESSION_MAX;

/// The copies that one connection runs. Takes memory when the first one begins.
#[derive(Default)]
pub(crate) struct Copies {
    movers: [Option<Box<Mover>>; COPIES_PER_SESSION_MAX],
    /// Movers that go on in the connection's next turn, by the bits of their places.
    runnable: u8,
}

const _: () = assert!(COPIES_PER_SESSION_MAX <= u8::BITS as usize);

/// Where the random part of tokens comes from: a key that is drawn when the shard starts, and a count.
pub(crate) struct Secrets {
    key: Option<[u8; 32]>,
    given: u64,
}

impl Secrets {
    /// From the system's randomness; without any, no token is made.
    pub(crate) fn draw() -> Self {
        let mut key = [0; 32];
        let key = getrandom::fill(&mut key).is_ok().then_some(key);
        Self { key, given: 0 }
    }

    /// 256 bits that nobody can guess and that are given once.
    fn give(&mut self) -> Option<[u8; 32]> {
        self.given += 1;
        let hash = Sha256::new().chain_update(self.key?).chain_update(self.given.to_be_bytes());
        Some(hash.finalize().into())
    }
}

impl Copies {
    fn place_of(task: TaskId) -> usize {
        usize::from(task.0) - TASKS_MAX
    }

    fn task_at(place: usize) -> TaskId {
        TaskId((TASKS_MAX + place) as u16)
    }

    fn mover(&mut self, task: TaskId) -> &mut Mover {
        self.movers[Self::place_of(task)].as_mut().expect("a mover lives as long as its task")
    }

    /// The mover of a running copy with this list identifier.
    fn running(&self, list_identifier: u32) -> Option<TaskId> {
        let is_it = |mover: &Option<Box<Mover>>| {
            mover.as_ref().is_some_and(|mover| mover.list_identifier == Some(list_identifier))
        };
        self.movers.iter().position(is_it).map(Self::task_at)
    }

    /// Some mover wants to go on in the next turn.
    pub(crate) fn wants_turn(&self) -> bool {
        self.runnable != 0
    }
}

impl<R: Ring> Core<R> {
    /// Bytes of a disk are about to change, or have just changed: tokens that stand for any of them are good for
    /// nothing any more. Asked before a write, and after it for tokens that were made meanwhile.
    #[inline]
    pub(crate) fn revoke_tokens(&self, slot: u32, offset_bytes: u64, len_bytes: u64) {
        self.disks.of_task(slot).tokens().revoke_written(offset_bytes, len_bytes, self.now_ms());
    }
}

impl<R: Ring> Work<'_, R> {
    /// The task is a copy's, not a request's.
    #[inline]
    pub(crate) fn is_mover(&self, task: TaskId) -> bool {
        usize::from(task.0) >= TASKS_MAX
    }

    /// EXTENDED COPY, POPULATE TOKEN, WRITE USING TOKEN: have the parameter list come.
    pub(crate) fn start_copy(
        &mut self,
        task: TaskId,
        what: CopyOut,
        list_identifier: u32,
        list_bytes: u32,
        data: Immediate<'_>,
    ) {
        let expected = self.session.connection.command(task).expected_write_length();
        let bytes = list_bytes.min(expected);
        let entry = self.task(task);
        entry.kind = Kind::CopyCommand { what, list_identifier };
        entry.transfer_length = u64::from(list_bytes);
        entry.total = bytes;
        entry.data_total = bytes;
        if bytes == 0 {
            return self.complete(task, Sense::new(SenseCode::PARAMETER_LIST_LENGTH_ERROR).into());
        }
        self.receive_data(task, bytes, data);
    }

    /// The parameter list is here.
    pub(crate) fn copy_list_received(&mut self, task: TaskId) {
        let entry = self.task(task);
        let (Kind::CopyCommand { what, list_identifier }, Some(list)) = (entry.kind, entry.data.take()) else { return };
        // All of Data-Out has been taken, whatever comes of it.
        entry.done = entry.total;
        entry.window = 0;
        let result = match what {
            CopyOut::ExtendedCopyLid1 | CopyOut::ExtendedCopyLid4 => self.extended_copy(task, what, &list),
            CopyOut::PopulateToken => self.populate_token(task, list_identifier, &list).map(Some),
            CopyOut::WriteUsingToken => self.write_using_token(task, list_identifier, &list),
        };
        match result {
            Ok(Some(outcome)) | Err(outcome) => self.complete(task, outcome),
            Ok(None) => {}
        }
    }

    /// Nothing that runs has this list identifier; what is known of an earlier copy with it is forgotten.
    fn take_list_identifier(&mut self, list_identifier: u32) -> Result<(), Outcome> {
        let ledger = &mut self.session.ledger;
        if ledger.record(list_identifier).is_some_and(|record| record.runs != Runs::Ended) {
            return Err(Sense::new(SenseCode::OPERATION_IN_PROGRESS).into());
        }
        ledger.forget(list_identifier);
        Ok(())
    }

    /// Answer from a copy that this session has begun.
    pub(crate) fn answer_copy_in(&mut self, task: TaskId, what: CopyIn, list_identifier: u32, allocation_length: u32) {
        let unknown = || Outcome::check_condition(Sense::invalid_field_in_cdb(2, None));
        let Some(mut buf) = self.core.io.arena.take(CopyStatus::REPLY_BYTES_MAX) else {
            return self.complete(task, MediumError::Busy.outcome());
        };
        let slot = self.task(task).disk.expect("a command on blocks has a unit");
        let format = self.core.disks.of_task(slot).unit(false).sense_format();
        let len = match self.session.ledger.record(list_identifier) {
            Some(record) if record.runs != Runs::Ended => {
                reply(&record.status, what, None, allocation_length, format, &mut buf)
            }
            // It is told once, and then forgotten (SPC-4 clause 6.25).
            Some(result) if what == CopyIn::StatusLid1 && result.told => return self.complete(task, unknown()),
            Some(result) => {
                result.told |= what == CopyIn::StatusLid1;
                let token = result.token.take();
                let len = reply(&result.status, what, token.as_deref(), allocation_length, format, &mut buf);
                let is_told = what == CopyIn::TokenInformation
                    && (allocation_length == 0 || len.is_ok_and(|len| len >= 36 + 2 + TOKEN_BYTES));
                result.token = token.filter(|_| !is_told);
                len
            }
            None => return self.complete(task, unknown()),
        };
        let len = match len {
            Ok(len) => len,
            Err(sense) => return self.complete(task, sense.into()),
        };
        buf.truncate(len);
        let entry = self.task(task);
        entry.answer = Answer::DataIn;
        entry.transfer_length = len as u64;
        if len > 0 {
            entry.set_read(buf.freeze());
        }
        self.send_when_drained(task);
    }

    /// COPY OPERATION ABORT: answered when nothing of the copy is underway any more.
    pub(crate) fn abort_copy_operation(&mut self, task: TaskId, list_identifier: u32) {
        let own = self.session.connection.slot();
        match self.session.ledger.record(list_identifier).map(|record| record.runs) {
            Some(Runs::As(slot, mover)) if slot == own => {
                self.session.copies.mover(mover).aborters.push(task);
                self.begin_operation(task);
                self.set_step(task, Step::Copying);
                self.cancel_copy(mover, CopyState::Terminated);
            }
            Some(Runs::As(..)) if !self.core.mail.has_room() => self.complete(task, MediumError::Busy.outcome()),
            Some(Runs::As(..)) => {
                self.task(task).total = 0;
                self.set_step(task, Step::Copying);
                self.order_siblings(task, SiblingOrder::AbortCopy(list_identifier));
            }
            Some(Runs::Left) => {
                self.end_left_copies(|copy| copy.is(list_identifier));
                self.complete(task, Outcome::GOOD);
            }
            Some(Runs::Ended) | None => self.complete(task, Sense::invalid_field_in_cdb(2, None).into()),
        }
    }

    /// Another connection of the session aborts a copy, which may be this one's; the job waits for its end.
    pub(crate) fn abort_copy_for(&mut self, list_identifier: u32, job: Key) {
        if let Some(mover) = self.session.copies.running(list_identifier) {
            self.join(mover, job);
            self.cancel_copy(mover, CopyState::Terminated);
        }
    }

    /// What another connection was asked to abort has ended.
    pub(crate) fn copy_abort_answered(&mut self, task: TaskId, done: bool) {
        self.complete(task, if done { Outcome::GOOD } else { MediumError::Busy.outcome() });
    }

    /// A command is aborted: so is the copy that it waits for.
    pub(crate) fn abort_copy_of(&mut self, task: TaskId) {
        if !matches!(self.task(task).kind, Kind::CopyCommand { .. }) {
            return;
        }
        let owned = |mover: &Option<Box<Mover>>| mover.as_ref().is_some_and(|mover| mover.owner == Some(task));
        if let Some(place) = self.session.copies.movers.iter().position(owned) {
            self.abort(Copies::task_at(place), None);
        }
    }

    /// A disk (or, without one, the whole target) is reset: copies that are in the background there are aborted, copies
    /// of commands to other units that use the disk end, and the job waits for all of them.
    pub(crate) fn reset_copies(&mut self, disk: Option<u32>, job: Key) {
        for place in 0..COPIES_PER_SESSION_MAX {
            let task = Copies::task_at(place);
            let Some(mover) = self.session.copies.movers[place].as_deref() else { continue };
            if disk.is_some_and(|disk| !mover.uses(disk)) {
                continue;
            }
            if mover.owner.is_none() {
                self.abort(task, Some(job));
                continue;
            }
            if disk.is_none_or(|disk| disk == mover.addressed) {
                // Its command is aborted, and takes it along.
                continue;
            }
            let fault = Sense::new(SenseCode::THIRD_PARTY_DEVICE_FAILURE);
            self.join(task, job);
            self.cancel_copy(task, CopyState::Done(fault.into()));
        }
        self.end_left_copies(|copy| disk.is_none_or(|disk| copy.uses(disk)));
        self.session.ledger.forget_disk(disk);
    }

    /// Let movers make a step that wait for the connection's turn.
    pub(crate) fn run_copies(&mut self) {
        self.take_left_copies();
        let mut runnable = std::mem::take(&mut self.session.copies.runnable);
        while runnable != 0 {
            let place = runnable.trailing_zeros() as usize;
            runnable &= runnable - 1;
            let task = Copies::task_at(place);
            if self.session.copies.movers[place].is_some() && self.task(task).step == Step::Copying {
                self.copy_go_on(task);
            }
        }
    }

    /// The tokens of a disk.
    fn tokens_of(&self, slot: u32) -> &TokenTable {
        let disk: &Disk = self.core.disks.of_task(slot);
        disk.tokens()
    }
}

/// Write a reply into a buffer; its length.
fn reply(
    status: &CopyStatus,
    what: CopyIn,
    token: Option<&[u8; TOKEN_BYTES]>,
    allocation_length: u32,
    format: SenseFormat,
    buf: &mut [u8],
) -> Result<usize, Sense> {
    let mut out = ParameterList::new(buf);
    status.report(what, token, allocation_length, format, &mut out)?;
    Ok(out.len())
}
