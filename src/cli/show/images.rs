//! Images, snapshots and jobs as people read them.

use serde_json::Value;

use super::{bytes, list, text, yes};
use crate::cli::table::{Table, properties};
use crate::units::{HumanBytes, UtcTime};

fn time(value: &Value, field: &str) -> String {
    value[field].as_u64().map(|seconds| UtcTime(seconds).to_string()).unwrap_or_default()
}

/// `snapshot list`
pub fn snapshots(answer: &Value) -> String {
    let mut table = Table::new(&["NAME", "TAKEN (UTC)", ">SIZE", ">ON FILE", "AFTER", "STATE", "EXPORTED AS"]);
    for snapshot in list(answer, "snapshots") {
        let kept_for = list(&snapshot, "kept_for");
        let kept_for = kept_for.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", ");
        let state = match (yes(&snapshot, "deleting"), yes(&snapshot, "current")) {
            (true, _) if kept_for.is_empty() => "being deleted".to_owned(),
            (true, _) => format!("deleted; its file stays for {kept_for}"),
            (_, true) => "current".to_owned(),
            _ => String::new(),
        };
        let exports = list(&snapshot, "exports");
        table.row(vec![
            text(&snapshot, "name"),
            time(&snapshot, "created"),
            bytes(&snapshot, "size_bytes"),
            bytes(&snapshot, "allocated_bytes"),
            text(&snapshot, "parent"),
            state,
            exports.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "),
        ]);
    }
    table.show("no snapshots; take one with 'lunaring snapshot create DISK'")
}

/// `snapshot create`
pub fn taken(answer: &Value) -> String {
    let pause = answer["pause_ms"].as_f64().unwrap_or(0.0);
    let lines: Vec<String> = list(answer, "snapshots")
        .iter()
        .map(|snapshot| format!("snapshot '{}' of disk '{}' taken", text(snapshot, "name"), text(snapshot, "disk")))
        .collect();
    format!("{}; all commands waited for {pause:.2} ms", lines.join("\n"))
}

/// What a job does, for a progress line.
pub fn doing(job: &Value) -> String {
    let what = match job["kind"].as_str() {
        Some("convert") => "converting",
        Some("merge" | "snapshot_delete") => "merging",
        Some("compact") => "compacting",
        _ => "working on",
    };
    format!("job {}, {what} {}", text(job, "id"), text(job, "disk"))
}

/// A job that nobody waits for.
pub fn job_started(job: &Value) -> String {
    format!("job {} started; see 'lunaring job show {}'", text(job, "id"), text(job, "id"))
}

fn percent(job: &Value) -> String {
    match (job["bytes_done"].as_u64(), job["bytes_total"].as_u64()) {
        (Some(done), Some(total)) if total > 0 => format!("{} %", u128::from(done) * 100 / u128::from(total)),
        _ => String::new(),
    }
}

/// `job list`
pub fn jobs(answer: &Value) -> String {
    let mut table = Table::new(&[">ID", "WORK", "DISK", "ON", "STATE", ">DONE", "STARTED (UTC)", "ERROR"]);
    for job in list(answer, "jobs") {
        table.row(vec![
            text(&job, "id"),
            text(&job, "kind"),
            text(&job, "disk"),
            text(&job, "detail"),
            text(&job, "state"),
            percent(&job),
            time(&job, "started"),
            text(&job, "error"),
        ]);
    }
    table.show("no jobs")
}

/// `job show`
pub fn job(job: &Value) -> String {
    let mut rows = vec![("id", text(job, "id")), ("work", text(job, "kind")), ("disk", text(job, "disk"))];
    let done = format!("{} of {}", bytes(job, "bytes_done"), bytes(job, "bytes_total"));
    for (name, value) in [
        ("on", text(job, "detail")),
        ("state", text(job, "state")),
        ("done", done),
        ("started", time(job, "started")),
        ("finished", time(job, "finished")),
        ("error", text(job, "error")),
    ] {
        if !value.is_empty() {
            rows.push((name, value));
        }
    }
    properties(&rows)
}

