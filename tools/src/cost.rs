//! `tools cost`: how many instructions a command costs a shard, counted by valgrind's callgrind, held to a budget.
//!
//! Each measure runs under callgrind, which counts only inside functions named `measured_…`, without what the ring does
//! in the kernel's place, and writes its count when `measure_ends` returns. The same program has the same count on each
//! run. Another compiler, another C library, or a processor with other instructions for copying may change it a little.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use lunaring::crc32c::crc32c;
use lunaring::medium::DiskFormat;
use lunaring::sim::instant::{Access, COMMANDS_PER_TURN, Pieces, Rig, Workload};

/// How often each measure is taken; its count is divided by this.
const ROUNDS: u32 = 16;

/// By how much a count may exceed its budget, in percent.
const TOLERANCE_PERCENT: f64 = 3.0;

/// What to do.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Count, and fail when a count exceeds its budget by more than 3 %.
    Check {
        /// The budgets: a name and a number on each line.
        file: PathBuf,
    },
    /// Count, and make the counts the budgets.
    Write {
        /// Where to write them.
        file: PathBuf,
    },
    /// Run the measures, for callgrind to watch; files of disks are made in this folder.
    #[command(hide = true)]
    Measures {
        /// An empty folder.
        folder: PathBuf,
        /// Only the load of this name, for a profile.
        #[arg(long)]
        only: Option<String>,
    },
}

