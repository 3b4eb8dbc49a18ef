//! Power cuts and process kills at every instant of seeded histories of a VHD disk, dynamic and differencing: after
//! reopening, what was flushed is there, everything else is old or new sector by sector, nothing acknowledged is lost by
//! a kill, and the file is sound.

mod vhd_support;
mod vhdx_support;

use std::collections::BTreeMap;

use lunaring::blocks::Event;
use lunaring::vhd::{Access, NewKind, Severity, VhdParent, check, repair, resize, set_parent};
use uuid::Uuid;
use vhd_support::{Host, chain_of, new_disk, open_with, options, parent_named, read_chain};
use vhdx_support::{Change, MIB, Random, RecordedFile, SECTOR, SparseFile};

const BLOCK: u64 = 512 << 10;
const BLOCK_SECTORS: u64 = BLOCK / SECTOR;

/// Values at and above this are the parent's: the sector's number is added.
const PARENT: u64 = 1 << 40;

/// What the guest knows of one sector: the values it has written, with the length of the history when each was issued
/// and when it was acknowledged.
#[derive(Default, Clone)]
struct SectorHistory(Vec<(usize, usize, u64)>);

#[derive(Default)]
struct Guest {
    sectors: BTreeMap<u64, SectorHistory>,
    /// Blocks that were released: values of zero for all their sectors.
    released: Vec<(u64, usize, usize)>,
    /// Lengths of the history when a guest's flush started and ended.
    flushes: Vec<(usize, usize)>,
    next_value: u64,
    has_parent: bool,
}

fn sector_bytes(value: u64) -> Vec<u8> {
    if value == 0 { vec![0; SECTOR as usize] } else { value.to_le_bytes().repeat(SECTOR as usize / 8) }
}

/// A parent whose every sector differs.
fn parent_of(size_bytes: u64) -> SparseFile {
    let mut parent = SparseFile { len: size_bytes, ..SparseFile::default() };
    for sector in 0..size_bytes / SECTOR {
        parent.write(sector * SECTOR, &sector_bytes(PARENT + sector));
    }
    parent
}

impl Guest {
    fn sector(&mut self, sector: u64) -> &mut SectorHistory {
        let block = sector / BLOCK_SECTORS;
        let released = self.released.iter().filter(|(at, ..)| *at == block);
        self.sectors.entry(sector).or_insert_with(|| SectorHistory(released.map(|(_, i, a)| (*i, *a, 0)).collect()))
    }

    fn write(&mut self, host: &mut Host, sector: u64, count: u64) {
        let mut bytes = Vec::new();
        let first = self.next_value + 1;
        self.next_value += count;
        for value in first..=self.next_value {
            bytes.extend(sector_bytes(value));
        }
        let issued = host.file.history.len();
        host.write(sector * SECTOR, &bytes).expect("the write succeeds");
        let acknowledged = host.file.history.len();
        for (at, value) in (sector..).zip(first..=self.next_value) {
            self.sector(at).0.push((issued, acknowledged, value));
        }
        // Neighbours that must stay what they were.
        let block = sector / BLOCK_SECTORS;
        for at in [block * BLOCK_SECTORS, sector + count, (block + 1) * BLOCK_SECTORS - 2] {
            self.sector(at);
        }
    }

    fn unmap(&mut self, host: &mut Host, block: u64, count: u64) {
        let issued = host.file.history.len();
        host.unmap(block * BLOCK, count * BLOCK).expect("the unmap succeeds");
        let acknowledged = host.file.history.len();
        for block in block..block + count {
            self.sector(block * BLOCK_SECTORS);
            self.released.push((block, issued, acknowledged));
            let sectors = self.sectors.range_mut(block * BLOCK_SECTORS..(block + 1) * BLOCK_SECTORS);
            sectors.for_each(|(_, history)| history.0.push((issued, acknowledged, 0)));
        }
    }

    fn flush(&mut self, host: &mut Host) {
        let started = host.file.history.len();
        host.flush();
        self.flushes.push((started, host.file.history.len()));
    }

