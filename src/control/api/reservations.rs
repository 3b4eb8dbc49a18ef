//! Resources of reservations.

use serde::{Deserialize, Serialize};

/// `GET /v1/disks/{disk}/reservations`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservations {
    /// The disk.
    pub disk: String,
    /// The persistent reservation's type, if there is one: `write-exclusive`, `exclusive-access`, and either with
    /// `-registrants-only` or `-all-registrants`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// PRGENERATION: how often registrations have changed.
    pub generation: u32,
    /// They outlast a restart of the server (APTPL).
    pub persistent: bool,
    /// Who is registered.
    pub registrations: Vec<Registration>,
    /// For whom a RESERVE command (of SPC-2) has reserved the disk.
    pub reserved_by: Option<Registration>,
}

/// An I_T nexus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// Initiator name.
    pub initiator: String,
    /// ISID, in hexadecimal digits.
    pub isid: String,
    /// Relative target port identifier.
    pub target_port: u16,
    /// The target that has the port, if there still is one.
    pub target: Option<String>,
    /// The port's portal group.
    pub group: Option<u16>,
    /// Reservation key, as 0x and hexadecimal digits; none for a RESERVE command.
    pub key: Option<String>,
    /// It holds the reservation.
    pub holder: bool,
}
