//! What an initiator sends, typed and validated: `parse` is the only way to make one.
//!
//! May know: headers and codes.

use super::{
    Bhs, LoginStage, LogoutReason, RejectReason, SnackKind, TAG_RESERVED, TaskAttribute, TaskManagementFunction, flags,
    pad_len,
};

/// SCSI Command (section 11.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScsiCommandRequest {
    /// I: delivered at once, outside the CmdSN order.
    pub immediate: bool,
    /// F: no unsolicited Data-Out PDUs follow.
    pub is_final: bool,
    /// R: data is expected from the target.
    pub read: bool,
    /// W: data is expected from the initiator.
    pub write: bool,
    /// ATTR.
    pub attribute: TaskAttribute,
    /// LUN, raw (SAM-5 clause 4.7).
    pub lun: [u8; 8],
    /// Initiator Task Tag.
    pub initiator_task_tag: u32,
    /// Expected Data Transfer Length in bytes (the write length when bidirectional).
    pub expected_data_transfer_length: u32,
    /// CmdSN.
    pub cmd_sn: u32,
    /// ExpStatSN.
    pub exp_stat_sn: u32,
    /// The first 16 bytes of the CDB.
    pub cdb: [u8; 16],
}

impl ScsiCommandRequest {
    /// Read a SCSI Command from `bhs`, whose opcode the caller has seen.
    #[inline]
    pub fn parse(bhs: &Bhs) -> Result<Self, RejectReason> {
        let flag = bhs.flags();
        let request = Self {
            immediate: bhs.immediate(),
            is_final: flag & flags::FINAL != 0,
            read: flag & flags::READ != 0,
            write: flag & flags::WRITE != 0,
            attribute: TaskAttribute(flag & flags::ATTRIBUTE_MASK),
            lun: bhs.lun(),
            initiator_task_tag: bhs.initiator_task_tag(),
            expected_data_transfer_length: bhs.u32_at(20),
            cmd_sn: bhs.cmd_sn(),
            exp_stat_sn: bhs.exp_stat_sn(),
            cdb: bhs.array(32),
        };
        // Section 11.3.1: ATTR 5 to 7 are reserved, and F may be 0 only where W is 1. Section 11.2.1.8: no reserved
        // tag.
        let legal = request.attribute.0 <= TaskAttribute::ACA.0
            && (request.is_final || request.write)
            && request.initiator_task_tag != TAG_RESERVED;
        if legal { Ok(request) } else { Err(RejectReason::INVALID_PDU_FIELD) }
    }
}

/// What the Additional Header Segments of a SCSI Command say (section 11.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct CommandAhs {
    /// Bytes of the CDB beyond the first 16 (Extended CDB AHS): 0 when absent.
    pub extended_cdb_len: u16,
    /// Expected Bidirectional Read Data Length in bytes.
    pub read_data_length: Option<u32>,
}

impl CommandAhs {
    /// Read all AHS in `bytes` (exactly TotalAHSLength of them). A length that does not fit, an unknown type or a
    /// doubled one is an invalid PDU field.
    pub fn parse(mut bytes: &[u8]) -> Result<Self, RejectReason> {
        const EXTENDED_CDB: u8 = 1;
        const BIDIRECTIONAL_READ_LENGTH: u8 = 2;
        let mut ahs = Self::default();
        while let [high, low, kind, rest @ ..] = bytes {
            // AHSLength counts the bytes after the type, at least the one specific byte; the whole is padded to words.
            let len = usize::from(u16::from_be_bytes([*high, *low]));
            let padded = len + pad_len(3 + len);
            let body = rest.get(..len).ok_or(RejectReason::INVALID_PDU_FIELD)?;
            match (*kind, body) {
                (EXTENDED_CDB, [_, cdb @ ..]) if !cdb.is_empty() && ahs.extended_cdb_len == 0 => {
                    ahs.extended_cdb_len = cdb.len() as u16;
                }
                (BIDIRECTIONAL_READ_LENGTH, [_, a, b, c, d]) if ahs.read_data_length.is_none() => {
                    ahs.read_data_length = Some(u32::from_be_bytes([*a, *b, *c, *d]));
                }
                _ => return Err(RejectReason::INVALID_PDU_FIELD),
            }
            bytes = rest.get(padded..).ok_or(RejectReason::INVALID_PDU_FIELD)?;
        }
        if bytes.is_empty() { Ok(ahs) } else { Err(RejectReason::INVALID_PDU_FIELD) }
    }
}

