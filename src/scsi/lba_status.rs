//! GET LBA STATUS (SBC-4 clause 5.6): the command, and its reply made of what the medium says, run by run.
//!
//! On a unit that is not thin provisioned every block is mapped, and the medium is not asked.

use super::cdb::Cdb;
use super::execute::Action;
use super::parameter_list::ParameterList;
use super::read_write::Range;
use super::unit::Unit;
use crate::units::Lba;

/// Bytes before the descriptors.
const HEADER_BYTES: usize = 8;
/// Bytes of an LBA status descriptor.
const DESCRIPTOR_BYTES: usize = 16;
/// The most descriptors of one reply; the initiator asks again from where they end.
const DESCRIPTORS_MAX: usize = (LbaStatusReply::BYTES_MAX - HEADER_BYTES) / DESCRIPTOR_BYTES;
/// The most runs that one reply takes, so that a large unit in one state is not walked through in one command.
const RUNS_MAX: u32 = 4096;

/// PROVISIONING STATUS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Provisioning {
    /// The blocks have space on the medium, or it is not known that they have none.
    Mapped = 0,
    /// The blocks have no space of their own, and read as zeros.
    Deallocated = 1,
}

pub(super) fn get_lba_status_16(cdb: Cdb<'_>, unit: &Unit, out: &mut ParameterList<'_>) -> Action {
    let (lba, allocation_length) = (Lba(cdb.be64(2)), cdb.be32(10));
    if let Err(sense) = (Range { lba: lba.0, blocks: 0, length_byte: 10 }).check_addresses(unit) {
        return sense.into();
    }
    if unit.thin_provisioned() {
        return Action::GetLbaStatus { lba, allocation_length };
    }
    let mut reply = LbaStatusReply::new(unit, lba, allocation_length);
    let mut buffer = [0; LbaStatusReply::BYTES_MAX];
    while let Some(next) = reply.wants() {
        reply.push(&mut buffer, unit.capacity_blocks() - next.0, Provisioning::Mapped);
    }
    let len = reply.finish(&mut buffer);
    out.begin(allocation_length);
    out.push(&buffer[..len]);
    Action::DataIn
}

/// The reply under construction. It keeps no memory: the buffer of [`LbaStatusReply::BYTES_MAX`] bytes is the caller's,
/// and the same one at every call.
///
/// While [`wants`](Self::wants) names an address, ask the medium for the run there and [`push`](Self::push) it; then
/// [`finish`](Self::finish).
#[derive(Clone, Copy, Debug)]
pub struct LbaStatusReply {
    next: u64,
    capacity_blocks: u64,
    allocation_length: u32,
    runs_left: u32,
    /// A run had no place.
    full: bool,
    descriptors: usize,
    /// The state and the blocks of the last descriptor.
    last: Option<(Provisioning, u32)>,
}

impl LbaStatusReply {
    /// Bytes of the caller's buffer.
    pub const BYTES_MAX: usize = 4096;

    /// Nothing is known yet. `lba` and `allocation_length` are those of [`Action::GetLbaStatus`].
    pub fn new(unit: &Unit, lba: Lba, allocation_length: u32) -> Self {
        let capacity_blocks = unit.capacity_blocks();
        Self {
            next: lba.0,
            capacity_blocks,
            allocation_length,
            runs_left: RUNS_MAX,
            full: false,
            descriptors: 0,
            last: None,
        }
    }

    /// The block whose state is wanted next, `None` when the reply is complete or full.
    pub fn wants(&self) -> Option<Lba> {
        (self.next < self.capacity_blocks && self.runs_left > 0 && !self.full).then_some(Lba(self.next))
    }

    /// Another descriptor has room; one is always made, even if ALLOCATION LENGTH cuts it.
    fn has_room(&self) -> bool {
        let end = HEADER_BYTES + (self.descriptors + 1) * DESCRIPTOR_BYTES;
        self.descriptors == 0 || (self.descriptors < DESCRIPTORS_MAX && end <= self.allocation_length as usize)
    }

    /// The next `blocks` blocks (at least one) are in this state. Blocks beyond the unit's end do not count.
    pub fn push(&mut self, buffer: &mut [u8], blocks: u64, state: Provisioning) {
        assert!(blocks > 0, "a run of no blocks");
        self.runs_left = self.runs_left.saturating_sub(1);
        let mut blocks = blocks.min(self.capacity_blocks - self.next);
        while blocks > 0 {
            let (at, had) = match self.last {
                Some((last, had)) if last == state && had < u32::MAX => (self.descriptors - 1, had),
                _ if !self.has_room() => {
                    self.full = true;
                    return;
                }
                _ => {
                    self.descriptors += 1;
                    (self.descriptors - 1, 0)
                }
            };
            let added = u32::try_from(blocks).unwrap_or(u32::MAX).min(u32::MAX - had);
            let start = HEADER_BYTES + at * DESCRIPTOR_BYTES;
            let descriptor = &mut buffer[start..start + DESCRIPTOR_BYTES];
            if had == 0 {
                descriptor[..8].copy_from_slice(&self.next.to_be_bytes());
                descriptor[12..].copy_from_slice(&[state as u8, 0, 0, 0]);
            }
            descriptor[8..12].copy_from_slice(&(had + added).to_be_bytes());
            self.last = Some((state, had + added));
            self.next += u64::from(added);
            blocks -= u64::from(added);
        }
    }

    /// Complete the reply; the number of bytes of the buffer that are Data-In.
    pub fn finish(&self, buffer: &mut [u8]) -> usize {
        let bytes = HEADER_BYTES + self.descriptors * DESCRIPTOR_BYTES;
        let data_length = u32::try_from(bytes - 4).expect("at most a page");
        buffer[..4].copy_from_slice(&data_length.to_be_bytes());
        buffer[4..HEADER_BYTES].fill(0);
        bytes.min(self.allocation_length as usize)
    }
}
