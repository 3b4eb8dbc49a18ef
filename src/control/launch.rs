//! Starting the real thing: shards, then the control plane on top of them.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::config::parse_portal;
use super::controller::Controller;
use super::cpus::{Placement, place};
use super::dataplane::DataPlane;
use super::error::Refused;
use super::server::{self, Options, Plane, Ready};
use crate::observe::ShardStats;
use crate::ring::FeatureLimit;
use crate::shard::message::ToShard;
use crate::shard::placement::{allowed_cpus, parse_cores};
use crate::shard::{Shards, ShardsConfig, portal_listeners};
use crate::units::ShardId;

/// The most memory for buffers that all shards together may take: half of what the machine has.
const MEMORY_SHARE: u64 = 2;

/// What one shard gets at least: buffers for a few busy sessions.
const MEMORY_PER_SHARD_MIN_BYTES: u64 = 256 << 20;

/// What one shard gets at most. Its sessions cannot use more: 4,096 idle connections and some thousands of bursts.
const MEMORY_PER_SHARD_MAX_BYTES: u64 = 4 << 30;

/// A server as its operator asked for it.
pub struct Launch {
    /// The state folder.
    pub state: PathBuf,
    /// Portals for this run.
    pub portals: Vec<String>,
    /// CPUs of the shards.
    pub cores: Option<String>,
    /// The control socket.
    pub socket: Option<PathBuf>,
    /// Only what every supported kernel has.
    pub baseline: bool,
}

/// Serve until SIGINT or SIGTERM. Gives what did not end cleanly.
///
/// # Errors
/// Why the server did not start.
pub fn launch(
    launch: Launch,
    prepare: impl AsyncFnOnce(&mut Controller) -> Result<(), Refused>,
    ready: impl FnOnce(&Ready),
) -> Result<Vec<String>, Refused> {
    raise_descriptor_limit();
    let portals = launch.portals.iter().map(|portal| parse_portal(portal)).collect::<Result<Vec<_>, _>>()?;
    let usable = allowed_cpus();
    let wanted = launch.cores.as_deref().map(|list| parse_cores(list, &usable)).transpose();
    let Placement { shards, control } = place(&usable, wanted.map_err(Refused::invalid)?);
    let config = ShardsConfig {
        cores: shards.clone(),
        memory_per_shard_bytes: memory_per_shard(shards.len()),
        features: if launch.baseline { FeatureLimit::Baseline } else { FeatureLimit::Full },
    };
    let options = Options { state: launch.state, portals, socket: launch.socket, control_cpu: control, cores: shards };
    let ending = server::ending_on_signals()?;
    let running = Arc::new(Mutex::new(None));
    let start = || {
        let shards = Arc::new(Shards::start(&config).map_err(Refused::failed)?);
        let io_uring = shards.features_line().to_owned();
        *running.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&shards));
        Ok(Plane { shards, io_uring })
    };
    let troubles = server::serve(options, start, prepare, ready, ending)?;
    let shards = running.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(shards) = shards.and_then(Arc::into_inner)
        && troubles.is_empty()
    {
        // Each was told to stop. After trouble one may not hear it, and the end of the process must do.
        shards.join();
    }
    Ok(troubles)
}

impl DataPlane for Shards {
    fn count(&self) -> u16 {
        Shards::count(self)
    }

    fn send(&self, shard: ShardId, message: ToShard) -> Result<(), ToShard> {
        Shards::send(self, shard, message)
    }

    fn stats(&self, shard: ShardId) -> Arc<ShardStats> {
        Shards::stats(self, shard)
    }

    fn listeners(&self, portal: SocketAddr) -> io::Result<Vec<OwnedFd>> {
        portal_listeners(portal, self)
    }
}

/// Use as many descriptors as the system lets us: the limit that a shell hands down is for programs that use select(2).
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Fewer will do until there are many sessions.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

fn memory_per_shard(shards: usize) -> u64 {
    let total = total_memory_bytes().unwrap_or(MEMORY_PER_SHARD_MIN_BYTES);
    let share = total / MEMORY_SHARE / u64::try_from(shards.max(1)).unwrap_or(u64::MAX);
    share.clamp(MEMORY_PER_SHARD_MIN_BYTES, MEMORY_PER_SHARD_MAX_BYTES)
}

/// The machine's memory, as /proc/meminfo says it.
fn total_memory_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}
