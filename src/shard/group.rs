//! Sessions of several connections (RFC 7143 section 4.2, MaxConnections), and connections that take another's place.
//!
//! All connections of a session are on one shard: one that logs in elsewhere to a session is moved to the session's
//! shard as soon as its first header has come, before anything is answered. What a session's connections share (command
//! window, LUNs with their unit attentions, commands that wait for others, what is known of copies) is at any time in
//! one of them, the *holder*; [`Shard::take_turn`] moves it to the one that is about to work. A session of one
//! connection has no group, and its one connection holds everything: nothing on its way asks more than whether the
//! shard has any group at all.
//!
//! A connection's tasks and buffers are its own (connection allegiance, section 4.2.2.3): they end with it. The session
//! ends with its last connection.

use super::link::{Link, LinkState, Phase};
use super::login::{self, Joined};
use super::peer::{Asker, LinkKey, PeerMessage, SiblingOrder};
use super::run::Shard;
use super::session::{Answer, Session};
use crate::bounded::{Key, Slab};
use crate::iscsi::login::{Arrival, LoginReply};
use crate::iscsi::pdu::{LoginStatus, LogoutResponseCode};
use crate::iscsi::session::ConnectionSlot;
use crate::iscsi::transfer::TaskId;
use crate::limits::{CONNECTIONS_PER_SESSION_MAX, SESSIONS_PER_SHARD_MAX};
use crate::ring::{Fd, Ring};
use crate::units::ShardId;

const _: () = assert!(CONNECTIONS_PER_SESSION_MAX <= u8::BITS as usize, "slots are told apart by the bits of a byte");

/// The connections of one session: two or more, those that are ending included.
pub(super) struct Group {
    members: Vec<(LinkKey, ConnectionSlot)>,
    /// The link that has what they share.
    holder: u32,
    /// Who waits for a connection's end.
    waiting: Vec<(LinkKey, Waiter)>,
    /// ExpCmdSN when a connection last had its turn.
    exp_cmd_sn: u32,
}

/// Who waits for a connection's end.
enum Waiter {
    /// The connection that takes its place, with its last Login Response.
    Successor(LinkKey, Box<LoginReply>),
    /// A logout.
    Job(Key),
}

/// The groups of a shard.
pub(super) struct Groups(Slab<Group>);

impl Groups {
    pub(super) fn new() -> Self {
        Self(Slab::new(SESSIONS_PER_SHARD_MAX as usize / 2))
    }
}

fn session(links: &[Option<Box<Link>>], index: u32) -> Option<&Session> {
    match links.get(index as usize)?.as_deref()?.phase {
        Phase::Session(ref session) => Some(session),
        Phase::Login(_) => None,
    }
}

fn session_mut(links: &mut [Option<Box<Link>>], index: u32) -> Option<&mut Session> {
    match links.get_mut(index as usize)?.as_deref_mut()?.phase {
        Phase::Session(ref mut session) => Some(session),
        Phase::Login(_) => None,
    }
}

/// Who holds what is shared.
impl<R: Ring> Shard<R> {
    /// A connection is about to work: it gets what its session's connections share.
    #[inline]
    pub(super) fn take_turn(&mut self, index: u32) {
        if !self.groups.0.is_empty() {
            self.take_turn_in_group(index);
        }
    }

    fn take_turn_in_group(&mut self, index: u32) {
        let Some(group) = self.group_of(index).and_then(|key| self.groups.0.at_mut(key)) else { return };
        let former = std::mem::replace(&mut group.holder, index);
        if former == index {
            return;
        }
        let Ok([from, to]) = self.links.get_disjoint_mut([former as usize, index as usize]) else { return };
        if let (Some(from), Some(to)) = (from, to)
            && let (Phase::Session(from), Phase::Session(to)) = (&mut from.phase, &mut to.phase)
        {
            from.swap_shared(to);
        }
    }

    fn group_of(&self, index: u32) -> Option<Key> {
        session(&self.links, index)?.group
    }

    /// The connections of a connection's session but itself.
    fn siblings(&self, index: u32) -> Vec<LinkKey> {
        let group = self.group_of(index).and_then(|key| self.groups.0.at(key));
        let members = group.into_iter().flat_map(|group| &group.members).map(|(key, _)| *key);
        members.filter(|key| key.index != index).collect()
    }

    /// Whether two connections are of one session.
    pub(super) fn is_same_session(&self, asker: Asker, index: u32) -> bool {
        let is_here = asker.shard == self.core.id;
        let tsih = |index: u32| session(&self.links, index).map(|session| session.tsih);
        let alive = self.links.get(asker.link.index as usize).and_then(Option::as_deref);
        is_here
            && alive.is_some_and(|link| link.key == asker.link)
            && tsih(asker.link.index).is_some_and(|asking| tsih(index) == Some(asking))
    }

