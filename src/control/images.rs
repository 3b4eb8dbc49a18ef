//! New image files of disks: made under a passing name, named when they are complete, and recorded so that a crash
//! leaves no trace of those that the configuration does not name.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::config::{Config, DiskConfig};
use super::controller::Controller;
use super::crash::step;
use super::disks::{about, refusal};
use super::error::Refused;
use super::executor::blocking;
use super::state::{self, FileChange, RecordedFile};
use crate::medium::{self, CreateSpec, DiskFormat, DiskKind, ImageDescription, NewParent};

/// A differencing image that is to be made.
#[derive(Clone, Debug)]
pub(super) struct NewChild {
    /// Its file, as the configuration names it.
    pub file: PathBuf,
    /// Its format.
    pub format: DiskFormat,
    /// The parent's file, absolute.
    pub parent: PathBuf,
    /// What the parent is.
    pub description: ImageDescription,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// The disk's logical sector size in bytes.
    pub sector_size_bytes: u32,
    /// Bytes of a block; the parent's unless said otherwise.
    pub block_size_bytes: Option<u64>,
    /// What initiators know the disk by.
    pub disk_id: Uuid,
}

impl Controller {
    /// Make images, and give each its name. `settling` are files of the same change that the configuration will not
    /// name any more. The record stays open: [`Controller::end_change`] closes it.
    pub(super) async fn create_children(
        &self,
        children: Vec<NewChild>,
        settling: Vec<RecordedFile>,
    ) -> Result<Vec<RecordedFile>, Refused> {
        let images: Vec<(CreateSpec, PathBuf)> = children.into_iter().map(|child| self.image_spec(child)).collect();
        let temporaries: Vec<PathBuf> = images.iter().map(|(spec, _)| spec.path.clone()).collect();
        for (_, file) in &images {
            refuse_taken(file)?;
        }
        self.begin(FileChange::Settling { temporaries: temporaries.clone(), files: settling.clone() }).await?;
        step("images: begun");
        let result = self.create_begun(images, settling).await;
        if result.is_err() {
            for temporary in &temporaries {
                // The refusal matters more than a leftover, which the next start removes.
                let _ = state::remove_unfinished(temporary);
            }
            self.end_change();
        }
        result
    }

    async fn create_begun(
        &self,
        images: Vec<(CreateSpec, PathBuf)>,
        settling: Vec<RecordedFile>,
    ) -> Result<Vec<RecordedFile>, Refused> {
        let temporaries: Vec<PathBuf> = images.iter().map(|(spec, _)| spec.path.clone()).collect();
        let specs = images.clone();
        let created = blocking(move || {
            specs.iter().map(|(spec, file)| create(spec, file)).collect::<Result<Vec<RecordedFile>, Refused>>()
        })
        .await?;
        step("images: written");
        let files = settling.into_iter().chain(created.iter().cloned()).collect();
        self.begin(FileChange::Settling { temporaries, files }).await?;
        step("images: naming");
        let mut named: Vec<RecordedFile> = Vec::new();
        for ((spec, file), recorded) in images.into_iter().zip(created) {
            let shown = file.clone();
            if let Err(e) = blocking(move || state::name_exclusively(&spec.path, &file)).await {
                for RecordedFile { file, identity } in &named {
                    let _ = state::remove_exactly(file, *identity);
                }
                return Err(cannot_create(&shown, &e));
            }
            named.push(recorded);
        }
        step("images: named");
        Ok(named)
    }

    fn image_spec(&self, child: NewChild) -> (CreateSpec, PathBuf) {
        let file = self.state.absolute(&child.file);
        let spec = CreateSpec {
            path: file.with_file_name(format!(".lunaring-{}", Uuid::new_v4())),
            format: child.format,
            kind: DiskKind::Differencing,
            size_bytes: child.size_bytes,
            block_size_bytes: child.block_size_bytes,
            sector_size_bytes: child.sector_size_bytes,
            parent: Some(NewParent { path: child.parent, description: child.description }),
            disk_id: Some(child.disk_id),
        };
        (spec, file)
    }

    /// Undo images that were made and named for a change that is refused after all.
    pub(super) fn undo_children(&self, named: &[RecordedFile]) {
        for RecordedFile { file, identity } in named {
            // The refusal matters more than a leftover, which the next start removes.
            let _ = state::remove_exactly(file, *identity);
        }
        self.end_change();
    }

