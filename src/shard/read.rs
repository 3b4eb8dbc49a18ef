//! From the medium to the initiator, and comparing.
//!
//! A command is worked off in windows of at most 1 MiB: a window is read, sent (or compared), and then the next one is.

use super::peer::HomeRequest;
use super::session::{Answer, Kind, Resume, Step, Task, Work};
use crate::blocks::{Extent, ExtentList};
use crate::iscsi::transfer::TaskId;
use crate::iscsi::transmit::Ending;
use crate::limits::BURST_LENGTH_MAX;
use crate::medium::{Backing, Doing, ReadPlan};
use crate::mem::{Buf, Slice};
use crate::ring::{Completion, Errno, Fd, Op, Ring, Window};
use crate::scsi::{ByteCheck, MediumError, Outcome, Sense, SenseCode};
use crate::units::Lba;

impl<R: Ring> Work<'_, R> {
    /// READ, and VERIFY without data. Only as much is read as the initiator expects, in whole blocks.
    pub(crate) fn start_read(&mut self, task: TaskId, medium_bytes: u64, fua: bool) {
        let slot = self.task(task).disk.expect("a read has a unit");
        let block_bytes = self.core.disks.of_task(slot).block_length();
        self.task(task).atomics = self.core.disks.at(slot).map_or(0, |entry| entry.atomics);
        let wanted = match self.task(task).kind {
            Kind::Read => {
                let expected = self.session.connection.command(task).expected_read_length;
                medium_bytes.min(u64::from(expected.div_ceil(block_bytes)) * u64::from(block_bytes))
            }
            _ => medium_bytes,
        };
        let entry = self.task(task);
        entry.total = u32::try_from(wanted).expect("the transfer length is limited by the unit");
        entry.answer = if entry.kind == Kind::Read { Answer::DataIn } else { Answer::None };
        if fua && self.flushes(slot) {
            return self.ask_flush(task);
        }
        self.read_in(task);
    }

    /// Read the next window, or what of it can be planned at once. A window that is compared with data is as long as
    /// that data.
    pub(crate) fn read_in(&mut self, task: TaskId) {
        if self.is_torn(task) {
            return self.fail(task, MediumError::Aborted);
        }
        let entry = self.task(task);
        if !entry.compares_data() {
            entry.window = (entry.total - entry.done).min(BURST_LENGTH_MAX);
            entry.through = 0;
        }
        let offset_bytes = entry.offset_bytes + u64::from(entry.done + entry.through);
        let len_bytes = entry.window - entry.through;
        if len_bytes == 0 {
            return self.window_read(task);
        }
        if self.is_held(task, Resume::ReadIn) {
            return;
        }
        if self.is_stuck(task) {
            return self.fail(task, MediumError::Timeout);
        }
        let slot = self.task(task).disk.expect("a read has a unit");
        let disk = self.core.disks.of_task(slot);
        match disk.plan_read(offset_bytes, len_bytes) {
            ReadPlan::Zeros { len_bytes } => {
                let zeros = self.core.io.arena.zeros(len_bytes as usize);
                self.part_read(task, zeros);
            }
            ReadPlan::Memory => {
                let Some(mut buf) = self.buffer_to_read(task, len_bytes) else {
                    return self.starve(task, Resume::ReadIn);
                };
                buf.truncate(len_bytes as usize);
                if let Backing::Memory(memory) = self.core.disks.of_task(slot).backing() {
                    memory.read(offset_bytes, &mut buf);
                }
                self.part_read(task, buf.freeze());
            }
            ReadPlan::Extents(extents) => self.read_extents(task, slot, &extents),
            ReadPlan::Fault(fault) => self.ask(task, HomeRequest::Load(fault), Resume::ReadIn),
            ReadPlan::Torn => self.fail(task, MediumError::Poisoned),
            ReadPlan::PastEnd => self.past_end(task),
        }
    }

    /// The disk has become smaller since the command was checked.
    pub(crate) fn past_end(&mut self, task: TaskId) {
        self.complete(task, Self::past_end_outcome());
    }

    pub(crate) fn past_end_outcome() -> Outcome {
        Outcome::check_condition(Sense::new(SenseCode::LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE))
    }

    /// Read extents of files, all into one buffer: each operation owns its part of it, and the last one that ends makes
    /// it whole again.
    fn read_extents(&mut self, task: TaskId, slot: u32, extents: &ExtentList) {
        let covered = extents.covered_bytes();
        let Some(mut rest) = self.buffer_to_read(task, covered) else {
            return self.starve(task, Resume::ReadIn);
        };
        let entry = self.task(task);
        entry.clear_read();
        entry.error = None;
        entry.planned = covered;
        self.begin_plan(task);
        self.set_step(task, Step::Reading);
        for extent in extents.as_slice() {
            let tail = rest.split_off(extent.len_bytes() as usize);
            let mut part = std::mem::replace(&mut rest, tail);
            match *extent {
                Extent::File { layer, offset_bytes, .. } => {
                    let file = self.core.disks.of_task(slot).fd_of(layer);
                    self.submit_read(task, Op::Read { file, offset_bytes, into: Window::whole(part) });
                }
                Extent::Zeros { .. } => part.fill(0),
            }
        }
        if self.task(task).operations == 0 {
            self.reads_ended(task);
        }
    }

    fn submit_read(&mut self, task: TaskId, op: Op) {
        let mark = self.mark(task);
        match self.core.io.submit(mark, op) {
            Ok(()) => self.begin_operation(task),
            Err(_) => self.task(task).error = Some(MediumError::Busy),
        }
    }

    /// Write down for the operator how a change to a file has failed.
    fn note_failure(&mut self, task: TaskId, completion: &Completion) {
        let Err(errno) = completion.result else { return };
        let doing = match completion.op {
            Some(Op::Write { .. }) => Doing::WritingData,
            Some(Op::Allocate { .. }) => Doing::ReleasingSpace,
            _ => return,
        };
        if let Some(slot) = self.task(task).disk {
            self.core.disks.of_task(slot).trouble().note(doing, errno.0);
        }
    }

    /// File I/O of a task has completed.
    pub(crate) fn file_completed(&mut self, task: TaskId, completion: Completion) {
        self.end_operation(task);
        self.note_failure(task, &completion);
        match completion.op {
            Some(Op::Read { file, offset_bytes, into }) => {
                self.read_completed(task, (file, offset_bytes), into, completion.result);
            }
            Some(op @ Op::Write { .. }) => self.write_completed(task, op, completion.result),
            Some(Op::Share { from, file, .. }) => self.share_completed(task, (from, file), completion.result),
            Some(Op::Allocate { .. }) if !self.release_if_aborted(task) => {
                return self.hole_made(task, completion.result);
            }
            Some(Op::Allocate { .. }) => return,
            _ => unreachable!("tasks only read, write, share and punch files"),
        }
        if self.task(task).operations > 0 || self.release_if_aborted(task) {
            return;
        }
        match self.task(task).step {
            Step::Writing => self.writes_ended(task),
            _ => self.reads_ended(task),
        }
    }

    fn read_completed(&mut self, task: TaskId, place: (Fd, u64), into: Window, result: Result<u32, Errno>) {
        let Window { mut buf, at, len } = into;
        let (file, offset_bytes) = place;
        match result {
            Ok(read) if read == len => self.keep_last_part(task, buf),
            Ok(0) if self.ends_with_zeros(task) => {
                buf[at as usize..].fill(0);
                self.keep_last_part(task, buf);
            }
            Ok(read) if read > 0 && !self.task(task).aborted => {
                let into = Window { buf, at: at + read, len: len - read };
                let op = Op::Read { file, offset_bytes: offset_bytes + u64::from(read), into };
                self.submit_read(task, op);
            }
            Ok(_) | Err(_) => {
                let lba = self.window_lba(task);
                self.task(task).error = Some(MediumError::ReadFailed { lba });
            }
        }
    }

    /// A part of the buffer has been filled. The last one stands for all of it.
    fn keep_last_part(&mut self, task: TaskId, part: Buf) {
        let entry = self.task(task);
        if entry.operations > 0 || entry.error.is_some() || entry.aborted {
            return;
        }
        let mut whole = part.into_whole_slot().expect("every other part has come back");
        whole.truncate(entry.planned as usize);
        entry.set_read(whole.freeze());
    }

    /// Whether bytes past a file's end are zeros: where a last block was cut short when it was made.
    fn ends_with_zeros(&mut self, task: TaskId) -> bool {
        let slot = self.task(task).disk.expect("a read has a unit");
        self.core.disks.of_task(slot).ends_with_zeros()
    }

    /// The first block of the task's window that is not through.
    pub(crate) fn window_lba(&mut self, task: TaskId) -> Lba {
        let entry = self.task(task);
        let (offset_bytes, slot) = (entry.offset_bytes + u64::from(entry.done + entry.through), entry.disk);
        let block_bytes = slot.map_or(512, |slot| self.core.disks.of_task(slot).block_length());
        Lba(offset_bytes / u64::from(block_bytes))
    }

    fn reads_ended(&mut self, task: TaskId) {
        self.end_work(task);
        let entry = self.task(task);
        match (entry.error, entry.read.take()) {
            // A place in the ring was wanting, not a disk: try again.
            (Some(MediumError::Busy), _) => self.starve(task, Resume::ReadIn),
            (Some(error), _) => self.fail(task, error),
            (None, Some(bytes)) => self.part_read(task, bytes),
            (None, None) => {
                let len = entry.planned as usize;
                let zeros = self.core.io.arena.zeros(len);
                self.part_read(task, zeros);
            }
        }
    }

    /// These bytes of the window are here.
    fn part_read(&mut self, task: TaskId, bytes: Slice) {
        let entry = self.task(task);
        let len = bytes.len() as u32;
        if entry.compares_data() {
            if matches!(entry.kind, Kind::OrWrite | Kind::WriteAtomic) {
                self.merge(task, &bytes);
            }
            let entry = self.task(task);
            let difference = entry.first_difference(&bytes);
            entry.through += len;
            self.keep_buffer(task, bytes);
            let entry = self.task(task);
            return match difference {
                Some(offset) => self.fail(task, MediumError::Miscompare { offset }),
                None if entry.through < entry.window => self.read_in(task),
                None => self.window_read(task),
            };
        }
        // What was planned at once is the window.
        entry.window = len;
        if entry.kind == Kind::Verify(ByteCheck::Single)
            && let Some(offset) = entry.first_difference(&bytes)
        {
            return self.fail(task, MediumError::Miscompare { offset });
        }
        entry.set_read(bytes);
        self.window_read(task);
    }

    /// The window's blocks are here.
    fn window_read(&mut self, task: TaskId) {
        match self.task(task).kind {
            Kind::Read => self.send(task),
            Kind::Copy => self.copy_read(task),
            Kind::CompareAndWrite | Kind::OrWrite | Kind::WriteAtomic => self.write_exclusively(task),
            _ => self.window_done(task),
        }
    }

    /// The window is through: the next one, or the end.
    pub(crate) fn window_done(&mut self, task: TaskId) {
        let entry = self.task(task);
        entry.clear_read();
        entry.done += entry.window;
        entry.window = 0;
        entry.through = 0;
        entry.received = 0;
        if let Answer::Response(outcome) = entry.answer {
            // The initiator has sent wrong data meanwhile; no more will come, and this is what it is told.
            return self.complete(task, outcome);
        }
        if entry.done == entry.total {
            return self.complete(task, Outcome::GOOD);
        }
        match entry.kind {
            Kind::Verify(ByteCheck::None | ByteCheck::Single) => self.read_in(task),
            Kind::WriteSame { .. } => self.write_same_window(task),
            _ => {
                entry.data = None;
                self.open_window(task);
            }
        }
    }

    /// Send what was read. False when there was no room for all of it.
    pub(crate) fn emit_data_in(&mut self, task: TaskId) -> bool {
        let session = &mut *self.session;
        let entry = &mut session.tasks[usize::from(task.0)];
        let is_last_window = entry.done + entry.window == entry.total;
        let ending = is_last_window.then(|| Ending::good(entry.transfer_length));
        let result = match &entry.read {
            Some(payload) => {
                let sent = entry.sent as usize;
                let tx = &mut self.tx.with_rest(payload, sent);
                session.connection.send_data_in(task, payload.len() - sent, ending, tx)
            }
            None => session.connection.send_data_in(task, 0, ending, &mut self.tx.bare()),
        };
        entry.sent += result.bytes as u32;
        if !result.done {
            return false;
        }
        entry.done += entry.window;
        if ending.is_some() {
            self.finish(task, true);
            return true;
        }
        entry.clear_read();
        entry.window = 0;
        // The next window is read; it is sent when it is there, in its turn.
        self.set_step(task, Step::Reading);
        self.read_in(task);
        true
    }
}

impl Task {
    /// The window is compared (or merged) with data of its own length.
    fn compares_data(&self) -> bool {
        let exclusive = matches!(self.kind, Kind::CompareAndWrite | Kind::OrWrite | Kind::WriteAtomic);
        exclusive || matches!(self.kind, Kind::Verify(ByteCheck::DataOut) | Kind::WriteAndVerify { .. })
    }

    /// Where bytes of the window, read from `through` on, differ from the initiator's data, counted from the start of
    /// that data.
    fn first_difference(&self, bytes: &[u8]) -> Option<u64> {
        if matches!(self.kind, Kind::WriteAndVerify { compare: false } | Kind::OrWrite | Kind::WriteAtomic) {
            return None;
        }
        let data = self.data.as_ref()?;
        let single = self.kind == Kind::Verify(ByteCheck::Single);
        let (first, step) = if single { (0, data.len()) } else { (self.through as usize, bytes.len().max(1)) };
        for chunk in bytes.chunks(step) {
            let expected = &data[first..first + chunk.len()];
            if chunk != expected {
                let within = chunk.iter().zip(expected).take_while(|(a, b)| a == b).count();
                return Some(if single { within as u64 } else { u64::from(self.done) + (first + within) as u64 });
            }
        }
        None
    }
}
