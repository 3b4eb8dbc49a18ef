//! Commands on how initiators come in: authentication of discovery, CHAP algorithms, redirection.

use std::net::SocketAddr;

use super::api;
use super::config::{AuthConfig, Config, RedirectConfig, parse_algorithms, parse_portal};
use super::controller::Controller;
use super::error::Refused;
use super::targets::target_of;

impl AuthConfig {
    /// What a command says, in the form that is kept.
    ///
    /// # Errors
    /// An algorithm is not known.
    pub fn from_command(new: api::NewAuth) -> Result<AuthConfig, Refused> {
        let algorithms = parse_algorithms(&new.algorithms)?.iter().map(ToString::to_string).collect();
        Ok(AuthConfig {
            chap_user: new.chap_user,
            chap_secret: new.chap_secret,
            mutual_user: new.mutual_user,
            mutual_secret: new.mutual_secret,
            algorithms,
        })
    }
}

impl Controller {
    /// Demand CHAP in discovery sessions, or with `None` nothing.
    pub async fn discovery_auth(&mut self, new: Option<api::NewAuth>) -> Result<(), Refused> {
        let discovery_auth = new.map(AuthConfig::from_command).transpose()?;
        self.commit(Config { discovery_auth, ..self.config.clone() }).await
    }

    /// Allow only these CHAP algorithms; all, when there are none.
    pub async fn chap_algorithms(&mut self, new: api::ChapPolicy) -> Result<(), Refused> {
        let chap_algorithms = parse_algorithms(&new.algorithms)?.iter().map(ToString::to_string).collect();
        self.commit(Config { chap_algorithms, ..self.config.clone() }).await
    }

    /// Send initiators of a target elsewhere, in place of what was said for the same portal.
    pub async fn target_redirect(&mut self, target: &str, new: api::NewRedirect) -> Result<(), Refused> {
        let portal = new.portal.as_deref().map(parse_portal).transpose()?;
        let mut config = self.config.clone();
        let (_, target) = target_of(&mut config, target)?;
        target.redirects.retain(|redirect| redirect.portal != portal);
        target.redirects.push(RedirectConfig { to: new.to, permanent: new.permanent, portal });
        self.commit(config).await
    }

    /// Let initiators in again: all of them, or those that come in through a portal.
    pub async fn target_redirect_none(&mut self, target: &str, portal: Option<&str>) -> Result<(), Refused> {
        let portal = portal.map(parse_portal).transpose()?;
        let mut config = self.config.clone();
        let (name, target) = target_of(&mut config, target)?;
        let before = target.redirects.len();
        target.redirects.retain(|redirect| portal.is_some() && redirect.portal != portal);
        if let Some(portal) = portal.filter(|_| target.redirects.len() == before) {
            return Err(Refused::not_found(format!("target '{name}' has no redirection for portal {portal}")));
        }
        self.commit(config).await
    }
}

/// What a portal is to be told as.
///
/// # Errors
/// It is not an address with a port.
pub fn parse_advertised(told: Option<&str>) -> Result<Option<SocketAddr>, Refused> {
    told.map(parse_portal).transpose()
}
