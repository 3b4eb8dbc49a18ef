//! SCSI commands as the engine keeps them, how their data comes in, and the ways in which it can be wrong.

use super::pdu::{DataOut, TAG_RESERVED, TaskAttribute};
use super::session::SessionParameters;
use crate::limits::OUTSTANDING_R2T_MAX;

/// A request's place in the session's fixed task table, below [`TASKS_MAX`]. Every request that the shard hears of
/// has one: SCSI commands, task management, text, logout and NOP-Out. It is free again once the response has been
/// emitted (or after `release`, when aborted), and may then name another request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TaskId(pub u16);

/// Entries of a session's task table: the command window and the immediate requests.
pub const TASKS_MAX: usize =
    crate::limits::COMMANDS_PER_SESSION_MAX as usize + crate::limits::IMMEDIATE_REQUESTS_MAX as usize;

/// A SCSI command (RFC 7143 section 11.3), validated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScsiCommand {
    /// LUN, raw (SAM-5 clause 4.7).
    pub lun_raw: [u8; 8],
    /// The first 16 bytes of the CDB.
    pub cdb: [u8; 16],
    /// Bytes of the CDB beyond those 16, which the engine does not keep: non-zero means an operation code that is not
    /// served.
    pub extended_cdb_len: u16,
    /// ATTR.
    pub attribute: TaskAttribute,
    /// R.
    pub read: bool,
    /// W.
    pub write: bool,
    /// I: outside the CmdSN order.
    pub immediate: bool,
    /// Expected Data Transfer Length in bytes: of the write direction when both R and W are set.
    pub expected_data_transfer_length: u32,
    /// What the initiator expects to read, in bytes: EDTL with R alone, the AHS's length when bidirectional, else 0.
    pub expected_read_length: u32,
    /// Initiator Task Tag.
    pub initiator_task_tag: u32,
    /// CmdSN.
    pub cmd_sn: u32,
    /// Bytes of immediate data that came with the command, at buffer offset 0.
    pub immediate_len: u32,
}

impl ScsiCommand {
    /// Bytes that the initiator means to write: EDTL with W, else 0.
    #[inline]
    pub fn expected_write_length(&self) -> u32 {
        if self.write { self.expected_data_transfer_length } else { 0 }
    }
}

/// A span of a command's data for which an R2T may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct R2tSpan {
    /// Buffer Offset in bytes.
    pub offset: u32,
    /// Bytes, 1..=MaxBurstLength.
    pub len: u32,
}

/// How the data of a command went wrong. Each ends the command with CHECK CONDITION and the sense of RFC 7143 section
/// 11.4.7.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataError {
    /// Data came that was not asked for (more than FirstBurstLength, or against ImmediateData or InitialR2T).
    UnexpectedUnsolicitedData,
    /// A sequence was shorter or longer than it had to be, or out of order.
    IncorrectAmountOfData,
    /// A data digest did not match.
    ProtocolServiceCrc,
}

impl DataError {
    /// Sense key, additional sense code and its qualifier.
    pub const fn sense(self) -> (u8, u8, u8) {
        match self {
            Self::UnexpectedUnsolicitedData => (0x0b, 0x0c, 0x0c),
            Self::IncorrectAmountOfData => (0x0b, 0x0c, 0x0d),
            Self::ProtocolServiceCrc => (0x0b, 0x47, 0x05),
        }
    }
}

/// A sequence of Data-Out PDUs that is to come: unsolicited, or asked for by one R2T.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Burst {
    target_transfer_tag: u32,
    /// Buffer offset of the next PDU.
    next: u32,
    /// Buffer offset behind the last byte.
    end: u32,
    /// DataSN of the next PDU.
    data_sn: u32,
    /// Buffer offset of the first byte, and the R2T's number.
    start: u32,
    r2t_sn: u32,
    /// Some of it was lost: the rest is passed over.
    broken: bool,
}

impl Burst {
    const NONE: Self =
        Self { target_transfer_tag: TAG_RESERVED, next: 0, end: 0, data_sn: 0, start: 0, r2t_sn: 0, broken: false };

