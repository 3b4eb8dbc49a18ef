//! The scenarios.

use std::collections::HashMap;

use super::server::{DiskPlan, Server, ServerConfig};
use super::{Change, Report, Run, Scenario, fencing, sessions};
use crate::medium::{DiskFormat, DiskKind};
use crate::ring::{Fd, Nanos};
use crate::sim::{
    Chance, End, FileFaults, Initiator, InitiatorConfig, Keeping, LunPlan, NetworkFaults, OpKind, Outcome, Random,
    RunLimit, Runnable, SHARED_SECTORS, SHARERS_MAX, What, World, WorldConfig,
};

/// All scenarios.
pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "calm", about: "several sessions on every kind of disk; nothing goes wrong", run: calm },
    Scenario { name: "rough", about: "short counts, splits at any byte and delays on every connection", run: rough },
    Scenario { name: "lossy", about: "connections are reset by either side at any moment", run: lossy },
    Scenario { name: "bad-disks", about: "one disk's file fails with EIO, another's has no space", run: bad_disks },
    Scenario { name: "hung", about: "some operations of two disks' files take minutes", run: hung },
    Scenario { name: "narrow", about: "a shard with little memory and small socket buffers", run: narrow },
    Scenario { name: "pinched", about: "far less memory than the writes that come unasked would take", run: pinched },
    Scenario { name: "door", about: "more strangers than there is room for, and a ring that is full", run: door },
    Scenario { name: "aborts", about: "initiators abort tasks and task sets and reset logical units", run: aborts },
    Scenario { name: "shared", about: "initiators change the same blocks, with aborts and resets", run: shared },
    Scenario { name: "crowd", about: "many sessions that each do a little", run: crowd },
    Scenario {
        name: "flushes",
        about: "many sessions flush the same disks on a drive that takes long to empty its cache",
        run: flushes,
    },
    Scenario { name: "stopped", about: "the server stops in good order while sessions are busy", run: stopped },
    Scenario {
        name: "layers",
        about: "children over parents: partial blocks, unmaps, nothing goes wrong",
        run: layers,
    },
    Scenario { name: "changes", about: "pauses, snapshots, reopening and compaction under I/O", run: changes },
    Scenario { name: "changes-killed", about: "the same, and the process is killed in between", run: changes_killed },
    Scenario { name: "changes-power", about: "the same, and the power is cut in between", run: changes_power },
    Scenario { name: "pauses-late", about: "commands are at work for longer than a pause waits", run: pauses_late },
    Scenario {
        name: "snapshots-syncs",
        about: "snapshots of disks on a drive that takes long to empty its cache hold commands for a moment only",
        run: snapshots_syncs,
    },
    Scenario {
        name: "snapshots-power",
        about: "the power is cut while the former leaf of a snapshot, on a slow drive, is not closed yet",
        run: snapshots_power,
    },
    Scenario { name: "killed", about: "the process is killed and started again, several times", run: killed },
    Scenario { name: "fencing", about: "nodes that reserve and preempt a disk, and write", run: fencing::fencing },
    Scenario { name: "fencing-killed", about: "the same, and the process is killed", run: fencing::fencing_killed },
    Scenario { name: "fencing-power", about: "the same, and the power is cut", run: fencing::fencing_power },
    Scenario {
        name: "sessions",
        about: "random events of sessions and connections against a reference model",
        run: sessions::sessions,
    },
    Scenario { name: "copies", about: "copies within disks, whose file system shares some blocks", run: copies },
    Scenario {
        name: "copies-hung",
        about: "the same, and some operations of two files take minutes",
        run: copies_hung,
    },
    Scenario { name: "copies-changes", about: "the same, under pauses, snapshots and compaction", run: copies_changes },
    Scenario { name: "copies-power", about: "the same, and the power is cut in between", run: copies_power },
    Scenario { name: "power-cut", about: "the power is cut and comes back, several times", run: power_cut },
];

