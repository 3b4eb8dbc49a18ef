//! A group: changes of the map that share one log entry.

use super::atomic::{ATOMICS_MAX, Atomic};
use super::requests::Key;

/// Changes of a group: as many commands as a busy disk has in flight.
pub(super) const CHANGES_MAX: usize = 256;

/// Ranges that a group makes visible.
pub(super) const RANGES_MAX: usize = 1024;

/// Requests that wait for a group's changes, each counted once for each change.
pub(super) const MEMBERS_MAX: usize = 2048;

/// Pages that an entry carries: with the descriptor sector 256 KiB. A fresh partial block of 256 MiB needs 18 of them.
pub(super) const PAGES_MAX: usize = 63;

/// What happens to a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It gets space that reads as zeros, and is fully present.
    Allocate,
    /// It gets space that nobody sees yet. Nothing is logged.
    Stage,
    /// Sectors that have been written become visible: the group's ranges of this block.
    Commit,
    /// It reads as zeros and gives its space up.
    Zero,
    /// Its space is zeroed and kept.
    ZeroInPlace,
    /// Its content has been copied to this place.
    Move { to_bytes: u64 },
    /// Its place stays what it is: an atomic write goes there.
    Keep,
    /// Given up.
    Void,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    pub block: u32,
    pub kind: Kind,
    /// The new space of `Allocate` and `Stage`; 0 until it is reserved.
    pub offset_bytes: u64,
    /// The new word, once the entry has been encoded.
    pub word: u64,
}

/// A range of disk sectors, inside one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Sectors {
    pub start: u64,
    pub end: u64,
}

#[derive(Clone, Copy, Debug)]
struct Member {
    change: u16,
    key: Key,
}

/// A page that the group's entry may carry: those of the block table first, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum LogPage {
    Entries(u32),
    Bits(u32),
}

/// Changes, what they touch, and who waits. Allocates nothing after `with_capacity`.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub changes: Vec<Change>,
    /// Sorted by start once the group is committed.
    pub ranges: Vec<Sectors>,
    /// Sorted, each once, each pinned once for the group.
    pub pages: Vec<LogPage>,
    /// Sector bitmap blocks that this group gives chunks: chunk and place.
    pub bitmaps: Vec<(u32, u64)>,
    /// Writes whose data the entry carries behind its pages.
    pub atomics: Vec<Atomic>,
    members: Vec<Member>,
}

impl Group {
    pub fn with_capacity() -> Self {
        Self {
            // An atomic write may add two at once.
            changes: Vec::with_capacity(CHANGES_MAX + 1),
            ranges: Vec::with_capacity(RANGES_MAX),
            pages: Vec::with_capacity(PAGES_MAX),
            bitmaps: Vec::with_capacity(CHANGES_MAX),
            atomics: Vec::with_capacity(ATOMICS_MAX),
            members: Vec::with_capacity(MEMBERS_MAX),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// The change of a block, if the group has one.
    pub fn find(&self, block: u32) -> Option<usize> {
        self.changes.iter().position(|change| change.block == block)
    }

    pub fn kind_of(&self, block: u32) -> Option<Kind> {
        self.find(block).map(|at| self.changes[at].kind)
    }

    /// Whether data must be durable before the group's entry is written.
    pub fn follows_data(&self) -> bool {
        self.changes.iter().any(|change| matches!(change.kind, Kind::Commit | Kind::Move { .. }))
    }

    pub fn has_room(&self) -> bool {
        self.changes.len() < CHANGES_MAX && self.ranges.len() < RANGES_MAX && self.members.len() < MEMBERS_MAX
    }

    /// Pages that the entry has at most, data included.
    pub fn entry_pages(&self) -> usize {
        self.pages.len() + self.atomics.iter().map(Atomic::pages).sum::<usize>()
    }

    /// Whether a page is among the group's already.
    pub fn holds(&self, page: LogPage) -> bool {
        self.pages.binary_search(&page).is_ok()
    }

    /// Add a page that it does not hold. The caller has pinned it.
    pub fn add_page(&mut self, page: LogPage) {
        if let Err(at) = self.pages.binary_search(&page) {
            self.pages.insert(at, page);
        }
    }

    /// Take one out again. The caller lets it go.
    pub fn remove_page(&mut self, page: LogPage) {
        if let Ok(at) = self.pages.binary_search(&page) {
            self.pages.remove(at);
        }
    }

    /// Add a change of a block that has none.
    pub fn add(&mut self, block: u32, kind: Kind) -> usize {
        self.changes.push(Change { block, kind, offset_bytes: 0, word: 0 });
        self.changes.len() - 1
    }

    /// Wait for a change.
    pub fn join(&mut self, change: usize, key: Key) {
        self.members.push(Member { change: change as u16, key });
    }

    /// Who waits for the changes, each with its change's index.
    pub fn members(&self) -> impl Iterator<Item = (usize, Key)> {
        self.members.iter().map(|member| (usize::from(member.change), member.key))
    }

    /// Forget those who wait for a change; who they were.
    pub fn dismiss(&mut self, change: usize, mut tell: impl FnMut(Key)) {
        self.members.retain(|member| {
            let waits = usize::from(member.change) == change;
            if waits {
                tell(member.key);
            }
            !waits
        });
    }

    /// Sort the ranges and join those of a block that touch, so that they can be searched.
    pub fn settle_ranges(&mut self, block_shift: u32, sector_shift: u32) {
        let block_shift = block_shift - sector_shift;
        self.ranges.sort_unstable();
        self.ranges.dedup_by(|next, last| {
            let touch = next.start <= last.end && next.start >> block_shift == last.start >> block_shift;
            if touch {
                last.end = last.end.max(next.end);
            }
            touch
        });
    }

    /// The settled ranges that begin in `sectors`.
    pub fn ranges_in(&self, sectors: Sectors) -> &[Sectors] {
        let at = |sector| self.ranges.partition_point(|range| range.start < sector);
        &self.ranges[at(sectors.start)..at(sectors.end)]
    }

    pub fn clear(&mut self) {
        self.changes.clear();
        self.ranges.clear();
        self.pages.clear();
        self.bitmaps.clear();
        self.atomics.clear();
        self.members.clear();
    }
}
