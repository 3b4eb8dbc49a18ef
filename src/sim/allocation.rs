//! A mark for "this is the simulator's own work", so that a test's counting allocator can leave it out.
//!
//! The simulator keeps its files, pipes and histories on the heap and may allocate at any time. A test that proves that
//! a shard allocates nothing counts an allocation only when [`is_simulator`] says no.
//!
//! **May know:** nothing.

use std::cell::Cell;

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// Whether the calling thread is inside the simulator now.
pub fn is_simulator() -> bool {
    // A thread that is being torn down has lost its locals; what it still does is not a shard's work.
    DEPTH.try_with(Cell::get).map_or(true, |depth| depth > 0)
}

/// While it lives, its thread is inside the simulator.
pub(super) struct Inside(());

impl Inside {
    pub(super) fn enter() -> Inside {
        DEPTH.with(|depth| depth.set(depth.get() + 1));
        Inside(())
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        DEPTH.with(|depth| depth.set(depth.get() - 1));
    }
}
