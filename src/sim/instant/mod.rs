//! A server of one shard whose kernel costs nothing: for measuring what the shard itself costs.
//!
//! [`InstantRing`] completes every operation at once and moves no bytes but those that are received, so that what a
//! profile of [`Rig::turn`] shows is the shard's own way from the received bytes to the gathered send. The same run has
//! the same instructions each time; the tool `tools cost` counts them and holds the budget, the bench `shard` takes the
//! time.
//!
//! **May know:** everything below the control plane.

mod pieces;
mod requests;
mod rig;
mod ring;

pub use pieces::Pieces;
pub use requests::{Access, Workload};
pub use rig::{COMMANDS_PER_TURN, Rig};
pub use ring::InstantRing;
