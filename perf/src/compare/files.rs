//! What an I/O costs on files: raw, VHDX and a chain beside the bare reference with a bare file behind it; and what
//! first writes into a dynamic VHDX cost beside overwrites.

use std::time::Duration;

use super::measure::{self, Workload};
use super::servers::{Bare, Lunaring, TARGET, TGT_TARGET, written_file};
use super::{Cell, Contender, Run, cost, cpu, tgt};
use crate::load::{Mix, Order};

/// Layers of the chain.
const CHAIN: u32 = 16;
/// What the file path may cost beyond the references, in microseconds, where 4 KiB reads of the bare socket cost 0.64.
const OWN_SHARE_US: f64 = 0.5;

pub(super) fn run(run: &mut Run<'_>) -> Result<(), String> {
    let cpus = run.server_cpus();
    let span_bytes: u64 = if run.options.quick { 16 << 20 } else { 256 << 20 };
    let plain = run.folder.join("bare.raw");
    written_file(&plain, span_bytes)?;
    let bare_file = Bare::start(&cpus, false, Some(&plain))?;
    let bare = Bare::start(&cpus, false, None)?;
    let server = Lunaring::start(&run.launcher, &run.folder.join("files"), &cpus)?;
    let lunaring = |label: &str, lun| Contender::new(label, server.portal, TARGET, lun, server.pid());
    server.disk("raw", 0, &["--size", "1G", "--format", "raw"])?;
    server.disk("vhdx", 1, &["--size", "1G"])?;
    server.disk("chain", 2, &["--size", "1G"])?;
    for (label, lun) in [("raw", 0), ("vhdx", 1), ("chain", 2)] {
        measure::fill(&lunaring(label, lun), span_bytes)?;
    }
    deepen(&server, &lunaring("chain", 2), "chain", CHAIN, span_bytes)?;
    let tgt_file = run.folder.join("tgt.raw");
    written_file(&tgt_file, span_bytes)?;
    let tgt = tgt(run.options, &run.folder.join("files-tgt"), &tgt_file);
    let mut contenders = vec![
        Contender::bare("bare file", bare_file.portal, bare_file.pid()),
        Contender::bare("bare", bare.portal, bare.pid()),
        lunaring("raw", 0),
        lunaring("vhdx", 1),
        lunaring("chain of 16", 2),
    ];
    contenders
        .extend(tgt.as_ref().map(|tgt| Contender::new("tgt file", tgt.portal, TGT_TARGET, 2, tgt.pid()).optional()));
    let mut scale = f64::NAN;
    for workload in cost::workloads().into_iter().filter(|workload| !workload.digests) {
        let (key, title) = names(workload.key);
        let cells = run.table(&Workload { key, title, ..workload }, &contenders, &run.effort(span_bytes))?;
        if key == "file-read-4k" {
            scale = cpu(&cells, "bare").unwrap_or(f64::NAN) / 0.64;
        }
        owed(run, key, &cells, scale);
    }
    first_writes(run, &server, span_bytes)
}

/// The same workloads are others on files.
fn names(key: &str) -> (&'static str, &'static str) {
    match key {
        "read-4k" => ("file-read-4k", "Files: 4 KiB random read, depth 32"),
        "write-4k" => ("file-write-4k", "Files: 4 KiB random overwrite, depth 32"),
        "read-128k" => ("file-read-128k", "Files: 128 KiB read, depth 8"),
        "write-128k" => ("file-write-128k", "Files: 128 KiB overwrite, depth 8"),
        _ => ("file-mixed", "Files: 70 % 4 KiB and 30 % 64 KiB, 30 % of them writes, depth 32"),
    }
}

fn owed(run: &mut Run<'_>, key: &str, cells: &[Cell], scale: f64) {
    let what = match key {
        "file-read-4k" => "reads",
        "file-write-4k" => "overwrites",
        _ => return,
    };
    let bound = cpu(cells, "bare file").unwrap_or(f64::NAN) + OWN_SHARE_US * scale;
    for label in ["raw", "vhdx"] {
        run.owed(&format!("4 KiB {what}, {label} beside bare file"), "us", cpu(cells, label), bound);
    }
    let beside = cpu(cells, "vhdx").zip(cpu(cells, "raw")).map(|(vhdx, raw)| vhdx / raw);
    run.owed(&format!("4 KiB {what}, vhdx beside raw"), "x", beside, 1.03);
}

/// Snapshots until the disk has so many layers, with some blocks of its own in each.
pub(super) fn deepen(
    server: &Lunaring,
    contender: &Contender,
    disk: &str,
    layers: u32,
    span_bytes: u64,
) -> Result<(), String> {
    for layer in 1..layers {
        server.command(&["snapshot", "create", disk, &format!("s{layer}")])?;
        let workload = Workload::new("layer", "a layer's own blocks", 4096, 100, 8);
        let effort = measure::Effort { seconds: 600.0, rounds: 1, span_bytes };
        let mut plan = measure::plan(&workload, contender, &effort);
        (plan.warm_up, plan.ios_max, plan.seed) = (Duration::ZERO, Some(200), u64::from(layer));
        plan.run().map_err(|e| format!("layer {layer} of {disk}: {e}"))?;
    }
    Ok(())
}

fn first_writes(run: &mut Run<'_>, server: &Lunaring, span_bytes: u64) -> Result<(), String> {
    println!("\nFirst writes into a dynamic VHDX, then overwrites of the same blocks, in order, depth 8");
    let rounds = run.options.rounds;
    for (bytes, size) in [(64u32 << 10, "64K"), (256 << 10, "256K"), (1 << 20, "1M")] {
        let mut ratios = vec![];
        for round in 0..rounds {
            let name = format!("fresh-{size}-{round}");
            server.disk(&name, 100, &["--size", "1T"])?;
            let contender = Contender::new(&name, server.portal, TARGET, 100, server.pid());
            let workload = Workload {
                mix: Mix::of(bytes),
                order: Order::Sequential,
                ..Workload::new("first", "first writes", bytes, 100, 8)
            };
            let mut plan = measure::plan(&workload, &contender, &run.effort(span_bytes));
            (plan.warm_up, plan.ios_max) = (Duration::ZERO, Some(span_bytes / u64::from(bytes)));
            plan.duration = Duration::from_secs(600);
            let first = plan.run().map_err(|e| format!("{name}: {e}"))?;
            let again = plan.run().map_err(|e| format!("{name}: {e}"))?;
            ratios.extend(first.server_cpu_us_per_io.zip(again.server_cpu_us_per_io));
            server.command(&["target", "unmap", "compare", "--lun", "100"])?;
            server.command(&["disk", "delete", &name])?;
        }
        ratios.sort_by(|a, b| (a.0 / a.1).total_cmp(&(b.0 / b.1)));
        let Some((first, again)) = ratios.get(ratios.len() / 2).copied() else { continue };
        println!("{size:>5}: first {first:.2} us, again {again:.2} us of server CPU each");
        run.owed(&format!("first writes of {size} beside overwrites"), "x", Some(first / again), 1.3);
    }
    Ok(())
}
