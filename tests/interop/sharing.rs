//! Copies between files of one file system that can share blocks: XFS on a loop device, which needs root. What is said
//! to be shared takes no space and is its own master afterwards; where blocks cannot be shared, bytes are moved.

use std::path::{Path, PathBuf};
use std::process::Command;

use perf::client::Client;

use crate::copying::{naa, pattern, read, session, write};
use crate::server::{Server, text, tool_ok};

const MIB: u64 = 1 << 20;

/// A file system in a file of the server's folder.
struct Mounted {
    path: PathBuf,
}

impl Mounted {
    fn xfs(server: &Server, megabytes: u64) -> Mounted {
        let (image, path) = (server.file("xfs.img"), server.file("xfs"));
        std::fs::File::create(&image).expect("a file").set_len(megabytes * MIB).expect("its length");
        std::fs::create_dir(&path).expect("a folder");
        tool_ok("mkfs.xfs", &["-q", "-m", "reflink=1", "-s", "size=512", text(&image)]);
        tool_ok("mount", &["-o", "loop", text(&image), text(&path)]);
        Mounted { path }
    }

    fn file(&self, name: &str) -> String {
        text(&self.path.join(name)).to_owned()
    }

    /// Bytes in use.
    fn used(&self) -> u64 {
        tool_ok("sync", &["-f", text(&self.path)]);
        let out = tool_ok("df", &["--output=used", "-B1", text(&self.path)]);
        out.lines().last().and_then(|line| line.trim().parse().ok()).expect("a number")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

/// What all shards have counted: bytes copied, and of those shared.
fn counted(server: &Server) -> (u64, u64) {
    let stats = server.json(&["stats"]);
    let sum = |name: &str| {
        let shards = stats["shards"].as_array().expect("shards");
        shards.iter().map(|shard| shard[name].as_u64().expect("a number")).sum()
    };
    (sum("copied_bytes"), sum("copy_shared_bytes"))
}

/// Copy bytes from one LUN to another (EXTENDED COPY, byte to byte would be less usual).
fn copy(client: &mut Client, from: (u16, u64), to: (u16, u64), len: u64) {
    let names = [naa(client, from.0), naa(client, to.0)];
    let cscds: Vec<Vec<u8>> = names.iter().map(|name| crate::copying::cscd(name, 9)).collect();
    let pieces = (0..len.div_ceil(16 * MIB)).map(|piece| {
        let at = piece * 16 * MIB;
        let count = (16 * MIB).min(len - at) >> 9;
        crate::copying::blocks(0, 1, count as u16, (from.1 + at) >> 9, (to.1 + at) >> 9)
    });
    let (cdb, list) = crate::copying::lid1(1, &cscds, &pieces.collect::<Vec<_>>());
    let answer = client.write(from.0, &cdb, &list).expect("an answer");
    assert_eq!((answer.status, answer.sense_triple()), (0, None), "{answer:?}");
}

fn write_all(client: &mut Client, lun: u16, at: u64, data: &[u8]) {
    for (number, part) in data.chunks(MIB as usize).enumerate() {
        assert_eq!(write(client, lun, 9, at + number as u64 * MIB, part).status, 0);
    }
}

fn read_all(client: &mut Client, lun: u16, at: u64, len: u64) -> Vec<u8> {
    let parts: Vec<_> = (0..len / MIB).map(|number| read(client, lun, 9, at + number * MIB, MIB as usize)).collect();
    parts.concat()
}

fn flush(client: &mut Client, lun: u16) {
    assert_eq!(client.bare(lun, &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]).expect("an answer").status, 0);
}

/// Whether files beside this one can share blocks, as `cp` finds.
fn can_share(folder: &Path) -> bool {
    let (from, to) = (folder.join("probe.1"), folder.join("probe.2"));
    std::fs::write(&from, [1; 8192]).expect("a file");
    let status = Command::new("cp").args(["--reflink=always", text(&from), text(&to)]).output().expect("cp").status;
    status.success()
}

fn target(server: &Server, disks: &[&str]) -> String {
    let iqn = "iqn.2026-11.io.lunaring:sharing";
    server.ok(&["target", "create", "sharing", "--iqn", iqn]);
    for (lun, disk) in disks.iter().enumerate() {
        server.ok(&["target", "map", "sharing", disk, "--lun", &lun.to_string()]);
    }
    server.ok(&["target", "allow", "sharing", "any"]);
    iqn.to_owned()
}

#[test]
fn a_copy_within_a_file_system_that_shares_blocks_takes_no_space_and_is_its_own() {
    let mut server = Server::start();
    let mount = Mounted::xfs(&server, 2048);
    server.ok(&["disk", "create", "a", "--size", "1G", "--file", &mount.file("a.vhdx")]);
    server.ok(&["disk", "create", "b", "--size", "1G", "--file", &mount.file("b.vhdx")]);
    server.ok(&["disk", "create", "raw", "--size", "256M", "--format", "raw", "--file", &mount.file("raw.img")]);
    server.ok(&["disk", "create", "golden", "--size", "256M", "--file", &mount.file("golden.vhdx")]);
    let child = ["--kind", "differencing", "--parent", "golden", "--file", &mount.file("child.vhdx")];
    server.ok(&[&["disk", "create", "child"][..], &child].concat());
    let iqn = target(&server, &["a", "b", "raw", "child"]);
    let mut client = session(&server, &iqn, 1, 4);
    let data = pattern(128 * MIB as usize, 3);
    write_all(&mut client, 0, 0, &data);
    flush(&mut client, 0);

    // Ten copies of 128 MiB.
    let before = mount.used();
    let places: Vec<(u16, u64)> =
        [(1, 0), (1, 160), (1, 320 + 1), (1, 500), (0, 160), (0, 320), (2, 0), (2, 128), (3, 0), (3, 128)]
            .map(|(lun, at)| (lun, at * MIB))
            .to_vec();
    for (lun, at) in &places {
        copy(&mut client, (0, 0), (*lun, *at), 128 * MIB);
    }
    for lun in 0..4 {
        flush(&mut client, lun);
    }
    let all = places.len() as u64 * 128 * MIB;
    assert_eq!(counted(&server), (all, all));
    let prometheus = tool_ok("curl", &["-s", "--unix-socket", text(&server.socket()), "http://localhost/metrics"]);
    assert!(prometheus.contains("lunaring_shard_copy_shared_bytes_total{"), "{prometheus}");
    let grown = mount.used() - before;
    // What the disks allocate ahead is theirs whatever becomes of it.
    eprintln!("{} MiB are taken for {} MiB", grown / MIB, all / MIB);
    for (lun, at) in &places {
        assert!(read_all(&mut client, *lun, *at, 128 * MIB) == data, "LUN {lun} at {at}");
    }
    let shared = tool_ok("filefrag", &["-v", &mount.file("b.vhdx")]);
    assert!(shared.contains("shared"), "{shared}");

    // Each is its own: the source, and one of the copies, are overwritten.
    write_all(&mut client, 0, 0, &pattern(8 * MIB as usize, 4));
    write_all(&mut client, 1, 4 * MIB, &pattern(8 * MIB as usize, 5));
    let check = |client: &mut Client| {
        assert!(read_all(client, 0, 0, 8 * MIB) == pattern(8 * MIB as usize, 4));
        assert!(read_all(client, 0, 8 * MIB, 120 * MIB) == data[8 * MIB as usize..]);
        assert!(read_all(client, 1, 0, 4 * MIB) == data[..4 * MIB as usize]);
        assert!(read_all(client, 1, 4 * MIB, 8 * MIB) == pattern(8 * MIB as usize, 5));
        for (lun, at) in &places[1..] {
            assert!(read_all(client, *lun, *at, 128 * MIB) == data, "LUN {lun} at {at}");
        }
    };
    check(&mut client);
    // And what was answered survives the server's end.
    server.kill_9();
    server.start_again();
    check(&mut session(&server, &iqn, 2, 4));
    assert!(grown < all / 2, "{} MiB are taken for {} MiB that are shared", grown / MIB, all / MIB);
    server.stop();
    // QEMU opens no disk with a parent.
    for disk in ["a.vhdx", "b.vhdx"] {
        tool_ok("qemu-img", &["check", &mount.file(disk)]);
    }
}

/// Shared blocks need space of their own when they are overwritten: where there is none, that is what the initiator is
/// told, and what could not be overwritten stays.
#[test]
fn overwriting_shared_blocks_without_space_left_says_so() {
    let server = Server::start();
    let mount = Mounted::xfs(&server, 512);
    for name in ["a", "b"] {
        let file = mount.file(&format!("{name}.img"));
        server.ok(&["disk", "create", name, "--size", "64M", "--format", "raw", "--file", &file]);
    }
    let iqn = target(&server, &["a", "b"]);
    let mut client = session(&server, &iqn, 1, 2);
    let data = pattern(64 * MIB as usize, 6);
    write_all(&mut client, 0, 0, &data);
    copy(&mut client, (0, 0), (1, 0), 64 * MIB);
    flush(&mut client, 1);
    assert_eq!(counted(&server), (64 * MIB, 64 * MIB));
    let filler = std::fs::File::create(mount.path.join("filler")).expect("a file");
    let full = Command::new("dd").args(["if=/dev/zero", "bs=64K", &format!("of={}", mount.file("filler"))]).output();
    assert!(!full.expect("dd").status.success(), "the file system is full");
    drop(filler);
    let sense: Vec<_> = (0..64).map(|at| write(&mut client, 0, 9, at * MIB, &[9; 65_536]).sense_triple()).collect();
    let refused = sense.iter().filter(|sense| **sense == Some((7, 0x27, 7))).count();
    assert!(refused > 0, "DATA PROTECT, SPACE ALLOCATION FAILED WRITE PROTECT: {sense:?}");
    assert!(sense.iter().all(|sense| matches!(sense, None | Some((7, 0x27, 7)))), "{sense:?}");
    assert!(read_all(&mut client, 1, 0, 64 * MIB) == data, "the other is as it was");
    let mine = read_all(&mut client, 0, 0, 64 * MIB);
    for (at, sense) in sense.iter().enumerate() {
        let expected = if sense.is_none() { &[9; 65_536][..] } else { &data[at << 20..][..65_536] };
        assert!(mine[at << 20..][..65_536] == *expected, "MiB {at}: {sense:?}");
    }
}

/// Across file systems, and where blocks cannot be shared, bytes are moved: the same copy, more slowly.
#[test]
fn where_blocks_cannot_be_shared_bytes_are_moved() {
    let server = Server::start();
    let mount = Mounted::xfs(&server, 512);
    server.ok(&["disk", "create", "there", "--size", "128M", "--file", &mount.file("there.vhdx")]);
    server.ok(&["disk", "create", "here", "--size", "128M"]);
    server.ok(&["disk", "create", "memory", "--size", "128M", "--format", "memory"]);
    server.ok(&["disk", "create", "vhd", "--size", "128M", "--format", "vhd", "--file", &mount.file("v.vhd")]);
    let iqn = target(&server, &["there", "here", "memory", "vhd"]);
    let mut client = session(&server, &iqn, 1, 4);
    let data = pattern(16 * MIB as usize, 9);
    write_all(&mut client, 0, 0, &data);
    for (number, to) in [1, 2].into_iter().enumerate() {
        copy(&mut client, (0, 0), (to, 32 * MIB), 16 * MIB);
        assert!(read_all(&mut client, to, 32 * MIB, 16 * MIB) == data, "LUN {to}");
        assert_eq!(counted(&server), ((number as u64 + 1) * 16 * MIB, 0));
    }
    // Our VHDs have their blocks at whole blocks of the file system.
    copy(&mut client, (0, 0), (3, 32 * MIB), 16 * MIB);
    assert!(read_all(&mut client, 3, 32 * MIB, 16 * MIB) == data, "VHD");
    assert_eq!(counted(&server), (3 * 16 * MIB, 16 * MIB));
    // Within this file system it may be otherwise; `cp` knows.
    copy(&mut client, (1, 32 * MIB), (1, 64 * MIB), 16 * MIB);
    assert!(read_all(&mut client, 1, 64 * MIB, 16 * MIB) == data);
    let shared = if can_share(server.folder.path()) { 32 * MIB } else { 16 * MIB };
    assert_eq!(counted(&server), (4 * 16 * MIB, shared));

    // Places that do not lie alike in their blocks cannot be shared; those that do are, but for their ends.
    copy(&mut client, (0, 512), (0, 64 * MIB), 8 * MIB);
    assert!(read_all(&mut client, 0, 64 * MIB, 8 * MIB) == data[512..512 + 8 * MIB as usize]);
    assert_eq!(counted(&server).1, shared);
    copy(&mut client, (0, 512), (0, 96 * MIB + 512), 8 * MIB);
    assert!(read_all(&mut client, 0, 96 * MIB + MIB, 7 * MIB) == data[MIB as usize..8 * MIB as usize]);
    assert_eq!(counted(&server).1, shared + 8 * MIB - 4096);
}

/// Disks whose blocks lie all over their files: one chunk of a copy is many pieces, which are shared together; and
/// where they cannot be shared, as on the file system that the tests run on, moved.
#[test]
fn scattered_blocks_are_shared_in_many_pieces() {
    let server = Server::start();
    let mount = Mounted::xfs(&server, 1024);
    let elsewhere = server.folder.path().to_owned();
    let file = |name: &str| text(&elsewhere.join(name)).to_owned();
    let disks = [("a", mount.file("a")), ("b", mount.file("b")), ("c", file("c.vhdx")), ("d", file("d.vhdx"))];
    for (name, path) in &disks {
        server.ok(&["disk", "create", name, "--size", "64M", "--block-size", "1M", "--file", path]);
    }
    let iqn = target(&server, &disks.each_ref().map(|disk| disk.0));
    let mut client = session(&server, &iqn, 1, 4);
    let data = pattern(64 * MIB as usize, 7);
    for (lun, step) in [(0, 29), (1, 43), (2, 29), (3, 43)] {
        // Each disk's blocks get their places in an order of its own.
        for number in 0..64 {
            let at = (number * step % 64) * MIB;
            let content = if lun % 2 == 0 { &data[at as usize..(at + MIB) as usize] } else { &vec![9; MIB as usize] };
            assert_eq!(write(&mut client, lun, 9, at, content).status, 0);
        }
        flush(&mut client, lun);
    }
    copy(&mut client, (0, 0), (1, 0), 64 * MIB);
    assert_eq!(counted(&server), (64 * MIB, 64 * MIB), "all of it is shared");
    copy(&mut client, (2, 0), (3, 0), 64 * MIB);
    let shared = if can_share(&elsewhere) { 128 } else { 64 };
    assert_eq!(counted(&server), (128 * MIB, shared * MIB));
    for lun in [1, 3] {
        assert!(read_all(&mut client, lun, 0, 64 * MIB) == data, "LUN {lun}");
    }
}
