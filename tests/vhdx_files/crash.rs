//! The power is cut at every write of a change: what was not flushed may be there, be lost or be garbage, sector by
//! sector. Afterwards the file is sound, and the disk is the old one or the new one in every respect, never between.

use std::sync::Arc;

use lunaring::vhdx::format::Guid;
use lunaring::vhdx::{
    CheckReport, DiskKind, LogFacts, ParentLocator, ResizeOptions, Severity, check, delete_item, get_item, list_items,
    repair, resize, set_item, set_parent,
};

use crate::hand::{
    child, child_options, dynamic, locator, made, put_block, put_sector, read_sector, resize_options, samples, source,
};
use crate::vhdx_support::{Change, MIB, Random, RecordedFile, SECTOR, SparseFile, create_options};

/// Everything that a user, a guest or a child can see of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
struct View {
    size_bytes: u64,
    content: Vec<u8>,
    items: Vec<(Guid, Vec<u8>)>,
    parent: Option<ParentLocator>,
    data_write_guid: Guid,
}

/// A change, and how big the parent is that shows through.
struct Scenario<'a> {
    name: &'a str,
    start: SparseFile,
    parent_bytes: u64,
    change: &'a dyn Fn(&mut RecordedFile),
}

/// Open what is left: `Err` says what is wrong with it.
fn view(mut file: SparseFile, parent_bytes: u64) -> Result<(View, CheckReport), String> {
    let before = check(&mut file).map_err(|error| error.to_string())?;
    if !before.is_sound() {
        return Err(format!("{:?}", before.findings));
    }
    let repaired = repair(&mut file, source(9)).map_err(|error| error.to_string())?;
    if let Some(left) = repaired.after.findings.iter().find(|finding| finding.severity > Severity::Note) {
        return Err(format!("not mended: {left}"));
    }
    let report = repaired.after;
    let shape = report.geometry.ok_or("no geometry")?;
    let content = samples(&shape).into_iter().map(|at| read_sector(&file, &shape, at, parent_bytes)).collect();
    let ids = list_items(&mut file).map_err(|error| error.to_string())?;
    let value = |id| get_item(&mut file.clone(), id).map_err(|error| error.to_string())?.ok_or("no value".to_owned());
    let items = ids.into_iter().map(|item| Ok((item.id, value(item.id)?))).collect::<Result<_, String>>()?;
    let data_write_guid = report.header().ok_or("no header")?.data_write_guid;
    let view =
        View { size_bytes: shape.disk_size_bytes, content, items, parent: report.parent.clone(), data_write_guid };
    Ok((view, before))
}

/// What a power cut leaves: of what was not flushed, each sector is there, lost or garbage.
fn left_behind(durable: &SparseFile, changes: &[Change], random: &mut Random) -> SparseFile {
    let mut file = durable.clone();
    let (odds, garbage) = (random.below(5), random.below(3) == 0);
    for change in changes {
        match change {
            Change::Write { offset, bytes } => {
                for (at, sector) in (*offset..).step_by(SECTOR as usize).zip(bytes.chunks(SECTOR as usize)) {
                    if at + sector.len() as u64 > file.len || random.below(4) >= odds {
                        continue;
                    }
                    if garbage && random.below(4) == 0 {
                        file.write(at, &vec![random.next() as u8 | 1; sector.len()]);
                    } else {
                        file.write(at, sector);
                    }
                }
            }
            Change::SetLen { len } if random.below(4) < odds => file.set_len(*len),
            Change::Zero { .. } => unreachable!("offline changes write and set the size"),
            _ => {}
        }
    }
    file
}

fn run(scenario: &Scenario<'_>, flush_ignored: Option<usize>) -> RecordedFile {
    let mut recorded = RecordedFile::new(scenario.start.clone());
    recorded.flush_ignored = flush_ignored;
    (scenario.change)(&mut recorded);
    recorded
}

