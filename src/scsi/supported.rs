//! REPORT SUPPORTED OPERATION CODES and REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS (SPC-5 clauses 6.35 and 6.36).

use super::cdb::Cdb;
use super::command_table::{self, COMMANDS, Command};
use super::execute::Action;
use super::parameter_list::ParameterList;
use super::sense::Sense;
use super::unit::Unit;

/// Bytes of a command timeouts descriptor.
const TIMEOUTS_BYTES: u16 = 12;

pub(super) fn report_supported_operation_codes(cdb: Cdb<'_>, unit: &Unit, out: &mut ParameterList<'_>) -> Action {
    let timeouts = cdb.bit(2, 7);
    let opcode = cdb.byte(3);
    let service_action = cdb.be16(4);
    let has_service_actions = command_table::has_service_actions(opcode);
    // REPORTING OPTIONS; the field pointer of a wrong request names the field that contradicts the option.
    let command = match cdb.byte(2) & 0x07 {
        0 => {
            all_commands(unit, timeouts, cdb.be32(6), out);
            return Action::DataIn;
        }
        1 if has_service_actions == Some(true) => return Sense::invalid_field_in_cdb(3, None).into(),
        1 => served(opcode, 0),
        2 if has_service_actions == Some(false) => return Sense::invalid_field_in_cdb(4, None).into(),
        2 => served(opcode, service_action),
        3 if has_service_actions == Some(false) && service_action != 0 => None,
        3 => served(opcode, service_action),
        _ => return Sense::invalid_field_in_cdb(2, Some(2)).into(),
    };
    let command = command.filter(|command| command.is_served_on(unit));
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

/// The all_commands parameter data: a descriptor per row that the unit serves.
fn all_commands(unit: &Unit, timeouts: bool, allocation_length: u32, out: &mut ParameterList<'_>) {
    out.begin(allocation_length);
    out.push_u32(0);
    for command in COMMANDS.iter().filter(|command| command.is_served_on(unit)) {
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

/// The one_command parameter data. SUPPORT is 011b for a command that works as its standard says, and 001b for one that
/// is not served.
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

#[cfg(test)]
mod tests {
    use crate::scsi::command_table::COMMANDS;
    use crate::scsi::fixture::{DISK, THIN, invalid_field, reply, run};

    fn cdb(options: u8, opcode: u8, service_action: u16, allocation_length: u32) -> Vec<u8> {
        let mut cdb = vec![0xa3, 0x0c, options, opcode];
        cdb.extend(service_action.to_be_bytes());
        cdb.extend(allocation_length.to_be_bytes());
        cdb
    }

    #[test]
    fn all_commands_are_listed_in_the_order_of_their_codes() {
        let data = reply(&THIN, &cdb(0, 0, 0, 4096));
        assert_eq!(data[..4], u32::try_from(COMMANDS.len() * 8).expect("few").to_be_bytes());
        assert_eq!(data.len(), 4 + COMMANDS.len() * 8);
        let unmap = data[4..].chunks_exact(8).position(|descriptor| descriptor == [0x42, 0, 0, 0, 0, 0, 0, 10]);
        let without = [&data[..4 + unmap.expect("listed") * 8], &data[4 + unmap.expect("listed") * 8 + 8..]].concat();
        assert_eq!(reply(&DISK, &cdb(0, 0, 0, 4096))[4..], without[4..], "only a thin unit unmaps");
        assert_eq!(data[4..12], [0x00, 0, 0, 0, 0, 0, 0, 6]);
        let capacity = data[4..].chunks_exact(8).find(|descriptor| descriptor[0] == 0x9e);
        assert_eq!(capacity, Some(&[0x9e, 0, 0, 0x10, 0, 1, 0, 16][..]));

        let timed = reply(&THIN, &cdb(0x80, 0, 0, 4096));
        assert_eq!(timed.len(), 4 + COMMANDS.len() * 20);
        assert_eq!(timed[4..24], [0, 0, 0, 0, 0, 2, 0, 6, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10]);
        assert_eq!(reply(&THIN, &cdb(0, 0, 0, 4)), data[..4]);
    }

    #[test]
    fn one_command_tells_which_bits_are_looked_at() {
        let read_10 = [0, 3, 0, 10, 0x28, 0x18, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0];
        assert_eq!(reply(&DISK, &cdb(1, 0x28, 0, 4096)), read_10);
        assert_eq!(reply(&DISK, &cdb(3, 0x28, 0, 4096)), read_10);
        let timed = [&[0, 0x83, 0, 10][..], &read_10[4..], &[0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 30]].concat();
        assert_eq!(reply(&DISK, &cdb(0x81, 0x28, 0, 4096)), timed);

        let read_capacity_16 = [0, 3, 0, 16, 0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0];
        assert_eq!(reply(&DISK, &cdb(2, 0x9e, 0x10, 4096)), read_capacity_16);
        assert_eq!(reply(&DISK, &cdb(3, 0x9e, 0x10, 4096)), read_capacity_16);

        let unmap = [0, 3, 0, 10, 0x42, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0];
        assert_eq!(reply(&THIN, &cdb(1, 0x42, 0, 4096)), unmap);
    }

    #[test]
    fn a_command_that_is_not_served_is_said_not_to_be() {
        for (options, opcode, service_action) in [
            (1, 0x42, 0),
            (2, 0x7f, 9),
            (3, 0x42, 0),
            (2, 0x9e, 0x13),
            (3, 0x9e, 0x13),
            (3, 0x28, 1),
            (2, 0x9e, 0x110),
            (3, 0x9e, 0x30),
        ] {
            let data = reply(&DISK, &cdb(options, opcode, service_action, 4096));
            assert_eq!(data, [0, 1, 0, 0], "{options} {opcode:02x} {service_action:x}");
        }
    }

    #[test]
    fn an_option_that_contradicts_the_operation_code_is_refused() {
        assert_eq!(run(&DISK, &cdb(1, 0x9e, 0x10, 4096)), invalid_field(3, None));
        assert_eq!(run(&DISK, &cdb(2, 0x28, 0, 4096)), invalid_field(4, None));
        for reserved in 4..8 {
            assert_eq!(run(&DISK, &cdb(reserved, 0x28, 0, 4096)), invalid_field(2, Some(2)));
        }
    }

    #[test]
    fn task_management_functions() {
        let cdb = |repd: u8, allocation_length: u8| [0xa3, 0x0d, repd, 0, 0, 0, 0, 0, 0, allocation_length, 0, 0];
        assert_eq!(reply(&DISK, &cdb(0, 255)), [0xd8, 0, 0, 0]);
        assert_eq!(reply(&DISK, &cdb(0x80, 255)), [0xd8, 0, 0, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(run(&DISK, &cdb(0, 3)), invalid_field(6, None));
    }
}
