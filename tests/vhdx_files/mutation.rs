//! Everything that reads or changes a file, on thousands of mutated files: no panic, no memory or time without bound,
//! and what a change leaves behind is as sound as what it was given.

use lunaring::vhdx::{
    Access, OpenError, ResizeOptions, check, delete_item, get_item, inherited_items, list_items, repair, resize,
    set_item, set_parent,
};

use crate::check::reseal;
use crate::hand::{child, dynamic, locator, put_block, put_sector, resize_options, source};
use crate::vhdx_support::{MIB, Random, RecordedFile, SparseFile, open_with};

const ITEM: lunaring::vhdx::Guid = lunaring::vhdx::Guid([0x42; 16]);

fn sources() -> [SparseFile; 2] {
    let mut plain = dynamic(9 * MIB + 512);
    let mut differencing = child(9 * MIB);
    for file in [&mut plain, &mut differencing] {
        set_item(file, source(1), ITEM, true, b"a value").expect("sets");
        put_block(file, 2, 6);
    }
    put_block(&mut differencing, 1, 7);
    put_sector(&mut differencing, 2048 + 5, 9);
    [plain, differencing]
}

fn mutate(file: &mut SparseFile, random: &mut Random) {
    for _ in 0..1 + random.below(3) {
        let (start, len) = match random.below(8) {
            0 => ((1 + random.below(2)) * (64 << 10), 88),
            1 => ((3 + random.below(2)) * (64 << 10), 96),
            2 | 3 => (2 * MIB, 32 * 8),
            4 => (2 * MIB + (64 << 10), 400),
            5 => (3 * MIB, 88),
            6 => (3 * MIB + 4096 * 8, 8),
            _ => (MIB, file.len - MIB),
        };
        let values = [0, 1, 2, 3, 5, 6, 7, 0x10, 0x7f, 0x80, 0xff, random.next() as u8];
        let value = values[random.below(12) as usize];
        let run = [1, 1, 2, 4, 8, 16][random.below(6) as usize];
        let at = start + random.below(len);
        if at + run <= file.len {
            file.write(at, &vec![value; run as usize]);
        }
    }
    if random.below(12) == 0 {
        let len = random.below(file.len + 2 * MIB);
        file.set_len(len);
    }
    if random.below(8) != 0 && file.len > 3 * MIB {
        for (at, len) in [(1, 4096), (2, 4096), (3, 64 << 10), (4, 64 << 10)] {
            reseal(file, at * (64 << 10), len);
        }
    }
}

/// Every change of one file: refused and nothing written, or done and sound.
fn exercise(file: &SparseFile, random: &mut Random) -> bool {
    let report = check(&mut file.clone()).expect("a file in memory can be read");
    assert!(report.findings.len() < 1000);
    match open_with(&mut file.clone(), Access::ReadOnly, 1) {
        Ok(_) => assert!(report.is_sound(), "opens, but: {:?}", report.findings),
        Err(OpenError::ReadOnlyReplay { .. }) => {}
        Err(error) => assert!(!report.is_sound(), "{error}, but a check finds {:?}", report.findings),
    }
    let _ = (list_items(&mut file.clone()), get_item(&mut file.clone(), ITEM), inherited_items(&mut file.clone()));
    let size = [3 * MIB, 9 * MIB, 14 * MIB + 512, 300 << 30, random.below(1 << 34)][random.below(5) as usize];
    let options = ResizeOptions { allow_cut: random.below(2) == 0, ..resize_options(1) };
    let mut recorded = RecordedFile::new(file.clone());
    let done = match random.below(5) {
        0 => resize(&mut recorded, size, options).map(|_| ()),
        1 => set_item(&mut recorded, source(2), ITEM, false, &vec![7; random.below(300_000) as usize]),
        2 => delete_item(&mut recorded, source(2), ITEM),
        3 => set_parent(&mut recorded, source(2), &locator("another")),
        _ => repair(&mut recorded, source(2)).map(|_| ()),
    };
    let changed = !recorded.history.is_empty();
    if !report.is_sound() && report.count(lunaring::vhdx::Severity::Error) > 1 {
        assert!(!changed || done.is_ok(), "a damaged file is not changed");
    }
    if changed && report.is_sound() {
        let after = check(&mut recorded.now).expect("read");
        assert!(after.is_sound(), "{done:?} left {:?}\nof {:?}", after.findings, report.findings);
    }
    done.is_ok()
}

#[test]
fn mutated_files_never_panic_and_never_get_worse() {
    let sources = sources();
    let done: usize = std::thread::scope(|scope| {
        let halves = [0u64, 1].map(|half| {
            let sources = &sources;
            scope.spawn(move || {
                let run = |seed| {
                    let mut random = Random(seed);
                    let mut file = sources[random.below(2) as usize].clone();
                    mutate(&mut file, &mut random);
                    usize::from(exercise(&file, &mut random))
                };
                (half..6_000).step_by(2).map(run).sum::<usize>()
            })
        });
        halves.into_iter().map(|half| half.join().expect("no mutation panics")).sum()
    });
    println!("{done} of 6000 mutated files could be changed");
    assert!((600..5_400).contains(&done), "the mutations break some and leave some: {done}");
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("peak resident size");
    let peak_kib: u64 = peak.trim().trim_end_matches(" kB").parse().expect("a number");
    assert!(peak_kib < 1 << 20, "files of 12 MiB never need this much memory: {peak_kib} KiB");
}
