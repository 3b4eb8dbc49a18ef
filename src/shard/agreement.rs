//! What all shards must agree on about a disk beside its blocks: reservations, and the states of target port groups.
//!
//! Every shard has a copy ([`Agreed`]) and holds its sessions' commands against it. The disk's home shard alone changes
//! it, one change after another: it decides on the change, makes durable what has to be (APTPL), tells every shard
//! ([`News`]), waits until each has put the news in force and has ended the commands that are to be aborted, and then
//! answers. What was answered therefore holds on all shards.

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::core::{Core, Mark};
use super::link::Phase;
use super::message::{Configuration, DetachError, Reply, TargetPort};
use super::peer::{Asker, PeerMessage, ResetScope};
use super::run::Shard;
use super::session::Session;
use crate::bounded::Key;
use crate::medium::Disk;
use crate::ring::{Completion, Fd, Op, Ring};
use crate::scsi::reservations::place::{self, Owner};
use crate::scsi::reservations::{self, Effect, Nexus, Reservations, ReserveOut};
use crate::scsi::{Attention, MediumError, Outcome, PortGroups};
use crate::units::{DiskId, ShardId};

/// Disks whose news one home shard tells at once; bounds what shards owe.
pub(crate) const NEWS_MAX: u32 = 64;

/// One shard's copy.
#[derive(Clone, Debug, Default)]
pub(crate) struct Agreed {
    pub(crate) reservations: Arc<Reservations>,
    pub(crate) groups: Arc<PortGroups>,
}

/// A change that is asked of the home shard.
#[derive(Debug)]
pub(crate) enum Change {
    /// PERSISTENT RESERVE OUT.
    Reserve { from: Nexus, service_action: ReserveOut, scope_type: u8, list: Box<[u8]> },
    /// RESERVE or RELEASE.
    Unit { from: Nexus, release: bool },
    /// SET TARGET PORT GROUPS.
    SetPortGroups { from: Nexus, list: Box<[u8]> },
    /// A session has ended.
    NexusLost(Nexus),
    /// The unit was reset.
    Reset,
    /// Other ports lead to the disk, or the operator wants other states of them.
    Ports { before: Vec<TargetPort>, after: Vec<TargetPort> },
    /// The operator takes every reservation off.
    Clear,
}

impl Change {
    /// The nexus whose command asks for it.
    fn from(&self) -> Option<&Nexus> {
        match self {
            Self::Reserve { from, .. } | Self::Unit { from, .. } | Self::SetPortGroups { from, .. } => Some(from),
            Self::NexusLost(_) | Self::Reset | Self::Ports { .. } | Self::Clear => None,
        }
    }
}

/// Who is told when a change is in force.
pub(crate) enum Waiter {
    /// A command.
    Task(Asker),
    /// A task management function, by its job on the home shard.
    Job(Key),
    /// The operator.
    Operator(Reply<Result<(), DetachError>>),
    Nobody,
}

/// What every shard is told.
#[derive(Debug)]
pub(crate) struct News {
    agreed: Agreed,
    effects: Vec<(Nexus, Effect)>,
    access: AccessNews,
}

/// Who learns that a port group is in another state.
#[derive(Debug)]
enum AccessNews {
    Nobody,
    AllBut(Nexus),
}

/// Where a disk's reservations are made durable.
#[derive(Debug)]
pub struct ReservationStore {
    /// The file of all disks' places.
    pub file: Fd,
    /// Closes it when the last place is given up; `None` where the ring has no real files.
    pub owned: Option<Arc<OwnedFd>>,
    /// Where the disk's place begins.
    pub offset_bytes: u64,
    /// The disk.
    pub owner: Owner,
    /// Of the copy that holds now; zero if there is none.
    pub sequence: u64,
    /// It is a place in the server's own file, and the disk can have a file beside its own: that is asked for
    /// ([`PlaceMaker`]) before the first state that has to last is written.
    pub asks_for_own: bool,
}

