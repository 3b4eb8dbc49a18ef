//! Parameter lists of POPULATE TOKEN (SBC-4 clause 5.12) and WRITE USING TOKEN (SBC-4 clause 5.59).

use super::token::{TOKEN_BYTES, TokenKind};
use super::{be16, be32, be64};
use crate::limits::{TOKEN_BYTES_MAX, TOKEN_RANGES_MAX, TOKEN_TIMEOUT_DEFAULT_S, TOKEN_TIMEOUT_MAX_S};
use crate::scsi::sense::{Sense, SenseCode};
use crate::scsi::unit::Unit;

/// Bytes of a block device range descriptor.
const RANGE_BYTES: usize = 16;

/// Where the range descriptors of POPULATE TOKEN begin, and the two bytes before them say how many bytes they are.
const POPULATE_HEADER_BYTES: usize = 16;

/// The same of WRITE USING TOKEN.
const WRITE_HEADER_BYTES: usize = 536;

/// Where the token stands in WRITE USING TOKEN.
const TOKEN_AT: usize = 16;

/// Block device range descriptors: each on the unit, no block in two of them.
#[derive(Clone, Copy, Debug)]
pub struct Ranges<'a> {
    descriptors: &'a [u8],
    shift: u32,
    blocks: u64,
}

impl<'a> Ranges<'a> {
    /// Check the range descriptors behind a header of `at` bytes.
    fn parse(list: &'a [u8], at: usize, unit: &Unit) -> Result<Self, Sense> {
        let length_at = at - 2;
        let bytes = usize::from(be16(list, length_at));
        if bytes < RANGE_BYTES {
            return Err(Sense::invalid_field_in_list(length_at as u16, None));
        }
        let count = bytes / RANGE_BYTES;
        if count > TOKEN_RANGES_MAX {
            return Err(Sense::new(SenseCode::TOO_MANY_SEGMENT_DESCRIPTORS));
        }
        // What the parameter list length cuts off is ignored.
        let count = count.min((list.len() - at) / RANGE_BYTES);
        let descriptors = &list[at..at + count * RANGE_BYTES];
        let mut ranges = Self { descriptors, shift: unit.block_length().shift(), blocks: 0 };
        for (index, descriptor) in descriptors.chunks_exact(RANGE_BYTES).enumerate() {
            let (lba, blocks) = (be64(descriptor, 0), u64::from(be32(descriptor, 8)));
            if blocks == 0 {
                continue;
            }
            let outside = |lba| Sense::new(SenseCode::LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE).with_information(lba);
            if lba >= unit.capacity_blocks() {
                return Err(outside(lba));
            }
            if blocks > unit.capacity_blocks() - lba {
                return Err(outside(unit.capacity_blocks()));
            }
            ranges.blocks += blocks;
            if ranges.blocks << ranges.shift > TOKEN_BYTES_MAX {
                return Err(Sense::invalid_field_in_list((at + index * RANGE_BYTES + 8) as u16, None));
            }
            let earlier = descriptors[..index * RANGE_BYTES].chunks_exact(RANGE_BYTES);
            let meets = |other: &[u8]| {
                let (other_lba, other_blocks) = (be64(other, 0), u64::from(be32(other, 8)));
                other_blocks > 0 && lba < other_lba + other_blocks && other_lba < lba + blocks
            };
            if earlier.into_iter().any(meets) {
                return Err(Sense::invalid_field_in_list((at + index * RANGE_BYTES) as u16, None));
            }
        }
        Ok(ranges)
    }

    /// Blocks of all ranges.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Bytes of all ranges.
    pub fn len_bytes(&self) -> u64 {
        self.blocks << self.shift
    }

    /// First byte and length in bytes of each range that is not empty, in the list's order.
    pub fn in_bytes(&self) -> impl Iterator<Item = (u64, u64)> + use<'a> {
        let shift = self.shift;
        let pairs = self.descriptors.chunks_exact(RANGE_BYTES);
        pairs
            .map(move |range| (be64(range, 0) << shift, u64::from(be32(range, 8)) << shift))
            .filter(|(_, len_bytes)| *len_bytes > 0)
    }
}

/// What POPULATE TOKEN asks for.
#[derive(Clone, Copy, Debug)]
pub struct PopulateToken<'a> {
    /// Seconds after which an idle token expires.
    pub timeout_s: u32,
    /// What the token stands for.
    pub ranges: Ranges<'a>,
}

impl<'a> PopulateToken<'a> {
    /// Read the parameter list.
    pub fn parse(list: &'a [u8], unit: &Unit) -> Result<Self, Sense> {
        const DATA_LENGTH_MIN: u16 = 0x1e;
        const RTV: u8 = 0x02;
        if list.len() < POPULATE_HEADER_BYTES {
            return Err(Sense::new(SenseCode::PARAMETER_LIST_LENGTH_ERROR));
        }
        let invalid = |at: u16| Err(Sense::invalid_field_in_list(at, None));
        if be16(list, 0) < DATA_LENGTH_MIN {
            return invalid(0);
        }
        let timeout_s = match be32(list, 4) {
            0 => TOKEN_TIMEOUT_DEFAULT_S,
            timeout_s if timeout_s > TOKEN_TIMEOUT_MAX_S => return invalid(4),
            timeout_s => timeout_s,
        };
        if list[2] & RTV != 0 && !TokenKind::can_be_created_as(be32(list, 8)) {
            return invalid(8);
        }
        Ok(Self { timeout_s, ranges: Ranges::parse(list, POPULATE_HEADER_BYTES, unit)? })
    }
}

/// What WRITE USING TOKEN asks for.
#[derive(Clone, Copy, Debug)]
pub struct WriteUsingToken<'a> {
    /// IMMED: answer as soon as the list has been checked.
    pub immed: bool,
    /// DEL_TKN: the token is good for nothing afterwards.
    pub delete: bool,
    /// Bytes of what the token stands for that are left out.
    pub offset_bytes: u64,
    /// The token.
    pub token: &'a [u8; TOKEN_BYTES],
    /// Where to write.
    pub ranges: Ranges<'a>,
}

impl<'a> WriteUsingToken<'a> {
    /// Read the parameter list.
    pub fn parse(list: &'a [u8], unit: &Unit) -> Result<Self, Sense> {
        const DATA_LENGTH_MIN: u16 = 0x226;
        const DEL_TKN: u8 = 0x02;
        let token = list.get(TOKEN_AT..TOKEN_AT + TOKEN_BYTES).and_then(<[u8]>::first_chunk);
        let Some(token) = token.filter(|_| list.len() >= WRITE_HEADER_BYTES) else {
            return Err(Sense::new(SenseCode::PARAMETER_LIST_LENGTH_ERROR));
        };
        if be16(list, 0) < DATA_LENGTH_MIN {
            return Err(Sense::invalid_field_in_list(0, None));
        }
        let shift = unit.block_length().shift();
        let offset = be64(list, 8);
        // More than any token stands for, and more than can be counted in bytes.
        if offset > TOKEN_BYTES_MAX >> shift {
            return Err(Sense::invalid_field_in_list(8, None));
        }
        Ok(Self {
            immed: list[2] & 1 != 0,
            delete: list[2] & DEL_TKN != 0,
            offset_bytes: offset << shift,
            token,
            ranges: Ranges::parse(list, WRITE_HEADER_BYTES, unit)?,
        })
    }

    /// The sense of an offset at or behind the token's end.
    pub fn offset_outside() -> Sense {
        Sense::invalid_field_in_list(8, None)
    }
}
