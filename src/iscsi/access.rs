//! Access rules: which initiators are meant, by their name, their address, or the portal that they come in through.
//!
//! Written `any`, `iqn:NAME`, `iqn:BEGINNING*`, `ip:ADDRESS/BITS` and `portal:ADDRESS:PORT`.

#![forbid(unsafe_code)]

use super::names::{IscsiName, NameError};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

/// An initiator at the door.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// InitiatorName.
    pub name: &'a IscsiName,
    /// Where it comes from.
    pub peer: IpAddr,
    /// The address of ours that it reached.
    pub local: SocketAddr,
}

/// Which initiators are meant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum AccessRule {
    /// The initiator with this name.
    InitiatorName(IscsiName),
    /// Initiators whose names begin so; lower case.
    InitiatorPrefix(String),
    /// Initiators at these addresses.
    Network(Network),
    /// Initiators that come in at this address of ours; the unspecified address means all of its family.
    Portal(SocketAddr),
    /// Everyone.
    Any,
}

/// How narrow a rule is: of two rules that fit an initiator, the greater one is meant more specially.
pub type Rank = (u8, u16);

/// A range of IP addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network {
    address: IpAddr,
    prefix_bits: u8,
}

/// Why an access rule was not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessRuleError {
    /// No known form.
    #[error(
        "'{0}' is not an access rule; write iqn:INITIATOR-NAME (or its beginning and *), ip:ADDRESS/BITS, \
         portal:ADDRESS:PORT or any"
    )]
    Form(String),
    /// The initiator name is wrong.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The beginning of an initiator name is wrong.
    #[error("'{0}' is not the beginning of initiator names; write for example iqn:iqn.1991-05.com.microsoft:*")]
    Prefix(String),
    /// The address is wrong.
    #[error("'{0}' is not a range of addresses; write for example ip:10.0.0.0/24, ip:10.0.0.7 or ip:fd00::/64")]
    Network(String),
    /// The portal is wrong.
    #[error("'{0}' is not a portal; write for example portal:10.0.0.1:3260 or portal:[fd00::1]:3260")]
    Portal(String),
}

impl AccessRule {
    /// Whether this initiator is meant.
    #[must_use]
    pub fn fits(&self, caller: &Caller<'_>) -> bool {
        match self {
            AccessRule::InitiatorName(name) => name == caller.name,
            AccessRule::InitiatorPrefix(prefix) => caller.name.as_str().starts_with(prefix.as_str()),
            AccessRule::Network(network) => network.contains(caller.peer),
            AccessRule::Portal(portal) => is_reached_as(caller.local, *portal),
            AccessRule::Any => true,
        }
    }

    /// How narrow the rule is: a name before a beginning of names, that before addresses, those before portals.
    #[must_use]
    pub fn rank(&self) -> Rank {
        match self {
            AccessRule::InitiatorName(_) => (4, 0),
            AccessRule::InitiatorPrefix(prefix) => (3, u16::try_from(prefix.len()).unwrap_or(u16::MAX)),
            AccessRule::Network(network) => (2, u16::from(network.prefix_bits)),
            AccessRule::Portal(portal) => (1, u16::from(!portal.ip().is_unspecified())),
            AccessRule::Any => (0, 0),
        }
    }

    /// The one writing of rules that mean the same.
    fn without_host_bits(&self) -> AccessRule {
        match self {
            AccessRule::Network(network) => AccessRule::Network(network.without_host_bits()),
            _ => self.clone(),
        }
    }
}

/// Whether who reached this address of ours is meant by a portal; the unspecified address means all of its family.
pub(super) fn is_reached_as(local: SocketAddr, portal: SocketAddr) -> bool {
    reached_as(local).contains(&portal)
}

