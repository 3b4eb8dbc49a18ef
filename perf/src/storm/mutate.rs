//! Legal PDUs of each phase, and the ways to spoil them.

use crate::login::Wishes;
use crate::pdu::{self, Command, FINAL, HEADER_LEN, Header, IMMEDIATE, request};
use crate::random::Random;

/// Where a connection stands when the spoilt PDU comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// First login request of a normal session.
    LoginSecurity,
    /// Operational negotiation, after a legal security stage.
    LoginOperational,
    /// A discovery session in full feature phase.
    Discovery,
    /// A normal session in full feature phase.
    FullFeature,
}

impl Phase {
    /// All of them, in the order in which a connection goes through them.
    pub const ALL: [Phase; 4] = [Phase::LoginSecurity, Phase::LoginOperational, Phase::Discovery, Phase::FullFeature];
}

/// A PDU before it goes on the wire: its parts can contradict each other.
#[derive(Clone, Debug)]
pub struct Draft {
    /// The basic header, length fields included, right or wrong.
    pub header: Header,
    /// Additional header segments, as sent.
    pub ahs: Vec<u8>,
    /// Data segment, as sent.
    pub data: Vec<u8>,
    /// Spoil the header digest, where there is one.
    pub header_digest_wrong: bool,
    /// Spoil the data digest, where there is one.
    pub data_digest_wrong: bool,
}

impl Draft {
    fn new(header: Header, data: Vec<u8>) -> Draft {
        let header = header.with_data_len(data.len());
        Draft { header, ahs: vec![], data, header_digest_wrong: false, data_digest_wrong: false }
    }

    /// Whether the header promises more or fewer bytes than are sent, so that the target waits for the rest or takes
    /// data for the next header: nothing that follows can be expected to be understood.
    pub fn is_out_of_step(&self) -> bool {
        let promised = self.header.ahs_len() + self.header.data_len() + pdu::pad_len(self.header.data_len());
        promised != self.ahs.len() + self.data.len() + pdu::pad_len(self.data.len())
    }

    /// As bytes.
    pub fn bytes(&self, header_digest: bool, data_digest: bool) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_LEN + self.ahs.len() + self.data.len() + 12);
        out.extend_from_slice(&self.header.0);
        out.extend_from_slice(&self.ahs);
        if header_digest {
            let mut digest = pdu::digest(&[&out]);
            digest[0] ^= u8::from(self.header_digest_wrong);
            out.extend_from_slice(&digest);
        }
        if !self.data.is_empty() {
            let pad = &[0; 3][..pdu::pad_len(self.data.len())];
            out.extend_from_slice(&self.data);
            out.extend_from_slice(pad);
            if data_digest {
                let mut digest = pdu::digest(&[&self.data, pad]);
                digest[3] ^= u8::from(self.data_digest_wrong);
                out.extend_from_slice(&digest);
            }
        }
        out
    }
}

/// What a draft needs to know of its connection.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// The next CmdSN.
    pub cmd_sn: u32,
    /// ExpStatSN.
    pub exp_stat_sn: u32,
    /// The logical unit that may be hurt.
    pub lun: u16,
    /// The last Ready To Transfer of this connection.
    pub asked_for: Option<AskedFor>,
}

/// What a target asked for by Ready To Transfer.
#[derive(Clone, Copy, Debug)]
pub struct AskedFor {
    /// Initiator Task Tag.
    pub task_tag: u32,
    /// Target Transfer Tag.
    pub transfer_tag: u32,
    /// Buffer Offset.
    pub offset: u32,
    /// Desired Data Transfer Length.
    pub len: u32,
}

/// A legal PDU of this phase.
pub fn legal(phase: Phase, wishes: &Wishes, context: Context, random: &mut Random) -> Draft {
    match phase {
        Phase::LoginSecurity => login(0x81, &security_text(wishes, random), wishes, context),
        Phase::LoginOperational => login(0x87, &operational_text(random), wishes, context),
        Phase::Discovery => {
            let text: &[&[u8]] =
                &[b"SendTargets=All\0", b"SendTargets=\0", b"SendTargets=iqn.2026-11.io.lunaring:x\0", b""];
            let text = text[random.below(text.len() as u64) as usize].to_vec();
            if random.one_in(8) { full_feature(context, random) } else { text_request(text, context, random) }
        }
        Phase::FullFeature => full_feature(context, random),
    }
}

