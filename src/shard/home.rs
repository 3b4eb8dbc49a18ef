//! The home shard's part: what only one shard may do to a disk, on behalf of all.
//!
//! It owns the leaf's engine: blocks get and lose their space here, and pages of every layer's map are loaded here. For
//! every file it runs the flushes that initiators ask for, coalesced: one is running, and all requests that come
//! meanwhile share the next one. A request is answered by message, to this shard itself as well.
//!
//! A disk that has been given another leaf keeps its former one here until its engine has closed; until then a flush
//! makes both files durable.

use std::sync::Arc;

use super::core::{DRIVER_NUMBERS, Io, Mail, Mark};
use super::driver::{Driver, Started, failure};
use super::exclusive::Arbiter;
use super::load::Loads;
use super::message::{DetachError, EngineReport, Reply};
use super::peer::{Asker, HomeRequest, PeerMessage};
use super::settings::Changes;
use crate::blocks::{Asked, Done, Engine, EngineError, Event, FlushMark, IoId, Ticket};
use crate::bounded::{Key, Slab};
use crate::medium::{Disk, Doing, Health};
use crate::ring::{Completion, Errno, Op, Ring, Wake};
use crate::scsi::MediumError;
use crate::units::ShardId;

/// Requests that engines of one home shard have in hand, for all shards.
const PENDING_MAX: usize = 4096;

/// Of those, kept free for commits: what waits for space may wait for commits to end.
const PENDING_FOR_COMMITS: usize = 1024;

/// Room for requests of one disk that is reserved beforehand; more take memory, up to what all shards may ask for.
const REQUESTS_RESERVED: usize = 64;

/// Barriers that one home shard sets up at once; bounds the answers that shards owe.
pub(crate) const BARRIERS_MAX: u32 = 64;

/// Former leaves of one disk that are being closed at once.
const RETIRING_MAX: usize = 8;

/// The ticket of a compaction step; no key of a request is this.
const RELOCATION: Ticket = Ticket(u64::MAX);

/// A request, with who wants it.
#[derive(Clone, Copy)]
struct Pending {
    asker: Asker,
    request: HomeRequest,
}

/// What the engines of this shard have in hand.
pub(crate) struct Home {
    me: ShardId,
    shards: u16,
    pending: Slab<Pending>,
    barriers: u32,
    /// Who has ranges to himself.
    pub(super) ranges: Arbiter,
    /// What is being told to all shards.
    pub(super) changes: Changes,
}

/// A flush that runs. Its disk may get another form meanwhile.
struct Flush {
    /// What it makes durable of a leaf's metadata, and the driver of that leaf.
    mark: Option<(u16, FlushMark)>,
    /// Syncs that have not ended.
    syncs: u32,
    failed: Option<Errno>,
}

/// A barrier that is set up on all shards.
struct Barrier {
    driver: u16,
    io: IoId,
    /// Shards that have not answered.
    shards: u16,
}

/// A leaf that is being closed beside the present one.
struct Retiring {
    driver: Driver,
    reply: Option<Reply<Result<(), DetachError>>>,
}

/// Told when a write session is open.
type SessionReply = Reply<Result<Option<[u8; 16]>, DetachError>>;

/// What the home shard keeps for a disk.
pub(crate) struct HomeDisk {
    slot: u32,
    driver: Driver,
    drivers_made: u16,
    retiring: Vec<Retiring>,
    loads: Loads,
    flush_running: Option<Flush>,
    /// Keeps the files open that it syncs.
    flush_disks: Vec<Arc<Disk>>,
    /// Who waits for the flush that runs.
    flush_askers: Vec<Asker>,
    /// Who waits for the flush after that.
    flush_next: Vec<Asker>,
    barrier: Option<Barrier>,
    /// Requests to try again when the engine has news.
    retries: Vec<Pending>,
    retries_spare: Vec<Pending>,
    /// A flush or a page could not be started for want of memory or ring slots.
    stalled: bool,
    sessions: Vec<SessionReply>,
    relocation: Option<Reply<Result<bool, DetachError>>>,
    closing_engine: Option<Reply<Result<(), DetachError>>>,
}

impl Home {
    pub(crate) fn new(me: ShardId, shards: u16) -> Self {
        let (ranges, changes) = (Arbiter::new(shards), Changes::new());
        Self { me, shards, pending: Slab::new(PENDING_MAX), barriers: 0, ranges, changes }
    }
}

