//! Reading the block allocation table (section 2.5) once, at open: every entry is checked, the file's space is mapped,
//! and as many pages as may be are kept.

use std::sync::{Arc, OnceLock};

use super::error::OpenError;
use super::format::{BatEntry, BlockState, MIB, PAGE};
use super::geometry::{Geometry, Slot};
use super::region::{Place, Span};
use super::replay::Overlay;
use super::source::{BITMAP_PAGES, ReplayedPages, SharedSource, Source, bits_page_offset, settle};
use super::space::{Run, Space};
use super::storage::Storage;
use crate::blocks::{BlockMap, Fault, MapLimits, Shape};

/// Entries in a 4 KiB page of the table: what one data descriptor of the log carries.
pub(super) const ENTRIES_PER_PAGE: u64 = (PAGE / 8) as u64;

const PAGE_LEN: u64 = PAGE as u64;

/// Bytes of the table read at once.
const READ_LEN: u64 = 256 * 1024;

/// The table of an open disk.
pub(super) struct Table {
    pub map: Arc<BlockMap>,
    /// What is taken in the file: every object, and the anchors of trimmed blocks.
    pub space: Space,
    /// Sector bitmap blocks.
    pub bitmaps: u32,
    /// A replay that stays in memory cannot show the disk: why.
    pub unreadable_unless_replayed: Option<&'static str>,
}

/// The shape that the block map of a disk has.
pub(super) fn shape_of(geometry: &Geometry) -> Shape {
    Shape {
        size_bytes: geometry.disk_size_bytes,
        block_shift: geometry.block_shift,
        sector_shift: geometry.logical_sector_bytes.trailing_zeros() as u8,
        chunk_blocks: geometry.chunk_ratio,
        has_parent: geometry.has_parent,
    }
}

/// What is being read.
struct Reader<'a> {
    geometry: &'a Geometry,
    region: Place,
    file_len: u64,
    /// Payload blocks only, at first.
    space: Space,
    anchors: Space,
    present: u32,
    /// Sector bitmap blocks, by chunk.
    bitmaps: Vec<(u32, u64)>,
    /// A block of the current chunk needs a sector bitmap.
    partial: bool,
}

/// Read and check the table. `spans` are the other objects of the file, sorted and disjoint. `in_memory`: a replay will
/// not be written to the file.
pub(super) fn read_table(
    overlay: &mut Overlay<'_>,
    geometry: &Geometry,
    region: Place,
    spans: &[Span],
    in_memory: bool,
) -> Result<Table, OpenError> {
    let needed = geometry.bat_entries();
    if region.len_bytes / 8 < needed {
        return Err(OpenError::BatTooSmall {
            offset_bytes: region.offset_bytes,
            entries: region.len_bytes / 8,
            needed,
        });
    }
    let in_memory = in_memory && overlay.summary.is_some();
    let limit_bytes = if in_memory { overlay.base_len() } else { u64::MAX };
    let source = Arc::new(Source { geometry: *geometry, limit_bytes, replayed: OnceLock::new() });
    let limits = MapLimits::default();
    let map = Arc::new(BlockMap::new(shape_of(geometry), limits, Box::new(SharedSource(Arc::clone(&source)))));
    let mut reader = Reader {
        geometry,
        region,
        file_len: overlay.len_bytes()?,
        space: Space::default(),
        anchors: Space::default(),
        present: 0,
        bitmaps: Vec::new(),
        partial: false,
    };
    reader.read(overlay, &map, limits.entry_pages_max, limit_bytes)?;
    let mut unreadable = None;
    if in_memory {
        unreadable = reader.unreadable(overlay);
        let pages = replayed_pages(overlay, geometry, &reader.bitmaps)?;
        source.replayed.set(pages).expect("set once");
    }
    reader.take_others(overlay, spans)?;
    let Reader { mut space, anchors, present, bitmaps, .. } = reader;
    space.take_all_of(&anchors);
    map.set_blocks_allocated(present);
    Ok(Table { map, space, bitmaps: bitmaps.len() as u32, unreadable_unless_replayed: unreadable })
}

