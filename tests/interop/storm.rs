//! Mutated PDUs in every phase do no harm: not to the server, not to other sessions.

use perf::storm;

use crate::server::{Options, Server, count};

fn storm(options: Options, seed: u64, pdus: u64, error_recovery_level: u8) {
    let mut server = Server::start_with(options);
    let hurt = server.ready_target("hurt", &["--size", "64M", "--format", "memory"]);
    let healthy = server.ready_target("quite-another-one", &["--size", "64M"]);
    if error_recovery_level > 0 {
        crate::recovery::allow(&server);
    }
    let mut wishes = server.wishes(&hurt);
    wishes.error_recovery_level = error_recovery_level;
    wishes.initiator_name = "iqn.2026-11.io.lunaring:storm".to_owned();
    let plan = storm::Plan {
        portal: server.portals[0],
        wishes,
        lun: 0,
        pdus_per_phase: pdus,
        seed,
        healthy: Some(storm::healthy_plan(server.portals[0], &healthy)),
        server_pid: Some(server.pid()),
    };
    let summary = storm::run(&plan).unwrap_or_else(|e| panic!("{e}"));
    assert!(summary.complaints.is_empty(), "seed {seed}: {summary}");
    assert!(summary.phases.iter().all(|(_, delivered, _)| *delivered >= pdus), "{summary}");
    assert!(server.is_alive());
    println!("{summary}");
    // Whoever is served still works as ever, and it ends as it should.
    let url = server.url(&hurt, 0);
    crate::server::tool_ok("iscsi-inq", &[&url]);
    server.stop();
}

#[test]
fn a_storm_of_mutated_pdus_disturbs_nobody() {
    storm(Options { cores: Some("0,1"), ..Options::default() }, 1, count("LUNARING_STORM_PDUS", 2000), 0);
}

#[test]
fn a_storm_on_the_baseline_features_disturbs_nobody() {
    storm(Options { baseline: true, ..Options::default() }, 2, count("LUNARING_STORM_PDUS", 2000) / 10, 0);
}

#[test]
fn a_storm_with_recovery_within_connections_disturbs_nobody() {
    storm(Options { cores: Some("0,1"), ..Options::default() }, 3, count("LUNARING_STORM_PDUS", 2000), 1);
}
