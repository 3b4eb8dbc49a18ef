//! Ranges of a disk that one command has to itself, on all shards: for COMPARE AND WRITE, ORWRITE and WRITE ATOMIC.
//!
//! The disk's home shard grants them in the order in which they are asked for: it tells every shard of the range, each
//! answers when no command of its own is at work there, and then whoever asked goes on. From the moment a shard has
//! been told it holds commands that would begin a window in the range, as a pause does ([`super::pause`]): what is held
//! is a task like others, and can be aborted. The holder gives the range back when its command ends, however it ends.
//!
//! A command asks for its range when it has all its data and all the memory it needs, and holds only one range: it
//! waits for nothing but the medium while others wait for it.

use std::collections::VecDeque;

use super::core::{Core, DiskSlot};
use super::link::Phase;
use super::peer::{Asker, HomeRequest, LinkKey, PeerMessage};
use super::run::Shard;
use super::session::{Kind, Resume, Session, Step, Work};
use crate::iscsi::transfer::TaskId;
use crate::medium::PAYLOAD_SLOTS;
use crate::ring::Ring;
use crate::scsi::MediumError;
use crate::units::{DiskId, ShardId};

/// Ranges that one home shard has granted at once, for all its disks; bounds the messages that are under way for them.
pub(crate) const RANGES_MAX: usize = 256;

/// Of those, ranges of one disk: their numbers are bits of [`Task::impedes`](super::session::Task).
const RANGES_PER_DISK_MAX: u8 = 8;

/// Each has memory of its own where the data of an atomic write waits.
const _: () = assert!(RANGES_PER_DISK_MAX <= PAYLOAD_SLOTS);

/// Bytes of a disk, the end excluded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ByteRange {
    pub(crate) from: u64,
    pub(crate) to: u64,
}

impl ByteRange {
    pub(super) fn meets(self, other: Self) -> bool {
        self.from < other.to && other.from < self.to
    }
}

// ---- at home ------------------------------------------------------------------------------------------------------

/// A range that has been granted.
struct Granted {
    disk: DiskId,
    /// Below [`RANGES_PER_DISK_MAX`], unique among the disk's ranges.
    number: u8,
    range: ByteRange,
    is_atomic: bool,
    asker: Asker,
    /// Shards that have not answered.
    shards: u16,
}

/// A range that is asked for.
struct Wanted {
    disk: DiskId,
    range: ByteRange,
    is_atomic: bool,
    asker: Asker,
}

/// Who has which range, of all disks of a home shard.
pub(crate) struct Arbiter {
    shards: u16,
    granted: Vec<Granted>,
    /// In the order in which they were asked for. Bounded by the requests that all shards may have underway.
    wanted: VecDeque<Wanted>,
}

impl Arbiter {
    pub(crate) fn new(shards: u16) -> Self {
        Self { shards, granted: Vec::with_capacity(RANGES_MAX), wanted: VecDeque::with_capacity(RANGES_MAX) }
    }

    /// The next range that can be granted: no range of its disk that has been granted meets it, nor one that has waited
    /// longer.
    fn grant_next(&mut self) -> Option<&Granted> {
        if self.granted.len() == RANGES_MAX {
            return None;
        }
        let (index, number) = (0..self.wanted.len()).find_map(|index| Some((index, self.number_for(index)?)))?;
        let Wanted { disk, range, is_atomic, asker } = self.wanted.remove(index)?;
        self.granted.push(Granted { disk, number, range, is_atomic, asker, shards: self.shards });
        self.granted.last()
    }

    /// The number that a wanted range would get now.
    fn number_for(&self, index: usize) -> Option<u8> {
        let wanted = &self.wanted[index];
        let mut taken = 0u8;
        for granted in self.granted.iter().filter(|granted| granted.disk == wanted.disk) {
            if granted.range.meets(wanted.range) {
                return None;
            }
            taken |= 1 << granted.number;
        }
        let number = taken.trailing_ones() as u8;
        let mut earlier = self.wanted.range(..index);
        let overtakes = earlier.any(|other| other.disk == wanted.disk && other.range.meets(wanted.range));
        (number < RANGES_PER_DISK_MAX && !overtakes).then_some(number)
    }

