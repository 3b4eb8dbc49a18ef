//! The iSCSI protocol engine (RFC 7143), sans-IO: no sockets, files, clocks or threads; time is an argument.
//!
//! [`pdu`] is the wire format. [`connection::Connection`] is one connection in full feature phase.
#![forbid(unsafe_code)]

mod command_window;
pub mod connection;
pub mod pdu;
pub mod receive;
pub mod refusal;
pub mod session;
pub mod task_management;
mod task_table;
pub mod transfer;
pub mod transmit;

#[cfg(test)]
mod tests;
