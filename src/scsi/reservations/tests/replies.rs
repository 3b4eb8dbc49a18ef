//! The replies of PERSISTENT RESERVE IN, the forms of PERSISTENT RESERVE OUT's list, and the stored form.

use super::{apply, list, list_with, move_list, nexus, transport_id};
use crate::scsi::fixture::{DISK, invalid_field, refused, run};
use crate::scsi::reservations::{Reservations, ReserveIn, ReserveOut, StoredError};
use crate::scsi::{Action, Outcome, Sense, SenseCode};

fn reply(state: &Reservations, what: ReserveIn, allocation_length: u16) -> Vec<u8> {
    let mut buffer = vec![0xee; 65_535];
    let len = state.report(what, allocation_length, &mut buffer).expect("the longest buffer");
    buffer[..len].to_vec()
}

/// Nodes 1 and 2 registered under 1111h and 2222h, node 2 holding a reservation of a type.
fn reserved(kind: u8) -> Reservations {
    let mut state = Reservations::new();
    for (node, key) in [(1, 0x1111), (2, 0x2222)] {
        assert_eq!(apply(&mut state, &nexus(node, 1), ReserveOut::Register, 0, &list(0, key, 1)).0, Outcome::GOOD);
    }
    assert_eq!(apply(&mut state, &nexus(2, 1), ReserveOut::Reserve, kind, &list(0x2222, 0, 0)).0, Outcome::GOOD);
    state
}

#[test]
fn keys_and_reservation() {
    assert_eq!(reply(&Reservations::new(), ReserveIn::ReadKeys, 512), [0; 8]);
    assert_eq!(reply(&Reservations::new(), ReserveIn::ReadReservation, 512), [0; 8]);
    let keys = [0, 0, 0, 2, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0x11, 0x11, 0, 0, 0, 0, 0, 0, 0x22, 0x22];
    assert_eq!(reply(&reserved(6), ReserveIn::ReadKeys, 512), keys);
    assert_eq!(reply(&reserved(6), ReserveIn::ReadKeys, 12), keys[..12], "the length tells of all");
    let reservation = [0, 0, 0, 2, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0x22, 0x22, 0, 0, 0, 0, 0, 6, 0, 0];
    assert_eq!(reply(&reserved(6), ReserveIn::ReadReservation, 512), reservation);
    let shared = [0, 0, 0, 2, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0];
    assert_eq!(reply(&reserved(8), ReserveIn::ReadReservation, 512), shared, "no key where all hold it");
}

#[test]
fn capabilities() {
    assert_eq!(reply(&reserved(1), ReserveIn::ReportCapabilities, 512), [0, 8, 0x1d, 0x81, 0xea, 0x01, 0, 0]);
    assert_eq!(reply(&Reservations::new(), ReserveIn::ReportCapabilities, 512), [0, 8, 0x1d, 0x80, 0xea, 0x01, 0, 0]);
}

#[test]
fn full_status() {
    let descriptor = |node: u8, key: [u8; 2], holder_and_type: [u8; 2]| {
        let id = transport_id(&nexus(node, 1).initiator);
        let length = [0, 0, 0, id.len() as u8];
        let [flags, kind] = holder_and_type;
        let fixed = [0, 0, 0, 0, 0, 0, key[0], key[1], 0, 0, 0, 0, flags, kind, 0, 0, 0, 0, 0, 1];
        [&fixed[..], &length, &id].concat()
    };
    let expected = |one, two| {
        let body = [descriptor(1, [0x11; 2], one), descriptor(2, [0x22; 2], two)].concat();
        [&[0, 0, 0, 2, 0, 0, 0, body.len() as u8][..], &body].concat()
    };
    assert_eq!(reply(&reserved(5), ReserveIn::ReadFullStatus, 4096), expected([0, 0], [1, 5]));
    assert_eq!(reply(&reserved(7), ReserveIn::ReadFullStatus, 4096), expected([1, 7], [1, 7]));
}

