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
        Range { lba, blocks, length_byte: 0 }.check_addresses(unit)?;
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
