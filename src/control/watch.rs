//! Watches the space behind thin provisioned disks: what LOG SENSE tells comes from here, and initiators are told when
//! little is left.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::controller::{LiveDisk, View};
use super::dataplane::{DataPlane, tell};
use super::executor::blocking;
use crate::medium::Disk;
use crate::shard::ToShard;
use crate::units::DiskId;

/// How often it looks.
const INTERVAL: Duration = Duration::from_secs(2);

/// A disk, and the free space below which its initiators are told.
struct Watched {
    disk: Arc<Disk>,
    threshold_bytes: u64,
}

/// Watch for as long as the executor lives.
pub(super) async fn space(view: Arc<Mutex<Arc<View>>>, plane: Arc<dyn DataPlane>) {
    // Disks whose initiators have been told; they are told again when there was more space in between.
    let mut told: HashSet<DiskId> = HashSet::new();
    loop {
        async_io::Timer::after(INTERVAL).await;
        let watched = thin_disks(&view.lock().unwrap_or_else(PoisonError::into_inner).clone());
        told.retain(|id| watched.iter().any(|watched| watched.disk.id() == *id));
        if watched.is_empty() {
            continue;
        }
        // A file system that hangs keeps this thread, and nobody else.
        let little = blocking(move || with_little_space(watched)).await;
        for (disk, is_little) in little {
            if is_little && told.insert(disk.id()) {
                tracing::warn!("disk '{}': its file system has little space left; initiators are told", disk.name());
                tell(&*plane, disk.home(), ToShard::LittleSpace { disk: disk.id() }).await;
            } else if !is_little {
                told.remove(&disk.id());
            }
        }
    }
}

fn thin_disks(view: &View) -> Vec<Watched> {
    let online = view.disks.iter().filter_map(|(name, live)| match live {
        LiveDisk::Online(disk) if disk.unit(false).thin_provisioned() => Some((name, disk)),
        _ => None,
    });
    online
        .map(|(name, disk)| {
            let own = view.config.disks.get(name).and_then(|disk| disk.settings.thin_threshold_bytes);
            let threshold_bytes = own.unwrap_or(view.config.thin_threshold_bytes);
            Watched { disk: Arc::clone(disk), threshold_bytes }
        })
        .collect()
}

/// Look at each; whether there is less than its threshold.
fn with_little_space(watched: Vec<Watched>) -> Vec<(Arc<Disk>, bool)> {
    let looked = watched.into_iter().filter_map(|Watched { disk, threshold_bytes }| {
        let available_bytes = disk.look_at_space()?;
        Some((disk, available_bytes < threshold_bytes))
    });
    looked.collect()
}
