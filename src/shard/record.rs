//! What a disk is asked for, noted while somebody records it.
//!
//! The control plane makes the room for notes, puts it into a disk's slot on every shard, and exchanges it for empty
//! room while it lasts; a shard only appends. Who stops exchanging is forgotten after [`PATIENCE_NS`].

use super::core::{Core, DiskSlot};
use crate::ring::{Nanos, Ring};
use crate::scsi::Action;
use crate::units::DiskId;

/// How long notes are taken for a recorder that is not heard from, in nanoseconds.
const PATIENCE_NS: u64 = 5_000_000_000;

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// READ.
    Read,
    /// WRITE.
    Write,
    /// SYNCHRONIZE CACHE.
    Flush,
    /// A range of UNMAP's list.
    Unmap,
    /// Anything else that names blocks.
    Other,
}

/// One command, or one range of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    /// The start of the turn in which it began.
    pub at: Nanos,
    /// First block.
    pub lba: u64,
    /// Blocks.
    pub blocks: u32,
    /// What.
    pub asked: Asked,
    /// Force unit access.
    pub fua: bool,
}

/// Room for notes.
#[derive(Clone, Debug)]
pub struct Notes {
    /// Tells recorders apart.
    pub recorder: u128,
    /// In the order in which commands began.
    pub taken: Vec<Note>,
    /// Commands for which there was no room.
    pub missed: u64,
    /// When the shard got it.
    pub since: Nanos,
}

impl Notes {
    /// Room for so many.
    pub fn with_room(recorder: u128, notes: usize) -> Notes {
        Notes { recorder, taken: Vec::with_capacity(notes), missed: 0, since: Nanos(0) }
    }

    fn take(&mut self, note: Note) {
        // The data path does not allocate: what does not fit is counted.
        if self.taken.len() < self.taken.capacity() {
            self.taken.push(note);
        } else {
            self.missed += 1;
        }
    }

    fn is_forgotten(&self, now: Nanos) -> bool {
        now.0.saturating_sub(self.since.0) > PATIENCE_NS
    }
}

/// Why nothing can be recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Somebody records already.
    #[error("it is being recorded already")]
    Busy,
    /// The shard does not know the disk.
    #[error("it is not served any more")]
    NotAttached,
}

/// What a shard gives for new room: the notes that it had.
pub type Exchanged = Result<Option<Box<Notes>>, RecordError>;

impl<R: Ring> Core<R> {
    /// See [`ToShard::Record`](super::ToShard::Record).
    pub(crate) fn exchange_notes(&mut self, disk: DiskId, recorder: u128, room: Option<Box<Notes>>) -> Exchanged {
        let slot = self.disks.find(disk).and_then(|slot| self.disks.at_mut(slot));
        slot.ok_or(RecordError::NotAttached)?.exchange(recorder, room, self.now)
    }
}

impl DiskSlot {
    /// Put this room in place of the present one, whose notes come back; without any, recording ends.
    pub(crate) fn exchange(&mut self, recorder: u128, room: Option<Box<Notes>>, now: Nanos) -> Exchanged {
        if self.notes.as_ref().is_some_and(|notes| notes.recorder != recorder && !notes.is_forgotten(now)) {
            return Err(RecordError::Busy);
        }
        let former = std::mem::replace(&mut self.notes, room).filter(|notes| notes.recorder == recorder);
        if let Some(notes) = &mut self.notes {
            notes.since = now;
        }
        Ok(former)
    }

    /// Note a range, if somebody records.
    pub(crate) fn note_range(&mut self, asked: Asked, lba: u64, blocks: u32, fua: bool, now: Nanos) {
        if self.notes.as_ref().is_some_and(|notes| notes.is_forgotten(now)) {
            self.notes = None;
        }
        if let Some(notes) = &mut self.notes {
            notes.take(Note { at: now, lba, blocks, asked, fua });
        }
    }

    /// Note a command that begins. The ranges of UNMAP are noted when its list is there.
    #[cold]
    pub(crate) fn note(&mut self, action: Action, now: Nanos) {
        let (asked, lba, blocks, fua) = match action {
            Action::Read { lba, blocks, fua, .. } => (Asked::Read, lba.0, blocks, fua),
            Action::Write { lba, blocks, fua, .. } | Action::WriteAtomic { lba, blocks, fua, .. } => {
                (Asked::Write, lba.0, blocks, fua)
            }
            Action::Flush { .. } => (Asked::Flush, 0, 0, false),
            Action::Verify { lba, blocks, .. }
            | Action::WriteAndVerify { lba, blocks, .. }
            | Action::WriteSame { lba, blocks, .. }
            | Action::OrWrite { lba, blocks, .. } => (Asked::Other, lba.0, blocks, false),
            Action::CompareAndWrite { lba, blocks, .. } => (Asked::Other, lba.0, blocks.into(), false),
            _ => return,
        };
        self.note_range(asked, lba, blocks, fua, now);
    }
}