    /// Sections 11.7.1 and 11.7.5, DataPDUInOrder and section 11.4.7.2: every PDU continues the last, and F comes
    /// exactly with the last byte (or, empty, behind it).
    fn fits(&self, data: &DataOut) -> bool {
        let left = self.end - self.next;
        data.data_sn == self.data_sn
            && data.buffer_offset == self.next
            && data.len <= left
            && (!data.is_final || data.len == left)
    }
}

/// Whether a command's data is still wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Intake {
    /// Yes.
    Open,
    /// No: it went wrong, which is to be reported when nothing is underway any more.
    Failed(DataError),
    /// No: the shard does not want it, and hears when nothing is underway any more.
    Discarding,
    /// No, and nothing is to be told.
    Closed,
}

/// What a Data-Out PDU is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Right and wanted.
    Good,
    /// It makes the command fail.
    Wrong(DataError),
    /// Not wanted (any more).
    Drop,
    /// Something before it was lost. Only above ErrorRecoveryLevel 0.
    Gap,
    /// It answers no R2T that is outstanding.
    UnknownTag,
}

/// What becomes known once nothing of a command's data is underway any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settled {
    Failed(DataError),
    Drained,
}

/// The incoming data of one command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DataOutState {
    intake: Intake,
    /// Unsolicited data that is to come.
    unsolicited: Option<Burst>,
    /// Bytes that the command wants from the initiator, at most its expected write length.
    wanted: u32,
    /// Buffer offset of the next R2T.
    r2t_offset: u32,
    outstanding: u8,
    r2ts: [Burst; OUTSTANDING_R2T_MAX as usize],
    /// How often lost data may still be asked for again; 0 at ErrorRecoveryLevel 0.
    recoveries: u8,
    /// Lost data, by buffer offset: from and to.
    holes: [(u32, u32); OUTSTANDING_R2T_MAX as usize],
    hole_count: u8,
}

/// How often data of one command is asked for again.
const RECOVERIES_MAX: u8 = 32;

impl DataOutState {
    pub(super) const NONE: Self = Self {
        intake: Intake::Closed,
        unsolicited: None,
        wanted: 0,
        r2t_offset: 0,
        outstanding: 0,
        r2ts: [Burst::NONE; OUTSTANDING_R2T_MAX as usize],
        recoveries: 0,
        holes: [(0, 0); OUTSTANDING_R2T_MAX as usize],
        hole_count: 0,
    };

    /// The state behind a command that came with `immediate_len` bytes; `is_final` is its F. Judges the immediate data.
    pub(super) fn begin(command: &ScsiCommand, is_final: bool, parameters: &SessionParameters) -> Self {
        let write_length = command.expected_write_length();
        // Section 13.14: all unsolicited data, immediate data included, is bounded by FirstBurstLength. Section
        // 11.3.4: when any comes outside the command, exactly as much as the bound or the command allows.
        let unsolicited_max = write_length.min(parameters.first_burst_length);
        let immediate_len = command.immediate_len;
        let immediate_refused = immediate_len > 0 && (!command.write || !parameters.immediate_data);
        let unsolicited_refused = !is_final && parameters.initial_r2t;
        let error = if immediate_refused || unsolicited_refused {
            Some(DataError::UnexpectedUnsolicitedData)
        } else if immediate_len > write_length {
            Some(DataError::IncorrectAmountOfData)
        } else if immediate_len > unsolicited_max {
            Some(DataError::UnexpectedUnsolicitedData)
        } else {
            None
        };
        let next = immediate_len.min(unsolicited_max);
        let burst = Burst { next, end: unsolicited_max, start: next, ..Burst::NONE };
        Self {
            intake: error.map_or(Intake::Open, Intake::Failed),
            unsolicited: (!is_final).then_some(burst),
            wanted: write_length,
            r2t_offset: next,
            recoveries: if parameters.error_recovery_level > 0 { RECOVERIES_MAX } else { 0 },
            ..Self::NONE
        }
    }

