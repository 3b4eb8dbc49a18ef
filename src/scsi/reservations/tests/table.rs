//! Every command of the command table in the presence of every reservation, against the standards' tables (SPC-5 clause
//! 5.14.1, SBC-4 clause 4.17, SPC-2 clause 5.5.1), typed from them.

use super::{apply, list, nexus};
use crate::scsi::command_table::COMMANDS;
use crate::scsi::fixture::{DISK, run_on, unit};
use crate::scsi::reservations::{Reservations, ReserveOut};
use crate::scsi::{Action, NexusUnit, Outcome, Status};

/// For each command, whether it is allowed (A) or in conflict (C): from any nexus under write exclusive and under
/// exclusive access; from a registered nexus under the four types for registrants; from another nexus under write
/// exclusive and exclusive access for registrants; and under another nexus's RESERVE.
const TABLE: &[(&str, &str)] = &[
    ("TEST UNIT READY", "AAAAAC"),
    ("REQUEST SENSE", "AAAAAA"),
    ("FORMAT UNIT", "CCACCC"),
    ("READ(6)", "ACAACC"),
    ("WRITE(6)", "CCACCC"),
    ("INQUIRY", "AAAAAA"),
    ("MODE SELECT(6)", "CCACCC"),
    ("MODE SENSE(6)", "ACAACC"),
    ("RECEIVE DIAGNOSTIC RESULTS", "ACAACC"),
    ("SEND DIAGNOSTIC", "CCACCC"),
    ("READ CAPACITY(10)", "AAAAAA"),
    ("READ(10)", "ACAACC"),
    ("WRITE(10)", "CCACCC"),
    ("WRITE AND VERIFY(10)", "CCACCC"),
    ("VERIFY(10)", "ACAACC"),
    ("PRE-FETCH(10)", "ACAACC"),
    ("SYNCHRONIZE CACHE(10)", "CCACCC"),
    ("READ DEFECT DATA(10)", "ACAACC"),
    ("WRITE BUFFER", "CCACCC"),
    ("READ BUFFER(10)", "ACAACC"),
    ("READ BUFFER(16)", "ACAACC"),
    ("WRITE SAME(10)", "CCACCC"),
    ("UNMAP", "CCACCC"),
    ("SANITIZE", "CCACCC"),
    ("LOG SELECT", "CCACCC"),
    ("LOG SENSE", "AAAAAA"),
    ("MODE SELECT(10)", "CCACCC"),
    ("MODE SENSE(10)", "ACAACC"),
    ("PERSISTENT RESERVE IN", "AAAAAC"),
    ("EXTENDED COPY(LID1)", "CCACCC"),
    ("EXTENDED COPY(LID4)", "CCACCC"),
    ("POPULATE TOKEN", "ACAACC"),
    ("WRITE USING TOKEN", "CCACCC"),
    ("COPY OPERATION ABORT", "CCACCC"),
    ("RECEIVE COPY STATUS(LID1)", "AAAAAC"),
    ("RECEIVE COPY OPERATING PARAMETERS", "AAAAAC"),
    ("RECEIVE COPY FAILURE DETAILS(LID1)", "AAAAAC"),
    ("RECEIVE COPY STATUS(LID4)", "AAAAAC"),
    ("RECEIVE ROD TOKEN INFORMATION", "AAAAAC"),
    ("READ(16)", "ACAACC"),
    ("COMPARE AND WRITE", "CCACCC"),
    ("WRITE(16)", "CCACCC"),
    ("ORWRITE(16)", "CCACCC"),
    ("WRITE AND VERIFY(16)", "CCACCC"),
    ("VERIFY(16)", "ACAACC"),
    ("PRE-FETCH(16)", "ACAACC"),
    ("SYNCHRONIZE CACHE(16)", "CCACCC"),
    ("WRITE SAME(16)", "CCACCC"),
    ("WRITE ATOMIC(16)", "CCACCC"),
    ("READ CAPACITY(16)", "AAAAAA"),
    ("GET LBA STATUS(16)", "ACAACC"),
    ("REPORT LUNS", "AAAAAA"),
    ("REPORT TARGET PORT GROUPS", "AAAAAA"),
    ("REPORT SUPPORTED OPERATION CODES", "ACAACC"),
    ("REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS", "ACAACC"),
    ("REPORT TIMESTAMP", "AAAAAC"),
    ("SET TARGET PORT GROUPS", "CCACCC"),
    ("READ(12)", "ACAACC"),
    ("WRITE(12)", "CCACCC"),
    ("WRITE AND VERIFY(12)", "CCACCC"),
    ("VERIFY(12)", "ACAACC"),
    ("READ DEFECT DATA(12)", "ACAACC"),
];

