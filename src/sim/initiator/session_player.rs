//! Random events of sessions, one after the other, held against the model: logins, connections that join, take
//! another's place, drop or log out, commands in and out of order, aborts and resets.
//!
//! After each event everything that the model says must come, and nothing else may. Status and command numbers are
//! checked in every PDU.
//!
//! **May know:** the sibling modules, the simulated stream.

use std::net::SocketAddr;

use super::pdu::{Digests, FINAL, NO_TAG, Pdu, request, response};
use super::session_model::{CONNECTIONS_MAX, Command, Heard, Kind, Model, UNITS, function};
use crate::ring::Nanos;
use crate::sim::{Random, Stream, StreamError, World, hash_bytes};

/// Initiator ports.
const NEXUSES: usize = 3;

/// How long an expected PDU may take: longer than a task management function waits for what initiators owe it.
const PATIENCE_STEPS: u32 = 400;
const STEP: Nanos = Nanos(10_000_000);

/// In this time after the last expected PDU nothing else may come.
const QUIET: Nanos = Nanos(20_000_000);

/// Plays events against a server. Whoever drives it gives the server its turns.
pub struct SessionPlayer {
    world: World,
    portal: SocketAddr,
    target_name: String,
    random: Random,
    model: Model,
    lines: Vec<Line>,
    next_tag: u32,
    /// What has happened, the newest last.
    journal: Vec<String>,
    logins: u32,
    good: u32,
    hash: u64,
}

/// One connection.
struct Line {
    stream: Stream,
    nexus: usize,
    connection: u16,
    rx: Vec<u8>,
    exp_stat_sn: u32,
    max_cmd_sn: Option<u32>,
    /// R2Ts that have come: task tag and transfer tag.
    r2ts: Vec<(u32, u32)>,
    /// What has come and is to be held against the model.
    heard: Vec<Heard>,
    /// The pong that is awaited: ExpCmdSN and MaxCmdSN must be those.
    pong: Option<(u32, u32, u32)>,
    dropped: Vec<u16>,
    is_closed: bool,
}

type Outcome<T> = Result<T, String>;

impl SessionPlayer {
    /// Nobody has logged in.
    pub fn new(world: &World, portal: SocketAddr, target_name: String) -> SessionPlayer {
        SessionPlayer {
            world: world.clone(),
            portal,
            target_name,
            random: world.random(),
            model: Model::new(NEXUSES),
            lines: Vec::new(),
            next_tag: 1,
            journal: Vec::new(),
            logins: 0,
            good: 0,
            hash: 0,
        }
    }

    /// Logins, commands answered GOOD, and a hash of all that was received.
    pub fn counts(&self) -> (u32, u32, u64) {
        (self.logins, self.good, self.hash)
    }

    /// Play one event. `run` gives the server turns for a time.
    ///
    /// # Errors
    /// What was not as the model says, with the events that led there.
    pub fn play(&mut self, run: &mut dyn FnMut(Nanos)) -> Outcome<()> {
        let played = self.event(run).and_then(|()| self.settle(run)).and_then(|()| self.probe(run));
        played.map_err(|why| {
            let last = self.journal.len().saturating_sub(24);
            format!("{why}\nafter: {}\nmodel: {:?}", self.journal[last..].join("\n       "), self.model)
        })
    }

    fn note(&mut self, what: String) {
        if self.journal.len() >= 64 {
            self.journal.drain(..32);
        }
        self.journal.push(what);
    }

    fn event(&mut self, run: &mut dyn FnMut(Nanos)) -> Outcome<()> {
        let nexus = self.random.index(NEXUSES);
        // A handle, or the difference to one.
        let other = 1 + self.random.below(65_535) as u16;
        let Some(session) = &self.model.sessions[nexus] else {
            return match self.random.below(8) {
                0 => self.join(nexus, other, run),
                _ => self.log_in(nexus, run),
            };
        };
        let (tsih, has_holes) = (session.tsih, session.unassigned() != session.next);
        let connection = session.connections[self.random.index(session.connections.len())];
        match self.random.below(100) {
            0..3 => self.log_in(nexus, run),
            3..5 => self.join(nexus, tsih ^ other, run),
            5..20 => self.join(nexus, tsih, run),
            20..26 => self.drop_line(nexus, connection),
            26..30 => self.log_out(nexus, connection),
            30..38 => self.abort_task(nexus, connection),
            38..44 if !has_holes => self.manage(nexus, connection),
            44..58 => self.complete(nexus),
            58..60 => self.stray(),
            _ => self.command(nexus, connection),
        }
    }

