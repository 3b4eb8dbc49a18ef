//! Requests: what callers have asked for and has not ended. Bounded; each gives at most one event.

use std::collections::VecDeque;

use crate::blocks::{Done, EngineError, Event, Fault, Ticket};

/// Requests that may be open: as many commands as may wait for one disk.
pub(super) const REQUESTS_MAX: usize = 1024;

/// A request's place.
pub(super) type Key = u16;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Prepare,
    Commit {
        epoch: u32,
    },
    Unmap,
    /// Its data waits there.
    Atomic {
        payload_at: u64,
    },
    Load(Fault),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub ticket: Ticket,
    pub wish: Wish,
    /// The range in bytes.
    pub start_bytes: u64,
    pub end_bytes: u64,
    /// The next block to be looked at, and the one behind the last.
    pub block: u32,
    pub block_end: u32,
    /// Changes in groups that it waits for.
    pub links: u32,
    /// It is in the queue of those that have more to ask.
    pub queued: bool,
    /// How it ends, once `links` is 0.
    pub result: Result<Done, EngineError>,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Requests {
    slots: Vec<Option<Request>>,
    free: Vec<Key>,
    /// Those that have more to ask, oldest first.
    pub queue: VecDeque<Key>,
}

impl Requests {
    pub fn with_capacity() -> Self {
        Self {
            slots: vec![None; REQUESTS_MAX],
            free: (0..REQUESTS_MAX as Key).rev().collect(),
            queue: VecDeque::with_capacity(REQUESTS_MAX),
        }
    }

    pub fn open(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn insert(&mut self, request: Request) -> Result<Key, EngineError> {
        let key = self.free.pop().ok_or(EngineError::Busy)?;
        self.slots[usize::from(key)] = Some(request);
        Ok(key)
    }

    pub fn is_open(&self, key: Key) -> bool {
        self.slots[usize::from(key)].is_some()
    }

    pub fn at(&self, key: Key) -> &Request {
        self.slots[usize::from(key)].as_ref().expect("a key names an open request")
    }

    pub fn at_mut(&mut self, key: Key) -> &mut Request {
        self.slots[usize::from(key)].as_mut().expect("a key names an open request")
    }

    pub fn remove(&mut self, key: Key) -> Request {
        self.free.push(key);
        self.slots[usize::from(key)].take().expect("a key names an open request")
    }

    /// Ask again later.
    pub fn enqueue(&mut self, key: Key) {
        let request = self.at_mut(key);
        if !request.queued {
            request.queued = true;
            self.queue.push_back(key);
        }
    }

    /// A change that the request waited for has ended.
    pub fn unlink(&mut self, key: Key, result: Result<(), EngineError>) {
        let request = self.at_mut(key);
        request.links -= 1;
        if let Err(error) = result
            && request.result.is_ok()
        {
            request.result = Err(error);
        }
    }

    /// End every request with an error.
    pub fn fail_all(&mut self, error: EngineError, mut tell: impl FnMut(Event)) {
        self.queue.clear();
        for (at, slot) in self.slots.iter_mut().enumerate() {
            if let Some(request) = slot.take() {
                self.free.push(at as Key);
                tell(Event::Done { ticket: request.ticket, result: Err(error) });
            }
        }
    }
}
