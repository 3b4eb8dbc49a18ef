//! VHD files by the rules: what is refused and why, what is accepted with a warning, what a check lists, and that no
//! bytes whatever end in a panic. Images made by Windows, Virtual PC, Disk2vhd and QEMU have the content that their
//! manifest names.
//!
//! The images need the collection: `LUNARING_IMAGES` is a directory with `manifest.json` and the `.xz` files it lists,
//! and the `xz` program unpacks them. Without the variable that test has nothing to check, and says so.

mod vhd_support;
mod vhdx_support;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lunaring::blocks::{Engine as _, Event, IoFailure, MetadataIoKind, Ticket};
use lunaring::vhd::format::{DynamicHeader, FOOTER_LEN, Footer, HEADER_LEN};
use lunaring::vhd::{
    Access, ChangeError, Kind, NewKind, OpenError, OpenErrorKind, Repaired, Severity, Warning, check, describe, repair,
    resize, set_parent,
};
use serde_json::Value;
use sha2::{Digest, Sha256};
use uuid::Uuid;
use vhd_support::{Host, LIMITS, chain_of, new_disk, open_with, options, parent_named, read_chain};
use vhdx_support::{HostFile, MIB, Random, RecordedFile, SECTOR, SparseFile};
use zerocopy::{FromBytes, IntoBytes};

const BLOCK: u64 = 512 << 10;

fn footer_at(file: &SparseFile, offset: u64) -> Footer {
    let mut bytes = [0; FOOTER_LEN as usize];
    file.read(offset, &mut bytes);
    Footer::read_from_bytes(&bytes).expect("a footer's length")
}

/// Change both footers, and seal them.
fn change_footers(file: &mut SparseFile, change: impl Fn(&mut Footer)) {
    for offset in [0, file.len - FOOTER_LEN] {
        let mut footer = footer_at(file, offset);
        change(&mut footer);
        file.write(offset, footer.sealed().as_bytes());
    }
}

fn change_header(file: &mut SparseFile, change: impl Fn(&mut DynamicHeader)) {
    let mut bytes = [0; HEADER_LEN as usize];
    file.read(FOOTER_LEN, &mut bytes);
    let mut header = DynamicHeader::read_from_bytes(&bytes).expect("a header's length");
    change(&mut header);
    file.write(FOOTER_LEN, header.sealed().as_bytes());
}

/// A dynamic disk of 8 blocks, three of them written.
fn sample() -> SparseFile {
    let mut host = Host::open(RecordedFile::new(new_disk(&options(8 * BLOCK, NewKind::Dynamic, BLOCK))), None, 1);
    for block in [5, 0, 3] {
        host.write(block * BLOCK + 512, &[block as u8 + 1; 1024]).expect("writes");
    }
    let (file, closed) = host.close();
    assert_eq!(closed, Event::Closed(Ok(())));
    file.now
}

fn refusal(file: &SparseFile) -> OpenError {
    let mut file = file.clone();
    let error = open_with(&mut file, Access::ReadWrite).err().expect("it is refused");
    assert!(!error.to_string().is_empty() && !error.advice().is_empty());
    // A check lists it too, as something that cannot be used.
    let report = check(&mut file).expect("readable");
    assert!(!report.is_sound() && !report.findings.is_empty(), "{error}");
    error
}

fn warnings(file: &SparseFile) -> Vec<Warning> {
    open_with(&mut file.clone(), Access::ReadWrite).expect("opens").warnings
}

