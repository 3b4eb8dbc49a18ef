//! What must not grow: the cost of an I/O with sessions, logical units, disk size, chain depth and shards; the cost of
//! doing nothing.

use std::fmt::Write;
use std::time::Duration;

use super::files::deepen;
use super::measure::{self, Workload};
use super::servers::{Lunaring, TARGET};
use super::{Contender, Run};
use crate::cost::Usage;
use crate::login::Wishes;
use crate::pipeline::Pipeline;

/// What the cost may grow by.
const GROWTH_MAX: f64 = 1.10;
/// What the cost may grow by on two shards.
const SHARDS_GROWTH_MAX: f64 = 1.05;
/// The part of a core that 500 idle sessions may use.
const IDLE_CORES_MAX: f64 = 0.005;

/// How many of each.
struct Sizes {
    sessions: u32,
    luns: u16,
    chain: u32,
    span_bytes: u64,
}

pub(super) fn run(run: &mut Run<'_>) -> Result<(), String> {
    let quick = run.options.quick;
    let sizes = if quick {
        Sizes { sessions: 20, luns: 40, chain: 4, span_bytes: 16 << 20 }
    } else {
        Sizes { sessions: 500, luns: 4096, chain: 64, span_bytes: 128 << 20 }
    };
    sessions(run, &sizes)?;
    logical_units(run, &sizes)?;
    disks(run, &sizes)?;
    shards(run, &sizes)
}

fn read(key: &'static str, title: &'static str) -> Workload {
    Workload::new(key, title, 4096, 0, 32)
}

/// Two contenders of one workload: the second may cost so many times the first.
fn pair(
    run: &mut Run<'_>,
    workload: &Workload,
    two: &[Contender; 2],
    span_bytes: u64,
    bound: f64,
) -> Result<(), String> {
    let effort = run.effort(span_bytes);
    let cells = run.table(workload, two, &effort)?;
    let ratio = cells[1].ratio;
    run.owed(&format!("{} beside {}", two[1].label, two[0].label), "x", ratio, bound);
    Ok(())
}

fn sessions(run: &mut Run<'_>, sizes: &Sizes) -> Result<(), String> {
    let server = Lunaring::start(&run.launcher, &run.folder.join("sessions"), &run.server_cpus())?;
    server.disk("null", 0, &["--size", "1G", "--format", "null"])?;
    let contender = Contender::new("", server.portal, TARGET, 0, server.pid());
    let effort = run.effort(sizes.span_bytes);
    let mut cells = vec![];
    for round_of in [1, sizes.sessions] {
        let workload = Workload { connections: round_of, ..read("sessions", "4 KiB reads, depth 32 on each session") };
        let label = if round_of == 1 { "1 session".to_owned() } else { format!("{round_of} sessions") };
        let contender = Contender { label, ..contender.clone() };
        cells.extend(measure::measure(&workload, &[contender], &effort)?);
    }
    measure::print_table("4 KiB reads, depth 32 on each session", &cells);
    let ratio = cells[1].cpu_us.zip(cells[0].cpu_us).map(|(many, one)| many / one);
    run.record.cells.append(&mut cells);
    run.owed(&format!("{} sessions beside 1", sizes.sessions), "x", ratio, GROWTH_MAX);

    let idle: Result<Vec<Pipeline>, String> = (0..sizes.sessions)
        .map(|number| {
            let wishes = Wishes::to_target(TARGET).session(number + 1);
            Pipeline::open(server.portal, &wishes, 1).map_err(|e| format!("session {number}: {e}"))
        })
        .collect();
    let idle = idle?;
    std::thread::sleep(Duration::from_millis(300));
    let usage = || Usage::of(server.pid()).map_err(|e| format!("the server's /proc entry: {e}"));
    let before = usage()?;
    let seconds = run.options.seconds.max(1.0) * 2.0;
    std::thread::sleep(Duration::from_secs_f64(seconds));
    let busy = usage()?.since(&before).cpu.as_secs_f64() / seconds;
    println!("\nIdle with {} sessions", idle.len());
    run.owed("CPU of an idle server", "cores", Some(busy), IDLE_CORES_MAX);
    Ok(())
}

