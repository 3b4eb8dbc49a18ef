//! Looking after disks by command while initiators use them: checks, VHD images, jobs that nobody waits for or that are
//! stopped, and files that another process reads.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::load::VerifyingLoad;
use crate::server::{Server, lunaring, text, tool_ok};

fn io(url: &str, script: &[&str]) {
    crate::load::io(url, false, script);
}

/// Wait until something holds.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(30), "{what} does not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_disk_is_checked_while_it_is_written() {
    for format in ["vhdx", "vhd"] {
        let server = Server::start();
        let iqn = server.ready_target("busy", &["--size", "64M", "--format", format]);
        let load = VerifyingLoad::on(&server, &iqn);
        let mut undisturbed = 0;
        let file = server.json(&["disk", "show", "busy"])["file"].as_str().expect("a file").to_owned();
        for _ in 0..12 {
            let report = server.json(&["disk", "check", "busy"]);
            let bad = |finding: &&serde_json::Value| finding["severity"] == "error";
            let findings = report["findings"].as_array().expect("a list");
            assert_eq!(findings.iter().find(bad), None, "{format}: {report}");
            let notes = report["notes"].to_string();
            assert!(notes.contains("is being served"), "{format}: {notes}");
            undisturbed += u32::from(!notes.contains("were held"));
            // By its file, too, as somebody without the server would.
            let by_file = lunaring(&["disk", "check", &file]);
            assert!(by_file.status.success(), "{format}: {by_file:?}");
        }
        assert!(undisturbed > 0, "{format}: commands were held for every check");
        let shown = server.json(&["disk", "show", "busy"]);
        let space = &shown["space"];
        let number = |field: &str| space[field].as_u64().unwrap_or_else(|| panic!("{field} in {shown}"));
        assert!(number("block_bytes") >= 1 << 20, "{shown}");
        assert!(number("file_bytes") >= number("block_bytes") + number("free_inside_bytes"), "{shown}");
        assert!(number("chain_allocated_bytes") > 0, "{shown}");
        load.stop();
    }
}

#[test]
fn a_vhd_is_checked_mended_resized_and_copied_by_command() {
    let mut server = Server::start();
    let iqn = server.ready_target("v", &["--size", "16M", "--format", "vhd"]);
    let url = server.url(&iqn, 0);
    io(&url, &["write -P 1 0 3M", "write -P 2 10M 64k", "flush"]);
    server.ok(&["disk", "resize", "v", "--size", "40M"]);
    io(&url, &["read -P 1 0 3M", "read -P 2 10M 64k", "read -P 0 16M 24M", "write -P 3 39M 1M"]);
    let refused = server.refused(&["disk", "resize", "v", "--size", "20M"]);
    assert!(refused.contains("cannot shrink") || refused.contains("not shrink"), "{refused}");
    let (vhdx, raw, back) = (server.file("copy.vhdx"), server.file("copy.raw"), server.file("back.vhd"));
    server.ok(&["disk", "convert", "v", "--to", text(&vhdx)]);
    server.ok(&["disk", "convert", text(&vhdx), "--to", text(&raw)]);
    server.ok(&["disk", "convert", text(&raw), "--to", text(&back), "--kind", "fixed"]);
    let file = server.json(&["disk", "show", "v"])["file"].as_str().expect("a file").to_owned();
    server.stop();
    for (format, copy) in [("vhdx", &vhdx), ("vpc", &back)] {
        let force = if format == "vpc" { "driver=vpc,force_size_calc=current_size," } else { "driver=vhdx," };
        let of = |path: &Path| format!("{force}file.filename={}", path.display());
        tool_ok(
            "qemu-img",
            &["compare", "--image-opts", &format!("driver=raw,file.filename={}", text(&raw)), &of(copy)],
        );
    }
    let report = |arguments: &[&str]| {
        let said = lunaring(&[&["disk", "check", &file, "--json"], arguments].concat());
        let report: serde_json::Value = serde_json::from_slice(&said.stdout).expect("a report");
        (said.status.success(), report)
    };
    let (sound, found) = report(&[]);
    assert!(sound && found["findings"].as_array().is_some_and(Vec::is_empty), "{found}");
    assert_eq!((&found["format"], &found["kind"]), (&"vhd".into(), &"dynamic".into()), "{found}");
    // The footer at the end is lost; the copy at the start tells all.
    let len = fs::metadata(&file).expect("the file").len();
    fs::OpenOptions::new().write(true).open(&file).expect("the file").set_len(len - 512).expect("it becomes shorter");
    let (usable, found) = report(&[]);
    assert!(usable && found["findings"].to_string().contains("footer"), "{found}");
    let (_, mended) = report(&["--repair"]);
    assert!(mended["repaired"].as_array().is_some_and(|done| !done.is_empty()), "{mended}");
    let (sound, found) = report(&[]);
    assert!(sound && found["findings"].as_array().is_some_and(Vec::is_empty), "{found}");
    server.start_again();
    io(&server.url(&iqn, 0), &["read -P 1 0 3M", "read -P 2 10M 64k", "read -P 3 39M 1M"]);
}

