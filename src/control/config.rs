//! What the server is to serve: the content of `config.json`.
//!
//! The types are the file's format. [`Config::check`] holds every rule that must be true of a whole configuration,
//! wherever it came from: a file edited by hand goes through the same gate as a command.

mod entrance;

pub use entrance::{
    AuthConfig, IsnsConfig, RedirectConfig, check_destination, names as algorithm_names, parse_algorithms,
};

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::error::Refused;
use super::ports::PortConfig;
use crate::iscsi::directory::AccessRule;
use crate::iscsi::names::IscsiName;
use crate::limits::{
    ACCESS_RULES_PER_TARGET_MAX, CONNECTIONS_PER_SESSION_MAX, DISKS_MAX, LUNS_PER_TARGET_MAX, PORTALS_MAX,
    SNAPSHOTS_PER_DISK_MAX, TARGETS_MAX,
};
use crate::medium::{Cache, DiskFormat, DiskKind};

/// The version of the file format that this program reads and writes.
pub const CONFIG_VERSION: u32 = 1;

/// The longest name of a disk or target, in bytes: with a suffix it is still a file name.
pub const NAME_BYTES_MAX: usize = 223;

/// Everything the server is to serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// [`CONFIG_VERSION`].
    pub version: u32,
    /// Addresses to listen on.
    #[serde(default)]
    pub portals: Vec<SocketAddr>,
    /// The portal groups of portals that are in another one than group 1.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub portal_groups: BTreeMap<SocketAddr, u16>,
    /// The highest relative target port number that was given to a port.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub target_ports_given: u16,
    /// The address that initiators are told instead of a portal's own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub advertised: BTreeMap<SocketAddr, SocketAddr>,
    /// CHAP in discovery sessions, where it is demanded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discovery_auth: Option<AuthConfig>,
    /// The CHAP algorithms that may be used at all; every one, while it is empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chap_algorithms: Vec<String>,
    /// The iSNS server that targets and portals are registered with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isns: Option<IsnsConfig>,
    /// The highest ErrorRecoveryLevel of sessions, 0 or 1, where a target does not say.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub error_recovery_level: u8,
    /// How many connections a session may have, where a target does not say; 1 unless it is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u16>,
    /// Disks, by name.
    #[serde(default)]
    pub disks: BTreeMap<String, DiskConfig>,
    /// Targets, by name.
    #[serde(default)]
    pub targets: BTreeMap<String, TargetConfig>,
    /// Initiators are told when the file system behind a thin provisioned disk has less free space than this, in bytes.
    /// Zero: never. A disk may have a threshold of its own.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub thin_threshold_bytes: u64,
    /// How long a command waits for a file that does not answer before it is ended with ABORTED COMMAND, in seconds; 30
    /// unless it is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_deadline_seconds: Option<u16>,
}

/// One disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// What stores it.
    pub format: DiskFormat,
    /// The image file of a VHDX or raw disk; relative to the state folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Dynamic or fixed, for an image file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<DiskKind>,
    /// Size in bytes. Of an image file, the file itself has the last word.
    pub size_bytes: u64,
    /// Logical sector size in bytes: 512 or 4096.
    pub sector_size_bytes: u32,
    /// The identity that initiators see (a VHDX carries its own).
    pub uuid: Uuid,
    /// Direct or through the page cache.
    pub cache: Cache,
    /// Refuse all writes.
    #[serde(default, skip_serializing_if = "is_false")]
    pub read_only: bool,
    /// The file was there before the disk: deleting the disk leaves it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub added: bool,
    /// The file that a differencing disk's image is based on; relative to the state folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<PathBuf>,
    /// The parent is where the operator said, and not where the image says.
    #[serde(default, skip_serializing_if = "is_false")]
    pub parent_given: bool,
    /// The snapshot that the disk's present state comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// Its snapshots, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub snapshots: BTreeMap<String, SnapshotConfig>,
    /// Two of its files that are being merged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merge: Option<MergeConfig>,
    /// The snapshot of another disk that this one shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub export: Option<ExportConfig>,
    /// The file beside it that keeps its reservations (APTPL); relative to the state folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reservations: Option<PathBuf>,
    /// What is set on it.
    #[serde(default, skip_serializing_if = "DiskSettingsConfig::is_default")]
    pub settings: DiskSettingsConfig,
}

