//! Small sets of indices.

/// A set of numbers below a fixed bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitSet {
    words: Box<[u64]>,
    bound: usize,
    len: usize,
}

impl BitSet {
    /// The empty set of numbers below `bound`.
    pub fn new(bound: usize) -> BitSet {
        BitSet { words: vec![0; bound.div_ceil(64)].into_boxed_slice(), bound, len: 0 }
    }

    /// Add a number below the bound; true when it was not there.
    #[inline]
    pub fn insert(&mut self, number: usize) -> bool {
        assert!(number < self.bound, "{number} in a set bounded by {}", self.bound);
        let (word, bit) = (&mut self.words[number / 64], 1 << (number % 64));
        let new = *word & bit == 0;
        *word |= bit;
        self.len += usize::from(new);
        new
    }

    /// Take a number out; true when it was there.
    #[inline]
    pub fn remove(&mut self, number: usize) -> bool {
        let there = self.contains(number);
        if there {
            self.words[number / 64] &= !(1 << (number % 64));
            self.len -= 1;
        }
        there
    }

    /// Whether a number is there. No number beyond the bound is.
    #[inline]
    pub fn contains(&self, number: usize) -> bool {
        self.words.get(number / 64).is_some_and(|word| word & 1 << (number % 64) != 0)
    }

    /// The smallest number there.
    pub fn first(&self) -> Option<usize> {
        let (index, word) = self.words.iter().enumerate().find(|(_, word)| **word != 0)?;
        Some(index * 64 + word.trailing_zeros() as usize)
    }

    /// All numbers there, ascending.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        self.words.iter().enumerate().flat_map(|(index, word)| {
            std::iter::successors(Some(*word), |left| Some(left & left.wrapping_sub(1)))
                .take_while(|left| *left != 0)
                .map(move |left| index * 64 + left.trailing_zeros() as usize)
        })
    }

    /// How many numbers are there.
    pub fn len(&self) -> usize {
        self.len
    }

    /// No number is there.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Take every number out.
    pub fn clear(&mut self) {
        self.words.fill(0);
        self.len = 0;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_in_order_and_once() {
        let mut set = BitSet::new(200);
        for number in [199, 0, 63, 64, 127, 64] {
            set.insert(number);
        }
        assert!(set.iter().eq([0, 63, 64, 127, 199]));
        assert_eq!((set.len(), set.first(), set.insert(63)), (5, Some(0), false));
        assert!(set.remove(0) && !set.remove(0) && !set.remove(1000));
        assert_eq!((set.first(), set.contains(63), set.contains(5000)), (Some(63), true, false));
        set.clear();
        assert!(set.is_empty() && set.iter().next().is_none());
    }
}
