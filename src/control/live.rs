//! Changing the files below disks that are being served: hold their commands, change, go on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::controller::{Controller, LiveDisk};
use super::crash::step;
use super::dataplane::{DataPlane, Owed, ask, shards};
use super::disks::open;
use super::error::Refused;
use super::executor::blocking;
use crate::blocks::Engine;
use crate::medium::{Disk, Health, Opened};
use crate::scsi::Attention;
use crate::shard::message::{DetachError, Hold, ToShard};

/// How long commands that are at work may take to end before a pause is given up.
const PAUSE_PATIENCE_MS: u64 = 1000;

/// How often a pause is tried, and how long commands run in between: a flush of a busy drive can take seconds.
const PAUSE_TRIES: u32 = 8;
const PAUSE_BETWEEN: Duration = Duration::from_millis(250);

/// What a disk becomes at the end of a pause.
pub(super) struct Swap {
    /// The new form, of the same number.
    pub opened: Opened,
    /// The old leaf's engine is closed beside the new one.
    pub retire: bool,
    /// What initiators are told.
    pub attention: Option<Attention>,
}

/// Told when the engine of an old leaf has closed.
pub(super) type Retired = Owed<Result<(), DetachError>>;

impl Controller {
    /// A disk that is open and sound.
    ///
    /// # Errors
    /// There is none of this name, or it is not.
    pub(super) fn online(&self, name: &str) -> Result<Arc<Disk>, Refused> {
        match self.disks.get(name) {
            Some(LiveDisk::Online(disk)) if disk.health() == Health::Good => Ok(Arc::clone(disk)),
            Some(LiveDisk::Online(_)) => Err(Refused::conflict(format!(
                "disk '{name}' has failed, so its files are left alone; see 'lunaring disk show {name}'"
            ))),
            Some(LiveDisk::Offline(why)) => Err(Refused::conflict(format!("disk '{name}' is offline: {why}"))),
            None => Err(Refused::not_found(format!("there is no disk '{name}'; see 'lunaring disk list'"))),
        }
    }

    /// Hold all commands of some disks, on every shard. Gives the moment from which all were held; those that change a
    /// disk's map wait a little longer, as they would for one another's flushes.
    ///
    /// # Errors
    /// Commands at work did not end in time; nothing is held.
    pub(super) async fn pause(&self, disks: &[Arc<Disk>]) -> Result<Instant, Refused> {
        for _ in 1..PAUSE_TRIES {
            match self.pause_once(disks).await {
                Ok(since) => return Ok(since),
                Err(_) => drop(async_io::Timer::after(PAUSE_BETWEEN).await),
            }
        }
        self.pause_once(disks).await
    }

    async fn pause_once(&self, disks: &[Arc<Disk>]) -> Result<Instant, Refused> {
        let mut since = Instant::now();
        for hold in [Hold::Changes, Hold::All] {
            since = Instant::now();
            if let Err(refused) = self.hold(disks, hold).await {
                self.resume(disks).await?;
                return Err(refused);
            }
        }
        Ok(since)
    }

    async fn hold(&self, disks: &[Arc<Disk>], hold: Hold) -> Result<(), Refused> {
        let mut owed = Vec::new();
        for disk in disks {
            for shard in shards(&*self.plane) {
                let (disk, patience_ms) = (disk.id(), PAUSE_PATIENCE_MS);
                owed.push(ask(&*self.plane, shard, |reply| ToShard::Pause { disk, hold, patience_ms, reply }).await);
            }
        }
        let mut outcome = Ok(());
        for owed in owed {
            if let Err(refused) = owed.wait().await.and_then(|paused| paused.map_err(Refused::failed)) {
                outcome = Err(refused);
            }
        }
        outcome
    }

    /// Let commands go on as before.
    pub(super) async fn resume(&self, disks: &[Arc<Disk>]) -> Result<(), Refused> {
        for disk in disks {
            for shard in shards(&*self.plane) {
                let disk = disk.id();
                ask(&*self.plane, shard, |reply| ToShard::Resume { disk, reply }).await.wait().await?;
            }
        }
        Ok(())
    }

    /// Close the engine of a paused disk: its file is clean then.
    pub(super) async fn close_engine(&self, disk: &Disk) -> Result<(), Refused> {
        let id = disk.id();
        let owed = ask(&*self.plane, disk.home(), |reply| ToShard::CloseEngine { disk: id, reply }).await;
        owed.wait().await?.map_err(Refused::failed)
    }