/// Settings of a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskSettingsConfig {
    /// WCE, where an initiator has saved it with MODE SELECT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_cache: Option<bool>,
    /// SWP, where an initiator has saved it with MODE SELECT: all initiators' writes are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub software_write_protect: Option<bool>,
    /// A FORMAT UNIT has not ended well: only another one, or a SANITIZE, makes the disk usable.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unformatted: bool,
    /// A SANITIZE has not ended well: only another one makes the disk usable, or, if this is true, its EXIT FAILURE
    /// MODE too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unsanitized: Option<bool>,
    /// The disk's own threshold of free space, in bytes; zero: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thin_threshold_bytes: Option<u64>,
}

impl DiskSettingsConfig {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// One snapshot: the file that was written until it was taken, and is not written any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotConfig {
    /// The file; relative to the state folder.
    pub file: PathBuf,
    /// Its format.
    pub format: DiskFormat,
    /// Dynamic, fixed or differencing.
    pub kind: DiskKind,
    /// The file that it is based on, if it is differencing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_parent: Option<PathBuf>,
    /// Size of the disk then, in bytes.
    pub size_bytes: u64,
    /// When it was taken, in seconds since 1970.
    pub created: u64,
    /// The snapshot that it was taken after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Common to snapshots that were taken together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<Uuid>,
    /// The file was there before the disk.
    #[serde(default, skip_serializing_if = "is_false")]
    pub added: bool,
    /// It is not a snapshot any more: its file is to be merged with the one above it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub deleting: bool,
}

/// A merge under way: the file of what comes right after a snapshot goes into the snapshot's file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MergeConfig {
    /// The snapshot.
    pub snapshot: String,
    /// The snapshot that comes right after it; none: the disk's present state does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub child: Option<String>,
    /// What the merged file will be known by.
    pub identifier: Uuid,
    /// Everything has been copied.
    #[serde(default, skip_serializing_if = "is_false")]
    pub copied: bool,
}

/// Which snapshot a disk shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportConfig {
    /// The disk.
    pub disk: String,
    /// Its snapshot.
    pub snapshot: String,
}

/// One target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetConfig {
    /// Its iSCSI name.
    pub iqn: String,
    /// The disk behind each logical unit number.
    #[serde(default)]
    pub luns: BTreeMap<u16, LunConfig>,
    /// Logical units that only some initiators see, by the access rule that says which; a narrower rule goes before a
    /// wider one, and all of them before the units that everybody sees.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub luns_for: BTreeMap<String, BTreeMap<u16, LunConfig>>,
    /// Who may log in, as access rules (`any`, `iqn:NAME`, `iqn:BEGINNING*`, `ip:CIDR`, `portal:ADDR:PORT`). Nobody,
    /// while it is empty.
    #[serde(default)]
    pub allow: Vec<String>,
    /// CHAP, where it is demanded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<AuthConfig>,
    /// The portal groups that it is reached through. Every one, while it is empty.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub portal_groups: BTreeSet<u16>,
    /// Its ports, by portal group tag; also those of groups that have no portals any more.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<u16, PortConfig>,
    /// Where initiators are sent instead of being let in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub redirects: Vec<RedirectConfig>,
    /// The highest ErrorRecoveryLevel of its sessions, 0 or 1; without it the server's holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_recovery_level: Option<u8>,
    /// How many connections each of its sessions may have; without it the server's holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u16>,
}

/// One logical unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LunConfig {
    /// The disk's name.
    pub disk: String,
    /// Refuse writes through this logical unit.
    #[serde(default, skip_serializing_if = "is_false")]
    pub read_only: bool,
}

fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's skip_serializing_if passes a reference")]
pub(super) fn is_false(value: &bool) -> bool {
    !value
}

impl Default for Config {
    fn default() -> Config {
        Config {
            version: CONFIG_VERSION,
            portals: Vec::new(),
            portal_groups: BTreeMap::new(),
            target_ports_given: 0,
            advertised: BTreeMap::new(),
            discovery_auth: None,
            chap_algorithms: Vec::new(),
            isns: None,
            error_recovery_level: 0,
            max_connections: None,
            disks: BTreeMap::new(),
            targets: BTreeMap::new(),
            thin_threshold_bytes: 0,
            io_deadline_seconds: None,
        }
    }
}

