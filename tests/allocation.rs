//! Between login and logout a shard allocates nothing: a counting allocator over whole shards on the simulator.
//!
//! Counted is what a shard's own code asks the system allocator for during its turns, once every session has been
//! served for a while. The simulator's and the clients' own allocations are left out.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use lunaring::medium::{DiskFormat, DiskKind};
use lunaring::ring::Nanos;
use lunaring::sim::scenario::{DiskPlan, Server, ServerConfig};
use lunaring::sim::{Chance, Initiator, InitiatorConfig, Keeping, LunPlan, NetworkFaults, RunLimit, Runnable};
use lunaring::sim::{World, WorldConfig, is_shard_turn};

struct Counting;

static ARMED: AtomicBool = AtomicBool::new(false);
static COUNT: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static REPORTING: Cell<bool> = const { Cell::new(false) };
}

impl Counting {
    fn note(layout: Layout) {
        if !ARMED.load(Ordering::Relaxed) || !is_shard_turn() || REPORTING.get() {
            return;
        }
        if COUNT.fetch_add(1, Ordering::Relaxed) < 3 {
            REPORTING.set(true);
            eprintln!("{} bytes are allocated at:\n{}", layout.size(), Backtrace::force_capture());
            REPORTING.set(false);
        }
    }
}

// SAFETY: every call goes on to the system allocator with the arguments unchanged; noting it touches no memory of the
// caller.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Counting::note(layout);
        // SAFETY: the caller's promises about `layout` are passed on as they are.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `System` with this `layout`, as all of ours do.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        Counting::note(layout);
        // SAFETY: as for `dealloc`; the caller promises that `new_size` is valid.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SESSIONS: u64 = 4;
const COMMANDS: u32 = 1500;
const MIB: u64 = 1 << 20;

fn disks() -> Vec<DiskPlan> {
    let plan = |format| DiskPlan { format, kind: DiskKind::Dynamic, size_bytes: 4 * MIB, sector_size_bytes: 512 };
    [DiskFormat::Memory, DiskFormat::Null, DiskFormat::Raw, DiskFormat::Vhdx].map(plan).to_vec()
}

fn initiator(world: &World, number: u64) -> Initiator {
    let lun = |(lun, plan): (usize, &DiskPlan)| LunPlan {
        lun: lun as u8,
        keeping: if plan.format == DiskFormat::Null { Keeping::Nothing } else { Keeping::WhileServed },
        first_sector: number * 1024,
        sector_count: 1024,
        may_fail: false,
    };
    let config = InitiatorConfig {
        portal: Server::portal(),
        initiator_name: format!("iqn.2026-11.io.lunaring.test:{number}"),
        target_name: Server::target_name().to_owned(),
        isid: [0x80, 0, 0, 0, 0, number as u8],
        luns: disks().iter().enumerate().map(lun).collect(),
        commands: COMMANDS,
        depth: 16,
        transfer_bytes_max: 256 * 1024,
        may_lose_connection: false,
        resets: Chance::NEVER,
        aborts: Chance::NEVER,
        resets_units: false,
        may_lose_commands: false,
    };
    Initiator::new(world, config)
}

/// Run in small steps until this holds for the least and the greatest number of commands that an initiator has to send.
fn run_until(world: &World, server: &mut Server, initiators: &mut [Initiator], is_there: impl Fn(u32, u32) -> bool) {
    loop {
        let left = || initiators.iter().map(Initiator::commands_left);
        if is_there(left().min().unwrap_or(0), left().max().unwrap_or(0)) {
            return;
        }
        let mut runnables: Vec<&mut dyn Runnable> = server.shards().collect();
        runnables.extend(initiators.iter_mut().map(|initiator| initiator as &mut dyn Runnable));
        world.run(&mut runnables, RunLimit { time: Nanos(200_000), rounds: 1_000_000 });
        for initiator in initiators.iter() {
            initiator.result().expect("everything is right");
        }
        assert!(world.elapsed() < Nanos(600_000_000_000), "the run is stuck");
    }
}

#[test]
fn a_shard_allocates_nothing_between_login_and_logout() {
    for (seed, shards) in [(1, 1), (2, 2)] {
        let network_faults = NetworkFaults::rough();
        let config = WorldConfig { network_faults, history_events_max: 0, ..WorldConfig::default() };
        let world = World::with_config(seed, config);
        let config = ServerConfig { shards, disks: disks(), memory_bytes: 64 << 20, ring_slots: 2048 };
        let mut server = Server::start(&world, config).expect("the server starts");
        let mut initiators: Vec<Initiator> = (0..SESSIONS).map(|number| initiator(&world, number)).collect();
        // Until then every session is logged in and has been served a little; blocks of the VHDX are still to be
        // allocated.
        run_until(&world, &mut server, &mut initiators, |_, most| most < COMMANDS - 20);
        ARMED.store(true, Ordering::Relaxed);
        let before = initiators[0].commands_left();
        assert!(initiators.iter().all(|initiator| initiator.commands_left() > 200), "nobody is near its end");
        run_until(&world, &mut server, &mut initiators, |least, _| least < 100);
        ARMED.store(false, Ordering::Relaxed);
        assert!(before - initiators[0].commands_left() > 50, "enough has been counted");
        let count = COUNT.swap(0, Ordering::Relaxed);
        assert_eq!(count, 0, "{count} allocations on {shards} shards between login and logout");
    }
}
