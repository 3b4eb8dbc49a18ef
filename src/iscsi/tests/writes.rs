//! Data-Out: immediate, unsolicited and solicited data, and every way in which it can be wrong.

use super::*;
use crate::iscsi::transfer::{DataError, R2tSpan};

/// Ask for all data that may be asked for now; gives the R2Ts.
fn solicit(session: &mut Session, task: TaskId) -> Vec<Sent> {
    while let Some(span) = session.connection.want_r2t(task) {
        assert!(session.connection.send_r2t(task, span.len, &mut session.sink));
    }
    session.sent()
}

fn failed(task: TaskId, error: DataError) -> Event {
    Event::TaskDataError { task, error }
}

/// RFC 7143 sections 11.3.4, 11.7 and 11.8: immediate data, then unsolicited data up to FirstBurstLength, then R2Ts
/// of at most MaxBurstLength, as many at once as MaxOutstandingR2T allows, answered in any order of bursts.
#[test]
fn a_write_of_all_kinds_of_data() {
    let mut session = Session::new(parameters());
    let write = session.command(flags::WRITE, 16_384);
    let task = session.start(write, &pattern(1000));
    assert_eq!(session.connection.command(task).immediate_len, 1000);
    assert_eq!(session.connection.want_r2t(task), None, "unsolicited data is still to come");
    let data = session.data_out(&write, TAG_RESERVED, 0, 1000, false);
    assert_eq!(
        session.event(data, &pattern(48)),
        Event::DataOut { task, buffer_offset: 1000, len: 48, burst_complete: false }
    );
    let data = session.data_out(&write, TAG_RESERVED, 1, 1048, true);
    assert_eq!(
        session.event(data, &pattern(1000)),
        Event::DataOut { task, buffer_offset: 1048, len: 1000, burst_complete: true }
    );
    let r2ts = solicit(&mut session, task);
    let fields: Vec<_> = r2ts.iter().map(|r2t| (r2t.bhs.u32_at(36), r2t.bhs.u32_at(40), r2t.bhs.u32_at(44))).collect();
    assert_eq!(fields, [(0, 2048, 4096), (1, 6144, 4096)], "R2TSN, offset, length");
    assert!(r2ts.iter().all(|r2t| r2t.stat_sn() == 500 && r2t.bhs.lun() == LUN_1));
    let tags: Vec<u32> = r2ts.iter().map(|r2t| r2t.bhs.target_transfer_tag()).collect();
    assert_ne!(tags[0], tags[1]);
    for (tag, offset) in [(tags[1], 6144), (tags[0], 2048)] {
        let data = session.data_out(&write, tag, 0, offset, false);
        session.event(data, &pattern(2048));
        let data = session.data_out(&write, tag, 1, offset + 2048, true);
        let event = session.event(data, &pattern(2048));
        assert_eq!(event, Event::DataOut { task, buffer_offset: offset + 2048, len: 2048, burst_complete: true });
    }
    let r2ts = solicit(&mut session, task);
    let fields: Vec<_> = r2ts.iter().map(|r2t| (r2t.bhs.u32_at(36), r2t.bhs.u32_at(40), r2t.bhs.u32_at(44))).collect();
    assert_eq!(fields, [(2, 10_240, 4096), (3, 14_336, 2048)]);
    for r2t in &r2ts {
        assert!(!session.connection.data_out_complete(task));
        let data = session.data_out(&write, r2t.bhs.target_transfer_tag(), 0, r2t.bhs.u32_at(40), true);
        session.event(data, &pattern(r2t.bhs.u32_at(44) as usize));
    }
    assert!(session.connection.data_out_complete(task));
    let response = session.good(task, 16_384);
    assert_eq!((response.bhs.flags(), response.bhs.u32_at(36), response.bhs.u32_at(44)), (flags::FINAL, 0, 0));
}

/// The shard may have a small buffer only: an R2T for less than the span leaves the rest for the next.
#[test]
fn an_r2t_may_ask_for_less() {
    let mut session = Session::new(parameters());
    let write = session.write(3000);
    let task = session.start(write, &[]);
    assert!(session.connection.send_r2t(task, 1000, &mut session.sink));
    assert_eq!(session.connection.want_r2t(task), Some(R2tSpan { offset: 1000, len: 2000 }));
    session.sink.pdus_left.set(Some(0));
    assert!(!session.connection.send_r2t(task, 2000, &mut session.sink));
    session.sink.pdus_left.set(None);
    assert_eq!(session.connection.want_r2t(task), Some(R2tSpan { offset: 1000, len: 2000 }), "nothing has changed");
}

