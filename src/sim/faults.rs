//! What goes wrong in a simulated world, each kind by name with its probability.
//!
//! Everything listed here can happen on a real host; nothing else does. The default is a calm world: operations take a
//! little virtual time and nothing fails.
//!
//! **May know:** seeded randomness, and time as a type.

use std::ops::Range;

use super::random::{Chance, Random};
use crate::ring::Nanos;

/// What goes wrong on the network.
#[derive(Clone, Debug)]
pub struct NetworkFaults {
    /// A receive returns fewer bytes than have arrived (at least one).
    pub short_receive: Chance,
    /// A send takes fewer bytes than there is room for (at least one).
    pub short_send: Chance,
    /// Written bytes arrive in two or more pieces, cut anywhere; asked again for each rest.
    pub split: Chance,
    /// A piece of a stream, or a completion, comes late by up to `delay_max`.
    pub delay: Chance,
    /// The longest delay.
    pub delay_max: Nanos,
    /// A connection is reset while bytes are sent: both sides get an error and what was under way is lost. Asked for
    /// each write of either side.
    pub reset: Chance,
    /// A multishot accept ends early (its last completion has `more == false`), as the kernel may at any time.
    pub accept_ends: Chance,
    /// An accept fails with EMFILE: the process is out of descriptors. The connection waits in the backlog.
    pub accept_refused: Chance,
    /// A zero-copy send was copied by the kernel after all.
    pub copied: Chance,
}

impl Default for NetworkFaults {
    fn default() -> NetworkFaults {
        NetworkFaults {
            short_receive: Chance::NEVER,
            short_send: Chance::NEVER,
            split: Chance::NEVER,
            delay: Chance::NEVER,
            delay_max: Nanos(1_000_000),
            reset: Chance::NEVER,
            accept_ends: Chance::NEVER,
            accept_refused: Chance::NEVER,
            copied: Chance::ALWAYS,
        }
    }
}

impl NetworkFaults {
    /// A bad line that loses nothing: splits, short counts and delays everywhere.
    pub fn rough() -> NetworkFaults {
        NetworkFaults {
            short_receive: Chance::percent(30),
            short_send: Chance::percent(30),
            split: Chance::percent(40),
            delay: Chance::percent(30),
            accept_ends: Chance::percent(20),
            ..NetworkFaults::default()
        }
    }
}

/// What goes wrong with files.
#[derive(Clone, Debug)]
pub struct FileFaults {
    /// A read fails with EIO; what it left in the buffer is noise.
    pub eio_read: Chance,
    /// A write fails with EIO; any subset of its sectors has changed.
    pub eio_write: Chance,
    /// A sync or a durable write fails with EIO. As on Linux the error is told once: what could not be written is no
    /// longer queued, so a later sync succeeds without it.
    pub eio_sync: Chance,
    /// A write into fresh space, or an extension, fails with ENOSPC and changes nothing.
    pub enospc: Chance,
    /// A write stops early, at a sector boundary; the result says how far it came.
    pub short_write: Chance,
    /// Zeroing or punching a range is not supported here (EOPNOTSUPP).
    pub allocate_unsupported: Chance,
    /// Blocks cannot be shared here (EOPNOTSUPP), or nobody is free to do it (EAGAIN).
    pub share_unsupported: Chance,
    /// An operation takes up to `delay_max` longer.
    pub delay: Chance,
    /// The longest delay.
    pub delay_max: Nanos,
    /// A sync takes this much longer: the drive empties its cache.
    pub sync_takes: Nanos,
    /// Byte ranges that always fail with EIO, read or written: bad places of the disk.
    pub bad_ranges: Vec<Range<u64>>,
}

impl Default for FileFaults {
    fn default() -> FileFaults {
        FileFaults {
            eio_read: Chance::NEVER,
            eio_write: Chance::NEVER,
            eio_sync: Chance::NEVER,
            enospc: Chance::NEVER,
            short_write: Chance::NEVER,
            allocate_unsupported: Chance::NEVER,
            share_unsupported: Chance::NEVER,
            delay: Chance::percent(20),
            delay_max: Nanos(2_000_000),
            sync_takes: Nanos(0),
            bad_ranges: Vec::new(),
        }
    }
}

impl FileFaults {
    /// Whether the bytes `offset .. offset + len` touch a bad place.
    pub fn is_bad(&self, offset_bytes: u64, len_bytes: u64) -> bool {
        let end = offset_bytes.saturating_add(len_bytes);
        self.bad_ranges.iter().any(|bad| bad.start < end && offset_bytes < bad.end)
    }
}

/// A duration of up to `base`, and with `chance` up to `max` more. Never zero: an effect follows its cause.
pub(super) fn latency(random: &mut Random, base: Nanos, chance: Chance, max: Nanos) -> Nanos {
    let late = if random.happens(chance) { random.below(max.0.saturating_add(1)) } else { 0 };
    Nanos(1 + random.below(base.0.max(1)) + late)
}
