//! Commands on reservations and target port groups. What they change is decided at the disk's home shard
//! ([`agreement`](super::agreement)); what they ask is answered from this shard's copy.

use super::agreement::Change;
use super::core::{Core, HOME_REQUESTS_MAX};
use super::peer::{Asker, PeerMessage};
use super::session::{Answer, Immediate, Kind, Resume, Step, Work};
use crate::iscsi::transfer::TaskId;
use crate::mem::Buf;
use crate::ring::Ring;
use crate::scsi::reservations::ReserveIn;
use crate::scsi::{Action, MediumError, Outcome, Sense, SenseCode};

/// Enough for the reply of most disks.
const REPLY_BYTES: usize = 4096;

impl<R: Ring> Work<'_, R> {
    /// Begin with a command on reservations or target port groups. False: it is another.
    pub(crate) fn start_agreement(&mut self, task: TaskId, action: Action, data: Immediate<'_>) -> bool {
        match action {
            Action::ReserveIn { what, allocation_length } => self.reserve_in(task, what, allocation_length),
            Action::ReserveOut { service_action, scope_type, list_bytes } => {
                let kind = Kind::ReserveOut { service_action, scope_type };
                self.start_agreement_list(task, kind, list_bytes, data);
            }
            Action::ReserveUnit { release } => self.reserve_unit(task, release),
            Action::ReportPortGroups { extended, allocation_length } => {
                self.report_port_groups(task, extended, allocation_length);
            }
            Action::SetPortGroups { list_bytes } => {
                self.start_agreement_list(task, Kind::SetPortGroups, u32::from(list_bytes), data);
            }
            _ => return false,
        }
        true
    }

    /// PERSISTENT RESERVE IN.
    fn reserve_in(&mut self, task: TaskId, what: ReserveIn, allocation_length: u16) {
        let slot = self.task(task).disk.expect("reservations are of a unit");
        self.reply(task, |core, buf| match core.disks.at(slot) {
            Some(entry) => entry.agreed.reservations.report(what, allocation_length, buf),
            None => Ok(0),
        });
    }

    /// REPORT TARGET PORT GROUPS.
    fn report_port_groups(&mut self, task: TaskId, extended: bool, allocation_length: u32) {
        let slot = self.task(task).disk.expect("port groups are of a unit");
        self.reply(task, |core, buf| match core.disks.at(slot) {
            Some(entry) => entry.agreed.groups.report(extended, allocation_length, buf),
            None => Ok(0),
        });
    }

    /// Answer with what `write` puts into a buffer; it says how long the buffer must be if it is too short.
    fn reply(&mut self, task: TaskId, write: impl Fn(&Core<R>, &mut Buf) -> Result<usize, usize>) {
        let mut bytes = REPLY_BYTES;
        loop {
            let Some(mut buf) = self.core.io.arena.take(bytes) else {
                return self.complete(task, MediumError::Busy.outcome());
            };
            match write(self.core, &mut buf) {
                Err(wanted) if wanted > bytes => bytes = wanted,
                Err(_) => return self.complete(task, MediumError::Busy.outcome()),
                Ok(len) => {
                    buf.truncate(len);
                    let entry = self.task(task);
                    entry.answer = Answer::DataIn;
                    entry.transfer_length = len as u64;
                    if len > 0 {
                        entry.set_read(buf.freeze());
                    }
                    return self.send_when_drained(task);
                }
            }
        }
    }

    /// A command whose parameter list goes to the home shard.
    fn start_agreement_list(&mut self, task: TaskId, kind: Kind, list_bytes: u32, data: Immediate<'_>) {
        let expected = self.session.connection.command(task).expected_write_length();
        if expected < list_bytes {
            return self.complete(task, Sense::new(SenseCode::PARAMETER_LIST_LENGTH_ERROR).into());
        }
        let entry = self.task(task);
        entry.kind = kind;
        entry.transfer_length = u64::from(list_bytes);
        entry.total = list_bytes;
        entry.data_total = list_bytes;
        self.receive_data(task, list_bytes, data);
    }

    /// The list is here.
    pub(crate) fn agreement_list_received(&mut self, task: TaskId) {
        let entry = self.task(task);
        let Some(list) = entry.data.take() else { return };
        entry.set_read(list);
        entry.window = 0;
        self.ask_agreement(task);
    }

    /// RESERVE and RELEASE.
    fn reserve_unit(&mut self, task: TaskId, release: bool) {
        self.task(task).kind = Kind::ReserveUnit { release };
        self.ask_agreement(task);
    }

    /// Ask the home shard for the change that the command wants.
    pub(crate) fn ask_agreement(&mut self, task: TaskId) {
        let Some(from) = self.session.nexus.clone() else {
            return self.complete(task, MediumError::Removed.outcome());
        };
        let entry = &self.session.tasks[usize::from(task.0)];
        let list = || entry.read.as_deref().unwrap_or_default().into();
        let change = match entry.kind {
            Kind::ReserveOut { service_action, scope_type } => {
                Change::Reserve { from, service_action, scope_type, list: list() }
            }
            Kind::SetPortGroups => Change::SetPortGroups { from, list: list() },
            Kind::ReserveUnit { release } => Change::Unit { from, release },
            _ => unreachable!("no other command changes what shards agree on"),
        };
        let slot = entry.disk.expect("what shards agree on is of a unit");
        if !self.core.ask_to_agree(slot, Asker { shard: self.core.id, link: self.key, task: task.0 }, change) {
            return self.starve(task, Resume::Agreement);
        }
        self.set_step(task, Step::Asking(Resume::Agreement));
        self.begin_operation(task);
    }

    /// The home shard has answered.
    pub(crate) fn agreed(&mut self, task: TaskId, outcome: Outcome) {
        self.end_operation(task);
        if self.release_if_aborted(task) {
            return;
        }
        self.complete(task, outcome);
    }
}

impl<R: Ring> Core<R> {
    /// Ask a disk's home shard for a change. False when too much is underway: try again later.
    fn ask_to_agree(&mut self, slot: u32, asker: Asker, change: Change) -> bool {
        let entry = self.disks.at(slot).expect("a disk stays attached while tasks use it");
        let (disk, home) = (entry.disk.id(), entry.disk.home());
        if self.home_requests >= HOME_REQUESTS_MAX / 2 || !self.mail.has_room() {
            return false;
        }
        let message = PeerMessage::Agree { disk, asker: Some(asker), change: Box::new(change) };
        let sent = self.mail.post(home, message).is_ok();
        self.home_requests += usize::from(sent);
        sent
    }
}