impl HomeDisk {
    /// The home part of a disk; `None` when nothing of it can ever be asked for.
    pub(crate) fn new(slot: u32, disk: Arc<Disk>, engine: Option<Box<dyn Engine>>) -> Option<Self> {
        let fd = disk.file()?.fd();
        Some(Self {
            slot,
            driver: Driver::new(slot, 0, disk, fd, engine),
            drivers_made: 0,
            retiring: Vec::new(),
            loads: Loads::new(slot),
            flush_running: None,
            flush_disks: Vec::with_capacity(1 + RETIRING_MAX),
            flush_askers: Vec::with_capacity(REQUESTS_RESERVED),
            flush_next: Vec::with_capacity(REQUESTS_RESERVED),
            barrier: None,
            retries: Vec::with_capacity(REQUESTS_RESERVED),
            retries_spare: Vec::with_capacity(REQUESTS_RESERVED),
            stalled: false,
            sessions: Vec::new(),
            relocation: None,
            closing_engine: None,
        })
    }

    fn disk(&self) -> &Disk {
        self.driver.disk()
    }

    /// A request has arrived.
    pub(crate) fn request<R: Ring>(
        &mut self,
        home: &mut Home,
        io: &mut Io<R>,
        mail: &mut Mail<R::Waker>,
        asker: Asker,
        request: HomeRequest,
    ) {
        match request {
            HomeRequest::Flush if self.disk().read_only() => answer(mail, asker, Ok(Done::Ok)),
            HomeRequest::Flush => {
                self.flush_next.push(asker);
                self.start_flush(io, mail);
            }
            HomeRequest::Load(fault) if fault.level > 0 || self.driver.engine().is_none() => {
                self.loads.wanted(self.driver.disk(), fault, asker);
                self.loads.start(self.driver.disk(), io, mail);
            }
            _ => self.ask_engine(home, mail, Pending { asker, request }),
        }
        self.pump(home, io, mail);
    }

    /// Hand a request to the engine. It is answered at once, or with an event of the engine, or tried again at the next
    /// one.
    fn ask_engine<W: Wake>(&mut self, home: &mut Home, mail: &mut Mail<W>, pending: Pending) {
        if self.disk().health() == Health::Poisoned {
            return answer(mail, pending.asker, Err(MediumError::Poisoned));
        }
        let payload = match pending.request {
            HomeRequest::WriteAtomic { number, .. } => self.disk().payloads().of_slot(number),
            _ => None,
        };
        let Some(engine) = self.driver.engine() else {
            return answer(mail, pending.asker, Err(MediumError::Offline));
        };
        let is_commit = matches!(pending.request, HomeRequest::Commit { .. });
        if !is_commit && home.pending.len() + PENDING_FOR_COMMITS > PENDING_MAX {
            return self.retries.push(pending);
        }
        let Ok(key) = home.pending.insert(pending) else { return self.retries.push(pending) };
        let ticket = Ticket(key.to_bits());
        let asked = match pending.request {
            HomeRequest::Prepare { offset_bytes, len_bytes } => engine.prepare(offset_bytes, len_bytes, ticket),
            HomeRequest::Commit { offset_bytes, len_bytes, epoch } => {
                engine.commit(offset_bytes, len_bytes, epoch, ticket)
            }
            HomeRequest::Unmap { offset_bytes, len_bytes } => engine.unmap(offset_bytes, len_bytes, ticket),
            HomeRequest::WriteAtomic { offset_bytes, len_bytes, .. } => {
                let (payload, at) = payload.expect("its data was put there before");
                engine.write_atomic(offset_bytes, len_bytes, payload, at, ticket)
            }
            HomeRequest::Load(fault) => engine.load(fault.fault, ticket),
            HomeRequest::Flush | HomeRequest::HoldRange { .. } | HomeRequest::Set(_) => {
                unreachable!("the engine has no part in it")
            }
        };
        if asked == Ok(Asked::Queued) {
            return;
        }
        home.pending.remove(key);
        match asked {
            Err(EngineError::Busy) => self.retries.push(pending),
            Err(error) => answer(mail, pending.asker, Err(medium_error(error))),
            Ok(_) => answer(mail, pending.asker, Ok(Done::Ok)),
        }
    }

