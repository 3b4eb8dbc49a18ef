//! R2T, Data-Out and unsolicited data (RFC 7143 sections 4.2.5, 11.4.7.2, 11.7, 11.8, 13.10 to 13.19).
//!
//! Seen to fail: the R2T tests with a constant R2TSN and twice MaxBurstLength; the tests of wrong data with Data-Out of
//! any length and DataSN taken; the residuals with part of a block answered GOOD; `write_same_ends_with_the_disk` and
//! `compare_and_write_takes_twice_its_blocks_only` with the server as it was before.

use perf::client::Client;
use perf::login::{Pdu, Wishes};
use perf::pdu::{FINAL, Header, request, response};

use crate::support::{
    BLOCK, Bench, command, content, data_out, ended, expect, expect_reject, is_alive, shortly, write_16,
};

/// ABORTED COMMAND: incorrect amount of data, unexpected unsolicited data (section 11.4.7.2).
const INCORRECT_AMOUNT: Option<(u8, u8, u8)> = Some((0x0b, 0x0c, 0x0d));
const UNEXPECTED: Option<(u8, u8, u8)> = Some((0x0b, 0x0c, 0x0c));

fn solicited(bench: &Bench) -> Wishes {
    Wishes { immediate_data: false, initial_r2t: true, ..bench.wishes() }
}

/// Send a WRITE of so many blocks that waits for R2Ts.
fn start(client: &mut Client, lba: u64, blocks: usize) -> Header {
    let write = command(client, FINAL | 0x20, blocks * BLOCK, &write_16(lba, blocks));
    client.wire.send(write, &[]).expect("sent");
    write
}

/// Offset, length and Target Transfer Tag of an R2T.
fn asked(r2t: &Pdu) -> (usize, usize, u32) {
    (r2t.header.word(40) as usize, r2t.header.word(44) as usize, r2t.header.word(20))
}

/// Sections 11.8.1 to 11.8.4 and 13.13: R2TSN counts from 0, offsets go on without gap, no R2T asks for nothing or for
/// more than MaxBurstLength, and each has its own tag.
#[test]
fn r2ts_cover_the_write_in_order_within_max_burst_length() {
    let bench = Bench::start();
    let (mut client, reply) =
        bench.client_asking("ImmediateData=No|InitialR2T=Yes|MaxBurstLength=4096|FirstBurstLength=512");
    assert_eq!(reply.key("MaxBurstLength"), "4096");
    let blocks = 50;
    let bytes: Vec<u8> = (0..blocks * BLOCK).map(|i| (i / 7) as u8).collect();
    let write = start(&mut client, 100, blocks);
    let (mut at, mut number, mut tags) = (0, 0, vec![]);
    while at < bytes.len() {
        let r2t = expect(&mut client, response::R2T);
        let (offset, len, tag) = asked(&r2t);
        assert_eq!((r2t.header.word(36), offset, r2t.header.task_tag()), (number, at, write.task_tag()));
        assert!(len > 0 && len <= 4096 && offset + len <= bytes.len(), "{offset}+{len}");
        assert!(tag != u32::MAX && !tags.contains(&tag));
        assert_eq!(r2t.header.data_len(), 0);
        assert_eq!(r2t.header.flags(), FINAL);
        for (data_sn, at) in (0..).zip((offset..offset + len).step_by(1000)) {
            let end = (at + 1000).min(offset + len);
            let header = data_out(&client, write.task_tag(), tag, data_sn, at, end == offset + len);
            client.wire.send(header, &bytes[at..end]).expect("sent");
        }
        tags.push(tag);
        (at, number) = (at + len, number + 1);
    }
    assert_eq!(ended(&expect(&mut client, response::SCSI_RESPONSE)), (0, None));
    assert!(content(&mut client, 100, blocks) == bytes);
}

