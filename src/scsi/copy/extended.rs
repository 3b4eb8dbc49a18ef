//! Parameter lists of EXTENDED COPY (SPC-4 clauses 5.17.7, 6.4.3 to 6.4.6): read strictly, and only what other targets
//! offer too. CSCD descriptors name a unit by a designator of its page 83h (E4h); segments copy from blocks to blocks,
//! in blocks (02h) or in bytes (0Ah), or ask whether a unit can be reached (07h).

use super::{be16, be32, be64, first_nonzero};
use crate::limits::{COPY_CSCDS_MAX, COPY_DESCRIPTORS_BYTES_MAX, COPY_SEGMENT_BYTES_MAX, COPY_SEGMENTS_MAX};
use crate::scsi::sense::{Sense, SenseCode};
use crate::scsi::unit::Unit;

/// Descriptor type codes that are served, ascending.
pub(super) const DESCRIPTOR_TYPES: [u8; 4] = [BLOCKS_TO_BLOCKS, VERIFY_CSCD, BYTES_TO_BYTES, IDENTIFICATION_DESCRIPTOR];

const BLOCKS_TO_BLOCKS: u8 = 0x02;
const VERIFY_CSCD: u8 = 0x07;
const BYTES_TO_BYTES: u8 = 0x0a;
pub(super) const IDENTIFICATION_DESCRIPTOR: u8 = 0xe4;

/// Bytes of a CSCD descriptor.
const CSCD_BYTES: usize = 32;
/// Where a designator begins in it, and its greatest length.
const DESIGNATOR_AT: usize = 8;
const DESIGNATOR_BYTES_MAX: usize = 20;

/// CSCD ID of the unit that the command was sent to.
pub(super) const CSCD_ADDRESSED: u16 = 0xffff;

const LID1_HEADER_BYTES: usize = 16;
const LID4_HEADER_BYTES: usize = 48;

/// LIST ID USAGE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListIdUsage {
    /// 00b: results are kept for whoever asks.
    Hold,
    /// 10b: they need not be.
    Discard,
    /// 11b: the copy has no list identifier.
    None,
}

/// A parameter list whose structure has been checked.
#[derive(Clone, Copy, Debug)]
pub struct ExtendedCopy<'a> {
    /// LIST IDENTIFIER.
    pub list_identifier: u32,
    /// LIST ID USAGE.
    pub usage: ListIdUsage,
    /// IMMED: answer as soon as the list has been checked.
    pub immed: bool,
    list: &'a [u8],
    cscds_at: usize,
    cscd_count: u16,
    segments_at: usize,
    segments_end: usize,
}

/// A unit that a segment names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cscd<'a> {
    /// The one that the command was sent to.
    Addressed,
    /// One by a designator.
    Designated {
        /// CODE SET.
        code_set: u8,
        /// ASSOCIATION and DESIGNATOR TYPE, as in page 83h.
        association_type: u8,
        /// DESIGNATOR.
        designator: &'a [u8],
        /// DISK BLOCK LENGTH; zero: not said.
        block_length: u32,
        /// Where its descriptor is in the parameter list.
        at: u16,
    },
}

/// A segment descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Counted from zero.
    pub number: u16,
    /// Where it is in the parameter list.
    pub at: u16,
    /// What it asks for.
    pub kind: SegmentKind,
}

/// What a segment asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentKind {
    /// Copy.
    Copy {
        /// CSCD ID of the source.
        source: u16,
        /// CSCD ID of the destination.
        destination: u16,
        /// How much.
        length: Length,
        /// SOURCE BLOCK DEVICE LOGICAL BLOCK ADDRESS.
        source_lba: u64,
        /// DESTINATION BLOCK DEVICE LOGICAL BLOCK ADDRESS.
        destination_lba: u64,
        /// Bytes into the source's first block.
        source_offset: u16,
        /// Bytes into the destination's first block.
        destination_offset: u16,
    },
    /// Find out whether a unit is there.
    Verify {
        /// Its CSCD ID.
        cscd: u16,
        /// TUR: and ready.
        test_unit_ready: bool,
    },
}

