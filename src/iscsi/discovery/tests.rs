//! Text Requests from the outside: PDU bytes in, what goes out read back.

use super::*;
use crate::iscsi::directory::{Authentication, Portal, Target};
use crate::iscsi::pdu::Bhs;
use crate::units::{PortalId, TargetId};

fn target(id: u32, name: &str, access: &str) -> Target {
    let access = access.split_whitespace().map(|rule| rule.parse().unwrap()).collect();
    Target {
        id: TargetId(id),
        name: name.parse().unwrap(),
        alias: None,
        access,
        authentication: Authentication::None,
        portal_groups: Vec::new(),
        redirects: vec![],
        error_recovery_level: 0,
        connections_max: 1,
    }
}

fn portal(listen: &str, portal_group_tag: u16) -> Portal {
    Portal { id: PortalId(0), listen: listen.parse().unwrap(), portal_group_tag, advertise: None }
}

fn directory(targets: Vec<Target>, portals: Vec<Portal>) -> Arc<Directory> {
    Arc::new(Directory::new(targets, portals, Authentication::None).unwrap())
}

/// Two targets that the initiator may see, one that it may not.
fn small() -> Arc<Directory> {
    let targets = vec![
        target(1, "iqn.2026-11.io.x:a", "any"),
        target(2, "iqn.2026-11.io.x:b", "iqn:iqn.host"),
        target(3, "iqn.2026-11.io.x:secret", "ip:192.0.2.0/24"),
    ];
    directory(targets, vec![portal("0.0.0.0:3260", 1), portal("10.1.1.1:3261", 2)])
}

/// One connection in full feature phase.
struct Bench {
    directory: Arc<Directory>,
    exchange: TextExchange,
    initiator_name: IscsiName,
    target: Option<IscsiName>,
    transmit_segment_length_max: u32,
}

/// A Text Response: flags `F`/`C`, tag, and text with `|` for the zero bytes.
#[derive(Debug, PartialEq, Eq)]
struct Reply {
    flags: &'static str,
    tag: u32,
    text: String,
    segment: Option<u32>,
}

impl Bench {
    fn discovery(directory: Arc<Directory>) -> Bench {
        Bench {
            directory,
            exchange: TextExchange::default(),
            initiator_name: IscsiName::foreign("iqn.host").unwrap(),
            target: None,
            transmit_segment_length_max: 8192,
        }
    }

    fn normal(directory: Arc<Directory>, target: &str) -> Bench {
        Bench { target: Some(target.parse().unwrap()), ..Bench::discovery(directory) }
    }

    /// Byte 1, Target Transfer Tag and text of a Text Request.
    fn step(&mut self, byte1: u8, tag: u32, text: &str) -> TextStep {
        let mut header = [0; 48];
        header[0] = 0x04;
        header[1] = byte1;
        header[16..20].copy_from_slice(&0x77_u32.to_be_bytes());
        header[20..24].copy_from_slice(&tag.to_be_bytes());
        let request = TextRequest::parse(&Bhs(header)).unwrap();
        self.handle(&request, text.replace('|', "\0").as_bytes())
    }

    fn handle(&mut self, request: &TextRequest, data: &[u8]) -> TextStep {
        let context = TextContext {
            directory: &self.directory,
            initiator_name: &self.initiator_name,
            peer: "10.0.0.9".parse().unwrap(),
            local: "10.0.0.1:3260".parse().unwrap(),
            target: self.target.as_ref(),
            transmit_segment_length_max: self.transmit_segment_length_max,
            receive_segment_length_max: 262_144,
        };
        self.exchange.handle(request, data, &context)
    }

    fn reply(&mut self, byte1: u8, tag: u32, text: &str) -> Reply {
        match self.step(byte1, tag, text) {
            TextStep::Respond { response, data, transmit_segment_length_max } => {
                assert_eq!(response.data_segment_len, data.len());
                assert!(data.len() <= usize::try_from(self.transmit_segment_length_max).unwrap());
                assert_eq!(response.initiator_task_tag, 0x77);
                assert_eq!(response.is_final, response.target_transfer_tag == NONE);
                let flags = match (response.is_final, response.continues) {
                    (true, false) => "F",
                    (false, true) => "C",
                    (false, false) => "",
                    (true, true) => panic!("final, and yet it goes on"),
                };
                let text = String::from_utf8(data).unwrap().replace('\0', "|");
                Reply { flags, tag: response.target_transfer_tag, text, segment: transmit_segment_length_max }
            }
            TextStep::Reject(reason) => panic!("{reason:?}"),
        }
    }