/// Section 13.17: no more R2Ts of one task are outstanding than agreed.
#[test]
fn no_more_r2ts_are_outstanding_than_agreed() {
    let bench = Bench::start();
    for agreed in [1usize, 2, 3] {
        let keys = format!("ImmediateData=No|MaxBurstLength=512|FirstBurstLength=512|MaxOutstandingR2T={agreed}");
        let (mut client, reply) = bench.client_asking(&keys);
        assert_eq!(reply.key("MaxOutstandingR2T"), agreed.to_string());
        let write = start(&mut client, 0, 8);
        let mut waiting: Vec<Pdu> = vec![];
        for number in 0..8 {
            if waiting.is_empty() {
                waiting.push(expect(&mut client, response::R2T));
                while let Some(more) = shortly(&mut client) {
                    assert_eq!(more.header.opcode(), response::R2T);
                    waiting.push(more);
                }
            }
            assert!(waiting.len() <= agreed, "{} R2Ts outstanding, {agreed} agreed", waiting.len());
            let (offset, len, tag) = asked(&waiting.remove(0));
            assert_eq!((offset, len), (number * 512, 512));
            let header = data_out(&client, write.task_tag(), tag, 0, offset, true);
            client.wire.send(header, &[number as u8; 512]).expect("sent");
        }
        assert_eq!(ended(&expect(&mut client, response::SCSI_RESPONSE)), (0, None));
    }
}

/// Sections 13.10, 13.11 and 13.14: unsolicited data up to FirstBurstLength, immediate data first; the first R2T asks
/// for what is behind it. DataSN of the solicited data begins at 0 again (section 11.7.5).
#[test]
fn unsolicited_data_is_followed_by_solicited() {
    let bench = Bench::start();
    let bytes: Vec<u8> = (0..16 * BLOCK).map(|i| (i / 3) as u8).collect();
    let (mut client, reply) =
        bench.client_asking("ImmediateData=Yes|InitialR2T=No|FirstBurstLength=3072|MaxBurstLength=8192");
    assert_eq!((reply.key("InitialR2T"), reply.key("FirstBurstLength")), ("No", "3072"));
    let write = command(&mut client, 0x20, bytes.len(), &write_16(7, 16));
    client.wire.send(write, &bytes[..1024]).expect("sent");
    for (data_sn, at) in [(0, 1024), (1, 2048)] {
        let header = data_out(&client, write.task_tag(), u32::MAX, data_sn, at, at == 2048);
        client.wire.send(header, &bytes[at..at + 1024]).expect("sent");
    }
    let r2t = expect(&mut client, response::R2T);
    let (offset, len, tag) = asked(&r2t);
    assert_eq!((offset, len, r2t.header.word(36)), (3072, 5120, 0));
    let header = data_out(&client, write.task_tag(), tag, 0, 3072, true);
    client.wire.send(header, &bytes[3072..]).expect("sent");
    assert_eq!(ended(&expect(&mut client, response::SCSI_RESPONSE)), (0, None));
    assert!(content(&mut client, 7, 16) == bytes);
}

/// Section 13.10: with InitialR2T=Yes only immediate data comes unasked; an R2T asks for the rest.
#[test]
fn immediate_data_alone_is_followed_by_an_r2t() {
    let bench = Bench::start();
    let (mut client, _) = bench.client_asking("ImmediateData=Yes|InitialR2T=Yes|FirstBurstLength=4096");
    let write = command(&mut client, FINAL | 0x20, 4 * BLOCK, &write_16(0, 4));
    client.wire.send(write, &[1; BLOCK]).expect("sent");
    let (offset, len, tag) = asked(&expect(&mut client, response::R2T));
    assert_eq!((offset, len), (BLOCK, 3 * BLOCK));
    let header = data_out(&client, write.task_tag(), tag, 0, BLOCK, true);
    client.wire.send(header, &[1; 3 * BLOCK]).expect("sent");
    assert_eq!(ended(&expect(&mut client, response::SCSI_RESPONSE)), (0, None));
    assert_eq!(content(&mut client, 0, 4), [1; 4 * BLOCK]);
}

