//! The contract of a writable layer's engine: who changes its block map and its file's metadata, without doing I/O.
//!
//! An engine has one owner at a time: the home shard of its disk, or a blocking job. The owner's loop: after every
//! call, [`Engine::poll_io`] until `None`, then [`Engine::poll_event`] until `None`. What is asked for between two
//! `poll_io` shares a group.

use std::sync::Arc;

use super::map::{BlockMap, Fault, FlushMark};

/// Longest [`MetadataIoKind::Write`] and [`MetadataIoKind::Read`].
pub const METADATA_IO_BYTES_MAX: usize = 1024 * 1024;

/// Atomic writes begin and end at multiples of this: the pages that logs hold.
pub const ATOMIC_WRITE_BYTES: u32 = 4096;

/// The caller's mark of a request that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(pub u64);

/// Identifies an operation between [`Engine::poll_io`] and its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IoId(pub u32);

/// One operation that the caller has to carry out, and to complete exactly once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetadataIo<'a> {
    /// For the completion.
    pub id: IoId,
    /// What to do.
    pub kind: MetadataIoKind<'a>,
}

/// What a [`MetadataIo`] does to the layer's file. Completed by [`Engine::complete`], except where it says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetadataIoKind<'a> {
    /// Write these bytes: offset and length are multiples of 512, of 4096 for VHDX; at most [`METADATA_IO_BYTES_MAX`].
    /// Copy them out (into an aligned buffer) before the next call on the engine.
    Write {
        /// Byte offset in the file.
        offset_bytes: u64,
        /// What to write.
        bytes: &'a [u8],
    },
    /// Read; same alignment and bound. Completed by [`Engine::complete_read`]. What is behind the file's end reads as
    /// zeros.
    Read {
        /// Byte offset in the file.
        offset_bytes: u64,
        /// Length in bytes.
        len_bytes: u32,
    },
    /// Make everything completed so far durable, the file size and the guests' data included (fdatasync).
    Sync,
    /// Grow the file so that it ends at `to_bytes`; the new bytes are reserved and read as zeros.
    Extend {
        /// The present end.
        from_bytes: u64,
        /// The new end.
        to_bytes: u64,
    },
    /// Make a range inside the file read as zeros and keep its space. [`IoFailure::Unsupported`] is a fine answer.
    ZeroRange {
        /// First byte.
        offset_bytes: u64,
        /// Length in bytes.
        len_bytes: u64,
    },
    /// Give the space of a range inside the file back to the file system; it reads as zeros afterwards.
    /// [`IoFailure::Unsupported`] is a fine answer.
    PunchHole {
        /// First byte.
        offset_bytes: u64,
        /// Length in bytes.
        len_bytes: u64,
    },
    /// Shorten the file.
    Truncate {
        /// The new end.
        len_bytes: u64,
    },
    /// Completes when every task that had planned on this map before has ended, on all shards.
    Barrier,
    /// Copy payload inside the file; the ranges do not overlap. Completed by [`Engine::complete_copy`]. When all bytes
    /// are zero the caller may leave the destination as it is.
    CopyBlock {
        /// From this byte offset.
        from_bytes: u64,
        /// To this byte offset.
        to_bytes: u64,
        /// Length in bytes: at most a block.
        len_bytes: u64,
    },
}

/// Why an operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoFailure {
    /// No space (ENOSPC, EDQUOT, EFBIG).
    OutOfSpace,
    /// The file system does not know this operation (EOPNOTSUPP).
    Unsupported,
    /// Anything else.
    Failed,
}

/// Why the engine refused or failed a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The group that collects is full: try again after the next [`Event`].
    #[error("too many changes are waiting")]
    Busy,
    /// The file cannot grow. The disk stays healthy; blocks that have space can be written.
    #[error("no space is left for the disk's file")]
    OutOfSpace,
    /// Metadata I/O has failed; the disk must be opened anew.
    #[error("metadata I/O on the disk's file has failed")]
    Poisoned,
    /// The engine is closing or closed.
    #[error("the disk is being closed")]
    Closed,
}

/// What became of a request at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Nothing has to be done, or all is done: plan again. No event follows.
    Already,
    /// The ticket will come back in an [`Event::Done`].
    Queued,
}

/// How a request that was queued has ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// It is done.
    Ok,
    /// What it was asked for no longer fits the map: plan again, and ask again where the plan says so. For a commit:
    /// the data has to be written again too.
    PlanAgain,
}

/// Memory in which the data of atomic writes waits until it is in place.
pub trait Payload: Send + Sync {
    /// Copy bytes out, from byte `at` on.
    fn copy_out(&self, at: u64, into: &mut [u8]);
}

/// What has happened; see [`Engine::poll_event`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The write session is open (or cannot be opened): plan the writes again that waited for it.
    WriteSession(Result<(), EngineError>),
    /// A request has ended. When it ended well the map shows it, and what it needs has left the process.
    Done {
        /// The request's mark.
        ticket: Ticket,
        /// How it ended.
        result: Result<Done, EngineError>,
    },
    /// [`Engine::close`] has ended; the file may be closed. After an error recovery is left to the next open.
    Closed(Result<(), EngineError>),
}

