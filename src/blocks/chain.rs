//! A chain of layers: from byte ranges of the disk to extents of its files.
//!
//! Planning looks at entries one by one while an engine may change them. Each extent is true at the moment when it is
//! planned, and stays so until every task that planned before has ended: space is taken away from a block only behind
//! such a barrier.

use std::sync::Arc;

use super::entry::State;
use super::flat::FlatMap;
use super::map::{BlockMap, Fault};
use super::plan::{Extent, ExtentList, LevelFault, ReadPlan, WritePlan};

/// Levels that a plan should walk: chains that would have more are folded ([`FlatMap::build`]).
pub const LEVELS_MAX: usize = 3;

/// Steps that one [`Chain::status`] takes; the run that it gives may end early for it.
const STATUS_STEPS_MAX: u32 = 4096;

/// One level of a chain.
#[derive(Clone, Debug)]
pub enum Level {
    /// A layer with a block map.
    Map {
        /// Which layer of the chain, 0 for the leaf: the index of its file.
        layer: u16,
        /// Its map.
        map: Arc<BlockMap>,
    },
    /// A layer that is stored byte for byte from the file's start (raw, fixed VHD). Nothing behind it is looked at.
    Raw {
        /// Which layer.
        layer: u16,
        /// Size in bytes; what a larger child has behind it reads as zeros.
        size_bytes: u64,
    },
    /// Many layers in one; always the last level.
    Flat {
        /// Which layer of the chain is the first of those in it.
        first_layer: u16,
        /// Where their bytes are.
        map: Arc<FlatMap>,
    },
}

/// What a part of a disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Whether it has space in some file; else it reads as zeros and is deallocated (SBC-4 clause 5.9).
    pub mapped: bool,
    /// For how many bytes this is so, at least; it may go on behind them.
    pub len_bytes: u64,
}

/// The levels of a disk, leaf first. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Chain {
    levels: Arc<[Level]>,
    size_bytes: u64,
}

impl Level {
    /// Its size in bytes.
    pub fn size_bytes(&self) -> u64 {
        match self {
            Self::Map { map, .. } => map.shape().size_bytes,
            Self::Raw { size_bytes, .. } => *size_bytes,
            Self::Flat { map, .. } => map.size_bytes(),
        }
    }

    /// Up to which byte from `position` (below its size) to about `end` it is known to have nothing; `position` when
    /// not even there.
    pub(super) fn absent_until(&self, position: u64, end: u64) -> u64 {
        match self {
            Self::Map { map, .. } => map.absent_until(position, end),
            Self::Raw { .. } => position,
            Self::Flat { map, .. } => map.absent_until(position, end),
        }
    }
}

impl Chain {
    /// A chain of these levels, leaf first; at least one. A flat level must be the last.
    pub fn new(levels: Vec<Level>) -> Self {
        let size_bytes = levels.first().expect("a chain has a leaf").size_bytes();
        let flats = levels.iter().filter(|level| matches!(level, Level::Flat { .. })).count();
        let flat_last = matches!(levels.last(), Some(Level::Flat { .. }));
        assert!(flats == usize::from(flat_last), "a flat level is the last one");
        Self { levels: levels.into(), size_bytes }
    }

    /// The levels, leaf first.
    pub fn levels(&self) -> &[Level] {
        &self.levels
    }

    /// The disk's size: the leaf's.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The map of a level that has one.
    pub fn map(&self, level: u16) -> Option<&Arc<BlockMap>> {
        match self.levels.get(usize::from(level)) {
            Some(Level::Map { map, .. }) => Some(map),
            _ => None,
        }
    }

