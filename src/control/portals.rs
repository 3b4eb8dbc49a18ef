//! Commands on portals.

use std::io;
use std::net::SocketAddr;

use super::api;
use super::config::parse_portal;
use super::controller::{Controller, LivePortal};
use super::crash::step;
use super::dataplane::{ask_all, shards, tell};
use super::entrance::parse_advertised;
use super::error::Refused;
use super::ports::PORTAL_GROUP_DEFAULT;
use crate::shard::message::ToShard;
use crate::units::PortalId;

impl Controller {
    /// Listen on another portal.
    pub async fn portal_add(&mut self, new: api::NewPortal) -> Result<(), Refused> {
        let address = parse_portal(&new.address)?;
        let group = new.group.unwrap_or(PORTAL_GROUP_DEFAULT);
        let told = parse_advertised(new.advertise.as_deref())?;
        let mut config = self.config.clone();
        match told {
            Some(told) if told != address => drop(config.advertised.insert(address, told)),
            _ => drop(config.advertised.remove(&address)),
        }
        if let Some(portal) = self.portals.iter_mut().find(|portal| portal.address == address) {
            if !portal.temporary && told.is_none() {
                return Err(Refused::conflict(format!("portal {address} is there already")));
            }
            if new.group.is_some_and(|group| portal.group != group) {
                return Err(Refused::conflict(format!(
                    "portal {address} is in portal group {}; remove it first",
                    portal.group
                )));
            }
            // What listens for this run belongs to the configuration from now on.
            if std::mem::take(&mut portal.temporary) {
                config.portals.push(address);
            }
            self.persist(config).await?;
            return self.apply().await;
        }
        config.portals.push(address);
        if group != PORTAL_GROUP_DEFAULT {
            config.portal_groups.insert(address, group);
        }
        config.number_ports()?;
        config.check()?;
        let listeners = self.plane.listeners(address).map_err(|e| cannot_listen(address, &e))?;
        step("portal add: bound");
        self.persist(config).await?;
        step("portal add: persisted");
        self.listen(address, group, listeners, false).await;
        self.apply().await
    }

    /// Stop listening on a portal. Sessions that came through it stay.
    pub async fn portal_remove(&mut self, address: &str) -> Result<(), Refused> {
        let address = parse_portal(address)?;
        let Some(index) = self.portals.iter().position(|portal| portal.address == address) else {
            return Err(Refused::not_found(format!("there is no portal {address}; see 'lunaring portal list'")));
        };
        let mut config = self.config.clone();
        config.portals.retain(|portal| *portal != address);
        config.portal_groups.remove(&address);
        config.advertised.remove(&address);
        if config != self.config {
            self.persist(config).await?;
        }
        step("portal remove: persisted");
        let removed = self.portals.remove(index);
        if let Ok(portal) = removed.listening {
            ask_all(&*self.plane, |reply| ToShard::StopListening { portal, reply }).await?;
        }
        self.apply().await
    }

    /// Listen on the configuration's portals and on those of the command line.
    ///
    /// # Errors
    /// A portal of the command line cannot be listened on.
    pub async fn listen_all(&mut self, temporary: &[SocketAddr]) -> Result<(), Refused> {
        for address in temporary {
            if self.config.portals.contains(address) || self.portals.iter().any(|portal| portal.address == *address) {
                continue;
            }
            let listeners = self.plane.listeners(*address).map_err(|e| cannot_listen(*address, &e))?;
            self.listen(*address, PORTAL_GROUP_DEFAULT, listeners, true).await;
        }
        for address in self.config.portals.clone() {
            let group = self.config.group_of(address);
            match self.plane.listeners(address) {
                Ok(listeners) => self.listen(address, group, listeners, false).await,
                Err(e) if temporary.contains(&address) => return Err(cannot_listen(address, &e)),
                Err(e) => {
                    let listening = Err(cannot_listen(address, &e).message);
                    self.portals.push(LivePortal { address, group, listening, temporary: false });
                }
            }
        }
        self.apply().await
    }

    async fn listen(&mut self, address: SocketAddr, group: u16, listeners: Vec<std::os::fd::OwnedFd>, temporary: bool) {
        let portal: PortalId = self.portal_id();
        for (shard, listener) in shards(&*self.plane).zip(listeners) {
            tell(&*self.plane, shard, ToShard::Listen { portal, portal_group_tag: group, listener }).await;
        }
        self.portals.push(LivePortal { address, group, listening: Ok(portal), temporary });
    }
}

fn cannot_listen(address: SocketAddr, error: &io::Error) -> Refused {
    match error.kind() {
        io::ErrorKind::AddrInUse => Refused::conflict(format!(
            "cannot listen on {address}: the port is in use by another program; stop it, or choose another port"
        )),
        io::ErrorKind::AddrNotAvailable => Refused::conflict(format!(
            "cannot listen on {address}: this machine does not have that address; choose one of its own, or \
             0.0.0.0 or [::]"
        )),
        io::ErrorKind::PermissionDenied => Refused::failed(format!(
            "cannot listen on {address}: not permitted; use a port from 1024 on, or run the server as root"
        )),
        _ => Refused::failed(format!("cannot listen on {address}: {error}")),
    }
}
