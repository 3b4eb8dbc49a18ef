//! One session, one call at a time: any CDB with its data, task management, and PDUs with chosen fields.
//!
//! [`Client::run`] is a whole command; [`Client::start`] and [`Client::finish`] are its two halves, for commands that
//! overlap. [`Client::request`] makes any other header with its numbers filled in, to be changed at will and sent over
//! [`Client::wire`]; [`Client::receive`] is what comes next. Slow and simple: for tests, not for load.

use std::io;
use std::net::SocketAddr;

use crate::login::{LoginError, Parameters, Pdu, Wire, Wishes};
use crate::pdu::{self, FINAL, Header, IMMEDIATE, request, response};

/// A session that is used one call at a time.
#[derive(Debug)]
pub struct Client {
    /// The connection. CmdSN and ExpStatSN are kept there.
    pub wire: Wire,
    /// What was negotiated.
    pub parameters: Parameters,
    /// What came and answers no command: Asynchronous Messages, Rejects, answers to raw requests. Oldest first.
    pub events: Vec<Pdu>,
    next_tag: u32,
    tasks: Vec<Task>,
}

/// How a command ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// SCSI status; 0 is GOOD.
    pub status: u8,
    /// iSCSI service response; 0 is "completed at target".
    pub response: u8,
    /// Sense data without its length field; empty when there is none.
    pub sense: Vec<u8>,
    /// What came from the target.
    pub data: Vec<u8>,
    /// Byte 1 of the PDU with the status: the residual bits O (04h) and U (02h) among others.
    pub flags: u8,
    /// Residual Count.
    pub residual: u32,
    /// How many R2Ts came.
    pub r2ts: u32,
}

impl Answer {
    /// Sense key, additional sense code and qualifier, of fixed or descriptor format.
    pub fn sense_triple(&self) -> Option<(u8, u8, u8)> {
        match self.sense.first()? & 0x7f {
            0x70 | 0x71 if self.sense.len() >= 14 => Some((self.sense[2] & 0x0f, self.sense[12], self.sense[13])),
            0x72 | 0x73 if self.sense.len() >= 4 => Some((self.sense[1] & 0x0f, self.sense[2], self.sense[3])),
            _ => None,
        }
    }

    /// The INFORMATION field of fixed-format sense, when it is valid.
    pub fn sense_information(&self) -> Option<u32> {
        let valid = self.sense.len() >= 7 && self.sense[0] & 0x80 != 0;
        valid.then(|| u32::from_be_bytes([self.sense[3], self.sense[4], self.sense[5], self.sense[6]]))
    }
}

#[derive(Debug)]
struct Task {
    tag: u32,
    lun: u16,
    data_out: Vec<u8>,
    answer: Answer,
    ended: bool,
}

impl Client {
    /// Log in.
    pub fn open(portal: SocketAddr, wishes: &Wishes) -> Result<Client, LoginError> {
        let mut wire = Wire::connect(portal, wishes.timeout)?;
        let parameters = wire.login(wishes)?;
        Ok(Client::over(wire, parameters))
    }

    /// Log in, and be told the unit attentions that wait on this logical unit.
    pub fn ready(portal: SocketAddr, wishes: &Wishes, lun: u16) -> Result<Client, LoginError> {
        let mut client = Client::open(portal, wishes)?;
        client.settle(lun)?;
        Ok(client)
    }

    /// A connection that has logged in by other ways.
    pub fn over(wire: Wire, parameters: Parameters) -> Client {
        Client { wire, parameters, events: vec![], next_tag: 1, tasks: vec![] }
    }

    /// TEST UNIT READY until no unit attention is told any more; the additional sense codes that were.
    pub fn settle(&mut self, lun: u16) -> io::Result<Vec<(u8, u8)>> {
        let mut told = vec![];
        for _ in 0..16 {
            match self.bare(lun, &[0; 6])?.sense_triple() {
                Some((6, code, qualifier)) => told.push((code, qualifier)),
                _ => return Ok(told),
            }
        }
        Err(io::Error::other(format!("unit attentions without end: {told:x?}")))
    }

    /// A command without data.
    pub fn bare(&mut self, lun: u16, cdb: &[u8]) -> io::Result<Answer> {
        self.run(lun, cdb, &[], 0)
    }

    /// A command that returns at most `len` bytes.
    pub fn read(&mut self, lun: u16, cdb: &[u8], len: u32) -> io::Result<Answer> {
        self.run(lun, cdb, &[], len)
    }

