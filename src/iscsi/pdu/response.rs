//! What a target sends: `encode` builds the header, from zeros.
//!
//! May know: headers and codes.

use super::{
    AsyncEvent, Bhs, LoginStage, LoginStatus, LogoutResponseCode, Opcode, RejectReason, ScsiStatus, ServiceResponse,
    TAG_RESERVED, TaskManagementResponseCode, flags,
};

/// The sequence numbers of a target's PDU, taken from the connection at emission (sections 4.2.2.1 and 4.2.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Sequence {
    /// StatSN (bytes 24..28).
    pub stat_sn: u32,
    /// ExpCmdSN (bytes 28..32).
    pub exp_cmd_sn: u32,
    /// MaxCmdSN (bytes 32..36).
    pub max_cmd_sn: u32,
}

impl Sequence {
    #[inline]
    fn put(self, bhs: &mut Bhs) {
        bhs.set_u32(24, self.stat_sn);
        bhs.set_u32(28, self.exp_cmd_sn);
        bhs.set_u32(32, self.max_cmd_sn);
    }
}

/// The residual of a transfer (section 11.4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Residual {
    /// As much was transferred as was expected.
    #[default]
    None,
    /// That many bytes of the expected were not transferred.
    Underflow(u32),
    /// That many bytes were not transferred because the initiator expected too few.
    Overflow(u32),
}

impl Residual {
    /// From what the initiator expects and what SCSI wants to transfer, in bytes. A residual beyond 32 bits saturates.
    #[inline]
    pub fn of(expected: u32, wanted: u64) -> Self {
        let expected = u64::from(expected);
        match wanted.cmp(&expected) {
            core::cmp::Ordering::Equal => Self::None,
            core::cmp::Ordering::Less => Self::Underflow((expected - wanted) as u32),
            core::cmp::Ordering::Greater => Self::Overflow(u32::try_from(wanted - expected).unwrap_or(u32::MAX)),
        }
    }

    #[inline]
    fn count(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Underflow(count) | Self::Overflow(count) => count,
        }
    }

    #[inline]
    fn flags(self, underflow: u8, overflow: u8) -> u8 {
        match self {
            Self::None => 0,
            Self::Underflow(_) => underflow,
            Self::Overflow(_) => overflow,
        }
    }
}

/// SCSI Response (section 11.4). Sense goes into the data segment, behind its two-byte length (section 11.4.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ScsiResponse {
    /// iSCSI service response.
    pub response: ServiceResponse,
    /// SCSI status.
    pub status: ScsiStatus,
    /// Initiator Task Tag.
    pub initiator_task_tag: u32,
    /// ExpDataSN: how many Data-In and R2T PDUs were sent for the task, but 0 when no Data-In was (section 11.4.8).
    pub exp_data_sn: u32,
    /// Residual of the write direction, or of the only one.
    pub residual: Residual,
    /// Residual of the read direction of a bidirectional command.
    pub read_residual: Residual,
    /// Bytes of the data segment.
    pub data_segment_len: usize,
}

impl ScsiResponse {
    /// Build the header.
    pub fn encode(&self, sequence: Sequence) -> Bhs {
        let residual_flags = self.residual.flags(flags::UNDERFLOW, flags::OVERFLOW)
            | self.read_residual.flags(flags::READ_UNDERFLOW, flags::READ_OVERFLOW);
        let mut bhs = Bhs::new(Opcode::SCSI_RESPONSE, flags::FINAL | residual_flags);
        bhs.0[2] = self.response.0;
        bhs.0[3] = self.status.0;
        bhs.set_data_segment_len(self.data_segment_len);
        bhs.set_u32(16, self.initiator_task_tag);
        sequence.put(&mut bhs);
        bhs.set_u32(36, self.exp_data_sn);
        bhs.set_u32(40, self.read_residual.count());
        bhs.set_u32(44, self.residual.count());
        bhs
    }
}

/// SCSI Data-In (section 11.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct DataIn {
    /// F: the last PDU of its sequence.
    pub is_final: bool,
    /// S: the status and residual when this is the last PDU of the command. StatSN is sent only then.
    pub status: Option<(ScsiStatus, Residual)>,
    /// A: the initiator is to acknowledge all Data-In so far, by a SNACK with this LUN (raw) and Target Transfer Tag.
    /// Only above ErrorRecoveryLevel 0.
    pub acknowledge: Option<([u8; 8], u32)>,
    /// Initiator Task Tag.
    pub initiator_task_tag: u32,
    /// DataSN.
    pub data_sn: u32,
    /// Buffer Offset in bytes.
    pub buffer_offset: u32,
    /// Bytes of data.
    pub data_segment_len: usize,
}