/// What a portal rule may say of an initiator that reached this address.
fn reached_as(local: SocketAddr) -> [SocketAddr; 2] {
    let address = local.ip().to_canonical();
    let all = match address {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    [SocketAddr::new(address, local.port()), SocketAddr::new(all, local.port())]
}

/// Places, by the rules that open them: found without looking at those that stay closed.
#[derive(Debug, Default)]
pub(super) struct RuleIndex {
    by_rule: HashMap<AccessRule, Vec<usize>>,
    by_prefix: HashMap<String, Vec<usize>>,
}

impl RuleIndex {
    /// A rule opens a place.
    pub(super) fn add(&mut self, rule: &AccessRule, place: usize) {
        match rule {
            AccessRule::InitiatorPrefix(prefix) => self.by_prefix.entry(prefix.clone()).or_default().push(place),
            _ => self.by_rule.entry(rule.without_host_bits()).or_default().push(place),
        }
    }

    /// The places that are open to this initiator, rising.
    pub(super) fn fitting(&self, caller: &Caller<'_>) -> Vec<usize> {
        let mut places = Vec::new();
        let mut open = |rule: &AccessRule| places.extend(self.by_rule.get(rule).into_iter().flatten());
        open(&AccessRule::Any);
        open(&AccessRule::InitiatorName(caller.name.clone()));
        let address = caller.peer.to_canonical();
        for prefix_bits in 0..=address_bits(address) {
            open(&AccessRule::Network(Network { address, prefix_bits }.without_host_bits()));
        }
        for portal in reached_as(caller.local) {
            open(&AccessRule::Portal(portal));
        }
        if !self.by_prefix.is_empty() {
            let name = caller.name.as_str();
            let beginnings =
                name.char_indices().map(|(end, _)| end).chain([name.len()]).filter_map(|end| name.get(..end));
            places.extend(beginnings.filter_map(|beginning| self.by_prefix.get(beginning)).flatten());
        }
        places.sort_unstable();
        places.dedup();
        places
    }
}

impl Network {
    /// The addresses that agree with `address` in their first `prefix_bits` bits; `None` when there are not so many
    /// bits.
    #[must_use]
    pub fn new(address: IpAddr, prefix_bits: u8) -> Option<Network> {
        (prefix_bits <= address_bits(address)).then_some(Network { address, prefix_bits })
    }

    fn without_host_bits(self) -> Network {
        let host_bits = u32::from(address_bits(self.address) - self.prefix_bits);
        let address = match self.address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(host_bits).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() & mask))
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & mask))
            }
        };
        Network { address, ..self }
    }

    /// Whether the address is in the range. An IPv4 address that arrives as IPv4-mapped IPv6 counts as IPv4.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let (ours, theirs, unused_bits) = match (self.address, address.to_canonical()) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                (u128::from(ours.to_bits()), u128::from(theirs.to_bits()), 32 - u32::from(self.prefix_bits))
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => {
                (ours.to_bits(), theirs.to_bits(), 128 - u32::from(self.prefix_bits))
            }
            _ => return false,
        };
        (ours ^ theirs).checked_shr(unused_bits).unwrap_or(0) == 0
    }
}

fn address_bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl FromStr for Network {
    type Err = AccessRuleError;

    fn from_str(text: &str) -> Result<Network, AccessRuleError> {
        let wrong = || AccessRuleError::Network(text.to_owned());
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let prefix_bits = match bits {
            Some(bits) if bits.bytes().all(|b| b.is_ascii_digit()) => bits.parse().map_err(|_| wrong())?,
            Some(_) => return Err(wrong()),
            None if address.is_ipv4() => 32,
            None => 128,
        };
        Network::new(address, prefix_bits).ok_or_else(wrong)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_bits)
    }
}

impl FromStr for AccessRule {
    type Err = AccessRuleError;

    /// `iqn:NAME`, `iqn:BEGINNING*`, `ip:CIDR`, `portal:ADDRESS:PORT` or `any`.
    fn from_str(text: &str) -> Result<AccessRule, AccessRuleError> {
        if text == "any" {
            Ok(AccessRule::Any)
        } else if let Some(name) = text.strip_prefix("iqn:") {
            match name.strip_suffix('*') {
                Some(beginning) => prefix(beginning).map(AccessRule::InitiatorPrefix),
                None => Ok(AccessRule::InitiatorName(IscsiName::foreign(name)?)),
            }
        } else if let Some(network) = text.strip_prefix("ip:") {
            Ok(AccessRule::Network(network.parse()?))
        } else if let Some(portal) = text.strip_prefix("portal:") {
            let portal: SocketAddr = portal.parse().map_err(|_| AccessRuleError::Portal(portal.to_owned()))?;
            Ok(AccessRule::Portal(SocketAddr::new(portal.ip().to_canonical(), portal.port())))
        } else {
            Err(AccessRuleError::Form(text.to_owned()))
        }
    }
}

/// The beginning of names in their normal form.
fn prefix(text: &str) -> Result<String, AccessRuleError> {
    let wrong = || AccessRuleError::Prefix(format!("{text}*"));
    let beginning = text.to_lowercase();
    let typed = ["iqn.", "eui.", "naa."].iter().any(|prefix| beginning.starts_with(prefix));
    let possible = beginning.chars().all(|c| !c.is_control() && !c.is_whitespace() && !matches!(c, ',' | '*'));
    (typed && possible && beginning.len() <= super::names::NAME_BYTES_MAX).then_some(beginning).ok_or_else(wrong)
}