fn login(flags: u8, text: &[u8], wishes: &Wishes, context: Context) -> Draft {
    let mut header = Header::new(request::LOGIN | IMMEDIATE, flags)
        .with_word(16, 1)
        .with_word(24, context.cmd_sn)
        .with_word(28, context.exp_stat_sn);
    header.0[8..14].copy_from_slice(&wishes.isid);
    Draft::new(header, text.to_vec())
}

fn text_request(text: Vec<u8>, context: Context, random: &mut Random) -> Draft {
    let immediate = if random.one_in(2) { IMMEDIATE } else { 0 };
    let header = Header::new(request::TEXT | immediate, FINAL)
        .with_word(16, 0x77)
        .with_word(20, pdu::TAG_NONE)
        .with_word(24, context.cmd_sn)
        .with_word(28, context.exp_stat_sn);
    Draft::new(header, text)
}

fn security_text(wishes: &Wishes, random: &mut Random) -> Vec<u8> {
    let methods = ["None", "CHAP", "CHAP,None", "KRB5,None", "None,CHAP,SRP"];
    let method = methods[random.below(methods.len() as u64) as usize];
    let mut text = format!("InitiatorName={}\0SessionType=Normal\0AuthMethod={method}\0", wishes.initiator_name);
    if let Some(name) = &wishes.target_name {
        text.push_str(&format!("TargetName={name}\0"));
    }
    if random.one_in(4) {
        text.push_str("CHAP_A=5,7\0CHAP_N=u\0CHAP_R=0x00\0CHAP_I=1\0CHAP_C=0x0102\0");
    }
    text.into_bytes()
}

const KEYS: &[&str] = &[
    "HeaderDigest",
    "DataDigest",
    "MaxConnections",
    "SendTargets",
    "TargetName",
    "InitiatorName",
    "TargetAlias",
    "InitiatorAlias",
    "TargetAddress",
    "TargetPortalGroupTag",
    "InitialR2T",
    "ImmediateData",
    "MaxRecvDataSegmentLength",
    "MaxBurstLength",
    "FirstBurstLength",
    "DefaultTime2Wait",
    "DefaultTime2Retain",
    "MaxOutstandingR2T",
    "DataPDUInOrder",
    "DataSequenceInOrder",
    "ErrorRecoveryLevel",
    "SessionType",
    "AuthMethod",
    "IFMarker",
    "OFMarkInt",
    "X-com.example",
    "TaskReporting",
    "iSCSIProtocolLevel",
    "",
    "=",
    "A",
];
const VALUES: &[&str] = &[
    "Yes",
    "No",
    "None",
    "CRC32C",
    "CRC32C,None",
    "None,CRC32C",
    "0",
    "1",
    "511",
    "512",
    "262144",
    "16777215",
    "16777216",
    "4294967296",
    "99999999999999999999999999",
    "-1",
    "0x1000",
    "0X10",
    "0b",
    "Irrelevant",
    "Reject",
    "NotUnderstood",
    "",
    "?",
    "1~2",
    "2048~65536",
    "0xzz",
    "Normal",
    "Discovery",
    "\u{7f}\u{e9}",
    "yes",
    " Yes",
];

/// Keys with legal and illegal values, in any number and order.
fn operational_text(random: &mut Random) -> Vec<u8> {
    let mut text = vec![];
    for _ in 0..random.below(12) {
        let key = KEYS[random.below(KEYS.len() as u64) as usize];
        let value = VALUES[random.below(VALUES.len() as u64) as usize];
        text.extend_from_slice(format!("{key}={value}").as_bytes());
        if !random.one_in(16) {
            text.push(0);
        }
    }
    if random.one_in(32) {
        text.extend(std::iter::repeat_n(b'A', random.below(9000) as usize));
    }
    text
}

