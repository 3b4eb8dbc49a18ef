//! The form in which reservations outlast a loss of power (APTPL): versioned, bounded, with a checksum.
//!
//! All numbers are little-endian:
//!
//! | bytes | what |
//! | --- | --- |
//! | 8 | `LUNARPR1` |
//! | 1 | TYPE of the reservation, zero for none |
//! | 1 | zero |
//! | 2 | number of registrations |
//! | each: 8 | its key |
//! | 2 | its target port |
//! | 1 | 1 if it holds the reservation, else 0 |
//! | 6 | ISID |
//! | 1 | bytes of the name, then the name |
//! | 4 | CRC32C of all before |
//!
//! PRGENERATION is not kept: it starts at zero (SPC-5 clause 6.16.2.2).

use super::nexus::{InitiatorPort, Nexus};
use super::state::{Registration, ReservationKind, Reservations};
use crate::crc32c::crc32c;

const MAGIC: &[u8; 8] = b"LUNARPR1";

/// Why stored reservations cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoredError {
    /// Another form, or none.
    #[error("these are no reservations, or they were stored by a later version")]
    Version,
    /// They end too early, or go on after their end.
    #[error("the stored reservations are cut short or too long")]
    Length,
    /// The bytes have changed.
    #[error("the checksum of the stored reservations is wrong")]
    Checksum,
    /// No unit can have been in this state.
    #[error("the stored reservations contradict themselves")]
    Contradiction,
}

impl Reservations {
    /// What has to be stored so that the state outlasts a loss of power: `None` when nothing has to (the last APTPL is
    /// zero), and what is stored is to be removed.
    pub fn to_bytes(&self) -> Option<Vec<u8>> {
        if !self.persist {
            return None;
        }
        let mut bytes = MAGIC.to_vec();
        bytes.extend([self.reservation.map_or(0, |kind| kind as u8), 0]);
        bytes.extend(u16::try_from(self.registrations.len()).expect("at most REGISTRATIONS_MAX").to_le_bytes());
        for Registration { nexus, key, holder } in &self.registrations {
            bytes.extend(key.to_le_bytes());
            bytes.extend(nexus.target_port.to_le_bytes());
            bytes.push(u8::from(*holder));
            bytes.extend(nexus.initiator.isid());
            let name = nexus.initiator.name();
            bytes.push(u8::try_from(name.len()).expect("a name has at most 223 bytes"));
            bytes.extend(name);
        }
        bytes.extend(crc32c(&bytes).to_le_bytes());
        Some(bytes)
    }

    /// The state that was stored, as it is after a loss of power.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StoredError> {
        let Some((body, checksum)) = bytes.split_last_chunk::<4>() else {
            return Err(StoredError::Length);
        };
        if body.get(..MAGIC.len()) != Some(MAGIC) {
            return Err(StoredError::Version);
        }
        if crc32c(body) != u32::from_le_bytes(*checksum) {
            return Err(StoredError::Checksum);
        }
        let mut rest = &body[MAGIC.len()..];
        let [kind, _, low, high] = take(&mut rest)?;
        let reservation = match kind {
            0 => None,
            code => Some(ReservationKind::from_code(code).ok_or(StoredError::Contradiction)?),
        };
        let count = usize::from(u16::from_le_bytes([low, high]));
        let mut state = Self { persist: true, reservation, ..Self::default() };
        for _ in 0..count {
            let registration = take_registration(&mut rest)?;
            if state.find(&registration.nexus).is_some() {
                return Err(StoredError::Contradiction);
            }
            state.registrations.push(registration);
        }
        if !rest.is_empty() {
            return Err(StoredError::Length);
        }
        if state.is_possible() { Ok(state) } else { Err(StoredError::Contradiction) }
    }

    /// What always holds, holds.
    pub(super) fn is_possible(&self) -> bool {
        let holders = self.registrations.iter().filter(|registration| registration.holder).count();
        let one_holds = self.reservation.is_some_and(|kind| !kind.all_registrants());
        self.registrations.len() <= Self::REGISTRATIONS_MAX
            && holders == usize::from(one_holds)
            && (self.reservation.is_none() || !self.registrations.is_empty())
            && (self.reserved_by.is_none() || self.registrations.is_empty())
            && self.registrations.iter().all(|registration| registration.key != 0)
            && (1..self.registrations.len()).all(|index| {
                self.registrations[..index].iter().all(|other| other.nexus != self.registrations[index].nexus)
            })
    }
}

fn take<const BYTES: usize>(rest: &mut &[u8]) -> Result<[u8; BYTES], StoredError> {
    let (head, tail) = rest.split_first_chunk().ok_or(StoredError::Length)?;
    *rest = tail;
    Ok(*head)
}

fn take_registration(rest: &mut &[u8]) -> Result<Registration, StoredError> {
    let key = u64::from_le_bytes(take(rest)?);
    let target_port = u16::from_le_bytes(take(rest)?);
    let holder = match take(rest)? {
        [0] => false,
        [1] => true,
        [_] => return Err(StoredError::Contradiction),
    };
    let isid = take(rest)?;
    let [name_bytes] = take(rest)?;
    let (name, tail) = rest.split_at_checked(usize::from(name_bytes)).ok_or(StoredError::Length)?;
    *rest = tail;
    let initiator = InitiatorPort::new(name, isid).ok_or(StoredError::Contradiction)?;
    Ok(Registration { nexus: Nexus { initiator, target_port }, key, holder })
}
