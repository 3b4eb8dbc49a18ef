//! A SCSI command's start and its end.

use super::parameters::List;
use super::peer::{HomeRequest, LinkKey};
use super::session::{Answer, Immediate, Kind, Resume, Step, Work};
use crate::blocks::Done;
use crate::iscsi::pdu::{ScsiStatus, TaskAttribute};
use crate::iscsi::transfer::{DataError, TaskId};
use crate::iscsi::transmit::Ending;
use crate::medium::Backing;
use crate::mem::Buf;
use crate::observe::Operation;
use crate::ring::Ring;
use crate::scsi::sense::SenseKey;
use crate::scsi::{
    self, Action, ByteCheck, CommandRequest, LogicalUnit, MediumError, Outcome, ParameterList, SanitizeMethod, Sense,
    SenseCode, SenseFormat, TargetView,
};

impl<R: Ring> Work<'_, R> {
    /// Execute a command whose turn has come. `data` is its immediate data, still in the stream. False: there is no
    /// memory for that data, nothing has been done, call again later.
    pub(crate) fn start_command(&mut self, task: TaskId, data: Immediate<'_>) -> bool {
        let command = self.session.connection.command(task);
        let (lun, attribute) = (scsi::lun::decode(command.lun_raw), command.attribute);
        let lun_index = lun.and_then(|lun| self.session.lun_index(lun));
        if self.session.may_begin(lun, lun_index, attribute) {
            self.begin_command(task, lun_index, data)
        } else {
            self.lay_dormant(task, data)
        }
    }

    /// The same for a command that waits for no other; `lun_index` is its unit's.
    pub(crate) fn begin_command(&mut self, task: TaskId, lun_index: Option<usize>, data: Immediate<'_>) -> bool {
        if self.session.scratch.is_none() {
            self.session.scratch = self.core.io.arena.take(ParameterList::BYTES_MIN);
            if self.session.scratch.is_none() {
                return false;
            }
        }
        if self.task(task).buf.is_none() && !self.keep_unsolicited_data(task, data.len()) {
            return false;
        }
        self.core.commands_in_turn += 1;
        self.session.stats.commands.increment();
        let at_once = self.may_answer_at_once(task, lun_index, data);
        if !at_once && !self.enter_task_set(task, lun_index) {
            return true;
        }
        let action = self.execute(task, lun_index);
        if !at_once {
            self.note(lun_index, action);
        }
        if at_once && (self.answer_at_once(task, lun_index, action, data) || !self.enter_task_set(task, lun_index)) {
            return true;
        }
        if !self.start_agreement(task, action, data) {
            self.carry_out(task, action, data);
        }
        true
    }

    /// Note a command for who records its disk's.
    fn note(&mut self, lun_index: Option<usize>, action: Action) {
        let (now, disk) = (self.core.now, lun_index.map(|index| self.session.luns[index].disk));
        if let Some(slot) = disk.and_then(|slot| self.core.disks.at_mut(slot))
            && slot.notes.is_some()
        {
            slot.note(action, now);
        }
    }

    /// The command is one of its unit's from now on, until it is freed. False: it has been answered.
    fn enter_task_set(&mut self, task: TaskId, lun_index: Option<usize>) -> bool {
        let now = self.core.now;
        let attribute = self.session.connection.command(task).attribute;
        let disk = lun_index.map(|index| self.session.luns[index].disk);
        let share = lun_index.map(|index| self.session.begin(index, attribute));
        let mut writes_through = false;
        if let Some(slot) = disk.and_then(|slot| self.core.disks.at_mut(slot)) {
            slot.tasks += 1;
            writes_through = slot.settings.writes_through;
        }
        let entry = self.task(task);
        entry.started = now;
        entry.disk = disk;
        entry.share = share;
        entry.durable = writes_through;
        if attribute == TaskAttribute::ACA {
            // No ACA condition is ever in effect here (NORMACA is zero), which is the only time for this attribute.
            self.complete(task, Sense::new(SenseCode::INVALID_MESSAGE_ERROR).into());
            return false;
        }
        true
    }

    /// Ask the SCSI engine.
    fn execute(&mut self, task: TaskId, lun_index: Option<usize>) -> Action {
        let (action, len) = match self.execute_with(task, lun_index, None) {
            (Action::NeedsBuffer { bytes }, _) => match self.core.io.arena.take(bytes as usize) {
                Some(mut larger) => {
                    let executed = self.execute_with(task, lun_index, Some(&mut larger));
                    self.session.scratch = Some(larger);
                    executed
                }
                None => (Action::Done(MediumError::Busy.outcome()), 0),
            },
            other => other,
        };
        if matches!(action, Action::DataIn) {
            if len > 0
                && let Some(mut reply) = self.session.scratch.take()
            {
                reply.truncate(len);
                self.task(task).set_read(reply.freeze());
            }
            self.task(task).transfer_length = len as u64;
        }
        action
    }

    /// The same with a buffer for the reply, or with the session's, which there is.
    fn execute_with(&mut self, task: TaskId, lun_index: Option<usize>, buffer: Option<&mut Buf>) -> (Action, usize) {
        let session = &mut *self.session;
        let buffer = buffer.or(session.scratch.as_mut()).expect("taken before the command");
        let command = session.connection.command(task);
        let (cdb, data_out_bytes) = (command.cdb, Some(command.expected_write_length()));
        let view = TargetView {
            name: session.target.as_ref().map_or("", |(_, name)| name.as_str()),
            relative_target_port: session.target_port,
            portal_group_tag: session.portal_group_tag,
            target_port_group: session.target_port,
            luns: &session.lun_numbers,
        };
        let unit = match lun_index {
            Some(index) => {
                let entry = &mut session.luns[index];
                let slot = self.core.disks.at(entry.disk).expect("a disk stays attached while tasks use it");
                Some(LogicalUnit {
                    unit: slot.unit(entry.read_only),
                    nexus: &mut entry.nexus,
                    condition: slot.settings.condition,
                })
            }
            None => None,
        };
        let mut list = ParameterList::new(buffer);
        let action = scsi::execute(&CommandRequest { cdb: &cdb, data_out_bytes }, &view, unit, &mut list);
        (action, list.len())
    }

    /// Begin what the SCSI engine wants done.
    fn carry_out(&mut self, task: TaskId, action: Action, data: Immediate<'_>) {
        let disk = self.task(task).disk;
        let block_length = disk.map(|slot| self.core.disks.of_task(slot).unit(false).block_length());
        let (offset_bytes, medium_bytes, data_out) = match (action, block_length) {
            (Action::Done(outcome), _) => return self.complete_unexecuted(task, outcome),
            (Action::DataIn, _) => {
                self.task(task).answer = Answer::DataIn;
                return self.send_when_drained(task);
            }
            (Action::NeedsBuffer { .. }, _) | (_, None) => {
                return self.complete(task, MediumError::Removed.outcome());
            }
            (Action::GetLbaStatus { lba, allocation_length, report_type }, _) => {
                return self.lba_status(task, lba, allocation_length, report_type);
            }
            (Action::Unmap { list_bytes }, _) => (0, 0, u64::from(list_bytes)),
            (Action::Flush { immed, .. }, _) => {
                self.task(task).kind = Kind::Flush;
                self.task(task).operation = Operation::Flush;
                return self.flush(task, immed);
            }
            (Action::Read { lba, blocks, .. } | Action::Write { lba, blocks, .. }, Some(length))
            | (Action::Verify { lba, blocks, .. } | Action::WriteAndVerify { lba, blocks, .. }, Some(length))
            | (Action::WriteSame { lba, blocks, .. }, Some(length)) => {
                let medium = u64::from(blocks) << length.shift();
                (lba.0 << length.shift(), medium, action.data_out_bytes(length))
            }
            (_, Some(_)) => return self.carry_out_other(task, action, data),
        };
        let entry = self.task(task);
        entry.offset_bytes = offset_bytes;
        entry.transfer_length = data_out;
        match action {
            Action::Read { fua, .. } => {
                entry.kind = Kind::Read;
                entry.operation = Operation::Read;
                entry.transfer_length = medium_bytes;
                self.start_read(task, medium_bytes, fua);
            }
            Action::Write { fua, .. } => {
                entry.kind = Kind::Write;
                entry.operation = Operation::Write;
                entry.durable |= fua;
                self.start_write(task, medium_bytes, data_out, data);
            }
            Action::Verify { byte_check, .. } => {
                entry.kind = Kind::Verify(byte_check);
                entry.operation = Operation::Other;
                if byte_check == ByteCheck::None {
                    self.start_read(task, medium_bytes, false);
                } else {
                    self.start_write(task, medium_bytes, data_out, data);
                }
            }
            Action::WriteAndVerify { compare, .. } => {
                entry.kind = Kind::WriteAndVerify { compare };
                entry.operation = Operation::Write;
                entry.durable = true;
                self.start_write(task, medium_bytes, data_out, data);
            }
            Action::Unmap { list_bytes } => self.start_unmap(task, list_bytes, data),
            Action::WriteSame { unmap, no_data_out, .. } => {
                entry.operation = Operation::Write;
                self.start_write_same(task, medium_bytes, unmap, (!no_data_out).then_some(data));
            }
            _ => {}
        }
    }

    /// Begin what is neither reading nor writing alone.
    fn carry_out_other(&mut self, task: TaskId, action: Action, data: Immediate<'_>) {
        match action {
            Action::CompareAndWrite { lba, blocks, fua, .. } => {
                self.start_compare_and_write(task, lba, blocks, fua, data)
            }
            Action::OrWrite { lba, blocks, fua, .. } => self.start_or_write(task, lba, blocks, fua, data),
            Action::WriteAtomic { lba, blocks, fua, .. } => self.start_write_atomic(task, lba, blocks, fua, data),
            Action::ModeSelect { list_bytes, long, save } => {
                self.start_list(task, List::Mode { long, save }, u32::from(list_bytes), data);
            }
            Action::CopyOut { what, list_identifier, list_bytes } => {
                self.start_copy(task, what, list_identifier, list_bytes, data)
            }
            Action::CopyAbort { list_identifier } => self.abort_copy_operation(task, list_identifier),
            Action::CopyIn { what, list_identifier, allocation_length } => {
                self.answer_copy_in(task, what, list_identifier, allocation_length)
            }
            Action::WriteEcho { list_bytes } => self.start_list(task, List::Echo, u32::from(list_bytes), data),
            Action::ReadEcho { allocation_length } => self.read_echo(task, allocation_length),
            Action::ReportTimestamp { allocation_length } => self.report_timestamp(task, allocation_length),
            Action::LogReset => self.log_reset(task),
            Action::LogSense { page, allocation_length } => self.log_sense(task, page, allocation_length),
            Action::Format { list_bytes } => self.start_list(task, List::Format, u32::from(list_bytes), data),
            Action::Sanitize { method: SanitizeMethod::Overwrite { list_bytes }, immed, may_exit } => {
                self.start_list(task, List::Sanitize { immed, may_exit }, u32::from(list_bytes), data);
            }
            Action::Sanitize { method: SanitizeMethod::BlockErase, immed, may_exit } => {
                self.start_block_erase(task, immed, may_exit);
            }
            Action::ExitSanitizeFailure => self.exit_sanitize_failure(task),
            // No unit here says that it serves any other.
            _ => self.complete(task, Sense::new(SenseCode::INVALID_COMMAND_OPERATION_CODE).into()),
        }
    }

    /// The SCSI engine has the answer. One that tells of a reset waits until the tasks that the reset aborted have
    /// ended: who knows of it may count on nothing of them happening any more.
    fn complete_unexecuted(&mut self, task: TaskId, outcome: Outcome) {
        let tells = outcome.sense.is_some_and(|sense| sense.code().key == SenseKey::UNIT_ATTENTION);
        if !tells || self.session.lingering == 0 {
            return self.complete(task, outcome);
        }
        let entry = self.task(task);
        entry.answer = Answer::Response(outcome);
        entry.transfer_length = 0;
        entry.buf = None;
        self.set_step(task, Step::Paused(Resume::Answer));
    }

    /// SYNCHRONIZE CACHE. With IMMED the answer does not wait, and the flush is started all the same.
    fn flush(&mut self, task: TaskId, immed: bool) {
        let slot = self.task(task).disk.expect("a flush has a unit");
        if !self.flushes(slot) {
            return self.complete(task, Outcome::GOOD);
        }
        if immed && self.core.ask_home(slot, LinkKey::NOBODY, 0, HomeRequest::Flush) {
            return self.complete(task, Outcome::GOOD);
        }
        self.ask_flush(task);
    }

    /// Whether there is anything behind the disk that a flush could reach.
    pub(crate) fn flushes(&self, slot: u32) -> bool {
        let disk = self.core.disks.of_task(slot);
        !disk.read_only() && !matches!(disk.backing(), Backing::Null | Backing::Memory(_))
    }

    /// Ask the home shard to flush the task's disk.
    pub(crate) fn ask_flush(&mut self, task: TaskId) {
        if self.is_held(task, Resume::Flush) {
            return;
        }
        let slot = self.task(task).disk.expect("a flush has a unit");
        let name = self.tagged(task);
        if !self.core.ask_home(slot, self.key, name, HomeRequest::Flush) {
            return self.starve(task, Resume::Flush);
        }
        // It is not at work: the flush keeps its files open itself, and a pause need not wait for it.
        self.end_work(task);
        self.set_step(task, Step::Flushing);
        self.begin_operation(task);
    }

    /// The home shard has answered.
    pub(crate) fn home_done(&mut self, task: TaskId, result: Result<Done, MediumError>) {
        self.end_operation(task);
        if self.release_if_aborted(task) {
            return;
        }
        let done = match result {
            // The home shard does not know blocks.
            Err(MediumError::ReadFailed { .. }) => {
                let lba = self.window_lba(task);
                return self.fail(task, MediumError::ReadFailed { lba });
            }
            Err(error) => return self.fail(task, error),
            Ok(done) => done,
        };
        match (self.task(task).step, done) {
            (Step::Asking(Resume::Provision), done) => self.provision_answered(task, done),
            (Step::Asking(resume), _) => {
                self.end_work(task);
                self.resume(task, resume);
            }
            (Step::Committing, Done::Ok) => self.is_visible(task),
            (Step::Committing, Done::PlanAgain) if self.task(task).is_through_log() => self.make_present(task),
            (Step::Committing, Done::PlanAgain) => {
                self.end_work(task);
                self.write_out(task);
            }
            (_, Done::PlanAgain) => self.ask_flush(task),
            (_, Done::Ok) => self.flushed(task),
        }
    }

    /// What was asked to be durable is.
    fn flushed(&mut self, task: TaskId) {
        let entry = self.task(task);
        match entry.kind {
            Kind::Flush => self.complete(task, Outcome::GOOD),
            // FUA on a read: what was cached is durable now.
            Kind::Read if entry.done < entry.total => {
                self.end_work(task);
                self.read_in(task);
            }
            _ => self.part_written(task),
        }
    }

    /// The command's data was wrong.
    pub(crate) fn data_error(&mut self, task: TaskId, error: DataError) {
        let (key, asc, ascq) = error.sense();
        let sense = Sense::new(SenseCode { key: SenseKey(key), asc, ascq });
        let outcome = Outcome::check_condition(sense);
        if self.task(task).step == Step::Idle {
            let now = self.core.now;
            self.task(task).started = now;
        }
        if self.task(task).operations > 0 {
            // What is underway to the medium is waited for; then this is the answer.
            self.task(task).answer = Answer::Response(outcome);
            self.task(task).error = Some(MediumError::Aborted);
            return;
        }
        self.complete(task, outcome);
    }

    /// The medium could not do it.
    pub(crate) fn fail(&mut self, task: TaskId, error: MediumError) {
        let outcome = match self.task(task).answer {
            Answer::Response(outcome) => outcome,
            _ => error.outcome(),
        };
        self.complete(task, outcome);
    }

    /// The command has ended: answer as soon as it is allowed.
    pub(crate) fn complete(&mut self, task: TaskId, outcome: Outcome) {
        if self.is_mover(task) {
            return self.copy_step_ended(task, outcome);
        }
        self.end_work(task);
        self.release_range(task);
        if matches!(self.task(task).answer, Answer::Resend) {
            return self.end_resend(task, false);
        }
        let entry = self.task(task);
        entry.answer = Answer::Response(outcome);
        entry.buf = None;
        entry.data = None;
        entry.second = None;
        entry.clear_read();
        // What these have done to the medium says nothing of how much data was transferred.
        let apart = matches!(entry.kind, Kind::Unmap | Kind::Zero | Kind::WriteSame { .. } | Kind::CompareAndWrite)
            || entry.kind.is_agreed_on();
        if outcome != Outcome::GOOD && !apart {
            entry.transfer_length = u64::from(entry.done);
        }
        self.send_when_drained(task);
    }

    /// Send the answer, after the last Data-Out that is underway for nothing.
    pub(crate) fn send_when_drained(&mut self, task: TaskId) {
        let wants_data = self.session.connection.command(task).write;
        let incomplete = wants_data && !self.session.connection.data_out_complete(task);
        // With FastAbort what is underway for a terminated command is nobody's concern.
        let owes = !(self.task(task).terminated && self.session.connection.parameters().fast_abort);
        if incomplete && self.session.connection.discard_data_out(task) && owes {
            return self.set_step(task, Step::Draining);
        }
        self.send(task);
    }

    /// Data that nobody wants has come in full.
    pub(crate) fn drained(&mut self, task: TaskId) {
        let entry = self.task(task);
        let is_awaited = std::mem::take(&mut entry.awaits_data);
        if is_awaited {
            // It was aborted, perhaps with its answer ready.
            self.release_if_aborted(task);
        } else if entry.step == Step::Draining {
            self.send(task);
        }
    }

    /// Send what the task has to send, now or when there is room.
    pub(crate) fn send(&mut self, task: TaskId) {
        self.set_step(task, Step::Sending);
        if self.task(task).queued {
            return;
        }
        if !self.session.ready.is_empty() || !self.emit(task) {
            self.queue_ready(task);
        }
    }

    /// Remember that a task has something to send.
    pub(crate) fn queue_ready(&mut self, task: TaskId) {
        if !self.task(task).queued {
            self.task(task).queued = true;
            let queued = self.session.ready.push(task).is_ok();
            assert!(queued, "the queue has a place for every task");
        }
    }

    /// Send for the tasks that wait for room, as far as it goes. True when none waits any more.
    pub(crate) fn send_ready(&mut self) -> bool {
        while let Some(&task) = self.session.ready.front() {
            let sent = match self.task(task).step {
                Step::Sending => self.emit(task),
                Step::Receiving => self.send_r2ts(task),
                _ => true,
            };
            if !sent {
                return false;
            }
            self.session.ready.pop();
            self.task(task).queued = false;
            // Its next window may be ready to be sent already; or it may want another R2T.
            if self.task(task).step == Step::Sending && self.task(task).read.is_some() {
                self.queue_ready(task);
            }
        }
        true
    }

    /// Emit a task's answer. False when there is no room (for all of it).
    pub(crate) fn emit(&mut self, task: TaskId) -> bool {
        match self.task(task).answer {
            Answer::DataIn => self.emit_data_in(task),
            Answer::Resend => self.emit_again(task),
            Answer::Response(outcome) => self.emit_response(task, outcome),
            _ => self.emit_other(task),
        }
    }

    fn emit_response(&mut self, task: TaskId, outcome: Outcome) -> bool {
        let entry = &self.session.tasks[usize::from(task.0)];
        let ending = Ending {
            status: ScsiStatus(outcome.status.0),
            transfer_length: entry.transfer_length,
            read_transfer_length: 0,
        };
        let sense = outcome.sense.map(|sense| {
            let format =
                entry.disk.map_or(SenseFormat::Fixed, |slot| self.core.disks.of_task(slot).unit(false).sense_format());
            sense.encode(format)
        });
        let sense: &[u8] = sense.as_deref().unwrap_or_default();
        if !self.session.connection.send_response(task, ending, sense, &mut self.tx.bare()) {
            return false;
        }
        self.finish(task, outcome == Outcome::GOOD);
        true
    }

    /// The answer has been emitted: the task is over.
    pub(crate) fn finish(&mut self, task: TaskId, good: bool) {
        let entry = &self.session.tasks[usize::from(task.0)];
        let (slot, operation, started) = (entry.disk, entry.operation, entry.started);
        if self.session.connection.parameters().error_recovery_level > 0 {
            let disk = slot.filter(|_| entry.kind == Kind::Read).and_then(|slot| self.core.disks.at(slot));
            let origin = disk.map(|slot| (slot.disk.id(), entry.offset_bytes));
            self.task(task).origin = origin;
        }
        if let Some(slot) = slot {
            let bytes = u64::from(self.task(task).done);
            self.core.record(slot, operation, bytes, started, good);
            match operation {
                Operation::Read => self.session.stats.bytes_read.add(bytes),
                Operation::Write => self.session.stats.bytes_written.add(bytes),
                _ => {}
            }
        }
        if !good {
            self.session.stats.errors.increment();
        }
        self.core.answers_in_turn += 1;
        self.free(task);
    }

    /// Give back everything that the task holds.
    pub(crate) fn free(&mut self, task: TaskId) {
        self.set_step(task, Step::Idle);
        let entry = self.task(task);
        assert_eq!(entry.operations, 0, "a task ends after its last operation");
        self.end_work(task);
        self.release_range(task);
        let entry = self.task(task);
        let slot = entry.disk.take();
        let job = entry.job.take();
        entry.buf = None;
        entry.data = None;
        entry.second = None;
        entry.clear_read();
        entry.answer = Answer::None;
        entry.kind = Kind::None;
        entry.operation = Operation::Other;
        entry.total = 0;
        entry.done = 0;
        entry.window = 0;
        entry.through = 0;
        entry.data_total = 0;
        entry.received = 0;
        entry.transfer_length = 0;
        entry.durable = false;
        entry.commits = false;
        entry.error = None;
        entry.fills = false;
        entry.torn = None;
        entry.aborted = false;
        entry.unkept = false;
        entry.awaits_data = false;
        let terminated = std::mem::take(&mut entry.terminated);
        let share = entry.share.take();
        let lingered = std::mem::take(&mut entry.lingers);
        entry.ends_session = false;
        let solicited_bytes = std::mem::take(&mut entry.solicited_bytes);
        self.session.solicited_bytes -= u64::from(solicited_bytes);
        if let Some(slot) = slot.and_then(|slot| self.core.disks.at_mut(slot)) {
            slot.tasks -= 1;
        }
        if let Some(share) = share {
            self.session.end(share);
        }
        if let Some(job) = job {
            self.core.job_task_ended(job);
        }
        if !self.session.fences.is_empty() {
            self.fenced_task_ended(task, terminated);
        }
        if lingered {
            self.has_lingered();
        }
    }
}
