//! Every rule of the format that opening checks, broken one at a time in a sound file: the error names the rule, and
//! the file is left as it was. Then the same by chance: thousands of mutated files.

mod vhdx_support;

use lunaring::crc32c::crc32c;
use lunaring::vhdx::format::{
    Guid, ITEM_FILE_PARAMETERS, ITEM_INCOMPLETE_FILE, ITEM_LOGICAL_SECTOR_SIZE, ITEM_PHYSICAL_SECTOR_SIZE,
    ITEM_VIRTUAL_DISK_SIZE,
};
use lunaring::vhdx::{Access, BlockCounts, DiskKind, LogFacts, OpenError, OpenErrorKind, Warning, check, create};
use vhdx_support::{Host, MIB, Random, RecordedFile, SparseFile, create_options, open_with, read_disk};

const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
const REGION_TABLES: [u64; 2] = [192 << 10, 256 << 10];
const LOG: u64 = MIB;
const METADATA: u64 = 2 * MIB;
const BAT: u64 = 3 * MIB;
/// Blocks written by `written_disk`, in this order.
const FIRST_BLOCK: u64 = 4 * MIB;

/// Eight blocks of 1 MiB, of which 0, 1 and 2 are written; closed, or with its log pending.
fn written_disk(closed: bool) -> SparseFile {
    let mut start = SparseFile::default();
    create(&create_options(8 * MIB, DiskKind::Dynamic, MIB), &mut start).expect("creates");
    let mut host = Host::open(RecordedFile::new(start), 1);
    for block in 0..3 {
        host.write(block * MIB, &[block as u8 + 1; 4096]).expect("writes");
    }
    if closed { host.close().0.now } else { host.file.now }
}

fn bytes<const N: usize>(file: &SparseFile, offset: u64) -> [u8; N] {
    let mut bytes = [0; N];
    file.read(offset, &mut bytes);
    bytes
}

/// Make the checksum at `offset + 4` right again.
fn reseal(file: &mut SparseFile, offset: u64, len: usize) {
    let mut content = vec![0; len];
    file.read(offset, &mut content);
    content[4..8].fill(0);
    file.write(offset + 4, &crc32c(&content).to_le_bytes());
}

fn change_headers(file: &mut SparseFile, at: u64, value: &[u8]) {
    for header in HEADERS {
        file.write(header + at, value);
        reseal(file, header, 4096);
    }
}

fn change_regions(file: &mut SparseFile, at: u64, value: &[u8]) {
    for table in REGION_TABLES {
        file.write(table + at, value);
        reseal(file, table, 64 << 10);
    }
}

/// Where a metadata item's table entry and value are.
fn item(file: &SparseFile, id: Guid) -> (u64, u64) {
    let entry = (0..5).map(|at| METADATA + 32 + 32 * at).find(|at| bytes::<16>(file, *at) == id.0).expect("is there");
    (entry, METADATA + u64::from(u32::from_le_bytes(bytes(file, entry + 16))))
}

/// Break something in the clean disk; the refusal. Neither way of opening may change the file.
fn refusal(change: impl Fn(&mut SparseFile)) -> OpenError {
    refusal_of(written_disk(true), change)
}

fn refusal_of(mut file: SparseFile, change: impl Fn(&mut SparseFile)) -> OpenError {
    change(&mut file);
    let mut file = RecordedFile::new(file);
    let error = open_with(&mut file, Access::ReadWrite, 1).err().expect("the file must be refused");
    assert_eq!(open_with(&mut file, Access::ReadOnly, 1).err().as_ref(), Some(&error));
    assert!(file.history.is_empty(), "a refused file is not changed");
    assert!(!error.to_string().is_empty() && !error.advice().is_empty());
    println!("{error}; {}", error.advice());
    error
}

