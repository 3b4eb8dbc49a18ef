//! The commands as the command table knows them: their CDBs. What they ask for is done where the state is.

use super::change::kind_of;
use super::report::ReserveIn;
use super::request::{LIST_BYTES, LIST_BYTES_MAX, ReserveOut};
use crate::scsi::cdb::Cdb;
use crate::scsi::execute::Action;
use crate::scsi::sense::{Sense, SenseCode};
use crate::scsi::unit::Unit;

pub(in crate::scsi) fn reserve_in(cdb: Cdb<'_>, _unit: &Unit) -> Action {
    match ReserveIn::from_code(cdb.byte(1) & 0x1f) {
        Some(what) => Action::ReserveIn { what, allocation_length: cdb.be16(7) },
        None => Sense::invalid_field_in_cdb(1, Some(4)).into(),
    }
}

pub(in crate::scsi) fn reserve_out(cdb: Cdb<'_>, _unit: &Unit) -> Action {
    let Some(service_action) = ReserveOut::from_code(cdb.byte(1) & 0x1f) else {
        return Sense::invalid_field_in_cdb(1, Some(4)).into();
    };
    let (scope_type, list_bytes) = (cdb.byte(2), cdb.be32(5));
    if (list_bytes as usize) < LIST_BYTES || list_bytes > LIST_BYTES_MAX {
        return Sense::new(SenseCode::PARAMETER_LIST_LENGTH_ERROR).into();
    }
    let needs_kind = matches!(service_action, ReserveOut::Reserve | ReserveOut::Preempt | ReserveOut::PreemptAndAbort);
    match kind_of(scope_type) {
        Err(sense) if needs_kind => sense.into(),
        _ => Action::ReserveOut { service_action, scope_type, list_bytes },
    }
}

/// RESERVE of either length, whose third parties and extents are obsolete.
pub(in crate::scsi) fn reserve_unit(_cdb: Cdb<'_>, _unit: &Unit) -> Action {
    Action::ReserveUnit { release: false }
}

pub(in crate::scsi) fn release_unit(_cdb: Cdb<'_>, _unit: &Unit) -> Action {
    Action::ReserveUnit { release: true }
}
