//! What a guest knows of its disk: for each sector, which values it may hold after a loss. And losses at any instant of
//! a recorded history.

use std::collections::BTreeMap;
use std::ops::Range;

use lunaring::blocks::Event;
use lunaring::vhdx::{Access, OpenError, check};

use super::naive::NaiveDisk;
use super::{Change, Host, Random, RecordedFile, SECTOR, SparseFile, open_with, read_disk};

/// A value that a sector was given: lengths of the history when that was issued and when it was acknowledged.
#[derive(Clone, Copy)]
struct Given {
    issued: usize,
    acknowledged: usize,
    value: u64,
    /// It is not only acknowledged then, but survives everything.
    durable: bool,
}

/// A write whose data is on its way.
pub struct Begun {
    held: usize,
    sector: u64,
    values: Range<u64>,
    issued: usize,
}

#[derive(Clone, Default)]
pub struct Guest {
    sectors: BTreeMap<u64, Vec<Given>>,
    /// Ranges that were written atomically.
    atomics: Vec<(Range<u64>, Given)>,
    /// Everything that was done: to these sectors, the first of which was given this value and the others the next
    /// ones, or zeros all of them.
    done: Vec<(Range<u64>, Given)>,
    /// Lengths of the history when a guest's flush started and ended.
    pub flushes: Vec<(usize, usize)>,
    next_value: u64,
    parent: Option<SparseFile>,
}

/// The bytes of a sector that holds a value; 0: zeros.
pub fn sector_bytes(value: u64) -> Vec<u8> {
    if value == 0 { vec![0; SECTOR as usize] } else { value.to_le_bytes().repeat(SECTOR as usize / 8) }
}

/// A parent whose every sector differs from all others; every fourth MiB is zeros.
pub fn parent_of(len: u64) -> SparseFile {
    let mut parent = SparseFile { len, ..SparseFile::default() };
    for sector in 0..len / SECTOR {
        if sector / 2048 % 4 != 3 {
            parent.write(sector * SECTOR, &sector_bytes(1 << 63 | sector));
        }
    }
    parent
}

impl Guest {
    pub fn over(parent: Option<SparseFile>) -> Self {
        Self { parent, ..Self::default() }
    }

    /// What a sector held before everything.
    fn initial(&self, sector: u64) -> u64 {
        let mut bytes = [0; 8];
        if let Some(parent) = self.parent.as_ref().filter(|parent| (sector + 1) * SECTOR <= parent.len) {
            parent.read(sector * SECTOR, &mut bytes);
        }
        u64::from_le_bytes(bytes)
    }

    /// What something that was done made of a sector.
    fn at((range, given): &(Range<u64>, Given), sector: u64) -> Option<Given> {
        let value = || if given.value == 0 { 0 } else { given.value + sector - range.start };
        range.contains(&sector).then(|| Given { value: value(), ..*given })
    }

    /// Watch a sector from now on.
    fn watch(&mut self, sector: u64) {
        let done = &self.done;
        let known = || done.iter().filter_map(|done| Self::at(done, sector)).collect();
        self.sectors.entry(sector).or_insert_with(known);
    }

    fn record(&mut self, range: Range<u64>, given: Given) {
        let done = (range, given);
        for (sector, history) in self.sectors.range_mut(done.0.clone()) {
            history.extend(Self::at(&done, *sector));
        }
        self.done.push(done);
    }

    pub fn begin(&mut self, host: &mut Host, sector: u64, count: u64) -> Begun {
        let first = self.next_value + 1;
        self.next_value += count;
        let values = first..self.next_value + 1;
        let bytes: Vec<u8> = values.clone().flat_map(sector_bytes).collect();
        let issued = host.file.history.len();
        let held = host.begin_write(sector * SECTOR, &bytes).expect("the write can be planned");
        Begun { held, sector, values, issued }
    }

    pub fn end(&mut self, host: &mut Host, begun: Begun) {
        host.end_write(begun.held).expect("the write succeeds");
        let acknowledged = host.file.history.len();
        let count = begun.values.end - begun.values.start;
        let given = Given { issued: begun.issued, acknowledged, value: begun.values.start, durable: false };
        self.record(begun.sector..begun.sector + count, given);
        // Of a long write only some sectors are watched.
        for at in (0..count).filter(|at| *at < 3 || at + 3 >= count || at % 97 == 0) {
            self.watch(begun.sector + at);
        }
        // What lies beside it must not change.
        let last = host.geometry.disk_size_bytes / SECTOR - 1;
        self.watch(begun.sector.saturating_sub(1));
        self.watch((begun.sector + count).min(last));
    }

    pub fn write(&mut self, host: &mut Host, sector: u64, count: u64) {
        let begun = self.begin(host, sector, count);
        self.end(host, begun);
    }

