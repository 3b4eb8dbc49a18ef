//! VHDX disks ([MS-VHDX] v20240423), sans-IO: formats, rules and plans; the callers do the I/O.
//!
//! **Two ways in.** Control-plane work (create, open with replay, check, repair, resize) is blocking over the
//! [`Storage`] trait. At run time nothing here touches storage: every shard plans with the lock-free map of the chain
//! ([`blocks`](crate::blocks)), and the disk's home shard, or a job, owns the [`Engine`], which hands out metadata
//! operations and is told how they ended. Payload never passes through this module, but for that of atomic writes.
//!
//! **May know:** the leaf modules (`blocks`, `crc32c`). Nothing of files, rings, shards, clocks or SCSI. Randomness is
//! injected.
//!
//! # Life of a disk
//!
//! 1. [`open`] chooses the header, replays a pending log, validates regions, metadata and, in one pass, the block
//!    allocation table (BAT), and gives an [`OpenDisk`]. A clean file is not modified by opening it.
//! 2. The first write opens a *write session*: new FileWriteGuid and DataWriteGuid in both headers, an empty log entry
//!    under a new LogGuid, then that LogGuid in both headers, a flush behind each. Compaction alone opens a session
//!    that keeps DataWriteGuid.
//! 3. Changes of the map (space for blocks, written sectors that become visible, space given up, blocks moved) collect
//!    into a group while the previous group's log entry is being written. When the entry's write has completed the map
//!    shows them and the tickets complete.
//! 4. Before the log ring is used up the *epoch* turns: the pages are written in place, and the log starts again at
//!    offset 0 under another LogGuid. Entries therefore never wrap and never meet a stale successor.
//! 5. Closing writes the pages in place, clears the LogGuid in both headers and gives preallocated space back.
//!
//! # Why publishing before the data is safe
//!
//! A block whose absence reads as zeros only ever gets space that reads as zeros durably: bytes that the file system
//! has newly added to the file, or a range that was zeroed and flushed. A block that the BAT names but whose payload
//! has not arrived therefore reads as zeros, which is what the block read as before.
//!
//! Power cuts: until the next flush, each sector of the file may hold its old or its new content. If the log entry
//! survives and the payload does not, the sectors read as zeros, the old content. If the payload survives and the
//! entry does not, the block is still absent and reads as zeros. A flush that starts after the entry's write has
//! completed makes file size, entry and payload durable together. A file shorter than its entry promises is extended
//! by replay (LastFileOffset, section 2.3.1.1), again with zeros. Nothing is ever exposed that belonged to another
//! block.
//!
//! # Atomic writes
//!
//! The log may carry any page of the file, and so it carries the data of a write that must be whole or not be at all:
//! one entry for all of it, and the next epoch begins before anything else may be written to the same place
//! (`engine::atomic` has the reasons). A file that a loss of power left with such an entry is not opened read-only,
//! since a replay in memory shows the tables only.
//!
//! # Parents
//!
//! Where the absence of a block or sector shows a parent, the payload is written and flushed first, and one entry with
//! the sector bits and the block's word makes it visible.
//!
//! # Changing a file that nobody serves
//!
//! [`resize`], [`set_parent`], [`set_item`], [`delete_item`] and [`repair`] are all or nothing: what nobody refers to
//! yet is written first, one log entry holds the rest, and the header that names its LogGuid is the instant. A
//! [`check`] goes through the same rules as [`open`], lists all that are broken, and finds an error exactly where
//! opening refuses.
#![forbid(unsafe_code)]

mod bat;
mod check;
mod create;
mod describe;
mod edit;
mod engine;
mod error;
pub mod format;
mod geometry;
mod header;
mod items;
mod locator;
mod log;
mod metadata;
mod open;
mod region;
mod repair;
mod replay;
mod resize;
mod scan;
mod source;
mod space;
mod storage;

pub use check::{
    BlockCounts, CheckReport, FINDINGS_PER_KIND_MAX, Finding, HeaderFacts, ItemFacts, LogFacts, RegionFacts, Severity,
    Tally, check, metadata_mark,
};
pub use create::{CreateOptions, Created, DiskKind, NewParent, create};
pub use describe::{Description, describe};
pub use engine::Engine;
pub use error::{CreateError, EditError, LocatorError, OpenError, OpenErrorKind};
pub use format::Guid;
pub use geometry::{Geometry, Slot};
pub use items::{ItemEntry, MetadataItem, delete_item, get_item, inherited_items, list_items, set_item, set_parent};
pub use locator::{LOCATOR_RAW, LOCATOR_VHDX, ParentLocator, PathKind, RawParent, VhdxParent};
pub use open::{Access, OpenDisk, OpenOptions, ReplaySummary, Warning, open};
pub use repair::{RepairReport, repair};
pub use resize::{ResizeOptions, Resized, resize};
pub use storage::{Storage, StorageError};

/// Where new GUIDs come from: random (version 4) values from a cryptographic source, never repeated.
pub type GuidSource = Box<dyn FnMut() -> Guid + Send>;
