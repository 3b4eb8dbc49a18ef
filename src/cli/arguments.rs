//! The command line: a contract that scripts rely on.

mod entrance;
mod images;
mod operation;
mod ports;
mod settings;

pub use entrance::{
    ChapArguments, ChapVerb, Demand, DiscoveryArguments, DiscoveryVerb, IsnsArguments, IsnsVerb, TargetRedirect,
};
pub use images::{
    DiskCheck, DiskConvert, JobArguments, JobVerb, MetaVerb, SnapshotArguments, SnapshotVerb, TraceArguments, TraceVerb,
};
pub use operation::{ConfigArguments, ConfigVerb, TopArguments};
pub use ports::{PortState, PortgroupVerb, ReservationArguments, ReservationVerb};
pub use settings::{DiskSettings, ServerSettings, SettingsArguments, SettingsVerb, TargetSettings, Wanted};

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::units::parse_size;

/// A userspace iSCSI target for Linux.
#[derive(Debug, Parser)]
#[command(name = "lunaring", version, about, max_term_width = 110)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// A command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a ready target with one dynamic VHDX and say how to connect
    Demo(DemoArguments),
    /// Run the server
    Serve(ServeArguments),
    /// Create, list, show, resize, check, convert, merge and delete disks
    Disk(DiskArguments),
    /// Take, list, restore, export and delete snapshots of disks
    Snapshot(SnapshotArguments),
    /// List, show and cancel work in the background
    Job(JobArguments),
    /// Create, list, show, delete and set up targets
    Target(TargetArguments),
    /// Add, remove and list the addresses that are listened on
    Portal(PortalArguments),
    /// Say what is demanded in discovery sessions
    Discovery(DiscoveryArguments),
    /// Say which CHAP algorithms are allowed
    Chap(ChapArguments),
    /// Register targets and portals with an iSNS server
    Isns(IsnsArguments),
    /// Show and change settings of the server; 'target set' and 'disk set' have those of one target or disk
    Settings(SettingsArguments),
    /// List and drop sessions
    Session(SessionArguments),
    /// Show who reserves disks, and take reservations off
    Reservation(ReservationArguments),
    /// Show counters and latencies
    Stats(StatsArguments),
    /// Watch what every disk does, until it is stopped
    Top(TopArguments),
    /// Export, check and apply whole configurations
    Config(ConfigArguments),
    /// Record what initiators ask a disk for
    Trace(TraceArguments),
}

/// Which io_uring features may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RingFeatures {
    /// Everything that the kernel has.
    Auto,
    /// Only what every supported kernel has.
    Baseline,
}

/// `lunaring demo`
#[derive(Debug, Args)]
pub struct DemoArguments {
    /// Where the demo keeps its disk and configuration
    #[arg(long, default_value = "lunaring-demo")]
    pub dir: PathBuf,
    /// Where to listen; 127.0.0.1:3260, or another port when that is taken
    #[arg(long, value_name = "ADDR:PORT")]
    pub portal: Option<String>,
    /// Print one line of JSON when ready
    #[arg(long)]
    pub json: bool,
    /// Which io_uring features may be used
    #[arg(long, hide = true, value_enum, default_value = "auto")]
    pub ring_features: RingFeatures,
}

/// `lunaring serve`
#[derive(Debug, Args)]
pub struct ServeArguments {
    /// The folder with the configuration and disks; made when it does not exist
    #[arg(long, value_name = "DIR")]
    pub state: PathBuf,
    /// Listen here too, for this run; may be repeated
    #[arg(long, value_name = "ADDR:PORT")]
    pub portal: Vec<String>,
    /// Run one shard on each of these CPUs, for example 0,2-5; every usable CPU unless said otherwise
    #[arg(long, value_name = "LIST")]
    pub cores: Option<String>,
    /// The control socket; control.sock in the state folder unless said otherwise
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Print one line of JSON when ready
    #[arg(long)]
    pub json: bool,
    /// Which io_uring features may be used
    #[arg(long, hide = true, value_enum, default_value = "auto")]
    pub ring_features: RingFeatures,
}

/// What every client command takes.
#[derive(Clone, Debug, Args)]
pub struct ClientOptions {
    /// The server's control socket
    #[arg(long, global = true, env = "LUNARING_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
}

/// `lunaring disk`
#[derive(Debug, Args)]
pub struct DiskArguments {
    /// Socket and output.
    #[command(flatten)]
    pub client: ClientOptions,
    /// What to do.
    #[command(subcommand)]
    pub verb: DiskVerb,
}

