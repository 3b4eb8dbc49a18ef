//! Every command that is served, one row each. Dispatch, REPORT SUPPORTED OPERATION CODES and the tests read these
//! rows.

use super::cdb::Cdb;
use super::execute::{Action, LogicalUnit, TargetView};
use super::parameter_list::ParameterList;
use super::unit::{Features, Unit};
use super::{
    buffer, capacity, copy, defects, diagnostic, format, inquiry, lba_status, log, mode, mode_select, port_groups,
    read_write, readiness, report_luns, reservations, sanitize, supported, timestamp, uninterrupted, unmap, write_same,
};

/// Which way a command's data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataDirection {
    /// No data.
    None,
    /// To the initiator.
    In,
    /// From the initiator.
    Out,
    /// None or from the initiator, as a field of the CDB says (BYTCHK, NDOB, FMTDATA).
    NoneOrOut,
}

/// What a command has to do with the commands around it. Ours is unrestricted reordering (QUEUE ALGORITHM MODIFIER 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ordering {
    /// Does not touch the medium: complete as soon as it is looked at.
    Immediate,
    /// Reads the medium, beside anything.
    Read,
    /// Writes the medium, beside anything.
    Write,
    /// Covers the writes that were answered before it.
    Flush,
    /// Writes all of the medium, alone, for as long as it takes.
    Long,
}

/// How the command meets a persistent reservation that another I_T nexus holds (SPC-5 and SBC-4 tables of allowed
/// commands). With a RESERVE of another I_T nexus every command is in conflict, unless the rule says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReservationRule {
    /// Never in conflict, not even with a RESERVE.
    Always,
    /// Never in conflict with a persistent reservation.
    Allowed,
    /// Decides for itself where persistent reservations are concerned; in conflict with every RESERVE.
    Persistent,
    /// In conflict with the exclusive access types.
    Read,
    /// In conflict with the write exclusive and the exclusive access types.
    Write,
    /// As `Write`, unless START is one (START STOP UNIT).
    WriteUnlessStart,
    /// As `Write`, unless PREVENT is zero (PREVENT ALLOW MEDIUM REMOVAL).
    WriteUnlessAllow,
}

/// In which states of its target port group (SPC-5 clause 5.15.2) a command is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessRule {
    /// The active ones.
    Active,
    /// Standby too.
    Standby,
    /// Standby, unavailable and offline too.
    Unavailable,
    /// Every one, transitioning too.
    Any,
}

