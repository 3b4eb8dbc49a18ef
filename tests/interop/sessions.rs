//! Many sessions at once, and sessions that do nothing.

use std::time::Duration;

use perf::pdu::{self, cdb};
use perf::pipeline::{Pipeline, Request};
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
        over_ring: false,
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

#[test]
fn peers_that_do_not_read_hold_nobody_up_and_take_no_more_than_their_share() {
    let mut server = Server::start_with(Options { cores: Some("0"), ..Options::default() });
    let greedy = server.ready_target("greedy", &["--size", "256M", "--format", "memory"]);
    let modest = server.ready_target("modest", &["--size", "64M"]);
    let mut deaf = vec![];
    for number in 0..16 {
        let wishes = server.wishes(&greedy).session(number + 1);
        let mut pipeline = Pipeline::open(server.portals[0], &wishes, 128).expect("a session");
        pipeline.capacity(0).expect("it works");
        // 128 reads of 1 MiB each are asked for, and no answer is ever read.
        while pipeline.has_room() {
            let cdb = pdu::cdb_transfer_16(cdb::READ_16, 0, 2048, false);
            pipeline.start(Request::reading(0, &cdb, 1 << 20));
        }
        pipeline.flush().expect("sent");
        deaf.push(pipeline);
    }
    let mut verifier = verify::Verifier::open(template(&server, &modest)).expect("a session");
    let began = std::time::Instant::now();
    while verifier.summary().writes < 500 {
        verify::pause_unless(verifier.turn(true).expect("the modest session works"));
        assert!(began.elapsed().as_secs() < 20, "held up: {}", verifier.summary());
    }
    verifier.check_all().expect("the modest session works");
    assert_eq!(verifier.summary().finding_count, 0, "{}", verifier.summary());
    let resident = server.usage().resident_bytes;
    assert!(resident < 2 << 30, "{} MiB resident", resident >> 20);
    // Once they listen, they get everything.
    let mut done = vec![];
    let began = std::time::Instant::now();
    for pipeline in &mut deaf {
        while pipeline.in_flight() > 0 {
            verify::pause_unless(pipeline.turn(&mut done).expect("the session works"));
            assert!(began.elapsed().as_secs() < 60, "{} commands are not answered", pipeline.in_flight());
        }
    }
    assert_eq!(done.len(), 16 * 128);
    assert!(done.iter().all(|ended| ended.status == 0 && ended.received == 1 << 20));
    assert!(server.stop() < Duration::from_secs(2));
}
