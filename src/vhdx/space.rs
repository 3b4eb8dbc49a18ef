//! Which of the file's MiB are taken: one bit each, in two maps.
//!
//! A unit is *taken* (an object of the file, or reserved for one), *condemned* (nothing refers to it any more, but it
//! may hold old bytes or be written by somebody who planned earlier), or *free*: it reads as zeros, durably, and so
//! does what lies behind every object. The engine hands out free space only, the lowest first.

use std::ops::Range;

use super::format::MIB;
use super::header::FILE_LEN_MAX;

/// Files are used up to here, four times the largest disk. It bounds the memory of a space map to 64 MiB.
pub(super) const FILE_SPACE_MAX: u64 = FILE_LEN_MAX;

/// A range of the file in bytes, both ends multiples of 1 MiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Run {
    pub offset_bytes: u64,
    pub len_bytes: u64,
}

impl Run {
    pub fn end(&self) -> u64 {
        self.offset_bytes + self.len_bytes
    }
}

/// A bit for each MiB; bits behind the end of the vector are clear.
#[derive(Clone, Debug, Default)]
struct Bits(Vec<u64>);

/// The part of word `at` that lies in `units`.
fn mask_in(units: &Range<u64>, at: u64) -> u64 {
    let from = units.start.max(at * 64) - at * 64;
    let to = units.end.min((at + 1) * 64) - at * 64;
    if from >= to { 0 } else { u64::MAX << from & u64::MAX >> (64 - to) }
}

impl Bits {
    fn word(&self, at: u64) -> u64 {
        self.0.get(at as usize).copied().unwrap_or(0)
    }

    fn words_of(units: &Range<u64>) -> Range<u64> {
        units.start / 64..units.end.div_ceil(64)
    }

    fn any(&self, units: &Range<u64>) -> bool {
        Self::words_of(units).any(|at| self.word(at) & mask_in(units, at) != 0)
    }

    fn all(&self, units: &Range<u64>) -> bool {
        Self::words_of(units).all(|at| self.word(at) & mask_in(units, at) == mask_in(units, at))
    }

    fn set(&mut self, units: &Range<u64>) {
        let words = Self::words_of(units);
        if words.end as usize > self.0.len() {
            self.0.resize(words.end as usize, 0);
        }
        for at in words {
            self.0[at as usize] |= mask_in(units, at);
        }
    }

    fn clear(&mut self, units: &Range<u64>) {
        for at in Self::words_of(units) {
            if let Some(word) = self.0.get_mut(at as usize) {
                *word &= !mask_in(units, at);
            }
        }
    }

    /// Behind the last set bit.
    fn end(&self) -> u64 {
        let last = self.0.iter().rposition(|word| *word != 0);
        last.map_or(0, |at| at as u64 * 64 + 64 - u64::from(self.0[at].leading_zeros()))
    }

    fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }
}

/// No free run of `units` begins in front of `from`.
#[derive(Clone, Copy, Debug, Default)]
struct Hint {
    units: u64,
    from: u64,
}

/// The map of one file.
#[derive(Clone, Debug, Default)]
pub(super) struct Space {
    taken: Bits,
    condemned: Bits,
    taken_units: u64,
    condemned_units: u64,
    /// Behind the last unit that is not free.
    end_unit: u64,
    /// For single units, and for the longer runs asked for last.
    hints: [Hint; 2],
    /// Where the search for condemned space goes on.
    condemned_from: u64,
}

fn units_of(run: Run) -> Range<u64> {
    run.offset_bytes / MIB..run.end().div_ceil(MIB)
}

impl Space {
    /// Take a range for an object. `false`, and nothing is changed, when a part of it is not free.
    #[must_use]
    pub fn take(&mut self, run: Run) -> bool {
        let units = units_of(run);
        if self.taken.any(&units) || self.condemned.any(&units) {
            return false;
        }
        self.taken.set(&units);
        self.taken_units += units.end - units.start;
        self.end_unit = self.end_unit.max(units.end);
        true
    }

    /// Take what of a range is free, for whoever else may have it.
    pub fn take_rest(&mut self, run: Run) {
        for unit in units_of(run) {
            let one = Run { offset_bytes: unit * MIB, len_bytes: MIB };
            let _ = self.take(one);
        }
    }

    /// Whether any part of a range is taken.
    pub fn is_taken(&self, run: Run) -> bool {
        self.taken.any(&units_of(run))
    }

