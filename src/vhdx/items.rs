//! Metadata that can change (section 2.6): user items, which travel in the file beside the disk and are kept by every
//! reader, and the parent locator. Offline: nobody else uses the file meanwhile.

use super::GuidSource;
use super::edit::Edit;
use super::error::{EditError, OpenError};
use super::format::{
    Guid, ITEM_FILE_PARAMETERS, ITEM_LOGICAL_SECTOR_SIZE, ITEM_PARENT_LOCATOR, ITEM_PHYSICAL_SECTOR_SIZE,
    ITEM_VIRTUAL_DISK_ID, ITEM_VIRTUAL_DISK_SIZE, METADATA_IS_REQUIRED, METADATA_IS_USER, METADATA_IS_VIRTUAL_DISK,
    METADATA_ITEM_LEN_MAX, METADATA_ITEMS_MAX, METADATA_TABLE_LEN, METADATA_USER_ITEMS_MAX, MIB, PAGE, REGION_METADATA,
};
use super::header::{read_headers, read_identifier};
use super::locator::ParentLocator;
use super::metadata::{Item, Items, NewItem, region_of, table_of};
use super::region::{Place, read_regions};
use super::replay::Overlay;
use super::storage::Storage;

/// User items together (a limit of Microsoft's engine for each kind of item).
const USER_ITEMS_LEN_MAX: u64 = 40 * MIB;

/// Values up to this go through the log in whole; longer ones are written to free pages first.
const LOGGED_LEN_MAX: u64 = 128 * 1024;

const PAGE_LEN: u64 = PAGE as u64;

/// A metadata item that a reader may ignore, with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataItem {
    /// What it is: together with `is_user` unique in the file.
    pub id: Guid,
    /// The user's rather than the system's.
    pub is_user: bool,
    /// Belongs to the virtual disk: children take it over. Otherwise it belongs to the file.
    pub is_virtual_disk: bool,
    /// Its value, at most 1 MiB.
    pub bytes: Vec<u8>,
}

/// A user item without its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ItemEntry {
    /// What it is.
    pub id: Guid,
    /// Children take it over.
    pub is_virtual_disk: bool,
    /// Length of its value in bytes.
    pub len_bytes: u64,
}

impl From<&MetadataItem> for NewItem {
    fn from(item: &MetadataItem) -> Self {
        let flag = |set, flag| if set { flag } else { 0 };
        let flags = flag(item.is_user, METADATA_IS_USER) | flag(item.is_virtual_disk, METADATA_IS_VIRTUAL_DISK);
        Self { id: item.id, flags, bytes: item.bytes.clone() }
    }
}

/// Read the metadata table, a pending log replayed in memory.
fn with_items<T>(
    storage: &mut dyn Storage,
    read: impl FnOnce(&mut dyn Storage, &Items) -> Result<T, OpenError>,
) -> Result<T, OpenError> {
    let (len_bytes, _) = read_identifier(storage)?;
    let header = read_headers(storage, len_bytes, &mut Vec::new())?.header;
    let start = header.log_offset.get();
    let mut overlay = if header.log_guid == Guid::ZERO {
        Overlay::clean(storage)?
    } else {
        Overlay::replayed(storage, start..start + u64::from(header.log_length.get()), header.log_guid)?
    };
    let region = read_regions(&mut overlay, &mut Vec::new())?.metadata;
    let items = super::error::first(|report| Items::read(&mut overlay, region, report))??;
    let rule = "it cannot be read";
    let items = items.ok_or(OpenError::MetadataTable { offset_bytes: region.offset_bytes, rule })?;
    read(&mut overlay, &items)
}

/// The user items of a file. Nothing is written.
pub fn list_items(storage: &mut dyn Storage) -> Result<Vec<ItemEntry>, OpenError> {
    with_items(storage, |_, items| {
        let entry = |item: &Item| ItemEntry {
            id: item.id,
            is_virtual_disk: item.flags & METADATA_IS_VIRTUAL_DISK != 0,
            len_bytes: item.len_bytes,
        };
        Ok(items.items.iter().filter(|item| item.is_user()).map(entry).collect())
    })
}

