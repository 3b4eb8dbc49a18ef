//! A whole configuration in place of the one in force, while the server runs: `lunaring config apply`.
//!
//! What both have in common is not touched, and sessions with it go on. Disks that are there already stay as they are:
//! their files, chains and snapshots are facts and not wishes, and only their threshold is taken over. What is new is
//! brought up first; then everything else changes at one moment; what is gone is taken away last. A refusal before that
//! moment undoes what was brought up.

use std::collections::BTreeSet;

use super::api;
use super::config::{Config, DiskConfig};
use super::controller::Controller;
use super::crash::step;
use super::error::Refused;

/// What has been brought up, and is taken away again when the rest is refused.
#[derive(Default)]
struct Begun {
    disks: Vec<String>,
    portals: Vec<String>,
}

impl Controller {
    /// Make this the configuration.
    ///
    /// # Errors
    /// It breaks a rule, or something of it cannot be had; what was in force stays in force.
    pub async fn config_replace(&mut self, mut config: Config) -> Result<api::Replaced, Refused> {
        self.keep_facts(&mut config)?;
        config.number_ports()?;
        config.check()?;
        let gone = self.gone(&config)?;
        let before = self.config.clone();
        let mut begun = Begun::default();
        if let Err(refused) = self.replace_with(&config, &mut begun).await {
            self.undo(begun).await;
            return Err(refused);
        }
        step("config apply: in force");
        let mut replaced =
            api::Replaced { disks_added: begun.disks, portals_added: begun.portals, ..differences(&before, &config) };
        for portal in before.portals.iter().filter(|portal| !config.portals.contains(portal)) {
            match self.portal_remove(&portal.to_string()).await {
                Ok(()) => replaced.portals_removed.push(portal.to_string()),
                Err(refused) => replaced.warnings.push(refused.message),
            }
        }
        for name in gone {
            match self.disk_delete(&name, true).await {
                Ok(deleted) => replaced.warnings.extend(deleted.warning),
                Err(refused) => replaced.warnings.push(refused.message),
            }
            replaced.disks_removed.push(name);
        }
        Ok(replaced)
    }

    /// Take over from what is in force what a file cannot change.
    fn keep_facts(&self, config: &mut Config) -> Result<(), Refused> {
        for (name, disk) in &mut config.disks {
            match self.config.disks.get(name) {
                Some(now) => {
                    check_same_disk(name, now, disk)?;
                    let threshold = disk.settings.thin_threshold_bytes;
                    *disk = now.clone();
                    disk.settings.thin_threshold_bytes = threshold;
                }
                None if disk.merge.is_some() => {
                    return Err(Refused::conflict(format!(
                        "disk '{name}' was in the middle of a merge when it was exported; export it again where it is \
                         served, when the merge has ended"
                    )));
                }
                None => {}
            }
        }
        // Reservations know ports by their numbers.
        config.target_ports_given = config.target_ports_given.max(self.config.target_ports_given);
        for (name, target) in &mut config.targets {
            let Some(now) = self.config.targets.get(name) else { continue };
            for (group, port) in &now.ports {
                target.ports.entry(*group).or_insert_with(|| port.clone()).number = port.number;
            }
        }
        let moved = config.portals.iter().find(|&&portal| {
            self.portals.iter().any(|now| now.address == portal && now.group != config.group_of(portal))
        });
        match moved {
            Some(portal) => Err(Refused::conflict(format!(
                "portal {portal} is in another portal group now; remove it first with 'lunaring portal remove {portal}'"
            ))),
            None => Ok(()),
        }
    }

    /// The disks that the configuration does not have any more, children first.
    fn gone(&self, config: &Config) -> Result<Vec<String>, Refused> {
        let mut left: BTreeSet<&String> =
            self.config.disks.keys().filter(|name| !config.disks.contains_key(*name)).collect();
        let mut gone = Vec::with_capacity(left.len());
        while !left.is_empty() {
            let is_free = |name: &&&String| self.dependents(name).iter().all(|child| gone.contains(child));
            let Some(&name) = left.iter().find(is_free) else {
                let stuck: Vec<&str> = left.iter().map(|name| name.as_str()).collect();
                return Err(Refused::conflict(format!(
                    "the configuration does not have disk '{}', whose files other disks in it need; keep it",
                    stuck.join("', '")
                )));
            };
            self.refuse_busy(name)?;
            left.remove(name);
            gone.push(name.clone());
        }
        Ok(gone)
    }

