//! Thin provisioned disks on a small file system: what LOG SENSE tells, the soft threshold, and the end of the space.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use perf::client::{Answer, Client};
use perf::login::Wishes;

use crate::server::{Options, Server};

const MIB: u64 = 1 << 20;

/// A file system of its own, in memory. Unmounted at the end.
struct SmallFileSystem(PathBuf);

impl SmallFileSystem {
    fn mount(at: &Path, size: &str) -> SmallFileSystem {
        std::fs::create_dir_all(at).expect("a folder");
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(at).status();
        assert!(done.expect("mount runs").success(), "this test mounts a tmpfs, and must run as root");
        SmallFileSystem(at.to_owned())
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        // Lazily: the server may not have ended yet.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn cdb(opcode: u8, lba: u64, blocks: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = opcode;
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

fn write_mib(client: &mut Client, mib: u64) -> Answer {
    client.write(0, &cdb(0x8a, mib * 2048, 2048), &vec![0xc3; MIB as usize]).expect("an answer")
}

fn log_page(client: &mut Client, page: u8) -> Vec<u8> {
    let answer = client.read(0, &[0x4d, 0, 0x40 | page, 0, 0, 0, 0, 0, 128, 0], 128).expect("an answer");
    assert_eq!(answer.status, 0, "{answer:x?}");
    assert_eq!(answer.data[0] & 0x3f, page);
    answer.data
}

/// Available and used bytes of the logical block provisioning page.
fn provisioning(client: &mut Client) -> (u64, u64) {
    // THRESHOLD EXPONENT of VPD B2h says how many blocks a unit of the page has.
    let vpd = client.read(0, &[0x12, 1, 0xb2, 0, 64, 0], 64).expect("an answer");
    let set_bytes = 512u64 << vpd.data[4];
    let page = log_page(client, 0x0c);
    let parameter = |code: u16| {
        let at = (4..page.len()).step_by(12).find(|at| page[*at..at + 2] == code.to_be_bytes()).expect("the parameter");
        u64::from(u32::from_be_bytes(page[at + 4..at + 8].try_into().expect("four bytes"))) * set_bytes
    };
    (parameter(1), parameter(2))
}

/// Until the watch has looked again, and something is so.
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(10), "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The unit attentions that come within a while.
fn told(client: &mut Client, wait: Duration) -> Vec<(u8, u8)> {
    let began = Instant::now();
    let mut told = vec![];
    while began.elapsed() < wait {
        told.extend(client.settle(0).expect("answers"));
        std::thread::sleep(Duration::from_millis(50));
    }
    told
}

/// Write until there is no space, and give some back.
fn until_the_end_and_back(client: &mut Client, name: &str) {
    let mut written = 34;
    let end = loop {
        let answer = write_mib(client, written);
        if answer.status != 0 {
            break answer;
        }
        written += 1;
        assert!(written < 64, "{name}: more than there is space");
    };
    assert_eq!(end.sense_triple(), Some((7, 0x27, 0x07)), "{name}: SPACE ALLOCATION FAILED WRITE PROTECT");
    // What was there can be read and written; what is given back can be used again.
    let read = client.read(0, &cdb(0x88, 0, 8), 4096).expect("an answer");
    assert_eq!((read.status, read.data), (0, vec![0xc3; 4096]), "{name}");
    assert_eq!(write_mib(client, 3).status, 0, "{name}");
    let mut list = vec![0, 22, 0, 16, 0, 0, 0, 0];
    list.extend(0u64.to_be_bytes());
    list.extend((written as u32 * 2048).to_be_bytes());
    list.extend([0; 4]);
    assert_eq!(client.write(0, &[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], &list).expect("an answer").status, 0, "{name}");
    // A VHDX's space is free once that is durable.
    eventually("there is space again", || {
        let flush = client.bare(0, &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]).expect("an answer");
        assert_eq!(flush.status, 0, "{flush:?}");
        provisioning(client).0 > 36 * MIB
    });
    assert_eq!(write_mib(client, 500).status, 0, "{name}");
}

#[test]
fn little_space_is_told_once_and_none_is_a_clear_error() {
    let mut server = Server::start_with(Options { cores: Some("0,1"), ..Options::default() });
    let folder = server.folder.path().join("small");
    let _mounted = SmallFileSystem::mount(&folder, "56M");
    let names = ["vhdx", "raw"];
    for name in names {
        let file = folder.join(name);
        let file = file.to_str().expect("UTF-8");
        let format: &[&str] = if name == "raw" { &["--format", "raw"] } else { &["--block-size", "1M"] };
        server.ready_target(name, &[&["--size", "1G", "--file", file], format].concat());
    }
    server.stop();
    let path = server.state().join("config.json");
    let mut config: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&path).expect("config.json")).expect("JSON");
    config["thin_threshold_bytes"] = (24 * MIB).into();
    std::fs::write(&path, config.to_string()).expect("config.json");
    server.start_again();
    for name in names {
        let iqn = format!("iqn.2026-11.io.lunaring:{name}");
        let mut clients: Vec<Client> = (0..4)
            .map(|number| {
                Client::ready(server.portals[0], &Wishes::to_target(&iqn).session(number), 0).expect("a session")
            })
            .collect();
        let client = &mut clients[0];
        eventually("the disk before has gone", || provisioning(client).0 >= 40 * MIB);
        let (available, used) = provisioning(client);
        assert!((40 * MIB..=56 * MIB).contains(&available), "{name}: {available} bytes available");
        assert!(used < 20 * MIB, "{name}: {used} bytes used");
        let before = log_page(client, 0x19);
        for mib in 0..16 {
            assert_eq!(write_mib(client, mib).status, 0, "{name}");
        }
        eventually("16 MiB more are used", || provisioning(client).1 >= used + 15 * MIB);
        let after = log_page(client, 0x19);
        let count = |page: &[u8], at: usize| u64::from_be_bytes(page[at..at + 8].try_into().expect("eight bytes"));
        assert_eq!(count(&after, 16) - count(&before, 16), 16, "{name}: writes");
        assert_eq!(count(&after, 24) - count(&before, 24), 16 * 2048, "{name}: blocks received");
        assert_eq!(told(client, Duration::from_secs(3)), [], "{name}: there is space enough");
        // Below the threshold: everybody is told, once.
        for mib in 16..34 {
            assert_eq!(write_mib(client, mib).status, 0, "{name}");
        }
        for client in &mut clients {
            assert_eq!(told(client, Duration::from_secs(3)), [(0x38, 0x07)], "{name}");
        }
        until_the_end_and_back(&mut clients[1], name);
        let client = &mut clients[1];
        // Crossed once more, and told once more.
        for mib in 0..36 {
            assert_eq!(write_mib(client, mib).status, 0, "{name}");
        }
        assert_eq!(told(client, Duration::from_secs(3)), [(0x38, 0x07)], "{name}");
        drop(clients);
        server.ok(&["target", "unmap", name, "--lun", "0"]);
        server.ok(&["disk", "delete", name]);
    }
}
