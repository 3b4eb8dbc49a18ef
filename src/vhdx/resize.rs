//! Another size for a disk (sections 2.5 and 2.6.2.2), offline and all or nothing.
//!
//! Growing inside the BAT region writes the new entries where no reader looks yet; a table that no longer fits is
//! copied to new space first. New space of the disk always reads as zeros: the hidden end of the last block is zeroed,
//! and where a parent stands behind the disk its blocks are hidden. One log entry then changes size, region tables and
//! the pages of the table that old and new disk share.

use std::ops::Range;

use super::GuidSource;
use super::edit::Edit;
use super::error::EditError;
use super::format::{BatEntry, BlockState, DISK_SIZE_MAX, Guid, ITEM_VIRTUAL_DISK_SIZE, MIB, PAGE, REGION_BAT};
use super::geometry::{Geometry, Slot};
use super::region::Place;
use super::scan::{Met, Scan, SpaceMap};
use super::storage::Storage;

const PAGE_LEN: u64 = PAGE as u64;

/// Entries in a page of the table.
const PER_PAGE: u64 = PAGE_LEN / 8;

/// The entry of a block that is known to be zeros (section 2.5.1.1).
const ZERO: u64 = 2;

/// Smallest disk: what Windows accepts.
const SIZE_MIN: u64 = 3 * MIB;

/// Released ranges that are told.
const RELEASED_MAX: usize = 1 << 16;

/// How to resize.
pub struct ResizeOptions {
    /// Shrinking may cut off data.
    pub allow_cut: bool,
    /// For a differencing disk the parent's size, as far as it is known: growing hides the parent only below it, and
    /// shrinking cuts nothing of the parent's above it.
    pub parent_size_bytes: Option<u64>,
    /// Source of FileWriteGuid, DataWriteGuid and LogGuid.
    pub guids: GuidSource,
}

/// What a resize has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resized {
    /// The disk's shape now.
    pub geometry: Geometry,
    /// DataWriteGuid now; a child made before refers to another one.
    pub data_write_guid: Guid,
    /// The file's size now.
    pub file_len_bytes: u64,
    /// Ranges of the file that should be given real space (fallocate): the new blocks of a fixed disk, a moved table.
    pub allocate: Vec<Range<u64>>,
    /// Ranges inside the file that blocks have left, and that may be given back to the file system (punched); the first
    /// 65536 of them. The next allocations use them.
    pub released: Vec<Range<u64>>,
}

/// Give a disk another size: 3 MiB to 64 TiB, whole logical sectors. Power may fail at any time: the disk is then as it
/// was or resized. Children of the disk lose it: DataWriteGuid changes with the size (section 2.2.2).
pub fn resize(storage: &mut dyn Storage, size_bytes: u64, options: ResizeOptions) -> Result<Resized, EditError> {
    let ResizeOptions { allow_cut, parent_size_bytes, guids } = options;
    let mut edit = Edit::open(storage, guids)?;
    let old = edit.geometry;
    check_size(&old, size_bytes)?;
    let mut resize = Resize {
        old,
        new: old.with_size(size_bytes),
        old_bat: edit.bat,
        parent_size_bytes: if old.has_parent { parent_size_bytes.unwrap_or(u64::MAX) } else { 0 },
        changed: Vec::new(),
        fixed_start: 0,
        allocate: Vec::new(),
    };
    let mut released = Vec::new();
    if size_bytes > old.disk_size_bytes {
        resize.grow(&mut edit)?;
        edit.cut_tail(edit.end_bytes())?;
    } else if size_bytes < old.disk_size_bytes {
        if !allow_cut {
            resize.refuse_to_cut(&mut edit)?;
        }
        released = resize.shrink(&mut edit)?;
        // The blocks that are left tell where the file can end.
        let report = super::check::check(edit.storage)?;
        edit.cut_tail((report.file_len_bytes - report.tail_bytes).next_multiple_of(MIB))?;
        released.retain_mut(|range| {
            range.end = range.end.min(edit.len_bytes());
            range.start < range.end
        });
    }
    let (data_write_guid, file_len_bytes) = (edit.data_write_guid(), edit.len_bytes());
    Ok(Resized { geometry: resize.new, data_write_guid, file_len_bytes, allocate: resize.allocate, released })
}