    /// A shard has nobody at work in a range. The asker, when that was the last one.
    fn held(&mut self, disk: DiskId, number: u8) -> Option<Asker> {
        let granted = self.granted.iter_mut().find(|granted| granted.disk == disk && granted.number == number)?;
        granted.shards -= 1;
        (granted.shards == 0).then_some(granted.asker)
    }

    fn release(&mut self, disk: DiskId, number: u8) {
        let found = self.granted.iter().position(|granted| granted.disk == disk && granted.number == number);
        let index = found.expect("a range is given back once");
        self.granted.swap_remove(index);
    }
}

// ---- on every shard -----------------------------------------------------------------------------------------------

/// A range of a disk in which only one command may be at work.
struct HeldRange {
    number: u8,
    range: ByteRange,
    /// That command, if it is one of this shard.
    holder: Option<(LinkKey, u16)>,
    /// Commands of this shard that are still at work there.
    impeding: u32,
}

/// A disk's ranges, as one shard knows them.
#[derive(Default)]
pub(crate) struct HeldRanges {
    list: Vec<HeldRange>,
    /// Commands have been held because of them.
    has_held: bool,
}

impl HeldRanges {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether anybody but this command has a part of the range.
    fn refuse(&self, range: ByteRange, task: (LinkKey, u16)) -> bool {
        self.list.iter().any(|held| held.range.meets(range) && held.holder != Some(task))
    }
}

impl DiskSlot {
    /// A command has ended its window that was at work in these ranges, by the bits of their numbers. Those in which
    /// nobody is at work any more.
    #[cold]
    fn no_longer_impeded(&mut self, by: u8) -> u8 {
        let mut free = 0;
        for held in self.ranges.list.iter_mut().filter(|held| by & 1 << held.number != 0) {
            held.impeding -= 1;
            if held.impeding == 0 {
                free |= 1 << held.number;
            }
        }
        free
    }
}

impl Session {
    /// Mark the commands that are at work on a range. How many.
    fn mark_impeding(&mut self, disk: u32, range: ByteRange, number: u8) -> u32 {
        let mut count = 0;
        for entry in self.tasks.iter_mut().filter(|entry| entry.at_work && entry.disk == Some(disk)) {
            let meets = match entry.kind {
                Kind::Flush | Kind::None => false,
                // Which part of its ranges the home shard is at is not worth knowing: it does not take long.
                Kind::Unmap | Kind::Zero => true,
                _ => entry.window_range().meets(range),
            };
            if meets {
                entry.impedes |= 1 << number;
                count += 1;
            }
        }
        count
    }
}

impl super::session::Task {
    /// The bytes of the disk that the present window covers.
    fn window_range(&self) -> ByteRange {
        let from = self.offset_bytes + u64::from(self.done);
        ByteRange { from, to: from + u64::from(self.window) }
    }
}

impl<R: Ring> Shard<R> {
    /// A command wants a range of a disk whose home this shard is, to write it atomically or for something else.
    pub(super) fn range_wanted(&mut self, disk: DiskId, asker: Asker, range: ByteRange, is_atomic: bool) {
        if self.core.disks.find(disk).is_none() {
            let result = Err(MediumError::Removed);
            return self.core.mail.post_owed(asker.shard, PeerMessage::HomeDone { asker, result });
        }
        self.core.home.ranges.wanted.push_back(Wanted { disk, range, is_atomic, asker });
        self.grant_ranges();
    }

    /// Tell all shards of the ranges that can be granted now.
    fn grant_ranges(&mut self) {
        let Core { home, mail, id, shards, .. } = &mut self.core;
        while let Some(granted) = home.ranges.grant_next() {
            let Granted { disk, number, range, is_atomic, asker, .. } = *granted;
            for shard in (0..*shards).map(ShardId) {
                mail.post_owed(shard, PeerMessage::HoldRange { disk, number, range, is_atomic, asker, home: *id });
            }
        }
    }

