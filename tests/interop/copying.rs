//! EXTENDED COPY between disks of every kind, as initiators send it; and what it may not do.

use std::time::{Duration, Instant};

use perf::client::{Answer, Client};
use perf::login::Wishes;
use perf::pdu::{cdb, cdb_transfer_16};

use crate::server::{Options, Server, count};

/// Disks of every kind, and log2 of their block length.
pub const DISKS: &[(&str, &[&str], u32)] = &[
    ("vhdx", &[], 9),
    ("vhdx-4k", &["--sector-size", "4096"], 12),
    ("fixed", &["--kind", "fixed"], 9),
    ("vhd", &["--format", "vhd"], 9),
    ("raw", &["--format", "raw"], 9),
    ("memory", &["--format", "memory"], 9),
    ("memory-4k", &["--format", "memory", "--sector-size", "4096"], 12),
];

/// Bytes that tell where they are.
pub fn pattern(len: usize, seed: u64) -> Vec<u8> {
    (0..len as u64 / 8).flat_map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed).to_be_bytes()).collect()
}

pub fn write(client: &mut Client, lun: u16, shift: u32, at_bytes: u64, data: &[u8]) -> Answer {
    let cdb = cdb_transfer_16(cdb::WRITE_16, at_bytes >> shift, (data.len() >> shift) as u32, false);
    client.write(lun, &cdb, data).expect("an answer")
}

pub fn read(client: &mut Client, lun: u16, shift: u32, at_bytes: u64, len: usize) -> Vec<u8> {
    let cdb = cdb_transfer_16(cdb::READ_16, at_bytes >> shift, (len >> shift) as u32, false);
    let answer = client.read(lun, &cdb, len as u32).expect("an answer");
    assert_eq!((answer.status, answer.data.len()), (0, len), "{answer:?}");
    answer.data
}

/// The NAA identifier of a unit, from its page 83h as any initiator finds it.
pub fn naa(client: &mut Client, lun: u16) -> Vec<u8> {
    let page = client.read(lun, &[0x12, 1, 0x83, 4, 0, 0], 1024).expect("an answer").data;
    let mut designators = &page[4..];
    while let [code_set, kind, _, len, rest @ ..] = designators {
        if (code_set & 0xf, kind & 0x3f) == (1, 3) {
            return rest[..usize::from(*len)].to_vec();
        }
        designators = &rest[usize::from(*len)..];
    }
    panic!("no NAA designator in {page:02x?}");
}

/// An identification descriptor CSCD descriptor.
pub fn cscd(naa: &[u8], shift: u32) -> Vec<u8> {
    let mut descriptor = vec![0xe4, 0, 0, 0, 1, 3, 0, naa.len() as u8];
    descriptor.extend(naa);
    descriptor.resize(28, 0);
    descriptor.extend((1u32 << shift).to_be_bytes());
    descriptor
}

/// A block to block segment, in blocks of the source.
pub fn blocks(from: u16, to: u16, count: u16, source: u64, destination: u64) -> Vec<u8> {
    let mut descriptor = vec![2, 0, 0, 0x18];
    for field in [from, to, 0, count] {
        descriptor.extend(field.to_be_bytes());
    }
    descriptor.extend(source.to_be_bytes());
    descriptor.extend(destination.to_be_bytes());
    descriptor
}

/// A byte to byte segment.
fn bytes(from: u16, to: u16, count: u32, source: (u64, u16), destination: (u64, u16)) -> Vec<u8> {
    let mut descriptor = vec![0x0a, 0, 0, 0x1c];
    descriptor.extend(from.to_be_bytes());
    descriptor.extend(to.to_be_bytes());
    descriptor.extend(count.to_be_bytes());
    descriptor.extend(source.0.to_be_bytes());
    descriptor.extend(destination.0.to_be_bytes());
    descriptor.extend(source.1.to_be_bytes());
    descriptor.extend(destination.1.to_be_bytes());
    descriptor
}

