//! Logins from the outside: PDU bytes in, PDU bytes out.

use super::*;
use crate::iscsi::chap::{EntropyFailed, Secret};
use crate::iscsi::directory::{ChapAccount, ChapCredentials, Portal, Target};
use crate::iscsi::negotiation::DigestChoice;

const TARGET: &str = "iqn.2026-11.io.lunaring:demo";
const CAPTURE: &str = include_str!("libiscsi_1_19.txt");

/// Bytes 3, 10, 17, 24, … : the first is the CHAP identifier, the others the challenge.
#[derive(Debug, Default)]
struct Steps(u8);

impl Entropy for Steps {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), EntropyFailed> {
        for byte in bytes {
            *byte = self.0.wrapping_mul(7).wrapping_add(3);
            self.0 = self.0.wrapping_add(1);
        }
        Ok(())
    }
}

#[derive(Debug)]
struct NoEntropy;

impl Entropy for NoEntropy {
    fn fill(&mut self, _: &mut [u8]) -> Result<(), EntropyFailed> {
        Err(EntropyFailed)
    }
}

fn account(user: &str, secret: &str) -> ChapAccount {
    ChapAccount { user: user.into(), secret: Secret::new(secret.as_bytes()).unwrap() }
}

fn chap(mutual: bool) -> Authentication {
    let target = mutual.then(|| account("bob", "targetsecret34"));
    Authentication::Chap(ChapCredentials::new(account("alice", "secretsecret12"), target).unwrap())
}

fn target(id: u32, name: &str, access: &str, authentication: Authentication) -> Target {
    let access = access.split_whitespace().map(|rule| rule.parse().unwrap()).collect();
    Target {
        id: TargetId(id),
        name: name.parse().unwrap(),
        alias: None,
        access,
        authentication,
        portal_groups: Vec::new(),
        redirects: vec![],
        error_recovery_level: 0,
        connections_max: 1,
    }
}

fn arrival() -> Arrival {
    Arrival {
        portal: PortalId(0),
        portal_group_tag: 7,
        local: "10.0.0.1:3260".parse().unwrap(),
        peer: "10.0.0.9:50000".parse().unwrap(),
    }
}

/// A server and one login on it.
struct Bench {
    directory: Directory,
    policy: LoginPolicy,
    login: Login,
    entropy: Box<dyn Entropy>,
}

impl Bench {
    fn new(authentication: Authentication) -> Bench {
        let targets = vec![
            target(1, TARGET, "any", authentication),
            target(2, "iqn.2026-11.io.lunaring:closed", "", Authentication::None),
            target(3, "iqn.2026-11.io.lunaring:elsewhere", "ip:192.0.2.0/24 iqn:iqn.other", Authentication::None),
        ];
        let portals = vec![Portal {
            id: PortalId(0),
            listen: "0.0.0.0:3260".parse().unwrap(),
            portal_group_tag: 7,
            advertise: None,
        }];
        Bench {
            directory: Directory::new(targets, portals, Authentication::None).unwrap(),
            policy: LoginPolicy::default(),
            login: Login::new(arrival()),
            entropy: Box::new(Steps::default()),
        }
    }

    fn open() -> Bench {
        Bench::new(Authentication::None)
    }

    fn receive(&mut self, bytes: &[u8]) -> LoginReceive {
        let mut environment =
            Environment { directory: &self.directory, policy: &self.policy, entropy: &mut *self.entropy };
        self.login.receive(bytes, &mut environment)
    }

    fn step(&mut self, bytes: &[u8]) -> LoginStep {
        match self.receive(bytes) {
            LoginReceive::Pdu { len, step } => {
                assert!(len <= bytes.len());
                step
            }
            LoginReceive::NeedBytes(len) => panic!("needs {len} of {} bytes", bytes.len()),
        }
    }

    fn reply(&mut self, bytes: &[u8]) -> Reply {
        match self.step(bytes) {
            LoginStep::Reply(reply) => Reply::read(&reply),
            other => panic!("{other:?}"),
        }
    }

