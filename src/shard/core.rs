//! What all connections of a shard share: ring, memory, disks, mail, time.

use std::collections::HashMap;
use std::sync::Arc;

use super::agreement::{Agreed, AgreementHome, NEWS_MAX};
use super::copy::Secrets;
use super::erase::Erasure;
use super::exclusive::{HeldRanges, RANGES_MAX};
use super::home::{BARRIERS_MAX, Home, HomeDisk};
use super::link::STREAM_RESERVE_BYTES;
use super::mailbox::Senders;
use super::management::{JOBS_MAX, Jobs};
use super::message::Configuration;
use super::notices::Notices;
use super::overdue::{IO_DEADLINE_MS, Orphans};
use super::pause::{AtWork, Pause};
use super::peer::{Asker, HomeRequest, LinkKey, PeerMessage};
use super::settings::{CHANGES_MAX, Settings};
use crate::bounded::Queue;
use crate::medium::Disk;
use crate::mem::{Arena, Buf};
use crate::observe::{Operation, ShardStats};
use crate::ring::{Fd, Nanos, Op, Ring, Tag, Wake};
use crate::scsi::reservations::Nexus;
use crate::units::{DiskId, ShardId};

/// Messages that a full mailbox of another shard has refused wait here. Beyond this the shard takes no more messages
/// itself.
const OUTBOX_MAX: usize = 4096;

/// Requests to home shards that one shard may have underway; further ones wait in their tasks.
pub(crate) const HOME_REQUESTS_MAX: usize = 1024;

/// Of those, kept free for commits: what waits for space may wait for commits to end.
const HOME_REQUESTS_FOR_COMMITS: usize = 128;

/// Below this many free places in the ring, no new command is looked at.
pub(crate) const RING_SLOTS_RESERVE: usize = 512;

/// Ring and memory, apart from the rest so that both can be lent at once.
pub(crate) struct Io<R: Ring> {
    pub(crate) ring: R,
    pub(crate) arena: Arena,
    /// Some disk's home part may be stalled ([`Stall`]).
    pub(crate) has_stalled: bool,
}

/// Whether memory or the ring has refused something that is to be tried again. Who sets it also says so to the shard,
/// which then looks for it.
#[derive(Debug, Default)]
pub(crate) struct Stall(bool);

impl Stall {
    /// Something was refused.
    pub(crate) fn set<R: Ring>(&mut self, io: &mut Io<R>) {
        self.0 = true;
        io.has_stalled = true;
    }

    /// It is being tried again.
    pub(crate) fn clear(&mut self) {
        self.0 = false;
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0
    }
}

/// The way to other shards, and to the own one.
pub(crate) struct Mail<W> {
    me: ShardId,
    senders: Senders<W>,
    local: Queue<PeerMessage>,
    outbox: Queue<(ShardId, PeerMessage)>,
}

/// A disk as one shard knows it.
pub(crate) struct DiskSlot {
    pub(crate) disk: Arc<Disk>,
    /// Tasks of this shard that use it.
    pub(crate) tasks: u32,
    /// Present on the disk's home shard.
    pub(crate) home: Option<Box<HomeDisk>>,
    /// Who is at work on its files.
    pub(crate) at_work: AtWork,
    /// Ranges of it that single commands have to themselves.
    pub(crate) ranges: HeldRanges,
    /// How many of them there have been to be written atomically.
    pub(crate) atomics: u32,
    /// What its unit is set to.
    pub(crate) settings: Settings,
    /// Its commands are held.
    pub(crate) pause: Option<Pause>,
    /// How often another form of it has been put in its place.
    pub(crate) swaps: u32,
    /// Commands of this turn, by kind, whose latency is not recorded yet.
    pub(crate) untimed: [u32; Operation::ALL.len()],
    /// What all shards agree on.
    pub(crate) agreed: Agreed,
    /// Present on the disk's home shard.
    pub(crate) agreement: Option<Box<AgreementHome>>,
    /// Somebody records what the disk is asked for.
    pub(crate) notes: Option<Box<super::record::Notes>>,
    /// A detach that waits for the tasks (and, at home, for the engine).
    pub(crate) detaching: Option<super::message::Reply<Result<(), super::message::DetachError>>>,
}