    /// Whether it is the one of its session that has what they share.
    pub(super) fn holds(&self, index: u32) -> bool {
        let group = self.group_of(index).and_then(|key| self.groups.0.at(key));
        group.is_none_or(|group| group.holder == index)
    }

    /// After a connection's turn: others of its session that may go on because of what has happened get theirs.
    pub(super) fn nudge_siblings(&mut self, index: u32) {
        let Some(key) = self.group_of(index) else { return };
        let Self { core, links, groups, .. } = self;
        let Some(present) = session_mut(links, index) else { return };
        let next = present.connection.next_slot();
        let roused = std::mem::take(&mut present.roused);
        let (exp_cmd_sn, _) = present.connection.command_window();
        let Some(group) = groups.0.at_mut(key) else { return };
        let has_moved = std::mem::replace(&mut group.exp_cmd_sn, exp_cmd_sn) != exp_cmd_sn;
        for (member, slot) in group.members.iter().filter(|(member, _)| member.index != index) {
            let Some(session) = session_mut(links, member.index) else { continue };
            let is_roused = roused & 1 << slot.0 != 0;
            session.rouse |= is_roused;
            let waits = has_moved && session.connection.waits_for_commands();
            if (is_roused || waits || next == Some(*slot))
                && let Some(link) = links[member.index as usize].as_deref_mut()
            {
                link.queue(core);
            }
        }
    }
}

/// Joining.
impl<R: Ring> Shard<R> {
    /// The registrar says where the session is that a login names.
    pub(super) fn located(&mut self, key: LinkKey, shard: Option<ShardId>) {
        let Some(link) = self.links.get_mut(key.index as usize).and_then(Option::as_deref_mut) else { return };
        assert_eq!(link.key, key, "a connection waits for the registrar before it ends");
        link.operations -= 1;
        let elsewhere = shard.filter(|shard| *shard != self.core.id);
        if let Some(shard) = elsewhere.filter(|_| link.state == LinkState::Open && link.operations == 0)
            && self.hand_over(key.index, shard)
        {
            return;
        }
        self.stays(key.index);
    }

    /// A login that has just begun goes to another shard, socket and all. False: it cannot.
    fn hand_over(&mut self, index: u32, shard: ShardId) -> bool {
        let Some(link) = self.links[index as usize].as_deref_mut() else { return false };
        let Phase::Login(phase) = &link.phase else { return false };
        let Some(arrival) = phase.arrival() else { return false };
        let message = PeerMessage::Adopt { socket: link.socket, arrival, bytes: link.stream.bytes().into() };
        if self.core.mail.post(shard, message).is_err() {
            return false;
        }
        self.remove_link(index);
        true
    }

    /// A login to a session of this shard has come from another one.
    pub(super) fn adopt(&mut self, socket: Fd, arrival: Arrival, bytes: &[u8]) {
        let buf = self.core.io.arena.take(bytes.len().max(super::link::STREAM_BYTES_SMALL));
        let Some(mut buf) = buf else {
            self.core.turned_away.push(socket);
            return self.core.close_turned_away();
        };
        buf[..bytes.len()].copy_from_slice(bytes);
        if let Some(index) = self.add_link(socket, arrival.portal, arrival.portal_group_tag) {
            if let Some(link) = self.links[index as usize].as_deref_mut() {
                link.stream.fill(buf, bytes.len());
            }
            self.stays(index);
        }
    }

    /// A login that names a session goes on on this shard.
    fn stays(&mut self, index: u32) {
        let bytes = self.links[index as usize].as_deref().map(|link| link.stream.bytes());
        let member = bytes.and_then(login::named_session).and_then(|tsih| self.member_of(tsih));
        if let Some(member) = member {
            self.take_turn(member);
        }
        let window = member.and_then(|member| session(&self.links, member));
        let window = window.map(|session| session.connection.command_window());
        if let Some(Phase::Login(phase)) = self.links[index as usize].as_deref_mut().map(|link| &mut link.phase) {
            phase.stay(window);
        }
        if let Some(link) = self.links[index as usize].as_deref_mut() {
            link.queue(&mut self.core);
        }
    }

    /// Some connection of a session.
    fn member_of(&self, tsih: u16) -> Option<u32> {
        let is_member = |index: &u32| session(&self.links, *index).is_some_and(|session| session.tsih == tsih);
        (0..self.links.len() as u32).find(is_member)
    }