    // ---- events ------------------------------------------------------------------------------------------------

    fn log_in(&mut self, nexus: usize, run: &mut dyn FnMut(Nanos)) -> Outcome<()> {
        let connection = self.random.below(3) as u16;
        let first_sn = self.random.word() as u32;
        self.note(format!("login of {nexus} with CID {connection}"));
        match self.login(nexus, connection, 0, first_sn, run)? {
            Ok((line, tsih)) => {
                self.model.logged_in(nexus, tsih, connection, first_sn);
                self.lines.push(line);
                Ok(())
            }
            Err(refused) => Err(format!("the login was refused with {refused:x?}")),
        }
    }

    fn join(&mut self, nexus: usize, tsih: u16, run: &mut dyn FnMut(Nanos)) -> Outcome<()> {
        let connection = self.random.below(CONNECTIONS_MAX as u64 + 2) as u16;
        let cmd_sn = self.model.sessions[nexus].as_ref().map_or(0, |session| session.unassigned());
        self.note(format!("{nexus}: connection {connection} of session {tsih}"));
        let got = self.login(nexus, connection, tsih.max(1), cmd_sn, run)?;
        let expected = self.model.join(nexus, tsih.max(1), connection);
        match (got, expected) {
            (Ok((line, told)), Ok(())) if told == tsih => self.lines.push(line),
            (Err(refused), Err(status)) if refused == status => {}
            (got, expected) => {
                return Err(format!("joining gave {:x?}, expected {expected:x?}", got.map(|(_, tsih)| tsih)));
            }
        }
        Ok(())
    }

    fn drop_line(&mut self, nexus: usize, connection: u16) -> Outcome<()> {
        let at = self.line_of(nexus, connection)?;
        let line = self.lines.swap_remove(at);
        let is_reset = self.random.below(2) == 0;
        self.note(format!("{nexus}: connection {connection} {}", if is_reset { "is reset" } else { "ends" }));
        if is_reset {
            line.stream.reset();
        }
        self.model.dropped(nexus, connection);
        Ok(())
    }

    fn log_out(&mut self, nexus: usize, connection: u16) -> Outcome<()> {
        let named = if self.random.below(2) == 0 { connection } else { self.random.below(6) as u16 };
        let reason = [0, 1, 1, 1, 2][self.random.index(5)];
        let tag = self.tag();
        self.note(format!("{nexus}: logout {tag} on {connection}, reason {reason} for CID {named}"));
        let pdu = Pdu::new(request::LOGOUT | request::IMMEDIATE, FINAL | reason);
        let pdu = pdu.set_word(16, tag).set_word(20, u32::from(named) << 16);
        self.send_immediate(nexus, connection, pdu)?;
        self.model.logout(nexus, connection, tag, reason, named);
        Ok(())
    }