/// The disks of a shard, by slot and by id.
#[derive(Default)]
pub(crate) struct DiskTable {
    slots: Vec<Option<DiskSlot>>,
    by_id: HashMap<DiskId, u32>,
}

/// Everything that is not a connection.
pub(crate) struct Core<R: Ring> {
    pub(crate) id: ShardId,
    pub(crate) io: Io<R>,
    pub(crate) mail: Mail<R::Waker>,
    pub(crate) disks: DiskTable,
    pub(crate) home: Home,
    pub(crate) jobs: Jobs,
    pub(crate) configuration: Arc<Configuration>,
    /// What makes tokens of copies unforgeable.
    pub(crate) secrets: Secrets,
    pub(crate) stats: Arc<ShardStats>,
    /// Bounds what peers can make the shard write to the log.
    pub(crate) notices: Notices,
    /// The time at the start of the turn.
    pub(crate) now: Nanos,
    /// Connections that want to run in the next turn.
    pub(crate) runnable: Queue<u32>,
    /// Connections with tasks that wait for memory, ring slots or home requests.
    pub(crate) starved: Queue<u32>,
    pub(crate) home_requests: usize,
    /// Commands that began in this turn, and those that ended: for the decision between spinning and sleeping.
    pub(crate) commands_in_turn: u32,
    pub(crate) answers_in_turn: u32,
    /// The earliest moment at which some connection wants to be looked at.
    pub(crate) deadline_ms: u64,
    /// How many shards the server has.
    pub(crate) shards: u16,
    /// Disks at home here whose news are being told.
    pub(crate) news_underway: u32,
    /// Disks at home here that cannot go on with what is to be agreed on.
    pub(crate) stalled_agreements: Vec<u32>,
    /// Connections in full feature phase.
    pub(crate) full_feature: u32,
    /// For the stream of one connection at a time that finds no memory; `None` while it is lent, or the arena is too
    /// small for it.
    pub(crate) stream_reserve: Option<Buf>,
    /// Those that wait for memory are to be tried in the next turn, whatever happens.
    pub(crate) feed: bool,
    /// Connections that were turned away while the ring had no place: to be closed. No more than the process has
    /// descriptors.
    pub(crate) turned_away: Vec<Fd>,
    /// Operations of tasks, of all connections, and tasks that are held.
    pub(crate) task_operations: u32,
    /// Those that nobody waits for any more.
    pub(crate) orphans: Orphans,
    /// Disks of this home shard that are being emptied or overwritten.
    pub(crate) erasures: Vec<Erasure>,
    /// How long a command waits for a file.
    pub(crate) io_deadline_ms: u64,
    /// When to look again for those that have waited too long; zero while nothing is waited for.
    pub(crate) overdue_check: Nanos,
    /// Disks with commands that started and ended within this turn.
    untimed: Vec<u32>,
}

/// What an operation in the ring is for; packed into its [`Tag`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// Accepting on a listener of this index.
    Accept(u32),
    /// Receiving on a connection.
    Receive(u32),
    /// Sending on a connection.
    Send(u32),
    /// Shutting a connection down.
    Shutdown(u32),
    /// Closing a connection.
    Close(u32),
    /// File I/O of a task: connection; the connection's generation, the task's and the task.
    Task(u32, u32),
    /// An engine's I/O: disk slot, which of the disk's engines, the engine's number.
    Engine(u32, u16, u32),
    /// A page of a block map: disk slot, place among those being read.
    Load(u32, u32),
    /// A flush of a disk's file for initiators: disk slot.
    Flush(u32),
    /// Emptying or overwriting a disk: disk slot.
    Erase(u32),
    /// Storing what is agreed on about a disk: its slot.
    Agreement(u32),
    /// Something whose completion nobody waits for.
    Ignore,
}

