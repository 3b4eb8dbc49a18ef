//! New disks. The caller makes creation atomic (a temporary name, sync, rename).

use std::ops::Range;

use zerocopy::little_endian::{U16, U32, U64};

use super::error::CreateError;
use super::format::{
    BLOCK_SIZE_MAX, BLOCK_SIZE_MIN, BatEntry, DISK_SIZE_MAX, FILE_HAS_PARENT, FILE_LEAVE_BLOCKS_ALLOCATED, FILE_MAGIC,
    FORMAT_VERSION, Guid, HEADER_MAGIC, HEADER_OFFSETS, Header, LOG_VERSION, METADATA_ITEMS_MAX, METADATA_TABLE_LEN,
    MIB, REGION_TABLE_OFFSETS,
};
use super::geometry::Geometry;
use super::items::MetadataItem;
use super::locator::ParentLocator;
use super::metadata::{NewItem, geometry_of, region_of, system_items};
use super::region::{Place, table_of};
use super::storage::Storage;

/// How a disk's space is managed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskKind {
    /// Blocks get space when they are first written.
    Dynamic,
    /// Every block has its space from the start.
    Fixed,
}

/// What to create.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// Size of the virtual disk: 3 MiB to 64 TiB, a multiple of the logical sector. With a parent: at least the
    /// parent's, and below 3 MiB only where the parent is.
    pub size_bytes: u64,
    /// Dynamic or fixed.
    pub kind: DiskKind,
    /// A power of two from 1 to 256 MiB; `None`: 32 MiB for dynamic disks, 2 MiB for fixed and differencing ones.
    pub block_size_bytes: Option<u64>,
    /// 512 or 4096.
    pub logical_sector_bytes: u32,
    /// 512 or 4096, not below the logical sector.
    pub physical_sector_bytes: u32,
    /// Size of the log, a multiple of 1 MiB from 1 to 64 MiB; `None`: 8 MiB.
    pub log_len_bytes: Option<u64>,
    /// The disk's identity. A child keeps its parent's, as the format has it for items of the virtual disk; who serves
    /// both gives initiators another one.
    pub virtual_disk_id: Guid,
    /// First FileWriteGuid: random.
    pub file_write_guid: Guid,
    /// First DataWriteGuid: random.
    pub data_write_guid: Guid,
    /// Make a differencing disk: it holds changes to this parent only. [`DiskKind::Dynamic`] goes with it.
    pub parent: Option<NewParent>,
}

/// The parent of a new differencing disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewParent {
    /// How the parent is found and recognised.
    pub locator: ParentLocator,
    /// The parent's size in bytes.
    pub size_bytes: u64,
    /// The parent's logical sector: the child must have the same (section 2.6.2.4).
    pub logical_sector_bytes: u32,
    /// Items of the parent that belong to the virtual disk rather than to its file, which a child takes over
    /// (section 2.6.1.2).
    pub items: Vec<MetadataItem>,
}

/// A disk that has been written to its storage, flushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Created {
    /// The disk's shape.
    pub geometry: Geometry,
    /// The file's size now.
    pub file_len_bytes: u64,
    /// Ranges of the file that should be given real space (fallocate): always log and tables, and every block of a
    /// fixed disk.
    pub allocate: Vec<Range<u64>>,
}

/// Default block of a dynamic disk, as Windows makes them.
const BLOCK_SIZE_DYNAMIC: u64 = 32 * MIB;
/// Default block of a fixed or differencing disk, as Windows makes them.
const BLOCK_SIZE_SMALL: u64 = 2 * MIB;
/// Default log: an epoch of it holds about a thousand groups, so that turning it costs nothing that can be measured.
const LOG_LEN: u64 = 8 * MIB;
/// Largest log that can be asked for.
const LOG_LEN_MAX: u64 = 64 * MIB;
/// Smallest disk: what Windows accepts.
const SIZE_MIN: u64 = 3 * MIB;
/// Bytes of the table written at once.
const WRITE_LEN: usize = 1 << 20;

/// Where everything goes in a new file: log, metadata and table from 1 MiB on, then the blocks.
struct Layout {
    geometry: Geometry,
    log_len: u64,
    metadata: Place,
    bat: Place,
    blocks_start: u64,
}

