//! What the operator told the server survives, whole or not at all.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use perf::random::Random;

use crate::server::{LUNARING, Server, count, tool_ok};

#[test]
fn everything_told_is_there_after_a_restart() {
    let mut server = Server::start();
    server.ok(&["disk", "create", "dynamic", "--size", "1G", "--block-size", "4M"]);
    server.ok(&["disk", "create", "fixed", "--size", "64M", "--kind", "fixed", "--sector-size", "4096"]);
    server.ok(&["disk", "create", "raw", "--size", "64M", "--format", "raw"]);
    server.ok(&["disk", "create", "memory", "--size", "64M", "--format", "memory"]);
    server.ok(&["disk", "create", "null", "--size", "64M", "--format", "null"]);
    server.ok(&["target", "create", "t", "--iqn", "iqn.2026-11.io.lunaring:t"]);
    for (lun, disk) in ["dynamic", "fixed", "raw", "memory", "null"].iter().enumerate() {
        server.ok(&["target", "map", "t", disk, "--lun", &(lun * 3).to_string()]);
    }
    server.ok(&["target", "unmap", "t", "--lun", "12"]);
    server.ok(&["target", "allow", "t", "iqn:iqn.2026-11.io.lunaring:me"]);
    server.ok(&["target", "allow", "t", "any"]);
    let told = |server: &Server| ["disk", "target", "portal"].map(|what| server.json(&[what, "list"]).to_string());
    let before = told(&server);
    server.stop();
    server.start_again();
    assert_eq!(told(&server), before);
    let listing = tool_ok("iscsi-ls", &["-s", &format!("iscsi://{}", server.portals[0])]);
    for lun in [0, 3, 6, 9] {
        assert!(listing.contains(&format!("Lun:{lun} ")), "{listing}");
    }
    assert!(!listing.contains("Lun:12"), "{listing}");
    server.kill_9();
    server.start_again();
    assert_eq!(told(&server), before);

    // And it can all be taken away again.
    for lun in [0, 3, 6, 9] {
        server.ok(&["target", "unmap", "t", "--lun", &lun.to_string()]);
    }
    server.ok(&["target", "delete", "t"]);
    server.ok(&["disk", "delete", "dynamic"]);
    let raw = server.disk_file("raw");
    server.ok(&["disk", "delete", "raw", "--keep-file"]);
    assert!(raw.exists());
    let left = server.json(&["disk", "list"]).to_string();
    assert!(!left.contains("\"dynamic\"}") && !left.contains("\"name\":\"dynamic\""), "{left}");
}

#[test]
fn a_kill_in_a_stream_of_commands_leaves_the_state_before_or_after_one() {
    let mut server = Server::start();
    server.ok(&["disk", "create", "d", "--size", "16M", "--format", "memory"]);
    let mut random = Random::new(4);
    let rounds = count("LUNARING_KILLS", 10).div_ceil(5);
    let mut first_unsure = 0;
    for round in 0..rounds {
        let stop = Arc::new(AtomicBool::new(false));
        let finished = Arc::new(AtomicU32::new(first_unsure));
        let worker = {
            let (stop, finished, socket) = (stop.clone(), finished.clone(), server.socket());
            std::thread::spawn(move || {
                let mut number = finished.load(Ordering::Relaxed);
                while !stop.load(Ordering::Relaxed) {
                    let name = format!("t{number}");
                    let output =
                        Command::new(LUNARING).args(["target", "create", &name, "--socket"]).arg(&socket).output();
                    if !output.expect("lunaring runs").status.success() {
                        return;
                    }
                    number += 1;
                    finished.store(number, Ordering::Relaxed);
                }
            })
        };
        std::thread::sleep(Duration::from_millis(30 + random.below(100)));
        server.kill_9();
        stop.store(true, Ordering::Relaxed);
        worker.join().expect("the stream of commands");
        let acknowledged = finished.load(Ordering::Relaxed);
        server.start_again();
        let listed = server.json(&["target", "list"]).to_string();
        for number in 0..acknowledged {
            assert!(
                listed.contains(&format!("\"t{number}\"")),
                "round {round}: target t{number} was acknowledged and is lost"
            );
        }
        // One more may or may not be there; nothing beyond it.
        let one_more = listed.contains(&format!("\"t{acknowledged}\""));
        assert!(!listed.contains(&format!("\"t{}\"", acknowledged + 1)), "round {round}: a target nobody asked for");
        first_unsure = acknowledged + u32::from(one_more);
    }
    assert!(first_unsure > 0, "no command was acknowledged in {rounds} rounds");
}

#[test]
fn the_control_socket_is_for_its_owner_only_and_shows_metrics() {
    let server = Server::start();
    let iqn = server.ready_target("measured", &["--size", "64M"]);
    let mode = std::fs::metadata(server.socket()).expect("the socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    tool_ok("qemu-io", &["-f", "raw", "-c", "write -P 1 0 1M", "-c", "read -P 1 0 1M", &server.url(&iqn, 0)]);
    let socket = server.socket();
    let metrics = tool_ok("curl", &["-s", "--unix-socket", crate::server::text(&socket), "http://localhost/metrics"]);
    assert!(metrics.contains("# TYPE") && metrics.contains("measured"), "{metrics}");
    let stats = server.ok(&["stats"]);
    assert!(!stats.trim().is_empty());
    let openapi =
        tool_ok("curl", &["-s", "--unix-socket", crate::server::text(&socket), "http://localhost/v1/openapi.json"]);
    assert!(serde_json::from_str::<serde_json::Value>(&openapi).is_ok(), "{openapi}");
}

#[test]
fn portals_come_and_go_while_others_serve() {
    let server = Server::start();
    let iqn = server.ready_target("moving", &["--size", "64M"]);
    let extra = crate::server::free_port("127.0.0.1".parse().expect("an address")).to_string();
    server.ok(&["portal", "add", &extra]);
    tool_ok("iscsi-inq", &[&format!("iscsi://{extra}/{iqn}/0")]);
    assert!(server.ok(&["portal", "list"]).contains(&extra));
    server.ok(&["portal", "remove", &extra]);
    let (ok, _) = crate::server::tool("iscsi-inq", &[&format!("iscsi://{extra}/{iqn}/0")]);
    assert!(!ok, "a removed portal still answers");
    tool_ok("iscsi-inq", &[&server.url(&iqn, 0)]);
}

#[test]
fn every_command_speaks_json() {
    let server = Server::start();
    let iqn = server.ready_target("spoken", &["--size", "64M"]);
    tool_ok("iscsi-inq", &[&server.url(&iqn, 0)]);
    let extra = crate::server::free_port("127.0.0.1".parse().expect("an address")).to_string();
    let commands: &[&[&str]] = &[
        &["disk", "create", "second", "--size", "64M"],
        &["disk", "list"],
        &["disk", "show", "second"],
        &["target", "create", "other"],
        &["target", "list"],
        &["target", "map", "other", "second"],
        &["target", "allow", "other", "any"],
        &["target", "show", "other"],
        &["target", "deny", "other", "any"],
        &["target", "unmap", "other", "--lun", "0"],
        &["target", "delete", "other"],
        &["disk", "delete", "second"],
        &["portal", "add", &extra],
        &["portal", "list"],
        &["portal", "remove", &extra],
        &["session", "list"],
        &["stats"],
    ];
    for arguments in commands {
        let value = server.json(arguments);
        assert!(value.is_object() || value.is_array() || value.is_null(), "{arguments:?}: {value}");
    }
}
