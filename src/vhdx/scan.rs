//! Walking the block allocation table of a file that is checked or edited offline. Absent entries cost next to nothing:
//! a table of 64 TiB in 2 MiB blocks has 33 million.

use std::ops::Range;

use super::format::{BatEntry, MIB};
use super::geometry::{Geometry, Slot};
use super::storage::{Storage, StorageError};

/// Bytes of the table read at once.
const READ_LEN: u64 = 256 * 1024;

/// An entry met on the walk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Met {
    /// Index in the table.
    pub index: u64,
    /// Where the entry is in the file.
    pub offset_bytes: u64,
    pub slot: Slot,
    pub entry: BatEntry,
}

/// A walk over entries of the table: all that are not zero, and in a disk with a parent every chunk's bitmap entry.
pub(super) struct Scan {
    geometry: Geometry,
    next: u64,
    end: u64,
    buffer: Vec<u8>,
    /// Index of the first entry in the buffer.
    buffer_first: u64,
    /// Index of the next bitmap entry that is to be met whatever it holds.
    next_bitmap: u64,
}

impl Scan {
    /// Over the entries with these indices. The table is at the geometry's offset.
    pub fn new(geometry: Geometry, indices: Range<u64>) -> Self {
        let period = u64::from(geometry.chunk_ratio) + 1;
        let next_bitmap = if geometry.has_parent { (indices.start + 1).next_multiple_of(period) - 1 } else { u64::MAX };
        let (next, end) = (indices.start, indices.end);
        Self { geometry, next, end, buffer: Vec::new(), buffer_first: next, next_bitmap }
    }

    /// The next entry; `None` at the end.
    pub fn next(&mut self, storage: &mut dyn Storage) -> Result<Option<Met>, StorageError> {
        while self.next < self.end {
            let mut at = ((self.next - self.buffer_first) * 8) as usize;
            if at == self.buffer.len() {
                let len = (READ_LEN).min((self.end - self.next) * 8) as usize;
                self.buffer.resize(len, 0);
                storage.read_at(self.geometry.bat_offset_bytes + self.next * 8, &mut self.buffer)?;
                (self.buffer_first, at) = (self.next, 0);
            }
            let index = self.next;
            self.next += 1;
            let word = u64::from_le_bytes(*self.buffer[at..].first_chunk().expect("whole entries"));
            let is_bitmap = index == self.next_bitmap;
            if is_bitmap {
                self.next_bitmap += u64::from(self.geometry.chunk_ratio) + 1;
            }
            if word != 0 || is_bitmap {
                let offset_bytes = self.geometry.bat_offset_bytes + index * 8;
                let (slot, entry) = (self.geometry.slot_at(index), BatEntry(word));
                return Ok(Some(Met { index, offset_bytes, slot, entry }));
            }
        }
        Ok(None)
    }
}

/// Which MiB of a file are taken: one bit each.
pub(super) struct SpaceMap {
    bits: Vec<u64>,
    len_mib: u64,
}

impl SpaceMap {
    /// Of a file of this size, at most 256 TiB: 32 MiB of memory, touched where something is taken.
    pub fn new(file_len_bytes: u64) -> Self {
        let len_mib = file_len_bytes.div_ceil(MIB);
        Self { bits: vec![0; len_mib.div_ceil(64) as usize], len_mib }
    }

    fn range(&self, bytes: &Range<u64>) -> Range<u64> {
        (bytes.start / MIB).min(self.len_mib)..bytes.end.div_ceil(MIB).min(self.len_mib)
    }

    /// Take what of the range lies in the file; whether some of it was taken already.
    pub fn take(&mut self, bytes: Range<u64>) -> bool {
        let mut taken = false;
        for mib in self.range(&bytes) {
            let (word, bit) = ((mib / 64) as usize, 1 << (mib % 64));
            taken |= self.bits[word] & bit != 0;
            self.bits[word] |= bit;
        }
        taken
    }

    /// Whether some of the range is taken.
    pub fn is_taken(&self, bytes: Range<u64>) -> bool {
        self.range(&bytes).any(|mib| self.bits[(mib / 64) as usize] & 1 << (mib % 64) != 0)
    }

    /// Take everything that `other`, of the same file, has.
    pub fn join(&mut self, other: &Self) {
        for (bits, more) in self.bits.iter_mut().zip(&other.bits) {
            *bits |= more;
        }
    }

    /// The ranges that are not taken, in bytes, in order, from the start to the end of the file.
    pub fn free(&self) -> impl Iterator<Item = Range<u64>> {
        self.runs(false)
    }

    /// The ranges that are taken, in bytes, in order.
    pub fn taken(&self) -> impl Iterator<Item = Range<u64>> {
        self.runs(true)
    }

    fn runs(&self, taken: bool) -> impl Iterator<Item = Range<u64>> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = self.first_from(at, taken);
            at = self.first_from(start, !taken);
            (start < at).then_some(start * MIB..at * MIB)
        })
    }

    /// The first MiB from `mib` on that is taken, or that is not; the end of the file if there is none.
    fn first_from(&self, mut mib: u64, taken: bool) -> u64 {
        while mib < self.len_mib {
            let word = self.bits[(mib / 64) as usize] ^ if taken { 0 } else { u64::MAX };
            let rest = word >> (mib % 64);
            if rest != 0 {
                return (mib + u64::from(rest.trailing_zeros())).min(self.len_mib);
            }
            mib = (mib / 64 + 1) * 64;
        }
        self.len_mib
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_is_mapped_by_mib() {
        let mut map = SpaceMap::new(200 * MIB);
        assert!(!map.take(0..3 * MIB) && !map.take(70 * MIB..72 * MIB) && !map.take(199 * MIB..300 * MIB));
        assert!(map.take(2 * MIB..4 * MIB) && map.is_taken(71 * MIB..80 * MIB) && !map.is_taken(4 * MIB..70 * MIB));
        assert!(!map.is_taken(200 * MIB..900 * MIB));
        let free: Vec<_> = map.free().collect();
        assert_eq!(free, [4 * MIB..70 * MIB, 72 * MIB..199 * MIB]);
        let taken: Vec<_> = map.taken().collect();
        assert_eq!(taken, [0..4 * MIB, 70 * MIB..72 * MIB, 199 * MIB..200 * MIB]);
        let all_free = SpaceMap::new(130 * MIB);
        assert_eq!((all_free.free().count(), all_free.free().next()), (1, Some(0..130 * MIB)));
    }
}
