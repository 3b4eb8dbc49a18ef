//! The way in: what the connection makes of received bytes.

use core::ops::Range;

use super::command_window::{Arrival, before};
use super::connection::Connection;
use super::pdu::{
    BHS_LEN, Bhs, CommandAhs, DIGEST_LEN, DataOut, LogoutReason, LogoutRequest, LogoutResponseCode, NopOut, Opcode,
    RejectReason, ScsiCommandRequest, SnackKind, SnackRequest, TAG_RESERVED, TaskManagementRequest, TextRequest,
    pad_len,
};
use super::refusal::Refusal;
use super::session::SessionType;
use super::task_table::{Answer, Phase, Request};
use super::transfer::{DataError, DataOutState, ScsiCommand, TaskId, Verdict};
use crate::crc32c::{Crc32c, crc32c};
use crate::limits::IMMEDIATE_REQUESTS_MAX;

/// A Data-Out that misses at least this many bytes is given out as [`Receive::Bulk`], so that the rest is received in
/// place; for less, waiting costs less than another receive.
const BULK_MISSING_MIN: usize = 4096;

/// What [`Connection::receive`] found at the head of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Receive {
    /// Nothing can be done before this many bytes, counted from the head, are there. At most 48 + 1020 + 4 + our
    /// MaxRecvDataSegmentLength + 3 + 4.
    NeedBytes(usize),
    /// A whole PDU was handled.
    Pdu {
        /// Bytes to consume.
        len: usize,
        /// What it meant.
        event: Event,
        /// Its data segment within the bytes given, without padding. Empty unless the event uses data.
        data: Range<usize>,
    },
    /// A valid Data-Out whose data is not all here. The shard consumes `header_len` bytes, moves `len` bytes of
    /// payload (from the stream or straight from the socket) to `buffer_offset` of the task's data, collects
    /// `trailer_len` bytes more, and calls `bulk_done`. Until then `receive` must not be called.
    Bulk {
        /// Bytes of header (with its digest) to consume.
        header_len: usize,
        /// The command.
        task: TaskId,
        /// Where in the command's data the payload goes.
        buffer_offset: u32,
        /// Bytes of payload.
        len: usize,
        /// Bytes after the payload: padding and data digest, 0..=7.
        trailer_len: usize,
    },
}

/// What a request asks of the shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Nothing to do: the PDU was ignored or answered by the engine (see `poll_transmit`).
    Handled,
    /// A command to execute; `Connection::command` describes it. `data` of the PDU is its immediate data. When it came
    /// out of `poll_ready`, its immediate data is what the shard stored at [`Event::Held`].
    Command {
        /// The command.
        task: TaskId,
    },
    /// A request arrived ahead of its CmdSN. The shard stores the PDU's `data` (often none) for the task, and
    /// executes nothing: `poll_ready` gives it out in its turn, or `abort` and `release` end it before. Unsolicited
    /// data of a held write comes like that of any other ([`Event::DataOut`] and [`Receive::Bulk`]).
    Held {
        /// The request.
        task: TaskId,
    },
    /// Data of a command has arrived and is correct: the PDU's `data`, or the payload of the `Bulk` just finished.
    DataOut {
        /// The command.
        task: TaskId,
        /// Where in the command's data it goes, in bytes.
        buffer_offset: u32,
        /// Bytes, cut so that `buffer_offset + len` is at most what the command wants (see
        /// `Connection::limit_data_out`).
        len: u32,
        /// An R2T's data, or the command's unsolicited data, is complete with this PDU.
        burst_complete: bool,
    },
    /// The command's data was wrong, and the last of what was underway has now come. The shard ends the command with
    /// CHECK CONDITION and `error.sense()`. No R2T goes out and no data event comes any more. This can be the first
    /// event of a command (instead of `Command`).
    TaskDataError {
        /// The command.
        task: TaskId,
        /// What was wrong.
        error: DataError,
    },
    /// Data of a command was lost on the way, and may be asked for again: send R2Ts (`want_r2t`). Only above
    /// ErrorRecoveryLevel 0.
    DataOutLost {
        /// The command.
        task: TaskId,
    },
    /// The last Data-Out PDU that was underway for a task under `discard_data_out` or `abort` has come and was dropped.
    DataOutDrained {
        /// The command.
        task: TaskId,
    },
    /// A task management function to carry out; `Connection::task_management` describes it. Answer with
    /// `send_task_management_response`.
    TaskManagement {
        /// The request.
        task: TaskId,
    },
    /// A Text Request; `Connection::text_request` describes it, `data` is its text. Answer with `send_text_response` or
    /// `reject`.
    Text {
        /// The request.
        task: TaskId,
    },
    /// The session is to end, or one connection of it; `Connection::logout` says which. Abort and release its tasks,
    /// answer with `send_logout_response`, then close when sent if it is this one.
    Logout {
        /// The request.
        task: TaskId,
    },
    /// A ping with data to echo: keep `data` and answer with `send_nop_in`. (Pings without data the engine answers
    /// itself.)
    NopOut {
        /// The request.
        task: TaskId,
    },
}

