//! `tools sim`: run simulation scenarios, or repeat one that failed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use lunaring::sim::scenario::{Report, Run, SCENARIOS, Scenario, find};

/// What to run.
#[derive(clap::Args)]
pub struct Arguments {
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many seeds, counting up.
    #[arg(long, default_value_t = 1)]
    count: u64,
    /// Only this scenario; all of them otherwise.
    #[arg(long)]
    scenario: Option<String>,
    /// Say what scenarios there are.
    #[arg(long)]
    list: bool,
    /// Run every seed twice and compare the histories.
    #[arg(long)]
    twice: bool,
    /// Print every event.
    #[arg(long)]
    trace: bool,
    /// Say only what failed.
    #[arg(long)]
    quiet: bool,
}

/// Run; fails if any run did.
pub fn run(arguments: &Arguments) -> ExitCode {
    if arguments.list {
        for scenario in SCENARIOS {
            println!("{:<12} {}", scenario.name, scenario.about);
        }
        return ExitCode::SUCCESS;
    }
    let chosen: Vec<&Scenario> = match &arguments.scenario {
        None => SCENARIOS.iter().collect(),
        Some(name) => match find(name) {
            Some(scenario) => vec![scenario],
            None => {
                eprintln!("there is no scenario '{name}'; `tools sim --list` names them");
                return ExitCode::from(2);
            }
        },
    };
    let mut failures = 0u64;
    for seed in arguments.seed..arguments.seed.saturating_add(arguments.count) {
        for scenario in &chosen {
            failures += u64::from(!run_one(scenario, seed, arguments));
        }
    }
    if failures == 0 {
        return ExitCode::SUCCESS;
    }
    eprintln!("{failures} runs failed");
    ExitCode::FAILURE
}

fn run_one(scenario: &Scenario, seed: u64, arguments: &Arguments) -> bool {
    let name = scenario.name;
    let start = Instant::now();
    let run = Run { seed, is_printed: arguments.trace };
    let result = attempt(scenario, run).and_then(|report| {
        if arguments.twice && attempt(scenario, run)? != report {
            return Err("the second run of this seed was another".to_owned());
        }
        Ok(report)
    });
    match result {
        Ok(report) => {
            if !arguments.quiet {
                println!("{name} {seed}: {} ({} ms)", describe(&report), start.elapsed().as_millis());
            }
            true
        }
        Err(why) => {
            eprintln!("{name} {seed}: FAILED: {why}");
            eprintln!("repeat it with: cargo run -p tools -- sim --scenario {name} --seed {seed}");
            false
        }
    }
}

/// A broken assertion is a failure like others; where it broke has been printed already.
fn attempt(scenario: &Scenario, run: Run) -> Result<Report, String> {
    catch_unwind(AssertUnwindSafe(|| (scenario.run)(run))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned())).unwrap_or_default())
    })
}

fn describe(report: &Report) -> String {
    let sum = |of: fn(&lunaring::sim::InitiatorReport) -> u32| report.initiators.iter().map(of).sum::<u32>();
    format!(
        "{} initiators, {} logins, {} good, {} failed, {} retried, {} aborted, {} lost; {} events in {} ms, {:016x}",
        report.initiators.len(),
        sum(|r| r.logins),
        sum(|r| r.good),
        sum(|r| r.failed),
        sum(|r| r.retried),
        sum(|r| r.aborted),
        sum(|r| r.lost),
        report.events,
        report.time.0 / 1_000_000,
        report.hash,
    )
}
