//! From the initiator to the medium.
//!
//! A command is worked off in windows of at most 1 MiB: a window has one buffer, R2Ts ask for what did not come
//! unsolicited, and when all of it has come it is written; then the next window opens. An answer of GOOD leaves only
//! after the last write has completed and every allocation it needed is in the file (the promise of GOOD), and with FUA
//! after all of that is durable.

use super::peer::HomeRequest;
use super::session::{Answer, Immediate, Kind, Resume, Step, Work};
use crate::blocks::{Extent, ExtentList};
use crate::iscsi::transfer::TaskId;
use crate::limits::BURST_LENGTH_MAX;
use crate::medium::{Backing, WritePlan};
use crate::ring::{Errno, Op, Ring};
use crate::scsi::{MediumError, Outcome, Sense, SenseCode};

impl<R: Ring> Work<'_, R> {
    /// A buffer for data that comes without being asked for, so that nothing can fail between a command's execution and
    /// its data. Not needed where the data is used up at once. False: no memory.
    pub(crate) fn keep_unsolicited_data(&mut self, task: TaskId, len: u32) -> bool {
        let command = self.session.connection.command(task);
        let expected = command.expected_write_length();
        let more_may_come = len < expected && !self.session.connection.parameters().initial_r2t;
        if len == 0 && !more_may_come || len >= expected && self.takes_at_once(task) {
            return true;
        }
        let window = expected.clamp(len, BURST_LENGTH_MAX);
        let Some(buf) = self.core.io.arena.take(window as usize) else { return false };
        self.task(task).buf = Some(buf);
        true
    }

    /// Whether the disk takes bytes straight from the stream.
    fn takes_at_once(&self, task: TaskId) -> bool {
        let lun = crate::scsi::lun::decode(self.session.connection.command(task).lun_raw);
        let Some(index) = lun.and_then(|lun| self.session.lun_index(lun)) else { return true };
        let backing = self.core.disks.of_task(self.session.luns[index].disk).backing();
        matches!(backing, Backing::Null | Backing::Memory(_))
    }

    /// WRITE, WRITE AND VERIFY, and VERIFY with data. `data` is the immediate data.
    pub(crate) fn start_write(&mut self, task: TaskId, medium_bytes: u64, data_out: u64, data: Immediate<'_>) {
        let slot = self.task(task).disk.expect("a write has a unit");
        let block_bytes = u64::from(self.core.disks.of_task(slot).block_length());
        let expected = u64::from(self.session.connection.command(task).expected_write_length());
        if expected < data_out && !expected.is_multiple_of(block_bytes) {
            // Part of a block cannot be written, and GOOD would say that the initiator's bytes were. The residual still
            // says what the CDB asks for beyond (RFC 7143 section 11.4.5.1).
            let sense = Sense::new(SenseCode::INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT);
            self.task(task).answer = Answer::Response(sense.into());
            return self.send_when_drained(task);
        }
        let data_total = data_out.min(expected);
        let entry = self.task(task);
        let single = entry.kind.repeats_data();
        let total = if single && data_total > 0 { medium_bytes } else { medium_bytes.min(data_total) };
        entry.total = u32::try_from(total).expect("the transfer length is limited by the unit");
        entry.data_total = data_total as u32;
        if entry.total == 0 {
            return self.complete(task, Outcome::GOOD);
        }
        self.receive_data(task, data_total as u32, data);
    }

    /// Have the command's data come, the first of which is here.
    pub(crate) fn receive_data(&mut self, task: TaskId, data_total: u32, data: Immediate<'_>) {
        let kind = self.task(task).kind;
        self.session.connection.limit_data_out(task, data_total);
        self.task(task).received = data.len().min(data_total);
        if let Immediate::Bytes(data) = data
            && !data.is_empty()
        {
            let data = &data[..data.len().min(data_total as usize)];
            if data.len() as u32 == data_total && kind == Kind::Write && self.write_at_once(task, data) {
                return;
            }
            let buf = self
                .task(task)
                .buf
                .take()
                .or_else(|| self.core.io.arena.take(BURST_LENGTH_MAX.min(data_total) as usize));
            let Some(mut buf) = buf else { return self.complete(task, MediumError::Busy.outcome()) };
            buf[..data.len()].copy_from_slice(data);
            self.task(task).buf = Some(buf);
        }
        self.open_window(task);
    }

    /// All data is in the stream and the disk is memory: no buffer is needed.
    fn write_at_once(&mut self, task: TaskId, data: &[u8]) -> bool {
        let entry = self.task(task);
        let (offset_bytes, slot, total) = (entry.offset_bytes, entry.disk.expect("a write has a unit"), entry.total);
        if !self.put_at_once(slot, offset_bytes, data) {
            return false;
        }
        self.task(task).done = total;
        self.complete(task, Outcome::GOOD);
        true
    }

    /// Open the next window: a buffer, then R2Ts for what has not come. `received` bytes of it are in the buffer
    /// already.
    pub(crate) fn open_window(&mut self, task: TaskId) {
        let entry = self.task(task);
        // A single block is one window of Data-Out, which then serves for all windows of the medium.
        entry.window = if entry.kind.repeats_data() {
            entry.data_total
        } else {
            (entry.total - entry.done).min(entry.window_bytes_max())
        };
        if let Some(buf) = entry.buf.as_ref().filter(|_| entry.received > 0) {
            // What came with the command is in its buffer, which may be smaller than a window can be.
            entry.window = entry.window.min(buf.len() as u32);
        }
        let window = entry.window as usize;
        if entry.buf.as_ref().is_none_or(|buf| buf.len() < window) {
            assert_eq!(entry.received, 0, "a window with immediate data has its buffer");
            match self.core.io.arena.take(window) {
                Some(buf) => self.task(task).buf = Some(buf),
                None => return self.starve(task, Resume::OpenWindow),
            }
        }
        self.set_step(task, Step::Receiving);
        self.receive_more(task);
    }

    /// Data of the window has come, or the window has just opened.
    fn receive_more(&mut self, task: TaskId) {
        let entry = self.task(task);
        if entry.received == entry.window {
            return self.window_received(task);
        }
        if !self.send_r2ts(task) {
            self.queue_ready(task);
        }
    }

    /// Send the R2Ts that may go now, within the window. False when there is no room.
    pub(crate) fn send_r2ts(&mut self, task: TaskId) -> bool {
        let entry = self.task(task);
        let window_end = match entry.kind {
            kind if kind.repeats_data() => entry.data_total,
            _ => entry.done + entry.window,
        };
        while let Some(span) = self.session.connection.want_r2t(task) {
            if span.offset >= window_end {
                break;
            }
            let len = span.len.min(window_end - span.offset);
            if !self.session.connection.send_r2t(task, len, &mut self.tx.bare()) {
                return false;
            }
            self.session.solicited_bytes += u64::from(len);
            self.task(task).solicited_bytes += len;
        }
        true
    }

    /// Data was lost on the way: ask for it again.
    pub(crate) fn data_lost(&mut self, task: TaskId) {
        if self.task(task).step == Step::Receiving && !self.send_r2ts(task) {
            self.queue_ready(task);
        }
    }

    /// Where in the window's buffer a Data-Out goes.
    pub(crate) fn place_in_window(&mut self, task: TaskId, buffer_offset: u32) -> usize {
        let entry = self.task(task);
        let start = if entry.kind.repeats_data() { 0 } else { entry.done };
        buffer_offset.saturating_sub(start) as usize
    }

    /// Data of a PDU that is wholly in the stream.
    pub(crate) fn data_out(&mut self, task: TaskId, buffer_offset: u32, data: &[u8]) {
        let at = self.place_in_window(task, buffer_offset);
        if let Some(buf) = self.task(task).buf.as_mut() {
            // The engine has checked the PDU against what was asked for, and what was asked for lies in the window;
            // what a command does not want of its unsolicited data falls off here.
            let len = data.len().min(buf.len().saturating_sub(at));
            buf[at..at + len].copy_from_slice(&data[..len]);
        }
        self.data_arrived(task, buffer_offset, data.len() as u32);
    }

    /// Data is in its place.
    pub(crate) fn data_arrived(&mut self, task: TaskId, buffer_offset: u32, len: u32) {
        let at = self.place_in_window(task, buffer_offset) as u32;
        let entry = self.task(task);
        let solicited_bytes = len.min(entry.solicited_bytes);
        entry.solicited_bytes -= solicited_bytes;
        self.session.solicited_bytes -= u64::from(solicited_bytes);
        let entry = self.task(task);
        match entry.step {
            Step::Receiving => {
                entry.received = (entry.received + len.min(entry.window.saturating_sub(at))).min(entry.window);
                self.receive_more(task);
            }
            // Unsolicited data of a command that waits for its turn.
            Step::Held | Step::Dormant => entry.received = entry.received.max(at + len),
            _ => {}
        }
    }

    /// All of the window has come.
    fn window_received(&mut self, task: TaskId) {
        let entry = self.task(task);
        let mut buf = entry.buf.take().expect("an open window has its buffer");
        if buf.len() > entry.window as usize {
            buf.truncate(entry.window as usize);
        }
        entry.data = Some(buf.freeze());
        match entry.kind {
            Kind::Verify(_) => self.read_in(task),
            Kind::Unmap => self.list_received(task),
            Kind::WriteSame { .. } => self.same_received(task),
            Kind::CompareAndWrite => self.compare_data_received(task),
            Kind::OrWrite => self.exclude(task),
            Kind::WriteAtomic => self.atomic_data_received(task),
            Kind::List(_) => self.list_is_here(task),
            Kind::CopyCommand { .. } => self.copy_list_received(task),
            kind if kind.is_agreed_on() => self.agreement_list_received(task),
            _ => self.write_out(task),
        }
    }

    /// Write the window.
    pub(crate) fn write_out(&mut self, task: TaskId) {
        if self.is_held(task, Resume::WriteOut) {
            return;
        }
        if self.is_stuck(task) {
            return self.fail(task, MediumError::Timeout);
        }
        let entry = self.task(task);
        let offset_bytes = entry.offset_bytes + u64::from(entry.done + entry.through);
        let len_bytes = entry.window - entry.through;
        entry.error = None;
        entry.planned = len_bytes;
        let slot = entry.disk.expect("a write has a unit");
        self.core.revoke_tokens(slot, offset_bytes, u64::from(len_bytes));
        let by_log = self.task(task).is_through_log();
        let disk = self.core.disks.of_task(slot);
        match disk.plan_write(offset_bytes, len_bytes) {
            WritePlan::Ready { .. } | WritePlan::Prepare | WritePlan::Fault(_) if by_log => self.write_by_log(task),
            WritePlan::Discard => self.part_written(task),
            WritePlan::Memory => {
                let entry = &self.session.tasks[usize::from(task.0)];
                let part = entry.through as usize..(entry.through + len_bytes) as usize;
                if let (Backing::Memory(memory), Some(data)) = (disk.backing(), entry.data.as_ref()) {
                    // The last window of a WRITE SAME is shorter than its buffer.
                    memory.write(offset_bytes, &data[part]);
                }
                self.part_written(task);
            }
            WritePlan::Ready { commit: true, .. } if self.is_change_held(task, Resume::WriteOut) => {}
            WritePlan::Ready { extents, commit, epoch } => {
                let entry = self.task(task);
                entry.commits = commit;
                entry.epoch = epoch;
                self.write_extents(task, slot, &extents);
            }
            WritePlan::Prepare => {
                let request = HomeRequest::Prepare { offset_bytes, len_bytes: u64::from(len_bytes) };
                self.ask(task, request, Resume::WriteOut);
            }
            WritePlan::Fault(fault) => self.ask(task, HomeRequest::Load(fault), Resume::WriteOut),
            WritePlan::Poisoned => self.fail(task, MediumError::Poisoned),
            WritePlan::PastEnd => self.past_end(task),
        }
    }

    /// Ask the home shard for what a plan needs, and then go on as said.
    pub(crate) fn ask(&mut self, task: TaskId, request: HomeRequest, resume: Resume) {
        if request.changes_map() && self.is_change_held(task, resume) {
            return;
        }
        let slot = self.task(task).disk.expect("a plan is of a unit");
        let name = self.tagged(task);
        if !self.core.ask_home(slot, self.key, name, request) {
            return self.starve(task, resume);
        }
        self.set_step(task, Step::Asking(resume));
        self.begin_work(task);
        if request.changes_map() {
            self.begin_change(task);
        }
        self.begin_operation(task);
    }

    fn write_extents(&mut self, task: TaskId, slot: u32, extents: &ExtentList) {
        if self.is_sharing(task) {
            return self.share_extents(task, slot, extents);
        }
        self.begin_plan(task);
        if self.task(task).commits {
            self.begin_change(task);
        }
        self.set_step(task, Step::Writing);
        let entry = self.task(task);
        entry.planned = extents.covered_bytes();
        let (durable, mut at) = (entry.durable, entry.through as usize);
        for extent in extents.as_slice() {
            let len_bytes = extent.len_bytes() as usize;
            let Extent::File { layer, offset_bytes, .. } = *extent else {
                unreachable!("what is written has a place in a file")
            };
            let file = self.core.disks.of_task(slot).fd_of(layer);
            let data = self.task(task).data.as_ref().expect("a window that is written has its data");
            let from = data.slice(at..at + len_bytes);
            self.submit_write(task, Op::Write { file, offset_bytes, from, durable });
            at += len_bytes;
        }
        if self.task(task).operations == 0 {
            self.writes_ended(task);
        }
    }

    pub(crate) fn submit_write(&mut self, task: TaskId, op: Op) {
        let mark = self.mark(task);
        match self.core.io.submit(mark, op) {
            Ok(()) => self.begin_operation(task),
            Err(_) => {
                self.task(task).error.get_or_insert(MediumError::Busy);
            }
        }
    }

    /// One extent of the window has been written, or part of it.
    pub(crate) fn write_completed(&mut self, task: TaskId, op: Op, result: Result<u32, Errno>) {
        let Op::Write { file, offset_bytes, from, durable } = op else { return };
        match result {
            Ok(written) if written as usize == from.len() => {}
            Ok(written) if written > 0 => {
                let from = from.slice(written as usize..from.len());
                let offset_bytes = offset_bytes + u64::from(written);
                self.submit_write(task, Op::Write { file, offset_bytes, from, durable });
            }
            Err(Errno(libc::ENOSPC | libc::EDQUOT | libc::EFBIG)) => {
                self.task(task).error = Some(MediumError::OutOfSpace);
            }
            Ok(_) | Err(_) => {
                // What the file holds now is not known, and an initiator may believe later writes to be in order after
                // it.
                let lba = self.window_lba(task);
                let slot = self.task(task).disk.expect("a write has a unit");
                self.core.disks.of_task(slot).poison();
                self.task(task).error = Some(MediumError::WriteFailed { lba });
            }
        }
    }

    /// Every extent has been written, or has failed.
    pub(crate) fn writes_ended(&mut self, task: TaskId) {
        if self.sharing_ended(task) {
            return;
        }
        let entry = self.task(task);
        match entry.error {
            Some(MediumError::Busy) => self.starve(task, Resume::WriteOut),
            Some(error) => self.fail(task, error),
            None if entry.commits => self.ask_commit(task),
            None => self.is_visible(task),
        }
    }

    /// What has been written is not visible yet: have the home shard see to that. The plan is not carried out before it
    /// has.
    pub(crate) fn ask_commit(&mut self, task: TaskId) {
        if self.task(task).is_through_log() {
            return self.ask_atomic(task);
        }
        let entry = self.task(task);
        let request = HomeRequest::Commit {
            offset_bytes: entry.offset_bytes + u64::from(entry.done + entry.through),
            len_bytes: u64::from(entry.planned),
            epoch: entry.epoch,
        };
        let slot = entry.disk.expect("a write has a unit");
        let name = self.tagged(task);
        if !self.core.ask_home(slot, self.key, name, request) {
            return self.starve(task, Resume::Commit);
        }
        self.set_step(task, Step::Committing);
        self.begin_operation(task);
    }

    /// What has been written can be read. With FUA it must also be durable.
    pub(crate) fn is_visible(&mut self, task: TaskId) {
        self.end_work(task);
        let slot = self.task(task).disk.expect("a write has a unit");
        if self.task(task).durable
            && (self.core.disks.of_task(slot).needs_flush_after_durable_write() || self.is_sharing(task))
        {
            return self.ask_flush(task);
        }
        self.part_written(task);
    }

    /// What was planned of the window is on the medium.
    pub(crate) fn part_written(&mut self, task: TaskId) {
        self.end_work(task);
        let entry = self.task(task);
        let (from, len, slot) = (entry.offset_bytes + u64::from(entry.done + entry.through), entry.planned, entry.disk);
        self.core.revoke_tokens(slot.expect("a write has a unit"), from, u64::from(len));
        let entry = self.task(task);
        entry.through += entry.planned;
        if entry.through < entry.window {
            return self.write_out(task);
        }
        entry.through = 0;
        match entry.kind {
            Kind::WriteAndVerify { .. } => self.read_in(task),
            Kind::Unmap | Kind::Zero => self.zeros_written(task),
            Kind::CompareAndWrite | Kind::OrWrite => self.written_exclusively(task),
            Kind::WriteAtomic => self.atomic_written(task),
            _ => self.window_done(task),
        }
    }
}
