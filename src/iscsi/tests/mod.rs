//! The connection from the outside: an initiator's bytes in, a target's bytes out. Digests are made and checked with
//! another implementation than the engine's.

mod commands;
mod mutation;
mod other_requests;
mod reads;
mod recovery;
mod replay;
mod task_management;
mod writes;

use super::connection::Connection;
use super::pdu::{Bhs, DataOut, Opcode, TAG_RESERVED, flags, pad_len};
use super::receive::{Event, Receive};
use super::refusal::Refusal;
use super::session::{SessionParameters, SessionType};
use super::transfer::TaskId;
use super::transmit::{Ending, Transmit};
use crate::crc32c::crc32c;
use core::cell::Cell;
use core::ops::Range;

const LUN_1: [u8; 8] = [0, 1, 0, 0, 0, 0, 0, 0];
const LUN_2: [u8; 8] = [0, 2, 0, 0, 0, 0, 0, 0];
const NOW_MS: u64 = 1_000;

/// A session whose lengths are small enough to see every rule at work.
fn parameters() -> SessionParameters {
    SessionParameters {
        session_type: SessionType::Normal,
        connection_id: 7,
        header_digest: false,
        data_digest: false,
        max_recv_data_segment_length: 8192,
        initiator_max_recv_data_segment_length: 1024,
        max_burst_length: 4096,
        first_burst_length: 2048,
        initial_r2t: false,
        immediate_data: true,
        max_outstanding_r2t: 2,
        fast_abort: false,
        error_recovery_level: 0,
        connections_max: 1,
        default_time2wait: 2,
        default_time2retain: 20,
        exp_cmd_sn: 100,
        stat_sn: 500,
        ping_interval_ms: 5_000,
        ping_timeout_ms: 3_000,
    }
}

/// What was sent, and the payload of the call in hand.
#[derive(Default)]
struct Sink {
    bytes: Vec<u8>,
    payload: Vec<u8>,
    /// How many PDUs may still go. The engine asks for room exactly once before each.
    pdus_left: Cell<Option<usize>>,
}

impl Transmit for Sink {
    fn room(&self, _header_bytes: usize, payload: Range<usize>) -> bool {
        assert!(payload.end <= self.payload.len());
        match self.pdus_left.get() {
            Some(0) => false,
            left => {
                self.pdus_left.set(left.map(|left| left - 1));
                true
            }
        }
    }
    fn bytes(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }
    fn payload(&mut self, range: Range<usize>) {
        let payload = &self.payload[range];
        self.bytes.extend_from_slice(payload);
    }
    fn payload_digest(&mut self, range: Range<usize>) -> u32 {
        crc32c(&self.payload[range])
    }
    fn copy_payload(&self, range: Range<usize>, into: &mut [u8]) {
        into.copy_from_slice(&self.payload[range]);
    }
}

/// A PDU as it came out.
#[derive(Debug, PartialEq)]
struct Sent {
    bhs: Bhs,
    data: Vec<u8>,
}

/// An event with the data it came with.
#[derive(Debug, PartialEq)]
struct Got {
    event: Event,
    data: Vec<u8>,
}

/// Both ends of a connection: the engine, and what an initiator keeps.
struct Session {
    connection: Connection,
    sink: Sink,
    cmd_sn: u32,
    next_tag: u32,
    /// Bytes that arrive at once; everything, when zero.
    chunk: usize,
    stream: Vec<u8>,
}

impl Session {
    fn new(parameters: SessionParameters) -> Self {
        Self {
            connection: Connection::new(parameters, NOW_MS),
            sink: Sink::default(),
            cmd_sn: parameters.exp_cmd_sn,
            next_tag: 0x1000,
            chunk: 0,
            stream: Vec::new(),
        }
    }

    fn p(&self) -> SessionParameters {
        *self.connection.parameters()
    }

    fn tag(&mut self) -> u32 {
        self.next_tag += 1;
        self.next_tag
    }

    /// The PDU's bytes, with the digests of this session.
    fn wire(&self, mut bhs: Bhs, ahs: &[u8], data: &[u8]) -> Vec<u8> {
        bhs.0[4] = (ahs.len() / 4) as u8;
        bhs.set_data_segment_len(data.len());
        let mut bytes = bhs.0.to_vec();
        bytes.extend_from_slice(ahs);
        if self.p().header_digest {
            bytes.extend_from_slice(&::crc32c::crc32c(&bytes).to_le_bytes());
        }
        let mut padded = data.to_vec();
        padded.resize(data.len() + pad_len(data.len()), 0);
        bytes.extend_from_slice(&padded);
        if self.p().data_digest && !data.is_empty() {
            bytes.extend_from_slice(&::crc32c::crc32c(&padded).to_le_bytes());
        }
        bytes
    }

    /// A SCSI Command in the CmdSN order; `flag` as F, R, W and ATTR.
    fn command(&mut self, flag: u8, length: u32) -> Bhs {
        let mut bhs = Bhs::new(Opcode::SCSI_COMMAND, flag | 1);
        bhs.set_bytes(8, &LUN_1);
        bhs.set_u32(16, self.tag());
        bhs.set_u32(20, length);
        bhs.set_u32(24, self.cmd_sn);
        bhs.set_u32(28, self.p().stat_sn);
        bhs.0[32] = 0x28;
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        bhs
    }

    fn read(&mut self, length: u32) -> Bhs {
        self.command(flags::FINAL | flags::READ, length)
    }

    fn write(&mut self, length: u32) -> Bhs {
        self.command(flags::FINAL | flags::WRITE, length)
    }

