//! A server with one small disk, sessions on it, and logins by hand.

use std::io::ErrorKind::{ConnectionReset, UnexpectedEof};
use std::time::{Duration, Instant};

use perf::client::Client;
use perf::login::{Parameters, Pdu, Wire, Wishes, pairs};
use perf::pdu::{FINAL, Header, IMMEDIATE, cdb, cdb_transfer_16, request, response};

use crate::server::{Options, Server};

/// How long an answer may take, and how long silence is believed.
pub const PATIENCE: Duration = Duration::from_secs(10);
pub const SILENCE: Duration = Duration::from_millis(300);

/// Bytes of a block of the bench's disk.
pub const BLOCK: usize = 512;

/// A server with a disk of 64 MiB in memory as LUN 0 of one target.
pub struct Bench {
    pub server: Server,
    pub iqn: String,
}

impl Bench {
    pub fn start() -> Bench {
        Bench::with_disk(&["--size", "64M", "--format", "memory"])
    }

    /// Two shards, so that two sessions may be on different ones.
    pub fn on_two_shards() -> Bench {
        Bench::with(&["--size", "64M", "--format", "memory"], "0,1")
    }

    pub fn with_disk(disk: &[&str]) -> Bench {
        Bench::with(disk, "0")
    }

    /// On these CPUs, one shard each.
    pub fn with(disk: &[&str], cores: &'static str) -> Bench {
        let server = Server::start_with(Options { cores: Some(cores), ..Options::default() });
        let iqn = server.ready_target("bench", disk);
        Bench { server, iqn }
    }

    pub fn wishes(&self) -> Wishes {
        Wishes { timeout: PATIENCE, ..Wishes::to_target(&self.iqn) }
    }

    /// A session whose unit attentions have been told.
    pub fn client(&self) -> Client {
        self.client_with(&self.wishes())
    }

    pub fn client_with(&self, wishes: &Wishes) -> Client {
        Client::ready(self.server.portals[0], wishes, 0).expect("a session")
    }

    /// A session over a login by hand with these operational keys (`|` between them) beside what a login needs.
    pub fn client_asking(&self, keys: &str) -> (Client, Reply) {
        let mut login = self.login();
        let reply = login.step(1, Some(3), &format!("{}|{keys}", self.leading_keys()));
        assert_eq!(reply.status, 0, "{reply:?}");
        let mut client = login.into_client(&reply);
        client.settle(0).expect("unit attentions are told");
        (client, reply)
    }

    /// A connection before its login.
    pub fn login(&self) -> Login {
        let wire = Wire::connect(self.server.portals[0], PATIENCE).expect("a connection");
        Login { wire, isid: [0x80, 0, 0, 9, 9, 9], tsih: 0, cid: 0, version_min: 0, task_tag: 77 }
    }

    /// What the first Login Request of a normal session must say.
    pub fn leading_keys(&self) -> String {
        format!("InitiatorName=iqn.2026-11.io.lunaring:by-hand|SessionType=Normal|TargetName={}", self.iqn)
    }
}

/// A login by hand.
pub struct Login {
    pub wire: Wire,
    pub isid: [u8; 6],
    pub tsih: u16,
    pub cid: u16,
    pub version_min: u8,
    pub task_tag: u32,
}

/// A Login Response.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Status-Class and Status-Detail.
    pub status: u16,
    pub header: Header,
    pub text: Vec<(String, String)>,
}

impl Reply {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.text.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// The value of a key that must be there.
    pub fn key(&self, key: &str) -> &str {
        self.get(key).unwrap_or_else(|| panic!("no {key}: {self:?}"))
    }

    pub fn tsih(&self) -> u16 {
        u16::from_be_bytes([self.header.0[14], self.header.0[15]])
    }
}

impl Login {
    /// A Login Request's header: current stage, and the next one when transit is asked for.
    pub fn header(&self, current: u8, next: Option<u8>) -> Header {
        let flags = next.map_or(0, |next| FINAL | next) | current << 2;
        let mut header = Header::new(request::LOGIN | IMMEDIATE, flags)
            .with_word(16, self.task_tag)
            .with_word(20, u32::from(self.cid) << 16)
            .with_word(24, self.wire.cmd_sn)
            .with_word(28, self.wire.exp_stat_sn);
        (header.0[2], header.0[3]) = (0, self.version_min);
        header.0[8..14].copy_from_slice(&self.isid);
        header.0[14..16].copy_from_slice(&self.tsih.to_be_bytes());
        header
    }

    /// Send keys (`|` between them) and take the answer.
    pub fn step(&mut self, current: u8, next: Option<u8>, keys: &str) -> Reply {
        self.send(self.header(current, next), keys)
    }

    /// Send this header with keys and take the answer.
    pub fn send(&mut self, header: Header, keys: &str) -> Reply {
        let mut text = keys.replace('|', "\0").into_bytes();
        if !text.is_empty() {
            text.push(0);
        }
        self.wire.send(header, &text).expect("sent");
        self.receive()
    }

    pub fn receive(&mut self) -> Reply {
        let pdu = self.wire.receive().expect("a login response");
        assert_eq!(pdu.header.opcode(), response::LOGIN);
        let text = pairs(&pdu.data).map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        Reply { status: u16::from_be_bytes([pdu.header.0[36], pdu.header.0[37]]), header: pdu.header, text }
    }