/// The scenario of this name.
pub fn find(name: &str) -> Option<&'static Scenario> {
    SCENARIOS.iter().find(|scenario| scenario.name == name)
}

const MIB: u64 = 1 << 20;

/// Where the shared sectors of each disk begin: behind the regions of all initiators.
const SHARED_FIRST: u64 = 6144;
const _: () = assert!(SHARED_FIRST + SHARED_SECTORS <= 4 * MIB / 512);

/// LUN numbers of the standard set of disks.
const RAW_LUN: usize = 2;
const VHDX_LUN: usize = 3;

/// Every kind of disk, small.
pub(super) fn disks() -> Vec<DiskPlan> {
    let plan = |format, kind, size_bytes, sector_size_bytes| DiskPlan { format, kind, size_bytes, sector_size_bytes };
    vec![
        plan(DiskFormat::Memory, DiskKind::Dynamic, 4 * MIB, 512),
        plan(DiskFormat::Null, DiskKind::Dynamic, 4 * MIB, 512),
        plan(DiskFormat::Raw, DiskKind::Dynamic, 4 * MIB, 512),
        plan(DiskFormat::Vhdx, DiskKind::Dynamic, 16 * MIB, 512),
        plan(DiskFormat::Vhdx, DiskKind::Dynamic, 16 * MIB, 4096),
        plan(DiskFormat::Vhdx, DiskKind::Fixed, 4 * MIB, 512),
        plan(DiskFormat::Vhdx, DiskKind::Differencing, 16 * MIB, 512),
    ]
}

fn server_config(random: &mut Random) -> ServerConfig {
    let shards = 1 + random.below(3) as u16;
    ServerConfig {
        shards,
        disks: disks(),
        uncached: false,
        memory_bytes: 64 << 20,
        ring_slots: 2048,
        peer_messages_max: None,
    }
}

/// A scenario's settings.
struct Setting {
    network: NetworkFaults,
    may_lose_connection: bool,
    resets: Chance,
    aborts: Chance,
    commands: u32,
    /// Initiators at most.
    initiators_max: u64,
    /// Sectors of each LUN that belong to one initiator: the regions of several lie in one VHDX block.
    region_sectors: u64,
    pipe_capacity_bytes: usize,
    transfer_bytes_max: usize,
    /// Initiators also change some blocks together.
    shares: bool,
    /// Initiators copy blocks.
    copies: bool,
    /// Write caches are off.
    uncached: bool,
    /// Only units that may fail abort commands.
    is_strict: bool,
    /// Events to remember at most.
    history_events_max: usize,
}

impl Default for Setting {
    fn default() -> Setting {
        Setting {
            network: NetworkFaults::default(),
            may_lose_connection: false,
            resets: Chance::NEVER,
            aborts: Chance::NEVER,
            commands: 120,
            initiators_max: 4,
            region_sectors: 768,
            pipe_capacity_bytes: 256 * 1024,
            transfer_bytes_max: 256 * 1024,
            shares: false,
            copies: false,
            uncached: false,
            is_strict: false,
            history_events_max: 0,
        }
    }
}

/// A world with its server and initiators.
struct Scene {
    world: World,
    server: Server,
    initiators: Vec<Initiator>,
    random: Random,
}

impl Scene {
    fn new(run: Run, setting: &Setting, change: impl FnOnce(&mut ServerConfig)) -> Result<Scene, String> {
        let config = WorldConfig {
            network_faults: setting.network.clone(),
            pipe_capacity_bytes: setting.pipe_capacity_bytes,
            history_events_max: setting.history_events_max,
            history_is_printed: run.is_printed,
            ..WorldConfig::default()
        };
        let world = World::with_config(run.seed, config);
        let mut random = world.random();
        let mut config = server_config(&mut random);
        change(&mut config);
        let plans = config.disks.clone();
        let server = Server::start(&world, config)?;
        let count = 1 + random.below(setting.initiators_max);
        let initiators = (0..count)
            .map(|number| {
                let config = initiator_config(number, setting, &plans, &mut random);
                Initiator::new(&world, config)
            })
            .collect();
        Ok(Scene { world, server, initiators, random })
    }