/// Every wrong thing is refused with its rule.
#[test]
fn broken_files_are_refused_with_the_rule() {
    let changed = |change: &dyn Fn(&mut SparseFile)| {
        let mut file = sample();
        change(&mut file);
        refusal(&file)
    };
    let entry = |file: &mut SparseFile, block: u64, sector: u32| file.write(1536 + block * 4, &sector.to_be_bytes());
    assert_eq!(changed(&|f| *f = SparseFile::default()), OpenError::NotVhd);
    assert_eq!(changed(&|f| *f = SparseFile { len: MIB, ..SparseFile::default() }), OpenError::NotVhd);
    let damaged = changed(&|f| {
        f.write(20, &[9]);
        f.write(f.len - 400, &[9]);
    });
    assert!(matches!(damaged, OpenError::FooterChecksum { .. }), "{damaged}");
    let version = changed(&|f| change_footers(f, |footer| footer.version = 0x0002_0000.into()));
    assert_eq!((version.kind(), version), (OpenErrorKind::Unsupported, OpenError::Version { version: 0x0002_0000 }));
    let kind = changed(&|f| change_footers(f, |footer| footer.disk_type = 5.into()));
    assert_eq!(kind, OpenError::DiskType { disk_type: 5 });
    for size in [0, 513, (2040 << 30) + 512, u64::MAX] {
        let error = changed(&|f| change_footers(f, |footer| footer.current_size = size.into()));
        assert!(matches!(error, OpenError::Size { size_bytes, .. } if size_bytes == size), "{error}");
    }
    for offset in [0, 100, 700, 1 << 40, u64::MAX] {
        let error = changed(&|f| change_footers(f, |footer| footer.data_offset = offset.into()));
        assert!(matches!(error, OpenError::Header { offset_bytes, .. } if offset_bytes == offset), "{error}");
    }
    assert!(matches!(changed(&|f| f.write(600, &[1])), OpenError::Header { .. }));
    assert!(matches!(changed(&|f| change_header(f, |h| h.version = 0x0002_0000.into())), OpenError::Header { .. }));
    for bytes in [0, 512, 3 << 20, 1 << 30, u32::MAX] {
        let error = changed(&|f| change_header(f, |h| h.block_size = bytes.into()));
        assert_eq!(error, OpenError::BlockSize { block_bytes: bytes });
    }
    let small = changed(&|f| change_header(f, |h| h.max_table_entries = 7.into()));
    assert_eq!(small, OpenError::TableTooSmall { entries: 7, needed: 8 });
    for offset in [0, 1537, 1 << 40, u64::MAX, u64::MAX - 511] {
        let error = changed(&|f| change_header(f, |h| h.table_offset = offset.into()));
        assert!(matches!(error, OpenError::TablePlace { .. }), "{offset}: {error}");
    }
    assert!(matches!(changed(&|f| change_header(f, |h| h.table_offset = 1024.into())), OpenError::Overlap { .. }));
    let outside = changed(&|f| entry(f, 1, 0x7fff_ffff));
    assert!(matches!(outside, OpenError::Block { block: 1, entry_offset_bytes: 1540, .. }), "{outside}");
    assert!(matches!(changed(&|f| entry(f, 1, 0)), OpenError::Overlap { .. }));
    assert!(matches!(changed(&|f| entry(f, 1, 3)), OpenError::Overlap { .. }));
    // Two blocks at one place, and two that share one sector.
    let first = u32::from_be_bytes({
        let mut bytes = [0; 4];
        sample().read(1536 + 5 * 4, &mut bytes);
        bytes
    });
    for sector in [first, first + 1, first - 1, first + 1024] {
        let error = changed(&|f| entry(f, 1, sector));
        assert!(matches!(error, OpenError::Overlap { .. }), "{sector}: {error}");
    }
    let short = changed(&|f| {
        let len = f.len - BLOCK;
        f.set_len(len);
    });
    assert!(matches!(short, OpenError::Block { .. }), "{short}");
}

#[test]
fn a_fixed_disk_must_fit_its_file() {
    let file = new_disk(&options(MIB, NewKind::Fixed, BLOCK));
    let disk = open_with(&mut file.clone(), Access::ReadWrite).expect("opens");
    assert!(disk.kind == Kind::Fixed && disk.map.is_none() && disk.engine.is_none() && disk.shape.size_bytes == MIB);
    let mut large = file.clone();
    let mut footer = footer_at(&file, MIB);
    footer.current_size = (2 * MIB).into();
    large.write(MIB, footer.sealed().as_bytes());
    assert_eq!(refusal(&large), OpenError::FixedTooShort { size_bytes: 2 * MIB, available_bytes: MIB });
    // Without its footer nothing says that it is one.
    let mut cut = file.clone();
    cut.set_len(MIB);
    assert_eq!(refusal(&cut), OpenError::NotVhd);
}

