//! Copies that move no bytes: the destination's file shares blocks of the source's ([`Op::Share`]).
//!
//! Where both disks are files, the source has something, and both places begin at whole blocks of a file system, a
//! chunk of up to [`SHARE_BYTES_MAX`] is written as a WRITE is, with its plan, its pause, its preparation and its
//! commit by the home shard; only that, instead of bytes being sent, the file system is told where they are. Where it
//! cannot do that, the chunk is read and written after all, and the pair of files is not tried again by this copy.
//!
//! *What protects the destination* is what protects it from a WRITE: the task is at work on it from the plan to the
//! commit. *What protects the source* is what protects a READ of it: the copy has a second place among its session's
//! tasks ([`Copies::source_of`]), which is at work on the source and follows its plan for as long as the destination's
//! does. So the source's blocks are not given to others, a pause of either disk and whoever wants a range of either to
//! himself (COMPARE AND WRITE) waits for both, and what the deadline leaves to the kernel holds both. The source's plan
//! is made last, in the same turn in which the file system is asked, and never waited for: who holds one plan and waits
//! for another disk's could wait for ever. If the source is held just then, the chunk is read, which waits as it
//! should.
//!
//! *Durable* is what is shared as what is written is: with the file's next flush. With write-through on, that flush is
//! asked for, as no file system has a sharing that is durable by itself. *Later writes* to either file are given new
//! blocks by the file system; when it has none left they fail as any write does that finds it full (27h/07h).
//!
//! A token is looked at before and after: what was shared while its source was written is not told as copied.

use super::mover::{How, Leg, Mover};
use super::{Copies, SHARES};
use crate::blocks::{Extent, ExtentList};
use crate::iscsi::transfer::TaskId;
use crate::limits::{BURST_LENGTH_MAX, SHARE_BYTES_MAX};
use crate::medium::{Disk, ReadPlan};
use crate::ring::{Completion, Errno, Fd, Op, Ring};
use crate::scsi::{CopyState, Outcome};
use crate::shard::session::{Kind, Step, Work};

/// What file systems share is in whole blocks: 4 KiB, where it is not more. Where it is more, they refuse.
const BLOCK_BYTES: u64 = 4096;

/// Less is moved faster than the file system is asked.
const SHARE_BYTES_MIN: u64 = 64 * 1024;

/// Pairs of files that one copy remembers to have been refused. After that it moves everything.
const REFUSED_MAX: usize = 64;

/// What one copy knows of sharing.
#[derive(Default)]
pub(super) struct Shares {
    /// The present chunk is shared: from which disk, and where it begins there.
    from: Option<(u32, u64)>,
    /// Pairs of files whose file system would not, source first.
    refused: Vec<(Fd, Fd)>,
    /// Part of the present chunk could not be shared.
    has_failed: bool,
    /// The next chunk is moved.
    moves_next: bool,
}

impl Shares {
    /// The present chunk is shared.
    pub(super) fn is_sharing(&self) -> bool {
        self.from.is_some()
    }

    /// The present chunk is no longer.
    pub(super) fn end_chunk(&mut self) {
        self.from = None;
    }

    fn refuses(&self, from: Fd, into: Fd) -> bool {
        self.refused.len() >= REFUSED_MAX || self.refused.contains(&(from, into))
    }

    fn refuse(&mut self, from: Fd, into: Fd) {
        if !self.refuses(from, into) {
            self.refused.push((from, into));
        }
    }
}

/// How the next bytes of a copy get where they are to be.
pub(super) enum Way {
    /// So many are shared.
    Share(u32),
    /// At most so many are read and written: then, perhaps, they can be shared.
    Move(u32),
}

/// Whether what has failed has changed nothing.
pub(crate) fn was_refused(completion: &Completion) -> bool {
    let Err(Errno(errno)) = completion.result else { return false };
    let refused = [libc::EAGAIN, libc::EOPNOTSUPP, libc::ENOTTY, libc::EINVAL, libc::EXDEV, libc::EPERM];
    matches!(completion.op, Some(Op::Share { .. })) && refused.contains(&errno)
}

fn is_whole(n: u64) -> bool {
    n.is_multiple_of(BLOCK_BYTES)
}

/// Bytes at the beginning of a read's extents that lie in one file, at whole blocks; and in which layer.
fn first_run(extents: &ExtentList) -> Option<(u16, u32)> {
    let Some(Extent::File { layer, .. }) = extents.as_slice().first().copied() else { return None };
    let mut len = 0;
    for extent in extents.as_slice() {
        match *extent {
            Extent::File { layer: other, offset_bytes, len_bytes } if other == layer && is_whole(offset_bytes) => {
                len += len_bytes;
                if !is_whole(u64::from(len_bytes)) {
                    break;
                }
            }
            _ => break,
        }
    }
    Some((layer, len / BLOCK_BYTES as u32 * BLOCK_BYTES as u32))
}

