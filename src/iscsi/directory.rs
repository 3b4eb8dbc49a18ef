//! The directory: which targets exist, who may use them, and where they are reached.
//!
//! Plain immutable data. The control plane makes a new one for every change; login and discovery read it.

#![forbid(unsafe_code)]

use super::access::{Caller, RuleIndex, is_reached_as};
use super::chap::{Algorithm, Secret};
use super::names::IscsiName;
use crate::units::{PortalId, TargetId};
use core::net::{IpAddr, SocketAddr};
use std::collections::HashMap;

pub use super::access::{AccessRule, AccessRuleError, Network};

/// Everything that login and discovery need to know, at one moment.
#[derive(Debug, Default)]
pub struct Directory {
    /// Sorted by name, so that a listing has one order.
    targets: Vec<Target>,
    by_name: HashMap<IscsiName, usize>,
    /// The targets that each rule opens, so that a listing costs what it lists and not what it hides.
    by_rule: RuleIndex,
    portals: Vec<Portal>,
    discovery: Authentication,
}

/// A target node.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its number in this process.
    pub id: TargetId,
    /// Its iSCSI name.
    pub name: IscsiName,
    /// Words for people, sent as TargetAlias; at most 255 bytes.
    pub alias: Option<String>,
    /// Who may log in. Nobody, while it is empty.
    pub access: Vec<AccessRule>,
    /// How initiators prove who they are.
    pub authentication: Authentication,
    /// The portal groups that it is reached through; every one, while there is none.
    pub portal_groups: Vec<u16>,
    /// Where initiators are sent instead of being let in.
    pub redirects: Vec<Redirect>,
    /// ErrorRecoveryLevel that its sessions may have: 0 or 1.
    pub error_recovery_level: u8,
    /// Connections that one session may have (MaxConnections), 1 to [`crate::limits::CONNECTIONS_PER_SESSION_MAX`].
    pub connections_max: u16,
}

/// Another place where a target is reached (RFC 7143 section 11.13.5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// Only initiators that come in at this address of ours; the unspecified address means all of its family.
    pub portal: Option<SocketAddr>,
    /// Where to go: an address or a domain name, with a port.
    pub address: String,
    /// The initiator may remember it.
    pub permanent: bool,
}

/// How an initiator proves who it is (RFC 7143 section 12.1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Authentication {
    /// It need not.
    #[default]
    None,
    /// By CHAP.
    Chap(ChapCredentials),
}

/// The names and secrets of CHAP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChapCredentials {
    initiator: ChapAccount,
    target: Option<ChapAccount>,
    /// Those that may be used; all of the server's, when there are none.
    algorithms: Vec<Algorithm>,
}

/// One name and its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChapAccount {
    /// CHAP_N, 1 to 255 bytes.
    pub user: String,
    /// The secret.
    pub secret: Secret,
}

/// A listening address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Portal {
    /// Its number in this process.
    pub id: PortalId,
    /// Where it listens; may be a wildcard address.
    pub listen: SocketAddr,
    /// Its portal group tag.
    pub portal_group_tag: u16,
    /// The address that initiators are told instead.
    pub advertise: Option<SocketAddr>,
}

/// Why data from the control plane cannot be a directory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DirectoryError {
    /// Two targets have one name.
    #[error("there are two targets named {0}; give each target its own name")]
    DuplicateTarget(IscsiName),
    /// An alias that does not fit the protocol.
    #[error("the alias of target {0} must be at most 255 bytes without control characters")]
    Alias(IscsiName),
    /// A CHAP user name that does not fit the protocol.
    #[error("a CHAP user name must have 1 to 255 bytes and no control characters")]
    ChapUser,
    /// RFC 7143 section 12.1.3 forbids it: a reflected challenge would be answered.
    #[error("the secret of the initiator and the secret of the target must be different")]
    SameSecret,
}

