//! What the exercises need of an implementation: a ring, and somebody at the other end.

use std::collections::VecDeque;

use lunaring::mem::{Arena, Slice};
use lunaring::ring::{Completion, Fd, Nanos, Op, Ring, Tag, Token, Wait};

/// One end of a connection whose other end the ring holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub usize);

/// A ring with its surroundings. Peers never block and never move while the ring is not entered.
pub trait Harness {
    /// The implementation.
    type Ring: Ring;

    /// The ring, with at least 16 slots and at most 1024.
    fn ring(&mut self) -> &mut Self::Ring;

    /// The arena of the ring, with at least 32 MiB.
    fn arena(&self) -> &Arena;

    /// A new, empty file, open for reading and writing.
    fn new_file(&mut self) -> Fd;

    /// A listening socket whose connections buffer less than 4 MiB each way.
    fn listen(&mut self) -> Fd;

    /// Connect to it.
    fn connect(&mut self, listener: Fd) -> Peer;

    /// Write what the connection takes now; how many bytes that was.
    fn peer_write(&mut self, peer: Peer, bytes: &[u8]) -> usize;

    /// What has arrived, perhaps nothing; `None` at the end of the stream.
    fn peer_read(&mut self, peer: Peer) -> Option<Vec<u8>>;

    /// Close the peer's end.
    fn peer_close(&mut self, peer: Peer);

    /// Drop the ring, keep the arena.
    fn drop_ring(self) -> Arena;
}

/// An exercise under way: submits, and waits for what it wants to see.
pub struct Exercise<H> {
    pub harness: H,
    /// Completions that came before somebody asked.
    early: VecDeque<Completion>,
    tag_next: u64,
}

/// Real or virtual time after which something that must happen has not.
const PATIENCE: Nanos = Nanos(10_000_000_000);

impl<H: Harness> Exercise<H> {
    pub fn new(harness: H) -> Self {
        Exercise { harness, early: VecDeque::new(), tag_next: 1 }
    }

    pub fn now(&mut self) -> Nanos {
        self.harness.ring().now()
    }

    /// Submit under a fresh tag.
    pub fn submit(&mut self, op: Op) -> Token {
        let tag = Tag(self.tag_next);
        self.tag_next += 1;
        self.harness.ring().submit(tag, op).expect("a slot is free")
    }

    /// One turn: enter for at most ten milliseconds, and set aside what completed.
    pub fn turn(&mut self) {
        let ring = self.harness.ring();
        let until = Nanos(ring.now().0 + 10_000_000);
        ring.enter(Wait::Until(until)).expect("the ring can be entered");
        while let Some(completion) = ring.reap() {
            assert_eq!(completion.more, completion.op.is_none(), "an operation comes back with its last completion");
            self.early.push_back(completion);
        }
    }

    /// Take turns until `wanted` gives something.
    pub fn until<T>(&mut self, what: &str, mut wanted: impl FnMut(&mut Self) -> Option<T>) -> T {
        let end = Nanos(self.now().0 + PATIENCE.0);
        loop {
            if let Some(found) = wanted(self) {
                return found;
            }
            assert!(self.now() < end, "no {what} in ten seconds");
            self.turn();
        }
    }

    /// The next completion of an operation.
    pub fn completion(&mut self, token: Token) -> Completion {
        self.until("completion", |exercise| {
            let at = exercise.early.iter().position(|completion| completion.token == token)?;
            exercise.early.remove(at)
        })
    }

    /// Nothing has completed for this operation, and nothing does in a few turns.
    pub fn assert_pending(&mut self, token: Token) {
        for _ in 0..3 {
            self.turn();
            assert!(self.early.iter().all(|completion| completion.token != token), "completed too early");
        }
    }

    /// Submit and wait for the last completion.
    pub fn run(&mut self, op: Op) -> Completion {
        let token = self.submit(op);
        self.last(token)
    }

    /// The last completion of an operation; those before it must have said the same.
    pub fn last(&mut self, token: Token) -> Completion {
        let first = self.completion(token);
        if !first.more {
            return first;
        }
        let last = self.completion(token);
        assert!(!last.more && first.result == last.result, "{first:?} and {last:?}");
        last
    }

    /// A frozen copy of some bytes (at most 1 MiB).
    pub fn slice(&self, bytes: &[u8]) -> Slice {
        let mut buf = self.harness.arena().take(bytes.len()).expect("the arena has room");
        buf.copy_from_slice(bytes);
        buf.freeze()
    }

    /// A connection: the ring's socket and the peer.
    pub fn connection(&mut self) -> (Fd, Peer) {
        let listener = self.harness.listen();
        let accept = self.submit(Op::Accept { listener });
        let peer = self.harness.connect(listener);
        let accepted = self.completion(accept);
        if accepted.more {
            self.harness.ring().cancel(accept);
            assert!(!self.completion(accept).more);
        }
        (Fd(accepted.result.expect("a connection") as i32), peer)
    }

    /// Have the peer write all of it.
    pub fn peer_write_all(&mut self, peer: Peer, bytes: &[u8]) {
        let mut written = 0;
        self.until("room for the peer's bytes", |exercise| {
            written += exercise.harness.peer_write(peer, &bytes[written..]);
            (written == bytes.len()).then_some(())
        });
    }

    /// The next `count` bytes that the peer gets.
    pub fn peer_read_exactly(&mut self, peer: Peer, count: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.until("bytes for the peer", |exercise| {
            bytes.extend(exercise.harness.peer_read(peer).expect("the stream goes on"));
            (bytes.len() >= count).then_some(())
        });
        assert_eq!(bytes.len(), count, "more bytes than were sent");
        bytes
    }
}
