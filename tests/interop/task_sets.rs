//! Task attributes, and task management between sessions on different shards: SAM-5 clauses 5.6 and 8.6, RFC 7143
//! sections 4.2.3 and 11.5.

use std::time::{Duration, Instant};

use perf::client::Client;
use perf::login::{Pdu, Wishes};
use perf::pdu::{self, FINAL, Header, IMMEDIATE, cdb, request, response};

use crate::server::{Options, Server};

const SIMPLE: u8 = 1;
const ORDERED: u8 = 2;
const HEAD_OF_QUEUE: u8 = 3;
const ACA: u8 = 4;
const TASK_ABORTED: u8 = 0x40;
const ABORT_TASK_SET: u8 = 2;
const CLEAR_TASK_SET: u8 = 4;
const LOGICAL_UNIT_RESET: u8 = 5;

/// How long nothing may come where nothing is allowed to.
const SILENCE: Duration = Duration::from_millis(250);

fn server() -> (Server, String) {
    let server = Server::start_with(Options { cores: Some("0,1"), ..Options::default() });
    let iqn = server.ready_target("sets", &["--size", "64M"]);
    (server, iqn)
}

/// Nothing unasked: every write waits for its R2T.
fn wishes(iqn: &str, number: u32) -> Wishes {
    Wishes { initial_r2t: true, immediate_data: false, ..Wishes::to_target(iqn).session(number) }
}

fn client(server: &Server, wishes: &Wishes) -> Client {
    Client::ready(server.portals[0], wishes, 0).expect("a session")
}

/// Two sessions whose connections are on different shards.
fn two_shards(server: &Server, first: &Wishes, second: &Wishes) -> (Client, Client) {
    let one = client(server, first);
    let shard_of = |client: &Client| {
        let local = client.wire.socket.local_addr().expect("an address").to_string();
        let listed = server.json(&["session", "list"]);
        let sessions = listed.as_array().or_else(|| listed["sessions"].as_array()).expect("an array").clone();
        let found = sessions.iter().find(|session| session["peer"] == local.as_str()).expect("the session is listed");
        found["shard"].as_u64().expect("a shard")
    };
    // On loopback a connection arrives on the CPU that asks for it: ask on each in turn.
    let cpus = core_affinity::get_core_ids().expect("CPUs");
    let on = |cpu| {
        let connect = move || {
            core_affinity::set_for_current(cpu);
            client(server, second)
        };
        std::thread::scope(|scope| scope.spawn(connect).join().expect("a session"))
    };
    for cpu in cpus.into_iter().cycle().take(64) {
        let other = on(cpu);
        if shard_of(&other) != shard_of(&one) {
            return (one, other);
        }
    }
    panic!("64 connections went to one of two shards");
}

/// A command's header.
fn command(client: &mut Client, attribute: u8, flags: u8, len: u32, cdb: &[u8]) -> Header {
    let mut header = client.request(request::SCSI_COMMAND, FINAL | flags | attribute).with_word(20, len);
    header.0[32..32 + cdb.len()].copy_from_slice(cdb);
    header
}

/// TEST UNIT READY with this attribute; its tag.
fn test_unit_ready(client: &mut Client, attribute: u8) -> u32 {
    let header = command(client, attribute, 0, 0, &[0; 6]);
    client.wire.send(header, &[]).expect("sent");
    header.task_tag()
}

/// A write of eight blocks whose R2T has come and is not answered: its tag, and the R2T's.
fn pending_write(client: &mut Client, attribute: u8) -> (u32, u32) {
    let header = command(client, attribute, 0x20, 4096, &pdu::cdb_transfer_16(cdb::WRITE_16, 0, 8, false));
    client.wire.send(header, &[]).expect("sent");
    let r2t = client.wire.receive().expect("an R2T");
    assert_eq!(r2t.header.opcode(), response::R2T);
    (header.task_tag(), r2t.header.word(20))
}

fn send_data(client: &mut Client, (tag, transfer_tag): (u32, u32)) {
    let header = Header::new(request::DATA_OUT, FINAL)
        .with_word(16, tag)
        .with_word(20, transfer_tag)
        .with_word(28, client.wire.exp_stat_sn);
    client.wire.send(header, &[5; 4096]).expect("sent");
}

fn manage(client: &mut Client, function: u8) -> u32 {
    let header = client.request(request::TASK_MANAGEMENT | IMMEDIATE, FINAL | function).with_word(20, pdu::TAG_NONE);
    client.wire.send(header, &[]).expect("sent");
    header.task_tag()
}