    /// Plan a read. The range must lie within the disk and be whole sectors.
    pub fn plan_read(&self, offset_bytes: u64, len_bytes: u32) -> ReadPlan {
        let end = offset_bytes + u64::from(len_bytes);
        assert!(end <= self.size_bytes, "the range passed the check of the LBA");
        // Parents are not written.
        if let Level::Map { map, .. } = &self.levels[0]
            && map.is_torn(offset_bytes..end)
        {
            return ReadPlan::Torn;
        }
        // Made in place where it is returned: copying a list costs more than planning.
        let mut plan = ReadPlan::Extents(ExtentList::EMPTY);
        let ReadPlan::Extents(list) = &mut plan else { unreachable!("it was just made") };
        let mut position = offset_bytes;
        while position < end {
            match resolve(self.levels.iter().enumerate(), position, (end - position) as u32) {
                Ok(extent) => {
                    if !list.push(extent) {
                        break;
                    }
                    position += u64::from(extent.len_bytes());
                }
                // What is planned goes first: a range that needs more pages than fit would never be planned whole.
                Err(missing) => {
                    if list.is_empty() {
                        plan = ReadPlan::Fault(missing);
                    }
                    break;
                }
            }
        }
        plan
    }

    /// Plan a write. The range must lie within the disk and be whole sectors; the leaf must not be flat.
    pub fn plan_write(&self, offset_bytes: u64, len_bytes: u32) -> WritePlan {
        let end = offset_bytes + u64::from(len_bytes);
        assert!(end <= self.size_bytes, "the range passed the check of the LBA");
        match &self.levels[0] {
            Level::Map { layer, map } => plan_map_write(*layer, map, offset_bytes, len_bytes),
            Level::Raw { layer, .. } => {
                let extents = ExtentList::one(Extent::File { layer: *layer, offset_bytes, len_bytes });
                WritePlan::Ready { extents, commit: false, epoch: 0 }
            }
            Level::Flat { .. } => panic!("a disk whose leaf is flat is read-only"),
        }
    }

    /// Whether the disk has space for what is at `offset_bytes`, and for how many bytes (at most `len_bytes`, more than
    /// 0) this is so. For GET LBA STATUS. The range must lie within the disk and be whole sectors.
    pub fn status(&self, offset_bytes: u64, len_bytes: u64) -> Result<Status, LevelFault> {
        let end = offset_bytes + len_bytes;
        assert!(len_bytes > 0 && end <= self.size_bytes, "the range passed the check of the LBA");
        let mut status: Option<Status> = None;
        let mut position = offset_bytes;
        for _ in 0..STATUS_STEPS_MAX {
            let left = (end - position).min(1 << 31) as u32;
            let extent = match (resolve(self.levels.iter().enumerate(), position, left), status) {
                (Ok(extent), _) => extent,
                (Err(_), Some(status)) => return Ok(status),
                (Err(fault), None) => return Err(fault),
            };
            let mapped = matches!(extent, Extent::File { .. });
            let run = status.get_or_insert(Status { mapped, len_bytes: 0 });
            if run.mapped != mapped {
                break;
            }
            position += u64::from(extent.len_bytes());
            if !mapped {
                position = self.absent_until(position, end);
            }
            run.len_bytes = position - offset_bytes;
            if position == end {
                break;
            }
        }
        Ok(status.expect("the first step gives a status"))
    }

    /// Up to which byte from `position` to `end` no level has anything, as far as is known without looking at entries.
    fn absent_until(&self, position: u64, end: u64) -> u64 {
        let mut until = end;
        for level in &*self.levels {
            if until == position || position >= level.size_bytes() {
                break;
            }
            // Behind the end of a level there is nothing, but that is for the next step to find.
            until = until.min(level.absent_until(position, until));
        }
        until
    }
}

/// Where the bytes from `position` on are; at least one sector, at most `len_bytes`.
#[inline]
pub(super) fn resolve<'a>(
    levels: impl Iterator<Item = (usize, &'a Level)>,
    position: u64,
    len_bytes: u32,
) -> Result<Extent, LevelFault> {
    let mut len_bytes = len_bytes;
    for (number, level) in levels {
        let size_bytes = level.size_bytes();
        if position >= size_bytes {
            break; // A parent that is smaller: zeros, whatever is behind it.
        }
        len_bytes = u64::from(len_bytes).min(size_bytes - position) as u32;
        match level {
            Level::Raw { layer, .. } => {
                return Ok(Extent::File { layer: *layer, offset_bytes: position, len_bytes });
            }
            Level::Flat { first_layer, map } => return Ok(map.lookup(*first_layer, position, len_bytes)),
            Level::Map { layer, map } => {
                let fault = |fault| LevelFault { level: number as u16, fault };
                match look(map, position, len_bytes).map_err(fault)? {
                    Found::Here { offset_bytes, len_bytes } => {
                        return Ok(Extent::File { layer: *layer, offset_bytes, len_bytes });
                    }
                    Found::Zeros { len_bytes } => return Ok(Extent::Zeros { len_bytes }),
                    Found::Behind { len_bytes: shorter } => len_bytes = shorter,
                }
            }
        }
    }
    Ok(Extent::Zeros { len_bytes })
}

