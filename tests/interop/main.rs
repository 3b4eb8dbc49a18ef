//! The server from outside: the real binary, real clients of other projects, and our own initiator.
//!
//! Every test starts servers of its own in a folder under `target/` and ends only those. Counts that decide how long a
//! test takes come from the environment (`LUNARING_KILLS`, `LUNARING_STORM_PDUS`); `tests/run` raises them.

mod aborts;
mod atomic;
mod bad_input;
mod chap;
mod clients;
mod configuration;
mod connections;
mod copying;
mod crash;
mod differencing;
mod entrance;
mod erase;
mod exclusive;
mod hung;
mod images;
mod isns;
mod load;
mod masking;
mod modes;
mod ms_deviations;
mod ports;
mod primary;
mod protocol;
mod recovery;
mod replace;
mod reservations;
mod server;
mod session_copies;
mod sessions;
mod settings;
mod sharing;
mod silent;
mod space;
mod storm;
mod task_sets;
mod tokens;
mod traces;
mod upkeep;
