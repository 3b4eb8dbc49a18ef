//! One connection in full feature phase (RFC 7143 at ErrorRecoveryLevel 0 or 1).
//!
//! What its session's connections share of it, the command window, whoever keeps them moves from one to the other
//! ([`Connection::swap_session`]) before it calls anything else here.
//!
//! Sans-IO. Bytes come in by [`Connection::receive`], PDUs go out by the `send_*` methods and
//! [`Connection::poll_transmit`] to a [`super::transmit::Transmit`], time is an argument. Nothing is allocated after
//! [`Connection::new`].
//!
//! The order of calls in one turn: `receive` until the stream is used up (after each PDU `poll_ready` until `None`,
//! each event acted upon before the next is taken, since it may end what the next is about), the `send_*` of whatever
//! has finished, `poll_transmit`. Every `send_*` returns whether its PDU was emitted; `false` means that the sink had
//! no room, nothing has changed, and the call is to be repeated later.
//!
//! `receive.rs` holds the way in, `transmit.rs` the way out, `task_management.rs` what task management refers to;
//! `recovery.rs` what is sent again; this file the state, the requests' life and time.

use super::command_window::CommandWindow;
use super::pdu::{Bhs, LogoutRequest, RejectReason, TextRequest};
use super::receive::{Bulk, Event};
use super::recovery::Recovery;
use super::refusal::Refusal;
use super::session::{ConnectionSlot, Logout, SessionParameters};
use super::task_management::Waiting;
use super::task_table::{Answer, Entry, Phase, Request, TaskTable};
use super::transfer::{R2tSpan, ScsiCommand, Settled, TASKS_MAX, TaskId};

/// Rejects that may wait to be sent. A peer that provokes more without reading them is dropped.
const REJECTS_MAX: usize = 16;

/// What happened on a connection, for observation. All counts since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// PDUs received whole.
    pub pdus_received: u64,
    /// Requests ignored because their CmdSN was outside the window or a duplicate.
    pub requests_ignored: u64,
    /// Data-Out PDUs dropped: nobody wanted them any more.
    pub data_out_dropped: u64,
    /// Data digest errors.
    pub data_digest_errors: u64,
    /// Rejects queued.
    pub rejects: u64,
}

/// The liveness check by NOP-In.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ping {
    /// The initiator was heard lately.
    Quiet,
    /// A NOP-In is to be sent; the time-out runs from when that became due.
    Due { since_ms: u64 },
    /// A NOP-In was sent.
    Sent { since_ms: u64 },
}

/// A logout that we asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LogoutWish {
    None,
    /// The Asynchronous Message is to be sent.
    Due {
        seconds: u16,
        deadline_ms: u64,
    },
    /// It was sent.
    Sent {
        deadline_ms: u64,
    },
}

/// A connection in full feature phase.
pub struct Connection {
    pub(super) parameters: SessionParameters,
    pub(super) window: CommandWindow,
    pub(super) slot: ConnectionSlot,
    pub(super) stat_sn: u32,
    /// The highest ExpStatSN of the initiator.
    pub(super) acknowledged_stat_sn: u32,
    pub(super) last_heard_ms: u64,
    pub(super) next_transfer_tag: u32,
    pub(super) immediates: u32,
    /// Text Requests that are not answered yet: at most one (section 11.10).
    pub(super) texts: u32,
    pub(super) logged_out: bool,
    pub(super) ping: Ping,
    pub(super) logout_wish: LogoutWish,
    pub(super) bulk: Option<Bulk>,
    pub(super) tasks: TaskTable,
    pub(super) answers: AnswerQueue,
    pub(super) rejects: RejectQueue,
    pub(super) waiting: Waiting,
    /// Present above ErrorRecoveryLevel 0.
    pub(super) recovery: Option<Box<Recovery>>,
    /// LUNs, raw, whose tasks were terminated, and of which the initiator is to be told.
    pub(super) terminations: Vec<[u8; 8]>,
    /// CIDs of connections of the session that were dropped, and of which the initiator is to be told.
    pub(super) drops: Vec<u16>,
    pub(super) counters: Counters,
}

