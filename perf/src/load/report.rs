//! Latencies and counts of a run, and what is printed of them.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::cost::Usage;

/// What one run gave.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// I/Os that were measured.
    pub ios: u64,
    /// I/Os with another status than GOOD.
    pub errors: u64,
    /// Seconds measured.
    pub seconds: f64,
    /// I/Os per second.
    pub iops: f64,
    /// 2^20 bytes per second.
    pub mib_per_second: f64,
    /// Latencies of all I/Os, in microseconds.
    pub latency_us: Percentiles,
    /// Latencies of reads, if there were writes too.
    pub read_latency_us: Option<Percentiles>,
    /// Latencies of writes, if there were reads too.
    pub write_latency_us: Option<Percentiles>,
    /// I/Os per second that were asked for (open loop).
    pub rate_asked: Option<f64>,
    /// I/Os that were due and had not ended ten seconds after the end (open loop; their latencies are missing above).
    pub overdue: u64,
    /// The server's CPU time per I/O, in microseconds; none without its process id.
    pub server_cpu_us_per_io: Option<f64>,
    /// The share of it that the clock ticks put in user mode, in microseconds per I/O.
    pub server_user_us_per_io: Option<f64>,
    /// The share of it that the clock ticks put in the kernel, in microseconds per I/O.
    pub server_system_us_per_io: Option<f64>,
    /// CPU time of the server per second of wall time: 1.0 is one busy core.
    pub server_cores_busy: Option<f64>,
    /// The server's resident memory at the end, in bytes.
    pub server_resident_bytes: Option<u64>,
    /// CPU time of the instrument's own thread per I/O, user and system, in microseconds.
    pub own_cpu_us_per_io: f64,
    /// One entry for each second.
    pub series: Vec<Second>,
    /// The distribution of latencies: (share of I/Os that were no slower, microseconds), for plots.
    pub curve: Vec<(f64, f64)>,
}

/// Latency percentiles, in microseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Percentiles {
    pub min: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

impl Percentiles {
    fn of(histogram: &Histogram<u64>) -> Percentiles {
        let us = |nanos: u64| nanos as f64 / 1000.0;
        let at = |quantile: f64| us(histogram.value_at_quantile(quantile));
        Percentiles {
            min: us(histogram.min()),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: us(histogram.max()),
        }
    }
}

/// What happened in one second.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Second {
    /// Since the measuring began, in seconds, at its end.
    pub at: f64,
    /// I/Os that ended per second.
    pub iops: f64,
    /// Their median latency, in microseconds.
    pub p50_us: f64,
    /// 99 of a hundred were faster, in microseconds.
    pub p99_us: f64,
    /// The slowest, in microseconds.
    pub max_us: f64,
}

/// Latencies and counts while they come.
pub struct Tally {
    /// Of this second: reads, writes.
    current: [Histogram<u64>; 2],
    /// Of the seconds before.
    total: [Histogram<u64>; 2],
    pub(super) ios: u64,
    pub(super) bytes: u64,
    pub(super) errors: u64,
    series: Vec<Second>,
    last: f64,
}

impl Tally {
    /// An empty one.
    pub fn new() -> Result<Tally, String> {
        let histogram = Histogram::<u64>::new_with_bounds(100, 600_000_000_000, 3).map_err(|e| e.to_string())?;
        Ok(Tally {
            current: [histogram.clone(), histogram.clone()],
            total: [histogram.clone(), histogram],
            ios: 0,
            bytes: 0,
            errors: 0,
            series: vec![],
            last: 0.0,
        })
    }

    /// Count one I/O.
    #[inline]
    pub fn record(&mut self, latency: Duration, write: bool, bytes: u32, good: bool) {
        self.ios += 1;
        self.bytes += u64::from(bytes);
        self.errors += u64::from(!good);
        self.current[usize::from(write)].saturating_record(latency.as_nanos() as u64);
    }

