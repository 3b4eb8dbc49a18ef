//! The block map of one layer: its shape, its two paged tables, and what its shards must know about its state.
//!
//! The engine on the home shard is the only one that changes entries and bits; every shard reads them. A reader that
//! sees a word also sees everything that was stored before it (release/acquire).

use std::fmt;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use super::entry::Entry;
use super::pages::{PagedTable, WORDS_PER_PAGE};
use super::source::PageSource;

/// Ranges of a layer that may be torn: as many as its engine writes atomically at once.
pub const TORN_MAX: usize = 8;

/// Pages of absent blocks that are skipped at once: a few microseconds.
const SKIP_PAGES_MAX: usize = 1024;

/// The shape of a layer. Never changes while it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The virtual disk's size in bytes: a multiple of the sector.
    pub size_bytes: u64,
    /// Base-two logarithm of the block size in bytes: 19 (512 KiB) to 28 (256 MiB).
    pub block_shift: u8,
    /// Base-two logarithm of the sector that a bit stands for: 9 or 12.
    pub sector_shift: u8,
    /// Block entries between two bitmap entries of the table (VHDX: the chunk ratio, a power of two); `u32::MAX`: the
    /// table holds block entries only.
    pub chunk_blocks: u32,
    /// Whether a parent stands behind the layer.
    pub has_parent: bool,
}

impl Shape {
    /// Block size in bytes.
    pub fn block_bytes(&self) -> u64 {
        1 << self.block_shift
    }

    /// Blocks of the disk, the last one perhaps in part.
    pub fn blocks(&self) -> u32 {
        self.size_bytes.div_ceil(self.block_bytes()) as u32
    }

    /// Sectors of the disk.
    pub fn sectors(&self) -> u64 {
        self.size_bytes >> self.sector_shift
    }

    /// The index of a block's word in the table.
    pub fn word_index(&self, block: u32) -> u64 {
        u64::from(block) + (u64::from(block) >> self.chunk_shift())
    }

    /// The index of the word of a chunk's bitmap. Only with `chunk_blocks`.
    pub fn bitmap_word_index(&self, chunk: u32) -> u64 {
        (u64::from(chunk) + 1) * (u64::from(self.chunk_blocks) + 1) - 1
    }

    /// The block whose word is at `index`; `None` for words of bitmaps and past the last block.
    pub fn block_at(&self, index: u64) -> Option<u32> {
        if self.chunk_blocks == u32::MAX {
            return (index < u64::from(self.blocks())).then_some(index as u32);
        }
        let period = u64::from(self.chunk_blocks) + 1;
        let block = index / period * u64::from(self.chunk_blocks) + index % period;
        (index % period < u64::from(self.chunk_blocks) && block < u64::from(self.blocks())).then_some(block as u32)
    }

    /// The first block whose word is at `index` or behind it.
    fn block_from(&self, index: u64) -> u64 {
        let chunk_blocks = u64::from(self.chunk_blocks);
        let (chunk, within) = (index / (chunk_blocks + 1), index % (chunk_blocks + 1));
        chunk * chunk_blocks + within
    }

    /// Words of the table: with a parent up to the bitmap entry of the last chunk, else up to the last block's entry.
    pub fn table_words(&self) -> u64 {
        let blocks = self.blocks();
        if blocks == 0 {
            return 0;
        }
        if self.has_parent && self.chunk_blocks != u32::MAX {
            return self.bitmap_word_index((blocks - 1) / self.chunk_blocks) + 1;
        }
        self.word_index(blocks - 1) + 1
    }

    #[inline]
    fn chunk_shift(&self) -> u32 {
        if self.chunk_blocks == u32::MAX { 32 } else { self.chunk_blocks.trailing_zeros() }
    }

