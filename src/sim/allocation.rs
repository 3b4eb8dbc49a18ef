//! Marks for "this is a shard's turn" and "this is the simulator's own work", for a test's counting allocator.
//!
//! The simulator keeps its files, pipes and histories on the heap and may allocate at any time, and so may simulated
//! clients. A test that proves that a shard allocates nothing counts what [`is_shard_turn`] says is the shard's.
//!
//! **May know:** nothing.

use std::cell::Cell;

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    static TURN: Cell<bool> = const { Cell::new(false) };
}

/// Whether the calling thread runs a shard's own code now: in its turn, and not inside the simulator.
pub fn is_shard_turn() -> bool {
    // A thread that is being torn down has lost its locals; what it still does is not a shard's work.
    TURN.try_with(Cell::get).unwrap_or(false) && DEPTH.try_with(Cell::get).is_ok_and(|depth| depth == 0)
}

/// While it lives, its thread takes a shard's turn.
pub(super) struct ShardTurn(());

impl ShardTurn {
    pub(super) fn begin() -> ShardTurn {
        TURN.set(true);
        ShardTurn(())
    }
}

impl Drop for ShardTurn {
    fn drop(&mut self) {
        TURN.set(false);
    }
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
