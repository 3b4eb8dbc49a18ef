//! The file type identifier and the two headers (sections 2.2.1 and 2.2.2): which is current, and how it is replaced.

use zerocopy::FromBytes;
use zerocopy::little_endian::U64;

use super::error::{OpenError, first};
use super::format::{
    FILE_MAGIC, FORMAT_VERSION, Guid, HEADER_MAGIC, HEADER_OFFSETS, HEADER_SECTION_LEN, Header, LOG_VERSION, MIB, PAGE,
};
use super::open::Warning;
use super::storage::{Storage, StorageError};
use crate::crc32c::Crc32c;

/// Sequence numbers above this are refused for writing: each session adds a handful, so no real file comes near, and
/// the number must never wrap.
const SEQUENCE_NUMBER_MAX: u64 = u64::MAX >> 1;

/// Files above this are refused: four times the largest disk, and what Microsoft's engine can address. It bounds the
/// memory that a map of the file's space may take (32 MiB), and sums of offsets below stay far from overflow.
pub(super) const FILE_LEN_MAX: u64 = 1 << 48;

/// The current header and the slot it stands in.
#[derive(Clone, Copy, Debug)]
pub(super) struct CurrentHeader {
    pub header: Header,
    /// 0 or 1: index into [`HEADER_OFFSETS`].
    pub slot: usize,
}

impl CurrentHeader {
    /// Turn to the other slot with the next sequence number; write the result there, and flush.
    pub fn advance(&mut self) -> (u64, [u8; PAGE]) {
        self.slot ^= 1;
        self.header.sequence_number = U64::new(self.header.sequence_number.get() + 1);
        (HEADER_OFFSETS[self.slot], self.header.to_page())
    }

    /// Replace both headers, one slot for each flush (section 2.2.2.1).
    pub fn replace(&mut self, storage: &mut dyn Storage) -> Result<(), StorageError> {
        for _ in 0..2 {
            let (offset_bytes, page) = self.advance();
            storage.write_at(offset_bytes, &page)?;
            storage.flush()?;
        }
        Ok(())
    }
}

/// Whether the CRC-32C at bytes 4 to 7 of `bytes` is right, itself taken as zero.
pub(super) fn checksum_is_right(bytes: &[u8]) -> bool {
    let (Some(before), Some(stored), Some(after)) = (bytes.get(..4), bytes.get(4..8), bytes.get(8..)) else {
        return false;
    };
    let mut crc = Crc32c::new();
    crc.update(before);
    crc.update(&[0; 4]);
    crc.update(after);
    crc.value().to_le_bytes() == stored
}

/// A header with the right signature and checksum.
pub(super) fn parse(page: &[u8; PAGE]) -> Option<Header> {
    let (header, _) = Header::read_from_prefix(page).ok()?;
    (header.signature == HEADER_MAGIC && checksum_is_right(page)).then_some(header)
}

/// The size of a file that can be a VHDX at all, and its creator text.
pub(super) fn read_identifier(storage: &mut dyn Storage) -> Result<(u64, String), OpenError> {
    let len_bytes = storage.len_bytes()?;
    let mut magic = [0; 8];
    if len_bytes < 8 {
        return Err(OpenError::NotVhdx);
    }
    storage.read_at(0, &mut magic)?;
    if magic != FILE_MAGIC {
        return Err(OpenError::NotVhdx);
    }
    if len_bytes < HEADER_SECTION_LEN {
        return Err(OpenError::TooShort { len_bytes });
    }
    if len_bytes > FILE_LEN_MAX {
        return Err(OpenError::TooLong { len_bytes });
    }
    let mut creator = [0; 512];
    storage.read_at(8, &mut creator)?;
    let units = creator.as_chunks::<2>().0.iter().map(|pair| u16::from_le_bytes(*pair)).take_while(|unit| *unit != 0);
    let creator = char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
    Ok((len_bytes, creator))
}

/// Choose the current header and check it.
pub(super) fn read_headers(
    storage: &mut dyn Storage,
    len_bytes: u64,
    warnings: &mut Vec<Warning>,
) -> Result<CurrentHeader, OpenError> {
    let mut pages = [[0; PAGE]; 2];
    for (page, offset_bytes) in pages.iter_mut().zip(HEADER_OFFSETS) {
        storage.read_at(offset_bytes, page)?;
    }
    let current = match (parse(&pages[0]), parse(&pages[1])) {
        (None, None) => return Err(OpenError::NoValidHeader),
        (Some(header), None) => {
            warnings.push(Warning::HeaderCopyInvalid { copy: 2 });
            CurrentHeader { header, slot: 0 }
        }
        (None, Some(header)) => {
            warnings.push(Warning::HeaderCopyInvalid { copy: 1 });
            CurrentHeader { header, slot: 1 }
        }
        (Some(first), Some(second)) => {
            let (a, b) = (first.sequence_number.get(), second.sequence_number.get());
            // Some writers leave two identical headers: either is current then.
            if a == b && pages[0] != pages[1] {
                return Err(OpenError::HeadersAmbiguous { sequence_number: a });
            }
            if a >= b { CurrentHeader { header: first, slot: 0 } } else { CurrentHeader { header: second, slot: 1 } }
        }
    };
    check(&current.header, len_bytes)?;
    Ok(current)
}

fn check(header: &Header, file_len_bytes: u64) -> Result<(), OpenError> {
    first(|report| header_rules(header, file_len_bytes, report))
}

/// Every rule of section 2.2.2 that a header with the right checksum can break.
pub(super) fn header_rules(header: &Header, file_len_bytes: u64, report: &mut dyn FnMut(OpenError)) {
    if header.version.get() != FORMAT_VERSION {
        report(OpenError::Version { version: header.version.get() });
    }
    if header.log_guid != Guid::ZERO && header.log_version.get() != LOG_VERSION {
        report(OpenError::LogVersion { log_version: header.log_version.get() });
    }
    let sequence_number = header.sequence_number.get();
    if sequence_number > SEQUENCE_NUMBER_MAX {
        report(OpenError::HeaderSequence { sequence_number });
    }
    let (offset_bytes, len_bytes) = (header.log_offset.get(), u64::from(header.log_length.get()));
    let mut misplaced = |rule| report(OpenError::LogPlace { offset_bytes, len_bytes, rule });
    if offset_bytes < MIB || !offset_bytes.is_multiple_of(MIB) {
        misplaced("it must start at a whole MiB behind the first");
    }
    if len_bytes == 0 || !len_bytes.is_multiple_of(MIB) {
        misplaced("its length must be whole MiB");
    }
    if offset_bytes.saturating_add(len_bytes) > file_len_bytes {
        misplaced("it passes the end of the file");
    }
}
