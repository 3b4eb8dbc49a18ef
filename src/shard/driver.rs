//! Carrying out what an engine wants, on the ring.
//!
//! A driver belongs to one engine and its layer's file. A disk's home shard has one for the leaf, and one for every
//! former leaf whose engine is still being closed. What an engine wants is turned into ring operations, barriers into
//! messages, and copies into reads and writes of a bounded size, one at a time.

use std::sync::Arc;

use super::core::{Io, Mark, Stall};
use crate::blocks::{Engine, EngineError, IoFailure, IoId, MetadataIo, MetadataIoKind};
use crate::medium::{Disk, Doing};
use crate::mem::{Buf, Slice};
use crate::ring::{AllocateMode, Completion, Errno, Fd, Op, Ring, Window};

/// Payload that a copy moves at once.
const COPY_BYTES: u64 = 256 * 1024;

/// An engine with its file.
pub(crate) struct Driver {
    slot: u32,
    /// Tells the drivers of a disk apart.
    number: u16,
    /// Keeps the files open that operations run on.
    disk: Arc<Disk>,
    fd: Fd,
    engine: Option<Box<dyn Engine>>,
    copy: Option<Copy>,
    /// Memory or ring slots were wanting.
    stalled: Stall,
    /// File operations in flight.
    operations: u32,
    closing: bool,
    closed: Option<Result<(), EngineError>>,
}

/// What starting the engine's operations came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Started {
    /// Everything has been started that can be.
    All,
    /// The engine wants this barrier; there may be more to start behind it.
    Barrier(IoId),
}

/// A copy of payload inside the file.
struct Copy {
    id: IoId,
    from_bytes: u64,
    to_bytes: u64,
    len_bytes: u64,
    /// How far it has come.
    at: u64,
    /// Leading bytes that are zeros and have not been written.
    skipped: u64,
    /// Of those, how many have been written after all.
    filled: u64,
    /// Read, and to be written when what was skipped has been.
    chunk: Option<Slice>,
    /// An operation of it is in flight.
    running: bool,
}

impl Driver {
    /// The driver of a leaf; `None` as engine: it is never written, or is written without metadata.
    pub(crate) fn new(slot: u32, number: u16, disk: Arc<Disk>, fd: Fd, engine: Option<Box<dyn Engine>>) -> Self {
        let (copy, closed) = (None, None);
        Self { slot, number, disk, fd, engine, copy, stalled: Stall::default(), operations: 0, closing: false, closed }
    }

    /// Which of the disk's drivers it is.
    pub(crate) fn number(&self) -> u16 {
        self.number
    }

    /// The leaf's file.
    pub(crate) fn fd(&self) -> Fd {
        self.fd
    }

    /// The disk in the form that this driver serves.
    pub(crate) fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// The layers below the leaf have changed.
    pub(crate) fn set_disk(&mut self, disk: Arc<Disk>, fd: Fd) {
        self.disk = disk;
        self.fd = fd;
    }

    pub(crate) fn engine(&mut self) -> Option<&mut Box<dyn Engine>> {
        self.engine.as_mut()
    }

    /// Memory or the ring has refused something.
    pub(crate) fn stalled(&self) -> bool {
        self.stalled.is_set()
    }

    fn mark(&self, id: IoId) -> Mark {
        Mark::Engine(self.slot, self.number, id.0)
    }

