//! Starting shards: one pinned thread each, with its own memory and ring.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::mailbox::{Mailbox, Senders, mailbox};
use super::message::ToShard;
use super::placement::pin_current_thread;
use super::run::{Parts, Shard};
use crate::mem::{Arena, ArenaConfig, ArenaError};
use crate::observe::ShardStats;
use crate::ring::net::{self, ListenOptions};
use crate::ring::{FeatureLimit, Features, Ring, RingError, UringConfig, UringRing, UringWaker};
use crate::units::ShardId;

/// Operations that one ring can have in flight: a receive and a send for each of 4096 connections, and as many for
/// files.
const RING_SLOTS: u32 = 16 * 1024;

/// Operations queued between two system calls.
const RING_SUBMISSIONS: u32 = 1024;

/// Connections that may wait to be accepted: a fleet that boots at once connects at once.
const BACKLOG: u32 = 4096;

/// How long the sockets of a killed server may outlive it.
const LINGER_MAX: Duration = Duration::from_millis(1500);

/// How to run.
#[derive(Clone, Debug)]
pub struct ShardsConfig {
    /// The CPU of each shard.
    pub cores: Vec<usize>,
    /// The most memory that one shard's buffers may take; used as it is needed.
    pub memory_per_shard_bytes: u64,
    /// How much of the kernel to use.
    pub features: FeatureLimit,
}

/// Why shards could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// io_uring cannot be used.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// Buffers cannot be reserved.
    #[error("no memory for the buffers of a shard: {0}")]
    Memory(#[from] ArenaError),
    /// A thread cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
    /// More CPUs than shards can be numbered, or none.
    #[error("a server runs on 1 to 1024 CPUs, not on {0}")]
    Cores(usize),
}

/// The running shards.
pub struct Shards {
    senders: Senders<UringWaker>,
    stats: Vec<Arc<ShardStats>>,
    cores: Vec<usize>,
    threads: Vec<JoinHandle<()>>,
    features_line: String,
}

/// What a thread tells once its ring stands.
type Ready = Result<(super::mailbox::Sender<UringWaker>, mpsc::Sender<Senders<UringWaker>>), StartError>;

impl Shards {
    /// Start a shard on each CPU. Returns when all of them run.
    pub fn start(config: &ShardsConfig) -> Result<Self, StartError> {
        if config.cores.is_empty() || config.cores.len() > 1024 {
            return Err(StartError::Cores(config.cores.len()));
        }
        let features = Features::probe(config.features)?;
        let features_line = features.to_string();
        let stats: Vec<_> = config.cores.iter().map(|_| Arc::new(ShardStats::new())).collect();
        let mut threads = Vec::new();
        let mut senders = Vec::new();
        let mut starters = Vec::new();
        for (index, &cpu) in config.cores.iter().enumerate() {
            let (ready, is_ready) = mpsc::channel();
            let plan = Plan {
                id: ShardId(index as u16),
                shards: config.cores.len() as u16,
                cpu,
                memory_bytes: config.memory_per_shard_bytes,
                features,
                stats: Arc::clone(&stats[index]),
            };
            let name = format!("shard-{index}");
            let thread =
                std::thread::Builder::new().name(name).spawn(move || plan.run(&ready)).map_err(StartError::Thread)?;
            threads.push(thread);
            let told: Ready =
                is_ready.recv().unwrap_or_else(|_| Err(StartError::Thread(io::Error::other("it ended at once"))));
            let (sender, starter) = told?;
            senders.push(sender);
            starters.push(starter);
        }
        let senders = Senders(senders);
        for starter in starters {
            // A thread that has ended shows when it is joined.
            let _ = starter.send(senders.clone());
        }
        Ok(Self { senders, stats, cores: config.cores.clone(), threads, features_line })
    }

    /// How many there are.
    pub fn count(&self) -> u16 {
        self.senders.0.len() as u16
    }

    /// Their CPUs.
    pub fn cores(&self) -> &[usize] {
        &self.cores
    }

    /// Send a message; given back when the shard's mailbox is full: try again later.
    pub fn send(&self, shard: ShardId, message: ToShard) -> Result<(), ToShard> {
        self.senders.of(shard).send_control(message)
    }

