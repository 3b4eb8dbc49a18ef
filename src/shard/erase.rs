//! FORMAT UNIT and SANITIZE: a unit as a whole is emptied or overwritten, piece by piece, by its disk's home shard.
//!
//! First all shards know that the unit does not serve ([`Condition`]), then what was at work on it ends: the work holds
//! all of the disk as its range ([`super::exclusive`]). A piece is one request to the engine, or one window of writes;
//! between two of them others have their turn, a pause is kept, and a detach ends the work. So do writes whose commands
//! have ended without them ([`super::overdue`]): they may still land where all is erased. That it has not ended well
//! outlasts the server.

use super::core::{Core, HOME_REQUESTS_MAX, Mark};
use super::exclusive::ByteRange;
use super::peer::{Asker, HomeRequest, LinkKey, PeerMessage};
use super::run::Shard;
use super::settings::{Setting, Unfinished};
use crate::blocks::{Done, ExtentList};
use crate::limits::BURST_LENGTH_MAX;
use crate::medium::{Backing, WritePlan};
use crate::mem::Slice;
use crate::ring::{AllocateMode, Completion, Errno, Op, Ring};
use crate::scsi::{Condition, MediumError};
use crate::units::DiskId;

/// Blocks of a disk that are released by one request.
const RELEASED_BLOCKS: u64 = 128;

/// Bytes of memory, or of a raw file, that are emptied at once.
const EMPTIED_BYTES: u64 = 64 << 20;

/// All shards are told of the progress when it has grown by so many 65,536ths.
const PROGRESS_STEP: u16 = 512;

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EraseOrder {
    /// It is SANITIZE; whether its failure may be left at that.
    pub(crate) sanitize: Option<bool>,
    /// What every block is overwritten with; without it the blocks are emptied.
    pub(crate) overwrite: Option<Box<[Pass]>>,
    /// The answer does not wait for the end.
    pub(crate) immed: bool,
}

/// One pass of overwriting: the content of a block.
pub(crate) type Pass = Box<[u8]>;

/// Where the work is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// All shards are being told that the unit does not serve.
    Announcing,
    /// What is at work on the disk comes to its end.
    Excluding,
    /// A piece can begin.
    Ready,
    /// A piece is at work; then so many bytes are done.
    Busy { bytes: u32 },
    /// What was written is being made visible; then so many bytes are done.
    Committing { bytes: u32 },
    /// The pass is being made durable.
    Flushing,
    /// All shards are being told how it ended.
    Concluding,
}

/// Work on one disk.
pub(crate) struct Erasure {
    slot: u32,
    order: EraseOrder,
    asker: Asker,
    stage: Stage,
    range: Option<u8>,
    pass: usize,
    /// Bytes of the pass that are done.
    at: u64,
    /// A window of the present pass's pattern.
    fill: Option<Slice>,
    /// Zeros must be written: the file cannot be emptied otherwise.
    writes_zeros: bool,
    operations: u32,
    commit: Option<u32>,
    /// It is counted as at work on the disk's files; and the plan whose writes run.
    at_work: bool,
    plan: Option<bool>,
    told: u16,
    failed: Option<MediumError>,
    /// It goes on in the next turn.
    is_due: bool,
}

impl LinkKey {
    /// The work on the disk of this slot asks.
    fn eraser(slot: u32) -> Self {
        Self { index: u32::MAX - 1, generation: slot }
    }

    /// The slot of the disk whose work asked.
    pub(crate) fn erased_slot(self) -> Option<u32> {
        (self.index == u32::MAX - 1).then_some(self.generation)
    }
}

impl Erasure {
    fn passes(&self) -> u64 {
        self.order.overwrite.as_ref().map_or(1, |passes| passes.len() as u64)
    }

    fn condition(&self, size_bytes: u64) -> Condition {
        let done = u128::from(self.pass as u64 * size_bytes + self.at) * 65_535;
        let progress = (done / u128::from(self.passes() * size_bytes).max(1)) as u16;
        match self.order.sanitize {
            None => Condition::Formatting { progress },
            Some(_) => Condition::Sanitizing { progress },
        }
    }

