//! Target ports: a target in one of the portal groups that lead to it. Their numbers, and in which state they lead to
//! disks (ALUA).

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::api;
use super::config::{Config, TargetConfig, is_false};
use super::controller::Controller;
use super::dataplane::ask_all;
use super::error::Refused;
use super::targets::target_of;
use crate::scsi::AccessState;
use crate::shard::message::{LunMap, Mask, TargetPort, ToShard};
use crate::units::{DiskId, TargetId};

/// The portal group of portals that were put into no other.
pub const PORTAL_GROUP_DEFAULT: u16 = 1;

/// A port of a target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortConfig {
    /// RELATIVE TARGET PORT IDENTIFIER: reservations know the port by it, so that no other port ever gets it.
    pub number: u16,
    /// The state in which it leads to the target's disks.
    #[serde(default, skip_serializing_if = "is_optimized")]
    pub state: PortState,
    /// Initiators should come this way.
    #[serde(default, skip_serializing_if = "is_false")]
    pub preferred: bool,
}

/// ASYMMETRIC ACCESS STATE, as the operator sets it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortState {
    /// Everything is served, best here.
    #[default]
    Optimized,
    /// Everything is served.
    NonOptimized,
    /// Only what looks at or changes the state of a disk.
    Standby,
    /// Only what tells of a disk and its ports.
    Unavailable,
    /// As unavailable, and initiators cannot change it.
    Offline,
    /// On the way to another state.
    Transitioning,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's skip_serializing_if passes a reference")]
fn is_optimized(state: &PortState) -> bool {
    *state == PortState::Optimized
}

impl PortState {
    fn access(self) -> AccessState {
        match self {
            Self::Optimized => AccessState::ActiveOptimized,
            Self::NonOptimized => AccessState::ActiveNonOptimized,
            Self::Standby => AccessState::Standby,
            Self::Unavailable => AccessState::Unavailable,
            Self::Offline => AccessState::Offline,
            Self::Transitioning => AccessState::Transitioning,
        }
    }
}

impl Config {
    /// The portal group of a portal.
    pub fn group_of(&self, portal: SocketAddr) -> u16 {
        self.portal_groups.get(&portal).copied().unwrap_or(PORTAL_GROUP_DEFAULT)
    }

    /// The portal groups that can have portals: those of the configuration, and that of the command line's.
    fn groups(&self) -> BTreeSet<u16> {
        self.portal_groups.values().copied().chain([PORTAL_GROUP_DEFAULT]).collect()
    }

    /// Give every target port that has none its number.
    ///
    /// # Errors
    /// There are no more numbers.
    pub fn number_ports(&mut self) -> Result<(), Refused> {
        let groups = self.groups();
        let mut missing = Vec::new();
        for (name, target) in &self.targets {
            let reached = groups.iter().filter(|group| target.is_reached_through(**group));
            let new = reached.filter(|group| !target.ports.contains_key(group));
            missing.extend(new.map(|group| (name.clone(), *group)));
        }
        for (name, group) in missing {
            let number = self.next_port_number()?;
            if let Some(target) = self.targets.get_mut(&name) {
                target.ports.insert(group, PortConfig { number, ..PortConfig::default() });
            }
        }
        Ok(())
    }

    fn next_port_number(&mut self) -> Result<u16, Refused> {
        if let Some(number) = self.target_ports_given.checked_add(1) {
            self.target_ports_given = number;
            return Ok(number);
        }
        // Numbers of ports that are gone for long come again.
        let used: HashSet<u16> = self.port_numbers().collect();
        (1..=u16::MAX).find(|number| !used.contains(number)).ok_or_else(|| {
            Refused::conflict("65,535 target ports (targets times portal groups) are the most; limit targets to groups")
        })
    }

    fn port_numbers(&self) -> impl Iterator<Item = u16> {
        self.targets.values().flat_map(|target| target.ports.values().map(|port| port.number))
    }

    /// Hold the rules on portal groups and ports.
    pub(super) fn check_ports(&self) -> Result<(), Refused> {
        for (portal, group) in &self.portal_groups {
            if !self.portals.contains(portal) {
                return Err(Refused::invalid(format!("'portal_groups' names {portal}, which is not a portal")));
            }
            check_group(*group)?;
        }
        let mut seen = HashSet::new();
        for (name, target) in &self.targets {
            target.ports.keys().chain(&target.portal_groups).try_for_each(|group| check_group(*group))?;
            for port in target.ports.values() {
                if port.number == 0 || port.number > self.target_ports_given || !seen.insert(port.number) {
                    return Err(Refused::invalid(format!(
                        "target '{name}': port number {} is zero, above 'target_ports_given', or another port's",
                        port.number
                    )));
                }
            }
        }
        Ok(())
    }
}

