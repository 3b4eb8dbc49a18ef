//! A ring that completes what it is given at once.
//!
//! **May know:** the ring's contract.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;

use crate::ring::{Completion, Fd, Nanos, Op, Ring, RingError, Tag, Token, Wait, Wake};

/// Operations in flight at most.
const SLOTS: usize = 4096;

/// Virtual time between two looks at the clock.
const TICK_NS: u64 = 1000;

/// The connection's other end, and what waits for it.
#[derive(Default)]
pub(super) struct Wire {
    /// What the initiator has sent; received up to `taken`.
    pub(super) requests: Vec<u8>,
    pub(super) taken: usize,
    /// What it was answered, while that is kept.
    pub(super) answers: Vec<u8>,
    pub(super) keeps_answers: bool,
    /// Bytes that it was answered in all.
    pub(super) answered_bytes: u64,
    /// The initiator connects.
    pub(super) connects: bool,
    pub(super) receive: Option<(Tag, Token, Op)>,
    pub(super) accept: Option<(Tag, Token, Op)>,
}

/// See the module's description. File operations succeed in full and do nothing: what is read is what the buffer held.
pub struct InstantRing {
    wire: Rc<RefCell<Wire>>,
    done: VecDeque<Completion>,
    tokens: u64,
    now: Cell<u64>,
}

impl InstantRing {
    pub(super) fn new(wire: Rc<RefCell<Wire>>) -> Self {
        Self { wire, done: VecDeque::with_capacity(SLOTS), tokens: 0, now: Cell::new(1_000_000_000) }
    }

    fn complete(&mut self, tag: Tag, token: Token, op: Op, result: u32) {
        self.done.push_back(Completion { tag, token, op: Some(op), result: Ok(result), more: false, copied: false });
    }

    /// What waited for the initiator.
    fn look_at_wire(&mut self) {
        let wire = &mut *self.wire.borrow_mut();
        if std::mem::take(&mut wire.connects)
            && let Some((tag, token, op)) = wire.accept.take()
        {
            self.done.push_back(Completion { tag, token, op: Some(op), result: Ok(7), more: false, copied: false });
        }
        if wire.taken < wire.requests.len()
            && let Some((tag, token, mut op)) = wire.receive.take()
        {
            let len = fill(&mut op, &wire.requests[wire.taken..]);
            wire.taken += len as usize;
            self.done.push_back(Completion { tag, token, op: Some(op), result: Ok(len), more: false, copied: false });
        }
    }
}

/// Copying what is received is the kernel's work, which the count leaves out by this name.
#[inline(never)]
fn fill(op: &mut Op, bytes: &[u8]) -> u32 {
    let Op::Recv { bulk, stream, .. } = op else { unreachable!("only receives wait for bytes") };
    let mut at = 0;
    for window in bulk.iter_mut().chain([stream]) {
        let len = window.bytes_mut().len().min(bytes.len() - at);
        window.bytes_mut()[..len].copy_from_slice(&bytes[at..at + len]);
        at += len;
    }
    at as u32
}

impl fmt::Debug for InstantRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InstantRing({} done)", self.done.len())
    }
}

impl Ring for InstantRing {
    type Waker = InstantWaker;

    fn submit(&mut self, tag: Tag, op: Op) -> Result<Token, Op> {
        self.tokens += 1;
        let token = Token(self.tokens);
        match &op {
            Op::Recv { .. } => self.wire.borrow_mut().receive = Some((tag, token, op)),
            Op::Accept { .. } => self.wire.borrow_mut().accept = Some((tag, token, op)),
            Op::Send { batch, .. } => {
                let len = batch.len_bytes();
                let wire = &mut *self.wire.borrow_mut();
                wire.answered_bytes += len as u64;
                if wire.keeps_answers {
                    batch.segments().for_each(|segment| wire.answers.extend_from_slice(segment));
                }
                self.done.push_back(Completion {
                    tag,
                    token,
                    op: Some(op),
                    result: Ok(len as u32),
                    more: false,
                    copied: false,
                });
            }
            Op::Read { into, .. } => {
                let len = into.len;
                self.complete(tag, token, op, len);
            }
            Op::Write { from, .. } => {
                let len = from.len() as u32;
                self.complete(tag, token, op, len);
            }
            _ => self.complete(tag, token, op, 0),
        }
        Ok(token)
    }

    fn cancel(&mut self, _token: Token) {}

    fn enter(&mut self, _wait: Wait) -> Result<(), RingError> {
        Ok(())
    }

    fn reap(&mut self) -> Option<Completion> {
        if self.done.is_empty() {
            self.look_at_wire();
        }
        self.done.pop_front()
    }

    fn now(&self) -> Nanos {
        self.now.set(self.now.get() + TICK_NS);
        Nanos(self.now.get())
    }

    fn waker(&self) -> InstantWaker {
        InstantWaker
    }

    fn in_flight(&self) -> usize {
        self.done.len()
    }

    fn slots_free(&self) -> usize {
        SLOTS - self.done.len()
    }

    fn addresses(&self, _socket: Fd) -> Option<(SocketAddr, SocketAddr)> {
        Some((SocketAddr::from(([192, 0, 2, 1], 3260)), SocketAddr::from(([10, 0, 0, 1], 1024))))
    }
}

/// Nobody sleeps here.
#[derive(Clone, Debug)]
pub struct InstantWaker;

impl Wake for InstantWaker {
    fn wake(&self) {}
}
