//! The way into full feature phase (RFC 7143 section 6.3), discovery, and plain request-and-answer over a blocking
//! socket.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use md5::{Digest, Md5};

use crate::pdu::{self, FINAL, Header, IMMEDIATE, request, response};

/// What we ask for at login.
#[derive(Clone, Debug)]
pub struct Wishes {
    /// InitiatorName.
    pub initiator_name: String,
    /// TargetName; none asks for a discovery session.
    pub target_name: Option<String>,
    /// ISID: with the initiator's name it says which session this is.
    pub isid: [u8; 6],
    /// User name and secret for CHAP with MD5; none offers AuthMethod=None only.
    pub chap: Option<(String, String)>,
    /// HeaderDigest=CRC32C.
    pub header_digest: bool,
    /// DataDigest=CRC32C.
    pub data_digest: bool,
    /// InitialR2T.
    pub initial_r2t: bool,
    /// ImmediateData.
    pub immediate_data: bool,
    /// MaxRecvDataSegmentLength that we declare, in bytes.
    pub segment_len_max: u32,
    /// MaxOutstandingR2T.
    pub outstanding_r2t_max: u32,
    /// MaxConnections.
    pub connections_max: u16,
    /// ErrorRecoveryLevel.
    pub error_recovery_level: u8,
    /// CID.
    pub connection_id: u16,
    /// TSIH of the session that this connection is to join; 0 asks for a new one.
    pub tsih: u16,
    /// Further operational keys, each ended by a zero byte.
    pub more_keys: String,
    /// How long connecting and each login answer may take.
    pub timeout: Duration,
}

impl Wishes {
    /// Modern defaults for a session to this target.
    pub fn to_target(target_name: &str) -> Wishes {
        Wishes {
            initiator_name: "iqn.2026-11.io.lunaring:perf".to_owned(),
            target_name: Some(target_name.to_owned()),
            isid: [0x80, 0, 0, 1, 0, 0],
            chap: None,
            header_digest: false,
            data_digest: false,
            initial_r2t: false,
            immediate_data: true,
            segment_len_max: 256 * 1024,
            outstanding_r2t_max: 1,
            connections_max: 1,
            error_recovery_level: 0,
            connection_id: 0,
            tsih: 0,
            more_keys: String::new(),
            timeout: Duration::from_secs(5),
        }
    }

    /// The same with another ISID, so that both sessions can live beside each other.
    pub fn session(mut self, number: u32) -> Wishes {
        self.isid[2..6].copy_from_slice(&number.to_be_bytes());
        self
    }
}

/// What both sides agreed on.
#[derive(Clone, Debug)]
pub struct Parameters {
    /// Header digests are on.
    pub header_digest: bool,
    /// Data digests are on.
    pub data_digest: bool,
    /// Unsolicited Data-Out is forbidden.
    pub initial_r2t: bool,
    /// Commands may carry data.
    pub immediate_data: bool,
    /// FirstBurstLength, in bytes.
    pub first_burst: u32,
    /// MaxBurstLength, in bytes.
    pub max_burst: u32,
    /// The target's MaxRecvDataSegmentLength, in bytes.
    pub send_segment_max: u32,
    /// The session's handle at the target.
    pub tsih: u16,
}

/// Why there is no session.
#[derive(Debug)]
pub enum LoginError {
    /// The socket failed, or the peer closed it.
    Io(io::Error),
    /// The target answered with this status class and detail (RFC 7143 section 11.13.5).
    Refused {
        /// Status-Class.
        class: u8,
        /// Status-Detail.
        detail: u8,
    },
    /// The target broke the protocol.
    Protocol(String),
}

impl std::fmt::Display for LoginError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            LoginError::Io(e) => write!(f, "the connection failed: {e}"),
            LoginError::Refused { class, detail } => {
                write!(f, "the target refused the login ({class:02x}{detail:02x})")
            }
            LoginError::Protocol(what) => write!(f, "the target broke the protocol: {what}"),
        }
    }
}

impl std::error::Error for LoginError {}

impl From<io::Error> for LoginError {
    fn from(e: io::Error) -> LoginError {
        LoginError::Io(e)
    }
}

/// A connection that is used one PDU at a time.
#[derive(Debug)]
pub struct Wire {
    /// The socket, blocking with time-outs.
    pub socket: TcpStream,
    /// Header digests are on.
    pub header_digest: bool,
    /// Data digests are on.
    pub data_digest: bool,
    /// The next CmdSN.
    pub cmd_sn: u32,
    /// The StatSN expected next.
    pub exp_stat_sn: u32,
}