    fn check(&self) {
        assert!((19..=28).contains(&self.block_shift), "block sizes are 512 KiB to 256 MiB");
        assert!(matches!(self.sector_shift, 9 | 12), "sectors have 512 or 4096 bytes");
        assert!(self.size_bytes.is_multiple_of(1 << self.sector_shift), "a disk is whole sectors");
        assert!(self.size_bytes >> self.block_shift < u64::from(u32::MAX), "a disk has fewer than 2^32 blocks");
        assert!(self.chunk_blocks == u32::MAX || self.chunk_blocks.is_power_of_two(), "a chunk is 2^n blocks");
    }
}

/// Which of a layer's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Table {
    /// The block table: [`Entry`] words, with the words of bitmaps in between where the shape says so.
    Entries,
    /// One bit for each sector of the disk: bit `s % 64` (least significant first) of word `s / 64`. A page covers
    /// 32768 sectors. Looked at for [`Partial`](super::State::Partial) blocks only.
    Bits,
}

/// A page of a layer's map that has to be loaded first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fault {
    /// Which table.
    pub table: Table,
    /// Which page of it.
    pub page: u32,
}

impl Fault {
    fn at(table: Table, index: u64) -> Self {
        Self { table, page: (index / WORDS_PER_PAGE) as u32 }
    }
}

/// How much of a map may be in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapLimits {
    /// Pages of block entries.
    pub entry_pages_max: u32,
    /// Pages of sector bits.
    pub bit_pages_max: u32,
}

impl Default for MapLimits {
    /// 16 MiB of each: entries of 4 TiB at 2 MiB blocks, bits of 64 GiB in 512-byte sectors.
    fn default() -> Self {
        Self { entry_pages_max: 4096, bit_pages_max: 4096 }
    }
}

/// A moment in the history of published metadata: what a file sync that starts now will make durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlushMark(u64);

/// The map of one layer. Shared by `Arc`; no method blocks.
pub struct BlockMap {
    shape: Shape,
    entries: PagedTable,
    bits: PagedTable,
    source: Box<dyn PageSource>,
    write_session_open: AtomicBool,
    poisoned: AtomicBool,
    /// Bytes of the disk that hold what nobody has written.
    torn: OnceLock<[Range<u64>; TORN_MAX]>,
    /// Metadata changes whose write has completed, counted since the layer was opened.
    published: AtomicU64,
    /// Of those, how many are known to be durable.
    durable: AtomicU64,
    placement_epoch: AtomicU32,
    blocks_allocated: AtomicU32,
}

impl BlockMap {
    /// A map of which nothing is resident yet.
    pub fn new(shape: Shape, limits: MapLimits, source: Box<dyn PageSource>) -> Self {
        shape.check();
        Self {
            shape,
            entries: PagedTable::new(shape.table_words(), limits.entry_pages_max),
            bits: PagedTable::new(shape.sectors().div_ceil(64), limits.bit_pages_max),
            source,
            write_session_open: AtomicBool::new(false),
            poisoned: AtomicBool::new(false),
            torn: OnceLock::new(),
            published: AtomicU64::new(0),
            durable: AtomicU64::new(0),
            placement_epoch: AtomicU32::new(0),
            blocks_allocated: AtomicU32::new(0),
        }
    }

    /// Its shape.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The table of block entries.
    pub fn entries(&self) -> &PagedTable {
        &self.entries
    }

    /// The table of sector bits.
    pub fn bits(&self) -> &PagedTable {
        &self.bits
    }

    /// One of the two.
    pub fn table(&self, table: Table) -> &PagedTable {
        match table {
            Table::Entries => &self.entries,
            Table::Bits => &self.bits,
        }
    }

    /// How its pages are loaded.
    pub fn source(&self) -> &dyn PageSource {
        &*self.source
    }

    /// Memory that its tables take now.
    pub fn memory_bytes(&self) -> u64 {
        self.entries.memory_bytes() + self.bits.memory_bytes()
    }

    /// The entry of a block, which must be one of the shape's.
    #[inline]
    pub fn entry(&self, block: u32) -> Result<Entry, Fault> {
        self.word(self.shape.word_index(block))
    }