fn check_size(old: &Geometry, size_bytes: u64) -> Result<(), EditError> {
    let sector_bytes = old.logical_sector_bytes;
    if size_bytes > DISK_SIZE_MAX || size_bytes < SIZE_MIN.min(old.disk_size_bytes) {
        return Err(EditError::Size { size_bytes });
    }
    if !size_bytes.is_multiple_of(u64::from(sector_bytes)) {
        let next_bytes = size_bytes.next_multiple_of(u64::from(sector_bytes));
        return Err(EditError::SizeNotSectors { size_bytes, sector_bytes, next_bytes });
    }
    Ok(())
}

struct Resize {
    old: Geometry,
    new: Geometry,
    old_bat: Place,
    /// How far a parent may show; 0 without one.
    parent_size_bytes: u64,
    /// Entries of the old disk that change.
    changed: Vec<(u64, BatEntry)>,
    /// Where the new blocks of a fixed disk are.
    fixed_start: u64,
    allocate: Vec<Range<u64>>,
}

impl Resize {
    fn grow(&mut self, edit: &mut Edit<'_>) -> Result<(), EditError> {
        self.uncover_last_block(edit)?;
        if self.new.fixed && self.new.block_count > self.old.block_count {
            let len = u64::from(self.new.block_count - self.old.block_count) << self.new.block_shift;
            self.fixed_start = edit.reserve(len)?;
            self.allocate.push(self.fixed_start..self.fixed_start + len);
        }
        if self.new.bat_entries() * 8 > self.old_bat.len_bytes {
            let len_bytes = self.new.bat_region_len_bytes();
            let offset_bytes = edit.reserve(len_bytes)?;
            self.new.bat_offset_bytes = offset_bytes;
            self.write_moved_table(edit)?;
            self.allocate.push(offset_bytes..offset_bytes + len_bytes);
            edit.move_region(REGION_BAT, Place { offset_bytes, len_bytes })?;
        } else {
            self.write_new_entries(edit)?;
        }
        self.patch_size(edit)?;
        edit.commit(true)
    }

    fn patch_size(&self, edit: &mut Edit<'_>) -> Result<(), EditError> {
        let item = edit.items.find(ITEM_VIRTUAL_DISK_SIZE).expect("the metadata was read with it");
        let offset_bytes = edit.items.region.offset_bytes + item.offset_bytes;
        edit.patch(offset_bytes, &self.new.disk_size_bytes.to_le_bytes())
    }

    /// The part of the last block that the old disk did not show must read as zeros.
    fn uncover_last_block(&mut self, edit: &mut Edit<'_>) -> Result<(), EditError> {
        let (block, visible) = match self.old.block_count.checked_sub(1) {
            Some(block) => (block, self.old.visible_len_bytes(block)),
            None => return Ok(()),
        };
        let size = u64::from(self.old.block_size_bytes);
        if visible == size {
            return Ok(());
        }
        let entry = self.old_entry(edit, self.old.bat_index(block))?;
        let hidden = entry.offset_bytes() + visible..entry.offset_bytes() + size;
        match entry.state() {
            Some(BlockState::FullyPresent) => edit.zero_free(hidden),
            Some(BlockState::PartiallyPresent) => {
                edit.zero_free(hidden)?;
                let bitmap = self.old_entry(edit, self.old.bitmap_index(block / self.old.chunk_ratio))?;
                let (at, bits) = self.bits_of(block, visible);
                self.merge_bits(edit, bitmap.offset_bytes() + at, bits)
            }
            Some(BlockState::NotPresent) if self.parent_size_bytes > self.old.disk_size_bytes => {
                self.cover_last_block(edit, block, visible)
            }
            _ => Ok(()),
        }
    }

