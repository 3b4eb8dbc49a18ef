//! What a unit is set to while it is served: its write cache, its write protection, and whether it serves at all.
//!
//! A shard keeps a copy for each disk. The disk's home shard changes it for all: it has the control plane keep what is
//! to outlast a restart, tells every shard, and answers when all have said that the change is in force.

use std::fmt;
use std::sync::Arc;

use super::core::{Core, DiskSlot};
use super::link::Phase;
use super::peer::{Asker, LinkKey, PeerMessage};
use super::run::Shard;
use crate::blocks::Done;
use crate::bounded::{Key, Slab};
use crate::medium::Disk;
use crate::ring::{Nanos, Ring};
use crate::scsi::mode_select::ModeChange;
use crate::scsi::{Attention, Condition, MediumError, Unit};
use crate::units::{DiskId, ShardId};

/// Changes that one home shard has underway at once; bounds the messages that are under way for them.
pub(crate) const CHANGES_MAX: usize = 128;

/// What is kept of a unit when the server ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// WCE, as a MODE SELECT has saved it; `None`: none has.
    pub write_cache: Option<bool>,
    /// SWP, as a MODE SELECT has saved it; `None`: none has.
    pub write_protection: Option<bool>,
    /// FORMAT UNIT or SANITIZE has begun and not ended well.
    pub unfinished: Option<Unfinished>,
}

/// Work on a unit as a whole that has begun and not ended well: the unit does not serve before it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfinished {
    /// FORMAT UNIT.
    Format,
    /// SANITIZE.
    Sanitize {
        /// It allowed to leave it at that.
        may_exit: bool,
    },
}

impl Unfinished {
    /// The condition of the unit after a restart.
    fn condition(self) -> Condition {
        match self {
            Self::Format => Condition::FormatInterrupted,
            Self::Sanitize { may_exit } => Condition::SanitizeFailed { may_exit },
        }
    }
}

impl Kept {
    fn keep_mode(&mut self, change: ModeChange) {
        self.write_cache = change.write_cache_enabled.or(self.write_cache);
        self.write_protection = change.write_protected.or(self.write_protection);
    }
}

/// Settings that come with a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskSettings {
    /// What was kept.
    pub kept: Kept,
}

/// What the control plane is to keep: it answers with [`ToShard::Kept`](super::ToShard::Kept).
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    /// The disk.
    pub disk: DiskId,
    /// What is to be kept of it.
    pub kept: Kept,
    /// Who asks.
    pub home: ShardId,
    /// Goes with the answer.
    pub ticket: u64,
}

/// Takes what is to be kept. Called on a shard's thread; it must not block. False: it cannot be kept.
#[derive(Clone)]
pub struct Keeper(pub Arc<dyn Fn(Keep) -> bool + Send + Sync>);

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keeper")
    }
}

/// What changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Setting {
    /// Mode parameters; and whether they are to be so after a restart too.
    Mode { change: ModeChange, save: bool },
    /// Whether the unit serves, and what is kept of that.
    Condition {
        /// It does, or why not.
        condition: Condition,
        /// What has not ended well so far.
        unfinished: Option<Unfinished>,
    },
    /// The file system behind a thin provisioned unit has little space left.
    LittleSpace,
    /// What the log tells is counted anew.
    LogReset,
}

/// One disk's settings, as one shard knows them.
pub(crate) struct Settings {
    /// The second form is for mappings that refuse writes.
    units: [Unit; 2],
    pub(crate) condition: Condition,
    /// WCE could be one, and is zero: every write is durable before it is answered.
    pub(crate) writes_through: bool,
    /// The current and the saved value of WCE, once it was changed.
    write_cache: Option<(bool, bool)>,
    /// The same of SWP.
    write_protection: Option<(bool, bool)>,
    pub(crate) kept: Kept,
    is_configured: bool,
    /// When the shard got the disk.
    pub(crate) since: Nanos,
}

