//! Power cuts and process kills at every instant of seeded histories of a VHDX disk: after reopening, what was
//! flushed is there, everything else is old or new sector by sector, nothing acknowledged is lost by a kill, and the
//! file is sound.

mod vhdx_support;

use std::collections::BTreeMap;

use lunaring::blocks::Event;
use lunaring::vhdx::{Access, DiskKind, create};
use vhdx_support::{Change, Host, MIB, Random, RecordedFile, SECTOR, SparseFile, create_options, open_with, read_disk};

/// What the guest knows of one sector: the values it has written, with the length of the history when each was issued
/// and when it was acknowledged.
#[derive(Default)]
struct SectorHistory(Vec<(usize, usize, u64)>);

#[derive(Default)]
struct Guest {
    sectors: BTreeMap<u64, SectorHistory>,
    /// Lengths of the history when a guest's flush started and ended.
    flushes: Vec<(usize, usize)>,
    next_value: u64,
}

impl Guest {
    fn sector_bytes(value: u64) -> Vec<u8> {
        if value == 0 { vec![0; SECTOR as usize] } else { value.to_le_bytes().repeat(SECTOR as usize / 8) }
    }

    fn write(&mut self, host: &mut Host, sector: u64, count: u64) {
        let mut bytes = Vec::new();
        let first = self.next_value + 1;
        self.next_value += count;
        for value in first..=self.next_value {
            bytes.extend(Self::sector_bytes(value));
        }
        let issued = host.file.history.len();
        host.write(sector * SECTOR, &bytes).expect("the write succeeds");
        let acknowledged = host.file.history.len();
        for (at, value) in (sector..).zip(first..=self.next_value) {
            self.sectors.entry(at).or_default().0.push((issued, acknowledged, value));
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
    fn allowed(&self, history: &SectorHistory, cut: usize, killed: bool) -> Vec<u64> {
        let safe = if killed {
            cut
        } else {
            self.flushes.iter().filter(|(_, end)| *end <= cut).map(|(start, _)| *start).max().unwrap_or(0)
        };
        let base = history.0.iter().rposition(|(_, acknowledged, _)| *acknowledged <= safe);
        let older = base.map_or(0, |at| history.0[at].2);
        let later = history.0[base.map_or(0, |at| at + 1)..].iter();
        let later = later.filter(|(issued, ..)| *issued < cut).map(|(.., value)| *value);
        std::iter::once(older).chain(later).collect()
    }

    /// Open what a loss left behind and compare. `Err` tells what was violated.
    fn check(&self, mut file: SparseFile, cut: usize, killed: bool) -> Result<(), String> {
        let mut before = file.clone();
        let readable =
            open_with(&mut before, Access::ReadOnly, 5).map_err(|error| format!("read-only open: {error}"))?;
        let disk = open_with(&mut file, Access::ReadWrite, 6).map_err(|error| format!("open: {error}"))?;
        let again = open_with(&mut file, Access::ReadOnly, 7).map_err(|error| format!("second open: {error}"))?;
        if again.replay.is_some() {
            return Err("a replayed log is still pending".into());
        }
        for (sector, history) in &self.sectors {
            let mut values = [[0; SECTOR as usize]; 2];
            read_disk(&mut file, None, &disk.map, sector * SECTOR, &mut values[0]);
            read_disk(&mut before, &readable.geometry, &readable.view, sector * SECTOR, &mut values[1]);
            let allowed = self.allowed(history, cut, killed);
            for bytes in values {
                if !allowed.iter().any(|value| Self::sector_bytes(*value) == bytes) {
                    return Err(format!("sector {sector} holds {:02x?}, allowed {allowed:?}", &bytes[..8]));
                }
            }
        }
        Ok(())
    }
}

/// A history: a disk's life from an empty file on.
struct History {
    file: RecordedFile,
    guest: Guest,
}

#[derive(Clone, Copy)]
struct Script {
    seed: u64,
    blocks: u64,
    writes: u64,
    flush_ignored: Option<usize>,
    /// Sessions that are left without closing.
    abandoned: bool,
}

fn live(script: Script) -> History {
    let mut random = Random(script.seed);
    let mut start = SparseFile::default();
    create(&create_options(script.blocks * MIB - 512, DiskKind::Dynamic, MIB), &mut start).expect("creates");
    // An interrupted session has left bytes behind the last object, as a power cut before the log entry does.
    let end = start.len;
    start.write(end, &[0xee; 4 << 20]);
    let mut file = RecordedFile::new(start);
    file.flush_ignored = script.flush_ignored;
    file.zero_range_unsupported = random.below(2) == 0;
    let (mut host, mut guest) = (Host::open(file, script.seed), Guest::default());
    for _ in 0..script.writes {
        let count = 1 + random.below(4);
        let sector = random.below(script.blocks * MIB / SECTOR - 1 - count);
        guest.write(&mut host, sector, count);
        if random.below(8) == 0 {
            guest.flush(&mut host);
        }
        if random.below(100) == 0 {
            let file = if script.abandoned { host.file } else { guest.close(host) };
            host = Host::open(file, random.next());
        }
    }
    if script.abandoned {
        return History { file: host.file, guest };
    }
    let file = guest.close(host);
    History { file, guest }
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
            let left = history.file.cut(&durable, from, cut, Some(&mut random));
            history.guest.check(left, cut, false).map_err(|what| format!("power cut at {cut}/{round}: {what}"))?;
            cuts += 1;
        }
        let left = history.file.cut(&durable, from, cut, None);
        history.guest.check(left, cut, true).map_err(|what| format!("kill at {cut}: {what}"))?;
    }
    Ok(cuts)
}

