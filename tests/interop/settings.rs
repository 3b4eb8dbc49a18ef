//! Settings of the server, a target and a disk from the command line: shown, in force, and there after a restart. What
//! they do, `connections`, `recovery` and `hung` hold, which set them this way.

use perf::client::Client;
use perf::login::Wishes;
use serde_json::json;

use crate::server::Server;

/// MaxConnections that a new session gets when it asks for 8.
fn connections(server: &Server, iqn: &str) -> u32 {
    let wishes = Wishes { connections_max: 8, ..Wishes::to_target(iqn) };
    let mut client = Client::ready(server.portals[0], &wishes, 0).expect("a session");
    let mut joined = vec![];
    for connection_id in 1..=8 {
        let wishes = Wishes { tsih: client.parameters.tsih, connection_id, ..wishes.clone() };
        match Client::open(server.portals[0], &wishes) {
            Ok(connection) => joined.push(connection),
            Err(_) => break,
        }
    }
    client.settle(0).expect("a unit");
    joined.len() as u32 + 1
}

#[test]
fn settings_are_shown_hold_at_once_and_outlast_a_restart() {
    let mut server = Server::start();
    let iqn = server.ready_target("one", &["--size", "16M"]);
    let other = server.ready_target("two", &["--size", "16M"]);
    let by_itself = json!({
        "io_deadline_seconds": 30, "thin_threshold_bytes": 0, "error_recovery_level": 0, "max_connections": 1
    });
    assert_eq!(server.json(&["settings", "show"]), by_itself);
    assert_eq!(server.json(&["target", "set", "one"]), json!({}));
    assert_eq!(connections(&server, &iqn), 1);
    let set = ["--io-deadline", "5", "--thin-threshold", "1G", "--error-recovery-level", "1", "--max-connections", "3"];
    let changed = json!({
        "io_deadline_seconds": 5, "thin_threshold_bytes": 1 << 30, "error_recovery_level": 1, "max_connections": 3
    });
    assert_eq!(server.json(&[&["settings", "set"], &set[..]].concat()), changed);
    assert_eq!(server.json(&["target", "set", &other, "--max-connections", "2"]), json!({ "max_connections": 2 }));
    assert_eq!(server.json(&["disk", "set", "one", "--thin-threshold", "0"]), json!({ "thin_threshold_bytes": 0 }));
    server.kill_9();
    server.start_again();
    assert_eq!(server.json(&["settings", "show"]), changed);
    assert_eq!((connections(&server, &iqn), connections(&server, &other)), (3, 2));
    assert!(server.ok(&["settings", "show"]).contains("1G"));
    assert_eq!(server.json(&["settings", "set", "--io-deadline", "default"])["io_deadline_seconds"], 30);
    assert_eq!(server.json(&["target", "set", "two", "--max-connections", "default"]), json!({}));
    assert_eq!(connections(&server, &other), 3);
    assert_eq!(server.json(&["disk", "set", "one", "--thin-threshold", "default"]), json!({}));
    for refused in [
        &["settings", "set", "--io-deadline", "0"][..],
        &["settings", "set", "--error-recovery-level", "2"],
        &["target", "set", "one", "--max-connections", "9"],
        &["target", "set", "none", "--max-connections", "2"],
        &["disk", "set", "none", "--thin-threshold", "1G"],
    ] {
        server.refused(refused);
    }
    assert_eq!(server.lunaring(&["settings", "set"]).status.code(), Some(2), "nothing to set");
    server.stop();
}
