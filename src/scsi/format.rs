//! FORMAT UNIT (SBC-4 clause 5.4): afterwards every block reads as zeros, and has no space where blocks can be
//! unmapped.
//!
//! Defect lists, protection information and initialization patterns are refused; certification is accepted, since
//! there is nothing to certify.

use super::cdb::Cdb;
use super::execute::Action;
use super::read_write::check_writable;
use super::sense::{Sense, SenseCode};
use super::unit::Unit;

/// What the parameter list of FORMAT UNIT asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FormatOptions {
    /// IMMED: answer GOOD as soon as the work has begun.
    pub immed: bool,
}

/// Bytes of the short and the long parameter list header.
const SHORT_BYTES: u8 = 4;
const LONG_BYTES: u8 = 8;

pub(super) fn format_unit(cdb: Cdb<'_>, unit: &Unit) -> Action {
    if let Err(sense) = check_writable(unit) {
        return sense.into();
    }
    let (long_list, has_list) = (cdb.bit(1, 5), cdb.bit(1, 4));
    let list_bytes = match (has_list, long_list) {
        (false, _) => 0,
        (true, false) => SHORT_BYTES,
        (true, true) => LONG_BYTES,
    };
    Action::Format { list_bytes }
}

/// Read the parameter list: the `list_bytes` of [`Action::Format`], none or a header.
pub fn parse(list: &[u8]) -> Result<FormatOptions, Sense> {
    const FOV: u8 = 0x80;
    const DPRY_DCRT_STPF: u8 = 0x70;
    const IP: u8 = 0x08;
    const IMMED: u8 = 0x02;
    let defect_list_byte: u8 = match list.len() as u8 {
        0 => return Ok(FormatOptions::default()),
        SHORT_BYTES => 2,
        LONG_BYTES => 4,
        _ => return Err(Sense::new(SenseCode::PARAMETER_LIST_LENGTH_ERROR)),
    };
    let [protection, options, ..] = *list else {
        return Err(Sense::new(SenseCode::PARAMETER_LIST_LENGTH_ERROR));
    };
    if protection & 0x07 != 0 {
        return Err(Sense::invalid_field_in_list(0, Some(2)));
    }
    // The options need FOV to be looked at; a pattern is not written even then.
    if options & IP != 0 {
        return Err(Sense::invalid_field_in_list(1, Some(3)));
    }
    if options & FOV == 0 && options & DPRY_DCRT_STPF != 0 {
        return Err(Sense::invalid_field_in_list(1, Some(7)));
    }
    // P_I_INFORMATION and PROTECTION INTERVAL EXPONENT.
    if list.len() == usize::from(LONG_BYTES) && list[3] != 0 {
        return Err(Sense::invalid_field_in_list(3, Some(7)));
    }
    if list[usize::from(defect_list_byte)..].iter().any(|byte| *byte != 0) {
        return Err(Sense::invalid_field_in_list(u16::from(defect_list_byte), None));
    }
    Ok(FormatOptions { immed: options & IMMED != 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::UnitConfig;
    use crate::scsi::fixture::{DISK, invalid_field, refused, run};

    #[test]
    fn the_command_says_how_long_its_header_is() {
        for (flags, list_bytes) in [(0x00, 0), (0x20, 0), (0x10, 4), (0x18, 4), (0x30, 8), (0x3f, 8)] {
            assert_eq!(run(&DISK, &[0x04, flags, 0, 0, 0, 0]), Action::Format { list_bytes });
        }
        assert_eq!(run(&DISK, &[0x04, 0x80, 0, 0, 0, 0]), invalid_field(1, Some(7)), "protection information");
        assert_eq!(run(&DISK, &[0x04, 0, 0, 0, 1, 0]), invalid_field(4, Some(0)), "fast format");
        let read_only = UnitConfig { read_only: true, ..DISK };
        assert_eq!(run(&read_only, &[0x04]), refused(SenseCode::WRITE_PROTECTED));
    }

    #[test]
    fn options() {
        let done = |immed| Ok(FormatOptions { immed });
        assert_eq!(parse(&[]), done(false));
        assert_eq!(parse(&[0, 0, 0, 0]), done(false));
        assert_eq!(parse(&[0, 0x02, 0, 0]), done(true));
        assert_eq!(parse(&[0, 0xf2, 0, 0]), done(true));
        assert_eq!(parse(&[0, 0x02, 0, 0, 0, 0, 0, 0]), done(true));
    }

    #[test]
    fn what_is_not_done_is_refused() {
        let refused = |byte, bit| Err(Sense::invalid_field_in_list(byte, bit));
        assert_eq!(parse(&[1, 0, 0, 0]), refused(0, Some(2)));
        assert_eq!(parse(&[0, 0x20, 0, 0]), refused(1, Some(7)), "DCRT without FOV");
        assert_eq!(parse(&[0, 0x88, 0, 0]), refused(1, Some(3)), "a pattern");
        assert_eq!(parse(&[0, 0, 0, 8]), refused(2, None), "defects");
        assert_eq!(parse(&[0, 0, 0, 0, 0, 0, 0, 8]), refused(4, None), "defects");
        assert_eq!(parse(&[0, 0, 0, 1, 0, 0, 0, 0]), refused(3, Some(7)));
        assert_eq!(parse(&[0, 0, 0]), Err(Sense::new(SenseCode::PARAMETER_LIST_LENGTH_ERROR)));
    }
}