impl Settings {
    pub(crate) fn new(disk: &Disk, now: Nanos) -> Self {
        Self {
            since: now,
            units: [disk.unit(false).clone(), disk.unit(true).clone()],
            condition: Condition::Ready,
            writes_through: false,
            write_cache: None,
            write_protection: None,
            kept: Kept::default(),
            is_configured: false,
        }
    }

    /// The unit as it is set.
    #[inline]
    pub(crate) fn unit(&self, read_only: bool) -> &Unit {
        &self.units[usize::from(read_only)]
    }

    /// Another form of the disk has taken its place.
    pub(crate) fn take_over(&mut self, disk: &Disk) {
        self.units = [disk.unit(false).clone(), disk.unit(true).clone()];
        if let Some((enabled, saved)) = self.write_cache {
            self.set_write_cache(enabled, saved);
        }
        if let Some((enabled, saved)) = self.write_protection {
            self.set_write_protection(enabled, saved);
        }
    }

    /// The control plane's settings. What initiators change counts from here only the first time.
    pub(crate) fn configure(&mut self, settings: &DiskSettings) {
        if std::mem::replace(&mut self.is_configured, true) {
            return;
        }
        self.kept = settings.kept;
        if let Some(enabled) = settings.kept.write_cache {
            self.set_write_cache(enabled, enabled);
        }
        if let Some(enabled) = settings.kept.write_protection {
            self.set_write_protection(enabled, enabled);
        }
        if let Some(unfinished) = settings.kept.unfinished {
            self.condition = unfinished.condition();
        }
    }

    fn set_write_cache(&mut self, enabled: bool, saved: bool) {
        self.write_cache = Some((enabled, saved));
        for unit in &mut self.units {
            *unit = unit.clone().with_write_cache(enabled, saved);
        }
        let unit = &self.units[0];
        self.writes_through = unit.write_cache_exists() && !unit.write_cache_enabled();
    }

    fn set_write_protection(&mut self, enabled: bool, saved: bool) {
        self.write_protection = Some((enabled, saved));
        for unit in &mut self.units {
            *unit = unit.clone().with_write_protection(enabled, saved);
        }
    }

    /// Put mode parameters in force. Whether that changes any.
    fn set_mode(&mut self, change: ModeChange, save: bool) -> bool {
        let values = |unit: &Unit| (unit.write_cache_enabled(), unit.write_protected());
        let before = values(self.unit(false));
        if let Some(enabled) = change.write_cache_enabled {
            self.set_write_cache(enabled, if save { enabled } else { self.unit(false).write_cache_saved() });
        }
        if let Some(enabled) = change.write_protected {
            self.set_write_protection(enabled, if save { enabled } else { self.unit(false).write_protection_saved() });
        }
        if save {
            self.kept.keep_mode(change);
        }
        before != values(self.unit(false))
    }

    /// Put a change in force. What nexuses other than the one that asked for it are told.
    fn set(&mut self, setting: Setting) -> Option<Attention> {
        match setting {
            Setting::Mode { change, save } => self.set_mode(change, save).then_some(Attention::ModeParametersChanged),
            Setting::Condition { condition, unfinished } => {
                self.condition = condition;
                self.kept.unfinished = unfinished;
                None
            }
            Setting::LittleSpace => Some(Attention::ThinProvisioningThreshold),
            Setting::LogReset => Some(Attention::LogParametersChanged),
        }
    }
}

impl DiskSlot {
    /// The unit as it is set.
    #[inline]
    pub(crate) fn unit(&self, read_only: bool) -> &Unit {
        self.settings.unit(read_only)
    }
}

/// A change that is underway at a home shard.
struct Change {
    asker: Asker,
    disk: DiskId,
    setting: Setting,
    /// Shards that have not said that it is in force.
    shards: u16,
}

/// The changes of a home shard.
pub(crate) struct Changes(Slab<Change>);

impl Changes {
    pub(crate) fn new() -> Self {
        Self(Slab::new(CHANGES_MAX))
    }
}

