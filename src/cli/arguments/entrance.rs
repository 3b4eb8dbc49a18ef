//! Arguments of what decides how initiators come in.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand};

use super::ClientOptions;

/// CHAP, or nothing.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("how").required(true).args(["chap_user", "none"]))]
pub struct Demand {
    /// The name that initiators prove
    #[arg(long, value_name = "U", requires = "chap_secret_file")]
    pub chap_user: Option<String>,
    /// A file with the initiators' secret: 12 to 255 bytes; one newline at its end is left out
    #[arg(long, value_name = "F", requires = "chap_user")]
    pub chap_secret_file: Option<PathBuf>,
    /// The name that the target proves in return
    #[arg(long, value_name = "U", requires = "chap_user", requires = "mutual_secret_file")]
    pub mutual_user: Option<String>,
    /// A file with the target's secret, another one
    #[arg(long, value_name = "F", requires = "mutual_user")]
    pub mutual_secret_file: Option<PathBuf>,
    /// Only these algorithms, of md5,sha1,sha256,sha3-256 [default: all that the server allows]
    #[arg(long, value_name = "LIST", value_delimiter = ',', requires = "chap_user")]
    pub chap_algorithms: Vec<String>,
    /// Demand no authentication
    #[arg(long)]
    pub none: bool,
}

/// `lunaring target redirect`
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("where").required(true).args(["to", "none"]))]
pub struct TargetRedirect {
    /// The target, by name or iSCSI name
    pub target: String,
    /// Where initiators are sent: ADDR:PORT or NAME:PORT
    #[arg(value_name = "ADDR:PORT")]
    pub to: Option<String>,
    /// They may remember it
    #[arg(long, requires = "to")]
    pub permanent: bool,
    /// Only those that come in through this portal
    #[arg(long, value_name = "ADDR:PORT")]
    pub portal: Option<String>,
    /// Let them in again
    #[arg(long)]
    pub none: bool,
}

/// `lunaring discovery`
#[derive(Debug, Args)]
pub struct DiscoveryArguments {
    /// Socket and output.
    #[command(flatten)]
    pub client: ClientOptions,
    /// What to do.
    #[command(subcommand)]
    pub verb: DiscoveryVerb,
}

/// A verb of `lunaring discovery`.
#[derive(Debug, Subcommand)]
pub enum DiscoveryVerb {
    /// Demand CHAP in discovery sessions, or nothing
    Auth(Demand),
    /// Show what is demanded
    Show,
}

/// `lunaring chap`
#[derive(Debug, Args)]
pub struct ChapArguments {
    /// Socket and output.
    #[command(flatten)]
    pub client: ClientOptions,
    /// What to do.
    #[command(subcommand)]
    pub verb: ChapVerb,
}

/// A verb of `lunaring chap`.
#[derive(Debug, Subcommand)]
pub enum ChapVerb {
    /// Allow only these algorithms on the whole server
    Algorithms {
        /// Of md5,sha1,sha256,sha3-256; or all
        #[arg(value_name = "LIST", value_delimiter = ',', required = true)]
        list: Vec<String>,
    },
    /// Show what is allowed
    Show,
}

/// `lunaring isns`
#[derive(Debug, Args)]
pub struct IsnsArguments {
    /// Socket and output.
    #[command(flatten)]
    pub client: ClientOptions,
    /// What to do.
    #[command(subcommand)]
    pub verb: IsnsVerb,
}

/// A verb of `lunaring isns`.
#[derive(Debug, Subcommand)]
pub enum IsnsVerb {
    /// Register targets and portals with this iSNS server
    Set {
        /// ADDR, NAME, or either with :PORT; or none
        #[arg(value_name = "ADDR[:PORT]|none")]
        server: String,
    },
    /// Show where they are registered
    Show,
}