#[test]
fn a_buffer_that_is_too_short_is_told_so() {
    let state = reserved(5);
    let whole = reply(&state, ReserveIn::ReadFullStatus, u16::MAX).len();
    assert_eq!(state.report(ReserveIn::ReadFullStatus, u16::MAX, &mut [0; 64]), Err(whole));
    assert_eq!(state.report(ReserveIn::ReadFullStatus, 64, &mut [0; 64]), Ok(64));
}

#[test]
fn the_commands_name_their_service_action_and_list() {
    for (code, what) in [
        (0, ReserveIn::ReadKeys),
        (1, ReserveIn::ReadReservation),
        (2, ReserveIn::ReportCapabilities),
        (3, ReserveIn::ReadFullStatus),
    ] {
        let action = run(&DISK, &[0x5e, code, 0, 0, 0, 0, 0, 2, 1, 0]);
        assert_eq!(action, Action::ReserveIn { what, allocation_length: 0x201 });
    }
    let out = |code: u8, kind: u8, length: u32| {
        let [a, b, c, d] = length.to_be_bytes();
        run(&DISK, &[0x5f, code, kind, 0, 0, a, b, c, d, 0])
    };
    let expected = |service_action, scope_type| Action::ReserveOut { service_action, scope_type, list_bytes: 24 };
    assert_eq!(out(1, 5, 24), expected(ReserveOut::Reserve, 5));
    assert_eq!(out(6, 0, 24), expected(ReserveOut::RegisterAndIgnoreExistingKey, 0));
    assert_eq!(out(2, 0x99, 24), expected(ReserveOut::Release, 0x99), "looked at with the state");
    for code in [1, 4, 5] {
        assert_eq!(out(code, 2, 24), invalid_field(2, Some(3)), "no such type");
        assert_eq!(out(code, 0x15, 24), invalid_field(2, Some(7)), "no such scope");
    }
    for length in [0, 23, 65_537, u32::MAX] {
        assert_eq!(out(0, 0, length), refused(SenseCode::PARAMETER_LIST_LENGTH_ERROR));
    }
    assert_eq!(out(8, 0, 24), invalid_field(1, Some(4)), "REPLACE LOST RESERVATION");
    for (opcode, release) in [(0x16, false), (0x17, true), (0x56, false), (0x57, true)] {
        assert_eq!(run(&DISK, &[opcode]), Action::ReserveUnit { release });
        assert_eq!(run(&DISK, &[opcode, 1]), invalid_field(1, Some(0)), "extents are obsolete");
    }
}

#[test]
fn lists_that_are_wrong_change_nothing() {
    let length_error: Outcome = Sense::new(SenseCode::PARAMETER_LIST_LENGTH_ERROR).into();
    let in_list = |byte, bit| Outcome::from(Sense::invalid_field_in_list(byte, bit));
    let state = reserved(5);
    let outcome = |action, list: &[u8]| {
        let mut after = state.clone();
        let (outcome, effects) = apply(&mut after, &nexus(2, 1), action, 5, list);
        assert_eq!((&after, effects.len()), (&state, 0));
        outcome
    };
    use ReserveOut as R;
    let with_id = list_with(0, 9, 0, &[&nexus(3, 1).initiator]);
    assert_eq!(outcome(R::Register, &list(0x2222, 9, 0)[..23]), length_error);
    assert_eq!(outcome(R::Register, &[&list(0x2222, 9, 0)[..], &[0; 4]].concat()), length_error);
    assert_eq!(outcome(R::Register, &with_id[..with_id.len() - 1]), length_error);
    assert_eq!(outcome(R::Register, &with_id[..26]), length_error);
    assert_eq!(outcome(R::RegisterAndIgnoreExistingKey, &with_id), in_list(20, Some(3)));
    assert_eq!(outcome(R::Reserve, &with_id), in_list(20, Some(3)));
    let mut cut = with_id.clone();
    cut[27] -= 4;
    assert_eq!(outcome(R::Register, &cut), in_list(30, None), "a TransportID that is cut");

    let to = nexus(3, 1);
    let good = move_list(0x2222, 9, 0, &to);
    assert_eq!(outcome(R::RegisterAndMove, &good[..23]), length_error);
    assert_eq!(outcome(R::RegisterAndMove, &good[..good.len() - 4]), length_error);
    assert_eq!(outcome(R::RegisterAndMove, &move_list(0x2222, 9, 0, &nexus(3, 7))), in_list(18, None), "no such port");
    assert_eq!(outcome(R::RegisterAndMove, &move_list(0x2222, 0, 0, &to)), in_list(8, None));
}

