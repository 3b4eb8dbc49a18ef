//! What a task management function waits for on the sessions of other initiators (RFC 7143 section 4.2.3.3): the end of
//! their commands, and that they have heard of it.
//!
//! A command that another initiator's function covers is *terminated*: it ends with TASK ABORTED as soon as nothing of
//! it is in flight (SAM-5 clause 5.6; TAS is one). The function is answered when the initiator has acknowledged that
//! status by its ExpStatSN, which it is pinged for, or when [`MANAGEMENT_PATIENCE_MS`] are over. An initiator that has
//! agreed to FastAbort is told by Asynchronous Message instead (section 4.2.3.4), and is not waited for.

use super::link::LinkState;
use super::session::{Answer, Resume, Step, Work};
use crate::bounded::Key;
use crate::iscsi::transfer::{TASKS_MAX, TaskId};
use crate::limits::MANAGEMENT_PATIENCE_MS;
use crate::ring::Ring;

/// What one function of another session waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fence {
    job: Key,
    awaits: Awaits,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaits {
    /// The end of this task.
    End(TaskId),
    /// The initiator's acknowledgement of all statuses before this StatSN.
    Acknowledgement(u32),
}

/// Fences of one session. A function that finds no place for one is refused.
pub(crate) const FENCES_MAX: usize = 4 * TASKS_MAX;

impl<R: Ring> Work<'_, R> {
    /// End a task with TASK ABORTED as soon as nothing of it is in flight, and have the job wait for it. False: it
    /// cannot.
    pub(crate) fn terminate(&mut self, task: TaskId, job: Key) -> bool {
        let is_stalled = self.session.stalled.as_ref().is_some_and(|stalled| stalled.task == task);
        if is_stalled || self.task(task).step == Step::Held {
            // It is not in the task set yet.
            return true;
        }
        if self.session.fences.len() == FENCES_MAX {
            return false;
        }
        self.core.job_has_task(job);
        self.session.fences.push(Fence { job, awaits: Awaits::End(task) });
        self.be_patient();
        if self.session.connection.parameters().fast_abort {
            let lun_raw = self.session.connection.command(task).lun_raw;
            self.session.connection.announce_termination(lun_raw);
        }
        let entry = self.task(task);
        let is_answered = match entry.step {
            Step::Draining | Step::Paused(Resume::Answer) => true,
            Step::Sending => !matches!(entry.answer, Answer::DataIn),
            _ => false,
        };
        if is_answered || entry.terminated {
            return true;
        }
        entry.terminated = true;
        self.abort_copy_of(task);
        self.end_aborted(task);
        let entry = self.task(task);
        if entry.operations > 0 && !std::mem::replace(&mut entry.lingers, true) {
            self.session.lingering += 1;
        }
        true
    }

    /// What is waited for from the initiator is not waited for without end.
    pub(crate) fn be_patient(&mut self) {
        let from_now_ms = self.core.now_ms() + MANAGEMENT_PATIENCE_MS;
        let ends_ms = *self.session.patience_ends_ms.get_or_insert(from_now_ms);
        self.core.wake_by_ms(ends_ms);
    }

    /// A task has ended that functions of other sessions may wait for. One that was told TASK ABORTED must have heard
    /// it.
    pub(crate) fn fenced_task_ended(&mut self, task: TaskId, terminated: bool) {
        let fast_abort = self.session.connection.parameters().fast_abort;
        let is_told = terminated && !fast_abort && *self.state == LinkState::Open;
        let stat_sn = self.session.connection.stat_sn();
        let Self { session, core, .. } = self;
        session.fences.retain_mut(|fence| {
            if fence.awaits != Awaits::End(task) {
                return true;
            }
            fence.awaits = Awaits::Acknowledgement(stat_sn);
            if !is_told {
                core.job_task_ended(fence.job);
            }
            is_told
        });
        if is_told {
            session.connection.solicit_acknowledgement(core.now_ms());
        }
    }

    /// See what has been acknowledged, and whether patience has ended.
    pub(crate) fn look_at_fences(&mut self) {
        let Some(ends_ms) = self.session.patience_ends_ms else { return };
        let is_over = self.core.now_ms() >= ends_ms;
        let Self { session, core, .. } = self;
        let (connection, tasks) = (&session.connection, &session.tasks);
        session.fences.retain(|fence| {
            let stays = match fence.awaits {
                // What is in flight to the medium is waited for in any case; data and answers are the initiator's.
                Awaits::End(task) => !is_over || tasks[usize::from(task.0)].operations > 0,
                Awaits::Acknowledgement(stat_sn) => !is_over && !connection.has_acknowledged(stat_sn),
            };
            if !stays {
                core.job_task_ended(fence.job);
            }
            stays
        });
        if is_over {
            self.session.patience_ends_ms = None;
            for index in 0..TASKS_MAX as u16 {
                if std::mem::take(&mut self.task(TaskId(index)).awaits_data) {
                    self.release_if_aborted(TaskId(index));
                }
            }
            if !self.session.fences.is_empty() {
                self.be_patient();
            }
        }
    }

    /// The connection ends: nobody will acknowledge anything.
    pub(crate) fn drop_fences(&mut self) {
        let Self { session, core, .. } = self;
        session.fences.retain(|fence| {
            let stays = matches!(fence.awaits, Awaits::End(_));
            if !stays {
                core.job_task_ended(fence.job);
            }
            stays
        });
    }
}
