//! Space of a VHDX file: given up, used again, compacted, cut; differencing disks; and what each of it leaves alone.

mod vhdx_support;

use lunaring::blocks::{Asked, Done, Engine as _, EngineError, Event, State, Ticket, WritePlan};
use lunaring::vhdx::{
    Access, DiskKind, NewParent, OpenOptions, ParentLocator, VhdxParent, check, create, format::Guid, open,
};
use vhdx_support::guest::parent_of;
use vhdx_support::{Change, Host, MIB, RecordedFile, SECTOR, SparseFile, create_options, guids, open_with, read_disk};

fn host_of(blocks: u64, kind: DiskKind) -> Host {
    let mut start = SparseFile::default();
    create(&create_options(blocks * MIB, kind, MIB), &mut start).expect("creates");
    Host::open(RecordedFile::new(start), 7)
}

fn child_file(size: u64, block_mib: u64, sector: u32) -> SparseFile {
    let mut options = create_options(size, DiskKind::Dynamic, block_mib * MIB);
    options.logical_sector_bytes = sector;
    let locator = ParentLocator::Vhdx(VhdxParent {
        linkage: Guid([7; 16]),
        linkage2: None,
        relative_path: Some("parent.vhdx".into()),
        volume_path: None,
        absolute_win32_path: None,
        others: Vec::new(),
    });
    options.parent = Some(NewParent { locator, size_bytes: size, logical_sector_bytes: sector, items: Vec::new() });
    let mut start = SparseFile::default();
    create(&options, &mut start).expect("creates");
    start
}

fn child_of(size: u64, block_mib: u64) -> Host {
    Host::open_over(RecordedFile::new(child_file(size, block_mib, 512)), Some(parent_of(size)), 9)
}

fn place(host: &Host, block: u32) -> u64 {
    host.map.entry(block).expect("resident").offset_bytes()
}

fn state(host: &Host, block: u32) -> State {
    host.map.entry(block).expect("resident").state()
}

fn write_guids(file: &SparseFile) -> (Guid, Guid) {
    let current = |at: u64| {
        let mut bytes = [0; 64];
        file.read(at, &mut bytes);
        let guid = |at: usize| Guid(bytes[at..at + 16].try_into().expect("16 bytes"));
        (u64::from_le_bytes(bytes[8..16].try_into().expect("8 bytes")), guid(16), guid(32))
    };
    let (_, file_guid, data_guid) = std::cmp::max_by_key(current(64 << 10), current(128 << 10), |header| header.0);
    (file_guid, data_guid)
}

#[test]
fn a_file_that_has_lost_its_end_is_shown_without_being_touched() {
    let mut host = host_of(8, DiskKind::Dynamic);
    host.write(3 * MIB, &[0x5a; 128 << 10]).expect("writes");
    host.write(6 * MIB, &[0x77; 4096]).expect("writes");
    let mut file = host.file.now.clone();
    let end = place(&host, 3) + (64 << 10);
    assert!(end < place(&host, 6), "the second block lies wholly behind the end");
    file.set_len(end);
    let before = file.clone();

    let disk = open_with(&mut file, Access::ReadOnly, 5).expect("what a power cut leaves can be looked at");
    assert!(disk.replay.is_some());
    let mut expected = vec![0; 8 * MIB as usize];
    expected[3 * MIB as usize..][..64 << 10].fill(0x5a);
    let mut shown = vec![1; 8 * MIB as usize];
    read_disk(&mut file, None, &disk.map, 0, &mut shown);
    assert!(shown == expected, "what the file has, and zeros where it has ended");
    assert!(file.pages == before.pages && file.len == before.len);
}

#[test]
fn unmapped_blocks_read_as_zeros_and_their_space_is_used_first() {
    let mut host = host_of(100, DiskKind::Dynamic);
    for block in 0..6 {
        host.write(block * MIB, &vec![block as u8 + 1; MIB as usize]).expect("writes");
    }
    let places: Vec<u64> = (0..6).map(|block| place(&host, block)).collect();
    // Parts of blocks are the caller's.
    host.unmap(MIB / 2, 3 * MIB).expect("unmaps");
    let states: Vec<State> = (0..6).map(|block| state(&host, block)).collect();
    assert_eq!(states, [State::Full, State::Zeros, State::Zeros, State::Full, State::Full, State::Full]);
    let mut bytes = vec![9; 2 * MIB as usize];
    host.read(MIB, &mut bytes);
    assert!(bytes.iter().all(|byte| *byte == 0));
    host.settle();
    assert_eq!((host.engine.space().condemned_bytes, host.map.blocks_allocated()), (0, 4));
    let zeroed = |at: u64| {
        matches!(host.file.history.iter().rev().find(|change| matches!(change, Change::Zero { .. })),
        Some(Change::Zero { offset, len }) if *offset <= at && at < offset + len)
    };
    assert!(zeroed(places[1]) && zeroed(places[2]), "the file system has it back");
    // The lowest free space comes first, and shows nothing of what was there.
    host.write(50 * MIB + 512, &[5; 512]).expect("writes");
    host.write(51 * MIB + 512, &[5; 512]).expect("writes");
    assert_eq!([place(&host, 50), place(&host, 51)], [places[1], places[2]]);
    let mut bytes = vec![9; MIB as usize];
    host.read(50 * MIB, &mut bytes);
    assert!(bytes[..512].iter().chain(&bytes[1024..]).all(|byte| *byte == 0) && bytes[512..1024] == [5; 512]);
    // Nothing to do is said at once.
    assert_eq!(host.engine.unmap(20 * MIB, 10 * MIB, Ticket(1)), Ok(Asked::Already));
    let (file, closed) = host.close();
    assert_eq!(closed, Event::Closed(Ok(())));
    assert!(check(&mut file.now.clone()).expect("readable").is_sound());
}