impl Layout {
    fn of(options: &CreateOptions) -> Result<Self, CreateError> {
        let size_bytes = options.size_bytes;
        let (logical, physical) = (options.logical_sector_bytes, options.physical_sector_bytes);
        let is_sector = |bytes: u32| bytes == 512 || bytes == 4096;
        if !is_sector(logical) || !is_sector(physical) || physical < logical {
            return Err(CreateError::Sector { logical_bytes: logical, physical_bytes: physical });
        }
        let parent = options.parent.as_ref();
        let size_min = parent.map_or(SIZE_MIN, |parent| parent.size_bytes.clamp(512, SIZE_MIN));
        if !(size_min..=DISK_SIZE_MAX).contains(&size_bytes) {
            return Err(CreateError::Size { size_bytes });
        }
        if !size_bytes.is_multiple_of(u64::from(logical)) {
            let next_bytes = size_bytes.next_multiple_of(u64::from(logical));
            return Err(CreateError::SizeNotSectors { size_bytes, sector_bytes: logical, next_bytes });
        }
        let fixed = options.kind == DiskKind::Fixed;
        if let Some(parent) = parent {
            check_against_parent(options, parent)?;
        }
        let small = fixed || parent.is_some();
        let block_size_bytes =
            options.block_size_bytes.unwrap_or(if small { BLOCK_SIZE_SMALL } else { BLOCK_SIZE_DYNAMIC });
        if !(BLOCK_SIZE_MIN..=BLOCK_SIZE_MAX).contains(&block_size_bytes) || !block_size_bytes.is_power_of_two() {
            return Err(CreateError::BlockSize { block_size_bytes });
        }
        let log_len = options.log_len_bytes.unwrap_or(LOG_LEN);
        if !(MIB..=LOG_LEN_MAX).contains(&log_len) || !log_len.is_multiple_of(MIB) {
            return Err(CreateError::LogLength { log_len_bytes: log_len });
        }
        let metadata = Place { offset_bytes: MIB + log_len, len_bytes: MIB };
        let bat_start = metadata.offset_bytes + MIB;
        let flags = match parent {
            Some(_) => FILE_HAS_PARENT,
            None if fixed => FILE_LEAVE_BLOCKS_ALLOCATED,
            None => 0,
        };
        let geometry = geometry_of(size_bytes, block_size_bytes as u32, (logical, physical), flags, bat_start);
        let bat = Place { offset_bytes: bat_start, len_bytes: geometry.bat_region_len_bytes() };
        Ok(Self { geometry, log_len, metadata, bat, blocks_start: bat_start + bat.len_bytes })
    }

    fn header(&self, options: &CreateOptions) -> Header {
        Header {
            signature: HEADER_MAGIC,
            checksum: U32::ZERO,
            sequence_number: U64::new(1),
            file_write_guid: options.file_write_guid,
            data_write_guid: options.data_write_guid,
            log_guid: Guid::ZERO,
            log_version: U16::new(LOG_VERSION),
            version: U16::new(FORMAT_VERSION),
            log_length: U32::new(self.log_len as u32),
            log_offset: U64::new(MIB),
        }
    }

    /// The table of a fixed disk: every block present, one behind the other.
    fn write_full_table(&self, storage: &mut dyn Storage) -> Result<(), CreateError> {
        let mut bytes = vec![0; WRITE_LEN];
        let mut index = 0;
        while index < self.geometry.bat_entries() {
            let count = (self.geometry.bat_entries() - index).min(WRITE_LEN as u64 / 8) as usize;
            for (at, word) in (index..).zip(bytes[..count * 8].as_chunks_mut::<8>().0) {
                let entry = self.geometry.block_at(at).map_or(BatEntry::default(), |block| {
                    BatEntry::fully_present(self.blocks_start + (u64::from(block) << self.geometry.block_shift))
                });
                *word = entry.0.to_le_bytes();
            }
            storage.write_at(self.bat.offset_bytes + index * 8, &bytes[..count * 8])?;
            index += count as u64;
        }
        Ok(())
    }
}

fn check_against_parent(options: &CreateOptions, parent: &NewParent) -> Result<(), CreateError> {
    if options.kind == DiskKind::Fixed {
        return Err(CreateError::FixedWithParent);
    }
    if options.logical_sector_bytes != parent.logical_sector_bytes {
        let (logical_bytes, parent_bytes) = (options.logical_sector_bytes, parent.logical_sector_bytes);
        return Err(CreateError::ParentSector { logical_bytes, parent_bytes });
    }
    if options.size_bytes < parent.size_bytes {
        let (size_bytes, parent_bytes) = (options.size_bytes, parent.size_bytes);
        return Err(CreateError::SmallerThanParent { size_bytes, parent_bytes });
    }
    Ok(())
}

/// The metadata region's content, as far as it is not zero.
fn metadata_of(options: &CreateOptions, geometry: &Geometry, place: Place) -> Result<Vec<u8>, CreateError> {
    let locator = options.parent.as_ref().map(|parent| parent.locator.encode()).transpose()?;
    let mut items = system_items(geometry, options.virtual_disk_id, locator);
    items.extend(options.parent.iter().flat_map(|parent| &parent.items).map(NewItem::from));
    let len_bytes = items.iter().map(|item| item.bytes.len() as u64).sum();
    if len_bytes > place.len_bytes - METADATA_TABLE_LEN as u64 || items.len() > METADATA_ITEMS_MAX {
        return Err(CreateError::Items { len_bytes });
    }
    Ok(region_of(&items))
}