fn check_group(group: u16) -> Result<(), Refused> {
    if group == 0 {
        return Err(Refused::invalid("portal group 0 is not possible; use 1 to 65535"));
    }
    Ok(())
}

impl TargetConfig {
    /// Whether portals of a group lead to it.
    pub fn is_reached_through(&self, group: u16) -> bool {
        self.portal_groups.is_empty() || self.portal_groups.contains(&group)
    }

    /// Its ports in the shards' terms.
    pub fn target_ports(&self) -> Vec<TargetPort> {
        let reached = self.ports.iter().filter(|(group, _)| self.is_reached_through(**group));
        let port = |(group, port): (&u16, &PortConfig)| TargetPort {
            portal_group_tag: *group,
            number: port.number,
            state: port.state.access(),
            preferred: port.preferred,
        };
        reached.map(port).collect()
    }
}

/// Which ports lead to each disk.
pub(super) fn ports_of_disks(
    luns: &HashMap<TargetId, LunMap>,
    masks: &HashMap<TargetId, Vec<Mask>>,
    ports: &HashMap<TargetId, Vec<TargetPort>>,
) -> HashMap<DiskId, Vec<TargetPort>> {
    let mut of_disks: HashMap<DiskId, Vec<TargetPort>> = HashMap::new();
    let masked = masks.iter().flat_map(|(target, masks)| masks.iter().map(move |mask| (target, &mask.luns)));
    for (target, map) in luns.iter().chain(masked) {
        for mapping in map.values() {
            let known = of_disks.entry(mapping.disk).or_default();
            known.extend(ports.get(target).into_iter().flatten());
        }
    }
    for ports in of_disks.values_mut() {
        ports.sort_unstable_by_key(|port| port.number);
        ports.dedup_by_key(|port| port.number);
    }
    of_disks
}

impl Controller {
    /// Limit a target to portal groups: this one, and those that it was limited to before.
    pub async fn portgroup_add(&mut self, target: &str, group: u16) -> Result<(), Refused> {
        check_group(group)?;
        let mut config = self.config.clone();
        target_of(&mut config, target)?.1.portal_groups.insert(group);
        self.commit(config).await
    }

    /// Limit a target to the portal groups that it was limited to, without this one. Its sessions through it are
    /// dropped.
    pub async fn portgroup_remove(&mut self, target: &str, group: u16) -> Result<(), Refused> {
        let mut config = self.config.clone();
        let (name, target) = target_of(&mut config, target)?;
        if !target.portal_groups.remove(&group) {
            return Err(Refused::not_found(format!(
                "target '{name}' is not limited to portal group {group}; see 'lunaring target portgroup list {name}'"
            )));
        }
        if target.portal_groups.is_empty() {
            return Err(Refused::conflict(format!(
                "group {group} is the last one that target '{name}' is limited to; add another one first, or let every \
                 group reach it with 'lunaring target portgroup all {name}'"
            )));
        }
        self.commit(config).await
    }

    /// Let every portal group reach a target.
    pub async fn portgroup_all(&mut self, target: &str) -> Result<(), Refused> {
        let mut config = self.config.clone();
        target_of(&mut config, target)?.1.portal_groups.clear();
        self.commit(config).await
    }

    /// Change the state in which a target's port leads to its disks. In force on all shards when it is done.
    pub async fn portgroup_set(&mut self, target: &str, group: u16, change: api::PortChange) -> Result<(), Refused> {
        let mut config = self.config.clone();
        let (name, target) = target_of(&mut config, target)?;
        let Some(port) = target.ports.get_mut(&group) else {
            return Err(Refused::not_found(format!(
                "target '{name}' has no port in portal group {group}; see 'lunaring target portgroup list {name}'"
            )));
        };
        port.state = change.state.unwrap_or(port.state);
        port.preferred = change.preferred.unwrap_or(port.preferred);
        self.commit(config).await?;
        // What home shards tell the others of a change comes before this.
        ask_all(&*self.plane, |reply| ToShard::ListSessions { reply }).await?;
        Ok(())
    }
}

