//! A simulated initiator: it logs in, writes, reads, compares and logs out, and believes nothing.
//!
//! It is written from RFC 7143, SPC-4 and SBC-3 alone and shares no code with the server. What it offers at login,
//! which commands it sends, and how it cuts its data are drawn from its seed. Every answer is checked against the rules
//! (numbers, windows, lengths, residuals, digests), and every byte read against its memory of what it wrote. A lost
//! connection is taken as real initiators do: log in again under the same name, and the writes without an answer may
//! have happened or not, but may not happen later.
//!
//! **May know:** the simulated stream.

mod arbiter;
mod command;
mod contents;
mod fencer;
mod login;
mod management;
mod pdu;
mod session;
mod session_model;
mod session_player;
mod shared;
#[cfg(test)]
mod small_target;

use std::net::SocketAddr;

use command::{Task, Work, sense_key, status};
use contents::{Contents, SAME};

pub use fencer::{Arbiter, Fencer, FencerConfig};

pub use contents::{LAYER_VERSIONS, UNIT_BYTES, fill, layered_version};
use login::{Login, Names, Offer, Progress};
use pdu::{Digests, Pdu, response};
use session::{Ended, Event, Session};
pub use session_player::SessionPlayer;
use shared::Shared;
pub use shared::{SHARED_SECTORS, SHARERS_MAX};

use super::random::{Chance, Random};
use super::stream::Stream;
use super::world::{Runnable, World};
use super::{StreamError, hash_bytes};
use crate::ring::{Nanos, Wait};

/// How long a logical unit keeps what is written to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeping {
    /// Not at all: a null disk.
    Nothing,
    /// As long as the server's process lives: a memory disk.
    WhileServed,
    /// For ever; after a power cut what was synchronized or written through.
    Always,
}

/// How a server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Its process was killed.
    Killed,
    /// Its power was cut.
    PowerCut,
}

/// A logical unit as one initiator uses it.
#[derive(Clone, Debug)]
pub struct LunPlan {
    /// Its number, below 256.
    pub lun: u8,
    /// How long it keeps what is written.
    pub keeping: Keeping,
    /// The first 512-byte sector that belongs to this initiator alone; a multiple of 8.
    pub first_sector: u64,
    /// How many sectors, a multiple of 8. They hold zeros at first.
    pub sector_count: u64,
    /// Whether commands may fail with medium and space errors.
    pub may_fail: bool,
    /// Whether space is taken when it is first written, and can be given back.
    pub thin: bool,
    /// Whether its write cache is off: what is answered is durable.
    pub uncached: bool,
    /// Whether it has two parents, and holds at first what [`layered_version`] says.
    pub layered: bool,
    /// Whether blocks are copied within it, much of the time.
    pub copies: bool,
    /// Where [`SHARED_SECTORS`] sectors begin that initiators change together, a multiple of 8; and which of at most
    /// [`SHARERS_MAX`] this one is. They hold zeros at first.
    pub shared: Option<(u64, usize)>,
}

/// What an initiator does.
#[derive(Clone, Debug)]
pub struct InitiatorConfig {
    /// Where the target listens.
    pub portal: SocketAddr,
    /// Its own iSCSI name.
    pub initiator_name: String,
    /// The target's iSCSI name.
    pub target_name: String,
    /// The session's ISID: with the name it says which session a new login continues.
    pub isid: [u8; 6],
    /// The logical units it uses.
    pub luns: Vec<LunPlan>,
    /// Commands to send before the final comparison.
    pub commands: u32,
    /// Commands outstanding at most.
    pub depth: usize,
    /// The longest transfer in bytes.
    pub transfer_bytes_max: usize,
    /// Connections may be lost; it logs in again. Otherwise that is a failure.
    pub may_lose_connection: bool,
    /// For each turn: it resets its own connection.
    pub resets: Chance,
    /// For each turn with commands running: it sends a task management function.
    pub aborts: Chance,
    /// It also resets logical units, which aborts the commands of all initiators. For one initiator only: when
    /// several do so, a unit attention does not tell whose reset it was.
    pub resets_units: bool,
    /// Other initiators may reset the logical units: commands can be lost, and a unit attention tells.
    pub may_lose_commands: bool,
    /// Only units that may fail abort commands.
    pub is_strict: bool,
}

