//! How initiators come in, as the configuration says it: authentication, CHAP algorithms, redirection.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{Config, TargetConfig, check_portal};
use crate::control::error::Refused;
use crate::iscsi::chap::{ALGORITHMS, Algorithm, Secret};
use crate::iscsi::directory::{ChapAccount, ChapCredentials, Redirect};

/// CHAP names and secrets. `Debug` shows no secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthConfig {
    /// The name that an initiator proves.
    pub chap_user: String,
    /// Its secret.
    pub chap_secret: String,
    /// The name that the target proves in return.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mutual_user: Option<String>,
    /// Its secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mutual_secret: Option<String>,
    /// The algorithms that may be used, of those that the server allows; all of them, while it is empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub algorithms: Vec<String>,
}

/// Where targets and portals are registered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IsnsConfig {
    /// The iSNS server: an address or domain name, with a port.
    pub server: String,
    /// What this server is called there.
    pub entity: String,
}

/// Where initiators of a target are sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RedirectConfig {
    /// An address or domain name, with a port.
    pub to: String,
    /// They may remember it.
    #[serde(default, skip_serializing_if = "super::is_false")]
    pub permanent: bool,
    /// Only those that come in through this portal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub portal: Option<SocketAddr>,
}

impl std::fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthConfig")
            .field("chap_user", &self.chap_user)
            .field("mutual_user", &self.mutual_user)
            .field("algorithms", &self.algorithms)
            .finish_non_exhaustive()
    }
}

impl AuthConfig {
    /// The credentials as login uses them, on a server that allows these algorithms (all, when there are none).
    ///
    /// # Errors
    /// A name or secret that CHAP cannot use, or no algorithm that is left.
    pub fn credentials(&self, of_server: &[Algorithm]) -> Result<ChapCredentials, Refused> {
        let account = |user: &str, secret: &str| -> Result<ChapAccount, Refused> {
            let secret = Secret::new(secret.as_bytes()).map_err(Refused::invalid)?;
            Ok(ChapAccount { user: user.to_owned(), secret })
        };
        let initiator = account(&self.chap_user, &self.chap_secret)?;
        let target = match (&self.mutual_user, &self.mutual_secret) {
            (Some(user), Some(secret)) => Some(account(user, secret)?),
            (None, None) => None,
            _ => return Err(Refused::invalid("mutual CHAP needs both a user and a secret")),
        };
        let algorithms = self.algorithms_left(of_server)?;
        let credentials = ChapCredentials::new(initiator, target).map_err(Refused::invalid)?;
        Ok(credentials.with_algorithms(algorithms))
    }

    /// The algorithms that may be used, strong first.
    ///
    /// # Errors
    /// There is none, or one is not known.
    pub fn algorithms_left(&self, of_server: &[Algorithm]) -> Result<Vec<Algorithm>, Refused> {
        let own = parse_algorithms(&self.algorithms)?;
        let allowed = |list: &[Algorithm], algorithm| list.is_empty() || list.contains(&algorithm);
        let left = ALGORITHMS.into_iter().filter(|&one| allowed(&own, one) && allowed(of_server, one));
        let left: Vec<Algorithm> = left.collect();
        if left.is_empty() {
            return Err(Refused::conflict(format!(
                "no CHAP algorithm is left for '{}': it has {}, and the server allows {}; see 'lunaring chap show'",
                self.chap_user,
                names(&own),
                names(of_server)
            )));
        }
        Ok(left)
    }
}

