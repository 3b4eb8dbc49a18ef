//! NOP, Logout, and what is rejected (RFC 7143 sections 7, 11.14 to 11.19).
//!
//! Seen to fail: with the ping's data cut to 16 bytes, with Logout of another connection answered 0, and with unknown
//! operation codes unanswered.

use perf::login::Wishes;
use perf::pdu::{FINAL, Header, IMMEDIATE, request, response};

use crate::support::{
    BLOCK, Bench, command, content, data_out, ended, expect, expect_reject, is_alive, is_closed, is_silent, read_16,
    write_16,
};

/// Sections 11.18 and 11.19: the ping comes back with its tag and data, and with nothing that asks for an answer.
#[test]
fn a_ping_comes_back() {
    let bench = Bench::start();
    let mut client = bench.client();
    for (opcode, len) in
        [(request::NOP_OUT | IMMEDIATE, 0), (request::NOP_OUT, 13), (request::NOP_OUT | IMMEDIATE, 8192)]
    {
        let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
        let ping = client.request(opcode, FINAL).with_word(20, u32::MAX);
        client.wire.send(ping, &payload).expect("sent");
        let pong = expect(&mut client, response::NOP_IN);
        assert_eq!((pong.header.task_tag(), pong.header.word(20)), (ping.task_tag(), u32::MAX));
        assert_eq!((pong.data, pong.header.flags(), pong.header.exp_cmd_sn()), (payload, FINAL, client.wire.cmd_sn));
    }
}

/// Section 11.19: the answer to a ping is cut to what the initiator takes.
#[test]
fn a_ping_is_cut_to_what_the_initiator_takes() {
    let bench = Bench::start();
    let (mut client, _) = bench.client_asking("MaxRecvDataSegmentLength=512");
    let ping = client.request(request::NOP_OUT | IMMEDIATE, FINAL).with_word(20, u32::MAX);
    client.wire.send(ping, &[5; 2000]).expect("sent");
    assert_eq!(expect(&mut client, response::NOP_IN).data, [5; 512]);
}

/// Section 11.18: without a tag nothing is answered; with the tag of a ping that the target never sent neither.
#[test]
fn a_nop_out_without_tag_is_not_answered() {
    let bench = Bench::start();
    let mut client = bench.client();
    for transfer_tag in [u32::MAX, 12345] {
        let quiet =
            client.request(request::NOP_OUT | IMMEDIATE, FINAL).with_word(16, u32::MAX).with_word(20, transfer_tag);
        client.wire.send(quiet, &[]).expect("sent");
    }
    assert!(is_silent(&mut client));
}

/// Section 11.14: closing the session, and closing this connection, are answered 0, and then the connection ends.
#[test]
fn a_logout_is_answered_and_closes() {
    let bench = Bench::start();
    for reason in [0, 1] {
        let mut client = bench.client();
        let logout = client.request(request::LOGOUT | IMMEDIATE, FINAL | reason);
        client.wire.send(logout, &[]).expect("sent");
        let answer = expect(&mut client, response::LOGOUT);
        assert_eq!((answer.header.0[2], answer.header.task_tag()), (0, logout.task_tag()));
        assert_eq!((answer.header.flags(), answer.data.len()), (FINAL, 0));
        assert!(is_closed(&mut client.wire));
    }
}

/// Section 11.15.1 (and Microsoft's deviations 13 and 14): a connection that is not there; recovery, which needs
/// ErrorRecoveryLevel 2. The session goes on.
#[test]
fn a_logout_of_what_is_not_there_says_so() {
    let bench = Bench::start();
    let mut client = bench.client();
    for (reason, cid, expected) in [(1, 4711u32, 1), (2, 0, 2), (2, 4711, 2)] {
        let logout = client.request(request::LOGOUT | IMMEDIATE, FINAL | reason).with_word(20, cid << 16);
        client.wire.send(logout, &[]).expect("sent");
        assert_eq!(expect(&mut client, response::LOGOUT).header.0[2], expected, "reason {reason}, CID {cid}");
        assert!(is_alive(&mut client));
    }
}

/// Section 11.14: a reason that does not exist.
#[test]
fn a_logout_for_an_unknown_reason_is_rejected() {
    let bench = Bench::start();
    let mut client = bench.client();
    let logout = client.request(request::LOGOUT | IMMEDIATE, FINAL | 0x55);
    client.wire.send(logout, &[]).expect("sent");
    expect_reject(&mut client, 0x09, &logout);
    assert!(is_alive(&mut client));
}