impl Connection {
    /// A connection that enters full feature phase now.
    pub fn new(parameters: SessionParameters, now_ms: u64) -> Self {
        assert!((512..1 << 24).contains(&parameters.initiator_max_recv_data_segment_length), "RFC 7143 section 13.12");
        assert!(parameters.max_burst_length >= 512, "RFC 7143 section 13.13");
        assert!(parameters.max_outstanding_r2t >= 1, "RFC 7143 section 13.17");
        Self {
            parameters,
            window: CommandWindow::new(parameters.exp_cmd_sn),
            slot: ConnectionSlot::default(),
            stat_sn: parameters.stat_sn,
            acknowledged_stat_sn: parameters.stat_sn,
            last_heard_ms: now_ms,
            next_transfer_tag: 0,
            immediates: 0,
            texts: 0,
            logged_out: false,
            ping: Ping::Quiet,
            logout_wish: LogoutWish::None,
            bulk: None,
            tasks: TaskTable::new(),
            answers: AnswerQueue::new(),
            rejects: RejectQueue::new(),
            waiting: Waiting::default(),
            recovery: (parameters.error_recovery_level > 0).then(|| Box::new(Recovery::new())),
            terminations: Vec::with_capacity(TASKS_MAX),
            drops: Vec::new(),
            counters: Counters::default(),
        }
    }

    /// The parameters it runs with.
    pub fn parameters(&self) -> &SessionParameters {
        &self.parameters
    }

