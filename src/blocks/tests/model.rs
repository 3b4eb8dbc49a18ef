//! A chain as a list of blocks and a rule for bits, and where each sector is according to it, found one by one.

use std::sync::Arc;

use crate::blocks::{
    BlockMap, Chain, Entry, Fault, Level, LevelFault, MapLimits, PAGE_BYTES, PageSource, Piece, PieceList, Shape,
    State, Table, WORDS_PER_PAGE, load_blocking,
};
use crate::sim::Random;

/// What everything is counted in: the smallest sector.
pub const UNIT: u64 = 512;

const TABLE_AT: u64 = 1 << 20;
const BITS_AT: u64 = 1 << 32;

/// One layer of the model.
pub struct Layer {
    pub shape: Shape,
    pub raw: bool,
    pub blocks: Vec<Entry>,
    /// The table as it is in the file.
    words: Vec<u64>,
    /// Bits are equal for this many sectors.
    run_sectors: u64,
    seed: u64,
}

fn mix(word: u64) -> u64 {
    let word = (word ^ word >> 31).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (word ^ word >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 17
}

impl Layer {
    /// A layer of about `size_bytes`.
    pub fn random(random: &mut Random, size_bytes: u64, raw: bool, depth_below: usize) -> Self {
        let sector_shift = if random.below(3) == 0 { 12 } else { 9 };
        let largest = if random.below(4) == 0 { 28 } else { 24 };
        let block_shift = random.within(19..largest + 1) as u8;
        let chunk_blocks = (1u64 << (23 + u32::from(sector_shift)) >> block_shift) as u32;
        let chunk_blocks = if random.below(2) == 0 { u32::MAX } else { chunk_blocks };
        let has_parent = depth_below > 0;
        let shape = Shape { size_bytes, block_shift, sector_shift, chunk_blocks, has_parent };
        // The shortest runs only where there are not too many of them for a test.
        let runs_max = if depth_below > 8 { 500 } else { 5000 };
        let run_sectors = [1, 8, 64, 1024, 4096][random.index(5)].max((size_bytes >> sector_shift) / runs_max);
        let mut layer = Self { shape, raw, blocks: Vec::new(), words: Vec::new(), run_sectors, seed: random.word() };
        // In deep chains most layers have little, so that all of them are seen.
        layer.scatter(random, depth_below as u64);
        layer.words = (0..shape.table_words()).map(|index| layer.make_word(index)).collect();
        layer
    }

    /// Stretches of blocks of one state each, most of them one behind the other in the file.
    fn scatter(&mut self, random: &mut Random, absent: u64) {
        let mut offset = if random.below(4) == 0 { 1 << 46 } else { 1 << 20 };
        let staged = random.below(2) == 0;
        let weights = [random.below(4), random.below(3), random.below(4), random.below(3)];
        while self.blocks.len() < self.shape.blocks() as usize {
            let states = [State::Absent, State::Zeros, State::Full, State::Partial];
            let mut pick = random.below(weights.iter().sum::<u64>() + 1 + absent);
            let at = weights.iter().position(|weight| {
                let hit = pick < *weight;
                pick = pick.saturating_sub(*weight);
                hit
            });
            let state = at.map_or(State::Absent, |at| states[at]);
            let long = if state == State::Absent && random.below(3) == 0 { 2000 } else { 5 };
            let mut count = random.below(long) + 1;
            if long > 5 && random.below(2) == 0 {
                // Up to the end of a page, so that what is behind a page of zeros is something.
                let word = self.shape.word_index((self.blocks.len() as u64 + count) as u32);
                count += word.next_multiple_of(WORDS_PER_PAGE) - word;
            }
            for _ in 0..count {
                let present = matches!(state, State::Full | State::Partial);
                let space = present || (staged && random.below(3) == 0);
                offset += if random.below(4) == 0 { random.below(100) * UNIT } else { 0 };
                let entry = Entry::new(state, if space { offset } else { 0 });
                self.blocks.push(entry.with_busy(staged && random.below(8) == 0));
                offset += if space { self.shape.block_bytes() } else { 0 };
            }
        }
        self.blocks.truncate(self.shape.blocks() as usize);
    }

    /// The bit of a sector. Those of blocks that are not partial are there too: nobody may look at them.
    pub fn bit(&self, sector: u64) -> bool {
        mix(self.seed ^ (sector / self.run_sectors)) & 1 == 1
    }

    /// Where the unit at `position` is in this layer's file; `Err`: ask the parent.
    fn find(&self, position: u64) -> Result<Option<u64>, ()> {
        if self.raw {
            return Ok(Some(position));
        }
        let entry = self.blocks[(position >> self.shape.block_shift) as usize];
        let here = entry.offset_bytes() + position % self.shape.block_bytes();
        match entry.state() {
            State::Full => Ok(Some(here)),
            State::Partial if self.bit(position >> self.shape.sector_shift) => Ok(Some(here)),
            State::Zeros => Ok(None),
            State::Absent | State::Partial => Err(()),
        }
    }

    /// Whether readers find the unit at `position` in this layer.
    pub fn shows(&self, position: u64) -> bool {
        matches!(self.find(position), Ok(Some(_)))
    }

    fn word(&self, index: u64) -> u64 {
        self.words.get(index as usize).copied().unwrap_or(0)
    }

    fn make_word(&self, index: u64) -> u64 {
        match self.shape.block_at(index) {
            Some(block) => self.blocks[block as usize].0,
            // The bitmap of a chunk is in the file when one of its blocks is partial.
            None if self.shape.has_parent && (index + 1).is_multiple_of(u64::from(self.shape.chunk_blocks) + 1) => {
                let chunk = index / (u64::from(self.shape.chunk_blocks) + 1);
                let blocks = chunk * u64::from(self.shape.chunk_blocks)..self.blocks.len() as u64;
                let mut blocks = blocks.take(self.shape.chunk_blocks as usize);
                if blocks.any(|block| self.blocks[block as usize].state() == State::Partial) {
                    Entry::new(State::Full, BITS_AT + (chunk << 20)).0
                } else {
                    0
                }
            }
            None => 0,
        }
    }

    /// Whether the file has this page of bits.
    pub fn has_bits(&self, page: u32) -> bool {
        let bits_of_words = self.shape.chunk_blocks == u32::MAX || !self.shape.has_parent;
        bits_of_words || self.word(self.shape.bitmap_word_index(page >> 8)) != 0
    }

    /// Read from the layer's file: its table, or its bitmaps, which lie one behind the other.
    fn read(&self, offset_bytes: u64, into: &mut [u8]) {
        for (at, byte) in (offset_bytes..).zip(into) {
            *byte = match at.checked_sub(BITS_AT) {
                Some(at) if at * 8 / self.run_sectors == (at * 8 + 7) / self.run_sectors => {
                    if self.bit(at * 8) {
                        0xff
                    } else {
                        0
                    }
                }
                Some(at) => (0..8).fold(0, |byte, bit| byte | u8::from(self.bit(at * 8 + bit)) << bit),
                None => self.word((at - TABLE_AT) / 8).to_le_bytes()[(at % 8) as usize],
            };
        }
    }

    /// The map of this layer, of which nothing is resident but, perhaps, what an opener learns: which pages are zeros.
    pub fn map(&self, limits: MapLimits, zeros_known: bool) -> Arc<BlockMap> {
        let map = BlockMap::new(self.shape, limits, Box::new(Source));
        if zeros_known && !self.raw {
            let is_zeros = |page: &u32| {
                let first = u64::from(*page) * WORDS_PER_PAGE;
                (first..first + WORDS_PER_PAGE).all(|index| self.word(index) == 0)
            };
            (0..map.entries().pages()).filter(is_zeros).for_each(|page| map.entries().fill_zeros(page));
        }
        Arc::new(map)
    }
}

/// Pages of the model's files: bitmaps are found through the table where that has words for them, as in VHDX.
struct Source;

impl PageSource for Source {
    fn pieces(&self, map: &BlockMap, fault: Fault, into: &mut PieceList) -> Result<(), Fault> {
        let page = u64::from(fault.page) * PAGE_BYTES as u64;
        let offset_bytes = match fault.table {
            Table::Entries => TABLE_AT + page,
            Table::Bits if map.shape().chunk_blocks == u32::MAX || !map.shape().has_parent => BITS_AT + page,
            Table::Bits => map.bitmap_entry((page >> 20) as u32)?.offset_bytes() + page % (1 << 20),
        };
        // In two pieces, as from two blocks.
        into.push(Piece { offset_bytes: Some(offset_bytes), len_bytes: 1000 });
        into.push(Piece { offset_bytes: Some(offset_bytes + 1000), len_bytes: PAGE_BYTES as u32 - 1000 });
        Ok(())
    }

    fn decode(&self, fault: Fault, bytes: &mut [u8; PAGE_BYTES]) {
        // Only words and bits of the table itself are looked at by anyone; what is behind its end is whatever it is.
        let _ = (fault, bytes);
    }
}

/// A chain, leaf first.
pub struct Model {
    pub layers: Vec<Layer>,
}

impl Model {
    /// Layers of different shapes, most of them about as large as the leaf.
    pub fn random(random: &mut Random, depth: usize, largest_bytes: u64) -> Self {
        let usual = (random.below(largest_bytes) + 1).next_multiple_of(4096);
        let raw_bottom = random.below(3) == 0;
        let layers = (0..depth).map(|number| {
            let size = match random.index(depth.max(4)) {
                0 => (random.below(largest_bytes) + 1).next_multiple_of(4096),
                _ => usual,
            };
            let depth_below = depth - 1 - number;
            Layer::random(random, size, depth_below == 0 && raw_bottom, depth_below)
        });
        Self { layers: layers.collect() }
    }

    pub fn size_bytes(&self) -> u64 {
        self.layers[0].shape.size_bytes
    }

    /// Which layer's file has the unit at `position`, and where; `None`: it reads as zeros.
    pub fn find(&self, position: u64) -> Option<(u16, u64)> {
        for (number, layer) in self.layers.iter().enumerate() {
            if position >= layer.shape.size_bytes {
                return None;
            }
            if let Ok(found) = layer.find(position) {
                return found.map(|offset_bytes| (number as u16, offset_bytes));
            }
        }
        None
    }

    /// The levels, one for each layer.
    pub fn levels(&self, limits: MapLimits, zeros_known: bool) -> Vec<Level> {
        let level = |(number, layer): (usize, &Layer)| match layer.raw {
            true => Level::Raw { layer: number as u16, size_bytes: layer.shape.size_bytes },
            false => Level::Map { layer: number as u16, map: layer.map(limits, zeros_known) },
        };
        self.layers.iter().enumerate().map(level).collect()
    }

    /// Load a page of a layer's map.
    pub fn load(&self, layer: u16, map: &BlockMap, fault: Fault) {
        let layer = &self.layers[usize::from(layer)];
        let read = &mut |offset_bytes, into: &mut [u8]| {
            layer.read(offset_bytes, into);
            Ok::<(), ()>(())
        };
        load_blocking(map, fault, read).expect("the model's files can be read");
    }

    /// Load what a plan has missed.
    pub fn serve(&self, chain: &Chain, missing: LevelFault) {
        let Level::Map { layer, map } = &chain.levels()[usize::from(missing.level)] else {
            panic!("only maps have pages to load")
        };
        self.load(*layer, map, missing.fault);
    }
}
