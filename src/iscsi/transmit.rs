//! The way out: what the connection sends, and where it writes it.

use core::ops::Range;

use super::connection::{Connection, LogoutWish, Ping};
use super::pdu::{
    AsyncEvent, AsyncMessage, BHS_LEN, Bhs, DIGEST_LEN, DataIn, LogoutReason, LogoutRequest, LogoutResponse,
    LogoutResponseCode, NopIn, NopOut, R2t, Reject, Residual, ScsiResponse, ScsiStatus, Sequence, ServiceResponse,
    TAG_RESERVED, TaskManagementResponse, TaskManagementResponseCode, TextResponse, pad_len,
};
use super::recovery::STATUS_DATA_MAX;
use super::task_table::{Answer, Entry, Phase, Request};
use super::transfer::{ScsiCommand, TaskId};
use crate::crc32c::{Crc32c, crc32c};

/// Sense data of one response at most (SPC-5 clause 4.4: 252 bytes).
pub const SENSE_LEN_MAX: usize = 252;

/// Data segment that is copied at most, when it does not come as payload: an Asynchronous Message's.
pub const COPIED_DATA_LEN_MAX: usize = 512;

/// The sink of outgoing PDUs: the shard's send batch together with the payload of the call in hand.
///
/// The engine asks [`room`](Transmit::room) for a whole PDU before it emits the PDU, so a PDU is never cut. Emission
/// order is wire order.
pub trait Transmit {
    /// Whether `header_bytes` bytes to copy, in at most two runs, and the payload bytes `payload` fit. `payload` is
    /// empty when the PDU has none.
    fn room(&self, header_bytes: usize, payload: Range<usize>) -> bool;

    /// Append a copy of `bytes`.
    fn bytes(&mut self, bytes: &[u8]);

    /// Append a reference to these bytes of the payload that the call is about.
    fn payload(&mut self, range: Range<usize>);

    /// The CRC-32C of these bytes of the payload. Called only when DataDigest is on, right before `payload` of the same
    /// range.
    fn payload_digest(&mut self, range: Range<usize>) -> u32;

    /// Copy these bytes of the payload: few, and only above ErrorRecoveryLevel 0, to be kept with a status.
    fn copy_payload(&self, range: Range<usize>, into: &mut [u8]);
}

/// How a command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// SCSI status.
    pub status: ScsiStatus,
    /// Bytes that the command wants to transfer (from its CDB), from which residuals follow. For a failed command:
    /// the bytes that were transferred.
    pub transfer_length: u64,
    /// Bytes that a bidirectional command wants to read; not used otherwise.
    pub read_transfer_length: u64,
}

impl Ending {
    /// GOOD, for a command that wanted to transfer this many bytes.
    #[inline]
    pub const fn good(transfer_length: u64) -> Self {
        Self { status: ScsiStatus::GOOD, transfer_length, read_transfer_length: 0 }
    }
}

/// How far `send_data_in` came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataInSent {
    /// Payload bytes used up: emitted, or beyond what the initiator expects and therefore dropped. The next call's
    /// payload starts after these.
    pub bytes: usize,
    /// Everything asked for has been emitted, the status included when an ending was given: the task is then over and
    /// its [`super::transfer::TaskId`] free.
    pub done: bool,
}

/// What a PDU carries behind its header.
pub(super) enum Data<'a> {
    /// Bytes to copy.
    Copied(&'a [u8]),
    /// A part of the payload in hand.
    Payload(Range<usize>),
}

impl Connection {
    /// Send an R2T for the first `len` bytes of [`Self::want_r2t`]'s span.
    ///
    /// # Panics
    /// When there is no such span, or `len` is zero or longer than it.
    pub fn send_r2t(&mut self, task: TaskId, len: u32, tx: &mut impl Transmit) -> bool {
        let span = self.want_r2t(task).expect("an R2T is wanted");
        assert!(len > 0 && len <= span.len);
        if !self.room(tx, &Data::Copied(&[])) {
            return false;
        }
        let target_transfer_tag = self.take_transfer_tag();
        let entry = self.tasks.entry_mut(task);
        let r2t_sn = entry.data_sn;
        entry.data_sn = r2t_sn.wrapping_add(1);
        self.tasks.data_out_mut(task).solicit(target_transfer_tag, r2t_sn, len);
        let lun = self.command(task).lun_raw;
        let r2t = R2t {
            lun,
            initiator_task_tag: self.command(task).initiator_task_tag,
            target_transfer_tag,
            r2t_sn,
            buffer_offset: span.offset,
            desired_data_transfer_length: len,
        };
        // Section 11.8: the StatSN of an R2T is the next one, and is not used up.
        self.emit(&r2t.encode(self.sequence()), Data::Copied(&[]), tx);
        true
    }

