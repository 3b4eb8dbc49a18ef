//! Pings, text, logout, SNACK, asynchronous messages, discovery sessions and time.

use super::*;
use crate::iscsi::pdu::{AsyncEvent, AsyncMessage, LogoutReason, LogoutResponseCode, RejectReason};

fn logout(session: &mut Session, reason: LogoutReason, connection_id: u16) -> Bhs {
    let mut bhs = session.request(Opcode::LOGOUT_REQUEST, reason.0, true);
    bhs.set_u16(20, connection_id);
    bhs.set_u16(22, 0);
    bhs
}

fn discovery() -> SessionParameters {
    SessionParameters { session_type: SessionType::Discovery, ..parameters() }
}

/// RFC 7143 section 11.18: a ping is answered with its data, as much as fits the initiator's
/// MaxRecvDataSegmentLength; in order, it takes a place in the window until then. Without data the engine answers
/// alone.
#[test]
fn pings_are_echoed() {
    let mut session = Session::new(SessionParameters { data_digest: true, ..parameters() });
    for (len, echoed) in [(10, 10), (1500, 1024)] {
        let mut ping = session.request(Opcode::NOP_OUT, 0, false);
        ping.set_bytes(8, &LUN_2);
        let got = session.send(ping, &pattern(len));
        let [Got { event: Event::NopOut { task }, ref data }] = got[..] else { panic!("{got:?}") };
        session.sink.payload = data.clone();
        assert!(session.connection.send_nop_in(task, data.len(), &mut session.sink));
        let sent = session.only_sent();
        assert_eq!((sent.opcode(), sent.bhs.lun()), (Opcode::NOP_IN, LUN_2));
        assert_eq!(sent.bhs.initiator_task_tag(), ping.initiator_task_tag());
        assert_eq!(sent.bhs.target_transfer_tag(), TAG_RESERVED);
        assert_eq!(sent.data, pattern(len)[..echoed]);
    }
    let ping = session.request(Opcode::NOP_OUT, 0, true);
    assert_eq!(session.send(ping, &[]), []);
    let sent = session.only_sent();
    assert_eq!((sent.opcode(), sent.stat_sn(), sent.exp_cmd_sn()), (Opcode::NOP_IN, 502, 102));
}

/// Section 11.18.1: a NOP-Out without a tag wants no answer and must be immediate.
#[test]
fn a_nop_out_without_tag_is_silent() {
    let mut session = Session::new(parameters());
    for (immediate, answers) in [(true, 0), (false, 1)] {
        let mut nop = session.request(Opcode::NOP_OUT, 0, immediate);
        nop.set_u32(16, TAG_RESERVED);
        assert_eq!(session.send(nop, &[]), []);
        assert_eq!(session.sent().len(), answers);
    }
}

/// Section 11.19: on silence a NOP-In goes out, with a transfer tag and the next StatSN, which it does not use up;
/// any sign of life calms, and none ends the connection.
#[test]
fn a_silent_initiator_is_pinged_and_dropped() {
    let mut session = Session::new(parameters());
    assert_eq!(session.connection.next_deadline_ms(), Some(NOW_MS + 5000));
    assert_eq!(session.connection.on_time(NOW_MS + 4999), Ok(()));
    assert!(!session.connection.wants_transmit());
    assert_eq!(session.connection.on_time(NOW_MS + 5000), Ok(()));
    assert!(session.connection.wants_transmit());
    let ping = session.only_sent();
    assert_eq!((ping.opcode(), ping.bhs.initiator_task_tag(), ping.stat_sn()), (Opcode::NOP_IN, TAG_RESERVED, 500));
    assert_ne!(ping.bhs.target_transfer_tag(), TAG_RESERVED);
    assert_eq!(session.connection.next_deadline_ms(), Some(NOW_MS + 8000));
    assert_eq!(session.connection.on_time(NOW_MS + 7999), Ok(()));
    let mut pong = session.request(Opcode::NOP_OUT, 0, true);
    pong.set_u32(16, TAG_RESERVED);
    pong.set_u32(20, ping.bhs.target_transfer_tag());
    assert_eq!(session.send(pong, &[]), []);
    assert_eq!(session.sent(), [], "the answer to a ping is not answered");
    let read = session.read(512);
    let task = session.start(read, &[]);
    assert_eq!(session.good(task, 512).stat_sn(), 500, "the ping has not used it up");
    assert_eq!(session.connection.on_time(NOW_MS + 5000), Ok(()));
    assert_eq!(session.connection.on_time(NOW_MS + 8000), Err(Refusal::PingTimeout));
    let never = SessionParameters { ping_interval_ms: 0, ..parameters() };
    let mut session = Session::new(never);
    assert_eq!(session.connection.next_deadline_ms(), None);
    assert_eq!(session.connection.on_time(u64::MAX), Ok(()));
}

