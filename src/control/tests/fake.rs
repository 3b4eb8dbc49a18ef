//! Shards that answer at once and remember what they were told.

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use crate::control::controller::Controller;
use crate::control::dataplane::DataPlane;
use crate::control::state::StateDir;
use crate::observe::{SessionStats, ShardStats};
use crate::shard::message::{Configuration, EngineReport, SessionInfo, ToShard};
use crate::units::{DiskId, PortalId, ShardId};

/// One shard's memory.
#[derive(Default)]
pub struct Told {
    pub configuration: Arc<Configuration>,
    pub disks: BTreeSet<DiskId>,
    pub listeners: Vec<(PortalId, OwnedFd)>,
    pub sessions: Vec<SessionInfo>,
    pub stopped: bool,
    /// Messages to refuse as if the mailbox were full.
    pub refusals: usize,
}

/// Two shards.
pub struct FakePlane {
    pub shards: [Mutex<Told>; 2],
    stats: [Arc<ShardStats>; 2],
}

impl FakePlane {
    pub fn new() -> Arc<FakePlane> {
        Arc::new(FakePlane { shards: Default::default(), stats: Default::default() })
    }

    pub fn told(&self, shard: usize) -> std::sync::MutexGuard<'_, Told> {
        self.shards[shard].lock().unwrap()
    }

    /// Pretend that an initiator has logged in.
    pub fn log_in(&self, shard: usize, id: u64, target: &str) {
        let stats = Arc::new(SessionStats::new());
        stats.commands.add(id * 10);
        self.told(shard).sessions.push(SessionInfo {
            id,
            tsih: 1,
            initiator: "iqn.2026-11.com.example:client".into(),
            target: Some(target.into()),
            peer: "192.0.2.7:50000".parse().unwrap(),
            local: "192.0.2.1:3260".parse().unwrap(),
            shard: ShardId(shard as u16),
            header_digest: true,
            data_digest: false,
            age_seconds: 75,
            stats,
        });
    }

    /// Everything the shards were told, in words, without process-local numbers.
    pub fn known_targets(&self, shard: usize) -> Vec<(String, Vec<u16>, Vec<String>)> {
        let configuration = Arc::clone(&self.told(shard).configuration);
        let targets = configuration.directory.targets().iter().map(|target| {
            let luns = configuration.luns[&target.id].keys().map(|lun| lun.0).collect();
            (target.name.to_string(), luns, target.access.iter().map(ToString::to_string).collect())
        });
        targets.collect()
    }
}

impl DataPlane for FakePlane {
    fn count(&self) -> u16 {
        2
    }

    fn send(&self, shard: ShardId, message: ToShard) -> Result<(), ToShard> {
        let mut told = self.shards[usize::from(shard.0)].lock().unwrap();
        assert!(!told.stopped, "a stopped shard gets no messages");
        if told.refusals > 0 {
            told.refusals -= 1;
            return Err(message);
        }
        match message {
            ToShard::Configure { configuration, reply } => {
                for map in configuration.luns.values() {
                    for mapping in map.values() {
                        assert!(told.disks.contains(&mapping.disk), "a configuration names attached disks only");
                    }
                }
                told.configuration = configuration;
                reply(());
            }
            ToShard::Listen { portal, listener } => told.listeners.push((portal, listener)),
            ToShard::StopListening { portal, reply } => {
                told.listeners.retain(|(listening, _)| *listening != portal);
                reply(());
            }
            ToShard::Attach { disk, engine, reply } => {
                assert!(engine.is_none() || disk.home() == shard, "the engine goes home");
                assert!(told.disks.insert(disk.id()), "attached once");
                reply(());
            }
            ToShard::Detach { disk, reply } => {
                let mapped = told.configuration.luns.values().any(|map| map.values().any(|lun| lun.disk == disk));
                let _ = mapped;
                assert!(told.disks.remove(&disk), "only what is attached is detached");
                reply(Ok(()));
            }
            ToShard::Pause { reply, .. } => reply(Ok(())),
            ToShard::Resume { reply, .. } => reply(()),
            ToShard::ListSessions { reply } => reply(told.sessions.clone()),
            ToShard::DropSession { id, reply } => {
                let before = told.sessions.len();
                told.sessions.retain(|session| session.id != id);
                reply(told.sessions.len() < before);
            }
            ToShard::Quiesce { reply, .. } => {
                told.sessions.clear();
                told.listeners.clear();
                reply(());
            }
            ToShard::Swap { reply, .. } | ToShard::CloseEngine { reply, .. } => reply(Ok(())),
            ToShard::BeginSession { reply, .. } => reply(Ok(None)),
            ToShard::Relocate { reply, .. } => reply(Ok(false)),
            ToShard::ReportEngine { reply, .. } => reply(Some(EngineReport::default())),
            ToShard::Stop => told.stopped = true,
        }
        Ok(())
    }

    fn stats(&self, shard: ShardId) -> Arc<ShardStats> {
        Arc::clone(&self.stats[usize::from(shard.0)])
    }

    fn listeners(&self, portal: SocketAddr) -> io::Result<Vec<OwnedFd>> {
        let listener = TcpListener::bind(portal)?;
        Ok(vec![listener.try_clone()?.into(), listener.into()])
    }
}

/// A controller on fresh shards, as after a start of the server in `dir`.
pub async fn started(dir: &std::path::Path) -> (Controller, Arc<FakePlane>) {
    let plane = FakePlane::new();
    let state = StateDir::open(dir).unwrap();
    let mut controller = Controller::start(state, Arc::<FakePlane>::clone(&plane)).await.unwrap();
    controller.listen_all(&[]).await.unwrap();
    (controller, plane)
}

/// A port that is free now.
pub fn free_portal() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
