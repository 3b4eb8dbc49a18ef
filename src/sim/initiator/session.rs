//! The initiator's full feature phase: commands out, data both ways, and every rule of the answers checked.
//!
//! **May know:** the sibling modules.

use std::collections::{BTreeMap, VecDeque};

use super::command::{Attribute, Burst, Task, Work, status};
use super::login::{Agreed, Offer};
use super::management::Management;
use super::pdu::{FINAL, NO_TAG, Pdu, is_before, request, response};
use crate::sim::Random;

/// Bytes that may wait to be written to the stream before the session makes more.
const TX_BYTES_MAX: usize = 16 * 1024;

/// A command's end.
#[derive(Debug)]
pub(super) struct Ended {
    pub task: Task,
    pub status: u8,
    /// Sense data, as SPC-4 clause 4.5.3 has it.
    pub sense: Vec<u8>,
}

/// What a PDU from the target led to.
#[derive(Debug)]
pub(super) enum Event {
    Nothing,
    Ended(Box<Ended>),
    /// A task management function has ended these.
    Aborted(Vec<Task>),
    LoggedOut,
    /// The answer to a ping of ours.
    Pong,
    /// The target wants the session to end (async events 1 to 3 of RFC 7143 section 11.9.1).
    AskedToLeave,
}

/// One session's state.
#[derive(Debug)]
pub(super) struct Session {
    agreed: Agreed,
    receive_max: usize,
    pub(super) cmd_sn: u32,
    max_cmd_sn: u32,
    exp_cmd_sn: u32,
    exp_stat_sn: u32,
    pub(super) tasks: BTreeMap<u32, Task>,
    pub(super) unsolicited: VecDeque<Burst>,
    pub(super) solicited: Vec<Burst>,
    pub(super) management: Option<Management>,
    /// Other initiators may abort our commands.
    pub(super) may_lose_commands: bool,
    pub tx: Vec<u8>,
    ping: Option<(u32, Vec<u8>)>,
    logout_tag: Option<u32>,
}

impl Session {
    pub fn new(agreed: Agreed, offer: &Offer, cmd_sn: u32, exp_stat_sn: u32) -> Session {
        Session {
            agreed,
            receive_max: offer.max_recv_data_segment_length as usize,
            cmd_sn,
            // Closed until a response tells the window.
            max_cmd_sn: cmd_sn.wrapping_sub(1),
            exp_cmd_sn: cmd_sn,
            exp_stat_sn,
            tasks: BTreeMap::new(),
            unsolicited: VecDeque::new(),
            solicited: Vec::new(),
            management: None,
            may_lose_commands: false,
            tx: Vec::new(),
            ping: None,
            logout_tag: None,
        }
    }

    pub fn agreed(&self) -> &Agreed {
        &self.agreed
    }

    pub fn tasks(&self) -> impl Iterator<Item = &Task> {
        self.tasks.values()
    }

    pub fn task_count(&self) -> usize {
        self.tasks.len()
    }

    pub fn into_tasks(self) -> impl Iterator<Item = Task> {
        self.tasks.into_values()
    }

    /// Learn the command window from a response that carries it.
    pub fn window(&mut self, pdu: &Pdu) -> Result<(), String> {
        let (exp, max) = (pdu.word(28), pdu.word(32));
        if is_before(max.wrapping_add(1), exp) {
            return Err(format!("MaxCmdSN {max} is below ExpCmdSN {exp} - 1"));
        }
        if is_before(self.cmd_sn, exp) {
            return Err(format!("ExpCmdSN {exp}, but the next command is {}", self.cmd_sn));
        }
        if is_before(self.exp_cmd_sn, exp) {
            self.exp_cmd_sn = exp;
        }
        if is_before(self.max_cmd_sn, max) {
            self.max_cmd_sn = max;
        }
        Ok(())
    }

    /// Whether a command may be sent now.
    pub fn is_open(&self) -> bool {
        !is_before(self.max_cmd_sn, self.cmd_sn) && self.tx.len() < TX_BYTES_MAX
    }

    pub(super) fn new_tag(&self, random: &mut Random) -> u32 {
        loop {
            let tag = random.word() as u32;
            if tag != NO_TAG && !self.tasks.contains_key(&tag) {
                return tag;
            }
        }
    }

    pub(super) fn put(&mut self, pdu: Pdu) {
        pdu.set_word(28, self.exp_stat_sn).encode(self.agreed.digests, &mut self.tx);
    }