    /// What it is as long as it has not ended well.
    fn unfinished(&self) -> Unfinished {
        self.order.sanitize.map_or(Unfinished::Format, |may_exit| Unfinished::Sanitize { may_exit })
    }

    /// How the unit is in the end.
    fn conclusion(&self) -> Condition {
        match (self.failed, self.order.sanitize) {
            (None, _) => Condition::Ready,
            (Some(_), None) => Condition::FormatFailed,
            (Some(_), Some(may_exit)) => Condition::SanitizeFailed { may_exit },
        }
    }
}

impl<R: Ring> Core<R> {
    /// Ask a disk's home shard to empty or overwrite the unit. False: too much is underway.
    pub(crate) fn ask_erase(&mut self, slot: u32, link: LinkKey, task: u16, order: EraseOrder) -> bool {
        let entry = self.disks.at(slot).expect("a disk stays attached while tasks use it");
        let (disk, home) = (entry.disk.id(), entry.disk.home());
        if self.home_requests >= HOME_REQUESTS_MAX || !self.mail.has_room() {
            return false;
        }
        let asker = Asker { shard: self.id, link, task };
        let sent = self.mail.post(home, PeerMessage::Erase { disk, asker, order: Box::new(order) }).is_ok();
        self.home_requests += usize::from(sent);
        sent
    }

    fn erasure(&mut self, slot: u32) -> Option<&mut Erasure> {
        self.erasures.iter_mut().find(|erasure| erasure.slot == slot)
    }

    /// Work on a unit as a whole goes on in the next turn.
    pub(super) fn erases_soon(&self) -> bool {
        self.erasures.iter().any(|erasure| erasure.is_due)
    }

    fn eraser(&self, slot: u32) -> Asker {
        Asker { shard: self.id, link: LinkKey::eraser(slot), task: 0 }
    }
}

impl<R: Ring> Shard<R> {
    /// A unit is to be emptied or overwritten whose home this shard is.
    pub(super) fn erase_wanted(&mut self, disk: DiskId, asker: Asker, order: EraseOrder) {
        let refuse = |shard: &mut Self, error| {
            shard.core.mail.post_owed(asker.shard, PeerMessage::HomeDone { asker, result: Err(error) });
        };
        let Some(slot) = self.core.disks.find(disk) else { return refuse(self, MediumError::Removed) };
        if self.core.erasure(slot).is_some() {
            return refuse(self, MediumError::Busy);
        }
        if let Some(entry) = self.core.disks.at_mut(slot) {
            // It stays attached until the work has ended.
            entry.tasks += 1;
        }
        let erasure = Erasure {
            slot,
            order,
            asker,
            stage: Stage::Announcing,
            range: None,
            pass: 0,
            at: 0,
            fill: None,
            writes_zeros: false,
            operations: 0,
            commit: None,
            at_work: false,
            plan: None,
            told: 0,
            failed: None,
            is_due: false,
        };
        let (condition, unfinished) = (erasure.condition(1), erasure.unfinished());
        self.core.erasures.push(erasure);
        self.tell_condition(slot, condition, Some(unfinished), true);
    }

    fn tell_condition(&mut self, slot: u32, condition: Condition, unfinished: Option<Unfinished>, waits: bool) {
        let Some(disk) = self.core.disks.at(slot).map(|entry| entry.disk.id()) else { return };
        let mut asker = self.core.eraser(slot);
        if waits {
            self.core.home_requests += 1;
        } else {
            asker.link = LinkKey::UNASKED;
        }
        self.setting_wanted(disk, asker, Setting::Condition { condition, unfinished });
    }