/// Bits of a disk's slot; the other twelve of a mark's index tell its engines apart.
const DISK_SLOT_BITS: u32 = 16;
const DISK_SLOTS_MAX: u32 = 1 << DISK_SLOT_BITS;

/// Engines of one disk are numbered below this, and then from zero again.
pub(crate) const DRIVER_NUMBERS: u16 = 1 << 12;

fn engine_index(disk: u32, driver: u16) -> u32 {
    debug_assert!(disk < DISK_SLOTS_MAX && driver < DRIVER_NUMBERS);
    u32::from(driver) << DISK_SLOT_BITS | disk
}

impl Mark {
    /// Kind in bits 60..64, then 28 bits of index, then 32 bits of detail.
    pub(crate) fn tag(self) -> Tag {
        let (kind, index, detail) = match self {
            Self::Ignore => (0, 0, 0),
            Self::Accept(listener) => (1, listener, 0),
            Self::Receive(link) => (2, link, 0),
            Self::Send(link) => (3, link, 0),
            Self::Shutdown(link) => (4, link, 0),
            Self::Close(link) => (5, link, 0),
            Self::Task(link, task) => (6, link, task),
            Self::Engine(disk, driver, io) => (7, engine_index(disk, driver), io),
            Self::Load(disk, place) => (9, disk, place),
            Self::Flush(disk) => (8, disk, 0),
            Self::Erase(disk) => (10, disk, 0),
            Self::Agreement(disk) => (11, disk, 0),
        };
        debug_assert!(index < 1 << 28);
        Tag(kind << 60 | u64::from(index) << 32 | u64::from(detail))
    }

    /// The reverse of [`Self::tag`].
    pub(crate) fn from_tag(tag: Tag) -> Self {
        let index = (tag.0 >> 32) as u32 & 0x0fff_ffff;
        let detail = tag.0 as u32;
        match tag.0 >> 60 {
            1 => Self::Accept(index),
            2 => Self::Receive(index),
            3 => Self::Send(index),
            4 => Self::Shutdown(index),
            5 => Self::Close(index),
            6 => Self::Task(index, detail),
            7 => Self::Engine(index & (DISK_SLOTS_MAX - 1), (index >> DISK_SLOT_BITS) as u16, detail),
            8 => Self::Flush(index),
            9 => Self::Load(index, detail),
            10 => Self::Erase(index),
            11 => Self::Agreement(index),
            _ => Self::Ignore,
        }
    }
}

impl<R: Ring> Io<R> {
    pub(crate) fn new(ring: R, arena: Arena) -> Self {
        Self { ring, arena, has_stalled: false }
    }

    /// Queue an operation; given back when the ring is full.
    pub(crate) fn submit(&mut self, mark: Mark, op: Op) -> Result<(), Op> {
        self.ring.submit(mark.tag(), op).map(|_| ())
    }
}

impl<W: Wake> Mail<W> {
    pub(crate) fn new(me: ShardId, senders: Senders<W>) -> Self {
        // Answers that may be owed at once: all that every shard may have asked this one as a home shard, and every
        // job; barriers and news with their answers; and four messages about every range.
        let for_each_shard =
            HOME_REQUESTS_MAX + 2 * BARRIERS_MAX as usize + 2 * NEWS_MAX as usize + 4 * RANGES_MAX + 2 * CHANGES_MAX;
        let owed_max = senders.0.len() * for_each_shard + JOBS_MAX;
        Self { me, senders, local: Queue::new(OUTBOX_MAX + owed_max), outbox: Queue::new(OUTBOX_MAX + owed_max) }
    }

    /// Send a message, to this shard too. Delivered in order to each receiver. Given back when everything is full.
    pub(crate) fn post(&mut self, to: ShardId, message: PeerMessage) -> Result<(), PeerMessage> {
        if to == self.me {
            return self.local.push(message);
        }
        // What waits goes first, so that messages to one shard keep their order.
        let message = if self.outbox.is_empty() {
            match self.senders.of(to).send_peer(message) {
                Ok(()) => return Ok(()),
                Err(message) => message,
            }
        } else {
            message
        };
        self.outbox.push((to, message)).map_err(|(_, message)| message)
    }

