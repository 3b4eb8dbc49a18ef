//! Settings of the server, its targets and its disks, one by one.

use super::api::{Settings, SettingsChange};
use super::config::Config;
use super::controller::{Controller, View};
use super::error::Refused;
use super::targets::{target_name, target_of};
use crate::shard::IO_DEADLINE_MS;

/// What has settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SettingsOf {
    /// The server: they hold where a target or a disk has none of its own.
    Server,
    /// A target, by name or iSCSI name.
    Target(String),
    /// A disk.
    Disk(String),
}

impl Controller {
    /// Change settings: in force at once, for sessions with their next login.
    ///
    /// # Errors
    /// There is no such target or disk, a value is out of range, or a setting is not for that.
    pub async fn settings_change(&mut self, of: SettingsOf, change: SettingsChange) -> Result<(), Refused> {
        let mut config = self.config.clone();
        let SettingsChange { io_deadline_seconds, thin_threshold_bytes, error_recovery_level, max_connections } =
            change;
        match of {
            SettingsOf::Server => {
                config.io_deadline_seconds = io_deadline_seconds.unwrap_or(config.io_deadline_seconds);
                let threshold = thin_threshold_bytes.map(Option::unwrap_or_default);
                config.thin_threshold_bytes = threshold.unwrap_or(config.thin_threshold_bytes);
                let level = error_recovery_level.map(Option::unwrap_or_default);
                config.error_recovery_level = level.unwrap_or(config.error_recovery_level);
                config.max_connections = max_connections.unwrap_or(config.max_connections);
            }
            SettingsOf::Target(name) => {
                refuse_foreign("a target", "io_deadline_seconds", io_deadline_seconds.is_some())?;
                refuse_foreign("a target", "thin_threshold_bytes", thin_threshold_bytes.is_some())?;
                let (_, target) = target_of(&mut config, &name)?;
                target.error_recovery_level = error_recovery_level.unwrap_or(target.error_recovery_level);
                target.max_connections = max_connections.unwrap_or(target.max_connections);
            }
            SettingsOf::Disk(name) => {
                refuse_foreign("a disk", "io_deadline_seconds", io_deadline_seconds.is_some())?;
                refuse_foreign("a disk", "error_recovery_level", error_recovery_level.is_some())?;
                refuse_foreign("a disk", "max_connections", max_connections.is_some())?;
                let Some(disk) = config.disks.get_mut(&name) else { return Err(no_disk(&name)) };
                let settings = &mut disk.settings;
                settings.thin_threshold_bytes = thin_threshold_bytes.unwrap_or(settings.thin_threshold_bytes);
            }
        }
        self.commit(config).await
    }
}

impl View {
    /// The settings of the server as they hold, or what is set on a target or a disk.
    ///
    /// # Errors
    /// There is no such target or disk.
    pub fn api_settings(&self, of: &SettingsOf) -> Result<Settings, Refused> {
        settings(&self.config, of)
    }
}

fn settings(config: &Config, of: &SettingsOf) -> Result<Settings, Refused> {
    match of {
        SettingsOf::Server => Ok(Settings {
            io_deadline_seconds: config.io_deadline_seconds.or(u16::try_from(IO_DEADLINE_MS / 1000).ok()),
            thin_threshold_bytes: Some(config.thin_threshold_bytes),
            error_recovery_level: Some(config.error_recovery_level),
            max_connections: Some(config.max_connections.unwrap_or(1)),
        }),
        SettingsOf::Target(name) => {
            let name = target_name(config, name)?;
            let Some(target) = config.targets.get(&name) else {
                return Err(Refused::not_found(format!("there is no target '{name}'")));
            };
            Ok(Settings {
                error_recovery_level: target.error_recovery_level,
                max_connections: target.max_connections,
                ..Settings::default()
            })
        }
        SettingsOf::Disk(name) => {
            let Some(disk) = config.disks.get(name) else { return Err(no_disk(name)) };
            Ok(Settings { thin_threshold_bytes: disk.settings.thin_threshold_bytes, ..Settings::default() })
        }
    }
}

fn no_disk(name: &str) -> Refused {
    Refused::not_found(format!("there is no disk '{name}'; see 'lunaring disk list'"))
}

fn refuse_foreign(what: &str, setting: &str, is_given: bool) -> Result<(), Refused> {
    if !is_given {
        return Ok(());
    }
    Err(Refused::invalid(format!("{what} has no {setting}; see 'lunaring settings --help'")))
}
