//! Who is at work on a disk's files, and how everybody is kept away from them for a moment.
//!
//! A command is *at work* from the plan of a window to the last answer of the home shard for it; in between it waits
//! for its initiator, and holds nothing. A pause therefore lets windows end that have begun, and holds every command
//! where it would begin the next one; when the disk goes on, perhaps with other files, that window is planned anew.
//! What is held is a task like others: it can be aborted, its connection can end, and other units are not concerned.
//!
//! What changes the leaf's map can take long: it may wait for the drive's cache to be flushed. So a pause comes in two
//! steps ([`Hold`]). First only such changes are held, which would wait for those before them anyway, and all else goes
//! on; when none of them is at work, everything is held, and what is waited for is single reads and writes. Flushes are
//! not waited for at all.
//!
//! Beside that, plans whose file operations run are counted by the *epoch* they were made in, so that space can be
//! given to others only when nobody reads or writes what was there before ([`DiskSlot::begin_barrier`]).

use super::copy::SESSION_TASKS;
use super::core::{Core, DiskSlot};
use super::link::Phase;
use super::message::{Hold, PauseError, Reply};
use super::peer::PeerMessage;
use super::run::Shard;
use super::session::{Resume, Step, Work};
use crate::iscsi::transfer::TaskId;
use crate::ring::Ring;
use crate::units::{DiskId, ShardId};

/// A disk whose commands are held.
pub(crate) struct Pause {
    hold: Hold,
    /// Told when nobody whom it holds is at work; `None` once that is so.
    reply: Option<Reply<Result<(), PauseError>>>,
    /// When the attempt is given up.
    deadline_ms: u64,
    patience_ms: u64,
}

/// Who is at work on a disk, on one shard.
#[derive(Default)]
pub(crate) struct AtWork {
    /// Commands with a window that has begun.
    windows: u32,
    /// Of those, commands that change the leaf's map.
    changes: u32,
    /// Windows whose file operations run, by the epoch of their plan.
    plans: [u32; 2],
    /// The present epoch.
    epoch: bool,
    /// The home shard waits for the plans of the epoch before.
    barrier: Option<ShardId>,
}

impl AtWork {
    /// No window has begun and not ended.
    pub(crate) fn is_idle(&self) -> bool {
        self.windows == 0
    }
}

/// Work of the home shard that is no command's.
impl AtWork {
    /// It is at work on the disk's files; [`DiskSlot::end_orphan`] ends that.
    pub(crate) fn begin_piece(&mut self) {
        self.windows += 1;
    }

    /// It has made a plan, and carries it out.
    pub(crate) fn begin_plan(&mut self) -> bool {
        self.plans[usize::from(self.epoch)] += 1;
        self.epoch
    }
}

impl DiskSlot {
    /// All commands of the disk are held.
    #[inline]
    pub(crate) fn is_paused(&self) -> bool {
        self.pause.as_ref().is_some_and(|pause| pause.hold == Hold::All)
    }

    /// Nothing holds any command of the disk: it is not paused, and nobody has a range of it to himself.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        self.pause.is_none() & self.ranges.is_empty()
    }

    /// The home shard wants to know when every plan made so far has ended. `Some`: that is so already.
    pub(crate) fn begin_barrier(&mut self, home: ShardId) -> Option<ShardId> {
        let work = &mut self.at_work;
        assert!(work.barrier.is_none(), "a home shard sets up one barrier of a disk at a time");
        assert_eq!(work.plans[usize::from(!work.epoch)], 0, "the epoch before ended with the last barrier");
        if work.plans[usize::from(work.epoch)] == 0 {
            return Some(home);
        }
        work.epoch = !work.epoch;
        work.barrier = Some(home);
        None
    }

    /// The file operations of a command that has not waited for them have ended.
    pub(crate) fn end_orphan(&mut self, plan: Option<bool>, at_work: bool) -> Option<ShardId> {
        self.at_work.windows -= u32::from(at_work);
        plan.and_then(|epoch| self.end_plan(epoch))
    }

    fn end_plan(&mut self, epoch: bool) -> Option<ShardId> {
        let work = &mut self.at_work;
        let plans = &mut work.plans[usize::from(epoch)];
        *plans -= 1;
        if *plans == 0 && epoch != work.epoch { work.barrier.take() } else { None }
    }
}

