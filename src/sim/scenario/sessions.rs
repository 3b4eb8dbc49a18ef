//! Random events of sessions against a reference model: see the player and its model among the initiators.

use super::server::{DiskPlan, Server, ServerConfig};
use super::{Report, Run};
use crate::medium::{DiskFormat, DiskKind};
use crate::ring::{Nanos, Wait};
use crate::sim::{InitiatorReport, NetworkFaults, RunLimit, Runnable, SessionPlayer, World, WorldConfig};

/// Events of one run.
pub const EVENTS: u32 = 1000;

/// Never satisfied: the time that it was given passes.
struct Nobody;

impl Runnable for Nobody {
    fn turn(&mut self, _wait: Wait) {}

    fn is_satisfied(&self) -> bool {
        false
    }
}

/// One thousand events; every other seed on a bad line.
pub(super) fn sessions(run: Run) -> Result<Report, String> {
    let network = if run.seed % 2 == 1 { NetworkFaults::rough() } else { NetworkFaults::default() };
    let config = WorldConfig {
        network_faults: network,
        history_events_max: 0,
        history_is_printed: run.is_printed,
        ..WorldConfig::default()
    };
    let world = World::with_config(run.seed, config);
    let shards = 1 + world.random().below(3) as u16;
    let disk =
        DiskPlan { format: DiskFormat::Memory, kind: DiskKind::Dynamic, size_bytes: 1 << 20, sector_size_bytes: 512 };
    let disks = vec![disk; 2];
    let (memory_bytes, ring_slots) = (64 << 20, 2048);
    let server_config =
        ServerConfig { shards, disks, uncached: false, memory_bytes, ring_slots, peer_messages_max: None };
    let mut server = Server::start(&world, server_config)?;
    let mut player = SessionPlayer::new(&world, Server::portal(), Server::target_name().to_owned());
    for event in 0..EVENTS {
        let mut go_on = |time: Nanos| {
            let mut nobody = Nobody;
            // Time stops there, and does not go on to the next thing that happens.
            world.alarm(time);
            let mut runnables: Vec<&mut dyn Runnable> = server.shards().collect();
            runnables.push(&mut nobody);
            world.run(&mut runnables, RunLimit { time, rounds: 20_000_000 });
        };
        player.play(&mut go_on).map_err(|why| format!("event {event}: {why}"))?;
    }
    let (logins, good, received_hash) = player.counts();
    drop(player);
    server.stop(&mut [])?;
    Ok(Report {
        time: world.elapsed(),
        events: world.history_count(),
        hash: world.history_hash(),
        initiators: vec![InitiatorReport { logins, good, received_hash, ..InitiatorReport::default() }],
        copied_bytes: (0, 0),
    })
}
