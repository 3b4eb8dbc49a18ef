//! Measuring in turn: every round measures each contender once, so that a slow minute of the machine hits all of them.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::load::{Mix, Order, Pace, Percentiles, Plan, Report};
use crate::login::Wishes;

/// One of those that are compared.
#[derive(Clone, Debug)]
pub struct Contender {
    /// How it is called in tables.
    pub label: String,
    /// Where it listens.
    pub portal: SocketAddr,
    /// Its target; none speaks the bare protocol.
    pub target: Option<String>,
    /// Logical units.
    pub luns: Vec<u16>,
    /// Its process; none is somewhere else, and its cost stays unknown.
    pub pid: Option<u32>,
    /// What it can not do is left out, and does not end the comparison.
    pub optional: bool,
    /// It is asked without digests even where the workload has them: what others are compared with.
    pub plain: bool,
}

impl Contender {
    /// A logical unit of a target.
    pub fn new(label: &str, portal: SocketAddr, target: &str, lun: u16, pid: u32) -> Contender {
        let target = Some(target.to_owned());
        Contender {
            label: label.to_owned(),
            portal,
            target,
            luns: vec![lun],
            pid: Some(pid),
            optional: false,
            plain: false,
        }
    }

    /// The same, of a server that is not ours.
    pub fn optional(self) -> Contender {
        Contender { optional: true, ..self }
    }

    /// The same without digests, under another label.
    pub fn plain(&self, label: &str) -> Contender {
        Contender { label: label.to_owned(), plain: true, ..self.clone() }
    }

    /// A reference server.
    pub fn bare(label: &str, portal: SocketAddr, pid: u32) -> Contender {
        Contender {
            label: label.to_owned(),
            portal,
            target: None,
            luns: vec![0],
            pid: Some(pid),
            optional: false,
            plain: false,
        }
    }
}

/// What is asked of each of them.
#[derive(Clone, Debug)]
pub struct Workload {
    /// A short name that stays the same over the years.
    pub key: &'static str,
    /// In words.
    pub title: &'static str,
    /// Bytes per I/O.
    pub mix: Mix,
    /// Writes among a hundred I/Os.
    pub write_percent: u8,
    /// In flight on each connection.
    pub depth: u32,
    /// Connections.
    pub connections: u32,
    /// Both digests.
    pub digests: bool,
    /// Closed or open loop.
    pub pace: Pace,
    /// Which blocks.
    pub order: Order,
}

impl Workload {
    /// Blocks of one size anywhere, in a closed loop on one connection.
    pub fn new(key: &'static str, title: &'static str, bytes: u32, write_percent: u8, depth: u32) -> Workload {
        Workload {
            key,
            title,
            mix: Mix::of(bytes),
            write_percent,
            depth,
            connections: 1,
            digests: false,
            pace: Pace::Closed,
            order: Order::Random,
        }
    }
}

/// How long, how often, and where.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Each measurement, in seconds.
    pub seconds: f64,
    /// Rounds of which the median counts.
    pub rounds: usize,
    /// Bytes of each disk that are used.
    pub span_bytes: u64,
}

/// What one contender gave in one workload: medians over the rounds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cell {
    /// The workload's key.
    pub workload: String,
    /// The contender.
    pub contender: String,
    /// Its CPU time per I/O, in microseconds.
    pub cpu_us: Option<f64>,
    /// The user share.
    pub user_us: Option<f64>,
    /// The kernel's share.
    pub system_us: Option<f64>,
    /// I/Os per second.
    pub iops: f64,
    /// Latencies in microseconds: 50 %, 99 %, 99.9 %, longest (of the median round each).
    pub p50_us: f64,
    /// See above.
    pub p99_us: f64,
    /// See above.
    pub p999_us: f64,
    /// The longest of all rounds.
    pub max_us: f64,
    /// Cost beside the first contender's in the same round.
    pub ratio: Option<f64>,
    /// Resident memory, in bytes.
    pub resident_bytes: Option<u64>,
    /// Cores that were busy in the server.
    pub cores_busy: Option<f64>,
    /// The instrument's own CPU time per I/O, in microseconds.
    pub own_cpu_us: f64,
    /// Commands that failed.
    pub errors: u64,
    /// The last round's latencies: (share of I/Os, microseconds).
    pub curve: Vec<(f64, f64)>,
}

/// Measure one workload on all contenders, alternating. The first is what the ratios refer to.
pub fn measure(workload: &Workload, contenders: &[Contender], effort: &Effort) -> Result<Vec<Cell>, String> {
    let mut reports: Vec<Vec<Report>> = vec![vec![]; contenders.len()];
    for _ in 0..effort.rounds.max(1) {
        for (contender, reports) in contenders.iter().zip(&mut reports) {
            match plan(workload, contender, effort).run() {
                Ok(report) => reports.push(report),
                Err(e) if contender.optional => eprintln!("perf: {}, without {}: {e}", workload.title, contender.label),
                Err(e) => return Err(format!("{}, {}: {e}", workload.title, contender.label)),
            }
        }
    }
    let reference: Vec<Option<f64>> = reports[0].iter().map(|r| r.server_cpu_us_per_io).collect();
    let measured = contenders.iter().zip(&reports).filter(|(_, reports)| !reports.is_empty());
    Ok(measured.map(|(contender, reports)| cell(workload, contender, reports, &reference)).collect())
}

