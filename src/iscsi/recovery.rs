//! Recovery within a connection: ErrorRecoveryLevel 1 (RFC 7143 sections 7.2, 7.8 and 11.16), as far as it is the
//! engine's.
//!
//! What was sent is kept as numbers, not as data: a status with its header and sense until it is acknowledged; of
//! Data-In only where each PDU began, so that the shard can read the medium again. A read keeps its task (and its place
//! in the window) until its status is acknowledged. Data-Out that was lost is asked for again by `transfer.rs`.
//!
//! May know: the connection.

use super::command_window::before;
use super::connection::Connection;
use super::pdu::{
    Bhs, DataIn, R2t, RejectReason, Residual, ScsiResponse, ScsiStatus, Sequence, ServiceResponse, SnackKind,
    SnackRequest, TAG_RESERVED,
};
use super::receive::Event;
use super::refusal::Refusal;
use super::task_table::{Phase, Request};
use super::transfer::{TASKS_MAX, TaskId};
use super::transmit::{COPIED_DATA_LEN_MAX, Data, Transmit};

/// Statuses that are kept: those of all tasks, and as many again of immediate requests.
const STATUSES_MAX: usize = 2 * TASKS_MAX;

/// Data of a status that is kept: sense, or a rejected header.
pub(super) const STATUS_DATA_MAX: usize = 256;
const _: () = assert!(STATUS_DATA_MAX <= COPIED_DATA_LEN_MAX);

/// Unacknowledged statuses from which on the initiator is asked for its ExpStatSN, so that kept tasks do not close the
/// window.
const SOLICIT_STATUSES: usize = TASKS_MAX / 4;

/// Places at which the cutting of one command's Data-In begins anew: its windows, and some.
const CUTS_MAX: usize = 40;

/// SNACKs for data that may wait.
const SNACKS_MAX: usize = 8;

/// A status that was sent.
struct SentStatus {
    stat_sn: u32,
    bhs: Bhs,
    data: [u8; STATUS_DATA_MAX],
    /// Bytes of `data`; `None`: they were not kept.
    len: Option<usize>,
    /// The read that it ended, whose task is kept with it.
    task: Option<TaskId>,
}

/// How one command's Data-In was cut into PDUs.
#[derive(Clone)]
struct Cuts {
    /// DataSN and offset of PDUs before which one was shorter than it could have been.
    at: [(u32, u32); CUTS_MAX],
    /// How many there are; more than fit: nothing can be sent again.
    count: usize,
    /// What bounded the PDUs.
    segment_len_max: u32,
    /// The last PDU was shorter than it could have been.
    short: bool,
    /// DataSN before this one was acknowledged.
    acknowledged: u32,
    /// The status in the last PDU.
    status: Option<(u32, Residual)>,
}

impl Cuts {
    const NONE: Self =
        Self { at: [(0, 0); CUTS_MAX], count: 0, segment_len_max: 0, short: false, acknowledged: 0, status: None };
}

/// A SNACK for Data-In: the PDUs of a task that are to be sent again.
struct DataSnack {
    task: TaskId,
    generation: u32,
    header: Bhs,
    next: u32,
    end: u32,
    /// The SNACK Tag of an R-Data SNACK: everything is cut anew, and the status says so.
    cuts_anew: Option<u32>,
    /// The shard is at it.
    running: bool,
}

/// What a connection at ErrorRecoveryLevel 1 keeps.
pub(super) struct Recovery {
    statuses: std::collections::VecDeque<SentStatus>,
    /// StatSN of statuses to be sent again.
    resend: Option<(u32, u32)>,
    cuts: Box<[Cuts]>,
    snacks: Vec<DataSnack>,
    /// R2Ts to be sent again: task, generation, R2TSN from and to.
    r2ts: Vec<(TaskId, u32, u32, u32)>,
}

/// Data that the shard is to read again, in bytes of the command's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResendSpan {
    /// The first byte.
    pub offset: u32,
    /// How many.
    pub len: u32,
}