    /// What the work on a disk has asked for is done, or is not.
    pub(super) fn erasure_heard(&mut self, slot: u32, result: Result<Done, MediumError>) {
        let Some(erasure) = self.core.erasure(slot) else { return };
        let error = result.err();
        match erasure.stage {
            Stage::Announcing => match error {
                Some(error) => {
                    erasure.failed = Some(error);
                    return self.end_erasure(slot);
                }
                None => {
                    if erasure.order.immed {
                        let asker = erasure.asker;
                        let result = Ok(Done::Ok);
                        self.core.mail.post_owed(asker.shard, PeerMessage::HomeDone { asker, result });
                    }
                    return self.exclude_all(slot);
                }
            },
            Stage::Busy { bytes } if error.is_none() && result == Ok(Done::Ok) => {
                erasure.at += u64::from(bytes);
                erasure.stage = Stage::Ready;
            }
            Stage::Committing { bytes } => {
                if error.is_none() && result == Ok(Done::Ok) {
                    erasure.at += u64::from(bytes);
                }
                erasure.stage = Stage::Ready;
            }
            Stage::Flushing if result == Ok(Done::Ok) => {
                erasure.pass += 1;
                erasure.at = 0;
                erasure.fill = None;
                erasure.stage = Stage::Ready;
            }
            Stage::Flushing | Stage::Busy { .. } => erasure.stage = Stage::Ready,
            Stage::Concluding => return self.concluded(slot, error),
            Stage::Excluding | Stage::Ready => {}
        }
        self.end_piece(slot);
        if let (Some(error), Some(erasure)) = (error, self.core.erasure(slot)) {
            // A queue that is full for the moment is no failure.
            if error != MediumError::Busy {
                erasure.failed = Some(error);
            }
        }
        self.erase_on(slot);
    }

    /// Wait until nobody is at work on the disk, and keep it so.
    fn exclude_all(&mut self, slot: u32) {
        let asker = self.core.eraser(slot);
        let Some(disk) = self.core.disks.at(slot).map(|entry| entry.disk.id()) else { return };
        if let Some(erasure) = self.core.erasure(slot) {
            erasure.stage = Stage::Excluding;
        }
        self.core.home_requests += 1;
        self.range_wanted(disk, asker, ByteRange { from: 0, to: u64::MAX }, false);
    }

    /// The work has the disk to itself.
    pub(super) fn erasure_got_range(&mut self, slot: u32, number: u8) {
        self.revoke_all_tokens(slot);
        if let Some(erasure) = self.core.erasure(slot) {
            erasure.range = Some(number);
            erasure.stage = Stage::Ready;
        }
        self.erase_on(slot);
    }

    /// Nothing of the disk stays what it was.
    fn revoke_all_tokens(&self, slot: u32) {
        if let Some(entry) = self.core.disks.at(slot) {
            entry.disk.tokens().revoke_all();
        }
    }

    /// Begin the next piece, if one can begin now.
    pub(super) fn erase_on(&mut self, slot: u32) {
        let Some(entry) = self.core.disks.at(slot) else { return };
        let (is_paused, is_leaving) = (entry.is_paused(), entry.detaching.is_some());
        // The range does not keep those away that have begun before it was held.
        let has_orphans = entry.disk.has_orphans();
        let size_bytes = entry.disk.size_bytes();
        let Some(erasure) = self.core.erasure(slot).filter(|erasure| erasure.stage == Stage::Ready) else { return };
        if is_leaving {
            erasure.failed = Some(MediumError::Removed);
        } else if has_orphans {
            erasure.failed.get_or_insert(MediumError::Timeout);
        }
        if erasure.failed.is_some() || erasure.pass as u64 == erasure.passes() {
            return self.conclude_erasure(slot);
        }
        if is_paused {
            return;
        }
        let condition = erasure.condition(size_bytes);
        if let Condition::Formatting { progress } | Condition::Sanitizing { progress } = condition
            && progress >= erasure.told.saturating_add(PROGRESS_STEP)
        {
            erasure.told = progress;
            let unfinished = erasure.unfinished();
            self.tell_condition(slot, condition, Some(unfinished), false);
        }
        let Some(erasure) = self.core.erasure(slot) else { return };
        if erasure.at >= size_bytes {
            erasure.stage = Stage::Flushing;
            return self.ask_for_erasure(slot, HomeRequest::Flush);
        }
        match erasure.order.overwrite.is_some() || erasure.writes_zeros {
            true => self.overwrite_piece(slot),
            false => self.empty_piece(slot),
        }
    }