/// The load of a workload on a contender.
pub fn plan(workload: &Workload, contender: &Contender, effort: &Effort) -> Plan {
    let wishes = contender.target.as_deref().map(|target| Wishes {
        header_digest: workload.digests && !contender.plain,
        data_digest: workload.digests && !contender.plain,
        ..Wishes::to_target(target)
    });
    // What is asked one at a time or at its time must not wait for the instrument to wake up.
    let patient = workload.pace == Pace::Closed && workload.depth > 1;
    let spin = if patient { Duration::from_micros(20) } else { Duration::from_secs(3600) };
    Plan {
        wishes,
        luns: contender.luns.clone(),
        mix: workload.mix.clone(),
        write_percent: workload.write_percent,
        order: workload.order,
        pace: workload.pace,
        depth: workload.depth,
        connections: workload.connections,
        duration: Duration::from_secs_f64(effort.seconds),
        warm_up: Duration::from_secs_f64((effort.seconds / 4.0).min(0.5)),
        server_pid: contender.pid,
        span_bytes: effort.span_bytes,
        spin,
        ..Plan::new(contender.portal)
    }
}

/// Write all of the span once, in order.
pub fn fill(contender: &Contender, span_bytes: u64) -> Result<(), String> {
    let block_len = span_bytes.min(1 << 20) as u32;
    let workload = Workload { order: Order::Sequential, ..Workload::new("fill", "filling", block_len, 100, 4) };
    let effort = Effort { seconds: 600.0, rounds: 1, span_bytes };
    let mut plan = plan(&workload, contender, &effort);
    (plan.warm_up, plan.ios_max) = (Duration::ZERO, Some(span_bytes / u64::from(block_len)));
    let report = plan.run().map_err(|e| format!("filling {}: {e}", contender.label))?;
    if report.errors > 0 {
        return Err(format!("filling {}: {} writes failed", contender.label, report.errors));
    }
    Ok(())
}

fn cell(workload: &Workload, contender: &Contender, reports: &[Report], reference: &[Option<f64>]) -> Cell {
    let some = |value: fn(&Report) -> Option<f64>| median(reports.iter().filter_map(value).collect());
    let all =
        |value: fn(&Percentiles) -> f64| median(reports.iter().map(|r| value(&r.latency_us)).collect()).unwrap_or(0.0);
    let ratios = reports.iter().zip(reference).filter_map(|(r, bare)| Some(r.server_cpu_us_per_io? / (*bare)?));
    Cell {
        workload: workload.key.to_owned(),
        contender: contender.label.clone(),
        cpu_us: some(|r| r.server_cpu_us_per_io),
        user_us: some(|r| r.server_user_us_per_io),
        system_us: some(|r| r.server_system_us_per_io),
        iops: some(|r| Some(r.iops)).unwrap_or(0.0),
        p50_us: all(|p| p.p50),
        p99_us: all(|p| p.p99),
        p999_us: all(|p| p.p999),
        max_us: reports.iter().map(|r| r.latency_us.max).fold(0.0, f64::max),
        ratio: median(ratios.filter(|r| r.is_finite()).collect()),
        resident_bytes: reports.last().and_then(|r| r.server_resident_bytes),
        cores_busy: some(|r| r.server_cores_busy),
        own_cpu_us: some(|r| Some(r.own_cpu_us_per_io)).unwrap_or(0.0),
        errors: reports.iter().map(|r| r.errors + r.overdue).sum(),
        curve: reports.last().map(|r| r.curve.clone()).unwrap_or_default(),
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// A table of one workload's cells.
pub fn print_table(title: &str, cells: &[Cell]) {
    println!("\n{title}");
    println!(
        "{:<18} {:>9} {:>8} {:>8} {:>7} {:>10} {:>9} {:>9} {:>9} {:>8} {:>7}",
        "", "CPU us", "user", "system", "ratio", "IOPS", "50% us", "99% us", "99.9% us", "RSS MiB", "own us"
    );
    for cell in cells {
        let number = |value: Option<f64>, digits: usize| value.map_or("-".to_owned(), |v| format!("{v:.digits$}"));
        let resident = cell.resident_bytes.map(|bytes| bytes as f64 / f64::from(1 << 20));
        println!(
            "{:<18} {:>9} {:>8} {:>8} {:>7} {:>10.0} {:>9.1} {:>9.1} {:>9.1} {:>8} {:>7.2}{}",
            cell.contender,
            number(cell.cpu_us, 3),
            number(cell.user_us, 2),
            number(cell.system_us, 2),
            number(cell.ratio, 2),
            cell.iops,
            cell.p50_us,
            cell.p99_us,
            cell.p999_us,
            number(resident, 0),
            cell.own_cpu_us,
            if cell.errors > 0 { format!("  {} FAILED", cell.errors) } else { String::new() },
        );
    }
}