/// Cut at every instant; the first violation. Counts how often the old and the new disk were found.
fn cut_everywhere(scenario: &Scenario<'_>, recorded: &RecordedFile, rounds: u64) -> Result<[usize; 2], String> {
    let (old, _) = view(scenario.start.clone(), scenario.parent_bytes)?;
    let (new, _) = view(recorded.now.clone(), scenario.parent_bytes)?;
    let (mut durable, mut from, mut found) = (scenario.start.clone(), 0, [0; 2]);
    for cut in 0..=recorded.history.len() {
        if cut > 0 && matches!(recorded.history[cut - 1], Change::Flush) {
            durable = recorded.cut(&durable, from, cut, None);
            from = cut;
        }
        for round in 0..rounds {
            let mut random = Random((cut as u64) << 16 | round);
            let left = left_behind(&durable, &recorded.history[from..cut], &mut random);
            let what = |what: String| format!("{} cut at {cut}/{round}: {what}", scenario.name);
            let (seen, report) = view(left, scenario.parent_bytes).map_err(what)?;
            let is_new = seen == new;
            if !is_new && seen != old {
                return Err(what(format!("neither old nor new: {seen:?}")));
            }
            found[usize::from(is_new)] += 1;
            if cut == recorded.history.len() {
                if !is_new {
                    return Err(what("the change was reported and is not there".into()));
                }
                if report.count(Severity::Warning) != 0 {
                    return Err(what(format!("not tidy: {:?}", report.findings)));
                }
            }
        }
        let (seen, _) = view(recorded.cut(&durable, from, cut, None), scenario.parent_bytes)?;
        if seen != old && seen != new {
            return Err(format!("{} killed at {cut}: neither old nor new", scenario.name));
        }
    }
    Ok(found)
}

/// Every instant is old or new; the same change succeeds on what is left; and without any one of the flushes something
/// is lost.
fn prove(scenario: &Scenario<'_>, rounds: u64, flushes: usize) {
    let recorded = run(scenario, None);
    assert_eq!(recorded.flushes, flushes, "{}", scenario.name);
    let found = cut_everywhere(scenario, &recorded, rounds).unwrap_or_else(|what| panic!("{what}"));
    assert!(found.iter().all(|count| *count > 0), "{}: both sides of the instant are seen: {found:?}", scenario.name);
    for flush in 0..flushes {
        let faulty = run(scenario, Some(flush));
        let noticed = (1..8).find_map(|more| cut_everywhere(scenario, &faulty, rounds * more).err());
        let noticed = noticed.unwrap_or_else(|| panic!("{}: flush {flush} holds nothing", scenario.name));
        println!("{}: without flush {flush}: {}", scenario.name, noticed.chars().take(160).collect::<String>());
    }
    // Repeating what was cut.
    for cut in (0..recorded.history.len()).step_by(3) {
        let mut random = Random(cut as u64);
        let from = recorded.history[..cut].iter().rposition(|change| matches!(change, Change::Flush));
        let from = from.map_or(0, |at| at + 1);
        let durable = recorded.cut(&scenario.start, 0, from, None);
        let left = left_behind(&durable, &recorded.history[from..cut], &mut random);
        let mut again = RecordedFile::new(left);
        (scenario.change)(&mut again);
        let (seen, _) = view(again.now, scenario.parent_bytes).expect("sound");
        let (new, _) = view(recorded.now.clone(), scenario.parent_bytes).expect("sound");
        assert_eq!((seen.size_bytes, seen.items), (new.size_bytes, new.items), "{} repeated", scenario.name);
        assert_eq!((seen.content, seen.parent), (new.content, new.parent), "{} repeated", scenario.name);
    }
}

fn to(size_bytes: u64, parent_size_bytes: Option<u64>, allow_cut: bool) -> impl Fn(&mut RecordedFile) {
    move |file| {
        let options = ResizeOptions { allow_cut, parent_size_bytes, ..resize_options(file.history.len() as u64) };
        resize(file, size_bytes, options).expect("resizes");
    }
}

/// A disk of 5.5 MiB whose last block is present and has old bytes behind the disk's end.
fn half_block(mut file: SparseFile, state: u64) -> SparseFile {
    let at = put_block(&mut file, 1, 6);
    file.write(at, &[0x11; MIB as usize]);
    let at = put_block(&mut file, 5, state);
    file.write(at + MIB / 2, &[0xee; (MIB / 2) as usize]);
    for sector in [5 * 2048, 5 * 2048 + 700, 5 * 2048 + 1023] {
        put_sector(&mut file, sector, 0x22);
    }
    file
}

#[test]
fn growing_is_old_or_new() {
    let size = 5 * MIB + MIB / 2;
    let change = to(9 * MIB, None, false);
    let dirty = half_block(dynamic(size), 6);
    prove(&Scenario { name: "grow", start: dirty, parent_bytes: 0, change: &change }, 6, 6);
    for state in [6, 7] {
        let start = half_block(made(&child_options(size, 4 * MIB, MIB)), state);
        let name = if state == 6 { "grow a child" } else { "grow a child with a partial end" };
        prove(&Scenario { name, start, parent_bytes: 12 * MIB, change: &change }, 6, 6);
    }
    // An absent last block whose hidden half is the parent's.
    let start = made(&child_options(size, 4 * MIB, MIB));
    prove(&Scenario { name: "cover the parent", start, parent_bytes: 12 * MIB, change: &change }, 6, 6);
}

