//! Tokens as Windows uses them: page 8Fh, POPULATE TOKEN, RECEIVE ROD TOKEN INFORMATION, WRITE USING TOKEN; and what
//! they are not good for.

use std::time::Duration;

use perf::client::{Answer, Client};

use crate::copying::{DISKS, cdb_out, pattern, read, receive, session, target_with_disks, write};
use crate::server::{Options, Server};

const POPULATE: u8 = 0x10;
const WRITE_USING: u8 = 0x11;
const INFORMATION: u8 = 0x07;

fn with_ranges(mut list: Vec<u8>, ranges: &[(u64, u32)]) -> Vec<u8> {
    let at = list.len();
    list[at - 2..].copy_from_slice(&((ranges.len() * 16) as u16).to_be_bytes());
    for (lba, blocks) in ranges {
        list.extend(lba.to_be_bytes());
        list.extend(blocks.to_be_bytes());
        list.extend([0; 4]);
    }
    let data_length = (list.len() - 2) as u16;
    list[..2].copy_from_slice(&data_length.to_be_bytes());
    list
}

fn populate(client: &mut Client, lun: u16, id: u32, timeout: u32, ranges: &[(u64, u32)]) -> Answer {
    let mut header = vec![0; 16];
    header[4..8].copy_from_slice(&timeout.to_be_bytes());
    let list = with_ranges(header, ranges);
    client.write(lun, &cdb_out(POPULATE, id, list.len()), &list).expect("an answer")
}

fn write_using(
    client: &mut Client,
    lun: u16,
    id: u32,
    flags: u8,
    offset: u64,
    token: &[u8],
    to: &[(u64, u32)],
) -> Answer {
    let mut header = vec![0; 536];
    header[2] = flags;
    header[8..16].copy_from_slice(&offset.to_be_bytes());
    header[16..528].copy_from_slice(token);
    let list = with_ranges(header, to);
    client.write(lun, &cdb_out(WRITE_USING, id, list.len()), &list).expect("an answer")
}

