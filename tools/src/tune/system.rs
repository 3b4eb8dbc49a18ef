//! The machine as far as tuning touches it: files of the kernel and the program `ethtool`.

use std::path::Path;
use std::process::Command;

/// What is read and set. The tests have one that remembers.
pub trait System {
    /// The text of a file, without the newline at its end; `None` when there is no such file or it can not be read.
    fn read(&self, path: &Path) -> Option<String>;
    /// Put text into a file of the kernel; the error in words.
    fn write(&self, path: &Path, text: &str) -> Result<(), String>;
    /// Replace a file of our own, its folder too.
    fn replace(&self, path: &Path, text: &str) -> Result<(), String>;
    /// Remove a file of our own; nothing happens when it is not there.
    fn remove(&self, path: &Path) -> Result<(), String>;
    /// The names in a folder, sorted; none when it is not there.
    fn list(&self, path: &Path) -> Vec<String>;
    /// What `ethtool` prints; its complaint when it fails.
    fn ethtool(&self, words: &[&str]) -> Result<String, String>;
}

/// This machine.
pub struct Host;

impl System for Host {
    fn read(&self, path: &Path) -> Option<String> {
        std::fs::read_to_string(path).ok().map(|text| text.trim_end().to_owned())
    }

    fn write(&self, path: &Path, text: &str) -> Result<(), String> {
        std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
    }

    fn replace(&self, path: &Path, text: &str) -> Result<(), String> {
        let told = |error: std::io::Error| format!("{}: {error}", path.display());
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(told)?;
        }
        let new = path.with_extension("new");
        std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, path)).map_err(told)
    }

    fn remove(&self, path: &Path) -> Result<(), String> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(format!("{}: {error}", path.display())),
            _ => Ok(()),
        }
    }

    fn list(&self, path: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    fn ethtool(&self, words: &[&str]) -> Result<String, String> {
        let output =
            Command::new("ethtool").args(words).env("LC_ALL", "C").output().map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound => {
                    "ethtool is not installed; it is in the package of that name".to_owned()
                }
                _ => format!("ethtool: {error}"),
            })?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let complaint = String::from_utf8_lossy(&output.stderr);
        let complaint: Vec<&str> = complaint.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        Err(format!("ethtool {}: {}", words.join(" "), complaint.join("; ")))
    }
}
