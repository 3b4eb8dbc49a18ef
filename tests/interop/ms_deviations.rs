//! What Microsoft lists as deviations of its iSCSI Target Server from the standard ("iSCSI Target Implementation
//! Notes"), one test each, and what tgt and LIO are known to give up on: Lunaring does what RFC 7143 says.

use std::net::SocketAddr;
use std::time::Duration;

use perf::client::{Answer, Client};
use perf::login::{Pdu, Wire, Wishes, pairs};
use perf::pdu::{FINAL, Header, IMMEDIATE, TAG_NONE, cdb, cdb_transfer_16, request, response};

use crate::server::Server;

/// ABORTED COMMAND with what RFC 7143 section 11.4.7.2 has for wrong data.
const UNEXPECTED_UNSOLICITED_DATA: Option<(u8, u8, u8)> = Some((0x0b, 0x0c, 0x0c));
const INCORRECT_AMOUNT_OF_DATA: Option<(u8, u8, u8)> = Some((0x0b, 0x0c, 0x0d));

/// The bits of a Text Request or Response, and of a Login Request's continuation.
const CONTINUE: u8 = 0x40;

fn served() -> (Server, String) {
    let server = Server::start();
    let iqn = server.ready_target("strict", &["--size", "16M", "--format", "memory"]);
    (server, iqn)
}

fn ready(server: &Server, wishes: &Wishes) -> Client {
    Client::ready(server.portals[0], wishes, 0).unwrap_or_else(|e| panic!("{e}"))
}

fn discovery(server: &Server) -> Client {
    let wishes = Wishes { target_name: None, segment_len_max: 1024, ..Wishes::to_target("") };
    Client::open(server.portals[0], &wishes).unwrap_or_else(|e| panic!("{e}"))
}

/// The session still answers.
fn lives(client: &mut Client) {
    let nop = client.request(request::NOP_OUT | IMMEDIATE, FINAL).with_word(20, TAG_NONE);
    client.wire.send(nop, b"ping").expect("sent");
    let answer = client.receive().expect("the session lives");
    assert_eq!((answer.header.opcode(), answer.data.as_slice()), (response::NOP_IN, &b"ping"[..]));
}

/// A WRITE (16) of so many blocks from block 0: header with the tag that `tagged` has.
fn write(client: &mut Client, blocks: u32, last: bool) -> Header {
    let flags = if last { FINAL } else { 0 } | 0x21;
    let mut header = client.request(request::SCSI_COMMAND, flags).with_lun(0).with_word(20, blocks * 512);
    header.0[32..48].copy_from_slice(&cdb_transfer_16(cdb::WRITE_16, 0, blocks, false));
    header
}

/// A Data-Out of a command.
fn data_out(client: &Client, command: &Header, transfer_tag: u32, (sn, offset): (u32, u32), last: bool) -> Header {
    Header::new(request::DATA_OUT, if last { FINAL } else { 0 })
        .with_word(16, command.task_tag())
        .with_word(20, transfer_tag)
        .with_word(28, client.wire.exp_stat_sn)
        .with_word(36, sn)
        .with_word(40, offset)
}

/// The SCSI Response to a command whose PDUs were sent by hand; R2Ts on the way are given back, too.
fn response_to(client: &mut Client, command: &Header) -> (Answer, Vec<Pdu>) {
    let mut r2ts = vec![];
    loop {
        let pdu = client.receive().expect("an answer");
        assert_eq!(pdu.header.task_tag(), command.task_tag(), "opcode {:#04x}", pdu.header.opcode());
        match pdu.header.opcode() {
            response::R2T => r2ts.push(pdu),
            response::SCSI_RESPONSE => {
                let sense = pdu.data.get(2..).unwrap_or_default().to_vec();
                let (response, status) = (pdu.header.0[2], pdu.header.0[3]);
                return (Answer { status, response, sense, ..Answer::default() }, r2ts);
            }
            other => panic!("opcode {other:#04x} answers a write"),
        }
    }
}

/// One Text Request; what comes back.
fn text(client: &mut Client, flags: u8, transfer_tag: u32, keys: &[u8]) -> Pdu {
    let header = client.request(request::TEXT | IMMEDIATE, flags).with_word(20, transfer_tag);
    client.wire.send(header, keys).expect("sent");
    let answer = client.receive().expect("an answer");
    assert_eq!(answer.header.task_tag(), header.task_tag());
    answer
}

