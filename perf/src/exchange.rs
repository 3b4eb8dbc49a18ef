//! One session with many commands in flight, without its socket: commands become bytes to send, bytes that arrived
//! become ended commands.
//!
//! [`crate::pipeline`] drives it over a plain socket, [`crate::load`] over [`crate::uring`]. Payload is received either
//! into the command's own buffer or nowhere ([`Want::Discard`]), since a load generator only needs it to have arrived;
//! digests are checked either way.

use std::io;
use std::time::Instant;

use crate::login::{Parameters, Wire};
use crate::pdu::{self, Command, FINAL, HEADER_LEN, Header, IMMEDIATE, request, response};

/// A SCSI command to run.
#[derive(Clone, Debug)]
pub struct Request {
    /// Logical unit.
    pub lun: u16,
    /// The command descriptor block.
    pub cdb: [u8; 16],
    /// Data for the target; empty if none.
    pub data_out: Vec<u8>,
    /// Bytes expected from the target.
    pub read_len: u32,
    /// What becomes of them.
    pub want: Want,
    /// The caller's own mark, handed back.
    pub mark: u64,
}

/// What becomes of Data-In payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// It is counted and dropped.
    Discard,
    /// It is kept and handed back.
    Keep,
}

impl Request {
    /// A command without data.
    pub fn bare(lun: u16, opcode: u8) -> Request {
        let mut cdb = [0; 16];
        cdb[0] = opcode;
        Request { lun, cdb, data_out: vec![], read_len: 0, want: Want::Discard, mark: 0 }
    }

    /// A command that returns a parameter list of at most `len` bytes.
    pub fn reading(lun: u16, cdb: &[u8], len: u32) -> Request {
        let mut bytes = [0; 16];
        bytes[..cdb.len()].copy_from_slice(cdb);
        Request { lun, cdb: bytes, data_out: vec![], read_len: len, want: Want::Keep, mark: 0 }
    }
}

/// A command that ended.
#[derive(Debug)]
pub struct Done {
    /// The caller's mark.
    pub mark: u64,
    /// SCSI status; 0 is GOOD.
    pub status: u8,
    /// Sense data; empty when there is none.
    pub sense: Vec<u8>,
    /// Payload received, if it was wanted.
    pub data: Vec<u8>,
    /// How many payload bytes arrived.
    pub received: u32,
    /// When the command was queued.
    pub started: Instant,
    /// The data that was sent, handed back for reuse.
    pub data_out: Vec<u8>,
}

impl Done {
    /// Sense key, additional sense code and qualifier of fixed-format sense, if any.
    pub fn sense_triple(&self) -> Option<(u8, u8, u8)> {
        (self.sense.len() >= 14).then(|| (self.sense[2] & 0x0f, self.sense[12], self.sense[13]))
    }
}

#[derive(Debug)]
struct Slot {
    busy: bool,
    lun: u16,
    want: Want,
    mark: u64,
    read_len: u32,
    received: u32,
    data: Vec<u8>,
    data_out: Vec<u8>,
    started: Instant,
}

/// Bytes of output that a session's buffer holds before it grows.
const OUT_LEN: usize = 64 * 1024;

/// Where the receive stream stands.
#[derive(Clone, Copy, Debug)]
enum Stream {
    /// At the head of a PDU.
    Header,
    /// Inside a Data-In segment: what is left of it, and where it goes.
    Payload { header: Header, left: usize, at: usize },
    /// After a segment: padding and digest.
    Trailer { header: Header },
}

/// A logged-in session's state.
#[derive(Debug)]
pub struct Exchange {
    /// What was negotiated.
    pub parameters: Parameters,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Bytes to be sent; whoever sends them takes them out.
    pub out: Vec<u8>,
    stream: Stream,
    crc: u32,
    cmd_sn: u32,
    exp_stat_sn: u32,
    max_cmd_sn: u32,
    /// The time that [`Exchange::start`] notes as a command's beginning.
    pub now: Instant,
    /// The last asynchronous message's event code, if one came.
    pub async_event: Option<u8>,
    /// Rejects received.
    pub rejects: u64,
}

impl Exchange {
    /// The session that just logged in on this connection; at most `depth` commands will be in flight.
    pub fn new(wire: &Wire, parameters: Parameters, depth: u32) -> Exchange {
        let now = Instant::now();
        let slot = || Slot {
            busy: false,
            lun: 0,
            want: Want::Discard,
            mark: 0,
            read_len: 0,
            received: 0,
            data: vec![],
            data_out: vec![],
            started: now,
        };
        Exchange {
            parameters,
            slots: (0..depth).map(|_| slot()).collect(),
            free: (0..depth).rev().collect(),
            out: Vec::with_capacity(OUT_LEN),
            stream: Stream::Header,
            crc: 0,
            cmd_sn: wire.cmd_sn,
            exp_stat_sn: wire.exp_stat_sn,
            max_cmd_sn: wire.cmd_sn.wrapping_add(depth),
            now,
            async_event: None,
            rejects: 0,
        }
    }

