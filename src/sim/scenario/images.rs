//! The files of a simulated server's disks: made and opened as real files by the control plane's own code, and held by
//! the world while they are served.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use super::server::DiskPlan;
use crate::medium::blocking::{BlockingDisk, BlockingFile};
use crate::medium::{
    self, Cache, CreateSpec, DiskFormat, DiskKind, ImageIdentity, LayerFile, NewParent, OpenSpec, Opened, Parents,
};
use crate::sim::initiator::{LAYER_VERSIONS, UNIT_BYTES, fill, layered_version};
use crate::sim::{FileOptions, World};
use crate::units::{DiskId, ShardId};
use crate::vhdx;

/// VHDX blocks of simulated disks: small, so that many are touched.
const BLOCK_BYTES: u64 = 1 << 20;

/// Bytes that are copied at once between the world and real files.
const COPY_BYTES: usize = 64 * 1024;

static ZEROS: [u8; COPY_BYTES] = [0; COPY_BYTES];

/// Create a disk's files in a directory; the leaf is named `name`.
pub(super) fn create(directory: &Path, name: &str, plan: DiskPlan) -> Result<(), String> {
    if plan.kind != DiskKind::Differencing {
        return create_one(&directory.join(name), plan, None);
    }
    let base = directory.join(format!("{name}.base"));
    let middle = directory.join(format!("{name}.middle"));
    create_one(&base, DiskPlan { kind: DiskKind::Dynamic, ..plan }, None)?;
    fill_layer(&base, plan, DiskKind::Dynamic, 0)?;
    create_one(&middle, plan, Some(&base))?;
    fill_layer(&middle, plan, DiskKind::Differencing, 1)?;
    create_one(&directory.join(name), plan, Some(&middle))
}

fn create_one(path: &Path, plan: DiskPlan, parent: Option<&Path>) -> Result<(), String> {
    let parent = match parent {
        Some(path) => {
            let description = medium::describe(path).map_err(|error| error.to_string())?;
            Some(NewParent { path: path.to_owned(), description })
        }
        None => None,
    };
    create_file(path, plan, parent)
}

fn create_file(path: &Path, plan: DiskPlan, parent: Option<NewParent>) -> Result<(), String> {
    let spec = CreateSpec {
        path: path.to_owned(),
        format: plan.format,
        kind: plan.kind,
        size_bytes: plan.size_bytes,
        block_size_bytes: match plan.format {
            DiskFormat::Vhdx => Some(BLOCK_BYTES),
            DiskFormat::Vhd => Some(BLOCK_BYTES / 2),
            _ => None,
        },
        sector_size_bytes: plan.sector_size_bytes,
        parent,
        disk_id: None,
    };
    medium::create_file(&spec).map_err(|error| format!("{}: {error}", path.display()))
}

/// The format of a child of a leaf of this format.
pub(super) fn child_format(leaf: DiskFormat) -> DiskFormat {
    if leaf == DiskFormat::Vhd { DiskFormat::Vhd } else { DiskFormat::Vhdx }
}

/// Create a child of a leaf that is being served and whose identity is known to be this.
pub(super) fn create_child(path: &Path, plan: DiskPlan, leaf: &Path, identity: Option<[u8; 16]>) -> Result<(), String> {
    let mut description = medium::describe(leaf).map_err(|error| error.to_string())?;
    if let Some(guid) = identity {
        description.identity = ImageIdentity::Vhdx(vhdx::Guid(guid));
    }
    let format = child_format(plan.format);
    let plan = DiskPlan { format, kind: DiskKind::Differencing, ..plan };
    create_file(path, plan, Some(NewParent { path: leaf.to_owned(), description }))
}

/// Write the sectors that belong to one of the layers.
fn fill_layer(path: &Path, plan: DiskPlan, kind: DiskKind, layer: usize) -> Result<(), String> {
    let said = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let spec = open_spec(path, DiskPlan { kind, ..plan });
    let Opened { disk, engine } = medium::open(spec).map_err(|error| said(&error))?;
    let chain = disk.chain().cloned().ok_or_else(|| said(&"it has no layers"))?;
    let open = |layer: &Arc<LayerFile>| File::options().read(true).write(true).open(layer.path()).map(Unsynced);
    let files = disk.layers().iter().map(open).collect::<Result<Vec<_>, _>>().map_err(|error| said(&error))?;
    let mut writer = BlockingDisk::new(chain, files, engine, true);
    let version = LAYER_VERSIONS[layer];
    let units = plan.size_bytes / UNIT_BYTES as u64;
    let mut bytes = Vec::new();
    let mut unit = 0;
    while unit < units {
        let run = (unit..units).take_while(|&unit| layered_version(unit) == version).count() as u64;
        if run > 0 {
            bytes.clear();
            fill(unit, run, version, &mut bytes);
            writer.write_at(unit * UNIT_BYTES as u64, &bytes).map_err(|error| said(&error))?;
        }
        unit += run.max(1);
    }
    writer.close().map(drop).map_err(|error| said(&error))
}

/// A real file that need not outlive the power: nothing waits for the drive.
struct Unsynced(File);

impl BlockingFile for Unsynced {
    fn read(&mut self, offset_bytes: u64, into: &mut [u8]) -> io::Result<()> {
        BlockingFile::read(&mut self.0, offset_bytes, into)
    }

