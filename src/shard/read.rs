//! From the medium to the initiator, and comparing.
//!
//! A command is worked off in windows of at most 1 MiB: a window is read, sent (or compared), and then the next one is.

use super::core::Mark;
use super::session::{Answer, Kind, Resume, Step, Work};
use crate::iscsi::transfer::TaskId;
use crate::iscsi::transmit::Ending;
use crate::limits::BURST_LENGTH_MAX;
use crate::medium::{Backing, Extent, ExtentList, ReadPlan};
use crate::mem::Buf;
use crate::ring::{Completion, Errno, Fd, Op, Ring, Window};
use crate::scsi::{ByteCheck, MediumError, Outcome};
use crate::units::Lba;

impl<R: Ring> Work<'_, R> {
    /// READ, and VERIFY without data. Only as much is read as the initiator expects, in whole blocks.
    pub(crate) fn start_read(&mut self, task: TaskId, medium_bytes: u64, fua: bool) {
        let slot = self.task(task).disk.expect("a read has a unit");
        let block_bytes = self.core.disks.of_task(slot).block_length();
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

    /// Read the next window.
    pub(crate) fn read_in(&mut self, task: TaskId) {
        let entry = self.task(task);
        let offset_bytes = entry.offset_bytes + u64::from(entry.done);
        entry.window = (entry.total - entry.done).min(BURST_LENGTH_MAX);
        let window = entry.window;
        if window == 0 {
            return self.window_read(task);
        }
        let slot = entry.disk.expect("a read has a unit");
        let disk = self.core.disks.of_task(slot);
        match disk.plan_read(offset_bytes, window) {
            ReadPlan::Zeros => {
                let zeros = self.core.io.arena.zeros(window as usize);
                self.task(task).set_piece(zeros);
                self.window_read(task);
            }
            ReadPlan::Memory => {
                let Some(mut buf) = self.core.io.arena.take(window as usize) else {
                    return self.starve(task, Resume::ReadIn);
                };
                buf.truncate(window as usize);
                if let Backing::Memory(memory) = disk.backing() {
                    memory.read(offset_bytes, &mut buf);
                }
                self.task(task).set_piece(buf.freeze());
                self.window_read(task);
            }
            ReadPlan::File(file, extents) => self.read_extents(task, file, &extents),
        }
    }

    /// Read a window's extents from the file. All their buffers are taken before the first read is started.
    fn read_extents(&mut self, task: TaskId, file: Fd, extents: &ExtentList) {
        let mut bufs: [Option<Buf>; crate::medium::EXTENTS_MAX] = [const { None }; crate::medium::EXTENTS_MAX];
        for (place, extent) in bufs.iter_mut().zip(extents.as_slice()) {
            if let Extent::File { len_bytes, .. } = extent {
                let Some(buf) = self.core.io.arena.take(*len_bytes as usize) else {
                    return self.starve(task, Resume::ReadIn);
                };
                *place = Some(buf);
            }
        }
        self.task(task).clear_pieces();
        self.task(task).piece_count = extents.as_slice().len() as u8;
        self.task(task).error = None;
        self.set_step(task, Step::Reading);
        for (index, (buf, extent)) in bufs.into_iter().zip(extents.as_slice()).enumerate() {
            match (buf, *extent) {
                (Some(mut buf), Extent::File { offset_bytes, len_bytes }) => {
                    buf.truncate(len_bytes as usize);
                    let into = Window { buf, at: 0, len: len_bytes };
                    self.submit_read(task, index as u8, Op::Read { file, offset_bytes, into });
                }
                (_, Extent::Zeros { len_bytes } | Extent::File { len_bytes, .. }) => {
                    let zeros = self.core.io.arena.zeros(len_bytes as usize);
                    self.task(task).pieces[index] = Some(zeros);
                }
            }
        }
        if self.task(task).operations == 0 {
            self.reads_ended(task);
        }
    }

    fn submit_read(&mut self, task: TaskId, piece: u8, op: Op) {
        let mark = Mark::Task(self.key.index, task.0, piece);
        match self.core.io.submit(mark, op) {
            Ok(()) => self.begin_operation(task),
            Err(_) => self.task(task).error = Some(MediumError::Busy),
        }
    }

    /// File I/O of a task has completed.
    pub(crate) fn file_completed(&mut self, task: TaskId, piece: u8, completion: Completion) {
        self.end_operation(task);
        match completion.op {
            Some(Op::Read { file, offset_bytes, into }) => {
                self.read_completed(task, piece, (file, offset_bytes), into, completion.result);
            }
            Some(op @ Op::Write { .. }) => self.write_completed(task, piece, op, completion.result),
            _ => unreachable!("tasks only read and write files"),
        }
        if self.task(task).operations > 0 || self.release_if_aborted(task) {
            return;
        }
        match self.task(task).step {
            Step::Writing => self.writes_ended(task),
            _ => self.reads_ended(task),
        }
    }

    fn read_completed(&mut self, task: TaskId, piece: u8, place: (Fd, u64), into: Window, result: Result<u32, Errno>) {
        let Window { mut buf, at, len } = into;
        let (file, offset_bytes) = place;
        match result {
            Ok(read) if read == len => self.task(task).pieces[usize::from(piece)] = Some(buf.freeze()),
            Ok(0) if self.ends_with_zeros(task) => {
                buf[at as usize..].fill(0);
                self.task(task).pieces[usize::from(piece)] = Some(buf.freeze());
            }
            Ok(read) if read > 0 && !self.task(task).aborted => {
                let into = Window { buf, at: at + read, len: len - read };
                let op = Op::Read { file, offset_bytes: offset_bytes + u64::from(read), into };
                self.submit_read(task, piece, op);
            }
            Ok(_) | Err(_) => {
                let lba = self.window_lba(task);
                self.task(task).error = Some(MediumError::ReadFailed { lba });
            }
        }
    }

    /// Whether bytes past the file's end are zeros: in a VHDX whose last block was cut short when it was made.
    fn ends_with_zeros(&mut self, task: TaskId) -> bool {
        let slot = self.task(task).disk.expect("a read has a unit");
        matches!(self.core.disks.of_task(slot).backing(), Backing::Vhdx { .. })
    }

    /// The first block of the task's window.
    pub(crate) fn window_lba(&mut self, task: TaskId) -> Lba {
        let entry = self.task(task);
        let (offset_bytes, slot) = (entry.offset_bytes + u64::from(entry.done), entry.disk);
        let block_bytes = slot.map_or(512, |slot| self.core.disks.of_task(slot).block_length());
        Lba(offset_bytes / u64::from(block_bytes))
    }

    fn reads_ended(&mut self, task: TaskId) {
        match self.task(task).error {
            // A place in the ring was wanting, not a disk: try the window again.
            Some(MediumError::Busy) => self.starve(task, Resume::ReadIn),
            Some(error) => self.fail(task, error),
            None => self.window_read(task),
        }
    }

    /// The window's blocks are here.
    fn window_read(&mut self, task: TaskId) {
        match self.task(task).kind {
            Kind::Verify(ByteCheck::None) => self.window_done(task),
            Kind::Verify(_) | Kind::WriteAndVerify { .. } => match self.first_difference(task) {
                Some(offset) => self.fail(task, MediumError::Miscompare { offset }),
                None => self.window_done(task),
            },
            _ => self.send(task),
        }
    }

    /// Where the window's blocks differ from the initiator's data, counted from the start of that data.
    fn first_difference(&mut self, task: TaskId) -> Option<u64> {
        let entry = self.task(task);
        if entry.kind == (Kind::WriteAndVerify { compare: false }) {
            return None;
        }
        let data = entry.data.as_ref()?;
        let single = entry.kind == Kind::Verify(ByteCheck::Single);
        let mut at = 0usize;
        for piece in entry.pieces[..usize::from(entry.piece_count)].iter().flatten() {
            for chunk in piece.chunks(if single { data.len() } else { piece.len().max(1) }) {
                let expected = if single { &data[..chunk.len()] } else { &data[at..at + chunk.len()] };
                if chunk != expected {
                    let within = chunk.iter().zip(expected).take_while(|(a, b)| a == b).count();
                    return Some(if single { within as u64 } else { u64::from(entry.done) + (at + within) as u64 });
                }
                at += chunk.len();
            }
        }
        None
    }

    /// The window is through: the next one, or the end.
    pub(crate) fn window_done(&mut self, task: TaskId) {
        let entry = self.task(task);
        entry.clear_pieces();
        entry.done += entry.window;
        entry.window = 0;
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
            _ => {
                entry.data = None;
                self.open_window(task);
            }
        }
    }

    /// Send what was read. False when there was no room for all of it.
    pub(crate) fn emit_data_in(&mut self, task: TaskId) -> bool {
        loop {
            let session = &mut *self.session;
            let entry = &mut session.tasks[usize::from(task.0)];
            let (piece, sent) = entry.piece_sent;
            let is_last_piece = piece + 1 >= entry.piece_count;
            let is_last_window = entry.done + entry.window == entry.total;
            let ending = (is_last_piece && is_last_window).then(|| Ending::good(entry.transfer_length));
            let result = match &entry.pieces[usize::from(piece)] {
                Some(payload) => {
                    let rest = payload.slice(sent as usize..payload.len());
                    let len = rest.len();
                    session.connection.send_data_in(task, len, ending, &mut self.tx.with_payload(&rest))
                }
                None => session.connection.send_data_in(task, 0, ending, &mut self.tx.bare()),
            };
            entry.piece_sent.1 += result.bytes as u32;
            if !result.done {
                return false;
            }
            if ending.is_some() {
                entry.done += entry.window;
                self.finish(task, true);
                return true;
            }
            if !is_last_piece {
                entry.piece_sent = (piece + 1, 0);
                continue;
            }
            entry.clear_pieces();
            entry.done += entry.window;
            entry.window = 0;
            // The next window is read; it is sent when it is there, in its turn.
            self.set_step(task, Step::Reading);
            self.read_in(task);
            return true;
        }
    }
}