/// The unit in which a segment's length is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// Blocks of the source.
    SourceBlocks(u16),
    /// DC: blocks of the destination.
    DestinationBlocks(u16),
    /// Bytes.
    Bytes(u32),
}

/// Where a copying segment lies, in bytes of both disks. The ranges are on the disks, and whole blocks of both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// First byte of the source.
    pub source_bytes: u64,
    /// First byte of the destination.
    pub destination_bytes: u64,
    /// Length in bytes; it may be none.
    pub len_bytes: u64,
}

impl<'a> ExtendedCopy<'a> {
    /// Check the structure of a parameter list of EXTENDED COPY(LID1).
    pub fn parse_lid1(list: &'a [u8]) -> Result<Self, Sense> {
        if list.len() < LID1_HEADER_BYTES {
            return Err(list_length());
        }
        let flags = Flags { usage: usage_of(list[1])?, immed: false };
        if let Some(at) = first_nonzero(list, 4..8) {
            return Err(Sense::invalid_field_in_list(at as u16, None));
        }
        let lengths = Lengths { cscds: u32::from(be16(list, 2)), segments: be32(list, 8), inline: be32(list, 12) };
        Self::parse(list, LID1_HEADER_BYTES, u32::from(list[0]), 0, flags, &lengths)
    }

    /// Check the structure of a parameter list of EXTENDED COPY(LID4).
    pub fn parse_lid4(list: &'a [u8]) -> Result<Self, Sense> {
        const FORMAT: u8 = 0x01;
        const HEADER_CSCD_BYTES: u16 = 0x20;
        const HEADER_CSCD_TYPE: u8 = 0xff;
        const G_SENSE_IMMED: u8 = 0x03;
        if list.len() < LID4_HEADER_BYTES {
            return Err(list_length());
        }
        let invalid = |at: usize| Err(Sense::invalid_field_in_list(at as u16, None));
        if list[0] != FORMAT {
            return invalid(0);
        }
        let usage = usage_of(list[1])?;
        if be16(list, 2) != HEADER_CSCD_BYTES {
            return invalid(2);
        }
        if list[16] != HEADER_CSCD_TYPE {
            return invalid(16);
        }
        let reserved = [4..15, 17..20, 24..42].into_iter().find_map(|range| first_nonzero(list, range));
        if let Some(at) = reserved {
            return invalid(at);
        }
        if list[15] & !G_SENSE_IMMED != 0 {
            return invalid(15);
        }
        let flags = Flags { usage, immed: list[15] & 1 != 0 };
        let lengths = Lengths {
            cscds: u32::from(be16(list, 42)),
            segments: u32::from(be16(list, 44)),
            inline: u32::from(be16(list, 46)),
        };
        Self::parse(list, LID4_HEADER_BYTES, be32(list, 20), 20, flags, &lengths)
    }

    fn parse(
        list: &'a [u8],
        header_bytes: usize,
        list_identifier: u32,
        list_identifier_at: u16,
        flags: Flags,
        lengths: &Lengths,
    ) -> Result<Self, Sense> {
        if flags.usage == ListIdUsage::None && list_identifier != 0 {
            return Err(Sense::invalid_field_in_list(list_identifier_at, None));
        }
        if lengths.inline > 0 {
            return Err(Sense::new(SenseCode::INLINE_DATA_LENGTH_EXCEEDED));
        }
        let cscd_bytes = lengths.cscds as usize;
        let too_long = lengths.cscds.saturating_add(lengths.segments) > COPY_DESCRIPTORS_BYTES_MAX;
        if too_long || !cscd_bytes.is_multiple_of(CSCD_BYTES) {
            return Err(list_length());
        }
        let present = list.len() - header_bytes;
        if cscd_bytes > present {
            return Err(list_length());
        }
        if cscd_bytes / CSCD_BYTES > usize::from(COPY_CSCDS_MAX) {
            return Err(Sense::new(SenseCode::TOO_MANY_TARGET_DESCRIPTORS));
        }
        let segments_at = header_bytes + cscd_bytes;
        let segment_bytes = lengths.segments as usize;
        let copy = Self {
            list_identifier,
            usage: flags.usage,
            immed: flags.immed,
            list,
            cscds_at: header_bytes,
            cscd_count: (cscd_bytes / CSCD_BYTES) as u16,
            segments_at,
            segments_end: segments_at.saturating_add(segment_bytes),
        };
        copy.check_cscds()?;
        copy.check_segments()?;
        if segment_bytes > present - cscd_bytes { Err(list_length()) } else { Ok(copy) }
    }