/// A Data-Out whose payload the shard is placing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bulk {
    header: Bhs,
    data: DataOut,
    task: TaskId,
    generation: u32,
    trailer_len: usize,
}

/// The lengths of a PDU (section 11.2).
struct Frame {
    /// Header, AHS and header digest.
    header_len: usize,
    data_len: usize,
    /// Padding and data digest.
    trailer_len: usize,
}

impl Frame {
    #[inline]
    fn total_len(&self) -> usize {
        self.header_len + self.data_len + self.trailer_len
    }
}

impl Connection {
    /// Look at the PDU at the head of `bytes`, which are all bytes received so far and not consumed.
    ///
    /// # Errors
    /// A [`Refusal`] ends the connection.
    ///
    /// # Panics
    /// When a [`Receive::Bulk`] has not been ended by [`Self::bulk_done`].
    #[inline]
    pub fn receive(&mut self, bytes: &[u8], now_ms: u64) -> Result<Receive, Refusal> {
        assert!(self.bulk.is_none(), "bulk_done comes first");
        if bytes.is_empty() {
            return Ok(Receive::NeedBytes(BHS_LEN));
        }
        self.heard(now_ms);
        let Some(bhs) = Bhs::from_prefix(bytes) else {
            return Ok(Receive::NeedBytes(BHS_LEN));
        };
        let frame = self.frame(bhs);
        if bytes.len() < frame.header_len {
            return Ok(Receive::NeedBytes(frame.header_len));
        }
        // Section 7.8: after a header digest error the length cannot be believed, and at ErrorRecoveryLevel 0 nothing
        // is left but to drop the connection.
        if self.parameters.header_digest && !digest_matches(&bytes[..frame.header_len]) {
            return Err(Refusal::HeaderDigest);
        }
        if self.logged_out {
            return Err(Refusal::AfterLogout);
        }
        // Section 13.12: longer than our MaxRecvDataSegmentLength breaks the protocol, and is not received to be
        // rejected.
        if frame.data_len > self.parameters.max_recv_data_segment_length as usize {
            return Err(Refusal::DataSegmentTooLong);
        }
        let total_len = frame.total_len();
        if bytes.len() < total_len {
            return Ok(self.begin_bulk(bhs, &frame, total_len - bytes.len()).unwrap_or(Receive::NeedBytes(total_len)));
        }
        let segment = &bytes[frame.header_len..total_len];
        let digest_ok = !self.parameters.data_digest || frame.data_len == 0 || digest_matches(segment);
        let ahs = &bytes[BHS_LEN..BHS_LEN + bhs.ahs_len()];
        let mut data_len = frame.data_len;
        self.counters.pdus_received += 1;
        let event = self.handle(bhs, ahs, digest_ok, &mut data_len)?;
        let data = frame.header_len..frame.header_len + data_len;
        Ok(Receive::Pdu { len: total_len, event, data })
    }

    /// The payload of the last [`Receive::Bulk`] is in place. `data_crc` is its CRC-32C (padding not included),
    /// needed only with DataDigest; `trailer` are the bytes after it. Gives `DataOut`, `TaskDataError`,
    /// `DataOutDrained` or `Handled` (the task has ended meanwhile, or the digest was wrong).
    ///
    /// # Errors
    /// A [`Refusal`] ends the connection.
    ///
    /// # Panics
    /// Without a [`Receive::Bulk`] before, with a trailer of another length, or without `data_crc` where it is needed.
    pub fn bulk_done(&mut self, data_crc: Option<u32>, trailer: &[u8]) -> Result<Event, Refusal> {
        let bulk = self.bulk.take().expect("receive gave a bulk transfer before");
        assert_eq!(trailer.len(), bulk.trailer_len);
        self.counters.pdus_received += 1;
        let digest_ok = !self.parameters.data_digest || {
            let (pad, digest) = trailer.split_at(trailer.len() - DIGEST_LEN);
            let crc = data_crc.expect("the payload's digest is needed with DataDigest");
            let mut whole = Crc32c::continuing(crc);
            whole.update(pad);
            whole.value().to_le_bytes() == digest
        };
        if self.tasks.entry(bulk.task).generation != bulk.generation {
            self.counters.data_out_dropped += 1;
            return Ok(Event::Handled);
        }
        self.take_data_out(bulk.task, &bulk.header, &bulk.data, digest_ok, &mut (bulk.data.len as usize))
    }

