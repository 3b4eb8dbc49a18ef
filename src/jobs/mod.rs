//! Work on disks that takes long: convert, merge, compact. It runs on threads of its own, says how far it is, and can
//! be cancelled.
//!
//! | file | subject |
//! |---|---|
//! | `registry` | which jobs there are and were; progress and cancel |
//! | `convert` | a disk's content in a new image |
//! | `merge` | a differencing layer into its parent |
//! | `check` | what is in an image, and what is wrong with it |
//!
//! **May know:** `medium` and the formats. Nothing of the configuration: what a job means for the disks of a server is
//! the control plane's part, which starts it and puts its outcome into force.

pub mod check;
pub mod convert;
pub mod merge;
mod registry;

pub use registry::{JobError, JobId, JobInfo, JobKind, JobState, Progress, Registry, Running, TooMany};
