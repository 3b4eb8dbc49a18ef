//! Ending tasks before their time: task management functions, logout, and the end of a connection.
//!
//! A function is answered only when every task that it aborts has ended, on every shard. A [`Job`] counts the tasks of
//! this shard; functions that reach beyond the initiator's own session go to all shards by message, and each answers
//! when its job is done. What an earlier function, or the end of a connection, has aborted already may still be under
//! way: a function that covers it waits for it too, for who is told that a task has ended may count on nothing of it
//! happening any more.

use super::copy::SESSION_TASKS;
use super::core::Core;
use super::link::LinkState;
use super::peer::{Asker, PeerMessage, ResetScope, SiblingOrder};
use super::session::{Answer, Resume, Step, Work};
use crate::bounded::{Key, Slab};
use crate::iscsi::pdu::{LogoutReason, LogoutResponseCode, TaskManagementFunction, TaskManagementResponseCode};
use crate::iscsi::task_management::TaskManagement;
use crate::iscsi::transfer::{TASKS_MAX, TaskId};
use crate::ring::Ring;
use crate::scsi::{self, Attention, Outcome};
use crate::units::ShardId;

/// Task management functions and logouts of one shard that wait for tasks.
pub(crate) const JOBS_MAX: usize = 4096;

/// Tasks of this shard that somebody waits for.
pub(crate) struct Job {
    /// Who is told, and what.
    tells: (ShardId, PeerMessage),
    remaining: u32,
    /// Some task is not waited for: the function has not done what it should.
    has_failed: bool,
    /// A later job that waits for this one, because a task of this one is also one of that.
    then: Option<Key>,
}

/// The jobs of a shard.
pub(crate) struct Jobs(Slab<Job>);

impl Jobs {
    pub(crate) fn new() -> Self {
        Self(Slab::new(JOBS_MAX))
    }
}

/// Some tasks of a session, without taking memory for them.
struct Tasks {
    ids: [TaskId; TASKS_MAX],
    count: usize,
}

impl Tasks {
    fn collect(tasks: impl IntoIterator<Item = TaskId>) -> Self {
        let mut collected = Self { ids: [TaskId(0); TASKS_MAX], count: 0 };
        for task in tasks {
            collected.ids[collected.count] = task;
            collected.count += 1;
        }
        collected
    }

    fn as_slice(&self) -> &[TaskId] {
        &self.ids[..self.count]
    }
}

impl<R: Ring> Core<R> {
    /// A job without tasks yet. It must be closed by [`Self::job_collected`]. `None`: too many.
    pub(crate) fn begin_job(&mut self, asker: Asker) -> Option<Key> {
        self.begin_job_for(asker.shard, PeerMessage::ResetDone { asker, done: true })
    }

    /// The same, with the message that its end is told by.
    pub(crate) fn begin_job_for(&mut self, to: ShardId, message: PeerMessage) -> Option<Key> {
        // One more than there are tasks, so that it does not end while they are being collected.
        self.jobs.0.insert(Job { tells: (to, message), remaining: 1, has_failed: false, then: None }).ok()
    }

    /// A task that the job waits for.
    pub(crate) fn job_has_task(&mut self, job: Key) {
        if let Some(job) = self.jobs.0.at_mut(job) {
            job.remaining += 1;
        }
    }

    /// Something that the job should wait for cannot be waited for.
    pub(crate) fn job_failed(&mut self, job: Key) {
        if let Some(job) = self.jobs.0.at_mut(job) {
            job.has_failed = true;
        }
    }

    /// All tasks have been collected.
    pub(crate) fn job_collected(&mut self, job: Key) {
        self.job_task_ended(job);
    }

