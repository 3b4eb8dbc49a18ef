//! Reservations and target port groups as initiators on several shards meet them, and across restarts.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use perf::client::{Answer, Client};
use perf::login::Wishes;

use crate::server::{Options, Server, free_port};

const GOOD: u8 = 0;
const CHECK_CONDITION: u8 = 2;
const RESERVATION_CONFLICT: u8 = 0x18;

const REGISTER: u8 = 0;
const RESERVE: u8 = 1;
const RELEASE: u8 = 2;
const CLEAR: u8 = 3;
const PREEMPT: u8 = 4;
const PREEMPT_AND_ABORT: u8 = 5;
const REGISTER_AND_IGNORE: u8 = 6;

/// Write exclusive, registrants only: what Windows clusters use.
const WE_RO: u8 = 5;
const APTPL: u8 = 1;
const LOGICAL_UNIT_RESET: u8 = 5;

/// PERSISTENT RESERVE OUT; its status.
fn out(client: &mut Client, action: u8, kind: u8, key: u64, new_key: u64, flags: u8) -> u8 {
    let mut list = [key.to_be_bytes(), new_key.to_be_bytes()].concat();
    list.extend([0, 0, 0, 0, flags, 0, 0, 0]);
    client.write(0, &[0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0], &list).expect("an answer").status
}

fn register(client: &mut Client, key: u64, flags: u8) {
    assert_eq!(out(client, REGISTER_AND_IGNORE, 0, 0, key, flags), GOOD);
}

/// PERSISTENT RESERVE IN.
fn reserve_in(client: &mut Client, action: u8) -> Vec<u8> {
    let answer = client.read(0, &[0x5e, action, 0, 0, 0, 0, 0, 0x10, 0, 0], 4096).expect("an answer");
    assert_eq!(answer.status, GOOD, "{answer:?}");
    answer.data
}

/// The registered keys, ascending.
fn keys(client: &mut Client) -> Vec<u64> {
    let data = reserve_in(client, 0);
    let mut keys: Vec<u64> = data[8..].chunks(8).map(|key| u64::from_be_bytes(key.try_into().expect("8"))).collect();
    keys.sort_unstable();
    keys
}

/// The holder's key and the type of the reservation.
fn reservation(client: &mut Client) -> Option<(u64, u8)> {
    let data = reserve_in(client, 1);
    (data.len() > 8).then(|| (u64::from_be_bytes(data[8..16].try_into().expect("8")), data[21] & 0xf))
}

/// WRITE(10) of one block.
fn write(client: &mut Client) -> u8 {
    client.write(0, &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[0x5a; 512]).expect("an answer").status
}

/// READ(10) of one block.
fn read(client: &mut Client) -> Answer {
    client.read(0, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], 512).expect("an answer")
}

fn wishes(iqn: &str, node: u32) -> Wishes {
    Wishes { initiator_name: format!("iqn.2026-11.io.lunaring:node{node}"), ..Wishes::to_target(iqn).session(node) }
}

fn node(server: &Server, iqn: &str, number: u32) -> Client {
    Client::ready(server.portals[0], &wishes(iqn, number), 0).expect("a session")
}

/// Nodes whose connections come from different CPUs, and so to different shards.
fn nodes(server: &Server, iqn: &str, count: u32) -> Vec<Client> {
    let open = |number: u32| {
        assert!(perf::cost::pin(number as usize % 2), "two CPUs are there");
        node(server, iqn, number)
    };
    let open = |number| std::thread::scope(|scope| scope.spawn(move || open(number)).join().expect("a session"));
    let nodes = (1..=count).map(open).collect();
    let listed = server.json(&["session", "list"]);
    let shards: Vec<_> = listed["sessions"].as_array().expect("a list").iter().map(|s| s["shard"].as_u64()).collect();
    assert!(shards.contains(&Some(0)) && shards.contains(&Some(1)), "sessions on both shards: {shards:?}");
    nodes
}

fn two_shards() -> Server {
    Server::start_with(Options { cores: Some("0,1"), ..Options::default() })
}

/// What a command is told instead of being served.
fn attention(client: &mut Client) -> Option<(u8, u8, u8)> {
    client.bare(0, &[0; 6]).expect("an answer").sense_triple()
}

