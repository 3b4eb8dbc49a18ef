//! The state folder: `config.json`, its lock, and the record of a change to files that is under way.
//!
//! ```text
//! DIR/           mode 0700
//!   lock         held by the server that uses the folder
//!   config.json  what is served; mode 0600, replaced as a whole
//!   change.json  only while a command creates or deletes image files
//!   unfinished/  one record for each image that a job is writing
//!   reservations registrations and reservations of disks that outlast the server (APTPL)
//!   disks/       image files of disks that were created without a path
//!   control.sock the default control socket
//! ```
//!
//! A command is done once `config.json` has been replaced. A file that was created before that moment, or must be
//! deleted after it, is named in `change.json` first, so that [`StateDir::recover`] finishes or undoes it after a
//! crash.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::config::Config;
use super::error::Refused;

/// A file as the file system knows it, so that another file of the same name is never taken for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    device: u64,
    inode: u64,
}

/// What a command is doing to image files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileChange {
    /// An image is being written under a name that nothing else uses.
    Creating {
        /// That name.
        temporary: PathBuf,
    },
    /// The complete image is getting its own name.
    Naming {
        /// The name it was written under.
        temporary: PathBuf,
        /// The name it gets.
        file: PathBuf,
        /// The image.
        identity: FileIdentity,
    },
    /// The image of a deleted disk is being removed.
    Deleting {
        /// Its name.
        file: PathBuf,
        /// The image.
        identity: FileIdentity,
    },
    /// Images that exist only as long as the configuration names them: it is about to name them, or does so no more.
    Settling {
        /// Names that images are written under at first; nothing else uses them.
        #[serde(default)]
        temporaries: Vec<PathBuf>,
        /// The images.
        files: Vec<RecordedFile>,
    },
}

/// An image that a change is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedFile {
    /// Its name.
    pub file: PathBuf,
    /// Which file that is.
    pub identity: FileIdentity,
}