impl Config {
    /// Read a configuration, and hold every rule of it.
    ///
    /// # Errors
    /// What is wrong, with the file and, where there is one, the line.
    pub fn from_text(text: &str, file: &Path) -> Result<Config, Refused> {
        let config: Config = serde_json::from_str(text).map_err(|e| {
            // serde_json ends its message with the position, which is said first here.
            let reason = e.to_string();
            let reason = reason.rsplit_once(" at line ").map_or(reason.as_str(), |(reason, _)| reason).to_owned();
            Refused::invalid(format!("{}, line {}: {reason}", file.display(), e.line()))
        })?;
        config.check().map_err(|e| Refused::invalid(format!("{}: {e}", file.display())))?;
        Ok(config)
    }

    /// Hold every rule of a whole configuration.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn check(&self) -> Result<(), Refused> {
        if self.version != CONFIG_VERSION {
            return Err(Refused::invalid(format!(
                "this is version {} of the configuration format, and this program knows version {CONFIG_VERSION}; \
                 use the program that wrote it",
                self.version
            )));
        }
        bound("disks", self.disks.len(), DISKS_MAX)?;
        bound("targets", self.targets.len(), TARGETS_MAX)?;
        bound("portals", self.portals.len(), PORTALS_MAX)?;
        self.check_portals()?;
        self.check_disks()?;
        self.check_targets()?;
        self.check_recovery()?;
        if self.io_deadline_seconds == Some(0) {
            return Err(Refused::invalid("io_deadline_seconds is 0; it is at least 1, and 30 where it is not given"));
        }
        self.check_entrance()?;
        self.check_ports()
    }

    fn check_recovery(&self) -> Result<(), Refused> {
        let levels = self.targets.values().filter_map(|target| target.error_recovery_level);
        if let Some(level) = levels.chain([self.error_recovery_level]).find(|level| *level > 1) {
            return Err(Refused::invalid(format!("error_recovery_level is {level}; 0 and 1 are served")));
        }
        let counts = self.targets.values().filter_map(|target| target.max_connections);
        let is_served = |count: &u16| (1..=CONNECTIONS_PER_SESSION_MAX).contains(&usize::from(*count));
        if let Some(count) = counts.chain(self.max_connections).find(|count| !is_served(count)) {
            return Err(Refused::invalid(format!(
                "max_connections is {count}; a session may have 1 to {CONNECTIONS_PER_SESSION_MAX}"
            )));
        }
        Ok(())
    }

    fn check_portals(&self) -> Result<(), Refused> {
        let mut seen = HashSet::new();
        for portal in &self.portals {
            check_portal(*portal)?;
            if !seen.insert(portal) {
                return Err(Refused::conflict(format!("portal {portal} is there already")));
            }
        }
        Ok(())
    }

    fn check_disks(&self) -> Result<(), Refused> {
        let mut files: BTreeMap<&Path, &str> = BTreeMap::new();
        for (name, disk) in &self.disks {
            check_name("disk", name)?;
            disk.check(name)?;
            self.check_export(name, disk)?;
            for file in disk.own_files() {
                if let Some(other) = files.insert(file, name) {
                    return Err(Refused::conflict(format!(
                        "disks '{other}' and '{name}' have the same file {}; a file can be only one disk",
                        file.display()
                    )));
                }
            }
        }
        Ok(())
    }

    fn check_export(&self, name: &str, disk: &DiskConfig) -> Result<(), Refused> {
        let Some(export) = &disk.export else { return Ok(()) };
        let shown = self.disks.get(&export.disk).and_then(|of| of.snapshots.get(&export.snapshot));
        match shown {
            Some(snapshot) if !snapshot.deleting => Ok(()),
            _ => Err(Refused::conflict(format!(
                "disk '{name}' shows the snapshot '{}' of disk '{}'; delete disk '{name}' first",
                export.snapshot, export.disk
            ))),
        }
    }

    fn check_targets(&self) -> Result<(), Refused> {
        let mut iqns: BTreeMap<IscsiName, &str> = BTreeMap::new();
        for (name, target) in &self.targets {
            check_name("target", name)?;
            let iqn = IscsiName::new(&target.iqn).map_err(Refused::invalid)?;
            if let Some(other) = iqns.insert(iqn, name) {
                return Err(Refused::conflict(format!(
                    "target '{other}' has the iSCSI name {} already; give '{name}' another with --iqn",
                    target.iqn
                )));
            }
            target.check(name, &self.disks)?;
        }
        Ok(())
    }

    /// The targets and logical unit numbers that a disk is mapped to.
    pub fn mappings_of(&self, disk: &str) -> Vec<(&str, u16)> {
        let luns_of = |target: &TargetConfig| -> Vec<u16> {
            let mut luns: Vec<u16> =
                target.all_luns().filter(|(.., lun)| lun.disk == disk).map(|(_, number, _)| number).collect();
            luns.sort_unstable();
            luns.dedup();
            luns
        };
        self.targets
            .iter()
            .flat_map(|(name, target)| luns_of(target).into_iter().map(move |lun| (name.as_str(), lun)))
            .collect()
    }
}

