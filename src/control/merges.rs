//! Merging files of a disk: what a deleted snapshot leaves behind, and a differencing disk with its parent.
//!
//! A snapshot that is deleted stays in the configuration, marked, until its file is gone. Its file and the file of what
//! comes right after it become one: the upper one is merged into the lower one, which takes its place. While that is
//! copied, both are as good as before for everybody who reads them. The leaf of a disk that is being written is frozen
//! first, below a snapshot that nobody sees; what is written meanwhile is less each time, and the last bit is merged
//! while commands are held.
//!
//! Every step can be repeated after a crash: `merge` in the configuration says what is under way.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use super::config::{Config, DiskConfig, MergeConfig, SnapshotConfig};
use super::controller::{Controller, LiveDisk};
use super::crash::step;
use super::dataplane::ask;
use super::disks::{about, open, refusal};
use super::error::Refused;
use super::executor::blocking;
use super::live::Swap;
use super::snapshots::{above, now};
use super::state::{FileChange, RecordedFile};
use crate::jobs::Progress;
use crate::jobs::merge::{Lower, Merge};
use crate::medium::offline::{self, Hold};
use crate::medium::{self, Disk, DiskKind, LayerFile};
use crate::shard::message::ToShard;
use crate::vhdx::Guid;

/// A leaf with no more than this is merged while commands are held: some tens of milliseconds.
const LAST_MERGE_BYTES: u64 = 8 << 20;

/// How often a leaf is frozen for one merge. A disk that is written faster than it can be merged waits longer then.
const ROUNDS_MAX: u32 = 6;

impl Controller {
    /// Delete a snapshot. Gives whether a merge has to follow.
    ///
    /// # Errors
    /// There is none, or something needs it.
    pub async fn snapshot_delete(&mut self, name: &str, snapshot: &str) -> Result<bool, Refused> {
        self.refuse_busy(name)?;
        let deleting = self.config.disks.get(name).and_then(|disk| disk.snapshots.get(snapshot));
        if !deleting.is_some_and(|snapshot| snapshot.deleting) {
            let (_, of) = self.snapshot_of(name, snapshot)?;
            self.refuse_needed(name, snapshot, &of)?;
            let mut config = self.config.clone();
            if let Some(of) = config.disks.get_mut(name).and_then(|disk| disk.snapshots.get_mut(snapshot)) {
                of.deleting = true;
            }
            self.persist(config).await?;
            self.publish();
            step("snapshot delete: marked");
        }
        let Some(disk) = self.config.disks.get(name) else { return Ok(false) };
        let (snapshots, leaf) = above(disk, snapshot);
        match (snapshots.len(), leaf) {
            (0, false) => {
                self.drop_snapshot(name, snapshot).await?;
                Ok(self.has_merge(name))
            }
            _ => Ok(self.has_merge(name)),
        }
    }

    /// Refuse to delete a snapshot that other disks are based on.
    fn refuse_needed(&self, disk: &str, snapshot: &str, of: &SnapshotConfig) -> Result<(), Refused> {
        let mut users = self.children_of(&of.file, disk);
        users.extend(self.exports_of(disk, snapshot));
        users.sort_unstable();
        users.dedup();
        if users.is_empty() {
            return Ok(());
        }
        Err(Refused::conflict(format!(
            "snapshot '{snapshot}' of disk '{disk}' is needed by {}; delete that first",
            users.join(", ")
        )))
    }

    /// The disks that show a snapshot.
    pub(super) fn exports_of(&self, disk: &str, snapshot: &str) -> Vec<String> {
        exports_of(&self.config, disk, snapshot)
    }

    /// Whether some of a disk's files can be merged now.
    pub fn has_merge(&self, name: &str) -> bool {
        let Some(disk) = self.config.disks.get(name) else { return false };
        disk.merge.is_some() || self.next_merge(name, disk).is_some()
    }

