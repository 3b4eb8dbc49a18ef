//! One block map: shapes, bits and runs against a vector of booleans.

use crate::blocks::{BlockMap, Entry, Fault, MapLimits, PageSource, PieceList, Shape, State, Table};
use crate::sim::Random;

/// Nothing is ever loaded.
struct NoSource;

impl PageSource for NoSource {
    fn pieces(&self, _: &BlockMap, _: Fault, _: &mut PieceList) -> Result<(), Fault> {
        unreachable!()
    }

    fn decode(&self, _: Fault, _: &mut [u8; 4096]) {}
}

fn shape(size_bytes: u64, block_shift: u8, chunk_blocks: u32, has_parent: bool) -> Shape {
    Shape { size_bytes, block_shift, sector_shift: 9, chunk_blocks, has_parent }
}

#[test]
fn words_of_blocks_and_of_bitmaps_are_where_the_vhdx_specification_puts_them() {
    // Section 2.5: chunk ratio 2^23 * 512 / 2 MiB = 2048; with a parent, the bitmap entry of the last chunk is there.
    let differencing = shape(5000 << 21, 21, 2048, true);
    assert_eq!(differencing.blocks(), 5000);
    assert_eq!([0, 2047, 2048, 4096].map(|block| differencing.word_index(block)), [0, 2047, 2049, 4098]);
    assert_eq!([0, 1, 2].map(|chunk| differencing.bitmap_word_index(chunk)), [2048, 4097, 6146]);
    assert_eq!(differencing.table_words(), 3 * 2049);
    assert_eq!(shape(5000 << 21, 21, 2048, false).table_words(), 5002);
    assert_eq!(shape(5000 << 21, 21, u32::MAX, true).table_words(), 5000);
    for index in 0..differencing.table_words() {
        match differencing.block_at(index) {
            Some(block) => assert_eq!(differencing.word_index(block), index),
            None => assert!((0..3).any(|chunk| differencing.bitmap_word_index(chunk) == index) || index > 5001),
        }
    }
    assert_eq!(shape(0, 21, 2048, true).table_words(), 0);
}

#[test]
fn an_entry_says_what_it_was_made_of() {
    for state in [State::Absent, State::Zeros, State::Full, State::Partial] {
        let entry = Entry::new(state, 3 << 20);
        assert_eq!((entry.state(), entry.offset_bytes(), entry.is_busy()), (state, 3 << 20, false));
        let busy = entry.with_busy(true);
        assert_eq!((busy.state(), busy.offset_bytes(), busy.is_busy()), (state, 3 << 20, true));
        assert_eq!(busy.with_busy(false), entry);
        assert_eq!(busy.with_state(State::Full), Entry::new(State::Full, 3 << 20).with_busy(true));
        assert_eq!(entry.is_present(), matches!(state, State::Full | State::Partial));
        assert!(entry.has_space() && !Entry::new(state, 0).has_space());
    }
    // The codes of [MS-VHDX] section 2.5.1.1: not present, undefined, zero, unmapped, fully and partially present.
    let codes = [0, 1, 2, 3, 6, 7].map(|code| Entry(code).state());
    assert_eq!(codes, [State::Absent, State::Zeros, State::Zeros, State::Zeros, State::Full, State::Partial]);
}

#[test]
fn bits_follow_a_vector_of_booleans() {
    for seed in 0..30 {
        let mut random = Random::new(seed);
        let sectors = random.within(1..40) * 4096 + random.below(64);
        let map = BlockMap::new(shape(sectors * 512, 21, u32::MAX, true), MapLimits::default(), Box::new(NoSource));
        (0..map.bits().pages()).for_each(|page| map.bits().fill_zeros(page));
        let mut naive = vec![false; sectors as usize];
        for _ in 0..300 {
            let long = random.below(4) == 0;
            let longest = random.below(if long { sectors } else { 200 }) + 1;
            let sector = random.below(sectors);
            let count = longest.min(sectors - sector);
            let range = sector as usize..(sector + count) as usize;
            match random.below(4) {
                0 => {
                    map.set_bits(sector, count).unwrap();
                    naive[range].fill(true);
                }
                1 => {
                    map.clear_bits(sector, count).unwrap();
                    naive[range].fill(false);
                }
                _ => {
                    let value = naive[range.start];
                    let same = naive[range].iter().take_while(|bit| **bit == value).count() as u64;
                    assert_eq!(map.run(sector, count), Ok((value, same)), "seed {seed}: {count} sectors from {sector}");
                }
            }
        }
    }
}

