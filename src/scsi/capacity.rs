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

#[cfg(test)]
mod tests {
    use crate::scsi::fixture::{DISK, THIN, invalid_field, reply, run};
    use crate::scsi::{BlockLength, UnitConfig};

    #[test]
    fn the_short_form_points_to_the_long_one_when_the_unit_is_large() {
        assert_eq!(reply(&DISK, &[0x25]), [0x01, 0x3f, 0xff, 0xff, 0, 0, 2, 0]);
        let just_fits = UnitConfig { capacity_blocks: 0xffff_ffff, ..DISK };
        assert_eq!(reply(&just_fits, &[0x25]), [0xff, 0xff, 0xff, 0xfe, 0, 0, 2, 0]);
        for capacity_blocks in [1 << 32, 1 << 37] {
            let large = UnitConfig { capacity_blocks, ..DISK };
            assert_eq!(reply(&large, &[0x25]), [0xff, 0xff, 0xff, 0xff, 0, 0, 2, 0]);
        }
        assert_eq!(run(&DISK, &[0x25, 0, 0, 0, 0, 1]), invalid_field(5, Some(0)));
        assert_eq!(run(&DISK, &[0x25, 0, 0, 0, 0, 0, 0, 0, 1]), invalid_field(8, Some(0)));
    }

    #[test]
    fn the_long_form_tells_all() {
        let cdb = [0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32];
        let mut expected = [0; 32];
        expected[..16].copy_from_slice(&[0, 0, 0, 0, 0x01, 0x3f, 0xff, 0xff, 0, 0, 2, 0, 0, 3, 0, 0]);
        assert_eq!(reply(&DISK, &cdb), expected);

        let thin = UnitConfig {
            block_length: BlockLength::B4096,
            physical_block_exponent: 0,
            capacity_blocks: 1 << 34,
            ..THIN
        };
        expected[..16].copy_from_slice(&[0, 0, 0, 3, 0xff, 0xff, 0xff, 0xff, 0, 0, 0x10, 0, 0, 0, 0xc0, 0]);
        assert_eq!(reply(&thin, &cdb), expected);

        let cdb = [0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12];
        assert_eq!(reply(&thin, &cdb), expected[..12]);
    }
}