impl Recovery {
    pub(super) fn new() -> Self {
        Self {
            statuses: std::collections::VecDeque::with_capacity(STATUSES_MAX),
            resend: None,
            cuts: vec![Cuts::NONE; TASKS_MAX].into_boxed_slice(),
            snacks: Vec::with_capacity(SNACKS_MAX),
            r2ts: Vec::with_capacity(SNACKS_MAX),
        }
    }

    pub(super) fn wants_transmit(&self) -> bool {
        self.resend.is_some() || !self.r2ts.is_empty()
    }
}

/// Keeping what may have to be sent again.
impl Connection {
    /// A Data-In goes out: remember where it begins, as far as that does not follow from the others.
    pub(super) fn note_data_in(&mut self, task: TaskId, len: u32, longest: u32, status: Option<Residual>) {
        let entry = self.tasks.entry(task);
        let (data_sn, offset) = (entry.data_sn, entry.data_in_offset);
        let stat_sn = self.stat_sn;
        let segment_len_max = self.parameters.initiator_max_recv_data_segment_length;
        let Some(recovery) = &mut self.recovery else { return };
        let cuts = &mut recovery.cuts[usize::from(task.0)];
        if data_sn == 0 {
            *cuts = Cuts { segment_len_max, count: 1, ..Cuts::NONE };
        }
        if cuts.segment_len_max != segment_len_max {
            // Section 13.12: it may change at any time. What was sent in other sizes cannot be sent again.
            cuts.count = CUTS_MAX + 1;
        } else if cuts.short && cuts.count < CUTS_MAX {
            cuts.at[cuts.count] = (data_sn, offset);
            cuts.count += 1;
        } else if cuts.short {
            cuts.count = CUTS_MAX + 1;
        }
        cuts.short = len < longest;
        cuts.status = status.map(|residual| (stat_sn, residual));
    }

    /// A status goes out. True when its task is kept until it is acknowledged.
    pub(super) fn keep_status(&mut self, bhs: &Bhs, data: Option<&[u8]>, task: Option<TaskId>) -> bool {
        let Some(recovery) = &mut self.recovery else { return false };
        if recovery.statuses.len() == STATUSES_MAX && recovery.statuses[0].task.is_none() {
            recovery.statuses.pop_front();
        }
        let mut kept = [0; STATUS_DATA_MAX];
        let data = data.filter(|data| data.len() <= STATUS_DATA_MAX);
        if let Some(data) = data {
            kept[..data.len()].copy_from_slice(data);
        }
        let len = data.map(<[u8]>::len);
        let stat_sn = bhs.u32_at(24);
        if recovery.statuses.len() == STATUSES_MAX {
            return false;
        }
        recovery.statuses.push_back(SentStatus { stat_sn, bhs: *bhs, data: kept, len, task });
        if recovery.statuses.len() >= SOLICIT_STATUSES {
            self.solicit_acknowledgement(self.last_heard_ms);
        }
        task.is_some()
    }

    /// Statuses before this StatSN have arrived: the tasks that were kept for them end.
    pub(super) fn forget_acknowledged(&mut self, exp_stat_sn: u32) {
        loop {
            let Some(recovery) = &mut self.recovery else { return };
            if !recovery.statuses.front().is_some_and(|status| before(status.stat_sn, exp_stat_sn)) {
                return;
            }
            let task = recovery.statuses.pop_front().and_then(|status| status.task);
            let Some(task) = task else { continue };
            if recovery.snacks.iter().any(|snack| snack.task == task && snack.running) {
                self.tasks.entry_mut(task).phase = Phase::Acknowledged;
                continue;
            }
            recovery.snacks.retain(|snack| snack.task != task);
            self.finish(task);
        }
    }
}

