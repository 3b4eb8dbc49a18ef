//! Commands on disks.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use super::api;
use super::attachment;
use super::beside;
use super::config::{Config, DiskConfig, check_name};
use super::controller::{Controller, LiveDisk};
use super::crash::step;
use super::error::Refused;
use super::executor::blocking;
use super::images::NewChild;
use super::state::{self, FileChange, FileIdentity, RecordedFile};
use crate::medium::{self, Cache, CreateSpec, DiskFormat, DiskKind, OpenSpec, Opened};

impl Controller {
    /// Create a disk, or serve an image that exists.
    pub async fn disk_new(&mut self, new: api::NewDisk) -> Result<(), Refused> {
        check_name("disk", &new.name)?;
        if self.config.disks.contains_key(&new.name) {
            return Err(Refused::conflict(format!("there is a disk '{}' already; choose another name", new.name)));
        }
        if new.file.as_ref().is_some_and(|file| !file.is_absolute()) {
            return Err(Refused::invalid("'file' must be an absolute path"));
        }
        if new.existing { self.disk_add(new).await } else { self.disk_create(new).await }
    }

    async fn disk_add(&mut self, new: api::NewDisk) -> Result<(), Refused> {
        let Some(file) = new.file.clone() else {
            return Err(Refused::invalid("to add a disk, say which image with 'file'"));
        };
        let given =
            [new.size_bytes.is_some(), new.kind.is_some(), new.block_size_bytes.is_some(), new.format.is_some()];
        if given.contains(&true) {
            return Err(Refused::invalid("an image that exists has its format, kind and sizes; leave them out"));
        }
        let looked_at = file.clone();
        let probed = blocking(move || medium::describe(&looked_at)).await.map_err(|e| about(&file, &e))?;
        if probed.format == DiskFormat::Raw {
            refuse_other_formats(&file)?;
            if !probed.size_bytes.is_multiple_of(512) || probed.size_bytes == 0 {
                let (path, size_bytes) = (file, probed.size_bytes);
                return Err(Refused::invalid(medium::FileError::RawSize { path, size_bytes }));
            }
        }
        if new.parent.is_some() && probed.parent.is_none() {
            return Err(Refused::invalid(format!("{} has no parent; leave --parent out", file.display())));
        }
        let parent = new.parent.as_deref().map(|parent| self.parent_file(parent)).transpose()?;
        let uuid = match (probed.format, probed.disk_id) {
            (DiskFormat::Vhdx, Some(uuid)) => uuid,
            (_, of_file) => self.identity_beside(&file).await.or(of_file).unwrap_or_else(Uuid::new_v4),
        };
        let disk = DiskConfig {
            format: probed.format,
            file: Some(file),
            kind: Some(probed.kind),
            size_bytes: probed.size_bytes,
            sector_size_bytes: new.sector_size_bytes.unwrap_or(probed.sector_size_bytes),
            uuid,
            cache: new.cache.unwrap_or(Cache::Direct),
            read_only: new.read_only,
            added: true,
            parent_given: parent.is_some(),
            parent,
            base: None,
            snapshots: BTreeMap::new(),
            merge: None,
            export: None,
            reservations: None,
            settings: Default::default(),
        };
        if disk.format != DiskFormat::Raw && disk.sector_size_bytes != probed.sector_size_bytes {
            return Err(Refused::invalid(format!("this image has {} byte sectors", probed.sector_size_bytes)));
        }
        let config = self.with_disk(&new.name, disk)?;
        self.open_and_commit(&new.name, config).await
    }

    /// The disk that an image is, by the reservations beside it. (A VHD only says which file it is.)
    async fn identity_beside(&self, file: &Path) -> Option<Uuid> {
        let image = file.to_owned();
        let known = blocking(move || beside::identity_of(&image)).await;
        let is_free = |uuid: &Uuid| self.config.disks.values().all(|disk| disk.uuid != *uuid);
        known.filter(is_free)
    }

