//! MODE SELECT: the write cache can be turned off, is so for everybody, and stays so where that was asked for.

use perf::client::{Answer, Client};
use perf::login::Wishes;

use crate::server::{Options, Server};

/// The caching page of MODE SENSE (6): page control 0 is the current value, 3 the saved one.
fn write_cache(client: &mut Client, page_control: u8) -> bool {
    let answer = client.read(0, &[0x1a, 0x08, page_control << 6 | 0x08, 0, 64, 0], 64).expect("an answer");
    assert_eq!((answer.status, answer.data[4] & 0x3f), (0, 8), "{answer:?}");
    answer.data[6] & 4 != 0
}

fn select(client: &mut Client, enabled: bool, save: bool) -> Answer {
    let mut list = client.read(0, &[0x1a, 0x08, 0x08, 0, 64, 0], 64).expect("an answer").data;
    list[0] = 0;
    list[2] = 0;
    list[4] &= 0x3f;
    list[6] = list[6] & !4 | u8::from(enabled) << 2;
    client.write(0, &[0x15, 0x10 | u8::from(save), 0, 0, list.len() as u8, 0], &list).expect("an answer")
}

/// Sectors that the process has had made durable cannot be seen from outside; that it syncs can.
fn syncs(client: &mut Client) {
    let mut cdb = [0; 16];
    cdb[0] = 0x8a;
    cdb[13] = 8;
    assert_eq!(client.write(0, &cdb, &[0x5a; 4096]).expect("an answer").status, 0);
}

#[test]
fn the_write_cache_is_off_for_all_and_stays_off_when_saved() {
    let mut server = Server::start_with(Options { cores: Some("0,1"), ..Options::default() });
    for (name, options) in [("vhdx", &[][..]), ("raw", &["--format", "raw"])] {
        let iqn = server.ready_target(name, &[&["--size", "64M"], options].concat());
        let wishes = Wishes::to_target(&iqn);
        let mut clients: Vec<Client> = (0..6)
            .map(|number| Client::ready(server.portals[0], &wishes.clone().session(number), 0).expect("a session"))
            .collect();
        assert!(write_cache(&mut clients[0], 0) && write_cache(&mut clients[0], 3));
        // Not saved: current only, and all others are told.
        assert_eq!(select(&mut clients[0], false, false).status, 0);
        assert!(!write_cache(&mut clients[0], 0) && write_cache(&mut clients[0], 3), "{name}");
        for client in &mut clients[1..] {
            assert_eq!(client.settle(0).expect("answers"), [(0x2a, 1)], "{name}: MODE PARAMETERS CHANGED");
            assert!(!write_cache(client, 0));
        }
        clients.iter_mut().for_each(syncs);
        // Nothing changes: nobody is told.
        assert_eq!(select(&mut clients[1], false, true).status, 0);
        for client in &mut clients {
            assert_eq!(client.settle(0).expect("answers"), []);
            assert!(!write_cache(client, 0) && !write_cache(client, 3));
        }
        // A list that is wrong changes nothing.
        let wrong = clients[0].write(0, &[0x15, 0x10, 0, 0, 3, 0], &[0; 3]).expect("an answer");
        assert_eq!(wrong.sense_triple(), Some((5, 0x1a, 0)));
    }
    server.stop();
    server.start_again();
    for name in ["vhdx", "raw"] {
        let iqn = format!("iqn.2026-11.io.lunaring:{name}");
        let mut client = Client::ready(server.portals[0], &Wishes::to_target(&iqn), 0).expect("a session");
        assert!(!write_cache(&mut client, 0) && !write_cache(&mut client, 3), "{name}: saved over the restart");
        syncs(&mut client);
        assert_eq!(select(&mut client, true, false).status, 0);
        assert!(write_cache(&mut client, 0) && !write_cache(&mut client, 3));
        // A snapshot gives the disk another form; what was set stays.
        if name == "vhdx" {
            server.ok(&["snapshot", "create", name, "s1"]);
            assert!(write_cache(&mut client, 0) && !write_cache(&mut client, 3));
        }
        assert_eq!(select(&mut client, true, true).status, 0);
    }
    server.stop();
    server.start_again();
    let iqn = "iqn.2026-11.io.lunaring:raw";
    let mut client = Client::ready(server.portals[0], &Wishes::to_target(iqn), 0).expect("a session");
    assert!(write_cache(&mut client, 0) && write_cache(&mut client, 3));
    for opcode in [0x15, 0x55] {
        let answer = client.read(0, &[0xa3, 0x0c, 1, opcode, 0, 0, 0, 0, 0, 64, 0, 0], 64).expect("an answer");
        assert_eq!((answer.status, answer.data[1] & 7), (0, 3), "{opcode:02x} is supported");
    }
}
