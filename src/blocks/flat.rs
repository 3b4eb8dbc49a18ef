//! Many layers folded into one lookup, so that reading does not slow with depth.
//!
//! One word for each *granule* (the smallest block of the folded layers) says where its bytes are: in one layer,
//! nowhere, or in several, which a sorted list of runs tells apart. Immutable once built; its layers are parents, which
//! do not change while anyone uses them.

use std::fmt;
use std::ops::Range;

use super::chain::{Level, resolve};
use super::map::{BlockMap, Fault};
use super::plan::Extent;

/// Words in a page of the map. A page of zeros takes no memory.
const PAGE_WORDS: usize = 512;

type Page = [u64; PAGE_WORDS];

/// Base-two logarithm of the granule where no level has blocks.
const GRANULE_SHIFT_DEFAULT: u8 = 21;

/// Base-two logarithm of a cell: guests write in multiples of 4 KiB.
const CELL_SHIFT: u32 = 12;

/// Units of a cell.
const UNITS_PER_CELL: u32 = 1 << (CELL_SHIFT - UNIT_SHIFT);

/// Bytes of all runs and cells together.
const PARTS_BYTES_MAX: usize = 400 << 20;

/// Bytes that a run takes.
const RUN_BYTES: usize = 12;

/// What offsets in files are multiples of, and what runs are counted in.
const UNIT_SHIFT: u32 = 9;

/// Layers that a word can name.
const LAYERS_MAX: u16 = 1 << 12;

const _: () = assert!(PARTS_BYTES_MAX < u32::MAX as usize, "a word has 32 bits for the first run or cell");

/// Where something is: bits 0 and 1 the kind, the rest depends on it. Zero is [`Target::Behind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    /// In none of the folded block maps: in the base at the same offset, or zeros without one.
    Behind,
    /// Zeros, whatever the base holds.
    Zeros,
    /// In a layer's file from this byte offset on.
    File { layer: u16, offset_bytes: u64 },
    /// Different from place to place: these runs, at least 2.
    Mixed { first: u32, count: u32 },
    /// Different so often that each cell has its word: these cells. A `Mixed` of no runs.
    Cells { first: u32 },
}

impl Target {
    fn pack(self) -> u64 {
        match self {
            Self::Behind => 0,
            Self::Zeros => 1,
            Self::File { layer, offset_bytes } => 2 | u64::from(layer) << 2 | offset_bytes >> UNIT_SHIFT << 14,
            Self::Mixed { first, count } => 3 | u64::from(first) << 2 | u64::from(count) << 34,
            Self::Cells { first } => Self::Mixed { first, count: 0 }.pack(),
        }
    }

    fn unpack(word: u64) -> Self {
        match word & 3 {
            0 => Self::Behind,
            1 => Self::Zeros,
            2 => Self::File { layer: (word >> 2) as u16 & (LAYERS_MAX - 1), offset_bytes: word >> 14 << UNIT_SHIFT },
            _ => match ((word >> 2) as u32, (word >> 34) as u32) {
                (first, 0) => Self::Cells { first },
                (first, count) => Self::Mixed { first, count },
            },
        }
    }
}

/// A layer stored byte for byte, behind all others.
#[derive(Clone, Copy, Debug)]
struct Bottom {
    layer: u16,
    size_bytes: u64,
}

/// The map. Layers are numbered from 0, the first that was folded; [`Level::Flat`] says where that is in the chain, so
/// chains of different depth share one map.
pub struct FlatMap {
    size_bytes: u64,
    granule_shift: u8,
    pages: Box<[Option<Box<Page>>]>,
    /// Of all mixed granules: where each run starts, in units of 512 bytes from the start of its granule.
    run_starts: Vec<u32>,
    /// And where its bytes are.
    run_targets: Vec<u64>,
    /// Of all granules in cells: where the bytes of each are.
    cells: Vec<u64>,
    bottom: Option<Bottom>,
}

