//! The same shard code on a simulated ring, disk, network and clock.
//!
//! A [`World`] is a small computer in memory: a clock that moves only when something happens, files that know what a
//! power cut would leave of them, byte streams that arrive late and in pieces. [`SimRing`] is its io_uring: a second
//! implementation of [`crate::ring::Ring`]. Several rings, and the clients of their listeners ([`Stream`]), share one
//! world in one thread. Everything that the real kernel leaves open (which operation ends first, how much a receive
//! returns, what fails) is drawn from the world's seed, so one number repeats a run exactly; [`World::history_hash`]
//! tells whether two runs were the same.
//!
//! ```text
//!   test, tool ── scenario ── World::run ──┬── shard 0 on SimRing ──┐
//!                                          ├── shard 1 on SimRing ──┼── kernel: clock, events, disk, network
//!                                          └── clients on Stream  ──┘
//! ```
//!
//! The simulated kernel is stricter than the real one: two receives at once on one socket, a close with operations in
//! flight, a window outside its buffer, an operation that completes twice stop the program at once.
//!
//! What goes wrong, and how often, is said by name in [`NetworkFaults`] and [`FileFaults`]. The end of a process is
//! [`World::process_kill`] (completed writes stay) or [`World::power_cut`] (of the unflushed ones any subset stays,
//! torn and reordered by sector); [`World::after_power_cut`] looks at such an end without stopping this world.
//!
//! **May know:** `shard`, `ring`, `mem` and what they know. Nothing knows the simulator but tests and tools.

mod allocation;
mod disk;
mod faults;
mod history;
mod initiator;
pub mod instant;
mod kernel;
mod network;
mod random;
mod ring;
pub mod scenario;
mod stream;
mod world;

pub use allocation::is_simulator;
pub use disk::SECTOR_BYTES;
pub use faults::{FileFaults, NetworkFaults};
pub use history::{Event, OpKind, OpNote, What, hash_bytes};
pub use initiator::{
    Arbiter, End, Fencer, FencerConfig, Initiator, InitiatorConfig, InitiatorReport, Keeping, LunPlan, SHARED_SECTORS,
    SHARERS_MAX, SessionPlayer,
};
pub use kernel::{FileOptions, StreamError};
pub use random::{Chance, Random};
pub use ring::{SimRing, SimWaker};
pub use stream::Stream;
pub use world::{Outcome, RunLimit, Runnable, World, WorldConfig};