/// Section 11.4.7.2 (and what Windows' target answers GOOD): a solicited sequence that is too short, too long, at the
/// wrong place, or with a gap in DataSN fails the command; nothing is written of a short one.
#[test]
fn wrong_solicited_data_fails_the_command() {
    let bench = Bench::start();
    let mut client = bench.client_with(&solicited(&bench));
    let wrong: [(&str, usize, usize, u32); 5] = [
        ("too short", 0, BLOCK, 0),
        ("too long", 0, 5 * BLOCK, 0),
        ("behind the place", BLOCK, 4 * BLOCK, 0),
        ("DataSN 1", 0, 4 * BLOCK, 1),
        ("DataSN ffffffff", 0, 4 * BLOCK, u32::MAX),
    ];
    for (what, offset, len, data_sn) in wrong {
        let write = start(&mut client, 40, 4);
        let (_, _, tag) = asked(&expect(&mut client, response::R2T));
        let header = data_out(&client, write.task_tag(), tag, data_sn, offset, true);
        client.wire.send(header, &vec![9; len]).expect("sent");
        assert_eq!(ended(&expect(&mut client, response::SCSI_RESPONSE)), (2, INCORRECT_AMOUNT), "{what}");
        assert_eq!(content(&mut client, 40, 4), [0; 4 * BLOCK], "{what}");
    }
}

/// Section 11.4.7.2 (and Microsoft's deviation 2): less unsolicited data than the smaller of FirstBurstLength and the
/// transfer length, though F says that it was all.
#[test]
fn not_enough_unsolicited_data_fails_the_command_or_is_asked_for() {
    let bench = Bench::start();
    let (mut client, _) = bench.client_asking("ImmediateData=Yes|InitialR2T=No|FirstBurstLength=2048");
    let write = command(&mut client, 0x20, 8 * BLOCK, &write_16(0, 8));
    client.wire.send(write, &[]).expect("sent");
    let header = data_out(&client, write.task_tag(), u32::MAX, 0, 0, true);
    client.wire.send(header, &[1; BLOCK]).expect("sent");
    assert_eq!(ended(&expect(&mut client, response::SCSI_RESPONSE)), (2, INCORRECT_AMOUNT));
}

/// Microsoft's deviation 1: immediate data beyond FirstBurstLength is not GOOD.
#[test]
fn immediate_data_beyond_first_burst_length_fails() {
    let bench = Bench::start();
    let (mut client, _) = bench.client_asking("ImmediateData=Yes|InitialR2T=Yes|FirstBurstLength=512");
    let write = command(&mut client, FINAL | 0x20, 4 * BLOCK, &write_16(0, 4));
    client.wire.send(write, &[1; 4 * BLOCK]).expect("sent");
    let (status, sense) = ended(&expect(&mut client, response::SCSI_RESPONSE));
    assert_eq!((status, sense.map(|sense| sense.0)), (2, Some(0x0b)));
    assert_eq!(content(&mut client, 0, 4), [0; 4 * BLOCK]);
}

/// Microsoft's deviation 3: data that was agreed not to come fails the command with its own sense.
#[test]
fn data_that_was_forbidden_fails_the_command() {
    let bench = Bench::start();
    let mut client = bench.client_with(&solicited(&bench));
    let immediate = command(&mut client, FINAL | 0x20, BLOCK, &write_16(0, 1));
    client.wire.send(immediate, &[1; BLOCK]).expect("sent");
    assert_eq!(ended(&expect(&mut client, response::SCSI_RESPONSE)), (2, UNEXPECTED));
    let unsolicited = command(&mut client, 0x20, 2 * BLOCK, &write_16(0, 2));
    client.wire.send(unsolicited, &[]).expect("sent");
    let header = data_out(&client, unsolicited.task_tag(), u32::MAX, 0, 0, true);
    client.wire.send(header, &[1; 2 * BLOCK]).expect("sent");
    assert_eq!(ended(&expect(&mut client, response::SCSI_RESPONSE)), (2, UNEXPECTED));
    assert_eq!(content(&mut client, 0, 2), [0; 2 * BLOCK]);
}

