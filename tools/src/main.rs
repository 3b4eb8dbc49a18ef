//! Developer tools.

mod cost;
mod sim;
mod tune;
mod vhdx;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Developer tools of Lunaring.
#[derive(Parser)]
#[command(name = "tools")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Count the instructions that commands cost a shard, and hold their budget. Needs valgrind.
    Cost(cost::Arguments),
    /// Run whole servers on a simulated ring, disk, network and clock; one seed is one run.
    Sim(sim::Arguments),
    /// Set a network card up for Lunaring: a receive queue for each shard, on its core.
    Tune(tune::Arguments),
    /// Say what a VHDX file holds, without changing it.
    Vhdx(vhdx::Arguments),
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Cost(arguments) => cost::run(&arguments),
        Command::Sim(arguments) => sim::run(&arguments),
        Command::Tune(arguments) => tune::run(&arguments),
        Command::Vhdx(arguments) => vhdx::run(&arguments),
    }
}
