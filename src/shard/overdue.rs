//! Commands that wait too long for a file or a home shard.
//!
//! What the kernel does not give back in time is left to it: the command ends with ABORTED COMMAND, its place and its
//! connection are free for others, and an [`Orphan`] stands for the operations that are still out. They own their
//! buffers until they come back; the disk's accounts count them until then. What such a command might still write could
//! come after anything that is written or read later, so that the disk serves no blocks, on any shard, until every
//! orphan that writes has come back; its commands end with ABORTED COMMAND at once.

use super::copy::{self, LeftSource, SESSION_TASKS};
use super::core::{Core, Mark};
use super::link::Phase;
use super::peer::{LinkKey, PeerMessage};
use super::run::Shard;
use super::session::{Kind, Resume, Step, Work};
use crate::iscsi::transfer::TaskId;
use crate::ring::{Completion, Nanos, Ring};
use crate::scsi::MediumError;

/// How long a command waits, unless the operator says otherwise. Initiators give up after 30 to 60 seconds themselves.
pub const IO_DEADLINE_MS: u64 = 30_000;

/// Orphans of one shard. When there are more, commands wait.
const ORPHANS_MAX: usize = 4096;

// A task's number and the number of its place's orphans share a word.
const _: () = assert!(SESSION_TASKS <= 256);

/// A task as operations name it: its number, and how often its place has left operations behind.
pub(crate) fn tagged(task: TaskId, generation: u8) -> u16 {
    u16::from(generation) << 8 | task.0
}

/// The task of such a name.
pub(crate) fn task_of(tagged: u16) -> TaskId {
    TaskId(tagged & 0xff)
}

/// What a connection's operations on files are marked with.
fn detail(link: LinkKey, tagged: u16) -> u32 {
    link.generation << 16 | u32::from(tagged)
}

/// Operations that a command has left behind.
struct Orphan {
    link: LinkKey,
    task: u16,
    operations: u16,
    disk: u32,
    plan: Option<bool>,
    at_work: bool,
    impedes: u8,
    range: Option<u8>,
    writes: bool,
    source: Option<LeftSource>,
}

/// The orphans of a shard.
#[derive(Default)]
pub(crate) struct Orphans(Vec<Orphan>);

impl Orphans {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn find(&self, link: LinkKey, task: u16) -> Option<usize> {
        self.0.iter().position(|orphan| orphan.link == link && orphan.task == task)
    }
}

impl<R: Ring> Core<R> {
    /// Something has come back for a task. True: for one that has not waited for it.
    pub(crate) fn orphan_returned(&mut self, link: LinkKey, task: u16) -> bool {
        if self.orphans.is_empty() {
            return false;
        }
        let Some(index) = self.orphans.find(link, task) else { return false };
        self.orphan_at(index);
        true
    }

    /// A file operation has completed. True: it was an orphan's.
    pub(crate) fn orphan_completed(&mut self, mark: Mark, completion: &Completion) -> bool {
        let (false, Mark::Task(link, found)) = (self.orphans.is_empty(), mark) else { return false };
        let is_it = |orphan: &Orphan| orphan.link.index == link && detail(orphan.link, orphan.task) == found;
        let Some(index) = self.orphans.0.iter().position(is_it) else { return false };
        if self.orphans.0[index].writes && completion.result.is_err() && !copy::was_refused(completion) {
            // What the file holds there is not known.
            let slot = self.disks.at(self.orphans.0[index].disk);
            slot.expect("a disk stays attached while orphans use it").disk.poison();
        }
        self.orphan_at(index);
        true
    }

    /// An orphan has got its range: there is nothing that it would do with it.
    pub(crate) fn orphan_got_range(&mut self, link: LinkKey, task: u16, number: u8) -> bool {
        let Some(index) = self.orphans.find(link, task) else { return false };
        self.orphans.0[index].range = Some(number);
        self.orphan_at(index);
        true
    }

    /// One operation of an orphan has come back. With the last one it is forgotten.
    fn orphan_at(&mut self, index: usize) {
        self.orphans.0[index].operations -= 1;
        if self.orphans.0[index].operations > 0 {
            return;
        }
        let orphan = self.orphans.0.swap_remove(index);
        if let Some(LeftSource { disk, plan, at_work, impedes }) = orphan.source {
            self.orphan_leaves(disk, plan, at_work, impedes);
        }
        let entry = self.disks.at(orphan.disk).expect("a disk stays attached while orphans use it");
        let (disk, home) = (entry.disk.id(), entry.disk.home());
        if orphan.writes {
            entry.disk.orphan_ended();
        }
        self.orphan_leaves(orphan.disk, orphan.plan, orphan.at_work, orphan.impedes);
        if let Some(number) = orphan.range {
            self.mail.post_owed(home, PeerMessage::ReleaseRange { disk, number });
        }
    }

    /// The accounts of a disk that an orphan has used.
    fn orphan_leaves(&mut self, slot: u32, plan: Option<bool>, at_work: bool, impedes: u8) {
        let entry = self.disks.at_mut(slot).expect("a disk stays attached while orphans use it");
        entry.tasks -= 1;
        let disk = entry.disk.id();
        if let Some(home) = entry.end_orphan(plan, at_work) {
            self.barrier_passed(disk, home);
        }
        if impedes != 0 {
            self.impeding_ended(slot, impedes);
        }
    }
}

