//! What the engine does, step by step: opening the session, a group, the turn of an epoch, closing. Each program is a
//! list of steps whose order is what makes every instant of it recoverable; a step gives out at most one operation at
//! a time.

use super::{EXTEND_MAX, EXTEND_MIN, Engine, EngineError, Event, IoFailure, IoId, Operation, Phase, Running};
use crate::vhdx::bat::{ENTRIES_PER_PAGE, encode_page};
use crate::vhdx::format::{BatEntry, Guid, MIB, PAGE, REGION_TABLE_LEN};
use crate::vhdx::log::{NewEntry, seal};

const PAGE_LEN: u64 = PAGE as u64;

/// Pages of the table that one entry carries: with the descriptor sector 64 KiB, one buffer of a common class. One page
/// covers 512 blocks, so a group rarely needs more than a few.
pub(super) const GROUP_PAGES_MAX: usize = 15;

/// The longest entry.
pub(super) const STAGING_LEN: usize = (1 + GROUP_PAGES_MAX) * PAGE;

/// Steps that may wait: a turn in front of a group is the most.
pub(super) const SCRIPT_MAX: usize = 32;

/// Free space that stays behind the last entry of an epoch, besides the entry that ends it: other readers of the log
/// are known to stumble over a run that ends right before the ring's last sector.
const RING_RESERVE: u64 = 2 * PAGE_LEN;

/// How much space to ask the file system for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Growth {
    /// The group's need and a large step beyond it.
    Ahead,
    /// The group's need.
    Group,
    /// One block.
    Block,
    /// No more: take what is there.
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// New FileWriteGuid and DataWriteGuid in the header to be written (section 2.2.2).
    RenewWriteGuids,
    /// Write the header to the slot that is not current.
    WriteHeader,
    /// Make everything so far durable.
    Sync,
    /// Write the copy of the region table that is not valid anew. It needs no log: until it is whole, the other copy
    /// serves.
    RepairRegionTable,
    /// Make the tail of the file, behind every object, read as zeros: it may hold what an interrupted session left.
    ZeroSlack,
    /// The same where the file system cannot zero a range: cut the tail off.
    CutSlack,
    /// Make the file end at a whole MiB behind every object.
    PadFile,
    /// Write an empty entry under a new LogGuid at the start of the ring: an epoch's first.
    StartEpoch,
    /// The header to be written names the new LogGuid.
    NameEpoch,
    /// The session is open.
    Opened,
    /// Give the committing group's blocks their places, growing the file if need be.
    Reserve(Growth),
    /// Write the group's entry.
    WriteGroup,
    /// Write dirty pages of the table in place, until none is left.
    ApplyPages,
    /// Write an empty entry whose Tail is itself: it makes every entry before it superfluous.
    EndEpoch,
    /// The header to be written names no log.
    NameNoLog,
    /// Give preallocated space back.
    GiveBack,
    /// The file may be closed.
    Closed,
}

/// Opening the session. The empty entry is durable before a header names its GUID, so a header never promises a log
/// that is not there; FileWriteGuid is durable before the first modification; the slack is zero before the first
/// block is published.
const OPEN: [Step; 16] = [
    Step::RenewWriteGuids,
    Step::WriteHeader,
    Step::Sync,
    Step::WriteHeader,
    Step::Sync,
    Step::RepairRegionTable,
    Step::ZeroSlack,
    Step::PadFile,
    Step::StartEpoch,
    Step::Sync,
    Step::NameEpoch,
    Step::WriteHeader,
    Step::Sync,
    Step::WriteHeader,
    Step::Sync,
    Step::Opened,
];

/// The turn of an epoch. `EndEpoch` is durable before the ring's start is overwritten: until then every entry's Tail is
/// the entry there. The old header's log stays replayable until the new header is there.
const TURN: [Step; 11] = [
    Step::ApplyPages,
    Step::Sync,
    Step::EndEpoch,
    Step::Sync,
    Step::StartEpoch,
    Step::Sync,
    Step::NameEpoch,
    Step::WriteHeader,
    Step::Sync,
    Step::WriteHeader,
    Step::Sync,
];