/// Section 11.14: a logout waits for the commands before it; those that wait for data end unanswered with it.
#[test]
fn a_logout_comes_after_the_commands_before_it() {
    let bench = Bench::start();
    let mut client = bench.client();
    let first = command(&mut client, FINAL | 0x20, BLOCK, &write_16(0, 1));
    let logout = client.request(request::LOGOUT, FINAL);
    client.wire.send(logout, &[]).expect("sent");
    assert!(is_silent(&mut client));
    client.wire.send(first, &[1; BLOCK]).expect("sent");
    assert_eq!(ended(&expect(&mut client, response::SCSI_RESPONSE)), (0, None));
    expect(&mut client, response::LOGOUT);
    assert!(is_closed(&mut client.wire));
    assert_eq!(content(&mut bench.client(), 0, 1), [1; BLOCK]);
}

/// Section 4.3: a discovery session serves text, logout of the session, and pings.
#[test]
fn a_discovery_session_serves_no_commands() {
    let bench = Bench::start();
    let mut wishes = bench.wishes();
    wishes.target_name = None;
    let mut client = perf::client::Client::open(bench.server.portals[0], &wishes).expect("a discovery session");
    let probe = command(&mut client, FINAL, 0, &[0; 6]);
    client.wire.send(probe, &[]).expect("sent");
    expect_reject(&mut client, 0x04, &probe);
    client.wire.cmd_sn = probe.word(24);
    let task_management = client.request(request::TASK_MANAGEMENT | IMMEDIATE, FINAL | 5);
    client.wire.send(task_management, &[]).expect("sent");
    expect_reject(&mut client, 0x04, &task_management);
    for reason in [1, 2] {
        let logout = client.request(request::LOGOUT | IMMEDIATE, FINAL | reason);
        client.wire.send(logout, &[]).expect("sent");
        expect_reject(&mut client, 0x04, &logout);
    }
    assert!(is_alive(&mut client));
    assert_eq!(client.wire.logout().expect("an answer"), 0);
}

/// Section 11.17: an operation code that nobody knows, or that only targets send; also one with data.
#[test]
fn unknown_operation_codes_are_rejected() {
    let bench = Bench::start();
    let mut client = bench.client();
    for opcode in [0x07u8, 0x0f, 0x1c, 0x1d, 0x1e, 0x20, 0x21, 0x25, 0x31, 0x3f] {
        let strange = client.request(opcode | IMMEDIATE, FINAL);
        client.wire.send(strange, b"with data").expect("sent");
        expect_reject(&mut client, 0x05, &strange);
    }
    assert_eq!(client.bare(0, &[0; 6]).expect("the session goes on").status, 0);
}

/// Section 11.16: no SNACK at ErrorRecoveryLevel 0; the Reject has the next StatSN (Microsoft's deviation 17).
#[test]
fn snacks_are_rejected_at_error_recovery_level_0() {
    let bench = Bench::start();
    let mut client = bench.client();
    for kind in 0..4 {
        let stat_sn = client.wire.exp_stat_sn;
        let snack = client.request(request::SNACK, FINAL | kind).with_word(16, u32::MAX);
        client.wire.cmd_sn = client.wire.cmd_sn.wrapping_sub(1);
        let snack = snack.with_word(24, 0);
        client.wire.send(snack, &[]).expect("sent");
        let reject = expect(&mut client, response::REJECT);
        assert!([0x03, 0x04, 0x08].contains(&reject.header.0[2]), "type {kind}: {:x?}", reject.header.0);
        assert_eq!((reject.header.stat_sn(), &reject.data[..]), (stat_sn, &snack.0[..]));
    }
    assert_eq!(client.bare(0, &[0; 6]).expect("the session goes on").status, 0);
}

/// Section 11.2.1.8: a task tag that is in use.
#[test]
fn a_tag_in_use_is_rejected() {
    let bench = Bench::start();
    let wishes = Wishes { immediate_data: false, initial_r2t: true, ..bench.wishes() };
    let mut client = bench.client_with(&wishes);
    let write = command(&mut client, FINAL | 0x20, BLOCK, &write_16(0, 1));
    client.wire.send(write, &[]).expect("sent");
    let r2t = expect(&mut client, response::R2T);
    let twin = command(&mut client, FINAL, 0, &[0; 6]).with_word(16, write.task_tag());
    client.wire.send(twin, &[]).expect("sent");
    expect_reject(&mut client, 0x07, &twin);
    client.wire.cmd_sn = twin.word(24);
    let data = data_out(&client, write.task_tag(), r2t.header.word(20), 0, 0, true);
    client.wire.send(data, &[1; BLOCK]).expect("sent");
    assert_eq!(ended(&expect(&mut client, response::SCSI_RESPONSE)), (0, None));
    let again = command(&mut client, FINAL, 0, &[0; 6]).with_word(16, write.task_tag());
    client.wire.send(again, &[]).expect("sent");
    assert_eq!(ended(&expect(&mut client, response::SCSI_RESPONSE)), (0, None));
}

