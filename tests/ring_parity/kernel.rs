//! io_uring, with real sockets over loopback and a real file.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use lunaring::mem::{Arena, ArenaConfig};
use lunaring::ring::net::{self, ListenOptions};
use lunaring::ring::{Fd, FeatureLimit, Features, UringConfig, UringRing};
use socket2::SockRef;

use crate::harness::{Harness, Peer};

pub struct KernelHarness {
    ring: UringRing,
    arena: Arena,
    directory: tempfile::TempDir,
    files: Vec<File>,
    listeners: Vec<OwnedFd>,
    peers: Vec<Option<TcpStream>>,
}

impl KernelHarness {
    pub fn new(limit: FeatureLimit) -> KernelHarness {
        let features = Features::probe(limit).expect("this host has io_uring");
        let arena = Arena::new(ArenaConfig { bytes_max: 64 << 20, hugepages: false }).unwrap();
        // Fewer submissions than slots, so that full queues are exercised too.
        let ring = UringRing::new(UringConfig { slots: 128, submissions: 16, features }, &arena).unwrap();
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        KernelHarness { ring, arena, directory, files: Vec::new(), listeners: Vec::new(), peers: Vec::new() }
    }
}

impl Harness for KernelHarness {
    type Ring = UringRing;

    fn ring(&mut self) -> &mut UringRing {
        &mut self.ring
    }

    fn arena(&self) -> &Arena {
        &self.arena
    }

    fn new_file(&mut self) -> Fd {
        let path = self.directory.path().join(self.files.len().to_string());
        let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
        let fd = Fd(file.as_raw_fd());
        self.files.push(file);
        fd
    }

    fn listen(&mut self) -> Fd {
        let options = ListenOptions { reuse_port: true, backlog: 16, incoming_cpu: None };
        let listener = net::listen("127.0.0.1:0".parse().unwrap(), options).unwrap();
        // Accepted sockets inherit it: small enough for sends to fill.
        SockRef::from(&listener.as_fd()).set_send_buffer_size(64 * 1024).unwrap();
        let fd = Fd(listener.as_raw_fd());
        self.listeners.push(listener);
        fd
    }

    fn connect(&mut self, listener: Fd) -> Peer {
        let listener = self.listeners.iter().find(|known| known.as_raw_fd() == listener.0).unwrap();
        let peer = TcpStream::connect(net::local_address(listener.as_fd()).unwrap()).unwrap();
        SockRef::from(&peer).set_recv_buffer_size(64 * 1024).unwrap();
        peer.set_nonblocking(true).unwrap();
        self.peers.push(Some(peer));
        Peer(self.peers.len() - 1)
    }

    fn peer_write(&mut self, peer: Peer, bytes: &[u8]) -> usize {
        match self.peers[peer.0].as_ref().unwrap().write(bytes) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => panic!("{error}"),
        }
    }

    fn peer_read(&mut self, peer: Peer) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 256 * 1024];
        match self.peers[peer.0].as_ref().unwrap().read(&mut bytes) {
            Ok(0) => None,
            Ok(count) => {
                bytes.truncate(count);
                Some(bytes)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Some(Vec::new()),
            Err(error) => panic!("{error}"),
        }
    }

    fn peer_close(&mut self, peer: Peer) {
        self.peers[peer.0] = None;
    }

    fn drop_ring(self) -> Arena {
        let KernelHarness { ring, arena, .. } = self;
        drop(ring);
        arena
    }
}
