//! The text keys that this target knows: one row per key of RFC 7143 section 13, with its obsolete ones, of section
//! 12.1 (CHAP) and of RFC 7144.
//!
//! A row says what kind of value the key has, who may send it when, and, for an operational parameter, what this target
//! prefers and where the result goes. The rules that use the rows are in `negotiation`.

#![forbid(unsafe_code)]

use super::negotiation::{DigestChoice, Negotiated, Preferences};

/// A key that this target knows. The discriminant is the row's place in [`KEYS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // Each is the key of the same name.
pub enum Key {
    AuthMethod,
    ChapA,
    ChapI,
    ChapC,
    ChapN,
    ChapR,
    HeaderDigest,
    DataDigest,
    MaxConnections,
    SendTargets,
    TargetName,
    InitiatorName,
    TargetAlias,
    InitiatorAlias,
    TargetAddress,
    TargetPortalGroupTag,
    InitialR2T,
    ImmediateData,
    MaxRecvDataSegmentLength,
    MaxBurstLength,
    FirstBurstLength,
    DefaultTime2Wait,
    DefaultTime2Retain,
    MaxOutstandingR2T,
    DataPduInOrder,
    DataSequenceInOrder,
    ErrorRecoveryLevel,
    SessionType,
    TaskReporting,
    NodeArchitecture,
    IFMarker,
    OFMarker,
    IFMarkInt,
    OFMarkInt,
    ProtocolLevel,
}

/// When a key may be sent (RFC 7143 section 13, "Use").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// Only in the SecurityNegotiation stage of a login.
    Security,
    /// Initialize only: in the login of any connection, in either stage.
    Initialize,
    /// In the operational stage of a login of any connection.
    InitializeOperational,
    /// In the operational stage of the leading login.
    LeadingOperational,
    /// In the leading login, in either stage.
    Leading,
    /// At any time, but not in the SecurityNegotiation stage.
    AnyOperational,
    /// At any time.
    Any,
    /// Only in full feature phase.
    FullFeaturePhase,
}

/// What a key's value governs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One connection.
    Connection,
    /// The whole session.
    Session,
}

/// Who may send a key, other than in answer to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// The initiator only.
    Initiator,
    /// The target only.
    Target,
    /// Both.
    Both,
}

/// How a number is agreed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NumberFunction {
    /// The smaller of both.
    Minimum,
    /// The larger of both.
    Maximum,
}

/// How a boolean is agreed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BooleanFunction {
    /// `Yes` only if both say so.
    And,
    /// `Yes` if either says so.
    Or,
}

/// What kind of value a key has, and for operational parameters how it is agreed.
#[derive(Clone, Copy)]
pub enum Kind {
    /// AuthMethod and what belongs to the methods: the login and its method handle it.
    Authentication,
    /// A list in the initiator's order of preference: the first item that is allowed is the answer.
    List {
        /// Whether we take this item.
        allowed: fn(&Preferences, &str) -> bool,
        /// Where the answer goes.
        result: fn(&mut Negotiated, &str),
    },
    /// A number that both sides agree.
    Number {
        /// How.
        function: NumberFunction,
        /// Legal values.
        low: u32,
        /// Legal values.
        high: u32,
        /// What we want.
        ours: fn(&Preferences) -> u32,
        /// Where the answer goes.
        result: fn(&mut Negotiated, u32),
    },
    /// A number that each side declares for itself.
    DeclaredNumber {
        /// Legal values.
        low: u32,
        /// Legal values.
        high: u32,
        /// Where the initiator's value goes.
        result: fn(&mut Negotiated, u32),
    },
    /// A boolean that both sides agree.
    Boolean {
        /// How.
        function: BooleanFunction,
        /// What we want.
        ours: fn(&Preferences) -> bool,
        /// Where the answer goes.
        result: fn(&mut Negotiated, bool),
    },
    /// Words for people; at most 255 bytes.
    DeclaredText,
    /// A name or a choice that says which session is wanted: the login handles it.
    Identity,
    /// SendTargets.
    Listing,
    /// A key of RFC 3720 that RFC 7143 section 13.25 has taken back, with the answer prescribed there.
    Obsolete(&'static str),
}

/// One key.
pub struct KeyRow {
    /// Which.
    pub key: Key,
    /// As it is written.
    pub name: &'static str,
    /// When it may be sent.
    pub usage: Usage,
    /// What it governs.
    pub scope: Scope,
    /// Who may send it.
    pub sender: Sender,
    /// Whether it means nothing in a discovery session.
    pub irrelevant_in_discovery: bool,
    /// Its value.
    pub kind: Kind,
}

/// The row of a key; `None` for keys that are not understood. Names are case-sensitive.
#[must_use]
pub fn lookup(name: &str) -> Option<&'static KeyRow> {
    KEYS.iter().find(|row| row.name == name)
}

