//! A file in memory that knows what a power cut would leave of it.
//!
//! Every file has a *durable* image and an ordered log of the changes made since. What a reader sees is the durable
//! image with all changes; a sync moves changes into the durable image; a power cut keeps, of the rest, any subset in
//! any order, sector by sector. So an unflushed write can be lost, kept, torn, or overtaken by a later one, and a
//! flushed one cannot.
//!
//! **May know:** seeded randomness.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use super::random::Random;

/// What a disk writes whole or not at all.
pub const SECTOR_BYTES: u64 = 512;

const PAGE_BYTES: u64 = 4096;

/// Sparse contents: what is not there reads as zeros.
#[derive(Clone, Debug, Default)]
struct Image {
    pages: BTreeMap<u64, Box<[u8; PAGE_BYTES as usize]>>,
    len: u64,
}

impl Image {
    fn read(&self, offset: u64, into: &mut [u8]) {
        for (page, within, part) in pages_of(offset, into.len() as u64) {
            let into = &mut into[part];
            match self.pages.get(&page) {
                Some(bytes) => into.copy_from_slice(&bytes[within..within + into.len()]),
                None => into.fill(0),
            }
        }
    }

    fn write(&mut self, offset: u64, from: &[u8]) {
        for (page, within, part) in pages_of(offset, from.len() as u64) {
            let from = &from[part];
            let bytes = self.pages.entry(page).or_insert_with(|| Box::new([0; PAGE_BYTES as usize]));
            bytes[within..within + from.len()].copy_from_slice(from);
        }
    }

    fn zero(&mut self, range: Range<u64>) {
        let first = range.start / PAGE_BYTES;
        let touched: Vec<u64> =
            self.pages.range(first..range.end.div_ceil(PAGE_BYTES)).map(|(&page, _)| page).collect();
        for page in touched {
            let start = (page * PAGE_BYTES).max(range.start);
            let end = ((page + 1) * PAGE_BYTES).min(range.end);
            if end - start == PAGE_BYTES {
                self.pages.remove(&page);
            } else if let Some(bytes) = self.pages.get_mut(&page) {
                let within = (start - page * PAGE_BYTES) as usize..(end - page * PAGE_BYTES) as usize;
                bytes[within].fill(0);
            }
        }
    }

    fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.zero(len..self.len);
        }
        self.len = len;
    }

    fn apply(&mut self, action: &Action) {
        match action {
            Action::Write { offset, bytes } => self.write(*offset, bytes),
            Action::Zero { range } => self.zero(range.clone()),
            Action::SetLen { len } => self.set_len(*len),
        }
    }
}

/// The parts of a byte range by page: page number, place in the page, place in the range.
fn pages_of(offset: u64, len: u64) -> impl Iterator<Item = (u64, usize, Range<usize>)> {
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let page = at / PAGE_BYTES;
        let stop = ((page + 1) * PAGE_BYTES).min(end);
        let part = (at - offset) as usize..(stop - offset) as usize;
        let within = (at - page * PAGE_BYTES) as usize;
        at = stop;
        Some((page, within, part))
    })
}

#[derive(Clone, Debug)]
enum Action {
    Write { offset: u64, bytes: Box<[u8]> },
    Zero { range: Range<u64> },
    SetLen { len: u64 },
}

#[derive(Clone, Debug)]
struct Change {
    order: u64,
    action: Action,
}

/// Which of the unflushed changes a power cut keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survival {
    /// All of them.
    All,
    /// None.
    Nothing,
    /// Those up to some moment, in order.
    Prefix,
    /// Any subset of whole changes.
    AnyChanges,
    /// For each sector any of the states it had since the last sync: torn and reordered.
    AnySectors,
}

impl Survival {
    /// A way to survive, drawn by chance.
    pub fn draw(random: &mut Random) -> Survival {
        match random.below(8) {
            0 => Survival::All,
            1 => Survival::Nothing,
            2 => Survival::Prefix,
            3 | 4 => Survival::AnyChanges,
            _ => Survival::AnySectors,
        }
    }
}

/// One file.
#[derive(Clone, Debug, Default)]
pub struct FileState {
    visible: Image,
    durable: Image,
    unflushed: VecDeque<Change>,
    reserved: Vec<Range<u64>>,
    order_next: u64,
}

