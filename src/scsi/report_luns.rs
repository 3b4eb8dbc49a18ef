//! REPORT LUNS (SPC-5 clause 6.33): which units the initiator may see.

use super::attention::Attention;
use super::cdb::Cdb;
use super::execute::{Action, LogicalUnit, TargetView};
use super::lun;
use super::parameter_list::ParameterList;
use super::sense::Sense;
use crate::units::Lun;

pub(super) fn report_luns(
    cdb: Cdb<'_>,
    target: &TargetView<'_>,
    unit: Option<LogicalUnit<'_>>,
    out: &mut ParameterList<'_>,
) -> Action {
    let Some(luns) = selected(cdb.byte(2), target.luns) else {
        return Sense::invalid_field_in_cdb(2, None).into();
    };
    out.begin(cdb.be32(6));
    let list_bytes = u32::try_from(luns.len() * 8).expect("at most 16,384 units");
    out.push_u32(list_bytes);
    out.push_zeros(4);
    for &lun in luns {
        out.push(&lun::encode(lun));
    }
    if let Some(logical_unit) = unit
        && out.bytes_missing().is_none()
    {
        logical_unit.nexus.clear(Attention::ReportedLunsChanged);
    }
    Action::DataIn
}

/// The units of a SELECT REPORT code, `None` for a reserved one. There are no well known and no administrative units.
fn selected(select_report: u8, luns: &[Lun]) -> Option<&[Lun]> {
    match select_report {
        // Without well known units; all; and administrative with those outside conglomerates.
        0x00 | 0x02 | 0x11 => Some(luns),
        // Well known units; administrative units; a conglomerate's units.
        0x01 | 0x10 | 0x12 => Some(&[]),
        _ => None,
    }
}