/// EXTENDED COPY(LID1): CDB and parameter list.
pub fn lid1(identifier: u8, cscds: &[Vec<u8>], segments: &[Vec<u8>]) -> ([u8; 16], Vec<u8>) {
    let (cscds, segments) = (cscds.concat(), segments.concat());
    let mut list = vec![identifier, 0];
    list.extend((cscds.len() as u16).to_be_bytes());
    list.extend([0; 4]);
    list.extend((segments.len() as u32).to_be_bytes());
    list.extend([0; 4]);
    list.extend(cscds);
    list.extend(segments);
    (cdb_out(0x00, 0, list.len()), list)
}

/// EXTENDED COPY(LID4): CDB and parameter list.
pub fn lid4(identifier: u32, immed: bool, cscds: &[Vec<u8>], segments: &[Vec<u8>]) -> ([u8; 16], Vec<u8>) {
    let (cscds, segments) = (cscds.concat(), segments.concat());
    let mut list = vec![1, 0, 0, 0x20];
    list.resize(48, 0);
    list[15] = u8::from(immed);
    list[16] = 0xff;
    list[20..24].copy_from_slice(&identifier.to_be_bytes());
    list[42..44].copy_from_slice(&(cscds.len() as u16).to_be_bytes());
    list[44..46].copy_from_slice(&(segments.len() as u16).to_be_bytes());
    list.extend(cscds);
    list.extend(segments);
    (cdb_out(0x01, 0, list.len()), list)
}

pub fn cdb_out(action: u8, identifier: u32, len: usize) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[..2].copy_from_slice(&[0x83, action]);
    cdb[6..10].copy_from_slice(&identifier.to_be_bytes());
    cdb[10..14].copy_from_slice(&(len as u32).to_be_bytes());
    cdb
}

/// A RECEIVE command with a four-byte list identifier.
pub fn receive(client: &mut Client, lun: u16, action: u8, identifier: u32) -> Answer {
    let mut cdb = [0; 16];
    cdb[..2].copy_from_slice(&[0x84, action]);
    cdb[2..6].copy_from_slice(&identifier.to_be_bytes());
    cdb[12] = 4;
    client.read(lun, &cdb, 1024).expect("an answer")
}

pub fn abort(client: &mut Client, lun: u16, identifier: u32) -> Answer {
    let mut cdb = [0; 16];
    cdb[..2].copy_from_slice(&[0x83, 0x1c]);
    cdb[2..6].copy_from_slice(&identifier.to_be_bytes());
    client.bare(lun, &cdb).expect("an answer")
}

fn good(answer: &Answer) {
    assert_eq!((answer.status, answer.sense_triple()), (0, None), "{answer:?}");
}

/// A target with these disks as LUN 0, 1 and so on, of 64 MiB each; its IQN.
pub fn target_with_disks(server: &Server, target: &str, disks: &[(&str, &[&str])]) -> String {
    let iqn = format!("iqn.2026-11.io.lunaring:{target}");
    server.ok(&["target", "create", target, "--iqn", &iqn]);
    for (lun, (name, options)) in disks.iter().enumerate() {
        server.ok(&[&["disk", "create", name, "--size", "64M"], *options].concat());
        server.ok(&["target", "map", target, name, "--lun", &lun.to_string()]);
    }
    server.ok(&["target", "allow", target, "any"]);
    iqn
}

/// A session that has been told everything on these LUNs.
pub fn session(server: &Server, iqn: &str, number: u32, luns: u16) -> Client {
    // A drive that many tests write to can be slow.
    let wishes = Wishes { timeout: Duration::from_secs(60), ..Wishes::to_target(iqn) };
    let mut client = Client::ready(server.portals[0], &wishes.session(number), 0).expect("a session");
    for lun in 1..luns {
        client.settle(lun).expect("a unit");
    }
    client
}

