//! The log's entries (section 2.3.1): reading and validating them in the ring, and encoding new ones.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::error::OpenError;
use super::format::{
    DATA_DESCRIPTOR_MAGIC, DATA_SECTOR_MAGIC, Guid, LOG_DESCRIPTOR_LEN, LOG_ENTRY_HEADER_LEN, LOG_ENTRY_MAGIC,
    LogDataSector, LogDescriptor, LogEntryHeader, PAGE, ZERO_DESCRIPTOR_MAGIC,
};
use super::storage::Storage;
use crate::crc32c::{Crc32c, crc32c};

const PAGE_LEN: u64 = PAGE as u64;

/// Bytes of the ring read for validation, as a multiple of its length, before the scan gives up. Rings of real writers
/// need less than three: stale entries are validated once each, and their inner sectors do not look like entries.
const SCAN_FACTOR: u64 = 16;

/// The log of a file as a ring of 4 KiB sectors.
pub(super) struct Ring<'a> {
    pub storage: &'a mut dyn Storage,
    pub offset_bytes: u64,
    pub len_bytes: u64,
    pub log_guid: Guid,
    budget_bytes: u64,
}

/// A valid entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Ring offset.
    pub at: u64,
    pub len_bytes: u64,
    pub tail: u64,
    pub sequence_number: u64,
    pub descriptor_count: u64,
    pub flushed_file_offset: u64,
    pub last_file_offset: u64,
}

impl Entry {
    /// Sectors in front of the data sectors.
    pub fn descriptor_sectors(&self) -> u64 {
        descriptor_sectors(self.descriptor_count)
    }
}

fn descriptor_sectors(descriptors: u64) -> u64 {
    (LOG_ENTRY_HEADER_LEN as u64 + LOG_DESCRIPTOR_LEN as u64 * descriptors).div_ceil(PAGE_LEN)
}

impl<'a> Ring<'a> {
    pub fn new(storage: &'a mut dyn Storage, offset_bytes: u64, len_bytes: u64, log_guid: Guid) -> Self {
        let budget_bytes = len_bytes.saturating_mul(SCAN_FACTOR);
        Self { storage, offset_bytes, len_bytes, log_guid, budget_bytes }
    }

    /// The sector at ring offset `at`, which may be past the end by less than the ring's length: it wraps.
    pub fn sector(&mut self, at: u64) -> Result<[u8; PAGE], OpenError> {
        assert!(at.is_multiple_of(PAGE_LEN) && at < 2 * self.len_bytes);
        let mut sector = [0; PAGE];
        self.storage.read_at(self.offset_bytes + at % self.len_bytes, &mut sector)?;
        self.budget_bytes = self
            .budget_bytes
            .checked_sub(PAGE_LEN)
            .ok_or(OpenError::LogUnreasonable { offset_bytes: self.offset_bytes })?;
        Ok(sector)
    }

    /// The valid entry at ring offset `at`, if there is one (section 2.3.1: signature, checksum, lengths, GUID, and
    /// the number in every descriptor and data sector).
    pub fn entry(&mut self, at: u64) -> Result<Option<Entry>, OpenError> {
        let first = self.sector(at)?;
        let Ok((header, _)) = LogEntryHeader::read_from_prefix(&first) else {
            return Ok(None);
        };
        let entry = Entry {
            at,
            len_bytes: u64::from(header.entry_length.get()),
            tail: u64::from(header.tail.get()),
            sequence_number: header.sequence_number.get(),
            descriptor_count: u64::from(header.descriptor_count.get()),
            flushed_file_offset: header.flushed_file_offset.get(),
            last_file_offset: header.last_file_offset.get(),
        };
        let plausible = header.signature == LOG_ENTRY_MAGIC
            && header.log_guid == self.log_guid
            && entry.sequence_number != 0
            && entry.len_bytes.is_multiple_of(PAGE_LEN)
            && entry.len_bytes <= self.len_bytes
            && entry.tail.is_multiple_of(PAGE_LEN)
            && entry.tail < self.len_bytes
            && entry.descriptor_sectors() * PAGE_LEN <= entry.len_bytes;
        if !plausible {
            return Ok(None);
        }
        let valid = self.body_is_valid(&entry, first, header.checksum.get())?;
        Ok(valid.then_some(entry))
    }

    fn body_is_valid(&mut self, entry: &Entry, first: [u8; PAGE], checksum: u32) -> Result<bool, OpenError> {
        let mut crc = Crc32c::new();
        let (mut descriptors_left, mut data_sectors) = (entry.descriptor_count, 0);
        let mut sector = first;
        for index in 0..entry.len_bytes / PAGE_LEN {
            if index == 0 {
                sector[4..8].fill(0);
            } else {
                sector = self.sector(entry.at + index * PAGE_LEN)?;
            }
            crc.update(&sector);
            if index < entry.descriptor_sectors() {
                let skip = if index == 0 { LOG_ENTRY_HEADER_LEN } else { 0 };
                for descriptor in descriptors_in(&sector[skip..], &mut descriptors_left) {
                    if !descriptor_is_valid(descriptor, entry.sequence_number) {
                        return Ok(false);
                    }
                    data_sectors += u64::from(descriptor.signature == DATA_DESCRIPTOR_MAGIC);
                }
            } else if !data_sector_is_valid(&sector, entry.sequence_number) {
                return Ok(false);
            }
        }
        let sectors = entry.descriptor_sectors() + data_sectors;
        Ok(sectors * PAGE_LEN == entry.len_bytes && crc.value() == checksum)
    }
}

