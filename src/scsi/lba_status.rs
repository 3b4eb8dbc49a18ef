//! GET LBA STATUS (SBC-4 clause 5.6): the command, and its reply made of what the medium says, run by run.
//!
//! On a unit that is not thin provisioned every block is mapped, and the medium is not asked. A REPORT TYPE that asks
//! for some blocks only is followed where the search for them ends in bounded work; otherwise the reply tells of all
//! blocks, and says by RTP that it does.

use super::cdb::Cdb;
use super::execute::Action;
use super::parameter_list::ParameterList;
use super::read_write::Range;
use super::sense::Sense;
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

/// REPORT TYPE: which blocks the reply is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportType {
    /// 0: all.
    All,
    /// 1 and 3: those that are not mapped; none is anchored here.
    Deallocated,
    /// 2: those that are mapped.
    Mapped,
    /// 4 and 10h: those that are anchored, or may have an unrecovered error. There are none.
    None,
}

impl ReportType {
    /// The one of a CDB; `None`: reserved.
    pub fn of(report_type: u8) -> Option<Self> {
        match report_type {
            0 => Some(Self::All),
            1 | 3 => Some(Self::Deallocated),
            2 => Some(Self::Mapped),
            4 | 0x10 => Some(Self::None),
            _ => None,
        }
    }

    /// The field, as it would be in a CDB.
    pub fn code(self) -> u8 {
        match self {
            Self::All => 0,
            Self::Mapped => 2,
            Self::Deallocated => 3,
            Self::None => 4,
        }
    }

    fn includes(self, state: Provisioning) -> bool {
        match self {
            Self::All => true,
            Self::Deallocated => state == Provisioning::Deallocated,
            Self::Mapped => state == Provisioning::Mapped,
            Self::None => false,
        }
    }
}

