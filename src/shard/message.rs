//! What other threads may say to a shard: the control plane's messages and their answers.
//!
//! Messages are rare and may allocate; they never carry an initiator's data. A shard handles them between two turns of
//! I/O and answers through the [`Reply`] that came with the question.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::iscsi::directory::Directory;
use crate::medium::Disk;
use crate::observe::SessionStats;
use crate::units::{DiskId, Lun, PortalId, ShardId, TargetId};
use crate::vhdx;

/// Called exactly once, on the shard's thread, with the answer. It must not block (hand the value to a channel).
pub type Reply<T> = Box<dyn FnOnce(T) + Send>;

/// One LUN of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The disk behind it; attached to every shard before a configuration names it.
    pub disk: DiskId,
    /// Writes through this LUN are refused, whatever the disk allows.
    pub read_only: bool,
}

/// Everything that sessions need to know of targets: replaced as a whole, never changed in place.
#[derive(Clone, Debug, Default)]
pub struct Configuration {
    /// Targets, access rules, authentication and portals, for login and discovery.
    pub directory: Arc<Directory>,
    /// The LUNs of each target.
    pub luns: HashMap<TargetId, LunMap>,
}

/// The LUNs of one target.
pub type LunMap = std::collections::BTreeMap<Lun, Mapping>;

/// A living session, as `lunaring session list` shows it.
#[derive(Clone, Debug)]
pub struct SessionInfo {
    /// Unique while the server lives: names the session for `session drop`.
    pub id: u64,
    /// Target Session Identifying Handle (RFC 7143 section 11.12.6).
    pub tsih: u16,
    /// Initiator name.
    pub initiator: String,
    /// Target name; `None` in a discovery session.
    pub target: Option<String>,
    /// The initiator's address.
    pub peer: SocketAddr,
    /// The address it connected to.
    pub local: SocketAddr,
    /// The shard that owns the connection.
    pub shard: ShardId,
    /// Header digest in use.
    pub header_digest: bool,
    /// Data digest in use.
    pub data_digest: bool,
    /// Seconds since login.
    pub age_seconds: u64,
    /// Counters of the session.
    pub stats: Arc<SessionStats>,
}

/// Why a disk could not be closed cleanly.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DetachError(pub String);

/// Why a disk could not be paused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PauseError(pub String);

/// A message to one shard.
pub enum ToShard {
    /// Replace the configuration. Sessions whose target is gone or no longer allowed are dropped; LUN changes raise the
    /// unit attention REPORTED LUNS DATA HAS CHANGED. Answered when it is in force on this shard.
    Configure {
        /// The new configuration.
        configuration: Arc<Configuration>,
        /// Answered when in force.
        reply: Reply<()>,
    },
    /// Accept connections on a listening socket (every shard gets its own SO_REUSEPORT socket of a portal).
    Listen {
        /// The portal.
        portal: PortalId,
        /// A socket that listens; the shard owns it from now on.
        listener: OwnedFd,
    },
    /// Close a portal's listening socket. Sessions that came through it stay.
    StopListening {
        /// The portal.
        portal: PortalId,
        /// Answered when the socket is closed.
        reply: Reply<()>,
    },
    /// Make a disk known. The disk's home shard also gets the engine of a VHDX.
    Attach {
        /// The disk.
        disk: Arc<Disk>,
        /// Present exactly on the home shard of a writable VHDX.
        engine: Option<Box<vhdx::Engine>>,
        /// Answered when commands can reach it.
        reply: Reply<()>,
    },
    /// Forget a disk that no LUN names any more. Send to the home shard last: there its metadata is written back and
    /// the file's log is closed. Answered when no operation of this shard uses it.
    Detach {
        /// The disk.
        disk: DiskId,
        /// Answered when done; an error means that the file was left to be recovered by log replay.
        reply: Reply<Result<(), DetachError>>,
    },
    /// Hold the commands of a disk: those that are at work on its files come to the end of their window, others wait
    /// where they would begin one. Everything else goes on, other units of the same sessions too. Ended by `Resume` or
    /// `Swap`.
    Pause {
        /// The disk.
        disk: DiskId,
        /// How long to wait for those that are at work. The pause is undone when they take longer.
        patience_ms: u64,
        /// Answered when nobody of this shard is at work on the disk's files.
        reply: Reply<Result<(), PauseError>>,
    },
    /// End a pause that is or is coming to be; nothing happens when there is none.
    Resume {
        /// The disk.
        disk: DiskId,
        /// Answered when the commands go on.
        reply: Reply<()>,
    },
    /// List this shard's sessions.
    ListSessions {
        /// Gets the list.
        reply: Reply<Vec<SessionInfo>>,
    },
    /// Drop a session of this shard.
    DropSession {
        /// [`SessionInfo::id`].
        id: u64,
        /// Whether there was such a session here.
        reply: Reply<bool>,
    },
    /// Tell every session by async message that the target goes away, finish what is in flight, close all connections
    /// and listeners. Disks stay attached. Answered when no connection is left.
    Quiesce {
        /// At most this long for commands in flight.
        patience_ms: u64,
        /// Answered when quiet.
        reply: Reply<()>,
    },
    /// End the shard's thread. Only after `Quiesce` and after every disk was detached.
    Stop,
}