fn next(client: &mut Client) -> Pdu {
    client.wire.receive().expect("an answer")
}

fn assert_silent(client: &mut Client) {
    client.wire.socket.set_read_timeout(Some(SILENCE)).expect("a time-out");
    let mut byte = [0];
    let seen = client.wire.socket.peek(&mut byte);
    client.wire.socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a time-out");
    assert!(seen.is_err(), "something came: {:?}", next(client));
}

/// The answer to a command: tag, status, sense key and code.
fn ended(pdu: &Pdu) -> (u32, u8) {
    assert_eq!(pdu.header.opcode(), response::SCSI_RESPONSE, "{pdu:?}");
    (pdu.header.task_tag(), pdu.header.0[3])
}

#[test]
fn ordered_waits_for_all_before_it_and_head_of_queue_for_nothing() {
    let (server, iqn) = server();
    let mut client = client(&server, &wishes(&iqn, 1));
    let write = pending_write(&mut client, SIMPLE);
    let ordered = test_unit_ready(&mut client, ORDERED);
    let simple = test_unit_ready(&mut client, SIMPLE);
    assert_silent(&mut client);
    let first = test_unit_ready(&mut client, HEAD_OF_QUEUE);
    assert_eq!(ended(&next(&mut client)), (first, 0));
    assert_silent(&mut client);
    send_data(&mut client, write);
    let answers: Vec<_> = (0..3).map(|_| ended(&next(&mut client))).collect();
    assert_eq!(answers, [(write.0, 0), (ordered, 0), (simple, 0)]);
    // What came before is no matter to SIMPLE, but an ORDERED command is.
    let write = pending_write(&mut client, ORDERED);
    let simple = test_unit_ready(&mut client, SIMPLE);
    assert_silent(&mut client);
    send_data(&mut client, write);
    assert_eq!([ended(&next(&mut client)), ended(&next(&mut client))], [(write.0, 0), (simple, 0)]);
    // SAM-5 clause 8.6.5: there is no ACA condition for this attribute.
    let aca = test_unit_ready(&mut client, ACA);
    let answer = next(&mut client);
    assert_eq!((ended(&answer), answer.data[4] & 0x0f, answer.data[14], answer.data[15]), ((aca, 2), 5, 0x49, 0));
}

#[test]
fn an_aborted_ordered_command_lets_the_next_begin() {
    let (server, iqn) = server();
    let mut client = client(&server, &wishes(&iqn, 1));
    let write = pending_write(&mut client, SIMPLE);
    let ordered = command(&mut client, ORDERED, 0, 0, &[0; 6]);
    client.wire.send(ordered, &[]).expect("sent");
    let simple = test_unit_ready(&mut client, SIMPLE);
    assert_silent(&mut client);
    // ABORT TASK of the dormant one.
    let code = client.task_management(1, 0, Some((ordered.task_tag(), ordered.word(24))));
    assert_eq!(code.expect("an answer"), 0);
    assert_eq!(ended(&client.receive().expect("an answer")), (simple, 0));
    send_data(&mut client, write);
    assert_eq!(ended(&next(&mut client)), (write.0, 0));
}

/// SAM-5 clause 5.6 with TAS, RFC 7143 section 4.2.3.3: the other's command ends with TASK ABORTED, and the function is
/// answered when that has been acknowledged.
#[test]
fn clear_task_set_ends_the_commands_of_the_other_and_waits_until_it_knows() {
    let (server, iqn) = server();
    let (mut clearing, mut cleared) = two_shards(&server, &wishes(&iqn, 1), &wishes(&iqn, 2));
    let write = pending_write(&mut cleared, SIMPLE);
    let tag = manage(&mut clearing, CLEAR_TASK_SET);
    send_data(&mut cleared, write);
    assert_eq!(ended(&next(&mut cleared)), (write.0, TASK_ABORTED));
    // It is asked for its ExpStatSN, and the function waits.
    let ping = next(&mut cleared);
    assert_eq!((ping.header.opcode(), ping.header.task_tag()), (response::NOP_IN, pdu::TAG_NONE));
    assert_silent(&mut clearing);
    let began = Instant::now();
    let pong = cleared
        .request(request::NOP_OUT | IMMEDIATE, FINAL)
        .with_word(16, pdu::TAG_NONE)
        .with_word(20, ping.header.word(20));
    cleared.wire.send(pong, &[]).expect("sent");
    let answer = next(&mut clearing);
    assert_eq!(
        (answer.header.opcode(), answer.header.task_tag(), answer.header.0[2]),
        (response::TASK_MANAGEMENT, tag, 0)
    );
    assert!(began.elapsed() < Duration::from_millis(500), "answered after {:?}", began.elapsed());
    // With TASK ABORTED nothing more is to be told (no 2Fh/00h), and nothing was written.
    assert_eq!(cleared.settle(0).expect("answers"), []);
    let read = cleared.read(0, &pdu::cdb_transfer_16(cdb::READ_16, 0, 8, false), 4096).expect("an answer");
    assert_eq!(read.data, [0; 4096]);
}

