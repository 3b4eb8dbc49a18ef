//! Atomic writes: data of the guest that goes through the log, so that a loss of power leaves all of it or nothing.
//!
//! The log may carry a page of any place in the file (section 2.3.1.3), and whoever replays it puts that page where it
//! belongs. One entry therefore makes a write of several pages atomic: before the entry is durable the old content is
//! there, whole; from then on the new one is, in place or after a replay.
//!
//! *What must not happen* is that a replay undoes a later write to the same place. So nobody may write there before no
//! reader of the log can find the entry any more, and the request ends only then. By the book it would be enough that a
//! later entry's Tail has passed it; other readers are known to replay whatever follows without a gap. Hence the epoch
//! turns:
//!
//! 1. entry → sync: the write has happened;
//! 2. data in place → sync: it no longer needs the entry;
//! 3. an entry whose Tail is itself, a new LogGuid, both headers ([`TURN`]): nobody finds the entry.
//!
//! Requests that come meanwhile share the next group. The caller keeps everybody else away from the range, readers
//! included, from the request to its end.
//!
//! *When a step fails* between 1 and 3, the range stays unreadable until the disk is opened anew, which replays the
//! entry: some of the data may be in place already ([`BlockMap::mark_torn`](crate::blocks::BlockMap::mark_torn)).
//!
//! *Where it can be written:* where all sectors of the range are in this file. A caller that is told
//! [`PlanAgain`](crate::blocks::Done) has blocks prepared first, or, where a parent shows through, writes what is there
//! now; neither changes what is read. A block is claimed by a change that keeps it ([`Kind::Keep`]): until the entry is
//! written it neither moves nor loses its space, and until the epoch has turned no other group is written.

use super::group::{Kind, PAGES_MAX};
use super::pages::Blocked;
use super::requests::Key;
use super::steps::{PAGE_LEN, Step, TURN};
use super::{Engine, Operation};
use crate::blocks::{Done, State, TORN_MAX};
use crate::vhdx::format::PAGE;

/// Pages of one atomic write: half of what an entry carries, so that two of them share one, or metadata goes with it.
/// With blocks of 1 MiB at least it lies in two of them at most.
pub(super) const ATOMIC_PAGES_MAX: usize = 32;

/// Atomic writes that share an entry.
pub(super) const ATOMICS_MAX: usize = TORN_MAX;

const _: () = assert!(ATOMIC_PAGES_MAX <= PAGES_MAX / 2 + 1 && ATOMIC_PAGES_MAX * PAGE <= 1 << 20);

/// A part of an atomic write that lies in one block.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Piece {
    block: u32,
    offset_bytes: u64,
    len_bytes: u64,
}

/// An atomic write of a group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Atomic {
    key: Key,
    /// Where its data waits.
    payload_at: u64,
    pieces: [Piece; 2],
}

impl Atomic {
    fn len_bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.len_bytes).sum()
    }

    pub fn pages(&self) -> usize {
        (self.len_bytes() / PAGE_LEN) as usize
    }

    /// Where its pages are in the file.
    fn offsets(&self) -> impl Iterator<Item = u64> {
        self.pieces
            .into_iter()
            .flat_map(|piece| (0..piece.len_bytes / PAGE_LEN).map(move |page| piece.offset_bytes + page * PAGE_LEN))
    }

    fn covers(&self, block: u32) -> bool {
        self.pieces.iter().any(|piece| piece.len_bytes > 0 && piece.block == block)
    }
}

impl Engine {
    /// Have an atomic write share the group that collects. Its request then has nothing more to ask, and waits.
    pub(super) fn admit_atomic(&mut self, key: Key, payload_at: u64) -> Result<u32, Blocked> {
        let request = *self.requests.at(key);
        let mut atomic = Atomic { key, payload_at, pieces: [Piece::default(); 2] };
        for (piece, block) in atomic.pieces.iter_mut().zip(request.block..request.block_end) {
            let start = u64::from(block) << self.geometry.block_shift;
            let from = request.start_bytes.max(start);
            let to = request.end_bytes.min(start + self.block_len());
            let Some(place) = self.place_in_file(block, from, to)? else {
                self.requests.at_mut(key).result = Ok(Done::PlanAgain);
                return Ok(block);
            };
            *piece = Piece { block, offset_bytes: place + (from - start), len_bytes: to - from };
        }
        let is_full = !self.collecting.has_room()
            || self.collecting.atomics.len() == ATOMICS_MAX
            || self.collecting.entry_pages() + atomic.pages() > PAGES_MAX;
        if is_full {
            return Err(Blocked::Full);
        }
        for block in request.block..request.block_end {
            if self.collecting.find(block).is_none() {
                self.collecting.add(block, Kind::Keep);
            }
        }
        self.collecting.atomics.push(atomic);
        self.requests.at_mut(key).links += 1;
        Ok(request.block_end)
    }

