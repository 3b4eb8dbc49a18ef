//! Why a connection ends.
//!
//! A [`Refusal`] is final: the shard stops receiving, sends nothing more and closes the connection. What a peer may
//! repair is answered with a Reject instead and never comes here.

/// Why the engine gave a connection up. Small, `Copy`, and with one text for the log each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The header digest did not match, so the stream cannot be followed (RFC 7143 section 7.8).
    #[error("header digest mismatch")]
    HeaderDigest,
    /// The data segment is longer than our MaxRecvDataSegmentLength.
    #[error("data segment longer than the declared MaxRecvDataSegmentLength")]
    DataSegmentTooLong,
    /// A Login Request in full feature phase (section 6.3: it must not come).
    #[error("login request in full feature phase")]
    LoginInFullFeaturePhase,
    /// The peer's requests need more Rejects than can wait to be sent.
    #[error("too many rejected requests while nothing could be sent")]
    TooManyRejects,
    /// No answer to our NOP-In within the time-out.
    #[error("no answer to a NOP-In ping in time")]
    PingTimeout,
    /// We asked for a logout (Asynchronous Message) and it did not come in time.
    #[error("no logout in the time the target had asked for")]
    LogoutTimeout,
    /// The initiator has sent requests after its logout was answered.
    #[error("request after logout")]
    AfterLogout,
    /// A target cold reset, or the administrator, ended the session.
    #[error("session dropped by the target")]
    Dropped,
}