/// What an initiator met on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InitiatorReport {
    /// Logins that reached the full feature phase.
    pub logins: u32,
    /// Commands answered GOOD.
    pub good: u32,
    /// Commands answered with a medium, hardware, space or abort error.
    pub failed: u32,
    /// Commands answered BUSY, TASK SET FULL or with a unit attention.
    pub retried: u32,
    /// Atomic writes that ended well.
    pub atomic: u32,
    /// Commands ended by task management, of this initiator or another.
    pub aborted: u32,
    /// Connections lost.
    pub lost: u32,
    /// A hash of everything received, in order.
    pub received_hash: u64,
}

#[derive(Debug)]
enum Phase {
    /// Not connected; to be tried at this moment.
    Away(Nanos),
    LoggingIn(Box<Login>, Vec<u8>),
    Working(Box<Session>),
    /// Logged out; the target closes.
    Leaving,
    Done,
    Failed(String),
}

#[derive(Debug)]
struct Unit {
    plan: LunPlan,
    contents: Contents,
    block_bytes: usize,
    /// Told ready and its size, in this session.
    is_known: bool,
    /// The next sector of the final comparison.
    compared: u64,
    shared: Option<Shared>,
}

/// One initiator with one session at a time.
#[derive(Debug)]
pub struct Initiator {
    world: World,
    config: InitiatorConfig,
    random: Random,
    stream: Option<Stream>,
    phase: Phase,
    offer: Offer,
    rx: Vec<u8>,
    units: Vec<Unit>,
    commands_left: u32,
    /// What aborted writes would have changed: read at once, so that one that comes later is seen.
    suspects: Vec<(usize, Work)>,
    pinged: bool,
    asked_to_leave: bool,
    /// When the target was last heard.
    heard: Nanos,
    report: InitiatorReport,
}

/// Between a loss and the next try.
const RETRY_AFTER: Nanos = Nanos(3_000_000);

/// A server that refuses this often will not take us.
const ATTEMPTS_MAX: u32 = 2000;

impl Initiator {
    /// An initiator that has not connected yet.
    pub fn new(world: &World, config: InitiatorConfig) -> Initiator {
        let mut random = world.random();
        let offer = Offer::draw(&mut random);
        let units = config.luns.iter().map(|plan| Unit {
            contents: match plan.layered {
                true => Contents::layered(plan.first_sector, plan.sector_count as usize),
                false => Contents::new(plan.first_sector, plan.sector_count as usize),
            },
            plan: plan.clone(),
            block_bytes: UNIT_BYTES,
            is_known: false,
            compared: 0,
            shared: plan.shared.map(|(first, me)| Shared::new(first, me)),
        });
        Initiator {
            world: world.clone(),
            units: units.collect(),
            random,
            stream: None,
            phase: Phase::Away(Nanos(0)),
            offer,
            rx: Vec::new(),
            commands_left: config.commands,
            suspects: Vec::new(),
            config,
            pinged: false,
            asked_to_leave: false,
            heard: Nanos(0),
            report: InitiatorReport::default(),
        }
    }

    /// What it met so far; an error is a breach of a rule, or wrong data.
    pub fn result(&self) -> Result<InitiatorReport, String> {
        match &self.phase {
            Phase::Failed(why) => Err(format!("{} ({:?}): {why}", self.config.initiator_name, self.offer)),
            _ => Ok(self.report),
        }
    }

    /// From now on commands to this logical unit may fail with medium and space errors.
    pub fn expect_failures(&mut self, lun: usize) {
        self.units[lun].plan.may_fail = true;
    }

    /// The server has ended and will come back. Commands without an answer may have happened.
    pub fn server_ended(&mut self, end: End) {
        if self.is_satisfied() {
            return;
        }
        if let Err(why) = self.lose("the server ended") {
            self.phase = Phase::Failed(why);
            return;
        }
        for unit in &mut self.units {
            match (unit.plan.keeping, end) {
                (Keeping::WhileServed, _) => unit.contents.were_lost(),
                (Keeping::Always, End::PowerCut) => unit.contents.power_was_cut(),
                (Keeping::Always, End::Killed) | (Keeping::Nothing, _) => {}
            }
        }
    }

