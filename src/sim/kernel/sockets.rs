//! Sockets of the simulated kernel: listeners, accepted connections, and their clients' ends.

use std::net::SocketAddr;

use super::{Due, Kernel, Listener, OpKey, Stage, Thing};
use crate::ring::{Fd, Nanos, SendBatch, Window};
use crate::sim::faults::latency;
use crate::sim::history::What;
use crate::sim::network::Pipe;

/// The side that connected.
pub(in crate::sim) const CLIENT: usize = 0;
/// The side that was accepted.
pub(in crate::sim) const SERVER: usize = 1;

/// What a piece of a stream takes when nothing is wrong.
const NETWORK_LATENCY: Nanos = Nanos(20_000);

/// Connections are numbered and never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::sim) struct ConnectionId(pub(super) u64);

/// Why a client's stream does not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// Nothing now; later perhaps.
    #[error("not now")]
    WouldBlock,
    /// The connection was reset.
    #[error("connection reset")]
    Reset,
    /// Nobody listens there, or the backlog is full.
    #[error("connection refused")]
    Refused,
}

#[derive(Debug, Default)]
struct Side {
    /// The descriptor of a ring's side.
    fd: Option<Fd>,
    recv: Option<OpKey>,
    send: Option<OpKey>,
    /// Shut by its owner: no more bytes either way.
    shut: bool,
    /// Closed by its owner.
    closed: bool,
    /// The owner was told of the reset; afterwards receives say end of stream.
    told: bool,
}

/// One connection: `pipes[side]` is what `side` writes.
#[derive(Debug)]
pub(in crate::sim) struct Connection {
    pipes: [Pipe; 2],
    sides: [Side; 2],
    /// The moment after which the next piece of each pipe may arrive.
    order: [Nanos; 2],
    addresses: [SocketAddr; 2],
    is_reset: bool,
}

impl Kernel {
    pub(in crate::sim) fn listen(&mut self, address: SocketAddr) -> Fd {
        self.open_descriptor(Thing::Listener(Listener { address, backlog: Default::default(), accept: None }))
    }

    /// Connect to one of the listeners on `to`, drawn by chance where several share the address.
    pub(in crate::sim) fn connect(&mut self, from: SocketAddr, to: SocketAddr) -> Result<ConnectionId, StreamError> {
        let listens = |thing: &Thing| matches!(thing, Thing::Listener(listener) if listener.address == to);
        let listeners: Vec<i32> =
            self.descriptors.iter().filter(|(_, descriptor)| listens(&descriptor.thing)).map(|(&fd, _)| fd).collect();
        if listeners.is_empty() {
            return Err(StreamError::Refused);
        }
        let chosen = listeners[self.random.index(listeners.len())];
        self.connect_to(from, Fd(chosen))
    }

    /// Connect to one listener.
    pub(in crate::sim) fn connect_to(&mut self, from: SocketAddr, fd: Fd) -> Result<ConnectionId, StreamError> {
        let id = ConnectionId(self.connection_next);
        let backlog_max = self.backlog_max;
        let Some(listener) = self.listener(fd) else { return Err(StreamError::Refused) };
        if listener.backlog.len() >= backlog_max {
            return Err(StreamError::Refused);
        }
        listener.backlog.push_back(id);
        let (to, accept) = (listener.address, listener.accept);
        self.connection_next += 1;
        let capacity = self.pipe_capacity_bytes;
        let connection = Connection {
            pipes: [Pipe::new(capacity), Pipe::new(capacity)],
            sides: Default::default(),
            order: [Nanos(0); 2],
            addresses: [from, to],
            is_reset: false,
        };
        self.connections.insert(id, connection);
        if let Some(key) = accept {
            self.unpark(key);
        }
        Ok(id)
    }

    pub(in crate::sim) fn listener_address(&mut self, fd: Fd) -> Option<SocketAddr> {
        self.listener(fd).map(|listener| listener.address)
    }

    fn listener(&mut self, fd: Fd) -> Option<&mut Listener> {
        match &mut self.descriptor_mut(fd)?.thing {
            Thing::Listener(listener) => Some(listener),
            Thing::File { .. } | Thing::Socket(_) => None,
        }
    }

    fn socket(&self, fd: Fd) -> Option<ConnectionId> {
        match self.descriptor(fd)?.thing {
            Thing::Socket(id) => Some(id),
            Thing::File { .. } | Thing::Listener(_) => None,
        }
    }