    /// Send a message that must not be lost: callers have made sure of room ([`Self::has_room`]) for answers they owe.
    pub(crate) fn post_owed(&mut self, to: ShardId, message: PeerMessage) {
        let refused = self.post(to, message).is_err();
        assert!(!refused, "messages are only taken while there is room for their answers");
    }

    /// Whether answers to a message that is taken now will find a place.
    pub(crate) fn has_room(&self) -> bool {
        let spare = OUTBOX_MAX / 2;
        self.local.len() < spare && self.outbox.len() < spare
    }

    /// The next message to this shard itself.
    pub(crate) fn take_local(&mut self) -> Option<PeerMessage> {
        self.local.pop()
    }

    /// Try again what full mailboxes refused. False while something still waits.
    pub(crate) fn flush(&mut self) -> bool {
        while let Some((to, message)) = self.outbox.pop() {
            if let Err(message) = self.senders.of(to).send_peer(message) {
                let kept = self.outbox.push_front((to, message)).is_ok();
                assert!(kept, "the place it came from is free");
                return false;
            }
        }
        true
    }

    /// Nothing waits to be delivered to this shard.
    pub(crate) fn local_is_empty(&self) -> bool {
        self.local.is_empty()
    }
}

impl DiskSlot {
    /// A RESERVE command of this nexus has reserved the unit.
    pub(crate) fn is_reserved_by(&self, nexus: &Nexus) -> bool {
        self.agreed.reservations.reserved_by() == Some(nexus)
    }
}

impl DiskTable {
    /// The slot of a disk.
    pub(crate) fn find(&self, id: DiskId) -> Option<u32> {
        self.by_id.get(&id).copied()
    }

    #[inline]
    pub(crate) fn at(&self, slot: u32) -> Option<&DiskSlot> {
        self.slots.get(slot as usize)?.as_ref()
    }

    #[inline]
    pub(crate) fn at_mut(&mut self, slot: u32) -> Option<&mut DiskSlot> {
        self.slots.get_mut(slot as usize)?.as_mut()
    }

    /// The disk of a slot that a living task uses.
    #[inline]
    pub(crate) fn of_task(&self, slot: u32) -> &Disk {
        &self.at(slot).expect("a disk stays attached while tasks use it").disk
    }

    pub(crate) fn insert(&mut self, entry: DiskSlot) -> u32 {
        let id = entry.disk.id();
        let free = self.slots.iter().position(Option::is_none);
        let slot = free.unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[slot] = Some(entry);
        self.by_id.insert(id, slot as u32);
        slot as u32
    }

    pub(crate) fn remove(&mut self, slot: u32) -> Option<DiskSlot> {
        let entry = self.slots.get_mut(slot as usize)?.take()?;
        self.by_id.remove(&entry.disk.id());
        Some(entry)
    }

    /// Slots that have ever been used.
    pub(crate) fn len(&self) -> u32 {
        self.slots.len() as u32
    }
}

impl<R: Ring> Core<R> {
    pub(crate) fn new(
        id: ShardId,
        shards: u16,
        links_max: usize,
        io: Io<R>,
        senders: Senders<R::Waker>,
        stats: Arc<ShardStats>,
    ) -> Self {
        let now = io.ring.now();
        let stream_reserve = io.arena.take(STREAM_RESERVE_BYTES);
        Self {
            id,
            io,
            mail: Mail::new(id, senders),
            disks: DiskTable::default(),
            home: Home::new(id, shards),
            jobs: Jobs::new(),
            notices: Notices::default(),
            configuration: Arc::new(Configuration::default()),
            secrets: Secrets::draw(),
            stats,
            now,
            // A connection that has ended may still be in a queue when its successor in the same place enters it.
            runnable: Queue::new(2 * links_max),
            starved: Queue::new(2 * links_max),
            home_requests: 0,
            commands_in_turn: 0,
            answers_in_turn: 0,
            deadline_ms: u64::MAX,
            shards,
            news_underway: 0,
            stalled_agreements: Vec::new(),
            full_feature: 0,
            stream_reserve,
            feed: false,
            turned_away: Vec::with_capacity(64),
            task_operations: 0,
            orphans: Orphans::default(),
            erasures: Vec::new(),
            io_deadline_ms: IO_DEADLINE_MS,
            overdue_check: Nanos(0),
            untimed: Vec::with_capacity(64),
        }
    }