    fn rejected(&mut self, byte1: u8, tag: u32, text: &str) -> RejectReason {
        match self.step(byte1, tag, text) {
            TextStep::Reject(reason) => reason,
            other => panic!("{other:?}"),
        }
    }

    /// The text of the answer to one final request.
    fn answer(&mut self, text: &str) -> String {
        let reply = self.reply(F, NONE, text);
        assert_eq!(reply.flags, "F");
        reply.text
    }
}

const F: u8 = 0x80;
const C: u8 = 0x40;
const NONE: u32 = TAG_RESERVED;

const A: &str = "TargetName=iqn.2026-11.io.x:a|TargetAddress=10.0.0.1:3260,1|TargetAddress=10.1.1.1:3261,2|";
const B: &str = "TargetName=iqn.2026-11.io.x:b|TargetAddress=10.0.0.1:3260,1|TargetAddress=10.1.1.1:3261,2|";

#[test]
fn a_discovery_session_lists_what_the_initiator_may_see() {
    let mut bench = Bench::discovery(small());
    assert_eq!(bench.answer("SendTargets=All|"), format!("{A}{B}"));
    assert_eq!(bench.answer("SendTargets=iqn.2026-11.io.x:b|"), B);
    assert_eq!(bench.answer("SendTargets=IQN.2026-11.io.X:B|"), B);
    assert_eq!(bench.answer("SendTargets=iqn.2026-11.io.x:secret|"), "");
    assert_eq!(bench.answer("SendTargets=iqn.2026-11.io.x:nothing|"), "");
    assert_eq!(bench.answer("SendTargets=|"), "");
    bench.initiator_name = IscsiName::foreign("iqn.stranger").unwrap();
    assert_eq!(bench.answer("SendTargets=All|"), A);
}

#[test]
fn a_normal_session_tells_of_its_own_target_only() {
    let mut bench = Bench::normal(small(), "iqn.2026-11.io.x:b");
    assert_eq!(bench.answer("SendTargets=|"), B);
    assert_eq!(bench.answer("SendTargets=iqn.2026-11.io.x:b|"), B);
    assert_eq!(bench.answer("SendTargets=iqn.2026-11.io.x:a|"), "");
    assert_eq!(bench.answer("SendTargets=All|"), B);
}

#[test]
fn libiscsis_request_is_answered() {
    // The capture of libiscsi 1.19.0, as sent.
    let line = include_str!("../login/libiscsi_1_19.txt").lines().find(|line| line.starts_with("I 44")).unwrap();
    let pdu: Vec<u8> =
        (2..line.len()).step_by(2).map(|at| u8::from_str_radix(&line[at..at + 2], 16).unwrap()).collect();
    let bhs = Bhs::from_prefix(&pdu).unwrap();
    let request = TextRequest::parse(bhs).unwrap();
    let data = &pdu[48..48 + bhs.data_segment_len()];
    let TextStep::Respond { response, data, .. } = Bench::discovery(small()).handle(&request, data) else { panic!() };
    assert!(response.is_final);
    assert_eq!(response.target_transfer_tag, NONE);
    assert_eq!(response.initiator_task_tag, request.initiator_task_tag);
    assert_eq!(String::from_utf8(data).unwrap().replace('\0', "|"), format!("{A}{B}"));
}

#[test]
fn addresses_are_told_once_and_in_brackets_for_ipv6() {
    let targets = vec![target(1, "iqn.2026-11.io.x:a", "any")];
    let portals = vec![portal("0.0.0.0:3260", 1), portal("[::]:3260", 1), portal("[2001:db8::1]:3260", 1)];
    let mut bench = Bench::discovery(directory(targets, portals));
    let expected = "TargetName=iqn.2026-11.io.x:a|TargetAddress=10.0.0.1:3260,1|TargetAddress=[2001:db8::1]:3260,1|";
    assert_eq!(bench.answer("SendTargets=All|"), expected);
}

/// All the pieces of SendTargets=All, each with its flags checked.
fn listing(bench: &mut Bench) -> (String, usize) {
    let mut reply = bench.reply(F, NONE, "SendTargets=All|");
    let (mut whole, mut pieces) = (reply.text, 1);
    while reply.flags == "C" {
        reply = bench.reply(F, reply.tag, "");
        whole.push_str(&reply.text);
        pieces += 1;
    }
    assert_eq!(reply.flags, "F");
    (whole, pieces)
}

