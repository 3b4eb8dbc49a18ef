//! Header and data digests (RFC 7143 sections 7.7, 7.8, 11.2.3 and 13.1). That the server's own digests are right is
//! checked by the initiator with every PDU.
//!
//! Seen to fail: all but the last, with every digest of the initiator believed.

use std::io::Write;

use perf::client::Client;
use perf::login::Wishes;
use perf::pdu::{self, FINAL, Header, IMMEDIATE, request, response};

use crate::support::{
    BLOCK, Bench, command, content, data_out, ended, expect, expect_reject, is_closed, read_16, write_16,
};

fn wishes(bench: &Bench, header: bool, data: bool) -> Wishes {
    Wishes { header_digest: header, data_digest: data, ..bench.wishes() }
}

/// The bytes of a PDU with the client's digests, to be spoilt.
fn bytes(client: &Client, header: Header, data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![];
    pdu::append(&mut bytes, header, data, client.wire.header_digest, client.wire.data_digest);
    bytes
}

fn send(client: &mut Client, bytes: &[u8]) {
    client.wire.socket.write_all(bytes).expect("sent");
}

/// Every combination moves every size right, padding included.
#[test]
fn digests_are_right_in_both_directions() {
    let bench = Bench::start();
    for (header, data) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut client = bench.client_with(&wishes(&bench, header, data));
        for len in [0usize, 1, 2, 3, 4, 511, 4096] {
            let ping = client.request(request::NOP_OUT | IMMEDIATE, FINAL).with_word(20, u32::MAX);
            let payload: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
            client.wire.send(ping, &payload).expect("sent");
            assert_eq!(expect(&mut client, response::NOP_IN).data, payload);
        }
        let block = vec![len_mark(header, data); 200 * BLOCK];
        assert_eq!(client.write(0, &write_16(0, 200), &block).expect("an answer").status, 0);
        assert!(content(&mut client, 0, 200) == block);
    }
}

fn len_mark(header: bool, data: bool) -> u8 {
    1 + u8::from(header) * 2 + u8::from(data)
}

/// Section 7.7: a header that cannot be believed says nothing of where the next PDU begins: the connection ends.
#[test]
fn a_wrong_header_digest_ends_the_connection() {
    let bench = Bench::start();
    for spoil in [0, 20, 47, 48, 51] {
        let mut client = bench.client_with(&wishes(&bench, true, false).session(spoil as u32));
        let probe = command(&mut client, FINAL | 0x20, BLOCK, &write_16(0, 1));
        let mut bytes = bytes(&client, probe, &[7; BLOCK]);
        bytes[spoil] ^= 0x10;
        send(&mut client, &bytes);
        assert!(is_closed(&mut client.wire), "byte {spoil}");
    }
    let mut client = bench.client();
    assert_eq!(content(&mut client, 0, 1), [0; BLOCK]);
}

/// Section 7.8: a command whose data arrives spoilt is rejected, its CmdSN has not come, and it can be sent again.
#[test]
fn a_wrong_digest_of_immediate_data_is_rejected_and_the_command_may_come_again() {
    let bench = Bench::start();
    let mut client = bench.client_with(&wishes(&bench, false, true));
    let write = command(&mut client, FINAL | 0x20, BLOCK, &write_16(0, 1));
    let mut spoilt = bytes(&client, write, &[7; BLOCK]);
    *spoilt.last_mut().expect("bytes") ^= 1;
    send(&mut client, &spoilt);
    expect_reject(&mut client, 0x02, &write);
    client.wire.send(write, &[7; BLOCK]).expect("sent");
    assert_eq!(ended(&expect(&mut client, response::SCSI_RESPONSE)), (0, None));
    assert_eq!(content(&mut client, 0, 1), [7; BLOCK]);
}

/// Section 7.8: at ErrorRecoveryLevel 0 a spoilt Data-Out is rejected, and the command fails when its last data has
/// come.
#[test]
fn a_wrong_digest_of_data_out_fails_the_command() {
    let bench = Bench::start();
    for len in [BLOCK, 256 * BLOCK] {
        let modes = Wishes { immediate_data: false, initial_r2t: true, ..wishes(&bench, true, true) };
        let mut client = bench.client_with(&modes);
        let write = command(&mut client, FINAL | 0x20, 2 * len, &write_16(0, 2 * len / BLOCK));
        client.wire.send(write, &[]).expect("sent");
        let r2t = expect(&mut client, response::R2T);
        let first = data_out(&client, write.task_tag(), r2t.header.word(20), 0, 0, false);
        let mut spoilt = bytes(&client, first, &vec![7; len]);
        let at = spoilt.len() - 10;
        spoilt[at] ^= 0x80;
        send(&mut client, &spoilt);
        let last = data_out(&client, write.task_tag(), r2t.header.word(20), 1, len, true);
        client.wire.send(last, &vec![7; len]).expect("sent");
        let answers = [client.receive().expect("an answer"), client.receive().expect("another")];
        let reject = answers.iter().find(|pdu| pdu.header.opcode() == response::REJECT).expect("a Reject");
        assert_eq!((reject.header.0[2], &reject.data[..]), (0x02, &spoilt[..48]));
        // ABORTED COMMAND, PROTOCOL SERVICE CRC ERROR.
        let answer = answers.iter().find(|pdu| pdu.header.opcode() == response::SCSI_RESPONSE).expect("a response");
        assert_eq!(ended(answer), (2, Some((0x0b, 0x47, 0x05))));
        assert_eq!(client.read(0, &read_16(0, 1), 512).expect("an answer").data, [0; BLOCK]);
    }
}

/// Section 7.8: other requests with spoilt data are rejected, and the connection goes on.
#[test]
fn a_wrong_digest_of_a_ping_is_rejected() {
    let bench = Bench::start();
    let mut client = bench.client_with(&wishes(&bench, true, true));
    let ping = client.request(request::NOP_OUT | IMMEDIATE, FINAL).with_word(20, u32::MAX);
    let mut spoilt = bytes(&client, ping, b"odd");
    *spoilt.last_mut().expect("bytes") ^= 1;
    send(&mut client, &spoilt);
    expect_reject(&mut client, 0x02, &ping);
    client.wire.send(ping, b"odd").expect("sent");
    assert_eq!(expect(&mut client, response::NOP_IN).data, b"odd");
}

/// Section 11.2.3: the header digest covers additional header segments too.
#[test]
fn the_header_digest_covers_additional_headers() {
    let bench = Bench::start();
    let mut client = bench.client_with(&wishes(&bench, true, true));
    // A variable-length CDB that nobody serves: refused as a command, not as a PDU.
    let cdb: Vec<u8> = (0..32)
        .map(|i| {
            if i == 0 {
                0x7f
            } else if i == 7 {
                24
            } else {
                0
            }
        })
        .collect();
    let answer = client.bare(0, &cdb).expect("an answer");
    assert_eq!((answer.status, answer.sense_triple().map(|sense| sense.0)), (2, Some(5)));
}
