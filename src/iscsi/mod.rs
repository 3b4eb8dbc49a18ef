//! The iSCSI protocol engine (RFC 7143), sans-IO: no sockets, files, clocks or threads; time is an argument.
//!
//! [`pdu`] is the wire format. [`connection::Connection`] is one connection in full feature phase;
//! [`login::Login`] is what comes before, and [`discovery::TextExchange`] answers its Text Requests.
#![forbid(unsafe_code)]

mod command_window;
pub mod connection;
pub mod pdu;
pub mod receive;
mod recovery;
pub mod refusal;
pub mod session;
pub mod task_management;
mod task_table;
pub mod transfer;
pub mod transmit;

pub mod access;
pub mod chap;
pub mod directory;
pub mod discovery;
pub mod keys;
pub mod login;
pub mod names;
pub mod negotiation;
#[cfg(test)]
mod tests;
pub mod text;
