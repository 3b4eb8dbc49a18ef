//! Snapshots: taking them, showing them, going back to them.
//!
//! A snapshot freezes the file that is written (the *leaf*) and puts an empty differencing image on top of it, which is
//! written from then on. The order: the leaf's identity is made final; the new image is made and named; it is opened
//! over the layers that are open already; `config.json` names it, from which moment the snapshot counts, and until the
//! swap both leaves describe the same content; commands are held, all shards turn to the new leaf, commands go on. No
//! disk is touched while they are held. The old leaf is closed beside the running disk.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use super::api;
use super::config::{DiskConfig, SnapshotConfig, check_name};
use super::controller::Controller;
use super::crash::step;
use super::dataplane::ask;
use super::disks::{open, open_over};
use super::error::Refused;
use super::executor::blocking;
use super::images::NewChild;
use super::live::{Retired, Swap};
use crate::limits::{SNAPSHOT_GROUP_MAX, SNAPSHOTS_PER_DISK_MAX};
use crate::medium::{self, Disk, DiskFormat, DiskKind, ImageIdentity, Opened};
use crate::scsi::Attention;
use crate::shard::message::ToShard;
use crate::units::UtcTime;

/// What was taken, and how long commands were held.
#[derive(Clone, Debug, PartialEq)]
pub struct Taken {
    /// Disk and snapshot of each.
    pub snapshots: Vec<(String, String)>,
    /// For how long all commands were held, in milliseconds. Those that change a disk's map may have waited for a flush
    /// of those before them, as they do for one another's.
    pub pause_ms: f64,
}

/// One disk of a snapshot that is being taken.
struct Part {
    name: String,
    snapshot: String,
    old: Arc<Disk>,
    config: DiskConfig,
    child: NewChild,
}

impl Controller {
    /// Take a snapshot of each disk, all at one instant.
    ///
    /// # Errors
    /// A disk is not one that can have snapshots, or has one of this name.
    pub async fn snapshot_take(&mut self, disks: Vec<String>, name: Option<String>) -> Result<Taken, Refused> {
        if disks.is_empty() || disks.len() > SNAPSHOT_GROUP_MAX {
            return Err(Refused::invalid(format!("a snapshot is of 1 to {SNAPSHOT_GROUP_MAX} disks at one instant")));
        }
        if let Some(name) = &name {
            check_name("snapshot", name)?;
        }
        let group = (disks.len() > 1).then(Uuid::new_v4);
        let mut parts = Vec::with_capacity(disks.len());
        for disk in disks {
            if parts.iter().any(|part: &Part| part.name == disk) {
                return Err(Refused::invalid(format!("disk '{disk}' is named twice")));
            }
            parts.push(self.snapshot_part(disk, name.as_deref(), false).await?);
        }
        let created = now();
        let pause_ms = self.freeze(&parts, created, group, false).await?;
        let snapshots = parts.into_iter().map(|part| (part.name, part.snapshot)).collect();
        Ok(Taken { snapshots, pause_ms })
    }

    /// Freeze a disk's leaf below a snapshot that nobody sees, which is merged sooner or later. Gives its name.
    pub(super) async fn freeze_leaf(&mut self, disk: &str) -> Result<String, Refused> {
        let name = format!("merge-{}", Uuid::new_v4().simple());
        let part = self.snapshot_part(disk.to_owned(), Some(&name), true).await?;
        self.freeze(std::slice::from_ref(&part), now(), None, true).await?;
        Ok(name)
    }