    /// Have the home part of the disk do something.
    fn ask_for_erasure(&mut self, slot: u32, request: HomeRequest) {
        let asker = self.core.eraser(slot);
        self.begin_piece(slot);
        let Some(entry) = self.core.disks.at(slot) else { return };
        self.core.home_requests += 1;
        let (disk, swaps) = (entry.disk.id(), entry.swaps);
        if entry.home.is_none() {
            // Memory: there is nothing to be done.
            return self.core.mail.post_owed(asker.shard, PeerMessage::HomeDone { asker, result: Ok(Done::Ok) });
        }
        self.home_request(disk, swaps, asker, request);
    }

    /// A piece is at work on the disk's files.
    fn begin_piece(&mut self, slot: u32) {
        let Core { disks, erasures, .. } = &mut self.core;
        let erasure = erasures.iter_mut().find(|erasure| erasure.slot == slot);
        if let (Some(entry), Some(erasure)) = (disks.at_mut(slot), erasure)
            && !std::mem::replace(&mut erasure.at_work, true)
        {
            entry.at_work.begin_piece();
        }
    }

    /// Come back in the next turn: the shard's connections have theirs meanwhile, and what is full may not be then.
    fn erase_later(&mut self, slot: u32, bytes: u64) {
        if let Some(erasure) = self.core.erasure(slot) {
            erasure.at += bytes;
            erasure.is_due = true;
        }
    }

    /// Go on with work that has waited for this turn.
    pub(super) fn erase_due(&mut self) {
        for index in (0..self.core.erasures.len()).rev() {
            // One that ends takes itself out of the list, and the last one comes to its place.
            let Some(erasure) = self.core.erasures.get_mut(index) else { continue };
            if std::mem::take(&mut erasure.is_due) {
                let slot = erasure.slot;
                self.erase_on(slot);
            }
        }
    }

    /// Empty the next piece of the disk.
    fn empty_piece(&mut self, slot: u32) {
        let Core { disks, erasures, io, .. } = &mut self.core;
        let (Some(entry), Some(erasure)) = (disks.at_mut(slot), erasures.iter_mut().find(|e| e.slot == slot)) else {
            return;
        };
        let disk = &entry.disk;
        let (offset_bytes, left) = (erasure.at, disk.size_bytes() - erasure.at);
        match disk.backing() {
            Backing::Null => return self.erase_later(slot, left),
            Backing::Memory(memory) => {
                let len_bytes = left.min(EMPTIED_BYTES);
                memory.punch(offset_bytes, len_bytes);
                return self.erase_later(slot, len_bytes);
            }
            Backing::Chain { .. } if !disk.unit(false).thin_provisioned() => erasure.writes_zeros = true,
            Backing::Chain { .. } => match disk.payload_block_bytes() {
                Some(block_bytes) => {
                    // At most 4 GiB less a block, so that the length fits.
                    let most = (RELEASED_BLOCKS * block_bytes).min((u64::from(u32::MAX) / block_bytes) * block_bytes);
                    let len_bytes = left.min(most);
                    erasure.stage = Stage::Busy { bytes: len_bytes as u32 };
                    return self.ask_for_erasure(slot, HomeRequest::Unmap { offset_bytes, len_bytes });
                }
                None => {
                    let len_bytes = left.min(EMPTIED_BYTES);
                    let (file, mode) = (disk.fd_of(0), AllocateMode::PunchHole);
                    let op = Op::Allocate { file, mode, offset_bytes, len_bytes };
                    if io.submit(Mark::Erase(slot), op).is_ok() {
                        erasure.stage = Stage::Busy { bytes: len_bytes as u32 };
                        erasure.operations = 1;
                        erasure.plan = Some(entry.at_work.begin_plan());
                        return self.begin_piece(slot);
                    }
                }
            },
        }
        self.erase_later(slot, 0);
    }

