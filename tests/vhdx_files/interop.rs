//! Other people's judgement of what was changed here: qemu-img (package qemu-utils) and the `wxtla` crate, and images
//! made by others, changed.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use lunaring::vhdx::{
    DiskKind, Guid, ParentLocator, ResizeOptions, Severity, check, get_item, repair, resize, set_item,
};
use serde_json::Value;
use tempfile::TempDir;
use wxtla::{ByteSource, FileDataSource, images::vhdx::VhdxImage};

use crate::hand::{child, entry_at, geometry, made, put_block, resize_options, source};
use crate::vhdx_support::{Change, MIB, RecordedFile, SparseFile, create_options};

fn qemu_img(arguments: &[&str], directory: &Path) -> Output {
    Command::new("qemu-img")
        .args(arguments)
        .current_dir(directory)
        .output()
        .unwrap_or_else(|error| panic!("qemu-img (package qemu-utils) is needed: {error}"))
}

fn succeeds(arguments: &[&str], directory: &Path) -> String {
    let output = qemu_img(arguments, directory);
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "qemu-img {arguments:?}: {text}");
    text
}

/// qemu-img and wxtla see this content. `replay`: the file's log is pending, and qemu-img may apply it.
fn judge(file: &SparseFile, expected: &SparseFile, replay: bool) {
    let directory = TempDir::new().expect("a temporary directory");
    let here = directory.path();
    file.save(&here.join("ours.vhdx"));
    expected.save(&here.join("expected.raw"));
    judge_with_wxtla(&here.join("ours.vhdx"), expected);
    if replay {
        succeeds(&["check", "-r", "all", "-f", "vhdx", "ours.vhdx"], here);
    }
    let text = succeeds(&["check", "-f", "vhdx", "ours.vhdx"], here);
    assert!(text.contains("No errors were found"), "{text}");
    if expected.len > 1 << 30 {
        return; // Comparing holes takes qemu-img minutes; wxtla has looked at all that is not a hole.
    }
    let text = succeeds(&["compare", "-f", "vhdx", "-F", "raw", "ours.vhdx", "expected.raw"], here);
    assert!(text.contains("identical"), "{text}");
}

fn judge_with_wxtla(path: &Path, expected: &SparseFile) {
    let image = VhdxImage::open(Arc::new(FileDataSource::open(path).expect("opens"))).expect("wxtla opens our file");
    assert_eq!(image.size().expect("has a size"), expected.len);
    // Where something is, and the ends; the rest is looked at by qemu-img.
    let (mut theirs, mut ours) = (vec![0; 4096], vec![0; 4096]);
    let ends = [0, (expected.len - 1) / 4096];
    for page in expected.pages.keys().copied().chain(ends) {
        let len = (expected.len - page * 4096).min(4096) as usize;
        let mut done = 0;
        while done < len {
            let read = image.read_at(page * 4096 + done as u64, &mut theirs[done..len]).expect("wxtla reads our file");
            assert_ne!(read, 0);
            done += read;
        }
        expected.read(page * 4096, &mut ours[..len]);
        assert!(theirs[..len] == ours[..len], "content differs in page {page}");
    }
}

/// A disk with something in its first, its last and a middle block, and what it shows.
fn with_content(kind: DiskKind, size: u64, block_size: u64) -> (SparseFile, SparseFile) {
    let mut file = made(&create_options(size, kind, block_size));
    let shape = geometry(&file);
    let mut expected = SparseFile { len: size, ..SparseFile::default() };
    for (block, value) in [(0, 0x11u8), (shape.block_count / 2, 0x22), (shape.block_count - 1, 0x33)] {
        let place = match kind {
            DiskKind::Dynamic => put_block(&mut file, block, 6),
            DiskKind::Fixed => crate::hand::word(&file, entry_at(&shape, block)) & !(MIB - 1),
        };
        let visible = shape.visible_len_bytes(block).min(8192) as usize;
        file.write(place, &vec![value; visible]);
        expected.write(u64::from(block) * block_size, &vec![value; visible]);
    }
    (file, expected)
}

#[test]
fn resized_disks_are_sound_for_others() {
    for (kind, block, sizes) in [
        (DiskKind::Dynamic, MIB, [20 * MIB + 512, 31 * MIB, 700 * MIB + 1024]),
        (DiskKind::Dynamic, 32 * MIB, [70 * MIB, 40 * MIB, 300 * MIB]),
        (DiskKind::Fixed, 2 * MIB, [9 * MIB, 12 * MIB + 512, 30 * MIB]),
        // The table moves.
        (DiskKind::Dynamic, MIB, [120 << 30, 140 << 30, 130 << 30]),
        (DiskKind::Dynamic, 2 * MIB, [100 << 30, 3 << 40, 2 << 40]),
    ] {
        println!("{kind:?}, {block} byte blocks, {sizes:?}");
        let (mut file, mut expected) = with_content(kind, sizes[0], block);
        for size in &sizes[1..] {
            let options = ResizeOptions { allow_cut: true, ..resize_options(*size) };
            resize(&mut file, *size, options).expect("resizes");
            expected.set_len(*size);
            judge(&file, &expected, false);
        }
    }
}