/// Section 13.14: unsolicited data beyond FirstBurstLength fails the command.
#[test]
fn unsolicited_data_beyond_first_burst_length_fails() {
    let bench = Bench::start();
    let (mut client, _) = bench.client_asking("ImmediateData=No|InitialR2T=No|FirstBurstLength=1024");
    let write = command(&mut client, 0x20, 8 * BLOCK, &write_16(0, 8));
    client.wire.send(write, &[]).expect("sent");
    let header = data_out(&client, write.task_tag(), u32::MAX, 0, 0, true);
    client.wire.send(header, &[1; 8 * BLOCK]).expect("sent");
    let (status, sense) = ended(&expect(&mut client, response::SCSI_RESPONSE));
    assert_eq!((status, sense.map(|sense| sense.0)), (2, Some(0x0b)));
    assert_eq!(content(&mut client, 0, 8), [0; 8 * BLOCK]);
}

/// Section 11.7.4: a Target Transfer Tag that was never given. The command still waits for what its R2T asks for.
#[test]
fn an_unknown_transfer_tag_is_rejected() {
    let bench = Bench::start();
    let mut client = bench.client_with(&solicited(&bench));
    let write = start(&mut client, 3, 1);
    let (_, _, tag) = asked(&expect(&mut client, response::R2T));
    let stray = data_out(&client, write.task_tag(), tag ^ 0x5555, 0, 0, true);
    client.wire.send(stray, &[9; BLOCK]).expect("sent");
    expect_reject(&mut client, 0x09, &stray);
    let right = data_out(&client, write.task_tag(), tag, 0, 0, true);
    client.wire.send(right, &[1; BLOCK]).expect("sent");
    assert_eq!(ended(&expect(&mut client, response::SCSI_RESPONSE)), (0, None));
    assert_eq!(content(&mut client, 3, 1), [1; BLOCK]);
}

/// Data for a task that is not there (it may have been aborted): the connection goes on.
#[test]
fn data_for_nobody_does_no_harm() {
    let bench = Bench::start();
    let mut client = bench.client();
    let stray = data_out(&client, 0x7777, 0x8888, 0, 0, true);
    client.wire.send(stray, &[9; BLOCK]).expect("sent");
    assert!(is_alive(&mut client));
}

/// Data-Out for a command that only reads.
#[test]
fn data_for_a_read_is_rejected() {
    let bench = Bench::start();
    let mut client = bench.client_with(&solicited(&bench));
    let write = start(&mut client, 0, 1);
    let (_, _, tag) = asked(&expect(&mut client, response::R2T));
    let ping = client.request(request::NOP_OUT, FINAL).with_word(20, u32::MAX).with_word(24, client.wire.cmd_sn);
    // A request ahead of its turn stays in progress, so that its tag is known.
    client.wire.send(ping, &[]).expect("sent");
    let stray = data_out(&client, ping.task_tag(), tag, 0, 0, true);
    client.wire.send(stray, &[9; BLOCK]).expect("sent");
    expect_reject(&mut client, 0x09, &stray);
    let right = data_out(&client, write.task_tag(), tag, 0, 0, true);
    client.wire.send(right, &[1; BLOCK]).expect("sent");
    assert_eq!(ended(&expect(&mut client, response::SCSI_RESPONSE)), (0, None));
}

/// Section 4.2.5.2: sequences of several tasks may be mixed.
#[test]
fn data_of_several_tasks_may_come_mixed() {
    let bench = Bench::start();
    let mut client = bench.client_with(&solicited(&bench));
    let writes: Vec<Header> = (0..4).map(|lba| start(&mut client, lba * 4, 4)).collect();
    let mut tags = vec![];
    for write in &writes {
        let r2t = expect(&mut client, response::R2T);
        assert_eq!(r2t.header.task_tag(), write.task_tag());
        tags.push(asked(&r2t).2);
    }
    for piece in 0..4 {
        for (number, write) in writes.iter().enumerate().rev() {
            let header = data_out(&client, write.task_tag(), tags[number], piece, piece as usize * BLOCK, piece == 3);
            client.wire.send(header, &[number as u8 + 1; BLOCK]).expect("sent");
        }
    }
    for _ in &writes {
        assert_eq!(ended(&expect(&mut client, response::SCSI_RESPONSE)), (0, None));
    }
    for number in 0..4u8 {
        assert_eq!(content(&mut client, u64::from(number) * 4, 4), [number + 1; 4 * BLOCK]);
    }
}

