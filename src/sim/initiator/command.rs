//! What the initiator asks for: SCSI commands (SPC-4, SBC-3) and what is known of each while it runs.
//!
//! **May know:** the sibling modules.

use std::fmt;

use super::contents::{UNIT_BYTES, Version, fill};
use super::shared::{AREA_SECTORS, CHOIR_SECTORS, SHARED_SECTORS, Tally, bits_data, choir_data, note_data, tally_data};
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
    pub const ILLEGAL_REQUEST: u8 = 0x5;
    pub const UNIT_ATTENTION: u8 = 0x6;
    pub const DATA_PROTECT: u8 = 0x7;
    pub const COPY_ABORTED: u8 = 0xa;
    pub const ABORTED_COMMAND: u8 = 0xb;
    pub const MISCOMPARE: u8 = 0xe;
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
    /// Ranges that are to read as zeros.
    Unmap {
        unit: u64,
        count: u64,
    },
    /// One block over and over; the version is one of [`SAME`](super::contents::SAME), or 0 for zeros.
    WriteSame {
        unit: u64,
        count: u64,
        version: Version,
        unmap: bool,
        no_data: bool,
    },
    LbaStatus {
        unit: u64,
    },
    /// EXTENDED COPY within the unit, of sectors that all hold this version, to a place that they do not reach.
    Copy {
        from: u64,
        unit: u64,
        count: u64,
        version: Version,
    },
    /// Add one to the shared tally.
    CountUp {
        unit: u64,
        me: usize,
        from: Tally,
        note: u32,
    },
    /// Write the shared note.
    Note {
        unit: u64,
        note: u32,
    },
    /// Set shared bits.
    SetBits {
        unit: u64,
        bits: u64,
    },
    /// Write the last of what is shared atomically.
    Sing {
        unit: u64,
        value: u32,
    },
    /// Read what is shared.
    Look {
        unit: u64,
    },
}

impl Work {
    /// The sectors that it touches.
    pub fn range(self) -> Option<(u64, u64)> {
        match self {
            Work::Read { unit, count } | Work::Verify { unit, count } => Some((unit, count)),
            Work::Write { unit, count, .. } | Work::Unmap { unit, count } | Work::WriteSame { unit, count, .. } => {
                Some((unit, count))
            }
            // And what lies between.
            Work::Copy { from, unit, count, .. } => Some((from.min(unit), from.abs_diff(unit) + count)),
            Work::CountUp { unit, .. } => Some((unit, 2 * AREA_SECTORS)),
            Work::SetBits { unit, .. } | Work::Note { unit, .. } => Some((unit, AREA_SECTORS)),
            Work::Sing { unit, .. } => Some((unit, CHOIR_SECTORS)),
            Work::Look { unit } => Some((unit, SHARED_SECTORS)),
            // What is mapped may change while anything is written.
            Work::LbaStatus { .. } => Some((0, u64::MAX / 2)),
            Work::TestUnitReady | Work::Inquiry | Work::ReadCapacity | Work::SynchronizeCache { .. } => None,
        }
    }

    /// It is about what is shared.
    pub fn is_shared(self) -> bool {
        let is_change = matches!(self, Work::CountUp { .. } | Work::Note { .. } | Work::SetBits { .. });
        is_change || matches!(self, Work::Sing { .. } | Work::Look { .. })
    }

    /// The sectors that it changes, and what they hold afterwards.
    pub fn change(self) -> Option<(u64, u64, Version)> {
        match self {
            Work::Write { unit, count, version, .. }
            | Work::WriteSame { unit, count, version, .. }
            | Work::Copy { unit, count, version, .. } => Some((unit, count, version)),
            Work::Unmap { unit, count } => Some((unit, count, 0)),
            _ => None,
        }
    }

    /// Whether the two can run at once without one seeing the other half done.
    pub fn is_compatible(self, other: Work) -> bool {
        if self.is_shared() && other.is_shared() {
            return false;
        }
        let writes = |work: Work| work.change().is_some();
        match (self.range(), other.range()) {
            (Some((a, a_count)), Some((b, b_count))) if writes(self) || writes(other) => {
                a + a_count <= b || b + b_count <= a
            }
            _ => true,
        }
    }