    async fn disk_create(&mut self, new: api::NewDisk) -> Result<(), Refused> {
        if new.parent.is_some() || new.kind == Some(DiskKind::Differencing) {
            return self.disk_create_child(new).await;
        }
        let (disk, block_size_bytes) = self.design(&new)?;
        let config = self.with_disk(&new.name, disk.clone())?;
        let Some(file) = disk.file.as_deref().map(|file| self.state.absolute(file)) else {
            return self.open_and_commit(&new.name, config).await;
        };
        let spec = CreateSpec {
            path: file.with_file_name(format!(".lunaring-{}", disk.uuid)),
            format: disk.format,
            kind: disk.kind.unwrap_or(DiskKind::Dynamic),
            size_bytes: disk.size_bytes,
            block_size_bytes,
            sector_size_bytes: disk.sector_size_bytes,
            parent: None,
            disk_id: Some(disk.uuid),
        };
        let identity = self.create_file(spec, &file).await?;
        step("disk create: named");
        match self.open_and_commit(&new.name, config).await {
            Ok(()) => {
                step("disk create: attached");
                self.state.end();
                Ok(())
            }
            Err(refused) => {
                // What is refused leaves nothing behind; the refusal matters more than a failing removal.
                let _ = state::remove_exactly(&file, identity);
                self.state.end();
                Err(refused)
            }
        }
    }

    /// Create a differencing disk.
    async fn disk_create_child(&mut self, new: api::NewDisk) -> Result<(), Refused> {
        let Some(parent) = &new.parent else {
            return Err(Refused::invalid(
                "a differencing disk needs a parent: the name of a disk that nobody writes, or an image, with --parent",
            ));
        };
        if !matches!(new.kind, None | Some(DiskKind::Differencing)) {
            return Err(Refused::invalid("a disk with a parent is differencing; leave --kind out"));
        }
        let parent_file = self.parent_file(parent)?;
        let frozen = self.freeze_parent(&parent_file).await?;
        let created = self.disk_create_over(&new, &parent_file).await;
        if created.is_err()
            && let Some(frozen) = frozen
        {
            // Without a child it can be written again.
            self.with_file_closed(&frozen, None, || Ok(())).await?;
        }
        created
    }

    async fn disk_create_over(&mut self, new: &api::NewDisk, parent_file: &Path) -> Result<(), Refused> {
        let description = self.describe(parent_file).await?;
        let sector_size_bytes = match description.format {
            DiskFormat::Raw => self.sector_size_of(parent_file).or(new.sector_size_bytes).unwrap_or(512),
            _ => description.sector_size_bytes,
        };
        if new.sector_size_bytes.is_some_and(|bytes| bytes != sector_size_bytes) {
            return Err(Refused::invalid(format!(
                "the parent has {sector_size_bytes} byte sectors, and a child has what its parent has"
            )));
        }
        let format = match (new.format, description.format) {
            (None, DiskFormat::Vhd) => DiskFormat::Vhd,
            (None, _) => DiskFormat::Vhdx,
            (Some(format @ (DiskFormat::Vhdx | DiskFormat::Vhd)), _) => format,
            (Some(format), _) => {
                return Err(Refused::invalid(format!("a {} disk cannot have a parent; use vhdx", format.as_str())));
            }
        };
        let new_as_dynamic = api::NewDisk {
            size_bytes: Some(new.size_bytes.unwrap_or(description.size_bytes)),
            format: Some(format),
            kind: Some(DiskKind::Differencing),
            sector_size_bytes: Some(sector_size_bytes),
            ..new.clone()
        };
        let (disk, block_size_bytes) = self.design(&new_as_dynamic)?;
        let disk = DiskConfig { parent: Some(parent_file.to_owned()), ..disk };
        let child = NewChild {
            file: disk.file.clone().unwrap_or_default(),
            format,
            parent: self.state.absolute(parent_file),
            size_bytes: disk.size_bytes,
            sector_size_bytes,
            block_size_bytes,
            disk_id: disk.uuid,
            description,
        };
        self.create_and_commit(&new.name, disk, child).await
    }

    /// The sector size of the disk that has this raw image.
    fn sector_size_of(&self, file: &Path) -> Option<u32> {
        let file = self.state.absolute(file);
        let of = |disk: &&DiskConfig| disk.file.as_deref().is_some_and(|own| self.state.absolute(own) == file);
        self.config.disks.values().find(of).map(|disk| disk.sector_size_bytes)
    }