    /// Whether it has logged out after finding everything right.
    pub fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Done)
    }

    /// Whether it has ever reached the full feature phase.
    pub fn has_logged_in(&self) -> bool {
        self.report.logins > 0
    }

    fn connect(&mut self) -> Result<(), String> {
        match self.world.connect(self.config.portal) {
            Ok(stream) => self.stream = Some(stream),
            Err(_) => return self.lose("connection refused"),
        }
        self.rx.clear();
        self.offer = Offer::draw(&mut self.random);
        let names = Names {
            initiator: self.config.initiator_name.clone(),
            target: self.config.target_name.clone(),
            isid: self.config.isid,
        };
        // Sometimes just below the place where serial numbers wrap.
        let near_wrap = u64::from(u32::MAX - 20);
        let cmd_sn = if self.random.below(2) == 0 { near_wrap } else { self.random.below(1 << 32) };
        let tag = self.random.below(u64::from(u32::MAX)) as u32;
        let mut login = Login::new(names, self.offer.clone(), tag, cmd_sn as u32);
        let mut tx = Vec::new();
        login.request().encode(Digests::default(), &mut tx);
        self.phase = Phase::LoggingIn(Box::new(login), tx);
        Ok(())
    }

    /// The connection is gone: what was written without an answer may be there or not.
    fn lose(&mut self, why: &str) -> Result<(), String> {
        self.stream = None;
        self.report.lost += 1;
        if !self.config.may_lose_connection {
            return Err(format!("the connection was lost: {why}"));
        }
        if self.report.lost > ATTEMPTS_MAX {
            return Err(format!("{ATTEMPTS_MAX} connections lost, the last: {why}"));
        }
        let at = Nanos(self.world.now().0 + RETRY_AFTER.0);
        self.world.alarm(RETRY_AFTER);
        if let Phase::Working(session) = std::mem::replace(&mut self.phase, Phase::Away(at)) {
            self.abandon(session.into_tasks().collect());
        }
        for unit in &mut self.units {
            unit.is_known = false;
            unit.compared = 0;
        }
        self.asked_to_leave = false;
        Ok(())
    }

    /// These tasks have ended without an answer.
    fn abandon(&mut self, tasks: Vec<Task>) {
        for task in tasks {
            let Unit { contents, compared, shared, .. } = &mut self.units[task.unit];
            match task.work {
                work if work.is_shared() => shared.iter_mut().for_each(|shared| shared.on_doubt(work)),
                work if work.change().is_some() => {
                    let Some((unit, count, version)) = work.change() else { continue };
                    contents.perhaps_written(unit, count, version);
                    let count = count.min(SUSPECT_SECTORS_MAX);
                    self.suspects.push((task.unit, Work::Read { unit, count }));
                }
                Work::Read { unit, .. } if self.commands_left == 0 => {
                    *compared = (*compared).min(unit - contents.first());
                }
                _ => {}
            }
        }
    }

    fn step(&mut self) -> Result<(), String> {
        if let Phase::Away(at) = self.phase {
            if self.world.now() < at {
                return Ok(());
            }
            self.connect()?;
        }
        if self.stream.is_some() && self.random.happens(self.config.resets) {
            if let Some(stream) = self.stream.take() {
                stream.reset();
            }
            return self.lose("reset by ourselves");
        }
        let is_over = self.read()?;
        while let Some(pdu) = self.next_pdu()? {
            self.report.received_hash ^= hash_bytes(&pdu.bhs).rotate_left(self.report.good % 64);
            self.handle(&pdu)?;
            self.heard = self.world.now();
            if self.config.may_lose_commands {
                self.world.alarm(POKE_AFTER);
            }
        }
        if let Phase::Working(_) = self.phase {
            self.work();
        }
        match is_over {
            Some(_) if matches!(self.phase, Phase::Leaving) => {
                self.stream = None;
                self.phase = Phase::Done;
                Ok(())
            }
            Some(why) if !matches!(self.phase, Phase::Away(_) | Phase::Done) => self.lose(why),
            _ => self.write(),
        }
    }

    /// Read everything that has arrived; says why if the stream is over.
    fn read(&mut self) -> Result<Option<&'static str>, String> {
        let mut into = [0; 4096];
        while let Some(stream) = &mut self.stream {
            match stream.read(&mut into) {
                Ok(0) => return Ok(Some("end of stream")),
                Ok(count) => self.rx.extend_from_slice(&into[..count]),
                Err(StreamError::WouldBlock) => break,
                Err(_) => return Ok(Some("reset")),
            }
        }
        Ok(None)
    }

    fn write(&mut self) -> Result<(), String> {
        let Some(stream) = &mut self.stream else { return Ok(()) };
        let tx = match &mut self.phase {
            Phase::LoggingIn(_, tx) => tx,
            Phase::Working(session) => &mut session.tx,
            _ => return Ok(()),
        };
        while !tx.is_empty() {
            match stream.write(tx) {
                Ok(count) => drop(tx.drain(..count)),
                Err(StreamError::WouldBlock) => break,
                Err(_) => return self.lose("reset"),
            }
        }
        Ok(())
    }

    fn next_pdu(&mut self) -> Result<Option<Pdu>, String> {
        let digests = match &self.phase {
            Phase::Working(session) => session.agreed().digests,
            _ => Digests::default(),
        };
        let Some((pdu, len)) = Pdu::decode(&self.rx, digests)? else { return Ok(None) };
        self.rx.drain(..len);
        Ok(Some(pdu))
    }

    fn handle(&mut self, pdu: &Pdu) -> Result<(), String> {
        match &mut self.phase {
            Phase::LoggingIn(..) => self.handle_login(pdu),
            Phase::Working(session) => match session.receive(pdu)? {
                Event::Nothing | Event::Pong => Ok(()),
                Event::Ended(ended) => self.handle_end(*ended),
                Event::Aborted(tasks) => {
                    self.report.aborted += tasks.len() as u32;
                    self.abandon(tasks);
                    Ok(())
                }
                Event::AskedToLeave => {
                    self.asked_to_leave = true;
                    Ok(())
                }
                Event::LoggedOut => {
                    if session.task_count() > 0 {
                        return Err("logged out with commands unanswered".to_owned());
                    }
                    self.phase = Phase::Leaving;
                    Ok(())
                }
            },
            phase => Err(format!("a PDU of opcode {:#04x} in {phase:?}", pdu.opcode())),
        }
    }

    fn handle_login(&mut self, pdu: &Pdu) -> Result<(), String> {
        let Phase::LoggingIn(login, tx) = &mut self.phase else { return Ok(()) };
        if pdu.opcode() != response::LOGIN {
            return Err(format!("a PDU of opcode {:#04x} in the login", pdu.opcode()));
        }
        match login.on_response(pdu)? {
            Progress::Send(next) => next.encode(Digests::default(), tx),
            // Target errors (class 3) are its state of the moment.
            Progress::Refused(3, _) if self.config.may_lose_connection => return self.lose("login refused for now"),
            Progress::Refused(class, detail) => return Err(format!("login refused: {class:#04x} {detail:#04x}")),
            Progress::Done { agreed, exp_stat_sn } => {
                // Login requests are immediate, so the first command takes the login's own CmdSN.
                let cmd_sn = login.cmd_sn();
                if pdu.word(28) != cmd_sn {
                    return Err(format!("ExpCmdSN {} after a login with CmdSN {cmd_sn}", pdu.word(28)));
                }
                let mut session = Session::new(agreed, &self.offer, cmd_sn, exp_stat_sn);
                session.may_lose_commands = self.config.may_lose_commands;
                session.window(pdu)?;
                self.report.logins += 1;
                self.pinged = false;
                self.phase = Phase::Working(Box::new(session));
            }
        }
        Ok(())
    }

    fn handle_end(&mut self, ended: Ended) -> Result<(), String> {
        let Ended { task, status, sense } = ended;
        let unit = &mut self.units[task.unit];
        if status == status::GOOD {
            self.report.good += 1;
            self.report.atomic += u32::from(matches!(task.work, Work::Sing { .. }));
            return on_good(unit, task.work, &task.data_in);
        }
        let retry = match status {
            status::BUSY | status::TASK_SET_FULL => true,
            status::CHECK_CONDITION => key_of(&sense) == Some(sense_key::UNIT_ATTENTION),
            _ => false,
        };
        if retry {
            self.report.retried += 1;
            let unit = &self.units[task.unit];
            match task.work {
                Work::Read { unit: first, .. } if self.commands_left == 0 => {
                    let compared = unit.compared.min(first - unit.contents.first());
                    self.units[task.unit].compared = compared;
                }
                work => self.commands_left += u32::from(work.range().is_some()),
            }
            return Ok(());
        }
        if status == status::TASK_ABORTED && self.config.may_lose_commands {
            self.report.aborted += 1;
            self.abandon(vec![task]);
            return Ok(());
        }
        let key = key_of(&sense).filter(|_| status == status::CHECK_CONDITION);
        if let Some(shared) = unit.shared.as_mut().filter(|_| task.work.is_shared()) {
            if key == Some(sense_key::MISCOMPARE) {
                self.report.retried += 1;
                shared.on_miscompare();
                return Ok(());
            }
            shared.on_doubt(task.work);
            // A file without a log does not serve atomic writes; and a READ that one came between is sent again.
            let is_refused = matches!(task.work, Work::Sing { .. }) && key == Some(sense_key::ILLEGAL_REQUEST);
            if is_refused || matches!(task.work, Work::Look { .. }) && key == Some(sense_key::ABORTED_COMMAND) {
                return Ok(());
            }
        }
        self.report.failed += 1;
        let is_expected = match key {
            Some(sense_key::MEDIUM_ERROR | sense_key::HARDWARE_ERROR | sense_key::DATA_PROTECT) => unit.plan.may_fail,
            Some(sense_key::COPY_ABORTED) => unit.plan.may_fail && matches!(task.work, Work::Copy { .. }),
            Some(sense_key::ABORTED_COMMAND) => unit.plan.may_fail || !self.config.is_strict,
            _ => status == status::TASK_ABORTED,
        };
        if !is_expected {
            return Err(format!("{:?} ended with status {status:#04x}, sense {sense:02x?}", task.work));
        }
        if let Some((first, count, version)) = task.work.change() {
            unit.contents.perhaps_written(first, count, version);
        }
        Ok(())
    }

    // ---- the work ----------------------------------------------------------------------------------------------

    /// Send what may be sent now.
    fn work(&mut self) {
        let Phase::Working(session) = &mut self.phase else { return };
        session.send_data(&mut self.random);
        if self.random.happens(self.config.aborts) {
            session.manage(|unit| self.units[unit].plan.lun, self.config.resets_units, &mut self.random);
        }
        self.poke_if_idle();
        let Phase::Working(session) = &mut self.phase else { return };
        while session.is_open() && session.task_count() < self.config.depth && !self.asked_to_leave {
            let Some((index, work)) = next_work(
                &mut self.units,
                session,
                &mut self.commands_left,
                &mut self.suspects,
                self.config.transfer_bytes_max,
                &mut self.random,
            ) else {
                break;
            };
            let unit = &self.units[index];
            session.command(index, unit.plan.lun, work, unit.block_bytes, &mut self.random);
            session.send_data(&mut self.random);
        }
        let is_finished = self.commands_left == 0 && self.units.iter().all(Unit::is_compared) || self.asked_to_leave;
        if session.task_count() > 0 || session.is_waiting() || !is_finished {
            return;
        }
        if !std::mem::replace(&mut self.pinged, true) {
            session.ping(&mut self.random);
        } else if !session.is_leaving() {
            session.logout(&mut self.random);
        }
    }
}