/// A state folder that this process alone uses.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Take a state folder into use; it is made when it does not exist.
    ///
    /// # Errors
    /// It cannot be made or read, or another server uses it.
    pub fn open(path: &Path) -> Result<StateDir, Refused> {
        make_folder(path)?;
        let path = path.canonicalize().map_err(|e| Refused::failed(format!("state folder {}: {e}", path.display())))?;
        let lock_path = path.join("lock");
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(|e| Refused::failed(format!("cannot open {}: {e}", lock_path.display())))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Refused::conflict(format!(
                    "another lunaring server uses the state folder {}; stop it first, or use another --state folder",
                    path.display()
                )));
            }
            Err(TryLockError::Error(e)) => {
                return Err(Refused::failed(format!("cannot lock {}: {e}", lock_path.display())));
            }
        }
        make_folder(&path.join("disks"))?;
        Ok(StateDir { path, _lock: lock })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the configuration is.
    pub fn config_path(&self) -> PathBuf {
        self.path.join("config.json")
    }

    /// The absolute path of an image file that a configuration names.
    pub fn absolute(&self, file: &Path) -> PathBuf {
        self.path.join(file)
    }

    /// As a configuration names a file: relative to the state folder where it is in that.
    pub fn relative(&self, file: &Path) -> PathBuf {
        file.strip_prefix(&self.path).unwrap_or(file).to_owned()
    }

    /// Read the configuration; an empty one when there is none yet.
    ///
    /// # Errors
    /// It cannot be read, or breaks a rule: where, and what to do. The file is left as it is.
    pub fn load(&self) -> Result<Config, Refused> {
        let path = self.config_path();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Config::default()),
            Err(e) => return Err(Refused::failed(format!("cannot read {}: {e}", path.display()))),
        };
        let advice = "; correct the file or put a good copy in its place; it was not changed";
        Config::from_text(&text, &path).map_err(|e| Refused::invalid(e.message + advice))
    }

    /// Replace the configuration: afterwards it is durable, and at no moment is there anything but the old or the new.
    ///
    /// # Errors
    /// The file system refuses; the old one is still there.
    pub fn save(&self, config: &Config) -> Result<(), Refused> {
        let mut text = serde_json::to_string_pretty(config).map_err(Refused::failed)?;
        text.push('\n');
        replace(&self.config_path(), text.as_bytes()).map_err(|e| {
            Refused::failed(format!("cannot write {}: {e}; nothing was changed", self.config_path().display()))
        })
    }

    /// Record a change to files before it is made.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn begin(&self, change: &FileChange) -> Result<(), Refused> {
        let text = serde_json::to_string_pretty(change).map_err(Refused::failed)?;
        replace(&self.change_path(), text.as_bytes()).map_err(|e| {
            Refused::failed(format!("cannot write {}: {e}; nothing was changed", self.change_path().display()))
        })
    }

    /// Forget the recorded change: it is finished or undone.
    pub fn end(&self) {
        // A record that stays is harmless: recovery finds it finished.
        let _ = fs::remove_file(self.change_path());
    }

    /// Finish or undo a change to files that a crash interrupted, so that the files agree with `config`. Gives whether
    /// there was one.
    ///
    /// # Errors
    /// The record cannot be read, or a file cannot be removed.
    pub fn recover(&self, config: &Config) -> Result<bool, Refused> {
        self.recover_unfinished(config)?;
        let path = self.change_path();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(Refused::failed(format!("cannot read {}: {e}", path.display()))),
        };
        let change: FileChange = serde_json::from_str(&text).map_err(|e| {
            Refused::invalid(format!(
                "{}, line {}: {e}; look at the files in disks/, then remove it",
                path.display(),
                e.line()
            ))
        })?;
        self.settle(change, config)?;
        self.end();
        Ok(true)
    }

    /// Finish or undo a change to files, so that they agree with `config`.
    fn settle(&self, change: FileChange, config: &Config) -> Result<(), Refused> {
        let in_use = |file: &Path| config.disks.values().any(|disk| disk.names(|used| self.absolute(used) == file));
        match change {
            FileChange::Settling { temporaries, files } => {
                for temporary in temporaries {
                    remove_unfinished(&temporary)?;
                }
                for RecordedFile { file, identity } in files {
                    if !in_use(&file) {
                        remove_exactly(&file, identity)?;
                    }
                }
            }
            FileChange::Creating { temporary } => remove_unfinished(&temporary)?,
            FileChange::Naming { temporary, file, identity } => {
                remove_unfinished(&temporary)?;
                if !in_use(&file) {
                    remove_exactly(&file, identity)?;
                }
            }
            FileChange::Deleting { file, identity } => {
                if !in_use(&file) {
                    remove_exactly(&file, identity)?;
                }
            }
        }
        Ok(())
    }

    /// Record an image that a job is about to write under a passing name, until [`StateDir::end_unfinished`].
    ///
    /// # Errors
    /// The file system refuses.
    pub fn begin_unfinished(&self, id: Uuid, temporary: &Path) -> Result<(), Refused> {
        let folder = self.unfinished_path();
        make_folder(&folder)?;
        let change = FileChange::Creating { temporary: temporary.to_owned() };
        let text = serde_json::to_string_pretty(&change).map_err(Refused::failed)?;
        let path = folder.join(format!("{id}.json"));
        replace(&path, text.as_bytes())
            .map_err(|e| Refused::failed(format!("cannot write {}: {e}; nothing was changed", path.display())))
    }

    /// Forget such an image: it has its name, or is gone.
    pub fn end_unfinished(&self, id: Uuid) {
        // A record that stays is harmless: recovery finds nothing under the passing name.
        let _ = fs::remove_file(self.unfinished_path().join(format!("{id}.json")));
    }

    /// Remove what jobs were writing when the server ended.
    fn recover_unfinished(&self, config: &Config) -> Result<(), Refused> {
        let Ok(entries) = fs::read_dir(self.unfinished_path()) else { return Ok(()) };
        for path in entries.flatten().map(|entry| entry.path()) {
            let change = fs::read(&path).ok().and_then(|text| serde_json::from_slice::<FileChange>(&text).ok());
            if let Some(change) = change {
                self.settle(change, config)?;
            }
            // A record that is not one is a replacement that was never finished: nothing had begun.
            let _ = fs::remove_file(&path);
        }
        Ok(())
    }

    fn unfinished_path(&self) -> PathBuf {
        self.path.join("unfinished")
    }

    fn change_path(&self) -> PathBuf {
        self.path.join("change.json")
    }
}

/// What the file system calls a file.
///
/// # Errors
/// It cannot be looked at.
pub fn identity_of(file: &Path) -> io::Result<FileIdentity> {
    let metadata = fs::symlink_metadata(file)?;
    Ok(FileIdentity { device: metadata.dev(), inode: metadata.ino() })
}

/// Remove a file if it is still the one that was recorded, durably.
///
/// # Errors
/// The file system refuses. A file that is gone or another one is no error.
pub fn remove_exactly(file: &Path, identity: FileIdentity) -> Result<(), Refused> {
    match identity_of(file) {
        Ok(found) if found == identity => remove(file),
        _ => Ok(()),
    }
}

/// Remove what an interrupted creation may have left: the file, or the one that it is filled under.
///
/// # Errors
/// The file system refuses.
pub fn remove_unfinished(temporary: &Path) -> Result<(), Refused> {
    let mut filling = std::ffi::OsString::from(".creating-");
    filling.push(temporary.file_name().unwrap_or_default());
    remove(&temporary.with_file_name(filling))?;
    remove(temporary)
}

