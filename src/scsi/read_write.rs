//! The commands that move blocks: READ, WRITE, VERIFY, WRITE AND VERIFY, PRE-FETCH, SYNCHRONIZE CACHE (SBC-4 clause 5).
//!
//! A CDB of any length becomes a [`Range`], is checked against the unit, and leaves as an [`Action`]; the medium is not
//! known here.

use super::cdb::Cdb;
use super::execute::{Action, ByteCheck};
use super::sense::{Outcome, Sense, SenseCode};
use super::unit::Unit;
use crate::units::Lba;

/// The blocks that a CDB names, as yet unchecked.
#[derive(Clone, Copy)]
pub(super) struct Range {
    pub(super) lba: u64,
    pub(super) blocks: u32,
    /// Where TRANSFER LENGTH stands in the CDB, for the field pointer.
    pub(super) length_byte: u8,
}

impl Range {
    fn cdb_6(cdb: Cdb<'_>) -> Self {
        let lba = u64::from(cdb.be32(0) & 0x001f_ffff);
        // SBC-4 clauses 5.12 and 5.41: zero means 256 blocks in the 6-byte forms only.
        let blocks = match cdb.byte(4) {
            0 => 256,
            blocks => u32::from(blocks),
        };
        Self { lba, blocks, length_byte: 4 }
    }

    pub(super) fn cdb_10(cdb: Cdb<'_>) -> Self {
        Self { lba: u64::from(cdb.be32(2)), blocks: u32::from(cdb.be16(7)), length_byte: 7 }
    }

    fn cdb_12(cdb: Cdb<'_>) -> Self {
        Self { lba: u64::from(cdb.be32(2)), blocks: cdb.be32(6), length_byte: 6 }
    }

    pub(super) fn cdb_16(cdb: Cdb<'_>) -> Self {
        Self { lba: cdb.be64(2), blocks: cdb.be32(10), length_byte: 10 }
    }

    /// The range lies on the unit and is no longer than MAXIMUM TRANSFER LENGTH. A range of no blocks must still start
    /// on the unit.
    #[inline]
    pub(super) fn check(self, unit: &Unit) -> Result<(), Sense> {
        self.check_addresses(unit)?;
        if self.blocks > unit.transfer_blocks_max() {
            return Err(Sense::invalid_field_in_cdb(self.length_byte, None));
        }
        Ok(())
    }

    #[inline]
    pub(super) fn check_addresses(self, unit: &Unit) -> Result<(), Sense> {
        let capacity = unit.capacity_blocks();
        // Written so that no sum can overflow. INFORMATION names the first address that is not there.
        if self.lba >= capacity {
            return Err(out_of_range(self.lba));
        }
        if u64::from(self.blocks) > capacity - self.lba {
            return Err(out_of_range(capacity));
        }
        Ok(())
    }
}

#[cold]
fn out_of_range(lba: u64) -> Sense {
    Sense::new(SenseCode::LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE).with_information(lba)
}

/// DPO and FUA of byte 1; the 6-byte forms have LBA bits there.
#[derive(Clone, Copy)]
pub(super) struct CacheHints {
    pub(super) dpo: bool,
    pub(super) fua: bool,
}

impl CacheHints {
    const NONE: Self = Self { dpo: false, fua: false };

    pub(super) fn of(cdb: Cdb<'_>) -> Self {
        Self { dpo: cdb.bit(1, 4), fua: cdb.bit(1, 3) }
    }
}

const GOOD: Action = Action::Done(Outcome::GOOD);

#[inline]
fn read(range: Range, hints: CacheHints, unit: &Unit) -> Action {
    if let Err(sense) = range.check(unit) {
        return sense.into();
    }
    if range.blocks == 0 {
        return GOOD;
    }
    Action::Read { lba: Lba(range.lba), blocks: range.blocks, dpo: hints.dpo, fua: hints.fua }
}

#[inline]
fn write(range: Range, hints: CacheHints, unit: &Unit) -> Action {
    if let Err(sense) = check_writable(unit).and_then(|()| range.check(unit)) {
        return sense.into();
    }
    if range.blocks == 0 {
        return GOOD;
    }
    Action::Write { lba: Lba(range.lba), blocks: range.blocks, dpo: hints.dpo, fua: hints.fua }
}

