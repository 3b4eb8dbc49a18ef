//! SCSI commands as the engine keeps them, and the ways in which their data can be wrong.

use super::pdu::TaskAttribute;

/// A request's place in the session's fixed task table, below [`TASKS_MAX`]. Every request that the shard hears of has one:
/// SCSI commands, task management, text, logout and NOP-Out. It is free again once the response has been emitted (or after
/// `release`, when aborted), and may then name another request.
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
    /// Bytes of the CDB beyond those 16, which the engine does not keep: non-zero means an operation code that is not served.
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

/// How the data of a command went wrong. Each ends the command with CHECK CONDITION and the sense of RFC 7143 section 11.4.7.2.
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
