//! What a shard hears from other threads, and what it does about it: messages of other shards and of the control plane.

use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use super::agreement::{Agreed, AgreementHome, Change, Waiter};
use super::core::{Core, DiskSlot};
use super::exclusive::HeldRanges;
use super::home::HomeDisk;
use super::link::{Link, LinkState, Phase};
use super::login;
use super::message::{Configuration, ConnectionInfo, DetachError, Reply, SessionInfo, ToShard};
use super::overdue::{IO_DEADLINE_MS, task_of};
use super::pause::AtWork;
use super::peer::{Asker, HomeRequest, LinkKey, PeerMessage, ResetScope};
use super::registrar::{Decision, Granted};
use super::run::Shard;
use super::session::Work;
use super::settings::Settings;
use crate::blocks::{Done, Engine};
use crate::iscsi::pdu::LoginStatus;
use crate::iscsi::transfer::TaskId;
use crate::medium::Disk;
use crate::ring::{Fd, Ring};
use crate::scsi::{Attention, MediumError};
use crate::units::DiskId;

/// Messages, from the control plane and from other shards.
impl<R: Ring> Shard<R> {
    /// Hear what others say.
    pub(super) fn hear(&mut self) -> usize {
        let mut count = 0;
        while let Some(message) = self.core.mail.take_local() {
            count += 1;
            self.peer_message(message);
        }
        while self.core.mail.has_room()
            && let Some(message) = self.mailbox.take_peer()
        {
            count += 1;
            self.peer_message(message);
        }
        while let Some(message) = self.mailbox.take_control() {
            count += 1;
            self.control_message(message);
        }
        self.core.stats.messages.add(count as u64);
        count
    }

    fn peer_message(&mut self, message: PeerMessage) {
        match message {
            PeerMessage::Home { disk, swaps, asker, request } => self.home_request(disk, swaps, asker, request),
            PeerMessage::HomeDone { asker, result } => {
                self.core.home_requests -= 1;
                if let Some(slot) = asker.link.erased_slot() {
                    self.erasure_heard(slot, result);
                } else if !self.core.orphan_returned(asker.link, asker.task) {
                    self.with_work(asker.link, |work| work.home_done(task_of(asker.task), result));
                }
            }
            PeerMessage::Barrier { disk, home } => self.barrier(disk, home),
            PeerMessage::BarrierPassed { disk } => self.barrier_passed(disk),
            PeerMessage::Erase { disk, asker, order } => self.erase_wanted(disk, asker, *order),
            PeerMessage::Set { disk, setting, asker, home, change } => self.set(disk, setting, asker, home, change),
            PeerMessage::HasSet { change } => self.has_set(change),
            PeerMessage::HoldRange { disk, number, range, is_atomic, asker, home } => {
                self.hold_range((disk, number), range, is_atomic, asker, home);
            }
            PeerMessage::RangeHeld { disk, number } => self.range_held(disk, number),
            PeerMessage::RangeGranted { asker, number } => {
                self.core.home_requests -= 1;
                if let Some(slot) = asker.link.erased_slot() {
                    self.erasure_got_range(slot, number);
                } else if !self.core.orphan_got_range(asker.link, asker.task, number) {
                    self.with_work(asker.link, |work| work.range_granted(task_of(asker.task), number));
                }
            }
            PeerMessage::ReleaseRange { disk, number } => self.range_released(disk, number),
            PeerMessage::FreeRange { disk, number } => self.free_range(disk, number),
            PeerMessage::Reset { scope, attention, drop_sessions, asker } => {
                self.reset_units(scope, attention, drop_sessions, asker);
            }
            PeerMessage::ResetDone { asker, done } => {
                self.with_work(asker.link, |work| work.reset_done(TaskId(asker.task), done));
            }
            PeerMessage::Agree { disk, asker, change } => {
                self.core.agree(disk, *change, asker.map_or(Waiter::Nobody, Waiter::Task));
            }
            PeerMessage::Agreed { asker, outcome } => {
                self.core.home_requests -= 1;
                self.with_work(asker.link, |work| work.agreed(TaskId(asker.task), outcome));
            }
            PeerMessage::News { disk, home, news } => self.hear_news(disk, home, &news),
            PeerMessage::NewsHeard { disk } => self.core.news_heard(disk),
            message => self.session_message(message),
        }
    }

