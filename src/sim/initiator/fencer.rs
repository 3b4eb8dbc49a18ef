//! An initiator that registers, reserves and preempts, and writes all the while: one command at a time, each answer
//! held against the model that all fencers of a world share.
//!
//! **May know:** the sibling modules.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;

use super::InitiatorReport;
use super::arbiter::{Answered, KINDS, Mark, Model, Operation};
use super::command::{sense_key, status};
use super::login::{Login, Names, Offer, Progress};
use super::pdu::{Digests, FINAL, NO_TAG, Pdu, request, response};
use crate::ring::{Nanos, Wait};
use crate::sim::stream::Stream;
use crate::sim::{Random, Runnable, StreamError, World, hash_bytes};

/// Between a loss and the next try.
const RETRY_AFTER: Nanos = Nanos(3_000_000);

/// A command that is not answered for this long was aborted by another's PREEMPT AND ABORT.
const ANSWER_WITHIN: Nanos = Nanos(1_000_000_000);

/// The model that the fencers of a world share.
#[derive(Clone, Debug, Default)]
pub struct Arbiter(Rc<RefCell<Model>>);

impl Arbiter {
    /// The server has ended and will come back.
    pub fn server_ended(&self) -> Result<(), String> {
        self.0.borrow_mut().crashed()
    }

    /// How many answers were held against the model.
    pub fn checked(&self) -> u64 {
        self.0.borrow().checked
    }
}

/// What a fencer does.
#[derive(Clone, Debug)]
pub struct FencerConfig {
    /// Where the target listens.
    pub portal: SocketAddr,
    /// The target's iSCSI name.
    pub target_name: String,
    /// Which node of the cluster it is.
    pub node: usize,
    /// How many nodes there are.
    pub nodes: usize,
    /// The logical unit that all fight for.
    pub lun: u8,
    /// Commands to send.
    pub commands: u32,
}

#[derive(Clone, Copy, Debug)]
enum Sent {
    Change(u64),
    Write(Mark),
    Keys(Mark),
    Reservation(Mark),
    /// A block of a node whose commands were aborted.
    Read,
}

/// What a node wrote whose commands a PREEMPT AND ABORT has ended: nothing comes after that.
#[derive(Debug)]
struct Watch {
    victim: usize,
    since: Mark,
    block: Option<Vec<u8>>,
    reads_left: u32,
}

#[derive(Debug)]
enum Phase {
    Away(Nanos),
    LoggingIn(Box<Login>),
    Working,
    Done,
    Failed(String),
}

/// One node.
#[derive(Debug)]
pub struct Fencer {
    world: World,
    arbiter: Arbiter,
    config: FencerConfig,
    random: Random,
    stream: Option<Stream>,
    phase: Phase,
    rx: Vec<u8>,
    tx: Vec<u8>,
    cmd_sn: u32,
    exp_stat_sn: u32,
    tag: u32,
    sent: Option<(Sent, Nanos)>,
    data: Vec<u8>,
    /// A change of a session that was lost: decided when the next one begins.
    undecided: Option<u64>,
    /// The victim of the PREEMPT AND ABORT that was sent last.
    victim: Option<usize>,
    watch: Option<Watch>,
    writes: u8,
    commands_left: u32,
    report: InitiatorReport,
}

impl Fencer {
    /// A node that has not connected yet.
    pub fn new(world: &World, arbiter: &Arbiter, config: FencerConfig) -> Fencer {
        Fencer {
            world: world.clone(),
            arbiter: arbiter.clone(),
            random: world.random(),
            stream: None,
            phase: Phase::Away(Nanos(0)),
            rx: Vec::new(),
            tx: Vec::new(),
            cmd_sn: 1,
            exp_stat_sn: 0,
            tag: 0,
            sent: None,
            data: Vec::new(),
            undecided: None,
            victim: None,
            watch: None,
            writes: 0,
            commands_left: config.commands,
            config,
            report: InitiatorReport::default(),
        }
    }

    /// What it met so far; an error is an answer that reservations do not allow.
    pub fn result(&self) -> Result<InitiatorReport, String> {
        match &self.phase {
            Phase::Failed(why) => Err(format!("node {}: {why}", self.config.node)),
            _ => Ok(self.report),
        }
    }

