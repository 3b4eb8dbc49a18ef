//! Text Requests of the full feature phase: SendTargets (RFC 7143 appendix C) and the few keys that may still be
//! negotiated.
//!
//! The connection hands in complete Text Requests in CmdSN order and sends what comes out; one exchange runs at a time.

#![forbid(unsafe_code)]

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use super::access::Caller;
use super::directory::{Directory, Target};
use super::keys::{self, Key, KeyRow, Kind, Sender, Usage};
use super::names::IscsiName;
use super::negotiation::declared_number;
use super::pdu::{RejectReason, TAG_RESERVED, TextRequest, TextResponse};
use super::text::{self, TextBuilder, TextCollector};
use crate::limits::{NEGOTIATION_BYTES_MAX, PORTALS_MAX};
use core::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Bytes of text in one Text Response at most, also where the initiator would take more. Not less, because libiscsi (as
/// of 1.19) takes 256 KiB at once but no second piece: that is a listing of some 3,500 targets.
pub const TEXT_RESPONSE_BYTES_MAX: usize = 256 * 1024;

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
    pub local: SocketAddr,
    /// The target of the session; `None` in a discovery session.
    pub target: Option<&'a IscsiName>,
    /// The longest data segment that the initiator takes, in bytes.
    pub transmit_segment_length_max: u32,
    /// MaxRecvDataSegmentLength to declare when the initiator declares its own anew, in bytes.
    pub receive_segment_length_max: u32,
}

impl TextContext<'_> {
    fn caller(&self) -> Caller<'_> {
        Caller { name: self.initiator_name, peer: self.peer, local: self.local }
    }
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
    /// The Target Transfer Tag given last.
    tag: u32,
    underway: Option<Underway>,
}

/// An exchange that has begun.
#[derive(Debug, Default)]
struct Underway {
    initiator_task_tag: u32,
    /// The tag that the next request must bring.
    target_transfer_tag: u32,
    incoming: TextCollector,
    outgoing: Outgoing,
    /// Keys that have come, by their place in the key table.
    seen: u64,
    /// The initiator's new MaxRecvDataSegmentLength; holds when the exchange ends well.
    transmit_segment_length_max: Option<u32>,
}

/// What is still to be said. A long listing is written piece by piece from one state of the directory.
#[derive(Debug, Default)]
struct Outgoing {
    text: Vec<u8>,
    listing: Option<Listing>,
}

/// How far a listing of all targets has come.
#[derive(Debug)]
struct Listing {
    directory: Arc<Directory>,
    /// The places of the targets still to be told.
    places: std::vec::IntoIter<usize>,
    /// The TargetAddress pairs, which are the same for every target that all portal groups lead to.
    addresses: Vec<u8>,
    /// The address that the initiator reaches.
    local: IpAddr,
}

impl TextExchange {
    /// Handle one Text Request with its data segment.
    ///
    /// A request without Target Transfer Tag begins anew, whatever was underway (RFC 7143 section 11.10.4).
    pub fn handle(&mut self, request: &TextRequest, data: &[u8], context: &TextContext<'_>) -> TextStep {
        let underway = self.underway.take();
        let underway = if request.target_transfer_tag == TAG_RESERVED {
            Some(Underway { initiator_task_tag: request.initiator_task_tag, ..Underway::default() })
        } else {
            underway.filter(|underway| {
                underway.initiator_task_tag == request.initiator_task_tag
                    && underway.target_transfer_tag == request.target_transfer_tag
            })
        };
        let Some(mut underway) = underway else {
            return TextStep::Reject(RejectReason::INVALID_PDU_FIELD);
        };
        match underway.advance(request, data, context) {
            Ok(data) => self.respond(underway, request, data),
            // What was underway has been dropped: the negotiation is reset.
            Err(reason) => TextStep::Reject(reason),
        }
    }