    fn refusal(&mut self, bytes: &[u8]) -> LoginStatus {
        match self.step(bytes) {
            LoginStep::Close { reply: Some(reply), failure } => {
                let seen = Reply::read(&reply);
                assert_eq!(seen.status, failure.status, "{failure}");
                assert_eq!(seen.text, "");
                assert!(!seen.transit);
                seen.status
            }
            other => panic!("{other:?}"),
        }
    }

    fn established(mut self, bytes: &[u8]) -> (Reply, Established) {
        match self.step(bytes) {
            LoginStep::Establish(_) => {}
            other => panic!("{other:?}"),
        }
        let (reply, established) = self.login.granted(0x1234);
        (Reply::read(&reply), established)
    }
}

/// A Login Response, read by byte numbers.
#[derive(Debug, PartialEq, Eq)]
struct Reply {
    transit: bool,
    continues: bool,
    csg: u8,
    nsg: u8,
    tsih: u16,
    stat_sn: u32,
    exp_cmd_sn: u32,
    max_cmd_sn: u32,
    status: LoginStatus,
    /// With `|` for the zero bytes.
    text: String,
}

impl Reply {
    fn read(reply: &LoginReply) -> Reply {
        let b = &reply.bhs.0;
        assert_eq!(b[0], 0x23);
        assert_eq!(b[1] & 0x30, 0);
        assert_eq!((b[2], b[3], b[4]), (0, 0, 0));
        assert_eq!(reply.bhs.data_segment_len(), reply.data.len());
        assert_eq!(b[20..24], [0; 4]);
        assert_eq!(b[38..48], [0; 10]);
        let word = |at: usize| u32::from_be_bytes(b[at..at + 4].try_into().unwrap());
        Reply {
            transit: b[1] & 0x80 != 0,
            continues: b[1] & 0x40 != 0,
            csg: b[1] >> 2 & 3,
            nsg: b[1] & 3,
            tsih: u16::from_be_bytes([b[14], b[15]]),
            stat_sn: word(24),
            exp_cmd_sn: word(28),
            max_cmd_sn: word(32),
            status: LoginStatus(u16::from_be_bytes([b[36], b[37]])),
            text: String::from_utf8(reply.data.clone()).unwrap().replace('\0', "|"),
        }
    }

    fn value(&self, key: &str) -> Option<&str> {
        self.text.split('|').filter_map(|pair| pair.split_once('=')).find(|(k, _)| *k == key).map(|(_, v)| v)
    }
}

/// A Login Request with byte 1 and text, `|` standing for the zero bytes.
fn request(byte1: u8, text: &str) -> Vec<u8> {
    let text = text.replace('|', "\0");
    let mut pdu = vec![0; 48];
    pdu[0] = 0x43;
    pdu[1] = byte1;
    pdu[5..8].copy_from_slice(&u32::try_from(text.len()).unwrap().to_be_bytes()[1..]);
    pdu[8..14].copy_from_slice(&[0x80, 1, 2, 3, 4, 5]);
    pdu[16..20].copy_from_slice(&0xabcd_u32.to_be_bytes());
    pdu[24..28].copy_from_slice(&0xffff_fff0_u32.to_be_bytes());
    pdu.extend_from_slice(text.as_bytes());
    pdu.resize(pdu.len().next_multiple_of(4), 0);
    pdu
}

const SECURITY: u8 = 0x00;
const SECURITY_TO_OPERATIONAL: u8 = 0x81;
const SECURITY_TO_FULL: u8 = 0x83;
const OPERATIONAL: u8 = 0x04;
const OPERATIONAL_TO_FULL: u8 = 0x87;
const CONTINUE: u8 = 0x40;

const WHO: &str = "InitiatorName=iqn.1991-05.com.microsoft:host|TargetName=iqn.2026-11.io.lunaring:demo|";

