//! The turn: reap what has completed, hear messages, run every connection that has something to do, submit, wait.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::core::{Core, Io, Mark};
use super::group::Groups;
use super::input;
use super::link::{Link, LinkState, Phase};
use super::login::{self, LoginPhase, SystemEntropy};
use super::mailbox::{Mailbox, Senders};
use super::message::Reply;
use super::newcomers::Newcomers;
use super::output::Tx;
use super::overdue;
use super::peer::LinkKey;
use super::registrar::Registrar;
use crate::iscsi::chap::Entropy;
use crate::iscsi::login::{Arrival, LoginPolicy};
use crate::limits::{LOGIN_TIMEOUT_MS, LOGINS_PER_SHARD_MAX, SESSIONS_PER_SHARD_MAX};
use crate::mem::Arena;
use crate::observe::ShardStats;
use crate::ring::{Completion, Fd, Nanos, Op, Ring, Wait};
use crate::units::{PortalId, ShardId};

/// Completions handled before connections get their turn.
const COMPLETIONS_PER_TURN_MAX: usize = 1024;

/// The longest that a shard spins before it sleeps: what waking an idle core costs.
const SPIN_NS_MAX: u64 = 20_000;

/// Turns with more commands than this are not worth spinning for: sleeping lets more of them gather.
const SPIN_COMMANDS_MAX: u32 = 4;

/// So many turns in a row must have had few commands before a shard spins: one of them may be the first part of many.
const SPIN_TURNS_MIN: u32 = 8;

/// Deadlines are rounded up to this, so that many connections share one wake-up.
const DEADLINE_GRAIN_MS: u64 = 1000;

/// A listening socket of this shard.
pub(super) struct Listener {
    pub(super) portal: PortalId,
    pub(super) portal_group_tag: u16,
    pub(super) fd: Fd,
    /// Closes the socket when dropped; `None` where the ring has no real sockets.
    pub(super) _owned: Option<OwnedFd>,
    pub(super) token: Option<crate::ring::Token>,
    /// Accepting could not be started again for want of a place.
    pub(super) paused: bool,
    pub(super) closing: Option<Option<Reply<()>>>,
}

/// One shard. It never leaves the thread that made it.
pub struct Shard<R: Ring> {
    pub(super) core: Core<R>,
    pub(super) mailbox: Mailbox,
    pub(super) links: Vec<Option<Box<Link>>>,
    pub(super) generations: Vec<u32>,
    pub(super) free: Vec<u32>,
    pub(super) newcomers: Newcomers,
    pub(super) listeners: Vec<Option<Listener>>,
    pub(super) registrar: Registrar,
    pub(super) groups: Groups,
    pub(super) policy: LoginPolicy,
    pub(super) entropy: Box<dyn Entropy>,
    pub(super) detaching: Vec<u32>,
    pub(super) pausing: Vec<u32>,
    pub(super) quiescing: Option<(u64, Reply<()>)>,
    pub(super) sessions_started: u64,
    pub(super) zero_copy: bool,
    pub(super) stopped: bool,
    pub(super) spin_ns: u64,
    pub(super) spin_until: Nanos,
    /// The last turns with commands that had few.
    pub(super) small_turns: u32,
}

/// What a shard is made of besides its ring.
pub(crate) struct Parts<W> {
    pub(crate) id: ShardId,
    pub(crate) shards: u16,
    pub(crate) senders: Senders<W>,
    pub(crate) mailbox: Mailbox,
    pub(crate) stats: Arc<ShardStats>,
    /// Zero-copy sends are worth trying.
    pub(crate) zero_copy: bool,
}

