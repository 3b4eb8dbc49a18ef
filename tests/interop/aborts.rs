//! What is aborted has ended when the abort is answered: copies under PREEMPT AND ABORT, writes that the home shard is
//! making visible under ABORT TASK SET and LOGICAL UNIT RESET.

use std::time::Duration;

use perf::client::Client;
use perf::login::Wishes;
use perf::pdu::{self, FINAL, IMMEDIATE, request};

use crate::copying::{long_copy, pattern, read, status_of, target_with_disks, write};
use crate::server::{Options, Server, count};

const TASK_ABORTED: u8 = 0x40;
const ABORT_TASK_SET: u8 = 2;
const LOGICAL_UNIT_RESET: u8 = 5;

const REGISTER_AND_IGNORE: u8 = 6;
const RESERVE: u8 = 1;
const PREEMPT_AND_ABORT: u8 = 5;
const WRITE_EXCLUSIVE: u8 = 1;

/// A session from one of two CPUs, and so to one of two shards.
fn session(server: &Server, iqn: &str, number: u32) -> Client {
    let portal = server.portals[0];
    let wishes = Wishes::to_target(iqn).session(number);
    let open = move || {
        assert!(perf::cost::pin(number as usize % 2), "two CPUs are there");
        Client::ready(portal, &wishes, 0).expect("a session")
    };
    let mut client = std::thread::scope(|scope| scope.spawn(open).join().expect("a session"));
    client.settle(1).expect("a unit");
    client
}

