//! One TCP connection: its buffers, its receive and its send, and its end.
//!
//! **Teardown is a join.** A connection that ends is shut down, so that what is pending on the socket completes; its
//! tasks are aborted; and only when nothing of it is in flight any more (socket, files, home shard) is it closed and
//! its place reused.

use std::net::SocketAddr;
use std::ops::Range;

use super::core::{Core, Mark};
use super::login::LoginPhase;
use super::output::{Tx, ZERO_COPY_BYTES_MIN};
use super::peer::{LinkKey, PeerMessage};
use super::session::{Session, Work};
use crate::crc32c::Crc32c;
use crate::iscsi::transfer::TaskId;
use crate::limits::{FINISH_TIMEOUT_MS, LOGIN_TIMEOUT_MS, RECEIVE_SEGMENT_LENGTH_MAX, STALL_TIMEOUT_MS};
use crate::mem::{BUFFER_LENGTH_MAX, Buf};
use crate::ring::{Completion, Fd, Op, Ring, Window};
use crate::units::ShardId;

/// The stream buffer of a connection that has not much to say.
pub(crate) const STREAM_BYTES_SMALL: usize = 8 * 1024;

/// The stream buffer of a connection that has filled a small one.
pub(crate) const STREAM_BYTES_LARGE: usize = 128 * 1024;

/// From this much solicited data on, it is received straight into its place.
const PLACED_BYTES_MIN: u64 = 16 * 1024;

/// A command PDU of at least this many bytes is received so that its data can stay where it lands.
const PLACED_COMMAND_BYTES_MIN: usize = 32 * 1024;

/// What its data is aligned to there: what direct I/O asks of memory at most.
const DATA_ALIGNMENT: usize = 4096;

// The data segment, with its padding and digest, fits behind the aligned place.
const _: () = assert!(RECEIVE_SEGMENT_LENGTH_MAX as usize + 8 <= BUFFER_LENGTH_MAX / 2);

/// Opcode of a SCSI Command (RFC 7143 section 11.3).
const SCSI_COMMAND: u8 = 0x01;

/// What one connection may consume in a turn before others get theirs.
pub(crate) const BYTES_PER_TURN_MAX: usize = 1024 * 1024;

/// The reserve of a shard's streams: any PDU fits.
pub(crate) const STREAM_RESERVE_BYTES: usize = 2 * RECEIVE_SEGMENT_LENGTH_MAX as usize;

/// PDUs that one connection may have handled in a turn.
pub(crate) const PDUS_PER_TURN_MAX: u32 = 256;

/// Whether a connection lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkState {
    /// It does.
    Open,
    /// Nothing is received any more; it ends when what is to be sent has left.
    Finishing,
    /// It ends now. The socket is shut down.
    Closing,
    /// Everything has come back; the socket is being closed.
    Closed,
}

/// What the connection is in.
pub(crate) enum Phase {
    Login(Box<LoginPhase>),
    Session(Box<Session>),
}

/// Received bytes that have not been consumed.
pub(crate) struct Stream {
    /// `None` while the kernel fills it.
    pub(crate) buf: Option<Buf>,
    pub(crate) head: usize,
    pub(crate) tail: usize,
    /// Bytes that must be there before anything can be done.
    pub(crate) needed: usize,
    /// The kernel is filling it.
    pub(crate) receiving: bool,
    /// The PDU at the head lies so that its data is aligned, and nothing behind it is received.
    pub(crate) placed: bool,
    /// The buffer is the shard's reserve, to be given back as soon as it is empty.
    pub(crate) reserve: bool,
}

/// Payload that goes straight to its place.
pub(crate) struct Bulk {
    pub(crate) task: TaskId,
    pub(crate) buffer_offset: u32,
    /// Length of the payload.
    pub(crate) len: u32,
    /// Where it goes; `None` while the kernel fills it. A buffer of its own when the task does not want the data.
    pub(crate) buf: Option<Buf>,
    /// Where in the buffer the next byte goes, and how many are missing.
    pub(crate) at: usize,
    pub(crate) missing: usize,
    pub(crate) trailer_len: usize,
    pub(crate) digest: Option<Crc32c>,
    /// The buffer is not the task's: its bytes are dropped, again and again from its start.
    pub(crate) discards: bool,
}

