//! VHD disks (Virtual Hard Disk Image Format Specification 1.0, October 2006), sans-IO: formats, rules and plans; the
//! callers do the I/O.
//!
//! **Two ways in.** Control-plane work ([`open()`], [`create()`], [`resize`], [`set_parent`], [`check()`], [`repair`])
//! is blocking over [`Storage`](crate::blocks::Storage). At run time shards plan with the disk's
//! [`BlockMap`](crate::blocks::BlockMap), and the home shard drives the [`Engine`]. A fixed disk has neither: byte n of
//! the disk is byte n of the file. Every offset and length of this format is a multiple of 512, not of 4096: a file
//! whose direct I/O needs more is opened buffered.
//!
//! **May know:** `blocks`, whose map, plans and engine contract it serves, and the leaf modules. Nothing of files,
//! rings, shards, clocks or SCSI.
//!
//! # How a disk is read
//!
//! The whole block table is in memory (8 bytes for each block: 8 MiB for 2040 GiB). A block that is in the file has a
//! bitmap in front of it, one bit for each sector. A bit that is not set means "the parent's", and without a parent
//! "zeros": the specification says so. Some programs (QEMU) ignore bitmaps of disks without a parent and return what is
//! stored. The two ways differ only in files that leave bits unset, and there the book is right: bytes that nobody has
//! written are not shown. Every file of Windows 10, Disk2vhd and QEMU that we have sets all bits. Bits are loaded by
//! the page, and a block whose bits prove to be all set is not asked for them again, so the care costs one load for
//! each 16 MiB of a disk, once.
//!
//! # Why a VHD that is written survives a power cut
//!
//! There is no log. Until the next flush each sector of the file may hold its old or its new content, in any
//! combination; one sector is written whole or not at all. The order of writes does the rest (`engine/`;
//! `tests/vhd_crash.rs` cuts at every write and drops every flush):
//!
//! * **A footer is always valid.** The copy at the start is mended and flushed before anything else is touched, and not
//!   written again while the disk is served. While the file grows, and after a cut there, its end may be without a
//!   footer or the file may have bytes that nothing refers to: opening uses the copy, and the next session places the
//!   footer and cuts what is behind it, so that no later block can show it.
//! * **Space comes in steps.** The file grows by many blocks at a time; the new footer, and without a parent the
//!   bitmaps of all blocks to come (every bit set), are written; then one flush. From then on each of these places
//!   reads as zeros, has a durable bitmap and lies inside the file. Over a parent the bitmaps stay as they are: zeros.
//! * **A block without a parent is named first.** Its table sector is written, and when that has left the process the
//!   block is shown and the data goes there. If the entry survives and the data does not, the sectors read as zeros, as
//!   before; if the data survives and the entry does not, the block is absent and reads as zeros. A guest's flush makes
//!   both durable, since the entry left before the write was answered.
//! * **What a parent would show is hidden last.** Data goes to space that nobody sees (a staged block, or sectors whose
//!   bit is not set); then one flush for the whole group; then the bitmap's sectors and, for new blocks, the table's;
//!   then the sectors are shown and the writes answered. A bit or an entry that survives without the other shows the
//!   parent: the bitmap of a block that was never named is zeros, durably, so these two need no flush in between.
//! * **Released blocks become zeros in place.** There is no "zero" state, so the block keeps its entry; where the file
//!   system can punch holes, its space goes back. Without a parent this is all. Over a parent the zeros are flushed
//!   before all bits are set; a block that was absent gets space first, and gives it back by the same hole.
//! * **Closing** writes the footer behind the last block, flushes, and cuts the file there.
//!
//! Places are never taken away from blocks while a disk is served, so plans never go stale, and the bits of a block are
//! zero before it first becomes partial and are never cleared after. Space that was staged and never committed stays
//! unreferenced in the file until it is converted. Compaction is offline: convert the disk.
#![forbid(unsafe_code)]

mod change;
mod check;
mod create;
mod engine;
mod error;
pub mod format;
mod open;
mod parent;
mod spans;
mod table;

pub use change::{Repaired, repair, resize, set_parent};
pub use check::{CheckReport, FINDINGS_MAX, Finding, Severity, check, metadata_mark};
pub use create::{CreateOptions, Created, NewKind, create};
pub use engine::Engine;
pub use error::{ChangeError, CreateError, OpenError, OpenErrorKind};
pub use open::{Access, Description, Kind, OpenOptions, OpenVhd, Warning, describe, open};
pub use parent::VhdParent;
