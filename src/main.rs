//! The one binary `lunaring`: the server, the demo, and the client commands.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use lunaring::cli::arguments::{Command, DemoArguments, RingFeatures, ServeArguments};
use lunaring::cli::{self, FileCommand, banner};
use lunaring::control::demo;
use lunaring::control::error::Refused;
use lunaring::control::launch::{Launch, launch};
use lunaring::control::offline;
use lunaring::control::server::Ready;

fn main() -> ExitCode {
    let command = match cli::file_command(cli::parse().command) {
        Ok(command) => return report(on_file(command)),
        Err(command) => *command,
    };
    let outcome = match command {
        Command::Serve(arguments) => serve(arguments).map_err(|refused| refused.message),
        Command::Demo(arguments) => run_demo(arguments).map_err(|refused| refused.message),
        command => printed(cli::run(command)),
    };
    report(outcome)
}

/// Print what a command gives, also when it is not good.
fn printed(outcome: Result<String, cli::ClientError>) -> Result<(), String> {
    outcome.map(|text| print(&text)).map_err(|error| {
        error.printed.iter().for_each(|text| print(text));
        error.to_string()
    })
}

/// A command on a file: no server has a part in it.
fn on_file(command: FileCommand) -> Result<(), String> {
    let refused = |refused: Refused| refused.message;
    match command {
        FileCommand::CheckConfig(file, json) => {
            let counts = offline::check_config(&file).map_err(refused)?;
            print(&cli::config_checked(&file, counts, json));
            Ok(())
        }
        FileCommand::Check(check, json) => {
            let file = Path::new(&check.image);
            let report = offline::check_file(file, check.parent.as_deref(), check.repair).map_err(refused)?;
            printed(cli::checked(&serde_json::to_value(report).map_err(|e| e.to_string())?, json))
        }
        FileCommand::Convert(convert, json) => {
            let to = std::path::absolute(&convert.to).map_err(|e| format!("{}: {e}", convert.to.display()))?;
            let shown = to.display().to_string();
            let wanted = serde_json::from_value(cli::conversion(&convert, &shown)).map_err(|e| e.to_string())?;
            let mut line = cli::ProgressLine::new(format!("converting {}", convert.image));
            let file = Path::new(&convert.image);
            offline::convert(file, convert.parent, &wanted, |done, total| line.show(done, total)).map_err(refused)?;
            drop(line);
            match json {
                true => print(&serde_json::json!({ "to": shown }).to_string()),
                false => print(&format!("{} is copied into {shown}", convert.image)),
            }
            Ok(())
        }
    }
}

fn report(outcome: Result<(), String>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            complain(&message);
            ExitCode::FAILURE
        }
    }
}

fn serve(arguments: ServeArguments) -> Result<(), Refused> {
    log_to_stderr();
    let plan = Launch {
        state: arguments.state,
        portals: arguments.portal,
        cores: arguments.cores,
        socket: arguments.socket,
        baseline: arguments.ring_features == RingFeatures::Baseline,
    };
    let ready = |ready: &Ready| print(&banner::serving(&resources(ready), arguments.json));
    end(launch(plan, async |_| Ok(()), ready)?)
}

fn run_demo(arguments: DemoArguments) -> Result<(), Refused> {
    log_to_stderr();
    let portal = match arguments.portal {
        Some(portal) => portal,
        None => demo::free_portal()?.to_string(),
    };
    let plan = Launch {
        state: arguments.dir,
        portals: vec![portal.clone()],
        cores: None,
        socket: None,
        baseline: arguments.ring_features == RingFeatures::Baseline,
    };
    let ready = |ready: &Ready| {
        let serving = banner::serving(&resources(ready), arguments.json);
        match arguments.json {
            true => print(&serving),
            false => print(&format!("{serving}\n\n{}", banner::connecting(&portal, &demo::iqn()))),
        }
    };
    end(launch(plan, demo::prepare, ready)?)
}

/// What a started server says about itself, as the API says it.
fn resources(ready: &Ready) -> serde_json::Value {
    let view = ready.handle.view();
    serde_json::json!({
        "about": ready.about,
        "socket": ready.socket,
        "portals": view.api_portals().portals,
        "disks": view.api_disks().disks,
        "targets": view.api_targets().targets,
    })
}

/// The end of a server: its troubles are warnings, for the next start repairs what they left.
fn end(troubles: Vec<String>) -> Result<(), Refused> {
    for trouble in troubles {
        complain(&format!("warning: {trouble}"));
    }
    Ok(())
}

/// Warnings and errors of the server, one line each.
fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("LUNARING_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}

/// To standard output; a reader that has gone does not need it.
fn print(text: &str) {
    if text.is_empty() {
        return;
    }
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

fn complain(message: &str) {
    let _ = writeln!(std::io::stderr().lock(), "lunaring: {message}");
}
