//! The connection before full feature phase: login requests in, responses out, and the registrar in between.

use std::sync::Arc;

use super::copy::{Copies, CopyLedger, SESSION_TASKS};
use super::core::Core;
use super::fence::FENCES_MAX;
use super::link::{Link, LinkState, Phase};
use super::order::DORMANT_MAX;
use super::peer::PeerMessage;
use super::registrar::Applicant;
use super::session::{Session, Task};
use crate::bounded::Queue;
use crate::iscsi::chap::{Entropy, EntropyFailed};
use crate::iscsi::connection::{Connection, Counters};
use crate::iscsi::discovery::TextExchange;
use crate::iscsi::login::{
    Arrival, Environment, Established, LOGIN_SEGMENT_BYTES_MAX, Login, LoginPolicy, LoginReceive,
};
use crate::iscsi::login::{LoginReply, LoginStep};
use crate::iscsi::pdu::{Bhs, LoginRequest, LoginStatus, Opcode, pad_len};
use crate::iscsi::session::SessionParameters;
use crate::iscsi::transfer::TASKS_MAX;
use crate::limits::{PING_INTERVAL_MS, PING_TIMEOUT_MS, SESSIONS_PER_SHARD_MAX};
use crate::observe::SessionStats;
use crate::ring::Ring;
use crate::scsi::reservations::{InitiatorPort, Nexus};
use crate::units::ShardId;

/// Where a login stands.
pub(crate) struct LoginPhase {
    /// `None` once it has been granted or refused.
    login: Option<Login>,
    /// The registrar has been asked.
    registering: bool,
    /// Where the session is that the login names.
    whereabouts: Whereabouts,
}

/// Whether a login is on the right shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whereabouts {
    /// Nothing has been looked at.
    Unknown,
    /// The registrar has been asked.
    Asked,
    /// It stays here.
    Here,
}

impl LoginPhase {
    pub(crate) fn new(arrival: Arrival) -> Self {
        Self { login: Some(Login::new(arrival)), registering: false, whereabouts: Whereabouts::Unknown }
    }

    /// The login stays here. `window`: ExpCmdSN and MaxCmdSN of the session that it names.
    pub(crate) fn stay(&mut self, window: Option<(u32, u32)>) {
        self.whereabouts = Whereabouts::Here;
        if let (Some(login), Some(window)) = (&mut self.login, window) {
            login.set_window(window);
        }
    }

    /// How the connection came in; `None` once the login has ended.
    pub(crate) fn arrival(&self) -> Option<Arrival> {
        self.login.as_ref().map(Login::arrival)
    }
}

/// The session that a first Login Request names: the whole header has come.
pub(crate) fn named_session(bytes: &[u8]) -> Option<u16> {
    let bhs = Bhs::from_prefix(bytes).filter(|bhs| bhs.opcode() == Opcode::LOGIN_REQUEST)?;
    Some(LoginRequest::parse(bhs).tsih).filter(|tsih| *tsih != 0)
}

/// Random bytes from the system.
pub(crate) struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), EntropyFailed> {
        getrandom::fill(bytes).map_err(|_| EntropyFailed)
    }
}

/// Handle what a connection in the login phase has received.
pub(crate) fn run_login<R: Ring>(link: &mut Link, core: &mut Core<R>, policy: &LoginPolicy, entropy: &mut dyn Entropy) {
    loop {
        let Phase::Login(phase) = &mut link.phase else { return };
        let Some(login) = phase.login.as_mut().filter(|_| !phase.registering) else { return };
        let answer_bytes_max = 48 + LOGIN_SEGMENT_BYTES_MAX + 4;
        if link.state != LinkState::Open || link.tx.building.bytes_free() < answer_bytes_max {
            return;
        }
        let bytes = link.stream.bytes();
        if bytes.len() < link.stream.needed {
            return;
        }
        match phase.whereabouts {
            Whereabouts::Asked => return,
            Whereabouts::Here => {}
            Whereabouts::Unknown => {
                phase.whereabouts = Whereabouts::Here;
                let message = named_session(bytes).map(|tsih| {
                    let (shard, link) = (core.id, link.key);
                    PeerMessage::Locate { tsih, shard, link }
                });
                if message.is_some_and(|message| core.mail.post(ShardId(0), message).is_ok()) {
                    phase.whereabouts = Whereabouts::Asked;
                    link.operations += 1;
                    return;
                }
            }
        }
        let configuration = Arc::clone(&core.configuration);
        let mut environment = Environment { directory: &configuration.directory, policy, entropy };
        match login.receive(bytes, &mut environment) {
            LoginReceive::NeedBytes(needed) => {
                link.stream.needed = needed;
                return;
            }
            LoginReceive::Pdu { len, step } => {
                link.stream.consume(len);
                link.stream.needed = 48;
                core.stats.pdus_in.increment();
                take_step(link, core, step);
            }
        }
    }
}