    /// Start the operations that the engine wants, up to a barrier.
    pub(crate) fn start_operations<R: Ring>(&mut self, io: &mut Io<R>) -> Started {
        if self.engine.is_none() {
            // Its last sync may be what has stalled.
            return Started::All;
        }
        self.stalled.clear();
        self.go_on_copying(io);
        loop {
            let Some(wanted) = self.engine.as_mut().and_then(|engine| engine.poll_io()) else { return Started::All };
            let id = wanted.id;
            let op = match wanted.kind {
                MetadataIoKind::Barrier => return Started::Barrier(id),
                MetadataIoKind::CopyBlock { from_bytes, to_bytes, len_bytes } => {
                    if self.copy.is_some() {
                        self.not_started(id);
                        return Started::All;
                    }
                    let (at, skipped, filled, chunk, running) = (0, 0, 0, None, false);
                    self.copy = Some(Copy { id, from_bytes, to_bytes, len_bytes, at, skipped, filled, chunk, running });
                    self.go_on_copying(io);
                    continue;
                }
                _ => operation(io, self.fd, &wanted),
            };
            let started = op.is_some_and(|op| io.submit(self.mark(id), op).is_ok());
            if !started {
                self.not_started(id);
                self.stalled.set(io);
                return Started::All;
            }
            self.operations += 1;
        }
    }

    fn not_started(&mut self, id: IoId) {
        if let Some(engine) = self.engine.as_mut() {
            engine.not_started(id);
        }
    }

    /// A barrier that the engine wants cannot be set up now.
    pub(crate) fn barrier_refused<R: Ring>(&mut self, io: &mut Io<R>, id: IoId) {
        self.not_started(id);
        self.stalled.set(io);
    }

    /// A barrier has passed.
    pub(crate) fn barrier_ended(&mut self, id: IoId) {
        if let Some(engine) = self.engine.as_mut() {
            engine.complete(id, Ok(()));
        }
    }

    /// An operation of the engine has completed.
    pub(crate) fn completed<R: Ring>(&mut self, io: &mut Io<R>, id: IoId, completion: Completion) {
        self.operations -= 1;
        if let Err(errno) = completion.result {
            let doing = match completion.op {
                Some(Op::Read { .. }) => None,
                Some(Op::Sync { .. }) => Some(Doing::Flushing),
                _ => Some(Doing::WritingMetadata),
            };
            let _ = doing.map(|doing| self.disk.trouble().note(doing, errno.0));
        }
        if self.copy.as_ref().is_some_and(|copy| copy.id == id) {
            return self.copy_completed(io, completion);
        }
        if self.grows_otherwise(io, id, &completion) {
            return;
        }
        let Some(engine) = self.engine.as_mut() else { return };
        match (completion.result, completion.op) {
            (Ok(read), Some(Op::Read { mut into, .. })) => {
                // What is behind the file's end reads as zeros.
                into.bytes_mut()[read as usize..].fill(0);
                engine.complete_read(id, Ok(into.bytes()));
            }
            (Err(errno), Some(Op::Read { .. })) => engine.complete_read(id, Err(failure(errno))),
            (Ok(written), Some(Op::Write { from, .. })) if (written as usize) < from.len() => {
                engine.complete(id, Err(IoFailure::Failed));
            }
            (Ok(_), _) => engine.complete(id, Ok(())),
            (Err(errno), _) => engine.complete(id, Err(failure(errno))),
        }
    }

    /// A file system without fallocate still grows by truncation; the new bytes read as zeros just as well.
    fn grows_otherwise<R: Ring>(&mut self, io: &mut Io<R>, id: IoId, completion: &Completion) -> bool {
        let (Err(Errno(libc::EOPNOTSUPP | libc::ENOSYS)), Some(Op::Allocate { mode, offset_bytes, len_bytes, .. })) =
            (completion.result, &completion.op)
        else {
            return false;
        };
        if *mode != AllocateMode::Extend {
            return false;
        }
        let op = Op::Truncate { file: self.fd, len_bytes: offset_bytes + len_bytes };
        if io.submit(self.mark(id), op).is_ok() {
            self.operations += 1;
        } else {
            self.not_started(id);
            self.stalled.set(io);
        }
        true
    }

    // ---- copies ------------------------------------------------------------------------------------------------