#[test]
fn moving_the_table_is_old_or_new() {
    // 131072 entries fill the region of 1 MiB; with 1 MiB blocks that is a disk just short of 128 GiB.
    let (size, larger) = (127 << 30, 200 << 30);
    let mut start = dynamic(size);
    let at = put_block(&mut start, 3, 6);
    start.write(at, &[0x33; 4096]);
    let change = |file: &mut RecordedFile| {
        let moved = resize(file, larger, resize_options(3)).expect("resizes");
        assert_ne!(moved.geometry.bat_offset_bytes, 3 * MIB);
    };
    let recorded = {
        let mut recorded = RecordedFile::new(start.clone());
        change(&mut recorded);
        recorded
    };
    // The content of so large a disk is looked at where it is.
    let (mut durable, mut from, mut sizes) = (start, 0, [0; 2]);
    for cut in 0..=recorded.history.len() {
        if cut > 0 && matches!(recorded.history[cut - 1], Change::Flush) {
            durable = recorded.cut(&durable, from, cut, None);
            from = cut;
        }
        for round in 0..12 {
            let mut random = Random((cut as u64) << 16 | round);
            let mut left = left_behind(&durable, &recorded.history[from..cut], &mut random);
            let repaired = repair(&mut left, source(1)).expect("repairs");
            assert!(repaired.after.is_sound(), "{:?}", repaired.after.findings);
            let shape = repaired.after.geometry.expect("sound");
            assert!([size, larger].contains(&shape.disk_size_bytes));
            assert_eq!(read_sector(&left, &shape, 3 * 2048, 0), 0x33);
            assert_eq!(read_sector(&left, &shape, shape.disk_size_bytes / SECTOR - 1, 0), 0);
            sizes[usize::from(shape.disk_size_bytes == larger)] += 1;
        }
    }
    assert!(sizes.iter().all(|count| *count > 20), "{sizes:?}");
}

#[test]
fn growing_a_fixed_disk_is_old_or_new() {
    let start = made(&create_options(4 * MIB, DiskKind::Fixed, MIB));
    let change = to(7 * MIB, None, false);
    prove(&Scenario { name: "grow a fixed disk", start, parent_bytes: 0, change: &change }, 4, 6);
}

#[test]
fn shrinking_is_old_or_new() {
    let mut start = dynamic(9 * MIB);
    for block in [0, 4, 8] {
        let at = put_block(&mut start, block, 6);
        start.write(at, &[block as u8 + 1; 8192]);
    }
    let change = to(4 * MIB + 4096, None, true);
    // The last two are behind the change: the second header, and the end of the file that is given back.
    prove_all_but(&Scenario { name: "shrink", start, parent_bytes: 0, change: &change }, 5, 7, &[5, 6]);
}

/// As `prove`, but these flushes hold only what no reader can see.
fn prove_all_but(scenario: &Scenario<'_>, rounds: u64, flushes: usize, tidy: &[usize]) {
    let recorded = run(scenario, None);
    assert_eq!(recorded.flushes, flushes, "{}", scenario.name);
    cut_everywhere(scenario, &recorded, rounds).unwrap_or_else(|what| panic!("{what}"));
    for flush in (0..flushes).filter(|flush| !tidy.contains(flush)) {
        let faulty = run(scenario, Some(flush));
        let noticed = (1..8).find_map(|more| cut_everywhere(scenario, &faulty, rounds * more).err());
        assert!(noticed.is_some(), "{}: flush {flush} holds nothing", scenario.name);
    }
}

const ITEM: Guid = Guid([0x77; 16]);
const LONG: Guid = Guid([0x78; 16]);

#[test]
fn items_are_old_or_new() {
    let mut start = dynamic(4 * MIB);
    set_item(&mut start, source(1), ITEM, false, b"before").expect("sets");
    let replace = |file: &mut RecordedFile| set_item(file, source(2), ITEM, false, b"behind").expect("sets");
    prove(&Scenario { name: "replace an item", start: start.clone(), parent_bytes: 0, change: &replace }, 8, 6);
    let long = |file: &mut RecordedFile| set_item(file, source(2), LONG, true, &[0x5a; 300_000]).expect("sets");
    prove(&Scenario { name: "a long item", start: start.clone(), parent_bytes: 0, change: &long }, 2, 6);
    let delete = |file: &mut RecordedFile| match delete_item(file, source(2), ITEM) {
        Ok(()) | Err(lunaring::vhdx::EditError::NoItem { .. }) => {}
        Err(error) => panic!("{error}"),
    };
    prove(&Scenario { name: "delete an item", start: start.clone(), parent_bytes: 0, change: &delete }, 8, 6);
    // The region is full: it moves.
    set_item(&mut start, source(3), LONG, false, &[0x11; 900_000]).expect("fits");
    let moving =
        |file: &mut RecordedFile| set_item(file, source(4), Guid([1; 16]), false, &[9; 200_000]).expect("sets");
    prove(&Scenario { name: "move the metadata", start, parent_bytes: 0, change: &moving }, 2, 6);
}

