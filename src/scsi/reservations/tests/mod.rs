//! Reservations against an independent account of the rules, against the standards' table of commands, and against what
//! clusters do.

mod cluster;
mod model;
mod replies;
mod table;

use super::{Change, Effect, InitiatorPort, Nexus, Reservations, ReserveOut};
use crate::scsi::Outcome;

/// The nexus of initiator `number` at a target port.
fn nexus(number: u8, target_port: u16) -> Nexus {
    let name = format!("iqn.2026-11.test:node{number}");
    let initiator = InitiatorPort::new(name.as_bytes(), [0x80, 0, 0, 0, 0, number]).expect("a name");
    Nexus { initiator, target_port }
}

/// A parameter list without TransportIDs. `flags` is byte 20.
fn list(key: u64, service_action_key: u64, flags: u8) -> Vec<u8> {
    [&key.to_be_bytes()[..], &service_action_key.to_be_bytes(), &[0, 0, 0, 0, flags, 0, 0, 0]].concat()
}

fn transport_id(initiator: &InitiatorPort) -> Vec<u8> {
    let mut bytes = Vec::new();
    initiator.push_transport_id(&mut |part| bytes.extend_from_slice(part));
    bytes
}

/// A parameter list with SPEC_I_PT.
fn list_with(key: u64, service_action_key: u64, flags: u8, initiators: &[&InitiatorPort]) -> Vec<u8> {
    let ids: Vec<u8> = initiators.iter().flat_map(|initiator| transport_id(initiator)).collect();
    let length = u32::try_from(ids.len()).expect("a short list").to_be_bytes();
    [&list(key, service_action_key, flags | 8)[..], &length, &ids].concat()
}

/// The parameter list of REGISTER AND MOVE. `flags` is byte 17.
fn move_list(key: u64, service_action_key: u64, flags: u8, to: &Nexus) -> Vec<u8> {
    let id = transport_id(&to.initiator);
    let [high, low] = to.target_port.to_be_bytes();
    let length = u32::try_from(id.len()).expect("a short list").to_be_bytes();
    let keys = [key.to_be_bytes(), service_action_key.to_be_bytes()].concat();
    [&keys[..], &[0, flags, high, low], &length, &id].concat()
}

/// One command, with the effects that it had.
fn apply(
    state: &mut Reservations,
    from: &Nexus,
    service_action: ReserveOut,
    scope_type: u8,
    list: &[u8],
) -> (Outcome, Vec<(Nexus, Effect)>) {
    let mut effects = Vec::new();
    let change = Change { from, target_ports: &[1, 2], service_action, scope_type, list };
    let outcome = state.apply(&change, &mut |nexus, effect| effects.push((nexus.clone(), effect)));
    (outcome, effects)
}