    /// The bits of a block whose sectors from byte `from` on are in this file, and where they are in the bitmap.
    fn bits_of(&self, block: u32, from: u64) -> (u64, Vec<u8>) {
        let sector = u64::from(self.old.logical_sector_bytes);
        let len = u64::from(self.old.block_size_bytes) / sector / 8;
        let first = from / sector;
        let byte = |at: u64| (0..8).filter(|bit| at * 8 + bit >= first).fold(0, |byte, bit| byte | 1 << bit);
        (u64::from(block % self.old.chunk_ratio) * len, (0..len).map(byte).collect())
    }

    /// Set bits of a bitmap in place, with the commit.
    fn merge_bits(&self, edit: &mut Edit<'_>, at: u64, mut bits: Vec<u8>) -> Result<(), EditError> {
        let mut old = vec![0; bits.len()];
        edit.storage.read_at(at, &mut old)?;
        bits.iter_mut().zip(old).for_each(|(bit, old)| *bit |= old);
        edit.patch(at, &bits)
    }

    /// An absent last block whose hidden part would show the parent: that part gets space here, and zeros.
    fn cover_last_block(&mut self, edit: &mut Edit<'_>, block: u32, visible: u64) -> Result<(), EditError> {
        let place = edit.reserve(u64::from(self.old.block_size_bytes))?;
        self.changed.push((self.old.bat_index(block), BatEntry(place | 7)));
        let chunk = block / self.old.chunk_ratio;
        let bitmap = self.old_entry(edit, self.old.bitmap_index(chunk))?;
        let (at, bits) = self.bits_of(block, visible);
        if bitmap.0 & 7 == 6 {
            // Bits of a block that was absent mean nothing: all of them are written.
            return edit.patch(bitmap.offset_bytes() + at, &bits);
        }
        let bitmap = edit.reserve(MIB)?;
        edit.write_free(bitmap + at, &bits)?;
        self.changed.push((self.old.bitmap_index(chunk), BatEntry(bitmap | 6)));
        Ok(())
    }

    fn old_entry(&self, edit: &mut Edit<'_>, index: u64) -> Result<BatEntry, EditError> {
        let mut word = [0; 8];
        edit.storage.read_at(self.old.bat_offset_bytes + index * 8, &mut word)?;
        Ok(BatEntry(u64::from_le_bytes(word)))
    }

    /// Whether the old disk has this entry, so that it means something already.
    fn is_old(&self, index: u64) -> bool {
        match self.old.slot_at(index) {
            Slot::Block(_) => true,
            Slot::Bitmap(_) => self.old.has_parent,
            Slot::Unused => false,
        }
    }

    /// What the resized disk has at an index that means nothing in the old one.
    fn fresh_entry(&self, index: u64) -> BatEntry {
        let Slot::Block(block) = self.new.slot_at(index) else { return BatEntry::default() };
        let start = u64::from(block) << self.new.block_shift;
        if self.new.fixed {
            let behind = u64::from(block - self.old.block_count) << self.new.block_shift;
            BatEntry::fully_present(self.fixed_start + behind)
        } else if start < self.parent_size_bytes {
            BatEntry(ZERO)
        } else {
            BatEntry::default()
        }
    }

    /// A page of the resized disk's table, made from the old disk's at the same index.
    fn page_of(&self, edit: &mut Edit<'_>, page: u64) -> Result<[u8; PAGE], EditError> {
        let mut bytes = [0; PAGE];
        let inside = self.old_bat.len_bytes.saturating_sub(page * PAGE_LEN).min(PAGE_LEN) as usize;
        edit.storage.read_at(self.old.bat_offset_bytes + page * PAGE_LEN, &mut bytes[..inside])?;
        for (index, word) in (page * PER_PAGE..).zip(bytes.as_chunks_mut::<8>().0) {
            if !self.is_old(index) {
                *word = self.fresh_entry(index).0.to_le_bytes();
            }
        }
        for (index, entry) in &self.changed {
            if index / PER_PAGE == page {
                bytes[(index % PER_PAGE * 8) as usize..][..8].copy_from_slice(&entry.0.to_le_bytes());
            }
        }
        Ok(bytes)
    }

