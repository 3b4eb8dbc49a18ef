//! Settings of the server, a target or a disk, in the API.

use serde::{Deserialize, Deserializer, Serialize};

/// `GET /v1/settings` and what is set of its own on a target or a disk: a field that is left out is not set there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// A command whose file does not answer ends with ABORTED COMMAND after so many seconds. Of the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_deadline_seconds: Option<u16>,
    /// Initiators are told when the file system has less free space than this, in bytes; zero: never. Of the server, or
    /// of a disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thin_threshold_bytes: Option<u64>,
    /// ErrorRecoveryLevel that is offered: 0 or 1. Of the server, or of a target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_recovery_level: Option<u8>,
    /// Connections that one session may have: 1 to 8. Of the server, or of a target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u16>,
}

/// `PATCH /v1/settings`, `PATCH /v1/targets/{target}/settings`, `PATCH /v1/disks/{disk}/settings`: what is left out
/// stays, and `null` takes what was set away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SettingsChange {
    /// [`Settings::io_deadline_seconds`].
    #[serde(default, deserialize_with = "given")]
    pub io_deadline_seconds: Option<Option<u16>>,
    /// [`Settings::thin_threshold_bytes`].
    #[serde(default, deserialize_with = "given")]
    pub thin_threshold_bytes: Option<Option<u64>>,
    /// [`Settings::error_recovery_level`].
    #[serde(default, deserialize_with = "given")]
    pub error_recovery_level: Option<Option<u8>>,
    /// [`Settings::max_connections`].
    #[serde(default, deserialize_with = "given")]
    pub max_connections: Option<Option<u16>>,
}

/// A field that is there, be it null.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}