/// A connection.
pub(crate) struct Link {
    pub(crate) key: LinkKey,
    pub(crate) socket: Fd,
    pub(crate) local: SocketAddr,
    pub(crate) peer: SocketAddr,
    pub(crate) state: LinkState,
    pub(crate) phase: Phase,
    pub(crate) stream: Stream,
    pub(crate) bulk: Option<Bulk>,
    pub(crate) tx: Tx,
    /// Operations in flight that belong to it.
    pub(crate) operations: u32,
    /// The socket has been shut down, or is about to be.
    is_shut_down: bool,
    /// In `Core::runnable`.
    pub(crate) queued: bool,
    /// In `Core::starved`.
    pub(crate) starving: bool,
    pub(crate) opened_ms: u64,
    /// When a connection that only has to send its last answer is given up.
    finish_by_ms: Option<u64>,
    /// Its session handle, which the registrar has to hear of when it ends.
    pub(crate) tsih: Option<u16>,
    /// It takes another connection's place, and its login is answered when that one is gone.
    pub(crate) is_waiting: bool,
    /// It ends because its initiator, or the operator, wants that: the session's others need not be told.
    pub(crate) leaves_quietly: bool,
    /// It ends, and its tasks are to be aborted when it has its session's turn.
    aborts_later: bool,
}

impl Link {
    pub(crate) fn new(
        key: LinkKey,
        socket: Fd,
        addresses: (SocketAddr, SocketAddr),
        tx: Tx,
        login: LoginPhase,
        now_ms: u64,
    ) -> Self {
        Self {
            key,
            socket,
            local: addresses.0,
            peer: addresses.1,
            state: LinkState::Open,
            phase: Phase::Login(Box::new(login)),
            stream: Stream { buf: None, head: 0, tail: 0, needed: 48, receiving: false, placed: false, reserve: false },
            bulk: None,
            tx,
            operations: 0,
            is_shut_down: false,
            queued: false,
            starving: false,
            opened_ms: now_ms,
            finish_by_ms: None,
            tsih: None,
            is_waiting: false,
            leaves_quietly: false,
            aborts_later: false,
        }
    }

