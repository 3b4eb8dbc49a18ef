//! The largest disk there can be: 64 TiB, every block of 2 MiB allocated. Opening it takes under a second and tens of
//! MiB, and it works beyond what is resident.

mod vhdx_support;

use std::time::Duration;

use lunaring::blocks::{Asked, Done, Engine as _, Entry, Event, MetadataIoKind, State, Table, Ticket};
use lunaring::vhdx::{Access, DiskKind, Geometry, OpenDisk, Storage, StorageError, create};
use vhdx_support::{MIB, SparseFile, create_options, open_with};

const DISK: u64 = 64 << 40;
const BLOCK: u64 = 2 * MIB;

/// A file of 64 TiB whose table names every block, the higher ones first; the table is made up as it is read.
struct FullFile {
    small: SparseFile,
    geometry: Geometry,
    first_block: u64,
    len: u64,
}

impl FullFile {
    fn new() -> Self {
        let mut small = SparseFile::default();
        create(&create_options(DISK, DiskKind::Dynamic, BLOCK), &mut small).expect("creates");
        let geometry = open_with(&mut small, Access::ReadOnly, 1).expect("opens").geometry;
        let first_block = small.len;
        Self { len: first_block + DISK, small, geometry, first_block }
    }

    fn place(&self, block: u64) -> u64 {
        self.first_block + (u64::from(self.geometry.block_count) - 1 - block) * BLOCK
    }
}

impl Storage for FullFile {
    fn len_bytes(&mut self) -> Result<u64, StorageError> {
        Ok(self.len)
    }

    fn read_at(&mut self, offset_bytes: u64, into: &mut [u8]) -> Result<(), StorageError> {
        let table = self.geometry.bat_offset_bytes..self.first_block;
        if !table.contains(&offset_bytes) {
            self.small.read(offset_bytes, into);
            return Ok(());
        }
        let period = u64::from(self.geometry.chunk_ratio) + 1;
        let first = (offset_bytes - table.start) / 8;
        let (mut within, mut block) = (first % period, first / period * (period - 1) + first % period);
        for word in into.as_chunks_mut::<8>().0 {
            let is_block = within + 1 != period && block < u64::from(self.geometry.block_count);
            *word = if is_block { (self.place(block) | 6).to_le_bytes() } else { [0; 8] };
            block += u64::from(within + 1 != period);
            within = if within + 1 == period { 0 } else { within + 1 };
        }
        Ok(())
    }

    fn write_at(&mut self, offset_bytes: u64, bytes: &[u8]) -> Result<(), StorageError> {
        self.small.write(offset_bytes, bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StorageError> {
        Ok(())
    }

    fn set_len(&mut self, len_bytes: u64) -> Result<(), StorageError> {
        self.len = len_bytes;
        Ok(())
    }
}

fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: u64 = text.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).expect("the second number");
    pages * 4096
}

/// What this thread has had of a processor: the wall clock would measure what else the machine does.
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    let nanoseconds = text.split_whitespace().next().and_then(|time| time.parse().ok()).expect("the first number");
    Duration::from_nanos(nanoseconds)
}

/// Serve the engine until it wants nothing; what it does to the file is not kept, but reads are answered.
fn serve(file: &mut FullFile, disk: &mut OpenDisk) -> Vec<Event> {
    let engine = disk.engine.as_mut().expect("opened for writing");
    let mut events = Vec::new();
    while let Some(io) = engine.poll_io() {
        let id = io.id;
        match io.kind {
            MetadataIoKind::Read { offset_bytes, len_bytes } => {
                let mut bytes = vec![0; len_bytes as usize];
                file.read_at(offset_bytes, &mut bytes).expect("reads");
                engine.complete_read(id, Ok(&bytes));
            }
            MetadataIoKind::Extend { to_bytes, .. } => {
                file.len = to_bytes;
                engine.complete(id, Ok(()));
            }
            _ => engine.complete(id, Ok(())),
        }
    }
    events.extend(std::iter::from_fn(|| engine.poll_event()));
    events
}

#[test]
fn the_largest_disk_opens_at_once_and_works() {
    let mut file = FullFile::new();
    let before = resident_bytes();
    let start = processor_time();
    let mut disk = open_with(&mut file, Access::ReadWrite, 1).expect("opens");
    let (took, grown) = (processor_time() - start, resident_bytes().saturating_sub(before));
    println!("{} blocks: {took:?}, {} MiB", disk.map.blocks_allocated(), grown / MIB);
    assert_eq!(u64::from(disk.map.blocks_allocated()), DISK / BLOCK);
    // Unoptimised builds take many times what a release build does.
    let limit = if cfg!(debug_assertions) { Duration::from_secs(15) } else { Duration::from_secs(1) };
    assert!(took < limit, "{took:?}");
    assert!(grown < 64 * MIB, "{grown}");

    // Behind what is resident, pages are loaded as they are needed, and others make room.
    let chain = lunaring::blocks::Chain::new(vec![lunaring::blocks::Level::Map {
        layer: 0,
        map: std::sync::Arc::clone(&disk.map),
    }]);
    let mut loads = 0;
    for step in 0..6000u64 {
        let block = step * 5591 % (DISK / BLOCK);
        let entry = loop {
            match disk.map.entry(block as u32) {
                Ok(entry) => break entry,
                Err(fault) => {
                    assert_eq!(fault.table, Table::Entries);
                    let engine = disk.engine.as_mut().expect("there");
                    assert_eq!(engine.load(fault, Ticket(step)), Ok(Asked::Queued));
                    let done = Event::Done { ticket: Ticket(step), result: Ok(Done::Ok) };
                    assert_eq!(serve(&mut file, &mut disk), [done]);
                    loads += 1;
                }
            }
        };
        assert_eq!(entry, Entry::new(State::Full, file.place(block)));
    }
    assert!(loads > 4000, "{loads}");
    assert!(chain.size_bytes() == DISK && disk.map.memory_bytes() < 40 * MIB, "{}", disk.map.memory_bytes());

    // Unmapping the end of the disk, the start of the file, far from what is resident; another block gets the space.
    let engine = disk.engine.as_mut().expect("there");
    assert_eq!(engine.unmap(DISK - 3 * BLOCK, 3 * BLOCK, Ticket(1)), Ok(Asked::Queued));
    let events = serve(&mut file, &mut disk);
    assert!(events.contains(&Event::Done { ticket: Ticket(1), result: Ok(Done::Ok) }), "{events:?}");
    assert_eq!(u64::from(disk.map.blocks_allocated()), DISK / BLOCK - 3);
    let engine = disk.engine.as_mut().expect("there");
    assert_eq!(engine.prepare(DISK - BLOCK, 512, Ticket(2)), Ok(Asked::Queued));
    let _ = serve(&mut file, &mut disk);
    let last = (DISK / BLOCK - 1) as u32;
    assert_eq!(disk.map.entry(last), Ok(Entry::new(State::Full, file.first_block)));
    println!("{} MiB after {loads} loads", resident_bytes().saturating_sub(before) / MIB);
    assert!(resident_bytes().saturating_sub(before) < 96 * MIB);
}
