//! The steps: what is written, flushed and then shown, one behind the other. A step may give out many operations, in
//! any order; the next one begins when all have ended.

use std::ops::Range;

use zerocopy::IntoBytes;

use super::grow::Growth;
use super::{Engine, Operation, Phase, RequestKind, Running, ZeroMode};
use crate::blocks::{EngineError, Event, IoFailure};
use crate::vhd::format::{FOOTER_LEN, Footer, SECTOR};

/// Sectors that one step can have in the staging buffer.
pub(super) const SLOTS: usize = 64;

/// The part of the staging buffer that holds one byte over and over.
pub(super) const FILL_AT: Range<usize> = 32 << 10..64 << 10;

/// Bytes of the staging buffer.
pub(super) const STAGING_LEN: usize = FILL_AT.end;

/// Operations that one step gives out at most.
pub(super) const FLIGHT_MAX: usize = SLOTS;

/// Steps that may wait.
pub(super) const SCRIPT_MAX: usize = 16;

const _: () = assert!(SLOTS * SECTOR as usize <= FILL_AT.start);
const _: () = assert!(OPEN.len() <= SCRIPT_MAX && CLOSE.len() <= SCRIPT_MAX);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Make everything so far durable, the guests' data included.
    Sync,
    /// The same, unless nothing was changed since the last time.
    SyncChanges,
    /// Write the copy of the footer, where it is not as it should be.
    WriteCopy,
    /// Grow the file so that a footer fits behind every object.
    MakeRoom,
    /// Write the footer behind every object, where it is not.
    PlaceFooter,
    /// Cut off what is behind that footer: what an interrupted session left.
    CutSlack,
    /// The session is open.
    Opened,
    /// Grow the file by many blocks.
    Grow,
    /// Footer and bitmaps of the blocks to come.
    FillGrowth,
    /// They can be used.
    Grown,
    /// Write the table's sectors that name the fresh blocks, and show them.
    WriteFresh,
    /// Have the bits of this round's chunks in memory.
    PinPages,
    /// Write bitmaps and table sectors of this round's chunks, and show them.
    WriteChunks,
    /// Make the released blocks read as zeros.
    ZeroBlocks,
    /// Over a parent: set the released blocks' bits, name them in the table, and show them.
    WriteCleared,
    /// The file may be closed.
    Closed,
}

/// Opening the session. The copy of the footer is good, durably, before the end of the file is touched: from then on it
/// describes the disk at every instant. Cutting needs no flush: the one of the file's next growth comes before anything
/// names a place behind the cut.
const OPEN: [Step; 7] = [
    Step::WriteCopy,
    Step::SyncChanges,
    Step::MakeRoom,
    Step::PlaceFooter,
    Step::SyncChanges,
    Step::CutSlack,
    Step::Opened,
];

/// Closing. The file is cut only once a footer is durable where it will end.
const CLOSE: [Step; 4] = [Step::PlaceFooter, Step::Sync, Step::CutSlack, Step::Closed];

impl Engine {
    /// Run until operations are in flight or nothing is left to do.
    pub(super) fn advance(&mut self) {
        if self.step.is_some() || matches!(self.phase, Phase::Poisoned | Phase::Closed) {
            return;
        }
        if self.map.poisoned() {
            return self.poison();
        }
        loop {
            while let Some(step) = self.script.pop_front() {
                if !self.start(step) {
                    self.script.push_front(step);
                    return;
                }
                if !self.flight.is_empty() {
                    self.step = Some(step);
                    return;
                }
            }
            if !self.next_program() {
                return;
            }
        }
    }

    /// Choose what to do next; false when there is nothing.
    fn next_program(&mut self) -> bool {
        match self.phase {
            Phase::Unmodified if self.begin_wanted || !self.collecting.is_empty() => {
                self.phase = Phase::Opening;
                self.begin_wanted = false;
                self.script.extend(OPEN);
            }
            Phase::Unmodified if self.close_wanted => self.script.extend([Step::Closed]),
            Phase::Open if !self.working.is_empty() => self.plan_round(),
            Phase::Open if !self.collecting.is_empty() => {
                std::mem::swap(&mut self.collecting, &mut self.working);
                // One flush makes the data durable that all of these commits are about.
                if self.working.iter().any(|request| matches!(request.kind, RequestKind::Commit { .. })) {
                    self.script.push_back(Step::Sync);
                }
            }
            Phase::Open if self.close_wanted => {
                self.phase = Phase::Closing;
                self.script.extend(CLOSE);
            }
            _ => return false,
        }
        true
    }

    /// Begin a step: it is done, or has operations in flight. False: not now.
    fn start(&mut self, step: Step) -> bool {
        match step {
            Step::Sync => self.launch_sync(),
            Step::SyncChanges if self.changed => self.launch_sync(),
            Step::SyncChanges => {}
            Step::WriteCopy if self.copy_good => {}
            Step::WriteCopy => self.write_footer_at(0),
            Step::MakeRoom if self.file_len_bytes < self.footer_end() => {
                self.launch(Operation::Extend { to_bytes: self.footer_end() });
                self.end_good = false;
            }
            Step::MakeRoom => {}
            Step::PlaceFooter if self.end_good && self.file_len_bytes == self.footer_end() => {}
            Step::PlaceFooter => self.write_footer_at(self.next_bytes),
            Step::CutSlack if self.file_len_bytes > self.footer_end() => {
                self.launch(Operation::Truncate { len_bytes: self.footer_end() });
            }
            Step::CutSlack => {}
            Step::Opened => self.opened(),
            Step::Grow => match self.start_growing() {
                Some(operation) => self.launch(operation),
                None => self.refuse_space(),
            },
            Step::FillGrowth => while self.flight.len() < FLIGHT_MAX && self.fill_growth() {},
            Step::Grown => self.ready_bytes = self.file_len_bytes,
            Step::WriteFresh => self.write_fresh(),
            Step::PinPages => return self.pin_pages(),
            Step::WriteChunks => self.write_chunks(),
            Step::ZeroBlocks => self.zero_blocks(),
            Step::WriteCleared => {
                self.write_cleared();
                if self.flight.is_empty() {
                    self.publish_cleared();
                }
            }
            Step::Closed => {
                self.phase = Phase::Closed;
                self.map.mark_write_session(false);
                self.push_event(Event::Closed(Ok(())));
            }
        }
        true
    }

