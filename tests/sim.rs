//! The simulator itself: a run repeats from its seed, only what may be lost is lost, streams are cut anywhere, and the
//! duties of a ring's caller are enforced.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use lunaring::mem::{Arena, ArenaConfig};
use lunaring::ring::{AllocateMode, Completion, Errno, Fd, Nanos, Op, Ring, SendBatch, Tag, Wait, Wake, Window};
use lunaring::sim::{
    Chance, FileFaults, FileOptions, NetworkFaults, OpKind, Outcome, Random, RunLimit, Runnable, SimRing, Stream,
    StreamError, What, World, WorldConfig,
};

const SECTOR: usize = 512;

fn arena() -> Arena {
    Arena::new(ArenaConfig { bytes_max: 32 << 20, hugepages: false }).expect("address space")
}

fn portal() -> SocketAddr {
    "192.0.2.1:3260".parse().expect("an address")
}

/// The completion that comes next, waiting for it.
fn wait_one(ring: &mut SimRing) -> Completion {
    loop {
        if let Some(completion) = ring.reap() {
            return completion;
        }
        ring.enter(Wait::Forever).expect("the process lives");
        assert!(ring.in_flight() > 0 || ring.slots_free() > 0);
    }
}

fn write_op(arena: &Arena, file: Fd, offset_bytes: u64, fill: u8, len: usize, durable: bool) -> Op {
    let mut buf = arena.take(len).expect("room");
    buf.truncate(len);
    buf.fill(fill);
    Op::Write { file, offset_bytes, from: buf.freeze(), durable }
}

fn run_op(ring: &mut SimRing, op: Op) -> Result<u32, Errno> {
    ring.submit(Tag(0), op).expect("a slot");
    wait_one(ring).result
}

/// An echo server on a ring, as simple as one can be: what it receives it sends back, in order.
struct Echo {
    ring: SimRing,
    arena: Arena,
    listener: Fd,
    links: Vec<Link>,
}

struct Link {
    socket: Fd,
    batch: Option<SendBatch>,
    pending: Vec<u8>,
    receiving: bool,
    over: bool,
    closed: bool,
}

const TAG_ACCEPT: u64 = u64::MAX;

impl Echo {
    fn new(world: &World) -> Echo {
        let mut ring = world.ring(64);
        let listener = world.listen(portal());
        ring.submit(Tag(TAG_ACCEPT), Op::Accept { listener }).expect("a slot");
        Echo { ring, arena: arena(), listener, links: Vec::new() }
    }

    fn handle(&mut self, completion: Completion) {
        if completion.tag == Tag(TAG_ACCEPT) {
            if let Ok(fd) = completion.result {
                let batch = SendBatch::new(&self.arena, 8);
                let socket = Fd(fd as i32);
                assert!(self.ring.addresses(socket).is_some());
                self.links.push(Link {
                    socket,
                    batch,
                    pending: Vec::new(),
                    receiving: false,
                    over: false,
                    closed: false,
                });
            }
            if !completion.more {
                self.ring.submit(Tag(TAG_ACCEPT), Op::Accept { listener: self.listener }).expect("a slot");
            }
            return;
        }
        let link = &mut self.links[completion.tag.0 as usize];
        match (completion.op, completion.result) {
            (Some(Op::Recv { bulk, stream, .. }), result) => {
                link.receiving = false;
                let count = result.unwrap_or(0) as usize;
                link.over |= count == 0;
                let bulk = bulk.expect("a bulk window was given");
                let placed = count.min(bulk.len as usize);
                link.pending.extend_from_slice(&bulk.bytes()[..placed]);
                link.pending.extend_from_slice(&stream.bytes()[..count - placed]);
            }
            (Some(Op::Send { mut batch, .. }), result) => {
                match result {
                    Ok(sent) => batch.advance(sent as usize),
                    Err(_) => {
                        batch.clear();
                        link.over = true;
                        link.pending.clear();
                    }
                }
                if batch.is_empty() {
                    link.batch = Some(batch);
                } else {
                    let op = Op::Send { socket: link.socket, batch, zero_copy: false };
                    self.ring.submit(completion.tag, op).expect("a slot");
                }
            }
            (Some(Op::Close { .. }), result) => assert_eq!(result, Ok(0)),
            (op, result) => panic!("unexpected completion of {op:?}: {result:?}"),
        }
    }