/// The value of a user item; `None` where there is no such item. Nothing is written.
pub fn get_item(storage: &mut dyn Storage, id: Guid) -> Result<Option<Vec<u8>>, OpenError> {
    with_items(storage, |storage, items| match items.items.iter().find(|item| item.id == id && item.is_user()) {
        Some(item) => Ok(Some(items.bytes(storage, item)?)),
        None => Ok(None),
    })
}

/// What a child of this disk takes over (section 2.6.1.2): the items of the virtual disk besides those that say what
/// every disk must. At most as much as fits beside a locator in 1 MiB. Nothing is written.
pub fn inherited_items(storage: &mut dyn Storage) -> Result<Vec<MetadataItem>, OpenError> {
    const EVERY_DISK: [Guid; 5] = [
        ITEM_FILE_PARAMETERS,
        ITEM_VIRTUAL_DISK_SIZE,
        ITEM_VIRTUAL_DISK_ID,
        ITEM_LOGICAL_SECTOR_SIZE,
        ITEM_PHYSICAL_SECTOR_SIZE,
    ];
    with_items(storage, |storage, items| {
        let inherited = |item: &&Item| {
            item.flags & METADATA_IS_VIRTUAL_DISK != 0 && (item.is_user() || !EVERY_DISK.contains(&item.id))
        };
        let mut found = Vec::new();
        let mut room = MIB - METADATA_TABLE_LEN as u64 - LOGGED_LEN_MAX;
        for item in items.items.iter().filter(inherited) {
            let Some(rest) = room.checked_sub(item.len_bytes) else { continue };
            room = rest;
            let bytes = items.bytes(storage, item)?;
            found.push(MetadataItem { id: item.id, is_user: item.is_user(), is_virtual_disk: true, bytes });
        }
        Ok(found)
    })
}

/// Write a user item: a new one, or another value for one that is there. IsRequired stays clear, so other readers
/// ignore it. All or nothing, whenever the power fails. User metadata is part of what DataWriteGuid identifies
/// (section 2.2.2): children of this file would lose their parent.
pub fn set_item(
    storage: &mut dyn Storage,
    guids: GuidSource,
    id: Guid,
    is_virtual_disk: bool,
    bytes: &[u8],
) -> Result<(), EditError> {
    let len_bytes = bytes.len() as u64;
    if len_bytes > METADATA_ITEM_LEN_MAX {
        return Err(EditError::ItemTooLong { len_bytes });
    }
    let mut edit = Edit::open(storage, guids)?;
    let others = edit.items.items.iter().filter(|item| item.is_user() && item.id != id);
    let (count, others_len) = others.fold((0, 0), |(count, len), item| (count + 1, len + item.len_bytes));
    if count >= METADATA_USER_ITEMS_MAX || edit.items.items.len() >= METADATA_ITEMS_MAX {
        return Err(EditError::TooManyItems { count });
    }
    if others_len + len_bytes > USER_ITEMS_LEN_MAX {
        return Err(EditError::ItemsTooLong { len_bytes: others_len + len_bytes });
    }
    let flags = METADATA_IS_USER | if is_virtual_disk { METADATA_IS_VIRTUAL_DISK } else { 0 };
    put(&mut edit, &NewItem { id, flags, bytes: bytes.to_vec() })?;
    edit.commit(true)
}

/// Delete a user item. All or nothing, whenever the power fails.
pub fn delete_item(storage: &mut dyn Storage, guids: GuidSource, id: Guid) -> Result<(), EditError> {
    let mut edit = Edit::open(storage, guids)?;
    let mut items = edit.items.items.clone();
    let at = items.iter().position(|item| item.id == id && item.is_user()).ok_or(EditError::NoItem { id })?;
    items.remove(at);
    patch_table(&mut edit, &items)?;
    edit.commit(true)
}

