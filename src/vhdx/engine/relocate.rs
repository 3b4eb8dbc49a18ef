//! Compaction, a step at a time: blocks that hold zeros only give their space up, then blocks move from the end of the
//! file into free space further down, highest first, and at last the file's tail is cut off. The guest sees none of it,
//! so DataWriteGuid stays (section 2.2.2).
//!
//! Sector bitmap blocks stay where they are, and so does what lies in front of them: see `engine`.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::group::Kind;
use super::pages::Blocked;
use super::{Engine, Operation, Phase, RELOCATE};
use crate::blocks::{Asked, Done, EngineError, Entry, Event, IoFailure, State as BlockState, Ticket, WORDS_PER_PAGE};
use crate::vhdx::format::PAGE;
use crate::vhdx::space::Run;

/// Blocks that one search for the highest keeps.
const CANDIDATES_MAX: usize = 1024;

/// Blocks that are looked at in one step.
const LOOK_MAX: u32 = 16 * 1024;

/// What compaction is at.
#[derive(Debug, Default)]
enum Pass {
    /// Not begun.
    #[default]
    New,
    /// Looking for blocks of zeros; the next block.
    Zeros { block: u32 },
    /// Looking for the blocks at the end of the file; the next block.
    Search { block: u32 },
    /// Moving those that were found.
    Move { moved: bool, more: bool },
    /// Giving the tail back.
    Cut { asked: bool },
    /// Done: the next request is told so.
    Finished,
}

/// What is done to one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Waiting for those who planned to write it.
    Barrier,
    /// They have ended, or the move has been given up.
    Ready,
    Copying,
    /// Copied; `zeros`: there is nothing in it.
    Copied {
        zeros: bool,
    },
    /// Its change is in a group.
    Logged,
}

#[derive(Clone, Copy, Debug)]
struct Moving {
    block: u32,
    from_bytes: u64,
    /// The same place: only a look whether it is all zeros.
    to_bytes: u64,
    len_bytes: u64,
    stage: Stage,
    cancelled: bool,
}

#[derive(Debug, Default)]
pub(super) struct Relocation {
    /// Who waits for the step.
    pub ticket: Option<Ticket>,
    pass: Pass,
    /// The blocks at the end of the file, by place.
    candidates: BinaryHeap<Reverse<(u64, u32)>>,
    found: Vec<(u64, u32)>,
    moving: Option<Moving>,
}

impl Engine {
    pub(super) fn ask_relocate(&mut self, ticket: Ticket) -> Result<Asked, EngineError> {
        if self.relocation.ticket.is_some() {
            return Err(EngineError::Busy);
        }
        // A disk that is to stay allocated has nothing to give.
        if self.geometry.fixed {
            return Ok(Asked::Already);
        }
        match self.relocation.pass {
            Pass::Finished => {
                self.relocation.pass = Pass::New;
                return Ok(Asked::Already);
            }
            Pass::New => self.relocation.pass = Pass::Zeros { block: 0 },
            _ => {}
        }
        self.relocation.ticket = Some(ticket);
        self.layout_wanted |= self.phase == Phase::Unmodified;
        Ok(Asked::Queued)
    }

    /// Go on with the step that is wanted.
    pub(super) fn advance_relocation(&mut self) {
        if self.phase != Phase::Open || self.lanes[RELOCATE].is_some() {
            return;
        }
        if self.relocation.moving.is_some() {
            return self.advance_moving();
        }
        if self.relocation.ticket.is_none() {
            return;
        }
        if self.close_wanted {
            return self.step_done();
        }
        // Whatever waits here for a page, a group or space is looked at again when anything has ended.
        let _ = match self.relocation.pass {
            Pass::New | Pass::Finished => Ok(()),
            Pass::Zeros { block } => self.look_for_zeros(block),
            Pass::Search { block } => self.search(block),
            Pass::Move { moved, more } => self.move_next(moved, more),
            Pass::Cut { asked } => self.cut(asked),
        };
    }

    fn step_done(&mut self) {
        self.retry = true;
        if let Some(ticket) = self.relocation.ticket.take() {
            self.push_event(Event::Done { ticket, result: Ok(Done::Ok) });
        }
    }

    /// The next block behind those of a page of the table that is all zeros, or `block` itself.
    fn skip_zeros(&self, block: u32) -> u32 {
        let index = self.geometry.bat_index(block);
        if !self.map.entries().is_zeros((index / WORDS_PER_PAGE) as u32) {
            return block;
        }
        block + ((WORDS_PER_PAGE - index % WORDS_PER_PAGE) as u32).saturating_sub(1).max(1)
    }