#[test]
fn the_header_section_is_checked() {
    assert_eq!(refusal(|file| file.write(0, b"conectix")), OpenError::NotVhdx);
    assert_eq!(refusal(|file| file.set_len(7)), OpenError::NotVhdx);
    assert_eq!(refusal(|file| file.set_len(MIB - 1)), OpenError::TooShort { len_bytes: MIB - 1 });
    let torn = |file: &mut SparseFile| HEADERS.iter().for_each(|at| file.write(at + 9, &[0xff]));
    assert_eq!(refusal(torn), OpenError::NoValidHeader);
    let twins = |file: &mut SparseFile| change_headers(file, 8, &77u64.to_le_bytes());
    // Identical twins, as Disk2vhd leaves them: either is current.
    let mut file = written_disk(true);
    let original = bytes::<4096>(&file, HEADERS[0]);
    file.write(HEADERS[1], &original);
    twins(&mut file);
    assert!(open_with(&mut file, Access::ReadWrite, 1).is_ok());
    let unlike = refusal(|file| {
        twins(file);
        file.write(HEADERS[1] + 20, &[0xaa]);
        reseal(file, HEADERS[1], 4096);
    });
    assert_eq!(unlike, OpenError::HeadersAmbiguous { sequence_number: 77 });
    assert_eq!(refusal(|file| change_headers(file, 66, &[2, 0])), OpenError::Version { version: 2 });
    let wrapping = refusal(|file| change_headers(file, 8, &u64::MAX.to_le_bytes()));
    assert_eq!(wrapping, OpenError::HeaderSequence { sequence_number: u64::MAX });
    for (at, value) in [(68, 0u64), (68, 4096), (72, 4096), (72, 0), (72, 1 << 50), (68, 0xfff0_0000)] {
        let misplaced = refusal(|file| {
            let len = if at == 68 { 4 } else { 8 };
            change_headers(file, at, &value.to_le_bytes()[..len]);
        });
        assert!(matches!(misplaced, OpenError::LogPlace { .. }), "{at} {value}");
    }
}

/// One torn header is what a power cut leaves: the other serves, and the operator hears of it.
#[test]
fn one_bad_copy_is_survived() {
    for copy in [1u8, 2] {
        let mut file = written_disk(true);
        file.write(HEADERS[usize::from(copy) - 1] + 9, &[0x77]);
        file.write(REGION_TABLES[usize::from(copy) - 1] + 30, &[0x77]);
        let disk = open_with(&mut file, Access::ReadWrite, 1).expect("opens");
        let expected = [Warning::HeaderCopyInvalid { copy }, Warning::RegionTableCopyInvalid { copy }];
        assert_eq!(disk.warnings, expected);
        // A write session renews both.
        let mut host = Host::open(RecordedFile::new(file), 5);
        host.write(0, &[9; 512]).expect("writes");
        let mut file = host.close().0.now;
        let disk = open_with(&mut file, Access::ReadOnly, 1).expect("opens");
        assert_eq!(disk.warnings, []);
        let tables = REGION_TABLES.map(|at| bytes::<65536>(&file, at));
        assert!(tables[0] == tables[1]);
    }
}

#[test]
fn the_region_table_is_checked() {
    let rule = |at, value: &[u8]| match refusal(|file| change_regions(file, at, value)) {
        OpenError::Region { rule, .. } => rule,
        other => panic!("{other}"),
    };
    let mut table = written_disk(true);
    assert_eq!(bytes::<4>(&table, REGION_TABLES[0] + 8), [2, 0, 0, 0]);
    for at in REGION_TABLES {
        table.write(at, b"igerregi");
    }
    assert!(matches!(refusal_of(table, |_| ()), OpenError::NoValidRegionTable { .. }));
    assert!(matches!(refusal(|file| change_regions(file, 8, &[0, 8])), OpenError::NoValidRegionTable { .. }));
    assert_eq!(refusal(|file| change_regions(file, 8, &[1])), OpenError::RegionMissing { name: "metadata" });
    assert_eq!(rule(32, &4096u64.to_le_bytes()), "it must start at a whole MiB behind the first");
    assert_eq!(rule(32, &0u64.to_le_bytes()), "it must start at a whole MiB behind the first");
    assert_eq!(rule(40, &4096u32.to_le_bytes()), "its length must be whole MiB");
    assert_eq!(rule(32, &(1u64 << 62).to_le_bytes()), "it passes the end of the file");
    assert_eq!(rule(32, &(u64::MAX - MIB + 1).to_le_bytes()), "it passes the end of the file");
    let twice = bytes::<16>(&written_disk(true), REGION_TABLES[0] + 16);
    assert_eq!(rule(48, &twice), "it is listed twice");
    let unknown = refusal(|file| change_regions(file, 48, &[0xab; 16]));
    assert_eq!(unknown, OpenError::RegionUnknown { guid: Guid([0xab; 16]) });
    assert_eq!(unknown.kind(), OpenErrorKind::Unsupported);
    let far = refusal(|file| {
        change_regions(file, 48, &[0xab; 16]);
        change_regions(file, 64, &(1u64 << 60).to_le_bytes());
        change_regions(file, 76, &[0]);
    });
    assert!(matches!(far, OpenError::Region { rule: "it passes the end of the file", .. }), "{far}");
    for place in [LOG, METADATA] {
        let overlap = refusal(|file| change_regions(file, 32, &place.to_le_bytes()));
        assert!(matches!(overlap, OpenError::Overlap { .. }), "{overlap}");
    }
}