/// The accounts of one command.
impl<R: Ring> Work<'_, R> {
    /// Whether the command has to wait before it begins with its next window; it is held then, and goes on with
    /// `resume`.
    #[inline]
    pub(crate) fn is_held(&mut self, task: TaskId, resume: Resume) -> bool {
        let entry = &self.session.tasks[usize::from(task.0)];
        let slot = entry.disk.and_then(|slot| self.core.disks.at(slot));
        let Some(slot) = slot.filter(|slot| !entry.at_work && !slot.is_open()) else { return false };
        if !slot.is_paused() && !self.meets_held_range(task, resume) {
            return false;
        }
        self.set_step(task, Step::Paused(resume));
        let now = self.core.now;
        self.task(task).waits_since = now;
        true
    }

    /// Whether a command that is about to change the leaf's map has to wait; it is held then, and goes on with
    /// `resume`.
    pub(crate) fn is_change_held(&mut self, task: TaskId, resume: Resume) -> bool {
        let entry = &self.session.tasks[usize::from(task.0)];
        let slot = entry.disk.and_then(|slot| self.core.disks.at(slot));
        if entry.at_work || slot.is_none_or(|slot| slot.pause.is_none()) {
            return false;
        }
        self.set_step(task, Step::Paused(resume));
        let now = self.core.now;
        self.task(task).waits_since = now;
        true
    }

    /// The command, which is at work, changes the leaf's map.
    pub(crate) fn begin_change(&mut self, task: TaskId) {
        let entry = &mut self.session.tasks[usize::from(task.0)];
        if !entry.changes
            && let Some(slot) = entry.disk.and_then(|slot| self.core.disks.at_mut(slot))
        {
            entry.changes = true;
            slot.at_work.changes += 1;
        }
    }

    /// It no longer does, or nobody waits for that any more.
    pub(crate) fn end_change(&mut self, task: TaskId) {
        let entry = &mut self.session.tasks[usize::from(task.0)];
        if std::mem::take(&mut entry.changes)
            && let Some(slot) = entry.disk.and_then(|slot| self.core.disks.at_mut(slot))
        {
            slot.at_work.changes -= 1;
        }
    }

    /// The command is at work on its disk's files, if it was not already.
    pub(crate) fn begin_work(&mut self, task: TaskId) {
        let entry = &mut self.session.tasks[usize::from(task.0)];
        if !entry.at_work
            && let Some(slot) = entry.disk.and_then(|slot| self.core.disks.at_mut(slot))
        {
            entry.at_work = true;
            slot.at_work.windows += 1;
            self.session.at_work += 1;
        }
    }

    /// It is no longer.
    pub(crate) fn end_work(&mut self, task: TaskId) {
        self.end_plan(task);
        self.end_change(task);
        let entry = &mut self.session.tasks[usize::from(task.0)];
        if std::mem::take(&mut entry.at_work)
            && let Some(disk) = entry.disk
            && let Some(slot) = self.core.disks.at_mut(disk)
        {
            slot.at_work.windows -= 1;
            let impedes = std::mem::take(&mut entry.impedes);
            self.session.at_work -= 1;
            if impedes != 0 {
                self.end_impeding(disk, impedes);
            }
        }
    }

    /// File operations begin that follow a plan just made.
    pub(crate) fn begin_plan(&mut self, task: TaskId) {
        self.begin_work(task);
        let entry = &mut self.session.tasks[usize::from(task.0)];
        assert!(entry.plan.is_none(), "a command follows one plan at a time");
        if let Some(slot) = entry.disk.and_then(|slot| self.core.disks.at_mut(slot)) {
            let epoch = slot.at_work.epoch;
            entry.plan = Some(epoch);
            slot.at_work.plans[usize::from(epoch)] += 1;
        }
    }

    /// They have ended, all of them.
    pub(crate) fn end_plan(&mut self, task: TaskId) {
        let entry = &mut self.session.tasks[usize::from(task.0)];
        let Some(epoch) = entry.plan.take() else { return };
        debug_assert_eq!(entry.operations, 0, "a plan ends with its last operation");
        let slot = entry.disk.and_then(|slot| self.core.disks.at_mut(slot));
        if let Some((disk, home)) = slot.and_then(|slot| Some((slot.disk.id(), slot.end_plan(epoch)?))) {
            self.core.barrier_passed(disk, home);
        }
    }

    /// Go on with the commands of a disk that were held.
    fn resume_held(&mut self, disk: u32) {
        for index in 0..SESSION_TASKS as u16 {
            let task = TaskId(index);
            let entry = self.task(task);
            let Step::Paused(resume) = entry.step else { continue };
            if entry.disk == Some(disk) && resume != Resume::Answer {
                self.set_step(task, Step::Idle);
                self.resume(task, resume);
            }
        }
    }
}

impl<R: Ring> Core<R> {
    /// Every plan of this shard that the home shard waits for has ended.
    pub(crate) fn barrier_passed(&mut self, disk: DiskId, home: ShardId) {
        // Home shards bound how many barriers they set up at once.
        self.mail.post_owed(home, PeerMessage::BarrierPassed { disk });
    }
}