/// What to share, so that as much of `into` as can be, from its start, becomes what `from` is. How many bytes that is.
fn pieces(source: (&Disk, &ExtentList), destination: (&Disk, &ExtentList), ops: &mut Vec<Op>) -> u32 {
    let (mut source_extents, mut extents) = (source.1.as_slice().iter(), destination.1.as_slice().iter());
    let (mut source_now, mut now) = (source_extents.next().copied(), extents.next().copied());
    let mut covered = 0;
    while let (
        Some(Extent::File { layer: from_layer, offset_bytes: from_bytes, len_bytes: from_len }),
        Some(Extent::File { layer, offset_bytes, len_bytes: into_len }),
    ) = (source_now, now)
    {
        let len_bytes = from_len.min(into_len);
        if ![from_bytes, offset_bytes, u64::from(len_bytes)].into_iter().all(is_whole) {
            break;
        }
        let (from, file) = (source.0.fd_of(from_layer), destination.0.fd_of(layer));
        ops.push(Op::Share { from, from_bytes, file, offset_bytes, len_bytes: u64::from(len_bytes) });
        covered += len_bytes;
        let rest = |extent: Extent, next: Option<Extent>| match extent {
            Extent::File { layer, offset_bytes, len_bytes: len } if len > len_bytes => Some(Extent::File {
                layer,
                offset_bytes: offset_bytes + u64::from(len_bytes),
                len_bytes: len - len_bytes,
            }),
            _ => next,
        };
        source_now = source_now.and_then(|extent| match from_len > len_bytes {
            true => rest(extent, None),
            false => source_extents.next().copied(),
        });
        now = now.and_then(|extent| match into_len > len_bytes {
            true => rest(extent, None),
            false => extents.next().copied(),
        });
    }
    covered
}

impl Copies {
    /// The place that stands for a copy's source while that is shared. It is never a task of its own.
    pub(super) fn source_of(task: TaskId) -> TaskId {
        TaskId(task.0 + SHARES)
    }
}

