//! What a process has used so far, from the kernel's own accounting in `/proc`: CPU time, memory, descriptors,
//! wake-ups.

use std::fs;
use std::io;
use std::time::Duration;

/// A snapshot of one process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// CPU time of all its living threads (schedstat, nanosecond resolution).
    pub cpu: Duration,
    /// User CPU time (clock ticks of 10 ms).
    pub user: Duration,
    /// System CPU time (clock ticks of 10 ms).
    pub system: Duration,
    /// How often its threads were put on a CPU: a measure of wake-ups.
    pub wakeups: u64,
    /// Resident memory, in bytes.
    pub resident_bytes: u64,
    /// Open descriptors.
    pub descriptors: usize,
}

/// Ticks per second of `/proc/PID/stat`; 100 on every Linux that this runs on.
const TICKS_PER_SECOND: u64 = 100;

impl Usage {
    /// What the process has used up to now.
    pub fn of(pid: u32) -> io::Result<Usage> {
        let mut usage = Usage::default();
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
            let mut numbers = text.split_whitespace().map(|n| n.parse::<u64>().unwrap_or(0));
            usage.cpu += Duration::from_nanos(numbers.next().unwrap_or(0));
            usage.wakeups += numbers.nth(1).unwrap_or(0);
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let mut ticks = after_name.split_whitespace().skip(11).map(|n| n.parse::<u64>().unwrap_or(0));
        let mut ticks = || Duration::from_millis(ticks.next().unwrap_or(0) * 1000 / TICKS_PER_SECOND);
        usage.user = ticks();
        usage.system = ticks();
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = resident.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        usage.resident_bytes = kilobytes.unwrap_or(0) * 1024;
        usage.descriptors = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
        Ok(usage)
    }

    /// What was used between an earlier snapshot and this one (memory and descriptors: as they are now).
    pub fn since(&self, earlier: &Usage) -> Usage {
        Usage {
            cpu: self.cpu.saturating_sub(earlier.cpu),
            user: self.user.saturating_sub(earlier.user),
            system: self.system.saturating_sub(earlier.system),
            wakeups: self.wakeups.saturating_sub(earlier.wakeups),
            ..*self
        }
    }
}

/// CPU time that the calling thread has used so far, user and system.
pub fn own_cpu() -> io::Result<Duration> {
    let text = fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanos = text.split_whitespace().next().and_then(|n| n.parse().ok());
    nanos.map(Duration::from_nanos).ok_or_else(|| io::Error::other("schedstat is not readable"))
}

/// Pin the calling thread to one CPU. False when the CPU does not exist or may not be used.
pub fn pin(core: usize) -> bool {
    core_affinity::set_for_current(core_affinity::CoreId { id: core })
}