/// What the control plane asks.
impl<R: Ring> Shard<R> {
    /// Hold a disk's commands.
    pub(super) fn pause(&mut self, id: DiskId, hold: Hold, patience_ms: u64, reply: Reply<Result<(), PauseError>>) {
        let slot = self.core.disks.find(id);
        let now_ms = self.core.now_ms();
        match slot.and_then(|slot| self.core.disks.at_mut(slot)) {
            None => reply(Err(PauseError("the disk is not attached".into()))),
            Some(entry) if !entry.may_hold(hold) => reply(Err(PauseError("the disk is paused already".into()))),
            Some(entry) => {
                let deadline_ms = now_ms + patience_ms;
                entry.pause = Some(Pause { hold, reply: Some(reply), deadline_ms, patience_ms });
                self.pausing.extend(slot);
                self.core.wake_by_ms(deadline_ms);
            }
        }
    }

    /// Pauses that have come to be, or take too long.
    pub(super) fn finish_pausing(&mut self) {
        let now_ms = self.core.now_ms();
        for index in (0..self.pausing.len()).rev() {
            let slot = self.pausing[index];
            let Some(entry) = self.core.disks.at_mut(slot) else {
                self.pausing.swap_remove(index);
                continue;
            };
            let Some(pause) = entry.pause.as_mut() else { continue };
            let at_work = match pause.hold {
                Hold::Changes => entry.at_work.changes,
                Hold::All => entry.at_work.windows,
            };
            let is_late = now_ms >= pause.deadline_ms;
            if at_work > 0 && !is_late {
                continue;
            }
            self.pausing.swap_remove(index);
            let (reply, patience_ms) = (pause.reply.take(), pause.patience_ms);
            if at_work > 0 {
                self.go_on(slot);
            }
            let why =
                || PauseError(format!("{at_work} commands were still at work on its file after {patience_ms} ms"));
            if let Some(reply) = reply {
                reply(if at_work > 0 { Err(why()) } else { Ok(()) });
            }
        }
    }

    /// When the next pause is given up.
    pub(super) fn pause_deadline_ms(&self) -> u64 {
        let deadlines =
            self.pausing.iter().filter_map(|&slot| Some(self.core.disks.at(slot)?.pause.as_ref()?.deadline_ms));
        deadlines.min().unwrap_or(u64::MAX)
    }

    /// End a pause.
    pub(super) fn resume(&mut self, id: DiskId) {
        if let Some(slot) = self.core.disks.find(id) {
            self.pausing.retain(|&pausing| pausing != slot);
            self.go_on(slot);
        }
    }

    /// Let the commands of a disk go on that were held.
    pub(super) fn go_on(&mut self, slot: u32) {
        let pause = self.core.disks.at_mut(slot).and_then(|entry| entry.pause.take());
        let Some(pause) = pause else { return };
        if let Some(reply) = pause.reply {
            reply(Err(PauseError("it was told to go on".into())));
        }
        self.let_held_go_on(slot);
        self.erase_on(slot);
    }

    /// Have the commands of a disk try again that were held.
    pub(super) fn let_held_go_on(&mut self, slot: u32) {
        for index in 0..self.links.len() {
            if self.links[index].is_none() {
                continue;
            }
            self.take_turn(index as u32);
            let Self { core, links, .. } = self;
            let Some(link) = links[index].as_deref_mut() else { continue };
            let Phase::Session(session) = &link.phase else { continue };
            if session.held > 0 {
                if let Some((mut work, _, _)) = link.work(core) {
                    work.resume_held(slot);
                }
                link.queue(core);
            }
        }
    }
}

impl DiskSlot {
    /// Paused, and nobody is at work.
    pub(crate) fn is_quiet(&self) -> bool {
        let is_held = self.pause.as_ref().is_some_and(|pause| pause.hold == Hold::All && pause.reply.is_none());
        is_held && self.at_work.is_idle()
    }

    /// Whether a pause can begin: there is none, or a lighter one that has come to be.
    fn may_hold(&self, hold: Hold) -> bool {
        self.pause
            .as_ref()
            .is_none_or(|pause| (pause.hold, hold) == (Hold::Changes, Hold::All) && pause.reply.is_none())
    }
}

/// Barriers.
impl<R: Ring> Shard<R> {
    /// A home shard wants to know when all plans made so far have been carried out.
    pub(super) fn barrier(&mut self, disk: DiskId, home: ShardId) {
        let core = &mut self.core;
        let slot = core.disks.find(disk).and_then(|slot| core.disks.at_mut(slot));
        let passed = match slot {
            Some(entry) => entry.begin_barrier(home),
            None => Some(home),
        };
        if let Some(home) = passed {
            core.barrier_passed(disk, home);
        }
    }

    /// A shard has no plan left of those that this home shard waits for.
    pub(super) fn barrier_passed(&mut self, disk: DiskId) {
        let Core { io, mail, disks, home, .. } = &mut self.core;
        let slot = disks.find(disk).and_then(|slot| disks.at_mut(slot));
        if let Some(disk) = slot.and_then(|slot| slot.home.as_mut()) {
            disk.barrier_passed(home, io, mail);
        }
    }
}