/// Section 11.4.5 for writes: the command wants less than the initiator would send, or more. Only what both want is
/// asked for.
#[test]
fn residuals_of_writes() {
    let mut session = Session::new(parameters());
    let write = session.write(1024);
    let task = session.start(write, &[]);
    session.connection.limit_data_out(task, 512);
    assert_eq!(session.connection.want_r2t(task), Some(R2tSpan { offset: 0, len: 512 }));
    let r2t = solicit(&mut session, task).remove(0);
    let data = session.data_out(&write, r2t.bhs.target_transfer_tag(), 0, 0, true);
    session.event(data, &pattern(512));
    let response = session.good(task, 512);
    assert_eq!((response.bhs.flags(), response.bhs.u32_at(44)), (flags::FINAL | flags::UNDERFLOW, 512));

    let write = session.write(512);
    let task = session.start(write, &pattern(512));
    session.connection.limit_data_out(task, 1024);
    assert!(session.connection.data_out_complete(task));
    let response = session.good(task, 1024);
    assert_eq!((response.bhs.flags(), response.bhs.u32_at(44)), (flags::FINAL | flags::OVERFLOW, 512));

    // Unsolicited data beyond what the command wants is cut from the event.
    let write = session.command(flags::WRITE, 2048);
    let task = session.start(write, &[]);
    session.connection.limit_data_out(task, 512);
    let data = session.data_out(&write, TAG_RESERVED, 0, 0, true);
    let got = session.send(data, &pattern(2048));
    assert_eq!(got[0].event, Event::DataOut { task, buffer_offset: 0, len: 512, burst_complete: true });
    assert_eq!(got[0].data.len(), 512);
    assert!(session.connection.data_out_complete(task));
}

/// Windows' deviations 1 and 3, section 11.4.7.2: immediate data beyond FirstBurstLength or against ImmediateData=No,
/// beyond the command's own length, or for a command that does not write.
#[test]
fn immediate_data_that_must_not_be() {
    let no_immediate = SessionParameters { immediate_data: false, ..parameters() };
    for (parameters, length, immediate, error) in [
        (parameters(), 4096, 2052, DataError::UnexpectedUnsolicitedData),
        (no_immediate, 4096, 4, DataError::UnexpectedUnsolicitedData),
        (parameters(), 512, 516, DataError::IncorrectAmountOfData),
    ] {
        let mut session = Session::new(parameters);
        let write = session.write(length);
        let event = session.event(write, &pattern(immediate));
        let Event::TaskDataError { task, error: got } = event else { panic!("{event:?}") };
        assert_eq!(got, error);
        assert_eq!(session.connection.want_r2t(task), None);
        session.good(task, 0);
    }
    let mut session = Session::new(parameters());
    let read = session.read(512);
    let event = session.event(read, &pattern(512));
    assert!(matches!(event, Event::TaskDataError { error: DataError::UnexpectedUnsolicitedData, .. }));
    assert_eq!(DataError::UnexpectedUnsolicitedData.sense(), (0x0b, 0x0c, 0x0c));
    assert_eq!(DataError::IncorrectAmountOfData.sense(), (0x0b, 0x0c, 0x0d));
    assert_eq!(DataError::ProtocolServiceCrc.sense(), (0x0b, 0x47, 0x05));
}

/// Windows' deviation 3: unsolicited Data-Out against InitialR2T=Yes. Section 11.17.1: the answer waits for the last
/// PDU.
#[test]
fn unsolicited_data_against_initial_r2t_fails_after_its_last_pdu() {
    let mut session = Session::new(SessionParameters { initial_r2t: true, ..parameters() });
    let write = session.command(flags::WRITE, 4096);
    assert_eq!(session.send(write, &[]), []);
    let data = session.data_out(&write, TAG_RESERVED, 0, 0, false);
    assert_eq!(session.send(data, &pattern(1024)), []);
    let data = session.data_out(&write, TAG_RESERVED, 1, 1024, true);
    let event = session.event(data, &pattern(1024));
    let Event::TaskDataError { task, error } = event else { panic!("{event:?}") };
    assert_eq!(error, DataError::UnexpectedUnsolicitedData);
    session.good(task, 0);

    // F=1, and data all the same.
    let write = session.write(4096);
    let task = session.start(write, &[]);
    let data = session.data_out(&write, TAG_RESERVED, 0, 0, true);
    assert_eq!(session.event(data, &pattern(512)), failed(task, DataError::UnexpectedUnsolicitedData));
}

