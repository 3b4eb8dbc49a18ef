//! MODE SELECT: the write cache can be turned off, and writing too; that is so for everybody, and stays so where that
//! was asked for.

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

/// SWP of the control page: page control 0 is the current value, 3 the saved one; and WP.
fn protection(client: &mut Client, page_control: u8) -> (bool, bool) {
    let answer = client.read(0, &[0x1a, 0x08, page_control << 6 | 0x0a, 0, 64, 0], 64).expect("an answer");
    assert_eq!((answer.status, answer.data[4] & 0x3f), (0, 0x0a), "{answer:?}");
    (answer.data[8] & 8 != 0, answer.data[2] & 0x80 != 0)
}

fn protect(client: &mut Client, enabled: bool, save: bool) -> Answer {
    let mut list = client.read(0, &[0x1a, 0x08, 0x0a, 0, 64, 0], 64).expect("an answer").data;
    list[0] = 0;
    list[4] &= 0x3f;
    list[8] = list[8] & !8 | u8::from(enabled) << 3;
    client.write(0, &[0x15, 0x10 | u8::from(save), 0, 0, list.len() as u8, 0], &list).expect("an answer")
}

/// Every command that would change the medium, with its Data-Out.
fn writers() -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
    let long = |opcode: u8, blocks: u8| [&[opcode][..], &[0; 12], &[blocks, 0, 0]].concat();
    let unmap_list = [&[0, 22, 0, 16, 0, 0, 0, 0][..], &[0; 11], &[8], &[0; 4]].concat();
    vec![
        ("WRITE(10)", vec![0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], vec![1; 512]),
        ("WRITE(16)", long(0x8a, 1), vec![1; 512]),
        ("WRITE AND VERIFY(10)", vec![0x2e, 0, 0, 0, 0, 0, 0, 0, 1, 0], vec![1; 512]),
        ("COMPARE AND WRITE", long(0x89, 1), vec![0; 1024]),
        ("ORWRITE(16)", long(0x8b, 1), vec![1; 512]),
        ("WRITE SAME(16)", long(0x93, 1), vec![1; 512]),
        ("UNMAP", vec![0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], unmap_list),
        ("FORMAT UNIT", vec![0x04, 0, 0, 0, 0, 0], vec![]),
        ("SANITIZE, OVERWRITE", vec![0x48, 1, 0, 0, 0, 0, 0, 0, 5, 0], vec![1, 0, 0, 1, 7]),
        ("SANITIZE, BLOCK ERASE", vec![0x48, 2, 0, 0, 0, 0, 0, 0, 0, 0], vec![]),
    ]
}

fn refuses_writes(client: &mut Client) {
    const SOFTWARE_WRITE_PROTECTED: u8 = 2;
    for (name, cdb, data) in writers() {
        let answer = match data.is_empty() {
            true => client.bare(0, &cdb),
            false => client.write(0, &cdb, &data),
        };
        let answer = answer.expect("an answer");
        assert_eq!(answer.sense_triple(), Some((7, 0x27, SOFTWARE_WRITE_PROTECTED)), "{name}: {answer:?}");
    }
}

fn content(client: &mut Client) -> Vec<u8> {
    let answer = client.read(0, &[0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0], 4096).expect("an answer");
    assert_eq!(answer.status, 0, "{answer:?}");
    answer.data
}

#[test]
fn software_write_protect_refuses_everybody_and_stays_when_saved() {
    let mut server = Server::start_with(Options { cores: Some("0,1"), ..Options::default() });
    let iqn = server.ready_target("vhdx", &["--size", "64M"]);
    server.ok(&["target", "create", "shown", "--iqn", "iqn.2026-11.io.lunaring:shown"]);
    server.ok(&["target", "map", "shown", "vhdx", "--lun", "0", "--read-only"]);
    server.ok(&["target", "allow", "shown", "any"]);
    let session = |server: &Server, iqn: &str, number| {
        Client::ready(server.portals[0], &Wishes::to_target(iqn).session(number), 0).expect("a session")
    };
    let mut clients: Vec<Client> = (0..4).map(|number| session(&server, &iqn, number)).collect();
    clients.iter_mut().for_each(syncs);
    assert_eq!(protect(&mut clients[0], true, false).status, 0);
    assert_eq!((protection(&mut clients[0], 0), protection(&mut clients[0], 3).0), ((true, true), false));
    for client in &mut clients[1..] {
        assert_eq!(client.settle(0).expect("answers"), [(0x2a, 1)], "MODE PARAMETERS CHANGED");
    }
    for client in &mut clients {
        refuses_writes(client);
        assert_eq!(content(client), [0x5a; 4096]);
    }
    // Who may not write has no say in who else may.
    let mut reader = session(&server, "iqn.2026-11.io.lunaring:shown", 9);
    assert_eq!(protection(&mut reader, 0), (true, true));
    assert_eq!(protect(&mut reader, false, false).sense_triple(), Some((5, 0x26, 0)));
    assert_eq!(protect(&mut clients[1], false, false).status, 0);
    for (number, client) in clients.iter_mut().enumerate() {
        let told: &[(u8, u8)] = if number == 1 { &[] } else { &[(0x2a, 1)] };
        assert_eq!(client.settle(0).expect("answers"), told);
        syncs(client);
    }
    assert_eq!(reader.settle(0).expect("answers"), [(0x2a, 1)]);
    assert_eq!(protection(&mut reader, 0), (false, true), "of a read-only mapping WP stays");
    // Saved, and of a form that the disk gets later.
    assert_eq!(protect(&mut clients[0], true, true).status, 0);
    refuses_writes(&mut clients[0]);
    server.stop();
    server.start_again();
    let mut client = session(&server, &iqn, 0);
    assert_eq!((protection(&mut client, 0), protection(&mut client, 3).0), ((true, true), true));
    refuses_writes(&mut client);
    assert_eq!(content(&mut client), [0x5a; 4096]);
    server.ok(&["snapshot", "create", "vhdx", "s1"]);
    let write = client.write(0, &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[1; 512]).expect("an answer");
    assert_eq!(write.sense_triple(), Some((7, 0x27, 2)), "the disk's new form: {write:?}");
    assert_eq!(protect(&mut client, false, true).status, 0);
    syncs(&mut client);
}