    /// Check one disk of a snapshot, and say what its new leaf will be.
    async fn snapshot_part(&self, name: String, snapshot: Option<&str>, hidden: bool) -> Result<Part, Refused> {
        let old = self.online(&name)?;
        let config = self.config.disks.get(&name).cloned();
        let Some(config) = config else { return Err(Refused::not_found(format!("there is no disk '{name}'"))) };
        if !hidden {
            self.refuse_busy(&name)?;
        }
        let Some(file) = config.file.clone() else {
            return Err(Refused::conflict(format!(
                "disk '{name}' is a {} disk, which has no file and so no snapshots",
                config.format.as_str()
            )));
        };
        if old.read_only() {
            return Err(Refused::conflict(format!(
                "disk '{name}' is read-only and does not change; to write to a copy of it, use \
                 'lunaring disk create NEW --kind differencing --parent {name}'"
            )));
        }
        if config.snapshots.len() >= SNAPSHOTS_PER_DISK_MAX {
            return Err(Refused::conflict(format!(
                "disk '{name}' has {SNAPSHOTS_PER_DISK_MAX} snapshots, which is the most; delete some"
            )));
        }
        let snapshot = match snapshot {
            Some(given) if config.snapshots.contains_key(given) => {
                return Err(Refused::conflict(format!("disk '{name}' has a snapshot '{given}' already")));
            }
            Some(given) => given.to_owned(),
            None => free_name(&config, now()),
        };
        if config.format == DiskFormat::Vhdx {
            let disk = old.id();
            let begun = ask(&*self.plane, old.home(), |reply| ToShard::BeginSession { disk, reply }).await;
            begun.wait().await?.map_err(Refused::failed)?;
        }
        let description = self.describe(&file).await?;
        let format = if config.format == DiskFormat::Vhd { DiskFormat::Vhd } else { DiskFormat::Vhdx };
        let child = NewChild {
            file: self.next_leaf(&file, format),
            format,
            parent: self.state.absolute(&file),
            size_bytes: description.size_bytes,
            sector_size_bytes: config.sector_size_bytes,
            block_size_bytes: None,
            disk_id: config.uuid,
            description,
        };
        Ok(Part { name, snapshot, old, config, child })
    }

    /// Put an empty leaf on top of each disk. Gives how long commands were held, in milliseconds.
    async fn freeze(
        &mut self,
        parts: &[Part],
        created: u64,
        group: Option<Uuid>,
        hidden: bool,
    ) -> Result<f64, Refused> {
        let children = parts.iter().map(|part| part.child.clone()).collect();
        let named = self.create_children(children, Vec::new()).await?;
        let before = self.config.clone();
        let ready = self.open_and_name(parts, created, group, hidden).await;
        let swaps = match ready {
            Ok(swaps) => swaps,
            Err(refused) => {
                self.undo_children(&named);
                return Err(refused);
            }
        };
        let disks: Vec<Arc<Disk>> = parts.iter().map(|part| Arc::clone(&part.old)).collect();
        let since = match self.pause(&disks).await {
            Ok(since) => since,
            Err(refused) => {
                drop(swaps);
                self.persist(before).await?;
                self.undo_children(&named);
                return Err(refused);
            }
        };
        let stamped = parts.iter().try_for_each(keep_last_change);
        let swapped = self.swap(swaps).await;
        let pause_ms = since.elapsed().as_secs_f64() * 1000.0;
        step("snapshot: swapped");
        self.end_change();
        self.publish();
        stamped?;
        for (retired, part) in swapped?.into_iter().zip(parts) {
            self.adopt(retired, &part.old).await;
        }
        step("snapshot: closed");
        Ok(pause_ms)
    }

    /// Open the new leaves over the layers that are open, and make the snapshots part of the configuration.
    async fn open_and_name(
        &mut self,
        parts: &[Part],
        created: u64,
        group: Option<Uuid>,
        hidden: bool,
    ) -> Result<Vec<Swap>, Refused> {
        let mut config = self.config.clone();
        let mut swaps = Vec::with_capacity(parts.len());
        for part in parts {
            let frozen = SnapshotConfig { group, deleting: hidden, ..frozen(part, created) };
            let disk = with_leaf(&part.config, &part.child, &part.snapshot, frozen);
            let mut spec = self.open_spec(&part.name, &disk);
            (spec.id, spec.home, spec.predecessor) = (part.old.id(), part.old.home(), Some(Arc::clone(&part.old)));
            let old = Arc::clone(&part.old);
            let opened = blocking(move || open_over(spec, &old)).await?;
            swaps.push(Swap { opened, retire: true, attention: None });
            config.disks.insert(part.name.clone(), disk);
        }
        step("snapshot: opened");
        self.persist(config).await?;
        step("snapshot: persisted");
        Ok(swaps)
    }

    /// Wait until an old leaf has closed, and share it with everybody who has it as a parent.
    pub(super) async fn adopt(&self, retired: Option<Retired>, old: &Arc<Disk>) {
        if let Some(retired) = retired
            && let Err(refused) = retired.wait().await.and_then(|closed| closed.map_err(Refused::failed))
        {
            // The next start replays its log; until then nobody else can have it as a parent.
            tracing::warn!("disk '{}': a former leaf was not closed cleanly: {refused}", old.name());
            return;
        }
        if let Some(leaf) = old.leaf()
            && let Err(error) = self.parents.adopt(leaf)
        {
            tracing::warn!("disk '{}': a former leaf cannot be shared: {error}", old.name());
        }
    }

