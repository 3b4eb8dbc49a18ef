//! Between login and logout a shard allocates nothing: whole servers on the simulator, every kind of disk, many
//! sessions, with an allocator that counts what happens inside shards (and not what the simulator keeps for itself).
//! One thing is apart: a VHDX reserves the buffers of its log once, at the first write after it was opened.
#![allow(clippy::unwrap_used, unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use lunaring::medium::{DiskFormat, DiskKind};
use lunaring::ring::{Nanos, Wait};
use lunaring::sim::scenario::{DiskPlan, Server, ServerConfig};
use lunaring::sim::{
    Chance, Initiator, InitiatorConfig, Keeping, LunPlan, Outcome, RunLimit, Runnable, World, WorldConfig, is_simulator,
};

/// The system's allocator, counting what shards ask of it.
struct Counting;

thread_local! {
    static IN_SHARD: Cell<bool> = const { Cell::new(false) };
    static COUNTING: Cell<bool> = const { Cell::new(false) };
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn note() {
    if IN_SHARD.get() && COUNTING.get() && !is_simulator() {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // Looking allocates too.
        COUNTING.set(false);
        if std::env::var_os("LUNARING_SHOW_ALLOCATION").is_some() {
            eprintln!("{}", std::backtrace::Backtrace::force_capture());
        }
        COUNTING.set(true);
    }
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        note();
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note();
        // SAFETY: the caller's promise.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A shard whose allocations count.
struct Watched<'a>(&'a mut dyn Runnable);

impl Runnable for Watched<'_> {
    fn turn(&mut self, wait: Wait) {
        IN_SHARD.set(true);
        self.0.turn(wait);
        IN_SHARD.set(false);
    }
}

const MIB: u64 = 1 << 20;

fn disks() -> Vec<DiskPlan> {
    let plan = |format, kind, sector_size_bytes| DiskPlan { format, kind, size_bytes: 64 * MIB, sector_size_bytes };
    vec![
        plan(DiskFormat::Memory, DiskKind::Dynamic, 512),
        plan(DiskFormat::Null, DiskKind::Dynamic, 512),
        plan(DiskFormat::Raw, DiskKind::Dynamic, 512),
        plan(DiskFormat::Vhdx, DiskKind::Dynamic, 512),
        plan(DiskFormat::Vhdx, DiskKind::Dynamic, 4096),
        plan(DiskFormat::Vhdx, DiskKind::Differencing, 512),
    ]
}

fn initiator(world: &World, number: u64) -> Initiator {
    let lun = |lun, keeping| LunPlan {
        lun,
        keeping,
        first_sector: number * 16 * 1024,
        sector_count: 8 * 1024,
        may_fail: false,
        thin: lun >= 2,
        layered: lun == 5,
        shared: None,
        copies: false,
        uncached: false,
    };
    let keep = Keeping::Always;
    let config = InitiatorConfig {
        portal: Server::portal(),
        initiator_name: format!("iqn.2026-11.io.lunaring:initiator-{number}"),
        target_name: Server::target_name().into(),
        isid: [0x40, 0, 0, 0, 0, number as u8],
        luns: vec![
            lun(0, Keeping::WhileServed),
            lun(1, Keeping::Nothing),
            lun(2, keep),
            lun(3, keep),
            lun(4, keep),
            lun(5, keep),
        ],
        commands: 1_000_000,
        depth: 16,
        transfer_bytes_max: 512 * 1024,
        may_lose_connection: false,
        resets: Chance::NEVER,
        aborts: Chance::NEVER,
        resets_units: false,
        may_lose_commands: false,
        is_strict: false,
    };
    Initiator::new(world, config)
}

fn run(world: &World, server: &mut Server, initiators: &mut [Initiator], rounds: u64) {
    let mut shards: Vec<Watched<'_>> = server.shards().map(Watched).collect();
    let mut runnables: Vec<&mut dyn Runnable> = shards.iter_mut().map(|shard| shard as &mut dyn Runnable).collect();
    runnables.extend(initiators.iter_mut().map(|initiator| initiator as &mut dyn Runnable));
    let limit = RunLimit { time: Nanos(u64::MAX / 2), rounds };
    assert_eq!(world.run(&mut runnables, limit), Outcome::LimitReached);
    for initiator in initiators {
        initiator.result().unwrap();
    }
}

#[test]
fn a_shard_allocates_nothing_between_login_and_logout() {
    let world = World::with_config(7, WorldConfig { history_events_max: 0, ..WorldConfig::default() });
    let config = ServerConfig {
        shards: 2,
        disks: disks(),
        uncached: false,
        memory_bytes: 128 << 20,
        ring_slots: 4096,
        peer_messages_max: None,
    };
    let mut server = Server::start(&world, config).unwrap();
    let mut initiators: Vec<Initiator> = (0..4).map(|number| initiator(&world, number)).collect();
    while !initiators.iter().all(Initiator::has_logged_in) {
        run(&world, &mut server, &mut initiators, 10);
    }
    let good = |initiators: &[Initiator]| -> u32 { initiators.iter().map(|one| one.result().unwrap().good).sum() };
    // Every VHDX has its first write here.
    run(&world, &mut server, &mut initiators, 1_500);
    let before = good(&initiators);
    COUNTING.set(true);
    run(&world, &mut server, &mut initiators, 6_000);
    COUNTING.set(false);
    let commands = good(&initiators) - before;
    assert!(commands > 2_000, "only {commands} commands: that proves little");
    assert_eq!(ALLOCATIONS.get(), 0, "set LUNARING_SHOW_ALLOCATION=1 to see where");
}

#[test]
fn the_counter_counts() {
    IN_SHARD.set(true);
    COUNTING.set(true);
    drop(std::hint::black_box(Vec::<u8>::with_capacity(100)));
    COUNTING.set(false);
    IN_SHARD.set(false);
    assert_eq!(ALLOCATIONS.get(), 2);
}