    /// A clean close makes everything durable.
    fn close(&mut self, host: Host) -> RecordedFile {
        let started = host.file.history.len();
        let (file, closed) = host.close();
        assert_eq!(closed, Event::Closed(Ok(())));
        self.flushes.push((started, file.history.len()));
        file
    }

    /// The values that a sector may hold after a loss at `cut`.
    fn allowed(&self, sector: u64, history: &SectorHistory, cut: usize, killed: bool) -> Vec<u64> {
        let safe = if killed {
            cut
        } else {
            self.flushes.iter().filter(|(_, end)| *end <= cut).map(|(start, _)| *start).max().unwrap_or(0)
        };
        let base = history.0.iter().rposition(|(_, acknowledged, _)| *acknowledged <= safe);
        let initial = if self.has_parent { PARENT + sector } else { 0 };
        let older = base.map_or(initial, |at| history.0[at].2);
        let later = history.0[base.map_or(0, |at| at + 1)..].iter();
        let later = later.filter(|(issued, ..)| *issued < cut).map(|(.., value)| *value);
        std::iter::once(older).chain(later).collect()
    }

    fn compare(
        &self,
        file: &mut SparseFile,
        parent: Option<&SparseFile>,
        cut: usize,
        killed: bool,
    ) -> Result<(), String> {
        let disk = open_with(file, Access::ReadOnly).map_err(|error| format!("open: {error}"))?;
        let chain = chain_of(&disk, parent);
        for (sector, history) in &self.sectors {
            let mut bytes = [0; SECTOR as usize];
            read_chain(&chain, file, parent, sector * SECTOR, &mut bytes);
            let allowed = self.allowed(*sector, history, cut, killed);
            if !allowed.iter().any(|value| sector_bytes(*value) == bytes) {
                return Err(format!("sector {sector} holds {:02x?}, allowed {allowed:x?}", &bytes[..8]));
            }
        }
        Ok(())
    }

    /// Open what a loss left behind and compare, before and after a session mends it. `Err` tells what was violated.
    fn check(&self, left: SparseFile, parent: Option<&SparseFile>, cut: usize, killed: bool) -> Result<(), String> {
        let mut file = left;
        let report = check(&mut file).expect("a file in memory can be read");
        if !report.is_sound() {
            return Err(format!("{:?}", report.findings));
        }
        self.compare(&mut file, parent, cut, killed)?;
        let mut host =
            Host::try_open(RecordedFile::new(file), parent.cloned(), cut as u64).map_err(|e| e.to_string())?;
        // A block that the guest never wrote, and part of one that it may have.
        let last = self.sectors.keys().next_back().map_or(0, |sector| sector / BLOCK_SECTORS);
        host.write((last + 2) * BLOCK, &[0x77; 4096]).map_err(|event| format!("write: {event:?}"))?;
        let (mut neighbour, mut expected) = ([0; 4096], [0; 4096]);
        host.read((last + 2) * BLOCK + 4096, &mut neighbour);
        if let Some(parent) = parent {
            parent.read((last + 2) * BLOCK + 4096, &mut expected);
        }
        if neighbour != expected {
            return Err("a new block shows what is not its own".into());
        }
        let (mut file, closed) = host.close();
        assert_eq!(closed, Event::Closed(Ok(())));
        let report = check(&mut file.now).expect("a file in memory can be read");
        if report.worst >= Some(Severity::Mendable) || !report.is_sound() {
            return Err(format!("after a session: {:?}", report.findings));
        }
        self.compare(&mut file.now, parent, cut, killed)
    }
}

/// A history: a disk's life from an empty file on.
struct History {
    file: RecordedFile,
    guest: Guest,
    parent: Option<SparseFile>,
}

#[derive(Clone, Copy)]
struct Script {
    seed: u64,
    blocks: u64,
    steps: u64,
    has_parent: bool,
    flush_ignored: Option<usize>,
    /// Sessions that are left without closing.
    abandoned: bool,
}