    /// Send payload of a read command, and with an `ending` its end. The payload `0..payload_len` (of `tx`) continues
    /// where the last call's stopped. Splits by the initiator's MaxRecvDataSegmentLength and MaxBurstLength; drops
    /// what exceeds the expected length. GOOD travels in the last Data-In (section 11.4.2: phase collapse); another
    /// status, or no data, takes a SCSI Response. For an ending with sense use [`Self::send_response`].
    #[inline]
    pub fn send_data_in(
        &mut self,
        task: TaskId,
        payload_len: usize,
        ending: Option<Ending>,
        tx: &mut impl Transmit,
    ) -> DataInSent {
        let entry = self.tasks.entry(task);
        assert_eq!(entry.phase, Phase::Active);
        let command = scsi(entry);
        let expected = command.expected_read_length;
        let usable = payload_len.min((expected - entry.data_in_offset) as usize);
        // A sequence that was begun without F can still take an empty PDU to end it and carry the status.
        let begun = entry.sequence_left != 0;
        let collapsed =
            ending.filter(|ending| ending.status == ScsiStatus::GOOD && !command.write && (usable > 0 || begun));
        let residual = collapsed.map(|ending| Residual::of(expected, ending.transfer_length));
        let mut at = 0;
        loop {
            let len = self.data_in_len(task, usable - at);
            let is_last = at + len == usable && residual.is_some();
            if len == 0 && !is_last {
                break;
            }
            if !self.room(tx, &Data::Payload(at..at + len)) {
                return DataInSent { bytes: at, done: false };
            }
            let status = residual.filter(|_| is_last).map(|residual| (ScsiStatus::GOOD, residual));
            self.emit_data_in(task, at..at + len, expected, status, tx);
            at += len;
            if is_last {
                return DataInSent { bytes: payload_len, done: true };
            }
        }
        let done = match ending {
            Some(ending) => self.send_response(task, ending, &[], tx),
            None => true,
        };
        DataInSent { bytes: payload_len, done }
    }

    /// Send all the data of a read command, which is as long as the initiator expects and fits one PDU, with GOOD in
    /// that PDU: what most reads come to. It is payload `0..` of `tx`. The task is over then; false: there is no room.
    /// Only at ErrorRecoveryLevel 0, where no status is kept.
    ///
    /// # Panics
    /// When some of the data was sent before, one PDU does not hold it, or the command is bidirectional: faults of the
    /// caller.
    #[inline]
    pub fn send_whole_data_in(&mut self, task: TaskId, tx: &mut impl Transmit) -> bool {
        let entry = self.tasks.entry(task);
        let data_segment_len = scsi(entry).expected_read_length as usize;
        assert!(entry.phase == Phase::Active && entry.data_sn == 0 && self.recovery.is_none() && !scsi(entry).write);
        assert!(data_segment_len > 0 && self.data_in_len(task, data_segment_len) == data_segment_len);
        if !self.room(tx, &Data::Payload(0..data_segment_len)) {
            return false;
        }
        let data_in = DataIn {
            is_final: true,
            status: Some((ScsiStatus::GOOD, Residual::None)),
            initiator_task_tag: entry.initiator_task_tag,
            data_segment_len,
            ..DataIn::default()
        };
        self.finish(task);
        let sequence = self.status_sequence();
        self.emit(&data_in.encode(sequence), Data::Payload(0..data_segment_len), tx);
        true
    }

    /// Bytes of the next Data-In when `left` are to go: bounded by what the initiator takes in one PDU and by the
    /// sequence.
    #[inline]
    fn data_in_len(&self, task: TaskId, left: usize) -> usize {
        let entry = self.tasks.entry(task);
        let sequence_left =
            if entry.sequence_left == 0 { self.parameters.max_burst_length } else { entry.sequence_left };
        left.min(sequence_left as usize).min(self.parameters.initiator_max_recv_data_segment_length as usize)
    }

