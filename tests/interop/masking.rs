//! Access rules and LUN masking: who sees which disk under which number, while sessions live.

use perf::client::Client;
use perf::login::{LoginError, Wishes, discover};
use perf::pipeline::Pipeline;

use crate::server::{Options, Server, both_loopbacks, tool_ok};

const REPORT_LUNS: [u8; 12] = [0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
const TEST_UNIT_READY: [u8; 6] = [0; 6];
/// REPORTED LUNS DATA HAS CHANGED (SPC-5 annex F).
const LUNS_CHANGED: (u8, u8, u8) = (6, 0x3f, 0x0e);

fn wishes(iqn: &str, initiator: &str) -> Wishes {
    Wishes { initiator_name: format!("iqn.2026-11.com.example:{initiator}"), ..Wishes::to_target(iqn) }
}

fn session(server: &Server, iqn: &str, initiator: &str) -> Client {
    Client::ready(server.portals[0], &wishes(iqn, initiator), 0).unwrap_or_else(|e| panic!("{initiator}: {e}"))
}

/// The numbers that REPORT LUNS gives.
fn luns(client: &mut Client) -> Vec<u8> {
    let answer = client.read(0, &REPORT_LUNS, 256).expect("an answer");
    assert_eq!(answer.status, 0, "{:?}", answer.sense_triple());
    answer.data[8..].chunks_exact(8).map(|entry| entry[1]).collect()
}

/// The first bytes of a LUN's disk: each disk of these tests begins with its own.
fn mark(client: &mut Client, lun: u16) -> u8 {
    client.settle(lun).expect("unit attentions");
    let answer = client.read(lun, &perf::pdu::cdb_transfer_16(0x88, 0, 1, false), 512).expect("an answer");
    assert_eq!(answer.status, 0, "{:?}", answer.sense_triple());
    answer.data[0]
}

/// Whether the target lets this initiator in.
fn is_let_in(portal: std::net::SocketAddr, iqn: &str, initiator: &str) -> bool {
    match Pipeline::open(portal, &wishes(iqn, initiator), 1) {
        Ok(_) => true,
        Err(LoginError::Refused { class: 2, detail: 2 }) => false,
        Err(other) => panic!("{other}"),
    }
}

/// Three disks that begin with 1, 2 and 3.
fn marked_disks(server: &Server, iqn: &str) {
    server.ok(&["target", "create", "t", "--iqn", iqn]);
    server.ok(&["target", "allow", "t", "any"]);
    for number in 1..=3u8 {
        let disk = format!("d{number}");
        server.ok(&["disk", "create", &disk, "--size", "1M", "--format", "memory"]);
        server.ok(&["target", "map", "t", &disk, "--lun", "0"]);
        let mut client = session(server, iqn, "marker");
        let write = perf::pdu::cdb_transfer_16(0x8a, 0, 1, false);
        assert_eq!(client.write(0, &write, &[number; 512]).expect("an answer").status, 0);
        server.ok(&["target", "unmap", "t", "--lun", "0"]);
    }
}

#[test]
fn each_initiator_sees_its_own_disk_under_the_same_number() {
    let server = Server::start();
    let iqn = "iqn.2026-11.io.lunaring:t";
    marked_disks(&server, iqn);
    server.ok(&["target", "map", "t", "d1", "--lun", "0"]);
    server.ok(&["target", "map", "t", "d2", "--lun", "0", "--for", "iqn:iqn.2026-11.com.example:a"]);
    server.ok(&["target", "map", "t", "d3", "--lun", "0", "--for", "iqn:iqn.2026-11.com.example:*"]);
    server.ok(&["target", "map", "t", "d3", "--lun", "5", "--for", "iqn:iqn.2026-11.com.example:a", "--read-only"]);
    let mut a = session(&server, iqn, "a");
    let mut b = session(&server, iqn, "b");
    assert_eq!((luns(&mut a), mark(&mut a, 0), mark(&mut a, 5)), (vec![0, 5], 2, 3));
    assert_eq!((luns(&mut b), mark(&mut b, 0)), (vec![0], 3));
    let write = perf::pdu::cdb_transfer_16(0x8a, 0, 1, false);
    let refused = a.write(5, &write, &[9; 512]).expect("an answer");
    assert_eq!(refused.sense_triple(), Some((7, 0x27, 0)), "DATA PROTECT, WRITE PROTECTED");
    let hidden = b.read(5, &perf::pdu::cdb_transfer_16(0x88, 0, 1, false), 512).expect("an answer");
    assert_eq!(hidden.sense_triple(), Some((5, 0x25, 0)), "LOGICAL UNIT NOT SUPPORTED");
    let stranger = Wishes { initiator_name: "iqn.1991-05.com.other:x".into(), ..Wishes::to_target(iqn) };
    let mut stranger = Client::ready(server.portals[0], &stranger, 0).expect("a session");
    assert_eq!((luns(&mut stranger), mark(&mut stranger, 0)), (vec![0], 1));
    // It outlives a restart, and can be read by people and programs.
    let shown = server.ok(&["target", "show", "t"]);
    assert!(shown.contains("SEEN BY") && shown.contains("iqn:iqn.2026-11.com.example:*"), "{shown}");
    assert!(shown.contains("all others"), "{shown}");
    let json = server.json(&["target", "show", "t"]);
    assert_eq!(json["luns"].as_array().expect("luns").len(), 4, "{json}");
    assert!(server.refused(&["disk", "delete", "d2"]).contains("target 't'"));
    let refused = server.refused(&["target", "unmap", "t", "--lun", "5"]);
    assert!(refused.contains("--for iqn:iqn.2026-11.com.example:a"), "{refused}");
}

#[test]
fn changes_reach_living_sessions() {
    let mut server = Server::start_with(Options { cores: Some("0,1"), ..Options::default() });
    let iqn = "iqn.2026-11.io.lunaring:t";
    marked_disks(&server, iqn);
    server.ok(&["target", "map", "t", "d1", "--lun", "0"]);
    let mut a = session(&server, iqn, "a");
    let mut b = session(&server, iqn, "b");
    let attention = |client: &mut Client| client.bare(0, &TEST_UNIT_READY).expect("an answer").sense_triple();
    assert_eq!((attention(&mut a), attention(&mut b)), (None, None));
    server.ok(&["target", "map", "t", "d2", "--lun", "1", "--for", "iqn:iqn.2026-11.com.example:a"]);
    assert_eq!((attention(&mut a), attention(&mut b)), (Some(LUNS_CHANGED), None));
    assert_eq!((luns(&mut a), luns(&mut b)), (vec![0, 1], vec![0]));
    server.ok(&["target", "unmap", "t", "--lun", "1", "--for", "iqn:iqn.2026-11.com.example:a"]);
    assert_eq!((attention(&mut a), attention(&mut b)), (Some(LUNS_CHANGED), None));
    assert_eq!(luns(&mut a), [0]);
    // Another disk under the same number, for one of them.
    server.ok(&["target", "map", "t", "d3", "--lun", "0", "--for", "iqn:iqn.2026-11.com.example:b"]);
    assert_eq!(attention(&mut a), None);
    for _ in 0..3 {
        attention(&mut b);
    }
    assert_eq!((mark(&mut a, 0), mark(&mut b, 0)), (1, 3));
    // Who is allowed no more is dropped, and the other is not.
    server.ok(&["target", "allow", "t", "iqn:iqn.2026-11.com.example:a"]);
    server.ok(&["target", "deny", "t", "any"]);
    assert_eq!(attention(&mut a), None);
    assert!(b.bare(0, &TEST_UNIT_READY).is_err(), "a session of a denied initiator lives");
    server.stop();
    server.start_again();
    let mut a = session(&server, iqn, "a");
    assert_eq!(luns(&mut a), [0]);
    assert!(!is_let_in(server.portals[0], iqn, "b"));
}

#[test]
fn rules_go_by_name_beginning_address_and_portal() {
    let server = Server::start_with(Options { addresses: both_loopbacks(), ..Options::default() });
    let iqn = server.ready_target("ruled", &["--size", "1M", "--format", "memory"]);
    server.ok(&["target", "deny", "ruled", "any"]);
    let [four, six] = [server.portals[0], server.portals[1]];
    let let_in = || [is_let_in(four, &iqn, "a1"), is_let_in(six, &iqn, "a1"), is_let_in(four, &iqn, "b")];
    let seen = |portal| discover(portal, "iqn.2026-11.com.example:a1").unwrap_or_else(|e| panic!("{e}")).len() == 1;
    for (rule, expected) in [
        ("iqn:iqn.2026-11.com.example:a*".to_owned(), [true, true, false]),
        ("iqn:iqn.2026-11.com.example:b".to_owned(), [false, false, true]),
        ("ip:127.0.0.0/8".to_owned(), [true, false, true]),
        ("ip:::1".to_owned(), [false, true, false]),
        (format!("portal:{four}"), [true, false, true]),
        (format!("portal:{six}"), [false, true, false]),
        (format!("portal:0.0.0.0:{}", four.port()), [true, false, true]),
    ] {
        server.ok(&["target", "allow", "ruled", &rule]);
        assert_eq!(let_in(), expected, "{rule}");
        assert_eq!([seen(four), seen(six)], expected[..2], "discovery with {rule}");
        server.ok(&["target", "deny", "ruled", &rule]);
        assert_eq!(let_in(), [false; 3]);
    }
    assert!(server.refused(&["target", "allow", "ruled", "iqn:*"]).contains("beginning"));
    // Another project's client, with its own name.
    server.ok(&["target", "allow", "ruled", "iqn:iqn.2026-11.com.example:li*"]);
    let url = server.url(&iqn, 0);
    tool_ok("iscsi-inq", &["-i", "iqn.2026-11.com.example:libiscsi", &url]);
}
