//! The metadata region (section 2.6): what the disk is.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::error::OpenError;
use super::format::{
    BLOCK_SIZE_MAX, BLOCK_SIZE_MIN, DISK_SIZE_MAX, FILE_HAS_PARENT, FILE_LEAVE_BLOCKS_ALLOCATED, Guid,
    ITEM_FILE_PARAMETERS, ITEM_INCOMPLETE_FILE, ITEM_LOGICAL_SECTOR_SIZE, ITEM_PARENT_LOCATOR,
    ITEM_PHYSICAL_SECTOR_SIZE, ITEM_VIRTUAL_DISK_ID, ITEM_VIRTUAL_DISK_SIZE, METADATA_IS_REQUIRED, METADATA_IS_USER,
    METADATA_IS_VIRTUAL_DISK, METADATA_ITEM_LEN_MAX, METADATA_ITEMS_MAX, METADATA_TABLE_LEN, METADATA_TABLE_MAGIC,
    METADATA_USER_ITEMS_MAX, MetadataTableEntry, MetadataTableHeader,
};
use super::geometry::{Geometry, chunk_ratio};
use super::region::Place;
use super::storage::Storage;

/// What the metadata says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Metadata {
    pub geometry: Geometry,
    pub virtual_disk_id: Guid,
}

/// An item's place in the region.
#[derive(Clone, Copy, Debug)]
struct Item {
    id: Guid,
    offset_bytes: u64,
    len_bytes: u64,
    flags: u32,
}

impl Item {
    fn broken(&self, rule: &'static str) -> OpenError {
        OpenError::MetadataItem { item: self.id, offset_bytes: self.offset_bytes, len_bytes: self.len_bytes, rule }
    }

    fn is_user(&self) -> bool {
        self.flags & METADATA_IS_USER != 0
    }
}

/// The table's items, every rule of section 2.6.1 checked.
struct Items {
    region: Place,
    items: Vec<Item>,
}

impl Items {
    fn read(storage: &mut dyn Storage, region: Place) -> Result<Self, OpenError> {
        let mut table = vec![0; METADATA_TABLE_LEN];
        storage.read_at(region.offset_bytes, &mut table)?;
        let broken = |rule| OpenError::MetadataTable { offset_bytes: region.offset_bytes, rule };
        let (header, rest) =
            MetadataTableHeader::read_from_prefix(&table).map_err(|_| broken("it is shorter than its header"))?;
        if header.signature != METADATA_TABLE_MAGIC {
            return Err(broken("its signature is not 'metadata'"));
        }
        let count = usize::from(header.entry_count.get());
        if count > METADATA_ITEMS_MAX {
            return Err(broken("it claims more than 2047 items"));
        }
        let (entries, _) = <[MetadataTableEntry]>::ref_from_prefix_with_elems(rest, count)
            .map_err(|_| broken("its items pass its end"))?;
        let items: Vec<Item> = entries
            .iter()
            .map(|entry| Item {
                id: entry.item_id,
                offset_bytes: u64::from(entry.offset.get()),
                len_bytes: u64::from(entry.length.get()),
                flags: entry.flags.get(),
            })
            .collect();
        if items.iter().filter(|item| item.is_user()).count() > METADATA_USER_ITEMS_MAX {
            return Err(broken("it has more than 1024 user items"));
        }
        check_places(&items, region)?;
        Ok(Self { region, items })
    }

    fn find(&self, id: Guid) -> Option<&Item> {
        self.items.iter().find(|item| item.id == id && !item.is_user())
    }

    /// The bytes of a required item of exactly `N` bytes.
    fn value<const N: usize>(
        &self,
        storage: &mut dyn Storage,
        id: Guid,
        name: &'static str,
    ) -> Result<[u8; N], OpenError> {
        let item = self.find(id).ok_or(OpenError::MetadataMissing { name })?;
        if item.len_bytes != N as u64 {
            return Err(item.broken("it has the wrong length"));
        }
        let mut bytes = [0; N];
        storage.read_at(self.region.offset_bytes + item.offset_bytes, &mut bytes)?;
        Ok(bytes)
    }
}

