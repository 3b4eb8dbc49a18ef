//! Counters of one disk on one shard, and their merged view.

use hdrhistogram::Histogram;

use super::counter::Counter;
use super::latency::{LatencyCells, latency_histogram};

/// The kinds of operation that are counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// READ and the reading half of VERIFY.
    Read,
    /// WRITE, WRITE AND VERIFY.
    Write,
    /// SYNCHRONIZE CACHE.
    Flush,
    /// Every other command that reached the disk.
    Other,
}

impl Operation {
    /// All kinds, in the order in which they are shown.
    pub const ALL: [Operation; 4] = [Operation::Read, Operation::Write, Operation::Flush, Operation::Other];

    /// The name in tables and labels.
    pub const fn name(self) -> &'static str {
        match self {
            Operation::Read => "read",
            Operation::Write => "write",
            Operation::Flush => "flush",
            Operation::Other => "other",
        }
    }
}

/// Counters of one kind of operation, all in one cache line but for the latencies' cells.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct OpStats {
    /// Operations that ended, well or badly.
    pub operations: Counter,
    /// Payload bytes of those that ended well.
    pub bytes: Counter,
    /// Operations that ended with an error status.
    pub errors: Counter,
    /// Time from the whole command being there to its status being queued.
    pub latency: LatencyCells,
}

/// Counters of one disk, written by one shard. Each shard has its own for each disk, on cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct DiskStats {
    /// READ.
    pub read: OpStats,
    /// WRITE.
    pub write: OpStats,
    /// SYNCHRONIZE CACHE.
    pub flush: OpStats,
    /// Everything else.
    pub other: OpStats,
}

impl DiskStats {
    /// Counters at zero. Allocates; call it when the disk is attached.
    pub fn new() -> DiskStats {
        DiskStats::default()
    }

    /// The counters of one kind of operation.
    #[inline]
    pub fn of(&self, operation: Operation) -> &OpStats {
        match operation {
            Operation::Read => &self.read,
            Operation::Write => &self.write,
            Operation::Flush => &self.flush,
            Operation::Other => &self.other,
        }
    }

    /// Count one operation that ended. `bytes` counts only when it ended well. Only the owning shard calls this.
    #[inline]
    pub fn record(&self, operation: Operation, bytes: u64, latency_ns: u64, ok: bool) {
        self.count(operation, bytes, ok);
        self.of(operation).latency.record(latency_ns);
    }

    /// The same without a latency, which follows for several operations at once ([`LatencyCells::record_many`]).
    #[inline]
    pub fn count(&self, operation: Operation, bytes: u64, ok: bool) {
        let stats = self.of(operation);
        stats.operations.increment();
        if ok {
            stats.bytes.add(bytes);
        } else {
            stats.errors.increment();
        }
    }
}

/// One kind of operation, merged over shards.
#[derive(Clone, Debug)]
pub struct OpSummary {
    /// Operations that ended, well or badly.
    pub operations: u64,
    /// Payload bytes of those that ended well.
    pub bytes: u64,
    /// Operations that ended with an error status.
    pub errors: u64,
    /// Sum of the latencies, in nanoseconds.
    pub latency_sum_ns: u64,
    /// Latencies in nanoseconds.
    pub latency: Histogram<u64>,
}

impl Default for OpSummary {
    fn default() -> OpSummary {
        OpSummary { operations: 0, bytes: 0, errors: 0, latency_sum_ns: 0, latency: latency_histogram() }
    }
}

impl OpSummary {
    fn add(&mut self, stats: &OpStats) {
        if stats.operations.value() == 0 {
            return;
        }
        self.operations = self.operations.wrapping_add(stats.operations.value());
        self.bytes = self.bytes.wrapping_add(stats.bytes.value());
        self.errors = self.errors.wrapping_add(stats.errors.value());
        self.latency_sum_ns = self.latency_sum_ns.wrapping_add(stats.latency.sum_ns());
        stats.latency.merge_into(&mut self.latency);
    }
}

/// One disk, merged over shards.
#[derive(Clone, Debug, Default)]
pub struct DiskSummary {
    operations: [OpSummary; 4],
}

impl DiskSummary {
    /// Merge the counters that the shards keep of one disk.
    pub fn merge<'a>(shards: impl IntoIterator<Item = &'a DiskStats>) -> DiskSummary {
        let mut summary = DiskSummary::default();
        for stats in shards {
            for (operation, merged) in Operation::ALL.into_iter().zip(&mut summary.operations) {
                merged.add(stats.of(operation));
            }
        }
        summary
    }

    /// One kind of operation.
    pub fn of(&self, operation: Operation) -> &OpSummary {
        let [read, write, flush, other] = &self.operations;
        match operation {
            Operation::Read => read,
            Operation::Write => write,
            Operation::Flush => flush,
            Operation::Other => other,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn two_shards_of_one_disk_add_up() {
        let (one, two) = (DiskStats::new(), DiskStats::new());
        one.record(Operation::Read, 4096, 10_000, true);
        two.record(Operation::Read, 8192, 30_000, true);
        two.record(Operation::Write, 512, 50_000, false);
        let merged = DiskSummary::merge([&one, &two]);
        let read = merged.of(Operation::Read);
        assert_eq!((read.operations, read.bytes, read.errors), (2, 12288, 0));
        assert_eq!((read.latency_sum_ns, read.latency.len()), (40_000, 2));
        let write = merged.of(Operation::Write);
        assert_eq!((write.operations, write.bytes, write.errors), (1, 0, 1));
        assert_eq!(merged.of(Operation::Flush).operations, 0);
    }

    #[test]
    fn counters_of_two_shards_share_no_cache_line() {
        assert_eq!(align_of::<DiskStats>(), 128);
        assert_eq!(size_of::<DiskStats>() % 128, 0);
    }
}