    /// Bytes that the command descriptor block asks to read.
    pub fn read_bytes(self) -> usize {
        match self {
            Work::Read { count, .. } => count as usize * UNIT_BYTES,
            Work::Look { .. } => SHARED_SECTORS as usize * UNIT_BYTES,
            Work::Inquiry => INQUIRY_BYTES,
            Work::ReadCapacity => CAPACITY_BYTES,
            Work::LbaStatus { .. } => LBA_STATUS_BYTES,
            _ => 0,
        }
    }

    /// What goes to the target.
    pub fn data_out(self, block_bytes: usize, random: &mut Random) -> Vec<u8> {
        let mut data = Vec::new();
        match self {
            Work::Write { unit, count, version, .. } => fill(unit, count, version, &mut data),
            Work::WriteSame { version, no_data: false, .. } => {
                fill(0, (block_bytes / UNIT_BYTES) as u64, version, &mut data);
            }
            Work::Unmap { unit, count } => data = unmap_list(unit, count, block_bytes, random),
            Work::Copy { from, unit, count, .. } => data = copy_list(from, unit, count, block_bytes),
            Work::CountUp { me, from, note, .. } => data = tally_data(me, from, note),
            Work::Note { note, .. } => data = note_data(note),
            Work::SetBits { bits, .. } => data = bits_data(bits),
            Work::Sing { value, .. } => data = choir_data(value),
            _ => {}
        }
        data
    }

    pub fn is_write(self) -> bool {
        match self {
            Work::Write { .. } | Work::Unmap { .. } | Work::CountUp { .. } => true,
            Work::SetBits { .. } | Work::Note { .. } | Work::Sing { .. } | Work::Copy { .. } => true,
            Work::WriteSame { no_data, .. } => !no_data,
            _ => false,
        }
    }

    /// The command descriptor block; where several forms do the same, any of them.
    pub fn cdb(self, block_bytes: usize, data_out: &[u8], random: &mut Random) -> [u8; 16] {
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
            Work::Unmap { .. } => {
                let mut cdb = [0; 16];
                cdb[0] = 0x42;
                cdb[7..9].copy_from_slice(&(data_out.len() as u16).to_be_bytes());
                cdb
            }
            Work::Copy { .. } => {
                let mut cdb = [0; 16];
                cdb[0] = 0x83;
                cdb[10..14].copy_from_slice(&(data_out.len() as u32).to_be_bytes());
                cdb
            }
            Work::WriteSame { unit, count, unmap, no_data, .. } => {
                let (lba, len) = blocks(unit, count);
                let mut cdb = sixteen(0x93, lba, len);
                if random.below(2) == 0 && len <= 0xffff && !no_data {
                    cdb = [0; 16];
                    cdb[0] = 0x41;
                    cdb[2..6].copy_from_slice(&(lba as u32).to_be_bytes());
                    cdb[7..9].copy_from_slice(&(len as u16).to_be_bytes());
                }
                cdb[1] = u8::from(unmap) << 3 | u8::from(no_data);
                cdb
            }
            Work::CountUp { .. } | Work::Note { .. } | Work::SetBits { .. } => self.shared_cdb(blocks, random),
            Work::Sing { .. } | Work::Look { .. } => self.shared_cdb(blocks, random),
            Work::LbaStatus { unit } => {
                let (lba, _) = blocks(unit, 0);
                let mut cdb = sixteen(0x9e, lba, LBA_STATUS_BYTES as u32);
                cdb[1] = 0x12;
                cdb
            }
            Work::SynchronizeCache { .. } => {
                let mut cdb = [0; 16];
                cdb[0] = if random.below(2) == 0 { 0x35 } else { 0x91 };
                cdb
            }
        }
    }

    /// The command descriptor block of what is shared.
    fn shared_cdb(self, blocks: impl Fn(u64, u64) -> (u64, u32), random: &mut Random) -> [u8; 16] {
        let (unit, count) = self.range().expect("it is about sectors");
        let (lba, len) = blocks(unit, count);
        match self {
            Work::CountUp { .. } => sixteen(0x89, lba, len),
            Work::SetBits { .. } => sixteen(0x8b, lba, len),
            Work::Sing { .. } => {
                let mut cdb = sixteen(0x9c, lba, 0);
                cdb[12..14].copy_from_slice(&(len as u16).to_be_bytes());
                cdb
            }
            Work::Note { .. } => any_form([0x2a, 0xaa, 0x8a], lba, len, random),
            _ => any_form([0x28, 0xa8, 0x88], lba, len, random),
        }
    }
}

