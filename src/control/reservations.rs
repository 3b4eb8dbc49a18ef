//! Reservations of disks as the operator sees them, and how he takes them off.

use std::sync::Arc;

use super::api;
use super::config::Config;
use super::controller::{Handle, LiveDisk};
use super::dataplane::ask;
use super::error::Refused;
use crate::medium::Disk;
use crate::scsi::reservations::{Nexus, ReservationKind, Reservations};
use crate::shard::message::ToShard;

impl Handle {
    /// The reservations of a disk.
    ///
    /// # Errors
    /// There is no such disk, or it is offline.
    pub async fn reservations(&self, name: &str) -> Result<api::Reservations, Refused> {
        let disk = self.online(name)?;
        let id = disk.id();
        let owed = ask(&*self.plane, disk.home(), |reply| ToShard::ReportReservations { disk: id, reply }).await;
        let Some(reservations) = owed.wait().await? else {
            return Err(Refused::conflict(format!("disk '{name}' is being deleted")));
        };
        Ok(api_reservations(name, &reservations, &self.view().config))
    }

    /// Take every registration and reservation off a disk. Its initiators are told.
    ///
    /// # Errors
    /// There is no such disk, it is offline, or it cannot be made durable.
    pub async fn reservations_clear(&self, name: &str) -> Result<(), Refused> {
        let disk = self.online(name)?;
        let id = disk.id();
        let owed = ask(&*self.plane, disk.home(), |reply| ToShard::ClearReservations { disk: id, reply }).await;
        owed.wait().await?.map_err(|error| Refused::failed(format!("the reservations of disk '{name}' stay: {error}")))
    }

    fn online(&self, name: &str) -> Result<Arc<Disk>, Refused> {
        match self.view().disks.get(name) {
            Some(LiveDisk::Online(disk)) => Ok(Arc::clone(disk)),
            Some(LiveDisk::Offline(why)) => Err(Refused::conflict(format!("disk '{name}' is offline: {why}"))),
            None => Err(Refused::not_found(format!("there is no disk '{name}'; see 'lunaring disk list'"))),
        }
    }
}

fn api_reservations(name: &str, reservations: &Reservations, config: &Config) -> api::Reservations {
    let registration = |nexus: &Nexus, key: Option<u64>, holder: bool| {
        let port = config.targets.iter().find_map(|(target, of)| {
            let port = of.ports.iter().find(|(_, port)| port.number == nexus.target_port)?;
            Some((target.clone(), *port.0))
        });
        api::Registration {
            initiator: String::from_utf8_lossy(nexus.initiator.name()).into_owned(),
            isid: nexus.initiator.isid().iter().map(|byte| format!("{byte:02x}")).collect(),
            target_port: nexus.target_port,
            group: port.as_ref().map(|(_, group)| *group),
            target: port.map(|(target, _)| target),
            key: key.map(|key| format!("{key:#018x}")),
            holder,
        }
    };
    let kind = reservations.reservation().map(|kind| match kind {
        ReservationKind::WriteExclusive => "write-exclusive",
        ReservationKind::ExclusiveAccess => "exclusive-access",
        ReservationKind::WriteExclusiveRegistrantsOnly => "write-exclusive-registrants-only",
        ReservationKind::ExclusiveAccessRegistrantsOnly => "exclusive-access-registrants-only",
        ReservationKind::WriteExclusiveAllRegistrants => "write-exclusive-all-registrants",
        ReservationKind::ExclusiveAccessAllRegistrants => "exclusive-access-all-registrants",
    });
    let of = |(nexus, key): (&Nexus, u64)| registration(nexus, Some(key), reservations.is_held_by(nexus));
    api::Reservations {
        disk: name.to_owned(),
        kind: kind.map(str::to_owned),
        generation: reservations.generation(),
        persistent: reservations.persists(),
        registrations: reservations.registrations().map(of).collect(),
        reserved_by: reservations.reserved_by().map(|nexus| registration(nexus, None, true)),
    }
}
