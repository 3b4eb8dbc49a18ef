//! The home shard's part: what only one shard may do to a disk, on behalf of all.
//!
//! For a VHDX it owns the engine: it opens the write session, allocates blocks and keeps the log. For every file it
//! runs the flushes that initiators ask for, coalesced: one is running, and all requests that come meanwhile share the
//! next one. A request is answered by message, to this shard itself as well.

use std::sync::Arc;

use super::core::{Io, Mail, Mark};
use super::peer::{Asker, HomeRequest, PeerMessage};
use crate::bounded::{Key, Slab};
use crate::medium::{Backing, Disk, Health, WritePlan};
use crate::mem::Slice;
use crate::ring::{AllocateMode, Completion, Errno, Fd, Op, Ring, Wake};
use crate::scsi::MediumError;
use crate::vhdx::{self, EngineError, Event, FlushMark, IoFailure, IoId, MetadataIoKind, Ticket};

/// Requests whose blocks are being allocated at one home shard, for all shards.
const ALLOCATING_MAX: usize = 4096;

/// Room for requests of one disk that is reserved beforehand; more take memory, up to what all shards may ask for.
const REQUESTS_RESERVED: usize = 64;

/// A byte range that somebody wants to write.
#[derive(Clone, Copy)]
struct Range {
    asker: Asker,
    offset_bytes: u64,
    len_bytes: u64,
}

/// A range whose blocks are being allocated.
struct Allocating {
    range: Range,
    blocks: u32,
    error: Option<MediumError>,
}

/// What is being allocated at this shard.
pub(crate) struct Home {
    allocating: Slab<Allocating>,
}

/// What the home shard keeps for a disk.
pub(crate) struct HomeDisk {
    slot: u32,
    disk: Arc<Disk>,
    fd: Fd,
    engine: Option<Box<vhdx::Engine>>,
    /// Who waits for the flush that runs, and what it makes durable.
    flush_running: Option<Option<FlushMark>>,
    flush_askers: Vec<Asker>,
    /// Who waits for the flush after that.
    flush_next: Vec<Asker>,
    /// Ranges to plan again when the engine has news.
    retries: Vec<Range>,
    retries_spare: Vec<Range>,
    /// The engine could not be served for want of memory or ring slots.
    stalled: bool,
    closing: bool,
    closed: Option<Result<(), EngineError>>,
    /// File operations in flight.
    operations: u32,
}

impl Home {
    pub(crate) fn new() -> Self {
        Self { allocating: Slab::new(ALLOCATING_MAX) }
    }
}

impl HomeDisk {
    /// The home part of a disk; `None` when nothing of it can ever be asked for.
    pub(crate) fn new(slot: u32, disk: Arc<Disk>, engine: Option<Box<vhdx::Engine>>) -> Option<Self> {
        let fd = disk.file()?.fd();
        Some(Self {
            slot,
            disk,
            fd,
            engine,
            flush_running: None,
            flush_askers: Vec::with_capacity(REQUESTS_RESERVED),
            flush_next: Vec::with_capacity(REQUESTS_RESERVED),
            retries: Vec::with_capacity(REQUESTS_RESERVED),
            retries_spare: Vec::with_capacity(REQUESTS_RESERVED),
            stalled: false,
            closing: false,
            closed: None,
            operations: 0,
        })
    }

    /// A request has arrived.
    pub(crate) fn request<R: Ring>(
        &mut self,
        home: &mut Home,
        io: &mut Io<R>,
        mail: &mut Mail<R::Waker>,
        asker: Asker,
        request: HomeRequest,
    ) {
        match request {
            HomeRequest::Prepare { offset_bytes, len_bytes } => {
                self.prepare(home, mail, Range { asker, offset_bytes, len_bytes });
            }
            HomeRequest::Flush if self.disk.read_only() => answer(mail, asker, Ok(())),
            HomeRequest::Flush => {
                self.flush_next.push(asker);
                self.start_flush(io, mail);
            }
        }
        self.pump(home, io, mail);
    }

