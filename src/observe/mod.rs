//! What the server counts about itself: counters, gauges and latency histograms.
//!
//! Every cell has one writer (the shard that owns it) and any number of readers. Writing is a relaxed load and a
//! relaxed store: no lock, no read-modify-write on the bus, no allocation. Readers ([`DiskSummary`], [`prometheus`])
//! merge the cells of all shards when somebody asks, and disturb nobody.
//!
//! **May know:** nothing of the rest of the server.

mod counter;
mod disk;
mod latency;
pub mod prometheus;
mod shard;

pub use counter::{Counter, Gauge};
pub use disk::{DiskStats, DiskSummary, OpStats, OpSummary, Operation};
pub use latency::{LATENCY_NS_MAX, LatencyCells, latency_histogram};
pub use shard::{SessionStats, ShardStats, ShardSummary};
