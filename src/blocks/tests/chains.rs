//! Plans of random chains, deep and folded, against the model, with next to nothing resident.

use std::sync::Arc;

use super::model::{Model, UNIT};
use crate::blocks::{
    Chain, EXTENTS_MAX, Extent, ExtentList, Fault, FlatMap, Level, MapLimits, ReadPlan, Shape, Table, WritePlan,
};
use crate::sim::Random;

/// Loads that one plan may need: a page of entries and a page of bits of every level, twice.
const LOADS_MAX: usize = 4 * 256;

const TINY: MapLimits = MapLimits { entry_pages_max: 2, bit_pages_max: 2 };

fn random_limits(random: &mut Random) -> MapLimits {
    if random.below(3) == 0 { MapLimits::default() } else { TINY }
}

fn fold(model: &Model, levels: &[Level]) -> Arc<FlatMap> {
    let load = &mut |layer, map: &_, fault| {
        model.load(layer, map, fault);
        Ok::<(), ()>(())
    };
    Arc::new(FlatMap::build(levels, load, &mut |_, _| Ok(())).unwrap().expect("small enough"))
}

/// The same chain in every form: as it is, with parents folded, all folded, and folded twice.
fn forms(model: &Model, random: &mut Random) -> Vec<Chain> {
    let mut levels = || model.levels(random_limits(random), random.below(2) == 0);
    let flat = |levels: &[Level], first| Level::Flat { first_layer: first, map: fold(model, levels) };
    let mut forms = vec![Chain::new(levels()), Chain::new(vec![flat(&levels(), 0)])];
    let depth = model.layers.len();
    if depth > 1 {
        let parents = flat(&levels()[1..], 1);
        forms.push(Chain::new(vec![levels()[0].clone(), parents]));
    }
    if depth > 2 {
        let middle = depth / 2;
        let lower = flat(&levels()[middle..], middle as u16);
        let mut upper: Vec<Level> = levels().drain(1..middle).collect();
        upper.push(lower);
        let twice = flat(&upper, 1);
        forms.push(Chain::new(vec![levels()[0].clone(), twice]));
    }
    forms
}

/// A range of the disk, mostly near the borders of blocks.
fn random_range(random: &mut Random, size_bytes: u64, sector: u64) -> (u64, u32) {
    let mut start = random.below(size_bytes);
    let border = [0, 19, 19, 24, 28][random.index(5)];
    if border != 0 {
        start = (start >> border << border).saturating_sub(random.below(64) * 4096);
    }
    let start = start / sector * sector;
    let longest = if random.below(8) == 0 { 1 << 20 } else { 64 << 10 };
    let len = (random.below(longest) + 1).next_multiple_of(sector).min(size_bytes - start);
    (start, len as u32)
}

/// What the extents say about each unit that they cover.
fn units(extents: &ExtentList) -> Vec<Option<(u16, u64)>> {
    let mut units = Vec::new();
    for extent in extents.as_slice() {
        assert!(extent.len_bytes() > 0 && u64::from(extent.len_bytes()).is_multiple_of(UNIT));
        units.extend((0..u64::from(extent.len_bytes())).step_by(UNIT as usize).map(|at| match extent {
            Extent::Zeros { .. } => None,
            Extent::File { layer, offset_bytes, .. } => Some((*layer, offset_bytes + at)),
        }));
    }
    units
}

/// Extents are as few as can be.
fn assert_merged(extents: &ExtentList) {
    for pair in extents.as_slice().windows(2) {
        match (pair[0], pair[1]) {
            (Extent::Zeros { .. }, Extent::Zeros { .. }) => panic!("two zeros in a row"),
            (Extent::File { layer: a, offset_bytes, len_bytes }, Extent::File { layer: b, offset_bytes: next, .. }) => {
                assert!(a != b || offset_bytes + u64::from(len_bytes) != next, "neighbours that could be one");
            }
            _ => {}
        }
    }
}

/// Read a range plan by plan; every unit must be where the model says.
fn check_read(model: &Model, chain: &Chain, start: u64, len: u32) {
    let (mut at, end, mut loads) = (start, start + u64::from(len), 0);
    while at < end {
        match chain.plan_read(at, (end - at) as u32) {
            ReadPlan::Fault(missing) => {
                loads += 1;
                assert!(loads < LOADS_MAX, "the plan gets no further");
                model.serve(chain, missing);
            }
            ReadPlan::Torn => panic!("nothing is written atomically"),
            ReadPlan::Extents(extents) => {
                loads = 0;
                assert_merged(&extents);
                let covered = u64::from(extents.covered_bytes());
                assert!(covered > 0 && at + covered <= end);
                let expected: Vec<_> = (at..at + covered).step_by(UNIT as usize).map(|at| model.find(at)).collect();
                assert!(units(&extents) == expected, "{covered} bytes at {at}: {extents:?}");
                assert_eq!(extents.is_zeros(), expected.iter().all(Option::is_none));
                at += covered;
                if at < end && extents.as_slice().len() < EXTENTS_MAX {
                    let missing = matches!(chain.plan_read(at, (end - at) as u32), ReadPlan::Fault(_));
                    assert!(missing, "a plan is short only when it is full or a page is missing");
                }
            }
        }
    }
}