    /// Send a command to the logical unit numbered `lun`.
    pub fn command(&mut self, unit: usize, lun: u8, work: Work, block_bytes: usize, random: &mut Random) {
        assert!(self.is_open());
        let data_out = work.data_out(block_bytes, random);
        // Now and then a read announces more than its CDB asks for: the answer must tell the residual.
        let is_read = work.read_bytes() > 0;
        let surplus = if is_read && random.below(16) == 0 { 4 * (1 + random.index(300)) } else { 0 };
        let expected_bytes = work.read_bytes() + data_out.len() + surplus;
        let tag = self.new_tag(random);
        // Now and then ORDERED or HEAD OF QUEUE (RFC 7143 section 11.3.1).
        let attribute = match random.below(32) {
            0 => Attribute::HeadOfQueue,
            1 | 2 => Attribute::Ordered,
            _ => Attribute::Simple,
        };
        let mut flags = attribute as u8 | if is_read { 0x40 } else { 0 } | if work.is_write() { 0x20 } else { 0 };
        let (immediate, unsolicited_end) = self.unasked(data_out.len(), random);
        if unsolicited_end > immediate {
            let burst = Burst {
                task_tag: tag,
                target_transfer_tag: NO_TAG,
                lun: [0; 8],
                next: immediate,
                end: unsolicited_end,
                data_sn: 0,
            };
            self.unsolicited.push_back(burst);
        } else {
            flags |= FINAL;
        }
        let pdu = Pdu::new(request::SCSI_COMMAND, flags)
            .set_bytes(8, &[0, lun])
            .set_word(16, tag)
            .set_word(20, expected_bytes as u32)
            .set_word(24, self.cmd_sn)
            .set_bytes(32, &work.cdb(block_bytes, &data_out, random))
            .with_data(data_out[..immediate].to_vec());
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        self.put(pdu);
        let task = Task {
            unit,
            work,
            cmd_sn: self.cmd_sn.wrapping_sub(1),
            attribute,
            expected_bytes,
            data_out,
            granted: unsolicited_end,
            r2ts_open: 0,
            r2t_sn_next: 0,
            data_in: Vec::new(),
            data_sn_next: 0,
        };
        self.tasks.insert(tag, task);
    }

    /// How much of a write goes with the command, and how far what follows unasked goes.
    fn unasked(&self, len: usize, random: &mut Random) -> (usize, usize) {
        let first_burst = len.min(self.agreed.first_burst_length as usize);
        let mut immediate = 0;
        if self.agreed.immediate_data && random.below(4) != 0 {
            immediate = first_burst.min(self.agreed.target_segment_length_max as usize);
        }
        let follows = !self.agreed.initial_r2t && random.below(4) != 0;
        (immediate, if follows { first_burst.max(immediate) } else { immediate })
    }

    /// A ping with some data that must come back.
    pub fn ping(&mut self, random: &mut Random) {
        let mut data = vec![0; random.index(100)];
        random.fill(&mut data);
        let tag = self.new_tag(random);
        let pdu = Pdu::new(request::NOP_OUT | request::IMMEDIATE, FINAL)
            .set_word(16, tag)
            .set_word(20, NO_TAG)
            .set_word(24, self.cmd_sn)
            .with_data(data.clone());
        self.put(pdu);
        self.ping = Some((tag, data));
    }

    /// Whether an answer to something other than a command is awaited.
    pub fn is_waiting(&self) -> bool {
        self.ping.is_some() || self.management.is_some()
    }

    pub fn is_leaving(&self) -> bool {
        self.logout_tag.is_some()
    }

    /// Close the session (reason 0).
    pub fn logout(&mut self, random: &mut Random) {
        let tag = self.new_tag(random);
        self.logout_tag = Some(tag);
        let pdu = Pdu::new(request::LOGOUT | request::IMMEDIATE, FINAL).set_word(16, tag).set_word(24, self.cmd_sn);
        self.put(pdu);
    }

    /// Send some of the data that is due: unasked data in the order of its commands, asked data in any order.
    pub fn send_data(&mut self, random: &mut Random) {
        while self.tx.len() < TX_BYTES_MAX && !(self.unsolicited.is_empty() && self.solicited.is_empty()) {
            let is_unasked = self.solicited.is_empty() || (!self.unsolicited.is_empty() && random.below(2) == 0);
            let at = if is_unasked { 0 } else { random.index(self.solicited.len()) };
            let mut burst = if is_unasked { self.unsolicited[0] } else { self.solicited[at] };
            self.send_piece(&mut burst, random);
            let is_over = burst.next == burst.end;
            match (is_unasked, is_over) {
                (true, true) => drop(self.unsolicited.pop_front()),
                (true, false) => self.unsolicited[0] = burst,
                (false, true) => drop(self.solicited.swap_remove(at)),
                (false, false) => self.solicited[at] = burst,
            }
        }
    }

