//! Arguments of the commands on settings.

use clap::{Args, Subcommand};
use serde_json::Value;

use super::ClientOptions;
use crate::units::parse_size;

/// `lunaring settings`
#[derive(Debug, Args)]
pub struct SettingsArguments {
    /// Socket and output.
    #[command(flatten)]
    pub client: ClientOptions,
    /// What to do.
    #[command(subcommand)]
    pub verb: SettingsVerb,
}

/// A verb of `lunaring settings`.
#[derive(Debug, Subcommand)]
pub enum SettingsVerb {
    /// Show the server's settings
    Show,
    /// Change the server's settings
    Set(ServerSettings),
}

/// `lunaring settings set`
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct ServerSettings {
    /// End a command whose file does not answer with ABORTED COMMAND after so many seconds; default: 30
    #[arg(long, value_name = "SECONDS|default", value_parser = number)]
    pub io_deadline: Option<Wanted>,
    /// Tell initiators of thin disks when the file system has less free space than this; 0: never; default: 0
    #[arg(long, value_name = "SIZE|default", value_parser = size)]
    pub thin_threshold: Option<Wanted>,
    /// The iSCSI ErrorRecoveryLevel that is offered, 0 or 1; default: 0
    #[arg(long, value_name = "0|1|default", value_parser = number)]
    pub error_recovery_level: Option<Wanted>,
    /// How many connections one session may have, 1 to 8; default: 1
    #[arg(long, value_name = "N|default", value_parser = number)]
    pub max_connections: Option<Wanted>,
}

/// `lunaring target set`
#[derive(Debug, Args)]
pub struct TargetSettings {
    /// The target, by name or iSCSI name
    pub target: String,
    /// The iSCSI ErrorRecoveryLevel that is offered, 0 or 1; default: the server's
    #[arg(long, value_name = "0|1|default", value_parser = number)]
    pub error_recovery_level: Option<Wanted>,
    /// How many connections one session may have, 1 to 8; default: the server's
    #[arg(long, value_name = "N|default", value_parser = number)]
    pub max_connections: Option<Wanted>,
}

/// `lunaring disk set`
#[derive(Debug, Args)]
pub struct DiskSettings {
    /// The disk
    pub disk: String,
    /// Tell initiators when the file system has less free space than this; 0: never; default: the server's
    #[arg(long, value_name = "SIZE|default", value_parser = size)]
    pub thin_threshold: Option<Wanted>,
}

/// A value as the API takes it: null where nothing of its own is to be set.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted(pub Value);

fn number(text: &str) -> Result<Wanted, String> {
    match text {
        "default" => Ok(Wanted(Value::Null)),
        _ => text.parse::<u16>().map(|number| Wanted(number.into())).map_err(|_| "write a number, or 'default'".into()),
    }
}

fn size(text: &str) -> Result<Wanted, String> {
    match text {
        "default" => Ok(Wanted(Value::Null)),
        _ => parse_size(text).map(|bytes| Wanted(bytes.into())).map_err(|error| error.to_string()),
    }
}
