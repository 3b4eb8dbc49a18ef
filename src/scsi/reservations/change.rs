//! PERSISTENT RESERVE OUT: what each service action does to the state (SPC-5 clauses 5.14.5 to 5.14.11).

use super::nexus::{InitiatorPort, Nexus};
use super::request::{BasicList, MoveList, ReserveOut};
use super::state::{Registration, ReservationKind, Reservations};
use crate::scsi::attention::Attention;
use crate::scsi::sense::{Outcome, Sense, SenseCode, Status};

/// A PERSISTENT RESERVE OUT command.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// The nexus that sent it.
    pub from: &'a Nexus,
    /// RELATIVE TARGET PORT IDENTIFIERs of every port that leads to the unit, for ALL_TG_PT and REGISTER AND MOVE.
    pub target_ports: &'a [u16],
    /// What it asks for.
    pub service_action: ReserveOut,
    /// SCOPE and TYPE, byte 2 of the CDB.
    pub scope_type: u8,
    /// Its parameter list.
    pub list: &'a [u8],
}

/// What a change means for another nexus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A unit attention condition is established for it.
    Attention(Attention),
    /// Its commands on the unit are aborted (PREEMPT AND ABORT).
    AbortCommands,
}

/// Why a change is refused: RESERVATION CONFLICT, or a check condition.
enum Refusal {
    Conflict,
    Check(Sense),
}

impl From<Sense> for Refusal {
    fn from(sense: Sense) -> Self {
        Self::Check(sense)
    }
}

type Done = Result<(), Refusal>;
type Effects<'a> = &'a mut dyn FnMut(&Nexus, Effect);

impl Reservations {
    /// Do it. Unless the outcome is GOOD, nothing has changed and there are no effects. `effect` is called at most
    /// twice for a nexus, never for the one that sent the command.
    pub fn apply(&mut self, change: &Change<'_>, effect: &mut dyn FnMut(&Nexus, Effect)) -> Outcome {
        match self.try_apply(change, effect) {
            Ok(()) => Outcome::GOOD,
            Err(Refusal::Conflict) => Outcome::status(Status::RESERVATION_CONFLICT),
            Err(Refusal::Check(sense)) => sense.into(),
        }
    }

    /// The operator takes everything off the unit: registrations, the persistent reservation, and what a RESERVE
    /// command reserved. Who was registered learns of it as from CLEAR. True if anything changed.
    pub fn clear_all(&mut self, effect: &mut dyn FnMut(&Nexus, Effect)) -> bool {
        let changed = !self.registrations.is_empty() || self.reserved_by.is_some();
        self.reservation = None;
        self.reserved_by = None;
        for registration in std::mem::take(&mut self.registrations) {
            effect(&registration.nexus, Effect::Attention(Attention::ReservationsPreempted));
        }
        if changed {
            self.generation = self.generation.wrapping_add(1);
        }
        changed
    }

    fn try_apply(&mut self, change: &Change<'_>, effects: Effects<'_>) -> Done {
        // A unit reserved by RESERVE answers no persistent reservation command, whoever sent it.
        if self.reserved_by.is_some() {
            return Err(Refusal::Conflict);
        }
        if change.service_action == ReserveOut::RegisterAndMove {
            return self.register_and_move(change, MoveList::parse(change.list)?, effects);
        }
        let list = BasicList::parse(change.service_action, change.list)?;
        match change.service_action {
            ReserveOut::Register => self.register(change, list, false, effects),
            ReserveOut::RegisterAndIgnoreExistingKey => self.register(change, list, true, effects),
            ReserveOut::Reserve => {
                let kind = kind_of(change.scope_type)?;
                self.reserve_persistently(self.sender(change.from, list.key)?, kind)
            }
            ReserveOut::Release => {
                self.release_persistently(self.sender(change.from, list.key)?, change.scope_type, effects)
            }
            ReserveOut::Clear => {
                self.sender(change.from, list.key)?;
                self.clear(change.from, effects)
            }
            _ => {
                let kind = kind_of(change.scope_type)?;
                let sender = self.sender(change.from, list.key)?;
                self.preempt(change, (sender, kind), list.service_action_key, effects)
            }
        }
    }

    /// The registration of the sender, whose key must be the one that it gives.
    fn sender(&self, from: &Nexus, key: u64) -> Result<usize, Refusal> {
        self.find(from).filter(|index| self.registrations[*index].key == key).ok_or(Refusal::Conflict)
    }

