//! API server, configuration, persistence, access rules.
pub mod error;
pub mod executor;
