//! What is kept of a run: one line of JSON, appended to a history.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::{Cell, Options};

/// The history's file name.
pub const HISTORY: &str = "history.jsonl";

/// A figure beside what is owed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Check {
    /// In words.
    pub what: String,
    /// Of figure and bound.
    pub unit: String,
    /// What was found.
    pub figure: f64,
    /// What it may be at most.
    pub bound: f64,
    /// Whether it is.
    pub holds: bool,
}

/// One run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Seconds since 1970.
    pub at: u64,
    /// The source's commit, with `+` when there were changes.
    pub commit: String,
    /// The processor, as it calls itself.
    pub processor: String,
    /// The kernel.
    pub kernel: String,
    /// The load average before the run: above a half, others were at work too.
    pub load_before: f64,
    /// Each measurement, in seconds.
    pub seconds: f64,
    /// Rounds.
    pub rounds: usize,
    /// Only a trial of the instrument.
    pub quick: bool,
    /// Every workload on every contender.
    pub cells: Vec<Cell>,
    /// What is owed.
    pub checks: Vec<Check>,
}

fn text_of(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

impl Record {
    /// An empty one of now and here.
    pub(super) fn begin(options: &Options) -> Record {
        let processor = text_of("/proc/cpuinfo");
        let processor = processor.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|text| !text.is_empty());
        let commit = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_default();
        Record {
            at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            commit: commit + if changed { "+" } else { "" },
            processor: processor.map_or(String::new(), |(_, name)| name.to_owned()),
            kernel: text_of("/proc/sys/kernel/osrelease").trim().to_owned(),
            load_before: text_of("/proc/loadavg").split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0.0),
            seconds: options.seconds,
            rounds: options.rounds,
            quick: options.quick,
            cells: vec![],
            checks: vec![],
        }
    }

    /// Append it to the history in this folder; the whole history, this run last.
    pub(super) fn append(&self, folder: &Path) -> Result<Vec<Record>, String> {
        let path = folder.join(HISTORY);
        let at = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        fs::create_dir_all(folder).map_err(|e| at(&e))?;
        let line = serde_json::to_string(self).map_err(|e| at(&e))?;
        let mut file = fs::File::options().create(true).append(true).open(&path).map_err(|e| at(&e))?;
        writeln!(file, "{line}").map_err(|e| at(&e))?;
        let text = fs::read_to_string(&path).map_err(|e| at(&e))?;
        // A line of a later or an earlier form is left out of the drawing, not an end of it.
        Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }
}
