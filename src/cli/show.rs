//! Resources of the API as people read them.

mod images;
mod ports;

pub use images::{check, doing, job, job_started, jobs, metadata, resized, snapshots, taken};
pub use ports::{portgroups, reservations};

use serde_json::Value;

use super::table::{Table, properties};
use crate::units::HumanBytes;

/// A field's text; nothing when it is absent.
fn text(value: &Value, field: &str) -> String {
    match &value[field] {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn bytes(value: &Value, field: &str) -> String {
    value[field].as_u64().map(|bytes| HumanBytes(bytes).to_string()).unwrap_or_default()
}

fn list(value: &Value, field: &str) -> Vec<Value> {
    value[field].as_array().cloned().unwrap_or_default()
}

fn yes(value: &Value, field: &str) -> bool {
    value[field].as_bool().unwrap_or(false)
}

/// `disk list`
pub fn disks(answer: &Value) -> String {
    let mut table = Table::new(&["NAME", "FORMAT", "KIND", ">SIZE", ">ON FILE", "STATE", "MAPPED TO", "FILE"]);
    for disk in list(answer, "disks") {
        let has_file = disk["file"].is_string();
        table.row(vec![
            text(&disk, "name"),
            text(&disk, "format"),
            text(&disk, "kind"),
            bytes(&disk, "size_bytes"),
            if has_file { bytes(&disk, "allocated_bytes") } else { String::new() },
            disk_state(&disk),
            mappings(&disk),
            text(&disk, "file"),
        ]);
    }
    table.show("no disks; create one with 'lunaring disk create NAME --size SIZE'")
}

/// `disk show`
pub fn disk(disk: &Value) -> String {
    let mut rows = vec![("name", text(disk, "name")), ("format", text(disk, "format"))];
    let mut optional = |name: &'static str, value: String| {
        if !value.is_empty() {
            rows.push((name, value));
        }
    };
    optional("kind", text(disk, "kind"));
    optional("size", format!("{} ({} bytes)", bytes(disk, "size_bytes"), text(disk, "size_bytes")));
    optional("sector size", text(disk, "sector_size_bytes"));
    optional("block size", bytes(disk, "block_size_bytes"));
    if disk["atomic_write_bytes"].as_u64().is_some_and(|bytes| bytes > 0) {
        optional("atomic writes", format!("up to {}", bytes(disk, "atomic_write_bytes")));
    }
    if disk["file"].is_string() {
        optional("file", text(disk, "file"));
        optional("on file", bytes(disk, "allocated_bytes"));
        optional("space", images::space(disk));
        optional("cache", text(disk, "cache"));
    }
    optional("parent", text(disk, "parent"));
    optional("children", list(disk, "children").iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "));
    optional("snapshots", disk["snapshots"].as_u64().filter(|n| *n > 0).map(|n| n.to_string()).unwrap_or_default());
    optional("job", text(disk, "job"));
    optional("uuid", text(disk, "uuid"));
    optional("state", disk_state(disk));
    optional("reason", text(disk, "reason"));
    optional("mapped to", mappings(disk));
    for note in list(disk, "notes") {
        optional("note", note.as_str().unwrap_or_default().to_owned());
    }
    let properties = properties(&rows);
    match list(disk, "chain").len() {
        0 | 1 => properties,
        _ => format!("{properties}\n\n{}", images::chain(disk)),
    }
}

fn disk_state(disk: &Value) -> String {
    let state = text(disk, "state");
    if yes(disk, "read_only") { format!("{state}, read-only") } else { state }
}

fn mappings(disk: &Value) -> String {
    let mapped = list(disk, "mapped");
    mapped.iter().map(|at| format!("{}:{}", text(at, "target"), text(at, "lun"))).collect::<Vec<_>>().join(" ")
}

/// `target list`
pub fn targets(answer: &Value) -> String {
    let mut table = Table::new(&["NAME", "IQN", ">LUNS", "ALLOWED", "AUTH"]);
    for target in list(answer, "targets") {
        table.row(vec![
            text(&target, "name"),
            text(&target, "iqn"),
            list(&target, "luns").len().to_string(),
            allowed(&target),
            auth(&target),
        ]);
    }
    table.show("no targets; create one with 'lunaring target create NAME'")
}

/// `target show`
pub fn target(target: &Value) -> String {
    let mut rows = vec![
        ("name", text(target, "name")),
        ("iqn", text(target, "iqn")),
        ("allowed", allowed(target)),
        ("auth", auth(target)),
    ];
    rows.extend(list(target, "redirects").iter().map(|redirect| ("sent to", sent_to(redirect))));
    let masked = list(target, "luns").iter().any(|lun| lun["for"].is_string());
    let mut luns = match masked {
        true => Table::new(&[">LUN", "DISK", "ACCESS", "SEEN BY"]),
        false => Table::new(&[">LUN", "DISK", "ACCESS"]),
    };
    for lun in list(target, "luns") {
        let access = if yes(&lun, "read_only") { "read-only" } else { "read-write" };
        let mut row = vec![text(&lun, "lun"), text(&lun, "disk"), access.to_owned()];
        if masked {
            row.push(lun["for"].as_str().unwrap_or("all others").to_owned());
        }
        luns.row(row);
    }
    let none = format!("no LUNs; map a disk with 'lunaring target map {} DISK'", text(target, "name"));
    format!("{}\n\n{}", properties(&rows), luns.show(&none))
}

fn allowed(target: &Value) -> String {
    let rules = list(target, "allow");
    let rules: Vec<&str> = rules.iter().filter_map(Value::as_str).collect();
    if rules.is_empty() { "nobody".to_owned() } else { rules.join(" ") }
}

fn auth(target: &Value) -> String {
    let auth = &target["auth"];
    let mut shown = match (auth["chap_user"].as_str(), auth["mutual_user"].as_str()) {
        (None, _) => return "none".to_owned(),
        (Some(user), None) => format!("chap {user}"),
        (Some(user), Some(mutual)) => format!("chap {user}, mutual {mutual}"),
    };
    let algorithms = words(auth, "algorithms");
    // Where all may be used, nobody has chosen.
    if !(algorithms.is_empty() || algorithms.contains("md5")) {
        shown.push_str(&format!(" ({algorithms})"));
    }
    shown
}

fn words(value: &Value, field: &str) -> String {
    list(value, field).iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
}

fn sent_to(redirect: &Value) -> String {
    let mut shown = text(redirect, "to");
    if yes(redirect, "permanent") {
        shown.push_str(", permanently");
    }
    if let Some(portal) = redirect["portal"].as_str() {
        shown.push_str(&format!(", from portal {portal}"));
    }
    shown
}

/// `discovery show`
pub fn discovery(answer: &Value) -> String {
    properties(&[("auth", auth(answer))])
}

/// `chap show`
pub fn chap(answer: &Value) -> String {
    properties(&[("algorithms", words(answer, "algorithms"))])
}

/// `isns show`
pub fn isns(answer: &Value) -> String {
    let Some(server) = answer["server"].as_str() else { return "registering nowhere".to_owned() };
    let state = match (yes(answer, "registered"), answer["reason"].as_str()) {
        (true, _) => format!("{} targets registered", text(answer, "targets")),
        (false, Some(reason)) => format!("not registered: {reason}"),
        (false, None) => "being registered".to_owned(),
    };
    properties(&[("server", server.to_owned()), ("entity", text(answer, "entity")), ("state", state)])
}

/// `portal list`
pub fn portals(answer: &Value) -> String {
    let mut table = Table::new(&["ADDRESS", ">GROUP", "STATE"]);
    for portal in list(answer, "portals") {
        let mut state = match portal["reason"].as_str() {
            None => "listening".to_owned(),
            Some(reason) => format!("off: {reason}"),
        };
        if yes(&portal, "temporary") {
            state.push_str(" (for this run)");
        }
        if let Some(told) = portal["advertise"].as_str() {
            state.push_str(&format!(", advertised as {told}"));
        }
        table.row(vec![text(&portal, "address"), text(&portal, "group"), state]);
    }
    table.show("no portals; listen with 'lunaring portal add 0.0.0.0:3260'")
}

/// `session list`
pub fn sessions(answer: &Value) -> String {
    let mut table = Table::new(&[
        ">ID",
        "INITIATOR",
        "TARGET",
        "FROM",
        "TO",
        ">SHARD",
        "DIGESTS",
        ">AGE",
        ">COMMANDS",
        ">READ",
        ">WRITTEN",
    ]);
    for session in list(answer, "sessions") {
        let digests = match (yes(&session, "header_digest"), yes(&session, "data_digest")) {
            (false, false) => "none",
            (true, false) => "header",
            (false, true) => "data",
            (true, true) => "both",
        };
        let target = session["target"].as_str().unwrap_or("(discovery)").to_owned();
        table.row(vec![
            text(&session, "id"),
            text(&session, "initiator"),
            target,
            text(&session, "peer"),
            text(&session, "portal"),
            text(&session, "shard"),
            digests.to_owned(),
            age(session["age_seconds"].as_u64().unwrap_or(0)),
            text(&session, "commands"),
            bytes(&session, "bytes_read"),
            bytes(&session, "bytes_written"),
        ]);
        // A session of several connections has a line for each.
        for connection in list(&session, "connections").iter().skip(1) {
            let mut row = vec![String::new(); 11];
            row[3] = text(connection, "peer");
            row[4] = text(connection, "portal");
            table.row(row);
        }
    }
    table.show("no sessions")
}

fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// What every disk does for each second; those that do nothing are last.
pub fn top(answer: &Value) -> String {
    let mut disks = list(answer, "disks");
    let rate = |disk: &Value, kind: &str, field: &str| disk[kind][field].as_f64().unwrap_or(0.0);
    let busy =
        |disk: &Value| rate(disk, "read", "operations_per_second") + rate(disk, "write", "operations_per_second");
    disks.sort_by(|one, other| busy(other).total_cmp(&busy(one)));
    let mut table = Table::new(&[
        "DISK",
        ">READS/S",
        ">READ/S",
        ">READ TIME",
        ">WRITES/S",
        ">WRITTEN/S",
        ">WRITE TIME",
        ">FLUSHES/S",
        ">FLUSH TIME",
    ]);
    for disk in &disks {
        let mut row = vec![text(disk, "disk")];
        for kind in ["read", "write", "flush"] {
            row.push(format!("{:.0}", rate(disk, kind, "operations_per_second")));
            if kind != "flush" {
                row.push(HumanBytes(rate(disk, kind, "bytes_per_second") as u64).to_string());
            }
            row.push(match rate(disk, kind, "operations_per_second") > 0.0 {
                true => latency(rate(disk, kind, "latency_mean_us")),
                false => "-".to_owned(),
            });
        }
        table.row(row);
    }
    table.show("no disks")
}

/// `stats`
pub fn stats(answer: &Value) -> String {
    let mut disks =
        Table::new(&["DISK", "OPERATION", ">COUNT", ">BYTES", ">ERRORS", ">MEAN", ">P50", ">P99", ">P99.9", ">MAX"]);
    for disk in list(answer, "disks") {
        for name in ["read", "write", "flush", "other"] {
            let operation = &disk[name];
            if operation["operations"].as_u64().unwrap_or(0) == 0 {
                continue;
            }
            let latency = |field: &str| latency(operation[field].as_f64().unwrap_or(0.0));
            disks.row(vec![
                text(&disk, "disk"),
                name.to_owned(),
                text(operation, "operations"),
                bytes(operation, "bytes"),
                text(operation, "errors"),
                latency("latency_mean_us"),
                latency("latency_p50_us"),
                latency("latency_p99_us"),
                latency("latency_p999_us"),
                latency("latency_max_us"),
            ]);
        }
    }
    let disks = disks.show("no operations on disks yet");
    let shards = list(answer, "shards");
    if shards.is_empty() {
        return disks;
    }
    let mut table = Table::new(&[
        ">SHARD",
        ">SESSIONS",
        ">LOGINS",
        ">REFUSED",
        ">PDUS IN",
        ">PDUS OUT",
        ">BYTES IN",
        ">BYTES OUT",
        ">REJECTS",
        ">MEMORY",
        ">TURNS",
        ">SLEEPS",
    ]);
    for (index, shard) in shards.iter().enumerate() {
        table.row(vec![
            index.to_string(),
            text(shard, "sessions"),
            text(shard, "logins"),
            text(shard, "login_failures"),
            text(shard, "pdus_in"),
            text(shard, "pdus_out"),
            bytes(shard, "bytes_in"),
            bytes(shard, "bytes_out"),
            text(shard, "rejects"),
            bytes(shard, "memory_used_bytes"),
            text(shard, "turns"),
            text(shard, "sleeps"),
        ]);
    }
    format!("{disks}\n\n{}", table.show(""))
}

/// Microseconds, in the unit that reads best.
fn latency(us: f64) -> String {
    match us {
        us if us < 1000.0 => format!("{us:.1}us"),
        us if us < 1_000_000.0 => format!("{:.2}ms", us / 1000.0),
        us => format!("{:.2}s", us / 1_000_000.0),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_disk_list_reads_well() {
        let answer = json!({"disks": [
            {"name": "web", "format": "vhdx", "kind": "dynamic", "size_bytes": 10u64 << 30, "allocated_bytes": 4 << 20,
             "state": "online", "file": "/s/disks/web.vhdx", "mapped": [{"target": "t", "lun": 0}], "read_only": false},
            {"name": "n", "format": "null", "kind": null, "size_bytes": 512, "allocated_bytes": 0, "state": "online",
             "file": null, "mapped": [], "read_only": true},
        ]});
        let wanted = "\
NAME  FORMAT  KIND     SIZE  ON FILE  STATE              MAPPED TO  FILE
web   vhdx    dynamic   10G       4M  online             t:0        /s/disks/web.vhdx
n     null              512           online, read-only";
        assert_eq!(disks(&answer), wanted);
        assert!(disks(&json!({"disks": []})).contains("lunaring disk create"));
    }

    #[test]
    fn what_the_server_does_not_say_is_left_out_without_harm() {
        for show in [disks, targets, portals, sessions, stats, disk, target] {
            for answer in
                [json!(null), json!({}), json!({"disks": [{}], "targets": [1], "sessions": [null]}), json!([])]
            {
                let _ = show(&answer);
            }
        }
    }

    #[test]
    fn times_have_fitting_units() {
        assert_eq!(
            (age(59), age(61), age(7260), age(90_000)),
            ("59s".into(), "1m01s".into(), "2h01m".into(), "1d01h".into())
        );
        assert_eq!((latency(9.46), latency(1500.0), latency(2.5e6)), ("9.5us".into(), "1.50ms".into(), "2.50s".into()));
    }
}
