//! The simulated kernel: one clock, one queue of events, and the operations of all rings.
//!
//! An operation is *queued* by submit, *published* by enter, has its effect when its event comes, and is then ready to
//! be reaped. Operations that need something from elsewhere (bytes, room, a connection) wait without an event until
//! that arrives. Which of two possible things happens first is always drawn from the world's seed.
//!
//! **May know:** the ring's types, `mem` through them, and the sibling modules. Nothing of what runs on it.

mod files;
mod sockets;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::disk::FileState;
use super::faults::{FileFaults, NetworkFaults, latency};
use super::history::{History, OpKind, OpNote, What};
use super::random::{Chance, Random};
use crate::ring::{AllocateMode, Completion, Errno, Fd, Nanos, Op, Tag, Token};

pub use files::FileOptions;
pub use sockets::StreamError;
pub(super) use sockets::{CLIENT, Connection, ConnectionId};

/// Where the clock starts; not at zero, which a program may take for "never".
pub(super) const START: Nanos = Nanos(1_000_000_000);

/// What one enter costs in virtual time: small, but a loop that polls cannot stop the clock.
const ENTER_COST: Nanos = Nanos(100);

/// How soon a ring that polls gets its next turn.
const POLL_INTERVAL: Nanos = Nanos(5_000);

/// What an operation that has nothing to wait for takes.
const SYSCALL_LATENCY: Nanos = Nanos(2_000);

/// The first descriptor that this kernel gives out: above those that the test's process has of the real kernel, which
/// may be adopted.
const FD_FIRST: i32 = 10_000;

/// Which operation: ring, slot, and the slot's generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OpKey {
    ring: usize,
    index: u32,
    generation: u32,
}

impl OpKey {
    fn token(self) -> Token {
        Token(u64::from(self.generation) << 32 | u64::from(self.index))
    }

