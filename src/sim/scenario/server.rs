//! A server of several shards on a simulated world, with disks of every kind.
//!
//! Disk files are created and opened by the control plane's own code, as real files in a temporary directory; then
//! their contents move into the world, and the shards' operations go there. After a crash what the world has kept is
//! written back to the real files, and they are opened again, log replay and all.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use super::images;
use crate::iscsi::chap::{Entropy, EntropyFailed};
use crate::iscsi::directory::{AccessRule, Authentication, Directory, Portal, Target};
use crate::iscsi::names::IscsiName;
use crate::medium::{self, Cache, Disk, DiskFormat, DiskKind, LayerFile, OpenSpec, Parents};
use crate::mem::{Arena, ArenaConfig};
use crate::observe::ShardStats;
use crate::ring::{Fd, Nanos, Ring, Wait};
use crate::scsi::reservations::Reservations;
use crate::scsi::reservations::place::{self, Owner};
use crate::shard::{
    Configuration, DiskSettings, Kept, LunMap, Mapping, PEER_MESSAGES_MAX, Parts, ReservationStore, Senders, Shard,
    ToShard, mailbox_with_room,
};
use crate::sim::{FileOptions, Initiator, Random, Runnable, SimRing, SimWaker, World};
use crate::units::{DiskId, Lun, PortalId, ShardId, TargetId};

/// A disk to serve.
#[derive(Clone, Copy, Debug)]
pub struct DiskPlan {
    /// What stores it.
    pub format: DiskFormat,
    /// How a file gets its space.
    pub kind: DiskKind,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// 512 or 4096.
    pub sector_size_bytes: u32,
}

/// A server to simulate.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// How many shards.
    pub shards: u16,
    /// The disks; LUN n is the n-th.
    pub disks: Vec<DiskPlan>,
    /// Their write caches have been turned off.
    pub uncached: bool,
    /// Memory of each shard's buffers.
    pub memory_bytes: usize,
    /// Operations that each shard's ring takes.
    pub ring_slots: usize,
    /// Messages of other shards that may wait for one shard; `None`: as many as in a real server.
    pub peer_messages_max: Option<usize>,
}

/// One shard, taking turns.
struct Turns(Shard<SimRing>);

impl Runnable for Turns {
    fn turn(&mut self, _wait: Wait) {
        let wait = self.0.turn();
        self.0.enter(wait).expect("a shard takes turns while its process lives");
    }
}

/// Randomness for challenges, from the world's seed.
struct SeededEntropy(Random);

impl Entropy for SeededEntropy {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), EntropyFailed> {
        self.0.fill(bytes);
        Ok(())
    }
}

/// The running process: gone after a crash.
pub(super) struct Process {
    shards: Vec<Turns>,
    senders: Senders<SimWaker>,
    /// By index.
    pub(super) disks: Vec<Arc<Disk>>,
}

/// A server in a world. Its real files live as long as it does.
pub struct Server {
    pub(super) world: World,
    pub(super) config: ServerConfig,
    pub(super) directory: PathBuf,
    /// The file of each disk's leaf, in the directory.
    pub(super) leaves: Vec<String>,
    /// Their formats.
    pub(super) formats: Vec<DiskFormat>,
    pub(super) parents: Arc<Parents>,
    /// Files that the world holds, by their names there.
    imported: BTreeSet<String>,
    /// Layers whose operations go to the world.
    adopted: Vec<Weak<LayerFile>>,
    /// Former leaves, and who is told when they have been closed.
    pub(super) retiring: Vec<(Arc<Pending>, Arc<LayerFile>)>,
    /// Files that have been leaves of the running process.
    pub(super) written: BTreeSet<PathBuf>,
    pub(super) starts: u32,
    /// What was stored of the disks' reservations when the last process ended.
    reservations: Vec<u8>,
    pub(super) process: Option<Process>,
    /// Of all shards that there have been.
    stats: Vec<Arc<ShardStats>>,
    pub(super) random: Random,
    /// When all commands of a disk were told to wait, last.
    pub(super) held_since: Nanos,
    pub(super) held_for: Nanos,
}

