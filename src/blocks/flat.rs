//! Many layers folded into one lookup, so that reading does not slow with depth.
//!
//! One word for each *granule* (the smallest block of the folded layers) says where its bytes are: in one layer, nowhere,
//! or in several, which a sorted list of runs tells apart. Immutable once built; its layers are parents, which do not
//! change while anyone uses them.

use std::fmt;

use super::chain::{Level, resolve};
use super::map::{BlockMap, Fault};
use super::plan::Extent;

/// Words in a page of the map. A page of zeros takes no memory.
const PAGE_WORDS: usize = 512;

/// What offsets in files are multiples of, and what runs are counted in.
const UNIT_SHIFT: u32 = 9;

/// Layers that a word can name.
const LAYERS_MAX: u16 = 1 << 12;

/// Where something is: bits 0 and 1 the kind, the rest depends on it. Zero is [`Target::Behind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    /// In none of the folded block maps: in the base at the same offset, or zeros without one.
    Behind,
    /// Zeros, whatever the base holds.
    Zeros,
    /// In a layer's file from this byte offset on.
    File { layer: u16, offset_bytes: u64 },
    /// Different from place to place: these runs.
    Mixed { first: u32, count: u32 },
}

impl Target {
    fn pack(self) -> u64 {
        match self {
            Self::Behind => 0,
            Self::Zeros => 1,
            Self::File { layer, offset_bytes } => 2 | u64::from(layer) << 2 | offset_bytes >> UNIT_SHIFT << 14,
            Self::Mixed { first, count } => 3 | u64::from(first) << 2 | u64::from(count) << 34,
        }
    }

    fn unpack(word: u64) -> Self {
        match word & 3 {
            0 => Self::Behind,
            1 => Self::Zeros,
            2 => Self::File { layer: (word >> 2) as u16 & (LAYERS_MAX - 1), offset_bytes: word >> 14 << UNIT_SHIFT },
            _ => Self::Mixed { first: (word >> 2) as u32, count: (word >> 34) as u32 },
        }
    }
}

/// A layer stored byte for byte, behind all others.
#[derive(Clone, Copy, Debug)]
struct BaseLayer {
    layer: u16,
    size_bytes: u64,
}

/// The map. Layers are numbered from 0, the first that was folded; [`Level::Flat`] says where that is in the chain, so
/// chains of different depth share one map.
pub struct FlatMap {
    size_bytes: u64,
    granule_shift: u8,
    pages: Vec<Option<Box<[u64; PAGE_WORDS]>>>,
    /// Of all mixed granules: where each run starts, in units of 512 bytes from the start of its granule.
    run_starts: Vec<u32>,
    /// And where its bytes are.
    run_targets: Vec<u64>,
    bottom: Option<BaseLayer>,
}

impl FlatMap {
    /// Fold these levels, the first of which is the uppermost. Blocks as long as `load` does, which is called for pages
    /// that are not resident, with the number of the layer. `progress` is told how many bytes of how many are done; its
    /// error ends the work.
    pub fn build<E>(
        levels: &[Level],
        load: &mut dyn FnMut(u16, &BlockMap, Fault) -> Result<(), E>,
        progress: &mut dyn FnMut(u64, u64) -> Result<(), E>,
    ) -> Result<Self, E> {
        let size_bytes = levels.first().expect("there is something to fold").size_bytes();
        let granule_shift = levels.iter().filter_map(Level::granule_shift).min().unwrap_or(21);
        let granules = size_bytes.div_ceil(1 << granule_shift);
        let mut flat = Self {
            size_bytes,
            granule_shift,
            pages: (0..granules.div_ceil(PAGE_WORDS as u64)).map(|_| None).collect(),
            run_starts: Vec::new(),
            run_targets: Vec::new(),
            bottom: levels.last().and_then(|level| level.bottom(first_layer(levels))),
        };
        let mut runs = Vec::new();
        for granule in 0..granules {
            if granule.is_multiple_of(PAGE_WORDS as u64) {
                progress(granule << granule_shift, size_bytes)?;
            }
            let start = granule << granule_shift;
            let end = (start + (1 << granule_shift)).min(size_bytes);
            runs.clear();
            let mut position = start;
            while position < end {
                let extent = match resolve(levels, position, (end - position) as u32) {
                    Ok(extent) => extent,
                    Err(missing) => {
                        let Level::Map { layer, map } = &levels[usize::from(missing.level)] else {
                            unreachable!("only maps have pages to load")
                        };
                        load(*layer, map, missing.fault)?;
                        continue;
                    }
                };
                flat.add_run(&mut runs, first_layer(levels), start, position, extent);
                position += u64::from(extent.len_bytes());
            }
            flat.set(granule, &runs);
        }
        progress(size_bytes, size_bytes)?;
        Ok(flat)
    }

    /// Size of the uppermost layer in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Memory that it takes.
    pub fn memory_bytes(&self) -> u64 {
        let pages = self.pages.iter().flatten().count() * PAGE_WORDS * 8;
        (pages
            + self.pages.capacity() * size_of::<Option<Box<[u64; PAGE_WORDS]>>>()
            + self.run_starts.capacity() * 4
            + self.run_targets.capacity() * 8) as u64
    }