/// The steps of Windows' cluster validation ("Validate SCSI-3 Persistent Reservation"): registration by all nodes, a
/// reservation, failover by preemption, eviction, release and clearing.
#[test]
fn a_windows_cluster_is_validated() {
    let mut server = two_shards();
    let iqn = server.ready_target("cluster", &["--size", "16M"]);
    let mut all = nodes(&server, &iqn, 3);
    let [a, b, c] = &mut all[..] else { panic!("three nodes") };
    let (key_a, key_b, key_c) = (0xa000_0001, 0xb000_0002, 0xc000_0003);
    // Capabilities first: CRH, SIP_C, ATP_C, PTPL_C; type mask valid, and WE-RO in it.
    let capabilities = reserve_in(a, 2);
    assert_eq!((capabilities[2] & 0x1d, capabilities[3] & 0x80, capabilities[4] & 0x20), (0x1d, 0x80, 0x20));
    register(a, key_a, 0);
    register(b, key_b, 0);
    assert_eq!(keys(c), [key_a, key_b]);
    assert_eq!(out(a, RESERVE, WE_RO, key_a, 0, 0), GOOD);
    assert_eq!(out(b, RESERVE, WE_RO, key_b, 0, 0), RESERVATION_CONFLICT, "it is held");
    assert_eq!(out(c, RESERVE, WE_RO, key_c, 0, 0), RESERVATION_CONFLICT, "not registered");
    assert_eq!(reservation(b), Some((key_a, WE_RO)));
    assert_eq!((write(a), write(b), write(c)), (GOOD, GOOD, RESERVATION_CONFLICT));
    assert_eq!(read(c).status, GOOD);
    assert_eq!(out(a, RELEASE, WE_RO, key_a, 0, 0), GOOD);
    assert_eq!(attention(b), Some((6, 0x2a, 0x04)), "RESERVATIONS RELEASED");
    assert_eq!(write(c), GOOD, "nothing is reserved");
    // Failover: b takes over from a, which is evicted.
    assert_eq!(out(a, RESERVE, WE_RO, key_a, 0, 0), GOOD);
    assert_eq!(out(b, PREEMPT, WE_RO, key_b, key_a, 0), GOOD);
    assert_eq!(reservation(c), Some((key_b, WE_RO)));
    assert_eq!(keys(c), [key_b]);
    assert_eq!(attention(a), Some((6, 0x2a, 0x05)), "REGISTRATIONS PREEMPTED");
    assert_eq!((write(a), read(a).status), (RESERVATION_CONFLICT, GOOD));
    // The evicted node's defence comes too late, and its challenge needs a registration.
    assert_eq!(out(a, REGISTER, 0, key_a, key_a, 0), RESERVATION_CONFLICT);
    register(a, key_a, 0);
    assert_eq!((write(a), write(b)), (GOOD, GOOD));
    assert_eq!(out(a, PREEMPT_AND_ABORT, WE_RO, key_a, key_b, 0), GOOD);
    assert_eq!(attention(b), Some((6, 0x2a, 0x05)));
    assert_eq!((write(a), write(b)), (GOOD, RESERVATION_CONFLICT));
    register(c, key_c, 0);
    assert_eq!(out(c, CLEAR, 0, key_c, 0, 0), GOOD);
    assert_eq!(attention(a), Some((6, 0x2a, 0x03)), "RESERVATIONS PREEMPTED");
    assert_eq!((keys(a), reservation(a)), (vec![], None));
    assert_eq!((write(a), write(b), write(c)), (GOOD, GOOD, GOOD));
    server.stop();
}

