//! Children of a golden image, snapshots, sizes, copies and checks, as an operator and his initiators meet them: the
//! real server, QEMU's iSCSI client, and qemu-img as the judge of what is in the files.

use std::fs;

use crate::load::{VerifyingLoad, io};
use crate::server::{Server, text, tool_ok};

/// A server with a golden disk that has something in it, unmapped, and a target `t` for everybody.
fn golden() -> (Server, impl Fn(&Server, u16) -> String) {
    let server = Server::start();
    server.ok(&["disk", "create", "golden", "--size", "64M", "--block-size", "1M"]);
    let iqn = server.target_with("t", "golden");
    io(&server.url(&iqn, 0), false, &["write -P 1 0 3M", "write -P 2 40M 64k"]);
    server.ok(&["target", "unmap", "t", "--lun", "0"]);
    (server, move |server: &Server, lun| server.url(&iqn, lun))
}

fn map(server: &Server, disk: &str, lun: u16) {
    server.ok(&["target", "map", "t", disk, "--lun", &lun.to_string()]);
}

#[test]
fn children_of_a_golden_disk_are_their_own_and_survive_kills() {
    let (mut server, url) = golden();
    for (lun, child) in [(1, "a"), (2, "b"), (3, "c")] {
        server.ok(&["disk", "create", child, "--kind", "differencing", "--parent", "golden"]);
        map(&server, child, lun);
    }
    let refused = server.refused(&["target", "map", "t", "golden", "--lun", "0"]);
    assert!(refused.contains("a, b, c") && refused.contains("--read-only"), "{refused}");
    server.ok(&["target", "map", "t", "golden", "--lun", "0", "--read-only"]);
    for lun in 1..4u16 {
        let own =
            [format!("write -P {} 1049088 9k", 10 + lun), format!("write -P {} 20M 5M", 20 + lun), "flush".to_owned()];
        io(&url(&server, lun), false, &own.each_ref().map(String::as_str));
    }
    let check = |server: &Server| {
        for lun in 1..4u16 {
            let own = [
                "read -P 1 0 1049088".to_owned(),
                format!("read -P {} 1049088 9k", 10 + lun),
                "read -P 1 1058304 2087424".to_owned(),
                format!("read -P {} 20M 5M", 20 + lun),
                "read -P 2 40M 64k".to_owned(),
                "read -P 0 41M 1M".to_owned(),
            ];
            io(&url(server, lun), true, &own.each_ref().map(String::as_str));
        }
        io(&url(server, 0), true, &["read -P 1 0 3M", "read -P 0 20M 5M", "read -P 2 40M 64k"]);
    };
    check(&server);
    server.kill_9();
    server.start_again();
    check(&server);
    let shown = server.json(&["disk", "show", "b"]);
    assert_eq!(shown["chain"].as_array().expect("a chain").len(), 2, "{shown}");
    assert_eq!(shown["chain"][1]["disk"], "golden", "{shown}");
    assert!(server.refused(&["disk", "delete", "golden"]).contains("golden"));
    server.stop();
    let output = crate::server::lunaring(&["disk", "check", text(&server.disk_file("b"))]);
    let judged = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && judged.contains("no errors") && judged.contains("golden.vhdx"), "{judged}");
}

#[test]
fn a_parent_that_was_changed_is_refused_with_both_identifiers() {
    let (mut server, url) = golden();
    server.ok(&["disk", "create", "a", "--parent", "golden"]);
    let (file, parent) = (server.disk_file("a"), server.disk_file("golden"));
    server.ok(&["disk", "delete", "a", "--keep-file"]);
    map(&server, "golden", 0);
    io(&url(&server, 0), false, &["write -P 9 0 4k"]);
    server.ok(&["target", "unmap", "t", "--lun", "0"]);
    let refused = server.refused(&["disk", "add", "a", "--file", text(&file)]);
    assert!(refused.contains("golden.vhdx"), "{refused}");
    let guids = refused.split(|c: char| !(c.is_ascii_hexdigit() || c == '-')).filter(|word| word.len() == 36).count();
    assert!(guids >= 2, "both identifiers are named: {refused}");
    server.stop();
    let output = crate::server::lunaring(&["disk", "check", text(&file)]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("was changed since") && said.contains(text(&parent)), "{said}");
}