    /// Write the next window.
    fn overwrite_piece(&mut self, slot: u32) {
        if !self.prepare_fill(slot) {
            return self.erase_later(slot, 0);
        }
        let Core { disks, erasures, .. } = &mut self.core;
        let (Some(entry), Some(erasure)) = (disks.at(slot), erasures.iter_mut().find(|e| e.slot == slot)) else {
            return;
        };
        let offset_bytes = erasure.at;
        let len_bytes = (entry.disk.size_bytes() - offset_bytes).min(u64::from(BURST_LENGTH_MAX)) as u32;
        let fill = erasure.fill.as_ref().expect("prepared above").slice(0..len_bytes as usize);
        erasure.stage = Stage::Busy { bytes: 0 };
        match entry.disk.plan_write(offset_bytes, len_bytes) {
            WritePlan::Discard => {
                erasure.stage = Stage::Ready;
                self.erase_later(slot, u64::from(len_bytes));
            }
            WritePlan::Memory => {
                if let Backing::Memory(memory) = entry.disk.backing() {
                    memory.write(offset_bytes, &fill);
                }
                erasure.stage = Stage::Ready;
                self.erase_later(slot, u64::from(len_bytes));
            }
            WritePlan::Ready { extents, commit, epoch } => {
                erasure.commit = commit.then_some(epoch);
                self.write_piece(slot, &extents, &fill);
            }
            WritePlan::Prepare => {
                let len_bytes = u64::from(len_bytes);
                self.ask_for_erasure(slot, HomeRequest::Prepare { offset_bytes, len_bytes });
            }
            WritePlan::Fault(fault) => self.ask_for_erasure(slot, HomeRequest::Load(fault)),
            WritePlan::Poisoned => self.fail_erasure(slot, MediumError::Poisoned),
            WritePlan::PastEnd => self.fail_erasure(slot, MediumError::Corrupt),
        }
    }

    fn fail_erasure(&mut self, slot: u32, error: MediumError) {
        if let Some(erasure) = self.core.erasure(slot) {
            erasure.failed = Some(error);
            erasure.stage = Stage::Ready;
        }
        self.erase_on(slot);
    }

    /// Have a window of the pass's pattern. False: there is no memory.
    fn prepare_fill(&mut self, slot: u32) -> bool {
        let Core { erasures, io, .. } = &mut self.core;
        let Some(erasure) = erasures.iter_mut().find(|erasure| erasure.slot == slot) else { return false };
        if erasure.fill.is_some() {
            return true;
        }
        let pattern = erasure.order.overwrite.as_ref().map(|passes| &passes[erasure.pass]);
        erasure.fill = match pattern {
            None => Some(io.arena.zeros(BURST_LENGTH_MAX as usize)),
            Some(block) => io.arena.take(BURST_LENGTH_MAX as usize).map(|mut buf| {
                buf.chunks_mut(block.len()).for_each(|place| place.copy_from_slice(&block[..place.len()]));
                buf.freeze()
            }),
        };
        erasure.fill.is_some()
    }

    fn write_piece(&mut self, slot: u32, extents: &ExtentList, fill: &Slice) {
        let Core { disks, erasures, io, .. } = &mut self.core;
        let (Some(entry), Some(erasure)) = (disks.at_mut(slot), erasures.iter_mut().find(|e| e.slot == slot)) else {
            return;
        };
        erasure.plan = Some(entry.at_work.begin_plan());
        erasure.stage = Stage::Busy { bytes: extents.covered_bytes() };
        let mut at = 0;
        for extent in extents.as_slice() {
            let crate::blocks::Extent::File { layer, offset_bytes, .. } = *extent else {
                unreachable!("what is written has a place in a file")
            };
            let from = fill.slice(at..at + extent.len_bytes() as usize);
            at += from.len();
            let op = Op::Write { file: entry.disk.fd_of(layer), offset_bytes, from, durable: false };
            match io.submit(Mark::Erase(slot), op) {
                Ok(()) => erasure.operations += 1,
                // The piece is written once more.
                Err(_) => erasure.stage = Stage::Busy { bytes: 0 },
            }
        }
        let is_over = erasure.operations == 0;
        self.begin_piece(slot);
        if is_over {
            self.piece_written(slot);
        }
    }

    /// A file operation of the work has completed.
    pub(super) fn erase_completed(&mut self, slot: u32, completion: &Completion) {
        let Some(erasure) = self.core.erasure(slot) else { unreachable!("the work outlives its operations") };
        erasure.operations -= 1;
        match (completion.result, &completion.op) {
            (Ok(written), Some(Op::Write { from, .. })) if (written as usize) < from.len() => {
                erasure.stage = Stage::Busy { bytes: 0 };
            }
            (Ok(_), _) => {}
            (Err(Errno(libc::EOPNOTSUPP | libc::ENOSYS)), Some(Op::Allocate { .. })) => {
                erasure.writes_zeros = true;
                erasure.stage = Stage::Busy { bytes: 0 };
            }
            (Err(Errno(libc::ENOSPC | libc::EDQUOT | libc::EFBIG)), _) => {
                erasure.failed = Some(MediumError::OutOfSpace);
            }
            (Err(_), _) => erasure.failed = Some(MediumError::FlushFailed),
        }
        if erasure.operations == 0 {
            self.piece_written(slot);
        }
    }

