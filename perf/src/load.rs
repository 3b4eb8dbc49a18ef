//! Closed-loop load: a fixed number of commands in flight, each completion replaced at once, latencies in histograms,
//! and what each I/O cost the server.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::bare::BareClient;
use crate::cost::Usage;
use crate::login::Wishes;
use crate::pdu::{self, cdb};
use crate::pipeline::{Done, Pipeline, Request, Want};
use crate::random::Random;

/// Which blocks in which order, and in which direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Pattern {
    /// Reads anywhere.
    RandomRead,
    /// Writes anywhere.
    RandomWrite,
    /// Seven reads to three writes, anywhere.
    RandomMixed,
    /// Reads in ascending order.
    SequentialRead,
    /// Writes in ascending order.
    SequentialWrite,
}

/// One run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The server.
    pub portal: SocketAddr,
    /// Logins; none for the bare reference.
    pub wishes: Option<Wishes>,
    /// Logical unit.
    pub lun: u16,
    /// Bytes per I/O.
    pub block_size: u32,
    /// Commands in flight on each connection.
    pub depth: u32,
    /// Which I/O.
    pub pattern: Pattern,
    /// Sessions, all driven by the calling thread.
    pub connections: u32,
    /// How long is measured.
    pub duration: Duration,
    /// Load before the measuring starts.
    pub warm_up: Duration,
    /// The server's process, for its CPU time.
    pub server_pid: Option<u32>,
    /// Stay within this many bytes of the logical unit; 0 is all of it.
    pub span_bytes: u64,
}

/// What one run gave.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// I/Os that ended while measuring.
    pub ios: u64,
    /// I/Os with another status than GOOD.
    pub errors: u64,
    /// Seconds measured.
    pub seconds: f64,
    /// I/Os per second.
    pub iops: f64,
    /// 2^20 bytes per second.
    pub mib_per_second: f64,
    /// Latency percentiles, in microseconds.
    pub latency_us: Percentiles,
    /// The server's CPU time per I/O, in microseconds; none without its process id.
    pub server_cpu_us_per_io: Option<f64>,
    /// The share of it that the clock ticks put in user mode, in microseconds per I/O.
    pub server_user_us_per_io: Option<f64>,
    /// The share of it that the clock ticks put in the kernel, in microseconds per I/O.
    pub server_system_us_per_io: Option<f64>,
    /// CPU time of the server per second of wall time: 1.0 is one busy core.
    pub server_cores_busy: Option<f64>,
    /// The instrument's own CPU time per I/O that it spent awake, in microseconds (it spins, so this is wall time).
    pub own_wall_us_per_io: f64,
}

/// Latency percentiles, in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Percentiles {
    pub min: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

/// What drives the load: an iSCSI session or the bare reference protocol.
enum Client {
    Iscsi(Box<Pipeline>),
    Bare(BareClient),
}

/// The choice of the next I/O.
struct Chooser {
    pattern: Pattern,
    random: Random,
    slots: u64,
    next: u64,
}

impl Chooser {
    /// Which I/O slot, and whether it is a write.
    fn next(&mut self) -> (u64, bool) {
        let sequential = matches!(self.pattern, Pattern::SequentialRead | Pattern::SequentialWrite);
        let slot = if sequential {
            self.next = (self.next + 1) % self.slots;
            self.next
        } else {
            self.random.below(self.slots)
        };
        let write = match self.pattern {
            Pattern::RandomRead | Pattern::SequentialRead => false,
            Pattern::RandomWrite | Pattern::SequentialWrite => true,
            Pattern::RandomMixed => self.random.below(10) < 3,
        };
        (slot, write)
    }
}

/// Latencies and counts of the part that is measured.
struct Tally {
    histogram: Histogram<u64>,
    ios: u64,
    errors: u64,
}

/// Run a plan on the calling thread.
pub fn run(plan: &Plan) -> Result<Report, String> {
    let mut clients = vec![];
    let mut blocks_per_io = 0;
    let mut io_slots = plan.span_bytes / u64::from(plan.block_size);
    for number in 0..plan.connections.max(1) {
        let Some(wishes) = &plan.wishes else {
            let client = BareClient::connect(plan.portal, plan.block_size, plan.depth);
            clients.push(Client::Bare(client.map_err(|e| format!("{}: {e}", plan.portal))?));
            continue;
        };
        let mut pipeline = Pipeline::open(plan.portal, &wishes.clone().session(number + 1), plan.depth)
            .map_err(|e| format!("{}: {e}", plan.portal))?;
        let (blocks, block_len) = pipeline.capacity(plan.lun).map_err(|e| format!("LUN {}: {e}", plan.lun))?;
        if !plan.block_size.is_multiple_of(block_len) {
            return Err(format!("a block size of {} is no multiple of the LUN's {block_len} bytes", plan.block_size));
        }
        blocks_per_io = plan.block_size / block_len;
        let all = blocks / u64::from(blocks_per_io);
        io_slots = if plan.span_bytes == 0 { all } else { io_slots.min(all) };
        clients.push(Client::Iscsi(Box::new(pipeline)));
    }
    let slots = io_slots.max(1);
    let mut chooser = Chooser { pattern: plan.pattern, random: Random::new(0x1f2e), slots, next: 0 };
    let histogram = Histogram::new_with_bounds(100, 60_000_000_000, 3).map_err(|e| e.to_string())?;
    let mut tally = Tally { histogram, ios: 0, errors: 0 };

    drive(plan, &mut clients, blocks_per_io, &mut chooser, &mut tally, plan.warm_up)?;
    tally.histogram.clear();
    (tally.ios, tally.errors) = (0, 0);
    let usage = |pid: Option<u32>| pid.map(Usage::of).transpose().map_err(|e| format!("the server's /proc entry: {e}"));
    let before = usage(plan.server_pid)?;
    let began = Instant::now();
    drive(plan, &mut clients, blocks_per_io, &mut chooser, &mut tally, plan.duration)?;
    let elapsed = began.elapsed();
    let used = usage(plan.server_pid)?.zip(before).map(|(after, before)| after.since(&before));
    Ok(report(plan, &tally, elapsed, used))
}

