//! CmdSN, the window, immediate commands, duplicates, and what a Reject does to them.

use super::*;
use crate::iscsi::pdu::RejectReason;
use crate::limits::{COMMANDS_PER_SESSION_MAX, IMMEDIATE_REQUESTS_MAX};

/// RFC 7143 section 4.2.2.1: commands ahead of ExpCmdSN wait and come out in order, with what they carry; duplicates
/// in and below the window are ignored.
#[test]
fn commands_are_delivered_in_cmd_sn_order() {
    let mut session = Session::new(parameters());
    let (first, second, third) = (session.read(512), session.write(100), session.read(1536));
    let got = session.send(third, &[]);
    assert!(matches!(got[..], [Got { event: Event::Held { .. }, .. }]));
    let got = session.send(second, &pattern(100));
    let [Got { event: Event::Held { task: held }, ref data }] = got[..] else { panic!("{got:?}") };
    assert_eq!(*data, pattern(100), "the shard keeps the immediate data");
    assert_eq!(session.send(second, &pattern(100)), [], "a duplicate in the window");
    let got = session.send(first, &[]);
    let tags: Vec<u32> = got
        .iter()
        .map(|got| match got.event {
            Event::Command { task } => session.connection.command(task).initiator_task_tag,
            event => panic!("{event:?}"),
        })
        .collect();
    assert_eq!(tags, [first, second, third].map(|bhs| bhs.initiator_task_tag()));
    assert_eq!(got[1].event, Event::Command { task: held });
    assert_eq!(session.send(first, &[]), [], "a duplicate below the window");
    assert_eq!(session.sent(), []);
    assert_eq!(session.connection.counters().requests_ignored, 2);
}

/// Windows' deviation 11: the duplicate of a write is ignored, and the write still gets its R2T; and a CmdSN that is
/// not the next one is not lost.
#[test]
fn a_write_followed_by_its_duplicate_gets_its_r2t() {
    let mut session = Session::new(parameters());
    let write = session.write(4096);
    let task = session.start(write, &[]);
    assert_eq!(session.send(write, &[]), []);
    let span = session.connection.want_r2t(task).expect("data is missing");
    assert!(session.connection.send_r2t(task, span.len, &mut session.sink));
    let r2t = session.only_sent();
    assert_eq!((r2t.opcode(), r2t.bhs.initiator_task_tag()), (Opcode::R2T, write.initiator_task_tag()));
    let data = session.data_out(&write, r2t.bhs.target_transfer_tag(), 0, 0, true);
    let event = session.event(data, &pattern(4096));
    assert_eq!(event, Event::DataOut { task, buffer_offset: 0, len: 4096, burst_complete: true });
    assert_eq!(session.good(task, 4096).bhs.0[3], 0);
}

/// The window closes as commands are taken and opens as they complete; a command beyond it is ignored.
#[test]
fn the_window_is_as_large_as_what_is_free() {
    let mut session = Session::new(parameters());
    let mut tasks = Vec::new();
    for _ in 0..COMMANDS_PER_SESSION_MAX {
        let bhs = session.read(512);
        tasks.push(session.start(bhs, &[]));
    }
    let beyond = session.read(512);
    assert_eq!(session.send(beyond, &[]), []);
    let sent = session.good(tasks[5], 512);
    assert_eq!((sent.exp_cmd_sn(), sent.max_cmd_sn()), (228, 228), "one place is open");
    session.start(beyond, &[]);
    for task in tasks.drain(..5) {
        session.good(task, 512);
    }
    let sent = session.good(tasks.pop().expect("some are left"), 512);
    assert_eq!((sent.exp_cmd_sn(), sent.max_cmd_sn(), sent.stat_sn()), (229, 234, 506));
}

/// Section 4.2.2.1: immediate commands are outside the order, bounded, and leave ExpCmdSN alone.
#[test]
fn immediate_commands_pass_and_are_bounded() {
    let mut session = Session::new(parameters());
    let mut tasks = Vec::new();
    for _ in 0..IMMEDIATE_REQUESTS_MAX {
        let mut bhs = session.read(512);
        session.cmd_sn -= 1;
        bhs.0[0] |= 0x40;
        tasks.push(session.start(bhs, &[]));
    }
    let mut one_more = session.read(512);
    session.cmd_sn -= 1;
    one_more.0[0] |= 0x40;
    assert_eq!(session.send(one_more, &[]), []);
    let reject = session.only_sent();
    assert_eq!(
        (reject.opcode(), RejectReason(reject.bhs.0[2])),
        (Opcode::REJECT, RejectReason::IMMEDIATE_COMMAND_REJECT)
    );
    assert_eq!(reject.data, one_more.0, "the header of the bad PDU");
    assert_eq!((reject.bhs.initiator_task_tag(), reject.stat_sn()), (TAG_RESERVED, 500));
    assert_eq!((reject.exp_cmd_sn(), reject.max_cmd_sn()), (100, 227));
    assert_eq!(session.good(tasks[0], 512).stat_sn(), 501, "a Reject takes a StatSN");
    session.start(one_more, &[]);
}

