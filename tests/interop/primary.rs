//! Primary commands that move no blocks: the echo buffer, the clock, and what is refused.

use std::time::{SystemTime, UNIX_EPOCH};

use perf::client::{Answer, Client};
use perf::login::Wishes;

use crate::server::{Options, Server};

fn write_buffer(client: &mut Client, lun: u16, data: &[u8]) -> Answer {
    let [_, _, high, low] = (data.len() as u32).to_be_bytes();
    client.write(lun, &[0x3b, 0x0a, 0, 0, 0, 0, 0, high, low, 0], data).expect("an answer")
}

fn read_buffer(client: &mut Client, lun: u16, mode: u8) -> Answer {
    client.read(lun, &[0x3c, mode, 0, 0, 0, 0, 0, 0x20, 0, 0], 0x2000).expect("an answer")
}

#[test]
fn the_echo_buffer_gives_back_what_its_nexus_wrote() {
    let server = Server::start_with(Options { cores: Some("0,1"), ..Options::default() });
    let iqn = server.ready_target("a", &["--size", "16M", "--format", "memory"]);
    server.ok(&["disk", "create", "b", "--size", "16M", "--format", "memory"]);
    server.ok(&["target", "map", "a", "b", "--lun", "1"]);
    let open =
        |number| Client::ready(server.portals[0], &Wishes::to_target(&iqn).session(number), 0).expect("a session");
    let (mut one, mut other) = (open(1), open(2));
    one.settle(1).expect("answers");
    assert_eq!(read_buffer(&mut one, 0, 0x0b).data, [1, 0, 0x10, 0], "EBOS, 4096 bytes");
    let nothing = read_buffer(&mut one, 0, 0x0a);
    assert_eq!(nothing.sense_triple(), Some((5, 0x2c, 0)), "COMMAND SEQUENCE ERROR: {nothing:?}");
    for len in [1, 3, 512, 4095, 4096] {
        let data: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
        assert_eq!(write_buffer(&mut one, 0, &data).status, 0);
        assert_eq!(write_buffer(&mut other, 0, &[0xee; 16]).status, 0);
        let answer = read_buffer(&mut one, 0, 0x0a);
        assert_eq!((answer.status, answer.data), (0, data), "as many bytes as were written");
    }
    let cut = one.read(0, &[0x3c, 0x0a, 0, 0, 0, 0, 0, 0, 5, 0], 5).expect("an answer");
    assert_eq!(cut.data, [0, 1, 2, 3, 4]);
    assert_eq!(write_buffer(&mut one, 1, &[7; 8]).status, 0);
    assert_eq!(read_buffer(&mut one, 1, 0x0a).data, [7; 8]);
    let gone = read_buffer(&mut one, 0, 0x0a);
    assert_eq!(gone.sense_triple(), Some((0xb, 0x3f, 0x0f)), "ECHO BUFFER OVERWRITTEN: {gone:?}");
    assert_eq!(read_buffer(&mut other, 0, 0x0a).data, [0xee; 16]);
    let too_long = write_buffer(&mut one, 0, &[0; 4097]);
    assert_eq!(too_long.sense_triple(), Some((5, 0x24, 0)), "{too_long:?}");
    for (mode, what) in [(0x05, "microcode"), (0x02, "data"), (0x0e, "microcode, deferred")] {
        let answer = one.write(0, &[0x3b, mode, 0, 0, 0, 0, 0, 0, 16, 0], &[0; 16]).expect("an answer");
        assert_eq!(answer.sense_triple(), Some((5, 0x24, 0)), "{what}: {answer:?}");
    }
}

#[test]
fn the_timestamp_is_the_hosts_clock() {
    let server = Server::start_with(Options { cores: Some("0"), ..Options::default() });
    let iqn = server.ready_target("a", &["--size", "16M", "--format", "memory"]);
    let mut client = Client::ready(server.portals[0], &Wishes::to_target(&iqn), 0).expect("a session");
    let now_ms = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as u64;
    for _ in 0..3 {
        let before = now_ms();
        let answer = client.read(0, &[0xa3, 0x0f, 0, 0, 0, 0, 0, 0, 0, 12, 0, 0], 12).expect("an answer");
        let after = now_ms();
        assert_eq!((answer.status, &answer.data[..4]), (0, &[0, 10, 3, 0][..]), "{answer:?}");
        let told = [&[0, 0][..], &answer.data[4..10]].concat();
        let told = u64::from_be_bytes(told.try_into().expect("8 bytes"));
        assert!((before..=after).contains(&told), "{before} {told} {after}");
    }
    let cut = client.read(0, &[0xa3, 0x0f, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0], 4).expect("an answer");
    assert_eq!(cut.data, [0, 10, 3, 0]);
}