    /// A command that takes this data.
    pub fn write(&mut self, lun: u16, cdb: &[u8], data: &[u8]) -> io::Result<Answer> {
        self.run(lun, cdb, data, 0)
    }

    /// Run one command alone, with data to the target or from it. A CDB of more than 16 bytes goes in an additional
    /// header segment.
    pub fn run(&mut self, lun: u16, cdb: &[u8], data_out: &[u8], read_len: u32) -> io::Result<Answer> {
        let tag = self.start(lun, cdb, data_out, read_len)?;
        self.finish(tag)
    }

    /// Send a command with whatever unsolicited data the session allows; its Initiator Task Tag.
    pub fn start(&mut self, lun: u16, cdb: &[u8], data_out: &[u8], read_len: u32) -> io::Result<u32> {
        let parameters = &self.parameters;
        let total = data_out.len();
        let segment = parameters.send_segment_max as usize;
        let first_burst = total.min(parameters.first_burst as usize);
        let immediate = if parameters.immediate_data { first_burst.min(segment) } else { 0 };
        let unsolicited = if parameters.initial_r2t { immediate } else { first_burst };
        let direction = if total > 0 { 0x20 } else { 0 } | if read_len > 0 { 0x40 } else { 0 };
        let last = if unsolicited == immediate { FINAL } else { 0 };
        let expected_len = if total > 0 { total as u32 } else { read_len };
        let mut header =
            self.request(request::SCSI_COMMAND, last | direction | 1).with_lun(lun).with_word(20, expected_len);
        let (short, long) = cdb.split_at(cdb.len().min(16));
        header.0[32..32 + short.len()].copy_from_slice(short);
        let tag = header.task_tag();
        let ahs = if long.is_empty() { vec![] } else { extended_cdb(long) };
        self.wire.send_with_ahs(header, &ahs, &data_out[..immediate])?;
        let data_out = data_out.to_vec();
        self.tasks.push(Task { tag, lun, data_out, answer: Answer::default(), ended: false });
        if unsolicited > immediate {
            self.data_out(tag, pdu::TAG_NONE, immediate, unsolicited - immediate)?;
        }
        Ok(tag)
    }

    /// Wait for the end of a command that was started. A Reject of one of its PDUs is an error.
    pub fn finish(&mut self, tag: u32) -> io::Result<Answer> {
        loop {
            let at = self.tasks.iter().position(|task| task.tag == tag);
            let at = at.ok_or_else(|| io::Error::other(format!("no command with tag {tag:#x} is underway")))?;
            if self.tasks[at].ended {
                return Ok(self.tasks.swap_remove(at).answer);
            }
            let pdu = self.wire.receive()?;
            if let Some(pdu) = self.take(pdu)? {
                let rejected = pdu.header.opcode() == response::REJECT
                    && Header::parse(&pdu.data).is_some_and(|header| header.task_tag() == tag);
                let reason = pdu.header.0[2];
                self.events.push(pdu);
                if rejected {
                    self.tasks.swap_remove(at);
                    return Err(io::Error::other(format!("Reject, reason {reason:#04x}")));
                }
            }
        }
    }

    /// Forget a command that was started and will not end (aborted).
    pub fn forget(&mut self, tag: u32) {
        self.tasks.retain(|task| task.tag != tag);
    }

    /// The next PDU that does not belong to a started command, or the oldest of [`Client::events`].
    pub fn receive(&mut self) -> io::Result<Pdu> {
        if !self.events.is_empty() {
            return Ok(self.events.remove(0));
        }
        loop {
            let pdu = self.wire.receive()?;
            if let Some(pdu) = self.take(pdu)? {
                return Ok(pdu);
            }
        }
    }

    /// A request's header: a fresh Initiator Task Tag, ExpStatSN, and CmdSN (which is used up unless the opcode has the
    /// immediate bit).
    pub fn request(&mut self, opcode: u8, flags: u8) -> Header {
        let header = Header::new(opcode, flags)
            .with_word(16, self.next_tag)
            .with_word(24, self.wire.cmd_sn)
            .with_word(28, self.wire.exp_stat_sn);
        self.next_tag += 1;
        if opcode & IMMEDIATE == 0 {
            self.wire.cmd_sn = self.wire.cmd_sn.wrapping_add(1);
        }
        header
    }