impl fmt::Display for AccessRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AccessRule::InitiatorName(name) => write!(f, "iqn:{name}"),
            AccessRule::InitiatorPrefix(prefix) => write!(f, "iqn:{prefix}*"),
            AccessRule::Network(network) => write!(f, "ip:{network}"),
            AccessRule::Portal(portal) => write!(f, "portal:{portal}"),
            AccessRule::Any => f.write_str("any"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn fits(rules: &[&str], peer: &str, local: &str) -> bool {
        let name = IscsiName::foreign("iqn.1991-05.com.microsoft:host").unwrap();
        let caller = Caller { name: &name, peer: peer.parse().unwrap(), local: local.parse().unwrap() };
        rules.iter().any(|rule| rule.parse::<AccessRule>().unwrap().fits(&caller))
    }

    #[test]
    fn names_and_addresses_fit_or_do_not() {
        let allows = |rules: &[&str], address: &str| fits(rules, address, "10.0.0.9:3260");
        assert!(!allows(&[], "10.0.0.1"));
        assert!(allows(&["any"], "10.0.0.1"));
        assert!(allows(&["iqn:IQN.1991-05.com.Microsoft:HOST"], "10.0.0.1"));
        assert!(!allows(&["iqn:iqn.1991-05.com.microsoft:host2"], "10.0.0.1"));
        assert!(allows(&["iqn:iqn.1991-05.com.Microsoft:*"], "10.0.0.1"));
        assert!(allows(&["iqn:iqn.1991-05.com.microsoft:host*"], "10.0.0.1"));
        assert!(!allows(&["iqn:iqn.1991-05.com.microsoft:host2*"], "10.0.0.1"));
        assert!(allows(&["ip:10.0.0.0/24"], "10.0.0.255"));
        assert!(!allows(&["ip:10.0.0.0/24"], "10.0.1.0"));
        assert!(allows(&["ip:10.0.0.0/24"], "::ffff:10.0.0.3"));
        assert!(allows(&["ip:10.0.0.7"], "10.0.0.7"));
        assert!(!allows(&["ip:10.0.0.7"], "10.0.0.6"));
        assert!(allows(&["ip:0.0.0.0/0"], "203.0.113.9"));
        assert!(!allows(&["ip:0.0.0.0/0"], "2001:db8::1"));
        assert!(allows(&["ip:2001:db8::/32"], "2001:db8:ffff::1"));
        assert!(!allows(&["ip:2001:db8::/32"], "2001:db9::1"));
        assert!(allows(&["ip:::/0"], "2001:db9::1"));
        assert!(allows(&["iqn:iqn.other", "ip:10.0.0.1"], "10.0.0.1"));
    }

    #[test]
    fn a_portal_is_the_address_that_was_reached() {
        let through = |rule: &str, local: &str| fits(&[rule], "192.0.2.1", local);
        assert!(through("portal:10.0.0.9:3260", "10.0.0.9:3260"));
        assert!(through("portal:10.0.0.9:3260", "[::ffff:10.0.0.9]:3260"));
        assert!(!through("portal:10.0.0.9:3260", "10.0.0.9:3261"));
        assert!(!through("portal:10.0.0.9:3260", "10.0.0.8:3260"));
        assert!(through("portal:0.0.0.0:3260", "10.0.0.8:3260"));
        assert!(!through("portal:0.0.0.0:3260", "[fd00::1]:3260"));
        assert!(through("portal:[::]:3260", "[fd00::1]:3260"));
    }

    #[test]
    fn the_narrower_rule_has_the_higher_rank() {
        let rules = [
            "any",
            "portal:0.0.0.0:3260",
            "portal:10.0.0.1:3260",
            "ip:10.0.0.0/8",
            "ip:10.0.0.0/24",
            "iqn:iqn.x*",
            "iqn:iqn.xyz*",
            "iqn:iqn.xyz",
        ];
        let ranks: Vec<Rank> = rules.iter().map(|rule| rule.parse::<AccessRule>().unwrap().rank()).collect();
        assert!(ranks.is_sorted_by(|a, b| a < b), "{ranks:?}");
    }

    #[test]
    fn access_rules_print_as_they_are_written_and_bad_ones_are_named() {
        for rule in [
            "any",
            "ip:10.0.0.0/24",
            "ip:2001:db8::/32",
            "iqn:iqn.1991-05.com.microsoft:host",
            "iqn:iqn.1991-05.com.microsoft:*",
            "portal:10.0.0.1:3260",
            "portal:[fd00::1]:3260",
        ] {
            assert_eq!(rule.parse::<AccessRule>().unwrap().to_string(), rule);
        }
        for rule in [
            "",
            "ANY",
            "10.0.0.1",
            "ip:",
            "ip:10.0.0.0/33",
            "ip:10.0.0/8",
            "ip:::/129",
            "ip:10.0.0.0/+8",
            "ip:10.0.0.0/",
            "iqn:",
            "iqn:host",
            "iqn:*",
            "iqn:iqn.a*b*",
            "iqn:iqn.a b*",
            "portal:10.0.0.1",
            "portal:host:3260",
        ] {
            assert!(rule.parse::<AccessRule>().is_err(), "{rule}");
        }
    }
}
