//! What shards say to each other.
//!
//! Two conversations exist. A shard asks a disk's **home shard** for what only the home may do (allocate blocks, open
//! the write session, flush); and it asks the **registrar** (shard 0) for a session identity at login. Questions carry
//! who asks, answers carry it back; nothing is remembered in between except by the asker. A connection that logs in to
//! a session of another shard moves there before it has said more than that.

use std::sync::Arc;

use super::agreement::{Change, News};
use super::erase::EraseOrder;
use super::exclusive::ByteRange;
use super::registrar::{Applicant, Granted};
use super::settings::Setting;
use crate::blocks::{Done, LevelFault};
use crate::iscsi::login::Arrival;
use crate::iscsi::pdu::LoginStatus;
use crate::iscsi::task_management::TaskManagement;
use crate::ring::Fd;
use crate::scsi::{Attention, MediumError, Outcome};
use crate::units::{DiskId, ShardId, TargetId};

/// A connection of some shard: slab index and generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LinkKey {
    /// Index in the shard's link table.
    pub(crate) index: u32,
    /// Tells a reused slot from the old one.
    pub(crate) generation: u32,
}

impl LinkKey {
    /// An asker that does not wait for the answer.
    pub(crate) const NOBODY: Self = Self { index: u32::MAX, generation: 0 };

    /// Nobody asked: there is no answer.
    pub(crate) const UNASKED: Self = Self { index: u32::MAX, generation: 1 };
}

/// Who asked the home shard, and for which task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asker {
    /// The asking shard.
    pub(crate) shard: ShardId,
    /// The connection.
    pub(crate) link: LinkKey,
    /// The task on that connection.
    pub(crate) task: u16,
}

impl HomeRequest {
    /// The leaf's map may become another.
    pub(crate) fn changes_map(self) -> bool {
        matches!(self, Self::Prepare { .. } | Self::Commit { .. } | Self::Unmap { .. } | Self::WriteAtomic { .. })
    }
}

/// What only a disk's home shard may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HomeRequest {
    /// Make this byte range writable: open the write session, give its blocks space. Then plan again.
    Prepare {
        /// First byte of the disk.
        offset_bytes: u64,
        /// Length in bytes.
        len_bytes: u64,
    },
    /// The range has been written where a plan of this epoch said: make it visible. Unless that happens, the range is
    /// to be planned and written again.
    Commit {
        /// First byte of the disk.
        offset_bytes: u64,
        /// Length in bytes.
        len_bytes: u64,
        /// The plan's.
        epoch: u32,
    },
    /// Release the blocks that lie wholly in the range.
    Unmap {
        /// First byte of the disk.
        offset_bytes: u64,
        /// Length in bytes.
        len_bytes: u64,
    },
    /// Write the range atomically through the leaf's log. What is not in the leaf's file is to be had there first.
    WriteAtomic {
        /// First byte of the disk.
        offset_bytes: u64,
        /// Length in bytes.
        len_bytes: u64,
        /// The number of the range: its data waits in that slot.
        number: u8,
    },
    /// Load a page of a map. Then plan again.
    Load(LevelFault),
    /// Make everything that completed before durable.
    Flush,
    /// Have these bytes of the disk to oneself, on all shards. Answered by [`PeerMessage::RangeGranted`].
    HoldRange {
        /// These.
        range: ByteRange,
        /// They are going to be written atomically.
        is_atomic: bool,
    },
    /// Change a setting of the unit, on all shards.
    Set(Setting),
}