    /// Counters of a shard.
    pub fn stats(&self, shard: ShardId) -> Arc<ShardStats> {
        Arc::clone(&self.stats[usize::from(shard.0)])
    }

    /// One readable line about the io_uring features in use.
    pub fn features_line(&self) -> &str {
        &self.features_line
    }

    /// Wait for all threads to end; each was told to [`ToShard::Stop`].
    pub fn join(self) {
        for thread in self.threads {
            // A shard that panicked has aborted the process already.
            let _ = thread.join();
        }
    }
}

/// What a thread needs to become a shard.
struct Plan {
    id: ShardId,
    shards: u16,
    cpu: usize,
    memory_bytes: u64,
    features: Features,
    stats: Arc<ShardStats>,
}

impl Plan {
    fn run(self, ready: &mpsc::Sender<Ready>) {
        if !pin_current_thread(self.cpu) {
            tracing::warn!(shard = self.id.0, cpu = self.cpu, "the system refused to pin a shard to its CPU");
        }
        let (ring, arena) = match self.make() {
            Ok(made) => made,
            Err(error) => {
                let _ = ready.send(Err(error));
                return;
            }
        };
        let (sender, mailbox) = mailbox(ring.waker());
        let (starter, start) = mpsc::channel();
        if ready.send(Ok((sender, starter))).is_err() {
            return;
        }
        let Ok(senders) = start.recv() else { return };
        self.serve(ring, arena, senders, mailbox);
    }

    fn make(&self) -> Result<(UringRing, Arena), StartError> {
        let bytes_max = usize::try_from(self.memory_bytes).unwrap_or(usize::MAX);
        let arena = Arena::new(ArenaConfig { bytes_max, hugepages: true })?;
        let config = UringConfig { slots: RING_SLOTS, submissions: RING_SUBMISSIONS, features: self.features };
        let ring = UringRing::new(config, &arena)?;
        Ok((ring, arena))
    }

    fn serve(self, ring: UringRing, arena: Arena, senders: Senders<UringWaker>, mailbox: Mailbox) {
        let zero_copy = self.features.zero_copy_send;
        let parts = Parts { id: self.id, shards: self.shards, senders, mailbox, stats: self.stats, zero_copy };
        let mut shard = Shard::new(ring, arena, parts);
        if let Err(error) = shard.run() {
            // Without its ring a shard can serve nobody; initiators will come back to a restarted server.
            tracing::error!(shard = self.id.0, %error, "a shard has failed");
            std::process::abort();
        }
    }
}

/// Bind an address that a server may just have left: the kernel takes the sockets of a killed process's rings down a
/// moment after the process is gone.
fn listen_patiently(address: SocketAddr) -> io::Result<OwnedFd> {
    let deadline = Instant::now() + LINGER_MAX;
    loop {
        match net::listen(address, ListenOptions { reuse_port: false, backlog: 1, incoming_cpu: None }) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

/// Listening sockets for a portal, one for each shard in order, sharing its address. A connection goes to the shard on
/// whose CPU its packets arrive.
pub fn portal_listeners(address: SocketAddr, shards: &Shards) -> io::Result<Vec<OwnedFd>> {
    // SO_REUSEPORT would share the address with another server of the same user; a plain socket first shows whether it
    // is free.
    let probe = listen_patiently(address)?;
    let address = net::local_address(probe.as_fd())?;
    drop(probe);
    let mut listeners = Vec::new();
    for &cpu in shards.cores() {
        let options = ListenOptions { reuse_port: true, backlog: BACKLOG, incoming_cpu: Some(cpu) };
        listeners.push(net::listen(address, options)?);
    }
    let highest = shards.cores().iter().max().copied().unwrap_or(0);
    let count = shards.cores().len();
    let map: Vec<u32> = (0..=highest)
        .map(|cpu| shards.cores().iter().position(|&core| core == cpu).unwrap_or(cpu % count) as u32)
        .collect();
    if count > 1
        && let Some(first) = listeners.first()
        && let Err(error) = net::steer_by_cpu(first.as_fd(), &map)
    {
        tracing::warn!(%error, "connections are spread over shards by hash, not by the CPU that receives them");
    }
    Ok(listeners)
}