    /// Go back to a snapshot: a new, empty leaf on top of it takes the place of the present one.
    ///
    /// # Errors
    /// There is no such snapshot, or the disk is not open.
    pub async fn snapshot_restore(&mut self, name: &str, snapshot: &str) -> Result<Option<String>, Refused> {
        self.refuse_busy(name)?;
        let old = self.online(name)?;
        let (config, of) = self.snapshot_of(name, snapshot)?;
        let Some(leaf) = config.file.clone() else { return Err(Refused::conflict("the disk has no file")) };
        let outside = self.children_of(&leaf, name);
        if !outside.is_empty() {
            return Err(Refused::conflict(format!(
                "the present state of disk '{name}' is the parent of {}; delete that first",
                outside.join(", ")
            )));
        }
        let description = self.describe(&of.file).await?;
        let format = if of.format == DiskFormat::Vhd { DiskFormat::Vhd } else { DiskFormat::Vhdx };
        let child = NewChild {
            file: self.next_leaf(&leaf, format),
            format,
            parent: self.state.absolute(&of.file),
            size_bytes: of.size_bytes,
            sector_size_bytes: config.sector_size_bytes,
            block_size_bytes: None,
            disk_id: config.uuid,
            description,
        };
        let gone: Vec<_> = self.recorded(&leaf).filter(|_| !config.added).into_iter().collect();
        let named = self.create_children(vec![child.clone()], gone.clone()).await?;
        let before = self.config.clone();
        let restored = restored(&config, &child, snapshot, &of);
        let swap = match self.open_restored(name, &old, restored).await {
            Ok(opened) => Swap { opened, retire: true, attention: Some(Attention::CapacityChanged) },
            Err(refused) => {
                self.undo_children(&named);
                return Err(refused);
            }
        };
        if let Err(refused) = self.pause(std::slice::from_ref(&old)).await {
            drop(swap);
            self.persist(before).await?;
            self.undo_children(&named);
            return Err(refused);
        }
        let retired = self.swap(vec![swap]).await?.into_iter().next().flatten();
        step("restore: swapped");
        self.publish();
        if let Some(retired) = retired {
            // Its content is not wanted any more; only its descriptors must be gone.
            let _ = retired.wait().await;
        }
        step("restore: closed");
        let kept = (config.added).then(|| self.state.absolute(&leaf).display().to_string());
        let warning = self.settle(gone).await;
        Ok(warning.or(kept.map(|file| format!("its former file {file} is still there"))))
    }

    async fn open_restored(&mut self, name: &str, old: &Arc<Disk>, disk: DiskConfig) -> Result<Opened, Refused> {
        let mut spec = self.open_spec(name, &disk);
        (spec.id, spec.home, spec.predecessor) = (old.id(), old.home(), Some(Arc::clone(old)));
        let opened = blocking(move || open(spec)).await?;
        step("restore: opened");
        let mut config = self.config.clone();
        config.disks.insert(name.to_owned(), disk);
        self.persist(config).await?;
        step("restore: persisted");
        Ok(opened)
    }

    /// A disk's configuration and one of its snapshots.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn snapshot_of(&self, disk: &str, snapshot: &str) -> Result<(DiskConfig, SnapshotConfig), Refused> {
        let Some(config) = self.config.disks.get(disk) else {
            return Err(Refused::not_found(format!("there is no disk '{disk}'; see 'lunaring disk list'")));
        };
        match config.snapshots.get(snapshot) {
            Some(of) if !of.deleting => Ok((config.clone(), of.clone())),
            Some(_) => Err(Refused::conflict(format!("snapshot '{snapshot}' of disk '{disk}' is being deleted"))),
            None => Err(Refused::not_found(format!(
                "disk '{disk}' has no snapshot '{snapshot}'; see 'lunaring snapshot list {disk}'"
            ))),
        }
    }

    /// Make a disk that shows a snapshot.
    ///
    /// # Errors
    /// There is no such snapshot, or a disk has this name.
    pub async fn snapshot_export(
        &mut self,
        disk: &str,
        snapshot: &str,
        export: api::ExportSnapshot,
    ) -> Result<(), Refused> {
        check_name("disk", &export.name)?;
        if self.config.disks.contains_key(&export.name) {
            return Err(Refused::conflict(format!("there is a disk '{}' already; choose another name", export.name)));
        }
        let (config, of) = self.snapshot_of(disk, snapshot)?;
        if config.merge.as_ref().is_some_and(|merge| merge.child.as_deref() == Some(snapshot)) {
            return Err(Refused::conflict(format!(
                "the file of snapshot '{snapshot}' is being merged with that of a deleted one; wait for that job"
            )));
        }
        let shown = super::config::ExportConfig { disk: disk.to_owned(), snapshot: snapshot.to_owned() };
        let new = DiskConfig {
            format: of.format,
            file: Some(of.file.clone()),
            kind: Some(of.kind),
            size_bytes: of.size_bytes,
            uuid: Uuid::new_v4(),
            read_only: true,
            added: true,
            parent: of.file_parent.clone(),
            base: None,
            snapshots: std::collections::BTreeMap::new(),
            export: Some(shown),
            reservations: None,
            settings: Default::default(),
            ..config.clone()
        };
        if !export.writable {
            let config = self.with_disk(&export.name, new)?;
            return self.open_and_commit(&export.name, config).await;
        }
        let format = if of.format == DiskFormat::Vhd { DiskFormat::Vhd } else { DiskFormat::Vhdx };
        let suffix = format.as_str();
        let child = NewChild {
            file: PathBuf::from(format!("disks/{}.{suffix}", export.name)),
            format,
            parent: self.state.absolute(&of.file),
            size_bytes: of.size_bytes,
            sector_size_bytes: config.sector_size_bytes,
            block_size_bytes: None,
            disk_id: new.uuid,
            description: self.describe(&of.file).await?,
        };
        let new = DiskConfig {
            format,
            file: Some(child.file.clone()),
            kind: Some(DiskKind::Differencing),
            read_only: false,
            added: false,
            parent: Some(of.file.clone()),
            ..new
        };
        self.create_and_commit(&export.name, new, child).await
    }
}

