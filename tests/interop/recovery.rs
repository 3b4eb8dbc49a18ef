//! ErrorRecoveryLevel 1 from outside (RFC 7143 sections 7.8, 7.9 and 11.16): off until it is configured, and then what
//! was lost comes again.

use perf::client::Client;
use perf::login::{Pdu, Wishes};
use perf::pdu::{self, FINAL, Header, IMMEDIATE, cdb, request, response};

use crate::server::{Options, Server};

const SNACK_REQUEST: u8 = 0x10;
const DATA_OR_R2T: u8 = 0;
const STATUS: u8 = 1;
const R_DATA: u8 = 3;
const REJECT: u8 = 0x3f;

/// Let sessions have ErrorRecoveryLevel 1.
pub fn allow(server: &Server) {
    server.ok(&["settings", "set", "--error-recovery-level", "1"]);
}

fn recovering(disk: &[&str]) -> (Server, Client) {
    let server = Server::start_with(Options { cores: Some("0,1"), ..Options::default() });
    let iqn = server.ready_target("recovering", disk);
    allow(&server);
    let client = session(&server, &iqn, 0);
    (server, client)
}

fn session(server: &Server, iqn: &str, number: u32) -> Client {
    let wishes = Wishes {
        error_recovery_level: 1,
        data_digest: true,
        initial_r2t: true,
        immediate_data: false,
        segment_len_max: 8192,
        ..Wishes::to_target(iqn).session(number)
    };
    Client::ready(server.portals[0], &wishes, 0).expect("a session")
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

/// What was missed is read again, and must not be of another WRITE ATOMIC than what was not missed.
#[test]
fn data_that_was_written_atomically_since_does_not_come_again() {
    const LEN: usize = 64 << 10;
    for disk in [&["--size", "64M"][..], &["--size", "64M", "--format", "memory"]] {
        let server = Server::start_with(Options { cores: Some("0,1"), ..Options::default() });
        let iqn = server.ready_target("recovering", disk);
        allow(&server);
        let (mut reader, mut writer) = (session(&server, &iqn, 1), session(&server, &iqn, 2));
        let write = [0x9c, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, (LEN / 512) as u8, 0, 0];
        assert_eq!(writer.write(0, &write, &[1; LEN]).expect("an answer").status, 0);
        let read = pdu::cdb_transfer_16(cdb::READ_16, 8, (LEN / 512) as u32, false);
        let tag = reader.start(0, &read, &[], LEN as u32).expect("sent");
        assert_eq!(reader.finish(tag).expect("an answer").data, [1; LEN]);
        let unacknowledged = reader.wire.exp_stat_sn - 1;
        snack(&mut reader, DATA_OR_R2T, tag, 2, 1, unacknowledged);
        let again = next(&mut reader);
        assert_eq!((again.header.opcode(), &again.data[..]), (response::DATA_IN, &[1; 8192][..]));
        assert_eq!(writer.write(0, &write, &[2; LEN]).expect("an answer").status, 0);
        snack(&mut reader, DATA_OR_R2T, tag, 2, 1, unacknowledged);
        let reject = next(&mut reader);
        assert_eq!((reject.header.opcode(), reject.header.0[2]), (REJECT, 3), "{disk:?}");
        // The next READ is another one.
        let tag = reader.start(0, &read, &[], LEN as u32).expect("sent");
        assert_eq!(reader.finish(tag).expect("an answer").data, [2; LEN]);
        let unacknowledged = reader.wire.exp_stat_sn - 1;
        snack(&mut reader, DATA_OR_R2T, tag, 2, 1, unacknowledged);
        assert_eq!(next(&mut reader).data, [2; 8192]);
    }
}

/// Section 11.16.3: after a new MaxRecvDataSegmentLength what was missed comes again in other pieces, and its status by
/// itself, with the SNACK's tag and the StatSN that it had.
#[test]
fn data_comes_again_in_pieces_of_another_length() {
    for disk in [&["--size", "64M"][..], &["--size", "64M", "--format", "memory"]] {
        let (_server, mut client) = recovering(disk);
        let data = pattern(1_200_128);
        let blocks = (data.len() / 512) as u32;
        let written = client.write(0, &pdu::cdb_transfer_16(cdb::WRITE_16, 8, blocks, false), &data);
        assert_eq!(written.expect("an answer").status, 0);
        let cdb = pdu::cdb_transfer_16(cdb::READ_16, 8, blocks, false);
        let tag = client.start(0, &cdb, &[], data.len() as u32).expect("sent");
        assert!(client.finish(tag).expect("an answer").data == data);
        let unacknowledged = client.wire.exp_stat_sn - 1;
        for (segment_len_max, snack_tag) in [(4096, 7), (512, 0x1234), (65_536, 9)] {
            let text = client
                .request(request::TEXT | IMMEDIATE, FINAL)
                .with_word(20, pdu::TAG_NONE)
                .with_word(28, unacknowledged);
            let key = format!("MaxRecvDataSegmentLength={segment_len_max}\0");
            client.wire.send(text, key.as_bytes()).expect("sent");
            assert_eq!(next(&mut client).header.opcode(), response::TEXT);
            if segment_len_max < 8192 {
                snack(&mut client, DATA_OR_R2T, tag, 0, 0, unacknowledged);
                let reject = next(&mut client);
                assert_eq!((reject.header.opcode(), reject.header.0[2]), (REJECT, 3), "by R-Data SNACK only");
            }
            let header = client
                .request(SNACK_REQUEST | IMMEDIATE, FINAL | R_DATA)
                .with_word(16, tag)
                .with_word(20, snack_tag)
                .with_word(28, unacknowledged);
            client.wire.send(header, &[]).expect("sent");
            let (mut at, mut data_sn) = (0, 0);
            while at < data.len() {
                let pdu = next(&mut client);
                assert_eq!((pdu.header.opcode(), pdu.header.word(36)), (response::DATA_IN, data_sn));
                assert_eq!((pdu.header.word(40) as usize, pdu.header.flags() & 1), (at, 0));
                let end = at + pdu.data.len();
                assert!(pdu.data[..] == data[at..end] && pdu.data.len() <= segment_len_max);
                assert_eq!(pdu.header.flags() & FINAL != 0, end == data.len() || end.is_multiple_of(1 << 20));
                (at, data_sn) = (end, data_sn + 1);
            }
            let is_the_status = |pdu: Pdu| {
                assert_eq!((pdu.header.opcode(), pdu.header.0[3]), (response::SCSI_RESPONSE, 0));
                assert_eq!((pdu.header.word(20), pdu.header.stat_sn()), (snack_tag, unacknowledged));
                assert_eq!(pdu.header.word(36), data_sn, "ExpDataSN");
            };
            is_the_status(next(&mut client));
            snack(&mut client, STATUS, pdu::TAG_NONE, unacknowledged, 1, unacknowledged);
            is_the_status(next(&mut client));
        }
        assert_eq!(client.wire.logout().expect("an answer"), 0);
    }
}

/// Section 11.16.1: every kind of response can be had again, until it is acknowledged.
#[test]
fn every_kind_of_response_comes_again() {
    let (_server, mut client) = recovering(&["--size", "64M"]);
    let requests: [(u8, u8, &[u8]); 4] = [
        (request::TEXT, response::TEXT, b"MaxRecvDataSegmentLength=8192\0"),
        (request::NOP_OUT, response::NOP_IN, b"an echo of a few bytes"),
        (request::NOP_OUT, response::NOP_IN, b""),
        (request::TASK_MANAGEMENT, response::TASK_MANAGEMENT, b""),
    ];
    for (opcode, answered, data) in requests {
        // ABORT TASK SET, where it is a function.
        let flags = FINAL | if opcode == request::TASK_MANAGEMENT { 2 } else { 0 };
        let header = client.request(opcode | IMMEDIATE, flags).with_word(20, pdu::TAG_NONE);
        client.wire.send(header, data).expect("sent");
        let first = next(&mut client);
        assert_eq!(first.header.opcode(), answered);
        let stat_sn = first.header.stat_sn();
        snack(&mut client, STATUS, pdu::TAG_NONE, stat_sn, 1, stat_sn);
        let again = next(&mut client);
        assert_eq!((again.header.0[..28] == first.header.0[..28], &again.data), (true, &first.data), "{opcode:#x}");
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