/// The disk's last block counts as covered when what the guest sees of it is.
#[test]
fn a_short_last_block_is_released_too() {
    let mut start = SparseFile::default();
    create(&create_options(5 * MIB + 512, DiskKind::Dynamic, MIB), &mut start).expect("creates");
    let mut host = Host::open(RecordedFile::new(start), 7);
    host.write(5 * MIB, &[1; 512]).expect("writes");
    host.unmap(5 * MIB, 512).expect("unmaps");
    assert_eq!(state(&host, 5), State::Zeros);
}

/// Where the file system can neither punch nor zero, zeros are written.
#[test]
fn zeros_are_written_where_the_file_system_cannot_make_them() {
    for (punch, range) in [(true, false), (true, true)] {
        let mut host = host_of(100, DiskKind::Dynamic);
        (host.file.punch_unsupported, host.file.zero_range_unsupported) = (punch, range);
        host.write(0, &vec![7; MIB as usize]).expect("writes");
        host.unmap(0, MIB).expect("unmaps");
        host.settle();
        assert_eq!(host.engine.space().condemned_bytes, 0);
        host.write(3 * MIB, &[1; 512]).expect("writes");
        let mut bytes = vec![9; MIB as usize];
        host.read(3 * MIB, &mut bytes);
        assert!(bytes[512..].iter().all(|byte| *byte == 0));
        let mut host = host_of(8, DiskKind::Fixed);
        (host.file.punch_unsupported, host.file.zero_range_unsupported) = (punch, range);
        host.write(0, &vec![7; 3 * MIB as usize]).expect("writes");
        let old = place(&host, 1);
        host.unmap(0, 2 * MIB + 512).expect("unmaps");
        let mut bytes = vec![9; 3 * MIB as usize];
        host.read(0, &mut bytes);
        assert!(bytes[..2 * MIB as usize].iter().all(|byte| *byte == 0) && bytes[2 * MIB as usize..] == [7; 1 << 20]);
        assert_eq!((state(&host, 1), place(&host, 1)), (State::Full, old), "a fixed disk keeps its space");
    }
}

/// Freed space comes back before the disk's file is full for good.
#[test]
fn a_full_disk_has_room_again_after_an_unmap() {
    let mut host = host_of(200, DiskKind::Dynamic);
    host.file.len_max = Some(host.file.now.len + 3 * MIB);
    for block in 0..3 {
        host.write(block * MIB, &[1; 512]).expect("there is space for three");
    }
    let refused = host.write(9 * MIB, &[1; 512]).expect_err("no more");
    assert!(matches!(refused, Some(Event::Done { result: Err(EngineError::OutOfSpace), .. })));
    host.write(2 * MIB, &[2; 4096]).expect("rewrites go on");
    host.unmap(MIB, MIB).expect("unmaps");
    host.settle();
    host.write(9 * MIB, &[1; 512]).expect("there is room again");
    assert!(host.write(10 * MIB, &[1; 512]).is_err() && !host.map.poisoned());
}