    /// The server has ended and will come back.
    pub fn server_ended(&mut self) {
        if matches!(self.phase, Phase::Done | Phase::Failed(_)) {
            return;
        }
        self.lose();
        self.undecided = None;
    }

    fn lose(&mut self) {
        self.stream = None;
        self.watch = None;
        self.report.lost += 1;
        if let Some((Sent::Change(change), _)) = self.sent.take() {
            self.undecided = Some(change);
        }
        self.world.alarm(RETRY_AFTER);
        self.phase = Phase::Away(Nanos(self.world.now().0 + RETRY_AFTER.0));
    }

    fn connect(&mut self) {
        let Ok(stream) = self.world.connect(self.config.portal) else { return self.lose() };
        self.stream = Some(stream);
        (self.rx, self.tx) = (Vec::new(), Vec::new());
        let node = self.config.node as u8;
        let names = Names {
            initiator: format!("iqn.2026-11.io.lunaring.test:node{node}"),
            target: self.config.target_name.clone(),
            isid: [0x80, 0, 0, 0, 1, node],
        };
        let offer = Offer {
            starts_with_security: false,
            header_digest: false,
            data_digest: false,
            initial_r2t: true,
            immediate_data: true,
            max_recv_data_segment_length: 8192,
            first_burst_length: 65_536,
            max_burst_length: 65_536,
            max_outstanding_r2t: 1,
        };
        self.cmd_sn = self.random.word() as u32;
        let mut login = Login::new(names, offer, 7, self.cmd_sn);
        login.request().encode(Digests::default(), &mut self.tx);
        self.phase = Phase::LoggingIn(Box::new(login));
    }

