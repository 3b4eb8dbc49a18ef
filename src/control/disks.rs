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
use super::config::{Config, DiskConfig, check_name};
use super::controller::{Controller, LiveDisk};
use super::crash::step;
use super::error::Refused;
use super::executor::blocking;
use super::state::{self, FileChange, FileIdentity};
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
        let probed = blocking(move || medium::probe(&looked_at)).await.map_err(|e| about(&file, &e))?;
        if probed.format == DiskFormat::Raw {
            refuse_other_formats(&file)?;
        }
        let disk = DiskConfig {
            format: probed.format,
            file: Some(file),
            kind: Some(probed.kind),
            size_bytes: probed.size_bytes,
            sector_size_bytes: new.sector_size_bytes.unwrap_or(probed.sector_size_bytes),
            uuid: Uuid::new_v4(),
            cache: new.cache.unwrap_or(Cache::Direct),
            read_only: new.read_only,
            added: true,
            parent: None,
            base: None,
            snapshots: BTreeMap::new(),
            export: None,
        };
        if disk.format == DiskFormat::Vhdx && disk.sector_size_bytes != probed.sector_size_bytes {
            return Err(Refused::invalid(format!("this VHDX has {} byte sectors", probed.sector_size_bytes)));
        }
        let config = self.with_disk(&new.name, disk)?;
        self.open_and_commit(&new.name, config).await
    }

    async fn disk_create(&mut self, new: api::NewDisk) -> Result<(), Refused> {
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
            disk_id: None,
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

    /// The disk that a request asks for, with the VHDX block size.
    fn design(&self, new: &api::NewDisk) -> Result<(DiskConfig, Option<u64>), Refused> {
        let format = new.format.unwrap_or(DiskFormat::Vhdx);
        let has_file = matches!(format, DiskFormat::Vhdx | DiskFormat::Raw);
        let Some(size_bytes) = new.size_bytes else {
            return Err(Refused::invalid("a new disk needs a size, for example --size 10G"));
        };
        let only_for = |given: bool, option: &str, formats: &str| match given {
            true => Err(Refused::invalid(format!("{option} is for {formats} disks, not for {} ones", format.as_str()))),
            false => Ok(()),
        };
        only_for(!has_file && new.file.is_some(), "--file", "vhdx and raw")?;
        only_for(!has_file && new.kind.is_some(), "--kind", "vhdx and raw")?;
        only_for(!has_file && new.cache.is_some(), "--cache", "vhdx and raw")?;
        only_for(format != DiskFormat::Vhdx && new.block_size_bytes.is_some(), "--block-size", "vhdx")?;
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
            base: None,
            snapshots: BTreeMap::new(),
            export: None,
        };
        Ok((disk, new.block_size_bytes))
    }

    /// The configuration with one more disk, checked.
    fn with_disk(&self, name: &str, disk: DiskConfig) -> Result<Config, Refused> {
        let mut config = self.config.clone();
        if let Some(file) = &disk.file {
            let path = self.state.absolute(file);
            let same = |other: &&DiskConfig| other.file.as_ref().is_some_and(|file| self.state.absolute(file) == path);
            if config.disks.values().find(same).is_some() {
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
    async fn begin(&self, change: FileChange) -> Result<(), Refused> {
        let state = Arc::clone(&self.state);
        blocking(move || state.begin(&change)).await
    }

    /// Open a disk of `config`, make that the configuration, attach the disk.
    async fn open_and_commit(&mut self, name: &str, mut config: Config) -> Result<(), Refused> {
        let disk = config.disks.get(name).cloned();
        let Some(disk) = disk else { return Err(Refused::not_found(format!("there is no disk '{name}'"))) };
        let spec = self.open_spec(name, &disk);
        let opened = blocking(move || open(spec)).await?;
        if let Some(entry) = config.disks.get_mut(name) {
            entry.size_bytes = opened.disk.size_bytes();
            entry.sector_size_bytes = opened.disk.block_length();
            entry.uuid = opened.disk.uuid();
        }
        step("disk: opened");
        self.persist(config).await?;
        step("disk: persisted");
        for disk in attachment::attach(&*self.plane, vec![opened]).await? {
            self.disks.insert(name.to_owned(), LiveDisk::Online(disk));
        }
        self.publish();
        Ok(())
    }

    /// How a disk is to be opened, with a number of its own.
    pub(super) fn open_spec(&mut self, name: &str, disk: &DiskConfig) -> OpenSpec {
        let (id, home) = self.disk_id();
        OpenSpec {
            id,
            name: name.to_owned(),
            uuid: disk.uuid,
            format: disk.format,
            kind: disk.kind,
            parent: None,
            parents: Arc::clone(&self.parents),
            predecessor: None,
            path: disk.file.as_deref().map(|file| self.state.absolute(file)),
            size_bytes: disk.size_bytes,
            sector_size_bytes: disk.sector_size_bytes,
            read_only: disk.read_only,
            cache: disk.cache,
            home,
            shards: self.plane.count(),
        }
    }

    /// Delete a disk that no target maps, and its file unless that is to be kept or was there before the disk.
    pub async fn disk_delete(&mut self, name: &str, keep_file: bool) -> Result<api::DeletedDisk, Refused> {
        let Some(disk) = self.config.disks.get(name).cloned() else {
            return Err(Refused::not_found(format!("there is no disk '{name}'; see 'lunaring disk list'")));
        };
        if let Some((target, lun)) = self.config.mappings_of(name).first() {
            return Err(Refused::conflict(format!(
                "disk '{name}' is LUN {lun} of target '{target}'; unmap it first with \
                 'lunaring target unmap {target} --lun {lun}'"
            )));
        }
        let file = disk.file.as_deref().map(|file| self.state.absolute(file));
        let removing = match &file {
            Some(file) if !keep_file && !disk.added => {
                state::identity_of(file).ok().map(|identity| (file.clone(), identity))
            }
            _ => None,
        };
        if let Some((file, identity)) = &removing {
            self.begin(FileChange::Deleting { file: file.clone(), identity: *identity }).await?;
        }
        step("disk delete: begun");
        let mut config = self.config.clone();
        config.disks.remove(name);
        if let Err(refused) = self.persist(config).await {
            self.state.end();
            return Err(refused);
        }
        step("disk delete: persisted");
        let mut warning = None;
        if let Some(LiveDisk::Online(live)) = self.disks.remove(name) {
            self.publish();
            let troubles = attachment::detach(&*self.plane, [&*live]).await;
            if removing.is_none() {
                warning = troubles.into_iter().next().map(|(_, refused)| refused.message);
            }
        }
        self.publish();
        step("disk delete: detached");
        let mut kept_file = file;
        if let Some((file, identity)) = removing {
            kept_file = None;
            let gone = file.clone();
            if let Err(refused) = blocking(move || state::remove_exactly(&gone, identity)).await {
                warning = Some(refused.message);
                kept_file = Some(file);
            }
            self.state.end();
        }
        Ok(api::DeletedDisk { name: name.to_owned(), kept_file, warning })
    }
}

/// Open a disk. Blocking.
pub(super) fn open(spec: OpenSpec) -> Result<Opened, Refused> {
    let file = spec.path.clone();
    medium::open(spec).map_err(|e| match file {
        Some(file) => about(&file, &e),
        None => refusal(&e),
    })
}

/// A refusal about a file names it.
fn about(file: &Path, error: &medium::FileError) -> Refused {
    let refused = refusal(error);
    let file = file.display().to_string();
    if refused.message.contains(&file) {
        return refused;
    }
    Refused { message: format!("{file}: {}", refused.message), ..refused }
}

/// The kind of refusal that an error with a file is.
fn refusal(error: &medium::FileError) -> Refused {
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