    /// Create a differencing image and serve it.
    pub(super) async fn create_and_commit(
        &mut self,
        name: &str,
        disk: DiskConfig,
        child: NewChild,
    ) -> Result<(), Refused> {
        let config = self.with_disk(name, disk)?;
        let named = self.create_children(vec![child], Vec::new()).await?;
        let committed = self.open_and_commit(name, config).await;
        step("disk create: attached");
        match committed {
            Ok(()) => self.end_change(),
            Err(_) => self.undo_children(&named),
        }
        committed
    }

    /// The file that is meant by NAME|FILE as a parent.
    ///
    /// # Errors
    /// There is no such disk, or somebody writes it.
    fn parent_file(&self, parent: &str) -> Result<PathBuf, Refused> {
        if parent.starts_with('/') {
            return Ok(PathBuf::from(parent));
        }
        let Some(disk) = self.config.disks.get(parent) else {
            return Err(Refused::not_found(format!(
                "there is no disk '{}'; see 'lunaring disk list', or give the absolute path of an image",
                parent.escape_debug()
            )));
        };
        let Some(file) = disk.file.clone() else {
            return Err(Refused::conflict(format!(
                "disk '{parent}' is a {} disk, which has no file and so cannot be a parent",
                disk.format.as_str()
            )));
        };
        if !disk.read_only
            && let Some((target, lun)) = self.written_through(parent)
        {
            return Err(Refused::conflict(format!(
                "disk '{parent}' can be written as LUN {lun} of target '{target}', and a parent must not change; unmap \
                 it, or map it with --read-only, or take a snapshot and export that with --writable"
            )));
        }
        Ok(file)
    }

    /// Where a disk can be written.
    fn written_through(&self, disk: &str) -> Option<(&str, u16)> {
        self.config.targets.iter().find_map(|(target, config)| {
            let lun = config.all_luns().find(|(.., lun)| lun.disk == disk && !lun.read_only)?;
            Some((target.as_str(), lun.1))
        })
    }

    /// Let the disk that has this file write it no more. Gives its name when that has changed something.
    async fn freeze_parent(&mut self, file: &Path) -> Result<Option<String>, Refused> {
        let absolute = self.state.absolute(file);
        let named = |(_, disk): &(&String, &DiskConfig)| {
            disk.file.as_deref().is_some_and(|own| self.state.absolute(own) == absolute)
        };
        let Some(name) = self.config.disks.iter().find(named).map(|(name, _)| name.clone()) else { return Ok(None) };
        if self.config.disks.get(&name).is_none_or(|disk| disk.read_only)
            || !matches!(self.disks.get(&name), Some(LiveDisk::Online(disk)) if !disk.read_only())
        {
            return Ok(None);
        }
        self.refuse_busy(&name)?;
        self.frozen = Some(name.clone());
        let reopened = self.with_file_closed(&name, None, || Ok(())).await;
        self.frozen = None;
        reopened?;
        if let Some(leaf) = self.online(&name)?.leaf() {
            self.parents.adopt(leaf).map_err(Refused::failed)?;
        }
        Ok(Some(name))
    }

    /// The disk that a request asks for, with the VHDX block size.
    fn design(&self, new: &api::NewDisk) -> Result<(DiskConfig, Option<u64>), Refused> {
        let format = new.format.unwrap_or(DiskFormat::Vhdx);
        let has_file = format.has_file();
        let Some(size_bytes) = new.size_bytes else {
            return Err(Refused::invalid("a new disk needs a size, for example --size 10G"));
        };
        let only_for = |given: bool, option: &str, formats: &str| match given {
            true => Err(Refused::invalid(format!("{option} is for {formats} disks, not for {} ones", format.as_str()))),
            false => Ok(()),
        };
        only_for(!has_file && new.file.is_some(), "--file", "vhdx, vhd and raw")?;
        only_for(!has_file && new.kind.is_some(), "--kind", "vhdx, vhd and raw")?;
        only_for(!has_file && new.cache.is_some(), "--cache", "vhdx, vhd and raw")?;
        let has_blocks = matches!(format, DiskFormat::Vhdx | DiskFormat::Vhd);
        only_for(!has_blocks && new.block_size_bytes.is_some(), "--block-size", "vhdx and vhd")?;
        let file = has_file.then(|| {
            let suffix = format.as_str();
            new.file.clone().unwrap_or_else(|| PathBuf::from(format!("disks/{}.{suffix}", new.name)))
        });
        let disk = DiskConfig {
            format,
            file,
            kind: has_file.then(|| new.kind.unwrap_or(DiskKind::Dynamic)),
            size_bytes,
            sector_size_bytes: new.sector_size_bytes.unwrap_or(512),
            uuid: Uuid::new_v4(),
            cache: new.cache.unwrap_or(Cache::Direct),
            read_only: new.read_only,
            added: false,
            parent: None,
            parent_given: false,
            base: None,
            snapshots: BTreeMap::new(),
            merge: None,
            export: None,
            reservations: None,
            settings: Default::default(),
        };
        Ok((disk, new.block_size_bytes))
    }