/// Sections 7.3 and 11.17.1: a tag in use is "task in progress", and the CmdSN of the rejected command has not been
/// received: the initiator fills the gap with another command.
#[test]
fn a_tag_in_use_is_rejected_and_leaves_a_gap() {
    let mut session = Session::new(parameters());
    let first = session.read(512);
    let task = session.start(first, &[]);
    let mut again = session.read(512);
    again.set_u32(16, first.initiator_task_tag());
    assert_eq!(session.send(again, &[]), []);
    let reject = session.only_sent();
    assert_eq!((reject.bhs.0[2], reject.exp_cmd_sn()), (0x07, 101));
    let later = session.read(512);
    assert!(matches!(session.event(later, &[]), Event::Held { .. }));
    session.good(task, 512);
    // The tag is free now, and the same command plugs the gap.
    let got = session.send(again, &[]);
    assert_eq!(got.len(), 2, "{got:?}");
}

/// Section 11.3.1: reserved attributes, F=0 without W, and the reserved tag are invalid fields.
#[test]
fn illegal_command_fields_are_rejected() {
    let mut session = Session::new(parameters());
    for (flag, tag) in [(0xc5, 1), (0x40, 2), (0xc0, TAG_RESERVED)] {
        let mut bhs = session.read(512);
        session.cmd_sn -= 1;
        bhs.0[1] = flag;
        bhs.set_u32(16, tag);
        assert_eq!(session.send(bhs, &[]), []);
        assert_eq!(session.only_sent().bhs.0[2], 0x09);
    }
}

/// Section 7.8: a data digest error on immediate data discards the command; the CmdSN stays open for its repetition.
#[test]
fn a_command_with_a_bad_data_digest_can_be_sent_again() {
    let mut session = Session::new(SessionParameters { data_digest: true, ..parameters() });
    let write = session.write(512);
    let mut bytes = session.wire(write, &[], &pattern(512));
    bytes[100] ^= 1;
    assert_eq!(session.arrive(&bytes).expect("not fatal"), []);
    let reject = session.only_sent();
    assert_eq!((reject.bhs.0[2], reject.exp_cmd_sn()), (0x02, 100));
    let task = session.start(write, &pattern(512));
    assert!(session.connection.data_out_complete(task));
}

/// Section 13.12: a data segment longer than we declared ends the connection, before it is received.
#[test]
fn a_segment_longer_than_declared_ends_the_connection() {
    let mut session = Session::new(parameters());
    let mut bhs = session.write(8193);
    bhs.set_data_segment_len(8193);
    assert_eq!(session.arrive(&bhs.0), Err(Refusal::DataSegmentTooLong));
}

/// Bytes may arrive in any pieces, with digests and padding.
#[test]
fn pdus_are_found_in_any_pieces() {
    for chunk in [1, 7, 47, 48, 49, 52, 53, 4096] {
        let mut session = Session::new(SessionParameters { header_digest: true, data_digest: true, ..parameters() });
        session.chunk = chunk;
        let (write, read) = (session.write(1001), session.read(512));
        let mut bytes = session.wire(write, &[], &pattern(1001));
        bytes.extend(session.wire(read, &[], &[]));
        let got = session.arrive(&bytes).expect("legal");
        assert_eq!(got.len(), 2, "{got:?}");
        assert_eq!(got[0].data, pattern(1001));
        assert!(session.stream.is_empty());
    }
}

/// A peer that provokes Rejects and takes none is dropped; nothing grows.
#[test]
fn rejects_are_bounded() {
    let mut session = Session::new(parameters());
    let bhs = Bhs::new(Opcode(0x1c), flags::FINAL);
    for _ in 0..16 {
        session.send(bhs, &[]);
    }
    assert_eq!(session.arrive(&bhs.0), Err(Refusal::TooManyRejects));
}

/// Section 11.17.1: an opcode that is not ours is "command not supported"; a Login Request in full feature phase ends
/// the connection.
#[test]
fn foreign_opcodes() {
    let mut session = Session::new(parameters());
    for opcode in [0x07, 0x1c, 0x20, 0x25, 0x31, 0x3f] {
        assert_eq!(session.send(Bhs::new(Opcode(opcode), flags::FINAL), &[]), []);
        assert_eq!(session.only_sent().bhs.0[2], 0x05, "{opcode:#x}");
    }
    assert_eq!(session.arrive(&Bhs::new(Opcode(0x43), 0x87).0), Err(Refusal::LoginInFullFeaturePhase));
}