    /// Put new forms in the place of paused disks, and let commands go on. What is told when the old leaves have closed
    /// comes in the same order.
    ///
    /// # Errors
    /// A shard refuses. Disks that did not get their new form take no more writes.
    pub(super) async fn swap(&mut self, swaps: Vec<Swap>) -> Result<Vec<Option<Retired>>, Refused> {
        let plane = Arc::clone(&self.plane);
        let mut homes = Vec::with_capacity(swaps.len());
        for Swap { opened: Opened { disk, engine }, retire, attention } in swaps {
            let (told, retired) = futures_channel::oneshot::channel();
            let retired = retire.then(|| Owed::new(disk.home(), retired));
            let mut engine = engine;
            let mut told = retire.then_some(told);
            let home = disk.home();
            let of_home = Arc::clone(&disk);
            let owed = ask(&*plane, home, |reply| ToShard::Swap {
                disk: of_home,
                engine: engine.take(),
                retire,
                retired: told
                    .take()
                    .map(|told| -> crate::shard::message::Reply<_> { Box::new(move |closed| drop(told.send(closed))) }),
                attention,
                reply,
            });
            homes.push((disk, owed.await, retired, attention));
        }
        let mut outcome = Ok(());
        let mut all_retired = Vec::with_capacity(homes.len());
        let mut others = Vec::new();
        for (disk, owed, retired, attention) in homes {
            match owed.wait().await.and_then(|swapped| swapped.map_err(Refused::failed)) {
                Ok(()) => {
                    others.extend(swap_elsewhere(&*plane, &disk, attention).await);
                    self.disks.insert(disk.name().to_owned(), LiveDisk::Online(disk));
                    all_retired.push(retired);
                }
                Err(refused) => {
                    self.give_up(disk.name(), &refused).await?;
                    all_retired.push(None);
                    outcome = Err(refused);
                }
            }
        }
        for owed in others {
            owed.wait().await?.map_err(Refused::failed)?;
        }
        outcome.map(|()| all_retired)
    }

    /// A paused disk could not get its new form: it takes no more writes, for they would be lost.
    pub(super) async fn give_up(&mut self, name: &str, why: &Refused) -> Result<(), Refused> {
        if let Some(LiveDisk::Online(disk)) = self.disks.get(name).cloned() {
            disk.poison();
            tracing::error!("disk '{name}' takes no more writes: {why}; restart the server");
            self.resume(&[disk]).await?;
        }
        Ok(())
    }

    /// Close a disk's file for a moment in which its commands are held, do `work` on it, and open it again as the
    /// configuration in force says.
    ///
    /// # Errors
    /// What `work` says; the disk is then open again as it was. Or the disk cannot be opened again: it has failed.
    pub(super) async fn with_file_closed<T: Send + 'static>(
        &mut self,
        name: &str,
        attention: Option<Attention>,
        work: impl FnOnce() -> Result<T, Refused> + Send + 'static,
    ) -> Result<T, Refused> {
        let disk = self.online(name)?;
        self.pause(&[Arc::clone(&disk)]).await?;
        let closed = self.close_engine(&disk).await;
        step("file: closed");
        let done = match closed {
            Ok(()) => blocking(work).await,
            Err(refused) => Err(refused),
        };
        step("file: changed");
        let attention = attention.filter(|_| done.is_ok());
        match self.open_again(name, &disk).await {
            Ok(opened) => {
                self.swap(vec![Swap { opened, retire: false, attention }]).await?;
                self.publish();
                done
            }
            Err(refused) => {
                self.give_up(name, &refused).await?;
                Err(done.err().unwrap_or(refused))
            }
        }
    }

    /// Open the file of a disk whose engine is closed, under the same number.
    pub(super) async fn open_again(&mut self, name: &str, old: &Arc<Disk>) -> Result<Opened, Refused> {
        let Some(config) = self.config.disks.get(name).cloned() else {
            return Err(Refused::not_found(format!("there is no disk '{name}'")));
        };
        let mut spec = self.open_spec(name, &config);
        (spec.id, spec.home, spec.predecessor) = (old.id(), old.home(), Some(Arc::clone(old)));
        blocking(move || open(spec)).await
    }
}

/// Put a disk's new form in its place on the shards that are not its home.
async fn swap_elsewhere(
    plane: &dyn DataPlane,
    disk: &Arc<Disk>,
    attention: Option<Attention>,
) -> Vec<Owed<Result<(), DetachError>>> {
    let mut owed = Vec::new();
    for shard in shards(plane).filter(|shard| *shard != disk.home()) {
        let disk = Arc::clone(disk);
        let engine: Option<Box<dyn Engine>> = None;
        let swap = |reply| ToShard::Swap { disk, engine, retire: false, retired: None, attention, reply };
        owed.push(ask(plane, shard, swap).await);
    }
    owed
}
