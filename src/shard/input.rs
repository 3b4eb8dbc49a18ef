//! From received bytes to events, and what each event sets going.

use super::core::{Core, RING_SLOTS_RESERVE};
use super::link::{BYTES_PER_TURN_MAX, Bulk, Link, LinkState, PDUS_PER_TURN_MAX, Phase, Stream};
use super::session::{Answer, Immediate, Stalled, Step, Work};
use crate::crc32c::Crc32c;
use crate::iscsi::discovery::{TextContext, TextStep};
use crate::iscsi::pdu::RejectReason;
use crate::iscsi::receive::{Event, Receive};
use crate::iscsi::refusal::Refusal;
use crate::iscsi::transfer::TaskId;
use crate::limits::{BURST_LENGTH_MAX, RECEIVE_SEGMENT_LENGTH_MAX, STALL_TIMEOUT_MS};
use crate::mem::Buf;
use crate::ring::Ring;
use crate::scsi::{self, MediumError, Outcome};

/// What came of looking at the stream.
enum Progress {
    /// Something was consumed.
    Consumed(usize),
    /// More bytes are needed, or a stalled request waits for memory.
    Wait,
}

/// Handle what a connection in full feature phase has received, as far as it goes.
pub(crate) fn run_session<R: Ring>(link: &mut Link, core: &mut Core<R>) {
    let mut pdus = 0;
    let mut bytes = 0;
    loop {
        if link.state != LinkState::Open {
            return;
        }
        if pdus >= PDUS_PER_TURN_MAX || bytes >= BYTES_PER_TURN_MAX {
            return link.queue(core);
        }
        // A connection that does not take its answers, or a ring that is full, is not given more to do.
        if !link.tx.has_room() {
            return;
        }
        if core.io.ring.slots_free() < RING_SLOTS_RESERVE {
            return link.starve(core);
        }
        let Some((mut work, stream, bulk)) = link.work(core) else { return };
        match work.step(stream, bulk) {
            Ok(Progress::Consumed(len)) => {
                pdus += 1;
                bytes += len;
            }
            Ok(Progress::Wait) => {
                if work.session.stalled.is_some() {
                    link.starve(core);
                }
                return;
            }
            Err(refusal) => {
                tracing::debug!(peer = %link.peer, %refusal, "connection dropped");
                core.stats.connections_dropped.increment();
                if refusal == Refusal::HeaderDigest {
                    core.stats.header_digest_errors.increment();
                }
                return link.close(core);
            }
        }
    }
}

