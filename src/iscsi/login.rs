//! The login phase of a connection (RFC 7143 section 6.3), sans-IO: Login Requests in, Login Responses out.
//!
//! The order of calls: [`Login::receive`] until it gives [`LoginStep::Establish`]; then, when the registrar of sessions
//! has decided, [`Login::granted`] or [`Login::refused`]. After [`LoginStep::Close`] the connection is closed when the
//! reply has left.

#![forbid(unsafe_code)]

mod admission;
mod security;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use super::access::Caller;
use super::chap::{ALGORITHMS, Algorithm, ChapKeys, Entropy};
use super::directory::{Authentication, Directory, Redirect};
use super::keys::{self, Key, KeyRow, Kind, Usage};
use super::names::IscsiName;
use super::negotiation::{Misuse, Negotiated, Negotiation, Preferences};
use super::pdu::{BHS_LEN, Bhs, LoginRequest, LoginResponse, LoginStage, LoginStatus, Opcode, Sequence, pad_len};
use super::session::{SessionParameters, SessionType};
use super::text::{self, TextBuilder, TextCollector, TextError};
use crate::limits::LOGIN_REQUESTS_MAX;
use crate::units::{PortalId, TargetId};
use core::net::SocketAddr;
use security::{Security, SecurityKeys};

pub use admission::{Admission, LivingSession, admission};

/// What this server asks of every login.
#[derive(Clone, Debug)]
pub struct LoginPolicy {
    /// Operational parameters.
    pub preferences: Preferences,
    /// CHAP algorithms, the most wanted first.
    pub chap_algorithms: Vec<Algorithm>,
    /// Commands that the session may have outstanding; sets MaxCmdSN.
    pub command_window: u32,
}

/// How a connection came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The portal.
    pub portal: PortalId,
    /// The tag of the portal's group.
    pub portal_group_tag: u16,
    /// The address that the initiator reached.
    pub local: SocketAddr,
    /// The initiator's address.
    pub peer: SocketAddr,
}

/// What the login looks at and draws from.
pub struct Environment<'a> {
    /// The targets and who may use them, as of now.
    pub directory: &'a Directory,
    /// The server's rules.
    pub policy: &'a LoginPolicy,
    /// Randomness for challenges.
    pub entropy: &'a mut dyn Entropy,
}

/// A PDU to send: header and data, digests never (RFC 7143 section 6.3: they begin with the full feature phase).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoginReply {
    /// The header.
    pub bhs: Bhs,
    /// The data segment, not padded.
    pub data: Vec<u8>,
}

/// What the head of the stream gave.
#[derive(Clone, Debug)]
pub enum LoginReceive {
    /// Nothing can be done before this many bytes, counted from the head, are there. At most 48 + 1020 + 8192.
    NeedBytes(usize),
    /// A PDU of `len` bytes was handled.
    Pdu {
        /// Bytes to consume.
        len: usize,
        /// What to do.
        step: LoginStep,
    },
}

/// What to do after a Login Request.
#[derive(Clone, Debug)]
pub enum LoginStep {
    /// Send this and go on receiving.
    Reply(LoginReply),
    /// All is negotiated and proven. Ask the registrar; stop receiving until it answers.
    Establish(SessionIdentity),
    /// Send this, if there is anything, and close the connection.
    Close {
        /// The last PDU.
        reply: Option<LoginReply>,
        /// Why, for the operator.
        failure: LoginFailure,
    },
}

/// Who wants which session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionIdentity {
    /// InitiatorName.
    pub initiator_name: IscsiName,
    /// ISID.
    pub isid: [u8; 6],
    /// The target; `None` in a discovery session.
    pub target: Option<(TargetId, IscsiName)>,
    /// The portal group: with the three above, the name of the I_T nexus.
    pub portal_group_tag: u16,
    /// TSIH of the request: zero asks for a new session (and ends an old one of the same I_T nexus).
    pub tsih: u16,
    /// CID.
    pub connection_id: u16,
}

