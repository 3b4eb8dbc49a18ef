//! A simulated world: the handle that tests and tools hold, and the loop that gives everybody their turns.
//!
//! **May know:** the simulated kernel.

use std::cell::RefCell;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;

use super::allocation::Inside;
use super::faults::{FileFaults, NetworkFaults};
use super::history::{Event, History, What};
use super::kernel::{FileOptions, Kernel, START, StreamError};
use super::random::{Chance, Random};
use super::ring::SimRing;
use super::stream::Stream;
use crate::ring::{Fd, Nanos, Wait};

/// How a world begins.
#[derive(Clone, Debug)]
pub struct WorldConfig {
    /// What goes wrong on the network.
    pub network_faults: NetworkFaults,
    /// What goes wrong with files that have no faults of their own.
    pub file_faults: FileFaults,
    /// In each round, for each who has turns: it is held up, as a thread is that the system takes off its CPU. It has
    /// no turns for some rounds, while time goes on for the others.
    pub held_up: Chance,
    /// Bytes that each direction of a connection holds: socket buffers and line together.
    pub pipe_capacity_bytes: usize,
    /// Connections that may wait in a listener's backlog.
    pub backlog_max: usize,
    /// Events that [`World::history`] remembers; the hash covers all.
    pub history_events_max: usize,
    /// Print every event to standard error as it happens.
    pub history_is_printed: bool,
}

impl Default for WorldConfig {
    fn default() -> WorldConfig {
        WorldConfig {
            network_faults: NetworkFaults::default(),
            file_faults: FileFaults::default(),
            held_up: Chance::NEVER,
            pipe_capacity_bytes: 256 * 1024,
            backlog_max: 128,
            history_events_max: 1 << 20,
            history_is_printed: false,
        }
    }
}

/// The most rounds for which somebody is held up at once.
const HELD_UP_ROUNDS_MAX: u64 = 40;

/// Something that lives in a world and gets turns: a shard, or a client.
pub trait Runnable {
    /// Do what can be done now. A ring is entered with `wait`; nothing blocks.
    fn turn(&mut self, wait: Wait);

    /// Whether this one has reached what it wants. A run ends when all have; servers, which want nothing, say yes
    /// always.
    fn is_satisfied(&self) -> bool {
        true
    }
}

/// How long a run may be.
#[derive(Clone, Copy, Debug)]
pub struct RunLimit {
    /// Virtual time from the start of the run.
    pub time: Nanos,
    /// Rounds of turns: the bound for those who stay busy without time passing.
    pub rounds: u64,
}

impl Default for RunLimit {
    fn default() -> RunLimit {
        RunLimit { time: Nanos(600_000_000_000), rounds: 10_000_000 }
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everybody is satisfied.
    Satisfied,
    /// Nothing can ever happen any more, and somebody is not satisfied: a deadlock.
    Stuck,
    /// The limit was reached.
    LimitReached,
}

/// A computer in memory. Cloning gives another handle to the same one.
#[derive(Clone)]
pub struct World {
    kernel: Rc<RefCell<Kernel>>,
    config: WorldConfig,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "World")
    }
}

impl World {
    /// A calm world.
    pub fn new(seed: u64) -> World {
        World::with_config(seed, WorldConfig::default())
    }

    /// A world as configured.
    pub fn with_config(seed: u64, config: WorldConfig) -> World {
        let _inside = Inside::enter();
        let mut kernel = Kernel::new(seed, History::new(config.history_events_max, config.history_is_printed));
        kernel.network_faults = config.network_faults.clone();
        kernel.file_faults = config.file_faults.clone();
        kernel.pipe_capacity_bytes = config.pipe_capacity_bytes;
        kernel.backlog_max = config.backlog_max;
        World { kernel: Rc::new(RefCell::new(kernel)), config }
    }

    /// A ring with room for `slots` operations in flight.
    pub fn ring(&self, slots: usize) -> SimRing {
        let _inside = Inside::enter();
        SimRing::new(self.kernel.clone(), slots)
    }

    /// Virtual time.
    pub fn now(&self) -> Nanos {
        self.kernel.borrow().now()
    }

    /// How long this world has existed, in virtual time.
    pub fn elapsed(&self) -> Nanos {
        Nanos(self.now().0 - START.0)
    }

    /// A stream of random numbers of its own, drawn from this world's seed.
    pub fn random(&self) -> Random {
        self.kernel.borrow_mut().random.fork()
    }

    /// From now on the network does this.
    pub fn set_network_faults(&self, faults: NetworkFaults) {
        self.kernel.borrow_mut().network_faults = faults;
    }

    /// From now on files without faults of their own do this.
    pub fn set_file_faults(&self, faults: FileFaults) {
        self.kernel.borrow_mut().file_faults = faults;
    }

