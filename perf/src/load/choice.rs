//! What the next I/O is: how large, where, and in which direction. Seeded, so that two runs ask for the same.

use serde::Serialize;

use crate::random::Random;

/// Block sizes and their weights, as in `4K:70,64K:30`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mix(Vec<(u32, u32)>);

/// The largest I/O, in bytes.
pub const BLOCK_LEN_MAX: u32 = 16 << 20;

impl Mix {
    /// One size, in bytes.
    pub fn of(bytes: u32) -> Mix {
        Mix(vec![(bytes, 1)])
    }

    /// Read `SIZE[:WEIGHT],…`; sizes are bytes or take K or M (powers of two).
    pub fn parse(text: &str) -> Result<Mix, String> {
        let mut entries = vec![];
        for part in text.split(',') {
            let (size_text, weight) = part.split_once(':').unwrap_or((part, "1"));
            let bytes = size(size_text)?;
            let weight = weight.parse().map_err(|e| format!("'{weight}' is no weight: {e}"))?;
            let bytes = u32::try_from(bytes).ok().filter(|b| *b > 0 && *b <= BLOCK_LEN_MAX && b.is_multiple_of(512));
            let bytes = bytes.ok_or_else(|| format!("'{size_text}' is no multiple of 512 up to 16M"))?;
            entries.push((bytes, weight));
        }
        if entries.iter().map(|(_, weight)| u64::from(*weight)).sum::<u64>() == 0 {
            return Err(format!("'{text}': all weights are 0"));
        }
        Ok(Mix(entries))
    }

    /// The largest size.
    pub fn max_bytes(&self) -> u32 {
        self.0.iter().map(|(bytes, _)| *bytes).max().unwrap_or(0)
    }

    /// The unit of addresses: a divisor of every size.
    fn unit(&self) -> u32 {
        self.0.iter().fold(0, |unit, (bytes, _)| divisor(unit, *bytes)).max(1)
    }
}

fn divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { divisor(b, a % b) }
}

/// A size in bytes: digits, and K, M, G or T (powers of two).
pub fn size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        Some(b'T' | b't') => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    let number = digits.parse::<u64>().map_err(|e| format!("'{text}' is not a size: {e}"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("'{text}' is too large"))
}

/// In which order blocks are used.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Anywhere, all blocks equally often.
    Random,
    /// Ascending, and from the start again.
    Sequential,
    /// Some far more often than others: the k-th most popular with weight k to the power of minus this.
    Zipf(f64),
}

impl Order {
    /// Read `random`, `sequential`, `zipf` or `zipf:EXPONENT`.
    pub fn parse(text: &str) -> Result<Order, String> {
        match text.split_once(':').unwrap_or((text, "")) {
            ("random", "") => Ok(Order::Random),
            ("sequential", "") => Ok(Order::Sequential),
            ("zipf", "") => Ok(Order::Zipf(0.99)),
            ("zipf", exponent) => match exponent.parse::<f64>() {
                Ok(exponent) if exponent > 0.0 && exponent < 10.0 => Ok(Order::Zipf(exponent)),
                _ => Err(format!("'{exponent}' is no exponent between 0 and 10")),
            },
            _ => Err(format!("'{text}' is none of random, sequential, zipf, zipf:EXPONENT")),
        }
    }
}

/// What an I/O does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Data comes from the target.
    Read,
    /// Data goes to the target.
    Write,
    /// SYNCHRONIZE CACHE for the whole logical unit.
    Flush,
    /// UNMAP of one range.
    Unmap,
}

/// One I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Io {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
    /// What.
    pub action: Action,
    /// Force unit access.
    pub fua: bool,
    /// Which of the logical units.
    pub lun_index: u32,
}

/// Chooses one I/O after the other.
#[derive(Clone, Debug)]
pub struct Chooser {
    random: Random,
    mix: Mix,
    weights: u64,
    write_percent: u8,
    order: Order,
    unit: u64,
    units: u64,
    next: u64,
    luns: u32,
    zipf: Option<Zipf>,
}

impl Chooser {
    /// Choose within `span_bytes` of each of `luns` logical units.
    pub fn new(mix: &Mix, write_percent: u8, order: Order, span_bytes: u64, luns: u32, seed: u64) -> Chooser {
        let unit = u64::from(mix.unit());
        let units = (span_bytes / unit).max(1);
        Chooser {
            random: Random::new(seed),
            weights: mix.0.iter().map(|(_, weight)| u64::from(*weight)).sum(),
            mix: mix.clone(),
            write_percent,
            order,
            unit,
            units,
            next: 0,
            luns: luns.max(1),
            zipf: if let Order::Zipf(exponent) = order { Some(Zipf::new(units, exponent)) } else { None },
        }
    }

    /// All offsets and sizes are multiples of this, in bytes.
    pub fn unit(&self) -> u64 {
        self.unit
    }

    /// The next I/O. It lies within the span unless a single one is larger than that.
    #[inline]
    pub fn next_io(&mut self) -> Io {
        let len = self.size();
        let last = self.units.saturating_sub(u64::from(len) / self.unit);
        let at = match (&self.zipf, self.order) {
            (Some(zipf), _) => scatter(zipf.sample(&mut self.random), self.units).min(last),
            (None, Order::Sequential) => {
                let at = if self.next > last { 0 } else { self.next };
                self.next = at + u64::from(len) / self.unit;
                at
            }
            (None, _) => self.random.below(last + 1),
        };
        let write = match self.write_percent {
            0 => false,
            100 => true,
            percent => self.random.below(100) < u64::from(percent),
        };
        let lun_index = if self.luns == 1 { 0 } else { self.random.below(u64::from(self.luns)) as u32 };
        let action = if write { Action::Write } else { Action::Read };
        Io { offset: at * self.unit, len, action, fua: false, lun_index }
    }

