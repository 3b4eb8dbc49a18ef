//! COMPARE AND WRITE, ORWRITE and WRITE ATOMIC (SBC-4 clauses 5.3, 5.8 and 5.48): what is done to its blocks as a whole
//! or not at all.
//!
//! Who owns the medium keeps other commands out; a unit serves each only when its owner says that it does.

use super::cdb::Cdb;
use super::execute::Action;
use super::read_write::{CacheHints, Range, check_writable};
use super::sense::{Outcome, Sense};
use super::unit::Unit;
use crate::units::Lba;

const GOOD: Action = Action::Done(Outcome::GOOD);

pub(super) fn compare_and_write(cdb: Cdb<'_>, unit: &Unit) -> Action {
    let blocks = cdb.byte(13);
    let range = Range { lba: cdb.be64(2), blocks: u32::from(blocks), length_byte: 13 };
    if let Err(sense) = check_writable(unit).and_then(|()| range.check(unit)) {
        return sense.into();
    }
    if blocks == 0 {
        return GOOD;
    }
    let CacheHints { dpo, fua } = CacheHints::of(cdb);
    Action::CompareAndWrite { lba: Lba(range.lba), blocks, dpo, fua }
}

pub(super) fn or_write(cdb: Cdb<'_>, unit: &Unit) -> Action {
    let range = Range::cdb_16(cdb);
    if let Err(sense) = check_writable(unit).and_then(|()| range.check(unit)) {
        return sense.into();
    }
    if range.blocks == 0 {
        return GOOD;
    }
    let CacheHints { dpo, fua } = CacheHints::of(cdb);
    Action::OrWrite { lba: Lba(range.lba), blocks: range.blocks, dpo, fua }
}

pub(super) fn write_atomic(cdb: Cdb<'_>, unit: &Unit) -> Action {
    let range = Range { lba: cdb.be64(2), blocks: u32::from(cdb.be16(12)), length_byte: 12 };
    if let Err(sense) = check_atomic(cdb, range, unit) {
        return sense.into();
    }
    if range.blocks == 0 {
        return GOOD;
    }
    let CacheHints { dpo, fua } = CacheHints::of(cdb);
    Action::WriteAtomic { lba: Lba(range.lba), blocks: range.blocks, dpo, fua }
}