/// SNACK, and sending again.
impl Connection {
    /// A SNACK at ErrorRecoveryLevel 1 (section 11.16). What was never sent, or was acknowledged, breaks the protocol.
    pub(super) fn snack(&mut self, bhs: &Bhs) -> Result<Event, Refusal> {
        let snack = SnackRequest::parse(bhs);
        let result = match snack.kind {
            SnackKind::STATUS => self.snack_status(&snack),
            SnackKind::DATA_OR_R2T => self.snack_data(bhs, &snack),
            SnackKind::DATA_ACK => self.data_ack(bhs, &snack),
            SnackKind::R_DATA => self.snack_anew(bhs, &snack),
            _ => Err(RejectReason::INVALID_PDU_FIELD),
        };
        match result {
            Ok(()) => Ok(Event::Handled),
            Err(reason) => {
                self.queue_reject(bhs, reason)?;
                Ok(Event::Handled)
            }
        }
    }

    fn snack_status(&mut self, snack: &SnackRequest) -> Result<(), RejectReason> {
        let (begin, end) = match (snack.begin, snack.run_length) {
            // Section 11.16.5: all that is not acknowledged.
            (0, 0) => (self.acknowledged_stat_sn, self.stat_sn),
            (begin, 0) => (begin, self.stat_sn),
            (begin, length) => (begin, begin.wrapping_add(length)),
        };
        let was_sent = !before(begin, self.acknowledged_stat_sn) && !before(self.stat_sn, end) && !before(end, begin);
        let Some(recovery) = self.recovery.as_mut().filter(|_| was_sent) else {
            return Err(RejectReason::PROTOCOL_ERROR);
        };
        let is_kept = |stat_sn: u32| {
            let status = recovery.statuses.iter().find(|status| status.stat_sn == stat_sn);
            status.is_some_and(|status| status.len.is_some() || status.task.is_some())
        };
        let mut stat_sn = begin;
        while stat_sn != end {
            if !is_kept(stat_sn) {
                return Err(RejectReason::SNACK_REJECT);
            }
            stat_sn = stat_sn.wrapping_add(1);
        }
        recovery.resend = match recovery.resend {
            Some((from, to)) => {
                Some((if before(begin, from) { begin } else { from }, if before(to, end) { end } else { to }))
            }
            None if begin == end => None,
            None => Some((begin, end)),
        };
        Ok(())
    }

    fn snack_data(&mut self, bhs: &Bhs, snack: &SnackRequest) -> Result<(), RejectReason> {
        let task = self.tasks.find(snack.initiator_task_tag).ok_or(RejectReason::PROTOCOL_ERROR)?;
        let entry = self.tasks.entry(task);
        let (sent, generation) = (entry.data_sn, entry.generation);
        let (begin, end) = match snack.run_length {
            0 => (snack.begin, sent),
            length => (snack.begin, snack.begin.saturating_add(length)),
        };
        let Request::Scsi(command) = &entry.request else { return Err(RejectReason::PROTOCOL_ERROR) };
        let is_write = command.write;
        let alive = matches!(entry.phase, Phase::Active | Phase::Kept);
        let Some(recovery) = self.recovery.as_mut().filter(|_| alive && begin < end && end <= sent) else {
            return Err(RejectReason::PROTOCOL_ERROR);
        };
        if is_write {
            if recovery.r2ts.len() == SNACKS_MAX {
                return Err(RejectReason::SNACK_REJECT);
            }
            recovery.r2ts.push((task, generation, begin, end));
            return Ok(());
        }
        let cuts = &recovery.cuts[usize::from(task.0)];
        if begin < cuts.acknowledged {
            return Err(RejectReason::PROTOCOL_ERROR);
        }
        // Section 11.16: where it declares less now than it did, the initiator has to ask by R-Data SNACK.
        let too_long = cuts.segment_len_max > self.parameters.initiator_max_recv_data_segment_length;
        if too_long || cuts.count > CUTS_MAX || recovery.snacks.len() == SNACKS_MAX {
            return Err(RejectReason::SNACK_REJECT);
        }
        let header = *bhs;
        recovery.snacks.push(DataSnack { task, generation, header, next: begin, end, cuts_anew: None, running: false });
        Ok(())
    }