    /// The configuration with one more disk, checked.
    pub(super) fn with_disk(&self, name: &str, disk: DiskConfig) -> Result<Config, Refused> {
        let mut config = self.config.clone();
        if let Some(file) = &disk.file {
            let path = self.state.absolute(file);
            let same = |other: &DiskConfig| other.own_files().any(|file| self.state.absolute(file) == path);
            if disk.export.is_none() && config.disks.values().any(same) {
                return Err(Refused::conflict(format!("{} is the file of another disk already", path.display())));
            }
        }
        config.disks.insert(name.to_owned(), disk);
        config.check()?;
        Ok(config)
    }

    /// Create an image under a passing name and then give it its own, recorded so that a crash leaves no trace.
    async fn create_file(&self, spec: CreateSpec, file: &Path) -> Result<FileIdentity, Refused> {
        let temporary = spec.path.clone();
        let file = file.to_owned();
        if fs::symlink_metadata(&file).is_ok() {
            return Err(Refused::conflict(format!(
                "{} exists already; choose another file, or serve it with 'lunaring disk add'",
                file.display()
            )));
        }
        self.begin(FileChange::Creating { temporary: temporary.clone() }).await?;
        step("disk create: begun");
        let created = blocking(move || medium::create_file(&spec)).await;
        step("disk create: written");
        let failed = |e: io::Error| match e.kind() {
            io::ErrorKind::AlreadyExists => Refused::conflict(format!("{} exists already", file.display())),
            _ => Refused::failed(format!("cannot create {}: {e}", file.display())),
        };
        let named = |e: medium::FileError| {
            // The passing name means nothing to the reader of a message.
            let said = e.to_string().replace(&temporary.display().to_string(), &file.display().to_string());
            Refused { message: said, ..refusal(&e) }
        };
        let name = async {
            created.map_err(named)?;
            let identity = state::identity_of(&temporary).map_err(failed)?;
            self.begin(FileChange::Naming { temporary: temporary.clone(), file: file.clone(), identity }).await?;
            step("disk create: naming");
            let (from, to) = (temporary.clone(), file.clone());
            blocking(move || state::name_exclusively(&from, &to)).await.map_err(failed)?;
            Ok(identity)
        };
        let result = name.await;
        if result.is_err() {
            let _ = state::remove_unfinished(&temporary);
            self.state.end();
        }
        result
    }

    /// Record a change to files, durably, before it is made.
    pub(super) async fn begin(&self, change: FileChange) -> Result<(), Refused> {
        let state = Arc::clone(&self.state);
        blocking(move || state.begin(&change)).await
    }

    /// Open a disk of `config`, make that the configuration, attach the disk.
    pub(super) async fn open_and_commit(&mut self, name: &str, mut config: Config) -> Result<(), Refused> {
        let disk = config.disks.get(name).cloned();
        let Some(disk) = disk else { return Err(Refused::not_found(format!("there is no disk '{name}'"))) };
        let spec = self.open_spec(name, &disk);
        let opened = blocking(move || open(spec)).await?;
        if let Some(entry) = config.disks.get_mut(name) {
            entry.size_bytes = opened.disk.size_bytes();
            entry.sector_size_bytes = opened.disk.block_length();
            entry.parent = opened.disk.layers().get(1).map(|parent| match &entry.parent {
                // As it was said, if that is the same file.
                Some(named) if self.state.absolute(named) == parent.path() => named.clone(),
                _ => parent.path().canonicalize().unwrap_or_else(|_| parent.path().to_owned()),
            });
        }
        step("disk: opened");
        self.persist(config).await?;
        step("disk: persisted");
        for disk in self.attach(vec![opened]).await? {
            self.disks.insert(name.to_owned(), LiveDisk::Online(disk));
        }
        self.publish();
        Ok(())
    }