    fn is_in_a_group(&self, block: u32) -> bool {
        self.collecting.find(block).is_some() || self.committing.find(block).is_some() || self.is_being_applied(block)
    }

    fn look_for_zeros(&mut self, from: u32) -> Result<(), Blocked> {
        let (mut block, end) = (from, self.geometry.block_count);
        let stop = from.saturating_add(LOOK_MAX);
        while block < end && block < stop {
            self.relocation.pass = Pass::Zeros { block };
            let next = self.skip_zeros(block);
            if next != block {
                block = next;
                continue;
            }
            let entry = self.entry(block)?;
            block += 1;
            if entry.state() == BlockState::Full && !self.is_in_a_group(block - 1) {
                self.relocation.pass = Pass::Zeros { block };
                return self.begin_move(block - 1, entry, entry.offset_bytes());
            }
        }
        self.relocation.pass = if block < end { Pass::Zeros { block } } else { Pass::Search { block: 0 } };
        self.step_done();
        Ok(())
    }

    fn search(&mut self, from: u32) -> Result<(), Blocked> {
        let (mut block, end) = (from, self.geometry.block_count);
        let stop = from.saturating_add(LOOK_MAX);
        while block < end && block < stop {
            self.relocation.pass = Pass::Search { block };
            let next = self.skip_zeros(block);
            if next != block {
                block = next;
                continue;
            }
            let entry = self.entry(block)?;
            if entry.is_present() {
                self.relocation.candidates.push(Reverse((entry.offset_bytes(), block)));
                if self.relocation.candidates.len() > CANDIDATES_MAX {
                    self.relocation.candidates.pop();
                }
            }
            block += 1;
        }
        self.relocation.pass = Pass::Search { block };
        if block >= end {
            let more = self.relocation.candidates.len() == CANDIDATES_MAX;
            self.relocation.found.clear();
            // Lowest first: the highest is taken from the end.
            while let Some(Reverse(candidate)) = self.relocation.candidates.pop() {
                self.relocation.found.push(candidate);
            }
            self.relocation.pass = Pass::Move { moved: false, more };
        }
        self.step_done();
        Ok(())
    }

    fn move_next(&mut self, moved: bool, more: bool) -> Result<(), Blocked> {
        let Some((offset_bytes, block)) = self.relocation.found.last().copied() else {
            // As many were found as are kept, and some have moved: there may be others behind the free space.
            self.relocation.pass = if moved && more { Pass::Search { block: 0 } } else { Pass::Cut { asked: false } };
            self.retry = true;
            return Ok(());
        };
        let entry = self.entry(block)?;
        if !entry.is_present() || entry.offset_bytes() != offset_bytes || self.is_in_a_group(block) {
            self.relocation.found.pop();
            self.retry = true;
            return Ok(());
        }
        let Some(to) = self.space.find(self.block_len(), offset_bytes) else {
            if self.reclaimed() {
                // The others lie lower and find less.
                self.relocation.found.clear();
                self.relocation.pass = Pass::Cut { asked: false };
                self.retry = true;
            }
            return Ok(());
        };
        self.relocation.found.pop();
        assert!(self.space.take(to), "what was found is free");
        self.relocation.pass = Pass::Move { moved: true, more };
        let begun = self.begin_move(block, entry, to.offset_bytes);
        if begun.is_err() {
            self.space.free(to);
            self.relocation.found.push((offset_bytes, block));
        }
        begun
    }

    fn begin_move(&mut self, block: u32, entry: Entry, to_bytes: u64) -> Result<(), Blocked> {
        let page = self.entry_page(block);
        self.pin(page)?;
        self.map.store(block, entry.with_busy(true)).expect("just pinned");
        let visible = self.geometry.visible_len_bytes(block).next_multiple_of(PAGE as u64);
        let len_bytes = visible.min(self.block_len());
        self.relocation.moving = Some(Moving {
            block,
            from_bytes: entry.offset_bytes(),
            to_bytes,
            len_bytes,
            stage: Stage::Barrier,
            cancelled: false,
        });
        self.start_in(RELOCATE, Operation::Barrier);
        Ok(())
    }