fn check_atomic(cdb: Cdb<'_>, range: Range, unit: &Unit) -> Result<(), Sense> {
    check_writable(unit)?;
    range.check_addresses(unit)?;
    // ATOMIC BOUNDARY: MAXIMUM ATOMIC BOUNDARY SIZE says that there are none.
    if cdb.be16(10) != 0 {
        return Err(Sense::invalid_field_in_cdb(10, None));
    }
    let granularity = unit.atomic_write_granularity_blocks();
    if range.blocks > unit.atomic_write_blocks_max() || !range.blocks.is_multiple_of(granularity) {
        return Err(Sense::invalid_field_in_cdb(range.length_byte, None));
    }
    if range.blocks > 0 && !range.lba.is_multiple_of(u64::from(granularity)) {
        return Err(Sense::invalid_field_in_cdb(2, None));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::fixture::{DISK, invalid_field, refused, run, run_on};
    use crate::scsi::{BlockLength, NexusUnit, SenseCode, UnitConfig};

    fn long(opcode: u8, flags: u8, lba: u64, tail: [u8; 4]) -> Vec<u8> {
        [&[opcode, flags][..], &lba.to_be_bytes(), &tail].concat()
    }

    #[test]
    fn compare_and_write_takes_two_buffers() {
        let action = run(&DISK, &long(0x89, 0x18, 0x1234, [0, 0, 0, 255]));
        assert_eq!(action, Action::CompareAndWrite { lba: Lba(0x1234), blocks: 255, dpo: true, fua: true });
        assert_eq!(action.data_out_bytes(BlockLength::B512), 2 * 255 * 512);
        assert_eq!(action.data_in_bytes(BlockLength::B512), 0);
        assert_eq!(run(&DISK, &long(0x89, 0, 0, [0; 4])), GOOD);
        for reserved in 10..13 {
            let mut cdb = long(0x89, 0, 0, [0, 0, 0, 1]);
            cdb[usize::from(reserved)] = 1;
            assert_eq!(run(&DISK, &cdb), invalid_field(reserved, Some(0)), "the number of blocks is one byte");
        }
    }

    #[test]
    fn or_write_is_as_long_as_a_write() {
        let expected = |blocks| Action::OrWrite { lba: Lba(7), blocks, dpo: false, fua: true };
        assert_eq!(run(&DISK, &long(0x8b, 8, 7, [0, 1, 0, 0])), expected(65_536));
        assert_eq!(run(&DISK, &long(0x8b, 8, 7, [0, 1, 0, 1])), invalid_field(10, None));
        assert_eq!(expected(3).data_out_bytes(BlockLength::B4096), 3 * 4096);
        assert_eq!(run(&DISK, &long(0x8b, 0, 7, [0; 4])), GOOD);
    }

    #[test]
    fn an_atomic_write_has_its_own_maximum_and_no_boundary() {
        let expected = Action::WriteAtomic { lba: Lba(5), blocks: 16, dpo: true, fua: false };
        assert_eq!(run(&DISK, &long(0x9c, 0x10, 5, [0, 0, 0, 16])), expected);
        assert_eq!(run(&DISK, &long(0x9c, 0x10, 5, [0, 0, 0, 17])), invalid_field(12, None));
        assert_eq!(run(&DISK, &long(0x9c, 0x10, 5, [0, 8, 0, 16])), invalid_field(10, None));
        assert_eq!(run(&DISK, &long(0x9c, 0, 5, [0; 4])), GOOD);
    }

    #[test]
    fn an_atomic_write_may_be_bound_to_multiples() {
        let unit = Unit::new(&DISK).expect("a valid description").with_atomic_writes(256, 8);
        let run =
            |lba, blocks| run_on(Some(&unit), &mut NexusUnit::default(), &long(0x9c, 0, lba, [0, 0, 0, blocks])).0;
        assert_eq!(run(24, 16), Action::WriteAtomic { lba: Lba(24), blocks: 16, dpo: false, fua: false });
        assert_eq!((run(25, 16), run(24, 15)), (invalid_field(2, None), invalid_field(12, None)));
        assert_eq!(run(25, 0), GOOD, "nothing is written anywhere");
    }

    #[test]
    fn addresses_and_protection_hold_for_all() {
        for opcode in [0x89, 0x8b, 0x9c] {
            let beyond = Sense::new(SenseCode::LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE).with_information(0x140_0000);
            assert_eq!(run(&DISK, &long(opcode, 0, 0x13f_ffff, [0, 0, 0, 2])), beyond.into(), "{opcode:02x}");
            assert_eq!(run(&DISK, &long(opcode, 0, 0x140_0000, [0; 4])), beyond.into(), "{opcode:02x}");
            assert_eq!(run(&DISK, &long(opcode, 0x20, 0, [0, 0, 0, 1])), invalid_field(1, Some(5)), "{opcode:02x}");
            let read_only = UnitConfig { read_only: true, ..DISK };
            let action = run(&read_only, &long(opcode, 0, 0, [0, 0, 0, 1]));
            assert_eq!(action, refused(SenseCode::WRITE_PROTECTED), "{opcode:02x}");
        }
    }

    #[test]
    fn a_unit_whose_owner_cannot_do_it_does_not_serve_it() {
        let plain = Unit::new(&DISK).expect("a valid description").with_atomic_writes(0, 1);
        for opcode in [0x89, 0x8b, 0x9c] {
            let (action, _) = run_on(Some(&plain), &mut NexusUnit::default(), &long(opcode, 0, 0, [0, 0, 0, 1]));
            assert_eq!(action, refused(SenseCode::INVALID_COMMAND_OPERATION_CODE), "{opcode:02x}");
            let supported = [0xa3, 0x0c, 1, opcode, 0, 0, 0, 0, 0, 255];
            let (_, reply) = run_on(Some(&plain), &mut NexusUnit::default(), &supported);
            assert_eq!(reply, [0, 1, 0, 0], "{opcode:02x}");
        }
    }
}
