//! Seeded randomness: the only source of chance in a simulated world.
//!
//! The generator is xoshiro256**, seeded through SplitMix64 (both by Blackman and Vigna): the same seed gives the same
//! numbers on every machine and in every build, so that a seed and a commit are a whole bug report.
//!
//! **May know:** nothing.

use std::ops::Range;

/// A probability in millionths: whole numbers, so that every machine rolls alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Chance(u32);

/// Certainty, in the unit of [`Chance`].
const CERTAIN: u32 = 1_000_000;

impl Chance {
    /// It does not happen.
    pub const NEVER: Chance = Chance(0);
    /// It happens every time.
    pub const ALWAYS: Chance = Chance(CERTAIN);

    /// A probability of `millionths` in 1,000,000; more than certain is certain.
    pub const fn per_million(millionths: u32) -> Chance {
        Chance(if millionths > CERTAIN { CERTAIN } else { millionths })
    }

    /// A probability in percent, 0 to 100.
    pub const fn percent(percent: u32) -> Chance {
        Chance::per_million(percent.saturating_mul(CERTAIN / 100))
    }
}

/// A seeded stream of numbers.
#[derive(Clone, Debug)]
pub struct Random {
    state: [u64; 4],
}

impl Random {
    /// The stream of `seed`. Any seed is good, zero included.
    pub fn new(seed: u64) -> Random {
        let mut mixer = seed;
        Random { state: std::array::from_fn(|_| split_mix(&mut mixer)) }
    }

    /// A new stream that does not disturb the rest of this one: for a part that must stay the same when others draw
    /// more or fewer numbers.
    pub fn fork(&mut self) -> Random {
        Random::new(self.word())
    }

    /// The next 64 random bits.
    pub fn word(&mut self) -> u64 {
        let result = self.state[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let shifted = self.state[1] << 17;
        self.state[2] ^= self.state[0];
        self.state[3] ^= self.state[1];
        self.state[1] ^= self.state[2];
        self.state[0] ^= self.state[3];
        self.state[2] ^= shifted;
        self.state[3] = self.state[3].rotate_left(45);
        result
    }

    /// A number below `bound`, which is not zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "no number is below zero");
        // The multiply-shift reduction; its bias is under 2^-32 for the small bounds of a simulation.
        ((u128::from(self.word()) * u128::from(bound)) >> 64) as u64
    }

    /// An index below `bound`, which is not zero.
    pub fn index(&mut self, bound: usize) -> usize {
        self.below(bound as u64) as usize
    }

    /// A number of the range, which is not empty.
    pub fn within(&mut self, range: Range<u64>) -> u64 {
        assert!(range.start < range.end, "an empty range has no numbers");
        range.start + self.below(range.end - range.start)
    }

    /// Whether something of this probability happens now. Draws nothing for `NEVER` and `ALWAYS`.
    pub fn happens(&mut self, chance: Chance) -> bool {
        match chance {
            Chance::NEVER => false,
            Chance::ALWAYS => true,
            Chance(millionths) => self.below(u64::from(CERTAIN)) < u64::from(millionths),
        }
    }

    /// Fill `bytes` with random ones.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.word().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }

    /// Put `items` in a random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for end in (1..items.len()).rev() {
            let other = self.index(end + 1);
            items.swap(end, other);
        }
    }
}

fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generators_give_their_published_numbers() {
        // SplitMix64 from seed 1234567, as its authors' reference program prints it.
        let mut mixer = 1_234_567;
        let first: Vec<u64> = (0..3).map(|_| split_mix(&mut mixer)).collect();
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
        // xoshiro256** from the state 1, 2, 3, 4.
        let mut random = Random { state: [1, 2, 3, 4] };
        let first: Vec<u64> = (0..4).map(|_| random.word()).collect();
        assert_eq!(first, [11_520, 0, 1_509_978_240, 1_215_971_899_390_074_240]);
    }

    #[test]
    fn bounds_and_chances_hold() {
        let mut random = Random::new(7);
        let mut seen = [0u32; 10];
        for _ in 0..10_000 {
            seen[random.index(10)] += 1;
            assert!((5..8).contains(&random.within(5..8)));
        }
        assert!(seen.iter().all(|&n| (800..1200).contains(&n)), "{seen:?}");
        let hits = (0..10_000).filter(|_| random.happens(Chance::percent(25))).count();
        assert!((2300..2700).contains(&hits), "{hits}");
        assert!(!random.happens(Chance::NEVER));
        assert!(random.happens(Chance::percent(100)));
    }
}