    /// REGISTER and REGISTER AND IGNORE EXISTING KEY (SPC-5 clause 5.14.7).
    fn register(&mut self, change: &Change<'_>, list: BasicList, ignore_key: bool, effects: Effects<'_>) -> Done {
        let registered = self.find(change.from);
        match registered {
            None if !ignore_key && list.key != 0 => return Err(Refusal::Conflict),
            Some(index) if !ignore_key && list.key != self.registrations[index].key => return Err(Refusal::Conflict),
            // The table of behaviours has this sense, although the bit is in the parameter list.
            Some(_) if list.initiators.is_some() => return Err(Sense::new(SenseCode::INVALID_FIELD_IN_CDB).into()),
            _ => {}
        }
        let own_port = [change.from.target_port];
        let ports = if list.all_target_ports { change.target_ports } else { &own_port };
        let further = list.initiators.unwrap_or_default();
        if (1 + further.len()).saturating_mul(ports.len()) > Self::REGISTRATIONS_MAX {
            return Err(Sense::new(SenseCode::INSUFFICIENT_REGISTRATION_RESOURCES).into());
        }
        let through = |initiator: &InitiatorPort| {
            let initiator = initiator.clone();
            ports.iter().map(move |&target_port| Nexus { initiator: initiator.clone(), target_port })
        };
        let own: Vec<_> = through(&change.from.initiator).collect();
        // Through each port as if by itself: a key there that is not the one given is a conflict.
        let differs = |index: usize| !ignore_key && self.registrations[index].key != list.key;
        if own.iter().filter_map(|nexus| self.find(nexus)).any(differs) {
            return Err(Refusal::Conflict);
        }
        if list.service_action_key != 0 {
            let further = further.iter().flat_map(through).filter(|nexus| self.find(nexus).is_none());
            let nexuses = own.into_iter().chain(further).collect();
            self.set_keys(nexuses, list.service_action_key)?;
        } else if registered.is_some() {
            self.unregister(&own, change.from, effects);
        }
        self.persist = list.persist;
        self.generation = self.generation.wrapping_add(1);
        Ok(())
    }

    /// Register the nexuses under the key. One that is registered already has the new key then.
    fn set_keys(&mut self, nexuses: Vec<Nexus>, key: u64) -> Done {
        let mut after = self.registrations.clone();
        for nexus in nexuses {
            match after.iter().position(|registration| registration.nexus == nexus) {
                Some(index) => after[index].key = key,
                None if after.len() == Self::REGISTRATIONS_MAX => {
                    return Err(Sense::new(SenseCode::INSUFFICIENT_REGISTRATION_RESOURCES).into());
                }
                None => after.push(Registration { nexus, key, holder: false }),
            }
        }
        self.registrations = after;
        Ok(())
    }

    /// The nexuses are registered no more. A reservation that nobody holds any more is released.
    fn unregister(&mut self, nexuses: &[Nexus], from: &Nexus, effects: Effects<'_>) {
        let held = self.reservation.is_some_and(|kind| !kind.all_registrants());
        self.registrations.retain(|registration| !nexuses.contains(&registration.nexus));
        let holder_left = self.registrations.iter().any(|registration| registration.holder);
        if (held && !holder_left) || self.registrations.is_empty() {
            self.drop_reservation(from, effects);
        }
    }

    /// There is no reservation any more; where registrants shared it they are told, but for the one that did it.
    fn drop_reservation(&mut self, from: &Nexus, effects: Effects<'_>) {
        let Some(kind) = self.reservation.take() else { return };
        for registration in &mut self.registrations {
            registration.holder = false;
            if kind.for_registrants() && registration.nexus != *from {
                effects(&registration.nexus, Effect::Attention(Attention::ReservationsReleased));
            }
        }
    }

    /// RESERVE (SPC-5 clause 5.14.9).
    fn reserve_persistently(&mut self, sender: usize, kind: ReservationKind) -> Done {
        match self.reservation {
            None => self.establish(sender, kind),
            Some(held) if held == kind && self.is_holder(&self.registrations[sender]) => {}
            Some(_) => return Err(Refusal::Conflict),
        }
        Ok(())
    }

    fn establish(&mut self, holder: usize, kind: ReservationKind) {
        self.reservation = Some(kind);
        for (index, registration) in self.registrations.iter_mut().enumerate() {
            registration.holder = index == holder && !kind.all_registrants();
        }
    }

