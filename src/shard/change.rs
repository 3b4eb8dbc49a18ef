//! Another form of a disk in its place (a snapshot's new leaf, a new size, other layers below), and what else the
//! control plane asks of a disk's home shard.

use std::sync::Arc;

use super::core::{Core, Io, Mail};
use super::home::{Home, HomeDisk};
use super::link::Phase;
use super::message::{DetachError, Reply};
use super::run::Shard;
use crate::blocks::Engine;
use crate::medium::Disk;
use crate::ring::Ring;
use crate::scsi::Attention;
use crate::units::DiskId;

/// A disk's home with what it works with.
type AtHome<'a, R> = (&'a mut HomeDisk, &'a mut Home, &'a mut Io<R>, &'a mut Mail<<R as Ring>::Waker>);

impl<R: Ring> Shard<R> {
    /// The home part of a disk whose home this shard is.
    pub(super) fn home_of(&mut self, id: DiskId) -> Option<AtHome<'_, R>> {
        let Core { io, mail, disks, home, .. } = &mut self.core;
        let slot = disks.find(id)?;
        let disk = disks.at_mut(slot)?.home.as_deref_mut()?;
        Some((disk, home, io, mail))
    }

    /// Put another form of a paused disk in its place, and go on.
    pub(super) fn swap(
        &mut self,
        disk: &Arc<Disk>,
        engine: Option<Box<dyn Engine>>,
        retire: Option<Option<Reply<Result<(), DetachError>>>>,
        attention: Option<Attention>,
    ) -> Result<(), DetachError> {
        let slot = self.quiet(disk.id())?;
        // What it holds may be another now.
        disk.tokens().revoke_all();
        if let Some((home_disk, home, io, mail)) = self.home_of(disk.id()) {
            home_disk.can_swap(engine.is_some(), retire.is_some())?;
            home_disk.swap(io, Arc::clone(disk), engine, retire);
            home_disk.pump(home, io, mail);
        }
        if let Some(entry) = self.core.disks.at_mut(slot) {
            // Counters that commands need are made now.
            disk.stats(self.core.id);
            entry.disk = Arc::clone(disk);
            entry.settings.take_over(disk);
            entry.swaps = entry.swaps.wrapping_add(1);
        }
        for link in self.links.iter_mut().flatten() {
            let Phase::Session(session) = &mut link.phase else { continue };
            for unit in session.luns.iter_mut().filter(|unit| unit.disk == slot) {
                if let Some(attention) = attention {
                    unit.nexus.raise(attention);
                }
            }
        }
        self.go_on(slot);
        Ok(())
    }

    /// Close the engine of a paused disk.
    pub(super) fn close_engine(&mut self, id: DiskId, reply: Reply<Result<(), DetachError>>) {
        if let Err(refused) = self.quiet(id) {
            return reply(Err(refused));
        }
        match self.home_of(id) {
            Some((disk, home, io, mail)) => {
                disk.close_engine(io, reply);
                disk.pump(home, io, mail);
            }
            None => reply(Ok(())),
        }
    }

    /// Open the write session of a disk's engine.
    pub(super) fn begin_session(&mut self, id: DiskId, reply: Reply<Result<Option<[u8; 16]>, DetachError>>) {
        match self.home_of(id) {
            Some((disk, home, io, mail)) => {
                disk.begin_session(reply);
                disk.pump(home, io, mail);
            }
            None => reply(Ok(None)),
        }
    }

    /// The slot of a disk that nobody is at work on.
    fn quiet(&self, id: DiskId) -> Result<u32, DetachError> {
        let slot = self.core.disks.find(id).ok_or_else(|| DetachError("the disk is not attached".into()))?;
        match self.core.disks.at(slot) {
            Some(entry) if entry.is_quiet() => Ok(slot),
            _ => Err(DetachError("the disk is not paused".into())),
        }
    }
}
