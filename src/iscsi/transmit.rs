//! Where the connection writes what it sends.

use core::ops::Range;

use super::pdu::ScsiStatus;

/// The sink of outgoing PDUs: the shard's send batch together with the payload of the call in hand.
///
/// The engine asks [`room`](Transmit::room) for a whole PDU before it emits the PDU, so a PDU is never cut. Emission order is wire
/// order.
pub trait Transmit {
    /// Whether `header_bytes` bytes to copy, in at most two runs, and the payload bytes `payload` fit. `payload` is empty when
    /// the PDU has none.
    fn room(&self, header_bytes: usize, payload: Range<usize>) -> bool;

    /// Append a copy of `bytes`.
    fn bytes(&mut self, bytes: &[u8]);

    /// Append a reference to these bytes of the payload that the call is about.
    fn payload(&mut self, range: Range<usize>);

    /// Digest these bytes of the payload. Called only when DataDigest is on, right before `payload` of the same range.
    fn payload_digest(&mut self, range: Range<usize>, digest: &mut crate::crc32c::Crc32c);
}

/// How a command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// SCSI status.
    pub status: ScsiStatus,
    /// Bytes that the command wants to transfer (from its CDB), from which residuals follow. For a failed command: the bytes
    /// that were transferred.
    pub transfer_length: u64,
    /// Bytes that a bidirectional command wants to read; not used otherwise.
    pub read_transfer_length: u64,
}

impl Ending {
    /// GOOD, for a command that wanted to transfer this many bytes.
    #[inline]
    pub const fn good(transfer_length: u64) -> Self {
        Self { status: ScsiStatus::GOOD, transfer_length, read_transfer_length: 0 }
    }
}

/// How far `send_data_in` came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataInSent {
    /// Payload bytes used up: emitted, or beyond what the initiator expects and therefore dropped. The next call's payload starts
    /// after these.
    pub bytes: usize,
    /// Everything asked for has been emitted, the status included when an ending was given: the task is then over and its
    /// [`super::transfer::TaskId`] free.
    pub done: bool,
}