    /// A second is over, or the run is; `at` is the time since the measuring began.
    pub fn close_second(&mut self, at: Duration) -> Result<(), String> {
        let at = at.as_secs_f64();
        let mut both = self.current[0].clone();
        both.add(&self.current[1]).map_err(|e| e.to_string())?;
        let percentiles = Percentiles::of(&both);
        self.series.push(Second {
            at,
            iops: both.len() as f64 / (at - self.last).max(1e-9),
            p50_us: percentiles.p50,
            p99_us: percentiles.p99,
            max_us: percentiles.max,
        });
        self.last = at;
        for (total, current) in self.total.iter_mut().zip(&mut self.current) {
            total.add(&*current).map_err(|e| e.to_string())?;
            current.clear();
        }
        Ok(())
    }

    /// The report. `used` is the server's, `own` the instrument's.
    pub(super) fn report(self, elapsed: Duration, used: Option<Usage>, own: Duration) -> Result<Report, String> {
        let seconds = elapsed.as_secs_f64();
        let ios = self.ios.max(1) as f64;
        let per_io = |time: Duration| time.as_secs_f64() * 1e6 / ios;
        let mut both = self.total[0].clone();
        both.add(&self.total[1]).map_err(|e| e.to_string())?;
        let mixed = !self.total[0].is_empty() && !self.total[1].is_empty();
        Ok(Report {
            ios: self.ios,
            errors: self.errors,
            seconds,
            iops: self.ios as f64 / seconds,
            mib_per_second: self.bytes as f64 / seconds / f64::from(1 << 20),
            latency_us: Percentiles::of(&both),
            read_latency_us: mixed.then(|| Percentiles::of(&self.total[0])),
            write_latency_us: mixed.then(|| Percentiles::of(&self.total[1])),
            rate_asked: None,
            overdue: 0,
            server_cpu_us_per_io: used.map(|u| per_io(u.cpu)),
            server_user_us_per_io: used.map(|u| per_io(u.user)),
            server_system_us_per_io: used.map(|u| per_io(u.system)),
            server_cores_busy: used.map(|u| u.cpu.as_secs_f64() / seconds),
            server_resident_bytes: used.map(|u| u.resident_bytes),
            own_cpu_us_per_io: per_io(own),
            series: self.series,
            curve: curve(&both),
        })
    }
}

/// Denser towards the slow end, as far as there are I/Os to tell.
fn curve(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    let slowest = 1.0 / (histogram.len().max(1) as f64);
    let shares = (0..=40).map(|step| 10f64.powf(-f64::from(step) / 8.0)).take_while(|share| *share >= slowest);
    shares.map(|share| (1.0 - share, histogram.value_at_quantile(1.0 - share) as f64 / 1000.0)).collect()
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "{:.0} IOPS, {:.1} MiB/s, {} errors, {:.2} s",
            self.iops, self.mib_per_second, self.errors, self.seconds
        )?;
        if let Some(rate) = self.rate_asked {
            writeln!(f, "open loop at {rate:.0} I/Os per second, {} overdue at the end", self.overdue)?;
        }
        let lines = [
            ("latency", Some(self.latency_us)),
            ("  reads", self.read_latency_us),
            ("  writes", self.write_latency_us),
        ];
        for (what, latency) in lines {
            let Some(Percentiles { min, p50, p90, p99, p999, max }) = latency else { continue };
            writeln!(
                f,
                "{what} µs: min {min:.1}  50% {p50:.1}  90% {p90:.1}  99% {p99:.1}  99.9% {p999:.1}  max {max:.1}"
            )?;
        }
        if self.series.len() > 1 {
            writeln!(f, "{:>8} {:>12} {:>10} {:>10} {:>10}", "second", "IOPS", "50% µs", "99% µs", "max µs")?;
            for Second { at, iops, p50_us, p99_us, max_us } in &self.series {
                writeln!(f, "{at:>8.2} {iops:>12.0} {p50_us:>10.1} {p99_us:>10.1} {max_us:>10.1}")?;
            }
        }
        if let (Some(cpu), Some(user), Some(system), Some(busy)) = (
            self.server_cpu_us_per_io,
            self.server_user_us_per_io,
            self.server_system_us_per_io,
            self.server_cores_busy,
        ) {
            writeln!(f, "server CPU µs per I/O: {cpu:.3} (user {user:.2}, system {system:.2}), {busy:.2} cores busy")?;
        }
        write!(f, "own CPU µs per I/O: {:.3}", self.own_cpu_us_per_io)
    }
}
