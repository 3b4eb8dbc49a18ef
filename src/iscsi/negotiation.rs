//! What a negotiation results in: our preferences, the values agreed, and the rules that lead from one to the other
//! (RFC 7143 section 6.2).
//!
//! The initiator offers, we answer; we offer nothing of our own, so that no answer of the initiator is ever awaited.
//! Where it is silent, the defaults of the standard hold.

#![forbid(unsafe_code)]

use super::keys::{BooleanFunction, Key, KeyRow, Kind, NumberFunction, Scope};
use super::text::{self, TextBuilder};
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
    /// ErrorRecoveryLevel: 0 or 1.
    pub error_recovery_level: u8,
    /// MaxConnections.
    pub connections_max: u16,
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
            error_recovery_level: 0,
            connections_max: 1,
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
    /// TaskReporting is FastAbort.
    pub fast_abort: bool,
    /// MaxConnections.
    pub connections_max: u16,
    /// ErrorRecoveryLevel: 0, or 1 where that is preferred.
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
            fast_abort: false,
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

/// How the initiator broke the rules of negotiation; each ends a login with "initiator error".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misuse {
    /// A key came a second time (RFC 7143 section 6.3).
    #[error("the key {0} came twice")]
    Repeated(&'static str),
    /// A key that only targets send.
    #[error("the key {0} is not the initiator's to send")]
    WrongSender(&'static str),
    /// A key that cannot be used now.
    #[error("the key {0} cannot be used at this point")]
    WrongMoment(&'static str),
    /// A declaration with an illegal value.
    #[error("the key {0} has an illegal value")]
    IllegalDeclaration(&'static str),
    /// An answer to a question that we did not ask.
    #[error("the key {0} has a value that only an answer can have")]
    AnswerUnasked(&'static str),
}

/// The constants that only an answer can have (RFC 7143 section 6.2).
const ANSWERS: [&str; 3] = ["Reject", "Irrelevant", "NotUnderstood"];

/// The negotiation of a login.
#[derive(Clone, Debug, Default)]
pub struct Negotiation {
    negotiated: Negotiated,
    /// Which keys have come, by their place in the key table.
    seen: u64,
    discovery: bool,
    declared: bool,
    /// The login adds a connection to a session.
    joins: bool,
}

impl Negotiation {
    /// The session turns out to be a discovery session.
    pub fn set_discovery(&mut self) {
        self.discovery = true;
    }

    /// The login adds a connection to a session that lives: what holds for the whole session cannot be negotiated.
    pub fn set_joining(&mut self) {
        self.joins = true;
    }

    /// Note that a key has come.
    ///
    /// # Errors
    /// It had come before, or it is not the initiator's to send.
    pub fn note(&mut self, row: &'static KeyRow) -> Result<(), Misuse> {
        if row.sender == super::keys::Sender::Target {
            return Err(Misuse::WrongSender(row.name));
        }
        let bit = 1 << row.key as u32;
        if self.seen & bit != 0 {
            return Err(Misuse::Repeated(row.name));
        }
        self.seen |= bit;
        Ok(())
    }

    /// Answer an operational parameter that has been noted. `text` is the whole text it came in: what one key means may
    /// depend on another one behind it.
    ///
    /// # Errors
    /// What makes the login fail.
    pub fn offer(
        &mut self,
        row: &'static KeyRow,
        value: &str,
        text: &[u8],
        ours: &Preferences,
        answer: &mut TextBuilder,
    ) -> Result<(), Misuse> {
        if ANSWERS.contains(&value) {
            return Err(Misuse::AnswerUnasked(row.name));
        }
        if self.is_irrelevant(row, text, ours) {
            answer.pair(row.name, "Irrelevant");
            return Ok(());
        }
        if self.joins && row.usage == super::keys::Usage::LeadingOperational {
            // RFC 7143 section 13: only the leading connection's login can do that. What holds stays.
            answer.pair(row.name, "Reject");
            return Ok(());
        }
        match row.kind {
            Kind::List { allowed, result } => match text::list(value).find(|item| allowed(ours, item)) {
                Some(item) => {
                    result(&mut self.negotiated, item);
                    answer.pair(row.name, item);
                }
                None => answer.pair(row.name, "Reject"),
            },
            Kind::Number { result, .. } => {
                let agreed = agreed_number(row, value, ours).map(|number| {
                    if row.key == Key::FirstBurstLength {
                        number.min(self.burst_length_max(text, ours))
                    } else {
                        number
                    }
                });
                match agreed {
                    Some(number) => {
                        result(&mut self.negotiated, number);
                        answer.pair(row.name, &number.to_string());
                    }
                    None => answer.pair(row.name, "Reject"),
                }
            }
            Kind::Boolean { result, .. } => match agreed_boolean(row, value, ours) {
                Some(yes) => {
                    result(&mut self.negotiated, yes);
                    answer.pair(row.name, if yes { "Yes" } else { "No" });
                }
                None => answer.pair(row.name, "Reject"),
            },
            Kind::DeclaredNumber { result, .. } => {
                let number = declared_number(row, value).ok_or(Misuse::IllegalDeclaration(row.name))?;
                result(&mut self.negotiated, number);
            }
            Kind::Obsolete(prescribed) => answer.pair(row.name, prescribed),
            Kind::DeclaredText | Kind::Authentication | Kind::Identity | Kind::Listing => {}
        }
        Ok(())
    }

    /// Declare our own MaxRecvDataSegmentLength, once.
    pub fn declare(&mut self, ours: &Preferences, answer: &mut TextBuilder) {
        if !self.declared {
            self.declared = true;
            self.negotiated.receive_segment_length_max = ours.receive_segment_length_max;
            answer.pair("MaxRecvDataSegmentLength", &ours.receive_segment_length_max.to_string());
        }
    }

    /// What holds now.
    #[must_use]
    pub fn negotiated(&self) -> Negotiated {
        // RFC 7143 section 13.14: FirstBurstLength must not exceed MaxBurstLength, also where its default stands.
        let first_burst_length = self.negotiated.first_burst_length.min(self.negotiated.burst_length_max);
        Negotiated { first_burst_length, ..self.negotiated }
    }

    fn is_irrelevant(&self, row: &KeyRow, text: &[u8], ours: &Preferences) -> bool {
        if self.discovery && row.irrelevant_in_discovery {
            assert!(row.scope == Scope::Session);
            return true;
        }
        // Nothing is unsolicited, so there is no first burst (RFC 7143 section 13.14).
        row.key == Key::FirstBurstLength
            && self.boolean(Key::InitialR2T, self.negotiated.initial_r2t, text, ours)
            && !self.boolean(Key::ImmediateData, self.negotiated.immediate_data, text, ours)
    }

    /// The result for a boolean key, be it answered already or further on in this text.
    fn boolean(&self, key: Key, current: bool, text: &[u8], ours: &Preferences) -> bool {
        let row = &super::keys::KEYS[key as usize];
        value_in(text, row.name).and_then(|value| agreed_boolean(row, value, ours)).unwrap_or(current)
    }

    /// The result for MaxBurstLength, be it answered already or further on in this text.
    fn burst_length_max(&self, text: &[u8], ours: &Preferences) -> u32 {
        let row = &super::keys::KEYS[Key::MaxBurstLength as usize];
        let offered = value_in(text, row.name).and_then(|value| agreed_number(row, value, ours));
        offered.unwrap_or(self.negotiated.burst_length_max)
    }
}

/// The value of a key in a text.
fn value_in<'a>(text: &'a [u8], key: &str) -> Option<&'a str> {
    text::pairs(text).filter_map(Result::ok).find(|pair| pair.key == key).map(|pair| pair.value)
}

/// A number declared by the initiator; `None` when it is malformed or out of its range.
#[must_use]
pub fn declared_number(row: &KeyRow, value: &str) -> Option<u32> {
    let Kind::DeclaredNumber { low, high, .. } = row.kind else { return None };
    let number = u32::try_from(text::parse_number(value)?).ok()?;
    (low..=high).contains(&number).then_some(number)
}

fn agreed_number(row: &KeyRow, value: &str, ours: &Preferences) -> Option<u32> {
    let Kind::Number { function, low, high, ours: preferred, .. } = row.kind else { return None };
    let number = u32::try_from(text::parse_number(value)?).ok()?;
    if !(low..=high).contains(&number) {
        return None;
    }
    Some(match function {
        NumberFunction::Minimum => number.min(preferred(ours)),
        NumberFunction::Maximum => number.max(preferred(ours)),
    })
}

fn agreed_boolean(row: &KeyRow, value: &str, ours: &Preferences) -> Option<bool> {
    let Kind::Boolean { function, ours: preferred, .. } = row.kind else { return None };
    let theirs = text::parse_boolean(value)?;
    Some(match function {
        BooleanFunction::And => theirs && preferred(ours),
        BooleanFunction::Or => theirs || preferred(ours),
    })
}