    /// Write these ranges atomically, all at the same time.
    pub fn write_atomics(&mut self, host: &mut Host, ranges: &[Range<u64>]) {
        let issued = host.file.history.len();
        let first = |next: &mut u64, range: &Range<u64>| {
            *next += range.end - range.start;
            *next + 1 - (range.end - range.start)
        };
        let values: Vec<u64> = ranges.iter().map(|range| first(&mut self.next_value, range)).collect();
        let bytes = |range: &Range<u64>, value: u64| (value..value + range.end - range.start).flat_map(sector_bytes);
        let writes: Vec<_> = ranges
            .iter()
            .zip(&values)
            .map(|(range, value)| (range.start * SECTOR, bytes(range, *value).collect()))
            .collect();
        host.write_atomics(&writes).expect("the writes succeed");
        let acknowledged = host.file.history.len();
        for (range, value) in ranges.iter().zip(values) {
            let given = Given { issued, acknowledged, value, durable: true };
            self.record(range.clone(), given);
            range.clone().for_each(|sector| self.watch(sector));
            self.watch(range.start.saturating_sub(1));
            self.watch(range.end);
            self.atomics.push((range.clone(), given));
        }
    }

    /// Whether a write of this range would meet one that is under way.
    pub fn meets(begun: &[Begun], range: &Range<u64>) -> bool {
        begun.iter().any(|other| {
            let end = other.sector + other.values.end - other.values.start;
            other.sector < range.end && range.start < end
        })
    }

    /// Unmap whole blocks.
    pub fn unmap(&mut self, host: &mut Host, block: u64, count: u64) {
        let size = u64::from(host.geometry.block_size_bytes);
        let end = ((block + count) * size).min(host.geometry.disk_size_bytes);
        let issued = host.file.history.len();
        host.unmap(block * size, end - block * size).expect("unmaps");
        let given = Given { issued, acknowledged: host.file.history.len(), value: 0, durable: false };
        let sectors = block * size / SECTOR..end / SECTOR;
        self.watch(sectors.start + 5);
        self.record(sectors, given);
    }

    pub fn flush(&mut self, host: &mut Host) {
        let started = host.file.history.len();
        host.flush();
        self.flushes.push((started, host.file.history.len()));
    }

    /// A clean close makes everything durable.
    pub fn close(&mut self, host: Host) -> RecordedFile {
        let started = host.file.history.len();
        let (file, closed) = host.close();
        assert_eq!(closed, Event::Closed(Ok(())));
        self.flushes.push((started, file.history.len()));
        file
    }

    /// The values that a sector may hold after a loss at `cut`: every one that was issued and that is not surely behind
    /// another one.
    fn allowed(&self, sector: u64, history: &[Given], cut: usize, killed: bool) -> Vec<u64> {
        let safe = if killed {
            cut
        } else {
            self.flushes.iter().filter(|(_, end)| *end <= cut).map(|(start, _)| *start).max().unwrap_or(0)
        };
        let is_safe = |given: &Given| given.acknowledged <= if given.durable { cut } else { safe };
        // Two that overlapped in time may have happened in either order; a history is in the order of their ends.
        let hidden = |at: usize| {
            let behind = |later: &Given| later.issued >= history[at].acknowledged && is_safe(later);
            history[at + 1..].iter().any(behind)
        };
        let given = history.iter().enumerate().filter(|(at, given)| given.issued <= cut && !hidden(*at));
        let initial = Some(self.initial(sector)).filter(|_| !history.iter().any(is_safe));
        initial.into_iter().chain(given.map(|(_, given)| given.value)).collect()
    }

    /// Open what a loss left behind and compare. `Err` tells what was violated.
    pub fn check(&self, mut file: SparseFile, cut: usize, killed: bool) -> Result<(), String> {
        let mut before = file.clone();
        let parent = self.parent.as_ref();
        let readable = match open_with(&mut before, Access::ReadOnly, 5) {
            Ok(disk) => Some(disk),
            // A replay that stays in memory shows tables only; here the log holds data.
            Err(OpenError::ReadOnlyReplay { .. }) if !self.atomics.is_empty() => None,
            Err(error) => return Err(format!("read-only open: {error}")),
        };
        let naive = NaiveDisk::open(&file).map_err(|what| format!("the naive reader: {what}"))?;
        let disk = open_with(&mut file, Access::ReadWrite, 6).map_err(|error| format!("open: {error}"))?;
        let again = open_with(&mut file, Access::ReadOnly, 7).map_err(|error| format!("second open: {error}"))?;
        if again.replay.is_some() {
            return Err("a replayed log is still pending".into());
        }
        let report = check(&mut file).map_err(|error| format!("check: {error}"))?;
        if !report.is_sound() {
            return Err(format!("not sound: {:?}", report.findings));
        }
        for (sector, history) in &self.sectors {
            let mut values = [[0; SECTOR as usize]; 3];
            read_disk(&mut file, parent, &disk.map, sector * SECTOR, &mut values[0]);
            naive.read(parent, *sector, &mut values[2]);
            match &readable {
                Some(disk) => read_disk(&mut before, parent, &disk.map, sector * SECTOR, &mut values[1]),
                None => values[1] = values[2],
            }
            if values[0] != values[2] || values[1] != values[2] {
                return Err(format!("sector {sector}: readers disagree: {:02x?}", values.map(|value| value[0])));
            }
            let allowed = self.allowed(*sector, history, cut, killed);
            if !allowed.iter().any(|value| sector_bytes(*value) == values[0]) {
                let told: Vec<_> = history.iter().map(|g| (g.issued, g.acknowledged, g.value)).collect();
                return Err(format!(
                    "sector {sector} holds {:02x?}, allowed {allowed:x?} of {told:x?}",
                    &values[0][..8]
                ));
            }
        }
        for atomic in self.atomics.iter().filter(|(_, given)| given.issued <= cut) {
            self.check_atomic(atomic, cut, |sector| naive_value(&naive, parent, sector))?;
        }
        Ok(())
    }

