//! What the VHDX engine costs its home shard: giving blocks space, making staged data visible, and replaying the log.
//! The host completes every operation at once, so this is the engine alone.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use lunaring::blocks::{Engine as _, MetadataIoKind, Ticket};
use lunaring::vhdx::{
    Access, CreateOptions, DiskKind, Guid, NewParent, OpenDisk, OpenOptions, ParentLocator, Storage, StorageError,
    VhdxParent, create, open,
};

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;

/// A file in memory; pages that were never written read as zeros.
#[derive(Clone, Default)]
struct Memory {
    pages: BTreeMap<u64, Box<[u8]>>,
    len: u64,
}

impl Storage for Memory {
    fn len_bytes(&mut self) -> Result<u64, StorageError> {
        Ok(self.len)
    }

    fn read_at(&mut self, offset_bytes: u64, into: &mut [u8]) -> Result<(), StorageError> {
        let mut done = 0;
        while done < into.len() {
            let at = offset_bytes + done as u64;
            let within = (at % PAGE) as usize;
            let part = &mut into[done..];
            let len = part.len().min(PAGE as usize - within);
            match self.pages.get(&(at / PAGE)) {
                Some(page) => part[..len].copy_from_slice(&page[within..within + len]),
                None => part[..len].fill(0),
            }
            done += len;
        }
        Ok(())
    }

    fn write_at(&mut self, offset_bytes: u64, bytes: &[u8]) -> Result<(), StorageError> {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset_bytes + done as u64;
            let within = (at % PAGE) as usize;
            let len = (bytes.len() - done).min(PAGE as usize - within);
            let page = self.pages.entry(at / PAGE).or_insert_with(|| vec![0; PAGE as usize].into());
            page[within..within + len].copy_from_slice(&bytes[done..done + len]);
            done += len;
        }
        self.len = self.len.max(offset_bytes + bytes.len() as u64);
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

fn open_options() -> OpenOptions {
    let mut next = 1u128;
    let guids = Box::new(move || {
        next += 1;
        Guid::from_u128(next)
    });
    OpenOptions { access: Access::ReadWrite, guids, data_write_guid: None }
}

fn new_file(child: bool) -> Memory {
    let size_bytes = 1 << 40;
    let locator = ParentLocator::Vhdx(VhdxParent {
        linkage: Guid([7; 16]),
        linkage2: None,
        relative_path: Some("parent.vhdx".into()),
        volume_path: None,
        absolute_win32_path: None,
        others: Vec::new(),
    });
    let options = CreateOptions {
        size_bytes,
        kind: DiskKind::Dynamic,
        block_size_bytes: Some(MIB),
        logical_sector_bytes: 512,
        physical_sector_bytes: 4096,
        log_len_bytes: None,
        virtual_disk_id: Guid([1; 16]),
        file_write_guid: Guid([2; 16]),
        data_write_guid: Guid([3; 16]),
        parent: child.then(|| NewParent { locator, size_bytes, logical_sector_bytes: 512, items: Vec::new() }),
    };
    let mut file = Memory::default();
    create(&options, &mut file).expect("creates");
    file
}

/// An open disk whose session is open.
struct Bench {
    disk: OpenDisk,
    file: Option<Memory>,
}

impl Bench {
    fn new(child: bool, keep: bool) -> Self {
        let mut file = new_file(child);
        let disk = open(&mut file, open_options()).expect("opens");
        let mut bench = Self { disk, file: keep.then_some(file) };
        bench.engine().begin_write_session().expect("healthy");
        bench.serve();
        bench
    }

    fn engine(&mut self) -> &mut lunaring::vhdx::Engine {
        self.disk.engine.as_mut().expect("opened for writing")
    }

    /// Complete whatever is wanted.
    fn serve(&mut self) -> usize {
        let engine = self.disk.engine.as_mut().expect("opened for writing");
        while let Some(io) = engine.poll_io() {
            let id = io.id;
            match (io.kind, &mut self.file) {
                (MetadataIoKind::Write { offset_bytes, bytes }, Some(file)) => {
                    file.write_at(offset_bytes, bytes).expect("memory");
                }
                (MetadataIoKind::Write { bytes, .. }, None) => drop(black_box(bytes.first().copied())),
                (MetadataIoKind::Extend { to_bytes, .. }, Some(file)) => file.len = to_bytes,
                // A page of sector bits in front of its first write.
                (MetadataIoKind::Read { .. }, _) => {
                    engine.complete_read(id, Ok(&[0; PAGE as usize]));
                    continue;
                }
                _ => {}
            }
            engine.complete(id, Ok(()));
        }
        std::iter::from_fn(|| engine.poll_event()).count()
    }
}

fn prepare(criterion: &mut Criterion) {
    for at_once in [1u64, 32] {
        let mut group = criterion.benchmark_group("allocate blocks");
        group.throughput(Throughput::Elements(at_once));
        let (mut bench, mut next) = (Bench::new(false, false), 0);
        group.bench_function(format!("{at_once} in a group"), |bencher| {
            bencher.iter(|| {
                if (next + at_once) * MIB > 1 << 40 {
                    (bench, next) = (Bench::new(false, false), 0);
                }
                for block in next..next + at_once {
                    bench.engine().prepare(block * MIB, PAGE, Ticket(block)).expect("healthy");
                }
                next += at_once;
                bench.serve()
            });
        });
        group.finish();
    }
}

/// Sequential writes of 4 KiB into a child: each is staged once per block, and committed.
fn commit(criterion: &mut Criterion) {
    for at_once in [1u64, 32] {
        let mut group = criterion.benchmark_group("commit writes of 4 KiB");
        group.throughput(Throughput::Elements(at_once));
        let (mut bench, mut next) = (Bench::new(true, false), 0);
        group.bench_function(format!("{at_once} in a group"), |bencher| {
            bencher.iter(|| {
                if (next + at_once) * PAGE > 1 << 40 {
                    (bench, next) = (Bench::new(true, false), 0);
                }
                let epoch = bench.disk.map.placement_epoch();
                bench.engine().prepare(next * PAGE, at_once * PAGE, Ticket(0)).expect("healthy");
                bench.serve();
                for write in next..next + at_once {
                    bench.engine().commit(write * PAGE, PAGE, epoch, Ticket(write)).expect("healthy");
                }
                next += at_once;
                bench.serve()
            });
        });
        group.finish();
    }
}

/// A pending log of 500 entries.
fn replay(criterion: &mut Criterion) {
    let mut bench = Bench::new(false, true);
    for block in 0..500 {
        bench.engine().prepare(block * 977 * MIB, PAGE, Ticket(block)).expect("healthy");
        bench.serve();
    }
    let dirty = bench.file.take().expect("kept");
    let mut group = criterion.benchmark_group("open");
    group.sample_size(10).measurement_time(Duration::from_secs(4));
    group.bench_function("with 500 entries to replay", |bencher| {
        let opens = |mut file: Memory| {
            let disk = open(&mut file, open_options()).expect("opens");
            assert_eq!(disk.map.blocks_allocated(), 500);
        };
        bencher.iter_batched(|| dirty.clone(), opens, BatchSize::LargeInput);
    });
    group.finish();
}

criterion_group!(benches, prepare, commit, replay);
criterion_main!(benches);
