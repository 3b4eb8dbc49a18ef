//! The VHD engine under crowds of requests: what a disk reads agrees with a flat model, at every block size, with and
//! without a parent, with fewer pages of bits in memory than are wanted at once.

mod vhd_support;
mod vhdx_support;

use lunaring::blocks::{Asked, Done, Engine as _, EngineError, Event, Level, Storage};
use lunaring::vhd::format::{BLOCK_SIZE_DEFAULT, DynamicHeader, FOOTER_LEN, HEADER_LEN, MIB};
use lunaring::vhd::{Access, NewKind, Severity, check};
use uuid::Uuid;
use vhd_support::{Host, chain_of, new_disk, open_with, options, parent_named, read_chain};
use vhdx_support::{Change, Random, RecordedFile, SECTOR, SparseFile};
use zerocopy::{FromBytes, IntoBytes};

/// An empty disk with blocks of any size, also of those that others made.
fn disk_of(size: u64, block: u64, has_parent: bool) -> SparseFile {
    let kind = if has_parent { NewKind::Differencing(parent_named(Uuid::max())) } else { NewKind::Dynamic };
    let mut file = new_disk(&options(size, kind, 512 << 10));
    let mut bytes = [0; HEADER_LEN as usize];
    file.read(FOOTER_LEN, &mut bytes);
    let mut header = DynamicHeader::read_from_bytes(&bytes).expect("a header's length");
    header.block_size = (block as u32).into();
    file.write(FOOTER_LEN, header.sealed().as_bytes());
    file
}

fn compare(host: &mut Host, model: &SparseFile, random: &mut Random) {
    let sectors = model.len / SECTOR;
    for _ in 0..12 {
        let count = (1 + random.below(2000)).min(sectors);
        let at = random.below(sectors - count + 1) * SECTOR;
        let (mut ours, mut theirs) = (vec![1; (count * SECTOR) as usize], vec![2; (count * SECTOR) as usize]);
        host.read(at, &mut ours);
        model.read(at, &mut theirs);
        let differs = ours.iter().zip(&theirs).position(|(a, b)| a != b);
        assert_eq!(differs, None, "{count} sectors from byte {at}");
    }
}

/// Crowds of disjoint writes and releases, and what remains after closing.
fn crowds(size: u64, block: u64, has_parent: bool, seed: u64) {
    let mut random = Random(seed);
    let mut model = SparseFile { len: size, ..SparseFile::default() };
    if has_parent {
        for page in (0..size / 4096).step_by(5) {
            model.write(page * 4096, &random.next().to_le_bytes().repeat(512));
        }
    }
    let parent = has_parent.then(|| model.clone());
    let mut host = Host::open(RecordedFile::new(disk_of(size, block, has_parent)), parent.clone(), seed);
    for round in 0..5 {
        let mut writes: Vec<(u64, Vec<u8>)> = Vec::new();
        // One write in each stripe, so that they do not touch; the last stripe is left to the release.
        let (stripes, crowd) = (200, 1 + random.below(199));
        let stripe = size / SECTOR / stripes;
        for at in 0..crowd {
            let count = 1 + random.below(stripe.min(40));
            let sector = at * stripe + random.below(stripe - count + 1);
            let bytes = (random.next() | 1).to_le_bytes().repeat((count * SECTOR) as usize / 8);
            model.write(sector * SECTOR, &bytes);
            writes.push((sector * SECTOR, bytes));
        }
        let behind = (crowd * stripe * SECTOR).next_multiple_of(block);
        let unmap = (behind + block <= size).then(|| (behind, (size - behind).min(1 + random.below(9) * block)));
        let unmap = unmap.map(|(from, len)| (from, len / block * block)).filter(|(_, len)| *len > 0);
        if let Some((from, len)) = unmap {
            model.zero(from, len);
        }
        host.faults.punch_unsupported = round % 3 == 1;
        host.faults.zero_range_unsupported = round % 3 == 1;
        host.write_together(&writes, unmap).expect("all succeed");
        compare(&mut host, &model, &mut random);
        if round == 3 {
            let (file, closed) = host.close();
            assert_eq!(closed, Event::Closed(Ok(())));
            host = Host::open(file, parent.clone(), seed);
        }
    }
    compare(&mut host, &model, &mut random);
    let (mut file, closed) = host.close();
    assert_eq!(closed, Event::Closed(Ok(())));
    assert!(check(&mut file.now).expect("readable").worst < Some(Severity::Mendable));
    let mut host = Host::open(file, parent, seed);
    compare(&mut host, &model, &mut random);
}

#[test]
fn crowds_agree_with_a_model_at_every_block_size() {
    for (block, size) in [
        (512 << 10, 20 * MIB + 512),
        (2 * MIB, 40 * MIB),
        (8 * MIB, 60 * MIB + 4096),
        (32 * MIB, 100 * MIB),
        (256 * MIB, 258 * MIB + 512),
    ] {
        for has_parent in [false, true] {
            println!("{block} byte blocks, {size} bytes, parent: {has_parent}");
            crowds(size, block, has_parent, size + block);
        }
    }
}