/// A verb of `lunaring disk`.
#[derive(Debug, Subcommand)]
pub enum DiskVerb {
    /// Create a disk
    Create(DiskCreate),
    /// Serve an image that exists
    Add(DiskAdd),
    /// List all disks
    List,
    /// Show one disk
    Show {
        /// The disk
        name: String,
    },
    /// Delete a disk that no target maps, and the file that was created for it
    Delete {
        /// The disk
        name: String,
        /// Leave the file
        #[arg(long)]
        keep_file: bool,
    },
    /// Change a disk's size while it is served
    Resize {
        /// The disk
        name: String,
        /// Its new size: bytes, or a number with K, M, G or T
        #[arg(long, value_parser = parse_size)]
        size: u64,
        /// Cut off what is stored behind the new end
        #[arg(long)]
        allow_shrink: bool,
    },
    /// Check an image and say what is in it; exit status 1 when something is wrong
    Check(DiskCheck),
    /// Copy a disk's content into a new image, of any format and kind
    Convert(DiskConvert),
    /// Merge a differencing disk into its parent: one file is left, which the disk goes on with. A parent that is a
    /// disk of its own is none any more
    Merge {
        /// The disk
        name: String,
        /// Do not wait for the end
        #[arg(long)]
        detach: bool,
    },
    /// Give space that holds nothing back to the file system
    Compact {
        /// The disk
        name: String,
        /// Do not wait for the end
        #[arg(long)]
        detach: bool,
    },
    /// Change or show settings of one disk
    Set(DiskSettings),
    /// Set, show, list and delete user metadata of a VHDX
    Meta {
        /// What to do.
        #[command(subcommand)]
        verb: MetaVerb,
    },
}

/// What stores a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A VHDX file
    Vhdx,
    /// A VHD file, the older format
    Vhd,
    /// A plain image file
    Raw,
    /// Memory, gone when the server stops
    Memory,
    /// Nothing: reads zeros, forgets writes; for measuring
    Null,
}

/// How a file gets its space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// When it is first written
    Dynamic,
    /// All at once
    Fixed,
    /// Holds what differs from a parent
    Differencing,
}

/// How a file is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Cache {
    /// Around the page cache
    Direct,
    /// Through the page cache
    Buffered,
}

/// `lunaring disk create`
#[derive(Debug, Args)]
pub struct DiskCreate {
    /// Its name: letters, digits, '.', '_' and '-'
    pub name: String,
    /// Its size: bytes, or a number with K, M, G or T; a differencing disk has its parent's unless said otherwise
    #[arg(long, value_parser = parse_size, required_unless_present = "parent")]
    pub size: Option<u64>,
    /// What stores it [default: vhdx]
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// How its file gets its space [default: dynamic, or differencing with a parent]
    #[arg(long, value_enum)]
    pub kind: Option<Kind>,
    /// The parent of a differencing disk: a disk that nobody writes, or an image file
    #[arg(long, value_name = "NAME|FILE")]
    pub parent: Option<String>,
    /// Block size of a VHDX (1M to 256M) or VHD (512K or 2M)
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub block_size: Option<u64>,
    /// Logical sector size in bytes: 512 or 4096 [default: 512]
    #[arg(long, value_name = "BYTES")]
    pub sector_size: Option<u32>,
    /// Its file [default: disks/NAME.vhdx, .vhd or .raw in the server's state folder]
    #[arg(long, value_name = "PATH")]
    pub file: Option<PathBuf>,
    /// How its file is accessed [default: direct]
    #[arg(long, value_enum)]
    pub cache: Option<Cache>,
}

/// `lunaring disk add`
#[derive(Debug, Args)]
pub struct DiskAdd {
    /// Its name: letters, digits, '.', '_' and '-'
    pub name: String,
    /// The image: VHDX or VHD by its signature, otherwise raw
    #[arg(long, value_name = "PATH")]
    pub file: PathBuf,
    /// Where the parent of a differencing image is [default: where the image says]
    #[arg(long, value_name = "FILE")]
    pub parent: Option<PathBuf>,
    /// Refuse all writes
    #[arg(long)]
    pub read_only: bool,
}

/// `lunaring target`
#[derive(Debug, Args)]
pub struct TargetArguments {
    /// Socket and output.
    #[command(flatten)]
    pub client: ClientOptions,
    /// What to do.
    #[command(subcommand)]
    pub verb: TargetVerb,
}

