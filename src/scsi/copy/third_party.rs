//! What copy offload can do, and its limits: the Third-party Copy page (SPC-4 clause 7.8.17, SBC-4 clause 6.6.9) and
//! RECEIVE COPY OPERATING PARAMETERS (SPC-4 clause 6.22). Both tell the same.

use super::commands::{COPY_OPERATION_ABORT, CopyIn, CopyOut, OPERATING_PARAMETERS};
use super::extended::{CSCD_ADDRESSED, DESCRIPTOR_TYPES};
use super::token;
use crate::limits::{
    COPIES_PER_SESSION_MAX, COPY_CSCDS_MAX, COPY_DESCRIPTORS_BYTES_MAX, COPY_SEGMENT_BYTES_MAX, COPY_SEGMENTS_MAX,
    TOKEN_BYTES_MAX, TOKEN_BYTES_OPTIMAL, TOKEN_LIFETIME_MAX_S, TOKEN_RANGES_MAX, TOKEN_TIMEOUT_DEFAULT_S,
    TOKEN_TIMEOUT_MAX_S,
};
use crate::scsi::cdb::Cdb;
use crate::scsi::execute::{Action, TargetView};
use crate::scsi::parameter_list::ParameterList;
use crate::scsi::unit::Unit;

/// log2 of the bytes that a segment's length and offsets are multiples of: the shortest block.
const GRANULARITY_SHIFT: u8 = 9;

/// Third-party copy descriptor types.
const BLOCK_DEVICE_ROD_LIMITS: u16 = 0x0000;
const SUPPORTED_COMMANDS: u16 = 0x0001;
const PARAMETER_DATA: u16 = 0x0004;
const SUPPORTED_DESCRIPTORS: u16 = 0x0008;
const SUPPORTED_CSCD_IDS: u16 = 0x000c;
const ROD_TOKEN_FEATURES: u16 = 0x0106;
const SUPPORTED_ROD_TYPES: u16 = 0x0108;
const GENERAL_COPY_OPERATIONS: u16 = 0x8001;

/// What follows the header of the Third-party Copy page: its descriptors, ascending.
pub(in crate::scsi) fn push_page(_target: &TargetView<'_>, unit: &Unit, out: &mut ParameterList<'_>) {
    descriptor(BLOCK_DEVICE_ROD_LIMITS, out, |out| rod_limits(unit, out));
    descriptor(SUPPORTED_COMMANDS, out, supported_commands);
    descriptor(PARAMETER_DATA, out, |out| {
        out.push_zeros(4);
        out.push_u16(COPY_CSCDS_MAX);
        out.push_u16(COPY_SEGMENTS_MAX);
        out.push_u32(COPY_DESCRIPTORS_BYTES_MAX);
        // No inline data.
        out.push_zeros(4 + 12);
    });
    descriptor(SUPPORTED_DESCRIPTORS, out, |out| {
        out.push_u8(DESCRIPTOR_TYPES.len() as u8);
        out.push(&DESCRIPTOR_TYPES);
    });
    descriptor(SUPPORTED_CSCD_IDS, out, |out| {
        out.push_u16(2);
        out.push_u16(CSCD_ADDRESSED);
    });
    descriptor(ROD_TOKEN_FEATURES, out, |out| token_features(unit, out));
    descriptor(SUPPORTED_ROD_TYPES, out, rod_types);
    descriptor(GENERAL_COPY_OPERATIONS, out, |out| {
        out.push_u32(COPIES_PER_SESSION_MAX as u32);
        out.push_u32(COPIES_PER_SESSION_MAX as u32);
        out.push_u32(COPY_SEGMENT_BYTES_MAX);
        out.push(&[GRANULARITY_SHIFT, 0]);
        out.push_zeros(18);
    });
}

/// One descriptor: type, length of what follows, and padding to a multiple of four.
fn descriptor(code: u16, out: &mut ParameterList<'_>, body: impl FnOnce(&mut ParameterList<'_>)) {
    out.push_u16(code);
    let length_at = out.total_len();
    out.push_u16(0);
    body(out);
    let len = out.total_len() - length_at - 2;
    out.push_zeros(len.next_multiple_of(4) - len);
    out.set_u16(length_at, len.next_multiple_of(4) as u16);
}