    fn write(&mut self, offset_bytes: u64, from: &[u8]) -> io::Result<()> {
        BlockingFile::write(&mut self.0, offset_bytes, from)
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn extend(&mut self, from_bytes: u64, to_bytes: u64) -> io::Result<()> {
        self.0.extend(from_bytes, to_bytes)
    }

    fn zero_range(&mut self, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
        self.0.zero_range(offset_bytes, len_bytes)
    }

    fn punch_hole(&mut self, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
        self.0.punch_hole(offset_bytes, len_bytes)
    }

    fn truncate(&mut self, len_bytes: u64) -> io::Result<()> {
        BlockingFile::truncate(&mut self.0, len_bytes)
    }
}

/// How a file is opened that is not served yet.
pub(super) fn open_spec(path: &Path, plan: DiskPlan) -> OpenSpec {
    OpenSpec {
        id: DiskId(0),
        name: "disk".to_owned(),
        uuid: uuid::Uuid::from_u128(1),
        format: plan.format,
        kind: Some(plan.kind),
        path: plan.format.has_file().then(|| path.to_owned()),
        parent: None,
        parents: Parents::new(),
        predecessor: None,
        size_bytes: plan.size_bytes,
        sector_size_bytes: plan.sector_size_bytes,
        read_only: false,
        cache: Cache::Buffered,
        home: ShardId(0),
        shards: 1,
    }
}

/// The name of a real file in the world, for this start of the server.
pub(super) fn name_in_world(path: &Path, starts: u32) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    format!("{name}.{starts}")
}

/// Operations on a layer go to the world from now on, which has its contents already.
pub(super) fn adopt(world: &World, layer: &LayerFile, name: &str, read_only: bool) {
    let alignment_bytes = if layer.file().direct() { layer.sector_size_bytes() } else { 1 };
    let own = world.open(name, FileOptions { alignment_bytes, read_only });
    world.adopt(layer.file().fd(), own);
}

/// Make a durable file of the world with the contents of a real one.
pub(super) fn import(world: &World, path: &Path, name: &str) -> Result<(), String> {
    let describe = |error: io::Error| format!("{}: {error}", path.display());
    let file = File::open(path).map_err(describe)?;
    let len = file.metadata().map_err(describe)?.len();
    world.create_file(name, len);
    let mut bytes = vec![0; COPY_BYTES];
    for at in (0..len).step_by(COPY_BYTES) {
        let part = &mut bytes[..(len - at).min(COPY_BYTES as u64) as usize];
        file.read_exact_at(part, at).map_err(describe)?;
        if *part != ZEROS[..part.len()] {
            world.file_write(name, at, part);
        }
    }
    // What was created is taken to be there; only growth can meet a full file system.
    world.file_reserve(name, len);
    world.file_sync(name);
    Ok(())
}

/// Give a real file the contents of one of the world. Its time of change stays: raw parents are known by it.
pub(super) fn export(world: &World, name: &str, path: &Path) -> Result<(), String> {
    let describe = |error: io::Error| format!("{}: {error}", path.display());
    let said = |error: medium::FileError| error.to_string();
    // Emptied first, so that holes read as zeros; the file stays the same one.
    let file = File::options().write(true).open(path).map_err(describe)?;
    let modified_ns = medium::modified_ns(&file, path).map_err(said)?;
    file.set_len(0).map_err(describe)?;
    let len = world.file_len(name);
    file.set_len(len).map_err(describe)?;
    let mut bytes = vec![0; COPY_BYTES];
    for at in (0..len).step_by(COPY_BYTES) {
        let part = &mut bytes[..(len - at).min(COPY_BYTES as u64) as usize];
        world.file_read(name, at, part);
        if *part != ZEROS[..part.len()] {
            file.write_all_at(part, at).map_err(describe)?;
        }
    }
    drop(file);
    medium::set_modified_ns(path, modified_ns).map_err(said)
}

/// A disk that was closed in good order has an empty log: opening it replays nothing.
pub(super) fn check_closed(path: &Path) -> Result<(), String> {
    let mut file = RealFile(File::open(path).map_err(|error| error.to_string())?);
    let guids = Box::new(|| vhdx::Guid([7; 16]));
    let options = vhdx::OpenOptions { access: vhdx::Access::ReadOnly, guids, data_write_guid: None };
    let said = |what: &dyn std::fmt::Display| format!("{} after a clean stop: {what}", path.display());
    let open = vhdx::open(&mut file, options).map_err(|error| said(&error))?;
    if open.replay.is_some() || !open.warnings.is_empty() {
        return Err(said(&format!("not closed cleanly: {:?} {:?}", open.replay, open.warnings)));
    }
    let report = vhdx::check(&mut file).map_err(|error| said(&error))?;
    if report.is_sound() { Ok(()) } else { Err(said(&format!("not sound: {:?}", report.findings))) }
}

/// A real file for the format's own check, read only.
struct RealFile(File);

impl vhdx::Storage for RealFile {
    fn len_bytes(&mut self) -> Result<u64, vhdx::StorageError> {
        self.0.metadata().map(|metadata| metadata.len()).map_err(failed)
    }

    fn read_at(&mut self, offset_bytes: u64, into: &mut [u8]) -> Result<(), vhdx::StorageError> {
        self.0.read_exact_at(into, offset_bytes).map_err(failed)
    }

    fn write_at(&mut self, offset_bytes: u64, _bytes: &[u8]) -> Result<(), vhdx::StorageError> {
        Err(vhdx::StorageError::Failed(format!("a check writes at {offset_bytes}")))
    }

    fn flush(&mut self) -> Result<(), vhdx::StorageError> {
        Ok(())
    }

    fn set_len(&mut self, len_bytes: u64) -> Result<(), vhdx::StorageError> {
        Err(vhdx::StorageError::Failed(format!("a check sets the size to {len_bytes}")))
    }
}

fn failed(error: io::Error) -> vhdx::StorageError {
    vhdx::StorageError::Failed(error.to_string())
}