#[test]
fn with_aptpl_registrations_and_reservation_outlast_the_server_and_without_they_do_not() {
    let mut server = two_shards();
    for (name, options) in [
        ("vhdx", &["--size", "16M"][..]),
        ("memory", &["--size", "16M", "--format", "memory"]),
        ("raw", &["--size", "16M", "--format", "raw"]),
    ] {
        let iqn = server.ready_target(name, options);
        for clean in [false, true] {
            let (mut a, mut b) = (node(&server, &iqn, 1), node(&server, &iqn, 2));
            register(&mut a, 0xa1, APTPL);
            register(&mut b, 0xb1, APTPL);
            assert_eq!(out(&mut a, RESERVE, WE_RO, 0xa1, 0, 0), GOOD);
            if clean {
                server.stop();
            } else {
                server.kill_9();
            }
            server.start_again();
            let (mut a, mut b, mut c) = (node(&server, &iqn, 1), node(&server, &iqn, 2), node(&server, &iqn, 3));
            assert_eq!((keys(&mut c), reservation(&mut c)), (vec![0xa1, 0xb1], Some((0xa1, WE_RO))), "{name}");
            assert_eq!((write(&mut a), write(&mut b), write(&mut c)), (GOOD, GOOD, RESERVATION_CONFLICT), "{name}");
            // A full status tells both nexuses, by name.
            let full = String::from_utf8_lossy(&reserve_in(&mut c, 3)).into_owned();
            assert!(full.contains("lunaring:node1,i,0x") && full.contains("lunaring:node2,i,0x"), "{full}");
            // The last registration decides: no longer.
            register(&mut b, 0xb2, 0);
            server.kill_9();
            server.start_again();
            let mut a = node(&server, &iqn, 1);
            assert_eq!((keys(&mut a), reservation(&mut a)), (vec![], None), "{name}");
        }
    }
    // Registrations stay with their disk, not with its name.
    let mut a = node(&server, "iqn.2026-11.io.lunaring:raw", 1);
    register(&mut a, 0xa1, APTPL);
    drop(a);
    server.ok(&["target", "delete", "raw"]);
    server.ok(&["disk", "delete", "raw"]);
    let iqn = server.ready_target("raw", &["--size", "16M"]);
    server.kill_9();
    server.start_again();
    assert!(keys(&mut node(&server, &iqn, 1)).is_empty());
    server.stop();
}

/// What READ FULL STATUS says of each registration: key, holder, and the TransportID's name with the ISID.
fn full_status(client: &mut Client) -> Vec<(u64, bool, String)> {
    let data = reserve_in(client, 3);
    let (mut rest, mut all) = (&data[8..], vec![]);
    while !rest.is_empty() {
        let name_bytes = u32::from_be_bytes(rest[20..24].try_into().expect("4")) as usize;
        let transport_id = String::from_utf8_lossy(&rest[28..24 + name_bytes]);
        let key = u64::from_be_bytes(rest[..8].try_into().expect("8"));
        all.push((key, rest[12] & 1 != 0, transport_id.trim_end_matches('\0').to_owned()));
        rest = &rest[24 + name_bytes..];
    }
    all.sort();
    all
}

/// The files beside images in a folder that keep reservations.
fn kept_beside(folder: &Path) -> Vec<PathBuf> {
    let all = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    all.filter(|path| path.extension().is_some_and(|extension| extension == "reservations")).collect()
}

/// Registrations go where the disk goes: to another server, with the files, whatever state the first one ended in.
#[test]
fn with_aptpl_registrations_go_where_the_disk_goes() {
    for (format, snapshot) in
        [("vhdx", false), ("raw", false), ("vhd", false), ("vhdx", true), ("raw", true), ("vhd", true)]
    {
        let mut first = two_shards();
        let iqn = first.ready_target("moving", &["--size", "16M", "--format", format]);
        let disks = first.state().join("disks");
        let (mut a, mut b) = (node(&first, &iqn, 1), node(&first, &iqn, 2));
        register(&mut a, 0xa1, 0);
        assert_eq!(kept_beside(&disks).len(), 0, "nothing has to last yet");
        register(&mut a, 0xa1, APTPL);
        let [kept] = &kept_beside(&disks)[..] else { panic!("one file beside the disk") };
        if snapshot {
            first.ok(&["snapshot", "create", "moving", "one"]);
        }
        for client in [&mut a, &mut b] {
            client.settle(0).expect("told");
        }
        register(&mut b, 0xb1, APTPL);
        assert_eq!(out(&mut a, RESERVE, WE_RO, 0xa1, 0, 0), GOOD);
        let before = full_status(&mut b);
        assert_eq!(before.len(), 2);
        assert!(before[0].2.starts_with("iqn.2026-11.io.lunaring:node1,i,0x"), "{before:?}");
        let leaf = PathBuf::from(first.json(&["disk", "show", "moving"])["file"].as_str().expect("a file"));
        // A copy made beside the disk is a disk of its own: nobody is registered with it.
        let clone = first.file("clone.vhdx");
        first.ok(&["disk", "convert", "moving", "--to", clone.to_str().expect("UTF-8")]);
        first.kill_9();

        let mut second = two_shards();
        let folder = second.folder.path().join("moved");
        std::fs::create_dir(&folder).expect("a folder");
        for entry in std::fs::read_dir(&disks).expect("a folder") {
            let path = entry.expect("an entry").path();
            std::fs::rename(&path, folder.join(path.file_name().expect("a name"))).expect("moved");
        }
        let image = folder.join(leaf.file_name().expect("a name"));
        second.ok(&["disk", "add", "arrived", "--file", image.to_str().expect("UTF-8")]);
        second.ok(&["disk", "add", "clone", "--file", clone.to_str().expect("UTF-8")]);
        let iqn = second.target_with("moving", "arrived");
        for restart in [false, true] {
            if restart {
                second.kill_9();
                second.start_again();
            }
            let (mut a, mut b, mut c) = (node(&second, &iqn, 1), node(&second, &iqn, 2), node(&second, &iqn, 3));
            assert_eq!(full_status(&mut c), before, "{format}, snapshot {snapshot}, restart {restart}");
            assert_eq!((write(&mut a), write(&mut b), write(&mut c)), (GOOD, GOOD, RESERVATION_CONFLICT), "{format}");
        }
        let iqn_of_clone = second.target_with("clone", "clone");
        let mut stranger = node(&second, &iqn_of_clone, 4);
        assert_eq!((keys(&mut stranger), write(&mut stranger)), (vec![], GOOD));
        // What changes there is kept there.
        let mut b = node(&second, &iqn, 2);
        assert_eq!(out(&mut b, PREEMPT, WE_RO, 0xb1, 0xa1, APTPL), GOOD);
        second.kill_9();
        second.start_again();
        let mut a = node(&second, &iqn, 1);
        assert_eq!((keys(&mut a), write(&mut a)), (vec![0xb1], RESERVATION_CONFLICT));
        // The file goes with the disk only where the image does.
        second.ok(&["target", "delete", "moving"]);
        second.ok(&["disk", "delete", "arrived"]);
        assert_eq!(kept_beside(&folder), [folder.join(kept.file_name().expect("a name"))]);
        second.stop();
    }
}