/// Task Management Function Request (section 11.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskManagementRequest {
    /// I: delivered at once.
    pub immediate: bool,
    /// Function; any value of seven bits.
    pub function: TaskManagementFunction,
    /// LUN, raw; means nothing for target resets.
    pub lun: [u8; 8],
    /// Initiator Task Tag of this request.
    pub initiator_task_tag: u32,
    /// Referenced Task Tag: the task to abort or reassign, else reserved.
    pub referenced_task_tag: u32,
    /// CmdSN.
    pub cmd_sn: u32,
    /// ExpStatSN.
    pub exp_stat_sn: u32,
    /// RefCmdSN: CmdSN of the task to abort.
    pub ref_cmd_sn: u32,
}

impl TaskManagementRequest {
    /// Read a Task Management Function Request.
    pub fn parse(bhs: &Bhs) -> Result<Self, RejectReason> {
        if bhs.initiator_task_tag() == TAG_RESERVED || bhs.data_segment_len() != 0 {
            return Err(RejectReason::INVALID_PDU_FIELD);
        }
        Ok(Self {
            immediate: bhs.immediate(),
            function: TaskManagementFunction(bhs.flags() & 0x7f),
            lun: bhs.lun(),
            initiator_task_tag: bhs.initiator_task_tag(),
            referenced_task_tag: bhs.u32_at(20),
            cmd_sn: bhs.cmd_sn(),
            exp_stat_sn: bhs.exp_stat_sn(),
            ref_cmd_sn: bhs.u32_at(32),
        })
    }
}

/// SCSI Data-Out (section 11.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataOut {
    /// F: the last PDU of its sequence.
    pub is_final: bool,
    /// LUN, raw; meaningful when a Target Transfer Tag is given.
    pub lun: [u8; 8],
    /// Initiator Task Tag of the command.
    pub initiator_task_tag: u32,
    /// Target Transfer Tag of the R2T it answers; [`TAG_RESERVED`] for unsolicited data.
    pub target_transfer_tag: u32,
    /// ExpStatSN.
    pub exp_stat_sn: u32,
    /// DataSN: its place in the sequence.
    pub data_sn: u32,
    /// Buffer Offset in bytes within the command's data.
    pub buffer_offset: u32,
    /// Bytes of data.
    pub len: u32,
}

impl DataOut {
    /// Read a Data-Out.
    pub fn parse(bhs: &Bhs) -> Result<Self, RejectReason> {
        if bhs.initiator_task_tag() == TAG_RESERVED {
            return Err(RejectReason::INVALID_PDU_FIELD);
        }
        Ok(Self {
            is_final: bhs.is_final(),
            lun: bhs.lun(),
            initiator_task_tag: bhs.initiator_task_tag(),
            target_transfer_tag: bhs.target_transfer_tag(),
            exp_stat_sn: bhs.exp_stat_sn(),
            data_sn: bhs.u32_at(36),
            buffer_offset: bhs.u32_at(40),
            len: bhs.data_segment_len() as u32,
        })
    }
}

/// Login Request (section 11.12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoginRequest {
    /// T: the initiator is ready to move to `next_stage`.
    pub transit: bool,
    /// C: the text goes on in the next request.
    pub continues: bool,
    /// CSG; the reserved value 2 is possible.
    pub current_stage: LoginStage,
    /// NSG; means something only with `transit`.
    pub next_stage: LoginStage,
    /// Version-max.
    pub version_max: u8,
    /// Version-min.
    pub version_min: u8,
    /// ISID.
    pub isid: [u8; 6],
    /// TSIH; zero asks for a new session.
    pub tsih: u16,
    /// Initiator Task Tag.
    pub initiator_task_tag: u32,
    /// CID.
    pub connection_id: u16,
    /// CmdSN.
    pub cmd_sn: u32,
    /// ExpStatSN.
    pub exp_stat_sn: u32,
}

impl LoginRequest {
    /// Read a Login Request. Which combinations of T, C and stages are legal is the login's own judgement, since it
    /// answers with a login status instead of a Reject.
    pub fn parse(bhs: &Bhs) -> Self {
        Self {
            transit: bhs.flags() & flags::TRANSIT != 0,
            continues: bhs.flags() & flags::CONTINUE != 0,
            current_stage: LoginStage(bhs.flags() >> 2 & 3),
            next_stage: LoginStage(bhs.flags() & 3),
            version_max: bhs.0[2],
            version_min: bhs.0[3],
            isid: bhs.array(8),
            tsih: bhs.u16_at(14),
            initiator_task_tag: bhs.initiator_task_tag(),
            connection_id: bhs.u16_at(20),
            cmd_sn: bhs.cmd_sn(),
            exp_stat_sn: bhs.exp_stat_sn(),
        }
    }
}

