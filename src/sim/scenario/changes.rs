//! What the control plane does to disks while they are served: pauses, snapshots, closing and opening anew, compaction.

use std::sync::{Arc, Mutex, PoisonError};

use super::images;
use super::server::{Answer, Pending, Server};
use crate::blocks::Engine;
use crate::medium::{self, Disk, Opened};
use crate::ring::Nanos;
use crate::shard::{DetachError, Hold, Reply, ToShard};
use crate::sim::Initiator;
use crate::units::ShardId;

/// Longer than any operation takes in a calm world.
const PATIENCE_MS: u64 = 2000;

/// A change to a disk that is being served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Hold its commands, and let them go on.
    Pause,
    /// A new leaf over the present one, which becomes its parent.
    Snapshot,
    /// Close it while its commands are held, and open it anew.
    Reopen,
    /// A few steps of compaction.
    Compact,
}

impl Server {
    /// Change a disk while clients go on.
    pub fn change(&mut self, index: usize, change: Change, clients: &mut [Initiator]) -> Result<(), String> {
        let Some(disk) = self.disk(index).filter(|disk| disk.file().is_some()) else { return Ok(()) };
        match change {
            Change::Pause => {
                self.pause(&disk, clients)?;
                self.resume(&disk, clients)
            }
            Change::Snapshot => {
                self.snapshot(index, &disk, clients)?;
                // Or its former leaf is closed while other things happen.
                if self.random.below(2) == 0 { self.settle(clients) } else { Ok(()) }
            }
            Change::Reopen => {
                self.settle(clients)?;
                self.reopen(index, &disk, clients)
            }
            Change::Compact => self.compact(&disk, clients),
        }
    }

    /// A snapshot whose former leaf is closed while other things happen.
    pub fn begin_snapshot(&mut self, index: usize, clients: &mut [Initiator]) -> Result<(), String> {
        let Some(disk) = self.disk(index).filter(|disk| disk.file().is_some()) else { return Ok(()) };
        self.snapshot(index, &disk, clients)
    }

    fn disk(&self, index: usize) -> Option<Arc<Disk>> {
        self.process.as_ref().map(|process| Arc::clone(&process.disks[index]))
    }

    /// Try to hold a disk's commands for no longer than this, and let them go on. Gives whether they could be held.
    pub fn try_pause(&mut self, index: usize, patience_ms: u64, clients: &mut [Initiator]) -> Result<bool, String> {
        let Some(disk) = self.disk(index) else { return Ok(true) };
        let held = self.pause_within(&disk, patience_ms, clients);
        self.resume(&disk, clients)?;
        match held {
            Ok(()) => Ok(true),
            Err(why) if why.contains("were still at work") => Ok(false),
            Err(why) => Err(why),
        }
    }

    fn resume(&mut self, disk: &Disk, clients: &mut [Initiator]) -> Result<(), String> {
        let disk = disk.id();
        let replies = self.tell_all(|reply| ToShard::Resume { disk, reply: Box::new(move |()| reply(Ok(()))) });
        self.await_replies("resume", replies, clients)
    }

    fn pause(&mut self, disk: &Disk, clients: &mut [Initiator]) -> Result<(), String> {
        self.pause_within(disk, PATIENCE_MS, clients)
    }

    fn pause_within(&mut self, disk: &Disk, patience_ms: u64, clients: &mut [Initiator]) -> Result<(), String> {
        let disk = disk.id();
        for hold in [Hold::Changes, Hold::All] {
            self.held_since = self.world.now();
            let replies = self.tell_all(|reply| ToShard::Pause {
                disk,
                hold,
                patience_ms,
                reply: Box::new(move |paused| reply(paused.map_err(|error| error.0))),
            });
            self.await_replies("pause", replies, clients)?;
        }
        Ok(())
    }

    /// For how long all commands were held by the snapshot just taken.
    pub fn held_for(&self) -> Nanos {
        self.held_for
    }

    fn snapshot(&mut self, index: usize, disk: &Arc<Disk>, clients: &mut [Initiator]) -> Result<(), String> {
        let identity = self.begin_session(disk, clients)?;
        let leaf = self.path(index);
        let number = self.leaves[index].matches('+').count() + 1;
        let name = format!("disk{index}{}", "+".repeat(number));
        let child = self.directory.join(&name);
        images::create_child(&child, self.config.disks[index], &leaf, identity)?;
        self.leaves[index] = name;
        self.formats[index] = images::child_format(self.formats[index]);
        let mut spec = self.open_spec(index, disk.id(), disk.home());
        spec.predecessor = Some(Arc::clone(disk));
        let opened = medium::open_over(spec, disk).map_err(|error| format!("{}: {error}", child.display()))?;
        self.take_into_world(&opened.disk)?;
        self.pause(disk, clients)?;
        let since = self.held_since;
        self.swap(index, opened, true, clients)?;
        self.held_for = Nanos(self.world.now().0 - since.0);
        Ok(())
    }