    fn respond(&mut self, mut underway: Underway, request: &TextRequest, data: Vec<u8>) -> TextStep {
        let continues = !underway.outgoing.is_empty();
        let is_final = request.is_final && !continues;
        let mut response = TextResponse {
            is_final,
            continues,
            lun: [0; 8],
            initiator_task_tag: request.initiator_task_tag,
            target_transfer_tag: TAG_RESERVED,
            data_segment_len: data.len(),
        };
        if is_final {
            let transmit_segment_length_max = underway.transmit_segment_length_max;
            return TextStep::Respond { response, data, transmit_segment_length_max };
        }
        // RFC 7143 section 11.11.4: a response that is not final always has a tag.
        self.tag = self.tag.wrapping_add(1);
        if self.tag == TAG_RESERVED {
            self.tag = 0;
        }
        response.target_transfer_tag = self.tag;
        underway.target_transfer_tag = self.tag;
        self.underway = Some(underway);
        TextStep::Respond { response, data, transmit_segment_length_max: None }
    }
}

impl Underway {
    /// Take a request's text; the next piece of the answer comes out.
    fn advance(
        &mut self,
        request: &TextRequest,
        data: &[u8],
        context: &TextContext<'_>,
    ) -> Result<Vec<u8>, RejectReason> {
        if request.is_final && request.continues {
            return Err(RejectReason::PROTOCOL_ERROR);
        }
        if !self.outgoing.is_empty() {
            // RFC 7143 section 6.2: a text that goes on is answered with an empty request.
            if !data.is_empty() || request.continues {
                return Err(RejectReason::PROTOCOL_ERROR);
            }
            return Ok(self.outgoing.next(context));
        }
        self.incoming.push(data).map_err(|_| RejectReason::PROTOCOL_ERROR)?;
        if request.continues {
            return Ok(Vec::new());
        }
        let text = self.incoming.take();
        self.answer(&text, context)?;
        Ok(self.outgoing.next(context))
    }

    fn answer(&mut self, text: &[u8], context: &TextContext<'_>) -> Result<(), RejectReason> {
        let mut answer = TextBuilder::default();
        for pair in text::pairs(text) {
            let pair = pair.map_err(|_| RejectReason::PROTOCOL_ERROR)?;
            match keys::lookup(pair.key) {
                Some(row) => self.answer_key(row, pair.value, context, &mut answer)?,
                // An answer to an answer would never end.
                None if pair.value == "NotUnderstood" => {}
                None => answer.pair(pair.key, "NotUnderstood"),
            }
        }
        self.outgoing.text = answer.finish().map_err(|_| RejectReason::PROTOCOL_ERROR)?;
        Ok(())
    }

