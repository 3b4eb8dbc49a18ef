//! Login and its negotiation (RFC 7143 sections 6, 11.12, 11.13 and 13).
//!
//! Seen to fail: with TSIH in every Login Response, with a second offer of a key taken, and with NotUnderstood left
//! out.

use perf::pdu::{FINAL, response};

use crate::support::{Bench, Login, Reply, is_closed};

const SECURITY: u8 = 0;
const OPERATIONAL: u8 = 1;
const FULL: Option<u8> = Some(3);

/// The final answer to these keys in one request of the operational stage.
fn asked(bench: &Bench, keys: &str) -> Reply {
    bench.login().step(OPERATIONAL, FULL, &format!("{}|{keys}", bench.leading_keys()))
}

/// Sections 11.13.1 to 11.13.4 (and Microsoft's deviation 10): what every Login Response holds, and TSIH only in the
/// last.
#[test]
fn login_responses_hold_what_they_must() {
    let bench = Bench::start();
    let mut login = bench.login();
    login.wire.cmd_sn = 4000;
    let first = login.step(SECURITY, Some(OPERATIONAL), &format!("{}|AuthMethod=None", bench.leading_keys()));
    let second = login.step(OPERATIONAL, None, "InitialR2T=Yes");
    let last = login.step(OPERATIONAL, FULL, "");
    for reply in [&first, &second, &last] {
        assert_eq!(reply.status, 0, "{reply:?}");
        assert_eq!((reply.header.0[2], reply.header.0[3]), (0, 0), "Version-max and Version-active");
        assert_eq!((&reply.header.0[8..14], reply.header.task_tag()), (&login.isid[..], 77));
        assert_eq!(reply.header.exp_cmd_sn(), 4000, "login requests are immediate");
    }
    assert_eq!((first.tsih(), second.tsih()), (0, 0));
    assert_ne!(last.tsih(), 0);
    assert_eq!(second.header.stat_sn(), first.header.stat_sn().wrapping_add(1));
    assert_eq!(last.header.stat_sn(), second.header.stat_sn().wrapping_add(1));
    let transit: Vec<u8> = [&first, &second, &last].iter().map(|reply| reply.header.flags()).collect();
    assert_eq!(transit, [0x81, 0x04, 0x87], "section 11.13.2: T only where it was asked for");
    // Section 13.9: in the first answer, whatever it is.
    assert_eq!(first.key("TargetPortalGroupTag"), "1");
}

/// Section 6.1: a text that goes on (C) is answered by nothing until it is whole.
#[test]
fn a_text_in_several_requests_is_taken_together() {
    let bench = Bench::start();
    let mut login = bench.login();
    let text = format!("{}|InitialR2T=No|X-very-private=1|", bench.leading_keys()).replace('|', "\0");
    let (head, tail) = text.as_bytes().split_at(text.len() - 21);
    let mut header = login.header(OPERATIONAL, None);
    header.0[1] |= 0x40;
    login.wire.send(header, head).expect("sent");
    let empty = login.receive();
    assert_eq!((empty.status, empty.header.flags() & 0xc0, empty.text.len()), (0, 0, 0));
    let header = login.header(OPERATIONAL, FULL);
    login.wire.send(header, tail).expect("sent");
    let reply = login.receive();
    assert_eq!((reply.status, reply.key("InitialR2T"), reply.key("X-very-private")), (0, "No", "NotUnderstood"));
}