/// PERSISTENT RESERVE OUT on the second unit.
fn reserve_out(client: &mut Client, action: u8, key: u64, new_key: u64) -> u8 {
    let list = [&key.to_be_bytes()[..], &new_key.to_be_bytes(), &[0; 8]].concat();
    let cdb = [0x5f, action, WRITE_EXCLUSIVE, 0, 0, 0, 0, 0, 24, 0];
    client.write(1, &cdb, &list).expect("an answer").status
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Copy {
    Background,
    /// The command was sent to the unit that is preempted.
    OfTheUnit,
    /// It was sent to the copy's source.
    OfAnother,
}

/// One node copies for a long time; another takes its registration away and aborts its commands. From the answer on,
/// nothing of the copy is written any more.
#[test]
fn preempt_and_abort_ends_a_copy_before_it_is_answered() {
    let server = Server::start_with(Options { cores: Some("0,1"), ..Options::default() });
    let memory: &[&str] = &["--format", "memory"];
    let iqn = target_with_disks(&server, "fenced", &[("a", memory), ("b", &[])]);
    for (round, (copy, reserves)) in [
        (Copy::Background, false),
        (Copy::Background, true),
        (Copy::OfTheUnit, false),
        (Copy::OfTheUnit, true),
        (Copy::OfAnother, false),
        (Copy::OfAnother, true),
    ]
    .into_iter()
    .enumerate()
    {
        let number = 2 * round as u32;
        let (mut victim, mut other) = (session(&server, &iqn, number), session(&server, &iqn, number + 1));
        assert_eq!(write(&mut victim, 0, 9, 0, &pattern(16 << 20, 3)).status, 0);
        assert_eq!(reserve_out(&mut victim, REGISTER_AND_IGNORE, 0, 0xa1), 0);
        assert_eq!(reserve_out(&mut other, REGISTER_AND_IGNORE, 0, 0xb1), 0);
        if reserves {
            assert_eq!(reserve_out(&mut victim, RESERVE, 0xa1, 0), 0);
        }
        let (cdb, list) = long_copy(&mut victim, 5, copy == Copy::Background);
        let tag = victim.start(if copy == Copy::OfTheUnit { 1 } else { 0 }, &cdb, &list, 0).expect("sent");
        if copy == Copy::Background {
            assert_eq!(victim.finish(tag).expect("an answer").status, 0);
        }
        // It is at work.
        let before = read(&mut other, 1, 9, 0, 1 << 20);
        let mut seen = 0;
        while seen < 3 {
            assert_eq!(if reserves { 0 } else { write(&mut other, 1, 9, 0, &[0xcc; 512]).status }, 0);
            std::thread::sleep(Duration::from_millis(20));
            let now = read(&mut other, 1, 9, 0, 1 << 20);
            seen += u32::from(reserves || now != before || now[..512] != [0xcc; 512]);
        }
        assert_eq!(reserve_out(&mut other, PREEMPT_AND_ABORT, 0xb1, 0xa1), 0, "{copy:?}");
        let mark = vec![0xee; 16 << 20];
        assert_eq!(write(&mut other, 1, 9, 0, &mark).status, 0);
        std::thread::sleep(Duration::from_millis(150));
        assert!(read(&mut other, 1, 9, 0, 16 << 20) == mark, "{copy:?}, reserves {reserves}: written afterwards");
        match copy {
            Copy::Background => {
                victim.settle(0).expect("a unit");
                let (status, written) = status_of(&mut victim, 5);
                assert!(status == 0x60 && written > 0 && written < 200 * (16 << 20), "{status:02x} {written}");
            }
            Copy::OfTheUnit => assert_eq!(victim.finish(tag).expect("an answer").status, TASK_ABORTED),
            Copy::OfAnother => {
                let answer = victim.finish(tag).expect("an answer");
                assert_eq!(answer.sense_triple(), Some((0xa, 0x0d, 0x01)), "its destination is gone: {answer:?}");
            }
        }
        let clear = reserve_out(&mut other, 3, 0xb1, 0);
        assert_eq!(clear, 0);
    }
}

/// Writes to a differencing disk, which the home shard makes visible one after the other, are aborted in the middle of
/// that. What has been answered by then is what stays, every block is old or new as a whole, and nothing of the aborted
/// commands is left behind that the next change of the disk would wait for.
#[test]
fn writes_that_are_being_committed_are_aborted() {
    const BLOCKS: u64 = 48;
    const BLOCK: usize = 4096;
    let server = Server::start_with(Options { cores: Some("0,1"), ..Options::default() });
    let iqn = server.ready_target("child", &["--size", "64M", "--block-size", "1M"]);
    server.ok(&["disk", "create", "unused", "--size", "1M", "--format", "memory"]);
    server.ok(&["target", "map", "child", "unused", "--lun", "1"]);
    let mut clients = [session(&server, &iqn, 1), session(&server, &iqn, 2)];
    assert_eq!(write(&mut clients[0], 0, 9, 0, &pattern(64 << 20, 1)[..32 << 20]).status, 0);
    let mut old: Vec<u8> = vec![0; BLOCKS as usize];
    for block in 0..BLOCKS {
        assert_eq!(write(&mut clients[0], 0, 9, block << 20, &[0; BLOCK]).status, 0);
    }
    let mut aborted = 0;
    for round in 0..count("LUNARING_ABORTS", 12) {
        // From now on every first write into a block has to be committed.
        server.ok(&["snapshot", "create", "child", &format!("s{round}")]);
        let [client, other] = &mut clients;
        client.settle(0).expect("a unit");
        other.settle(0).expect("a unit");
        let new = round as u8 + 1;
        let tags: Vec<u32> = (0..BLOCKS)
            .map(|block| {
                let mut cdb = [0; 16];
                cdb[0] = 0x8a;
                cdb[2..10].copy_from_slice(&((block << 20) / 512).to_be_bytes());
                cdb[13] = (BLOCK / 512) as u8;
                client.start(0, &cdb, &[new; BLOCK], 0).expect("sent")
            })
            .collect();
        std::thread::sleep(Duration::from_micros(300 * round));
        if round % 3 == 2 {
            // A reset of another session covers what has been received, not what is on its way.
            all_received(client);
        }
        // A reset by the other session as well as one's own.
        let answer = match round % 3 {
            0 => client.task_management(ABORT_TASK_SET, 0, None),
            1 => client.task_management(LOGICAL_UNIT_RESET, 0, None),
            _ => other.task_management(LOGICAL_UNIT_RESET, 0, None),
        };
        assert_eq!(answer.expect("an answer"), 0);
        let found: Vec<Vec<u8>> = (0..BLOCKS).map(|block| block_of(other, block)).collect();
        std::thread::sleep(Duration::from_millis(50));
        let later: Vec<Vec<u8>> = (0..BLOCKS).map(|block| block_of(other, block)).collect();
        assert!(found == later, "round {round}: something was written after the answer");
        for (block, found) in found.iter().enumerate() {
            let is_new = *found == [new; BLOCK];
            assert!(is_new || *found == vec![old[block]; BLOCK], "round {round}, block {block}: torn");
            aborted += u32::from(!is_new);
            if is_new {
                old[block] = new;
            }
        }
        tags.into_iter().for_each(|tag| client.forget(tag));
        client.events.clear();
        // The session is as good as before: what was answered on it, and what ended without an answer, is over.
        *client = session(&server, &iqn, 1);
    }
    assert!(aborted > 0, "no command was aborted in time");
    server.ok(&["disk", "check", "child"]);
}

/// Wait until everything that was sent has been received: the answer to a ping comes behind it.
fn all_received(client: &mut Client) {
    let ping = client.request(request::NOP_OUT | IMMEDIATE, FINAL).with_word(20, pdu::TAG_NONE);
    client.wire.send(ping, &[]).expect("sent");
    while client.receive().expect("an answer").header.task_tag() != ping.task_tag() {}
}

fn block_of(client: &mut Client, block: u64) -> Vec<u8> {
    client.settle(0).expect("a unit");
    read(client, 0, 9, block << 20, 4096)
}