/// Algorithms in words.
pub fn names(algorithms: &[Algorithm]) -> String {
    algorithms.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Read algorithms.
///
/// # Errors
/// One is not known.
pub fn parse_algorithms(names: &[String]) -> Result<Vec<Algorithm>, Refused> {
    names.iter().map(|name| name.parse().map_err(Refused::invalid)).collect()
}

impl RedirectConfig {
    /// As login uses it. An address that is a portal's own is told as that portal is.
    pub fn redirect(&self, config: &Config) -> Redirect {
        let own = self.to.parse().ok().and_then(|to: SocketAddr| config.advertised.get(&to));
        let address = own.map_or_else(|| self.to.clone(), ToString::to_string);
        Redirect { portal: self.portal, address, permanent: self.permanent }
    }

    /// Whether `to` is one of the ways in which initiators are told of this portal.
    fn leads_to(&self, portal: SocketAddr, config: &Config) -> bool {
        let to: Option<SocketAddr> = self.to.parse().ok();
        to.is_some() && [Some(&portal), config.advertised.get(&portal)].contains(&to.as_ref())
    }
}

impl Config {
    /// The CHAP algorithms that the server allows; all, when there are none.
    ///
    /// # Errors
    /// One is not known.
    pub fn server_algorithms(&self) -> Result<Vec<Algorithm>, Refused> {
        parse_algorithms(&self.chap_algorithms)
    }

    pub(super) fn check_entrance(&self) -> Result<(), Refused> {
        let of_server = self.server_algorithms()?;
        let of_targets = self.targets.values().filter_map(|target| target.auth.as_ref());
        for auth in of_targets.chain(&self.discovery_auth) {
            auth.credentials(&of_server)?;
        }
        if let Some(isns) = &self.isns {
            check_destination(&isns.server)?;
            if isns.entity.is_empty() || isns.entity.len() > 255 {
                return Err(Refused::invalid("the entity identifier of iSNS has 1 to 255 bytes"));
            }
        }
        for (portal, told) in &self.advertised {
            if !self.portals.contains(portal) {
                return Err(Refused::not_found(format!("there is no portal {portal} to advertise as {told}")));
            }
            check_portal(*told)?;
            if told.ip().is_unspecified() {
                return Err(Refused::invalid(format!(
                    "portal {portal} cannot be advertised as {told}: initiators need an address that they can reach"
                )));
            }
        }
        self.targets.iter().try_for_each(|(name, target)| self.check_redirects(name, target))
    }

    fn check_redirects(&self, name: &str, target: &TargetConfig) -> Result<(), Refused> {
        for redirect in &target.redirects {
            check_destination(&redirect.to)?;
            let sent_on = |portal: SocketAddr| target.redirects.iter().any(|r| r.redirect(self).applies_at(portal));
            if let Some(portal) = self.portals.iter().find(|&&p| redirect.leads_to(p, self) && sent_on(p)) {
                return Err(Refused::conflict(format!(
                    "initiators of target '{name}' would go round in circles: portal {portal} sends them on; redirect \
                     only the others, with --portal"
                )));
            }
        }
        Ok(())
    }
}

/// Whether this is an address or name with a port, to which initiators can be sent.
///
/// # Errors
/// How to write it.
pub fn check_destination(to: &str) -> Result<(), Refused> {
    let wrong = || {
        Refused::invalid(format!(
            "'{}' is not a place to send initiators to; write ADDRESS:PORT or NAME:PORT, for example 192.0.2.10:3260",
            to.escape_debug()
        ))
    };
    if let Ok(address) = to.parse::<SocketAddr>() {
        return if address.ip().is_unspecified() { Err(wrong()) } else { check_portal(address) };
    }
    let (host, port) = to.rsplit_once(':').ok_or_else(wrong)?;
    let named = (1..=255).contains(&host.len()) && host.chars().all(|c| c.is_ascii_alphanumeric() || "-.".contains(c));
    let port_fits = port.parse::<u16>().is_ok_and(|port| port > 0);
    if named && port_fits { Ok(()) } else { Err(wrong()) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn auth(algorithms: &[&str]) -> AuthConfig {
        AuthConfig {
            chap_user: "alice".into(),
            chap_secret: "secretsecret12".into(),
            mutual_user: None,
            mutual_secret: None,
            algorithms: algorithms.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    #[test]
    fn what_the_server_forbids_no_target_allows() {
        use Algorithm::{Md5, Sha3_256, Sha256};
        assert_eq!(auth(&[]).algorithms_left(&[]).unwrap(), ALGORITHMS);
        assert_eq!(auth(&[]).algorithms_left(&[Sha256]).unwrap(), [Sha256]);
        assert_eq!(auth(&["sha256", "sha3-256"]).algorithms_left(&[]).unwrap(), [Sha3_256, Sha256]);
        assert_eq!(auth(&["sha256", "md5"]).algorithms_left(&[Md5]).unwrap(), [Md5]);
        assert!(auth(&["md5"]).credentials(&[Sha256]).unwrap_err().message.contains("no CHAP algorithm is left"));
        assert!(auth(&["md4"]).credentials(&[]).unwrap_err().message.contains("'md4'"));
        assert!(!format!("{:?}", auth(&[])).contains("secretsecret"));
    }

    #[test]
    fn redirects_go_somewhere_and_not_round_in_circles() {
        let mut config = Config { portals: vec!["10.0.0.1:3260".parse().unwrap()], ..Config::default() };
        config.portals.push("10.0.0.2:3260".parse().unwrap());
        let redirect = |to: &str, portal: Option<&str>| RedirectConfig {
            to: to.into(),
            permanent: false,
            portal: portal.map(|portal| portal.parse().unwrap()),
        };
        let check = |config: &Config, redirects: Vec<RedirectConfig>| {
            config.check_redirects("t", &TargetConfig { redirects, ..TargetConfig::default() })
        };
        for to in ["10.0.0.9:3260", "[2001:db8::1]:3260", "array-2.example.com:3260"] {
            check(&config, vec![redirect(to, None)]).unwrap();
        }
        for to in ["", "10.0.0.9", ":3260", "host:", "host:0", "host:70000", "a b:1", "0.0.0.0:3260", "10.0.0.9:0"] {
            assert!(check(&config, vec![redirect(to, None)]).is_err(), "{to}");
        }
        let circles = |result: Result<(), Refused>| result.unwrap_err().message.contains("in circles");
        assert!(circles(check(&config, vec![redirect("10.0.0.1:3260", None)])));
        check(&config, vec![redirect("10.0.0.1:3260", Some("10.0.0.2:3260"))]).unwrap();
        let both =
            vec![redirect("10.0.0.1:3260", Some("10.0.0.2:3260")), redirect("10.0.0.2:3260", Some("10.0.0.1:3260"))];
        assert!(circles(check(&config, both)));
        config.advertised.insert("10.0.0.1:3260".parse().unwrap(), "203.0.113.1:3260".parse().unwrap());
        assert!(circles(check(&config, vec![redirect("203.0.113.1:3260", None)])));
        let sent = redirect("10.0.0.1:3260", Some("10.0.0.2:3260")).redirect(&config);
        assert_eq!(sent.address, "203.0.113.1:3260");
    }
}
