//! The control plane's side of the mailboxes.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use futures_channel::oneshot;

use super::error::Refused;
use crate::observe::ShardStats;
use crate::shard::message::{Reply, ToShard};
use crate::units::ShardId;

/// A full mailbox is tried again after this long. The shard empties it every turn, so this is rare.
const MAILBOX_RETRY: Duration = Duration::from_millis(1);

/// The running shards, as the control plane sees them.
pub trait DataPlane: Send + Sync {
    /// How many shards there are.
    fn count(&self) -> u16;

    /// Put a message into a shard's mailbox.
    ///
    /// # Errors
    /// The mailbox is full: the message comes back, to be sent later.
    fn send(&self, shard: ShardId, message: ToShard) -> Result<(), ToShard>;

    /// A shard's counters.
    fn stats(&self, shard: ShardId) -> Arc<ShardStats>;

    /// Sockets that listen at a portal, one for each shard.
    ///
    /// # Errors
    /// The system's reason, above all that the port is in use.
    fn listeners(&self, portal: SocketAddr) -> io::Result<Vec<OwnedFd>>;
}

/// All shards, first to last.
pub fn shards(plane: &dyn DataPlane) -> impl Iterator<Item = ShardId> + use<> {
    (0..plane.count()).map(ShardId)
}

/// Send a message, waiting while the shard's mailbox is full.
pub async fn tell(plane: &dyn DataPlane, shard: ShardId, message: ToShard) {
    let mut message = message;
    while let Err(returned) = plane.send(shard, message) {
        message = returned;
        async_io::Timer::after(MAILBOX_RETRY).await;
    }
}

/// An answer that a shard owes.
#[must_use]
pub struct Owed<T> {
    shard: ShardId,
    answer: oneshot::Receiver<T>,
}

impl<T> Owed<T> {
    /// What a shard will say through the other end of a channel.
    pub fn new(shard: ShardId, answer: oneshot::Receiver<T>) -> Owed<T> {
        Owed { shard, answer }
    }

    /// Wait for it.
    ///
    /// # Errors
    /// The shard dropped the question, which it does only when it is ending.
    pub async fn wait(self) -> Result<T, Refused> {
        let Owed { shard, answer } = self;
        answer.await.map_err(|_| Refused::failed(format!("shard {} did not answer; the server is ending", shard.0)))
    }
}

/// Ask one shard; the answer comes later.
pub async fn ask<T: Send + 'static>(
    plane: &dyn DataPlane,
    shard: ShardId,
    question: impl FnOnce(Reply<T>) -> ToShard,
) -> Owed<T> {
    let (reply, answer) = oneshot::channel();
    // Nobody listens any more when the asker gave up waiting.
    let message = question(Box::new(move |value| drop(reply.send(value))));
    tell(plane, shard, message).await;
    Owed { shard, answer }
}

/// Ask all shards at once and wait for all answers, in the order of the shards.
///
/// # Errors
/// As [`Owed::wait`].
pub async fn ask_all<T: Send + 'static>(
    plane: &dyn DataPlane,
    question: impl Fn(Reply<T>) -> ToShard,
) -> Result<Vec<T>, Refused> {
    let mut owed = Vec::new();
    for shard in shards(plane) {
        owed.push(ask(plane, shard, &question).await);
    }
    let mut values = Vec::with_capacity(owed.len());
    for owed in owed {
        values.push(owed.wait().await?);
    }
    Ok(values)
}
