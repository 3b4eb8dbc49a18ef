//! One number, written by one thread and read by any.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows (and wraps at 2^64). One thread writes, any thread reads.
///
/// Two writers would lose counts; nothing worse.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// A counter at zero.
    pub const fn new() -> Counter {
        Counter(AtomicU64::new(0))
    }

    /// Add `n`. Only the owning thread calls this.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Add one. Only the owning thread calls this.
    #[inline]
    pub fn increment(&self) {
        self.add(1);
    }

    /// The count now.
    #[inline]
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A level that goes up and down. One thread writes, any thread reads.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// A gauge at zero.
    pub const fn new() -> Gauge {
        Gauge(AtomicU64::new(0))
    }

    /// Replace the level. Only the owning thread calls this.
    #[inline]
    pub fn set(&self, level: u64) {
        self.0.store(level, Ordering::Relaxed);
    }

    /// Raise the level. Only the owning thread calls this.
    #[inline]
    pub fn add(&self, n: u64) {
        self.set(self.value().saturating_add(n));
    }

    /// Lower the level, at most to zero. Only the owning thread calls this.
    #[inline]
    pub fn subtract(&self, n: u64) {
        self.set(self.value().saturating_sub(n));
    }

    /// The level now.
    #[inline]
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_sees_what_the_one_writer_counted() {
        let counter = Counter::new();
        std::thread::scope(|scope| {
            scope.spawn(|| (0..100_000).for_each(|_| counter.increment()));
            scope.spawn(|| {
                let mut seen = 0;
                while seen < 100_000 {
                    let now = counter.value();
                    assert!(now >= seen, "a counter never goes back");
                    seen = now;
                }
            });
        });
        assert_eq!(counter.value(), 100_000);
    }

    #[test]
    fn a_gauge_stops_at_zero() {
        let gauge = Gauge::new();
        gauge.add(2);
        gauge.subtract(3);
        assert_eq!(gauge.value(), 0);
    }
}