impl FlatMap {
    /// Fold these levels, the first of which is the uppermost. Blocks as long as `load` does, which is called for pages
    /// that are not resident, with the number of the layer. `progress` is told how many bytes of how many are done; its
    /// error ends the work.
    ///
    /// `None`: the layers alternate so often that the map would take more than some 400 MiB for it. The levels can be
    /// used as they are.
    pub fn build<E>(
        levels: &[Level],
        load: &mut dyn FnMut(u16, &BlockMap, Fault) -> Result<(), E>,
        progress: &mut dyn FnMut(u64, u64) -> Result<(), E>,
    ) -> Result<Option<Self>, E> {
        let size_bytes = levels.first().expect("there is something to fold").size_bytes();
        let granule_shift = levels.iter().filter_map(Level::granule_shift).min().unwrap_or(GRANULE_SHIFT_DEFAULT);
        let page_shift = u32::from(granule_shift) + PAGE_WORDS.trailing_zeros();
        assert!(levels.iter().all(|level| level.layer() - levels[0].layer() < LAYERS_MAX), "a word can name them all");
        let mut builder = Builder {
            levels,
            first_layer: levels[0].layer(),
            bottom: levels.last().and_then(Level::bottom),
            active: Vec::with_capacity(levels.len()),
            runs: Vec::new(),
            run_starts: Vec::new(),
            run_targets: Vec::new(),
            cells: Vec::new(),
        };
        let mut pages: Vec<Option<Box<Page>>> = Vec::new();
        for start in (0..size_bytes).step_by(1 << page_shift) {
            progress(start, size_bytes)?;
            let end = size_bytes.min(start + (1 << page_shift));
            pages.push(builder.page(start..end, granule_shift, load)?);
            if builder.run_starts.len() * RUN_BYTES + builder.cells.len() * 8 > PARTS_BYTES_MAX {
                return Ok(None);
            }
        }
        progress(size_bytes, size_bytes)?;
        let Builder { first_layer, bottom, mut run_starts, mut run_targets, mut cells, .. } = builder;
        run_starts.shrink_to_fit();
        run_targets.shrink_to_fit();
        cells.shrink_to_fit();
        let bottom = bottom.map(|bottom| Bottom { layer: bottom.layer - first_layer, ..bottom });
        Ok(Some(Self { size_bytes, granule_shift, pages: pages.into(), run_starts, run_targets, cells, bottom }))
    }

    /// Size of the uppermost layer in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Memory that it takes.
    pub fn memory_bytes(&self) -> u64 {
        let pages = self.pages.iter().flatten().count() * PAGE_WORDS * 8;
        let runs = self.run_starts.capacity() * 4 + self.run_targets.capacity() * 8;
        (size_of_val(&*self.pages) + pages + runs + self.cells.capacity() * 8) as u64
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
        if let Target::Cells { first } = target {
            let cell = within >> CELL_SHIFT;
            start = cell << CELL_SHIFT;
            left = (1 << CELL_SHIFT) - (within - start);
            target = Target::unpack(self.cells[first as usize + cell as usize]);
        } else if let Target::Mixed { first, count } = target {
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
            (Target::Behind, Some(bottom)) if position < bottom.size_bytes => {
                let len_bytes = (bottom.size_bytes - position).min(u64::from(len_bytes)) as u32;
                Extent::File { layer: first_layer + bottom.layer, offset_bytes: position, len_bytes }
            }
            _ => Extent::Zeros { len_bytes },
        }
    }

    /// Up to which byte from `position` to about `end` nothing is there; `position` when not even there.
    pub(super) fn absent_until(&self, position: u64, end: u64) -> u64 {
        if self.bottom.is_some_and(|bottom| position < bottom.size_bytes) {
            return position;
        }
        let page_shift = u32::from(self.granule_shift) + PAGE_WORDS.trailing_zeros();
        let first = (position >> page_shift) as usize;
        let last = ((end.min(self.size_bytes) - 1) >> page_shift) as usize;
        let absent = self.pages[first..=last].iter().take_while(|page| page.is_none()).count();
        if absent == 0 { position } else { (((first + absent) as u64) << page_shift).min(self.size_bytes) }
    }
}

/// A fold in progress.
struct Builder<'a> {
    levels: &'a [Level],
    first_layer: u16,
    bottom: Option<Bottom>,
    /// The levels that have anything in the page at hand.
    active: Vec<(usize, &'a Level)>,
    /// The runs of the granule at hand.
    runs: Vec<(u32, Target)>,
    run_starts: Vec<u32>,
    run_targets: Vec<u64>,
    cells: Vec<u64>,
}

impl<'a> Builder<'a> {
    /// Fold the bytes of one page; `None` when no layer has anything there.
    fn page<E>(
        &mut self,
        bytes: Range<u64>,
        granule_shift: u8,
        load: &mut dyn FnMut(u16, &BlockMap, Fault) -> Result<(), E>,
    ) -> Result<Option<Box<Page>>, E> {
        let has_something = |level: &Level| {
            !matches!(level, Level::Raw { .. })
                && (bytes.start >= level.size_bytes() || level.absent_until(bytes.start, bytes.end) < bytes.end)
        };
        if !self.levels.iter().any(has_something) {
            return Ok(None);
        }
        self.active.clear();
        let levels: &'a [Level] = self.levels;
        let keep = |level: &Level| !matches!(level, Level::Map { .. }) || has_something(level);
        self.active.extend(levels.iter().enumerate().filter(|(_, level)| keep(level)));
        let mut page: Option<Box<Page>> = None;
        for (index, start) in bytes.clone().step_by(1 << granule_shift).enumerate() {
            self.find_runs(start..bytes.end.min(start + (1 << granule_shift)), load)?;
            let target = self.keep_runs(granule_shift);
            if target != Target::Behind {
                page.get_or_insert_with(|| Box::new([0; PAGE_WORDS]))[index] = target.pack();
            }
        }
        Ok(page)
    }

