//! The metadata region (section 2.6): what the disk is.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::error::{OpenError, first};
use super::format::{
    BLOCK_SIZE_MAX, BLOCK_SIZE_MIN, DISK_SIZE_MAX, FILE_HAS_PARENT, FILE_LEAVE_BLOCKS_ALLOCATED, Guid,
    ITEM_FILE_PARAMETERS, ITEM_INCOMPLETE_FILE, ITEM_LOGICAL_SECTOR_SIZE, ITEM_PARENT_LOCATOR,
    ITEM_PHYSICAL_SECTOR_SIZE, ITEM_VIRTUAL_DISK_ID, ITEM_VIRTUAL_DISK_SIZE, METADATA_IS_REQUIRED, METADATA_IS_USER,
    METADATA_IS_VIRTUAL_DISK, METADATA_ITEM_LEN_MAX, METADATA_ITEMS_MAX, METADATA_TABLE_LEN, METADATA_TABLE_MAGIC,
    METADATA_USER_ITEMS_MAX, MetadataTableEntry, MetadataTableHeader,
};
use super::geometry::{Geometry, chunk_ratio};
use super::locator::ParentLocator;
use super::region::Place;
use super::storage::{Storage, StorageError};

/// What the metadata says.
#[derive(Clone, Debug)]
pub(super) struct Metadata {
    pub geometry: Geometry,
    pub virtual_disk_id: Guid,
    /// Where HasParent is set.
    pub parent: Option<ParentLocator>,
}

/// An item's place in the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub id: Guid,
    pub offset_bytes: u64,
    pub len_bytes: u64,
    pub flags: u32,
}

impl Item {
    pub fn broken(&self, rule: &'static str) -> OpenError {
        OpenError::MetadataItem { item: self.id, offset_bytes: self.offset_bytes, len_bytes: self.len_bytes, rule }
    }

    pub fn is_user(&self) -> bool {
        self.flags & METADATA_IS_USER != 0
    }
}

/// The table's items, every rule of section 2.6.1 checked.
#[derive(Clone, Debug)]
pub(super) struct Items {
    pub region: Place,
    pub items: Vec<Item>,
}

impl Items {
    /// The items, and every rule of sections 2.6.1.1 and 2.6.1.2 that is broken. `None` where there is no table.
    pub fn read(
        storage: &mut dyn Storage,
        region: Place,
        report: &mut dyn FnMut(OpenError),
    ) -> Result<Option<Self>, StorageError> {
        let mut table = vec![0; METADATA_TABLE_LEN];
        storage.read_at(region.offset_bytes, &mut table)?;
        let items = match items_of(&table) {
            Ok(items) => items,
            Err(rule) => {
                report(OpenError::MetadataTable { offset_bytes: region.offset_bytes, rule });
                return Ok(None);
            }
        };
        if items.iter().filter(|item| item.is_user()).count() > METADATA_USER_ITEMS_MAX {
            let rule = "it has more than 1024 user items";
            report(OpenError::MetadataTable { offset_bytes: region.offset_bytes, rule });
        }
        check_places(&items, region, report);
        Ok(Some(Self { region, items }))
    }

    /// A system item.
    pub fn find(&self, id: Guid) -> Option<&Item> {
        self.items.iter().find(|item| item.id == id && !item.is_user())
    }

    /// An item's bytes: at most 1 MiB.
    pub fn bytes(&self, storage: &mut dyn Storage, item: &Item) -> Result<Vec<u8>, StorageError> {
        let mut bytes = vec![0; item.len_bytes as usize];
        storage.read_at(self.region.offset_bytes + item.offset_bytes, &mut bytes)?;
        Ok(bytes)
    }

    /// The bytes of a required item of exactly `N` bytes.
    fn value<const N: usize>(
        &self,
        storage: &mut dyn Storage,
        (id, name): (Guid, &'static str),
        report: &mut dyn FnMut(OpenError),
    ) -> Result<Option<[u8; N]>, StorageError> {
        let Some(item) = self.find(id) else {
            report(OpenError::MetadataMissing { name });
            return Ok(None);
        };
        if item.len_bytes != N as u64 {
            report(item.broken("it has the wrong length"));
            return Ok(None);
        }
        if !self.is_inside(item) {
            return Ok(None); // The rules of places have said so.
        }
        let mut bytes = [0; N];
        storage.read_at(self.region.offset_bytes + item.offset_bytes, &mut bytes)?;
        Ok(Some(bytes))
    }

    fn is_inside(&self, item: &Item) -> bool {
        item.len_bytes <= METADATA_ITEM_LEN_MAX
            && item.offset_bytes.saturating_add(item.len_bytes) <= self.region.len_bytes
    }
}

fn items_of(table: &[u8]) -> Result<Vec<Item>, &'static str> {
    let Ok((header, rest)) = MetadataTableHeader::read_from_prefix(table) else {
        return Err("it is shorter than its header");
    };
    if header.signature != METADATA_TABLE_MAGIC {
        return Err("its signature is not 'metadata'");
    }
    let count = usize::from(header.entry_count.get());
    if count > METADATA_ITEMS_MAX {
        return Err("it claims more than 2047 items");
    }
    let Ok((entries, _)) = <[MetadataTableEntry]>::ref_from_prefix_with_elems(rest, count) else {
        return Err("its items pass its end");
    };
    let item = |entry: &MetadataTableEntry| Item {
        id: entry.item_id,
        offset_bytes: u64::from(entry.offset.get()),
        len_bytes: u64::from(entry.length.get()),
        flags: entry.flags.get(),
    };
    Ok(entries.iter().map(item).collect())
}

