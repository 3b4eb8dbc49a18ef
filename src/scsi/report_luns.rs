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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::fixture::{DISK, TARGET, cdb, invalid_field, reply, run, run_on, unit};
    use crate::scsi::{CommandRequest, Condition, NexusUnit, execute};

    fn report_luns(select_report: u8, allocation_length: u32) -> [u8; 12] {
        let [a, b, c, d] = allocation_length.to_be_bytes();
        [0xa0, 0, select_report, 0, 0, 0, a, b, c, d, 0, 0]
    }

    #[test]
    fn every_select_report_code_has_its_list() {
        let all = [
            [0, 0, 0, 24, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 0, 0, 0],
            [0, 1, 0, 0, 0, 0, 0, 0],
            [0x41, 0x2c, 0, 0, 0, 0, 0, 0],
        ]
        .concat();
        for code in [0x00, 0x02, 0x11] {
            assert_eq!(reply(&DISK, &report_luns(code, 4096)), all, "{code:02x}");
        }
        for code in [0x01, 0x10, 0x12] {
            assert_eq!(reply(&DISK, &report_luns(code, 4096)), [0; 8], "{code:02x}");
        }
        for code in [0x03, 0x0f, 0x13, 0xff] {
            assert_eq!(run(&DISK, &report_luns(code, 4096)), invalid_field(2, None), "{code:02x}");
        }
        assert_eq!(reply(&DISK, &report_luns(0, 16)), all[..16], "the length tells of all, the list is cut");
    }

    #[test]
    fn it_is_answered_where_no_unit_is() {
        let (action, data) = run_on(None, &mut NexusUnit::default(), &report_luns(0, 8));
        assert_eq!((action, data), (Action::DataIn, vec![0, 0, 0, 24, 0, 0, 0, 0]));
    }

    #[test]
    fn it_clears_the_news_that_it_brings_and_leaves_other_news() {
        let mut nexus = NexusUnit::default();
        nexus.raise(Attention::ReportedLunsChanged);
        nexus.raise(Attention::CapacityChanged);
        run_on(Some(&unit(&DISK)), &mut nexus, &report_luns(0, 4096));
        assert!(!nexus.attentions().contains(Attention::ReportedLunsChanged));
        assert!(nexus.attentions().contains(Attention::CapacityChanged));
    }

    #[test]
    fn the_longest_list_asks_for_its_buffer_and_changes_nothing_before() {
        let luns: Vec<_> = (0..16_384).map(Lun).collect();
        let target = TargetView { luns: &luns, ..TARGET };
        let unit = unit(&DISK);
        let mut nexus = NexusUnit::default();
        nexus.raise(Attention::ReportedLunsChanged);
        let cdb = cdb(&report_luns(0, u32::MAX));
        let request = CommandRequest { cdb: &cdb, data_out_bytes: None };

        let condition = Condition::Ready;
        let mut small = [0; ParameterList::BYTES_MIN];
        let mut out = ParameterList::new(&mut small);
        let action =
            execute(&request, &target, Some(LogicalUnit { unit: &unit, nexus: &mut nexus, condition }), &mut out);
        assert_eq!(action, Action::NeedsBuffer { bytes: ParameterList::BYTES_MAX as u32 });
        assert!(nexus.attentions().contains(Attention::ReportedLunsChanged));

        let mut large = vec![0; ParameterList::BYTES_MAX];
        let mut out = ParameterList::new(&mut large);
        let action =
            execute(&request, &target, Some(LogicalUnit { unit: &unit, nexus: &mut nexus, condition }), &mut out);
        assert_eq!(action, Action::DataIn);
        assert_eq!(out.len(), ParameterList::BYTES_MAX);
        assert!(nexus.attentions().is_empty());
        for (lun, entry) in luns.iter().zip(out.bytes()[8..].chunks_exact(8)) {
            assert_eq!(lun::decode(entry.try_into().expect("eight bytes")), Some(*lun));
        }
    }
}