impl DataIn {
    /// Build the header. `sequence.stat_sn` is used only with a status.
    #[inline]
    pub fn encode(&self, sequence: Sequence) -> Bhs {
        let mut byte1 = if self.is_final { flags::FINAL } else { 0 };
        let mut bhs = Bhs::new(Opcode::DATA_IN, 0);
        sequence.put(&mut bhs);
        match self.status {
            Some((status, residual)) => {
                byte1 |= flags::STATUS | residual.flags(flags::UNDERFLOW, flags::OVERFLOW);
                bhs.0[3] = status.0;
                bhs.set_u32(44, residual.count());
            }
            None => bhs.set_u32(24, 0),
        }
        bhs.set_u32(20, TAG_RESERVED);
        if let Some((lun, target_transfer_tag)) = self.acknowledge {
            byte1 |= flags::ACKNOWLEDGE;
            bhs.set_bytes(8, &lun);
            bhs.set_u32(20, target_transfer_tag);
        }
        bhs.0[1] = byte1;
        bhs.set_data_segment_len(self.data_segment_len);
        bhs.set_u32(16, self.initiator_task_tag);
        bhs.set_u32(36, self.data_sn);
        bhs.set_u32(40, self.buffer_offset);
        bhs
    }
}

/// Ready To Transfer (section 11.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct R2t {
    /// LUN of the command, raw.
    pub lun: [u8; 8],
    /// Initiator Task Tag.
    pub initiator_task_tag: u32,
    /// Target Transfer Tag, not the reserved one.
    pub target_transfer_tag: u32,
    /// R2TSN.
    pub r2t_sn: u32,
    /// Buffer Offset in bytes.
    pub buffer_offset: u32,
    /// Desired Data Transfer Length in bytes: 1..=MaxBurstLength.
    pub desired_data_transfer_length: u32,
}

impl R2t {
    /// Build the header.
    pub fn encode(&self, sequence: Sequence) -> Bhs {
        let mut bhs = Bhs::new(Opcode::R2T, flags::FINAL);
        bhs.set_bytes(8, &self.lun);
        bhs.set_u32(16, self.initiator_task_tag);
        bhs.set_u32(20, self.target_transfer_tag);
        sequence.put(&mut bhs);
        bhs.set_u32(36, self.r2t_sn);
        bhs.set_u32(40, self.buffer_offset);
        bhs.set_u32(44, self.desired_data_transfer_length);
        bhs
    }
}

/// Task Management Function Response (section 11.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskManagementResponse {
    /// Response.
    pub response: TaskManagementResponseCode,
    /// Initiator Task Tag of the request.
    pub initiator_task_tag: u32,
}

impl TaskManagementResponse {
    /// Build the header.
    pub fn encode(&self, sequence: Sequence) -> Bhs {
        let mut bhs = Bhs::new(Opcode::TASK_MANAGEMENT_RESPONSE, flags::FINAL);
        bhs.0[2] = self.response.0;
        bhs.set_u32(16, self.initiator_task_tag);
        sequence.put(&mut bhs);
        bhs
    }
}

/// Login Response (section 11.13).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct LoginResponse {
    /// T: the target agrees to move to `next_stage`.
    pub transit: bool,
    /// C: the text goes on in the next response.
    pub continues: bool,
    /// CSG.
    pub current_stage: LoginStage,
    /// NSG; zero without `transit`.
    pub next_stage: LoginStage,
    /// Version-max.
    pub version_max: u8,
    /// Version-active.
    pub version_active: u8,
    /// ISID of the request.
    pub isid: [u8; 6],
    /// TSIH: zero until the final response of a new session.
    pub tsih: u16,
    /// Initiator Task Tag.
    pub initiator_task_tag: u32,
    /// Status-Class and Status-Detail.
    pub status: LoginStatus,
    /// Bytes of the data segment.
    pub data_segment_len: usize,
}

impl LoginResponse {
    /// Build the header. StatSN is valid only when the status class is success; the caller gives zero otherwise.
    pub fn encode(&self, sequence: Sequence) -> Bhs {
        let mut byte1 = (self.current_stage.0 & 3) << 2;
        if self.transit {
            byte1 |= flags::TRANSIT | self.next_stage.0 & 3;
        }
        if self.continues {
            byte1 |= flags::CONTINUE;
        }
        let mut bhs = Bhs::new(Opcode::LOGIN_RESPONSE, byte1);
        bhs.0[2] = self.version_max;
        bhs.0[3] = self.version_active;
        bhs.set_data_segment_len(self.data_segment_len);
        bhs.set_bytes(8, &self.isid);
        bhs.set_u16(14, self.tsih);
        bhs.set_u32(16, self.initiator_task_tag);
        sequence.put(&mut bhs);
        bhs.0[36] = self.status.class();
        bhs.0[37] = self.status.detail();
        bhs
    }
}