    /// From now on this file does that; `None`: what the others do.
    pub fn set_faults_of(&self, name: &str, faults: Option<FileFaults>) {
        let file = self.file(name);
        self.kernel.borrow_mut().set_faults_of_file(file, faults);
    }

    // ---- files -------------------------------------------------------------------------------------------------

    /// Make a file of `len_bytes` zeros, durable.
    pub fn create_file(&self, name: &str, len_bytes: u64) {
        self.kernel.borrow_mut().file_create(name, len_bytes);
    }

    /// Open a file. Panics if there is none.
    pub fn open(&self, name: &str, options: FileOptions) -> Fd {
        let file = self.file(name);
        self.kernel.borrow_mut().file_open(file, options)
    }

    /// Let operations on `real`, a descriptor of the real kernel, go to `own`, a file or listener of this world. A disk
    /// or a listener that was opened outside can so be served inside; until it is closed or adopted anew, `real` itself
    /// is not touched.
    pub fn adopt(&self, real: Fd, own: Fd) {
        self.kernel.borrow_mut().adopt(real, own);
    }

    /// A file's size in bytes.
    pub fn file_len(&self, name: &str) -> u64 {
        let file = self.file(name);
        self.kernel.borrow_mut().file_state(file).len_bytes()
    }

    /// Read a file at once, beside all rings; returns the bytes there were.
    pub fn file_read(&self, name: &str, offset_bytes: u64, into: &mut [u8]) -> usize {
        let file = self.file(name);
        self.kernel.borrow_mut().file_state(file).read(offset_bytes, into)
    }

    /// Write to a file at once, beside all rings, without a sync.
    pub fn file_write(&self, name: &str, offset_bytes: u64, from: &[u8]) {
        let file = self.file(name);
        self.kernel.borrow_mut().file_state(file).write(offset_bytes, from);
    }

    /// Set a file's size at once, beside all rings.
    pub fn file_set_len(&self, name: &str, len_bytes: u64) {
        let file = self.file(name);
        self.kernel.borrow_mut().file_state(file).set_len(len_bytes);
    }

    /// Reserve space for the first `len_bytes` of a file: writes there cannot meet a full file system.
    pub fn file_reserve(&self, name: &str, len_bytes: u64) {
        let file = self.file(name);
        self.kernel.borrow_mut().file_state(file).extend(0, len_bytes);
    }

    /// Make a file durable as it is now.
    pub fn file_sync(&self, name: &str) {
        let file = self.file(name);
        let mut kernel = self.kernel.borrow_mut();
        let state = kernel.file_state(file);
        state.sync(state.order_next());
    }

    /// Changes of a file that a power cut could still undo.
    pub fn unflushed_count(&self, name: &str) -> usize {
        let file = self.file(name);
        self.kernel.borrow_mut().file_state(file).unflushed_count()
    }

    fn file(&self, name: &str) -> usize {
        self.kernel.borrow().file_index(name).unwrap_or_else(|| panic!("this world has no file '{name}'"))
    }

    // ---- network -----------------------------------------------------------------------------------------------

    /// A listening socket. Several may share an address; connections are spread over them by chance.
    pub fn listen(&self, address: SocketAddr) -> Fd {
        self.kernel.borrow_mut().listen(address)
    }

    /// Where a listener listens.
    pub fn listener_address(&self, listener: Fd) -> Option<SocketAddr> {
        self.kernel.borrow_mut().listener_address(listener)
    }