    /// Run until all initiators are done, or for this long.
    fn run(&mut self, time: Nanos) -> Result<Outcome, String> {
        let Scene { world, server, initiators, .. } = self;
        let mut runnables: Vec<&mut dyn Runnable> = server.shards().collect();
        runnables.extend(initiators.iter_mut().map(|initiator| initiator as &mut dyn Runnable));
        let outcome = world.run(&mut runnables, RunLimit { time, rounds: 20_000_000 });
        for initiator in &self.initiators {
            initiator.result()?;
        }
        Ok(outcome)
    }

    /// Let the server run for this long, by itself.
    fn run_for(&mut self, time: Nanos) {
        /// Never satisfied.
        struct Nobody;
        impl Runnable for Nobody {
            fn turn(&mut self, _wait: crate::ring::Wait) {}
            fn is_satisfied(&self) -> bool {
                false
            }
        }
        let mut nobody = Nobody;
        // Time stops there, and does not go on to the next thing that happens.
        self.world.alarm(time);
        let mut runnables: Vec<&mut dyn Runnable> = self.server.shards().collect();
        runnables.push(&mut nobody);
        self.world.run(&mut runnables, RunLimit { time, rounds: 20_000_000 });
    }

    /// Run to the end, stop the server, and report.
    fn finish(mut self) -> Result<Report, String> {
        let outcome = self.run(PATIENCE)?;
        if outcome != Outcome::Satisfied {
            let waiting: Vec<&Initiator> = self.initiators.iter().filter(|initiator| !initiator.is_done()).collect();
            return Err(format!("{outcome:?} with initiators unsatisfied: {waiting:?}"));
        }
        self.world.set_network_faults(NetworkFaults::default());
        self.server.stop(&mut [])?;
        self.report()
    }

    fn report(&self) -> Result<Report, String> {
        Ok(Report {
            time: self.world.elapsed(),
            events: self.world.history_count(),
            hash: self.world.history_hash(),
            initiators: self.initiators.iter().map(Initiator::result).collect::<Result<_, _>>()?,
            copied_bytes: self.server.copied_bytes(),
        })
    }
}

/// Virtual time after which a run that does not end is stuck.
const PATIENCE: Nanos = Nanos(600_000_000_000);

fn initiator_config(number: u64, setting: &Setting, plans: &[DiskPlan], random: &mut Random) -> InitiatorConfig {
    let lun = |(lun, plan): (usize, &DiskPlan)| LunPlan {
        lun: lun as u8,
        keeping: match plan.format {
            DiskFormat::Null => Keeping::Nothing,
            DiskFormat::Memory => Keeping::WhileServed,
            DiskFormat::Raw | DiskFormat::Vhdx | DiskFormat::Vhd => Keeping::Always,
        },
        first_sector: number * setting.region_sectors,
        sector_count: setting.region_sectors,
        may_fail: false,
        thin: matches!(plan.format, DiskFormat::Raw | DiskFormat::Vhdx | DiskFormat::Vhd | DiskFormat::Memory)
            && plan.kind != DiskKind::Fixed,
        uncached: setting.uncached,
        layered: plan.kind == DiskKind::Differencing,
        copies: setting.copies && !matches!(plan.format, DiskFormat::Null | DiskFormat::Memory),
        shared: (setting.shares && plan.kind != DiskKind::Differencing && plan.format != DiskFormat::Null)
            .then_some((SHARED_FIRST, number as usize)),
    };
    InitiatorConfig {
        portal: Server::portal(),
        initiator_name: format!("iqn.2026-11.io.lunaring.test:{number}"),
        target_name: Server::target_name().to_owned(),
        isid: [0x80, 0, 0, 0, 0, number as u8],
        luns: plans.iter().enumerate().map(lun).collect(),
        commands: setting.commands,
        depth: 1 + random.index(16),
        transfer_bytes_max: setting.transfer_bytes_max,
        may_lose_connection: setting.may_lose_connection,
        resets: setting.resets,
        aborts: setting.aborts,
        resets_units: number == 0,
        may_lose_commands: setting.aborts != Chance::NEVER && number > 0,
        is_strict: setting.is_strict,
    }
}

