//! ErrorRecoveryLevel 1 (RFC 7143 sections 7.2, 7.8, 7.9 and 11.16; the flows of its appendix on recovery).

use super::*;
use crate::iscsi::pdu::{RejectReason, SnackKind};

fn recovering() -> SessionParameters {
    SessionParameters { error_recovery_level: 1, data_digest: true, initial_r2t: true, ..parameters() }
}

fn session() -> Session {
    Session::new(recovering())
}

fn snack(session: &mut Session, kind: SnackKind, tag: u32, begin: u32, run_length: u32) -> Bhs {
    let mut bhs = session.request(Opcode::SNACK_REQUEST, kind.0, true);
    bhs.set_u32(16, tag);
    bhs.set_u32(20, TAG_RESERVED);
    bhs.set_u32(40, begin);
    bhs.set_u32(44, run_length);
    bhs
}

/// The Rejects' reasons among what was sent.
fn rejects(sent: &[Sent]) -> Vec<RejectReason> {
    sent.iter().filter(|sent| sent.opcode() == Opcode::REJECT).map(|sent| RejectReason(sent.bhs.0[2])).collect()
}

/// A write of 4096 bytes whose only R2T is sent: the command and the R2T.
fn asked(session: &mut Session) -> (Bhs, TaskId, Sent) {
    let write = session.write(4096);
    let task = session.start(write, &[]);
    assert!(session.connection.send_r2t(task, 4096, &mut session.sink));
    let r2t = session.only_sent();
    (write, task, r2t)
}

fn part(session: &mut Session, write: &Bhs, ttt: u32, data_sn: u32, offset: u32, is_final: bool) -> Vec<u8> {
    let bhs = session.data_out(write, ttt, data_sn, offset, is_final);
    session.wire(bhs, &[], &[data_sn as u8; 1024])
}

/// A read of `len` bytes, answered: the command and what was sent.
fn answered(session: &mut Session, len: u32) -> (Bhs, TaskId, Vec<Sent>) {
    let read = session.read(len);
    let task = session.start(read, &[]);
    session.sink.payload = pattern(len as usize);
    let ending = Some(Ending::good(len.into()));
    assert!(session.connection.send_data_in(task, len as usize, ending, &mut session.sink).done);
    let sent = session.sent();
    (read, task, sent)
}

/// The initiator acknowledges all statuses.
fn acknowledge(session: &mut Session) {
    let mut bhs = session.request(Opcode::NOP_OUT, 0, true);
    bhs.set_u32(16, TAG_RESERVED);
    bhs.set_u32(28, session.connection.stat_sn());
    assert_eq!(session.send(bhs, &[]), []);
}

/// The second of four PDUs has a wrong digest: Reject, and an R2T for all that follows the first.
#[test]
fn data_with_a_wrong_digest_is_asked_for_again() {
    let mut session = session();
    let (write, task, r2t) = asked(&mut session);
    let ttt = r2t.bhs.target_transfer_tag();
    let good = part(&mut session, &write, ttt, 0, 0, false);
    assert!(matches!(session.arrive(&good).unwrap()[0].event, Event::DataOut { buffer_offset: 0, len: 1024, .. }));
    let mut bad = part(&mut session, &write, ttt, 1, 1024, false);
    bad[60] ^= 1;
    assert_eq!(session.arrive(&bad).unwrap(), []);
    let third = part(&mut session, &write, ttt, 2, 2048, false);
    assert_eq!(session.arrive(&third).unwrap(), []);
    let last = part(&mut session, &write, ttt, 3, 3072, true);
    let got = session.arrive(&last).unwrap();
    assert_eq!(got[0].event, Event::DataOutLost { task });
    assert_eq!(rejects(&session.sent()), [RejectReason::DATA_DIGEST_ERROR]);
    let span = session.connection.want_r2t(task).expect("the rest");
    assert_eq!((span.offset, span.len), (1024, 3072));
    assert!(session.connection.send_r2t(task, 3072, &mut session.sink));
    let again = session.only_sent();
    assert_eq!((again.bhs.u32_at(36), again.bhs.u32_at(40), again.bhs.u32_at(44)), (1, 1024, 3072), "R2TSN goes on");
    assert_ne!(again.bhs.target_transfer_tag(), ttt);
    let ttt = again.bhs.target_transfer_tag();
    for at in 0..3 {
        let bytes = part(&mut session, &write, ttt, at, 1024 + at * 1024, at == 2);
        assert!(matches!(session.arrive(&bytes).unwrap()[0].event, Event::DataOut { .. }));
    }
    assert!(session.connection.data_out_complete(task));
    assert_eq!(session.good(task, 4096).opcode(), Opcode::SCSI_RESPONSE);
}