impl FileState {
    /// A file of `len` zero bytes, durable.
    pub fn new(len_bytes: u64) -> FileState {
        let image = Image { pages: BTreeMap::new(), len: len_bytes };
        FileState { visible: image.clone(), durable: image, ..FileState::default() }
    }

    /// The size in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.visible.len
    }

    /// The number of the next change: a sync that is submitted now covers every change below it.
    pub fn order_next(&self) -> u64 {
        self.order_next
    }

    /// How many changes a power cut could still undo.
    pub fn unflushed_count(&self) -> usize {
        self.unflushed.len()
    }

    /// Read what is visible; returns how many bytes there were before the end of the file.
    pub fn read(&self, offset_bytes: u64, into: &mut [u8]) -> usize {
        let there = self.visible.len.saturating_sub(offset_bytes).min(into.len() as u64) as usize;
        self.visible.read(offset_bytes, &mut into[..there]);
        there
    }

    /// Write, growing the file where needed.
    pub fn write(&mut self, offset_bytes: u64, from: &[u8]) {
        let end = offset_bytes + from.len() as u64;
        if end > self.visible.len {
            self.change(Action::SetLen { len: end });
        }
        self.change(Action::Write { offset: offset_bytes, bytes: from.into() });
    }

    /// Write through: durable at once, with the size that is needed to read it back. Changes elsewhere stay unflushed.
    pub fn write_durable(&mut self, offset_bytes: u64, from: &[u8]) {
        let end = offset_bytes + from.len() as u64;
        // What was pending below these bytes can no longer surface above them.
        let covered = offset_bytes..end;
        let pending = std::mem::take(&mut self.unflushed);
        self.unflushed.extend(pending.into_iter().flat_map(|Change { order, action }| {
            without(action, &covered).into_iter().flatten().map(move |action| Change { order, action })
        }));
        self.visible.write(offset_bytes, from);
        self.visible.len = self.visible.len.max(end);
        if end > self.durable.len {
            self.settle_len();
        }
        self.durable.write(offset_bytes, from);
        self.order_next += 1;
    }

    /// Make the range read as zeros; the size stays.
    pub fn zero(&mut self, offset_bytes: u64, len_bytes: u64, punch: bool) {
        let range = offset_bytes..offset_bytes.saturating_add(len_bytes).min(self.visible.len);
        if range.start >= range.end {
            return;
        }
        if punch {
            self.reserved.retain(|r| r.end <= range.start || r.start >= range.end);
        } else {
            self.reserved.push(range.clone());
        }
        self.change(Action::Zero { range });
    }

    /// Reserve space for the range, growing the file to cover it.
    pub fn extend(&mut self, offset_bytes: u64, len_bytes: u64) {
        let end = offset_bytes + len_bytes;
        self.reserved.push(offset_bytes..end);
        if end > self.visible.len {
            self.change(Action::SetLen { len: end });
        }
    }

    /// Set the size; what is cut off is gone.
    pub fn set_len(&mut self, len_bytes: u64) {
        if len_bytes != self.visible.len {
            self.reserved.retain(|r| r.end <= len_bytes);
            self.change(Action::SetLen { len: len_bytes });
        }
    }

    /// Whether writing these bytes needs space that the file does not have yet.
    pub fn needs_space(&self, offset_bytes: u64, len_bytes: u64) -> bool {
        let end = offset_bytes.saturating_add(len_bytes);
        if end > self.visible.len {
            return true;
        }
        let pages = offset_bytes / PAGE_BYTES..end.div_ceil(PAGE_BYTES);
        pages.into_iter().any(|page| {
            let at = page * PAGE_BYTES;
            !self.visible.pages.contains_key(&page) && !self.reserved.iter().any(|r| r.contains(&at))
        })
    }

    /// Make durable every change whose number is below `order`; later ones stay as they are.
    pub fn sync(&mut self, order: u64) {
        while self.unflushed.front().is_some_and(|change| change.order < order) {
            if let Some(change) = self.unflushed.pop_front() {
                self.durable.apply(&change.action);
            }
        }
    }

    /// A sync that fails, as on Linux: of the covered changes some reach the disk, and the others are forgotten. They
    /// stay visible, but no later sync makes them durable.
    pub fn sync_failed(&mut self, order: u64, random: &mut Random) {
        while self.unflushed.front().is_some_and(|change| change.order < order) {
            if let Some(change) = self.unflushed.pop_front()
                && random.below(2) == 0
            {
                self.durable.apply(&change.action);
            }
        }
    }

    /// The power goes: keep what is durable and, as `survival` says, of the rest what chance keeps.
    pub fn power_cut(&mut self, survival: Survival, random: &mut Random) {
        let changes: Vec<Change> = self.unflushed.drain(..).collect();
        match survival {
            Survival::All => changes.iter().for_each(|c| self.durable.apply(&c.action)),
            Survival::Nothing => {}
            Survival::Prefix => {
                let kept = random.index(changes.len() + 1);
                changes[..kept].iter().for_each(|c| self.durable.apply(&c.action));
            }
            Survival::AnyChanges => {
                for change in &changes {
                    if random.below(2) == 0 {
                        self.durable.apply(&change.action);
                    }
                }
            }
            Survival::AnySectors => self.keep_any_sectors(&changes, random),
        }
        // Whatever landed beyond the size that survived is not part of the file.
        let len = self.durable.len;
        self.durable.zero(len..u64::MAX);
        self.visible = self.durable.clone();
        self.reserved.clear();
    }

    fn keep_any_sectors(&mut self, changes: &[Change], random: &mut Random) {
        let mut touching: BTreeMap<u64, Vec<&Action>> = BTreeMap::new();
        for change in changes {
            for sector in self.sectors_of(&change.action, changes) {
                touching.entry(sector).or_default().push(&change.action);
            }
        }
        let mut kept: Vec<(u64, Box<[u8; SECTOR_BYTES as usize]>)> = Vec::new();
        for (sector, actions) in touching {
            let mut bytes = Box::new([0; SECTOR_BYTES as usize]);
            self.durable.read(sector * SECTOR_BYTES, &mut bytes[..]);
            for action in &actions[..random.index(actions.len() + 1)] {
                overlay(action, sector, &mut bytes[..]);
            }
            kept.push((sector, bytes));
        }
        let lens: Vec<u64> = changes.iter().filter_map(|c| c.action.len()).collect();
        if let Some(&len) = lens.get(random.index(lens.len() + 1)) {
            self.durable.len = len;
        }
        for (sector, bytes) in kept {
            self.durable.write(sector * SECTOR_BYTES, &bytes[..]);
        }
    }

    /// The sectors an action changes. A zeroed range matters only where something is or was about to be.
    fn sectors_of(&self, action: &Action, changes: &[Change]) -> Vec<u64> {
        let range = match action {
            Action::Write { offset, bytes } => return sectors(&(*offset..*offset + bytes.len() as u64)).collect(),
            Action::Zero { range } => range.clone(),
            Action::SetLen { len } => *len..u64::MAX,
        };
        let pages = range.start / PAGE_BYTES..range.end.div_ceil(PAGE_BYTES);
        let mut found: Vec<u64> = Vec::new();
        for &page in self.durable.pages.range(pages).map(|(page, _)| page) {
            found.extend(sectors(&(page * PAGE_BYTES..(page + 1) * PAGE_BYTES)));
        }
        for change in changes {
            if let Action::Write { offset, bytes } = &change.action {
                found.extend(sectors(&(*offset..*offset + bytes.len() as u64)));
            }
        }
        found.retain(|sector| sector * SECTOR_BYTES < range.end && (sector + 1) * SECTOR_BYTES > range.start);
        found.sort_unstable();
        found.dedup();
        found
    }

    fn change(&mut self, action: Action) {
        self.visible.apply(&action);
        self.unflushed.push_back(Change { order: self.order_next, action });
        self.order_next += 1;
    }

    /// Make the size durable as it is now, and with it every pending change of the size: an inode is written whole.
    fn settle_len(&mut self) {
        let pending: Vec<u64> = self.unflushed.iter().filter_map(|c| c.action.len()).collect();
        pending.into_iter().for_each(|len| self.durable.set_len(len));
        self.unflushed.retain(|c| c.action.len().is_none());
        self.durable.len = self.visible.len;
    }
}

