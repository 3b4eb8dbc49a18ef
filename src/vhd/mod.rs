//! VHD disks (Virtual Hard Disk Image Format Specification 1.0, October 2006), sans-IO: formats, rules and plans; the
//! callers do the I/O.
//!
//! **May know:** `blocks`, whose map, plans and engine contract it serves, and the leaf modules. Nothing of files, rings,
//! shards, clocks or SCSI.
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
pub use check::{CheckReport, FINDINGS_MAX, Finding, Severity, check};
pub use create::{CreateOptions, Created, NewKind, create};
pub use engine::Engine;
pub use error::{ChangeError, CreateError, OpenError, OpenErrorKind};
pub use open::{Access, Description, Kind, OpenOptions, OpenVhd, Warning, describe, open};
pub use parent::VhdParent;