/// A disk's reservations have to last from now on: it wants a place for them that goes with the disk.
#[derive(Clone, Debug)]
pub struct PlaceWanted {
    /// The disk.
    pub disk: Arc<Disk>,
    /// Of the copy that holds where they were kept so far.
    pub sequence: u64,
}

/// Makes places. Called on a shard's thread; it must not block. It answers with
/// [`ToShard::Place`](super::ToShard::Place). False: it cannot be asked now.
#[derive(Clone)]
pub struct PlaceMaker(pub Arc<dyn Fn(PlaceWanted) -> bool + Send + Sync>);

impl fmt::Debug for PlaceMaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PlaceMaker")
    }
}

/// The home shard's part.
pub(crate) struct AgreementHome {
    now: Agreed,
    store: Option<ReservationStore>,
    /// Bounded by the requests that every shard may have underway, and by what the control plane and the ends of
    /// sessions ask.
    waiting: VecDeque<(Change, Waiter)>,
    underway: Option<Underway>,
}

/// A change that is being put in force.
struct Underway {
    news: Arc<News>,
    waiter: Waiter,
    stage: Stage,
}

enum Stage {
    /// A place beside the disk is to be asked for.
    ToAsk,
    /// The control plane makes it.
    Asking,
    /// This copy is to be written.
    ToStore(Vec<u8>),
    /// So many bytes are being written.
    Storing(usize),
    ToTell,
    /// So many shards have not answered.
    Telling(u16),
}

/// What becomes of a change.
enum Decision {
    /// Nothing changes; this is the answer.
    Answer(Outcome),
    /// The state after it, its effects, and whether it has to be made durable first.
    Change(Box<News>, Option<Vec<u8>>),
}

/// The groups when other ports lead to the disk, or their wanted states are others. A state that an initiator has set
/// stays until the operator wants another one. `before` and `after` are sorted by number.
fn regrouped(groups: &PortGroups, before: &[TargetPort], after: &[TargetPort]) -> PortGroups {
    let is_new = |port: &TargetPort| {
        let at = before.binary_search_by_key(&port.number, |port| port.number);
        at.map_or(true, |at| before[at].state != port.state)
    };
    let mut fresh = PortGroups::new();
    for port in after {
        let present = groups.state_of_port(port.number).filter(|_| !is_new(port));
        fresh.add(port.number, &[port.number], present.unwrap_or(port.state), port.preferred);
    }
    if !groups.has_same_groups(&fresh) {
        return fresh;
    }
    let mut changed = groups.clone();
    for port in after {
        changed.prefer(port.number, port.preferred);
        if is_new(port) {
            changed.change(port.number, port.state);
        }
    }
    changed
}

impl AgreementHome {
    pub(crate) fn new() -> Self {
        Self { now: Agreed::default(), store: None, waiting: VecDeque::new(), underway: None }
    }

    /// Nothing is being changed or waits to be.
    pub(crate) fn is_idle(&self) -> bool {
        self.underway.is_none() && self.waiting.is_empty()
    }

    /// What is durable already, and where the disk's place is.
    pub(crate) fn remember(&mut self, reservations: Arc<Reservations>, store: Option<ReservationStore>) {
        self.now.reservations = reservations;
        self.store = store;
    }

    /// Commands of this nexus are being aborted.
    fn aborts(&self, nexus: &Nexus) -> bool {
        let effects = self.underway.iter().flat_map(|underway| &underway.news.effects);
        effects.into_iter().any(|(of, effect)| *effect == Effect::AbortCommands && of == nexus)
    }