/// The same task's next Text Request.
fn text_again(client: &mut Client, former: &Pdu, flags: u8, keys: &[u8]) -> Pdu {
    let header = client
        .request(request::TEXT | IMMEDIATE, flags)
        .with_word(16, former.header.task_tag())
        .with_word(20, former.header.word(20));
    client.wire.send(header, keys).expect("sent");
    client.receive().expect("an answer")
}

/// A Logout Request with this reason and CID; the answer.
fn logout(client: &mut Client, reason: u8, connection: u16) -> Pdu {
    let header = client.request(request::LOGOUT | IMMEDIATE, FINAL | reason).with_word(20, u32::from(connection) << 16);
    client.wire.send(header, &[]).expect("sent");
    client.receive().expect("an answer")
}

/// One Login Request of a connection of its own making.
fn login_step(wire: &mut Wire, flags: u8, keys: &str) -> Pdu {
    let mut header = Header::new(request::LOGIN | IMMEDIATE, flags)
        .with_word(16, 1)
        .with_word(24, wire.cmd_sn)
        .with_word(28, wire.exp_stat_sn);
    header.0[8..14].copy_from_slice(&[0x80, 0, 0, 9, 0, 0]);
    wire.send(header, keys.replace('|', "\0").as_bytes()).expect("sent");
    let answer = wire.receive().expect("an answer");
    assert_eq!(answer.header.opcode(), response::LOGIN);
    answer
}

fn connect(portal: SocketAddr) -> Wire {
    Wire::connect(portal, Duration::from_secs(5)).expect("connected")
}

fn status(answer: &Pdu) -> u16 {
    u16::from_be_bytes([answer.header.0[36], answer.header.0[37]])
}

fn who(iqn: &str) -> String {
    format!("InitiatorName=iqn.2026-11.com.example:strict|TargetName={iqn}|SessionType=Normal|")
}

#[test]
fn deviation_01_immediate_data_beyond_first_burst_length_is_no_good_write() {
    let (server, iqn) = served();
    // FirstBurstLength is 64 KiB, and a segment may be longer.
    let mut client = ready(&server, &Wishes::to_target(&iqn));
    let command = write(&mut client, 256, true);
    client.wire.send(command, &vec![1; 128 * 1024]).expect("sent");
    let (answer, _) = response_to(&mut client, &command);
    assert_eq!((answer.status, answer.sense_triple()), (2, UNEXPECTED_UNSOLICITED_DATA));
    lives(&mut client);
}

#[test]
fn deviation_02_another_amount_of_data_than_was_asked_for_is_no_good_write() {
    let (server, iqn) = served();
    // Less than an R2T asked for, and more; and less than the first burst.
    for (sent, label) in [(4096, "less"), (16 * 1024, "more")] {
        let wishes = Wishes { initial_r2t: true, immediate_data: false, ..Wishes::to_target(&iqn) };
        let mut client = ready(&server, &wishes);
        let command = write(&mut client, 16, true);
        client.wire.send(command, &[]).expect("sent");
        let r2t = client.receive().expect("an R2T");
        assert_eq!((r2t.header.opcode(), r2t.header.word(44)), (response::R2T, 8192));
        let header = data_out(&client, &command, r2t.header.word(20), (0, 0), true);
        client.wire.send(header, &vec![1; sent]).expect("sent");
        let (answer, _) = response_to(&mut client, &command);
        assert_eq!((answer.status, answer.sense_triple()), (2, INCORRECT_AMOUNT_OF_DATA), "{label}");
        lives(&mut client);
    }
    let mut client = ready(&server, &Wishes { immediate_data: false, ..Wishes::to_target(&iqn) });
    let command = write(&mut client, 16, false);
    client.wire.send(command, &[]).expect("sent");
    let header = data_out(&client, &command, TAG_NONE, (0, 0), true);
    client.wire.send(header, &[1; 4096]).expect("sent");
    let (answer, _) = response_to(&mut client, &command);
    assert_eq!((answer.status, answer.sense_triple()), (2, INCORRECT_AMOUNT_OF_DATA), "first burst");
    lives(&mut client);
}