const fn row(key: Key, name: &'static str, usage: Usage, scope: Scope, sender: Sender, kind: Kind) -> KeyRow {
    KeyRow { key, name, usage, scope, sender, irrelevant_in_discovery: false, kind }
}

/// A row of a key that is irrelevant in discovery sessions: leading only, session-wide.
const fn normal(key: Key, name: &'static str, kind: Kind) -> KeyRow {
    let row = row(key, name, Usage::LeadingOperational, Scope::Session, Sender::Both, kind);
    KeyRow { irrelevant_in_discovery: true, ..row }
}

fn allows(choice: DigestChoice, item: &str) -> bool {
    match item {
        "None" => choice != DigestChoice::Crc32c,
        "CRC32C" => choice != DigestChoice::None,
        _ => false,
    }
}

const SEGMENT_LOW: u32 = 512;
const SEGMENT_HIGH: u32 = (1 << 24) - 1;

/// Every key that is understood.
pub static KEYS: [KeyRow; 35] = {
    use Key as K;
    use Kind::{Authentication, Boolean, DeclaredNumber, DeclaredText, Identity, List, Listing, Number, Obsolete};
    use NumberFunction::{Maximum, Minimum};
    use Scope::{Connection, Session};
    use Sender::{Both, Initiator, Target};
    use Usage as U;
    [
        row(K::AuthMethod, "AuthMethod", U::Security, Connection, Both, Authentication),
        row(K::ChapA, "CHAP_A", U::Security, Connection, Initiator, Authentication),
        row(K::ChapI, "CHAP_I", U::Security, Connection, Both, Authentication),
        row(K::ChapC, "CHAP_C", U::Security, Connection, Both, Authentication),
        row(K::ChapN, "CHAP_N", U::Security, Connection, Both, Authentication),
        row(K::ChapR, "CHAP_R", U::Security, Connection, Both, Authentication),
        row(
            K::HeaderDigest,
            "HeaderDigest",
            U::InitializeOperational,
            Connection,
            Both,
            List {
                allowed: |ours, item| allows(ours.header_digest, item),
                result: |negotiated, item| negotiated.header_digest = item == "CRC32C",
            },
        ),
        row(
            K::DataDigest,
            "DataDigest",
            U::InitializeOperational,
            Connection,
            Both,
            List {
                allowed: |ours, item| allows(ours.data_digest, item),
                result: |negotiated, item| negotiated.data_digest = item == "CRC32C",
            },
        ),
        normal(
            K::MaxConnections,
            "MaxConnections",
            Number {
                function: Minimum,
                low: 1,
                high: 65_535,
                ours: |ours| u32::from(ours.connections_max),
                result: |negotiated, value| negotiated.connections_max = u16::try_from(value).unwrap_or(1),
            },
        ),
        row(K::SendTargets, "SendTargets", U::FullFeaturePhase, Session, Initiator, Listing),
        row(K::TargetName, "TargetName", U::Initialize, Session, Initiator, Identity),
        row(K::InitiatorName, "InitiatorName", U::Initialize, Session, Initiator, Identity),
        row(K::TargetAlias, "TargetAlias", U::Any, Session, Target, DeclaredText),
        row(K::InitiatorAlias, "InitiatorAlias", U::Any, Session, Initiator, DeclaredText),
        row(K::TargetAddress, "TargetAddress", U::Any, Session, Target, DeclaredText),
        row(K::TargetPortalGroupTag, "TargetPortalGroupTag", U::Initialize, Session, Target, DeclaredText),
        normal(
            K::InitialR2T,
            "InitialR2T",
            Boolean {
                function: BooleanFunction::Or,
                ours: |ours| ours.initial_r2t,
                result: |negotiated, value| negotiated.initial_r2t = value,
            },
        ),
        normal(
            K::ImmediateData,
            "ImmediateData",
            Boolean {
                function: BooleanFunction::And,
                ours: |ours| ours.immediate_data,
                result: |negotiated, value| negotiated.immediate_data = value,
            },
        ),
        row(
            K::MaxRecvDataSegmentLength,
            "MaxRecvDataSegmentLength",
            U::AnyOperational,
            Connection,
            Both,
            DeclaredNumber {
                low: SEGMENT_LOW,
                high: SEGMENT_HIGH,
                result: |negotiated, value| negotiated.transmit_segment_length_max = value,
            },
        ),
        normal(
            K::MaxBurstLength,
            "MaxBurstLength",
            Number {
                function: Minimum,
                low: SEGMENT_LOW,
                high: SEGMENT_HIGH,
                ours: |ours| ours.burst_length_max,
                result: |negotiated, value| negotiated.burst_length_max = value,
            },
        ),
        normal(
            K::FirstBurstLength,
            "FirstBurstLength",
            Number {
                function: Minimum,
                low: SEGMENT_LOW,
                high: SEGMENT_HIGH,
                ours: |ours| ours.first_burst_length_max,
                result: |negotiated, value| negotiated.first_burst_length = value,
            },
        ),
        row(
            K::DefaultTime2Wait,
            "DefaultTime2Wait",
            U::LeadingOperational,
            Session,
            Both,
            Number {
                function: Maximum,
                low: 0,
                high: 3600,
                ours: |ours| u32::from(ours.time2wait_s),
                result: |negotiated, value| negotiated.time2wait_s = u16::try_from(value).unwrap_or(3600),
            },
        ),
        row(
            K::DefaultTime2Retain,
            "DefaultTime2Retain",
            U::LeadingOperational,
            Session,
            Both,
            Number {
                function: Minimum,
                low: 0,
                high: 3600,
                ours: |ours| u32::from(ours.time2retain_s),
                result: |negotiated, value| negotiated.time2retain_s = u16::try_from(value).unwrap_or(3600),
            },
        ),
        normal(
            K::MaxOutstandingR2T,
            "MaxOutstandingR2T",
            Number {
                function: Minimum,
                low: 1,
                high: 65_535,
                ours: |ours| u32::from(ours.outstanding_r2t_max),
                result: |negotiated, value| negotiated.outstanding_r2t_max = u16::try_from(value).unwrap_or(1),
            },
        ),
        normal(
            K::DataPduInOrder,
            "DataPDUInOrder",
            Boolean {
                function: BooleanFunction::Or,
                ours: |_| true,
                result: |negotiated, value| negotiated.data_pdu_in_order = value,
            },
        ),
        normal(
            K::DataSequenceInOrder,
            "DataSequenceInOrder",
            Boolean {
                function: BooleanFunction::Or,
                ours: |_| true,
                result: |negotiated, value| negotiated.data_sequence_in_order = value,
            },
        ),
        row(
            K::ErrorRecoveryLevel,
            "ErrorRecoveryLevel",
            U::LeadingOperational,
            Session,
            Both,
            Number {
                function: Minimum,
                low: 0,
                high: 2,
                ours: |ours| u32::from(ours.error_recovery_level),
                result: |negotiated, value| negotiated.error_recovery_level = u8::try_from(value).unwrap_or(0),
            },
        ),
        row(K::SessionType, "SessionType", U::Leading, Session, Initiator, Identity),
        // FastAbort changes what aborted tasks owe; a response fence is no more than the order of one connection.
        normal(
            K::TaskReporting,
            "TaskReporting",
            List {
                allowed: |_, item| matches!(item, "RFC3720" | "ResponseFence" | "FastAbort"),
                result: |negotiated, item| negotiated.fast_abort = item == "FastAbort",
            },
        ),
        row(K::NodeArchitecture, "X#NodeArchitecture", U::LeadingOperational, Session, Both, DeclaredText),
        row(K::IFMarker, "IFMarker", U::InitializeOperational, Connection, Both, Obsolete("No")),
        row(K::OFMarker, "OFMarker", U::InitializeOperational, Connection, Both, Obsolete("No")),
        row(K::IFMarkInt, "IFMarkInt", U::InitializeOperational, Connection, Both, Obsolete("Reject")),
        row(K::OFMarkInt, "OFMarkInt", U::InitializeOperational, Connection, Both, Obsolete("Reject")),
        normal(
            K::ProtocolLevel,
            "iSCSIProtocolLevel",
            Number {
                function: Minimum,
                low: 0,
                high: 31,
                ours: |_| 1,
                result: |negotiated, value| negotiated.protocol_level = u8::try_from(value).unwrap_or(1),
            },
        ),
    ]
};

// `Negotiation` keeps the keys it has seen as bits of a word.
const _: () = assert!(KEYS.len() <= 64);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn each_row_stands_at_its_keys_place_and_no_name_comes_twice() {
        for (index, row) in KEYS.iter().enumerate() {
            assert_eq!(row.key as usize, index, "{}", row.name);
            assert!(std::ptr::eq(lookup(row.name).unwrap(), row), "{}", row.name);
        }
        assert!(lookup("headerdigest").is_none());
        assert!(lookup("X-com.example.key").is_none());
    }

    #[test]
    fn our_preferences_are_legal_values() {
        let ours = Preferences::default();
        for row in &KEYS {
            if let Kind::Number { low, high, ours: preferred, .. } = row.kind {
                assert!((low..=high).contains(&preferred(&ours)), "{}", row.name);
            }
        }
    }
}
