//! Arguments of the commands on images, snapshots and jobs.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{ClientOptions, Format, Kind};
use crate::units::parse_size;

/// `lunaring disk check`
#[derive(Debug, Args)]
pub struct DiskCheck {
    /// A disk of the server, or an image file (with a '/', or one that exists), for which no server is needed
    #[arg(value_name = "NAME|FILE")]
    pub image: String,
    /// Repair what can be repaired without losing anything
    #[arg(long)]
    pub repair: bool,
    /// Where the parent of a differencing image file is [default: where the image says]
    #[arg(long, value_name = "FILE")]
    pub parent: Option<PathBuf>,
}

/// `lunaring disk convert`
#[derive(Debug, Args)]
pub struct DiskConvert {
    /// A disk of the server, or an image file (with a '/', or one that exists), for which no server is needed
    #[arg(value_name = "NAME|FILE")]
    pub image: String,
    /// The new image; it must not exist
    #[arg(long, value_name = "FILE")]
    pub to: PathBuf,
    /// Its format [default: by the end of its name]
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// How it gets its space [default: dynamic]
    #[arg(long, value_enum)]
    pub kind: Option<Kind>,
    /// Block size of a VHDX (1M to 256M) or VHD (512K or 2M)
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub block_size: Option<u64>,
    /// Where the parent of a differencing image file is [default: where the image says]
    #[arg(long, value_name = "FILE")]
    pub parent: Option<PathBuf>,
    /// Do not wait for the end
    #[arg(long)]
    pub detach: bool,
}

/// A verb of `lunaring disk meta`.
#[derive(Debug, Subcommand)]
pub enum MetaVerb {
    /// List the items
    List {
        /// The disk
        name: String,
    },
    /// Write an item's value to standard output or into a file
    Get {
        /// The disk
        name: String,
        /// The item's GUID
        item: uuid::Uuid,
        /// The file
        #[arg(long, value_name = "PATH")]
        output: Option<PathBuf>,
    },
    /// Set an item's value from standard input or from a file: at most 1M
    Set {
        /// The disk
        name: String,
        /// The item's GUID
        item: uuid::Uuid,
        /// The file
        #[arg(long, value_name = "PATH")]
        file: Option<PathBuf>,
    },
    /// Delete an item
    Delete {
        /// The disk
        name: String,
        /// The item's GUID
        item: uuid::Uuid,
    },
}

/// `lunaring snapshot`
#[derive(Debug, Args)]
pub struct SnapshotArguments {
    /// Socket and output.
    #[command(flatten)]
    pub client: ClientOptions,
    /// What to do.
    #[command(subcommand)]
    pub verb: SnapshotVerb,
}

/// A verb of `lunaring snapshot`.
#[derive(Debug, Subcommand)]
pub enum SnapshotVerb {
    /// Take a snapshot of a disk, or of several disks at one instant
    Create {
        /// The disk
        #[arg(required_unless_present = "group", conflicts_with = "group")]
        disk: Option<String>,
        /// The snapshot's name: letters, digits, '.', '_' and '-' [default: the time]
        #[arg(conflicts_with = "group")]
        name: Option<String>,
        /// Several disks at one instant
        #[arg(long, value_name = "DISK,DISK", value_delimiter = ',')]
        group: Vec<String>,
        /// The name of each snapshot of the group [default: the time]
        #[arg(long = "name", value_name = "NAME", requires = "group", id = "group_name")]
        group_name: Option<String>,
    },
    /// List a disk's snapshots
    List {
        /// The disk
        disk: String,
    },
    /// Take a disk back to a snapshot; what was written since the last snapshot is lost
    Restore {
        /// The disk
        disk: String,
        /// The snapshot
        name: String,
    },
    /// Delete a snapshot: its file is merged in the background
    Delete {
        /// The disk
        disk: String,
        /// The snapshot
        name: String,
        /// Do not wait for the end
        #[arg(long)]
        detach: bool,
    },
    /// Make a disk that shows a snapshot
    Export {
        /// The disk
        disk: String,
        /// The snapshot
        name: String,
        /// The name of the new disk
        #[arg(long = "as", value_name = "NEW")]
        new: String,
        /// The new disk can be written; what is written goes into a file of its own
        #[arg(long)]
        writable: bool,
    },
}

/// `lunaring job`
#[derive(Debug, Args)]
pub struct JobArguments {
    /// Socket and output.
    #[command(flatten)]
    pub client: ClientOptions,
    /// What to do.
    #[command(subcommand)]
    pub verb: JobVerb,
}

/// A verb of `lunaring job`.
#[derive(Debug, Subcommand)]
pub enum JobVerb {
    /// List the jobs that run and the last ones that ended
    List,
    /// Show one job
    Show {
        /// Its number, as it is listed
        id: u64,
    },
    /// Ask a job to stop
    Cancel {
        /// Its number, as it is listed
        id: u64,
    },
}

/// `lunaring trace`
#[derive(Debug, Args)]
pub struct TraceArguments {
    /// Socket and output.
    #[command(flatten)]
    pub client: ClientOptions,
    /// What to do.
    #[command(subcommand)]
    pub verb: TraceVerb,
}

/// The verbs of `lunaring trace`.
#[derive(Debug, Subcommand)]
pub enum TraceVerb {
    /// Record what initiators ask a disk for: which blocks and when, not the data
    Record {
        /// The disk
        name: String,
        /// How long
        #[arg(long, value_name = "N")]
        seconds: u32,
        /// The trace; NAME.trace here unless said otherwise
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
    },
}