/// Files that are odd but whole, and what a session makes of them.
#[test]
fn oddities_are_accepted_and_mended() {
    let whole = sample();
    assert_eq!(warnings(&whole), []);
    let end = whole.len - FOOTER_LEN;
    let with = |change: &dyn Fn(&mut SparseFile)| {
        let mut file = whole.clone();
        change(&mut file);
        file
    };
    let cases = [
        (with(&|f| f.set_len(end)), Warning::EndFooterInvalid),
        (with(&|f| f.write(end + 3, b"x")), Warning::EndFooterInvalid),
        (with(&|f| f.write(whole.len, &[0xee; 70_000])), Warning::EndFooterInvalid),
        (with(&|f| f.write(3, b"x")), Warning::FooterCopyInvalid),
        (
            with(&|f| {
                let mut footer = footer_at(f, 0);
                footer.timestamp = 7.into();
                f.write(0, footer.sealed().as_bytes());
            }),
            Warning::FootersDiffer,
        ),
    ];
    for (file, warning) in cases {
        assert_eq!(warnings(&file), std::slice::from_ref(&warning));
        let report = check(&mut file.clone()).expect("readable");
        assert_eq!((report.worst, report.is_sound()), (Some(Severity::Mendable), true), "{warning}");
        let mut repaired = file.clone();
        assert_eq!(repair(&mut repaired), Ok(Repaired::Footer));
        assert_eq!(check(&mut repaired).expect("readable").worst, None, "{warning}");
        assert_eq!(repair(&mut repaired), Ok(Repaired::Nothing));

        let mut host = Host::open(RecordedFile::new(file), None, 4);
        assert!(host.file.history.is_empty(), "opening changes nothing");
        host.write(5 * BLOCK, &[9; 512]).expect("writes");
        let (mut file, closed) = host.close();
        assert_eq!(closed, Event::Closed(Ok(())));
        assert_eq!(check(&mut file.now).expect("readable").worst, None, "{warning}");
        assert_eq!(file.now.len, whole.len);
    }
    // A footer of 511 bytes, as before 2004; in a fixed disk too.
    let old = with(&|f| f.set_len(whole.len - 1));
    assert_eq!(warnings(&old), []);
    let mut host = Host::open(RecordedFile::new(old), None, 4);
    host.write(7 * BLOCK, &[9; 512]).expect("writes");
    let file = host.close().0.now;
    assert!(file.len.is_multiple_of(512) && footer_at(&file, file.len - FOOTER_LEN).is_valid());
    let mut fixed = new_disk(&options(MIB, NewKind::Fixed, BLOCK));
    fixed.set_len(MIB + 511);
    assert_eq!(warnings(&fixed), []);
    let surplus = with(&|f| change_header(f, |h| h.max_table_entries = 128.into()));
    assert_eq!(warnings(&surplus), [Warning::TableTooLarge { entries: 128, needed: 8 }]);
    let saved = with(&|f| change_footers(f, |footer| footer.saved_state = 1));
    assert_eq!(warnings(&saved), [Warning::SavedState]);
}

/// A bit that is not set reads as zeros without a parent, whatever is stored; a write sets it.
#[test]
fn bitmaps_count_in_dynamic_disks() {
    let mut file = sample();
    let mut bytes = [0; 4];
    file.read(1536, &mut bytes);
    let bitmap = u64::from(u32::from_be_bytes(bytes)) * SECTOR;
    // Block 0 holds ones in sectors 1 and 2. The first bit is the most significant.
    file.write(bitmap, &[0b1101_1111]);
    let report = check(&mut file).expect("readable");
    assert_eq!((report.blocks_present, report.blocks_partial, report.worst), (3, 1, Some(Severity::Note)));
    let mut host = Host::open(RecordedFile::new(file), None, 2);
    let mut sectors = [9; 2048];
    host.read(0, &mut sectors);
    assert!(sectors[..512] == [0; 512] && sectors[512..1024] == [1; 512] && sectors[1024..] == [0; 1024]);
    host.write(1024, &[7; 512]).expect("writes");
    host.read(0, &mut sectors);
    assert!(sectors[512..1024] == [1; 512] && sectors[1024..1536] == [7; 512]);
    let (mut file, _) = host.close();
    assert_eq!(check(&mut file.now).expect("readable").blocks_partial, 0);
}