    fn answer_key(
        &mut self,
        row: &KeyRow,
        value: &str,
        context: &TextContext<'_>,
        answer: &mut TextBuilder,
    ) -> Result<(), RejectReason> {
        let bit = 1 << row.key as u32;
        if row.sender == Sender::Target || self.seen & bit != 0 {
            return Err(RejectReason::PROTOCOL_ERROR);
        }
        self.seen |= bit;
        if !matches!(row.usage, Usage::Any | Usage::AnyOperational | Usage::FullFeaturePhase) {
            answer.pair(row.name, "Reject");
            return Ok(());
        }
        match row.kind {
            Kind::Listing => self.send_targets(value, context, answer),
            Kind::DeclaredNumber { .. } => {
                debug_assert_eq!(row.key, Key::MaxRecvDataSegmentLength);
                match declared_number(row, value) {
                    Some(number) => {
                        self.transmit_segment_length_max = Some(number);
                        answer.pair(row.name, &context.receive_segment_length_max.to_string());
                    }
                    None => answer.pair(row.name, "Reject"),
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// SendTargets (RFC 7143 appendix C). What the initiator may not see does not exist for it.
    fn send_targets(&mut self, value: &str, context: &TextContext<'_>, answer: &mut TextBuilder) {
        let named = match (value, context.target) {
            ("All", None) => {
                self.outgoing.listing = Some(Listing {
                    directory: Arc::clone(context.directory),
                    places: context.directory.visible(&context.caller()).into_iter(),
                    addresses: addresses(context.directory, context.local.ip(), None),
                    local: context.local.ip(),
                });
                return;
            }
            // Only the target that the session is logged in to; a discovery session is logged in to none. "All" is for
            // discovery sessions; to who asks here all the same, this session's target is all there is.
            ("", None) => return,
            ("" | "All", Some(own)) => context.directory.target(own.as_str()),
            (name, None) => {
                let target = context.directory.target(name);
                target.filter(|target| target.allows(&context.caller()))
            }
            (name, Some(own)) => context.directory.target(name).filter(|target| target.name == *own),
        };
        if let Some(target) = named {
            let addresses = addresses(context.directory, context.local.ip(), Some(target));
            if addresses.is_empty() && !target.portal_groups.is_empty() {
                return;
            }
            answer.pair("TargetName", target.name.as_str());
            answer.pairs(&addresses);
        }
    }
}

impl Outgoing {
    fn is_empty(&self) -> bool {
        self.text.is_empty() && self.listing.is_none()
    }

    /// The next piece, cut behind a pair where one ends in time: not every initiator joins a pair cut in two.
    fn next(&mut self, context: &TextContext<'_>) -> Vec<u8> {
        let segment = usize::try_from(context.transmit_segment_length_max).unwrap_or(usize::MAX);
        let bytes_max = segment.min(TEXT_RESPONSE_BYTES_MAX);
        while self.text.len() <= bytes_max {
            let Some(listing) = &mut self.listing else { break };
            if !listing.write_next(&mut self.text) {
                self.listing = None;
            }
        }
        if self.text.len() <= bytes_max {
            return std::mem::take(&mut self.text);
        }
        let head = self.text.get(..bytes_max).unwrap_or_default();
        let cut = head.iter().rposition(|&byte| byte == 0).map_or(bytes_max, |zero| zero + 1);
        let rest = self.text.split_off(cut);
        std::mem::replace(&mut self.text, rest)
    }
}

impl Listing {
    /// Write the text of the next target; false when there is none left.
    fn write_next(&mut self, text: &mut Vec<u8>) -> bool {
        let Some(target) = self.places.next().and_then(|place| self.directory.targets().get(place)) else {
            return false;
        };
        let own;
        let addresses = if target.portal_groups.is_empty() {
            &self.addresses
        } else {
            own = addresses(&self.directory, self.local, Some(target));
            if own.is_empty() {
                // Without an address it would mean this very portal.
                return true;
            }
            &own
        };
        text.extend_from_slice(b"TargetName=");
        text.extend_from_slice(target.name.as_str().as_bytes());
        text.push(0);
        text.extend_from_slice(addresses);
        true
    }
}

/// A TargetAddress pair for each portal that leads to the target (RFC 7143 section 13.8), each address once.
fn addresses(directory: &Directory, local: IpAddr, target: Option<&Target>) -> Vec<u8> {
    let mut told: Vec<(SocketAddr, u16)> = Vec::new();
    let mut text = TextBuilder::default();
    for portal in directory.portals() {
        if target.is_some_and(|target| !target.is_reached_through(portal.portal_group_tag)) {
            continue;
        }
        let Some(address) = portal.advertised(local) else { continue };
        if !told.contains(&(address, portal.portal_group_tag)) {
            told.push((address, portal.portal_group_tag));
            text.pair("TargetAddress", &format!("{address},{}", portal.portal_group_tag));
        }
    }
    // An address takes at most 70 bytes, so even the largest number of portals fits.
    const { assert!(PORTALS_MAX * 70 < NEGOTIATION_BYTES_MAX / 2) };
    text.finish().unwrap_or_default()
}