impl<R: Ring> Work<'_, R> {
    /// How the next bytes of a copy go, of which `run` lie together on the source, at `offset`.
    pub(super) fn way_of(&self, mover: &Mover, leg: &Leg, slot: u32, (offset, run): (u64, u64)) -> Way {
        let shares = &mover.shares;
        let all = Way::Move(run.min(u64::from(BURST_LENGTH_MAX)) as u32);
        let (_, into) = mover.destination_at();
        let len = run.min(leg.destination_at + leg.len_bytes - into).min(u64::from(SHARE_BYTES_MAX));
        // What is written onto what its token stands for ends that token, and whether it was good until then would not
        // be known any more.
        let meets = slot == leg.destination.slot
            && (offset < into + len && into < offset + len || mover.token_meets(into, len));
        let is_congruent = offset % BLOCK_BYTES == into % BLOCK_BYTES;
        if shares.moves_next || len < SHARE_BYTES_MIN || meets || leg.goes_backward() || !is_congruent {
            return all;
        }
        let (source, destination) = (self.core.disks.of_task(slot), self.core.disks.of_task(leg.destination.slot));
        let (Some(_), Some(leaf)) = (source.chain(), destination.leaf()) else { return all };
        let ReadPlan::Extents(extents) = source.plan_read(offset, len as u32) else { return all };
        let into_file = leaf.file().fd();
        let head = BLOCK_BYTES - offset % BLOCK_BYTES;
        match extents.as_slice().first() {
            Some(Extent::File { layer, .. }) if shares.refuses(source.fd_of(*layer), into_file) => all,
            // The first bytes are moved: those after them lie at whole blocks.
            Some(Extent::File { .. }) if head < BLOCK_BYTES => Way::Move(head as u32),
            _ => match first_run(&extents) {
                Some((_, len)) if u64::from(len) >= SHARE_BYTES_MIN => Way::Share(len),
                _ => all,
            },
        }
    }

    /// The next chunk is shared: write it, as far as that is not the file system's to do.
    pub(super) fn share(&mut self, task: TaskId, source: u32, offset: u64, len: u32) {
        if let Err(sense) = self.token_is_good(task) {
            return self.end_copy(task, CopyState::Done(sense.into()));
        }
        let mover = self.session.copies.mover(task);
        mover.begin_writing(u64::from(len), How::Shared);
        mover.shares.from = Some((source, offset));
        mover.shares.has_failed = false;
        let (slot, at) = mover.destination_at();
        self.turn_to(task, slot, at, len);
        self.task(task).durable = self.core.disks.at(slot).is_some_and(|slot| slot.settings.writes_through);
        self.write_out(task);
    }

    /// The task's window is shared, not written.
    pub(crate) fn is_sharing(&mut self, task: TaskId) -> bool {
        self.is_mover(task) && self.session.copies.mover(task).shares.is_sharing()
    }

    /// The window has its place: have the file system share what lies there.
    pub(crate) fn share_extents(&mut self, task: TaskId, slot: u32, extents: &ExtentList) {
        let done = u64::from(self.task(task).through);
        let Some((source, from)) = self.session.copies.mover(task).shares.from else { return };
        let from = from + done;
        let mut ops = Vec::new();
        let entry = self.core.disks.at(source).filter(|entry| entry.is_open() && !entry.disk.has_orphans());
        let covered = entry.map_or(0, |entry| match entry.disk.plan_read(from, extents.covered_bytes()) {
            ReadPlan::Extents(there) => {
                pieces((&entry.disk, &there), (self.core.disks.of_task(slot), extents), &mut ops)
            }
            _ => 0,
        });
        if covered == 0 {
            return self.move_instead(task);
        }
        let place = Copies::source_of(task);
        let entry = self.task(place);
        (entry.disk, entry.kind) = (Some(source), Kind::Copy);
        (entry.offset_bytes, entry.done, entry.window) = (from, 0, covered);
        self.begin_plan(place);
        self.begin_plan(task);
        if self.task(task).commits {
            self.begin_change(task);
        }
        self.set_step(task, Step::Writing);
        self.task(task).planned = covered;
        for op in ops {
            self.submit_write(task, op);
        }
        if self.task(task).operations == 0 {
            self.writes_ended(task);
        }
    }

    /// Blocks are shared, or not.
    pub(crate) fn share_completed(&mut self, task: TaskId, (from, into): (Fd, Fd), result: Result<u32, Errno>) {
        let Err(errno) = result else { return };
        let shares = &mut self.session.copies.mover(task).shares;
        shares.has_failed = true;
        // Somebody else has every thread: that passes.
        if errno != Errno(libc::EAGAIN) {
            shares.refuse(from, into);
        }
    }

    /// The file system has answered. True: it could not, and the copy goes on in another way.
    pub(crate) fn sharing_ended(&mut self, task: TaskId) -> bool {
        if !self.is_sharing(task) {
            return false;
        }
        self.end_source(task);
        let has_failed = self.session.copies.mover(task).shares.has_failed;
        if has_failed {
            self.move_instead(task);
        }
        has_failed
    }

    /// Nothing more is shared from the source for now.
    pub(super) fn end_source(&mut self, task: TaskId) {
        let place = Copies::source_of(task);
        self.end_work(place);
        self.task(place).disk = None;
    }

    /// What of the window is not through is to be read and written.
    fn move_instead(&mut self, task: TaskId) {
        self.end_work(task);
        let entry = self.task(task);
        let through = u64::from(std::mem::take(&mut entry.through));
        entry.error = None;
        let mover = self.session.copies.mover(task);
        mover.shares.moves_next = true;
        if through > 0 {
            mover.shorten_to(through);
            return self.copy_step_ended(task, Outcome::GOOD);
        }
        mover.forget_chunk();
        self.wait_for_turn(task);
    }

    /// A chunk has been moved or shared.
    pub(super) fn chunk_has_been(&mut self, task: TaskId, how: How, bytes: u64) {
        let shares = &mut self.session.copies.mover(task).shares;
        match how {
            How::Moved => {
                shares.moves_next = false;
                self.core.stats.copied_bytes.add(bytes);
            }
            How::Shared => {
                shares.from = None;
                self.core.stats.copied_bytes.add(bytes);
                self.core.stats.copy_shared_bytes.add(bytes);
            }
            How::Zeroed => {}
        }
    }

    /// What a copy that does not wait for its file system holds of its source.
    pub(crate) fn leave_source(&mut self, task: TaskId) -> Option<LeftSource> {
        if !self.is_mover(task) {
            return None;
        }
        let place = Copies::source_of(task);
        self.end_change(place);
        let entry = &mut self.session.tasks[usize::from(place.0)];
        let disk = entry.disk.take()?;
        let left = LeftSource {
            disk,
            plan: entry.plan.take(),
            at_work: std::mem::take(&mut entry.at_work),
            impedes: std::mem::take(&mut entry.impedes),
        };
        self.session.at_work -= u32::from(left.at_work);
        if let Some(slot) = self.core.disks.at_mut(disk) {
            slot.tasks += 1;
        }
        Some(left)
    }
}

/// A source from which the kernel may still share, though nobody waits for it.
pub(crate) struct LeftSource {
    pub(crate) disk: u32,
    pub(crate) plan: Option<bool>,
    pub(crate) at_work: bool,
    pub(crate) impedes: u8,
}
