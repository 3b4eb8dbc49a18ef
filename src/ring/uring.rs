//! The ring of the Linux kernel.

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::{FromRawFd, OwnedFd};

use io_uring::{opcode, types};

use super::fixed::FixedBuffers;
use super::kernel::{Kernel, KernelWait};
use super::prepare::{self, Headers};
use super::probe::{Features, RingError};
use super::sharing::{SharedRange, Sharing};
use super::slots::{self, Entry, Slots};
use super::waker::UringWaker;
use super::{Completion, Errno, Fd, Nanos, Op, Ring, Tag, Token, Wait, file, net};
use crate::bounded::Queue;
use crate::mem::Arena;

/// Completions taken from the kernel's queue at a time.
const TAKE_COUNT: usize = 64;
/// How long a dropped ring waits for what is in flight: longer than any disk that is not broken.
const DRAIN_LIMIT: Nanos = Nanos(10_000_000_000);
/// How long it waits for zero-copy sends alone, whose peers may never answer.
const DRAIN_HELD_LIMIT: Nanos = Nanos(1_000_000_000);

const KEY_WAKE: u64 = slots::internal_key(0);
const KEY_CANCEL: u64 = slots::internal_key(1);

/// How large a ring is, and what it may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UringConfig {
    /// Operations in flight at most; up to 65536.
    pub slots: u32,
    /// Operations that can be queued between two `enter`s without a system call; a power of two up to 4096.
    pub submissions: u32,
    /// What [`Features::probe`] found, once for all rings.
    pub features: Features,
}

/// A ring over io_uring. Stays on the thread that made it.
pub struct UringRing {
    // First, so that it is closed before the memory it works on goes.
    kernel: Kernel,
    slots: Slots,
    /// One for each slot.
    headers: Box<[Headers]>,
    fixed: FixedBuffers,
    features: Features,
    /// Completions taken from the kernel, not yet given out: `taken[at .. end]`.
    taken: [Entry; TAKE_COUNT],
    taken_at: usize,
    taken_end: usize,
    /// Operations that the ring carries out itself, once those before them are submitted.
    own: Queue<Token>,
    /// And their completions.
    own_done: Queue<Entry>,
    /// Operations that wait on threads of their own.
    sharing: Sharing,
    /// Cancellations that found no room in the submission queue.
    cancels: Queue<Token>,
    waker: UringWaker,
    /// Where the kernel puts the eventfd's count.
    wake_count: Box<u64>,
    /// The eventfd is being read.
    wake_armed: bool,
}

impl UringRing {
    /// Make a ring on this thread, which alone may use it. The chunks of `arena` become fixed buffers when file
    /// operations use them; other arenas' buffers work too, at a higher price.
    pub fn new(config: UringConfig, arena: &Arena) -> Result<UringRing, RingError> {
        let UringConfig { slots, submissions, features } = config;
        assert!(slots > 0 && slots <= slots::SLOTS_MAX, "a ring of {slots} slots");
        assert!(submissions.is_power_of_two() && submissions <= 4096, "a queue of {submissions} submissions");
        // Each slot has one completion outstanding, but for multishots and what the ring itself asks for. Should it
        // overflow all the same, the kernel keeps the rest and `Kernel::has_work` says so.
        let kernel = Kernel::new(&features, submissions, (slots + submissions).next_power_of_two().min(1 << 16))?;
        let waker = UringWaker::new().map_err(|error| RingError::System {
            what: "eventfd",
            errno: Errno(error.raw_os_error().unwrap_or(libc::EIO)),
        })?;
        Ok(UringRing {
            fixed: FixedBuffers::new(arena, features.fixed_buffers, &kernel.submitter()),
            kernel,
            slots: Slots::new(slots),
            headers: std::iter::repeat_with(Headers::new).take(slots as usize).collect(),
            features,
            taken: [Entry { user_data: 0, result: 0, flags: 0 }; TAKE_COUNT],
            taken_at: 0,
            taken_end: 0,
            own: Queue::new(slots as usize),
            own_done: Queue::new(slots as usize),
            sharing: Sharing::new(),
            cancels: Queue::new(slots as usize),
            waker,
            wake_count: Box::new(0),
            wake_armed: false,
        })
    }

