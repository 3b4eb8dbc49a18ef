//! Commands on image files and configurations, for which no server is needed.

use std::path::{Path, PathBuf};

use super::config::Config;
use super::disks::refusal;
use super::error::Refused;
use super::undertakings::convert_file;
use crate::jobs::Progress;
use crate::jobs::check::{self, Report};

pub use super::api::Convert;

/// How often a file that somebody writes is looked at for a state that stays.
const CHECK_TRIES: u32 = 20;

/// Check a configuration: its form, and every rule that must hold of the whole. Blocking. Gives how many disks, targets
/// and portals it has.
///
/// # Errors
/// What is wrong with it, and in which line.
pub fn check_config(file: &Path) -> Result<(usize, usize, usize), Refused> {
    let text =
        std::fs::read_to_string(file).map_err(|e| Refused::failed(format!("cannot read {}: {e}", file.display())))?;
    let config = Config::from_text(&text, file)?;
    Ok((config.disks.len(), config.targets.len(), config.portals.len()))
}

/// Check an image file; with `repair` put right what can be without guessing. Blocking.
///
/// # Errors
/// It cannot be read, or a server uses it and it is to be repaired.
pub fn check_file(file: &Path, parent: Option<&Path>, repair: bool) -> Result<Report, Refused> {
    let options = check::Options { repair, parent, ..check::Options::default() };
    if repair {
        return check::check(file, options).map_err(|e| refusal(&e));
    }
    let looked = check::check_steady(file, options, CHECK_TRIES).map_err(|e| refusal(&e))?;
    looked.ok_or_else(|| {
        Refused::conflict(format!(
            "{} is being written by another program all the time; ask the server for a check of the disk by its name",
            file.display()
        ))
    })
}

/// Copy an image into a new one. Blocking; `look` is told how far it is, in bytes done and in all.
///
/// # Errors
/// Why not.
pub fn convert(
    file: &Path,
    parent: Option<PathBuf>,
    wanted: &Convert,
    mut look: impl FnMut(u64, u64),
) -> Result<(), Refused> {
    let progress = Progress::default();
    std::thread::scope(|scope| {
        let work = scope.spawn(|| convert_file(file, parent, wanted, &progress));
        while !work.is_finished() {
            let (done, total) = progress.bytes();
            look(done, total);
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        work.join().unwrap_or_else(|_| Err(Refused::failed("the copy ended without a result")))
    })
}
