//! Whole configurations: exported, checked, and put into force on a server that goes on serving.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::load::VerifyingLoad;
use crate::server::{Server, free_port, lunaring, one_clear_line, text, tool, tool_ok};

/// The configuration, and where a changed one can be put.
fn exported(server: &Server) -> (Value, PathBuf) {
    let printed = server.ok(&["config", "export"]);
    (serde_json::from_str(&printed).expect("JSON"), server.file("new.json"))
}

fn write(file: &PathBuf, config: &Value) {
    fs::write(file, serde_json::to_string_pretty(config).expect("JSON")).expect("a file");
}

#[test]
fn what_was_exported_can_be_changed_and_put_into_force_under_load() {
    let mut server = Server::start();
    let iqn = server.ready_target("busy", &["--size", "64M"]);
    server.ready_target("old", &["--size", "16M", "--format", "raw"]);
    let old_file = server.disk_file("old");
    let secret = server.file("secret");
    fs::write(&secret, "a secret of initiators").expect("a file");
    server.ok(&["target", "auth", "old", "--chap-user", "me", "--chap-secret-file", text(&secret)]);
    let load = VerifyingLoad::on(&server, &iqn);
    let (mut config, file) = exported(&server);
    assert_eq!(config["targets"]["old"]["auth"]["chap_secret"], "a secret of initiators", "an export is whole");

    // The same again changes nothing.
    write(&file, &config);
    let same = server.json(&["config", "apply", text(&file)]);
    assert!(same.as_object().expect("an object").values().all(|list| list == &json!([])), "{same}");

    // One disk and target go, another comes, with a portal; a third target gets an access rule more.
    let portal = free_port([127, 0, 0, 1].into());
    let uuid = "6f1c7b3e-2f0a-4f7e-9d0a-1f1de2a3b4c5";
    config["targets"].as_object_mut().expect("targets").remove("old");
    config["disks"].as_object_mut().expect("disks").remove("old");
    config["disks"]["scratch"] = json!({"format": "memory", "size_bytes": 8 << 20, "sector_size_bytes": 512,
        "uuid": uuid, "cache": "direct"});
    config["targets"]["scratch"] =
        json!({"iqn": "iqn.2026-11.io.lunaring:scratch", "luns": {"0": {"disk": "scratch"}}, "allow": ["any"]});
    config["targets"]["busy"]["allow"] = json!(["any", "ip:192.0.2.0/24"]);
    config["portals"].as_array_mut().expect("portals").push(json!(portal.to_string()));
    config["io_deadline_seconds"] = json!(12);
    write(&file, &config);
    assert!(server.ok(&["config", "check", text(&file)]).contains("is sound"));
    let said = server.json(&["config", "apply", text(&file)]);
    for (key, names) in [
        ("disks_added", vec!["scratch".to_owned()]),
        ("disks_removed", vec!["old".to_owned()]),
        ("targets_added", vec!["scratch".to_owned()]),
        ("targets_removed", vec!["old".to_owned()]),
        ("targets_changed", vec!["busy".to_owned()]),
        ("portals_added", vec![portal.to_string()]),
        ("warnings", vec![]),
    ] {
        assert_eq!(said[key], json!(names), "{key}: {said}");
    }
    assert!(old_file.exists(), "no file of a disk is deleted");
    let listing = tool_ok("iscsi-ls", &["-s", &format!("iscsi://{portal}")]);
    assert!(listing.contains("lunaring:scratch") && !listing.contains("lunaring:old"), "{listing}");
    load.stop();

    // It is what a restart finds; a portal that goes is not listened on any more.
    server.stop();
    server.start_again();
    let (mut config, file) = exported(&server);
    assert_eq!(config["io_deadline_seconds"], 12);
    config["portals"] = json!([]);
    write(&file, &config);
    assert_eq!(server.json(&["config", "apply", text(&file)])["portals_removed"], json!([portal.to_string()]));
    assert!(!tool("iscsi-ls", &[&format!("iscsi://{portal}")]).0, "nobody listens there");
}