impl<R: Ring> Work<'_, R> {
    /// The task as its operations name it.
    #[inline]
    pub(crate) fn tagged(&mut self, task: TaskId) -> u16 {
        tagged(task, self.task(task).generation)
    }

    /// The mark of the task's file operations.
    #[inline]
    pub(crate) fn mark(&mut self, task: TaskId) -> Mark {
        Mark::Task(self.key.index, detail(self.key, self.tagged(task)))
    }

    /// Whether the task's disk waits for what an earlier command may still write.
    #[inline]
    pub(crate) fn is_stuck(&mut self, task: TaskId) -> bool {
        let slot = self.task(task).disk.and_then(|slot| self.core.disks.at(slot));
        slot.is_some_and(|slot| slot.disk.has_orphans())
    }

    /// End every task that has waited since before this moment.
    fn end_overdue(&mut self, since: Nanos) {
        for index in 0..SESSION_TASKS as u16 {
            let task = TaskId(index);
            let entry = self.task(task);
            let waits = match entry.step {
                // It takes as long as it takes.
                Step::Asking(Resume::Erased) => entry.aborted,
                // It waits for commands of others, which do not wait for ever, and its outcome must be told.
                Step::Asking(Resume::Agreement) => false,
                Step::Asking(_) | Step::Writing | Step::Committing | Step::Reading | Step::Flushing => {
                    entry.operations > 0
                }
                Step::Paused(resume) => resume != Resume::Answer,
                _ => false,
            };
            if waits && entry.waits_since <= since && entry.disk.is_some() {
                self.give_up(task);
            }
        }
    }

    /// End a task that was aborted as soon as nothing of it is underway. FORMAT UNIT and SANITIZE go on without their
    /// command (SBC-4 clauses 4.11 and 4.33), which ends at once.
    pub(crate) fn end_aborted(&mut self, task: TaskId) {
        if self.task(task).step == Step::Asking(Resume::Erased) {
            return self.give_up(task);
        }
        self.release_if_aborted(task);
    }

    /// Leave a task's operations to whoever has them, and end it.
    fn give_up(&mut self, task: TaskId) {
        let name = self.tagged(task);
        let entry = &self.session.tasks[usize::from(task.0)];
        let Some(disk) = entry.disk else { return };
        let next = entry.generation.wrapping_add(1);
        if entry.operations > 0 {
            let is_taken = self.core.orphans.find(self.key, tagged(task, next)).is_some();
            if self.core.orphans.0.len() >= ORPHANS_MAX || is_taken {
                return;
            }
            self.make_orphan(task, disk, name);
        }
        if !self.release_if_aborted(task) {
            self.fail(task, MediumError::Timeout);
        }
    }

    fn make_orphan(&mut self, task: TaskId, disk: u32, name: u16) {
        self.end_change(task);
        let source = self.leave_source(task);
        let entry = &mut self.session.tasks[usize::from(task.0)];
        let reads = match entry.kind {
            Kind::Read | Kind::Verify(_) | Kind::Flush | Kind::None | Kind::List(_) => true,
            Kind::Copy => matches!(entry.step, Step::Reading | Step::Asking(Resume::ReadIn | Resume::Copy)),
            _ => false,
        };
        let orphan = Orphan {
            link: self.key,
            task: name,
            operations: std::mem::take(&mut entry.operations),
            disk,
            plan: entry.plan.take(),
            at_work: std::mem::take(&mut entry.at_work),
            impedes: std::mem::take(&mut entry.impedes),
            range: entry.range.take(),
            writes: !reads,
            source,
        };
        entry.generation = entry.generation.wrapping_add(1);
        *self.operations -= u32::from(orphan.operations);
        self.core.task_operations -= u32::from(orphan.operations);
        self.session.at_work -= u32::from(orphan.at_work);
        if let Some(slot) = self.core.disks.at_mut(disk) {
            slot.tasks += 1;
            if orphan.writes {
                slot.disk.orphan_begun();
            }
        }
        self.core.orphans.0.push(orphan);
    }
}

impl<R: Ring> Shard<R> {
    /// Look for commands that have waited too long, if it is time to.
    pub(super) fn end_overdue(&mut self) {
        let now = self.core.now;
        let deadline_ns = self.core.io_deadline_ms * 1_000_000;
        if self.core.overdue_check.0 == 0 {
            // The first operation for a while: nothing can be overdue before this.
            self.core.overdue_check = Nanos(now.0 + deadline_ns);
        }
        if now < self.core.overdue_check {
            return;
        }
        let since = Nanos(now.0.saturating_sub(deadline_ns));
        for index in 0..self.links.len() {
            if self.links[index].is_none() {
                continue;
            }
            self.take_turn(index as u32);
            let Self { core, links, .. } = self;
            let Some(link) = links[index].as_deref_mut() else { continue };
            let Phase::Session(session) = &link.phase else { continue };
            if session.at_work == 0 && session.held == 0 && link.operations == 0 {
                continue;
            }
            if let Some((mut work, _, _)) = link.work(core) {
                work.end_overdue(since);
            }
            link.queue(core);
        }
        self.core.overdue_check = Nanos(now.0 + deadline_ns / 4);
    }
}