fn check_places(items: &[Item], region: Place) -> Result<(), OpenError> {
    let mut sorted = items.to_vec();
    sorted.sort_by_key(|item| (item.id.0, item.is_user()));
    for pair in sorted.windows(2) {
        if pair[0].id == pair[1].id && pair[0].is_user() == pair[1].is_user() {
            return Err(pair[1].broken("it is listed twice"));
        }
    }
    for item in items {
        if item.len_bytes == 0 && item.offset_bytes == 0 {
            continue;
        }
        if item.len_bytes > METADATA_ITEM_LEN_MAX {
            return Err(item.broken("items have at most 1 MiB"));
        }
        if item.len_bytes == 0 || item.offset_bytes < METADATA_TABLE_LEN as u64 {
            return Err(item.broken("items lie behind the table, and empty ones at offset 0"));
        }
        if item.offset_bytes + item.len_bytes > region.len_bytes {
            return Err(item.broken("it passes the end of the metadata region"));
        }
    }
    sorted.sort_by_key(|item| item.offset_bytes);
    for pair in sorted.windows(2) {
        if pair[1].len_bytes != 0 && pair[0].offset_bytes + pair[0].len_bytes > pair[1].offset_bytes {
            return Err(pair[1].broken("it overlaps another item"));
        }
    }
    Ok(())
}

/// Read and check the metadata. `bat_offset_bytes` completes the geometry.
pub(super) fn read_metadata(
    storage: &mut dyn Storage,
    region: Place,
    bat_offset_bytes: u64,
) -> Result<Metadata, OpenError> {
    let items = Items::read(storage, region)?;
    if items.find(ITEM_INCOMPLETE_FILE).is_some() {
        return Err(OpenError::Incomplete);
    }
    const KNOWN: [Guid; 6] = [
        ITEM_FILE_PARAMETERS,
        ITEM_VIRTUAL_DISK_SIZE,
        ITEM_VIRTUAL_DISK_ID,
        ITEM_LOGICAL_SECTOR_SIZE,
        ITEM_PHYSICAL_SECTOR_SIZE,
        ITEM_PARENT_LOCATOR,
    ];
    let unknown =
        |item: &&Item| item.flags & METADATA_IS_REQUIRED != 0 && (item.is_user() || !KNOWN.contains(&item.id));
    if let Some(item) = items.items.iter().find(unknown) {
        return Err(OpenError::MetadataUnknown { item: item.id });
    }
    let parameters: [u8; 8] = items.value(storage, ITEM_FILE_PARAMETERS, "File Parameters")?;
    let [b0, b1, b2, b3, f0, f1, f2, f3] = parameters;
    let (block_size, flags) = (u32::from_le_bytes([b0, b1, b2, b3]), u32::from_le_bytes([f0, f1, f2, f3]));
    if flags & FILE_HAS_PARENT != 0 {
        return Err(OpenError::Differencing { parent: describe_parent(storage, &items)? });
    }
    let size = u64::from_le_bytes(items.value(storage, ITEM_VIRTUAL_DISK_SIZE, "Virtual Disk Size")?);
    let id = Guid(items.value(storage, ITEM_VIRTUAL_DISK_ID, "Virtual Disk ID")?);
    let logical = u32::from_le_bytes(items.value(storage, ITEM_LOGICAL_SECTOR_SIZE, "Logical Sector Size")?);
    let physical = u32::from_le_bytes(items.value(storage, ITEM_PHYSICAL_SECTOR_SIZE, "Physical Sector Size")?);
    check_values(size, block_size, logical, physical)?;
    let geometry = geometry_of(size, block_size, (logical, physical), flags, bat_offset_bytes);
    Ok(Metadata { geometry, virtual_disk_id: id })
}

fn check_values(size: u64, block_size: u32, logical: u32, physical: u32) -> Result<(), OpenError> {
    let wrong = |name, value, rule| Err(OpenError::MetadataValue { name, value, rule });
    if !(BLOCK_SIZE_MIN..=BLOCK_SIZE_MAX).contains(&u64::from(block_size)) || !block_size.is_power_of_two() {
        return wrong("BlockSize", u64::from(block_size), "it must be a power of two from 1 to 256 MiB");
    }
    if logical != 512 && logical != 4096 {
        return wrong("Logical Sector Size", u64::from(logical), "it must be 512 or 4096");
    }
    if physical != 512 && physical != 4096 {
        return wrong("Physical Sector Size", u64::from(physical), "it must be 512 or 4096");
    }
    if size == 0 || size > DISK_SIZE_MAX {
        return wrong("Virtual Disk Size", size, "it must be from one sector to 64 TiB");
    }
    if !size.is_multiple_of(u64::from(logical)) {
        return wrong("Virtual Disk Size", size, "it must be whole logical sectors");
    }
    Ok(())
}