/// An optional region that nobody knows stays where it is: blocks go around it.
#[test]
fn unknown_optional_regions_are_kept() {
    let mut file = written_disk(true);
    let end = file.len;
    file.set_len(end + 3 * MIB);
    file.write(end + 2 * MIB, b"do not touch");
    for table in REGION_TABLES {
        file.write(table + 8, &[3]);
        file.write(table + 80, &[0xcd; 16]);
        file.write(table + 96, &(end + 2 * MIB).to_le_bytes());
        file.write(table + 104, &(MIB as u32).to_le_bytes());
        reseal(&mut file, table, 64 << 10);
    }
    let mut host = Host::open(RecordedFile::new(file), 1);
    host.write(5 * MIB, &[5; 4096]).expect("writes");
    let place = host.map.entry(5).expect("resident").offset_bytes();
    assert_eq!(place, end, "what nothing refers to is used");
    host.write(6 * MIB, &vec![6; 2 * MIB as usize]).expect("writes");
    let places = [6, 7].map(|block| host.map.entry(block).expect("resident").offset_bytes());
    assert_eq!(places, [end + MIB, end + 3 * MIB]);
    assert_eq!(&bytes::<12>(&host.close().0.now, end + 2 * MIB), b"do not touch");
}

#[test]
fn the_metadata_is_checked() {
    let with_item = |id, change: &dyn Fn(&mut SparseFile, u64, u64)| {
        refusal(|file| {
            let (entry, value) = item(file, id);
            change(file, entry, value);
        })
    };
    let table = refusal(|file| file.write(METADATA, b"atadatem"));
    assert!(matches!(table, OpenError::MetadataTable { .. }));
    let many = refusal(|file| file.write(METADATA + 10, &[0xff, 0xff]));
    assert!(matches!(many, OpenError::MetadataTable { .. }));
    for (at, value) in [(16u64, 32u32), (16, 0xffff_0000), (20, 2 << 20), (20, 0xf_0000), (16, 0)] {
        let place = with_item(ITEM_FILE_PARAMETERS, &|file, entry, _| file.write(entry + at, &value.to_le_bytes()));
        assert!(matches!(place, OpenError::MetadataItem { .. }), "{at} {value:#x}: {place}");
    }
    let lost = with_item(ITEM_VIRTUAL_DISK_SIZE, &|file, entry, _| {
        file.write(entry, &[7; 16]);
        file.write(entry + 24, &[0]);
    });
    assert_eq!(lost, OpenError::MetadataMissing { name: "Virtual Disk Size" });
    let unknown = with_item(ITEM_VIRTUAL_DISK_SIZE, &|file, entry, _| file.write(entry, &[7; 16]));
    assert_eq!(unknown, OpenError::MetadataUnknown { item: Guid([7; 16]) });
    let user = with_item(ITEM_VIRTUAL_DISK_SIZE, &|file, entry, _| file.write(entry + 24, &[7]));
    assert_eq!(user, OpenError::MetadataUnknown { item: ITEM_VIRTUAL_DISK_SIZE });
    let marked = with_item(ITEM_VIRTUAL_DISK_SIZE, &|file, entry, _| file.write(entry, &ITEM_INCOMPLETE_FILE.0));
    assert_eq!(marked, OpenError::Incomplete);
    let value = |id, at: u64, new: &[u8]| match with_item(id, &|file, _, value| file.write(value + at, new)) {
        OpenError::MetadataValue { value, .. } => value,
        other => panic!("{other}"),
    };
    for size in [0, 4096, 3 << 20, 512 << 20] {
        assert_eq!(value(ITEM_FILE_PARAMETERS, 0, &(size as u32).to_le_bytes()), size);
    }
    for size in [0, 513, (64 << 40) + 512, u64::MAX] {
        assert_eq!(value(ITEM_VIRTUAL_DISK_SIZE, 0, &size.to_le_bytes()), size);
    }
    assert_eq!(value(ITEM_LOGICAL_SECTOR_SIZE, 0, &[0, 4]), 1024);
    assert_eq!(value(ITEM_PHYSICAL_SECTOR_SIZE, 0, &[1]), 4097);
}

