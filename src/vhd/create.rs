//! New disks. The caller makes creation atomic (a temporary name, sync, rename).

use std::ops::Range;

use uuid::Uuid;
use zerocopy::IntoBytes;
use zerocopy::big_endian::{U32, U64};

use super::error::CreateError;
use super::format::{
    BLOCK_SIZE_DEFAULT, BLOCK_SIZE_MIN, Chs, DISK_SIZE_MAX, DynamicHeader, FEATURE_RESERVED, FOOTER_COOKIE, FOOTER_LEN,
    Footer, HEADER_COOKIE, HEADER_LEN, MIB, NO_OFFSET, SECTOR, TYPE_DIFFERENCING, TYPE_DYNAMIC, TYPE_FIXED, VERSION,
    table_bytes,
};
use super::parent::{EncodedParent, VhdParent};
use crate::blocks::Storage;

/// What a new disk holds, and where its space comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewKind {
    /// Every byte has its place from the start.
    Fixed,
    /// Blocks get space when they are first written.
    Dynamic,
    /// The same, over a parent. At least one path, at most eight; Windows' separators (`.\parent.vhd`).
    Differencing(VhdParent),
}

/// What to create.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// Size of the disk: 1 MiB to 2040 GiB, whole sectors of 512 bytes. A differencing disk is as large as its parent.
    pub size_bytes: u64,
    /// Fixed, dynamic or differencing.
    pub kind: NewKind,
    /// 512 KiB or 2 MiB, all that Windows accepts; `None`: 2 MiB. Means nothing for fixed disks.
    pub block_size_bytes: Option<u64>,
    /// The disk's identity: random.
    pub unique_id: Uuid,
    /// Now, in seconds since the start of 1970 UTC.
    pub unix_seconds: u64,
}

/// A disk that has been written to its storage, flushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Created {
    /// The file's size now.
    pub file_len_bytes: u64,
    /// Ranges of the file that should be given real space (fallocate).
    pub allocate: Vec<Range<u64>>,
}

/// Smallest disk that is made.
const SIZE_MIN: u64 = MIB;

/// Largest disk of small blocks: with the page that each has for its bitmap, the last of them still has a sector
/// number.
const SMALL_BLOCKS_SIZE_MAX: u64 = 2000 << 30;
const _: () = assert!(SMALL_BLOCKS_SIZE_MAX / BLOCK_SIZE_MIN * (BLOCK_SIZE_MIN / SECTOR + 8) < u32::MAX as u64);

/// Bytes of the table written at once.
const WRITE_LEN: usize = 1 << 20;

/// Creator Application: this program.
pub(super) const CREATOR: [u8; 4] = *b"luna";

pub(super) fn check_size(size_bytes: u64) -> Result<(), CreateError> {
    if !(SIZE_MIN..=DISK_SIZE_MAX).contains(&size_bytes) {
        return Err(CreateError::Size { size_bytes });
    }
    if !size_bytes.is_multiple_of(SECTOR) {
        return Err(CreateError::SizeNotSectors { size_bytes, next_bytes: size_bytes.next_multiple_of(SECTOR) });
    }
    Ok(())
}

fn footer_of(options: &CreateOptions) -> Footer {
    let (disk_type, data_offset) = match options.kind {
        NewKind::Fixed => (TYPE_FIXED, NO_OFFSET),
        NewKind::Dynamic => (TYPE_DYNAMIC, FOOTER_LEN),
        NewKind::Differencing(_) => (TYPE_DIFFERENCING, FOOTER_LEN),
    };
    let mut footer = Footer {
        cookie: FOOTER_COOKIE,
        features: U32::new(FEATURE_RESERVED),
        version: U32::new(VERSION),
        data_offset: U64::new(data_offset),
        timestamp: U32::new(super::format::timestamp_of(options.unix_seconds)),
        creator_application: CREATOR,
        creator_version: U32::new(VERSION),
        creator_host: *b"Wi2k",
        original_size: U64::new(options.size_bytes),
        current_size: U64::new(options.size_bytes),
        disk_type: U32::new(disk_type),
        unique_id: *options.unique_id.as_bytes(),
        ..Footer::zeroed()
    };
    footer.set_geometry(Chs::for_size(options.size_bytes));
    footer.sealed()
}

