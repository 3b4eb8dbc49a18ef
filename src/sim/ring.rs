//! The simulated ring: what a shard holds of its [`World`](super::World).
//!
//! **May know:** the simulated kernel and the ring's contract.

use std::cell::RefCell;
use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::allocation::Inside;
use super::kernel::Kernel;
use crate::ring::{Completion, Errno, Fd, Nanos, Op, Ring, RingError, Tag, Token, Wait, Wake};

/// A ring of a simulated world. Made by [`World::ring`](super::World::ring).
///
/// Alone in its world, `enter` behaves as the kernel's: waiting lets virtual time pass until something completes; a
/// wait without a limit returns when nothing can ever happen any more. Under [`World::run`](super::World::run) it never
/// lets time pass: a ring with nothing to do returns, so that the others get their turns.
pub struct SimRing {
    kernel: Rc<RefCell<Kernel>>,
    index: usize,
}

impl fmt::Debug for SimRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimRing({})", self.index)
    }
}

impl SimRing {
    pub(super) fn new(kernel: Rc<RefCell<Kernel>>, slots: usize) -> SimRing {
        let index = kernel.borrow_mut().add_ring(slots);
        SimRing { kernel, index }
    }

    /// Which ring of its world this is, as [`OpNote::ring`](super::OpNote::ring) has it.
    pub fn index(&self) -> usize {
        self.index
    }
}

impl Ring for SimRing {
    type Waker = SimWaker;

    fn submit(&mut self, tag: Tag, op: Op) -> Result<Token, Op> {
        let _inside = Inside::enter();
        self.kernel.borrow_mut().submit(self.index, tag, op)
    }

    fn cancel(&mut self, token: Token) {
        let _inside = Inside::enter();
        self.kernel.borrow_mut().cancel(self.index, token);
    }

    /// Fails after the simulated process was killed, with ESRCH.
    fn enter(&mut self, wait: Wait) -> Result<(), RingError> {
        let _inside = Inside::enter();
        let mut kernel = self.kernel.borrow_mut();
        if !kernel.is_alive(self.index) {
            return Err(RingError::System { what: "entering the ring of a killed process", errno: Errno(libc::ESRCH) });
        }
        let deadline = match wait {
            Wait::Poll => None,
            Wait::Until(at) => Some(at),
            Wait::Forever => Some(Nanos(u64::MAX)),
        };
        kernel.enter(self.index, deadline);
        Ok(())
    }

    fn reap(&mut self) -> Option<Completion> {
        let _inside = Inside::enter();
        self.kernel.borrow_mut().reap(self.index)
    }

    fn now(&self) -> Nanos {
        self.kernel.borrow().now()
    }

    fn waker(&self) -> SimWaker {
        let _inside = Inside::enter();
        SimWaker { woken: self.kernel.borrow().waker_flag(self.index) }
    }

    fn in_flight(&self) -> usize {
        self.kernel.borrow().in_flight(self.index)
    }

    fn slots_free(&self) -> usize {
        self.kernel.borrow().slots_free(self.index)
    }

    fn addresses(&self, socket: Fd) -> Option<(SocketAddr, SocketAddr)> {
        self.kernel.borrow().addresses(socket)
    }
}

impl Drop for SimRing {
    fn drop(&mut self) {
        let _inside = Inside::enter();
        // While a failed assertion unwinds, the kernel may be borrowed; nobody looks at this world afterwards.
        if let Ok(mut kernel) = self.kernel.try_borrow_mut() {
            kernel.drop_ring(self.index);
        }
    }
}

/// Wakes a [`SimRing`].
#[derive(Clone, Debug)]
pub struct SimWaker {
    woken: Arc<AtomicBool>,
}

impl Wake for SimWaker {
    fn wake(&self) {
        self.woken.store(true, Ordering::Release);
    }
}
