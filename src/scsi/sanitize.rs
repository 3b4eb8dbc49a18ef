//! SANITIZE (SBC-4 clause 5.29): OVERWRITE, BLOCK ERASE and EXIT FAILURE MODE. Nothing is encrypted here, so there is
//! no CRYPTOGRAPHIC ERASE.

use super::cdb::Cdb;
use super::execute::Action;
use super::read_write::check_writable;
use super::sense::{Sense, SenseCode};
use super::unit::Unit;

/// How a unit is sanitized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SanitizeMethod {
    /// Every block is overwritten, as [`parse_overwrite`] reads in `list_bytes` of Data-Out.
    Overwrite {
        /// Bytes of Data-Out: 5 to a block and 4.
        list_bytes: u16,
    },
    /// Every block loses its space and reads as zeros.
    BlockErase,
}

/// What the parameter list of OVERWRITE asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overwrite<'a> {
    /// INVERT: every other pass has the pattern's complement, so that the last one has the pattern itself.
    pub invert: bool,
    /// OVERWRITE COUNT, 1 to 31 passes.
    pub passes: u8,
    /// What each block is filled with, over and over, starting anew at each block; 1 byte to a block.
    pub pattern: &'a [u8],
}

impl Overwrite<'_> {
    /// Whether pass `pass`, counted from zero, writes the complement of the pattern.
    pub fn is_inverted(&self, pass: u8) -> bool {
        self.invert && !(self.passes - 1 - pass).is_multiple_of(2)
    }
}

/// Bytes of OVERWRITE's list before its pattern.
const HEADER_BYTES: usize = 4;

fn sanitize(cdb: Cdb<'_>, unit: &Unit, method: SanitizeMethod) -> Action {
    match check_writable(unit) {
        Err(sense) => sense.into(),
        Ok(()) => Action::Sanitize { method, immed: cdb.bit(1, 7), may_exit: cdb.bit(1, 5) },
    }
}

pub(super) fn overwrite(cdb: Cdb<'_>, unit: &Unit) -> Action {
    let list_bytes = cdb.be16(7);
    let longest = HEADER_BYTES + unit.block_length().bytes() as usize;
    if !(HEADER_BYTES + 1..=longest).contains(&usize::from(list_bytes)) {
        return Sense::invalid_field_in_cdb(7, None).into();
    }
    sanitize(cdb, unit, SanitizeMethod::Overwrite { list_bytes })
}

pub(super) fn block_erase(cdb: Cdb<'_>, unit: &Unit) -> Action {
    sanitize(cdb, unit, SanitizeMethod::BlockErase)
}

pub(super) fn exit_failure_mode(_cdb: Cdb<'_>, _unit: &Unit) -> Action {
    Action::ExitSanitizeFailure
}

/// Read OVERWRITE's parameter list.
pub fn parse_overwrite<'a>(list: &'a [u8], unit: &Unit) -> Result<Overwrite<'a>, Sense> {
    let Some((&[flags, _, high, low], pattern)) = list.split_first_chunk() else {
        return Err(Sense::new(SenseCode::PARAMETER_LIST_LENGTH_ERROR));
    };
    // TEST: vendor specific but for zero.
    if flags & 0x60 != 0 {
        return Err(Sense::invalid_field_in_list(0, Some(6)));
    }
    let passes = flags & 0x1f;
    if passes == 0 {
        return Err(Sense::invalid_field_in_list(0, Some(4)));
    }
    let pattern_bytes = usize::from(u16::from_be_bytes([high, low]));
    if pattern_bytes == 0 || pattern_bytes != pattern.len() || pattern_bytes > unit.block_length().bytes() as usize {
        return Err(Sense::invalid_field_in_list(2, None));
    }
    Ok(Overwrite { invert: flags & 0x80 != 0, passes, pattern })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::fixture::{DISK, invalid_field, refused, run, unit};
    use crate::scsi::{BlockLength, UnitConfig};

    #[test]
    fn the_command_names_the_method() {
        let expected = |method, immed, may_exit| Action::Sanitize { method, immed, may_exit };
        let overwrite = |list_bytes| SanitizeMethod::Overwrite { list_bytes };
        assert_eq!(run(&DISK, &[0x48, 0x01, 0, 0, 0, 0, 0, 0, 8, 0]), expected(overwrite(8), false, false));
        assert_eq!(run(&DISK, &[0x48, 0xa1, 0, 0, 0, 0, 0, 2, 4, 0]), expected(overwrite(516), true, true));
        assert_eq!(run(&DISK, &[0x48, 0x22]), expected(SanitizeMethod::BlockErase, false, true));
        assert_eq!(run(&DISK, &[0x48, 0x1f]), Action::ExitSanitizeFailure);
        assert_eq!(run(&DISK, &[0x48, 0x03]), invalid_field(1, Some(4)), "not encrypted");
        assert_eq!(expected(overwrite(516), true, true).data_out_bytes(BlockLength::B512), 516);
        let read_only = UnitConfig { read_only: true, ..DISK };
        assert_eq!(run(&read_only, &[0x48, 0x02]), refused(SenseCode::WRITE_PROTECTED));
    }

    #[test]
    fn the_list_is_as_long_as_its_method_needs() {
        for length in [0u16, 4, 517, 0xffff] {
            let [high, low] = length.to_be_bytes();
            assert_eq!(run(&DISK, &[0x48, 0x01, 0, 0, 0, 0, 0, high, low, 0]), invalid_field(7, None));
        }
        assert_eq!(run(&DISK, &[0x48, 0x02, 0, 0, 0, 0, 0, 0, 4, 0]), invalid_field(8, Some(2)));
        assert_eq!(run(&DISK, &[0x48, 0x1f, 0, 0, 0, 0, 0, 0, 4, 0]), invalid_field(8, Some(2)));
        assert_eq!(run(&DISK, &[0x48, 0x42]), invalid_field(1, Some(6)), "zones");
    }

    #[test]
    fn a_pattern_and_how_often() {
        let unit = unit(&DISK);
        let pattern = [0x55, 0xaa];
        let expected = Overwrite { invert: true, passes: 3, pattern: &pattern };
        assert_eq!(parse_overwrite(&[0x83, 0, 0, 2, 0x55, 0xaa], &unit), Ok(expected));
        let inverted: Vec<_> = (0..3).map(|pass| expected.is_inverted(pass)).collect();
        assert_eq!(inverted, [false, true, false]);
        let even = Overwrite { passes: 2, ..expected };
        assert!(even.is_inverted(0) && !even.is_inverted(1));
        assert!(!Overwrite { invert: false, ..even }.is_inverted(0));

        let wrong = |list: &[u8], byte, bit| {
            assert_eq!(parse_overwrite(list, &unit), Err(Sense::invalid_field_in_list(byte, bit)));
        };
        wrong(&[0x00, 0, 0, 1, 0], 0, Some(4));
        wrong(&[0x21, 0, 0, 1, 0], 0, Some(6));
        wrong(&[0x01, 0, 0, 0, 0], 2, None);
        wrong(&[0x01, 0, 0, 2, 0], 2, None);
        wrong(&[0x01, 0, 0, 1, 0, 0], 2, None);
        wrong(&[&[0x01, 0, 2, 1][..], &[0; 513]].concat(), 2, None);
    }
}