    fn submit_next(&mut self) {
        for (index, link) in self.links.iter_mut().enumerate() {
            let tag = Tag(index as u64);
            if let Some(mut batch) = link.batch.take_if(|_| !link.pending.is_empty()) {
                let count = link.pending.len().min(2000);
                batch.push_bytes(&link.pending[..count]).expect("room");
                link.pending.drain(..count);
                let op = Op::Send { socket: link.socket, batch, zero_copy: false };
                self.ring.submit(tag, op).expect("a slot");
            }
            let is_quiet = link.pending.is_empty() && link.batch.is_some() && !link.receiving;
            if link.over && is_quiet && !link.closed {
                link.closed = true;
                self.ring.submit(tag, Op::Close { fd: link.socket }).expect("a slot");
            } else if !link.over && !link.receiving && link.pending.len() < 4096 {
                link.receiving = true;
                let bulk = Some(Window::part(self.arena.take(4096).expect("room"), 10, 33));
                let stream = Window::whole(self.arena.take(4096).expect("room"));
                self.ring.submit(tag, Op::Recv { socket: link.socket, bulk, stream }).expect("a slot");
            }
        }
    }
}

impl Runnable for Echo {
    fn turn(&mut self, wait: Wait) {
        while let Some(completion) = self.ring.reap() {
            self.handle(completion);
        }
        self.submit_next();
        self.ring.enter(wait).expect("the process lives");
    }
}

/// Sends random bytes and expects them back; remembers at which places reads ended.
struct Talker {
    stream: Stream,
    bytes: Vec<u8>,
    sent: usize,
    back: Vec<u8>,
    cuts: BTreeSet<usize>,
    outcome: Option<Result<(), StreamError>>,
}

impl Talker {
    fn new(world: &World, len: usize) -> Talker {
        let mut bytes = vec![0; len];
        world.random().fill(&mut bytes);
        let stream = world.connect(portal()).expect("somebody listens");
        Talker { stream, bytes, sent: 0, back: Vec::new(), cuts: BTreeSet::new(), outcome: None }
    }

