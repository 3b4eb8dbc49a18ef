//! A target just large enough to show what the initiator accepts, and what it does not.
//!
//! One connection at a time, one disk in memory, no error handling; with a planted bug on request.

use std::collections::BTreeMap;

use super::pdu::{Digests, FINAL, NO_TAG, Pdu, response};
use super::{Initiator, InitiatorConfig, Keeping, LunPlan};
use crate::mem::{Arena, ArenaConfig};
use crate::ring::{Fd, Nanos, Op, Ring, SendBatch, Tag, Wait, Window};
use crate::sim::{Chance, NetworkFaults, Outcome, RunLimit, Runnable, SimRing, World, WorldConfig};

/// What this target does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    None,
    /// A write is answered and forgotten.
    LosesAWrite,
    /// One byte of what is read is wrong.
    FlipsABit,
    /// A StatSN is left out.
    SkipsStatSn,
    /// The last Data-In is cut short, with GOOD and no residual.
    HidesAResidual,
    /// A data digest is wrong.
    WrongDigest,
    /// A PDU is larger than the initiator declared.
    LargeSegment,
    /// A data offset is wrong.
    WrongOffset,
}

struct SmallTarget {
    ring: SimRing,
    arena: Arena,
    socket: Option<Fd>,
    rx: Vec<u8>,
    tx: Vec<u8>,
    sending: bool,
    disk: Vec<u8>,
    digests: Digests,
    segment_length_max: usize,
    stat_sn: u32,
    exp_cmd_sn: u32,
    writes: BTreeMap<u32, (usize, Vec<u8>)>,
    is_full_feature: bool,
    is_leaving: bool,
    bug: Bug,
    countdown: u32,
}

const BLOCKS: usize = 1024;
const ATTENTION: [u8; 18] = [0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x29, 0, 0, 0, 0, 0];

impl SmallTarget {
    fn new(world: &World, bug: Bug) -> SmallTarget {
        let mut ring = world.ring(16);
        let listener = world.listen(portal());
        assert!(ring.submit(Tag(1), Op::Accept { listener }).is_ok());
        let arena = Arena::new(ArenaConfig { bytes_max: 16 << 20, hugepages: false }).expect("address space");
        SmallTarget {
            ring,
            arena,
            socket: None,
            rx: Vec::new(),
            tx: Vec::new(),
            sending: false,
            disk: vec![0; BLOCKS * 512],
            digests: Digests::default(),
            segment_length_max: 0,
            stat_sn: 77,
            exp_cmd_sn: 0,
            writes: BTreeMap::new(),
            is_full_feature: false,
            is_leaving: false,
            bug,
            countdown: 20,
        }
    }

    fn is_now(&mut self, bug: Bug) -> bool {
        if self.bug == bug {
            self.countdown = self.countdown.saturating_sub(1);
        }
        self.bug == bug && self.countdown == 0
    }

    fn answer(&mut self, pdu: Pdu, has_status: bool) {
        let pdu =
            pdu.set_word(24, self.stat_sn).set_word(28, self.exp_cmd_sn).set_word(32, self.exp_cmd_sn.wrapping_add(8));
        pdu.encode(self.digests, &mut self.tx);
        self.stat_sn = self.stat_sn.wrapping_add(u32::from(has_status));
        if has_status && self.is_now(Bug::SkipsStatSn) {
            self.stat_sn = self.stat_sn.wrapping_add(1);
        }
    }

    fn handle(&mut self, pdu: &Pdu) {
        let tag = pdu.initiator_task_tag();
        match pdu.opcode() {
            0x03 => self.login(pdu),
            0x01 => self.command(pdu),
            0x05 => {
                let at = pdu.word(40) as usize;
                let (lba, data) = self.writes.get_mut(&tag).expect("data follows its command");
                data[at..at + pdu.data.len()].copy_from_slice(&pdu.data);
                let is_whole = pdu.flag(FINAL) && at + pdu.data.len() == data.len();
                let (lba, filled, len) = (*lba, at + pdu.data.len(), data.len());
                if is_whole {
                    self.write(tag, lba);
                } else if pdu.flag(FINAL) {
                    self.ask(tag, filled, len);
                }
            }
            0x00 => {
                let pong = Pdu::new(response::NOP_IN, FINAL).set_word(16, tag).set_word(20, NO_TAG);
                self.answer(pong.with_data(pdu.data.clone()), true);
            }
            0x06 => {
                self.answer(Pdu::new(response::LOGOUT, FINAL).set_word(16, tag), true);
                self.is_leaving = true;
            }
            opcode => panic!("opcode {opcode:#04x}"),
        }
    }

