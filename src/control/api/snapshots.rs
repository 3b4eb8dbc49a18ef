//! Snapshots in the API.

use serde::{Deserialize, Serialize};

use crate::jobs::JobInfo;
use crate::medium::DiskFormat;

/// A snapshot of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its name.
    pub name: String,
    /// The disk it is of.
    pub disk: String,
    /// When it was taken, in seconds since 1970.
    pub created: u64,
    /// The snapshot that it was taken after; none when it shows the disk's first state.
    pub parent: Option<String>,
    /// The disk's present state comes from this one.
    pub current: bool,
    /// What is taken together has the same group.
    pub group: Option<uuid::Uuid>,
    /// Size of the disk then, in bytes.
    pub size_bytes: u64,
    /// What stores it.
    pub format: DiskFormat,
    /// The file with what changed between its parent and itself.
    pub file: std::path::PathBuf,
    /// Space that this file takes.
    pub allocated_bytes: u64,
    /// Disks that were exported from it.
    pub exports: Vec<String>,
    /// It is deleted: its file is being merged, or stays for those in `kept_for`.
    pub deleting: bool,
    /// What keeps the file of a deleted snapshot: more than one thing that came after it, and each is based on it. It
    /// is merged when only one is left. Snapshots and disks, as people call them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept_for: Vec<String>,
}

/// `GET /v1/disks/{disk}/snapshots`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshots {
    /// All snapshots, oldest first.
    pub snapshots: Vec<Snapshot>,
}

/// `POST /v1/disks/{disk}/snapshots`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewSnapshot {
    /// Its name; made from the time unless said otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// `POST /v1/snapshots`: several disks at one instant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewSnapshotGroup {
    /// The disks.
    pub disks: Vec<String>,
    /// The name of each disk's snapshot; made from the time unless said otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// What was taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TakenSnapshots {
    /// The snapshots, one for each disk, all of one instant.
    pub snapshots: Vec<Snapshot>,
    /// How long all commands were held, in milliseconds. Those that change a disk's map may have waited for a flush
    /// before that, as they do for one another's.
    pub pause_ms: f64,
}

/// `POST /v1/disks/{disk}/snapshots/{snapshot}/export`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportSnapshot {
    /// The name of the disk to make of it.
    pub name: String,
    /// The new disk can be written; what is written goes into a file of its own.
    #[serde(default)]
    pub writable: bool,
}

/// Answer of `DELETE /v1/disks/{disk}/snapshots/{snapshot}`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletedSnapshot {
    /// The snapshot.
    pub name: String,
    /// The job that merges its file; none when nothing needed it, and it is gone already.
    pub job: Option<JobInfo>,
}
