//! An iSCSI initiator of our own: load generator, data verifier and misbehaving peer.
//!
//! Written from RFC 7143 and the SCSI standards without a line of the server's code, so that the two can disagree. It
//! knows nothing of the server but its portal, its targets' names and, for measuring, its process id.
//!
//! - [`pdu`] and [`login`]: the wire format and the way into full feature phase.
//! - [`exchange`]: one session with many commands in flight, without a socket; [`pipeline`] drives it over a
//!   non-blocking one, [`load`] over io_uring ([`uring`], the only place with `unsafe`).
//! - [`client`]: one session, one call at a time: any CDB, any PDU. For tests.
//! - [`load`]: closed- and open-loop load with latencies; [`cost`]: what it cost the server; [`bare`]: the reference.
//! - [`compare`]: all of that on several servers in one run, with a history and a page of plots.
//! - [`stamp`] and [`verify`]: blocks that say what they are, and a journal of what was acknowledged.
//! - [`storm`]: mutated PDUs in every phase.

pub mod bare;
pub mod client;
pub mod compare;
pub mod cost;
pub mod exchange;
pub mod load;
pub mod login;
pub mod pdu;
pub mod pipeline;
pub mod random;
pub mod stamp;
pub mod storm;
pub mod uring;
pub mod verify;