    /// All of an atomic write is there or nothing of it; what was written over it later says nothing.
    fn check_atomic(
        &self,
        (range, given): &(Range<u64>, Given),
        cut: usize,
        read: impl Fn(u64) -> Vec<u8>,
    ) -> Result<(), String> {
        let (mut new, mut old) = (Vec::new(), Vec::new());
        for sector in range.clone() {
            let bytes = read(sector);
            let later = |later: &Given| later.issued >= given.acknowledged && later.issued <= cut;
            let mut over = self.sectors[&sector].iter().filter(|given| later(given));
            if bytes == sector_bytes(given.value + sector - range.start) {
                new.push(sector);
            } else if !over.any(|given| bytes == sector_bytes(given.value)) {
                old.push(sector);
            }
        }
        match (new.first(), old.first()) {
            (Some(new), Some(old)) => Err(format!("an atomic write of {range:?} is torn: {new} is new, {old} is old")),
            _ => Ok(()),
        }
    }
}

fn naive_value(naive: &NaiveDisk, parent: Option<&SparseFile>, sector: u64) -> Vec<u8> {
    let mut bytes = [0; SECTOR as usize];
    naive.read(parent, sector, &mut bytes);
    bytes.to_vec()
}

/// A history: a disk's life from an empty file on.
pub struct History {
    pub file: RecordedFile,
    pub guest: Guest,
}

/// The changes that a loss at some instant may undo, and what is there for certain.
pub struct Instants<'a> {
    history: &'a History,
    durable: SparseFile,
    from: usize,
    cut: usize,
}

impl<'a> Instants<'a> {
    pub fn of(history: &'a History) -> Self {
        Self { history, durable: history.file.start.clone(), from: 0, cut: 0 }
    }

    /// Go to the instant behind this many changes; not back.
    pub fn go_to(&mut self, cut: usize) {
        let changes = &self.history.file.history;
        for (at, change) in changes.iter().enumerate().take(cut).skip(self.cut) {
            if matches!(change, Change::Flush) {
                self.durable = self.history.file.cut(&self.durable, self.from, at + 1, None);
                self.from = at + 1;
            }
        }
        self.cut = cut;
    }

    /// Lose power here, as chance has it.
    pub fn lose_power(&self, seed: u64) -> Result<(), String> {
        let mut random = Random((self.cut as u64) << 8 | seed);
        let left = self.history.file.cut(&self.durable, self.from, self.cut, Some(&mut random));
        let told = |what| format!("power cut at {}/{seed}: {what}", self.cut);
        self.history.guest.check(left, self.cut, false).map_err(told)
    }

    /// Lose power here with exactly these units of the unflushed changes done: bit n for unit n.
    pub fn lose_all_but(&self, kept: u64) -> Result<(), String> {
        let left = self.history.file.cut_units(&self.durable, self.from, self.cut, kept);
        let told = |what| format!("power cut at {} keeping {kept:#b}: {what}", self.cut);
        self.history.guest.check(left, self.cut, false).map_err(told)
    }

    /// Units of the unflushed changes.
    pub fn units(&self) -> usize {
        self.history.file.units(self.from, self.cut)
    }

    /// The process dies here; what it has issued stays.
    pub fn kill(&self) -> Result<(), String> {
        let left = self.history.file.cut(&self.durable, self.from, self.cut, None);
        self.history.guest.check(left, self.cut, true).map_err(|what| format!("kill at {}: {what}", self.cut))
    }
}

/// Cut at every `stride`-th instant, several times each; the first violation, or how many cuts there were.
pub fn cut_everywhere(history: &History, stride: usize, rounds: u64) -> Result<usize, String> {
    let (mut instants, mut cuts) = (Instants::of(history), 0);
    for cut in (0..=history.file.history.len()).step_by(stride) {
        instants.go_to(cut);
        for round in 0..rounds {
            instants.lose_power(round)?;
            cuts += 1;
        }
        instants.kill()?;
    }
    Ok(cuts)
}