    fn connection(&mut self, id: ConnectionId) -> &mut Connection {
        self.connections.get_mut(&id).expect("a connection lives as long as one of its sides")
    }

    /// Local and peer address of an accepted socket.
    pub(in crate::sim) fn addresses(&self, fd: Fd) -> Option<(SocketAddr, SocketAddr)> {
        let connection = self.connections.get(&self.socket(fd)?)?;
        Some((connection.addresses[SERVER], connection.addresses[CLIENT]))
    }

    // ---- a ring's side -----------------------------------------------------------------------------------------

    pub(super) fn start_accept(&mut self, key: OpKey, fd: Fd) {
        match self.listener(fd) {
            Some(listener) => {
                assert!(listener.accept.is_none(), "two accepts at once on {fd:?}");
                listener.accept = Some(key);
                if !listener.backlog.is_empty() {
                    self.schedule_soon(key);
                }
            }
            None => self.schedule_soon(key),
        }
    }

    pub(super) fn accept(&mut self, key: OpKey, fd: Fd) {
        let refused = self.random.happens(self.network_faults.accept_refused);
        let Some(listener) = self.listener(fd) else { return self.finish(key, Err(libc::EBADF)) };
        if listener.backlog.is_empty() {
            return self.park(key);
        }
        if refused {
            return self.finish(key, Err(libc::EMFILE));
        }
        let Some(id) = listener.backlog.pop_front() else { return self.park(key) };
        let more_wait = !listener.backlog.is_empty();
        let fd = self.open_descriptor(Thing::Socket(id));
        self.connection(id).sides[SERVER].fd = Some(fd);
        self.record(What::Connected(fd));
        if self.random.happens(self.network_faults.accept_ends) {
            return self.finish(key, Ok(fd.0 as u32));
        }
        self.finish_one_of_several(key, fd.0 as u32);
        if more_wait { self.schedule_soon(key) } else { self.park(key) }
    }

    pub(super) fn start_recv(&mut self, key: OpKey, fd: Fd) {
        let Some(id) = self.socket(fd) else { return self.schedule_soon(key) };
        let connection = self.connection(id);
        let side = &mut connection.sides[SERVER];
        assert!(side.recv.is_none(), "two receives at once on {fd:?}");
        side.recv = Some(key);
        if connection.is_reset || side.shut || connection.pipes[CLIENT].has_news() {
            self.schedule_soon(key);
        }
    }

    pub(super) fn start_send(&mut self, key: OpKey, fd: Fd) {
        let Some(id) = self.socket(fd) else { return self.schedule_soon(key) };
        let connection = self.connection(id);
        let side = &mut connection.sides[SERVER];
        assert!(side.send.is_none(), "two sends at once on {fd:?}");
        side.send = Some(key);
        if connection.is_reset || side.shut || connection.pipes[SERVER].room() > 0 {
            self.schedule_soon(key);
        }
    }

    /// `None` when there is nothing to receive yet.
    pub(super) fn recv(&mut self, fd: Fd, bulk: Option<&mut Window>, stream: &mut Window) -> Option<Result<u32, i32>> {
        let Some(id) = self.socket(fd) else { return Some(Err(libc::EBADF)) };
        let is_short = self.random.happens(self.network_faults.short_receive);
        let connection = self.connections.get_mut(&id).expect("a socket has its connection");
        if connection.is_reset {
            let was_told = std::mem::replace(&mut connection.sides[SERVER].told, true);
            return Some(if was_told { Ok(0) } else { Err(libc::ECONNRESET) });
        }
        let pipe = &mut connection.pipes[CLIENT];
        if pipe.readable() == 0 {
            return (pipe.has_news() || connection.sides[SERVER].shut).then_some(Ok(0));
        }
        let wanted = stream.len as usize + bulk.as_ref().map_or(0, |window| window.len as usize);
        let mut left = wanted.min(pipe.readable());
        if is_short {
            left = 1 + self.random.index(left);
        }
        let received = left;
        for window in bulk.into_iter().chain([stream]) {
            let target = &mut window.buf[window.at as usize..][..window.len as usize];
            let take = target.len().min(left);
            pipe.read(&mut target[..take]);
            left -= take;
        }
        Some(Ok(received as u32))
    }