    /// An R-Data SNACK (section 11.16.3): all Data-In that is not acknowledged, cut by what the initiator declares now.
    fn snack_anew(&mut self, bhs: &Bhs, snack: &SnackRequest) -> Result<(), RejectReason> {
        let snack_tag = bhs.target_transfer_tag();
        let task = self.tasks.find(snack.initiator_task_tag).ok_or(RejectReason::PROTOCOL_ERROR)?;
        let entry = self.tasks.entry(task);
        let (sent, generation) = (entry.data_sn, entry.generation);
        let Request::Scsi(command) = &entry.request else { return Err(RejectReason::PROTOCOL_ERROR) };
        let asks_for_data = command.read && !command.write && sent > 0 && snack_tag != TAG_RESERVED;
        let alive = matches!(entry.phase, Phase::Active | Phase::Kept) && snack.begin == 0 && snack.run_length == 0;
        let Some(recovery) = self.recovery.as_mut().filter(|_| alive && asks_for_data) else {
            return Err(RejectReason::PROTOCOL_ERROR);
        };
        let cuts = &recovery.cuts[usize::from(task.0)];
        if (cuts.count > CUTS_MAX && cuts.acknowledged > 0) || recovery.snacks.len() == SNACKS_MAX {
            return Err(RejectReason::SNACK_REJECT);
        }
        let (header, cuts_anew) = (*bhs, Some(snack_tag));
        recovery.snacks.push(DataSnack { task, generation, header, next: 0, end: 0, cuts_anew, running: false });
        Ok(())
    }

    /// Number the Data-In of a read anew from what is acknowledged on. DataSN of the first and behind the last.
    fn cut_anew(&mut self, task: TaskId) -> (u32, u32) {
        let segment_len_max = self.parameters.initiator_max_recv_data_segment_length;
        let max_burst_length = self.parameters.max_burst_length;
        let Some(recovery) = &self.recovery else { return (0, 0) };
        let (first, status) = {
            let cuts = &recovery.cuts[usize::from(task.0)];
            (cuts.acknowledged, cuts.status)
        };
        let start = if first == 0 { 0 } else { self.sent_pdu(task, first).map_or(0, |(offset, _)| offset) };
        let end = self.tasks.entry(task).data_in_offset;
        let (mut data_sn, mut offset) = (first, start);
        while offset < end {
            offset += segment_len_max.min(max_burst_length - offset % max_burst_length).min(end - offset);
            data_sn += 1;
        }
        self.tasks.entry_mut(task).data_sn = data_sn;
        let mut at = Cuts::NONE.at;
        at[0] = (first, start);
        if let Some(recovery) = &mut self.recovery {
            let cuts = &mut recovery.cuts[usize::from(task.0)];
            *cuts = Cuts { at, count: 1, segment_len_max, acknowledged: first, ..Cuts::NONE };
        }
        self.respond_apart(task, status.map(|(_, residual)| residual));
        (first, data_sn)
    }

    /// The status that went with a read's last Data-In becomes a SCSI Response of the same StatSN.
    fn respond_apart(&mut self, task: TaskId, in_data: Option<Residual>) {
        let entry = self.tasks.entry(task);
        let (initiator_task_tag, exp_data_sn) = (entry.initiator_task_tag, entry.data_sn);
        let Some(recovery) = &mut self.recovery else { return };
        let Some(kept) = recovery.statuses.iter_mut().find(|kept| kept.task == Some(task)) else { return };
        if let Some(residual) = in_data {
            let response = ScsiResponse {
                response: ServiceResponse::COMPLETED,
                status: ScsiStatus::GOOD,
                initiator_task_tag,
                exp_data_sn,
                residual,
                read_residual: Residual::None,
                data_segment_len: 0,
            };
            kept.bhs = response.encode(Sequence { stat_sn: kept.stat_sn, ..Sequence::default() });
            kept.len = Some(0);
        }
        kept.bhs.set_u32(36, exp_data_sn);
    }