    fn from_token(ring: usize, token: Token) -> OpKey {
        OpKey { ring, index: token.0 as u32, generation: (token.0 >> 32) as u32 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing here.
    Free,
    /// Submitted, not published.
    Queued,
    /// Published and waiting for something without a moment of its own.
    Parked,
    /// Its event has this number.
    Scheduled(u64),
    /// A zero-copy send whose result was given; the event of this number gives its buffers back.
    Releasing(u64, u32),
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    stage: Stage,
    tag: Tag,
    op: Option<Op>,
    note: Option<OpNote>,
    cancelled: bool,
    /// For syncs: the file's changes below this number are covered.
    covers: u64,
    /// For sends: bytes that the socket has taken so far.
    sent: usize,
}

#[derive(Debug)]
pub(super) struct RingState {
    slots: Vec<Slot>,
    free: Vec<u32>,
    queued: VecDeque<OpKey>,
    cancels: Vec<Token>,
    ready: VecDeque<(Completion, OpNote)>,
    deadline: Option<Nanos>,
    woken: Arc<AtomicBool>,
    alive: bool,
}

#[derive(Debug)]
struct FileEntry {
    name: String,
    state: FileState,
    faults: Option<FileFaults>,
}

#[derive(Debug)]
struct Listener {
    address: SocketAddr,
    backlog: VecDeque<ConnectionId>,
    accept: Option<OpKey>,
}

#[derive(Debug)]
enum Thing {
    File { index: usize, options: FileOptions },
    Listener(Listener),
    Socket(ConnectionId),
}

#[derive(Debug)]
struct Descriptor {
    thing: Thing,
    /// Operations submitted on it and not finally completed.
    users: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    /// The operation in this ring and slot has its effect.
    Effect { ring: usize, index: u32 },
    /// Bytes written by `side` arrive.
    Arrive { connection: ConnectionId, side: usize, count: usize },
    /// The end of the stream written by `side` arrives.
    ArriveEnd { connection: ConnectionId, side: usize },
    /// A client asked to be looked at.
    Alarm,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Scheduled {
    at: Nanos,
    lot: u64,
    number: u64,
    due: Due,
}

/// All state of a simulated world.
#[derive(Debug)]
pub(super) struct Kernel {
    now: Nanos,
    pub(super) random: Random,
    events: BinaryHeap<Reverse<Scheduled>>,
    event_number: u64,
    /// Events that have happened.
    happened: u64,
    op_number: u64,
    rings: Vec<RingState>,
    descriptors: BTreeMap<i32, Descriptor>,
    /// Descriptors of the real kernel that stand for simulated ones.
    adopted: BTreeMap<i32, Fd>,
    files: Vec<FileEntry>,
    connections: BTreeMap<ConnectionId, Connection>,
    connection_next: u64,
    pub(super) pipe_capacity_bytes: usize,
    pub(super) backlog_max: usize,
    pub(super) network_faults: NetworkFaults,
    pub(super) file_faults: FileFaults,
    pub(super) history: History,
    /// Whether somebody else advances the clock, so that a waiting ring must return instead.
    pub(super) is_scheduled: bool,
}

impl Kernel {
    pub(super) fn new(seed: u64, history: History) -> Kernel {
        Kernel {
            now: START,
            random: Random::new(seed),
            events: BinaryHeap::new(),
            event_number: 0,
            happened: 0,
            op_number: 0,
            rings: Vec::new(),
            descriptors: BTreeMap::new(),
            adopted: BTreeMap::new(),
            files: Vec::new(),
            connections: BTreeMap::new(),
            connection_next: 0,
            pipe_capacity_bytes: 256 * 1024,
            backlog_max: 128,
            network_faults: NetworkFaults::default(),
            file_faults: FileFaults::default(),
            history,
            is_scheduled: false,
        }
    }

    pub(super) fn now(&self) -> Nanos {
        self.now
    }

    /// How many events have happened.
    pub(super) fn happened(&self) -> u64 {
        self.happened
    }

    pub(super) fn record(&mut self, what: What) {
        self.history.record(self.now, what);
    }

    // ---- rings -------------------------------------------------------------------------------------------------

    pub(super) fn add_ring(&mut self, slots: usize) -> usize {
        assert!(slots > 0 && slots < u32::MAX as usize);
        let empty = |_| Slot {
            generation: 1,
            stage: Stage::Free,
            tag: Tag(0),
            op: None,
            note: None,
            cancelled: false,
            covers: 0,
            sent: 0,
        };
        self.rings.push(RingState {
            slots: (0..slots).map(empty).collect(),
            free: (0..slots as u32).rev().collect(),
            queued: VecDeque::with_capacity(slots),
            cancels: Vec::new(),
            ready: VecDeque::with_capacity(slots),
            deadline: None,
            woken: Arc::new(AtomicBool::new(false)),
            alive: true,
        });
        self.rings.len() - 1
    }

    pub(super) fn waker_flag(&self, ring: usize) -> Arc<AtomicBool> {
        self.rings[ring].woken.clone()
    }

    pub(super) fn is_alive(&self, ring: usize) -> bool {
        self.rings[ring].alive
    }

    pub(super) fn in_flight(&self, ring: usize) -> usize {
        let ring = &self.rings[ring];
        ring.slots.len() - ring.free.len()
    }

    pub(super) fn slots_free(&self, ring: usize) -> usize {
        self.rings[ring].free.len()
    }

    pub(super) fn submit(&mut self, ring: usize, tag: Tag, op: Op) -> Result<Token, Op> {
        self.check_op(&op);
        if !self.rings[ring].alive {
            return Err(op);
        }
        let Some(index) = self.rings[ring].free.pop() else {
            return Err(op);
        };
        let note = self.note_of(ring, &op);
        self.op_number += 1;
        if let Some(descriptor) = self.descriptor_mut(note.fd) {
            descriptor.users += 1;
        }
        let slot = &mut self.rings[ring].slots[index as usize];
        assert_eq!(slot.stage, Stage::Free, "a free slot holds an operation");
        let key = OpKey { ring, index, generation: slot.generation };
        slot.stage = Stage::Queued;
        slot.tag = tag;
        slot.op = Some(op);
        slot.note = Some(note);
        slot.cancelled = false;
        slot.sent = 0;
        self.rings[ring].queued.push_back(key);
        Ok(key.token())
    }

    pub(super) fn cancel(&mut self, ring: usize, token: Token) {
        self.rings[ring].cancels.push(token);
    }

    /// Publish what is queued, let a moment pass, and wait as far as this world allows a ring to wait.
    pub(super) fn enter(&mut self, ring: usize, deadline: Option<Nanos>) {
        self.publish(ring);
        self.now.0 += ENTER_COST.0;
        self.run_due();
        self.rings[ring].deadline = None;
        if self.is_scheduled {
            if !self.is_awake(ring) {
                // Who polls wants another turn soon, but the others and the clock go on.
                self.rings[ring].deadline = deadline.or(Some(Nanos(self.now.0 + POLL_INTERVAL.0)));
            }
        } else if let Some(deadline) = deadline {
            while !self.is_awake(ring) && self.now < deadline {
                match self.next_event_at() {
                    Some(at) if at <= deadline => self.advance_to(at),
                    // Nothing can end a wait without a limit any more; it returns rather than hang.
                    _ if deadline == Nanos(u64::MAX) => break,
                    _ => self.advance_to(deadline),
                }
            }
        }
        self.rings[ring].woken.store(false, Ordering::Release);
    }

    pub(super) fn reap(&mut self, ring: usize) -> Option<Completion> {
        let (completion, note) = self.rings[ring].ready.pop_front()?;
        self.record(What::Reaped(note));
        Some(completion)
    }

    /// The ring is gone, after waiting for the file operations that were in flight; the rest is cancelled.
    pub(super) fn drop_ring(&mut self, ring: usize) {
        for index in 0..self.rings[ring].slots.len() {
            let slot = &self.rings[ring].slots[index];
            let key = OpKey { ring, index: index as u32, generation: slot.generation };
            if matches!(slot.stage, Stage::Scheduled(_)) && slot.op.as_ref().is_some_and(is_file_op) {
                self.effect(key);
            }
        }
        self.settle_in_flight(ring);
        self.rings[ring].alive = false;
    }

    /// Whether a turn of this ring's owner would find something to do.
    fn is_awake(&self, ring: usize) -> bool {
        let ring = &self.rings[ring];
        !ring.ready.is_empty() || ring.woken.load(Ordering::Acquire) || ring.deadline.is_some_and(|at| at <= self.now)
    }

    /// Whether any ring has something to do without time passing.
    pub(super) fn is_any_awake(&self) -> bool {
        (0..self.rings.len()).any(|ring| self.rings[ring].alive && (self.is_awake(ring) || self.has_queued(ring)))
    }

    fn has_queued(&self, ring: usize) -> bool {
        !self.rings[ring].queued.is_empty() || !self.rings[ring].cancels.is_empty()
    }

    // ---- time --------------------------------------------------------------------------------------------------

    fn next_event_at(&self) -> Option<Nanos> {
        self.events.peek().map(|Reverse(next)| next.at)
    }

    /// Go to the next moment at which anything happens or a ring's wait ends. False if there is none.
    pub(super) fn advance(&mut self) -> bool {
        let deadlines = self.rings.iter().filter(|r| r.alive).filter_map(|r| r.deadline);
        let Some(next) = deadlines.filter(|at| at.0 != u64::MAX).chain(self.next_event_at()).min() else {
            return false;
        };
        // Sometimes a little further, so that several things are found done at once.
        let slack = if self.random.below(2) == 0 { self.random.below(20_000) } else { 0 };
        self.advance_to(Nanos(next.0 + slack));
        true
    }

    /// Let some time pass, whether anything happens in it or not.
    pub(super) fn advance_a_little(&mut self) {
        let at = self.now.0 + self.random.below(200_000);
        self.advance_to(Nanos(at));
    }

    fn advance_to(&mut self, at: Nanos) {
        self.run_until(at);
        self.now = self.now.max(at);
    }

    fn run_due(&mut self) {
        self.run_until(self.now);
    }

    fn run_until(&mut self, at: Nanos) {
        while self.next_event_at().is_some_and(|next| next <= at) {
            let Some(Reverse(event)) = self.events.pop() else { break };
            self.now = self.now.max(event.at);
            self.happened += 1;
            self.happen(event);
        }
    }

    fn schedule(&mut self, at: Nanos, due: Due) -> u64 {
        self.event_number += 1;
        let number = self.event_number;
        let lot = self.random.word();
        self.events.push(Reverse(Scheduled { at, lot, number, due }));
        number
    }

    pub(super) fn schedule_alarm(&mut self, after: Nanos) {
        self.schedule(Nanos(self.now.0 + after.0), Due::Alarm);
    }

    fn happen(&mut self, event: Scheduled) {
        match event.due {
            Due::Effect { ring, index } => {
                let slot = &self.rings[ring].slots[index as usize];
                let key = OpKey { ring, index, generation: slot.generation };
                match slot.stage {
                    Stage::Scheduled(number) if number == event.number => self.effect(key),
                    Stage::Releasing(number, sent) if number == event.number => self.finish(key, Ok(sent)),
                    // The operation was rescheduled or ended otherwise; this event is void.
                    _ => {}
                }
            }
            Due::Arrive { connection, side, count } => self.bytes_arrive(connection, side, count),
            Due::ArriveEnd { connection, side } => self.end_arrives(connection, side),
            Due::Alarm => {}
        }
    }

    // ---- operations --------------------------------------------------------------------------------------------

    fn publish(&mut self, ring: usize) {
        while let Some(key) = self.rings[ring].queued.pop_front() {
            let slot = &mut self.rings[ring].slots[key.index as usize];
            assert_eq!((slot.generation, slot.stage), (key.generation, Stage::Queued));
            slot.stage = Stage::Parked;
            if let Some(note) = slot.note {
                self.record(What::Started(note));
            }
            self.start(key);
        }
        for token in std::mem::take(&mut self.rings[ring].cancels) {
            self.cancel_now(OpKey::from_token(ring, token));
        }
    }

    /// Give a published operation its moment, or leave it parked.
    fn start(&mut self, key: OpKey) {
        let slot = &self.rings[key.ring].slots[key.index as usize];
        match slot.op.as_ref().expect("a published operation is there") {
            Op::Accept { listener } => self.start_accept(key, *listener),
            Op::Recv { socket, .. } => self.start_recv(key, *socket),
            Op::Send { socket, .. } => self.start_send(key, *socket),
            Op::Timeout { after } => {
                let at = Nanos(self.now.0.saturating_add(after.0.max(1)));
                self.schedule_effect(key, at);
            }
            Op::Shutdown { .. } | Op::Close { .. } => self.schedule_soon(key),
            &Op::Sync { file } => {
                let covers = self.file_of(file).map_or(0, |file| self.files[file].state.order_next());
                self.rings[key.ring].slots[key.index as usize].covers = covers;
                self.schedule_sync(key, file);
            }
            &Op::Read { file, .. }
            | &Op::Write { file, .. }
            | &Op::Allocate { file, .. }
            | &Op::Share { file, .. }
            | &Op::Truncate { file, .. } => self.schedule_file(key, file),
        }
    }

    fn schedule_effect(&mut self, key: OpKey, at: Nanos) {
        let number = self.schedule(at, Due::Effect { ring: key.ring, index: key.index });
        let slot = &mut self.rings[key.ring].slots[key.index as usize];
        assert_eq!(slot.generation, key.generation, "an operation that has ended is scheduled");
        slot.stage = Stage::Scheduled(number);
    }

    fn schedule_soon(&mut self, key: OpKey) {
        let faults = &self.network_faults;
        let after = latency(&mut self.random, SYSCALL_LATENCY, faults.delay, faults.delay_max);
        self.schedule_effect(key, Nanos(self.now.0 + after.0));
    }

    fn unpark(&mut self, key: OpKey) {
        if self.rings[key.ring].slots[key.index as usize].stage == Stage::Parked {
            self.schedule_soon(key);
        }
    }

    fn park(&mut self, key: OpKey) {
        self.rings[key.ring].slots[key.index as usize].stage = Stage::Parked;
    }

    fn cancel_now(&mut self, key: OpKey) {
        let slot = &mut self.rings[key.ring].slots[key.index as usize];
        if slot.generation != key.generation || slot.cancelled {
            return;
        }
        let is_file = slot.op.as_ref().is_some_and(is_file_op);
        let can_be = match slot.stage {
            Stage::Parked => true,
            // What runs already may be faster than its cancellation; file operations cannot be stopped at all.
            Stage::Scheduled(_) => {
                !is_file && (self.random.below(2) == 0 || matches!(slot.op, Some(Op::Timeout { .. })))
            }
            Stage::Free | Stage::Queued | Stage::Releasing(..) => false,
        };
        if can_be {
            slot.cancelled = true;
            self.schedule_soon(key);
        }
    }

    /// The operation's moment has come.
    fn effect(&mut self, key: OpKey) {
        let slot = &mut self.rings[key.ring].slots[key.index as usize];
        let mut op = slot.op.take().expect("a scheduled operation is there");
        let (covers, sent) = (slot.covers, slot.sent);
        if slot.cancelled {
            slot.op = Some(op);
            return self.finish(key, if sent > 0 { Ok(sent as u32) } else { Err(libc::ECANCELED) });
        }
        let result = match &mut op {
            Op::Accept { listener } => {
                let listener = *listener;
                slot.op = Some(op);
                return self.accept(key, listener);
            }
            Op::Recv { socket, bulk, stream } => self.recv(*socket, bulk.as_mut(), stream),
            Op::Send { socket, batch, .. } => self.send(key, *socket, batch, sent),
            Op::Timeout { .. } => Some(Ok(0)),
            Op::Shutdown { socket } => Some(self.shutdown(*socket)),
            Op::Close { fd } => Some(self.close(*fd)),
            Op::Read { file, offset_bytes, into } => Some(self.read(*file, *offset_bytes, into)),
            Op::Write { file, offset_bytes, from, durable } => Some(self.write(*file, *offset_bytes, from, *durable)),
            Op::Sync { file } => Some(self.sync(*file, covers)),
            Op::Allocate { file, mode, offset_bytes, len_bytes } => {
                Some(self.allocate(*file, *mode, *offset_bytes, *len_bytes))
            }
            Op::Truncate { file, len_bytes } => Some(self.truncate(*file, *len_bytes)),
            &mut Op::Share { from, from_bytes, file, offset_bytes, len_bytes } => {
                Some(self.share((from, from_bytes), (file, offset_bytes), len_bytes))
            }
        };
        let zero_copy = matches!(op, Op::Send { zero_copy: true, .. });
        self.rings[key.ring].slots[key.index as usize].op = Some(op);
        match result {
            None => {
                self.park(key);
                // What it did itself (a reset under its own bytes) may already have ended its wait.
                self.look_again(key);
            }
            Some(Ok(sent)) if zero_copy && sent > 0 => self.sent_zero_copy(key, sent),
            Some(result) => self.finish(key, result),
        }
    }

    /// The operation ends: its completion is ready, its slot free. Ending one twice trips an assertion.
    fn finish(&mut self, key: OpKey, result: Result<u32, i32>) {
        let copied = self.random.happens(self.network_faults.copied);
        let ring = &mut self.rings[key.ring];
        let slot = &mut ring.slots[key.index as usize];
        assert_eq!(slot.generation, key.generation, "an operation has completed twice");
        assert_ne!(slot.stage, Stage::Free, "a free slot completes");
        let op = slot.op.take();
        let note = slot.note.take().expect("an operation in flight has its note");
        slot.stage = Stage::Free;
        slot.generation = slot.generation.wrapping_add(1);
        let copied = copied && matches!(op, Some(Op::Send { zero_copy: true, .. }));
        let result_seen = result.map_err(Errno);
        let completion = Completion { tag: slot.tag, token: key.token(), op, result: result_seen, more: false, copied };
        ring.ready.push_back((completion, note));
        ring.free.push(key.index);
        self.forget_waiter(note.fd, key);
        if let Some(descriptor) = self.descriptor_mut(note.fd) {
            descriptor.users = descriptor.users.checked_sub(1).expect("every operation leaves its descriptor once");
        }
        self.record(What::Finished { op: note, result });
    }

    /// One of several results of an operation that goes on.
    fn finish_one_of_several(&mut self, key: OpKey, result: u32) {
        let ring = &mut self.rings[key.ring];
        let slot = &ring.slots[key.index as usize];
        assert_eq!(slot.generation, key.generation, "an operation has completed twice");
        let note = slot.note.expect("an operation in flight has its note");
        let completion =
            Completion { tag: slot.tag, token: key.token(), op: None, result: Ok(result), more: true, copied: false };
        ring.ready.push_back((completion, note));
        self.record(What::Finished { op: note, result: Ok(result) });
    }

    fn sent_zero_copy(&mut self, key: OpKey, sent: u32) {
        self.finish_one_of_several(key, sent);
        let fd = self.rings[key.ring].slots[key.index as usize].note.map_or(Fd(-1), |note| note.fd);
        self.forget_waiter(fd, key);
        self.schedule_soon(key);
        let slot = &mut self.rings[key.ring].slots[key.index as usize];
        if let Stage::Scheduled(number) = slot.stage {
            slot.stage = Stage::Releasing(number, sent);
        }
    }

    fn note_of(&self, ring: usize, op: &Op) -> OpNote {
        let (kind, fd, offset_bytes, len) = match op {
            Op::Accept { listener } => (OpKind::Accept, *listener, 0, 0),
            Op::Recv { socket, bulk, stream } => {
                let bulk = bulk.as_ref().map_or(0, |window| u64::from(window.len));
                (OpKind::Recv, *socket, 0, bulk + u64::from(stream.len))
            }
            Op::Send { socket, batch, .. } => (OpKind::Send, *socket, 0, batch.len_bytes() as u64),
            Op::Read { file, offset_bytes, into } => (OpKind::Read, *file, *offset_bytes, u64::from(into.len)),
            Op::Write { file, offset_bytes, from, durable } => {
                let kind = if *durable { OpKind::WriteDurable } else { OpKind::Write };
                (kind, *file, *offset_bytes, from.len() as u64)
            }
            Op::Sync { file } => (OpKind::Sync, *file, 0, 0),
            Op::Allocate { file, mode, offset_bytes, len_bytes } => {
                let kind = match mode {
                    AllocateMode::Extend => OpKind::Extend,
                    AllocateMode::ZeroRange => OpKind::ZeroRange,
                    AllocateMode::PunchHole => OpKind::PunchHole,
                };
                (kind, *file, *offset_bytes, *len_bytes)
            }
            Op::Truncate { file, len_bytes } => (OpKind::Truncate, *file, 0, *len_bytes),
            Op::Share { file, offset_bytes, len_bytes, .. } => (OpKind::Share, *file, *offset_bytes, *len_bytes),
            Op::Shutdown { socket } => (OpKind::Shutdown, *socket, 0, 0),
            Op::Close { fd } => (OpKind::Close, *fd, 0, 0),
            Op::Timeout { after } => (OpKind::Timeout, Fd(-1), 0, after.0),
        };
        OpNote { ring, number: self.op_number, kind, fd: self.own(fd), offset_bytes, len }
    }

    /// The caller's duties: a breach is a bug of the program under test, and stops it here.
    fn check_op(&self, op: &Op) {
        match op {
            Op::Recv { bulk, stream, .. } => {
                let fits = |w: &crate::ring::Window| w.at as usize + w.len as usize <= w.buf.len();
                assert!(fits(stream), "the receive window lies outside its buffer");
                assert!(bulk.as_ref().is_none_or(fits), "the bulk window lies outside its buffer");
                let wanted = stream.len + bulk.as_ref().map_or(0, |window| window.len);
                assert!(wanted > 0, "a receive into nothing cannot be told from the end of the stream");
            }
            Op::Send { batch, .. } => assert!(!batch.is_empty(), "an empty batch is sent"),
            Op::Read { into, .. } => {
                assert!(
                    into.at as usize + into.len as usize <= into.buf.len(),
                    "the read window lies outside its buffer"
                );
            }
            Op::Close { fd } => {
                let users = self.descriptor(*fd).map_or(0, |descriptor| descriptor.users);
                assert_eq!(users, 0, "{fd:?} is closed with operations in flight on it");
            }
            _ => {}
        }
    }

    // ---- descriptors -------------------------------------------------------------------------------------------

    /// What a descriptor stands for.
    fn own(&self, fd: Fd) -> Fd {
        self.adopted.get(&fd.0).copied().unwrap_or(fd)
    }

    fn descriptor(&self, fd: Fd) -> Option<&Descriptor> {
        self.descriptors.get(&self.own(fd).0)
    }

    fn descriptor_mut(&mut self, fd: Fd) -> Option<&mut Descriptor> {
        let own = self.own(fd);
        self.descriptors.get_mut(&own.0)
    }

    /// The lowest free number, as the kernel gives: a stale descriptor soon means somebody else.
    fn open_descriptor(&mut self, thing: Thing) -> Fd {
        let free = (FD_FIRST..).find(|fd| !self.descriptors.contains_key(fd));
        let fd = free.expect("a simulation has few descriptors");
        self.descriptors.insert(fd, Descriptor { thing, users: 0 });
        Fd(fd)
    }

    /// From now on operations on `real`, a descriptor of the real kernel, go to `own`.
    pub(super) fn adopt(&mut self, real: Fd, own: Fd) {
        assert!(real.0 < FD_FIRST && own.0 >= FD_FIRST);
        let users = self.descriptor(real).map_or(0, |descriptor| descriptor.users);
        assert_eq!(users, 0, "{real:?} is used anew while operations on what it stood for are in flight");
        self.adopted.insert(real.0, own);
    }

    // ---- the end -----------------------------------------------------------------------------------------------

    /// The process dies: what was published may still have its effect, what was completed stays, its descriptors close.
    pub(super) fn kill(&mut self, is_power_cut: bool) {
        for ring in 0..self.rings.len() {
            if self.rings[ring].alive {
                self.settle_in_flight(ring);
                self.rings[ring].alive = false;
            }
        }
        self.adopted.clear();
        while let Some((_, descriptor)) = self.descriptors.pop_first() {
            self.close_thing(descriptor.thing, is_power_cut);
        }
    }

    fn settle_in_flight(&mut self, ring: usize) {
        for index in 0..self.rings[ring].slots.len() {
            let slot = &mut self.rings[ring].slots[index];
            if slot.stage == Stage::Free {
                continue;
            }
            let was_published = slot.stage != Stage::Queued;
            slot.stage = Stage::Free;
            slot.generation = slot.generation.wrapping_add(1);
            let op = slot.op.take();
            let note = slot.note.take();
            self.rings[ring].free.push(index as u32);
            if let Some(note) = note {
                let generation = self.rings[ring].slots[index].generation.wrapping_sub(1);
                self.forget_waiter(note.fd, OpKey { ring, index: index as u32, generation });
                if let Some(descriptor) = self.descriptor_mut(note.fd) {
                    descriptor.users = descriptor.users.saturating_sub(1);
                }
            }
            if let Some(op) = op.filter(|_| was_published) {
                self.settle_file_op(&op);
            }
        }
        let ring = &mut self.rings[ring];
        ring.queued.clear();
        ring.cancels.clear();
        ring.ready.clear();
        ring.deadline = None;
    }
}

fn is_file_op(op: &Op) -> bool {
    matches!(
        op,
        Op::Read { .. }
            | Op::Write { .. }
            | Op::Sync { .. }
            | Op::Allocate { .. }
            | Op::Truncate { .. }
            | Op::Share { .. }
    )
}

/// A coin for effects that may or may not have happened when everything stopped.
const PERHAPS: Chance = Chance::percent(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "completed twice")]
    fn a_double_completion_is_caught() {
        let mut kernel = Kernel::new(1, History::new(0, false));
        let ring = kernel.add_ring(4);
        let token = kernel.submit(ring, Tag(1), Op::Timeout { after: Nanos(5) }).expect("there is room");
        kernel.enter(ring, Some(Nanos(u64::MAX)));
        assert!(kernel.reap(ring).is_some());
        kernel.finish(OpKey::from_token(ring, token), Ok(0));
    }
}
