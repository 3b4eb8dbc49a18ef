//! Client commands: talk to the control socket, print tables or JSON.
//!
//! **May know:** only the HTTP API's JSON. A client works with any server that speaks the same version of it, so
//! nothing here shares types with the server.

pub mod arguments;
pub mod banner;
mod client;
mod commands;
mod entrance;
mod images;
mod operation;
mod ports;
mod progress;
mod settings;
mod show;
mod table;

pub use arguments::{Arguments, Command};
pub use client::{Client, ClientError};
pub use images::{FileCommand, checked, conversion, file_command};
pub use operation::config_checked;
pub use progress::ProgressLine;

use std::fmt;
use std::path::PathBuf;

use clap::Parser;

/// Where a server's control socket is when nobody says otherwise.
pub const SOCKET_DEFAULT: &str = "/run/lunaring/control.sock";

/// Read the command line. Help and version are printed and end the process, as does a usage error: one line and
/// status 2.
pub fn parse() -> Arguments {
    match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) if error.use_stderr() => {
            eprintln!("lunaring: {}", one_line(&error.to_string()));
            std::process::exit(2);
        }
        Err(help) => help.exit(),
    }
}

/// Carry out a client command and give what is to be printed.
///
/// # Errors
/// One clear line.
pub fn run(command: Command) -> Result<String, ClientError> {
    match command {
        Command::Disk(disk) => commands::disk(disk),
        Command::Target(target) => commands::target(target),
        Command::Portal(portal) => commands::portal(portal),
        Command::Discovery(discovery) => entrance::discovery(discovery),
        Command::Chap(chap) => entrance::chap(chap),
        Command::Isns(isns) => entrance::isns(isns),
        Command::Settings(settings) => settings::settings(settings),
        Command::Session(session) => commands::session(session),
        Command::Reservation(reservation) => ports::reservation(reservation),
        Command::Stats(stats) => commands::stats(stats),
        Command::Top(top) => operation::top(top),
        Command::Config(config) => operation::config(config),
        Command::Trace(trace) => images::trace(trace),
        Command::Snapshot(snapshot) => images::snapshot(snapshot),
        Command::Job(job) => images::job(job),
        Command::Serve(_) | Command::Demo(_) => Err(ClientError::new("this command is not a client's")),
    }
}

/// A usage error as clap writes it, on one line: what is wrong, and where help is.
fn one_line(error: &str) -> String {
    let mut what = String::new();
    let mut usage = None;
    for line in error.lines().map(str::trim) {
        if let Some(shown) = line.strip_prefix("Usage: ") {
            usage = Some(shown);
        } else if !line.is_empty() && !line.starts_with("For more information") {
            if !what.is_empty() {
                what.push(' ');
            }
            what.push_str(line.strip_prefix("error: ").unwrap_or(line));
        }
    }
    // A command without its subcommand gets its whole help from clap; the usage says enough.
    match usage {
        Some(usage) if what.len() > 400 || what.is_empty() => format!("incomplete command; usage: {usage}"),
        Some(usage) => format!("{what}; usage: {usage}"),
        None => format!("{what}; see 'lunaring --help'"),
    }
}

/// The control socket that a client means.
fn socket(given: Option<PathBuf>) -> PathBuf {
    given.unwrap_or_else(|| PathBuf::from(SOCKET_DEFAULT))
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_usage_error_is_one_line() {
        for bad in [
            &["lunaring"][..],
            &["lunaring", "disk"],
            &["lunaring", "disk", "create", "x"],
            &["lunaring", "disk", "create", "x", "--size", "10X"],
            &["lunaring", "disk", "resize", "x"],
            &["lunaring", "target", "unmap", "t", "--lun", "70000"],
            &["lunaring", "target", "auth", "t"],
            &["lunaring", "serve"],
        ] {
            let error = Arguments::try_parse_from(bad).unwrap_err();
            let line = one_line(&error.to_string());
            assert!(!line.contains('\n') && line.len() < 420 && !line.is_empty(), "{bad:?}: {line}");
        }
        let error = Arguments::try_parse_from(["lunaring", "disk", "create", "x", "--size", "10X"]).unwrap_err();
        assert!(
            one_line(&error.to_string()).contains("'10X' is not a size; write bytes, or a number with K, M, G or T")
        );
    }
}