#[test]
fn deviation_03_unsolicited_data_that_was_not_negotiated_is_no_good_write() {
    let (server, iqn) = served();
    let wishes = Wishes { initial_r2t: true, immediate_data: false, ..Wishes::to_target(&iqn) };
    let mut client = ready(&server, &wishes);
    // As immediate data.
    let command = write(&mut client, 1, true);
    client.wire.send(command, &[1; 512]).expect("sent");
    let (answer, _) = response_to(&mut client, &command);
    assert_eq!((answer.status, answer.sense_triple()), (2, UNEXPECTED_UNSOLICITED_DATA));
    // As Data-Out without an R2T.
    let mut client = ready(&server, &wishes);
    let command = write(&mut client, 1, false);
    client.wire.send(command, &[]).expect("sent");
    let header = data_out(&client, &command, TAG_NONE, (0, 0), true);
    client.wire.send(header, &[1; 512]).expect("sent");
    let (answer, _) = response_to(&mut client, &command);
    assert_eq!((answer.status, answer.sense_triple()), (2, UNEXPECTED_UNSOLICITED_DATA));
    lives(&mut client);
}

#[test]
fn deviation_04_a_text_response_that_is_not_final_has_a_transfer_tag() {
    let server = Server::start();
    for number in 0..40 {
        let name = format!("t{number}");
        server.ok(&["target", "create", &name, "--iqn", &format!("iqn.2026-11.io.lunaring:a-long-name-{number:03}")]);
        server.ok(&["target", "allow", &name, "any"]);
    }
    let mut client = discovery(&server);
    let mut answer = text(&mut client, FINAL, TAG_NONE, b"SendTargets=All\0");
    let (mut joined, mut pieces) = (answer.data.clone(), 1);
    while answer.header.flags() & FINAL == 0 {
        assert_ne!(answer.header.word(20), TAG_NONE, "F=0 needs a Target Transfer Tag (section 11.11.4)");
        assert!(answer.data.len() <= 1024);
        answer = text_again(&mut client, &answer, FINAL, &[]);
        joined.extend_from_slice(&answer.data);
        pieces += 1;
    }
    assert_eq!(answer.header.word(20), TAG_NONE, "F=1 has none");
    assert!(pieces > 1);
    assert_eq!(pairs(&joined).filter(|(key, _)| *key == "TargetName").count(), 40);
}

#[test]
fn deviation_05_a_segment_length_may_be_declared_in_a_text_request_that_goes_on() {
    let (server, iqn) = served();
    let mut client = ready(&server, &Wishes::to_target(&iqn));
    let answer = text(&mut client, 0, TAG_NONE, b"MaxRecvDataSegmentLength=8192\0");
    assert_eq!((answer.header.opcode(), answer.header.flags() & FINAL), (response::TEXT, 0));
    assert_ne!(answer.header.word(20), TAG_NONE);
    assert!(pairs(&answer.data).any(|(key, _)| key == "MaxRecvDataSegmentLength"));
    let answer = text_again(&mut client, &answer, FINAL, &[]);
    assert_eq!((answer.header.flags() & FINAL, answer.header.word(20)), (FINAL, TAG_NONE));
    // It holds from now on: no Data-In segment is longer.
    let mut command = client.request(request::SCSI_COMMAND, FINAL | 0x41).with_lun(0).with_word(20, 65536);
    command.0[32..48].copy_from_slice(&cdb_transfer_16(cdb::READ_16, 0, 128, false));
    client.wire.send(command, &[]).expect("sent");
    let mut received = 0;
    while received < 65536 {
        let pdu = client.receive().expect("Data-In");
        assert_eq!(pdu.header.opcode(), response::DATA_IN);
        assert!(pdu.data.len() <= 8192, "{} bytes in one segment", pdu.data.len());
        received += pdu.data.len();
    }
}

#[test]
fn deviation_06_a_segment_length_may_be_declared_in_a_discovery_session() {
    let (server, _) = served();
    let mut client = discovery(&server);
    let answer = text(&mut client, FINAL, TAG_NONE, b"MaxRecvDataSegmentLength=4096\0");
    assert_eq!((answer.header.opcode(), answer.header.flags() & FINAL), (response::TEXT, FINAL));
    assert!(pairs(&answer.data).any(|(key, _)| key == "MaxRecvDataSegmentLength"));
    assert!(!client.wire.text(b"SendTargets=All\0").expect("the session lives").is_empty());
}

