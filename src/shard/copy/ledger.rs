//! What a session knows of its copies, whichever of its connections has begun them and whichever asks.
//!
//! A copy runs on one connection, the one that began it: the mover is a task there. What may be asked about it, and
//! what is kept of it when it has ended, belongs to the I_T nexus, as list identifiers do in SPC-4: it is in one ledger
//! that the session's connections share, as they share their LUNs
//! ([`Session::swap_shared`](crate::shard::session::Session)). The ledger ends with the session; a LUN reset takes out
//! what was sent to that unit.
//!
//! A copy whose command has been answered (IMMED) does not end with its connection either: when nothing of it is
//! underway, the mover is left in the ledger, and the next connection that has its turn goes on with it.

use std::collections::VecDeque;

use super::Copies;
use super::mover::Mover;
use crate::iscsi::session::ConnectionSlot;
use crate::iscsi::transfer::{TASKS_MAX, TaskId};
use crate::limits::{COPIES_PER_SESSION_MAX, COPY_RESULTS_MAX};
use crate::ring::Ring;
use crate::scsi::copy::TOKEN_BYTES;
use crate::scsi::{CopyState, CopyStatus};
use crate::shard::session::{Step, Work};

/// What is known of a copy by its list identifier.
pub(super) struct CopyRecord {
    pub(super) list_identifier: u32,
    pub(super) status: CopyStatus,
    /// Of POPULATE TOKEN, until it has been told.
    pub(super) token: Option<Box<[u8; TOKEN_BYTES]>>,
    /// RECEIVE COPY STATUS(LID1) has told of it.
    pub(super) told: bool,
    /// The unit that the command was sent to.
    pub(super) disk: u32,
    pub(super) runs: Runs,
}

/// Where a copy runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Runs {
    /// Nowhere: it has ended.
    Ended,
    /// As this task of this connection.
    As(ConnectionSlot, TaskId),
    /// Its connection has ended, and no other has taken it yet.
    Left,
}

/// The copies of a session, as all its connections know them. Takes memory when the first one begins.
#[derive(Default)]
pub(crate) struct CopyLedger {
    records: VecDeque<CopyRecord>,
    left: Vec<Mover>,
}

impl CopyLedger {
    /// The record of this list identifier.
    pub(super) fn record(&mut self, list_identifier: u32) -> Option<&mut CopyRecord> {
        self.records.iter_mut().find(|record| record.list_identifier == list_identifier)
    }

    /// Forget a copy that has ended.
    pub(super) fn forget(&mut self, list_identifier: u32) {
        self.records.retain(|record| record.list_identifier != list_identifier);
    }

    /// Forget what was sent to this disk, or everything.
    pub(super) fn forget_disk(&mut self, disk: Option<u32>) {
        self.records.retain(|record| disk.is_some_and(|disk| disk != record.disk));
    }

    /// Remember a copy. Of those that have ended, only the latest are remembered.
    pub(super) fn keep(&mut self, record: CopyRecord) {
        self.records.push_back(record);
        self.trim();
    }

    fn trim(&mut self) {
        let ended = |record: &&CopyRecord| record.runs == Runs::Ended;
        if self.records.iter().filter(ended).count() > COPY_RESULTS_MAX
            && let Some(oldest) = self.records.iter().position(|record| record.runs == Runs::Ended)
        {
            self.records.remove(oldest);
        }
    }

    /// A copy goes on, or has ended.
    pub(super) fn tell(&mut self, list_identifier: Option<u32>, status: CopyStatus, runs: Runs) {
        if let Some(record) = list_identifier.and_then(|list_identifier| self.record(list_identifier)) {
            (record.status, record.runs) = (status, runs);
        }
        if runs == Runs::Ended {
            self.trim();
        }
    }
}