fn calm(run: Run) -> Result<Report, String> {
    Scene::new(run, &Setting::default(), |_| {})?.finish()
}

fn rough(run: Run) -> Result<Report, String> {
    Scene::new(run, &Setting { network: NetworkFaults::rough(), ..Setting::default() }, |_| {})?.finish()
}

fn lossy(run: Run) -> Result<Report, String> {
    let network = NetworkFaults {
        reset: Chance::per_million(3000),
        accept_refused: Chance::percent(5),
        ..NetworkFaults::rough()
    };
    let resets = Chance::per_million(500);
    let setting = Setting { network, may_lose_connection: true, resets, ..Setting::default() };
    Scene::new(run, &setting, |_| {})?.finish()
}

fn bad_disks(run: Run) -> Result<Report, String> {
    let mut scene = Scene::new(run, &Setting::default(), |_| {})?;
    let failing = FileFaults {
        eio_read: Chance::percent(5),
        eio_write: Chance::percent(2),
        eio_sync: Chance::percent(10),
        short_write: Chance::percent(10),
        ..FileFaults::default()
    };
    let full = FileFaults { enospc: Chance::percent(50), ..FileFaults::default() };
    for (lun, faults) in [(RAW_LUN, failing), (VHDX_LUN, full)] {
        let name = scene.server.file_name(lun).ok_or("the disk has no file")?;
        scene.world.set_faults_of(&name, Some(faults));
        scene.initiators.iter_mut().for_each(|initiator| initiator.expect_failures(lun));
    }
    scene.finish()
}

fn hung(run: Run) -> Result<Report, String> {
    let aborts = if run.seed % 2 == 1 { Chance::percent(1) } else { Chance::NEVER };
    let setting = Setting { aborts, is_strict: true, shares: run.seed % 4 >= 2, ..Setting::default() };
    let mut scene = Scene::new(run, &setting, |_| {})?;
    for lun in [RAW_LUN, VHDX_LUN] {
        let name = scene.server.file_name(lun).ok_or("the disk has no file")?;
        let hanging =
            FileFaults { delay: Chance::percent(2), delay_max: Nanos(100_000_000_000), ..FileFaults::default() };
        scene.world.set_faults_of(&name, Some(hanging));
        scene.initiators.iter_mut().for_each(|initiator| initiator.expect_failures(lun));
    }
    scene.finish()
}

fn narrow(run: Run) -> Result<Report, String> {
    let setting = Setting { network: NetworkFaults::rough(), pipe_capacity_bytes: 5000, ..Setting::default() };
    Scene::new(run, &setting, |config| config.memory_bytes = 16 << 20)?.finish()
}

fn pinched(run: Run) -> Result<Report, String> {
    let setting = Setting {
        network: NetworkFaults::rough(),
        transfer_bytes_max: 1 << 20,
        region_sectors: 2048,
        initiators_max: 2,
        commands: 200,
        ..Setting::default()
    };
    let change = |config: &mut ServerConfig| (config.memory_bytes, config.shards) = (14 << 20, 1);
    Scene::new(run, &setting, change)?.finish()
}

