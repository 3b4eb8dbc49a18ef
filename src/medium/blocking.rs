//! A disk that one thread reads and writes by itself: for jobs (merge, convert) and tests.
//!
//! The driver of a [`blocks::Engine`](Engine) over files that block: every operation is carried out where it is given
//! out, so nothing is ever in flight, and a barrier has nobody to wait for. Files are accessed through the page cache;
//! a file that a shard writes must not be written here.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, fallocate};

use super::{Disk, FileError, Opened};
use crate::blocks::{
    Asked, Chain, Done, Engine, EngineError, Event, Extent, ExtentList, IoFailure, IoId, LevelFault, MetadataIo,
    MetadataIoKind, ReadPlan, SpaceReport, Status, Ticket, WritePlan, load_blocking,
};

/// Zeros to write, and the step in which payload is copied.
const COPY_BYTES: usize = 256 * 1024;

static ZEROS: [u8; COPY_BYTES] = [0; COPY_BYTES];

/// What the driver does to a layer's file.
pub trait BlockingFile {
    /// Read; what is behind the file's end reads as zeros.
    fn read(&mut self, offset_bytes: u64, into: &mut [u8]) -> io::Result<()>;
    /// Write, growing the file where needed.
    fn write(&mut self, offset_bytes: u64, from: &[u8]) -> io::Result<()>;
    /// Make everything durable, the size included.
    fn sync(&mut self) -> io::Result<()>;
    /// Reserve a range and grow the file to cover it.
    fn extend(&mut self, from_bytes: u64, to_bytes: u64) -> io::Result<()>;
    /// Make a range read as zeros and keep its space.
    fn zero_range(&mut self, offset_bytes: u64, len_bytes: u64) -> io::Result<()>;
    /// Give a range's space back; it reads as zeros.
    fn punch_hole(&mut self, offset_bytes: u64, len_bytes: u64) -> io::Result<()>;
    /// Set the size.
    fn truncate(&mut self, len_bytes: u64) -> io::Result<()>;
}