    /// The registrar gives a login a place in a session.
    pub(super) fn join(&mut self, index: u32, tsih: u16, replaces: Option<LinkKey>) {
        let member = self.member_of(tsih).filter(|member| *member != index);
        let is_open = self.links[index as usize].as_deref().is_some_and(|link| link.state == LinkState::Open);
        let slot = member.filter(|_| is_open).and_then(|member| self.enter_group(member, index));
        let reply = match (member, slot) {
            (Some(member), Some(slot)) => self.begin_member(member, index, tsih, slot),
            _ => None,
        };
        if let Some(replaces) = replaces {
            self.end_quietly(replaces);
        }
        let Self { core, links, groups, .. } = self;
        let Some(link) = links[index as usize].as_deref_mut() else { return };
        let Some(reply) = reply else {
            if is_open {
                // It has ended meanwhile, or there is no place for one more group.
                let status = member.map_or(LoginStatus::SESSION_DOES_NOT_EXIST, |_| LoginStatus::OUT_OF_RESOURCES);
                login::refuse(link, core, status);
            }
            return;
        };
        let Phase::Session(session) = &link.phase else { return };
        let group = session.group.and_then(|key| groups.0.at_mut(key));
        let replaced = replaces.zip(group).filter(|(key, group)| group.members.iter().any(|(other, _)| other == key));
        match replaced {
            Some((replaced, group)) => {
                link.is_waiting = true;
                group.waiting.push((replaced, Waiter::Successor(link.key, Box::new(reply))));
            }
            None => login::push(link, &reply),
        }
    }

    /// A connection is to become one of those of another's session: its slot there. `None`: there is no place.
    fn enter_group(&mut self, member: u32, index: u32) -> Option<ConnectionSlot> {
        let newcomer = self.links[index as usize].as_deref()?.key;
        let key = match self.group_of(member) {
            Some(key) => key,
            None => {
                let first = self.links[member as usize].as_deref()?.key;
                let session = session_mut(&mut self.links, member)?;
                let members = vec![(first, session.connection.slot())];
                let (exp_cmd_sn, _) = session.connection.command_window();
                let group = Group { members, holder: member, waiting: Vec::new(), exp_cmd_sn };
                let key = self.groups.0.insert(group).ok()?;
                session.group = Some(key);
                key
            }
        };
        let group = self.groups.0.at_mut(key)?;
        let free = |slot: &u8| group.members.iter().all(|(_, taken)| taken.0 != *slot);
        let slot = ConnectionSlot((0..u8::BITS as u8).find(free)?);
        group.members.push((newcomer, slot));
        Some(slot)
    }

    /// A connection begins as one of those of another's session: its last Login Response.
    fn begin_member(&mut self, member: u32, index: u32, tsih: u16, slot: ConnectionSlot) -> Option<LoginReply> {
        self.take_turn(member);
        let leading = session(&self.links, member)?;
        let (id, group) = (leading.id, leading.group);
        let joined = Joined {
            parameters: *leading.connection.parameters(),
            window: leading.connection.command_window(),
            stats: std::sync::Arc::clone(&leading.stats),
            since_ms: leading.since_ms,
        };
        let Self { core, links, .. } = self;
        let link = links[index as usize].as_deref_mut()?;
        let reply = login::begin_session(link, core, tsih, id, Some(joined))?;
        if let Phase::Session(session) = &mut link.phase {
            session.group = group;
            session.connection.set_slot(slot);
        }
        Some(reply)
    }
}

/// Leaving.
impl<R: Ring> Shard<R> {
    /// Whether a session ends with this connection.
    pub(super) fn is_last(&self, index: u32) -> bool {
        self.group_of(index).is_none()
    }

    /// A connection ends without a word to its session's others, who know of it.
    fn end_quietly(&mut self, key: LinkKey) {
        let Self { core, links, .. } = self;
        let link = links.get_mut(key.index as usize).and_then(Option::as_deref_mut).filter(|link| link.key == key);
        if let Some(link) = link {
            link.leaves_quietly = true;
            link.close(core);
        }
    }

    /// A connection is gone. What its session's connections share stays with another one, and whoever waits for its end
    /// goes on.
    pub(super) fn leave_group(&mut self, index: u32) {
        let Some(key) = self.group_of(index) else { return };
        self.take_turn(index);
        let Self { links, groups, .. } = self;
        let (Some(group), Some(leaving)) = (groups.0.at_mut(key), links[index as usize].as_deref_mut()) else { return };
        let Phase::Session(session) = &mut leaving.phase else { return };
        session.connection.leave_session();
        group.members.retain(|(member, _)| member.index != index);
        let connection_id = session.connection.parameters().connection_id;
        let (gone, quiet) = (leaving.key, leaving.leaves_quietly);
        let Some(&(heir, _)) = group.members.first() else { return };
        self.take_turn(heir.index);
        self.released(key, gone);
        let Self { core, links, groups, .. } = self;
        let Some(group) = groups.0.at_mut(key) else { return };
        let open = group.members.iter().find(|(member, _)| {
            links[member.index as usize].as_deref().is_some_and(|link| link.state == LinkState::Open)
        });
        if let Some((open, _)) = open.copied().filter(|_| !quiet)
            && let Some(session) = session_mut(links, open.index)
        {
            session.connection.announce_drop(connection_id);
        }
        if let [(only, _)] = group.members[..] {
            let waiting = groups.0.remove(key).map(|group| group.waiting).unwrap_or_default();
            for (_, waiter) in waiting {
                if let Waiter::Job(job) = waiter {
                    core.job_task_ended(job);
                }
            }
            if let Some(session) = session_mut(links, only.index) {
                session.group = None;
            }
        }
        self.wake_group_of(heir.index);
    }

