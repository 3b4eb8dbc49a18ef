//! Mutated PDUs in every phase, from a seed, while a healthy session does verified I/O beside them.
//!
//! A PDU counts once it was delivered: it was answered, a ping behind it was answered, the target closed the
//! connection, or the target came to the end of the stream. After the storm the server must live, hold no descriptor
//! more than before, and not have grown without bound.

mod mutate;

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::cost::Usage;
use crate::login::{LoginError, Wire, Wishes};
use crate::pdu::{self, FINAL, Header, IMMEDIATE, request, response};
use crate::random::Random;
use crate::verify::{self, Progress, Verifier};

pub use mutate::{AskedFor, Context, Draft, Phase};

/// What to send where.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The server.
    pub portal: SocketAddr,
    /// How the storm logs in where its phase needs that. Its logical units may be written anywhere.
    pub wishes: Wishes,
    /// The logical unit that most commands go to.
    pub lun: u16,
    /// Mutated PDUs to deliver in each phase.
    pub pdus_per_phase: u64,
    /// Seed of everything.
    pub seed: u64,
    /// The healthy session's own work, on another target.
    pub healthy: Option<verify::Plan>,
    /// The server's process, for memory and descriptors.
    pub server_pid: Option<u32>,
}

/// What a storm gave.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// For each phase: its name, PDUs delivered, connections used.
    pub phases: Vec<(String, u64, u64)>,
    /// PDUs to which no answer came in time, and whose connection was then ended.
    pub silences: u64,
    /// What the healthy session saw.
    pub healthy: Option<verify::Summary>,
    /// Resident memory after the first hundredth of the storm and after all of it, in bytes.
    pub resident_bytes: Option<(u64, u64)>,
    /// Descriptors before and after.
    pub descriptors: Option<(usize, usize)>,
    /// What is wrong; empty is good.
    pub complaints: Vec<String>,
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (phase, delivered, connections) in &self.phases {
            writeln!(f, "{phase}: {delivered} mutated PDUs on {connections} connections")?;
        }
        writeln!(f, "{} without an answer", self.silences)?;
        if let Some(healthy) = &self.healthy {
            writeln!(f, "healthy session: {healthy}")?;
        }
        if let (Some((warm, now)), Some((before, after))) = (self.resident_bytes, self.descriptors) {
            writeln!(f, "memory {} → {} MiB, descriptors {before} → {after}", warm >> 20, now >> 20)?;
        }
        write!(f, "{} complaints", self.complaints.len())?;
        for complaint in &self.complaints {
            write!(f, "\n  {complaint}")?;
        }
        Ok(())
    }
}

/// The usual work of the healthy session: small reads and writes in the first 16 MiB of a target's LUN 0.
pub fn healthy_plan(portal: SocketAddr, target: &str) -> verify::Plan {
    let mut wishes = Wishes::to_target(target);
    wishes.initiator_name = "iqn.2026-11.io.lunaring:healthy".to_owned();
    verify::Plan {
        portal,
        wishes,
        lun: 0,
        first_byte: 0,
        len_bytes: 16 << 20,
        unit_bytes: 4096,
        io_units_max: 16,
        depth: 4,
        write_percent: 50,
        flush_one_in: 100,
        writer: 7,
        over_ring: true,
        seed: 11,
    }
}

/// How long the target may take to close a connection whose stream has ended.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an answer is waited for before the stream is ended instead.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(100);
/// Spoilt PDUs on one connection at most.
const PDUS_PER_CONNECTION_MAX: u32 = 64;
/// Memory that the server may gain over the storm: pools that grow to their bound once.
const GROWTH_BYTES_MAX: u64 = 64 << 20;

/// Run a storm.
pub fn run(plan: &Plan) -> Result<Summary, String> {
    let progress = Arc::new(Progress::default());
    let healthy = match &plan.healthy {
        None => None,
        Some(healthy) => {
            let mut verifier = Verifier::open(healthy.clone()).map_err(|e| format!("healthy session: {e}"))?;
            verifier.adopt().map_err(|e| format!("healthy session: {e}"))?;
            let progress = progress.clone();
            Some(std::thread::spawn(move || healthy_session(&mut verifier, &progress)))
        }
    };
    let usage = || plan.server_pid.map(Usage::of).transpose().map_err(|e| format!("the server is gone: {e}"));
    let before = usage()?;
    let mut summary = Summary::default();
    let mut storm =
        Storm { plan, random: Random::new(plan.seed), complaints: vec![], sessions: 0, silences: 0, asked_for: None };
    for phase in Phase::ALL {
        storm.phase(phase, plan.pdus_per_phase / 100)?;
    }
    let warm = usage()?;
    for phase in Phase::ALL {
        let (delivered, connections) = storm.phase(phase, plan.pdus_per_phase)?;
        summary.phases.push((format!("{phase:?}"), delivered, connections));
    }
    summary.complaints = storm.complaints;
    summary.silences = storm.silences;
    progress.stop.store(true, Ordering::Relaxed);
    if let Some(thread) = healthy {
        let seen = thread.join().map_err(|_| "the healthy session's thread panicked".to_owned())??;
        if seen.reconnects > 0 || seen.finding_count > 0 || seen.writes == 0 {
            summary.complaints.push(format!("the healthy session was disturbed: {seen}"));
        }
        summary.healthy = Some(seen);
    }
    judge_resources(plan, &mut summary, before.zip(warm));
    Ok(summary)
}