    /// Where the bytes from `position` on are, which must be below the size; at most `len_bytes`.
    #[inline]
    pub(super) fn lookup(&self, first_layer: u16, position: u64, len_bytes: u32) -> Extent {
        let granule = position >> self.granule_shift;
        let within = position & ((1 << self.granule_shift) - 1);
        let mut left = (1 << self.granule_shift) - within;
        let word = match &self.pages[granule as usize / PAGE_WORDS] {
            Some(page) => page[granule as usize % PAGE_WORDS],
            None => 0,
        };
        let mut target = Target::unpack(word);
        let mut start = 0;
        if let Target::Mixed { first, count } = target {
            let runs = first as usize..(first + count) as usize;
            let starts = &self.run_starts[runs.clone()];
            let next = starts.partition_point(|start| u64::from(*start) << UNIT_SHIFT <= within);
            start = u64::from(starts[next - 1]) << UNIT_SHIFT;
            target = Target::unpack(self.run_targets[runs.start + next - 1]);
            if let Some(end) = starts.get(next) {
                left = (u64::from(*end) << UNIT_SHIFT) - within;
            }
        }
        let len_bytes = left.min(u64::from(len_bytes)) as u32;
        match (target, self.bottom) {
            (Target::File { layer, offset_bytes }, _) => {
                Extent::File { layer: first_layer + layer, offset_bytes: offset_bytes + (within - start), len_bytes }
            }
            (Target::Behind, Some(base)) if position < base.size_bytes => {
                let len_bytes = (base.size_bytes - position).min(u64::from(len_bytes)) as u32;
                Extent::File { layer: first_layer + base.layer, offset_bytes: position, len_bytes }
            }
            _ => Extent::Zeros { len_bytes },
        }
    }

    /// Note where a part of the granule at `start` is.
    fn add_run(&self, runs: &mut Vec<(u32, Target)>, first_layer: u16, start: u64, position: u64, extent: Extent) {
        let behind = |layer: u16, offset: u64| {
            offset == position && self.bottom.is_some_and(|base| base.layer == layer - first_layer)
        };
        let target = match extent {
            Extent::File { layer, offset_bytes, .. } if behind(layer, offset_bytes) => Target::Behind,
            Extent::File { layer, offset_bytes, .. } => Target::File { layer: layer - first_layer, offset_bytes },
            Extent::Zeros { .. } if self.bottom.is_none_or(|base| position >= base.size_bytes) => Target::Behind,
            Extent::Zeros { .. } => Target::Zeros,
        };
        let at = ((position - start) >> UNIT_SHIFT) as u32;
        let continues = match (runs.last(), target) {
            (
                Some((from, Target::File { layer, offset_bytes })),
                Target::File { layer: next, offset_bytes: offset },
            ) => *layer == next && *offset_bytes + (u64::from(at - from) << UNIT_SHIFT) == offset,
            (Some((_, last)), target) => *last == target,
            (None, _) => false,
        };
        if !continues {
            runs.push((at, target));
        }
    }

    fn set(&mut self, granule: u64, runs: &[(u32, Target)]) {
        let target = match runs {
            [(_, target)] => *target,
            _ => {
                let first = u32::try_from(self.run_starts.len()).expect("fewer than 2^32 runs");
                self.run_starts.extend(runs.iter().map(|(start, _)| *start));
                self.run_targets.extend(runs.iter().map(|(_, target)| target.pack()));
                Target::Mixed { first, count: runs.len() as u32 }
            }
        };
        if target != Target::Behind {
            let page = self.pages[granule as usize / PAGE_WORDS].get_or_insert_with(|| Box::new([0; PAGE_WORDS]));
            page[granule as usize % PAGE_WORDS] = target.pack();
        }
    }
}

/// The layer that the first level is.
fn first_layer(levels: &[Level]) -> u16 {
    match &levels[0] {
        Level::Map { layer, .. } | Level::Raw { layer, .. } | Level::Flat { first_layer: layer, .. } => *layer,
    }
}

impl Level {
    fn granule_shift(&self) -> Option<u8> {
        match self {
            Self::Map { map, .. } => Some(map.shape().block_shift),
            Self::Raw { .. } => None,
            Self::Flat { map, .. } => Some(map.granule_shift),
        }
    }

    /// What is stored byte for byte at the end of a chain, numbered from `first_layer`.
    fn bottom(&self, first: u16) -> Option<BaseLayer> {
        match self {
            Self::Map { .. } => None,
            Self::Raw { layer, size_bytes } => Some(BaseLayer { layer: layer - first, size_bytes: *size_bytes }),
            Self::Flat { first_layer, map } => {
                map.bottom.map(|base| BaseLayer { layer: first_layer + base.layer - first, ..base })
            }
        }
    }
}

impl fmt::Debug for FlatMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlatMap")
            .field("size_bytes", &self.size_bytes)
            .field("granule_shift", &self.granule_shift)
            .field("runs", &self.run_starts.len())
            .finish_non_exhaustive()
    }
}