    fn check_cscds(&self) -> Result<(), Sense> {
        // LU ID TYPE, of which SPC-4 has no values left, is not looked at.
        for index in 0..self.cscd_count {
            let at = self.cscds_at + usize::from(index) * CSCD_BYTES;
            let descriptor = &self.list[at..at + CSCD_BYTES];
            if descriptor[0] != IDENTIFICATION_DESCRIPTOR {
                return Err(Sense::new(SenseCode::UNSUPPORTED_TARGET_DESCRIPTOR_TYPE_CODE));
            }
            if usize::from(descriptor[7]) > DESIGNATOR_BYTES_MAX {
                return Err(Sense::invalid_field_in_list((at + 7) as u16, None));
            }
        }
        Ok(())
    }

    /// Every segment descriptor is of a known type and length, and there in full.
    fn check_segments(&self) -> Result<(), Sense> {
        let (mut at, mut count) = (self.segments_at, 0u16);
        while at < self.segments_end {
            let Some(&code) = self.list.get(at) else { return Err(list_length()) };
            if count == COPY_SEGMENTS_MAX {
                return Err(Sense::new(SenseCode::TOO_MANY_SEGMENT_DESCRIPTORS));
            }
            let Some(bytes) = segment_bytes(code) else {
                return Err(Sense::new(SenseCode::UNSUPPORTED_SEGMENT_DESCRIPTOR_TYPE_CODE));
            };
            if at + bytes > self.segments_end.min(self.list.len()) {
                return Err(list_length());
            }
            if usize::from(be16(self.list, at + 2)) != bytes - 4 {
                return Err(Sense::invalid_field_in_list((at + 2) as u16, None));
            }
            at += bytes;
            count += 1;
        }
        Ok(())
    }

    /// How many segments there are.
    pub fn segment_count(&self) -> u16 {
        self.segments().count() as u16
    }

    /// The segments, in order.
    pub fn segments(&self) -> impl Iterator<Item = Segment> + use<'a> {
        let (list, end) = (self.list, self.segments_end);
        let (mut at, mut number) = (self.segments_at, 0);
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let bytes = segment_bytes(list[at])?;
            let segment = Segment { number, at: at as u16, kind: kind_of(&list[at..at + bytes]) };
            at += bytes;
            number += 1;
            Some(segment)
        })
    }

    /// The unit that a CSCD ID stands for, as far as the list says. The errors end the copy at the segment that uses
    /// it.
    pub fn cscd(&self, id: u16) -> Result<Cscd<'a>, CopyFault> {
        const NUL: u8 = 0x20;
        const PERIPHERAL_DEVICE_TYPE: u8 = 0x1f;
        if id == CSCD_ADDRESSED {
            return Ok(Cscd::Addressed);
        }
        if id >= self.cscd_count {
            return Err(CopyFault::new(SenseCode::COPY_TARGET_DEVICE_NOT_REACHABLE));
        }
        let at = self.cscds_at + usize::from(id) * CSCD_BYTES;
        let list: &'a [u8] = self.list;
        let descriptor = &list[at..at + CSCD_BYTES];
        let at = at as u16;
        if descriptor[1] & NUL != 0 {
            return Err(CopyFault::new(SenseCode::COPY_TARGET_DEVICE_NOT_REACHABLE).at(at));
        }
        if descriptor[1] & PERIPHERAL_DEVICE_TYPE != 0 {
            return Err(CopyFault::new(SenseCode::INCORRECT_COPY_TARGET_DEVICE_TYPE).at(at));
        }
        Ok(Cscd::Designated {
            code_set: descriptor[4] & 0x0f,
            association_type: descriptor[5] & 0x3f,
            designator: &descriptor[DESIGNATOR_AT..DESIGNATOR_AT + usize::from(descriptor[7])],
            block_length: be32(descriptor, 28) & 0x00ff_ffff,
            at,
        })
    }
}