/// The ports of a target, for people and programs.
pub(super) fn api_ports(config: &Config, target: &TargetConfig) -> Vec<api::TargetPort> {
    let groups = config.groups();
    let port = |(group, port): (&u16, &PortConfig)| api::TargetPort {
        group: *group,
        number: port.number,
        state: port.state,
        preferred: port.preferred,
        reached: groups.contains(group) && target.is_reached_through(*group),
    };
    target.ports.iter().map(port).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn config(targets: &[&str]) -> Config {
        let mut config = Config::default();
        for name in targets {
            let iqn = format!("iqn.2026-11.io.x:{name}");
            config.targets.insert((*name).to_owned(), TargetConfig { iqn, ..TargetConfig::default() });
        }
        config.number_ports().unwrap();
        config
    }

    fn numbers(config: &Config) -> Vec<(&str, u16, u16)> {
        let of = |(name, target): (&'_ String, &'_ TargetConfig)| -> Vec<(String, u16, u16)> {
            target.ports.iter().map(|(group, port)| (name.clone(), *group, port.number)).collect()
        };
        let all: Vec<_> = config.targets.iter().flat_map(of).collect();
        let name = |wanted: &str| config.targets.keys().find(|name| *name == wanted).unwrap().as_str();
        all.iter().map(|(of, group, number)| (name(of), *group, *number)).collect()
    }

    #[test]
    fn numbers_are_unique_and_stay() {
        let mut config = config(&["b", "c"]);
        assert_eq!(numbers(&config), [("b", 1, 1), ("c", 1, 2)]);
        config.portals.push("10.0.0.1:3260".parse().unwrap());
        config.portal_groups.insert("10.0.0.1:3260".parse().unwrap(), 7);
        config
            .targets
            .insert("a".into(), TargetConfig { iqn: "iqn.2026-11.io.x:na".into(), ..TargetConfig::default() });
        config.number_ports().unwrap();
        let all = [("a", 1, 3), ("a", 7, 4), ("b", 1, 1), ("b", 7, 5), ("c", 1, 2), ("c", 7, 6)];
        assert_eq!(numbers(&config), all);
        config.targets.remove("c");
        config
            .targets
            .insert("c".into(), TargetConfig { iqn: "iqn.2026-11.io.x:nc".into(), ..TargetConfig::default() });
        config.number_ports().unwrap();
        assert_eq!(numbers(&config)[4..], [("c", 1, 7), ("c", 7, 8)], "another target has other ports");
        config.check().unwrap();
    }

    #[test]
    fn numbers_come_again_only_when_there_are_no_others() {
        let mut config = config(&["a", "b"]);
        config.target_ports_given = u16::MAX;
        config.targets.remove("a");
        config
            .targets
            .insert("c".into(), TargetConfig { iqn: "iqn.2026-11.io.x:nc".into(), ..TargetConfig::default() });
        config.number_ports().unwrap();
        assert_eq!(numbers(&config), [("b", 1, 2), ("c", 1, 1)]);
    }

    #[test]
    fn a_target_that_is_limited_has_ports_only_there() {
        let mut config = config(&[]);
        let limited = TargetConfig { portal_groups: [2].into(), ..TargetConfig::default() };
        config.targets.insert("a".into(), limited);
        config.number_ports().unwrap();
        assert_eq!(numbers(&config), [], "group 2 has no portal");
        config.portals.push("10.0.0.1:3260".parse().unwrap());
        config.portal_groups.insert("10.0.0.1:3260".parse().unwrap(), 2);
        config.number_ports().unwrap();
        assert_eq!(numbers(&config), [("a", 2, 1)]);
        assert_eq!(config.targets["a"].target_ports().len(), 1);
    }

    #[test]
    fn files_with_impossible_ports_are_refused() {
        let check = |change: &dyn Fn(&mut Config)| {
            let mut config = config(&["a", "b"]);
            change(&mut config);
            config.check().map_err(|refused| refused.message)
        };
        let port = |config: &mut Config, number| {
            config.targets.get_mut("a").unwrap().ports.insert(1, PortConfig { number, ..PortConfig::default() });
        };
        assert!(check(&|_| ()).is_ok());
        assert!(check(&|config| port(config, 0)).unwrap_err().contains("port number 0"));
        assert!(check(&|config| port(config, 2)).unwrap_err().contains("port number 2"));
        assert!(check(&|config| port(config, 3)).unwrap_err().contains("port number 3"));
        let elsewhere = "10.0.0.1:3260".parse().unwrap();
        let refused = check(&|config| {
            config.portal_groups.insert(elsewhere, 2);
        })
        .unwrap_err();
        assert!(refused.contains("not a portal"), "{refused}");
    }
}