impl<R: Ring> Work<'_, R> {
    /// Handle one PDU (or the rest of one).
    fn step(&mut self, stream: &mut Stream, bulk: &mut Option<Bulk>) -> Result<Progress, Refusal> {
        if let Some(stalled) = self.session.stalled.take() {
            return Ok(self.resume_stalled(stalled, stream));
        }
        if bulk.is_some() {
            return self.continue_bulk(stream, bulk);
        }
        let bytes = stream.bytes();
        if bytes.len() < stream.needed {
            return Ok(Progress::Wait);
        }
        match self.session.connection.receive(bytes, self.core.now_ms())? {
            Receive::NeedBytes(needed) => {
                stream.needed = needed;
                Ok(Progress::Wait)
            }
            Receive::Pdu { len, event, data } => {
                stream.needed = 48;
                self.core.stats.pdus_in.increment();
                let placed = stream.take_placed(len, &data, matches!(event, Event::Command { .. }));
                if let (Event::Command { task }, Some(payload)) = (event, placed) {
                    self.start_placed(task, payload, data.len() as u32);
                    self.release_held()?;
                    return Ok(Progress::Consumed(len));
                }
                if let Some((task, held)) = self.dispatch(event, stream.part(data.clone()))?
                    && self.stalls(task, held)
                {
                    let since_ms = self.core.now_ms();
                    self.core.wake_by_ms(since_ms + STALL_TIMEOUT_MS);
                    self.session.stalled = Some(Stalled { task, len, data, held, since_ms, is_over: false });
                    return Ok(Progress::Wait);
                }
                stream.consume(len);
                self.release_held()?;
                Ok(Progress::Consumed(len))
            }
            Receive::Bulk { header_len, task, buffer_offset, len, trailer_len } => {
                stream.needed = 48;
                stream.consume(header_len);
                self.core.stats.pdus_in.increment();
                *bulk = Some(self.place_bulk(task, buffer_offset, len, trailer_len));
                Ok(Progress::Consumed(header_len))
            }
        }
    }

    /// A command whose immediate data was received where it can stay.
    fn start_placed(&mut self, task: TaskId, mut payload: Buf, len: u32) {
        let window = self.session.connection.command(task).expected_write_length().clamp(len, BURST_LENGTH_MAX);
        payload.truncate(payload.len().min(window as usize));
        self.task(task).buf = Some(payload);
        if !self.start_command(task, Immediate::Placed(len)) {
            self.fail(task, MediumError::Busy);
        }
    }

    /// Requests that were ahead of their CmdSN, and whose turn has come.
    #[inline]
    fn release_held(&mut self) -> Result<(), Refusal> {
        while let Some(event) = self.session.connection.poll_ready() {
            self.release_one(event)?;
        }
        Ok(())
    }

    fn release_one(&mut self, event: Event) -> Result<(), Refusal> {
        let held = match event {
            Event::Command { task } | Event::Text { task } | Event::NopOut { task } => Some(task),
            _ => None,
        };
        let data = held.and_then(|task| self.take_held_data(task));
        let bytes = data.as_deref().unwrap_or_default();
        if held.is_some_and(|task| std::mem::take(&mut self.task(task).unkept)) {
            self.answer_unkept(event)?;
        } else if let Some((task, _)) = self.dispatch(event, bytes)? {
            // There is no memory for what this command needs; it was ahead, so it can be sent again.
            self.fail(task, MediumError::Busy);
        }
        Ok(())
    }

    /// There is no memory for a request. Whether it may wait for some at the head of the stream: that holds up
    /// everything behind it. Where other commands of the connection hold memory for data that lies behind, or may, the
    /// wait would be for itself; then it is turned away.
    fn stalls(&mut self, task: TaskId, held: bool) -> bool {
        let waits_for_stream = |(index, entry): (usize, &super::session::Task)| {
            let waits = matches!(entry.step, Step::Receiving | Step::Held | Step::Dormant);
            waits && index != usize::from(task.0) && entry.holds_data()
        };
        if !self.session.tasks.iter().enumerate().any(waits_for_stream) {
            return true;
        }
        self.turn_away(task, held);
        false
    }

    /// Do without what there is no memory for. A command is answered so that its initiator sends it again; one that is
    /// ahead of its CmdSN, when its turn has come.
    pub(crate) fn turn_away(&mut self, task: TaskId, held: bool) {
        self.core.stats.turned_away.increment();
        if held {
            self.task(task).unkept = true;
            self.task(task).data_total = u32::MAX;
            return self.set_step(task, Step::Held);
        }
        let others = self.session.connection.tasks().any(|(other, _)| other != task);
        // SAM-5 clause 5.3.1: TASK SET FULL tells an initiator with commands running to keep fewer.
        let status = if others { scsi::Status::TASK_SET_FULL } else { scsi::Status::BUSY };
        self.complete(task, Outcome::status(status));
    }

    /// The turn of a request has come whose data could not be kept.
    fn answer_unkept(&mut self, event: Event) -> Result<(), Refusal> {
        match event {
            Event::Command { task } => self.fail(task, MediumError::Busy),
            Event::Text { task } => {
                self.session.connection.reject(task, RejectReason::LONG_OPERATION_REJECT)?;
                self.set_step(task, Step::Idle);
            }
            other => {
                self.dispatch(other, &[])?;
            }
        }
        Ok(())
    }

    /// The data that was kept for a request that was ahead of its CmdSN. A command's stays in its buffer.
    fn take_held_data(&mut self, task: TaskId) -> Option<Buf> {
        let entry = self.task(task);
        let len = entry.received as usize;
        let is_command = entry.data_total == u32::MAX;
        entry.received = 0;
        entry.data_total = 0;
        self.set_step(task, Step::Idle);
        let mut buf = self.task(task).buf.take()?;
        if is_command && len == 0 {
            self.task(task).buf = Some(buf);
            return None;
        }
        buf.truncate(len);
        Some(buf)
    }

    /// Set an event going. `Some`: there was no memory; nothing has been done, and the flag says whether the request is
    /// held.
    fn dispatch(&mut self, event: Event, data: &[u8]) -> Result<Option<(TaskId, bool)>, Refusal> {
        match event {
            Event::Handled => {}
            Event::Command { task } => {
                if !self.start_command(task, Immediate::Bytes(data)) {
                    return Ok(Some((task, false)));
                }
            }
            Event::Held { task } => {
                if !self.hold(task, data) {
                    return Ok(Some((task, true)));
                }
            }
            Event::DataOut { task, buffer_offset, len, .. } => {
                self.data_out(task, buffer_offset, &data[..data.len().min(len as usize)]);
            }
            Event::TaskDataError { task, error } => self.data_error(task, error),
            Event::DataOutDrained { task } => self.drained(task),
            Event::DataOutLost { task } => self.data_lost(task),
            Event::TaskManagement { task } => self.start_management(task),
            Event::Text { task } => self.answer_text(task, data)?,
            Event::Logout { task } => self.start_logout(task),
            Event::NopOut { task } => self.answer_nop(task, data),
        }
        Ok(None)
    }

    /// Try again the request that had no memory.
    fn resume_stalled(&mut self, stalled: Stalled, stream: &mut Stream) -> Progress {
        let data = stream.part(stalled.data.clone());
        let done = match stalled.held {
            _ if stalled.is_over => true,
            true => self.hold(stalled.task, data),
            false => self.start_command(stalled.task, Immediate::Bytes(data)),
        };
        if !done && self.core.now_ms() < stalled.since_ms + STALL_TIMEOUT_MS {
            self.session.stalled = Some(stalled);
            return Progress::Wait;
        }
        if !done {
            self.turn_away(stalled.task, stalled.held);
        }
        stream.consume(stalled.len);
        Progress::Consumed(stalled.len)
    }

    /// Keep the data of a request that is ahead of its CmdSN. False: no memory.
    fn hold(&mut self, task: TaskId, data: &[u8]) -> bool {
        let is_command = self.session.connection.tasks().any(|(id, command)| id == task && command.write);
        let room = match is_command {
            // Unsolicited data may follow before the command's turn comes.
            true => {
                self.session.connection.command(task).expected_write_length().clamp(data.len() as u32, BURST_LENGTH_MAX)
            }
            false => data.len() as u32,
        };
        if room > 0 {
            let Some(mut buf) = self.core.io.arena.take(room as usize) else { return false };
            buf[..data.len()].copy_from_slice(data);
            self.task(task).buf = Some(buf);
        }
        let entry = self.task(task);
        entry.received = data.len() as u32;
        entry.data_total = if is_command { u32::MAX } else { 0 };
        self.set_step(task, Step::Held);
        true
    }

    /// A place for a Data-Out that is not all here.
    fn place_bulk(&mut self, task: TaskId, buffer_offset: u32, len: usize, trailer_len: usize) -> Bulk {
        let at = self.place_in_window(task, buffer_offset);
        let digest = self.session.connection.parameters().data_digest.then(Crc32c::new);
        let entry = self.task(task);
        let fits = entry.buf.as_ref().is_some_and(|buf| at.checked_add(len).is_some_and(|end| end <= buf.len()));
        let buf = if fits { entry.buf.take() } else { None };
        let discards = buf.is_none();
        if !discards {
            self.begin_operation(task);
        }
        let at = if discards { 0 } else { at };
        Bulk { task, buffer_offset, len: len as u32, buf, at, missing: len, trailer_len, digest, discards }
    }

    /// Payload that was in the stream already, and then what comes behind it.
    fn continue_bulk(&mut self, stream: &mut Stream, bulk: &mut Option<Bulk>) -> Result<Progress, Refusal> {
        let Some(present) = bulk.as_mut() else { return Ok(Progress::Wait) };
        self.session.connection.heard(self.core.now_ms());
        if present.missing > 0 {
            let len = stream.bytes().len().min(present.missing);
            if len == 0 {
                return Ok(Progress::Wait);
            }
            present.take(stream.part(0..len));
            stream.consume(len);
            return Ok(Progress::Consumed(len));
        }
        if stream.bytes().len() < present.trailer_len {
            return Ok(Progress::Wait);
        }
        let Some(done) = bulk.take() else { return Ok(Progress::Wait) };
        let data_crc = done.digest.as_ref().map(Crc32c::value);
        let event = self.session.connection.bulk_done(data_crc, stream.part(0..done.trailer_len))?;
        stream.consume(done.trailer_len);
        if !done.discards {
            self.task(done.task).buf = done.buf;
            self.end_operation(done.task);
            if self.release_if_aborted(done.task) {
                if let Event::DataOutDrained { task } = event {
                    self.drained(task);
                }
                return Ok(Progress::Consumed(done.trailer_len));
            }
        }
        match event {
            Event::DataOut { task, buffer_offset, len, .. } if !done.discards => {
                debug_assert_eq!((task, buffer_offset), (done.task, done.buffer_offset));
                self.data_arrived(task, buffer_offset, len);
            }
            Event::DataOut { .. } => {}
            other => {
                self.dispatch(other, &[])?;
            }
        }
        self.release_held()?;
        Ok(Progress::Consumed(done.trailer_len))
    }

    /// Send what the engine owes by itself.
    fn transmit(&mut self) {
        if self.session.connection.wants_transmit() {
            self.session.connection.poll_transmit(&mut self.tx.bare());
        }
    }

    /// Answer a Text Request.
    fn answer_text(&mut self, task: TaskId, data: &[u8]) -> Result<(), Refusal> {
        let session = &mut *self.session;
        let request = session.connection.text_request(task);
        let context = TextContext {
            directory: &self.core.configuration.directory,
            initiator_name: &session.initiator,
            peer: session.addresses.1.ip(),
            local: session.addresses.0,
            target: session.target.as_ref().map(|(_, name)| name),
            transmit_segment_length_max: session.connection.parameters().initiator_max_recv_data_segment_length,
            receive_segment_length_max: RECEIVE_SEGMENT_LENGTH_MAX,
        };
        match session.text.handle(&request, data, &context) {
            TextStep::Reject(reason) => {
                session.connection.reject(task, reason)?;
                self.set_step(task, Step::Idle);
            }
            TextStep::Respond { response, data, transmit_segment_length_max } => {
                if !data.is_empty() {
                    let Some(mut buf) = self.core.io.arena.take(data.len()) else {
                        return Err(Refusal::Dropped);
                    };
                    buf.truncate(data.len());
                    buf.copy_from_slice(&data);
                    self.task(task).set_read(buf.freeze());
                }
                self.task(task).answer = Answer::Text {
                    is_final: response.is_final,
                    continues: response.continues,
                    target_transfer_tag: response.target_transfer_tag,
                    transmit_segment_length_max,
                };
                self.send(task);
            }
        }
        Ok(())
    }

    /// Echo a ping's data.
    fn answer_nop(&mut self, task: TaskId, data: &[u8]) {
        let len_max = self.session.connection.parameters().initiator_max_recv_data_segment_length as usize;
        let data = &data[..data.len().min(len_max)];
        // Without memory the echo is empty: the ping is answered all the same, which is what it is for.
        if let Some(mut buf) = self.core.io.arena.take(data.len().max(1)).filter(|_| !data.is_empty()) {
            buf.truncate(data.len());
            buf.copy_from_slice(data);
            self.task(task).set_read(buf.freeze());
        }
        self.task(task).answer = Answer::NopIn;
        self.send(task);
    }

    /// Emit an answer that is not a command's. False: no room.
    pub(crate) fn emit_other(&mut self, task: TaskId) -> bool {
        let session = &mut *self.session;
        let entry = &session.tasks[usize::from(task.0)];
        let payload = entry.read.clone().unwrap_or_else(|| self.core.io.arena.zeros(0));
        let len = payload.len();
        let connection = &mut session.connection;
        let sent = match entry.answer {
            Answer::Text { is_final, continues, target_transfer_tag, .. } => {
                let tx = &mut self.tx.with_payload(&payload);
                connection.send_text_response(task, is_final, continues, target_transfer_tag, len, tx)
            }
            Answer::NopIn => connection.send_nop_in(task, len, &mut self.tx.with_payload(&payload)),
            Answer::Logout(response) => connection.send_logout_response(task, response, &mut self.tx.bare()),
            Answer::Management(response) => {
                connection.send_task_management_response(task, response, &mut self.tx.bare())
            }
            Answer::None | Answer::DataIn | Answer::Resend | Answer::Response(_) => true,
        };
        if !sent {
            return false;
        }
        match entry.answer {
            Answer::Text { transmit_segment_length_max: Some(len), .. } => {
                connection.set_initiator_max_recv_data_segment_length(len);
            }
            Answer::Logout(_) if connection.is_logged_out() => *self.state = LinkState::Finishing,
            // A target cold reset ends every connection to the target (RFC 7143 section 11.5.1), this one last.
            Answer::Management(_) if entry.ends_session => *self.state = LinkState::Finishing,
            _ => {}
        }
        self.free(task);
        true
    }
}

/// A connection has room to send again, or something of it has completed: go on with everything.
pub(crate) fn advance<R: Ring>(link: &mut Link, core: &mut Core<R>) {
    if let Phase::Session(_) = link.phase {
        if let Some((mut work, _, _)) = link.work(core) {
            work.send_ready();
            work.rouse_dormant();
            work.run_copies();
            // Another connection of the session may have brought what this one's requests have waited for.
            if work.session.group.is_some() && work.release_held().is_err() {
                return link.close(core);
            }
        }
        run_session(link, core);
        if let Some((mut work, _, _)) = link.work(core) {
            work.rouse_dormant();
            work.look_at_fences();
            work.transmit();
            work.start_resends();
            work.transmit();
        }
        if let Phase::Session(session) = &mut link.phase {
            session.count(&core.stats);
            let (starved, copies) = (session.starved > 0, session.copies.wants_turn());
            if starved {
                link.starve(core);
            }
            if copies {
                link.queue(core);
            }
        }
    }
}
