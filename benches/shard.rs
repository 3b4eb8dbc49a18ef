//! What commands cost a shard, and the single steps of their way, in time. `tools cost` counts the instructions of the
//! same.
//!
//! A round is a batch of commands that arrive together; making them up is not measured.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use lunaring::crc32c::crc32c;
use lunaring::medium::DiskFormat;
use lunaring::sim::instant::{Access, COMMANDS_PER_TURN, Pieces, Rig, Workload};

fn bench_load(criterion: &mut Criterion, name: &str, format: DiskFormat, workload: Workload) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut rig = Rig::new(format, &folder.path().join("disk"), workload).expect("a session");
    let mut group = criterion.benchmark_group("shard");
    group.throughput(Throughput::Elements(u64::from(COMMANDS_PER_TURN)));
    group.bench_function(name, |bench| {
        bench.iter_custom(|rounds| {
            let mut spent = Duration::ZERO;
            for _ in 0..rounds {
                rig.offer();
                let began = Instant::now();
                rig.turn();
                spent += began.elapsed();
            }
            spent
        });
    });
}

fn loads(criterion: &mut Criterion) {
    for (name, format) in [("null", DiskFormat::Null), ("memory", DiskFormat::Memory), ("vhdx", DiskFormat::Vhdx)] {
        for (access_name, access) in [("read", Access::Read), ("write", Access::Write)] {
            for (digests_name, digests) in [("", false), (", digests", true)] {
                let workload = Workload { access, len_bytes: 4096, digests };
                bench_load(criterion, &format!("32 x {access_name} 4 KiB, {name}{digests_name}"), format, workload);
            }
        }
    }
}

fn steps(criterion: &mut Criterion) {
    let mut pieces = Pieces::new();
    let mut group = criterion.benchmark_group("step");
    group.throughput(Throughput::Elements(u64::from(COMMANDS_PER_TURN)));
    group.bench_function("32 x parse a SCSI Command", |bench| bench.iter(|| pieces.parse()));
    group.bench_function("32 x build a Data-In", |bench| bench.iter(|| pieces.build()));
    group.bench_function("32 x dispatch READ (10)", |bench| bench.iter(|| pieces.dispatch()));
    group.bench_function("32 x through a mailbox", |bench| bench.iter(|| pieces.mail()));
}

fn digests(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("crc32c");
    let bytes = vec![0x5a; 128 * 1024];
    for len in [48, 512, 4096, 128 * 1024] {
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(format!("{len} bytes"), |bench| bench.iter(|| crc32c(black_box(&bytes[..len]))));
    }
}

criterion_group!(benches, loads, steps, digests);
criterion_main!(benches);