/// Sections 11.2.1.8, 11.3.1 and 11.3.4: the reserved tag, data without W, F missing where nothing follows, and both
/// directions without the second length.
#[test]
fn illegal_fields_of_commands_are_refused() {
    let bench = Bench::start();
    let mut client = bench.client();
    let next = client.wire.cmd_sn;
    let probe = command(&mut client, FINAL, 0, &[0; 6]).with_word(16, u32::MAX);
    client.wire.send(probe, &[]).expect("sent");
    expect_reject(&mut client, 0x09, &probe);
    client.wire.cmd_sn = next;
    let both = command(&mut client, FINAL | 0x60, BLOCK, &read_16(0, 1));
    client.wire.send(both, &[]).expect("sent");
    expect_reject(&mut client, 0x09, &both);
    client.wire.cmd_sn = next;
    let unfinished = command(&mut client, 0x40, BLOCK, &read_16(0, 1));
    client.wire.send(unfinished, &[]).expect("sent");
    expect_reject(&mut client, 0x09, &unfinished);
    client.wire.cmd_sn = next;
    assert_eq!(client.bare(0, &[0; 6]).expect("the session goes on").status, 0);
}

/// Section 11.2.2: additional headers that are not what they say, and such of other requests.
#[test]
fn illegal_additional_headers_are_rejected() {
    let bench = Bench::start();
    let mut client = bench.client();
    let next = client.wire.cmd_sn;
    for ahs in [&[0xff, 0xff, 1, 0][..], &[0, 1, 9, 0], &[0, 0, 1, 0], &[0, 5, 1, 0, 1, 2, 3, 4, 0, 0, 0, 0]] {
        let probe = command(&mut client, FINAL, 0, &[0; 6]);
        client.wire.send_with_ahs(probe, ahs, &[]).expect("sent");
        let answer = client.receive().expect("an answer");
        if answer.header.opcode() == response::REJECT {
            assert_eq!((answer.header.0[2], &answer.data[16..20]), (0x09, &probe.0[16..20]));
            client.wire.cmd_sn = next;
        } else {
            // An additional header that does not matter to the command may be passed over.
            assert_eq!(ended(&answer).0, 0, "{ahs:x?}");
            client.wire.cmd_sn = answer.header.exp_cmd_sn();
        }
    }
    let ping = client.request(request::NOP_OUT | IMMEDIATE, FINAL).with_word(20, u32::MAX);
    client.wire.send_with_ahs(ping, &[0, 5, 1, 0, 0, 0, 0, 0], &[]).expect("sent");
    expect_reject(&mut client, 0x09, &ping);
    assert!(is_alive(&mut client));
}

/// Section 6.3: a Login Request in full feature phase is a protocol error that ends the connection.
#[test]
fn a_login_in_full_feature_phase_ends_the_connection() {
    let bench = Bench::start();
    let mut client = bench.client();
    let login = client.request(request::LOGIN | IMMEDIATE, FINAL | 0x07);
    client.wire.send(login, b"InitiatorName=iqn.2026-11.io.x:y\0").expect("sent");
    assert!(is_closed(&mut client.wire));
}

/// Section 13.12: a data segment longer than the target takes ends the connection; nothing of it is written.
#[test]
fn a_segment_that_is_too_long_ends_the_connection() {
    let bench = Bench::start();
    let mut client = bench.client();
    let declared = client.parameters.send_segment_max as usize;
    let blocks = declared / BLOCK + 1;
    let write = command(&mut client, FINAL | 0x20, blocks * BLOCK, &write_16(0, blocks));
    let _ = client.wire.send(write, &vec![9; blocks * BLOCK]);
    assert!(is_closed(&mut client.wire));
    assert_eq!(content(&mut bench.client(), 0, 1), [0; BLOCK]);
}

