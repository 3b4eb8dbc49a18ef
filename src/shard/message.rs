//! What other threads may say to a shard: the control plane's messages and their answers.
//!
//! Messages are rare and may allocate; they never carry an initiator's data. A shard handles them between two turns of
//! I/O and answers through the [`Reply`] that came with the question.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::agreement::{PlaceMaker, ReservationStore};
use super::record::{Exchanged, Notes};
use super::settings::{DiskSettings, Keeper};
use crate::blocks::{Engine, SpaceReport};
use crate::iscsi::access::{AccessRule, Caller};
use crate::iscsi::directory::Directory;
use crate::medium::Disk;
use crate::observe::SessionStats;
use crate::scsi::reservations::Reservations;
use crate::scsi::{AccessState, Attention};
use crate::units::{DiskId, Lun, PortalId, ShardId, TargetId};

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
    /// The LUNs of each target that everybody sees who may log in.
    pub luns: HashMap<TargetId, LunMap>,
    /// The ports of each target.
    pub ports: HashMap<TargetId, Vec<TargetPort>>,
    /// The ports that lead to each disk that some target maps.
    pub disk_ports: HashMap<DiskId, Vec<TargetPort>>,
    /// LUNs that only some initiators see, narrow rules first.
    pub masks: HashMap<TargetId, Vec<Mask>>,
    /// Settings of disks. What initiators change themselves counts from here when the disk is first configured.
    pub disks: HashMap<DiskId, DiskSettings>,
    /// Keeps what initiators save.
    pub keeper: Option<Keeper>,
    /// Makes places for reservations that go with their disks.
    pub place_maker: Option<PlaceMaker>,
    /// How long a command waits for a file before it is ended, in milliseconds; 30 seconds unless it is said.
    pub io_deadline_ms: Option<u64>,
}

/// LUNs for the initiators that a rule means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    /// Who sees them.
    pub rule: AccessRule,
    /// The LUNs.
    pub luns: LunMap,
}

/// A target port: a target in one of its portal groups (RFC 7143 section 3.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetPort {
    /// Target portal group tag.
    pub portal_group_tag: u16,
    /// RELATIVE TARGET PORT IDENTIFIER: no other port of the server has it. The port is also the only one of the TARGET
    /// PORT GROUP of this number, so that each can be in a state of its own.
    pub number: u16,
    /// The state that the operator wants it in.
    pub state: AccessState,
    /// PREF: initiators should come this way.
    pub preferred: bool,
}

impl Configuration {
    /// The number of a target's port; 1 where ports are not numbered.
    pub fn port_number(&self, target: TargetId, portal_group_tag: u16) -> u16 {
        let ports = self.ports.get(&target).map_or(&[][..], Vec::as_slice);
        ports.iter().find(|port| port.portal_group_tag == portal_group_tag).map_or(1, |port| port.number)
    }

    /// The LUNs of a target that an initiator sees. Where two are meant for it under one number, the narrower rule
    /// decides; and so it does under which number it sees a disk.
    #[must_use]
    pub fn luns_seen_by(&self, target: TargetId, caller: &Caller<'_>) -> Cow<'_, LunMap> {
        static NONE: LunMap = LunMap::new();
        let common = self.luns.get(&target).unwrap_or(&NONE);
        let masks = self.masks.get(&target).map_or(&[][..], Vec::as_slice);
        let fitting: Vec<&Mask> = masks.iter().filter(|mask| mask.rule.fits(caller)).collect();
        if fitting.is_empty() {
            return Cow::Borrowed(common);
        }
        let mut seen = LunMap::new();
        let mut disks = HashSet::new();
        for (lun, mapping) in fitting.into_iter().map(|mask| &mask.luns).chain([common]).flatten() {
            if !seen.contains_key(lun) && disks.insert(mapping.disk) {
                seen.insert(*lun, *mapping);
            }
        }
        Cow::Owned(seen)
    }
}

/// The LUNs of one target.
pub type LunMap = std::collections::BTreeMap<Lun, Mapping>;

/// One connection of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionInfo {
    /// Its CID.
    pub connection_id: u16,
    /// The initiator's address.
    pub peer: SocketAddr,
    /// Ours.
    pub local: SocketAddr,
}

/// A living session, as `lunaring session list` shows it.
#[derive(Clone, Debug)]
pub struct SessionInfo {
    /// Its connections, at least one. Addresses and digests below are the first one's.
    pub connections: Vec<ConnectionInfo>,
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

/// Which commands of a disk a pause holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Those that change the map of its leaf: writes of what has no space or cannot be seen yet, and UNMAP.
    Changes,
    /// All that touch its files. Only then can the disk be given another form.
    All,
}

/// Why a disk could not be paused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PauseError(pub String);