    fn command(&mut self, nexus: usize, connection: u16) -> Outcome<()> {
        let Some(session) = &self.model.sessions[nexus] else { return Ok(()) };
        let ahead = if session.early.len() < 20 { [0, 0, 0, 0, 1, 2, 5][self.random.index(7)] } else { 0 };
        let sn = session.next.wrapping_add(ahead);
        if session.active.len() + session.early.len() > 60 || session.has_come(sn) {
            return Ok(());
        }
        let kind = match self.random.below(10) {
            0..5 => Kind::Write,
            5 => Kind::Reserve,
            6 => Kind::Release,
            _ => Kind::TestUnitReady,
        };
        let (tag, unit) = (self.tag(), self.random.index(UNITS));
        self.note(format!("{nexus}: {kind:?} {tag} of unit {unit} with CmdSN {sn} on {connection}, {ahead} ahead"));
        let (flags, cdb, len) = match kind {
            Kind::TestUnitReady => (0, [0u8; 10], 0u32),
            Kind::Write => (0x20, [0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], 512),
            Kind::Reserve => (0, [0x16, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0),
            Kind::Release => (0, [0x17, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0),
        };
        let pdu = Pdu::new(request::SCSI_COMMAND, FINAL | flags | 1)
            .set_bytes(8, &[0, unit as u8])
            .set_word(16, tag)
            .set_word(20, len)
            .set_word(24, sn)
            .set_bytes(32, &cdb);
        self.send(nexus, connection, pdu)?;
        self.model.command(nexus, sn, Command { tag, unit, kind, connection, terminated: false });
        Ok(())
    }

    /// Send the data of a write.
    fn complete(&mut self, nexus: usize) -> Outcome<()> {
        let Some(session) = &self.model.sessions[nexus] else { return Ok(()) };
        if session.active.is_empty() {
            return Ok(());
        }
        let Command { tag, connection, unit, .. } = session.active[self.random.index(session.active.len())];
        self.note(format!("{nexus}: data of {tag} on {connection}"));
        let at = self.line_of(nexus, connection)?;
        let line = &mut self.lines[at];
        let of = line.r2ts.iter().position(|(of, _)| *of == tag).ok_or("no R2T has come")?;
        let (_, transfer_tag) = line.r2ts.swap_remove(of);
        let pdu = Pdu::new(request::DATA_OUT, FINAL)
            .set_bytes(8, &[0, unit as u8])
            .set_word(16, tag)
            .set_word(20, transfer_tag)
            .with_data(vec![tag as u8; 512]);
        self.send(nexus, connection, pdu)?;
        self.model.completed(nexus, tag);
        Ok(())
    }

    fn abort_task(&mut self, nexus: usize, connection: u16) -> Outcome<()> {
        let Some(session) = &self.model.sessions[nexus] else { return Ok(()) };
        let unassigned = session.unassigned();
        // A task under way here, one that is ahead, or one that has not come.
        let here = |command: &&Command| command.connection == connection;
        let active: Vec<(u32, usize, u32)> =
            session.active.iter().filter(here).map(|of| (of.tag, of.unit, session.next.wrapping_sub(1))).collect();
        let early: Vec<(u32, usize, u32)> = session
            .early
            .iter()
            .filter_map(|(sn, of)| of.as_ref().filter(here).map(|of| (of.tag, of.unit, *sn)))
            .collect();
        let (wanted, unit, sn) = match self.random.below(3) {
            0 if !active.is_empty() => active[self.random.index(active.len())],
            1 if !early.is_empty() => early[self.random.index(early.len())],
            _ => (0xdead_0000, 0, session.next.wrapping_add(self.random.below(6) as u32)),
        };
        let tag = self.tag();
        self.note(format!("{nexus}: ABORT TASK {tag} on {connection} of {wanted} with CmdSN {sn}"));
        let pdu = Pdu::new(request::TASK_MANAGEMENT | request::IMMEDIATE, FINAL | 1)
            .set_bytes(8, &[0, unit as u8])
            .set_word(16, tag)
            .set_word(20, wanted)
            .set_word(24, unassigned)
            .set_word(32, sn);
        self.send(nexus, connection, pdu)?;
        self.model.abort_task(nexus, connection, tag, (wanted, sn));
        Ok(())
    }

    fn manage(&mut self, nexus: usize, connection: u16) -> Outcome<()> {
        let (tag, unit) = (self.tag(), self.random.index(UNITS));
        let function = match self.random.below(12) {
            0 => function::TARGET_WARM_RESET,
            1 => function::TARGET_COLD_RESET,
            2..5 => function::LOGICAL_UNIT_RESET,
            5..8 => function::CLEAR_TASK_SET,
            _ => function::ABORT_TASK_SET,
        };
        self.note(format!("{nexus}: function {function} of unit {unit}, {tag} on {connection}"));
        let pdu = Pdu::new(request::TASK_MANAGEMENT | request::IMMEDIATE, FINAL | function)
            .set_bytes(8, &[0, unit as u8])
            .set_word(16, tag)
            .set_word(20, NO_TAG);
        self.send_immediate(nexus, connection, pdu)?;
        self.model.manage(nexus, connection, tag, function, unit);
        Ok(())
    }

    /// A connection that comes to nothing.
    fn stray(&mut self) -> Outcome<()> {
        self.note("a stray connection".to_owned());
        let mut stream = self.world.connect(self.portal).map_err(|error| format!("{error:?}"))?;
        let bytes = [0x43; 20];
        let len = 1 + self.random.index(20);
        let _ = stream.write(&bytes[..len]);
        Ok(())
    }

    // ---- the wire ----------------------------------------------------------------------------------------------

    fn tag(&mut self) -> u32 {
        self.next_tag = self.next_tag.wrapping_add(1) & 0x7fff_ffff;
        self.next_tag
    }

    fn line_of(&self, nexus: usize, connection: u16) -> Outcome<usize> {
        let is_it = |line: &Line| line.nexus == nexus && line.connection == connection && !line.is_closed;
        self.lines.iter().rposition(is_it).ok_or_else(|| format!("{nexus} has no connection {connection}"))
    }

    fn send_immediate(&mut self, nexus: usize, connection: u16, pdu: Pdu) -> Outcome<()> {
        let cmd_sn = self.model.sessions[nexus].as_ref().map_or(0, |session| session.unassigned());
        self.send(nexus, connection, pdu.set_word(24, cmd_sn))
    }

    fn send(&mut self, nexus: usize, connection: u16, pdu: Pdu) -> Outcome<()> {
        let at = self.line_of(nexus, connection)?;
        self.lines[at].put(pdu)
    }

    /// Log in; the refusal's class and detail, or the connection and its TSIH.
    fn login(
        &mut self,
        nexus: usize,
        connection: u16,
        tsih: u16,
        cmd_sn: u32,
        run: &mut dyn FnMut(Nanos),
    ) -> Outcome<Result<(Line, u16), (u8, u8)>> {
        let stream = self.world.connect(self.portal).map_err(|error| format!("connecting: {error:?}"))?;
        let mut line = Line::new(stream, nexus, connection);
        let mut text = format!(
            "InitiatorName=iqn.2026-11.io.lunaring:player{nexus}\0TargetName={}\0SessionType=Normal\0",
            self.target_name
        );
        if tsih == 0 {
            text += &format!("InitialR2T=Yes\0ImmediateData=No\0MaxConnections={CONNECTIONS_MAX}\0");
        }
        let pdu = Pdu::new(request::LOGIN | request::IMMEDIATE, 0x87)
            .set_bytes(8, &[0x80, 0, 0, 0, 0, nexus as u8])
            .set_bytes(14, &tsih.to_be_bytes())
            .set_word(16, 1)
            .set_bytes(20, &connection.to_be_bytes())
            .set_word(24, cmd_sn)
            .with_data(text.into_bytes());
        line.put(pdu)?;
        for _ in 0..PATIENCE_STEPS {
            run(STEP);
            line.fill();
            self.read_lines()?;
            if let Some(answer) = line.next_pdu()? {
                self.hash = self.hash.wrapping_mul(31) ^ hash_bytes(&answer.bhs);
                if answer.opcode() != response::LOGIN {
                    return Err(format!("a login was answered with {:02x?}", answer.bhs));
                }
                if answer.bhs[36] != 0 {
                    return Ok(Err((answer.bhs[36], answer.bhs[37])));
                }
                if answer.bhs[1] & 0x83 != 0x83 {
                    return Err("a login is not through at once".to_owned());
                }
                line.exp_stat_sn = answer.stat_sn().wrapping_add(1);
                self.logins += 1;
                return Ok(Ok((line, u16::from_be_bytes([answer.bhs[14], answer.bhs[15]]))));
            }
        }
        Err("a login is not answered".to_owned())
    }

    fn read_lines(&mut self) -> Outcome<()> {
        for line in &mut self.lines {
            line.fill();
            while let Some(pdu) = line.next_pdu()? {
                self.hash = self.hash.wrapping_mul(31) ^ hash_bytes(&pdu.bhs);
                line.take(&pdu).map_err(|why| format!("{}, connection {}: {why}", line.nexus, line.connection))?;
            }
        }
        Ok(())
    }

    // ---- checks ------------------------------------------------------------------------------------------------

    /// Run until all has come that must, and see that nothing else does.
    fn settle(&mut self, run: &mut dyn FnMut(Nanos)) -> Outcome<()> {
        for _ in 0..PATIENCE_STEPS {
            run(STEP);
            self.read_lines()?;
            self.compare();
            if self.model.heard.is_empty() && self.model.drops.is_empty() {
                break;
            }
        }
        if let Some(missing) = self.model.heard.first() {
            let come: Vec<_> = self.lines.iter().flat_map(|line| &line.heard).collect();
            return Err(format!("{missing:?} does not come, but {come:?}"));
        }
        if let Some((nexus, connection)) = self.model.drops.first() {
            return Err(format!("{nexus} is not told that connection {connection} was dropped"));
        }
        run(QUIET);
        self.read_lines()?;
        self.compare();
        for line in &self.lines {
            if let Some(more) = line.heard.first() {
                return Err(format!("{}, connection {}: {more:?} is unexpected", line.nexus, line.connection));
            }
            if !line.dropped.is_empty() {
                return Err(format!("{} is told of {:?} for nothing", line.nexus, line.dropped));
            }
            if line.is_closed {
                return Err(format!("{}: connection {} has been closed", line.nexus, line.connection));
            }
        }
        Ok(())
    }

    /// Match what has come with what must.
    fn compare(&mut self) {
        let Self { model, lines, good, .. } = self;
        for line in lines.iter_mut() {
            let Line { nexus, connection, heard, dropped, is_closed, .. } = line;
            heard.retain(|heard| {
                let at = model.heard.iter().position(|expected| *expected == (*nexus, *connection, *heard));
                *good += u32::from(at.is_some() && matches!(heard, Heard::Status { status: 0, .. }));
                at.map(|at| model.heard.swap_remove(at)).is_none()
            });
            dropped.retain(|of| {
                let at = model.drops.iter().position(|expected| *expected == (*nexus, *of));
                at.map(|at| model.drops.swap_remove(at)).is_none()
            });
            if *is_closed {
                let closed = (*nexus, *connection, Heard::Closed);
                if let Some(at) = model.heard.iter().position(|expected| *expected == closed) {
                    model.heard.swap_remove(at);
                    *nexus = usize::MAX;
                }
            }
        }
        lines.retain(|line| line.nexus != usize::MAX);
    }

    /// Now and then: the numbers that a ping's answer carries are exactly the model's.
    fn probe(&mut self, run: &mut dyn FnMut(Nanos)) -> Outcome<()> {
        if self.random.below(3) != 0 || self.lines.is_empty() {
            return Ok(());
        }
        let at = self.random.index(self.lines.len());
        let tag = self.tag();
        let line = &mut self.lines[at];
        let Some(session) = &self.model.sessions[line.nexus] else { return Err("a connection outlives".to_owned()) };
        line.pong = Some((tag, session.next, session.max_cmd_sn()));
        let pdu = Pdu::new(request::NOP_OUT | request::IMMEDIATE, FINAL)
            .set_word(16, tag)
            .set_word(20, NO_TAG)
            .set_word(24, session.unassigned());
        line.put(pdu)?;
        for _ in 0..PATIENCE_STEPS {
            run(STEP);
            self.read_lines()?;
            if self.lines[at].pong.is_none() {
                return Ok(());
            }
        }
        Err("a ping is not answered".to_owned())
    }
}

impl Line {
    fn new(stream: Stream, nexus: usize, connection: u16) -> Line {
        Line {
            stream,
            nexus,
            connection,
            rx: Vec::new(),
            exp_stat_sn: 0,
            max_cmd_sn: None,
            r2ts: Vec::new(),
            heard: Vec::new(),
            pong: None,
            dropped: Vec::new(),
            is_closed: false,
        }
    }

    /// Requests are small and the line is empty: they fit.
    fn put(&mut self, pdu: Pdu) -> Outcome<()> {
        let mut bytes = Vec::new();
        pdu.set_word(28, self.exp_stat_sn).encode(Digests::default(), &mut bytes);
        let mut at = 0;
        while at < bytes.len() {
            match self.stream.write(&bytes[at..]) {
                Ok(written) => at += written,
                // What is lost is seen when reading.
                Err(_) => return Ok(()),
            }
        }
        Ok(())
    }

    fn fill(&mut self) {
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return self.is_closed = true,
                Ok(len) => self.rx.extend_from_slice(&buffer[..len]),
                Err(StreamError::WouldBlock) => return,
                Err(_) => return self.is_closed = true,
            }
        }
    }

