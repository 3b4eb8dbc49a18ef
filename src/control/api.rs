//! The resources under `/v1/`, as the server writes and the command line reads them.
//!
//! A contract: fields are added, never changed or taken away.

mod entrance;
mod images;
mod ports;
mod reservations;
mod settings;
mod snapshots;

pub use entrance::{ChapPolicy, Discovery, Isns, NewAuth, NewIsns, NewRedirect, Redirect};
pub use images::{
    Check, Convert, Jobs, Layer, Metadata, MetadataItem, NewMetadataItem, RecordTrace, RecordedTrace, Resize, Space,
};
pub use ports::{PortChange, PortState, TargetPort, TargetPorts};
pub use reservations::{Registration, Reservations};
pub use settings::{Settings, SettingsChange};
pub use snapshots::{
    DeletedSnapshot, ExportSnapshot, NewSnapshot, NewSnapshotGroup, Snapshot, Snapshots, TakenSnapshots,
};

pub use crate::jobs::JobInfo as Job;

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::medium::{Cache, DiskFormat, DiskKind};
use crate::observe::ShardSummary;

/// A refusal, with the status code that says which kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What is wrong and what to do, in one line.
    pub error: String,
}

/// `GET /v1/version`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Version {
    /// The program's version.
    pub version: String,
    /// The server's process.
    pub pid: u32,
    /// Its state folder.
    pub state: PathBuf,
    /// Seconds since it started.
    pub uptime_seconds: u64,
    /// Its shards: one pinned thread each.
    pub shards: u16,
    /// The CPU of each shard.
    pub cores: Vec<usize>,
    /// The io_uring features in use, for people.
    pub io_uring: String,
}

/// Whether a disk can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskState {
    /// It is open.
    Online,
    /// It could not be opened; its logical units are absent.
    Offline,
    /// A write to its file failed: it refuses writes until the server opens it anew.
    Failed,
}

/// A disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Disk {
    /// Its name.
    pub name: String,
    /// What stores it.
    pub format: DiskFormat,
    /// How its file gets its space.
    pub kind: Option<DiskKind>,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Space that its file takes.
    pub allocated_bytes: u64,
    /// Logical sector size in bytes.
    pub sector_size_bytes: u32,
    /// VHDX or VHD block size in bytes.
    pub block_size_bytes: Option<u64>,
    /// The most that one WRITE ATOMIC writes, in bytes; 0 where it is not served, or the disk is offline.
    #[serde(default)]
    pub atomic_write_bytes: u64,
    /// Its image file.
    pub file: Option<PathBuf>,
    /// The file that its image holds the differences from.
    pub parent: Option<PathBuf>,
    /// Its files, the one that is written first, then that one's parent, and so on; left out in lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chain: Vec<Layer>,
    /// Where the space of its files is; left out in lists and while it is offline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub space: Option<Space>,
    /// Disks whose parent it is: while there are any, it refuses writes.
    pub children: Vec<String>,
    /// How many snapshots it has.
    pub snapshots: usize,
    /// The job that works on it.
    pub job: Option<u64>,
    /// The identity that initiators see.
    pub uuid: Uuid,
    /// Direct or through the page cache.
    pub cache: Cache,
    /// The file beside it that keeps its reservations (APTPL), once there was something to keep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reservations_file: Option<PathBuf>,
    /// Refuses all writes.
    pub read_only: bool,
    /// Its file was there before it, and stays when it is deleted.
    pub added: bool,
    /// Whether it can be used.
    pub state: DiskState,
    /// Why it is not online, and what to do.
    pub reason: Option<String>,
    /// Oddities found when it was opened.
    pub notes: Vec<String>,
    /// The logical units that it is behind.
    pub mapped: Vec<DiskMapping>,
}

/// Where a disk is mapped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskMapping {
    /// The target's name.
    pub target: String,
    /// The logical unit number.
    pub lun: u16,
}

/// `GET /v1/disks`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Disks {
    /// All disks, by name.
    pub disks: Vec<Disk>,
}

/// `POST /v1/disks`: create a disk, or with `existing` serve an image that exists.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewDisk {
    /// Its name.
    pub name: String,
    /// Serve the file as it is instead of creating one.
    #[serde(default)]
    pub existing: bool,
    /// Size in bytes; not with `existing`. A differencing disk has its parent's unless said otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// What stores it: VHDX unless said otherwise; with `existing` the file says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<DiskFormat>,
    /// Dynamic unless said otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<DiskKind>,
    /// VHDX or VHD block size in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_size_bytes: Option<u64>,
    /// The parent of a differencing disk: a disk's name, or the absolute path of an image. With `existing`: where the
    /// parent is now, when it is not where the image says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// 512 or 4096; 512 unless said otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sector_size_bytes: Option<u32>,
    /// Absolute path of the image file; in the state folder unless said otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Direct unless said otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<Cache>,
    /// Refuse all writes.
    #[serde(default)]
    pub read_only: bool,
}

/// Answer of `PUT /v1/config`: names, and addresses of portals.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Replaced {
    /// Disks that are served now.
    pub disks_added: Vec<String>,
    /// Disks that are not served any more; their files are where they were.
    pub disks_removed: Vec<String>,
    /// Targets that are there now.
    pub targets_added: Vec<String>,
    /// Targets that are gone, with their sessions.
    pub targets_removed: Vec<String>,
    /// Targets of which something is different.
    pub targets_changed: Vec<String>,
    /// Portals that are listened on now.
    pub portals_added: Vec<String>,
    /// Portals that are not any more.
    pub portals_removed: Vec<String>,
    /// What did not go as it should, without stopping the rest.
    pub warnings: Vec<String>,
}

