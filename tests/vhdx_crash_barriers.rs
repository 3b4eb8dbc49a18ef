//! Every barrier of the VHDX engine holds something: without it the same power cuts find a loss, with it they find
//! none. The engine stays as it is; its host leaves out one flush, ends barriers at once, or says that a log entry has
//! been written before it is.
//!
//! The flushes behind the two copies of a header stand in for each other: leaving out one of them loses nothing, as
//! each copy alone serves (section 2.2.2.1 wants both).

mod vhdx_support;

use std::collections::BTreeMap;

use lunaring::vhdx::{DiskKind, NewParent, ParentLocator, VhdxParent, create, format::Guid};
use vhdx_support::guest::{Guest, History, Instants, parent_of};
use vhdx_support::host::Misdeed;
use vhdx_support::{Change, Host, MIB, RecordedFile, SECTOR, SparseFile, create_options};

const BLOCK: u64 = MIB / SECTOR;

/// What a change of the file is to the format: the log is MiB 1, the metadata MiB 2, the table MiB 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Header,
    EmptyEntry,
    Entry,
    Table,
    Block,
    Zeros,
    Size,
    Flush,
    Nothing,
}

fn part_of(change: Option<&Change>) -> Part {
    match change {
        Some(Change::Write { offset, .. }) if *offset < MIB => Part::Header,
        Some(Change::Write { offset, bytes }) if *offset < 2 * MIB && bytes.len() == 4096 => Part::EmptyEntry,
        Some(Change::Write { offset, .. }) if *offset < 2 * MIB => Part::Entry,
        Some(Change::Write { offset, .. }) if *offset < 4 * MIB => Part::Table,
        Some(Change::Write { .. }) => Part::Block,
        Some(Change::Zero { .. }) => Part::Zeros,
        Some(Change::SetLen { .. }) => Part::Size,
        Some(Change::Flush) => Part::Flush,
        None => Part::Nothing,
    }
}

fn new_host(child: bool, blocks: u64, ignored: Option<usize>) -> (Host, Guest) {
    let size = blocks * MIB;
    let parent = child.then(|| parent_of(size));
    let mut options = create_options(size, DiskKind::Dynamic, MIB);
    let locator = VhdxParent {
        linkage: Guid([7; 16]),
        linkage2: None,
        relative_path: Some("parent.vhdx".into()),
        volume_path: None,
        absolute_win32_path: None,
        others: Vec::new(),
    };
    let new_parent = |size_bytes| NewParent {
        locator: ParentLocator::Vhdx(locator),
        size_bytes,
        logical_sector_bytes: 512,
        items: Vec::new(),
    };
    options.parent = parent.as_ref().map(|parent| new_parent(parent.len));
    let mut start = SparseFile::default();
    create(&options, &mut start).expect("creates");
    let mut file = RecordedFile::new(start);
    file.flush_ignored = ignored;
    let host = Host::open_over(file, parent.clone(), 77);
    (host, Guest::over(parent))
}

/// A life that runs every program of the engine: opening, groups, staging, giving space up, using it again, moving
/// blocks, cutting the tail, turning the epoch, closing.
fn counted_life(child: bool, ignored: Option<usize>) -> History {
    let (mut host, mut guest) = new_host(child, 40, ignored);
    for block in 0..12 {
        guest.write(&mut host, block * BLOCK + 30, 3);
    }
    guest.flush(&mut host);
    // Space is given up, comes back, and other blocks get it: what they do not write must not show what was there.
    guest.unmap(&mut host, 2, 3);
    host.settle();
    for block in 20..24 {
        guest.write(&mut host, block * BLOCK + 31, 1);
    }
    guest.flush(&mut host);
    guest.unmap(&mut host, 0, 2);
    host.settle();
    while host.relocate() {}
    guest.flush(&mut host);
    // Growing the same block sector by sector fills the log with entries.
    for at in 0..140 {
        let block = if child { 30 } else { 25 + at % 15 };
        guest.write(&mut host, block * BLOCK + 2 * at, 1);
        if !child && at % 15 == 14 {
            guest.unmap(&mut host, 25, 15);
            host.settle();
        }
    }
    guest.flush(&mut host);
    guest.write(&mut host, 33 * BLOCK, 1);
    guest.flush(&mut host);
    let file = guest.close(host);
    History { file, guest }
}

/// A life of first writes only, that fills the log with them; nothing is flushed in its first epoch.
fn growing_life(ignored: Option<usize>) -> History {
    let (mut host, mut guest) = new_host(false, 150, ignored);
    for block in 0..140 {
        guest.write(&mut host, block * BLOCK + block, 1);
    }
    guest.flush(&mut host);
    let file = guest.close(host);
    History { file, guest }
}