#[test]
fn every_kind_of_disk_is_copied_to_every_other() {
    let server = Server::start_with(Options { cores: Some("0,1"), ..Options::default() });
    let disks: Vec<(&str, &[&str])> = DISKS.iter().map(|(name, options, _)| (*name, *options)).collect();
    let iqn = target_with_disks(&server, "all", &disks);
    let mut client = session(&server, &iqn, 1, disks.len() as u16);
    let names: Vec<Vec<u8>> = (0..DISKS.len() as u16).map(|lun| naa(&mut client, lun)).collect();
    const MIB: u64 = 1 << 20;
    // Data with a hole of 3 MiB in it, not at the block's edges: 1 MiB + 4 KiB, hole, and the rest of 6 MiB.
    for (lun, (_, _, shift)) in DISKS.iter().enumerate() {
        let data = pattern(6 << 20, lun as u64);
        good(&write(&mut client, lun as u16, *shift, 0, &data[..(1 << 20) + 4096]));
        good(&write(&mut client, lun as u16, *shift, 4 * MIB + 8192, &data[(4 << 20) + 8192..]));
    }
    for (from, (from_name, _, from_shift)) in DISKS.iter().enumerate() {
        let expected = read(&mut client, from as u16, *from_shift, 0, 6 << 20);
        for (to, (to_name, _, to_shift)) in DISKS.iter().enumerate().filter(|(to, _)| *to != from) {
            let at = 20 * MIB + 8192;
            // What was there shows through where the copy leaves something out.
            good(&write(&mut client, to as u16, *to_shift, at - 4096, &vec![0xdd; (6 << 20) + 8192]));
            let cscds = [cscd(&names[from], *from_shift), cscd(&names[to], *to_shift)];
            let parts = [
                blocks(0, 1, ((2 * MIB) >> from_shift) as u16, 0, at >> to_shift),
                bytes(0, 1, 4 << 20, ((2 * MIB - 4096) >> from_shift, 4096), ((at + 2 * MIB) >> to_shift, 0)),
            ];
            let (cdb, list) = match to % 2 {
                0 => lid1(7, &cscds, &parts),
                _ => lid4(0x1_0000 + to as u32, false, &cscds, &parts),
            };
            // Sent to a third unit, which is neither.
            let manager = (0..).find(|lun| *lun != from as u16 && *lun != to as u16).expect("a third one");
            good(&client.write(manager, &cdb, &list).expect("an answer"));
            let found = read(&mut client, to as u16, *to_shift, at - 4096, (6 << 20) + 8192);
            assert!(found[4096..4096 + (6 << 20)] == expected, "{from_name} to {to_name}");
            assert!(found[..4096].iter().chain(&found[4096 + (6 << 20)..]).all(|byte| *byte == 0xdd), "{to_name}");
        }
    }
}

#[test]
fn within_one_disk_a_copy_is_like_one_that_was_read_whole() {
    let server = Server::start();
    for (name, options, shift) in [DISKS[0], DISKS[5]] {
        let iqn = target_with_disks(&server, name, &[(name, options)]);
        let mut client = session(&server, &iqn, 1, 1);
        let name = naa(&mut client, 0);
        let data = pattern(8 << 20, 5);
        for (from, to) in [(0u64, 1 << 20), (4096, 0), (0, 512), (0, 20 << 20)] {
            good(&write(&mut client, 0, shift, from, &data));
            let segment = blocks(0, 0xffff, ((8 << 20) >> shift) as u16, from >> shift, to >> shift);
            let (cdb, list) = lid1(1, &[cscd(&name, shift)], &[segment]);
            good(&client.write(0, &cdb, &list).expect("an answer"));
            assert!(read(&mut client, 0, shift, to, 8 << 20) == data, "from {from} to {to}");
        }
    }
}