impl Initiator {
    /// When nothing has come for long, commands may have been lost; another one to the same logical unit brings the
    /// unit attention that tells.
    fn poke_if_idle(&mut self) {
        let now = self.world.now();
        let Phase::Working(session) = &mut self.phase else { return };
        if now.0 - self.heard.0 < POKE_AFTER.0 || !self.config.may_lose_commands || !session.is_open() {
            return;
        }
        self.heard = now;
        let Some(index) = session.tasks().map(|task| task.unit).next() else { return };
        let unit = &self.units[index];
        session.command(index, unit.plan.lun, Work::TestUnitReady, unit.block_bytes, &mut self.random);
        self.world.alarm(POKE_AFTER);
    }
}

/// Sectors of an unanswered change that are looked at at once.
const SUSPECT_SECTORS_MAX: u64 = 512;

/// Silence after which lost commands are suspected.
const POKE_AFTER: Nanos = Nanos(20_000_000);

impl Unit {
    fn is_compared(&self) -> bool {
        let is_read = self.plan.keeping == Keeping::Nothing || self.compared >= self.contents.count();
        is_read && self.shared.as_ref().is_none_or(Shared::is_known)
    }
}

/// The sense key of sense data in fixed or descriptor format (SPC-4 clause 4.5).
fn key_of(sense: &[u8]) -> Option<u8> {
    match sense.first()? & 0x7f {
        0x70 => sense.get(2).map(|byte| byte & 0x0f),
        0x72 => sense.get(1).map(|byte| byte & 0x0f),
        _ => None,
    }
}

