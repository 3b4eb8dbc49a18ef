//! What initiators get wrong, and the status that tells them.

use super::{
    Algorithm, Authentication, Bench, CONTINUE, Directory, LoginReceive, LoginStatus, LoginStep, OPERATIONAL,
    OPERATIONAL_TO_FULL, Redirect, SECURITY, SECURITY_TO_FULL, SECURITY_TO_OPERATIONAL, WHO, chap, refused, request,
    target,
};
use crate::limits::{LOGIN_REQUESTS_MAX, NEGOTIATION_BYTES_MAX};

const ONE_SHOT: u8 = OPERATIONAL_TO_FULL;

#[test]
fn identity_is_asked_for_in_the_first_request() {
    assert_eq!(refused(ONE_SHOT, "TargetName=iqn.2026-11.io.lunaring:demo|"), 0x0207);
    assert_eq!(refused(ONE_SHOT, "InitiatorName=iqn.host|"), 0x0207);
    assert_eq!(refused(ONE_SHOT, ""), 0x0207);
    assert_eq!(refused(ONE_SHOT, "InitiatorName=host|TargetName=iqn.2026-11.io.lunaring:demo|"), 0x0200);
    assert_eq!(refused(ONE_SHOT, &format!("{WHO}SessionType=Sideways|")), 0x0209);
    let mut late = Bench::open();
    late.reply(&request(OPERATIONAL, WHO));
    assert_eq!(late.refusal(&request(OPERATIONAL, "SessionType=Discovery|")), LoginStatus::INITIATOR_ERROR);
}

#[test]
fn targets_that_are_not_there_or_not_allowed_are_refused() {
    let login = |target: &str| refused(ONE_SHOT, &format!("InitiatorName=iqn.host|TargetName={target}|"));
    assert_eq!(login("iqn.2026-11.io.lunaring:nothing"), 0x0203);
    assert_eq!(login(""), 0x0203);
    assert_eq!(login("iqn.2026-11.io.lunaring:closed"), 0x0202);
    assert_eq!(login("iqn.2026-11.io.lunaring:elsewhere"), 0x0202);
    let other = "InitiatorName=iqn.OTHER|TargetName=IQN.2026-11.io.lunaring:elsewhere|";
    Bench::open().established(&request(ONE_SHOT, other));
}

#[test]
fn the_operator_is_told_who_was_refused_and_why() {
    let text = "InitiatorName=iqn.host|TargetName=iqn.2026-11.io.lunaring:closed|";
    let LoginStep::Close { failure, .. } = Bench::open().step(&request(ONE_SHOT, text)) else { panic!() };
    let expected = "login of iqn.host refused with status 0202: \
        no access rule of iqn.2026-11.io.lunaring:closed allows it from 10.0.0.9";
    assert_eq!(failure.to_string(), expected);
}

#[test]
fn versions_that_do_not_exist_are_refused() {
    let mut pdu = request(ONE_SHOT, WHO);
    (pdu[2], pdu[3]) = (2, 1);
    assert_eq!(Bench::open().refusal(&pdu), LoginStatus::UNSUPPORTED_VERSION);
    (pdu[2], pdu[3]) = (2, 0);
    Bench::open().established(&pdu);
}

#[test]
fn stages_change_only_as_agreed() {
    for byte1 in [0x08, 0x0c, 0x80, 0x82, 0x84, 0x85, 0x86, 0xc7, 0x8b, 0x8f] {
        assert_eq!(refused(byte1, WHO), 0x0200, "{byte1:02x}");
    }
    let mut not_agreed = Bench::open();
    not_agreed.reply(&request(SECURITY, WHO));
    assert_eq!(not_agreed.refusal(&request(OPERATIONAL, "")), LoginStatus::INITIATOR_ERROR);
    let mut back = Bench::open();
    back.reply(&request(OPERATIONAL, WHO));
    assert_eq!(back.refusal(&request(SECURITY, "")), LoginStatus::INITIATOR_ERROR);
}

#[test]
fn what_the_first_header_says_must_not_change() {
    for at in [8, 13, 14, 15, 16, 19, 20, 21, 2] {
        let mut bench = Bench::open();
        bench.reply(&request(OPERATIONAL, WHO));
        let mut pdu = request(OPERATIONAL, "");
        pdu[at] ^= 1;
        assert_eq!(bench.refusal(&pdu), LoginStatus::INITIATOR_ERROR, "byte {at}");
    }
}