#[test]
fn thousands_of_targets_are_listed_in_pieces() {
    let targets = (0..4096).map(|n| target(n, &format!("iqn.2026-11.io.x:target-{n:04}"), "any")).collect();
    let directory = directory(targets, vec![portal("10.0.0.1:3260", 1)]);
    let mut expected = String::new();
    for n in 0..4096 {
        expected.push_str(&format!("TargetName=iqn.2026-11.io.x:target-{n:04}|TargetAddress=10.0.0.1:3260,1|"));
    }
    for segment in [512, 8192, 262_144] {
        let mut bench = Bench::discovery(Arc::clone(&directory));
        bench.transmit_segment_length_max = segment;
        let (whole, pieces) = listing(&mut bench);
        assert!(whole == expected, "segments of {segment}");
        let least = expected.len().div_ceil(usize::try_from(segment).unwrap().min(TEXT_RESPONSE_BYTES_MAX));
        assert!((least..=least + least / 4).contains(&pieces), "{pieces} pieces of at least {least}");
        assert_eq!(Arc::strong_count(&directory), 2, "the listing lets go of the directory at its end");
    }
}

#[test]
fn a_listing_is_of_one_moment() {
    let targets = |n| (0..n).map(|n| target(n, &format!("iqn.2026-11.io.x:target-{n:04}"), "any")).collect();
    let mut bench = Bench::discovery(directory(targets(500), vec![portal("10.0.0.1:3260", 1)]));
    let reply = bench.reply(F, NONE, "SendTargets=All|");
    bench.directory = directory(targets(0), vec![]);
    let mut names = reply.text.matches("TargetName").count();
    let mut reply = reply;
    while reply.flags == "C" {
        reply = bench.reply(F, reply.tag, "");
        names += reply.text.matches("TargetName").count();
    }
    assert_eq!(names, 500);
}

#[test]
fn a_new_request_without_tag_begins_anew() {
    let targets = (0..500).map(|n| target(n, &format!("iqn.2026-11.io.x:target-{n:04}"), "any")).collect();
    let mut bench = Bench::discovery(directory(targets, vec![portal("10.0.0.1:3260", 1)]));
    let first = bench.reply(F, NONE, "SendTargets=All|");
    let again = bench.reply(F, NONE, "SendTargets=All|");
    assert_eq!(first.text, again.text);
    assert_ne!(first.tag, again.tag);
    assert_eq!(bench.rejected(F, first.tag, ""), RejectReason::INVALID_PDU_FIELD);
    assert_eq!(bench.rejected(F, again.tag, ""), RejectReason::INVALID_PDU_FIELD, "the reject has reset it all");
}

#[test]
fn a_tag_that_was_never_given_is_refused() {
    assert_eq!(Bench::discovery(small()).rejected(F, 0, "SendTargets=All|"), RejectReason::INVALID_PDU_FIELD);
}

#[test]
fn text_while_our_own_goes_on_is_refused() {
    let targets = (0..500).map(|n| target(n, &format!("iqn.2026-11.io.x:target-{n:04}"), "any")).collect();
    let mut bench = Bench::discovery(directory(targets, vec![]));
    let tag = bench.reply(F, NONE, "SendTargets=All|").tag;
    assert_eq!(bench.rejected(F, tag, "SendTargets=All|"), RejectReason::PROTOCOL_ERROR);
}

#[test]
fn a_request_that_is_not_final_is_answered_with_a_tag() {
    for mut bench in [Bench::discovery(small()), Bench::normal(small(), "iqn.2026-11.io.x:a")] {
        let reply = bench.reply(0, NONE, "MaxRecvDataSegmentLength=65536|");
        assert_eq!((reply.flags, reply.text.as_str()), ("", "MaxRecvDataSegmentLength=262144|"));
        assert_eq!(reply.segment, None, "it does not hold before the end");
        let reply = bench.reply(F, reply.tag, "");
        assert_eq!((reply.flags, reply.text.as_str(), reply.segment), ("F", "", Some(65_536)));
    }
}

#[test]
fn what_was_underway_at_a_reset_does_not_hold() {
    let mut bench = Bench::discovery(small());
    bench.reply(0, NONE, "MaxRecvDataSegmentLength=65536|");
    assert_eq!(bench.reply(F, NONE, "InitiatorAlias=x|").segment, None);
    let tag = bench.reply(0, NONE, "MaxRecvDataSegmentLength=65536|").tag;
    assert_eq!(bench.rejected(F, tag, "MaxRecvDataSegmentLength=65536|"), RejectReason::PROTOCOL_ERROR);
    assert_eq!(bench.reply(F, NONE, "").segment, None);
}