/// Closing. The file is cut only once no log can promise its size.
const CLOSE: [Step; 10] = [
    Step::ApplyPages,
    Step::Sync,
    Step::NameNoLog,
    Step::WriteHeader,
    Step::Sync,
    Step::WriteHeader,
    Step::Sync,
    Step::GiveBack,
    Step::Sync,
    Step::Closed,
];

const _: () = assert!(REGION_TABLE_LEN <= STAGING_LEN);
const _: () = assert!(OPEN.len() <= SCRIPT_MAX && TURN.len() + 2 <= SCRIPT_MAX && CLOSE.len() <= SCRIPT_MAX);

impl Engine {
    /// Run until an operation is in flight or nothing is left to do.
    pub(super) fn advance(&mut self) {
        if self.running.is_some() || matches!(self.phase, Phase::Poisoned | Phase::Closed) {
            return;
        }
        if self.view.poisoned() {
            return self.poison();
        }
        loop {
            while let Some(step) = self.script.pop_front() {
                if !self.start(step) {
                    // It needs the extension that is in flight.
                    self.script.push_front(step);
                    return;
                }
                if self.running.is_some() {
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
            Phase::Open if !self.collecting.is_empty() => {
                assert!(self.committing.is_empty());
                std::mem::swap(&mut self.collecting, &mut self.committing);
                self.script.extend([Step::Reserve(Growth::Ahead), Step::WriteGroup]);
            }
            Phase::Open if self.close_wanted && self.ahead.is_none() => {
                self.phase = Phase::Closing;
                self.script.extend(CLOSE);
            }
            _ => return false,
        }
        true
    }

    /// Begin a step: it is done, or has an operation in `running`. False: not now.
    fn start(&mut self, step: Step) -> bool {
        let operation = match step {
            Step::RenewWriteGuids => self.renew_write_guids(),
            Step::WriteHeader => self.write_header(),
            Step::Sync => {
                let mark = self.view.flush_started();
                Some(Operation::Sync { mark, file_len_bytes: self.file_len_bytes })
            }
            Step::RepairRegionTable => self.repair_region_table(),
            Step::ZeroSlack => {
                self.slack().map(|len_bytes| Operation::ZeroRange { offset_bytes: self.next_block_bytes, len_bytes })
            }
            Step::CutSlack => self.slack().map(|_| Operation::Truncate { len_bytes: self.next_block_bytes }),
            Step::PadFile => (self.file_len_bytes < self.next_block_bytes)
                .then_some(Operation::Extend { to_bytes: self.next_block_bytes }),
            Step::StartEpoch => Some(self.start_epoch()),
            Step::NameEpoch => {
                self.header.header.log_guid = self.log.log_guid;
                None
            }
            Step::Opened => {
                self.phase = Phase::Open;
                self.view.mark_write_session(true);
                self.push_event(Event::WriteSession(Ok(())));
                None
            }
            Step::Reserve(growth) => match self.reserve(growth) {
                Reserved::Done => None,
                Reserved::After(operation) => Some(operation),
                Reserved::Later => return false,
            },
            Step::WriteGroup => self.write_group(),
            Step::ApplyPages => self.apply_pages(),
            Step::EndEpoch => Some(self.end_epoch()),
            Step::NameNoLog => {
                self.header.header.log_guid = Guid::ZERO;
                None
            }
            Step::GiveBack => self.give_back(),
            Step::Closed => {
                self.phase = Phase::Closed;
                self.view.mark_write_session(false);
                self.push_event(Event::Closed(Ok(())));
                None
            }
        };
        if let Some(operation) = operation {
            self.step = Some(step);
            self.running = Some(self.operation(operation));
        }
        true
    }

    fn operation(&mut self, operation: Operation) -> Running {
        self.next_io = self.next_io.wrapping_add(1);
        Running { id: IoId(self.next_io), operation, given_out: false }
    }

    /// The operation of the current step has ended.
    pub(super) fn finish_step(&mut self, operation: Operation, result: Result<(), IoFailure>) {
        if self.phase == Phase::Poisoned {
            return;
        }
        let step = self.step.take().expect("an operation in flight belongs to a step");
        match (step, result) {
            (_, Ok(())) => self.finish_well(step, operation),
            // Cutting the slack serves as well as zeroing it.
            (Step::ZeroSlack, Err(_)) => self.script.push_front(Step::CutSlack),
            // The file stays a little larger than it needs to be.
            (Step::GiveBack, Err(_)) => {}
            (Step::PadFile, Err(IoFailure::OutOfSpace)) => self.give_up_opening(),
            (Step::Reserve(growth), Err(IoFailure::OutOfSpace)) => {
                let less = match growth {
                    Growth::Ahead => Growth::Group,
                    Growth::Group => Growth::Block,
                    Growth::Block | Growth::Nothing => Growth::Nothing,
                };
                self.ahead_refused = true;
                self.script.push_front(Step::Reserve(less));
            }
            (_, Err(_)) => self.poison(),
        }
    }

    fn finish_well(&mut self, step: Step, operation: Operation) {
        match operation {
            Operation::Sync { mark, file_len_bytes } => {
                self.view.flush_done(mark);
                self.file_len_durable_bytes = file_len_bytes;
            }
            Operation::Extend { to_bytes } => self.file_len_bytes = to_bytes,
            Operation::Truncate { len_bytes } => {
                self.file_len_bytes = len_bytes;
                self.file_len_durable_bytes = self.file_len_durable_bytes.min(len_bytes);
            }
            Operation::Write { .. } | Operation::ZeroRange { .. } => {}
        }
        match step {
            Step::Reserve(growth) => {
                self.ahead_refused &= growth != Growth::Ahead;
                self.script.push_front(step);
            }
            Step::WriteGroup => self.publish(),
            Step::ApplyPages => self.script.push_front(step),
            _ => {}
        }
    }

    /// The extension beside the steps has ended.
    pub(super) fn finish_ahead(&mut self, operation: Operation, result: Result<(), IoFailure>) {
        let Operation::Extend { to_bytes } = operation else {
            unreachable!("only extensions run ahead");
        };
        match result {
            Ok(()) => self.file_len_bytes = to_bytes,
            Err(IoFailure::OutOfSpace) => self.ahead_refused = true,
            Err(_) if self.phase == Phase::Poisoned => {}
            Err(_) => {
                // The step in flight ends in a poisoned engine; its completion is taken and ignored.
                self.poison();
            }
        }
    }

    /// The file cannot grow to where its objects end: nothing was promised yet, and the session may be tried again.
    fn give_up_opening(&mut self) {
        self.script.clear();
        self.phase = Phase::Unmodified;
        self.push_event(Event::WriteSession(Err(EngineError::OutOfSpace)));
        self.collecting.fail_all(EngineError::OutOfSpace, &mut self.events);
    }

    fn fresh_guid(&mut self) -> Guid {
        let guid = (self.guids)();
        assert!(guid != Guid::ZERO && guid != self.log.log_guid, "GUIDs are random");
        guid
    }

    fn renew_write_guids(&mut self) -> Option<Operation> {
        if !self.file_write_guid_new {
            self.header.header.file_write_guid = self.fresh_guid();
            self.file_write_guid_new = true;
        }
        if !self.data_write_guid_new {
            self.header.header.data_write_guid = self.fresh_guid();
            self.data_write_guid_new = true;
        }
        None
    }

    fn write_header(&mut self) -> Option<Operation> {
        let (offset_bytes, page) = self.header.advance();
        self.staging[..PAGE].copy_from_slice(&page);
        Some(Operation::Write { offset_bytes, len: PAGE })
    }

    fn repair_region_table(&mut self) -> Option<Operation> {
        let repair = self.repair.take()?;
        self.staging[..REGION_TABLE_LEN].copy_from_slice(&repair.table);
        Some(Operation::Write { offset_bytes: repair.offset_bytes, len: REGION_TABLE_LEN })
    }

    /// Bytes of the file behind every object.
    fn slack(&self) -> Option<u64> {
        self.file_len_bytes.checked_sub(self.next_block_bytes).filter(|len| *len != 0)
    }

    fn start_epoch(&mut self) -> Operation {
        self.log.log_guid = self.fresh_guid();
        (self.log.head, self.log.tail) = (0, 0);
        self.write_entry(0, |_, _| 0)
    }

    fn end_epoch(&mut self) -> Operation {
        assert!(self.dirty_pages.iter().all(|word| *word == 0), "every page is in place");
        self.log.tail = self.log.head;
        self.write_entry(0, |_, _| 0)
    }

    /// Seal an entry of the `pages` pages in the staging buffer, and write it at the head.
    fn write_entry(&mut self, pages: usize, offset_of: impl Fn(&Self, usize) -> u64) -> Operation {
        self.log.sequence_number += 1;
        let new = NewEntry {
            tail: self.log.tail,
            sequence_number: self.log.sequence_number,
            log_guid: self.log.log_guid,
            // Never above LastFileOffset: space that is held ahead is no part of the promise, and other readers refuse
            // an entry that says so.
            flushed_file_offset: self.file_len_durable_bytes.min(self.next_block_bytes) / MIB * MIB,
            last_file_offset: self.next_block_bytes,
        };
        let len = (1 + pages) * PAGE;
        let mut staging = std::mem::take(&mut self.staging);
        seal(&new, (0..pages).map(|at| offset_of(self, at)), &mut staging[..len]);
        self.staging = staging;
        let offset_bytes = self.log.offset_bytes + self.log.head;
        self.log.head += len as u64;
        assert!(self.log.head + RING_RESERVE <= self.log.len_bytes, "epochs end before the ring does");
        Operation::Write { offset_bytes, len }
    }

    fn page_offset(&self, page: u32) -> u64 {
        self.geometry.bat_offset_bytes + u64::from(page) * PAGE_LEN
    }
}

/// How far `reserve` came.
enum Reserved {
    Done,
    After(Operation),
    Later,
}

impl Engine {
    /// Give the committing group's blocks their places.
    fn reserve(&mut self, growth: Growth) -> Reserved {
        let block = u64::from(self.geometry.block_size_bytes);
        let need = self.committing.blocks.len() as u64 * block;
        let free = self.file_len_bytes.saturating_sub(self.next_block_bytes);
        if free < need {
            if self.ahead.is_some() {
                return Reserved::Later;
            }
            let to_bytes = match growth {
                Growth::Ahead if self.ahead_refused => self.next_block_bytes + need,
                Growth::Ahead => self.ahead_end(self.next_block_bytes + need),
                Growth::Group => self.next_block_bytes + need,
                Growth::Block => self.next_block_bytes + block,
                Growth::Nothing => 0,
            };
            if to_bytes > self.file_len_bytes {
                return Reserved::After(Operation::Extend { to_bytes });
            }
        }
        let fitting = (free / block).min(self.committing.blocks.len() as u64) as usize;
        self.committing.fail_from(fitting, EngineError::OutOfSpace, &mut self.events);
        for held in &mut self.committing.blocks {
            held.offset_bytes = self.next_block_bytes;
            self.next_block_bytes += block;
        }
        assert!(self.next_block_bytes <= self.file_len_bytes || fitting == 0);
        self.extend_ahead();
        Reserved::Done
    }

    /// How much to grow ahead of need: a share of the disk, so that large disks meet the file system as seldom as
    /// small ones.
    fn growth_step(&self) -> u64 {
        let share = (self.geometry.disk_size_bytes / 64).clamp(EXTEND_MIN, EXTEND_MAX).next_multiple_of(MIB);
        share.max(u64::from(self.geometry.block_size_bytes))
    }

    /// Where the file ends once `absent` further blocks have space: it never needs to be longer.
    fn end_with(&self, absent: u32) -> u64 {
        self.next_block_bytes + u64::from(absent) * u64::from(self.geometry.block_size_bytes)
    }

    /// The growth beyond `end`: large steps, but never more than the disk can still use.
    fn ahead_end(&self, end: u64) -> u64 {
        let usable = self.end_with(self.geometry.block_count - self.blocks_present);
        assert!(end <= usable, "a group holds absent blocks only");
        (end + self.growth_step()).min(usable)
    }

    /// Grow the file beside the group's entry when less than half a step is left.
    fn extend_ahead(&mut self) {
        let free = self.file_len_bytes.saturating_sub(self.next_block_bytes);
        if self.ahead.is_some() || self.ahead_refused || self.close_wanted || free >= self.growth_step() / 2 {
            return;
        }
        let absent = self.geometry.block_count - self.blocks_present - self.committing.blocks.len() as u32;
        let to_bytes = self.end_with(absent).min(self.file_len_bytes + self.growth_step());
        if to_bytes > self.file_len_bytes {
            self.ahead = Some(self.operation(Operation::Extend { to_bytes }));
        }
    }

    /// Write the committing group's entry; before it, turn the epoch where the ring is used up.
    fn write_group(&mut self) -> Option<Operation> {
        if self.committing.is_empty() {
            return None;
        }
        let pages = self.committing.pages.len();
        let entry_len = ((1 + pages) * PAGE) as u64;
        if self.log.head + entry_len + PAGE_LEN + RING_RESERVE > self.log.len_bytes {
            self.script.push_front(Step::WriteGroup);
            for step in TURN.into_iter().rev() {
                self.script.push_front(step);
            }
            return None;
        }
        for (page, bytes) in self.committing.pages.iter().zip(self.staging[PAGE..].as_chunks_mut::<PAGE>().0) {
            encode_page(&self.geometry, &self.view, *page, bytes);
        }
        for held in &self.committing.blocks {
            let at = self.committing.pages.binary_search(&held.page).expect("every block's page is in the group");
            let index = self.geometry.bat_index(held.block) % ENTRIES_PER_PAGE;
            let word = &mut self.staging[(1 + at) * PAGE + index as usize * 8..][..8];
            word.copy_from_slice(&BatEntry::fully_present(held.offset_bytes).0.to_le_bytes());
        }
        Some(self.write_entry(pages, |engine, at| engine.page_offset(engine.committing.pages[at])))
    }

    /// The group's entry has left the process: show its blocks, and answer those who wait.
    fn publish(&mut self) {
        self.view.count_published();
        for held in &self.committing.blocks {
            assert!(!self.view.entry(held.block).is_present(), "a block gets space once");
            self.view.store(held.block, BatEntry::fully_present(held.offset_bytes));
            self.dirty_pages[held.page as usize / 64] |= 1 << (held.page % 64);
        }
        self.blocks_present += self.committing.blocks.len() as u32;
        self.committing.finish(&mut self.events);
    }

    /// Write the next run of dirty pages in place, if there is one.
    fn apply_pages(&mut self) -> Option<Operation> {
        let word = self.dirty_pages.iter().position(|word| *word != 0)?;
        let first = word as u32 * 64 + self.dirty_pages[word].trailing_zeros();
        let mut count = 0;
        while count < STAGING_LEN / PAGE {
            let page = first + count as u32;
            match self.dirty_pages.get_mut(page as usize / 64) {
                Some(word) if *word & 1 << (page % 64) != 0 => *word &= !(1 << (page % 64)),
                _ => break,
            }
            encode_page(&self.geometry, &self.view, page, &mut self.staging[count * PAGE..][..PAGE]);
            count += 1;
        }
        Some(Operation::Write { offset_bytes: self.page_offset(first), len: count * PAGE })
    }

    /// What a dynamic disk holds ahead goes back to the file system; a fixed disk keeps its space
    /// (LeaveBlocksAllocated).
    fn give_back(&mut self) -> Option<Operation> {
        if self.geometry.fixed {
            return None;
        }
        self.slack().map(|_| Operation::Truncate { len_bytes: self.next_block_bytes })
    }
}