const TARGET: TargetId = TargetId(1);
const PORTAL: PortalId = PortalId(1);

/// Servers made by this process so far: names their directories.
static SERVERS: AtomicU64 = AtomicU64::new(0);

impl Server {
    /// Create the disks and start.
    pub fn start(world: &World, config: ServerConfig) -> Result<Server, String> {
        let number = SERVERS.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("lunaring-sim-{}-{number}", std::process::id()));
        fs::create_dir_all(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
        let random = world.random();
        let leaves: Vec<String> = (0..config.disks.len()).map(|index| format!("disk{index}")).collect();
        for (name, plan) in leaves.iter().zip(&config.disks).filter(|(_, plan)| plan.format.has_file()) {
            images::create(&directory, name, *plan)?;
        }
        let mut server = Server {
            world: world.clone(),
            formats: config.disks.iter().map(|plan| plan.format).collect(),
            config,
            directory,
            leaves,
            parents: Parents::new(),
            imported: BTreeSet::new(),
            adopted: Vec::new(),
            retiring: Vec::new(),
            written: BTreeSet::new(),
            starts: 0,
            reservations: Vec::new(),
            process: None,
            stats: Vec::new(),
            random,
            held_since: Nanos(0),
            held_for: Nanos(0),
        };
        server.start_process()?;
        Ok(server)
    }

