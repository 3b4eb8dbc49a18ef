//! The engine of a disk that is written: block allocation and the log, owned by the disk's home shard.

use std::sync::Arc;

use super::view::{BatView, FlushMark, Geometry};

/// The caller's mark of a request that waits for an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(pub u64);

/// Identifies a metadata operation between [`Engine::poll_io`] and [`Engine::complete`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IoId(pub u32);

/// One operation on the disk's file that the caller has to carry out, and to complete exactly once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetadataIo<'a> {
    /// For [`Engine::complete`].
    pub id: IoId,
    /// What to do.
    pub kind: MetadataIoKind<'a>,
}

/// What a [`MetadataIo`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetadataIoKind<'a> {
    /// Write these bytes: offset and length are multiples of 4 KiB, at most `METADATA_WRITE_BYTES_MAX`. Copy them out (into an
    /// aligned buffer) before the next call on the engine.
    Write {
        /// Byte offset in the file.
        offset_bytes: u64,
        /// What to write.
        bytes: &'a [u8],
    },
    /// Make everything completed so far durable, the file size included (fdatasync).
    Sync,
    /// Grow the file so that it ends at `to_bytes`; the new bytes are reserved and read as zeros.
    Extend {
        /// The present end.
        from_bytes: u64,
        /// The new end.
        to_bytes: u64,
    },
    /// Make a range inside the file read as zeros. [`IoFailure::Unsupported`] is a fine answer.
    ZeroRange {
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
}

/// Why a metadata operation failed.
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
    #[error("too many allocations are waiting")]
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

/// What [`Engine::allocate`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocate {
    /// The block has space already: plan again.
    Present,
    /// The ticket will come back in an [`Event::Allocated`].
    Queued,
}

/// What has happened; see [`Engine::poll_event`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The write session is open (or cannot be opened): plan the writes again that waited for it.
    WriteSession(Result<(), EngineError>),
    /// An allocation has ended. `Ok`: its log entry has left the process and the view shows the block.
    Allocated {
        /// The request's mark.
        ticket: Ticket,
        /// How it ended.
        result: Result<(), EngineError>,
    },
    /// [`Engine::close`] has ended; the file may be closed. After an error the log is left to the next open.
    Closed(Result<(), EngineError>),
}

/// Allocation and log of one open disk.
pub struct Engine {
    geometry: Geometry,
    view: Arc<BatView>,
}

impl Engine {
    /// The disk's geometry.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The view that this engine writes.
    pub fn view(&self) -> &Arc<BatView> {
        &self.view
    }

    /// Open the write session unless it is open or opening. [`Event::WriteSession`] tells when it is.
    pub fn begin_write_session(&mut self) -> Result<(), EngineError> {
        todo!()
    }

    /// Give `block` space. Opens the write session where that has not happened. A block may be asked for by many tickets.
    pub fn allocate(&mut self, _block: u32, _ticket: Ticket) -> Result<Allocate, EngineError> {
        todo!()
    }

    /// The next operation to carry out, if any. Call until `None` after every other call. Operations given out before one is completed may run
    /// in any order.
    pub fn poll_io(&mut self) -> Option<MetadataIo<'_>> {
        todo!()
    }

    /// An operation has ended.
    pub fn complete(&mut self, _id: IoId, _result: Result<(), IoFailure>) {
        todo!()
    }

    /// An operation could not be started (no buffer, no slot): [`Self::poll_io`] will give it out again.
    pub fn not_started(&mut self, _id: IoId) {
        todo!()
    }

    /// The next event, if any. Call until `None` after [`Self::complete`], [`Self::allocate`] and [`Self::close`].
    pub fn poll_event(&mut self) -> Option<Event> {
        todo!()
    }

    /// A sync of the file for the guest, on the home shard: call before it starts. Other shards use [`BatView::flush_started`].
    pub fn flush_started(&self) -> FlushMark {
        self.view.flush_started()
    }

    /// How that sync ended. A failure poisons the disk.
    pub fn flush_done(&mut self, _mark: FlushMark, _result: Result<(), IoFailure>) {
        todo!()
    }

    /// Finish what is queued, write the table in place, empty the log, give preallocated space back. [`Event::Closed`] ends it.
    /// Call once no payload I/O of the disk is in flight or to come.
    pub fn close(&mut self) {
        todo!()
    }

    /// Nothing is queued or in flight.
    pub fn is_idle(&self) -> bool {
        todo!()
    }
}
