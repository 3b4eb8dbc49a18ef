//! Lunaring: a userspace iSCSI target for Linux.
#![deny(unsafe_code)]

pub mod bounded;
pub mod cli;
pub mod control;
pub mod crc32c;
pub mod iscsi;
pub mod limits;
pub mod medium;
pub mod mem;
pub mod observe;
pub mod ring;
pub mod scsi;
pub mod shard;
pub mod sim;
pub mod units;
pub mod vhdx;
