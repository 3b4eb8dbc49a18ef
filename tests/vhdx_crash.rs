//! Power cuts and process kills at every instant of seeded histories of VHDX disks, with and without a parent: after
//! reopening, what was flushed is there, everything else is old or new sector by sector, nothing acknowledged is lost
//! by a kill, the file is sound, and a reader that shares no code with ours sees the same.

mod vhdx_support;

use std::ops::Range;

use lunaring::blocks::Engine as _;
use lunaring::vhdx::{Access, CreateOptions, DiskKind, NewParent, ParentLocator, VhdxParent, create, format::Guid};
use vhdx_support::guest::{Begun, Guest, History, Instants, cut_everywhere, parent_of};
use vhdx_support::{Host, MIB, PAGE, Random, RecordedFile, SECTOR, SparseFile, create_options, open_with};

/// What happens in a life.
#[derive(Clone, Copy, Debug)]
struct Script {
    seed: u64,
    blocks: u64,
    block_mib: u64,
    steps: u64,
    child: bool,
    /// Sessions that are left without closing.
    abandoned: bool,
    /// Of so many steps one writes atomically; 0: none.
    atomic_in: u64,
}

/// A new disk, over a parent or not, as an empty file of its kind; behind its last object lie bytes that an interrupted
/// session has left, as a power cut before the log entry does.
fn new_disk(script: &Script, parent: Option<&SparseFile>) -> SparseFile {
    let size = script.blocks * script.block_mib * MIB - 512;
    let mut options = create_options(size, DiskKind::Dynamic, script.block_mib * MIB);
    options.parent = parent.map(|parent| new_parent(&options, parent.len));
    let mut start = SparseFile::default();
    create(&options, &mut start).expect("creates");
    let end = start.len;
    start.write(end, &[0xee; 4 << 20]);
    start
}

fn new_parent(options: &CreateOptions, size_bytes: u64) -> NewParent {
    let locator = ParentLocator::Vhdx(VhdxParent {
        linkage: Guid([7; 16]),
        linkage2: None,
        relative_path: Some("parent.vhdx".into()),
        volume_path: None,
        absolute_win32_path: None,
        others: Vec::new(),
    });
    NewParent { locator, size_bytes, logical_sector_bytes: options.logical_sector_bytes, items: Vec::new() }
}

struct Life {
    host: Option<Host>,
    guest: Guest,
    random: Random,
    begun: Vec<Begun>,
    script: Script,
    parent: Option<SparseFile>,
}

impl Life {
    fn new(script: Script) -> Self {
        let mut random = Random(script.seed);
        let size = script.blocks * script.block_mib * MIB - 512;
        // Parents may be smaller than their children.
        let parent = script.child.then(|| parent_of((size - random.below(2 * MIB)) / SECTOR * SECTOR));
        let mut file = RecordedFile::new(new_disk(&script, parent.as_ref()));
        file.zero_range_unsupported = random.below(2) == 0;
        file.punch_unsupported = random.below(3) == 0;
        let host = Some(Host::open_over(file, parent.clone(), script.seed));
        Self { host, guest: Guest::over(parent.clone()), random, begun: Vec::new(), script, parent }
    }

    /// Write up to three ranges atomically, and perhaps something over one of them right after.
    fn write_atomics(&mut self) {
        let host = self.host.as_mut().expect("open");
        let random = &mut self.random;
        let pages = (self.script.blocks * self.script.block_mib * MIB - 512) / PAGE;
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for _ in 0..1 + random.below(3) {
            let count = if random.below(8) == 0 { 32 } else { 1 + random.below(4) };
            // Often over the border of two blocks.
            let border = random.below(self.script.blocks) * self.script.block_mib * MIB / PAGE;
            let place = if random.below(2) == 0 { random.below(pages) } else { border.saturating_sub(random.below(4)) };
            let start = place.min(pages - count) * (PAGE / SECTOR);
            let range = start..start + count * (PAGE / SECTOR);
            let meets = ranges.iter().any(|other| other.start < range.end && range.start < other.end);
            if !meets && !Guest::meets(&self.begun, &range) {
                ranges.push(range);
            }
        }
        let Some(first) = ranges.first().cloned() else { return };
        self.guest.write_atomics(host, &ranges);
        if random.below(2) == 0 {
            let count = 1 + random.below(3);
            let sector = first.start + random.below(first.end - first.start - count);
            self.guest.write(host, sector, count);
            if random.below(2) == 0 {
                self.guest.flush(host);
            }
        }
    }