#[test]
fn deviation_07_send_targets_without_a_name_is_answered() {
    let (server, iqn) = served();
    let mut client = ready(&server, &Wishes::to_target(&iqn));
    let answer = text(&mut client, FINAL, TAG_NONE, b"SendTargets=\0");
    assert_eq!(pairs(&answer.data).next(), Some(("TargetName", iqn.as_str())), "the session's own target");
    lives(&mut client);
    let mut client = discovery(&server);
    let answer = text(&mut client, FINAL, TAG_NONE, b"SendTargets=\0");
    assert_eq!((answer.header.opcode(), answer.header.flags() & FINAL), (response::TEXT, FINAL));
    lives(&mut client);
}

#[test]
fn deviation_08_all_targets_are_not_listed_in_a_normal_session_and_it_is_not_dropped() {
    let (server, iqn) = served();
    server.ok(&["target", "create", "other"]);
    server.ok(&["target", "allow", "other", "any"]);
    let mut client = ready(&server, &Wishes::to_target(&iqn));
    let answer = text(&mut client, FINAL, TAG_NONE, b"SendTargets=All\0");
    let names: Vec<&str> = pairs(&answer.data).filter(|(key, _)| *key == "TargetName").map(|(_, name)| name).collect();
    assert_eq!(names, [iqn.as_str()], "nothing beyond the target that the session is logged in to");
    lives(&mut client);
}

#[test]
fn deviation_09_a_text_request_that_goes_on_is_taken_to_its_end() {
    let (server, iqn) = served();
    let mut client = discovery(&server);
    let answer = text(&mut client, CONTINUE, TAG_NONE, b"SendTar");
    assert_eq!((answer.header.opcode(), answer.header.flags(), answer.data.len()), (response::TEXT, 0, 0));
    assert_ne!(answer.header.word(20), TAG_NONE);
    let answer = text_again(&mut client, &answer, FINAL, b"gets=All\0");
    assert_eq!(pairs(&answer.data).next(), Some(("TargetName", iqn.as_str())));
}

#[test]
fn deviation_10_the_handle_comes_with_the_last_login_response_only() {
    let (server, iqn) = served();
    let mut wire = connect(server.portals[0]);
    let tsih = |answer: &Pdu| u16::from_be_bytes([answer.header.0[14], answer.header.0[15]]);
    let first = login_step(&mut wire, 0x81, &format!("{}AuthMethod=None|", who(&iqn)));
    assert_eq!((status(&first), tsih(&first)), (0, 0));
    let second = login_step(&mut wire, 0x04, "HeaderDigest=None|");
    assert_eq!((status(&second), tsih(&second)), (0, 0));
    let last = login_step(&mut wire, 0x87, "");
    assert_eq!((status(&last), last.header.flags() & 0x83), (0, 0x83));
    assert_ne!(tsih(&last), 0);
}

#[test]
fn deviation_11_a_duplicate_is_ignored_and_commands_out_of_order_wait_for_their_turn() {
    let (server, iqn) = served();
    let wishes = Wishes { initial_r2t: true, immediate_data: false, ..Wishes::to_target(&iqn) };
    let mut client = ready(&server, &wishes);
    let command = write(&mut client, 1, true);
    client.wire.send(command, &[]).expect("sent");
    client.wire.send(command, &[]).expect("sent again");
    let r2t = client.receive().expect("an R2T");
    assert_eq!((r2t.header.opcode(), r2t.header.task_tag()), (response::R2T, command.task_tag()));
    let header = data_out(&client, &command, r2t.header.word(20), (0, 0), true);
    client.wire.send(header, &[1; 512]).expect("sent");
    let (answer, more) = response_to(&mut client, &command);
    assert_eq!((answer.status, more.len()), (0, 0), "one R2T, one answer");
    // Three commands, the first one last.
    let [first, second, third] = [(); 3].map(|()| client.request(request::SCSI_COMMAND, FINAL | 1));
    for header in [third, second, first] {
        client.wire.send(header, &[]).expect("sent");
    }
    for header in [first, second, third] {
        let answer = client.receive().expect("an answer");
        assert_eq!((answer.header.task_tag(), answer.header.0[3]), (header.task_tag(), 0), "in the order of CmdSN");
    }
    lives(&mut client);
}