/// Every instant of a session from its opening to its close: 24 blocks, many of them several times.
#[test]
fn every_instant_of_a_short_life_is_recoverable() {
    for seed in 0..4 {
        let script = Script { seed, blocks: 24, writes: 40, flush_ignored: None, abandoned: seed % 2 == 1 };
        let cuts = cut_everywhere(&live(script), 1, 4).unwrap_or_else(|what| panic!("seed {seed}: {what}"));
        assert!(cuts > 300, "{cuts}");
    }
}

/// A log of 1 MiB holds about 125 groups; 500 blocks turn the epoch three times.
#[test]
fn the_turn_of_an_epoch_is_recoverable() {
    let script = Script { seed: 11, blocks: 700, writes: 520, flush_ignored: None, abandoned: true };
    let history = live(script);
    cut_everywhere(&history, 7, 1).unwrap_or_else(|what| panic!("{what}"));
}

/// A life whose flushes can be counted: 5 open the session, the guest flushes, 5 turn the epoch, the guest
/// flushes, 4 close.
const OPEN_START_EPOCH: usize = 2;
const TURN_APPLY: usize = 6;
const TURN_END_EPOCH: usize = 7;
const TURN_START_EPOCH: usize = 8;
const CLOSE_APPLY: usize = 12;
const FLUSHES: usize = 16;

fn counted_life(flush_ignored: Option<usize>) -> History {
    let mut start = SparseFile::default();
    create(&create_options(200 * MIB, DiskKind::Dynamic, MIB), &mut start).expect("creates");
    let mut file = RecordedFile::new(start);
    file.flush_ignored = flush_ignored;
    let (mut host, mut guest) = (Host::open(file, 77), Guest::default());
    for block in 0..140 {
        guest.write(&mut host, block * MIB / SECTOR + block, 1);
        if block == 110 || block == 139 {
            guest.flush(&mut host);
        }
    }
    let file = guest.close(host);
    History { file, guest }
}

/// Cut many times right behind the place of the flush that was ignored.
fn cut_behind(history: &History, place: usize) -> Result<(), String> {
    let changes = &history.file.history;
    let from = changes[..place].iter().rposition(|change| matches!(change, Change::Flush)).map_or(0, |at| at + 1);
    let durable = history.file.cut(&history.file.start, 0, from, None);
    let end =
        changes[place..].iter().position(|change| matches!(change, Change::Flush)).unwrap_or(changes.len() - place);
    for cut in place..=place + end {
        for round in 0..48 {
            let mut random = Random((cut as u64) << 8 | round);
            let left = history.file.cut(&durable, from, cut, Some(&mut random));
            history.guest.check(left, cut, false)?;
        }
    }
    Ok(())
}

/// The barriers hold something: without one of them the same cuts find a loss. With all of them, they find none.
#[test]
fn a_missing_barrier_is_noticed() {
    let whole = counted_life(None);
    assert_eq!(whole.file.flushes, FLUSHES, "the numbers above name the right flushes");
    for (barrier, place) in [
        (OPEN_START_EPOCH, "the first epoch's entry is durable before a header names it"),
        (TURN_APPLY, "pages are in place before an entry says that they need no replay"),
        (TURN_END_EPOCH, "the epoch's end is durable before its first entry is overwritten"),
        (TURN_START_EPOCH, "the next epoch's entry is durable before a header names it"),
        (CLOSE_APPLY, "pages are in place before the header says that there is no log"),
    ] {
        let faulty = counted_life(Some(barrier));
        let at = faulty.file.ignored_at.expect("the flush was asked for");
        let found = cut_behind(&faulty, at).expect_err(place);
        println!("without flush {barrier} ({place}): {found}");
        let flush = whole.file.history.iter().enumerate().filter(|(_, change)| matches!(change, Change::Flush));
        let (at, _) = flush.clone().nth(barrier).expect("the same flush");
        cut_behind(&whole, at + 1).unwrap_or_else(|what| panic!("{place}, though the flush was made: {what}"));
    }
}

/// Power fails again while the log is being replayed, at every instant of the replay.
#[test]
fn a_replay_that_is_cut_is_repeated() {
    let script = Script { seed: 3, blocks: 64, writes: 60, flush_ignored: None, abandoned: true };
    let History { file, mut guest } = live(script);
    // Everything has reached the disk; from here on nothing acknowledged may be lost.
    let length = file.history.len();
    guest.flushes.push((length, length));
    let mut replayed = RecordedFile::new(file.now.clone());
    let disk = open_with(&mut replayed, Access::ReadWrite, 9).expect("opens");
    assert!(disk.replay.expect("the log was pending").entries > 1);
    let replay = History { file: replayed, guest };
    let (mut durable, mut from) = (replay.file.start.clone(), 0);
    for cut in 0..=replay.file.history.len() {
        if cut > 0 && matches!(replay.file.history[cut - 1], Change::Flush) {
            durable = replay.file.cut(&durable, from, cut, None);
            from = cut;
        }
        for round in 0..16 {
            let left = replay.file.cut(&durable, from, cut, Some(&mut Random((cut as u64) << 8 | round)));
            replay.guest.check(left, length, false).unwrap_or_else(|what| panic!("cut at {cut}/{round}: {what}"));
        }
    }
}
