//! The Prometheus text format, version 0.0.4.

use std::fmt::Write;

use super::disk::{DiskStats, Operation};
use super::shard::ShardSummary;

/// Upper bounds of the latency buckets shown, in nanoseconds: 1, 2, 5 steps from 5 µs to 10 s.
const BUCKETS_NS: [u64; 20] = [
    5_000,
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    20_000_000,
    50_000_000,
    100_000_000,
    200_000_000,
    500_000_000,
    1_000_000_000,
    2_000_000_000,
    5_000_000_000,
    10_000_000_000,
];

/// What a page says of one kind of operation on one disk: counts only, because there may be many thousand disks.
struct OpCounts<'a> {
    disk: &'a str,
    op: &'static str,
    operations: u64,
    bytes: u64,
    errors: u64,
    latency_sum_ns: u64,
    latency: [u64; BUCKETS_NS.len()],
}

impl<'a> OpCounts<'a> {
    /// The counts of all shards; `None` when there was no such operation.
    fn merge(disk: &'a str, op: Operation, shards: &[&DiskStats]) -> Option<OpCounts<'a>> {
        let mut counts = OpCounts {
            disk,
            op: op.name(),
            operations: 0,
            bytes: 0,
            errors: 0,
            latency_sum_ns: 0,
            latency: [0; BUCKETS_NS.len()],
        };
        for stats in shards.iter().map(|shard| shard.of(op)).filter(|stats| stats.operations.value() > 0) {
            counts.operations = counts.operations.wrapping_add(stats.operations.value());
            counts.bytes = counts.bytes.wrapping_add(stats.bytes.value());
            counts.errors = counts.errors.wrapping_add(stats.errors.value());
            counts.latency_sum_ns = counts.latency_sum_ns.wrapping_add(stats.latency.sum_ns());
            stats.latency.add_to_buckets(&BUCKETS_NS, &mut counts.latency);
        }
        (counts.operations > 0).then_some(counts)
    }
}

/// How a metric behaves, as its TYPE line says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// A page of metrics being written. Metrics of one name are written together, as the format asks.
#[derive(Debug, Default)]
pub struct Page {
    text: String,
}

impl Page {
    /// An empty page.
    pub fn new() -> Page {
        Page::default()
    }

    /// The page's text.
    pub fn finish(self) -> String {
        self.text
    }

    /// Write one metric: `lunaring_` and `name`, its meaning, and each value with its labels.
    pub fn metric<'a, L>(&mut self, name: &str, kind: Kind, help: &str, values: impl IntoIterator<Item = (L, u64)>)
    where
        L: IntoIterator<Item = (&'a str, &'a str)>,
    {
        let type_name = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        self.head(name, type_name, help);
        for (labels, value) in values {
            self.text.push_str("lunaring_");
            self.text.push_str(name);
            self.labels(labels);
            // Writing to a String cannot fail.
            let _ = writeln!(self.text, " {value}");
        }
    }

    /// Write the numbers of every shard, labelled by the shard's index.
    pub fn shards(&mut self, shards: &[ShardSummary]) {
        let indexes: Vec<String> = (0..shards.len()).map(|index| index.to_string()).collect();
        let columns: Vec<Vec<_>> = shards.iter().map(|shard| shard.rows().collect()).collect();
        for (row, (name, grows, help, _)) in ShardSummary::default().rows().enumerate() {
            let (name, kind) = if grows {
                (format!("shard_{name}_total"), Kind::Counter)
            } else {
                (format!("shard_{name}"), Kind::Gauge)
            };
            let values = indexes.iter().zip(&columns).filter_map(|(index, column)| {
                let (_, _, _, value) = column.get(row)?;
                Some(([("shard", index.as_str())], *value))
            });
            self.metric(&name, kind, help, values);
        }
    }

    /// Write the operations, bytes, errors and latencies of every disk: its name, and the counters of each shard.
    /// Kinds of operation that never happened are left out.
    pub fn disks<'a>(&mut self, disks: impl IntoIterator<Item = (&'a str, Vec<&'a DiskStats>)>) {
        let rows: Vec<OpCounts<'_>> = disks
            .into_iter()
            .flat_map(|(disk, shards)| Operation::ALL.map(|op| OpCounts::merge(disk, op, &shards)))
            .flatten()
            .collect();
        let each = |value: fn(&OpCounts<'_>) -> u64| {
            rows.iter().map(move |counts| ([("disk", counts.disk), ("op", counts.op)], value(counts)))
        };
        self.metric("disk_operations_total", Kind::Counter, "Operations that ended.", each(|op| op.operations));
        self.metric("disk_bytes_total", Kind::Counter, "Payload bytes moved.", each(|op| op.bytes));
        self.metric("disk_errors_total", Kind::Counter, "Operations that failed.", each(|op| op.errors));
        self.head("disk_latency_seconds", "histogram", "Time from a command's arrival to its status.");
        for counts in &rows {
            self.latency(counts);
        }
    }

