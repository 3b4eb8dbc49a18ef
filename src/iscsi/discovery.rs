//! Text Requests of the full feature phase: SendTargets (RFC 7143 appendix C) and the few keys that may still be negotiated.
//!
//! The connection hands in complete Text Requests in CmdSN order and sends what comes out; one exchange runs at a time.

#![forbid(unsafe_code)]

use super::directory::Directory;
use super::names::IscsiName;
use super::pdu::{RejectReason, TextRequest, TextResponse};
use core::net::IpAddr;
use std::sync::Arc;

/// Bytes of text in one Text Response at most, also where the initiator would take more.
pub const TEXT_RESPONSE_BYTES_MAX: usize = 8192;

/// What a Text Request is answered from.
#[derive(Clone, Copy, Debug)]
pub struct TextContext<'a> {
    /// The targets, as of now.
    pub directory: &'a Arc<Directory>,
    /// Who asks.
    pub initiator_name: &'a IscsiName,
    /// From where.
    pub peer: IpAddr,
    /// At which address of ours.
    pub local: IpAddr,
    /// The target of the session; `None` in a discovery session.
    pub target: Option<&'a IscsiName>,
    /// The longest data segment that the initiator takes, in bytes.
    pub transmit_segment_length_max: u32,
    /// MaxRecvDataSegmentLength to declare when the initiator declares its own anew, in bytes.
    pub receive_segment_length_max: u32,
}

/// The answer to a Text Request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TextStep {
    /// Send this Text Response.
    Respond {
        /// The header; the connection gives the sequence numbers.
        response: TextResponse,
        /// The data segment; at most [`TEXT_RESPONSE_BYTES_MAX`] and at most what the initiator takes.
        data: Vec<u8>,
        /// The initiator's MaxRecvDataSegmentLength from the PDU after this one on, when it has changed.
        transmit_segment_length_max: Option<u32>,
    },
    /// Send a Reject with this reason. The negotiation is over, and nothing of it holds.
    Reject(RejectReason),
}

/// The text negotiation of one connection in full feature phase.
#[derive(Debug, Default)]
pub struct TextExchange {
    target_transfer_tag: u32,
}

#[allow(clippy::todo, unused_variables)]
impl TextExchange {
    /// Handle one Text Request with its data segment.
    pub fn handle(&mut self, request: &TextRequest, data: &[u8], context: &TextContext<'_>) -> TextStep {
        todo!()
    }
}