/// The power goes when the change has become visible and no page is in its place: others replay our log.
#[test]
fn a_change_that_was_cut_is_completed_by_others() {
    for (start, end) in [(20 * MIB, 33 * MIB), (120 << 30, 140 << 30), (33 * MIB, 17 * MIB)] {
        let (file, mut expected) = with_content(DiskKind::Dynamic, start, MIB);
        let mut recorded = RecordedFile::new(file);
        let options = ResizeOptions { allow_cut: true, ..resize_options(7) };
        resize(&mut recorded, end, options).expect("resizes");
        let flushes: Vec<usize> =
            (0..recorded.history.len()).filter(|at| matches!(recorded.history[*at], Change::Flush)).collect();
        // The third flush makes the header durable that names the log.
        let cut = recorded.cut(&recorded.start, 0, flushes[2] + 1, None);
        assert!(matches!(check(&mut cut.clone()).expect("read").log, lunaring::vhdx::LogFacts::Pending(_)));
        expected.set_len(end);
        judge(&cut, &expected, true);
        let mut ours = cut;
        repair(&mut ours, source(1)).expect("replays");
        judge(&ours, &expected, false);
    }
}

#[test]
fn items_do_not_disturb_others() {
    let (mut file, expected) = with_content(DiskKind::Dynamic, 30 * MIB, MIB);
    for number in 0..40u8 {
        set_item(&mut file, source(number.into()), Guid([number + 1; 16]), number % 2 == 0, &[number; 900])
            .expect("sets");
    }
    judge(&file, &expected, false);
    // Long ones: the metadata moves.
    for number in 0..4u8 {
        set_item(&mut file, source(number.into()), Guid([number + 1; 16]), false, &[number; 1 << 20]).expect("sets");
    }
    judge(&file, &expected, false);
    // And what qemu-img writes leaves them there.
    let directory = TempDir::new().expect("a temporary directory");
    file.save(&directory.path().join("ours.vhdx"));
    let write = Command::new("qemu-io")
        .args(["-f", "vhdx", "-c", "write -P 7 9M 64k", "ours.vhdx"])
        .current_dir(directory.path())
        .output()
        .expect("qemu-io is needed");
    assert!(write.status.success(), "{write:?}");
    let mut theirs = SparseFile::load(&directory.path().join("ours.vhdx"));
    assert_eq!(get_item(&mut theirs, Guid([3; 16])), Ok(Some(vec![2; 1 << 20])));
    assert_eq!(get_item(&mut theirs, Guid([40; 16])), Ok(Some(vec![39; 900])));
}

/// qemu-img knows no parents. It must say so and not show a child's holes as zeros.
#[test]
fn children_are_refused_by_those_who_cannot_read_them() {
    let directory = TempDir::new().expect("a temporary directory");
    child(30 * MIB).save(&directory.path().join("child.vhdx"));
    let output = qemu_img(&["convert", "-f", "vhdx", "-O", "raw", "child.vhdx", "out.raw"], directory.path());
    assert!(!output.status.success(), "{output:?}");
}

fn unpack(packed: &Path, directory: &Path) -> SparseFile {
    let path = directory.join("image.vhdx");
    let to = std::fs::File::create(&path).expect("the temporary directory can be written");
    let status = Command::new("xz").args(["-d", "-c"]).arg(packed).stdout(Stdio::from(to)).status();
    assert!(status.expect("the xz program is needed").success(), "xz -d -c {}", packed.display());
    SparseFile::load(&path)
}

/// Needs the collection: `LUNARING_IMAGES` is a directory with `manifest.json` and the `.xz` files it lists.
#[test]
fn images_of_others_are_checked_changed_and_stay_sound() {
    let Some(root) = std::env::var_os("LUNARING_IMAGES").map(std::path::PathBuf::from) else {
        println!("needs LUNARING_IMAGES=DIR (a directory with manifest.json): nothing was checked");
        return;
    };
    let manifest = std::fs::read_to_string(root.join("manifest.json")).expect("LUNARING_IMAGES holds manifest.json");
    let manifest: Value = serde_json::from_str(&manifest).expect("the manifest is JSON");
    for image in manifest.as_array().expect("a list").iter().filter(|image| image["format"] == "vhdx") {
        let name = image["name"].as_str().expect("a name");
        let directory = TempDir::new().expect("a temporary directory");
        let mut file = unpack(&root.join(name), directory.path());
        let report = check(&mut file.clone()).expect("read");
        println!(
            "{name}: {:?}, {:?}",
            report.blocks,
            report.findings.iter().map(ToString::to_string).collect::<Vec<_>>()
        );
        assert!(report.is_sound(), "{name}: {:?}", report.findings);
        let shape = report.geometry.expect("sound");
        assert_eq!(shape.disk_size_bytes, image["virtual_size"].as_u64().expect("a size"));
        assert_eq!(shape.has_parent, image["type"] == "differencing");
        if shape.has_parent {
            let Some(ParentLocator::Vhdx(parent)) = &report.parent else { panic!("{name} has a VHDX parent") };
            assert!(parent.linkage2.is_none() && parent.relative_path.is_some(), "{name}: {parent:?}");
            println!("  parent {:?}", report.parent.as_ref().map(ParentLocator::facts));
        }
        let mended = repair(&mut file, source(1)).expect("read");
        assert!(mended.refused.is_empty(), "{name}: {:?}", mended.refused);
        set_item(&mut file, source(2), Guid([9; 16]), false, b"ours").expect("sets");
        let size = shape.disk_size_bytes + 100 * MIB;
        resize(&mut file, size, ResizeOptions { allow_cut: false, ..resize_options(1) }).expect("grows");
        let after = check(&mut file).expect("read");
        assert!(after.is_sound() && after.count(Severity::Warning) == 0, "{name}: {:?}", after.findings);
        if !shape.has_parent && shape.logical_sector_bytes == 512 {
            file.save(&directory.path().join("ours.vhdx"));
            let text = succeeds(&["check", "-f", "vhdx", "ours.vhdx"], directory.path());
            assert!(text.contains("No errors were found"), "{name}: {text}");
        }
    }
}
