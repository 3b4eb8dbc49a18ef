//! Reading the block allocation table (section 2.5) with every entry checked, and encoding its pages.

use std::sync::atomic::AtomicU64;

use super::error::OpenError;
use super::format::{BatEntry, BlockState, MIB, PAGE};
use super::geometry::Geometry;
use super::region::{Place, Span};
use super::storage::Storage;
use super::view::BatView;

/// Entries in a 4 KiB page of the table: what one data descriptor of the log carries.
pub(super) const ENTRIES_PER_PAGE: u64 = (PAGE / 8) as u64;

/// Bytes of the table read at once.
const READ_LEN: u64 = 256 * 1024;

/// The table of an open disk.
pub(super) struct Table {
    pub entries: Box<[AtomicU64]>,
    /// Blocks with content in the file.
    pub present: u32,
    /// Behind the last byte that any object of the file occupies, soft anchors included; a multiple of 1 MiB.
    pub objects_end: u64,
}

/// Read and check the table. `spans` are the other objects of the file, sorted and disjoint.
pub(super) fn read_table(
    storage: &mut dyn Storage,
    geometry: &Geometry,
    region: Place,
    spans: &[Span],
) -> Result<Table, OpenError> {
    let needed = geometry.bat_entries();
    if region.len_bytes / 8 < needed {
        return Err(OpenError::BatTooSmall {
            offset_bytes: region.offset_bytes,
            entries: region.len_bytes / 8,
            needed,
        });
    }
    let file_len = storage.len_bytes()?;
    let mut entries = Vec::with_capacity(geometry.block_count as usize);
    let mut present = Vec::new();
    let mut objects_end = spans.iter().map(|span| span.end).fold(MIB, u64::max);
    let mut buffer = vec![0; READ_LEN.min(needed * 8) as usize];
    let mut index = 0;
    while index < needed {
        let count = (buffer.len() as u64 / 8).min(needed - index) as usize;
        let bytes = &mut buffer[..count * 8];
        storage.read_at(region.offset_bytes + index * 8, bytes)?;
        for word in bytes.as_chunks::<8>().0 {
            let entry = BatEntry(u64::from_le_bytes(*word));
            let offset_bytes = region.offset_bytes + index * 8;
            match geometry.block_at(index) {
                Some(block) => {
                    let entry = check_block(geometry, block, entry, offset_bytes, file_len)?;
                    if let Some(end) = reserved_end(geometry, entry, file_len) {
                        objects_end = objects_end.max(end);
                    }
                    if entry.is_present() {
                        present.push(entry.offset_bytes());
                    }
                    entries.push(AtomicU64::new(entry.0));
                }
                None if entry.0 & 7 != 0 => {
                    let chunk = (index / (u64::from(geometry.chunk_ratio) + 1)) as u32;
                    let rule = "a disk without a parent has no sector bitmaps";
                    return Err(OpenError::Bitmap { chunk, entry: entry.0, offset_bytes, rule });
                }
                None => {}
            }
            index += 1;
        }
    }
    assert_eq!(entries.len(), geometry.block_count as usize);
    let table = Table {
        entries: entries.into(),
        present: present.len() as u32,
        objects_end: objects_end.next_multiple_of(MIB),
    };
    check_disjoint(geometry, &table, present, spans)?;
    Ok(table)
}

/// The end of the space that an entry keeps: content, or an anchor inside the file.
fn reserved_end(geometry: &Geometry, entry: BatEntry, file_len: u64) -> Option<u64> {
    let offset_bytes = entry.offset_bytes();
    let end = offset_bytes.checked_add(u64::from(geometry.block_size_bytes))?;
    (entry.is_present() || (offset_bytes != 0 && end <= file_len)).then_some(end)
}

/// How much of a block the guest can see: less than its size only for the last.
pub(super) fn visible_len(geometry: &Geometry, block: u32) -> u64 {
    let start = u64::from(block) << geometry.block_shift;
    (geometry.disk_size_bytes - start).min(u64::from(geometry.block_size_bytes))
}

fn check_block(
    geometry: &Geometry,
    block: u32,
    entry: BatEntry,
    offset_bytes: u64,
    file_len: u64,
) -> Result<BatEntry, OpenError> {
    let broken = |rule| Err(OpenError::Block { block, entry: entry.0, offset_bytes, rule });
    match entry.state() {
        None => return broken("its state is reserved"),
        Some(BlockState::PartiallyPresent) => return broken("partially present, in a disk without a parent"),
        Some(BlockState::FullyPresent) => {
            if entry.offset_bytes() < MIB {
                return broken("it lies inside the header section");
            }
            // Old writers cut the last block where the guest's part ends; that is all that must be there.
            match entry.offset_bytes().checked_add(visible_len(geometry, block)) {
                Some(end) if end <= file_len => {}
                _ => return broken("it passes the end of the file"),
            }
        }
        Some(_) => {}
    }
    Ok(BatEntry(entry.0 & (BatEntry::OFFSET_MASK | 7)))
}

/// Refuse two blocks, or a block and another object, that share a byte.
fn check_disjoint(geometry: &Geometry, table: &Table, mut present: Vec<u64>, spans: &[Span]) -> Result<(), OpenError> {
    let size = u64::from(geometry.block_size_bytes);
    let name = |offset: u64, skip: usize| {
        let holds = |entry: &AtomicU64| {
            let entry = BatEntry(entry.load(std::sync::atomic::Ordering::Relaxed));
            entry.is_present() && entry.offset_bytes() == offset
        };
        let block = table.entries.iter().enumerate().filter(|(_, entry)| holds(entry)).nth(skip);
        format!("block {}", block.map_or(0, |(block, _)| block))
    };
    present.sort_unstable();
    if let Some(pair) = present.windows(2).find(|pair| pair[1] - pair[0] < size) {
        let second = name(pair[1], usize::from(pair[0] == pair[1]));
        return Err(OpenError::Overlap { first: name(pair[0], 0), second, offset_bytes: pair[1] });
    }
    for span in spans {
        // The first block that ends behind the span's start is the only one that needs a look: blocks are in order.
        let at = present.partition_point(|offset| offset + size <= span.start);
        if let Some(offset) = present.get(at).filter(|offset| **offset < span.end) {
            return Err(OpenError::Overlap {
                first: span.name.clone(),
                second: name(*offset, 0),
                offset_bytes: *offset.max(&span.start),
            });
        }
    }
    Ok(())
}

/// The page of the table that holds a block's entry.
pub(super) fn page_of(geometry: &Geometry, block: u32) -> u32 {
    (geometry.bat_index(block) / ENTRIES_PER_PAGE) as u32
}

/// Encode one page of the table as the view shows it. Bitmap entries and what follows the last entry are zero.
pub(super) fn encode_page(geometry: &Geometry, view: &BatView, page: u32, into: &mut [u8]) {
    assert_eq!(into.len(), PAGE);
    let first = u64::from(page) * ENTRIES_PER_PAGE;
    for (index, word) in (first..).zip(into.as_chunks_mut::<8>().0) {
        let entry = geometry.block_at(index).map_or(BatEntry::default(), |block| view.entry(block));
        *word = entry.0.to_le_bytes();
    }
}