impl Cscd<'_> {
    /// Whether this names the unit. Only the designators of its page 83h that fit the descriptor's twenty bytes can:
    /// the NAA identifier.
    pub fn names(&self, unit: &Unit) -> bool {
        match *self {
            Self::Addressed => false,
            Self::Designated { code_set, association_type, designator, .. } => {
                const BINARY: u8 = 1;
                const NAA: u8 = 3;
                code_set == BINARY && association_type == NAA && *designator == unit.naa_identifier()
            }
        }
    }

    /// The block length that the initiator believes in is the unit's.
    pub fn check_block_length(&self, unit: &Unit) -> Result<(), Sense> {
        match *self {
            Self::Designated { block_length, at, .. }
                if block_length != 0 && block_length != unit.block_length().bytes() =>
            {
                Err(Sense::invalid_field_in_list(at + 29, None))
            }
            _ => Ok(()),
        }
    }

    /// No such unit.
    pub fn not_reachable(&self) -> CopyFault {
        let fault = CopyFault::new(SenseCode::COPY_TARGET_DEVICE_NOT_REACHABLE);
        match *self {
            Self::Designated { at, .. } => fault.at(at),
            Self::Addressed => fault,
        }
    }
}

impl SegmentKind {
    /// Where a copying segment lies on these two units; `at` is where its descriptor is in the list.
    pub fn placement(&self, at: u16, source: &Unit, destination: &Unit) -> Result<Placement, CopyFault> {
        let Self::Copy { length, source_lba, destination_lba, source_offset, destination_offset, .. } = *self else {
            return Ok(Placement { source_bytes: 0, destination_bytes: 0, len_bytes: 0 });
        };
        let (from, to) = (source.block_length(), destination.block_length());
        let len_bytes = match length {
            Length::SourceBlocks(blocks) => u64::from(blocks) << from.shift(),
            Length::DestinationBlocks(blocks) => u64::from(blocks) << to.shift(),
            Length::Bytes(bytes) => u64::from(bytes),
        };
        if len_bytes > u64::from(COPY_SEGMENT_BYTES_MAX) {
            return Err(CopyFault::new(SenseCode::INVALID_FIELD_IN_PARAMETER_LIST).at(at + 8));
        }
        let whole = |bytes: u64, unit: &Unit| bytes.is_multiple_of(u64::from(unit.block_length().bytes()));
        let aligned = whole(u64::from(source_offset), source) && whole(u64::from(destination_offset), destination);
        if let Length::Bytes(_) = length
            && !aligned
        {
            return Err(CopyFault::new(SenseCode::COPY_SEGMENT_GRANULARITY_VIOLATION));
        }
        if !whole(len_bytes, source) || !whole(len_bytes, destination) {
            // No data is kept from one segment to the next, and none is made up.
            return Err(CopyFault::new(SenseCode::UNEXPECTED_INEXACT_SEGMENT));
        }
        let source_bytes = place(source, source_lba, source_offset, len_bytes, at + 12)?;
        let destination_bytes = place(destination, destination_lba, destination_offset, len_bytes, at + 20)?;
        Ok(Placement { source_bytes, destination_bytes, len_bytes })
    }
}

