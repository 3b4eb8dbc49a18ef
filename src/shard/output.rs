//! What a connection sends: two batches, one being built while the other is with the kernel.

use std::ops::Range;

use crate::crc32c::crc32c;
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
    zeros: ZeroDigest,
}

impl Tx {
    /// Both batches; `None` when memory is short.
    pub(crate) fn new(arena: &Arena, zero_copy: bool) -> Option<Self> {
        let building = SendBatch::with_header_bytes(arena, SEGMENTS_MAX, HEADER_BYTES)?;
        let spare = SendBatch::with_header_bytes(arena, SEGMENTS_MAX, HEADER_BYTES)?;
        Some(Self { building, spare: Some(spare), zero_copy, pdus: 0, zeros: ZeroDigest::default() })
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
    #[inline]
    pub(crate) fn with_payload<'a>(&'a mut self, payload: &'a Slice) -> Out<'a> {
        self.with_rest(payload, 0)
    }

    /// The sink for PDUs whose payload is a buffer, of which the first `sent` bytes have been sent.
    #[inline]
    pub(crate) fn with_rest<'a>(&'a mut self, payload: &'a Slice, sent: usize) -> Out<'a> {
        Out { batch: &mut self.building, payload: Some(payload), sent, pdus: &mut self.pdus, zeros: &mut self.zeros }
    }

    /// The sink for one PDU whose payload is the whole of a buffer, given away with it.
    #[inline]
    pub(crate) fn with_whole(&mut self, payload: Slice) -> WholeOut<'_> {
        WholeOut { out: self.bare(), payload: Some(payload) }
    }

    /// The sink for a PDU without payload.
    pub(crate) fn bare(&mut self) -> Out<'_> {
        Out { batch: &mut self.building, payload: None, sent: 0, pdus: &mut self.pdus, zeros: &mut self.zeros }
    }
}

/// The digest of the zeros that were sent last: their content never changes, so that as many have the same one.
#[derive(Clone, Copy, Debug, Default)]
struct ZeroDigest {
    len: usize,
    value: u32,
}

impl ZeroDigest {
    /// The CRC-32C of `zeros`, which are zeros.
    #[inline]
    fn digest(&mut self, zeros: &[u8]) -> u32 {
        if self.len != zeros.len() {
            *self = Self { len: zeros.len(), value: crc32c(zeros) };
        }
        self.value
    }
}

/// One PDU's way into the batch.
pub(crate) struct Out<'a> {
    batch: &'a mut SendBatch,
    payload: Option<&'a Slice>,
    /// Where in it the engine's ranges begin.
    sent: usize,
    pdus: &'a mut u64,
    zeros: &'a mut ZeroDigest,
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
        let range = self.sent + range.start..self.sent + range.end;
        self.batch.push_slice(payload.slice(range)).expect("the engine has asked for room");
    }

    #[inline]
    fn payload_digest(&mut self, range: Range<usize>) -> u32 {
        let payload = self.payload.expect("this PDU has a payload");
        let bytes = &payload[self.sent + range.start..self.sent + range.end];
        if payload.is_zero_area() { self.zeros.digest(bytes) } else { crc32c(bytes) }
    }

    fn copy_payload(&self, range: Range<usize>, into: &mut [u8]) {
        let payload = self.payload.expect("this PDU has a payload");
        into.copy_from_slice(&payload[self.sent + range.start..self.sent + range.end]);
    }
}

/// The way of one PDU that takes its payload with it.
pub(crate) struct WholeOut<'a> {
    out: Out<'a>,
    payload: Option<Slice>,
}

impl WholeOut<'_> {
    #[inline]
    fn check(&self, range: &Range<usize>) {
        let is_whole = self.payload.as_ref().is_some_and(|payload| *range == (0..payload.len()));
        assert!(is_whole, "one PDU holds all of the payload");
    }
}

impl Transmit for WholeOut<'_> {
    #[inline]
    fn room(&self, header_bytes: usize, payload: Range<usize>) -> bool {
        self.out.room(header_bytes, payload)
    }

    #[inline]
    fn bytes(&mut self, bytes: &[u8]) {
        self.out.bytes(bytes);
    }

    #[inline]
    fn payload(&mut self, range: Range<usize>) {
        self.check(&range);
        let payload = self.payload.take().expect("just seen");
        self.out.batch.push_slice(payload).expect("the engine has asked for room");
    }

    #[inline]
    fn payload_digest(&mut self, range: Range<usize>) -> u32 {
        self.check(&range);
        let payload = self.payload.as_ref().expect("just seen");
        if payload.is_zero_area() { self.out.zeros.digest(payload) } else { crc32c(payload) }
    }

    fn copy_payload(&self, range: Range<usize>, into: &mut [u8]) {
        self.check(&range);
        into.copy_from_slice(self.payload.as_ref().expect("just seen"));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::mem::ArenaConfig;

    #[test]
    fn zeros_have_the_digest_of_their_length_and_other_bytes_their_own() {
        let arena = Arena::new(ArenaConfig { bytes_max: 4 << 20, hugepages: false }).unwrap();
        let mut tx = Tx::new(&arena, false).unwrap();
        let mut data = arena.take(4096).unwrap();
        data[4095] = 1;
        let data = data.freeze();
        for (at, len) in [(0, 4096), (0, 4096), (100, 512), (0, 512), (0, 0), (0, 4096), (4, 4092)] {
            let zeros = arena.zeros(4096);
            assert_eq!(tx.with_payload(&zeros).payload_digest(at..at + len), ::crc32c::crc32c(&vec![0; len]));
            let expected = ::crc32c::crc32c(&data[at..at + len]);
            assert_eq!(tx.with_payload(&data).payload_digest(at..at + len), expected);
            assert_eq!(tx.with_rest(&data, at).payload_digest(0..len), expected);
        }
    }
}
