//! The path beyond this machine: how many cores a link of some speed needs, from what I/Os of each size cost here.
//!
//! On loopback the sender pays for the receiver's share of TCP (it runs in the sender's system call). A server that
//! sends therefore costs more here than with a network card, and one that receives costs less; so receiving gets a
//! surcharge: what sending costs the bare reference beyond receiving, at that size.

use super::measure::{self, Workload};
use super::servers::{Bare, Lunaring, TARGET};
use super::{Cell, Contender, Run, cpu};

/// Link speeds, in Gbit/s.
const LINKS: [f64; 4] = [10.0, 40.0, 56.0, 100.0];
/// The part of a link that is payload of frames with 1,500 bytes: 1,448 of 1,538.
const PAYLOAD_SHARE: f64 = 1448.0 / 1538.0;
/// Sizes and depths: (bytes, in flight, keys of reads, reads with digests, writes, writes with digests).
const SIZES: [(u32, u32, [&str; 4]); 3] = [
    (4 << 10, 32, ["model-r4k", "model-r4k-digests", "model-w4k", "model-w4k-digests"]),
    (64 << 10, 8, ["model-r64k", "model-r64k-digests", "model-w64k", "model-w64k-digests"]),
    (256 << 10, 4, ["model-r256k", "model-r256k-digests", "model-w256k", "model-w256k-digests"]),
];

/// One line of the model.
struct Line {
    disk: String,
    bytes: u32,
    write: bool,
    digests: bool,
    cost_us: f64,
}

impl Line {
    /// Cores for a link of so many Gbit/s.
    fn cores(&self, link: f64) -> f64 {
        link * 1e9 / 8.0 * PAYLOAD_SHARE / f64::from(self.bytes) * self.cost_us / 1e6
    }
}

pub(super) fn run(run: &mut Run<'_>) -> Result<(), String> {
    let cpus = run.server_cpus();
    let span_bytes: u64 = if run.options.quick { 16 << 20 } else { 256 << 20 };
    let bare = Bare::start(&cpus, false, None)?;
    let server = Lunaring::start(&run.launcher, &run.folder.join("model"), &cpus)?;
    server.disk("memory", 0, &["--size", "1G", "--format", "memory"])?;
    server.disk("vhdx", 1, &["--size", "1G"])?;
    let lunaring = |label: &str, lun| Contender::new(label, server.portal, TARGET, lun, server.pid());
    let contenders = [Contender::bare("bare", bare.portal, bare.pid()), lunaring("memory", 0), lunaring("vhdx", 1)];
    for contender in &contenders[1..] {
        measure::fill(contender, span_bytes)?;
    }
    let mut lines = vec![];
    for (bytes, depth, keys) in SIZES {
        let mut bare_cost = [f64::NAN; 2];
        for (number, key) in keys.into_iter().enumerate() {
            let (write, digests) = (number >= 2, number % 2 == 1);
            let percent = if write { 100 } else { 0 };
            let workload = Workload { digests, ..Workload::new(key, key, bytes, percent, depth) };
            let cells = run.table(&workload, &contenders, &run.effort(span_bytes))?;
            if !digests {
                bare_cost[usize::from(write)] = cpu(&cells, "bare").unwrap_or(f64::NAN);
            }
            let surcharge = if write { (bare_cost[0] - bare_cost[1]).max(0.0) } else { 0.0 };
            lines.extend(cells[1..].iter().filter_map(|cell| line(cell, bytes, write, digests, surcharge)));
        }
    }
    print(&lines);
    Ok(())
}

fn line(cell: &Cell, bytes: u32, write: bool, digests: bool, surcharge: f64) -> Option<Line> {
    let disk = cell.contender.clone();
    Some(Line { disk, bytes, write, digests, cost_us: cell.cpu_us? + surcharge })
}

/// As a table in Markdown, for perf/README.md.
fn print(lines: &[Line]) {
    println!("\n| disk | I/O | digests | us per I/O | 10 Gbit/s | 40 Gbit/s | 56 Gbit/s | 100 Gbit/s |");
    println!("|---|---|---|---|---|---|---|---|");
    for line in lines {
        let cores = LINKS.map(|link| format!("{:.2}", line.cores(link)));
        println!(
            "| {} | {} KiB {} | {} | {:.2} | {} |",
            line.disk,
            line.bytes >> 10,
            if line.write { "writes" } else { "reads" },
            if line.digests { "both" } else { "none" },
            line.cost_us,
            cores.join(" | ")
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_follow_from_cost_and_speed() {
        // 10 Gbit/s carry 287,000 blocks of 4 KiB each second; at 1 us each that is 0.287 cores.
        let line = Line { disk: String::new(), bytes: 4096, write: false, digests: false, cost_us: 1.0 };
        assert!((line.cores(10.0) - 0.2873).abs() < 0.001, "{}", line.cores(10.0));
        assert!((line.cores(100.0) / line.cores(10.0) - 10.0).abs() < 1e-9);
    }
}
