//! WRITE ATOMIC (SBC-4 clauses 4.29 and 5.48): all of its blocks are written or none, whatever fails and whoever looks.
//!
//! *Whoever looks.* The command has its blocks to itself ([`super::exclusive`]) from when all its data is here until
//! they are written: no READ, on any shard, has a window in which the blocks change. A READ that moves more than one
//! window may have had some of the blocks before them and would get the rest after; it ends with ABORTED COMMAND and is
//! sent again ([`Work::is_torn`]). Data-In that was lost is not read again once the disk has been written atomically.
//! What an initiator hears is therefore the old content or the new one.
//!
//! *Whatever fails.* A VHDX leaf takes the data through its log (`vhdx::engine::atomic`): the shard puts it where the
//! home shard finds it, and the home shard's engine answers when it is in place, durable, and no longer in the log.
//! Where that fails half-way, the blocks cannot be read until the disk is opened anew. Where a parent shows through,
//! what is read there now is first written into the leaf, which changes nothing for any reader; where there is no space
//! yet, blocks of zeros are prepared. Disks in memory have nothing that fails by parts. Raw and VHD files have no log,
//! and do not offer the command.

use super::exclusive::ByteRange;
use super::peer::HomeRequest;
use super::session::{Answer, Immediate, Kind, Resume, Session, Step, Work};
use crate::iscsi::transfer::TaskId;
use crate::limits::BURST_LENGTH_MAX;
use crate::observe::Operation;
use crate::ring::Ring;
use crate::scsi::{MediumError, Outcome, Sense, SenseCode};
use crate::units::Lba;