    fn decide(&self, change: Change, ports: &[TargetPort]) -> Decision {
        let mut next = (*self.now.reservations).clone();
        let mut effects = Vec::new();
        let mut effect = |nexus: &Nexus, effect| effects.push((nexus.clone(), effect));
        let outcome = match change {
            Change::Reserve { from, service_action, scope_type, list } => {
                let mut target_ports: Vec<u16> = ports.iter().map(|port| port.number).collect();
                if !target_ports.contains(&from.target_port) {
                    target_ports.push(from.target_port);
                }
                let (from, target_ports, list) = (&from, &target_ports[..], &list[..]);
                let change = reservations::Change { from, target_ports, service_action, scope_type, list };
                next.apply(&change, &mut effect)
            }
            Change::Unit { from, release: false } => next.reserve(&from),
            Change::Unit { from, release: true } => next.release(&from),
            Change::NexusLost(nexus) => {
                next.nexus_lost(&nexus);
                Outcome::GOOD
            }
            Change::Reset => {
                next.reset();
                Outcome::GOOD
            }
            Change::Clear => {
                next.clear_all(&mut effect);
                Outcome::GOOD
            }
            Change::SetPortGroups { from, list } => return self.set_groups(from, &list),
            Change::Ports { before, after } => {
                let groups = Arc::new(regrouped(&self.now.groups, &before, &after));
                let agreed = Agreed { groups, ..self.now.clone() };
                return Decision::Change(Box::new(News { agreed, effects, access: AccessNews::Nobody }), None);
            }
        };
        if outcome != Outcome::GOOD || (next == *self.now.reservations && effects.is_empty()) {
            return Decision::Answer(outcome);
        }
        let stored = next.to_bytes();
        let is_new = stored != self.now.reservations.to_bytes();
        let copy = match &self.store {
            Some(store) if is_new => {
                Some(place::copy(&store.owner, store.sequence + 1, stored.as_deref().unwrap_or_default()))
            }
            // Nothing can have been stored.
            None if is_new && stored.is_some() => return Decision::Answer(MediumError::FlushFailed.outcome()),
            _ => None,
        };
        let agreed = Agreed { reservations: Arc::new(next), groups: Arc::clone(&self.now.groups) };
        Decision::Change(Box::new(News { agreed, effects, access: AccessNews::Nobody }), copy)
    }

    /// A state is to be stored that has to last, and the disk has no place of its own for it yet.
    fn asks_for_own(&self, news: &News) -> bool {
        self.store.as_ref().is_some_and(|store| store.asks_for_own) && news.agreed.reservations.persists()
    }

    /// The change underway is written to the place that there is now.
    fn go_on_storing(&mut self) {
        let (Some(store), Some(underway)) = (&self.store, &mut self.underway) else { return };
        let stored = underway.news.agreed.reservations.to_bytes();
        underway.stage =
            Stage::ToStore(place::copy(&store.owner, store.sequence + 1, stored.as_deref().unwrap_or_default()));
    }

    fn set_groups(&self, from: Nexus, list: &[u8]) -> Decision {
        let mut groups = (*self.now.groups).clone();
        match groups.set(list) {
            Err(sense) => Decision::Answer(sense.into()),
            Ok(false) => Decision::Answer(Outcome::GOOD),
            Ok(true) => {
                let agreed = Agreed { groups: Arc::new(groups), ..self.now.clone() };
                let news = News { agreed, effects: Vec::new(), access: AccessNews::AllBut(from) };
                Decision::Change(Box::new(news), None)
            }
        }
    }
}

/// At home.
impl<R: Ring> Core<R> {
    /// Have a change put in force. On a shard that is not the disk's home nothing happens but the answer.
    pub(crate) fn agree(&mut self, disk: DiskId, change: Change, waiter: Waiter) {
        let slot = self.disks.find(disk);
        let home = slot.and_then(|slot| self.disks.at_mut(slot)).and_then(|entry| entry.agreement.as_deref_mut());
        let (Some(slot), Some(home)) = (slot, home) else {
            return self.agreed(waiter, MediumError::Removed.outcome());
        };
        if change.from().is_some_and(|from| home.aborts(from)) {
            // It may be one of the commands that are waited for.
            return self.agreed(waiter, MediumError::Aborted.outcome());
        }
        home.waiting.push_back((change, waiter));
        self.advance_agreement(slot);
    }