    /// Nothing refers to this taken range any more. `false` when a part of it was not taken: then the caller's idea of
    /// the file is wrong, and nothing is changed.
    #[must_use]
    pub fn condemn(&mut self, run: Run) -> bool {
        let units = units_of(run);
        if !self.taken.all(&units) {
            return false;
        }
        self.taken.clear(&units);
        self.condemned.set(&units);
        self.taken_units -= units.end - units.start;
        self.condemned_units += units.end - units.start;
        true
    }

    /// A taken range that was never used, or a condemned one that reads as zeros durably now, is free.
    pub fn free(&mut self, run: Run) {
        let units = units_of(run);
        let count = units.end - units.start;
        if self.condemned.any(&units) {
            debug_assert!(self.condemned.all(&units));
            self.condemned_units -= count;
        } else {
            debug_assert!(self.taken.all(&units));
            self.taken_units -= count;
        }
        self.taken.clear(&units);
        self.condemned.clear(&units);
        for hint in &mut self.hints {
            hint.from = hint.from.min((units.start + 1).saturating_sub(hint.units));
        }
        if units.end == self.end_unit {
            self.end_unit = self.taken.end().max(self.condemned.end());
        }
    }

    /// Every hole between objects is condemned: what lies there is not known.
    pub fn condemn_holes(&mut self) {
        let inside = 1..self.end_unit;
        self.condemned.0.resize(self.end_unit.div_ceil(64) as usize, 0);
        for (at, word) in (0..).zip(&mut self.condemned.0) {
            *word = mask_in(&inside, at) & !self.taken.word(at);
        }
        self.condemned_units = self.condemned.count();
    }

    /// The lowest free range of this length that lies below `limit_bytes`. It is not taken by this.
    pub fn find(&mut self, len_bytes: u64, limit_bytes: u64) -> Option<Run> {
        let (units, limit) = (len_bytes / MIB, limit_bytes.min(FILE_SPACE_MAX) / MIB);
        let hint = self.hints[usize::from(units != 1)];
        let from = if hint.units == units { hint.from.max(1) } else { 1 };
        let found = self.next_free(from, limit, units);
        let none_before = found.unwrap_or_else(|| (limit + 1).saturating_sub(units));
        self.hints[usize::from(units != 1)] = Hint { units, from: none_before.max(from) };
        found.map(|unit| Run { offset_bytes: unit * MIB, len_bytes })
    }

    /// Where the lowest run of `units` free units from `from` on begins that ends at `limit` or before.
    fn next_free(&self, from: u64, limit: u64, units: u64) -> Option<u64> {
        let (mut start, mut at) = (from, from);
        // What lies between `start` and `at` is free.
        while start + units <= limit {
            if at - start >= units {
                return Some(start);
            }
            let busy = (self.taken.word(at / 64) | self.condemned.word(at / 64)) >> (at % 64);
            if busy & 1 == 1 {
                at += u64::from((!busy).trailing_zeros()).min(64 - at % 64);
                start = at;
            } else {
                at += u64::from(busy.trailing_zeros()).min(64 - at % 64);
            }
        }
        None
    }

    /// The next condemned range, going round the file, at most `len_max` bytes of it.
    pub fn next_condemned(&mut self, len_max: u64) -> Option<Run> {
        let found = self.condemned_at(self.condemned_from).or_else(|| self.condemned_at(0))?;
        let mut end = found + 1;
        while end - found < len_max / MIB && self.condemned.any(&(end..end + 1)) {
            end += 1;
        }
        self.condemned_from = end;
        Some(Run { offset_bytes: found * MIB, len_bytes: (end - found) * MIB })
    }

    /// Begin the next search for condemned ranges at the lowest.
    pub fn rewind_condemned(&mut self) {
        self.condemned_from = 0;
    }

