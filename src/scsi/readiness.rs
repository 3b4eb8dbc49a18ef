//! TEST UNIT READY, REQUEST SENSE, START STOP UNIT and PREVENT ALLOW MEDIUM REMOVAL: the unit's condition and how to change it.
//!
//! A unit is always active and its medium never leaves, so that asking for just that succeeds and asking for anything else is refused.

use super::cdb::Cdb;
use super::execute::{Action, LogicalUnit, TargetView};
use super::parameter_list::ParameterList;
use super::sense::{Outcome, Sense, SenseCode, SenseFormat};
use super::unit::Unit;

pub(super) fn test_unit_ready(_cdb: Cdb<'_>, _unit: &Unit) -> Action {
    Action::Done(Outcome::GOOD)
}

/// SPC-5 clause 6.39: a pending unit attention is told as parameter data, with GOOD status, and is thereby cleared.
pub(super) fn request_sense(
    cdb: Cdb<'_>,
    _target: &TargetView<'_>,
    unit: Option<LogicalUnit<'_>>,
    out: &mut ParameterList<'_>,
) -> Action {
    let code = match unit {
        None => SenseCode::LOGICAL_UNIT_NOT_SUPPORTED,
        Some(logical_unit) => match logical_unit.nexus.attentions_mut().take_first() {
            Some(attention) => attention.sense_code(),
            None => SenseCode::NO_ADDITIONAL_SENSE_INFORMATION,
        },
    };
    let format = if cdb.bit(1, 0) { SenseFormat::Descriptor } else { SenseFormat::Fixed };
    out.begin(u32::from(cdb.byte(4)));
    out.push(&Sense::new(code).encode(format));
    Action::DataIn
}

/// SBC-4 clause 5.31. Only START is accepted: power conditions and stopping would have to change what later commands answer, and
/// there is nothing to eject.
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