/// CVE-2020-28374: the name of a unit of the same server is no way to it.
#[test]
fn a_unit_that_the_session_does_not_see_can_be_neither_source_nor_destination() {
    let server = Server::start();
    let mine = target_with_disks(&server, "mine", &[("mine", &[])]);
    let other = target_with_disks(&server, "other", &[("secret", &[])]);
    let (mut me, mut owner) = (session(&server, &mine, 1, 1), session(&server, &other, 2, 1));
    let secret = pattern(1 << 20, 77);
    good(&write(&mut owner, 0, 9, 0, &secret));
    let (my_name, its_name) = (naa(&mut me, 0), naa(&mut owner, 0));
    let cscds = [cscd(&my_name, 9), cscd(&its_name, 9)];
    for (from, to) in [(1, 0), (0, 1)] {
        let (cdb, list) = lid1(1, &cscds, &[blocks(from, to, 2048, 0, 0)]);
        let answer = me.write(0, &cdb, &list).expect("an answer");
        // COPY ABORTED, COPY TARGET DEVICE NOT REACHABLE, with the CSCD descriptor that is to blame.
        assert_eq!(answer.sense_triple(), Some((0xa, 0x0d, 2)));
        assert_eq!(answer.sense[15..18], [0x80, 0, 16 + 32]);
        let (cdb, list) = lid4(1, true, &cscds, &[blocks(from, to, 2048, 0, 0)]);
        assert_eq!(me.write(0, &cdb, &list).expect("an answer").sense_triple(), Some((0xa, 0x0d, 2)));
    }
    assert!(read(&mut me, 0, 9, 0, 1 << 20).iter().all(|byte| *byte == 0));
    assert!(read(&mut owner, 0, 9, 0, 1 << 20) == secret);
    // Mapped to this target too, it is reached.
    server.ok(&["target", "map", "mine", "secret", "--lun", "1", "--read-only"]);
    me.settle(0).expect("a unit");
    let (cdb, list) = lid1(1, &cscds, &[blocks(1, 0, 2048, 0, 0)]);
    good(&me.write(0, &cdb, &list).expect("an answer"));
    assert!(read(&mut me, 0, 9, 0, 1 << 20) == secret);
    // And read-only is read-only.
    let (cdb, list) = lid1(1, &cscds, &[blocks(0, 1, 8, 0, 0)]);
    assert_eq!(me.write(0, &cdb, &list).expect("an answer").sense_triple(), Some((0xa, 0x26, 0x0c)));
    assert!(read(&mut owner, 0, 9, 0, 1 << 20) == secret);
}

#[test]
fn a_copy_is_told_of_by_its_list_identifier_to_its_own_session_only() {
    let server = Server::start();
    let iqn = target_with_disks(&server, "told", &[("a", &[]), ("b", &["--format", "raw"])]);
    let (mut client, mut stranger) = (session(&server, &iqn, 1, 2), session(&server, &iqn, 2, 2));
    let cscds = [cscd(&naa(&mut client, 0), 9), cscd(&naa(&mut client, 1), 9)];
    good(&write(&mut client, 0, 9, 0, &pattern(1 << 20, 1)));
    let (cdb, list) = lid1(9, &cscds, &[blocks(0, 1, 1024, 0, 0), blocks(0, 1, 1024, 1024, 1024)]);
    good(&client.write(0, &cdb, &list).expect("an answer"));
    let status = |client: &mut Client, action: u8, identifier: u8| {
        client.read(0, &[0x84, action, identifier, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], 256).expect("an answer")
    };
    assert_eq!(status(&mut client, 0, 8).sense_triple(), Some((5, 0x24, 0)), "there was no such copy");
    assert_eq!(status(&mut stranger, 0, 9).sense_triple(), Some((5, 0x24, 0)), "not this session's");
    assert_eq!(receive(&mut client, 0, 5, 9).data[4..6], [0, 1]);
    assert_eq!(status(&mut client, 0, 9).data, [0, 0, 0, 8, 1, 0, 2, 0, 0, 0x10, 0, 0]);
    assert_eq!(status(&mut client, 0, 9).sense_triple(), Some((5, 0x24, 0)), "told once");
    assert_eq!(status(&mut client, 4, 9).data, [0; 4], "no failure");
    // RECEIVE COPY DATA: nothing is held.
    assert_eq!(status(&mut client, 1, 9).sense_triple(), Some((5, 0x24, 0)));

    // The second of three segments cannot be: nothing at all is copied.
    let wrong = [blocks(0, 1, 8, 0, 8192), blocks(0, 1, 8, 1 << 40, 0), blocks(0, 1, 8, 0, 0)];
    let (cdb, list) = lid1(10, &cscds, &wrong);
    let answer = client.write(0, &cdb, &list).expect("an answer");
    assert_eq!(answer.sense_triple(), Some((0xa, 0, 0)));
    assert_eq!(answer.sense[10..12], [0, 1], "the segment");
    assert!(read(&mut client, 1, 9, 8192 * 512, 4096).iter().all(|byte| *byte == 0));
    assert_eq!(status(&mut client, 0, 10).data[4..7], [2, 0, 2]);
    let details = status(&mut client, 4, 10).data;
    assert_eq!((details[56], &details[60..]), (2, &answer.sense[..]));
    assert_eq!(abort(&mut client, 0, 10).sense_triple(), Some((5, 0x24, 0)), "nothing to abort");
}