    /// One Data-In (section 11.7). With a status the task is over.
    #[inline]
    fn emit_data_in(
        &mut self,
        task: TaskId,
        range: Range<usize>,
        expected: u32,
        status: Option<(ScsiStatus, Residual)>,
        tx: &mut impl Transmit,
    ) {
        let max_burst_length = self.parameters.max_burst_length;
        if self.recovery.is_some() {
            let longest = self.data_in_len(task, usize::MAX) as u32;
            self.note_data_in(task, range.len() as u32, longest, status.map(|(_, residual)| residual));
        }
        let entry = self.tasks.entry_mut(task);
        let (data_sn, buffer_offset) = (entry.data_sn, entry.data_in_offset);
        let sequence_left = if entry.sequence_left == 0 { max_burst_length } else { entry.sequence_left };
        entry.data_sn = data_sn.wrapping_add(1);
        entry.data_in_offset += range.len() as u32;
        entry.sequence_left = sequence_left - range.len() as u32;
        // Section 13.13 and 11.7.1: F ends each sequence of at most MaxBurstLength, and the last at the end of the
        // data.
        let is_final = status.is_some() || entry.sequence_left == 0 || entry.data_in_offset == expected;
        if is_final {
            entry.sequence_left = 0;
        }
        let initiator_task_tag = entry.initiator_task_tag;
        let mut sequence = Sequence::default();
        let acknowledge = self.acknowledge_by(task, is_final && status.is_none());
        let kept = (self.recovery.is_some() && status.is_some()).then_some(task);
        if status.is_some() {
            if kept.is_none() {
                self.finish(task);
            }
            sequence.stat_sn = self.take_stat_sn();
        }
        sequence.exp_cmd_sn = self.window.exp_cmd_sn();
        sequence.max_cmd_sn = self.window.max_cmd_sn();
        let data_segment_len = range.len();
        let data_in =
            DataIn { is_final, status, acknowledge, initiator_task_tag, data_sn, buffer_offset, data_segment_len };
        let bhs = data_in.encode(sequence);
        self.emit(&bhs, Data::Payload(range), tx);
        if kept.is_some() {
            self.keep(&bhs, None, kept);
        }
    }

    /// Send a SCSI Response, which ends the task. `sense` is the sense data without length prefix, at most
    /// [`SENSE_LEN_MAX`] bytes, often empty.
    pub fn send_response(&mut self, task: TaskId, ending: Ending, sense: &[u8], tx: &mut impl Transmit) -> bool {
        let entry = self.tasks.entry(task);
        assert_eq!(entry.phase, Phase::Active);
        // Section 11.4.8: Data-In and R2T PDUs are counted, but a command without Data-In says 0.
        let exp_data_sn = if entry.data_in_offset > 0 { entry.data_sn } else { 0 };
        let (residual, read_residual) = residuals(scsi(entry), &ending);
        // Section 11.4.7: SenseLength before the sense data.
        let mut segment = [0; 2 + SENSE_LEN_MAX];
        let segment = if sense.is_empty() {
            &[]
        } else {
            segment[..2].copy_from_slice(&(sense.len() as u16).to_be_bytes());
            segment[2..2 + sense.len()].copy_from_slice(sense);
            &segment[..2 + sense.len()]
        };
        if !self.room(tx, &Data::Copied(segment)) {
            return false;
        }
        let response = ScsiResponse {
            response: ServiceResponse::COMPLETED,
            status: ending.status,
            initiator_task_tag: entry.initiator_task_tag,
            exp_data_sn,
            residual,
            read_residual,
            data_segment_len: segment.len(),
        };
        // Data-In may be asked for again until the status is acknowledged.
        let kept = (self.recovery.is_some() && exp_data_sn > 0).then_some(task);
        if kept.is_none() {
            self.finish(task);
        }
        let sequence = self.status_sequence();
        self.emit_status(&response.encode(sequence), Data::Copied(segment), kept, tx);
        true
    }

    /// Answer a task management request.
    pub fn send_task_management_response(
        &mut self,
        task: TaskId,
        response: TaskManagementResponseCode,
        tx: &mut impl Transmit,
    ) -> bool {
        let header = *self.header(task);
        if !self.room(tx, &Data::Copied(&[])) {
            return false;
        }
        self.finish(task);
        let pdu = TaskManagementResponse { response, initiator_task_tag: header.initiator_task_tag() };
        let sequence = self.status_sequence();
        self.emit_status(&pdu.encode(sequence), Data::Copied(&[]), None, tx);
        true
    }