    /// Go on with what is asked of a disk's home shard.
    pub(crate) fn advance_agreement(&mut self, slot: u32) {
        loop {
            let Some(entry) = self.disks.at_mut(slot) else { return };
            let disk = entry.disk.id();
            let Some(home) = entry.agreement.as_deref_mut() else { return };
            let Some(underway) = home.underway.as_mut() else {
                let Some((change, waiter)) = home.waiting.pop_front() else { return };
                let ports = self.configuration.disk_ports.get(&disk).map_or(&[][..], Vec::as_slice);
                match home.decide(change, ports) {
                    Decision::Answer(outcome) => self.agreed(waiter, outcome),
                    Decision::Change(news, copy) => {
                        let asks = home.asks_for_own(&news);
                        let stage =
                            copy.map_or(Stage::ToTell, |copy| if asks { Stage::ToAsk } else { Stage::ToStore(copy) });
                        home.underway = Some(Underway { news: Arc::from(news), waiter, stage });
                        self.drop_aborted(slot);
                    }
                }
                continue;
            };
            let going = match underway.stage {
                Stage::ToAsk => self.ask_for_place(slot),
                Stage::ToStore(_) => self.store_agreement(slot),
                Stage::ToTell => self.tell_news(slot),
                Stage::Asking | Stage::Storing(_) | Stage::Telling(_) => return,
            };
            if !going {
                // Memory, the ring or the mail is full.
                self.stalled_agreements.push(slot);
            }
            return;
        }
    }

    /// Requests that wait and whose commands are about to be aborted: those end now, or they would wait for each other.
    fn drop_aborted(&mut self, slot: u32) {
        let Some(home) = self.disks.at_mut(slot).and_then(|entry| entry.agreement.as_deref_mut()) else { return };
        let waiting = std::mem::take(&mut home.waiting);
        let (dropped, kept): (Vec<_>, Vec<_>) =
            waiting.into_iter().partition(|(change, _)| change.from().is_some_and(|from| home.aborts(from)));
        home.waiting = kept.into();
        for (_, waiter) in dropped {
            self.agreed(waiter, MediumError::Aborted.outcome());
        }
    }

    /// Ask for a place that goes with the disk.
    fn ask_for_place(&mut self, slot: u32) -> bool {
        let Some(entry) = self.disks.at_mut(slot) else { return true };
        let disk = Arc::clone(&entry.disk);
        let Some(home) = entry.agreement.as_deref_mut() else { return true };
        let Some(sequence) = home.store.as_ref().map(|store| store.sequence) else { return true };
        let wanted = PlaceWanted { disk, sequence };
        if self.configuration.place_maker.as_ref().is_some_and(|maker| (maker.0)(wanted)) {
            if let Some(underway) = &mut home.underway {
                underway.stage = Stage::Asking;
            }
        } else {
            home.go_on_storing();
        }
        true
    }

    /// The place that was asked for is made; `None`: it cannot be, and everything stays where it was.
    pub(crate) fn place_made(&mut self, disk: DiskId, store: Option<ReservationStore>) {
        let Some(slot) = self.disks.find(disk) else { return };
        let Some(home) = self.disks.at_mut(slot).and_then(|entry| entry.agreement.as_deref_mut()) else { return };
        if !matches!(home.underway, Some(Underway { stage: Stage::Asking, .. })) {
            return;
        }
        match store {
            Some(store) => home.store = Some(store),
            None => home.store.iter_mut().for_each(|store| store.asks_for_own = false),
        }
        home.go_on_storing();
        self.advance_agreement(slot);
    }

    /// Write the copy. False: not now.
    fn store_agreement(&mut self, slot: u32) -> bool {
        let home = self.disks.at_mut(slot).and_then(|entry| entry.agreement.as_deref_mut());
        let Some((Some(store), Some(underway))) = home.map(|home| (&home.store, &mut home.underway)) else {
            return true;
        };
        let Stage::ToStore(copy) = &underway.stage else { return true };
        let Some(mut buf) = self.io.arena.take(copy.len()) else { return false };
        buf.truncate(copy.len());
        buf.copy_from_slice(copy);
        let offset_bytes = store.offset_bytes + place::copy_offset_bytes(store.sequence + 1);
        let op = Op::Write { file: store.file, offset_bytes, from: buf.freeze(), durable: true };
        if self.io.submit(Mark::Agreement(slot), op).is_err() {
            return false;
        }
        underway.stage = Stage::Storing(copy.len());
        true
    }