fn logical_units(run: &mut Run<'_>, sizes: &Sizes) -> Result<(), String> {
    let folder = run.folder.join("luns");
    let config = many_disks(sizes.luns);
    let server = Lunaring::start_configured(&run.launcher, &folder, &run.server_cpus(), &config)?;
    let one = Contender::new("1 LUN", server.portal, TARGET, 0, server.pid());
    let label = format!("{} LUNs", sizes.luns);
    let all = Contender { label, luns: (0..sizes.luns).collect(), ..one.clone() };
    let workload = read("luns", "4 KiB reads, depth 32, of one LUN and of all");
    pair(run, &workload, &[one, all], sizes.span_bytes, GROWTH_MAX)
}

/// A configuration with so many null disks, all mapped to one target.
fn many_disks(count: u16) -> String {
    let (mut disks, mut luns) = (String::new(), String::new());
    for number in 0..count {
        let comma = if number == 0 { "" } else { "," };
        let _ = write!(
            disks,
            r#"{comma}"d{number}":{{"format":"null","size_bytes":1073741824,"sector_size_bytes":512,
            "uuid":"00000000-0000-4000-8000-{number:012x}","cache":"direct"}}"#
        );
        let _ = write!(luns, r#"{comma}"{number}":{{"disk":"d{number}"}}"#);
    }
    format!(
        r#"{{"version":1,"portals":[],"disks":{{{disks}}},
        "targets":{{"compare":{{"iqn":"{TARGET}","luns":{{{luns}}},"allow":["any"]}}}}}}"#
    )
}

fn disks(run: &mut Run<'_>, sizes: &Sizes) -> Result<(), String> {
    let server = Lunaring::start(&run.launcher, &run.folder.join("sizes"), &run.server_cpus())?;
    let lunaring = |label: &str, lun| Contender::new(label, server.portal, TARGET, lun, server.pid());
    server.disk("small", 0, &["--size", "1G"])?;
    server.disk("huge", 1, &["--size", "64T"])?;
    server.disk("single", 2, &["--size", "1G"])?;
    server.disk("deep", 3, &["--size", "1G"])?;
    let workload = read("empty", "4 KiB reads, depth 32, anywhere on empty disks");
    pair(run, &workload, &[lunaring("1 GiB, empty", 0), lunaring("64 TiB, empty", 1)], 0, GROWTH_MAX)?;
    for (label, lun) in [("small", 0), ("huge", 1), ("single", 2), ("deep", 3)] {
        measure::fill(&lunaring(label, lun), sizes.span_bytes)?;
    }
    deepen(&server, &lunaring("deep", 3), "deep", sizes.chain, sizes.span_bytes)?;
    let workload = read("size", "4 KiB reads, depth 32, of written blocks");
    pair(run, &workload, &[lunaring("1 GiB", 0), lunaring("64 TiB", 1)], sizes.span_bytes, GROWTH_MAX)?;
    let workload = read("chain", "4 KiB reads, depth 32, through chains");
    let deep = format!("chain of {}", sizes.chain);
    pair(run, &workload, &[lunaring("chain of 1", 2), lunaring(&deep, 3)], sizes.span_bytes, GROWTH_MAX)
}

/// The generator keeps its CPU, so where there are two CPUs in all it shares one with the second shard: only CPU time
/// means something here, not I/Os per second.
fn shards(run: &mut Run<'_>, sizes: &Sizes) -> Result<(), String> {
    let cpus = [run.server_cpus(), format!("{},{}", run.options.server_cpu, run.options.own_cpu)];
    let mut servers = vec![];
    for (cpus, name) in cpus.iter().zip(["one-shard", "two-shards"]) {
        let server = Lunaring::start(&run.launcher, &run.folder.join(name), cpus)?;
        server.disk("null", 0, &["--size", "1G", "--format", "null"])?;
        servers.push(server);
    }
    let contender = |label: &str, at: usize| Contender::new(label, servers[at].portal, TARGET, 0, servers[at].pid());
    let workload = Workload { connections: 16, ..read("shards", "4 KiB reads, 16 sessions with depth 32") };
    let two = [contender("one shard", 0), contender("two shards", 1)];
    pair(run, &workload, &two, sizes.span_bytes, SHARDS_GROWTH_MAX)
}