/// A PDU that never came: what follows is passed over; a PDU that comes twice is no harm. Unsolicited data goes on with
/// R2Ts.
#[test]
fn gaps_in_data_sn_are_filled_and_repetitions_ignored() {
    let mut session = session();
    let (write, task, r2t) = asked(&mut session);
    let ttt = r2t.bhs.target_transfer_tag();
    let first = part(&mut session, &write, ttt, 0, 0, false);
    assert_eq!(session.arrive(&first).unwrap().len(), 1);
    assert_eq!(session.arrive(&first).unwrap(), []);
    let second = part(&mut session, &write, ttt, 1, 1024, false);
    assert_eq!(session.arrive(&second).unwrap().len(), 1);
    let last = part(&mut session, &write, ttt, 3, 3072, true);
    assert_eq!(session.arrive(&last).unwrap()[0].event, Event::DataOutLost { task });
    let span = session.connection.want_r2t(task).expect("the rest");
    assert_eq!((span.offset, span.len), (2048, 2048));
    assert_eq!(session.sent(), []);

    let mut session = Session::new(SessionParameters { initial_r2t: false, ..recovering() });
    let write = session.command(flags::WRITE, 4096);
    let task = session.start(write, &[]);
    let mut bad = part(&mut session, &write, TAG_RESERVED, 0, 0, false);
    bad[60] ^= 1;
    assert_eq!(session.arrive(&bad).unwrap(), []);
    let last = part(&mut session, &write, TAG_RESERVED, 1, 1024, true);
    assert_eq!(session.arrive(&last).unwrap()[0].event, Event::DataOutLost { task });
    assert_eq!(session.connection.want_r2t(task).map(|span| (span.offset, span.len)), Some((0, 4096)));
}

/// Data that never arrives right fails in the end.
#[test]
fn recovery_is_not_tried_for_ever() {
    let mut session = session();
    let (write, task, mut r2t) = asked(&mut session);
    for _ in 0..100 {
        let ttt = r2t.bhs.target_transfer_tag();
        let mut bad = part(&mut session, &write, ttt, 0, 0, true);
        bad[60] ^= 1;
        match session.arrive(&bad).unwrap()[0].event {
            Event::DataOutLost { .. } => {}
            event => return assert!(matches!(event, Event::TaskDataError { .. })),
        }
        assert!(session.connection.send_r2t(task, 4096, &mut session.sink));
        r2t = session.sent().into_iter().find(|sent| sent.opcode() == Opcode::R2T).expect("the R2T");
    }
    panic!("a hundred times");
}

/// Section 11.16: a status is sent again as it was, but for ExpCmdSN and MaxCmdSN; what was acknowledged, or never
/// sent, is a protocol error.
#[test]
fn statuses_are_sent_again() {
    let mut session = session();
    let tasks: Vec<TaskId> = (0..3)
        .map(|_| session.command(flags::FINAL, 0))
        .collect::<Vec<_>>()
        .into_iter()
        .map(|bhs| session.start(bhs, &[]))
        .collect();
    let sense = [7; 18];
    let mut first = Vec::new();
    for task in tasks {
        assert!(session.connection.send_response(task, Ending::good(0), &sense, &mut session.sink));
        first.push(session.only_sent());
    }
    let bhs = snack(&mut session, SnackKind::STATUS, TAG_RESERVED, 501, 2);
    assert_eq!(session.send(bhs, &[]), []);
    let again = session.sent();
    assert_eq!(again.len(), 2);
    for (again, first) in again.iter().zip(&first[1..]) {
        assert_eq!((again.opcode(), again.stat_sn(), &again.data), (first.opcode(), first.stat_sn(), &first.data));
        assert_eq!(again.bhs.initiator_task_tag(), first.bhs.initiator_task_tag());
    }
    // All that is not acknowledged.
    let mut bhs = snack(&mut session, SnackKind::STATUS, TAG_RESERVED, 0, 0);
    bhs.set_u32(28, 501);
    assert_eq!(session.send(bhs, &[]), []);
    assert_eq!(session.sent().iter().map(Sent::stat_sn).collect::<Vec<_>>(), [501, 502]);
    for (begin, run_length) in [(500, 1), (503, 1), (502, 2)] {
        let bhs = snack(&mut session, SnackKind::STATUS, TAG_RESERVED, begin, run_length);
        assert_eq!(session.send(bhs, &[]), []);
        assert_eq!(rejects(&session.sent()), [RejectReason::PROTOCOL_ERROR], "{begin} {run_length}");
    }
}