    /// Serve the engines: start their operations, hear their news.
    pub(crate) fn pump<R: Ring>(&mut self, home: &mut Home, io: &mut Io<R>, mail: &mut Mail<R::Waker>) {
        if self.closing_engine.is_some() {
            self.driver.close(io, true);
        }
        loop {
            start_operations(&mut self.driver, &mut self.barrier, home, io, mail);
            let Some(event) = self.driver.engine().and_then(|engine| engine.poll_event()) else { break };
            match event {
                Event::WriteSession(result) => {
                    let guid = self.driver.engine().and_then(|engine| engine.data_write_guid());
                    for reply in self.sessions.drain(..) {
                        reply(result.map(|()| guid).map_err(|error| DetachError(error.to_string())));
                    }
                }
                Event::Done { ticket: RELOCATION, result } => {
                    if let Some(reply) = self.relocation.take() {
                        reply(result.map(|_| true).map_err(|error| DetachError(error.to_string())));
                    }
                }
                Event::Done { ticket, result } => {
                    if let Some(done) = home.pending.remove(Key::from_bits(ticket.0)) {
                        answer(mail, done.asker, result.map_err(medium_error));
                    }
                }
                Event::Closed(result) => self.driver.has_closed(result),
            }
            self.retry(home, mail);
        }
        self.pump_retiring(home, io, mail);
        self.finish_closing_engine();
    }

    /// The engine has news: try everything again that waits for it.
    fn retry<W: Wake>(&mut self, home: &mut Home, mail: &mut Mail<W>) {
        if self.retries.is_empty() {
            return;
        }
        let mut waiting = std::mem::replace(&mut self.retries, std::mem::take(&mut self.retries_spare));
        for pending in waiting.drain(..) {
            self.ask_engine(home, mail, pending);
        }
        self.retries_spare = waiting;
    }

    /// The same for former leaves.
    fn pump_retiring<R: Ring>(&mut self, home: &mut Home, io: &mut Io<R>, mail: &mut Mail<R::Waker>) {
        for retiring in &mut self.retiring {
            let driver = &mut retiring.driver;
            driver.close(io, true);
            loop {
                start_operations(driver, &mut self.barrier, home, io, mail);
                match driver.engine().and_then(|engine| engine.poll_event()) {
                    Some(Event::Closed(result)) => driver.has_closed(result),
                    Some(_) => {}
                    None => break,
                }
            }
        }
        if self.flush_running.is_some() || self.barrier.is_some() {
            // Their files are still in use.
            return;
        }
        let disk = Arc::clone(self.driver.disk());
        self.retiring.retain_mut(|retiring| {
            let Some(result) = retiring.driver.closed() else { return true };
            if result.is_err() {
                // What it held is part of the disk.
                disk.poison();
            }
            if let Some(reply) = retiring.reply.take() {
                reply(result.map_err(|error| DetachError(error.to_string())));
            }
            false
        });
    }

    /// An operation of an engine has completed.
    pub(crate) fn engine_completed<R: Ring>(
        &mut self,
        home: &mut Home,
        io: &mut Io<R>,
        mail: &mut Mail<R::Waker>,
        (number, id): (u16, u32),
        completion: Completion,
    ) {
        let id = IoId(id);
        let driver = self.driver_of(number).expect("a driver outlives its operations");
        if driver.is_last_sync(id) {
            driver.last_sync_completed(completion.result);
        } else {
            driver.completed(io, id, completion);
        }
        self.pump(home, io, mail);
    }

    fn driver_of(&mut self, number: u16) -> Option<&mut Driver> {
        let retiring = self.retiring.iter_mut().map(|retiring| &mut retiring.driver);
        std::iter::once(&mut self.driver).chain(retiring).find(|driver| driver.number() == number)
    }

    /// A page that was being read is here.
    pub(crate) fn load_completed<R: Ring>(
        &mut self,
        io: &mut Io<R>,
        mail: &mut Mail<R::Waker>,
        place: u32,
        completion: Completion,
    ) {
        self.loads.completed(self.driver.disk(), io, mail, place as usize, completion);
    }

    /// A shard has no plan left of those that a barrier waits for.
    pub(crate) fn barrier_passed<R: Ring>(&mut self, home: &mut Home, io: &mut Io<R>, mail: &mut Mail<R::Waker>) {
        let Some(barrier) = self.barrier.as_mut() else { return };
        barrier.shards -= 1;
        if barrier.shards > 0 {
            return;
        }
        let (number, id) = (barrier.driver, barrier.io);
        self.barrier = None;
        home.barriers -= 1;
        if let Some(driver) = self.driver_of(number) {
            driver.barrier_ended(id);
        }
        self.pump(home, io, mail);
    }

    // ---- flushes -----------------------------------------------------------------------------------------------