fn on_good(unit: &mut Unit, work: Work, data_in: &[u8]) -> Result<(), String> {
    match work {
        Work::ReadCapacity => {
            let word = |at: usize| u32::from_be_bytes(std::array::from_fn(|i| data_in[at + i]));
            if data_in.len() < 12 {
                return Err("a capacity of less than 12 bytes".to_owned());
            }
            let last_lba = u64::from(word(0)) << 32 | u64::from(word(4));
            unit.block_bytes = word(8) as usize;
            let bytes = (last_lba + 1).saturating_mul(unit.block_bytes as u64);
            let needed = (unit.plan.first_sector + unit.plan.sector_count) * UNIT_BYTES as u64;
            if !matches!(unit.block_bytes, 512 | 4096) || bytes < needed {
                return Err(format!("a capacity of {bytes} bytes in blocks of {}; {needed} needed", unit.block_bytes));
            }
            unit.is_known = true;
        }
        Work::Inquiry if data_in.first() != Some(&0) => return Err("not a disk".to_owned()),
        Work::Read { unit: first, count } => {
            if data_in.len() != count as usize * UNIT_BYTES {
                return Err(format!("GOOD with {} bytes for {work:?}", data_in.len()));
            }
            if unit.plan.keeping != Keeping::Nothing {
                unit.contents.check(first, data_in).map_err(|why| format!("LUN {}: {why}", unit.plan.lun))?;
            }
        }
        Work::Write { unit: first, count, version, through } => {
            unit.contents.written(first, count, version, through || unit.plan.uncached);
        }
        Work::Unmap { .. } | Work::WriteSame { .. } | Work::Copy { .. } => {
            if let Some((first, count, version)) = work.change() {
                unit.contents.written(first, count, version, unit.plan.uncached);
            }
        }
        Work::LbaStatus { unit: first } => {
            on_lba_status(unit, first, data_in).map_err(|why| format!("LUN {}: {why}", unit.plan.lun))?;
        }
        Work::SynchronizeCache { order } => unit.contents.synchronized(order),
        Work::CountUp { .. } | Work::Note { .. } | Work::SetBits { .. } | Work::Sing { .. } | Work::Look { .. } => {
            if let Some(shared) = unit.shared.as_mut() {
                shared.on_good(work, data_in).map_err(|why| format!("LUN {}: {why}", unit.plan.lun))?;
            }
        }
        Work::TestUnitReady | Work::Inquiry | Work::Verify { .. } => {}
    }
    Ok(())
}