    fn login(&mut self, pdu: &Pdu) {
        let text = String::from_utf8_lossy(&pdu.data).into_owned();
        let value = |key: &str| text.split('\0').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
        self.exp_cmd_sn = pdu.word(24);
        let mut answer = String::new();
        if value("AuthMethod").is_some() {
            answer.push_str("AuthMethod=None\0");
        }
        let mut digests = Digests::default();
        if let Some(segment) = value("MaxRecvDataSegmentLength") {
            self.segment_length_max = segment.parse().expect("a number");
            digests.header = value("HeaderDigest") == Some("CRC32C,None");
            digests.data = value("DataDigest") == Some("CRC32C,None");
            let digest = |on| if on { "CRC32C" } else { "None" };
            answer.push_str(&format!("HeaderDigest={}\0", digest(digests.header)));
            answer.push_str(&format!("DataDigest={}\0InitialR2T=Yes\0", digest(digests.data)));
            answer.push_str("MaxOutstandingR2T=1\0MaxRecvDataSegmentLength=4096\0");
        }
        let response = Pdu::new(response::LOGIN, pdu.bhs[1]).set_bytes(8, &pdu.bhs[8..14]).set_bytes(14, &[0, 1]);
        self.answer(response.set_word(16, pdu.initiator_task_tag()).with_data(answer.into_bytes()), true);
        self.digests = digests;
        self.is_full_feature = pdu.bhs[1] & 3 == 3;
    }

    fn command(&mut self, pdu: &Pdu) {
        let tag = pdu.initiator_task_tag();
        assert_eq!(pdu.word(24), self.exp_cmd_sn);
        self.exp_cmd_sn = self.exp_cmd_sn.wrapping_add(1);
        let cdb = &pdu.bhs[32..48];
        let word = |at: usize| u32::from_be_bytes(std::array::from_fn(|i| cdb[at + i])) as usize;
        let (lba, len) = match cdb[0] >> 5 {
            1 => (word(2), usize::from(u16::from_be_bytes([cdb[7], cdb[8]]))),
            5 => (word(2), word(6)),
            _ => (word(6), word(10)),
        };
        match cdb[0] {
            0x28 | 0xa8 | 0x88 => self.data_in(pdu, self.disk[lba * 512..(lba + len) * 512].to_vec()),
            0x2a | 0xaa | 0x8a => {
                let mut data = vec![0; len * 512];
                data[..pdu.data.len()].copy_from_slice(&pdu.data);
                self.writes.insert(tag, (lba, data));
                if pdu.data.len() == len * 512 {
                    self.write(tag, lba)
                } else {
                    self.ask(tag, pdu.data.len(), len * 512)
                }
            }
            0x12 => self.data_in(pdu, vec![0; 36]),
            0x9e => {
                let mut data = vec![0; 32];
                data[7] = (BLOCKS - 1) as u8;
                data[6] = ((BLOCKS - 1) >> 8) as u8;
                data[10] = 2;
                self.data_in(pdu, data);
            }
            0x00 if self.stat_sn.is_multiple_of(3) => self.status(tag, 2, &ATTENTION),
            _ => self.status(tag, 0, &[]),
        }
    }

    fn status(&mut self, tag: u32, status: u8, sense: &[u8]) {
        let mut response = Pdu::new(response::SCSI_RESPONSE, FINAL).set_word(16, tag);
        response.bhs[3] = status;
        if !sense.is_empty() {
            response.data = [&(sense.len() as u16).to_be_bytes(), sense].concat();
        }
        self.answer(response, true);
    }

    fn ask(&mut self, tag: u32, at: usize, len: usize) {
        let asked = len - at;
        let r2t = Pdu::new(response::R2T, FINAL).set_word(16, tag).set_word(20, 5);
        self.answer(r2t.set_word(40, at as u32).set_word(44, asked as u32), false);
    }

    fn write(&mut self, tag: u32, lba: usize) {
        let (_, data) = self.writes.remove(&tag).expect("a write is finished once");
        if !self.is_now(Bug::LosesAWrite) {
            self.disk[lba * 512..lba * 512 + data.len()].copy_from_slice(&data);
        }
        self.status(tag, 0, &[]);
    }

    fn data_in(&mut self, pdu: &Pdu, mut data: Vec<u8>) {
        let tag = pdu.initiator_task_tag();
        if self.is_now(Bug::FlipsABit) {
            data[100] ^= 4;
        }
        if self.is_now(Bug::HidesAResidual) {
            data.truncate(data.len() - 4);
        }
        let residual = pdu.word(20) as usize - data.len();
        let is_hidden = self.bug == Bug::HidesAResidual && self.countdown == 0;
        let segment = if self.is_now(Bug::LargeSegment) { data.len() } else { self.segment_length_max };
        let count = data.chunks(segment).count();
        for (number, part) in data.chunks(segment).enumerate() {
            let is_last = number + 1 == count;
            let under = if is_last && residual > 0 && !is_hidden { 0x02 } else { 0 };
            let flags = if is_last { FINAL | 0x01 | under } else { 0 };
            let mut at = number * segment;
            if self.is_now(Bug::WrongOffset) {
                at += 4;
            }
            let data_in = Pdu::new(response::DATA_IN, flags).set_word(16, tag).set_word(20, NO_TAG);
            let data_in = data_in.set_word(36, number as u32).set_word(40, at as u32);
            let data_in = data_in.set_word(44, if under > 0 { residual as u32 } else { 0 });
            self.answer(data_in.with_data(part.to_vec()), is_last);
            if self.is_now(Bug::WrongDigest)
                && let Some(byte) = self.tx.last_mut()
            {
                *byte ^= 1;
            }
        }
    }