    /// The copy has been written, or could not be.
    pub(crate) fn agreement_stored(&mut self, slot: u32, completion: &Completion) {
        let home = self.disks.at_mut(slot).and_then(|entry| entry.agreement.as_deref_mut());
        let Some(AgreementHome { store: Some(store), underway, .. }) = home else { return };
        let Some(Underway { stage, .. }) = underway else { return };
        let Stage::Storing(len) = *stage else { return };
        if completion.result.is_ok_and(|written| written as usize == len) {
            store.sequence += 1;
            *stage = Stage::ToTell;
        } else if let Some(Underway { waiter, .. }) = underway.take() {
            // The next change is written to the same copy; the other one holds meanwhile.
            tracing::error!(disk = store.owner.name, "reservations cannot be stored; see that the disk has space");
            self.agreed(waiter, MediumError::FlushFailed.outcome());
        }
        self.advance_agreement(slot);
    }

    /// Tell every shard. False: not now.
    fn tell_news(&mut self, slot: u32) -> bool {
        let shards = self.shards;
        if self.news_underway >= NEWS_MAX || !self.mail.has_room() {
            return false;
        }
        let Some(entry) = self.disks.at_mut(slot) else { return true };
        let disk = entry.disk.id();
        let Some(home) = entry.agreement.as_deref_mut() else { return true };
        let Some(underway) = home.underway.as_mut() else { return true };
        underway.stage = Stage::Telling(shards);
        home.now = underway.news.agreed.clone();
        let news = Arc::clone(&underway.news);
        self.news_underway += 1;
        for shard in (0..shards).map(ShardId) {
            let news = Arc::clone(&news);
            self.mail.post_owed(shard, PeerMessage::News { disk, home: self.id, news });
        }
        true
    }

    /// A shard has put the news in force.
    pub(crate) fn news_heard(&mut self, disk: DiskId) {
        let Some(slot) = self.disks.find(disk) else { return };
        let Some(home) = self.disks.at_mut(slot).and_then(|entry| entry.agreement.as_deref_mut()) else { return };
        let Some(Underway { stage: Stage::Telling(shards), .. }) = &mut home.underway else { return };
        *shards -= 1;
        if *shards > 0 {
            return;
        }
        if let Some(Underway { waiter, .. }) = home.underway.take() {
            self.agreed(waiter, Outcome::GOOD);
        }
        self.news_underway -= 1;
        self.advance_agreement(slot);
    }

    /// Tell whoever waits.
    fn agreed(&mut self, waiter: Waiter, outcome: Outcome) {
        match waiter {
            Waiter::Task(asker) => self.mail.post_owed(asker.shard, PeerMessage::Agreed { asker, outcome }),
            Waiter::Job(job) => self.job_task_ended(job),
            Waiter::Operator(reply) => {
                let failed = || DetachError("it could not be made durable; see that the state folder has space".into());
                reply(if outcome == Outcome::GOOD { Ok(()) } else { Err(failed()) });
            }
            Waiter::Nobody => {}
        }
    }

    /// Try again what memory, the ring or the mail refused.
    pub(crate) fn retry_agreements(&mut self) {
        for slot in std::mem::take(&mut self.stalled_agreements) {
            self.advance_agreement(slot);
        }
    }