fn rod_limits(unit: &Unit, out: &mut ParameterList<'_>) {
    let shift = unit.block_length().shift();
    out.push_zeros(6);
    out.push_u16(TOKEN_RANGES_MAX as u16);
    out.push_u32(TOKEN_TIMEOUT_MAX_S);
    out.push_u32(TOKEN_TIMEOUT_DEFAULT_S);
    out.push_u64(TOKEN_BYTES_MAX >> shift);
    out.push_u64(TOKEN_BYTES_OPTIMAL >> shift);
}

fn supported_commands(out: &mut ParameterList<'_>) {
    let begins = [
        CopyOut::ExtendedCopyLid1 as u8,
        CopyOut::ExtendedCopyLid4 as u8,
        CopyOut::PopulateToken as u8,
        CopyOut::WriteUsingToken as u8,
        COPY_OPERATION_ABORT,
    ];
    let tells = [
        CopyIn::StatusLid1 as u8,
        OPERATING_PARAMETERS,
        CopyIn::FailureDetailsLid1 as u8,
        CopyIn::StatusLid4 as u8,
        CopyIn::TokenInformation as u8,
    ];
    out.push_u8((2 + begins.len() + 2 + tells.len()) as u8);
    out.push(&[0x83, begins.len() as u8]);
    out.push(&begins);
    out.push(&[0x84, tells.len() as u8]);
    out.push(&tells);
}

/// REMOTE TOKENS zero: tokens of any unit of this target device are taken, and of no other.
fn token_features(unit: &Unit, out: &mut ParameterList<'_>) {
    const BLOCK_FEATURES_BYTES: u16 = 0x2c;
    out.push_zeros(12);
    // No lifetime can be asked for.
    out.push_u32(0);
    out.push_u32(TOKEN_LIFETIME_MAX_S);
    out.push_u32(TOKEN_TIMEOUT_MAX_S);
    out.push_zeros(18);
    out.push_u16(4 + BLOCK_FEATURES_BYTES);
    out.push(&[0, 0]);
    out.push_u16(BLOCK_FEATURES_BYTES);
    out.push_zeros(2);
    out.push_u16(unit.optimal_granularity_blocks());
    out.push_u64(TOKEN_BYTES_MAX);
    out.push_u64(TOKEN_BYTES_OPTIMAL);
    // Making a token costs the same however long its ranges are.
    out.push_u64(u64::MAX);
    out.push_u64(TOKEN_BYTES_OPTIMAL);
    out.push_zeros(8);
}

fn rod_types(out: &mut ParameterList<'_>) {
    const TOKEN_OUT: u8 = 0x01;
    const TOKEN_IN: u8 = 0x02;
    let types = [
        (token::DEFAULT, TOKEN_OUT),
        (token::CHANGE_VULNERABLE, TOKEN_IN | TOKEN_OUT),
        (token::ANY, TOKEN_OUT),
        (token::ZERO, TOKEN_IN),
    ];
    out.push_zeros(2);
    out.push_u16(types.len() as u16 * 64);
    for (rod_type, flags) in types {
        out.push_u32(rod_type);
        out.push_u8(flags);
        // No preference among them.
        out.push_zeros(59);
    }
}

/// RECEIVE COPY OPERATING PARAMETERS.
pub(in crate::scsi) fn operating_parameters(cdb: Cdb<'_>, _unit: &Unit, out: &mut ParameterList<'_>) -> Action {
    const SNLID: u8 = 0x01;
    out.begin(cdb.be32(10));
    out.push_u32(40 + DESCRIPTOR_TYPES.len() as u32);
    out.push(&[SNLID, 0, 0, 0]);
    out.push_u16(COPY_CSCDS_MAX);
    out.push_u16(COPY_SEGMENTS_MAX);
    out.push_u32(COPY_DESCRIPTORS_BYTES_MAX);
    out.push_u32(COPY_SEGMENT_BYTES_MAX);
    // Neither inline data, nor held data, nor streams; and two reserved bytes.
    out.push_zeros(4 + 4 + 4 + 2);
    out.push_u16(COPIES_PER_SESSION_MAX as u16);
    out.push_u8(COPIES_PER_SESSION_MAX as u8);
    out.push(&[GRANULARITY_SHIFT, 0, 0]);
    out.push_zeros(3);
    out.push_u8(DESCRIPTOR_TYPES.len() as u8);
    out.push(&DESCRIPTOR_TYPES);
    Action::DataIn
}