/// Strangers connect and say nothing. Those for whom there is no place are sent away when the ring takes that, the
/// others when their time is over; none may be left connected.
fn door(run: Run) -> Result<Report, String> {
    let setting = Setting { initiators_max: 1, commands: 0, ..Setting::default() };
    let change = |config: &mut ServerConfig| {
        (config.memory_bytes, config.ring_slots, config.shards) = (8 << 20, 150, 1);
        config.disks.truncate(2);
    };
    let mut scene = Scene::new(run, &setting, change)?;
    scene.initiators.clear();
    let mut strangers = Vec::new();
    for _ in 0..8 {
        // A full backlog refuses some.
        strangers.extend((0..100).filter_map(|_| scene.world.connect(Server::portal()).ok()));
        scene.run_for(Nanos(1_000_000));
    }
    let mut left = |scene: &mut Scene, time: Nanos| -> Result<usize, String> {
        scene.run_for(time);
        strangers.retain_mut(|stream| matches!(stream.read(&mut [0; 16]), Err(crate::sim::StreamError::WouldBlock)));
        Ok(strangers.len())
    };
    if left(&mut scene, Nanos(1_000_000_000))? == 0 {
        return Err("nobody was let in".to_owned());
    }
    match left(&mut scene, Nanos(20_000_000_000))? {
        0 => scene.finish(),
        left => Err(format!("{left} connections have been forgotten")),
    }
}

fn stopped(run: Run) -> Result<Report, String> {
    let mut scene = Scene::new(run, &Setting { commands: 2000, ..Setting::default() }, |_| {})?;
    let time = Nanos(scene.random.below(10_000_000));
    scene.run(time)?;
    let Scene { server, initiators, .. } = &mut scene;
    server.stop(initiators)?;
    // The last words are still under way.
    scene.run(Nanos(100_000_000))?;
    if let Some(left) = scene.initiators.iter().find(|initiator| !initiator.is_done() && initiator.has_logged_in()) {
        return Err(format!("a session was not given the time to log out: {left:?}"));
    }
    scene.report()
}

fn aborts(run: Run) -> Result<Report, String> {
    let network = NetworkFaults::rough();
    let setting = Setting { network, aborts: Chance::percent(1), commands: 200, ..Setting::default() };
    let scene = Scene::new(run, &setting, |_| {})?;
    if run.seed % 2 == 1 {
        // What is aborted is under way for long.
        let delay_max = Nanos(3_000_000);
        scene.world.set_file_faults(FileFaults { delay: Chance::percent(30), delay_max, ..FileFaults::default() });
    }
    scene.finish()
}

/// Every other run pauses and replaces disks, every other one loses connections.
fn shared(run: Run) -> Result<Report, String> {
    let is_lossy = run.seed & 2 != 0;
    let aborts = if run.seed & 4 != 0 { Chance::percent(1) } else { Chance::NEVER };
    let mut network = NetworkFaults::default();
    if is_lossy {
        network = NetworkFaults::rough();
        network.reset = Chance::per_million(1000);
    }
    let resets = if is_lossy { Chance::per_million(500) } else { Chance::NEVER };
    let setting = Setting {
        network,
        may_lose_connection: is_lossy,
        resets,
        aborts,
        commands: 200,
        initiators_max: SHARERS_MAX as u64,
        region_sectors: 256,
        shares: true,
        ..Setting::default()
    };
    // Few disks, so that they meet.
    let first = if run.seed & 8 != 0 { 0 } else { RAW_LUN };
    let disks = vec![disks()[first], disks()[VHDX_LUN + 1]];
    let mut scene = Scene::new(run, &setting, |config| config.disks = disks)?;
    let delay_max = Nanos(400_000);
    scene.world.set_file_faults(FileFaults { delay: Chance::percent(70), delay_max, ..FileFaults::default() });
    for _ in 0..(run.seed & 1) * 8 {
        let time = Nanos(scene.random.below(6_000_000));
        if scene.run(time)? == Outcome::Satisfied {
            break;
        }
        let change = if scene.random.below(2) == 0 { Change::Pause } else { Change::Snapshot };
        let index = 1;
        let Scene { server, initiators, .. } = &mut scene;
        server.change(index, change, initiators).map_err(|why| format!("{change:?} of disk {index}: {why}"))?;
    }
    scene.finish()
}

