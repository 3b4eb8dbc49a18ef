//! What is changed in an image while its disk's commands are held for a moment: the size, and user metadata. And
//! checks.

use std::path::PathBuf;
use std::sync::Arc;

use uuid::Uuid;

use super::api;
use super::config::DiskConfig;
use super::controller::Controller;
use super::disks::about;
use super::error::Refused;
use super::executor::blocking;
use crate::jobs::check::{self, Report};
use crate::limits::USER_METADATA_BYTES_MAX;
use crate::medium::offline::{self, Hold, ResizePlan};
use crate::medium::{Disk, DiskKind};
use crate::scsi::Attention;
use crate::units::HumanBytes;

/// How often the file of a disk that is written is looked at for a state that stays, and how often when nobody writes.
const CHECK_TRIES: u32 = 8;
const CHECK_TRIES_HELD: u32 = 40;

impl Controller {
    /// A disk whose file may be changed for a moment.
    fn changeable(&self, name: &str, what: &str) -> Result<(Arc<Disk>, DiskConfig, PathBuf), Refused> {
        let live = self.online(name)?;
        self.refuse_busy(name)?;
        let Some(disk) = self.config.disks.get(name).cloned() else {
            return Err(Refused::not_found(format!("there is no disk '{name}'")));
        };
        let Some(file) = disk.file.as_deref().map(|file| self.state.absolute(file)) else {
            return Err(Refused::conflict(format!(
                "disk '{name}' is a {} disk, which has no file; {what}",
                disk.format.as_str()
            )));
        };
        let children = self.children_of(&file, name);
        if !children.is_empty() {
            return Err(Refused::conflict(format!(
                "disk '{name}' is the parent of {}, which would lose it; {what}",
                children.join(", ")
            )));
        }
        if live.read_only() {
            return Err(Refused::conflict(format!("disk '{name}' is read-only; {what}")));
        }
        Ok((live, disk, file))
    }

    /// Change a disk's size while it is served.
    ///
    /// # Errors
    /// The size is not possible; nothing was changed.
    pub async fn disk_resize(&mut self, name: &str, wanted: api::Resize) -> Result<(), Refused> {
        let (live, disk, file) = self.changeable(name, "its size stays")?;
        let sector = u64::from(live.block_length());
        if wanted.size_bytes == 0 || !wanted.size_bytes.is_multiple_of(sector) {
            return Err(Refused::invalid(format!(
                "a size of {} bytes is not possible; it must be a positive multiple of the sector size ({sector} \
                 bytes)",
                wanted.size_bytes
            )));
        }
        if wanted.size_bytes == live.size_bytes() {
            return Ok(());
        }
        let plan = ResizePlan {
            size_bytes: wanted.size_bytes,
            allow_shrink: wanted.allow_shrink,
            parent_size_bytes: live.layers().get(1).map(|parent| parent.size_bytes()),
            reserve: disk.kind == Some(DiskKind::Fixed),
            identifier: None,
        };
        let resized = self
            .with_file_closed(name, Some(Attention::CapacityChanged), move || {
                offline::resize(&file, Hold::Held, plan).map_err(|e| about(&file, &e))
            })
            .await;
        if let Err(mut refused) = resized {
            if wanted.size_bytes < live.size_bytes() && !wanted.allow_shrink && !refused.message.contains("--allow") {
                refused.message.push_str("; to cut it off all the same, use --allow-shrink");
            }
            return Err(refused);
        }
        let size_bytes = self.online(name)?.size_bytes();
        let mut config = self.config.clone();
        if let Some(disk) = config.disks.get_mut(name) {
            disk.size_bytes = size_bytes;
        }
        self.persist(config).await?;
        self.publish();
        Ok(())
    }

    /// Set a user metadata item, or with `None` delete it.
    ///
    /// # Errors
    /// The disk is not a VHDX, or there is no such item to delete.
    pub async fn metadata_set(&mut self, name: &str, item: Uuid, value: Option<Vec<u8>>) -> Result<(), Refused> {
        if value.as_ref().is_some_and(|value| value.len() > USER_METADATA_BYTES_MAX) {
            return Err(Refused::invalid(format!(
                "a user metadata item has at most {}",
                HumanBytes(USER_METADATA_BYTES_MAX as u64)
            )));
        }
        let (_, disk, file) = self.changeable(name, "its metadata stays")?;
        refuse_other_than_vhdx(name, &disk)?;
        self.with_file_closed(name, None, move || {
            offline::set_user_item(&file, Hold::Held, item, value.as_deref()).map_err(|e| about(&file, &e))
        })
        .await
    }

