//! REPORT SUPPORTED OPERATION CODES and REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS (SPC-5 clauses 6.35 and 6.36).

use super::cdb::Cdb;
use super::command_table::{self, COMMANDS, Command};
use super::execute::Action;
use super::parameter_list::ParameterList;
use super::sense::Sense;
use super::unit::Unit;

/// Bytes of a command timeouts descriptor.
const TIMEOUTS_BYTES: u16 = 12;

pub(super) fn report_supported_operation_codes(cdb: Cdb<'_>, _unit: &Unit, out: &mut ParameterList<'_>) -> Action {
    let timeouts = cdb.bit(2, 7);
    let opcode = cdb.byte(3);
    let service_action = cdb.be16(4);
    let has_service_actions = command_table::has_service_actions(opcode);
    // REPORTING OPTIONS; the field pointer of a wrong request names the field that contradicts the option.
    let command = match cdb.byte(2) & 0x07 {
        0 => {
            all_commands(timeouts, cdb.be32(6), out);
            return Action::DataIn;
        }
        1 if has_service_actions => return Sense::invalid_field_in_cdb(3, None).into(),
        1 => served(opcode, 0),
        2 if !has_service_actions => return Sense::invalid_field_in_cdb(4, None).into(),
        2 => served(opcode, service_action),
        3 if !has_service_actions && service_action != 0 => None,
        3 => served(opcode, service_action),
        _ => return Sense::invalid_field_in_cdb(2, Some(2)).into(),
    };
    one_command(command, timeouts, cdb.be32(6), out);
    Action::DataIn
}

/// The row of an operation code and service action. A service action beyond the five bits of a CDB is none.
fn served(opcode: u8, service_action: u16) -> Option<&'static Command> {
    let service_action = u8::try_from(service_action).ok().filter(|action| *action <= 0x1f)?;
    let mut cdb = [0; 16];
    cdb[0] = opcode;
    cdb[1] = service_action;
    command_table::find(&cdb)
}

/// The all_commands parameter data: a descriptor per row.
fn all_commands(timeouts: bool, allocation_length: u32, out: &mut ParameterList<'_>) {
    out.begin(allocation_length);
    out.push_u32(0);
    for command in COMMANDS {
        out.push_u8(command.opcode);
        out.push_u8(0);
        out.push_u16(command.service_action.map_or(0, u16::from));
        out.push_u8(0);
        out.push_u8(u8::from(timeouts) << 1 | u8::from(command.service_action.is_some()));
        out.push_u16(u16::from(command.cdb_length));
        if timeouts {
            timeouts_descriptor(command, out);
        }
    }
    let data_bytes = u32::try_from(out.total_len() - 4).expect("a few rows");
    out.set_u32(0, data_bytes);
}

/// The one_command parameter data. SUPPORT is 011b for a command that works as its standard says, and 001b for one that is not served.
fn one_command(command: Option<&Command>, timeouts: bool, allocation_length: u32, out: &mut ParameterList<'_>) {
    out.begin(allocation_length);
    out.push_u8(0);
    let Some(command) = command else {
        out.push_u8(0b001);
        out.push_u16(0);
        return;
    };
    out.push_u8(u8::from(timeouts) << 7 | 0b011);
    out.push_u16(u16::from(command.cdb_length));
    out.push(&command.cdb_usage[..usize::from(command.cdb_length)]);
    if timeouts {
        timeouts_descriptor(command, out);
    }
}

/// NOMINAL COMMAND PROCESSING TIMEOUT is not indicated.
fn timeouts_descriptor(command: &Command, out: &mut ParameterList<'_>) {
    out.push_u16(TIMEOUTS_BYTES - 2);
    out.push_u16(0);
    out.push_u32(0);
    out.push_u32(command.timeout_s);
}

pub(super) fn report_supported_task_management_functions(
    cdb: Cdb<'_>,
    _unit: &Unit,
    out: &mut ParameterList<'_>,
) -> Action {
    /// ABORT TASK, ABORT TASK SET, CLEAR TASK SET and LOGICAL UNIT RESET.
    const FUNCTIONS: u8 = 0b1101_1000;
    let allocation_length = cdb.be32(6);
    if allocation_length < 4 {
        return Sense::invalid_field_in_cdb(6, None).into();
    }
    let extended = cdb.bit(2, 7);
    out.begin(allocation_length);
    out.push_u8(FUNCTIONS);
    out.push_zeros(2);
    if extended {
        // No timeouts are indicated.
        out.push_u8(12);
        out.push_zeros(12);
    } else {
        out.push_u8(0);
    }
    Action::DataIn
}