    fn advance_moving(&mut self) {
        let Some(moving) = self.relocation.moving else { return };
        if moving.cancelled && moving.stage == Stage::Ready {
            self.relocation.moving = None;
            return self.step_done();
        }
        match moving.stage {
            Stage::Ready if self.is_in_a_group(moving.block) => {}
            Stage::Ready => {
                let Moving { from_bytes, to_bytes, len_bytes, .. } = moving;
                self.set_stage(Stage::Copying);
                self.start_in(RELOCATE, Operation::Copy { from_bytes, to_bytes, len_bytes });
            }
            Stage::Copied { zeros } => {
                let full = self.map.entry(moving.block).is_ok_and(|entry| entry.state() == BlockState::Full);
                let kind = match moving {
                    _ if zeros && full => Kind::Zero,
                    Moving { from_bytes, to_bytes, .. } if from_bytes == to_bytes => {
                        self.release_block(&moving);
                        self.relocation.moving = None;
                        return self.step_done();
                    }
                    Moving { to_bytes, .. } => Kind::Move { to_bytes },
                };
                if !self.collecting.has_room() || self.claim(&[self.entry_page(moving.block)]).is_err() {
                    return;
                }
                self.collecting.add(moving.block, kind);
                self.set_stage(Stage::Logged);
                self.retry = true;
            }
            Stage::Barrier | Stage::Copying | Stage::Logged => {}
        }
    }

    fn set_stage(&mut self, stage: Stage) {
        if let Some(moving) = &mut self.relocation.moving {
            moving.stage = stage;
        }
    }

    /// The block is as it was.
    fn release_block(&mut self, moving: &Moving) {
        let entry = self.map.entry(moving.block).unwrap_or_default();
        self.map.store(moving.block, entry.with_busy(false)).expect("the page of a busy block is pinned");
        self.unpin(self.entry_page(moving.block));
        self.release_target(moving);
        self.retry = true;
    }

    /// The new place was not needed. It still reads as zeros, or holds nothing that was ever published: then it has to
    /// be zeroed again.
    fn release_target(&mut self, moving: &Moving) {
        let run = Run { offset_bytes: moving.to_bytes, len_bytes: self.block_len() };
        if moving.to_bytes != moving.from_bytes {
            self.space.free(run);
        }
    }

    /// Give up moving a block that somebody wants to change, unless the copy has begun; whether it has been given up.
    pub(super) fn cancel_relocation(&mut self, block: u32) -> bool {
        let Some(moving) = self.relocation.moving.filter(|moving| moving.block == block && !moving.cancelled) else {
            return false;
        };
        if !matches!(moving.stage, Stage::Barrier | Stage::Ready) {
            return false;
        }
        self.release_block(&moving);
        if let Some(moving) = &mut self.relocation.moving {
            moving.cancelled = true;
        }
        true
    }

    /// Whether a block is past the point where those who planned before were waited for.
    pub(super) fn is_copying(&self, block: u32) -> bool {
        self.relocation.moving.is_some_and(|moving| {
            moving.block == block && matches!(moving.stage, Stage::Copying | Stage::Copied { .. } | Stage::Logged)
        })
    }

    pub(super) fn finish_relocate(&mut self, result: Result<bool, IoFailure>) {
        let Some(moving) = self.relocation.moving else { return };
        match (moving.stage, result) {
            (Stage::Barrier, Ok(_)) => self.set_stage(Stage::Ready),
            (Stage::Copying, Ok(zeros)) => self.set_stage(Stage::Copied { zeros }),
            // The host's disk is full (a copy into a hole): the block stays, and the place is cleaned before it is
            // used.
            (Stage::Copying, Err(IoFailure::OutOfSpace)) => {
                let entry = self.map.entry(moving.block).unwrap_or_default();
                self.map.store(moving.block, entry.with_busy(false)).expect("the page of a busy block is pinned");
                self.unpin(self.entry_page(moving.block));
                if moving.to_bytes != moving.from_bytes {
                    let run = Run { offset_bytes: moving.to_bytes, len_bytes: self.block_len() };
                    self.condemn(run);
                }
                self.relocation.found.clear();
                self.relocation.moving = None;
                self.relocation.pass = Pass::Cut { asked: false };
                self.step_done();
            }
            _ => self.poison(),
        }
    }

    /// The entry that moves a block, or gives its space up, has been written, and the map shows it.
    pub(super) fn relocation_shown(&mut self, block: u32) {
        let Some(moving) = self.relocation.moving.filter(|moving| moving.block == block) else { return };
        self.unpin(self.entry_page(block));
        if !self.map.entry(block).is_ok_and(|entry| entry.is_present()) {
            self.release_target(&moving);
        }
        self.relocation.moving = None;
        self.step_done();
    }

    /// Cut the file behind its last object, once everything that was given up is free.
    fn cut(&mut self, asked: bool) -> Result<(), Blocked> {
        if !self.reclaimed() || self.cut_wanted {
            return Ok(());
        }
        if asked || self.slack().is_none() {
            self.relocation.pass = Pass::Finished;
            self.step_done();
        } else {
            self.relocation.pass = Pass::Cut { asked: true };
            self.cut_wanted = true;
            self.retry = true;
        }
        Ok(())
    }
}