#[test]
fn the_block_allocation_table_is_checked() {
    let entry = |block: u64, value: u64| refusal(|file| file.write(BAT + block * 8, &value.to_le_bytes()));
    let rule = |block: u64, value: u64| match entry(block, value) {
        OpenError::Block { block: named, rule, .. } => {
            assert_eq!(u64::from(named), block);
            rule
        }
        other => panic!("{other}"),
    };
    assert_eq!(rule(3, 4), "its state is reserved");
    assert_eq!(rule(3, 5), "its state is reserved");
    assert_eq!(rule(0, FIRST_BLOCK | 7), "partially present, in a disk without a parent");
    assert_eq!(rule(3, 6), "it lies inside the header section");
    assert_eq!(rule(3, 64 << 20 | 6), "it passes the end of the file");
    assert_eq!(rule(3, !0xf_ffff | 6), "it passes the end of the file");
    let overlaps = |block: u64, value: u64| match entry(block, value) {
        OpenError::Overlap { first, second, .. } => (first, second),
        other => panic!("{other}"),
    };
    assert_eq!(overlaps(5, FIRST_BLOCK | 6), ("block 0".into(), "block 5".into()));
    assert_eq!(overlaps(5, LOG | 6), ("the log".into(), "block 5".into()));
    assert_eq!(overlaps(5, METADATA | 6), ("the metadata region".into(), "block 5".into()));
    assert_eq!(overlaps(5, BAT | 6), ("the block allocation table".into(), "block 5".into()));
    let larger = refusal(|file| {
        let (_, value) = item(file, ITEM_VIRTUAL_DISK_SIZE);
        file.write(value, &(64u64 << 40).to_le_bytes());
    });
    assert!(matches!(larger, OpenError::BatTooSmall { needed: 67_125_247, .. }), "{larger}");
}

/// Anchors of trimmed blocks keep their space, and what lies there stays hidden.
#[test]
fn trimmed_blocks_read_as_zeros_and_their_anchors_are_not_given_away() {
    let mut file = written_disk(true);
    let last = u64::from_le_bytes(bytes(&file, BAT + 16)) & !0xf_ffff;
    file.write(BAT + 16, &(last | 3).to_le_bytes());
    let mut host = Host::open(RecordedFile::new(file), 1);
    let mut content = [0xff; 4096];
    host.read(2 * MIB, &mut content);
    assert_eq!(content, [0; 4096]);
    host.write(2 * MIB, &[4; 512]).expect("writes");
    assert!(host.map.entry(2).expect("resident").offset_bytes() > last);
    host.read(2 * MIB, &mut content);
    assert!(content[..512] == [4; 512] && content[512..] == [0; 3584]);
}