impl SessionIdentity {
    /// Whether this is a discovery session (RFC 7143 section 4.3).
    #[must_use]
    pub fn is_discovery(&self) -> bool {
        self.target.is_none()
    }
}

/// Everything that a connection in full feature phase begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Established {
    /// Who.
    pub identity: SessionIdentity,
    /// The session's handle, chosen by the registrar.
    pub tsih: u16,
    /// The operational parameters.
    pub negotiated: Negotiated,
    /// The first CmdSN to expect.
    pub cmd_sn: u32,
    /// The next StatSN to send.
    pub stat_sn: u32,
    /// How the connection came in.
    pub arrival: Arrival,
}

impl LoginFailure {
    fn who(&self) -> &str {
        self.initiator_name.as_ref().map_or("an unnamed initiator", IscsiName::as_str)
    }
}

impl Established {
    /// What [`super::connection::Connection`] starts from. The times are the server's, in ms: how long to wait before a
    /// ping (0: never) and for its answer.
    #[must_use]
    pub fn session_parameters(&self, ping_interval_ms: u64, ping_timeout_ms: u64) -> SessionParameters {
        let negotiated = &self.negotiated;
        SessionParameters {
            session_type: if self.identity.is_discovery() { SessionType::Discovery } else { SessionType::Normal },
            connection_id: self.identity.connection_id,
            connections_max: negotiated.connections_max,
            header_digest: negotiated.header_digest,
            data_digest: negotiated.data_digest,
            max_recv_data_segment_length: negotiated.receive_segment_length_max,
            initiator_max_recv_data_segment_length: negotiated.transmit_segment_length_max,
            max_burst_length: negotiated.burst_length_max,
            first_burst_length: negotiated.first_burst_length,
            initial_r2t: negotiated.initial_r2t,
            immediate_data: negotiated.immediate_data,
            max_outstanding_r2t: negotiated.outstanding_r2t_max,
            fast_abort: negotiated.fast_abort,
            error_recovery_level: negotiated.error_recovery_level,
            default_time2wait: negotiated.time2wait_s,
            default_time2retain: negotiated.time2retain_s,
            exp_cmd_sn: self.cmd_sn,
            stat_sn: self.stat_sn,
            ping_interval_ms,
            ping_timeout_ms,
        }
    }
}

/// Why a login ended without a session.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("login of {} refused with status {:04x}: {reason}", self.who(), status.0)]
pub struct LoginFailure {
    /// The status that the initiator was told; it is told nothing when the connection did not begin with a Login
    /// Request.
    pub status: LoginStatus,
    /// The rule that was broken.
    pub reason: String,
    /// Who it was, as far as it is known.
    pub initiator_name: Option<IscsiName>,
}

impl Default for LoginPolicy {
    fn default() -> LoginPolicy {
        LoginPolicy {
            preferences: Preferences::default(),
            chap_algorithms: ALGORITHMS.to_vec(),
            command_window: crate::limits::COMMANDS_PER_SESSION_MAX,
        }
    }
}

/// Bytes of a data segment in the login phase: the default of MaxRecvDataSegmentLength holds in both directions.
pub const LOGIN_SEGMENT_BYTES_MAX: usize = 8192;

/// The only version of iSCSI there is.
const VERSION: u8 = 0;

/// The StatSN of the first Login Response; any value will do.
const STAT_SN_FIRST: u32 = 1;

/// The login phase of one connection.
#[derive(Debug)]
pub struct Login {
    arrival: Arrival,
    /// `None` while no Login Request has come.
    begun: Option<Box<Begun>>,
    /// ExpCmdSN and MaxCmdSN of the session that it adds a connection to.
    window: Option<(u32, u32)>,
}