    /// The session with what its commands need, and the stream beside it.
    pub(crate) fn work<'a, R: Ring>(
        &'a mut self,
        core: &'a mut Core<R>,
    ) -> Option<(Work<'a, R>, &'a mut Stream, &'a mut Option<Bulk>)> {
        let Phase::Session(session) = &mut self.phase else { return None };
        let work = Work {
            session,
            tx: &mut self.tx,
            core,
            key: self.key,
            operations: &mut self.operations,
            state: &mut self.state,
        };
        Some((work, &mut self.stream, &mut self.bulk))
    }

    /// Come back to this connection in the next turn.
    pub(crate) fn queue<R: Ring>(&mut self, core: &mut Core<R>) {
        if !self.queued {
            self.queued = core.runnable.push(self.key.index).is_ok();
            assert!(self.queued, "the queue has a place for every connection");
        }
    }

    /// Come back to this connection when something has been freed.
    pub(crate) fn starve<R: Ring>(&mut self, core: &mut Core<R>) {
        if !self.starving {
            self.starving = core.starved.push(self.key.index).is_ok();
            assert!(self.starving, "the queue has a place for every connection");
        }
    }

    /// Receive more, unless that is underway or there is no use for it.
    pub(crate) fn receive<R: Ring>(&mut self, core: &mut Core<R>) {
        if self.stream.receiving || self.state != LinkState::Open || self.has_enough() {
            return;
        }
        let digest_len = match &self.phase {
            Phase::Session(session) if session.connection.parameters().header_digest => 4,
            _ => 0,
        };
        if self.stream.give_back(&mut core.stream_reserve) {
            // Others may have waited longer for it.
            self.starve(core);
            return core.feed = true;
        }
        if !self.stream.place(&core.io.arena, digest_len)
            && !self.stream.make_room(&core.io.arena)
            && !self.stream.borrow(&mut core.stream_reserve)
        {
            return self.starve(core);
        }
        let bulk = match &mut self.bulk {
            Some(bulk) if bulk.missing > 0 => match bulk.window(&core.io.arena) {
                Some(window) => Some(window),
                // What nobody wants goes through the stream where there is no memory for it.
                None if bulk.discards => None,
                None => return self.starve(core),
            },
            _ => None,
        };
        let len_max = self.stream_bytes_max(bulk.is_some());
        let Some(buf) = self.stream.buf.take() else { return };
        let len = (buf.len() - self.stream.tail).min(len_max) as u32;
        let stream = Window { buf, at: self.stream.tail as u32, len };
        match core.io.submit(Mark::Receive(self.key.index), Op::Recv { socket: self.socket, bulk, stream }) {
            Ok(()) => {
                self.stream.receiving = true;
                self.operations += 1;
            }
            Err(op) => {
                self.take_back(op);
                self.queue(core);
            }
        }
    }

    /// Whether there is something to work on already: then the peer waits, and TCP tells it so.
    fn has_enough(&self) -> bool {
        let held = self.stream.tail - self.stream.head;
        let needed = match &self.bulk {
            Some(bulk) if bulk.missing > 0 => 1,
            Some(bulk) => bulk.trailer_len,
            None => self.stream.needed,
        };
        held >= needed.max(1)
    }

    /// How much to receive into the stream: just a header where placed data will follow, so that it is not copied.
    fn stream_bytes_max(&self, placing: bool) -> usize {
        let Phase::Session(session) = &self.phase else { return usize::MAX };
        let header = 48 + if session.connection.parameters().header_digest { 4 } else { 0 };
        let held = self.stream.tail - self.stream.head;
        if self.stream.placed {
            return self.stream.needed - held;
        }
        match &self.bulk {
            Some(bulk) if placing && session.solicited_bytes > u64::from(bulk.len) => bulk.trailer_len + header,
            Some(_) => usize::MAX,
            None if session.solicited_bytes >= PLACED_BYTES_MIN && held < header => header - held,
            None => usize::MAX,
        }
    }

    /// Buffers of a receive that has completed, or could not be started.
    fn take_back(&mut self, op: Op) {
        if let Op::Recv { bulk, stream, .. } = op {
            self.stream.buf = Some(stream.buf);
            if let (Some(window), Some(bulk)) = (bulk, self.bulk.as_mut()) {
                bulk.buf = Some(window.buf);
            }
        }
    }

    /// A receive has completed. False: the connection is at its end.
    pub(crate) fn received<R: Ring>(&mut self, core: &Core<R>, completion: Completion) -> bool {
        self.stream.receiving = false;
        self.operations -= 1;
        let placed_max = match &completion.op {
            Some(Op::Recv { bulk: Some(window), .. }) => window.len as usize,
            _ => 0,
        };
        if let Some(op) = completion.op {
            self.take_back(op);
        }
        let Ok(received @ 1..) = completion.result else { return false };
        core.stats.bytes_in.add(u64::from(received));
        let placed = (received as usize).min(placed_max);
        if let Some(bulk) = &mut self.bulk {
            bulk.arrived(placed);
        }
        self.stream.tail += received as usize - placed;
        true
    }

    /// Send what has been built, unless a send is underway.
    pub(crate) fn send<R: Ring>(&mut self, core: &mut Core<R>) {
        if matches!(self.state, LinkState::Closing | LinkState::Closed) || self.tx.building.is_empty() {
            return;
        }
        let Some(spare) = self.tx.spare.take() else { return };
        let batch = std::mem::replace(&mut self.tx.building, spare);
        let zero_copy = self.tx.zero_copy && batch.len_bytes() >= ZERO_COPY_BYTES_MIN;
        match core.io.submit(Mark::Send(self.key.index), Op::Send { socket: self.socket, batch, zero_copy }) {
            Ok(()) => {
                self.operations += 1;
                core.stats.pdus_out.add(std::mem::take(&mut self.tx.pdus));
            }
            Err(Op::Send { batch, .. }) => {
                let spare = std::mem::replace(&mut self.tx.building, batch);
                self.tx.spare = Some(spare);
                self.queue(core);
            }
            Err(_) => unreachable!("the ring gives back what it was given"),
        }
    }

    /// A send has completed. False: the connection is at its end.
    pub(crate) fn sent<R: Ring>(&mut self, core: &mut Core<R>, completion: Completion) -> bool {
        if completion.more {
            // The socket has taken the bytes; the batch comes back when the kernel needs its buffers no longer.
            return true;
        }
        self.operations -= 1;
        if completion.copied {
            // Loopback always copies; then plain sends cost less.
            self.tx.zero_copy = false;
        }
        let Some(Op::Send { socket, mut batch, zero_copy }) = completion.op else { return false };
        let ok = match completion.result {
            Ok(sent) => {
                core.stats.bytes_out.add(u64::from(sent));
                batch.advance(sent as usize);
                sent > 0
            }
            Err(_) => false,
        };
        if !ok || matches!(self.state, LinkState::Closing | LinkState::Closed) {
            batch.clear();
            self.tx.spare = Some(batch);
            return ok;
        }
        if batch.is_empty() {
            self.tx.spare = Some(batch);
            return true;
        }
        match core.io.submit(Mark::Send(self.key.index), Op::Send { socket, batch, zero_copy }) {
            Ok(()) => self.operations += 1,
            Err(_) => return false,
        }
        true
    }

    /// End the connection now: shut it down, abort its tasks. It is closed when everything has come back.
    pub(crate) fn close<R: Ring>(&mut self, core: &mut Core<R>) {
        if matches!(self.state, LinkState::Closing | LinkState::Closed) {
            return;
        }
        self.state = LinkState::Closing;
        self.tx.building.clear();
        self.aborts_later = true;
        if !matches!(&self.phase, Phase::Session(session) if session.group.is_some()) {
            self.abort_all(core);
        }
        self.queue(core);
    }

    /// Abort the tasks of a connection that ends. Where it is one of several of its session, it must be its turn.
    pub(crate) fn abort_all<R: Ring>(&mut self, core: &mut Core<R>) {
        if std::mem::take(&mut self.aborts_later)
            && let Some((mut work, _, _)) = self.work(core)
        {
            work.abort_all();
        }
    }

    /// Shut the socket down, so that what is pending on it completes. Tried again while the ring has no place.
    fn shut_down<R: Ring>(&mut self, core: &mut Core<R>) {
        if self.is_shut_down {
            return;
        }
        if core.io.submit(Mark::Shutdown(self.key.index), Op::Shutdown { socket: self.socket }).is_ok() {
            self.is_shut_down = true;
            self.operations += 1;
        } else {
            self.queue(core);
        }
    }

    /// On a connection that ends: payload that will not come in full, once the kernel has let go of its buffer.
    pub(crate) fn abandon_bulk<R: Ring>(&mut self, core: &mut Core<R>) {
        if self.state == LinkState::Open || self.stream.receiving {
            return;
        }
        let Some(bulk) = self.bulk.take().filter(|bulk| !bulk.discards) else { return };
        if let Some((mut work, _, _)) = self.work(core) {
            work.end_operation(bulk.task);
            work.release_if_aborted(bulk.task);
        }
    }

    /// Look at the time: end a login that takes too long, let the session ping. When to look again.
    pub(crate) fn watch_time<R: Ring>(&mut self, core: &mut Core<R>, now_ms: u64) -> Option<u64> {
        match self.state {
            LinkState::Open => {}
            LinkState::Finishing => return self.watch_finish(core, now_ms),
            LinkState::Closing | LinkState::Closed => return None,
        }
        match &mut self.phase {
            Phase::Login(_) => {
                let deadline_ms = self.opened_ms + LOGIN_TIMEOUT_MS;
                if now_ms < deadline_ms {
                    return Some(deadline_ms);
                }
                if let Some(suppressed) = core.notices.allow(now_ms) {
                    let peer = self.peer;
                    tracing::info!(%peer, suppressed, "connection dropped: no login within {LOGIN_TIMEOUT_MS} ms");
                }
                core.stats.connections_dropped.increment();
                self.close(core);
                None
            }
            Phase::Session(session) => match session.connection.on_time(now_ms) {
                Ok(()) => {
                    let stall_ms = session.stalled.as_ref().map(|stalled| stalled.since_ms + STALL_TIMEOUT_MS);
                    let patience_ms = session.patience_ends_ms;
                    let soon_ms = stall_ms.into_iter().chain(patience_ms).min();
                    let deadline_ms = session.connection.next_deadline_ms().into_iter().chain(soon_ms).min();
                    if session.connection.wants_transmit() || soon_ms.is_some_and(|soon_ms| soon_ms <= now_ms) {
                        self.queue(core);
                    }
                    deadline_ms
                }
                Err(refusal) => {
                    if let Some(suppressed) = core.notices.allow(now_ms) {
                        tracing::info!(peer = %self.peer, suppressed, %refusal, "connection dropped");
                    }
                    core.stats.connections_dropped.increment();
                    self.close(core);
                    None
                }
            },
        }
    }

    /// A peer that does not take its last answer is not waited for much longer.
    fn watch_finish<R: Ring>(&mut self, core: &mut Core<R>, now_ms: u64) -> Option<u64> {
        let deadline_ms = *self.finish_by_ms.get_or_insert(now_ms + FINISH_TIMEOUT_MS);
        if now_ms < deadline_ms {
            return Some(deadline_ms);
        }
        core.stats.connections_dropped.increment();
        self.close(core);
        None
    }

    /// What the session reserved by RESERVE commands is free. False: not now.
    fn nexus_is_lost<R: Ring>(&self, core: &mut Core<R>) -> bool {
        let Phase::Session(session) = &self.phase else { return true };
        match &session.nexus {
            Some(nexus) => core.lose_nexus(nexus, session.luns.iter().map(|unit| unit.disk)),
            None => true,
        }
    }

    /// Go on with the end of the connection, and with the `last` one with the end of its session. True when it is gone
    /// and its place can be reused.
    pub(crate) fn wind_up<R: Ring>(&mut self, core: &mut Core<R>, last: bool) -> bool {
        match self.state {
            LinkState::Open => false,
            LinkState::Finishing => {
                if self.tx.is_idle() {
                    self.leaves_quietly = true;
                    self.close(core);
                }
                false
            }
            LinkState::Closing => {
                self.shut_down(core);
                if self.is_shut_down && self.operations == 0 {
                    if core.io.submit(Mark::Close(self.key.index), Op::Close { fd: self.socket }).is_ok() {
                        self.operations += 1;
                        self.state = LinkState::Closed;
                    } else {
                        self.queue(core);
                    }
                }
                false
            }
            LinkState::Closed if self.operations > 0 => false,
            LinkState::Closed => match self.tsih {
                None => true,
                Some(tsih) => {
                    let message = PeerMessage::ConnectionEnded { tsih, shard: core.id, link: self.key };
                    let told = (!last || self.nexus_is_lost(core)) && core.mail.post(ShardId(0), message).is_ok();
                    if told {
                        self.tsih = None;
                    } else {
                        self.queue(core);
                    }
                    told
                }
            },
        }
    }
}