    /// Answer a range that can be written, or get from the engine what is missing.
    fn prepare<W: Wake>(&mut self, home: &mut Home, mail: &mut Mail<W>, range: Range) {
        match self.disk.plan_write(range.offset_bytes, range.len_bytes as u32) {
            WritePlan::Prepare => {}
            WritePlan::Poisoned => return answer(mail, range.asker, Err(MediumError::Poisoned)),
            _ => return answer(mail, range.asker, Ok(())),
        }
        let Some(engine) = self.engine.as_mut() else {
            return answer(mail, range.asker, Err(MediumError::Removed));
        };
        let Ok(key) = home.allocating.insert(Allocating { range, blocks: 0, error: None }) else {
            return self.retries.push(range);
        };
        match allocate(engine, &self.disk, key, range) {
            Ok(0) => {
                home.allocating.remove(key);
                self.retries.push(range);
            }
            Ok(blocks) => {
                if let Some(allocating) = home.allocating.at_mut(key) {
                    allocating.blocks = blocks;
                }
            }
            Err(error) => {
                home.allocating.remove(key);
                answer(mail, range.asker, Err(error));
            }
        }
    }

    /// Serve the engine: start its operations, hear its news.
    pub(crate) fn pump<R: Ring>(&mut self, home: &mut Home, io: &mut Io<R>, mail: &mut Mail<R::Waker>) {
        loop {
            self.start_operations(io);
            let Some(event) = self.engine.as_mut().and_then(|engine| engine.poll_event()) else { return };
            match event {
                Event::WriteSession(result) => self.retry_all(home, mail, result),
                Event::Allocated { ticket, result } => self.allocated(home, mail, ticket, result),
                Event::Closed(result) => self.closed = Some(result),
            }
        }
    }

    /// Start every operation that the engine wants.
    fn start_operations<R: Ring>(&mut self, io: &mut Io<R>) {
        self.stalled = false;
        let Some(engine) = self.engine.as_mut() else { return };
        while let Some(wanted) = engine.poll_io() {
            let id = wanted.id;
            let op = match wanted.kind {
                MetadataIoKind::Write { offset_bytes, bytes } => {
                    staged(io, bytes).map(|from| Op::Write { file: self.fd, offset_bytes, from, durable: false })
                }
                MetadataIoKind::Sync => Some(Op::Sync { file: self.fd }),
                MetadataIoKind::Extend { from_bytes, to_bytes } => Some(Op::Allocate {
                    file: self.fd,
                    mode: AllocateMode::Extend,
                    offset_bytes: from_bytes,
                    len_bytes: to_bytes - from_bytes,
                }),
                MetadataIoKind::ZeroRange { offset_bytes, len_bytes } => {
                    Some(Op::Allocate { file: self.fd, mode: AllocateMode::ZeroRange, offset_bytes, len_bytes })
                }
                MetadataIoKind::Truncate { len_bytes } => Some(Op::Truncate { file: self.fd, len_bytes }),
            };
            let started = op.is_some_and(|op| io.submit(Mark::Engine(self.slot, id.0), op).is_ok());
            if !started {
                engine.not_started(id);
                self.stalled = true;
                return;
            }
            self.operations += 1;
        }
    }