/// Text Request (section 11.10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextRequest {
    /// I: delivered at once.
    pub immediate: bool,
    /// F: the initiator has no more to ask in this negotiation.
    pub is_final: bool,
    /// C: the text goes on in the next request.
    pub continues: bool,
    /// LUN, raw; goes with the Target Transfer Tag.
    pub lun: [u8; 8],
    /// Initiator Task Tag, the same over one negotiation.
    pub initiator_task_tag: u32,
    /// Target Transfer Tag; [`TAG_RESERVED`] starts (or restarts) a negotiation.
    pub target_transfer_tag: u32,
    /// CmdSN.
    pub cmd_sn: u32,
    /// ExpStatSN.
    pub exp_stat_sn: u32,
}

impl TextRequest {
    /// Read a Text Request. F and C together are an invalid PDU field (section 11.10.2).
    pub fn parse(bhs: &Bhs) -> Result<Self, RejectReason> {
        let request = Self {
            immediate: bhs.immediate(),
            is_final: bhs.is_final(),
            continues: bhs.flags() & flags::CONTINUE != 0,
            lun: bhs.lun(),
            initiator_task_tag: bhs.initiator_task_tag(),
            target_transfer_tag: bhs.target_transfer_tag(),
            cmd_sn: bhs.cmd_sn(),
            exp_stat_sn: bhs.exp_stat_sn(),
        };
        let legal = request.initiator_task_tag != TAG_RESERVED && !(request.is_final && request.continues);
        if legal { Ok(request) } else { Err(RejectReason::INVALID_PDU_FIELD) }
    }
}

/// Logout Request (section 11.14).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogoutRequest {
    /// I: delivered at once.
    pub immediate: bool,
    /// Reason; only the three defined ones are parsed.
    pub reason: LogoutReason,
    /// Initiator Task Tag.
    pub initiator_task_tag: u32,
    /// CID; means nothing when the session is closed.
    pub connection_id: u16,
    /// CmdSN.
    pub cmd_sn: u32,
    /// ExpStatSN.
    pub exp_stat_sn: u32,
}

impl LogoutRequest {
    /// Read a Logout Request.
    pub fn parse(bhs: &Bhs) -> Result<Self, RejectReason> {
        let reason = LogoutReason(bhs.flags() & 0x7f);
        let legal = reason.0 <= LogoutReason::REMOVE_FOR_RECOVERY.0
            && bhs.initiator_task_tag() != TAG_RESERVED
            && bhs.data_segment_len() == 0;
        if !legal {
            return Err(RejectReason::INVALID_PDU_FIELD);
        }
        Ok(Self {
            immediate: bhs.immediate(),
            reason,
            initiator_task_tag: bhs.initiator_task_tag(),
            connection_id: bhs.u16_at(20),
            cmd_sn: bhs.cmd_sn(),
            exp_stat_sn: bhs.exp_stat_sn(),
        })
    }
}

/// SNACK Request (section 11.16), as far as it is needed to refuse it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnackRequest {
    /// Type.
    pub kind: SnackKind,
    /// Initiator Task Tag of the command, or [`TAG_RESERVED`].
    pub initiator_task_tag: u32,
    /// BegRun: the first number of the run.
    pub begin: u32,
    /// RunLength; 0: all from `begin` on.
    pub run_length: u32,
}

impl SnackRequest {
    /// Read a SNACK Request.
    pub fn parse(bhs: &Bhs) -> Self {
        Self {
            kind: SnackKind(bhs.flags() & 0x0f),
            initiator_task_tag: bhs.initiator_task_tag(),
            begin: bhs.u32_at(40),
            run_length: bhs.u32_at(44),
        }
    }
}

/// NOP-Out (section 11.18).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NopOut {
    /// I: delivered at once.
    pub immediate: bool,
    /// LUN, raw; goes back with the Target Transfer Tag.
    pub lun: [u8; 8],
    /// Initiator Task Tag; [`TAG_RESERVED`] asks for no answer.
    pub initiator_task_tag: u32,
    /// Target Transfer Tag of the NOP-In it answers, else [`TAG_RESERVED`].
    pub target_transfer_tag: u32,
    /// CmdSN.
    pub cmd_sn: u32,
    /// ExpStatSN.
    pub exp_stat_sn: u32,
}

impl NopOut {
    /// Read a NOP-Out. Without an Initiator Task Tag it must be immediate (section 11.18.1).
    pub fn parse(bhs: &Bhs) -> Result<Self, RejectReason> {
        if bhs.initiator_task_tag() == TAG_RESERVED && !bhs.immediate() {
            return Err(RejectReason::INVALID_PDU_FIELD);
        }
        Ok(Self {
            immediate: bhs.immediate(),
            lun: bhs.lun(),
            initiator_task_tag: bhs.initiator_task_tag(),
            target_transfer_tag: bhs.target_transfer_tag(),
            cmd_sn: bhs.cmd_sn(),
            exp_stat_sn: bhs.exp_stat_sn(),
        })
    }
}
