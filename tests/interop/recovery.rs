//! ErrorRecoveryLevel 1 from outside (RFC 7143 sections 7.8, 7.9 and 11.16): off until it is configured, and then what
//! was lost comes again.

use perf::client::Client;
use perf::login::{Pdu, Wishes};
use perf::pdu::{self, FINAL, Header, IMMEDIATE, cdb, request, response};

use crate::server::{Options, Server};

const SNACK_REQUEST: u8 = 0x10;
const DATA_OR_R2T: u8 = 0;
const STATUS: u8 = 1;
const REJECT: u8 = 0x3f;

/// Start the server again with sessions that may have ErrorRecoveryLevel 1.
pub fn allow(server: &mut Server) {
    server.stop();
    let file = server.state().join("config.json");
    let text = std::fs::read(&file).expect("the configuration can be read");
    let mut config: serde_json::Value = serde_json::from_slice(&text).expect("it is JSON");
    config["error_recovery_level"] = 1.into();
    std::fs::write(&file, config.to_string()).expect("the configuration is written");
    server.start_again();
}

fn recovering(disk: &[&str]) -> (Server, Client) {
    let mut server = Server::start_with(Options { cores: Some("0,1"), ..Options::default() });
    let iqn = server.ready_target("recovering", disk);
    allow(&mut server);
    let wishes = Wishes {
        error_recovery_level: 1,
        data_digest: true,
        initial_r2t: true,
        immediate_data: false,
        segment_len_max: 8192,
        ..Wishes::to_target(&iqn)
    };
    let client = Client::ready(server.portals[0], &wishes, 0).expect("a session");
    (server, client)
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// A SNACK that acknowledges nothing beyond `exp_stat_sn`.
fn snack(client: &mut Client, kind: u8, tag: u32, begin: u32, run_length: u32, exp_stat_sn: u32) {
    let header = client
        .request(SNACK_REQUEST | IMMEDIATE, FINAL | kind)
        .with_word(16, tag)
        .with_word(20, pdu::TAG_NONE)
        .with_word(28, exp_stat_sn)
        .with_word(40, begin)
        .with_word(44, run_length);
    client.wire.send(header, &[]).expect("sent");
}

fn next(client: &mut Client) -> Pdu {
    client.wire.receive().expect("an answer")
}

#[test]
fn missed_data_and_statuses_come_again() {
    for disk in
        [&["--size", "64M"][..], &["--size", "64M", "--format", "memory"], &["--size", "64M", "--format", "raw"]]
    {
        let (_server, mut client) = recovering(disk);
        let data = pattern(3 << 20);
        let blocks = (data.len() / 512) as u32;
        let written = client.write(0, &pdu::cdb_transfer_16(cdb::WRITE_16, 8, blocks, false), &data);
        assert_eq!(written.expect("an answer").status, 0);
        let cdb = pdu::cdb_transfer_16(cdb::READ_16, 8, blocks, false);
        let tag = client.start(0, &cdb, &[], data.len() as u32).expect("sent");
        let read = client.finish(tag).expect("an answer");
        assert_eq!((read.status, read.data == data), (0, true));
        // The status went with the last Data-In; it has not been acknowledged.
        let (last, unacknowledged) = ((data.len() / 8192) as u32 - 1, client.wire.exp_stat_sn - 1);
        for (begin, run_length) in [(2, 3), (126, 5), (last - 1, 0)] {
            snack(&mut client, DATA_OR_R2T, tag, begin, run_length, unacknowledged);
            for data_sn in begin..if run_length == 0 { last + 1 } else { begin + run_length } {
                let pdu = next(&mut client);
                assert_eq!((pdu.header.opcode(), pdu.header.word(36)), (response::DATA_IN, data_sn), "{disk:?}");
                let at = pdu.header.word(40) as usize;
                assert_eq!((at, pdu.data[..] == data[at..at + 8192]), (data_sn as usize * 8192, true));
                assert_eq!(pdu.header.flags() & 1 != 0, data_sn == last, "the status is in the last one");
            }
        }
        snack(&mut client, STATUS, pdu::TAG_NONE, unacknowledged, 1, unacknowledged);
        let again = next(&mut client);
        assert_eq!((again.header.word(36), again.header.stat_sn()), (last, unacknowledged));
        // A status without data.
        let answer = client.bare(0, &[0xc1; 6]).expect("an answer");
        assert_eq!(answer.sense_triple(), Some((5, 0x20, 0)));
        let unacknowledged = client.wire.exp_stat_sn - 1;
        snack(&mut client, STATUS, pdu::TAG_NONE, unacknowledged, 1, unacknowledged);
        let again = next(&mut client);
        assert_eq!((again.header.opcode(), again.header.stat_sn()), (response::SCSI_RESPONSE, unacknowledged));
        assert_eq!(again.data[2..], answer.sense);
        // What is not of blocks cannot be had again, and what was acknowledged may not be asked for.
        let tag = client.start(0, &[0x12, 0, 0, 0, 36, 0], &[], 36).expect("sent");
        client.finish(tag).expect("an answer");
        let exp_stat_sn = client.wire.exp_stat_sn;
        snack(&mut client, DATA_OR_R2T, tag, 0, 0, exp_stat_sn - 1);
        let reject = next(&mut client);
        assert_eq!((reject.header.opcode(), reject.header.0[2]), (REJECT, 3));
        let exp_stat_sn = client.wire.exp_stat_sn;
        snack(&mut client, DATA_OR_R2T, tag, 0, 0, exp_stat_sn);
        let reject = next(&mut client);
        assert_eq!((reject.header.opcode(), reject.header.0[2]), (REJECT, 4));
        assert_eq!(client.wire.logout().expect("an answer"), 0);
    }
}

/// One Data-Out of a write arrives with a wrong digest: Reject, another R2T, and the data is right in the end.
#[test]
fn data_with_a_wrong_digest_is_asked_for_again() {
    let (_server, mut client) = recovering(&["--size", "64M"]);
    let data = pattern(64 << 10);
    let blocks = (data.len() / 512) as u32;
    let mut header = client.request(request::SCSI_COMMAND, FINAL | 0x21).with_word(20, data.len() as u32);
    header.0[32..48].copy_from_slice(&pdu::cdb_transfer_16(cdb::WRITE_16, 0, blocks, false));
    client.wire.send(header, &[]).expect("sent");
    let mut rejects = 0;
    let mut r2ts = 0;
    loop {
        let pdu = next(&mut client);
        match pdu.header.opcode() {
            REJECT => {
                assert_eq!(pdu.header.0[2], 2, "data digest error");
                rejects += 1;
            }
            response::R2T => {
                r2ts += 1;
                let (from, len) = (pdu.header.word(40) as usize, pdu.header.word(44) as usize);
                for (data_sn, at) in (from..from + len).step_by(8192).enumerate() {
                    let end = (at + 8192).min(from + len);
                    let header = Header::new(request::DATA_OUT, if end == from + len { FINAL } else { 0 })
                        .with_word(16, header.task_tag())
                        .with_word(20, pdu.header.word(20))
                        .with_word(28, client.wire.exp_stat_sn)
                        .with_word(36, data_sn as u32)
                        .with_word(40, at as u32);
                    let mut bytes = vec![];
                    pdu::append(&mut bytes, header, &data[at..end], false, true);
                    if r2ts == 1 && data_sn == 3 {
                        bytes[100] ^= 1;
                    }
                    std::io::Write::write_all(&mut client.wire.socket, &bytes).expect("sent");
                }
            }
            opcode => {
                assert_eq!((opcode, pdu.header.0[3]), (response::SCSI_RESPONSE, 0));
                break;
            }
        }
    }
    assert_eq!((rejects, r2ts), (1, 2));
    let read = client.read(0, &pdu::cdb_transfer_16(cdb::READ_16, 0, blocks, false), data.len() as u32);
    assert!(read.expect("an answer").data == data);
}

/// Section 13.20: the lower of both levels; and nothing above 0 until it is configured.
#[test]
fn the_level_is_zero_unless_configured() {
    let server = Server::start();
    let iqn = server.ready_target("plain", &["--size", "64M"]);
    let wishes = Wishes { error_recovery_level: 2, ..Wishes::to_target(&iqn) };
    let mut client = Client::ready(server.portals[0], &wishes, 0).expect("a session");
    let tag = client.start(0, &[0x12, 0, 0, 0, 36, 0], &[], 36).expect("sent");
    client.finish(tag).expect("an answer");
    let exp_stat_sn = client.wire.exp_stat_sn - 1;
    snack(&mut client, STATUS, pdu::TAG_NONE, exp_stat_sn, 1, exp_stat_sn);
    let reject = next(&mut client);
    assert_eq!((reject.header.opcode(), reject.header.0[2]), (REJECT, 3), "no SNACK is served");
}