/// The descriptors of one sector, as many as are left of the entry's.
pub(super) fn descriptors_in<'b>(bytes: &'b [u8], left: &mut u64) -> &'b [LogDescriptor] {
    let count = (*left).min((bytes.len() / LOG_DESCRIPTOR_LEN) as u64);
    *left -= count;
    let (descriptors, _) =
        <[LogDescriptor]>::ref_from_prefix_with_elems(bytes, count as usize).expect("as many as fit");
    descriptors
}

fn descriptor_is_valid(descriptor: &LogDescriptor, sequence_number: u64) -> bool {
    let aligned = match descriptor.signature {
        DATA_DESCRIPTOR_MAGIC => true,
        ZERO_DESCRIPTOR_MAGIC => u64::from_le_bytes(descriptor.leading_bytes).is_multiple_of(PAGE_LEN),
        _ => false,
    };
    aligned
        && descriptor.file_offset.get().is_multiple_of(PAGE_LEN)
        && descriptor.sequence_number.get() == sequence_number
}

fn data_sector_is_valid(sector: &[u8; PAGE], sequence_number: u64) -> bool {
    let Ok(sector) = LogDataSector::ref_from_bytes(sector) else {
        return false;
    };
    let number = u64::from(sector.sequence_high.get()) << 32 | u64::from(sector.sequence_low.get());
    sector.signature == DATA_SECTOR_MAGIC && number == sequence_number
}

/// The page that a data descriptor and its sector stand for.
pub(super) fn page_of(descriptor: &LogDescriptor, sector: &[u8; PAGE]) -> [u8; PAGE] {
    let mut page = *sector;
    page[..8].copy_from_slice(&descriptor.leading_bytes);
    page[PAGE - 4..].copy_from_slice(&descriptor.trailing_bytes);
    page
}

/// What a new entry says about itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewEntry {
    pub tail: u64,
    pub sequence_number: u64,
    pub log_guid: Guid,
    pub flushed_file_offset: u64,
    pub last_file_offset: u64,
}

/// Make an entry of the pages that stand in `bytes` behind its first sector; `offsets` says where in the file they
/// belong. `bytes` is then the entry as written.
pub(super) fn seal(new: &NewEntry, offsets: impl ExactSizeIterator<Item = u64>, bytes: &mut [u8]) {
    let count = offsets.len();
    assert_eq!(bytes.len(), (1 + count) * PAGE, "one descriptor sector, then a sector for each page");
    assert!(descriptor_sectors(count as u64) == 1 && new.sequence_number != 0 && new.log_guid != Guid::ZERO);
    let (first, pages) = bytes.split_at_mut(PAGE);
    first.fill(0);
    let header = LogEntryHeader {
        signature: LOG_ENTRY_MAGIC,
        checksum: U32::ZERO,
        entry_length: U32::new(((1 + count) * PAGE) as u32),
        tail: U32::new(u32::try_from(new.tail).expect("rings are below 4 GiB")),
        sequence_number: U64::new(new.sequence_number),
        descriptor_count: U32::new(count as u32),
        reserved: U32::ZERO,
        log_guid: new.log_guid,
        flushed_file_offset: U64::new(new.flushed_file_offset),
        last_file_offset: U64::new(new.last_file_offset),
    };
    first[..LOG_ENTRY_HEADER_LEN].copy_from_slice(header.as_bytes());
    let slots = first[LOG_ENTRY_HEADER_LEN..].as_chunks_mut::<LOG_DESCRIPTOR_LEN>().0;
    for ((offset_bytes, slot), page) in offsets.zip(slots).zip(pages.as_chunks_mut::<PAGE>().0) {
        let (mut leading_bytes, mut trailing_bytes) = ([0; 8], [0; 4]);
        leading_bytes.copy_from_slice(&page[..8]);
        trailing_bytes.copy_from_slice(&page[PAGE - 4..]);
        let descriptor = LogDescriptor {
            signature: DATA_DESCRIPTOR_MAGIC,
            trailing_bytes,
            leading_bytes,
            file_offset: U64::new(offset_bytes),
            sequence_number: U64::new(new.sequence_number),
        };
        slot.copy_from_slice(descriptor.as_bytes());
        page[..4].copy_from_slice(&DATA_SECTOR_MAGIC);
        page[4..8].copy_from_slice(&((new.sequence_number >> 32) as u32).to_le_bytes());
        page[PAGE - 4..].copy_from_slice(&(new.sequence_number as u32).to_le_bytes());
    }
    let checksum = crc32c(bytes);
    bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
}