/// What the leaf is from now on: a snapshot.
fn frozen(part: &Part, created: u64) -> SnapshotConfig {
    let disk = &part.config;
    SnapshotConfig {
        file: disk.file.clone().unwrap_or_default(),
        format: disk.format,
        kind: disk.kind.unwrap_or(DiskKind::Dynamic),
        file_parent: disk.parent.clone(),
        size_bytes: part.child.size_bytes,
        created,
        parent: disk.base.clone(),
        group: None,
        added: disk.added,
        deleting: false,
    }
}

/// A disk with a new leaf over a snapshot of what was the leaf.
fn with_leaf(disk: &DiskConfig, child: &NewChild, snapshot: &str, frozen: SnapshotConfig) -> DiskConfig {
    let mut disk = disk.clone();
    disk.parent = disk.file.replace(child.file.clone());
    disk.format = child.format;
    disk.kind = Some(DiskKind::Differencing);
    disk.size_bytes = child.size_bytes;
    disk.added = false;
    disk.base = Some(snapshot.to_owned());
    disk.snapshots.insert(snapshot.to_owned(), frozen);
    disk
}

/// A disk with a new leaf over an old snapshot.
fn restored(disk: &DiskConfig, child: &NewChild, snapshot: &str, of: &SnapshotConfig) -> DiskConfig {
    DiskConfig {
        file: Some(child.file.clone()),
        parent: Some(of.file.clone()),
        format: child.format,
        kind: Some(DiskKind::Differencing),
        size_bytes: of.size_bytes,
        added: false,
        base: Some(snapshot.to_owned()),
        ..disk.clone()
    }
}

/// A raw image is known by its last change, and was written since that was recorded: nobody writes it from now on, so
/// let the record be right.
fn keep_last_change(part: &Part) -> Result<(), Refused> {
    match part.child.description.identity {
        ImageIdentity::Raw { modified_ns, .. } => {
            medium::set_modified_ns(&part.child.parent, modified_ns).map_err(Refused::failed)
        }
        ImageIdentity::Vhdx(_) | ImageIdentity::Vhd(_) => Ok(()),
    }
}

/// A name that says when, and that no snapshot of the disk has.
fn free_name(disk: &DiskConfig, seconds: u64) -> String {
    let name = format!("{:#}", UtcTime(seconds));
    let numbered = (2u32..).map(|number| format!("{name}-{number}"));
    let mut names = std::iter::once(name.clone()).chain(numbered);
    names.find(|name| !disk.snapshots.contains_key(name)).unwrap_or(name)
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The snapshots of a disk that come right after one, and whether the present state does.
pub(super) fn above<'a>(disk: &'a DiskConfig, snapshot: &str) -> (Vec<&'a str>, bool) {
    let after = |of: &SnapshotConfig| of.parent.as_deref() == Some(snapshot);
    let names = disk.snapshots.iter().filter(|(_, of)| after(of)).map(|(name, _)| name.as_str());
    (names.collect(), disk.base.as_deref() == Some(snapshot))
}