impl<R: Ring> Work<'_, R> {
    /// WRITE ATOMIC. Its data is one window.
    pub(crate) fn start_write_atomic(&mut self, task: TaskId, lba: Lba, blocks: u32, fua: bool, data: Immediate<'_>) {
        let block_bytes = u64::from(self.block_bytes(task));
        let medium_bytes = u64::from(blocks) * block_bytes;
        let expected = u64::from(self.session.connection.command(task).expected_write_length());
        let entry = self.task(task);
        entry.offset_bytes = lba.0 * block_bytes;
        entry.transfer_length = medium_bytes;
        entry.kind = Kind::WriteAtomic;
        entry.operation = Operation::Write;
        entry.durable |= fua;
        if expected < medium_bytes {
            // Not all of it will come, and some of it is not what was asked for.
            let sense = Sense::new(SenseCode::INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT);
            return self.complete(task, sense.into());
        }
        assert!(medium_bytes <= u64::from(BURST_LENGTH_MAX), "the unit says how much");
        if !self.widen_buffer(task, medium_bytes as usize, data.len() as usize) {
            return self.complete(task, MediumError::Busy.outcome());
        }
        self.start_write(task, medium_bytes, medium_bytes, data);
    }

    /// All of the data is here: have the blocks to oneself. Where a parent may show through, what is read there gets
    /// its buffer beforehand, so that nobody who waits for the blocks can keep memory from who has them.
    pub(crate) fn atomic_data_received(&mut self, task: TaskId) {
        let entry = self.task(task);
        assert_eq!(entry.window, entry.total, "the data of an atomic write is one window");
        if self.has_parent(task) {
            return self.exclude(task);
        }
        self.task(task).through = 0;
        self.ask_range(task);
    }

    fn has_parent(&mut self, task: TaskId) -> bool {
        let slot = self.task(task).disk.expect("a write has a unit");
        self.core.disks.of_task(slot).map().is_some_and(|map| map.shape().has_parent)
    }

    /// Write the window through the leaf's log.
    pub(crate) fn write_by_log(&mut self, task: TaskId) {
        if self.refuse_other_form(task) {
            return;
        }
        let entry = &self.session.tasks[usize::from(task.0)];
        let disk = self.core.disks.of_task(entry.disk.expect("a write has a unit"));
        let number = entry.range.expect("an atomic write has its blocks to itself");
        let data = entry.data.as_ref().expect("a window that is written has its data");
        if !disk.payloads().put(number, data) {
            return self.fail(task, MediumError::Busy);
        }
        self.ask_atomic(task);
    }

    /// Have the home shard's engine write what has been put where it finds it. Until then the command is not at work:
    /// the disk may have got another form while it was held, or while what is there now was being written.
    pub(crate) fn ask_atomic(&mut self, task: TaskId) {
        if self.is_held(task, Resume::Commit) || self.is_change_held(task, Resume::Commit) {
            return;
        }
        if self.refuse_other_form(task) {
            return;
        }
        let entry = self.task(task);
        let (offset_bytes, len_bytes) = (entry.offset_bytes, u64::from(entry.window));
        entry.planned = entry.window;
        let number = entry.range.expect("an atomic write has its blocks to itself");
        let slot = entry.disk.expect("a write has a unit");
        let name = self.tagged(task);
        let request = HomeRequest::WriteAtomic { offset_bytes, len_bytes, number };
        if !self.core.ask_home(slot, self.key, name, request) {
            return self.starve(task, Resume::Commit);
        }
        self.set_step(task, Step::Committing);
        self.begin_work(task);
        self.begin_change(task);
        self.begin_operation(task);
    }

    /// End the command if the form that the disk has now is too small for it, or does not write atomically.
    fn refuse_other_form(&mut self, task: TaskId) -> bool {
        let entry = &self.session.tasks[usize::from(task.0)];
        let (len_bytes, end_bytes) = (u64::from(entry.window), entry.offset_bytes + u64::from(entry.window));
        let disk = self.core.disks.of_task(entry.disk.expect("a write has a unit"));
        if end_bytes > disk.size_bytes() {
            self.past_end(task);
            return true;
        }
        if disk.atomic_write_bytes() < len_bytes {
            let sense = Sense::new(SenseCode::INVALID_COMMAND_OPERATION_CODE);
            self.complete(task, Outcome::check_condition(sense));
            return true;
        }
        false
    }

    /// Some of the range is not in the leaf's file: have it there, with what it reads as now.
    pub(crate) fn make_present(&mut self, task: TaskId) {
        self.end_work(task);
        if self.has_parent(task) {
            let entry = self.task(task);
            entry.fills = true;
            entry.through = 0;
            return self.read_in(task);
        }
        let entry = self.task(task);
        let request = HomeRequest::Prepare { offset_bytes: entry.offset_bytes, len_bytes: u64::from(entry.window) };
        self.ask(task, request, Resume::Commit);
    }

    /// The window is written: the command's own data, or what was there before.
    pub(crate) fn atomic_written(&mut self, task: TaskId) {
        if std::mem::take(&mut self.task(task).fills) {
            return self.ask_atomic(task);
        }
        self.written_exclusively(task);
    }

    /// Whether some blocks of the next window were written atomically since others of the same write were read. Of data
    /// that is read to be sent again it is only known whether anything was.
    #[inline]
    pub(crate) fn is_torn(&mut self, task: TaskId) -> bool {
        let entry = self.task(task);
        if matches!(entry.answer, Answer::Resend) {
            let (slot, atomics) = (entry.disk, entry.atomics);
            return slot.and_then(|slot| self.core.disks.at(slot)).is_some_and(|entry| entry.atomics != atomics);
        }
        let next = entry.offset_bytes + u64::from(entry.done);
        entry.torn.is_some_and(|range| range.from < next && next < range.to)
    }
}

impl super::session::Task {
    /// What it writes next is the data of WRITE ATOMIC.
    pub(crate) fn is_through_log(&self) -> bool {
        self.kind == Kind::WriteAtomic && !self.fills
    }
}

impl Session {
    /// A range is about to be written atomically: mark the READs that have begun and may have read some of it.
    pub(super) fn mark_torn(&mut self, disk: u32, range: ByteRange) {
        for entry in self.tasks.iter_mut().filter(|entry| entry.disk == Some(disk) && entry.kind == Kind::Read) {
            let is_open = entry.at_work || entry.read.is_some();
            let begun = u64::from(entry.done) + if is_open { u64::from(entry.window) } else { 0 };
            let all = ByteRange { from: entry.offset_bytes, to: entry.offset_bytes + u64::from(entry.total) };
            if begun > 0 && all.meets(range) {
                // Of several ranges the hull: it is only aborted once too often.
                let torn = entry.torn.unwrap_or(range);
                entry.torn = Some(ByteRange { from: torn.from.min(range.from), to: torn.to.max(range.to) });
            }
        }
    }
}