/// What is known since the first Login Request.
#[derive(Debug)]
struct Begun {
    /// The first request: what it says must not change.
    first: LoginRequest,
    stage: LoginStage,
    requests: u32,
    stat_sn: u32,
    /// ExpCmdSN and MaxCmdSN.
    window: (u32, u32),
    incoming: TextCollector,
    outgoing: Outgoing,
    session: Option<Session>,
    security: Security,
    /// ErrorRecoveryLevel that the target allows.
    error_recovery_level: u8,
    /// MaxConnections that it allows.
    connections_max: u16,
    negotiation: Negotiation,
}

/// An answer that may need several responses.
#[derive(Debug, Default)]
struct Outgoing {
    text: Vec<u8>,
    sent: usize,
}

impl Outgoing {
    fn remaining(&self) -> usize {
        self.text.len() - self.sent
    }

    fn next(&mut self, bytes_max: usize) -> Vec<u8> {
        let len = self.remaining().min(bytes_max);
        let piece = self.text[self.sent..self.sent + len].to_vec();
        self.sent += len;
        piece
    }
}

/// Who asks for what, once the first request's text is complete.
#[derive(Debug)]
struct Session {
    initiator_name: IscsiName,
    target: Option<(TargetId, IscsiName)>,
}

/// The end of a login, with its cause.
#[derive(Debug)]
struct Refused {
    status: LoginStatus,
    reason: String,
    /// What the initiator is told besides.
    text: Vec<u8>,
}

impl Refused {
    fn new(status: LoginStatus, reason: impl Into<String>) -> Refused {
        Refused { status, reason: reason.into(), text: Vec::new() }
    }

    /// The target is elsewhere. RFC 7143 section 13.8: without a portal group tag.
    fn moved(redirect: &Redirect) -> Refused {
        let Redirect { address, permanent, .. } = redirect;
        let status = if *permanent { LoginStatus::MOVED_PERMANENTLY } else { LoginStatus::MOVED_TEMPORARILY };
        let text = format!("TargetAddress={address}\0").into_bytes();
        Refused { status, reason: format!("it is sent to {address}"), text }
    }

    fn initiator_error(reason: impl Into<String>) -> Refused {
        Refused::new(LoginStatus::INITIATOR_ERROR, reason)
    }
}

impl From<Misuse> for Refused {
    fn from(misuse: Misuse) -> Refused {
        Refused::initiator_error(misuse.to_string())
    }
}

impl From<TextError> for Refused {
    fn from(error: TextError) -> Refused {
        Refused::initiator_error(error.to_string())
    }
}

impl Login {
    /// A login that has not begun.
    #[must_use]
    pub fn new(arrival: Arrival) -> Login {
        Login { arrival, begun: None, window: None }
    }

    /// How the connection came in.
    #[must_use]
    pub fn arrival(&self) -> Arrival {
        self.arrival
    }

    /// ExpCmdSN and MaxCmdSN of the session that it adds a connection to: what the responses say from here on.
    pub fn set_window(&mut self, window: (u32, u32)) {
        self.window = Some(window);
        if let Some(begun) = &mut self.begun {
            begun.window = window;
        }
    }

    /// MaxConnections, as far as it has been negotiated.
    #[must_use]
    pub fn connections_max(&self) -> u16 {
        self.begun.as_ref().map_or(1, |begun| begun.negotiation.negotiated().connections_max)
    }

    /// Look at the bytes at the head of the stream. What cannot become a legal Login Request is refused without waiting
    /// for the rest of it.
    pub fn receive(&mut self, bytes: &[u8], environment: &mut Environment<'_>) -> LoginReceive {
        let Some(bhs) = Bhs::from_prefix(bytes) else {
            return LoginReceive::NeedBytes(BHS_LEN);
        };
        let data_len = bhs.data_segment_len();
        if bhs.opcode() != Opcode::LOGIN_REQUEST || bhs.ahs_len() != 0 || data_len > LOGIN_SEGMENT_BYTES_MAX {
            return LoginReceive::Pdu { len: BHS_LEN, step: self.handle(bhs, &[], environment) };
        }
        let len = BHS_LEN + data_len + pad_len(data_len);
        match bytes.get(BHS_LEN..BHS_LEN + data_len) {
            Some(data) if bytes.len() >= len => LoginReceive::Pdu { len, step: self.handle(bhs, data, environment) },
            _ => LoginReceive::NeedBytes(len),
        }
    }