    /// Where it listens.
    pub fn portal() -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], 3260))
    }

    /// The name of its target.
    pub fn target_name() -> &'static str {
        "iqn.2026-11.io.lunaring:simulated"
    }

    /// The name of a disk's file in the world, if it has one.
    pub fn file_name(&self, index: usize) -> Option<String> {
        let has_file = self.config.disks[index].format.has_file();
        has_file.then(|| images::name_in_world(&self.path(index), self.starts))
    }

    /// The shards, to be given turns.
    pub fn shards(&mut self) -> impl Iterator<Item = &mut dyn Runnable> {
        self.process.iter_mut().flat_map(|process| &mut process.shards).map(|shard| shard as &mut dyn Runnable)
    }

    /// Go down in good order, disks closed; what is left on the disks' files is checked. Runs the world, `clients`
    /// included.
    pub fn stop(&mut self, clients: &mut [Initiator]) -> Result<(), String> {
        self.settle(clients)?;
        let quiet =
            self.tell_all(|reply| ToShard::Quiesce { patience_ms: 5000, reply: Box::new(move |()| reply(Ok(()))) });
        self.await_replies("quiesce", quiet, clients)?;
        let disks: Vec<Arc<Disk>> = self.process.iter().flat_map(|process| process.disks.clone()).collect();
        for disk in &disks {
            let (id, home) = (disk.id(), disk.home());
            let count = self.config.shards;
            let others = (0..count).map(ShardId).filter(|&shard| shard != home);
            let mut replies = Vec::new();
            for shard in others.chain([home]) {
                let detach =
                    |reply: Answer| ToShard::Detach { disk: id, reply: Box::new(move |r| reply(r.map_err(|e| e.0))) };
                replies.extend(self.tell(shard, detach));
            }
            self.await_replies("detach", replies, &mut [])?;
        }
        drop(disks);
        self.process = None;
        self.write_back()?;
        let mut vhdx = (0..self.leaves.len()).filter(|&index| self.formats[index] == DiskFormat::Vhdx);
        vhdx.try_for_each(|index| images::check_closed(&self.path(index)))
    }

    /// The process dies where it is, by the power or by a signal, and a new one starts with what is left.
    pub fn crash_and_restart(&mut self, is_power_cut: bool) -> Result<(), String> {
        if is_power_cut {
            self.world.power_cut(self.random.word());
        } else {
            self.world.process_kill();
        }
        self.process = None;
        self.retiring.clear();
        self.adopted.clear();
        self.write_back()?;
        self.start_process()
    }

    /// The file of a disk's leaf.
    pub(super) fn path(&self, index: usize) -> PathBuf {
        self.directory.join(&self.leaves[index])
    }

    fn start_process(&mut self) -> Result<(), String> {
        self.starts += 1;
        let (shards, senders) = self.make_shards();
        let ledger = self.open_reservations();
        self.process = Some(Process { shards, senders, disks: Vec::new() });
        let mut luns = LunMap::new();
        for index in 0..self.config.disks.len() {
            let id = self.attach(index)?;
            self.remember(index, ledger);
            luns.insert(Lun(index as u16), Mapping { disk: id, read_only: false });
        }
        let configuration = Arc::new(configuration(luns, self.config.uncached)?);
        let listeners: Vec<Fd> = (0..self.config.shards).map(|_| self.world.listen(Server::portal())).collect();
        let process = self.process.as_mut().expect("it has just been made");
        for (Turns(shard), listener) in process.shards.iter_mut().zip(listeners) {
            shard.configure(Arc::clone(&configuration));
            shard.listen(PORTAL, 1, listener, None);
        }
        Ok(())
    }

    fn make_shards(&mut self) -> (Vec<Turns>, Senders<SimWaker>) {
        let count = self.config.shards;
        let rings: Vec<SimRing> = (0..count).map(|_| self.world.ring(self.config.ring_slots)).collect();
        let peer_messages_max = self.config.peer_messages_max.unwrap_or(PEER_MESSAGES_MAX);
        let (senders, mailboxes): (Vec<_>, Vec<_>) =
            rings.iter().map(|ring| mailbox_with_room(ring.waker(), peer_messages_max)).unzip();
        let senders = Senders(senders);
        let mut shards = Vec::new();
        for ((ring, mailbox), index) in rings.into_iter().zip(mailboxes).zip(0..) {
            let config = ArenaConfig { bytes_max: self.config.memory_bytes, hugepages: false };
            let arena = Arena::new(config).expect("a simulation has address space");
            let zero_copy = self.random.below(2) == 0;
            let stats = Arc::new(ShardStats::new());
            self.stats.push(Arc::clone(&stats));
            let parts =
                Parts { id: ShardId(index), shards: count, senders: senders.clone(), mailbox, stats, zero_copy };
            let mut shard = Shard::new(ring, arena, parts);
            shard.set_entropy(Box::new(SeededEntropy(self.world.random())));
            shards.push(Turns(shard));
        }
        (shards, senders)
    }

    /// Bytes that all its shards have copied, and of those, bytes that files shared.
    pub(super) fn copied_bytes(&self) -> (u64, u64) {
        let sum = |of: fn(&ShardStats) -> u64| self.stats.iter().map(|stats| of(stats)).sum();
        (sum(|stats| stats.copied_bytes.value()), sum(|stats| stats.copy_shared_bytes.value()))
    }

    /// The file of reservations, with what is left of it.
    fn open_reservations(&self) -> Fd {
        let name = self.reservations_name();
        self.world.create_file(&name, self.reservations.len() as u64);
        self.world.file_write(&name, 0, &self.reservations);
        self.world.file_sync(&name);
        self.world.open(&name, FileOptions { alignment_bytes: 1, read_only: false })
    }

    fn reservations_name(&self) -> String {
        format!("reservations.{}", self.starts)
    }

    /// Give every shard what has outlasted of a disk's reservations, as the control plane does.
    fn remember(&mut self, index: usize, file: Fd) {
        let (start, copy_bytes) = (index * place::PLACE_BYTES as usize, place::COPY_BYTES);
        let copy = |at: usize| self.reservations.get(at..).unwrap_or_default();
        let copies = [copy(start), copy(start + copy_bytes)].map(|copy| &copy[..copy.len().min(copy_bytes)]);
        let kept = place::kept(copies);
        let state = kept.as_ref().filter(|kept| !kept.state.is_empty());
        let reservations = state.map_or_else(Reservations::new, |kept| {
            Reservations::from_bytes(&kept.state).expect("what was stored can be read")
        });
        let reservations = Arc::new(reservations);
        let process = self.process.as_mut().expect("disks are attached to a process");
        let disk = &process.disks[index];
        for (Turns(shard), number) in process.shards.iter_mut().zip(0..) {
            let store = (ShardId(number) == disk.home()).then(|| ReservationStore {
                file,
                owned: None,
                offset_bytes: start as u64,
                owner: Owner { uuid: *disk.uuid().as_bytes(), name: disk.name().to_owned() },
                sequence: kept.as_ref().map_or(0, |kept| kept.sequence),
                asks_for_own: false,
            });
            shard.remember(disk.id(), Arc::clone(&reservations), store);
        }
    }

    /// Open a disk and make every shard know it.
    fn attach(&mut self, index: usize) -> Result<DiskId, String> {
        let id = DiskId(self.starts * 100 + index as u32);
        let home = ShardId(self.random.below(u64::from(self.config.shards)) as u16);
        let spec = self.open_spec(index, id, home);
        let opened = medium::open(spec).map_err(|error| format!("disk {index}: {error}"))?;
        self.take_into_world(&opened.disk)?;
        let mut engine = opened.engine;
        let process = self.process.as_mut().expect("disks are attached to a process");
        for (Turns(shard), number) in process.shards.iter_mut().zip(0..) {
            let engine = if ShardId(number) == home { engine.take() } else { None };
            shard.attach(Arc::clone(&opened.disk), engine);
        }
        process.disks.push(opened.disk);
        Ok(id)
    }

    /// How a disk is opened to be served.
    pub(super) fn open_spec(&mut self, index: usize, id: DiskId, home: ShardId) -> OpenSpec {
        let path = self.path(index);
        let plan = self.config.disks[index];
        let format = if plan.format.has_file() { self.formats[index] } else { plan.format };
        OpenSpec {
            id,
            name: format!("disk{index}"),
            uuid: uuid::Uuid::from_u128(index as u128 + 1),
            parents: Arc::clone(&self.parents),
            cache: if self.random.below(2) == 0 { Cache::Direct } else { Cache::Buffered },
            home,
            shards: self.config.shards,
            ..images::open_spec(&path, DiskPlan { format, ..plan })
        }
    }

    /// Operations on a disk's layers go to the world from now on. Files that it does not hold yet are copied there.
    pub(super) fn take_into_world(&mut self, disk: &Disk) -> Result<(), String> {
        for (number, layer) in disk.layers().iter().enumerate() {
            let name = images::name_in_world(layer.path(), self.starts);
            if self.imported.insert(name.clone()) {
                images::import(&self.world, layer.path(), &name)?;
            }
            if number == 0 {
                self.written.insert(layer.path().to_owned());
            }
            let is_known = |known: &Weak<LayerFile>| known.upgrade().is_some_and(|known| Arc::ptr_eq(&known, layer));
            if !self.adopted.iter().any(is_known) {
                let read_only = !self.written.contains(layer.path());
                images::adopt(&self.world, layer, &name, read_only);
                self.adopted.push(Arc::downgrade(layer));
            }
        }
        Ok(())
    }

    /// What the world holds of the disks goes to the real files.
    fn write_back(&mut self) -> Result<(), String> {
        let name = self.reservations_name();
        self.reservations = vec![0; self.world.file_len(&name) as usize];
        self.world.file_read(&name, 0, &mut self.reservations);
        for path in std::mem::take(&mut self.written) {
            images::export(&self.world, &images::name_in_world(&path, self.starts), &path)?;
        }
        self.imported.clear();
        Ok(())
    }

    // ---- control messages --------------------------------------------------------------------------------------

    pub(super) fn tell_all(&mut self, message: impl Fn(Answer) -> ToShard) -> Vec<Arc<Pending>> {
        (0..self.config.shards).filter_map(|shard| self.tell(ShardId(shard), &message)).collect()
    }

    pub(super) fn tell(&mut self, shard: ShardId, message: impl FnOnce(Answer) -> ToShard) -> Option<Arc<Pending>> {
        let pending = Arc::new(Pending::default());
        let answered = Arc::clone(&pending);
        let reply: Answer = Box::new(move |result| answered.answer(result));
        let sent = self.process.as_ref()?.senders.of(shard).send_control(message(reply));
        assert!(sent.is_ok(), "the mailbox of an idle shard has room");
        Some(pending)
    }

    pub(super) fn await_replies(
        &mut self,
        what: &str,
        replies: Vec<Arc<Pending>>,
        clients: &mut [Initiator],
    ) -> Result<(), String> {
        let world = self.world.clone();
        let mut waiter = Waiter(replies);
        let mut clients: Vec<Guest<'_>> = clients.iter_mut().map(Guest).collect();
        let mut runnables: Vec<&mut dyn Runnable> = self.shards().collect();
        runnables.push(&mut waiter);
        runnables.extend(clients.iter_mut().map(|client| client as &mut dyn Runnable));
        let outcome = world.run(&mut runnables, crate::sim::RunLimit::default());
        if outcome != crate::sim::Outcome::Satisfied {
            return Err(format!("{what}: {outcome:?}"));
        }
        let refusals = waiter.0.iter().filter_map(|pending| pending.0.get()?.as_ref().err());
        refusals.map(|why| Err(format!("{what}: {why}"))).next().unwrap_or(Ok(()))
    }
}

