//! Giving space back, and telling where there is any: UNMAP, WRITE SAME, GET LBA STATUS.
//!
//! A range that is to read as zeros is worked off in parts. Whole blocks are released by the home shard (of a raw file,
//! by a hole); what the range covers of other blocks is written with zeros where it does not read as zeros already.
//! WRITE SAME of anything else is a write in windows that all share one buffer.

use super::peer::HomeRequest;
use super::record::Asked;
use super::session::{Answer, Immediate, Kind, Resume, Step, Work};
use crate::blocks::Done;
use crate::iscsi::transfer::TaskId;
use crate::limits::BURST_LENGTH_MAX;
use crate::medium::Backing;
use crate::ring::{AllocateMode, Errno, Op, Ring};
use crate::scsi::{LbaStatusReply, MediumError, Outcome, Provisioning, ReportType, unmap};
use crate::units::Lba;

/// Blocks that one question to a chain covers, and questions that one reply to GET LBA STATUS takes: bounds the time
/// that it takes. The initiator asks again from where the reply ends.
const STATUS_BLOCKS_MAX: u64 = 256;
const STATUS_RUNS_MAX: u32 = 256;

/// A raw file's space is given back in pieces of this size at least.
const HOLE_BYTES: u64 = 4096;

/// Which part of a range comes next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Part {
    /// Whole blocks are to be released.
    #[default]
    Whole,
    /// What lies before them is to be zeros.
    Head,
    /// What lies behind them is.
    Tail,
}

/// Where a task is with ranges that are to read as zeros.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Provision {
    /// Which range of UNMAP's list.
    range: u16,
    part: Part,
    /// Of the present part, what is left, in bytes of the disk.
    from: u64,
    to: u64,
    /// The range of WRITE SAME, in bytes of the disk.
    start: u64,
    end: u64,
}

/// A range, in bytes of the disk, and what of it lies in whole blocks.
struct Parts {
    start: u64,
    head_end: u64,
    tail_start: u64,
    end: u64,
}

impl Parts {
    fn of(start: u64, end: u64, granule: u64, size_bytes: u64) -> Self {
        let first_whole = start.next_multiple_of(granule).min(end);
        // The disk's last block is whole when all that there is of it is in the range.
        let last_whole = if end == size_bytes { end } else { end / granule * granule };
        if first_whole < last_whole {
            Self { start, head_end: first_whole, tail_start: last_whole, end }
        } else {
            Self { start, head_end: end, tail_start: end, end }
        }
    }
}