/// Where the folder takes no file, reservations stay with the server; where it can later, they go to the disk. A disk
/// that is deleted takes its file along.
#[test]
fn reservations_that_cannot_go_with_the_disk_stay_with_the_server() {
    let mut server = two_shards();
    let iqn = server.ready_target("fixed", &["--size", "16M"]);
    let disks = server.state().join("disks");
    // Folders stand where the file would be.
    let uuid = server.json(&["disk", "show", "fixed"])["uuid"].as_str().expect("a UUID").to_owned();
    let names = [format!("{uuid}.reservations"), "fixed.vhdx.reservations".to_owned()].map(|name| disks.join(name));
    names.iter().for_each(|name| std::fs::create_dir(name).expect("a folder"));
    let mut a = node(&server, &iqn, 1);
    register(&mut a, 0xa1, APTPL);
    assert!(server.log().contains("no file can be made beside disk 'fixed'"), "{}", server.log());
    server.kill_9();
    server.start_again();
    assert_eq!(keys(&mut node(&server, &iqn, 2)), [0xa1]);
    server.kill_9();
    names.iter().for_each(|name| std::fs::remove_dir(name).expect("an empty folder"));
    server.start_again();
    assert_eq!(keys(&mut node(&server, &iqn, 2)), [0xa1]);
    assert_eq!(kept_beside(&disks), [names[0].clone()], "it has moved to the disk");
    let mut a = node(&server, &iqn, 1);
    register(&mut a, 0xa2, APTPL);
    server.kill_9();
    server.start_again();
    assert_eq!(keys(&mut node(&server, &iqn, 2)), [0xa2]);
    server.ok(&["target", "delete", "fixed"]);
    server.ok(&["disk", "delete", "fixed"]);
    assert!(kept_beside(&disks).is_empty());
    server.stop();
}

