//! What we write is read alike by everybody who may be believed: over sizes, blocks, sectors, kinds and histories, in
//! the middle of a session and after it; what others write is read by us; and both in turns.

use std::path::{Path, PathBuf};

use lunaring::vhdx::DiskKind;
use tempfile::TempDir;

use crate::judge::{Format, Judge, Verdict, run};
use crate::ours::{Ours, create, verdict_of};
use crate::specification::judge_all;
use crate::trust::{Log, Subject};
use crate::vhdx_support::{MIB, Random, SparseFile};

fn qemu(program: &str, arguments: &[&str], directory: &Path) -> String {
    run(program, "qemu-utils", arguments, directory).unwrap_or_else(|text| panic!("{program} {arguments:?}: {text}"))
}

fn qemu_name(format: Format) -> &'static str {
    match format {
        Format::Vhdx => "vhdx",
        Format::Vhd => "vpc",
    }
}

/// One point of the matrix.
struct Point {
    format: Format,
    kind: DiskKind,
    block: u64,
    sector: u64,
    size: u64,
    /// Files in the chain.
    depth: usize,
    /// What writes start and end at.
    grain: u64,
    unmaps: bool,
}

impl Point {
    fn subject(&self, depth: usize, log: Log) -> Subject {
        Subject {
            depth,
            sector_bytes: self.sector,
            size_bytes: self.size,
            log,
            any_states: self.unmaps,
            runs_are_whole_bytes: self.grain >= 8 * self.sector,
            ..Subject::new(self.format)
        }
    }

    /// Make the chain file by file; judge each while it is open and when it is closed.
    fn judge(&self, seed: u64) {
        let directory = TempDir::new().expect("a temporary directory");
        let mut expected = SparseFile { len: self.size, ..SparseFile::default() };
        let (mut paths, mut random) = (Vec::<PathBuf>::new(), Random(seed));
        for depth in 1..=self.depth {
            let kind = if depth == 1 { self.kind } else { DiskKind::Dynamic };
            let extension = if self.format == Format::Vhdx { "vhdx" } else { "vhd" };
            let path = directory.path().join(format!("disk{depth}.{extension}"));
            create(&path, kind, self.size, self.block, self.sector as u32, paths.first().map(PathBuf::as_path));
            paths.insert(0, path);
            let chain: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
            let mut ours = Ours::open(chain[0], true).expect("opens");
            ours.live(&mut expected, 40, self.grain, self.unmaps, &mut random);
            let verdict = verdict_of(&expected);
            assert_eq!(ours.read_all(), verdict);
            if self.format == Format::Vhdx {
                self.judge_dirty(&chain, &verdict);
            }
            ours.close();
            judge_all(&self.subject(depth, Log::Clean), &chain, &verdict);
            let mut again = Ours::open(chain[0], false).expect("opens again");
            assert_eq!(again.read_all(), verdict);
        }
    }

    /// The file as it is while it is served, with its log pending.
    fn judge_dirty(&self, chain: &[&Path], verdict: &Verdict) {
        let copy = chain[0].with_file_name("dirty.vhdx");
        std::fs::copy(chain[0], &copy).expect("the temporary directory has space");
        let dirty: Vec<&Path> = [&[copy.as_path()], &chain[1..]].concat();
        judge_all(&self.subject(chain.len(), Log::Ours), &dirty, verdict);
        let mut replayed = Ours::open(&copy, false).expect("opens read-only");
        assert_eq!(&replayed.read_all(), verdict, "we read our own log");
        if chain.len() == 1 && self.sector == 512 {
            let directory = copy.parent().expect("a directory");
            qemu("qemu-img", &["check", "-r", "all", "-f", "vhdx", "dirty.vhdx"], directory);
            assert_eq!(&Judge::QemuImg.read(&dirty), verdict, "qemu-img has replayed our log");
        }
        std::fs::remove_file(&copy).expect("it is there");
    }
}

fn vhdx(kind: DiskKind, block: u64, sector: u64, size: u64) -> Point {
    Point { format: Format::Vhdx, kind, block, sector, size, depth: 1, grain: sector, unmaps: true }
}

#[test]
fn our_vhdx_are_read_alike_by_all() {
    use DiskKind::{Dynamic, Fixed};
    for (seed, point) in [
        vhdx(Dynamic, MIB, 512, 17 * MIB),
        vhdx(Dynamic, 2 * MIB, 512, 21 * MIB + 4096),
        vhdx(Dynamic, 32 * MIB, 512, 36 * MIB),
        vhdx(Dynamic, 256 * MIB, 512, 3 * MIB),
        vhdx(Dynamic, MIB, 4096, 17 * MIB + 4096),
        vhdx(Dynamic, 8 * MIB, 4096, 20 * MIB),
        vhdx(Fixed, 2 * MIB, 512, 11 * MIB),
        vhdx(Fixed, MIB, 4096, 7 * MIB),
    ]
    .into_iter()
    .enumerate()
    {
        println!("{:?} blocks {} sectors {} size {}", point.kind, point.block, point.sector, point.size);
        point.judge(seed as u64);
    }
}