    /// All operations of a piece have completed.
    fn piece_written(&mut self, slot: u32) {
        let Some(erasure) = self.core.erasure(slot) else { return };
        let Stage::Busy { bytes } = erasure.stage else { return };
        if let (Some(epoch), None, 1..) = (erasure.commit.take(), erasure.failed, bytes) {
            erasure.stage = Stage::Committing { bytes };
            let offset_bytes = erasure.at;
            let request = HomeRequest::Commit { offset_bytes, len_bytes: u64::from(bytes), epoch };
            return self.ask_for_erasure(slot, request);
        }
        erasure.at += u64::from(bytes);
        erasure.stage = Stage::Ready;
        self.end_piece(slot);
        self.erase_on(slot);
    }

    /// The plan of a piece has been carried out.
    fn end_piece(&mut self, slot: u32) {
        let Core { disks, erasures, .. } = &mut self.core;
        let (Some(entry), Some(erasure)) = (disks.at_mut(slot), erasures.iter_mut().find(|e| e.slot == slot)) else {
            return;
        };
        let (plan, at_work) = (erasure.plan.take(), std::mem::take(&mut erasure.at_work));
        let disk = entry.disk.id();
        if let Some(home) = entry.end_orphan(plan, at_work) {
            self.core.barrier_passed(disk, home);
        }
    }

    /// Tell all shards how it has ended.
    fn conclude_erasure(&mut self, slot: u32) {
        self.revoke_all_tokens(slot);
        let Some(erasure) = self.core.erasure(slot) else { return };
        erasure.stage = Stage::Concluding;
        let is_emptied = erasure.failed.is_none() && erasure.order.overwrite.is_none() && !erasure.writes_zeros;
        if let Some(entry) = self.core.disks.at(slot).filter(|_| is_emptied) {
            entry.disk.was_emptied();
        }
        let Some(erasure) = self.core.erasure(slot) else { return };
        let condition = erasure.conclusion();
        let unfinished = erasure.failed.map(|_| erasure.unfinished());
        let range = erasure.range.take();
        let disk = self.core.disks.at(slot).map(|entry| entry.disk.id());
        if let (Some(disk), Some(number)) = (disk, range) {
            let me = self.core.id;
            self.core.mail.post_owed(me, PeerMessage::ReleaseRange { disk, number });
        }
        self.tell_condition(slot, condition, unfinished, true);
    }

    /// All shards know how it has ended, or could not be told.
    fn concluded(&mut self, slot: u32, error: Option<MediumError>) {
        let Some(erasure) = self.core.erasure(slot) else { return };
        match error {
            None | Some(MediumError::Removed) => return self.end_erasure(slot),
            Some(MediumError::Busy) => {}
            // That all is well cannot be kept: then it is not.
            Some(error) if erasure.failed.is_none() => erasure.failed = Some(error),
            Some(_) => return self.end_erasure(slot),
        }
        erasure.stage = Stage::Ready;
        self.erase_later(slot, 0);
    }

    /// The work is over.
    fn end_erasure(&mut self, slot: u32) {
        let index = self.core.erasures.iter().position(|erasure| erasure.slot == slot);
        let Some(erasure) = index.map(|index| self.core.erasures.swap_remove(index)) else { return };
        if let Some(entry) = self.core.disks.at_mut(slot) {
            entry.tasks -= 1;
        }
        let has_answered = erasure.order.immed && erasure.stage != Stage::Announcing;
        if !has_answered {
            let (asker, result) = (erasure.asker, erasure.failed.map_or(Ok(Done::Ok), Err));
            self.core.mail.post_owed(asker.shard, PeerMessage::HomeDone { asker, result });
        }
    }
}