fn full_feature(context: Context, random: &mut Random) -> Draft {
    let tag = random.below(64) as u32;
    let base = |opcode: u8, flags: u8| {
        Header::new(opcode, flags)
            .with_lun(context.lun)
            .with_word(16, tag)
            .with_word(24, context.cmd_sn)
            .with_word(28, context.exp_stat_sn)
    };
    match random.below(14) {
        0..=4 => scsi_command(context, tag, random),
        5 | 6 | 12 if context.asked_for.is_some() => answer_to_r2t(context, random),
        12 | 13 => large_write(context, tag, random),
        5 | 6 => {
            let len = random.below(5000) as usize;
            let header = base(request::DATA_OUT, if random.one_in(2) { FINAL } else { 0 })
                .with_word(20, if random.one_in(2) { pdu::TAG_NONE } else { random.below(8) as u32 })
                .with_word(24, 0)
                .with_word(36, random.below(4) as u32)
                .with_word(40, (random.below(5) * 4096) as u32);
            Draft::new(header, vec![0xda; len])
        }
        7 => {
            let header = base(request::TASK_MANAGEMENT | IMMEDIATE, FINAL | random.below(10) as u8)
                .with_word(20, random.below(64) as u32)
                .with_word(32, context.cmd_sn);
            Draft::new(header, vec![])
        }
        8 => text_request(operational_text(random), context, random),
        9 => {
            let immediate = if random.one_in(2) { IMMEDIATE } else { 0 };
            let mut header = base(request::NOP_OUT | immediate, FINAL).with_word(20, pdu::TAG_NONE);
            if random.one_in(3) {
                header = header.with_word(16, pdu::TAG_NONE);
            }
            Draft::new(header, vec![1; random.below(300) as usize])
        }
        10 => Draft::new(base(request::SNACK, FINAL | random.below(4) as u8).with_word(20, 1), vec![]),
        _ => {
            let immediate = if random.one_in(2) { IMMEDIATE } else { 0 };
            Draft::new(base(request::LOGOUT | immediate, FINAL | random.below(4) as u8), vec![])
        }
    }
}

/// A write whose data the target must ask for.
fn large_write(context: Context, tag: u32, random: &mut Random) -> Draft {
    let blocks = 1 + random.below(4096) as u32;
    let command = Command {
        lun: context.lun,
        cdb: pdu::cdb_transfer_16(pdu::cdb::WRITE_16, random.below(8192), blocks, random.one_in(4)),
        task_tag: tag,
        cmd_sn: context.cmd_sn,
        exp_stat_sn: context.exp_stat_sn,
        expected_len: blocks * 512,
        read: false,
        write: true,
        last: true,
    };
    Draft::new(command.header(), vec![])
}

/// Data that was asked for: right, or with one of its numbers off before it is spoilt any further.
fn answer_to_r2t(context: Context, random: &mut Random) -> Draft {
    let Some(asked) = context.asked_for else { return large_write(context, 0, random) };
    let offs = [0, 0, 0, 1, 4, 512, 4096, asked.len, u32::MAX];
    let mut off = || offs[random.below(offs.len() as u64) as usize];
    let (offset, data_sn) = (asked.offset.wrapping_add(off()), off());
    let lens = [asked.len, asked.len / 2, asked.len + 4, 0, 1, 512];
    let len = lens[random.below(lens.len() as u64) as usize].min(262_144) as usize;
    let header = Header::new(request::DATA_OUT, if random.one_in(3) { 0 } else { FINAL })
        .with_lun(context.lun)
        .with_word(16, asked.task_tag)
        .with_word(20, asked.transfer_tag)
        .with_word(28, context.exp_stat_sn)
        .with_word(36, data_sn)
        .with_word(40, offset);
    Draft::new(header, vec![0xda; len])
}

