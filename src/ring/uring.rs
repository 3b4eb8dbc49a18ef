//! The ring of the Linux kernel.

use std::net::SocketAddr;

use super::probe::{Features, RingError};
use super::{Completion, Fd, Nanos, Op, Ring, Tag, Token, Wait, Wake};
use crate::mem::Arena;

/// How large a ring is, and what it may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UringConfig {
    /// Operations in flight at most; up to 65536.
    pub slots: u32,
    /// Operations that can be queued between two `enter`s without a system call; a power of two up to 4096.
    pub submissions: u32,
    /// What [`Features::probe`] found, once for all rings.
    pub features: Features,
}

/// A ring over io_uring. Stays on the thread that made it.
#[derive(Debug)]
pub struct UringRing {
    features: Features,
}

/// Wakes a [`UringRing`].
#[derive(Clone, Debug)]
pub struct UringWaker;

impl UringRing {
    /// Make a ring on this thread, which alone may use it. `arena` is the one whose buffers are registered as fixed buffers.
    pub fn new(config: UringConfig, arena: &Arena) -> Result<UringRing, RingError> {
        let _ = (config, arena);
        todo!()
    }

    /// What this ring uses.
    pub fn features(&self) -> &Features {
        &self.features
    }
}

impl Wake for UringWaker {
    fn wake(&self) {
        todo!()
    }
}

impl Ring for UringRing {
    type Waker = UringWaker;

    fn submit(&mut self, _tag: Tag, _op: Op) -> Result<Token, Op> {
        todo!()
    }

    fn cancel(&mut self, _token: Token) {
        todo!()
    }

    fn enter(&mut self, _wait: Wait) -> Result<(), RingError> {
        todo!()
    }

    fn reap(&mut self) -> Option<Completion> {
        todo!()
    }

    fn now(&self) -> Nanos {
        todo!()
    }

    fn waker(&self) -> UringWaker {
        todo!()
    }

    fn in_flight(&self) -> usize {
        todo!()
    }

    fn slots_free(&self) -> usize {
        todo!()
    }

    fn addresses(&self, _socket: Fd) -> Option<(SocketAddr, SocketAddr)> {
        todo!()
    }
}