#[test]
fn a_key_that_comes_twice_ends_the_login() {
    for keys in ["ImmediateData=Yes|ImmediateData=Yes|", "DataDigest=None|MaxBurstLength=512|DataDigest=CRC32C|"] {
        assert_eq!(refused(ONE_SHOT, &format!("{WHO}{keys}")), 0x0200);
    }
    assert_eq!(refused(ONE_SHOT, &format!("{WHO}InitiatorName=iqn.other|")), 0x0200);
    for key in ["ImmediateData=No|", "MaxBurstLength=1024|", "DataDigest=None|", "MaxRecvDataSegmentLength=1024|"] {
        let mut bench = Bench::open();
        bench.reply(&request(OPERATIONAL, &format!("{WHO}{key}")));
        assert_eq!(bench.refusal(&request(OPERATIONAL, key)), LoginStatus::INITIATOR_ERROR, "{key}");
    }
    let mut bench = Bench::open();
    bench.reply(&request(SECURITY, &format!("{WHO}AuthMethod=None|")));
    assert_eq!(bench.refusal(&request(SECURITY, "AuthMethod=None|")), LoginStatus::INITIATOR_ERROR);
}

#[test]
fn keys_of_the_target_and_unasked_answers_end_the_login() {
    for key in [
        "TargetPortalGroupTag=NotUnderstood|",
        "TargetPortalGroupTag=1|",
        "TargetAlias=x|",
        "TargetAddress=10.0.0.1|",
        "MaxBurstLength=Reject|",
        "ImmediateData=Irrelevant|",
        "HeaderDigest=NotUnderstood|",
        "MaxRecvDataSegmentLength=NotUnderstood|",
    ] {
        assert_eq!(refused(ONE_SHOT, &format!("{WHO}{key}")), 0x0200, "{key}");
    }
}

#[test]
fn keys_at_the_wrong_moment_end_the_login() {
    assert_eq!(refused(ONE_SHOT, &format!("{WHO}AuthMethod=None|")), 0x0200);
    assert_eq!(refused(ONE_SHOT, &format!("{WHO}SendTargets=All|")), 0x0200);
    assert_eq!(refused(SECURITY, &format!("{WHO}HeaderDigest=None|")), 0x0200);
    assert_eq!(refused(SECURITY, &format!("{WHO}MaxRecvDataSegmentLength=8192|")), 0x0200);
}

#[test]
fn declarations_must_be_legal() {
    for value in ["", "0", "511", "16777216", "x", "-1", "08192", "8192 "] {
        assert_eq!(refused(ONE_SHOT, &format!("{WHO}MaxRecvDataSegmentLength={value}|")), 0x0200, "{value}");
    }
}

#[test]
fn malformed_text_ends_the_login() {
    for text in ["=x|", "NoEquals|", "1Key=2|", "Key with space=1|"] {
        assert_eq!(refused(ONE_SHOT, &format!("{WHO}{text}")), 0x0200, "{text}");
    }
    assert_eq!(refused(ONE_SHOT, &format!("{WHO}{}=1|", "K".repeat(64))), 0x0200);
    let mut not_utf8 = request(ONE_SHOT, &format!("{WHO}X-y=z|"));
    let at = not_utf8.iter().rposition(|&byte| byte == b'z').unwrap();
    not_utf8[at] = 0xff;
    assert_eq!(Bench::open().refusal(&not_utf8), LoginStatus::INITIATOR_ERROR);
}

#[test]
fn surplus_zero_bytes_and_a_missing_last_one_are_passed_over() {
    Bench::open().established(&request(ONE_SHOT, &format!("||{WHO}|||")));
    Bench::open().established(&request(ONE_SHOT, WHO.trim_end_matches('|')));
}

