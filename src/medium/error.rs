//! Why a disk could not be created or opened: for the operator, with the file and what to do.

use std::io;
use std::path::{Path, PathBuf};

use super::system_reason;
use crate::units::HumanBytes;
use crate::vhd;
use crate::vhdx;

/// A refusal to create or open a disk.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// A system call on the file failed.
    #[error("cannot {action} {}: {}", path.display(), system_reason(source))]
    Io {
        /// What was attempted, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The path is taken.
    #[error("{} exists already; choose another file, or serve it with 'disk add'", .0.display())]
    Exists(PathBuf),
    /// Another server or program holds the file's lock.
    #[error("{} is in use by another server (it holds the file's lock); stop that one first", .0.display())]
    InUse(PathBuf),
    /// Neither a regular file nor a block device.
    #[error("{} is not a regular file", .0.display())]
    NotAFile(PathBuf),
    /// The file's content is not an image that can be served.
    #[error("{}: {reason}", path.display())]
    Vhdx {
        /// The file.
        path: PathBuf,
        /// Which rule is broken, and where.
        reason: vhdx::OpenError,
    },
    /// A parent is not the file that its child was made from, or not in the state it had then.
    #[error(
        "{} is not the parent that {} was made from, or was changed since: the parent is {found}, the child wants \
         {wanted}",
        parent.display(), child.display()
    )]
    ParentChanged {
        /// The child's file.
        child: PathBuf,
        /// The file that should be the parent.
        parent: PathBuf,
        /// The identity that the child wants.
        wanted: String,
        /// The identity that the parent has.
        found: String,
    },
    /// No file is where a parent should be.
    #[error(
        "the parent of {} cannot be found: {locator}; looked for {}; say where it is with --parent FILE",
        child.display(), list(places)
    )]
    ParentMissing {
        /// The child's file.
        child: PathBuf,
        /// What the child says.
        locator: String,
        /// Where it was looked for.
        places: Vec<PathBuf>,
    },
    /// A disk is its own ancestor.
    #[error("{} is its own ancestor: its parents lead back to it", .0.display())]
    ParentLoop(PathBuf),
    /// The chain is too deep.
    #[error("{} has too many parents; a disk may have {layers_max} layers", path.display())]
    TooManyParents {
        /// The leaf.
        path: PathBuf,
        /// Layers at most.
        layers_max: usize,
    },
    /// A change to the file is not possible.
    #[error("{}: {reason}", path.display())]
    Edit {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: vhdx::EditError,
    },
    /// The requested image is impossible.
    #[error("{0}")]
    Options(vhdx::CreateError),
    /// The file's content is not a VHD that can be served.
    #[error("{}: {reason}", path.display())]
    Vhd {
        /// The file.
        path: PathBuf,
        /// Which rule is broken, and where.
        reason: vhd::OpenError,
    },
    /// A VHD cannot be changed like that.
    #[error("{}: {why}", path.display())]
    VhdChange {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: vhd::ChangeError,
    },
    /// The requested VHD is impossible.
    #[error("{0}")]
    VhdOptions(vhd::CreateError),
    /// A raw image has an impossible size.
    #[error("{} holds {size_bytes} bytes; a raw image is a whole number of sectors, at least one", path.display())]
    RawSize {
        /// The file.
        path: PathBuf,
        /// Its size.
        size_bytes: u64,
    },
    /// The size does not suit the sector size, or is out of range.
    #[error("size {} is not usable: {why}", HumanBytes(*size_bytes))]
    Size {
        /// The size asked for.
        size_bytes: u64,
        /// What a size must be.
        why: &'static str,
    },
    /// The sector size is neither 512 nor 4096.
    #[error("sector size {0} is not usable; use 512 or 4096")]
    SectorSize(u32),
    /// There is not enough memory or address space for a memory disk.
    #[error("cannot reserve {} of memory for a memory disk: {why}", HumanBytes(*size_bytes))]
    Memory {
        /// The size asked for.
        size_bytes: u64,
        /// The system's reason.
        why: String,
    },
    /// A file-backed format without a file, or the reverse.
    #[error("a {0} disk {1}")]
    Spec(&'static str, &'static str),
}

impl FileError {
    /// A file that cannot even be looked at.
    pub fn unreadable(path: &Path, source: io::Error) -> Self {
        Self::io("look at", path, source)
    }

    /// Wraps a system error.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }
}

fn list(places: &[PathBuf]) -> String {
    let places: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
    if places.is_empty() { "nothing, no path means anything on this system".to_owned() } else { places.join(", ") }
}