    /// A disk's home shard has granted a range: keep others away from it, and say when nobody is at work there.
    pub(super) fn hold_range(
        &mut self,
        (disk, number): (DiskId, u8),
        range: ByteRange,
        is_atomic: bool,
        asker: Asker,
        home: ShardId,
    ) {
        let Self { core, links, .. } = self;
        let holder = (asker.shard == core.id).then_some((asker.link, asker.task));
        let mut impeding = 0;
        if let Some(slot) = core.disks.find(disk)
            && let Some(entry) = core.disks.at_mut(slot)
        {
            if entry.at_work.is_idle() {
                // Nobody has to be looked for.
            } else {
                for link in links.iter_mut().flatten() {
                    if let Phase::Session(session) = &mut link.phase
                        && session.at_work > 0
                    {
                        impeding += session.mark_impeding(slot, range, number);
                    }
                }
            }
            entry.atomics = entry.atomics.wrapping_add(u32::from(is_atomic));
            if is_atomic && entry.tasks > 0 {
                for link in links.iter_mut().flatten() {
                    if let Phase::Session(session) = &mut link.phase {
                        session.mark_torn(slot, range);
                    }
                }
            }
            entry.ranges.list.push(HeldRange { number, range, holder, impeding });
        }
        if impeding == 0 {
            core.mail.post_owed(home, PeerMessage::RangeHeld { disk, number });
        }
    }

    /// A shard keeps others away from a range. When all do, the asker has it.
    pub(super) fn range_held(&mut self, disk: DiskId, number: u8) {
        if let Some(asker) = self.core.home.ranges.held(disk, number) {
            self.core.mail.post_owed(asker.shard, PeerMessage::RangeGranted { asker, number });
        }
    }

    /// A command has given its range back.
    pub(super) fn range_released(&mut self, disk: DiskId, number: u8) {
        self.core.home.ranges.release(disk, number);
        for shard in (0..self.core.shards).map(ShardId) {
            self.core.mail.post_owed(shard, PeerMessage::FreeRange { disk, number });
        }
        self.grant_ranges();
    }

    /// Nobody has the range any more: let those go on that were held.
    pub(super) fn free_range(&mut self, disk: DiskId, number: u8) {
        let slot = self.core.disks.find(disk);
        let Some((slot, entry)) = slot.and_then(|slot| Some((slot, self.core.disks.at_mut(slot)?))) else { return };
        entry.ranges.list.retain(|held| held.number != number);
        if std::mem::take(&mut entry.ranges.has_held) {
            self.let_held_go_on(slot);
        }
    }
}

impl<R: Ring> Core<R> {
    /// A command has ended that was at work in these ranges.
    pub(super) fn impeding_ended(&mut self, slot: u32, by: u8) {
        let free = self.disks.at_mut(slot).map_or(0, |entry| entry.no_longer_impeded(by));
        self.ranges_are_held(slot, free);
    }

    /// Tell the home shard of ranges in which nobody of this shard is at work any more, by the bits of their numbers.
    #[cold]
    fn ranges_are_held(&mut self, slot: u32, numbers: u8) {
        let Some(entry) = self.disks.at(slot) else { return };
        let (disk, home) = (entry.disk.id(), entry.disk.home());
        for number in (0..RANGES_PER_DISK_MAX).filter(|number| numbers & 1 << number != 0) {
            self.mail.post_owed(home, PeerMessage::RangeHeld { disk, number });
        }
    }
}