/// Give a file its name, unless something has that name.
///
/// # Errors
/// The name is taken ([`io::ErrorKind::AlreadyExists`]), or the file system refuses.
pub fn name_exclusively(temporary: &Path, file: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, temporary, CWD, file, RenameFlags::NOREPLACE) {
        // A file system without this flag has hard links.
        Err(rustix::io::Errno::INVAL) => {
            fs::hard_link(temporary, file)?;
            fs::remove_file(temporary)?;
        }
        renamed => renamed?,
    }
    sync_folder_of(file)
}

fn remove(file: &Path) -> Result<(), Refused> {
    match fs::remove_file(file) {
        Ok(()) => {
            // The removal counts without this, too; it is only not yet durable.
            let _ = sync_folder_of(file);
            Ok(())
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Refused::failed(format!("cannot remove {}: {e}", file.display()))),
    }
}

fn make_folder(path: &Path) -> Result<(), Refused> {
    match DirBuilder::new().recursive(true).mode(0o700).create(path) {
        Ok(()) => Ok(()),
        Err(e) => Err(Refused::failed(format!("cannot make the state folder {}: {e}", path.display()))),
    }
}

/// Replace a file's content: temporary file, fsync, rename, fsync of the folder.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let temporary = path.with_file_name(name);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_folder_of(path)
}

pub(super) fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::control::config::TargetConfig;
    use crate::control::error::ErrorKind;
    use std::os::unix::fs::PermissionsExt;

    fn some_config() -> Config {
        let mut config = Config::default();
        config.portals.push("127.0.0.1:3260".parse().unwrap());
        let target =
            TargetConfig { iqn: "iqn.2026-11.io.x:a".into(), allow: vec!["any".into()], ..TargetConfig::default() };
        config.targets.insert("a".into(), target);
        config
    }

    #[test]
    fn what_is_saved_is_loaded_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/state");
        let state = StateDir::open(&path).unwrap();
        assert_eq!(state.load(), Ok(Config::default()));
        state.save(&some_config()).unwrap();
        assert_eq!(state.load(), Ok(some_config()));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&state.config_path())), (0o700, 0o600));
    }

    #[test]
    fn two_servers_cannot_use_one_folder() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateDir::open(dir.path()).unwrap();
        let refused = StateDir::open(dir.path()).unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Conflict);
        assert!(refused.message.contains("another lunaring server"), "{refused}");
        drop(first);
        StateDir::open(dir.path()).unwrap();
    }

    #[test]
    fn a_bad_file_is_refused_with_its_line_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        for (text, said) in [
            ("{\n  \"version\": 1,\n  \"disks\": [\n}", "line 3"),
            ("{\n \"version\": 1,\n \"dsks\": {}\n}", "line 3: unknown field `dsks`"),
            ("{\"version\": 7}", "version 7"),
            ("", "line 1"),
            ("{\"version\": 1, \"portals\": [\"127.0.0.1:0\"]}", "port 0"),
        ] {
            fs::write(state.config_path(), text).unwrap();
            let refused = state.load().unwrap_err();
            assert!(refused.message.contains(said) && refused.message.contains("config.json"), "{refused}");
            assert!(refused.message.contains("it was not changed"), "{refused}");
            assert_eq!(fs::read_to_string(state.config_path()).unwrap(), text);
        }
    }

    #[test]
    fn recovery_removes_only_the_very_file_that_was_recorded() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let file = dir.path().join("disks/a.raw");
        fs::write(&file, "ours").unwrap();
        let change = FileChange::Naming {
            temporary: dir.path().join("disks/.new"),
            file: file.clone(),
            identity: identity_of(&file).unwrap(),
        };
        // Somebody else's file of the same name stays.
        state.begin(&change).unwrap();
        fs::write(dir.path().join("disks/other"), "theirs").unwrap();
        fs::rename(dir.path().join("disks/other"), &file).unwrap();
        state.recover(&Config::default()).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "theirs");
        assert!(!state.change_path().exists());
        // The recorded one goes.
        state.begin(&FileChange::Deleting { file: file.clone(), identity: identity_of(&file).unwrap() }).unwrap();
        state.recover(&Config::default()).unwrap();
        assert!(!file.exists());
    }

    #[test]
    fn a_name_that_is_taken_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let (new, old) = (dir.path().join("new"), dir.path().join("old"));
        fs::write(&new, "new").unwrap();
        fs::write(&old, "old").unwrap();
        assert_eq!(name_exclusively(&new, &old).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&old).unwrap(), "old");
    }
}