impl Stream {
    /// The bytes that have not been consumed.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.buf.as_ref().map_or(&[], |buf| &buf[self.head..self.tail])
    }

    /// A part of them, counted from the head.
    pub(crate) fn part(&self, range: Range<usize>) -> &[u8] {
        &self.bytes()[range]
    }

    /// Begin with bytes that were received elsewhere.
    pub(crate) fn fill(&mut self, buf: Buf, len: usize) {
        self.buf = Some(buf);
        self.head = 0;
        self.tail = len;
    }

    /// Bytes have been dealt with.
    pub(crate) fn consume(&mut self, len: usize) {
        self.head += len;
        assert!(self.head <= self.tail, "only what is there can be consumed");
        if self.head == self.tail {
            self.head = 0;
            self.tail = 0;
        }
    }

    /// For a command with much immediate data at the head, of which the header is here: move to a buffer in which its
    /// data begins at an aligned place, so that the data need not be copied again. False: nothing to do, or no memory.
    fn place(&mut self, arena: &crate::mem::Arena, digest_len: usize) -> bool {
        if self.placed {
            return true;
        }
        let held = self.tail - self.head;
        let bytes = self.bytes();
        let (Some(&opcode), Some(&ahs_words), Some(length)) = (bytes.first(), bytes.get(4), bytes.get(20..24)) else {
            return false;
        };
        let header_len = 48 + usize::from(ahs_words) * 4 + digest_len;
        if self.reserve || self.needed < PLACED_COMMAND_BYTES_MIN || opcode & 0x3f != SCSI_COMMAND || held < header_len
        {
            return false;
        }
        let expected = length.iter().fold(0usize, |value, &byte| value << 8 | usize::from(byte));
        // A window of the largest class would leave no room in front; such a command is worked off in smaller ones.
        let window = if expected <= BUFFER_LENGTH_MAX - DATA_ALIGNMENT { expected } else { BUFFER_LENGTH_MAX / 2 };
        let len = DATA_ALIGNMENT + window.max(self.needed - header_len);
        let start = DATA_ALIGNMENT - header_len;
        let Some(mut placed) = arena.take(len) else { return false };
        placed[start..start + held].copy_from_slice(bytes);
        self.buf = Some(placed);
        self.head = start;
        self.tail = start + held;
        self.placed = true;
        true
    }

    /// The data of the PDU at the head, which is all there is, if it lies where it can stay; the stream is empty then.
    #[inline]
    pub(crate) fn take_placed(&mut self, len: usize, data: &Range<usize>, is_wanted: bool) -> Option<Buf> {
        if self.placed { self.take_from_place(len, data, is_wanted) } else { None }
    }

    fn take_from_place(&mut self, len: usize, data: &Range<usize>, is_wanted: bool) -> Option<Buf> {
        self.placed = false;
        let fits =
            is_wanted && self.head + data.start == DATA_ALIGNMENT && self.tail - self.head == len && !data.is_empty();
        if !fits {
            return None;
        }
        let payload = self.buf.take()?.split_off(DATA_ALIGNMENT);
        self.head = 0;
        self.tail = 0;
        Some(payload)
    }

    /// Make sure that `needed` bytes fit, and that some can be received. False: no memory.
    fn make_room(&mut self, arena: &crate::mem::Arena) -> bool {
        let held = self.tail - self.head;
        let wanted = self.needed.max(held + 1).max(STREAM_BYTES_SMALL);
        let Some(buf) = &mut self.buf else {
            let fresh = arena.take(wanted);
            self.buf = fresh;
            return self.buf.is_some();
        };
        if self.reserve {
            // It is as long as anything can need.
            buf.copy_within(self.head..self.tail, 0);
            self.head = 0;
            self.tail = held;
            return self.tail < buf.len();
        }
        let filled = self.tail == buf.len();
        let grown = if filled && buf.len() < STREAM_BYTES_LARGE { STREAM_BYTES_LARGE } else { wanted };
        // A buffer that a burst has left behind goes back when it is empty and a small one will do.
        let oversized = held == 0 && buf.len() > STREAM_BYTES_LARGE && wanted <= STREAM_BYTES_LARGE;
        if grown > buf.len() || oversized {
            if let Some(mut larger) = arena.take(grown) {
                larger[..held].copy_from_slice(&buf[self.head..self.tail]);
                *buf = larger;
                self.head = 0;
                self.tail = held;
                return true;
            }
            if wanted > buf.len() {
                return false;
            }
        }
        if self.head > 0 && (self.head + wanted > buf.len() || filled) {
            buf.copy_within(self.head..self.tail, 0);
            self.head = 0;
            self.tail = held;
        }
        self.tail < buf.len()
    }
}