impl<R: Ring> Work<'_, R> {
    /// Where a copy of this connection runs.
    pub(super) fn runs_as(&self, task: TaskId) -> Runs {
        Runs::As(self.session.connection.slot(), task)
    }

    /// A place for one more copy of this connection.
    pub(super) fn free_copy_place(&self) -> Option<usize> {
        (0..COPIES_PER_SESSION_MAX).find(|&place| {
            let step = self.session.tasks[usize::from(Copies::task_at(place).0)].step;
            self.session.copies.movers[place].is_none() && step == Step::Idle
        })
    }

    /// The connection ends, and the session does not: leave its copies that nobody waits for to the others. False: it
    /// is not such a copy.
    pub(crate) fn leave_copy(&mut self, task: TaskId) -> bool {
        if usize::from(task.0) < TASKS_MAX || self.session.group.is_none() || self.task(task).aborted {
            return false;
        }
        let place = usize::from(task.0) - TASKS_MAX;
        let mover = self.session.copies.movers.get(place).and_then(Option::as_deref);
        let Some(mover) = mover.filter(|mover| mover.is_alone()) else { return false };
        let is_torn = mover.is_writing() && mover.meets_itself();
        if self.task(task).operations > 0 {
            // When that has come back, this is asked again.
            return true;
        }
        if is_torn {
            // Part of the chunk may be written, over what would be read again.
            return false;
        }
        self.end_work(task);
        self.end_source(task);
        self.session.copies.runnable &= !(1 << place);
        if let Some(mut mover) = self.session.copies.movers[place].take() {
            // What there is of a chunk is this connection's.
            mover.forget_chunk();
            self.session.ledger.tell(mover.list_identifier, mover.status, Runs::Left);
            self.session.ledger.left.push(*mover);
        }
        self.task(task).disk = None;
        self.free(task);
        true
    }

    /// The connection ends: see to those of its copies that could not be left when it began to, and, where the session
    /// ends with it, to those that others have left.
    pub(crate) fn wind_up_copies(&mut self) {
        if self.session.group.is_none() {
            self.end_left_copies(|_| true);
        }
        for place in 0..COPIES_PER_SESSION_MAX {
            let task = Copies::task_at(place);
            if self.session.copies.movers[place].is_none() || self.leave_copy(task) || self.task(task).aborted {
                continue;
            }
            self.task(task).aborted = true;
            self.end_aborted(task);
        }
    }

    /// Take copies whose connections have ended.
    pub(super) fn take_left_copies(&mut self) {
        while !self.session.ledger.left.is_empty()
            && let Some(place) = self.free_copy_place()
            && let Some(mover) = self.session.ledger.left.pop()
        {
            let task = Copies::task_at(place);
            let runs = self.runs_as(task);
            self.session.ledger.tell(mover.list_identifier, mover.status, runs);
            self.session.copies.movers[place] = Some(Box::new(mover));
            self.wait_for_turn(task);
        }
    }

    /// End copies that no connection runs. True: there was one.
    pub(crate) fn end_left_copies(&mut self, which: impl Fn(&CopyOfNobody<'_>) -> bool) -> bool {
        let mut found = false;
        for index in (0..self.session.ledger.left.len()).rev() {
            if !which(&CopyOfNobody(&self.session.ledger.left[index])) {
                continue;
            }
            found = true;
            let mut mover = self.session.ledger.left.swap_remove(index);
            mover.status.state = CopyState::Terminated;
            self.session.ledger.tell(mover.list_identifier, mover.status, Runs::Ended);
            self.let_go_of_disks(&mover);
        }
        found
    }

    /// A copy uses its disks no longer.
    pub(super) fn let_go_of_disks(&mut self, mover: &Mover) {
        for slot in mover.disks() {
            if let Some(entry) = self.core.disks.at_mut(slot) {
                entry.tasks -= 1;
            }
        }
    }
}

/// A copy that no connection runs.
pub(crate) struct CopyOfNobody<'a>(&'a Mover);

impl CopyOfNobody<'_> {
    /// Whether it uses a disk.
    pub(crate) fn uses(&self, disk: u32) -> bool {
        self.0.uses(disk)
    }

    /// Whether it has this list identifier.
    pub(crate) fn is(&self, list_identifier: u32) -> bool {
        self.0.list_identifier == Some(list_identifier)
    }
}