    /// Section 11.16.1: Data-In before this DataSN has arrived, as its A bit had asked to be told.
    fn data_ack(&mut self, bhs: &Bhs, snack: &SnackRequest) -> Result<(), RejectReason> {
        const INVALID: RejectReason = RejectReason::INVALID_DATA_ACK;
        // The Target Transfer Tag of our Data-In with the A bit is its task's number and generation.
        let tag = bhs.target_transfer_tag();
        let task = TaskId((tag & 0xffff) as u16);
        if usize::from(task.0) >= TASKS_MAX {
            return Err(INVALID);
        }
        let entry = self.tasks.entry(task);
        let is_ours = entry.generation & 0x7fff == tag >> 16 && matches!(entry.phase, Phase::Active | Phase::Kept);
        let sent = entry.data_sn;
        let Some(recovery) = self.recovery.as_mut().filter(|_| is_ours) else { return Err(INVALID) };
        let acknowledged = &mut recovery.cuts[usize::from(task.0)].acknowledged;
        if snack.begin < *acknowledged || snack.begin > sent || snack.run_length != 0 {
            return Err(INVALID);
        }
        *acknowledged = snack.begin;
        Ok(())
    }

    /// The tag of a Data-In with the A bit.
    pub(super) fn acknowledgement_tag(&self, task: TaskId) -> u32 {
        (self.tasks.entry(task).generation & 0x7fff) << 16 | u32::from(task.0)
    }

    /// Emit statuses and R2Ts that are to be sent again. False when there was no room.
    pub(super) fn send_again(&mut self, tx: &mut impl Transmit) -> bool {
        while let Some((next, end)) = self.recovery.as_ref().and_then(|recovery| recovery.resend) {
            if !self.send_status_again(next, tx) {
                return false;
            }
            if let Some(recovery) = &mut self.recovery {
                let after = next.wrapping_add(1);
                recovery.resend = (after != end).then_some((after, end));
            }
        }
        while let Some((task, generation, begin, end)) = self.recovery.as_ref().and_then(|r| r.r2ts.first().copied()) {
            let entry = self.tasks.entry(task);
            let alive = entry.generation == generation && entry.phase == Phase::Active;
            let bursts = if alive { self.tasks.data_out(task).solicited(begin, end) } else { Default::default() };
            for (target_transfer_tag, r2t_sn, buffer_offset, len) in bursts.into_iter().flatten() {
                if !self.room(tx, &Data::Copied(&[])) {
                    return false;
                }
                let command = self.command(task);
                let r2t = R2t {
                    lun: command.lun_raw,
                    initiator_task_tag: command.initiator_task_tag,
                    target_transfer_tag,
                    r2t_sn,
                    buffer_offset,
                    desired_data_transfer_length: len,
                };
                self.emit(&r2t.encode(self.sequence()), Data::Copied(&[]), tx);
            }
            if let Some(recovery) = &mut self.recovery {
                recovery.r2ts.remove(0);
            }
        }
        true
    }

    fn send_status_again(&mut self, stat_sn: u32, tx: &mut impl Transmit) -> bool {
        let sequence = self.sequence();
        let Some(recovery) = &mut self.recovery else { return true };
        let Some(at) = recovery.statuses.iter().position(|status| status.stat_sn == stat_sn) else { return true };
        let status = &recovery.statuses[at];
        let Some(len) = status.len else {
            // It went with the last Data-In, which is read again.
            if let Some(task) = status.task
                && recovery.snacks.len() < SNACKS_MAX
            {
                let (generation, end) = (self.tasks.entry(task).generation, self.tasks.entry(task).data_sn);
                let header = status.bhs;
                let (next, cuts_anew) = (end - 1, None);
                recovery.snacks.push(DataSnack { task, generation, header, next, end, cuts_anew, running: false });
            }
            return true;
        };
        let (mut bhs, data) = (status.bhs, status.data);
        // Section 11.16: a replica, but for ExpCmdSN and MaxCmdSN.
        bhs.set_u32(28, sequence.exp_cmd_sn);
        bhs.set_u32(32, sequence.max_cmd_sn);
        if !self.room(tx, &Data::Copied(&data[..len])) {
            return false;
        }
        self.emit(&bhs, Data::Copied(&data[..len]), tx);
        true
    }

