//! Load on a target or on the reference server: closed-loop (a fixed number of commands in flight, each completion
//! replaced at once) or open-loop (a fixed rate of arrivals, whatever the server does), latencies in histograms, and
//! what each I/O cost the server.
//!
//! Open-loop latencies count from the moment in which an I/O was due, not from when there was room to send it, so a
//! server that stops for a while is charged with everything that should have happened meanwhile.

mod choice;
mod drive;
mod report;
mod trace;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

pub use choice::{Action, BLOCK_LEN_MAX, Chooser, Io, Mix, Order, size};
pub use report::{Percentiles, Report, Second};
pub use trace::{Record, Trace};

use crate::login::Wishes;

/// When I/Os start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// As soon as there is room for them.
    Closed,
    /// So many in a second, on all connections together, evenly.
    Even(f64),
    /// So many in a second on average, at random moments (a Poisson process).
    Random(f64),
    /// As often as the trace says, so many times as fast.
    Trace(f64),
}

/// One run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The server.
    pub portal: SocketAddr,
    /// Logins; none for the bare reference.
    pub wishes: Option<Wishes>,
    /// Logical units, used equally often.
    pub luns: Vec<u16>,
    /// Bytes per I/O.
    pub mix: Mix,
    /// Writes among a hundred I/Os.
    pub write_percent: u8,
    /// Which blocks.
    pub order: Order,
    /// When.
    pub pace: Pace,
    /// Commands in flight on each connection, at most.
    pub depth: u32,
    /// Sessions, all driven by the calling thread.
    pub connections: u32,
    /// How long is measured.
    pub duration: Duration,
    /// Load before the measuring starts.
    pub warm_up: Duration,
    /// The server's process, for its CPU time.
    pub server_pid: Option<u32>,
    /// Stay within this many bytes of each logical unit; 0 is all of it.
    pub span_bytes: u64,
    /// How long to spin before sleeping, while nothing arrives.
    pub spin: Duration,
    /// Of all choices.
    pub seed: u64,
    /// Start so many I/Os and end when they have ended (closed loop, without warm-up).
    pub ios_max: Option<u64>,
    /// Ask for what this trace holds, once, on the first logical unit; without warm-up. Choices are then not made.
    pub trace: Option<Arc<Trace>>,
}

impl Plan {
    /// 4 KiB reads anywhere, 32 in flight on one connection, five seconds; the reference server.
    pub fn new(portal: SocketAddr) -> Plan {
        Plan {
            portal,
            wishes: None,
            luns: vec![0],
            mix: Mix::of(4096),
            write_percent: 0,
            order: Order::Random,
            pace: Pace::Closed,
            depth: 32,
            connections: 1,
            duration: Duration::from_secs(5),
            warm_up: Duration::from_millis(500),
            server_pid: None,
            span_bytes: 0,
            spin: Duration::from_micros(20),
            seed: 0x1f2e,
            ios_max: None,
            trace: None,
        }
    }

    /// Run it on the calling thread.
    pub fn run(&self) -> Result<Report, String> {
        drive::run(self)
    }
}