    fn latency(&mut self, counts: &OpCounts<'_>) {
        let OpCounts { disk, op, operations, .. } = *counts;
        let mut below = 0;
        for (to_ns, count) in BUCKETS_NS.into_iter().zip(counts.latency) {
            // A shard may record while it is read; the count of all was read first, and no bucket exceeds it.
            below = operations.min(below + count);
            let bound = (to_ns as f64 / 1e9).to_string();
            self.sample("disk_latency_seconds_bucket", [("disk", disk), ("op", op), ("le", &bound)], below);
        }
        self.sample("disk_latency_seconds_bucket", [("disk", disk), ("op", op), ("le", "+Inf")], operations);
        let sum_seconds = counts.latency_sum_ns as f64 / 1e9;
        self.sample("disk_latency_seconds_sum", [("disk", disk), ("op", op)], sum_seconds);
        self.sample("disk_latency_seconds_count", [("disk", disk), ("op", op)], operations);
    }

    fn sample<'a>(
        &mut self,
        name: &str,
        labels: impl IntoIterator<Item = (&'a str, &'a str)>,
        value: impl std::fmt::Display,
    ) {
        self.text.push_str("lunaring_");
        self.text.push_str(name);
        self.labels(labels);
        let _ = writeln!(self.text, " {value}");
    }

    fn head(&mut self, name: &str, type_name: &str, help: &str) {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        let _ = writeln!(self.text, "# HELP lunaring_{name} {help}\n# TYPE lunaring_{name} {type_name}");
    }

    fn labels<'a>(&mut self, labels: impl IntoIterator<Item = (&'a str, &'a str)>) {
        let mut open = false;
        for (label, value) in labels {
            self.text.push(if open { ',' } else { '{' });
            open = true;
            self.text.push_str(label);
            self.text.push_str("=\"");
            for c in value.chars() {
                match c {
                    '\\' => self.text.push_str("\\\\"),
                    '"' => self.text.push_str("\\\""),
                    '\n' => self.text.push_str("\\n"),
                    c => self.text.push(c),
                }
            }
            self.text.push('"');
        }
        if open {
            self.text.push('}');
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::observe::{DiskStats, ShardStats};

    #[test]
    fn labels_cannot_break_out_of_their_quotes() {
        let mut page = Page::new();
        page.metric("x", Kind::Gauge, "odd\nhelp", [([("disk", "a\"b\\c\nd")], 1)]);
        let none: [(&str, &str); 0] = [];
        page.metric("y", Kind::Counter, "none", [(none, 2)]);
        let wanted = "# HELP lunaring_x odd\\nhelp\n# TYPE lunaring_x gauge\nlunaring_x{disk=\"a\\\"b\\\\c\\nd\"} 1\n\
                      # HELP lunaring_y none\n# TYPE lunaring_y counter\nlunaring_y 2\n";
        assert_eq!(page.finish(), wanted);
    }

    #[test]
    fn latency_buckets_are_cumulative_and_end_at_the_count() {
        let stats = DiskStats::new();
        for latency_ns in [7_000, 7_000, 150_000, 60_000_000_000] {
            stats.record(Operation::Read, 4096, latency_ns, true);
        }
        let mut page = Page::new();
        page.disks([("d", vec![&stats])]);
        let text = page.finish();
        for line in [
            "lunaring_disk_operations_total{disk=\"d\",op=\"read\"} 4",
            "lunaring_disk_bytes_total{disk=\"d\",op=\"read\"} 16384",
            "lunaring_disk_latency_seconds_bucket{disk=\"d\",op=\"read\",le=\"0.000005\"} 0",
            "lunaring_disk_latency_seconds_bucket{disk=\"d\",op=\"read\",le=\"0.00001\"} 2",
            "lunaring_disk_latency_seconds_bucket{disk=\"d\",op=\"read\",le=\"0.0002\"} 3",
            "lunaring_disk_latency_seconds_bucket{disk=\"d\",op=\"read\",le=\"10\"} 3",
            "lunaring_disk_latency_seconds_bucket{disk=\"d\",op=\"read\",le=\"+Inf\"} 4",
            "lunaring_disk_latency_seconds_count{disk=\"d\",op=\"read\"} 4",
        ] {
            assert!(text.lines().any(|l| l == line), "no line {line} in\n{text}");
        }
        assert!(!text.contains("op=\"write\""), "operations that never happened are left out");
    }

    #[test]
    fn each_shard_number_has_one_head_and_one_line_a_shard() {
        let (one, two) = (ShardStats::new(), ShardStats::new());
        one.pdus_in.add(5);
        two.sessions.set(7);
        let mut page = Page::new();
        page.shards(&[one.summary(), two.summary()]);
        let text = page.finish();
        assert_eq!(text.matches("# TYPE lunaring_shard_pdus_in_total counter").count(), 1);
        assert!(text.contains("lunaring_shard_pdus_in_total{shard=\"0\"} 5\n"), "{text}");
        assert!(text.contains("lunaring_shard_sessions{shard=\"1\"} 7\n"), "{text}");
        assert!(!text.contains("lunaring_shard_sessions_total"));
    }
}