/// Plan writes of a range; gives whether any plan asked to prepare.
fn check_write(model: &Model, chain: &Chain, start: u64, len: u32) {
    let leaf = &model.layers[0];
    let needs_preparation = |from: u64, to: u64| {
        (from >> leaf.shape.block_shift..=(to - 1) >> leaf.shape.block_shift).any(|block| {
            let entry = leaf.blocks[block as usize];
            entry.is_busy() || !entry.has_space()
        })
    };
    let (mut at, end, mut loads) = (start, start + u64::from(len), 0);
    while at < end {
        match chain.plan_write(at, (end - at) as u32) {
            WritePlan::Fault(missing) => {
                assert_eq!(missing.level, 0);
                loads += 1;
                assert!(loads < LOADS_MAX, "the plan gets no further");
                model.serve(chain, missing);
            }
            WritePlan::Prepare => {
                assert!(!leaf.raw && needs_preparation(at, end), "nothing to prepare at {at}");
                return;
            }
            WritePlan::Poisoned => panic!("it is not"),
            WritePlan::Ready { extents, commit, epoch } => {
                loads = 0;
                assert_merged(&extents);
                let covered = u64::from(extents.covered_bytes());
                assert!(covered > 0 && at + covered <= end);
                let range = || (at..at + covered).step_by(UNIT as usize);
                let place = |at: u64| match leaf.raw {
                    true => Some((0, at)),
                    false => {
                        let entry = leaf.blocks[(at >> leaf.shape.block_shift) as usize];
                        Some((0, entry.offset_bytes() + at % leaf.shape.block_bytes()))
                    }
                };
                assert!(units(&extents) == range().map(place).collect::<Vec<_>>());
                assert!(leaf.raw || !needs_preparation(at, at + covered));
                assert_eq!(commit, range().any(|at| !leaf.shows(at)), "{covered} bytes at {at}");
                assert_eq!(epoch, chain.map(0).map_or(0, |map| map.placement_epoch()));
                at += covered;
            }
        }
    }
}

/// Walk a stretch of the disk by its status.
fn check_status(model: &Model, chain: &Chain, random: &mut Random) {
    let start = random.below(model.size_bytes()) / UNIT * UNIT;
    let end = (start + random.below(64 << 20) + 1).next_multiple_of(UNIT).min(model.size_bytes());
    let (mut at, mut loads) = (start, 0);
    while at < end {
        match chain.status(at, end - at) {
            Err(missing) => {
                loads += 1;
                assert!(loads < LOADS_MAX, "the status gets no further");
                model.serve(chain, missing);
            }
            Ok(status) => {
                loads = 0;
                assert!(status.len_bytes > 0 && at + status.len_bytes <= end);
                // First, last and some between.
                let step = (status.len_bytes / 50).next_multiple_of(UNIT) as usize;
                for unit in (at..at + status.len_bytes).step_by(step).chain([at + status.len_bytes - UNIT]) {
                    assert_eq!(model.find(unit).is_some(), status.mapped, "at {unit}");
                }
                at += status.len_bytes;
            }
        }
    }
}

/// Leave some maps room for one page that comes and goes, as when the other is dirty.
fn pin_some(model: &Model, chain: &Chain, random: &mut Random) {
    for level in chain.levels() {
        let Level::Map { layer, map } = level else { continue };
        for table in [Table::Entries, Table::Bits] {
            let page = random.below(u64::from(map.table(table).pages())) as u32;
            if random.below(2) == 0 && (table == Table::Entries || model.layers[usize::from(*layer)].has_bits(page)) {
                model.load(*layer, map, Fault { table, page });
                map.table(table).pin(page).expect("it was loaded, and is the first");
            }
        }
    }
}