/// Text Response (section 11.11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextResponse {
    /// F: the negotiation is over.
    pub is_final: bool,
    /// C: the text goes on in the next response.
    pub continues: bool,
    /// LUN, raw; goes with the Target Transfer Tag.
    pub lun: [u8; 8],
    /// Initiator Task Tag.
    pub initiator_task_tag: u32,
    /// Target Transfer Tag: [`TAG_RESERVED`] exactly when `is_final` (section 11.11.4).
    pub target_transfer_tag: u32,
    /// Bytes of the data segment.
    pub data_segment_len: usize,
}

impl TextResponse {
    /// Build the header.
    pub fn encode(&self, sequence: Sequence) -> Bhs {
        let mut byte1 = if self.is_final { flags::FINAL } else { 0 };
        if self.continues {
            byte1 |= flags::CONTINUE;
        }
        let mut bhs = Bhs::new(Opcode::TEXT_RESPONSE, byte1);
        bhs.set_data_segment_len(self.data_segment_len);
        bhs.set_bytes(8, &self.lun);
        bhs.set_u32(16, self.initiator_task_tag);
        bhs.set_u32(20, self.target_transfer_tag);
        sequence.put(&mut bhs);
        bhs
    }
}

/// Logout Response (section 11.15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogoutResponse {
    /// Response.
    pub response: LogoutResponseCode,
    /// Initiator Task Tag.
    pub initiator_task_tag: u32,
    /// Time2Wait in seconds.
    pub time2wait: u16,
    /// Time2Retain in seconds.
    pub time2retain: u16,
}

impl LogoutResponse {
    /// Build the header.
    pub fn encode(&self, sequence: Sequence) -> Bhs {
        let mut bhs = Bhs::new(Opcode::LOGOUT_RESPONSE, flags::FINAL);
        bhs.0[2] = self.response.0;
        bhs.set_u32(16, self.initiator_task_tag);
        sequence.put(&mut bhs);
        bhs.set_u16(40, self.time2wait);
        bhs.set_u16(42, self.time2retain);
        bhs
    }
}

/// NOP-In (section 11.19).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NopIn {
    /// LUN, raw: the request's when answering, any with a Target Transfer Tag.
    pub lun: [u8; 8],
    /// Initiator Task Tag of the NOP-Out, or [`TAG_RESERVED`] for a ping of ours.
    pub initiator_task_tag: u32,
    /// Target Transfer Tag of a ping of ours, else [`TAG_RESERVED`].
    pub target_transfer_tag: u32,
    /// Bytes of the data segment.
    pub data_segment_len: usize,
}

impl NopIn {
    /// Build the header.
    pub fn encode(&self, sequence: Sequence) -> Bhs {
        let mut bhs = Bhs::new(Opcode::NOP_IN, flags::FINAL);
        bhs.set_data_segment_len(self.data_segment_len);
        bhs.set_bytes(8, &self.lun);
        bhs.set_u32(16, self.initiator_task_tag);
        bhs.set_u32(20, self.target_transfer_tag);
        sequence.put(&mut bhs);
        bhs
    }
}

/// Asynchronous Message (section 11.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct AsyncMessage {
    /// AsyncEvent.
    pub event: AsyncEvent,
    /// AsyncVCode: only with [`AsyncEvent::VENDOR`].
    pub vendor_code: u8,
    /// LUN, raw: only with [`AsyncEvent::SCSI`].
    pub lun: [u8; 8],
    /// Parameter1.
    pub parameter1: u16,
    /// Parameter2.
    pub parameter2: u16,
    /// Parameter3.
    pub parameter3: u16,
    /// Bytes of the data segment.
    pub data_segment_len: usize,
}

impl AsyncMessage {
    /// Build the header.
    pub fn encode(&self, sequence: Sequence) -> Bhs {
        let mut bhs = Bhs::new(Opcode::ASYNC_MESSAGE, flags::FINAL);
        bhs.set_data_segment_len(self.data_segment_len);
        bhs.set_bytes(8, &self.lun);
        bhs.set_u32(16, TAG_RESERVED);
        sequence.put(&mut bhs);
        bhs.0[36] = self.event.0;
        bhs.0[37] = self.vendor_code;
        bhs.set_u16(38, self.parameter1);
        bhs.set_u16(40, self.parameter2);
        bhs.set_u16(42, self.parameter3);
        bhs
    }
}

/// Reject (section 11.17). The rejected header is its data segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reject {
    /// Reason.
    pub reason: RejectReason,
    /// The data segment: the rejected PDU's 48 bytes (no AHS, no digests).
    pub data_segment_len: usize,
}

impl Reject {
    /// Build the header.
    pub fn encode(&self, sequence: Sequence) -> Bhs {
        let mut bhs = Bhs::new(Opcode::REJECT, flags::FINAL);
        bhs.0[2] = self.reason.0;
        bhs.set_data_segment_len(self.data_segment_len);
        bhs.set_u32(16, TAG_RESERVED);
        sequence.put(&mut bhs);
        bhs
    }
}