/// Section 6.2: each kind of key by its own rule: and, or, smaller, larger, first of the list.
#[test]
fn keys_are_answered_by_their_rules() {
    let bench = Bench::start();
    let reply = asked(
        &bench,
        "HeaderDigest=CRC32C,None|DataDigest=None,CRC32C|InitialR2T=No|ImmediateData=No|MaxOutstandingR2T=1|\
         FirstBurstLength=777|MaxBurstLength=4096|DefaultTime2Wait=7|DefaultTime2Retain=0|MaxConnections=1|\
         ErrorRecoveryLevel=0|DataPDUInOrder=Yes|DataSequenceInOrder=Yes",
    );
    assert_eq!(reply.status, 0, "{reply:?}");
    let expected = [
        ("HeaderDigest", "CRC32C"),
        ("DataDigest", "None"),
        ("InitialR2T", "No"),
        ("ImmediateData", "No"),
        ("MaxOutstandingR2T", "1"),
        ("FirstBurstLength", "777"),
        ("MaxBurstLength", "4096"),
        ("DefaultTime2Wait", "7"),
        ("DefaultTime2Retain", "0"),
        ("MaxConnections", "1"),
        ("ErrorRecoveryLevel", "0"),
        ("DataPDUInOrder", "Yes"),
        ("DataSequenceInOrder", "Yes"),
    ];
    for (key, value) in expected {
        // Where only one result is possible the answer may be left out (section 6.2.2); what comes must be right.
        assert_eq!(reply.get(key).unwrap_or(value), value, "{key}");
    }
    let high = asked(
        &bench,
        "InitialR2T=Yes|ImmediateData=Yes|MaxOutstandingR2T=65535|FirstBurstLength=16777215|MaxBurstLength=16777215|\
         DefaultTime2Wait=0|DefaultTime2Retain=3600|MaxConnections=65535|ErrorRecoveryLevel=2|DataPDUInOrder=No|\
         DataSequenceInOrder=No",
    );
    assert_eq!(high.status, 0, "{high:?}");
    let number = |key: &str| high.key(key).parse::<u32>().expect("a number");
    assert_eq!(high.get("InitialR2T").unwrap_or("Yes"), "Yes", "one Yes is enough (13.10)");
    assert!((1..65536).contains(&number("MaxOutstandingR2T")));
    assert!(number("FirstBurstLength") <= number("MaxBurstLength"), "section 13.14");
    assert!(number("MaxBurstLength") >= 512);
    assert!(number("ErrorRecoveryLevel") <= 1 && number("MaxConnections") >= 1);
    assert_eq!(
        (high.get("DataPDUInOrder").unwrap_or("Yes"), high.get("DataSequenceInOrder").unwrap_or("Yes")),
        ("Yes", "Yes")
    );
}

/// Section 6.2: a key that nobody knows, once and at any place; values that the rules do not allow.
#[test]
fn unknown_keys_and_illegal_values_are_answered_as_such() {
    let bench = Bench::start();
    let reply = asked(&bench, "X-com.example.secret=1|Unheard=of|FirstBurstLength=512");
    assert_eq!(
        (reply.status, reply.key("X-com.example.secret"), reply.key("Unheard")),
        (0, "NotUnderstood", "NotUnderstood")
    );
    for (key, value) in [
        ("InitialR2T", "maybe"),
        ("ImmediateData", "yes"),
        ("MaxBurstLength", "511"),
        ("MaxBurstLength", "16777216"),
        ("FirstBurstLength", "0x"),
        ("MaxOutstandingR2T", "0"),
        ("MaxOutstandingR2T", "65536"),
        ("DefaultTime2Wait", "3601"),
        ("ErrorRecoveryLevel", "3"),
        ("HeaderDigest", "CRC64"),
        ("MaxConnections", "0"),
    ] {
        let reply = asked(&bench, &format!("{key}={value}"));
        // The login may go on with the default, or end by an initiator error.
        assert!(reply.status >> 8 == 2 || reply.key(key) == "Reject", "{key}={value}: {reply:?}");
    }
    for value in ["511", "16777216", "-1", "none", ""] {
        let reply = asked(&bench, &format!("MaxRecvDataSegmentLength={value}"));
        assert!(reply.status >> 8 == 2 || reply.key("MaxRecvDataSegmentLength") == "Reject", "{value}: {reply:?}");
    }
}

/// Section 6.2 (and Microsoft's deviation 16): a key is negotiated once.
#[test]
fn a_key_that_comes_twice_ends_the_login() {
    let bench = Bench::start();
    let twice = asked(&bench, "ImmediateData=No|ImmediateData=Yes");
    assert_eq!(twice.status, 0x0200, "{twice:?}");
    for key in ["ImmediateData=Yes", "MaxBurstLength=8192", "DataDigest=None"] {
        let mut login = bench.login();
        let first = login.step(OPERATIONAL, None, &format!("{}|{key}", bench.leading_keys()));
        assert_eq!(first.status, 0);
        let again = login.step(OPERATIONAL, FULL, key);
        assert_eq!(again.status, 0x0200, "{key}: {again:?}");
        assert!(is_closed(&mut login.wire));
    }
}