/// What commands have to do with it.
impl<R: Ring> Work<'_, R> {
    /// Whether another command has something of what the task would do next.
    #[cold]
    pub(super) fn meets_held_range(&mut self, task: TaskId, resume: Resume) -> bool {
        let range = match resume {
            Resume::WriteOut | Resume::ReadIn => self.task(task).window_range(),
            Resume::Provision => match self.present_range(task) {
                Ok(Some((from, to))) => ByteRange { from, to },
                _ => return false,
            },
            _ => return false,
        };
        let key = (self.key, self.tagged(task));
        let slot = self.task(task).disk.and_then(|slot| self.core.disks.at_mut(slot));
        let Some(entry) = slot.filter(|entry| entry.ranges.refuse(range, key)) else { return false };
        entry.ranges.has_held = true;
        true
    }

    /// The task has ended a window that was at work in these ranges.
    #[cold]
    pub(super) fn end_impeding(&mut self, slot: u32, by: u8) {
        self.core.impeding_ended(slot, by);
    }

    /// Ask for the bytes of the present window. The task goes on when it has them to itself: it reads them, or writes
    /// them atomically.
    pub(crate) fn ask_range(&mut self, task: TaskId) {
        let entry = self.task(task);
        let (range, slot) = (entry.window_range(), entry.disk.expect("a range is of a unit"));
        let is_atomic = entry.kind == Kind::WriteAtomic;
        let name = self.tagged(task);
        if !self.core.ask_home(slot, self.key, name, HomeRequest::HoldRange { range, is_atomic }) {
            return self.starve(task, Resume::AskRange);
        }
        self.set_step(task, Step::Asking(Resume::AskRange));
        self.begin_operation(task);
    }

    /// The task has its range.
    pub(crate) fn range_granted(&mut self, task: TaskId, number: u8) {
        self.end_operation(task);
        self.task(task).range = Some(number);
        if self.release_if_aborted(task) {
            return;
        }
        match self.task(task).kind {
            Kind::WriteAtomic => self.write_out(task),
            _ => self.read_in(task),
        }
    }

    /// Give the task's range back, if it has one.
    #[inline]
    pub(crate) fn release_range(&mut self, task: TaskId) {
        let entry = self.task(task);
        if let Some(number) = entry.range.take() {
            let slot = entry.disk.and_then(|slot| self.core.disks.at(slot)).expect("a range is of a unit");
            let (disk, home) = (slot.disk.id(), slot.disk.home());
            // Home shards bound how many ranges there are.
            self.core.mail.post_owed(home, PeerMessage::ReleaseRange { disk, number });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: DiskId = DiskId(1);
    const B: DiskId = DiskId(2);

    fn want(arbiter: &mut Arbiter, disk: DiskId, from: u64, to: u64, task: u16) {
        let asker = Asker { shard: ShardId(0), link: LinkKey::NOBODY, task };
        arbiter.wanted.push_back(Wanted { disk, range: ByteRange { from, to }, is_atomic: false, asker });
    }

    /// Tasks whose ranges are granted now, in this order.
    fn grants(arbiter: &mut Arbiter) -> Vec<u16> {
        std::iter::from_fn(|| arbiter.grant_next().map(|granted| granted.asker.task)).collect()
    }

    #[test]
    fn ranges_that_meet_are_granted_one_after_the_other() {
        let mut arbiter = Arbiter::new(2);
        want(&mut arbiter, A, 0, 512, 1);
        want(&mut arbiter, A, 511, 1024, 2);
        want(&mut arbiter, A, 512, 1024, 3);
        want(&mut arbiter, A, 1024, 1536, 4);
        want(&mut arbiter, B, 0, 512, 5);
        // The third would not meet the first, but it does not overtake the second.
        assert_eq!(grants(&mut arbiter), [1, 4, 5]);
        assert_eq!(arbiter.held(A, 0), None);
        assert_eq!(arbiter.held(A, 0).map(|asker| asker.task), Some(1), "when both shards have answered");
        arbiter.release(A, 0);
        assert_eq!(grants(&mut arbiter), [2]);
        arbiter.release(A, 0);
        assert_eq!(grants(&mut arbiter), [3]);
    }

    #[test]
    fn numbers_and_ranges_are_bounded() {
        let mut arbiter = Arbiter::new(1);
        for task in 0..10 {
            want(&mut arbiter, A, u64::from(task) * 512, u64::from(task + 1) * 512, task);
        }
        assert_eq!(grants(&mut arbiter), [0, 1, 2, 3, 4, 5, 6, 7]);
        arbiter.release(A, 3);
        assert_eq!(grants(&mut arbiter), [8]);
        assert_eq!(arbiter.granted.last().map(|granted| granted.number), Some(3), "a free number is used again");
        for disk in 0..300 {
            want(&mut arbiter, DiskId(10 + disk), 0, 512, 100);
        }
        assert_eq!(grants(&mut arbiter).len(), RANGES_MAX - 8);
        arbiter.release(DiskId(10), 0);
        assert_eq!(grants(&mut arbiter).len(), 1);
    }
}
