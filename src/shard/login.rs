//! The connection before full feature phase: login requests in, responses out, and the registrar in between.

use std::sync::Arc;

use super::copy::{Copies, SESSION_TASKS};
use super::core::Core;
use super::fence::FENCES_MAX;
use super::link::{Link, LinkState, Phase};
use super::peer::PeerMessage;
use super::session::{Session, Task};
use crate::bounded::Queue;
use crate::iscsi::chap::{Entropy, EntropyFailed};
use crate::iscsi::connection::{Connection, Counters};
use crate::iscsi::discovery::TextExchange;
use crate::iscsi::login::{
    Arrival, Environment, Established, LOGIN_SEGMENT_BYTES_MAX, Login, LoginPolicy, LoginReceive,
};
use crate::iscsi::login::{LoginReply, LoginStep};
use crate::iscsi::pdu::{LoginStatus, pad_len};
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
}

impl LoginPhase {
    pub(crate) fn new(arrival: Arrival) -> Self {
        Self { login: Some(Login::new(arrival)), registering: false }
    }
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
            if core.stats.sessions.value() >= u64::from(SESSIONS_PER_SHARD_MAX) {
                return refuse(link, core, LoginStatus::OUT_OF_RESOURCES);
            }
            let Phase::Login(phase) = &mut link.phase else { return };
            phase.registering = true;
            let message = PeerMessage::Register { identity, shard: core.id, link: link.key };
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

/// The registrar has decided.
pub(crate) fn registered<R: Ring>(link: &mut Link, core: &mut Core<R>, decision: Result<u16, LoginStatus>, id: u64) {
    link.operations -= 1;
    // From here on the registrar is told when the connection ends.
    link.tsih = decision.ok();
    if link.state != LinkState::Open {
        return;
    }
    let tsih = match decision {
        Ok(tsih) => tsih,
        Err(status) => return refuse(link, core, status),
    };
    let Phase::Login(phase) = &mut link.phase else { return };
    let Some(login) = phase.login.take() else { return };
    let (reply, established) = login.granted(tsih);
    push(link, &reply);
    core.stats.logins.increment();
    core.stats.sessions.add(1);
    link.phase = Phase::Session(Box::new(session(link, core, established, id)));
    core.wake_by_ms(core.now_ms() + PING_INTERVAL_MS);
}

fn session<R: Ring>(link: &Link, core: &Core<R>, established: Established, id: u64) -> Session {
    let parameters = established.session_parameters(PING_INTERVAL_MS, PING_TIMEOUT_MS);
    let identity = &established.identity;
    let portal_group_tag = identity.portal_group_tag;
    let port = |(target, _): &(_, _)| core.configuration.port_number(*target, portal_group_tag);
    let target_port = identity.target.as_ref().map_or(0, port);
    let initiator = InitiatorPort::new(identity.initiator_name.as_str().as_bytes(), identity.isid);
    let nexus = initiator.filter(|_| identity.target.is_some()).map(|initiator| Nexus { initiator, target_port });
    let mut session = Session {
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
        addresses: (link.local, link.peer),
        text: TextExchange::default(),
        ready: Queue::new(TASKS_MAX),
        stalled: None,
        dormant: Queue::new(TASKS_MAX),
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
        stats: Arc::new(SessionStats::new()),
        copies: Copies::default(),
        echo: None,
        counted: Counters::default(),
        since_ms: core.now_ms(),
    };
    session.map_luns(&core.configuration, &core.disks, core.id);
    session.learn(&core.disks);
    session
}

fn refuse<R: Ring>(link: &mut Link, core: &Core<R>, status: LoginStatus) {
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
fn push(link: &mut Link, reply: &LoginReply) {
    let batch = &mut link.tx.building;
    let pad = [0u8; 3];
    let pushed = batch
        .push_bytes(&reply.bhs.0)
        .and_then(|()| batch.push_bytes(&reply.data))
        .and_then(|()| batch.push_bytes(&pad[..pad_len(reply.data.len())]));
    assert!(pushed.is_ok(), "there was room for a login response");
    link.tx.pdus += 1;
}