    /// Whatever waited for what a connection had may be possible now.
    fn wake_group_of(&mut self, index: u32) {
        let siblings = self.siblings(index);
        let Self { core, links, .. } = self;
        let members = siblings.into_iter().map(|key| key.index).chain([index]);
        for member in members {
            if let Some(session) = session_mut(links, member) {
                session.rouse = true;
            }
            if let Some(link) = links[member as usize].as_deref_mut() {
                link.queue(core);
            }
        }
    }

    /// Tell those that wait for a connection's end.
    fn released(&mut self, group: Key, gone: LinkKey) {
        let Self { core, links, groups, .. } = self;
        let Some(group) = groups.0.at_mut(group) else { return };
        for (awaited, waiter) in std::mem::take(&mut group.waiting) {
            if awaited != gone {
                group.waiting.push((awaited, waiter));
                continue;
            }
            match waiter {
                Waiter::Job(job) => core.job_task_ended(job),
                Waiter::Successor(key, reply) => {
                    let link = links.get_mut(key.index as usize).and_then(Option::as_deref_mut);
                    let Some(link) = link.filter(|link| link.key == key && link.state == LinkState::Open) else {
                        continue;
                    };
                    link.is_waiting = false;
                    login::push(link, &reply);
                }
            }
        }
    }

    /// The other connections of a session do something for one of it.
    pub(super) fn siblings_asked(&mut self, asker: Asker, order: SiblingOrder) {
        let Some(job) = self.core.begin_job(asker) else {
            return self.core.mail.post_owed(asker.shard, PeerMessage::ResetDone { asker, done: false });
        };
        let mut found = false;
        for sibling in self.siblings(asker.link.index) {
            let connection_id =
                session(&self.links, sibling.index).map(|session| session.connection.parameters().connection_id);
            match order {
                SiblingOrder::Abort(function) => {
                    self.take_turn(sibling.index);
                    let Self { core, links, .. } = self;
                    let Some(link) = links[sibling.index as usize].as_deref_mut() else { continue };
                    if let Some((mut work, _, _)) = link.work(core) {
                        work.abort_affected(&function, job);
                    }
                    link.queue(core);
                }
                SiblingOrder::AbortCopy(list_identifier) => {
                    self.take_turn(sibling.index);
                    let Self { core, links, .. } = self;
                    let Some(link) = links[sibling.index as usize].as_deref_mut() else { continue };
                    if let Some((mut work, _, _)) = link.work(core) {
                        work.abort_copy_for(list_identifier, job);
                    }
                    link.queue(core);
                }
                SiblingOrder::End(wanted) if connection_id != Some(wanted) => {}
                SiblingOrder::End(_) | SiblingOrder::EndAll => {
                    found = true;
                    self.end_quietly(sibling);
                    let group = self.group_of(sibling.index).and_then(|key| self.groups.0.at_mut(key));
                    if let Some(group) = group {
                        self.core.job_has_task(job);
                        group.waiting.push((sibling, Waiter::Job(job)));
                    }
                }
            }
        }
        if matches!(order, SiblingOrder::End(_))
            && !found
            && let Some(session) = session_mut(&mut self.links, asker.link.index)
        {
            // Section 11.15.1: there is no such connection.
            session.tasks[usize::from(TaskId(asker.task).0)].answer = Answer::Logout(LogoutResponseCode::CID_NOT_FOUND);
        }
        if let SiblingOrder::AbortCopy(list_identifier) = order {
            self.abort_stray_copy(asker, list_identifier, job);
        }
        self.core.job_collected(job);
    }

    /// A copy may have been left since a connection asked its siblings to end it, or been taken by the asker itself.
    fn abort_stray_copy(&mut self, asker: Asker, list_identifier: u32, job: Key) {
        self.take_turn(asker.link.index);
        let Self { core, links, .. } = self;
        let link = links.get_mut(asker.link.index as usize).and_then(Option::as_deref_mut);
        let Some(link) = link.filter(|link| link.key == asker.link) else { return };
        if let Some((mut work, _, _)) = link.work(core) {
            work.end_left_copies(|copy| copy.is(list_identifier));
            work.abort_copy_for(list_identifier, job);
        }
        link.queue(core);
    }
}