#[test]
fn impossible_changes_are_refused() {
    let mut file = sample();
    let before = describe(&mut file).expect("describes");
    assert_eq!((before.kind, before.size_bytes, before.block_size_bytes), (Kind::Dynamic, 8 * BLOCK, Some(BLOCK)));
    let shrink = resize(&mut file, 7 * BLOCK);
    assert_eq!(shrink, Err(ChangeError::Shrink { size_bytes: 8 * BLOCK, asked_bytes: 7 * BLOCK }));
    assert!(matches!(resize(&mut file, 8 * BLOCK + 1), Err(ChangeError::Create(_))));
    assert!(matches!(resize(&mut file, u64::MAX - 511), Err(ChangeError::Create(_))));
    assert_eq!(resize(&mut file, 8 * BLOCK), Ok(()));
    assert_eq!(set_parent(&mut file, &parent_named(Uuid::max())), Err(ChangeError::NotDifferencing));
    assert_eq!(describe(&mut file).expect("describes"), before);
}

/// What lies behind the disk's end in its last block never comes to light, and the surplus of a table is forgotten.
#[test]
fn growing_shows_zeros_only() {
    let odd = 8 * BLOCK - 100 * SECTOR;
    let mut host = Host::open(RecordedFile::new(new_disk(&options(odd, NewKind::Dynamic, BLOCK))), None, 1);
    host.write(odd - 512, &[5; 512]).expect("writes");
    let mut file = host.close().0.now;
    file.write(file.len - FOOTER_LEN - 20 * SECTOR, &[0xee; 512]);
    for (surplus, size) in [(false, 8 * BLOCK), (false, 40 * BLOCK + 512), (true, 120 * BLOCK)] {
        let mut grown = file.clone();
        if surplus {
            change_header(&mut grown, |h| h.max_table_entries = 128.into());
            grown.write(1536 + 100 * 4, &[0, 0, 0, 9]);
        }
        resize(&mut grown, size).expect("grows");
        let disk = open_with(&mut grown, Access::ReadOnly).expect("opens");
        let left = surplus.then_some(Warning::TableTooLarge { entries: 128, needed: 120 });
        assert_eq!((disk.shape.size_bytes, &disk.warnings), (size, &Vec::from_iter(left)));
        let mut content = vec![9; (size - odd) as usize];
        read_chain(&chain_of(&disk, None), &mut grown, None, odd, &mut content);
        assert!(content.iter().all(|byte| *byte == 0));
        let mut host = Host::open(RecordedFile::new(grown), None, 1);
        let mut last = [0; 512];
        host.read(odd - 512, &mut last);
        assert_eq!(last, [5; 512]);
        host.write(size - 512, &[6; 512]).expect("writes");
        assert!(check(&mut host.close().0.now).expect("readable").worst < Some(Severity::Mendable));
    }
}

/// A path to the parent has its place to itself, and that is inside the file: what is written there later would change
/// the path, or make the file one that is refused.
#[test]
fn a_path_to_the_parent_shares_its_place_with_nothing() {
    let parent = NewKind::Differencing(parent_named(Uuid::max()));
    let file = new_disk(&options(8 * BLOCK, parent, BLOCK));
    let below = SparseFile { len: 8 * BLOCK, ..SparseFile::default() };
    let mut host = Host::open(RecordedFile::new(file), Some(below), 1);
    host.write(0, &[7; 4096]).expect("writes");
    let file = host.close().0.now;
    let mut header = [0; HEADER_LEN as usize];
    file.read(FOOTER_LEN, &mut header);
    let header = DynamicHeader::read_from_bytes(&header).expect("a header's length");
    let table = header.table_offset.get();
    let mut entry = [0; 4];
    file.read(table, &mut entry);
    let block = u64::from(u32::from_be_bytes(entry)) * SECTOR;
    let end = file.len - FOOTER_LEN;
    for (offset, other) in [
        (0, "the copy of the footer"),
        (FOOTER_LEN, "the dynamic header"),
        (table, "the block allocation table"),
        (block, "block 0"),
        (block + SECTOR + BLOCK - 30, "block 0"),
        (end, "the footer"),
        (end + 500, "the footer"),
        (file.len - 1, "behind the end"),
        (u64::MAX, "behind the end"),
    ] {
        let mut file = file.clone();
        change_header(&mut file, |header| {
            header.locators[1].offset = offset.into();
            header.locators[1].length = if offset < end { 20.into() } else { 4.into() };
        });
        let refusal = refusal(&file).to_string();
        assert!(refusal.contains("parent locator 1") && refusal.contains(other), "{offset}: {refusal}");
        let report = check(&mut file).expect("readable");
        assert_eq!(report.worst, Some(Severity::Corrupt), "{offset}");
        let named = |text: &str| text.contains("parent locator 1") && text.contains(other);
        assert!(report.findings.iter().any(|finding| named(&finding.text)), "{offset}: {:?}", report.findings);
    }
}

