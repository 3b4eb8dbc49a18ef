//! Who may log in: CHAP in both directions, access rules, and what each refusal looks like to a real client.

use std::fs;
use std::time::Duration;

use perf::login::{LoginError, Wishes};
use perf::pipeline::Pipeline;

use crate::server::{Options, Server, both_loopbacks, text, tool, tool_ok};

const SECRET: &str = "correct-horse-battery";
const MUTUAL: &str = "staple-of-the-target";

fn with_chap(mutual: bool) -> (Server, String) {
    let server = Server::start();
    let iqn = server.ready_target("locked", &["--size", "64M"]);
    let (secret, back) = (server.file("secret"), server.file("mutual"));
    fs::write(&secret, format!("{SECRET}\n")).expect("the secret");
    fs::write(&back, format!("{MUTUAL}\n")).expect("the mutual secret");
    let mut arguments = vec!["target", "auth", "locked", "--chap-user", "alice", "--chap-secret-file", text(&secret)];
    if mutual {
        arguments.extend(["--mutual-user", "server", "--mutual-secret-file", text(&back)]);
    }
    server.ok(&arguments);
    (server, iqn)
}

fn url(server: &Server, iqn: &str, login: &str, query: &str) -> String {
    format!("iscsi://{login}@{}/{iqn}/0{query}", server.portals[0])
}

#[test]
fn chap_one_way_lets_in_who_knows_the_secret_and_nobody_else() {
    let (mut server, iqn) = with_chap(false);
    let good = url(&server, &iqn, &format!("alice%{SECRET}"), "");
    tool_ok("iscsi-inq", &[&good]);
    for login in ["alice%wrong-secret-here", "bob%correct-horse-battery", "alice%"] {
        let (ok, said) = tool("iscsi-inq", &[&url(&server, &iqn, login, "")]);
        assert!(!ok, "{login} was let in:\n{said}");
        assert!(
            said.contains("513") || said.to_lowercase().contains("auth"),
            "{login}: not an authentication failure:\n{said}"
        );
    }
    let (ok, said) = tool("iscsi-inq", &[&server.url(&iqn, 0)]);
    assert!(!ok, "a client without CHAP was let in:\n{said}");
    // The instrument offers AuthMethod=None only.
    match Pipeline::open(server.portals[0], &Wishes::to_target(&iqn), 1) {
        Err(LoginError::Refused { class: 2, detail: 1 }) => {}
        other => panic!("AuthMethod=None must be an authentication failure (0201), not {other:?}"),
    }
    assert!(server.is_alive());
    server.ok(&["target", "auth", "locked", "--none"]);
    tool_ok("iscsi-inq", &[&server.url(&iqn, 0)]);
}

#[test]
fn chap_mutual_proves_the_target_too() {
    let (server, iqn) = with_chap(true);
    let login = format!("alice%{SECRET}");
    let query = format!("?target_user=server&target_password={MUTUAL}");
    tool_ok("iscsi-inq", &[&url(&server, &iqn, &login, &query)]);
    let (ok, said) =
        tool("iscsi-inq", &[&url(&server, &iqn, &login, "?target_user=server&target_password=something-else")]);
    assert!(!ok, "the client accepted a target that does not know its secret:\n{said}");
}

#[test]
fn nobody_is_allowed_until_someone_is() {
    let server = Server::start();
    server.ok(&["disk", "create", "d", "--size", "64M"]);
    let iqn = "iqn.2026-11.io.lunaring:closed";
    server.ok(&["target", "create", "closed", "--iqn", iqn]);
    server.ok(&["target", "map", "closed", "d", "--lun", "0"]);
    let refused = |name: &str| {
        let wishes = Wishes { initiator_name: name.to_owned(), ..Wishes::to_target(iqn) };
        match Pipeline::open(server.portals[0], &wishes, 1) {
            Ok(_) => None,
            Err(LoginError::Refused { class, detail }) => Some((class, detail)),
            Err(other) => panic!("{other}"),
        }
    };
    let me = "iqn.2026-11.io.lunaring:me";
    assert_eq!(refused(me), Some((2, 2)), "authorization failure (RFC 7143 section 11.13.5)");
    server.ok(&["target", "allow", "closed", &format!("iqn:{me}")]);
    assert_eq!(refused(me), None);
    assert_eq!(refused("iqn.2026-11.io.lunaring:other"), Some((2, 2)));
    server.ok(&["target", "deny", "closed", &format!("iqn:{me}")]);
    assert_eq!(refused(me), Some((2, 2)));
    server.ok(&["target", "allow", "closed", "ip:127.0.0.0/8"]);
    assert_eq!(refused(me), None);
    let (ok, said) = tool("iscsi-inq", &[&server.url("iqn.2026-11.io.lunaring:nowhere", 0)]);
    assert!(!ok && (said.contains("515") || said.contains("not found")), "an unknown target: {said}");
}

/// The load generator takes every way in: CHAP, both address families, digests; and drives what it came for.
#[test]
fn the_load_generator_comes_in_by_chap_over_both_protocols_with_digests() {
    let options = Options { addresses: both_loopbacks(), ..Options::default() };
    let server = Server::start_with(options);
    let iqn = server.ready_target("locked", &["--size", "64M", "--format", "memory"]);
    let secret = server.file("secret");
    fs::write(&secret, format!("{SECRET}\n")).expect("the secret");
    server.ok(&["target", "auth", "locked", "--chap-user", "alice", "--chap-secret-file", text(&secret)]);
    assert!(
        server.portals.iter().any(|portal| portal.is_ipv6()) && server.portals.iter().any(|portal| portal.is_ipv4())
    );
    for (number, &portal) in server.portals.iter().enumerate() {
        for digests in [false, true] {
            let login = |secret: &str| {
                let mut wishes = server.wishes(&iqn);
                wishes.chap = Some(("alice".to_owned(), secret.to_owned()));
                (wishes.header_digest, wishes.data_digest) = (digests, digests);
                wishes.isid[5] = number as u8;
                wishes
            };
            let mut plan = perf::load::Plan::new(portal);
            (plan.wishes, plan.connections, plan.depth) = (Some(login(SECRET)), 2, 8);
            plan.warm_up = Duration::ZERO;
            (plan.write_percent, plan.duration) = (50, Duration::from_millis(300));
            let report = plan.run().unwrap_or_else(|why| panic!("{portal}, digests {digests}: {why}"));
            assert!(report.ios > 100 && report.errors == 0, "{portal}, digests {digests}: {report}");
            plan.wishes = Some(login("not-the-secret"));
            let refused = plan.run().expect_err("a wrong secret does not come in").to_string();
            assert!(refused.contains("0201") || refused.to_lowercase().contains("auth"), "{refused}");
        }
    }
}
