//! Sessions of several connections, and connections that take another's place: RFC 7143 sections 4.2.2, 6.3.4 and
//! 11.14.

use std::io::Read;
use std::time::{Duration, Instant};

use perf::client::Client;
use perf::login::{LoginError, Wishes};
use perf::pdu::{self, FINAL, IMMEDIATE, cdb, request, response};

use crate::server::{Options, Server};

const ABORT_TASK_SET: u8 = 2;
const LOGICAL_UNIT_RESET: u8 = 5;
const CLOSE_SESSION: u8 = 0;
const CLOSE_CONNECTION: u8 = 1;
const REMOVE_FOR_RECOVERY: u8 = 2;

/// How long nothing may come where nothing is allowed to.
const SILENCE: Duration = Duration::from_millis(250);

/// A server on two shards whose sessions may have so many connections.
pub fn server(connections_max: u16) -> (Server, String) {
    let server = Server::start_with(Options { cores: Some("0,1"), ..Options::default() });
    let iqn = server.ready_target("several", &["--size", "64M"]);
    server.ok(&["target", "set", "several", "--max-connections", &connections_max.to_string()]);
    (server, iqn)
}

/// Nothing unasked: every write waits for its R2T.
pub fn wishes(iqn: &str) -> Wishes {
    Wishes { connections_max: 8, initial_r2t: true, immediate_data: false, ..Wishes::to_target(iqn) }
}

pub fn leading(server: &Server, iqn: &str) -> Client {
    Client::ready(server.portals[0], &wishes(iqn), 0).expect("a session")
}

/// One more connection of a session, or one in another's place.
pub fn joined(server: &Server, iqn: &str, of: &Client, connection_id: u16) -> Result<Client, LoginError> {
    let wishes = Wishes { tsih: of.parameters.tsih, connection_id, ..wishes(iqn) };
    let mut client = Client::open(server.portals[0], &wishes)?;
    client.parameters = of.parameters.clone();
    client.wire.cmd_sn = of.wire.cmd_sn;
    Ok(client)
}

fn refusal(outcome: Result<Client, LoginError>) -> (u8, u8) {
    match outcome {
        Err(LoginError::Refused { class, detail }) => (class, detail),
        other => panic!("not refused: {other:?}"),
    }
}

/// What the control plane says of the only session: its id and the CIDs of its connections.
fn listed(server: &Server) -> Option<(u64, Vec<u64>)> {
    let sessions = server.json(&["session", "list"]);
    let sessions = sessions.as_array().or_else(|| sessions["sessions"].as_array()).expect("an array").clone();
    assert!(sessions.len() < 2, "{sessions:?}");
    let session = sessions.first()?;
    let connections = session["connections"].as_array().expect("connections");
    let mut ids: Vec<u64> = connections.iter().map(|connection| connection["cid"].as_u64().expect("a CID")).collect();
    ids.sort_unstable();
    Some((session["id"].as_u64().expect("an id"), ids))
}