#[test]
fn deviation_12_a_task_that_does_not_exist_is_told_from_one_that_was_not_received() {
    let (server, iqn) = served();
    let mut client = ready(&server, &Wishes::to_target(&iqn));
    const ABORT_TASK: u8 = 1;
    let next = client.wire.cmd_sn;
    let abort = |client: &mut Client, cmd_sn: u32| {
        client.task_management(ABORT_TASK, 0, Some((0x7777, cmd_sn))).expect("an answer")
    };
    const DOES_NOT_EXIST: u8 = 1;
    assert_eq!(abort(&mut client, next.wrapping_sub(10)), DOES_NOT_EXIST, "behind the window");
    assert_eq!(abort(&mut client, next.wrapping_add(5000)), DOES_NOT_EXIST, "beyond the window");
    // Within the window and before the function itself: it counts as received, and will be ignored (section 11.6.1).
    let lost = client.request(request::SCSI_COMMAND, FINAL | 1);
    assert_eq!(abort(&mut client, lost.word(24)), 0);
    let later = client.request(request::SCSI_COMMAND, FINAL | 1);
    client.wire.send(later, &[]).expect("sent");
    let answer = client.receive().expect("an answer");
    assert_eq!(answer.header.task_tag(), later.task_tag(), "the gap is closed");
}

#[test]
fn deviation_13_a_discovery_session_is_not_removed_for_recovery() {
    let (server, _) = served();
    let mut client = discovery(&server);
    let answer = logout(&mut client, 2, 0);
    match answer.header.opcode() {
        response::LOGOUT => assert_eq!(answer.header.0[2], 2, "connection recovery is not supported"),
        other => assert_eq!(other, response::REJECT),
    }
}

#[test]
fn deviation_14_a_connection_that_is_not_there_cannot_log_out() {
    let (server, iqn) = served();
    let mut client = ready(&server, &Wishes::to_target(&iqn));
    let answer = logout(&mut client, 1, 4242);
    assert_eq!((answer.header.opcode(), answer.header.0[2]), (response::LOGOUT, 1), "CID not found");
    lives(&mut client);
}

#[test]
fn deviation_15_an_initiator_that_sends_the_targets_key_is_refused() {
    let (server, iqn) = served();
    for value in ["NotUnderstood", "1"] {
        let keys = format!("{}TargetPortalGroupTag={value}|", who(&iqn));
        let answer = login_step(&mut connect(server.portals[0]), 0x87, &keys);
        assert_eq!(status(&answer), 0x0200, "{value}");
    }
}

#[test]
fn deviation_16_a_key_is_negotiated_once() {
    let (server, iqn) = served();
    for key in ["ImmediateData=Yes|", "MaxBurstLength=65536|", "DataDigest=None|"] {
        let mut wire = connect(server.portals[0]);
        assert_eq!(status(&login_step(&mut wire, 0x04, &format!("{}{key}", who(&iqn)))), 0);
        assert_eq!(status(&login_step(&mut wire, 0x87, key)), 0x0200, "{key} in a second request");
        let twice = format!("{}{key}{key}", who(&iqn));
        assert_eq!(status(&login_step(&mut connect(server.portals[0]), 0x87, &twice)), 0x0200, "{key} twice in one");
    }
}

#[test]
fn deviation_17_the_reject_of_a_snack_has_the_next_status_number() {
    let (server, iqn) = served();
    let mut client = ready(&server, &Wishes::to_target(&iqn));
    let expected = client.wire.exp_stat_sn;
    let snack = Header::new(request::SNACK, FINAL | 1)
        .with_word(16, TAG_NONE)
        .with_word(20, TAG_NONE)
        .with_word(28, expected)
        .with_word(40, expected.wrapping_sub(1))
        .with_word(44, 1);
    client.wire.send(snack, &[]).expect("sent");
    let answer = client.receive().expect("an answer");
    assert_eq!((answer.header.opcode(), answer.header.stat_sn()), (response::REJECT, expected));
    lives(&mut client);
}