/// The pages of the map that a replay changes.
fn replayed_pages(
    overlay: &mut Overlay<'_>,
    geometry: &Geometry,
    bitmaps: &[(u32, u64)],
) -> Result<ReplayedPages, OpenError> {
    let mut pages = ReplayedPages::new();
    let mut keep = |overlay: &mut Overlay<'_>, table, page: u32, offset_bytes: u64| {
        if overlay.touches(offset_bytes..offset_bytes + PAGE_LEN) {
            let mut bytes = Box::new([0; PAGE]);
            overlay.read_at(offset_bytes, &mut bytes[..])?;
            pages.insert(Fault { table, page }, bytes);
        }
        Ok::<_, OpenError>(())
    };
    for page in 0..geometry.bat_entries().div_ceil(ENTRIES_PER_PAGE) as u32 {
        keep(overlay, crate::blocks::Table::Entries, page, geometry.bat_offset_bytes + u64::from(page) * PAGE_LEN)?;
    }
    for (chunk, block_bytes) in bitmaps {
        if overlay.touches(*block_bytes..block_bytes + MIB) {
            for page in chunk * BITMAP_PAGES..(chunk + 1) * BITMAP_PAGES {
                keep(overlay, crate::blocks::Table::Bits, page, bits_page_offset(*block_bytes, page))?;
            }
        }
    }
    Ok(pages)
}