fn drive(
    plan: &Plan,
    clients: &mut [Client],
    blocks_per_io: u32,
    chooser: &mut Chooser,
    tally: &mut Tally,
    duration: Duration,
) -> Result<(), String> {
    let began = Instant::now();
    let mut done: Vec<Done> = Vec::with_capacity(plan.depth as usize);
    while began.elapsed() < duration {
        for client in clients.iter_mut() {
            match client {
                Client::Bare(bare) => bare.turn(|| chooser.next().1, |latency| record(tally, latency, true)),
                Client::Iscsi(pipeline) => turn_iscsi(plan, pipeline, blocks_per_io, chooser, tally, &mut done),
            }
            .map_err(|e| format!("{}: {e}", plan.portal))?;
        }
    }
    Ok(())
}

fn turn_iscsi(
    plan: &Plan,
    pipeline: &mut Pipeline,
    blocks_per_io: u32,
    chooser: &mut Chooser,
    tally: &mut Tally,
    done: &mut Vec<Done>,
) -> std::io::Result<()> {
    pipeline.turn(done)?;
    let now = pipeline.now();
    let mut buffers = done.drain(..).map(|ended| {
        record(tally, now.saturating_duration_since(ended.started), ended.status == 0);
        ended.data_out
    });
    while pipeline.has_room() {
        let buffer = buffers.next().unwrap_or_default();
        let (slot, write) = chooser.next();
        let lba = slot * u64::from(blocks_per_io);
        let opcode = if write { cdb::WRITE_16 } else { cdb::READ_16 };
        let mut data_out = buffer;
        if write {
            data_out.resize(plan.block_size as usize, 0x5a);
        } else {
            data_out.clear();
        }
        pipeline.start(Request {
            lun: plan.lun,
            cdb: pdu::cdb_transfer_16(opcode, lba, blocks_per_io, false),
            data_out,
            read_len: if write { 0 } else { plan.block_size },
            want: Want::Discard,
            mark: 0,
        });
    }
    drop(buffers);
    pipeline.flush().map(|_| ())
}

fn record(tally: &mut Tally, latency: Duration, good: bool) {
    tally.ios += 1;
    if !good {
        tally.errors += 1;
    }
    let _ = tally.histogram.record(latency.as_nanos() as u64);
}

fn report(plan: &Plan, tally: &Tally, elapsed: Duration, used: Option<Usage>) -> Report {
    let seconds = elapsed.as_secs_f64();
    let ios = tally.ios.max(1) as f64;
    let us = |nanos: u64| nanos as f64 / 1000.0;
    let at = |quantile: f64| us(tally.histogram.value_at_quantile(quantile));
    let per_io = |time: Duration| time.as_secs_f64() * 1e6 / ios;
    Report {
        ios: tally.ios,
        errors: tally.errors,
        seconds,
        iops: tally.ios as f64 / seconds,
        mib_per_second: tally.ios as f64 * f64::from(plan.block_size) / seconds / f64::from(1 << 20),
        latency_us: Percentiles {
            min: us(tally.histogram.min()),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: us(tally.histogram.max()),
        },
        server_cpu_us_per_io: used.map(|u| per_io(u.cpu)),
        server_user_us_per_io: used.map(|u| per_io(u.user)),
        server_system_us_per_io: used.map(|u| per_io(u.system)),
        server_cores_busy: used.map(|u| u.cpu.as_secs_f64() / seconds),
        own_wall_us_per_io: seconds * 1e6 / ios,
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "{:.0} IOPS, {:.1} MiB/s, {} errors, {:.2} s",
            self.iops, self.mib_per_second, self.errors, self.seconds
        )?;
        let Percentiles { min, p50, p90, p99, p999, max } = self.latency_us;
        write!(f, "latency µs: min {min:.1}  50% {p50:.1}  90% {p90:.1}  99% {p99:.1}  99.9% {p999:.1}  max {max:.1}")?;
        if let (Some(cpu), Some(user), Some(system), Some(busy)) = (
            self.server_cpu_us_per_io,
            self.server_user_us_per_io,
            self.server_system_us_per_io,
            self.server_cores_busy,
        ) {
            write!(f, "\nserver CPU µs per I/O: {cpu:.3} (user {user:.2}, system {system:.2}), {busy:.2} cores busy")?;
        }
        Ok(())
    }
}