/// An R2T is sent again with its tag and number while its data has not come.
#[test]
fn r2ts_are_sent_again() {
    let mut session = session();
    let (write, _, r2t) = asked(&mut session);
    let bhs = snack(&mut session, SnackKind::DATA_OR_R2T, write.initiator_task_tag(), 0, 1);
    assert_eq!(session.send(bhs, &[]), []);
    let again = session.only_sent();
    assert_eq!(again.bhs, r2t.bhs);
    let bhs = snack(&mut session, SnackKind::DATA_OR_R2T, write.initiator_task_tag(), 1, 1);
    assert_eq!(session.send(bhs, &[]), []);
    assert_eq!(rejects(&session.sent()), [RejectReason::PROTOCOL_ERROR], "it was never sent");
}

/// Have the data of a task read again, in windows of this many bytes.
fn send_again(session: &mut Session, task: TaskId, window: usize) -> Vec<Sent> {
    assert_eq!(session.connection.poll_resend(), Some(task));
    let data = pattern(1 << 16);
    while let Some(span) = session.connection.resend_span(task) {
        let base = span.offset as usize;
        session.sink.payload = data[base..base + window.min(span.len as usize)].to_vec();
        let len = session.sink.payload.len();
        assert!(session.connection.resend_data_in(task, span.offset, len, &mut session.sink));
    }
    session.connection.end_resend(task, true).expect("no Reject");
    session.sent()
}

/// Data-In is read and sent again as it was, the last one with its status; other than once acknowledged. The task is
/// kept until its status is acknowledged, and so is its place in the window.
#[test]
fn data_in_is_sent_again_until_its_status_is_acknowledged() {
    for window in [1024, 2048, 8192] {
        let mut session = session();
        let (read, task, first) = answered(&mut session, 10_000);
        assert_eq!(first.len(), 10, "ten PDUs of at most 1024 bytes in bursts of 4096");
        let max_cmd_sn = first[9].max_cmd_sn();
        let bhs = snack(&mut session, SnackKind::DATA_OR_R2T, read.initiator_task_tag(), 3, 2);
        assert_eq!(session.send(bhs, &[]), []);
        assert_eq!(send_again(&mut session, task, window), first[3..5]);
        let bhs = snack(&mut session, SnackKind::DATA_OR_R2T, read.initiator_task_tag(), 8, 0);
        assert_eq!(session.send(bhs, &[]), []);
        assert_eq!(send_again(&mut session, task, window), first[8..]);
        // The status went with the last Data-In.
        let bhs = snack(&mut session, SnackKind::STATUS, TAG_RESERVED, 500, 1);
        assert_eq!(session.send(bhs, &[]), []);
        assert_eq!(session.sent(), []);
        assert_eq!(send_again(&mut session, task, window), first[9..]);
        let bhs = snack(&mut session, SnackKind::DATA_OR_R2T, read.initiator_task_tag(), 10, 1);
        assert_eq!(session.send(bhs, &[]), []);
        assert_eq!(rejects(&session.sent()), [RejectReason::PROTOCOL_ERROR], "it was never sent");
        acknowledge(&mut session);
        let bhs = session.request(Opcode::NOP_OUT, 0, true);
        assert_eq!(session.send(bhs, &[]), []);
        assert_eq!(session.only_sent().max_cmd_sn(), max_cmd_sn.wrapping_add(1), "its place is open now");
        let bhs = snack(&mut session, SnackKind::DATA_OR_R2T, read.initiator_task_tag(), 3, 2);
        assert_eq!(session.send(bhs, &[]), []);
        assert_eq!(rejects(&session.sent()), [RejectReason::PROTOCOL_ERROR]);
    }
}

/// Windows of odd lengths: where the cutting began anew is remembered.
#[test]
fn data_in_of_odd_windows_is_cut_the_same_way_again() {
    let mut session = session();
    let read = session.read(6000);
    let task = session.start(read, &[]);
    let mut at = 0;
    for len in [1500, 10, 2590, 1900] {
        session.sink.payload = pattern(6000)[at..at + len].to_vec();
        at += len;
        let ending = (at == 6000).then(|| Ending::good(6000));
        assert!(session.connection.send_data_in(task, len, ending, &mut session.sink).done);
    }
    let first = session.sent();
    for begin in 0..first.len() as u32 {
        let bhs = snack(&mut session, SnackKind::DATA_OR_R2T, read.initiator_task_tag(), begin, 0);
        assert_eq!(session.send(bhs, &[]), []);
        assert_eq!(send_again(&mut session, task, 6000), first[begin as usize..]);
    }
}

