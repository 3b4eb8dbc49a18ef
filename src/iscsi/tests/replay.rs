//! Conversations of a foreign initiator with a foreign target: given the initiator's bytes, the engine must say what
//! that target said, header for header, except for what a target is free to choose.

use super::*;
use crate::iscsi::pdu::{Residual, ScsiStatus};

/// One PDU of a capture.
struct Line {
    from_initiator: bool,
    bytes: Vec<u8>,
}

fn capture(text: &str) -> Vec<Line> {
    let hex = |digits: &str| -> Vec<u8> {
        let nibble = |digit: u8| char::from(digit).to_digit(16).expect("hexadecimal") as u8;
        digits.as_bytes().chunks(2).map(|pair| nibble(pair[0]) << 4 | nibble(pair[1])).collect()
    };
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| Line { from_initiator: line.starts_with('>'), bytes: hex(&line[2..]) })
        .collect()
}

/// The parameters that libiscsi and tgt had negotiated in the captures.
fn captured_parameters(first: &Bhs) -> SessionParameters {
    SessionParameters {
        header_digest: true,
        max_recv_data_segment_length: 512,
        initiator_max_recv_data_segment_length: 262_144,
        max_burst_length: 2048,
        first_burst_length: 1024,
        max_outstanding_r2t: 1,
        default_time2wait: 0,
        default_time2retain: 0,
        exp_cmd_sn: first.cmd_sn(),
        stat_sn: 2,
        ..parameters()
    }
}

/// A capture being replayed: the engine with a shard that answers like the captured target.
struct Replay {
    session: Session,
    target: std::collections::VecDeque<Sent>,
    /// The captured target's transfer tags, by ours.
    tags: Vec<(u32, u32)>,
    events: Vec<Event>,
}

impl Replay {
    fn new(lines: &[Line]) -> Self {
        let first = Bhs::from_prefix(&lines[0].bytes).expect("a PDU");
        let target = lines.iter().filter(|line| !line.from_initiator).map(|line| {
            let bhs = *Bhs::from_prefix(&line.bytes).expect("a PDU");
            let (header, rest) = line.bytes.split_at(48);
            assert_eq!(rest[..4], ::crc32c::crc32c(header).to_le_bytes());
            Sent { bhs, data: rest[4..4 + bhs.data_segment_len()].to_vec() }
        });
        Self {
            session: Session::new(captured_parameters(first)),
            target: target.collect(),
            tags: Vec::new(),
            events: Vec::new(),
        }
    }

    /// The initiator's PDU, with our transfer tag in place of the other target's.
    fn initiator(&mut self, line: &Line) {
        let mut bhs = *Bhs::from_prefix(&line.bytes).expect("a PDU");
        let mut bytes = line.bytes.clone();
        if bhs.opcode() == Opcode::DATA_OUT
            && let Some((_, ours)) = self.tags.iter().rev().find(|(theirs, _)| *theirs == bhs.target_transfer_tag())
        {
            bhs.set_u32(20, *ours);
            bytes[..48].copy_from_slice(&bhs.0);
            bytes[48..52].copy_from_slice(&::crc32c::crc32c(&bhs.0).to_le_bytes());
        }
        for got in self.session.arrive(&bytes).expect("the initiator is correct") {
            self.events.push(got.event);
            self.shard(got.event);
            self.compare();
        }
        self.compare();
    }

    /// What a shard does, with results from the captured target's answers.
    fn shard(&mut self, event: Event) {
        let connection = &mut self.session.connection;
        let sink = &mut self.session.sink;
        match event {
            Event::Command { task } | Event::DataOut { task, .. } if connection.command(task).write => {
                if let Some(span) = connection.want_r2t(task) {
                    assert!(connection.send_r2t(task, span.len, sink));
                } else if connection.data_out_complete(task) {
                    assert!(connection.send_response(task, Ending::good(4096), &[], sink));
                }
            }
            Event::Command { task } => {
                let tag = connection.command(task).initiator_task_tag;
                let expected = connection.command(task).expected_data_transfer_length;
                let like = self.target.iter().find(|sent| sent.bhs.initiator_task_tag() == tag).expect("answered");
                let residual = u64::from(like.bhs.u32_at(44));
                let transfer_length = if like.bhs.flags() & flags::UNDERFLOW != 0 {
                    u64::from(expected) - residual
                } else {
                    expected.into()
                };
                let ending = Ending { status: ScsiStatus(like.bhs.0[3]), ..Ending::good(transfer_length) };
                if like.opcode() == Opcode::DATA_IN {
                    sink.payload = like.data.clone();
                    assert!(connection.send_data_in(task, like.data.len(), Some(ending), sink).done);
                } else {
                    let sense = like.data.get(2..).unwrap_or(&[]);
                    assert!(connection.send_response(task, ending, sense, sink));
                }
            }
            Event::Logout { task } => assert!(connection.send_logout_response(task, Default::default(), sink)),
            _ => {}
        }
    }

    /// Everything sent equals what the other target said, but for the window's size, the digest that follows from it,
    /// and the transfer tag.
    fn compare(&mut self) {
        for ours in self.session.sent() {
            let theirs = self.target.pop_front().expect("the other target answered too");
            let mut expected = theirs.bhs;
            expected.set_u32(32, ours.max_cmd_sn());
            if ours.opcode() == Opcode::R2T {
                self.tags.push((theirs.bhs.target_transfer_tag(), ours.bhs.target_transfer_tag()));
                expected.set_u32(20, ours.bhs.target_transfer_tag());
            }
            assert_eq!(ours.bhs, expected);
            assert_eq!(ours.data, theirs.data);
        }
    }
}

