//! The session's requests in a fixed table, and the way from an Initiator Task Tag to one of them.
//!
//! May know: what a request is, not what happens to it.

use super::pdu::{Bhs, LogoutResponseCode, TaskManagementResponseCode};
use super::transfer::{DataOutState, ScsiCommand, TASKS_MAX, TaskId};

/// What a task table entry holds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Request {
    /// A SCSI command.
    Scsi(ScsiCommand),
    /// Task management, text, logout or NOP-Out: the header it came with.
    Other(Bhs),
}

/// Where a request stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The entry is free.
    Free,
    /// It came ahead of its CmdSN.
    Held,
    /// A task management request that waits for the commands before it.
    Waiting,
    /// The shard has it.
    Active,
    /// The engine owes the answer and has it queued.
    Answering(Answer),
    /// Its status was sent, and it is kept until that is acknowledged: its Data-In may be asked for again.
    Kept,
    /// The same, acknowledged meanwhile; the shard is still sending again.
    Acknowledged,
    /// Aborted, not yet released; the shard had it.
    Aborted,
    /// Aborted, not yet released; its CmdSN's turn has not come.
    AbortedHeld,
}

/// An answer that the engine gives by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Nop,
    TaskManagement(TaskManagementResponseCode),
    Logout(LogoutResponseCode),
}

/// One entry. Fields that every command touches.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    pub(super) request: Request,
    pub(super) initiator_task_tag: u32,
    /// CmdSN.
    pub(super) cmd_sn: u32,
    /// Changes whenever the entry is freed, so that a stale reference to it can be told.
    pub(super) generation: u32,
    /// DataSN or R2TSN of the next Data-In or R2T (one count for both, section 11.7.5 and 11.8.3).
    pub(super) data_sn: u32,
    /// Buffer offset of the next Data-In.
    pub(super) data_in_offset: u32,
    /// Bytes left in the Data-In sequence in hand.
    pub(super) sequence_left: u32,
    pub(super) phase: Phase,
    pub(super) immediate: bool,
}

const TAGS: usize = 256;
const _: () = assert!(TASKS_MAX < TAGS / 4 * 3, "probing stays short, and an empty entry always exists");
const EMPTY: u16 = u16::MAX;

/// The fixed table of one session.
pub(super) struct TaskTable {
    entries: Box<[Entry]>,
    /// Write state, beside the entries because reads never touch it.
    data_out: Box<[DataOutState]>,
    free: [u16; TASKS_MAX],
    free_count: usize,
    /// Open addressing, linear probing: the tag and the entry it names.
    tags: [(u32, u16); TAGS],
}

impl TaskTable {
    pub(super) fn new() -> Self {
        let entry = Entry {
            request: Request::Other(Bhs([0; super::pdu::BHS_LEN])),
            initiator_task_tag: 0,
            cmd_sn: 0,
            generation: 0,
            data_sn: 0,
            data_in_offset: 0,
            sequence_left: 0,
            phase: Phase::Free,
            immediate: false,
        };
        let mut free = [0; TASKS_MAX];
        for (index, slot) in free.iter_mut().enumerate() {
            *slot = (TASKS_MAX - 1 - index) as u16;
        }
        Self {
            entries: vec![entry; TASKS_MAX].into_boxed_slice(),
            data_out: vec![DataOutState::NONE; TASKS_MAX].into_boxed_slice(),
            free,
            free_count: TASKS_MAX,
            tags: [(0, EMPTY); TAGS],
        }
    }

    #[inline]
    pub(super) fn entry(&self, task: TaskId) -> &Entry {
        &self.entries[usize::from(task.0)]
    }

    #[inline]
    pub(super) fn entry_mut(&mut self, task: TaskId) -> &mut Entry {
        &mut self.entries[usize::from(task.0)]
    }

    #[inline]
    pub(super) fn data_out(&self, task: TaskId) -> &DataOutState {
        &self.data_out[usize::from(task.0)]
    }

    #[inline]
    pub(super) fn data_out_mut(&mut self, task: TaskId) -> &mut DataOutState {
        &mut self.data_out[usize::from(task.0)]
    }

    /// All entries that are not free.
    pub(super) fn iter(&self) -> impl Iterator<Item = (TaskId, &Entry)> {
        let taken = |(_, entry): &(usize, &Entry)| entry.phase != Phase::Free;
        self.entries.iter().enumerate().filter(taken).map(|(index, entry)| (TaskId(index as u16), entry))
    }

    /// The request with this tag. An aborted one keeps its tag until another request takes it.
    #[inline]
    pub(super) fn find(&self, initiator_task_tag: u32) -> Option<TaskId> {
        let mut at = home(initiator_task_tag);
        loop {
            let (tag, task) = self.tags[at];
            if task == EMPTY {
                return None;
            }
            if tag == initiator_task_tag {
                return Some(TaskId(task));
            }
            at = (at + 1) % TAGS;
        }
    }