/// Cut many times right behind a place of the history, up to the next flush and the one after it.
fn cut_behind(history: &History, place: usize, rounds: u64) -> Result<(), String> {
    let changes = &history.file.history;
    let flushes = changes.iter().enumerate().skip(place).filter(|(_, change)| matches!(change, Change::Flush));
    let end = flushes.map(|(at, _)| at + 1).nth(1).unwrap_or(changes.len());
    let mut instants = Instants::of(history);
    for cut in place..=end.min(changes.len()) {
        instants.go_to(cut);
        for round in 0..rounds {
            instants.lose_power(round)?;
        }
    }
    Ok(())
}

fn len_after(change: &Change) -> Option<u64> {
    match change {
        Change::SetLen { len } => Some(*len),
        _ => None,
    }
}

/// The flushes of a life by what they part: their numbers, and their places in the history.
fn flushes_of(history: &History) -> BTreeMap<(Part, Part), Vec<(usize, usize)>> {
    let changes = &history.file.history;
    let mut by_parts: BTreeMap<_, Vec<_>> = BTreeMap::new();
    let places = changes.iter().enumerate().filter(|(_, change)| matches!(change, Change::Flush));
    for (number, (place, _)) in places.enumerate() {
        let before = part_of(place.checked_sub(1).and_then(|at| changes.get(at)));
        // Growing the file ahead of need may come in between.
        let grows = |at: &usize| match &changes[*at] {
            Change::SetLen { len } => {
                changes[..*at].iter().rev().find_map(len_after).is_none_or(|before| *len > before)
            }
            _ => false,
        };
        let next = (place + 1..changes.len()).find(|at| !grows(at)).and_then(|at| changes.get(at));
        let guests = history.guest.flushes.iter().any(|(start, end)| *start == place && *end == place + 1);
        if !guests {
            by_parts.entry((before, part_of(next))).or_default().push((number, place));
        }
    }
    by_parts
}

/// Leave flushes between these parts out, one at a time: some cut must find a loss, and none may while they are made.
fn leaving_out(life: impl Fn(Option<usize>) -> History, parts: (Part, Part), why: &str) {
    let whole = life(None);
    let by_parts = flushes_of(&whole);
    let flushes = by_parts.get(&parts).unwrap_or_else(|| panic!("{parts:?} is among {:?}", by_parts.keys()));
    let found = flushes.iter().take(12).find_map(|(number, _)| {
        let faulty = life(Some(*number));
        let at = faulty.file.ignored_at.expect("the flush was asked for");
        cut_behind(&faulty, at, 24).err().map(|found| (*number, found))
    });
    let (number, found) = found.unwrap_or_else(|| panic!("{why}: nothing was lost without {parts:?}"));
    println!("{why}: without flush {number} between {parts:?}: {}", &found[..found.len().min(160)]);
    let (_, place) = flushes.iter().find(|(other, _)| *other == number).expect("the same flush");
    cut_behind(&whole, *place, 24).unwrap_or_else(|what| panic!("{why}, though the flush was made: {what}"));
}

#[test]
fn an_epochs_first_entry_is_durable_before_a_header_names_it() {
    leaving_out(
        |ignored| counted_life(false, ignored),
        (Part::EmptyEntry, Part::Header),
        "a header never names a log that is not there",
    );
}

#[test]
fn an_epochs_end_is_durable_before_its_first_entry_is_overwritten() {
    leaving_out(
        |ignored| counted_life(false, ignored),
        (Part::EmptyEntry, Part::EmptyEntry),
        "until then every Tail is the first entry",
    );
}

#[test]
fn pages_are_in_place_before_their_entries_go() {
    leaving_out(|ignored| counted_life(false, ignored), (Part::Table, Part::EmptyEntry), "the turn of an epoch");
    leaving_out(growing_life, (Part::Table, Part::Header), "closing");
}

#[test]
fn entries_are_durable_before_their_pages_are_written_in_place() {
    leaving_out(growing_life, (Part::Block, Part::Table), "the table does not name what the file does not have");
}

#[test]
fn staged_data_is_durable_before_its_entry() {
    leaving_out(
        |ignored| counted_life(true, ignored),
        (Part::Block, Part::Entry),
        "a child shows the parent or the data",
    );
}

#[test]
fn a_copy_is_durable_before_its_entry() {
    // Without a parent no other data is flushed before an entry.
    leaving_out(|ignored| counted_life(false, ignored), (Part::Block, Part::Entry), "a block that moves");
}

