//! What an I/O costs without files: null and memory disks beside the bare reference and others.

use super::measure::Workload;
use super::servers::{Bare, Lunaring, TARGET, TGT_TARGET, written_file};
use super::{Cell, Contender, Run, cpu, of, other, tgt};
use crate::load::Mix;

/// What 4 KiB reads of the bare reference cost where the owed figures in microseconds come from.
const BARE_READ_US: f64 = 0.64;

/// The labels of what digests are compared with.
const NULL_PLAIN: &str = "null, without";
const MEMORY_PLAIN: &str = "memory, without";

pub(super) fn workloads() -> Vec<Workload> {
    vec![
        Workload::new("read-4k", "4 KiB random read, depth 32", 4096, 0, 32),
        Workload {
            digests: true,
            ..Workload::new("read-4k-digests", "4 KiB random read, depth 32, both digests", 4096, 0, 32)
        },
        Workload::new("read-128k", "128 KiB read, depth 8", 128 << 10, 0, 8),
        Workload::new("write-4k", "4 KiB random write, depth 32", 4096, 100, 32),
        Workload::new("write-128k", "128 KiB write, depth 8", 128 << 10, 100, 8),
        Workload {
            mix: Mix::parse("4K:70,64K:30").unwrap_or(Mix::of(4096)),
            ..Workload::new("mixed", "70 % 4 KiB and 30 % 64 KiB, 30 % of them writes, depth 32", 4096, 30, 32)
        },
    ]
}

pub(super) fn run(run: &mut Run<'_>) -> Result<(), String> {
    let cpus = run.server_cpus();
    let bare = Bare::start(&cpus, false, None)?;
    let server = Lunaring::start(&run.launcher, &run.folder.join("cost"), &cpus)?;
    server.disk("null", 0, &["--size", "1G", "--format", "null"])?;
    server.disk("memory", 1, &["--size", "1G", "--format", "memory"])?;
    let small = run.folder.join("small");
    written_file(&small, 1 << 20)?;
    let tgt = tgt(run.options, &run.folder.join("cost-tgt"), &small);
    let lunaring = |label: &str, lun| Contender::new(label, server.portal, TARGET, lun, server.pid());
    let mut contenders =
        vec![Contender::bare("bare", bare.portal, bare.pid()), lunaring("null", 0), lunaring("memory", 1)];
    contenders
        .extend(tgt.as_ref().map(|tgt| Contender::new("tgt null", tgt.portal, TGT_TARGET, 1, tgt.pid()).optional()));
    for text in &run.options.with {
        contenders.push(other(text)?);
    }
    let span_bytes = if run.options.quick { 16 << 20 } else { 256 << 20 };
    super::measure::fill(&contenders[2], span_bytes)?;
    let mut effort = run.effort(span_bytes);
    let mut reads: Vec<Cell> = vec![];
    for workload in workloads() {
        effort.span_bytes = span_bytes;
        let mut contenders = contenders.clone();
        if workload.digests {
            // In the same rounds: what a slow minute does to one it does to the other.
            contenders.extend([contenders[1].plain(NULL_PLAIN), contenders[2].plain(MEMORY_PLAIN)]);
        }
        let cells = run.table(&workload, &contenders, &effort)?;
        if workload.key == "read-4k" {
            reads.clone_from(&cells);
        }
        owed(run, workload.key, &cells, &reads);
    }
    let own = of(&reads, "null").map(|cell| cell.own_cpu_us);
    // The instrument's own limit was set on the machine whose reference cost BARE_READ_US.
    let scale = cpu(&reads, "bare").unwrap_or(f64::NAN) / BARE_READ_US;
    run.owed("the instrument's own CPU per 4 KiB read", "us", own, 0.95 * scale);
    Ok(())
}

/// The table of what is owed, as multiples of the reference in the same run: machines and hours differ in speed.
fn owed(run: &mut Run<'_>, key: &str, cells: &[Cell], reads: &[Cell]) {
    let reference = cpu(reads, "bare").unwrap_or(f64::NAN);
    let over_read = |label: &str| Some(cpu(cells, label)? / reference);
    let over_same = |label: &str| of(cells, label)?.ratio;
    let over_plain = |label: &str, plain: &str| Some(of(cells, label)?.ratio? / of(cells, plain)?.ratio?);
    match key {
        "read-4k" => {
            run.owed("4 KiB reads, null", "x bare", over_same("null"), 1.3);
            run.owed("4 KiB reads, memory", "x bare", over_same("memory"), 1.25 / BARE_READ_US);
        }
        "write-4k" => {
            run.owed("4 KiB writes, null", "x bare reads", over_read("null"), 0.9 / BARE_READ_US);
            run.owed("4 KiB writes, memory", "x bare reads", over_read("memory"), 1.5 / BARE_READ_US);
        }
        "read-128k" => {
            run.owed("128 KiB reads, null", "x bare", over_same("null"), 14.0 / 14.4);
            run.owed("128 KiB reads, memory", "x bare", over_same("memory"), 22.0 / 14.4);
        }
        "write-128k" => {
            run.owed("128 KiB writes, null", "x bare", over_same("null"), 14.0 / 12.3);
            run.owed("128 KiB writes, memory", "x bare", over_same("memory"), 26.0 / 12.3);
        }
        "read-4k-digests" => {
            run.owed("both digests, null", "x without", over_plain("null", NULL_PLAIN), 1.10);
            run.owed("both digests, memory", "x without", over_plain("memory", MEMORY_PLAIN), 1.10);
        }
        _ => {}
    }
}