#[test]
fn text_may_be_cut_anywhere_over_requests_that_go_on() {
    let text = "SendTargets=iqn.2026-11.io.x:b|X-vendor=1|";
    for cut in 0..=text.len() {
        let mut bench = Bench::discovery(small());
        let reply = bench.reply(C, NONE, &text[..cut]);
        assert_eq!((reply.flags, reply.text.as_str()), ("", ""));
        let reply = bench.reply(F, reply.tag, &text[cut..]);
        assert_eq!(reply.flags, "F");
        assert_eq!(reply.text, format!("{B}X-vendor=NotUnderstood|"));
    }
}

#[test]
fn other_keys_are_refused_by_their_answer() {
    let mut bench = Bench::normal(small(), "iqn.2026-11.io.x:a");
    let answer = bench
        .answer("MaxBurstLength=512|HeaderDigest=CRC32C|AuthMethod=None|X-a=1|InitiatorAlias=me|X-b=NotUnderstood|");
    assert_eq!(answer, "MaxBurstLength=Reject|HeaderDigest=Reject|AuthMethod=Reject|X-a=NotUnderstood|");
    assert_eq!(bench.answer("MaxRecvDataSegmentLength=0|"), "MaxRecvDataSegmentLength=Reject|");
    assert_eq!(bench.answer(""), "");
}

#[test]
fn broken_text_is_refused_with_protocol_error() {
    for text in ["SendTargets|", "=x|", "SendTargets=All|SendTargets=All|", "TargetAddress=10.0.0.1|", "TargetAlias=x|"]
    {
        let mut bench = Bench::discovery(small());
        assert_eq!(bench.rejected(F, NONE, text), RejectReason::PROTOCOL_ERROR, "{text}");
    }
    let mut bench = Bench::discovery(small());
    let mut tag = NONE;
    for _ in 0..8 {
        tag = bench.reply(C, tag, &"x".repeat(8192)).tag;
    }
    assert_eq!(bench.rejected(C, tag, "x"), RejectReason::PROTOCOL_ERROR);
}

#[test]
fn damaged_requests_are_answered_or_refused() {
    let mut dice = 0x5eed_5eed_5eed_5eed_u64;
    let mut below = |bound: u64| {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        dice % bound
    };
    let texts = ["SendTargets=All|", "SendTargets=iqn.2026-11.io.x:a|", "MaxRecvDataSegmentLength=8192|X-a=b|", ""];
    let mut bench = Bench::discovery(small());
    let (mut answered, mut refused) = (0, 0);
    let mut tag = NONE;
    for _ in 0..50_000 {
        let text = texts[usize::try_from(below(4)).unwrap()];
        let mut data = text.replace('|', "\0").into_bytes();
        if !data.is_empty() && below(2) == 0 {
            let at = usize::try_from(below(u64::try_from(data.len()).unwrap())).unwrap();
            data[at] = u8::try_from(below(256)).unwrap();
        }
        let byte1 = [F, F, C, 0][usize::try_from(below(4)).unwrap()];
        let mut header = [0; 48];
        header[0] = 0x04;
        header[1] = byte1;
        let sent_tag = if below(3) == 0 { NONE } else { tag };
        header[20..24].copy_from_slice(&sent_tag.to_be_bytes());
        let request = TextRequest::parse(&Bhs(header)).unwrap();
        match bench.handle(&request, &data) {
            TextStep::Respond { response, .. } => {
                tag = response.target_transfer_tag;
                answered += 1;
            }
            TextStep::Reject(_) => refused += 1,
        }
    }
    assert!(answered > 10_000, "{answered}");
    assert!(refused > 5_000, "{refused}");
}

#[test]
fn a_target_is_told_with_the_portals_of_its_groups_only() {
    let limited = |id, name, groups: &[u16]| Target { portal_groups: groups.to_vec(), ..target(id, name, "any") };
    let targets = vec![
        limited(1, "iqn.2026-11.io.x:one", &[2]),
        limited(2, "iqn.2026-11.io.x:none", &[9]),
        target(3, "iqn.2026-11.io.x:two", "any"),
    ];
    let directory = directory(targets, vec![portal("0.0.0.0:3260", 1), portal("10.1.1.1:3261", 2)]);
    let one = "TargetName=iqn.2026-11.io.x:one|TargetAddress=10.1.1.1:3261,2|";
    let two = "TargetName=iqn.2026-11.io.x:two|TargetAddress=10.0.0.1:3260,1|TargetAddress=10.1.1.1:3261,2|";
    let mut bench = Bench::discovery(directory);
    assert_eq!(bench.answer("SendTargets=All|"), format!("{one}{two}"));
    assert_eq!(bench.answer("SendTargets=iqn.2026-11.io.x:one|"), one);
    assert_eq!(bench.answer("SendTargets=iqn.2026-11.io.x:none|"), "");
}