impl DiskConfig {
    /// The files that are this disk's alone: the one that is written, and those of its snapshots. A disk that shows a
    /// snapshot read-only has none.
    pub fn own_files(&self) -> impl Iterator<Item = &Path> {
        let shown_only = self.export.is_some() && self.read_only;
        let leaf = self.file.as_deref().filter(|_| !shown_only);
        leaf.into_iter().chain(self.snapshots.values().map(|snapshot| snapshot.file.as_path()))
    }

    /// Whether one of all the files that the disk needs fits: its own, and those they are based on.
    pub fn names(&self, fits: impl Fn(&Path) -> bool) -> bool {
        let leaf = [self.file.as_deref(), self.parent.as_deref()];
        let of = |snapshot: &SnapshotConfig| fits(&snapshot.file) || snapshot.file_parent.as_deref().is_some_and(&fits);
        leaf.into_iter().flatten().any(&fits) || self.snapshots.values().any(of)
    }

    /// The snapshots that can be named, by name.
    pub fn listed_snapshots(&self) -> impl Iterator<Item = (&String, &SnapshotConfig)> {
        self.snapshots.iter().filter(|(_, snapshot)| !snapshot.deleting)
    }

    fn check_snapshots(&self, name: &str) -> Result<(), Refused> {
        bound(&format!("snapshots of disk '{name}'"), self.snapshots.len(), SNAPSHOTS_PER_DISK_MAX)?;
        if !self.format.has_file() && !self.snapshots.is_empty() {
            return Err(Refused::invalid(format!("disk '{name}' has no file, so it has no snapshots")));
        }
        let missing = |snapshot: &Option<String>| {
            snapshot.as_ref().filter(|snapshot| !self.snapshots.contains_key(*snapshot)).cloned()
        };
        let named = self.snapshots.values().map(|snapshot| &snapshot.parent).chain([&self.base]);
        if let Some(missing) = named.filter_map(missing).next() {
            return Err(Refused::invalid(format!("disk '{name}' has no snapshot '{missing}', which is named in it")));
        }
        let mut rooted: HashSet<&str> = HashSet::new();
        for snapshot in self.snapshots.keys() {
            check_name("snapshot", snapshot)?;
            let mut path = Vec::new();
            let mut next = Some(snapshot);
            while let Some(at) = next.filter(|at| !rooted.contains(at.as_str())) {
                if path.len() > self.snapshots.len() {
                    return Err(Refused::invalid(format!("disk '{name}': snapshot '{snapshot}' comes from itself")));
                }
                path.push(at.as_str());
                next = self.snapshots.get(at).and_then(|snapshot| snapshot.parent.as_ref());
            }
            rooted.extend(path);
        }
        Ok(())
    }

    fn check(&self, name: &str) -> Result<(), Refused> {
        self.check_snapshots(name)?;
        let has_file = self.format.has_file();
        let format = self.format.as_str();
        if has_file != self.file.is_some() {
            let what = if has_file { "needs a file" } else { "has no file" };
            return Err(Refused::invalid(format!("disk '{name}': a {format} disk {what}")));
        }
        if !matches!(self.sector_size_bytes, 512 | 4096) {
            return Err(Refused::invalid(format!(
                "disk '{name}': a sector size of {} is not possible; use 512 or 4096",
                self.sector_size_bytes
            )));
        }
        if self.size_bytes == 0 || !self.size_bytes.is_multiple_of(u64::from(self.sector_size_bytes)) {
            return Err(Refused::invalid(format!(
                "disk '{name}': a size of {} bytes is not possible; it must be a positive multiple of the sector size \
                 ({} bytes)",
                self.size_bytes, self.sector_size_bytes
            )));
        }
        Ok(())
    }
}

impl TargetConfig {
    /// All logical units: for whom (everybody, where no rule says it), the number, and what it is.
    pub fn all_luns(&self) -> impl Iterator<Item = (Option<&str>, u16, &LunConfig)> {
        let common = self.luns.iter().map(|(number, lun)| (None, *number, lun));
        let masked = self
            .luns_for
            .iter()
            .flat_map(|(rule, luns)| luns.iter().map(move |(number, lun)| (Some(rule.as_str()), *number, lun)));
        common.chain(masked)
    }

