//! Nothing that stands in a file makes an engine panic: files of all kinds with random damage are opened and, where
//! that is not refused, read, written, trimmed, compacted and closed.

mod vhdx_support;

use lunaring::vhdx::{Access, DiskKind, NewParent, ParentLocator, VhdxParent, create, format::Guid};
use vhdx_support::guest::parent_of;
use vhdx_support::{Host, MIB, Random, RecordedFile, SparseFile, create_options, open_with};

const SIZE: u64 = 12 * MIB - 512;

/// A disk that has lived: blocks in all states, sector bitmaps, free space; closed or with its log pending.
fn lived(child: bool, closed: bool) -> SparseFile {
    let mut options = create_options(SIZE, DiskKind::Dynamic, MIB);
    let locator = ParentLocator::Vhdx(VhdxParent {
        linkage: Guid([7; 16]),
        linkage2: None,
        relative_path: Some("parent.vhdx".into()),
        volume_path: None,
        absolute_win32_path: None,
        others: Vec::new(),
    });
    options.parent =
        child.then(|| NewParent { locator, size_bytes: SIZE, logical_sector_bytes: 512, items: Vec::new() });
    let mut start = SparseFile::default();
    create(&options, &mut start).expect("creates");
    let mut host = Host::open_over(RecordedFile::new(start), child.then(|| parent_of(SIZE)), 1);
    for block in [0, 1, 2, 5, 6, 11] {
        host.write(block * MIB + 4096 * block, &[block as u8 + 1; 4096]).expect("writes");
    }
    host.write(7 * MIB, &vec![8; MIB as usize]).expect("writes");
    host.unmap(MIB, 2 * MIB).expect("unmaps");
    host.settle();
    if closed { host.close().0.now } else { host.file.now }
}

/// Damage where it may matter: headers, regions, the log, the metadata, the table, the bitmap.
fn damage(file: &mut SparseFile, random: &mut Random) {
    for _ in 0..1 + random.below(3) {
        let area = [64 << 10, 128 << 10, 192 << 10, MIB, 2 * MIB, 2 * MIB + (64 << 10), 3 * MIB, 3 * MIB, 3 * MIB];
        let reach = if random.below(4) == 0 { 8192 } else { 128 };
        let at = area[random.below(area.len() as u64) as usize] + random.below(reach);
        let mut word = [0; 8];
        file.read(at, &mut word);
        let value = match random.below(5) {
            0 => random.next(),
            1 => u64::from_le_bytes(word) ^ 1 << random.below(64),
            2 => random.below(20) << 20 | random.below(8),
            3 => random.below(8),
            _ => u64::MAX << random.below(64),
        };
        let len = 1 + random.below(8) as usize;
        file.write(at, &value.to_le_bytes()[..len]);
        for (start, len) in [(64 << 10, 4096), (128 << 10, 4096), (192 << 10, 65536)] {
            if (start..start + len as u64).contains(&at) && random.below(4) != 0 {
                let mut content = vec![0; len];
                file.read(start, &mut content);
                content[4..8].fill(0);
                file.write(start + 4, &crc32c::crc32c(&content).to_le_bytes());
            }
        }
    }
    if random.below(20) == 0 {
        let len = file.len - random.below(file.len);
        file.set_len(len);
    }
}

/// Use a disk that has opened in every way. Failures are fine; panics are not.
fn use_it(file: SparseFile, random: &mut Random) {
    let mut recorded = RecordedFile::new(file);
    let Ok(disk) = open_with(&mut recorded, Access::ReadWrite, 1) else { return };
    let parent = disk.geometry.has_parent.then(|| parent_of(SIZE));
    let size = disk.geometry.disk_size_bytes;
    let sector = u64::from(disk.geometry.logical_sector_bytes);
    if size > 1 << 30 || disk.geometry.block_size_bytes > 4 << 20 || recorded.now.len > 1 << 30 {
        return;
    }
    let mut host = Host::serve(RecordedFile::new(recorded.now), disk, parent, 1);
    let block = u64::from(host.geometry.block_size_bytes);
    for _ in 0..6 {
        let offset = random.below(size / sector) * sector;
        let _ = host.write(offset, &vec![0x42; sector as usize]);
        let mut bytes = vec![0; sector as usize];
        host.read(offset, &mut bytes);
        let first = random.below(size.div_ceil(block));
        let _ = host.unmap(first * block, block.min(size - first * block));
        host.begin_relocate();
        host.settle();
    }
    let (file, _) = host.close();
    let _ = open_with(&mut file.now.clone(), Access::ReadOnly, 1).expect("what we wrote opens");
}

#[test]
fn damaged_files_never_panic_an_engine() {
    let sources =
        [(false, false), (false, true), (true, false), (true, true)].map(|(child, closed)| lived(child, closed));
    std::thread::scope(|scope| {
        for half in 0..2u64 {
            let sources = &sources;
            scope.spawn(move || {
                for seed in (half..6000).step_by(2) {
                    let mut random = Random(seed);
                    let mut file = sources[random.below(4) as usize].clone();
                    damage(&mut file, &mut random);
                    let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| use_it(file, &mut random)));
                    assert!(told.is_ok(), "seed {seed}");
                }
            });
        }
    });
}
