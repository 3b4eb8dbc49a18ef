//! Shards that answer at once and remember what they were told.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use crate::blocks::Engine;
use crate::control::controller::Controller;
use crate::control::dataplane::DataPlane;
use crate::control::state::StateDir;
use crate::medium::Disk;
use crate::medium::blocking::BlockingDisk;
use crate::observe::{SessionStats, ShardStats};
use crate::scsi::reservations::Reservations;
use crate::shard::message::{Configuration, ConnectionInfo, EngineReport, Hold, SessionInfo, ToShard};
use crate::units::{DiskId, PortalId, ShardId};

/// One shard's memory.
#[derive(Default)]
pub struct Told {
    pub configuration: Arc<Configuration>,
    pub disks: BTreeSet<DiskId>,
    /// The disks whose home it is and that are in files, as a shard would read and write them.
    pub homes: BTreeMap<DiskId, BlockingDisk<File>>,
    pub paused: BTreeSet<DiskId>,
    pub reservations: BTreeMap<DiskId, Arc<Reservations>>,
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

    /// Write as an initiator would.
    pub fn write(&self, disk: &Disk, offset_bytes: u64, bytes: &[u8]) {
        let mut told = self.told(usize::from(disk.home().0));
        assert!(!told.paused.contains(&disk.id()), "the disk goes on");
        told.homes.get_mut(&disk.id()).unwrap().write_at(offset_bytes, bytes).unwrap();
    }

    /// Read as an initiator would.
    pub fn read(&self, disk: &Disk, offset_bytes: u64, len_bytes: usize) -> Vec<u8> {
        let mut bytes = vec![0; len_bytes];
        let mut told = self.told(usize::from(disk.home().0));
        told.homes.get_mut(&disk.id()).unwrap().read_at(offset_bytes, &mut bytes).unwrap();
        bytes
    }

    /// Pretend that an initiator has logged in.
    pub fn log_in(&self, shard: usize, id: u64, target: &str) {
        let stats = Arc::new(SessionStats::new());
        stats.commands.add(id * 10);
        let (peer, local) = ("192.0.2.7:50000".parse().unwrap(), "192.0.2.1:3260".parse().unwrap());
        self.told(shard).sessions.push(SessionInfo {
            connections: vec![ConnectionInfo { connection_id: 0, peer, local }],
            id,
            tsih: 1,
            initiator: "iqn.2026-11.com.example:client".into(),
            target: Some(target.into()),
            peer,
            local,
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

impl Told {
    /// Keep a disk as its home would.
    fn serve(&mut self, shard: ShardId, disk: &Arc<Disk>, engine: Option<Box<dyn Engine>>) {
        let (Some(chain), true) = (disk.chain(), disk.home() == shard) else { return };
        let open = |layer: (usize, &Arc<crate::medium::LayerFile>)| {
            let write = layer.0 == 0 && !disk.read_only();
            OpenOptions::new().read(true).write(write).open(layer.1.path()).unwrap()
        };
        let files = disk.layers().iter().enumerate().map(open).collect();
        self.homes.insert(disk.id(), BlockingDisk::new(chain.clone(), files, engine, !disk.read_only()));
    }

    fn close(&mut self, disk: DiskId) {
        if let Some(home) = self.homes.remove(&disk) {
            home.close().unwrap();
        }
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
            ToShard::Listen { portal, listener, .. } => told.listeners.push((portal, listener)),
            ToShard::StopListening { portal, reply } => {
                told.listeners.retain(|(listening, _)| *listening != portal);
                reply(());
            }
            ToShard::Attach { disk, engine, reply } => {
                assert!(engine.is_none() || disk.home() == shard, "the engine goes home");
                assert!(told.disks.insert(disk.id()), "attached once");
                told.serve(shard, &disk, engine);
                reply(());
            }
            ToShard::Remember { disk, reservations, reply, .. } => {
                assert!(told.disks.contains(&disk), "only an attached disk has reservations");
                told.reservations.insert(disk, reservations);
                reply(());
            }
            ToShard::ReportReservations { disk, reply } => reply(told.reservations.get(&disk).cloned()),
            ToShard::ClearReservations { disk, reply } => {
                told.reservations.remove(&disk);
                reply(Ok(()));
            }
            ToShard::Detach { disk, reply } => {
                let mapped = told.configuration.luns.values().any(|map| map.values().any(|lun| lun.disk == disk));
                let _ = mapped;
                assert!(told.disks.remove(&disk), "only what is attached is detached");
                told.close(disk);
                reply(Ok(()));
            }
            ToShard::Pause { disk, hold, reply, .. } => {
                assert!(told.paused.insert(disk) == (hold == Hold::Changes), "paused once, changes first");
                reply(Ok(()));
            }
            ToShard::Resume { disk, reply } => {
                told.paused.remove(&disk);
                reply(());
            }
            ToShard::Swap { disk, engine, retire, retired, reply, .. } => {
                assert!(told.paused.remove(&disk.id()), "only a paused disk is changed");
                if retire {
                    told.close(disk.id());
                }
                assert!(engine.is_none() || disk.home() == shard, "the engine goes home");
                told.serve(shard, &disk, engine);
                reply(Ok(()));
                if let Some(retired) = retired {
                    retired(Ok(()));
                }
            }
            ToShard::CloseEngine { disk, reply } => {
                assert!(told.paused.contains(&disk), "only a paused disk's engine is closed");
                told.close(disk);
                reply(Ok(()));
            }
            ToShard::BeginSession { disk, reply } => {
                told.homes.get_mut(&disk).unwrap().begin_write_session().unwrap();
                reply(Ok(None));
            }
            ToShard::Relocate { disk, reply } => {
                reply(Ok(told.homes.get_mut(&disk).unwrap().relocate_some().unwrap()));
            }
            ToShard::ReportEngine { disk, reply } => {
                let space = told.homes.get(&disk).and_then(BlockingDisk::space);
                reply(Some(EngineReport { space, ..EngineReport::default() }));
            }
            ToShard::LittleSpace { .. } | ToShard::Kept { .. } | ToShard::Place { .. } => {
                panic!("nothing was to be kept")
            }
            ToShard::ListSessions { reply } => reply(told.sessions.clone()),
            ToShard::DropSession { id, reply } => {
                let before = told.sessions.len();
                told.sessions.retain(|session| session.id != id);
                reply(told.sessions.len() < before);
            }
            ToShard::Record { reply, .. } => reply(Ok(None)),
            ToShard::Quiesce { reply, .. } => {
                told.sessions.clear();
                told.listeners.clear();
                reply(());
            }
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
