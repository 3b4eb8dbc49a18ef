//! What the server does when time passes and a peer does nothing: on the simulator, whose clock costs nothing.

use lunaring::limits::{LOGIN_TIMEOUT_MS, PING_INTERVAL_MS, PING_TIMEOUT_MS};
use lunaring::medium::{DiskFormat, DiskKind};
use lunaring::ring::Wait;
use lunaring::sim::scenario::{DiskPlan, Server, ServerConfig};
use lunaring::sim::{Outcome, RunLimit, Runnable, Stream, StreamError, World};

/// A peer that logs in (or not), and then only listens.
struct Silent {
    stream: Stream,
    world: World,
    /// Login requests that have not been sent.
    requests: Vec<Vec<u8>>,
    received: Vec<u8>,
    /// When each PDU came, and its opcode.
    pdus: Vec<(u64, u8)>,
    closed_at_ms: Option<u64>,
}

/// A Login Request (RFC 7143 section 11.12) from one stage to the next.
fn login_request(stages: u8, text: &str) -> Vec<u8> {
    let mut pdu = vec![0u8; 48];
    pdu[0] = 0x43;
    pdu[1] = 0x80 | stages;
    pdu[5..8].copy_from_slice(&(text.len() as u32).to_be_bytes()[1..]);
    pdu[8] = 0x40;
    pdu[27] = 1;
    pdu.extend_from_slice(text.as_bytes());
    pdu.resize(pdu.len().next_multiple_of(4), 0);
    pdu
}

impl Silent {
    fn connect(world: &World, requests: Vec<Vec<u8>>) -> Silent {
        let stream = world.connect(Server::portal()).expect("the server listens");
        let world = world.clone();
        Silent { stream, world, requests, received: Vec::new(), pdus: Vec::new(), closed_at_ms: None }
    }

    fn now_ms(&self) -> u64 {
        self.world.elapsed().0 / 1_000_000
    }

    fn take_pdus(&mut self) {
        while self.received.len() >= 48 {
            let data = u32::from_be_bytes([0, self.received[5], self.received[6], self.received[7]]) as usize;
            let len = 48 + data.next_multiple_of(4);
            if self.received.len() < len {
                return;
            }
            self.pdus.push((self.now_ms(), self.received[0] & 0x3f));
            self.received.drain(..len);
        }
    }

    /// Send the login request whose turn has come.
    fn send_next(&mut self) {
        let answers = self.pdus.iter().filter(|(_, opcode)| *opcode == 0x23).count();
        if let Some(request) = self.requests.get(answers).filter(|request| !request.is_empty()) {
            let written = self.stream.write(request).expect("a login request fits");
            assert_eq!(written, request.len());
            self.requests[answers].clear();
        }
    }

    /// When the first PDU with this opcode came.
    fn first(&self, opcode: u8) -> Option<u64> {
        self.pdus.iter().find(|(_, found)| *found == opcode).map(|(at_ms, _)| *at_ms)
    }
}

impl Runnable for Silent {
    fn turn(&mut self, _wait: Wait) {
        if self.closed_at_ms.is_some() {
            return;
        }
        self.send_next();
        let mut bytes = [0; 4096];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(read @ 1..) => self.received.extend_from_slice(&bytes[..read]),
                Err(StreamError::WouldBlock) => break,
                Ok(0) | Err(_) => {
                    self.closed_at_ms = Some(self.now_ms());
                    break;
                }
            }
        }
        self.take_pdus();
        self.send_next();
    }

    fn is_satisfied(&self) -> bool {
        self.closed_at_ms.is_some()
    }
}

fn served(requests: Vec<Vec<u8>>) -> Silent {
    let world = World::new(11);
    let disk =
        DiskPlan { format: DiskFormat::Null, kind: DiskKind::Dynamic, size_bytes: 1 << 20, sector_size_bytes: 512 };
    let config = ServerConfig {
        shards: 2,
        disks: vec![disk],
        uncached: false,
        memory_bytes: 16 << 20,
        ring_slots: 1024,
        peer_messages_max: None,
    };
    let mut server = Server::start(&world, config).expect("the server starts");
    let mut silent = Silent::connect(&world, requests);
    let mut runnables: Vec<&mut dyn Runnable> = server.shards().collect();
    runnables.push(&mut silent);
    let limit = RunLimit { rounds: 100_000, ..RunLimit::default() };
    let outcome = world.run(&mut runnables, limit);
    assert_eq!(outcome, Outcome::Satisfied, "the server gives up a peer that does nothing");
    silent
}

/// Within the grain to which deadlines are rounded up.
fn assert_about(at_ms: Option<u64>, wanted_ms: u64) {
    let at_ms = at_ms.expect("it happened");
    assert!((wanted_ms..wanted_ms + 2000).contains(&at_ms), "after {at_ms} ms, not {wanted_ms}");
}

#[test]
fn a_silent_initiator_is_pinged_and_then_dropped() {
    let target = Server::target_name();
    let silent = served(vec![
        login_request(
            0x01,
            &format!("InitiatorName=iqn.2026-11.io.lunaring:silent\0TargetName={target}\0AuthMethod=None\0"),
        ),
        login_request(0x07, "HeaderDigest=None\0"),
    ]);
    assert_eq!(silent.pdus.iter().filter(|(_, opcode)| *opcode == 0x23).count(), 2, "two Login Responses");
    assert_about(silent.first(0x20), PING_INTERVAL_MS);
    assert_about(silent.closed_at_ms, PING_INTERVAL_MS + PING_TIMEOUT_MS);
}

#[test]
fn a_connection_without_a_login_is_closed() {
    let silent = served(Vec::new());
    assert!(silent.pdus.is_empty());
    assert_about(silent.closed_at_ms, LOGIN_TIMEOUT_MS);
}

#[test]
fn a_login_that_stops_half_way_is_closed() {
    let target = Server::target_name();
    let text = format!("InitiatorName=iqn.2026-11.io.lunaring:slow\0TargetName={target}\0AuthMethod=None\0");
    let silent = served(vec![login_request(0x01, &text)]);
    assert_eq!(silent.pdus.len(), 1);
    assert_about(silent.closed_at_ms, LOGIN_TIMEOUT_MS);
}