    /// A deleted snapshot that exactly one thing comes right after, and that: a snapshot, or `None` for the leaf.
    fn next_merge(&self, name: &str, disk: &DiskConfig) -> Option<(String, Option<String>)> {
        let free = |file: &Path| self.children_of(file, name).is_empty();
        let deleted = || disk.snapshots.iter().filter(|(_, of)| of.deleting && free(&of.file));
        let snapshot = deleted().find_map(|(snapshot, _)| match above(disk, snapshot) {
            (children, false) => {
                let [child] = children.as_slice() else { return None };
                let of = disk.snapshots.get(*child)?;
                let usable = free(&of.file) && self.exports_of(name, child).is_empty();
                usable.then(|| (snapshot.clone(), Some((*child).to_owned())))
            }
            _ => None,
        });
        snapshot.or_else(|| {
            let leaf = disk.file.as_deref().filter(|file| free(file));
            let only_leaf =
                |snapshot: &String| matches!(above(disk, snapshot), (children, true) if children.is_empty());
            leaf.and_then(|_| deleted().map(|(snapshot, _)| snapshot).find(|snapshot| only_leaf(snapshot)))
                .map(|snapshot| (snapshot.clone(), None))
        })
    }

    /// Take a snapshot out of the configuration that nothing comes after, with its file.
    async fn drop_snapshot(&mut self, name: &str, snapshot: &str) -> Result<(), Refused> {
        let mut config = self.config.clone();
        let Some(of) = config.disks.get_mut(name).and_then(|disk| disk.snapshots.remove(snapshot)) else {
            return Ok(());
        };
        let gone = self.settling(&of.file, of.added).await?;
        step("snapshot delete: begun");
        if let Err(refused) = self.persist(config).await {
            self.end_change();
            return Err(refused);
        }
        step("snapshot delete: persisted");
        self.publish();
        if let Some(warning) = self.settle(gone).await {
            tracing::warn!("disk '{name}': {warning}");
        }
        Ok(())
    }

    /// Record a file that the configuration is about to name no more, unless it was there before the disk.
    async fn settling(&self, file: &Path, added: bool) -> Result<Vec<RecordedFile>, Refused> {
        let gone: Vec<RecordedFile> = self.recorded(file).filter(|_| !added).into_iter().collect();
        self.begin(FileChange::Settling { temporaries: Vec::new(), files: gone.clone() }).await?;
        Ok(gone)
    }

    /// Let a differencing disk's parent become part of it, so that the two can be merged. Gives what that means for the
    /// parent, in words: as a disk of its own it is gone.
    ///
    /// # Errors
    /// It has none, or somebody else needs that.
    pub async fn merge_begin(&mut self, name: &str) -> Result<Option<String>, Refused> {
        self.refuse_busy(name)?;
        let live = self.online(name)?;
        let Some(disk) = self.config.disks.get(name).cloned() else {
            return Err(Refused::not_found(format!("there is no disk '{name}'")));
        };
        if self.has_merge(name) {
            return Ok(None);
        }
        if live.read_only() {
            return Err(Refused::conflict(format!("disk '{name}' is read-only or a parent, so it is not merged")));
        }
        let lowest = disk.snapshots.values().find(|of| of.parent.is_none()).map_or(&disk.parent, |of| &of.file_parent);
        let Some(parent) = lowest.clone() else {
            return Err(Refused::conflict(format!("disk '{name}' has no parent to be merged into")));
        };
        let config = self.with_parent_adopted(name, &disk, &parent).await?;
        let gone: Vec<String> =
            self.config.disks.keys().filter(|name| !config.disks.contains_key(*name)).cloned().collect();
        step("merge: checked");
        self.persist(config).await?;
        step("merge: persisted");
        let file = self.state.absolute(&parent);
        let told = match gone.as_slice() {
            [] => format!("its parent {} is its own file now", file.display()),
            gone => format!("its parent, disk '{}', is no disk of its own any more", gone.join("', '")),
        };
        for gone in gone {
            if let Some(LiveDisk::Online(live)) = self.disks.remove(&gone) {
                super::attachment::detach(&*self.plane, [&*live]).await;
            }
            self.disks.remove(&gone);
        }
        self.publish();
        Ok(Some(told))
    }