/// A copy that takes a while, in the background: 256 segments of 16 MiB within two disks.
pub fn long_copy(client: &mut Client, identifier: u32, immed: bool) -> ([u8; 16], Vec<u8>) {
    let cscds = [cscd(&naa(client, 0), 9), cscd(&naa(client, 1), 9)];
    let segments = vec![blocks(0, 1, 0x8000, 0, 0); 200];
    lid4(identifier, immed, &cscds, &segments)
}

pub fn status_of(client: &mut Client, identifier: u32) -> (u8, u64) {
    let data = receive(client, 0, 5, identifier).data;
    (data[5], u64::from_be_bytes(data[16..24].try_into().expect("eight bytes")))
}

#[test]
fn a_long_copy_holds_up_nobody_and_can_be_aborted() {
    let server = Server::start_with(Options { cores: Some("0"), ..Options::default() });
    let memory: &[&str] = &["--format", "memory"];
    let iqn = target_with_disks(&server, "long", &[("a", memory), ("b", &["--format", "raw"]), ("c", memory)]);
    let mut client = session(&server, &iqn, 1, 3);
    let mut other = session(&server, &iqn, 2, 3);
    good(&write(&mut client, 0, 9, 0, &pattern(16 << 20, 3)));
    for how in ["abort", "reset", "abort task", "target reset"] {
        let (cdb, list) = long_copy(&mut client, 5, how != "abort task");
        let tag = client.start(0, &cdb, &list, 0).expect("sent");
        let cmd_sn = client.wire.cmd_sn.wrapping_sub(1);
        if how != "abort task" {
            good(&client.finish(tag).expect("an answer"));
            let (status, _) = status_of(&mut client, 5);
            assert_eq!(status, 0x12, "in the background");
            let again = client.write(0, &cdb, &list).expect("an answer");
            assert_eq!(again.sense_triple(), Some((5, 0, 0x16)), "OPERATION IN PROGRESS");
        }
        // Everybody else goes on, and the copy does too.
        let began = Instant::now();
        for _ in 0..50 {
            good(&write(&mut other, 2, 9, 0, &[0x5a; 4096]));
        }
        assert!(began.elapsed() < Duration::from_secs(2), "{:?} for 50 writes beside a copy", began.elapsed());
        while status_of(&mut client, 5).1 == 0 {
            assert!(began.elapsed() < Duration::from_secs(20), "nothing is copied");
        }
        match how {
            "abort" => good(&abort(&mut client, 0, 5)),
            "reset" => assert_eq!(client.task_management(5, 0, None).expect("an answer"), 0),
            "target reset" => assert_eq!(other.task_management(6, 0, None).expect("an answer"), 0),
            _ => {
                assert_eq!(client.task_management(1, 0, Some((tag, cmd_sn))).expect("an answer"), 0);
                client.forget(tag);
            }
        }
        // Nothing is written any more once that has been answered.
        let mark = vec![0xee; 16 << 20];
        for lun in 0..3 {
            client.settle(lun).expect("a unit");
            other.settle(lun).expect("a unit");
        }
        good(&write(&mut client, 1, 9, 0, &mark));
        std::thread::sleep(Duration::from_millis(100));
        assert!(read(&mut client, 1, 9, 0, 16 << 20) == mark, "{how}");
        if how == "abort" || how == "abort task" {
            let (status, written) = status_of(&mut client, 5);
            assert_eq!(status, 0x60, "{how}");
            assert!(written > 0 && written < 200 * (16 << 20), "{how}: {written}");
        }
    }
}