impl Directory {
    /// A directory of these targets, reached at these portals; `discovery` is asked of initiators in discovery
    /// sessions.
    ///
    /// # Errors
    /// What is wrong with the data.
    pub fn new(
        mut targets: Vec<Target>,
        portals: Vec<Portal>,
        discovery: Authentication,
    ) -> Result<Directory, DirectoryError> {
        targets.sort_by(|a, b| a.name.cmp(&b.name));
        let mut by_name = HashMap::with_capacity(targets.len());
        let mut by_rule = RuleIndex::default();
        for (index, target) in targets.iter().enumerate() {
            if target.alias.as_ref().is_some_and(|alias| alias.len() > 255 || alias.chars().any(char::is_control)) {
                return Err(DirectoryError::Alias(target.name.clone()));
            }
            if by_name.insert(target.name.clone(), index).is_some() {
                return Err(DirectoryError::DuplicateTarget(target.name.clone()));
            }
            for rule in &target.access {
                by_rule.add(rule, index);
            }
        }
        Ok(Directory { targets, by_name, by_rule, portals, discovery })
    }

    /// The target with this name, in any case.
    #[must_use]
    pub fn target(&self, name: &str) -> Option<&Target> {
        let index = match self.by_name.get(name) {
            Some(index) => *index,
            None => *self.by_name.get(&IscsiName::foreign(name).ok()?)?,
        };
        self.targets.get(index)
    }

    /// All targets, in the order of their names.
    #[must_use]
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// The places in [`Self::targets`] of those that this initiator may see, rising.
    #[must_use]
    pub fn visible(&self, caller: &Caller<'_>) -> Vec<usize> {
        self.by_rule.fitting(caller)
    }

    /// All portals.
    #[must_use]
    pub fn portals(&self) -> &[Portal] {
        &self.portals
    }

    /// What initiators must prove in discovery sessions.
    #[must_use]
    pub fn discovery_authentication(&self) -> &Authentication {
        &self.discovery
    }
}

impl Target {
    /// Whether portals of this group lead to the target.
    #[must_use]
    pub fn is_reached_through(&self, portal_group_tag: u16) -> bool {
        self.portal_groups.is_empty() || self.portal_groups.contains(&portal_group_tag)
    }

    /// Whether this initiator may see and use the target.
    #[must_use]
    pub fn allows(&self, caller: &Caller<'_>) -> bool {
        self.access.iter().any(|rule| rule.fits(caller))
    }

    /// Where an initiator that came in at `local` is sent. What is said for a portal goes before what is said for all.
    #[must_use]
    pub fn redirect(&self, local: SocketAddr) -> Option<&Redirect> {
        let fits = |redirect: &&Redirect| redirect.applies_at(local);
        let narrowness = |redirect: &&Redirect| redirect.portal.map(|portal| !portal.ip().is_unspecified());
        self.redirects.iter().filter(fits).max_by_key(narrowness)
    }
}

impl Redirect {
    /// Whether it is meant for initiators that came in at this address of ours.
    #[must_use]
    pub fn applies_at(&self, local: SocketAddr) -> bool {
        self.portal.is_none_or(|portal| is_reached_as(local, portal))
    }
}

impl Portal {
    /// The address to tell an initiator that came in at `local`: the one that is to be told, or where the portal
    /// listens; a wildcard stands for the address that it already reaches. `None` when the portal cannot be reached by
    /// that address family.
    #[must_use]
    pub fn advertised(&self, local: IpAddr) -> Option<SocketAddr> {
        if self.advertise.is_some() {
            return self.advertise;
        }
        let listen = self.listen.ip().to_canonical();
        let local = local.to_canonical();
        if !listen.is_unspecified() {
            return Some(SocketAddr::new(listen, self.listen.port()));
        }
        // A socket on [::] takes IPv4 too; one on 0.0.0.0 does not take IPv6.
        (listen.is_ipv6() || local.is_ipv4()).then(|| SocketAddr::new(local, self.listen.port()))
    }
}

