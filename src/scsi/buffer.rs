//! READ BUFFER and WRITE BUFFER (SPC-5 clauses 6.18 and 6.49): the echo buffer, by which an initiator tests the way to
//! the unit and back.
//!
//! Each I_T nexus has an echo buffer of its own (EBOS), of which its owner keeps the last content. There is no other
//! buffer, and no microcode that could be downloaded.

use super::cdb::Cdb;
use super::execute::Action;
use super::parameter_list::ParameterList;
use super::sense::{Outcome, Sense};
use super::unit::Unit;
use crate::limits::ECHO_BUFFER_BYTES;

/// MODE.
const DESCRIPTOR: u8 = 0x03;
const ECHO: u8 = 0x0a;
const ECHO_DESCRIPTOR: u8 = 0x0b;

/// BUFFER ID and BUFFER OFFSET are ignored with the echo buffer. What is specific to other modes is a reserved bit
/// here, and so are those of a length beyond the buffer.
pub(super) fn write_buffer(cdb: Cdb<'_>, _unit: &Unit) -> Action {
    match (cdb.byte(1), cdb.be16(7)) {
        (ECHO, 0) => Action::Done(Outcome::GOOD),
        (ECHO, list_bytes) if list_bytes <= ECHO_BUFFER_BYTES => Action::WriteEcho { list_bytes },
        (ECHO, _) => Sense::invalid_field_in_cdb(6, None).into(),
        _ => Sense::invalid_field_in_cdb(1, Some(4)).into(),
    }
}

pub(super) fn read_buffer_10(cdb: Cdb<'_>, _unit: &Unit, out: &mut ParameterList<'_>) -> Action {
    read_buffer(cdb, cdb.be32(5) & 0x00ff_ffff, out)
}

/// SPC-5 clause 6.19: the same with longer fields.
pub(super) fn read_buffer_16(cdb: Cdb<'_>, _unit: &Unit, out: &mut ParameterList<'_>) -> Action {
    read_buffer(cdb, cdb.be32(10), out)
}

fn read_buffer(cdb: Cdb<'_>, allocation_length: u32, out: &mut ParameterList<'_>) -> Action {
    match cdb.byte(1) {
        ECHO => Action::ReadEcho { allocation_length },
        ECHO_DESCRIPTOR => {
            /// What is read is what this I_T nexus has written, or the command says that it is not.
            const EBOS: u8 = 1;
            out.begin(allocation_length);
            out.push(&[EBOS, 0]);
            out.push_u16(ECHO_BUFFER_BYTES);
            Action::DataIn
        }
        // Of a buffer that is not there all fields are zero.
        DESCRIPTOR => {
            out.begin(allocation_length);
            out.push_zeros(4);
            Action::DataIn
        }
        _ => Sense::invalid_field_in_cdb(1, Some(4)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::fixture::{DISK, invalid_field, reply, run};

    #[test]
    fn the_echo_buffer_is_written_and_read() {
        let write = |mode: u8, bytes: [u8; 3]| run(&DISK, &[&[0x3b, mode, 9, 1, 2, 3][..], &bytes, &[0]].concat());
        assert_eq!(write(0x0a, [0, 0, 16]), Action::WriteEcho { list_bytes: 16 });
        assert_eq!(write(0x0a, [0, 0x10, 0]), Action::WriteEcho { list_bytes: 4096 });
        assert_eq!(write(0x0a, [0, 0x10, 1]), invalid_field(6, None), "longer than the buffer");
        assert_eq!(write(0x0a, [1, 0, 16]), invalid_field(6, Some(0)));
        assert_eq!(write(0x0a, [0, 0, 0]), Action::Done(Outcome::GOOD));
        assert_eq!(write(0x2a, [0, 0, 16]), invalid_field(1, Some(5)));
        let read = [0x3c, 0x0a, 0, 0, 0, 0, 1, 2, 3, 0];
        assert_eq!(run(&DISK, &read), Action::ReadEcho { allocation_length: 0x01_0203 });
        let read_16 = [0x9b, 0x0a, 0, 0, 0, 0, 0, 0, 0, 9, 1, 2, 3, 4, 7, 0];
        assert_eq!(run(&DISK, &read_16), Action::ReadEcho { allocation_length: 0x0102_0304 });
    }

    #[test]
    fn descriptors_tell_what_there_is() {
        assert_eq!(reply(&DISK, &[0x3c, 0x0b, 0, 0, 0, 0, 0, 0, 255, 0]), [1, 0, 0x10, 0]);
        assert_eq!(reply(&DISK, &[0x3c, 0x0b, 0, 0, 0, 0, 0, 0, 3, 0]), [1, 0, 0x10]);
        assert_eq!(reply(&DISK, &[0x9b, 0x0b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0]), [1, 0, 0x10, 0]);
        assert_eq!(reply(&DISK, &[0x3c, 0x03, 7, 0, 0, 0, 0, 0, 255, 0]), [0; 4]);
    }

    #[test]
    fn there_is_no_microcode_and_no_other_buffer() {
        for mode in 0..32u8 {
            if mode != 0x0a {
                assert_eq!(run(&DISK, &[0x3b, mode, 0, 0, 0, 0, 0, 0, 16, 0]), invalid_field(1, Some(4)), "{mode:02x}");
            }
            if ![0x03, 0x0a, 0x0b].contains(&mode) {
                assert_eq!(run(&DISK, &[0x3c, mode, 0, 0, 0, 0, 0, 0, 16, 0]), invalid_field(1, Some(4)), "{mode:02x}");
                let read_16 = [0x9b, mode, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0];
                assert_eq!(run(&DISK, &read_16), invalid_field(1, Some(4)), "{mode:02x}");
            }
        }
    }
}