/// LBA status descriptors (SBC-4 clause 5.6.2): without gaps from the block asked for, and what has no space reads as
/// zeros.
fn on_lba_status(unit: &Unit, first: u64, data_in: &[u8]) -> Result<(), String> {
    let word = |at: usize| u64::from(u32::from_be_bytes(std::array::from_fn(|i| data_in[at + i])));
    let per_block = (unit.block_bytes / UNIT_BYTES) as u64;
    if data_in.len() < 24 || word(0) as usize + 4 != data_in.len() || data_in.len() % 16 != 8 {
        return Err(format!("an LBA status of {} bytes", data_in.len()));
    }
    let mut next = first / per_block;
    for at in (8..data_in.len()).step_by(16) {
        let (lba, blocks, state) = (word(at) << 32 | word(at + 4), word(at + 8), data_in[at + 12] & 0x0f);
        if lba != next || blocks == 0 || state > 1 {
            return Err(format!("status {state} of {blocks} blocks from {lba}, expected from {next}"));
        }
        if state == 1 {
            unit.contents.check_zeros(lba * per_block, blocks * per_block)?;
        }
        next = lba + blocks;
    }
    Ok(())
}

/// The next command that disturbs none that runs, if there is one to send now.
fn next_work(
    units: &mut [Unit],
    session: &Session,
    commands_left: &mut u32,
    suspects: &mut Vec<(usize, Work)>,
    transfer_bytes_max: usize,
    random: &mut Random,
) -> Option<(usize, Work)> {
    let is_busy =
        |index: usize, work: Work| session.tasks().any(|task| task.unit == index && !task.work.is_compatible(work));
    for (index, _) in units.iter().enumerate().filter(|(_, unit)| !unit.is_known) {
        // One command at a time until the unit is known: its first answer is a unit attention.
        if session.tasks().any(|task| task.unit == index) {
            continue;
        }
        let first = [Work::TestUnitReady, Work::Inquiry, Work::ReadCapacity];
        return Some((index, first[random.index(3)]));
    }
    if units.iter().any(|unit| !unit.is_known) {
        return None;
    }
    if let Some(&(index, work)) = suspects.last()
        && !is_busy(index, work)
    {
        suspects.pop();
        return Some((index, work));
    }
    if *commands_left == 0 {
        let (index, unit) = units.iter_mut().enumerate().find(|(_, unit)| !unit.is_compared())?;
        if let Some(shared) = unit.shared.as_ref().filter(|shared| !shared.is_known()) {
            let work = shared.look();
            return (!is_busy(index, work)).then_some((index, work));
        }
        let count = (unit.contents.count() - unit.compared).min(128);
        let work = Work::Read { unit: unit.contents.first() + unit.compared, count };
        if is_busy(index, work) {
            return None;
        }
        unit.compared += count;
        return Some((index, work));
    }
    let index = random.index(units.len());
    let work = draw_work(&mut units[index], transfer_bytes_max, random);
    if is_busy(index, work) {
        return None;
    }
    *commands_left -= 1;
    Some((index, work))
}

