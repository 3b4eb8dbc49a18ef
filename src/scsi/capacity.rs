//! READ CAPACITY (SBC-4 clauses 5.20 and 5.21): how many blocks of which length, and how they are provisioned.

use super::cdb::Cdb;
use super::execute::Action;
use super::parameter_list::ParameterList;
use super::unit::Unit;

/// The reply has no ALLOCATION LENGTH: it is always these eight bytes.
const READ_CAPACITY_10_BYTES: u32 = 8;

pub(super) fn read_capacity_10(_cdb: Cdb<'_>, unit: &Unit, out: &mut ParameterList<'_>) -> Action {
    out.begin(READ_CAPACITY_10_BYTES);
    // An address that does not fit says "ask with the 16-byte form".
    out.push_u32(u32::try_from(unit.last_lba().0).unwrap_or(u32::MAX));
    out.push_u32(unit.block_length().bytes());
    Action::DataIn
}

pub(super) fn read_capacity_16(cdb: Cdb<'_>, unit: &Unit, out: &mut ParameterList<'_>) -> Action {
    out.begin(cdb.be32(10));
    out.push_u64(unit.last_lba().0);
    out.push_u32(unit.block_length().bytes());
    // No protection: P_TYPE, PROT_EN and P_I_EXPONENT are zero.
    out.push_u8(0);
    out.push_u8(unit.physical_block_exponent());
    // LBPME, LBPRZ, and LOWEST ALIGNED LOGICAL BLOCK ADDRESS zero.
    let provisioning = if unit.thin_provisioned() { 0xc0 } else { 0 };
    out.push_u8(provisioning);
    out.push_zeros(17);
    Action::DataIn
}