    fn step(&mut self) {
        if self.script.atomic_in > 0 && self.random.below(self.script.atomic_in) == 0 {
            return self.write_atomics();
        }
        let host = self.host.as_mut().expect("open");
        let (sectors, blocks) = (self.script.blocks * self.script.block_mib * MIB / SECTOR - 1, self.script.blocks);
        let random = &mut self.random;
        let count = 1 + random.below(4);
        let sector = random.below(sectors - count);
        match random.below(24) {
            0..8 => self.guest.write(host, sector, count),
            8..11 if self.begun.len() < 3 => self.begun.push(self.guest.begin(host, sector, count)),
            11..14 if !self.begun.is_empty() => {
                let begun = self.begun.swap_remove(random.below(self.begun.len() as u64) as usize);
                self.guest.end(host, begun);
            }
            14..18 => {
                let block = random.below(blocks);
                self.guest.unmap(host, block, 1 + random.below(2).min(blocks - block - 1));
            }
            18 => {
                // The whole of a block, or nearly.
                let size = self.script.block_mib * MIB / SECTOR;
                let block = random.below(blocks - 1);
                let short = random.below(2);
                self.guest.write(host, block * size + short, size - short);
            }
            19..21 => host.begin_relocate(),
            21..23 => self.guest.flush(host),
            _ if random.below(8) == 0 => self.reopen(),
            _ => {
                host.turn();
            }
        }
    }

    fn end_all(&mut self) {
        for begun in std::mem::take(&mut self.begun) {
            self.guest.end(self.host.as_mut().expect("open"), begun);
        }
    }

    fn reopen(&mut self) {
        self.end_all();
        let host = self.host.take().expect("open");
        let file = if self.script.abandoned { host.file } else { self.guest.close(host) };
        self.host = Some(Host::open_over(file, self.parent.clone(), self.random.next()));
    }

    fn live(mut self) -> History {
        for _ in 0..self.script.steps {
            self.step();
        }
        self.end_all();
        let mut host = self.host.take().expect("open");
        host.settle();
        assert!(host.engine.is_idle(), "{:?}: something waits for nothing", self.script);
        let file = if self.script.abandoned { host.file } else { self.guest.close(host) };
        History { file, guest: self.guest }
    }
}