#[test]
fn a_login_that_never_ends_is_ended() {
    let mut bench = Bench::open();
    bench.reply(&request(OPERATIONAL, WHO));
    for _ in 1..LOGIN_REQUESTS_MAX {
        bench.reply(&request(OPERATIONAL, ""));
    }
    assert_eq!(bench.refusal(&request(OPERATIONAL, "")), LoginStatus::INITIATOR_ERROR);
    let mut bench = Bench::open();
    let piece = "x".repeat(8192);
    for _ in 0..NEGOTIATION_BYTES_MAX / 8192 {
        bench.reply(&request(OPERATIONAL | CONTINUE, &piece));
    }
    assert_eq!(bench.refusal(&request(OPERATIONAL | CONTINUE, "x")), LoginStatus::INITIATOR_ERROR);
}

#[test]
fn an_answer_beyond_every_bound_is_not_built() {
    let mut bench = Bench::open();
    let questions = "X=1|".repeat(2000);
    bench.reply(&request(OPERATIONAL | CONTINUE, WHO));
    for _ in 0..6 {
        bench.reply(&request(OPERATIONAL | CONTINUE, &questions));
    }
    assert_eq!(bench.refusal(&request(OPERATIONAL, &questions)), LoginStatus::INITIATOR_ERROR);
}

#[test]
fn text_while_our_own_text_goes_on_ends_the_login() {
    let mut bench = Bench::open();
    let questions: String = (0..500).map(|n| format!("X-{n}=1|")).collect();
    assert!(bench.reply(&request(OPERATIONAL, &format!("{WHO}{questions}"))).continues);
    assert_eq!(bench.refusal(&request(OPERATIONAL, "X-y=1|")), LoginStatus::INITIATOR_ERROR);
}

#[test]
fn a_long_segment_is_refused_before_it_has_come() {
    let mut pdu = request(ONE_SHOT, WHO);
    pdu[5..8].copy_from_slice(&[0, 0x20, 1]);
    assert_eq!(Bench::open().refusal(&pdu[..48]), LoginStatus::INITIATOR_ERROR);
    let mut pdu = request(ONE_SHOT, WHO);
    pdu[4] = 1;
    assert_eq!(Bench::open().refusal(&pdu[..48]), LoginStatus::INITIATOR_ERROR);
}

#[test]
fn bytes_are_awaited_until_the_pdu_is_whole() {
    let pdu = request(ONE_SHOT, WHO);
    for len in 0..pdu.len() {
        let needed = if len < 48 { 48 } else { pdu.len() };
        let LoginReceive::NeedBytes(n) = Bench::open().receive(&pdu[..len]) else { panic!("{len}") };
        assert_eq!(n, needed);
    }
}

#[test]
fn other_pdus_end_the_login_and_before_it_without_a_word() {
    let mut command = request(0x80, "");
    command[0] = 0x01;
    let LoginStep::Close { reply: None, .. } = Bench::open().step(&command) else { panic!() };
    let mut bench = Bench::open();
    bench.reply(&request(OPERATIONAL, WHO));
    assert_eq!(bench.refusal(&command), LoginStatus::INVALID_DURING_LOGIN);
}

#[test]
fn chap_cannot_be_passed_by() {
    let attempt = |byte1, keys: &str| Bench::new(chap(false)).refusal(&request(byte1, &format!("{WHO}{keys}")));
    assert_eq!(attempt(OPERATIONAL_TO_FULL, ""), LoginStatus::AUTHENTICATION_FAILURE);
    assert_eq!(attempt(OPERATIONAL, ""), LoginStatus::AUTHENTICATION_FAILURE);
    assert_eq!(attempt(SECURITY_TO_FULL, ""), LoginStatus::AUTHENTICATION_FAILURE);
    assert_eq!(attempt(SECURITY_TO_OPERATIONAL, "AuthMethod=None|"), LoginStatus::AUTHENTICATION_FAILURE);
    assert_eq!(attempt(SECURITY, "AuthMethod=KRB5,SRP|"), LoginStatus::AUTHENTICATION_FAILURE);
    assert_eq!(attempt(SECURITY, "CHAP_A=5|"), LoginStatus::AUTHENTICATION_FAILURE);
    assert_eq!(attempt(SECURITY, "AuthMethod=CHAP|CHAP_A=5|"), LoginStatus::AUTHENTICATION_FAILURE);
    // Silence is waited for, and does not lead out of the stage.
    let mut bench = Bench::new(chap(false));
    assert!(!bench.reply(&request(SECURITY, WHO)).transit);
    assert!(!bench.reply(&request(SECURITY_TO_FULL, "AuthMethod=CHAP|")).transit);
    assert_eq!(bench.refusal(&request(SECURITY_TO_FULL, "")), LoginStatus::AUTHENTICATION_FAILURE);
}