    /// Run the flush that is wanted, unless one runs.
    fn start_flush<R: Ring>(&mut self, io: &mut Io<R>, mail: &mut Mail<R::Waker>) {
        if self.flush_running.is_some() || self.flush_next.is_empty() {
            return;
        }
        if self.disk().health() == Health::Poisoned {
            for asker in self.flush_next.drain(..) {
                answer(mail, asker, Err(MediumError::Poisoned));
            }
            return;
        }
        let number = self.driver.number();
        let mark = self.driver.engine().map(|engine| (number, engine.flush_started()));
        let mut syncs = 0;
        for driver in std::iter::once(&self.driver).chain(self.retiring.iter().map(|retiring| &retiring.driver)) {
            if io.submit(Mark::Flush(self.slot), Op::Sync { file: driver.fd() }).is_err() {
                break;
            }
            self.flush_disks.push(Arc::clone(driver.disk()));
            syncs += 1;
        }
        if syncs == 0 {
            self.stalled = true;
            return;
        }
        let all = syncs as usize == 1 + self.retiring.len();
        // A flush that could not be started whole answers nobody.
        self.flush_running = Some(Flush { mark: mark.filter(|_| all), syncs, failed: None });
        if all {
            std::mem::swap(&mut self.flush_askers, &mut self.flush_next);
        } else {
            self.stalled = true;
        }
    }

    /// One file's part of the flush has completed.
    pub(crate) fn flush_completed<R: Ring>(
        &mut self,
        home: &mut Home,
        io: &mut Io<R>,
        mail: &mut Mail<R::Waker>,
        result: Result<u32, Errno>,
    ) {
        let Some(flush) = self.flush_running.as_mut() else { unreachable!("a flush outlives its syncs") };
        flush.syncs -= 1;
        flush.failed = flush.failed.or(result.err());
        if flush.syncs > 0 {
            return;
        }
        let (mark, result) = (flush.mark, flush.failed.map_or(Ok(()), Err));
        self.flush_running = None;
        self.flush_disks.clear();
        if let Some((number, mark)) = mark
            && let Some(engine) = self.driver_of(number).and_then(|driver| driver.engine())
        {
            engine.flush_done(mark, result.map_err(failure));
        }
        if let Err(errno) = result {
            self.disk().trouble().note(Doing::Flushing, errno.0);
            // A failed fsync may have dropped what it could not write: nothing after it can be believed.
            self.disk().poison();
        }
        for asker in self.flush_askers.drain(..) {
            answer(mail, asker, result.map(|()| Done::Ok).map_err(|_| MediumError::FlushFailed));
        }
        self.start_flush(io, mail);
        self.pump(home, io, mail);
    }

    /// Try again what memory, the ring or a full mailbox refused.
    pub(crate) fn retry_stalled<R: Ring>(&mut self, home: &mut Home, io: &mut Io<R>, mail: &mut Mail<R::Waker>) {
        if self.stalled() {
            self.stalled = false;
            self.start_flush(io, mail);
            self.loads.start(self.driver.disk(), io, mail);
            self.pump(home, io, mail);
        }
    }

    /// Whether something has been refused.
    pub(crate) fn stalled(&self) -> bool {
        let retiring = self.retiring.iter().any(|retiring| retiring.driver.stalled());
        self.stalled || self.driver.stalled() || self.loads.stalled() || retiring
    }

    // ---- what the control plane asks -----------------------------------------------------------------------------

    /// Open the write session.
    pub(crate) fn begin_session(&mut self, reply: SessionReply) {
        match self.driver.engine() {
            None => reply(Ok(None)),
            Some(engine) if engine.map().write_session_open() => reply(Ok(engine.data_write_guid())),
            Some(engine) => match engine.begin_write_session() {
                Ok(()) => self.sessions.push(reply),
                Err(error) => reply(Err(DetachError(error.to_string()))),
            },
        }
    }

    /// One step of compaction.
    pub(crate) fn relocate(&mut self, reply: Reply<Result<bool, DetachError>>) {
        if self.relocation.is_some() {
            return reply(Err(DetachError("a compaction of this disk is running already".into())));
        }
        match self.driver.engine().map(|engine| engine.relocate_some(RELOCATION)) {
            None | Some(Ok(Asked::Already)) => reply(Ok(false)),
            Some(Ok(Asked::Queued)) => self.relocation = Some(reply),
            Some(Err(error)) => reply(Err(DetachError(error.to_string()))),
        }
    }

    /// What the engine says about itself.
    pub(crate) fn report(&mut self) -> EngineReport {
        let retiring = self.retiring.len() as u32;
        let engine = self.driver.engine();
        let data_write_guid = engine.as_ref().and_then(|engine| engine.data_write_guid());
        EngineReport { space: engine.map(|engine| engine.space()), data_write_guid, retiring }
    }