    fn step(&mut self) -> Result<bool, StreamError> {
        if self.sent < self.bytes.len() {
            match self.stream.write(&self.bytes[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(StreamError::WouldBlock) => {}
                Err(error) => return Err(error),
            }
            if self.sent == self.bytes.len() {
                self.stream.end();
            }
        }
        let mut into = [0; 1000];
        loop {
            match self.stream.read(&mut into) {
                Ok(0) => return Ok(true),
                Ok(count) => {
                    self.back.extend_from_slice(&into[..count]);
                    self.cuts.insert(self.back.len());
                }
                Err(StreamError::WouldBlock) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }
}

impl Runnable for Talker {
    fn turn(&mut self, _wait: Wait) {
        if self.outcome.is_none() {
            self.outcome = match self.step() {
                Ok(true) => Some(Ok(())),
                Ok(false) => None,
                Err(error) => Some(Err(error)),
            };
        }
    }

    fn is_satisfied(&self) -> bool {
        self.outcome.is_some()
    }
}

fn rough_world(seed: u64) -> World {
    let network_faults = NetworkFaults::rough();
    World::with_config(seed, WorldConfig { network_faults, pipe_capacity_bytes: 3000, ..WorldConfig::default() })
}

fn echo_run(seed: u64) -> (World, Vec<Talker>) {
    let world = rough_world(seed);
    let mut servers = [Echo::new(&world), Echo::new(&world)];
    let mut clients: Vec<Talker> = (0..4).map(|_| Talker::new(&world, 10_000)).collect();
    let mut all: Vec<&mut dyn Runnable> = Vec::new();
    all.extend(servers.iter_mut().map(|server| server as &mut dyn Runnable));
    all.extend(clients.iter_mut().map(|client| client as &mut dyn Runnable));
    assert_eq!(world.run(&mut all, RunLimit::default()), Outcome::Satisfied, "seed {seed}");
    (world, clients)
}

#[test]
fn streams_come_back_whole_over_a_rough_line() {
    for seed in 0..20 {
        let (_, clients) = echo_run(seed);
        for client in &clients {
            assert_eq!(client.outcome, Some(Ok(())), "seed {seed}");
            assert!(client.back == client.bytes, "seed {seed}: the bytes or their order changed");
        }
    }
}

#[test]
fn one_seed_is_one_history_and_another_seed_is_another() {
    let (first, _) = echo_run(7);
    let (again, _) = echo_run(7);
    let (other, _) = echo_run(8);
    assert_eq!(first.history(), again.history());
    assert_eq!(first.history_hash(), again.history_hash());
    assert_eq!(first.now(), again.now());
    assert_ne!(first.history_hash(), other.history_hash());
}

#[test]
fn streams_are_cut_at_any_byte_of_a_header() {
    // Every place inside a 48-byte header is a place where some receive ends.
    let mut cuts = BTreeSet::new();
    for seed in 0..1500 {
        let world = rough_world(seed);
        let mut ring = world.ring(4);
        let listener = world.listen(portal());
        let mut client = world.connect(portal()).expect("somebody listens");
        let socket = Fd(run_op(&mut ring, Op::Accept { listener }).expect("a socket") as i32);
        client.write(&[1; 96]).expect("room");
        let arena = arena();
        let mut got = 0;
        while got < 96 {
            let stream = Window::whole(arena.take(4096).expect("room"));
            ring.submit(Tag(2), Op::Recv { socket, bulk: None, stream }).expect("a slot");
            let completion = std::iter::repeat_with(|| wait_one(&mut ring)).find(|c| c.tag == Tag(2)).expect("it ends");
            got += completion.result.expect("bytes") as usize;
            cuts.insert(got);
        }
    }
    assert_eq!(cuts, (1..=96).collect(), "all places are cut");
}

#[test]
fn a_reset_reaches_both_sides_and_the_server_lives_on() {
    let mut seen = 0;
    for seed in 0..30 {
        let network_faults = NetworkFaults { reset: Chance::percent(5), ..NetworkFaults::rough() };
        let world = World::with_config(seed, WorldConfig { network_faults, ..WorldConfig::default() });
        let mut server = Echo::new(&world);
        let mut clients: Vec<Talker> = (0..3).map(|_| Talker::new(&world, 20_000)).collect();
        let mut all: Vec<&mut dyn Runnable> = vec![&mut server];
        all.extend(clients.iter_mut().map(|client| client as &mut dyn Runnable));
        assert_eq!(world.run(&mut all, RunLimit::default()), Outcome::Satisfied, "seed {seed}");
        for client in &clients {
            match client.outcome {
                Some(Ok(())) => assert_eq!(client.back, client.bytes),
                outcome => {
                    assert_eq!(outcome, Some(Err(StreamError::Reset)));
                    seen += 1;
                    assert!(client.bytes.starts_with(&client.back), "what came back is a true prefix");
                }
            }
        }
        world.set_network_faults(NetworkFaults::default());
        let mut late = Talker::new(&world, 5000);
        assert_eq!(world.run(&mut [&mut server, &mut late], RunLimit::default()), Outcome::Satisfied);
        assert_eq!(late.back, late.bytes);
    }
    assert!(seen > 10, "{seen} resets");
}

#[test]
fn a_power_cut_undoes_only_what_no_sync_covered() {
    let mut lost = 0;
    for seed in 0..100 {
        let world = World::new(seed);
        world.create_file("disk", 64 * 1024);
        let file = world.open("disk", FileOptions { alignment_bytes: 512, read_only: false });
        let mut ring = world.ring(8);
        let arena = arena();
        assert_eq!(run_op(&mut ring, write_op(&arena, file, 0, 1, 8192, false)), Ok(8192));
        assert_eq!(run_op(&mut ring, Op::Sync { file }), Ok(0));
        assert_eq!(run_op(&mut ring, write_op(&arena, file, 4096, 2, 8192, false)), Ok(8192));
        assert_eq!(run_op(&mut ring, write_op(&arena, file, 32768, 3, 4096, true)), Ok(4096));
        // In flight when the power goes.
        ring.submit(Tag(9), write_op(&arena, file, 16384, 4, 4096, false)).expect("a slot");
        ring.enter(Wait::Poll).expect("the process lives");
        world.power_cut(seed);
        assert!(ring.enter(Wait::Forever).is_err(), "a dead process does not run");
        assert_eq!(ring.in_flight(), 0);
        let mut after = vec![0; 64 * 1024];
        assert_eq!(world.file_read("disk", 0, &mut after), after.len());
        assert_eq!(after[..4096], [1; 4096], "seed {seed}: flushed");
        assert_eq!(after[32768..36864], [3; 4096], "seed {seed}: written through");
        assert!(after[4096..8192].chunks(SECTOR).all(|s| s == [1; SECTOR] || s == [2; SECTOR]));
        assert!(after[8192..12288].chunks(SECTOR).all(|s| s == [0; SECTOR] || s == [2; SECTOR]));
        assert!(after[16384..20480].chunks(SECTOR).all(|s| s == [0; SECTOR] || s == [4; SECTOR]));
        lost += usize::from(after[4096..12288] != [2; 8192]);
    }
    assert!(lost > 50, "{lost} of 100 cuts lost something");
}

#[test]
fn a_killed_process_loses_no_completed_write() {
    for seed in 0..30 {
        let world = World::new(seed);
        world.create_file("disk", 0);
        let file = world.open("disk", FileOptions::default());
        let mut ring = world.ring(8);
        let arena = arena();
        assert_eq!(run_op(&mut ring, write_op(&arena, file, 0, 1, 4096, false)), Ok(4096));
        world.process_kill();
        let mut after = vec![0; 4096];
        assert_eq!(world.file_read("disk", 0, &mut after), 4096);
        assert_eq!(after, [1; 4096]);
        // The same files in a new world, and the next process.
        let world = world.copy_of_files(seed + 1);
        let file = world.open("disk", FileOptions::default());
        let mut ring = world.ring(8);
        let into = Window::whole(arena.take(4096).expect("room"));
        ring.submit(Tag(1), Op::Read { file, offset_bytes: 0, into }).expect("a slot");
        let Completion { op: Some(Op::Read { into, .. }), result: Ok(4096), .. } = wait_one(&mut ring) else {
            panic!("the read fails");
        };
        assert_eq!(into.bytes(), [1; 4096]);
    }
}

#[test]
fn a_look_at_a_possible_power_cut_disturbs_nothing() {
    let world = World::new(3);
    world.create_file("disk", 8192);
    world.file_write("disk", 0, &[5; 8192]);
    let kept = (0..64).filter(|&seed| {
        let after = world.after_power_cut(seed);
        let mut bytes = vec![0; 8192];
        after.file_read("disk", 0, &mut bytes);
        bytes == [5; 8192]
    });
    assert!((4..40).contains(&kept.count()));
    assert_eq!(world.unflushed_count("disk"), 1);
    world.file_sync("disk");
    assert_eq!(world.unflushed_count("disk"), 0);
}

#[test]
fn the_history_tells_the_order_of_writes_and_syncs() {
    let world = World::new(11);
    world.create_file("disk", 0);
    let file = world.open("disk", FileOptions::default());
    let mut ring = world.ring(8);
    let arena = arena();
    assert_eq!(run_op(&mut ring, write_op(&arena, file, 0, 1, 512, false)), Ok(512));
    assert_eq!(run_op(&mut ring, Op::Sync { file }), Ok(0));
    let place = |wanted: OpKind, reaped: bool| {
        let matches = |what: What| match what {
            What::Reaped(op) => reaped && op.kind == wanted,
            What::Started(op) => !reaped && op.kind == wanted,
            _ => false,
        };
        world.history().iter().position(|event| matches(event.what)).expect("it happened")
    };
    assert!(place(OpKind::Write, true) < place(OpKind::Sync, false), "the sync covers the write");
}

#[test]
fn files_fail_as_told_and_by_name() {
    let world = World::new(5);
    for name in ["good", "bad"] {
        world.create_file(name, 1 << 20);
    }
    let options = FileOptions { alignment_bytes: 512, read_only: false };
    let (good, bad) = (world.open("good", options), world.open("bad", options));
    let read_only = world.open("good", FileOptions { read_only: true, ..options });
    let mut ring = world.ring(8);
    let arena = arena();
    let full = FileFaults {
        enospc: Chance::ALWAYS,
        bad_ranges: std::iter::once(8192..12288).collect(),
        ..FileFaults::default()
    };
    world.set_faults_of("bad", Some(full));
    let eio = Err(Errno(libc::EIO));
    let enospc = Err(Errno(libc::ENOSPC));
    assert_eq!(run_op(&mut ring, write_op(&arena, read_only, 0, 1, 512, false)), Err(Errno(libc::EBADF)));
    assert_eq!(run_op(&mut ring, write_op(&arena, good, 0, 1, 4096, false)), Ok(4096));
    assert_eq!(run_op(&mut ring, write_op(&arena, bad, 0, 1, 4096, false)), enospc);
    let extend = Op::Allocate { file: bad, mode: AllocateMode::Extend, offset_bytes: 0, len_bytes: 4096 };
    assert_eq!(run_op(&mut ring, extend), enospc);
    let read =
        |offset_bytes, file| Op::Read { file, offset_bytes, into: Window::whole(arena.take(4096).expect("room")) };
    assert_eq!(run_op(&mut ring, read(8192, bad)), eio);
    assert_eq!(run_op(&mut ring, read(12288, bad)), Ok(4096));
    assert_eq!(run_op(&mut ring, read(100, bad)), Err(Errno(libc::EINVAL)), "direct I/O is aligned");
    assert_eq!(run_op(&mut ring, read(1 << 20, bad)), Ok(0), "the end of the file");
    let failing = FileFaults { eio_sync: Chance::ALWAYS, eio_write: Chance::ALWAYS, ..FileFaults::default() };
    world.set_faults_of("bad", Some(failing));
    assert_eq!(run_op(&mut ring, Op::Sync { file: bad }), eio);
    assert_eq!(run_op(&mut ring, write_op(&arena, bad, 0, 1, 4096, false)), eio);
    assert_eq!(run_op(&mut ring, Op::Truncate { file: good, len_bytes: 512 }), Ok(0));
    assert_eq!(world.file_len("good"), 512);
}

#[test]
fn timeouts_wakers_and_cancels_end_waits() {
    let world = World::new(1);
    let mut ring = world.ring(4);
    let start = ring.now();
    ring.submit(Tag(1), Op::Timeout { after: Nanos(5_000_000) }).expect("a slot");
    let late = ring.submit(Tag(2), Op::Timeout { after: Nanos(1 << 50) }).expect("a slot");
    ring.enter(Wait::Until(Nanos(start.0 + 1_000_000))).expect("the process lives");
    assert!(ring.reap().is_none());
    assert_eq!(ring.now().0 - start.0, 1_000_000, "the wait ends at its moment");
    let first = wait_one(&mut ring);
    assert_eq!((first.tag, first.result), (Tag(1), Ok(0)));
    assert!(ring.now().0 - start.0 >= 5_000_000);
    ring.waker().wake();
    let before = ring.now();
    ring.enter(Wait::Forever).expect("the process lives");
    assert!(ring.now().0 - before.0 < 1000, "a wake ends a wait without limit at once");
    ring.cancel(late);
    let cancelled = wait_one(&mut ring);
    assert_eq!((cancelled.tag, cancelled.result), (Tag(2), Err(Errno(libc::ECANCELED))));
    assert!(matches!(cancelled.op, Some(Op::Timeout { .. })));
    ring.cancel(late);
    ring.enter(Wait::Forever).expect("a wait that nothing can end returns");
    assert_eq!(ring.in_flight(), 0);
}

#[test]
fn a_full_ring_gives_the_operation_back() {
    let world = World::new(1);
    let mut ring = world.ring(2);
    for tag in 0..2 {
        ring.submit(Tag(tag), Op::Timeout { after: Nanos(10) }).expect("a slot");
    }
    assert_eq!((ring.slots_free(), ring.in_flight()), (0, 2));
    assert!(matches!(ring.submit(Tag(3), Op::Timeout { after: Nanos(10) }), Err(Op::Timeout { .. })));
    wait_one(&mut ring);
    ring.submit(Tag(3), Op::Timeout { after: Nanos(10) }).expect("the slot is free again");
}

#[test]
fn a_zero_copy_send_keeps_its_buffers_until_the_final_completion() {
    let world = World::new(4);
    let mut ring = world.ring(8);
    let arena = arena();
    let listener = world.listen(portal());
    let mut client = world.connect(portal()).expect("somebody listens");
    let socket = Fd(run_op(&mut ring, Op::Accept { listener }).expect("a socket") as i32);
    let mut batch = SendBatch::new(&arena, 4).expect("room");
    batch.push_bytes(b"zero copies").expect("room");
    ring.submit(Tag(1), Op::Send { socket, batch, zero_copy: true }).expect("a slot");
    let first = wait_one(&mut ring);
    assert_eq!((first.tag, first.result, first.more, first.op.is_none()), (Tag(1), Ok(11), true, true));
    let last = wait_one(&mut ring);
    assert_eq!((last.tag, last.result, last.more, last.token), (Tag(1), Ok(11), false, first.token));
    assert!(matches!(last.op, Some(Op::Send { .. })));
    ring.enter(Wait::Until(Nanos(ring.now().0 + 10_000_000))).expect("the process lives");
    let mut into = [0; 32];
    assert_eq!(client.read(&mut into), Ok(11));
    assert_eq!(&into[..11], b"zero copies");
}

#[test]
fn a_deadlock_is_called_one() {
    let world = World::new(1);
    let mut server = Echo::new(&world);
    let mut silent = Talker::new(&world, 10);
    silent.sent = 10;
    assert_eq!(world.run(&mut [&mut server, &mut silent], RunLimit::default()), Outcome::Stuck);
}

#[test]
#[should_panic(expected = "closed with operations in flight")]
fn closing_a_busy_socket_is_caught() {
    let world = World::new(1);
    let mut ring = world.ring(8);
    let listener = world.listen(portal());
    let _client = world.connect(portal()).expect("somebody listens");
    let socket = Fd(run_op(&mut ring, Op::Accept { listener }).expect("a socket") as i32);
    let stream = Window::whole(arena().take(4096).expect("room"));
    ring.submit(Tag(1), Op::Recv { socket, bulk: None, stream }).expect("a slot");
    let _ = ring.submit(Tag(2), Op::Close { fd: socket });
}

#[test]
#[should_panic(expected = "two receives at once")]
fn two_receives_at_once_are_caught() {
    let world = World::new(1);
    let mut ring = world.ring(8);
    let listener = world.listen(portal());
    let _client = world.connect(portal()).expect("somebody listens");
    let socket = Fd(run_op(&mut ring, Op::Accept { listener }).expect("a socket") as i32);
    for tag in 0..2 {
        let stream = Window::whole(arena().take(4096).expect("room"));
        ring.submit(Tag(tag), Op::Recv { socket, bulk: None, stream }).expect("a slot");
    }
    let _ = ring.enter(Wait::Poll);
}

#[test]
fn random_operations_never_lose_a_completion() {
    for seed in 0..50 {
        let world = World::new(seed);
        world.create_file("disk", 1 << 20);
        let file = world.open("disk", FileOptions::default());
        let mut ring = world.ring(16);
        let mut random = Random::new(seed);
        let arena = arena();
        let (mut submitted, mut completed) = (0u64, BTreeSet::new());
        let mut tokens = Vec::new();
        while completed.len() < 300 {
            if submitted < 300 && random.below(2) == 0 {
                let op = match random.below(4) {
                    0 => Op::Timeout { after: Nanos(random.below(100_000)) },
                    1 => Op::Sync { file },
                    2 => write_op(&arena, file, random.below(1 << 19), 7, 4096, random.below(2) == 0),
                    _ => Op::Read { file, offset_bytes: 0, into: Window::whole(arena.take(4096).expect("room")) },
                };
                if let Ok(token) = ring.submit(Tag(submitted), op) {
                    submitted += 1;
                    tokens.push(token);
                }
            }
            if !tokens.is_empty() && random.below(10) == 0 {
                ring.cancel(tokens[random.index(tokens.len())]);
            }
            ring.enter(if submitted == 300 { Wait::Forever } else { Wait::Poll }).expect("the process lives");
            while let Some(completion) = ring.reap() {
                assert!(!completion.more && completion.op.is_some());
                assert!(completed.insert(completion.tag.0), "seed {seed}: {:?} twice", completion.tag);
            }
        }
        assert_eq!(ring.in_flight(), 0);
    }
}