    /// A read of which Data-In is to be sent again: the shard reads [`Self::resend_span`], gives it to
    /// [`Self::resend_data_in`] until that is done, and ends with [`Self::end_resend`]. The task is kept meanwhile.
    pub fn poll_resend(&mut self) -> Option<TaskId> {
        let tasks = &self.tasks;
        let recovery = self.recovery.as_mut()?;
        recovery.snacks.retain(|snack| tasks.entry(snack.task).generation == snack.generation);
        if recovery.snacks.iter().any(|snack| snack.running) {
            return None;
        }
        let at = recovery.snacks.iter().position(|snack| tasks.entry(snack.task).phase == Phase::Kept)?;
        recovery.snacks[at].running = true;
        let (task, anew) = (recovery.snacks[at].task, recovery.snacks[at].cuts_anew.is_some());
        if anew {
            let (next, end) = self.cut_anew(task);
            if let Some(recovery) = &mut self.recovery {
                (recovery.snacks[at].next, recovery.snacks[at].end) = (next, end);
            }
        }
        Some(task)
    }

    /// What is still to be sent again of a task that [`Self::poll_resend`] has named.
    pub fn resend_span(&self, task: TaskId) -> Option<ResendSpan> {
        let snack = self.recovery.as_ref()?.snacks.iter().find(|snack| snack.task == task && snack.running)?;
        let (offset, _) = self.sent_pdu(task, snack.next)?;
        let (last, len) = self.sent_pdu(task, snack.end - 1)?;
        (snack.next < snack.end).then_some(ResendSpan { offset, len: last + len - offset })
    }

    /// Where a Data-In began and how long it was.
    fn sent_pdu(&self, task: TaskId, data_sn: u32) -> Option<(u32, u32)> {
        let cuts = &self.recovery.as_ref()?.cuts[usize::from(task.0)];
        let end = self.tasks.entry(task).data_in_offset;
        let (mut sn, mut offset) = cuts.at[..cuts.count].iter().rev().find(|cut| cut.0 <= data_sn).copied()?;
        let stop = cuts.at[..cuts.count].iter().find(|cut| cut.0 > data_sn).map_or(end, |cut| cut.1);
        let max_burst_length = self.parameters.max_burst_length;
        loop {
            let left = max_burst_length - offset % max_burst_length;
            let len = cuts.segment_len_max.min(left).min(stop - offset);
            if sn == data_sn {
                return Some((offset, len));
            }
            sn += 1;
            offset += len;
        }
    }

    /// Send again what lies wholly in the payload `0..payload_len` of `tx`, which begins at `base` of the command's
    /// data. False when there was no room for a PDU.
    pub fn resend_data_in(&mut self, task: TaskId, base: u32, payload_len: usize, tx: &mut impl Transmit) -> bool {
        while let Some(span) = self.resend_span(task) {
            let Some(recovery) = &self.recovery else { return true };
            let Some(snack) = recovery.snacks.iter().find(|snack| snack.task == task && snack.running) else {
                return true;
            };
            let data_sn = snack.next;
            let Some((offset, len)) = self.sent_pdu(task, data_sn) else { return true };
            debug_assert_eq!(offset, span.offset);
            let range = (offset - base) as usize..(offset - base + len) as usize;
            if range.end > payload_len {
                return true;
            }
            if !self.room(tx, &Data::Payload(range.clone())) {
                return false;
            }
            self.emit_sent_pdu(task, data_sn, (offset, len), range, tx);
            let snacks = self.recovery.as_mut().map(|recovery| &mut recovery.snacks);
            if let Some(snack) = snacks.and_then(|snacks| snacks.iter_mut().find(|s| s.task == task && s.running)) {
                snack.next += 1;
            }
        }
        true
    }

