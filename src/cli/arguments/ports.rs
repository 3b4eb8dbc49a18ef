//! Arguments of the commands on target ports and reservations.

use clap::{Args, Subcommand, ValueEnum};

use super::ClientOptions;

/// In which state a port leads to disks (ALUA).
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PortState {
    /// Everything is served, best here
    Optimized,
    /// Everything is served
    NonOptimized,
    /// Only what looks at or changes the state of a disk
    Standby,
    /// Only what tells of a disk and its ports
    Unavailable,
    /// As unavailable, and initiators cannot change it
    Offline,
    /// On the way to another state
    Transitioning,
}

/// A verb of `lunaring target portgroup`.
#[derive(Debug, Subcommand)]
pub enum PortgroupVerb {
    /// Limit a target to portal groups: this one, and those that it was limited to before
    Add {
        /// The target, by name or iSCSI name
        target: String,
        /// The portal group tag
        group: u16,
    },
    /// Take a group from those that a target is limited to; its sessions there are dropped
    Remove {
        /// The target, by name or iSCSI name
        target: String,
        /// The portal group tag
        group: u16,
    },
    /// Let every portal group reach a target
    All {
        /// The target, by name or iSCSI name
        target: String,
    },
    /// Change in which state a target's port leads to its disks
    Set {
        /// The target, by name or iSCSI name
        target: String,
        /// The portal group tag
        group: u16,
        /// The asymmetric access state
        #[arg(long, value_enum)]
        state: Option<PortState>,
        /// Whether initiators should come this way
        #[arg(long, value_name = "YES|NO", value_parser = clap::builder::BoolishValueParser::new())]
        preferred: Option<bool>,
    },
    /// List a target's ports
    List {
        /// The target, by name or iSCSI name
        target: String,
    },
}

/// `lunaring reservation`
#[derive(Debug, Args)]
pub struct ReservationArguments {
    /// Socket and output.
    #[command(flatten)]
    pub client: ClientOptions,
    /// What to do.
    #[command(subcommand)]
    pub verb: ReservationVerb,
}

/// A verb of `lunaring reservation`.
#[derive(Debug, Subcommand)]
pub enum ReservationVerb {
    /// Show who is registered with a disk, and who reserves it
    List {
        /// The disk
        disk: String,
    },
    /// Take all registrations and reservations off a disk; its initiators are told
    Clear {
        /// The disk
        disk: String,
    },
}
