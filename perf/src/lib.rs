//! An iSCSI initiator of our own: load generator, data verifier and misbehaving peer.
//!
//! Written from RFC 7143 and the SCSI standards without a line of the server's code, so that the two can disagree. It
//! knows nothing of the server but its portal, its targets' names and, for measuring, its process id.
//!
//! - [`pdu`] and [`login`]: the wire format and the way into full feature phase.
//! - [`pipeline`]: one session with many commands in flight on a non-blocking socket. Everything below drives it.
//! - [`client`]: one session, one call at a time: any CDB, any PDU. For tests.
//! - [`load`]: closed-loop load with latencies; [`cost`]: what it cost the server; [`bare`]: the reference server.
//! - [`stamp`] and [`verify`]: blocks that say what they are, and a journal of what was acknowledged.
//! - [`storm`]: mutated PDUs in every phase.

pub mod bare;
pub mod client;
pub mod cost;
pub mod load;
pub mod login;
pub mod pdu;
pub mod pipeline;
pub mod random;
pub mod stamp;
pub mod storm;
pub mod verify;
