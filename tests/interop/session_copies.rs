//! Copies of a session of several connections: what is known of them, who may end them, and what ends them (in
//! SPC-4 a list identifier is one of the I_T nexus).

use std::time::{Duration, Instant};

use perf::client::{Answer, Client};

use crate::connections::{joined, leading, server};
use crate::copying::{abort, long_copy, pattern, read, receive, status_of, write};
use crate::server::Server;

const IN_BACKGROUND: u8 = 0x12;
const GOOD: u8 = 0x01;
const TERMINATED: u8 = 0x60;
const MIB: usize = 1 << 20;

/// A server with a session of two connections to two disks of 64 MiB.
fn two_connections() -> (Server, String, [Client; 2]) {
    let (server, iqn) = server(4);
    server.ok(&["disk", "create", "memory", "--size", "64M", "--format", "memory"]);
    server.ok(&["target", "map", "several", "memory", "--lun", "1"]);
    let mut first = leading(&server, &iqn);
    first.settle(1).expect("a unit");
    good(&write(&mut first, 0, 9, 0, &pattern(16 * MIB, 3)));
    let second = joined(&server, &iqn, &first, 1).expect("a second connection");
    (server, iqn, [first, second])
}

fn good(answer: &Answer) {
    assert_eq!((answer.status, answer.sense_triple()), (0, None), "{answer:?}");
}

/// Do something on one connection, with the numbers of the other.
fn on(clients: &mut [Client; 2], index: usize) -> &mut Client {
    clients[index].wire.cmd_sn = clients[1 - index].wire.cmd_sn;
    &mut clients[index]
}

/// Have the command's parameter list go when it is asked for; its answer is not waited for.
fn send_list(client: &mut Client, tag: u32) {
    client.wire.socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a time-out");
    assert!(client.finish(tag).is_err(), "the copy takes longer");
    client.wire.socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a time-out");
}

#[test]
fn a_copy_is_known_on_every_connection_and_can_be_aborted_on_any() {
    let (_server, _iqn, mut clients) = two_connections();
    for (runs_on, asks_on) in [(1, 0), (0, 1), (0, 0)] {
        let client = on(&mut clients, runs_on);
        let (cdb, list) = long_copy(client, 7, true);
        good(&client.write(0, &cdb, &list).expect("an answer"));
        clients[1 - runs_on].wire.cmd_sn = clients[runs_on].wire.cmd_sn;
        let client = &mut clients[asks_on];
        assert_eq!(status_of(client, 7).0, IN_BACKGROUND);
        let again = client.write(0, &cdb, &list).expect("an answer");
        assert_eq!(again.sense_triple(), Some((5, 0, 0x16)), "OPERATION IN PROGRESS");
        // It is seen to go on.
        let began = Instant::now();
        while status_of(client, 7).1 == 0 {
            assert!(began.elapsed() < Duration::from_secs(5), "nothing is copied");
        }
        good(&abort(client, 0, 7));
        // Nothing is written any more once that has been answered.
        let mark = vec![0xee; 16 * MIB];
        good(&write(client, 1, 9, 0, &mark));
        std::thread::sleep(Duration::from_millis(50));
        assert!(read(client, 1, 9, 0, 16 * MIB) == mark, "from {runs_on}, asked on {asks_on}");
        let (status, blocks) = status_of(client, 7);
        assert_eq!(status, TERMINATED);
        assert!(blocks > 0);
        assert_eq!(abort(client, 0, 7).sense_triple(), Some((5, 0x24, 0)), "there is nothing left to abort");
        clients[1 - asks_on].wire.cmd_sn = clients[asks_on].wire.cmd_sn;
        let client = &mut clients[1 - asks_on];
        assert_eq!(status_of(client, 7), (TERMINATED, blocks), "the other connection is told the same");
        clients[asks_on].wire.cmd_sn = clients[1 - asks_on].wire.cmd_sn;
    }
}

#[test]
fn what_is_told_once_is_told_once_by_session() {
    let (server, iqn, mut clients) = two_connections();
    // POPULATE TOKEN on one connection; the token is fetched on the other.
    let mut list = vec![0; 32];
    list[1] = 30;
    list[15] = 16;
    list[23] = 0;
    list[27] = 64;
    good(&on(&mut clients, 0).write(0, &crate::copying::cdb_out(0x10, 9, list.len()), &list).expect("an answer"));
    let told = receive(on(&mut clients, 1), 0, 7, 9).data;
    assert!(told.len() > 512 && told[5] == GOOD, "{told:02x?}");
    let again = receive(on(&mut clients, 0), 0, 7, 9).data;
    assert!(again.len() < 512, "the token has been told");
    // Another session knows nothing of it, nor does the next one of this initiator.
    let wishes = crate::connections::wishes(&iqn).session(5);
    let mut stranger = Client::ready(server.portals[0], &wishes, 0).expect("another session");
    assert_eq!(receive(&mut stranger, 0, 7, 9).sense_triple(), Some((5, 0x24, 0)));
    drop(clients);
    let mut next = leading(&server, &iqn);
    assert_eq!(receive(&mut next, 0, 7, 9).sense_triple(), Some((5, 0x24, 0)), "the nexus was lost");
}