fn check_places(items: &[Item], region: Place, report: &mut dyn FnMut(OpenError)) {
    let mut sorted = items.to_vec();
    sorted.sort_by_key(|item| (item.id.0, item.is_user()));
    for pair in sorted.windows(2) {
        if pair[0].id == pair[1].id && pair[0].is_user() == pair[1].is_user() {
            report(pair[1].broken("it is listed twice"));
        }
    }
    for item in items {
        if item.len_bytes == 0 && item.offset_bytes == 0 {
            continue;
        }
        if item.len_bytes > METADATA_ITEM_LEN_MAX {
            report(item.broken("items have at most 1 MiB"));
        }
        if item.len_bytes == 0 || item.offset_bytes < METADATA_TABLE_LEN as u64 {
            report(item.broken("items lie behind the table, and empty ones at offset 0"));
        }
        if item.offset_bytes + item.len_bytes > region.len_bytes {
            report(item.broken("it passes the end of the metadata region"));
        }
    }
    sorted.sort_by_key(|item| item.offset_bytes);
    for pair in sorted.windows(2) {
        if pair[1].len_bytes != 0 && pair[0].offset_bytes + pair[0].len_bytes > pair[1].offset_bytes {
            report(pair[1].broken("it overlaps another item"));
        }
    }
}

/// Read and check the metadata. `bat_offset_bytes` completes the geometry.
pub(super) fn read_metadata(
    storage: &mut dyn Storage,
    region: Place,
    bat_offset_bytes: u64,
) -> Result<Metadata, OpenError> {
    let found = first(|report| metadata_rules(storage, region, bat_offset_bytes, report))??;
    found.ok_or(OpenError::MetadataTable { offset_bytes: region.offset_bytes, rule: "it does not describe a disk" })
}

/// Every rule of section 2.6. `None` where so much is broken that the disk's shape is not known.
pub(super) fn metadata_rules(
    storage: &mut dyn Storage,
    region: Place,
    bat_offset_bytes: u64,
    report: &mut dyn FnMut(OpenError),
) -> Result<Option<Metadata>, StorageError> {
    let Some(items) = Items::read(storage, region, report)? else {
        return Ok(None);
    };
    required_rules(&items, report);
    let parameters: Option<[u8; 8]> = items.value(storage, (ITEM_FILE_PARAMETERS, "File Parameters"), report)?;
    let size = items.value(storage, (ITEM_VIRTUAL_DISK_SIZE, "Virtual Disk Size"), report)?;
    let id = items.value(storage, (ITEM_VIRTUAL_DISK_ID, "Virtual Disk ID"), report)?;
    let logical = items.value(storage, (ITEM_LOGICAL_SECTOR_SIZE, "Logical Sector Size"), report)?;
    let physical = items.value(storage, (ITEM_PHYSICAL_SECTOR_SIZE, "Physical Sector Size"), report)?;
    let (Some(parameters), Some(size), Some(id), Some(logical), Some(physical)) =
        (parameters, size, id, logical, physical)
    else {
        return Ok(None);
    };
    let [b0, b1, b2, b3, f0, f1, f2, f3] = parameters;
    let (block_size, flags) = (u32::from_le_bytes([b0, b1, b2, b3]), u32::from_le_bytes([f0, f1, f2, f3]));
    let (size, sectors) = (u64::from_le_bytes(size), (u32::from_le_bytes(logical), u32::from_le_bytes(physical)));
    if let Err(error) = check_values(size, block_size, sectors.0, sectors.1) {
        report(error);
        return Ok(None);
    }
    let geometry = geometry_of(size, block_size, sectors, flags, bat_offset_bytes);
    let parent = if geometry.has_parent { parent_of(storage, &items, report)? } else { None };
    Ok(Some(Metadata { geometry, virtual_disk_id: Guid(id), parent }))
}