/// Write a table of `entries` entries, all without a block.
pub(super) fn write_unused_table(storage: &mut dyn Storage, offset: u64, entries: u64) -> Result<(), CreateError> {
    let unused = vec![0xff; WRITE_LEN.min(table_bytes(entries) as usize)];
    let end = offset + table_bytes(entries);
    for at in (offset..end).step_by(WRITE_LEN) {
        storage.write_at(at, &unused[..(end - at).min(WRITE_LEN as u64) as usize])?;
    }
    Ok(())
}

/// Write a new, empty disk to `storage`, whose old content is discarded.
///
/// Windows keeps the same order: copy of the footer, header, table, paths, footer. A differencing disk has room for a
/// second header and second paths behind the first, so that [`set_parent`](super::set_parent) can change them without
/// an instant at which the file has no valid ones.
pub fn create(options: &CreateOptions, storage: &mut dyn Storage) -> Result<Created, CreateError> {
    check_size(options.size_bytes)?;
    let footer = footer_of(options);
    let block_size_bytes = options.block_size_bytes.unwrap_or(BLOCK_SIZE_DEFAULT);
    if ![BLOCK_SIZE_MIN, BLOCK_SIZE_DEFAULT].contains(&block_size_bytes) {
        return Err(CreateError::BlockSize { block_size_bytes });
    }
    if block_size_bytes < BLOCK_SIZE_DEFAULT && options.size_bytes > SMALL_BLOCKS_SIZE_MAX {
        return Err(CreateError::BlocksTooSmall { block_size_bytes, size_bytes: options.size_bytes });
    }
    let parent = match &options.kind {
        NewKind::Differencing(parent) => Some((parent, EncodedParent::of(parent)?)),
        NewKind::Fixed | NewKind::Dynamic => None,
    };
    storage.set_len(0)?;
    if options.kind == NewKind::Fixed {
        let file_len_bytes = options.size_bytes + FOOTER_LEN;
        storage.set_len(file_len_bytes)?;
        storage.write_at(options.size_bytes, footer.as_bytes())?;
        storage.flush()?;
        let data = 0..options.size_bytes;
        return Ok(Created { file_len_bytes, allocate: Vec::from([data]) });
    }
    let entries = options.size_bytes.div_ceil(block_size_bytes);
    let table_offset = FOOTER_LEN + HEADER_LEN;
    let mut header = DynamicHeader {
        cookie: HEADER_COOKIE,
        data_offset: U64::new(NO_OFFSET),
        table_offset: U64::new(table_offset),
        version: U32::new(VERSION),
        max_table_entries: U32::new(entries as u32),
        block_size: U32::new(block_size_bytes as u32),
        ..DynamicHeader::zeroed()
    };
    let mut end = table_offset + table_bytes(entries);
    if let Some((parent, encoded)) = &parent {
        encoded.fill(parent, &mut header, end);
        storage.write_at(end, &encoded.room())?;
        end += 2 * encoded.room_bytes() + HEADER_LEN;
    }
    storage.set_len(end + FOOTER_LEN)?;
    write_unused_table(storage, table_offset, entries)?;
    storage.write_at(FOOTER_LEN, header.sealed().as_bytes())?;
    storage.write_at(end, footer.as_bytes())?;
    storage.write_at(0, footer.as_bytes())?;
    storage.flush()?;
    let tables = 0..end;
    Ok(Created { file_len_bytes: end + FOOTER_LEN, allocate: Vec::from([tables]) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_sizes_are_refused() {
        assert_eq!(check_size(MIB), Ok(()));
        assert_eq!(check_size(DISK_SIZE_MAX), Ok(()));
        for size_bytes in [0, MIB - 512, DISK_SIZE_MAX + 512, u64::MAX] {
            assert_eq!(check_size(size_bytes), Err(CreateError::Size { size_bytes }));
        }
        let expected = CreateError::SizeNotSectors { size_bytes: MIB + 1, next_bytes: MIB + 512 };
        assert_eq!(check_size(MIB + 1), Err(expected));
    }
}