    /// An operation of the engine has completed.
    pub(crate) fn engine_completed<R: Ring>(
        &mut self,
        home: &mut Home,
        io: &mut Io<R>,
        mail: &mut Mail<R::Waker>,
        id: u32,
        completion: Completion,
    ) {
        self.operations -= 1;
        // A file system without fallocate still grows by truncation; the new bytes read as zeros just as well.
        if let (Err(Errno(libc::EOPNOTSUPP | libc::ENOSYS)), Some(Op::Allocate { mode, offset_bytes, len_bytes, .. })) =
            (completion.result, &completion.op)
            && *mode == AllocateMode::Extend
        {
            let op = Op::Truncate { file: self.fd, len_bytes: offset_bytes + len_bytes };
            if io.submit(Mark::Engine(self.slot, id), op).is_ok() {
                self.operations += 1;
            } else if let Some(engine) = self.engine.as_mut() {
                engine.not_started(IoId(id));
                self.stalled = true;
            }
            return;
        }
        let result = match (completion.result, &completion.op) {
            (Ok(written), Some(Op::Write { from, .. })) if (written as usize) < from.len() => Err(IoFailure::Failed),
            (Ok(_), _) => Ok(()),
            (Err(errno), _) => Err(failure(errno)),
        };
        drop(completion);
        if let Some(engine) = self.engine.as_mut() {
            engine.complete(IoId(id), result);
        }
        self.pump(home, io, mail);
    }

    /// Run the flush that is wanted, unless one runs.
    fn start_flush<R: Ring>(&mut self, io: &mut Io<R>, mail: &mut Mail<R::Waker>) {
        if self.flush_running.is_some() || self.flush_next.is_empty() {
            return;
        }
        if self.disk.health() == Health::Poisoned {
            for asker in self.flush_next.drain(..) {
                answer(mail, asker, Err(MediumError::Poisoned));
            }
            return;
        }
        let mark = match self.disk.backing() {
            Backing::Vhdx { view, .. } => Some(view.flush_started()),
            _ => None,
        };
        if io.submit(Mark::Flush(self.slot), Op::Sync { file: self.fd }).is_err() {
            self.stalled = true;
            return;
        }
        self.operations += 1;
        self.flush_running = Some(mark);
        std::mem::swap(&mut self.flush_askers, &mut self.flush_next);
    }

    /// The flush has completed.
    pub(crate) fn flush_completed<R: Ring>(
        &mut self,
        home: &mut Home,
        io: &mut Io<R>,
        mail: &mut Mail<R::Waker>,
        result: Result<u32, Errno>,
    ) {
        self.operations -= 1;
        let mark = self.flush_running.take().flatten();
        if let (Some(engine), Some(mark)) = (self.engine.as_mut(), mark) {
            engine.flush_done(mark, result.map(|_| ()).map_err(failure));
        }
        if result.is_err() {
            // A failed fsync may have dropped what it could not write: nothing after it can be believed.
            self.disk.poison();
        }
        for asker in self.flush_askers.drain(..) {
            answer(mail, asker, result.map(|_| ()).map_err(|_| MediumError::FlushFailed));
        }
        self.start_flush(io, mail);
        self.pump(home, io, mail);
    }

    /// Try again what memory or the ring refused.
    pub(crate) fn retry_stalled<R: Ring>(&mut self, home: &mut Home, io: &mut Io<R>, mail: &mut Mail<R::Waker>) {
        if self.stalled {
            self.start_flush(io, mail);
            self.pump(home, io, mail);
        }
    }

    /// Whether memory or the ring has refused something.
    pub(crate) fn stalled(&self) -> bool {
        self.stalled
    }

    /// The engine has news: plan everything again that waits for it.
    fn retry_all<W: Wake>(&mut self, home: &mut Home, mail: &mut Mail<W>, session: Result<(), EngineError>) {
        let mut ranges = std::mem::replace(&mut self.retries, std::mem::take(&mut self.retries_spare));
        for range in ranges.drain(..) {
            match session {
                Ok(()) => self.prepare(home, mail, range),
                Err(error) => answer(mail, range.asker, Err(medium_error(error))),
            }
        }
        self.retries_spare = ranges;
    }