impl<R: Ring> Shard<R> {
    pub(crate) fn new(ring: R, arena: Arena, parts: Parts<R::Waker>) -> Self {
        // The last part is for those that were turned away and have not come to their end.
        let links_max = SESSIONS_PER_SHARD_MAX as usize + 2 * LOGINS_PER_SHARD_MAX;
        let io = Io::new(ring, arena);
        let core = Core::new(parts.id, parts.shards, links_max, io, parts.senders, parts.stats);
        Self {
            core,
            mailbox: parts.mailbox,
            links: (0..links_max).map(|_| None).collect(),
            generations: vec![0; links_max],
            free: (0..links_max as u32).rev().collect(),
            newcomers: Newcomers::new(),
            listeners: Vec::new(),
            registrar: Registrar::default(),
            groups: Groups::new(),
            policy: LoginPolicy::default(),
            entropy: Box::new(SystemEntropy),
            detaching: Vec::new(),
            pausing: Vec::new(),
            quiescing: None,
            sessions_started: 0,
            zero_copy: parts.zero_copy,
            stopped: false,
            spin_ns: SPIN_NS_MAX,
            spin_until: Nanos(0),
            small_turns: 0,
        }
    }

    /// Draw challenges from this instead of the system, for simulation.
    pub fn set_entropy(&mut self, entropy: Box<dyn Entropy>) {
        self.entropy = entropy;
    }

    /// Run until told to stop.
    pub(crate) fn run(&mut self) -> Result<(), crate::ring::RingError> {
        while !self.stopped {
            let wait = self.turn();
            self.enter(wait)?;
        }
        Ok(())
    }

    /// One turn without the wait that ends it: says how long it may wait.
    pub fn turn(&mut self) -> Wait {
        self.core.now = self.core.io.ring.now();
        self.core.commands_in_turn = 0;
        self.core.answers_in_turn = 0;
        self.core.stats.turns.increment();
        let completions = self.reap();
        let messages = self.hear();
        let runnable = self.core.runnable.len();
        for _ in 0..runnable {
            if let Some(index) = self.core.runnable.pop() {
                self.run_link(index);
            }
        }
        self.erase_due();
        self.core.time_commands();
        self.core.close_turned_away();
        if std::mem::take(&mut self.core.feed) || completions + messages > 0 {
            self.feed_starved();
        }
        self.watch_time();
        if self.core.task_operations > 0 {
            self.end_overdue();
        } else {
            self.core.overdue_check = Nanos(0);
        }
        if !self.pausing.is_empty() {
            self.finish_pausing();
        }
        self.finish_detaching();
        if self.quiescing.is_some() {
            self.finish_quiescing();
        }
        let delivered = self.core.mail.flush();
        self.wait_after(completions + messages + runnable, delivered)
    }

    /// Publish what was queued, and wait.
    pub fn enter(&mut self, wait: Wait) -> Result<(), crate::ring::RingError> {
        if wait == Wait::Poll {
            return self.core.io.ring.enter(wait);
        }
        self.core.stats.sleeps.increment();
        self.core.stats.memory_used_bytes.set(self.core.io.arena.stats().bytes_taken as u64);
        let before = self.core.io.ring.now();
        let result = self.core.io.ring.enter(wait);
        // A sleep that was shorter than what waking costs should have been a spin.
        let slept_ns = self.core.io.ring.now().0 - before.0;
        if slept_ns < SPIN_NS_MAX {
            self.spin_ns = SPIN_NS_MAX;
        }
        result
    }

    /// How long the shard may wait now.
    fn wait_after(&mut self, work: usize, delivered: bool) -> Wait {
        let pending = !self.core.runnable.is_empty()
            || self.core.feed
            || !self.core.mail.local_is_empty()
            || self.core.erases_soon()
            || !self.mailbox.is_empty();
        if pending || self.stopped {
            return Wait::Poll;
        }
        let commands = self.core.commands_in_turn.max(self.core.answers_in_turn);
        // A turn without commands, as that in which a send's completion comes, does not end a spin.
        if commands > 0 {
            let is_small = commands <= SPIN_COMMANDS_MAX;
            self.small_turns = if is_small { self.small_turns.saturating_add(1) } else { 0 };
            // Without a spin there is none that could be for nothing.
            let spins = self.small_turns >= SPIN_TURNS_MIN;
            self.spin_until = if spins { Nanos(self.core.now.0 + self.spin_ns) } else { Nanos(0) };
        }
        if self.core.now < self.spin_until {
            return Wait::Poll;
        }
        if work == 0 && self.spin_until.0 > 0 && self.spin_ns > 0 {
            // It has spun for nothing: half as long the next time.
            self.spin_ns /= 2;
            self.spin_until = Nanos(0);
        }
        // What a full mailbox has refused is tried again soon.
        let delivered = delivered && self.core.turned_away.is_empty();
        let retry_ms = if delivered { u64::MAX } else { self.core.now_ms() + 1 };
        let overdue_ms = match self.core.overdue_check.0 {
            0 => u64::MAX,
            check_ns => check_ns.div_ceil(1_000_000),
        };
        match self.core.deadline_ms.min(retry_ms).min(overdue_ms) {
            u64::MAX => Wait::Forever,
            deadline_ms => Wait::Until(Nanos(deadline_ms.saturating_mul(1_000_000))),
        }
    }

