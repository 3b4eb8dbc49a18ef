//! Commands whose Data-Out is a parameter list.

use super::core::DiskSlot;
use super::erase::EraseOrder;
use super::peer::HomeRequest;
use super::session::{Answer, Immediate, Kind, Resume, Step, Work};
use super::settings::Setting;
use crate::iscsi::transfer::TaskId;
use crate::ring::Ring;
use crate::scsi::format::{self, FormatOptions};
use crate::scsi::mode_select::{self, ModeChange};
use crate::scsi::{MediumError, Outcome, Sense, SenseCode, Unit, sanitize};

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
    /// WRITE BUFFER: what is to come back.
    Echo,
    /// FORMAT UNIT.
    Format,
    /// SANITIZE, with a pattern or without.
    Sanitize {
        /// IMMED.
        immed: bool,
        /// AUSE.
        may_exit: bool,
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
            List::Echo => self.write_echo(task),
            List::Format => self.format(task),
            List::Sanitize { immed, may_exit } => self.overwrite(task, immed, may_exit),
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
        match parsed {
            Err(sense) => self.complete(task, Outcome::check_condition(sense)),
            Ok(change) if change == ModeChange::default() => self.complete(task, Outcome::GOOD),
            Ok(change) => self.ask_setting(task, Setting::Mode { change, save }),
        }
    }

    /// WRITE BUFFER. The session keeps one content, whatever unit it was written to.
    fn write_echo(&mut self, task: TaskId) {
        let lun = crate::scsi::lun::decode(self.session.connection.command(task).lun_raw);
        let data = self.task(task).data.take();
        self.session.echo = lun.zip(data);
        self.complete(task, Outcome::GOOD);
    }

    /// READ BUFFER of what was written.
    pub(crate) fn read_echo(&mut self, task: TaskId, allocation_length: u32) {
        let lun = crate::scsi::lun::decode(self.session.connection.command(task).lun_raw);
        let bytes = match &self.session.echo {
            None => return self.complete(task, Sense::new(SenseCode::COMMAND_SEQUENCE_ERROR).into()),
            Some((of, _)) if Some(*of) != lun => {
                return self.complete(task, Sense::new(SenseCode::ECHO_BUFFER_OVERWRITTEN).into());
            }
            Some((_, bytes)) => bytes.slice(0..bytes.len().min(allocation_length as usize)),
        };
        let entry = self.task(task);
        entry.answer = Answer::DataIn;
        entry.transfer_length = bytes.len() as u64;
        if !bytes.is_empty() {
            entry.set_read(bytes);
        }
        self.send_when_drained(task);
    }

    fn format(&mut self, task: TaskId) {
        let data = self.task(task).data.take();
        match format::parse(data.as_deref().unwrap_or_default()) {
            Err(sense) => self.complete(task, Outcome::check_condition(sense)),
            Ok(FormatOptions { immed }) => {
                self.ask_erase(task, EraseOrder { sanitize: None, overwrite: None, immed });
            }
        }
    }

    fn overwrite(&mut self, task: TaskId, immed: bool, may_exit: bool) {
        let data = self.task(task).data.take();
        let unit = self.unit_of(task);
        let block_bytes = unit.block_length().bytes() as usize;
        let overwrite = match sanitize::parse_overwrite(data.as_deref().unwrap_or_default(), unit) {
            Err(sense) => return self.complete(task, Outcome::check_condition(sense)),
            Ok(overwrite) => overwrite,
        };
        let pass = |number| {
            let invert = if overwrite.is_inverted(number) { 0xff } else { 0 };
            overwrite.pattern.iter().cycle().take(block_bytes).map(|byte| byte ^ invert).collect::<Box<[u8]>>()
        };
        let passes = (0..overwrite.passes).map(pass).collect();
        self.ask_erase(task, EraseOrder { sanitize: Some(may_exit), overwrite: Some(passes), immed });
    }

    /// SANITIZE, BLOCK ERASE.
    pub(crate) fn start_block_erase(&mut self, task: TaskId, immed: bool, may_exit: bool) {
        self.task(task).kind = Kind::List(List::Sanitize { immed, may_exit });
        self.ask_erase(task, EraseOrder { sanitize: Some(may_exit), overwrite: None, immed });
    }

    fn ask_erase(&mut self, task: TaskId, order: EraseOrder) {
        let slot = self.task(task).disk.expect("a unit is of a disk");
        let name = self.tagged(task);
        if !self.core.ask_erase(slot, self.key, name, order) {
            return self.complete(task, MediumError::Busy.outcome());
        }
        self.set_step(task, Step::Asking(Resume::Erased));
        self.begin_operation(task);
    }

    /// SANITIZE, EXIT FAILURE MODE.
    pub(crate) fn exit_sanitize_failure(&mut self, task: TaskId) {
        self.task(task).kind = Kind::List(List::Sanitize { immed: false, may_exit: false });
        let slot = self.task(task).disk.expect("a unit is of a disk");
        let entry = self.core.disks.at(slot).expect("a disk stays attached while tasks use it");
        let present = entry.settings.condition;
        match present.exit_failure_mode() {
            Err(sense) => self.complete(task, Outcome::check_condition(sense)),
            Ok(condition) if condition == present => self.complete(task, Outcome::GOOD),
            Ok(condition) => self.ask_setting(task, Setting::Condition { condition, unfinished: None }),
        }
    }

    /// Ask the home shard to change a setting for all; then [`Self::setting_changed`].
    pub(super) fn ask_setting(&mut self, task: TaskId, setting: Setting) {
        let slot = self.task(task).disk.expect("a setting is of a unit");
        let name = self.tagged(task);
        if !self.core.ask_home(slot, self.key, name, HomeRequest::Set(setting)) {
            return self.complete(task, MediumError::Busy.outcome());
        }
        self.set_step(task, Step::Asking(Resume::SettingChanged));
        self.begin_operation(task);
    }

    /// All shards know of it.
    pub(crate) fn setting_changed(&mut self, task: TaskId) {
        let slot = self.task(task).disk.expect("a setting is of a unit");
        let must_be_durable = |slot: &DiskSlot| slot.settings.writes_through || slot.unit(false).write_protected();
        let wants_flush = self.core.disks.at(slot).is_some_and(must_be_durable);
        let is_mode = matches!(self.task(task).kind, Kind::List(List::Mode { .. }));
        if is_mode && wants_flush && self.flushes(slot) {
            // What was answered before is durable from now on too.
            self.task(task).kind = Kind::Flush;
            return self.ask_flush(task);
        }
        self.complete(task, Outcome::GOOD);
    }
}
