//! What sessions, their connections and their command numbering must come to (RFC 7143 sections 4.2, 6.3 and 11.5): a
//! small model, written from the standard alone, that says after each event what every connection hears and how the
//! command window stands.
//!
//! **May know:** nothing but the sibling PDU module's arithmetic.

use super::pdu::is_before;

/// Logical units.
pub(super) const UNITS: usize = 2;
/// MaxConnections.
pub(super) const CONNECTIONS_MAX: usize = 4;
/// Commands that a session may have outstanding.
const WINDOW: u32 = 128;

/// SCSI statuses.
pub(super) mod status {
    pub const GOOD: u8 = 0;
    pub const CHECK_CONDITION: u8 = 2;
    pub const RESERVATION_CONFLICT: u8 = 0x18;
    pub const TASK_ABORTED: u8 = 0x40;
}

/// What a command asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    TestUnitReady,
    /// A write that waits for its data.
    Write,
    Reserve,
    Release,
}

/// A command that has been sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Command {
    pub tag: u32,
    pub unit: usize,
    pub kind: Kind,
    /// CID of its connection.
    pub connection: u16,
    /// Another nexus has ended it, and it has not been told yet.
    pub terminated: bool,
}

/// Something that a connection must hear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Status {
        tag: u32,
        status: u8,
    },
    R2t {
        tag: u32,
    },
    Management {
        tag: u32,
        response: u8,
    },
    Logout {
        tag: u32,
        response: u8,
    },
    /// The target closes; what comes before that does not matter when tasks were under way.
    Closed,
}

/// Task management functions (RFC 7143 section 11.5.1).
pub(super) mod function {
    pub const ABORT_TASK_SET: u8 = 2;
    pub const CLEAR_TASK_SET: u8 = 4;
    pub const LOGICAL_UNIT_RESET: u8 = 5;
    pub const TARGET_WARM_RESET: u8 = 6;
    pub const TARGET_COLD_RESET: u8 = 7;
}

/// A session.
#[derive(Clone, Debug)]
pub(super) struct Session {
    pub tsih: u16,
    /// ExpCmdSN.
    pub next: u32,
    pub connections: Vec<u16>,
    /// Ahead of a CmdSN that has not come; `None`: its number counts as received.
    pub early: Vec<(u32, Option<Command>)>,
    /// Writes whose data has not come.
    pub active: Vec<Command>,
    attention: [bool; UNITS],
}

/// All sessions, one for each initiator port at most.
#[derive(Debug)]
pub(super) struct Model {
    pub sessions: Vec<Option<Session>>,
    /// RESERVE (6), by unit.
    reserved: [Option<usize>; UNITS],
    /// What connections must hear: session, CID.
    pub heard: Vec<(usize, u16, Heard)>,
    /// Connections of which some other one of the session must be told that they were dropped.
    pub drops: Vec<(usize, u16)>,
}

impl Session {
    /// The number after all that have been used.
    pub fn unassigned(&self) -> u32 {
        let after = self.early.iter().map(|(sn, _)| sn.wrapping_add(1));
        after.fold(self.next, |highest, sn| if is_before(highest, sn) { sn } else { highest })
    }

    /// MaxCmdSN.
    pub fn max_cmd_sn(&self) -> u32 {
        self.next.wrapping_add(WINDOW - self.active.len() as u32).wrapping_sub(1)
    }

    pub fn has_come(&self, sn: u32) -> bool {
        is_before(sn, self.next) || self.early.iter().any(|(early, _)| *early == sn)
    }
}

impl Model {
    pub fn new(nexuses: usize) -> Model {
        let sessions = (0..nexuses).map(|_| None).collect();
        Model { sessions, reserved: [None; UNITS], heard: Vec::new(), drops: Vec::new() }
    }

    fn session(&mut self, nexus: usize) -> &mut Session {
        self.sessions[nexus].as_mut().expect("the player acts for sessions that live")
    }

    fn hear(&mut self, nexus: usize, connection: u16, heard: Heard) {
        self.heard.push((nexus, connection, heard));
    }

    /// A login with TSIH 0 has been answered: an older session of the port has ended (section 6.3.5).
    pub fn logged_in(&mut self, nexus: usize, tsih: u16, connection: u16, next: u32) {
        self.end_session(nexus);
        self.sessions[nexus] = Some(Session {
            tsih,
            next,
            connections: vec![connection],
            early: Vec::new(),
            active: Vec::new(),
            attention: [true; UNITS],
        });
    }

    /// What a login with the session's TSIH must be answered (sections 6.3.4 and 11.13.5).
    pub fn join(&mut self, nexus: usize, tsih: u16, connection: u16) -> Result<(), (u8, u8)> {
        let Some(session) = self.sessions[nexus].as_mut().filter(|session| session.tsih == tsih) else {
            return Err((2, 0x0a));
        };
        if session.connections.contains(&connection) {
            self.hear(nexus, connection, Heard::Closed);
            self.leave(nexus, connection);
        } else if session.connections.len() == CONNECTIONS_MAX {
            return Err((2, 6));
        }
        self.session(nexus).connections.push(connection);
        Ok(())
    }

    /// A connection and its tasks are gone; what was ahead there has not been acknowledged, and is missing again.
    fn leave(&mut self, nexus: usize, connection: u16) {
        let session = self.session(nexus);
        session.connections.retain(|other| *other != connection);
        session.active.retain(|command| command.connection != connection);
        session.early.retain(|(_, command)| command.is_none_or(|command| command.connection != connection));
    }

    /// All connections of a session close, and with it go its reservations.
    pub fn end_session(&mut self, nexus: usize) {
        let Some(session) = self.sessions[nexus].take() else { return };
        for connection in session.connections {
            self.hear(nexus, connection, Heard::Closed);
        }
        self.free_units(nexus);
    }