#[inline]
pub(super) fn check_writable(unit: &Unit) -> Result<(), Sense> {
    match (unit.always_read_only(), unit.write_protected()) {
        (true, _) => Err(Sense::new(SenseCode::WRITE_PROTECTED)),
        (false, true) => Err(Sense::new(SenseCode::LOGICAL_UNIT_SOFTWARE_WRITE_PROTECTED)),
        (false, false) => Ok(()),
    }
}

/// BYTCHK stands in bits 2 and 1 of byte 1; 10b is reserved.
fn byte_check(cdb: Cdb<'_>) -> Result<ByteCheck, Sense> {
    match cdb.byte(1) >> 1 & 3 {
        0 => Ok(ByteCheck::None),
        1 => Ok(ByteCheck::DataOut),
        3 => Ok(ByteCheck::Single),
        _ => Err(Sense::invalid_field_in_cdb(1, Some(2))),
    }
}

fn verify(cdb: Cdb<'_>, range: Range, unit: &Unit) -> Action {
    match byte_check(cdb).and_then(|check| range.check(unit).map(|()| check)) {
        Err(sense) => sense.into(),
        Ok(_) if range.blocks == 0 => GOOD,
        Ok(byte_check) => {
            Action::Verify { lba: Lba(range.lba), blocks: range.blocks, byte_check, dpo: CacheHints::of(cdb).dpo }
        }
    }
}

fn write_and_verify(cdb: Cdb<'_>, range: Range, unit: &Unit) -> Action {
    let checked = byte_check(cdb).and_then(|byte_check| {
        check_writable(unit)?;
        range.check(unit)?;
        match byte_check {
            ByteCheck::None => Ok(false),
            ByteCheck::DataOut => Ok(true),
            ByteCheck::Single => Err(Sense::invalid_field_in_cdb(1, Some(2))),
        }
    });
    match checked {
        Err(sense) => sense.into(),
        Ok(_) if range.blocks == 0 => GOOD,
        Ok(compare) => {
            Action::WriteAndVerify { lba: Lba(range.lba), blocks: range.blocks, compare, dpo: CacheHints::of(cdb).dpo }
        }
    }
}

fn synchronize_cache(cdb: Cdb<'_>, range: Range, unit: &Unit) -> Action {
    if let Err(sense) = range.check_addresses(unit) {
        return sense.into();
    }
    // SBC-4 clause 5.33: no number of blocks means all from the address to the end.
    let blocks = if range.blocks == 0 { unit.capacity_blocks() - range.lba } else { u64::from(range.blocks) };
    Action::Flush { lba: Lba(range.lba), blocks, immed: cdb.bit(1, 1) }
}

/// SBC-4 clauses 5.10 and 5.11: GOOD says that there is no room to keep all the blocks at hand. There is none for any:
/// what is read again is found by the host where it keeps what it reads, or on its device.
fn pre_fetch(range: Range, unit: &Unit) -> Action {
    range.check_addresses(unit).map_or_else(Action::from, |()| GOOD)
}

pub(super) fn read_6(cdb: Cdb<'_>, unit: &Unit) -> Action {
    read(Range::cdb_6(cdb), CacheHints::NONE, unit)
}

pub(super) fn read_10(cdb: Cdb<'_>, unit: &Unit) -> Action {
    read(Range::cdb_10(cdb), CacheHints::of(cdb), unit)
}

pub(super) fn read_12(cdb: Cdb<'_>, unit: &Unit) -> Action {
    read(Range::cdb_12(cdb), CacheHints::of(cdb), unit)
}

pub(super) fn read_16(cdb: Cdb<'_>, unit: &Unit) -> Action {
    read(Range::cdb_16(cdb), CacheHints::of(cdb), unit)
}

pub(super) fn write_6(cdb: Cdb<'_>, unit: &Unit) -> Action {
    write(Range::cdb_6(cdb), CacheHints::NONE, unit)
}

pub(super) fn write_10(cdb: Cdb<'_>, unit: &Unit) -> Action {
    write(Range::cdb_10(cdb), CacheHints::of(cdb), unit)
}

pub(super) fn write_12(cdb: Cdb<'_>, unit: &Unit) -> Action {
    write(Range::cdb_12(cdb), CacheHints::of(cdb), unit)
}