    /// The next request whose turn has come: held for its CmdSN until now. Call until `None` after each `receive`.
    #[inline]
    pub fn poll_ready(&mut self) -> Option<Event> {
        while let Some(task) = self.window.poll(self.slot) {
            let entry = self.tasks.entry_mut(task);
            if entry.phase == Phase::AbortedHeld {
                entry.phase = Phase::Aborted;
                continue;
            }
            assert_eq!(entry.phase, Phase::Held);
            entry.phase = Phase::Active;
            match self.deliver(task) {
                Event::Handled => {}
                event => return Some(event),
            }
        }
        self.poll_waiting()
    }

    #[inline]
    fn frame(&self, bhs: &Bhs) -> Frame {
        let data_len = bhs.data_segment_len();
        let header_digest_len = if self.parameters.header_digest { DIGEST_LEN } else { 0 };
        // Section 11.2.4: a data digest is there only when data is.
        let data_digest_len = if self.parameters.data_digest && data_len > 0 { DIGEST_LEN } else { 0 };
        Frame {
            header_len: BHS_LEN + bhs.ahs_len() + header_digest_len,
            data_len,
            trailer_len: pad_len(data_len) + data_digest_len,
        }
    }

    /// A large Data-Out whose data is wanted can be received in place. Changes nothing of the task yet.
    fn begin_bulk(&mut self, bhs: &Bhs, frame: &Frame, missing: usize) -> Option<Receive> {
        if bhs.opcode() != Opcode::DATA_OUT || bhs.ahs_len() != 0 || missing < BULK_MISSING_MIN {
            return None;
        }
        let data = DataOut::parse(bhs).ok()?;
        let task = self.tasks.find(data.initiator_task_tag)?;
        let entry = self.tasks.entry(task);
        if !matches!(&entry.request, Request::Scsi(command) if command.write) {
            return None;
        }
        let state = self.tasks.data_out(task);
        let wanted = state.judge(&data) == Verdict::Good && data.buffer_offset + data.len <= state.wanted();
        if !wanted {
            return None;
        }
        let (generation, trailer_len) = (entry.generation, frame.trailer_len);
        self.bulk = Some(Bulk { header: *bhs, data, task, generation, trailer_len });
        Some(Receive::Bulk {
            header_len: frame.header_len,
            task,
            buffer_offset: data.buffer_offset,
            len: frame.data_len,
            trailer_len,
        })
    }

    /// Handle a whole PDU. `data_len` is reduced to the bytes that the event is about.
    #[inline]
    fn handle(&mut self, bhs: &Bhs, ahs: &[u8], digest_ok: bool, data_len: &mut usize) -> Result<Event, Refusal> {
        self.acknowledge(bhs.exp_stat_sn());
        let event = match bhs.opcode() {
            opcode if self.parameters.session_type == SessionType::Discovery && !serves_discovery(opcode) => {
                self.refuse(bhs, RejectReason::PROTOCOL_ERROR)
            }
            Opcode::SCSI_COMMAND => self.request(bhs, ahs, digest_ok),
            // Section 11.2.2: only SCSI Commands have additional headers.
            Opcode::DATA_OUT if ahs.is_empty() => return self.data_out(bhs, digest_ok, data_len),
            Opcode::NOP_OUT if ahs.is_empty() && bhs.initiator_task_tag() == TAG_RESERVED => self.silent_nop_out(bhs),
            Opcode::NOP_OUT | Opcode::TASK_MANAGEMENT_REQUEST | Opcode::TEXT_REQUEST | Opcode::LOGOUT_REQUEST => {
                if ahs.is_empty() {
                    self.request(bhs, ahs, digest_ok)
                } else {
                    self.refuse(bhs, RejectReason::INVALID_PDU_FIELD)
                }
            }
            Opcode::DATA_OUT => self.refuse(bhs, RejectReason::INVALID_PDU_FIELD),
            Opcode::SNACK_REQUEST if self.recovery.is_some() && ahs.is_empty() => self.snack(bhs),
            Opcode::SNACK_REQUEST => self.refuse_snack(bhs),
            Opcode::LOGIN_REQUEST => return Err(Refusal::LoginInFullFeaturePhase),
            _ => self.refuse(bhs, RejectReason::COMMAND_NOT_SUPPORTED),
        }?;
        if event == Event::Handled {
            *data_len = 0;
        }
        Ok(event)
    }

