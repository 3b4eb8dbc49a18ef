//! The table of operations in flight: who owns an operation between submission and its last completion.
//!
//! A slot ends in one place, [`Slots::complete`], on the final entry of the completion queue, and then gives its
//! operation back. There are three lifetimes: one entry; a multishot, until an entry without `F_MORE`; a zero-copy
//! send, whose buffers are held until the entry with `F_NOTIF`. Keys carry the slot's generation, so that an entry
//! which is stale or comes twice trips an assertion here, before it could end a stranger.
//!
//! Knows no ring and makes no system call.

use super::{Completion, Errno, Op, Tag, Token};

/// `io_uring_cqe.flags`: more entries of this submission will come.
pub(super) const F_MORE: u32 = 1 << 1;
/// `io_uring_cqe.flags`: the notification of a zero-copy send.
pub(super) const F_NOTIF: u32 = 1 << 3;
/// `io_uring_cqe.res` of such a notification: the kernel copied.
pub(super) const NOTIF_COPIED: i32 = i32::MIN;

/// Keys of the ring's own submissions have such an index; no slot does.
const INDEX_RESERVED: u32 = u32::MAX;
/// Slots at most.
pub(super) const SLOTS_MAX: u32 = 1 << 16;

/// One entry of the completion queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub user_data: u64,
    pub result: i32,
    pub flags: u32,
}

/// How the kernel will end an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lifetime {
    /// One entry.
    Single,
    /// Entries with `F_MORE`, then one without.
    Multishot,
    /// One entry, or one with `F_MORE` and then one with `F_NOTIF`.
    ZeroCopy,
}