#[test]
fn a_run_ends_where_a_page_is_missing_and_names_it_next() {
    let map = BlockMap::new(shape(1 << 30, 21, u32::MAX, true), MapLimits::default(), Box::new(NoSource));
    assert!(map.bits().fill(0, &[0xff; 4096]));
    let missing = Fault { table: Table::Bits, page: 1 };
    assert_eq!(map.run(32_000, 2000), Ok((true, 768)));
    assert_eq!(map.run(32_768, 2000), Err(missing));
    assert_eq!(map.set_bits(32_000, 2000), Err(missing));
    assert_eq!(map.entry(511), Err(Fault { table: Table::Entries, page: 0 }));
    map.entries().fill_zeros(0);
    assert_eq!(map.entry(511), Ok(Entry::ABSENT));
    assert_eq!(map.store(511, Entry::new(State::Full, 1 << 20)), Ok(()));
    assert_eq!(map.entry(511), Ok(Entry::new(State::Full, 1 << 20)));
}

#[test]
fn a_flush_covers_what_was_published_before_it_began() {
    let map = BlockMap::new(shape(1 << 30, 21, u32::MAX, false), MapLimits::default(), Box::new(NoSource));
    assert!(!map.metadata_unflushed());
    map.count_published();
    let mark = map.flush_started();
    map.count_published();
    map.flush_done(mark);
    assert!(map.metadata_unflushed());
    map.flush_done(map.flush_started());
    assert!(!map.metadata_unflushed());
    map.flush_done(mark);
    assert!(!map.metadata_unflushed(), "an older flush that ends later takes nothing back");
}

#[test]
fn an_empty_differencing_map_of_the_largest_disk_costs_little() {
    for (block_shift, chunk_blocks) in [(20, 4096), (21, 2048), (28, 16)] {
        let limits = MapLimits::default();
        let map = BlockMap::new(shape(64 << 40, block_shift, chunk_blocks, true), limits, Box::new(NoSource));
        (0..map.entries().pages()).for_each(|page| map.entries().fill_zeros(page));
        assert!(map.memory_bytes() < 1 << 20, "{} bytes", map.memory_bytes());
        // And when as much is resident as may be: 16 MiB of each table, and a directory entry for each page of bits.
        for page in 0..map.bits().pages() {
            map.bits().fill_zeros(page);
        }
        for table in [map.entries(), map.bits()] {
            let every = table.pages() / 4096;
            (0..4096.min(table.pages())).for_each(|page| assert!(table.set(u64::from(page * every.max(1)) * 512, 6)));
        }
        assert!(map.memory_bytes() < 52 << 20, "{} bytes", map.memory_bytes());
    }
}

#[test]
fn what_is_skipped_as_absent_lies_in_pages_of_zeros_and_reaches_to_their_end() {
    for seed in 0..200 {
        let mut random = Random::new(seed);
        let chunk_blocks = [u32::MAX, 2048, 16, 1][random.index(4)];
        let blocks = random.within(1..6000);
        let shape = shape(blocks << 21, 21, chunk_blocks, true);
        let map = BlockMap::new(shape, MapLimits::default(), Box::new(NoSource));
        let pages: Vec<bool> = (0..map.entries().pages()).map(|_| random.below(3) > 0).collect();
        (0..).zip(&pages).filter(|(_, zeros)| **zeros).for_each(|(page, _)| map.entries().fill_zeros(page));
        let skipped = |block: u64| pages[(shape.word_index(block as u32) / 512) as usize];
        for _ in 0..50 {
            let position = random.below(shape.size_bytes);
            let end = random.within(position..shape.size_bytes) + 1;
            let until = map.absent_until(position, end);
            if !skipped(position >> 21) {
                assert_eq!(until, position, "seed {seed}");
                continue;
            }
            assert!(until > position && (position >> 21..until.div_ceil(1 << 21)).all(skipped), "seed {seed}");
            let stopped_early = until < end && skipped(until >> 21);
            assert!(!stopped_early, "seed {seed}: {position} to {end} stopped at {until}");
        }
    }
}