fn draw_work(unit: &mut Unit, transfer_bytes_max: usize, random: &mut Random) -> Work {
    if let Some(shared) = unit.shared.as_ref().filter(|_| random.below(8) > 0) {
        return shared.draw_work(random);
    }
    if unit.plan.copies && random.below(2) == 0 {
        return draw_copy(unit, random);
    }
    let groups = unit.contents.count() / 8;
    let first = random.below(groups);
    let groups_max = (transfer_bytes_max / (8 * UNIT_BYTES)).max(1) as u64;
    let longest = (groups - first).min(if random.below(4) == 0 { groups_max } else { groups_max.min(4) });
    let (at, count) = (unit.contents.first() + first * 8, 8 * (1 + random.below(longest)));
    if unit.plan.thin && random.below(6) == 0 {
        return draw_thin_work(unit, at, random);
    }
    match random.below(20) {
        0 => Work::SynchronizeCache { order: unit.contents.order() },
        1 => Work::TestUnitReady,
        2 => Work::Verify { unit: at, count },
        3..=10 => Work::Read { unit: at, count },
        _ => {
            let through = random.below(8) == 0;
            Work::Write { unit: at, count, version: unit.contents.new_version(), through }
        }
    }
}

/// A copy of what lies at the beginning of the region, or what makes that a source: all its sectors alike.
fn draw_copy(unit: &mut Unit, random: &mut Random) -> Work {
    let source_groups = (unit.contents.count() / 4 / 8).min(COPY_GROUPS_MAX);
    let first = unit.contents.first();
    let Some(version) = unit.contents.uniform(first, 8 * source_groups) else {
        let version = unit.contents.new_version() | SAME;
        return Work::WriteSame { unit: first, count: 8 * source_groups, version, unmap: false, no_data: false };
    };
    let skipped = random.below(source_groups / 4);
    let groups = source_groups - skipped - random.below(source_groups / 4);
    let places = unit.contents.count() / 8 - source_groups - groups;
    let to = first + 8 * (source_groups + random.below(places));
    Work::Copy { from: first + 8 * skipped, unit: to, count: 8 * groups, version }
}

/// The longest source of copies, in units of 8 sectors: 1 MiB.
const COPY_GROUPS_MAX: u64 = 256;

/// What only units do whose space can be given back.
fn draw_thin_work(unit: &mut Unit, at: u64, random: &mut Random) -> Work {
    let left = (unit.contents.first() + unit.contents.count() - at) / 8;
    let count = 8 * (1 + random.below(left));
    match random.below(8) {
        0..=3 => Work::Unmap { unit: at, count },
        4 => Work::LbaStatus { unit: at },
        5 => {
            let (unmap, no_data) = (random.below(4) > 0, random.below(2) == 0);
            Work::WriteSame { unit: at, count, version: 0, unmap, no_data }
        }
        _ => {
            let version = unit.contents.new_version() | SAME;
            Work::WriteSame { unit: at, count, version, unmap: random.below(2) == 0, no_data: false }
        }
    }
}

impl Runnable for Initiator {
    fn turn(&mut self, _wait: Wait) {
        if !self.is_satisfied()
            && let Err(why) = self.step()
        {
            self.stream = None;
            self.phase = Phase::Failed(why);
        }
    }

    fn is_satisfied(&self) -> bool {
        matches!(self.phase, Phase::Done | Phase::Failed(_))
    }
}