    /// A session that has a unit reserved (by RESERVE) does not reach it any more. False: not now.
    pub(crate) fn lose_nexus(&mut self, nexus: &Nexus, slots: impl Iterator<Item = u32>) -> bool {
        for slot in slots {
            let Some(entry) = self.disks.at(slot).filter(|entry| entry.is_reserved_by(nexus)) else { continue };
            let (disk, home, change) = (entry.disk.id(), entry.disk.home(), Change::NexusLost(nexus.clone()));
            let message = PeerMessage::Agree { disk, asker: None, change: Box::new(change) };
            if self.mail.post(home, message).is_err() {
                return false;
            }
        }
        true
    }
}

/// On every shard.
impl<R: Ring> Shard<R> {
    /// Put the news in force.
    pub(super) fn hear_news(&mut self, disk: DiskId, home: ShardId, news: &News) {
        let core = &mut self.core;
        let slot = core.disks.find(disk);
        let Some((slot, entry)) = slot.and_then(|slot| Some((slot, core.disks.at_mut(slot)?))) else {
            return core.mail.post_owed(home, PeerMessage::NewsHeard { disk });
        };
        entry.agreed = news.agreed.clone();
        let aborts = news.effects.iter().any(|(_, effect)| *effect == Effect::AbortCommands);
        let job = aborts.then(|| core.begin_job_for(home, PeerMessage::NewsHeard { disk })).flatten();
        for index in 0..self.links.len() {
            if self.links[index].is_none() {
                continue;
            }
            // Each connection of a session has its commands; what they share hears the same again.
            self.take_turn(index as u32);
            let Self { core, links, .. } = self;
            let Some(link) = links[index].as_deref_mut() else { continue };
            let Phase::Session(session) = &mut link.phase else { continue };
            if session.hear_news(slot, news) {
                if let Some((mut work, _, _)) = link.work(core) {
                    work.abort_on_disk(slot, job);
                }
                link.queue(core);
            }
        }
        match job {
            Some(job) => self.core.job_collected(job),
            // Without a place among the jobs the commands end all the same, only nobody waits for that.
            None => self.core.mail.post_owed(home, PeerMessage::NewsHeard { disk }),
        }
    }

    /// Units were reset: what RESERVE commands reserved of those at home here is free. The job waits for that.
    pub(super) fn reset_reservations(&mut self, scope: ResetScope, job: Key) {
        let core = &mut self.core;
        let disks: Vec<DiskId> = match scope {
            ResetScope::Unit(disk) => vec![disk],
            ResetScope::Target(target) => {
                let luns = core.configuration.luns.get(&target);
                luns.into_iter().flat_map(|luns| luns.values()).map(|mapping| mapping.disk).collect()
            }
        };
        for disk in disks {
            let slot = core.disks.find(disk).and_then(|slot| core.disks.at(slot));
            if slot.is_some_and(|entry| entry.agreement.is_some()) {
                core.job_has_task(job);
                core.agree(disk, Change::Reset, Waiter::Job(job));
            }
        }
    }

    /// Other ports lead to disks, or the operator wants other states of them. Every shard comes to the same; the home
    /// shard's news then settle what crossed this.
    pub(super) fn regroup(&mut self, former: &Configuration) {
        let Self { core, links, .. } = self;
        let configuration = Arc::clone(&core.configuration);
        for slot in 0..core.disks.len() {
            let Some(entry) = core.disks.at_mut(slot) else { continue };
            let disk = entry.disk.id();
            let ports = |of: &'_ Configuration| of.disk_ports.get(&disk).cloned().unwrap_or_default();
            if former.disk_ports.get(&disk) == configuration.disk_ports.get(&disk) {
                continue;
            }
            let (before, after) = (ports(former), ports(&configuration));
            let groups = regrouped(&entry.agreed.groups, &before, &after);
            // The copy does not tell: the home shard's news may have come first.
            let changed = after
                .iter()
                .any(|port| before.iter().any(|before| before.number == port.number && before.state != port.state));
            entry.agreed.groups = Arc::new(groups);
            let is_home = entry.agreement.is_some();
            for link in links.iter_mut().flatten().filter(|_| changed) {
                let Phase::Session(session) = &mut link.phase else { continue };
                for unit in session.luns.iter_mut().filter(|unit| unit.disk == slot) {
                    unit.nexus.raise(Attention::AccessStateChanged);
                }
            }
            if is_home {
                core.agree(disk, Change::Ports { before, after }, Waiter::Nobody);
            }
        }
    }

