//! Sending Data-In again that an initiator has missed (ErrorRecoveryLevel 1, RFC 7143 section 11.16): nothing was kept,
//! so the medium is read again.
//!
//! Only data of blocks can be had again; other replies are a few bytes that were made on the spot, and a SNACK for them
//! is rejected: the initiator sends the command again. So is a SNACK for blocks of a disk that has been written
//! atomically since the command began: what has arrived and what comes again could be of two WRITE ATOMICs.

use super::link::LinkState;
use super::session::{Answer, Kind, Work};
use crate::iscsi::transfer::TaskId;
use crate::observe::Operation;
use crate::ring::Ring;

impl<R: Ring> Work<'_, R> {
    /// Begin with what has been asked for, one task at a time.
    pub(crate) fn start_resends(&mut self) {
        while let Some(task) = self.session.connection.poll_resend() {
            let origin = self.task(task).origin;
            let slot = origin.and_then(|(disk, _)| self.core.disks.find(disk));
            let (Some((_, offset_bytes)), Some(slot)) = (origin, slot) else {
                self.end_resend(task, false);
                continue;
            };
            if let Some(disk) = self.core.disks.at_mut(slot) {
                disk.tasks += 1;
            }
            let now = self.core.now;
            let entry = self.task(task);
            entry.disk = Some(slot);
            entry.kind = Kind::Read;
            entry.operation = Operation::Other;
            entry.answer = Answer::Resend;
            entry.offset_bytes = offset_bytes;
            entry.started = now;
            self.read_again(task);
        }
    }

    /// Read the next window of what is to be sent again, from the block on in which it begins.
    fn read_again(&mut self, task: TaskId) {
        let Some(span) = self.session.connection.resend_span(task) else {
            return self.end_resend(task, true);
        };
        let slot = self.task(task).disk.expect("taken at the start");
        let block_bytes = self.core.disks.of_task(slot).block_length();
        let entry = self.task(task);
        entry.done = span.offset / block_bytes * block_bytes;
        entry.total = (span.offset + span.len).next_multiple_of(block_bytes);
        self.read_in(task);
    }

    /// Emit what has been read. False when there was no room for all of it.
    pub(crate) fn emit_again(&mut self, task: TaskId) -> bool {
        let session = &mut *self.session;
        let entry = &session.tasks[usize::from(task.0)];
        let (base, Some(payload)) = (entry.done, entry.read.clone()) else { return true };
        let before = session.connection.resend_span(task);
        let sink = &mut self.tx.with_payload(&payload);
        if !session.connection.resend_data_in(task, base, payload.len(), sink) {
            return false;
        }
        let after = session.connection.resend_span(task);
        self.task(task).clear_read();
        if after.is_some() && after == before {
            // A PDU that does not fit a window from its block on.
            self.end_resend(task, false);
        } else {
            self.read_again(task);
        }
        true
    }

    /// All has been sent again, or cannot be had.
    pub(crate) fn end_resend(&mut self, task: TaskId, done: bool) {
        self.free(task);
        if self.session.connection.end_resend(task, done).is_err() {
            *self.state = LinkState::Finishing;
        }
    }
}