    fn send_piece(&mut self, burst: &mut Burst, random: &mut Random) {
        // A task that ended early (with an error) still owes nothing but the end of what it had begun.
        let Some(task) = self.tasks.get_mut(&burst.task_tag) else {
            burst.next = burst.end;
            return;
        };
        let mut len = (burst.end - burst.next).min(self.agreed.target_segment_length_max as usize);
        if random.below(4) == 0 {
            // Any length is allowed, not only multiples of four.
            len = 1 + random.index(len);
        }
        let data = task.data_out[burst.next..burst.next + len].to_vec();
        let is_last = burst.next + len == burst.end;
        if is_last && burst.target_transfer_tag != NO_TAG {
            task.r2ts_open -= 1;
        }
        let pdu = Pdu::new(request::DATA_OUT, if is_last { FINAL } else { 0 })
            .set_bytes(8, &burst.lun)
            .set_word(16, burst.task_tag)
            .set_word(20, burst.target_transfer_tag)
            .set_word(36, burst.data_sn)
            .set_word(40, burst.next as u32)
            .with_data(data);
        self.put(pdu);
        burst.next += len;
        burst.data_sn += 1;
    }

    /// Handle a PDU of the target.
    pub fn receive(&mut self, pdu: &Pdu) -> Result<Event, String> {
        if pdu.data.len() > self.receive_max {
            return Err(format!("a data segment of {} bytes, more than we declared", pdu.data.len()));
        }
        self.window(pdu)?;
        match pdu.opcode() {
            response::DATA_IN => self.data_in(pdu),
            response::SCSI_RESPONSE => self.scsi_response(pdu),
            response::R2T => self.ready_to_transfer(pdu),
            response::NOP_IN => self.nop_in(pdu),
            response::TASK_MANAGEMENT => {
                self.status_sn(pdu)?;
                self.managed(pdu).map(Event::Aborted)
            }
            response::LOGOUT => {
                self.status_sn(pdu)?;
                if Some(pdu.initiator_task_tag()) != self.logout_tag || pdu.bhs[2] != 0 {
                    return Err(format!("a logout response that we did not ask for: {:02x?}", pdu.bhs));
                }
                Ok(Event::LoggedOut)
            }
            response::ASYNC_MESSAGE => {
                self.status_sn(pdu)?;
                Ok(if matches!(pdu.bhs[36], 1..=3) { Event::AskedToLeave } else { Event::Nothing })
            }
            response::REJECT => {
                Err(format!("the target rejects, reason {:#04x}, header {:02x?}", pdu.bhs[2], pdu.data))
            }
            opcode => Err(format!("a PDU of opcode {opcode:#04x} that we did not ask for")),
        }
    }

    /// Every status takes the next StatSN (RFC 7143 section 4.2.2.2).
    fn status_sn(&mut self, pdu: &Pdu) -> Result<(), String> {
        if pdu.stat_sn() != self.exp_stat_sn {
            return Err(format!("StatSN {}, expected {}", pdu.stat_sn(), self.exp_stat_sn));
        }
        self.exp_stat_sn = self.exp_stat_sn.wrapping_add(1);
        Ok(())
    }

    fn data_in(&mut self, pdu: &Pdu) -> Result<Event, String> {
        let tag = pdu.initiator_task_tag();
        let task = self.tasks.get_mut(&tag).ok_or_else(|| format!("data for {tag:#x}, which is not running"))?;
        let (data_sn, offset) = (pdu.word(36), pdu.word(40) as usize);
        if data_sn != task.data_sn_next || offset != task.data_in.len() {
            return Err(format!(
                "DataSN {data_sn} at {offset}; expected {} at {}",
                task.data_sn_next,
                task.data_in.len()
            ));
        }
        task.data_sn_next += 1;
        task.data_in.extend_from_slice(&pdu.data);
        if task.data_in.len() > task.work.read_bytes() || task.work.is_write() {
            return Err(format!("{} bytes of data for {:?}", task.data_in.len(), task.work));
        }
        if !pdu.flag(0x01) {
            return Ok(Event::Nothing);
        }
        if !pdu.flag(FINAL) {
            return Err("a Data-In with status and without the final bit".to_owned());
        }
        self.status_sn(pdu)?;
        self.end(pdu, pdu.bhs[3], Vec::new())
    }

    fn scsi_response(&mut self, pdu: &Pdu) -> Result<Event, String> {
        self.status_sn(pdu)?;
        if pdu.bhs[2] != 0 {
            return Err(format!("a SCSI response of code {:#04x}", pdu.bhs[2]));
        }
        let sense = match pdu.data.get(..2) {
            Some(&[high, low]) => {
                let len = usize::from(u16::from_be_bytes([high, low]));
                pdu.data.get(2..2 + len).ok_or("sense data that ends early")?.to_vec()
            }
            _ => Vec::new(),
        };
        // ExpDataSN is zero where no Data-In was sent (RFC 7143 section 11.4.8).
        let data_in = self.tasks.get(&pdu.initiator_task_tag()).map_or(0, |task| task.data_sn_next);
        if pdu.word(36) != data_in && pdu.bhs[3] == status::GOOD {
            return Err(format!("ExpDataSN {}, but {data_in} Data-In came", pdu.word(36)));
        }
        self.end(pdu, pdu.bhs[3], sense)
    }