/// Releasing everything gives zeros everywhere, over a parent too, and the file holds no more than before.
#[test]
fn a_disk_that_is_released_whole_reads_as_zeros() {
    for has_parent in [false, true] {
        let (size, block) = (64 * MIB - 512, 512 << 10);
        let mut parent = SparseFile { len: size, ..SparseFile::default() };
        (0..size / 4096).for_each(|page| parent.write(page * 4096, &[0x55; 4096]));
        let start = disk_of(size, block, has_parent);
        let mut host = Host::open(RecordedFile::new(start), has_parent.then_some(parent), 3);
        host.write(5 * block + 512, &[1; 5000 * 512]).expect("writes");
        host.write(size - 512, &[2; 512]).expect("writes");
        host.unmap(0, size).expect("unmaps");
        let mut content = vec![1; size as usize];
        host.read(0, &mut content);
        assert!(content.iter().all(|byte| *byte == 0));
        let file = host.close().0.now;
        // What stays are tables, bitmaps and footers.
        let stored: usize = file.pages.values().filter(|page| page.iter().any(|byte| *byte != 0)).count();
        assert!(stored < 160, "{stored} pages");
    }
}

/// Ranges that are not whole blocks are the caller's: nothing of them is touched.
#[test]
fn only_whole_blocks_are_released() {
    let block = 512 << 10;
    let mut host = Host::open(RecordedFile::new(disk_of(4 * block + 1024, block, false)), None, 3);
    host.write(0, &vec![9; 4 * block as usize + 1024]).expect("writes");
    host.unmap(512, 2 * block).expect("unmaps");
    let mut content = vec![1; 4 * block as usize + 1024];
    host.read(0, &mut content);
    let zeros = |range: std::ops::Range<u64>| content[range.start as usize..range.end as usize].iter().all(|b| *b == 0);
    assert!(zeros(block..2 * block));
    assert!(content[..block as usize].iter().chain(&content[2 * block as usize..]).all(|byte| *byte == 9));
    // The last block is short: its visible part is all of it.
    host.unmap(4 * block, 1024).expect("unmaps");
    host.read(0, &mut content);
    assert!(content[4 * block as usize..].iter().all(|byte| *byte == 0));
}

/// Full queues refuse, and go on when they have emptied; a closing disk refuses.
#[test]
fn queues_are_bounded() {
    let mut host = Host::open(RecordedFile::new(disk_of(512 * MIB, 512 << 10, false)), None, 3);
    let mut queued = 0;
    let error = loop {
        let ticket = host.ticket();
        match host.engine.prepare(queued * (512 << 10), 512, ticket) {
            Ok(Asked::Queued) => queued += 1,
            Ok(Asked::Already) => panic!("nothing has space yet"),
            Err(error) => break error,
        }
        assert!(queued < 10_000);
    };
    assert_eq!(error, EngineError::Busy);
    host.settle();
    let done = |event: &&Event| matches!(event, Event::Done { result: Ok(Done::Ok), .. });
    assert_eq!(host.events.iter().filter(done).count() as u64, queued);
    // One sector of the table names 128 blocks: writes are shared.
    let writes = host.file.history.iter().filter(|change| matches!(change, Change::Write { .. })).count();
    assert!((writes as u64) < queued * 2, "{writes} writes for {queued} blocks");
    host.engine.close();
    let ticket = host.ticket();
    assert_eq!(host.engine.prepare(0, 512, ticket), Err(EngineError::Closed));
}

/// A thousand commits wait for a handful of flushes.
#[test]
fn commits_share_flushes() {
    let size = 64 * MIB;
    let parent = SparseFile { len: size, ..SparseFile::default() };
    let mut host = Host::open(RecordedFile::new(disk_of(size, 2 * MIB, true)), Some(parent), 1);
    let writes: Vec<(u64, Vec<u8>)> = (0..200).map(|at| (at * 300 * SECTOR, vec![1; 512])).collect();
    host.write_together(&writes, None).expect("all succeed");
    let before = host.file.flushes;
    let writes: Vec<(u64, Vec<u8>)> = (0..200).map(|at| ((at * 300 + 7) * SECTOR, vec![1; 512])).collect();
    host.write_together(&writes, None).expect("all succeed");
    assert!(host.file.flushes - before <= 2, "{} flushes", host.file.flushes - before);
}

/// The largest disk, its table full: opening reads 4 MiB of table, and takes memory by the block.
#[test]
fn the_largest_full_disk_opens() {
    let size = 2040 << 30;
    let mut file = new_disk(&options(size, NewKind::Dynamic, BLOCK_SIZE_DEFAULT));
    let stride = (BLOCK_SIZE_DEFAULT + 4096) / SECTOR;
    let blocks = size / BLOCK_SIZE_DEFAULT;
    let table: Vec<u8> = (0..blocks).flat_map(|block| ((block + 3) * stride).to_be_bytes()[4..].to_vec()).collect();
    file.write(1536, &table);
    let mut footer = [0; 512];
    file.read(0, &mut footer);
    file.set_len((blocks + 4) * stride * SECTOR);
    file.write(file.len - 512, &footer);
    let began = std::time::Instant::now();
    let disk = open_with(&mut file, Access::ReadWrite).expect("opens");
    println!("opened in {:?}", began.elapsed());
    let Level::Map { map, .. } = chain_of(&disk, None).levels()[0].clone() else { panic!("a map") };
    assert_eq!(u64::from(map.blocks_allocated()), blocks);
    assert!(map.memory_bytes() < 20 << 20, "{} bytes", map.memory_bytes());
    let mut last = [1; 512];
    file.write_at((((blocks + 2) * stride) + 1) * SECTOR + BLOCK_SIZE_DEFAULT - 512, &[7; 512]).expect("writes");
    file.write_at((blocks + 2) * stride * SECTOR, &[0xff; 512]).expect("writes");
    read_chain(&chain_of(&disk, None), &mut file, None, size - 512, &mut last);
    assert_eq!(last, [7; 512]);
}