impl ChapCredentials {
    /// Initiators prove `initiator`; the target proves `target`, when there is one, to an initiator that asks.
    ///
    /// # Errors
    /// A name that does not fit, or one secret for both directions.
    pub fn new(initiator: ChapAccount, target: Option<ChapAccount>) -> Result<ChapCredentials, DirectoryError> {
        let fits = |account: &ChapAccount| {
            (1..=255).contains(&account.user.len()) && !account.user.chars().any(char::is_control)
        };
        if !fits(&initiator) || target.as_ref().is_some_and(|target| !fits(target)) {
            return Err(DirectoryError::ChapUser);
        }
        if target.as_ref().is_some_and(|target| target.secret == initiator.secret) {
            return Err(DirectoryError::SameSecret);
        }
        Ok(ChapCredentials { initiator, target, algorithms: Vec::new() })
    }

    /// The same with only these algorithms; with none, all that the server has.
    #[must_use]
    pub fn with_algorithms(self, algorithms: Vec<Algorithm>) -> ChapCredentials {
        ChapCredentials { algorithms, ..self }
    }

    /// Whether an algorithm may be used with these credentials.
    #[must_use]
    pub fn allows(&self, algorithm: Algorithm) -> bool {
        self.algorithms.is_empty() || self.algorithms.contains(&algorithm)
    }

    /// What the initiator must prove.
    #[must_use]
    pub fn initiator(&self) -> &ChapAccount {
        &self.initiator
    }