    /// Take an entry for a request. The tag must be unknown or an aborted request's. `None`: all are taken.
    #[inline]
    pub(super) fn insert(
        &mut self,
        request: Request,
        initiator_task_tag: u32,
        cmd_sn: u32,
        immediate: bool,
        phase: Phase,
    ) -> Option<TaskId> {
        self.free_count = self.free_count.checked_sub(1)?;
        let task = TaskId(self.free[self.free_count]);
        let entry = &mut self.entries[usize::from(task.0)];
        debug_assert_eq!(entry.phase, Phase::Free);
        *entry = Entry {
            request,
            initiator_task_tag,
            cmd_sn,
            generation: entry.generation,
            data_sn: 0,
            data_in_offset: 0,
            sequence_left: 0,
            phase,
            immediate,
        };
        self.map(initiator_task_tag, task);
        Some(task)
    }

    /// Free an entry.
    #[inline]
    pub(super) fn remove(&mut self, task: TaskId) {
        let entry = &mut self.entries[usize::from(task.0)];
        assert_ne!(entry.phase, Phase::Free, "a task is freed once");
        entry.phase = Phase::Free;
        entry.generation = entry.generation.wrapping_add(1);
        let tag = entry.initiator_task_tag;
        self.free[self.free_count] = task.0;
        self.free_count += 1;
        self.unmap(tag, task);
    }

    #[inline]
    fn map(&mut self, tag: u32, task: TaskId) {
        let mut at = home(tag);
        while self.tags[at].1 != EMPTY && self.tags[at].0 != tag {
            at = (at + 1) % TAGS;
        }
        self.tags[at] = (tag, task.0);
    }

    /// Remove the tag if it still names `task`, closing the gap behind it so that probing never meets a hole.
    #[inline]
    fn unmap(&mut self, tag: u32, task: TaskId) {
        let mut hole = home(tag);
        loop {
            let (found, owner) = self.tags[hole];
            if owner == EMPTY || (found == tag && owner != task.0) {
                return;
            }
            if found == tag {
                break;
            }
            hole = (hole + 1) % TAGS;
        }
        let mut at = hole;
        loop {
            at = (at + 1) % TAGS;
            let (found, owner) = self.tags[at];
            if owner == EMPTY {
                break;
            }
            // An entry may move back only as far as its home.
            if (at + TAGS - home(found)) % TAGS >= (at + TAGS - hole) % TAGS {
                self.tags[hole] = self.tags[at];
                hole = at;
            }
        }
        self.tags[hole].1 = EMPTY;
    }

    #[cfg(test)]
    pub(super) fn check_invariants(&self) {
        let taken = self.iter().count();
        assert_eq!(taken + self.free_count, TASKS_MAX);
        for (at, (tag, task)) in self.tags.iter().enumerate().filter(|(_, (_, task))| *task != EMPTY) {
            let entry = self.entry(TaskId(*task));
            assert!(entry.phase != Phase::Free && entry.initiator_task_tag == *tag);
            assert_eq!(self.find(*tag), Some(TaskId(*task)), "tag at {at} must be reachable from its home");
        }
        for (task, entry) in self.iter() {
            if !matches!(entry.phase, Phase::Aborted | Phase::AbortedHeld) {
                assert_eq!(self.find(entry.initiator_task_tag), Some(task));
            }
        }
    }
}

/// Where a tag's probing starts: multiplicative hashing, since initiators count tags up or use table indexes.
#[inline]
fn home(tag: u32) -> usize {
    (tag.wrapping_mul(0x9e37_79b1) >> 24) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tags that all share one home survive any order of removal.
    #[test]
    fn colliding_tags_are_found_until_removed() {
        let colliding: Vec<u32> = (0..u32::MAX).filter(|tag| home(*tag) == 250).take(40).collect();
        let mut table = TaskTable::new();
        let insert = |table: &mut TaskTable, tag: u32| {
            table.insert(Request::Other(Bhs([0; 48])), tag, 0, true, Phase::Active).expect("there is room")
        };
        let mut alive: Vec<(u32, TaskId)> = colliding.iter().map(|tag| (*tag, insert(&mut table, *tag))).collect();
        let mut at = 0;
        while !alive.is_empty() {
            at = (at + 7) % alive.len();
            let (tag, task) = alive.swap_remove(at);
            table.remove(task);
            assert_eq!(table.find(tag), None);
            for (tag, task) in &alive {
                assert_eq!(table.find(*tag), Some(*task));
            }
            table.check_invariants();
        }
    }

    #[test]
    fn the_table_is_bounded() {
        let mut table = TaskTable::new();
        for tag in 0..TASKS_MAX as u32 {
            assert!(table.insert(Request::Other(Bhs([0; 48])), tag, 0, true, Phase::Active).is_some());
        }
        assert!(table.insert(Request::Other(Bhs([0; 48])), 9999, 0, true, Phase::Active).is_none());
        table.check_invariants();
    }
}