#[test]
fn a_disk_that_is_reserved_stays_so_through_everything_but_what_ends_it() {
    let mut server = two_shards();
    let iqn = server.ready_target("kept", &["--size", "16M"]);
    let mut all = nodes(&server, &iqn, 2);
    let [a, b] = &mut all[..] else { panic!("two nodes") };
    register(a, 0xa1, 0);
    assert_eq!(out(a, RESERVE, 1, 0xa1, 0, 0), GOOD);
    assert_eq!(b.task_management(LOGICAL_UNIT_RESET, 0, None).expect("an answer"), 0);
    b.settle(0).expect("told");
    assert_eq!(write(b), RESERVATION_CONFLICT, "after a reset");
    server.ok(&["disk", "resize", "kept", "--size", "32M"]);
    server.ok(&["snapshot", "create", "kept", "one"]);
    b.settle(0).expect("told");
    assert_eq!(write(b), RESERVATION_CONFLICT, "after a resize and a snapshot");
    server.ok(&["target", "unmap", "kept", "--lun", "0"]);
    server.ok(&["target", "map", "kept", "kept", "--lun", "0"]);
    b.settle(0).expect("told");
    assert_eq!(write(b), RESERVATION_CONFLICT, "mapped again");
    *a = node(&server, &iqn, 1);
    assert_eq!((write(a), write(b)), (GOOD, RESERVATION_CONFLICT), "the holder logs in anew");

    let listed = server.json(&["reservation", "list", "kept"]);
    assert_eq!((listed["type"].as_str(), listed["persistent"].as_bool()), (Some("write-exclusive"), Some(false)));
    let one = &listed["registrations"][0];
    assert_eq!(
        (one["initiator"].as_str(), one["holder"].as_bool()),
        (Some("iqn.2026-11.io.lunaring:node1"), Some(true))
    );
    assert_eq!((one["key"].as_str(), one["target"].as_str()), (Some("0x00000000000000a1"), Some("kept")));
    server.ok(&["reservation", "clear", "kept"]);
    assert_eq!(attention(a), Some((6, 0x2a, 0x03)), "RESERVATIONS PREEMPTED");
    assert_eq!((write(a), write(b)), (GOOD, GOOD));
    assert!(server.ok(&["reservation", "list", "kept"]).contains("nobody is registered"));
    server.refused(&["reservation", "list", "nothing"]);
    server.stop();
}