fn scsi_command(context: Context, tag: u32, random: &mut Random) -> Draft {
    const OPCODES: &[u8] = &[
        0x00, 0x03, 0x08, 0x0a, 0x12, 0x15, 0x1a, 0x1b, 0x25, 0x28, 0x2a, 0x2e, 0x2f, 0x35, 0x41, 0x42, 0x4d, 0x55,
        0x5a, 0x5e, 0x5f, 0x7f, 0x83, 0x84, 0x88, 0x89, 0x8a, 0x8e, 0x8f, 0x91, 0x93, 0x9e, 0xa0, 0xa3, 0xa4, 0xa8,
        0xaa, 0xaf,
    ];
    let opcode =
        if random.one_in(4) { random.next_u64() as u8 } else { OPCODES[random.below(OPCODES.len() as u64) as usize] };
    let mut cdb = [0; 16];
    for byte in &mut cdb {
        *byte = if random.one_in(3) { random.next_u64() as u8 } else { 0 };
    }
    cdb[0] = opcode;
    let write = random.one_in(2);
    let data = if write { vec![0xdd; random.below(3) as usize * 2048] } else { vec![] };
    let expected = if random.one_in(2) { data.len() as u64 } else { random.below(1 << 20) };
    let command = Command {
        lun: context.lun,
        cdb,
        task_tag: tag,
        cmd_sn: context.cmd_sn,
        exp_stat_sn: context.exp_stat_sn,
        expected_len: expected as u32,
        read: !write || random.one_in(8),
        write,
        last: !random.one_in(4),
    };
    Draft::new(command.header(), data)
}

const WORDS: [u32; 10] = [0, 1, 2, 0x7f, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_fffe, 0xffff_ffff, 0x0100_0000];

/// Spoil a draft in one to three ways. One that goes on a conversation is now and then left as it is, so that the next
/// one can be spoilt deeper in. Returns whether it was spoilt.
pub fn spoil(draft: &mut Draft, random: &mut Random) -> bool {
    let goes_on = matches!(draft.header.opcode(), request::DATA_OUT) || draft.header.0[32] == pdu::cdb::WRITE_16;
    if goes_on && random.one_in(2) {
        return false;
    }
    for _ in 0..1 + random.below(3) {
        match random.below(12) {
            0 | 1 => {
                let at = random.below(HEADER_LEN as u64) as usize;
                draft.header.0[at] ^= 1 << random.below(8);
            }
            2 => {
                let at = random.below(HEADER_LEN as u64) as usize;
                draft.header.0[at] = [0, 0xff, 0x7f, 0x80, random.next_u64() as u8][random.below(5) as usize];
            }
            3 | 4 => {
                let at = 8 + 4 * random.below(10) as usize;
                let word = WORDS[random.below(WORDS.len() as u64) as usize];
                draft.header = draft.header.with_word(at, word);
            }
            5 => {
                let right = draft.data.len() as u64;
                let lens = [0, right + 1, right.saturating_sub(1), 0xff_ffff, random.below(1 << 24), 8193, 262_145];
                draft.header = draft.header.with_data_len(lens[random.below(lens.len() as u64) as usize] as usize);
            }
            6 => {
                let words = [1, 2, 5, 64, 255][random.below(5) as usize];
                draft.header.0[4] = words;
                let sent = if random.one_in(3) { random.below(u64::from(words)) as usize } else { usize::from(words) };
                draft.ahs = (0..sent * 4).map(|_| random.next_u64() as u8).collect();
                if random.one_in(2) && draft.ahs.len() >= 4 {
                    draft.ahs[..4].copy_from_slice(&[0, (sent * 4 - 3) as u8, 1, 0]);
                }
            }
            7 => {
                for _ in 0..1 + random.below(4) {
                    let len = draft.data.len() as u64;
                    if let Some(byte) = draft.data.get_mut(random.below(len) as usize) {
                        *byte = [0, b'=', 0xff, random.next_u64() as u8][random.below(4) as usize];
                    }
                }
            }
            8 => draft.data.truncate(random.below(draft.data.len() as u64 + 1) as usize),
            9 => draft.header.0[1] = random.next_u64() as u8,
            10 => draft.header_digest_wrong = true,
            _ => draft.data_digest_wrong = true,
        }
    }
    true
}
