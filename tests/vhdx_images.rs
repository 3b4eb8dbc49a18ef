//! Images made by Windows, Disk2vhd and QEMU: each opens and has the content that its manifest names, or is refused
//! clearly.
//!
//! Needs the collection: `LUNARING_IMAGES` is a directory with `manifest.json` and the `.xz` files it lists, and the
//! `xz` program unpacks them. Without the variable there is nothing to check, and the test says so.

mod vhdx_support;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lunaring::blocks::Event;
use lunaring::vhdx::{Access, OpenError};
use serde_json::Value;
use sha2::{Digest, Sha256};
use vhdx_support::{Host, HostFile, MIB, RecordedFile, SparseFile, open_with, read_disk};

fn unpack(packed: &Path, directory: &Path) -> PathBuf {
    let path = directory.join("image.vhdx");
    let status = Command::new("xz")
        .args(["-d", "-c"])
        .arg(packed)
        .stdout(Stdio::from(File::create(&path).expect("the temporary directory can be written")))
        .status()
        .expect("the xz program is needed");
    assert!(status.success(), "xz -d -c {}", packed.display());
    path
}

fn content_sha256(path: &Path, expected_size: u64) -> Result<(String, HostFile), OpenError> {
    let mut file = HostFile(File::open(path).expect("unpacked"));
    let disk = open_with(&mut file, Access::ReadOnly, 1)?;
    assert_eq!(disk.geometry.disk_size_bytes, expected_size);
    let (mut hash, mut bytes) = (Sha256::new(), vec![0; MIB as usize]);
    for offset in (0..expected_size).step_by(MIB as usize) {
        let part = &mut bytes[..(expected_size - offset).min(MIB) as usize];
        read_disk(&mut file, None, &disk.map, offset, part);
        hash.update(part);
    }
    let text = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((text, file))
}

fn check(root: &Path, image: &Value) {
    let name = image["name"].as_str().expect("a name");
    let directory = tempfile::TempDir::new().expect("a temporary directory");
    let path = unpack(&root.join(name), directory.path());
    let size = image["virtual_size"].as_u64().expect("a size");
    if image["type"] == "differencing" {
        let mut file = HostFile(File::open(&path).expect("unpacked"));
        let disk = open_with(&mut file, Access::ReadOnly, 1).unwrap_or_else(|error| panic!("{name}: {error}"));
        println!("{name}: a child of {}", disk.parent.expect("a child names its parent"));
        return; // Its content is the parent's too; whoever opens chains looks at that.
    }
    assert_eq!(image["expect"], "open", "{name}");
    let (hash, mut file) = content_sha256(&path, size).unwrap_or_else(|error| panic!("{name}: {error}"));
    if let Some(expected) = image["content_sha256"].as_str() {
        assert_eq!(hash, expected, "{name}");
    }
    // Opening for writing changes nothing while nothing is written.
    let mut recorded = RecordedFile::new(SparseFile::load(&path));
    let disk = open_with(&mut recorded, Access::ReadWrite, 1).expect("opens for writing too");
    assert!(recorded.history.is_empty(), "{name}");
    let again = open_with(&mut file, Access::ReadOnly, 1).expect("opens again");
    assert_eq!(disk.virtual_disk_id, again.virtual_disk_id);
    assert_eq!(disk.geometry.block_size_bytes, image["block_size"].as_u64().expect("a block size") as u32);
    assert_eq!(disk.geometry.logical_sector_bytes, image["logical_sector"].as_u64().expect("a sector size") as u32);
    assert_eq!(disk.geometry.fixed, image["type"] == "fixed");
    write_and_close(recorded, size, directory.path());
    println!("{name}: {size} bytes, made by {:?}, content as expected, {:?}", disk.creator, disk.warnings);
}

/// Write near both ends and in the middle, close, and let qemu-img judge the file.
fn write_and_close(file: RecordedFile, size: u64, directory: &Path) {
    let mut host = Host::open(file, 8);
    let places = [0, size / 2 / 512 * 512, size - 512];
    for (value, offset) in (1..).zip(places) {
        host.write(offset, &[value; 512]).expect("the disk can be written");
    }
    for (value, offset) in (1..).zip(places) {
        let mut bytes = [0; 512];
        host.read(offset, &mut bytes);
        assert_eq!(bytes, [value; 512]);
    }
    let (file, closed) = host.close();
    assert_eq!(closed, Event::Closed(Ok(())));
    let path = directory.join("written.vhdx");
    file.now.save(&path);
    let judged =
        Command::new("qemu-img").args(["check", "-f", "vhdx"]).arg(&path).output().expect("qemu-img is needed");
    assert!(judged.status.success(), "{}", String::from_utf8_lossy(&judged.stderr));
}

#[test]
fn images_of_others_open_with_their_content() {
    let Some(root) = std::env::var_os("LUNARING_IMAGES") else {
        println!("needs LUNARING_IMAGES=DIR (a directory with manifest.json): nothing was checked");
        return;
    };
    let root = PathBuf::from(root);
    let manifest = std::fs::read_to_string(root.join("manifest.json")).expect("LUNARING_IMAGES holds manifest.json");
    let manifest: Value = serde_json::from_str(&manifest).expect("the manifest is JSON");
    let images: Vec<&Value> =
        manifest.as_array().expect("a list").iter().filter(|image| image["format"] == "vhdx").collect();
    assert!(!images.is_empty());
    std::thread::scope(|scope| {
        for half in 0..2 {
            let (root, images) = (&root, &images);
            scope.spawn(move || images.iter().skip(half).step_by(2).for_each(|image| check(root, image)));
        }
    });
}