    /// Start the next operation of the copy that is underway.
    fn go_on_copying<R: Ring>(&mut self, io: &mut Io<R>) {
        let fd = self.fd;
        let Some(copy) = self.copy.as_mut().filter(|copy| !copy.running) else { return };
        let id = copy.id;
        if copy.at == copy.len_bytes {
            let all_zeros = copy.skipped == copy.len_bytes;
            return self.copy_ended(Ok(all_zeros));
        }
        let Some(op) = copy.next(io, fd) else {
            self.stalled.set(io);
            return;
        };
        copy.running = true;
        match io.submit(self.mark(id), op) {
            Ok(()) => self.operations += 1,
            Err(op) => {
                if let Some(copy) = self.copy.as_mut() {
                    copy.take_back(op);
                }
                self.stalled.set(io);
            }
        }
    }

    fn copy_completed<R: Ring>(&mut self, io: &mut Io<R>, completion: Completion) {
        let Some(copy) = self.copy.as_mut() else { return };
        copy.running = false;
        match (completion.result, completion.op) {
            (Ok(read), Some(Op::Read { into, .. })) => {
                copy.has_read(into.buf, read);
                // A block that would be copied onto itself is only looked at.
                if copy.chunk.is_some() && copy.from_bytes == copy.to_bytes {
                    return self.copy_ended(Ok(false));
                }
            }
            (Ok(written), Some(Op::Write { from, .. })) if written as usize == from.len() => {
                copy.has_written(u64::from(written));
            }
            (Err(errno), _) => return self.copy_ended(Err(failure(errno))),
            (Ok(_), _) => return self.copy_ended(Err(IoFailure::Failed)),
        }
        self.go_on_copying(io);
    }

    fn copy_ended(&mut self, result: Result<bool, IoFailure>) {
        if let (Some(copy), Some(engine)) = (self.copy.take(), self.engine.as_mut()) {
            engine.complete_copy(copy.id, result);
        }
    }

    // ---- the end -----------------------------------------------------------------------------------------------

    /// Begin to close: no task writes what the engine is for. A file without an engine is made durable where others
    /// will stand on it.
    pub(crate) fn close<R: Ring>(&mut self, io: &mut Io<R>, stays: bool) {
        if self.closing {
            return;
        }
        self.closing = true;
        match self.engine.as_mut() {
            Some(engine) => engine.close(),
            None if self.disk.read_only() || !stays => self.closed = Some(Ok(())),
            None => self.sync_for_closing(io),
        }
    }

    fn sync_for_closing<R: Ring>(&mut self, io: &mut Io<R>) {
        match io.submit(self.mark(IoId(u32::MAX)), Op::Sync { file: self.fd }) {
            Ok(()) => {
                self.stalled.clear();
                self.operations += 1;
            }
            Err(_) => {
                self.closing = false;
                self.stalled.set(io);
            }
        }
    }

    /// The engine, or the last sync of a file without one, says that it has closed.
    pub(crate) fn has_closed(&mut self, result: Result<(), EngineError>) {
        self.closed = Some(result);
    }

    /// Whether a completion is that of the last sync of a file without an engine.
    pub(crate) fn is_last_sync(&self, id: IoId) -> bool {
        self.engine.is_none() && id == IoId(u32::MAX)
    }

    /// That sync has completed.
    pub(crate) fn last_sync_completed(&mut self, result: Result<u32, Errno>) {
        self.operations -= 1;
        self.has_closed(result.map(|_| ()).map_err(|_| EngineError::Poisoned));
    }

    /// Closing has begun.
    pub(crate) fn closing(&self) -> bool {
        self.closing
    }

    /// How closing ended, once it has and nothing is in flight.
    pub(crate) fn closed(&self) -> Option<Result<(), EngineError>> {
        self.closed.filter(|_| self.operations == 0)
    }

    /// The engine has been closed and is not needed any more.
    pub(crate) fn drop_engine(&mut self) {
        self.engine = None;
        self.stalled.clear();
        self.copy = None;
        self.closing = false;
        self.closed = None;
    }
}