    /// Send what comes after the first `sent` bytes. `None` while the batch is not all taken: like the kernel with
    /// MSG_WAITALL, a send waits for room, and answers a short count only sometimes.
    pub(super) fn send(&mut self, key: OpKey, fd: Fd, batch: &SendBatch, sent: usize) -> Option<Result<u32, i32>> {
        let Some(id) = self.socket(fd) else { return Some(Err(libc::EBADF)) };
        let failed = |errno| Some(if sent > 0 { Ok(sent as u32) } else { Err(errno) });
        let connection = self.connection(id);
        if connection.is_reset || connection.sides[SERVER].shut {
            let side = &mut connection.sides[SERVER];
            let was_told = side.shut || (sent == 0 && std::mem::replace(&mut side.told, true));
            return failed(if was_told { libc::EPIPE } else { libc::ECONNRESET });
        }
        if connection.sides[CLIENT].closed {
            self.reset(id);
            return failed(libc::ECONNRESET);
        }
        let room = connection.pipes[SERVER].room();
        if room == 0 {
            return None;
        }
        let mut count = room.min(batch.len_bytes() - sent);
        let is_short = self.random.happens(self.network_faults.short_send);
        if is_short {
            count = 1 + self.random.index(count);
        }
        let (mut skip, mut left) = (sent, count);
        for segment in batch.segments() {
            let from = segment.len().min(skip);
            let take = (segment.len() - from).min(left);
            self.connection(id).pipes[SERVER].write(&segment[from..from + take]);
            skip -= from;
            left -= take;
        }
        self.dispatch(id, SERVER, count);
        let sent = sent + count;
        self.rings[key.ring].slots[key.index as usize].sent = sent;
        (is_short || sent == batch.len_bytes()).then_some(Ok(sent as u32))
    }

    pub(super) fn shutdown(&mut self, fd: Fd) -> Result<u32, i32> {
        let Some(id) = self.socket(fd) else { return Err(libc::EBADF) };
        let connection = self.connection(id);
        if connection.is_reset {
            return Err(libc::ENOTCONN);
        }
        connection.sides[SERVER].shut = true;
        self.end_stream(id, SERVER);
        self.wake_side(id);
        Ok(0)
    }

    pub(super) fn close(&mut self, fd: Fd) -> Result<u32, i32> {
        let own = self.own(fd);
        self.adopted.remove(&fd.0);
        let Some(descriptor) = self.descriptors.remove(&own.0) else { return Err(libc::EBADF) };
        self.close_thing(descriptor.thing, false);
        Ok(0)
    }

    pub(super) fn close_thing(&mut self, thing: Thing, is_power_cut: bool) {
        match thing {
            Thing::File { .. } => {}
            Thing::Listener(listener) => {
                for id in listener.backlog {
                    self.reset(id);
                    self.close_side(id, SERVER);
                }
            }
            Thing::Socket(id) => {
                self.connection(id).sides[SERVER].fd = None;
                if is_power_cut {
                    self.reset(id);
                }
                self.close_side(id, SERVER);
            }
        }
    }

    /// An operation has ended: its socket or listener no longer waits for it.
    pub(super) fn forget_waiter(&mut self, fd: Fd, key: OpKey) {
        if let Some(listener) = self.listener(fd) {
            listener.accept = listener.accept.filter(|&waiting| waiting != key);
        } else if let Some(connection) = self.socket(fd).and_then(|id| self.connections.get_mut(&id)) {
            let side = &mut connection.sides[SERVER];
            side.recv = side.recv.filter(|&waiting| waiting != key);
            side.send = side.send.filter(|&waiting| waiting != key);
        }
    }

    // ---- both sides --------------------------------------------------------------------------------------------

    /// Send `count` just written bytes on their way, in pieces.
    fn dispatch(&mut self, id: ConnectionId, side: usize, count: usize) {
        if self.random.happens(self.network_faults.reset) {
            return self.reset(id);
        }
        let mut left = count;
        while left > 0 {
            let is_split = left > 1 && self.random.happens(self.network_faults.split);
            let piece = if is_split { 1 + self.random.index(left - 1) } else { left };
            let at = self.next_arrival(id, side);
            self.schedule(at, Due::Arrive { connection: id, side, count: piece });
            left -= piece;
        }
    }

    /// A moment after everything that is already under way on this pipe.
    fn next_arrival(&mut self, id: ConnectionId, side: usize) -> Nanos {
        let faults = &self.network_faults;
        let after = latency(&mut self.random, NETWORK_LATENCY, faults.delay, faults.delay_max);
        let now = self.now();
        let order = &mut self.connection(id).order[side];
        *order = Nanos(now.0.max(order.0) + after.0);
        *order
    }

