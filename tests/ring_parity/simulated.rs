//! The simulator, calm and late. Short counts and resets are left out, since the exercises ask for a line without them.

use lunaring::mem::{Arena, ArenaConfig};
use lunaring::ring::{Fd, Nanos};
use lunaring::sim::{Chance, FileFaults, FileOptions, NetworkFaults, SimRing, Stream, StreamError, World, WorldConfig};

use crate::harness::{Harness, Peer};

pub struct SimulatedHarness {
    world: World,
    ring: SimRing,
    arena: Arena,
    files: usize,
    listeners: usize,
    peers: Vec<Option<Stream>>,
}

impl SimulatedHarness {
    pub fn calm() -> SimulatedHarness {
        SimulatedHarness::new(1, WorldConfig::default())
    }

    pub fn late() -> SimulatedHarness {
        let delay_max = Nanos(3_000_000);
        let network_faults =
            NetworkFaults { delay: Chance::percent(50), split: Chance::percent(50), delay_max, ..Default::default() };
        let file_faults = FileFaults { delay: Chance::percent(50), delay_max, ..Default::default() };
        SimulatedHarness::new(2, WorldConfig { network_faults, file_faults, ..WorldConfig::default() })
    }

    fn new(seed: u64, config: WorldConfig) -> SimulatedHarness {
        let world = World::with_config(seed, config);
        let ring = world.ring(128);
        let arena = Arena::new(ArenaConfig { bytes_max: 64 << 20, hugepages: false }).unwrap();
        SimulatedHarness { world, ring, arena, files: 0, listeners: 0, peers: Vec::new() }
    }

    fn stream(&mut self, peer: Peer) -> &mut Stream {
        self.peers[peer.0].as_mut().unwrap()
    }
}

impl Harness for SimulatedHarness {
    type Ring = SimRing;

    fn ring(&mut self) -> &mut SimRing {
        &mut self.ring
    }

    fn arena(&self) -> &Arena {
        &self.arena
    }

    fn new_file(&mut self) -> Fd {
        self.files += 1;
        let name = self.files.to_string();
        self.world.create_file(&name, 0);
        self.world.open(&name, FileOptions::default())
    }

    fn listen(&mut self) -> Fd {
        self.listeners += 1;
        self.world.listen(format!("192.0.2.1:{}", self.listeners).parse().unwrap())
    }

    fn connect(&mut self, listener: Fd) -> Peer {
        self.peers.push(Some(self.world.connect_to_listener(listener).unwrap()));
        Peer(self.peers.len() - 1)
    }

    fn peer_write(&mut self, peer: Peer, bytes: &[u8]) -> usize {
        match self.stream(peer).write(bytes) {
            Ok(count) => count,
            Err(StreamError::WouldBlock) => 0,
            Err(error) => panic!("{error}"),
        }
    }

    fn peer_read(&mut self, peer: Peer) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 256 * 1024];
        match self.stream(peer).read(&mut bytes) {
            Ok(0) => None,
            Ok(count) => {
                bytes.truncate(count);
                Some(bytes)
            }
            Err(StreamError::WouldBlock) => Some(Vec::new()),
            Err(error) => panic!("{error}"),
        }
    }

    fn peer_close(&mut self, peer: Peer) {
        self.peers[peer.0] = None;
    }

    fn drop_ring(self) -> Arena {
        let SimulatedHarness { ring, arena, .. } = self;
        drop(ring);
        arena
    }
}