    /// Where a block is in the file, if all these bytes of the disk are in it. Waits for whoever changes the block.
    fn place_in_file(&mut self, block: u32, from: u64, to: u64) -> Result<Option<u64>, Blocked> {
        let other = |kind| !matches!(kind, None | Some(Kind::Commit | Kind::Keep));
        if other(self.collecting.kind_of(block)) || other(self.committing.kind_of(block)) {
            return Err(Blocked::Waits);
        }
        let entry = self.entry_to_change(block)?;
        let shift = self.map.shape().sector_shift;
        let is_there = match entry.state() {
            State::Full => true,
            State::Partial => self.are_set(from >> shift, to >> shift)?,
            _ => false,
        };
        Ok((is_there && entry.has_space()).then_some(entry.offset_bytes()))
    }

    /// Put the data of the committing group's atomic writes into the staging buffer, behind this many pages.
    pub(super) fn stage_atomics(&mut self, pages: usize) {
        let Some(payload) = &self.payload else { return };
        let mut at = (1 + pages) * PAGE;
        for atomic in &self.committing.atomics {
            let len = atomic.len_bytes() as usize;
            payload.copy_out(atomic.payload_at, &mut self.staging[at..at + len]);
            at += len;
        }
    }

    /// Where that data belongs; `page` counts those of all the group's atomic writes.
    pub(super) fn atomic_offset(&self, page: usize) -> u64 {
        let mut offsets = self.committing.atomics.iter().flat_map(Atomic::offsets);
        offsets.nth(page).expect("every page of an atomic write has its place")
    }

    /// The group's entry has been written: its atomic writes go in place, and the epoch turns behind them.
    pub(super) fn seal_atomics(&mut self) {
        if self.committing.atomics.is_empty() {
            return;
        }
        self.sealed.append(&mut self.committing.atomics);
        // What the turn begins with makes the entry durable, and what follows makes the data durable in place.
        let [sync, turn @ ..] = TURN;
        self.script.push_front(Step::AtomicsDone);
        for step in turn.into_iter().rev() {
            self.script.push_front(step);
        }
        self.script.push_front(Step::ApplyAtomics { atomic: 0, piece: 0 });
        self.script.push_front(sync);
    }

    /// Write one piece of an atomic write in place.
    pub(super) fn apply_atomic(&mut self, atomic: usize, piece: usize) -> Option<Operation> {
        let it = *self.sealed.get(atomic)?;
        let Piece { offset_bytes, len_bytes, .. } = it.pieces[piece];
        if len_bytes == 0 {
            self.atomic_applied(atomic, piece);
            return None;
        }
        let before: u64 = it.pieces[..piece].iter().map(|piece| piece.len_bytes).sum();
        if let Some(payload) = &self.payload {
            payload.copy_out(it.payload_at + before, &mut self.staging[..len_bytes as usize]);
        }
        Some(Operation::Write { offset_bytes, len: len_bytes as usize })
    }

    /// That piece is in place: the next one.
    pub(super) fn atomic_applied(&mut self, atomic: usize, piece: usize) {
        let next = if piece == 0 { (atomic, 1) } else { (atomic + 1, 0) };
        self.script.push_front(Step::ApplyAtomics { atomic: next.0, piece: next.1 });
    }

    /// No replay can bring the entry back.
    pub(super) fn atomics_done(&mut self) {
        let mut sealed = std::mem::take(&mut self.sealed);
        for atomic in sealed.drain(..) {
            self.requests.unlink(atomic.key, Ok(()));
            self.settle(atomic.key);
        }
        self.sealed = sealed;
        self.retry = true;
    }

    /// Some of the atomic writes' data may be in place, and the rest will not follow before the entry is replayed:
    /// until then nobody reads what it belongs to.
    pub(super) fn mark_torn(&self) {
        if self.sealed.is_empty() {
            return;
        }
        let mut ranges = [const { 0..0 }; TORN_MAX];
        for (range, atomic) in ranges.iter_mut().zip(&self.sealed) {
            let request = self.requests.at(atomic.key);
            *range = request.start_bytes..request.end_bytes;
        }
        self.map.mark_torn(ranges);
    }

    /// Whether an atomic write to the block is on its way from the log to its place.
    pub(super) fn is_being_applied(&self, block: u32) -> bool {
        self.sealed.iter().any(|atomic| atomic.covers(block))
    }
}