impl Reader<'_> {
    fn read(
        &mut self,
        storage: &mut dyn Storage,
        map: &BlockMap,
        pages_max: u32,
        limit_bytes: u64,
    ) -> Result<(), OpenError> {
        let needed = self.geometry.bat_entries();
        let pages = needed.div_ceil(ENTRIES_PER_PAGE) as u32;
        let mut buffer = vec![0; READ_LEN.min(u64::from(pages) * PAGE_LEN) as usize];
        let (mut page, mut kept) = (0, 0);
        while page < pages {
            let count = (buffer.len() / PAGE).min((pages - page) as usize);
            let bytes = &mut buffer[..count * PAGE];
            storage.read_at(self.region.offset_bytes + u64::from(page) * PAGE_LEN, bytes)?;
            for bytes in bytes.as_chunks_mut::<PAGE>().0 {
                if !self.page(storage, page, bytes, needed)? {
                    map.entries().fill_zeros(page);
                } else if kept < pages_max {
                    settle(bytes, limit_bytes);
                    map.entries().fill(page, bytes);
                    kept += 1;
                }
                page += 1;
            }
        }
        Ok(())
    }

    /// Check one page; whether it is more than zeros.
    fn page(
        &mut self,
        storage: &mut dyn Storage,
        page: u32,
        bytes: &[u8; PAGE],
        needed: u64,
    ) -> Result<bool, OpenError> {
        let first = u64::from(page) * ENTRIES_PER_PAGE;
        let end = (first + ENTRIES_PER_PAGE).min(needed);
        let words = &bytes.as_chunks::<8>().0[..(end - first) as usize];
        let zeros = words.iter().all(|word| u64::from_le_bytes(*word) == 0);
        let period = u64::from(self.geometry.chunk_ratio) + 1;
        if zeros && !self.partial {
            return Ok(false);
        }
        let mut within = first % period;
        let mut block = (first / period * (period - 1) + within) as u32;
        for (index, word) in (first..).zip(words) {
            let word = u64::from_le_bytes(*word);
            if within + 1 == period {
                self.bitmap(index, word)?;
                within = 0;
                continue;
            }
            if block < self.geometry.block_count {
                self.block(storage, index, block, word)?;
                block += 1;
            }
            within += 1;
        }
        Ok(true)
    }

    fn entry_offset(&self, index: u64) -> u64 {
        self.region.offset_bytes + index * 8
    }

    fn block(&mut self, storage: &mut dyn Storage, index: u64, block: u32, word: u64) -> Result<(), OpenError> {
        let entry = BatEntry(word);
        let offset_bytes = self.entry_offset(index);
        let broken = |rule| Err(OpenError::Block { block, entry: word, offset_bytes, rule });
        let block_len = u64::from(self.geometry.block_size_bytes);
        match entry.state() {
            None => return broken("its state is reserved"),
            Some(BlockState::PartiallyPresent) if !self.geometry.has_parent => {
                return broken("partially present, in a disk without a parent");
            }
            Some(BlockState::FullyPresent | BlockState::PartiallyPresent) => {}
            Some(_) => {
                let end = entry.offset_bytes().saturating_add(block_len);
                if entry.offset_bytes() != 0 && end <= self.file_len {
                    self.anchors.take_rest(Run { offset_bytes: entry.offset_bytes(), len_bytes: block_len });
                }
                return Ok(());
            }
        }
        let start = entry.offset_bytes();
        if start < MIB {
            return broken("it lies inside the header section");
        }
        // Old writers cut the last block where the guest's part ends; that is all that must be there.
        match start.checked_add(self.geometry.visible_len_bytes(block)) {
            Some(end) if end <= self.file_len => {}
            _ => return broken("it passes the end of the file"),
        }
        self.partial |= word & 7 == 7;
        self.present += 1;
        if self.space.take(Run { offset_bytes: start, len_bytes: block_len }) {
            return Ok(());
        }
        let (first, at) = self.holder(storage, index, Run { offset_bytes: start, len_bytes: block_len })?;
        Err(OpenError::Overlap { first, second: format!("block {block}"), offset_bytes: at.max(start) })
    }

    fn bitmap(&mut self, index: u64, word: u64) -> Result<(), OpenError> {
        let Slot::Bitmap(chunk) = self.geometry.slot_at(index) else { return Ok(()) };
        let partial = std::mem::take(&mut self.partial);
        let (entry, offset_bytes) = (word, self.entry_offset(index));
        if !self.geometry.has_parent {
            let rule = "a disk without a parent has no sector bitmaps";
            let absent = word & 7 == 0;
            return if absent { Ok(()) } else { Err(OpenError::Bitmap { chunk, entry, offset_bytes, rule }) };
        }
        let broken = |rule| Err(OpenError::Bitmap { chunk, entry, offset_bytes, rule });
        match (word & 7, partial) {
            (0, false) => return Ok(()),
            (0, true) => return broken("it is absent, and the chunk has partially present blocks"),
            (6, _) => {}
            _ => return broken("its state is reserved"),
        }
        let start = BatEntry(word).offset_bytes();
        if start < MIB {
            return broken("it lies inside the header section");
        }
        if start.checked_add(MIB).is_none_or(|end| end > self.file_len) {
            return broken("it passes the end of the file");
        }
        self.bitmaps.push((chunk, start));
        Ok(())
    }

    /// The first block in front of `index` in the table that shares a byte with `run`, and where it starts.
    fn holder(&self, storage: &mut dyn Storage, index: u64, run: Run) -> Result<(String, u64), OpenError> {
        let block_len = u64::from(self.geometry.block_size_bytes);
        let mut bytes = [0; PAGE];
        for page in 0..=(index / ENTRIES_PER_PAGE) {
            storage.read_at(self.region.offset_bytes + page * PAGE_LEN, &mut bytes)?;
            for (at, word) in (page * ENTRIES_PER_PAGE..index).zip(bytes.as_chunks::<8>().0) {
                let entry = BatEntry(u64::from_le_bytes(*word));
                let start = entry.offset_bytes();
                if let (Slot::Block(block), 6..) = (self.geometry.slot_at(at), entry.0 & 7)
                    && start < run.end()
                    && start + block_len > run.offset_bytes
                {
                    return Ok((format!("block {block}"), start));
                }
            }
        }
        Ok(("another object".to_owned(), run.offset_bytes))
    }

    /// Take what is not payload. Everything must be disjoint.
    fn take_others(&mut self, storage: &mut dyn Storage, spans: &[Span]) -> Result<(), OpenError> {
        let end = self.geometry.bat_entries();
        let bitmaps = std::mem::take(&mut self.bitmaps);
        for (chunk, offset_bytes) in &bitmaps {
            let run = Run { offset_bytes: *offset_bytes, len_bytes: MIB };
            if !self.space.take(run) {
                let (first, _) = self.holder(storage, end, run)?;
                let second = format!("the sector bitmap of chunk {chunk}");
                return Err(OpenError::Overlap { first, second, offset_bytes: *offset_bytes });
            }
        }
        for span in spans {
            let run = Run { offset_bytes: span.start, len_bytes: span.end - span.start };
            if !self.space.take(run) {
                let bitmap = bitmaps.iter().find(|(_, start)| *start < run.end() && start + MIB > span.start);
                let (second, at) = match bitmap {
                    Some((chunk, start)) => (format!("the sector bitmap of chunk {chunk}"), *start),
                    None => self.holder(storage, end, run)?,
                };
                return Err(OpenError::Overlap { first: span.name.clone(), second, offset_bytes: at.max(span.start) });
            }
        }
        self.bitmaps = bitmaps;
        Ok(())
    }

    /// Why the disk cannot be read without writing the replay to the file: payload is read from the file as it is.
    /// What the replay would append reads as zeros; what it would do to blocks is beyond reading.
    fn unreadable(&self, overlay: &Overlay<'_>) -> Option<&'static str> {
        let inside = |range: &std::ops::Range<u64>| {
            let end = range.end.min(self.space.end_bytes());
            range.start < end && self.space.is_taken(Run { offset_bytes: range.start, len_bytes: end - range.start })
        };
        overlay.changed_ranges().any(|range| inside(&range)).then_some("the log changes the content of a block")
    }
}