/// Section 11.7.2: the A bit asks for a SNACK, which bounds what may be asked for again.
#[test]
fn acknowledged_data_is_not_sent_again() {
    let mut session = session();
    let (read, task, first) = answered(&mut session, 10_000);
    let asking: Vec<usize> = (0..first.len()).filter(|&at| first[at].bhs.flags() & flags::ACKNOWLEDGE != 0).collect();
    assert_eq!(asking, [3, 7], "at the end of each burst but the last");
    assert_eq!(first[3].bhs.lun(), LUN_1);
    let mut bhs = snack(&mut session, SnackKind::DATA_ACK, TAG_RESERVED, 4, 0);
    bhs.set_u32(20, first[3].bhs.target_transfer_tag());
    assert_eq!(session.send(bhs, &[]), []);
    assert_eq!(session.sent(), []);
    let again = snack(&mut session, SnackKind::DATA_OR_R2T, read.initiator_task_tag(), 3, 1);
    assert_eq!(session.send(again, &[]), []);
    assert_eq!(rejects(&session.sent()), [RejectReason::PROTOCOL_ERROR]);
    let again = snack(&mut session, SnackKind::DATA_OR_R2T, read.initiator_task_tag(), 4, 1);
    assert_eq!(session.send(again, &[]), []);
    assert_eq!(send_again(&mut session, task, 8192), first[4..5]);
    for (tag, begin) in [(77, 5), (first[3].bhs.target_transfer_tag(), 12)] {
        let mut bhs = snack(&mut session, SnackKind::DATA_ACK, TAG_RESERVED, begin, 0);
        bhs.set_u32(20, tag);
        assert_eq!(session.send(bhs, &[]), []);
        assert_eq!(rejects(&session.sent()), [RejectReason::INVALID_DATA_ACK]);
    }
    for (tag, begin) in [(TAG_RESERVED, 0), (5, 4)] {
        let mut bhs = snack(&mut session, SnackKind::R_DATA, read.initiator_task_tag(), begin, 0);
        bhs.set_u32(20, tag);
        assert_eq!(session.send(bhs, &[]), []);
        assert_eq!(rejects(&session.sent()), [RejectReason::PROTOCOL_ERROR]);
    }
    // Cut anew: numbered on from what was acknowledged, and the status apart, with the tag.
    session.connection.set_initiator_max_recv_data_segment_length(600);
    let mut bhs = snack(&mut session, SnackKind::R_DATA, read.initiator_task_tag(), 0, 0);
    bhs.set_u32(20, 5);
    assert_eq!(session.send(bhs, &[]), []);
    let again = send_again(&mut session, task, 8192);
    let (status, data) = again.split_last().expect("a status");
    let numbers: Vec<u32> = data.iter().map(|sent| sent.bhs.u32_at(36)).collect();
    assert_eq!(numbers, (4..15).collect::<Vec<u32>>());
    let bytes: Vec<u8> = data.iter().flat_map(|sent| sent.data.clone()).collect();
    assert!(bytes == pattern(10_000)[4096..] && data.iter().all(|sent| sent.data.len() <= 600));
    assert_eq!((status.opcode(), status.bhs.u32_at(20), status.bhs.u32_at(36)), (Opcode::SCSI_RESPONSE, 5, 15));
    assert_eq!(status.bhs.u32_at(24), first[9].bhs.u32_at(24), "the StatSN that it had");
}

/// A shard that cannot read the data again says so, and a status that is acknowledged meanwhile ends the task.
#[test]
fn what_cannot_be_read_again_is_rejected() {
    let mut session = session();
    let (read, task, _) = answered(&mut session, 2000);
    let bhs = snack(&mut session, SnackKind::DATA_OR_R2T, read.initiator_task_tag(), 0, 0);
    assert_eq!(session.send(bhs, &[]), []);
    assert_eq!(session.connection.poll_resend(), Some(task));
    acknowledge(&mut session);
    session.connection.end_resend(task, false).expect("there is room for a Reject");
    assert_eq!(rejects(&session.sent()), [RejectReason::SNACK_REJECT]);
    let again = session.read(512);
    assert_eq!(session.start(again, &[]), task, "the place is free");
}

/// Kept statuses make the target ask for an acknowledgement before they close the window.
#[test]
fn many_unacknowledged_statuses_are_asked_about() {
    let mut session = session();
    let mut pings = 0;
    for _ in 0..60 {
        let (_, _, sent) = answered(&mut session, 512);
        pings += sent.iter().filter(|sent| sent.opcode() == Opcode::NOP_IN).count();
    }
    assert!(pings > 0);
}