impl Action {
    fn len(&self) -> Option<u64> {
        match self {
            Action::SetLen { len } => Some(*len),
            Action::Write { .. } | Action::Zero { .. } => None,
        }
    }
}

fn sectors(range: &Range<u64>) -> impl Iterator<Item = u64> + use<> {
    range.start / SECTOR_BYTES..range.end.div_ceil(SECTOR_BYTES)
}

/// What `action` makes of one sector.
fn overlay(action: &Action, sector: u64, bytes: &mut [u8]) {
    let start = sector * SECTOR_BYTES;
    let clip = |range: &Range<u64>| {
        let from = range.start.clamp(start, start + SECTOR_BYTES);
        let to = range.end.clamp(start, start + SECTOR_BYTES);
        (from, to)
    };
    match action {
        Action::Write { offset, bytes: new } => {
            let (from, to) = clip(&(*offset..*offset + new.len() as u64));
            if from < to {
                let source = (from - offset) as usize..(to - offset) as usize;
                bytes[(from - start) as usize..(to - start) as usize].copy_from_slice(&new[source]);
            }
        }
        Action::Zero { range } => {
            let (from, to) = clip(range);
            bytes[(from - start) as usize..(to.max(from) - start) as usize].fill(0);
        }
        Action::SetLen { len } => {
            let (from, to) = clip(&(*len..u64::MAX));
            bytes[(from - start) as usize..(to.max(from) - start) as usize].fill(0);
        }
    }
}