    /// Handle one whole PDU: its header and its data segment without padding.
    pub fn handle(&mut self, bhs: &Bhs, data: &[u8], environment: &mut Environment<'_>) -> LoginStep {
        if self.begun.is_none() && bhs.opcode() != Opcode::LOGIN_REQUEST {
            // RFC 7143 section 6.3: before the login phase has begun the connection is ended without a word.
            let reason = "the connection does not begin with a Login Request".into();
            let failure = LoginFailure { status: LoginStatus::INVALID_DURING_LOGIN, reason, initiator_name: None };
            return LoginStep::Close { reply: None, failure };
        }
        let request = LoginRequest::parse(bhs);
        let window = self.window;
        let begun = self.begun.get_or_insert_with(|| Box::new(Begun::new(request, environment.policy, window)));
        match begun.advance(bhs, &request, data, &self.arrival, environment) {
            Ok(step) => step,
            Err(Refused { status, reason, text }) => {
                let initiator_name = begun.session.as_ref().map(|session| session.initiator_name.clone());
                let reply = begun.refusal(status, text);
                LoginStep::Close { reply: Some(reply), failure: LoginFailure { status, reason, initiator_name } }
            }
        }
    }

    /// The registrar has made the session: the last reply of the login, and what the connection begins with.
    ///
    /// # Panics
    /// When the last step was not [`LoginStep::Establish`], or `tsih` is zero.
    #[must_use]
    pub fn granted(self, tsih: u16) -> (LoginReply, Established) {
        assert_ne!(tsih, 0);
        let mut begun = self.begun.expect("granted before a Login Request");
        let identity = begun.identity(&self.arrival).expect("granted before LoginStep::Establish");
        let reply = begun.reply(Some(LoginStage::FULL_FEATURE_PHASE), tsih);
        assert_eq!(begun.outgoing.remaining(), 0);
        let established = Established {
            identity,
            tsih,
            negotiated: begun.negotiation.negotiated(),
            cmd_sn: begun.first.cmd_sn,
            stat_sn: begun.stat_sn,
            arrival: self.arrival,
        };
        (reply, established)
    }

    /// The registrar has refused: the last reply of the login.
    ///
    /// # Panics
    /// When no Login Request has come.
    #[must_use]
    pub fn refused(self, status: LoginStatus) -> LoginReply {
        self.begun.expect("refused before a Login Request").refusal(status, Vec::new())
    }
}

impl Begun {
    fn new(first: LoginRequest, policy: &LoginPolicy, window: Option<(u32, u32)>) -> Begun {
        let leading = (first.cmd_sn, first.cmd_sn.wrapping_add(policy.command_window).wrapping_sub(1));
        let mut negotiation = Negotiation::default();
        if first.tsih != 0 {
            negotiation.set_joining();
        }
        Begun {
            first,
            stage: first.current_stage,
            requests: 0,
            stat_sn: STAT_SN_FIRST,
            window: window.unwrap_or(leading),
            incoming: TextCollector::default(),
            outgoing: Outgoing::default(),
            session: None,
            security: Security::Undecided(Authentication::None),
            error_recovery_level: 0,
            connections_max: 1,
            negotiation,
        }
    }