    /// Messages about sessions and their connections.
    fn session_message(&mut self, message: PeerMessage) {
        match message {
            PeerMessage::Register { applicant } => {
                let decision = self.registrar.register(*applicant);
                self.announce(decision);
            }
            PeerMessage::ConnectionEnded { tsih, shard, link } => {
                if let Some(decision) = self.registrar.ended(tsih, (shard, link)) {
                    self.announce(decision);
                }
            }
            PeerMessage::Registered { link, decision } => self.registered(link, decision),
            PeerMessage::Locate { tsih, shard, link } => {
                let found = self.registrar.shard_of(tsih);
                self.core.mail.post_owed(shard, PeerMessage::Located { link, shard: found });
            }
            PeerMessage::Located { link, shard } => self.located(link, shard),
            PeerMessage::Adopt { socket, arrival, bytes } => self.adopt(socket, arrival, &bytes),
            PeerMessage::Siblings { asker, order } => self.siblings_asked(asker, order),
            PeerMessage::EndSession { link } => self.end_session(link),
            _ => unreachable!("every other message is dealt with by whoever hands this one on"),
        }
    }

    /// The connection's session is reinstated by a newer login.
    fn end_session(&mut self, key: LinkKey) {
        let Self { core, links, .. } = self;
        let link = links.get_mut(key.index as usize).and_then(Option::as_deref_mut).filter(|link| link.key == key);
        if let Some(link) = link {
            if let Some(suppressed) = core.notices.allow(core.now_ms()) {
                tracing::info!(peer = %link.peer, suppressed, "session reinstated by a newer login");
            }
            link.leaves_quietly = true;
            link.close(core);
        }
    }

    pub(super) fn home_request(&mut self, disk: DiskId, swaps: u32, asker: Asker, request: HomeRequest) {
        match request {
            HomeRequest::HoldRange { range, is_atomic } => return self.range_wanted(disk, asker, range, is_atomic),
            HomeRequest::Set(setting) => return self.setting_wanted(disk, asker, setting),
            _ => {}
        }
        let Core { io, mail, disks, home, .. } = &mut self.core;
        let slot = disks.find(disk).and_then(|slot| disks.at_mut(slot));
        let result = match slot.map(|slot| (slot.swaps == swaps, slot.home.as_mut())) {
            Some((true, Some(disk))) => return disk.request(home, io, mail, asker, request),
            // One of the two shards has not heard of the disk's new form yet.
            Some((false, Some(_))) => Ok(Done::PlanAgain),
            _ => Err(MediumError::Removed),
        };
        mail.post_owed(asker.shard, PeerMessage::HomeDone { asker, result });
    }