    fn condemned_at(&self, from: u64) -> Option<u64> {
        if self.condemned_units == 0 {
            return None;
        }
        let mut at = from;
        while at / 64 < self.condemned.0.len() as u64 {
            let word = self.condemned.word(at / 64) >> (at % 64);
            if word != 0 {
                return Some(at + u64::from(word.trailing_zeros()));
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }

    /// Behind everything that is not free.
    pub fn end_bytes(&self) -> u64 {
        self.end_unit * MIB
    }

    pub fn taken_bytes(&self) -> u64 {
        self.taken_units * MIB
    }

    pub fn condemned_bytes(&self) -> u64 {
        self.condemned_units * MIB
    }

    /// Have room for a file of this size, so that the maps do not grow later.
    pub fn reserve(&mut self, file_len_bytes: u64) {
        let words = (file_len_bytes.min(FILE_SPACE_MAX) / MIB).div_ceil(64) as usize;
        for bits in [&mut self.taken.0, &mut self.condemned.0] {
            bits.reserve_exact(words.saturating_sub(bits.len()));
        }
    }

    /// Join another map into this one.
    pub fn take_all_of(&mut self, other: &Self) {
        let words = self.taken.0.len().max(other.taken.0.len());
        self.taken.0.resize(words, 0);
        for (word, more) in self.taken.0.iter_mut().zip(&other.taken.0) {
            *word |= more;
        }
        self.taken_units = self.taken.count();
        self.end_unit = self.end_unit.max(other.end_unit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(unit: u64, units: u64) -> Run {
        Run { offset_bytes: unit * MIB, len_bytes: units * MIB }
    }

    #[test]
    fn the_lowest_free_space_comes_first() {
        let mut space = Space::default();
        assert!(space.take(run(0, 1)) && space.take(run(3, 2)) && space.take(run(63, 3)));
        assert!(!space.take(run(65, 1)) && !space.take(run(2, 2)), "what is taken is not taken again");
        let limit = 1000 * MIB;
        assert_eq!(space.find(MIB, limit), Some(run(1, 1)));
        assert_eq!(space.find(2 * MIB, limit), Some(run(1, 2)));
        assert_eq!(space.find(3 * MIB, limit), Some(run(5, 3)));
        assert_eq!(space.find(58 * MIB, limit), Some(run(5, 58)));
        assert_eq!(space.find(59 * MIB, limit), Some(run(66, 59)));
        assert_eq!(space.find(59 * MIB, 124 * MIB), None, "it would pass the limit");
        assert_eq!(space.find(MIB, limit), Some(run(1, 1)));
        assert!(space.take(run(1, 2)));
        assert_eq!(space.find(MIB, limit), Some(run(5, 1)));
        space.free(run(2, 1));
        assert_eq!(space.find(MIB, limit), Some(run(2, 1)));
    }

    #[test]
    fn condemned_space_is_neither_taken_nor_free() {
        let mut space = Space::default();
        assert!(space.take(run(0, 1)) && space.take(run(5, 60)) && space.take(run(100, 1)));
        space.condemn_holes();
        assert_eq!((space.taken_bytes(), space.condemned_bytes()), (62 * MIB, (4 + 35) * MIB));
        assert_eq!(space.find(MIB, 200 * MIB), Some(run(101, 1)));
        assert_eq!(space.next_condemned(1 << 40), Some(run(1, 4)));
        assert_eq!(space.next_condemned(10 * MIB), Some(run(65, 10)));
        assert_eq!(space.next_condemned(1 << 40), Some(run(75, 25)));
        assert_eq!(space.next_condemned(1 << 40), Some(run(1, 4)), "round it goes");
        space.free(run(65, 35));
        assert_eq!(space.find(35 * MIB, 200 * MIB), Some(run(65, 35)));
        assert!(!space.condemn(run(4, 2)), "a part of it is not taken");
        assert!(space.condemn(run(100, 1)));
        assert_eq!(space.end_bytes(), 101 * MIB);
        space.free(run(100, 1));
        assert_eq!(space.end_bytes(), 65 * MIB);
    }

    /// Against a plain list of bools, by chance.
    #[test]
    fn it_agrees_with_a_naive_map() {
        let mut seed = 7u64;
        let mut next = |bound: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % bound
        };
        let (mut space, mut naive) = (Space::default(), vec![false; 400]);
        naive[0] = true;
        assert!(space.take(run(0, 1)));
        for _ in 0..20_000 {
            let (at, len) = (1 + next(380), 1 + next(9));
            let range = at as usize..(at + len).min(400) as usize;
            let wanted = run(at, range.len() as u64);
            match next(3) {
                0 => {
                    let free = naive[range.clone()].iter().all(|taken| !taken);
                    assert_eq!(space.take(wanted), free);
                    if free {
                        naive[range].fill(true);
                    }
                }
                1 if naive[range.clone()].iter().all(|taken| *taken) => {
                    space.free(wanted);
                    naive[range].fill(false);
                }
                _ => {
                    let limit = 300 + next(100);
                    let expected = (1..=limit - len)
                        .find(|at| naive[*at as usize..(at + len) as usize].iter().all(|taken| !taken));
                    assert_eq!(space.find(len * MIB, limit * MIB), expected.map(|at| run(at, len)));
                }
            }
            let end = naive.iter().rposition(|taken| *taken).map_or(0, |at| at as u64 + 1);
            assert_eq!(space.end_bytes(), end * MIB);
            assert_eq!(space.taken_bytes() / MIB, naive.iter().filter(|taken| **taken).count() as u64);
        }
    }
}