    fn emit_sent_pdu(
        &mut self,
        task: TaskId,
        data_sn: u32,
        (offset, len): (u32, u32),
        range: core::ops::Range<usize>,
        tx: &mut impl Transmit,
    ) {
        let entry = self.tasks.entry(task);
        let (initiator_task_tag, expected) =
            (entry.initiator_task_tag, super::transmit::scsi(entry).expected_read_length);
        let is_last = data_sn + 1 == entry.data_sn;
        let status = self.recovery.as_ref().and_then(|r| r.cuts[usize::from(task.0)].status).filter(|_| is_last);
        let end = offset + len;
        let is_final = is_last || end % self.parameters.max_burst_length == 0 || end == expected;
        let mut sequence = self.sequence();
        sequence.stat_sn = status.map_or(0, |(stat_sn, _)| stat_sn);
        let status = status.map(|(_, residual)| (ScsiStatus::GOOD, residual));
        let acknowledge = self.acknowledge_by(task, is_final && status.is_none());
        let data_in = DataIn {
            is_final,
            status,
            acknowledge,
            initiator_task_tag,
            data_sn,
            buffer_offset: offset,
            data_segment_len: len as usize,
        };
        self.emit(&data_in.encode(sequence), Data::Payload(range), tx);
    }

    /// LUN and tag of a Data-In that asks to be acknowledged: the last of a sequence, but not of the command.
    pub(super) fn acknowledge_by(&self, task: TaskId, ends_sequence: bool) -> Option<([u8; 8], u32)> {
        let asks = self.recovery.is_some() && ends_sequence;
        asks.then(|| (super::transmit::scsi(self.tasks.entry(task)).lun_raw, self.acknowledgement_tag(task)))
    }

    /// Section 11.16.3: after all data of an R-Data SNACK comes a SCSI Response with its tag, whatever came before.
    fn respond_with_tag(&mut self, task: TaskId, tag: u32) {
        let Some(recovery) = &mut self.recovery else { return };
        let Some(kept) = recovery.statuses.iter_mut().find(|kept| kept.task == Some(task)) else { return };
        kept.bhs.set_u32(20, tag);
        let (from, to) = (kept.stat_sn, kept.stat_sn.wrapping_add(1));
        recovery.resend = match recovery.resend {
            Some((first, last)) => {
                Some((if before(from, first) { from } else { first }, if before(last, to) { to } else { last }))
            }
            None => Some((from, to)),
        };
    }

    /// The shard is through with a task of [`Self::poll_resend`]; without `done` it could not read the data again, and
    /// the SNACK is rejected.
    ///
    /// # Errors
    /// [`Refusal::TooManyRejects`].
    pub fn end_resend(&mut self, task: TaskId, done: bool) -> Result<(), Refusal> {
        let Some(recovery) = &mut self.recovery else { return Ok(()) };
        let at = recovery.snacks.iter().position(|snack| snack.task == task && snack.running);
        let snack = at.map(|at| recovery.snacks.remove(at));
        if self.tasks.entry(task).phase == Phase::Acknowledged {
            recovery.snacks.retain(|snack| snack.task != task);
            self.finish(task);
        }
        if let Some((tag, _)) = snack.as_ref().and_then(|snack| snack.cuts_anew.zip(done.then_some(()))) {
            self.respond_with_tag(task, tag);
        }
        match snack {
            Some(snack) if !done => self.queue_reject(&snack.header, RejectReason::SNACK_REJECT),
            _ => Ok(()),
        }
    }
}