    /// The initiator has declared its MaxRecvDataSegmentLength anew (RFC 7143 section 13.12), 512..2^24; it holds
    /// from the next PDU on.
    pub fn set_initiator_max_recv_data_segment_length(&mut self, len: u32) {
        assert!((512..1 << 24).contains(&len), "RFC 7143 section 13.12");
        self.parameters.initiator_max_recv_data_segment_length = len;
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The highest StatSN that the initiator has acknowledged, plus one: its ExpStatSN (section 4.2.2.2).
    pub fn acknowledged_stat_sn(&self) -> u32 {
        self.acknowledged_stat_sn
    }

    /// The StatSN of the next status.
    pub fn stat_sn(&self) -> u32 {
        self.stat_sn
    }

    /// Whether the initiator has acknowledged every status before `stat_sn`.
    pub fn has_acknowledged(&self, stat_sn: u32) -> bool {
        !super::command_window::before(self.acknowledged_stat_sn, stat_sn)
    }

    /// Ask the initiator for its ExpStatSN, by a ping.
    pub fn solicit_acknowledgement(&mut self, now_ms: u64) {
        if self.ping == Ping::Quiet {
            self.ping = Ping::Due { since_ms: now_ms };
        }
    }

    /// With TaskReporting=FastAbort: tell the initiator by Asynchronous Message that the tasks of a LUN are terminated
    /// (section 4.2.3.4). `poll_transmit` emits it.
    pub fn announce_termination(&mut self, lun_raw: [u8; 8]) {
        // One message for each LUN with tasks; a peer that takes none has enough waiting.
        if !self.terminations.contains(&lun_raw) && self.terminations.len() < TASKS_MAX {
            self.terminations.push(lun_raw);
        }
    }

    // --- Several connections of one session

    /// It is this one of its session's connections. To be said before anything is received.
    pub fn set_slot(&mut self, slot: ConnectionSlot) {
        self.slot = slot;
    }

    /// Which of its session's connections it is.
    pub fn slot(&self) -> ConnectionSlot {
        self.slot
    }

    /// What the connections of a session share changes hands: the command numbering is the session's (section 4.2.2.1).
    pub fn swap_session(&mut self, other: &mut Connection) {
        core::mem::swap(&mut self.window, &mut other.window);
    }

    /// ExpCmdSN and MaxCmdSN of the session.
    pub fn command_window(&self) -> (u32, u32) {
        (self.window.exp_cmd_sn(), self.window.max_cmd_sn())
    }

    /// The connection that holds the next request of the session's order, when that has come.
    pub fn next_slot(&self) -> Option<ConnectionSlot> {
        self.window.next_slot()
    }

    /// Whether a request here waits until commands before it have come, on whichever connection.
    pub fn waits_for_commands(&self) -> bool {
        self.waiting.any()
    }

    /// The connection has ended and its session goes on: places in the window that its requests took are open again.
    /// Nothing but [`Self::swap_session`] may be called any more.
    pub fn leave_session(&mut self) {
        for (_, entry) in self.tasks.iter().filter(|(_, entry)| !entry.immediate) {
            match entry.phase {
                Phase::Held => self.window.withdraw(entry.cmd_sn),
                Phase::AbortedHeld => self.window.forget(entry.cmd_sn),
                _ => self.window.complete(),
            }
        }
        self.tasks = TaskTable::new();
    }

    /// Tell the initiator by Asynchronous Message that another connection of the session was dropped (section 11.9.1).
    pub fn announce_drop(&mut self, connection_id: u16) {
        if self.drops.len() < crate::limits::CONNECTIONS_PER_SESSION_MAX {
            self.drops.push(connection_id);
        }
    }

    /// Whether a logout that closes this connection has been answered.
    pub fn is_logged_out(&self) -> bool {
        self.logged_out
    }

    // --- What requests say

    /// The command of a task.
    ///
    /// # Panics
    /// When `task` is not a SCSI command that is alive: a fault of the caller.
    #[inline]
    pub fn command(&self, task: TaskId) -> &ScsiCommand {
        scsi(self.tasks.entry(task))
    }

    /// The text request of a task. Panics like [`Self::command`].
    pub fn text_request(&self, task: TaskId) -> TextRequest {
        TextRequest::parse(self.header(task)).expect("parsed when it came")
    }

    /// The logout request of a task. Panics like [`Self::command`].
    pub fn logout(&self, task: TaskId) -> Logout {
        let request = LogoutRequest::parse(self.header(task)).expect("parsed when it came");
        Logout { reason: request.reason, connection_id: request.connection_id }
    }

    /// All SCSI commands that are alive, held ones included, aborted ones not.
    pub fn tasks(&self) -> impl Iterator<Item = (TaskId, &ScsiCommand)> {
        self.tasks.iter().filter_map(|(task, entry)| match (&entry.request, entry.phase) {
            (Request::Scsi(command), Phase::Active | Phase::Held) => Some((task, command)),
            _ => None,
        })
    }

    // --- Data-Out

    /// Want only `len` bytes from the initiator, when the command's CDB asks for less than its Expected Data Transfer
    /// Length. (More is clamped.) To be called before the first R2T.
    pub fn limit_data_out(&mut self, task: TaskId, len: u32) {
        if self.command(task).write {
            self.tasks.data_out_mut(task).limit(len);
        }
    }

    /// The next span for which an R2T may go now: unsolicited data has come in full, fewer than MaxOutstandingR2T are
    /// outstanding, and data is missing that no R2T asks for yet.
    #[inline]
    pub fn want_r2t(&self, task: TaskId) -> Option<R2tSpan> {
        let entry = self.tasks.entry(task);
        if scsi(entry).write && entry.phase == Phase::Active {
            self.tasks.data_out(task).want_r2t(&self.parameters)
        } else {
            None
        }
    }

    /// Whether all data that the command wants has come (true for a command without write data).
    #[inline]
    pub fn data_out_complete(&self, task: TaskId) -> bool {
        !self.command(task).write || self.tasks.data_out(task).complete()
    }

    /// Take no more data for the task, because it will fail: no R2T goes, what comes is dropped. True when data is
    /// still underway: then wait for [`Event::DataOutDrained`] before answering (section 11.17.1 wants the last
    /// Data-Out seen before the response); false: answer at once.
    pub fn discard_data_out(&mut self, task: TaskId) -> bool {
        self.command(task).write && self.tasks.data_out_mut(task).discard()
    }

    // --- Ending requests

    /// The command is aborted: no response will go, what still comes for it is dropped, and its Initiator Task Tag
    /// may be used again. The `TaskId` stays taken until [`Self::release`]. True when Data-Out is still underway
    /// ([`Event::DataOutDrained`] may tell when it has come; initiators often do not send it, so never wait without a
    /// limit).
    pub fn abort(&mut self, task: TaskId) -> bool {
        let entry = self.tasks.entry_mut(task);
        let write = scsi(entry).write;
        entry.phase = match entry.phase {
            Phase::Active => Phase::Aborted,
            Phase::Held => Phase::AbortedHeld,
            phase => unreachable_phase(phase),
        };
        write && self.tasks.data_out_mut(task).discard()
    }

    /// Give an aborted task's `TaskId` back. Its place in the command window opens.
    pub fn release(&mut self, task: TaskId) {
        let Entry { phase, cmd_sn, .. } = *self.tasks.entry(task);
        match phase {
            Phase::Aborted => self.finish(task),
            Phase::AbortedHeld => {
                self.window.forget(cmd_sn);
                self.tasks.remove(task);
            }
            phase => unreachable_phase(phase),
        }
    }

    /// Refuse a request that got an event (Text mostly): a Reject with the request's header is queued, and its task
    /// ends.
    ///
    /// # Errors
    /// [`Refusal::TooManyRejects`].
    ///
    /// # Panics
    /// When `task` is a SCSI command: that ends with a SCSI Response.
    pub fn reject(&mut self, task: TaskId, reason: RejectReason) -> Result<(), Refusal> {
        let header = *self.header(task);
        self.finish(task);
        self.queue_reject(&header, reason)
    }

    /// A request is over: its entry is free and its place in the window opens.
    #[inline]
    pub(super) fn finish(&mut self, task: TaskId) {
        let entry = self.tasks.entry(task);
        debug_assert!(!matches!(entry.phase, Phase::Held | Phase::AbortedHeld));
        if entry.immediate {
            self.immediates -= 1;
        } else {
            self.window.complete();
        }
        if let Request::Other(header) = &entry.request
            && header.opcode() == super::pdu::Opcode::TEXT_REQUEST
        {
            self.texts -= 1;
        }
        self.tasks.remove(task);
    }

    /// The engine answers a request by itself; it leaves with `poll_transmit`.
    pub(super) fn answer(&mut self, task: TaskId, answer: Answer) -> Event {
        self.tasks.entry_mut(task).phase = Phase::Answering(answer);
        self.answers.push(task);
        Event::Handled
    }

    pub(super) fn queue_reject(&mut self, header: &Bhs, reason: RejectReason) -> Result<(), Refusal> {
        self.counters.rejects += 1;
        self.rejects.push(header, reason)
    }

    pub(super) fn header(&self, task: TaskId) -> &Bhs {
        let entry = self.tasks.entry(task);
        match &entry.request {
            Request::Other(header) if entry.phase != Phase::Free => header,
            _ => panic!("the task is not a request of this kind"),
        }
    }

    /// What a command's data has come to, as an event; `Handled` while there is nothing to tell.
    pub(super) fn settle(&mut self, task: TaskId) -> Event {
        if self.tasks.entry(task).phase == Phase::Held {
            return Event::Handled;
        }
        match self.tasks.data_out_mut(task).settle() {
            Some(Settled::Failed(error)) => Event::TaskDataError { task, error },
            Some(Settled::Drained) => Event::DataOutDrained { task },
            None => Event::Handled,
        }
    }

    /// A Target Transfer Tag that is not the reserved one. They differ over 2^32 - 1 uses, so a stale one is
    /// recognised.
    pub(super) fn take_transfer_tag(&mut self) -> u32 {
        let tag = self.next_transfer_tag;
        self.next_transfer_tag = if tag == super::pdu::TAG_RESERVED - 1 { 0 } else { tag + 1 };
        tag
    }

    // --- Time

    /// Bytes came from the initiator at `now_ms`. `receive` says so by itself; to be called when bytes of a bulk
    /// transfer come.
    #[inline]
    pub fn heard(&mut self, now_ms: u64) {
        self.last_heard_ms = now_ms;
        self.ping = Ping::Quiet;
    }

    /// Ask the initiator to log out within `seconds` (an Asynchronous Message that `poll_transmit` emits); when it
    /// has not, `on_time` gives [`Refusal::LogoutTimeout`]. New commands are still served meanwhile.
    pub fn request_logout(&mut self, seconds: u16, now_ms: u64) {
        let deadline_ms = now_ms.saturating_add(u64::from(seconds) * 1000);
        self.logout_wish = LogoutWish::Due { seconds, deadline_ms };
    }

    /// When `on_time` has something to do, if ever. Changes with every call.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        let ping = match self.ping {
            _ if self.parameters.ping_interval_ms == 0 => None,
            Ping::Quiet => Some(self.last_heard_ms.saturating_add(self.parameters.ping_interval_ms)),
            Ping::Due { since_ms } | Ping::Sent { since_ms } => {
                Some(since_ms.saturating_add(self.parameters.ping_timeout_ms))
            }
        };
        let logout = match self.logout_wish {
            LogoutWish::None => None,
            LogoutWish::Due { deadline_ms, .. } | LogoutWish::Sent { deadline_ms } => Some(deadline_ms),
        };
        match (ping, logout) {
            (Some(ping), Some(logout)) => Some(ping.min(logout)),
            (one, other) => one.or(other),
        }
    }

    /// Time has come to `now_ms`: queues a ping when the initiator was silent for long.
    ///
    /// # Errors
    /// [`Refusal::PingTimeout`] or [`Refusal::LogoutTimeout`].
    pub fn on_time(&mut self, now_ms: u64) -> Result<(), Refusal> {
        if let LogoutWish::Due { deadline_ms, .. } | LogoutWish::Sent { deadline_ms } = self.logout_wish
            && now_ms >= deadline_ms
        {
            return Err(Refusal::LogoutTimeout);
        }
        if self.parameters.ping_interval_ms == 0 {
            return Ok(());
        }
        match self.ping {
            Ping::Quiet if now_ms >= self.last_heard_ms.saturating_add(self.parameters.ping_interval_ms) => {
                self.ping = Ping::Due { since_ms: now_ms };
                Ok(())
            }
            Ping::Due { since_ms } | Ping::Sent { since_ms }
                if now_ms >= since_ms.saturating_add(self.parameters.ping_timeout_ms) =>
            {
                Err(Refusal::PingTimeout)
            }
            _ => Ok(()),
        }
    }

    /// The next CmdSN that is served, so that a test's initiator can find back into the window.
    #[cfg(test)]
    pub(super) fn exp_cmd_sn_for_test(&self) -> u32 {
        self.window.exp_cmd_sn()
    }

    /// What must hold between calls.
    #[cfg(test)]
    pub(super) fn check_invariants(&self) {
        self.tasks.check_invariants();
        let (delivered, held) = self.window.counts();
        let mut counted = (0, 0, 0, 0, 0);
        for (task, entry) in self.tasks.iter() {
            match entry.phase {
                _ if entry.immediate => counted.2 += 1,
                Phase::Held | Phase::AbortedHeld => counted.1 += 1,
                _ => counted.0 += 1,
            }
            counted.3 += u32::from(matches!(entry.phase, Phase::Answering(_)));
            if let Request::Other(header) = &entry.request {
                counted.4 += u32::from(header.opcode() == super::pdu::Opcode::TEXT_REQUEST);
            }
            self.tasks.data_out(task).check_invariants();
        }
        assert_eq!(counted, (delivered, held, self.immediates, self.answers.len as u32, self.texts));
        assert!(self.immediates <= crate::limits::IMMEDIATE_REQUESTS_MAX);
        assert!(delivered + held <= crate::limits::COMMANDS_PER_SESSION_MAX);
    }
}