#[test]
fn compaction_moves_blocks_down_and_cuts_the_file() {
    let mut host = host_of(100, DiskKind::Dynamic);
    for block in 0..20 {
        let value = if block % 5 == 4 { 0 } else { block as u8 + 1 };
        host.write(block * MIB, &vec![value; MIB as usize]).expect("writes");
    }
    host.unmap(0, 3 * MIB).expect("unmaps");
    let before = host.file.now.len;
    let mut steps = 0;
    while host.relocate() {
        steps += 1;
        assert!(steps < 200);
    }
    assert!(steps > 5);
    // Three unmapped, four of zeros: seven blocks less, and nothing held ahead.
    let structures = 4 * MIB;
    assert_eq!((host.file.now.len, host.map.blocks_allocated()), (structures + 13 * MIB, 13));
    assert!(before > host.file.now.len);
    for block in 3..20u64 {
        let mut bytes = vec![9; MIB as usize];
        host.read(block * MIB, &mut bytes);
        let value = if block % 5 == 4 { 0 } else { block as u8 + 1 };
        assert!(bytes.iter().all(|byte| *byte == value), "block {block}");
    }
    // The disk goes on, and a second run finds nothing.
    host.write(60 * MIB, &[1; 512]).expect("writes");
    let copies = |host: &Host| host.asked_for.iter().filter(|name| **name == "copy").count();
    let first = copies(&host);
    while host.relocate() {}
    assert_eq!(host.map.blocks_allocated(), 14);
    assert_eq!(copies(&host) - first, 14, "each block was looked at, none had to move");
    let (file, closed) = host.close();
    assert_eq!(closed, Event::Closed(Ok(())));
    assert!(check(&mut file.now.clone()).expect("readable").is_sound());
}

/// A session that only moves blocks is no change that children could notice; the first write in it is.
#[test]
fn compaction_keeps_data_write_guid() {
    let mut host = host_of(100, DiskKind::Dynamic);
    for block in 0..8 {
        host.write(block * MIB, &[block as u8 + 1; 512]).expect("writes");
    }
    host.unmap(0, 2 * MIB).expect("unmaps");
    let file = host.close().0.now;
    let before = write_guids(&file);
    let mut host = Host::open(RecordedFile::new(file), 11);
    while host.relocate() {}
    assert!(!host.map.write_session_open(), "writes still ask first");
    let moved = write_guids(&host.file.now);
    assert_eq!((moved.0 == before.0, moved.1 == before.1), (false, true));
    assert!(host.file.now.len < file_len_of(8));
    let copy = host.file.now.clone();
    assert_eq!(write_guids(&host.close().0.now).1, before.1);
    let mut host = Host::open(RecordedFile::new(copy), 12);
    while host.relocate() {}
    host.write(0, &[1; 512]).expect("writes");
    assert_ne!(write_guids(&host.file.now).1, before.1);
}

fn file_len_of(blocks: u64) -> u64 {
    (4 + blocks) * MIB
}

/// A merge announces the DataWriteGuid that its parent will have.
#[test]
fn a_session_takes_the_guid_that_it_is_given() {
    let mut start = SparseFile::default();
    create(&create_options(10 * MIB, DiskKind::Dynamic, MIB), &mut start).expect("creates");
    let mut file = RecordedFile::new(start);
    let wanted = Guid([0x5a; 16]);
    let options = OpenOptions { access: Access::ReadWrite, guids: guids(3), data_write_guid: Some(wanted) };
    let disk = open(&mut file, options).expect("opens");
    let mut host = Host::serve(file, disk, None, 3);
    host.write(0, &[1; 512]).expect("writes");
    assert_eq!(write_guids(&host.file.now).1, wanted);
    assert_eq!(write_guids(&host.close().0.now).1, wanted);
}

#[test]
fn a_child_shows_its_parent_until_it_is_written() {
    let size = 40 * MIB;
    let mut host = child_of(size, 2);
    let parent = parent_of(size);
    let mut expected = parent.clone();
    for (offset, len) in [(512, 512), (3 * MIB, 4096), (2 * MIB - 512, 1024), (10 * MIB, 2 * MIB), (17 * MIB, 3 * MIB)]
    {
        let bytes = vec![0xa5; len as usize];
        host.write(offset, &bytes).expect("writes");
        expected.write(offset, &bytes);
    }
    let states = [0, 1, 5, 8, 9].map(|block| state(&host, block));
    assert_eq!(states, [State::Partial, State::Partial, State::Full, State::Partial, State::Full]);
    // The rest of block 1, piece by piece: it is full when nothing is missing.
    for offset in (2 * MIB..4 * MIB).step_by(64 << 10) {
        host.write(offset, &[0x77; 64 << 10]).expect("writes");
        expected.write(offset, &[0x77; 64 << 10]);
    }
    assert_eq!(state(&host, 1), State::Full);
    host.unmap(10 * MIB, 4 * MIB).expect("unmaps");
    expected.zero(10 * MIB, 4 * MIB);
    assert_eq!([5, 6].map(|block| state(&host, block)), [State::Zeros; 2], "zeros hide the parent");
    let (mut ours, mut theirs) = (vec![0; size as usize], vec![0; size as usize]);
    expected.read(0, &mut theirs);
    host.read(0, &mut ours);
    assert!(ours == theirs);
    // A block of zeros is written without looking at the parent.
    host.write(11 * MIB, &[1; 512]).expect("writes");
    expected.write(11 * MIB, &[1; 512]);
    assert_eq!(state(&host, 5), State::Full);
    while host.relocate() {}
    expected.read(0, &mut theirs);
    host.read(0, &mut ours);
    assert!(ours == theirs, "moved blocks show the same");
    let (file, closed) = host.close();
    assert_eq!(closed, Event::Closed(Ok(())));
    let mut again = Host::open_over(RecordedFile::new(file.now), Some(parent), 4);
    again.read(0, &mut ours);
    assert!(ours == theirs);
}

