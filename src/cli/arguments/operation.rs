//! Arguments of the commands that watch a server, and take its configuration as a whole.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::ClientOptions;

/// `lunaring top`
#[derive(Debug, Args)]
pub struct TopArguments {
    /// Socket and output.
    #[command(flatten)]
    pub client: ClientOptions,
    /// Seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub interval: u32,
    /// Stop after so many looks; go on until Ctrl-C unless it is said
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub count: Option<u32>,
}

/// `lunaring config`
#[derive(Debug, Args)]
pub struct ConfigArguments {
    /// Socket and output.
    #[command(flatten)]
    pub client: ClientOptions,
    /// What to do.
    #[command(subcommand)]
    pub verb: ConfigVerb,
}

/// A verb of `lunaring config`.
#[derive(Debug, Subcommand)]
pub enum ConfigVerb {
    /// Print the whole configuration, secrets included, as JSON
    Export,
    /// Say what is wrong with a configuration; no server is needed
    Check {
        /// The file
        file: PathBuf,
    },
    /// Put a configuration into force. Disks that are served stay as they are; no file of a disk is deleted
    Apply {
        /// The file
        file: PathBuf,
    },
}