pub(super) fn write_16(cdb: Cdb<'_>, unit: &Unit) -> Action {
    write(Range::cdb_16(cdb), CacheHints::of(cdb), unit)
}

pub(super) fn pre_fetch_10(cdb: Cdb<'_>, unit: &Unit) -> Action {
    pre_fetch(Range::cdb_10(cdb), unit)
}

pub(super) fn pre_fetch_16(cdb: Cdb<'_>, unit: &Unit) -> Action {
    pre_fetch(Range::cdb_16(cdb), unit)
}

pub(super) fn verify_10(cdb: Cdb<'_>, unit: &Unit) -> Action {
    verify(cdb, Range::cdb_10(cdb), unit)
}

pub(super) fn verify_12(cdb: Cdb<'_>, unit: &Unit) -> Action {
    verify(cdb, Range::cdb_12(cdb), unit)
}

pub(super) fn verify_16(cdb: Cdb<'_>, unit: &Unit) -> Action {
    verify(cdb, Range::cdb_16(cdb), unit)
}

pub(super) fn write_and_verify_10(cdb: Cdb<'_>, unit: &Unit) -> Action {
    write_and_verify(cdb, Range::cdb_10(cdb), unit)
}

pub(super) fn write_and_verify_12(cdb: Cdb<'_>, unit: &Unit) -> Action {
    write_and_verify(cdb, Range::cdb_12(cdb), unit)
}

pub(super) fn write_and_verify_16(cdb: Cdb<'_>, unit: &Unit) -> Action {
    write_and_verify(cdb, Range::cdb_16(cdb), unit)
}

pub(super) fn synchronize_cache_10(cdb: Cdb<'_>, unit: &Unit) -> Action {
    synchronize_cache(cdb, Range::cdb_10(cdb), unit)
}