/// A copy in the background is the session's: it goes on when its connection is lost. One that a command waits for ends
/// with its command.
#[test]
fn a_copy_in_the_background_outlives_its_connection() {
    let (server, iqn, [mut first, second]) = two_connections();
    let mut others = Some(second);
    for round in 0..3u8 {
        let mut second = match others.take() {
            Some(second) => second,
            None => joined(&server, &iqn, &first, 1).expect("a second connection"),
        };
        good(&write(&mut first, 0, 9, 0, &pattern(16 * MIB, u64::from(round))));
        good(&write(&mut first, 1, 9, 0, &vec![0; 16 * MIB]));
        second.wire.cmd_sn = first.wire.cmd_sn;
        let names = [crate::copying::naa(&mut second, 0), crate::copying::naa(&mut second, 1)];
        let cscds: Vec<Vec<u8>> = names.iter().map(|name| crate::copying::cscd(name, 9)).collect();
        let segments = vec![crate::copying::blocks(0, 1, 0x8000, 0, 0); 60];
        let (cdb, list) = crate::copying::lid4(u32::from(round), true, &cscds, &segments);
        good(&second.write(0, &cdb, &list).expect("an answer"));
        let (cdb, list) = crate::copying::lid4(0x100 + u32::from(round), false, &cscds, &segments);
        let tag = second.start(0, &cdb, &list, 0).expect("sent");
        send_list(&mut second, tag);
        first.wire.cmd_sn = second.wire.cmd_sn;
        let began = Instant::now();
        while status_of(&mut first, 0x100 + u32::from(round)).1 == 0 {
            assert!(began.elapsed() < Duration::from_secs(5), "the second copy is not begun");
        }
        let (status, before) = status_of(&mut first, u32::from(round));
        assert_eq!(status, IN_BACKGROUND, "after {before} bytes");
        drop(second);
        let began = Instant::now();
        while status_of(&mut first, 0x100 + u32::from(round)).0 != TERMINATED {
            assert!(began.elapsed() < Duration::from_secs(5), "its command has no connection any more");
        }
        let mut last = before;
        loop {
            let (status, bytes) = status_of(&mut first, u32::from(round));
            assert!(bytes >= last, "{bytes} bytes after {last}");
            last = bytes;
            match status {
                IN_BACKGROUND => std::thread::sleep(Duration::from_millis(5)),
                GOOD => break,
                other => panic!("status {other:#x} after {bytes} bytes"),
            }
            assert!(began.elapsed() < Duration::from_secs(60), "{bytes} bytes");
        }
        assert!(read(&mut first, 1, 9, 0, 16 * MIB) == pattern(16 * MIB, u64::from(round)));
    }
    // With the last connection everything ends; a disk that was in use can be taken away at once.
    let (cdb, list) = long_copy(&mut first, 0x200, true);
    good(&first.write(0, &cdb, &list).expect("an answer"));
    drop(first);
    server.ok(&["target", "unmap", "several", "--lun", "1"]);
    server.ok(&["disk", "delete", "memory"]);
}

/// LOGICAL UNIT RESET on one connection ends the copies of the others and what is known of them; so does ABORT TASK SET
/// those that commands wait for, and no other.
#[test]
fn resets_and_aborts_reach_copies_of_other_connections() {
    let (_server, _iqn, mut clients) = two_connections();
    let client = on(&mut clients, 1);
    let (cdb, background) = long_copy(client, 1, true);
    good(&client.write(0, &cdb, &background).expect("an answer"));
    let (cdb, list) = long_copy(client, 2, false);
    let tag = client.start(0, &cdb, &list, 0).expect("sent");
    send_list(client, tag);
    let client = on(&mut clients, 0);
    let began = Instant::now();
    while status_of(client, 2).1 == 0 {
        assert!(began.elapsed() < Duration::from_secs(5), "it is not begun");
    }
    const ABORT_TASK_SET: u8 = 2;
    assert_eq!(client.task_management(ABORT_TASK_SET, 0, None).expect("an answer"), 0);
    assert_eq!(status_of(client, 2).0, TERMINATED);
    assert_eq!(status_of(client, 1).0, IN_BACKGROUND, "no command waits for it: it is in no task set");
    const LOGICAL_UNIT_RESET: u8 = 5;
    assert_eq!(client.task_management(LOGICAL_UNIT_RESET, 0, None).expect("an answer"), 0);
    client.settle(0).expect("a unit");
    for identifier in [1, 2] {
        assert_eq!(receive(client, 0, 5, identifier).sense_triple(), Some((5, 0x24, 0)), "it is forgotten");
    }
    let mark = vec![0xee; 16 * MIB];
    good(&write(client, 1, 9, 0, &mark));
    std::thread::sleep(Duration::from_millis(50));
    assert!(read(client, 1, 9, 0, 16 * MIB) == mark, "nothing is written any more");
    clients[1].forget(tag);
}