#[test]
fn an_entry_that_gives_space_up_is_durable_before_the_space_is_zeroed() {
    leaving_out(
        |ignored| counted_life(false, ignored),
        (Part::Entry, Part::Zeros),
        "a block that is still mapped is not zeroed",
    );
}

#[test]
fn zeros_are_durable_before_the_space_is_used_again() {
    leaving_out(
        |ignored| counted_life(false, ignored),
        (Part::Zeros, Part::Entry),
        "old bytes do not show up in the next block",
    );
}

/// The tail is cut behind the turn of an epoch, whose flushes keep it from being promised: cuts around it lose nothing.
#[test]
fn the_log_does_not_promise_the_tail_that_is_cut() {
    let whole = counted_life(false, None);
    let by_parts = flushes_of(&whole);
    let (_, place) = by_parts[&(Part::Header, Part::Size)][0];
    cut_behind(&whole, place, 48).expect("nothing is lost");
}

/// The process dies right after a write was acknowledged.
#[test]
fn an_entry_has_left_the_process_before_its_write_is_acknowledged() {
    for child in [false, true] {
        let outcome = [Misdeed::None, Misdeed::LateEntry].map(|misdeed| {
            let (mut host, mut guest) = new_host(child, 40, None);
            guest.write(&mut host, 0, 1);
            host.misdeed = misdeed;
            // Several entries, so that the last one has a companion that another operation does not hide.
            guest.write(&mut host, 5 * BLOCK + 3, 2);
            let history = History { file: host.file.clone(), guest };
            let mut instants = Instants::of(&history);
            instants.go_to(history.file.history.len());
            instants.kill()
        });
        assert_eq!(outcome[0], Ok(()));
        if child {
            println!("{}", outcome[1].as_ref().expect_err("a late entry loses an acknowledged write"));
        }
    }
}

/// A write that planned before its block was unmapped lands late: in space that nobody has, or, without the barrier, in
/// somebody else's block.
#[test]
fn space_is_not_used_again_while_somebody_may_still_write_it() {
    let live = |misdeed| {
        let (mut host, mut guest) = new_host(false, 40, None);
        for block in 0..4 {
            guest.write(&mut host, block * BLOCK, 1);
        }
        host.settle();
        host.misdeed = misdeed;
        let late = guest.begin(&mut host, BLOCK + 9, 2);
        guest.unmap(&mut host, 1, 1);
        host.settle();
        guest.write(&mut host, 20 * BLOCK + 8, 4);
        guest.write(&mut host, 21 * BLOCK + 8, 4);
        guest.end(&mut host, late);
        host.settle();
        guest.write(&mut host, 22 * BLOCK, 1);
        guest.flush(&mut host);
        let history = History { file: host.file, guest };
        let mut instants = Instants::of(&history);
        instants.go_to(history.file.history.len());
        instants.lose_power(0)
    };
    live(Misdeed::None).expect("nothing is lost");
    println!("{}", live(Misdeed::NoBarrier).expect_err("without the barrier another block is written"));
}

/// A write that planned before its block began to move lands before it is copied, or, without the barrier, is lost.
#[test]
fn a_block_is_copied_when_nobody_writes_it_any_more() {
    for child in [false, true] {
        let live = |misdeed| {
            let (mut host, mut guest) = new_host(child, 40, None);
            for block in 0..6 {
                guest.write(&mut host, block * BLOCK, 1);
            }
            guest.unmap(&mut host, 0, 2);
            host.settle();
            host.misdeed = misdeed;
            // One write is on its way into each block that may move: over what is visible, so that no commit follows.
            let late: Vec<_> = (2..6).map(|block| guest.begin(&mut host, block * BLOCK, 1)).collect();
            for _ in 0..60 {
                host.begin_relocate();
                host.settle();
            }
            for late in late {
                guest.end(&mut host, late);
                host.settle();
            }
            while host.relocate() {}
            guest.flush(&mut host);
            let copies = host.asked_for.iter().filter(|name| **name == "copy").count();
            let history = History { file: host.file, guest };
            let mut instants = Instants::of(&history);
            instants.go_to(history.file.history.len());
            (instants.lose_power(0), copies)
        };
        let (kept, copies) = live(Misdeed::None);
        kept.expect("nothing is lost");
        assert!(copies >= 2, "{copies}");
        println!("{}", live(Misdeed::NoBarrier).0.expect_err("without the barrier a write is lost"));
    }
}