/// Section 11.14 and 11.15: closing the session or its connection ends it; nothing is served after the response.
#[test]
fn a_logout_closes_the_session() {
    for (reason, connection_id) in [(LogoutReason::CLOSE_SESSION, 99), (LogoutReason::CLOSE_CONNECTION, 7)] {
        let mut session = Session::new(parameters());
        let read = session.read(512);
        let victim = session.start(read, &[]);
        let bhs = logout(&mut session, reason, connection_id);
        let Event::Logout { task } = session.event(bhs, &[]) else { panic!("a logout") };
        assert_eq!(session.connection.logout(task).reason, reason);
        session.connection.abort(victim);
        session.connection.release(victim);
        assert!(session.connection.send_logout_response(task, LogoutResponseCode::CLOSED, &mut session.sink));
        let sent = session.only_sent();
        assert_eq!((sent.opcode(), sent.bhs.0[2], sent.stat_sn()), (Opcode::LOGOUT_RESPONSE, 0, 500));
        assert_eq!((sent.bhs.u16_at(40), sent.bhs.u16_at(42)), (2, 20));
        let read = session.read(512);
        assert_eq!(session.arrive(&read.0), Err(Refusal::AfterLogout));
    }
}

/// Windows' deviations 13 and 14: a connection that does not exist is not found, recovery is not supported at
/// ErrorRecoveryLevel 0, and in a discovery session only closing it is served. The session goes on.
#[test]
fn logouts_that_close_nothing() {
    for (parameters, reason, connection_id, opcode, code) in [
        (parameters(), LogoutReason::CLOSE_CONNECTION, 8, Opcode::LOGOUT_RESPONSE, 1),
        (parameters(), LogoutReason::REMOVE_FOR_RECOVERY, 7, Opcode::LOGOUT_RESPONSE, 2),
        (discovery(), LogoutReason::REMOVE_FOR_RECOVERY, 7, Opcode::REJECT, 4),
        (parameters(), LogoutReason(3), 7, Opcode::REJECT, 9),
    ] {
        let mut session = Session::new(parameters);
        let bhs = logout(&mut session, reason, connection_id);
        assert_eq!(session.send(bhs, &[]), []);
        let sent = session.only_sent();
        assert_eq!((sent.opcode(), sent.bhs.0[2]), (opcode, code));
        let ping = session.request(Opcode::NOP_OUT, 0, true);
        assert_eq!(session.send(ping, &[]), []);
        assert_eq!(session.only_sent().opcode(), Opcode::NOP_IN);
    }
}