#[test]
fn our_chains_are_read_alike_by_all() {
    for (seed, point) in [
        Point { depth: 8, grain: 4096, ..vhdx(DiskKind::Dynamic, MIB, 512, 6 * MIB) },
        Point { depth: 4, ..vhdx(DiskKind::Fixed, 2 * MIB, 512, 9 * MIB) },
        Point { depth: 3, unmaps: false, ..vhdx(DiskKind::Dynamic, 2 * MIB, 512, 9 * MIB) },
        Point { depth: 3, ..vhdx(DiskKind::Dynamic, MIB, 4096, 8 * MIB) },
    ]
    .into_iter()
    .enumerate()
    {
        println!("depth {} blocks {} sectors {}", point.depth, point.block, point.sector);
        point.judge(100 + seed as u64);
    }
}

#[test]
fn our_vhd_are_read_alike_by_all() {
    let vhd = |kind, block, size| Point { format: Format::Vhd, unmaps: false, ..vhdx(kind, block, 512, size) };
    for (seed, point) in [
        vhd(DiskKind::Fixed, 2 * MIB, 9 * MIB),
        vhd(DiskKind::Dynamic, 2 * MIB, 21 * MIB + 512),
        Point { unmaps: true, ..vhd(DiskKind::Dynamic, 512 << 10, 9 * MIB) },
        Point { depth: 4, ..vhd(DiskKind::Dynamic, 2 * MIB, 9 * MIB) },
        Point { depth: 3, unmaps: true, ..vhd(DiskKind::Fixed, 512 << 10, 5 * MIB) },
    ]
    .into_iter()
    .enumerate()
    {
        println!("{:?} depth {} blocks {} size {}", point.kind, point.depth, point.block, point.size);
        point.judge(200 + seed as u64);
    }
}

/// What qemu-io writes is read by us, what we write then is read by it, and so on.
fn in_turns(format: Format, options: &str, seed: u64) {
    let directory = TempDir::new().expect("a temporary directory");
    let (here, name) = (directory.path(), qemu_name(format));
    let file = if format == Format::Vhdx { "turns.vhdx" } else { "turns.vhd" };
    qemu("qemu-img", &["create", "-f", name, "-o", options, file, "20M"], here);
    let path = here.join(file);
    let size = Ours::open(&path, false).expect("opens").disk.size_bytes();
    assert_eq!(size, 20 * MIB);
    let (mut expected, mut random) = (SparseFile { len: size, ..SparseFile::default() }, Random(seed));
    for turn in 0..6u64 {
        if turn % 2 == 0 {
            for _ in 0..6 {
                let (at, value) = (random.below(size / 512 - 64) * 512, 1 + random.below(255));
                let command = format!("write -P {value} {at} 32k");
                qemu("qemu-io", &["-f", name, "-c", &command, file], here);
                expected.write(at, &[value as u8; 32 << 10]);
            }
        } else {
            let mut ours = Ours::open(&path, true).expect("opens");
            ours.live(&mut expected, 12, 512, format == Format::Vhdx, &mut random);
            ours.close();
        }
        let verdict = verdict_of(&expected);
        let mut ours = Ours::open(&path, false).expect("opens");
        assert_eq!(ours.read_all(), verdict, "we, in turn {turn}");
        let fixed_with_holes = options.contains("fixed");
        judge_all(&Subject { size_bytes: size, fixed_with_holes, ..Subject::new(format) }, &[&path], &verdict);
        let check = run("qemu-img", "qemu-utils", &["check", "-f", name, file], here);
        assert!(format == Format::Vhd || check.is_ok(), "{check:?}");
    }
}

#[test]
fn vhdx_is_written_in_turns() {
    in_turns(Format::Vhdx, "subformat=dynamic,block_size=1M", 1);
    in_turns(Format::Vhdx, "subformat=dynamic,block_size=8M,block_state_zero=off,log_size=2M", 2);
    in_turns(Format::Vhdx, "subformat=fixed,block_size=2M", 3);
}

#[test]
fn vhd_is_written_in_turns() {
    in_turns(Format::Vhd, "subformat=dynamic,force_size=on", 4);
    in_turns(Format::Vhd, "subformat=fixed,force_size=on", 5);
}
