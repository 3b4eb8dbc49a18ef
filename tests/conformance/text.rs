//! Text requests of the full feature phase (RFC 7143 sections 6.4, 11.10, 11.11 and appendix C).
//!
//! Seen to fail: the texts in pieces, with a Target Transfer Tag that stays the reserved one.

use perf::client::Client;
use perf::pdu::{FINAL, Header, IMMEDIATE, request, response};

use crate::support::{BLOCK, Bench, command, expect, expect_reject, is_alive, read_16};

const CONTINUE: u8 = 0x40;

fn send(client: &mut Client, flags: u8, transfer_tag: u32, text: &str) -> Header {
    let header = client.request(request::TEXT | IMMEDIATE, flags).with_word(20, transfer_tag);
    client.wire.send(header, text.replace('|', "\0").as_bytes()).expect("sent");
    header
}

fn answer(client: &mut Client, request: &Header) -> (Header, String) {
    let pdu = expect(client, response::TEXT);
    assert_eq!(pdu.header.task_tag(), request.task_tag());
    (pdu.header, String::from_utf8_lossy(&pdu.data).replace('\0', "|"))
}

/// Appendix C: a normal session learns of its own target, and of no other.
#[test]
fn a_normal_session_learns_of_its_own_target() {
    let bench = Bench::start();
    bench.server.target_with("other", "bench");
    let mut client = bench.client();
    let portal = bench.server.portals[0];
    for asked in ["", "All", &bench.iqn] {
        let request = send(&mut client, FINAL, u32::MAX, &format!("SendTargets={asked}|"));
        let (header, text) = answer(&mut client, &request);
        assert_eq!(text, format!("TargetName={}|TargetAddress={portal},1|", bench.iqn));
        assert_eq!((header.flags(), header.word(20)), (FINAL, u32::MAX));
    }
    let request = send(&mut client, FINAL, u32::MAX, "SendTargets=iqn.2026-11.io.lunaring:other|");
    assert_eq!(answer(&mut client, &request).1, "");
}

/// Section 6.2: unknown keys, and keys that only a login may negotiate.
#[test]
fn keys_that_are_not_for_now_are_answered_as_such() {
    let bench = Bench::start();
    let mut client = bench.client();
    let request = send(&mut client, FINAL, u32::MAX, "X-com.example.a=b|");
    assert_eq!(answer(&mut client, &request).1, "X-com.example.a=NotUnderstood|");
    for key in ["HeaderDigest=CRC32C", "MaxBurstLength=512", "ImmediateData=No", "InitiatorName=iqn.2026-11.io.x:z"] {
        let request = send(&mut client, FINAL, u32::MAX, &format!("{key}|"));
        let pdu = client.receive().expect("an answer");
        match pdu.header.opcode() {
            response::REJECT => assert_eq!(pdu.data[16..20], request.0[16..20]),
            _ => assert!(String::from_utf8_lossy(&pdu.data).contains("=Reject"), "{key}: {:?}", pdu.data),
        }
    }
    assert!(is_alive(&mut client));
}

/// Sections 6.1 and 11.10.1 (and Microsoft's deviations 5 and 9): a text in pieces.
#[test]
fn a_text_in_pieces_is_taken_together() {
    let bench = Bench::start();
    let mut client = bench.client();
    let first = send(&mut client, CONTINUE, u32::MAX, "X-com.exam");
    let (header, text) = answer(&mut client, &first);
    assert_eq!((header.flags() & 0xc0, text.as_str()), (0, ""), "nothing is said before it is whole");
    let tag = header.word(20);
    assert_ne!(tag, u32::MAX, "section 11.11.4");
    let next = client.request(request::TEXT | IMMEDIATE, FINAL).with_word(16, first.task_tag()).with_word(20, tag);
    client.wire.send(next, b"ple.a=b\0").expect("sent");
    let (header, text) = answer(&mut client, &first);
    assert_eq!((header.flags(), header.word(20), text.as_str()), (FINAL, u32::MAX, "X-com.example.a=NotUnderstood|"));
}

/// Sections 11.10.1 and 11.11.1: an exchange that the initiator leaves open stays open; F answers F.
#[test]
fn an_exchange_ends_when_both_say_so() {
    let bench = Bench::start();
    let mut client = bench.client();
    let first = send(&mut client, 0, u32::MAX, "SendTargets=|");
    let (header, text) = answer(&mut client, &first);
    assert_eq!(header.flags() & FINAL, 0);
    assert!(text.starts_with("TargetName="));
    let next =
        client.request(request::TEXT | IMMEDIATE, FINAL).with_word(16, first.task_tag()).with_word(20, header.word(20));
    client.wire.send(next, &[]).expect("sent");
    let (header, text) = answer(&mut client, &first);
    assert_eq!((header.flags(), header.word(20), text.as_str()), (FINAL, u32::MAX, ""));
}

