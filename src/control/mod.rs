//! The control plane: everything that is not an initiator's I/O.
//!
//! | file | subject |
//! |---|---|
//! | `launch`, `server` | a server from its start to its end |
//! | `controller` | the one place where commands change anything, one after another |
//! | `disks`, `targets`, `portals`, `ports`, `entrance`, `settings` | the commands |
//! | `images`, `live` | new files of disks; other files below disks that are being served |
//! | `snapshots`, `merges`, `resizing` | the commands on what is in those files |
//! | `undertakings` | commands that take long: each is a job |
//! | `config`, `state` | what is served; its file, and what a crash may leave |
//! | `recording` | traces of what disks are asked for |
//! | `reservations`, `ledger`, `beside` | reservations of disks, and the files of those that outlast the server |
//! | `dataplane`, `attachment` | what is said to the shards |
//! | `socket`, `routes`, `api`, `views`, `openapi` | the control socket: who may connect, what is asked and answered |
//! | `isns` | registration with an iSNS server |
//! | `executor` | the one thread that all of this runs on |
//! | `demo` | what `lunaring demo` sets up |
//!
//! **May know:** everything below it; nothing of the command line. Shards are reached by message only: a control plane
//! that is slow, busy or broken costs them nothing.

pub mod api;
mod attachment;
mod beside;
pub mod config;
pub mod controller;
pub mod cpus;
mod crash;
pub mod dataplane;
pub mod demo;
mod disks;
mod entrance;
pub mod error;
pub mod executor;
mod images;
pub mod isns;
mod keeping;
pub mod launch;
mod ledger;
mod live;
mod merges;
pub mod offline;
mod openapi;
mod portals;
mod ports;
mod recording;
mod replace;
mod reservations;
mod resizing;
pub mod routes;
pub mod server;
pub mod settings;
mod snapshots;
pub mod socket;
pub mod state;
mod targets;
mod undertakings;
mod views;
mod watch;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