    /// The file of a disk, for what is only read.
    pub(super) fn file_of_disk(&self, name: &str) -> Result<(PathBuf, DiskConfig), Refused> {
        let Some(disk) = self.config.disks.get(name) else {
            return Err(Refused::not_found(format!("there is no disk '{name}'; see 'lunaring disk list'")));
        };
        match disk.file.as_deref() {
            Some(file) => Ok((self.state.absolute(file), disk.clone())),
            None => {
                Err(Refused::conflict(format!("disk '{name}' is a {} disk, which has no file", disk.format.as_str())))
            }
        }
    }

    /// A disk's user metadata.
    ///
    /// # Errors
    /// The disk is not a VHDX.
    pub async fn metadata_list(&self, name: &str) -> Result<api::Metadata, Refused> {
        let (file, disk) = self.file_of_disk(name)?;
        refuse_other_than_vhdx(name, &disk)?;
        let items = blocking(move || offline::user_items(&file).map_err(|e| about(&file, &e))).await?;
        let item = |item: offline::UserItem| api::MetadataItem {
            item: item.id,
            len_bytes: u32::try_from(item.len_bytes).unwrap_or(u32::MAX),
            value_hex: None,
        };
        Ok(api::Metadata { items: items.into_iter().map(item).collect() })
    }

    /// The value of a user metadata item.
    ///
    /// # Errors
    /// The disk is not a VHDX, or has no such item.
    pub async fn metadata_get(&self, name: &str, item: Uuid) -> Result<Vec<u8>, Refused> {
        let (file, disk) = self.file_of_disk(name)?;
        refuse_other_than_vhdx(name, &disk)?;
        let value = blocking(move || offline::user_item(&file, item).map_err(|e| about(&file, &e))).await?;
        value.ok_or_else(|| {
            Refused::not_found(format!("disk '{name}' has no item {item}; see 'lunaring disk meta list {name}'"))
        })
    }

    /// Check a disk's image. A disk that is being written is not disturbed: its file is looked at until its metadata
    /// stays the same meanwhile. Only when that never does are its commands held for the time of one look. A repair
    /// closes the file, and is refused while the disk is mapped.
    ///
    /// # Errors
    /// The file cannot be read, or a repair is wanted of a disk that is mapped.
    pub async fn disk_check(&mut self, name: &str, repair: bool) -> Result<Report, Refused> {
        let (file, disk) = self.file_of_disk(name)?;
        if repair && !self.config.mappings_of(name).is_empty() {
            return Err(Refused::conflict(format!(
                "disk '{name}' is mapped, and a file is not repaired while it is served; unmap it first"
            )));
        }
        let parent = disk.parent.as_deref().filter(|_| disk.parent_given).map(|parent| self.state.absolute(parent));
        let written = self.online(name).ok().filter(|live| !live.read_only());
        if let Some(live) = written.filter(|_| !repair) {
            return self.check_served(live, file, parent).await;
        }
        let look = move || {
            let options = check::Options { repair, held: true, served: false, parent: parent.as_deref() };
            check::check(&file, options).map_err(|e| about(&file, &e))
        };
        match self.online(name) {
            Err(_) => blocking(look).await,
            Ok(live) if !live.read_only() => {
                self.refuse_busy(name)?;
                self.with_file_closed(name, None, look).await
            }
            Ok(_) if repair => {
                Err(Refused::conflict(format!("disk '{name}' is read-only, so its file is not repaired")))
            }
            Ok(_) => blocking(look).await,
        }
    }

    /// Check the image of a disk that is being written.
    async fn check_served(&self, live: Arc<Disk>, file: PathBuf, parent: Option<PathBuf>) -> Result<Report, Refused> {
        let look = move |tries| {
            let (file, parent) = (file.clone(), parent.clone());
            blocking(move || {
                let options = check::Options { repair: false, held: true, served: true, parent: parent.as_deref() };
                check::check_steady(&file, options, tries).map_err(|e| about(&file, &e))
            })
        };
        const SERVED: &str = "the disk is being served; space that is ready for its next blocks counts as lost";
        if let Some(mut report) = look(CHECK_TRIES).await? {
            report.notes.push(SERVED.to_owned());
            return Ok(report);
        }
        let disks = [live];
        let since = self.pause(&disks).await?;
        let looked = look(CHECK_TRIES_HELD).await;
        self.resume(&disks).await?;
        let held_ms = since.elapsed().as_millis();
        let Some(mut report) = looked? else {
            return Err(Refused::conflict(format!(
                "the file of disk '{}' changes all the time, so what it holds cannot be checked; try again later",
                disks[0].name()
            )));
        };
        let why = "its metadata changed all the time";
        report.notes.push(format!("{SERVED}; {why}, so its commands were held for {held_ms} ms"));
        Ok(report)
    }
}

fn refuse_other_than_vhdx(name: &str, disk: &DiskConfig) -> Result<(), Refused> {
    if disk.format == crate::medium::DiskFormat::Vhdx {
        return Ok(());
    }
    Err(Refused::conflict(format!(
        "disk '{name}' is a {} disk; only VHDX files have user metadata",
        disk.format.as_str()
    )))
}
