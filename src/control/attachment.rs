//! Many disks on their way to the shards and back: questions go out for all of them before the first answer is awaited.

use std::sync::Arc;

use super::beside::{self, Beside};
use super::config::DiskConfig;
use super::controller::{Controller, LiveDisk};
use super::dataplane::{DataPlane, ask, shards};
use super::disks::open;
use super::error::Refused;
use super::executor::blocking;
use super::ledger::Ledger;
use crate::medium::{Disk, OpenSpec, Opened};
use crate::scsi::reservations::Reservations;
use crate::shard::message::ToShard;

/// Disks that are opened before they are attached: bounds the answers that are owed at once.
const BATCH: usize = 256;

/// Threads that open disks at once: opening reads a few places of a file, and mostly waits for the drive.
const OPENERS: usize = 8;

impl Controller {
    /// Open and attach every disk of the configuration. One that cannot be opened is offline, and says why.
    ///
    /// # Errors
    /// The shards do not answer.
    pub(super) async fn bring_up(&mut self) -> Result<(), Refused> {
        let disks: Vec<(String, DiskConfig)> =
            self.config.disks.iter().map(|(name, disk)| (name.clone(), disk.clone())).collect();
        for batch in disks.chunks(BATCH) {
            let specs: Vec<OpenSpec> = batch.iter().map(|(name, disk)| self.open_spec(name, disk)).collect();
            let openers: Vec<_> = specs
                .chunks(BATCH / OPENERS)
                .map(<[OpenSpec]>::to_vec)
                .map(|specs| blocking(move || specs.into_iter().map(open).collect::<Vec<_>>()))
                .collect();
            let mut results = Vec::with_capacity(batch.len());
            for opener in openers {
                results.extend(opener.await);
            }
            let mut opened = Vec::with_capacity(batch.len());
            for ((name, _), result) in batch.iter().zip(results) {
                match result {
                    Ok(disk) => opened.push(disk),
                    Err(refused) => {
                        self.disks.insert(name.clone(), LiveDisk::Offline(refused.message));
                    }
                }
            }
            for disk in self.attach(opened).await? {
                self.disks.insert(disk.name().to_owned(), LiveDisk::Online(disk));
            }
        }
        Ok(())
    }
}

impl Controller {
    /// Make open disks known to every shard, with the reservations that outlasted the last end of the server.
    ///
    /// # Errors
    /// The shards do not answer.
    pub(super) async fn attach(&mut self, opened: Vec<Opened>) -> Result<Vec<Arc<Disk>>, Refused> {
        let look = opened.iter().map(|Opened { disk, .. }| {
            let images = disk.layers().iter().map(|layer| layer.path().to_owned());
            beside::search(&self.state, &self.config, disk.name(), images)
        });
        let look: Vec<_> = look.collect();
        let found = blocking(move || look.iter().map(beside::find).collect::<Vec<Option<Beside>>>()).await;
        let places = opened
            .iter()
            .zip(&found)
            .filter_map(|(Opened { disk, .. }, found)| Some((disk.name().to_owned(), found.as_ref()?.path.clone())));
        self.record_places(places.collect()).await;
        attach(&*self.plane, &mut self.ledger, opened, found).await
    }
}

/// Make open disks known to every shard, with what was found beside each.
async fn attach(
    plane: &dyn DataPlane,
    ledger: &mut Ledger,
    opened: Vec<Opened>,
    found: Vec<Option<Beside>>,
) -> Result<Vec<Arc<Disk>>, Refused> {
    let mut disks = Vec::with_capacity(opened.len());
    let mut owed = Vec::new();
    for (Opened { disk, mut engine }, beside) in opened.into_iter().zip(found) {
        let home = disk.home();
        for shard in shards(plane) {
            let engine = if shard == disk.home() { engine.take() } else { None };
            let disk = Arc::clone(&disk);
            owed.push(ask(plane, shard, |reply| ToShard::Attach { disk, engine, reply }).await);
        }
        let (reservations, store) = ledger.of(&disk, beside);
        let mut store = Some(store);
        for shard in shards(plane) {
            let (disk, reservations) = (disk.id(), Arc::clone(&reservations));
            let store = if shard == home { store.take() } else { None };
            if store.is_some() || *reservations != Reservations::new() {
                let remember = |reply| ToShard::Remember { disk, reservations, store, reply };
                owed.push(ask(plane, shard, remember).await);
            }
        }
        disks.push(disk);
    }
    for owed in owed {
        owed.wait().await?;
    }
    Ok(disks)
}

/// Make every shard forget disks that no LUN names, each disk's home shard last. Gives what went wrong with their
/// files.
pub(super) async fn detach<'a>(
    plane: &dyn DataPlane,
    disks: impl IntoIterator<Item = &'a Disk>,
) -> Vec<(&'a Disk, Refused)> {
    let disks: Vec<&Disk> = disks.into_iter().collect();
    let mut troubles = Vec::new();
    for batch in disks.chunks(BATCH) {
        for at_home in [false, true] {
            let mut owed = Vec::new();
            for &disk in batch {
                let id = disk.id();
                for shard in shards(plane).filter(|shard| (*shard == disk.home()) == at_home) {
                    owed.push((disk, ask(plane, shard, |reply| ToShard::Detach { disk: id, reply }).await));
                }
            }
            for (disk, owed) in owed {
                let detached = owed.wait().await.and_then(|detached| detached.map_err(Refused::failed));
                if let Err(refused) = detached {
                    troubles.push((disk, refused));
                }
            }
        }
    }
    troubles
}
