//! Other people's judgement of our VHD files, and ours of theirs: qemu-img and qemu-io (package qemu-utils), 7-Zip
//! (package 7zip) and the `wxtla` crate.

mod vhd_support;
mod vhdx_support;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use lunaring::blocks::Event;
use lunaring::vhd::{Access, Kind, NewKind, check, resize, set_parent};
use tempfile::TempDir;
use uuid::Uuid;
use vhd_support::{Host, chain_of, new_disk, open_with, options, parent_named, read_chain};
use vhdx_support::{MIB, Random, RecordedFile, SECTOR, SparseFile};
use wxtla::{ByteSource, FileDataSource, images::vhd::VhdImage};

fn run(program: &str, arguments: &[&str], directory: &Path) -> Vec<u8> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .output()
        .unwrap_or_else(|error| panic!("{program} is needed (packages qemu-utils, 7zip): {error}"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {text}{}", output.stdout.len());
    output.stdout
}

/// Write `count` runs of random sectors, both to the disk and to what is expected.
fn scribble(host: &mut Host, expected: &mut SparseFile, count: u64, seed: u64) {
    let mut random = Random(seed);
    let sectors = expected.len / SECTOR;
    for _ in 0..count {
        let len = 1 + random.below(64.min(sectors));
        let bytes = (random.next() | 1).to_le_bytes().repeat((len * SECTOR) as usize / 8);
        let offset = random.below(sectors - len + 1) * SECTOR;
        host.write(offset, &bytes).expect("writes");
        expected.write(offset, &bytes);
    }
    // The last sector, which lies in a block that may be cut.
    let last = (sectors - 1) * SECTOR;
    host.write(last, &[0x5a; SECTOR as usize]).expect("writes");
    expected.write(last, &[0x5a; SECTOR as usize]);
}

fn size_for_qemu(directory: &Path) -> u64 {
    let info = run("qemu-img", &["info", "--output=json", "-f", "vpc", "ours.vhd"], directory);
    let info: serde_json::Value = serde_json::from_slice(&info).expect("JSON");
    info["virtual-size"].as_u64().expect("a size")
}

fn judge_with_qemu(file: &SparseFile, expected: &SparseFile, directory: &Path) {
    file.save(&directory.join("ours.vhd"));
    expected.save(&directory.join("expected.raw"));
    assert_eq!(size_for_qemu(directory), expected.len);
    run("qemu-img", &["map", "--output=json", "-f", "vpc", "ours.vhd"], directory);
    run("qemu-img", &["compare", "-f", "vpc", "-F", "raw", "ours.vhd", "expected.raw"], directory);
    run("qemu-img", &["convert", "-f", "vpc", "-O", "raw", "ours.vhd", "back.raw"], directory);
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", "back.raw", "expected.raw"], directory);
}

fn judge_with_7zip(name: &str, expected: &SparseFile, directory: &Path) {
    let theirs = run("7zz", &["x", "-tvhd", "-so", name], directory);
    assert_eq!(theirs.len() as u64, expected.len, "7-Zip sees the disk's size");
    let mut ours = vec![0; theirs.len()];
    expected.read(0, &mut ours);
    let differs = theirs.iter().zip(&ours).position(|(a, b)| a != b);
    assert_eq!(differs, None, "7-Zip reads something else");
}

fn judge_with_wxtla(file: &SparseFile, expected: &SparseFile, directory: &Path) {
    let path = directory.join("judged.vhd");
    file.save(&path);
    let image = VhdImage::open(Arc::new(FileDataSource::open(&path).expect("opens"))).expect("wxtla opens our file");
    assert_eq!(image.size().expect("has a size"), expected.len);
    let (mut theirs, mut ours) = (vec![0; MIB as usize], vec![0; MIB as usize]);
    for offset in (0..expected.len).step_by(MIB as usize) {
        let len = (expected.len - offset).min(MIB) as usize;
        let mut done = 0;
        while done < len {
            let read = image.read_at(offset + done as u64, &mut theirs[done..len]).expect("wxtla reads our file");
            assert_ne!(read, 0, "at {offset}");
            done += read;
        }
        expected.read(offset, &mut ours[..len]);
        assert!(theirs[..len] == ours[..len], "content differs near {offset}");
    }
}

fn judge(file: &SparseFile, expected: &SparseFile, directory: &Path) {
    judge_with_qemu(file, expected, directory);
    judge_with_7zip("ours.vhd", expected, directory);
    judge_with_wxtla(file, expected, directory);
    assert_eq!(check(&mut file.clone()).expect("readable").worst, None);
}

#[test]
fn our_dynamic_disks_are_sound_for_others() {
    for (block, size) in [(2 * MIB, 21 * MIB + 512), (512 << 10, 9 * MIB), (2 * MIB, MIB), (2 * MIB, 4_212_736)] {
        println!("{block} byte blocks, {size} bytes");
        let directory = TempDir::new().expect("a temporary directory");
        let mut expected = SparseFile { len: size, ..SparseFile::default() };
        let start = new_disk(&options(size, NewKind::Dynamic, block));
        judge(&start, &expected, directory.path());
        let mut host = Host::open(RecordedFile::new(start), None, size);
        scribble(&mut host, &mut expected, 60, block);
        let (mut running, len) = (host.file.now.clone(), size / block / 2 * block);
        judge(&running, &expected, directory.path());
        host.unmap(0, len).expect("unmaps");
        expected.zero(0, len);
        running = host.file.now.clone();
        judge(&running, &expected, directory.path());
        let (file, closed) = host.close();
        assert_eq!(closed, Event::Closed(Ok(())));
        judge(&file.now, &expected, directory.path());

        // Grown beyond its table, written again.
        let (mut grown, new) = (file.now, 4 * size + 512);
        resize(&mut grown, new).expect("grows");
        expected.set_len(new);
        judge(&grown, &expected, directory.path());
        let mut host = Host::open(RecordedFile::new(grown), None, 3);
        scribble(&mut host, &mut expected, 30, 7);
        judge(&host.close().0.now, &expected, directory.path());
    }
}

#[test]
fn our_fixed_disks_are_sound_for_others() {
    for size in [MIB, 33 * MIB + 512, 4_212_736] {
        let directory = TempDir::new().expect("a temporary directory");
        let mut file = new_disk(&options(size, NewKind::Fixed, 2 * MIB));
        file.write(size - 512, &[3; 512]);
        let mut expected = SparseFile { len: size, ..SparseFile::default() };
        expected.write(size - 512, &[3; 512]);
        judge(&file, &expected, directory.path());
        resize(&mut file, 2 * size).expect("grows");
        expected.set_len(2 * size);
        judge(&file, &expected, directory.path());
    }
}

/// 2040 GiB, the limit: the last block has a sector number, the table is right, and others agree.
#[test]
fn the_largest_disk_is_sound_for_others() {
    let directory = TempDir::new().expect("a temporary directory");
    let size = 2040 << 30;
    let mut host = Host::open(RecordedFile::new(new_disk(&options(size, NewKind::Dynamic, 2 * MIB))), None, 1);
    let mut expected = SparseFile { len: size, ..SparseFile::default() };
    scribble(&mut host, &mut expected, 100, 3);
    let (file, closed) = host.close();
    assert_eq!(closed, Event::Closed(Ok(())));
    judge_with_qemu_ranges(&file.now, &expected, directory.path());
    let image = FileDataSource::open(directory.path().join("ours.vhd")).expect("opens");
    let image = VhdImage::open(Arc::new(image)).expect("wxtla opens our file");
    for page in expected.pages.keys() {
        let (mut theirs, mut ours) = ([0; 4096], [0; 4096]);
        assert_eq!(image.read_at(page * 4096, &mut theirs).expect("reads"), 4096);
        expected.read(page * 4096, &mut ours);
        assert!(theirs == ours, "page {page}");
    }
}

/// Comparing two terabytes of holes is a matter of their maps.
fn judge_with_qemu_ranges(file: &SparseFile, expected: &SparseFile, directory: &Path) {
    file.save(&directory.join("ours.vhd"));
    expected.save(&directory.join("expected.raw"));
    assert_eq!(size_for_qemu(directory), expected.len);
    let commands: Vec<String> =
        expected.pages.keys().map(|page| format!("read -v {} 512", page * 4096)).take(20).collect();
    for command in commands {
        let ours = run("qemu-io", &["-r", "-f", "vpc", "-c", &command, "ours.vhd"], directory);
        let raw = run("qemu-io", &["-r", "-f", "raw", "-c", &command, "expected.raw"], directory);
        let dump = |bytes: Vec<u8>| {
            String::from_utf8(bytes).expect("text").lines().filter(|l| l.contains(":  ")).collect::<Vec<_>>().join("\n")
        };
        let (ours, raw) = (dump(ours), dump(raw));
        assert!(!raw.is_empty() && ours == raw, "{command}");
    }
}

/// Every sector a child has is the child's for 7-Zip too, and the others the parent's.
#[test]
fn our_differencing_disks_are_sound_for_7zip() {
    for (block, size, parent_kind) in
        [(2 * MIB, 21 * MIB + 512, NewKind::Dynamic), (512 << 10, 9 * MIB, NewKind::Fixed)]
    {
        let directory = TempDir::new().expect("a temporary directory");
        let mut content = SparseFile { len: size, ..SparseFile::default() };
        let parent_options = options(size, parent_kind.clone(), 2 * MIB);
        let mut parent = new_disk(&parent_options);
        if parent_kind == NewKind::Fixed {
            for sector in (0..size / SECTOR).step_by(3) {
                let bytes = [sector as u8 | 1; SECTOR as usize];
                parent.write(sector * SECTOR, &bytes);
                content.write(sector * SECTOR, &bytes);
            }
        } else {
            let mut host = Host::open(RecordedFile::new(parent), None, 4);
            scribble(&mut host, &mut content, 200, 4);
            parent = host.close().0.now;
        }
        parent.save(&directory.path().join("parent.vhd"));
        let mut child_options = options(size, NewKind::Differencing(parent_named(parent_options.unique_id)), block);
        child_options.unique_id = Uuid::max();
        let child = new_disk(&child_options);
        let mut expected = content.clone();
        child.save(&directory.path().join("child.vhd"));
        judge_with_7zip("child.vhd", &expected, directory.path());

        let mut host = Host::open(RecordedFile::new(child), Some(content), 8);
        scribble(&mut host, &mut expected, 80, 9);
        host.unmap(4 * MIB, 4 * MIB).expect("unmaps");
        expected.zero(4 * MIB, 4 * MIB);
        scribble(&mut host, &mut expected, 10, 10);
        host.file.now.save(&directory.path().join("child.vhd"));
        judge_with_7zip("child.vhd", &expected, directory.path());
        let (mut file, closed) = host.close();
        assert_eq!(closed, Event::Closed(Ok(())));

        // Under another name.
        std::fs::rename(directory.path().join("parent.vhd"), directory.path().join("moved.vhd")).expect("renames");
        let mut moved = parent_named(parent_options.unique_id);
        moved.name = "moved.vhd".to_owned();
        moved.relative_paths = vec![".\\moved.vhd".to_owned()];
        set_parent(&mut file.now, &moved).expect("sets the parent");
        file.now.save(&directory.path().join("child.vhd"));
        judge_with_7zip("child.vhd", &expected, directory.path());
        let disk = open_with(&mut file.now, Access::ReadOnly).expect("opens");
        assert_eq!(disk.parent, Some(moved));
    }
}

/// QEMU makes it, we write, QEMU writes, and so on.
#[test]
fn disks_made_by_qemu_are_read_and_written_in_turns() {
    for options in
        ["subformat=dynamic", "subformat=dynamic,force_size=on", "subformat=fixed", "subformat=fixed,force_size=on"]
    {
        println!("{options}");
        let directory = TempDir::new().expect("a temporary directory");
        let here = directory.path();
        run("qemu-img", &["create", "-f", "vpc", "-o", options, "ours.vhd", "20M"], here);
        let mut file = SparseFile::load(&here.join("ours.vhd"));
        let disk = open_with(&mut file, Access::ReadOnly).expect("opens");
        let size = disk.shape.size_bytes;
        assert_eq!(disk.kind == Kind::Fixed, options.contains("fixed"));
        assert_eq!(size == 20 * MIB, options.contains("force"), "{size}");
        SparseFile { len: size, ..SparseFile::default() }.save(&here.join("expected.raw"));
        for round in 1..3u64 {
            for (image, format) in [("ours.vhd", "vpc"), ("expected.raw", "raw")] {
                let place = |at: u64, len: u64| format!("write -P {} {} {len}", 16 * round + at % 16, at * SECTOR);
                let (a, b) = (place(round * 15_011, 70 * 512), place(size / SECTOR - round, 512));
                run("qemu-io", &["-f", format, "-c", &a, "-c", &b, image], here);
            }
            let mut expected = SparseFile::load(&here.join("expected.raw"));
            let mut theirs = SparseFile::load(&here.join("ours.vhd"));
            let disk = open_with(&mut theirs, Access::ReadOnly).expect("opens");
            assert!(
                disk.creator.starts_with("qem") && disk.warnings.is_empty(),
                "{} {:?}",
                disk.creator,
                disk.warnings
            );
            let (mut read, mut raw) = (vec![0; size as usize], vec![0; size as usize]);
            read_chain(&chain_of(&disk, None), &mut theirs, None, 0, &mut read);
            expected.read(0, &mut raw);
            assert!(read == raw, "we read what qemu-io wrote");
            if disk.kind == Kind::Fixed {
                theirs.write(round * 512, &[round as u8; 512]);
                expected.write(round * 512, &[round as u8; 512]);
                judge_with_qemu(&theirs, &expected, here);
                continue;
            }
            let mut host = Host::open(RecordedFile::new(theirs), None, round);
            scribble(&mut host, &mut expected, 30, round);
            let (file, closed) = host.close();
            assert_eq!(closed, Event::Closed(Ok(())));
            judge(&file.now, &expected, here);
        }
    }
}