/// Section 11.4.5: more offered than the CDB asks for is an underflow, less an overflow; whole blocks are written, and
/// where the end is inside a block, nothing is written and nobody says GOOD.
#[test]
fn residuals_of_writes() {
    let bench = Bench::start();
    let mut client = bench.client();
    let more = client.write(0, &write_16(0, 1), &[1; 5 * BLOCK]).expect("an answer");
    assert_eq!((more.status, more.flags & 6, more.residual), (0, 2, 4 * BLOCK as u32));
    assert_eq!(content(&mut client, 0, 2), [[1; BLOCK], [0; BLOCK]].concat());
    let less = client.write(0, &write_16(8, 4), &[2; BLOCK]).expect("an answer");
    assert_eq!((less.status, less.flags & 6, less.residual), (0, 4, 3 * BLOCK as u32));
    assert_eq!(content(&mut client, 8, 2), [[2; BLOCK], [0; BLOCK]].concat());
    for mut client in [client, bench.client_with(&solicited(&bench).session(3))] {
        let part = client.write(0, &write_16(16, 2), &[3; BLOCK + 100]).expect("an answer");
        assert_eq!((part.status, part.sense_triple()), (2, Some((5, 0x0e, 0x03))));
        assert_eq!((part.flags & 6, part.residual), (4, BLOCK as u32 - 100));
        assert_eq!(content(&mut client, 16, 2), [0; 2 * BLOCK]);
    }
}

/// SBC-4 clause 5.3: COMPARE AND WRITE brings twice its blocks, no more and no less.
#[test]
fn compare_and_write_takes_twice_its_blocks_only() {
    let bench = Bench::start();
    let mut client = bench.client();
    for (blocks, brought) in [(1, 4), (3, 4), (2, 1), (1, 1)] {
        let mut cdb = [0; 16];
        (cdb[0], cdb[13]) = (0x89, blocks);
        let answer = client.write(0, &cdb, &vec![0; brought * BLOCK]).expect("an answer");
        assert_eq!((answer.status, answer.sense_triple().map(|sense| sense.0)), (2, Some(5)), "{blocks}, {brought}");
    }
    let mut cdb = [0; 16];
    (cdb[0], cdb[13]) = (0x89, 2);
    let data = [vec![0; 2 * BLOCK], vec![6; 2 * BLOCK]].concat();
    assert_eq!(client.write(0, &cdb, &data).expect("an answer").status, 0);
    assert_eq!(client.write(0, &cdb, &data).expect("an answer").sense_triple(), Some((0x0e, 0x1d, 0)));
    assert_eq!(content(&mut client, 0, 2), [6; 2 * BLOCK]);
}

/// A WRITE SAME of many windows up to the disk's last block, on each kind of disk.
#[test]
fn write_same_ends_with_the_disk() {
    for format in ["memory", "raw", "vhdx"] {
        let bench = Bench::with_disk(&["--size", "9M", "--format", format]);
        let mut client = bench.client();
        // WRITE SAME (10), NUMBER OF LOGICAL BLOCKS zero: to the end.
        let cdb = [0x41, 0, 0, 0, 0, 3, 0, 0, 0, 0];
        let same: Vec<u8> = (0..BLOCK).map(|i| i as u8 | 1).collect();
        assert_eq!(client.write(0, &cdb, &same).expect("an answer").status, 0, "{format}");
        let last = (9 << 20) / BLOCK as u64 - 1;
        assert_eq!(content(&mut client, last, 1), same, "{format}");
        assert_eq!(content(&mut client, 2, 2), [&[0; BLOCK][..], &same[..]].concat(), "{format}");
    }
}