/// What is left of a pending action once the bytes of `covered` are durable in a newer state: it cannot undo that.
fn without(action: Action, covered: &Range<u64>) -> [Option<Action>; 2] {
    let range = match &action {
        Action::Write { offset, bytes } => *offset..*offset + bytes.len() as u64,
        Action::Zero { range } => range.clone(),
        Action::SetLen { .. } => return [Some(action), None],
    };
    if range.end <= covered.start || covered.end <= range.start {
        return [Some(action), None];
    }
    let head = range.start..covered.start.max(range.start);
    let tail = covered.end.min(range.end)..range.end;
    [head, tail].map(|part| {
        (!part.is_empty()).then(|| match &action {
            Action::Write { offset, bytes } => {
                let within = (part.start - offset) as usize..(part.end - offset) as usize;
                Action::Write { offset: part.start, bytes: bytes[within].into() }
            }
            Action::Zero { .. } | Action::SetLen { .. } => Action::Zero { range: part },
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECTOR: usize = SECTOR_BYTES as usize;

    fn contents(file: &FileState) -> Vec<u8> {
        let mut bytes = vec![0xee; file.len_bytes() as usize];
        assert_eq!(file.read(0, &mut bytes), bytes.len());
        bytes
    }

    #[test]
    fn a_power_cut_loses_only_unflushed_sectors_and_tears_at_sectors() {
        let mut kept_whole = 0;
        let mut torn = 0;
        for seed in 0..200 {
            let mut random = Random::new(seed);
            let mut file = FileState::new(16 * SECTOR_BYTES);
            file.write(0, &[1; 8 * SECTOR]);
            file.sync(file.order_next());
            file.write(4 * SECTOR_BYTES, &[2; 8 * SECTOR]);
            let survival = Survival::draw(&mut random);
            file.power_cut(survival, &mut random);
            let after = contents(&file);
            assert_eq!(after[..4 * SECTOR], [1; 4 * SECTOR], "seed {seed}: flushed and not overwritten");
            assert_eq!(after[12 * SECTOR..], [0; 4 * SECTOR], "seed {seed}: never written");
            let sectors: Vec<&[u8]> = after[4 * SECTOR..12 * SECTOR].chunks(SECTOR).collect();
            assert!(sectors.iter().all(|s| s.iter().all(|b| b == &s[0])), "seed {seed}: a sector is whole");
            let new = sectors.iter().filter(|s| s[0] == 2).count();
            kept_whole += usize::from(new == 8);
            torn += usize::from(new != 8 && new != 0);
            assert_eq!(file.unflushed_count(), 0);
        }
        assert!(kept_whole > 20, "{kept_whole}");
        assert!(torn > 50, "{torn}");
    }

    #[test]
    fn writes_are_overtaken_by_later_ones() {
        let overtaken = (0..100).filter(|&seed| {
            let mut random = Random::new(seed);
            let mut file = FileState::new(2 * SECTOR_BYTES);
            file.write(0, &[1; SECTOR]);
            file.write(SECTOR_BYTES, &[2; SECTOR]);
            file.power_cut(Survival::AnySectors, &mut random);
            let after = contents(&file);
            after[0] == 0 && after[SECTOR] == 2
        });
        assert!(overtaken.count() > 10);
    }

    #[test]
    fn a_sync_covers_what_was_complete_when_it_was_submitted() {
        let mut random = Random::new(1);
        let mut file = FileState::new(2 * SECTOR_BYTES);
        file.write(0, &[1; SECTOR]);
        let submitted = file.order_next();
        file.write(SECTOR_BYTES, &[2; SECTOR]);
        file.sync(submitted);
        file.power_cut(Survival::Nothing, &mut random);
        let after = contents(&file);
        assert_eq!((after[0], after[SECTOR]), (1, 0));
    }

    #[test]
    fn a_durable_write_survives_with_its_size_and_cannot_be_undone_by_older_ones() {
        for seed in 0..100 {
            let mut random = Random::new(seed);
            let mut file = FileState::new(0);
            file.write(0, &[1; 4 * SECTOR]);
            file.write_durable(SECTOR_BYTES, &[2; SECTOR]);
            file.power_cut(Survival::draw(&mut random), &mut random);
            assert!(file.len_bytes() >= 2 * SECTOR_BYTES, "seed {seed}");
            assert_eq!(contents(&file)[SECTOR..2 * SECTOR], [2; SECTOR], "seed {seed}");
        }
        // The parts around the durable bytes are still only pending, and a sync keeps them.
        let mut file = FileState::new(0);
        file.write(0, &[1; 4 * SECTOR]);
        file.write_durable(SECTOR_BYTES, &[2; SECTOR]);
        file.sync(file.order_next());
        file.power_cut(Survival::Nothing, &mut Random::new(0));
        let after = contents(&file);
        assert_eq!(after.chunks(SECTOR).map(|s| s[0]).collect::<Vec<_>>(), [1, 2, 1, 1]);
    }

    #[test]
    fn sizes_holes_and_truncation_read_as_zeros() {
        let mut file = FileState::new(0);
        file.write(10_000, b"end");
        assert_eq!(file.len_bytes(), 10_003);
        file.zero(10_001, 1, true);
        assert_eq!(contents(&file)[9_999..], [0, b'e', 0, b'd']);
        file.set_len(10_001);
        file.set_len(20_000);
        assert_eq!(contents(&file)[10_000..10_003], [b'e', 0, 0]);
        assert!(file.needs_space(16_384, 1) && !file.needs_space(8192, 4096));
        file.extend(16_384, 8192);
        assert_eq!(file.len_bytes(), 24_576);
        assert!(!file.needs_space(16_384, 8192));
        for seed in 0..50 {
            let mut random = Random::new(seed);
            let mut cut = file.clone();
            cut.power_cut(Survival::AnySectors, &mut random);
            let len = cut.len_bytes();
            cut.set_len(len + 4096);
            assert!(contents(&cut)[len as usize..].iter().all(|&b| b == 0), "nothing hides beyond the end");
        }
    }

    #[test]
    fn after_a_failed_sync_the_next_one_does_not_bring_the_data_back() {
        let lost = (0..50).filter(|&seed| {
            let mut random = Random::new(seed);
            let mut file = FileState::new(SECTOR_BYTES);
            file.write(0, &[1; SECTOR]);
            file.sync_failed(file.order_next(), &mut random);
            assert_eq!(contents(&file), [1; SECTOR], "readers still see it");
            file.sync(file.order_next());
            file.power_cut(Survival::All, &mut random);
            contents(&file)[0] == 0
        });
        assert!(lost.count() > 10);
    }
}