/// Count and compare.
pub fn run(arguments: &Arguments) -> ExitCode {
    let result = match &arguments.action {
        Action::Check { file } => count().and_then(|counts| check(&counts, file)),
        Action::Write { file } => count().and_then(|counts| write(&counts, file)),
        Action::Measures { folder, only } => run_measures(folder, only.as_deref()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("tools cost: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Loads of the whole way, by name.
const LOADS: &[(&str, DiskFormat, Access, u32, bool)] = &[
    ("read_4k_null", DiskFormat::Null, Access::Read, 4096, false),
    ("write_4k_null", DiskFormat::Null, Access::Write, 4096, false),
    ("read_512_memory", DiskFormat::Memory, Access::Read, 512, false),
    ("write_512_memory", DiskFormat::Memory, Access::Write, 512, false),
    ("read_4k_vhdx", DiskFormat::Vhdx, Access::Read, 4096, false),
    ("write_4k_vhdx", DiskFormat::Vhdx, Access::Write, 4096, false),
    ("read_4k_null_digests", DiskFormat::Null, Access::Read, 4096, true),
    ("read_512_memory_digests", DiskFormat::Memory, Access::Read, 512, true),
    ("write_512_memory_digests", DiskFormat::Memory, Access::Write, 512, true),
];

/// Single steps, by name, in the order in which they are measured.
const STEPS: &[&str] = &["parse_command", "build_data_in", "dispatch_read_10", "crc32c_48", "crc32c_4k"];

fn names() -> impl Iterator<Item = &'static str> {
    LOADS.iter().map(|load| load.0).chain(STEPS.iter().copied())
}

// ---- under callgrind ------------------------------------------------------------------------------------------------

fn run_measures(folder: &Path, only: Option<&str>) -> Result<(), String> {
    let is_wanted = |name: &str| only.is_none_or(|only| only == name);
    for (name, format, access, len_bytes, digests) in LOADS.iter().filter(|load| is_wanted(load.0)) {
        let workload = Workload { access: *access, len_bytes: *len_bytes, digests: *digests };
        let mut rig = Rig::new(*format, &folder.join(name), workload).map_err(|why| format!("{name}: {why}"))?;
        measure_begins();
        for _ in 0..ROUNDS {
            rig.offer();
            measured_turn(&mut rig);
        }
        measure_ends();
    }
    let mut pieces = Pieces::new();
    let bytes = vec![0x5a; 4096];
    for step in STEPS.iter().filter(|step| is_wanted(step)) {
        measure_begins();
        for _ in 0..ROUNDS {
            measured_step(step, &mut pieces, &bytes);
        }
        measure_ends();
    }
    Ok(())
}

#[inline(never)]
fn measured_turn(rig: &mut Rig) {
    rig.turn();
}

#[inline(never)]
fn measured_step(step: &str, pieces: &mut Pieces, bytes: &[u8]) {
    let digest = |len: usize| {
        for _ in 0..COMMANDS_PER_TURN {
            std::hint::black_box(crc32c(std::hint::black_box(&bytes[..len])));
        }
    };
    match step {
        "parse_command" => pieces.parse(),
        "build_data_in" => pieces.build(),
        "dispatch_read_10" => pieces.dispatch(),
        "crc32c_48" => digest(48),
        _ => digest(4096),
    }
}

/// Callgrind writes what it has counted when this is called, and starts at zero: what the ring did before, outside of
/// any measure, was counted too, and nobody reads that.
#[inline(never)]
fn measure_begins() {
    std::hint::black_box(());
}

/// Callgrind writes what it has counted when this returns.
#[inline(never)]
fn measure_ends() {
    std::hint::black_box(());
}

// ---- around callgrind -----------------------------------------------------------------------------------------------

/// Instructions per command of every measure.
fn count() -> Result<Vec<(&'static str, f64)>, String> {
    let folder = std::env::temp_dir().join(format!("lunaring-cost-{}", std::process::id()));
    fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let counted = count_in(&folder);
    // What cannot be removed is the temporary directory's business.
    let _ = fs::remove_dir_all(&folder);
    counted
}

fn count_in(folder: &Path) -> Result<Vec<(&'static str, f64)>, String> {
    let program = std::env::current_exe().map_err(|error| format!("this program's own path: {error}"))?;
    let out = folder.join("out");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--dump-instr=no", "--toggle-collect=*cost::measured_*"])
        .args(["--toggle-collect=*instant::ring::fill*", "--dump-before=*cost::measure_begins*"])
        .arg("--dump-after=*cost::measure_ends*")
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(program)
        .args(["cost", "measures"])
        .arg(folder)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("valgrind cannot be run ({error}); it is in the package of that name"))?;
    if !output.status.success() {
        return Err(format!("under valgrind: {}", String::from_utf8_lossy(&output.stderr)));
    }
    let mut counts = Vec::new();
    for (name, number) in names().zip(1..) {
        // Two files for each measure: what came before it, and its own.
        let path = folder.join(format!("out.{}", 2 * number));
        let text = fs::read_to_string(&path).map_err(|error| format!("{name}: {}: {error}", path.display()))?;
        let summary = text.lines().find_map(|line| line.strip_prefix("totals: ").or(line.strip_prefix("summary: ")));
        let instructions: f64 = summary
            .and_then(|number| number.trim().parse().ok())
            .filter(|instructions| *instructions > 0.0)
            .ok_or_else(|| format!("{name}: callgrind has counted nothing; have its functions been inlined?"))?;
        counts.push((name, instructions / f64::from(ROUNDS * COMMANDS_PER_TURN)));
    }
    Ok(counts)
}

fn write(counts: &[(&str, f64)], file: &Path) -> Result<(), String> {
    let lines: Vec<String> = counts.iter().map(|(name, count)| format!("{name} {count:.1}\n")).collect();
    print!("{}", lines.concat());
    let head = "# Instructions per command, by `tools cost write`. Exceeding one by more than 3 % fails tests/run.\n";
    fs::write(file, format!("{head}{}", lines.concat())).map_err(|error| format!("{}: {error}", file.display()))
}

fn check(counts: &[(&str, f64)], file: &Path) -> Result<(), String> {
    let text = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let mut exceeded = Vec::new();
    println!("{:<28} {:>10} {:>10} {:>8}", "instructions per command", "budget", "counted", "change");
    for (name, count) in counts {
        let budget = text.lines().filter_map(|line| line.split_once(' ')).find(|line| line.0 == *name);
        let budget: f64 = budget
            .and_then(|line| line.1.trim().parse().ok())
            .ok_or_else(|| format!("{} has no budget for {name}", file.display()))?;
        let change = (count / budget - 1.0) * 100.0;
        println!("{name:<28} {budget:>10.1} {count:>10.1} {change:>7.1}%");
        if change > TOLERANCE_PERCENT {
            exceeded.push(format!("{name}: {count:.1} instead of {budget:.1} ({change:+.1} %)"));
        }
    }
    if exceeded.is_empty() {
        return Ok(());
    }
    Err(format!(
        "more instructions than the budget of {} allows: {}. Make it cheaper; or say in the commit why it must be so, \
         and run `tools cost write`",
        file.display(),
        exceeded.join("; ")
    ))
}