    /// Open the write session: what the leaf's content is known by from now on.
    fn begin_session(&mut self, disk: &Disk, clients: &mut [Initiator]) -> Result<Option<[u8; 16]>, String> {
        let found = Arc::new(Mutex::new(None));
        let (id, answer) = (disk.id(), Arc::clone(&found));
        let reply = self.tell(disk.home(), move |reply: Answer| ToShard::BeginSession {
            disk: id,
            reply: Box::new(move |begun| {
                reply(begun.map_err(|error| error.0).map(|guid| {
                    *answer.lock().unwrap_or_else(PoisonError::into_inner) = guid;
                }));
            }),
        });
        self.await_replies("begin session", reply.into_iter().collect(), clients)?;
        Ok(*found.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Former leaves that have closed become parents that others can open too.
    pub(super) fn settle(&mut self, clients: &mut [Initiator]) -> Result<(), String> {
        for (retired, layer) in std::mem::take(&mut self.retiring) {
            self.await_replies("retire", vec![retired], clients)?;
            let name = images::name_in_world(layer.path(), self.starts);
            images::export(&self.world, &name, layer.path())?;
            self.parents.adopt(&layer).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    fn reopen(&mut self, index: usize, disk: &Arc<Disk>, clients: &mut [Initiator]) -> Result<(), String> {
        // While commands wait for the home shard, somebody has to be at home.
        self.pause(disk, clients)?;
        let id = disk.id();
        let reply = self.tell(disk.home(), |reply: Answer| ToShard::CloseEngine {
            disk: id,
            reply: Box::new(move |closed| reply(closed.map_err(|error| error.0))),
        });
        self.await_replies("close engine", reply.into_iter().collect(), clients)?;
        let path = self.path(index);
        images::export(&self.world, &images::name_in_world(&path, self.starts), &path)?;
        let mut spec = self.open_spec(index, disk.id(), disk.home());
        spec.predecessor = Some(Arc::clone(disk));
        let opened = medium::open(spec).map_err(|error| format!("{}: {error}", path.display()))?;
        self.take_into_world(&opened.disk)?;
        self.swap(index, opened, false, clients)
    }

    /// Put another form of a paused disk in its place, on its home shard first.
    fn swap(&mut self, index: usize, opened: Opened, retire: bool, clients: &mut [Initiator]) -> Result<(), String> {
        let Opened { disk, engine } = opened;
        let home = disk.home();
        let retired = Arc::new(Pending::default());
        let home_only = self.tell_swap(home, &disk, engine, retire.then(|| Arc::clone(&retired)));
        self.await_replies("swap at home", home_only, clients)?;
        if retire {
            self.retiring.push((retired, Arc::clone(&disk.layers()[1])));
        }
        let mut others = Vec::new();
        for shard in (0..self.config.shards).map(ShardId).filter(|&shard| shard != home) {
            others.extend(self.tell_swap(shard, &disk, None, None));
        }
        self.await_replies("swap", others, clients)?;
        if let Some(process) = self.process.as_mut() {
            process.disks[index] = disk;
        }
        Ok(())
    }

    fn tell_swap(
        &mut self,
        shard: ShardId,
        disk: &Arc<Disk>,
        engine: Option<Box<dyn Engine>>,
        retired: Option<Arc<Pending>>,
    ) -> Vec<Arc<Pending>> {
        let disk = Arc::clone(disk);
        let message = move |reply: Answer| ToShard::Swap {
            disk,
            engine,
            retire: retired.is_some(),
            retired: retired.map(|pending| -> Reply<Result<(), DetachError>> {
                Box::new(move |closed: Result<(), DetachError>| pending.answer(closed.map_err(|error| error.0)))
            }),
            attention: None,
            reply: Box::new(move |swapped| reply(swapped.map_err(|error| error.0))),
        };
        self.tell(shard, message).into_iter().collect()
    }

    fn compact(&mut self, disk: &Disk, clients: &mut [Initiator]) -> Result<(), String> {
        for _ in 0..self.random.below(24) {
            let id = disk.id();
            let reply = self.tell(disk.home(), |reply: Answer| ToShard::Relocate {
                disk: id,
                reply: Box::new(move |more| reply(more.map(drop).map_err(|error| error.0))),
            });
            self.await_replies("compact", reply.into_iter().collect(), clients)?;
        }
        Ok(())
    }
}
