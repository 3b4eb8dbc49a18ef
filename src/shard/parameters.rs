//! Commands whose Data-Out is a parameter list.

use super::peer::HomeRequest;
use super::session::{Immediate, Kind, Resume, Work};
use super::settings::Setting;
use crate::iscsi::transfer::TaskId;
use crate::ring::Ring;
use crate::scsi::{Outcome, Unit, mode_select};

/// What a list is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum List {
    /// MODE SELECT.
    Mode {
        /// It is MODE SELECT(10)'s.
        long: bool,
        /// SP.
        save: bool,
    },
}

impl<R: Ring> Work<'_, R> {
    /// Have a command's parameter list come; then [`Self::list_is_here`].
    pub(crate) fn start_list(&mut self, task: TaskId, list: List, list_bytes: u32, data: Immediate<'_>) {
        let expected = self.session.connection.command(task).expected_write_length();
        let bytes = list_bytes.min(expected);
        let entry = self.task(task);
        entry.kind = Kind::List(list);
        entry.total = bytes;
        entry.data_total = bytes;
        entry.transfer_length = u64::from(list_bytes);
        if bytes == 0 {
            return self.list_is_here(task);
        }
        self.receive_data(task, bytes, data);
    }

    /// The list is here.
    pub(crate) fn list_is_here(&mut self, task: TaskId) {
        let Kind::List(list) = self.task(task).kind else { return };
        match list {
            List::Mode { long, save } => self.select_mode(task, long, save),
        }
    }

    /// The unit of a task's disk as the task's initiator sees it.
    pub(super) fn unit_of(&mut self, task: TaskId) -> &Unit {
        let lun = crate::scsi::lun::decode(self.session.connection.command(task).lun_raw);
        let index = lun.and_then(|lun| self.session.lun_index(lun));
        let read_only = index.is_some_and(|index| self.session.luns[index].read_only);
        let slot = self.task(task).disk.expect("a list is for a unit");
        self.core.disks.at(slot).expect("a disk stays attached while tasks use it").unit(read_only)
    }

    fn select_mode(&mut self, task: TaskId, long: bool, save: bool) {
        let data = self.task(task).data.take();
        let parsed = mode_select::parse(data.as_deref().unwrap_or_default(), long, self.unit_of(task));
        let enabled = match parsed {
            Err(sense) => return self.complete(task, Outcome::check_condition(sense)),
            Ok(change) => change.write_cache_enabled,
        };
        match enabled {
            None => self.complete(task, Outcome::GOOD),
            Some(enabled) => self.ask_setting(task, Setting::WriteCache { enabled, save }),
        }
    }

    /// Ask the home shard to change a setting for all; then [`Self::setting_changed`].
    pub(super) fn ask_setting(&mut self, task: TaskId, setting: Setting) {
        let slot = self.task(task).disk.expect("a setting is of a unit");
        if !self.core.ask_home(slot, self.key, task.0, HomeRequest::Set(setting)) {
            return self.complete(task, crate::scsi::MediumError::Busy.outcome());
        }
        self.set_step(task, super::session::Step::Asking(Resume::SettingChanged));
        self.begin_operation(task);
    }

    /// All shards know of it.
    pub(crate) fn setting_changed(&mut self, task: TaskId) {
        let slot = self.task(task).disk.expect("a setting is of a unit");
        let writes_through = self.core.disks.at(slot).is_some_and(|slot| slot.settings.writes_through);
        let is_mode = matches!(self.task(task).kind, Kind::List(List::Mode { .. }));
        if is_mode && writes_through && self.flushes(slot) {
            // What was answered before is durable from now on too.
            self.task(task).kind = Kind::Flush;
            return self.ask_flush(task);
        }
        self.complete(task, Outcome::GOOD);
    }
}
