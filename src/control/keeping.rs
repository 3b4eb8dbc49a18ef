//! What initiators change and want kept: shards hand it over, and hear when it is in `config.json`.

use std::collections::HashMap;
use std::sync::Arc;

use futures_channel::mpsc;

use super::controller::{Controller, Job, LiveDisk};
use super::dataplane::tell;
use crate::shard::{DiskSettings, Keep, Keeper, Kept, ToShard, Unfinished};
use crate::units::DiskId;

/// What may wait besides one from each that has something at once: shards bound how much they want kept.
const WAITING_MAX: usize = 16;

/// Where shards put what they want kept, and where it comes out as commands.
pub(super) fn keeper() -> (Keeper, mpsc::Receiver<Job>) {
    let (sender, receiver) = mpsc::channel::<Job>(WAITING_MAX);
    let put = move |keep: Keep| {
        let job: Job = Box::new(move |controller| Box::pin(controller.keep(keep)));
        sender.clone().try_send(job).is_ok()
    };
    (Keeper(Arc::new(put)), receiver)
}

impl Controller {
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
