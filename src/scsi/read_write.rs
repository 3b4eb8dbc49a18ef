//! The commands that move blocks: READ, WRITE, VERIFY, WRITE AND VERIFY, SYNCHRONIZE CACHE (SBC-4 clause 5).
//!
//! A CDB of any length becomes a [`Range`], is checked against the unit, and leaves as an [`Action`]; the medium is not known here.

use super::cdb::Cdb;
use super::execute::{Action, ByteCheck};
use super::sense::{Outcome, Sense, SenseCode};
use super::unit::Unit;
use crate::units::Lba;

/// The blocks that a CDB names, as yet unchecked.
#[derive(Clone, Copy)]
struct Range {
    lba: u64,
    blocks: u32,
    /// Where TRANSFER LENGTH stands in the CDB, for the field pointer.
    length_byte: u8,
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

    fn cdb_10(cdb: Cdb<'_>) -> Self {
        Self { lba: u64::from(cdb.be32(2)), blocks: u32::from(cdb.be16(7)), length_byte: 7 }
    }

    fn cdb_12(cdb: Cdb<'_>) -> Self {
        Self { lba: u64::from(cdb.be32(2)), blocks: cdb.be32(6), length_byte: 6 }
    }

    fn cdb_16(cdb: Cdb<'_>) -> Self {
        Self { lba: cdb.be64(2), blocks: cdb.be32(10), length_byte: 10 }
    }

    /// The range lies on the unit and is no longer than MAXIMUM TRANSFER LENGTH. A range of no blocks must still start on the unit.
    #[inline]
    fn check(self, unit: &Unit) -> Result<(), Sense> {
        self.check_addresses(unit)?;
        if self.blocks > unit.transfer_blocks_max() {
            return Err(Sense::invalid_field_in_cdb(self.length_byte, None));
        }
        Ok(())
    }

    #[inline]
    fn check_addresses(self, unit: &Unit) -> Result<(), Sense> {
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
struct CacheHints {
    dpo: bool,
    fua: bool,
}

impl CacheHints {
    const NONE: Self = Self { dpo: false, fua: false };

    fn of(cdb: Cdb<'_>) -> Self {
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
fn check_writable(unit: &Unit) -> Result<(), Sense> {
    if unit.read_only() { Err(Sense::new(SenseCode::WRITE_PROTECTED)) } else { Ok(()) }
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