    /// Take completions; each leaves its connection in the queue of those that run.
    fn reap(&mut self) -> usize {
        let mut count = 0;
        while count < COMPLETIONS_PER_TURN_MAX
            && let Some(completion) = self.core.io.ring.reap()
        {
            count += 1;
            self.completed(completion);
        }
        self.core.stats.completions.add(count as u64);
        count
    }

    fn completed(&mut self, completion: Completion) {
        let index = match Mark::from_tag(completion.tag) {
            Mark::Accept(listener) => return self.accepted(listener, completion),
            Mark::Engine(slot, driver, io) => return self.engine_completed(slot, (driver, io), completion),
            Mark::Load(slot, place) => return self.load_completed(slot, place, completion),
            Mark::Flush(slot) => return self.flush_completed(slot, &completion),
            Mark::Erase(slot) => return self.erase_completed(slot, &completion),
            Mark::Agreement(slot) => return self.core.agreement_stored(slot, &completion),
            Mark::Ignore => return,
            mark @ Mark::Task(..) if self.core.orphan_completed(mark, &completion) => return,
            Mark::Receive(index)
            | Mark::Send(index)
            | Mark::Shutdown(index)
            | Mark::Close(index)
            | Mark::Task(index, _) => index,
        };
        self.take_turn(index);
        let Self { core, links, .. } = self;
        let link = links.get_mut(index as usize).and_then(Option::as_deref_mut);
        let Some(link) = link else { unreachable!("a connection outlives its operations") };
        let alive = match Mark::from_tag(completion.tag) {
            Mark::Receive(_) => link.received(core, completion),
            Mark::Send(_) => link.sent(core, completion),
            Mark::Task(_, task) => {
                if let Some((mut work, _, _)) = link.work(core) {
                    work.file_completed(overdue::task_of(task as u16), completion);
                }
                true
            }
            _ => {
                link.operations -= 1;
                true
            }
        };
        if !alive {
            link.close(core);
        }
        link.queue(core);
    }

    /// Run one connection: everything it can do now, and what it then wants of the ring.
    fn run_link(&mut self, index: u32) {
        self.take_turn(index);
        let last = self.is_last(index);
        let Self { core, links, policy, entropy, .. } = self;
        let Some(link) = links.get_mut(index as usize).and_then(Option::as_mut) else { return };
        link.queued = false;
        if link.state == LinkState::Open {
            match link.phase {
                Phase::Login(_) => login::run_login(link, core, policy, entropy.as_mut()),
                Phase::Session(_) if link.is_waiting => {}
                Phase::Session(_) => input::advance(link, core),
            }
        } else {
            link.abort_all(core);
            if let Some((mut work, _, _)) = link.work(core) {
                work.wind_up_copies();
                work.send_ready();
            }
        }
        link.send(core);
        link.receive(core);
        link.abandon_bulk(core);
        if link.state == LinkState::Closing {
            // It may have been closed just now.
            link.abort_all(core);
        }
        let is_gone = link.wind_up(core, last);
        if !last {
            self.nudge_siblings(index);
        }
        if is_gone {
            self.leave_group(index);
            self.remove_link(index);
        }
    }

