//! Latency histograms that a shard writes in a few nanoseconds.
//!
//! The buckets are log-linear in the manner of HdrHistogram: 64 equal buckets in each power of two, so a value is known
//! to within 1/64 of itself (two significant digits at the bucket's middle). Times below 2 µs are resolved to 16 ns.

use std::sync::atomic::{AtomicU64, Ordering};

use hdrhistogram::Histogram;
use zerocopy::FromZeros;

/// The longest latency that is told apart, in nanoseconds (about 137 s); longer ones count as this.
pub const LATENCY_NS_MAX: u64 = (1 << 37) - 1;

/// One unit of the first, linear buckets is `1 << UNIT_SHIFT` nanoseconds.
const UNIT_SHIFT: u32 = 4;
/// 64 buckets in each power of two.
const SUB_BITS: u32 = 6;
const SUB_COUNT: usize = 1 << SUB_BITS;
const CELLS: usize = index_of(LATENCY_NS_MAX) + 1;

/// A latency histogram with one writer and any number of readers.
///
/// Its 14 KiB come zeroed from the allocator, so that a histogram nobody records into costs address space, not memory.
#[derive(Debug)]
pub struct LatencyCells {
    cells: Box<[AtomicU64]>,
    sum_ns: AtomicU64,
}

impl LatencyCells {
    /// An empty histogram. Allocates; call it when a disk is attached, not during I/O.
    pub fn new() -> LatencyCells {
        // The size is a small constant, so only an allocator without memory refuses, and Vec would abort there too.
        let cells = <[AtomicU64]>::new_box_zeroed_with_elems(CELLS).expect("14 KiB can be allocated");
        LatencyCells { cells, sum_ns: AtomicU64::new(0) }
    }

    /// Count one latency. Only the owning thread calls this.
    #[inline]
    pub fn record(&self, latency_ns: u64) {
        self.record_many(latency_ns, 1);
    }

    /// Count the same latency `count` times. Only the owning thread calls this.
    #[inline]
    pub fn record_many(&self, latency_ns: u64, count: u64) {
        let latency_ns = latency_ns.min(LATENCY_NS_MAX);
        if let Some(cell) = self.cells.get(index_of(latency_ns)) {
            cell.store(cell.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
        }
        let sum_ns = latency_ns.wrapping_mul(count);
        self.sum_ns.store(self.sum_ns.load(Ordering::Relaxed).wrapping_add(sum_ns), Ordering::Relaxed);
    }

    /// The sum of all latencies recorded, in nanoseconds.
    pub fn sum_ns(&self) -> u64 {
        self.sum_ns.load(Ordering::Relaxed)
    }

    /// Add what was recorded here to counts of coarser buckets: `counts[n]` gets the latencies of at most
    /// `bounds_ns[n]` that are in no bucket before it. Bounds ascend; what is above the last is left out.
    pub fn add_to_buckets(&self, bounds_ns: &[u64], counts: &mut [u64]) {
        let mut buckets = bounds_ns.iter().zip(counts).peekable();
        for (index, cell) in self.cells.iter().enumerate() {
            let middle_ns = middle_of(index);
            while buckets.next_if(|(bound_ns, _)| **bound_ns < middle_ns).is_some() {}
            let Some((_, count)) = buckets.peek_mut() else { return };
            **count = count.wrapping_add(cell.load(Ordering::Relaxed));
        }
    }

    /// Add what was recorded here to a histogram made by [`latency_histogram`].
    pub fn merge_into(&self, histogram: &mut Histogram<u64>) {
        for (index, cell) in self.cells.iter().enumerate() {
            let count = cell.load(Ordering::Relaxed);
            if count > 0 {
                // The middle of a bucket is always inside the histogram's bounds.
                let _ = histogram.record_n(middle_of(index), count);
            }
        }
    }
}

impl Default for LatencyCells {
    fn default() -> LatencyCells {
        LatencyCells::new()
    }
}

/// An empty histogram of nanoseconds that [`LatencyCells`] can be merged into: 1 ns to [`LATENCY_NS_MAX`], to two
/// digits.
pub fn latency_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, 2).expect("constant bounds are valid")
}

/// The bucket of a latency of at most [`LATENCY_NS_MAX`].
const fn index_of(latency_ns: u64) -> usize {
    let units = latency_ns >> UNIT_SHIFT;
    if units < 2 << SUB_BITS {
        return units as usize;
    }
    let shift = 63 - units.leading_zeros() - SUB_BITS;
    (shift as usize + 1) * SUB_COUNT + (units >> shift) as usize - SUB_COUNT
}

/// The latency in the middle of a bucket, in nanoseconds.
fn middle_of(index: usize) -> u64 {
    let (lowest, width) = if index < 2 * SUB_COUNT {
        ((index as u64) << UNIT_SHIFT, 1 << UNIT_SHIFT)
    } else {
        let shift = (index / SUB_COUNT - 1) as u32 + UNIT_SHIFT;
        (((index % SUB_COUNT + SUB_COUNT) as u64) << shift, 1u64 << shift)
    };
    lowest + width / 2
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_latency_lands_within_one_sixty_fourth_of_itself() {
        let mut latency_ns = 1u64;
        let mut previous = 0;
        while latency_ns < LATENCY_NS_MAX {
            let index = index_of(latency_ns);
            assert!(index >= previous && index < CELLS, "{latency_ns} ns in bucket {index}");
            previous = index;
            let error = middle_of(index).abs_diff(latency_ns);
            assert!(error <= (latency_ns / 128).max(8), "{latency_ns} ns is shown as {} ns", middle_of(index));
            latency_ns += (latency_ns / 300).max(1);
        }
        assert_eq!(index_of(LATENCY_NS_MAX), CELLS - 1);
    }

    #[test]
    fn percentiles_come_out_as_recorded_and_merge() {
        let (fast, slow) = (LatencyCells::new(), LatencyCells::new());
        for _ in 0..990 {
            fast.record(20_000);
        }
        for _ in 0..10 {
            slow.record(5_000_000);
        }
        slow.record(u64::MAX);
        let mut merged = latency_histogram();
        fast.merge_into(&mut merged);
        slow.merge_into(&mut merged);
        assert_eq!(merged.len(), 1001);
        let near = |value: u64, wanted: u64| assert!(value.abs_diff(wanted) * 50 < wanted, "{value}, not {wanted}");
        near(merged.value_at_quantile(0.5), 20_000);
        near(merged.value_at_quantile(0.995), 5_000_000);
        near(merged.max(), LATENCY_NS_MAX);
        assert_eq!(fast.sum_ns(), 990 * 20_000);
    }
}