    /// The whole table, to space that reads as zeros.
    fn write_moved_table(&self, edit: &mut Edit<'_>) -> Result<(), EditError> {
        for page in 0..self.new.bat_entries().div_ceil(PER_PAGE) {
            let bytes = self.page_of(edit, page)?;
            if bytes != [0; PAGE] {
                edit.write_free(self.new.bat_offset_bytes + page * PAGE_LEN, &bytes)?;
            }
        }
        Ok(())
    }

    /// The entries that the old disk does not have, and those of it that change: pages with an old entry by the commit,
    /// all others at once, because nobody looks at them yet.
    fn write_new_entries(&self, edit: &mut Edit<'_>) -> Result<(), EditError> {
        let first = self.old.bat_index(self.old.block_count) / PER_PAGE;
        let changed = self.changed.iter().map(|(index, _)| index / PER_PAGE).filter(|page| *page < first);
        let pages: Vec<u64> = changed.collect();
        for page in pages.into_iter().chain(first..self.new.bat_entries().div_ceil(PER_PAGE)) {
            let (bytes, mut there) = (self.page_of(edit, page)?, [0; PAGE]);
            let at = self.old.bat_offset_bytes + page * PAGE_LEN;
            edit.storage.read_at(at, &mut there)?;
            if bytes == there {
                continue;
            }
            if (page * PER_PAGE..(page + 1) * PER_PAGE).any(|index| self.is_old(index)) {
                edit.patch(at, &bytes)?;
            } else {
                edit.write_free(at, &bytes)?;
            }
        }
        Ok(())
    }

    /// Look for data behind the new end.
    fn refuse_to_cut(&self, edit: &mut Edit<'_>) -> Result<(), EditError> {
        let (new_size, old_size) = (self.new.disk_size_bytes, self.old.disk_size_bytes);
        if self.parent_size_bytes > new_size {
            let least_bytes = self.parent_size_bytes.min(old_size);
            return Err(EditError::WouldCut { what: "what the parent may have", offset_bytes: new_size, least_bytes });
        }
        // The block that the new end is in, and everything behind it.
        let first = (new_size >> self.new.block_shift) as u32;
        if first >= self.old.block_count {
            return Ok(());
        }
        let mut scan = Scan::new(self.old, self.old.bat_index(first)..self.old.bat_entries());
        let mut found: Option<u64> = None;
        while let Some(met) = scan.next(edit.storage)? {
            let Slot::Block(block) = met.slot else { continue };
            if matches!(met.entry.0 & 7, 6 | 7) {
                let start = u64::from(block) << self.new.block_shift;
                let visible = start.max(new_size) - start..self.old.visible_len_bytes(block);
                if let Some(at) = self.first_data(edit, &met, visible)? {
                    found = Some(start + at);
                    break;
                }
            }
        }
        match found {
            None => Ok(()),
            Some(offset_bytes) => {
                let least_bytes = self.least_size(edit, first)?;
                Err(EditError::WouldCut { what: "data", offset_bytes, least_bytes })
            }
        }
    }

    /// The end of the last block with space, which is enough to keep all data.
    fn least_size(&self, edit: &mut Edit<'_>, first: u32) -> Result<u64, EditError> {
        let mut scan = Scan::new(self.old, self.old.bat_index(first)..self.old.bat_entries());
        let mut last = first;
        while let Some(met) = scan.next(edit.storage)? {
            if let Slot::Block(block) = met.slot
                && matches!(met.entry.0 & 7, 6 | 7)
            {
                last = block;
            }
        }
        Ok(((u64::from(last) + 1) << self.old.block_shift).min(self.old.disk_size_bytes))
    }