pub(super) fn synchronize_cache_16(cdb: Cdb<'_>, unit: &Unit) -> Action {
    synchronize_cache(cdb, Range::cdb_16(cdb), unit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::fixture::{DISK, invalid_field, refused, run};
    use crate::scsi::{BlockLength, UnitConfig};

    const GOOD: Action = Action::Done(Outcome::GOOD);

    fn read(lba: u64, blocks: u32, dpo: bool, fua: bool) -> Action {
        Action::Read { lba: Lba(lba), blocks, dpo, fua }
    }

    fn write(lba: u64, blocks: u32, dpo: bool, fua: bool) -> Action {
        Action::Write { lba: Lba(lba), blocks, dpo, fua }
    }

    fn out_of_range(lba: u64) -> Action {
        Sense::new(SenseCode::LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE).with_information(lba).into()
    }

    #[test]
    fn every_length_of_read_and_write_names_its_blocks() {
        assert_eq!(run(&DISK, &[0x08, 0x1f, 0x12, 0x34, 5, 0]), read(0x1f_1234, 5, false, false));
        assert_eq!(run(&DISK, &[0x0a, 0x01, 0x12, 0x34, 5, 0]), write(0x1_1234, 5, false, false));
        assert_eq!(run(&DISK, &[0x28, 0x00, 0, 0x11, 0x22, 0x33, 0, 1, 2, 0]), read(0x11_2233, 0x102, false, false));
        assert_eq!(run(&DISK, &[0x28, 0x10, 0, 0, 0, 1, 0, 0, 1, 0]), read(1, 1, true, false));
        assert_eq!(run(&DISK, &[0x2a, 0x08, 0, 0, 0, 1, 0, 0, 1, 0]), write(1, 1, false, true));
        assert_eq!(
            run(&DISK, &[0xa8, 0x18, 0, 0x11, 0x22, 0x33, 0, 0, 1, 2, 0, 0]),
            read(0x11_2233, 0x102, true, true)
        );
        assert_eq!(run(&DISK, &[0xaa, 0, 0, 0, 0, 9, 0, 0, 0, 1, 0, 0]), write(9, 1, false, false));
        let large = UnitConfig { capacity_blocks: 1 << 40, ..DISK };
        let tail = [0, 0, 1, 2, 0, 0];
        let cdb_16 = |opcode| [&[opcode, 0x18, 0, 0, 0x00, 0x55, 0x66, 0x77, 0x88, 0x99][..], &tail].concat();
        assert_eq!(run(&large, &cdb_16(0x88)), read(0x55_6677_8899, 0x102, true, true));
        assert_eq!(run(&large, &cdb_16(0x8a)), write(0x55_6677_8899, 0x102, true, true));
    }

    #[test]
    fn no_blocks_is_a_legal_length_except_in_six_bytes_where_it_is_256() {
        assert_eq!(run(&DISK, &[0x08, 0, 0, 7, 0, 0]), read(7, 256, false, false));
        assert_eq!(run(&DISK, &[0x0a, 0, 0, 7, 0, 0]), write(7, 256, false, false));
        for opcode in [0x28, 0x2a, 0x2e, 0x2f, 0x88, 0x8a, 0x8e, 0x8f, 0xa8, 0xaa, 0xae, 0xaf] {
            assert_eq!(run(&DISK, &[opcode]), GOOD, "{opcode:02x}");
        }
        // ... but it must start on the unit: 20,971,520 is 1400000h.
        assert_eq!(run(&DISK, &[0x28, 0, 0x01, 0x40, 0, 0, 0, 0, 0, 0]), out_of_range(0x140_0000));
        assert_eq!(run(&DISK, &[0x35, 0, 0x01, 0x40, 0, 0, 0, 0, 0, 0]), out_of_range(0x140_0000));
    }

    #[test]
    fn the_last_block_is_there_and_the_next_is_not() {
        assert_eq!(run(&DISK, &[0x28, 0, 0x01, 0x3f, 0xff, 0xff, 0, 0, 1, 0]), read(0x13f_ffff, 1, false, false));
        assert_eq!(run(&DISK, &[0x28, 0, 0x01, 0x3f, 0xff, 0xff, 0, 0, 2, 0]), out_of_range(0x140_0000));
        assert_eq!(run(&DISK, &[0x2a, 0, 0x01, 0x40, 0, 0, 0, 0, 1, 0]), out_of_range(0x140_0000));
        assert_eq!(run(&DISK, &[0x28, 0, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0]), out_of_range(0xffff_ffff));
        let top = [0x88, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0];
        assert_eq!(run(&DISK, &top), out_of_range(u64::MAX));
    }

    #[test]
    fn a_transfer_is_at_most_the_maximum_transfer_length() {
        let cdb = |blocks: u32| {
            let [a, b, c, d] = blocks.to_be_bytes();
            [0x88, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d, 0, 0]
        };
        assert_eq!(run(&DISK, &cdb(65_536)), read(0, 65_536, false, false));
        assert_eq!(run(&DISK, &cdb(65_537)), invalid_field(10, None));
        let long = UnitConfig { block_length: BlockLength::B4096, physical_block_exponent: 0, ..DISK };
        assert_eq!(run(&long, &[0x28, 0, 0, 0, 0, 0, 0, 0x20, 0x01, 0]), invalid_field(7, None));
        assert_eq!(run(&long, &[0xa8, 0, 0, 0, 0, 0, 0, 0, 0x20, 0x01, 0, 0]), invalid_field(6, None));
    }

    #[test]
    fn protection_groups_and_naca_are_refused() {
        for opcode in [0x28, 0x2a, 0x2e, 0x2f] {
            assert_eq!(run(&DISK, &[opcode, 0x20, 0, 0, 0, 0, 0, 0, 1, 0]), invalid_field(1, Some(5)), "{opcode:02x}");
            assert_eq!(run(&DISK, &[opcode, 0xe0, 0, 0, 0, 0, 0, 0, 1, 0]), invalid_field(1, Some(7)), "{opcode:02x}");
            assert_eq!(run(&DISK, &[opcode, 0, 0, 0, 0, 0, 3, 0, 1, 0]), invalid_field(6, Some(1)), "{opcode:02x}");
            assert_eq!(run(&DISK, &[opcode, 0, 0, 0, 0, 0, 0, 0, 1, 4]), invalid_field(9, Some(2)), "{opcode:02x}");
        }
    }

    #[test]
    fn a_read_only_unit_reads_and_refuses_to_write() {
        let read_only = UnitConfig { read_only: true, ..DISK };
        for opcode in [0x0a, 0x2a, 0x2e, 0x8a, 0x8e, 0xaa, 0xae] {
            assert_eq!(run(&read_only, &[opcode]), refused(SenseCode::WRITE_PROTECTED), "{opcode:02x}");
        }
        assert_eq!(run(&read_only, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0]), read(0, 1, false, false));
    }

    #[test]
    fn verify_compares_as_bytchk_says() {
        let verify = |byte_check, dpo| Action::Verify { lba: Lba(3), blocks: 4, byte_check, dpo };
        let cdb = |flags| [0x2f, flags, 0, 0, 0, 3, 0, 0, 4, 0];
        assert_eq!(run(&DISK, &cdb(0x00)), verify(ByteCheck::None, false));
        assert_eq!(run(&DISK, &cdb(0x12)), verify(ByteCheck::DataOut, true));
        assert_eq!(run(&DISK, &cdb(0x06)), verify(ByteCheck::Single, false));
        assert_eq!(run(&DISK, &cdb(0x04)), invalid_field(1, Some(2)));
        assert_eq!(run(&DISK, &[0xaf, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0]), verify(ByteCheck::DataOut, false));
        assert_eq!(run(&DISK, &[0x8f, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0]), verify(ByteCheck::DataOut, false));

        assert_eq!(verify(ByteCheck::None, false).data_out_bytes(BlockLength::B512), 0);
        assert_eq!(verify(ByteCheck::DataOut, false).data_out_bytes(BlockLength::B512), 2048);
        assert_eq!(verify(ByteCheck::Single, false).data_out_bytes(BlockLength::B512), 512);
    }

    #[test]
    fn write_and_verify_compares_if_bytchk_is_one() {
        let expected = |compare| Action::WriteAndVerify { lba: Lba(3), blocks: 4, compare, dpo: false };
        assert_eq!(run(&DISK, &[0x2e, 0, 0, 0, 0, 3, 0, 0, 4, 0]), expected(false));
        assert_eq!(run(&DISK, &[0x2e, 2, 0, 0, 0, 3, 0, 0, 4, 0]), expected(true));
        assert_eq!(run(&DISK, &[0x2e, 4, 0, 0, 0, 3, 0, 0, 4, 0]), invalid_field(1, Some(2)));
        assert_eq!(run(&DISK, &[0x2e, 6, 0, 0, 0, 3, 0, 0, 4, 0]), invalid_field(1, Some(2)));
        assert_eq!(run(&DISK, &[0xae, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0]), expected(true));
        assert_eq!(run(&DISK, &[0x8e, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0]), expected(true));
    }

    #[test]
    fn nothing_is_kept_at_hand() {
        for bytes in [&[0x34, 2, 0, 0, 0, 0, 0, 0xff, 0xff, 0][..], &[0x34, 0, 0, 0, 0, 5, 0, 0, 0, 0]] {
            assert_eq!(run(&DISK, bytes), GOOD);
        }
        assert_eq!(run(&DISK, &[0x90, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x01, 0x40, 0, 0, 0, 0]), GOOD);
        assert_eq!(run(&DISK, &[0x34, 0, 0x01, 0x3f, 0xff, 0xff, 0, 0, 2, 0]), out_of_range(0x140_0000));
        assert_eq!(run(&DISK, &[0x34, 2, 0, 0, 0, 0, 3, 0, 1, 0]), GOOD, "of any group");
        let top = [0x90, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0];
        assert_eq!(run(&DISK, &top), out_of_range(u64::MAX));
    }

    #[test]
    fn synchronize_cache_covers_a_range_or_all_that_follows() {
        let flush = |lba, blocks, immed| Action::Flush { lba: Lba(lba), blocks, immed };
        assert_eq!(run(&DISK, &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]), flush(0, 20_971_520, false));
        assert_eq!(run(&DISK, &[0x35, 2, 0, 0, 0, 16, 0, 0, 8, 0]), flush(16, 8, true));
        assert_eq!(run(&DISK, &[0x91, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0]), flush(16, 20_971_504, false));
        // Longer than MAXIMUM TRANSFER LENGTH: nothing is transferred.
        let all = [0x91, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x01, 0x40, 0, 0, 0, 0];
        assert_eq!(run(&DISK, &all), flush(0, 20_971_520, false));
        assert_eq!(run(&DISK, &[0x35, 0, 0x01, 0x3f, 0xff, 0xff, 0, 0, 2, 0]), out_of_range(0x140_0000));
    }
}
