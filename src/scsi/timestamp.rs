//! REPORT TIMESTAMP (SPC-5 clause 6.38): the host's clock. It is set there, so that there is no SET TIMESTAMP.

use super::cdb::Cdb;
use super::execute::Action;
use super::parameter_list::ParameterList;
use super::unit::Unit;

/// TIMESTAMP ORIGIN: set by other means than SET TIMESTAMP.
const SET_BY_OTHER_MEANS: u8 = 0b011;

pub(super) fn report_timestamp(cdb: Cdb<'_>, _unit: &Unit) -> Action {
    Action::ReportTimestamp { allocation_length: cdb.be32(6) }
}

/// Bytes of the longest reply.
pub const BYTES: usize = 12;

/// The Data-In of REPORT TIMESTAMP, written to `buffer`: its length, at most [`BYTES`]. `unix_ms` are the milliseconds
/// since 1970, of which 48 bits count.
pub fn report(unix_ms: u64, allocation_length: u32, buffer: &mut [u8; BYTES]) -> usize {
    let mut out = ParameterList::new(buffer);
    out.begin(allocation_length);
    out.push_u16(10);
    out.push(&[SET_BY_OTHER_MEANS, 0]);
    out.push(&unix_ms.to_be_bytes()[2..]);
    out.push_u16(0);
    out.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::fixture::{DISK, run};

    #[test]
    fn milliseconds_in_six_bytes() {
        let cdb = [0xa3, 0x0f, 0, 0, 0, 0, 0, 0, 0, 12];
        assert_eq!(run(&DISK, &cdb), Action::ReportTimestamp { allocation_length: 12 });
        let mut buffer = [0xee; 12];
        assert_eq!(report(0x0123_4567_89ab, 512, &mut buffer), 12);
        assert_eq!(buffer, [0, 10, 3, 0, 0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0, 0]);
        assert_eq!(report(1, 5, &mut buffer), 5);
    }
}