    /// A task of the job has ended. With the last one the asker is told.
    pub(crate) fn job_task_ended(&mut self, key: Key) {
        let mut ended = Some(key);
        while let Some(key) = ended.take() {
            let Some(job) = self.jobs.0.at_mut(key) else { return };
            job.remaining -= 1;
            if job.remaining == 0
                && let Some(job) = self.jobs.0.remove(key)
            {
                let (to, message) = job.tells;
                let message = match message {
                    PeerMessage::ResetDone { asker, .. } => PeerMessage::ResetDone { asker, done: !job.has_failed },
                    other => other,
                };
                self.mail.post_owed(to, message);
                ended = job.then;
            }
        }
    }

    /// The later job waits for the earlier one. Jobs that wait for the same one form a chain by age, so that each needs
    /// one place: it may wait for more than it covers, and ends all the same, since nothing waits for a later job.
    fn job_follows(&mut self, later: Key, earlier: Key) {
        let mut at = earlier;
        while at != later {
            let Some(job) = self.jobs.0.at_mut(at) else { return };
            match job.then {
                Some(next) => at = next,
                None => {
                    job.then = Some(later);
                    return self.job_has_task(later);
                }
            }
        }
    }
}

impl<R: Ring> Work<'_, R> {
    fn asker(&self, task: TaskId) -> Asker {
        Asker { shard: self.core.id, link: self.key, task: task.0 }
    }

    /// Carry a task management function out.
    pub(crate) fn start_management(&mut self, task: TaskId) {
        let request = self.session.connection.task_management(task);
        self.set_step(task, Step::Managing);
        self.task(task).answer = Answer::Management(TaskManagementResponseCode::FUNCTION_COMPLETE);
        match self.reach(&request) {
            Ok(None) => self.manage(task, &request, None),
            Ok(Some((scope, attention))) => self.manage(task, &request, Some((scope, attention))),
            Err(response) => self.answer_management(task, response),
        }
    }

    /// Which units beyond this session a function reaches, if any.
    fn reach(&self, request: &TaskManagement) -> Result<Option<(ResetScope, Attention)>, TaskManagementResponseCode> {
        let target = self.session.target.as_ref().map(|(id, _)| *id);
        let unit = || {
            let index = scsi::lun::decode(request.lun_raw).and_then(|lun| self.session.lun_index(lun));
            let slot = index.map(|index| self.session.luns[index].disk);
            slot.and_then(|slot| self.core.disks.at(slot))
                .map(|slot| ResetScope::Unit(slot.disk.id()))
                .ok_or(TaskManagementResponseCode::LUN_DOES_NOT_EXIST)
        };
        match request.function {
            TaskManagementFunction::ABORT_TASK => Ok(None),
            TaskManagementFunction::ABORT_TASK_SET => unit().map(|_| None),
            TaskManagementFunction::CLEAR_TASK_SET => unit().map(|scope| Some((scope, Attention::CommandsCleared))),
            TaskManagementFunction::LOGICAL_UNIT_RESET => unit().map(|scope| Some((scope, Attention::DeviceReset))),
            TaskManagementFunction::TARGET_WARM_RESET | TaskManagementFunction::TARGET_COLD_RESET => target
                .map(|target| Some((ResetScope::Target(target), Attention::DeviceReset)))
                .ok_or(TaskManagementResponseCode::FUNCTION_NOT_SUPPORTED),
            // No command ever leaves an ACA condition behind (NORMACA is zero), so there is none to clear.
            _ => Err(TaskManagementResponseCode::FUNCTION_NOT_SUPPORTED),
        }
    }

    /// Abort the session's own tasks, and have all shards abort those of others.
    fn manage(&mut self, task: TaskId, request: &TaskManagement, beyond: Option<(ResetScope, Attention)>) {
        let shards = if beyond.is_some() { self.core.shards } else { 0 };
        if !self.core.mail.has_room() {
            return self.answer_management(task, TaskManagementResponseCode::FUNCTION_REJECTED);
        }
        let Some(job) = self.core.begin_job(self.asker(task)) else {
            return self.answer_management(task, TaskManagementResponseCode::FUNCTION_REJECTED);
        };
        self.task(task).ends_session = request.function == TaskManagementFunction::TARGET_COLD_RESET;
        // Answers that are awaited: the job's, the session's other connections', and every shard's.
        self.task(task).total = u32::from(shards) + 1;
        self.begin_operation(task);
        if request.function != TaskManagementFunction::ABORT_TASK {
            self.order_siblings(task, SiblingOrder::Abort(*request));
        }
        for shard in 0..shards {
            self.begin_operation(task);
            if let Some((scope, attention)) = beyond {
                let drop_sessions = request.function == TaskManagementFunction::TARGET_COLD_RESET;
                let asker = self.asker(task);
                let message = PeerMessage::Reset { scope, attention, drop_sessions, asker };
                self.core.mail.post_owed(ShardId(shard), message);
            }
        }
        self.abort_affected(request, job);
        self.core.job_collected(job);
    }

    /// The session's other connections, if it has any, are to do something, which the task waits for.
    pub(crate) fn order_siblings(&mut self, task: TaskId, order: SiblingOrder) {
        if self.session.group.is_none() {
            return;
        }
        let asker = self.asker(task);
        self.task(task).total += 1;
        self.begin_operation(task);
        self.core.mail.post_owed(self.core.id, PeerMessage::Siblings { asker, order });
    }

    /// Abort what a function of this session covers of this connection's tasks (RFC 7143 section 11.5.1).
    pub(super) fn abort_affected(&mut self, request: &TaskManagement, job: Key) {
        let affected = match request.referenced {
            Some(referenced) => Tasks::collect([referenced]),
            None => Tasks::collect(self.session.connection.affected_tasks(request)),
        };
        // Section 4.2.3.3: what R2Ts have asked for is waited for, unless FastAbort was agreed. ABORT TASK concerns
        // one.
        let waits = request.referenced.is_none() && !self.session.connection.parameters().fast_abort;
        for &affected in affected.as_slice() {
            self.abort_when_drained(affected, Some(job), waits);
        }
        match request.function {
            TaskManagementFunction::ABORT_TASK => {}
            TaskManagementFunction::TARGET_WARM_RESET | TaskManagementFunction::TARGET_COLD_RESET => {
                self.await_lingering(None, job);
            }
            _ => {
                let lun = scsi::lun::decode(request.lun_raw);
                if let Some(index) = lun.and_then(|lun| self.session.lun_index(lun)) {
                    self.await_lingering(Some(self.session.luns[index].disk), job);
                }
            }
        }
    }

    /// The job also waits for tasks (of this disk) that were aborted before and are still under way.
    fn await_lingering(&mut self, disk: Option<u32>, job: Key) {
        for index in 0..SESSION_TASKS as u16 {
            let entry = self.task(TaskId(index));
            let lingers = entry.aborted && entry.operations > 0;
            if lingers && entry.disk.is_some() && (disk.is_none() || disk == entry.disk) {
                self.join(TaskId(index), job);
            }
        }
    }

    /// A job waits for a task that has been aborted already.
    pub(super) fn join(&mut self, task: TaskId, job: Key) {
        match self.task(task).job {
            Some(earlier) => self.core.job_follows(job, earlier),
            None => {
                self.task(task).job = Some(job);
                self.core.job_has_task(job);
            }
        }
    }

    /// A shard has done its part of a function, or this session's own tasks have ended.
    pub(crate) fn reset_done(&mut self, task: TaskId, done: bool) {
        self.end_operation(task);
        if !done && matches!(self.task(task).answer, Answer::Management(_)) {
            // Some shard's tasks go on: what was asked for has not happened.
            self.task(task).answer = Answer::Management(TaskManagementResponseCode::FUNCTION_REJECTED);
            self.task(task).ends_session = false;
        }
        let entry = self.task(task);
        entry.total -= 1;
        if entry.total > 0 || self.release_if_aborted(task) {
            return;
        }
        if self.task(task).step == Step::Copying {
            return self.copy_abort_answered(task, done);
        }
        self.send(task);
    }

    fn answer_management(&mut self, task: TaskId, response: TaskManagementResponseCode) {
        self.task(task).answer = Answer::Management(response);
        self.send(task);
    }

    /// End what another initiator's function (or one's own reset) covers, on this session: with TASK ABORTED, which is
    /// waited for until it is acknowledged. False when some of it cannot be waited for.
    pub(crate) fn reset(&mut self, scope: ResetScope, attention: Attention, job: Key, is_own: bool) -> bool {
        let target = self.session.target.as_ref().map(|(id, _)| *id);
        let disk = match scope {
            ResetScope::Unit(disk) => match self.core.disks.find(disk) {
                Some(slot) => Some(slot),
                None => return true,
            },
            ResetScope::Target(reset) if target == Some(reset) => None,
            ResetScope::Target(_) => return true,
        };
        for entry in &mut self.session.luns {
            // SAM-5 clause 5.6: who is told TASK ABORTED (TAS is one) is not told by unit attention that commands were
            // cleared.
            if disk.is_none_or(|slot| slot == entry.disk) && attention != Attention::CommandsCleared {
                entry.nexus.raise(attention);
            }
        }
        if attention == Attention::DeviceReset {
            self.reset_copies(disk, job);
        }
        if is_own {
            // Its own tasks were aborted when the function arrived; later ones are not affected.
            return true;
        }
        if matches!(*self.state, LinkState::Closing | LinkState::Closed) {
            // Nobody is left to be told; what is still in flight is waited for.
            self.await_lingering(disk, job);
            return true;
        }
        let session = &*self.session;
        let affected = Tasks::collect(session.connection.tasks().filter_map(|(task, command)| {
            let lun = scsi::lun::decode(command.lun_raw)?;
            let slot = session.luns[session.lun_index(lun)?].disk;
            disk.is_none_or(|disk| disk == slot).then_some(task)
        }));
        let mut all = true;
        for &affected in affected.as_slice() {
            all &= self.terminate(affected, job);
        }
        self.await_lingering(disk, job);
        all
    }

    /// End the session's commands on a disk, by another initiator's PREEMPT AND ABORT.
    pub(crate) fn abort_on_disk(&mut self, disk: u32, job: Option<Key>) {
        let session = &*self.session;
        let affected = Tasks::collect(session.connection.tasks().filter_map(|(task, command)| {
            let lun = scsi::lun::decode(command.lun_raw)?;
            (session.luns[session.lun_index(lun)?].disk == disk).then_some(task)
        }));
        for &affected in affected.as_slice() {
            if job.is_none_or(|job| !self.terminate(affected, job)) {
                self.abort(affected, job);
            }
        }
        if let Some(job) = job {
            // Background copies that use the disk end too (SPC-4 clause 5.13.11.2.6).
            self.reset_copies(Some(disk), job);
            self.await_lingering(Some(disk), job);
        }
    }

    /// Log out: what is left of the tasks of the session, or of the connection that is closed, ends without an answer.
    pub(crate) fn start_logout(&mut self, task: TaskId) {
        self.core.stats.logouts.increment();
        self.task(task).answer = Answer::Logout(LogoutResponseCode::CLOSED);
        self.set_step(task, Step::Managing);
        let logout = self.session.connection.logout(task);
        let closes_session = logout.reason == LogoutReason::CLOSE_SESSION;
        let closes_this = closes_session || logout.connection_id == self.session.connection.parameters().connection_id;
        if !closes_this && (self.session.group.is_none() || !self.core.mail.has_room()) {
            let response = match self.session.group {
                None => LogoutResponseCode::CID_NOT_FOUND,
                Some(_) => LogoutResponseCode::CLEANUP_FAILED,
            };
            self.task(task).answer = Answer::Logout(response);
            return self.send(task);
        }
        let job = self.core.mail.has_room().then(|| self.core.begin_job(self.asker(task))).flatten();
        if job.is_some() {
            self.task(task).total = 1;
            self.begin_operation(task);
            if !closes_this {
                self.order_siblings(task, SiblingOrder::End(logout.connection_id));
            } else if closes_session {
                self.order_siblings(task, SiblingOrder::EndAll);
            }
        }
        if !closes_this {
            return match job {
                Some(job) => self.core.job_collected(job),
                None => self.send(task),
            };
        }
        let tasks = Tasks::collect(self.session.connection.tasks().map(|(other, _)| other));
        for &other in tasks.as_slice() {
            // What is ahead of its CmdSN has not been acknowledged: it goes with the connection, and the initiator
            // sends it again on another one (section 7.2.1).
            if self.session.group.is_none() || self.task(other).step != Step::Held {
                self.abort(other, job);
            }
        }
        match job {
            Some(job) => {
                self.await_lingering(None, job);
                self.core.job_collected(job);
            }
            None => self.send(task),
        }
    }

    /// Abort one task: no answer will go. It ends when its operations have come back.
    pub(crate) fn abort(&mut self, task: TaskId, job: Option<Key>) {
        self.abort_when_drained(task, job, false);
    }

    /// The same; with `waits` it also ends only when data has come that R2Ts have asked for, or patience has ended.
    fn abort_when_drained(&mut self, task: TaskId, job: Option<Key>, waits: bool) {
        if self.task(task).aborted {
            if let Some(job) = job {
                self.join(task, job);
            }
            return;
        }
        let owes_data = !self.is_mover(task) && self.session.connection.abort(task);
        if let Some(job) = job {
            self.core.job_has_task(job);
        }
        if let Some(stalled) = self.session.stalled.as_mut().filter(|stalled| stalled.task == task) {
            stalled.is_over = true;
        }
        let entry = self.task(task);
        entry.aborted = true;
        entry.job = job;
        entry.awaits_data = waits && owes_data;
        if entry.awaits_data {
            self.be_patient();
        }
        self.abort_copy_of(task);
        self.end_aborted(task);
        let entry = self.task(task);
        if entry.aborted && !std::mem::replace(&mut entry.lingers, true) {
            self.session.lingering += 1;
        }
    }

    /// A task that was aborted while operations of it were in flight has ended. With the last one go the answers that
    /// tell of a reset.
    pub(crate) fn has_lingered(&mut self) {
        self.session.lingering -= 1;
        if self.session.lingering > 0 || self.session.held == 0 {
            return;
        }
        for index in 0..TASKS_MAX as u16 {
            let task = TaskId(index);
            if self.task(task).step == Step::Paused(Resume::Answer) {
                self.resume(task, Resume::Answer);
            }
        }
    }

    /// If the task is aborted or terminated: end it once nothing of it is in flight. True when it is.
    pub(crate) fn release_if_aborted(&mut self, task: TaskId) -> bool {
        let entry = self.task(task);
        if !entry.aborted {
            let ends = entry.terminated && entry.step != Step::Sending && entry.step != Step::Draining;
            if ends && entry.operations == 0 {
                self.complete(task, Outcome::status(scsi::Status::TASK_ABORTED));
            }
            return ends;
        }
        if entry.operations == 0 && !entry.awaits_data {
            if self.is_mover(task) {
                self.copy_aborted(task);
                return true;
            }
            if *self.state != LinkState::Closing {
                self.session.connection.release(task);
            }
            self.free(task);
        }
        true
    }

    /// The connection ends: so does every task.
    pub(crate) fn abort_all(&mut self) {
        self.session.stalled = None;
        self.session.ready.clear();
        self.drop_fences();
        for index in 0..SESSION_TASKS as u16 {
            let task = TaskId(index);
            self.task(task).queued = false;
            self.task(task).awaits_data = false;
            if self.leave_copy(task) {
                continue;
            }
            let entry = self.task(task);
            // What was aborted before anything of it was begun may still wait for its initiator's data.
            if entry.step != Step::Idle || entry.operations > 0 || entry.aborted {
                self.task(task).aborted = true;
                self.end_aborted(task);
            }
        }
    }
}