pub(super) type Answer = Box<dyn FnOnce(Result<(), String>) + Send>;

/// An answer that is awaited.
#[derive(Debug, Default)]
pub(super) struct Pending(OnceLock<Result<(), String>>);

impl Pending {
    pub(super) fn answer(&self, result: Result<(), String>) {
        let first = self.0.set(result).is_ok();
        assert!(first, "a reply is given once");
    }
}

/// Satisfied when all answers are here.
struct Waiter(Vec<Arc<Pending>>);

impl Runnable for Waiter {
    fn turn(&mut self, _wait: Wait) {}

    fn is_satisfied(&self) -> bool {
        self.0.iter().all(|pending| pending.0.get().is_some())
    }
}

/// A client that goes on meanwhile, but is not what is waited for.
struct Guest<'a>(&'a mut Initiator);

impl Runnable for Guest<'_> {
    fn turn(&mut self, wait: Wait) {
        self.0.turn(wait);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process = None;
        // What cannot be removed is the temporary directory's business.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// One target, open to all, with these LUNs.
fn configuration(luns: LunMap, uncached: bool) -> Result<Configuration, String> {
    let target = Target {
        id: TARGET,
        name: IscsiName::new(Server::target_name()).map_err(|error| error.to_string())?,
        alias: None,
        access: vec![AccessRule::Any],
        authentication: Authentication::None,
        portal_groups: Vec::new(),
        redirects: Vec::new(),
        error_recovery_level: 0,
        connections_max: 4,
    };
    let portal = Portal { id: PORTAL, listen: Server::portal(), portal_group_tag: 1, advertise: None };
    let directory =
        Directory::new(vec![target], vec![portal], Authentication::None).map_err(|error| error.to_string())?;
    let luns: HashMap<TargetId, LunMap> = BTreeMap::from([(TARGET, luns)]).into_iter().collect();
    let kept = Kept { write_cache: uncached.then_some(false), ..Kept::default() };
    let settings = DiskSettings { kept };
    let disks = luns.values().flat_map(LunMap::values).map(|mapping| (mapping.disk, settings)).collect();
    Ok(Configuration { directory: Arc::new(directory), luns, disks, ..Configuration::default() })
}