#[test]
fn a_configuration_that_cannot_be_had_changes_nothing() {
    let server = Server::start();
    server.ready_target("here", &["--size", "16M"]);
    let (before, file) = exported(&server);
    let memory = |uuid: &str| {
        json!({"format": "memory", "size_bytes": 8 << 20, "sector_size_bytes": 512, "uuid": uuid,
        "cache": "direct"})
    };
    let refuse = |change: &dyn Fn(&mut Value), why: &str| {
        let mut config = before.clone();
        change(&mut config);
        write(&file, &config);
        let said = server.refused(&["config", "apply", text(&file)]);
        assert!(said.contains(why), "{said}");
        assert_eq!(exported(&server).0, before, "{said}");
        assert_eq!(server.json(&["disk", "list"])["disks"].as_array().map(Vec::len), Some(1), "{said}");
    };
    refuse(&|config| config["version"] = json!(9), "version 9");
    refuse(&|config| config["targets"]["here"]["allow"] = json!(["everybody"]), "everybody");
    refuse(&|config| drop(config["disks"].as_object_mut().expect("disks").remove("here")), "'here'");
    refuse(
        &|config| config["disks"]["here"]["uuid"] = json!("6f1c7b3e-2f0a-4f7e-9d0a-1f1de2a3b4c5"),
        "two disks of one name",
    );
    refuse(&|config| config["disks"]["here"]["read_only"] = json!(true), "read_only of disk 'here'");
    // What was brought up before is taken away again.
    refuse(
        &|config| {
            config["disks"]["a"] = memory("6f1c7b3e-2f0a-4f7e-9d0a-1f1de2a3b4c5");
            config["disks"]["b"] = json!({"format": "raw", "file": "disks/none.img", "size_bytes": 8 << 20,
                "sector_size_bytes": 512, "uuid": "6f1c7b3e-2f0a-4f7e-9d0a-1f1de2a3b4c6", "cache": "direct"});
        },
        "none.img",
    );
    refuse(
        &|config| {
            config["disks"]["a"] = memory("6f1c7b3e-2f0a-4f7e-9d0a-1f1de2a3b4c5");
            // An address that this machine does not have (RFC 5737).
            config["portals"].as_array_mut().expect("portals").push(json!("192.0.2.77:3260"));
        },
        "192.0.2.77",
    );
}

#[test]
fn a_check_needs_no_server_and_names_the_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("config.json");
    fs::write(&file, "{\n  \"version\": 1,\n  \"disk\": {}\n}\n").expect("a file");
    let said = one_clear_line(&lunaring(&["config", "check", text(&file)]), &["config", "check"]);
    assert!(said.contains("line 3") && said.contains("disk"), "{said}");
    fs::write(&file, "{\"version\": 1}").expect("a file");
    let output = lunaring(&["config", "check", text(&file), "--json"]);
    assert!(output.status.success());
    let counts: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&counts["disks"], &counts["targets"]), (&json!(0), &json!(0)));
}

#[test]
fn top_shows_what_a_disk_does_now() {
    let server = Server::start();
    let iqn = server.ready_target("busy", &["--size", "64M"]);
    server.ok(&["disk", "create", "idle", "--size", "16M", "--format", "memory"]);
    let load = VerifyingLoad::on(&server, &iqn);
    let looks = server.ok(&["top", "--count", "2", "--json"]);
    load.stop();
    assert_eq!(looks.lines().count(), 2, "{looks}");
    for look in looks.lines() {
        let look: Value = serde_json::from_str(look).expect("JSON");
        let of =
            |name: &str| look["disks"].as_array().expect("disks").iter().find(|disk| disk["disk"] == name).cloned();
        let rate = |disk: &Value| disk["write"]["operations_per_second"].as_f64().expect("a number");
        assert!(rate(&of("busy").expect("busy")) > 0.0, "{look}");
        assert_eq!(rate(&of("idle").expect("idle")), 0.0, "{look}");
    }
    let words = server.ok(&["top", "--count", "1"]);
    assert!(words.contains("WRITES/S") && words.contains("busy"), "{words}");
}