/// The first byte of a range that begins at a block and so many bytes, if it lies on the unit.
fn place(unit: &Unit, lba: u64, offset: u16, len_bytes: u64, field: u16) -> Result<u64, CopyFault> {
    let size_bytes = unit.capacity_blocks() << unit.block_length().shift();
    let outside = CopyFault::new(SenseCode::COPY_ENDED).at(field);
    if lba > unit.capacity_blocks() {
        return Err(outside);
    }
    let start = (lba << unit.block_length().shift()) + u64::from(offset);
    if start > size_bytes || len_bytes > size_bytes - start {
        return Err(outside);
    }
    Ok(start)
}

/// Why a copy ends at a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyFault {
    code: SenseCode,
    at: Option<u16>,
}

impl CopyFault {
    /// For this reason.
    pub const fn new(code: SenseCode) -> Self {
        Self { code, at: None }
    }

    /// The byte of the parameter list that is to blame.
    const fn at(self, at: u16) -> Self {
        Self { code: self.code, at: Some(at) }
    }

    /// The sense data: `residual` blocks of segment `number` have not been written, if some have been.
    pub fn sense(self, number: u16, residual: Option<u32>) -> Sense {
        match self.code {
            // A field that no segment could have had.
            SenseCode::INVALID_FIELD_IN_PARAMETER_LIST => {
                Sense::invalid_field_in_list(self.at.unwrap_or_default(), None)
            }
            code => Sense::new(code).with_segment(number, residual, self.at),
        }
    }
}

struct Flags {
    usage: ListIdUsage,
    immed: bool,
}

/// Bytes of the three parts of a list, as its header says.
struct Lengths {
    cscds: u32,
    segments: u32,
    inline: u32,
}

fn list_length() -> Sense {
    Sense::new(SenseCode::PARAMETER_LIST_LENGTH_ERROR)
}

/// LIST ID USAGE of the flags byte, which also holds STR and PRIORITY: both hints.
fn usage_of(flags: u8) -> Result<ListIdUsage, Sense> {
    const RESERVED: u8 = 0xc0;
    if flags & RESERVED != 0 {
        return Err(Sense::invalid_field_in_list(1, Some(7)));
    }
    match flags >> 3 & 3 {
        0 => Ok(ListIdUsage::Hold),
        2 => Ok(ListIdUsage::Discard),
        3 => Ok(ListIdUsage::None),
        _ => Err(Sense::invalid_field_in_list(1, Some(4))),
    }
}

/// Bytes of a segment descriptor of this type.
fn segment_bytes(code: u8) -> Option<usize> {
    match code {
        BLOCKS_TO_BLOCKS => Some(28),
        VERIFY_CSCD => Some(12),
        BYTES_TO_BYTES => Some(32),
        _ => None,
    }
}

/// What a descriptor of a known type, which is there in full, asks for.
fn kind_of(descriptor: &[u8]) -> SegmentKind {
    const DC: u8 = 0x02;
    let source = be16(descriptor, 4);
    if descriptor[0] == VERIFY_CSCD {
        return SegmentKind::Verify { cscd: source, test_unit_ready: descriptor[8] & 1 != 0 };
    }
    let in_bytes = descriptor[0] == BYTES_TO_BYTES;
    let length = match (in_bytes, descriptor[1] & DC != 0) {
        (true, _) => Length::Bytes(be32(descriptor, 8)),
        (false, false) => Length::SourceBlocks(be16(descriptor, 10)),
        (false, true) => Length::DestinationBlocks(be16(descriptor, 10)),
    };
    SegmentKind::Copy {
        source,
        destination: be16(descriptor, 6),
        length,
        source_lba: be64(descriptor, 12),
        destination_lba: be64(descriptor, 20),
        source_offset: if in_bytes { be16(descriptor, 28) } else { 0 },
        destination_offset: if in_bytes { be16(descriptor, 30) } else { 0 },
    }
}
