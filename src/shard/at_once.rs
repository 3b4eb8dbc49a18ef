//! Commands that are answered where they stand: whole reads and writes of disks that keep their blocks in memory or
//! nowhere, whose data is all here. Nothing of them waits for anything, so they need none of the state of a task; the
//! SCSI engine has checked them like all others.

use super::core::DiskSlot;
use super::session::{Immediate, Work};
use crate::iscsi::pdu::TaskAttribute;
use crate::iscsi::transfer::TaskId;
use crate::iscsi::transmit::Ending;
use crate::limits::BURST_LENGTH_MAX;
use crate::medium::Backing;
use crate::mem::Slice;
use crate::observe::Operation;
use crate::ring::Ring;
use crate::scsi::Action;

impl<R: Ring> Work<'_, R> {
    /// Whether this command is of those, as far as can be said before the SCSI engine has looked at it.
    #[inline]
    pub(crate) fn may_answer_at_once(&self, task: TaskId, lun_index: Option<usize>, data: Immediate<'_>) -> bool {
        let session = &*self.session;
        let Some(slot) = lun_index.and_then(|index| self.core.disks.at(session.luns[index].disk)) else { return false };
        let in_memory = matches!(slot.disk.backing(), Backing::Null | Backing::Memory(_));
        // Those that are recorded go the long way.
        if !in_memory || !slot.is_open() || slot.notes.is_some() {
            return false;
        }
        let command = session.connection.command(task);
        let is_plain = matches!(command.attribute, TaskAttribute::SIMPLE | TaskAttribute::UNTAGGED);
        let is_whole = match data {
            Immediate::Bytes(bytes) => bytes.len() as u32 == command.expected_write_length(),
            Immediate::Placed(_) => false,
        };
        // Nothing was to be sent before it, no function waits for it, and its status need not be kept.
        let is_free = session.ready.is_empty() && session.fences.is_empty() && self.tx.has_room();
        is_plain && is_whole && is_free && session.connection.parameters().error_recovery_level == 0
    }

    /// Do what the SCSI engine has said, and answer. False: nothing was done, it has to go the long way.
    #[inline]
    pub(crate) fn answer_at_once(
        &mut self,
        task: TaskId,
        lun_index: Option<usize>,
        action: Action,
        data: Immediate<'_>,
    ) -> bool {
        let Some(slot) = lun_index.map(|index| self.session.luns[index].disk) else { return false };
        match (action, data) {
            (Action::Read { lba, blocks, .. }, _) => {
                let shift = self.core.disks.of_task(slot).unit(false).block_length().shift();
                self.read_at_once(task, slot, lba.0 << shift, u64::from(blocks) << shift)
            }
            (Action::Write { lba, blocks, .. }, Immediate::Bytes(data)) => {
                let shift = self.core.disks.of_task(slot).unit(false).block_length().shift();
                let is_whole = u64::from(blocks) << shift == data.len() as u64 && !data.is_empty();
                is_whole && self.write_whole_at_once(task, slot, lba.0 << shift, data)
            }
            _ => false,
        }
    }

    fn read_at_once(&mut self, task: TaskId, slot: u32, offset_bytes: u64, len_bytes: u64) -> bool {
        let connection = &self.session.connection;
        let parameters = connection.parameters();
        let one_pdu = parameters.initiator_max_recv_data_segment_length.min(parameters.max_burst_length);
        let len = len_bytes.min(u64::from(u32::MAX)) as u32;
        let command = connection.command(task);
        // A bidirectional command has a response of its own (RFC 7143 section 11.4.2).
        let as_expected = command.expected_read_length == len && !command.write;
        if len == 0 || !as_expected || len > one_pdu.min(BURST_LENGTH_MAX) {
            return false;
        }
        let Some(payload) = self.bytes_in_memory(slot, offset_bytes, len) else { return false };
        let sent = self.session.connection.send_whole_data_in(task, &mut self.tx.with_whole(payload));
        assert!(sent, "there was room for an answer");
        self.answered_at_once(slot, Operation::Read, len_bytes);
        self.session.stats.bytes_read.add(len_bytes);
        true
    }

    /// What a disk in memory holds. `None`: it is not in memory, or there is no buffer.
    fn bytes_in_memory(&self, slot: u32, offset_bytes: u64, len: u32) -> Option<Slice> {
        let disk = self.core.disks.of_task(slot);
        if offset_bytes + u64::from(len) > disk.size_bytes() {
            return None;
        }
        match disk.backing() {
            Backing::Null => Some(self.core.io.arena.zeros(len as usize)),
            Backing::Memory(memory) => {
                let mut buf = self.core.io.arena.take(len as usize)?;
                buf.truncate(len as usize);
                memory.read(offset_bytes, &mut buf);
                Some(buf.freeze())
            }
            Backing::Chain { .. } => None,
        }
    }

    fn write_whole_at_once(&mut self, task: TaskId, slot: u32, offset_bytes: u64, data: &[u8]) -> bool {
        if !self.session.connection.data_out_complete(task) || !self.put_at_once(slot, offset_bytes, data) {
            return false;
        }
        let len_bytes = data.len() as u64;
        let good = Ending::good(len_bytes);
        let sent = self.session.connection.send_response(task, good, &[], &mut self.tx.bare());
        assert!(sent, "there was room for an answer");
        self.answered_at_once(slot, Operation::Write, len_bytes);
        self.session.stats.bytes_written.add(len_bytes);
        true
    }

    /// Put bytes where they belong, when that is memory or nowhere. False: it is not, or others may not be passed.
    #[inline]
    pub(crate) fn put_at_once(&self, slot: u32, offset_bytes: u64, data: &[u8]) -> bool {
        if !self.core.disks.at(slot).is_some_and(DiskSlot::is_open) {
            return false;
        }
        match self.core.disks.of_task(slot).backing() {
            Backing::Null => {}
            Backing::Memory(memory) => {
                self.core.revoke_tokens(slot, offset_bytes, data.len() as u64);
                memory.write(offset_bytes, data);
                self.core.revoke_tokens(slot, offset_bytes, data.len() as u64);
            }
            Backing::Chain { .. } => return false,
        }
        true
    }

    #[inline]
    fn answered_at_once(&mut self, slot: u32, operation: Operation, len_bytes: u64) {
        let now = self.core.now;
        self.core.record(slot, operation, len_bytes, now, true);
        self.core.answers_in_turn += 1;
    }
}
