//! What planning costs: one layer, three levels, 64 layers folded into one map; and what folding costs.
//!
//! Disks are large and accesses random, so that the tables do not fit the processor's caches and misses count.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use lunaring::blocks::{
    BlockMap, Chain, Entry, Fault, FlatMap, Level, MapLimits, PAGE_BYTES, PageSource, PieceList, ReadPlan, Shape,
    State, WritePlan,
};

const BLOCK_SHIFT: u8 = 21;
const READ_BYTES: u32 = 4096;

/// Everything that the benches look at is resident.
struct NothingToLoad;

impl PageSource for NothingToLoad {
    fn pieces(&self, _: &BlockMap, fault: Fault, _: &mut PieceList) -> Result<(), Fault> {
        panic!("{fault:?}")
    }

    fn decode(&self, _: Fault, _: &mut [u8; PAGE_BYTES]) {}
}

/// The disk's size: 32 MiB of entries when something is measured; small when `cargo test` only tries whether it runs.
fn disk_bytes() -> u64 {
    if std::env::args().any(|argument| argument == "--bench") { 8 << 40 } else { 64 << 30 }
}

/// Xorshift: about a nanosecond, which every figure contains.
struct Offsets(u64);

impl Offsets {
    fn word(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn next(&mut self, disk_bytes: u64) -> u64 {
        (self.word() & (disk_bytes - 1)) & !4095
    }
}

fn map(disk_bytes: u64) -> BlockMap {
    let shape = Shape {
        size_bytes: disk_bytes,
        block_shift: BLOCK_SHIFT,
        sector_shift: 9,
        chunk_blocks: u32::MAX,
        has_parent: true,
    };
    let limits = MapLimits { entry_pages_max: u32::MAX / 2, bit_pages_max: u32::MAX / 2 };
    BlockMap::new(shape, limits, Box::new(NothingToLoad))
}

/// Fill the pages that are `mine` with blocks of this state in random places; the others are absent.
fn fill(map: &BlockMap, state: State, mine: impl Fn(u64) -> bool) {
    let mut random = Offsets(99);
    for page in 0..map.entries().pages() {
        let mut bytes = [0; PAGE_BYTES];
        if mine(u64::from(page)) {
            for word in bytes.as_chunks_mut::<8>().0 {
                *word = Entry::new(state, (random.word() % (1 << 22) + 1) << BLOCK_SHIFT).0.to_le_bytes();
            }
        }
        assert!(map.entries().fill(page, &bytes));
    }
}

/// Which of `layers` has the blocks of a page.
fn owner(page: u64, layers: u64) -> u64 {
    page.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40 & (layers - 1)
}

/// `layers` levels that have a part of the disk each.
fn levels(layers: u16, disk_bytes: u64) -> Vec<Level> {
    let level = |layer| {
        let map = map(disk_bytes);
        fill(&map, State::Full, |page| owner(page, u64::from(layers)) == u64::from(layer));
        Level::Map { layer, map: Arc::new(map) }
    };
    (0..layers).map(level).collect()
}

fn fold(levels: &[Level]) -> FlatMap {
    let load = &mut |_, _: &_, fault| Err(fault);
    FlatMap::build(levels, load, &mut |_, _| Ok(())).expect("all is resident").expect("few runs")
}

fn folded(levels: &[Level]) -> Chain {
    Chain::new(vec![Level::Flat { first_layer: 0, map: Arc::new(fold(levels)) }])
}

fn bench_read(criterion: &mut Criterion, name: &str, chain: &Chain) {
    let mut offsets = Offsets(7);
    criterion.bench_function(name, |bench| {
        bench.iter(|| match chain.plan_read(offsets.next(chain.size_bytes()), READ_BYTES) {
            ReadPlan::Extents(extents) => black_box(extents.as_slice().len()),
            ReadPlan::Fault(missing) => panic!("{missing:?}"),
            ReadPlan::Torn => panic!("nothing has failed"),
        });
    });
}

fn plans(criterion: &mut Criterion) {
    let one = Chain::new(levels(1, disk_bytes()));
    bench_read(criterion, "plan_read 4 KiB, 1 layer", &one);
    one.map(0).expect("it is a map").mark_write_session(true);
    let mut offsets = Offsets(7);
    criterion.bench_function("plan_write 4 KiB, 1 layer", |bench| {
        bench.iter(|| match one.plan_write(offsets.next(one.size_bytes()), READ_BYTES) {
            WritePlan::Ready { extents, commit, .. } => black_box((extents.as_slice().len(), commit)),
            other => panic!("{other:?}"),
        });
    });
    drop(one);
    bench_read(criterion, "plan_read 4 KiB, 4 levels", &Chain::new(levels(4, disk_bytes())));
    let deep = levels(64, disk_bytes());
    bench_read(criterion, "plan_read 4 KiB, 64 levels, not folded", &Chain::new(deep.clone()));
    bench_read(criterion, "plan_read 4 KiB, 64 layers, folded", &folded(&deep));
    let mut leaf_first = vec![levels(2, disk_bytes()).remove(0)];
    leaf_first.push(Level::Flat { first_layer: 1, map: Arc::new(fold(&deep)) });
    bench_read(criterion, "plan_read 4 KiB, leaf and 64 layers, folded", &Chain::new(leaf_first));
}

/// 64 layers of a smaller disk whose blocks are all partial: sectors alternate in runs of 4 KiB.
fn partial_levels() -> Vec<Level> {
    let disk_bytes = disk_bytes() / 256;
    let level = |layer: u16| {
        let map = map(disk_bytes);
        fill(&map, State::Partial, |_| true);
        let mut random = Offsets(u64::from(layer) + 1);
        for page in 0..map.bits().pages() {
            let mut bytes = [0; PAGE_BYTES];
            bytes.iter_mut().for_each(|byte| *byte = if random.word().is_multiple_of(64) { 0xff } else { 0 });
            assert!(map.bits().fill(page, &bytes));
        }
        Level::Map { layer, map: Arc::new(map) }
    };
    (0..64).map(level).collect()
}

fn partial_blocks(criterion: &mut Criterion) {
    let levels = partial_levels();
    bench_read(criterion, "plan_read 4 KiB, partial blocks, 1 layer", &Chain::new(levels[..1].to_vec()));
    bench_read(criterion, "plan_read 4 KiB, partial blocks, 64 layers, folded", &folded(&levels));
}

fn folding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("FlatMap::build");
    group.sample_size(10);
    let tebibyte = levels(64, disk_bytes() / 8);
    group.bench_function("1 TiB, 64 layers", |bench| bench.iter(|| fold(&tebibyte).memory_bytes()));
    let partial = partial_levels();
    let tenth: Vec<Level> = partial.into_iter().take(8).collect();
    group.bench_function("32 GiB of partial blocks, 8 layers", |bench| bench.iter(|| fold(&tenth).memory_bytes()));
}

criterion_group!(benches, plans, partial_blocks, folding);
criterion_main!(benches);
