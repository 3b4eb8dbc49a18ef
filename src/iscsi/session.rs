//! What a session's full feature phase starts from: the negotiated parameters, as plain data.

use super::pdu::LogoutReason;

/// The kind of a session (RFC 7143 section 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionType {
    /// SCSI commands are served.
    Normal,
    /// Only Text (SendTargets), Logout and NOP-Out are served.
    Discovery,
}

/// Everything that a login leaves behind for the full feature phase. Lengths in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionParameters {
    /// SessionType.
    pub session_type: SessionType,
    /// CID of this connection.
    pub connection_id: u16,
    /// MaxConnections.
    pub connections_max: u16,
    /// HeaderDigest=CRC32C.
    pub header_digest: bool,
    /// DataDigest=CRC32C.
    pub data_digest: bool,
    /// Our MaxRecvDataSegmentLength: what we accept.
    pub max_recv_data_segment_length: u32,
    /// The initiator's MaxRecvDataSegmentLength: what we may send, 512..2^24.
    pub initiator_max_recv_data_segment_length: u32,
    /// MaxBurstLength: one R2T's data and one Data-In sequence.
    pub max_burst_length: u32,
    /// FirstBurstLength: unsolicited data of one command, immediate data included.
    pub first_burst_length: u32,
    /// InitialR2T: no unsolicited Data-Out PDUs.
    pub initial_r2t: bool,
    /// ImmediateData: a command may carry data.
    pub immediate_data: bool,
    /// MaxOutstandingR2T of one task.
    pub max_outstanding_r2t: u16,
    /// ErrorRecoveryLevel: 0 or 1.
    pub error_recovery_level: u8,
    /// TaskReporting=FastAbort: what aborted tasks still owe is not waited for (section 4.2.3.4).
    pub fast_abort: bool,
    /// DefaultTime2Wait in seconds.
    pub default_time2wait: u16,
    /// DefaultTime2Retain in seconds.
    pub default_time2retain: u16,
    /// The next CmdSN that the initiator is to send (the login's CmdSN when the leading login was immediate).
    pub exp_cmd_sn: u32,
    /// The StatSN of our next response.
    pub stat_sn: u32,
    /// Send a NOP-In after this long without a PDU from the initiator, in ms; 0 never pings.
    pub ping_interval_ms: u64,
    /// Drop the connection when nothing came for this long after a ping, in ms.
    pub ping_timeout_ms: u64,
}

/// Which of its session's connections one is: below [`crate::limits::CONNECTIONS_PER_SESSION_MAX`], and zero for the
/// leading one. It is ours, where the CID is the initiator's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionSlot(pub u8);

/// An initiator's wish to log out, as the shard sees it: what it ends is gone when the response leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Logout {
    /// Close the session, or one connection of it.
    pub reason: LogoutReason,
    /// The connection to close.
    pub connection_id: u16,
}

impl SessionParameters {
    /// The same for a connection that joins the session of these: what was negotiated for the session holds for all of
    /// its connections (RFC 7143 section 13); digests, segment lengths and StatSN are the connection's own.
    #[must_use]
    pub fn of_session(self, session: &SessionParameters) -> SessionParameters {
        SessionParameters {
            connection_id: self.connection_id,
            header_digest: self.header_digest,
            data_digest: self.data_digest,
            max_recv_data_segment_length: self.max_recv_data_segment_length,
            initiator_max_recv_data_segment_length: self.initiator_max_recv_data_segment_length,
            stat_sn: self.stat_sn,
            ..*session
        }
    }
}