/// One PDU as it arrived: header and data segment without padding.
#[derive(Clone, Debug)]
pub struct Pdu {
    /// The basic header segment.
    pub header: Header,
    /// The data segment.
    pub data: Vec<u8>,
}

impl Wire {
    /// Connect, with the same limit for connecting and for each read and write.
    pub fn connect(portal: SocketAddr, timeout: Duration) -> io::Result<Wire> {
        let socket = TcpStream::connect_timeout(&portal, timeout)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(timeout))?;
        socket.set_write_timeout(Some(timeout))?;
        Ok(Wire { socket, header_digest: false, data_digest: false, cmd_sn: 1, exp_stat_sn: 0 })
    }

    /// Send one PDU.
    pub fn send(&mut self, header: Header, data: &[u8]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(pdu::HEADER_LEN + data.len() + 12);
        pdu::append(&mut bytes, header, data, self.header_digest, self.data_digest);
        self.socket.write_all(&bytes)
    }

    /// Send one PDU with additional header segments, whose length is a multiple of four.
    pub fn send_with_ahs(&mut self, header: Header, ahs: &[u8], data: &[u8]) -> io::Result<()> {
        if ahs.is_empty() {
            return self.send(header, data);
        }
        let mut head = header.with_data_len(data.len()).0.to_vec();
        head[4] = (ahs.len() / 4) as u8;
        head.extend_from_slice(ahs);
        let mut bytes = head.clone();
        if self.header_digest {
            bytes.extend_from_slice(&pdu::digest(&[&head]));
        }
        let pad = &[0; 3][..pdu::pad_len(data.len())];
        bytes.extend_from_slice(data);
        bytes.extend_from_slice(pad);
        if self.data_digest && !data.is_empty() {
            bytes.extend_from_slice(&pdu::digest(&[data, pad]));
        }
        self.socket.write_all(&bytes)
    }

    /// Receive one PDU, digests checked.
    pub fn receive(&mut self) -> io::Result<Pdu> {
        let mut bytes = [0; pdu::HEADER_LEN];
        self.socket.read_exact(&mut bytes)?;
        let header = Header(bytes);
        if self.header_digest {
            self.expect_digest(pdu::digest(&[&bytes]), "header")?;
        }
        let mut data = vec![0; header.data_len() + pdu::pad_len(header.data_len())];
        self.socket.read_exact(&mut data)?;
        if self.data_digest && !data.is_empty() {
            self.expect_digest(pdu::digest(&[&data]), "data")?;
        }
        data.truncate(header.data_len());
        let carries_stat_sn = match header.opcode() {
            response::R2T => false,
            response::DATA_IN => header.flags() & 1 != 0,
            response::NOP_IN => header.task_tag() != pdu::TAG_NONE,
            _ => true,
        };
        if carries_stat_sn {
            self.exp_stat_sn = header.stat_sn().wrapping_add(1);
        }
        Ok(Pdu { header, data })
    }

    fn expect_digest(&mut self, expected: [u8; 4], what: &str) -> io::Result<()> {
        let mut digest = [0; 4];
        self.socket.read_exact(&mut digest)?;
        if digest == expected { Ok(()) } else { Err(io::Error::other(format!("wrong {what} digest from the target"))) }
    }

    /// Send a login request of one stage and receive its answer, text joined over continued PDUs.
    fn login_step(&mut self, wishes: &Wishes, flags: u8, text: &[u8]) -> Result<(Pdu, Vec<u8>), LoginError> {
        let mut header = Header::new(request::LOGIN | IMMEDIATE, flags)
            .with_word(16, 1)
            .with_word(24, self.cmd_sn)
            .with_word(28, self.exp_stat_sn);
        header.0[8..14].copy_from_slice(&wishes.isid);
        header.0[14..16].copy_from_slice(&wishes.tsih.to_be_bytes());
        header.0[20..22].copy_from_slice(&wishes.connection_id.to_be_bytes());
        let mut joined = vec![];
        self.send(header, text)?;
        loop {
            let answer = self.receive()?;
            if answer.header.opcode() != response::LOGIN {
                return Err(LoginError::Protocol(format!("opcode {:#04x} during login", answer.header.opcode())));
            }
            let (class, detail) = (answer.header.0[36], answer.header.0[37]);
            if class != 0 {
                return Err(LoginError::Refused { class, detail });
            }
            joined.extend_from_slice(&answer.data);
            if answer.header.flags() & 0x40 == 0 {
                return Ok((answer, joined));
            }
            self.send(header.with_word(28, self.exp_stat_sn), &[])?;
        }
    }

    /// Log in; afterwards this connection is in full feature phase with the agreed digests.
    pub fn login(&mut self, wishes: &Wishes) -> Result<Parameters, LoginError> {
        let kind = if wishes.target_name.is_some() { "Normal" } else { "Discovery" };
        let method = if wishes.chap.is_some() { "CHAP" } else { "None" };
        let mut security =
            format!("InitiatorName={}\0SessionType={kind}\0AuthMethod={method}\0", wishes.initiator_name);
        if let Some(name) = &wishes.target_name {
            security.push_str(&format!("TargetName={name}\0"));
        }
        let transit = if wishes.chap.is_some() { 0 } else { FINAL | 0x01 };
        let (mut answer, text) = self.login_step(wishes, transit, security.as_bytes())?;
        if let Some((user, secret)) = &wishes.chap {
            answer = self.chap_steps(wishes, user, secret)?;
        } else if find_key(&text, "AuthMethod").is_some_and(|method| method != "None") {
            return Err(LoginError::Protocol("AuthMethod was answered with something not offered".to_owned()));
        }
        if answer.header.flags() & 0x83 != 0x81 {
            return Err(LoginError::Protocol("the target does not leave the security stage".to_owned()));
        }
        let (answer, text) = self.login_step(wishes, FINAL | 0x07, operational(wishes).as_bytes())?;
        let mut all = text;
        let mut last = answer;
        let mut rounds = 0;
        while last.header.flags() & 0x83 != 0x83 {
            rounds += 1;
            if rounds > 8 {
                return Err(LoginError::Protocol("the negotiation does not end".to_owned()));
            }
            let (answer, text) = self.login_step(wishes, FINAL | 0x07, &[])?;
            all.extend_from_slice(&text);
            last = answer;
        }
        let parameters = agreed(wishes, &all, u16::from_be_bytes([last.header.0[14], last.header.0[15]]))?;
        self.header_digest = parameters.header_digest;
        self.data_digest = parameters.data_digest;
        Ok(parameters)
    }

    /// CHAP with MD5, one-way (RFC 7143 section 12.1.3): the target's last answer of the security stage.
    fn chap_steps(&mut self, wishes: &Wishes, user: &str, secret: &str) -> Result<Pdu, LoginError> {
        let (_, text) = self.login_step(wishes, 0, b"CHAP_A=5\0")?;
        let missing = |key: &str| LoginError::Protocol(format!("no usable {key} from the target"));
        let identifier = find_key(&text, "CHAP_I").and_then(|v| v.parse::<u8>().ok()).ok_or(missing("CHAP_I"))?;
        let challenge = find_key(&text, "CHAP_C").and_then(binary).ok_or(missing("CHAP_C"))?;
        let hash = Md5::new().chain_update([identifier]).chain_update(secret).chain_update(challenge).finalize();
        let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        let response = format!("CHAP_N={user}\0CHAP_R=0x{hash}\0");
        Ok(self.login_step(wishes, FINAL | 0x01, response.as_bytes())?.0)
    }

    /// A text request with these keys, the answer joined over continued PDUs.
    pub fn text(&mut self, keys: &[u8]) -> io::Result<Vec<u8>> {
        let mut joined = vec![];
        let mut transfer_tag = pdu::TAG_NONE;
        let mut data = keys;
        loop {
            let header = Header::new(request::TEXT | IMMEDIATE, FINAL)
                .with_word(16, 2)
                .with_word(20, transfer_tag)
                .with_word(24, self.cmd_sn)
                .with_word(28, self.exp_stat_sn);
            self.send(header, data)?;
            let answer = self.receive()?;
            if answer.header.opcode() != response::TEXT {
                return Err(io::Error::other(format!("opcode {:#04x} answers a text request", answer.header.opcode())));
            }
            joined.extend_from_slice(&answer.data);
            if answer.header.flags() & FINAL != 0 {
                return Ok(joined);
            }
            transfer_tag = answer.header.word(20);
            data = &[];
        }
    }

    /// Close the session in order; the answer's response code.
    pub fn logout(&mut self) -> io::Result<u8> {
        let header = Header::new(request::LOGOUT | IMMEDIATE, FINAL)
            .with_word(16, 3)
            .with_word(24, self.cmd_sn)
            .with_word(28, self.exp_stat_sn);
        self.send(header, &[])?;
        loop {
            let answer = self.receive()?;
            if answer.header.opcode() == response::LOGOUT {
                return Ok(answer.header.0[2]);
            }
        }
    }
}

