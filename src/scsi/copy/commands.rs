//! The copy commands as the command table knows them: their CDBs.

use crate::limits::COPY_LIST_BYTES_MAX;
use crate::scsi::cdb::Cdb;
use crate::scsi::execute::Action;
use crate::scsi::read_write::check_writable;
use crate::scsi::sense::{Outcome, Sense, SenseCode};
use crate::scsi::unit::Unit;

/// What begins a copy operation. The value is the service action of operation code 83h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CopyOut {
    /// EXTENDED COPY(LID1).
    ExtendedCopyLid1 = 0x00,
    /// EXTENDED COPY(LID4).
    ExtendedCopyLid4 = 0x01,
    /// POPULATE TOKEN.
    PopulateToken = 0x10,
    /// WRITE USING TOKEN.
    WriteUsingToken = 0x11,
}

/// What tells of a copy operation. The value is the service action of operation code 84h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CopyIn {
    /// RECEIVE COPY STATUS(LID1).
    StatusLid1 = 0x00,
    /// RECEIVE COPY FAILURE DETAILS(LID1).
    FailureDetailsLid1 = 0x04,
    /// RECEIVE COPY STATUS(LID4).
    StatusLid4 = 0x05,
    /// RECEIVE ROD TOKEN INFORMATION.
    TokenInformation = 0x07,
}

/// Service action of COPY OPERATION ABORT.
pub(in crate::scsi) const COPY_OPERATION_ABORT: u8 = 0x1c;

/// Service action of RECEIVE COPY OPERATING PARAMETERS.
pub(in crate::scsi) const OPERATING_PARAMETERS: u8 = 0x03;

/// EXTENDED COPY names its list in the parameter list, the token commands in the CDB.
pub(in crate::scsi) fn copy_out(cdb: Cdb<'_>, unit: &Unit) -> Action {
    let (what, list_identifier) = match cdb.byte(1) & 0x1f {
        0x00 => (CopyOut::ExtendedCopyLid1, 0),
        0x01 => (CopyOut::ExtendedCopyLid4, 0),
        0x10 => (CopyOut::PopulateToken, cdb.be32(6)),
        0x11 => (CopyOut::WriteUsingToken, cdb.be32(6)),
        _ => return Sense::invalid_field_in_cdb(1, Some(4)).into(),
    };
    if what == CopyOut::WriteUsingToken
        && let Err(sense) = check_writable(unit)
    {
        return sense.into();
    }
    match cdb.be32(10) {
        // No list is nothing to do; SPC-4 and SBC-4 say that it is no error.
        0 => Action::Done(Outcome::GOOD),
        list_bytes if list_bytes > COPY_LIST_BYTES_MAX => Sense::new(SenseCode::PARAMETER_LIST_LENGTH_ERROR).into(),
        list_bytes => Action::CopyOut { what, list_identifier, list_bytes },
    }
}

pub(in crate::scsi) fn copy_operation_abort(cdb: Cdb<'_>, _unit: &Unit) -> Action {
    Action::CopyAbort { list_identifier: cdb.be32(2) }
}

pub(in crate::scsi) fn receive_copy(cdb: Cdb<'_>, _unit: &Unit) -> Action {
    let (what, list_identifier) = match cdb.byte(1) & 0x1f {
        0x00 => (CopyIn::StatusLid1, u32::from(cdb.byte(2))),
        0x04 => (CopyIn::FailureDetailsLid1, u32::from(cdb.byte(2))),
        0x05 => (CopyIn::StatusLid4, cdb.be32(2)),
        0x07 => (CopyIn::TokenInformation, cdb.be32(2)),
        _ => return Sense::invalid_field_in_cdb(1, Some(4)).into(),
    };
    Action::CopyIn { what, list_identifier, allocation_length: cdb.be32(10) }
}
