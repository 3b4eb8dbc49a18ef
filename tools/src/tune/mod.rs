//! `tools tune`: sets a network card up so that its receive queue k interrupts the core of shard k, and takes it back.
//!
//! A shard owns the connections whose packets its core receives ([`lunaring::control::cpus`] says which cores those
//! are). That costs nothing when the card spreads connections over as many queues as there are shards and each queue
//! interrupts its shard's core; the rest of the settings keep a full link from losing packets and small commands from
//! waiting. `perf/README.md` has the reasons, a line for each.
//!
//! | part | what it knows |
//! |---|---|
//! | [`system`] | files below `/sys` and `/proc`, and the program `ethtool`; the tests put another one in its place |
//! | [`card`] | reads what a card is and how it is set |
//! | [`plan`] | what is to be set, from what is and which cores the shards have; does nothing itself |
//! | [`saved`] | what was there before, in a file below `/run`: gone at the next boot, as the settings are |
//!
//! Channels are set first: a card has other interrupts afterwards. What was is written down before anything is changed,
//! and what had already been written down stays, so that `--undo` leads back to before the first `--apply`.

mod card;
mod plan;
mod saved;
mod system;
#[cfg(test)]
mod tests;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use lunaring::control::cpus;
use lunaring::shard::placement;

use self::card::Card;
use self::plan::{Step, Wishes};
use self::saved::Saved;
use self::system::{Host, System};

/// Which card, and what to do with it.
#[derive(clap::Args)]
pub struct Arguments {
    /// The network device, for example eth0.
    device: String,
    /// The cores of the shards, as in `lunaring serve --cores`; without it, those that the server takes by itself.
    #[arg(long, value_name = "LIST")]
    cores: Option<String>,
    /// Set the largest frame too; every switch and host of the network must have it.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1280..=65535))]
    mtu: Option<u32>,
    /// Microseconds that the card gathers packets for before it interrupts.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(0..=1000))]
    rx_usecs: u32,
    /// Set it. Needs root; a card may lose its link for a second when its queues change.
    #[arg(long, conflicts_with = "undo")]
    apply: bool,
    /// Set back what `--apply` has changed. Needs root.
    #[arg(long)]
    undo: bool,
    /// Where what was is kept [/run/lunaring/tune-DEVICE.json]
    #[arg(long, value_name = "FILE")]
    saved: Option<PathBuf>,
}

