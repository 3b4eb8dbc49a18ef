//! What stands behind a LUN: chains of VHDX, VHD and raw files; memory; null.
//!
//! [`create_file`], [`probe`] and [`open`] belong to the control plane and may block. [`open`] gives a [`Disk`], which
//! every shard shares and reads without locks, and the engine of a leaf with a block map, which moves to the disk's
//! home shard. A shard asks a disk for a plan ([`Disk::plan_read`], [`Disk::plan_write`]) and moves the bytes itself.
//! Parents are opened once for all their children ([`Parents`]). A job that has a disk to itself uses [`blocking`].
//!
//! **May know:** the formats and `blocks`, `mem`, `ring` (descriptors and alignment), `scsi`'s description of a unit.
//! Nothing of sessions or of the network.
//!
//! **Direct I/O.** A disk that is served is opened with `O_DIRECT` unless the operator asked for `buffered` or the file
//! system cannot. Opening (validation, log replay) goes through the page cache and ends with a flush before the first
//! direct access, so the two ways are never mixed while a disk is served.

pub mod blocking;
mod create;
mod describe;
mod disk;
mod error;
mod image;
mod layer;
mod link;
pub mod offline;
mod open;
mod parents;
mod payloads;
mod plan;
mod space;
mod storage;
mod trouble;

pub use create::{CreateSpec, NewParent, create_file, preallocate};
pub use describe::{ImageDescription, ImageIdentity, describe, modified_ns, set_modified_ns};
pub use disk::{Backing, Disk, Health};
pub use error::FileError;
pub use layer::{FileBacking, FileId, LayerFile};
pub use link::ParentLink;
pub use open::{OpenSpec, Opened, Probed, open, open_over, probe};
pub use parents::{LAYERS_MAX, Parents};
pub use payloads::{PAYLOAD_SLOTS, Payloads};
pub use plan::{PLAN_BYTES_MAX, ReadPlan, WritePlan};
pub use space::Space;
pub use trouble::{Doing, Trouble, system_reason};

use serde::{Deserialize, Serialize};

/// What kind of thing stores a disk's blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// A VHDX file (MS-VHDX).
    Vhdx,
    /// A VHD file, the older format (Virtual Hard Disk Image Format Specification 1.0).
    Vhd,
    /// A file whose byte n is the disk's byte n.
    Raw,
    /// Anonymous memory; gone when the server stops.
    Memory,
    /// Takes writes and forgets them; reads as zeros. For measuring.
    Null,
}

/// How a file-backed disk gets its space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskKind {
    /// Space is taken when it is first written.
    Dynamic,
    /// All space is reserved at creation.
    Fixed,
    /// Holds what differs from a parent; space is taken when it is first written.
    Differencing,
}

/// How a disk's file is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// Around the page cache (`O_DIRECT`).
    Direct,
    /// Through the page cache.
    Buffered,
}

impl DiskFormat {
    /// Whether an image file stores it.
    pub fn has_file(self) -> bool {
        matches!(self, Self::Vhdx | Self::Vhd | Self::Raw)
    }

    /// The word the command line uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Vhdx => "vhdx",
            Self::Vhd => "vhd",
            Self::Raw => "raw",
            Self::Memory => "memory",
            Self::Null => "null",
        }
    }
}

impl DiskKind {
    /// The word the command line uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dynamic => "dynamic",
            Self::Fixed => "fixed",
            Self::Differencing => "differencing",
        }
    }
}
