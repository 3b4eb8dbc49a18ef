//! What was set before tuning, so that it can be set back.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::plan::{Setting, Step};
use super::system::System;

/// A setting as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Old {
    /// What it is called in the output.
    pub name: String,
    /// How it is set.
    pub setting: Setting,
    /// Its value before.
    pub was: String,
}

/// All that was changed, the first change first.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Saved {
    changes: Vec<Old>,
}

/// Where it is kept when nothing else is said: gone at the next boot, as are the settings.
pub fn usual_path(device: &str) -> PathBuf {
    PathBuf::from(format!("/run/lunaring/tune-{device}.json"))
}

impl Saved {
    /// What the file holds; nothing when there is none.
    pub fn load(system: &impl System, path: &Path) -> Result<Self, String> {
        let Some(text) = system.read(path) else { return Ok(Self::default()) };
        serde_json::from_str(&text)
            .map_err(|error| format!("{}: not what --apply writes ({error}); remove it to begin anew", path.display()))
    }

    /// Nothing was changed.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Take a step's old value down, unless an older one is there.
    pub fn remember(&mut self, step: &Step) {
        if self.changes.iter().all(|old| old.setting != step.setting) {
            self.changes.push(Old { name: step.name.clone(), setting: step.setting.clone(), was: step.now.clone() });
        }
    }

    /// A step that was remembered could not be taken.
    pub fn forget(&mut self, step: &Step) {
        self.changes.retain(|old| old.setting != step.setting || old.was != step.now);
    }

    /// The last change, which is undone first.
    pub fn take_last(&mut self) -> Option<Old> {
        self.changes.pop()
    }

    /// Keep one that could not be undone.
    pub fn put_back(&mut self, old: Old) {
        self.changes.push(old);
    }

    /// Write it down; a file that would hold nothing is removed.
    pub fn store(&self, system: &impl System, path: &Path) -> Result<(), String> {
        if self.is_empty() {
            return system.remove(path);
        }
        let text = serde_json::to_string_pretty(self).map_err(|error| error.to_string())?;
        system.replace(path, &text)
    }
}
