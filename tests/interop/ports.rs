//! Portal groups: which portals lead to which targets, and what initiators are told of a target's ports.

use std::net::SocketAddr;

use perf::client::Client;
use perf::login::{self, Wire, Wishes};

use crate::server::{Server, free_port};

/// The TargetPortalGroupTag of a login, or the status of its refusal.
fn tag_at_login(portal: SocketAddr, iqn: &str) -> Result<String, String> {
    let wishes = Wishes::to_target(iqn);
    let mut wire = Wire::connect(portal, wishes.timeout).map_err(|e| e.to_string())?;
    wire.login(&wishes).map_err(|e| e.to_string())?;
    let text = wire.text(b"SendTargets=\0").map_err(|e| e.to_string())?;
    Ok(login::pairs(&text).map(|(key, value)| format!("{key}={value};")).collect())
}

/// Designators of the target port in VPD page 83h: relative port, target port group, name.
fn port_designators(client: &mut Client) -> (u16, u16, String) {
    let page = client.read(0, &[0x12, 1, 0x83, 4, 0, 0], 1024).expect("INQUIRY").data;
    let (mut at, mut relative, mut group, mut name) = (4, 0, 0, String::new());
    while at < page.len() {
        let (kind, len) = (page[at + 1], usize::from(page[at + 3]));
        let body = &page[at + 4..at + 4 + len];
        match kind & 0x3f {
            0x14 => relative = u16::from_be_bytes([body[2], body[3]]),
            0x15 => group = u16::from_be_bytes([body[2], body[3]]),
            0x18 => name = String::from_utf8_lossy(body).trim_end_matches('\0').to_owned(),
            _ => {}
        }
        at += 4 + len;
    }
    (relative, group, name)
}

#[test]
fn portal_groups_lead_where_they_are_said_to() {
    let mut server = Server::start();
    let iqn = server.ready_target("both", &["--size", "16M"]);
    let second = free_port(server.portals[0].ip());
    server.ok(&["portal", "add", &second.to_string(), "--group", "5"]);
    let iqn_2 = server.target_with("second", "both");
    server.ok(&["target", "portgroup", "add", "second", "5"]);

    let found = login::discover(server.portals[0], "iqn.2026-11.io.lunaring:perf").expect("discovery works");
    let addresses = |iqn: &str| found.iter().find(|(name, _)| name == iqn).map(|(_, addresses)| addresses.clone());
    let (one, five) = (format!("{},1", server.portals[0]), format!("{second},5"));
    assert_eq!(addresses(&iqn), Some(vec![one.clone(), five.clone()]));
    assert_eq!(addresses(&iqn_2), Some(vec![five.clone()]));

    assert!(tag_at_login(second, &iqn_2).expect("group 5 leads there").contains(&five));
    let refused = tag_at_login(server.portals[0], &iqn_2).expect_err("group 1 does not");
    assert!(refused.contains("0203") || refused.contains("0x203"), "{refused}");

    let ports = |server: &Server| {
        let through = |portal, iqn: &str| {
            let mut client = Client::ready(portal, &Wishes::to_target(iqn), 0).expect("a session");
            port_designators(&mut client)
        };
        vec![through(server.portals[0], &iqn), through(second, &iqn), through(second, &iqn_2)]
    };
    let before = ports(&server);
    assert_eq!(before[0].2, format!("{iqn},t,0x0001"));
    assert_eq!(before[1].2, format!("{iqn},t,0x0005"));
    let mut numbers: Vec<u16> = before.iter().map(|port| port.0).collect();
    assert_eq!(numbers, before.iter().map(|port| port.1).collect::<Vec<_>>(), "each is a group of its own");
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 3, "every port has a number of its own: {before:?}");
    server.kill_9();
    server.start_again();
    assert_eq!(ports(&server), before, "the same after a restart");

    let mut client = Client::ready(second, &Wishes::to_target(&iqn_2).session(7), 0).expect("a session");
    server.refused(&["target", "portgroup", "remove", "second", "5"]);
    server.ok(&["target", "portgroup", "add", "second", "1"]);
    server.ok(&["target", "portgroup", "remove", "second", "5"]);
    assert!(client.bare(0, &[0; 6]).is_err(), "the session through group 5 has been dropped");
    assert!(tag_at_login(server.portals[0], &iqn_2).expect("group 1 does now").contains(&one));
    server.refused(&["portal", "add", &free_port(server.portals[0].ip()).to_string(), "--group", "0"]);
    server.stop();
}