    /// The configuration with a disk's parent as a deleted snapshot below everything else of the disk.
    async fn with_parent_adopted(&self, name: &str, disk: &DiskConfig, parent: &Path) -> Result<Config, Refused> {
        let others = self.children_of(parent, name);
        if !others.is_empty() {
            return Err(Refused::conflict(format!(
                "{} is the parent of {}, too, which would lose it",
                self.state.absolute(parent).display(),
                others.join(", ")
            )));
        }
        let absolute = self.state.absolute(parent);
        let mut config = self.config.clone();
        let mut added = true;
        if let Some((owner, of)) =
            self.config.disks.iter().find(|(_, of)| of.own_files().any(|file| self.state.absolute(file) == absolute))
        {
            if !self.config.mappings_of(owner).is_empty() || !of.snapshots.is_empty() {
                return Err(Refused::conflict(format!(
                    "the parent is the file of disk '{owner}', which is mapped or has snapshots; it would become disk \
                     '{name}'"
                )));
            }
            added = of.added;
            config.disks.remove(owner);
        }
        let found = self.describe(parent).await?;
        let grandparent = found.parent.as_ref().and_then(|_| self.parent_of_live(name, &absolute));
        let node = format!("merge-{}", Uuid::new_v4().simple());
        let frozen = SnapshotConfig {
            file: parent.to_owned(),
            format: found.format,
            kind: found.kind,
            file_parent: grandparent,
            size_bytes: found.size_bytes,
            created: now(),
            parent: None,
            group: None,
            added,
            deleting: true,
        };
        let mut disk = disk.clone();
        for of in disk.snapshots.values_mut().filter(|of| of.parent.is_none()) {
            of.parent = Some(node.clone());
        }
        disk.base = disk.base.or_else(|| Some(node.clone()));
        disk.snapshots.insert(node, frozen);
        config.disks.insert(name.to_owned(), disk);
        config.check()?;
        Ok(config)
    }

    /// The file that a layer of an open disk is based on.
    fn parent_of_live(&self, name: &str, file: &Path) -> Option<PathBuf> {
        let disk = self.online(name).ok()?;
        let at = disk.layers().iter().position(|layer| layer.path() == file)?;
        disk.layers().get(at + 1).map(|layer| layer.path().to_owned())
    }

    /// What is to be copied next for a disk's merges, everything before it having been done; `None` when all is done.
    /// `round` counts the calls of one job.
    ///
    /// # Errors
    /// A file cannot be used; the disk is served as before.
    pub async fn merge_next(&mut self, name: &str, round: u32) -> Result<Option<Merge>, Refused> {
        loop {
            let Some(disk) = self.config.disks.get(name).cloned() else { return Ok(None) };
            if let Some(merge) = &disk.merge {
                if merge.copied {
                    self.merge_finish(name, &disk, merge).await?;
                    continue;
                }
                if merge.child.is_some() {
                    return Ok(self.merge_work(name, &disk, merge));
                }
            }
            let lost = |snapshot: &&String| {
                let (children, leaf) = above(&disk, snapshot);
                children.is_empty() && !leaf
            };
            let deleted = disk.snapshots.iter().filter(|(_, of)| of.deleting).map(|(name, _)| name);
            if let Some(snapshot) = deleted.clone().find(lost).cloned() {
                self.drop_snapshot(name, &snapshot).await?;
                continue;
            }
            match self.next_merge(name, &disk) {
                None => return Ok(None),
                Some((snapshot, Some(child))) => self.merge_record(name, snapshot, Some(child)).await?,
                Some((snapshot, None)) => {
                    if round >= ROUNDS_MAX || self.leaf_bytes(name).await? <= LAST_MERGE_BYTES {
                        self.merge_leaf(name, &snapshot).await?;
                    } else {
                        self.freeze_leaf(name).await?;
                    }
                }
            }
        }
    }