    /// Remove files that the configuration does not name any more, and close the record of the change. Gives what could
    /// not be removed.
    pub(super) async fn settle(&self, gone: Vec<RecordedFile>) -> Option<String> {
        let mut warning = None;
        for RecordedFile { file, identity } in gone {
            if let Err(refused) = blocking(move || state::remove_exactly(&file, identity)).await {
                warning = Some(refused.message);
            }
        }
        self.end_change();
        warning
    }

    /// Close the record of a change to files.
    pub(super) fn end_change(&self) {
        self.state.end();
    }

    /// A file as a change records it; nothing for one that is not there.
    pub(super) fn recorded(&self, file: &Path) -> Option<RecordedFile> {
        let file = self.state.absolute(file);
        let identity = state::identity_of(&file).ok()?;
        Some(RecordedFile { file, identity })
    }

    /// What an image is.
    pub(super) async fn describe(&self, file: &Path) -> Result<ImageDescription, Refused> {
        let path = self.state.absolute(file);
        blocking(move || medium::describe(&path).map_err(|e| about(&path, &e))).await
    }

    /// A name beside `file` that no disk and no file has: for the next leaf of a disk.
    pub(super) fn next_leaf(&self, file: &Path, format: DiskFormat) -> PathBuf {
        let stem = file.file_stem().unwrap_or_default();
        // A leaf of a leaf does not get a longer and longer name.
        let stem = stem.to_str().and_then(|stem| stem.rsplit_once('~')).map_or(stem, |(stem, _)| stem.as_ref());
        let mut name = OsString::from(stem);
        let (id, _, _, _) = Uuid::new_v4().as_fields();
        name.push(format!("~{id:08x}.{}", if format == DiskFormat::Vhd { "avhd" } else { "avhdx" }));
        file.with_file_name(name)
    }

    /// The disks, other than `except`, that have an image based on this file.
    pub(super) fn children_of(&self, file: &Path, except: &str) -> Vec<String> {
        children_of(&self.config, &self.state.absolute(file), |file| self.state.absolute(file), except)
    }
}

/// The disks, other than `except`, that have an image based on this file.
pub(super) fn children_of(
    config: &Config,
    file: &Path,
    absolute: impl Fn(&Path) -> PathBuf,
    except: &str,
) -> Vec<String> {
    // Parents that were found are recorded by their canonical names.
    let canonical = file.canonicalize();
    let is_file = |parent: &Path| {
        let parent = absolute(parent);
        parent == file || canonical.as_ref().is_ok_and(|canonical| parent == *canonical)
    };
    let based_on = |disk: &DiskConfig| {
        let of_snapshots = disk.snapshots.values().filter_map(|snapshot| snapshot.file_parent.as_deref());
        disk.parent.as_deref().into_iter().chain(of_snapshots).any(is_file)
    };
    let children = config.disks.iter().filter(|(name, disk)| *name != except && based_on(disk));
    children.map(|(name, _)| name.clone()).collect()
}

/// Write an image under its passing name.
fn create(spec: &CreateSpec, file: &Path) -> Result<RecordedFile, Refused> {
    medium::create_file(spec).map_err(|e| {
        // The passing name means nothing to the reader of a message.
        let said = e.to_string().replace(&spec.path.display().to_string(), &file.display().to_string());
        Refused { message: said, ..refusal(&e) }
    })?;
    let identity = state::identity_of(&spec.path).map_err(|e| cannot_create(file, &e))?;
    Ok(RecordedFile { file: file.to_owned(), identity })
}

/// Refuse a file that exists.
pub(super) fn refuse_taken(file: &Path) -> Result<(), Refused> {
    if std::fs::symlink_metadata(file).is_err() {
        return Ok(());
    }
    Err(Refused::conflict(format!(
        "{} exists already; choose another file, or serve it with 'lunaring disk add'",
        file.display()
    )))
}

fn cannot_create(file: &Path, error: &io::Error) -> Refused {
    match error.kind() {
        io::ErrorKind::AlreadyExists => Refused::conflict(format!("{} exists already", file.display())),
        _ => Refused::failed(format!("cannot create {}: {error}", file.display())),
    }
}