    fn submit_next(&mut self) {
        let Some(socket) = self.socket else { return };
        if !self.sending && !self.tx.is_empty() {
            let mut batch = SendBatch::new(&self.arena, 4).expect("room");
            let count = self.tx.len().min(4096);
            batch.push_bytes(&self.tx[..count]).expect("room");
            self.sending = self.ring.submit(Tag(3), Op::Send { socket, batch, zero_copy: false }).is_ok();
        }
    }

    fn receive_next(&mut self) {
        if let Some(socket) = self.socket {
            let stream = Window::whole(self.arena.take(4096).expect("room"));
            assert!(self.ring.submit(Tag(2), Op::Recv { socket, bulk: None, stream }).is_ok());
        }
    }
}

impl Runnable for SmallTarget {
    fn turn(&mut self, wait: Wait) {
        while let Some(completion) = self.ring.reap() {
            match (completion.tag.0, completion.op, completion.result) {
                (1, _, Ok(fd)) => {
                    self.socket = Some(Fd(fd as i32));
                    self.receive_next();
                }
                (2, Some(Op::Recv { stream, .. }), Ok(count)) if count > 0 => {
                    self.rx.extend_from_slice(&stream.bytes()[..count as usize]);
                    self.receive_next();
                }
                (3, _, Ok(count)) => {
                    self.tx.drain(..count as usize);
                    self.sending = false;
                    if self.is_leaving && self.tx.is_empty() {
                        let socket = self.socket.expect("it was connected");
                        assert!(self.ring.submit(Tag(4), Op::Shutdown { socket }).is_ok());
                    }
                }
                _ => {}
            }
        }
        loop {
            let digests = if self.is_full_feature { self.digests } else { Digests::default() };
            let Some((pdu, len)) = Pdu::decode(&self.rx, digests).expect("a correct PDU") else { break };
            self.rx.drain(..len);
            self.handle(&pdu);
        }
        self.submit_next();
        self.ring.enter(wait).expect("the process lives");
    }
}

fn portal() -> std::net::SocketAddr {
    "192.0.2.1:3260".parse().expect("an address")
}

fn meet(seed: u64, bug: Bug) -> Result<super::InitiatorReport, String> {
    let network_faults = NetworkFaults::rough();
    let world = World::with_config(seed, WorldConfig { network_faults, ..WorldConfig::default() });
    let mut target = SmallTarget::new(&world, bug);
    let lun = LunPlan {
        lun: 0,
        keeping: Keeping::Always,
        first_sector: 64,
        sector_count: 256,
        may_fail: false,
        thin: false,
        layered: false,
        shared: None,
        copies: false,
        uncached: false,
    };
    let config = InitiatorConfig {
        portal: portal(),
        initiator_name: "iqn.2026-11.test:i".to_owned(),
        target_name: "iqn.2026-11.test:t".to_owned(),
        isid: [0x80, 0, 0, 0, 0, 1],
        luns: vec![lun],
        commands: 150,
        depth: 1,
        transfer_bytes_max: 65_536,
        may_lose_connection: false,
        resets: Chance::NEVER,
        aborts: Chance::NEVER,
        resets_units: false,
        may_lose_commands: false,
        is_strict: false,
    };
    let mut initiator = Initiator::new(&world, config);
    let limit = RunLimit { time: Nanos(60_000_000_000), rounds: 2_000_000 };
    let outcome = world.run(&mut [&mut target, &mut initiator], limit);
    let report = initiator.result()?;
    assert_eq!(outcome, Outcome::Satisfied, "seed {seed}: {initiator:?}");
    Ok(report)
}

#[test]
fn an_honest_target_is_found_right() {
    for seed in 0..20 {
        let report = meet(seed, Bug::None).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        assert!(report.good >= 140 && report.logins == 1 && report.failed == 0, "{report:?}");
    }
}

#[test]
fn every_planted_bug_is_found() {
    let bugs = [
        (Bug::LosesAWrite, "sector"),
        (Bug::FlipsABit, "sector"),
        (Bug::SkipsStatSn, "StatSN"),
        (Bug::HidesAResidual, "residual"),
        (Bug::WrongDigest, "digest"),
        (Bug::LargeSegment, "declared"),
        (Bug::WrongOffset, "DataSN"),
    ];
    for (bug, why) in bugs {
        let mut found = (0..40).filter_map(|seed| meet(seed, bug).err());
        assert!(found.any(|error| error.contains(why)), "{bug:?} was not found for what it is");
    }
}