    fn advance(
        &mut self,
        bhs: &Bhs,
        request: &LoginRequest,
        data: &[u8],
        arrival: &Arrival,
        environment: &mut Environment<'_>,
    ) -> Result<LoginStep, Refused> {
        self.check_header(bhs, request)?;
        if self.outgoing.remaining() > 0 {
            // RFC 7143 section 6.2: a text that goes on is answered with an empty request.
            if !data.is_empty() || request.continues {
                return Err(Refused::initiator_error("text while the target's own text goes on"));
            }
            return Ok(self.respond(request, arrival));
        }
        self.incoming.push(data)?;
        if request.continues {
            self.outgoing = Outgoing::default();
            return Ok(LoginStep::Reply(self.reply(None, self.first.tsih)));
        }
        let text = self.incoming.take();
        let mut answer = TextBuilder::default();
        let is_first = self.session.is_none();
        if is_first {
            self.identify(&text, arrival, environment, &mut answer)?;
        }
        self.answer(&text, is_first, request, environment, &mut answer)?;
        self.outgoing = Outgoing { text: answer.finish()?, sent: 0 };
        Ok(self.respond(request, arrival))
    }

    /// What the header alone must satisfy (RFC 7143 section 11.12).
    fn check_header(&mut self, bhs: &Bhs, request: &LoginRequest) -> Result<(), Refused> {
        if bhs.opcode() != Opcode::LOGIN_REQUEST {
            return Err(Refused::new(LoginStatus::INVALID_DURING_LOGIN, "a PDU that is not a Login Request"));
        }
        if request.version_min > VERSION {
            return Err(Refused::new(LoginStatus::UNSUPPORTED_VERSION, "an unknown version of iSCSI"));
        }
        self.requests += 1;
        if self.requests > LOGIN_REQUESTS_MAX {
            return Err(Refused::initiator_error("too many Login Requests"));
        }
        if bhs.ahs_len() != 0 || bhs.data_segment_len() > LOGIN_SEGMENT_BYTES_MAX {
            return Err(Refused::initiator_error("a Login Request with an AHS or more than 8192 bytes of data"));
        }
        let first = &self.first;
        let same = request.isid == first.isid
            && request.tsih == first.tsih
            && request.connection_id == first.connection_id
            && request.initiator_task_tag == first.initiator_task_tag
            && request.version_max == first.version_max
            && request.version_min == first.version_min;
        if !same {
            return Err(Refused::initiator_error("ISID, TSIH, CID, task tag or version change during the login"));
        }
        if !matches!(request.current_stage, LoginStage::SECURITY_NEGOTIATION | LoginStage::OPERATIONAL_NEGOTIATION) {
            return Err(Refused::initiator_error("an impossible current stage"));
        }
        if request.current_stage != self.stage {
            return Err(Refused::initiator_error("a current stage that was not agreed"));
        }
        if request.transit {
            let next = request.next_stage;
            let known = matches!(next, LoginStage::OPERATIONAL_NEGOTIATION | LoginStage::FULL_FEATURE_PHASE);
            if request.continues || !known || next.0 <= request.current_stage.0 {
                return Err(Refused::initiator_error("an impossible transition"));
            }
        }
        Ok(())
    }