#[test]
fn an_initiator_that_insists_on_chap_fails_where_none_is_configured() {
    let mut bench = Bench::open();
    assert_eq!(
        bench.refusal(&request(SECURITY, &format!("{WHO}AuthMethod=CHAP|"))),
        LoginStatus::AUTHENTICATION_FAILURE
    );
}

/// The status of the last request of a CHAP with MD5; the right response is known.
fn proof(mutual: bool, last: &str) -> LoginStatus {
    let mut bench = Bench::new(chap(mutual));
    bench.policy.chap_algorithms = vec![Algorithm::Md5];
    bench.reply(&request(SECURITY, &format!("{WHO}AuthMethod=CHAP|")));
    bench.reply(&request(SECURITY, "CHAP_A=5|"));
    bench.refusal(&request(SECURITY_TO_OPERATIONAL, last))
}

#[test]
fn a_wrong_proof_is_refused() {
    const RIGHT: &str = "CHAP_R=0xde4495d7a18f4307beb1945e78bf7de8|";
    let failure = LoginStatus::AUTHENTICATION_FAILURE;
    assert_eq!(proof(false, "CHAP_N=alice|CHAP_R=0xde4495d7a18f4307beb1945e78bf7de9|"), failure);
    assert_eq!(proof(false, &format!("CHAP_N=Alice|{RIGHT}")), failure);
    assert_eq!(proof(false, &format!("CHAP_N=|{RIGHT}")), failure);
    assert_eq!(proof(false, RIGHT), failure);
    assert_eq!(proof(false, "CHAP_N=alice|"), failure);
    assert_eq!(proof(false, "CHAP_N=alice|CHAP_R=|"), failure);
    assert_eq!(proof(false, "CHAP_N=alice|CHAP_R=0x|"), failure);
    assert_eq!(proof(false, "CHAP_N=alice|CHAP_R=0xde|"), failure);
    assert_eq!(
        proof(false, "CHAP_N=alice|CHAP_R=0xde4495d7a18f4307beb1945e78bf7de8de4495d7a18f4307beb1945e78bf7de8|"),
        failure
    );
    // The right proof, with a challenge to a target that has no secret of its own.
    assert_eq!(proof(false, &format!("CHAP_N=alice|{RIGHT}CHAP_I=1|CHAP_C=0x00112233|")), failure);
    // Half a challenge, an empty one, one that is too long, and an impossible identifier.
    assert_eq!(proof(true, &format!("CHAP_N=alice|{RIGHT}CHAP_I=1|")), failure);
    assert_eq!(proof(true, &format!("CHAP_N=alice|{RIGHT}CHAP_C=0x00|")), failure);
    assert_eq!(proof(true, &format!("CHAP_N=alice|{RIGHT}CHAP_I=256|CHAP_C=0x00|")), failure);
    assert_eq!(proof(true, &format!("CHAP_N=alice|{RIGHT}CHAP_I=1|CHAP_C=0x{}|", "00".repeat(1025))), failure);
}

#[test]
fn our_own_challenge_is_not_answered() {
    let reflected =
        "CHAP_N=alice|CHAP_R=0xde4495d7a18f4307beb1945e78bf7de8|CHAP_I=3|CHAP_C=0x0a11181f262d343b424950575e656c73|";
    assert_eq!(proof(true, reflected), LoginStatus::AUTHENTICATION_FAILURE);
    let base64 = "CHAP_N=alice|CHAP_R=0xde4495d7a18f4307beb1945e78bf7de8|CHAP_I=3|CHAP_C=0bChEYHyYtNDtCSVBXXmVscw==|";
    assert_eq!(proof(true, base64), LoginStatus::AUTHENTICATION_FAILURE);
}