/// The unit's state for each column, with the nexus that sends the command.
fn columns() -> Vec<(Reservations, u8)> {
    let reserved = |kind: u8, registered: bool| {
        let mut state = Reservations::new();
        for (number, key) in [(1, 0x11), (2, 0x22)] {
            if number == 1 || registered {
                let from = nexus(number, 1);
                assert_eq!(apply(&mut state, &from, ReserveOut::Register, 0, &list(0, key, 0)).0, Outcome::GOOD);
            }
        }
        assert_eq!(apply(&mut state, &nexus(1, 1), ReserveOut::Reserve, kind, &list(0x11, 0, 0)).0, Outcome::GOOD);
        state
    };
    let mut states = Vec::new();
    for (column, kinds, registered) in [
        (0, &[1][..], &[false, true][..]),
        (1, &[3], &[false, true]),
        (2, &[5, 6, 7, 8], &[true]),
        (3, &[5, 7], &[false]),
        (4, &[6, 8], &[false]),
    ] {
        for kind in kinds {
            states.extend(registered.iter().map(|registered| (reserved(*kind, *registered), column)));
        }
    }
    let mut state = Reservations::new();
    assert_eq!(state.reserve(&nexus(1, 1)), Outcome::GOOD);
    states.push((state, 5));
    states
}

/// Whether the command is in conflict when nexus `number` sends it.
fn conflicts(state: &Reservations, number: u8, cdb: &[u8]) -> bool {
    let mut nexus_unit = NexusUnit::default();
    nexus_unit.set_standing(state.standing(&nexus(number, 1)));
    let (action, _) = run_on(Some(&unit(&DISK)), &mut nexus_unit, cdb);
    action == Action::Done(Outcome::status(Status::RESERVATION_CONFLICT))
}

/// A copy reads and writes for its nexus, as READ and WRITE do.
#[test]
fn a_copy_is_refused_where_a_read_or_write_is() {
    for (state, _) in columns() {
        for number in [1, 2] {
            let mut nexus_unit = NexusUnit::default();
            nexus_unit.set_standing(state.standing(&nexus(number, 1)));
            let (read, write) = ([0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], [0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
            assert_eq!(nexus_unit.refuses_copy(false), conflicts(&state, number, &read), "{:?}", state.reservation());
            assert_eq!(nexus_unit.refuses_copy(true), conflicts(&state, number, &write), "{:?}", state.reservation());
        }
    }
    assert!(!NexusUnit::default().refuses_copy(true));
}

#[test]
fn every_command_is_allowed_or_in_conflict_as_the_tables_say() {
    for command in COMMANDS.iter().filter(|command| command.is_served_on(&unit(&DISK))) {
        let cdb = [command.opcode, command.service_action.unwrap_or(0)];
        let name = command.name.split(", ").next().unwrap_or_default();
        // These have rules of their own, below, or decide for themselves.
        if ["START STOP UNIT", "PREVENT ALLOW MEDIUM REMOVAL", "PERSISTENT RESERVE OUT"].contains(&name)
            || ["RESERVE(6)", "RESERVE(10)", "RELEASE(6)", "RELEASE(10)"].contains(&name)
        {
            continue;
        }
        let Some((_, expected)) = TABLE.iter().find(|(listed, _)| *listed == name) else {
            panic!("{name} is not in the table");
        };
        for (state, column) in columns() {
            let conflict = expected.as_bytes()[usize::from(column)] == b'C';
            assert_eq!(conflicts(&state, 2, &cdb), conflict, "{name}, column {column}, {:?}", state.reservation());
            assert!(!conflicts(&state, 1, &cdb) || state.reservation().is_none(), "{name} from the holder");
        }
        assert!(!conflicts(&Reservations::new(), 2, &cdb), "{name}");
    }
}

#[test]
fn starting_and_allowing_removal_are_never_in_conflict() {
    for (state, column) in columns() {
        let writes_conflict = column != 2;
        for (cdb, harmless) in [
            ([0x1b, 0, 0, 0, 0x01], true),
            ([0x1b, 0, 0, 0, 0x00], false),
            ([0x1b, 0, 0, 0, 0x11], false),
            ([0x1e, 0, 0, 0, 0x00], true),
            ([0x1e, 0, 0, 0, 0x01], false),
        ] {
            assert_eq!(conflicts(&state, 2, &cdb), writes_conflict && !harmless, "{cdb:02x?} column {column}");
        }
    }
}

#[test]
fn persistent_reservation_commands_meet_every_reserve_and_nothing_else() {
    for (state, column) in columns() {
        for cdb in [[0x5e, 0], [0x5f, 6]] {
            assert_eq!(conflicts(&state, 2, &cdb), column == 5);
            assert_eq!(conflicts(&state, 1, &cdb), column == 5, "even for whom it is reserved");
        }
        for opcode in [0x16, 0x17, 0x56, 0x57] {
            assert!(!conflicts(&state, 2, &[opcode]), "decided where the state is");
        }
    }
}

#[test]
fn a_pending_attention_is_told_before_a_conflict() {
    let (state, _) = columns().remove(0);
    let mut nexus_unit = NexusUnit::new();
    nexus_unit.set_standing(state.standing(&nexus(2, 1)));
    let write = [0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    let told = |nexus_unit: &mut NexusUnit| match run_on(Some(&unit(&DISK)), nexus_unit, &write).0 {
        Action::Done(outcome) => outcome.status,
        action => panic!("{action:?}"),
    };
    assert_eq!(told(&mut nexus_unit), Status::CHECK_CONDITION);
    assert_eq!(told(&mut nexus_unit), Status::RESERVATION_CONFLICT);
}