/// The general statistics of LOG SENSE: reading and writing commands, blocks received and transmitted.
fn statistics(client: &mut Client) -> [u64; 4] {
    let page = client.read(0, &[0x4d, 0, 0x59, 0, 0, 0, 0, 0, 255, 0], 255).expect("an answer");
    assert_eq!((page.status, &page.data[4..6]), (0, &[0, 1][..]), "{page:?}");
    let value = |at: usize| u64::from_be_bytes(page.data[8 + 8 * at..16 + 8 * at].try_into().expect("8 bytes"));
    [value(0), value(1), value(2), value(3)]
}

#[test]
fn log_select_sets_the_counts_back_for_all() {
    let server = Server::start_with(Options { cores: Some("0,1"), ..Options::default() });
    let iqn = server.ready_target("a", &["--size", "16M"]);
    let open =
        |number| Client::ready(server.portals[0], &Wishes::to_target(&iqn).session(number), 0).expect("a session");
    let mut clients: Vec<Client> = (0..4).map(open).collect();
    let work = |client: &mut Client, times: u32| {
        for _ in 0..times {
            assert_eq!(client.write(0, &[0x2a, 0, 0, 0, 0, 0, 0, 0, 2, 0], &[1; 1024]).expect("an answer").status, 0);
            let answer = client.read(0, &[0x28, 0, 0, 0, 0, 0, 0, 0, 4, 0], 2048).expect("an answer");
            assert_eq!(answer.status, 0);
        }
    };
    clients.iter_mut().for_each(|client| work(client, 3));
    assert_eq!(statistics(&mut clients[3]), [12, 12, 24, 48]);
    for page in [0x19, 0x00] {
        let answer = clients[0].bare(0, &[0x4c, 2, page, 0, 0, 0, 0, 0, 0, 0]).expect("an answer");
        assert_eq!(answer.status, 0, "{answer:?}");
        assert_eq!(clients[0].settle(0).expect("answers"), []);
        for client in &mut clients[1..] {
            assert_eq!(client.settle(0).expect("answers"), [(0x2a, 2)], "LOG PARAMETERS CHANGED");
        }
        clients.iter_mut().for_each(|client| assert_eq!(statistics(client), [0; 4]));
        work(&mut clients[2], 5);
        clients.iter_mut().for_each(|client| assert_eq!(statistics(client), [5, 5, 10, 20]));
    }
    // Without PCR nothing happens, and no list is taken.
    assert_eq!(clients[0].bare(0, &[0x4c, 0, 0x19, 0, 0, 0, 0, 0, 0, 0]).expect("an answer").status, 0);
    let list = clients[0].write(0, &[0x4c, 2, 0x19, 0, 0, 0, 0, 0, 4, 0], &[0; 4]).expect("an answer");
    assert_eq!(list.sense_triple(), Some((5, 0x24, 0)));
    assert_eq!(statistics(&mut clients[1]), [5, 5, 10, 20]);
}

#[test]
fn what_there_is_no_way_to_do_is_no_operation_code() {
    let server = Server::start_with(Options { cores: Some("0"), ..Options::default() });
    let iqn = server.ready_target("a", &["--size", "16M", "--format", "memory"]);
    let mut client = Client::ready(server.portals[0], &Wishes::to_target(&iqn), 0).expect("a session");
    let commands: [(&str, &[u8]); 7] = [
        ("REASSIGN BLOCKS", &[0x07, 0, 0, 0, 0, 0]),
        ("READ LONG(10)", &[0x3e, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("WRITE LONG(10)", &[0x3f, 0x40, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("XDWRITEREAD(32), READ(32) and their like", &[0x7f, 0, 0, 0, 0, 0, 0, 0x18, 0, 0x09, 0, 0, 0, 0, 0, 0]),
        ("WRITE LONG(16)", &[0x9f, 0x11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("READ LONG(16)", &[0x9e, 0x11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("SET TIMESTAMP", &[0xa4, 0x0f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    ];
    for (name, cdb) in commands {
        let answer = client.bare(0, cdb).expect("an answer");
        assert_eq!(answer.sense_triple(), Some((5, 0x20, 0)), "{name}: {answer:?}");
        let option = if [0x7f, 0x9e, 0x9f, 0xa4].contains(&cdb[0]) { 2 } else { 1 };
        let action = if cdb[0] == 0x7f { [cdb[8], cdb[9]] } else { [0, cdb[1] & 0x1f] };
        let action = if option == 1 { [0, 0] } else { action };
        let asked = [0xa3, 0x0c, option, cdb[0], action[0], action[1], 0, 0, 0, 4, 0, 0];
        let answer = client.read(0, &asked, 4).expect("an answer");
        assert_eq!((answer.status, answer.data[1] & 7), (0, 1), "{name} is said not to be supported: {answer:?}");
    }
}
