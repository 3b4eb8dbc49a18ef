//! Commands on image files, for which no server is needed.

use std::path::{Path, PathBuf};

use super::disks::refusal;
use super::error::Refused;
use super::undertakings::convert_file;
use crate::jobs::Progress;
use crate::jobs::check::{self, Report};

pub use super::api::Convert;

/// Check an image file; with `repair` put right what can be without guessing. Blocking.
///
/// # Errors
/// It cannot be read, or a server uses it and it is to be repaired.
pub fn check_file(file: &Path, parent: Option<&Path>, repair: bool) -> Result<Report, Refused> {
    check::check(file, check::Options { repair, held: false, parent }).map_err(|e| refusal(&e))
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