fn seeds(few: u64) -> u64 {
    std::env::var("LUNARING_CRASH_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(few)
}

fn run(few: u64, stride: usize, rounds: u64, script: impl Fn(u64) -> Script + Sync) {
    let seeds = seeds(few);
    let cuts: usize = std::thread::scope(|scope| {
        let halves = [0, 1].map(|half| {
            let script = &script;
            scope.spawn(move || {
                let cut = |seed| {
                    let script = script(seed);
                    cut_everywhere(&Life::new(script).live(), stride, rounds)
                        .unwrap_or_else(|what| panic!("{script:?}: {what}"))
                };
                (half..seeds).step_by(2).map(cut).sum::<usize>()
            })
        });
        halves.map(|half| half.join().expect("no panic")).iter().sum()
    });
    println!("{seeds} lives, {cuts} cuts");
    assert!(cuts as u64 > 30 * seeds, "{cuts}");
}

/// Few blocks, so that space is given up and used again all the time.
#[test]
fn every_instant_of_a_short_life_is_recoverable() {
    run(12, 1, 3, |seed| Script {
        seed,
        blocks: 6 + seed % 7,
        block_mib: 1 + seed % 2,
        steps: 40,
        child: false,
        abandoned: seed % 3 == 1,
        atomic_in: 0,
    });
}

/// Atomic writes are there or not, whole, whoever replays the log; and what is written over them stays written.
#[test]
fn atomic_writes_are_never_torn() {
    run(8, 1, 2, |seed| Script {
        seed: 7000 + seed,
        blocks: 6 + seed % 5,
        block_mib: 1 + seed % 2,
        steps: 18,
        child: seed % 4 > 1,
        abandoned: seed % 3 == 1,
        atomic_in: 3,
    });
}

/// Space at the file's end becomes free after the log's first entry has promised it and before the tail is cut.
#[test]
fn a_file_is_never_cut_below_what_its_log_promises() {
    let script =
        Script { seed: 845, blocks: 11, block_mib: 2, steps: 40, child: false, abandoned: false, atomic_in: 0 };
    let cuts = cut_everywhere(&Life::new(script).live(), 1, 3).unwrap_or_else(|what| panic!("{what}"));
    assert!(cuts > 30, "{cuts}");
}

#[test]
fn every_instant_of_a_childs_life_is_recoverable() {
    run(12, 1, 3, |seed| Script {
        seed: 1000 + seed,
        blocks: 4 + seed % 7,
        block_mib: 1 + seed % 2,
        steps: 40,
        child: true,
        abandoned: seed % 3 == 1,
        atomic_in: 0,
    });
}

/// A log of 1 MiB holds some hundred groups: its epoch turns several times.
#[test]
fn the_turn_of_an_epoch_is_recoverable() {
    run(2, 13, 1, |seed| Script {
        seed: 2000 + seed,
        blocks: 24,
        block_mib: 1,
        steps: 700,
        child: seed % 2 == 0,
        abandoned: true,
        atomic_in: 0,
    });
}

/// Every subset of what was not flushed, wherever that is little enough.
#[test]
fn small_losses_are_tried_in_full() {
    let (mut subsets, mut instants_tried) = (0, 0);
    for seed in 0..seeds(6) {
        let (child, blocks) = (seed % 2 == 0, 4);
        let script =
            Script { seed: 3000 + seed, blocks, block_mib: 1, steps: 12, child, abandoned: false, atomic_in: 0 };
        let history = Life::new(script).live();
        let mut instants = Instants::of(&history);
        for cut in 0..=history.file.history.len() {
            instants.go_to(cut);
            let units = instants.units();
            if units > 9 {
                continue;
            }
            instants_tried += 1;
            for kept in 0..1u64 << units {
                instants.lose_all_but(kept).unwrap_or_else(|what| panic!("{script:?}: {what}"));
                subsets += 1;
            }
        }
    }
    println!("{instants_tried} instants, {subsets} subsets");
    assert!(instants_tried > 100 && subsets > 1000, "{instants_tried} {subsets}");
}

/// Power fails again while the log is being replayed, at every instant of the replay.
#[test]
fn a_replay_that_is_cut_is_repeated() {
    for child in [false, true] {
        let script = Script { seed: 3, blocks: 24, block_mib: 1, steps: 60, child, abandoned: true, atomic_in: 0 };
        let History { file, mut guest } = Life::new(script).live();
        // Everything has reached the disk; from here on nothing acknowledged may be lost.
        let length = file.history.len();
        guest.flushes.push((length, length));
        let mut replayed = RecordedFile::new(file.now.clone());
        let disk = open_with(&mut replayed, Access::ReadWrite, 9).expect("opens");
        assert!(disk.replay.expect("the log was pending").entries > 1);
        for cut in 0..=replayed.history.len() {
            for round in 0..16 {
                let is_flush = |change: &vhdx_support::Change| matches!(change, vhdx_support::Change::Flush);
                let from = replayed.history[..cut].iter().rposition(is_flush).map_or(0, |at| at + 1);
                let durable = replayed.cut(&replayed.start, 0, from, None);
                let left = replayed.cut(&durable, from, cut, Some(&mut Random((cut as u64) << 8 | round)));
                guest.check(left, length, false).unwrap_or_else(|what| panic!("cut at {cut}/{round}: {what}"));
            }
        }
    }
}

/// Many lives, without cuts: every request ends, and the disk shows what was written last.
#[test]
fn lives_end_well() {
    for seed in 0..seeds(300) {
        let script = Script {
            seed: 5000 + seed,
            blocks: 4 + seed % 9,
            block_mib: 1 + seed % 2,
            steps: 80,
            child: seed % 2 == 0,
            abandoned: seed % 3 == 1,
            atomic_in: if seed % 5 == 0 { 6 } else { 0 },
        };
        println!("{script:?}");
        let history = Life::new(script).live();
        let mut instants = Instants::of(&history);
        instants.go_to(history.file.history.len());
        instants.kill().unwrap_or_else(|what| panic!("{script:?}: {what}"));
    }
}
