//! Data-In: splitting, sequences, phase collapse, residuals, digests, and sinks that fill up.

use super::*;
use crate::iscsi::pdu::ScsiStatus;
use crate::iscsi::transmit::DataInSent;

/// Send `payload` as the whole of a read, and give the Data-In PDUs.
fn read(session: &mut Session, length: u32, payload: &[u8], ending: Ending) -> Vec<Sent> {
    let bhs = session.read(length);
    let task = session.start(bhs, &[]);
    session.sink.payload = payload.to_vec();
    let sent = session.connection.send_data_in(task, payload.len(), Some(ending), &mut session.sink);
    assert_eq!(sent, DataInSent { bytes: payload.len(), done: true });
    session.sent()
}

/// RFC 7143 sections 11.7, 13.12 and 13.13: PDUs of at most the initiator's MaxRecvDataSegmentLength, F at the end of
/// each sequence of at most MaxBurstLength, DataSN counting on, and the status once, in the last (Windows' deviation
/// 19: F only on the last PDU).
#[test]
fn a_read_is_split_by_segment_and_burst_and_ends_with_its_status() {
    let parameters =
        SessionParameters { initiator_max_recv_data_segment_length: 1024, max_burst_length: 2560, ..parameters() };
    let payload = pattern(6000);
    let mut session = Session::new(parameters);
    let sent = read(&mut session, 6000, &payload, Ending::good(6000));
    let lens: Vec<usize> = sent.iter().map(|sent| sent.data.len()).collect();
    assert_eq!(lens, [1024, 1024, 512, 1024, 1024, 512, 880]);
    let finals: Vec<bool> = sent.iter().map(|sent| sent.bhs.is_final()).collect();
    assert_eq!(finals, [false, false, true, false, false, true, true]);
    for (at, sent) in sent.iter().enumerate() {
        let last = at == 6;
        assert_eq!(sent.opcode(), Opcode::DATA_IN);
        assert_eq!(sent.bhs.u32_at(36), at as u32, "DataSN");
        assert_eq!(sent.bhs.target_transfer_tag(), TAG_RESERVED);
        assert_eq!(sent.bhs.flags() & flags::STATUS != 0, last);
        assert_eq!(sent.stat_sn(), if last { 500 } else { 0 }, "StatSN only with the status");
        let offset = sent.bhs.u32_at(40) as usize;
        assert_eq!(sent.data, payload[offset..offset + sent.data.len()]);
    }
    assert_eq!((sent[6].exp_cmd_sn(), sent[6].max_cmd_sn()), (101, 228));
}

/// A read that fits one PDU is the same by its own way as by the way for any number, and nothing without room.
#[test]
fn a_read_of_one_pdu_is_the_same_either_way() {
    for digests in [false, true] {
        let parameters = SessionParameters { header_digest: digests, data_digest: digests, ..parameters() };
        let payload = pattern(1001);
        let expected = read(&mut Session::new(parameters), 1001, &payload, Ending::good(1001));
        let mut session = Session::new(parameters);
        let bhs = session.read(1001);
        let task = session.start(bhs, &[]);
        session.sink.payload = payload;
        session.sink.pdus_left.set(Some(0));
        assert!(!session.connection.send_whole_data_in(task, &mut session.sink));
        session.sink.pdus_left.set(None);
        assert!(session.connection.send_whole_data_in(task, &mut session.sink));
        assert_eq!(expected.len(), 1);
        assert_eq!(session.sent(), expected);
    }
}

/// The payload comes in pieces, and the sink takes one PDU at a time: the wire shows the same bytes as from one call.
#[test]
fn a_read_in_pieces_through_a_narrow_sink_gives_the_same_data() {
    let parameters = SessionParameters { header_digest: true, data_digest: true, ..parameters() };
    let payload = pattern(10_001);
    let mut whole = Session::new(parameters);
    let expected = read(&mut whole, 10_001, &payload, Ending::good(10_001));

    let mut session = Session::new(parameters);
    let bhs = session.read(10_001);
    let task = session.start(bhs, &[]);
    let mut sent = Vec::new();
    for (start, end) in [(0, 4096), (4096, 8192), (8192, 10_001)] {
        let ending = (end == 10_001).then(|| Ending::good(10_001));
        let mut at = start;
        loop {
            session.sink.payload = payload[at..end].to_vec();
            session.sink.pdus_left.set(Some(1));
            let progress = session.connection.send_data_in(task, end - at, ending, &mut session.sink);
            session.sink.pdus_left.set(None);
            at += progress.bytes;
            sent.extend(session.sent());
            if progress.done {
                break;
            }
        }
        assert_eq!(at, end);
    }
    assert_eq!(sent, expected);
}

/// Section 11.4.5 for reads: underflow, overflow (what exceeds is not sent), both too short, and no data at all.
#[test]
fn residuals_of_reads() {
    struct Case {
        expected: u32,
        payload: usize,
        wanted: u64,
        flag: u8,
        residual: u32,
        sent: usize,
    }
    let case =
        |expected, payload, wanted, flag, residual, sent| Case { expected, payload, wanted, flag, residual, sent };
    for Case { expected, payload, wanted, flag, residual, sent } in [
        case(512, 512, 512, 0, 0, 512),
        case(1024, 512, 512, flags::UNDERFLOW, 512, 512),
        case(512, 1024, 1024, flags::OVERFLOW, 512, 512),
        // SCSI wants more than the initiator expects, and delivers less than either.
        case(512, 100, 1024, flags::OVERFLOW, 512, 100),
        case(0, 96, 96, flags::OVERFLOW, 96, 0),
        case(255, 0, 0, flags::UNDERFLOW, 255, 0),
    ] {
        let mut session = Session::new(parameters());
        let out = read(&mut session, expected, &pattern(payload), Ending::good(wanted));
        assert_eq!(out.len(), 1);
        assert_eq!(out[0].data, pattern(payload)[..sent]);
        assert_eq!(out[0].bhs.flags() & (flags::UNDERFLOW | flags::OVERFLOW), flag);
        assert_eq!(out[0].bhs.u32_at(44), residual);
        assert_eq!(out[0].opcode(), if sent > 0 { Opcode::DATA_IN } else { Opcode::SCSI_RESPONSE });
    }
}