/// Ask until the operation is over: its status, blocks, and what comes behind the header.
fn told(client: &mut Client, lun: u16, id: u32) -> (u8, u64, Vec<u8>) {
    for _ in 0..2000 {
        let data = receive(client, lun, INFORMATION, id).data;
        assert_eq!(u32::from_be_bytes(data[..4].try_into().expect("four bytes")) as usize, data.len() - 4);
        assert_eq!(data[15], 0xf1, "in blocks");
        if !matches!(data[5], 0x10..=0x12) {
            let blocks = u64::from_be_bytes(data[16..24].try_into().expect("eight bytes"));
            return (data[5], blocks, data[32 + usize::from(data[13])..].to_vec());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("a copy without end");
}

/// A token of these ranges.
fn token_of(client: &mut Client, lun: u16, ranges: &[(u64, u32)]) -> Vec<u8> {
    let answer = populate(client, lun, 0x70, 0, ranges);
    assert_eq!(answer.sense_triple(), None, "{answer:?}");
    let (status, blocks, descriptors) = told(client, lun, 0x70);
    assert_eq!((status, blocks), (1, ranges.iter().map(|(_, blocks)| u64::from(*blocks)).sum()));
    assert_eq!((descriptors.len(), &descriptors[..6]), (518, &[0, 0, 2, 2, 0, 0][..]));
    descriptors[6..].to_vec()
}

fn zero_token() -> Vec<u8> {
    let mut token = vec![0; 512];
    token[..8].copy_from_slice(&[0xff, 0xff, 0, 1, 0, 0, 1, 0xf8]);
    token
}

/// What Windows asks before it offloads: page 8Fh and 3PC; then a copy in both ways, polled, between all kinds of
/// disks, made by one session and used by another on another shard.
#[test]
fn windows_copies_a_file_from_every_kind_of_disk_to_every_other() {
    let server = Server::start_with(Options { cores: Some("0,1"), ..Options::default() });
    let disks: Vec<(&str, &[&str])> = DISKS.iter().map(|(name, options, _)| (*name, *options)).collect();
    let iqn = target_with_disks(&server, "odx", &disks);
    let mut clients: Vec<Client> = (1..5).map(|number| session(&server, &iqn, number, disks.len() as u16)).collect();
    assert_eq!(clients[0].read(0, &[0x12, 0, 0, 0, 96, 0], 96).expect("an answer").data[5] & 8, 8, "3PC");
    let page = clients[0].read(0, &[0x12, 1, 0x8f, 4, 0, 0], 1024).expect("an answer").data;
    assert_eq!((page[1], &page[4..8]), (0x8f, &[0, 0, 0, 0x20][..]), "Block Device ROD Limits comes first");
    const MIB: usize = 1 << 20;
    for (lun, (_, _, shift)) in DISKS.iter().enumerate() {
        let data = pattern(6 * MIB, 40 + lun as u64);
        write(&mut clients[0], lun as u16, *shift, 0, &data[..2 * MIB]);
        write(&mut clients[0], lun as u16, *shift, 5 << 20, &data[5 * MIB..]);
    }
    for (from, (from_name, _, shift)) in DISKS.iter().enumerate() {
        // The file lies in three pieces, and not in order.
        let blocks = |bytes: usize| (bytes >> shift) as u64;
        let pieces = [(3 * MIB, 3 * MIB), (0, MIB), (MIB + 8192, MIB)];
        let ranges: Vec<(u64, u32)> = pieces.iter().map(|(at, len)| (blocks(*at), blocks(*len) as u32)).collect();
        let token = token_of(&mut clients[from % 4], from as u16, &ranges);
        let mut expected = vec![];
        for (at, len) in pieces {
            expected.extend(read(&mut clients[0], from as u16, *shift, at as u64, len));
        }
        for (to, (to_name, _, shift)) in DISKS.iter().enumerate().filter(|(to, _)| *to != from) {
            let client = &mut clients[to % 4];
            let blocks = |bytes: usize| (bytes >> shift) as u64;
            write(client, to as u16, *shift, 40 << 20, &vec![0xdd; 8 * MIB]);
            // Two writes, each in two ranges; the second from the middle of the token, in the background.
            let half = expected.len() / 2 - 4096;
            let first = [(blocks(40 * MIB), blocks(MIB) as u32), (blocks(42 * MIB), blocks(half - MIB) as u32)];
            let answer = write_using(client, to as u16, 9, 0, 0, &token, &first);
            assert_eq!(answer.sense_triple(), None, "{from_name} to {to_name}: {answer:?}");
            assert_eq!(told(client, to as u16, 9), (1, blocks(half), vec![0; 4]));
            let rest = [(blocks(46 * MIB), blocks(expected.len() - half) as u32)];
            let answer = write_using(client, to as u16, 10, 1, blocks(half), &token, &rest);
            assert_eq!(answer.sense_triple(), None, "{from_name} to {to_name}: {answer:?}");
            assert_eq!(told(client, to as u16, 10), (1, blocks(expected.len() - half), vec![0; 4]));
            let mut found = read(client, to as u16, *shift, 40 << 20, MIB);
            found.extend(read(client, to as u16, *shift, 42 << 20, half - MIB));
            found.extend(read(client, to as u16, *shift, 46 << 20, expected.len() - half));
            assert!(found == expected, "{from_name} to {to_name}");
        }
    }
}

#[test]
fn a_token_is_worth_nothing_once_its_data_has_changed() {
    let server = Server::start_with(Options { cores: Some("0,1"), ..Options::default() });
    let iqn = target_with_disks(
        &server,
        "change",
        &[("a", &[]), ("b", &["--format", "raw"]), ("m", &["--format", "memory"])],
    );
    let (mut client, mut other) = (session(&server, &iqn, 1, 3), session(&server, &iqn, 2, 3));
    let revoked = Some((5, 0x23, 6));
    for lun in [0, 2] {
        write(&mut client, lun, 9, 0, &pattern(1 << 20, 8));
        let use_it =
            |client: &mut Client, token: &[u8]| write_using(client, 1, 2, 0, 0, token, &[(0, 64)]).sense_triple();
        // Beside its ranges anything may be written.
        let token = token_of(&mut client, lun, &[(64, 32), (512, 32)]);
        write(&mut other, lun, 9, 63 * 512, &[1; 512]);
        write(&mut other, lun, 9, 96 * 512, &[1; 512 * 416]);
        assert_eq!(use_it(&mut client, &token), None);
        write(&mut other, lun, 9, 543 * 512, &[1; 512]);
        assert_eq!(use_it(&mut client, &token), revoked, "WRITE through another session");

        let token = token_of(&mut client, lun, &[(64, 64)]);
        let mut same = [0; 16];
        same[0] = 0x93;
        same[9] = 100;
        same[13] = 1;
        assert_eq!(other.write(lun, &same, &[0; 512]).expect("an answer").status, 0);
        assert_eq!(use_it(&mut client, &token), revoked, "WRITE SAME");
        if lun == 0 {
            let token = token_of(&mut client, lun, &[(0, 0x8000)]);
            let mut list = vec![0, 22, 0, 16, 0, 0, 0, 0];
            list.extend([0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0x20, 0, 0, 0, 0, 0]);
            assert_eq!(other.write(lun, &[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], &list).expect("an answer").status, 0);
            assert_eq!(use_it(&mut client, &token), revoked, "UNMAP");
        }
        // A copy onto it counts too; and onto itself it ends itself.
        let token = token_of(&mut client, lun, &[(64, 64)]);
        let answer = write_using(&mut client, lun, 3, 0, 0, &zero_token(), &[(127, 1)]);
        assert_eq!(answer.sense_triple(), None);
        assert_eq!(use_it(&mut client, &token), revoked, "WRITE USING TOKEN");
    }
    // Another form of the disk: no more tokens of the old one.
    let token = token_of(&mut client, 0, &[(64, 64)]);
    server.ok(&["snapshot", "create", "a", "s"]);
    assert_eq!(write_using(&mut client, 1, 2, 0, 0, &token, &[(0, 64)]).sense_triple(), revoked);
}

#[test]
fn only_a_token_that_was_given_is_one() {
    let server = Server::start();
    let iqn = target_with_disks(&server, "forged", &[("a", &[]), ("b", &["--format", "raw"])]);
    let mut client = session(&server, &iqn, 1, 2);
    let data = pattern(1 << 20, 8);
    write(&mut client, 0, 9, 0, &data);
    let token = token_of(&mut client, 0, &[(0, 2048)]);
    let mut used = |token: &[u8], flags: u8, offset: u64, blocks: u32| {
        let answer = write_using(&mut client, 1, 2, flags, offset, token, &[(0, blocks)]);
        let status = (answer.sense_triple().is_none()).then(|| told(&mut client, 1, 2));
        (answer.sense_triple(), status.map(|(status, blocks, _)| (status, blocks)))
    };
    for (bit, sense) in [
        (0, (5, 0x23, 1)),
        (7 * 8, (5, 0x23, 0xa)),
        (8 * 8, (5, 0x23, 4)),
        (14 * 8, (5, 0x23, 4)),
        (511 * 8, (5, 0x23, 5)),
    ] {
        let mut forged = token.clone();
        forged[bit / 8] ^= 1;
        assert_eq!(used(&forged, 0, 0, 8), (Some(sense), None), "byte {}", bit / 8);
    }
    assert_eq!(used(&[0; 512], 0, 0, 8).0, Some((5, 0x23, 0xa)));
    // Offsets: from the token's end on there is nothing; across its end there is less than was asked for.
    assert_eq!(used(&token, 0, 2048, 8).0, Some((5, 0x26, 0)));
    assert_eq!(used(&token, 0, u64::MAX, 8).0, Some((5, 0x26, 0)));
    assert_eq!(used(&token, 0, 2040, 64), (None, Some((3, 8))));
    assert_eq!(used(&token, 0, 0, 64), (None, Some((1, 64))), "a part of it is no error");
    assert_eq!(used(&token, 2, 0, 64), (None, Some((1, 64))), "and deleted after that");
    assert_eq!(used(&token, 0, 0, 64).0, Some((5, 0x23, 9)));
    assert_eq!(used(&zero_token(), 0, 0, 4096), (None, Some((1, 4096))));
    assert!(read(&mut client, 1, 9, 0, 1 << 20).iter().all(|byte| *byte == 0));

    // Idle for longer than it may be.
    assert_eq!(populate(&mut client, 0, 4, 1, &[(0, 8)]).sense_triple(), None);
    let short = told(&mut client, 0, 4).2[6..].to_vec();
    assert_eq!(write_using(&mut client, 1, 2, 0, 0, &short, &[(0, 8)]).sense_triple(), None);
    std::thread::sleep(Duration::from_millis(1300));
    assert_eq!(write_using(&mut client, 1, 2, 0, 0, &short, &[(0, 8)]).sense_triple(), Some((5, 0x23, 7)));
    // A token is told once; what is known of the operation stays.
    assert_eq!(populate(&mut client, 0, 5, 0, &[(0, 8)]).sense_triple(), None);
    assert_eq!((told(&mut client, 0, 5).2.len(), told(&mut client, 0, 5).2.len()), (518, 4));
    assert_eq!(receive(&mut client, 0, INFORMATION, 6).sense_triple(), Some((5, 0x24, 0)));
    // A read-only mapping gives tokens and takes none.
    server.ok(&["target", "create", "viewers", "--iqn", "iqn.2026-11.io.lunaring:viewers"]);
    server.ok(&["target", "map", "viewers", "a", "--lun", "0", "--read-only"]);
    server.ok(&["target", "allow", "viewers", "any"]);
    let mut viewer = session(&server, "iqn.2026-11.io.lunaring:viewers", 1, 1);
    let token = token_of(&mut viewer, 0, &[(0, 2048)]);
    assert_eq!(write_using(&mut viewer, 0, 2, 0, 0, &token, &[(0, 8)]).sense_triple(), Some((7, 0x27, 0)));
    assert_eq!(write_using(&mut client, 1, 2, 0, 0, &token, &[(0, 2048)]).sense_triple(), None);
    assert!(read(&mut client, 1, 9, 0, 1 << 20) == data);
}

#[test]
fn zeros_take_no_space() {
    let server = Server::start();
    let iqn = target_with_disks(&server, "zeros", &[("a", &[]), ("b", &["--block-size", "1M"])]);
    let mut client = session(&server, &iqn, 1, 2);
    write(&mut client, 1, 9, 0, &pattern(32 << 20, 1));
    let taken = |server: &Server| server.json(&["disk", "show", "b"])["allocated_bytes"].as_u64().expect("a number");
    let before = taken(&server);
    assert!(before > 32 << 20, "{before}");
    // From an empty disk, and from nothing at all.
    let token = token_of(&mut client, 0, &[(0, 16 << 11)]);
    assert_eq!(write_using(&mut client, 1, 2, 0, 0, &token, &[(0, 16 << 11)]).sense_triple(), None);
    assert_eq!(write_using(&mut client, 1, 3, 0, 0, &zero_token(), &[(16 << 11, 16 << 11)]).sense_triple(), None);
    assert!(read(&mut client, 1, 9, 0, 32 << 20).iter().all(|byte| *byte == 0));
    let began = std::time::Instant::now();
    while taken(&server) + (24 << 20) > before {
        assert!(began.elapsed() < Duration::from_secs(10), "{} of {before} bytes are still taken", taken(&server));
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Somebody writes to the source while it is being copied: the copy yields the old bytes or ends with TOKEN REVOKED,
/// and never a mixture.
#[test]
fn a_token_yields_the_bytes_of_its_moment_or_none() {
    let server = Server::start_with(Options { cores: Some("0,1"), ..Options::default() });
    let iqn = target_with_disks(&server, "race", &[("a", &[]), ("b", &["--format", "raw"])]);
    let (mut client, mut writer) = (session(&server, &iqn, 1, 2), session(&server, &iqn, 2, 2));
    let (mut whole, mut ended) = (0, 0);
    for round in 0..40u64 {
        let byte = round as u8 + 1;
        write(&mut client, 0, 9, 0, &vec![byte; 16 << 20]);
        let token = token_of(&mut client, 0, &[(0, 0x8000)]);
        let answer = write_using(&mut client, 1, 2, 1, 0, &token, &[(0, 0x8000)]);
        assert_eq!(answer.sense_triple(), None, "in the background");
        // Every eighth time the copy comes to its end.
        std::thread::sleep(Duration::from_millis(if round % 8 == 7 { 1000 } else { round % 12 }));
        // Where the copy has not been yet.
        write(&mut writer, 0, 9, 15 << 20, &vec![0xff; 1 << 20]);
        let (status, blocks, _) = told(&mut client, 1, 2);
        let found = read(&mut client, 1, 9, 0, (blocks * 512) as usize);
        assert!(found.iter().all(|found| *found == byte), "round {round}: bytes that were not the token's");
        match status {
            1 => whole += 1,
            2 => ended += 1,
            other => panic!("status {other:#x}"),
        }
    }
    assert!(whole > 0 && ended > 0, "{whole} whole and {ended} ended: one of the two was not tried");
}