fn crowd(run: Run) -> Result<Report, String> {
    let setting = Setting { commands: 12, initiators_max: 32, region_sectors: 128, ..Setting::default() };
    Scene::new(run, &setting, |_| {})?.finish()
}

/// Many initiators share the flushes of a file: at most two of them are under way at a time, what was asked for by
/// those and what the disk's own log asks for.
fn flushes(run: Run) -> Result<Report, String> {
    let setting = Setting {
        commands: 60,
        initiators_max: 32,
        region_sectors: 128,
        history_events_max: 1 << 22,
        ..Setting::default()
    };
    let scene = Scene::new(run, &setting, |config| {
        config.disks.retain(|plan| matches!(plan.format, DiskFormat::Raw | DiskFormat::Vhdx));
    })?;
    let sync_takes = Nanos(50_000_000);
    scene.world.set_file_faults(FileFaults { sync_takes, ..FileFaults::default() });
    let world = scene.world.clone();
    let report = scene.finish()?;
    let mut running: HashMap<Fd, u32> = HashMap::new();
    for event in world.history() {
        match event.what {
            What::Started(op) if op.kind == OpKind::Sync => {
                let count = running.entry(op.fd).or_default();
                *count += 1;
                if *count > 2 {
                    return Err(format!("{count} flushes of {:?} at a time at {:?}", op.fd, event.at));
                }
            }
            What::Finished { op, .. } if op.kind == OpKind::Sync => *running.entry(op.fd).or_default() -= 1,
            _ => {}
        }
    }
    if running.is_empty() { Err("nothing was flushed".to_owned()) } else { Ok(report) }
}

/// Disks whose space comes and goes, with regions that hold whole blocks and parts of others.
fn thin_disks() -> Vec<DiskPlan> {
    let plan = |format, kind, sector_size_bytes| DiskPlan { format, kind, size_bytes: 24 * MIB, sector_size_bytes };
    vec![
        plan(DiskFormat::Raw, DiskKind::Dynamic, 512),
        plan(DiskFormat::Vhdx, DiskKind::Dynamic, 512),
        plan(DiskFormat::Vhdx, DiskKind::Differencing, 512),
        plan(DiskFormat::Vhdx, DiskKind::Differencing, 4096),
        plan(DiskFormat::Vhd, DiskKind::Dynamic, 512),
        plan(DiskFormat::Vhd, DiskKind::Differencing, 512),
    ]
}

fn thin_scene(run: Run, setting: Setting) -> Result<Scene, String> {
    let setting = Setting { region_sectors: 10_008, ..setting };
    Scene::new(run, &setting, |config| config.disks = thin_disks())
}

fn layers(run: Run) -> Result<Report, String> {
    thin_scene(run, Setting { network: NetworkFaults::rough(), ..Setting::default() })?.finish()
}

fn changes(run: Run) -> Result<Report, String> {
    with_changes(run, None, false)
}

fn changes_killed(run: Run) -> Result<Report, String> {
    with_changes(run, Some(End::Killed), false)
}

fn changes_power(run: Run) -> Result<Report, String> {
    with_changes(run, Some(End::PowerCut), false)
}

/// Copies, of which the file system shares some and some not, with aborts and late completions.
fn copies(run: Run) -> Result<Report, String> {
    let aborts = if run.seed % 2 == 1 { Chance::percent(1) } else { Chance::NEVER };
    let network = if run.seed % 4 >= 2 { NetworkFaults::rough() } else { NetworkFaults::default() };
    let setting = Setting { network, aborts, copies: true, commands: 200, ..Setting::default() };
    let scene = thin_scene(run, setting)?;
    scene.world.set_file_faults(sharing_faults());
    scene.finish()
}