    /// Up to which byte of the disk, from `position` to about `end`, all blocks are known to be absent without looking
    /// at each: those in pages of zeros. `position` itself when not even its own block is.
    pub(super) fn absent_until(&self, position: u64, end: u64) -> u64 {
        let page = |byte: u64| (self.shape.word_index((byte >> self.shape.block_shift) as u32) / WORDS_PER_PAGE) as u32;
        let first = page(position);
        let pages = (first..=page(end.min(self.shape.size_bytes) - 1)).take(SKIP_PAGES_MAX);
        let zeros = pages.take_while(|page| self.entries.is_zeros(*page)).count() as u32;
        if zeros == 0 {
            return position;
        }
        let block = self.shape.block_from(u64::from(first + zeros) * WORDS_PER_PAGE);
        (block << self.shape.block_shift).clamp(position, self.shape.size_bytes)
    }

    /// The entry of a chunk's bitmap.
    pub fn bitmap_entry(&self, chunk: u32) -> Result<Entry, Fault> {
        self.word(self.shape.bitmap_word_index(chunk))
    }

    #[inline]
    fn word(&self, index: u64) -> Result<Entry, Fault> {
        self.entries.get(index).map(Entry).ok_or(Fault::at(Table::Entries, index))
    }

    /// Whether the bit of a sector is set, and how many sectors from there (at least 1, at most `max`) are known to
    /// have the same value. A run may end early where a page is not resident.
    pub fn run(&self, sector: u64, max: u64) -> Result<(bool, u64), Fault> {
        debug_assert!(max > 0 && sector + max <= self.shape.sectors().next_multiple_of(64));
        let first = self.bits.get(sector / 64).ok_or(Fault::at(Table::Bits, sector / 64))?;
        let shift = sector % 64;
        let set = first >> shift & 1 == 1;
        let same = |word: u64| if set { word.trailing_ones() } else { word.trailing_zeros() };
        // What is shifted in from above must not count: at most the bits that are left in the word.
        let mut length = u64::from(same(first >> shift)).min(64 - shift);
        let mut index = sector / 64 + 1;
        while length < max && (sector + length).is_multiple_of(64) {
            let Some(word) = self.bits.get(index) else { break };
            length += u64::from(same(word));
            if same(word) < 64 {
                break;
            }
            index += 1;
        }
        Ok((set, length.min(max)))
    }

    /// Store a block's entry. For the engine. `Err`: the page is not resident, or (when it is all zeros) has no slot;
    /// cannot happen to a page that the engine has pinned.
    pub fn store(&self, block: u32, entry: Entry) -> Result<(), Fault> {
        self.store_word(self.shape.word_index(block), entry)
    }

    /// Store the entry of a chunk's bitmap. For the engine; errors as [`Self::store`].
    pub fn store_bitmap(&self, chunk: u32, entry: Entry) -> Result<(), Fault> {
        self.store_word(self.shape.bitmap_word_index(chunk), entry)
    }

    fn store_word(&self, index: u64, entry: Entry) -> Result<(), Fault> {
        if self.entries.set(index, entry.0) { Ok(()) } else { Err(Fault::at(Table::Entries, index)) }
    }

    /// Set the bits of a range of sectors. For the engine. After an error those before the page named may be set.
    pub fn set_bits(&self, sector: u64, count: u64) -> Result<(), Fault> {
        self.change_bits(sector, count, |word, mask| word | mask)
    }

    /// Clear the bits of a range of sectors. For the engine. After an error those before the page named may be clear.
    pub fn clear_bits(&self, sector: u64, count: u64) -> Result<(), Fault> {
        self.change_bits(sector, count, |word, mask| word & !mask)
    }

    fn change_bits(&self, sector: u64, count: u64, change: impl Fn(u64, u64) -> u64) -> Result<(), Fault> {
        let end = sector + count;
        let mut at = sector;
        while at < end {
            let index = at / 64;
            let within = (end - index * 64).min(64);
            let mask = u64::MAX << (at % 64) & u64::MAX >> (64 - within);
            let fault = Fault::at(Table::Bits, index);
            let word = self.bits.get(index).ok_or(fault)?;
            let changed = change(word, mask);
            if changed != word && !self.bits.set(index, changed) {
                return Err(fault);
            }
            at = (index + 1) * 64;
        }
        Ok(())
    }