/// `disk resize`
pub fn resized(name: &str, disk: &Value) -> String {
    format!("disk '{name}' has {} ({} bytes)", bytes(disk, "size_bytes"), text(disk, "size_bytes"))
}

/// `disk meta list`
pub fn metadata(answer: &Value) -> String {
    let mut table = Table::new(&["ITEM", ">BYTES"]);
    for item in list(answer, "items") {
        table.row(vec![text(&item, "item"), text(&item, "len_bytes")]);
    }
    table.show("no user metadata")
}

/// Where the space of a disk's files is, in a sentence.
pub fn space(disk: &Value) -> String {
    let space = &disk["space"];
    let amount = |field| space[field].as_u64().filter(|bytes| *bytes > 0).map(HumanBytes);
    let Some(file) = amount("file_bytes") else { return String::new() };
    let mut parts = vec![format!("the file is {file} long")];
    if space["block_bytes"].is_u64() {
        parts.push(format!("blocks hold {}", bytes(space, "block_bytes")));
        parts.push(format!("{} inside it are free", bytes(space, "free_inside_bytes")));
    }
    parts.extend(amount("given_up_bytes").map(|given_up| format!("{given_up} more soon")));
    parts.extend(amount("files_closing").map(|count| format!("{} former files are being closed", count.0)));
    if list(disk, "chain").len() > 1 {
        parts.push(format!("all files of the chain take {}", bytes(space, "chain_allocated_bytes")));
    }
    parts.join(", ")
}

/// The files of a disk, below its properties.
pub fn chain(disk: &Value) -> String {
    let mut table = Table::new(&[">LAYER", "FORMAT", ">SIZE", ">ON FILE", "SNAPSHOT", "DISK", "FILE", "IDENTIFIER"]);
    for (number, layer) in list(disk, "chain").iter().enumerate() {
        table.row(vec![
            number.to_string(),
            text(layer, "format"),
            bytes(layer, "size_bytes"),
            bytes(layer, "allocated_bytes"),
            text(layer, "snapshot"),
            text(layer, "disk"),
            text(layer, "file"),
            text(layer, "identifier"),
        ]);
    }
    table.show("")
}

/// `disk check`
pub fn check(report: &Value) -> String {
    let mut rows = vec![("file", text(report, "file"))];
    let size = format!("{} ({} bytes)", bytes(report, "size_bytes"), text(report, "size_bytes"));
    let kind = [text(report, "kind"), text(report, "format")].join(" ");
    let sectors = [text(report, "sector_size_bytes"), text(report, "physical_sector_size_bytes")];
    for (name, value) in [
        ("format", kind.trim().to_owned()),
        ("made by", text(report, "creator")),
        ("size", if report["size_bytes"].is_u64() { size } else { String::new() }),
        ("sector size", sectors.join(" logical, ") + if sectors[0].is_empty() { "" } else { " physical" }),
        ("block size", bytes(report, "block_size_bytes")),
        ("disk id", text(report, "disk_id")),
        ("identifier", text(report, "identifier")),
        ("log", text(report, "log")),
        ("blocks", blocks(report)),
        ("file size", bytes(report, "file_bytes")),
        ("on file", bytes(report, "allocated_bytes")),
        ("lost", lost(report)),
    ] {
        if !value.trim().is_empty() && value != " logical,  physical" {
            rows.push((name, value));
        }
    }
    for note in list(report, "notes") {
        rows.push(("note", note.as_str().unwrap_or_default().to_owned()));
    }
    let mut said = properties(&rows);
    let chain = list(report, "chain");
    if !chain.is_empty() {
        let mut table = Table::new(&[">LAYER", "FORMAT", "FILE", "IDENTIFIER", "STATE"]);
        for (number, layer) in chain.iter().enumerate() {
            let state = layer["problem"].as_str().unwrap_or("good").to_owned();
            let cells = [number.to_string(), text(layer, "format"), text(layer, "file"), text(layer, "identifier")];
            table.row([cells.to_vec(), vec![state]].concat());
        }
        said = format!("{said}\n\n{}", table.show(""));
    }
    for repaired in list(report, "repaired") {
        said.push_str(&format!("\nrepaired: {}", repaired.as_str().unwrap_or_default()));
    }
    let findings = list(report, "findings");
    if findings.is_empty() {
        return format!("{said}\n\nno errors were found");
    }
    let mut table = Table::new(&["SEVERITY", ">OFFSET", "RULE", "WHAT"]);
    for finding in findings {
        let offset = finding["offset"].as_u64().map(|at| format!("{at:#x}")).unwrap_or_default();
        table.row(vec![text(&finding, "severity"), offset, text(&finding, "rule"), text(&finding, "what")]);
    }
    format!("{said}\n\n{}", table.show(""))
}