    /// How many commands are in flight.
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether another command can start: a free slot, and room in the target's command window.
    pub fn has_room(&self) -> bool {
        !self.free.is_empty() && (self.max_cmd_sn.wrapping_sub(self.cmd_sn) as i32) >= 0
    }

    /// Append a command to what is to be sent. Call only while [`Exchange::has_room`].
    pub fn start(&mut self, request: Request) {
        let Some(tag) = self.free.pop() else { return };
        let parameters = &self.parameters;
        let total = request.data_out.len();
        let immediate = if parameters.immediate_data {
            total.min(parameters.first_burst.min(parameters.send_segment_max) as usize)
        } else {
            0
        };
        let unsolicited = if parameters.initial_r2t { immediate } else { total.min(parameters.first_burst as usize) };
        let command = Command {
            lun: request.lun,
            cdb: request.cdb,
            task_tag: tag,
            cmd_sn: self.cmd_sn,
            exp_stat_sn: self.exp_stat_sn,
            expected_len: if total > 0 { total as u32 } else { request.read_len },
            read: request.read_len > 0,
            write: total > 0,
            last: unsolicited == immediate,
        };
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        let (header_digest, data_digest) = (parameters.header_digest, parameters.data_digest);
        pdu::append(&mut self.out, command.header(), &request.data_out[..immediate], header_digest, data_digest);
        let slot = &mut self.slots[tag as usize];
        slot.busy = true;
        slot.lun = request.lun;
        slot.want = request.want;
        slot.mark = request.mark;
        slot.read_len = request.read_len;
        slot.received = 0;
        slot.data_out = request.data_out;
        slot.started = self.now;
        slot.data.clear();
        if request.want == Want::Keep {
            slot.data.resize(request.read_len as usize, 0);
        }
        if unsolicited > immediate {
            self.data_out(tag, pdu::TAG_NONE, immediate, unsolicited - immediate);
        }
    }

    /// Queue a burst of Data-Out PDUs.
    fn data_out(&mut self, tag: u32, transfer_tag: u32, offset: usize, len: usize) {
        let slot = &self.slots[tag as usize];
        let end = (offset + len).min(slot.data_out.len());
        let (mut at, mut data_sn) = (offset, 0);
        while at < end {
            let part = (end - at).min(self.parameters.send_segment_max as usize);
            let header = Header::new(request::DATA_OUT, if at + part == end { FINAL } else { 0 })
                .with_lun(slot.lun)
                .with_word(16, tag)
                .with_word(20, transfer_tag)
                .with_word(28, self.exp_stat_sn)
                .with_word(36, data_sn)
                .with_word(40, at as u32);
            let (header_digest, data_digest) = (self.parameters.header_digest, self.parameters.data_digest);
            pdu::append(&mut self.out, header, &slot.data_out[at..at + part], header_digest, data_digest);
            at += part;
            data_sn += 1;
        }
    }

    /// Handle bytes that arrived, and hand over what ended. How many are used up; the rest wants more behind it.
    pub fn receive(&mut self, bytes: &[u8], done: &mut Vec<Done>) -> io::Result<usize> {
        let mut at = 0;
        while let Some(used) = self.step(&bytes[at..], done)? {
            at += used;
        }
        Ok(at)
    }

    /// Take one step through the received bytes: how many it took; none when more are needed.
    fn step(&mut self, bytes: &[u8], done: &mut Vec<Done>) -> io::Result<Option<usize>> {
        let header = match self.stream {
            Stream::Header => match Header::parse(bytes) {
                Some(header) => header,
                None => return Ok(None),
            },
            Stream::Payload { header, left, at } => return Ok(self.take_payload(bytes, header, left, at)),
            Stream::Trailer { header } => return self.take_trailer(bytes, header, done),
        };
        let digest_len = if self.parameters.header_digest { 4 } else { 0 };
        let head = HEADER_LEN + header.ahs_len();
        let start = head + digest_len;
        if bytes.len() < start {
            return Ok(None);
        }
        if digest_len > 0 && pdu::digest(&[&bytes[..head]]) != bytes[head..start] {
            return Err(io::Error::other("wrong header digest from the target"));
        }
        if header.opcode() == response::DATA_IN {
            self.check_data_in(&header)?;
            self.crc = 0;
            self.stream = Stream::Payload { header, left: header.data_len(), at: header.word(40) as usize };
            return Ok(Some(start));
        }
        let padded = header.data_len() + pdu::pad_len(header.data_len());
        let trailer = if self.parameters.data_digest && padded > 0 { 4 } else { 0 };
        if bytes.len() < start + padded + trailer {
            return Ok(None);
        }
        let segment = &bytes[start..start + padded];
        if trailer > 0 && pdu::digest(&[segment]) != bytes[start + padded..start + padded + 4] {
            return Err(io::Error::other("wrong data digest from the target"));
        }
        self.handle(&header, &segment[..header.data_len()], done)?;
        Ok(Some(start + padded + trailer))
    }