/// Windows keeps room behind the paths to the parent, in which it lets them grow: nothing of ours goes there.
#[test]
fn room_for_paths_stays_free() {
    let parent = NewKind::Differencing(parent_named(Uuid::max()));
    let mut file = new_disk(&options(8 * BLOCK, parent, BLOCK));
    // The last path's room: 64 KiB in bytes, then in sectors.
    for space in [64 << 10, 128] {
        change_header(&mut file, |header| {
            let locator = &mut header.locators[1];
            locator.space = space.into();
            locator.offset = (1 << 20).into();
        });
        let mut footer = [0; 512];
        file.read(0, &mut footer);
        file.set_len(1 << 20);
        file.write((1 << 20) + (64 << 10), &footer);
        let mut changed = file.clone();
        set_parent(&mut changed, &parent_named(Uuid::nil())).expect("changes");
        resize(&mut changed, 2000 * BLOCK).expect("grows");
        let parent = SparseFile { len: 8 * BLOCK, ..SparseFile::default() };
        let mut host = Host::open(RecordedFile::new(file.clone()), Some(parent), 1);
        host.write(0, &[7; 4096]).expect("writes");
        for file in [changed, host.close().0.now] {
            let mut room = vec![1; 64 << 10];
            file.read(1 << 20, &mut room);
            assert!(room[44..].iter().all(|byte| *byte == 0), "space {space}");
        }
    }
}

/// A full file system refuses blocks, and everything else goes on.
#[test]
fn a_full_file_system_is_survived() {
    let start = new_disk(&options(64 * BLOCK, NewKind::Dynamic, BLOCK));
    let mut file = RecordedFile::new(start.clone());
    file.len_max = Some(start.len + 3 * (BLOCK + 4096));
    let mut host = Host::open(file, None, 1);
    for block in 0..3 {
        host.write(block * BLOCK, &[1; 512]).expect("there is room");
    }
    assert!(host.write(3 * BLOCK, &[1; 512]).is_err());
    host.write(2 * BLOCK + 512, &[2; 512]).expect("the block has space");
    host.file.len_max = None;
    host.write(3 * BLOCK, &[1; 512]).expect("there is room again");
    let (mut file, closed) = host.close();
    assert_eq!(closed, Event::Closed(Ok(())));
    assert_eq!(check(&mut file.now).expect("readable").worst, None);
}

/// An operation that fails poisons the disk, whichever it is; what was acknowledged is in the file.
#[test]
fn a_failing_device_poisons_the_disk() {
    for (has_parent, after) in (0..40).map(|step| (step % 2 == 1, step / 2)) {
        let parent = has_parent.then(|| SparseFile { len: 64 * BLOCK, ..SparseFile::default() });
        let kind = if has_parent { NewKind::Differencing(parent_named(Uuid::max())) } else { NewKind::Dynamic };
        let start = new_disk(&options(64 * BLOCK, kind, BLOCK));
        let mut host = Host::open(RecordedFile::new(start), parent.clone(), after);
        host.faults.fail_after = Some(after as usize);
        let mut written = 0;
        while written < 60 && host.write(written * BLOCK, &[7; 512]).is_ok() {
            written += 1;
        }
        if host.map.poisoned() {
            assert!(host.write(0, &[8; 512]).is_err());
            assert!(host.engine.prepare(0, 512, Ticket(1)).is_err());
        }
        let mut file = host.file.now;
        let disk = open_with(&mut file, Access::ReadOnly).expect("opens");
        for block in 0..written {
            let mut bytes = [0; 512];
            read_chain(&chain_of(&disk, parent.as_ref()), &mut file, parent.as_ref(), block * BLOCK, &mut bytes);
            assert_eq!(bytes, [7; 512]);
        }
    }
}

