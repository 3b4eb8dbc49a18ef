//! What initiators change and want kept: shards hand it over, and hear when it is in `config.json`. And places for
//! reservations that have to last, which shards ask for.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_channel::mpsc;
use futures_lite::StreamExt;

use super::beside::{self, Beside};
use super::controller::{Controller, Job, LiveDisk};
use super::dataplane::{DataPlane, tell};
use super::executor::{self, blocking};
use crate::medium::Disk;
use crate::shard::{DiskSettings, Keep, Keeper, Kept, PlaceMaker, PlaceWanted, ReservationStore, ToShard, Unfinished};
use crate::units::DiskId;

/// What may wait besides one from each that has something at once: shards bound how much they want kept.
const WAITING_MAX: usize = 16;

/// How long a file beside a disk may take to be made: an initiator waits for it.
const MAKING_MAX: Duration = Duration::from_secs(10);

/// Where shards put what they want kept, and where it comes out as commands.
pub(super) fn keeper() -> (Keeper, mpsc::Sender<Job>, mpsc::Receiver<Job>) {
    let (sender, receiver) = mpsc::channel::<Job>(WAITING_MAX);
    let jobs = sender.clone();
    let put = move |keep: Keep| {
        let job: Job = Box::new(move |controller| Box::pin(controller.keep(keep)));
        sender.clone().try_send(job).is_ok()
    };
    (Keeper(Arc::new(put)), jobs, receiver)
}

/// Who is asked for places that go with disks, and where the questions come out.
pub(super) fn place_maker() -> (PlaceMaker, mpsc::Receiver<PlaceWanted>) {
    let (sender, receiver) = mpsc::channel::<PlaceWanted>(WAITING_MAX);
    (PlaceMaker(Arc::new(move |wanted| sender.clone().try_send(wanted).is_ok())), receiver)
}

/// Make the places that shards ask for, each by itself: a file system that hangs holds up no other disk. It waits for
/// no command: one of those may wait for a shard that asks.
pub(super) async fn make_places(
    plane: Arc<dyn DataPlane>,
    mut wanted: mpsc::Receiver<PlaceWanted>,
    record: mpsc::Sender<Job>,
) {
    while let Some(wanted) = wanted.next().await {
        // A disk that gets none does not ask again while it is attached, so there is one of these for each at most.
        executor::spawn(make_place(Arc::clone(&plane), wanted, record.clone()));
    }
}

/// Make one, and say where it is; or, when it cannot be made in time, that there is none.
async fn make_place(plane: Arc<dyn DataPlane>, wanted: PlaceWanted, mut record: mpsc::Sender<Job>) {
    let PlaceWanted { disk, sequence } = wanted;
    let (of, home, id) = (Arc::clone(&disk), disk.home(), disk.id());
    let making = blocking(move || beside::make(&of).map(|made| place_in(made, &of, sequence)));
    let late = async {
        async_io::Timer::after(MAKING_MAX).await;
        Err(io::Error::new(io::ErrorKind::TimedOut, "the file system does not answer"))
    };
    // What is made too late is closed where it was made, and stays empty: the next start finds it, and uses it.
    let store = match futures_lite::future::or(making, late).await {
        Ok((path, store)) => {
            let job: Job = Box::new(move |controller| Box::pin(controller.record_place(id, path)));
            // Without a record it is found beside the disk at the next start, by what a shard has written to it.
            let _ = record.try_send(job);
            Some(store)
        }
        Err(error) => {
            let name = disk.name();
            tracing::warn!(
                "no file can be made beside disk '{name}' ({error}): its reservations are kept in the server's state \
                 folder, and do not go where the disk goes"
            );
            None
        }
    };
    drop(disk);
    tell(&*plane, home, ToShard::Place { disk: id, store }).await;
}

/// The place in a new file, or in one that was left there: what was kept elsewhere so far is newer.
fn place_in(made: Beside, disk: &Disk, sequence: u64) -> (PathBuf, ReservationStore) {
    let sequence = made.kept.as_ref().map_or(sequence, |kept| kept.sequence.max(sequence));
    (made.path.clone(), made.store(beside::owner(disk), sequence))
}

impl Controller {
    /// Keep in mind where the reservations of a disk are.
    async fn record_place(&mut self, disk: DiskId, path: PathBuf) {
        let named = self.disks.iter().find(|(_, live)| matches!(live, LiveDisk::Online(online) if online.id() == disk));
        if let Some(name) = named.map(|(name, _)| name.clone()) {
            self.record_places(vec![(name, path)]).await;
            self.publish();
        }
    }

    /// Keep in mind where the reservations of these disks are: it holds when names say no more whose a file is, for
    /// another disk has come that has the same identity.
    pub(super) async fn record_places(&mut self, places: Vec<(String, PathBuf)>) {
        let mut config = self.config.clone();
        let mut is_new = false;
        for (name, path) in places {
            let Some(entry) = config.disks.get_mut(&name) else { continue };
            let recorded = entry.reservations.replace(self.state.relative(&path));
            is_new |= recorded != entry.reservations;
        }
        if !is_new {
            return;
        }
        if let Err(refused) = self.persist(config).await {
            tracing::warn!("where the reservations of disks are could not be kept: {refused}");
        }
    }

    /// Keep what a shard wants kept, and say so.
    async fn keep(&mut self, keep: Keep) {
        let is_kept = self.try_keep(keep.disk, keep.kept).await;
        tell(&*self.plane, keep.home, ToShard::Kept { ticket: keep.ticket, is_kept }).await;
    }

    async fn try_keep(&mut self, disk: DiskId, kept: Kept) -> bool {
        let named = self.disks.iter().find(|(_, live)| matches!(live, LiveDisk::Online(online) if online.id() == disk));
        let Some(name) = named.map(|(name, _)| name.clone()) else { return false };
        let mut config = self.config.clone();
        let Some(entry) = config.disks.get_mut(&name) else { return false };
        entry.settings.write_cache = kept.write_cache;
        entry.settings.software_write_protect = kept.write_protection;
        entry.settings.unformatted = kept.unfinished == Some(Unfinished::Format);
        entry.settings.unsanitized = match kept.unfinished {
            Some(Unfinished::Sanitize { may_exit }) => Some(may_exit),
            Some(Unfinished::Format) | None => None,
        };
        match self.persist(config).await {
            Ok(()) => {
                self.publish();
                true
            }
            Err(refused) => {
                tracing::warn!("what an initiator has set on disk '{name}' could not be kept: {refused}");
                false
            }
        }
    }

    /// The settings of all disks that are online, in the shards' terms.
    pub(super) fn disk_settings(&self) -> HashMap<DiskId, DiskSettings> {
        let online = self.disks.iter().filter_map(|(name, live)| match live {
            LiveDisk::Online(disk) => Some((disk.id(), self.config.disks.get(name)?)),
            LiveDisk::Offline(_) => None,
        });
        online
            .map(|(id, disk)| {
                let set = &disk.settings;
                let kept = Kept {
                    write_cache: set.write_cache,
                    write_protection: set.software_write_protect,
                    unfinished: set.unsanitized.map_or(set.unformatted.then_some(Unfinished::Format), |may_exit| {
                        Some(Unfinished::Sanitize { may_exit })
                    }),
                };
                (id, DiskSettings { kept })
            })
            .collect()
    }
}