fn start_of(script: Script) -> (SparseFile, Option<SparseFile>) {
    let size = script.blocks * BLOCK;
    let kind = if script.has_parent { NewKind::Differencing(parent_named(Uuid::max())) } else { NewKind::Dynamic };
    (new_disk(&options(size, kind, BLOCK)), script.has_parent.then(|| parent_of(size)))
}

fn live(script: Script) -> History {
    let mut random = Random(script.seed);
    let (mut start, parent) = start_of(script);
    // An interrupted session has left bytes behind the last object, as a power cut does.
    let end = start.len;
    start.write(end, &[0xee; 4 << 20]);
    let mut file = RecordedFile::new(start);
    file.flush_ignored = script.flush_ignored;
    let mut host = Host::open(file, parent.clone(), script.seed);
    host.faults.punch_unsupported = random.below(2) == 0;
    host.faults.zero_range_unsupported = random.below(2) == 0;
    let mut guest = Guest { has_parent: script.has_parent, ..Guest::default() };
    // The last blocks are for the check.
    let blocks = script.blocks - 4;
    for _ in 0..script.steps {
        match random.below(12) {
            0 => guest.unmap(&mut host, random.below(blocks - 2), 1 + random.below(2)),
            1 | 2 => guest.flush(&mut host),
            _ => {
                let count = 1 + random.below(4);
                guest.write(&mut host, random.below(blocks * BLOCK_SECTORS - 8), count);
            }
        }
        if random.below(25) == 0 {
            let (faults, seed) = (host.faults, random.next());
            let file = if script.abandoned { host.file } else { guest.close(host) };
            host = Host::open(file, parent.clone(), seed);
            host.faults = faults;
        }
    }
    let file = if script.abandoned { host.file } else { guest.close(host) };
    History { file, guest, parent }
}

impl History {
    fn check_cut(
        &self,
        durable: &SparseFile,
        from: usize,
        cut: usize,
        random: Option<&mut Random>,
    ) -> Result<(), String> {
        let killed = random.is_none();
        let left = self.file.cut(durable, from, cut, random);
        self.guest.check(left, self.parent.as_ref(), cut, killed)
    }
}

/// Cut at every `stride`-th instant, several times each; the first violation.
fn cut_everywhere(history: &History, stride: usize, rounds: u64) -> Result<usize, String> {
    let (mut durable, mut from, mut cuts) = (history.file.start.clone(), 0, 0);
    for cut in 0..=history.file.history.len() {
        if cut > 0 && matches!(history.file.history[cut - 1], Change::Flush) {
            durable = history.file.cut(&durable, from, cut, None);
            from = cut;
        }
        if cut % stride != 0 {
            continue;
        }
        for round in 0..rounds {
            let mut random = Random((cut as u64) << 8 | round);
            history
                .check_cut(&durable, from, cut, Some(&mut random))
                .map_err(|what| format!("power cut at {cut}/{round}: {what}"))?;
            cuts += 1;
        }
        history.check_cut(&durable, from, cut, None).map_err(|what| format!("kill at {cut}: {what}"))?;
    }
    Ok(cuts)
}

#[test]
fn every_instant_of_a_dynamic_life_is_recoverable() {
    for seed in 0..4 {
        let (has_parent, abandoned) = (false, seed % 2 == 1);
        let script = Script { seed, blocks: 24, steps: 60, has_parent, flush_ignored: None, abandoned };
        let cuts = cut_everywhere(&live(script), 1, 3).unwrap_or_else(|what| panic!("seed {seed}: {what}"));
        assert!(cuts > 200, "{cuts}");
    }
}

#[test]
fn every_instant_of_a_differencing_life_is_recoverable() {
    for seed in 10..14 {
        let (has_parent, abandoned) = (true, seed % 2 == 1);
        let script = Script { seed, blocks: 24, steps: 60, has_parent, flush_ignored: None, abandoned };
        let cuts = cut_everywhere(&live(script), 1, 3).unwrap_or_else(|what| panic!("seed {seed}: {what}"));
        assert!(cuts > 300, "{cuts}");
    }
}