fn sharing_faults() -> FileFaults {
    let (delay, delay_max) = (Chance::percent(20), Nanos(1_000_000));
    FileFaults { share_unsupported: Chance::percent(10), delay, delay_max, ..FileFaults::default() }
}

fn copies_hung(run: Run) -> Result<Report, String> {
    let setting = Setting { is_strict: true, copies: true, ..Setting::default() };
    let mut scene = thin_scene(run, setting)?;
    for lun in 0..2 {
        let name = scene.server.file_name(lun).ok_or("the disk has no file")?;
        let hanging =
            FileFaults { delay: Chance::percent(2), delay_max: Nanos(100_000_000_000), ..FileFaults::default() };
        scene.world.set_faults_of(&name, Some(hanging));
        scene.initiators.iter_mut().for_each(|initiator| initiator.expect_failures(lun));
    }
    scene.finish()
}

fn copies_changes(run: Run) -> Result<Report, String> {
    with_changes(run, None, true)
}

fn copies_power(run: Run) -> Result<Report, String> {
    with_changes(run, Some(End::PowerCut), true)
}

fn with_changes(run: Run, end: Option<End>, copies: bool) -> Result<Report, String> {
    // Every other run also aborts commands, those that a pause holds among them.
    let aborts = if run.seed % 2 == 1 { Chance::percent(1) } else { Chance::NEVER };
    let setting = Setting { may_lose_connection: end.is_some(), commands: 300, aborts, copies, ..Setting::default() };
    let mut scene = thin_scene(run, setting)?;
    let delay_max = Nanos(400_000);
    scene.world.set_file_faults(FileFaults { delay: Chance::percent(10), delay_max, ..FileFaults::default() });
    for _ in 0..4 + scene.random.below(8) {
        let time = Nanos(scene.random.below(6_000_000));
        if scene.run(time)? == Outcome::Satisfied {
            break;
        }
        let (kind, index) = (scene.random.below(8), scene.random.index(thin_disks().len()));
        let change = match kind {
            0 | 1 => Change::Pause,
            2..=4 => Change::Snapshot,
            5 => Change::Reopen,
            _ => Change::Compact,
        };
        let Scene { server, initiators, .. } = &mut scene;
        server.change(index, change, initiators).map_err(|why| format!("{change:?} of disk {index}: {why}"))?;
        let soon = change == Change::Snapshot && scene.random.below(2) == 0;
        if let Some(end) = end
            && (soon || scene.random.below(4) == 0)
        {
            if soon {
                // While the former leaf is being closed.
                let time = Nanos(scene.random.below(400_000));
                scene.run(time)?;
            }
            scene.server.crash_and_restart(end == End::PowerCut)?;
            scene.initiators.iter_mut().for_each(|initiator| initiator.server_ended(end));
        }
    }
    if scene.run(PATIENCE)? != Outcome::Satisfied {
        return scene.finish();
    }
    // Nothing but compaction keeps the shards awake.
    for index in 0..thin_disks().len() {
        scene
            .server
            .change(index, Change::Compact, &mut [])
            .map_err(|why| format!("compacting disk {index}: {why}"))?;
    }
    scene.finish()
}

/// Commands that a slow drive keeps at work for longer than a pause waits: it is given up, nothing stays held, and
/// every command ends well.
fn pauses_late(run: Run) -> Result<Report, String> {
    let mut scene = Scene::new(run, &Setting { initiators_max: 2, ..Setting::default() }, |_| {})?;
    let name = scene.server.file_name(VHDX_LUN).ok_or("the disk has no file")?;
    let slow = FileFaults { delay: Chance::percent(100), delay_max: Nanos(400_000_000), ..FileFaults::default() };
    scene.world.set_faults_of(&name, Some(slow));
    let mut given_up = 0;
    for _ in 0..20 {
        if scene.run(Nanos(10_000_000))? == Outcome::Satisfied {
            break;
        }
        let Scene { server, initiators, .. } = &mut scene;
        given_up += u32::from(!server.try_pause(VHDX_LUN, 20, initiators)?);
    }
    if given_up == 0 {
        return Err("no pause was given up".to_owned());
    }
    scene.world.set_faults_of(&name, None);
    scene.finish()
}

