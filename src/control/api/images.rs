//! What can be done with a disk's image, in the API.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::jobs::JobInfo;
use crate::medium::{DiskFormat, DiskKind};

/// One file of a disk's chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// The file.
    pub file: PathBuf,
    /// Its format.
    pub format: DiskFormat,
    /// Size in bytes of the disk that it describes.
    pub size_bytes: u64,
    /// Space that it takes on its file system.
    pub allocated_bytes: u64,
    /// Its length.
    #[serde(default)]
    pub file_bytes: u64,
    /// What children know it by: a VHDX's DataWriteGuid, a VHD's unique id.
    pub identifier: Option<String>,
    /// The snapshot of this disk that ends with it.
    pub snapshot: Option<String>,
    /// The other disk whose file it is.
    pub disk: Option<String>,
}

/// Where the space of a disk's files is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// Length of the file that is written. A file system that knows holes may have given it less.
    pub file_bytes: u64,
    /// Space that all files of the chain take on their file systems.
    pub chain_allocated_bytes: u64,
    /// Bytes of the written file that its blocks hold; only of a writable disk in blocks, as the next three.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_bytes: Option<u64>,
    /// Inside the file and free for new blocks: the file does not grow before this is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_inside_bytes: Option<u64>,
    /// Given up by blocks, and free once that is durable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given_up_bytes: Option<u64>,
    /// Former written files, now snapshots, that are still being closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files_closing: Option<u32>,
}

/// `POST /v1/disks/{disk}/resize`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resize {
    /// The new size in bytes.
    pub size_bytes: u64,
    /// Cut off what is stored behind the new end.
    #[serde(default)]
    pub allow_shrink: bool,
}

/// `POST /v1/disks/{disk}/check`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// Repair what can be repaired without losing anything. Not while the disk is mapped.
    #[serde(default)]
    pub repair: bool,
}

/// `POST /v1/disks/{disk}/convert`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Convert {
    /// Absolute path of the new image, which must not exist.
    pub to: PathBuf,
    /// Its format; by the end of the file's name unless said otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<DiskFormat>,
    /// Dynamic unless said otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<DiskKind>,
    /// VHDX or VHD block size in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_size_bytes: Option<u64>,
}

/// `POST /v1/disks/{disk}/trace`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordTrace {
    /// How long to record.
    pub seconds: u32,
    /// Absolute path of the trace, which must not exist.
    pub to: PathBuf,
}

/// A trace that was recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedTrace {
    /// The file.
    pub file: PathBuf,
    /// Commands in it.
    pub commands: u64,
    /// Commands for which there was no room.
    pub missing: u64,
    /// Its length.
    pub file_bytes: u64,
}

/// A user metadata item.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetadataItem {
    /// Its GUID.
    pub item: uuid::Uuid,
    /// Bytes of its value.
    pub len_bytes: u32,
    /// The value as hexadecimal digits; left out in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_hex: Option<String>,
}

/// `GET /v1/disks/{disk}/metadata`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// Every user metadata item.
    pub items: Vec<MetadataItem>,
}

/// `PUT /v1/disks/{disk}/metadata/{item}`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewMetadataItem {
    /// The value as hexadecimal digits, at most 1 MiB of bytes.
    pub value_hex: String,
}

/// `GET /v1/jobs`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jobs {
    /// Those that run and the last ones that ended, oldest first.
    pub jobs: Vec<JobInfo>,
}