#[test]
fn the_log_is_checked() {
    let dirty = || written_disk(false);
    let entries = open_with(&mut dirty(), Access::ReadOnly, 1).expect("opens").replay.expect("pending").entries;
    assert_eq!(entries, 4, "the session's empty entry, and one for each block");
    // Cutting the newest entry off leaves the sequence before it: what was never flushed may be lost.
    let mut shorter = dirty();
    shorter.write(LOG + 4096 + 2 * 8192 + 100, &[0xff]);
    let disk = open_with(&mut shorter, Access::ReadOnly, 1).expect("opens");
    assert_eq!((disk.replay.expect("pending").entries, disk.map.blocks_allocated()), (3, 2));
    // Breaking the first leaves no complete sequence.
    let broken = refusal_of(dirty(), |file| file.write(LOG + 20, &[0xff]));
    assert!(matches!(broken, OpenError::LogWithoutSequence { offset_bytes: LOG, .. }));
    let version = refusal_of(dirty(), |file| change_headers(file, 64, &[1, 0]));
    assert_eq!(version, OpenError::LogVersion { log_version: 1 });
    // The head, changed and sealed again.
    let head = LOG + 4096 + 2 * 8192;
    let with_head = |at: u64, value: &[u8]| {
        refusal_of(dirty(), |file| {
            file.write(head + at, value);
            reseal(file, head, 8192);
        })
    };
    let cut = with_head(48, &(1u64 << 40).to_le_bytes());
    assert!(matches!(cut, OpenError::Truncated { flushed_bytes: 1_099_511_627_776, .. }), "{cut}");
    assert!(matches!(with_head(56, &(1u64 << 61).to_le_bytes()), OpenError::TooLong { .. }));
    for target in [0, 64 << 10, 1 << 61, u64::MAX - 4095, LOG + 4096] {
        let refused = with_head(64 + 16, &u64::to_le_bytes(target));
        assert!(matches!(refused, OpenError::LogTarget { .. }), "{target}: {refused}");
    }
}

/// What a replay in memory cannot show is refused with the way out; writable it opens.
#[test]
fn a_log_that_changes_payload_needs_a_writable_open() {
    let mut file = written_disk(false);
    let head = LOG + 4096 + 2 * 8192;
    file.write(head + 64 + 16, &FIRST_BLOCK.to_le_bytes());
    reseal(&mut file, head, 8192);
    let error = open_with(&mut file, Access::ReadOnly, 1).err().expect("refused");
    assert!(matches!(error, OpenError::ReadOnlyReplay { .. }), "{error}");
    assert_eq!(error.kind(), OpenErrorKind::Unsupported);
    let disk = open_with(&mut file, Access::ReadWrite, 1).expect("opens");
    let mut content = [0; 24];
    read_disk(&mut file, None, &disk.map, 0, &mut content);
    assert_eq!(content[..8], (FIRST_BLOCK | 6).to_le_bytes(), "the logged page is the block's content now");
}

/// What a check tells of a disk that is sound: where the bytes are, and what is left over.
#[test]
fn a_check_accounts_for_every_byte() {
    let counts = |fully_present, zero, unmapped, not_present| BlockCounts {
        fully_present,
        zero,
        unmapped,
        not_present,
        ..BlockCounts::default()
    };
    let report = check(&mut written_disk(true)).expect("read");
    assert!(report.is_sound() && report.findings.is_empty(), "{:?}", report.findings);
    assert_eq!(report.blocks, counts(3, 0, 0, 5));
    assert_eq!((report.unreferenced_bytes, report.tail_bytes, report.file_len_bytes), (0, 0, FIRST_BLOCK + 3 * MIB));
    let report = check(&mut written_disk(false)).expect("read");
    let LogFacts::Pending(replay) = report.log else { panic!("{:?}", report.log) };
    assert_eq!((replay.entries, report.blocks), (4, counts(3, 0, 0, 5)));
    assert_eq!(report.tail_bytes, 5 * MIB, "held ahead for the five blocks that are absent");
    let mut file = written_disk(true);
    file.write(BAT, &2u64.to_le_bytes());
    file.write(BAT + 8, &3u64.to_le_bytes());
    let report = check(&mut file).expect("read");
    assert_eq!((report.blocks, report.unreferenced_bytes), (counts(1, 1, 1, 5), 2 * MIB));
    assert!(report.is_sound());
    file.write(BAT, &4u64.to_le_bytes());
    assert!(!check(&mut file).expect("read").is_sound());
}

