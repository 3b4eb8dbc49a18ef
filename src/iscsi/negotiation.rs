//! What a negotiation results in: our preferences, the values agreed, and the rules that lead from one to the other.

#![forbid(unsafe_code)]

use crate::limits;

/// What this target asks for and allows. The values are bounds of the negotiation; the initiator may ask for less.
#[derive(Clone, Debug)]
pub struct Preferences {
    /// Digests allowed for headers. The initiator's order of preference decides.
    pub header_digest: DigestChoice,
    /// Digests allowed for data. The initiator's order of preference decides.
    pub data_digest: DigestChoice,
    /// MaxRecvDataSegmentLength that we declare, in bytes.
    pub receive_segment_length_max: u32,
    /// MaxBurstLength, in bytes.
    pub burst_length_max: u32,
    /// FirstBurstLength, in bytes.
    pub first_burst_length_max: u32,
    /// MaxOutstandingR2T.
    pub outstanding_r2t_max: u16,
    /// Whether immediate data is welcome (ImmediateData).
    pub immediate_data: bool,
    /// Whether every write must wait for an R2T (InitialR2T).
    pub initial_r2t: bool,
    /// DefaultTime2Wait, in seconds: the least.
    pub time2wait_s: u16,
    /// DefaultTime2Retain, in seconds: the most. Without connection recovery nothing is retained.
    pub time2retain_s: u16,
}

/// Which of the two digest values are allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DigestChoice {
    /// Either.
    Any,
    /// Only `None`.
    None,
    /// Only `CRC32C`.
    Crc32c,
}

impl Default for Preferences {
    fn default() -> Preferences {
        Preferences {
            header_digest: DigestChoice::Any,
            data_digest: DigestChoice::Any,
            receive_segment_length_max: limits::RECEIVE_SEGMENT_LENGTH_MAX,
            burst_length_max: limits::BURST_LENGTH_MAX,
            first_burst_length_max: limits::FIRST_BURST_LENGTH_MAX,
            outstanding_r2t_max: limits::OUTSTANDING_R2T_MAX,
            immediate_data: true,
            initial_r2t: false,
            time2wait_s: 0,
            time2retain_s: 0,
        }
    }
}

/// The operational parameters of a connection and its session (RFC 7143 section 13).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// HeaderDigest is CRC32C.
    pub header_digest: bool,
    /// DataDigest is CRC32C.
    pub data_digest: bool,
    /// MaxRecvDataSegmentLength of the target, in bytes: the longest data segment that may come in.
    pub receive_segment_length_max: u32,
    /// MaxRecvDataSegmentLength of the initiator, in bytes: the longest data segment that may go out.
    pub transmit_segment_length_max: u32,
    /// MaxBurstLength, in bytes.
    pub burst_length_max: u32,
    /// FirstBurstLength, in bytes; at most `burst_length_max`.
    pub first_burst_length: u32,
    /// InitialR2T: no unsolicited Data-Out PDUs.
    pub initial_r2t: bool,
    /// ImmediateData: commands may carry data.
    pub immediate_data: bool,
    /// MaxOutstandingR2T: R2Ts of one task that may be unanswered.
    pub outstanding_r2t_max: u16,
    /// MaxConnections: always 1.
    pub connections_max: u16,
    /// ErrorRecoveryLevel: always 0.
    pub error_recovery_level: u8,
    /// DataPDUInOrder: always true.
    pub data_pdu_in_order: bool,
    /// DataSequenceInOrder: always true.
    pub data_sequence_in_order: bool,
    /// DefaultTime2Wait, in seconds.
    pub time2wait_s: u16,
    /// DefaultTime2Retain, in seconds.
    pub time2retain_s: u16,
    /// iSCSIProtocolLevel (RFC 7144); 1 is RFC 7143.
    pub protocol_level: u8,
}

impl Default for Negotiated {
    /// The values that hold when nothing is negotiated.
    fn default() -> Negotiated {
        Negotiated {
            header_digest: false,
            data_digest: false,
            receive_segment_length_max: 8192,
            transmit_segment_length_max: 8192,
            burst_length_max: 262_144,
            first_burst_length: 65_536,
            initial_r2t: true,
            immediate_data: true,
            outstanding_r2t_max: 1,
            connections_max: 1,
            error_recovery_level: 0,
            data_pdu_in_order: true,
            data_sequence_in_order: true,
            time2wait_s: 2,
            time2retain_s: 20,
            protocol_level: 1,
        }
    }
}