    pub(super) fn remove_link(&mut self, index: u32) {
        let Some(mut link) = self.links[index as usize].take() else { return };
        link.stream.consume(link.stream.bytes().len());
        link.stream.give_back(&mut self.core.stream_reserve);
        assert_eq!(link.operations, 0, "a connection is removed when everything has come back");
        self.core.stats.connections.subtract(1);
        if let Phase::Session(session) = &link.phase {
            self.core.full_feature -= 1;
            self.core.stats.sessions.subtract(u64::from(session.group.is_none()));
        }
        self.generations[index as usize] = self.generations[index as usize].wrapping_add(1);
        // A connection that is still in a queue is found missing there, or its successor is looked at once for nothing.
        self.free.push(index);
    }

    /// A connection has come, or accepting has ended.
    fn accepted(&mut self, index: u32, completion: Completion) {
        let Some(listener) = self.listeners.get_mut(index as usize).and_then(Option::as_mut) else { return };
        if !completion.more {
            listener.token = None;
        }
        let (portal, tag) = (listener.portal, listener.portal_group_tag);
        if let Ok(fd) = completion.result {
            let is_added = self.add_link(Fd(fd as i32), portal, tag).is_some();
            self.core.stats.accepted.add(u64::from(is_added));
        } else if !completion.more {
            // Out of descriptors or memory: listening goes on when the next connection ends, or at the next deadline.
            let soon = self.core.now_ms() + DEADLINE_GRAIN_MS;
            self.core.wake_by_ms(soon);
            if let Some(listener) = self.listeners[index as usize].as_mut() {
                listener.paused = true;
            }
        }
        self.accept_on(index);
    }

    /// Take a connection in. `None`: there is no place or memory for it, and it was turned away.
    pub(super) fn add_link(&mut self, socket: Fd, portal: PortalId, portal_group_tag: u16) -> Option<u32> {
        self.make_way();
        let addresses = self.core.io.ring.addresses(socket);
        let tx =
            addresses.and_then(|(local, _)| Tx::new(&self.core.io.arena, self.zero_copy && !local.ip().is_loopback()));
        let refused = self.quiescing.is_some();
        let (Some(addresses), Some(tx), Some(index), false) = (addresses, tx, self.free.pop(), refused) else {
            if let Some(suppressed) = self.core.notices.allow(self.core.now_ms()) {
                tracing::warn!(suppressed, "a connection was turned away: no memory or place for it");
            }
            self.core.turned_away.push(socket);
            self.core.close_turned_away();
            return None;
        };
        let key = LinkKey { index, generation: self.generations[index as usize] };
        let arrival = Arrival { portal, portal_group_tag, local: addresses.0, peer: addresses.1 };
        let now_ms = self.core.now_ms();
        let mut link = Box::new(Link::new(key, socket, addresses, tx, LoginPhase::new(arrival), now_ms));
        link.queue(&mut self.core);
        self.links[index as usize] = Some(link);
        self.newcomers.arrived(key);
        self.core.stats.connections.add(1);
        self.core.wake_by_ms(now_ms + LOGIN_TIMEOUT_MS);
        Some(index)
    }

    /// Go on accepting, or finish closing a listener.
    fn accept_on(&mut self, index: u32) {
        let Some(listener) = self.listeners.get_mut(index as usize).and_then(Option::as_mut) else { return };
        if listener.token.is_some() || listener.paused && listener.closing.is_none() {
            return;
        }
        if let Some(reply) = &mut listener.closing {
            if let Some(reply) = reply.take() {
                reply(());
            }
            self.listeners[index as usize] = None;
            return;
        }
        match self.core.io.ring.submit(Mark::Accept(index).tag(), Op::Accept { listener: listener.fd }) {
            Ok(token) => listener.token = Some(token),
            Err(_) => {
                listener.paused = true;
                let soon = self.core.now_ms() + DEADLINE_GRAIN_MS;
                self.core.wake_by_ms(soon);
            }
        }
    }

    /// Accept on a listening socket from now on.
    pub fn listen(&mut self, portal: PortalId, portal_group_tag: u16, fd: Fd, owned: Option<OwnedFd>) {
        let listener =
            Listener { portal, portal_group_tag, fd, _owned: owned, token: None, paused: false, closing: None };
        let free = self.listeners.iter().position(Option::is_none);
        let index = free.unwrap_or_else(|| {
            self.listeners.push(None);
            self.listeners.len() - 1
        });
        self.listeners[index] = Some(listener);
        self.accept_on(index as u32);
    }