/// Section 11.4.2 and 11.4.7: a status that is not GOOD has a SCSI Response of its own, after the data, and counts
/// the Data-In PDUs (section 11.4.8).
#[test]
fn a_failed_read_ends_with_a_response_and_sense() {
    let mut session = Session::new(SessionParameters { data_digest: true, ..parameters() });
    let bhs = session.read(4096);
    let task = session.start(bhs, &[]);
    session.sink.payload = pattern(2048);
    let sent = session.connection.send_data_in(task, 2048, None, &mut session.sink);
    assert_eq!(sent, DataInSent { bytes: 2048, done: true });
    let sense = [0x70, 0, 0x03, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x11, 0, 0, 0, 0, 0];
    let ending = Ending { status: ScsiStatus::CHECK_CONDITION, ..Ending::good(2048) };
    assert!(session.connection.send_response(task, ending, &sense, &mut session.sink));
    let sent = session.sent();
    assert_eq!(sent.len(), 3);
    let response = &sent[2];
    assert_eq!((response.opcode(), response.bhs.0[2], response.bhs.0[3]), (Opcode::SCSI_RESPONSE, 0, 2));
    assert_eq!(response.bhs.u32_at(36), 2, "ExpDataSN");
    assert_eq!((response.bhs.flags(), response.bhs.u32_at(44)), (flags::FINAL | flags::UNDERFLOW, 2048));
    assert_eq!(response.data[..2], [0, 18]);
    assert_eq!(response.data[2..], sense);
}

/// The status comes later than the data: the sequence still ends with F, in an empty Data-In.
#[test]
fn a_late_good_ends_the_sequence_that_was_begun() {
    let mut session = Session::new(parameters());
    let bhs = session.read(4096);
    let task = session.start(bhs, &[]);
    session.sink.payload = pattern(1000);
    assert!(session.connection.send_data_in(task, 1000, None, &mut session.sink).done);
    assert!(session.connection.send_data_in(task, 0, Some(Ending::good(1000)), &mut session.sink).done);
    let sent = session.sent();
    assert_eq!((sent[0].bhs.is_final(), sent[0].data.len()), (false, 1000));
    assert_eq!((sent[1].opcode(), sent[1].data.len()), (Opcode::DATA_IN, 0));
    assert_eq!(sent[1].bhs.flags(), flags::FINAL | flags::STATUS | flags::UNDERFLOW);
}

/// Section 11.3.4 and 11.4.6: a bidirectional command has a read length of its own in an AHS, and two residuals.
#[test]
fn a_bidirectional_command_has_two_residuals() {
    let mut session = Session::new(parameters());
    let ahs = [0, 5, 2, 0, 0, 0, 2, 0];
    let mut bhs = session.command(flags::FINAL | flags::READ | flags::WRITE, 512);
    bhs.set_data_segment_len(512);
    let bytes = session.wire(bhs, &ahs, &pattern(512));
    let got = session.arrive(&bytes).expect("legal");
    let Event::Command { task } = got[0].event else { panic!("{got:?}") };
    assert_eq!(session.connection.command(task).expected_read_length, 512);
    session.sink.payload = pattern(100);
    let ending = Ending { read_transfer_length: 100, ..Ending::good(1024) };
    assert!(session.connection.send_data_in(task, 100, Some(ending), &mut session.sink).done);
    let sent = session.sent();
    assert_eq!(sent[1].bhs.flags(), flags::FINAL | flags::OVERFLOW | flags::READ_UNDERFLOW);
    assert_eq!((sent[1].bhs.u32_at(40), sent[1].bhs.u32_at(44)), (412, 512));
    // Without the AHS the read length is unknown.
    let bhs = session.command(flags::FINAL | flags::READ | flags::WRITE, 512);
    assert_eq!(session.send(bhs, &[]), []);
    assert_eq!(session.only_sent().bhs.0[2], 0x09);
}

/// Section 11.2.2.3: the length of an extended CDB is told, and AHS that cannot be are an invalid PDU field.
#[test]
fn additional_headers_are_parsed_or_refused() {
    // The header digest covers the additional headers too.
    let mut session = Session::new(SessionParameters { header_digest: true, ..parameters() });
    session.chunk = 3;
    let bhs = session.read(512);
    let bytes = session.wire(bhs, &[0, 17, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16], &[]);
    let got = session.arrive(&bytes).expect("legal");
    let Event::Command { task } = got[0].event else { panic!("{got:?}") };
    assert_eq!(session.connection.command(task).extended_cdb_len, 16);
    for ahs in [
        &[0u8, 0, 1, 0][..],
        &[0, 5, 1, 0],
        &[0xff, 0xff, 1, 0],
        &[0, 5, 3, 0, 0, 0, 0, 0],
        &[0, 4, 2, 0, 0, 0, 2, 0],
        &[0, 5, 2, 0, 0, 0, 2, 0, 0, 5, 2, 0, 0, 0, 2, 0],
    ] {
        let bhs = session.command(flags::FINAL | flags::READ, 512);
        session.cmd_sn -= 1;
        let bytes = session.wire(bhs, ahs, &[]);
        assert_eq!(session.arrive(&bytes).expect("refused, not fatal"), []);
        assert_eq!(session.only_sent().bhs.0[2], 0x09, "{ahs:?}");
    }
}