    fn free_units(&mut self, nexus: usize) {
        for holder in &mut self.reserved {
            *holder = holder.filter(|holder| *holder != nexus);
        }
    }

    /// The initiator has dropped a connection.
    pub fn dropped(&mut self, nexus: usize, connection: u16) {
        self.leave(nexus, connection);
        if self.session(nexus).connections.is_empty() {
            self.sessions[nexus] = None;
            self.free_units(nexus);
        } else {
            self.drops.push((nexus, connection));
        }
    }

    /// A command is sent with this CmdSN.
    pub fn command(&mut self, nexus: usize, sn: u32, command: Command) {
        if self.session(nexus).has_come(sn) {
            return;
        }
        self.session(nexus).early.push((sn, Some(command)));
        self.advance(nexus);
    }

    /// Deliver what is next, in the order of CmdSN over all connections (section 4.2.2.1).
    fn advance(&mut self, nexus: usize) {
        loop {
            let session = self.session(nexus);
            let next = session.next;
            let Some(at) = session.early.iter().position(|(sn, _)| *sn == next) else { return };
            session.next = next.wrapping_add(1);
            if let (_, Some(command)) = session.early.swap_remove(at) {
                self.deliver(nexus, command);
            }
        }
    }

    fn deliver(&mut self, nexus: usize, command: Command) {
        let Command { tag, unit, kind, connection, .. } = command;
        let is_barred = self.reserved[unit].is_some_and(|holder| holder != nexus);
        let session = self.session(nexus);
        let status = if std::mem::take(&mut session.attention[unit]) {
            status::CHECK_CONDITION
        } else if is_barred && kind != Kind::Release {
            status::RESERVATION_CONFLICT
        } else {
            match kind {
                Kind::Write => {
                    session.active.push(command);
                    return self.hear(nexus, connection, Heard::R2t { tag });
                }
                Kind::Reserve => self.reserved[unit] = Some(nexus),
                Kind::Release if !is_barred => self.reserved[unit] = None,
                Kind::Release | Kind::TestUnitReady => {}
            }
            status::GOOD
        };
        self.hear(nexus, connection, Heard::Status { tag, status });
    }

    /// A write's data is sent.
    pub fn completed(&mut self, nexus: usize, tag: u32) {
        let session = self.session(nexus);
        let at = session.active.iter().position(|command| command.tag == tag).expect("the player knows of it");
        let command = session.active.swap_remove(at);
        let status = if command.terminated { status::TASK_ABORTED } else { status::GOOD };
        self.hear(nexus, command.connection, Heard::Status { tag, status });
    }

    /// ABORT TASK on the connection, of this tag and CmdSN (section 11.5.1; 11.6.1 on its answers).
    pub fn abort_task(&mut self, nexus: usize, connection: u16, tag: u32, referenced: (u32, u32)) {
        let (wanted, sn) = referenced;
        let session = self.session(nexus);
        let is_it = |command: &Command| command.tag == wanted && command.connection == connection;
        let early = session.early.iter_mut().find(|(_, command)| command.as_ref().is_some_and(is_it));
        let unassigned_before = !is_before(sn, session.next);
        let response = if let Some((_, command)) = early {
            *command = None;
            0
        } else if let Some(at) = session.active.iter().position(is_it) {
            session.active.swap_remove(at);
            0
        } else if unassigned_before && is_before(sn, session.unassigned()) {
            match session.early.iter().find(|(early, _)| *early == sn) {
                Some((_, Some(_))) => 1,
                Some((_, None)) => 0,
                None => {
                    session.early.push((sn, None));
                    0
                }
            }
        } else {
            1
        };
        self.hear(nexus, connection, Heard::Management { tag, response });
        self.advance(nexus);
    }

    /// A function for a task set, a unit or the target; no CmdSN is missing.
    pub fn manage(&mut self, nexus: usize, connection: u16, tag: u32, function: u8, unit: usize) {
        let is_target = matches!(function, function::TARGET_WARM_RESET | function::TARGET_COLD_RESET);
        let is_reset = is_target || function == function::LOGICAL_UNIT_RESET;
        let covers = |covered: usize| is_target || covered == unit;
        self.session(nexus).active.retain(|command| !covers(command.unit));
        for (other, session) in self.sessions.iter_mut().enumerate() {
            let Some(session) = session else { continue };
            if other != nexus && function != function::ABORT_TASK_SET {
                session.active.iter_mut().filter(|command| covers(command.unit)).for_each(|c| c.terminated = true);
            }
        }
        for unit in (0..UNITS).filter(|unit| is_reset && covers(*unit)) {
            self.reserved[unit] = None;
            self.sessions.iter_mut().flatten().for_each(|session| session.attention[unit] = true);
        }
        self.hear(nexus, connection, Heard::Management { tag, response: 0 });
        if function == function::TARGET_COLD_RESET {
            (0..self.sessions.len()).for_each(|nexus| self.end_session(nexus));
        }
    }

    /// A Logout Request (section 11.14): its reason, and the CID that it names.
    pub fn logout(&mut self, nexus: usize, connection: u16, tag: u32, reason: u8, named: u16) {
        let is_known = self.session(nexus).connections.contains(&named);
        let response = match reason {
            0 => 0,
            1 if is_known => 0,
            1 => 1,
            _ => 2,
        };
        self.hear(nexus, connection, Heard::Logout { tag, response });
        if reason == 0 {
            self.end_session(nexus);
        } else if response == 0 {
            self.hear(nexus, named, Heard::Closed);
            self.leave(nexus, named);
            if self.session(nexus).connections.is_empty() {
                self.sessions[nexus] = None;
                self.free_units(nexus);
            }
        }
    }
}