    /// A disk's reservations; `None`: it is not attached.
    pub(super) fn reservations_of(&self, disk: DiskId) -> Option<Arc<Reservations>> {
        let slot = self.core.disks.find(disk)?;
        Some(Arc::clone(&self.core.disks.at(slot)?.agreed.reservations))
    }

    /// What outlasted the last end of the server.
    pub fn remember(&mut self, disk: DiskId, reservations: Arc<Reservations>, store: Option<ReservationStore>) {
        let slot = self.core.disks.find(disk);
        let Some(entry) = slot.and_then(|slot| self.core.disks.at_mut(slot)) else { return };
        entry.agreed.reservations = Arc::clone(&reservations);
        if let Some(home) = entry.agreement.as_deref_mut() {
            home.remember(reservations, store);
        }
    }
}

impl Session {
    /// What the news mean for this session. True: its commands on the disk are to be aborted.
    fn hear_news(&mut self, slot: u32, news: &News) -> bool {
        let Some(nexus) = &self.nexus else { return false };
        let mut aborts = false;
        for unit in self.luns.iter_mut().filter(|unit| unit.disk == slot) {
            unit.nexus.set_standing(news.agreed.reservations.standing(nexus));
            unit.nexus.set_access(news.agreed.groups.state_of_port(nexus.target_port).unwrap_or_default());
            for (_, effect) in news.effects.iter().filter(|(of, _)| of == nexus) {
                match effect {
                    Effect::Attention(attention) => unit.nexus.raise(*attention),
                    Effect::AbortCommands => aborts = true,
                }
            }
            if matches!(&news.access, AccessNews::AllBut(sender) if sender != nexus) {
                unit.nexus.raise(Attention::AccessStateChanged);
            }
        }
        aborts
    }

    /// What is agreed on about the disks of the session's units.
    pub(crate) fn learn(&mut self, disks: &super::core::DiskTable) {
        let Some(nexus) = &self.nexus else { return };
        for unit in &mut self.luns {
            let Some(entry) = disks.at(unit.disk) else { continue };
            unit.nexus.set_standing(entry.agreed.reservations.standing(nexus));
            unit.nexus.set_access(entry.agreed.groups.state_of_port(nexus.target_port).unwrap_or_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::AccessState::{self, ActiveOptimized, Standby, Unavailable};

    fn port(number: u16, state: AccessState) -> TargetPort {
        TargetPort { portal_group_tag: 1, number, state, preferred: false }
    }

    #[test]
    fn what_an_initiator_has_set_stays_until_the_operator_wants_something_else() {
        let first = [port(1, ActiveOptimized), port(2, ActiveOptimized)];
        let mut groups = regrouped(&PortGroups::new(), &[], &first);
        assert_eq!(groups.set(&[0, 0, 0, 0, Standby as u8, 0, 0, 2]), Ok(true));
        let states = |groups: &PortGroups| [1, 2, 3].map(|number| groups.state_of_port(number));
        let more = [port(1, ActiveOptimized), port(2, ActiveOptimized), port(3, Unavailable)];
        let groups = regrouped(&groups, &first, &more);
        assert_eq!(states(&groups), [Some(ActiveOptimized), Some(Standby), Some(Unavailable)]);
        let changed = [port(1, Unavailable), port(2, ActiveOptimized), port(3, Unavailable)];
        let groups = regrouped(&groups, &more, &changed);
        assert_eq!(states(&groups), [Some(Unavailable), Some(Standby), Some(Unavailable)]);
        let changed_again = [port(2, Unavailable)];
        let groups = regrouped(&groups, &changed, &changed_again);
        assert_eq!(states(&groups), [None, Some(Unavailable), None]);
    }
}