#[test]
fn a_job_goes_on_alone_and_can_be_stopped() {
    let server = Server::start();
    let iqn = server.ready_target("d", &["--size", "3G"]);
    let url = server.url(&iqn, 0);
    io(&url, &["write -P 7 0 256M", "write -P 8 256M 256M"]);
    let to = server.file("copy.raw");
    let started = server.json(&["disk", "convert", "d", "--to", text(&to), "--detach"]);
    assert_eq!(started["state"], "running", "{started}");
    let id = started["id"].to_string();
    let refused = server.refused(&["disk", "compact", "d"]);
    assert!(refused.contains(&format!("lunaring job cancel {id}")), "{refused}");
    server.ok(&["job", "cancel", &id]);
    until("the end of the job", || server.json(&["job", "show", &id])["state"] != "running");
    let ended = server.json(&["job", "show", &id]);
    assert_eq!(ended["state"], "cancelled", "{ended}");
    assert!(!to.exists(), "a copy that was stopped is gone");
    let left = |folder: &Path| {
        let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").file_name());
        entries.filter(|name| name.to_string_lossy().starts_with(".lunaring-")).collect::<Vec<_>>()
    };
    assert_eq!(left(to.parent().expect("a folder")), Vec::<std::ffi::OsString>::new());
    until("one file", || server.json(&["disk", "show", "d"])["chain"].as_array().map(Vec::len) == Some(1));
    io(&url, &["read -P 7 0 1M", "read -P 8 511M 1M", "write -P 9 0 1M"]);
    // And again to its end, without anybody who waits.
    let again = server.json(&["disk", "convert", "d", "--to", text(&to), "--detach"]);
    let id = again["id"].to_string();
    until("the copy", || server.json(&["job", "show", &id])["state"] == "done");
    tool_ok("qemu-io", &["-r", "-f", "raw", "-c", "read -P 9 0 1M", "-c", "read -P 8 511M 1M", text(&to)]);
    let listed = server.ok(&["job", "list"]);
    assert!(listed.contains("cancelled") && listed.contains("done"), "{listed}");
}

/// Another process with a shared lock on a file.
struct Reader(Child);

impl Reader {
    fn of(file: &str) -> Self {
        let mut child = Command::new("flock")
            .args(["--shared", "--nonblock", file, "-c", "echo locked; read line"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("flock runs (package util-linux)");
        let mut said = [0; 7];
        let stdout = child.stdout.as_mut().expect("a pipe");
        std::io::Read::read_exact(stdout, &mut said).expect("the lock is had");
        Self(child)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

#[test]
fn files_that_another_process_reads_are_not_merged_into() {
    let server = Server::start();
    let iqn = server.ready_target("d", &["--size", "16M", "--block-size", "1M"]);
    let url = server.url(&iqn, 0);
    for (number, name) in [(1, "one"), (2, "two"), (3, "three")] {
        io(&url, &[&format!("write -P {number} {number}M 1M"), "flush"]);
        server.ok(&["snapshot", "create", "d", name]);
    }
    io(&url, &["write -P 4 4M 1M"]);
    let snapshots = server.json(&["snapshot", "list", "d"]);
    let file_of = |name: &str| {
        let of = snapshots["snapshots"].as_array().expect("a list").iter().find(|of| of["name"] == name);
        of.and_then(|of| of["file"].as_str()).expect("a file").to_owned()
    };
    let content = ["read -P 1 1M 1M", "read -P 2 2M 1M", "read -P 3 3M 1M", "read -P 4 4M 1M"];
    // Two frozen files, and the present one with a frozen one: what is merged is written into the lower.
    for lower in ["one", "three"] {
        let before = fs::read(file_of(lower)).expect("a file");
        let reader = Reader::of(&file_of(lower));
        let refused = server.refused(&["snapshot", "delete", "d", lower]);
        assert!(refused.contains("is in use") && refused.contains(&file_of(lower)), "{refused}");
        assert!(
            before == fs::read(file_of(lower)).expect("a file"),
            "the file of '{lower}' was changed under its reader"
        );
        io(&url, &content);
        drop(reader);
        server.ok(&["snapshot", "delete", "d", lower]);
        io(&url, &content);
    }
    let left = server.json(&["snapshot", "list", "d"]);
    assert_eq!(left["snapshots"].as_array().map(Vec::len), Some(1), "{left}");
}

#[test]
fn a_deleted_snapshot_with_two_successors_says_what_its_file_stays_for() {
    let server = Server::start();
    let iqn = server.ready_target("d", &["--size", "16M"]);
    let url = server.url(&iqn, 0);
    io(&url, &["write -P 1 0 1M"]);
    server.ok(&["snapshot", "create", "d", "base"]);
    io(&url, &["write -P 2 1M 1M"]);
    server.ok(&["snapshot", "create", "d", "later"]);
    server.ok(&["snapshot", "restore", "d", "base"]);
    io(&url, &["write -P 3 2M 1M"]);
    let said = server.ok(&["snapshot", "delete", "d", "base"]);
    let listed = server.ok(&["snapshot", "list", "d"]);
    let expected = "deleted; its file stays for snapshot 'later', disk 'd' as it is now";
    assert!(listed.contains(expected), "{said}\n{listed}");
    io(&url, &["read -P 1 0 1M", "read -P 0 1M 1M", "read -P 3 2M 1M"]);
    // With one of the two gone, it is merged into the other.
    server.ok(&["snapshot", "delete", "d", "later"]);
    until("the merge", || {
        server.json(&["snapshot", "list", "d"])["snapshots"].as_array().is_some_and(Vec::is_empty)
            && server.json(&["disk", "show", "d"])["chain"].as_array().map(Vec::len) == Some(1)
    });
    io(&url, &["read -P 1 0 1M", "read -P 0 1M 1M", "read -P 3 2M 1M"]);
}

#[test]
fn a_merge_into_the_parent_says_that_the_parent_is_no_disk_any_more() {
    let server = Server::start();
    server.ok(&["disk", "create", "golden", "--size", "16M"]);
    server.ok(&["disk", "create", "d", "--parent", "golden"]);
    let said = server.ok(&["disk", "merge", "d"]);
    assert!(said.contains("disk 'golden', is no disk of its own any more"), "{said}");
    assert_eq!(server.json(&["disk", "list"])["disks"].as_array().map(Vec::len), Some(1));
}