    /// The first complete text says who wants what session.
    fn identify(
        &mut self,
        text: &[u8],
        arrival: &Arrival,
        environment: &Environment<'_>,
        answer: &mut TextBuilder,
    ) -> Result<(), Refused> {
        let asked = Asked::read(text)?;
        let name = asked.initiator_name.ok_or_else(|| missing("InitiatorName"))?;
        let initiator_name = IscsiName::foreign(name).map_err(|error| Refused::initiator_error(error.to_string()))?;
        let discovery = match asked.session_type {
            None | Some("Normal") => false,
            Some("Discovery") => true,
            Some(_) => return Err(Refused::new(LoginStatus::SESSION_TYPE_NOT_SUPPORTED, "an unknown SessionType")),
        };
        // From here on the operator is told who it was.
        self.session = Some(Session { initiator_name: initiator_name.clone(), target: None });
        let authentication = if discovery {
            self.negotiation.set_discovery();
            environment.directory.discovery_authentication()
        } else {
            let name = asked.target_name.ok_or_else(|| missing("TargetName"))?;
            let target = environment.directory.target(name);
            let target = target.filter(|target| target.is_reached_through(arrival.portal_group_tag));
            let target = target.ok_or_else(|| Refused::new(LoginStatus::NOT_FOUND, format!("no target {name:?}")))?;
            let caller = Caller { name: &initiator_name, peer: arrival.peer.ip(), local: arrival.local };
            if !target.allows(&caller) {
                let address = arrival.peer.ip().to_canonical();
                let reason = format!("no access rule of {} allows it from {address}", target.name);
                return Err(Refused::new(LoginStatus::AUTHORIZATION_FAILURE, reason));
            }
            self.error_recovery_level = target.error_recovery_level;
            self.connections_max = target.connections_max;
            if let Some(redirect) = target.redirect(arrival.local) {
                return Err(Refused::moved(redirect));
            }
            self.session = Some(Session { initiator_name, target: Some((target.id, target.name.clone())) });
            if let Some(alias) = &target.alias {
                answer.pair("TargetAlias", alias);
            }
            answer.pair("TargetPortalGroupTag", &arrival.portal_group_tag.to_string());
            &target.authentication
        };
        self.security = Security::Undecided(authentication.clone());
        if self.stage != LoginStage::SECURITY_NEGOTIATION {
            self.security.skip()?;
        }
        Ok(())
    }

    /// Answer the pairs of a complete text.
    fn answer(
        &mut self,
        text: &[u8],
        is_first: bool,
        request: &LoginRequest,
        environment: &mut Environment<'_>,
        answer: &mut TextBuilder,
    ) -> Result<(), Refused> {
        let operational = self.stage == LoginStage::OPERATIONAL_NEGOTIATION;
        let mut security_keys = SecurityKeys::default();
        let error_recovery_level = environment.policy.preferences.error_recovery_level.max(self.error_recovery_level);
        let connections_max = environment.policy.preferences.connections_max.max(self.connections_max);
        let preferences =
            &Preferences { error_recovery_level, connections_max, ..environment.policy.preferences.clone() };
        for pair in text::pairs(text) {
            let pair = pair?;
            let Some(row) = keys::lookup(pair.key) else {
                // An answer to an answer would never end.
                if pair.value != "NotUnderstood" {
                    answer.pair(pair.key, "NotUnderstood");
                }
                continue;
            };
            self.negotiation.note(row)?;
            if !is_usable(row, operational) {
                return Err(Misuse::WrongMoment(row.name).into());
            }
            match row.kind {
                Kind::Authentication => security_keys.set(row.key, pair.value),
                // Only the first text can say it; there it has been read already.
                Kind::Identity if is_first => {}
                Kind::Identity => return Err(Misuse::WrongMoment(row.name).into()),
                _ => self.negotiation.offer(row, pair.value, text, preferences, answer)?,
            }
        }
        if operational {
            self.negotiation.declare(preferences, answer);
        } else {
            self.security.handle(&security_keys, request.transit, environment, answer)?;
        }
        Ok(())
    }

    /// Send the next piece of the answer, and agree to the transition that the initiator wants when nothing is left to
    /// say.
    fn respond(&mut self, request: &LoginRequest, arrival: &Arrival) -> LoginStep {
        let ready = self.stage == LoginStage::OPERATIONAL_NEGOTIATION || self.security.is_passed();
        if self.outgoing.remaining() > self.piece_bytes_max() || !request.transit || !ready {
            return LoginStep::Reply(self.reply(None, self.first.tsih));
        }
        if request.next_stage == LoginStage::FULL_FEATURE_PHASE {
            let identity = self.identity(arrival).expect("the first text was complete");
            return LoginStep::Establish(identity);
        }
        let reply = self.reply(Some(request.next_stage), self.first.tsih);
        self.stage = request.next_stage;
        LoginStep::Reply(reply)
    }