#[test]
fn registrations_are_bounded_and_all_or_none() {
    let mut state = Reservations::new();
    let others: Vec<_> = (0..=u8::MAX).map(|number| nexus(number, 1).initiator).collect();
    let named: Vec<_> = others.iter().collect();
    // 257 initiators through two ports are more than there is room for.
    let (outcome, _) = apply(&mut state, &nexus(9, 1), ReserveOut::Register, 0, &list_with(0, 7, 4, &named));
    assert_eq!(outcome, Sense::new(SenseCode::INSUFFICIENT_REGISTRATION_RESOURCES).into());
    assert_eq!(state, Reservations::new());
    for port in [1, 2] {
        let (outcome, _) = apply(&mut state, &nexus(9, port), ReserveOut::Register, 0, &list_with(0, 7, 0, &named));
        assert_eq!(outcome, Outcome::GOOD);
    }
    assert_eq!(state.registrations().count(), Reservations::REGISTRATIONS_MAX);
    let full = state.clone();
    let (outcome, _) = apply(&mut state, &nexus(9, 3), ReserveOut::Register, 0, &list(0, 7, 0));
    assert_eq!(outcome, Sense::new(SenseCode::INSUFFICIENT_REGISTRATION_RESOURCES).into());
    assert_eq!(state, full);
    let ids: usize = others.iter().map(|initiator| transport_id(initiator).len()).sum();
    assert_eq!(reply(&state, ReserveIn::ReadFullStatus, u16::MAX).len(), 8 + 512 * 24 + 2 * ids);
}

#[test]
fn what_was_stored_and_then_changed_is_refused() {
    let bytes = reserved(5).to_bytes().expect("APTPL");
    assert!(Reservations::from_bytes(&bytes).is_ok());
    for index in 0..bytes.len() {
        for bit in 0..8 {
            let mut changed = bytes.clone();
            changed[index] ^= 1 << bit;
            assert!(Reservations::from_bytes(&changed).is_err(), "byte {index} bit {bit}");
        }
        assert!(Reservations::from_bytes(&bytes[..index]).is_err(), "cut at {index}");
    }
    // With a right checksum, what contradicts itself is still refused.
    let forged = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut body = bytes[..bytes.len() - 4].to_vec();
        change(&mut body);
        body.extend(crate::crc32c::crc32c(&body).to_le_bytes());
        Reservations::from_bytes(&body)
    };
    assert!(forged(&|_| {}).is_ok());
    assert_eq!(forged(&|body| body[7] = b'2'), Err(StoredError::Version));
    assert_eq!(forged(&|body| body[8] = 2), Err(StoredError::Contradiction), "no such type");
    assert_eq!(forged(&|body| body[8] = 0), Err(StoredError::Contradiction), "a holder of nothing");
    assert_eq!(forged(&|body| body[8] = 7), Err(StoredError::Contradiction), "one holder where all hold");
    assert_eq!(forged(&|body| body[10] = 3), Err(StoredError::Length));
    assert_eq!(forged(&|body| body[10] = 1), Err(StoredError::Length));
    assert_eq!(forged(&|body| body[12..20].fill(0)), Err(StoredError::Contradiction), "no key");
    assert_eq!(forged(&|body| body[22] = 1), Err(StoredError::Contradiction), "two holders");
    assert_eq!(forged(&|body| body[22] = 2), Err(StoredError::Contradiction), "a flag that is not there");
    let registration = bytes.len() - 4 - 12;
    let twice = forged(&|body| {
        let first = body[12..12 + registration / 2].to_vec();
        body.truncate(12);
        body[8] = 0;
        body.extend([first.clone(), first].concat());
    });
    assert_eq!(twice, Err(StoredError::Contradiction), "one nexus twice");
}
