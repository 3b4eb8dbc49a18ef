//! Blocks that all initiators change at once, with COMPARE AND WRITE, ORWRITE and WRITE ATOMIC: no change of one may be
//! lost to another's, and nobody may see half of one.
//!
//! One area holds a tally, to whose own place each initiator adds one at a time; the next area holds a note, which the
//! first initiator writes as it likes, and which all others compare and write back with the tally; the third area holds
//! bits, which are only ever set; the last and longest one is written atomically, by everybody. All hold their content
//! over and over, so that a torn one shows.
//!
//! **May know:** the sibling modules.

use super::command::Work;
use super::contents::UNIT_BYTES;
use crate::sim::Random;

/// Initiators that can share.
pub const SHARERS_MAX: usize = 8;

/// How often each initiator has added to the tally.
pub type Tally = [u32; SHARERS_MAX];

/// Sectors of one area: one block of 4096 bytes, or eight of 512.
pub(super) const AREA_SECTORS: u64 = 8;

/// Sectors of the area that is written atomically: several pages.
pub(super) const CHOIR_SECTORS: u64 = 8 * AREA_SECTORS;

/// Sectors of all areas.
pub const SHARED_SECTORS: u64 = 3 * AREA_SECTORS + CHOIR_SECTORS;

const AREA_BYTES: usize = AREA_SECTORS as usize * UNIT_BYTES;

/// One initiator's part in it.
#[derive(Debug)]
pub(super) struct Shared {
    first: u64,
    me: usize,
    /// As last read, or written by ourselves.
    tally: Tally,
    note: u32,
    /// The note that was written last, and one that perhaps was.
    noted: u32,
    perhaps_noted: Option<u32>,
    /// That is what it was, and every change of ours has been seen to have happened or not.
    is_known: bool,
    /// Additions of ours that were answered GOOD; of others it is not known whether they have happened.
    added: u32,
    perhaps_added: u32,
    /// Bits of ours that were answered GOOD.
    set: u64,
}

impl Shared {
    pub fn new(first: u64, me: usize) -> Shared {
        let (tally, note, noted, perhaps_noted) = (Tally::default(), 0, 0, None);
        let (is_known, added, perhaps_added, set) = (false, 0, 0, 0);
        Shared { first, me, tally, note, noted, perhaps_noted, is_known, added, perhaps_added, set }
    }

    /// Nothing is left to be looked at.
    pub fn is_known(&self) -> bool {
        self.is_known
    }

    pub fn look(&self) -> Work {
        Work::Look { unit: self.first }
    }

    pub fn draw_work(&self, random: &mut Random) -> Work {
        match random.below(10) {
            _ if !self.is_known => self.look(),
            8.. => Work::Sing { unit: self.first + 3 * AREA_SECTORS, value: random.below(1 << 30) as u32 },
            0 => self.look(),
            1 => Work::SetBits { unit: self.first + 2 * AREA_SECTORS, bits: 1 << random.below(64) },
            2..=6 if self.me == 0 => Work::Note { unit: self.first + AREA_SECTORS, note: self.noted + 1 },
            _ => Work::CountUp { unit: self.first, me: self.me, from: self.tally, note: self.note },
        }
    }

    /// A command has ended with GOOD.
    pub fn on_good(&mut self, work: Work, data_in: &[u8]) -> Result<(), String> {
        match work {
            Work::CountUp { from, .. } => {
                self.added += 1;
                self.tally = from;
                self.tally[self.me] += 1;
            }
            Work::SetBits { bits, .. } => self.set |= bits,
            Work::Note { note, .. } => (self.note, self.noted, self.perhaps_noted) = (note, note, None),
            Work::Look { .. } => self.on_look(data_in)?,
            _ => {}
        }
        Ok(())
    }

    fn on_look(&mut self, data_in: &[u8]) -> Result<(), String> {
        if data_in.len() != SHARED_SECTORS as usize * UNIT_BYTES {
            return Err("not what was asked for".to_owned());
        }
        let (tally, rest) = data_in.split_at(AREA_BYTES);
        let (note, rest) = rest.split_at(AREA_BYTES);
        let (bits, choir) = rest.split_at(AREA_BYTES);
        if choir.chunks(4).any(|copy| copy != &choir[..4]) {
            return Err("an atomic write that is torn".to_owned());
        }
        let first: [u8; 4 * SHARERS_MAX] = std::array::from_fn(|i| tally[i]);
        if tally.chunks(first.len()).any(|copy| copy != first) {
            return Err("a tally that is torn".to_owned());
        }
        let set = u64::from_be_bytes(std::array::from_fn(|i| bits[i]));
        if bits.chunks(8).any(|copy| copy != set.to_be_bytes()) {
            return Err("bits that are torn".to_owned());
        }
        if set & self.set != self.set {
            return Err(format!("bits {set:#x}, but {:#x} were set", self.set));
        }
        self.note = u32::from_be_bytes(std::array::from_fn(|i| note[i]));
        if note.chunks(4).any(|copy| copy != self.note.to_be_bytes()) {
            return Err("a note that is torn".to_owned());
        }
        let is_mine = self.note == self.noted || Some(self.note) == self.perhaps_noted;
        if self.me == 0 && !is_mine {
            return Err(format!("note {}, but {} was written", self.note, self.noted));
        }
        (self.noted, self.perhaps_noted) = (self.note, None);
        self.tally = std::array::from_fn(|i| u32::from_be_bytes(std::array::from_fn(|at| first[4 * i + at])));
        let (mine, most) = (self.tally[self.me], self.added + self.perhaps_added);
        if mine < self.added || mine > most {
            return Err(format!("a tally of {mine}, but {} to {most} were added", self.added));
        }
        (self.added, self.perhaps_added) = (mine, 0);
        self.is_known = true;
        Ok(())
    }

    /// The comparison has failed: somebody else was faster.
    pub fn on_miscompare(&mut self) {
        self.is_known = false;
    }

    /// A command has ended otherwise, or not at all.
    pub fn on_doubt(&mut self, work: Work) {
        match work {
            Work::CountUp { .. } => self.perhaps_added += 1,
            Work::Note { note, .. } => self.perhaps_noted = Some(note),
            _ => return,
        }
        self.is_known = false;
    }
}

/// What adding one compares with, and what it writes.
pub(super) fn tally_data(me: usize, from: Tally, note: u32) -> Vec<u8> {
    let mut to = from;
    to[me] += 1;
    let area = |tally: Tally| tally.map(u32::to_be_bytes).concat().repeat(AREA_BYTES / (4 * SHARERS_MAX));
    [area(from), note_data(note), area(to), note_data(note)].concat()
}

pub(super) fn note_data(note: u32) -> Vec<u8> {
    note.to_be_bytes().repeat(AREA_BYTES / 4)
}

pub(super) fn bits_data(bits: u64) -> Vec<u8> {
    bits.to_be_bytes().repeat(AREA_BYTES / 8)
}

pub(super) fn choir_data(value: u32) -> Vec<u8> {
    value.to_be_bytes().repeat(CHOIR_SECTORS as usize * UNIT_BYTES / 4)
}