fn take_step<R: Ring>(link: &mut Link, core: &mut Core<R>, step: LoginStep) {
    match step {
        LoginStep::Reply(reply) => push(link, &reply),
        LoginStep::Establish(identity) => {
            if core.full_feature >= SESSIONS_PER_SHARD_MAX {
                return refuse(link, core, LoginStatus::OUT_OF_RESOURCES);
            }
            let Phase::Login(phase) = &mut link.phase else { return };
            phase.registering = true;
            let connections_max = phase.login.as_ref().map_or(1, Login::connections_max);
            let applicant = Box::new(Applicant { identity, connections_max, place: (core.id, link.key) });
            let message = PeerMessage::Register { applicant };
            if core.mail.post(ShardId(0), message).is_ok() {
                link.operations += 1;
            } else {
                refuse(link, core, LoginStatus::OUT_OF_RESOURCES);
            }
        }
        LoginStep::Close { reply, failure } => {
            // Sent elsewhere is not refused.
            if failure.status.class() != LoginStatus::MOVED_TEMPORARILY.class() {
                core.stats.login_failures.increment();
            }
            if let Some(suppressed) = core.notices.allow(core.now_ms()) {
                tracing::info!(peer = %link.peer, suppressed, "{failure}");
            }
            if let Some(reply) = reply {
                push(link, &reply);
            }
            link.state = LinkState::Finishing;
        }
    }
}

/// What a connection takes over from the session that it joins.
pub(crate) struct Joined {
    /// What was negotiated when it began.
    pub(crate) parameters: SessionParameters,
    /// ExpCmdSN and MaxCmdSN.
    pub(crate) window: (u32, u32),
    /// What is counted of it.
    pub(crate) stats: Arc<SessionStats>,
    /// When it began.
    pub(crate) since_ms: u64,
}

/// The registrar has made a session for the login.
pub(crate) fn granted<R: Ring>(link: &mut Link, core: &mut Core<R>, tsih: u16, id: u64) {
    if let Some(reply) = begin_session(link, core, tsih, id, None) {
        push(link, &reply);
        core.stats.sessions.add(1);
        if let Phase::Session(session) = &mut link.phase {
            session.map_luns(&core.configuration, &core.disks, core.id);
            session.learn(&core.disks);
        }
    }
}

/// Enter full feature phase: a session's first connection, or one that joins it. The last Login Response, which the
/// caller has to send.
pub(crate) fn begin_session<R: Ring>(
    link: &mut Link,
    core: &mut Core<R>,
    tsih: u16,
    id: u64,
    joined: Option<Joined>,
) -> Option<LoginReply> {
    let Phase::Login(phase) = &mut link.phase else { return None };
    let mut login = phase.login.take()?;
    if let Some(joined) = &joined {
        login.set_window(joined.window);
    }
    let (reply, established) = login.granted(tsih);
    core.stats.logins.increment();
    core.full_feature += 1;
    link.phase = Phase::Session(Box::new(session(link, core, established, id, joined)));
    core.wake_by_ms(core.now_ms() + PING_INTERVAL_MS);
    Some(reply)
}

fn session<R: Ring>(link: &Link, core: &Core<R>, established: Established, id: u64, joined: Option<Joined>) -> Session {
    let own = established.session_parameters(PING_INTERVAL_MS, PING_TIMEOUT_MS);
    let parameters = joined.as_ref().map_or(own, |joined| own.of_session(&joined.parameters));
    let stats = joined.as_ref().map_or_else(|| Arc::new(SessionStats::new()), |joined| Arc::clone(&joined.stats));
    let since_ms = joined.map_or(core.now_ms(), |joined| joined.since_ms);
    let identity = &established.identity;
    let portal_group_tag = identity.portal_group_tag;
    let port = |(target, _): &(_, _)| core.configuration.port_number(*target, portal_group_tag);
    let target_port = identity.target.as_ref().map_or(0, port);
    let initiator = InitiatorPort::new(identity.initiator_name.as_str().as_bytes(), identity.isid);
    let nexus = initiator.filter(|_| identity.target.is_some()).map(|initiator| Nexus { initiator, target_port });
    let addresses = (link.local, link.peer);
    Session {
        connection: Connection::new(parameters, core.now_ms()),
        tasks: (0..SESSION_TASKS).map(|_| Task::idle()).collect(),
        luns: Vec::new(),
        lun_numbers: Vec::new(),
        target: established.identity.target,
        initiator: established.identity.initiator_name,
        id,
        tsih: established.tsih,
        portal_group_tag,
        target_port,
        nexus,
        addresses,
        seen_from: addresses,
        group: None,
        roused: 0,
        text: TextExchange::default(),
        ready: Queue::new(TASKS_MAX),
        stalled: None,
        dormant: Queue::new(DORMANT_MAX),
        dormancies: 0,
        rouse: false,
        fences: Vec::with_capacity(FENCES_MAX),
        patience_ends_ms: None,
        starved: 0,
        held: 0,
        at_work: 0,
        lingering: 0,
        solicited_bytes: 0,
        scratch: None,
        stats,
        copies: Copies::default(),
        ledger: CopyLedger::default(),
        echo: None,
        counted: Counters::default(),
        since_ms,
    }
}

/// Answer a login that gets no session.
pub(crate) fn refuse<R: Ring>(link: &mut Link, core: &Core<R>, status: LoginStatus) {
    core.stats.login_failures.increment();
    if let Phase::Login(phase) = &mut link.phase
        && let Some(login) = phase.login.take()
    {
        let reply = login.refused(status);
        push(link, &reply);
    }
    link.state = LinkState::Finishing;
}

/// Put a login PDU into the batch; the caller has seen to room for one.
pub(crate) fn push(link: &mut Link, reply: &LoginReply) {
    let batch = &mut link.tx.building;
    let pad = [0u8; 3];
    let pushed = batch
        .push_bytes(&reply.bhs.0)
        .and_then(|()| batch.push_bytes(&reply.data))
        .and_then(|()| batch.push_bytes(&pad[..pad_len(reply.data.len())]));
    assert!(pushed.is_ok(), "there was room for a login response");
    link.tx.pdus += 1;
}