/// The geometry of values that have been checked. `flags` are those of the File Parameters item.
pub(super) fn geometry_of(
    disk_size_bytes: u64,
    block_size_bytes: u32,
    (logical_sector_bytes, physical_sector_bytes): (u32, u32),
    flags: u32,
    bat_offset_bytes: u64,
) -> Geometry {
    let has_parent = flags & FILE_HAS_PARENT != 0;
    let geometry = Geometry {
        disk_size_bytes: 0,
        block_size_bytes,
        block_shift: block_size_bytes.trailing_zeros() as u8,
        logical_sector_bytes,
        physical_sector_bytes,
        block_count: 0,
        fixed: !has_parent && flags & FILE_LEAVE_BLOCKS_ALLOCATED != 0,
        has_parent,
        bat_offset_bytes,
        chunk_ratio: chunk_ratio(logical_sector_bytes, block_size_bytes),
    };
    geometry.with_size(disk_size_bytes)
}

/// What the parent locator (section 2.6.2.6) tells a person about the parent. Never fails on its content.
fn describe_parent(storage: &mut dyn Storage, items: &Items) -> Result<String, OpenError> {
    let Some(item) = items.find(ITEM_PARENT_LOCATOR).filter(|item| item.len_bytes <= 64 * 1024) else {
        return Ok("not named".to_owned());
    };
    let mut bytes = vec![0; item.len_bytes as usize];
    storage.read_at(items.region.offset_bytes + item.offset_bytes, &mut bytes)?;
    let number = |at: usize| Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let offset = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?) as usize);
    let text = |at: usize, len: usize| {
        let units =
            bytes.get(at..at.checked_add(len)?)?.as_chunks::<2>().0.iter().map(|unit| u16::from_le_bytes(*unit));
        Some(char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect::<String>())
    };
    let pair = |at: usize| {
        let (key, value) =
            (text(offset(at)?, number(at + 8)?.into())?, text(offset(at + 4)?, number(at + 10)?.into())?);
        Some((key, value))
    };
    let pairs: Vec<(String, String)> =
        (0..usize::from(number(18).unwrap_or(0)).min(64)).filter_map(|index| pair(20 + 12 * index)).collect();
    let path = ["absolute_win32_path", "relative_path", "volume_path", "parent_linkage"]
        .iter()
        .find_map(|wanted| pairs.iter().find(|(key, _)| key == wanted));
    Ok(path.map_or_else(|| "not named".to_owned(), |(_, value)| value.clone()))
}

/// The start of the metadata region of a new disk: the table, and the five items behind it.
pub(super) fn region_of(geometry: &Geometry, virtual_disk_id: Guid) -> Vec<u8> {
    let flags = if geometry.fixed { FILE_LEAVE_BLOCKS_ALLOCATED } else { 0 };
    let parameters = [U32::new(geometry.block_size_bytes), U32::new(flags)];
    let size = U64::new(geometry.disk_size_bytes);
    let sectors = [U32::new(geometry.logical_sector_bytes), U32::new(geometry.physical_sector_bytes)];
    let disk = METADATA_IS_REQUIRED | METADATA_IS_VIRTUAL_DISK;
    let items: [(Guid, u32, &[u8]); 5] = [
        (ITEM_FILE_PARAMETERS, METADATA_IS_REQUIRED, parameters.as_bytes()),
        (ITEM_VIRTUAL_DISK_SIZE, disk, size.as_bytes()),
        (ITEM_VIRTUAL_DISK_ID, disk, &virtual_disk_id.0),
        (ITEM_LOGICAL_SECTOR_SIZE, disk, sectors[0].as_bytes()),
        (ITEM_PHYSICAL_SECTOR_SIZE, disk, sectors[1].as_bytes()),
    ];
    let header = MetadataTableHeader {
        signature: METADATA_TABLE_MAGIC,
        reserved: U16::ZERO,
        entry_count: U16::new(items.len() as u16),
        reserved2: [0; 20],
    };
    let mut region = vec![0; METADATA_TABLE_LEN];
    region[..32].copy_from_slice(header.as_bytes());
    for (at, (item_id, flags, value)) in items.into_iter().enumerate() {
        let entry = MetadataTableEntry {
            item_id,
            offset: U32::new(region.len() as u32),
            length: U32::new(value.len() as u32),
            flags: U32::new(flags),
            reserved: U32::ZERO,
        };
        region[32 + 32 * at..][..32].copy_from_slice(entry.as_bytes());
        region.extend_from_slice(value);
    }
    region
}