    /// The time in milliseconds.
    pub(crate) fn now_ms(&self) -> u64 {
        self.now.0 / 1_000_000
    }

    /// A command has ended. One that also started in this turn is timed when the turn's answers leave, so that the
    /// clock is asked once for all of them.
    pub(crate) fn record(&mut self, slot: u32, operation: Operation, bytes: u64, started: Nanos, good: bool) {
        let (id, now) = (self.id, self.now);
        let Some(entry) = self.disks.at_mut(slot) else { return };
        if started < now {
            return entry.disk.stats(id).record(operation, bytes, now.0 - started.0, good);
        }
        entry.disk.stats(id).count(operation, bytes, good);
        if entry.untimed == [0; Operation::ALL.len()] {
            self.untimed.push(slot);
        }
        entry.untimed[operation as usize] += 1;
    }

    /// The turn's answers leave: time the commands that started and ended in it.
    pub(crate) fn time_commands(&mut self) {
        if self.untimed.is_empty() {
            return;
        }
        let latency_ns = self.io.ring.now().0.saturating_sub(self.now.0);
        for slot in self.untimed.drain(..) {
            let Some(entry) = self.disks.at_mut(slot) else { continue };
            for operation in Operation::ALL {
                let count = std::mem::take(&mut entry.untimed[operation as usize]);
                if count > 0 {
                    // Others are not touched: with many disks their memory is in no cache.
                    entry.disk.stats(self.id).of(operation).latency.record_many(latency_ns, u64::from(count));
                }
            }
        }
    }

    /// Ask a disk's home shard for something. False when too much is underway: try again later. What others may wait
    /// for finds a place when nothing else does.
    pub(crate) fn ask_home(&mut self, disk_slot: u32, link: LinkKey, task: u16, request: HomeRequest) -> bool {
        let entry = self.disks.at(disk_slot).expect("a disk stays attached while tasks use it");
        let (disk, home, swaps) = (entry.disk.id(), entry.disk.home(), entry.swaps);
        let reserve = if matches!(request, HomeRequest::Commit { .. }) { 0 } else { HOME_REQUESTS_FOR_COMMITS };
        if self.home_requests + reserve >= HOME_REQUESTS_MAX || !self.mail.has_room() {
            return false;
        }
        let asker = Asker { shard: self.id, link, task };
        let sent = self.mail.post(home, PeerMessage::Home { disk, swaps, asker, request }).is_ok();
        self.home_requests += usize::from(sent);
        sent
    }

    /// Close the connections that were turned away, as far as the ring has places.
    pub(crate) fn close_turned_away(&mut self) {
        while let Some(fd) = self.turned_away.pop() {
            if self.io.submit(Mark::Ignore, Op::Close { fd }).is_err() {
                return self.turned_away.push(fd);
            }
        }
    }

    /// A connection wants to be looked at by this time.
    pub(crate) fn wake_by_ms(&mut self, deadline_ms: u64) {
        self.deadline_ms = self.deadline_ms.min(deadline_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_survive_the_way_through_the_ring() {
        let marks = [
            Mark::Ignore,
            Mark::Accept(3),
            Mark::Receive(4095),
            Mark::Send(0),
            Mark::Shutdown(7),
            Mark::Close(8),
            Mark::Task(4095, 0xffff_0087),
            Mark::Engine(16383, 4095, u32::MAX),
            Mark::Engine(65535, 0, 1),
            Mark::Load(16383, 7),
            Mark::Flush(0x0fff_ffff),
            Mark::Erase(16383),
            Mark::Agreement(16383),
        ];
        for mark in marks {
            assert_eq!(Mark::from_tag(mark.tag()), mark);
        }
    }
}