pub(super) fn get_lba_status_16(cdb: Cdb<'_>, unit: &Unit, out: &mut ParameterList<'_>) -> Action {
    let (lba, allocation_length) = (Lba(cdb.be64(2)), cdb.be32(10));
    let Some(report_type) = ReportType::of(cdb.byte(14)) else {
        return Sense::invalid_field_in_cdb(14, None).into();
    };
    if let Err(sense) = (Range { lba: lba.0, blocks: 0, length_byte: 10 }).check_addresses(unit) {
        return sense.into();
    }
    if unit.thin_provisioned() {
        return Action::GetLbaStatus { lba, allocation_length, report_type };
    }
    let mut reply = LbaStatusReply::new(unit, lba, allocation_length, report_type);
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
    report_type: ReportType,
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

    /// Nothing is known yet. `lba`, `allocation_length` and `report_type` are those of [`Action::GetLbaStatus`].
    pub fn new(unit: &Unit, lba: Lba, allocation_length: u32, report_type: ReportType) -> Self {
        let capacity_blocks = unit.capacity_blocks();
        Self {
            next: lba.0,
            capacity_blocks,
            allocation_length,
            report_type,
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
        if !self.report_type.includes(state) {
            self.next += blocks;
            self.last = None;
            return;
        }
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

    /// The search for blocks of the REPORT TYPE has not come to an end: what there is would not tell where to go on.
    /// Begin again with all blocks.
    pub fn is_cut_short(&self) -> bool {
        self.report_type != ReportType::All && !self.full && self.next < self.capacity_blocks
    }

    /// Complete the reply; the number of bytes of the buffer that are Data-In.
    pub fn finish(&self, buffer: &mut [u8]) -> usize {
        let bytes = HEADER_BYTES + self.descriptors * DESCRIPTOR_BYTES;
        let data_length = u32::try_from(bytes - 4).expect("at most a page");
        buffer[..4].copy_from_slice(&data_length.to_be_bytes());
        // COMPLETION CONDITION: the allocation length is met, the capacity is met, or nothing of that.
        let condition = match (self.full, self.next < self.capacity_blocks) {
            (true, _) => 1,
            (false, false) => 3,
            (false, true) => 0,
        };
        let follows_type = u8::from(self.report_type != ReportType::All);
        buffer[4..HEADER_BYTES].copy_from_slice(&[0, 0, 0, condition << 1 | follows_type]);
        bytes.min(self.allocation_length as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::fixture::{DISK, THIN, reply, run, unit};
    use crate::scsi::{Sense, SenseCode, UnitConfig};
    use Provisioning::{Deallocated, Mapped};

    fn cdb(lba: u64, allocation_length: u32) -> Vec<u8> {
        [&[0x9e, 0x12][..], &lba.to_be_bytes(), &allocation_length.to_be_bytes()].concat()
    }

    fn descriptor(lba: u64, blocks: u32, state: u8) -> Vec<u8> {
        [&lba.to_be_bytes()[..], &blocks.to_be_bytes(), &[state, 0, 0, 0]].concat()
    }

    /// The reply for a medium that says `run(lba)` for each address, and how often it was asked.
    fn made(
        config: &UnitConfig<'_>,
        lba: u64,
        allocation_length: u32,
        run: fn(u64) -> (u64, Provisioning),
    ) -> (Vec<u8>, u32) {
        made_of(config, lba, allocation_length, ReportType::All, run)
    }

    fn made_of(
        config: &UnitConfig<'_>,
        lba: u64,
        allocation_length: u32,
        report_type: ReportType,
        run: fn(u64) -> (u64, Provisioning),
    ) -> (Vec<u8>, u32) {
        let mut reply = LbaStatusReply::new(&unit(config), Lba(lba), allocation_length, report_type);
        let mut buffer = vec![0xee; LbaStatusReply::BYTES_MAX];
        let mut asked = 0;
        while let Some(lba) = reply.wants() {
            let (blocks, state) = run(lba.0);
            reply.push(&mut buffer, blocks, state);
            asked += 1;
        }
        let len = reply.finish(&mut buffer);
        (buffer[..len].to_vec(), asked)
    }

    #[test]
    fn a_thin_unit_asks_its_medium() {
        assert_eq!(
            run(&THIN, &cdb(7, 64)),
            Action::GetLbaStatus { lba: Lba(7), allocation_length: 64, report_type: ReportType::All }
        );
        let beyond = Sense::new(SenseCode::LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE).with_information(0x140_0000);
        assert_eq!(run(&THIN, &cdb(0x140_0000, 64)), beyond.into());
        assert_eq!(run(&DISK, &cdb(0x140_0000, 64)), beyond.into());
    }

    #[test]
    fn on_another_unit_every_block_is_mapped() {
        let expected = [vec![0, 0, 0, 20, 0, 0, 0, 3 << 1], descriptor(0x100, 0x13f_ff00, 0)].concat();
        assert_eq!(reply(&DISK, &cdb(0x100, 512)), expected);
        assert_eq!(reply(&DISK, &cdb(0x100, 10)), expected[..10], "cut at ALLOCATION LENGTH");
        let large = UnitConfig { capacity_blocks: (1 << 33) + 5, ..DISK };
        let data = reply(&large, &cdb(1, 512));
        let expected = [
            vec![0, 0, 0, 52, 0, 0, 0, 3 << 1],
            descriptor(1, u32::MAX, 0),
            descriptor(1 << 32, u32::MAX, 0),
            descriptor((1 << 33) - 1, 6, 0),
        ];
        assert_eq!(data, expected.concat());
    }

    #[test]
    fn runs_of_one_state_become_one_descriptor() {
        // Pieces of 4096 blocks; four mapped, then four not.
        let medium =
            |lba: u64| (4096 - lba % 4096, if (lba / 16_384).is_multiple_of(2) { Mapped } else { Deallocated });
        let (data, _) = made(&THIN, 100, 56, medium);
        let expected = [
            vec![0, 0, 0, 52, 0, 0, 0, 1 << 1],
            descriptor(100, 16_284, 0),
            descriptor(16_384, 16_384, 1),
            descriptor(32_768, 16_384, 0),
        ];
        assert_eq!(data, expected.concat());
        // The room for one descriptor still tells of the whole run.
        assert_eq!(
            made(&THIN, 100, 24, medium).0,
            [vec![0, 0, 0, 20, 0, 0, 0, 1 << 1], descriptor(100, 16_284, 0)].concat()
        );
        assert_eq!(made(&THIN, 100, 0, medium).0, [0u8; 0]);
    }

    #[test]
    fn a_report_type_asks_for_some_blocks_only() {
        let with_type = |report_type: u8| [&cdb(7, 64)[..], &[report_type, 0]].concat();
        for (report_type, expected) in
            [(1, ReportType::Deallocated), (2, ReportType::Mapped), (3, ReportType::Deallocated), (4, ReportType::None)]
        {
            let action = Action::GetLbaStatus { lba: Lba(7), allocation_length: 64, report_type: expected };
            assert_eq!(run(&THIN, &with_type(report_type)), action);
        }
        assert_eq!(run(&THIN, &with_type(5)), Sense::invalid_field_in_cdb(14, None).into());
        assert_eq!(reply(&DISK, &with_type(3)), [0, 0, 0, 4, 0, 0, 0, 3 << 1 | 1], "all are mapped");

        // Four pieces mapped, then four not, up to the end at 1400000h.
        let medium =
            |lba: u64| (4096 - lba % 4096, if (lba / 16_384).is_multiple_of(2) { Mapped } else { Deallocated });
        let (from, first) = (0x140_0000 - 32_768, 0x140_0000 - 16_384);
        let (data, _) = made_of(&THIN, from, 4096, ReportType::Deallocated, medium);
        assert_eq!(data, [vec![0, 0, 0, 20, 0, 0, 0, 3 << 1 | 1], descriptor(first, 16_384, 1)].concat());
        let (data, _) = made_of(&THIN, from - 32_768, 4096, ReportType::Mapped, medium);
        let two = [descriptor(from - 32_768, 16_384, 0), descriptor(from, 16_384, 0)].concat();
        assert_eq!(data, [vec![0, 0, 0, 36, 0, 0, 0, 3 << 1 | 1], two].concat());

        let mut reply = LbaStatusReply::new(&unit(&THIN), Lba(0), 4096, ReportType::Deallocated);
        let mut buffer = [0; LbaStatusReply::BYTES_MAX];
        while reply.wants().is_some() {
            reply.push(&mut buffer, 1, Mapped);
        }
        assert!(reply.is_cut_short(), "nothing was found in bounded work");
    }

    #[test]
    fn a_reply_ends_at_the_unit_at_its_buffer_and_at_a_bound_of_work() {
        let (data, asked) = made(&THIN, 0x13f_fff0, 4096, |_| (4096, Deallocated));
        assert_eq!((data.len(), asked), (24, 1));
        assert_eq!(data[8..], descriptor(0x13f_fff0, 16, 1));

        let alternating = |lba: u64| (1, if lba.is_multiple_of(2) { Mapped } else { Deallocated });
        let (data, asked) = made(&THIN, 0, u32::MAX, alternating);
        assert_eq!((data.len(), asked), (8 + 255 * 16, 256));

        let (data, asked) = made(&THIN, 0, 4096, |_| (1, Mapped));
        assert_eq!((asked, &data[8..]), (RUNS_MAX, &descriptor(0, RUNS_MAX, 0)[..]));
    }

    #[test]
    fn a_run_longer_than_a_descriptor_can_tell_takes_several() {
        let large = UnitConfig { capacity_blocks: 1 << 34, ..THIN };
        let (data, asked) = made(&large, 0, 40, |lba| ((1 << 34) - lba, Deallocated));
        assert_eq!((data.len(), asked), (40, 1));
        assert_eq!(data[8..], [descriptor(0, u32::MAX, 1), descriptor(u64::from(u32::MAX), u32::MAX, 1)].concat());
    }
}