/// Windows' deviation 17, sections 11.16 and 11.17: a SNACK is rejected, and the Reject has the StatSN that is next,
/// and uses it up.
#[test]
fn a_snack_is_rejected_with_the_right_stat_sn() {
    let mut session = Session::new(parameters());
    let read = session.read(512);
    let task = session.start(read, &[]);
    let mut snack = Bhs::new(Opcode::SNACK_REQUEST, flags::FINAL);
    snack.set_u32(16, read.initiator_task_tag());
    snack.set_u32(20, TAG_RESERVED);
    snack.set_u32(28, 500);
    let mut reject = |session: &mut Session, kind: u8, begin: u32| {
        snack.0[1] = flags::FINAL | kind;
        snack.set_u32(40, begin);
        snack.set_u32(44, 1);
        assert_eq!(session.send(snack, &[]), []);
        let sent = session.only_sent();
        assert_eq!((sent.opcode(), sent.data.clone()), (Opcode::REJECT, snack.0.to_vec()));
        (RejectReason(sent.bhs.0[2]), sent.stat_sn())
    };
    assert_eq!(reject(&mut session, 0, 0), (RejectReason::SNACK_REJECT, 500));
    assert_eq!(reject(&mut session, 1, 500), (RejectReason::SNACK_REJECT, 501));
    assert_eq!(reject(&mut session, 1, 499), (RejectReason::PROTOCOL_ERROR, 502), "acknowledged");
    assert_eq!(reject(&mut session, 1, 600), (RejectReason::PROTOCOL_ERROR, 503), "never sent");
    assert_eq!(reject(&mut session, 2, 0), (RejectReason::INVALID_DATA_ACK, 504));
    assert_eq!(session.good(task, 512).stat_sn(), 505);
    assert_eq!(reject(&mut session, 0, 0), (RejectReason::PROTOCOL_ERROR, 506), "no such task any more");
    assert_eq!(reject(&mut session, 7, 0), (RejectReason::INVALID_PDU_FIELD, 507));
}

/// Sections 11.10 and 11.11: text goes through, with its data; one request at a time; a refused one is rejected with
/// its header.
#[test]
fn text_requests_reach_their_exchange_one_at_a_time() {
    let mut session = Session::new(parameters());
    let text = session.request(Opcode::TEXT_REQUEST, 0, false);
    let got = session.send(text, b"SendTargets=\0");
    let [Got { event: Event::Text { task }, ref data }] = got[..] else { panic!("{got:?}") };
    assert_eq!(data, b"SendTargets=\0");
    assert!(session.connection.text_request(task).is_final);
    let second = session.request(Opcode::TEXT_REQUEST, 0, true);
    assert_eq!(session.send(second, b"X=Y\0"), []);
    assert_eq!(session.only_sent().bhs.0[2], 0x04);
    session.sink.payload = b"TargetName=iqn.2026-01.example:a\0".to_vec();
    let len = session.sink.payload.len();
    assert!(session.connection.send_text_response(task, false, true, 77, len, &mut session.sink));
    let sent = session.only_sent();
    assert_eq!((sent.opcode(), sent.bhs.flags(), sent.bhs.target_transfer_tag()), (Opcode::TEXT_RESPONSE, 0x40, 77));
    assert_eq!((sent.data.len(), sent.stat_sn()), (len, 501));
    let mut go_on = session.request(Opcode::TEXT_REQUEST, 0, false);
    go_on.set_u32(20, 78);
    let Event::Text { task } = session.event(go_on, &[]) else { panic!("text") };
    assert_eq!(session.connection.text_request(task).target_transfer_tag, 78);
    assert_eq!(session.connection.reject(task, RejectReason::INVALID_PDU_FIELD), Ok(()));
    assert_eq!(session.only_sent().data, go_on.0.map(|byte| byte), "nothing but the header");
    // F and C exclude each other (section 11.10.2).
    let bad = session.request(Opcode::TEXT_REQUEST, flags::CONTINUE, true);
    assert_eq!(session.send(bad, b"X=Y\0"), []);
    assert_eq!(session.only_sent().bhs.0[2], 0x09);
}