    /// ExpStatSN acknowledges what was sent, never what was not (section 4.2.2.2). At ErrorRecoveryLevel 0 nothing is
    /// kept for it.
    #[inline]
    fn acknowledge(&mut self, exp_stat_sn: u32) {
        if before(self.acknowledged_stat_sn, exp_stat_sn) && !before(self.stat_sn, exp_stat_sn) {
            self.acknowledged_stat_sn = exp_stat_sn;
            if self.recovery.is_some() {
                self.forget_acknowledged(exp_stat_sn);
            }
        }
    }

    /// A request in the CmdSN order, or an immediate one beside it (section 4.2.2.1).
    #[inline]
    fn request(&mut self, bhs: &Bhs, ahs: &[u8], digest_ok: bool) -> Result<Event, Refusal> {
        let immediate = bhs.immediate();
        let ahead = if immediate {
            false
        } else {
            match self.window.arrival(bhs.cmd_sn()) {
                Arrival::Next => false,
                Arrival::Ahead => true,
                Arrival::Ignore => {
                    self.counters.requests_ignored += 1;
                    return Ok(Event::Handled);
                }
            }
        };
        // From here on: section 7.3. The CmdSN of a rejected request has not been received.
        if !digest_ok {
            self.counters.data_digest_errors += 1;
            return self.refuse(bhs, RejectReason::DATA_DIGEST_ERROR);
        }
        if immediate && self.immediates == IMMEDIATE_REQUESTS_MAX {
            return self.refuse(bhs, RejectReason::IMMEDIATE_COMMAND_REJECT);
        }
        let initiator_task_tag = bhs.initiator_task_tag();
        if let Some(other) = self.tasks.find(initiator_task_tag)
            && !matches!(self.tasks.entry(other).phase, Phase::Aborted | Phase::AbortedHeld)
        {
            return self.refuse(bhs, RejectReason::TASK_IN_PROGRESS);
        }
        let (request, data_out) = match self.parse_request(bhs, ahs) {
            Ok(parsed) => parsed,
            Err(reason) => return self.refuse(bhs, reason),
        };
        let phase = if ahead { Phase::Held } else { Phase::Active };
        let task = self.tasks.insert(request, initiator_task_tag, bhs.cmd_sn(), immediate, phase);
        let task = task.expect("the table is as large as the window and the immediate requests together");
        if let Some(data_out) = data_out {
            *self.tasks.data_out_mut(task) = data_out;
        }
        self.immediates += u32::from(immediate);
        self.texts += u32::from(bhs.opcode() == Opcode::TEXT_REQUEST);
        if ahead {
            self.window.hold(bhs.cmd_sn(), self.slot, task);
            return Ok(Event::Held { task });
        }
        if !immediate {
            self.window.deliver_next();
        }
        Ok(self.deliver(task))
    }

    /// The typed request, with the state of its incoming data when it has any.
    #[inline]
    fn parse_request(&self, bhs: &Bhs, ahs: &[u8]) -> Result<(Request, Option<DataOutState>), RejectReason> {
        match bhs.opcode() {
            Opcode::SCSI_COMMAND => return self.parse_command(bhs, ahs),
            Opcode::TASK_MANAGEMENT_REQUEST => TaskManagementRequest::parse(bhs).map(|_| ())?,
            Opcode::LOGOUT_REQUEST => {
                let logout = LogoutRequest::parse(bhs)?;
                // Section 4.3: a discovery session can only be closed as a whole.
                let discovery = self.parameters.session_type == SessionType::Discovery;
                if discovery && logout.reason != LogoutReason::CLOSE_SESSION {
                    return Err(RejectReason::PROTOCOL_ERROR);
                }
            }
            Opcode::TEXT_REQUEST => {
                TextRequest::parse(bhs).map(|_| ())?;
                // Section 11.10: one negotiation at a time, and its next request comes after our response.
                if self.texts > 0 {
                    return Err(RejectReason::PROTOCOL_ERROR);
                }
            }
            _ => NopOut::parse(bhs).map(|_| ())?,
        }
        Ok((Request::Other(*bhs), None))
    }