/// Change a few bytes where structures are, and make most checksums right again so that the change is looked at.
fn mutate(file: &mut SparseFile, random: &mut Random) {
    for _ in 0..1 + random.below(4) {
        let (start, len) = match random.below(8) {
            0 => (HEADERS[random.below(2) as usize], 96),
            1 => (REGION_TABLES[random.below(2) as usize], 96),
            2 => (METADATA, 256),
            3 => (METADATA + (64 << 10), 64),
            4 => (BAT, 128),
            5 => (LOG, 64 << 10),
            6 => (LOG + 4096 * random.below(24), 128),
            _ => (0, file.len),
        };
        let offset = start + random.below(len);
        let interesting = [0, 1, 0xff, 0x7f, 0x80, 0x10, 6, 7, random.next() as u8];
        let value = interesting[random.below(interesting.len() as u64) as usize];
        let run = 1 + random.below(8) as usize;
        if offset + run as u64 <= file.len {
            file.write(offset, &vec![value; run]);
        }
    }
    if random.below(16) == 0 {
        let len = random.below(file.len + MIB);
        file.set_len(len);
    }
    if random.below(8) != 0 && file.len > 4 * MIB {
        HEADERS.iter().for_each(|at| reseal(file, *at, 4096));
        REGION_TABLES.iter().for_each(|at| reseal(file, *at, 64 << 10));
        for at in (LOG..LOG + (128 << 10)).step_by(4096) {
            let len = u32::from_le_bytes(bytes(file, at + 8));
            if bytes::<4>(file, at) == *b"loge" && (4096..=1 << 20).contains(&len) {
                reseal(file, at, len as usize);
            }
        }
    }
}

/// Open, read everything, write, close: whatever the file says, nothing panics, and memory stays in bounds.
fn exercise(file: &SparseFile) -> bool {
    let report = check(&mut file.clone()).expect("a file in memory can be read");
    let mut copy = file.clone();
    let opened = open_with(&mut copy, Access::ReadOnly, 1);
    match &opened {
        Ok(_) => assert!(report.is_sound(), "opens, but: {:?}", report.findings),
        Err(OpenError::ReadOnlyReplay { .. }) => {}
        Err(error) => assert!(!report.is_sound(), "{error}, but a check finds {:?}", report.findings),
    }
    drop(opened);
    let mut recorded = RecordedFile::new(file.clone());
    let Ok(disk) = open_with(&mut recorded, Access::ReadWrite, 1) else {
        assert!(recorded.history.is_empty() || recorded.now.len >= 1 << 40, "a refused file is not changed");
        return false;
    };
    let mut host = Host::serve(RecordedFile::new(recorded.now), disk, None, 1);
    let last = host.geometry.disk_size_bytes - u64::from(host.geometry.logical_sector_bytes);
    for offset in [0, last / 2 / 4096 * 4096, last] {
        let mut content = vec![0; host.geometry.logical_sector_bytes as usize];
        host.read(offset, &mut content);
        content.fill(0x42);
        host.write(offset, &content).expect("a disk that opens can be written");
    }
    let (file, _) = host.close();
    open_with(&mut file.now.clone(), Access::ReadOnly, 1).expect("what we wrote opens");
    true
}

#[test]
fn mutated_files_never_panic() {
    let sources = [written_disk(true), written_disk(false)];
    let opened: usize = std::thread::scope(|scope| {
        let halves = [0u64, 1].map(|half| {
            let sources = &sources;
            scope.spawn(move || {
                let mut opened = 0;
                for seed in (half..20_000).step_by(2) {
                    let mut random = Random(seed);
                    let mut file = sources[random.below(2) as usize].clone();
                    mutate(&mut file, &mut random);
                    opened += usize::from(exercise(&file));
                }
                opened
            })
        });
        halves.into_iter().map(|half| half.join().expect("no mutation panics")).sum()
    });
    println!("{opened} of 20000 mutated files were still sound enough to be opened");
    assert!((2_000..18_000).contains(&opened), "the mutations reach behind the checksums and break things: {opened}");
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("peak resident size");
    let peak_kib: u64 = peak.trim().trim_end_matches(" kB").parse().expect("a number");
    println!("peak resident size {peak_kib} KiB");
    assert!(peak_kib < 400 << 10, "files of 8 MiB never need this much memory");
}
