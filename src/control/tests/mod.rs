//! The control plane on shards that only remember what they were told.

mod commands;
mod crashes;
mod fake;
mod http;
mod recovery;
mod reservations;
mod snapshots;