/// Sections 11.13.5 and 13.3 to 13.5: each refusal under its own number, and then the connection ends.
#[test]
fn refusals_have_their_numbers() {
    let bench = Bench::start();
    let iqn = bench.iqn.clone();
    let name = "InitiatorName=iqn.2026-11.io.x:y";
    let cases: [(&str, String, u16); 7] = [
        ("no InitiatorName", format!("TargetName={iqn}"), 0x0207),
        ("no TargetName", name.to_owned(), 0x0207),
        ("unknown target", format!("{name}|TargetName=iqn.2026-11.io.x:none"), 0x0203),
        ("unknown session type", format!("{name}|TargetName={iqn}|SessionType=Strange"), 0x0209),
        ("no text", "InitiatorName".to_owned(), 0x0200),
        ("malformed name", format!("InitiatorName=nobody|TargetName={iqn}"), 0x0200),
        ("a key of the target", format!("{name}|TargetName={iqn}|TargetAlias=me"), 0x0200),
    ];
    for (what, keys, status) in cases {
        let mut login = bench.login();
        let reply = login.step(OPERATIONAL, FULL, &keys);
        assert_eq!(reply.status, status, "{what}: {reply:?}");
        assert_eq!(reply.tsih(), 0);
        assert!(is_closed(&mut login.wire), "{what}");
    }
    let mut login = bench.login();
    login.version_min = 1;
    assert_eq!(login.step(OPERATIONAL, FULL, &bench.leading_keys()).status, 0x0205, "unsupported version");
    let mut login = bench.login();
    login.tsih = 4711;
    assert_eq!(login.step(OPERATIONAL, FULL, &bench.leading_keys()).status, 0x020a, "no such session");
}

/// Sections 11.12.2, 11.12.3 and 6.3: stages that do not exist, run backwards, or end while text goes on.
#[test]
fn illegal_stages_end_the_login() {
    let bench = Bench::start();
    let refused = |change: &dyn Fn(&mut Login) -> Reply| {
        let mut login = bench.login();
        let reply = change(&mut login);
        assert_eq!(reply.status >> 8, 2, "{reply:?}");
        assert!(is_closed(&mut login.wire));
    };
    refused(&|login| login.step(2, FULL, &bench.leading_keys()));
    refused(&|login| login.step(OPERATIONAL, Some(2), &bench.leading_keys()));
    refused(&|login| login.step(OPERATIONAL, Some(0), &bench.leading_keys()));
    refused(&|login| login.step(OPERATIONAL, Some(1), &bench.leading_keys()));
    refused(&|login| login.step(3, None, &bench.leading_keys()));
    refused(&|login| {
        let mut header = login.header(OPERATIONAL, FULL);
        header.0[1] |= 0x40;
        login.send(header, &bench.leading_keys())
    });
    refused(&|login| {
        let first = login.step(OPERATIONAL, None, &bench.leading_keys());
        assert_eq!(first.status, 0);
        login.step(SECURITY, Some(OPERATIONAL), "AuthMethod=None")
    });
}

/// Section 13.1 and appendix: no digests unless both want them; a method that nobody has ends the login as such.
#[test]
fn authentication_methods_that_nobody_has() {
    let bench = Bench::start();
    let mut login = bench.login();
    let reply = login.step(SECURITY, Some(OPERATIONAL), &format!("{}|AuthMethod=KRB5", bench.leading_keys()));
    assert!(reply.status == 0x0201 || (reply.status >> 8 == 2), "{reply:?}");
    let mut login = bench.login();
    let reply = login.step(SECURITY, Some(OPERATIONAL), &format!("{}|AuthMethod=KRB5,CHAP,None", bench.leading_keys()));
    assert_eq!((reply.status, reply.key("AuthMethod")), (0, "None"));
}

