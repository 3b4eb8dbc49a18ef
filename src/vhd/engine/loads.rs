//! Loading pages of sector bits from the bitmaps in front of the blocks, beside whatever else the engine does.

use std::collections::VecDeque;

use super::Engine;
use crate::blocks::{
    Done, EngineError, Entry, Event, Fault, IoFailure, IoId, PAGE_BYTES, Piece, PieceList, State, Table, Ticket,
};
use crate::vhd::format::SECTOR;

/// Requests for pages that may wait.
pub(super) const LOADS_MAX: usize = 256;

/// Sectors whose bits are in one page.
const PAGE_SECTORS: u64 = PAGE_BYTES as u64 * 8;

#[derive(Clone, Copy, Debug)]
struct Wanted {
    page: u32,
    /// `None`: the engine itself.
    ticket: Option<Ticket>,
}

/// One read of the page that is being loaded.
#[derive(Clone, Copy, Debug)]
struct Read {
    id: IoId,
    piece: Piece,
    /// Where the piece goes in the page.
    at: usize,
    given_out: bool,
    done: bool,
}

#[derive(Debug, Default)]
pub(super) struct Loads {
    waiting: VecDeque<Wanted>,
    page: Option<u32>,
    reads: Vec<Read>,
    bytes: Vec<u8>,
    failed: bool,
    /// The bytes are those of the page, in the order of memory.
    decoded: bool,
}

impl Loads {
    pub fn ask(&mut self, page: u32, ticket: Option<Ticket>) -> Result<(), EngineError> {
        if self.waiting.len() == LOADS_MAX {
            return Err(EngineError::Busy);
        }
        self.waiting.push_back(Wanted { page, ticket });
        Ok(())
    }

    /// The engine itself waits for this page already.
    pub fn expects(&self, page: u32) -> bool {
        self.waiting.iter().any(|wanted| wanted.page == page && wanted.ticket.is_none())
    }

    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.page.is_none()
    }

    /// The next read to carry out: whole sectors around the piece.
    pub fn give_out(&mut self) -> Option<(IoId, u64, u32)> {
        let read = self.reads.iter_mut().find(|read| !read.given_out)?;
        read.given_out = true;
        let (start, end) = sectors_of(&read.piece);
        Some((read.id, start, (end - start) as u32))
    }

    pub fn not_started(&mut self, id: IoId) {
        let read = self.reads.iter_mut().find(|read| read.id == id).expect("the operation was given out");
        read.given_out = false;
    }
}

/// The whole sectors that a piece lies in.
fn sectors_of(piece: &Piece) -> (u64, u64) {
    let start = piece.offset_bytes.expect("only pieces of the file are read");
    (start / SECTOR * SECTOR, (start + u64::from(piece.len_bytes)).next_multiple_of(SECTOR))
}

impl Engine {
    /// Begin the next load, and end the one whose reads are done.
    pub(super) fn advance_loads(&mut self) {
        loop {
            let Some(page) = self.loads.page else {
                let Some(wanted) = self.loads.waiting.front() else { return };
                self.begin_load(wanted.page);
                continue;
            };
            if self.loads.reads.iter().any(|read| !read.done) || !self.end_load(page) {
                return;
            }
        }
    }

    fn begin_load(&mut self, page: u32) {
        self.loads.page = Some(page);
        (self.loads.failed, self.loads.decoded) = (false, false);
        self.loads.reads.clear();
        self.loads.bytes.clear();
        self.loads.bytes.resize(PAGE_BYTES, 0);
        if self.map.bits().is_resident(page) {
            return;
        }
        let mut pieces = PieceList::new();
        let fault = Fault { table: Table::Bits, page };
        self.map.source().pieces(&self.map, fault, &mut pieces).expect("the whole block table is resident");
        let mut at = 0;
        for piece in pieces.as_slice() {
            if piece.offset_bytes.is_some() {
                let id = self.fresh_id();
                self.loads.reads.push(Read { id, piece: *piece, at, given_out: false, done: false });
            }
            at += piece.len_bytes as usize;
        }
    }

    /// Fill the page in, and answer who waits. False: another thread is filling one; later.
    fn end_load(&mut self, page: u32) -> bool {
        let loads = &mut self.loads;
        if !loads.failed && !self.map.bits().is_resident(page) {
            let bytes: &mut [u8; PAGE_BYTES] = loads.bytes.as_mut_slice().try_into().expect("one page");
            if !std::mem::replace(&mut loads.decoded, true) {
                self.map.source().decode(Fault { table: Table::Bits, page }, bytes);
            }
            if !self.map.bits().fill(page, bytes) {
                return false;
            }
            self.promote_full_blocks(page);
        }
        let loads = &mut self.loads;
        let result = if loads.failed { Err(EngineError::Poisoned) } else { Ok(Done::Ok) };
        loads.page = None;
        loads.waiting.retain(|wanted| {
            if wanted.page != page {
                return true;
            }
            if let Some(ticket) = wanted.ticket {
                self.events.push_back(Event::Done { ticket, result });
            }
            false
        });
        true
    }

    /// A block whose bits are all set needs them no more: most blocks of most files.
    fn promote_full_blocks(&self, page: u32) {
        let shape = self.map.shape();
        let block_sectors = shape.block_bytes() / SECTOR;
        if block_sectors > PAGE_SECTORS {
            return;
        }
        let first = u64::from(page) * (PAGE_SECTORS / block_sectors);
        for block in first..(first + PAGE_SECTORS / block_sectors).min(u64::from(shape.blocks())) {
            self.promote_if_full(block as u32);
        }
    }

    /// The same for one block whose bits are resident.
    pub(super) fn promote_if_full(&self, block: u32) {
        let shape = self.map.shape();
        let entry = self.entry(block);
        if entry.state() != State::Partial {
            return;
        }
        let block_sectors = shape.block_bytes() / SECTOR;
        let first = u64::from(block) * block_sectors;
        let count = block_sectors.min(shape.sectors() - first);
        if self.map.run(first, count) == Ok((true, count)) {
            self.store(block, Entry::new(State::Full, entry.offset_bytes()));
        }
    }

    /// A read has ended. One that fails poisons the disk: what its bits say cannot be known.
    pub(super) fn finish_read(&mut self, id: IoId, result: Result<&[u8], IoFailure>) {
        let loads = &mut self.loads;
        let Some(read) = loads.reads.iter_mut().find(|read| read.id == id && read.given_out && !read.done) else {
            panic!("completion of a metadata operation that is not in flight: {id:?}");
        };
        read.done = true;
        match result {
            Ok(bytes) => {
                let (start, end) = sectors_of(&read.piece);
                assert_eq!(bytes.len() as u64, end - start, "a read gives what it asked for");
                let from = (read.piece.offset_bytes.unwrap_or(start) - start) as usize;
                let len = read.piece.len_bytes as usize;
                loads.bytes[read.at..read.at + len].copy_from_slice(&bytes[from..from + len]);
            }
            Err(_) => {
                loads.failed = true;
                self.map.poison();
            }
        }
    }
}
