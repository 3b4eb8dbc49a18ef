//! Nodes of a cluster that fight for a disk: what reservations allow and forbid, on all shards and across crashes.

use super::server::{Server, ServerConfig};
use super::{Report, Run};
use crate::ring::Nanos;
use crate::sim::{Arbiter, Chance, End, Fencer, FencerConfig, NetworkFaults, Outcome, RunLimit, Runnable, World};
use crate::sim::{FileFaults, WorldConfig};

/// Virtual time after which a run that does not end is stuck.
const PATIENCE: Nanos = Nanos(600_000_000_000);

/// Nobody crashes.
pub(super) fn fencing(run: Run) -> Result<Report, String> {
    fence(run, None)
}

/// The process is killed several times.
pub(super) fn fencing_killed(run: Run) -> Result<Report, String> {
    fence(run, Some(End::Killed))
}

/// The power is cut several times.
pub(super) fn fencing_power(run: Run) -> Result<Report, String> {
    fence(run, Some(End::PowerCut))
}

fn fence(run: Run, end: Option<End>) -> Result<Report, String> {
    let config = WorldConfig {
        network_faults: NetworkFaults { reset: Chance::per_million(200), ..NetworkFaults::rough() },
        // A shard that is late to hear of a change must not be late to obey it.
        held_up: Chance::percent(2),
        history_events_max: 0,
        history_is_printed: run.is_printed,
        ..WorldConfig::default()
    };
    let world = World::with_config(run.seed, config);
    world.set_file_faults(FileFaults {
        delay: Chance::percent(20),
        delay_max: Nanos(20_000_000),
        ..FileFaults::default()
    });
    let mut random = world.random();
    let shards = 1 + random.below(4) as u16;
    let disks = super::runs::disks();
    // Nodes write 512 bytes at once.
    let luns: Vec<usize> = (0..disks.len()).filter(|&lun| disks[lun].sector_size_bytes == 512).collect();
    let lun = luns[random.index(luns.len())] as u8;
    // A message waits for its turn behind the one before.
    let peer_messages_max = Some(if random.below(2) == 0 { 1 } else { 8 });
    let server_config =
        ServerConfig { shards, disks, uncached: false, memory_bytes: 64 << 20, ring_slots: 2048, peer_messages_max };
    let mut server = Server::start(&world, server_config)?;
    let arbiter = Arbiter::default();
    let nodes = 2 + random.index(4);
    let fencer = |node| {
        let (portal, target_name) = (Server::portal(), Server::target_name().to_owned());
        Fencer::new(&world, &arbiter, FencerConfig { portal, target_name, node, nodes, lun, commands: 150 })
    };
    let mut fencers: Vec<Fencer> = (0..nodes).map(fencer).collect();
    let crashes = if end.is_some() { 1 + random.below(5) } else { 0 };
    for _ in 0..crashes {
        let time = Nanos(random.below(30_000_000));
        if go(&world, &mut server, &mut fencers, time)? == Outcome::Satisfied {
            break;
        }
        arbiter.server_ended()?;
        fencers.iter_mut().for_each(Fencer::server_ended);
        server.crash_and_restart(end == Some(End::PowerCut))?;
    }
    if go(&world, &mut server, &mut fencers, PATIENCE)? != Outcome::Satisfied {
        return Err(format!("it does not end: {fencers:?}"));
    }
    world.set_network_faults(NetworkFaults::default());
    server.stop(&mut [])?;
    if arbiter.checked() == 0 {
        return Err("nothing was checked".to_owned());
    }
    Ok(Report {
        time: world.elapsed(),
        events: world.history_count(),
        hash: world.history_hash(),
        initiators: fencers.iter().map(Fencer::result).collect::<Result<_, _>>()?,
        copied_bytes: (0, 0),
    })
}

/// Run until all nodes are done, or for this long.
fn go(world: &World, server: &mut Server, fencers: &mut [Fencer], time: Nanos) -> Result<Outcome, String> {
    let mut runnables: Vec<&mut dyn Runnable> = server.shards().collect();
    runnables.extend(fencers.iter_mut().map(|fencer| fencer as &mut dyn Runnable));
    let outcome = world.run(&mut runnables, RunLimit { time, rounds: 20_000_000 });
    for fencer in fencers.iter() {
        fencer.result()?;
    }
    Ok(outcome)
}
