//! Condemned space becomes free: a barrier, a sync, zeros, a sync. One batch of ranges at a time.

use super::{Engine, NOTHING, Operation, Phase, RECLAIM};
use crate::blocks::IoFailure;
use crate::vhdx::space::Run;

/// Ranges of a batch.
const BATCH_MAX: usize = 256;

/// Longest range: zeroing one must not hold the others up for long.
const RUN_LEN_MAX: u64 = 1 << 30;

/// How a range is made to read as zeros: what the file system can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Zeroing {
    #[default]
    Punch,
    Range,
    Write,
}

impl Zeroing {
    /// The next thing to try.
    pub fn fallback(self) -> Option<Self> {
        match self {
            Self::Punch => Some(Self::Range),
            Self::Range => Some(Self::Write),
            Self::Write => None,
        }
    }

    /// The operation that zeroes a range of which `done` bytes have been written.
    pub fn operation(self, run: Run, done: u64) -> Operation {
        let Run { offset_bytes, len_bytes } = run;
        match self {
            Self::Punch => Operation::PunchHole { offset_bytes, len_bytes },
            Self::Range => Operation::ZeroRange { offset_bytes, len_bytes },
            Self::Write => {
                let len = (len_bytes - done).min(NOTHING.len() as u64) as usize;
                Operation::WriteZeros { offset_bytes: offset_bytes + done, len }
            }
        }
    }

    /// How much of the range is zero when that operation has gone well.
    pub fn done_after(self, run: Run, done: u64) -> u64 {
        if self == Self::Write { (done + NOTHING.len() as u64).min(run.len_bytes) } else { run.len_bytes }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Idle,
    /// Until everyone who planned before has ended.
    Barrier,
    /// What gave the space up becomes durable.
    Settle,
    /// The batch's ranges are zeroed, one after the other.
    Zero { at: usize, done: u64 },
    /// The zeros become durable.
    Seal,
}

#[derive(Debug, Default)]
pub(super) struct Reclaim {
    state: State,
    batch: Vec<Run>,
    zeroing: Zeroing,
    /// The batch is of holes that were found at open.
    holes: bool,
    /// The file system had no space for it: until more is condemned.
    paused: bool,
}

impl Reclaim {
    pub fn reserve(&mut self) {
        self.batch.reserve_exact(BATCH_MAX);
    }

    /// Space will be free without anybody else's doing.
    pub fn frees_soon(&self) -> bool {
        match self.state {
            State::Idle | State::Barrier => false,
            State::Settle | State::Zero { .. } | State::Seal => true,
        }
    }

    pub fn is_idle(&self) -> bool {
        self.state == State::Idle
    }
}

impl Engine {
    /// Whether everything that was condemned is free, as far as can be.
    pub(super) fn reclaimed(&self) -> bool {
        self.reclaim.is_idle() && (self.space.condemned_bytes() == 0 || self.reclaim.paused)
    }

    /// Nothing refers to this space any more.
    pub(super) fn condemn(&mut self, run: Run) {
        if !self.space.condemn(run) {
            // The table names space that the engine does not know as taken: the file was changed behind its back. The
            // engine stops before its next operation.
            self.map.poison();
        }
        self.reclaim.paused = false;
    }

    /// The session is open: nobody has ever planned on the holes that were found at open, so no barrier is needed.
    pub(super) fn reclaim_holes(&mut self) {
        self.reclaim.zeroing = if self.geometry.fixed { Zeroing::Range } else { Zeroing::Punch };
        if self.gather() {
            self.reclaim.holes = true;
            self.reclaim.state = State::Zero { at: 0, done: 0 };
        }
    }

    fn gather(&mut self) -> bool {
        self.reclaim.batch.clear();
        self.space.rewind_condemned();
        while self.reclaim.batch.len() < BATCH_MAX {
            match self.space.next_condemned(RUN_LEN_MAX) {
                Some(run) if self.reclaim.batch.first() != Some(&run) => self.reclaim.batch.push(run),
                _ => break,
            }
        }
        !self.reclaim.batch.is_empty()
    }

    /// Give out the next operation, if it is time.
    pub(super) fn advance_reclaim(&mut self) {
        if self.lanes[RECLAIM].is_some() || !matches!(self.phase, Phase::Open) {
            return;
        }
        let operation = match self.reclaim.state {
            State::Idle => {
                if self.space.condemned_bytes() == 0 || self.reclaim.paused || !self.gather() {
                    return;
                }
                self.reclaim.state = State::Barrier;
                Operation::Barrier
            }
            State::Barrier => Operation::Barrier,
            State::Settle | State::Seal => self.sync(),
            State::Zero { at, done } => self.reclaim.zeroing.operation(self.reclaim.batch[at], done),
        };
        self.start_in(RECLAIM, operation);
    }

    pub(super) fn finish_reclaim(&mut self, result: Result<(), IoFailure>) {
        match (self.reclaim.state, result) {
            (State::Barrier, Ok(())) => self.reclaim.state = State::Settle,
            (State::Settle, Ok(())) => self.reclaim.state = State::Zero { at: 0, done: 0 },
            (State::Zero { at, done }, Ok(())) => {
                let run = self.reclaim.batch[at];
                let done = self.reclaim.zeroing.done_after(run, done);
                let whole = done == run.len_bytes;
                self.reclaim.state = match at + usize::from(whole) {
                    next if next == self.reclaim.batch.len() => State::Seal,
                    next if whole => State::Zero { at: next, done: 0 },
                    at => State::Zero { at, done },
                };
            }
            (State::Seal, Ok(())) => {
                for run in &self.reclaim.batch {
                    self.space.free(*run);
                }
                self.reclaim.state = State::Idle;
                self.reclaim.holes = false;
            }
            (State::Zero { at, .. }, Err(IoFailure::Unsupported)) => match self.reclaim.zeroing.fallback() {
                Some(zeroing) => {
                    self.reclaim.zeroing = zeroing;
                    self.reclaim.state = State::Zero { at, done: 0 };
                }
                None => self.poison(),
            },
            // Punching can need space of the file system's own. It is tried again when there is more to give back.
            (State::Zero { .. }, Err(IoFailure::OutOfSpace)) => {
                self.reclaim.paused = true;
                self.reclaim.state = State::Idle;
            }
            (_, Err(_)) => self.poison(),
            (State::Idle, Ok(())) => unreachable!("no operation is out while nothing is reclaimed"),
        }
    }
}