/// FUA in byte 1 of WRITE (10), (12) and (16).
const FORCE_UNIT_ACCESS: u8 = 0x08;

/// The standard INQUIRY data asked for.
pub(super) const INQUIRY_BYTES: usize = 36;
/// The READ CAPACITY (16) parameter data.
pub(super) const CAPACITY_BYTES: usize = 32;
/// The GET LBA STATUS parameter data asked for: sixteen descriptors.
pub(super) const LBA_STATUS_BYTES: usize = 8 + 16 * 16;

/// UNMAP's parameter list (SBC-4 clause 5.36.2) for a range, in a few pieces.
fn unmap_list(unit: u64, count: u64, block_bytes: usize, random: &mut Random) -> Vec<u8> {
    let units_per_block = (block_bytes / UNIT_BYTES) as u64;
    let (mut lba, mut left) = (unit / units_per_block, count / units_per_block);
    let mut descriptors = Vec::new();
    while left > 0 {
        let len = if random.below(2) == 0 { left } else { 1 + random.below(left) };
        descriptors.extend_from_slice(&lba.to_be_bytes());
        descriptors.extend_from_slice(&(len as u32).to_be_bytes());
        descriptors.extend_from_slice(&[0; 4]);
        (lba, left) = (lba + len, left - len);
    }
    let mut list = Vec::new();
    list.extend_from_slice(&(descriptors.len() as u16 + 6).to_be_bytes());
    list.extend_from_slice(&(descriptors.len() as u16).to_be_bytes());
    list.extend_from_slice(&[0; 4]);
    list.extend(descriptors);
    list
}

/// EXTENDED COPY(LID1)'s parameter list (SPC-4 clauses 6.4.3 and 6.4.6.5) without a list identifier: block to block
/// segments within the addressed unit, which needs no CSCD descriptor.
fn copy_list(from: u64, unit: u64, count: u64, block_bytes: usize) -> Vec<u8> {
    let units_per_block = (block_bytes / UNIT_BYTES) as u64;
    let (mut from, mut to, mut left) = (from / units_per_block, unit / units_per_block, count / units_per_block);
    let mut segments = Vec::new();
    while left > 0 {
        let blocks = left.min(0xffff);
        segments.extend_from_slice(&[0x02, 0, 0, 0x18, 0xff, 0xff, 0xff, 0xff, 0, 0]);
        segments.extend_from_slice(&(blocks as u16).to_be_bytes());
        segments.extend_from_slice(&from.to_be_bytes());
        segments.extend_from_slice(&to.to_be_bytes());
        (from, to, left) = (from + blocks, to + blocks, left - blocks);
    }
    let mut list = vec![0, 0x18, 0, 0, 0, 0, 0, 0];
    list.extend_from_slice(&(segments.len() as u32).to_be_bytes());
    list.extend_from_slice(&[0; 4]);
    list.extend(segments);
    list
}

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

/// Task attribute (RFC 7143 section 11.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attribute {
    Simple = 1,
    Ordered = 2,
    HeadOfQueue = 3,
}

/// A command that was sent and not answered.
pub(super) struct Task {
    /// Index among the initiator's logical units.
    pub unit: usize,
    pub work: Work,
    pub cmd_sn: u32,
    pub attribute: Attribute,
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
        let attribute = self.attribute;
        write!(
            f,
            "{attribute:?} {:?} on {}: {granted} granted, {} R2Ts open, {read} read",
            self.work, self.unit, self.r2ts_open
        )
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