    /// Connect from some address of another computer.
    pub fn connect(&self, to: SocketAddr) -> Result<Stream, StreamError> {
        let port = 1024 + self.kernel.borrow_mut().random.below(60_000) as u16;
        self.connect_from(SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), port), to)
    }

    /// Connect from this address.
    pub fn connect_from(&self, from: SocketAddr, to: SocketAddr) -> Result<Stream, StreamError> {
        let _inside = Inside::enter();
        let id = self.kernel.borrow_mut().connect(from, to)?;
        Ok(Stream::new(self.kernel.clone(), id, from, to))
    }

    /// Connect from some address to one listener among those that may share its address.
    pub fn connect_to_listener(&self, listener: Fd) -> Result<Stream, StreamError> {
        let _inside = Inside::enter();
        let to = self.listener_address(listener).ok_or(StreamError::Refused)?;
        let from = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), 1024);
        let id = self.kernel.borrow_mut().connect_to(from, listener)?;
        Ok(Stream::new(self.kernel.clone(), id, from, to))
    }

    // ---- history -----------------------------------------------------------------------------------------------

    /// All events so far. Panics if there were more than the configuration lets it remember.
    pub fn history(&self) -> Vec<Event> {
        self.kernel.borrow().history.events().to_vec()
    }

    /// How many events there were.
    pub fn history_count(&self) -> u64 {
        self.kernel.borrow().history.count()
    }

    /// A hash of all events with their times: the same for the same run.
    pub fn history_hash(&self) -> u64 {
        self.kernel.borrow().history.hash()
    }

    /// Put a mark into the history.
    pub fn mark(&self, mark: u64) {
        self.kernel.borrow_mut().record(What::Mark(mark));
    }

    // ---- the end -----------------------------------------------------------------------------------------------

    /// The process dies here: its rings answer nothing any more, its descriptors are closed. What had completed stays
    /// in the files; operations in flight may have happened, in part or not at all.
    pub fn process_kill(&self) {
        let mut kernel = self.kernel.borrow_mut();
        kernel.record(What::ProcessKilled);
        kernel.kill(false);
    }

    /// The power goes: the process dies, and of what was not flushed any subset is left, torn and reordered by sector
    /// as `seed` says.
    pub fn power_cut(&self, seed: u64) {
        let mut kernel = self.kernel.borrow_mut();
        kernel.record(What::PowerCut);
        kernel.kill(true);
        kernel.files_after_power_cut(seed);
    }

    /// A new calm world with the files that a power cut at this moment would leave. This one goes on. What was in
    /// flight is not in those files; [`World::power_cut`] covers that.
    pub fn after_power_cut(&self, seed: u64) -> World {
        let after = self.copy_of_files(seed);
        after.kernel.borrow_mut().files_after_power_cut(seed);
        after
    }

    /// A new calm world with this one's files, as after a kill of the process with nothing in flight.
    pub fn copy_of_files(&self, seed: u64) -> World {
        let config = WorldConfig {
            network_faults: NetworkFaults::default(),
            file_faults: FileFaults::default(),
            ..self.config.clone()
        };
        let copy = World::with_config(seed, config);
        copy.kernel.borrow_mut().copy_files(&self.kernel.borrow());
        copy
    }

    // ---- turns -------------------------------------------------------------------------------------------------

    /// Make sure that a run looks at its clients again after this time, whatever else happens.
    pub fn alarm(&self, after: Nanos) {
        self.kernel.borrow_mut().schedule_alarm(after);
    }

    /// Give everybody turns, in a seeded order each round, and let time pass when nobody has anything to do, until all
    /// are satisfied, nothing can happen any more, or the limit is reached.
    pub fn run(&self, runnables: &mut [&mut dyn Runnable], limit: RunLimit) -> Outcome {
        self.kernel.borrow_mut().is_scheduled = true;
        let outcome = self.rounds(runnables, limit);
        self.kernel.borrow_mut().is_scheduled = false;
        outcome
    }

    fn rounds(&self, runnables: &mut [&mut dyn Runnable], limit: RunLimit) -> Outcome {
        let end = Nanos(self.now().0.saturating_add(limit.time.0));
        let mut idle = 0;
        let mut held_up = vec![0u64; runnables.len()];
        for _ in 0..limit.rounds {
            if self.now() >= end {
                return Outcome::LimitReached;
            }
            let happened = self.kernel.borrow().happened();
            let first = self.kernel.borrow_mut().random.index(runnables.len().max(1));
            let (before, after) = runnables.split_at_mut(first);
            let (rounds_before, rounds_after) = held_up.split_at_mut(first);
            let rounds = rounds_after.iter_mut().chain(rounds_before);
            for (runnable, rounds) in after.iter_mut().chain(before).zip(rounds) {
                if *rounds == 0 {
                    runnable.turn(Wait::Forever);
                    *rounds = self.rounds_held_up();
                } else {
                    *rounds -= 1;
                }
            }
            if runnables.iter().all(|runnable| runnable.is_satisfied()) {
                return Outcome::Satisfied;
            }
            let mut kernel = self.kernel.borrow_mut();
            if held_up.iter().any(|rounds| *rounds > 0) {
                kernel.advance_a_little();
                continue;
            }
            // What happened while somebody entered a ring may be news for those whose turn was before.
            if kernel.happened() != happened || kernel.is_any_awake() || kernel.advance() {
                idle = 0;
                continue;
            }
            // One more round, for those who made something possible for others without the kernel's knowledge.
            idle += 1;
            if idle > 2 {
                return Outcome::Stuck;
            }
        }
        Outcome::LimitReached
    }

    /// For how many rounds somebody is held up who has just had a turn.
    fn rounds_held_up(&self) -> u64 {
        let random = &mut self.kernel.borrow_mut().random;
        if random.happens(self.config.held_up) { 1 + random.below(HELD_UP_ROUNDS_MAX) } else { 0 }
    }
}
