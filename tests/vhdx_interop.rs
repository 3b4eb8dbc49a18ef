//! Other people's judgement of our VHDX files, and ours of theirs: qemu-img (package qemu-utils) and the `wxtla` crate.

mod vhdx_support;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use lunaring::blocks::Event;
use lunaring::vhdx::{Access, CreateOptions, DiskKind, create};
use tempfile::TempDir;
use vhdx_support::{Host, MIB, Random, RecordedFile, SECTOR, SparseFile, create_options, open_with, read_disk};
use wxtla::{ByteSource, FileDataSource, images::vhdx::VhdxImage};

fn qemu(program: &str, arguments: &[&str], directory: &Path) -> String {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .output()
        .unwrap_or_else(|error| panic!("{program} (package qemu-utils) is needed: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    text
}

fn new_disk(options: &CreateOptions) -> SparseFile {
    let mut file = SparseFile::default();
    create(options, &mut file).expect("creates");
    file
}

/// Write `count` runs of random sectors, both to the disk and to what is expected.
fn scribble(host: &mut Host, expected: &mut SparseFile, count: u64, seed: u64) {
    let mut random = Random(seed);
    let sectors = host.geometry.disk_size_bytes / SECTOR;
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

fn judge_with_qemu(file: &SparseFile, expected: &SparseFile, directory: &Path, replay: bool) {
    file.save(&directory.join("ours.vhdx"));
    expected.save(&directory.join("expected.raw"));
    if replay {
        qemu("qemu-img", &["check", "-r", "all", "-f", "vhdx", "ours.vhdx"], directory);
    }
    let check = qemu("qemu-img", &["check", "-f", "vhdx", "ours.vhdx"], directory);
    assert!(check.contains("No errors were found"), "{check}");
    qemu("qemu-img", &["map", "--output=json", "-f", "vhdx", "ours.vhdx"], directory);
    let text = qemu("qemu-img", &["compare", "-f", "vhdx", "-F", "raw", "ours.vhdx", "expected.raw"], directory);
    assert!(text.contains("identical"), "{text}");
    qemu("qemu-img", &["convert", "-f", "vhdx", "-O", "raw", "ours.vhdx", "back.raw"], directory);
    let text = qemu("qemu-img", &["compare", "-f", "raw", "-F", "raw", "back.raw", "expected.raw"], directory);
    assert!(text.contains("identical"), "{text}");
}

fn judge_with_wxtla(file: &SparseFile, expected: &SparseFile, directory: &Path) {
    let path = directory.join("judged.vhdx");
    file.save(&path);
    let image = VhdxImage::open(Arc::new(FileDataSource::open(&path).expect("opens"))).expect("wxtla opens our file");
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

#[test]
fn our_disks_are_sound_for_others_when_clean_and_when_dirty() {
    for (kind, block, size) in [
        (DiskKind::Dynamic, MIB, 100 * MIB),
        (DiskKind::Dynamic, 2 * MIB, 77 * MIB + 512),
        (DiskKind::Dynamic, 32 * MIB, 250 * MIB),
        (DiskKind::Dynamic, 256 * MIB, 3 * MIB),
        (DiskKind::Fixed, 2 * MIB, 33 * MIB + 512),
        (DiskKind::Fixed, 32 * MIB, 40 * MIB),
    ] {
        println!("{kind:?}, {block} byte blocks, {size} bytes");
        let directory = TempDir::new().expect("a temporary directory");
        let mut expected = SparseFile { len: size, ..SparseFile::default() };
        let start = new_disk(&create_options(size, kind, block));
        judge_with_qemu(&start, &expected, directory.path(), false);
        judge_with_wxtla(&start, &expected, directory.path());

        let mut host = Host::open(RecordedFile::new(start), size);
        scribble(&mut host, &mut expected, 60, block);
        if kind == DiskKind::Dynamic && 3 * block <= size {
            // Space is given up and used again, and blocks move.
            host.unmap(block, 2 * block).expect("unmaps");
            expected.zero(block, 2 * block);
            scribble(&mut host, &mut expected, 5, block + 1);
            while host.relocate() {}
        }
        let dirty = host.file.now.clone();
        judge_with_wxtla(&dirty, &expected, directory.path());
        judge_with_qemu(&dirty, &expected, directory.path(), true);

        let (file, closed) = host.close();
        assert_eq!(closed, Event::Closed(Ok(())));
        judge_with_qemu(&file.now, &expected, directory.path(), false);
        judge_with_wxtla(&file.now, &expected, directory.path());
    }
}

/// The log at several ages: short of a turn, right behind one, and in its second epoch, replayed by others.
#[test]
fn others_replay_our_log_in_every_epoch() {
    let size = 400 * MIB;
    let mut host = Host::open(RecordedFile::new(new_disk(&create_options(size, DiskKind::Dynamic, MIB))), 5);
    let mut expected = SparseFile { len: size, ..SparseFile::default() };
    let directory = TempDir::new().expect("a temporary directory");
    for block in 0..400 {
        let bytes = [block as u8 | 1; SECTOR as usize];
        host.write(block * MIB + 512 * (block % 7), &bytes).expect("writes");
        expected.write(block * MIB + 512 * (block % 7), &bytes);
        if [0, 1, 123, 124, 125, 126, 127, 128, 250, 399].contains(&block) {
            judge_with_wxtla(&host.file.now, &expected, directory.path());
            judge_with_qemu(&host.file.now, &expected, directory.path(), true);
        }
    }
}

/// Sectors of 4096 bytes, which qemu-img does not know; wxtla does.
#[test]
fn large_sectors_are_sound_for_others() {
    let directory = TempDir::new().expect("a temporary directory");
    let options =
        CreateOptions { logical_sector_bytes: 4096, ..create_options(100 * MIB + 4096, DiskKind::Dynamic, 2 * MIB) };
    let mut expected = SparseFile { len: options.size_bytes, ..SparseFile::default() };
    let mut host = Host::open(RecordedFile::new(new_disk(&options)), 1);
    assert_eq!((host.geometry.logical_sector_bytes, host.geometry.chunk_ratio), (4096, 16384));
    scribble(&mut host, &mut expected, 40, 3);
    judge_with_wxtla(&host.file.now, &expected, directory.path());
    let (file, _) = host.close();
    judge_with_wxtla(&file.now, &expected, directory.path());
}

/// 10 TiB: many table pages, a table of more than 1 MiB, bitmap entries in between.
#[test]
fn a_very_large_disk_is_sound_for_others() {
    let directory = TempDir::new().expect("a temporary directory");
    let size = 10 << 40;
    let start = new_disk(&create_options(size, DiskKind::Dynamic, MIB));
    let mut host = Host::open(RecordedFile::new(start), 1);
    let (mut random, mut written) = (Random(4), Vec::new());
    for _ in 0..200 {
        let offset = random.below(size / SECTOR) * SECTOR;
        let value = random.next() | 1;
        host.write(offset, &value.to_le_bytes().repeat(64)).expect("writes");
        written.push((offset, value));
    }
    let (file, closed) = host.close();
    assert_eq!(closed, Event::Closed(Ok(())));
    file.now.save(&directory.path().join("ours.vhdx"));
    let check = qemu("qemu-img", &["check", "-f", "vhdx", "ours.vhdx"], directory.path());
    assert!(check.contains("No errors were found"), "{check}");
    let source = FileDataSource::open(directory.path().join("ours.vhdx")).expect("opens");
    let image = VhdxImage::open(Arc::new(source)).expect("wxtla opens our file");
    for (offset, value) in written {
        let mut bytes = [0; 8];
        assert_eq!(image.read_at(offset, &mut bytes).expect("reads"), 8);
        assert_eq!(u64::from_le_bytes(bytes), value);
    }
}

#[test]
fn disks_made_by_qemu_are_read_and_written() {
    for options in [
        "subformat=dynamic",
        "subformat=dynamic,block_size=1M",
        "subformat=dynamic,block_size=256M",
        "subformat=dynamic,block_state_zero=off,log_size=2M",
        "subformat=fixed,block_size=2M",
    ] {
        println!("{options}");
        let directory = TempDir::new().expect("a temporary directory");
        let (here, size) = (directory.path(), 70 * MIB);
        qemu("qemu-img", &["create", "-f", "vhdx", "-o", options, "theirs.vhdx", "70M"], here);
        qemu("qemu-img", &["create", "-f", "raw", "expected.raw", "70M"], here);
        for (image, format) in [("theirs.vhdx", "vhdx"), ("expected.raw", "raw")] {
            let commands =
                ["-c", "write -P 0x11 0 64k", "-c", "write -P 0x22 33M 3M", "-c", "write -P 0x33 73399808 512"];
            let arguments = [&["-f", format][..], &commands[..], &[image][..]].concat();
            qemu("qemu-io", &arguments, here);
        }
        let mut expected = SparseFile::load(&here.join("expected.raw"));
        let theirs = SparseFile::load(&here.join("theirs.vhdx"));

        let mut untouched = RecordedFile::new(theirs.clone());
        let disk = open_with(&mut untouched, Access::ReadWrite, 1).expect("opens");
        assert!(untouched.history.is_empty(), "opening a clean file does not change it");
        assert_eq!((disk.geometry.disk_size_bytes, disk.geometry.fixed), (size, options.contains("fixed")));
        assert!(disk.creator.starts_with("QEMU"), "{}", disk.creator);
        let (mut ours, mut raw) = (vec![0; size as usize], vec![0; size as usize]);
        read_disk(&mut untouched, None, &disk.map, 0, &mut ours);
        expected.read(0, &mut raw);
        assert!(ours == raw, "we read what qemu-io wrote");

        let mut host = Host::open(RecordedFile::new(theirs), 3);
        scribble(&mut host, &mut expected, 40, 9);
        judge_with_qemu(&host.file.now.clone(), &expected, here, true);
        let (file, closed) = host.close();
        assert_eq!(closed, Event::Closed(Ok(())));
        judge_with_qemu(&file.now, &expected, here, false);
    }
}

/// QEMU's write to the table fails behind its log entry, and it leaves the log pending. We replay it, in memory and
/// in the file, and see what QEMU sees after its own repair.
#[test]
fn a_log_that_qemu_left_behind_is_replayed() {
    let directory = TempDir::new().expect("a temporary directory");
    let here = directory.path();
    qemu("qemu-img", &["create", "-f", "vhdx", "-o", "block_size=1M,log_size=1M", "theirs.vhdx", "40M"], here);
    qemu("qemu-io", &["-f", "vhdx", "-c", "write -P 1 0 64k", "-c", "write -P 2 39M 512", "theirs.vhdx"], here);
    let failing = "driver=vhdx,file.driver=blkdebug,file.image.driver=file,file.image.filename=theirs.vhdx,\
                   file.inject-error.0.event=none,file.inject-error.0.iotype=write,file.inject-error.0.sector=4096";
    let output = Command::new("qemu-io")
        .args(["--image-opts", failing, "-c", "write -P 3 9M 4k"])
        .current_dir(here)
        .output()
        .expect("qemu-io is needed");
    assert!(String::from_utf8_lossy(&output.stdout).contains("write failed"), "{output:?}");
    let theirs = SparseFile::load(&here.join("theirs.vhdx"));
    qemu("qemu-img", &["check", "-r", "all", "-f", "vhdx", "theirs.vhdx"], here);
    qemu("qemu-img", &["convert", "-f", "vhdx", "-O", "raw", "theirs.vhdx", "expected.raw"], here);
    let mut expected = SparseFile::load(&here.join("expected.raw"));
    let (mut ours, mut raw) = (vec![0; 40 * MIB as usize], vec![0; 40 * MIB as usize]);
    expected.read(0, &mut raw);
    assert_eq!((raw[0], raw[9 << 20], raw[39 << 20]), (1, 3, 2));

    let mut untouched = RecordedFile::new(theirs.clone());
    let disk = open_with(&mut untouched, Access::ReadOnly, 1).expect("opens");
    assert!(disk.replay.is_some_and(|replay| replay.descriptors > 0), "qemu-io left a log");
    assert!(untouched.history.is_empty());
    read_disk(&mut untouched, None, &disk.map, 0, &mut ours);
    assert!(ours == raw, "replayed in memory");
    let mut host = Host::open(RecordedFile::new(theirs), 1);
    host.read(0, &mut ours);
    assert!(ours == raw, "replayed in the file");
    scribble(&mut host, &mut expected, 20, 2);
    let (file, _) = host.close();
    judge_with_qemu(&file.now, &expected, here, false);
}
