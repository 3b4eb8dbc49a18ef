//! Client commands that watch a server, and take its configuration as a whole.

use std::collections::BTreeMap;
use std::fs;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use hyper::Method;
use serde_json::{Value, json};

use super::arguments::{ConfigArguments, ConfigVerb, TopArguments};
use super::client::ClientError;
use super::commands::{Asker, Printed};
use super::show;

/// `lunaring config`
pub fn config(arguments: ConfigArguments) -> Printed {
    let asker = Asker::new(arguments.client);
    match arguments.verb {
        ConfigVerb::Export => {
            let config = asker.client.request(Method::GET, "/v1/config", None)?;
            serde_json::to_string_pretty(&config).map_err(|e| ClientError::new(e.to_string()))
        }
        ConfigVerb::Check { .. } => Err(ClientError::new("a configuration is checked without a server")),
        ConfigVerb::Apply { file } => {
            let shown = file.display();
            let text = fs::read_to_string(&file).map_err(|e| ClientError::new(format!("cannot read {shown}: {e}")))?;
            let config: Value =
                serde_json::from_str(&text).map_err(|e| ClientError::new(format!("{shown} is not JSON: {e}")))?;
            let words = |replaced: &Value| applied(&shown.to_string(), replaced);
            asker.ask(Method::PUT, "/v1/config", Some(config), words)
        }
    }
}

/// A configuration is sound: how many disks, targets and portals it has.
pub fn config_checked(file: &Path, (disks, targets, portals): (usize, usize, usize), json: bool) -> String {
    let file = file.display();
    match json {
        true => json!({ "file": file.to_string(), "disks": disks, "targets": targets, "portals": portals }).to_string(),
        false => format!("{file} is sound: {disks} disks, {targets} targets, {portals} portals"),
    }
}

fn applied(file: &str, replaced: &Value) -> String {
    let mut lines = vec![format!("{file} is in force")];
    for (key, what) in [
        ("disks_added", "new disk"),
        ("disks_removed", "disk not served any more (its file is kept)"),
        ("targets_added", "new target"),
        ("targets_removed", "target gone"),
        ("targets_changed", "target changed"),
        ("portals_added", "new portal"),
        ("portals_removed", "portal gone"),
        ("warnings", "warning"),
    ] {
        for name in replaced[key].as_array().into_iter().flatten().filter_map(Value::as_str) {
            lines.push(format!("{what}: {name}"));
        }
    }
    lines.join("\n")
}

/// What a disk has done with one kind of command since the server started.
#[derive(Clone, Copy, Default)]
struct Done {
    operations: f64,
    bytes: f64,
    /// The sum of all latencies, in microseconds.
    latency_us: f64,
}

impl Done {
    fn of(operation: &Value) -> Done {
        let number = |field: &str| operation[field].as_f64().unwrap_or(0.0);
        let operations = number("operations");
        Done { operations, bytes: number("bytes"), latency_us: operations * number("latency_mean_us") }
    }

    /// What was done after `before`, for each second.
    fn since(self, before: Done, seconds: f64) -> Value {
        // A disk that was deleted and created again begins anew.
        let operations = (self.operations - before.operations).max(0.0);
        let latency = (self.latency_us - before.latency_us).max(0.0);
        json!({
            "operations_per_second": operations / seconds,
            "bytes_per_second": (self.bytes - before.bytes).max(0.0) / seconds,
            "latency_mean_us": if operations > 0.0 { latency / operations } else { 0.0 },
        })
    }
}

/// The kinds of commands that are shown.
const KINDS: [&str; 3] = ["read", "write", "flush"];

type Looked = BTreeMap<String, [Done; KINDS.len()]>;

fn look(asker: &Asker) -> Result<(Looked, Instant), ClientError> {
    let stats = asker.client.request(Method::GET, "/v1/stats", None)?;
    let disks = stats["disks"].as_array().into_iter().flatten();
    let looked = disks
        .map(|disk| (disk["disk"].as_str().unwrap_or_default().to_owned(), KINDS.map(|kind| Done::of(&disk[kind]))));
    Ok((looked.collect(), Instant::now()))
}

/// `lunaring top`
pub fn top(arguments: TopArguments) -> Printed {
    let asker = Asker::new(arguments.client);
    let mut out = std::io::stdout();
    let is_screen = out.is_terminal() && !asker.json;
    let (mut before, mut then) = look(&asker)?;
    let mut left = arguments.count;
    loop {
        std::thread::sleep(Duration::from_secs(u64::from(arguments.interval)));
        let (looked, now) = look(&asker)?;
        let rates = rates(&before, &looked, (now - then).as_secs_f64());
        (before, then) = (looked, now);
        let text = if asker.json { rates.to_string() } else { show::top(&rates) };
        left = left.map(|left| left - 1);
        if left == Some(0) {
            return Ok(text);
        }
        // A screen shows the newest look alone.
        let clear = if is_screen { "\x1b[H\x1b[J" } else { "" };
        let written = writeln!(out, "{clear}{text}").and_then(|()| out.flush());
        if written.is_err() {
            return Err(ClientError::new("nobody reads the output any more"));
        }
    }
}

fn rates(before: &Looked, looked: &Looked, seconds: f64) -> Value {
    let disks = looked.iter().map(|(name, done)| {
        let former = before.get(name).copied().unwrap_or_default();
        let mut disk = json!({ "disk": name });
        for ((kind, done), former) in KINDS.iter().zip(done).zip(former) {
            disk[*kind] = done.since(former, seconds);
        }
        disk
    });
    json!({ "seconds": seconds, "disks": disks.collect::<Vec<_>>() })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_look_tells_what_happened_since_the_one_before() {
        let before = Done::of(&json!({ "operations": 100, "bytes": 409_600, "latency_mean_us": 50.0 }));
        let after = Done::of(&json!({ "operations": 300, "bytes": 1_228_800, "latency_mean_us": 150.0 }));
        let rates = after.since(before, 2.0);
        assert_eq!(rates["operations_per_second"], 100.0);
        assert_eq!(rates["bytes_per_second"], 409_600.0);
        assert_eq!(rates["latency_mean_us"], 200.0, "(300 x 150 - 100 x 50) / 200");
        let anew = before.since(after, 1.0);
        assert_eq!((anew["operations_per_second"].as_f64(), anew["latency_mean_us"].as_f64()), (Some(0.0), Some(0.0)));
    }
}