fn replay(text: &str) -> Vec<Event> {
    let lines = capture(text);
    let mut replay = Replay::new(&lines);
    for line in lines.iter().filter(|line| line.from_initiator) {
        replay.initiator(line);
    }
    assert!(replay.target.is_empty(), "{:?}", replay.target);
    replay.events
}

/// Header digests, sense with its length, phase collapse, logout.
#[test]
fn an_inquiry_with_header_digests_goes_like_with_another_target() {
    replay(include_str!("../../../tests/vectors/iscsi/inquiry_header_digest.txt"));
}

/// Immediate data, unsolicited Data-Out and R2Ts of several PDUs; residual underflow of many inquiries.
#[test]
fn a_write_goes_like_with_another_target() {
    let events = replay(include_str!("../../../tests/vectors/iscsi/write.txt"));
    let bursts = events.iter().filter(|event| matches!(event, Event::DataOut { burst_complete: true, .. })).count();
    assert_eq!(bursts, 3, "the unsolicited data and two R2Ts");
}

/// RFC 7143 section 4.2.2.1: a CmdSN above the window is ignored silently, and so is one that has come before.
#[test]
fn a_cmd_sn_outside_the_window_is_ignored_like_by_another_target() {
    let events = replay(include_str!("../../../tests/vectors/iscsi/cmd_sn_too_high.txt"));
    assert_eq!(events.len(), 3, "five commands, two of them outside the window: {events:?}");
}

/// An ABORT TASK of a write whose R2T is outstanding. The other target did not find the task and finished it; we find
/// it, and after that nothing is sent for it though its data goes on coming (section 11.6.1).
#[test]
fn a_captured_abort_finds_its_task_and_the_data_after_it_is_dropped() {
    let lines = capture(include_str!("../../../tests/vectors/iscsi/abort_task.txt"));
    let mut replay = Replay::new(&lines);
    let mut aborted = None;
    for line in lines.iter().filter(|line| line.from_initiator) {
        let opcode = Bhs::from_prefix(&line.bytes).expect("a PDU").opcode();
        if opcode == Opcode::TASK_MANAGEMENT_REQUEST {
            let got = replay.session.arrive(&line.bytes).expect("correct");
            let [Got { event: Event::TaskManagement { task }, .. }] = got[..] else { panic!("{got:?}") };
            let connection = &mut replay.session.connection;
            let request = connection.task_management(task);
            let victim = request.referenced.expect("the write is here");
            assert_eq!(connection.affected_tasks(&request).collect::<Vec<_>>(), [victim]);
            assert!(connection.abort(victim), "an R2T is outstanding");
            assert!(connection.send_task_management_response(task, Default::default(), &mut replay.session.sink));
            let answer = replay.session.only_sent();
            assert_eq!((answer.opcode(), answer.bhs.0[2]), (Opcode::TASK_MANAGEMENT_RESPONSE, 0));
            replay.target.clear();
            aborted = Some(victim);
        } else if aborted.is_some() && opcode == Opcode::DATA_OUT {
            replay.events.clear();
            replay.initiator(line);
        } else if aborted.is_none() {
            replay.initiator(line);
        }
    }
    let victim = aborted.expect("the capture aborts");
    assert_eq!(replay.events, [Event::DataOutDrained { task: victim }]);
    replay.session.connection.release(victim);
    replay.session.connection.check_invariants();
}

/// RFC 7143 appendix A.4: the READ (10) command PDU with its CRC.
#[test]
fn the_example_of_the_standard_passes_its_header_digest() {
    let mut bytes = [0u8; 52];
    bytes[..2].copy_from_slice(&[0x01, 0xc0]);
    bytes[16..20].copy_from_slice(&[0x14, 0, 0, 0]);
    bytes[20..24].copy_from_slice(&[0, 0, 4, 0]);
    bytes[24..28].copy_from_slice(&[0, 0, 0, 0x14]);
    bytes[28..32].copy_from_slice(&[0, 0, 0, 0x18]);
    bytes[32] = 0x28;
    bytes[40] = 0x02;
    bytes[48..].copy_from_slice(&[0x56, 0x3a, 0x96, 0xd9]);
    let parameters = SessionParameters { header_digest: true, exp_cmd_sn: 0x14, stat_sn: 0x18, ..parameters() };
    let mut session = Session::new(parameters);
    session.chunk = 5;
    let got = session.arrive(&bytes).expect("the digest is right");
    let [Got { event: Event::Command { task }, .. }] = got[..] else { panic!("{got:?}") };
    let command = session.connection.command(task);
    assert_eq!((command.expected_read_length, command.initiator_task_tag), (1024, 0x1400_0000));
    // Section 7.8: the same with one bit wrong ends the connection.
    bytes[20] ^= 1;
    assert_eq!(Session::new(parameters).arrive(&bytes), Err(Refusal::HeaderDigest));
}

/// Residuals as section 11.4.5 defines them, saturating where 32 bits do not suffice.
#[test]
fn residuals_are_the_difference_of_expected_and_wanted() {
    assert_eq!(Residual::of(512, 512), Residual::None);
    assert_eq!(Residual::of(512, 0), Residual::Underflow(512));
    assert_eq!(Residual::of(0, 512), Residual::Overflow(512));
    assert_eq!(Residual::of(0, 1 << 40), Residual::Overflow(u32::MAX));
}
