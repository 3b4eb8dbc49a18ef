//! UNMAP (SBC-4 clause 5.36): the command, and the ranges of its parameter list. The medium is not known here.

use super::cdb::Cdb;
use super::execute::Action;
use super::read_write::{Range, check_writable};
use super::sense::{Outcome, Sense, SenseCode};
use super::unit::Unit;
use crate::limits;
use crate::units::Lba;

/// Bytes before the block descriptors.
const HEADER_BYTES: usize = 8;
/// Bytes of a block descriptor.
const DESCRIPTOR_BYTES: usize = 16;

/// The most bytes of a parameter list that can name a range; the rest of a longer one is never looked at.
pub const LIST_BYTES_MAX: usize = HEADER_BYTES + (limits::UNMAP_DESCRIPTORS_MAX + 1) * DESCRIPTOR_BYTES;

pub(super) fn unmap(cdb: Cdb<'_>, unit: &Unit) -> Action {
    if let Err(sense) = check_writable(unit) {
        return sense.into();
    }
    match cdb.be16(7) {
        0 => Action::Done(Outcome::GOOD),
        list_bytes if usize::from(list_bytes) < HEADER_BYTES => {
            Sense::new(SenseCode::PARAMETER_LIST_LENGTH_ERROR).into()
        }
        list_bytes => Action::Unmap { list_bytes },
    }
}

/// The ranges of a parameter list, each with at least one block, in the list's order; they may overlap. `list` is
/// Data-Out, all of it or its first [`LIST_BYTES_MAX`] bytes. Everything is checked before the first range is given:
/// each lies on the unit, and there are at most [`limits::UNMAP_DESCRIPTORS_MAX`] with together at most
/// [`Unit::unmap_blocks_max`] blocks.
///
/// A descriptor that is not there in full, by any of the three lengths that say how long the list is, is none.
pub fn parse<'a>(list: &'a [u8], unit: &Unit) -> Result<Ranges<'a>, Sense> {
    if list.len() < HEADER_BYTES {
        return Err(Sense::new(SenseCode::PARAMETER_LIST_LENGTH_ERROR));
    }
    let length = |offset: usize| usize::from(u16::from_be_bytes([list[offset], list[offset + 1]]));
    // UNMAP DATA LENGTH counts what follows it; UNMAP BLOCK DESCRIPTOR DATA LENGTH the descriptors.
    let bytes = length(2).min((length(0) + 2).saturating_sub(HEADER_BYTES)).min(list.len() - HEADER_BYTES);
    let count = bytes / DESCRIPTOR_BYTES;
    if count > limits::UNMAP_DESCRIPTORS_MAX {
        return Err(Sense::invalid_field_in_list(2, None));
    }
    let descriptors = &list[HEADER_BYTES..HEADER_BYTES + count * DESCRIPTOR_BYTES];
    let mut blocks_left = unit.unmap_blocks_max();
    for (index, descriptor) in descriptors.chunks_exact(DESCRIPTOR_BYTES).enumerate() {
        let (Lba(lba), blocks) = range(descriptor);
        // No blocks may be named right at the end of the unit.
        if blocks > 0 || lba != unit.capacity_blocks() {
            Range { lba, blocks, length_byte: 0 }.check_addresses(unit)?;
        }
        let Some(left) = blocks_left.checked_sub(blocks) else {
            let byte = HEADER_BYTES + index * DESCRIPTOR_BYTES + 8;
            return Err(Sense::invalid_field_in_list(byte as u16, None));
        };
        blocks_left = left;
    }
    Ok(Ranges { descriptors })
}

/// UNMAP LOGICAL BLOCK ADDRESS and NUMBER OF LOGICAL BLOCKS of a descriptor.
fn range(descriptor: &[u8]) -> (Lba, u32) {
    let mut lba = [0; 8];
    lba.copy_from_slice(&descriptor[..8]);
    let mut blocks = [0; 4];
    blocks.copy_from_slice(&descriptor[8..12]);
    (Lba(u64::from_be_bytes(lba)), u32::from_be_bytes(blocks))
}

/// What [`parse`] found: the first block and the number of blocks of each range. Cheap to make again at any time, so
/// that a task need keep no more than the list and how many ranges are done.
#[derive(Clone, Debug)]
pub struct Ranges<'a> {
    descriptors: &'a [u8],
}

