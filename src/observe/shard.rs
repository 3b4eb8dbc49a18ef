//! Counters of one shard and of one session.

use super::counter::{Counter, Gauge};

macro_rules! shard_stats {
    ($($(#[doc = $help:literal])+ $kind:ident $name:ident;)*) => {
        /// Counters of one shard, written by its thread alone.
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub struct ShardStats {
            $($(#[doc = $help])+ pub $name: $kind,)*
        }

        /// What a shard's counters showed at one moment.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        pub struct ShardSummary {
            $($(#[doc = $help])+ pub $name: u64,)*
        }

        impl ShardStats {
            /// Read every counter once.
            pub fn summary(&self) -> ShardSummary {
                ShardSummary { $($name: self.$name.value(),)* }
            }
        }

        impl ShardSummary {
            /// Every number: name, whether it only grows, meaning, value.
            pub fn rows(&self) -> impl Iterator<Item = (&'static str, bool, &'static str, u64)> {
                let help = [$(concat!($($help),+).trim_ascii()),*];
                let numbers = [$((stringify!($name), shard_stats!(@grows $kind), self.$name)),*];
                numbers.into_iter().zip(help).map(|((name, grows, value), help)| (name, grows, help, value))
            }
        }
    };
    (@grows Counter) => { true };
    (@grows Gauge) => { false };
}

shard_stats! {
    /// Turns of the shard's loop.
    Counter turns;
    /// Times the shard went to sleep in the kernel.
    Counter sleeps;
    /// Completions reaped from the ring.
    Counter completions;
    /// Connections accepted.
    Counter accepted;
    /// Logins that reached full feature phase.
    Counter logins;
    /// Logins refused.
    Counter login_failures;
    /// Sessions ended by Logout.
    Counter logouts;
    /// PDUs received.
    Counter pdus_in;
    /// PDUs sent.
    Counter pdus_out;
    /// Bytes received from initiators, headers included.
    Counter bytes_in;
    /// Bytes sent to initiators, headers included.
    Counter bytes_out;
    /// Reject PDUs sent.
    Counter rejects;
    /// PDUs whose header digest did not match.
    Counter header_digest_errors;
    /// PDUs whose data digest did not match.
    Counter data_digest_errors;
    /// Messages from other threads handled.
    Counter messages;
    /// Requests turned away for want of memory.
    Counter turned_away;
    /// Connections dropped by the server (timeouts, protocol errors, session drop).
    Counter connections_dropped;
    /// Bytes copied by EXTENDED COPY and WRITE USING TOKEN, zeros that were only deallocated left out.
    Counter copied_bytes;
    /// Of those, bytes that were not moved: files share their blocks.
    Counter copy_shared_bytes;
    /// Bytes of the shard's arena in use.
    Gauge memory_used_bytes;
    /// Connections now, those in login included.
    Gauge connections;
    /// Sessions now.
    Gauge sessions;
}

impl ShardStats {
    /// Counters at zero.
    pub fn new() -> ShardStats {
        ShardStats::default()
    }
}

/// Counters of one session, written by the shard that owns its connection.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct SessionStats {
    /// SCSI commands received.
    pub commands: Counter,
    /// Payload bytes sent to the initiator.
    pub bytes_read: Counter,
    /// Payload bytes taken from the initiator.
    pub bytes_written: Counter,
    /// Commands that ended with an error status.
    pub errors: Counter,
}

impl SessionStats {
    /// Counters at zero.
    pub fn new() -> SessionStats {
        SessionStats::default()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_rows_name_every_number_and_its_kind() {
        let stats = ShardStats::new();
        stats.logins.add(3);
        stats.sessions.set(2);
        let rows: Vec<_> = stats.summary().rows().collect();
        assert!(rows.contains(&("logins", true, "Logins that reached full feature phase.", 3)), "{rows:?}");
        assert!(rows.contains(&("sessions", false, "Sessions now.", 2)), "{rows:?}");
    }
}