/// Answer of `DELETE /v1/disks/{name}`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeletedDisk {
    /// The disk that is gone.
    pub name: String,
    /// Its file, when that is still there.
    pub kept_file: Option<PathBuf>,
    /// What did not go as it should, without stopping the deletion.
    pub warning: Option<String>,
}

/// A target.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Target {
    /// Its name.
    pub name: String,
    /// Its iSCSI name.
    pub iqn: String,
    /// Its logical units.
    pub luns: Vec<TargetLun>,
    /// Who may log in: access rules.
    pub allow: Vec<String>,
    /// CHAP, where it is demanded; without the secrets.
    pub auth: Option<TargetAuth>,
    /// The portal groups that it is limited to; reached through every one while this is empty.
    #[serde(default)]
    pub portal_groups: Vec<u16>,
    /// Where initiators are sent instead of being let in.
    #[serde(default)]
    pub redirects: Vec<Redirect>,
}

/// A logical unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetLun {
    /// Its number.
    pub lun: u16,
    /// The disk behind it.
    pub disk: String,
    /// Refuses writes.
    pub read_only: bool,
    /// The access rule that says who sees it; everybody, when there is none.
    #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
    pub only_for: Option<String>,
}

/// CHAP of a target, without secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetAuth {
    /// The name that an initiator proves.
    pub chap_user: String,
    /// The name that the target proves in return.
    pub mutual_user: Option<String>,
    /// The algorithms that may be used, strong first.
    #[serde(default)]
    pub algorithms: Vec<String>,
}

/// `GET /v1/targets`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Targets {
    /// All targets, by name.
    pub targets: Vec<Target>,
}

/// `POST /v1/targets`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewTarget {
    /// Its name.
    pub name: String,
    /// Its iSCSI name; `iqn.2026-11.io.lunaring:NAME` unless said otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iqn: Option<String>,
}

/// `POST /v1/targets/{target}/luns`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewLun {
    /// The disk's name.
    pub disk: String,
    /// The number; the lowest free one unless said otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lun: Option<u16>,
    /// Refuse writes through this logical unit.
    #[serde(default)]
    pub read_only: bool,
    /// An access rule: only those that it means see this logical unit, in place of what others see under its number.
    #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
    pub only_for: Option<String>,
}

/// `POST /v1/targets/{target}/access`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessChange {
    /// `any`, `iqn:NAME`, `iqn:BEGINNING*`, `ip:CIDR` or `portal:ADDR:PORT`.
    pub rule: String,
}

/// A portal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Portal {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its portal group tag.
    #[serde(default)]
    pub group: u16,
    /// The address that initiators are told instead.
    #[serde(default)]
    pub advertise: Option<SocketAddr>,
    /// Whether it does.
    pub listening: bool,
    /// Why it does not, and what to do.
    pub reason: Option<String>,
    /// It came from the command line of the server and is not in the configuration.
    pub temporary: bool,
}

/// `GET /v1/portals`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Portals {
    /// All portals.
    pub portals: Vec<Portal>,
}

/// `POST /v1/portals`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewPortal {
    /// `ADDRESS:PORT`.
    pub address: String,
    /// Its portal group tag; 1 unless said otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<u16>,
    /// The address that initiators are told instead, where they reach the portal by another (NAT). Of a portal that is
    /// there already, this alone is changed; its own address stands for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advertise: Option<String>,
}

/// A session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Names it for `session drop`.
    pub id: u64,
    /// Its TSIH (RFC 7143 section 11.12.6).
    pub tsih: u16,
    /// Initiator name.
    pub initiator: String,
    /// Target's iSCSI name; none in a discovery session.
    pub target: Option<String>,
    /// The initiator's address.
    pub peer: SocketAddr,
    /// The address it connected to.
    pub portal: SocketAddr,
    /// The shard that serves it.
    pub shard: u16,
    /// Header digest in use.
    pub header_digest: bool,
    /// Data digest in use.
    pub data_digest: bool,
    /// Seconds since login.
    pub age_seconds: u64,
    /// SCSI commands so far.
    pub commands: u64,
    /// Bytes read so far.
    pub bytes_read: u64,
    /// Bytes written so far.
    pub bytes_written: u64,
    /// Commands that failed.
    pub errors: u64,
    /// Its connections; what stands above of addresses and digests is the first one's.
    #[serde(default)]
    pub connections: Vec<SessionConnection>,
}

/// One connection of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionConnection {
    /// Its CID (RFC 7143 section 11.12.7).
    pub cid: u16,
    /// The initiator's address.
    pub peer: SocketAddr,
    /// The address it connected to.
    pub portal: SocketAddr,
}

/// `GET /v1/sessions`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sessions {
    /// All sessions, by id.
    pub sessions: Vec<Session>,
}

/// Counters of one kind of operation.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct OperationStats {
    /// Operations that ended.
    pub operations: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// Operations that failed.
    pub errors: u64,
    /// Mean latency in microseconds.
    pub latency_mean_us: f64,
    /// Median latency in microseconds.
    pub latency_p50_us: f64,
    /// 99th percentile in microseconds.
    pub latency_p99_us: f64,
    /// 99.9th percentile in microseconds.
    pub latency_p999_us: f64,
    /// Longest in microseconds.
    pub latency_max_us: f64,
}

/// Counters of one disk since it was opened.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DiskStats {
    /// The disk's name.
    pub disk: String,
    /// READ.
    pub read: OperationStats,
    /// WRITE.
    pub write: OperationStats,
    /// SYNCHRONIZE CACHE.
    pub flush: OperationStats,
    /// Every other command.
    pub other: OperationStats,
}

/// `GET /v1/stats`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stats {
    /// Each disk.
    pub disks: Vec<DiskStats>,
    /// Each shard; left out when one disk was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shards: Vec<ShardSummary>,
}