    /// Answer a Text Request with the text `0..payload_len` of `tx`, at most the initiator's
    /// MaxRecvDataSegmentLength. Not final: `target_transfer_tag` is for the initiator's next request; final: it must
    /// be the reserved tag (section 11.11.4).
    pub fn send_text_response(
        &mut self,
        task: TaskId,
        is_final: bool,
        continues: bool,
        target_transfer_tag: u32,
        payload_len: usize,
        tx: &mut impl Transmit,
    ) -> bool {
        assert_eq!(is_final, target_transfer_tag == TAG_RESERVED);
        assert!(!(is_final && continues), "section 11.11.2");
        assert!(payload_len <= self.parameters.initiator_max_recv_data_segment_length as usize);
        let header = *self.header(task);
        if !self.room(tx, &Data::Payload(0..payload_len)) {
            return false;
        }
        self.finish(task);
        let pdu = TextResponse {
            is_final,
            continues,
            lun: if is_final { [0; 8] } else { header.lun() },
            initiator_task_tag: header.initiator_task_tag(),
            target_transfer_tag,
            data_segment_len: payload_len,
        };
        let sequence = self.status_sequence();
        self.emit_status(&pdu.encode(sequence), Data::Payload(0..payload_len), None, tx);
        true
    }

    /// Answer a logout. After `CLOSED` nothing more is received or sent.
    pub fn send_logout_response(&mut self, task: TaskId, response: LogoutResponseCode, tx: &mut impl Transmit) -> bool {
        let header = *self.header(task);
        if !self.room(tx, &Data::Copied(&[])) {
            return false;
        }
        self.finish(task);
        // Another connection may have been closed; then this one goes on.
        let closes_this = LogoutRequest::parse(&header).is_ok_and(|logout| {
            logout.reason == LogoutReason::CLOSE_SESSION || logout.connection_id == self.parameters.connection_id
        });
        self.logged_out |= response == LogoutResponseCode::CLOSED && closes_this;
        let pdu = LogoutResponse {
            response,
            initiator_task_tag: header.initiator_task_tag(),
            time2wait: self.parameters.default_time2wait,
            time2retain: self.parameters.default_time2retain,
        };
        let sequence = self.status_sequence();
        self.emit_status(&pdu.encode(sequence), Data::Copied(&[]), None, tx);
        true
    }

    /// Answer a ping with the data `0..payload_len` of `tx`, which is what came; cut to the initiator's
    /// MaxRecvDataSegmentLength (section 11.18).
    pub fn send_nop_in(&mut self, task: TaskId, payload_len: usize, tx: &mut impl Transmit) -> bool {
        let header = *self.header(task);
        let nop_out = NopOut::parse(&header).expect("parsed when it came");
        let len = payload_len.min(self.parameters.initiator_max_recv_data_segment_length as usize);
        if !self.room(tx, &Data::Payload(0..len)) {
            return false;
        }
        self.finish(task);
        let pdu = NopIn {
            lun: nop_out.lun,
            initiator_task_tag: nop_out.initiator_task_tag,
            target_transfer_tag: TAG_RESERVED,
            data_segment_len: len,
        };
        let sequence = self.status_sequence();
        self.emit_status(&pdu.encode(sequence), Data::Payload(0..len), None, tx);
        true
    }

    /// Send an Asynchronous Message. `message.data_segment_len` must be `data.len()`; `data` (sense behind its
    /// two-byte length for [`AsyncEvent::SCSI`]) is copied, at most [`COPIED_DATA_LEN_MAX`] bytes.
    pub fn send_async_message(&mut self, message: &AsyncMessage, data: &[u8], tx: &mut impl Transmit) -> bool {
        assert_eq!(message.data_segment_len, data.len());
        assert!(data.len() <= COPIED_DATA_LEN_MAX);
        if !self.room(tx, &Data::Copied(data)) {
            return false;
        }
        let sequence = self.status_sequence();
        self.emit_status(&message.encode(sequence), Data::Copied(data), None, tx);
        true
    }

    /// Whether `poll_transmit` has something to emit.
    #[inline]
    pub fn wants_transmit(&self) -> bool {
        self.answers.front().is_some()
            || self.rejects.front().is_some()
            || matches!(self.ping, Ping::Due { .. })
            || !self.terminations.is_empty()
            || !self.drops.is_empty()
            || self.recovery.as_ref().is_some_and(|recovery| recovery.wants_transmit())
            || matches!(self.logout_wish, LogoutWish::Due { .. })
    }