    /// What this ring uses.
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// Have the kernel read the eventfd, so that a write to it is a completion. False while there is no room.
    fn arm_wake(&mut self) -> bool {
        if self.wake_armed {
            return true;
        }
        if !self.kernel.make_room() {
            return false;
        }
        let count: *mut u64 = &raw mut *self.wake_count;
        let fd = types::Fd(self.waker.eventfd());
        let entry = opcode::Read::new(fd, count.cast(), size_of::<u64>() as u32).build().user_data(KEY_WAKE);
        // SAFETY: the count is boxed, used by nothing else while `wake_armed`, and outlives its completion: `drop`
        // waits for that or leaks the box.
        unsafe { self.kernel.push(&entry) };
        self.wake_armed = true;
        true
    }

    fn push_cancel(&mut self, user_data: u64) -> bool {
        if !self.kernel.make_room() {
            return false;
        }
        let entry = opcode::AsyncCancel::new(user_data).build().user_data(KEY_CANCEL);
        // SAFETY: a cancellation names no memory.
        unsafe { self.kernel.push(&entry) };
        true
    }

    /// Submit the cancellations that had to wait for room.
    fn push_cancels(&mut self) {
        while let Some(token) = self.cancels.front().copied() {
            if self.slots.op(token).is_some() && !self.push_cancel(token.0) {
                return;
            }
            self.cancels.pop();
        }
    }

    /// Whether a completion brought a new socket.
    #[inline]
    fn is_accept(&self, completion: &Completion) -> bool {
        let op = if completion.more { self.slots.op(completion.token) } else { completion.op.as_ref() };
        matches!(op, Some(Op::Accept { .. }))
    }

    /// Carry out what the kernel would not do better.
    fn run_own(&mut self) {
        while let Some(token) = self.own.pop() {
            let result = match self.slots.op(token).expect("an operation of the ring's own is in flight") {
                Op::Shutdown { socket } => net::shutdown(*socket),
                Op::Truncate { file, len_bytes } => file::truncate(*file, *len_bytes),
                &Op::Share { from, from_bytes, file, offset_bytes, len_bytes } => {
                    let range = SharedRange { from, from_bytes, file, offset_bytes, len_bytes };
                    match self.sharing.gather(token, range) {
                        Ok(()) => continue,
                        Err(errno) => errno,
                    }
                }
                op => unreachable!("{op:?} is the kernel's"),
            };
            let entry = Entry { user_data: token.0, result, flags: 0 };
            self.own_done.push(entry).expect("there are as many places as slots");
        }
        let Self { sharing, own_done, waker, .. } = self;
        sharing.begin(waker, |token, result| {
            let entry = Entry { user_data: token.0, result, flags: 0 };
            own_done.push(entry).expect("there are as many places as slots");
        });
    }

    fn is_ready(&mut self) -> bool {
        !self.own_done.is_empty() || self.sharing.is_ready() || self.taken_at < self.taken_end || self.kernel.ready()
    }

    #[inline]
    fn next_entry(&mut self) -> Option<Entry> {
        if let Some(entry) = self.own_done.pop().or_else(|| self.sharing.take()) {
            return Some(entry);
        }
        if self.taken_at == self.taken_end {
            self.taken_at = 0;
            self.taken_end = self.kernel.take(&mut self.taken);
        }
        let entry = self.taken[..self.taken_end].get(self.taken_at).copied();
        self.taken_at += usize::from(entry.is_some());
        entry
    }

