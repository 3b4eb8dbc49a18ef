//! TEST UNIT READY, REQUEST SENSE, START STOP UNIT and PREVENT ALLOW MEDIUM REMOVAL: the unit's condition and how to
//! change it.
//!
//! A unit is always active and its medium never leaves, so that asking for just that succeeds and asking for anything
//! else is refused.

use super::cdb::Cdb;
use super::execute::{Action, LogicalUnit, TargetView};
use super::parameter_list::ParameterList;
use super::sense::{Outcome, Sense, SenseCode, SenseFormat};
use super::unit::Unit;

pub(super) fn test_unit_ready(_cdb: Cdb<'_>, _unit: &Unit) -> Action {
    Action::Done(Outcome::GOOD)
}

/// SPC-5 clause 6.39: a pending unit attention is told as parameter data, with GOOD status, and is thereby cleared.
/// Without one, what the unit is busy with is told.
pub(super) fn request_sense(
    cdb: Cdb<'_>,
    _target: &TargetView<'_>,
    unit: Option<LogicalUnit<'_>>,
    out: &mut ParameterList<'_>,
) -> Action {
    let sense = match unit {
        None => Sense::new(SenseCode::LOGICAL_UNIT_NOT_SUPPORTED),
        Some(logical_unit) => match logical_unit.nexus.attentions_mut().take_first() {
            Some(attention) => Sense::new(attention.sense_code()),
            None => {
                let nothing = Sense::new(SenseCode::NO_ADDITIONAL_SENSE_INFORMATION);
                logical_unit.condition.sense().unwrap_or(nothing)
            }
        },
    };
    let format = if cdb.bit(1, 0) { SenseFormat::Descriptor } else { SenseFormat::Fixed };
    out.begin(u32::from(cdb.byte(4)));
    out.push(&sense.encode(format));
    Action::DataIn
}

/// SBC-4 clause 5.31. Only START is accepted: power conditions and stopping would have to change what later commands
/// answer, and there is nothing to eject.
pub(super) fn start_stop_unit(cdb: Cdb<'_>, _unit: &Unit) -> Action {
    // The first field that asks for more than START, by its byte and most significant bit.
    let refused = if cdb.byte(3) != 0 {
        Some((3, 3)) // POWER CONDITION MODIFIER
    } else if cdb.byte(4) >> 4 != 0 {
        Some((4, 7)) // POWER CONDITION
    } else if cdb.bit(4, 1) {
        Some((4, 1)) // LOEJ
    } else if !cdb.bit(4, 0) {
        Some((4, 0)) // START
    } else {
        None
    };
    refused.map_or(Action::Done(Outcome::GOOD), |(byte, bit)| Sense::invalid_field_in_cdb(byte, Some(bit)).into())
}

/// SPC-5 clause 6.17: the medium cannot be removed, so preventing and allowing it are both true already.
pub(super) fn prevent_allow_medium_removal(cdb: Cdb<'_>, _unit: &Unit) -> Action {
    if cdb.bit(4, 1) {
        return Sense::invalid_field_in_cdb(4, Some(1)).into();
    }
    Action::Done(Outcome::GOOD)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::fixture::{DISK, invalid_field, reply, run, run_on, unit};
    use crate::scsi::{Attention, NexusUnit};

    const GOOD: Action = Action::Done(Outcome::GOOD);

    #[test]
    fn a_unit_is_ready() {
        assert_eq!(run(&DISK, &[0, 0, 0, 0, 0, 0]), GOOD);
        assert_eq!(run(&DISK, &[0, 1, 0, 0, 0, 0]), invalid_field(1, Some(0)));
    }

    #[test]
    fn request_sense_tells_what_is_pending_and_then_nothing() {
        let unit = unit(&DISK);
        let mut nexus = NexusUnit::new();
        nexus.raise(Attention::CapacityChanged);
        let request_sense = [0x03, 0, 0, 0, 252, 0];
        let (action, data) = run_on(Some(&unit), &mut nexus, &request_sense);
        assert_eq!(action, Action::DataIn);
        assert_eq!(data, [0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x29, 0, 0, 0, 0, 0]);
        let (_, data) = run_on(Some(&unit), &mut nexus, &[0x03, 1, 0, 0, 252, 0]);
        assert_eq!(data, [0x72, 6, 0x2a, 9, 0, 0, 0, 0]);
        let (_, data) = run_on(Some(&unit), &mut nexus, &request_sense);
        assert_eq!(data, [0x70, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn request_sense_to_no_unit_succeeds_and_says_so() {
        let (action, data) = run_on(None, &mut NexusUnit::default(), &[0x03, 0, 0, 0, 14, 0]);
        assert_eq!(action, Action::DataIn);
        assert_eq!(data, [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x25, 0]);
    }

    #[test]
    fn a_request_for_no_sense_bytes_is_answered_with_none() {
        assert_eq!(reply(&DISK, &[0x03, 0, 0, 0, 0, 0]), [0u8; 0]);
    }

    #[test]
    fn only_starting_is_possible() {
        assert_eq!(run(&DISK, &[0x1b, 0, 0, 0, 0x01, 0]), GOOD);
        assert_eq!(run(&DISK, &[0x1b, 1, 0, 0, 0x01, 0]), GOOD, "IMMED");
        assert_eq!(run(&DISK, &[0x1b, 0, 0, 0, 0x00, 0]), invalid_field(4, Some(0)), "stop");
        assert_eq!(run(&DISK, &[0x1b, 0, 0, 0, 0x02, 0]), invalid_field(4, Some(1)), "eject");
        assert_eq!(run(&DISK, &[0x1b, 0, 0, 0, 0x30, 0]), invalid_field(4, Some(7)), "standby");
        assert_eq!(run(&DISK, &[0x1b, 0, 0, 1, 0x21, 0]), invalid_field(3, Some(3)), "idle_b");
    }

    #[test]
    fn a_medium_that_cannot_leave_may_be_kept_and_released() {
        assert_eq!(run(&DISK, &[0x1e, 0, 0, 0, 0, 0]), GOOD);
        assert_eq!(run(&DISK, &[0x1e, 0, 0, 0, 1, 0]), GOOD);
        assert_eq!(run(&DISK, &[0x1e, 0, 0, 0, 2, 0]), invalid_field(4, Some(1)));
    }
}
