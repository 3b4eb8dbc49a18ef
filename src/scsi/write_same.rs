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
        Ok(blocks) => Action::WriteSame { lba: Lba(range.lba), blocks, unmap, no_data_out },
        Err(sense) => sense.into(),
    }
}

/// How many blocks. No number means all from the address to the end (WSNZ is zero), as far as MAXIMUM WRITE SAME LENGTH
/// allows.
fn check(range: Range, unmap: bool, unit: &Unit) -> Result<u32, Sense> {
    check_writable(unit)?;
    if unmap && !unit.thin_provisioned() {
        return Err(Sense::invalid_field_in_cdb(1, Some(3)));
    }
    range.check_addresses(unit)?;
    let blocks = match range.blocks {
        0 => unit.capacity_blocks() - range.lba,
        blocks => u64::from(blocks),
    };
    match u32::try_from(blocks) {
        Ok(blocks) if blocks <= unit.write_same_blocks_max() => Ok(blocks),
        _ => Err(Sense::invalid_field_in_cdb(range.length_byte, None)),
    }
}

#[cfg(test)]
mod tests {
    use crate::scsi::fixture::{DISK, TARGET, THIN, cdb, invalid_field, refused, run, unit};
    use crate::scsi::{Action, BlockLength, CommandRequest, Condition, LogicalUnit, NexusUnit, ParameterList};
    use crate::scsi::{Sense, SenseCode, UnitConfig, execute};
    use crate::units::Lba;

    fn expected(lba: u64, blocks: u32, unmap: bool, no_data_out: bool) -> Action {
        Action::WriteSame { lba: Lba(lba), blocks, unmap, no_data_out }
    }

    #[test]
    fn both_lengths_name_a_range_and_take_one_block() {
        assert_eq!(run(&DISK, &[0x41, 0, 0, 0, 1, 2, 0, 0xff, 0xff, 0]), expected(0x102, 65_535, false, false));
        let long = |flags| [0x93, flags, 0, 0, 0, 0, 0, 0, 1, 2, 0, 8, 0, 0, 0, 0];
        assert_eq!(run(&DISK, &long(0)), expected(0x102, 0x8_0000, false, false));
        assert_eq!(run(&DISK, &long(1)), expected(0x102, 0x8_0000, false, true));
        assert_eq!(run(&THIN, &long(8)), expected(0x102, 0x8_0000, true, false));
        assert_eq!(run(&THIN, &long(9)), expected(0x102, 0x8_0000, true, true));
        assert_eq!(expected(0, 9, true, false).data_out_bytes(BlockLength::B4096), 4096);
        assert_eq!(expected(0, 9, true, true).data_out_bytes(BlockLength::B4096), 0);
    }

    #[test]
    fn data_out_is_one_block() {
        let cdb = cdb(&[0x41, 0, 0, 0, 0, 0, 0, 0, 9, 0]);
        for (offered, good) in [(512, true), (0, false), (256, false), (1024, false)] {
            let request = CommandRequest { cdb: &cdb, data_out_bytes: Some(offered) };
            let logical_unit =
                LogicalUnit { unit: &unit(&DISK), nexus: &mut NexusUnit::default(), condition: Condition::Ready };
            let mut out = ParameterList::new(&mut []);
            let action = execute(&request, &TARGET, Some(logical_unit), &mut out);
            let expected = if good { expected(0, 9, false, false) } else { refused(SenseCode::INVALID_FIELD_IN_CDB) };
            assert_eq!(action, expected, "{offered}");
        }
    }

    #[test]
    fn a_unit_that_is_not_thin_unmaps_nothing() {
        assert_eq!(run(&DISK, &[0x41, 8, 0, 0, 0, 0, 0, 0, 1, 0]), invalid_field(1, Some(3)));
        assert_eq!(run(&DISK, &[0x93, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]), invalid_field(1, Some(3)));
        assert_eq!(run(&THIN, &[0x41, 8, 0, 0, 0, 0, 0, 0, 1, 0]), expected(0, 1, true, false));
    }

    #[test]
    fn anchoring_protection_and_obsolete_bits_are_refused() {
        for (flags, bit) in [(0x20, 5), (0x10, 4), (0x18, 4), (0x04, 2), (0x02, 1)] {
            assert_eq!(run(&THIN, &[0x41, flags, 0, 0, 0, 0, 0, 0, 1, 0]), invalid_field(1, Some(bit)));
            let long = [0x93, flags, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
            assert_eq!(run(&THIN, &long), invalid_field(1, Some(bit)));
        }
        assert_eq!(run(&THIN, &[0x41, 1, 0, 0, 0, 0, 0, 0, 1, 0]), invalid_field(1, Some(0)), "NDOB in ten bytes");
    }

    #[test]
    fn no_number_means_all_to_the_end_and_there_is_a_maximum() {
        let short = UnitConfig { capacity_blocks: 0x8_0000, ..THIN };
        assert_eq!(run(&short, &[0x41, 0, 0, 0, 0, 0, 0, 0, 0, 0]), expected(0, 0x8_0000, false, false));
        assert_eq!(run(&short, &[0x93, 9, 0, 0, 0, 0, 0, 7, 0xff, 0xfe]), expected(0x7_fffe, 2, true, true));
        // 256 MiB are written or unmapped at once.
        assert_eq!(run(&THIN, &[0x41, 0, 0, 0, 0, 0, 0, 0, 0, 0]), invalid_field(7, None));
        assert_eq!(run(&THIN, &[0x93, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), invalid_field(10, None));
        assert_eq!(run(&THIN, &[0x93, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 1]), invalid_field(10, None));
        let huge = UnitConfig { capacity_blocks: 1 << 40, ..THIN };
        assert_eq!(run(&huge, &[0x93]), invalid_field(10, None), "more than 32 bits");
    }

    #[test]
    fn the_range_lies_on_the_unit_and_the_unit_is_writable() {
        let out_of_range: Action =
            Sense::new(SenseCode::LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE).with_information(0x140_0000).into();
        assert_eq!(run(&DISK, &[0x41, 0, 0x01, 0x3f, 0xff, 0xff, 0, 0, 2, 0]), out_of_range);
        assert_eq!(run(&DISK, &[0x41, 0, 0x01, 0x40, 0, 0, 0, 0, 0, 0]), out_of_range);
        assert_eq!(run(&DISK, &[0x93, 0, 0, 0, 0, 0, 0x01, 0x3f, 0xff, 0xff, 0, 0, 0, 2]), out_of_range);
        let read_only = UnitConfig { read_only: true, ..THIN };
        for opcode in [0x41, 0x93] {
            assert_eq!(run(&read_only, &[opcode]), refused(SenseCode::WRITE_PROTECTED));
        }
    }
}
