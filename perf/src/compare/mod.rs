//! Comparison in one run: the bare reference, Lunaring's disks, tgt and whoever else, alternating, each server on one
//! CPU and the generator on another; with the figures that the project owes itself beside those that were found.

mod cost;
mod files;
mod latency;
mod measure;
mod model;
mod record;
mod report;
mod scale;
mod servers;

use std::path::{Path, PathBuf};

use clap::ValueEnum;

pub use measure::{Cell, Contender, Effort, Workload};
pub use record::{Check, Record};

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// CPU time per I/O without files: null and memory disks.
    Cost,
    /// The same with files: raw, VHDX, chains, first writes.
    Files,
    /// Depth 1 beside the reference; open loops with mixed load.
    Latency,
    /// Sessions, logical units, disk sizes, chains, shards, idling.
    Scale,
    /// Cores that faster links would need, from the costs of 4, 64 and 256 KiB with and without digests.
    Model,
}

/// All of them, in the order in which they are best made.
pub const ALL_PARTS: [Part; 5] = [Part::Cost, Part::Files, Part::Latency, Part::Scale, Part::Model];

/// How a comparison is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// The server under test.
    pub lunaring: PathBuf,
    /// Whether tgt takes part.
    pub tgt: bool,
    /// What starts tgt's programs when they are only unpacked.
    pub tgt_runner: Option<PathBuf>,
    /// Others: LABEL=ADDR:PORT,IQN,LUN[,PID].
    pub with: Vec<String>,
    /// Everything temporary goes into a new folder below this one; disks stand there.
    pub folder: PathBuf,
    /// Where `history.jsonl` grows and `report.html` is drawn.
    pub out: PathBuf,
    /// Parts, in order.
    pub parts: Vec<Part>,
    /// Each measurement, in seconds.
    pub seconds: f64,
    /// Rounds of which the median counts.
    pub rounds: usize,
    /// Less of everything: a run that only shows that all of it works.
    pub quick: bool,
    /// The servers' CPU.
    pub server_cpu: usize,
    /// The generator's CPU.
    pub own_cpu: usize,
}

/// What the parts share.
struct Run<'a> {
    options: &'a Options,
    launcher: servers::Launcher,
    folder: PathBuf,
    record: Record,
}

impl Run<'_> {
    fn effort(&self, span_bytes: u64) -> Effort {
        Effort { seconds: self.options.seconds, rounds: self.options.rounds, span_bytes }
    }

    fn server_cpus(&self) -> String {
        self.options.server_cpu.to_string()
    }

    /// Measure, print and keep.
    fn table(&mut self, workload: &Workload, contenders: &[Contender], effort: &Effort) -> Result<Vec<Cell>, String> {
        let cells = measure::measure(workload, contenders, effort)?;
        measure::print_table(workload.title, &cells);
        self.record.cells.extend(cells.iter().cloned());
        Ok(cells)
    }

    /// A figure beside what is owed: `figure` may be at most `bound`.
    fn owed(&mut self, what: &str, unit: &str, figure: Option<f64>, bound: f64) {
        let Some(figure) = figure.filter(|f| f.is_finite() && bound.is_finite()) else { return };
        let holds = figure <= bound;
        println!("  owed: {what}: {figure:.3} {unit}, at most {bound:.3}: {}", if holds { "holds" } else { "MISSED" });
        self.record.checks.push(Check { what: what.to_owned(), unit: unit.to_owned(), figure, bound, holds });
    }
}

/// Run it, append to the history and draw the report. What is owed and was missed does not make a run fail.
pub fn run(options: &Options) -> Result<Record, String> {
    let launcher = servers::Launcher::new(&options.lunaring);
    if !crate::cost::pin(options.own_cpu) {
        return Err(format!("CPU {} can not be used", options.own_cpu));
    }
    let folder = options.folder.join(format!("compare.{}", std::process::id()));
    std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    // The servers' view of it must not depend on where they stand.
    let folder = folder.canonicalize().map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut run = Run { options, launcher, folder: folder.clone(), record: Record::begin(options) };
    let done = options.parts.iter().try_for_each(|part| match part {
        Part::Cost => cost::run(&mut run),
        Part::Files => files::run(&mut run),
        Part::Latency => latency::run(&mut run),
        Part::Scale => scale::run(&mut run),
        Part::Model => model::run(&mut run),
    });
    let _ = std::fs::remove_dir_all(&folder);
    done?;
    let record = run.record;
    let missed = record.checks.iter().filter(|check| !check.holds).count();
    println!("\n{} figures owed, {missed} missed", record.checks.len());
    let history = record.append(&options.out)?;
    let page = options.out.join("report.html");
    report::write(&page, &history)?;
    println!("{} and {}", options.out.join(record::HISTORY).display(), page.display());
    Ok(record)
}

/// The cell of this contender.
fn of<'a>(cells: &'a [Cell], contender: &str) -> Option<&'a Cell> {
    cells.iter().find(|cell| cell.contender == contender)
}

fn cpu(cells: &[Cell], contender: &str) -> Option<f64> {
    of(cells, contender)?.cpu_us
}

/// Read `LABEL=ADDR:PORT,IQN,LUN[,PID]`.
fn other(text: &str) -> Result<Contender, String> {
    let form = "--with takes LABEL=ADDR:PORT,IQN,LUN or LABEL=ADDR:PORT,IQN,LUN,PID";
    let (label, rest) = text.split_once('=').ok_or(form)?;
    let parts: Vec<&str> = rest.split(',').collect();
    let (portal, target, lun, pid) = match parts[..] {
        [portal, target, lun] => (portal, target, lun, None),
        [portal, target, lun, pid] => (portal, target, lun, Some(pid)),
        _ => return Err(form.to_owned()),
    };
    Ok(Contender {
        label: label.to_owned(),
        portal: portal.parse().map_err(|e| format!("'{portal}': {e}"))?,
        target: Some(target.to_owned()),
        luns: vec![lun.parse().map_err(|e| format!("'{lun}' is not a LUN: {e}"))?],
        pid: pid.map(|pid| pid.parse().map_err(|e| format!("'{pid}' is not a process: {e}"))).transpose()?,
        optional: true,
        plain: false,
    })
}

/// A start of tgt that is no condition: without it the others are compared.
fn tgt(options: &Options, folder: &Path, file: &Path) -> Option<servers::Tgt> {
    if !options.tgt {
        return None;
    }
    let started = servers::Tgt::start(options.tgt_runner.as_deref(), folder, &options.server_cpu.to_string(), file);
    started.map_err(|e| eprintln!("perf: without tgt: {e}")).ok()
}