    pub(super) fn stop_listening(&mut self, which: impl Fn(PortalId) -> bool, mut reply: Option<Reply<()>>) {
        for index in 0..self.listeners.len() {
            let Some(listener) = self.listeners[index].as_mut() else { continue };
            if !which(listener.portal) || listener.closing.is_some() {
                continue;
            }
            listener.closing = Some(reply.take());
            if let Some(token) = listener.token {
                self.core.io.ring.cancel(token);
            }
            self.accept_on(index as u32);
        }
        if let Some(reply) = reply {
            reply(());
        }
    }

    fn engine_completed(&mut self, slot: u32, io_id: (u16, u32), completion: Completion) {
        let Core { io, mail, disks, home, .. } = &mut self.core;
        if let Some(disk) = disks.at_mut(slot).and_then(|slot| slot.home.as_mut()) {
            disk.engine_completed(home, io, mail, io_id, completion);
        }
    }

    fn load_completed(&mut self, slot: u32, place: u32, completion: Completion) {
        let Core { io, mail, disks, .. } = &mut self.core;
        if let Some(disk) = disks.at_mut(slot).and_then(|slot| slot.home.as_mut()) {
            disk.load_completed(io, mail, place, completion);
        }
    }

    fn flush_completed(&mut self, slot: u32, completion: &Completion) {
        let Core { io, mail, disks, home, .. } = &mut self.core;
        if let Some(disk) = disks.at_mut(slot).and_then(|slot| slot.home.as_mut()) {
            disk.flush_completed(home, io, mail, completion.result);
        }
    }

    /// Give those that wait for memory, ring slots or home requests another try.
    fn feed_starved(&mut self) {
        let Core { io, mail, disks, home, .. } = &mut self.core;
        // There may be thousands of disks, and hardly ever is one of them stalled.
        if std::mem::take(&mut io.has_stalled) {
            for slot in 0..disks.len() {
                if let Some(disk) = disks.at_mut(slot).and_then(|slot| slot.home.as_mut())
                    && disk.stalled()
                {
                    disk.retry_stalled(home, io, mail);
                    io.has_stalled |= disk.stalled();
                }
            }
        }
        self.core.retry_agreements();
        for _ in 0..self.core.starved.len() {
            let Some(index) = self.core.starved.pop() else { return };
            self.take_turn(index);
            let Some(link) = self.links[index as usize].as_mut() else { continue };
            link.starving = false;
            if let Some((mut work, _, _)) = link.work(&mut self.core) {
                work.feed_starved();
            }
            link.queue(&mut self.core);
        }
    }

    /// Connections whose time has come: logins that take too long, initiators that are silent.
    fn watch_time(&mut self) {
        let now_ms = self.core.now_ms();
        if now_ms < self.core.deadline_ms {
            return;
        }
        let mut next_ms = u64::MAX;
        for index in 0..self.links.len() {
            let Some(link) = self.links[index].as_mut() else { continue };
            if let Some(deadline_ms) = link.watch_time(&mut self.core, now_ms) {
                next_ms = next_ms.min(deadline_ms);
            }
        }
        for index in 0..self.listeners.len() {
            if let Some(listener) = self.listeners[index].as_mut()
                && listener.paused
            {
                listener.paused = false;
                self.accept_on(index as u32);
            }
        }
        if let Some((deadline_ms, _)) = self.quiescing {
            if now_ms >= deadline_ms {
                self.close_all();
                next_ms = next_ms.min(now_ms + DEADLINE_GRAIN_MS);
            } else {
                next_ms = next_ms.min(deadline_ms);
            }
        }
        self.core.deadline_ms = match (next_ms, self.quiescing.is_some()) {
            (u64::MAX, _) | (_, true) => next_ms,
            _ => next_ms.next_multiple_of(DEADLINE_GRAIN_MS),
        };
        self.core.deadline_ms = self.core.deadline_ms.min(self.pause_deadline_ms());
    }

    pub(super) fn close_all(&mut self) {
        for link in self.links.iter_mut().flatten() {
            link.close(&mut self.core);
        }
    }
}