    /// One of the ring's own submissions has completed.
    #[cold]
    fn complete_internal(&mut self, entry: Entry) {
        match entry.user_data {
            KEY_WAKE => {
                let expected = [size_of::<u64>() as i32, -libc::ECANCELED, -libc::EINTR];
                assert!(expected.contains(&entry.result), "reading the eventfd: {entry:?}");
                self.wake_armed = false;
            }
            // Whether it came in time shows in the operation's own completion.
            KEY_CANCEL => {}
            key => panic!("a completion that nobody asked for, key {key:#x}"),
        }
    }

    /// Cancel everything and wait until the kernel has let go of it all, but not for ever.
    fn drain(&mut self) -> bool {
        let start = self.now().0;
        let tokens: Vec<Token> = self.slots.tokens().collect();
        for token in tokens {
            self.cancel(token);
        }
        let mut wake_cancelled = !self.wake_armed;
        loop {
            wake_cancelled = wake_cancelled || self.push_cancel(KEY_WAKE);
            self.push_cancels();
            self.run_own();
            while let Some(completion) = self.reap() {
                if let (Ok(socket), true) = (completion.result, self.is_accept(&completion)) {
                    // SAFETY: the kernel has just made this socket for us, and nobody else has heard of it.
                    drop(unsafe { OwnedFd::from_raw_fd(socket.cast_signed()) });
                }
            }
            // Those on threads of their own have no memory of ours.
            if self.slots.in_flight() == self.sharing.in_flight() && !self.wake_armed {
                return true;
            }
            let limit = if self.slots.only_held() { DRAIN_HELD_LIMIT } else { DRAIN_LIMIT };
            let (now, end) = (self.now().0, start.saturating_add(limit.0));
            let wait = KernelWait::For(Nanos(end.saturating_sub(now).min(100_000_000)));
            if now >= end || self.kernel.enter(wait).is_err() {
                return false;
            }
        }
    }
}

impl Drop for UringRing {
    fn drop(&mut self) {
        if self.drain() {
            return;
        }
        // The kernel may still write to the buffers: leak them with all that it may look at. The buffers in turn keep
        // the arena's mapping.
        Box::leak(std::mem::replace(&mut self.slots, Slots::new(1)).into());
        Box::leak(std::mem::take(&mut self.headers));
        Box::leak(std::mem::take(&mut self.wake_count));
    }
}

impl fmt::Debug for UringRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("UringRing");
        out.field("in_flight", &self.slots.in_flight()).field("slots_free", &self.slots.free());
        out.field("features", &self.features).finish()
    }
}

impl Ring for UringRing {
    type Waker = UringWaker;

    #[inline]
    fn submit(&mut self, tag: Tag, op: Op) -> Result<Token, Op> {
        if self.slots.free() == 0 || !self.kernel.make_room() {
            return Err(op);
        }
        let lifetime = prepare::lifetime(&op, &self.features);
        let (token, op) = self.slots.insert(tag, op, lifetime);
        let headers = &mut self.headers[token.0 as u32 as usize];
        if prepare::may_hang(op) {
            self.kernel.allow_file_workers();
        }
        let submitter = self.kernel.submitter();
        match prepare::entry(op, headers, &mut self.fixed, &self.features, &submitter) {
            Some(entry) => {
                // SAFETY: the entry names memory of the operation's buffers, which the slot now owns and gives back
                // only on the last completion, and of the slot's headers, which nothing else touches until then. None
                // of it moves: buffers lie in the arena, a batch's ranges and the headers in boxes. `drop` waits for
                // the kernel or leaks all three.
                unsafe { self.kernel.push(&entry.user_data(token.0)) };
            }
            None => self.own.push(token).expect("there are as many places as slots"),
        }
        Ok(token)
    }

    fn cancel(&mut self, token: Token) {
        let cancellable = match self.slots.op(token) {
            None | Some(Op::Shutdown { .. } | Op::Share { .. }) => false,
            Some(Op::Truncate { .. }) => self.features.truncate,
            Some(_) => true,
        };
        if !cancellable || self.push_cancel(token.0) || self.cancels.iter().any(|waiting| *waiting == token) {
            return;
        }
        self.cancels.retain(|waiting| self.slots.op(*waiting).is_some());
        self.cancels.push(token).expect("no more operations can be cancelled than are in flight");
    }