/// Carry out what an engine asks for on a file of hostile content, within bounds.
fn exercise(file: &mut SparseFile) {
    let _ = check(file).expect("readable");
    let _ = describe(file);
    for grow in [false, true] {
        let mut copy = file.clone();
        let changed = if grow { resize(&mut copy, 9 * BLOCK).is_ok() } else { repair(&mut copy).is_ok() };
        if changed {
            open_with(&mut copy, Access::ReadOnly).map_err(|error| error.to_string()).expect("still opens");
        }
    }
    let Ok(disk) = open_with(file, Access::ReadWrite) else { return };
    let mut bytes = vec![0; 4096];
    let chain = chain_of(&disk, None);
    let size = chain.size_bytes();
    for offset in [0, size / 2 / SECTOR * SECTOR, size.saturating_sub(4096) / SECTOR * SECTOR] {
        let len = (size - offset).min(4096) as usize;
        read_chain(&chain, file, None, offset, &mut bytes[..len]);
    }
    let Some(mut engine) = disk.engine else { return };
    let _ = engine.prepare(size - SECTOR, SECTOR, Ticket(1));
    engine.close();
    for _ in 0..1000 {
        let Some(io) = engine.poll_io() else { break };
        let result = match io.kind {
            MetadataIoKind::Write { offset_bytes, bytes } if offset_bytes < 1 << 45 => {
                file.write(offset_bytes, bytes);
                Ok(())
            }
            MetadataIoKind::Extend { to_bytes, .. } if to_bytes < 1 << 45 => {
                file.set_len(to_bytes);
                Ok(())
            }
            MetadataIoKind::Truncate { len_bytes } => {
                file.set_len(len_bytes);
                Ok(())
            }
            MetadataIoKind::Sync => Ok(()),
            _ => Err(IoFailure::Failed),
        };
        let id = io.id;
        engine.complete(id, result);
    }
    while engine.poll_event().is_some() {}
}

/// Random damage, most of it under valid checksums: never a panic, never more memory than the file's own tables.
#[test]
fn hostile_files_never_panic() {
    let mut random = Random(99);
    let differencing = {
        let parent = NewKind::Differencing(parent_named(Uuid::max()));
        let start = new_disk(&options(8 * BLOCK, parent, BLOCK));
        let mut host = Host::open(RecordedFile::new(start), Some(SparseFile { len: MIB, ..SparseFile::default() }), 1);
        host.write(BLOCK, &[1; 700 * 512]).expect("writes");
        host.close().0.now
    };
    let samples = [sample(), differencing, new_disk(&options(MIB, NewKind::Fixed, BLOCK))];
    for round in 0..6000 {
        let mut file = samples[round % 3].clone();
        for _ in 0..1 + random.below(3) {
            let places = [random.below(2200), random.below(512), 512 + random.below(64), 1536 + random.below(32)];
            let place = match random.below(5) {
                4 => file.len - 1 - random.below(512),
                at => places[at as usize],
            };
            let bytes = match random.below(4) {
                0 => vec![0xff; 4],
                1 => vec![0; 1 + random.below(8) as usize],
                _ => random.next().to_le_bytes()[..1 + random.below(8) as usize].to_vec(),
            };
            let place = place.min(file.len - bytes.len() as u64);
            file.write(place, &bytes);
        }
        if random.below(4) != 0 && file.len > 2048 {
            change_footers(&mut file, |_| ());
            if round % 3 != 2 {
                change_header(&mut file, |_| ());
            }
        }
        if random.below(8) == 0 {
            let len = random.below(file.len + 1);
            file.set_len(len);
        }
        exercise(&mut file);
    }
}