/// Windows' deviation 2: unsolicited data shorter or longer than FirstBurstLength, or an R2T's data shorter or longer
/// than asked for, or out of order, is an incorrect amount.
#[test]
fn a_wrong_amount_of_data_fails_the_command() {
    struct Case {
        solicited: bool,
        data_sn: u32,
        offset: u32,
        len: usize,
        is_final: bool,
    }
    let case = |solicited, data_sn, offset, len, is_final| Case { solicited, data_sn, offset, len, is_final };
    for Case { solicited, data_sn, offset, len, is_final } in [
        case(false, 0, 0, 1024, true),
        case(false, 0, 0, 2052, true),
        case(false, 0, 0, 2052, false),
        case(false, 0, 4, 2048, true),
        case(false, 1, 0, 2048, true),
        case(true, 0, 0, 2048, true),
        case(true, 0, 0, 4100, true),
        case(true, 0, 4096, 4096, true),
        case(true, 1, 0, 2048, false),
    ] {
        let mut session = Session::new(parameters());
        let write = if solicited { session.write(8192) } else { session.command(flags::WRITE, 8192) };
        let task = session.start(write, &[]);
        let tag = if solicited {
            assert!(session.connection.send_r2t(task, 4096, &mut session.sink));
            session.only_sent().bhs.target_transfer_tag()
        } else {
            TAG_RESERVED
        };
        let data = session.data_out(&write, tag, data_sn, offset, is_final);
        let mut got = session.send(data, &pattern(len));
        if !is_final {
            assert_eq!(got, [], "the last PDU is awaited");
            let data = session.data_out(&write, tag, data_sn + 1, offset + len as u32, true);
            got = session.send(data, &pattern(4));
        }
        assert_eq!(got[0].event, failed(task, DataError::IncorrectAmountOfData));
        assert_eq!(session.connection.want_r2t(task), None);
    }
}

/// Section 7.8: a Data-Out with a bad digest is rejected, and its command fails with a CRC error once all of its data
/// has come.
#[test]
fn a_data_digest_error_fails_the_command_after_its_last_data() {
    let mut session = Session::new(SessionParameters { data_digest: true, header_digest: true, ..parameters() });
    let write = session.write(8192);
    let task = session.start(write, &[]);
    let r2ts = solicit(&mut session, task);
    let data = session.data_out(&write, r2ts[0].bhs.target_transfer_tag(), 0, 0, true);
    let mut bytes = session.wire(data, &[], &pattern(4096));
    bytes[1000] ^= 0x80;
    assert_eq!(session.arrive(&bytes).expect("not fatal"), []);
    let reject = session.only_sent();
    assert_eq!((reject.opcode(), reject.bhs.0[2]), (Opcode::REJECT, 0x02));
    let data = session.data_out(&write, r2ts[1].bhs.target_transfer_tag(), 0, 4096, true);
    assert_eq!(session.event(data, &pattern(4096)), failed(task, DataError::ProtocolServiceCrc));
}

/// A Data-Out with a transfer tag that was never given is an invalid field (section 11.17.1, note 2); one whose task
/// is gone is dropped in silence, since it may have been underway.
#[test]
fn stray_data_harms_nothing() {
    let mut session = Session::new(parameters());
    let write = session.write(4096);
    let task = session.start(write, &[]);
    let data = session.data_out(&write, 0x1234, 0, 0, true);
    assert_eq!(session.send(data, &pattern(512)), []);
    assert_eq!(session.only_sent().bhs.0[2], 0x09);
    let tag = solicit(&mut session, task)[0].bhs.target_transfer_tag();
    session.good(task, 0);
    let data = session.data_out(&write, tag, 0, 0, true);
    assert_eq!(session.send(data, &pattern(4096)), []);
    assert_eq!(session.sent(), []);
    // Data for a command that does not write.
    let read = session.read(512);
    session.start(read, &[]);
    let data = session.data_out(&read, TAG_RESERVED, 0, 0, true);
    assert_eq!(session.send(data, &pattern(512)), []);
    assert_eq!(session.only_sent().bhs.0[2], 0x09);
}

/// Section 11.17.1: a command that fails early is answered once its outstanding data has come.
#[test]
fn an_early_failure_waits_for_the_data_underway() {
    let mut session = Session::new(parameters());
    let write = session.write(8192);
    let task = session.start(write, &[]);
    let r2ts = solicit(&mut session, task);
    assert!(session.connection.discard_data_out(task));
    for (at, r2t) in r2ts.iter().enumerate() {
        let data = session.data_out(&write, r2t.bhs.target_transfer_tag(), 0, r2t.bhs.u32_at(40), true);
        let got = session.send(data, &pattern(4096));
        let drained = Got { event: Event::DataOutDrained { task }, data: Vec::new() };
        assert_eq!(got, if at == 1 { vec![drained] } else { vec![] });
    }
    assert_eq!(session.connection.want_r2t(task), None);
    session.good(task, 0);
    let write = session.write(8192);
    let task = session.start(write, &[]);
    assert!(!session.connection.discard_data_out(task), "nothing is underway");
}