    #[inline]
    fn parse_command(&self, bhs: &Bhs, ahs: &[u8]) -> Result<(Request, Option<DataOutState>), RejectReason> {
        let request = ScsiCommandRequest::parse(bhs)?;
        let ahs = if ahs.is_empty() { CommandAhs::default() } else { CommandAhs::parse(ahs)? };
        let expected_read_length = match (request.read, request.write) {
            (true, false) => request.expected_data_transfer_length,
            // Section 11.3.4: both directions need both lengths.
            (true, true) => ahs.read_data_length.ok_or(RejectReason::INVALID_PDU_FIELD)?,
            _ => 0,
        };
        let command = ScsiCommand {
            lun_raw: request.lun,
            cdb: request.cdb,
            extended_cdb_len: ahs.extended_cdb_len,
            attribute: request.attribute,
            read: request.read,
            write: request.write,
            immediate: request.immediate,
            expected_data_transfer_length: request.expected_data_transfer_length,
            expected_read_length,
            initiator_task_tag: request.initiator_task_tag,
            cmd_sn: request.cmd_sn,
            immediate_len: bhs.data_segment_len() as u32,
        };
        let has_data = command.write || command.immediate_len > 0;
        let data_out = has_data.then(|| DataOutState::begin(&command, request.is_final, &self.parameters));
        Ok((Request::Scsi(command), data_out))
    }

    /// A request's turn has come: what the shard is to do with it.
    #[inline]
    fn deliver(&mut self, task: TaskId) -> Event {
        let header = match &self.tasks.entry(task).request {
            Request::Scsi(command) => {
                let has_data = command.write || command.immediate_len > 0;
                return if has_data && !self.tasks.data_out(task).is_open() {
                    self.settle(task)
                } else {
                    Event::Command { task }
                };
            }
            Request::Other(header) => *header,
        };
        match header.opcode() {
            Opcode::TASK_MANAGEMENT_REQUEST => self.deliver_task_management(task),
            Opcode::TEXT_REQUEST => Event::Text { task },
            Opcode::LOGOUT_REQUEST => self.deliver_logout(task, &header),
            _ if header.data_segment_len() == 0 => self.answer(task, Answer::Nop),
            _ => Event::NopOut { task },
        }
    }

    /// Sections 11.14 and 11.15. Which other connections the session has, the shard knows.
    fn deliver_logout(&mut self, task: TaskId, header: &Bhs) -> Event {
        let logout = LogoutRequest::parse(header).expect("parsed when it came");
        let is_ours = logout.connection_id == self.parameters.connection_id;
        match logout.reason {
            LogoutReason::CLOSE_SESSION => Event::Logout { task },
            LogoutReason::CLOSE_CONNECTION if is_ours || self.parameters.connections_max > 1 => Event::Logout { task },
            LogoutReason::CLOSE_CONNECTION => self.answer(task, Answer::Logout(LogoutResponseCode::CID_NOT_FOUND)),
            _ => self.answer(task, Answer::Logout(LogoutResponseCode::RECOVERY_NOT_SUPPORTED)),
        }
    }

    /// A NOP-Out that wants no answer: it answers our ping, or only acknowledges (section 11.18).
    fn silent_nop_out(&mut self, bhs: &Bhs) -> Result<Event, Refusal> {
        match NopOut::parse(bhs) {
            Ok(_) => Ok(Event::Handled),
            Err(reason) => self.refuse(bhs, reason),
        }
    }

    fn data_out(&mut self, bhs: &Bhs, digest_ok: bool, data_len: &mut usize) -> Result<Event, Refusal> {
        let data = match DataOut::parse(bhs) {
            Ok(data) => data,
            Err(reason) => {
                *data_len = 0;
                return self.refuse(bhs, reason);
            }
        };
        let Some(task) = self.tasks.find(data.initiator_task_tag) else {
            // The task may have ended (failed or aborted) with data underway: nobody is to blame, and nothing is to
            // be said.
            self.counters.data_out_dropped += 1;
            *data_len = 0;
            return Ok(Event::Handled);
        };
        if !matches!(&self.tasks.entry(task).request, Request::Scsi(command) if command.write) {
            *data_len = 0;
            return self.refuse(bhs, RejectReason::INVALID_PDU_FIELD);
        }
        self.take_data_out(task, bhs, &data, digest_ok, data_len)
    }