    fn step(&mut self) -> Result<(), String> {
        let now = self.world.now();
        match self.phase {
            Phase::Away(at) if now >= at => self.connect(),
            Phase::Working => match self.sent {
                None if self.commands_left == 0 => {
                    self.stream = None;
                    self.phase = Phase::Done;
                }
                None => self.send(),
                Some((_, since)) if now.0 >= since.0 + ANSWER_WITHIN.0 => {
                    self.report.aborted += 1;
                    self.lose();
                }
                Some(_) => {}
            },
            _ => {}
        }
        let is_over = self.receive()?;
        let Some(stream) = &mut self.stream else { return Ok(()) };
        while !self.tx.is_empty() {
            match stream.write(&self.tx) {
                Ok(count) => drop(self.tx.drain(..count)),
                Err(StreamError::WouldBlock) => break,
                Err(_) => {
                    self.lose();
                    return Ok(());
                }
            }
        }
        if is_over && !matches!(self.phase, Phase::Done) {
            self.lose();
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<bool, String> {
        let mut is_over = false;
        let mut into = [0; 4096];
        while let Some(stream) = &mut self.stream {
            match stream.read(&mut into) {
                Ok(0) => is_over = true,
                Ok(count) => {
                    self.rx.extend_from_slice(&into[..count]);
                    continue;
                }
                Err(StreamError::WouldBlock) => {}
                Err(_) => is_over = true,
            }
            break;
        }
        while let Some((pdu, len)) = Pdu::decode(&self.rx, Digests::default())? {
            self.rx.drain(..len);
            self.report.received_hash ^= hash_bytes(&pdu.bhs).rotate_left(self.report.good % 64);
            self.handle(&pdu)?;
        }
        Ok(is_over)
    }

    fn handle(&mut self, pdu: &Pdu) -> Result<(), String> {
        if let Phase::LoggingIn(login) = &mut self.phase {
            match login.on_response(pdu)? {
                Progress::Send(next) => next.encode(Digests::default(), &mut self.tx),
                Progress::Refused(3, _) => self.lose(),
                Progress::Refused(class, detail) => return Err(format!("login refused: {class:#x} {detail:#x}")),
                Progress::Done { exp_stat_sn, .. } => {
                    self.exp_stat_sn = exp_stat_sn;
                    self.report.logins += 1;
                    self.phase = Phase::Working;
                    // The session before is gone, and with it every command of it has been decided.
                    if let Some(change) = self.undecided.take() {
                        self.arbiter.0.borrow_mut().ended(change, Answered::Lost)?;
                    }
                    self.send();
                }
            }
            return Ok(());
        }
        match pdu.opcode() {
            response::NOP_IN if pdu.target_transfer_tag() != NO_TAG => {
                let pong = Pdu::new(request::NOP_OUT | request::IMMEDIATE, FINAL)
                    .set_word(16, NO_TAG)
                    .set_word(20, pdu.target_transfer_tag())
                    .set_word(24, self.cmd_sn);
                self.put(pong);
            }
            response::DATA_IN => {
                self.data.extend_from_slice(&pdu.data);
                if pdu.flag(0x01) {
                    self.exp_stat_sn = pdu.stat_sn().wrapping_add(1);
                    return self.ended(pdu.bhs[3], None);
                }
            }
            response::SCSI_RESPONSE => {
                self.exp_stat_sn = pdu.stat_sn().wrapping_add(1);
                return self.ended(pdu.bhs[3], pdu.data.get(4).map(|byte| byte & 0xf));
            }
            response::ASYNC_MESSAGE => self.exp_stat_sn = pdu.stat_sn().wrapping_add(1),
            _ => {}
        }
        Ok(())
    }

    /// A command was answered.
    fn ended(&mut self, code: u8, key: Option<u8>) -> Result<(), String> {
        const RESERVATION_CONFLICT: u8 = 0x18;
        const ABORTED_COMMAND: u8 = 0x0b;
        const TASK_ABORTED: u8 = 0x40;
        let Some((sent, _)) = self.sent.take() else { return Err("an answer to nothing".to_owned()) };
        let data = std::mem::take(&mut self.data);
        let answered = match (code, key) {
            (status::GOOD, _) => Answered::Good,
            (RESERVATION_CONFLICT, _) => Answered::Conflict,
            (status::BUSY, _) | (status::CHECK_CONDITION, Some(sense_key::UNIT_ATTENTION | ABORTED_COMMAND)) => {
                Answered::NotDone
            }
            (status::CHECK_CONDITION, _) => Answered::Wrong,
            (TASK_ABORTED, _) => Answered::Lost,
            (code, _) => return Err(format!("status {code:#04x}")),
        };
        match answered {
            Answered::Good => self.report.good += 1,
            Answered::NotDone => self.report.retried += 1,
            Answered::Lost => self.report.aborted += 1,
            _ => self.report.failed += 1,
        }
        let mut model = self.arbiter.0.borrow_mut();
        let node = |key: &[u8]| usize::from(key[7]).wrapping_sub(1);
        match (sent, answered) {
            (Sent::Change(change), answered) => {
                model.ended(change, answered)?;
                let since = model.mark();
                let victim = self.victim.take().filter(|_| answered == Answered::Good);
                self.watch = victim.map(|victim| Watch { victim, since, block: None, reads_left: 12 });
            }
            (Sent::Read, Answered::Good) => {
                if let Some(watch) = &mut self.watch {
                    let is_out = model.is_kept_out(watch.since, watch.victim);
                    match &watch.block {
                        Some(before) if is_out && *before != data => {
                            return Err(format!("a write of node {} came after it was fenced", watch.victim));
                        }
                        _ => watch.block = Some(data),
                    }
                    watch.reads_left -= 1;
                    if watch.reads_left == 0 || !is_out {
                        self.watch = None;
                    }
                }
            }
            (Sent::Read, Answered::Conflict) => self.watch = None,
            (_, Answered::NotDone | Answered::Lost) => {}
            (Sent::Write(mark), Answered::Good | Answered::Conflict) => {
                model.written(mark, self.config.node, answered == Answered::Good)?;
            }
            (Sent::Keys(mark), Answered::Good) => {
                model.seen(mark, data[8..].chunks(8).map(node).collect(), None)?;
            }
            (Sent::Reservation(mark), Answered::Good) => {
                let held = (data.len() > 8).then(|| (node(&data[8..16]), data[21] & 0xf));
                model.seen(mark, Vec::new(), Some(held))?;
            }
            (sent, answered) => return Err(format!("{sent:?}: {answered:?}")),
        }
        drop(model);
        self.commands_left = self.commands_left.saturating_sub(1);
        Ok(())
    }

    /// Send the next command.
    fn send(&mut self) {
        let change = if self.watch.is_none() && self.random.below(4) == 0 { self.change() } else { None };
        let mark = self.arbiter.0.borrow().mark();
        let (sent, cdb, list, read_len) = match change {
            Some((change, cdb, list)) => (Sent::Change(change), cdb, list, 0),
            None if self.watch.is_some() => {
                let victim = self.watch.as_ref().map_or(0, |watch| watch.victim as u8);
                (Sent::Read, vec![0x28, 0, 0, 0, 0, victim, 0, 0, 1, 0], Vec::new(), 4096)
            }
            None => match self.random.below(8) {
                0 => (Sent::Keys(mark), vec![0x5e, 0, 0, 0, 0, 0, 0, 1, 0, 0], Vec::new(), 256),
                1 => (Sent::Reservation(mark), vec![0x5e, 1, 0, 0, 0, 0, 0, 1, 0, 0], Vec::new(), 256),
                _ => {
                    self.writes = self.writes.wrapping_add(1);
                    let cdb = vec![0x2a, 0, 0, 0, 0, self.config.node as u8, 0, 0, 1, 0];
                    (Sent::Write(mark), cdb, vec![self.writes; 512], 0)
                }
            },
        };
        self.tag += 1;
        let flags = FINAL | 1 | if read_len > 0 { 0x40 } else { 0x20 };
        let expected = if read_len > 0 { read_len } else { list.len() as u32 };
        let pdu = Pdu::new(request::SCSI_COMMAND, flags)
            .set_bytes(8, &[0, self.config.lun])
            .set_word(16, self.tag)
            .set_word(20, expected)
            .set_word(24, self.cmd_sn)
            .set_bytes(32, &cdb)
            .with_data(list);
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        self.put(pdu);
        self.sent = Some((sent, self.world.now()));
        self.world.alarm(ANSWER_WITHIN);
    }

    fn put(&mut self, pdu: Pdu) {
        pdu.set_word(28, self.exp_stat_sn).encode(Digests::default(), &mut self.tx);
    }

    /// A change by chance, if there may be one now: its number, CDB and parameter list.
    fn change(&mut self) -> Option<(u64, Vec<u8>, Vec<u8>)> {
        let kind = KINDS[self.random.index(KINDS.len())];
        let victim = (self.config.node + 1 + self.random.index(self.config.nodes - 1)) % self.config.nodes;
        let operation = match self.random.below(16) {
            0..=4 => Operation::Register { persist: self.random.below(4) != 0 },
            5..=7 => Operation::Reserve(kind),
            8 => Operation::Release(kind),
            9..=13 => Operation::Preempt { victim, kind, abort: self.random.below(2) == 0 },
            14 => Operation::Unregister,
            _ => Operation::Clear,
        };
        let change = self.arbiter.0.borrow_mut().begin(self.config.node, operation)?;
        let key = |node: usize| node as u64 + 1;
        let own = key(self.config.node);
        let (action, kind, key, other, flags) = match operation {
            Operation::Register { persist } => (6, 0, 0, own, u8::from(persist)),
            Operation::Unregister => (0, 0, own, 0, 0),
            Operation::Reserve(kind) => (1, kind, own, 0, 0),
            Operation::Release(kind) => (2, kind, own, 0, 0),
            Operation::Preempt { victim, abort: true, kind } => {
                self.victim = Some(victim);
                (5, kind, own, key(victim), 0)
            }
            Operation::Preempt { victim, kind, .. } => (4, kind, own, key(victim), 0),
            Operation::Clear => (3, 0, own, 0, 0),
        };
        let mut list = [key.to_be_bytes(), other.to_be_bytes()].concat();
        list.extend([0, 0, 0, 0, flags, 0, 0, 0]);
        Some((change, vec![0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0], list))
    }
}

impl Runnable for Fencer {
    fn turn(&mut self, _wait: Wait) {
        if let Err(why) = self.step() {
            self.phase = Phase::Failed(why);
        }
    }

    fn is_satisfied(&self) -> bool {
        matches!(self.phase, Phase::Done | Phase::Failed(_))
    }
}
