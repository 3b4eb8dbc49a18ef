//! Resources of target ports.

use serde::{Deserialize, Serialize};

pub use crate::control::ports::PortState;

/// A port of a target: the target in one portal group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetPort {
    /// Portal group tag.
    pub group: u16,
    /// Relative target port identifier; also its target port group.
    pub number: u16,
    /// The state in which it leads to the target's disks.
    pub state: PortState,
    /// Initiators should come this way.
    pub preferred: bool,
    /// The group can have portals, and the target is not limited to others.
    pub reached: bool,
}

/// `GET /v1/targets/{target}/portgroups`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TargetPorts {
    /// The groups that the target is limited to; it is reached through every one while this is empty.
    pub limited_to: Vec<u16>,
    /// Its ports, by group.
    pub ports: Vec<TargetPort>,
}

/// `PATCH /v1/targets/{target}/portgroups/{group}`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortChange {
    /// The new state; as before unless said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<PortState>,
    /// Whether initiators should come this way; as before unless said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preferred: Option<bool>,
}
