//! RESERVE and RELEASE (SPC-2), beside persistent reservations with the exceptions of SPC-3 clause 5.6.3 (CRH).

use super::nexus::Nexus;
use super::state::Reservations;
use crate::scsi::sense::{Outcome, Status};

impl Reservations {
    /// RESERVE(6) or RESERVE(10).
    pub fn reserve(&mut self, from: &Nexus) -> Outcome {
        if let Some(outcome) = self.beside_persistent(from) {
            return outcome;
        }
        match &self.reserved_by {
            Some(by) if by != from => Outcome::status(Status::RESERVATION_CONFLICT),
            _ => {
                self.reserved_by = Some(from.clone());
                Outcome::GOOD
            }
        }
    }

    /// RELEASE(6) or RELEASE(10). Releasing what one does not hold is no error, and releases nothing.
    pub fn release(&mut self, from: &Nexus) -> Outcome {
        if let Some(outcome) = self.beside_persistent(from) {
            return outcome;
        }
        self.nexus_lost(from);
        Outcome::GOOD
    }

    /// The session of a nexus has ended: what it reserved by RESERVE is free. Registrations stay. True if anything
    /// changed.
    pub fn nexus_lost(&mut self, nexus: &Nexus) -> bool {
        let lost = self.reserved_by.as_ref() == Some(nexus);
        if lost {
            self.reserved_by = None;
        }
        lost
    }

    /// The unit or the target was reset: what was reserved by RESERVE is free. True if anything changed.
    pub fn reset(&mut self) -> bool {
        self.reserved_by.take().is_some()
    }

    /// With registrations, RESERVE and RELEASE change nothing: they succeed for whom the reservation is, and conflict
    /// otherwise.
    fn beside_persistent(&self, from: &Nexus) -> Option<Outcome> {
        if self.registrations.is_empty() {
            return None;
        }
        let registration = self.find(from).map(|index| &self.registrations[index]);
        let shared = self.reservation.is_some_and(|kind| kind.for_registrants());
        Some(match registration {
            Some(registration) if shared || self.is_holder(registration) => Outcome::GOOD,
            _ => Outcome::status(Status::RESERVATION_CONFLICT),
        })
    }
}
