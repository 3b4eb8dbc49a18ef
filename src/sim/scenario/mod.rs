//! Whole servers on a simulated world, with initiators that check them: shared by the tests and `tools sim`.
//!
//! A scenario is a name, a sentence and a function of a seed. One run of one seed is the same everywhere.
//!
//! **May know:** everything below the control plane.

mod changes;
mod fencing;
mod images;
mod runs;
mod server;
mod sessions;

pub use changes::Change;
pub use runs::{SCENARIOS, find};
pub use server::{DiskPlan, Server, ServerConfig};
pub use sessions::EVENTS as SESSION_EVENTS;

use super::initiator::InitiatorReport;
use crate::ring::Nanos;

/// What one run of a scenario came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Virtual time that passed.
    pub time: Nanos,
    /// Events in the world's history.
    pub events: u64,
    /// The history's hash: the same for the same seed and the same code.
    pub hash: u64,
    /// What each initiator met.
    pub initiators: Vec<InitiatorReport>,
    /// Bytes that the server copied, and of those, bytes that files shared.
    pub copied_bytes: (u64, u64),
}

/// A way to try a whole server.
pub struct Scenario {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it tries.
    pub about: &'static str,
    /// Run it once. An error says what was wrong; a broken assertion panics.
    pub run: fn(Run) -> Result<Report, String>,
}

/// One run to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// What everything is drawn from.
    pub seed: u64,
    /// Print every event to standard error as it happens.
    pub is_printed: bool,
}

impl Run {
    /// A silent run.
    pub fn new(seed: u64) -> Run {
        Run { seed, is_printed: false }
    }
}