/// What a disk's home shard knows of its engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineReport {
    /// Where the space of the leaf's file is; `None` without an engine.
    pub space: Option<SpaceReport>,
    /// What children of the leaf go by, as it is in the file now.
    pub data_write_guid: Option<[u8; 16]>,
    /// Former leaves that are still being closed.
    pub retiring: u32,
}

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
        /// Its portal group.
        portal_group_tag: u16,
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
    /// Note what a disk is asked for, until this room is full; or end that.
    Record {
        /// The disk.
        disk: DiskId,
        /// Who records.
        recorder: u128,
        /// Where notes go from now on; `None` ends it.
        room: Option<Box<Notes>>,
        /// Answered with the notes that were taken since the last such message of this recorder.
        reply: Reply<Exchanged>,
    },
    /// Make a disk known. The disk's home shard also gets its engine.
    Attach {
        /// The disk.
        disk: Arc<Disk>,
        /// Present exactly on the home shard of a disk that opened with one.
        engine: Option<Box<dyn Engine>>,
        /// Answered when commands can reach it.
        reply: Reply<()>,
    },
    /// Before a configuration names a disk: its reservations that outlasted the last end of the server.
    Remember {
        /// The disk.
        disk: DiskId,
        /// They.
        reservations: Arc<Reservations>,
        /// Where they are made durable; on the home shard.
        store: Option<ReservationStore>,
        /// Answered when in force.
        reply: Reply<()>,
    },
    /// Ask for a disk's reservations, on any shard.
    ReportReservations {
        /// The disk.
        disk: DiskId,
        /// `None`: the disk is not attached.
        reply: Reply<Option<Arc<Reservations>>>,
    },
    /// Take all reservations off a disk, on its home shard. Its initiators are told.
    ClearReservations {
        /// The disk.
        disk: DiskId,
        /// Answered when in force on all shards.
        reply: Reply<Result<(), DetachError>>,
    },
    /// Forget a disk that no LUN names any more. Send to the home shard last: there its metadata is written back and
    /// the file's log is closed. Answered when no operation of this shard uses it.
    Detach {
        /// The disk.
        disk: DiskId,
        /// Answered when done; an error means that the file was left to be recovered by log replay.
        reply: Reply<Result<(), DetachError>>,
    },
    /// Hold commands of a disk: those that are at work on its files come to the end of their window, others wait where
    /// they would begin one. Everything else goes on, other units of the same sessions too. Ended by `Resume` or
    /// `Swap`.
    Pause {
        /// The disk.
        disk: DiskId,
        /// Which commands. Changes may be held first, and all when that is answered.
        hold: Hold,
        /// How long to wait for those that are at work. The pause is undone when they take longer.
        patience_ms: u64,
        /// Answered when no command of this shard that is to be held is at work.
        reply: Reply<Result<(), PauseError>>,
    },
    /// End a pause that is or is coming to be; nothing happens when there is none.
    Resume {
        /// The disk.
        disk: DiskId,
        /// Answered when the commands go on.
        reply: Reply<()>,
    },
    /// Put another form of a paused disk (of the same number) in its place, and let its commands go on with that. Send
    /// it to the home shard first, and to the others when that has answered.
    Swap {
        /// The new form.
        disk: Arc<Disk>,
        /// Its engine, on the home shard. `None` without `retire`: the engine stays that is there, for changes of the
        /// layers below the leaf.
        engine: Option<Box<dyn Engine>>,
        /// Close the present engine beside the new one; a flush makes both leaves durable until it has closed.
        /// Otherwise it must have been closed before, or stay.
        retire: bool,
        /// Told, on the home shard and with `retire`, when the former engine has closed.
        retired: Option<Reply<Result<(), DetachError>>>,
        /// What every session with a LUN on the disk is told.
        attention: Option<Attention>,
        /// Answered when the commands go on.
        reply: Reply<Result<(), DetachError>>,
    },
    /// The file system behind a thin provisioned disk has little space left: its initiators are told. To its home.
    LittleSpace {
        /// The disk.
        disk: DiskId,
    },
    /// What a shard wanted kept ([`Keep`](super::Keep)) is durable, or cannot be.
    Kept {
        /// [`Keep::ticket`](super::Keep::ticket).
        ticket: u64,
        /// It is durable.
        is_kept: bool,
    },
    /// The answer to a [`PlaceMaker`]: where a disk's reservations are made durable from now on. To its home.
    Place {
        /// The disk.
        disk: DiskId,
        /// `None`: no place can be made beside the disk.
        store: Option<ReservationStore>,
    },
    /// Close the engine of a paused disk, on its home shard; its files stay open and can be read. It can be opened anew
    /// and put in its place with `Swap`.
    CloseEngine {
        /// The disk.
        disk: DiskId,
        /// Answered when the file is clean.
        reply: Reply<Result<(), DetachError>>,
    },
    /// Open the write session of a disk's engine, on its home shard: identifiers that change with the first
    /// modification have changed then, durably. The answer is the leaf's DataWriteGuid, where it has one.
    BeginSession {
        /// The disk.
        disk: DiskId,
        /// Answered when the session is open.
        reply: Reply<Result<Option<[u8; 16]>, DetachError>>,
    },
    /// Make one step of compaction, on the disk's home shard.
    Relocate {
        /// The disk.
        disk: DiskId,
        /// Whether there may be more to do.
        reply: Reply<Result<bool, DetachError>>,
    },
    /// Ask a disk's home shard about its engine.
    ReportEngine {
        /// The disk.
        disk: DiskId,
        /// `None`: the disk is not attached, or has no home here.
        reply: Reply<Option<EngineReport>>,
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
