//! API server, configuration, persistence, access rules.

pub mod api;
pub mod config;
pub mod controller;
pub mod cpus;
mod crash;
pub mod dataplane;
pub mod demo;
mod disks;
pub mod error;
pub mod executor;
pub mod launch;
mod openapi;
mod portals;
pub mod routes;
pub mod server;
pub mod socket;
pub mod state;
mod targets;
mod views;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