/// A held write may have unsolicited data, which arrives before its turn; an error of it is told when its turn comes.
#[test]
fn unsolicited_data_of_a_held_write() {
    let mut session = Session::new(parameters());
    let (first, second, third) =
        (session.read(512), session.command(flags::WRITE, 2048), session.command(flags::WRITE, 2048));
    let Event::Held { task } = session.event(second, &[]) else { panic!("it is early") };
    let data = session.data_out(&second, TAG_RESERVED, 0, 0, true);
    assert!(matches!(session.event(data, &pattern(2048)), Event::DataOut { burst_complete: true, .. }));
    assert!(matches!(session.event(third, &[]), Event::Held { .. }));
    let data = session.data_out(&third, TAG_RESERVED, 0, 0, true);
    assert_eq!(session.send(data, &pattern(4)), []);
    let got = session.send(first, &[]);
    assert_eq!(got[1].event, Event::Command { task });
    assert!(session.connection.data_out_complete(task));
    assert!(matches!(got[2].event, Event::TaskDataError { error: DataError::IncorrectAmountOfData, .. }));
}

/// A large Data-Out is placed by the shard: its digest, given by parts, covers the padding, and an error is found at
/// the end.
#[test]
fn a_large_data_out_is_received_in_place() {
    for damage in [None, Some(0), Some(8000), Some(8001), Some(8004)] {
        let parameters = SessionParameters { data_digest: true, max_burst_length: 8192, ..parameters() };
        let mut session = Session::new(parameters);
        let write = session.write(8001);
        let task = session.start(write, &[]);
        let tag = solicit(&mut session, task)[0].bhs.target_transfer_tag();
        let data = session.data_out(&write, tag, 0, 0, true);
        let mut bytes = session.wire(data, &[], &pattern(8001));
        if let Some(at) = damage {
            bytes[48 + at] ^= 4;
        }
        let bulk = session.connection.receive(&bytes[..1000], NOW_MS).expect("legal");
        assert_eq!(bulk, Receive::Bulk { header_len: 48, task, buffer_offset: 0, len: 8001, trailer_len: 7 });
        assert!(!session.connection.data_out_complete(task), "not before it is here");
        let crc = ::crc32c::crc32c(&bytes[48..48 + 8001]);
        let event = session.connection.bulk_done(Some(crc), &bytes[48 + 8001..]).expect("not fatal");
        session.connection.check_invariants();
        if damage.is_none() {
            assert_eq!(event, Event::DataOut { task, buffer_offset: 0, len: 8001, burst_complete: true });
            assert!(session.connection.data_out_complete(task));
        } else {
            assert_eq!(event, failed(task, DataError::ProtocolServiceCrc));
            assert_eq!(session.only_sent().bhs.0[2], 0x02);
        }
    }
}

/// A task may end, and its entry be used again, while its payload is being placed: the end of the bulk transfer then
/// means nothing.
#[test]
fn a_task_may_end_during_its_bulk_transfer() {
    let mut session = Session::new(SessionParameters { max_burst_length: 8192, ..parameters() });
    let write = session.write(8192);
    let task = session.start(write, &[]);
    let tag = solicit(&mut session, task)[0].bhs.target_transfer_tag();
    let data = session.data_out(&write, tag, 0, 0, true);
    let bytes = session.wire(data, &[], &pattern(8192));
    let bulk = session.connection.receive(&bytes[..48], NOW_MS).expect("legal");
    assert!(matches!(bulk, Receive::Bulk { .. }));
    assert!(session.connection.abort(task));
    session.connection.release(task);
    assert_eq!(session.connection.bulk_done(None, &[]), Ok(Event::Handled));
    session.connection.check_invariants();
}

/// Section 11.8.5: a Target Transfer Tag is never the reserved value, also after 2^32 - 1 of them.
#[test]
fn transfer_tags_skip_the_reserved_value() {
    let mut session = Session::new(parameters());
    session.connection.next_transfer_tag = TAG_RESERVED - 1;
    let write = session.write(8192);
    let task = session.start(write, &[]);
    let tags: Vec<u32> = solicit(&mut session, task).iter().map(|r2t| r2t.bhs.target_transfer_tag()).collect();
    assert_eq!(tags, [TAG_RESERVED - 1, 0]);
}