    /// Bytes that a disk's leaf holds itself.
    async fn leaf_bytes(&self, name: &str) -> Result<u64, Refused> {
        let disk = self.online(name)?;
        let id = disk.id();
        let report = ask(&*self.plane, disk.home(), |reply| ToShard::ReportEngine { disk: id, reply }).await;
        Ok(report.wait().await?.and_then(|report| report.space).map_or(0, |space| space.allocated_bytes))
    }

    /// Say what is merged into what, before anything is changed.
    async fn merge_record(&mut self, name: &str, snapshot: String, child: Option<String>) -> Result<(), Refused> {
        let mut config = self.config.clone();
        if let Some(disk) = config.disks.get_mut(name) {
            let same = disk.merge.as_ref().is_some_and(|merge| merge.snapshot == snapshot && merge.child == child);
            if same {
                return Ok(());
            }
            disk.merge = Some(MergeConfig { snapshot, child, identifier: Uuid::new_v4(), copied: false });
        }
        self.persist(config).await?;
        step("merge: recorded");
        Ok(())
    }

    fn merge_work(&self, name: &str, disk: &DiskConfig, merge: &MergeConfig) -> Option<Merge> {
        let layer = match &merge.child {
            Some(child) => &disk.snapshots.get(child)?.file,
            None => disk.file.as_ref()?,
        };
        let into = self.state.absolute(&disk.snapshots.get(&merge.snapshot)?.file);
        Some(Merge {
            layer: self.state.absolute(layer),
            lower: self.layer_of(name, &into).map_or(Lower::Closed, Lower::Open),
            into,
            identifier: Guid(merge.identifier.to_bytes_le()),
        })
    }

    /// The layer of an open disk that is this file.
    fn layer_of(&self, name: &str, file: &Path) -> Option<Arc<LayerFile>> {
        let Some(LiveDisk::Online(live)) = self.disks.get(name) else { return None };
        live.layers().iter().find(|layer| layer.path() == file).cloned()
    }

    /// The copy of what [`Controller::merge_next`] gave is complete and durable.
    ///
    /// # Errors
    /// The configuration cannot be written.
    pub async fn merge_copied(&mut self, name: &str) -> Result<(), Refused> {
        let mut config = self.config.clone();
        if let Some(merge) = config.disks.get_mut(name).and_then(|disk| disk.merge.as_mut()) {
            merge.copied = true;
        }
        self.persist(config).await?;
        step("merge: copied");
        Ok(())
    }

    /// Put a merged file in the place of the two that it was made of.
    async fn merge_finish(&mut self, name: &str, disk: &DiskConfig, merge: &MergeConfig) -> Result<(), Refused> {
        let (Some(child), Some(lower)) = (&merge.child, disk.snapshots.get(&merge.snapshot)) else {
            return Err(Refused::failed(format!("disk '{name}': the record of its merge names nothing")));
        };
        let Some(upper) = disk.snapshots.get(child) else {
            return Err(Refused::failed(format!("disk '{name}' has no snapshot '{child}'")));
        };
        let into = self.state.absolute(&lower.file);
        let (snapshots, leaf) = above(disk, child);
        let files: Vec<PathBuf> =
            snapshots.iter().filter_map(|name| Some(self.state.absolute(&disk.snapshots.get(*name)?.file))).collect();
        let (parent, merged) = (into.clone(), self.state.absolute(&upper.file));
        blocking(move || {
            // A raw file has the time by which it was known, so that whoever names it now or later agrees, even if a
            // crash comes in between.
            offline::restamp_raw_parent(&merged, &parent).map_err(|e| about(&merged, &e))?;
            files.iter().try_for_each(|file| set_parent(file, &parent))
        })
        .await?;
        step("merge: children turned");
        self.forget_layers(name);
        let config = self.merged_config(name, disk, merge, child);
        let gone = self.settling(&upper.file, upper.added).await?;
        let own = disk.file.as_deref().map(|file| self.state.absolute(file)).filter(|_| leaf);
        let result = self.turn_live(name, own, into).await;
        step("merge: leaf turned");
        let result = match result {
            Ok(()) => self.persist(config).await,
            refused => refused,
        };
        if let Err(refused) = result {
            self.end_change();
            return Err(refused);
        }
        step("merge: merged");
        self.publish();
        if let Some(warning) = self.settle(gone).await {
            tracing::warn!("disk '{name}': {warning}");
        }
        step("merge: settled");
        Ok(())
    }