fn unpack(packed: &Path, directory: &Path) -> PathBuf {
    let path = directory.join("image.vhd");
    let status = Command::new("xz")
        .args(["-d", "-c"])
        .arg(packed)
        .stdout(Stdio::from(File::create(&path).expect("the temporary directory can be written")))
        .status()
        .expect("the xz program is needed");
    assert!(status.success(), "xz -d -c {}", packed.display());
    path
}

fn content_sha256(path: &Path, size: u64) -> String {
    let mut file = HostFile(File::open(path).expect("unpacked"));
    let disk = open_with(&mut file, Access::ReadOnly).expect("opens");
    let chain = chain_of(&disk, None);
    let (mut hash, mut bytes) = (Sha256::new(), vec![0; MIB as usize]);
    for offset in (0..size).step_by(MIB as usize) {
        let part = &mut bytes[..(size - offset).min(MIB) as usize];
        read_chain(&chain, &mut file, None, offset, part);
        hash.update(part);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn check_image(root: &Path, image: &Value) {
    let name = image["name"].as_str().expect("a name");
    let directory = tempfile::TempDir::new().expect("a temporary directory");
    let path = unpack(&root.join(name), directory.path());
    if image["expect"] == "refuse" {
        let error = refusal(&SparseFile::load(&path));
        println!("{name}: refused: {error}; {}", error.advice());
        return;
    }
    let mut file = HostFile(File::open(&path).expect("unpacked"));
    let disk = open_with(&mut file, Access::ReadWrite).expect(name);
    let size = image["virtual_size"].as_u64().expect("a size");
    assert_eq!(disk.shape.size_bytes, size, "{name}");
    let kind = match disk.kind {
        Kind::Fixed => "fixed",
        Kind::Dynamic => "dynamic",
        Kind::Differencing => "differencing",
    };
    assert_eq!(image["type"], kind, "{name}");
    if let Some(block) = image["block_size"].as_u64() {
        assert_eq!(disk.shape.block_bytes(), block, "{name}");
    }
    assert_eq!(disk.warnings, [], "{name}");
    match image["content_sha256"].as_str() {
        Some(expected) => assert_eq!(content_sha256(&path, size), expected, "{name}"),
        None => assert_eq!(disk.map.expect("dynamic").blocks_allocated(), 0, "{name} is empty"),
    }
    let report = check(&mut file).expect("readable");
    assert!(report.worst.is_none(), "{name}: {:?}", report.findings);
    println!("{name}: {size} bytes, made by {:?}, content as expected", disk.creator);
    if disk.kind == Kind::Fixed {
        return;
    }
    // Written near both ends and in the middle, closed and read again: the rest stays what it was.
    let mut host = Host::open(RecordedFile::new(SparseFile::load(&path)), None, 8);
    let places = [0, size / 2 / 512 * 512, size - 512];
    for (value, offset) in (1..).zip(places) {
        host.write(offset, &[value; 512]).expect("the disk can be written");
    }
    let (mut written, closed) = host.close();
    assert_eq!(closed, Event::Closed(Ok(())));
    assert_eq!(check(&mut written.now).expect("readable").worst, None, "{name}");
    let mut host = Host::open(written, None, 9);
    for (value, offset) in (1..).zip(places) {
        let mut bytes = [0; 512];
        host.read(offset, &mut bytes);
        assert_eq!(bytes, [value; 512], "{name}");
    }
}

#[test]
fn images_of_others_open_with_their_content() {
    let Some(root) = std::env::var_os("LUNARING_IMAGES") else {
        println!("needs LUNARING_IMAGES=DIR (a directory with manifest.json): nothing was checked");
        return;
    };
    let root = PathBuf::from(root);
    let manifest = std::fs::read_to_string(root.join("manifest.json")).expect("LUNARING_IMAGES holds manifest.json");
    let manifest: Value = serde_json::from_str(&manifest).expect("the manifest is JSON");
    let images: Vec<&Value> =
        manifest.as_array().expect("a list").iter().filter(|image| image["format"] == "vhd").collect();
    assert!(!images.is_empty() && LIMITS.bit_pages_max < 16);
    images.iter().for_each(|image| check_image(&root, image));
}