    /// An immediate task management request (RFC 7143 section 11.5), by function; its response code. `referenced`: the
    /// tag and CmdSN of the task for ABORT TASK.
    pub fn task_management(&mut self, function: u8, lun: u16, referenced: Option<(u32, u32)>) -> io::Result<u8> {
        let (tag, cmd_sn) = referenced.unwrap_or((pdu::TAG_NONE, 0));
        let header = self
            .request(request::TASK_MANAGEMENT | IMMEDIATE, FINAL | function)
            .with_lun(lun)
            .with_word(20, tag)
            .with_word(32, cmd_sn);
        self.wire.send(header, &[])?;
        loop {
            let pdu = self.wire.receive()?;
            let Some(pdu) = self.take(pdu)? else { continue };
            if pdu.header.opcode() == response::TASK_MANAGEMENT && pdu.header.task_tag() == header.task_tag() {
                return Ok(pdu.header.0[2]);
            }
            self.events.push(pdu);
        }
    }

    /// A sequence of Data-Out PDUs of a started command.
    pub fn data_out(&mut self, tag: u32, transfer_tag: u32, offset: usize, len: usize) -> io::Result<()> {
        let Some(task) = self.tasks.iter().find(|task| task.tag == tag) else { return Ok(()) };
        let end = (offset + len).min(task.data_out.len());
        let (mut at, mut data_sn) = (offset, 0);
        while at < end {
            let part = (end - at).min(self.parameters.send_segment_max as usize);
            let header = Header::new(request::DATA_OUT, if at + part == end { FINAL } else { 0 })
                .with_lun(task.lun)
                .with_word(16, tag)
                .with_word(20, transfer_tag)
                .with_word(28, self.wire.exp_stat_sn)
                .with_word(36, data_sn)
                .with_word(40, at as u32);
            self.wire.send(header, &task.data_out[at..at + part])?;
            at += part;
            data_sn += 1;
        }
        Ok(())
    }

    /// What a PDU means to the started commands; handed back when it is for none of them.
    fn take(&mut self, pdu: Pdu) -> io::Result<Option<Pdu>> {
        let header = pdu.header;
        if header.opcode() == response::NOP_IN && header.task_tag() == pdu::TAG_NONE && header.word(20) != pdu::TAG_NONE
        {
            let answer = Header::new(request::NOP_OUT | IMMEDIATE, FINAL)
                .with_word(16, pdu::TAG_NONE)
                .with_word(20, header.word(20))
                .with_word(24, self.wire.cmd_sn)
                .with_word(28, self.wire.exp_stat_sn);
            self.wire.send(answer, &[])?;
            return Ok(None);
        }
        let Some(task) = self.tasks.iter_mut().find(|task| task.tag == header.task_tag()) else { return Ok(Some(pdu)) };
        match header.opcode() {
            response::DATA_IN => {
                let (at, end) = (header.word(40) as usize, header.word(40) as usize + pdu.data.len());
                task.answer.data.resize(end.max(task.answer.data.len()), 0);
                task.answer.data[at..end].copy_from_slice(&pdu.data);
                if header.flags() & 1 != 0 {
                    (task.answer.status, task.answer.flags) = (header.0[3], header.flags());
                    (task.answer.residual, task.ended) = (header.word(44), true);
                }
            }
            response::SCSI_RESPONSE => {
                (task.answer.response, task.answer.status) = (header.0[2], header.0[3]);
                (task.answer.flags, task.answer.residual) = (header.flags(), header.word(44));
                let sense_len = pdu.data.first_chunk::<2>().map_or(0, |len| usize::from(u16::from_be_bytes(*len)));
                task.answer.sense = pdu.data.get(2..2 + sense_len).unwrap_or_default().to_vec();
                task.ended = true;
            }
            response::R2T => {
                task.answer.r2ts += 1;
                self.data_out(header.task_tag(), header.word(20), header.word(40) as usize, header.word(44) as usize)?;
            }
            _ => return Ok(Some(pdu)),
        }
        Ok(None)
    }
}

/// The additional header segment with what a CDB has beyond 16 bytes (RFC 7143 section 11.2.2.3), padded.
fn extended_cdb(rest: &[u8]) -> Vec<u8> {
    let mut bytes = (rest.len() as u16 + 1).to_be_bytes().to_vec();
    bytes.extend_from_slice(&[1, 0]);
    bytes.extend_from_slice(rest);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}