#[test]
fn deviation_18_a_key_that_nobody_knows_is_not_understood_also_when_the_text_goes_on() {
    let (server, iqn) = served();
    let mut wire = connect(server.portals[0]);
    let first = login_step(&mut wire, CONTINUE | 0x04, &format!("{}X-com.example.fl", who(&iqn)));
    assert_eq!((status(&first), first.data.len()), (0, 0));
    let answer = login_step(&mut wire, 0x04, "avour=sweet|");
    assert!(
        pairs(&answer.data).any(|pair| pair == ("X-com.example.flavour", "NotUnderstood")),
        "{:?}",
        String::from_utf8_lossy(&answer.data)
    );
    let mut client = ready(&server, &Wishes::to_target(&iqn));
    let answer = text(&mut client, CONTINUE, TAG_NONE, b"X-com.example.fl");
    let answer = text_again(&mut client, &answer, FINAL, b"avour=sweet\0");
    assert_eq!(pairs(&answer.data).collect::<Vec<_>>(), [("X-com.example.flavour", "NotUnderstood")]);
}

#[test]
fn deviation_19_no_sequence_is_longer_than_max_burst_length_and_functions_are_immediate() {
    let (server, iqn) = served();
    let wishes = Wishes { segment_len_max: 65536, ..Wishes::to_target(&iqn) };
    let mut client = ready(&server, &wishes);
    let max_burst = client.parameters.max_burst as usize;
    let len = 4 << 20;
    assert!(max_burst < len);
    let mut command = client.request(request::SCSI_COMMAND, FINAL | 0x41).with_lun(0).with_word(20, len as u32);
    command.0[32..48].copy_from_slice(&cdb_transfer_16(cdb::READ_16, 0, (len / 512) as u32, false));
    client.wire.send(command, &[]).expect("sent");
    let (mut received, mut sequence, mut sequences) = (0, 0, 0);
    while received < len {
        let pdu = client.receive().expect("Data-In");
        assert_eq!((pdu.header.opcode(), pdu.header.word(40) as usize), (response::DATA_IN, received));
        received += pdu.data.len();
        sequence += pdu.data.len();
        assert!(sequence <= max_burst, "{sequence} bytes in one sequence");
        if pdu.header.flags() & FINAL != 0 {
            (sequence, sequences) = (0, sequences + 1);
        }
        if pdu.header.flags() & 1 != 0 {
            assert_eq!(received, len, "status with the last segment");
        }
    }
    assert!(sequences >= len / max_burst, "{sequences} sequences");
    // A function does not wait for a command that is missing before it.
    let missing = client.request(request::SCSI_COMMAND, FINAL | 1);
    let far = missing.word(24).wrapping_add(5000);
    assert_eq!(client.task_management(1, 0, Some((0x7777, far))).expect("an answer at once"), 1);
    client.wire.send(missing, &[]).expect("sent");
    assert_eq!(client.receive().expect("an answer").header.task_tag(), missing.task_tag());
}

#[test]
fn one_connection_a_session_is_what_is_negotiated() {
    let (server, iqn) = served();
    let mut wire = connect(server.portals[0]);
    let answer = login_step(&mut wire, 0x04, &format!("{}MaxConnections=8|", who(&iqn)));
    assert!(pairs(&answer.data).any(|pair| pair == ("MaxConnections", "1")));
}

#[test]
fn text_requests_are_answered_in_full_feature_phase_where_tgt_drops_them() {
    let (server, iqn) = served();
    let mut client = ready(&server, &Wishes::to_target(&iqn));
    for _ in 0..3 {
        let answer = text(&mut client, FINAL, TAG_NONE, b"X-com.example.a=1\0");
        assert_eq!(answer.header.opcode(), response::TEXT);
    }
    lives(&mut client);
}

#[test]
fn a_task_set_is_aborted_where_lio_refuses() {
    let (server, iqn) = served();
    let wishes = Wishes { initial_r2t: true, immediate_data: false, ..Wishes::to_target(&iqn) };
    let mut client = ready(&server, &wishes);
    // It waits for data that never comes.
    let command = write(&mut client, 1, true);
    client.wire.send(command, &[]).expect("sent");
    assert_eq!(client.receive().expect("an R2T").header.opcode(), response::R2T);
    const ABORT_TASK_SET: u8 = 2;
    assert_eq!(client.task_management(ABORT_TASK_SET, 0, None).expect("an answer"), 0);
    assert!(client.events.is_empty(), "an aborted command is not answered");
    lives(&mut client);
    assert_eq!(client.bare(0, &[0; 6]).expect("an answer").status, 0);
}