/// `WHO` and these keys in a login that begins with the operational stage: the answers to the keys.
fn answers(keys: &str) -> String {
    let (reply, _) = Bench::open().established(&request(OPERATIONAL_TO_FULL, &format!("{WHO}{keys}")));
    let text = reply.text.replace("TargetPortalGroupTag=7|", "").replace("MaxRecvDataSegmentLength=262144|", "");
    text.trim_end_matches('|').to_owned()
}

fn refused(byte1: u8, text: &str) -> u16 {
    Bench::open().refusal(&request(byte1, text)).0
}

fn captured(session: &str) -> Vec<(char, Vec<u8>)> {
    let lines = CAPTURE.lines().skip_while(|line| *line != format!("[{session}]")).skip(1);
    let lines = lines.take_while(|line| !line.starts_with('['));
    let decode =
        |hex: &str| (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
    lines.map(|line| (line.chars().next().unwrap(), decode(&line[2..]))).collect()
}

mod captures;
mod malformed;
mod refusals;

#[test]
fn the_shortest_login_gets_a_session_with_the_defaults_of_the_standard() {
    let (reply, established) = Bench::open().established(&request(OPERATIONAL_TO_FULL, WHO));
    assert_eq!(reply.text, "TargetPortalGroupTag=7|MaxRecvDataSegmentLength=262144|");
    assert!(reply.transit);
    assert_eq!((reply.csg, reply.nsg, reply.tsih), (1, 3, 0x1234));
    assert_eq!((reply.exp_cmd_sn, reply.max_cmd_sn), (0xffff_fff0, 0xffff_fff0_u32.wrapping_add(127)));
    assert_eq!(established.stat_sn, reply.stat_sn + 1);
    assert_eq!(established.cmd_sn, 0xffff_fff0);
    assert_eq!(established.identity.initiator_name.as_str(), "iqn.1991-05.com.microsoft:host");
    assert_eq!(established.identity.isid, [0x80, 1, 2, 3, 4, 5]);
    assert_eq!(established.identity.target.as_ref().unwrap().0, TargetId(1));
    assert!(!established.identity.is_discovery());
    let expected = Negotiated { receive_segment_length_max: 262_144, ..Negotiated::default() };
    assert_eq!(established.negotiated, expected);
    let parameters = established.session_parameters(1000, 2000);
    assert_eq!(parameters.exp_cmd_sn, 0xffff_fff0);
    assert_eq!(parameters.initiator_max_recv_data_segment_length, 8192);
}

#[test]
fn each_operational_key_is_answered_by_its_rule() {
    for (offer, answer) in [
        ("HeaderDigest=CRC32C,None|", "HeaderDigest=CRC32C"),
        ("HeaderDigest=None,CRC32C|", "HeaderDigest=None"),
        ("HeaderDigest=X-sha,CRC32C|", "HeaderDigest=CRC32C"),
        ("DataDigest=X-sha|", "DataDigest=Reject"),
        ("DataDigest=|", "DataDigest=Reject"),
        ("MaxConnections=65535|", "MaxConnections=1"),
        ("MaxConnections=0|", "MaxConnections=Reject"),
        ("InitialR2T=No|", "InitialR2T=No"),
        ("InitialR2T=Yes|", "InitialR2T=Yes"),
        ("InitialR2T=Maybe|", "InitialR2T=Reject"),
        ("ImmediateData=yes|", "ImmediateData=Reject"),
        ("ImmediateData=No|", "ImmediateData=No"),
        ("MaxBurstLength=16776192|", "MaxBurstLength=1048576"),
        ("MaxBurstLength=0x40000|", "MaxBurstLength=262144"),
        ("MaxBurstLength=511|", "MaxBurstLength=Reject"),
        ("MaxBurstLength=16777216|", "MaxBurstLength=Reject"),
        ("MaxBurstLength=|", "MaxBurstLength=Reject"),
        ("MaxBurstLength=1000-|", "MaxBurstLength=Reject"),
        ("MaxBurstLength=99999999999999999999999|", "MaxBurstLength=Reject"),
        ("FirstBurstLength=262144|", "FirstBurstLength=262144"),
        ("FirstBurstLength=65536|MaxBurstLength=1024|", "FirstBurstLength=1024|MaxBurstLength=1024"),
        ("MaxBurstLength=1024|FirstBurstLength=65536|", "MaxBurstLength=1024|FirstBurstLength=1024"),
        (
            "FirstBurstLength=4096|ImmediateData=No|InitialR2T=Yes|",
            "FirstBurstLength=Irrelevant|ImmediateData=No|InitialR2T=Yes",
        ),
        ("ImmediateData=No|FirstBurstLength=4096|", "ImmediateData=No|FirstBurstLength=Irrelevant"),
        (
            "ImmediateData=No|InitialR2T=No|FirstBurstLength=4096|",
            "ImmediateData=No|InitialR2T=No|FirstBurstLength=4096",
        ),
        ("DefaultTime2Wait=5|", "DefaultTime2Wait=5"),
        ("DefaultTime2Wait=3601|", "DefaultTime2Wait=Reject"),
        ("DefaultTime2Retain=20|", "DefaultTime2Retain=0"),
        ("MaxOutstandingR2T=16|", "MaxOutstandingR2T=4"),
        ("MaxOutstandingR2T=65536|", "MaxOutstandingR2T=Reject"),
        ("DataPDUInOrder=No|", "DataPDUInOrder=Yes"),
        ("DataSequenceInOrder=No|", "DataSequenceInOrder=Yes"),
        ("ErrorRecoveryLevel=2|", "ErrorRecoveryLevel=0"),
        ("ErrorRecoveryLevel=3|", "ErrorRecoveryLevel=Reject"),
        ("TaskReporting=FastAbort,ResponseFence,RFC3720|", "TaskReporting=FastAbort"),
        ("TaskReporting=X-new,ResponseFence|", "TaskReporting=ResponseFence"),
        ("TaskReporting=X-new|", "TaskReporting=Reject"),
        ("iSCSIProtocolLevel=2|", "iSCSIProtocolLevel=1"),
        ("iSCSIProtocolLevel=0|", "iSCSIProtocolLevel=0"),
        ("IFMarker=Yes|OFMarker=No|", "IFMarker=No|OFMarker=No"),
        ("IFMarkInt=2048~4096|OFMarkInt=2048|", "IFMarkInt=Reject|OFMarkInt=Reject"),
        (
            "X-com.example.key=1|X#Public=2|Y-digest=3|",
            "X-com.example.key=NotUnderstood|X#Public=NotUnderstood|Y-digest=NotUnderstood",
        ),
        ("headerdigest=None|", "headerdigest=NotUnderstood"),
        ("X-com.example.key=NotUnderstood|", ""),
        ("X#NodeArchitecture=linux|InitiatorAlias=my host|", ""),
        ("MaxRecvDataSegmentLength=512|", ""),
    ] {
        assert_eq!(answers(offer), answer, "{offer}");
    }
}

#[test]
fn what_is_answered_is_what_holds() {
    let keys = "HeaderDigest=CRC32C|DataDigest=CRC32C,None|InitialR2T=No|ImmediateData=No|MaxBurstLength=16776192|\
        FirstBurstLength=32768|MaxOutstandingR2T=2|MaxConnections=8|DefaultTime2Wait=9|DefaultTime2Retain=9|\
        DataPDUInOrder=No|DataSequenceInOrder=No|ErrorRecoveryLevel=2|MaxRecvDataSegmentLength=16777215|\
        iSCSIProtocolLevel=2|";
    let (_, established) = Bench::open().established(&request(OPERATIONAL_TO_FULL, &format!("{WHO}{keys}")));
    let expected = Negotiated {
        fast_abort: false,
        header_digest: true,
        data_digest: true,
        receive_segment_length_max: 262_144,
        transmit_segment_length_max: 16_777_215,
        burst_length_max: 1_048_576,
        first_burst_length: 32_768,
        initial_r2t: false,
        immediate_data: false,
        outstanding_r2t_max: 2,
        connections_max: 1,
        error_recovery_level: 0,
        data_pdu_in_order: true,
        data_sequence_in_order: true,
        time2wait_s: 9,
        time2retain_s: 0,
        protocol_level: 1,
    };
    assert_eq!(established.negotiated, expected);
}

#[test]
fn the_default_first_burst_never_exceeds_a_small_burst() {
    let (_, established) =
        Bench::open().established(&request(OPERATIONAL_TO_FULL, &format!("{WHO}MaxBurstLength=512|")));
    assert_eq!(established.negotiated.first_burst_length, 512);
}

#[test]
fn digests_follow_the_servers_choice() {
    let mut bench = Bench::open();
    bench.policy.preferences.header_digest = DigestChoice::Crc32c;
    bench.policy.preferences.data_digest = DigestChoice::None;
    let keys = format!("{WHO}HeaderDigest=None,CRC32C|DataDigest=CRC32C,None|");
    let (reply, established) = bench.established(&request(OPERATIONAL_TO_FULL, &keys));
    assert_eq!(reply.value("HeaderDigest"), Some("CRC32C"));
    assert_eq!(reply.value("DataDigest"), Some("None"));
    assert!(established.negotiated.header_digest);
    assert!(!established.negotiated.data_digest);
}

#[test]
fn in_a_discovery_session_the_keys_of_scsi_are_irrelevant() {
    let text = "InitiatorName=iqn.host|SessionType=Discovery|MaxBurstLength=1024|ImmediateData=Yes|\
        ErrorRecoveryLevel=0|\
        HeaderDigest=CRC32C|TaskReporting=RFC3720|";
    let (reply, established) = Bench::open().established(&request(OPERATIONAL_TO_FULL, text));
    let expected = "MaxBurstLength=Irrelevant|ImmediateData=Irrelevant|ErrorRecoveryLevel=0|HeaderDigest=CRC32C|\
        TaskReporting=Irrelevant|MaxRecvDataSegmentLength=262144|";
    assert_eq!(reply.text, expected);
    assert!(established.identity.is_discovery());
    assert!(established.negotiated.header_digest);
}

#[test]
fn the_session_handle_is_told_only_in_the_final_response() {
    let mut bench = Bench::open();
    let reply = bench.reply(&request(SECURITY_TO_OPERATIONAL, &format!("{WHO}AuthMethod=None|")));
    assert_eq!(reply.text, "TargetPortalGroupTag=7|AuthMethod=None|");
    assert_eq!((reply.tsih, reply.csg, reply.nsg, reply.transit), (0, 0, 1, true));
    let first_stat_sn = reply.stat_sn;
    let reply = bench.reply(&request(OPERATIONAL, "InitialR2T=No|"));
    assert_eq!(reply.text, "InitialR2T=No|MaxRecvDataSegmentLength=262144|");
    assert_eq!((reply.tsih, reply.csg, reply.nsg, reply.transit), (0, 1, 0, false));
    assert_eq!(reply.stat_sn, first_stat_sn + 1);
    let (reply, established) = bench.established(&request(OPERATIONAL_TO_FULL, ""));
    assert_eq!(reply.text, "");
    assert_eq!((reply.tsih, reply.csg, reply.nsg, reply.transit), (0x1234, 1, 3, true));
    assert_eq!(reply.stat_sn, first_stat_sn + 2);
    assert_eq!(established.stat_sn, first_stat_sn + 3);
}

#[test]
fn security_may_lead_straight_to_the_full_feature_phase() {
    let (reply, established) =
        Bench::open().established(&request(SECURITY_TO_FULL, &format!("{WHO}AuthMethod=CHAP,None|")));
    assert_eq!((reply.csg, reply.nsg), (0, 3));
    assert_eq!(established.negotiated, Negotiated::default(), "nothing was negotiated, not even our segment length");
    // Naming no method at all is the same as None.
    let (reply, _) = Bench::open().established(&request(SECURITY_TO_FULL, WHO));
    assert_eq!(reply.text, "TargetPortalGroupTag=7|");
}

#[test]
fn a_target_tells_its_alias() {
    let mut bench = Bench::open();
    let mut named = target(1, TARGET, "any", Authentication::None);
    named.alias = Some("Demo disk".into());
    bench.directory = Directory::new(vec![named], vec![], Authentication::None).unwrap();
    let (reply, _) = bench.established(&request(OPERATIONAL_TO_FULL, WHO));
    assert_eq!(reply.value("TargetAlias"), Some("Demo disk"));
}

#[test]
fn text_may_be_cut_anywhere_over_requests_that_go_on() {
    let text = format!("{WHO}MaxBurstLength=16384|X-vendor=1|");
    for cut in 0..=text.len() {
        let mut bench = Bench::open();
        let reply = bench.reply(&request(OPERATIONAL | CONTINUE, &text[..cut]));
        assert_eq!((reply.text.as_str(), reply.transit, reply.continues), ("", false, false));
        let (reply, _) = bench.established(&request(OPERATIONAL_TO_FULL, &text[cut..]));
        let expected =
            "TargetPortalGroupTag=7|MaxBurstLength=16384|X-vendor=NotUnderstood|MaxRecvDataSegmentLength=262144|";
        assert_eq!(reply.text, expected, "{cut}");
    }
}

#[test]
fn an_answer_longer_than_a_segment_goes_on_over_several_responses() {
    let mut bench = Bench::open();
    // 1,000 keys that are not understood: some 24 KB of answers to some 12 KB of questions.
    let questions: String = (0..1000).map(|n| format!("X-vendor{n:03}=1|")).collect();
    let (first, second) = questions.split_at(7000);
    bench.reply(&request(OPERATIONAL | CONTINUE, &format!("{WHO}{first}")));
    let mut reply = bench.reply(&request(OPERATIONAL_TO_FULL, second));
    let mut whole = String::new();
    let mut pieces = 1;
    while reply.continues {
        assert!(!reply.transit);
        assert_eq!(reply.text.len(), LOGIN_SEGMENT_BYTES_MAX);
        whole.push_str(&reply.text);
        pieces += 1;
        reply = match bench.step(&request(OPERATIONAL_TO_FULL, "")) {
            LoginStep::Reply(reply) => Reply::read(&reply),
            LoginStep::Establish(_) => break,
            other => panic!("{other:?}"),
        };
    }
    let (last, _) = bench.login.granted(9);
    whole.push_str(&Reply::read(&last).text);
    assert_eq!(pieces, 4);
    assert_eq!(whole.matches("=NotUnderstood|").count(), 1000);
}

#[test]
fn an_initiator_that_takes_little_gets_little_at_a_time() {
    let mut bench = Bench::open();
    let questions: String = (0..40).map(|n| format!("X-vendor{n:03}=1|")).collect();
    let reply = bench.reply(&request(OPERATIONAL, &format!("{WHO}MaxRecvDataSegmentLength=512|{questions}")));
    assert!(reply.continues);
    assert_eq!(reply.text.len(), 512);
    let reply = bench.reply(&request(OPERATIONAL, ""));
    assert!(reply.continues);
    let reply = bench.reply(&request(OPERATIONAL, ""));
    assert!(!reply.continues);
    assert!(reply.text.ends_with("MaxRecvDataSegmentLength=262144|"));
}

#[test]
fn one_way_chap_with_each_algorithm_against_independent_digests() {
    // Responses made with Python's hashlib over identifier 3, "secretsecret12" and the challenge of `Steps`.
    for (number, challenge, response) in [
        ("5", "0x0a11181f262d343b424950575e656c73", "0xde4495d7a18f4307beb1945e78bf7de8"),
        ("6", "0x0a11181f262d343b424950575e656c737a81888f", "0x5907b6f5d2208161597ab5ca8bf21d12ee5be8f1"),
        (
            "7",
            "0x0a11181f262d343b424950575e656c737a81888f969da4abb2b9c0c7ced5dce3",
            "0xe17c1c825d90f6347548f074991d4add91cf3e8fd212a95b87bcc54ce582a4c2",
        ),
        (
            "8",
            "0x0a11181f262d343b424950575e656c737a81888f969da4abb2b9c0c7ced5dce3",
            "0x702033e5ff2b48544b43b62820754f518468866a368f363e5c7c985fd64ce5ab",
        ),
    ] {
        let mut bench = Bench::new(chap(false));
        let reply = bench.reply(&request(SECURITY_TO_OPERATIONAL, &format!("{WHO}AuthMethod=None,CHAP|")));
        assert_eq!(reply.text, "TargetPortalGroupTag=7|AuthMethod=CHAP|");
        assert!(!reply.transit);
        let reply = bench.reply(&request(SECURITY, &format!("CHAP_A=99,{number}|")));
        assert_eq!(reply.text, format!("CHAP_A={number}|CHAP_I=3|CHAP_C={challenge}|"));
        let reply = bench.reply(&request(SECURITY_TO_OPERATIONAL, &format!("CHAP_N=alice|CHAP_R={response}|")));
        assert_eq!((reply.text.as_str(), reply.transit, reply.nsg), ("", true, 1));
        bench.established(&request(OPERATIONAL_TO_FULL, ""));
    }
}

#[test]
fn of_several_algorithms_the_strongest_allowed_is_taken() {
    let choice = |offered: &str, allowed: &[Algorithm]| {
        let mut bench = Bench::new(chap(false));
        bench.policy.chap_algorithms = allowed.to_vec();
        bench.reply(&request(SECURITY, &format!("{WHO}AuthMethod=CHAP|")));
        bench.reply(&request(SECURITY, &format!("CHAP_A={offered}|"))).value("CHAP_A").map(str::to_owned)
    };
    assert_eq!(choice("5,6,7,8", &ALGORITHMS).as_deref(), Some("8"));
    assert_eq!(choice("5,7", &ALGORITHMS).as_deref(), Some("7"));
    assert_eq!(choice("8,7,6,5", &[Algorithm::Md5]).as_deref(), Some("5"));
}

#[test]
fn mutual_chap_proves_the_target_too() {
    let mut bench = Bench::new(chap(true));
    bench.reply(&request(SECURITY, &format!("{WHO}AuthMethod=CHAP|")));
    bench.reply(&request(SECURITY, "CHAP_A=5|"));
    // libiscsi's challenge and tgt's response to it, from the capture: the same identifier and secret give the same
    // digest here.
    let proof = "CHAP_N=alice|CHAP_R=0xde4495d7a18f4307beb1945e78bf7de8|CHAP_I=1|\
        CHAP_C=0x06A8DBCA0BC280221ADF7B66BEE21B5B9603429873527042E2457FA392D2CA98|";
    let reply = bench.reply(&request(SECURITY_TO_OPERATIONAL, proof));
    assert_eq!(reply.text, "CHAP_N=bob|CHAP_R=0x9f614291b290ebe905df5d18e71ce0cc|");
    assert!(reply.transit);
}

#[test]
fn without_randomness_the_login_fails_as_the_targets_fault() {
    let mut bench = Bench::new(chap(true));
    bench.entropy = Box::new(NoEntropy);
    bench.reply(&request(SECURITY, &format!("{WHO}AuthMethod=CHAP|")));
    assert_eq!(bench.refusal(&request(SECURITY, "CHAP_A=5|")), LoginStatus::TARGET_ERROR);
}

#[test]
fn the_registrars_refusal_is_told_with_its_status() {
    let mut bench = Bench::open();
    assert!(matches!(bench.step(&request(OPERATIONAL_TO_FULL, WHO)), LoginStep::Establish(_)));
    let reply = Reply::read(&bench.login.refused(LoginStatus::OUT_OF_RESOURCES));
    assert_eq!((reply.status, reply.transit, reply.text.as_str()), (LoginStatus::OUT_OF_RESOURCES, false, ""));
}