/// The file type identifier (section 2.2.1).
fn identifier() -> Vec<u8> {
    let creator = concat!("Lunaring ", env!("CARGO_PKG_VERSION"));
    let mut bytes = FILE_MAGIC.to_vec();
    bytes.extend(creator.encode_utf16().flat_map(u16::to_le_bytes));
    bytes.resize(8 + 512, 0);
    bytes
}

/// Write a new, empty disk to `storage`, whose old content is discarded.
pub fn create(options: &CreateOptions, storage: &mut dyn Storage) -> Result<Created, CreateError> {
    let layout = Layout::of(options)?;
    let geometry = layout.geometry;
    let metadata = metadata_of(options, &geometry, layout.metadata)?;
    let mut file_len_bytes = layout.blocks_start;
    if geometry.fixed {
        file_len_bytes += u64::from(geometry.block_count) << geometry.block_shift;
    }
    storage.set_len(0)?;
    storage.set_len(file_len_bytes)?;
    if geometry.fixed {
        layout.write_full_table(storage)?;
    }
    storage.write_at(layout.metadata.offset_bytes, &metadata)?;
    let table = table_of(layout.bat, layout.metadata);
    for offset_bytes in REGION_TABLE_OFFSETS {
        storage.write_at(offset_bytes, &table)?;
    }
    let mut header = layout.header(options);
    for offset_bytes in HEADER_OFFSETS {
        storage.write_at(offset_bytes, &header.to_page())?;
        header.sequence_number = U64::new(header.sequence_number.get() + 1);
    }
    storage.write_at(0, &identifier())?;
    storage.flush()?;
    let mut allocate = Vec::with_capacity(2);
    allocate.push(MIB..layout.blocks_start);
    if geometry.fixed {
        allocate.push(layout.blocks_start..file_len_bytes);
    }
    Ok(Created { geometry, file_len_bytes, allocate })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(size_bytes: u64) -> CreateOptions {
        CreateOptions {
            size_bytes,
            kind: DiskKind::Dynamic,
            block_size_bytes: None,
            logical_sector_bytes: 512,
            physical_sector_bytes: 4096,
            log_len_bytes: None,
            virtual_disk_id: Guid([1; 16]),
            file_write_guid: Guid([2; 16]),
            data_write_guid: Guid([3; 16]),
            parent: None,
        }
    }

    #[test]
    fn impossible_disks_are_refused_with_the_rule() {
        let refusal = |change: &dyn Fn(&mut CreateOptions)| {
            let mut options = options(64 * MIB);
            change(&mut options);
            Layout::of(&options).err()
        };
        assert_eq!(refusal(&|_| ()), None);
        assert_eq!(refusal(&|o| o.size_bytes = SIZE_MIN - 512), Some(CreateError::Size { size_bytes: SIZE_MIN - 512 }));
        assert_eq!(refusal(&|o| o.size_bytes = u64::MAX), Some(CreateError::Size { size_bytes: u64::MAX }));
        let uneven = |o: &mut CreateOptions| (o.size_bytes, o.logical_sector_bytes) = (64 * MIB + 512, 4096);
        let next_bytes = 64 * MIB + 4096;
        let expected = CreateError::SizeNotSectors { size_bytes: 64 * MIB + 512, sector_bytes: 4096, next_bytes };
        assert_eq!(refusal(&uneven), Some(expected));
        for bad in [0, 4096, 3 * MIB, 512 * MIB] {
            let expected = CreateError::BlockSize { block_size_bytes: bad };
            assert_eq!(refusal(&|o| o.block_size_bytes = Some(bad)), Some(expected));
        }
        let expected = CreateError::Sector { logical_bytes: 4096, physical_bytes: 512 };
        assert_eq!(refusal(&|o| (o.logical_sector_bytes, o.physical_sector_bytes) = (4096, 512)), Some(expected));
        assert_eq!(refusal(&|o| o.log_len_bytes = Some(5)), Some(CreateError::LogLength { log_len_bytes: 5 }));
    }

    /// Section 2.5 at its limit: 64 TiB in 1 MiB blocks need 512 MiB of table and an entry more for every 4096 blocks.
    #[test]
    fn the_largest_disk_has_its_table() {
        let largest = CreateOptions { block_size_bytes: Some(MIB), ..options(DISK_SIZE_MAX) };
        let layout = Layout::of(&largest).expect("possible");
        assert_eq!(layout.geometry.block_count, 1 << 26);
        assert_eq!(layout.geometry.bat_entries(), (1 << 26) + (1 << 14) - 1);
        assert_eq!(layout.bat.len_bytes, 513 * MIB);
        for block in [0, 4095, 4096, (1 << 26) - 1] {
            assert_eq!(layout.geometry.block_at(layout.geometry.bat_index(block)), Some(block));
        }
        assert_eq!(layout.geometry.block_at(4096), None);
        assert_eq!(layout.geometry.block_at(layout.geometry.bat_entries()), None);
    }
}