    fn end(&mut self, pdu: &Pdu, status: u8, sense: Vec<u8>) -> Result<Event, String> {
        let tag = pdu.initiator_task_tag();
        let task = self.tasks.remove(&tag).ok_or_else(|| format!("status for {tag:#x}, which is not running"))?;
        self.unsolicited.retain(|burst| burst.task_tag != tag);
        self.solicited.retain(|burst| burst.task_tag != tag);
        if status == status::GOOD && self.management.is_none() {
            self.check_order(&task)?;
        }
        if status == status::GOOD {
            let is_under = pdu.flag(0x02);
            let residual = if is_under { pdu.word(44) as usize } else { 0 };
            let moved = if task.work.is_write() { task.data_out.len() } else { task.data_in.len() };
            if pdu.flag(0x04) || moved + residual != task.expected_bytes || is_under != (residual > 0) {
                let flags = pdu.bhs[1];
                return Err(format!("{moved} moved, residual {residual}, flags {flags:#04x} for {:?}", task.work));
            }
            if task.work.is_write() && (task.granted < task.data_out.len() || task.r2ts_open > 0) {
                return Err(format!("GOOD for {:?} with data still to come", task.work));
            }
        }
        Ok(Event::Ended(Box::new(Ended { task, status, sense })))
    }

    /// A command has ended that may not have begun before others (SAM-5 clause 8.6).
    fn check_order(&self, ended: &Task) -> Result<(), String> {
        if ended.attribute == Attribute::HeadOfQueue {
            return Ok(());
        }
        let older = self.tasks().filter(|task| task.unit == ended.unit && is_before(task.cmd_sn, ended.cmd_sn));
        let mut wrong =
            older.filter(|task| ended.attribute == Attribute::Ordered || task.attribute == Attribute::Ordered);
        match wrong.next() {
            Some(task) => Err(format!("{ended:?} has ended before {task:?}, which is older")),
            None => Ok(()),
        }
    }

    fn ready_to_transfer(&mut self, pdu: &Pdu) -> Result<Event, String> {
        let tag = pdu.initiator_task_tag();
        let agreed = &self.agreed;
        let task = self.tasks.get_mut(&tag).ok_or_else(|| format!("an R2T for {tag:#x}, which is not running"))?;
        let (r2t_sn, offset, len) = (pdu.word(36), pdu.word(40) as usize, pdu.word(44) as usize);
        let is_in_order = r2t_sn == task.r2t_sn_next && offset == task.granted;
        let fits = len > 0 && len <= agreed.max_burst_length as usize && offset + len <= task.data_out.len();
        task.r2t_sn_next += 1;
        task.r2ts_open += 1;
        if !is_in_order || !fits || task.r2ts_open > agreed.max_outstanding_r2t {
            return Err(format!("an R2T number {r2t_sn} for {len} bytes at {offset} of {task:?}"));
        }
        if pdu.target_transfer_tag() == NO_TAG || pdu.stat_sn() != self.exp_stat_sn {
            return Err(format!("an R2T with a reserved tag or a wrong StatSN: {:02x?}", pdu.bhs));
        }
        task.granted = offset + len;
        let target_transfer_tag = pdu.target_transfer_tag();
        let lun = std::array::from_fn(|i| pdu.bhs[8 + i]);
        self.solicited.push(Burst {
            task_tag: tag,
            target_transfer_tag,
            lun,
            next: offset,
            end: offset + len,
            data_sn: 0,
        });
        Ok(Event::Nothing)
    }

    fn nop_in(&mut self, pdu: &Pdu) -> Result<Event, String> {
        if pdu.initiator_task_tag() == NO_TAG {
            if pdu.target_transfer_tag() != NO_TAG {
                let pong = Pdu::new(request::NOP_OUT | request::IMMEDIATE, FINAL)
                    .set_bytes(8, &pdu.bhs[8..16])
                    .set_word(16, NO_TAG)
                    .set_word(20, pdu.target_transfer_tag())
                    .set_word(24, self.cmd_sn);
                self.put(pong);
            }
            return Ok(Event::Nothing);
        }
        self.status_sn(pdu)?;
        match self.ping.take() {
            Some((tag, data)) if tag == pdu.initiator_task_tag() && data.starts_with(&pdu.data) => {
                if pdu.data.len() != data.len().min(self.receive_max) {
                    return Err("a ping came back shorter".to_owned());
                }
                Ok(Event::Pong)
            }
            ping => Err(format!("a NOP-In that answers no ping ({ping:?}): {:02x?}", pdu.bhs)),
        }
    }
}