fn check_chains(seeds: std::ops::Range<u64>, depth: impl Fn(&mut Random) -> usize, largest_bytes: u64, ranges: u32) {
    for seed in seeds {
        let mut random = Random::new(seed);
        let depth = depth(&mut random);
        let model = Model::random(&mut random, depth, largest_bytes);
        for (form, chain) in forms(&model, &mut random).iter().enumerate() {
            assert_eq!(chain.size_bytes(), model.size_bytes());
            let writable = !matches!(chain.levels()[0], Level::Flat { .. });
            if let Some(map) = chain.map(0) {
                map.mark_write_session(true);
            }
            pin_some(&model, chain, &mut random);
            for _ in 0..ranges {
                let context = std::panic::AssertUnwindSafe(|| {
                    let (start, len) = random_range(&mut random, model.size_bytes(), UNIT);
                    check_read(&model, chain, start, len);
                    if writable {
                        let sector = 1 << model.layers[0].shape.sector_shift;
                        let (start, len) = random_range(&mut random, model.size_bytes(), sector);
                        check_write(&model, chain, start, len);
                    }
                    if random.below(4) == 0 {
                        check_status(&model, chain, &mut random);
                    }
                });
                if let Err(panic) = std::panic::catch_unwind(context) {
                    eprintln!("seed {seed}, form {form}, depth {depth}");
                    std::panic::resume_unwind(panic);
                }
            }
        }
    }
}

#[test]
fn shallow_chains_are_planned_as_the_model_says() {
    check_chains(0..150, |random| random.within(1..5) as usize, 600 << 20, 40);
}

#[test]
fn chains_in_small_pieces_are_planned_as_the_model_says() {
    check_chains(4000..4060, |random| random.within(2..7) as usize, 12 << 20, 30);
}

#[test]
fn chains_of_large_disks_are_planned_as_the_model_says() {
    check_chains(1000..1010, |random| random.within(1..4) as usize, 9 << 30, 100);
}

#[test]
fn deep_chains_are_planned_as_the_model_says() {
    check_chains(2000..2012, |_| 64, 100 << 20, 40);
    check_chains(3000..3003, |_| 300, 40 << 20, 40);
}

#[test]
fn a_leaf_without_session_or_with_a_failure_takes_no_writes() {
    let mut random = Random::new(7);
    let model = Model::random(&mut random, 2, 64 << 20);
    let chain = Chain::new(model.levels(MapLimits::default(), false));
    let map = chain.map(0).unwrap();
    assert!(matches!(chain.plan_write(0, 4096), WritePlan::Prepare));
    map.mark_write_session(true);
    assert!(!matches!(chain.plan_write(0, 4096), WritePlan::Poisoned));
    map.poison();
    assert!(matches!(chain.plan_write(0, 4096), WritePlan::Poisoned));
    let ReadPlan::Fault(_) = chain.plan_read(0, 4096) else { panic!("reads go on") };
}

#[test]
fn a_fold_can_be_ended_and_says_how_far_it_is() {
    let mut random = Random::new(8);
    let model = Model::random(&mut random, 3, 8 << 30);
    let levels = model.levels(MapLimits::default(), false);
    let load = &mut |layer, map: &_, fault| {
        model.load(layer, map, fault);
        Ok(())
    };
    let mut seen = Vec::new();
    let progress = &mut |done, of| {
        seen.push(done);
        assert_eq!(of, model.size_bytes());
        if seen.len() == 2 { Err("cancelled") } else { Ok(()) }
    };
    assert_eq!(FlatMap::build(&levels, load, progress).err(), Some("cancelled"));
    assert!(seen[0] == 0 && seen[1] > 0);
}

#[test]
fn folding_an_empty_chain_of_the_largest_disk_takes_no_time_and_no_memory() {
    let mut random = Random::new(9);
    let mut model = Model::random(&mut random, 1, 1 << 20);
    model.layers[0].raw = false;
    let shape = Shape { size_bytes: 64 << 40, block_shift: 21, has_parent: true, ..model.layers[0].shape };
    model.layers[0].shape = Shape { chunk_blocks: u32::MAX, ..shape };
    let levels: Vec<Level> = (0..64)
        .map(|layer| {
            let map = model.layers[0].map(TINY, false);
            (0..map.entries().pages()).for_each(|page| map.entries().fill_zeros(page));
            Level::Map { layer, map }
        })
        .collect();
    let flat = FlatMap::build(&levels, &mut |_, _, _| Err(()), &mut |_, _| Ok(())).unwrap().expect("small");
    assert!(flat.memory_bytes() < 2 << 20, "{}", flat.memory_bytes());
    let chain = Chain::new(vec![Level::Flat { first_layer: 0, map: Arc::new(flat) }]);
    let status = chain.status(0, 64 << 40).unwrap();
    assert!(!status.mapped && status.len_bytes == 64 << 40);
}