    /// What the configuration is when the merged file has the place of two.
    fn merged_config(&self, name: &str, disk: &DiskConfig, merge: &MergeConfig, child: &str) -> Config {
        let mut config = self.config.clone();
        let mut disk = disk.clone();
        disk.merge = None;
        if let Some(lower) = disk.snapshots.remove(&merge.snapshot) {
            for of in disk.snapshots.values_mut().filter(|of| of.parent.as_deref() == Some(child)) {
                of.file_parent = Some(lower.file.clone());
            }
            if disk.base.as_deref() == Some(child) {
                disk.parent = Some(lower.file.clone());
            }
            if let Some(upper) = disk.snapshots.get_mut(child) {
                upper.file = lower.file;
                upper.format = lower.format;
                upper.kind = lower.kind;
                upper.file_parent = lower.file_parent;
                upper.added = lower.added;
                upper.parent = lower.parent;
            }
        }
        config.disks.insert(name.to_owned(), disk);
        config
    }

    /// Let the running disk stand on the merged file: its leaf, when it names that, and all below it are opened anew.
    async fn turn_live(&mut self, name: &str, leaf: Option<PathBuf>, into: PathBuf) -> Result<(), Refused> {
        if self.online(name).is_err() {
            // It is offline: only its files are turned.
            return match leaf {
                Some(leaf) => blocking(move || set_parent(&leaf, &into)).await,
                None => Ok(()),
            };
        }
        // What is opened here stays open over the pause, so that nothing below the leaf is opened in it.
        let warm = self.warm_parents(name, leaf.as_ref().map(|_| into.clone())).await;
        let turned = self
            .with_file_closed(name, None, move || match leaf {
                Some(leaf) => set_parent(&leaf, &into),
                None => Ok(()),
            })
            .await;
        drop(warm);
        turned
    }

    /// Open what lies below a disk's leaf, as a disk of its own that nobody serves.
    async fn warm_parents(&mut self, name: &str, parent: Option<PathBuf>) -> Option<Arc<Disk>> {
        let disk = self.config.disks.get(name)?.clone();
        let path = parent.or_else(|| disk.parent.as_deref().map(|file| self.state.absolute(file)))?;
        let mut spec = self.open_spec(name, &DiskConfig { read_only: true, ..disk });
        let looked_at = path.clone();
        let found = blocking(move || medium::describe(&looked_at)).await.ok()?;
        (spec.format, spec.kind) = (found.format, Some(found.kind));
        (spec.path, spec.parent, spec.cache) = (Some(path), None, medium::Cache::Buffered);
        blocking(move || open(spec)).await.ok().map(|opened| opened.disk)
    }

    /// What is below a disk's leaf is opened anew from now on.
    fn forget_layers(&self, name: &str) {
        if let Some(LiveDisk::Online(disk)) = self.disks.get(name) {
            disk.layers().iter().for_each(|layer| self.parents.forget(layer));
        }
    }