impl BlockingFile for File {
    fn read(&mut self, offset_bytes: u64, into: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < into.len() {
            match self.read_at(&mut into[done..], offset_bytes + done as u64) {
                Ok(0) => {
                    into[done..].fill(0);
                    return Ok(());
                }
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write(&mut self, offset_bytes: u64, from: &[u8]) -> io::Result<()> {
        self.write_all_at(from, offset_bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }

    fn extend(&mut self, from_bytes: u64, to_bytes: u64) -> io::Result<()> {
        match fallocate(&*self, FallocateFlags::empty(), from_bytes, to_bytes - from_bytes) {
            // A file system without fallocate still grows; the new bytes read as zeros just as well.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => self.set_len(to_bytes),
            other => Ok(other?),
        }
    }

    fn zero_range(&mut self, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
        let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        Ok(fallocate(&*self, flags, offset_bytes, len_bytes)?)
    }

    fn punch_hole(&mut self, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(fallocate(&*self, flags, offset_bytes, len_bytes)?)
    }

    fn truncate(&mut self, len_bytes: u64) -> io::Result<()> {
        self.set_len(len_bytes)
    }
}

/// Why an operation on the disk failed.
#[derive(Debug, thiserror::Error)]
pub enum BlockingError {
    /// A layer's file could not be read, written or made durable.
    #[error("cannot {action} at byte {offset_bytes} of layer {layer}: {source}")]
    Io {
        /// What was attempted, as a verb.
        action: &'static str,
        /// Which layer, 0 for the leaf.
        layer: u16,
        /// Where in its file.
        offset_bytes: u64,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The engine refused or failed.
    #[error("{0}")]
    Engine(#[from] EngineError),
    /// The range does not lie within the disk.
    #[error("bytes {offset_bytes} to {end_bytes} pass the end of the disk, which has {size_bytes}")]
    Range {
        /// First byte.
        offset_bytes: u64,
        /// Behind the last byte.
        end_bytes: u64,
        /// The disk's size.
        size_bytes: u64,
    },
    /// Nothing can be written: the disk was opened without an engine.
    #[error("the disk is read-only")]
    ReadOnly,
}

/// The disk: a chain, the file of each layer, and the leaf's engine where it is to be written.
pub struct BlockingDisk<F: BlockingFile = File> {
    chain: Chain,
    files: Vec<F>,
    engine: Option<Box<dyn Engine>>,
    /// A raw leaf may be written without an engine.
    raw_leaf: bool,
    ticket_next: u64,
    spare: Vec<u8>,
    /// Holds the locks, where it was opened as a whole.
    disk: Option<Arc<Disk>>,
}

impl BlockingDisk {
    /// A disk that was opened and that no shard serves, through the page cache. Its locks are held as long as it lives.
    pub fn of(opened: Opened) -> Result<Self, FileError> {
        let Opened { disk, engine } = opened;
        let chain = disk.chain().cloned().ok_or(FileError::Spec(disk.format().as_str(), "has no file"))?;
        let writable = !disk.read_only();
        let mut files = Vec::with_capacity(disk.layers().len());
        for (number, layer) in disk.layers().iter().enumerate() {
            files.push(if number == 0 && writable { layer.open_writer()? } else { layer.open_reader()? });
        }
        let mut blocking = Self::new(chain, files, engine, writable);
        blocking.disk = Some(disk);
        Ok(blocking)
    }
}

impl<F: BlockingFile> BlockingDisk<F> {
    /// A disk of these layers, leaf first; `files` are as many as the chain has layers. A leaf with a block map can be
    /// written when it has an engine; a raw leaf when `writable`.
    pub fn new(chain: Chain, files: Vec<F>, engine: Option<Box<dyn Engine>>, writable: bool) -> Self {
        let raw_leaf = writable && matches!(chain.levels()[0], crate::blocks::Level::Raw { .. });
        Self { chain, files, engine, raw_leaf, ticket_next: 0, spare: Vec::new(), disk: None }
    }

    /// The disk's size.
    pub fn size_bytes(&self) -> u64 {
        self.chain.size_bytes()
    }

    /// The chain that is read.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// The file of a layer.
    pub fn file(&mut self, layer: u16) -> &mut F {
        &mut self.files[usize::from(layer)]
    }

    /// The leaf's engine.
    pub fn engine(&mut self) -> Option<&mut (dyn Engine + 'static)> {
        self.engine.as_deref_mut()
    }

    /// Read whole sectors.
    pub fn read_at(&mut self, offset_bytes: u64, into: &mut [u8]) -> Result<(), BlockingError> {
        self.check(offset_bytes, into.len() as u64)?;
        let mut done = 0;
        while done < into.len() {
            let at = offset_bytes + done as u64;
            let len_bytes = (into.len() - done).min(COPY_BYTES) as u32;
            match self.chain.plan_read(at, len_bytes) {
                ReadPlan::Fault(fault) => self.load(fault)?,
                ReadPlan::Torn => return Err(EngineError::Poisoned.into()),
                ReadPlan::Extents(extents) => {
                    let covered = extents.covered_bytes() as usize;
                    self.read_extents(&extents, &mut into[done..done + covered])?;
                    done += covered;
                }
            }
        }
        Ok(())
    }

    /// Write whole sectors.
    pub fn write_at(&mut self, offset_bytes: u64, from: &[u8]) -> Result<(), BlockingError> {
        self.check(offset_bytes, from.len() as u64)?;
        self.refuse_unless_writable()?;
        let mut done = 0;
        while done < from.len() {
            let at = offset_bytes + done as u64;
            let len_bytes = (from.len() - done).min(COPY_BYTES) as u32;
            match self.chain.plan_write(at, len_bytes) {
                WritePlan::Fault(fault) => self.load(fault)?,
                WritePlan::Prepare => {
                    self.ask(|engine, ticket| engine.prepare(at, u64::from(len_bytes), ticket))?;
                }
                WritePlan::Poisoned => return Err(EngineError::Poisoned.into()),
                WritePlan::Ready { extents, commit, epoch } => {
                    let covered = extents.covered_bytes() as usize;
                    self.write_extents(&extents, &from[done..done + covered])?;
                    let committed = !commit
                        || self.ask(|engine, ticket| engine.commit(at, covered as u64, epoch, ticket))? == Done::Ok;
                    if committed {
                        done += covered;
                    }
                }
            }
        }
        Ok(())
    }

    /// Make a range of whole sectors read as zeros: whole blocks are released, and of the rest what does not read as
    /// zeros is written.
    pub fn write_zeros(&mut self, offset_bytes: u64, len_bytes: u64) -> Result<(), BlockingError> {
        self.check(offset_bytes, len_bytes)?;
        self.refuse_unless_writable()?;
        if len_bytes == 0 {
            return Ok(());
        }
        if self.engine.is_some() {
            self.unmap(offset_bytes, len_bytes)?;
        }
        let end = offset_bytes + len_bytes;
        let mut at = offset_bytes;
        while at < end {
            let status = self.status(at, end - at)?;
            if status.mapped {
                let len = status.len_bytes.min(COPY_BYTES as u64);
                self.write_at(at, &ZEROS[..len as usize])?;
                at += len;
            } else {
                at += status.len_bytes;
            }
        }
        Ok(())
    }

    /// Release the blocks that lie wholly in the range; nothing else changes. They read as zeros then.
    pub fn unmap(&mut self, offset_bytes: u64, len_bytes: u64) -> Result<(), BlockingError> {
        self.check(offset_bytes, len_bytes)?;
        self.refuse_unless_writable()?;
        let Some(_) = &self.engine else { return Ok(()) };
        while self.ask(|engine, ticket| engine.unmap(offset_bytes, len_bytes, ticket))? == Done::PlanAgain {}
        Ok(())
    }

    /// Whether the start of a range has space in any layer, and for how many bytes that is so.
    pub fn status(&mut self, offset_bytes: u64, len_bytes: u64) -> Result<Status, BlockingError> {
        self.check(offset_bytes, len_bytes)?;
        loop {
            match self.chain.status(offset_bytes, len_bytes) {
                Ok(status) => return Ok(status),
                Err(fault) => self.load(fault)?,
            }
        }
    }

    /// Open the write session: identifiers that change with the first modification have changed after this, durably.
    pub fn begin_write_session(&mut self) -> Result<(), BlockingError> {
        let Some(engine) = self.engine.as_deref_mut() else { return Err(BlockingError::ReadOnly) };
        if engine.map().write_session_open() {
            return Ok(());
        }
        engine.begin_write_session()?;
        self.run(|event| match event {
            Event::WriteSession(result) => Some(result),
            _ => None,
        })?;
        Ok(())
    }

    /// One step of compaction; false when nothing is left to be done.
    pub fn relocate_some(&mut self) -> Result<bool, BlockingError> {
        self.refuse_unless_writable()?;
        let Some(engine) = self.engine.as_deref_mut() else { return Ok(false) };
        self.ticket_next += 1;
        let ticket = Ticket(self.ticket_next);
        match engine.relocate_some(ticket)? {
            Asked::Already => Ok(false),
            Asked::Queued => self.wait_for(ticket).map(|_| true),
        }
    }

    /// Where the space of the leaf's file is.
    pub fn space(&self) -> Option<SpaceReport> {
        self.engine.as_ref().map(|engine| engine.space())
    }

    /// Make everything written durable.
    pub fn flush(&mut self) -> Result<(), BlockingError> {
        let mark = self.engine.as_ref().map(|engine| engine.flush_started());
        let result = self.files[0].sync();
        if let (Some(engine), Some(mark)) = (self.engine.as_deref_mut(), mark) {
            engine.flush_done(mark, if let Err(error) = &result { Err(failure(error)) } else { Ok(()) });
        }
        self.settle();
        result.map_err(|source| io_error("flush", 0, 0, source))
    }

    /// Write everything in place and make it durable. Gives the files back.
    pub fn close(mut self) -> Result<Vec<F>, BlockingError> {
        if let Some(engine) = self.engine.as_deref_mut() {
            engine.close();
            self.run(|event| match event {
                Event::Closed(result) => Some(result),
                _ => None,
            })?;
        } else if self.raw_leaf {
            self.flush()?;
        }
        Ok(self.files)
    }

    // ---- the driver --------------------------------------------------------------------------------------------

    fn check(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), BlockingError> {
        let (size_bytes, end_bytes) = (self.size_bytes(), offset_bytes.saturating_add(len_bytes));
        if end_bytes > size_bytes {
            return Err(BlockingError::Range { offset_bytes, end_bytes, size_bytes });
        }
        Ok(())
    }

    fn refuse_unless_writable(&self) -> Result<(), BlockingError> {
        if self.engine.is_some() || self.raw_leaf { Ok(()) } else { Err(BlockingError::ReadOnly) }
    }

    /// Ask the engine for something and wait until it has happened.
    fn ask(
        &mut self,
        mut request: impl FnMut(&mut dyn Engine, Ticket) -> Result<Asked, EngineError>,
    ) -> Result<Done, BlockingError> {
        loop {
            let Some(engine) = self.engine.as_deref_mut() else { return Err(BlockingError::ReadOnly) };
            self.ticket_next += 1;
            let ticket = Ticket(self.ticket_next);
            match request(engine, ticket) {
                Ok(Asked::Already) => return Ok(Done::Ok),
                Ok(Asked::Queued) => return self.wait_for(ticket),
                // What is queued makes room.
                Err(EngineError::Busy) => self.settle(),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn wait_for(&mut self, ticket: Ticket) -> Result<Done, BlockingError> {
        self.run(|event| match event {
            Event::Done { ticket: done, result } if done == ticket => Some(result),
            _ => None,
        })
    }

    /// Serve the engine until an event is what is waited for.
    fn run<T>(&mut self, mut wanted: impl FnMut(Event) -> Option<Result<T, EngineError>>) -> Result<T, BlockingError> {
        loop {
            let worked = self.serve_io();
            let Some(engine) = self.engine.as_deref_mut() else { return Err(BlockingError::ReadOnly) };
            let mut heard = false;
            while let Some(event) = engine.poll_event() {
                heard = true;
                if let Some(result) = wanted(event) {
                    return Ok(result?);
                }
            }
            assert!(worked || heard, "an engine with nothing to do has answered everything");
        }
    }

    /// Serve the engine until it wants nothing more; its events are of no interest.
    fn settle(&mut self) {
        loop {
            let worked = self.serve_io();
            let Some(engine) = self.engine.as_deref_mut() else { return };
            if engine.poll_event().is_none() && !worked {
                return;
            }
        }
    }

    /// Carry out what the engine wants. Whether it wanted anything.
    fn serve_io(&mut self) -> bool {
        let Self { engine: Some(engine), files, spare, .. } = self else { return false };
        let mut worked = false;
        while let Some(io) = engine.poll_io() {
            worked = true;
            match carry_out(&mut files[0], spare, io) {
                Ended::Plain(id, result) => engine.complete(id, result),
                Ended::Read(id, result) => engine.complete_read(id, result.map(|()| &spare[..])),
                Ended::Copy(id, result) => engine.complete_copy(id, result),
            }
        }
        worked
    }

    /// Load a page of some level's map.
    fn load(&mut self, fault: LevelFault) -> Result<(), BlockingError> {
        if fault.level == 0 && self.engine.is_some() {
            self.ask(|engine, ticket| engine.load(fault.fault, ticket))?;
            return Ok(());
        }
        let map = self.chain.map(fault.level).expect("only a block map has pages").clone();
        let layer = match &self.chain.levels()[usize::from(fault.level)] {
            crate::blocks::Level::Map { layer, .. } => *layer,
            _ => unreachable!("only a block map has pages"),
        };
        let file = &mut self.files[usize::from(layer)];
        load_blocking(&map, fault.fault, &mut |offset_bytes, into| {
            file.read(offset_bytes, into).map_err(|source| io_error("read", layer, offset_bytes, source))
        })
    }

    fn read_extents(&mut self, extents: &ExtentList, into: &mut [u8]) -> Result<(), BlockingError> {
        let mut rest = into;
        for extent in extents.as_slice() {
            let (part, tail) = rest.split_at_mut(extent.len_bytes() as usize);
            rest = tail;
            match *extent {
                Extent::Zeros { .. } => part.fill(0),
                Extent::File { layer, offset_bytes, .. } => self.files[usize::from(layer)]
                    .read(offset_bytes, part)
                    .map_err(|source| io_error("read", layer, offset_bytes, source))?,
            }
        }
        Ok(())
    }

    fn write_extents(&mut self, extents: &ExtentList, from: &[u8]) -> Result<(), BlockingError> {
        let mut rest = from;
        for extent in extents.as_slice() {
            let (part, tail) = rest.split_at(extent.len_bytes() as usize);
            rest = tail;
            let Extent::File { layer, offset_bytes, .. } = *extent else {
                unreachable!("a write has a place in the leaf")
            };
            if let Err(source) = self.files[usize::from(layer)].write(offset_bytes, part) {
                if let (Some(map), false) = (self.chain.map(0), failure(&source) == IoFailure::OutOfSpace) {
                    map.poison();
                }
                return Err(io_error("write", layer, offset_bytes, source));
            }
        }
        Ok(())
    }
}

/// How an operation ended, by the way it is completed.
enum Ended {
    Plain(IoId, Result<(), IoFailure>),
    /// What was read is in the spare buffer.
    Read(IoId, Result<(), IoFailure>),
    Copy(IoId, Result<bool, IoFailure>),
}

fn carry_out(file: &mut impl BlockingFile, spare: &mut Vec<u8>, io: MetadataIo<'_>) -> Ended {
    let id = io.id;
    let result = match io.kind {
        MetadataIoKind::Write { offset_bytes, bytes } => file.write(offset_bytes, bytes),
        MetadataIoKind::Sync => file.sync(),
        MetadataIoKind::Extend { from_bytes, to_bytes } => file.extend(from_bytes, to_bytes),
        MetadataIoKind::ZeroRange { offset_bytes, len_bytes } => file.zero_range(offset_bytes, len_bytes),
        MetadataIoKind::PunchHole { offset_bytes, len_bytes } => file.punch_hole(offset_bytes, len_bytes),
        MetadataIoKind::Truncate { len_bytes } => file.truncate(len_bytes),
        MetadataIoKind::Barrier => Ok(()),
        MetadataIoKind::Read { offset_bytes, len_bytes } => {
            spare.resize(len_bytes as usize, 0);
            return Ended::Read(id, file.read(offset_bytes, spare).map_err(|error| failure(&error)));
        }
        MetadataIoKind::CopyBlock { from_bytes, to_bytes, len_bytes } => {
            let copied = copy_block(file, spare, from_bytes, to_bytes, len_bytes);
            return Ended::Copy(id, copied.map_err(|error| failure(&error)));
        }
    };
    Ended::Plain(id, result.map_err(|error| failure(&error)))
}

/// Copy payload, unless all of it is zeros. Whether it is.
fn copy_block(file: &mut impl BlockingFile, spare: &mut Vec<u8>, from: u64, to: u64, len: u64) -> io::Result<bool> {
    spare.resize(COPY_BYTES, 0);
    let mut all_zeros = true;
    let mut at = 0;
    while at < len {
        let part = &mut spare[..(len - at).min(COPY_BYTES as u64) as usize];
        file.read(from + at, part)?;
        if all_zeros && *part != ZEROS[..part.len()] {
            all_zeros = false;
            if from == to {
                // It was only to be looked at.
                break;
            }
            // What was skipped is written now.
            for skipped in (0..at).step_by(COPY_BYTES) {
                file.write(to + skipped, &ZEROS[..(at - skipped).min(COPY_BYTES as u64) as usize])?;
            }
        }
        if !all_zeros {
            file.write(to + at, part)?;
        }
        at += part.len() as u64;
    }
    Ok(all_zeros)
}

/// What an error of the system means to an engine.
fn failure(error: &io::Error) -> IoFailure {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => IoFailure::OutOfSpace,
        Some(libc::EOPNOTSUPP | libc::ENOSYS) => IoFailure::Unsupported,
        _ => IoFailure::Failed,
    }
}

fn io_error(action: &'static str, layer: u16, offset_bytes: u64, source: io::Error) -> BlockingError {
    BlockingError::Io { action, layer, offset_bytes, source }
}