#[derive(Debug)]
enum State {
    Free {
        next: u32,
    },
    InFlight {
        lifetime: Lifetime,
        tag: Tag,
        op: Op,
    },
    /// A zero-copy send that the socket has taken; the kernel still reads the buffers.
    Held {
        tag: Tag,
        op: Op,
        result: i32,
    },
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    state: State,
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Slots {
    slots: Box<[Slot]>,
    free_first: u32,
    in_flight: usize,
    /// Of those in flight.
    held: usize,
}

/// A key of the ring's own, for `kind` 0, 1, …
pub(super) const fn internal_key(kind: u32) -> u64 {
    (kind as u64) << 32 | INDEX_RESERVED as u64
}

/// Which of the ring's own keys this is, if it is one.
#[inline]
pub(super) fn internal_kind(user_data: u64) -> Option<u32> {
    (user_data as u32 == INDEX_RESERVED).then_some((user_data >> 32) as u32)
}

fn key(index: u32, generation: u32) -> Token {
    Token(u64::from(generation) << 32 | u64::from(index))
}

impl Slots {
    pub(super) fn new(count: u32) -> Slots {
        assert!(count > 0 && count <= SLOTS_MAX, "a ring of {count} slots");
        let slots = (0..count).map(|i| Slot { generation: 0, state: State::Free { next: i + 1 } }).collect();
        Slots { slots, free_first: 0, in_flight: 0, held: 0 }
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Nothing is in flight but zero-copy sends that the peer has not acknowledged.
    pub(super) fn only_held(&self) -> bool {
        self.in_flight == self.held
    }

    #[inline]
    pub(super) fn free(&self) -> usize {
        self.slots.len() - self.in_flight
    }

    /// Own an operation until it completes. There must be a free slot. The operation does not move until then.
    #[inline]
    pub(super) fn insert(&mut self, tag: Tag, op: Op, lifetime: Lifetime) -> (Token, &mut Op) {
        let index = self.free_first;
        let slot = &mut self.slots[index as usize];
        let State::Free { next } = slot.state else { panic!("the free list held a slot in flight") };
        self.free_first = next;
        self.in_flight += 1;
        slot.state = State::InFlight { lifetime, tag, op };
        let State::InFlight { op, .. } = &mut slot.state else { unreachable!("just stored") };
        (key(index, slot.generation), op)
    }

    /// The operation under a token, unless it has completed.
    pub(super) fn op(&self, token: Token) -> Option<&Op> {
        let slot = self.slots.get(token.0 as u32 as usize)?;
        match &slot.state {
            State::InFlight { op, .. } | State::Held { op, .. } if slot.generation == (token.0 >> 32) as u32 => {
                Some(op)
            }
            _ => None,
        }
    }

    /// All tokens in flight.
    pub(super) fn tokens(&self) -> impl Iterator<Item = Token> {
        let in_flight = |slot: &Slot| !matches!(slot.state, State::Free { .. });
        let slots = self.slots.iter().enumerate().filter(move |(_, slot)| in_flight(slot));
        slots.map(|(index, slot)| key(index as u32, slot.generation))
    }

    /// Account for one entry of the completion queue. `None` while it says nothing to the caller.
    #[inline]
    pub(super) fn complete(&mut self, entry: Entry) -> Option<Completion> {
        let token = Token(entry.user_data);
        let index = entry.user_data as u32;
        let slot = &mut self.slots[index as usize];
        assert!(slot.generation == (entry.user_data >> 32) as u32, "a stale completion: {entry:?}");
        let more = entry.flags & F_MORE != 0;
        let notification = entry.flags & F_NOTIF != 0;
        let mut result = entry.result;
        if more {
            let State::InFlight { lifetime, tag, .. } = slot.state else { panic!("a doubled completion: {entry:?}") };
            assert!(lifetime != Lifetime::Single && !notification, "a single operation completed with more to come");
            if lifetime == Lifetime::ZeroCopy {
                let State::InFlight { op, .. } = std::mem::replace(&mut slot.state, State::Free { next: 0 }) else {
                    unreachable!("just seen in flight")
                };
                slot.state = State::Held { tag, op, result };
                self.held += 1;
                if result < 0 {
                    return None;
                }
            }
            let result = Ok(result.cast_unsigned());
            return Some(Completion { tag, token, op: None, result, more: true, copied: false });
        }
        let (tag, op) = match std::mem::replace(&mut slot.state, State::Free { next: self.free_first }) {
            State::InFlight { tag, op, .. } if !notification => (tag, op),
            State::Held { tag, op, result: sent } if notification => {
                result = sent;
                self.held -= 1;
                (tag, op)
            }
            state => panic!("a completion of a slot that does not expect it: {entry:?}, {state:?}"),
        };
        slot.generation = slot.generation.wrapping_add(1);
        self.free_first = index;
        self.in_flight -= 1;
        let result = match (result, &op) {
            (0.., _) => Ok(result.cast_unsigned()),
            (error, Op::Timeout { .. }) if error == -libc::ETIME => Ok(0),
            (error, _) => Err(Errno(-error)),
        };
        let copied = notification && entry.result & NOTIF_COPIED != 0;
        Some(Completion { tag, token, op: Some(op), result, more: false, copied })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::{Fd, Nanos, SendBatch};
    use super::*;
    use crate::mem::{Arena, ArenaConfig};

    fn slots() -> Slots {
        Slots::new(2)
    }

    fn entry(token: Token, result: i32, flags: u32) -> Entry {
        Entry { user_data: token.0, result, flags }
    }

    fn send() -> Op {
        let arena = Arena::new(ArenaConfig { bytes_max: 1 << 21, hugepages: false }).unwrap();
        Op::Send { socket: Fd(1), batch: SendBatch::new(&arena, 1).unwrap(), zero_copy: true }
    }

    #[test]
    fn a_single_operation_ends_on_its_only_entry() {
        let mut slots = slots();
        let (token, _) = slots.insert(Tag(7), Op::Sync { file: Fd(3) }, Lifetime::Single);
        assert!(slots.op(token).is_some());
        let done = slots.complete(entry(token, -libc::EIO, 0)).unwrap();
        assert_eq!((done.tag, done.token, done.result), (Tag(7), token, Err(Errno(libc::EIO))));
        assert!(matches!(done.op, Some(Op::Sync { file: Fd(3) })) && !done.more && !done.copied);
        assert!(slots.op(token).is_none());
        assert_eq!((slots.in_flight(), slots.free()), (0, 2));
    }

    #[test]
    fn a_multishot_accept_keeps_its_slot_until_the_kernel_ends_it() {
        let mut slots = slots();
        let (token, _) = slots.insert(Tag(1), Op::Accept { listener: Fd(3) }, Lifetime::Multishot);
        for socket in [10, 11] {
            let accepted = slots.complete(entry(token, socket, F_MORE)).unwrap();
            assert_eq!((accepted.result, accepted.more), (Ok(socket as u32), true));
            assert!(accepted.op.is_none());
        }
        assert_eq!(slots.tokens().collect::<Vec<_>>(), [token]);
        let last = slots.complete(entry(token, -libc::ECANCELED, 0)).unwrap();
        assert!(last.op.is_some() && !last.more);
    }

    #[test]
    fn a_zero_copy_send_holds_its_buffers_until_the_notification() {
        let mut slots = slots();
        let (token, _) = slots.insert(Tag(1), send(), Lifetime::ZeroCopy);
        let sent = slots.complete(entry(token, 100, F_MORE)).unwrap();
        assert_eq!((sent.result, sent.more, sent.op.is_some()), (Ok(100), true, false));
        assert_eq!((slots.in_flight(), slots.only_held()), (1, true));
        let released = slots.complete(entry(token, NOTIF_COPIED, F_NOTIF)).unwrap();
        assert_eq!((released.result, released.more, released.copied), (Ok(100), false, true));
        assert!(matches!(released.op, Some(Op::Send { .. })));
    }

    #[test]
    fn a_failed_zero_copy_send_completes_once_with_or_without_a_notification() {
        let mut slots = slots();
        let (token, _) = slots.insert(Tag(1), send(), Lifetime::ZeroCopy);
        assert!(slots.complete(entry(token, -libc::EPIPE, F_MORE)).is_none());
        let done = slots.complete(entry(token, 0, F_NOTIF)).unwrap();
        assert_eq!((done.result, done.copied), (Err(Errno(libc::EPIPE)), false));
        let (token, _) = slots.insert(Tag(1), send(), Lifetime::ZeroCopy);
        assert_eq!(slots.complete(entry(token, -libc::EPIPE, 0)).unwrap().result, Err(Errno(libc::EPIPE)));
    }

    #[test]
    fn a_timeout_that_passes_is_no_error() {
        let mut slots = slots();
        let (token, _) = slots.insert(Tag(1), Op::Timeout { after: Nanos(5) }, Lifetime::Single);
        assert_eq!(slots.complete(entry(token, -libc::ETIME, 0)).unwrap().result, Ok(0));
    }

    #[test]
    #[should_panic(expected = "stale completion")]
    fn a_completion_that_comes_twice_does_not_end_the_slots_next_operation() {
        let mut slots = slots();
        let (first, _) = slots.insert(Tag(1), Op::Sync { file: Fd(3) }, Lifetime::Single);
        slots.complete(entry(first, 0, 0));
        let (second, _) = slots.insert(Tag(2), Op::Sync { file: Fd(3) }, Lifetime::Single);
        assert_eq!(first.0 as u32, second.0 as u32);
        slots.complete(entry(first, 0, 0));
    }

    #[test]
    #[should_panic(expected = "does not expect it")]
    fn a_notification_without_a_send_is_our_bug() {
        let mut slots = slots();
        let (token, _) = slots.insert(Tag(1), send(), Lifetime::ZeroCopy);
        slots.complete(entry(token, 0, F_NOTIF));
    }

    #[test]
    #[should_panic(expected = "does not expect it")]
    fn a_held_send_does_not_end_without_its_notification() {
        let mut slots = slots();
        let (token, _) = slots.insert(Tag(1), send(), Lifetime::ZeroCopy);
        slots.complete(entry(token, 100, F_MORE));
        slots.complete(entry(token, 100, 0));
    }

    #[test]
    fn the_rings_own_keys_are_no_slots() {
        let mut slots = Slots::new(SLOTS_MAX);
        let (token, _) = slots.insert(Tag(1), Op::Sync { file: Fd(3) }, Lifetime::Single);
        assert_eq!(internal_kind(token.0), None);
        assert_eq!((internal_kind(internal_key(0)), internal_kind(internal_key(1))), (Some(0), Some(1)));
    }
}