    /// Merge a disk's leaf into the file of a deleted snapshot, while commands are held: the disk goes on with that
    /// file.
    async fn merge_leaf(&mut self, name: &str, snapshot: &str) -> Result<(), Refused> {
        let old = self.online(name)?;
        self.merge_record(name, snapshot.to_owned(), None).await?;
        let Some(disk) = self.config.disks.get(name).cloned() else { return Ok(()) };
        let work = disk.merge.as_ref().and_then(|merge| self.merge_work(name, &disk, merge));
        let (Some(mut work), Some(lower), Some(leaf)) =
            (work, disk.snapshots.get(snapshot).cloned(), disk.file.clone())
        else {
            return Err(Refused::failed(format!("disk '{name}' has no files to merge")));
        };
        let mut config = self.config.clone();
        config.disks.insert(name.to_owned(), with_lower_as_leaf(&disk, snapshot, lower));
        let gone = self.settling(&leaf, disk.added).await?;
        // Nobody else may read what is going to be written; the lock is the layer's, which the leaf takes over.
        let layer = match &work.lower {
            Lower::Open(layer) => Some(Arc::clone(layer)),
            Lower::Locked | Lower::Closed => None,
        };
        if let Some(layer) = layer.clone() {
            blocking(move || layer.lock_alone().map_err(|e| refusal(&e))).await.inspect_err(|_| self.end_change())?;
            work.lower = Lower::Locked;
        }
        let share = || layer.as_ref().map_or(Ok(()), |layer| layer.share_lock().map_err(|e| refusal(&e)));
        if let Err(refused) = self.pause(std::slice::from_ref(&old)).await {
            self.end_change();
            share()?;
            return Err(refused);
        }
        let merged = match self.close_engine(&old).await {
            Ok(()) => {
                let merged = blocking(move || work.run(&Progress::default()).map_err(Refused::failed)).await;
                step("merge: leaf merged");
                match merged {
                    Ok(()) => self.persist(config).await,
                    refused => refused,
                }
            }
            refused => refused,
        };
        step("merge: leaf replaced");
        self.forget_layers(name);
        if merged.is_err()
            && let Err(refused) = share()
        {
            tracing::warn!("disk '{name}': {refused}");
        }
        match self.open_again(name, &old).await {
            Ok(opened) => self.swap(vec![Swap { opened, retire: false, attention: None }]).await.map(drop)?,
            Err(refused) => {
                self.give_up(name, &refused).await?;
                self.end_change();
                return Err(refused);
            }
        }
        self.publish();
        step("merge: leaf opened");
        if let Err(refused) = merged {
            self.end_change();
            return Err(refused);
        }
        drop(old);
        if let Some(warning) = self.settle(gone).await {
            tracing::warn!("disk '{name}': {warning}");
        }
        Ok(())
    }
}

/// A disk whose leaf is the file that a deleted snapshot had.
fn with_lower_as_leaf(disk: &DiskConfig, snapshot: &str, lower: SnapshotConfig) -> DiskConfig {
    let mut disk = disk.clone();
    disk.snapshots.remove(snapshot);
    disk.merge = None;
    disk.file = Some(lower.file);
    disk.format = lower.format;
    disk.kind = Some(lower.kind);
    disk.parent = lower.file_parent;
    disk.parent_given = disk.parent_given && lower.kind == DiskKind::Differencing;
    disk.base = lower.parent;
    disk.added = lower.added;
    disk
}

/// The disks that show a snapshot.
pub(super) fn exports_of(config: &Config, disk: &str, snapshot: &str) -> Vec<String> {
    let shows =
        |of: &DiskConfig| of.export.as_ref().is_some_and(|export| export.disk == disk && export.snapshot == snapshot);
    config.disks.iter().filter(|(_, of)| shows(of)).map(|(name, _)| name.clone()).collect()
}

fn set_parent(file: &Path, parent: &Path) -> Result<(), Refused> {
    offline::set_parent(file, Hold::Held, parent).map_err(|e| about(file, &e))
}
