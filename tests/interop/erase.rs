//! FORMAT UNIT and SANITIZE from outside: what the blocks read as, what others are told meanwhile, and what is left of
//! a SANITIZE that did not end.

use std::time::{Duration, Instant};

use perf::client::Client;
use perf::login::Wishes;

use crate::server::{Options, Server};

const DISKS: &[(&str, &[&str], u32)] = &[
    ("vhdx", &["--size", "8M", "--block-size", "1M"], 512),
    ("vhdx-fixed-4k", &["--size", "8M", "--kind", "fixed", "--sector-size", "4096"], 4096),
    ("raw", &["--size", "8M", "--format", "raw"], 512),
    ("raw-fixed", &["--size", "8M", "--format", "raw", "--kind", "fixed"], 512),
    ("memory", &["--size", "8M", "--format", "memory"], 512),
];

const TEST_UNIT_READY: [u8; 6] = [0; 6];
const FORMAT_UNIT: [u8; 6] = [0x04, 0, 0, 0, 0, 0];
const BLOCK_ERASE: [u8; 10] = [0x48, 0x02, 0, 0, 0, 0, 0, 0, 0, 0];

fn cdb(opcode: u8, lba: u64, blocks: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = opcode;
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

/// All of a disk of 8 MiB.
fn contents(client: &mut Client, block: u32) -> Vec<u8> {
    let blocks = (1 << 20) / block;
    let part = |mib: u64| {
        let answer = client.read(0, &cdb(0x88, mib * u64::from(blocks), blocks), 1 << 20).expect("an answer");
        assert_eq!(answer.status, 0, "{answer:?}");
        answer.data
    };
    (0..8).flat_map(part).collect()
}

fn scribble(client: &mut Client, block: u32) {
    let blocks = (1 << 20) / block;
    for mib in [0u64, 1, 4, 7] {
        let data: Vec<u8> = (0..1 << 20).map(|at| (at % 251 + mib) as u8 | 1).collect();
        let answer = client.write(0, &cdb(0x8a, mib * u64::from(blocks), blocks), &data).expect("an answer");
        assert_eq!(answer.status, 0, "{answer:?}");
    }
}

#[test]
fn blocks_are_emptied_or_overwritten() {
    for cores in ["0", "0,1"] {
        let server = Server::start_with(Options { cores: Some(cores), ..Options::default() });
        for (name, options, block) in DISKS {
            let iqn = server.ready_target(name, options);
            let mut client = Client::ready(server.portals[0], &Wishes::to_target(&iqn), 0).expect("a session");
            for emptied in [&FORMAT_UNIT[..], &BLOCK_ERASE] {
                scribble(&mut client, *block);
                let answer = client.bare(0, emptied).expect("an answer");
                assert_eq!(answer.status, 0, "{name}: {answer:?}");
                assert!(contents(&mut client, *block).iter().all(|byte| *byte == 0), "{name}: emptied");
            }
            scribble(&mut client, *block);
            // Two passes, inverted between: the last has the pattern itself, anew in each block.
            let list = [0x82, 0, 0, 3, 0x11, 0x22, 0x33];
            let answer = client.write(0, &[0x48, 0x01, 0, 0, 0, 0, 0, 0, 7, 0], &list).expect("an answer");
            assert_eq!(answer.status, 0, "{name}: {answer:?}");
            let pattern: Vec<u8> = [0x11, 0x22, 0x33].into_iter().cycle().take(*block as usize).collect();
            assert!(contents(&mut client, *block).chunks(*block as usize).all(|chunk| chunk == pattern), "{name}");
            let wrong =
                client.write(0, &[0x48, 0x01, 0, 0, 0, 0, 0, 0, 7, 0], &[0, 0, 0, 3, 1, 1, 1]).expect("an answer");
            assert_eq!(wrong.sense_triple(), Some((5, 0x26, 0)), "{name}: no passes");
            // Nothing has failed, so that there is nothing to leave.
            assert_eq!(client.bare(0, &[0x48, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0]).expect("an answer").status, 0);
            assert_eq!(client.bare(0, &TEST_UNIT_READY).expect("an answer").status, 0);
        }
    }
}

/// GET LBA STATUS from a block on: blocks and provisioning status of the first descriptor.
fn status(client: &mut Client, lba: u64) -> (u32, u8) {
    let mut get = cdb(0x9e, lba, 24);
    get[1] = 0x12;
    let answer = client.read(0, &get, 24).expect("an answer");
    assert_eq!((answer.status, &answer.data[8..16]), (0, &lba.to_be_bytes()[..]), "{answer:?}");
    (u32::from_be_bytes(answer.data[16..20].try_into().expect("4")), answer.data[20])
}

/// A raw file tells that it has no space at all, when it is new, after it was emptied, and after a restart; a write
/// ends that.
#[test]
fn an_empty_raw_disk_says_so() {
    const DEALLOCATED: u8 = 1;
    let mut server = Server::start_with(Options { cores: Some("0,1"), ..Options::default() });
    let iqn = server.ready_target("hollow", &["--size", "8M", "--format", "raw"]);
    let blocks = 8 << 11;
    for (emptied, restart) in [(None, false), (Some(BLOCK_ERASE), false), (Some(BLOCK_ERASE), true)] {
        let wishes = Wishes::to_target(&iqn);
        let ready = |server: &Server| Client::ready(server.portals[0], &wishes, 0).expect("a session");
        let mut client = ready(&server);
        if let Some(emptied) = emptied {
            assert_eq!(client.bare(0, &emptied).expect("an answer").status, 0);
        }
        if restart {
            server.kill_9();
            server.start_again();
            client = ready(&server);
        }
        assert_eq!(status(&mut client, 0), (blocks, DEALLOCATED));
        assert_eq!(status(&mut client, 100), (blocks - 100, DEALLOCATED));
        assert_eq!(client.write(0, &cdb(0x8a, 77, 1), &[0x5a; 512]).expect("an answer").status, 0);
        assert_eq!(status(&mut client, 0), (blocks, 0));
        server.kill_9();
        server.start_again();
        assert_eq!(status(&mut ready(&server), 0), (blocks, 0), "there is data");
    }
    server.stop();
}

#[test]
fn a_unit_says_how_far_it_is_and_others_work_on() {
    let server = Server::start_with(Options { cores: Some("0,1"), ..Options::default() });
    let iqn = server.ready_target("large", &["--size", "512M", "--format", "raw", "--kind", "fixed"]);
    server.ok(&["disk", "create", "other", "--size", "64M", "--format", "memory"]);
    server.ok(&["target", "map", "large", "other", "--lun", "1"]);
    let open =
        |number| Client::ready(server.portals[0], &Wishes::to_target(&iqn).session(number), 0).expect("a session");
    let mut clients: Vec<Client> = (0..4).map(open).collect();
    for client in &mut clients {
        client.settle(1).expect("answers");
    }
    let list = [0x1f, 0, 0, 1, 0x5a];
    let answer = clients[0].write(0, &[0x48, 0x81, 0, 0, 0, 0, 0, 0, 5, 0], &list).expect("an answer");
    assert_eq!(answer.status, 0, "IMMED: {answer:?}");
    let mut seen = vec![0; clients.len()];
    let began = Instant::now();
    // Until each has seen it move.
    let mut last = vec![0; clients.len()];
    while seen.iter().any(|seen| *seen < 3) {
        assert!(began.elapsed() < Duration::from_secs(20), "{seen:?}");
        for (index, client) in clients.iter_mut().enumerate() {
            let refused = client.bare(0, &TEST_UNIT_READY).expect("an answer");
            assert_eq!(refused.sense_triple(), Some((2, 0x04, 0x1b)), "SANITIZE IN PROGRESS: {refused:?}");
            let read = client.read(0, &cdb(0x88, 0, 1), 512).expect("an answer");
            assert_eq!(read.sense_triple(), Some((2, 0x04, 0x1b)));
            let sense = client.read(0, &[0x03, 0, 0, 0, 255, 0], 255).expect("an answer").data;
            let progress = u16::from_be_bytes([sense[16], sense[17]]);
            assert_eq!((sense[2] & 15, sense[12], sense[13], sense[15] & 0x80), (2, 4, 0x1b, 0x80));
            assert!(progress >= last[index], "progress goes on");
            seen[index] += u32::from(progress > last[index]);
            last[index] = progress;
            assert_eq!(client.bare(1, &TEST_UNIT_READY).expect("an answer").status, 0, "the other unit serves");
        }
    }
    the_rest_is_refused_after_a_restart(server, &iqn);
}

/// Memory and null disks are overwritten without waiting for anything: not in one go, or nobody else had a turn.
#[test]
fn work_that_waits_for_nothing_lets_others_have_their_turns() {
    for cores in ["0", "0,1"] {
        let server = Server::start_with(Options { cores: Some(cores), ..Options::default() });
        let iqn = server.ready_target("null", &["--size", "1T", "--format", "null"]);
        server.ok(&["disk", "create", "other", "--size", "64M", "--format", "memory"]);
        server.ok(&["target", "map", "null", "other", "--lun", "1"]);
        let mut client = Client::ready(server.portals[0], &Wishes::to_target(&iqn), 0).expect("a session");
        client.settle(1).expect("answers");
        let answer = client.write(0, &[0x48, 0x81, 0, 0, 0, 0, 0, 0, 5, 0], &[1, 0, 0, 1, 0x5a]).expect("an answer");
        assert_eq!(answer.status, 0, "IMMED: {answer:?}");
        let (mut last, mut seen) = (0, 0);
        loop {
            let sense = client.read(0, &[0x03, 0, 0, 0, 255, 0], 255).expect("an answer").data;
            if sense[2] & 15 == 0 {
                break;
            }
            assert_eq!((sense[2] & 15, sense[12], sense[13], sense[15] & 0x80), (2, 4, 0x1b, 0x80));
            let progress = u16::from_be_bytes([sense[16], sense[17]]);
            assert!(progress >= last, "progress goes on");
            seen += u32::from(progress > last);
            last = progress;
            let began = Instant::now();
            assert_eq!(client.bare(1, &TEST_UNIT_READY).expect("an answer").status, 0, "the other unit serves");
            assert!(began.elapsed() < Duration::from_millis(500), "after {:?}", began.elapsed());
        }
        assert!(seen > 3, "{cores}: progress was seen {seen} times");
        assert_eq!(client.bare(0, &TEST_UNIT_READY).expect("an answer").status, 0);
    }
}

/// SANITIZE goes on when its command is aborted, the unit is reset, or the session ends; what ends it does not wait.
#[test]
fn a_sanitize_goes_on_without_its_command() {
    const ABORT_TASK: u8 = 1;
    const LOGICAL_UNIT_RESET: u8 = 5;
    for cores in ["0", "0,1"] {
        let server = Server::start_with(Options { cores: Some(cores), ..Options::default() });
        // Long enough to be seen at work, also after a reset that waits for an acknowledgement.
        let size = if cfg!(debug_assertions) { "2T" } else { "12T" };
        let iqn = server.ready_target("null", &["--size", size, "--format", "null"]);
        let open =
            |number| Client::ready(server.portals[0], &Wishes::to_target(&iqn).session(number), 0).expect("a session");
        let (mut client, mut other) = (open(1), open(2));
        let overwrite = [0x48, 0x01, 0, 0, 0, 0, 0, 0, 5, 0];
        for how in ["abort", "reset", "reset by another", "end"] {
            let tag = client.start(0, &overwrite, &[2, 0, 0, 1, 0x5a], 0).expect("sent");
            let cmd_sn = client.wire.cmd_sn.wrapping_sub(1);
            let in_progress = |client: &mut Client| {
                client.bare(0, &TEST_UNIT_READY).expect("an answer").sense_triple() == Some((2, 0x04, 0x1b))
            };
            while !in_progress(&mut other) {}
            let began = Instant::now();
            let answer = match how {
                "abort" => client.task_management(ABORT_TASK, 0, Some((tag, cmd_sn))),
                "reset" => client.task_management(LOGICAL_UNIT_RESET, 0, None),
                "reset by another" => other.task_management(LOGICAL_UNIT_RESET, 0, None),
                _ => client.wire.socket.shutdown(std::net::Shutdown::Both).map(|()| 0),
            };
            assert_eq!(answer.expect("an answer"), 0, "{how}");
            // A reset by another waits for the acknowledgement of what it has ended.
            assert!(began.elapsed() < Duration::from_millis(1500), "{how}: after {:?}", began.elapsed());
            client.forget(tag);
            let mut watcher = open(9);
            assert!(in_progress(&mut watcher), "{how}: it goes on");
            let sanitized = Instant::now();
            while in_progress(&mut watcher) {
                assert!(sanitized.elapsed() < Duration::from_secs(60), "{how}");
                std::thread::sleep(Duration::from_millis(20));
            }
            assert_eq!(watcher.bare(0, &TEST_UNIT_READY).expect("an answer").status, 0, "{how}: it has ended");
            client = open(1);
            other.settle(0).expect("answers");
        }
    }
}

/// The process ends in between: what was not sanitized stays refused, until it is.
fn the_rest_is_refused_after_a_restart(mut server: Server, iqn: &str) {
    let stopped = server.stop();
    assert!(stopped < Duration::from_secs(2), "stopped after {stopped:?}");
    server.start_again();
    let mut client = Client::ready(server.portals[0], &Wishes::to_target(iqn), 1).expect("a session");
    client.settle(0).expect("answers");
    let refused = client.read(0, &cdb(0x88, 0, 1), 512).expect("an answer");
    assert_eq!(refused.sense_triple(), Some((3, 0x31, 0x03)), "SANITIZE COMMAND FAILED: {refused:?}");
    let stays = client.bare(0, &[0x48, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0]).expect("an answer");
    assert_eq!(stays.sense_triple().map(|sense| sense.0), Some(5), "AUSE was zero");
    assert_eq!(client.bare(0, &BLOCK_ERASE).expect("an answer").status, 0);
    let read = client.read(0, &cdb(0x88, 1000, 8), 4096).expect("an answer");
    assert_eq!((read.status, read.data), (0, vec![0; 4096]));
}

#[test]
fn an_interrupted_format_is_remembered() {
    for (name, options) in [
        ("raw", &["--size", "1G", "--format", "raw", "--kind", "fixed"][..]),
        ("vhdx", &["--size", "1G", "--kind", "fixed"]),
    ] {
        let mut server = Server::start_with(Options { cores: Some("0,1"), ..Options::default() });
        let iqn = server.ready_target(name, options);
        let mut client = Client::ready(server.portals[0], &Wishes::to_target(&iqn), 0).expect("a session");
        assert_eq!(client.write(0, &cdb(0x8a, 0, 1), &[7; 512]).expect("an answer").status, 0);
        let immed = [0, 0x02, 0, 0];
        let answer = client.write(0, &[0x04, 0x10, 0, 0, 0, 0], &immed).expect("an answer");
        assert_eq!(answer.status, 0, "IMMED: {answer:?}");
        let refused = client.bare(0, &TEST_UNIT_READY).expect("an answer");
        assert_eq!(refused.sense_triple(), Some((2, 0x04, 0x04)), "FORMAT IN PROGRESS: {refused:?}");
        server.kill_9();
        server.start_again();
        let mut client = Client::ready(server.portals[0], &Wishes::to_target(&iqn), 1).expect("a session");
        client.settle(0).expect("answers");
        for command in [&TEST_UNIT_READY[..], &cdb(0x88, 0, 0)] {
            let refused = client.bare(0, command).expect("an answer");
            assert_eq!(refused.sense_triple(), Some((3, 0x31, 0)), "MEDIUM FORMAT CORRUPTED: {refused:?}");
        }
        let sense = client.read(0, &[0x03, 0, 0, 0, 255, 0], 255).expect("an answer").data;
        assert_eq!((sense[2] & 15, sense[12], sense[13]), (3, 0x31, 0));
        assert_eq!(client.bare(0, &FORMAT_UNIT).expect("an answer").status, 0);
        assert_eq!(client.bare(0, &TEST_UNIT_READY).expect("an answer").status, 0);
        assert_eq!(client.read(0, &cdb(0x88, 0, 1), 512).expect("an answer").data, [0; 512]);
        server.stop();
        server.start_again();
        let mut client = Client::ready(server.portals[0], &Wishes::to_target(&iqn), 2).expect("a session");
        client.settle(0).expect("answers");
        assert_eq!(client.bare(0, &TEST_UNIT_READY).expect("an answer").status, 0, "it is over and done with");
    }
}

#[test]
fn a_disk_that_shares_blocks_is_not_sanitized() {
    let server = Server::start();
    let iqn = server.ready_target("shared", &["--size", "8M"]);
    let mut client = Client::ready(server.portals[0], &Wishes::to_target(&iqn), 0).expect("a session");
    scribble(&mut client, 512);
    server.ok(&["snapshot", "create", "shared", "s1"]);
    client.settle(0).expect("answers");
    assert_eq!(client.bare(0, &BLOCK_ERASE).expect("an answer").sense_triple(), Some((5, 0x20, 0)));
    let reported = |client: &mut Client, opcode: u8| {
        let answer = client.read(0, &[0xa3, 0x0c, 1, opcode, 0, 0, 0, 0, 0, 64, 0, 0], 64).expect("an answer");
        answer.data.get(1).map_or(0, |byte| byte & 7)
    };
    assert_eq!(reported(&mut client, 0x04), 3, "FORMAT UNIT");
    // A format hides what the snapshot has, and the snapshot keeps it.
    assert_eq!(client.bare(0, &FORMAT_UNIT).expect("an answer").status, 0);
    assert!(contents(&mut client, 512).iter().all(|byte| *byte == 0));
    server.ok(&["snapshot", "restore", "shared", "s1"]);
    client.settle(0).expect("answers");
    assert_eq!(client.read(0, &cdb(0x88, 0, 1), 512).expect("an answer").data[..3], [1, 1, 3]);
}

/// Written over and over; 16 bytes that nothing else writes.
const PAYLOAD: &[u8; 16] = b"a secret payload";

/// How often the payload is in a file, at any place.
fn left_over(file: &std::path::Path) -> usize {
    let bytes = std::fs::read(file).expect("a disk's file");
    bytes.windows(PAYLOAD.len()).filter(|window| window == PAYLOAD).count()
}

#[test]
fn nothing_of_the_payload_is_left_in_a_sanitized_file() {
    let overwrite = [0x48, 0x01, 0, 0, 0, 0, 0, 0, 5, 0];
    for (round, (format, options)) in [
        ("vhdx", &["--size", "8M", "--block-size", "1M"][..]),
        ("vhdx", &["--size", "8M", "--kind", "fixed"]),
        ("vhd", &["--size", "8M", "--format", "vhd"]),
        ("raw", &["--size", "8M", "--format", "raw"]),
    ]
    .into_iter()
    .enumerate()
    {
        for (name, erases) in [(format!("erased{round}"), true), (format!("overwritten{round}"), false)] {
            let mut server = Server::start_with(Options { cores: Some("0,1"), ..Options::default() });
            let iqn = server.ready_target(&name, options);
            let file = server.disk_file(&name);
            let mut client = Client::ready(server.portals[0], &Wishes::to_target(&iqn), 0).expect("a session");
            let mib = PAYLOAD.repeat((1 << 20) / PAYLOAD.len());
            let write = |client: &mut Client, at: u64| {
                let answer = client.write(0, &cdb(0x8a, at * 2048, 2048), &mib).expect("an answer");
                assert_eq!(answer.status, 0, "{format}: {answer:?}");
            };
            (0..8).for_each(|at| write(&mut client, at));
            // Some of it has been at other places before.
            let list = [&[0, 22, 0, 16, 0, 0, 0, 0][..], &2048u64.to_be_bytes(), &4096u32.to_be_bytes(), &[0; 4]];
            client.write(0, &[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], &list.concat()).expect("an answer");
            (1..6).rev().for_each(|at| write(&mut client, at));
            assert_eq!(client.bare(0, &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]).expect("an answer").status, 0);
            assert!(left_over(&file) >= 7 << 16, "{format}: it is there, and would be found");
            let answer = match erases {
                true => client.bare(0, &BLOCK_ERASE),
                false => client.write(0, &overwrite, &[1, 0, 0, 1, 0]),
            };
            assert_eq!(answer.expect("an answer").status, 0, "{format}");
            assert_eq!(left_over(&file), 0, "{format}, {options:?}: served");
            server.stop();
            assert_eq!(left_over(&file), 0, "{format}, {options:?}: stopped");
        }
    }
}
