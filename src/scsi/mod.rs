//! The SCSI engine, sans-IO: what a direct-access block device answers to a command (SPC-5, SBC-4, SAM-5).
//!
//! The caller decodes the LUN ([`lun::decode`]), finds the logical unit, and calls [`execute`]. The engine checks the
//! command and either finishes it (status and sense, or a parameter list as Data-In) or says what the medium has to do
//! ([`Action`]); the caller does that and turns a [`MediumError`] into an [`Outcome`]. Nothing here allocates, blocks,
//! reads a clock or sees payload.
#![forbid(unsafe_code)]

pub mod attention;
mod buffer;
mod capacity;
mod cdb;
pub mod command_table;
pub mod condition;
pub mod copy;
mod defects;
mod diagnostic;
pub mod execute;
#[cfg(test)]
mod fixture;
pub mod format;
mod inquiry;
pub mod lba_status;
pub mod log;
pub mod lun;
pub mod medium_error;
mod mode;
pub mod mode_select;
pub mod parameter_list;
pub mod port_groups;
mod read_write;
mod readiness;
mod report_luns;
pub mod reservations;
pub mod sanitize;
pub mod sense;
mod supported;
pub mod timestamp;
mod uninterrupted;
pub mod unit;
pub mod unmap;
mod vital_product_data;
mod write_same;

pub use attention::{Attention, Attentions};
pub use condition::Condition;
pub use copy::{CopyIn, CopyOut, CopyState, CopyStatus, TokenTable};
pub use execute::{Action, ByteCheck, CommandRequest, LogicalUnit, TargetView, execute};
pub use lba_status::{LbaStatusReply, Provisioning, ReportType};
pub use log::LogData;
pub use medium_error::MediumError;
pub use parameter_list::ParameterList;
pub use port_groups::{AccessState, PortGroups};
pub use sanitize::SanitizeMethod;
pub use sense::{Outcome, Sense, SenseCode, SenseData, SenseFormat, Status};
pub use unit::{BlockLength, Features, NexusUnit, Unit, UnitConfig, UnitError};