    /// What the target proves when asked.
    #[must_use]
    pub fn target(&self) -> Option<&ChapAccount> {
        self.target.as_ref()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn target(name: &str, access: &[&str]) -> Target {
        Target {
            id: TargetId(1),
            name: name.parse().unwrap(),
            alias: None,
            access: access.iter().map(|rule| rule.parse().unwrap()).collect(),
            authentication: Authentication::None,
            portal_groups: Vec::new(),
            redirects: Vec::new(),
            error_recovery_level: 0,
            connections_max: 1,
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_visible_is_what_is_allowed() {
        let rules = [
            "",
            "any",
            "iqn:iqn.host",
            "ip:10.0.0.0/8",
            "ip:10.0.0.77/24",
            "ip:10.0.0.1",
            "ip:0.0.0.0/0",
            "ip:::/0",
            "ip:2001:db8::5/64 any",
            "iqn:iqn.other ip:10.0.0.1/32 ip:10.0.0.1",
            "iqn:iqn.* iqn:iqn.h*",
            "iqn:iqn.othe*",
            "portal:10.0.0.9:3260",
            "portal:0.0.0.0:3260",
            "portal:[::]:3261",
        ];
        let named = |(n, rules): (usize, &&str)| {
            target(&format!("iqn.2026-11.io.x:t{n:02}"), &rules.split_whitespace().collect::<Vec<_>>())
        };
        let targets: Vec<Target> = rules.iter().enumerate().map(named).collect();
        let directory = Directory::new(targets, vec![], Authentication::None).unwrap();
        for name in ["iqn.host", "iqn.other", "iqn.stranger"] {
            let name = IscsiName::foreign(name).unwrap();
            for address in
                ["10.0.0.1", "10.0.0.2", "10.1.0.1", "192.0.2.1", "::ffff:10.0.0.1", "2001:db8::1", "fe80::1"]
            {
                for local in ["10.0.0.9:3260", "10.0.0.9:3261", "[::ffff:10.0.0.9]:3260", "[fd00::9]:3261"] {
                    let caller = Caller { name: &name, peer: ip(address), local: local.parse().unwrap() };
                    let allowed = |place: &usize| directory.targets()[*place].allows(&caller);
                    let expected: Vec<usize> = (0..rules.len()).filter(allowed).collect();
                    assert_eq!(directory.visible(&caller), expected, "{name} at {address} through {local}");
                }
            }
        }
    }

    #[test]
    fn targets_are_found_in_any_case_and_listed_in_order() {
        let targets = vec![target("iqn.2026-11.io.x:b", &[]), target("iqn.2026-11.io.x:a", &[])];
        let directory = Directory::new(targets.clone(), vec![], Authentication::None).unwrap();
        assert_eq!(directory.target("IQN.2026-11.io.x:B").unwrap().name.as_str(), "iqn.2026-11.io.x:b");
        assert!(directory.target("iqn.2026-11.io.x:c").is_none());
        assert!(directory.target("").is_none());
        let names: Vec<&str> = directory.targets().iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["iqn.2026-11.io.x:a", "iqn.2026-11.io.x:b"]);
        let twice = [targets.clone(), targets].concat();
        assert!(matches!(Directory::new(twice, vec![], Authentication::None), Err(DirectoryError::DuplicateTarget(_))));
    }

    #[test]
    fn one_secret_for_both_directions_is_refused() {
        let account = |secret: &str| ChapAccount { user: "u".into(), secret: Secret::new(secret.as_bytes()).unwrap() };
        let same = ChapCredentials::new(account("abcdefghijkl"), Some(account("abcdefghijkl")));
        assert_eq!(same.unwrap_err(), DirectoryError::SameSecret);
        assert!(ChapCredentials::new(account("abcdefghijkl"), Some(account("mnopqrstuvwx"))).is_ok());
        let nameless = ChapAccount { user: String::new(), ..account("abcdefghijkl") };
        assert_eq!(ChapCredentials::new(nameless, None).unwrap_err(), DirectoryError::ChapUser);
    }

    #[test]
    fn a_redirect_of_a_portal_goes_before_one_of_all() {
        let redirect = |portal: Option<&str>, address: &str| Redirect {
            portal: portal.map(|portal| portal.parse().unwrap()),
            address: address.into(),
            permanent: false,
        };
        let mut target = target("iqn.2026-11.io.x:a", &["any"]);
        let sent = |target: &Target, local: &str| target.redirect(local.parse().unwrap()).map(|r| r.address.clone());
        target.redirects = vec![redirect(Some("10.0.0.1:3260"), "one:1"), redirect(Some("0.0.0.0:3260"), "four:1")];
        assert_eq!(sent(&target, "10.0.0.1:3260").as_deref(), Some("one:1"));
        assert_eq!(sent(&target, "10.0.0.2:3260").as_deref(), Some("four:1"));
        assert_eq!(sent(&target, "[fd00::1]:3260"), None);
        target.redirects.insert(0, redirect(None, "all:1"));
        assert_eq!(sent(&target, "10.0.0.2:3260").as_deref(), Some("four:1"));
        assert_eq!(sent(&target, "[fd00::1]:3260").as_deref(), Some("all:1"));
    }

    #[test]
    fn a_wildcard_portal_is_advertised_as_the_address_that_was_reached() {
        let portal = |listen: &str| Portal {
            id: PortalId(0),
            listen: listen.parse().unwrap(),
            portal_group_tag: 1,
            advertise: None,
        };
        let advertised = |listen: &str, local: &str| portal(listen).advertised(ip(local)).map(|a| a.to_string());
        assert_eq!(advertised("10.0.0.1:3260", "10.9.9.9").as_deref(), Some("10.0.0.1:3260"));
        assert_eq!(advertised("0.0.0.0:3261", "10.9.9.9").as_deref(), Some("10.9.9.9:3261"));
        assert_eq!(advertised("[::]:3260", "::ffff:10.9.9.9").as_deref(), Some("10.9.9.9:3260"));
        assert_eq!(advertised("[::]:3260", "2001:db8::5").as_deref(), Some("[2001:db8::5]:3260"));
        assert_eq!(advertised("0.0.0.0:3260", "2001:db8::5"), None);
        let told = Portal { advertise: Some("203.0.113.5:860".parse().unwrap()), ..portal("10.0.0.1:3260") };
        assert_eq!(told.advertised(ip("10.9.9.9")).map(|a| a.to_string()).as_deref(), Some("203.0.113.5:860"));
    }
}