#[test]
fn a_reset_is_not_held_up_by_one_who_does_not_answer_and_is_told_to_all() {
    let (server, iqn) = server();
    let (mut resetting, mut other) = two_shards(&server, &wishes(&iqn, 1), &wishes(&iqn, 2));
    let write = pending_write(&mut other, SIMPLE);
    let began = Instant::now();
    let tag = manage(&mut resetting, LOGICAL_UNIT_RESET);
    let answer = next(&mut resetting);
    assert_eq!(
        (answer.header.opcode(), answer.header.task_tag(), answer.header.0[2]),
        (response::TASK_MANAGEMENT, tag, 0)
    );
    let waited = began.elapsed();
    assert!(waited > Duration::from_millis(500) && waited < Duration::from_secs(3), "answered after {waited:?}");
    send_data(&mut other, write);
    let status = loop {
        let pdu = next(&mut other);
        if pdu.header.opcode() == response::SCSI_RESPONSE {
            break ended(&pdu);
        }
    };
    assert_eq!(status, (write.0, TASK_ABORTED));
    for client in [&mut resetting, &mut other] {
        assert_eq!(client.settle(0).expect("answers"), [(0x29, 3)], "BUS DEVICE RESET FUNCTION OCCURRED");
    }
}

/// RFC 7143 section 4.2.3.3: data that R2Ts of the own tasks have asked for is waited for, but not for ever.
#[test]
fn abort_task_set_waits_for_data_that_was_asked_for() {
    let (server, iqn) = server();
    let mut client = client(&server, &wishes(&iqn, 1));
    let write = pending_write(&mut client, SIMPLE);
    let tag = manage(&mut client, ABORT_TASK_SET);
    assert_silent(&mut client);
    send_data(&mut client, write);
    let answer = next(&mut client);
    assert_eq!(
        (answer.header.opcode(), answer.header.task_tag(), answer.header.0[2]),
        (response::TASK_MANAGEMENT, tag, 0)
    );
    pending_write(&mut client, SIMPLE);
    let began = Instant::now();
    assert_eq!(client.task_management(ABORT_TASK_SET, 0, None).expect("an answer"), 0);
    assert!(began.elapsed() < Duration::from_secs(3), "answered after {:?}", began.elapsed());
    assert_eq!(client.settle(0).expect("answers"), []);
}

/// RFC 7143 section 4.2.3.4: nothing is waited for, and the other is told by Asynchronous Message.
#[test]
fn fast_abort_waits_for_nothing_and_tells_the_other() {
    let (server, iqn) = server();
    let fast = |number| Wishes { more_keys: "TaskReporting=FastAbort\0".to_owned(), ..wishes(&iqn, number) };
    let (mut clearing, mut cleared) = two_shards(&server, &fast(1), &fast(2));
    pending_write(&mut clearing, SIMPLE);
    let began = Instant::now();
    assert_eq!(clearing.task_management(ABORT_TASK_SET, 0, None).expect("an answer"), 0);
    assert!(began.elapsed() < Duration::from_millis(500), "answered after {:?}", began.elapsed());
    pending_write(&mut cleared, SIMPLE);
    let began = Instant::now();
    assert_eq!(clearing.task_management(CLEAR_TASK_SET, 0, None).expect("an answer"), 0);
    assert!(began.elapsed() < Duration::from_millis(500), "answered after {:?}", began.elapsed());
    let (mut told, mut status) = (false, None);
    while !told || status.is_none() {
        let pdu = next(&mut cleared);
        // Section 11.9.1: AsyncEvent 5, with the LUN.
        told |= (pdu.header.opcode(), pdu.header.0[36], &pdu.header.0[8..16]) == (0x32, 5, &[0; 8]);
        status = status.or((pdu.header.opcode() == response::SCSI_RESPONSE).then(|| pdu.header.0[3]));
    }
    assert_eq!(status, Some(TASK_ABORTED));
}