    fn check(&self, name: &str, disks: &BTreeMap<String, DiskConfig>) -> Result<(), Refused> {
        bound(&format!("LUNs of target '{name}'"), self.all_luns().count(), LUNS_PER_TARGET_MAX)?;
        bound(&format!("rules with LUNs of target '{name}'"), self.luns_for.len(), ACCESS_RULES_PER_TARGET_MAX)?;
        bound(&format!("access rules of target '{name}'"), self.allow.len(), ACCESS_RULES_PER_TARGET_MAX)?;
        for (_, number, lun) in self.all_luns() {
            check_lun(number)?;
            if !disks.contains_key(&lun.disk) {
                return Err(Refused::not_found(format!(
                    "target '{name}', LUN {number}: there is no disk '{}'; see 'lunaring disk list'",
                    lun.disk
                )));
            }
        }
        for rule in self.allow.iter().chain(self.luns_for.keys()) {
            rule.parse::<AccessRule>().map_err(Refused::invalid)?;
        }
        Ok(())
    }
}

/// Whether a disk or target may have this name.
///
/// # Errors
/// Which rule it breaks.
pub fn check_name(what: &str, name: &str) -> Result<(), Refused> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err(Refused::invalid(format!(
            "a {what} name has 1 to {NAME_BYTES_MAX} characters, not {}",
            name.len()
        )));
    }
    if let Some(bad) = name.chars().find(|c| !(c.is_ascii_alphanumeric() || "._-".contains(*c))) {
        return Err(Refused::invalid(format!(
            "the {what} name '{}' contains {bad:?}; use letters, digits, '.', '_' and '-'",
            name.escape_default()
        )));
    }
    if name.starts_with(['.', '-']) {
        return Err(Refused::invalid(format!("the {what} name '{name}' must start with a letter, a digit or '_'")));
    }
    Ok(())
}

/// Whether this can be a logical unit number (the flat addressing method of SAM-5 has 14 bits).
///
/// # Errors
/// The range.
pub fn check_lun(lun: u16) -> Result<(), Refused> {
    if usize::from(lun) < LUNS_PER_TARGET_MAX {
        return Ok(());
    }
    Err(Refused::invalid(format!("LUN {lun} is not possible; use 0 to {}", LUNS_PER_TARGET_MAX - 1)))
}

/// Whether the server can listen on this address.
///
/// # Errors
/// What is wrong with it.
pub fn check_portal(portal: SocketAddr) -> Result<(), Refused> {
    if portal.port() == 0 {
        return Err(Refused::invalid(format!("portal {portal}: port 0 is not a port; the usual one is 3260")));
    }
    if portal.ip().is_multicast() {
        return Err(Refused::invalid(format!("portal {portal}: a multicast address cannot accept connections")));
    }
    Ok(())
}

/// Read a portal as people write it: `ADDR:PORT`, with an IPv6 address in brackets.
///
/// # Errors
/// How to write it.
pub fn parse_portal(text: &str) -> Result<SocketAddr, Refused> {
    let portal: SocketAddr = text.parse().map_err(|_| {
        Refused::invalid(format!(
            "'{}' is not a portal; write ADDRESS:PORT, for example 192.0.2.10:3260, 0.0.0.0:3260 or \
             [2001:db8::10]:3260",
            text.escape_debug()
        ))
    })?;
    check_portal(portal)?;
    Ok(portal)
}

fn bound(what: &str, number: usize, max: usize) -> Result<(), Refused> {
    if number <= max {
        return Ok(());
    }
    Err(Refused::conflict(format!("{number} {what} are too many; the most is {max}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_stand_in_the_file_alone_are_checked() {
        let refusal = |change: fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            config.check().err().map(|refused| refused.message)
        };
        assert_eq!(refusal(|config| config.io_deadline_seconds = Some(1)), None);
        assert!(refusal(|config| config.io_deadline_seconds = Some(0)).expect("refused").contains("at least 1"));
        assert_eq!(refusal(|config| config.error_recovery_level = 1), None);
        assert!(refusal(|config| config.error_recovery_level = 2).expect("refused").contains("0 and 1 are served"));
        assert_eq!(refusal(|config| config.max_connections = Some(8)), None);
        for refused in
            [refusal(|config| config.max_connections = Some(0)), refusal(|config| config.max_connections = Some(9))]
        {
            assert!(refused.expect("refused").contains("1 to 8"));
        }
    }
}