/// The shard's reserve: one stream at a time goes on with it when there is no memory.
impl Stream {
    /// Go on in the reserve, if it is there. False: it is not.
    fn borrow(&mut self, reserve: &mut Option<Buf>) -> bool {
        let Some(mut buf) = reserve.take() else { return false };
        let held = self.tail - self.head;
        buf[..held].copy_from_slice(self.bytes());
        self.buf = Some(buf);
        self.head = 0;
        self.tail = held;
        self.reserve = true;
        true
    }

    /// Give the reserve back, if it is empty or must be. True when it was given back.
    pub(crate) fn give_back(&mut self, reserve: &mut Option<Buf>) -> bool {
        if !self.reserve || self.head < self.tail {
            return false;
        }
        self.reserve = false;
        *reserve = self.buf.take();
        self.head = 0;
        self.tail = 0;
        true
    }
}

impl Bulk {
    /// The part of the buffer that is to be filled next.
    fn window(&mut self, arena: &crate::mem::Arena) -> Option<Window> {
        if self.discards {
            self.at = 0;
            if self.buf.is_none() {
                self.buf = arena.take(STREAM_BYTES_SMALL);
            }
        }
        let buf = self.buf.take()?;
        let len = self.missing.min(buf.len() - self.at);
        Some(Window { buf, at: self.at as u32, len: len as u32 })
    }

    /// Bytes have been received into the window.
    fn arrived(&mut self, len: usize) {
        if let (Some(digest), Some(buf)) = (&mut self.digest, &self.buf) {
            digest.update(&buf[self.at..self.at + len]);
        }
        self.at += len;
        self.missing -= len;
    }

    /// Bytes that were in the stream already.
    pub(crate) fn take(&mut self, bytes: &[u8]) {
        if let Some(digest) = &mut self.digest {
            digest.update(bytes);
        }
        if let (false, Some(buf)) = (self.discards, &mut self.buf) {
            buf[self.at..self.at + bytes.len()].copy_from_slice(bytes);
            self.at += bytes.len();
        }
        self.missing -= bytes.len();
    }
}