    /// Judge a Data-Out, changing nothing.
    pub(super) fn judge(&self, data: &DataOut) -> Verdict {
        let burst = if data.target_transfer_tag == TAG_RESERVED {
            self.unsolicited.as_ref()
        } else {
            match self.outstanding().iter().find(|burst| burst.target_transfer_tag == data.target_transfer_tag) {
                None => return Verdict::UnknownTag,
                some => some,
            }
        };
        match (self.intake, burst) {
            (Intake::Open, Some(burst)) if burst.broken => Verdict::Drop,
            (Intake::Open, Some(burst)) if burst.fits(data) => Verdict::Good,
            // Section 7.9: what is missing is asked for again, what came twice is passed over.
            (Intake::Open, Some(burst)) if self.recoveries > 0 && data.data_sn != burst.data_sn => {
                if data.data_sn > burst.data_sn { Verdict::Gap } else { Verdict::Drop }
            }
            (Intake::Open, Some(_)) => Verdict::Wrong(DataError::IncorrectAmountOfData),
            (Intake::Open, None) => Verdict::Wrong(DataError::UnexpectedUnsolicitedData),
            _ => Verdict::Drop,
        }
    }

    /// Take a Data-Out with the verdict that [`Self::judge`] gave (or a digest error); true when its sequence is
    /// complete.
    pub(super) fn take(&mut self, data: &DataOut, verdict: Verdict) -> bool {
        match verdict {
            Verdict::Wrong(error) => self.fail(error),
            Verdict::Gap => _ = self.lose(data),
            _ => {}
        }
        if data.target_transfer_tag == TAG_RESERVED {
            self.take_unsolicited(data, verdict);
        } else if let Some(index) =
            self.outstanding().iter().position(|burst| burst.target_transfer_tag == data.target_transfer_tag)
        {
            if data.is_final {
                let burst = self.r2ts[index];
                if burst.broken {
                    self.note_hole(burst.next, burst.end);
                }
                let last = usize::from(self.outstanding) - 1;
                self.r2ts.copy_within(index + 1..=last, index);
                self.outstanding -= 1;
            } else if verdict == Verdict::Good {
                advance(&mut self.r2ts[index], data);
            }
        }
        data.is_final && verdict == Verdict::Good
    }

    fn take_unsolicited(&mut self, data: &DataOut, verdict: Verdict) {
        if data.is_final {
            if verdict == Verdict::Good {
                self.r2t_offset = data.buffer_offset + data.len;
            }
            if let Some(burst) = self.unsolicited.take().filter(|burst| burst.broken) {
                // R2Ts ask for all that follows.
                self.r2t_offset = burst.next;
            }
        } else {
            // What comes unasked goes on until its F, and so is underway even where it was not expected.
            let burst = self.unsolicited.get_or_insert(Burst::NONE);
            if verdict == Verdict::Good {
                advance(burst, data);
            }
        }
    }

    /// A PDU was lost, or was not right on the way: its sequence is broken, and what is missing will be asked for
    /// again. False when that cannot be.
    pub(super) fn lose(&mut self, data: &DataOut) -> bool {
        let Some(left) = self.recoveries.checked_sub(1).filter(|_| self.is_open()) else { return false };
        let outstanding = usize::from(self.outstanding);
        let burst = if data.target_transfer_tag == TAG_RESERVED {
            self.unsolicited.as_mut()
        } else {
            let mut bursts = self.r2ts[..outstanding].iter_mut();
            bursts.find(|burst| burst.target_transfer_tag == data.target_transfer_tag)
        };
        let Some(burst) = burst else { return false };
        if !burst.broken {
            burst.broken = true;
            self.recoveries = left;
        }
        true
    }

    /// This will be asked for again. There are no more holes than sequences that could be broken.
    fn note_hole(&mut self, from: u32, to: u32) {
        let count = usize::from(self.hole_count);
        if count == self.holes.len() {
            return self.fail(DataError::ProtocolServiceCrc);
        }
        self.holes[count] = (from, to);
        self.hole_count += 1;
    }