/// Section 4.3: a discovery session serves text and the logout that closes it; NOP-Out keeps it alive; all else is
/// rejected.
#[test]
fn a_discovery_session_serves_no_commands() {
    let mut session = Session::new(discovery());
    let text = session.request(Opcode::TEXT_REQUEST, 0, false);
    assert!(matches!(session.event(text, b"SendTargets=All\0"), Event::Text { .. }));
    let read = session.read(512);
    session.cmd_sn -= 1;
    for bhs in [
        read,
        session.request(Opcode::TASK_MANAGEMENT_REQUEST, 5, true),
        session.data_out(&read, TAG_RESERVED, 0, 0, true),
        session.request(Opcode::SNACK_REQUEST, 1, true),
    ] {
        assert_eq!(session.send(bhs, &[]), []);
        assert_eq!(session.only_sent().bhs.0[2], 0x04);
    }
    let bhs = logout(&mut session, LogoutReason::CLOSE_SESSION, 0);
    assert!(matches!(session.event(bhs, &[]), Event::Logout { .. }));
}

/// Section 11.9: the target asks for a logout with the time it gives, and holds the initiator to it; other messages
/// go as given.
#[test]
fn asynchronous_messages() {
    let mut session = Session::new(SessionParameters { data_digest: true, ..parameters() });
    session.connection.request_logout(10, NOW_MS);
    let sent = session.only_sent();
    assert_eq!(
        (sent.opcode(), sent.bhs.initiator_task_tag(), sent.stat_sn()),
        (Opcode::ASYNC_MESSAGE, TAG_RESERVED, 500)
    );
    assert_eq!((sent.bhs.0[36], sent.bhs.u16_at(42)), (1, 10));
    assert_eq!(session.connection.next_deadline_ms(), Some(NOW_MS + 5000), "the ping comes first");
    assert_eq!(session.connection.on_time(NOW_MS + 9999), Ok(()));
    assert_eq!(session.connection.on_time(NOW_MS + 10_000), Err(Refusal::LogoutTimeout));
    let message = AsyncMessage { event: AsyncEvent::SCSI, lun: LUN_2, data_segment_len: 20, ..AsyncMessage::default() };
    assert!(session.connection.send_async_message(&message, &pattern(20), &mut session.sink));
    let sent = session.sent();
    assert_eq!(sent.len(), 2, "the ping has become due too");
    assert_eq!((sent[0].bhs.0[36], sent[0].bhs.lun(), &sent[0].data), (0, LUN_2, &pattern(20)));
}

/// Section 4.2.2.2: ExpStatSN acknowledges, forward only, and never what was not sent.
#[test]
fn exp_stat_sn_acknowledges_what_was_sent() {
    let mut session = Session::new(parameters());
    for _ in 0..3 {
        let read = session.read(512);
        let task = session.start(read, &[]);
        session.good(task, 512);
    }
    for (exp_stat_sn, acknowledged) in [(502, 502), (501, 502), (504, 502), (503, 503)] {
        let mut nop = session.request(Opcode::NOP_OUT, 0, true);
        nop.set_u32(16, TAG_RESERVED);
        nop.set_u32(28, exp_stat_sn);
        session.send(nop, &[]);
        assert_eq!(session.connection.acknowledged_stat_sn(), acknowledged);
    }
}

/// What the engine owes waits for room, and nothing of it is lost.
#[test]
fn what_is_owed_waits_for_room() {
    let mut session = Session::new(parameters());
    let ping = session.request(Opcode::NOP_OUT, 0, true);
    session.send(ping, &[]);
    session.send(Bhs::new(Opcode(0x1c), flags::FINAL), &[]);
    session.connection.request_logout(10, NOW_MS);
    assert_eq!(session.connection.on_time(NOW_MS + 5000), Ok(()));
    for left in [0, 1, 1, 1] {
        session.sink.pdus_left.set(Some(left));
        assert!(!session.connection.poll_transmit(&mut session.sink));
        assert!(session.connection.wants_transmit());
    }
    session.sink.pdus_left.set(None);
    let opcodes: Vec<Opcode> = session.sent().iter().map(Sent::opcode).collect();
    assert_eq!(opcodes, [Opcode::REJECT, Opcode::NOP_IN, Opcode::ASYNC_MESSAGE, Opcode::NOP_IN]);
}
