//! READ DEFECT DATA (SBC-4 clauses 5.17 and 5.18). There is no defect on this medium that is not the host's, so both
//! lists are there and empty, whatever form their addresses would have.

use super::cdb::Cdb;
use super::execute::Action;
use super::parameter_list::ParameterList;
use super::sense::Sense;
use super::unit::Unit;

/// REQ_PLIST, REQ_GLIST and DEFECT LIST FORMAT as they stand in a byte of the CDB; the reply's PLISTV, GLISTV and
/// format are the same bits.
fn lists(bits: u8, cdb_byte: u8) -> Result<u8, Sense> {
    // Short block, two extended forms, long block, bytes from index, physical sector; then vendor specific, reserved.
    if bits & 0x07 > 5 { Err(Sense::invalid_field_in_cdb(cdb_byte, Some(2))) } else { Ok(bits) }
}

pub(super) fn read_defect_data_10(cdb: Cdb<'_>, _unit: &Unit, out: &mut ParameterList<'_>) -> Action {
    match lists(cdb.byte(2), 2) {
        Err(sense) => sense.into(),
        Ok(bits) => {
            out.begin(u32::from(cdb.be16(7)));
            // DEFECT LIST LENGTH zero.
            out.push(&[0, bits, 0, 0]);
            Action::DataIn
        }
    }
}

/// An ADDRESS DESCRIPTOR INDEX beyond the end of the list gives the header alone too.
pub(super) fn read_defect_data_12(cdb: Cdb<'_>, _unit: &Unit, out: &mut ParameterList<'_>) -> Action {
    match lists(cdb.byte(1), 1) {
        Err(sense) => sense.into(),
        Ok(bits) => {
            out.begin(cdb.be32(6));
            // GENERATION CODE (not kept) and DEFECT LIST LENGTH zero.
            out.push(&[0, bits, 0, 0, 0, 0, 0, 0]);
            Action::DataIn
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::scsi::fixture::{DISK, invalid_field, reply, run};

    #[test]
    fn both_lists_are_empty_in_every_format() {
        for format in 0..6 {
            let bits = 0x18 | format;
            assert_eq!(reply(&DISK, &[0x37, 0, bits, 0, 0, 0, 0, 0, 255, 0]), [0, bits, 0, 0]);
            assert_eq!(reply(&DISK, &[0xb7, bits, 0, 0, 0, 9, 0, 0, 0, 255, 0, 0]), [0, bits, 0, 0, 0, 0, 0, 0]);
        }
        assert_eq!(reply(&DISK, &[0x37, 0, 0, 0, 0, 0, 0, 0, 2, 0]), [0, 0]);
    }

    #[test]
    fn formats_that_are_not_there() {
        for format in [6, 7] {
            assert_eq!(run(&DISK, &[0x37, 0, format, 0, 0, 0, 0, 0, 255, 0]), invalid_field(2, Some(2)));
            assert_eq!(run(&DISK, &[0xb7, format, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0]), invalid_field(1, Some(2)));
        }
    }
}