/// The function that checks the rest of the CDB and answers. The variant says what it needs, and so where it may run.
#[derive(Clone, Copy)]
pub(super) enum Handler {
    /// Answers for every LUN, and a pending unit attention does not stand in its way (SAM-5 clause 5.14.1).
    Any(fn(Cdb<'_>, &TargetView<'_>, Option<LogicalUnit<'_>>, &mut ParameterList<'_>) -> Action),
    /// Replies with data of the unit.
    Reply(fn(Cdb<'_>, &Unit, &mut ParameterList<'_>) -> Action),
    /// Has no parameter data.
    Medium(fn(Cdb<'_>, &Unit) -> Action),
}

/// One command.
pub struct Command {
    /// The standards' name.
    pub name: &'static str,
    /// OPERATION CODE.
    pub opcode: u8,
    /// SERVICE ACTION, for an operation code that has one.
    pub service_action: Option<u8>,
    /// Bytes of the CDB.
    pub cdb_length: u8,
    /// Which way its data goes.
    pub direction: DataDirection,
    /// What it has to do with the commands around it.
    pub ordering: Ordering,
    /// How it meets a reservation.
    pub reservation: ReservationRule,
    /// How it meets the state of the target port group.
    pub access: AccessRule,
    /// CDB USAGE DATA: for each bit after the operation code, whether it is evaluated. A bit outside must be zero.
    pub cdb_usage: [u8; 16],
    /// RECOMMENDED COMMAND TIMEOUT in seconds.
    pub timeout_s: u32,
    pub(super) handler: Handler,
    /// Served only on units that have these features.
    needs: Features,
    /// The bits of the CDB, as a big-endian number, that must be zero.
    pub(super) reserved_bits: u128,
}

impl Command {
    /// Whether this unit serves the command; on another it is as if there were no such operation code.
    #[inline]
    pub fn is_served_on(&self, unit: &Unit) -> bool {
        unit.features().contains(self.needs)
    }

    /// The same row, served in further states of the target port group.
    const fn access(mut self, access: AccessRule) -> Self {
        self.access = access;
        self
    }

    /// The same row, for a command that takes longer than its ordering says.
    const fn timeout(mut self, seconds: u32) -> Self {
        self.timeout_s = seconds;
        self
    }

    /// The same row, for units that have these features.
    const fn needs(mut self, features: Features) -> Self {
        self.needs = features;
        self
    }
}

/// The command for a CDB, if any unit serves it. One load from a table of 256 and, for an operation code with service
/// actions, a look at its few neighbours.
pub fn find(cdb: &[u8; 16]) -> Option<&'static Command> {
    let row = FIRST_ROW[usize::from(cdb[0])];
    let first = COMMANDS.get(usize::from(row))?;
    if first.service_action.is_none() {
        return Some(first);
    }
    let service_action = Some(cdb[1] & 0x1f);
    let rows = COMMANDS[usize::from(row)..].iter().take_while(|command| command.opcode == cdb[0]);
    rows.into_iter().find(|command| command.service_action == service_action)
}

/// Whether an operation code has service actions; `None` for one that is not served at all.
pub(super) fn has_service_actions(opcode: u8) -> Option<bool> {
    let first = COMMANDS.get(usize::from(FIRST_ROW[usize::from(opcode)]))?;
    Some(first.service_action.is_some())
}

/// No command of this operation code is served.
const NO_ROW: u8 = u8::MAX;

/// For each operation code its first row.
static FIRST_ROW: [u8; 256] = first_rows();

const fn first_rows() -> [u8; 256] {
    assert!(COMMANDS.len() < NO_ROW as usize);
    let mut rows = [NO_ROW; 256];
    let mut row = COMMANDS.len();
    while row > 0 {
        row -= 1;
        let opcode = COMMANDS[row].opcode;
        assert!(
            row + 1 == COMMANDS.len() || COMMANDS[row + 1].opcode >= opcode,
            "rows ascend, so that an operation code's service actions are neighbours"
        );
        rows[opcode as usize] = row as u8;
    }
    rows
}

/// A row in the order in which T10's tables give the facts; `usage` starts at byte 1 of the CDB.
#[expect(clippy::too_many_arguments, reason = "a row of a table")]
const fn command(
    name: &'static str,
    opcode: u8,
    service_action: Option<u8>,
    usage: &[u8],
    direction: DataDirection,
    ordering: Ordering,
    reservation: ReservationRule,
    handler: Handler,
) -> Command {
    let cdb_length = usage.len() + 1;
    assert!(matches!(cdb_length, 6 | 10 | 12 | 16), "lengths of the CDB groups");
    let mut cdb_usage = [0; 16];
    let mut evaluated = 0xffu128;
    cdb_usage[0] = opcode;
    let mut byte = 1;
    while byte < 16 {
        // What lies beyond the CDB is not evaluated, and not refused either.
        let bits = if byte < cdb_length { usage[byte - 1] } else { 0xff };
        evaluated = evaluated << 8 | bits as u128;
        if byte < cdb_length {
            cdb_usage[byte] = bits;
        }
        byte += 1;
    }
    if let Some(service_action) = service_action {
        assert!(usage[0] & 0x1f == 0x1f, "the service action is part of byte 1");
        cdb_usage[1] = usage[0] & 0xe0 | service_action;
    }
    let timeout_s = match ordering {
        Ordering::Immediate => 10,
        Ordering::Read | Ordering::Write => 30,
        Ordering::Flush => 60,
        Ordering::Long => 24 * 60 * 60,
    };
    Command {
        name,
        opcode,
        service_action,
        cdb_length: cdb_length as u8,
        direction,
        ordering,
        reservation,
        access: AccessRule::Active,
        cdb_usage,
        timeout_s,
        handler,
        needs: Features::NONE,
        reserved_bits: !evaluated,
    }
}

use AccessRule as A;
use DataDirection as D;
use Handler::{Any, Medium, Reply};
use Ordering as O;
use ReservationRule as R;

/// CDB usage of the PERSISTENT RESERVE commands.
const PERSISTENT_IN: &[u8] = &[0x1f, 0, 0, 0, 0, 0, 0xff, 0xff, 0];
const PERSISTENT_OUT: &[u8] = &[0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0];

/// CDB usage of the third-party copy commands. RECEIVE COPY OPERATING PARAMETERS has no list identifier any more; that
/// of SPC-3 is not looked at.
const EXTENDED_COPY: &[u8] = &[0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0];
const TOKEN_OUT: &[u8] = &[0x1f, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0];
const RECEIVE_COPY_LID1: &[u8] = &[0x1f, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0];
const RECEIVE_COPY_LID4: &[u8] = &[0x1f, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0];

/// What a slow disk needs for the longest copies.
const COPY_TIMEOUT_S: u32 = 15 * 60;

/// Every command, by operation code and service action.
///
/// The CONTROL byte is zero in every row: NACA is refused because NORMACA is zero (SAM-5 clause 5.2), and its other
/// bits are obsolete. GROUP NUMBER and the protection fields are refused because neither grouping nor protection is
/// offered; only PRE-FETCH, which moves nothing that could be counted, takes any group, as test suites expect.
#[rustfmt::skip]
pub static COMMANDS: &[Command] = &[
    command("TEST UNIT READY", 0x00, None, &[0, 0, 0, 0, 0],
        D::None, O::Immediate, R::Allowed, Medium(readiness::test_unit_ready)),
    command("REQUEST SENSE", 0x03, None, &[0x01, 0, 0, 0xff, 0],
        D::In, O::Immediate, R::Always, Any(readiness::request_sense)),
    command("FORMAT UNIT", 0x04, None, &[0x3f, 0, 0, 0, 0],
        D::NoneOrOut, O::Long, R::Write, Medium(format::format_unit)).needs(Features::FORMAT),
    command("READ(6)", 0x08, None, &[0x1f, 0xff, 0xff, 0xff, 0],
        D::In, O::Read, R::Read, Medium(read_write::read_6)),
    command("WRITE(6)", 0x0a, None, &[0x1f, 0xff, 0xff, 0xff, 0],
        D::Out, O::Write, R::Write, Medium(read_write::write_6)),
    command("INQUIRY", 0x12, None, &[0x01, 0xff, 0xff, 0xff, 0],
        D::In, O::Immediate, R::Always, Any(inquiry::inquiry)),
    command("MODE SELECT(6)", 0x15, None, &[0x11, 0, 0, 0xff, 0],
        D::Out, O::Immediate, R::Write, Medium(mode_select::mode_select_6))
        .needs(Features::MODE_SELECT).access(A::Standby),
    command("RESERVE(6)", 0x16, None, &[0, 0, 0, 0, 0],
        D::None, O::Immediate, R::Always, Medium(reservations::reserve_unit)).needs(Features::RESERVATIONS),
    command("RELEASE(6)", 0x17, None, &[0, 0, 0, 0, 0],
        D::None, O::Immediate, R::Always, Medium(reservations::release_unit)).needs(Features::RESERVATIONS),
    command("MODE SENSE(6)", 0x1a, None, &[0x08, 0xff, 0xff, 0xff, 0],
        D::In, O::Immediate, R::Read, Reply(mode::mode_sense_6)).access(A::Standby),
    command("START STOP UNIT", 0x1b, None, &[0x01, 0, 0x0f, 0xf7, 0],
        D::None, O::Immediate, R::WriteUnlessStart, Medium(readiness::start_stop_unit)),
    command("RECEIVE DIAGNOSTIC RESULTS", 0x1c, None, &[0x01, 0xff, 0xff, 0xff, 0],
        D::In, O::Immediate, R::Read, Reply(diagnostic::receive_diagnostic_results)).access(A::Standby),
    command("SEND DIAGNOSTIC", 0x1d, None, &[0x17, 0, 0xff, 0xff, 0],
        D::None, O::Immediate, R::Write, Medium(diagnostic::send_diagnostic)).access(A::Standby),
    command("PREVENT ALLOW MEDIUM REMOVAL", 0x1e, None, &[0, 0, 0, 0x03, 0],
        D::None, O::Immediate, R::WriteUnlessAllow, Medium(readiness::prevent_allow_medium_removal)),
    command("READ CAPACITY(10)", 0x25, None, &[0, 0, 0, 0, 0, 0, 0, 0, 0],
        D::In, O::Immediate, R::Always, Reply(capacity::read_capacity_10)),
    command("READ(10)", 0x28, None, &[0x18, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0],
        D::In, O::Read, R::Read, Medium(read_write::read_10)),
    command("WRITE(10)", 0x2a, None, &[0x18, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0],
        D::Out, O::Write, R::Write, Medium(read_write::write_10)),
    command("WRITE AND VERIFY(10)", 0x2e, None, &[0x16, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0],
        D::Out, O::Write, R::Write, Medium(read_write::write_and_verify_10)),
    command("VERIFY(10)", 0x2f, None, &[0x16, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0],
        D::NoneOrOut, O::Read, R::Read, Medium(read_write::verify_10)),
    command("PRE-FETCH(10)", 0x34, None, &[0x02, 0xff, 0xff, 0xff, 0xff, 0x1f, 0xff, 0xff, 0],
        D::None, O::Immediate, R::Read, Medium(read_write::pre_fetch_10)),
    command("SYNCHRONIZE CACHE(10)", 0x35, None, &[0x06, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0],
        D::None, O::Flush, R::Write, Medium(read_write::synchronize_cache_10)),
    command("READ DEFECT DATA(10)", 0x37, None, &[0, 0x1f, 0, 0, 0, 0, 0xff, 0xff, 0],
        D::In, O::Immediate, R::Read, Reply(defects::read_defect_data_10)),
    command("WRITE BUFFER", 0x3b, None, &[0x1f, 0xff, 0xff, 0xff, 0xff, 0, 0x1f, 0xff, 0],
        D::Out, O::Immediate, R::Write, Medium(buffer::write_buffer)).needs(Features::ECHO_BUFFER).access(A::Standby),
    command("READ BUFFER(10)", 0x3c, None, &[0x1f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0],
        D::In, O::Immediate, R::Read, Reply(buffer::read_buffer_10)).needs(Features::ECHO_BUFFER).access(A::Standby),
    command("WRITE SAME(10)", 0x41, None, &[0x08, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0],
        D::Out, O::Write, R::Write, Medium(write_same::write_same_10)),
    command("UNMAP", 0x42, None, &[0, 0, 0, 0, 0, 0, 0xff, 0xff, 0],
        D::Out, O::Write, R::Write, Medium(unmap::unmap)).needs(Features::UNMAP),
    command("SANITIZE, OVERWRITE", 0x48, Some(0x01), &[0xbf, 0, 0, 0, 0, 0, 0xff, 0xff, 0],
        D::Out, O::Long, R::Write, Medium(sanitize::overwrite)).needs(Features::SANITIZE),
    command("SANITIZE, BLOCK ERASE", 0x48, Some(0x02), &[0xbf, 0, 0, 0, 0, 0, 0, 0, 0],
        D::None, O::Long, R::Write, Medium(sanitize::block_erase)).needs(Features::SANITIZE),
    command("SANITIZE, EXIT FAILURE MODE", 0x48, Some(0x1f), &[0xbf, 0, 0, 0, 0, 0, 0, 0, 0],
        D::None, O::Immediate, R::Write, Medium(sanitize::exit_failure_mode)).needs(Features::SANITIZE),
    command("LOG SELECT", 0x4c, None, &[0x02, 0xff, 0xff, 0, 0, 0, 0xff, 0xff, 0],
        D::None, O::Immediate, R::Write, Medium(log::log_select)).needs(Features::LOG_DATA).access(A::Standby),
    command("LOG SENSE", 0x4d, None, &[0, 0xff, 0xff, 0, 0xff, 0xff, 0xff, 0xff, 0],
        D::In, O::Immediate, R::Always, Reply(log::log_sense)).access(A::Standby),
    command("MODE SELECT(10)", 0x55, None, &[0x11, 0, 0, 0, 0, 0, 0xff, 0xff, 0],
        D::Out, O::Immediate, R::Write, Medium(mode_select::mode_select_10))
        .needs(Features::MODE_SELECT).access(A::Standby),
    command("RESERVE(10)", 0x56, None, &[0, 0, 0, 0, 0, 0, 0, 0, 0],
        D::None, O::Immediate, R::Always, Medium(reservations::reserve_unit)).needs(Features::RESERVATIONS),
    command("RELEASE(10)", 0x57, None, &[0, 0, 0, 0, 0, 0, 0, 0, 0],
        D::None, O::Immediate, R::Always, Medium(reservations::release_unit)).needs(Features::RESERVATIONS),
    command("MODE SENSE(10)", 0x5a, None, &[0x18, 0xff, 0xff, 0, 0, 0, 0xff, 0xff, 0],
        D::In, O::Immediate, R::Read, Reply(mode::mode_sense_10)).access(A::Standby),
    command("PERSISTENT RESERVE IN, READ KEYS", 0x5e, Some(0x00), PERSISTENT_IN,
        D::In, O::Immediate, R::Persistent, Medium(reservations::reserve_in))
        .needs(Features::RESERVATIONS).access(A::Standby),
    command("PERSISTENT RESERVE IN, READ RESERVATION", 0x5e, Some(0x01), PERSISTENT_IN,
        D::In, O::Immediate, R::Persistent, Medium(reservations::reserve_in))
        .needs(Features::RESERVATIONS).access(A::Standby),
    command("PERSISTENT RESERVE IN, REPORT CAPABILITIES", 0x5e, Some(0x02), PERSISTENT_IN,
        D::In, O::Immediate, R::Persistent, Medium(reservations::reserve_in))
        .needs(Features::RESERVATIONS).access(A::Standby),
    command("PERSISTENT RESERVE IN, READ FULL STATUS", 0x5e, Some(0x03), PERSISTENT_IN,
        D::In, O::Immediate, R::Persistent, Medium(reservations::reserve_in))
        .needs(Features::RESERVATIONS).access(A::Standby),
    command("PERSISTENT RESERVE OUT, REGISTER", 0x5f, Some(0x00), PERSISTENT_OUT,
        D::Out, O::Immediate, R::Persistent, Medium(reservations::reserve_out))
        .needs(Features::RESERVATIONS).access(A::Standby),
    command("PERSISTENT RESERVE OUT, RESERVE", 0x5f, Some(0x01), PERSISTENT_OUT,
        D::Out, O::Immediate, R::Persistent, Medium(reservations::reserve_out))
        .needs(Features::RESERVATIONS).access(A::Standby),
    command("PERSISTENT RESERVE OUT, RELEASE", 0x5f, Some(0x02), PERSISTENT_OUT,
        D::Out, O::Immediate, R::Persistent, Medium(reservations::reserve_out))
        .needs(Features::RESERVATIONS).access(A::Standby),
    command("PERSISTENT RESERVE OUT, CLEAR", 0x5f, Some(0x03), PERSISTENT_OUT,
        D::Out, O::Immediate, R::Persistent, Medium(reservations::reserve_out))
        .needs(Features::RESERVATIONS).access(A::Standby),
    command("PERSISTENT RESERVE OUT, PREEMPT", 0x5f, Some(0x04), PERSISTENT_OUT,
        D::Out, O::Immediate, R::Persistent, Medium(reservations::reserve_out))
        .needs(Features::RESERVATIONS).access(A::Standby),
    command("PERSISTENT RESERVE OUT, PREEMPT AND ABORT", 0x5f, Some(0x05), PERSISTENT_OUT,
        D::Out, O::Immediate, R::Persistent, Medium(reservations::reserve_out))
        .needs(Features::RESERVATIONS).access(A::Standby),
    command("PERSISTENT RESERVE OUT, REGISTER AND IGNORE EXISTING KEY", 0x5f, Some(0x06), PERSISTENT_OUT,
        D::Out, O::Immediate, R::Persistent, Medium(reservations::reserve_out))
        .needs(Features::RESERVATIONS).access(A::Standby),
    command("PERSISTENT RESERVE OUT, REGISTER AND MOVE", 0x5f, Some(0x07), PERSISTENT_OUT,
        D::Out, O::Immediate, R::Persistent, Medium(reservations::reserve_out))
        .needs(Features::RESERVATIONS).access(A::Standby),
    command("EXTENDED COPY(LID1)", 0x83, Some(0x00), EXTENDED_COPY,
        D::Out, O::Write, R::Write, Medium(copy::commands::copy_out)).needs(Features::COPY).timeout(COPY_TIMEOUT_S),
    command("EXTENDED COPY(LID4)", 0x83, Some(0x01), EXTENDED_COPY,
        D::Out, O::Write, R::Write, Medium(copy::commands::copy_out)).needs(Features::COPY).timeout(COPY_TIMEOUT_S),
    command("POPULATE TOKEN", 0x83, Some(0x10), TOKEN_OUT,
        D::Out, O::Read, R::Read, Medium(copy::commands::copy_out)).needs(Features::COPY),
    command("WRITE USING TOKEN", 0x83, Some(0x11), TOKEN_OUT,
        D::Out, O::Write, R::Write, Medium(copy::commands::copy_out)).needs(Features::COPY).timeout(COPY_TIMEOUT_S),
    command("COPY OPERATION ABORT", 0x83, Some(0x1c), &[0x1f, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        D::None, O::Immediate, R::Write, Medium(copy::commands::copy_operation_abort)).needs(Features::COPY),
    command("RECEIVE COPY STATUS(LID1)", 0x84, Some(0x00), RECEIVE_COPY_LID1,
        D::In, O::Immediate, R::Allowed, Medium(copy::commands::receive_copy)).needs(Features::COPY),
    command("RECEIVE COPY OPERATING PARAMETERS", 0x84, Some(0x03), RECEIVE_COPY_LID1,
        D::In, O::Immediate, R::Allowed, Reply(copy::third_party::operating_parameters)).needs(Features::COPY),
    command("RECEIVE COPY FAILURE DETAILS(LID1)", 0x84, Some(0x04), RECEIVE_COPY_LID1,
        D::In, O::Immediate, R::Allowed, Medium(copy::commands::receive_copy)).needs(Features::COPY),
    command("RECEIVE COPY STATUS(LID4)", 0x84, Some(0x05), RECEIVE_COPY_LID4,
        D::In, O::Immediate, R::Allowed, Medium(copy::commands::receive_copy)).needs(Features::COPY),
    command("RECEIVE ROD TOKEN INFORMATION", 0x84, Some(0x07), RECEIVE_COPY_LID4,
        D::In, O::Immediate, R::Allowed, Medium(copy::commands::receive_copy)).needs(Features::COPY),
    command("READ(16)", 0x88, None,
        &[0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
        D::In, O::Read, R::Read, Medium(read_write::read_16)),
    command("COMPARE AND WRITE", 0x89, None,
        &[0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0xff, 0, 0],
        D::Out, O::Write, R::Write, Medium(uninterrupted::compare_and_write)).needs(Features::COMPARE_AND_WRITE),
    command("WRITE(16)", 0x8a, None,
        &[0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
        D::Out, O::Write, R::Write, Medium(read_write::write_16)),
    command("ORWRITE(16)", 0x8b, None,
        &[0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
        D::Out, O::Write, R::Write, Medium(uninterrupted::or_write)).needs(Features::OR_WRITE),
    command("WRITE AND VERIFY(16)", 0x8e, None,
        &[0x16, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
        D::Out, O::Write, R::Write, Medium(read_write::write_and_verify_16)),
    command("VERIFY(16)", 0x8f, None,
        &[0x16, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
        D::NoneOrOut, O::Read, R::Read, Medium(read_write::verify_16)),
    command("PRE-FETCH(16)", 0x90, None,
        &[0x02, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f, 0],
        D::None, O::Immediate, R::Read, Medium(read_write::pre_fetch_16)),
    command("SYNCHRONIZE CACHE(16)", 0x91, None,
        &[0x06, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
        D::None, O::Flush, R::Write, Medium(read_write::synchronize_cache_16)),
    command("WRITE SAME(16)", 0x93, None,
        &[0x09, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
        D::NoneOrOut, O::Write, R::Write, Medium(write_same::write_same_16)),
    command("READ BUFFER(16)", 0x9b, None,
        &[0x1f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0],
        D::In, O::Immediate, R::Read, Reply(buffer::read_buffer_16)).needs(Features::ECHO_BUFFER).access(A::Standby),
    command("WRITE ATOMIC(16)", 0x9c, None,
        &[0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
        D::Out, O::Write, R::Write, Medium(uninterrupted::write_atomic)).needs(Features::WRITE_ATOMIC),
    command("READ CAPACITY(16)", 0x9e, Some(0x10), &[0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0],
        D::In, O::Immediate, R::Always, Reply(capacity::read_capacity_16)),
    command("GET LBA STATUS(16)", 0x9e, Some(0x12),
        &[0x1f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0],
        D::In, O::Read, R::Read, Reply(lba_status::get_lba_status_16)),
    command("REPORT LUNS", 0xa0, None, &[0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0],
        D::In, O::Immediate, R::Always, Any(report_luns::report_luns)),
    command("REPORT TARGET PORT GROUPS", 0xa3, Some(0x0a), &[0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0],
        D::In, O::Immediate, R::Always, Medium(port_groups::report_target_port_groups))
        .needs(Features::PORT_GROUPS).access(A::Any),
    command("REPORT SUPPORTED OPERATION CODES", 0xa3, Some(0x0c),
        &[0x1f, 0x87, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
        D::In, O::Immediate, R::Read, Reply(supported::report_supported_operation_codes)),
    command("REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS", 0xa3, Some(0x0d),
        &[0x1f, 0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0],
        D::In, O::Immediate, R::Read, Reply(supported::report_supported_task_management_functions)),
    command("REPORT TIMESTAMP", 0xa3, Some(0x0f), &[0x1f, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0],
        D::In, O::Immediate, R::Allowed, Medium(timestamp::report_timestamp)).needs(Features::TIMESTAMP),
    command("SET TARGET PORT GROUPS", 0xa4, Some(0x0a), &[0x1f, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0],
        D::Out, O::Immediate, R::Write, Medium(port_groups::set_target_port_groups))
        .needs(Features::PORT_GROUPS.and(Features::EXPLICIT_ACCESS)).access(A::Unavailable),
    command("READ(12)", 0xa8, None, &[0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
        D::In, O::Read, R::Read, Medium(read_write::read_12)),
    command("WRITE(12)", 0xaa, None, &[0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
        D::Out, O::Write, R::Write, Medium(read_write::write_12)),
    command("WRITE AND VERIFY(12)", 0xae, None, &[0x16, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
        D::Out, O::Write, R::Write, Medium(read_write::write_and_verify_12)),
    command("VERIFY(12)", 0xaf, None, &[0x16, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
        D::NoneOrOut, O::Read, R::Read, Medium(read_write::verify_12)),
    command("READ DEFECT DATA(12)", 0xb7, None, &[0x1f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
        D::In, O::Immediate, R::Read, Reply(defects::read_defect_data_12)),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::fixture::cdb;

    #[test]
    fn each_row_is_found_by_its_own_cdb() {
        for command in COMMANDS {
            let found = find(&cdb(&[command.opcode, command.service_action.unwrap_or(0)]));
            assert_eq!(found.map(|found| found.name), Some(command.name));
        }
        assert!(find(&cdb(&[0x9e, 0x13])).is_none(), "a service action that is not served");
        assert!(find(&cdb(&[0x43])).is_none());
        assert!(find(&cdb(&[0xff])).is_none());
    }

    #[test]
    fn rows_ascend_and_are_unique() {
        for pair in COMMANDS.windows(2) {
            let [earlier, later] = pair else { unreachable!("windows of two") };
            assert!((earlier.opcode, earlier.service_action) < (later.opcode, later.service_action), "{}", later.name);
        }
    }

    #[test]
    fn the_length_is_that_of_the_group() {
        for command in COMMANDS {
            let expected = match command.opcode >> 5 {
                0 => 6,
                1 | 2 => 10,
                4 => 16,
                5 => 12,
                group => panic!("group {group} has no length"),
            };
            assert_eq!(command.cdb_length, expected, "{}", command.name);
        }
    }

    #[test]
    fn every_bit_outside_the_usage_is_reserved() {
        for command in COMMANDS {
            let reserved = command.reserved_bits.to_be_bytes();
            assert_eq!(reserved[0], 0);
            for (byte, (reserved, usage)) in reserved.into_iter().zip(command.cdb_usage).enumerate().skip(1) {
                let expected = match byte {
                    1 if command.service_action.is_some() => !usage & 0xe0,
                    _ if byte < usize::from(command.cdb_length) => !usage,
                    _ => 0,
                };
                assert_eq!(reserved, expected, "{} byte {byte}", command.name);
            }
        }
    }
}
