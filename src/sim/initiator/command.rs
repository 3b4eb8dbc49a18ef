//! What the initiator asks for: SCSI commands (SPC-4, SBC-3) and what is known of each while it runs.
//!
//! **May know:** the sibling modules.

use std::fmt;

use super::contents::{UNIT_BYTES, Version};
use crate::sim::Random;

/// SCSI statuses (SAM-5 clause 5.3.1).
pub(super) mod status {
    pub const GOOD: u8 = 0x00;
    pub const CHECK_CONDITION: u8 = 0x02;
    pub const BUSY: u8 = 0x08;
    pub const TASK_SET_FULL: u8 = 0x28;
    pub const TASK_ABORTED: u8 = 0x40;
}

/// Sense keys (SPC-4 clause 4.5.6).
pub(super) mod sense_key {
    pub const MEDIUM_ERROR: u8 = 0x3;
    pub const HARDWARE_ERROR: u8 = 0x4;
    pub const UNIT_ATTENTION: u8 = 0x6;
    pub const DATA_PROTECT: u8 = 0x7;
    pub const ABORTED_COMMAND: u8 = 0xb;
}

/// What a command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    TestUnitReady,
    Inquiry,
    ReadCapacity,
    Read {
        unit: u64,
        count: u64,
    },
    Write {
        unit: u64,
        count: u64,
        version: Version,
        through: bool,
    },
    /// Covers what was known at this point of the contents' order.
    SynchronizeCache {
        order: u64,
    },
    Verify {
        unit: u64,
        count: u64,
    },
}

impl Work {
    /// The sectors that it touches.
    pub fn range(self) -> Option<(u64, u64)> {
        match self {
            Work::Read { unit, count } | Work::Write { unit, count, .. } | Work::Verify { unit, count } => {
                Some((unit, count))
            }
            Work::TestUnitReady | Work::Inquiry | Work::ReadCapacity | Work::SynchronizeCache { .. } => None,
        }
    }

    /// Whether the two can run at once without one seeing the other half done.
    pub fn is_compatible(self, other: Work) -> bool {
        let writes = |work| matches!(work, Work::Write { .. });
        match (self.range(), other.range()) {
            (Some((a, a_count)), Some((b, b_count))) if writes(self) || writes(other) => {
                a + a_count <= b || b + b_count <= a
            }
            _ => true,
        }
    }

    /// Bytes that the command descriptor block asks to move.
    pub fn len_bytes(self) -> usize {
        match self {
            Work::Read { count, .. } | Work::Write { count, .. } => count as usize * UNIT_BYTES,
            Work::Inquiry => INQUIRY_BYTES,
            Work::ReadCapacity => CAPACITY_BYTES,
            Work::TestUnitReady | Work::SynchronizeCache { .. } | Work::Verify { .. } => 0,
        }
    }

    pub fn is_write(self) -> bool {
        matches!(self, Work::Write { .. })
    }

    /// The command descriptor block; where several forms do the same, any of them.
    pub fn cdb(self, block_bytes: usize, random: &mut Random) -> [u8; 16] {
        let blocks = |unit: u64, count: u64| {
            let units_per_block = (block_bytes / UNIT_BYTES) as u64;
            (unit / units_per_block, (count / units_per_block) as u32)
        };
        match self {
            Work::TestUnitReady => [0; 16],
            Work::Inquiry => six(0x12, INQUIRY_BYTES as u8),
            Work::ReadCapacity => {
                let mut cdb = sixteen(0x9e, 0, CAPACITY_BYTES as u32);
                cdb[1] = 0x10;
                cdb
            }
            Work::Read { unit, count } => {
                let (lba, len) = blocks(unit, count);
                any_form([0x28, 0xa8, 0x88], lba, len, random)
            }
            Work::Write { unit, count, through, .. } => {
                let (lba, len) = blocks(unit, count);
                let mut cdb = any_form([0x2a, 0xaa, 0x8a], lba, len, random);
                cdb[1] = if through { FORCE_UNIT_ACCESS } else { 0 };
                cdb
            }
            Work::Verify { unit, count } => {
                let (lba, len) = blocks(unit, count);
                any_form([0x2f, 0xaf, 0x8f], lba, len, random)
            }
            Work::SynchronizeCache { .. } => {
                let mut cdb = [0; 16];
                cdb[0] = if random.below(2) == 0 { 0x35 } else { 0x91 };
                cdb
            }
        }
    }
}

/// FUA in byte 1 of WRITE (10), (12) and (16).
const FORCE_UNIT_ACCESS: u8 = 0x08;

/// The standard INQUIRY data asked for.
pub(super) const INQUIRY_BYTES: usize = 36;
/// The READ CAPACITY (16) parameter data.
pub(super) const CAPACITY_BYTES: usize = 32;

fn six(opcode: u8, len: u8) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = opcode;
    cdb[4] = len;
    cdb
}

fn sixteen(opcode: u8, lba: u64, len: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = opcode;
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&len.to_be_bytes());
    cdb
}

/// The 10-, 12- or 16-byte form.
fn any_form(opcodes: [u8; 3], lba: u64, len: u32, random: &mut Random) -> [u8; 16] {
    let form = random.index(3);
    let fits = lba <= u64::from(u32::MAX);
    let mut cdb = [0; 16];
    cdb[0] = opcodes[form];
    match form {
        0 if fits && len <= 0xffff => {
            cdb[2..6].copy_from_slice(&(lba as u32).to_be_bytes());
            cdb[7..9].copy_from_slice(&(len as u16).to_be_bytes());
            cdb
        }
        1 if fits => {
            cdb[2..6].copy_from_slice(&(lba as u32).to_be_bytes());
            cdb[6..10].copy_from_slice(&len.to_be_bytes());
            cdb
        }
        _ => sixteen(opcodes[2], lba, len),
    }
}

/// A command that was sent and not answered.
pub(super) struct Task {
    /// Index among the initiator's logical units.
    pub unit: usize,
    pub work: Work,
    pub cmd_sn: u32,
    /// Bytes that the command announced (Expected Data Transfer Length).
    pub expected_bytes: usize,
    /// What it writes.
    pub data_out: Vec<u8>,
    /// How far the target has asked, or been given unasked, for the data.
    pub granted: usize,
    /// R2Ts whose data is not all sent.
    pub r2ts_open: u32,
    pub r2t_sn_next: u32,
    /// What it read so far.
    pub data_in: Vec<u8>,
    pub data_sn_next: u32,
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (granted, read) = (self.granted, self.data_in.len());
        write!(f, "{:?} on {}: {granted} granted, {} R2Ts open, {read} read", self.work, self.unit, self.r2ts_open)
    }
}

/// Data of one task still to be sent: unasked, or asked for by an R2T.
#[derive(Clone, Copy, Debug)]
pub(super) struct Burst {
    pub task_tag: u32,
    pub target_transfer_tag: u32,
    /// As the R2T gave it; reserved (zero) in unasked data.
    pub lun: [u8; 8],
    pub next: usize,
    pub end: usize,
    pub data_sn: u32,
}