    /// The R2Ts outstanding with these numbers: tag, R2TSN, offset and length.
    pub(super) fn solicited(&self, begin: u32, end: u32) -> [Option<(u32, u32, u32, u32)>; 4] {
        let mut found = [None; OUTSTANDING_R2T_MAX as usize];
        let wanted = self.outstanding().iter().filter(|burst| (begin..end).contains(&burst.r2t_sn));
        for (place, burst) in found.iter_mut().zip(wanted) {
            *place = Some((burst.target_transfer_tag, burst.r2t_sn, burst.start, burst.end - burst.start));
        }
        found
    }

    /// The command fails by `error`, unless it has failed already or nobody wants to know.
    pub(super) fn fail(&mut self, error: DataError) {
        if self.intake == Intake::Open {
            self.intake = Intake::Failed(error);
        }
    }

    /// Want no more data. True when some is underway.
    pub(super) fn discard(&mut self) -> bool {
        self.intake = if self.underway() { Intake::Discarding } else { Intake::Closed };
        self.underway()
    }

    /// What there is to tell, once.
    pub(super) fn settle(&mut self) -> Option<Settled> {
        let settled = match self.intake {
            _ if self.underway() => return None,
            Intake::Open | Intake::Closed => return None,
            Intake::Failed(error) => Settled::Failed(error),
            Intake::Discarding => Settled::Drained,
        };
        self.intake = Intake::Closed;
        Some(settled)
    }

    /// Whether the command has failed or is not wanted.
    pub(super) fn is_open(&self) -> bool {
        self.intake == Intake::Open
    }

    pub(super) fn limit(&mut self, len: u32) {
        self.wanted = self.wanted.min(len);
    }

    pub(super) fn wanted(&self) -> u32 {
        self.wanted
    }

    pub(super) fn complete(&self) -> bool {
        self.is_open() && !self.underway() && self.hole_count == 0 && self.r2t_offset >= self.wanted
    }

    /// See `Connection::want_r2t`.
    pub(super) fn want_r2t(&self, parameters: &SessionParameters) -> Option<R2tSpan> {
        let outstanding_max = parameters.max_outstanding_r2t.min(OUTSTANDING_R2T_MAX);
        let left = self.wanted.saturating_sub(self.r2t_offset);
        let may = self.is_open() && self.unsolicited.is_none() && u16::from(self.outstanding) < outstanding_max;
        // Section 13.13: an R2T asks for no more than MaxBurstLength. Section 11.8.4: and not for zero bytes.
        if let (true, Some(&(from, to))) = (may, self.holes[..usize::from(self.hole_count)].first()) {
            return Some(R2tSpan { offset: from, len: (to - from).min(parameters.max_burst_length) });
        }
        (may && left > 0).then_some(R2tSpan { offset: self.r2t_offset, len: left.min(parameters.max_burst_length) })
    }

    /// An R2T goes out.
    pub(super) fn solicit(&mut self, target_transfer_tag: u32, r2t_sn: u32, len: u32) {
        let start = if self.hole_count > 0 { self.fill_hole(len) } else { self.r2t_offset };
        let end = start + len;
        self.r2ts[usize::from(self.outstanding)] =
            Burst { target_transfer_tag, next: start, end, start, r2t_sn, ..Burst::NONE };
        self.outstanding += 1;
        self.r2t_offset = self.r2t_offset.max(end);
    }

    /// So much of the first hole is asked for again; where it begins.
    fn fill_hole(&mut self, len: u32) -> u32 {
        let (from, to) = self.holes[0];
        self.holes[0].0 += len;
        if from + len == to {
            self.holes.rotate_left(1);
            self.hole_count -= 1;
        }
        from
    }

    fn outstanding(&self) -> &[Burst] {
        &self.r2ts[..usize::from(self.outstanding)]
    }

    fn underway(&self) -> bool {
        self.unsolicited.is_some() || self.outstanding > 0
    }

    #[cfg(test)]
    pub(super) fn check_invariants(&self) {
        assert!(self.outstanding().iter().all(|burst| burst.next <= burst.end && burst.end <= self.r2t_offset));
        assert!(self.unsolicited.is_none_or(|burst| burst.next <= burst.end));
    }
}

fn advance(burst: &mut Burst, data: &DataOut) {
    burst.next += data.len;
    burst.data_sn = burst.data_sn.wrapping_add(1);
}