/// Section 11.9.1: before the server ends it says so, with the next StatSN and times.
#[test]
fn a_server_that_ends_says_so() {
    let mut bench = Bench::start();
    let mut client = bench.client();
    let stat_sn = client.wire.exp_stat_sn;
    let stopping = std::thread::spawn(move || bench.server.stop());
    let message = expect(&mut client, response::ASYNC_MESSAGE);
    assert_eq!((message.header.flags(), message.header.stat_sn()), (FINAL, stat_sn));
    assert_eq!((message.header.task_tag(), message.header.word(20)), (u32::MAX, 0));
    assert!((1..=3).contains(&message.header.0[36]), "{:x?}", message.header.0);
    assert!(is_closed(&mut client.wire));
    assert!(stopping.join().expect("the server ends").as_secs() < 3);
}

/// A PDU of another opcode before the login (section 6.3.1).
#[test]
fn nothing_but_a_login_comes_first() {
    let bench = Bench::start();
    for opcode in [request::NOP_OUT | IMMEDIATE, request::SCSI_COMMAND, request::TEXT, request::LOGOUT | IMMEDIATE] {
        let mut login = bench.login();
        login.wire.send(Header::new(opcode, FINAL).with_word(20, u32::MAX), &[]).expect("sent");
        assert!(is_closed(&mut login.wire), "opcode {opcode:#x}");
    }
}

/// Section 11: what is reserved is ignored, whatever it holds.
#[test]
fn reserved_fields_are_ignored() {
    let bench = Bench::start();
    let wishes = Wishes { immediate_data: false, initial_r2t: true, ..bench.wishes() };
    let mut client = bench.client_with(&wishes);
    let fill = |header: &mut Header, places: &[std::ops::Range<usize>]| {
        places.iter().for_each(|place| header.0[place.clone()].fill(0xff));
    };
    let mut write = command(&mut client, FINAL | 0x20 | 0x18, BLOCK, &write_16(3, 1));
    write.0[2..4].fill(0xff);
    client.wire.send(write, &[]).expect("sent");
    let r2t = expect(&mut client, response::R2T);
    let mut data = data_out(&client, write.task_tag(), r2t.header.word(20), 0, 0, true);
    data.0[1] |= 0x7f;
    fill(&mut data, &[2..4, 24..28, 32..36, 44..48]);
    client.wire.send(data, &[3; BLOCK]).expect("sent");
    assert_eq!(ended(&expect(&mut client, response::SCSI_RESPONSE)), (0, None));
    assert_eq!(content(&mut client, 3, 1), [3; BLOCK]);
    let mut ping = client.request(request::NOP_OUT | IMMEDIATE, FINAL | 0x7f).with_word(20, u32::MAX);
    fill(&mut ping, &[2..4, 32..48]);
    client.wire.send(ping, b"filled").expect("sent");
    assert_eq!(expect(&mut client, response::NOP_IN).data, b"filled");
    let mut text = client.request(request::TEXT | IMMEDIATE, FINAL | 0x3f).with_word(20, u32::MAX);
    fill(&mut text, &[2..4, 32..48]);
    client.wire.send(text, b"SendTargets=\0").expect("sent");
    expect(&mut client, response::TEXT);
    let mut abort = client.request(request::TASK_MANAGEMENT | IMMEDIATE, FINAL | 2).with_word(20, u32::MAX);
    fill(&mut abort, &[2..4, 40..48]);
    client.wire.send(abort, &[]).expect("sent");
    assert_eq!(expect(&mut client, response::TASK_MANAGEMENT).header.0[2], 0);
    let mut logout = client.request(request::LOGOUT | IMMEDIATE, FINAL);
    fill(&mut logout, &[2..4, 22..24, 32..48]);
    client.wire.send(logout, &[]).expect("sent");
    assert_eq!(expect(&mut client, response::LOGOUT).header.0[2], 0);
}

/// Section 11: a reserved value in a field that is defined is a protocol error.
#[test]
fn reserved_values_are_rejected() {
    let bench = Bench::start();
    let mut client = bench.client();
    for attribute in [5, 6, 7] {
        let next = client.wire.cmd_sn;
        let mut probe = command(&mut client, FINAL, 0, &[0; 6]);
        probe.0[1] = FINAL | attribute;
        client.wire.send(probe, &[]).expect("sent");
        let pdu = expect(&mut client, response::REJECT);
        assert!([0x04, 0x09].contains(&pdu.header.0[2]), "ATTR {attribute}: {:x?}", pdu.header.0);
        assert_eq!(pdu.data[16..20], probe.0[16..20]);
        client.wire.cmd_sn = next;
    }
    assert_eq!(client.bare(0, &[0; 6]).expect("the session goes on").status, 0);
}