    /// The session that a successful final reply has made, with the keys of that reply.
    pub fn into_client(mut self, reply: &Reply) -> Client {
        let number = |key: &str, default: u32| reply.get(key).and_then(|v| v.parse().ok()).unwrap_or(default);
        let parameters = Parameters {
            header_digest: reply.get("HeaderDigest") == Some("CRC32C"),
            data_digest: reply.get("DataDigest") == Some("CRC32C"),
            initial_r2t: reply.get("InitialR2T") != Some("No"),
            immediate_data: reply.get("ImmediateData") != Some("No"),
            first_burst: number("FirstBurstLength", 65536),
            max_burst: number("MaxBurstLength", 262_144),
            send_segment_max: number("MaxRecvDataSegmentLength", 8192),
            tsih: reply.tsih(),
        };
        (self.wire.header_digest, self.wire.data_digest) = (parameters.header_digest, parameters.data_digest);
        Client::over(self.wire, parameters)
    }
}

/// The server has closed the connection: what comes before that is passed over.
pub fn is_closed(wire: &mut Wire) -> bool {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        match wire.receive() {
            Ok(_) => {}
            Err(error) => return matches!(error.kind(), UnexpectedEof | ConnectionReset),
        }
    }
    false
}

/// What comes within a while, if anything.
pub fn shortly(client: &mut Client) -> Option<Pdu> {
    client.wire.socket.set_read_timeout(Some(SILENCE)).expect("a time-out");
    let pdu = client.receive().ok();
    client.wire.socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    pdu
}

/// Nothing comes for a while, and the connection lives.
pub fn is_silent(client: &mut Client) -> bool {
    match shortly(client) {
        None => is_alive(client),
        Some(pdu) => {
            eprintln!("not silent: {:x?} {:x?}", pdu.header.0, pdu.data);
            false
        }
    }
}

/// The connection still answers a ping. What came before is put aside.
pub fn is_alive(client: &mut Client) -> bool {
    let header = client.request(request::NOP_OUT | IMMEDIATE, FINAL).with_word(20, u32::MAX);
    if client.wire.send(header, b"alive?").is_err() {
        return false;
    }
    let mut before = vec![];
    let alive = loop {
        match client.receive() {
            Ok(pdu) if pdu.header.opcode() == response::NOP_IN && pdu.header.task_tag() == header.task_tag() => {
                break true;
            }
            Ok(pdu) => before.push(pdu),
            Err(_) => break false,
        }
    };
    client.events.extend(before);
    alive
}

/// The next PDU, which must be of this kind.
pub fn expect(client: &mut Client, opcode: u8) -> Pdu {
    let pdu = client.receive().expect("a PDU");
    assert_eq!(pdu.header.opcode(), opcode, "{:x?}", pdu.header.0);
    pdu
}

/// The next PDU is a Reject with this reason, of a PDU with this tag.
pub fn expect_reject(client: &mut Client, reason: u8, of: &Header) {
    let pdu = expect(client, response::REJECT);
    assert_eq!(pdu.header.0[2], reason, "reason, {:x?}", pdu.header.0);
    assert_eq!(pdu.data.len(), 48, "section 11.17: the whole header of what is rejected");
    assert_eq!(pdu.data[16..20], of.0[16..20]);
    assert_eq!(pdu.header.task_tag(), u32::MAX);
}

/// A SCSI Command's header with these flags (R 40h, W 20h), length and CDB; CmdSN is taken.
pub fn command(client: &mut Client, flags: u8, len: usize, cdb: &[u8]) -> Header {
    let mut header = client.request(request::SCSI_COMMAND, flags | 1).with_word(20, len as u32);
    header.0[32..32 + cdb.len()].copy_from_slice(cdb);
    header
}

/// A WRITE (16) of so many blocks.
pub fn write_16(lba: u64, blocks: usize) -> [u8; 16] {
    cdb_transfer_16(cdb::WRITE_16, lba, blocks as u32, false)
}

/// A READ (16) of so many blocks.
pub fn read_16(lba: u64, blocks: usize) -> [u8; 16] {
    cdb_transfer_16(cdb::READ_16, lba, blocks as u32, false)
}

/// What is in so many blocks, as another command reads it.
pub fn content(client: &mut Client, lba: u64, blocks: usize) -> Vec<u8> {
    let answer = client.read(0, &read_16(lba, blocks), (blocks * BLOCK) as u32).expect("an answer");
    assert_eq!((answer.status, answer.data.len()), (0, blocks * BLOCK));
    answer.data
}

/// A Data-Out with chosen fields.
pub fn data_out(client: &Client, tag: u32, transfer_tag: u32, data_sn: u32, offset: usize, is_final: bool) -> Header {
    Header::new(request::DATA_OUT, if is_final { FINAL } else { 0 })
        .with_word(16, tag)
        .with_word(20, transfer_tag)
        .with_word(28, client.wire.exp_stat_sn)
        .with_word(36, data_sn)
        .with_word(40, offset as u32)
}

/// Status and sense of a SCSI Response.
pub fn ended(pdu: &Pdu) -> (u8, Option<(u8, u8, u8)>) {
    assert_eq!(pdu.header.opcode(), response::SCSI_RESPONSE, "{:x?}", pdu.header.0);
    let sense = pdu.data.get(2..).filter(|sense| sense.len() >= 14);
    (pdu.header.0[3], sense.map(|sense| (sense[2] & 0x0f, sense[12], sense[13])))
}
