//! Logins of real initiators, byte by byte.

use super::{Bench, LoginStep, OPERATIONAL_TO_FULL, Reply, SECURITY_TO_OPERATIONAL, TARGET, captured, chap, request};

/// The initiator's login PDUs of a captured session.
fn logins(session: &str) -> Vec<Vec<u8>> {
    let pdus = captured(session).into_iter();
    pdus.filter(|(side, pdu)| *side == 'I' && pdu[0] == 0x43).map(|(_, pdu)| pdu).collect()
}

#[test]
fn libiscsi_discovers() {
    let [login] = logins("discovery").try_into().unwrap();
    let mut bench = Bench::open();
    assert!(matches!(bench.step(&login), LoginStep::Establish(_)));
    let (reply, established) = bench.login.granted(1);
    // Byte by byte: T, CSG 1, NSG 3; ISID and task tag as they came; StatSN 1, ExpCmdSN, MaxCmdSN 127 further; status
    // 0.
    let header =
        "238700000000016c 80f5459f0000 0001 30d96ae3 00000000 00000001 20be6b34 20be6bb3 0000 00000000000000000000";
    let header: String = header.split_whitespace().collect();
    assert_eq!(reply.bhs.0.iter().map(|byte| format!("{byte:02x}")).collect::<String>(), header);
    let text = "HeaderDigest=None|DataDigest=None|InitialR2T=Irrelevant|ImmediateData=Irrelevant|\
        MaxBurstLength=Irrelevant|\
        FirstBurstLength=Irrelevant|DefaultTime2Wait=2|DefaultTime2Retain=0|MaxOutstandingR2T=Irrelevant|\
        ErrorRecoveryLevel=0|\
        IFMarker=No|OFMarker=No|MaxConnections=Irrelevant|DataPDUInOrder=Irrelevant|DataSequenceInOrder=Irrelevant|\
        MaxRecvDataSegmentLength=262144|";
    assert_eq!(Reply::read(&reply).text, text);
    assert!(established.identity.is_discovery());
}

#[test]
fn libiscsi_logs_in_without_authentication() {
    let [login] = logins("no authentication").try_into().unwrap();
    let (reply, established) = Bench::open().established(&login);
    let text = "TargetPortalGroupTag=7|HeaderDigest=None|DataDigest=None|InitialR2T=No|ImmediateData=Yes|\
        MaxBurstLength=262144|FirstBurstLength=262144|DefaultTime2Wait=2|DefaultTime2Retain=0|MaxOutstandingR2T=1|\
        ErrorRecoveryLevel=0|IFMarker=No|OFMarker=No|MaxConnections=1|DataPDUInOrder=Yes|DataSequenceInOrder=Yes|\
        MaxRecvDataSegmentLength=262144|";
    assert_eq!(reply.text, text);
    assert_eq!(established.identity.target.unwrap().1.as_str(), TARGET);
    assert_eq!(established.negotiated.transmit_segment_length_max, 262_144);
}

#[test]
fn libiscsi_offers_chap_and_is_challenged() {
    for session in ["CHAP", "mutual CHAP"] {
        let mut bench = Bench::new(chap(true));
        let logins = logins(session);
        let reply = bench.reply(&logins[0]);
        assert_eq!(reply.text, "TargetPortalGroupTag=7|AuthMethod=CHAP|");
        let reply = bench.reply(&logins[1]);
        assert_eq!(reply.value("CHAP_A"), Some("5"));
        // Its proof answers tgt's challenge, not ours.
        assert_eq!(bench.refusal(&logins[2]).0, 0x0201);
    }
}

#[test]
fn open_iscsi_logs_in_with_its_default_settings() {
    // The keys and their order of open-iscsi 2.1 with the settings of its iscsid.conf.
    let mut bench = Bench::open();
    let reply = bench.reply(&request(
        SECURITY_TO_OPERATIONAL,
        "InitiatorName=iqn.1993-08.org.debian:01:4f7fa2a8b1c6|InitiatorAlias=host|\
         TargetName=iqn.2026-11.io.lunaring:demo|SessionType=Normal|AuthMethod=None|",
    ));
    assert_eq!(reply.text, "TargetPortalGroupTag=7|AuthMethod=None|");
    let (reply, established) = bench.established(&request(
        OPERATIONAL_TO_FULL,
        "HeaderDigest=None|DataDigest=None|DefaultTime2Wait=2|DefaultTime2Retain=0|IFMarker=No|OFMarker=No|\
         ErrorRecoveryLevel=0|InitialR2T=No|ImmediateData=Yes|MaxBurstLength=16776192|FirstBurstLength=262144|\
         MaxOutstandingR2T=1|MaxConnections=1|DataPDUInOrder=Yes|DataSequenceInOrder=Yes|\
        MaxRecvDataSegmentLength=262144|",
    ));
    let text = "HeaderDigest=None|DataDigest=None|DefaultTime2Wait=2|DefaultTime2Retain=0|IFMarker=No|OFMarker=No|\
        ErrorRecoveryLevel=0|InitialR2T=No|ImmediateData=Yes|MaxBurstLength=1048576|FirstBurstLength=262144|\
        MaxOutstandingR2T=1|MaxConnections=1|DataPDUInOrder=Yes|DataSequenceInOrder=Yes|\
        MaxRecvDataSegmentLength=262144|";
    assert_eq!(reply.text, text);
    assert_eq!(established.negotiated.burst_length_max, 1_048_576);
}

#[test]
fn windows_logs_in_with_its_default_settings() {
    // The keys that the Microsoft initiator is documented to send.
    let mut bench = Bench::open();
    let who = "InitiatorName=iqn.1991-05.com.microsoft:win-8q3r2|SessionType=Normal|\
        TargetName=iqn.2026-11.io.lunaring:demo|AuthMethod=None|";
    assert!(bench.reply(&request(SECURITY_TO_OPERATIONAL, who)).transit);
    let (reply, established) = bench.established(&request(
        OPERATIONAL_TO_FULL,
        "HeaderDigest=None,CRC32C|DataDigest=None,CRC32C|ErrorRecoveryLevel=2|InitialR2T=No|ImmediateData=Yes|\
         MaxRecvDataSegmentLength=65536|MaxBurstLength=262144|FirstBurstLength=65536|MaxConnections=1|\
         DataPDUInOrder=Yes|DataSequenceInOrder=Yes|DefaultTime2Wait=0|DefaultTime2Retain=60|MaxOutstandingR2T=16|",
    ));
    let text = "HeaderDigest=None|DataDigest=None|ErrorRecoveryLevel=0|InitialR2T=No|ImmediateData=Yes|\
        MaxBurstLength=262144|FirstBurstLength=65536|MaxConnections=1|DataPDUInOrder=Yes|DataSequenceInOrder=Yes|\
        DefaultTime2Wait=0|DefaultTime2Retain=0|MaxOutstandingR2T=4|MaxRecvDataSegmentLength=262144|";
    assert_eq!(reply.text, text);
    assert_eq!(established.negotiated.transmit_segment_length_max, 65_536);
}
