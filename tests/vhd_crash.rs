//! Power cuts and process kills at every instant of seeded histories of a VHD disk, dynamic and differencing: after
//! reopening, what was flushed is there, everything else is old or new sector by sector, nothing acknowledged is lost
//! by a kill, and the file is sound.

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

    /// Several writes, each in a block of its own, and the release of another, all at the same time.
    fn burst(&mut self, host: &mut Host, random: &mut Random, blocks: u64) {
        let first = random.below(blocks - 8);
        let released = first + 7;
        let mut writes = Vec::new();
        let mut values = Vec::new();
        for block in first..first + 1 + random.below(6) {
            let count = 1 + random.below(9);
            let sector = block * BLOCK_SECTORS + random.below(BLOCK_SECTORS - count);
            let value = self.next_value + 1;
            self.next_value += count;
            writes.push((sector * SECTOR, (value..value + count).flat_map(sector_bytes).collect()));
            values.push((sector, value, count));
            self.sector(sector + count);
        }
        self.sector(released * BLOCK_SECTORS);
        let issued = host.file.history.len();
        host.write_together(&writes, Some((released * BLOCK, BLOCK))).expect("all succeed");
        let acknowledged = host.file.history.len();
        for (sector, value, count) in values {
            for (at, value) in (sector..).zip(value..value + count) {
                self.sector(at).0.push((issued, acknowledged, value));
            }
        }
        self.released(released, issued, acknowledged);
    }

    fn released(&mut self, block: u64, issued: usize, acknowledged: usize) {
        self.released.push((block, issued, acknowledged));
        let sectors = self.sectors.range_mut(block * BLOCK_SECTORS..(block + 1) * BLOCK_SECTORS);
        sectors.for_each(|(_, history)| history.0.push((issued, acknowledged, 0)));
    }

    fn unmap(&mut self, host: &mut Host, block: u64, count: u64) {
        let issued = host.file.history.len();
        host.unmap(block * BLOCK, count * BLOCK).expect("the unmap succeeds");
        let acknowledged = host.file.history.len();
        for block in block..block + count {
            self.sector(block * BLOCK_SECTORS);
            self.released(block, issued, acknowledged);
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
            3 => guest.burst(&mut host, &mut random, blocks),
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

/// How many lives are lived; `LUNARING_CRASH_SEEDS` asks for more.
fn seeds(few: u64) -> u64 {
    std::env::var("LUNARING_CRASH_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(few)
}

#[test]
fn every_instant_of_a_dynamic_life_is_recoverable() {
    for seed in 0..seeds(3) {
        let (has_parent, abandoned) = (false, seed % 2 == 1);
        let script = Script { seed, blocks: 24, steps: 60, has_parent, flush_ignored: None, abandoned };
        let cuts = cut_everywhere(&live(script), 1, 3).unwrap_or_else(|what| panic!("seed {seed}: {what}"));
        assert!(cuts > 200, "{cuts}");
    }
}

#[test]
fn every_instant_of_a_differencing_life_is_recoverable() {
    for seed in 10..10 + seeds(3) {
        let (has_parent, abandoned) = (true, seed % 2 == 1);
        let script = Script { seed, blocks: 24, steps: 60, has_parent, flush_ignored: None, abandoned };
        let cuts = cut_everywhere(&live(script), 1, 3).unwrap_or_else(|what| panic!("seed {seed}: {what}"));
        assert!(cuts > 300, "{cuts}");
    }
}

/// Which flushes belong to what, by their numbers.
type Marks = BTreeMap<&'static str, std::ops::Range<usize>>;

/// How the file of a counted life begins.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Start {
    /// With what an interrupted session left behind the footer.
    Slack,
    /// With a last block that is stored as far as the disk goes, the footer right behind that.
    Short,
}

/// A disk whose last block is cut short in its file.
fn short_disk() -> SparseFile {
    let start = new_disk(&options(24 * BLOCK - BLOCK / 2, NewKind::Dynamic, BLOCK));
    let mut host = Host::open(RecordedFile::new(start), None, 1);
    host.write(23 * BLOCK, &[1; 512]).expect("writes");
    let mut file = host.close().0.now;
    let mut footer = [0; 512];
    file.read(file.len - 512, &mut footer);
    let end = file.len - 512 - BLOCK / 2;
    file.set_len(end);
    file.write(end, &footer);
    file
}

/// A short life in which every kind of flush is needed once.
fn counted_life(kind: Start, has_parent: bool, flush_ignored: Option<usize>) -> (History, Marks) {
    let script = Script { seed: 5, blocks: 24, steps: 0, has_parent, flush_ignored, abandoned: false };
    let (mut start, parent) = start_of(script);
    let mut guest = Guest { has_parent, ..Guest::default() };
    if has_parent {
        // Somebody's interrupted write: a block whose first sector counts, with bytes behind it that nobody may see.
        let mut host = Host::open(RecordedFile::new(start), parent.clone(), 1);
        host.write(6 * BLOCK, &sector_bytes(0x60)).expect("writes");
        host.land(6 * BLOCK + 4096, &[0xdd; 4096]).expect("lands");
        start = host.close().0.now;
        guest.sector(6 * BLOCK_SECTORS).0.push((0, 0, 0x60));
        guest.sector(6 * BLOCK_SECTORS + 8);
    }
    if kind == Start::Short {
        start = short_disk();
    } else {
        let end = start.len;
        start.write(end, &[0xee; 1 << 20]);
        let footer = start.len;
        let mut good = [0; 512];
        start.read(end - 512, &mut good);
        start.write(footer, &good);
        start.write(end - 512, &[0xee; 512]);
    }
    // The copy of the footer is damaged: nothing may happen to the other before it is mended.
    start.write(100, &[1]);
    let mut file = RecordedFile::new(start);
    file.flush_ignored = flush_ignored;
    let mut host = Host::open(file, parent.clone(), 77);
    let mut marks = Marks::new();
    let mut from = 0;
    let mut mark = |host: &Host, name| {
        marks.insert(name, from..host.file.flushes);
        from = host.file.flushes;
    };
    lunaring::blocks::Engine::begin_write_session(&mut *host.engine).expect("begins");
    host.settle();
    mark(&host, "open");
    guest.write(&mut host, 3 * BLOCK_SECTORS, 2);
    mark(&host, "first write");
    guest.flush(&mut host);
    mark(&host, "guest");
    guest.write(&mut host, 3 * BLOCK_SECTORS + 5, 1);
    mark(&host, "second write");
    guest.flush(&mut host);
    mark(&host, "guest again");
    guest.unmap(&mut host, 6, 1);
    mark(&host, "unmap");
    guest.flush(&mut host);
    mark(&host, "guest at last");
    let file = guest.close(host);
    marks.insert("close", from..file.flushes);
    (History { file, guest, parent }, marks)
}

/// Cut many times right behind the place of the flush that was ignored. The disk must be sound and right, and `demand`
/// must hold of the file. `reach`: changes behind the place that are looked at.
fn cut_behind(
    history: &History,
    place: usize,
    reach: usize,
    demand: &dyn Fn(&SparseFile) -> Result<(), String>,
) -> Result<(), String> {
    let changes = &history.file.history;
    let from = changes[..place].iter().rposition(|change| matches!(change, Change::Flush)).map_or(0, |at| at + 1);
    let durable = history.file.cut(&history.file.start, 0, from, None);
    let end =
        changes[place..].iter().position(|change| matches!(change, Change::Flush)).unwrap_or(changes.len() - place);
    for cut in place..=place + end.min(reach) {
        for round in 0..64 {
            let mut random = Random((cut as u64) << 8 | round);
            let left = history.file.cut(&durable, from, cut, Some(&mut random));
            demand(&left)?;
            history.guest.check(left, history.parent.as_ref(), cut, false)?;
        }
    }
    Ok(())
}

/// Other programs look at the end of the file first, and not all look at its start.
fn footer_at_the_end(file: &SparseFile) -> Result<(), String> {
    let disk = open_with(&mut file.clone(), Access::ReadOnly).map_err(|error| error.to_string())?;
    let missing = disk.warnings.contains(&lunaring::vhd::Warning::EndFooterInvalid);
    if missing { Err("no footer at the end".into()) } else { Ok(()) }
}

/// The barriers hold something: without one of them the same cuts find a loss. With all of them, they find none.
#[test]
fn a_missing_barrier_is_noticed() {
    let nothing = |_: &SparseFile| Ok(());
    let nothing: &dyn Fn(&SparseFile) -> Result<(), String> = &nothing;
    use Start::{Short, Slack};
    const ALL: usize = usize::MAX;
    for (start, has_parent, phase, number, reach, demand, why) in [
        (Short, false, "open", 0, ALL, nothing, "one footer is whole at any time"),
        (Slack, false, "open", 1, 1, &footer_at_the_end, "a footer is durable before what is behind it is cut off"),
        (Slack, false, "first write", 0, ALL, nothing, "the file is longer before the table names its new end"),
        (Slack, true, "second write", 0, ALL, nothing, "data is durable before the bits that show it"),
        (Slack, true, "unmap", 0, ALL, nothing, "zeros are durable before the bits that show them"),
        (Slack, false, "close", 0, 1, &footer_at_the_end, "a footer is durable before the file is cut to it"),
    ] {
        let (whole, marks) = counted_life(start, has_parent, None);
        let flush =
            marks[phase].clone().nth(number).unwrap_or_else(|| panic!("{phase} has no flush {number}: {marks:?}"));
        let (faulty, _) = counted_life(start, has_parent, Some(flush));
        let at = faulty.file.ignored_at.expect("the flush was asked for");
        let found = cut_behind(&faulty, at, reach, demand).expect_err(why);
        println!("{phase}, flush {number} ({why}): {found}");
        let flushes = whole.file.history.iter().enumerate().filter(|(_, change)| matches!(change, Change::Flush));
        let (at, _) = flushes.clone().nth(flush).expect("the same flush");
        cut_behind(&whole, at + 1, reach, demand)
            .unwrap_or_else(|what| panic!("{why}, though the flush was made: {what}"));
    }
}

/// Growing the disk and changing its parent, cut at every write: the disk is the old or the new one, with its content.
#[test]
fn offline_changes_are_all_or_nothing() {
    for (seed, has_parent) in [(1, false), (2, true), (3, false)] {
        let script = Script { seed, blocks: 24, steps: 20, has_parent, flush_ignored: None, abandoned: seed == 3 };
        let History { file, mut guest, parent } = live(script);
        let length = file.history.len();
        guest.flushes.push((length, length));
        let mut changed = RecordedFile::new(file.now);
        let (old, new) = (script.blocks * BLOCK, 1000 * BLOCK + 4096);
        resize(&mut changed, new).expect("grows");
        if has_parent {
            set_parent(&mut changed, &VhdParent { name: "other.vhd".into(), ..parent_named(Uuid::max()) })
                .expect("sets");
            set_parent(&mut changed, &VhdParent { name: "third.vhd".into(), ..parent_named(Uuid::max()) })
                .expect("sets");
        }
        let history = History { file: changed, guest, parent };
        let (mut durable, mut from) = (history.file.start.clone(), 0);
        let mut seen = [0; 2];
        for cut in 0..=history.file.history.len() {
            if cut > 0 && matches!(history.file.history[cut - 1], Change::Flush) {
                durable = history.file.cut(&durable, from, cut, None);
                from = cut;
            }
            for round in 0..24 {
                let mut left = history.file.cut(&durable, from, cut, Some(&mut Random((cut as u64) << 8 | round)));
                let disk =
                    open_with(&mut left, Access::ReadOnly).unwrap_or_else(|error| panic!("{cut}/{round}: {error}"));
                seen[usize::from(disk.shape.size_bytes == new)] += 1;
                assert!([old, new].contains(&disk.shape.size_bytes));
                history
                    .guest
                    .check(left.clone(), history.parent.as_ref(), length, false)
                    .unwrap_or_else(|what| panic!("seed {seed}, cut at {cut}/{round}: {what}"));
                repair(&mut left).expect("repairs");
                assert_eq!(check(&mut left).expect("readable").worst, None, "{cut}/{round}");
            }
        }
        assert!(seen[0] > 20 && seen[1] > 20, "{seen:?}");
    }
}

/// A fixed disk that grows has one footer on its way from the old end to the new one.
#[test]
fn growing_a_fixed_disk_is_never_more_than_a_repair_away() {
    let mut start = new_disk(&options(MIB, NewKind::Fixed, 2 * MIB));
    start.write(MIB - 512, &[7; 512]);
    start.write(0, b"first");
    let mut changed = RecordedFile::new(start);
    resize(&mut changed, 3 * MIB).expect("grows");
    let (mut durable, mut from) = (changed.start.clone(), 0);
    let mut seen = [0; 3];
    for cut in 0..=changed.history.len() {
        if cut > 0 && matches!(changed.history[cut - 1], Change::Flush) {
            durable = changed.cut(&durable, from, cut, None);
            from = cut;
        }
        for round in 0..24 {
            let mut left = changed.cut(&durable, from, cut, Some(&mut Random((cut as u64) << 8 | round)));
            if open_with(&mut left, Access::ReadOnly).is_err() {
                seen[2] += 1;
                repair(&mut left).expect("repairs");
            }
            let disk = open_with(&mut left, Access::ReadOnly).expect("opens");
            let mut last = [0; 512];
            left.read(MIB - 512, &mut last);
            assert_eq!(last, [7; 512]);
            seen[usize::from(disk.shape.size_bytes == 3 * MIB)] += 1;
        }
    }
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
    let (mut tail, disk) = (vec![1; 2 << 20], open_with(&mut changed.now, Access::ReadOnly).expect("opens"));
    changed.now.read(MIB, &mut tail);
    assert!(disk.shape.size_bytes == 3 * MIB && tail.iter().all(|byte| *byte == 0));
}