#[test]
fn a_session_that_ends_takes_its_copies_along() {
    let mut server = Server::start_with(Options { cores: Some("0,1"), ..Options::default() });
    let iqn = target_with_disks(&server, "lost", &[("a", &["--format", "memory"]), ("b", &[])]);
    for logout in [false, true] {
        let mut client = session(&server, &iqn, 1, 2);
        let mut watcher = session(&server, &iqn, 2, 2);
        good(&write(&mut client, 0, 9, 0, &pattern(16 << 20, 3)));
        for identifier in 1..=8 {
            let (cdb, list) = long_copy(&mut client, identifier, true);
            good(&client.write(0, &cdb, &list).expect("an answer"));
        }
        let (cdb, list) = long_copy(&mut client, 9, true);
        assert_eq!(client.write(0, &cdb, &list).expect("an answer").status, 8, "BUSY: one too many");
        if logout {
            assert_eq!(client.wire.logout().expect("a logout"), 0);
        }
        drop(client);
        std::thread::sleep(Duration::from_millis(300));
        let mark = vec![0xee; 16 << 20];
        good(&write(&mut watcher, 1, 9, 0, &mark));
        std::thread::sleep(Duration::from_millis(100));
        assert!(read(&mut watcher, 1, 9, 0, 16 << 20) == mark, "logout: {logout}");
    }
    // A disk that was copied can be taken away, and the server ends at once in the middle of copies.
    let mut client = session(&server, &iqn, 1, 2);
    let (cdb, list) = long_copy(&mut client, 1, true);
    good(&client.write(0, &cdb, &list).expect("an answer"));
    server.ok(&["target", "unmap", "lost", "--lun", "1"]);
    server.ok(&["disk", "delete", "b"]);
    client.settle(0).expect("a unit");
    let (status, _) = status_of(&mut client, 1);
    assert_eq!(status, 0x02, "ended with an error: its destination is gone");
    server.ok(&["disk", "create", "c", "--size", "64M"]);
    server.ok(&["target", "map", "lost", "c", "--lun", "1"]);
    client.settle(0).expect("a unit");
    client.settle(1).expect("a unit");
    let (cdb, list) = long_copy(&mut client, 2, true);
    good(&client.write(0, &cdb, &list).expect("an answer"));
    assert!(server.stop() < Duration::from_secs(2));
}

/// Killed in the middle of copies: what was answered is there, and nothing outside their destinations has changed.
#[test]
fn a_kill_during_a_copy_changes_nothing_but_its_destination() {
    let mut server = Server::start();
    let iqn = target_with_disks(&server, "kill", &[("a", &[]), ("b", &["--block-size", "1M"])]);
    let source = pattern(16 << 20, 9);
    let outside = pattern(8 << 20, 10);
    for round in 0..count("LUNARING_KILLS", 3) {
        let mut client = session(&server, &iqn, 1, 2);
        good(&write(&mut client, 0, 9, 0, &source));
        good(&write(&mut client, 1, 9, 0, &outside[..4 << 20]));
        good(&write(&mut client, 1, 9, 40 << 20, &outside[4 << 20..]));
        let cscds = [cscd(&naa(&mut client, 0), 9), cscd(&naa(&mut client, 1), 9)];
        let (cdb, list) = lid1(1, &cscds, &[blocks(0, 1, 2048, 0, 4 << 11)]);
        good(&client.write(0, &cdb, &list).expect("an answer"));
        let (cdb, list) = lid4(2, true, &cscds, &vec![blocks(0, 1, 0x8000, 0, 8 << 11); 100]);
        good(&client.write(0, &cdb, &list).expect("an answer"));
        std::thread::sleep(Duration::from_millis(5 + round * 7 % 40));
        server.kill_9();
        server.start_again();
        let mut client = session(&server, &iqn, 1, 2);
        assert!(read(&mut client, 1, 9, 0, 4 << 20) == outside[..4 << 20], "before");
        assert!(read(&mut client, 1, 9, 40 << 20, 4 << 20) == outside[4 << 20..], "behind");
        assert!(read(&mut client, 1, 9, 4 << 20, 1 << 20) == source[..1 << 20], "the copy that was answered");
        assert!(read(&mut client, 0, 9, 0, 16 << 20) == source, "the source");
        for chunk in 0..16usize {
            let found = read(&mut client, 1, 9, (8 + chunk as u64) << 20, 1 << 20);
            let expected = &source[chunk << 20..(chunk + 1) << 20];
            let differs = found.chunks(512).zip(expected.chunks(512)).any(|(a, b)| a != b && a.iter().any(|b| *b != 0));
            assert!(!differs, "round {round}, MiB {chunk}: neither copied nor untouched");
        }
    }
    server.stop();
    server.start_again();
    server.ok(&["disk", "check", "b"]);
}