#[test]
fn no_algorithm_in_common_is_a_failure() {
    for offered in ["99", "", "x", "5,"] {
        let mut bench = Bench::new(chap(false));
        bench.policy.chap_algorithms = vec![Algorithm::Sha256];
        bench.reply(&request(SECURITY, &format!("{WHO}AuthMethod=CHAP|")));
        let status = bench.refusal(&request(SECURITY, &format!("CHAP_A={offered}|")));
        assert_eq!(status, LoginStatus::AUTHENTICATION_FAILURE, "{offered}");
    }
}

#[test]
fn discovery_has_its_own_authentication() {
    let mut bench = Bench::open();
    let targets = vec![target(1, super::TARGET, "any", Authentication::None)];
    bench.directory = Directory::new(targets, vec![], chap(false)).unwrap();
    let status = bench.refusal(&request(ONE_SHOT, "InitiatorName=iqn.host|SessionType=Discovery|"));
    assert_eq!(status, LoginStatus::AUTHENTICATION_FAILURE);
}

#[test]
fn who_is_sent_elsewhere_is_told_where_and_for_how_long() {
    for (permanent, status) in [(false, 0x0101), (true, 0x0102)] {
        let mut bench = Bench::open();
        let mut moved = target(4, "iqn.2026-11.io.lunaring:moved", "iqn:iqn.host", chap(false));
        moved.redirects = vec![Redirect { portal: None, address: "[2001:db8::1]:3261".to_owned(), permanent }];
        bench.directory = Directory::new(vec![moved], vec![], Authentication::None).unwrap();
        let ask = |name: &str| format!("InitiatorName={name}|TargetName=iqn.2026-11.io.lunaring:moved|");
        let LoginStep::Close { reply: Some(reply), failure } = bench.step(&request(SECURITY_TO_FULL, &ask("iqn.host")))
        else {
            panic!()
        };
        assert_eq!((reply.bhs.0[1], &reply.bhs.0[36..38]), (0, &[1, 1 + u8::from(permanent)][..]));
        assert_eq!(failure.status, LoginStatus(status));
        assert_eq!(reply.data, b"TargetAddress=[2001:db8::1]:3261\0", "no portal group tag");
        assert_eq!(reply.bhs.data_segment_len(), reply.data.len());
        // Whom no rule allows learns nothing.
        let mut stranger = Bench::open();
        stranger.directory = bench.directory;
        assert_eq!(stranger.refusal(&request(SECURITY_TO_FULL, &ask("iqn.other"))), LoginStatus::AUTHORIZATION_FAILURE);
    }
}

#[test]
fn only_the_algorithms_of_the_target_and_of_the_server_are_taken() {
    let offer = |of_server: &[Algorithm], of_target: &[Algorithm], offered: &str| {
        let Authentication::Chap(credentials) = chap(false) else { panic!() };
        let credentials = credentials.with_algorithms(of_target.to_vec());
        let mut bench = Bench::new(Authentication::Chap(credentials));
        bench.policy.chap_algorithms = of_server.to_vec();
        bench.reply(&request(SECURITY, &format!("{WHO}AuthMethod=CHAP|")));
        match bench.step(&request(SECURITY, &format!("CHAP_A={offered}|"))) {
            LoginStep::Reply(reply) => {
                let text = String::from_utf8(reply.data).unwrap();
                text.strip_prefix("CHAP_A=").unwrap()[..1].parse::<u8>().ok()
            }
            LoginStep::Close { failure, .. } => {
                assert_eq!(failure.status, LoginStatus::AUTHENTICATION_FAILURE);
                None
            }
            LoginStep::Establish(_) => panic!(),
        }
    };
    use Algorithm::{Md5, Sha1, Sha3_256, Sha256};
    let all = [Sha3_256, Sha256, Sha1, Md5];
    assert_eq!(offer(&all, &[], "5,6,7,8"), Some(8));
    assert_eq!(offer(&all, &[], "5"), Some(5));
    assert_eq!(offer(&all, &[Sha256], "5,6,7,8"), Some(7));
    assert_eq!(offer(&all, &[Sha256, Sha3_256], "5,6"), None);
    assert_eq!(offer(&[Sha256, Sha1], &[Sha1, Md5], "5,6,7,8"), Some(6));
    assert_eq!(offer(&[Sha256], &[Md5], "5,7"), None);
}