#[inline]
fn scsi(entry: &Entry) -> &ScsiCommand {
    match &entry.request {
        Request::Scsi(command) if entry.phase != Phase::Free => command,
        _ => panic!("the task is not a SCSI command that is alive"),
    }
}

fn unreachable_phase(phase: Phase) -> ! {
    panic!("a task in phase {phase:?} cannot be aborted or released")
}

/// Requests whose answer the engine owes, in order. Each request is here at most once, so it cannot overflow.
pub(super) struct AnswerQueue {
    ring: [TaskId; TASKS_MAX],
    head: usize,
    len: usize,
}

impl AnswerQueue {
    fn new() -> Self {
        Self { ring: [TaskId(0); TASKS_MAX], head: 0, len: 0 }
    }

    fn push(&mut self, task: TaskId) {
        assert!(self.len < TASKS_MAX);
        self.ring[(self.head + self.len) % TASKS_MAX] = task;
        self.len += 1;
    }

    #[inline]
    pub(super) fn front(&self) -> Option<TaskId> {
        (self.len > 0).then(|| self.ring[self.head])
    }

    pub(super) fn pop(&mut self) {
        assert!(self.len > 0);
        self.head = (self.head + 1) % TASKS_MAX;
        self.len -= 1;
    }
}

/// Rejects that wait to be sent, in order.
pub(super) struct RejectQueue {
    ring: Box<[(Bhs, RejectReason)]>,
    head: usize,
    len: usize,
}

impl RejectQueue {
    fn new() -> Self {
        let empty = (Bhs([0; super::pdu::BHS_LEN]), RejectReason(0));
        Self { ring: vec![empty; REJECTS_MAX].into_boxed_slice(), head: 0, len: 0 }
    }

    fn push(&mut self, header: &Bhs, reason: RejectReason) -> Result<(), Refusal> {
        if self.len == REJECTS_MAX {
            return Err(Refusal::TooManyRejects);
        }
        self.ring[(self.head + self.len) % REJECTS_MAX] = (*header, reason);
        self.len += 1;
        Ok(())
    }

    #[inline]
    pub(super) fn front(&self) -> Option<(Bhs, RejectReason)> {
        (self.len > 0).then(|| self.ring[self.head])
    }

    pub(super) fn pop(&mut self) {
        assert!(self.len > 0);
        self.head = (self.head + 1) % REJECTS_MAX;
        self.len -= 1;
    }
}
