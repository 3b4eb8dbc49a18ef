//! Our side of a comparison: files created, written and read by the code that jobs use on disks nobody serves.

use std::fs::{File, OpenOptions};
use std::path::Path;

use lunaring::blocks::{Chain, Engine, Level, MapLimits};
use lunaring::medium::blocking::BlockingDisk;
use lunaring::vhd::{self, NewKind, VhdParent};
use lunaring::vhdx::{self, Access, DiskKind};

use crate::judge::{Format, Verdict};
use crate::vhdx_support::{HostFile, MIB, Random, SparseFile, guids};

/// A new file; a differencing one where there is a parent.
pub fn create(path: &Path, kind: DiskKind, size_bytes: u64, block: u64, sector: u32, parent: Option<&Path>) {
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path).expect("a new file");
    let mut storage = HostFile(file);
    match Format::of(path) {
        Format::Vhdx => create_vhdx(&mut storage, path, kind, size_bytes, block, sector, parent),
        Format::Vhd => create_vhd(&mut storage, path, kind, size_bytes, block, parent),
    }
}

fn create_vhdx(
    storage: &mut HostFile,
    path: &Path,
    kind: DiskKind,
    size_bytes: u64,
    block: u64,
    sector: u32,
    parent: Option<&Path>,
) {
    let mut next = guids(seed_of(path));
    let parent = parent.map(|parent| {
        let mut file = HostFile(File::open(parent).expect("the parent is there"));
        let of = vhdx::describe(&mut file).expect("the parent is sound");
        let directory = path.parent().expect("a directory");
        vhdx::NewParent {
            locator: vhdx::ParentLocator::Vhdx(vhdx::VhdxParent::new(of.data_write_guid, parent, directory)),
            size_bytes: of.geometry.disk_size_bytes,
            logical_sector_bytes: of.geometry.logical_sector_bytes,
            items: of.inherited_items,
        }
    });
    let options = vhdx::CreateOptions {
        size_bytes,
        kind,
        block_size_bytes: Some(block),
        logical_sector_bytes: sector,
        physical_sector_bytes: 4096,
        log_len_bytes: Some(MIB),
        virtual_disk_id: next(),
        file_write_guid: next(),
        data_write_guid: next(),
        parent,
    };
    vhdx::create(&options, storage).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

fn create_vhd(storage: &mut HostFile, path: &Path, kind: DiskKind, size: u64, block: u64, parent: Option<&Path>) {
    let kind = match (kind, parent) {
        (_, Some(parent)) => {
            let mut file = HostFile(File::open(parent).expect("the parent is there"));
            let of = vhd::describe(&mut file).expect("the parent is sound");
            let name = parent.file_name().and_then(|name| name.to_str()).expect("a plain name").to_owned();
            NewKind::Differencing(VhdParent {
                unique_id: of.unique_id,
                relative_paths: vec![format!(".\\{name}")],
                name,
                ..VhdParent::default()
            })
        }
        (DiskKind::Fixed, None) => NewKind::Fixed,
        (DiskKind::Dynamic, None) => NewKind::Dynamic,
    };
    let unique_id = uuid::Uuid::from_bytes(guids(seed_of(path))().0);
    let options = vhd::CreateOptions {
        size_bytes: size,
        kind,
        block_size_bytes: Some(block),
        unique_id,
        unix_seconds: 1_700_000_000,
    };
    vhd::create(&options, storage).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// How a parent is recognised.
enum Identity {
    Vhdx(vhdx::ParentLocator),
    Vhd(uuid::Uuid),
}

/// One file of a chain, open.
struct OpenLayer {
    file: File,
    level: Level,
    engine: Option<Box<dyn Engine>>,
    /// The relative path of the parent, and what it must be.
    parent: Option<(String, Identity)>,
}

fn open_layer(path: &Path, layer: u16, writable: bool, expected: Option<&Identity>) -> Result<OpenLayer, String> {
    let file = OpenOptions::new().read(true).write(writable).open(path);
    let file = file.map_err(|error| format!("{}: {error}", path.display()))?;
    let mut storage = HostFile(file.try_clone().expect("a descriptor"));
    if Format::of(path) == Format::Vhd {
        let access = if writable { vhd::Access::ReadWrite } else { vhd::Access::ReadOnly };
        let options = vhd::OpenOptions { access, limits: MapLimits::default() };
        let opened = vhd::open(&mut storage, options).map_err(|error| error.to_string())?;
        assert!(expected.is_none_or(|identity| matches!(identity, Identity::Vhd(id) if *id == opened.unique_id)));
        let level = match opened.map {
            Some(map) => Level::Map { layer, map },
            None => Level::Raw { layer, size_bytes: opened.shape.size_bytes },
        };
        let parent =
            opened.parent.map(|parent| (parent.relative_paths[0].replace('\\', "/"), Identity::Vhd(parent.unique_id)));
        return Ok(OpenLayer { file, level, engine: opened.engine.map(|engine| engine as _), parent });
    }
    let access = if writable { Access::ReadWrite } else { Access::ReadOnly };
    let options = vhdx::OpenOptions { access, guids: guids(seed_of(path)), data_write_guid: None };
    let opened = vhdx::open(&mut storage, options).map_err(|error| error.to_string())?;
    let identity = opened.data_write_guid;
    let same = |expected: &Identity| matches!(expected, Identity::Vhdx(locator) if locator.matches(identity));
    assert!(expected.is_none_or(same), "{} is another parent", path.display());
    let parent = opened.parent.map(|locator| (locator.search_paths()[0].1.clone(), Identity::Vhdx(locator)));
    let level = Level::Map { layer, map: opened.map };
    Ok(OpenLayer { file, level, engine: opened.engine.map(|engine| engine as _), parent })
}

/// An open disk with its parents.
pub struct Ours {
    pub disk: BlockingDisk<File>,
}

impl Ours {
    pub fn open(path: &Path, writable: bool) -> Result<Self, String> {
        let (mut levels, mut files, mut engine) = (Vec::new(), Vec::new(), None);
        let mut next = Some((path.to_path_buf(), None));
        while let Some((path, expected)) = next.take() {
            let leaf = levels.is_empty();
            let layer = open_layer(&path, levels.len() as u16, leaf && writable, expected.as_ref())?;
            levels.push(layer.level);
            files.push(layer.file);
            if leaf {
                engine = layer.engine;
            }
            let directory = path.parent().expect("a directory").to_path_buf();
            next = layer.parent.map(|(relative, identity)| (directory.join(relative), Some(identity)));
        }
        Ok(Self { disk: BlockingDisk::new(Chain::new(levels), files, engine, writable) })
    }

    pub fn read_all(&mut self) -> Verdict {
        let size = self.disk.size_bytes();
        Verdict::of(size, |offset, into| self.disk.read_at(offset, into))
    }

    /// Write, unmap and flush at random, with the same done to `expected`.
    pub fn live(&mut self, expected: &mut SparseFile, steps: u64, grain: u64, unmaps: bool, random: &mut Random) {
        let size = self.disk.size_bytes();
        let units = size / grain;
        for _ in 0..steps {
            let most = 1 << random.below(8);
            let len = 1 + random.below(units.min(most));
            let at = random.below(units - len + 1) * grain;
            match random.below(if unmaps { 12 } else { 10 }) {
                0 => self.disk.flush().expect("flushes"),
                1..10 => {
                    let bytes = (random.next() | 1).to_le_bytes().repeat((len * grain) as usize / 8);
                    self.disk.write_at(at, &bytes).expect("writes");
                    expected.write(at, &bytes);
                }
                _ => {
                    let len = (MIB * (1 + random.below(4))).min(size - at);
                    self.disk.write_zeros(at, len / grain * grain).expect("unmaps");
                    expected.zero(at, len / grain * grain);
                }
            }
        }
        // The last sector, which lies in a block that may be cut.
        let last = [0x5a; 4096];
        self.disk.write_at(size - grain, &last[..grain as usize]).expect("writes");
        expected.write(size - grain, &last[..grain as usize]);
    }

    pub fn close(self) {
        self.disk.close().expect("closes");
    }
}

fn seed_of(path: &Path) -> u64 {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    let count = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    count << 32 ^ path.as_os_str().len() as u64
}

/// What a judge must say of a disk with these bytes.
pub fn verdict_of(expected: &SparseFile) -> Verdict {
    Verdict::of(expected.len, |offset, into| {
        expected.read(offset, into);
        Ok::<(), String>(())
    })
}