impl<R: Ring> Work<'_, R> {
    /// UNMAP: the list is Data-Out.
    pub(crate) fn start_unmap(&mut self, task: TaskId, list_bytes: u16, data: Immediate<'_>) {
        self.task(task).kind = Kind::Unmap;
        let expected = self.session.connection.command(task).expected_write_length();
        let bytes = u32::from(list_bytes).min(expected);
        if bytes == 0 {
            return self.complete(task, Outcome::GOOD);
        }
        self.task(task).total = bytes;
        self.task(task).data_total = bytes;
        self.receive_data(task, bytes, data);
    }

    /// The list is here.
    pub(crate) fn list_received(&mut self, task: TaskId) {
        let entry = self.task(task);
        let Some(list) = entry.data.take() else { return };
        let disk = entry.disk;
        if let Some(slot) = disk.and_then(|slot| self.core.disks.at_mut(slot))
            && slot.notes.is_some()
            && let Ok(ranges) = unmap::parse(&list, slot.disk.unit(false))
        {
            for (lba, blocks) in ranges {
                slot.note_range(Asked::Unmap, lba.0, blocks, false, self.core.now);
            }
        }
        let entry = self.task(task);
        entry.set_read(list);
        entry.window = 0;
        entry.provision = Provision::default();
        self.provision(task);
    }

    /// WRITE SAME.
    pub(crate) fn start_write_same(
        &mut self,
        task: TaskId,
        medium_bytes: u64,
        unmap: bool,
        data: Option<Immediate<'_>>,
    ) {
        let entry = self.task(task);
        entry.kind = Kind::WriteSame { unmap };
        let start = entry.offset_bytes;
        entry.provision = Provision { start, end: start + medium_bytes, ..Provision::default() };
        match data {
            Some(data) => {
                let slot = self.task(task).disk.expect("a write has a unit");
                let block_bytes = u64::from(self.core.disks.of_task(slot).block_length());
                self.start_write(task, medium_bytes, block_bytes, data);
            }
            None => {
                let block_bytes = self.block_bytes(task);
                let entry = self.task(task);
                entry.total = u32::try_from(medium_bytes).expect("the unit limits what WRITE SAME covers");
                entry.window = block_bytes;
                let zeros = self.core.io.arena.zeros(block_bytes as usize);
                self.task(task).data = Some(zeros);
                self.same_received(task);
            }
        }
    }

    /// A copy has found nothing but zeros: this range of the destination is to read as zeros.
    pub(crate) fn start_zeroing(&mut self, task: TaskId, start: u64, end: u64) {
        let entry = self.task(task);
        entry.kind = Kind::Zero;
        entry.window = 0;
        entry.provision = Provision { start, end, ..Provision::default() };
        self.provision(task);
    }

    /// The block that is to be written over and over is here.
    pub(crate) fn same_received(&mut self, task: TaskId) {
        let entry = self.task(task);
        let is_zeros = entry.data.as_ref().is_some_and(|block| block.iter().all(|byte| *byte == 0));
        let slot = entry.disk.expect("a write has a unit");
        if entry.kind == (Kind::WriteSame { unmap: true }) && is_zeros {
            let disk = self.core.disks.of_task(slot);
            if disk.unit(false).thin_provisioned() {
                self.task(task).kind = Kind::Zero;
                self.task(task).window = 0;
                return self.provision(task);
            }
        }
        self.fill_same(task, is_zeros);
    }

    /// Make the window's buffer out of one block, and write the first window.
    fn fill_same(&mut self, task: TaskId, is_zeros: bool) {
        let entry = self.task(task);
        let len = entry.total.min(BURST_LENGTH_MAX) as usize;
        if is_zeros {
            let zeros = self.core.io.arena.zeros(len);
            self.task(task).data = Some(zeros);
            return self.write_same_window(task);
        }
        let Some(mut buf) = self.core.io.arena.take(len) else { return self.starve(task, Resume::FillSame) };
        buf.truncate(len);
        let entry = self.task(task);
        if let Some(block) = &entry.data {
            for place in buf.chunks_mut(block.len()) {
                place.copy_from_slice(&block[..place.len()]);
            }
        }
        entry.data = Some(buf.freeze());
        self.write_same_window(task);
    }

    /// There may be memory for the window now.
    pub(crate) fn fill_same_again(&mut self, task: TaskId) {
        self.fill_same(task, false);
    }

    /// Write the next window of WRITE SAME.
    pub(crate) fn write_same_window(&mut self, task: TaskId) {
        let entry = self.task(task);
        let len = entry.data.as_ref().map_or(0, |data| data.len() as u32);
        entry.window = (entry.total - entry.done).min(len);
        entry.through = 0;
        self.write_out(task);
    }

    pub(super) fn block_bytes(&mut self, task: TaskId) -> u32 {
        let slot = self.task(task).disk.expect("a command on blocks has a unit");
        self.core.disks.of_task(slot).block_length()
    }

    // ---- ranges that are to read as zeros ------------------------------------------------------------------------

    /// Go on with the present range, or with the next one.
    pub(crate) fn provision(&mut self, task: TaskId) {
        loop {
            if self.is_held(task, Resume::Provision) {
                return;
            }
            if self.is_stuck(task) {
                return self.fail(task, MediumError::Timeout);
            }
            let (start, end) = match self.present_range(task) {
                Ok(Some(range)) => range,
                Ok(None) => return self.provisioned(task),
                Err(outcome) => return self.complete(task, outcome),
            };
            let slot = self.task(task).disk.expect("a range has a unit");
            let disk = self.core.disks.of_task(slot);
            let granule = disk.payload_block_bytes().unwrap_or(HOLE_BYTES);
            let parts = Parts::of(start, end, granule, disk.size_bytes());
            let entry = self.task(task);
            match entry.provision.part {
                Part::Whole if parts.head_end < parts.tail_start => return self.release(task, &parts),
                Part::Whole => self.whole_released(task, &parts),
                Part::Head | Part::Tail if entry.provision.from < entry.provision.to => {
                    if self.zero_next(task) {
                        return;
                    }
                }
                Part::Head => {
                    entry.provision.part = Part::Tail;
                    (entry.provision.from, entry.provision.to) = (parts.tail_start, parts.end);
                }
                Part::Tail => {
                    entry.provision.part = Part::Whole;
                    entry.provision.range += 1;
                }
            }
        }
    }

    /// All ranges read as zeros. That is made durable where every write is.
    fn provisioned(&mut self, task: TaskId) {
        let entry = self.task(task);
        let slot = entry.disk.expect("a range has a unit");
        if entry.durable && self.flushes(slot) {
            self.task(task).kind = Kind::Flush;
            return self.ask_flush(task);
        }
        self.complete(task, Outcome::GOOD);
    }

    /// The range that the task is at, in bytes of the disk. The disk may have become smaller since the last one.
    pub(super) fn present_range(&mut self, task: TaskId) -> Result<Option<(u64, u64)>, Outcome> {
        let entry = &self.session.tasks[usize::from(task.0)];
        let disk = self.core.disks.of_task(entry.disk.expect("a range has a unit"));
        let index = usize::from(entry.provision.range);
        if entry.kind == Kind::Zero {
            if entry.provision.end > disk.size_bytes() {
                return Err(Self::past_end_outcome());
            }
            return Ok((index == 0).then_some((entry.provision.start, entry.provision.end)));
        }
        let unit = disk.unit(false);
        let list = entry.read.as_deref().unwrap_or_default();
        let shift = unit.block_length().shift();
        let range = unmap::parse(list, unit).map_err(Outcome::check_condition)?.nth(index);
        Ok(range.map(|(Lba(lba), blocks)| (lba << shift, (lba + u64::from(blocks)) << shift)))
    }

    /// Release the whole blocks of a range.
    fn release(&mut self, task: TaskId, parts: &Parts) {
        let slot = self.task(task).disk.expect("a range has a unit");
        let disk = self.core.disks.of_task(slot);
        let (offset_bytes, len_bytes) = (parts.head_end, parts.tail_start - parts.head_end);
        self.core.revoke_tokens(slot, offset_bytes, len_bytes);
        if disk.map().is_some() {
            return self.ask(task, HomeRequest::Unmap { offset_bytes, len_bytes }, Resume::Provision);
        }
        if let Backing::Memory(memory) = disk.backing() {
            memory.punch(offset_bytes, len_bytes);
            self.whole_released(task, parts);
            return self.provision(task);
        }
        let (file, mode) = (disk.fd_of(0), AllocateMode::PunchHole);
        let op = Op::Allocate { file, mode, offset_bytes, len_bytes };
        let mark = self.mark(task);
        match self.core.io.submit(mark, op) {
            Ok(()) => {
                self.begin_plan(task);
                self.begin_operation(task);
                self.set_step(task, Step::Asking(Resume::Provision));
            }
            Err(_) => self.starve(task, Resume::Provision),
        }
    }

    /// The home shard has released whole blocks, or wants to be asked again; or it has loaded a page.
    pub(crate) fn provision_answered(&mut self, task: TaskId, done: Done) {
        self.end_work(task);
        if self.task(task).provision.part == Part::Whole && done == Done::Ok {
            self.skip_whole(task, true);
        }
        self.provision(task);
    }

    /// A hole has been made, or could not be.
    pub(crate) fn hole_made(&mut self, task: TaskId, result: Result<u32, Errno>) {
        self.end_work(task);
        match result {
            Ok(_) => self.skip_whole(task, true),
            // Zeros that are written read just the same.
            Err(Errno(libc::EOPNOTSUPP | libc::ENOSYS)) => self.skip_whole(task, false),
            Err(_) => {
                let lba = self.window_lba(task);
                let slot = self.task(task).disk.expect("a range has a unit");
                self.core.disks.of_task(slot).poison();
                return self.fail(task, MediumError::WriteFailed { lba });
            }
        }
        self.provision(task);
    }

    /// Go on with what lies around the whole blocks of the present range, or with all of it.
    fn skip_whole(&mut self, task: TaskId, released: bool) {
        let Ok(Some((start, end))) = self.present_range(task) else { return };
        let slot = self.task(task).disk.expect("a range has a unit");
        let disk = self.core.disks.of_task(slot);
        let granule = disk.payload_block_bytes().unwrap_or(HOLE_BYTES);
        let parts = match released {
            true => Parts::of(start, end, granule, disk.size_bytes()),
            false => Parts { start, head_end: end, tail_start: end, end },
        };
        self.whole_released(task, &parts);
    }

    fn whole_released(&mut self, task: TaskId, parts: &Parts) {
        if let Some(slot) = self.task(task).disk {
            self.core.revoke_tokens(slot, parts.start, parts.end - parts.start);
        }
        let provision = &mut self.task(task).provision;
        provision.part = Part::Head;
        (provision.from, provision.to) = (parts.start, parts.head_end);
    }

    /// Write zeros where the rest of the present part begins and does not read as zeros. True: wait for something.
    fn zero_next(&mut self, task: TaskId) -> bool {
        let entry = self.task(task);
        let (from, to) = (entry.provision.from, entry.provision.to);
        let slot = entry.disk.expect("a range has a unit");
        let (mapped, len_bytes) = match self.core.disks.of_task(slot).status(from, to - from) {
            Some(Ok(status)) => (status.mapped, status.len_bytes),
            Some(Err(fault)) => {
                self.ask(task, HomeRequest::Load(fault), Resume::Provision);
                return true;
            }
            None => (true, to - from),
        };
        if !mapped {
            self.task(task).provision.from += len_bytes;
            return false;
        }
        let len = len_bytes.min(u64::from(BURST_LENGTH_MAX)) as u32;
        let zeros = self.core.io.arena.zeros(len as usize);
        let entry = self.task(task);
        entry.offset_bytes = from;
        entry.window = len;
        entry.through = 0;
        entry.data = Some(zeros);
        self.write_out(task);
        true
    }

    /// Zeros have been written.
    pub(crate) fn zeros_written(&mut self, task: TaskId) {
        let entry = self.task(task);
        entry.provision.from += u64::from(entry.window);
        entry.window = 0;
        entry.data = None;
        self.provision(task);
    }

    // ---- where there is space --------------------------------------------------------------------------------------

    /// GET LBA STATUS.
    pub(crate) fn lba_status(&mut self, task: TaskId, lba: Lba, allocation_length: u32, report_type: ReportType) {
        let Some(mut buf) = self.core.io.arena.take(LbaStatusReply::BYTES_MAX) else {
            return self.complete(task, MediumError::Busy.outcome());
        };
        let slot = self.task(task).disk.expect("a status is of a unit");
        let disk = self.core.disks.of_task(slot);
        let shift = disk.unit(false).block_length().shift();
        let step = STATUS_BLOCKS_MAX * disk.payload_block_bytes().unwrap_or(u64::from(BURST_LENGTH_MAX));
        let mut reply = LbaStatusReply::new(disk.unit(false), lba, allocation_length, report_type);
        let mut runs = 0;
        while let Some(Lba(next)) = reply.wants().filter(|_| runs < STATUS_RUNS_MAX) {
            let offset_bytes = next << shift;
            let len_bytes = (disk.size_bytes() - offset_bytes).min(step);
            match disk.status(offset_bytes, len_bytes) {
                Some(Ok(status)) => {
                    let state = if status.mapped { Provisioning::Mapped } else { Provisioning::Deallocated };
                    reply.push(&mut buf, status.len_bytes >> shift, state);
                }
                None => reply.push(&mut buf, len_bytes >> shift, Provisioning::Mapped),
                // The initiator asks again for what is not in the reply.
                Some(Err(_)) if runs > 0 => break,
                Some(Err(fault)) => {
                    // Kept for when the page is there.
                    self.task(task).offset_bytes = lba.0;
                    self.task(task).planned = allocation_length;
                    self.task(task).window = u32::from(report_type.code());
                    return self.ask(task, HomeRequest::Load(fault), Resume::LbaStatus);
                }
            }
            runs += 1;
        }
        if reply.is_cut_short() {
            drop(buf);
            return self.lba_status(task, lba, allocation_length, ReportType::All);
        }
        let len = reply.finish(&mut buf);
        buf.truncate(len);
        let entry = self.task(task);
        entry.answer = Answer::DataIn;
        entry.transfer_length = len as u64;
        if len > 0 {
            entry.set_read(buf.freeze());
        }
        self.send_when_drained(task);
    }

    /// The page that a status needs is there.
    pub(crate) fn lba_status_again(&mut self, task: TaskId) {
        let entry = self.task(task);
        let (lba, allocation_length) = (Lba(entry.offset_bytes), entry.planned);
        let report_type = ReportType::of(std::mem::take(&mut entry.window) as u8).unwrap_or(ReportType::All);
        self.lba_status(task, lba, allocation_length, report_type);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(start: u64, end: u64, size: u64) -> (u64, u64) {
        let parts = Parts::of(start, end, 100, size);
        assert_eq!((parts.start, parts.end), (start, end));
        (parts.head_end, parts.tail_start)
    }

    #[test]
    fn whole_blocks_lie_between_head_and_tail() {
        assert_eq!(parts(100, 300, 1000), (100, 300), "nothing but whole blocks");
        assert_eq!(parts(50, 350, 1000), (100, 300));
        assert_eq!(parts(110, 190, 1000), (190, 190), "inside one block");
        assert_eq!(parts(110, 290, 1000), (290, 290), "parts of two blocks");
        assert_eq!(parts(110, 250, 250), (200, 250), "the last block is whole as far as it goes");
        assert_eq!(parts(210, 250, 250), (250, 250), "but not from its middle on");
        assert_eq!(parts(200, 250, 250), (200, 250));
    }
}
