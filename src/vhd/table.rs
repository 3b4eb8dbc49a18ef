//! The block allocation table: reading and checking it, and where its pages and the blocks' bitmaps come from.

use super::error::OpenError;
use super::format::{SECTOR, UNUSED, bitmap_bytes};
use super::spans::Span;
use crate::blocks::{
    BlockMap, Entry, Fault, MapLimits, PAGE_BYTES, PageSource, Piece, PieceList, Shape, State, Storage, Table,
    WORDS_PER_PAGE,
};

/// Bytes of the table that are read at once.
const READ_LEN: usize = 256 << 10;

/// Entries of a page of the map.
const PAGE_ENTRIES: usize = WORDS_PER_PAGE as usize;

/// How the blocks of a disk lie in its file: a bitmap of whole sectors, and right behind it the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlockLayout {
    pub block_bytes: u64,
    pub bitmap_bytes: u64,
}

impl BlockLayout {
    pub fn new(block_bytes: u64) -> Self {
        Self { block_bytes, bitmap_bytes: bitmap_bytes(block_bytes) }
    }

    /// Bitmap and data.
    pub fn unit_bytes(&self) -> u64 {
        self.bitmap_bytes + self.block_bytes
    }

    /// Where the data of a table entry's block is.
    pub fn data_of(&self, sector: u32) -> u64 {
        u64::from(sector) * SECTOR + self.bitmap_bytes
    }

    /// The table entry of a block whose data is at `data_bytes`.
    pub fn sector_of(&self, data_bytes: u64) -> u32 {
        ((data_bytes - self.bitmap_bytes) / SECTOR) as u32
    }
}

/// Where the table is, and how many of its entries the disk has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TablePlace {
    pub offset_bytes: u64,
    /// Blocks of the disk.
    pub blocks: u32,
}

impl TablePlace {
    pub fn entry_offset(&self, block: u32) -> u64 {
        self.offset_bytes + u64::from(block) * 4
    }
}

/// A block that is in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PlacedBlock {
    pub sector: u32,
    pub block: u32,
}

/// What reading the table has found.
#[derive(Debug)]
pub(super) struct Blocks {
    /// In the order of the file.
    pub placed: Vec<PlacedBlock>,
    /// Behind the last block's data, at its full length; behind every structure at least.
    pub objects_end: u64,
}

/// Read the table page by page, and give each page of entries to `each`.
pub(super) fn read_table(
    storage: &mut dyn Storage,
    place: TablePlace,
    mut each: impl FnMut(u32, &[u32]),
) -> Result<(), OpenError> {
    let mut bytes = vec![0; READ_LEN];
    let mut entries = Vec::with_capacity(PAGE_ENTRIES);
    let (mut block, end) = (0, u64::from(place.blocks));
    while block < end {
        let count = (end - block).min(READ_LEN as u64 / 4);
        let part = &mut bytes[..count as usize * 4];
        storage.read_at(place.offset_bytes + block * 4, part)?;
        for (page, part) in part.chunks(PAGE_ENTRIES * 4).enumerate() {
            entries.clear();
            entries.extend(part.as_chunks::<4>().0.iter().map(|entry| u32::from_be_bytes(*entry)));
            each((block / WORDS_PER_PAGE) as u32 + page as u32, &entries);
        }
        block += count;
    }
    Ok(())
}

/// Read the table, check every entry, and fill the map. `data_end`: where the footer begins, or the file's end.
pub(super) fn load_table(
    storage: &mut dyn Storage,
    place: TablePlace,
    map: &BlockMap,
    spans: &[Span],
    data_end: u64,
) -> Result<Blocks, OpenError> {
    let layout = BlockLayout::new(map.shape().block_bytes());
    let mut placed = Vec::new();
    let mut page_bytes = Box::new([0; PAGE_BYTES]);
    read_table(storage, place, |page, entries| {
        if entries.iter().all(|entry| *entry == UNUSED) {
            return map.entries().fill_zeros(page);
        }
        page_bytes.fill(0);
        let first = page * PAGE_ENTRIES as u32;
        for ((block, sector), word) in (first..).zip(entries).zip(page_bytes.as_chunks_mut::<8>().0) {
            if *sector != UNUSED {
                placed.push(PlacedBlock { sector: *sector, block });
                *word = Entry::new(State::Partial, layout.data_of(*sector)).0.to_le_bytes();
            }
        }
        let filled = map.entries().fill(page, &page_bytes);
        assert!(filled, "nobody else fills the map of a disk that is being opened");
    })?;
    placed.sort_unstable();
    map.set_blocks_allocated(placed.len() as u32);
    let objects_end = check_places(&placed, layout, place, map.shape().size_bytes, data_end, spans)?;
    Ok(Blocks { placed, objects_end })
}