/// The targets and their addresses as SendTargets=All gives them: (name, addresses).
pub fn discover(portal: SocketAddr, initiator_name: &str) -> Result<Vec<(String, Vec<String>)>, LoginError> {
    let mut wishes = Wishes::to_target("");
    wishes.target_name = None;
    wishes.initiator_name = initiator_name.to_owned();
    let mut wire = Wire::connect(portal, wishes.timeout)?;
    wire.login(&wishes)?;
    let text = wire.text(b"SendTargets=All\0")?;
    wire.logout()?;
    let mut targets: Vec<(String, Vec<String>)> = vec![];
    for (key, value) in pairs(&text) {
        match (key, targets.last_mut()) {
            ("TargetName", _) => targets.push((value.to_owned(), vec![])),
            ("TargetAddress", Some((_, addresses))) => addresses.push(value.to_owned()),
            _ => {}
        }
    }
    Ok(targets)
}

fn operational(wishes: &Wishes) -> String {
    let digest = |on: bool| if on { "CRC32C" } else { "None" };
    let yes = |on: bool| if on { "Yes" } else { "No" };
    if wishes.target_name.is_none() {
        return format!("HeaderDigest=None\0DataDigest=None\0MaxRecvDataSegmentLength={}\0", wishes.segment_len_max);
    }
    if wishes.tsih != 0 {
        // What governs the session was agreed with its first connection.
        return format!(
            "HeaderDigest={}\0DataDigest={}\0MaxRecvDataSegmentLength={}\0{}",
            digest(wishes.header_digest),
            digest(wishes.data_digest),
            wishes.segment_len_max,
            wishes.more_keys,
        );
    }
    format!(
        "HeaderDigest={}\0DataDigest={}\0InitialR2T={}\0ImmediateData={}\0MaxRecvDataSegmentLength={}\0\
         FirstBurstLength=65536\0MaxBurstLength=1048576\0MaxOutstandingR2T={}\0MaxConnections={}\0\
         DefaultTime2Wait=2\0DefaultTime2Retain=0\0DataPDUInOrder=Yes\0DataSequenceInOrder=Yes\0\
         ErrorRecoveryLevel={}\0{}",
        digest(wishes.header_digest),
        digest(wishes.data_digest),
        yes(wishes.initial_r2t),
        yes(wishes.immediate_data),
        wishes.segment_len_max,
        wishes.outstanding_r2t_max,
        wishes.connections_max,
        wishes.error_recovery_level,
        wishes.more_keys,
    )
}

