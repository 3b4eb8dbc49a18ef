//! What a unit's reservations mean for one nexus: which of its commands conflict (SPC-5 clause 5.14.1 table "commands
//! that are allowed", the same of SBC-4 clause 4.17, and of SPC-2 for RESERVE).

use super::state::ReservationKind;
use crate::scsi::command_table::ReservationRule;

/// Small and plain: each shard keeps one for every session and unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    reservation: Option<ReservationKind>,
    registered: bool,
    holder: bool,
    /// RESERVE: nobody, this nexus, or another one.
    reserved: Reserved,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Reserved {
    #[default]
    No,
    ByThis,
    ByAnother,
}

impl Standing {
    /// `reserved_by_this`: whether the unit is reserved by a RESERVE of this nexus; `None` if by nobody's.
    pub(super) fn new(
        reservation: Option<ReservationKind>,
        registered: bool,
        holder: bool,
        reserved_by_this: Option<bool>,
    ) -> Self {
        let reserved = match reserved_by_this {
            None => Reserved::No,
            Some(true) => Reserved::ByThis,
            Some(false) => Reserved::ByAnother,
        };
        Self { reservation, registered, holder, reserved }
    }

    /// The command is answered with RESERVATION CONFLICT. `flags` is byte 4 of its CDB, where START STOP UNIT and
    /// PREVENT ALLOW MEDIUM REMOVAL say what they want.
    #[inline]
    pub(in crate::scsi) fn conflicts(self, rule: ReservationRule, flags: u8) -> bool {
        if self == Self::default() {
            return false;
        }
        let harmless = match rule {
            ReservationRule::Always => return false,
            ReservationRule::Persistent => return self.reserved != Reserved::No,
            // START with no POWER CONDITION.
            ReservationRule::WriteUnlessStart => flags & 0xf1 == 0x01,
            ReservationRule::WriteUnlessAllow => flags & 0x03 == 0,
            _ => false,
        };
        if harmless {
            return false;
        }
        if self.reserved == Reserved::ByAnother {
            return true;
        }
        let Some(kind) = self.reservation else { return false };
        if self.holder || (self.registered && kind.for_registrants()) {
            return false;
        }
        match rule {
            ReservationRule::Always | ReservationRule::Allowed | ReservationRule::Persistent => false,
            ReservationRule::Read => kind.exclusive_access(),
            ReservationRule::Write | ReservationRule::WriteUnlessStart | ReservationRule::WriteUnlessAllow => true,
        }
    }
}
