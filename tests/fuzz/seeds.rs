//! The files that mutation starts from: written by our engine, made from the specification, and, where
//! `LUNARING_IMAGES` names the collection, the small images of other people.

use std::path::PathBuf;
use std::process::Command;

use lunaring::vhdx::{CreateOptions, DiskKind, create};
use serde_json::Value;

use crate::made::{Content, Recipe, bytes_of, random_disk};
use crate::made_vhd::{Kind, random_vhd};
use crate::vhdx_support::{Host, MIB, Random, RecordedFile, SparseFile, create_options};

/// A file to begin with; `parent`: the bytes behind it.
pub struct Start {
    pub name: String,
    pub file: SparseFile,
    pub parent: Option<SparseFile>,
}

pub fn all() -> Vec<Start> {
    let mut seeds = Vec::new();
    for (name, kind, block, sector, dirty) in [
        ("ours, clean", DiskKind::Dynamic, MIB, 512, false),
        ("ours, dirty", DiskKind::Dynamic, MIB, 512, true),
        ("ours, large sectors, dirty", DiskKind::Dynamic, 2 * MIB, 4096, true),
        ("ours, fixed", DiskKind::Fixed, MIB, 512, false),
    ] {
        seeds.push(Start { name: name.to_owned(), file: ours(kind, block, sector, dirty), parent: None });
    }
    for (seed, sector, child) in
        [(1, 512, false), (2, 512, false), (3, 4096, false), (4, 512, true), (5, 512, true), (6, 4096, true)]
    {
        let recipe = Recipe::dynamic(5 * MIB + 4096, MIB << (seed % 2), sector);
        let below = child.then(|| random_disk(recipe.clone(), None, seed + 100));
        let linkage = below.as_ref().map(|(made, _)| (made.data_write_guid, "parent.vhdx".to_owned()));
        let content = below.map(|(_, content)| content);
        let (mut made, _) = random_disk(Recipe { parent: linkage, ..recipe }, content.as_ref(), seed);
        let parent = content.map(|content| SparseFile::from_bytes(&bytes_of(&content, sector)));
        seeds.push(Start { name: format!("made {seed}"), file: made.file.clone(), parent: parent.clone() });
        made.move_to_log(seed);
        seeds.push(Start { name: format!("made {seed}, dirty"), file: made.file, parent });
    }
    seeds
}

pub fn all_vhd() -> Vec<Start> {
    let mut seeds = Vec::new();
    for (seed, kind, block, size) in [
        (1, Kind::Fixed, 2 * MIB, MIB + 512),
        (2, Kind::Dynamic, 2 * MIB, 5 * MIB),
        (3, Kind::Dynamic, 512 << 10, 3 * MIB + 512),
        (4, Kind::Differencing, 2 * MIB, 5 * MIB),
        (5, Kind::Differencing, 512 << 10, 3 * MIB),
    ] {
        let name = format!("made VHD {seed}");
        let content: Content = (0..size / 512).map(|sector| sector * (sector % 3)).collect();
        let parent = (kind == Kind::Differencing).then_some(([7; 16], "parent.vhd".to_owned()));
        let below = if parent.is_some() { content.clone() } else { Content::new() };
        let (made, _) = random_vhd(kind, size, block, parent.as_ref(), &below, seed);
        let parent = parent.map(|_| SparseFile::from_bytes(&bytes_of(&content, 512)));
        seeds.push(Start { name, file: made.file, parent });
    }
    seeds
}

/// The larger ones would only be slower: their structures are the same.
const IMAGE_BYTES_MAX: u64 = 40 * MIB;

/// The small images of others of a format ("vhdx", "vhd"); none where the collection is not at hand.
pub fn images(format: &str) -> Vec<Start> {
    let Some(root) = std::env::var_os("LUNARING_IMAGES").map(PathBuf::from) else { return Vec::new() };
    let manifest = std::fs::read_to_string(root.join("manifest.json")).expect("LUNARING_IMAGES holds manifest.json");
    let manifest: Vec<Value> = serde_json::from_str(&manifest).expect("the manifest is a list");
    let fits = |image: &&Value| {
        let small = image["file_size"].as_u64().is_some_and(|bytes| bytes <= IMAGE_BYTES_MAX);
        small && image["format"] == format && image["expect"] == "open" && image["type"] != "differencing"
    };
    let start = |image: &Value| {
        let name = image["name"].as_str().expect("an image has a name");
        let unpacked = Command::new("xz").args(["-d", "-c"]).arg(root.join(name)).output().expect("xz is needed");
        assert!(unpacked.status.success(), "xz -d -c {name}");
        Start { name: name.to_owned(), file: SparseFile::from_bytes(&unpacked.stdout), parent: None }
    };
    manifest.iter().filter(fits).map(start).collect()
}

fn ours(kind: DiskKind, block: u64, sector: u32, dirty: bool) -> SparseFile {
    let size = 5 * MIB;
    let mut file = SparseFile::default();
    let options = CreateOptions { logical_sector_bytes: sector, ..create_options(size, kind, block) };
    create(&options, &mut file).expect("creates");
    let mut host = Host::open(RecordedFile::new(file), 3);
    let mut random = Random(block);
    for _ in 0..6 {
        host.write(random.below(size / 4096) * 4096, &[random.next() as u8; 4096]).expect("writes");
    }
    if dirty { host.file.now } else { host.close().0.now }
}