#[test]
fn snapshots_under_way_and_back_and_their_deletion() {
    let (mut server, url) = golden();
    server.ok(&["disk", "create", "d", "--parent", "golden"]);
    map(&server, "d", 1);
    for number in 1..6u32 {
        io(&url(&server, 1), false, &[&format!("write -P {number} {}k 100k", number * 50)]);
        let taken = server.json(&["snapshot", "create", "d", &format!("s{number}")]);
        assert!(taken["pause_ms"].as_f64().expect("a pause") < 1000.0, "{taken}");
    }
    io(&url(&server, 1), false, &["write -P 99 0 50k"]);
    let refused = server.refused(&["snapshot", "create", "d", "s1"]);
    assert!(refused.contains("already"), "{refused}");
    // What each showed is there, read-only and to be written.
    server.ok(&["snapshot", "export", "d", "s2", "--as", "seen"]);
    server.ok(&["snapshot", "export", "d", "s3", "--as", "copy", "--writable"]);
    map(&server, "seen", 2);
    map(&server, "copy", 3);
    io(&url(&server, 2), true, &["read -P 1 0 100k", "read -P 2 100k 100k", "read -P 1 200k 50k"]);
    io(&url(&server, 3), false, &["write -P 50 1M 4k", "read -P 3 150k 100k", "read -P 50 1M 4k"]);
    io(&url(&server, 1), true, &["read -P 99 0 50k", "read -P 5 250k 100k", "read -P 1 1M 4k"]);
    let refused = server.refused(&["snapshot", "delete", "d", "s3"]);
    assert!(refused.contains("copy"), "{refused}");
    for lun in ["2", "3"] {
        server.ok(&["target", "unmap", "t", "--lun", lun]);
    }
    server.ok(&["disk", "delete", "seen"]);
    server.ok(&["disk", "delete", "copy"]);
    // Deleting them in any order changes nothing that the disk shows, even across a kill.
    for (number, name) in ["s3", "s1", "s5", "s2", "s4"].iter().enumerate() {
        server.ok(&["snapshot", "delete", "d", name]);
        if number == 2 {
            server.kill_9();
            server.start_again();
        }
        io(
            &url(&server, 1),
            true,
            &["read -P 99 0 50k", "read -P 5 250k 100k", "read -P 4 200k 50k", "read -P 1 1M 4k"],
        );
    }
    let left = server.json(&["snapshot", "list", "d"]);
    assert_eq!(left["snapshots"].as_array().map(Vec::len), Some(0), "{left}");
    let shown = server.json(&["disk", "show", "d"]);
    assert_eq!(shown["chain"].as_array().expect("a chain").len(), 2, "one file over golden: {shown}");
    server.stop();
}

#[test]
fn a_restore_brings_a_group_back_to_one_instant() {
    let server = Server::start();
    let iqn = server.ready_target("t", &["--size", "16M"]);
    server.ok(&["disk", "create", "u", "--size", "16M", "--format", "raw"]);
    map(&server, "u", 1);
    for lun in 0..2 {
        io(&server.url(&iqn, lun), false, &["write -P 1 0 1M"]);
    }
    let taken = server.json(&["snapshot", "create", "--group", "t,u", "--name", "before"]);
    assert_eq!(taken["snapshots"].as_array().map(Vec::len), Some(2), "{taken}");
    assert_eq!(taken["snapshots"][0]["group"], taken["snapshots"][1]["group"], "{taken}");
    for (lun, disk) in [(0, "t"), (1, "u")] {
        io(&server.url(&iqn, lun), false, &["write -P 2 512k 4M"]);
        server.ok(&["snapshot", "restore", disk, "before"]);
        io(&server.url(&iqn, lun), true, &["read -P 1 0 1M", "read -P 0 1M 4M"]);
        server.ok(&["snapshot", "delete", disk, "before"]);
        io(&server.url(&iqn, lun), true, &["read -P 1 0 1M", "read -P 0 1M 4M"]);
    }
    assert_eq!(server.json(&["disk", "show", "u"])["format"], "raw");
}

#[test]
fn a_disk_grows_and_shrinks_while_it_is_served() {
    let (mut server, url) = golden();
    map(&server, "golden", 0);
    server.ok(&["disk", "resize", "golden", "--size", "100M"]);
    io(&url(&server, 0), false, &["read -P 1 0 3M", "read -P 0 64M 36M", "write -P 7 99M 1M"]);
    let refused = server.refused(&["disk", "resize", "golden", "--size", "64M"]);
    assert!(refused.contains("--allow-shrink"), "{refused}");
    server.ok(&["disk", "resize", "golden", "--size", "64M", "--allow-shrink"]);
    let told = tool_ok("qemu-img", &["info", "--output=json", "-f", "raw", &url(&server, 0)]);
    assert!(told.contains(&(64u64 << 20).to_string()), "{told}");
    server.ok(&["disk", "resize", "golden", "--size", "80M"]);
    io(&url(&server, 0), true, &["read -P 1 0 3M", "read -P 2 40M 64k", "read -P 0 64M 16M"]);
    server.stop();
    tool_ok("qemu-img", &["check", "-f", "vhdx", text(&server.disk_file("golden"))]);
}