    fn with_work(&mut self, key: LinkKey, act: impl FnOnce(&mut Work<'_, R>)) {
        self.take_turn(key.index);
        let Self { core, links, .. } = self;
        let link = links.get_mut(key.index as usize).and_then(Option::as_deref_mut).filter(|link| link.key == key);
        if let Some(link) = link {
            if let Some((mut work, _, _)) = link.work(core) {
                act(&mut work);
            }
            link.queue(core);
        }
    }

    fn announce(&mut self, decision: Decision) {
        let mail = &mut self.core.mail;
        match decision {
            Decision::Grant((shard, link), tsih, granted) => {
                mail.post_owed(shard, PeerMessage::Registered { link, decision: Ok((tsih, granted)) });
            }
            Decision::Refuse((shard, link), status) => {
                mail.post_owed(shard, PeerMessage::Registered { link, decision: Err(status) });
            }
            Decision::End(places) => {
                for (shard, link) in places {
                    mail.post_owed(shard, PeerMessage::EndSession { link });
                }
            }
        }
    }

    /// The registrar has decided about a login.
    fn registered(&mut self, key: LinkKey, decision: Result<(u16, Granted), LoginStatus>) {
        let Self { core, links, .. } = self;
        let link = links.get_mut(key.index as usize).and_then(Option::as_deref_mut).filter(|link| link.key == key);
        let link = link.expect("a connection waits for the registrar before it ends");
        link.operations -= 1;
        // From here on the registrar is told when the connection ends.
        link.tsih = decision.ok().map(|(tsih, _)| tsih);
        link.queue(core);
        let is_open = link.state == LinkState::Open;
        match decision {
            Err(status) if is_open => login::refuse(link, core, status),
            Ok((tsih, Granted::Session)) if is_open => {
                self.sessions_started += 1;
                let id = u64::from(core.id.0) << 40 | self.sessions_started;
                login::granted(link, core, tsih, id);
            }
            Ok((tsih, Granted::Place { replaces })) => self.join(key.index, tsih, replaces),
            _ => {}
        }
    }

    fn reset_units(&mut self, scope: ResetScope, attention: Attention, drop_sessions: bool, asker: Asker) {
        let core = &mut self.core;
        let Some(job) = core.begin_job(asker) else {
            // Too many functions at once: this shard's tasks go on, and the initiator is told that the function was
            // refused.
            return core.mail.post_owed(asker.shard, PeerMessage::ResetDone { asker, done: false });
        };
        let mut done = true;
        for index in 0..self.links.len() {
            if self.links[index].is_none() {
                continue;
            }
            self.take_turn(index as u32);
            let is_own = self.is_same_session(asker, index as u32);
            let Self { core, links, .. } = self;
            let Some(link) = links[index].as_deref_mut() else { continue };
            let is_asker = asker.shard == core.id && asker.link == link.key;
            let target = match (&link.phase, scope) {
                (Phase::Session(session), ResetScope::Target(target)) => {
                    session.target.as_ref().is_some_and(|(id, _)| *id == target)
                }
                _ => false,
            };
            if let Some((mut work, _, _)) = link.work(core) {
                done &= work.reset(scope, attention, job, is_own);
            }
            if drop_sessions && target && !is_asker {
                link.leaves_quietly = true;
                link.close(core);
            }
            link.queue(core);
        }
        if !done {
            self.core.job_failed(job);
        }
        if attention == Attention::DeviceReset {
            // SPC-2 clause 5.5.1: a reset releases what RESERVE has reserved, clearing a task set does not.
            self.reset_reservations(scope, job);
        }
        self.core.job_collected(job);
    }

    fn control_message(&mut self, message: ToShard) {
        match message {
            ToShard::Configure { configuration, reply } => {
                self.configure(configuration);
                reply(());
            }
            ToShard::Listen { portal, portal_group_tag, listener } => {
                self.listen(portal, portal_group_tag, Fd(listener.as_raw_fd()), Some(listener));
            }
            ToShard::StopListening { portal, reply } => self.stop_listening(|id| id == portal, Some(reply)),
            ToShard::Attach { disk, engine, reply } => {
                self.attach(disk, engine);
                reply(());
            }
            ToShard::Remember { disk, reservations, store, reply } => {
                self.remember(disk, reservations, store);
                reply(());
            }
            ToShard::ReportReservations { disk, reply } => reply(self.reservations_of(disk)),
            ToShard::ClearReservations { disk, reply } => {
                self.core.agree(disk, Change::Clear, Waiter::Operator(reply));
            }
            ToShard::Detach { disk, reply } => match self.core.disks.find(disk) {
                Some(slot) => {
                    self.resume(disk);
                    if let Some(entry) = self.core.disks.at_mut(slot) {
                        entry.disk.tokens().revoke_all();
                        entry.detaching = Some(reply);
                    }
                    self.detaching.push(slot);
                }
                None => reply(Err(DetachError("the disk is not attached".into()))),
            },
            ToShard::Pause { disk, hold, patience_ms, reply } => self.pause(disk, hold, patience_ms, reply),
            ToShard::Resume { disk, reply } => {
                self.resume(disk);
                reply(());
            }
            ToShard::Swap { disk, engine, retire, retired, attention, reply } => {
                reply(self.swap(&disk, engine, retire.then_some(retired), attention));
            }
            ToShard::LittleSpace { disk } => self.little_space(disk),
            ToShard::Kept { ticket, is_kept } => self.kept(ticket, is_kept),
            ToShard::Place { disk, store } => self.core.place_made(disk, store),
            ToShard::CloseEngine { disk, reply } => self.close_engine(disk, reply),
            ToShard::BeginSession { disk, reply } => self.begin_session(disk, reply),
            ToShard::Relocate { disk, reply } => match self.home_of(disk) {
                Some((disk, home, io, mail)) => {
                    disk.relocate(reply);
                    disk.pump(home, io, mail);
                }
                None => reply(Err(DetachError("the disk is not attached".into()))),
            },
            ToShard::ReportEngine { disk, reply } => reply(self.home_of(disk).map(|(disk, ..)| disk.report())),
            ToShard::ListSessions { reply } => reply(self.list_sessions()),
            ToShard::DropSession { id, reply } => reply(self.drop_session(id)),
            ToShard::Record { disk, recorder, room, reply } => reply(self.core.exchange_notes(disk, recorder, room)),
            ToShard::Quiesce { patience_ms, reply } => self.quiesce(patience_ms, reply),
            ToShard::Stop => self.stopped = true,
        }
    }

    /// Make a disk known.
    pub fn attach(&mut self, disk: Arc<Disk>, engine: Option<Box<dyn Engine>>) {
        let is_home = disk.home() == self.core.id;
        let slot = self.core.disks.insert(DiskSlot {
            disk: Arc::clone(&disk),
            tasks: 0,
            at_work: AtWork::default(),
            ranges: HeldRanges::default(),
            atomics: 0,
            settings: Settings::new(&disk, self.core.now),
            pause: None,
            swaps: 0,
            home: None,
            untimed: [0; 4],
            notes: None,
            detaching: None,
            agreed: Agreed::default(),
            agreement: is_home.then(|| Box::new(AgreementHome::new())),
        });
        if is_home && let Some(entry) = self.core.disks.at_mut(slot) {
            entry.home = HomeDisk::new(slot, disk, engine).map(Box::new);
        }
    }

    /// Put a configuration in force.
    pub fn configure(&mut self, configuration: Arc<Configuration>) {
        let former = std::mem::replace(&mut self.core.configuration, Arc::clone(&configuration));
        self.core.io_deadline_ms = configuration.io_deadline_ms.unwrap_or(IO_DEADLINE_MS).max(1);
        for (disk, settings) in &configuration.disks {
            let slot = self.core.disks.find(*disk);
            if let Some(entry) = slot.and_then(|slot| self.core.disks.at_mut(slot)) {
                entry.settings.configure(settings);
            }
        }
        self.regroup(&former);
        for index in 0..self.links.len() {
            let holds = self.holds(index as u32);
            let Self { core, links, .. } = self;
            let Some(link) = links[index].as_deref_mut() else { continue };
            let Phase::Session(session) = &mut link.phase else { continue };
            let Some((id, name)) = &session.target else { continue };
            let target = configuration.directory.target(name.as_str()).filter(|target| target.id == *id);
            let group = session.portal_group_tag;
            let target = target.filter(|target| target.is_reached_through(group));
            if !target.is_some_and(|target| target.allows(&session.caller())) {
                tracing::info!(peer = %link.peer, "session dropped: its target is gone or no longer allowed");
                core.stats.connections_dropped.increment();
                link.close(core);
                continue;
            }
            if !holds {
                continue;
            }
            let reserved = session.reserved_units(&core.disks);
            if session.map_luns(&configuration, &core.disks, core.id) {
                for entry in &mut session.luns {
                    entry.nexus.raise(Attention::ReportedLunsChanged);
                }
            }
            session.learn(&core.disks);
            let unmapped = reserved.into_iter().filter(|slot| !session.luns.iter().any(|unit| unit.disk == *slot));
            if let Some(nexus) = &session.nexus
                && !core.lose_nexus(nexus, unmapped)
            {
                // With its end the reservation goes.
                link.close(core);
            }
        }
    }

    /// Close all connections of a session; false when there is none of this number here.
    fn drop_session(&mut self, id: u64) -> bool {
        let Self { core, links, .. } = self;
        let mut found = false;
        let is_of = |link: &&mut Link| matches!(&link.phase, Phase::Session(session) if session.id == id);
        for link in links.iter_mut().flatten().map(Box::as_mut).filter(is_of) {
            found = true;
            link.leaves_quietly = true;
            core.stats.connections_dropped.increment();
            link.close(core);
        }
        found
    }

    fn list_sessions(&self) -> Vec<SessionInfo> {
        let now_ms = self.core.now_ms();
        let mut listed: Vec<SessionInfo> = Vec::new();
        let mut places: HashMap<u16, usize> = HashMap::new();
        for link in self.links.iter().flatten().filter(|link| link.state == LinkState::Open) {
            let Phase::Session(session) = &link.phase else { continue };
            let parameters = session.connection.parameters();
            let (connection_id, peer, local) = (parameters.connection_id, link.peer, link.local);
            let connection = ConnectionInfo { connection_id, peer, local };
            if let Some(other) = places.get(&session.tsih).and_then(|place| listed.get_mut(*place)) {
                other.connections.push(connection);
                continue;
            }
            places.insert(session.tsih, listed.len());
            listed.push(SessionInfo {
                connections: vec![connection],
                id: session.id,
                tsih: session.tsih,
                initiator: session.initiator.as_str().to_owned(),
                target: session.target.as_ref().map(|(_, name)| name.as_str().to_owned()),
                peer,
                local,
                shard: self.core.id,
                header_digest: parameters.header_digest,
                data_digest: parameters.data_digest,
                age_seconds: (now_ms - session.since_ms) / 1000,
                stats: Arc::clone(&session.stats),
            });
        }
        listed
    }

    /// Disks that are being detached: close those that nothing uses any more, forget those that are closed.
    pub(super) fn finish_detaching(&mut self) {
        let Core { io, mail, disks, home, .. } = &mut self.core;
        self.detaching.retain(|&slot| {
            let Some(entry) = disks.at_mut(slot) else { return false };
            if entry.tasks > 0 || entry.agreement.as_ref().is_some_and(|agreement| !agreement.is_idle()) {
                return true;
            }
            let result = match entry.home.as_mut() {
                None => Ok(()),
                Some(disk) => {
                    if !disk.closing() {
                        disk.close(home, io, mail);
                    }
                    match disk.closed() {
                        None => return true,
                        Some(result) => result.map_err(|error| DetachError(error.to_string())),
                    }
                }
            };
            if let Some(reply) = disks.remove(slot).and_then(|entry| entry.detaching) {
                reply(result);
            }
            false
        });
    }

    /// Begin to go quiet.
    fn quiesce(&mut self, patience_ms: u64, reply: Reply<()>) {
        self.stop_listening(|_| true, None);
        let now_ms = self.core.now_ms();
        let deadline_ms = now_ms + patience_ms;
        self.quiescing = Some((deadline_ms, reply));
        let Self { core, links, .. } = self;
        for link in links.iter_mut().flatten() {
            match &mut link.phase {
                Phase::Session(session) if link.state == LinkState::Open => {
                    session
                        .connection
                        .request_logout(patience_ms.div_ceil(1000).min(u64::from(u16::MAX)) as u16, now_ms);
                    link.queue(core);
                }
                _ => link.close(core),
            }
        }
        self.core.wake_by_ms(deadline_ms);
    }

    /// Nothing is left of connections and listeners: tell whoever waits for that.
    pub(super) fn finish_quiescing(&mut self) {
        let quiet = self.links.iter().all(Option::is_none) && self.listeners.iter().all(Option::is_none);
        if quiet && let Some((_, reply)) = self.quiescing.take() {
            reply(());
        }
    }
}