/// Snapshots, while initiators flush and write what has no space yet, of a drive that takes 50 ms for each sync:
/// commands are held no longer than single reads and writes take.
fn snapshots_syncs(run: Run) -> Result<Report, String> {
    let mut scene = thin_scene(run, Setting { commands: 300, ..Setting::default() })?;
    let sync_takes = Nanos(50_000_000);
    let delay_max = Nanos(400_000);
    scene.world.set_file_faults(FileFaults { sync_takes, delay_max, ..FileFaults::default() });
    for number in 0..12 {
        let time = Nanos(scene.random.below(60_000_000));
        if scene.run(time)? == Outcome::Satisfied {
            break;
        }
        let Scene { server, initiators, .. } = &mut scene;
        let index = number % thin_disks().len();
        server.begin_snapshot(index, initiators).map_err(|why| format!("snapshot of disk {index}: {why}"))?;
        if server.held_for() > Nanos(10_000_000) {
            return Err(format!("commands were held for {} ns", server.held_for().0));
        }
    }
    scene.finish()
}

/// What was written to the former leaf of a snapshot and not flushed before is made durable by flushes after it: those
/// are answered, and then the power is cut, while the former leaf's own way to a clean end takes long.
fn snapshots_power(run: Run) -> Result<Report, String> {
    let setting = Setting { may_lose_connection: true, commands: 300, initiators_max: 2, ..Setting::default() };
    let plans = [DiskFormat::Vhdx, DiskFormat::Raw].map(|format| DiskPlan {
        format,
        kind: DiskKind::Dynamic,
        size_bytes: 4 * MIB,
        sector_size_bytes: 512,
    });
    let mut scene = Scene::new(run, &setting, |config| config.disks = plans.to_vec())?;
    for index in [0, 1, 0] {
        let time = Nanos(scene.random.below(2_000_000));
        if scene.run(time)? == Outcome::Satisfied {
            break;
        }
        let leaf = scene.server.file_name(index).ok_or("the disk has no file")?;
        let slow = FileFaults { delay: Chance::percent(100), delay_max: Nanos(200_000_000), ..FileFaults::default() };
        let Scene { server, initiators, world, .. } = &mut scene;
        world.set_faults_of(&leaf, Some(slow));
        server.begin_snapshot(index, initiators).map_err(|why| format!("snapshot of disk {index}: {why}"))?;
        let time = Nanos(1_000_000 + scene.random.below(8_000_000));
        scene.run(time)?;
        scene.world.set_faults_of(&leaf, None);
        scene.server.crash_and_restart(true)?;
        scene.initiators.iter_mut().for_each(|initiator| initiator.server_ended(End::PowerCut));
    }
    scene.finish()
}

fn killed(run: Run) -> Result<Report, String> {
    with_crashes(run, End::Killed)
}

fn power_cut(run: Run) -> Result<Report, String> {
    with_crashes(run, End::PowerCut)
}

fn with_crashes(run: Run, end: End) -> Result<Report, String> {
    // In every other run everything that is answered is durable.
    let uncached = run.seed % 2 == 1;
    let setting = Setting { may_lose_connection: true, commands: 200, uncached, ..Setting::default() };
    let mut scene = Scene::new(run, &setting, |config| config.uncached = uncached)?;
    for _ in 0..1 + scene.random.below(3) {
        let time = Nanos(scene.random.below(12_000_000));
        if scene.run(time)? == Outcome::Satisfied {
            break;
        }
        scene.server.crash_and_restart(end == End::PowerCut)?;
        scene.initiators.iter_mut().for_each(|initiator| initiator.server_ended(end));
    }
    scene.finish()
}
