//! What a connection sends: two batches, one being built while the other is with the kernel.

use std::ops::Range;

use crate::crc32c::Crc32c;
use crate::iscsi::pdu::BHS_LEN;
use crate::iscsi::transmit::Transmit;
use crate::mem::{Arena, Slice};
use crate::ring::SendBatch;

/// Segments of one batch: two for each of 128 answers.
const SEGMENTS_MAX: usize = 256;

/// Header bytes of one batch: 128 headers with digests, and room for text.
const HEADER_BYTES: usize = 16 * 1024;

/// Room for any answer without payload: header, digests, and the longest sense data.
const ANSWER_BYTES_MAX: usize = 48 + 4 + 256 + 4;

/// From this many bytes on, a zero-copy send is worth its notification.
pub(crate) const ZERO_COPY_BYTES_MIN: usize = 16 * 1024;

/// The sending side of a connection.
pub(crate) struct Tx {
    /// What leaves at the end of the turn.
    pub(crate) building: SendBatch,
    /// The other batch, unless it is being sent.
    pub(crate) spare: Option<SendBatch>,
    /// Zero-copy sends are worth trying: the kernel has not copied after all.
    pub(crate) zero_copy: bool,
    /// PDUs in the batch that is being built.
    pub(crate) pdus: u64,
}

impl Tx {
    /// Both batches; `None` when memory is short.
    pub(crate) fn new(arena: &Arena, zero_copy: bool) -> Option<Self> {
        let building = SendBatch::with_header_bytes(arena, SEGMENTS_MAX, HEADER_BYTES)?;
        let spare = SendBatch::with_header_bytes(arena, SEGMENTS_MAX, HEADER_BYTES)?;
        Some(Self { building, spare: Some(spare), zero_copy, pdus: 0 })
    }

    /// Nothing is to be sent and nothing is underway.
    pub(crate) fn is_idle(&self) -> bool {
        self.building.is_empty() && self.spare.is_some()
    }

    /// Whether an answer without payload fits. While it does not, no further request is looked at.
    pub(crate) fn has_room(&self) -> bool {
        self.building.bytes_free() >= ANSWER_BYTES_MAX && self.building.segments_free() >= 4
    }

    /// The sink for a PDU whose payload is a buffer.
    pub(crate) fn with_payload<'a>(&'a mut self, payload: &'a Slice) -> Out<'a> {
        Out { batch: &mut self.building, payload: Some(payload), pdus: &mut self.pdus }
    }

    /// The sink for a PDU without payload.
    pub(crate) fn bare(&mut self) -> Out<'_> {
        Out { batch: &mut self.building, payload: None, pdus: &mut self.pdus }
    }
}

/// One PDU's way into the batch.
pub(crate) struct Out<'a> {
    batch: &'a mut SendBatch,
    payload: Option<&'a Slice>,
    pdus: &'a mut u64,
}

impl Transmit for Out<'_> {
    #[inline]
    fn room(&self, header_bytes: usize, payload: Range<usize>) -> bool {
        let segments = if payload.is_empty() { 2 } else { 3 };
        self.batch.bytes_free() >= header_bytes && self.batch.segments_free() >= segments
    }

    #[inline]
    fn bytes(&mut self, bytes: &[u8]) {
        // A run that is long enough holds a header; what follows a payload (padding, digest) is shorter.
        *self.pdus += u64::from(bytes.len() >= BHS_LEN);
        self.batch.push_bytes(bytes).expect("the engine has asked for room");
    }

    #[inline]
    fn payload(&mut self, range: Range<usize>) {
        let payload = self.payload.expect("this PDU has a payload");
        self.batch.push_slice(payload.slice(range)).expect("the engine has asked for room");
    }

    fn payload_digest(&mut self, range: Range<usize>, digest: &mut Crc32c) {
        let payload = self.payload.expect("this PDU has a payload");
        digest.update(&payload[range]);
    }

    fn copy_payload(&self, range: Range<usize>, into: &mut [u8]) {
        let payload = self.payload.expect("this PDU has a payload");
        into.copy_from_slice(&payload[range]);
    }
}