#[test]
fn copies_of_a_disk_that_is_served_hold_the_same_bytes() {
    let (server, url) = golden();
    server.ok(&["disk", "create", "d", "--parent", "golden"]);
    map(&server, "d", 1);
    io(&url(&server, 1), false, &["write -P 5 1M 300k", "write -P 6 60M 1M"]);
    let (raw, vhdx, fixed) = (server.file("copy.raw"), server.file("copy.vhdx"), server.file("fixed.vhdx"));
    let job = server.json(&["disk", "convert", "d", "--to", text(&raw)]);
    assert_eq!((&job["state"], &job["kind"]), (&"done".into(), &"convert".into()), "{job}");
    server.ok(&["disk", "convert", "d", "--to", text(&vhdx)]);
    server.ok(&["disk", "convert", text(&raw), "--to", text(&fixed), "--kind", "fixed"]);
    tool_ok("qemu-img", &["compare", "-f", "raw", "-F", "raw", text(&raw), &url(&server, 1)]);
    tool_ok("qemu-img", &["compare", "-f", "raw", "-F", "vhdx", text(&raw), text(&vhdx)]);
    tool_ok("qemu-img", &["compare", "-f", "raw", "-F", "vhdx", text(&raw), text(&fixed)]);
    let space =
        |file: &std::path::Path| std::os::unix::fs::MetadataExt::blocks(&fs::metadata(file).expect("a copy")) * 512;
    assert!(space(&raw) < 16 << 20, "what is empty takes no space: {}", space(&raw));
    assert!(space(&vhdx) < 32 << 20, "what is empty takes no space: {}", space(&vhdx));
    let refused = server.refused(&["disk", "convert", "d", "--to", text(&raw)]);
    assert!(refused.contains("exists already"), "{refused}");
    assert_eq!(server.json(&["snapshot", "list", "d"])["snapshots"].as_array().map(Vec::len), Some(0));
    assert_eq!(server.json(&["disk", "show", "d"])["chain"].as_array().map(Vec::len), Some(2));
}

#[test]
fn a_child_is_merged_into_its_parent_while_it_is_served() {
    let (mut server, url) = golden();
    server.ok(&["disk", "create", "d", "--parent", "golden"]);
    map(&server, "d", 1);
    io(&url(&server, 1), false, &["write -P 5 1M 300k", "write -P 6 50M 10M"]);
    server.ok(&["disk", "merge", "d"]);
    let pattern = ["read -P 1 0 1M", "read -P 5 1M 300k", "read -P 6 50M 10M", "read -P 2 40M 64k"];
    io(&url(&server, 1), true, &pattern);
    let disks = server.json(&["disk", "list"]);
    assert_eq!(disks["disks"].as_array().map(Vec::len), Some(1), "{disks}");
    server.kill_9();
    server.start_again();
    io(&url(&server, 1), true, &pattern);
    server.stop();
    tool_ok("qemu-img", &["check", "-f", "vhdx", text(&server.disk_file("golden"))]);
}

#[test]
fn user_metadata_goes_with_the_file() {
    let (mut server, url) = golden();
    let item = "6f0d7a3c-9d1f-4f42-8f0e-0c5a1b2c3d4e";
    map(&server, "golden", 0);
    let value = server.file("value");
    fs::write(&value, vec![7; 200_000]).expect("a value");
    server.ok(&["disk", "meta", "set", "golden", item, "--file", text(&value)]);
    let items = server.json(&["disk", "meta", "list", "golden"]);
    assert_eq!((&items["items"][0]["item"], &items["items"][0]["len_bytes"]), (&item.into(), &200_000.into()));
    server.kill_9();
    server.start_again();
    let back = server.file("back");
    server.ok(&["disk", "meta", "get", "golden", item, "--output", text(&back)]);
    tool_ok("cmp", &[text(&value), text(&back)]);
    io(&url(&server, 0), true, &["read -P 1 0 3M"]);
    server.ok(&["disk", "meta", "delete", "golden", item]);
    assert!(server.refused(&["disk", "meta", "get", "golden", item]).contains("has no item"));
    server.stop();
    tool_ok("qemu-img", &["check", "-f", "vhdx", text(&server.disk_file("golden"))]);
}

/// `LUNARING_SNAPSHOTS=512 cargo test --release --test interop many_snapshots -- --nocapture` shows the pauses.
#[test]
fn many_snapshots_of_a_disk_that_is_written_meanwhile() {
    let count = crate::server::count("LUNARING_SNAPSHOTS", 24) as usize;
    let server = Server::start();
    let iqn = server.ready_target("busy", &["--size", "64M", "--block-size", "1M"]);
    let load = VerifyingLoad::on(&server, &iqn);
    let mut pauses = Vec::new();
    for number in 0..count {
        let taken = server.json(&["snapshot", "create", "busy", &format!("s{number}")]);
        pauses.push(taken["pause_ms"].as_f64().expect("a pause"));
    }
    for number in (0..count).step_by(2) {
        server.ok(&["snapshot", "delete", "busy", &format!("s{number}")]);
    }
    load.stop();
    pauses.sort_by(f64::total_cmp);
    let (median, late, longest) = (pauses[count / 2], pauses[count * 99 / 100], pauses[count - 1]);
    let median = format!("{median:.2} ms (median), {late:.2} ms (99 %)");
    println!("{count} snapshots under load: commands were held for {median}, {longest:.2} ms (longest)");
    let left = server.json(&["snapshot", "list", "busy"]);
    assert_eq!(left["snapshots"].as_array().map(Vec::len), Some(count / 2), "{left}");
}