impl Iterator for Ranges<'_> {
    type Item = (Lba, u32);

    fn next(&mut self) -> Option<(Lba, u32)> {
        while let Some((descriptor, rest)) = self.descriptors.split_at_checked(DESCRIPTOR_BYTES) {
            self.descriptors = rest;
            let (lba, blocks) = range(descriptor);
            if blocks > 0 {
                return Some((lba, blocks));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::UnitConfig;
    use crate::scsi::fixture::{DISK, THIN, invalid_field, refused, run, unit};

    fn list(ranges: &[(u64, u32)]) -> Vec<u8> {
        let bytes = ranges.len() * 16;
        let mut list = Vec::new();
        list.extend((bytes as u16 + 6).to_be_bytes());
        list.extend((bytes as u16).to_be_bytes());
        list.extend([0; 4]);
        for (lba, blocks) in ranges {
            list.extend(lba.to_be_bytes());
            list.extend(blocks.to_be_bytes());
            list.extend([0; 4]);
        }
        list
    }

    fn parsed(list: &[u8]) -> Result<Vec<(u64, u32)>, Sense> {
        parse(list, &unit(&THIN)).map(|ranges| ranges.map(|(lba, blocks)| (lba.0, blocks)).collect())
    }

    #[test]
    fn the_command_asks_for_its_list() {
        assert_eq!(run(&THIN, &[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0]), Action::Unmap { list_bytes: 24 });
        assert_eq!(run(&THIN, &[0x42, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0]), Action::Unmap { list_bytes: 65_535 });
        assert_eq!(run(&THIN, &[0x42]), Action::Done(Outcome::GOOD), "no list, nothing to do");
        for bytes in 1..8 {
            let action = run(&THIN, &[0x42, 0, 0, 0, 0, 0, 0, 0, bytes, 0]);
            assert_eq!(action, refused(SenseCode::PARAMETER_LIST_LENGTH_ERROR));
        }
        assert_eq!(run(&THIN, &[0x42, 1, 0, 0, 0, 0, 0, 0, 24, 0]), invalid_field(1, Some(0)), "ANCHOR");
        assert_eq!(run(&THIN, &[0x42, 0, 0, 0, 0, 0, 1, 0, 24, 0]), invalid_field(6, Some(0)), "GROUP NUMBER");
        let read_only = UnitConfig { read_only: true, ..THIN };
        assert_eq!(run(&read_only, &[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0]), refused(SenseCode::WRITE_PROTECTED));
    }

    #[test]
    fn a_unit_that_is_not_thin_has_no_such_command() {
        let action = run(&DISK, &[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0]);
        assert_eq!(action, refused(SenseCode::INVALID_COMMAND_OPERATION_CODE));
        // Not even to say that its CDB is wrong.
        assert_eq!(run(&DISK, &[0x42, 1]), refused(SenseCode::INVALID_COMMAND_OPERATION_CODE));
    }

    #[test]
    fn ranges_come_in_the_order_of_the_list_without_empty_ones() {
        let ranges = [(5, 3), (0, 0), (0x13f_ffff, 1), (4, 2), (7, 0)];
        assert_eq!(parsed(&list(&ranges)), Ok(vec![(5, 3), (0x13f_ffff, 1), (4, 2)]));
        assert_eq!(parsed(&list(&[])), Ok(vec![]));
    }

    #[test]
    fn a_descriptor_that_is_not_there_in_full_is_none() {
        let whole = list(&[(1, 1), (2, 2)]);
        assert_eq!(parsed(&whole[..39]), Ok(vec![(1, 1)]), "cut by PARAMETER LIST LENGTH");
        assert_eq!(parsed(&whole[..8]), Ok(vec![]));
        let mut short = whole.clone();
        short[3] = 31;
        assert_eq!(parsed(&short), Ok(vec![(1, 1)]), "not a multiple of 16");
        short[3] = 0;
        assert_eq!(parsed(&short), Ok(vec![]), "no descriptors");
        let mut short = whole;
        short[1] = 37;
        assert_eq!(parsed(&short), Ok(vec![(1, 1)]), "cut by UNMAP DATA LENGTH");
        short[1] = 0;
        assert_eq!(parsed(&short), Ok(vec![]));
        assert_eq!(parsed(&short[..7]), Err(Sense::new(SenseCode::PARAMETER_LIST_LENGTH_ERROR)));
    }

    #[test]
    fn every_range_lies_on_the_unit() {
        let out_of_range = |lba| Sense::new(SenseCode::LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE).with_information(lba);
        assert_eq!(parsed(&list(&[(0, 1), (0x13f_ffff, 2)])), Err(out_of_range(0x140_0000)));
        assert_eq!(parsed(&list(&[(0x140_0000, 0)])), Ok(vec![]), "no blocks at the end");
        assert_eq!(parsed(&list(&[(0x140_0001, 0)])), Err(out_of_range(0x140_0001)));
        assert_eq!(parsed(&list(&[(0x140_0000, 1)])), Err(out_of_range(0x140_0000)));
        assert_eq!(parsed(&list(&[(u64::MAX, u32::MAX)])), Err(out_of_range(u64::MAX)));
    }

    #[test]
    fn the_maxima_of_the_block_limits_page_hold() {
        let most = 1 << 20;
        assert_eq!(parsed(&list(&[(0, most - 1), (9, 1)])), Ok(vec![(0, most - 1), (9, 1)]));
        assert_eq!(parsed(&list(&[(0, most - 1), (9, 2)])), Err(Sense::invalid_field_in_list(8 + 16 + 8, None)));
        assert_eq!(parsed(&list(&[(0, most), (0, most), (0, most)])), Err(Sense::invalid_field_in_list(32, None)));
        assert_eq!(parsed(&list(&[(3, 1); 256])).map(|ranges| ranges.len()), Ok(256));
        let long = list(&[(3, 1); 257]);
        assert_eq!(parsed(&long), Err(Sense::invalid_field_in_list(2, None)));
        assert_eq!(long.len(), LIST_BYTES_MAX);
        assert_eq!(parsed(&list(&[(3, 1); 400])[..LIST_BYTES_MAX]), Err(Sense::invalid_field_in_list(2, None)));
    }
}
