//! Asymmetric access (SPC-5 clause 5.15): target port groups, their states, REPORT and SET TARGET PORT GROUPS.
//!
//! [`PortGroups`] is the state of one unit, changed by its owner alone: by the operator (implicit) or by SET TARGET
//! PORT GROUPS (explicit). Each shard keeps the [`AccessState`] of the port that a session came through beside the
//! session's other state on the unit, and [`execute`](super::execute()) answers for it.

use super::cdb::Cdb;
use super::command_table::AccessRule;
use super::execute::Action;
use super::parameter_list::ParameterList;
use super::sense::{Outcome, Sense, SenseCode};
use super::unit::Unit;

/// ASYMMETRIC ACCESS STATE.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum AccessState {
    /// Active/optimized: everything is served, best here.
    #[default]
    ActiveOptimized = 0x0,
    /// Active/non-optimized: everything is served.
    ActiveNonOptimized = 0x1,
    /// Standby: only what looks at or changes the state of the unit.
    Standby = 0x2,
    /// Unavailable: only what tells of the unit and its port groups.
    Unavailable = 0x3,
    /// Offline: as unavailable, and nothing that initiators do changes it.
    Offline = 0xe,
    /// On the way from one state to another.
    Transitioning = 0xf,
}

impl AccessState {
    /// The state of a field, if it is one that groups here can be in.
    fn from_code(code: u8) -> Option<Self> {
        const ALL: [AccessState; 6] = [
            AccessState::ActiveOptimized,
            AccessState::ActiveNonOptimized,
            AccessState::Standby,
            AccessState::Unavailable,
            AccessState::Offline,
            AccessState::Transitioning,
        ];
        ALL.into_iter().find(|state| *state as u8 == code)
    }

    /// What a command with this rule hears instead of being served.
    #[inline]
    pub(super) fn refusal(self, rule: AccessRule) -> Option<SenseCode> {
        let (served, code) = match self {
            Self::ActiveOptimized | Self::ActiveNonOptimized => return None,
            Self::Standby => (rule != AccessRule::Active, SenseCode::TARGET_PORT_IN_STANDBY_STATE),
            Self::Unavailable => {
                (matches!(rule, AccessRule::Unavailable | AccessRule::Any), SenseCode::TARGET_PORT_IN_UNAVAILABLE_STATE)
            }
            Self::Offline => {
                (matches!(rule, AccessRule::Unavailable | AccessRule::Any), SenseCode::LOGICAL_UNIT_NOT_READY_OFFLINE)
            }
            Self::Transitioning => (rule == AccessRule::Any, SenseCode::ASYMMETRIC_ACCESS_STATE_TRANSITION),
        };
        (!served).then_some(code)
    }
}

/// STATUS CODE: why a group is in its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum ChangedBy {
    Nobody = 0,
    /// SET TARGET PORT GROUPS.
    Initiator = 1,
    /// Implicit behaviour.
    Target = 2,
}

/// A target port group.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PortGroup {
    tag: u16,
    state: AccessState,
    preferred: bool,
    changed_by: ChangedBy,
    /// RELATIVE TARGET PORT IDENTIFIERs.
    ports: Vec<u16>,
}

/// The target port groups that lead to a unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortGroups {
    groups: Vec<PortGroup>,
}

/// Bytes before the descriptors of SET TARGET PORT GROUPS, and of each.
const SET_HEADER_BYTES: usize = 4;
const SET_DESCRIPTOR_BYTES: usize = 4;