/// A commit is refused when space was taken away from blocks since its plan, and the write is made again.
#[test]
fn an_old_commit_is_refused() {
    let mut host = child_of(40 * MIB, 1);
    host.write(0, &[1; 512]).expect("writes");
    let late = host.begin_write(5 * MIB, &[2; 512]).expect("plans");
    let WritePlan::Ready { commit: true, epoch, .. } = host.plan_write(5 * MIB, 512) else { panic!("it is staged") };
    host.unmap(0, MIB).expect("unmaps");
    assert_eq!(host.engine.commit(5 * MIB, 512, epoch, Ticket(1)), Ok(Asked::Queued));
    let again = Event::Done { ticket: Ticket(1), result: Ok(Done::PlanAgain) };
    assert_eq!(host.engine.poll_event(), Some(again));
    host.end_write(late).expect("it is planned again");
    let mut bytes = [0; 512];
    host.read(5 * MIB, &mut bytes);
    assert_eq!(bytes, [2; 512]);
}

/// More blocks are staged than may be kept: the oldest lose their space, and their writes are made again.
#[test]
fn staged_space_is_bounded() {
    let size = 3000 * MIB;
    let file = RecordedFile::new(child_file(size, 1, 512));
    let mut host = Host::open_over(file, Some(SparseFile { len: size, ..SparseFile::default() }), 9);
    let held: Vec<_> = (0..1500).map(|block| host.begin_write(block * MIB, &[3; 512]).expect("plans")).collect();
    for held in held {
        host.end_write(held).expect("ends");
    }
    for block in 0..1500 {
        let mut bytes = [0; 512];
        host.read(block * MIB, &mut bytes);
        assert_eq!(bytes, [3; 512], "block {block}");
    }
    host.settle();
    assert_eq!(host.map.blocks_allocated(), 1500);
    let space = host.engine.space();
    assert_eq!(space.condemned_bytes, 0);
    let used = (4 + 1 + 1500) * MIB;
    assert!(space.file_len_bytes - space.free_inside_bytes <= used, "{space:?}");
    assert!(check(&mut host.close().0.now).expect("readable").is_sound());
}

/// A session that ends with staged space leaves nothing of it in the file.
#[test]
fn staged_space_that_was_not_committed_is_given_back() {
    let mut host = child_of(40 * MIB, 1);
    host.write(0, &[1; 512]).expect("writes");
    let _ = host.begin_write(5 * MIB, &[2; 512]).expect("plans");
    let (file, closed) = host.close();
    assert_eq!(closed, Event::Closed(Ok(())));
    let disk = open_with(&mut file.now.clone(), Access::ReadOnly, 1).expect("opens");
    assert_eq!((disk.map.entry(5), disk.map.blocks_allocated()), (Ok(lunaring::blocks::Entry::ABSENT), 1));
}

/// Blocks of 256 MiB have 16 pages of bits; sectors of 4096 bytes have fewer.
#[test]
fn large_blocks_and_large_sectors_have_their_bits() {
    for (block_mib, sector) in [(256, 512u32), (256, 4096), (1, 4096), (32, 512)] {
        let size = 600 * MIB;
        let file = RecordedFile::new(child_file(size, block_mib, sector));
        let mut parent = SparseFile { len: size, ..SparseFile::default() };
        for offset in (0..size).step_by(7 << 20) {
            parent.write(offset, &[0x11; 8192]);
        }
        let mut expected = parent.clone();
        let mut host = Host::open_over(file, Some(parent), 9);
        for offset in [0, 100 * MIB + 4096, 256 * MIB - 4096, 513 * MIB, size - 4096] {
            host.write(offset, &[0x22; 4096]).expect("writes");
            expected.write(offset, &[0x22; 4096]);
        }
        for offset in (0..size).step_by(MIB as usize) {
            let (mut ours, mut theirs) = (vec![0; 16384], vec![0; 16384]);
            host.read(offset, &mut ours);
            expected.read(offset, &mut theirs);
            assert!(ours == theirs, "{block_mib} MiB, {sector}: at {offset}");
        }
        let clean = host.close().0.now;
        assert!(check(&mut clean.clone()).expect("readable").is_sound());
        let mut again = Host::open_over(RecordedFile::new(clean), Some(expected.clone()), 4);
        let mut bytes = [0; SECTOR as usize];
        again.read(100 * MIB + 4096, &mut bytes);
        assert_eq!(bytes, [0x22; 512]);
    }
}