    /// RELEASE (SPC-5 clause 5.14.11.2). Of what one does not hold it is no error, and releases nothing.
    fn release_persistently(&mut self, sender: usize, scope_type: u8, effects: Effects<'_>) -> Done {
        let Some(kind) = self.reservation else { return Ok(()) };
        if !self.is_holder(&self.registrations[sender]) {
            return Ok(());
        }
        if scope_type != kind as u8 {
            return Err(Sense::new(SenseCode::INVALID_RELEASE_OF_PERSISTENT_RESERVATION).into());
        }
        let from = self.registrations[sender].nexus.clone();
        self.drop_reservation(&from, effects);
        Ok(())
    }

    /// CLEAR (SPC-5 clause 5.14.11.6).
    fn clear(&mut self, from: &Nexus, effects: Effects<'_>) -> Done {
        self.reservation = None;
        for registration in std::mem::take(&mut self.registrations) {
            if registration.nexus != *from {
                effects(&registration.nexus, Effect::Attention(Attention::ReservationsPreempted));
            }
        }
        self.generation = self.generation.wrapping_add(1);
        Ok(())
    }

    /// PREEMPT and PREEMPT AND ABORT (SPC-5 clauses 5.14.11.4 and 5.14.11.5).
    fn preempt(
        &mut self,
        change: &Change<'_>,
        (sender, kind): (usize, ReservationKind),
        key: u64,
        effects: Effects<'_>,
    ) -> Done {
        let holder_key =
            self.registrations.iter().find(|registration| registration.holder).map(|registration| registration.key);
        let takes_reservation = match self.reservation {
            Some(held) if held.all_registrants() => key == 0,
            _ if key == 0 => return Err(Sense::invalid_field_in_list(8, None).into()),
            _ => holder_key == Some(key),
        };
        let matches = |registration: &Registration| key == 0 || registration.key == key;
        if !self.registrations.iter().any(matches) {
            return Err(Refusal::Conflict);
        }
        let before = self.reservation;
        if takes_reservation {
            self.establish(sender, kind);
        }
        let abort = change.service_action == ReserveOut::PreemptAndAbort;
        let type_changed = takes_reservation && before != Some(kind);
        // Who takes the reservation stays registered, even under the key that it preempts.
        let goes = |registration: &Registration| {
            matches(registration) && !(takes_reservation && registration.nexus == *change.from)
        };
        self.registrations.retain(|registration| {
            let goes = goes(registration);
            if registration.nexus != *change.from {
                if goes {
                    effects(&registration.nexus, Effect::Attention(Attention::RegistrationsPreempted));
                    if abort {
                        effects(&registration.nexus, Effect::AbortCommands);
                    }
                } else if type_changed {
                    effects(&registration.nexus, Effect::Attention(Attention::ReservationsReleased));
                }
            }
            !goes
        });
        if self.registrations.is_empty() {
            self.reservation = None;
        }
        self.generation = self.generation.wrapping_add(1);
        Ok(())
    }

    /// REGISTER AND MOVE (SPC-5 clause 5.14.8): only the one holder can, to another nexus.
    fn register_and_move(&mut self, change: &Change<'_>, list: MoveList, effects: Effects<'_>) -> Done {
        let sender = self.sender(change.from, list.key)?;
        match self.reservation {
            None => return Err(Sense::new(SenseCode::INVALID_FIELD_IN_CDB).into()),
            Some(kind) if kind.all_registrants() || !self.registrations[sender].holder => {
                return Err(Refusal::Conflict);
            }
            Some(_) => {}
        }
        if list.service_action_key == 0 {
            return Err(Sense::invalid_field_in_list(8, None).into());
        }
        if !change.target_ports.contains(&list.target_port) {
            return Err(Sense::invalid_field_in_list(18, None).into());
        }
        let to = Nexus { initiator: list.initiator, target_port: list.target_port };
        if to == *change.from {
            return Err(Sense::invalid_field_in_list(24, None).into());
        }
        self.set_keys(vec![to.clone()], list.service_action_key)?;
        for registration in &mut self.registrations {
            registration.holder = registration.nexus == to;
        }
        if list.unregister {
            self.unregister(std::slice::from_ref(change.from), change.from, effects);
        }
        self.persist = list.persist;
        self.generation = self.generation.wrapping_add(1);
        Ok(())
    }
}

/// SCOPE is the logical unit, and TYPE one that there is.
pub(super) fn kind_of(scope_type: u8) -> Result<ReservationKind, Sense> {
    // The whole byte: a scope other than zero is no type either.
    ReservationKind::from_code(scope_type)
        .ok_or(Sense::invalid_field_in_cdb(2, Some(if scope_type > 0xf { 7 } else { 3 })))
}