/// A verb of `lunaring target`.
#[derive(Debug, Subcommand)]
pub enum TargetVerb {
    /// Create a target; nobody may log in until somebody is allowed
    Create {
        /// Its name: letters, digits, '.', '_' and '-'
        name: String,
        /// Its iSCSI name [default: iqn.2026-11.io.lunaring:NAME]
        #[arg(long)]
        iqn: Option<String>,
    },
    /// List all targets
    List,
    /// Show one target
    Show {
        /// The target, by name or iSCSI name
        name: String,
    },
    /// Delete a target and drop its sessions
    Delete {
        /// The target, by name or iSCSI name
        name: String,
    },
    /// Put a disk behind a logical unit number
    Map {
        /// The target, by name or iSCSI name
        target: String,
        /// The disk
        disk: String,
        /// The number [default: the lowest free one]
        #[arg(long, value_name = "N")]
        lun: Option<u16>,
        /// Refuse writes through this logical unit
        #[arg(long)]
        read_only: bool,
        /// Only these initiators see it, in place of what others see under its number: iqn:NAME, iqn:BEGINNING*,
        /// ip:CIDR or portal:ADDR:PORT
        #[arg(long = "for", value_name = "RULE")]
        only_for: Option<String>,
    },
    /// Take a logical unit away
    Unmap {
        /// The target, by name or iSCSI name
        target: String,
        /// The number
        #[arg(long, value_name = "N")]
        lun: u16,
        /// The one that was mapped for this rule
        #[arg(long = "for", value_name = "RULE")]
        only_for: Option<String>,
    },
    /// Let somebody log in
    Allow {
        /// The target, by name or iSCSI name
        target: String,
        /// any, iqn:NAME, iqn:BEGINNING*, ip:CIDR or portal:ADDR:PORT
        rule: String,
    },
    /// Take an access rule back
    Deny {
        /// The target, by name or iSCSI name
        target: String,
        /// The rule, as it was allowed
        rule: String,
    },
    /// Demand CHAP, or nothing
    Auth(TargetAuth),
    /// Choose the portal groups that lead to a target, and in which state (ALUA)
    Portgroup {
        /// What to do.
        #[command(subcommand)]
        verb: PortgroupVerb,
    },
    /// Change or show settings of one target
    Set(TargetSettings),
    /// Send initiators to another portal or server instead of letting them in
    Redirect(TargetRedirect),
}

/// `lunaring target auth`
#[derive(Debug, Args)]
pub struct TargetAuth {
    /// The target, by name or iSCSI name
    pub target: String,
    /// What is demanded.
    #[command(flatten)]
    pub demand: Demand,
}

/// `lunaring portal`
#[derive(Debug, Args)]
pub struct PortalArguments {
    /// Socket and output.
    #[command(flatten)]
    pub client: ClientOptions,
    /// What to do.
    #[command(subcommand)]
    pub verb: PortalVerb,
}

/// A verb of `lunaring portal`.
#[derive(Debug, Subcommand)]
pub enum PortalVerb {
    /// Listen on an address
    Add {
        /// ADDR:PORT, an IPv6 address in brackets
        address: String,
        /// Its portal group tag [default: 1]
        #[arg(long, value_name = "N")]
        group: Option<u16>,
        /// Tell initiators this address instead, where they reach the portal by another; a portal that is there
        /// already is changed
        #[arg(long, value_name = "ADDR:PORT")]
        advertise: Option<String>,
    },
    /// Stop listening on an address; its sessions stay
    Remove {
        /// ADDR:PORT, as it is listed
        address: String,
    },
    /// List all portals
    List,
}

/// `lunaring session`
#[derive(Debug, Args)]
pub struct SessionArguments {
    /// Socket and output.
    #[command(flatten)]
    pub client: ClientOptions,
    /// What to do.
    #[command(subcommand)]
    pub verb: SessionVerb,
}

/// A verb of `lunaring session`.
#[derive(Debug, Subcommand)]
pub enum SessionVerb {
    /// List all sessions
    List,
    /// Drop a session; an initiator that may log in comes back
    Drop {
        /// Its id, as it is listed
        id: u64,
    },
}

/// `lunaring stats`
#[derive(Debug, Args)]
pub struct StatsArguments {
    /// Socket and output.
    #[command(flatten)]
    pub client: ClientOptions,
    /// Only this disk
    #[arg(long, value_name = "NAME")]
    pub disk: Option<String>,
}