    /// Whether the write session is open. While it is not, every write (overwrites too) goes to the home shard first,
    /// so that what the format wants changed before the first modification is changed.
    pub fn write_session_open(&self) -> bool {
        self.write_session_open.load(Ordering::Acquire)
    }

    /// The write session is open, or not. For the engine.
    pub fn mark_write_session(&self, open: bool) {
        self.write_session_open.store(open, Ordering::Release);
    }

    /// Whether metadata I/O has failed: no write may be acknowledged any more, until the disk has been opened anew.
    pub fn poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Acquire)
    }

    /// Poison the layer. Any shard may: a payload write or a sync that failed must not be followed by acknowledged
    /// writes.
    pub fn poison(&self) {
        self.poisoned.store(true, Ordering::Release);
    }

    /// These ranges of the disk may hold half of an atomic write until the layer is opened anew: nobody may read them.
    /// For the engine, when it is poisoned, before it ends the writes; only the first time counts.
    pub fn mark_torn(&self, ranges: [Range<u64>; TORN_MAX]) {
        let _ = self.torn.set(ranges);
    }

    /// Whether some of a range may be half of an atomic write.
    #[inline]
    pub fn is_torn(&self, range: Range<u64>) -> bool {
        match self.torn.get() {
            None => false,
            Some(all) => all.iter().any(|torn| torn.start < range.end && range.start < torn.end),
        }
    }

    /// Whether published metadata may not survive a power cut yet. A FUA write that has been planned while this was
    /// true needs a sync of the whole file after it. Ask after planning, not before.
    pub fn metadata_unflushed(&self) -> bool {
        // `durable` first: it never passes `published`, so reading it first errs towards "unflushed".
        let durable = self.durable.load(Ordering::Acquire);
        self.published.load(Ordering::Acquire) != durable
    }

    /// Metadata has been written; call before storing the entries that it publishes. For the engine.
    pub fn count_published(&self) {
        self.published.fetch_add(1, Ordering::AcqRel);
    }

    /// Call before starting a sync of the file, on any shard; hand the mark to [`Self::flush_done`] when it succeeded.
    ///
    /// A guest's SYNCHRONIZE CACHE needs no more than one sync on its own shard: an entry is published, and the write
    /// that needed it can have been acknowledged, only after the metadata has been written to the file.
    pub fn flush_started(&self) -> FlushMark {
        FlushMark(self.published.load(Ordering::Acquire))
    }

    /// A sync that started after `mark` was taken has succeeded.
    pub fn flush_done(&self, mark: FlushMark) {
        self.durable.fetch_max(mark.0, Ordering::AcqRel);
    }

    /// Counts how often space was taken away from blocks. A write into staged space carries the epoch of its plan to
    /// the commit, which is refused when it is old.
    pub fn placement_epoch(&self) -> u32 {
        self.placement_epoch.load(Ordering::Acquire)
    }

    /// Published or staged space has been taken away from a block (unmap, relocate). For the engine: call it after the
    /// entries have been stored, so that a plan with the new epoch has seen the new entries.
    pub fn bump_placement_epoch(&self) {
        self.placement_epoch.fetch_add(1, Ordering::AcqRel);
    }

    /// Blocks that have space in the file.
    pub fn blocks_allocated(&self) -> u32 {
        self.blocks_allocated.load(Ordering::Relaxed)
    }

    /// Keep the number of blocks that have space. For the engine and the opener.
    pub fn set_blocks_allocated(&self, blocks: u32) {
        self.blocks_allocated.store(blocks, Ordering::Relaxed);
    }
}

impl fmt::Debug for BlockMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockMap")
            .field("shape", &self.shape)
            .field("poisoned", &self.poisoned())
            .finish_non_exhaustive()
    }
}
