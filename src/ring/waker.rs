//! Waking a sleeping ring from another thread, and not paying for it when it is awake.
//!
//! One word of state is shared: `AWAKE`, `ASLEEP` or `WOKEN`. The ring reads an eventfd as one of its operations, so a
//! write to it ends the ring's wait.
//!
//! - A waker swaps `WOKEN` in. Only if it found `ASLEEP` does it write to the eventfd.
//! - Before waiting, the ring swaps `AWAKE` for `ASLEEP`; if it found `WOKEN` instead, it stores `AWAKE` and does not
//!   wait. After waiting it stores `AWAKE`.
//!
//! **No wake-up is lost.** All changes of the word have one order. Take a waker's swap W and the ring's next attempt to
//! sleep S. If W comes before S, then S finds `WOKEN` (or an earlier consumption of it, after which `enter` has
//! returned since W) and the ring does not wait. If W comes after S and before the ring stores `AWAKE`, then W, or
//! another waker's swap between S and W, found `ASLEEP` and writes to the eventfd; the read of it was submitted no
//! later than the wait, and the eventfd counts, so the wait ends whichever comes first. If W comes after that store,
//! the wait has ended already, `enter` returns, and the word is `WOKEN` for the next one.
//!
//! **What the waker did before is seen after.** W releases, and every consumption of `WOKEN` or end of a wait acquires
//! (they are swaps, too, so that they read from W or from a later change in W's release sequence).
//!
//! A write that arrives after its wait ended for another reason makes one later wait return early: harmless.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::Wake;

const AWAKE: u32 = 0;
const ASLEEP: u32 = 1;
const WOKEN: u32 = 2;

#[derive(Debug)]
struct Shared {
    state: AtomicU32,
    eventfd: File,
}

/// Wakes a [`UringRing`](super::UringRing). Costs one atomic operation while that ring is awake.
#[derive(Clone, Debug)]
pub struct UringWaker {
    shared: Arc<Shared>,
}

impl UringWaker {
    pub(super) fn new() -> io::Result<UringWaker> {
        // SAFETY: no memory is passed. Blocking mode, so that the ring's read waits.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, and owned by nobody else.
        let eventfd = unsafe { File::from_raw_fd(fd) };
        Ok(UringWaker { shared: Arc::new(Shared { state: AtomicU32::new(AWAKE), eventfd }) })
    }

    /// The descriptor whose eight bytes the ring reads.
    pub(super) fn eventfd(&self) -> RawFd {
        self.shared.eventfd.as_raw_fd()
    }

    /// The ring is about to wait. False when it must not, because someone woke it since.
    pub(super) fn sleep(&self) -> bool {
        let state = &self.shared.state;
        match state.compare_exchange(AWAKE, ASLEEP, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => true,
            Err(found) => {
                assert!(found == WOKEN, "a ring slept twice");
                state.swap(AWAKE, Ordering::AcqRel);
                false
            }
        }
    }

    /// The ring's wait has ended.
    pub(super) fn rise(&self) {
        self.shared.state.swap(AWAKE, Ordering::AcqRel);
    }

    /// The ring passes by without waiting, which answers every wake so far.
    #[inline]
    pub(super) fn pass(&self) {
        if self.shared.state.load(Ordering::Relaxed) == WOKEN {
            self.shared.state.swap(AWAKE, Ordering::AcqRel);
        }
    }
}

impl Wake for UringWaker {
    #[inline]
    fn wake(&self) {
        if self.shared.state.swap(WOKEN, Ordering::AcqRel) == ASLEEP {
            // Adding one blocks or fails only at 2^64 - 1, and the ring takes the count at each wake.
            let written = (&self.shared.eventfd).write(&1u64.to_ne_bytes());
            assert!(written.is_ok(), "an eventfd takes a count");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn only_a_sleeping_ring_costs_a_write_and_only_one() {
        let waker = UringWaker::new().unwrap();
        waker.wake();
        assert!(!waker.sleep(), "woken while awake: the next wait is skipped");
        assert!(waker.sleep(), "and that one wake is used up");
        for _ in 0..3 {
            waker.wake();
        }
        let mut count = [0; 8];
        (&waker.shared.eventfd).read_exact(&mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 1);
        waker.rise();
        assert!(waker.sleep());
        waker.rise();
        waker.wake();
        waker.pass();
        assert!(waker.sleep(), "passing by answers the wake");
    }
}