fn blocks(report: &Value) -> String {
    let blocks = list(report, "blocks");
    let shown = |block: &Value| {
        let count = block["count"].as_u64().filter(|count| *count > 0)?;
        Some(format!("{count} {}", text(block, "state")))
    };
    blocks.iter().filter_map(shown).collect::<Vec<_>>().join(", ")
}

fn lost(report: &Value) -> String {
    match report["unreferenced_bytes"].as_u64() {
        None | Some(0) => String::new(),
        Some(lost) => format!("{} that nothing refers to", HumanBytes(lost)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_report_reads_well() {
        let report = json!({
            "file": "/x.vhdx", "format": "vhdx", "kind": "dynamic", "size_bytes": 1 << 30, "sector_size_bytes": 512,
            "physical_sector_size_bytes": 4096, "log": "empty",
            "blocks": [{"state": "full", "count": 3}, {"state": "zero", "count": 0}],
            "findings": [{"severity": "error", "offset": 0x30_0000, "rule": "MS-VHDX 2.5.1", "what": "overlap"}],
        });
        let said = check(&report);
        for word in ["1G", "512 logical, 4096 physical", "blocks", "3 full", "0x300000", "MS-VHDX 2.5.1", "overlap"] {
            assert!(said.contains(word), "{word} in\n{said}");
        }
        assert!(!said.contains("0 zero"), "{said}");
        assert!(check(&json!({})).contains("no errors"));
    }

    #[test]
    fn space_is_a_sentence() {
        assert_eq!(space(&json!({"file": "/x"})), "");
        let raw = json!({"space": {"file_bytes": 4096, "chain_allocated_bytes": 0}, "chain": [{}]});
        assert_eq!(space(&raw), "the file is 4K long");
        let both = space(&json!({"space": {"file_bytes": 20 << 20, "chain_allocated_bytes": 40 << 20,
            "block_bytes": 12 << 20, "free_inside_bytes": 3 << 20, "given_up_bytes": 1 << 20, "files_closing": 0},
            "chain": [{}, {}]}));
        let expected = "the file is 20M long, blocks hold 12M, 3M inside it are free, 1M more soon, ";
        assert_eq!(both, format!("{expected}all files of the chain take 40M"));
    }

    #[test]
    fn snapshots_and_jobs_line_up() {
        let answer = json!({"snapshots": [{"name": "s", "disk": "d", "created": 0, "size_bytes": 1 << 30,
            "allocated_bytes": 1 << 20, "parent": null, "current": true, "exports": ["x"], "deleting": false}],
            "pause_ms": 1.234});
        assert!(snapshots(&answer).contains("s     1970-01-01 00:00:00    1G       1M         current  x"));
        assert_eq!(taken(&answer), "snapshot 's' of disk 'd' taken; all commands waited for 1.23 ms");
        let answer = json!({"snapshots": [{"name": "s", "disk": "d", "deleting": true,
            "kept_for": ["snapshot 'a'", "disk 'd' as it is now"]}]});
        let said = snapshots(&answer);
        assert!(said.contains("deleted; its file stays for snapshot 'a', disk 'd' as it is now"), "{said}");
        let answer = json!({"jobs": [{"id": 3, "kind": "merge", "disk": "d", "state": "running", "bytes_done": 1,
            "bytes_total": 4, "started": 0}]});
        assert!(jobs(&answer).contains("25 %"), "{}", jobs(&answer));
    }
}
