//! WRITE SAME (SBC-4 clauses 5.52 and 5.53): one block over a whole range, or the range unmapped.
//!
//! Served on every unit; with UNMAP only where blocks may be unmapped. ANCHOR and the obsolete PBDATA and LBDATA are
//! reserved bits of the command table's rows.

use super::cdb::Cdb;
use super::execute::Action;
use super::read_write::{Range, check_writable};
use super::sense::Sense;
use super::unit::Unit;
use crate::units::Lba;

pub(super) fn write_same_10(cdb: Cdb<'_>, unit: &Unit) -> Action {
    write_same(cdb, Range::cdb_10(cdb), false, unit)
}

pub(super) fn write_same_16(cdb: Cdb<'_>, unit: &Unit) -> Action {
    write_same(cdb, Range::cdb_16(cdb), cdb.bit(1, 0), unit)
}

fn write_same(cdb: Cdb<'_>, range: Range, no_data_out: bool, unit: &Unit) -> Action {
    let unmap = cdb.bit(1, 3);
    match check(range, unmap, unit) {
        Ok(()) => Action::WriteSame { lba: Lba(range.lba), blocks: range.blocks, unmap, no_data_out },
        Err(sense) => sense.into(),
    }
}

fn check(range: Range, unmap: bool, unit: &Unit) -> Result<(), Sense> {
    if unmap && !unit.thin_provisioned() {
        return Err(Sense::invalid_field_in_cdb(1, Some(3)));
    }
    check_writable(unit)?;
    range.check_addresses(unit)?;
    // WSNZ: no number does not mean "to the end", which MAXIMUM WRITE SAME LENGTH would forbid on most units anyway.
    if range.blocks == 0 || range.blocks > unit.write_same_blocks_max() {
        return Err(Sense::invalid_field_in_cdb(range.length_byte, None));
    }
    Ok(())
}