/// A message between shards.
#[derive(Debug)]
pub(crate) enum PeerMessage {
    /// To a disk's home.
    Home {
        /// The disk.
        disk: DiskId,
        /// How often the asking shard has seen another form of it put in its place: until the home shard has seen as
        /// many, what is asked is not for it.
        swaps: u32,
        /// Who asks.
        asker: Asker,
        /// For what.
        request: HomeRequest,
    },
    /// From a disk's home.
    HomeDone {
        /// Who asked.
        asker: Asker,
        /// How it went.
        result: Result<Done, MediumError>,
    },
    /// From a disk's home, to every shard: say when all plans for it that were made before this have been carried out.
    Barrier {
        /// The disk.
        disk: DiskId,
        /// Its home.
        home: ShardId,
    },
    /// To a disk's home: they have been.
    BarrierPassed {
        /// The disk.
        disk: DiskId,
    },
    /// To a disk's home: empty or overwrite the unit.
    Erase {
        /// The disk.
        disk: DiskId,
        /// Who asks.
        asker: Asker,
        /// What is to be done.
        order: Box<EraseOrder>,
    },
    /// From a disk's home, to every shard: a setting of the unit has changed. Say when it is in force.
    Set {
        /// The disk.
        disk: DiskId,
        /// What has changed.
        setting: Setting,
        /// Who has asked for it.
        asker: Asker,
        /// The disk's home.
        home: ShardId,
        /// Which change that is there.
        change: u64,
    },
    /// To a disk's home: a change is in force on this shard.
    HasSet {
        /// Which.
        change: u64,
    },
    /// From a disk's home, to every shard: a command is to have a range to itself. Say when nobody is at work there.
    HoldRange {
        /// The disk.
        disk: DiskId,
        /// Tells the disk's ranges apart.
        number: u8,
        /// The range.
        range: ByteRange,
        /// It is going to be written atomically.
        is_atomic: bool,
        /// The command.
        asker: Asker,
        /// The disk's home.
        home: ShardId,
    },
    /// To a disk's home: nobody of this shard is at work in a range, nor will be.
    RangeHeld {
        /// The disk.
        disk: DiskId,
        /// The range's.
        number: u8,
    },
    /// From a disk's home: the asker has the range that it asked for.
    RangeGranted {
        /// Who asked.
        asker: Asker,
        /// The range's.
        number: u8,
    },
    /// To a disk's home: who had a range needs it no longer.
    ReleaseRange {
        /// The disk.
        disk: DiskId,
        /// The range's.
        number: u8,
    },
    /// From a disk's home, to every shard: nobody has the range any more.
    FreeRange {
        /// The disk.
        disk: DiskId,
        /// The range's.
        number: u8,
    },
    /// To a disk's home: change what all shards agree on.
    Agree {
        /// The disk.
        disk: DiskId,
        /// Who asks, if somebody waits for the answer.
        asker: Option<Asker>,
        /// What for.
        change: Box<Change>,
    },
    /// From a disk's home: the change is in force on all shards, or will not be.
    Agreed {
        /// Who asked.
        asker: Asker,
        /// How the command ends.
        outcome: Outcome,
    },
    /// From a disk's home, to every shard: what is agreed on from now on.
    News {
        /// The disk.
        disk: DiskId,
        /// Its home.
        home: ShardId,
        /// The news.
        news: Arc<News>,
    },
    /// To a disk's home: they are in force, and commands that were to be aborted have ended.
    NewsHeard {
        /// The disk.
        disk: DiskId,
    },
    /// To the registrar: a login wants its session identity. An older session of the same name is ended first.
    Register {
        /// Who wants which session.
        applicant: Box<Applicant>,
    },
    /// From the registrar: the identity, or why there is none.
    Registered {
        /// The connection that logs in.
        link: LinkKey,
        /// Its Target Session Identifying Handle, and what it gets.
        decision: Result<(u16, Granted), LoginStatus>,
    },
    /// To the registrar: a login names this session. Where is it?
    Locate {
        /// Its handle.
        tsih: u16,
        /// The shard whose connection logs in.
        shard: ShardId,
        /// That connection.
        link: LinkKey,
    },
    /// From the registrar: there; `None`: nowhere.
    Located {
        /// The connection that logs in.
        link: LinkKey,
        /// The session's shard.
        shard: Option<ShardId>,
    },
    /// To the shard of a session: a connection that logs in to it.
    Adopt {
        /// Its socket.
        socket: Fd,
        /// How it came in.
        arrival: Arrival,
        /// What has been received.
        bytes: Box<[u8]>,
    },
    /// To the own shard: the other connections of the asker's session do this. Answered by [`PeerMessage::ResetDone`].
    Siblings {
        /// Who asks.
        asker: Asker,
        /// For what.
        order: SiblingOrder,
    },
    /// From the registrar: end this connection, its session was reinstated elsewhere.
    EndSession {
        /// The connection.
        link: LinkKey,
    },
    /// To the registrar: a connection of a session has ended, and the session with the last one.
    ConnectionEnded {
        /// The session's handle.
        tsih: u16,
        /// The connection's shard.
        shard: ShardId,
        /// The connection.
        link: LinkKey,
    },
    /// To every shard: a task management function aborts the tasks of these units, whosever they are (SAM-5 clause 7).
    Reset {
        /// Which units.
        scope: ResetScope,
        /// What the initiators learn.
        attention: Attention,
        /// A target cold reset: the target's other sessions end as well.
        drop_sessions: bool,
        /// Who answers the initiator when all shards are done.
        asker: Asker,
    },
    /// From a shard: its tasks of the reset have ended, or it could not even begin.
    ResetDone {
        /// Who asked.
        asker: Asker,
        /// They have ended.
        done: bool,
    },
}

/// What a session's connection wants of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SiblingOrder {
    /// Abort what this function of the session covers.
    Abort(TaskManagement),
    /// Abort the copy of this list identifier.
    AbortCopy(u32),
    /// End: a logout has closed the session.
    EndAll,
    /// End the one of this CID: a logout has closed it.
    End(u16),
}

/// Which logical units a reset covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ResetScope {
    /// One disk, through whichever target it is reached.
    Unit(DiskId),
    /// Every LUN of a target.
    Target(TargetId),
}