    fn take_payload(&mut self, bytes: &[u8], header: Header, left: usize, at: usize) -> Option<usize> {
        let part = left.min(bytes.len());
        if part == 0 && left > 0 {
            return None;
        }
        let bytes = &bytes[..part];
        if self.parameters.data_digest {
            self.crc = pdu::crc_append(self.crc, bytes);
        }
        let slot = &mut self.slots[header.task_tag() as usize];
        if slot.want == Want::Keep {
            slot.data[at..at + part].copy_from_slice(bytes);
        }
        slot.received += part as u32;
        self.stream = if part == left {
            Stream::Trailer { header }
        } else {
            Stream::Payload { header, left: left - part, at: at + part }
        };
        Some(part)
    }

    fn take_trailer(&mut self, bytes: &[u8], header: Header, done: &mut Vec<Done>) -> io::Result<Option<usize>> {
        let pad = pdu::pad_len(header.data_len());
        let digest_len = if self.parameters.data_digest && header.data_len() > 0 { 4 } else { 0 };
        if bytes.len() < pad + digest_len {
            return Ok(None);
        }
        if digest_len > 0 && pdu::crc_append(self.crc, &bytes[..pad]).to_le_bytes() != bytes[pad..pad + 4] {
            return Err(io::Error::other("wrong data digest from the target"));
        }
        self.stream = Stream::Header;
        if header.flags() & 1 != 0 {
            self.exp_stat_sn = header.stat_sn().wrapping_add(1);
            self.finish(header.task_tag(), header.0[3], vec![], done);
        }
        self.max_cmd_sn = newest(self.max_cmd_sn, header.max_cmd_sn());
        Ok(Some(pad + digest_len))
    }

    fn check_data_in(&self, header: &Header) -> io::Result<()> {
        let end = header.word(40) as usize + header.data_len();
        match self.slots.get(header.task_tag() as usize) {
            Some(slot) if slot.busy && end <= slot.read_len as usize => Ok(()),
            Some(slot) if slot.busy => Err(io::Error::other(format!("Data-In up to byte {end} of {}", slot.read_len))),
            _ => Err(io::Error::other(format!("Data-In for a task that is not there: {:#x}", header.task_tag()))),
        }
    }

    fn handle(&mut self, header: &Header, data: &[u8], done: &mut Vec<Done>) -> io::Result<()> {
        self.max_cmd_sn = newest(self.max_cmd_sn, header.max_cmd_sn());
        let tag = header.task_tag();
        match header.opcode() {
            response::SCSI_RESPONSE => {
                self.exp_stat_sn = header.stat_sn().wrapping_add(1);
                if self.slots.get(tag as usize).is_none_or(|slot| !slot.busy) {
                    return Err(io::Error::other(format!("a response for a task that is not there: {tag:#x}")));
                }
                if header.0[2] != 0 {
                    return Err(io::Error::other(format!("SCSI Response with response code {:#x}", header.0[2])));
                }
                let sense = if data.len() > 2 { data[2..].to_vec() } else { vec![] };
                self.finish(tag, header.0[3], sense, done);
            }
            response::R2T => {
                if self.slots.get(tag as usize).is_none_or(|slot| !slot.busy) {
                    return Err(io::Error::other(format!("R2T for a task that is not there: {tag:#x}")));
                }
                self.data_out(tag, header.word(20), header.word(40) as usize, header.word(44) as usize);
            }
            response::NOP_IN => {
                if header.word(20) == pdu::TAG_NONE {
                    self.exp_stat_sn = header.stat_sn().wrapping_add(1);
                } else {
                    let answer = Header::new(request::NOP_OUT | IMMEDIATE, FINAL)
                        .with_word(16, pdu::TAG_NONE)
                        .with_word(20, header.word(20))
                        .with_word(24, self.cmd_sn)
                        .with_word(28, self.exp_stat_sn);
                    pdu::append(&mut self.out, answer, &[], self.parameters.header_digest, false);
                }
            }
            response::ASYNC_MESSAGE => {
                self.exp_stat_sn = header.stat_sn().wrapping_add(1);
                self.async_event = Some(header.0[36]);
            }
            response::REJECT => {
                self.exp_stat_sn = header.stat_sn().wrapping_add(1);
                self.rejects += 1;
                return Err(io::Error::other(format!("Reject, reason {:#04x}", header.0[2])));
            }
            other => return Err(io::Error::other(format!("opcode {other:#04x} from the target"))),
        }
        Ok(())
    }

    fn finish(&mut self, tag: u32, status: u8, sense: Vec<u8>, done: &mut Vec<Done>) {
        let slot = &mut self.slots[tag as usize];
        slot.busy = false;
        done.push(Done {
            mark: slot.mark,
            status,
            sense,
            data: std::mem::take(&mut slot.data),
            received: slot.received,
            started: slot.started,
            data_out: std::mem::take(&mut slot.data_out),
        });
        self.free.push(tag);
    }
}

/// The later of two serial numbers (RFC 1982, as RFC 7143 section 4.2.2 asks).
fn newest(a: u32, b: u32) -> u32 {
    if (b.wrapping_sub(a) as i32) > 0 { b } else { a }
}