fn healthy_session(verifier: &mut Verifier, progress: &Progress) -> Result<verify::Summary, String> {
    while !progress.stop.load(Ordering::Relaxed) {
        let moved = verifier.turn(true).map_err(|e| format!("the healthy session broke: {e}"))?;
        verify::pause_unless(moved);
        // Present all the time, but not the load of the machine.
        std::thread::sleep(Duration::from_micros(200));
    }
    verifier.check_all().map_err(|e| format!("the healthy session broke: {e}"))?;
    Ok(verifier.summary().clone())
}

fn judge_resources(plan: &Plan, summary: &mut Summary, earlier: Option<(Usage, Usage)>) {
    let (Some(pid), Some((before, warm))) = (plan.server_pid, earlier) else { return };
    let began = Instant::now();
    loop {
        let Ok(now) = Usage::of(pid) else {
            summary.complaints.push("the server is gone".to_owned());
            return;
        };
        // The healthy session, counted before, has ended.
        let allowed = before.descriptors;
        summary.descriptors = Some((before.descriptors, now.descriptors));
        summary.resident_bytes = Some((warm.resident_bytes, now.resident_bytes));
        if now.descriptors <= allowed || began.elapsed() > Duration::from_secs(20) {
            if now.descriptors > allowed {
                summary.complaints.push(format!("descriptors leaked: {allowed} before, {} after", now.descriptors));
            }
            if now.resident_bytes > warm.resident_bytes + GROWTH_BYTES_MAX {
                let (then, now) = (warm.resident_bytes >> 20, now.resident_bytes >> 20);
                summary.complaints.push(format!("the server grew from {then} MiB to {now} MiB"));
            }
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

struct Storm<'a> {
    plan: &'a Plan,
    random: Random,
    complaints: Vec<String>,
    sessions: u32,
    silences: u64,
    asked_for: Option<AskedFor>,
}

/// What became of a spoilt PDU.
enum Fate {
    /// The connection still works.
    Alive,
    /// The target has ended the connection, or come to its end.
    Ended,
}

impl Storm<'_> {
    /// Deliver so many spoilt PDUs in one phase: (delivered, connections).
    fn phase(&mut self, phase: Phase, count: u64) -> Result<(u64, u64), String> {
        let (mut delivered, mut connections) = (0, 0);
        let mut failures = 0;
        while delivered < count {
            match self.connection(phase) {
                Ok(n) => {
                    delivered += n;
                    connections += 1;
                    failures = 0;
                }
                Err(e) => {
                    failures += 1;
                    if failures > 100 {
                        return Err(format!("{phase:?}: no connection can be made any more: {e}"));
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
        }
        Ok((delivered, connections))
    }

    /// One connection: into the phase by legal steps, then spoilt PDUs for as long as it lives.
    fn connection(&mut self, phase: Phase) -> Result<u64, LoginError> {
        let mut wishes = self.plan.wishes.clone();
        self.sessions = self.sessions.wrapping_add(1);
        // Sometimes the same session again: reinstatement.
        wishes = wishes.session(if self.random.one_in(3) { 1 } else { self.sessions & 0xffff });
        wishes.header_digest = phase == Phase::FullFeature && self.random.one_in(4);
        wishes.data_digest = phase == Phase::FullFeature && self.random.one_in(4);
        wishes.initial_r2t = self.random.one_in(2);
        let mut wire = Wire::connect(self.plan.portal, CLOSE_TIMEOUT)?;
        match phase {
            Phase::LoginSecurity => {}
            Phase::LoginOperational => legal_security(&mut wire, &wishes)?,
            Phase::Discovery => {
                wishes.target_name = None;
                wire.login(&wishes)?;
            }
            Phase::FullFeature => {
                wire.login(&wishes)?;
            }
        }
        self.asked_for = None;
        let mut delivered = 0;
        for _ in 0..PDUS_PER_CONNECTION_MAX {
            let context = Context {
                cmd_sn: wire.cmd_sn,
                exp_stat_sn: wire.exp_stat_sn,
                lun: self.plan.lun,
                asked_for: self.asked_for,
            };
            let mut draft = mutate::legal(phase, &wishes, context, &mut self.random);
            let spoilt = mutate::spoil(&mut draft, &mut self.random);
            let fate = self.deliver(&mut wire, &draft, phase);
            delivered += u64::from(spoilt);
            if matches!(fate, Fate::Ended) {
                return Ok(delivered);
            }
        }
        self.end(&mut wire);
        Ok(delivered)
    }

    /// Send one spoilt PDU and see it delivered.
    fn deliver(&mut self, wire: &mut Wire, draft: &Draft, phase: Phase) -> Fate {
        let mut bytes = draft.bytes(wire.header_digest, wire.data_digest);
        let full_feature = matches!(phase, Phase::FullFeature | Phase::Discovery);
        if full_feature && !draft.is_out_of_step() {
            let ping = Header::new(request::NOP_OUT | IMMEDIATE, FINAL)
                .with_word(16, PING_TAG)
                .with_word(20, pdu::TAG_NONE)
                .with_word(24, wire.cmd_sn)
                .with_word(28, wire.exp_stat_sn);
            pdu::append(&mut bytes, ping, &[], wire.header_digest, false);
        }
        if wire.socket.write_all(&bytes).is_err() {
            return Fate::Ended;
        }
        if !draft.is_out_of_step() {
            match await_answer(wire, full_feature, &mut self.asked_for) {
                Answer::Alive => return Fate::Alive,
                Answer::Over => {}
                Answer::Silence => self.silences += 1,
            }
        }
        self.end(wire);
        Fate::Ended
    }

    /// End the stream; the target must come to its end and close.
    fn end(&mut self, wire: &mut Wire) {
        if wire.socket.shutdown(Shutdown::Write).is_err() {
            return;
        }
        let mut sink = [0; 65536];
        let began = Instant::now();
        let _ = wire.socket.set_read_timeout(Some(CLOSE_TIMEOUT));
        loop {
            match wire.socket.read(&mut sink) {
                Ok(0) => return,
                Ok(_) if began.elapsed() < CLOSE_TIMEOUT => {}
                Ok(_) => break,
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => break,
                Err(_) => return,
            }
        }
        if self.complaints.len() < 20 {
            self.complaints.push(format!("a connection whose stream ended was not closed within {CLOSE_TIMEOUT:?}"));
        }
    }
}

const PING_TAG: u32 = 0x5049_4e47;

fn legal_security(wire: &mut Wire, wishes: &Wishes) -> Result<(), LoginError> {
    let Some(target) = &wishes.target_name else { return Ok(()) };
    let text =
        format!("InitiatorName={}\0SessionType=Normal\0AuthMethod=None\0TargetName={target}\0", wishes.initiator_name);
    let mut header = Header::new(request::LOGIN | IMMEDIATE, FINAL | 0x01).with_word(16, 1).with_word(24, wire.cmd_sn);
    header.0[8..14].copy_from_slice(&wishes.isid);
    wire.send(header, text.as_bytes())?;
    let answer = wire.receive()?;
    match (answer.header.0[36], answer.header.0[37]) {
        (0, _) => Ok(()),
        (class, detail) => Err(LoginError::Refused { class, detail }),
    }
}

/// What came after a spoilt PDU.
enum Answer {
    /// A login response, or the ping.
    Alive,
    /// The end of the connection, or something after which it ends.
    Over,
    /// Nothing in time.
    Silence,
}

/// Read until the ping comes back (full feature phase) or until one login response came.
fn await_answer(wire: &mut Wire, ping: bool, asked_for: &mut Option<AskedFor>) -> Answer {
    if wire.socket.set_read_timeout(Some(ANSWER_TIMEOUT)).is_err() {
        return Answer::Over;
    }
    // More answers than this to one PDU and a ping would be a flood.
    for _ in 0..1000 {
        let answer = match wire.receive() {
            Ok(answer) => answer,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return Answer::Silence;
            }
            Err(_) => return Answer::Over,
        };
        let header = answer.header;
        match header.opcode() {
            response::LOGIN if !ping => {
                let goes_on = header.0[36] == 0 && header.flags() & 0x83 != 0x83;
                return if goes_on { Answer::Alive } else { Answer::Over };
            }
            response::NOP_IN if ping && header.task_tag() == PING_TAG => {
                wire.cmd_sn = header.exp_cmd_sn();
                return Answer::Alive;
            }
            response::R2T => {
                *asked_for = Some(AskedFor {
                    task_tag: header.task_tag(),
                    transfer_tag: header.word(20),
                    offset: header.word(40),
                    len: header.word(44),
                });
            }
            response::LOGOUT => return Answer::Over,
            _ => {}
        }
    }
    Answer::Over
}