    /// The disks that need a disk's files.
    fn dependents(&self, name: &str) -> Vec<String> {
        let Some(disk) = self.config.disks.get(name) else { return Vec::new() };
        let children = disk.own_files().flat_map(|file| self.children_of(file, name));
        let shows = |(_, other): &(&String, &DiskConfig)| other.export.as_ref().is_some_and(|of| of.disk == name);
        children.chain(self.config.disks.iter().filter(shows).map(|(name, _)| name.clone())).collect()
    }

    /// Bring up what is new, and change everything else.
    async fn replace_with(&mut self, config: &Config, begun: &mut Begun) -> Result<(), Refused> {
        for (name, disk) in &config.disks {
            if self.config.disks.contains_key(name) {
                continue;
            }
            let mut with = self.config.clone();
            with.disks.insert(name.clone(), disk.clone());
            with.check()?;
            self.open_and_commit(name, with).await?;
            begun.disks.push(name.clone());
        }
        for &address in &config.portals {
            if self.config.portals.contains(&address) {
                continue;
            }
            let advertise = config.advertised.get(&address).map(ToString::to_string);
            let group = Some(config.group_of(address));
            self.portal_add(api::NewPortal { address: address.to_string(), advertise, group }).await?;
            begun.portals.push(address.to_string());
        }
        let mut whole = config.clone();
        whole.disks.clone_from(&self.config.disks);
        for (name, disk) in &mut whole.disks {
            if let Some(wanted) = config.disks.get(name) {
                disk.settings.thin_threshold_bytes = wanted.settings.thin_threshold_bytes;
            }
        }
        // Portals that are to go are there until they do.
        whole.portals.clone_from(&self.config.portals);
        whole.portal_groups.clone_from(&self.config.portal_groups);
        self.commit(whole).await
    }

    async fn undo(&mut self, begun: Begun) {
        for portal in &begun.portals {
            if let Err(refused) = self.portal_remove(portal).await {
                tracing::warn!("{refused}");
            }
        }
        for name in begun.disks.iter().rev() {
            if let Err(refused) = self.disk_delete(name, true).await {
                tracing::warn!("{refused}");
            }
        }
    }
}

/// What cannot be changed of a disk that is served must be the same.
fn check_same_disk(name: &str, now: &DiskConfig, wanted: &DiskConfig) -> Result<(), Refused> {
    if now.uuid != wanted.uuid {
        return Err(Refused::conflict(format!(
            "disk '{name}' is {} here and {} in the file: two disks of one name; rename one of them",
            now.uuid, wanted.uuid
        )));
    }
    let what = [
        ("format", now.format != wanted.format),
        ("sector_size_bytes", now.sector_size_bytes != wanted.sector_size_bytes),
        ("cache", now.cache != wanted.cache),
        ("read_only", now.read_only != wanted.read_only),
    ];
    match what.iter().find(|(_, differs)| *differs) {
        Some((key, _)) => Err(Refused::conflict(format!(
            "{key} of disk '{name}' cannot change while it is served; 'lunaring disk delete {name} --keep-file' first, \
             and add it again"
        ))),
        None => Ok(()),
    }
}

/// Targets that are new, gone or changed.
fn differences(before: &Config, after: &Config) -> api::Replaced {
    let missing = |from: &Config, to: &Config| {
        from.targets.keys().filter(|name| !to.targets.contains_key(*name)).cloned().collect::<Vec<String>>()
    };
    let changed =
        after.targets.iter().filter(|(name, target)| before.targets.get(*name).is_some_and(|now| now != *target));
    api::Replaced {
        targets_added: missing(after, before),
        targets_removed: missing(before, after),
        targets_changed: changed.map(|(name, _)| name.clone()).collect(),
        ..api::Replaced::default()
    }
}
