//! The state of one unit's reservations, and what can be asked of it.

use super::nexus::Nexus;
use super::standing::Standing;

/// TYPE of a persistent reservation (SPC-5 clause 6.16.3.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum ReservationKind {
    /// One nexus writes, all read.
    WriteExclusive = 1,
    /// One nexus reads and writes.
    ExclusiveAccess = 3,
    /// Registered nexuses write, all read; one holds it.
    WriteExclusiveRegistrantsOnly = 5,
    /// Registered nexuses read and write; one holds it.
    ExclusiveAccessRegistrantsOnly = 6,
    /// Registered nexuses write, all read; all registered ones hold it.
    WriteExclusiveAllRegistrants = 7,
    /// Registered nexuses read and write; all registered ones hold it.
    ExclusiveAccessAllRegistrants = 8,
}

impl ReservationKind {
    /// Every type.
    pub const ALL: [Self; 6] = [
        Self::WriteExclusive,
        Self::ExclusiveAccess,
        Self::WriteExclusiveRegistrantsOnly,
        Self::ExclusiveAccessRegistrantsOnly,
        Self::WriteExclusiveAllRegistrants,
        Self::ExclusiveAccessAllRegistrants,
    ];

    /// The type of a TYPE field.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == code)
    }

    /// Every registered nexus is a holder.
    pub fn all_registrants(self) -> bool {
        matches!(self, Self::WriteExclusiveAllRegistrants | Self::ExclusiveAccessAllRegistrants)
    }

    /// Every registered nexus may do what the holder may.
    pub fn for_registrants(self) -> bool {
        !matches!(self, Self::WriteExclusive | Self::ExclusiveAccess)
    }

    /// Others may not even read.
    pub fn exclusive_access(self) -> bool {
        matches!(
            self,
            Self::ExclusiveAccess | Self::ExclusiveAccessRegistrantsOnly | Self::ExclusiveAccessAllRegistrants
        )
    }
}

/// A registered I_T nexus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Registration {
    pub(super) nexus: Nexus,
    /// Its reservation key, never zero.
    pub(super) key: u64,
    /// It holds the reservation. Never set for a type that all registrants hold.
    pub(super) holder: bool,
}

/// The reservations of one unit.
///
/// Holds always: no two registrations are of one nexus; exactly one has `holder` when there is a reservation that one
/// nexus holds, and none otherwise; a reservation has registrations; a unit reserved by RESERVE has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reservations {
    /// PRGENERATION.
    pub(super) generation: u32,
    /// The last APTPL: registrations and reservation outlast a loss of power.
    pub(super) persist: bool,
    pub(super) registrations: Vec<Registration>,
    pub(super) reservation: Option<ReservationKind>,
    /// The nexus that a RESERVE command reserved the unit for.
    pub(super) reserved_by: Option<Nexus>,
}

impl Reservations {
    /// Registrations of one unit at most: 64 nodes of a cluster over 8 paths each.
    pub const REGISTRATIONS_MAX: usize = 512;

    /// Nobody is registered and nothing is reserved.
    pub fn new() -> Self {
        Self::default()
    }

    /// What the unit's reservations mean for a nexus.
    pub fn standing(&self, nexus: &Nexus) -> Standing {
        let registration = self.find(nexus).map(|index| &self.registrations[index]);
        Standing::new(
            self.reservation,
            registration.is_some(),
            registration.is_some_and(|registration| self.is_holder(registration)),
            self.reserved_by.as_ref().map(|by| by == nexus),
        )
    }

    /// The persistent reservation's type, if there is one.
    pub fn reservation(&self) -> Option<ReservationKind> {
        self.reservation
    }

    /// The registered nexuses with their keys.
    pub fn registrations(&self) -> impl Iterator<Item = (&Nexus, u64)> {
        self.registrations.iter().map(|registration| (&registration.nexus, registration.key))
    }

    /// The key of the nexus that holds the persistent reservation, or zero where all registrants hold it. `None`:
    /// nobody holds any.
    pub fn holder_key(&self) -> Option<u64> {
        let kind = self.reservation?;
        let holder = self.registrations.iter().find(|registration| registration.holder);
        Some(if kind.all_registrants() { 0 } else { holder.map_or(0, |registration| registration.key) })
    }

    /// Whether a nexus holds the persistent reservation.
    pub fn is_held_by(&self, nexus: &Nexus) -> bool {
        self.reservation.is_some() && self.find(nexus).is_some_and(|index| self.is_holder(&self.registrations[index]))
    }

    /// The nexus for which a RESERVE command reserved the unit.
    pub fn reserved_by(&self) -> Option<&Nexus> {
        self.reserved_by.as_ref()
    }

    /// The last APTPL: registrations and the persistent reservation outlast a loss of power.
    pub fn persists(&self) -> bool {
        self.persist
    }

    /// PRGENERATION.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    pub(super) fn find(&self, nexus: &Nexus) -> Option<usize> {
        self.registrations.iter().position(|registration| registration.nexus == *nexus)
    }

    pub(super) fn is_holder(&self, registration: &Registration) -> bool {
        registration.holder || self.reservation.is_some_and(ReservationKind::all_registrants)
    }
}