    fn size(&mut self) -> u32 {
        if let [(bytes, _)] = self.mix.0[..] {
            return bytes;
        }
        let mut ticket = self.random.below(self.weights);
        for (bytes, weight) in &self.mix.0 {
            match ticket.checked_sub(u64::from(*weight)) {
                Some(rest) => ticket = rest,
                None => return *bytes,
            }
        }
        self.mix.max_bytes()
    }
}

/// Spread neighbours in popularity over the whole span; the same place for the same rank.
fn scatter(rank: u64, units: u64) -> u64 {
    Random::new(rank).below(units)
}

/// Zipf-distributed ranks 0..n by rejection-inversion (Hörmann and Derflinger, 1996): constant time and memory.
#[derive(Clone, Debug)]
struct Zipf {
    n: f64,
    exponent: f64,
    first: f64,
    last: f64,
    shortcut: f64,
}

impl Zipf {
    fn new(n: u64, exponent: f64) -> Zipf {
        let mut zipf = Zipf { n: n as f64, exponent, first: 0.0, last: 0.0, shortcut: 0.0 };
        zipf.first = zipf.integral(1.5) - 1.0;
        zipf.last = zipf.integral(n as f64 + 0.5);
        zipf.shortcut = 2.0 - zipf.inverse(zipf.integral(2.5) - zipf.weight(2.0));
        zipf
    }

    fn weight(&self, x: f64) -> f64 {
        x.powf(-self.exponent)
    }

    /// The integral of the weight from 1 to x.
    fn integral(&self, x: f64) -> f64 {
        let power = 1.0 - self.exponent;
        if power.abs() < 1e-9 { x.ln() } else { (x.powf(power) - 1.0) / power }
    }

    fn inverse(&self, y: f64) -> f64 {
        let power = 1.0 - self.exponent;
        if power.abs() < 1e-9 { y.exp() } else { (1.0 + y * power).max(0.0).powf(1.0 / power) }
    }

    fn sample(&self, random: &mut Random) -> u64 {
        loop {
            let uniform = (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
            let y = self.last + uniform * (self.first - self.last);
            let x = self.inverse(y);
            let rank = x.round().clamp(1.0, self.n);
            if rank - x <= self.shortcut || y >= self.integral(rank + 0.5) - self.weight(rank) {
                return rank as u64 - 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mix_is_read_and_kept_to() {
        assert_eq!(Mix::parse("4K"), Ok(Mix::of(4096)));
        for bad in ["", "4K:", "5", "0", "32M", "4K:0,8K:0", "4K;8K"] {
            assert!(Mix::parse(bad).is_err(), "'{bad}'");
        }
        let mix = Mix::parse("4k:70,64k:30").expect("a mix");
        let mut chooser = Chooser::new(&mix, 25, Order::Random, 1 << 30, 3, 1);
        let ios: Vec<Io> = (0..100_000).map(|_| chooser.next_io()).collect();
        let share = |what: fn(&Io) -> bool| ios.iter().filter(|io| what(io)).count() as f64 / 1e5;
        assert!((share(|io| io.len == 4096) - 0.7).abs() < 0.01);
        assert!((share(|io| io.action == Action::Write) - 0.25).abs() < 0.01);
        assert!((share(|io| io.lun_index == 2) - 1.0 / 3.0).abs() < 0.01);
        assert!((share(|io| io.offset < 1 << 29) - 0.5).abs() < 0.01);
        assert!(ios.iter().all(|io| io.offset % 4096 == 0 && io.offset + u64::from(io.len) <= 1 << 30));
    }

    #[test]
    fn sequential_covers_all_and_begins_again() {
        let mut chooser = Chooser::new(&Mix::of(4096), 0, Order::Sequential, 10 * 4096, 1, 1);
        let offsets: Vec<u64> = (0..12).map(|_| chooser.next_io().offset / 4096).collect();
        assert_eq!(offsets, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]);
    }

    /// Against the weights themselves, summed up.
    #[test]
    fn zipf_ranks_come_as_often_as_their_weights_say() {
        for exponent in [0.5, 0.99, 1.0, 1.5] {
            let (n, samples) = (1000_u64, 400_000);
            let zipf = Zipf::new(n, exponent);
            let mut random = Random::new(7);
            let mut counts = vec![0u32; n as usize];
            for _ in 0..samples {
                counts[zipf.sample(&mut random) as usize] += 1;
            }
            let total: f64 = (1..=n).map(|k| (k as f64).powf(-exponent)).sum();
            for rank in [1, 2, 3, 10, 100] {
                let expected = f64::from(samples) * (rank as f64).powf(-exponent) / total;
                let seen = f64::from(counts[rank as usize - 1]);
                assert!((seen - expected).abs() < 5.0 * expected.sqrt() + 1.0, "{exponent} {rank}: {seen} {expected}");
            }
            let beyond: u32 = counts[500..].iter().sum();
            let expected: f64 = (501..=n).map(|k| (k as f64).powf(-exponent)).sum::<f64>() / total * f64::from(samples);
            assert!((f64::from(beyond) - expected).abs() < 5.0 * expected.sqrt(), "{exponent}: {beyond} {expected}");
        }
    }
}