fn is_closed(client: &mut Client) -> bool {
    client.wire.socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a time-out");
    let mut byte = [0];
    loop {
        match client.wire.socket.read(&mut byte) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

fn is_silent(client: &mut Client) -> bool {
    client.wire.socket.set_read_timeout(Some(SILENCE)).expect("a time-out");
    let silent = client.wire.socket.peek(&mut [0]).is_err();
    client.wire.socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a time-out");
    silent
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(10), "{what}: not within 10 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A write that waits for its data: it stays active. Its tag.
fn hanging_write(client: &mut Client) -> u32 {
    let cdb = pdu::cdb_transfer_16(cdb::WRITE_16, 0, 8, false);
    let mut header = client.request(request::SCSI_COMMAND, FINAL | 0x21).with_word(20, 4096);
    header.0[32..48].copy_from_slice(&cdb);
    client.wire.send(header, &[]).expect("sent");
    let r2t = client.receive().expect("an R2T");
    assert_eq!(r2t.header.opcode(), response::R2T);
    header.task_tag()
}

fn logout(client: &mut Client, reason: u8, connection_id: u16) -> u8 {
    let header =
        client.request(request::LOGOUT | IMMEDIATE, FINAL | reason).with_word(20, u32::from(connection_id) << 16);
    client.wire.send(header, &[]).expect("sent");
    loop {
        let answer = client.receive().expect("an answer");
        if answer.header.opcode() == response::LOGOUT {
            return answer.header.0[2];
        }
    }
}

/// Section 6.3.4: a login with the ISID, TSIH and CID of a living connection takes its place. The session goes on: same
/// handle, same numbering, no unit attention; what was active on the old connection ends without a word.
#[test]
fn a_connection_takes_the_place_of_its_own_former_one() {
    for connections_max in [1, 2] {
        let (server, iqn) = server(connections_max);
        let mut old = leading(&server, &iqn);
        // RESERVE (6) belongs to the session, which must not end meanwhile.
        assert_eq!(old.bare(0, &[0x16, 0, 0, 0, 0, 0]).expect("an answer").status, 0);
        let mut stranger = Client::ready(server.portals[0], &wishes(&iqn).session(9), 0).expect("another session");
        for round in 0..6 {
            let tag = hanging_write(&mut old);
            let before = old.parameters.tsih;
            let mut new = joined(&server, &iqn, &old, 0).expect("the place of the old connection");
            assert_eq!(new.parameters.tsih, before);
            assert!(is_closed(&mut old), "round {round}");
            let alone = new.task_management(1, 0, Some((tag, old.wire.cmd_sn - 1))).expect("an answer");
            assert_eq!(alone, 1, "the task does not exist");
            assert_eq!(new.bare(0, &[0; 6]).expect("an answer").sense_triple(), None, "no unit attention");
            assert_eq!(stranger.bare(0, &[0; 6]).expect("an answer").status, 0x18, "still reserved");
            let data = vec![round; 4096];
            let cdb = pdu::cdb_transfer_16(cdb::WRITE_16, 0, 8, false);
            assert_eq!(new.write(0, &cdb, &data).expect("an answer").status, 0);
            let cdb = pdu::cdb_transfer_16(cdb::READ_16, 0, 8, false);
            assert!(new.read(0, &cdb, 4096).expect("an answer").data == data);
            old = new;
        }
        assert_eq!(logout(&mut old, CLOSE_SESSION, 0), 0);
        eventually("the reservation goes with the session", || {
            stranger.bare(0, &[0; 6]).expect("an answer").status != 0x18
        });
    }
}

/// Sections 6.3.5, 6.3.6 and 11.13.5: what TSIH and CID may name.
#[test]
fn what_does_not_exist_or_fit_is_refused() {
    let (server, iqn) = server(1);
    let mut first = leading(&server, &iqn);
    assert_eq!(refusal(joined(&server, &iqn, &first, 1)), (2, 6), "too many connections");
    let mut absent = first.parameters.clone();
    absent.tsih ^= 0x5555;
    let wishes = Wishes { tsih: absent.tsih, ..wishes(&iqn) };
    assert_eq!(refusal(Client::open(server.portals[0], &wishes)), (2, 0x0a), "session does not exist");
    let stranger = Wishes { tsih: first.parameters.tsih, connection_id: 1, ..wishes.clone().session(7) };
    assert_eq!(refusal(Client::open(server.portals[0], &stranger)), (2, 0x0a), "not this initiator port's session");
    assert_eq!(first.bare(0, &[0; 6]).expect("the session lives").status, 0);
    assert_eq!(listed(&server).expect("listed").1, [0]);
}

/// Sections 4.2.2.1 and 4.2.2.3: commands are delivered in the order of CmdSN over all connections, data and status
/// stay where the command came.
#[test]
fn commands_are_delivered_in_one_order_over_all_connections() {
    let (server, iqn) = server(4);
    let mut one = leading(&server, &iqn);
    let mut others: Vec<Client> =
        (1..4).map(|id| joined(&server, &iqn, &one, id).expect("a connection of the session")).collect();
    assert_eq!(refusal(joined(&server, &iqn, &one, 4)), (2, 6));
    assert_eq!(listed(&server).expect("listed").1, [0, 1, 2, 3]);
    let read = pdu::cdb_transfer_16(cdb::READ_16, 0, 8, false);
    let write = pdu::cdb_transfer_16(cdb::WRITE_16, 0, 8, false);
    let mut cmd_sn = one.wire.cmd_sn;
    for round in 0..20u8 {
        // Reads on three connections are ahead of the write that fills the hole before them.
        let mut tags = vec![];
        for (n, other) in others.iter_mut().enumerate() {
            other.wire.cmd_sn = cmd_sn + 1 + (n as u32 + u32::from(round)) % 3;
            tags.push(other.start(0, &read, &[], 4096).expect("sent"));
        }
        if round == 0 {
            assert!(others.iter_mut().all(is_silent), "nothing is executed before its turn");
        }
        one.wire.cmd_sn = cmd_sn;
        // ORDERED: the reads begin after it has ended.
        let data = vec![round + 1; 4096];
        let mut header = one.request(request::SCSI_COMMAND, FINAL | 0x22).with_word(20, 4096);
        header.0[32..48].copy_from_slice(&write);
        one.wire.send(header, &[]).expect("sent");
        let r2t = one.receive().expect("an R2T");
        assert_eq!((r2t.header.opcode(), r2t.header.exp_cmd_sn()), (response::R2T, cmd_sn + 1));
        assert!(round > 0 || others.iter_mut().all(is_silent), "they wait for the ORDERED command");
        let out = pdu::Header::new(request::DATA_OUT, FINAL)
            .with_word(16, header.task_tag())
            .with_word(20, r2t.header.word(20))
            .with_word(28, one.wire.exp_stat_sn);
        one.wire.send(out, &data).expect("sent");
        let answer = one.receive().expect("an answer");
        assert_eq!((answer.header.opcode(), answer.header.0[3]), (response::SCSI_RESPONSE, 0));
        for (other, tag) in others.iter_mut().zip(tags) {
            assert!(other.finish(tag).expect("an answer").data == data, "round {round}");
        }
        cmd_sn += 4;
        // The window is the session's: all have ended, and every connection hears the same.
        one.wire.cmd_sn = cmd_sn;
        assert_eq!(one.bare(0, &[0; 6]).expect("an answer").status, 0);
        cmd_sn += 1;
    }
    assert_eq!(logout(&mut others[0], CLOSE_SESSION, 0), 0);
    eventually("the session ends", || listed(&server).is_none());
    assert!(is_closed(&mut one) && others.iter_mut().all(is_closed));
}

/// Section 11.5.1: functions for a task set reach the commands of all connections, and none of other tags; section
/// 4.2.3.3: they wait for commands that have not come on another connection.
#[test]
fn task_management_reaches_all_connections() {
    for function in [ABORT_TASK_SET, LOGICAL_UNIT_RESET] {
        let (server, iqn) = server(2);
        let mut one = leading(&server, &iqn);
        let mut other = joined(&server, &iqn, &one, 1).expect("a connection");
        hanging_write(&mut one);
        other.wire.cmd_sn = one.wire.cmd_sn;
        let tag = hanging_write(&mut other);
        one.wire.cmd_sn = other.wire.cmd_sn + 1;
        // One command is missing: the function waits for it, and then aborts it with the others.
        let header = one.request(request::TASK_MANAGEMENT | IMMEDIATE, FINAL | function).with_word(20, pdu::TAG_NONE);
        one.wire.send(header, &[]).expect("sent");
        assert!(is_silent(&mut one));
        let late = other.request(request::SCSI_COMMAND, FINAL | 1);
        other.wire.send(late, &[]).expect("sent");
        let answer = one.receive().expect("an answer");
        assert_eq!((answer.header.opcode(), answer.header.0[2]), (response::TASK_MANAGEMENT, 0));
        // The hanging write is gone; whatever the late command came to, the connection serves.
        let absent = other.task_management(1, 0, Some((tag, 0))).expect("an answer");
        assert_eq!(absent, 1, "the task does not exist");
        let told = other.settle(0).expect("answers");
        assert_eq!(told.iter().filter(|told| told.0 == 0x29).count(), usize::from(function == LOGICAL_UNIT_RESET));
        one.wire.cmd_sn = other.wire.cmd_sn;
        assert_eq!(one.settle(0).expect("answers"), [], "one session is told once");
    }
}

/// A connection that is lost takes its commands with it; the session and the numbering go on, the others are told
/// (section 11.9.1), and what had come early there comes again (section 7.2.1).
#[test]
fn a_lost_connection_takes_only_its_own_with_it() {
    let (server, iqn) = server(3);
    let mut one = leading(&server, &iqn);
    assert_eq!(one.bare(0, &[0x16, 0, 0, 0, 0, 0]).expect("an answer").status, 0);
    let mut other = joined(&server, &iqn, &one, 7).expect("a connection");
    hanging_write(&mut other);
    // This one is ahead of a hole that nobody has filled yet.
    let hole = other.wire.cmd_sn;
    other.wire.cmd_sn += 1;
    other.start(0, &[0; 6], &[], 0).expect("sent");
    assert!(is_silent(&mut other));
    let end = other.wire.cmd_sn;
    drop(other);
    let told = one.receive().expect("an Asynchronous Message");
    assert_eq!(
        (told.header.opcode(), told.header.0[36], told.header.word(36) & 0xffff),
        (response::ASYNC_MESSAGE, 2, 7)
    );
    eventually("it is not listed", || listed(&server).expect("listed").1 == [0]);
    one.wire.cmd_sn = hole;
    assert_eq!(one.bare(0, &[0; 6]).expect("an answer").status, 0);
    assert_eq!(one.wire.cmd_sn, end - 1);
    assert_eq!(one.bare(0, &[0; 6]).expect("what was lost comes again").status, 0);
    let mut window = 0;
    for _ in 0..4 {
        let header = one.request(request::NOP_OUT | IMMEDIATE, FINAL).with_word(20, pdu::TAG_NONE);
        one.wire.send(header, &[]).expect("sent");
        let pong = one.receive().expect("an answer");
        window = pong.header.max_cmd_sn().wrapping_sub(pong.header.exp_cmd_sn()) + 1;
    }
    assert_eq!(window, 128, "the lost connection's places are open again");
    let stranger = Client::ready(server.portals[0], &wishes(&iqn).session(9), 0).expect("another session");
    drop(stranger);
    // It may come back, and the place may be taken over while another connection works.
    for _ in 0..8 {
        let mut back = joined(&server, &iqn, &one, 7).expect("a connection");
        assert_eq!(back.bare(0, &[0; 6]).expect("an answer").status, 0);
        one.wire.cmd_sn = back.wire.cmd_sn;
        hanging_write(&mut one);
        one = joined(&server, &iqn, &one, 0).expect("the place of the old one");
        back.wire.cmd_sn = one.wire.cmd_sn;
        assert_eq!(back.bare(0, &[0; 6]).expect("an answer").status, 0);
        assert_eq!(logout(&mut back, CLOSE_CONNECTION, 7), 0);
        one.wire.cmd_sn = back.wire.cmd_sn;
    }
}

/// Section 11.14: which connection a logout closes, from where, and what is not served.
#[test]
fn a_logout_closes_one_connection_or_the_session() {
    let (server, iqn) = server(4);
    let mut one = leading(&server, &iqn);
    let mut two = joined(&server, &iqn, &one, 2).expect("a connection");
    let mut three = joined(&server, &iqn, &one, 3).expect("a connection");
    hanging_write(&mut three);
    one.wire.cmd_sn = three.wire.cmd_sn;
    two.wire.cmd_sn = three.wire.cmd_sn;
    assert_eq!(logout(&mut one, CLOSE_CONNECTION, 9), 1, "CID not found");
    assert_eq!(logout(&mut one, REMOVE_FOR_RECOVERY, 3), 2, "recovery is not supported");
    assert_eq!(logout(&mut one, CLOSE_CONNECTION, 3), 0);
    assert!(is_closed(&mut three));
    assert_eq!(listed(&server).expect("listed").1, [0, 2]);
    assert_eq!(one.bare(0, &[0; 6]).expect("this one goes on").status, 0);
    assert_eq!(logout(&mut one, CLOSE_CONNECTION, 0), 0);
    assert!(is_closed(&mut one));
    two.wire.cmd_sn = one.wire.cmd_sn;
    assert_eq!(two.bare(0, &[0; 6]).expect("the session goes on without its first connection").status, 0);
    assert!(two.events.is_empty(), "nothing is to be told of what was asked for");
    let mut four = joined(&server, &iqn, &two, 0).expect("a connection");
    hanging_write(&mut four);
    let id = listed(&server).expect("listed").0;
    server.ok(&["session", "drop", &id.to_string()]);
    assert!(is_closed(&mut two) && is_closed(&mut four));
    eventually("the session ends", || listed(&server).is_none());
    assert_eq!(refusal(joined(&server, &iqn, &four, 0)), (2, 0x0a));
}