/// Section 6.3.5: the same initiator port logs in again: the old session's connection ends, the new one has another
/// handle.
#[test]
fn the_same_initiator_port_replaces_its_session() {
    let bench = Bench::start();
    let mut old = bench.login();
    let first = old.step(OPERATIONAL, FULL, &bench.leading_keys());
    let mut new = bench.login();
    let second = new.step(OPERATIONAL, FULL, &bench.leading_keys());
    assert_eq!((first.status, second.status), (0, 0));
    assert_ne!(first.tsih(), second.tsih());
    assert!(is_closed(&mut old.wire));
    let mut client = new.into_client(&second);
    assert!(client.settle(0).is_ok());
}

/// Section 6.1: one negotiation is bounded, and at least 8 KiB of keys are taken.
#[test]
fn long_negotiations_are_taken_and_endless_ones_end() {
    let bench = Bench::start();
    let long: String = (0..100).map(|n| format!("X-io.lunaring.k{n}={}|", "v".repeat(60))).collect();
    let reply = asked(&bench, long.trim_end_matches('|'));
    assert_eq!(reply.status, 0);
    let mut login = bench.login();
    login.step(OPERATIONAL, None, &bench.leading_keys());
    let mut requests = 0;
    loop {
        let mut header = login.header(OPERATIONAL, None);
        header.0[1] |= 0x40;
        if login.wire.send(header, &[b'A'; 4000]).is_err() {
            break;
        }
        let Ok(answer) = login.wire.receive() else { break };
        assert_eq!(answer.header.opcode(), response::LOGIN);
        if answer.header.0[36] != 0 {
            assert_eq!(answer.header.0[36], 2);
            break;
        }
        requests += 1;
        assert!(requests < 10_000, "it has to end");
    }
}

/// Section 4.3: keys that mean nothing in a discovery session are irrelevant there, and it works without a target.
#[test]
fn a_discovery_session_needs_no_target() {
    let bench = Bench::start();
    let mut login = bench.login();
    let keys = "InitiatorName=iqn.2026-11.io.x:y|SessionType=Discovery|InitialR2T=No|MaxBurstLength=4096";
    let reply = login.step(OPERATIONAL, FULL, keys);
    assert_eq!(reply.status, 0, "{reply:?}");
    assert_ne!(reply.tsih(), 0);
    assert_eq!(reply.header.flags(), FINAL | OPERATIONAL << 2 | 3);
    let answer = login.wire.text(b"SendTargets=All\0").expect("an answer");
    assert!(String::from_utf8_lossy(&answer).contains(&format!("TargetName={}\0TargetAddress=", bench.iqn)));
}

/// Section 6.1: a key's name has at most 63 bytes; one as long as that is understood for what it is.
#[test]
fn the_longest_key_name_is_taken_and_a_longer_one_is_not() {
    let bench = Bench::start();
    let longest = format!("X-{}", "k".repeat(61));
    let reply = asked(&bench, &format!("{longest}=1"));
    assert_eq!((reply.status, reply.key(&longest)), (0, "NotUnderstood"));
    let longer = asked(&bench, &format!("{longest}k=1"));
    assert_eq!(longer.status, 0x0200, "{longer:?}");
}

/// Sections 4.4.3.2 and 11.12.5: another ISID is another session of the same initiator, and both live.
#[test]
fn another_isid_is_another_session() {
    let bench = Bench::start();
    let mut clients: Vec<_> = (0..3u8)
        .map(|number| {
            let mut login = bench.login();
            login.isid[5] = number;
            let reply = login.step(OPERATIONAL, FULL, &bench.leading_keys());
            assert_eq!(reply.status, 0, "{reply:?}");
            (reply.tsih(), login.into_client(&reply))
        })
        .collect();
    let mut handles: Vec<u16> = clients.iter().map(|(tsih, _)| *tsih).collect();
    handles.sort_unstable();
    handles.dedup();
    assert_eq!(handles.len(), 3, "each session has its own handle");
    for (_, client) in &mut clients {
        client.settle(0).expect("it lives");
    }
}