    /// Close the engine of a paused disk, and keep its files open.
    pub(crate) fn close_engine<R: Ring>(&mut self, io: &mut Io<R>, reply: Reply<Result<(), DetachError>>) {
        if self.closing_engine.is_some() {
            return reply(Err(DetachError("the disk is being closed already".into())));
        }
        self.closing_engine = Some(reply);
        self.driver.close(io, true);
    }

    fn finish_closing_engine(&mut self) {
        if self.closing_engine.is_some()
            && let Some(result) = self.driver.closed()
            && let Some(reply) = self.closing_engine.take()
        {
            self.driver.drop_engine();
            reply(result.map_err(|error| DetachError(error.to_string())));
        }
    }

    /// Whether another form of the disk could be put in its place now.
    pub(crate) fn can_swap(&mut self, engine: bool, retire: bool) -> Result<(), DetachError> {
        let refuse = |why: &str| Err(DetachError(why.into()));
        if retire && self.retiring.len() >= RETIRING_MAX {
            return refuse("too many former files of this disk are still being closed; try again in a moment");
        }
        if self.closing_engine.is_some() {
            return refuse("the disk's engine is still closing");
        }
        if engine && !retire && self.driver.engine().is_some() {
            return refuse("the disk's engine must be closed first");
        }
        Ok(())
    }

    /// Put another form of the disk in its place. With `retire` the present engine is closed beside the new one;
    /// without an engine and without `retire` the present one stays.
    pub(crate) fn swap<R: Ring>(
        &mut self,
        io: &mut Io<R>,
        disk: Arc<Disk>,
        engine: Option<Box<dyn Engine>>,
        retire: Option<Option<Reply<Result<(), DetachError>>>>,
    ) {
        let Some(fd) = disk.file().map(|file| file.fd()) else { return };
        if engine.is_none() && retire.is_none() {
            return self.driver.set_disk(disk, fd);
        }
        self.drivers_made = (self.drivers_made + 1) % DRIVER_NUMBERS;
        let driver = Driver::new(self.slot, self.drivers_made, disk, fd, engine);
        let former = std::mem::replace(&mut self.driver, driver);
        if let Some(reply) = retire {
            let mut retiring = Retiring { driver: former, reply };
            retiring.driver.close(io, true);
            self.retiring.push(retiring);
        }
    }

    // ---- the end -------------------------------------------------------------------------------------------------

    /// Whether closing has begun.
    pub(crate) fn closing(&self) -> bool {
        self.driver.closing()
    }

    /// Begin to close: no task uses the disk any more.
    pub(crate) fn close<R: Ring>(&mut self, home: &mut Home, io: &mut Io<R>, mail: &mut Mail<R::Waker>) {
        self.driver.close(io, false);
        self.pump(home, io, mail);
    }

    /// How closing ended, once it has and nothing is in flight.
    pub(crate) fn closed(&self) -> Option<Result<(), EngineError>> {
        let idle = self.flush_running.is_none() && self.loads.is_idle() && self.retiring.is_empty();
        self.driver.closed().filter(|_| idle && self.barrier.is_none())
    }
}

/// Start everything that an engine wants and that can be started.
fn start_operations<R: Ring>(
    driver: &mut Driver,
    barrier: &mut Option<Barrier>,
    home: &mut Home,
    io: &mut Io<R>,
    mail: &mut Mail<R::Waker>,
) {
    while let Started::Barrier(id) = driver.start_operations(io) {
        if !begin_barrier(barrier, driver, home, mail, id) {
            return driver.barrier_refused(id);
        }
    }
}

/// Ask every shard to say when the plans made so far have been carried out. False: not now.
fn begin_barrier<W: Wake>(
    barrier: &mut Option<Barrier>,
    driver: &Driver,
    home: &mut Home,
    mail: &mut Mail<W>,
    io: IoId,
) -> bool {
    if barrier.is_some() || home.barriers >= BARRIERS_MAX || !mail.has_room() {
        return false;
    }
    home.barriers += 1;
    *barrier = Some(Barrier { driver: driver.number(), io, shards: home.shards });
    for shard in (0..home.shards).map(ShardId) {
        mail.post_owed(shard, PeerMessage::Barrier { disk: driver.disk().id(), home: home.me });
    }
    true
}

pub(super) fn answer<W: Wake>(mail: &mut Mail<W>, asker: Asker, result: Result<Done, MediumError>) {
    mail.post_owed(asker.shard, PeerMessage::HomeDone { asker, result });
}

fn medium_error(error: EngineError) -> MediumError {
    match error {
        EngineError::Busy => MediumError::Busy,
        EngineError::OutOfSpace => MediumError::OutOfSpace,
        EngineError::Poisoned => MediumError::Poisoned,
        EngineError::Closed => MediumError::Removed,
    }
}
