//! SEND DIAGNOSTIC and RECEIVE DIAGNOSTIC RESULTS (SPC-5 clauses 6.41 and 6.22): the default self-test, and the list of
//! diagnostic pages, which names itself alone.

use super::cdb::Cdb;
use super::execute::Action;
use super::parameter_list::ParameterList;
use super::sense::{Outcome, Sense};
use super::unit::Unit;

/// SELF-TEST CODEs are refused as reserved bits: the default self-test (SELFTEST) is the only one, and there is nothing
/// in the unit that it could find broken. Data-Out would be a diagnostic page, and none can be sent.
pub(super) fn send_diagnostic(cdb: Cdb<'_>, _unit: &Unit) -> Action {
    if cdb.be16(3) != 0 {
        return Sense::invalid_field_in_cdb(3, None).into();
    }
    Action::Done(Outcome::GOOD)
}

/// Without PCV the page of the last SEND DIAGNOSTIC is meant; there was none, and the list of pages is sent.
pub(super) fn receive_diagnostic_results(cdb: Cdb<'_>, _unit: &Unit, out: &mut ParameterList<'_>) -> Action {
    let (page_code_valid, page_code) = (cdb.bit(1, 0), cdb.byte(2));
    if page_code_valid && page_code != 0 {
        return Sense::invalid_field_in_cdb(2, None).into();
    }
    out.begin(u32::from(cdb.be16(3)));
    out.push(&[0, 0, 0, 1, 0]);
    Action::DataIn
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::fixture::{DISK, invalid_field, reply, run};

    #[test]
    fn the_default_self_test_passes() {
        assert_eq!(run(&DISK, &[0x1d, 0x04, 0, 0, 0, 0]), Action::Done(Outcome::GOOD));
        assert_eq!(run(&DISK, &[0x1d, 0x17, 0, 0, 0, 0]), Action::Done(Outcome::GOOD));
        assert_eq!(run(&DISK, &[0x1d, 0x20, 0, 0, 0, 0]), invalid_field(1, Some(5)), "a background self-test");
        assert_eq!(run(&DISK, &[0x1d, 0x10, 0, 0, 4, 0]), invalid_field(3, None), "a page");
    }

    #[test]
    fn the_list_of_pages() {
        assert_eq!(reply(&DISK, &[0x1c, 1, 0, 0, 255, 0]), [0, 0, 0, 1, 0]);
        assert_eq!(reply(&DISK, &[0x1c, 0, 0, 0, 4, 0]), [0, 0, 0, 1]);
        assert_eq!(run(&DISK, &[0x1c, 1, 0x40, 0, 255, 0]), invalid_field(2, None));
    }
}