    /// Emit what the engine owes by itself: Rejects, answers to empty pings, pings of ours, logout requests and task
    /// management answers that need no shard. False when the sink was full before all was emitted.
    pub fn poll_transmit(&mut self, tx: &mut impl Transmit) -> bool {
        if self.logged_out {
            return true;
        }
        while let Some((header, reason)) = self.rejects.front() {
            if !self.send_reject(&header, reason, tx) {
                return false;
            }
            self.rejects.pop();
        }
        while let Some(task) = self.answers.front() {
            if !self.send_answer(task, tx) {
                return false;
            }
            self.answers.pop();
        }
        self.send_again(tx) && self.send_wishes(tx)
    }

    /// Section 11.17: the header of the PDU goes back, and the Reject takes a StatSN of its own.
    fn send_reject(&mut self, header: &Bhs, reason: super::pdu::RejectReason, tx: &mut impl Transmit) -> bool {
        if !self.room(tx, &Data::Copied(&header.0)) {
            return false;
        }
        let reject = Reject { reason, data_segment_len: BHS_LEN };
        let sequence = self.status_sequence();
        self.emit_status(&reject.encode(sequence), Data::Copied(&header.0), None, tx);
        true
    }

    fn send_answer(&mut self, task: TaskId, tx: &mut impl Transmit) -> bool {
        let Phase::Answering(answer) = self.tasks.entry(task).phase else {
            unreachable!("only requests that the engine answers are queued");
        };
        match answer {
            Answer::Nop => self.send_nop_in(task, 0, tx),
            Answer::TaskManagement(response) => self.send_task_management_response(task, response, tx),
            Answer::Logout(response) => self.send_logout_response(task, response, tx),
        }
    }

    /// What we want from the initiator: a logout, a sign of life.
    fn send_wishes(&mut self, tx: &mut impl Transmit) -> bool {
        if let LogoutWish::Due { seconds, deadline_ms } = self.logout_wish {
            let message =
                AsyncMessage { event: AsyncEvent::LOGOUT_REQUEST, parameter3: seconds, ..AsyncMessage::default() };
            if !self.send_async_message(&message, &[], tx) {
                return false;
            }
            self.logout_wish = LogoutWish::Sent { deadline_ms };
        }
        while let Some(&lun) = self.terminations.first() {
            let message = AsyncMessage { event: AsyncEvent::TASK_TERMINATION, lun, ..AsyncMessage::default() };
            if !self.send_async_message(&message, &[], tx) {
                return false;
            }
            self.terminations.remove(0);
        }
        while let Some(&connection_id) = self.drops.first() {
            let message = AsyncMessage {
                event: AsyncEvent::CONNECTION_DROP,
                parameter1: connection_id,
                parameter2: self.parameters.default_time2wait,
                parameter3: self.parameters.default_time2retain,
                ..AsyncMessage::default()
            };
            if !self.send_async_message(&message, &[], tx) {
                return false;
            }
            self.drops.remove(0);
        }
        if let Ping::Due { since_ms } = self.ping {
            if !self.room(tx, &Data::Copied(&[])) {
                return false;
            }
            let target_transfer_tag = self.take_transfer_tag();
            let pdu = NopIn { lun: [0; 8], initiator_task_tag: TAG_RESERVED, target_transfer_tag, data_segment_len: 0 };
            // Section 11.19.2: without an Initiator Task Tag the StatSN is the next one, and is not used up.
            self.emit(&pdu.encode(self.sequence()), Data::Copied(&[]), tx);
            self.ping = Ping::Sent { since_ms };
        }
        true
    }

    /// The numbers of a PDU that carries no status.
    #[inline]
    pub(super) fn sequence(&self) -> Sequence {
        Sequence { stat_sn: self.stat_sn, exp_cmd_sn: self.window.exp_cmd_sn(), max_cmd_sn: self.window.max_cmd_sn() }
    }

    /// The numbers of a PDU that carries a status, and so uses up a StatSN (section 4.2.2.2).
    #[inline]
    fn status_sequence(&mut self) -> Sequence {
        let sequence = self.sequence();
        self.take_stat_sn();
        sequence
    }

    #[inline]
    fn take_stat_sn(&mut self) -> u32 {
        let stat_sn = self.stat_sn;
        self.stat_sn = stat_sn.wrapping_add(1);
        stat_sn
    }