    /// One block of a request has been allocated, or could not be.
    fn allocated<W: Wake>(
        &mut self,
        home: &mut Home,
        mail: &mut Mail<W>,
        ticket: Ticket,
        result: Result<(), EngineError>,
    ) {
        let key = Key::from_bits(ticket.0);
        let Some(allocating) = home.allocating.at_mut(key) else { return };
        allocating.blocks -= 1;
        if let Err(failed) = result {
            allocating.error.get_or_insert(medium_error(failed));
        }
        if allocating.blocks == 0
            && let Some(done) = home.allocating.remove(key)
        {
            match done.error {
                Some(error) => answer(mail, done.range.asker, Err(error)),
                None => self.prepare(home, mail, done.range),
            }
        }
        if !self.retries.is_empty() {
            self.retry_all(home, mail, Ok(()));
        }
    }

    /// Whether closing has begun.
    pub(crate) fn closing(&self) -> bool {
        self.closing
    }

    /// Begin to close: no task uses the disk any more.
    pub(crate) fn close<R: Ring>(&mut self, home: &mut Home, io: &mut Io<R>, mail: &mut Mail<R::Waker>) {
        self.closing = true;
        match self.engine.as_mut() {
            Some(engine) => engine.close(),
            None => self.closed = Some(Ok(())),
        }
        self.pump(home, io, mail);
    }

    /// How closing ended, once it has and nothing is in flight.
    pub(crate) fn closed(&self) -> Option<Result<(), EngineError>> {
        self.closed.filter(|_| self.operations == 0)
    }
}

/// Ask the engine for the blocks of a range. The number of blocks that are on their way; zero: try again at the next
/// event.
fn allocate(engine: &mut vhdx::Engine, disk: &Disk, key: Key, range: Range) -> Result<u32, MediumError> {
    let Backing::Vhdx { geometry, view, .. } = disk.backing() else { return Err(MediumError::Removed) };
    let (first_block, block_count) = match vhdx::plan_write(geometry, view, range.offset_bytes, range.len_bytes as u32)
    {
        vhdx::WritePlan::NeedsAllocation { first_block, block_count } => (first_block, block_count),
        vhdx::WritePlan::NeedsWriteSession => {
            return engine.begin_write_session().map(|()| 0).map_err(medium_error);
        }
        vhdx::WritePlan::Ready(_) => return Ok(0),
        vhdx::WritePlan::Poisoned => return Err(MediumError::Poisoned),
    };
    let mut queued = 0;
    for block in first_block..first_block + block_count {
        match engine.allocate(block, Ticket(key.to_bits())) {
            Ok(vhdx::Allocate::Queued) => queued += 1,
            Ok(vhdx::Allocate::Present) | Err(EngineError::Busy) => {}
            Err(error) if queued == 0 => return Err(medium_error(error)),
            Err(_) => {}
        }
    }
    Ok(queued)
}

/// Metadata bytes in a buffer of the arena, which the kernel can take.
fn staged<R: Ring>(io: &Io<R>, bytes: &[u8]) -> Option<Slice> {
    let mut buf = io.arena.take(bytes.len())?;
    buf.truncate(bytes.len());
    buf.copy_from_slice(bytes);
    Some(buf.freeze())
}

fn answer<W: Wake>(mail: &mut Mail<W>, asker: Asker, result: Result<(), MediumError>) {
    mail.post_owed(asker.shard, PeerMessage::HomeDone { asker, result });
}

fn medium_error(error: EngineError) -> MediumError {
    match error {
        EngineError::Busy => MediumError::Busy,
        EngineError::OutOfSpace => MediumError::OutOfSpace,
        EngineError::Poisoned => MediumError::Poisoned,
        EngineError::Closed => MediumError::Removed,
    }
}

fn failure(errno: Errno) -> IoFailure {
    match errno.0 {
        libc::ENOSPC | libc::EDQUOT | libc::EFBIG => IoFailure::OutOfSpace,
        libc::EOPNOTSUPP | libc::ENOSYS => IoFailure::Unsupported,
        _ => IoFailure::Failed,
    }
}