    /// How much text the initiator takes in one response: the default of the login phase, or less if it has declared
    /// less.
    fn piece_bytes_max(&self) -> usize {
        let declared = self.negotiation.negotiated().transmit_segment_length_max;
        usize::try_from(declared).unwrap_or(usize::MAX).min(LOGIN_SEGMENT_BYTES_MAX)
    }

    /// A response of success with the next piece of the answer.
    fn reply(&mut self, transit_to: Option<LoginStage>, tsih: u16) -> LoginReply {
        let data = self.outgoing.next(self.piece_bytes_max());
        let continues = self.outgoing.remaining() > 0;
        assert!(!(continues && transit_to.is_some()));
        let (exp_cmd_sn, max_cmd_sn) = self.window;
        let sequence = Sequence { stat_sn: self.stat_sn, exp_cmd_sn, max_cmd_sn };
        self.stat_sn = self.stat_sn.wrapping_add(1);
        let response = LoginResponse {
            transit: transit_to.is_some(),
            continues,
            next_stage: transit_to.unwrap_or_default(),
            tsih,
            data_segment_len: data.len(),
            ..self.response(LoginStatus::SUCCESS)
        };
        LoginReply { bhs: response.encode(sequence), data }
    }

    /// A response of failure. Its sequence numbers mean nothing (RFC 7143 section 11.13.4).
    fn refusal(&self, status: LoginStatus, data: Vec<u8>) -> LoginReply {
        let response = LoginResponse { data_segment_len: data.len(), ..self.response(status) };
        LoginReply { bhs: response.encode(Sequence::default()), data }
    }

    fn response(&self, status: LoginStatus) -> LoginResponse {
        LoginResponse {
            current_stage: self.stage,
            version_max: VERSION,
            version_active: VERSION,
            isid: self.first.isid,
            tsih: self.first.tsih,
            initiator_task_tag: self.first.initiator_task_tag,
            status,
            ..LoginResponse::default()
        }
    }

    fn identity(&self, arrival: &Arrival) -> Option<SessionIdentity> {
        let session = self.session.as_ref()?;
        Some(SessionIdentity {
            initiator_name: session.initiator_name.clone(),
            isid: self.first.isid,
            target: session.target.clone(),
            portal_group_tag: arrival.portal_group_tag,
            tsih: self.first.tsih,
            connection_id: self.first.connection_id,
        })
    }
}

/// Whether a key may come in this stage of a login (RFC 7143 sections 12 and 13).
fn is_usable(row: &KeyRow, operational: bool) -> bool {
    match row.usage {
        Usage::Security => !operational,
        Usage::InitializeOperational | Usage::LeadingOperational | Usage::AnyOperational => operational,
        Usage::Initialize | Usage::Leading | Usage::Any => true,
        Usage::FullFeaturePhase => false,
    }
}

fn missing(key: &str) -> Refused {
    Refused::new(LoginStatus::MISSING_PARAMETER, format!("the first request has no {key}"))
}

/// The identity keys of a text.
#[derive(Debug, Default)]
struct Asked<'a> {
    initiator_name: Option<&'a str>,
    session_type: Option<&'a str>,
    target_name: Option<&'a str>,
}

impl<'a> Asked<'a> {
    fn read(text: &'a [u8]) -> Result<Asked<'a>, TextError> {
        let mut asked = Asked::default();
        for pair in text::pairs(text) {
            let pair = pair?;
            let place = match keys::lookup(pair.key).map(|row| row.key) {
                Some(Key::InitiatorName) => &mut asked.initiator_name,
                Some(Key::SessionType) => &mut asked.session_type,
                Some(Key::TargetName) => &mut asked.target_name,
                _ => continue,
            };
            *place = Some(pair.value);
        }
        Ok(asked)
    }
}