    /// Whether a whole PDU with this data fits.
    #[inline]
    pub(super) fn room(&self, tx: &impl Transmit, data: &Data<'_>) -> bool {
        let header_digest_len = if self.parameters.header_digest { DIGEST_LEN } else { 0 };
        let data_digest_len = if self.parameters.data_digest { DIGEST_LEN } else { 0 };
        let fixed = BHS_LEN + header_digest_len;
        match data {
            Data::Copied([]) => tx.room(fixed, 0..0),
            Data::Copied(bytes) => tx.room(fixed + bytes.len() + pad_len(bytes.len()) + data_digest_len, 0..0),
            Data::Payload(range) if range.is_empty() => tx.room(fixed, 0..0),
            Data::Payload(range) => tx.room(fixed + pad_len(range.len()) + data_digest_len, range.clone()),
        }
    }

    /// The same for a PDU that has used up a StatSN, which is kept where it may be asked for again; `task`, if its task
    /// is kept with it.
    fn emit_status(&mut self, bhs: &Bhs, data: Data<'_>, task: Option<TaskId>, tx: &mut impl Transmit) {
        if self.recovery.is_some() {
            let mut copy = [0; STATUS_DATA_MAX];
            let kept = match &data {
                Data::Copied(bytes) => Some(*bytes),
                Data::Payload(range) if range.is_empty() => Some(&[][..]),
                Data::Payload(range) if range.len() <= copy.len() => {
                    tx.copy_payload(range.clone(), &mut copy[..range.len()]);
                    Some(&copy[..range.len()])
                }
                Data::Payload(_) => None,
            };
            self.keep(bhs, kept, task);
        }
        self.emit(bhs, data, tx);
    }

    /// Keep a status; its task ends at once where that is not possible.
    fn keep(&mut self, bhs: &Bhs, data: Option<&[u8]>, task: Option<TaskId>) {
        let kept = self.keep_status(bhs, data, task);
        if let Some(task) = task {
            if kept {
                self.tasks.entry_mut(task).phase = Phase::Kept;
            } else {
                self.finish(task);
            }
        }
    }

    /// Write one PDU, with digests as negotiated (section 11.2.3 and 11.2.4; padding is zeros and digested).
    #[inline]
    pub(super) fn emit(&self, bhs: &Bhs, data: Data<'_>, tx: &mut impl Transmit) {
        tx.bytes(&bhs.0);
        if self.parameters.header_digest {
            tx.bytes(&crc32c(&bhs.0).to_le_bytes());
        }
        let (len, mut digest) = match &data {
            Data::Copied(bytes) => (bytes.len(), None),
            Data::Payload(range) => (range.len(), None),
        };
        if len == 0 {
            return;
        }
        match data {
            Data::Copied(bytes) => {
                if self.parameters.data_digest {
                    digest = Some(Crc32c::continuing(crc32c(bytes)));
                }
                tx.bytes(bytes);
            }
            Data::Payload(range) => {
                if self.parameters.data_digest {
                    digest = Some(Crc32c::continuing(tx.payload_digest(range.clone())));
                }
                tx.payload(range);
            }
        }
        let pad = pad_len(len);
        let mut trailer = [0; 3 + DIGEST_LEN];
        let mut trailer_len = pad;
        if let Some(mut digest) = digest {
            digest.update(&trailer[..pad]);
            trailer[pad..pad + DIGEST_LEN].copy_from_slice(&digest.value().to_le_bytes());
            trailer_len += DIGEST_LEN;
        }
        if trailer_len > 0 {
            tx.bytes(&trailer[..trailer_len]);
        }
    }
}

#[inline]
pub(super) fn scsi(entry: &Entry) -> &ScsiCommand {
    match &entry.request {
        Request::Scsi(command) => command,
        Request::Other(_) => panic!("the task is not a SCSI command"),
    }
}

/// Section 11.4.5: the residual of the only direction (or of none), and for a bidirectional command that of each.
fn residuals(command: &ScsiCommand, ending: &Ending) -> (Residual, Residual) {
    let residual = Residual::of(command.expected_data_transfer_length, ending.transfer_length);
    let read_residual = if command.read && command.write {
        Residual::of(command.expected_read_length, ending.read_transfer_length)
    } else {
        Residual::None
    };
    (residual, read_residual)
}
