//! COMPARE AND WRITE and ORWRITE: reading blocks and writing them so that nobody comes in between.
//!
//! All Data-Out of a window comes first, and with it the buffer that the blocks are read into; then the command has the
//! blocks to itself ([`super::exclusive`]) until it has written them. COMPARE AND WRITE does so for all its blocks at
//! once: they are one window, and its two halves of Data-Out are held together. ORWRITE does so window by window.

use super::session::{Immediate, Kind, Work};
use crate::iscsi::transfer::TaskId;
use crate::limits::{BURST_LENGTH_MAX, COMPARE_AND_WRITE_BLOCKS_MAX};
use crate::mem::{Buf, Slice};
use crate::observe::Operation;
use crate::ring::Ring;
use crate::scsi::{MediumError, Outcome, Sense, SenseCode};
use crate::units::Lba;

// Each half of COMPARE AND WRITE's Data-Out fits one buffer, whatever the block length.
const _: () = assert!(COMPARE_AND_WRITE_BLOCKS_MAX as u32 * 4096 <= BURST_LENGTH_MAX);

impl<R: Ring> Work<'_, R> {
    /// COMPARE AND WRITE.
    pub(crate) fn start_compare_and_write(
        &mut self,
        task: TaskId,
        lba: Lba,
        blocks: u8,
        fua: bool,
        data: Immediate<'_>,
    ) {
        let block_bytes = self.block_bytes(task);
        let data_out = 2 * u32::from(blocks) * block_bytes;
        let expected = self.session.connection.command(task).expected_write_length();
        let entry = self.task(task);
        entry.offset_bytes = lba.0 * u64::from(block_bytes);
        entry.transfer_length = u64::from(data_out);
        entry.kind = Kind::CompareAndWrite;
        entry.operation = Operation::Write;
        entry.durable |= fua;
        if expected != data_out {
            // Half a comparison is none; and with more, it is not clear where what is to be written begins.
            return self.complete(task, Outcome::check_condition(Sense::new(SenseCode::INVALID_FIELD_IN_CDB)));
        }
        entry.total = data_out;
        entry.data_total = data_out;
        let window = entry.window_bytes_max().min(data_out) as usize;
        if !self.widen_buffer(task, window, data.len() as usize) {
            return self.complete(task, MediumError::Busy.outcome());
        }
        self.receive_data(task, data_out, data);
    }

    /// Where a command's first data was received into a buffer that cannot take all that is looked at together, have a
    /// larger one. False: there is none.
    pub(crate) fn widen_buffer(&mut self, task: TaskId, window: usize, received: usize) -> bool {
        let Some(small) = self.task(task).buf.take_if(|buf| buf.len() < window) else { return true };
        let Some(mut buf) = self.core.io.arena.take(window) else { return false };
        let len = received.min(small.len());
        buf[..len].copy_from_slice(&small[..len]);
        self.task(task).buf = Some(buf);
        true
    }

    /// ORWRITE.
    pub(crate) fn start_or_write(&mut self, task: TaskId, lba: Lba, blocks: u32, fua: bool, data: Immediate<'_>) {
        let block_bytes = u64::from(self.block_bytes(task));
        let medium_bytes = u64::from(blocks) * block_bytes;
        let entry = self.task(task);
        entry.offset_bytes = lba.0 * block_bytes;
        entry.transfer_length = medium_bytes;
        entry.kind = Kind::OrWrite;
        entry.operation = Operation::Write;
        entry.durable |= fua;
        self.start_write(task, medium_bytes, medium_bytes, data);
    }

    /// A window of COMPARE AND WRITE's data is here.
    pub(crate) fn compare_data_received(&mut self, task: TaskId) {
        let entry = self.task(task);
        let half = entry.total / 2;
        let Some(data) = entry.data.take() else { return };
        match entry.second.take() {
            None if data.len() as u32 == half => {
                // What to compare with; what to write comes with the next window.
                entry.second = Some(data);
                entry.done = half;
                entry.window = 0;
                entry.received = 0;
                return self.open_window(task);
            }
            None => {
                entry.second = Some(data.slice(half as usize..data.len()));
                entry.data = Some(data.slice(0..half as usize));
            }
            Some(compare) => {
                entry.data = Some(compare);
                entry.second = Some(data);
            }
        }
        entry.done = 0;
        entry.window = half;
        self.exclude(task);
    }

    /// Have the window's blocks to oneself, and then read them: into a buffer that is there beforehand, so that nobody
    /// who waits for the blocks can keep memory from who has them.
    pub(crate) fn exclude(&mut self, task: TaskId) {
        let entry = self.task(task);
        entry.through = 0;
        let window = entry.window as usize;
        if entry.buf.is_none() {
            let Some(buf) = self.core.io.arena.take(window) else {
                return self.starve(task, super::session::Resume::Exclude);
            };
            self.task(task).buf = Some(buf);
        }
        self.ask_range(task);
    }

    /// A buffer for so many bytes that are read: the one that was taken beforehand, or a new one.
    pub(crate) fn buffer_to_read(&mut self, task: TaskId, len: u32) -> Option<Buf> {
        let spare = self.task(task).buf.take_if(|buf| buf.len() >= len as usize);
        spare.or_else(|| self.core.io.arena.take(len as usize))
    }

    /// What was read has been looked at: its buffer serves for the next part of the window.
    pub(crate) fn keep_buffer(&mut self, task: TaskId, bytes: Slice) {
        let buf = bytes.try_thaw().ok().and_then(|buf| buf.into_whole_slot().ok());
        let entry = self.task(task);
        if entry.range.is_some() && entry.buf.is_none() {
            entry.buf = buf;
        }
    }

    /// Blocks of ORWRITE's window have been read; or blocks that WRITE ATOMIC writes where they are read from a parent,
    /// whose own data is elsewhere by now.
    pub(crate) fn merge(&mut self, task: TaskId, bytes: &[u8]) {
        let entry = self.task(task);
        let data = entry.data.take().expect("a window that is merged has its data");
        let mut data = data.try_thaw().expect("nobody else holds a window's data");
        let place = &mut data[entry.through as usize..][..bytes.len()];
        if entry.kind == Kind::WriteAtomic {
            place.copy_from_slice(bytes);
        } else {
            for (byte, read) in place.iter_mut().zip(bytes) {
                *byte |= read;
            }
        }
        entry.data = Some(data.freeze());
    }

    /// The window's blocks have been read, and compared or merged: write them.
    pub(crate) fn write_exclusively(&mut self, task: TaskId) {
        let entry = self.task(task);
        if entry.kind == Kind::CompareAndWrite {
            entry.data = entry.second.take();
        }
        entry.buf = None;
        entry.through = 0;
        self.write_out(task);
    }

    /// They have been written.
    pub(crate) fn written_exclusively(&mut self, task: TaskId) {
        self.release_range(task);
        let entry = self.task(task);
        if entry.kind == Kind::CompareAndWrite {
            entry.done = entry.window;
            return self.complete(task, Outcome::GOOD);
        }
        self.window_done(task);
    }
}

impl super::session::Task {
    /// The most bytes of Data-Out that come before something is done with them.
    pub(crate) fn window_bytes_max(&self) -> u32 {
        match self.kind {
            Kind::CompareAndWrite if self.total > BURST_LENGTH_MAX => self.total / 2,
            _ => BURST_LENGTH_MAX,
        }
    }
}