    fn next_pdu(&mut self) -> Outcome<Option<Pdu>> {
        let Some((pdu, len)) = Pdu::decode(&self.rx, Digests::default())? else { return Ok(None) };
        self.rx.drain(..len);
        Ok(Some(pdu))
    }

    /// Understand a PDU of the full feature phase.
    fn take(&mut self, pdu: &Pdu) -> Outcome<()> {
        let tag = pdu.initiator_task_tag();
        let numbered = match pdu.opcode() {
            response::R2T => false,
            response::NOP_IN => tag != NO_TAG,
            _ => true,
        };
        if pdu.stat_sn() != self.exp_stat_sn {
            return Err(format!("StatSN {}, expected {}", pdu.stat_sn(), self.exp_stat_sn));
        }
        self.exp_stat_sn = self.exp_stat_sn.wrapping_add(u32::from(numbered));
        let (exp, max) = (pdu.word(28), pdu.word(32));
        if self.max_cmd_sn.is_some_and(|before| super::pdu::is_before(max, before)) {
            return Err(format!("MaxCmdSN goes back to {max}"));
        }
        self.max_cmd_sn = Some(max);
        match pdu.opcode() {
            response::SCSI_RESPONSE if pdu.bhs[2] == 0 => {
                self.heard.push(Heard::Status { tag, status: pdu.bhs[3] });
            }
            response::R2T => {
                self.r2ts.push((tag, pdu.target_transfer_tag()));
                self.heard.push(Heard::R2t { tag });
            }
            response::TASK_MANAGEMENT => self.heard.push(Heard::Management { tag, response: pdu.bhs[2] }),
            response::LOGOUT => self.heard.push(Heard::Logout { tag, response: pdu.bhs[2] }),
            response::NOP_IN if tag == NO_TAG => {
                let pong = Pdu::new(request::NOP_OUT | request::IMMEDIATE, FINAL)
                    .set_word(16, NO_TAG)
                    .set_word(20, pdu.target_transfer_tag())
                    .set_word(24, exp);
                self.put(pong)?;
            }
            response::NOP_IN => match self.pong.take() {
                Some((of, next, last)) if of == tag => {
                    if (exp, max) != (next, last) {
                        return Err(format!("ExpCmdSN {exp} and MaxCmdSN {max}, expected {next} and {last}"));
                    }
                }
                _ => return Err("a ping's answer that nobody asked for".to_owned()),
            },
            response::ASYNC_MESSAGE if pdu.bhs[36] == 2 => {
                self.dropped.push(u16::from_be_bytes([pdu.bhs[38], pdu.bhs[39]]));
            }
            opcode => return Err(format!("unexpected opcode {opcode:#04x}: {:02x?}", pdu.bhs)),
        }
        Ok(())
    }
}
