//! LOG SENSE and LOG SELECT: what was done on a unit, and how much space is behind it. REPORT TIMESTAMP: when that was.

use std::time::{SystemTime, UNIX_EPOCH};

use super::session::{Answer, Work};
use super::settings::Setting;
use crate::iscsi::transfer::TaskId;
use crate::medium::Backing;
use crate::observe::Operation;
use crate::ring::Ring;
use crate::scsi::{LogData, MediumError, log, timestamp};

/// Bytes of the longest page.
const PAGE_BYTES_MAX: usize = 128;

impl<R: Ring> Work<'_, R> {
    /// LOG SENSE.
    pub(crate) fn log_sense(&mut self, task: TaskId, page: u8, allocation_length: u16) {
        let Some(mut buf) = self.core.io.arena.take(PAGE_BYTES_MAX) else {
            return self.complete(task, MediumError::Busy.outcome());
        };
        let slot = self.task(task).disk.expect("a log is of a unit");
        let mut data = self.log_data(slot);
        data.count_from(&self.core.disks.of_task(slot).log_base());
        let mut bytes = [0; PAGE_BYTES_MAX];
        let len = log::report(self.unit_of(task), page, &data, allocation_length, &mut bytes);
        buf[..len].copy_from_slice(&bytes[..len]);
        buf.truncate(len);
        self.send_data_in(task, buf, len);
    }

    /// LOG SELECT: what was counted until now is not told any more.
    pub(crate) fn log_reset(&mut self, task: TaskId) {
        let slot = self.task(task).disk.expect("a log is of a unit");
        let data = self.log_data(slot);
        self.core.disks.of_task(slot).set_log_base(&data);
        self.ask_setting(task, Setting::LogReset);
    }

    /// REPORT TIMESTAMP: the host's clock now, which may have been set since the last time.
    pub(crate) fn report_timestamp(&mut self, task: TaskId, allocation_length: u32) {
        let mut bytes = [0; timestamp::BYTES];
        let Some(mut buf) = self.core.io.arena.take(bytes.len()) else {
            return self.complete(task, MediumError::Busy.outcome());
        };
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let len = timestamp::report(since_1970.as_millis() as u64, allocation_length, &mut bytes);
        buf[..len].copy_from_slice(&bytes[..len]);
        buf.truncate(len);
        self.send_data_in(task, buf, len);
    }

    /// Send a reply that is in a buffer.
    pub(crate) fn send_data_in(&mut self, task: TaskId, buf: crate::mem::Buf, len: usize) {
        let entry = self.task(task);
        entry.answer = Answer::DataIn;
        entry.transfer_length = len as u64;
        if len > 0 {
            entry.set_read(buf.freeze());
        }
        self.send_when_drained(task);
    }

    /// What all shards have counted for a disk. What they have not counted yet is told the next time.
    fn log_data(&self, slot: u32) -> LogData {
        let entry = self.core.disks.at(slot).expect("a disk stays attached while tasks use it");
        let mut data = LogData::default();
        for stats in entry.disk.all_stats() {
            let (read, write) = (stats.of(Operation::Read), stats.of(Operation::Write));
            data.reads += read.operations.value();
            data.writes += write.operations.value();
            data.bytes_transmitted += read.bytes.value();
            data.bytes_received += write.bytes.value();
            data.read_us += read.latency.sum_ns() / 1000;
            data.write_us += write.latency.sum_ns() / 1000;
        }
        // At least so long was nobody at work: commands that were at work together are counted each for itself.
        let since_us = (self.core.now.0 - entry.settings.since.0) / 1000;
        data.idle_us = since_us.saturating_sub(data.read_us + data.write_us);
        (data.available_bytes, data.used_bytes) = match entry.disk.backing() {
            Backing::Memory(memory) => (memory.len().saturating_sub(memory.used_bytes()), memory.used_bytes()),
            _ => (entry.disk.space().available_bytes(), entry.disk.space().allocated_bytes()),
        };
        data
    }
}