    /// Where the file ends when nothing is held ahead.
    fn footer_end(&self) -> u64 {
        self.next_bytes + FOOTER_LEN
    }

    fn opened(&mut self) {
        assert_eq!(self.file_len_bytes, self.footer_end());
        self.phase = Phase::Open;
        self.ready_bytes = self.file_len_bytes;
        self.map.mark_write_session(true);
        self.push_event(Event::WriteSession(Ok(())));
    }

    pub(super) fn launch(&mut self, operation: Operation) {
        assert!(self.flight.len() < FLIGHT_MAX);
        self.changed = !matches!(operation, Operation::Sync { .. });
        let id = self.fresh_id();
        self.flight.push(Running { id, operation, given_out: false });
    }

    fn launch_sync(&mut self) {
        let mark = self.map.flush_started();
        self.launch(Operation::Sync { mark });
    }

    /// Write one of the staging buffer's sectors.
    pub(super) fn launch_slot(&mut self, slot: usize, offset_bytes: u64) {
        self.launch(Operation::Write { offset_bytes, at: slot * SECTOR as usize, len: SECTOR as usize });
    }

    /// One of the staging buffer's sectors.
    pub(super) fn slot(&mut self, slot: usize) -> &mut [u8; SECTOR as usize] {
        assert!(slot < SLOTS);
        &mut self.staging.as_chunks_mut::<{ SECTOR as usize }>().0[slot]
    }

    pub(super) fn write_footer_at(&mut self, offset_bytes: u64) {
        let footer: Footer = self.footer;
        self.slot(SLOTS - 1).copy_from_slice(footer.as_bytes());
        self.launch_slot(SLOTS - 1, offset_bytes);
    }

    /// An operation of the current step has ended.
    pub(super) fn finish_operation(&mut self, operation: Operation, result: Result<(), IoFailure>) {
        match (operation, result) {
            (_, Err(failure)) => self.flight_failure = self.flight_failure.or(Some(failure)),
            (Operation::Sync { mark }, Ok(())) => self.map.flush_done(mark),
            (Operation::Extend { to_bytes: len } | Operation::Truncate { len_bytes: len }, Ok(())) => {
                self.file_len_bytes = len;
            }
            _ => {}
        }
        if !self.flight.is_empty() || self.phase == Phase::Poisoned {
            return;
        }
        let step = self.step.take().expect("an operation in flight belongs to a step");
        match self.flight_failure.take() {
            None => self.finish_step(step),
            Some(failure) => self.fail_step(step, failure),
        }
    }

    fn finish_step(&mut self, step: Step) {
        match step {
            Step::WriteCopy => self.copy_good = true,
            Step::PlaceFooter => self.end_good = true,
            Step::Grow => {
                self.growth = self.growth.more();
                self.progress = (0, 0);
                for step in Self::growth_steps().into_iter().rev() {
                    self.script.push_front(step);
                }
            }
            // Until nothing more is to be written.
            Step::FillGrowth => self.script.push_front(step),
            Step::ZeroBlocks if self.zeros_left() => self.script.push_front(step),
            Step::WriteFresh => self.publish_fresh(),
            Step::WriteChunks => self.publish_chunks(),
            Step::WriteCleared => self.publish_cleared(),
            _ => {}
        }
    }

    fn fail_step(&mut self, step: Step, failure: IoFailure) {
        match (step, failure) {
            (Step::Grow, IoFailure::OutOfSpace) => match self.growth.less() {
                Some(less) => {
                    self.growth = less;
                    self.script.push_front(step);
                }
                None => self.refuse_space(),
            },
            (Step::MakeRoom, IoFailure::OutOfSpace) => self.give_up_opening(),
            // The file stays larger than it needs to be, its footer at its end.
            (Step::CutSlack, _) if self.phase == Phase::Closing => {}
            (Step::ZeroBlocks, IoFailure::Unsupported) if self.zero_mode != ZeroMode::Write => {
                self.zero_mode = match self.zero_mode {
                    ZeroMode::Punch => ZeroMode::ZeroRange,
                    ZeroMode::ZeroRange | ZeroMode::Write => ZeroMode::Write,
                };
                self.progress = (0, 0);
                self.script.push_front(step);
            }
            _ => self.poison(),
        }
    }

    /// The file cannot grow to where its footer goes: nothing was promised yet, and the session may be tried again.
    fn give_up_opening(&mut self) {
        self.script.clear();
        self.phase = Phase::Unmodified;
        self.push_event(Event::WriteSession(Err(EngineError::OutOfSpace)));
        for request in std::mem::take(&mut self.collecting) {
            self.answer(request.ticket, Err(EngineError::OutOfSpace));
        }
        self.growth = Growth::Ahead;
    }
}