    /// A whole Data-Out for a write command.
    fn take_data_out(
        &mut self,
        task: TaskId,
        bhs: &Bhs,
        data: &DataOut,
        digest_ok: bool,
        data_len: &mut usize,
    ) -> Result<Event, Refusal> {
        let aborted = matches!(self.tasks.entry(task).phase, Phase::Aborted | Phase::AbortedHeld);
        let state = self.tasks.data_out_mut(task);
        let mut verdict = state.judge(data);
        if !digest_ok {
            // Section 7.8: Reject; the task fails once its last data has come, or asks for the data again.
            if !state.lose(data) {
                state.fail(DataError::ProtocolServiceCrc);
            }
            if verdict != Verdict::UnknownTag {
                verdict = Verdict::Drop;
            }
        }
        let burst_complete = state.take(data, verdict);
        let wanted = state.wanted();
        if verdict == Verdict::Good {
            let end = data.buffer_offset.saturating_add(data.len).min(wanted);
            let len = end.saturating_sub(data.buffer_offset);
            *data_len = len as usize;
            return Ok(Event::DataOut { task, buffer_offset: data.buffer_offset, len, burst_complete });
        }
        *data_len = 0;
        self.counters.data_out_dropped += 1;
        if !digest_ok {
            self.counters.data_digest_errors += 1;
            self.queue_reject(bhs, RejectReason::DATA_DIGEST_ERROR)?;
        } else if verdict == Verdict::UnknownTag && !aborted {
            self.queue_reject(bhs, RejectReason::INVALID_PDU_FIELD)?;
        }
        Ok(match self.settle(task) {
            Event::Handled if self.recovery.is_some() && self.wants_recovery(task) => Event::DataOutLost { task },
            event => event,
        })
    }

    /// Data of a command was lost, and can be asked for again now.
    fn wants_recovery(&self, task: TaskId) -> bool {
        self.tasks.entry(task).phase == Phase::Active && self.want_r2t(task).is_some()
    }

    /// Section 11.16: no SNACK can be served at ErrorRecoveryLevel 0. One that asks for what was never sent, or was
    /// acknowledged, breaks the protocol besides; and no Data-In of ours asks for an acknowledgement.
    fn refuse_snack(&mut self, bhs: &Bhs) -> Result<Event, Refusal> {
        let snack = SnackRequest::parse(bhs);
        let could_be_sent = match snack.kind {
            SnackKind::DATA_ACK => return self.refuse(bhs, RejectReason::INVALID_DATA_ACK),
            SnackKind::STATUS if snack.begin == 0 && snack.run_length == 0 => true,
            SnackKind::STATUS => !before(snack.begin, self.acknowledged_stat_sn) && before(snack.begin, self.stat_sn),
            SnackKind::DATA_OR_R2T | SnackKind::R_DATA => self.tasks.find(snack.initiator_task_tag).is_some(),
            _ => return self.refuse(bhs, RejectReason::INVALID_PDU_FIELD),
        };
        let reason = if could_be_sent { RejectReason::SNACK_REJECT } else { RejectReason::PROTOCOL_ERROR };
        self.refuse(bhs, reason)
    }

    /// Answer a PDU with a Reject.
    #[cold]
    fn refuse(&mut self, bhs: &Bhs, reason: RejectReason) -> Result<Event, Refusal> {
        self.queue_reject(bhs, reason)?;
        Ok(Event::Handled)
    }
}

/// Section 4.3: a discovery session serves text and logout. NOP-Out keeps it alive.
fn serves_discovery(opcode: Opcode) -> bool {
    matches!(opcode, Opcode::TEXT_REQUEST | Opcode::LOGOUT_REQUEST | Opcode::NOP_OUT | Opcode::LOGIN_REQUEST)
}

/// Whether the last four bytes are the CRC-32C of the others, least significant byte first (section 13.1).
#[inline]
fn digest_matches(bytes: &[u8]) -> bool {
    bytes.split_last_chunk::<DIGEST_LEN>().is_some_and(|(covered, digest)| crc32c(covered).to_le_bytes() == *digest)
}