    /// Another request, in order or immediate.
    fn request(&mut self, opcode: Opcode, byte1: u8, immediate: bool) -> Bhs {
        let mut bhs = Bhs::new(opcode, flags::FINAL | byte1);
        bhs.set_u32(16, self.tag());
        bhs.set_u32(20, TAG_RESERVED);
        bhs.set_u32(24, self.cmd_sn);
        bhs.set_u32(28, self.p().stat_sn);
        if immediate {
            bhs.0[0] |= 0x40;
        } else {
            self.cmd_sn = self.cmd_sn.wrapping_add(1);
        }
        bhs
    }

    /// Let bytes arrive, and give every event that has come of them, the ones of `poll_ready` included.
    fn arrive(&mut self, bytes: &[u8]) -> Result<Vec<Got>, Refusal> {
        let chunk = if self.chunk == 0 { bytes.len() } else { self.chunk };
        let mut got = Vec::new();
        for piece in bytes.chunks(chunk.max(1)) {
            self.stream.extend_from_slice(piece);
            while let Some(one) = self.turn()? {
                got.extend(one);
            }
        }
        Ok(got)
    }

    /// One PDU of the stream; `None` when more bytes are needed.
    fn turn(&mut self) -> Result<Option<Vec<Got>>, Refusal> {
        let mut got = Vec::new();
        let (event, data) = match self.connection.receive(&self.stream, NOW_MS)? {
            Receive::NeedBytes(need) => {
                assert!(need > self.stream.len() && need <= 48 + 1020 + 4 + (1 << 24) + 7);
                return Ok(None);
            }
            Receive::Pdu { len, event, data } => {
                let rest = self.stream.split_off(len);
                let pdu = core::mem::replace(&mut self.stream, rest);
                (event, pdu[data].to_vec())
            }
            Receive::Bulk { .. } => panic!("only the bulk test gives large PDUs in pieces"),
        };
        if event != Event::Handled {
            got.push(Got { event, data });
        }
        self.connection.check_invariants();
        while let Some(event) = self.connection.poll_ready() {
            got.push(Got { event, data: Vec::new() });
        }
        self.connection.check_invariants();
        Ok(Some(got))
    }

    /// One request arrives, with data.
    fn send(&mut self, bhs: Bhs, data: &[u8]) -> Vec<Got> {
        let bytes = self.wire(bhs, &[], data);
        self.arrive(&bytes).expect("the connection lives")
    }

    /// The one event that a request gives.
    fn event(&mut self, bhs: Bhs, data: &[u8]) -> Event {
        let mut got = self.send(bhs, data);
        assert_eq!(got.len(), 1, "{got:?}");
        got.remove(0).event
    }

    /// A command arrives in order and is given to the shard.
    fn start(&mut self, bhs: Bhs, data: &[u8]) -> TaskId {
        match self.event(bhs, data) {
            Event::Command { task } => task,
            event => panic!("{event:?}"),
        }
    }

    /// A Data-Out of a command.
    fn data_out(&self, command: &Bhs, ttt: u32, data_sn: u32, offset: u32, is_final: bool) -> Bhs {
        let mut bhs = Bhs::new(Opcode::DATA_OUT, if is_final { flags::FINAL } else { 0 });
        bhs.set_bytes(8, &LUN_1);
        bhs.set_u32(16, command.initiator_task_tag());
        bhs.set_u32(20, ttt);
        bhs.set_u32(28, self.p().stat_sn);
        bhs.set_u32(36, data_sn);
        bhs.set_u32(40, offset);
        assert!(DataOut::parse(&bhs).is_ok());
        bhs
    }

    /// Send a GOOD response to a task.
    fn good(&mut self, task: TaskId, transfer_length: u64) -> Sent {
        assert!(self.connection.send_response(task, Ending::good(transfer_length), &[], &mut self.sink));
        self.only_sent()
    }

    /// Everything the engine has sent since the last call, its own answers included.
    fn sent(&mut self) -> Vec<Sent> {
        assert!(self.connection.poll_transmit(&mut self.sink));
        assert!(!self.connection.wants_transmit());
        self.connection.check_invariants();
        let bytes = core::mem::take(&mut self.sink.bytes);
        let mut rest = &bytes[..];
        let mut sent = Vec::new();
        while !rest.is_empty() {
            let bhs = *Bhs::from_prefix(rest).expect("a whole header");
            rest = &rest[48..];
            if self.p().header_digest {
                assert_eq!(rest[..4], ::crc32c::crc32c(&bhs.0).to_le_bytes());
                rest = &rest[4..];
            }
            let len = bhs.data_segment_len();
            let padded = len + pad_len(len);
            assert!(rest[len..padded].iter().all(|byte| *byte == 0));
            if self.p().data_digest && len > 0 {
                assert_eq!(rest[padded..padded + 4], ::crc32c::crc32c(&rest[..padded]).to_le_bytes());
            }
            sent.push(Sent { bhs, data: rest[..len].to_vec() });
            rest = &rest[padded + if self.p().data_digest && len > 0 { 4 } else { 0 }..];
        }
        sent
    }

    fn only_sent(&mut self) -> Sent {
        let mut sent = self.sent();
        assert_eq!(sent.len(), 1, "{sent:?}");
        sent.remove(0)
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

impl Sent {
    fn opcode(&self) -> Opcode {
        self.bhs.opcode()
    }
    fn stat_sn(&self) -> u32 {
        self.bhs.u32_at(24)
    }
    fn exp_cmd_sn(&self) -> u32 {
        self.bhs.u32_at(28)
    }
    fn max_cmd_sn(&self) -> u32 {
        self.bhs.u32_at(32)
    }
}