impl PortGroups {
    /// Groups of one unit at most: one for every portal of the server.
    pub const GROUPS_MAX: usize = crate::limits::PORTALS_MAX;

    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Add a group with its ports. False, and nothing is added, if there are too many, or the group or one of the ports
    /// is there already.
    pub fn add(&mut self, tag: u16, ports: &[u16], state: AccessState, preferred: bool) -> bool {
        let known = |port: &u16| self.groups.iter().any(|group| group.ports.contains(port));
        if self.groups.len() == Self::GROUPS_MAX
            || self.groups.iter().any(|group| group.tag == tag)
            || ports.len() > usize::from(u8::MAX)
            || ports.iter().any(known)
        {
            return false;
        }
        self.groups.push(PortGroup { tag, state, preferred, changed_by: ChangedBy::Nobody, ports: ports.to_vec() });
        true
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// The same groups in the same order, whatever their states and preferences.
    pub fn has_same_groups(&self, other: &Self) -> bool {
        self.groups.iter().map(|group| group.tag).eq(other.groups.iter().map(|group| group.tag))
    }

    /// Say whether initiators should come through a group.
    pub fn prefer(&mut self, tag: u16, preferred: bool) {
        if let Some(group) = self.groups.iter_mut().find(|group| group.tag == tag) {
            group.preferred = preferred;
        }
    }

    /// The state in which a port leads to the unit.
    pub fn state_of_port(&self, port: u16) -> Option<AccessState> {
        self.groups.iter().find(|group| group.ports.contains(&port)).map(|group| group.state)
    }

    /// The operator, or the target by itself, changes a group's state. True if that is another one: then every I_T
    /// nexus learns of it ([`Attention::AccessStateChanged`](super::Attention::AccessStateChanged)).
    pub fn change(&mut self, tag: u16, state: AccessState) -> bool {
        self.change_by(tag, state, ChangedBy::Target)
    }

    fn change_by(&mut self, tag: u16, state: AccessState, changed_by: ChangedBy) -> bool {
        match self.groups.iter_mut().find(|group| group.tag == tag) {
            Some(group) if group.state != state => {
                group.state = state;
                group.changed_by = changed_by;
                true
            }
            _ => false,
        }
    }

    /// SET TARGET PORT GROUPS with its parameter list. `Ok(true)` if any state changed: then every I_T nexus but the
    /// one that sent it learns of it. With an error nothing has changed.
    pub fn set(&mut self, list: &[u8]) -> Result<bool, Sense> {
        let Some((_, rest)) = list.split_at_checked(SET_HEADER_BYTES) else {
            return Err(Sense::new(SenseCode::PARAMETER_LIST_LENGTH_ERROR));
        };
        let descriptors = rest.chunks_exact(SET_DESCRIPTOR_BYTES);
        if !descriptors.remainder().is_empty() {
            return Err(Sense::new(SenseCode::PARAMETER_LIST_LENGTH_ERROR));
        }
        let mut after = self.clone();
        let mut changed = false;
        for (index, descriptor) in descriptors.enumerate() {
            let at = (SET_HEADER_BYTES + index * SET_DESCRIPTOR_BYTES) as u16;
            let tag = u16::from_be_bytes([descriptor[2], descriptor[3]]);
            let group = self.groups.iter().find(|group| group.tag == tag);
            let group = group.ok_or(Sense::invalid_field_in_list(at + 2, None))?;
            let state = match AccessState::from_code(descriptor[0] & 0x0f) {
                // Nobody asks for the way between two states, and offline is the operator's, both ways.
                None | Some(AccessState::Transitioning | AccessState::Offline) => None,
                state if group.state != AccessState::Offline => state,
                _ => None,
            };
            let state = state.ok_or(Sense::invalid_field_in_list(at, Some(3)))?;
            changed |= after.change_by(tag, state, ChangedBy::Initiator);
        }
        *self = after;
        Ok(changed)
    }

    /// The Data-In of REPORT TARGET PORT GROUPS, written to `buffer`: its length, or how long the buffer must be.
    pub fn report(&self, extended: bool, allocation_length: u32, buffer: &mut [u8]) -> Result<usize, usize> {
        /// T_SUP, O_SUP, U_SUP, S_SUP, AN_SUP and AO_SUP.
        const SUPPORTED: u8 = 0xcf;
        let mut out = ParameterList::new(buffer);
        out.begin(allocation_length);
        out.push_u32(0);
        if extended {
            // FORMAT TYPE 001b; no IMPLICIT TRANSITION TIME is named.
            out.push(&[0x10, 0, 0, 0]);
        }
        for group in &self.groups {
            out.push(&[u8::from(group.preferred) << 7 | group.state as u8, SUPPORTED]);
            out.push_u16(group.tag);
            out.push(&[0, group.changed_by as u8, 0, group.ports.len() as u8]);
            for port in &group.ports {
                out.push_u16(0);
                out.push_u16(*port);
            }
        }
        let bytes = u32::try_from(out.total_len() - 4).expect("a bounded number of groups");
        out.set_u32(0, bytes);
        out.bytes_missing().map_or(Ok(out.len()), Err)
    }
}

pub(super) fn report_target_port_groups(cdb: Cdb<'_>, _unit: &Unit) -> Action {
    let extended = match cdb.byte(1) >> 5 {
        0 => false,
        1 => true,
        _ => return Sense::invalid_field_in_cdb(1, Some(7)).into(),
    };
    Action::ReportPortGroups { extended, allocation_length: cdb.be32(6) }
}

pub(super) fn set_target_port_groups(cdb: Cdb<'_>, _unit: &Unit) -> Action {
    const LONGEST: u32 = (SET_HEADER_BYTES + PortGroups::GROUPS_MAX * SET_DESCRIPTOR_BYTES) as u32;
    match cdb.be32(6) {
        0 => Action::Done(Outcome::GOOD),
        list_bytes @ 4..=LONGEST => Action::SetPortGroups { list_bytes: list_bytes as u16 },
        _ => Sense::new(SenseCode::PARAMETER_LIST_LENGTH_ERROR).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::command_table::COMMANDS;
    use crate::scsi::fixture::{DISK, invalid_field, refused, run, run_on, unit};
    use crate::scsi::{Features, NexusUnit};

    fn groups() -> PortGroups {
        let mut groups = PortGroups::new();
        assert!(groups.add(1, &[1, 2], AccessState::ActiveOptimized, true));
        assert!(groups.add(7, &[3], AccessState::Standby, false));
        assert!(!groups.add(7, &[4], AccessState::Standby, false), "the group is there");
        assert!(!groups.add(8, &[3], AccessState::Standby, false), "the port is there");
        groups
    }

    fn report(groups: &PortGroups, extended: bool) -> Vec<u8> {
        let mut buffer = [0xee; 256];
        let len = groups.report(extended, 256, &mut buffer).expect("room");
        buffer[..len].to_vec()
    }

    #[test]
    fn groups_are_reported_with_their_ports() {
        let body = [[0x80, 0xcf, 0, 1, 0, 0, 0, 2], [0, 0, 0, 1, 0, 0, 0, 2], [0x02, 0xcf, 0, 7, 0, 0, 0, 1]].concat();
        let body = [&body[..], &[0, 0, 0, 3]].concat();
        assert_eq!(report(&groups(), false), [&[0, 0, 0, 28][..], &body].concat());
        assert_eq!(report(&groups(), true), [&[0, 0, 0, 32, 0x10, 0, 0, 0][..], &body].concat());
        assert_eq!(groups().report(false, 256, &mut [0; 16]), Err(32));
        assert_eq!((groups().state_of_port(3), groups().state_of_port(4)), (Some(AccessState::Standby), None));
    }

    #[test]
    fn states_change_by_either_side_and_say_by_which() {
        let mut groups = groups();
        assert!(
            groups.change(1, AccessState::ActiveNonOptimized) && !groups.change(1, AccessState::ActiveNonOptimized)
        );
        assert!(!groups.change(9, AccessState::Standby), "no such group");
        assert_eq!(report(&groups, false)[4..12], [0x81, 0xcf, 0, 1, 0, 2, 0, 2]);
        assert_eq!(groups.set(&[0, 0, 0, 0, 0, 0, 0, 7, 2, 0, 0, 1]), Ok(true));
        assert_eq!(groups.state_of_port(3), Some(AccessState::ActiveOptimized));
        assert_eq!(groups.state_of_port(2), Some(AccessState::Standby));
        assert_eq!(report(&groups, false)[20..28], [0x00, 0xcf, 0, 7, 0, 1, 0, 1]);
        assert_eq!(groups.set(&[0, 0, 0, 0, 0, 0, 0, 7]), Ok(false));
        assert_eq!(groups.set(&[0, 0, 0, 0]), Ok(false));
    }

    #[test]
    fn a_wrong_list_changes_nothing() {
        let in_list = |byte, bit| Err(Sense::invalid_field_in_list(byte, bit));
        let mut groups = groups();
        let before = groups.clone();
        assert_eq!(groups.set(&[0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 9]), in_list(10, None), "no such group");
        assert_eq!(groups.set(&[0, 0, 0, 0, 0x0f, 0, 0, 1]), in_list(4, Some(3)), "transitioning");
        assert_eq!(groups.set(&[0, 0, 0, 0, 0x0e, 0, 0, 1]), in_list(4, Some(3)), "offline");
        assert_eq!(groups.set(&[0, 0, 0, 0, 0x04, 0, 0, 1]), in_list(4, Some(3)), "dependent on the block");
        assert_eq!(groups.set(&[0, 0, 0, 0, 1, 0, 0]), Err(Sense::new(SenseCode::PARAMETER_LIST_LENGTH_ERROR)));
        assert_eq!(groups.set(&[0, 0]), Err(Sense::new(SenseCode::PARAMETER_LIST_LENGTH_ERROR)));
        assert_eq!(groups, before);
        assert!(groups.change(1, AccessState::Offline));
        assert_eq!(groups.set(&[0, 0, 0, 0, 0, 0, 0, 1]), in_list(4, Some(3)), "out of offline");
    }

    #[test]
    fn the_commands() {
        let expected = |extended| Action::ReportPortGroups { extended, allocation_length: 0x102 };
        assert_eq!(run(&DISK, &[0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 1, 2]), expected(false));
        assert_eq!(run(&DISK, &[0xa3, 0x2a, 0, 0, 0, 0, 0, 0, 1, 2]), expected(true));
        assert_eq!(run(&DISK, &[0xa3, 0x4a, 0, 0, 0, 0, 0, 0, 1, 2]), invalid_field(1, Some(7)));
        let set = |length: [u8; 4]| run(&DISK, &[&[0xa4, 0x0a, 0, 0, 0, 0][..], &length].concat());
        assert_eq!(set([0, 0, 0, 8]), Action::SetPortGroups { list_bytes: 8 });
        assert_eq!(set([0; 4]), Action::Done(Outcome::GOOD));
        assert_eq!(set([0, 0, 0, 3]), refused(SenseCode::PARAMETER_LIST_LENGTH_ERROR));
        assert_eq!(set([0, 1, 0, 0]), refused(SenseCode::PARAMETER_LIST_LENGTH_ERROR));
    }

    #[test]
    fn inquiry_says_who_changes_states() {
        let tpgs = |features| {
            let unit = Unit::new(&DISK).expect("valid").with_features(features);
            run_on(Some(&unit), &mut NexusUnit::default(), &[0x12, 0, 0, 0, 96]).1[5] >> 4 & 3
        };
        assert_eq!(tpgs(Features::NONE), 0);
        assert_eq!(tpgs(Features::PORT_GROUPS), 1, "implicit");
        assert_eq!(tpgs(Features::PORT_GROUPS.and(Features::EXPLICIT_ACCESS)), 3, "both");
    }

    /// SPC-5 clauses 5.15.2.4 to 5.15.2.7.
    #[test]
    fn each_state_serves_its_commands() {
        let standby = [0x15, 0x1a, 0x1c, 0x1d, 0x3b, 0x3c, 0x4c, 0x4d, 0x55, 0x5a, 0x5e, 0x5f, 0x9b];
        for (state, asc_ascq) in [
            (AccessState::ActiveNonOptimized, None),
            (AccessState::Standby, Some((0x04, 0x0b))),
            (AccessState::Unavailable, Some((0x04, 0x0c))),
            (AccessState::Offline, Some((0x04, 0x12))),
            (AccessState::Transitioning, Some((0x04, 0x0a))),
        ] {
            for command in COMMANDS.iter().filter(|command| command.is_served_on(&unit(&DISK))) {
                let service_action = command.service_action.unwrap_or(0);
                let mut nexus = NexusUnit::default();
                nexus.set_access(state);
                let (action, _) = run_on(Some(&unit(&DISK)), &mut nexus, &[command.opcode, service_action]);
                let heard = match action {
                    Action::Done(Outcome { sense: Some(sense), .. }) => {
                        Some((sense.code().asc, sense.code().ascq)).filter(|(asc, _)| *asc == 0x04)
                    }
                    _ => None,
                };
                let served = match (command.opcode, service_action) {
                    (0x03 | 0x12 | 0xa0, _) | (0xa3, 0x0a) => true,
                    (0xa4, 0x0a) => state != AccessState::Transitioning,
                    (opcode, _) => state == AccessState::Standby && standby.contains(&opcode),
                };
                let expected = asc_ascq.filter(|_| !served);
                assert_eq!(heard, expected, "{} {state:?}", command.name);
            }
        }
    }
}