impl<R: Ring> Shard<R> {
    /// Somebody wants a setting of a disk changed whose home this shard is.
    pub(super) fn setting_wanted(&mut self, disk: DiskId, asker: Asker, setting: Setting) {
        let Core { disks, home, configuration, id, .. } = &mut self.core;
        let Some(slot) = disks.find(disk).and_then(|slot| disks.at(slot)) else {
            return self.setting_done(asker, Err(MediumError::Removed));
        };
        let mut kept = slot.settings.kept;
        if let Setting::Mode { change, save: true } = setting {
            kept.keep_mode(change);
        }
        if let Setting::Condition { unfinished, .. } = setting {
            kept.unfinished = unfinished;
        }
        let must_keep = kept != slot.settings.kept;
        let change = Change { asker, disk, setting, shards: 0 };
        let Ok(key) = home.changes.0.insert(change) else {
            return self.setting_done(asker, Err(MediumError::Busy));
        };
        if !must_keep {
            return self.tell_all(key);
        }
        let keep = Keep { disk, kept, home: *id, ticket: key.to_bits() };
        if !configuration.keeper.as_ref().is_some_and(|keeper| (keeper.0)(keep)) {
            self.kept(key.to_bits(), false);
        }
    }

    /// The control plane has kept what it was to keep, or could not.
    pub(super) fn kept(&mut self, ticket: u64, is_kept: bool) {
        let key = Key::from_bits(ticket);
        if is_kept {
            return self.tell_all(key);
        }
        if let Some(change) = self.core.home.changes.0.remove(key) {
            self.setting_done(change.asker, Err(MediumError::FlushFailed));
        }
    }

    fn tell_all(&mut self, key: Key) {
        let Core { home, mail, shards, id, .. } = &mut self.core;
        let Some(change) = home.changes.0.at_mut(key) else { return };
        change.shards = *shards;
        let Change { disk, setting, asker, .. } = *change;
        for shard in (0..*shards).map(ShardId) {
            mail.post_owed(shard, PeerMessage::Set { disk, setting, asker, home: *id, change: key.to_bits() });
        }
    }

    /// A disk's home shard has changed a setting.
    pub(super) fn set(&mut self, disk: DiskId, setting: Setting, asker: Asker, home: ShardId, change: u64) {
        let core = &mut self.core;
        let slot = core.disks.find(disk);
        let attention = slot.and_then(|slot| core.disks.at_mut(slot)).and_then(|entry| entry.settings.set(setting));
        if let (Some(slot), Some(attention)) = (slot, attention) {
            for index in 0..self.links.len() {
                let is_asker = self.is_same_session(asker, index as u32);
                let link = self.links[index].as_deref_mut();
                let Some(Phase::Session(session)) = link.map(|link| &mut link.phase) else { continue };
                for unit in session.luns.iter_mut().filter(|unit| unit.disk == slot && !is_asker) {
                    unit.nexus.raise(attention);
                }
            }
        }
        self.core.mail.post_owed(home, PeerMessage::HasSet { change });
    }

    /// A change is in force on one more shard.
    pub(super) fn has_set(&mut self, change: u64) {
        let key = Key::from_bits(change);
        let changes = &mut self.core.home.changes.0;
        let Some(change) = changes.at_mut(key) else { return };
        change.shards -= 1;
        if change.shards == 0
            && let Some(change) = changes.remove(key)
        {
            self.setting_done(change.asker, Ok(Done::Ok));
        }
    }

    /// The file system behind a thin provisioned disk has little space left: its initiators are told.
    pub(super) fn little_space(&mut self, disk: DiskId) {
        let asker = Asker { shard: self.core.id, link: LinkKey::UNASKED, task: 0 };
        self.setting_wanted(disk, asker, Setting::LittleSpace);
    }

    fn setting_done(&mut self, asker: Asker, result: Result<Done, MediumError>) {
        if asker.link != LinkKey::UNASKED {
            self.core.mail.post_owed(asker.shard, PeerMessage::HomeDone { asker, result });
        }
    }
}