/// Give a differencing disk another parent, or another way to find it. All or nothing, whenever the power fails.
/// DataWriteGuid stays: what the disk shows must be the same with the new parent, and its own children must find it.
pub fn set_parent(storage: &mut dyn Storage, guids: GuidSource, locator: &ParentLocator) -> Result<(), EditError> {
    let bytes = locator.encode()?;
    let mut edit = Edit::open(storage, guids)?;
    if !edit.geometry.has_parent {
        return Err(EditError::NoParent);
    }
    put(&mut edit, &NewItem { id: ITEM_PARENT_LOCATOR, flags: METADATA_IS_REQUIRED, bytes })?;
    edit.commit(false)
}

/// Put an item in the place of the one with its identity, or behind the others.
fn put(edit: &mut Edit<'_>, new: &NewItem) -> Result<(), EditError> {
    let is_user = new.flags & METADATA_IS_USER != 0;
    let (len_bytes, mut items) = (new.bytes.len() as u64, edit.items.items.clone());
    let Some(offset_bytes) = place(&edit.items, len_bytes) else {
        return put_in_new_region(edit, new);
    };
    let item = Item { id: new.id, offset_bytes, len_bytes, flags: new.flags };
    match items.iter_mut().find(|item| item.id == new.id && item.is_user() == is_user) {
        Some(old) => *old = item,
        None => items.push(item),
    }
    let at = edit.items.region.offset_bytes + offset_bytes;
    if len_bytes > LOGGED_LEN_MAX {
        edit.write_free(at, &new.bytes)?;
    } else {
        edit.patch(at, &new.bytes)?;
    }
    patch_table(edit, &items)
}

/// The lowest free place in the region for a value. Long values get whole pages, which hold nothing else.
fn place(items: &Items, len_bytes: u64) -> Option<u64> {
    if len_bytes == 0 {
        return Some(0);
    }
    let align = if len_bytes > LOGGED_LEN_MAX { PAGE_LEN } else { 8 };
    let mut taken: Vec<(u64, u64)> =
        items.items.iter().filter(|item| item.len_bytes != 0).map(|i| (i.offset_bytes, i.len_bytes)).collect();
    taken.sort_unstable();
    let mut at = METADATA_TABLE_LEN as u64;
    for (start, len) in taken.into_iter().chain([(items.region.len_bytes, 0)]) {
        if at + len_bytes.next_multiple_of(align) <= start {
            return Some(at);
        }
        at = at.max((start + len).next_multiple_of(align));
    }
    None
}

/// Write what differs of the metadata table.
fn patch_table(edit: &mut Edit<'_>, items: &[Item]) -> Result<(), EditError> {
    let region = edit.items.region.offset_bytes;
    let (new, mut old) = (table_of(items), vec![0; METADATA_TABLE_LEN]);
    edit.storage.read_at(region, &mut old)?;
    for (at, (old, new)) in old.chunks(PAGE).zip(new.chunks(PAGE)).enumerate() {
        if old != new {
            edit.patch(region + at as u64 * PAGE_LEN, new)?;
        }
    }
    Ok(())
}

/// The region is full: all items move to a larger one behind everything else.
fn put_in_new_region(edit: &mut Edit<'_>, new: &NewItem) -> Result<(), EditError> {
    let is_user = new.flags & METADATA_IS_USER != 0;
    let (mut all, mut replaced) = (Vec::with_capacity(edit.items.items.len() + 1), false);
    for item in edit.items.items.clone() {
        if item.id == new.id && item.is_user() == is_user {
            all.push(new.clone());
            replaced = true;
        } else {
            let bytes = edit.items.bytes(edit.storage, &item)?;
            all.push(NewItem { id: item.id, flags: item.flags, bytes });
        }
    }
    if !replaced {
        all.push(new.clone());
    }
    let bytes = region_of(&all);
    // Room for as much again, so that a file with many items does not move its region for each.
    let len_bytes = (bytes.len() as u64 + (bytes.len() as u64 / 2)).next_multiple_of(MIB);
    let offset_bytes = edit.reserve(len_bytes)?;
    edit.write_free(offset_bytes, &bytes)?;
    edit.move_region(REGION_METADATA, Place { offset_bytes, len_bytes })
}