    /// How a disk is to be opened, with a number of its own.
    pub(super) fn open_spec(&mut self, name: &str, disk: &DiskConfig) -> OpenSpec {
        let (id, home) = self.disk_id();
        let is_parent = self.frozen.as_deref() == Some(name)
            || disk.file.as_deref().is_some_and(|file| !self.children_of(file, name).is_empty());
        OpenSpec {
            id,
            name: name.to_owned(),
            uuid: disk.uuid,
            format: disk.format,
            kind: disk.kind,
            parent: disk.parent.as_deref().filter(|_| disk.parent_given).map(|file| self.state.absolute(file)),
            parents: Arc::clone(&self.parents),
            predecessor: None,
            path: disk.file.as_deref().map(|file| self.state.absolute(file)),
            size_bytes: disk.size_bytes,
            sector_size_bytes: disk.sector_size_bytes,
            read_only: disk.read_only || is_parent,
            cache: disk.cache,
            home,
            shards: self.plane.count(),
        }
    }

    /// Delete a disk that no target maps, and its files unless they are to be kept or were there before the disk.
    pub async fn disk_delete(&mut self, name: &str, keep_file: bool) -> Result<api::DeletedDisk, Refused> {
        let Some(disk) = self.config.disks.get(name).cloned() else {
            return Err(Refused::not_found(format!("there is no disk '{name}'; see 'lunaring disk list'")));
        };
        self.refuse_delete(name, &disk)?;
        let created: Vec<PathBuf> = match keep_file {
            true => Vec::new(),
            false => created_files(&disk).map(|file| self.state.absolute(file)).collect(),
        };
        let mut gone: Vec<RecordedFile> = created.iter().filter_map(|file| self.recorded(file)).collect();
        let beside =
            (!created.is_empty() && !disk.added).then(|| beside::search(&self.state, &self.config, name, created));
        gone.extend(recorded_beside(beside.clone()).await);
        if !gone.is_empty() {
            self.begin(FileChange::Settling { temporaries: Vec::new(), files: gone.clone() }).await?;
        }
        step("disk delete: begun");
        let mut config = self.config.clone();
        config.disks.remove(name);
        if let Err(refused) = self.persist(config).await {
            self.end_change();
            return Err(refused);
        }
        step("disk delete: persisted");
        let mut warning = None;
        if let Some(LiveDisk::Online(live)) = self.disks.remove(name) {
            self.publish();
            let troubles = attachment::detach(&*self.plane, [&*live]).await;
            if gone.is_empty() {
                warning = troubles.into_iter().next().map(|(_, refused)| refused.message);
            }
        }
        self.disks.remove(name);
        if let Err(error) = self.ledger.forget(name) {
            tracing::warn!("the reservations of disk '{name}' cannot be removed: {error}");
        }
        self.publish();
        step("disk delete: detached");
        // A shard may have asked for one meanwhile.
        let made = recorded_beside(beside).await.into_iter().filter(|file| !gone.contains(file));
        let made: Vec<RecordedFile> = made.collect();
        gone.extend(made);
        let mut kept_file = disk.file.as_deref().map(|file| self.state.absolute(file));
        if !gone.is_empty() {
            let trouble = self.settle(gone).await;
            kept_file = kept_file.filter(|file| file.exists());
            warning = trouble.or(warning);
        }
        if let Some(parent) = &disk.parent {
            self.thaw_parent(parent).await;
        }
        Ok(api::DeletedDisk { name: name.to_owned(), kept_file, warning })
    }

    fn refuse_delete(&self, name: &str, disk: &DiskConfig) -> Result<(), Refused> {
        self.refuse_busy(name)?;
        if let Some((target, lun)) = self.config.mappings_of(name).first() {
            return Err(Refused::conflict(format!(
                "disk '{name}' is LUN {lun} of target '{target}'; unmap it first with \
                 'lunaring target unmap {target} --lun {lun}'"
            )));
        }
        let mut children: Vec<String> = disk.own_files().flat_map(|file| self.children_of(file, name)).collect();
        let shows = |(_, other): &(&String, &DiskConfig)| other.export.as_ref().is_some_and(|of| of.disk == name);
        children.extend(self.config.disks.iter().filter(shows).map(|(name, _)| name.clone()));
        children.sort_unstable();
        children.dedup();
        if children.is_empty() {
            return Ok(());
        }
        Err(Refused::conflict(format!(
            "disk '{name}' is the parent of {}, which need its files; delete those first",
            children.join(", ")
        )))
    }

