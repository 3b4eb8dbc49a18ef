//! What happened in a simulated world, in order: for assertions on the order of writes, flushes and answers, and for
//! one number (the hash) that says whether two runs were the same run.
//!
//! **May know:** the ring's types.

use crate::ring::{Fd, Nanos};

/// The kind of an operation, without its buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OpKind {
    /// Accept connections.
    Accept,
    /// Receive from a socket.
    Recv,
    /// Send to a socket.
    Send,
    /// Read from a file.
    Read,
    /// Write to a file.
    Write,
    /// Write to a file, through to stable storage.
    WriteDurable,
    /// Make a file's completed writes durable.
    Sync,
    /// Reserve space.
    Extend,
    /// Zero a range.
    ZeroRange,
    /// Give a range back.
    PunchHole,
    /// Share blocks of another file.
    Share,
    /// Set a file's size.
    Truncate,
    /// Shut a socket down.
    Shutdown,
    /// Close a socket.
    Close,
    /// Wait for a time.
    Timeout,
}

/// An operation as the history tells it. The same value stands in the operation's three events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OpNote {
    /// Which ring of the world, counted from zero.
    pub ring: usize,
    /// The operation's number in its world, counted from zero in the order of submission.
    pub number: u64,
    /// What it does.
    pub kind: OpKind,
    /// On what; `Fd(-1)` for timeouts.
    pub fd: Fd,
    /// Where, for file operations; else zero.
    pub offset_bytes: u64,
    /// How much: the length asked for, or nanoseconds for timeouts.
    pub len: u64,
}

/// One thing that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum What {
    /// The operation was published to the world.
    Started(OpNote),
    /// The operation had its effect, or failed; its completion can be reaped.
    Finished {
        /// The operation.
        op: OpNote,
        /// Its result: bytes, descriptor, zero, or errno.
        result: Result<u32, i32>,
    },
    /// The caller has taken the completion: from here on it may rely on the effect.
    Reaped(OpNote),
    /// A hash of the bytes that a write put into a file.
    Wrote {
        /// The file.
        file: Fd,
        /// Hash of the bytes.
        content: u64,
    },
    /// A client connected; the descriptor is the server's side.
    Connected(Fd),
    /// A connection was reset.
    Reset(Fd),
    /// The process was killed.
    ProcessKilled,
    /// Power was lost.
    PowerCut,
    /// A mark set by the test.
    Mark(u64),
}

/// An event with its moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Virtual time.
    pub at: Nanos,
    /// What happened.
    pub what: What,
}

/// The events of a world in order, and the running hash over all of them.
#[derive(Debug)]
pub struct History {
    events: Vec<Event>,
    events_max: usize,
    is_printed: bool,
    count: u64,
    hash: u64,
}

impl History {
    /// Remembers up to `events_max` events, and prints them all if told to; the hash covers all.
    pub(super) fn new(events_max: usize, is_printed: bool) -> History {
        History { events: Vec::new(), events_max, is_printed, count: 0, hash: FNV_BASIS }
    }

    pub(super) fn record(&mut self, at: Nanos, what: What) {
        let event = Event { at, what };
        self.hash = hash_event(self.hash, &event);
        self.count += 1;
        if self.is_printed {
            eprintln!("{:>12.3} us  {:?}", at.0 as f64 / 1000.0, what);
        }
        if self.events.len() < self.events_max {
            self.events.push(event);
        }
    }

    /// The remembered events, oldest first.
    pub fn events(&self) -> &[Event] {
        assert_eq!(self.events.len() as u64, self.count, "the history was cut; allow more events or assert less");
        &self.events
    }

    /// How many events there were.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// A hash over all events with their times: equal for equal runs.
    pub fn hash(&self) -> u64 {
        self.hash
    }
}

const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

/// FNV-1a over 64-bit words, continued from `hash`.
pub(super) fn hash_words(mut hash: u64, words: &[u64]) -> u64 {
    for word in words {
        hash = (hash ^ word).wrapping_mul(FNV_PRIME);
        hash ^= hash >> 29;
    }
    hash
}

/// A hash of bytes.
pub fn hash_bytes(bytes: &[u8]) -> u64 {
    let mut hash = hash_words(FNV_BASIS, &[bytes.len() as u64]);
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        hash = hash_words(hash, &[u64::from_le_bytes(word)]);
    }
    hash
}

fn hash_event(hash: u64, event: &Event) -> u64 {
    let note = |tag: u64, op: &OpNote, result: u64| {
        [tag, event.at.0, op.ring as u64, op.number, op.kind as u64, op.fd.0 as u64, op.offset_bytes, op.len, result]
    };
    match event.what {
        What::Started(op) => hash_words(hash, &note(1, &op, 0)),
        What::Finished { op, result } => {
            let result = result.map_or_else(|errno| 1 << 40 | errno as u64, u64::from);
            hash_words(hash, &note(2, &op, result))
        }
        What::Reaped(op) => hash_words(hash, &note(3, &op, 0)),
        // Not the content: the identities that a VHDX file is given at random are no part of a run.
        What::Wrote { file, .. } => hash_words(hash, &[4, event.at.0, file.0 as u64]),
        What::Connected(fd) => hash_words(hash, &[5, event.at.0, fd.0 as u64]),
        What::Reset(fd) => hash_words(hash, &[6, event.at.0, fd.0 as u64]),
        What::ProcessKilled => hash_words(hash, &[7, event.at.0]),
        What::PowerCut => hash_words(hash, &[8, event.at.0]),
        What::Mark(mark) => hash_words(hash, &[9, event.at.0, mark]),
    }
}
