//! A disk whose file system has stopped answering is nobody else's trouble: a FUSE file of QEMU's, whose program is
//! stopped. (A simulated file that hangs, with verified I/O beside it, is the scenario `hung` of `tests/sim_shard.rs`.)

use std::fs;
use std::io::ErrorKind;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use perf::client::Client;
use perf::login::Wishes;

use crate::server::{Server, lunaring, signal_process, text};

/// A file that another program stands for.
struct FuseFile {
    daemon: Child,
    path: PathBuf,
}

impl FuseFile {
    fn new(server: &Server, path: PathBuf, len_bytes: u64) -> FuseFile {
        let behind = server.file("behind.img");
        fs::File::create(&behind).expect("a file").set_len(len_bytes).expect("its length");
        fs::write(&path, "").expect("a place to mount on");
        let block = format!("driver=file,node-name=behind,filename={}", text(&behind));
        let export = format!("type=fuse,id=hangs,node-name=behind,writable=on,mountpoint={}", text(&path));
        let daemon = Command::new("qemu-storage-daemon")
            .args(["--blockdev", &block, "--export", &export])
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu-storage-daemon (package qemu-utils)");
        let file = FuseFile { daemon, path };
        let began = Instant::now();
        while fs::metadata(&file.path).expect("the file").len() != len_bytes {
            assert!(
                began.elapsed() < Duration::from_secs(20),
                "nothing is mounted; is there /dev/fuse, and are we root?"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        file
    }

    fn stop(&self) {
        signal_process(self.daemon.id(), "STOP");
    }

    fn go_on(&self) {
        signal_process(self.daemon.id(), "CONT");
    }
}

impl Drop for FuseFile {
    fn drop(&mut self) {
        self.go_on();
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// READ (10) of one block.
const READ: [u8; 10] = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];

#[test]
fn a_file_system_that_hangs_holds_up_nobody_else() {
    let mut server = Server::start();
    let file = FuseFile::new(&server, server.file("hangs.img"), 16 << 20);
    let iqn = server.ready_target("well", &["--size", "16M", "--format", "raw"]);
    server.ok(&["disk", "add", "hangs", "--file", text(&file.path)]);
    server.ok(&["target", "map", "well", "hangs", "--lun", "1"]);
    server.ok(&["settings", "set", "--io-deadline", "2"]);
    let client = |number: u32| {
        let mut client = Client::open(server.portals[0], &Wishes::to_target(&iqn).session(number)).expect("a session");
        for lun in 0..2 {
            client.settle(lun).expect("a unit");
        }
        client
    };
    let (mut to_hanging, mut to_well) = (client(1), client(2));
    assert_eq!(to_hanging.read(1, &READ, 512).expect("an answer").status, 0);

    file.stop();
    let began = Instant::now();
    let waits = to_hanging.start(1, &READ, &[], 512).expect("sent");
    // A question about that file hangs with it, and no other does.
    let mut asking = Command::new(env!("CARGO_BIN_EXE_lunaring"))
        .args(["disk", "list", "--socket", text(&server.socket())])
        .stdout(Stdio::null())
        .spawn()
        .expect("the client");
    let mut answers = 0;
    while began.elapsed() < Duration::from_secs(4) {
        let asked = Instant::now();
        assert_eq!(to_well.read(0, &READ, 512).expect("an answer").status, 0);
        assert!(asked.elapsed() < Duration::from_secs(1), "another unit waited for {:?}", asked.elapsed());
        answers += 1;
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(answers > 20, "{answers}");
    let sessions = lunaring(&["session", "list", "--socket", text(&server.socket())]);
    assert!(String::from_utf8_lossy(&sessions.stdout).contains(&iqn), "the control plane goes on: {sessions:?}");
    let ended = to_hanging.finish(waits).expect("an answer");
    assert_eq!(ended.sense_triple().map(|sense| sense.0), Some(0x0b), "ABORTED COMMAND: {ended:?}");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());

    // It ends in time; what the kernel still waits for is not ours.
    let began = Instant::now();
    signal_process(server.pid(), "TERM");
    while TcpStream::connect(server.portals[0]).is_ok() {
        assert!(began.elapsed() < Duration::from_secs(4), "it still listens");
        std::thread::sleep(Duration::from_millis(20));
    }
    file.go_on();
    server.signal_and_wait("CONT");
    let _ = asking.wait();
}

/// SANITIZE does not say that a disk is erased on which a write of before may still land.
#[test]
fn a_disk_with_a_write_that_hangs_is_not_sanitized() {
    const BLOCK_ERASE: [u8; 10] = [0x48, 0x02, 0, 0, 0, 0, 0, 0, 0, 0];
    let server = Server::start();
    let file = FuseFile::new(&server, server.file("hangs.img"), 16 << 20);
    server.ok(&["disk", "add", "hangs", "--file", text(&file.path)]);
    let iqn = server.target_with("hung", "hangs");
    server.ok(&["settings", "set", "--io-deadline", "2"]);
    let mut client = Client::ready(server.portals[0], &Wishes::to_target(&iqn), 0).expect("a session");
    let write = [0x2a, 0, 0, 0, 0, 8, 0, 0, 8, 0];
    assert_eq!(client.write(0, &write, &[1; 4096]).expect("an answer").status, 0);
    file.stop();
    let began = Instant::now();
    let ended = client.write(0, &write, &[2; 4096]).expect("an answer");
    assert_eq!(ended.sense_triple().map(|sense| sense.0), Some(0x0b), "ABORTED COMMAND: {ended:?}");
    let refused = client.bare(0, &BLOCK_ERASE).expect("an answer");
    assert_eq!(refused.status, 2, "{refused:?}");
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    file.go_on();
    let began = Instant::now();
    while client.bare(0, &BLOCK_ERASE).expect("an answer").status != 0 {
        assert!(began.elapsed() < Duration::from_secs(20), "the write has come back");
        std::thread::sleep(Duration::from_millis(100));
    }
    let answer = client.read(0, &[0x28, 0, 0, 0, 0, 8, 0, 0, 8, 0], 4096).expect("an answer");
    assert_eq!((answer.status, answer.data), (0, vec![0; 4096]));
}

/// PERSISTENT RESERVE OUT, REGISTER AND IGNORE EXISTING KEY.
const REGISTER: [u8; 10] = [0x5f, 6, 0, 0, 0, 0, 0, 0, 24, 0];

/// The place beside one disk's image hangs: no reservation of another disk waits for it, and its own goes elsewhere.
#[test]
fn a_place_for_reservations_that_hangs_holds_up_nobody_else() {
    let mut server = Server::start();
    let iqn = server.ready_target("hangs", &["--size", "16M", "--format", "raw"]);
    server.ok(&["disk", "create", "well", "--size", "16M", "--format", "raw"]);
    server.ok(&["target", "map", "hangs", "well", "--lun", "1"]);
    let mut clients = [0, 1].map(|lun| {
        let wishes = Wishes::to_target(&iqn).session(u32::from(lun) + 1);
        let mut client = Client::open(server.portals[0], &wishes).expect("a session");
        client.settle(lun).expect("a unit");
        client
    });
    let [to_hanging, to_well] = &mut clients;
    let file = FuseFile::new(&server, server.state().join("disks/hangs.raw.reservations"), 1 << 20);
    file.stop();
    // With APTPL.
    let list = [[0; 8], 0xa1u64.to_be_bytes(), [0, 0, 0, 0, 1, 0, 0, 0]].concat();
    let began = Instant::now();
    let waits = to_hanging.start(0, &REGISTER, &list, 0).expect("sent");
    let other = to_well.start(1, &REGISTER, &list, 0).expect("sent");
    assert_eq!(to_well.finish(other).expect("an answer").status, 0);
    assert!(began.elapsed() < Duration::from_secs(5), "another disk waited for {:?}", began.elapsed());
    assert!(server.state().join("disks/well.raw.reservations").exists());
    let own = loop {
        // The client waits for less than the server does.
        match to_hanging.finish(waits) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                assert!(began.elapsed() < Duration::from_secs(20), "no answer after {:?}", began.elapsed());
            }
            answer => break answer.expect("an answer"),
        }
    };
    assert_eq!(own.status, 0);
    assert!(server.log().contains("no file can be made beside disk 'hangs'"), "{}", server.log());
    file.go_on();
    server.kill_9();
    server.start_again();
    for disk in ["hangs", "well"] {
        let listed = server.json(&["reservation", "list", disk]);
        assert_eq!(listed["registrations"][0]["key"].as_str(), Some("0x00000000000000a1"), "{disk}: {listed}");
    }
    server.stop();
}
