//! Many sessions at once, and sessions that do nothing.

use std::time::Duration;

use perf::verify;

use crate::server::{Options, Server};

fn template(server: &Server, iqn: &str) -> verify::Plan {
    verify::Plan {
        portal: server.portals[0],
        wishes: server.wishes(iqn),
        lun: 0,
        first_byte: 0,
        len_bytes: 0,
        unit_bytes: 4096,
        io_units_max: 16,
        depth: 2,
        write_percent: 50,
        flush_one_in: 200,
        writer: 1,
        seed: 5,
    }
}

#[test]
fn six_hundred_sessions_do_io_at_once_on_one_target() {
    let mut server = Server::start_with(Options { cores: Some("0,1"), ..Options::default() });
    let iqn = server.ready_target("crowd", &["--size", "256M"]);
    let sessions = verify::Sessions {
        template: template(&server, &iqn),
        count: 600,
        region_bytes: 256 << 10,
        duration: Duration::from_secs(5),
        adopt: false,
    };
    let before = server.usage();
    let summary = sessions.run().unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(summary.finding_count, 0, "{summary}");
    // All sessions are gone again, and so are their descriptors.
    let began = std::time::Instant::now();
    while server.usage().descriptors > before.descriptors {
        assert!(
            began.elapsed().as_secs() < 10,
            "{} descriptors, {} before",
            server.usage().descriptors,
            before.descriptors
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(server.stop() < Duration::from_secs(2));
}

#[test]
fn idle_sessions_cost_nothing() {
    let mut server = Server::start_with(Options { cores: Some("0,1"), ..Options::default() });
    let iqn = server.ready_target("idle", &["--size", "256M"]);
    let sessions = verify::Sessions {
        template: template(&server, &iqn),
        count: 500,
        region_bytes: 256 << 10,
        duration: Duration::ZERO,
        adopt: false,
    };
    let idle = sessions.open().unwrap_or_else(|e| panic!("{e}"));
    // What the logins left to do is done.
    std::thread::sleep(Duration::from_secs(2));
    let before = server.usage();
    std::thread::sleep(Duration::from_secs(4));
    let used = server.usage().since(&before);
    assert!(used.cpu < Duration::from_millis(20), "500 idle sessions cost {:?} CPU time in 4 s", used.cpu);
    assert!(used.wakeups < 100, "{} wake-ups in 4 s with idle sessions", used.wakeups);
    drop(idle);
    server.stop();
}

#[test]
fn sessions_are_listed_and_dropped() {
    let server = Server::start();
    let iqn = server.ready_target("listed", &["--size", "64M"]);
    let mut verifier = verify::Verifier::open(template(&server, &iqn)).expect("a session");
    let listed = server.ok(&["session", "list"]);
    assert!(listed.contains("iqn.2026-11.io.lunaring:perf") && listed.contains(&iqn), "{listed}");
    let json = server.json(&["session", "list"]);
    let sessions = json.as_array().or_else(|| json["sessions"].as_array()).expect("an array of sessions");
    assert_eq!(sessions.len(), 1, "{json}");
    let id = match &sessions[0]["id"] {
        serde_json::Value::String(id) => id.clone(),
        id => id.to_string(),
    };
    server.ok(&["session", "drop", &id]);
    let began = std::time::Instant::now();
    while verifier.turn(true).is_ok() {
        assert!(began.elapsed().as_secs() < 10, "the dropped session still works after 10 s");
        std::thread::sleep(Duration::from_millis(1));
    }
    let began = std::time::Instant::now();
    while server.json(&["session", "list"]).to_string().contains("lunaring:perf") {
        assert!(began.elapsed().as_secs() < 10, "the dropped session is still listed after 10 s");
        std::thread::sleep(Duration::from_millis(20));
    }
    server.refused(&["session", "drop", &id]);
}