    /// The first byte of a range of a block with space that is not zero. A partially present block is taken to have
    /// data throughout.
    fn first_data(&self, edit: &mut Edit<'_>, met: &Met, range: Range<u64>) -> Result<Option<u64>, EditError> {
        if met.entry.0 & 7 == 7 {
            return Ok((!range.is_empty()).then_some(range.start));
        }
        let (mut at, mut bytes) = (range.start, vec![0; MIB as usize]);
        while at < range.end {
            let part = &mut bytes[..(range.end - at).min(MIB) as usize];
            edit.storage.read_at(met.entry.offset_bytes() + at, part)?;
            if let Some(byte) = part.iter().position(|byte| *byte != 0) {
                return Ok(Some(at + byte as u64));
            }
            at += part.len() as u64;
        }
        Ok(None)
    }

    /// The new size, and no entry behind it. What the blocks leave behind.
    fn shrink(&mut self, edit: &mut Edit<'_>) -> Result<Vec<Range<u64>>, EditError> {
        let first = self.old.bat_index(self.new.block_count);
        let mut left = SpaceMap::new(edit.report.file_len_bytes);
        let mut scan = Scan::new(self.old, first.min(self.old.bat_entries())..self.old.bat_entries());
        let (mut pages, mut stale) = (Vec::new(), Vec::new());
        let mut page = u64::MAX;
        while let Some(met) = scan.next(edit.storage)? {
            let kept_bitmap = matches!(met.slot, Slot::Bitmap(chunk) if chunk < self.new.chunk_count());
            if met.slot == Slot::Unused || kept_bitmap || met.entry.0 == 0 {
                continue;
            }
            // An anchor may name space that another block has by now.
            if matches!(met.entry.0 & 7, 6 | 7) {
                let len = if matches!(met.slot, Slot::Bitmap(_)) { MIB } else { u64::from(self.old.block_size_bytes) };
                left.take(met.entry.offset_bytes()..met.entry.offset_bytes().saturating_add(len));
            }
            if met.index / PER_PAGE != page {
                page = met.index / PER_PAGE;
                if self.is_shared(page) { &mut pages } else { &mut stale }.push(page);
            }
        }
        for page in pages {
            let bytes = self.shrunk_page(edit, page)?;
            edit.patch(self.old.bat_offset_bytes + page * PAGE_LEN, &bytes)?;
        }
        self.patch_size(edit)?;
        edit.commit(true)?;
        // Nobody looks at these any more. A later growth would write them all the same.
        for page in &stale {
            edit.write_free(self.old.bat_offset_bytes + page * PAGE_LEN, &[0; PAGE])?;
        }
        if !stale.is_empty() {
            edit.storage.flush()?;
        }
        Ok(left.taken().take(RELEASED_MAX).collect())
    }

    /// Whether a page of the table has entries that the shrunk disk keeps.
    fn is_shared(&self, page: u64) -> bool {
        (page * PER_PAGE..(page + 1) * PER_PAGE).any(|index| self.is_kept(index))
    }

    fn is_kept(&self, index: u64) -> bool {
        match self.new.slot_at(index) {
            Slot::Block(_) => true,
            Slot::Bitmap(_) => self.new.has_parent,
            Slot::Unused => false,
        }
    }

    fn shrunk_page(&self, edit: &mut Edit<'_>, page: u64) -> Result<[u8; PAGE], EditError> {
        let mut bytes = [0; PAGE];
        edit.storage.read_at(self.old.bat_offset_bytes + page * PAGE_LEN, &mut bytes)?;
        for (index, word) in (page * PER_PAGE..).zip(bytes.as_chunks_mut::<8>().0) {
            if !self.is_kept(index) {
                *word = [0; 8];
            }
        }
        Ok(bytes)
    }
}