/// Print, set or set back; fails when something could not be read or set.
pub fn run(arguments: &Arguments) -> ExitCode {
    let path = arguments.saved.clone().unwrap_or_else(|| saved::usual_path(&arguments.device));
    let done = if arguments.undo {
        undo(&Host, &path)
    } else {
        wishes(arguments)
            .and_then(|wishes| set_up(&Host, &arguments.device, &wishes, arguments.apply.then_some(path.as_path())))
    };
    match done {
        Ok(lines) => {
            // Somebody who has seen enough is no failure.
            let _ = writeln!(std::io::stdout(), "{lines}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("tune: {why}");
            ExitCode::FAILURE
        }
    }
}

fn wishes(arguments: &Arguments) -> Result<Wishes, String> {
    let usable = placement::allowed_cpus();
    let wanted = match &arguments.cores {
        Some(list) => Some(placement::parse_cores(list, &usable).map_err(|error| error.to_string())?),
        None => None,
    };
    let cores = cpus::place(&usable, wanted).shards;
    Ok(Wishes { cores, mtu: arguments.mtu, rx_usecs: arguments.rx_usecs })
}

/// What is to be done and, with `saved`, doing it. The text says what was found and changed.
fn set_up(system: &impl System, device: &str, wishes: &Wishes, saved: Option<&Path>) -> Result<String, String> {
    let card = Card::read(system, device)?;
    let mut lines = vec![card.describe(), String::new()];
    let Some(path) = saved else {
        lines.push(plan::queues(&card, wishes));
        lines.push(plan::table(&plan::all(system, &card, wishes)));
        lines.extend(plan::notes(system, &card, wishes));
        lines.push("Nothing was changed: --apply sets what differs, --undo sets it back.".to_owned());
        return Ok(lines.join("\n"));
    };
    let mut record = Saved::load(system, path)?;
    let mut outcome = Outcome::default();
    carry_out(system, path, &mut record, plan::channels(&card, wishes), &mut outcome)?;
    // Other channels have other interrupts and queues.
    let card = Card::read(system, device)?;
    carry_out(system, path, &mut record, plan::all(system, &card, wishes), &mut outcome)?;
    let card = Card::read(system, device)?;
    let Outcome { taken, refused, mut failures } = outcome;
    failures.extend(not_as_wanted(&taken, &plan::all(system, &card, wishes)));
    lines.push(plan::queues(&card, wishes));
    lines.extend(taken.iter().map(|step| format!("{}: {} -> {}", step.name, step.now, step.wanted)));
    lines.extend(refused);
    lines.extend(plan::notes(system, &card, wishes));
    lines.push(match (taken.is_empty(), record.is_empty()) {
        (true, true) => "All is as it should be; nothing was changed.".to_owned(),
        (true, false) => format!("All that can be set is set. What was before is in {}.", path.display()),
        (false, _) => format!("Set. What was before is in {}; --undo sets it back.", path.display()),
    });
    if failures.is_empty() {
        Ok(lines.join("\n"))
    } else {
        Err(format!("{}\n{}", lines.join("\n"), failures.join("\n")))
    }
}

/// How the steps went.
#[derive(Default)]
struct Outcome {
    /// Those that were taken.
    taken: Vec<Step>,
    /// In words: what the driver has no such thing for, which is how many cards are.
    refused: Vec<String>,
    /// In words: what went wrong.
    failures: Vec<String>,
}

/// Take the steps that change something; one that fails does not keep the others. Fails as a whole, with nothing
/// changed, when what was can not be written down.
fn carry_out(
    system: &impl System,
    path: &Path,
    record: &mut Saved,
    steps: Vec<Step>,
    outcome: &mut Outcome,
) -> Result<(), String> {
    let wanted: Vec<Step> = steps.into_iter().filter(Step::differs).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    wanted.iter().for_each(|step| record.remember(step));
    record.store(system, path)?;
    for step in wanted {
        match step.setting.set(system, &step.wanted) {
            Ok(()) => outcome.taken.push(step),
            Err(why) => {
                record.forget(&step);
                if why.contains("not supported") {
                    outcome.refused.push(format!("{} stays {}: this card has no such setting", step.name, step.now));
                } else {
                    outcome.failures.push(format!("{} could not be set to {}: {why}", step.name, step.wanted));
                }
            }
        }
    }
    record.store(system, path)
}

/// Steps that were taken without a complaint and yet are not as wanted: drivers round, and some only say yes.
fn not_as_wanted(taken: &[Step], now: &[Step]) -> Vec<String> {
    let found = |step: &Step| now.iter().find(|other| other.setting == step.setting && other.differs());
    let told = |step| found(step).map(|other| format!("{} was set to {} but is {}", step.name, step.wanted, other.now));
    taken.iter().filter_map(told).collect()
}

/// Set everything back, the last change first, and forget it. What could not be set back stays in the file.
fn undo(system: &impl System, path: &Path) -> Result<String, String> {
    let mut record = Saved::load(system, path)?;
    if record.is_empty() {
        return Err(format!(
            "nothing to undo: {} is not there. Was --apply used since the machine started?",
            path.display()
        ));
    }
    let mut lines = Vec::new();
    let mut left = Vec::new();
    while let Some(old) = record.take_last() {
        if old.setting.is_gone(system) {
            // A queue that a later --apply took away; the driver makes it anew.
            continue;
        }
        match old.setting.set(system, &old.was) {
            Ok(()) => lines.push(format!("{}: {}", old.name, old.was)),
            Err(why) => {
                lines.push(format!("{}: could not be set back to {}: {why}", old.name, old.was));
                left.push(old);
            }
        }
    }
    let all_back = left.is_empty();
    left.into_iter().rev().for_each(|old| record.put_back(old));
    record.store(system, path)?;
    let text = lines.join("\n");
    if all_back { Ok(text) } else { Err(format!("{text}\nWhat is left stays in {}.", path.display())) }
}
