//! The 8-byte logical unit number field (SAM-5 clause 4.7.7) and [`Lun`]; knows nothing of which units exist.

use crate::units::Lun;

/// Numbers below this one are written in peripheral device addressing, the others in flat space addressing.
const PERIPHERAL_END: u16 = 256;
/// ADDRESS METHOD 01b, flat space addressing, in the two top bits of a level.
const FLAT_SPACE: u16 = 0x4000;

/// The unit that a LUN field addresses: peripheral device addressing on bus 0, or flat space addressing, with the lower
/// three levels zero. `None` for every other form (well known, extended, hierarchical), which this target never
/// reports.
pub fn decode(raw: [u8; 8]) -> Option<Lun> {
    let [high, low, rest @ ..] = raw;
    if rest != [0; 6] {
        return None;
    }
    let level = u16::from_be_bytes([high, low]);
    match level & 0xc000 {
        0 if level < PERIPHERAL_END => Some(Lun(level)),
        FLAT_SPACE => Some(Lun(level & 0x3fff)),
        _ => None,
    }
}

/// The LUN field that REPORT LUNS gives for a unit. `lun` is at most 16383.
pub fn encode(lun: Lun) -> [u8; 8] {
    assert!(lun.0 <= 0x3fff, "a flat logical unit number has 14 bits");
    let level = if lun.0 < PERIPHERAL_END { lun.0 } else { FLAT_SPACE | lun.0 };
    let [high, low] = level.to_be_bytes();
    [high, low, 0, 0, 0, 0, 0, 0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lun_survives_the_way_out_and_back() {
        for number in 0..=0x3fff {
            assert_eq!(decode(encode(Lun(number))), Some(Lun(number)));
        }
        assert_eq!(encode(Lun(255)), [0, 255, 0, 0, 0, 0, 0, 0]);
        assert_eq!(encode(Lun(256)), [0x41, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn an_initiator_may_use_flat_addressing_for_a_small_number() {
        assert_eq!(decode([0x40, 7, 0, 0, 0, 0, 0, 0]), Some(Lun(7)));
    }

    #[test]
    fn forms_that_we_never_report_address_nothing() {
        assert_eq!(decode([0x01, 0, 0, 0, 0, 0, 0, 0]), None, "another bus");
        assert_eq!(decode([0xc1, 0x01, 0, 0, 0, 0, 0, 0]), None, "the REPORT LUNS well known unit");
        assert_eq!(decode([0x80, 0, 0, 0, 0, 0, 0, 0]), None, "logical unit addressing");
        assert_eq!(decode([0, 1, 0, 1, 0, 0, 0, 0]), None, "a second level");
    }
}
