//! Bounded mailboxes between threads: the only way into a shard.
//!
//! Every shard has one queue for the control plane's messages and one for those of other shards. Sending never blocks:
//! a full queue gives the message back. A sender wakes the receiver's ring; wakes are coalesced there.

use std::sync::Arc;

use crossbeam_queue::ArrayQueue;

use super::message::ToShard;
use super::peer::PeerMessage;
use crate::ring::Wake;
use crate::units::ShardId;

/// Control messages waiting for one shard. The control plane serialises its commands, so a handful is in use.
const CONTROL_MESSAGES_MAX: usize = 256;

/// Messages of other shards waiting for one shard: every session of a shard may have all its tasks wait for one home
/// shard, but a sender that finds the queue full keeps its message and tries again in its next turn.
pub(crate) const PEER_MESSAGES_MAX: usize = 4096;

/// Both queues of one shard.
struct Queues {
    control: ArrayQueue<ToShard>,
    peers: ArrayQueue<PeerMessage>,
}

/// The receiving end, owned by the shard.
pub(crate) struct Mailbox {
    queues: Arc<Queues>,
}

/// A sending end; any thread may hold one.
pub(crate) struct Sender<W> {
    queues: Arc<Queues>,
    waker: W,
}

impl<W: Wake> Clone for Sender<W> {
    fn clone(&self) -> Self {
        Self { queues: Arc::clone(&self.queues), waker: self.waker.clone() }
    }
}

/// Makes a mailbox whose senders wake the ring of `waker`.
pub(crate) fn mailbox<W: Wake>(waker: W) -> (Sender<W>, Mailbox) {
    mailbox_with_room(waker, PEER_MESSAGES_MAX)
}

/// The same with room for so many messages of other shards.
pub(crate) fn mailbox_with_room<W: Wake>(waker: W, peer_messages_max: usize) -> (Sender<W>, Mailbox) {
    let (control, peers) = (ArrayQueue::new(CONTROL_MESSAGES_MAX), ArrayQueue::new(peer_messages_max));
    let queues = Arc::new(Queues { control, peers });
    (Sender { queues: Arc::clone(&queues), waker }, Mailbox { queues })
}

impl Mailbox {
    /// The next message of the control plane.
    pub(crate) fn take_control(&self) -> Option<ToShard> {
        self.queues.control.pop()
    }

    /// The next message of another shard.
    pub(crate) fn take_peer(&self) -> Option<PeerMessage> {
        self.queues.peers.pop()
    }

    /// Whether something waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.queues.control.is_empty() && self.queues.peers.is_empty()
    }
}

impl<W: Wake> Sender<W> {
    /// Hand a control message over; given back when the queue is full.
    pub(crate) fn send_control(&self, message: ToShard) -> Result<(), ToShard> {
        self.queues.control.push(message)?;
        self.waker.wake();
        Ok(())
    }

    /// Hand another shard's message over; given back when the queue is full.
    pub(crate) fn send_peer(&self, message: PeerMessage) -> Result<(), PeerMessage> {
        self.queues.peers.push(message)?;
        self.waker.wake();
        Ok(())
    }
}

/// The senders to every shard of a server, indexed by [`ShardId`].
pub(crate) struct Senders<W>(pub(crate) Vec<Sender<W>>);

impl<W: Wake> Clone for Senders<W> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<W> Senders<W> {
    /// The sender to one shard.
    pub(crate) fn of(&self, shard: ShardId) -> &Sender<W> {
        &self.0[usize::from(shard.0)]
    }
}