    pub(super) fn bytes_arrive(&mut self, id: ConnectionId, side: usize, count: usize) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.pipes[side].arrive(count);
            self.wake_side(id);
        }
    }

    pub(super) fn end_arrives(&mut self, id: ConnectionId, side: usize) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.pipes[side].arrive_end();
            self.wake_side(id);
        }
    }

    /// Let what is parked on the operation's socket look again.
    pub(super) fn look_again(&mut self, key: OpKey) {
        let fd = self.rings[key.ring].slots[key.index as usize].note.map(|note| note.fd);
        if let Some(id) = fd.and_then(|fd| self.socket(fd)) {
            self.wake_side(id);
        }
    }

    /// Let the ring's parked operations look again.
    fn wake_side(&mut self, id: ConnectionId) {
        let connection = self.connection(id);
        let side = &connection.sides[SERVER];
        let is_over = connection.is_reset || side.shut;
        let recv = side.recv.filter(|_| is_over || connection.pipes[CLIENT].has_news());
        let send = side.send.filter(|_| is_over || connection.pipes[SERVER].room() > 0);
        for key in [recv, send].into_iter().flatten() {
            if self.rings[key.ring].slots[key.index as usize].stage == Stage::Parked {
                self.schedule_soon(key);
            }
        }
    }

    fn end_stream(&mut self, id: ConnectionId, side: usize) {
        let connection = self.connection(id);
        if !connection.pipes[side].is_ended() {
            connection.pipes[side].end();
            let at = self.next_arrival(id, side);
            self.schedule(at, Due::ArriveEnd { connection: id, side });
        }
    }

    pub(in crate::sim) fn reset(&mut self, id: ConnectionId) {
        let connection = self.connection(id);
        if connection.is_reset {
            return;
        }
        connection.is_reset = true;
        connection.pipes.iter_mut().for_each(Pipe::destroy);
        let fd = connection.sides[SERVER].fd.unwrap_or(Fd(-1));
        self.record(What::Reset(fd));
        self.wake_side(id);
    }

    /// One side closes. Bytes that it has not read make the peer see a reset, as TCP does.
    pub(in crate::sim) fn close_side(&mut self, id: ConnectionId, side: usize) {
        let connection = self.connection(id);
        connection.sides[side].closed = true;
        if connection.pipes[1 - side].is_unread() {
            self.reset(id);
        } else if !connection.is_reset {
            self.end_stream(id, side);
        }
        let connection = self.connection(id);
        if connection.sides.iter().all(|side| side.closed) {
            self.connections.remove(&id);
        }
    }

    // ---- a client's side ---------------------------------------------------------------------------------------

    /// Write what there is room for.
    pub(in crate::sim) fn client_write(&mut self, id: ConnectionId, bytes: &[u8]) -> Result<usize, StreamError> {
        let connection = self.connection(id);
        if connection.is_reset {
            return Err(StreamError::Reset);
        }
        if connection.sides[SERVER].closed {
            self.reset(id);
            return Err(StreamError::Reset);
        }
        let count = bytes.len().min(connection.pipes[CLIENT].room());
        if count == 0 {
            return if bytes.is_empty() { Ok(0) } else { Err(StreamError::WouldBlock) };
        }
        connection.pipes[CLIENT].write(&bytes[..count]);
        self.dispatch(id, CLIENT, count);
        if self.connection(id).is_reset { Err(StreamError::Reset) } else { Ok(count) }
    }

    /// Read what has arrived; 0 is the end of the stream.
    pub(in crate::sim) fn client_read(&mut self, id: ConnectionId, into: &mut [u8]) -> Result<usize, StreamError> {
        let connection = self.connection(id);
        if connection.is_reset {
            return Err(StreamError::Reset);
        }
        let pipe = &mut connection.pipes[SERVER];
        if !pipe.has_news() {
            return Err(StreamError::WouldBlock);
        }
        let count = pipe.read(into);
        if count > 0 {
            self.wake_side(id);
        }
        Ok(count)
    }

    /// The client ends its direction; it can still read.
    pub(in crate::sim) fn client_end(&mut self, id: ConnectionId) {
        if !self.connection(id).is_reset {
            self.end_stream(id, CLIENT);
        }
    }
}
