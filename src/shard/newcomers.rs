//! Connections that have not logged in: how many a shard keeps, and which goes when there are too many.
//!
//! A connection that is silent costs a place until its time is over. So that such connections never keep one away that
//! does log in, they have places of their own, and the oldest makes way for the newest.

use std::collections::VecDeque;

use super::link::{Link, LinkState, Phase};
use super::peer::LinkKey;
use super::run::Shard;
use crate::limits::LOGINS_PER_SHARD_MAX;
use crate::ring::Ring;

/// Connections in the order of their arrival. Some may have logged in or ended since.
pub(super) struct Newcomers(VecDeque<LinkKey>);

impl Newcomers {
    pub(super) fn new() -> Self {
        Self(VecDeque::with_capacity(LOGINS_PER_SHARD_MAX))
    }

    /// A connection has come; [`Shard::make_way`] has seen to a place.
    pub(super) fn arrived(&mut self, key: LinkKey) {
        assert!(self.0.len() < LOGINS_PER_SHARD_MAX, "there is a place for the connection");
        self.0.push_back(key);
    }
}

impl<R: Ring> Shard<R> {
    /// See to a place for one more connection: turn the oldest away that has not logged in, if need be.
    pub(super) fn make_way(&mut self) {
        if self.newcomers.0.len() < LOGINS_PER_SHARD_MAX {
            return;
        }
        let Self { core, links, newcomers, .. } = self;
        newcomers.0.retain(|&key| living(links, key).is_some());
        if newcomers.0.len() < LOGINS_PER_SHARD_MAX {
            return;
        }
        let Some(link) = newcomers.0.pop_front().and_then(|key| living(links, key)) else { return };
        if let Some(suppressed) = core.notices.allow(core.now_ms()) {
            let peer = link.peer;
            tracing::info!(%peer, suppressed, "connection dropped: it had not logged in, and others want its place");
        }
        core.stats.connections_dropped.increment();
        link.close(core);
    }
}

/// The connection, while it has not logged in.
fn living(links: &mut [Option<Box<Link>>], key: LinkKey) -> Option<&mut Link> {
    let link = links.get_mut(key.index as usize)?.as_deref_mut()?;
    (link.key == key && link.state == LinkState::Open && matches!(link.phase, Phase::Login(_))).then_some(link)
}