#[test]
fn what_a_reserve_command_reserved_is_free_when_its_session_ends_or_the_unit_is_reset() {
    let mut server = two_shards();
    let iqn = server.ready_target("old", &["--size", "16M"]);
    let mut all = nodes(&server, &iqn, 2);
    let [a, b] = &mut all[..] else { panic!("two nodes") };
    let reserve = |client: &mut Client, opcode: u8| {
        let cdb = [opcode, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        client.bare(0, if opcode < 0x20 { &cdb[..6] } else { &cdb }).expect("an answer").status
    };
    for (take, give) in [(0x16, 0x17), (0x56, 0x57)] {
        assert_eq!(reserve(a, take), GOOD);
        assert_eq!((reserve(b, take), read(b).status, write(a)), (RESERVATION_CONFLICT, RESERVATION_CONFLICT, GOOD));
        assert_eq!((reserve(b, give), read(b).status), (GOOD, RESERVATION_CONFLICT), "of what one does not hold");
        assert_eq!((reserve(a, give), read(b).status), (GOOD, GOOD));
    }
    assert_eq!(reserve(a, 0x16), GOOD);
    assert_eq!(b.task_management(LOGICAL_UNIT_RESET, 0, None).expect("an answer"), 0);
    b.settle(0).expect("told");
    assert_eq!(write(b), GOOD, "at once after the reset was answered");
    a.settle(0).expect("told");
    assert_eq!(reserve(a, 0x16), GOOD);
    *a = node(&server, &iqn, 3);
    let began = Instant::now();
    while write(b) != GOOD {
        assert!(began.elapsed() < Duration::from_secs(5), "still reserved for a session that is gone");
        std::thread::sleep(Duration::from_millis(5));
    }
    server.stop();
}

/// State, preference and status code of each target port group, by group.
fn groups(client: &mut Client) -> Vec<(u16, u8, bool, u8)> {
    let answer = client.read(0, &[0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0], 4096).expect("an answer");
    assert_eq!(answer.status, GOOD, "{answer:?}");
    let data = answer.data;
    assert_eq!(u32::from_be_bytes(data[..4].try_into().expect("4")) as usize, data.len() - 4);
    let group =
        |bytes: &[u8]| (u16::from_be_bytes([bytes[2], bytes[3]]), bytes[0] & 0xf, bytes[0] & 0x80 != 0, bytes[5]);
    data[4..].chunks(12).map(group).collect()
}

fn set_group(client: &mut Client, group: u16, state: u8) -> Answer {
    let [high, low] = group.to_be_bytes();
    let list = [0, 0, 0, 0, state, 0, high, low];
    client.write(0, &[0xa4, 0x0a, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0], &list).expect("an answer")
}

#[test]
fn ports_lead_to_disks_in_the_states_that_operator_and_initiators_set() {
    let mut server = two_shards();
    let iqn = server.ready_target("paths", &["--size", "16M"]);
    let second: SocketAddr = free_port(server.portals[0].ip());
    server.ok(&["portal", "add", &second.to_string(), "--group", "2"]);
    let mut a = node(&server, &iqn, 1);
    let mut b = Client::ready(second, &wishes(&iqn, 2), 0).expect("a session");
    let inquiry = a.read(0, &[0x12, 0, 0, 0, 96, 0], 96).expect("an answer").data;
    assert_eq!(inquiry[5] >> 4 & 3, 3, "TPGS: implicit and explicit");
    assert_eq!(groups(&mut a), [(1, 0, false, 0), (2, 0, false, 0)]);
    // The operator.
    server.ok(&["target", "portgroup", "set", "paths", "2", "--state", "standby"]);
    server.ok(&["target", "portgroup", "set", "paths", "1", "--preferred", "yes"]);
    assert_eq!(attention(&mut b), Some((6, 0x2a, 0x06)), "ASYMMETRIC ACCESS STATE CHANGED");
    assert_eq!(attention(&mut a), Some((6, 0x2a, 0x06)));
    assert_eq!(groups(&mut b), [(1, 0, true, 0), (2, 2, false, 2)]);
    assert_eq!(read(&mut b).sense_triple(), Some((2, 0x04, 0x0b)), "standby");
    assert_eq!(read(&mut a).status, GOOD);
    // An initiator.
    let answer = set_group(&mut b, 2, 1);
    assert_eq!(answer.status, GOOD, "{answer:?}");
    assert_eq!(attention(&mut b), None, "who did it is not told");
    assert_eq!(attention(&mut a), Some((6, 0x2a, 0x06)));
    assert_eq!((read(&mut b).status, groups(&mut a)[1]), (GOOD, (2, 1, false, 1)));
    assert_eq!(set_group(&mut a, 9, 0).sense_triple(), Some((5, 0x26, 0)), "no such group");
    let table = server.ok(&["target", "portgroup", "list", "paths"]);
    assert!(table.contains("standby"), "{table}");
    // What the operator said holds after a restart.
    server.kill_9();
    server.start_again();
    let mut b = Client::ready(second, &wishes(&iqn, 2), 0).expect("a session");
    assert_eq!(groups(&mut b), [(1, 0, true, 0), (2, 2, false, 0)]);
    for (state, code, ascq) in [("unavailable", 3, 0x0c), ("transitioning", 15, 0x0a), ("offline", 14, 0x12)] {
        server.ok(&["target", "portgroup", "set", "paths", "2", "--state", state]);
        let answer = b.bare(0, &[0; 6]).expect("an answer");
        assert_eq!(
            (answer.status, answer.sense_triple().map(|triple| triple.0)),
            (CHECK_CONDITION, Some(6)),
            "{state}"
        );
        assert_eq!(read(&mut b).sense_triple(), Some((2, 0x04, ascq)), "{state}");
        assert_eq!(groups(&mut b)[1].1, code);
    }
    server.ok(&["target", "portgroup", "set", "paths", "2", "--state", "optimized"]);
    b.settle(0).expect("told");
    assert_eq!((write(&mut b), groups(&mut b)[1].1), (GOOD, 0));
    server.refused(&["target", "portgroup", "set", "paths", "7", "--state", "standby"]);
    server.stop();
}

/// What one shard has answered holds on the other: the next command there knows.
#[test]
fn no_shard_lags_behind_an_answer() {
    let mut server = two_shards();
    let iqn = server.ready_target("prompt", &["--size", "16M", "--format", "memory"]);
    let mut all = nodes(&server, &iqn, 2);
    let [a, b] = &mut all[..] else { panic!("two nodes") };
    register(a, 0xa1, 0);
    register(b, 0xb1, 0);
    for round in 0..crate::server::count("LUNARING_FENCES", 400) {
        let (holder, other, key) = if round % 2 == 0 { (&mut *a, &mut *b, 0xa1) } else { (&mut *b, &mut *a, 0xb1) };
        assert_eq!(out(holder, RESERVE, 1, key, 0, 0), GOOD);
        assert_eq!(write(other), RESERVATION_CONFLICT, "round {round}");
        assert_eq!(out(holder, RELEASE, 1, key, 0, 0), GOOD);
        assert_eq!(write(other), GOOD, "round {round}");
    }
    server.stop();
}