    fn enter(&mut self, wait: Wait) -> Result<(), RingError> {
        self.push_cancels();
        if !self.own.is_empty() {
            self.kernel.enter(KernelWait::None)?;
            self.run_own();
        }
        let timeout = match wait {
            Wait::Poll => KernelWait::None,
            _ if self.is_ready() || !self.arm_wake() => KernelWait::None,
            Wait::Forever => KernelWait::Completion,
            Wait::Until(moment) => match moment.0.saturating_sub(self.now().0) {
                0 => KernelWait::None,
                left => KernelWait::For(Nanos(left)),
            },
        };
        if timeout == KernelWait::None || !self.waker.sleep() {
            self.waker.pass();
            return if self.kernel.has_work() { self.kernel.enter(KernelWait::None) } else { Ok(()) };
        }
        let result = self.kernel.enter(timeout);
        self.waker.rise();
        result
    }

    #[inline]
    fn reap(&mut self) -> Option<Completion> {
        loop {
            let entry = self.next_entry()?;
            if slots::internal_kind(entry.user_data).is_some() {
                self.complete_internal(entry);
                continue;
            }
            let Some(completion) = self.slots.complete(entry) else { continue };
            if let (Ok(socket), true) = (completion.result, self.is_accept(&completion)) {
                net::send_at_once(Fd(socket.cast_signed()));
            }
            return Some(completion);
        }
    }