fn required_rules(items: &Items, report: &mut dyn FnMut(OpenError)) {
    if items.find(ITEM_INCOMPLETE_FILE).is_some() {
        report(OpenError::Incomplete);
    }
    const KNOWN: [Guid; 6] = [
        ITEM_FILE_PARAMETERS,
        ITEM_VIRTUAL_DISK_SIZE,
        ITEM_VIRTUAL_DISK_ID,
        ITEM_LOGICAL_SECTOR_SIZE,
        ITEM_PHYSICAL_SECTOR_SIZE,
        ITEM_PARENT_LOCATOR,
    ];
    for item in &items.items {
        if item.flags & METADATA_IS_REQUIRED != 0 && (item.is_user() || !KNOWN.contains(&item.id)) {
            report(OpenError::MetadataUnknown { item: item.id });
        }
    }
}

fn parent_of(
    storage: &mut dyn Storage,
    items: &Items,
    report: &mut dyn FnMut(OpenError),
) -> Result<Option<ParentLocator>, StorageError> {
    let Some(item) = items.find(ITEM_PARENT_LOCATOR) else {
        report(OpenError::MetadataMissing { name: "Parent Locator" });
        return Ok(None);
    };
    if !items.is_inside(item) {
        return Ok(None);
    }
    match ParentLocator::parse(&items.bytes(storage, item)?) {
        Ok(parent) => Ok(Some(parent)),
        Err(reason) => {
            report(OpenError::ParentLocator { reason });
            Ok(None)
        }
    }
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

/// An item with its value, to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NewItem {
    pub id: Guid,
    pub flags: u32,
    pub bytes: Vec<u8>,
}

/// The items that every disk has, and the locator of one that has a parent.
pub(super) fn system_items(geometry: &Geometry, virtual_disk_id: Guid, locator: Option<Vec<u8>>) -> Vec<NewItem> {
    let fixed = if geometry.fixed { FILE_LEAVE_BLOCKS_ALLOCATED } else { 0 };
    let flags = fixed | if geometry.has_parent { FILE_HAS_PARENT } else { 0 };
    let parameters = [U32::new(geometry.block_size_bytes), U32::new(flags)];
    let size = U64::new(geometry.disk_size_bytes);
    let sectors = [U32::new(geometry.logical_sector_bytes), U32::new(geometry.physical_sector_bytes)];
    let disk = METADATA_IS_REQUIRED | METADATA_IS_VIRTUAL_DISK;
    let item = |id, flags, bytes: &[u8]| NewItem { id, flags, bytes: bytes.to_vec() };
    let mut items = vec![
        item(ITEM_FILE_PARAMETERS, METADATA_IS_REQUIRED, parameters.as_bytes()),
        item(ITEM_VIRTUAL_DISK_SIZE, disk, size.as_bytes()),
        item(ITEM_VIRTUAL_DISK_ID, disk, &virtual_disk_id.0),
        item(ITEM_LOGICAL_SECTOR_SIZE, disk, sectors[0].as_bytes()),
        item(ITEM_PHYSICAL_SECTOR_SIZE, disk, sectors[1].as_bytes()),
    ];
    items.extend(locator.map(|bytes| NewItem { id: ITEM_PARENT_LOCATOR, flags: METADATA_IS_REQUIRED, bytes }));
    items
}

/// The start of a metadata region: the table, and the values behind it, one after another.
pub(super) fn region_of(items: &[NewItem]) -> Vec<u8> {
    let mut region = vec![0; METADATA_TABLE_LEN];
    let mut placed = Vec::with_capacity(items.len());
    for item in items {
        let offset_bytes = if item.bytes.is_empty() { 0 } else { region.len() as u64 };
        placed.push(Item { id: item.id, offset_bytes, len_bytes: item.bytes.len() as u64, flags: item.flags });
        region.extend_from_slice(&item.bytes);
    }
    region[..METADATA_TABLE_LEN].copy_from_slice(&table_of(&placed));
    region
}

/// The metadata table with these items (section 2.6.1).
pub(super) fn table_of(items: &[Item]) -> Vec<u8> {
    assert!(items.len() <= METADATA_ITEMS_MAX, "refused before it came here");
    let header = MetadataTableHeader {
        signature: METADATA_TABLE_MAGIC,
        reserved: U16::ZERO,
        entry_count: U16::new(items.len() as u16),
        reserved2: [0; 20],
    };
    let mut table = vec![0; METADATA_TABLE_LEN];
    table[..32].copy_from_slice(header.as_bytes());
    for (item, slot) in items.iter().zip(table[32..].as_chunks_mut::<32>().0) {
        let in_region = |bytes| U32::new(u32::try_from(bytes).expect("regions are below 4 GiB"));
        let entry = MetadataTableEntry {
            item_id: item.id,
            offset: in_region(item.offset_bytes),
            length: in_region(item.len_bytes),
            flags: U32::new(item.flags),
            reserved: U32::ZERO,
        };
        slot.copy_from_slice(entry.as_bytes());
    }
    table
}