/// Where the space of a layer's file is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpaceReport {
    /// Size of the file.
    pub file_len_bytes: u64,
    /// Held by blocks.
    pub allocated_bytes: u64,
    /// Inside the file and free for blocks.
    pub free_inside_bytes: u64,
    /// Given up by blocks, and not free yet.
    pub condemned_bytes: u64,
}

/// The engine. Ranges are bytes of the virtual disk, lie within it and are whole sectors.
pub trait Engine: Send {
    /// The map that it writes.
    fn map(&self) -> &Arc<BlockMap>;

    /// Open the write session unless it is open or opening. [`Event::WriteSession`] tells when it is; when it is open
    /// already there is no event.
    fn begin_write_session(&mut self) -> Result<(), EngineError>;

    /// Give every block of the range space, visible at once where that is safe, else staged; wait for busy blocks.
    /// Opens the write session where that has not happened.
    fn prepare(&mut self, offset_bytes: u64, len_bytes: u64, ticket: Ticket) -> Result<Asked, EngineError>;

    /// Data of the range has been written where a plan of this `epoch` said: make it visible. Sectors that are visible
    /// stay so. [`Done::PlanAgain`] when the epoch is old.
    fn commit(&mut self, offset_bytes: u64, len_bytes: u64, epoch: u32, ticket: Ticket) -> Result<Asked, EngineError>;

    /// Release the blocks that lie wholly in the range (the disk's last block when its visible part does): they read as
    /// zeros afterwards. What the range covers of other blocks is the caller's, who writes zeros there.
    fn unmap(&mut self, offset_bytes: u64, len_bytes: u64, ticket: Ticket) -> Result<Asked, EngineError>;

    /// The most bytes of one [`Self::write_atomic`], which has to begin and end at multiples of [`ATOMIC_WRITE_BYTES`];
    /// 0: this layer cannot.
    fn atomic_write_bytes_max(&self) -> u32 {
        0
    }

    /// Write a range so that a loss of power, at any instant and whoever opens the file afterwards, leaves all of it or
    /// nothing. Its data is in `payload` from byte `payload_at` on, and stays there until the event, which says that it
    /// is in place and durable. Nobody else may read or write the range meanwhile. [`Done::PlanAgain`] when some of it
    /// is not in this layer's file: nothing has been written; prepare it, or write there what is read there now. The
    /// memory is the same each time.
    fn write_atomic(
        &mut self,
        _offset_bytes: u64,
        _len_bytes: u64,
        _payload: Arc<dyn Payload>,
        _payload_at: u64,
        _ticket: Ticket,
    ) -> Result<Asked, EngineError> {
        panic!("only layers that say so write atomically")
    }

    /// One step of compaction. [`Asked::Already`]: nothing is left to be done.
    fn relocate_some(&mut self, ticket: Ticket) -> Result<Asked, EngineError>;

    /// Load a page of the map.
    fn load(&mut self, fault: Fault, ticket: Ticket) -> Result<Asked, EngineError>;

    /// The next operation to carry out, if any. Operations that are given out before one has completed may run in any
    /// order.
    fn poll_io(&mut self) -> Option<MetadataIo<'_>>;

    /// An operation has ended that is neither a read that succeeded nor a copy that did.
    fn complete(&mut self, id: IoId, result: Result<(), IoFailure>);

    /// A read has ended. `bytes` are as long as it asked for.
    fn complete_read(&mut self, id: IoId, result: Result<&[u8], IoFailure>);

    /// A copy has ended; `Ok(true)`: all bytes were zero.
    fn complete_copy(&mut self, id: IoId, result: Result<bool, IoFailure>);

    /// An operation could not be started (no buffer, no slot): [`Self::poll_io`] will give it out again.
    fn not_started(&mut self, id: IoId);

    /// The next event, if any.
    fn poll_event(&mut self) -> Option<Event>;

    /// A sync of the file for the guest, on the home shard: call before it starts. Other shards use
    /// [`BlockMap::flush_started`].
    fn flush_started(&self) -> FlushMark {
        self.map().flush_started()
    }

    /// How that sync ended. A failure poisons the layer.
    fn flush_done(&mut self, mark: FlushMark, result: Result<(), IoFailure>) {
        match result {
            Ok(()) => self.map().flush_done(mark),
            Err(_) => self.map().poison(),
        }
    }

    /// Finish what is queued, write everything in place, give preallocated space back. [`Event::Closed`] ends it. Call
    /// once no payload I/O of the layer is in flight or to come.
    fn close(&mut self);

    /// Nothing is queued or in flight.
    fn is_idle(&self) -> bool;

    /// The identity of the disk's content that its children go by (VHDX: DataWriteGuid), as it is in the file now. It
    /// changes when a write session opens.
    fn data_write_guid(&self) -> Option<[u8; 16]> {
        None
    }

    /// Where the file's space is.
    fn space(&self) -> SpaceReport;
}