    /// A child is gone: the disk that has this file can be written again when that was the last.
    async fn thaw_parent(&mut self, file: &Path) {
        let absolute = self.state.absolute(file);
        let own = |disk: &DiskConfig| disk.file.as_deref().is_some_and(|own| self.state.absolute(own) == absolute);
        let Some((name, disk)) = self.config.disks.iter().find(|(_, disk)| own(disk)) else { return };
        let frozen = matches!(self.disks.get(name), Some(LiveDisk::Online(disk)) if disk.read_only());
        if disk.read_only || !frozen || !self.children_of(file, name).is_empty() {
            return;
        }
        let name = name.clone();
        if let Some(leaf) = self.online(&name).ok().as_ref().and_then(|disk| disk.leaf()) {
            self.parents.forget(leaf);
        }
        if let Err(refused) = self.with_file_closed(&name, None, || Ok(())).await {
            tracing::warn!("disk '{name}' has no children any more, and stays read-only until a restart: {refused}");
        }
    }
}

/// The files with reservations that go when a disk does.
async fn recorded_beside(search: Option<beside::Search>) -> Vec<RecordedFile> {
    let Some(search) = search else { return Vec::new() };
    let recorded = |file: PathBuf| Some(RecordedFile { identity: state::identity_of(&file).ok()?, file });
    blocking(move || beside::owned(&search).into_iter().filter_map(recorded).collect()).await
}

/// The files of a disk that were made for it.
fn created_files(disk: &DiskConfig) -> impl Iterator<Item = &Path> {
    let leaf = disk.file.as_deref().filter(|_| !disk.added);
    let snapshots = disk.snapshots.values().filter(|snapshot| !snapshot.added);
    leaf.into_iter().chain(snapshots.map(|snapshot| snapshot.file.as_path()))
}

/// Open a disk. Blocking.
pub(super) fn open(spec: OpenSpec) -> Result<Opened, Refused> {
    let file = spec.path.clone();
    medium::open(spec).map_err(|e| match file {
        Some(file) => about(&file, &e),
        None => refusal(&e),
    })
}

/// Open a disk's new leaf over the layers that it has. Blocking.
pub(super) fn open_over(spec: OpenSpec, old: &medium::Disk) -> Result<Opened, Refused> {
    let file = spec.path.clone().unwrap_or_default();
    medium::open_over(spec, old).map_err(|e| about(&file, &e))
}

/// A refusal about a file names it.
pub(super) fn about(file: &Path, error: &medium::FileError) -> Refused {
    let refused = refusal(error);
    let file = file.display().to_string();
    if refused.message.contains(&file) {
        return refused;
    }
    Refused { message: format!("{file}: {}", refused.message), ..refused }
}

/// The kind of refusal that an error with a file is.
pub(super) fn refusal(error: &medium::FileError) -> Refused {
    use medium::FileError;
    match error {
        FileError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => Refused::not_found(error),
        FileError::Io { .. } | FileError::Memory { .. } => Refused::failed(error),
        FileError::Exists(_) | FileError::InUse(_) => Refused::conflict(error),
        _ => Refused::invalid(error),
    }
}

/// A file without a known signature is served byte for byte, but not when its name says that it is something else: a
/// damaged image must not be written to as if it were a raw one.
fn refuse_other_formats(file: &Path) -> Result<(), Refused> {
    let extension = file.extension().and_then(OsStr::to_str).unwrap_or_default().to_ascii_lowercase();
    let shown = file.display();
    match extension.as_str() {
        "vhdx" | "avhdx" => Err(Refused::invalid(format!(
            "{shown}: the name says VHDX, but the file does not begin as one, so it is damaged or something else; \
             to serve its bytes as a raw disk, rename it first"
        ))),
        "vhd" | "vhds" | "avhd" | "qcow2" | "vmdk" | "vdi" => Err(Refused::invalid(format!(
            "{shown}: images of the format {extension} cannot be served; convert it, for example with \
             'qemu-img convert -O vhdx', or rename it to serve its bytes as a raw disk"
        ))),
        _ => Ok(()),
    }
}