/// Every block is inside the file and has its place to itself.
fn check_places(
    placed: &[PlacedBlock],
    layout: BlockLayout,
    place: TablePlace,
    size_bytes: u64,
    data_end: u64,
    spans: &[Span],
) -> Result<u64, OpenError> {
    let name = |at: PlacedBlock| format!("block {}", at.block);
    let mut spans: Vec<&Span> = spans.iter().collect();
    spans.sort_unstable_by_key(|span| span.start);
    let mut objects_end = spans.iter().map(|span| span.end).max().unwrap_or(0);
    for pair in placed.windows(2) {
        let end = u64::from(pair[0].sector) * SECTOR + layout.unit_bytes();
        let next = u64::from(pair[1].sector) * SECTOR;
        if next < end {
            return Err(OpenError::Overlap { first: name(pair[0]), second: name(pair[1]), offset_bytes: next });
        }
    }
    for at in placed {
        let (start, data) = (u64::from(at.sector) * SECTOR, layout.data_of(at.sector));
        let visible = (size_bytes - u64::from(at.block) * layout.block_bytes).min(layout.block_bytes);
        if data + visible > data_end {
            let entry_offset_bytes = place.entry_offset(at.block);
            let rule = "the block lies behind the end of the file";
            return Err(OpenError::Block { block: at.block, sector: at.sector, entry_offset_bytes, rule });
        }
        let end = start + layout.unit_bytes();
        if let Some(span) = spans.iter().find(|span| span.start < end && start < span.end) {
            let offset_bytes = start.max(span.start);
            return Err(OpenError::Overlap { first: span.name.clone(), second: name(*at), offset_bytes });
        }
        objects_end = objects_end.max(end);
    }
    Ok(objects_end.next_multiple_of(SECTOR))
}

/// A map for this shape: the whole table resident, bits as the limits say.
pub(super) fn new_map(shape: Shape, limits: MapLimits) -> BlockMap {
    let entry_pages_max = shape.table_words().div_ceil(WORDS_PER_PAGE).max(2) as u32;
    let layout = BlockLayout::new(shape.block_bytes());
    BlockMap::new(shape, MapLimits { entry_pages_max, ..limits }, Box::new(Bitmaps { layout }))
}

/// Pages of bits come from the bitmaps in front of the blocks. Entries are always resident.
struct Bitmaps {
    layout: BlockLayout,
}

impl PageSource for Bitmaps {
    fn pieces(&self, map: &BlockMap, fault: Fault, into: &mut PieceList) -> Result<(), Fault> {
        assert_eq!(fault.table, Table::Bits, "the whole block table is resident");
        let page_sectors = PAGE_BYTES as u64 * 8;
        let block_sectors = self.layout.block_bytes / SECTOR;
        let first = u64::from(fault.page) * page_sectors;
        let mut sector = first;
        while sector < first + page_sectors {
            let within = sector % block_sectors;
            let count = (block_sectors - within).min(first + page_sectors - sector);
            let block = sector / block_sectors;
            let mut offset_bytes = None;
            if block < u64::from(map.shape().blocks()) {
                let entry = map.entry(block as u32)?;
                // Nobody looks at the bits of a block in another state.
                if entry.state() == State::Partial {
                    offset_bytes = Some(entry.offset_bytes() - self.layout.bitmap_bytes + within / 8);
                }
            }
            into.push(Piece { offset_bytes, len_bytes: (count / 8) as u32 });
            sector += count;
        }
        Ok(())
    }

    fn decode(&self, _fault: Fault, bytes: &mut [u8; PAGE_BYTES]) {
        to_least_significant_first(bytes);
    }
}

/// Bitmaps in the file have the first sector in the most significant bit of a byte; in memory it is the least. Both
/// ways.
pub(super) fn to_least_significant_first(bytes: &mut [u8]) {
    for byte in bytes {
        *byte = byte.reverse_bits();
    }
}