impl Copy {
    /// The next operation; `None`: no memory.
    fn next<R: Ring>(&mut self, io: &Io<R>, file: Fd) -> Option<Op> {
        if self.chunk.is_some() && self.filled < self.skipped {
            let len = (self.skipped - self.filled).min(COPY_BYTES);
            let (offset_bytes, from) = (self.to_bytes + self.filled, io.arena.zeros(len as usize));
            return Some(Op::Write { file, offset_bytes, from, durable: false });
        }
        if let Some(chunk) = &self.chunk {
            let (offset_bytes, from) = (self.to_bytes + self.at, chunk.clone());
            return Some(Op::Write { file, offset_bytes, from, durable: false });
        }
        let len = (self.len_bytes - self.at).min(COPY_BYTES) as usize;
        let mut buf = io.arena.take(len)?;
        buf.truncate(len);
        Some(Op::Read { file, offset_bytes: self.from_bytes + self.at, into: Window::whole(buf) })
    }

    /// What could not be started goes back: a chunk that was to be written is still in `chunk`.
    fn take_back(&mut self, _op: Op) {
        self.running = false;
    }

    fn has_read(&mut self, mut buf: Buf, read: u32) {
        // Payload may be cut short at the file's end where it is zeros.
        buf[read as usize..].fill(0);
        let len = buf.len() as u64;
        if self.skipped == self.at && buf.iter().all(|byte| *byte == 0) {
            self.at += len;
            self.skipped = self.at;
        } else {
            self.chunk = Some(buf.freeze());
        }
    }

    fn has_written(&mut self, len: u64) {
        if self.filled < self.skipped {
            self.filled += len;
        } else {
            self.at += len;
            self.chunk = None;
        }
    }
}

/// The ring's form of an operation; `None`: no memory.
fn operation<R: Ring>(io: &Io<R>, file: Fd, wanted: &MetadataIo<'_>) -> Option<Op> {
    Some(match wanted.kind {
        MetadataIoKind::Write { offset_bytes, bytes } => {
            Op::Write { file, offset_bytes, from: staged(io, bytes)?, durable: false }
        }
        MetadataIoKind::Read { offset_bytes, len_bytes } => {
            let mut buf = io.arena.take(len_bytes as usize)?;
            buf.truncate(len_bytes as usize);
            Op::Read { file, offset_bytes, into: Window::whole(buf) }
        }
        MetadataIoKind::Sync => Op::Sync { file },
        MetadataIoKind::Extend { from_bytes, to_bytes } => {
            let (mode, len_bytes) = (AllocateMode::Extend, to_bytes - from_bytes);
            Op::Allocate { file, mode, offset_bytes: from_bytes, len_bytes }
        }
        MetadataIoKind::ZeroRange { offset_bytes, len_bytes } => {
            Op::Allocate { file, mode: AllocateMode::ZeroRange, offset_bytes, len_bytes }
        }
        MetadataIoKind::PunchHole { offset_bytes, len_bytes } => {
            Op::Allocate { file, mode: AllocateMode::PunchHole, offset_bytes, len_bytes }
        }
        MetadataIoKind::Truncate { len_bytes } => Op::Truncate { file, len_bytes },
        MetadataIoKind::Barrier | MetadataIoKind::CopyBlock { .. } => {
            unreachable!("barriers and copies are not single operations")
        }
    })
}

/// Metadata bytes in a buffer of the arena, which the kernel can take.
fn staged<R: Ring>(io: &Io<R>, bytes: &[u8]) -> Option<Slice> {
    let mut buf = io.arena.take(bytes.len())?;
    buf.truncate(bytes.len());
    buf.copy_from_slice(bytes);
    Some(buf.freeze())
}

pub(crate) fn failure(errno: Errno) -> IoFailure {
    match errno.0 {
        libc::ENOSPC | libc::EDQUOT | libc::EFBIG => IoFailure::OutOfSpace,
        libc::EOPNOTSUPP | libc::ENOSYS => IoFailure::Unsupported,
        _ => IoFailure::Failed,
    }
}