/// Read the target's answers; a key it did not answer keeps the default of RFC 7143 section 13.
fn agreed(wishes: &Wishes, text: &[u8], tsih: u16) -> Result<Parameters, LoginError> {
    let number = |key: &str, default: u32| find_key(text, key).and_then(|v| v.parse().ok()).unwrap_or(default);
    let is = |key: &str, value: &str, default: bool| find_key(text, key).map_or(default, |v| v == value);
    let parameters = Parameters {
        header_digest: is("HeaderDigest", "CRC32C", false),
        data_digest: is("DataDigest", "CRC32C", false),
        initial_r2t: is("InitialR2T", "Yes", true) || wishes.initial_r2t,
        immediate_data: is("ImmediateData", "Yes", true) && wishes.immediate_data,
        first_burst: number("FirstBurstLength", 65536).min(65536),
        max_burst: number("MaxBurstLength", 262_144).min(1 << 20),
        send_segment_max: number("MaxRecvDataSegmentLength", 8192),
        tsih,
    };
    if parameters.header_digest != wishes.header_digest || parameters.data_digest != wishes.data_digest {
        return Err(LoginError::Protocol("the digests are not those that were asked for".to_owned()));
    }
    if wishes.target_name.is_some() && tsih == 0 {
        return Err(LoginError::Protocol("the final login response has TSIH 0".to_owned()));
    }
    Ok(parameters)
}

/// The `key=value` pairs of a text segment.
pub fn pairs(text: &[u8]) -> impl Iterator<Item = (&str, &str)> {
    text.split(|b| *b == 0).filter_map(|pair| std::str::from_utf8(pair).ok()?.split_once('='))
}

/// A large binary value in hexadecimal form (RFC 7143 section 6.1); this initiator asks for no other.
fn binary(value: &str) -> Option<Vec<u8>> {
    let digits = value.strip_prefix("0x").or_else(|| value.strip_prefix("0X"))?;
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    let odd = digits.len() % 2;
    let digits = [&b"0"[..odd], digits.as_bytes()].concat();
    digits.chunks_exact(2).map(|pair| Some((digit(&pair[0])? << 4 | digit(&pair[1])?) as u8)).collect()
}

fn find_key<'a>(text: &'a [u8], key: &str) -> Option<&'a str> {
    pairs(text).find(|(k, _)| *k == key).map(|(_, v)| v)
}