/// Section 13.12: MaxRecvDataSegmentLength may be declared anew, and holds from then on.
#[test]
fn the_segment_length_may_be_declared_anew() {
    let bench = Bench::start();
    let mut client = bench.client();
    let request = send(&mut client, FINAL, u32::MAX, "MaxRecvDataSegmentLength=512|");
    assert!(answer(&mut client, &request).1.starts_with("MaxRecvDataSegmentLength="));
    let read = command(&mut client, FINAL | 0x40, 4 * BLOCK, &read_16(0, 4));
    client.wire.send(read, &[]).expect("sent");
    for _ in 0..4 {
        assert_eq!(expect(&mut client, response::DATA_IN).data.len(), 512);
    }
}

/// Section 11.10.4: a tag that the target never gave.
#[test]
fn an_unknown_transfer_tag_is_rejected() {
    let bench = Bench::start();
    let mut client = bench.client();
    let request = send(&mut client, FINAL, 0x1234, "SendTargets=|");
    let pdu = client.receive().expect("an answer");
    assert_eq!((pdu.header.opcode(), &pdu.data[16..20]), (response::REJECT, &request.0[16..20]));
    assert!(is_alive(&mut client));
}

/// Sections 11.10.1 and 6.1: C and F together, and text that is no text.
#[test]
fn malformed_texts_are_rejected() {
    let bench = Bench::start();
    let mut client = bench.client();
    let both = send(&mut client, FINAL | CONTINUE, u32::MAX, "SendTargets=|");
    let pdu = expect(&mut client, response::REJECT);
    assert_eq!(pdu.data[16..20], both.0[16..20]);
    let nothing = send(&mut client, FINAL, u32::MAX, "no equals sign|");
    expect_reject(&mut client, 0x04, &nothing);
    let again = send(&mut client, FINAL, u32::MAX, "SendTargets=|");
    assert!(answer(&mut client, &again).1.starts_with("TargetName="));
}

/// Sections 6.2 and 11.11.2: an answer longer than the initiator takes comes in pieces, each with C and a tag but the
/// last, and each asked for by an empty request.
#[test]
fn a_long_listing_comes_in_pieces() {
    let bench = Bench::start();
    let names: Vec<String> = (0..30).map(|number| format!("piece-{number}")).collect();
    for name in &names {
        bench.server.target_with(name, "bench");
    }
    let mut login = bench.login();
    let keys = "InitiatorName=iqn.2026-11.io.x:y|SessionType=Discovery|MaxRecvDataSegmentLength=512";
    let reply = login.step(1, Some(3), keys);
    assert_eq!(reply.status, 0, "{reply:?}");
    let mut client = login.into_client(&reply);
    let first = send(&mut client, FINAL, u32::MAX, "SendTargets=All|");
    let (mut whole, mut pieces) = (String::new(), 0);
    loop {
        let (header, text) = answer(&mut client, &first);
        assert!(text.len() <= 512, "section 13.12: {} bytes", text.len());
        (whole, pieces) = (whole + &text, pieces + 1);
        if header.flags() & FINAL != 0 {
            assert_eq!((header.flags(), header.word(20)), (FINAL, u32::MAX));
            break;
        }
        assert_eq!(header.flags(), CONTINUE);
        assert_ne!(header.word(20), u32::MAX, "section 11.11.4");
        let next = client.request(request::TEXT | IMMEDIATE, FINAL);
        let next = next.with_word(16, first.task_tag()).with_word(20, header.word(20));
        client.wire.send(next, &[]).expect("sent");
    }
    assert!(pieces > 3, "{pieces} pieces");
    for name in names {
        assert!(
            whole.contains(&format!("TargetName=iqn.2026-11.io.lunaring:{name}|TargetAddress=")),
            "{name}: {whole}"
        );
    }
}

/// Section 11.10.4: a request without a Target Transfer Tag begins anew, and what was underway is gone.
#[test]
fn a_new_text_drops_the_one_underway() {
    let bench = Bench::start();
    let mut client = bench.client();
    let first = send(&mut client, CONTINUE, u32::MAX, "X-com.exam");
    let tag = answer(&mut client, &first).0.word(20);
    let second = send(&mut client, FINAL, u32::MAX, "X-com.other=1|");
    assert_eq!(answer(&mut client, &second).1, "X-com.other=NotUnderstood|");
    let late = client.request(request::TEXT | IMMEDIATE, FINAL).with_word(16, first.task_tag()).with_word(20, tag);
    client.wire.send(late, b"ple.a=b\0").expect("sent");
    let pdu = expect(&mut client, response::REJECT);
    assert_eq!(pdu.data[16..20], late.0[16..20]);
    assert!(is_alive(&mut client));
}
