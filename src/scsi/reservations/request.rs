//! PERSISTENT RESERVE OUT as it comes from the initiator: service action and parameter list (SPC-5 clauses 6.17.2 to
//! 6.17.4), checked as far as that goes without the unit's state.

use super::nexus::{InitiatorPort, parse_transport_id};
use super::state::Reservations;
use crate::scsi::sense::{Sense, SenseCode};

/// SERVICE ACTION of PERSISTENT RESERVE OUT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ReserveOut {
    /// Register, change the key, or unregister; the old key must be right.
    Register = 0,
    /// Reserve.
    Reserve = 1,
    /// Release.
    Release = 2,
    /// Release, and unregister everyone.
    Clear = 3,
    /// Unregister others, and take the reservation from them.
    Preempt = 4,
    /// The same, and abort their commands.
    PreemptAndAbort = 5,
    /// Register, whatever key there was.
    RegisterAndIgnoreExistingKey = 6,
    /// Register another nexus and give it the reservation.
    RegisterAndMove = 7,
}

impl ReserveOut {
    pub(super) fn from_code(code: u8) -> Option<Self> {
        const ALL: [ReserveOut; 8] = [
            ReserveOut::Register,
            ReserveOut::Reserve,
            ReserveOut::Release,
            ReserveOut::Clear,
            ReserveOut::Preempt,
            ReserveOut::PreemptAndAbort,
            ReserveOut::RegisterAndIgnoreExistingKey,
            ReserveOut::RegisterAndMove,
        ];
        ALL.get(usize::from(code)).copied()
    }
}

/// Bytes of the parameter list without TransportIDs.
pub(super) const LIST_BYTES: usize = 24;
/// The most bytes of a parameter list that are taken: some 300 of the longest TransportIDs.
pub(super) const LIST_BYTES_MAX: u32 = 64 * 1024;

/// The parameter list of every service action but REGISTER AND MOVE.
#[derive(Debug)]
pub(super) struct BasicList {
    pub(super) key: u64,
    pub(super) service_action_key: u64,
    pub(super) all_target_ports: bool,
    pub(super) persist: bool,
    /// SPEC_I_PT: further initiator ports.
    pub(super) initiators: Option<Vec<InitiatorPort>>,
}

/// The parameter list of REGISTER AND MOVE.
#[derive(Debug)]
pub(super) struct MoveList {
    pub(super) key: u64,
    pub(super) service_action_key: u64,
    pub(super) unregister: bool,
    pub(super) persist: bool,
    pub(super) target_port: u16,
    pub(super) initiator: InitiatorPort,
}

const LENGTH_ERROR: Sense = Sense::new(SenseCode::PARAMETER_LIST_LENGTH_ERROR);

fn be64(list: &[u8], offset: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&list[offset..offset + 8]);
    u64::from_be_bytes(bytes)
}

fn be32(list: &[u8], offset: usize) -> usize {
    u32::from_be_bytes([list[offset], list[offset + 1], list[offset + 2], list[offset + 3]]) as usize
}

impl BasicList {
    /// The flags are looked at only where they are valid: the three of REGISTER, two of REGISTER AND IGNORE EXISTING
    /// KEY.
    pub(super) fn parse(service_action: ReserveOut, list: &[u8]) -> Result<Self, Sense> {
        if list.len() < LIST_BYTES {
            return Err(LENGTH_ERROR);
        }
        let registers = matches!(service_action, ReserveOut::Register | ReserveOut::RegisterAndIgnoreExistingKey);
        let flags = list[20];
        let spec_i_pt = flags & 0x08 != 0;
        if spec_i_pt && service_action != ReserveOut::Register {
            return Err(Sense::invalid_field_in_list(20, Some(3)));
        }
        if !spec_i_pt && list.len() != LIST_BYTES {
            return Err(LENGTH_ERROR);
        }
        Ok(Self {
            key: be64(list, 0),
            service_action_key: be64(list, 8),
            all_target_ports: registers && flags & 0x04 != 0,
            persist: registers && flags & 0x01 != 0,
            initiators: if spec_i_pt { Some(parse_initiators(list)?) } else { None },
        })
    }
}

/// The TransportIDs of SPEC_I_PT, with their length before them.
fn parse_initiators(list: &[u8]) -> Result<Vec<InitiatorPort>, Sense> {
    const START: usize = LIST_BYTES + 4;
    if list.len() < START {
        return Err(LENGTH_ERROR);
    }
    let Some(mut rest) = list.get(START..START + be32(list, LIST_BYTES)) else {
        return Err(LENGTH_ERROR);
    };
    let mut initiators = Vec::new();
    let end = START + rest.len();
    while !rest.is_empty() {
        let (initiator, bytes) = parse_transport_id(rest, end - rest.len())?;
        if initiators.len() == Reservations::REGISTRATIONS_MAX {
            return Err(Sense::new(SenseCode::INSUFFICIENT_REGISTRATION_RESOURCES));
        }
        initiators.push(initiator);
        rest = &rest[bytes..];
    }
    Ok(initiators)
}

impl MoveList {
    pub(super) fn parse(list: &[u8]) -> Result<Self, Sense> {
        if list.len() < LIST_BYTES {
            return Err(LENGTH_ERROR);
        }
        if list.len() - LIST_BYTES != be32(list, 20) {
            return Err(LENGTH_ERROR);
        }
        let (initiator, bytes) = parse_transport_id(&list[LIST_BYTES..], LIST_BYTES)?;
        if LIST_BYTES + bytes != list.len() {
            return Err(Sense::invalid_field_in_list(20, None));
        }
        Ok(Self {
            key: be64(list, 0),
            service_action_key: be64(list, 8),
            unregister: list[17] & 0x02 != 0,
            persist: list[17] & 0x01 != 0,
            target_port: u16::from_be_bytes([list[18], list[19]]),
            initiator,
        })
    }
}
