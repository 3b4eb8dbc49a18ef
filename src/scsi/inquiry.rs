//! INQUIRY (SPC-5 clause 6.7): the standard data, and which vital product data page is asked for.

use super::cdb::Cdb;
use super::execute::{Action, LogicalUnit, TargetView};
use super::parameter_list::ParameterList;
use super::sense::Sense;
use super::unit::{self, Features, Unit};
use super::vital_product_data;

/// Peripheral device type 00h (direct access), connected.
pub(super) const DIRECT_ACCESS: u8 = 0x00;
/// PERIPHERAL QUALIFIER 011b and type 1Fh: no unit can be reached at this LUN.
pub(super) const NO_UNIT: u8 = 0x7f;

/// VERSION: SPC-4. Initiators that look at it know this one; the reply formats are the same in SPC-5.
const VERSION_SPC_4: u8 = 0x06;
/// HISUP (LUNs are reported in SAM-5's formats) and RESPONSE DATA FORMAT 2.
const HISUP_FORMAT_2: u8 = 0x12;
/// 3PC: third-party copy commands are served; page 8Fh tells which.
const THREE_PC: u8 = 0x08;
/// CMDQUE: the whole command management model of SAM-5.
const CMDQUE: u8 = 0x02;
/// Bytes of the standard data.
const STANDARD_BYTES: u8 = 96;
/// VERSION DESCRIPTORs (SPC-5 annex): SAM-5, iSCSI, SPC-4 and SBC-3, each without a version claimed.
const VERSION_DESCRIPTORS: [u16; 4] = [0x00a0, 0x0960, 0x0460, 0x04c0];

pub(super) fn inquiry(
    cdb: Cdb<'_>,
    target: &TargetView<'_>,
    unit: Option<LogicalUnit<'_>>,
    out: &mut ParameterList<'_>,
) -> Action {
    let unit = unit.map(|logical_unit| logical_unit.unit);
    let page_code = cdb.byte(2);
    let evpd = cdb.bit(1, 0);
    out.begin(u32::from(cdb.be16(3)));
    if evpd {
        return match vital_product_data::push_page(page_code, target, unit, out) {
            true => Action::DataIn,
            false => Sense::invalid_field_in_cdb(2, None).into(),
        };
    }
    if page_code != 0 {
        return Sense::invalid_field_in_cdb(2, None).into();
    }
    push_standard(unit, out);
    Action::DataIn
}

fn push_standard(unit: Option<&Unit>, out: &mut ParameterList<'_>) {
    let peripheral = if unit.is_some() { DIRECT_ACCESS } else { NO_UNIT };
    let tpgs = unit.map_or(0, Unit::target_port_group_support) << 4;
    let third_party_copy = unit.is_some_and(|unit| unit.features().contains(Features::COPY));
    let flags = tpgs | if third_party_copy { THREE_PC } else { 0 };
    out.push(&[peripheral, 0, VERSION_SPC_4, HISUP_FORMAT_2, STANDARD_BYTES - 5, flags, 0, CMDQUE]);
    out.push_ascii(unit::VENDOR, 8);
    match unit {
        Some(unit) => out.push(unit.product()),
        None => out.push_ascii("", 16),
    }
    out.push_ascii(unit::REVISION, 4);
    // Vendor specific, and the obsolete fields of parallel SCSI.
    out.push_zeros(22);
    for descriptor in VERSION_DESCRIPTORS {
        out.push_u16(descriptor);
    }
    out.push_zeros(usize::from(STANDARD_BYTES).saturating_sub(out.total_len()));
}

#[cfg(test)]
mod tests {
    use crate::scsi::fixture::{DISK, invalid_field, reply, run, run_on};
    use crate::scsi::{Action, NexusUnit};

    #[test]
    fn standard_data() {
        let data = reply(&DISK, &[0x12, 0, 0, 0, 255, 0]);
        assert_eq!(data.len(), 96);
        assert_eq!(data[..8], [0, 0, 6, 0x12, 91, 0x38, 0, 2]);
        assert_eq!(data[8..36], *b"LUNARINGVHDX disk       0.1 ");
        assert_eq!(data[36..58], [0; 22]);
        assert_eq!(data[58..66], [0x00, 0xa0, 0x09, 0x60, 0x04, 0x60, 0x04, 0xc0]);
        assert_eq!(data[66..], [0; 30]);
        assert_eq!(reply(&DISK, &[0x12, 0, 0, 0, 36, 0]), data[..36]);
        assert_eq!(reply(&DISK, &[0x12, 0, 0, 1, 0, 0]), data, "a length of two bytes");
    }

    #[test]
    fn where_no_unit_is() {
        let mut nexus = NexusUnit::default();
        let (action, data) = run_on(None, &mut nexus, &[0x12, 0, 0, 0, 96, 0]);
        assert_eq!(action, Action::DataIn);
        assert_eq!((data[0], data.len(), &data[16..32]), (0x7f, 96, &[b' '; 16][..]));
        let (_, data) = run_on(None, &mut nexus, &[0x12, 1, 0, 0, 96, 0]);
        assert_eq!(data, [0x7f, 0, 0, 1, 0]);
        let (action, _) = run_on(None, &mut nexus, &[0x12, 1, 0x83, 0, 96, 0]);
        assert_eq!(action, invalid_field(2, None));
    }

    #[test]
    fn what_is_refused() {
        assert_eq!(run(&DISK, &[0x12, 0, 0x80, 0, 255, 0]), invalid_field(2, None), "a page without EVPD");
        assert_eq!(run(&DISK, &[0x12, 1, 0x84, 0, 255, 0]), invalid_field(2, None), "a page that is not there");
        assert_eq!(run(&DISK, &[0x12, 2, 0, 0, 255, 0]), invalid_field(1, Some(1)), "CMDDT");
    }
}