/// What one map says about the bytes from some position on.
enum Found {
    Here { offset_bytes: u64, len_bytes: u32 },
    Zeros { len_bytes: u32 },
    Behind { len_bytes: u32 },
}

#[inline]
fn look(map: &BlockMap, position: u64, len_bytes: u32) -> Result<Found, Fault> {
    let shape = map.shape();
    let within = position & (shape.block_bytes() - 1);
    let len_bytes = u64::from(len_bytes).min(shape.block_bytes() - within) as u32;
    let entry = map.entry((position >> shape.block_shift) as u32)?;
    Ok(match entry.state() {
        State::Full => Found::Here { offset_bytes: entry.offset_bytes() + within, len_bytes },
        State::Zeros => Found::Zeros { len_bytes },
        State::Absent => Found::Behind { len_bytes },
        State::Partial => {
            let (set, len_bytes) = same_bits(map, position, len_bytes)?;
            if set {
                Found::Here { offset_bytes: entry.offset_bytes() + within, len_bytes }
            } else {
                Found::Behind { len_bytes }
            }
        }
    })
}

/// The bit of the sector at `position`, and for how many bytes (at most `len_bytes`) it is the same.
fn same_bits(map: &BlockMap, position: u64, len_bytes: u32) -> Result<(bool, u32), Fault> {
    let shift = map.shape().sector_shift;
    let (first, end) = (position >> shift, (position + u64::from(len_bytes)).div_ceil(1 << shift));
    let (set, sectors) = map.run(first, end - first)?;
    // A range may start inside a sector: a child's sectors may be smaller than its parent's.
    let same_bytes = ((first + sectors) << shift) - position;
    Ok((set, same_bytes.min(u64::from(len_bytes)) as u32))
}

fn plan_map_write(layer: u16, map: &BlockMap, offset_bytes: u64, len_bytes: u32) -> WritePlan {
    if map.poisoned() {
        return WritePlan::Poisoned;
    }
    if !map.write_session_open() {
        return WritePlan::Prepare;
    }
    // Before the entries: space that is taken away after this makes the epoch old, and the commit is refused.
    let epoch = map.placement_epoch();
    let shape = map.shape();
    let end = offset_bytes + u64::from(len_bytes);
    let (mut extents, mut commit) = (ExtentList::EMPTY, false);
    let mut position = offset_bytes;
    while position < end {
        let within = position & (shape.block_bytes() - 1);
        let mut len_bytes = (end - position).min(shape.block_bytes() - within) as u32;
        let entry = match map.entry((position >> shape.block_shift) as u32) {
            Ok(entry) => entry,
            Err(fault) => return write_fault(extents, commit, epoch, fault),
        };
        if entry.is_busy() || !entry.has_space() {
            return WritePlan::Prepare;
        }
        match entry.state() {
            State::Full => {}
            State::Absent | State::Zeros => commit = true,
            State::Partial if commit => {}
            State::Partial => match same_bits(map, position, len_bytes) {
                // Run by run, so that no more than one page of bits has to be resident at a time.
                Ok((set, same_bytes)) => (commit, len_bytes) = (!set, same_bytes),
                Err(fault) => return write_fault(extents, commit, epoch, fault),
            },
        }
        let extent = Extent::File { layer, offset_bytes: entry.offset_bytes() + within, len_bytes };
        if !extents.push(extent) {
            break;
        }
        position += u64::from(len_bytes);
    }
    WritePlan::Ready { extents, commit, epoch }
}

/// A page is missing: what is planned goes first.
fn write_fault(extents: ExtentList, commit: bool, epoch: u32, fault: Fault) -> WritePlan {
    if extents.is_empty() {
        return WritePlan::Fault(LevelFault { level: 0, fault });
    }
    WritePlan::Ready { extents, commit, epoch }
}