#[test]
fn the_parent_is_old_or_new() {
    let mut start = child(6 * MIB);
    put_block(&mut start, 1, 7);
    put_sector(&mut start, 2048 + 77, 0x44);
    let change = |file: &mut RecordedFile| {
        let guid = check(&mut file.now).expect("read").header().expect("valid").data_write_guid;
        set_parent(file, source(5), &locator("elsewhere.vhdx")).expect("sets");
        let report = check(&mut file.now).expect("read");
        assert_eq!(report.header().map(|header| header.data_write_guid), Some(guid), "children keep their parent");
    };
    prove(&Scenario { name: "set the parent", start, parent_bytes: 6 * MIB, change: &change }, 8, 6);
}

/// The file that a change finds has a pending log: the power went when another change had just become visible.
#[test]
fn a_change_of_a_dirty_file_is_old_or_new() {
    let mut first = RecordedFile::new(half_block(dynamic(5 * MIB + MIB / 2), 6));
    to(8 * MIB, None, false)(&mut first);
    let flushes = first.history.iter().enumerate().filter(|(_, change)| matches!(change, Change::Flush));
    let (named, _) = flushes.clone().nth(2).expect("the header that names the log is durable");
    let start = first.cut(&first.start, 0, named + 1, None);
    assert!(matches!(check(&mut start.clone()).expect("read").log, LogFacts::Pending(_)));
    let change = |file: &mut RecordedFile| set_item(file, source(6), ITEM, false, b"behind the replay").expect("sets");
    // The replay's own second headers are durable with the flush behind them at the latest.
    prove_all_but(&Scenario { name: "dirty", start, parent_bytes: 0, change: &change }, 5, 10, &[1, 4]);
}

/// A repair is cut, and made again: what the disk shows never changes, and in the end nothing is wrong.
#[test]
fn a_repair_that_is_cut_is_repeated() {
    for copy in 0..2 {
        let good = half_block(dynamic(5 * MIB + MIB / 2), 6);
        let (shape, mut start) = (check(&mut good.clone()).expect("read").geometry.expect("sound"), good.clone());
        start.write([64 << 10, 128 << 10][copy], b"torn");
        start.write([192 << 10, 256 << 10][copy], b"torn");
        start.write(3 * MIB + 16, &(MIB | 2).to_le_bytes());
        start.set_len(good.len + 512);
        let mut recorded = RecordedFile::new(start.clone());
        assert_eq!(repair(&mut recorded, source(1)).expect("repairs").done.len(), 4);
        let (mut durable, mut from) = (start, 0);
        for cut in 0..=recorded.history.len() {
            if cut > 0 && matches!(recorded.history[cut - 1], Change::Flush) {
                durable = recorded.cut(&durable, from, cut, None);
                from = cut;
            }
            for round in 0..24 {
                let mut random = Random((cut as u64) << 16 | round);
                let mut left = left_behind(&durable, &recorded.history[from..cut], &mut random);
                let again = repair(&mut left, source(2)).expect("repairs");
                let what = || format!("copy {copy}, cut at {cut}/{round}: {:?}", again.refused);
                assert!(again.refused.is_empty() && again.after.count(Severity::Warning) == 0, "{}", what());
                for sector in samples(&shape) {
                    assert_eq!(read_sector(&left, &shape, sector, 0), read_sector(&good, &shape, sector, 0));
                }
            }
        }
    }
}

/// A history by itself, to be sure that the hostile cut is what it says.
#[test]
fn the_cut_loses_keeps_and_spoils() {
    let start = SparseFile::from_bytes(&[1; 4096]);
    let changes = [Change::Write { offset: 0, bytes: Arc::from([2u8; 4096]) }];
    let mut seen = [0; 3];
    for seed in 0..2000 {
        let mut byte = [0];
        left_behind(&start, &changes, &mut Random(seed)).read(0, &mut byte);
        seen[match byte[0] {
            1 => 0,
            2 => 1,
            _ => 2,
        }] += 1;
    }
    assert!(seen.iter().all(|count| *count > 20), "{seen:?}");
}