    fn now(&self) -> Nanos {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the time is ours to fill.
        let result = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
        assert!(result == 0, "every Linux has a monotonic clock");
        Nanos(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
    }

    fn waker(&self) -> UringWaker {
        self.waker.clone()
    }

    fn in_flight(&self) -> usize {
        self.slots.in_flight()
    }

    fn slots_free(&self) -> usize {
        self.slots.free()
    }

    fn addresses(&self, socket: Fd) -> Option<(SocketAddr, SocketAddr)> {
        net::addresses(socket)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::mem::ArenaConfig;
    use crate::ring::{FeatureLimit, SendBatch, Window};
    use std::fs::File;
    use std::io::Read;
    use std::net::TcpStream;
    use std::os::fd::{AsFd, AsRawFd};

    fn ring(limit: FeatureLimit, slots: u32) -> (UringRing, Arena) {
        let arena = Arena::new(ArenaConfig { bytes_max: 16 << 20, hugepages: false }).unwrap();
        let features = Features::probe(limit).unwrap();
        (UringRing::new(UringConfig { slots, submissions: 8, features }, &arena).unwrap(), arena)
    }

    fn run(ring: &mut UringRing, op: Op) -> Completion {
        ring.submit(Tag(1), op).unwrap();
        ring.enter(Wait::Forever).unwrap();
        ring.reap().unwrap()
    }

    #[test]
    fn chunks_become_fixed_buffers_when_file_operations_use_them() {
        let file = File::open("/dev/zero").unwrap();
        for limit in [FeatureLimit::Full, FeatureLimit::Baseline] {
            let (mut ring, arena) = ring(limit, 4);
            let foreign = Arena::new(ArenaConfig { bytes_max: 1 << 21, hugepages: false }).unwrap();
            for from in [&arena, &foreign, &arena] {
                let mut into = Window::whole(from.take(8192).unwrap());
                into.bytes_mut().fill(1);
                let done = run(&mut ring, Op::Read { file: Fd(file.as_raw_fd()), offset_bytes: 0, into });
                assert_eq!(done.result, Ok(8192));
                let Some(Op::Read { into, .. }) = done.op else { panic!("{done:?}") };
                assert!(into.bytes().iter().all(|byte| *byte == 0));
            }
            assert_eq!(ring.fixed.registered_count(), usize::from(ring.features().fixed_buffers));
        }
    }

    #[test]
    fn zero_copy_over_loopback_is_reported_as_copied() {
        let options = net::ListenOptions { reuse_port: false, backlog: 4, incoming_cpu: None };
        let listener = net::listen("127.0.0.1:0".parse().unwrap(), options).unwrap();
        let mut peer = TcpStream::connect(net::local_address(listener.as_fd()).unwrap()).unwrap();
        for limit in [FeatureLimit::Full, FeatureLimit::Baseline] {
            let (mut ring, arena) = ring(limit, 4);
            let accepted = run(&mut ring, Op::Accept { listener: Fd(listener.as_raw_fd()) });
            let socket = Fd(accepted.result.unwrap().cast_signed());
            let mut batch = SendBatch::new(&arena, 2).unwrap();
            batch.push_slice(arena.zeros(65_536)).unwrap();
            let in_flight = ring.in_flight();
            ring.submit(Tag(2), Op::Send { socket, batch, zero_copy: true }).unwrap();
            ring.enter(Wait::Poll).unwrap();
            peer.read_exact(&mut vec![1; 65_536]).unwrap();
            let mut seen = Vec::new();
            while seen.last() != Some(&(false, ring.features().zero_copy_send)) {
                ring.enter(Wait::Until(Nanos(ring.now().0 + 10_000_000))).unwrap();
                while let Some(done) = ring.reap() {
                    assert_eq!(done.result, Ok(65_536));
                    seen.push((done.more, done.copied));
                }
            }
            let expected = if ring.features().zero_copy_send { 2 } else { 1 };
            assert_eq!((seen.len(), ring.in_flight()), (expected, in_flight));
            peer = TcpStream::connect(net::local_address(listener.as_fd()).unwrap()).unwrap();
        }
    }

    #[test]
    fn many_cancellations_wait_for_room_and_none_is_lost() {
        let (mut ring, _arena) = ring(FeatureLimit::Full, 64);
        for _ in 0..3 {
            let after = Nanos(3_600_000_000_000);
            let tokens: Vec<Token> = (0..64).map(|_| ring.submit(Tag(1), Op::Timeout { after }).unwrap()).collect();
            for token in tokens.iter().chain(&tokens) {
                ring.cancel(*token);
            }
            let mut ended = 0;
            while ended < 64 {
                ring.enter(Wait::Forever).unwrap();
                while let Some(done) = ring.reap() {
                    assert_eq!(done.result, Err(Errno(libc::ECANCELED)));
                    ended += 1;
                }
            }
        }
    }

    #[test]
    fn a_cancellation_that_found_no_room_is_made_up_for() {
        let (mut ring, _arena) = ring(FeatureLimit::Full, 4);
        let token = ring.submit(Tag(1), Op::Timeout { after: Nanos(3_600_000_000_000) }).unwrap();
        ring.cancels.push(token).unwrap();
        while ring.in_flight() > 0 {
            ring.enter(Wait::Forever).unwrap();
            assert!(ring.reap().is_none_or(|done| done.result == Err(Errno(libc::ECANCELED))));
        }
    }

    #[test]
    fn a_dropped_ring_has_waited_for_the_kernel_and_closed_what_nobody_took() {
        let options = net::ListenOptions { reuse_port: false, backlog: 4, incoming_cpu: None };
        let listener = net::listen("127.0.0.1:0".parse().unwrap(), options).unwrap();
        for limit in [FeatureLimit::Full, FeatureLimit::Baseline] {
            let (mut ring, arena) = ring(limit, 8);
            ring.submit(Tag(1), Op::Accept { listener: Fd(listener.as_raw_fd()) }).unwrap();
            let mut peer = TcpStream::connect(net::local_address(listener.as_fd()).unwrap()).unwrap();
            let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
            let stream = Window::whole(arena.take(4096).unwrap());
            ring.submit(Tag(2), Op::Recv { socket: Fd(socket.as_raw_fd()), bulk: None, stream }).unwrap();
            ring.enter(Wait::Forever).unwrap();
            drop(ring);
            peer.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
            assert_eq!(peer.read(&mut [0]).unwrap(), 0, "the accepted socket was closed");
            assert_eq!(arena.stats().bytes_taken, 0);
        }
    }

    #[test]
    fn a_poll_without_work_costs_no_system_call() {
        for limit in [FeatureLimit::Full, FeatureLimit::Baseline] {
            let (mut ring, _arena) = ring(limit, 4);
            ring.submit(Tag(1), Op::Timeout { after: Nanos(50_000_000) }).unwrap();
            ring.enter(Wait::Poll).unwrap();
            assert!(!ring.kernel.has_work(), "nothing to submit and nothing to bring in");
            let mut polls = 0u64;
            while ring.reap().is_none() {
                ring.enter(Wait::Poll).unwrap();
                polls += 1;
            }
            assert!(polls > 1000, "only {polls} polls in 50 ms");
        }
    }

    #[test]
    fn a_thread_can_make_rings_without_end() {
        let (first, _arena) = ring(FeatureLimit::Full, 4);
        for _ in 0..40 {
            let (ring, _arena) = ring(FeatureLimit::Full, 4);
            assert_eq!(ring.kernel.is_registered(), first.kernel.is_registered());
        }
    }

    #[test]
    fn completions_beyond_the_queue_are_not_lost() {
        let options = net::ListenOptions { reuse_port: false, backlog: 64, incoming_cpu: None };
        let listener = net::listen("127.0.0.1:0".parse().unwrap(), options).unwrap();
        let address = net::local_address(listener.as_fd()).unwrap();
        for limit in [FeatureLimit::Full, FeatureLimit::Baseline] {
            // A completion queue of 16 entries.
            let (mut ring, _arena) = ring(limit, 4);
            ring.submit(Tag(1), Op::Accept { listener: Fd(listener.as_raw_fd()) }).unwrap();
            let peers: Vec<TcpStream> = (0..40).map(|_| TcpStream::connect(address).unwrap()).collect();
            // Not reaping: the kernel has to keep what does not fit.
            for _ in 0..5 {
                ring.enter(Wait::Poll).unwrap();
            }
            let mut accepted = 0;
            while accepted < peers.len() {
                ring.enter(Wait::Forever).unwrap();
                while let Some(done) = ring.reap() {
                    // SAFETY: the kernel has just made this socket for us.
                    drop(unsafe { OwnedFd::from_raw_fd(done.result.unwrap().cast_signed()) });
                    accepted += 1;
                    if !done.more {
                        ring.submit(Tag(1), Op::Accept { listener: Fd(listener.as_raw_fd()) }).unwrap();
                    }
                }
            }
        }
    }

    #[test]
    fn direct_io_goes_through_fixed_buffers_and_through_plain_ones() {
        use std::os::unix::fs::OpenOptionsExt;
        let directory = tempfile::tempdir().unwrap();
        let mut options = File::options();
        let options = options.read(true).write(true).create(true).custom_flags(libc::O_DIRECT);
        let file = options.open(directory.path().join("file")).unwrap();
        let fd = Fd(file.as_raw_fd());
        for (limit, byte) in [(FeatureLimit::Full, 3), (FeatureLimit::Baseline, 4)] {
            let (mut ring, arena) = ring(limit, 4);
            let mut buf = arena.take(65_536).unwrap();
            buf.fill(byte);
            let write = Op::Write { file: fd, offset_bytes: 4096, from: buf.freeze(), durable: true };
            assert_eq!(run(&mut ring, write).result, Ok(65_536));
            let into = Window::part(arena.take(131_072).unwrap(), 8192, 65_536);
            let done = run(&mut ring, Op::Read { file: fd, offset_bytes: 0, into });
            assert_eq!(done.result, Ok(65_536));
            let Some(Op::Read { into, .. }) = done.op else { panic!("{done:?}") };
            assert!(into.bytes()[..4096].iter().all(|b| *b == 0) && into.bytes()[4096..].iter().all(|b| *b == byte));
        }
    }
}
