//! Containers whose capacity is fixed when they are made: they allocate then and never again.
//!
//! A leaf that every module may use.

mod bits;
mod queue;
mod slab;

pub use bits::BitSet;
pub use queue::Queue;
pub use slab::{Key, Slab};