    /// Find out where the bytes of a granule are.
    fn find_runs<E>(
        &mut self,
        bytes: Range<u64>,
        load: &mut dyn FnMut(u16, &BlockMap, Fault) -> Result<(), E>,
    ) -> Result<(), E> {
        self.runs.clear();
        let mut position = bytes.start;
        while position < bytes.end {
            match resolve(self.active.iter().copied(), position, (bytes.end - position) as u32) {
                Ok(extent) => {
                    self.add_run(((position - bytes.start) >> UNIT_SHIFT) as u32, position, extent);
                    position += u64::from(extent.len_bytes());
                }
                Err(missing) => {
                    let Level::Map { layer, map } = &self.levels[usize::from(missing.level)] else {
                        unreachable!("only maps have pages to load")
                    };
                    load(*layer, map, missing.fault)?;
                }
            }
        }
        Ok(())
    }

    /// Note where a part of the granule is, from the unit `at` on.
    fn add_run(&mut self, at: u32, position: u64, extent: Extent) {
        let target = match (extent, self.bottom) {
            (Extent::File { layer, .. }, Some(bottom)) if layer == bottom.layer => Target::Behind,
            (Extent::File { layer, offset_bytes, .. }, _) => {
                Target::File { layer: layer - self.first_layer, offset_bytes }
            }
            (Extent::Zeros { .. }, Some(bottom)) if position < bottom.size_bytes => Target::Zeros,
            (Extent::Zeros { .. }, _) => Target::Behind,
        };
        let continues = match (self.runs.last(), target) {
            (Some((from, Target::File { layer, offset_bytes })), Target::File { layer: next, offset_bytes: there }) => {
                *layer == next && *offset_bytes + (u64::from(at - from) << UNIT_SHIFT) == there
            }
            (last, target) => last.is_some_and(|(_, last)| *last == target),
        };
        if !continues {
            self.runs.push((at, target));
        }
    }

    /// Keep the runs of the granule; gives its word.
    fn keep_runs(&mut self, granule_shift: u8) -> Target {
        if let [(_, target)] = *self.runs {
            return target;
        }
        let cells = 1 << (u32::from(granule_shift) - CELL_SHIFT);
        let in_cells = self.runs.iter().all(|(start, _)| start.is_multiple_of(UNITS_PER_CELL));
        // Cells are found without a search; they may take twice the memory of the runs.
        if in_cells && 2 * self.runs.len() * RUN_BYTES >= cells * 8 {
            return self.keep_cells(cells as u32);
        }
        let first = self.run_starts.len() as u32;
        self.run_starts.extend(self.runs.iter().map(|(start, _)| *start));
        self.run_targets.extend(self.runs.iter().map(|(_, target)| target.pack()));
        Target::Mixed { first, count: self.runs.len() as u32 }
    }

    /// Keep the runs of the granule as cells.
    fn keep_cells(&mut self, cells: u32) -> Target {
        let first = self.cells.len() as u32;
        let ends = self.runs.iter().skip(1).map(|(start, _)| start / UNITS_PER_CELL).chain([cells]);
        for ((start, target), end) in self.runs.iter().zip(ends) {
            self.cells.extend((start / UNITS_PER_CELL..end).map(|cell| {
                let into = u64::from(cell * UNITS_PER_CELL - start) << UNIT_SHIFT;
                match *target {
                    Target::File { layer, offset_bytes } => {
                        Target::File { layer, offset_bytes: offset_bytes + into }.pack()
                    }
                    other => other.pack(),
                }
            }));
        }
        Target::Cells { first }
    }
}

impl Level {
    /// The number of its layer, or of the first of its layers.
    fn layer(&self) -> u16 {
        match self {
            Self::Map { layer, .. } | Self::Raw { layer, .. } | Self::Flat { first_layer: layer, .. } => *layer,
        }
    }

    fn granule_shift(&self) -> Option<u8> {
        match self {
            Self::Map { map, .. } => Some(map.shape().block_shift),
            Self::Raw { .. } => None,
            Self::Flat { map, .. } => Some(map.granule_shift),
        }
    }

    /// What is stored byte for byte at the end of a chain that ends with this level.
    fn bottom(&self) -> Option<Bottom> {
        match self {
            Self::Map { .. } => None,
            Self::Raw { layer, size_bytes } => Some(Bottom { layer: *layer, size_bytes: *size_bytes }),
            Self::Flat { first_layer, map } => {
                map.bottom.map(|bottom| Bottom { layer: first_layer + bottom.layer, ..bottom })
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
