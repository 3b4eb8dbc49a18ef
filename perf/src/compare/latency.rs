//! How long an I/O takes: one at a time beside the bare reference, and open loops with mixed load while the server
//! allocates, takes snapshots and answers control commands.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::measure::{self, Effort, Workload};
use super::servers::{Bare, Lunaring, TARGET, written_file};
use super::{Cell, Contender, Run, of};
use crate::load::{Mix, Pace};

/// I/Os per second of the open loops with mixed load: far below what any of them can do.
const MIXED_RATE: f64 = 4000.0;
/// The disk whose blocks nobody has written, of 16,384 blocks: three rounds of two seconds write 9,000 times.
const FRESH_SIZE: &str = "16G";
/// What is used of the disk that snapshots are made of: each snapshot's leaf takes up to so much again.
const BUSY_BYTES: u64 = 64 << 20;
/// Between two control commands.
const COMMANDS_APART: Duration = Duration::from_millis(200);

pub(super) fn run(run: &mut Run<'_>) -> Result<(), String> {
    let cpus = run.server_cpus();
    let server = Lunaring::start(&run.launcher, &run.folder.join("latency"), &cpus)?;
    server.disk("null", 0, &["--size", "1G", "--format", "null"])?;
    let null = Contender::new("null", server.portal, TARGET, 0, server.pid());
    let effort = run.effort(256 << 20);
    {
        let spinning = Bare::start(&cpus, true, None)?;
        let reference = Contender::bare("bare, spinning", spinning.portal, spinning.pid());
        let workload = Workload::new("depth-1", "4 KiB reads, one at a time, closed loop: both spin", 4096, 0, 1);
        let cells = run.table(&workload, &[reference, null.clone()], &effort)?;
        beside(run, "depth 1, both spin: median beyond bare", &cells, 3.0);
    }
    {
        let sleeping = Bare::start(&cpus, false, None)?;
        let reference = Contender::bare("bare, sleeping", sleeping.portal, sleeping.pid());
        let workload = Workload {
            pace: Pace::Even(1000.0),
            ..Workload::new("depth-1-rare", "4 KiB reads, one each millisecond: both sleep between", 4096, 0, 1)
        };
        let cells = run.table(&workload, &[reference, null], &effort)?;
        beside(run, "depth 1, both sleep: median beyond bare", &cells, 5.0);
    }
    mixed(run, &server, &cpus)
}

fn beside(run: &mut Run<'_>, what: &str, cells: &[Cell], bound: f64) {
    let beyond = cells[1].p50_us - cells[0].p50_us;
    run.owed(what, "us", Some(beyond), bound);
}

/// Open loops at the same rate on files: what is beyond the reference's own outliers is ours.
fn mixed(run: &mut Run<'_>, server: &Lunaring, cpus: &str) -> Result<(), String> {
    let span_bytes: u64 = if run.options.quick { 16 << 20 } else { 256 << 20 };
    let plain = run.folder.join("latency.raw");
    written_file(&plain, span_bytes)?;
    let bare_file = Bare::start(cpus, false, Some(&plain))?;
    server.disk("raw", 1, &["--size", "1G", "--format", "raw"])?;
    server.disk("vhdx", 2, &["--size", "1G"])?;
    // Each first write takes a whole block of the file system's space: small ones, and not too many of them.
    server.disk("fresh", 3, &["--size", FRESH_SIZE, "--block-size", "1M"])?;
    server.disk("busy", 4, &["--size", "1G"])?;
    let lunaring = |label: &str, lun| Contender::new(label, server.portal, TARGET, lun, server.pid());
    for (label, lun) in [("raw", 1), ("vhdx", 2)] {
        measure::fill(&lunaring(label, lun), span_bytes)?;
    }
    measure::fill(&lunaring("busy", 4), BUSY_BYTES)?;
    let workload = Workload {
        mix: Mix::parse("4K:70,64K:30").unwrap_or(Mix::of(4096)),
        pace: Pace::Random(MIXED_RATE),
        ..Workload::new("open-mixed", "Open loop, 4,000 mixed I/Os each second on files", 4096, 30, 64)
    };
    let effort = run.effort(span_bytes);
    let contenders =
        [Contender::bare("bare file", bare_file.portal, bare_file.pid()), lunaring("raw", 1), lunaring("vhdx", 2)];
    let mut cells = measure::measure(&workload, &contenders, &effort)?;
    // Blocks that nobody wrote yet: most writes allocate.
    let anywhere = Effort { span_bytes: 0, ..effort };
    cells.extend(measure::measure(&workload, &[lunaring("vhdx, allocating", 3)], &anywhere)?);
    server.command(&["target", "unmap", "compare", "--lun", "3"])?;
    server.command(&["disk", "delete", "fresh"])?;
    let few = Effort { span_bytes: BUSY_BYTES, ..effort };
    cells.extend(while_commanded(server, || measure::measure(&workload, &[lunaring("vhdx, commanded", 4)], &few))?);
    measure::print_table(workload.title, &cells);
    run.record.cells.extend(cells.iter().cloned());
    let bound = of(&cells, "bare file").map_or(f64::NAN, |cell| 2.0 * cell.p999_us);
    for label in ["raw", "vhdx", "vhdx, allocating", "vhdx, commanded"] {
        let figure = of(&cells, label).map(|cell| cell.p999_us);
        run.owed(&format!("99.9 % of mixed I/Os, {label}: twice the bare file"), "us", figure, bound);
    }
    Ok(())
}

/// Work while snapshots are made and lists are asked for.
fn while_commanded<T>(server: &Lunaring, work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let commands = scope.spawn(|| {
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                number += 1;
                server.command(&["snapshot", "create", "busy", &format!("s{number}")])?;
                server.command(&["disk", "list"])?;
                server.command(&["stats"])?;
                std::thread::sleep(COMMANDS_APART);
            }
            Ok(())
        });
        let done = work();
        stop.store(true, Ordering::Relaxed);
        let commanded: Result<(), String> = commands.join().unwrap_or_else(|_| Err("the commands ended".to_owned()));
        commanded.and(done)
    })
}
