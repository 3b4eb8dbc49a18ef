//! WRITE ATOMIC: readers on all shards see all of it or none, and so does whoever opens the file after a kill.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use perf::client::{Answer, Client};
use perf::login::Wishes;
use perf::random::Random;

use crate::server::{Options, Server, count, text, tool_ok};

/// Disks that serve it, and their block length. A child's parent has something in some of the blocks that are written.
const DISKS: &[(&str, &[&str], usize)] = &[
    ("memory", &["--size", "64M", "--format", "memory"], 512),
    ("memory-4k", &["--size", "64M", "--format", "memory", "--sector-size", "4096"], 4096),
    ("vhdx", &["--size", "64M", "--block-size", "1M"], 512),
    ("vhdx-4k", &["--size", "64M", "--block-size", "1M", "--sector-size", "4096"], 4096),
    ("vhdx-fixed", &["--size", "64M", "--kind", "fixed"], 512),
    ("child", &["--kind", "differencing", "--parent", "golden"], 512),
];

/// What is written: over the border of two blocks of the file.
const FROM: usize = (3 << 20) - (32 << 10);
const LEN: usize = 64 << 10;
const MIB: usize = 1 << 20;

fn atomic_cdb(lba: u64, blocks: usize) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = 0x9c;
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[12..14].copy_from_slice(&(blocks as u16).to_be_bytes());
    cdb
}

fn cdb(opcode: u8, at: usize, len: usize, block: usize) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = opcode;
    cdb[2..10].copy_from_slice(&((at / block) as u64).to_be_bytes());
    cdb[10..14].copy_from_slice(&((len / block) as u32).to_be_bytes());
    cdb
}

fn write_atomic(client: &mut Client, at: usize, data: &[u8], block: usize) -> std::io::Result<Answer> {
    client.write(0, &atomic_cdb((at / block) as u64, data.len() / block), data)
}

fn pattern(value: u32, len: usize) -> Vec<u8> {
    value.to_be_bytes().repeat(len / 4)
}

/// The one value that all of these bytes hold.
fn value_of(bytes: &[u8]) -> Result<u32, (u32, u32)> {
    let value = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    match (0..bytes.len()).step_by(4).find(|at| value(*at) != value(0)) {
        None => Ok(value(0)),
        Some(at) => Err((value(0), value(at))),
    }
}

/// A server that has all the disks, with something in the golden one.
fn serve(cores: &'static str) -> Server {
    let server = Server::start_with(Options { cores: Some(cores), ..Options::default() });
    let iqn = server.ready_target("golden", &["--size", "64M", "--block-size", "1M"]);
    let mut client = Client::ready(server.portals[0], &Wishes::to_target(&iqn), 0).expect("a session");
    let answer = client.write(0, &cdb(0x8a, 2 * MIB, MIB, 512), &pattern(1, MIB)).expect("an answer");
    assert_eq!(answer.status, 0, "{answer:?}");
    drop(client);
    server.ok(&["target", "delete", "golden"]);
    server
}

/// Read over and over; how many READs of more than one window were sent back because they would have been torn.
fn look(portal: SocketAddr, wishes: &Wishes, block: usize, long: bool, end: &AtomicBool) -> u32 {
    let mut client = Client::ready(portal, wishes, 0).expect("a session");
    let (from, len) = if long { (2 * MIB - 4096 * 3, 3 * MIB) } else { (FROM, LEN) };
    let (mut sent_back, mut last) = (0, 1);
    while !end.load(Ordering::Relaxed) {
        let answer = client.read(0, &cdb(0x88, from, len, block), len as u32).expect("an answer");
        if answer.status != 0 {
            assert!(long && answer.sense_triple().map(|(key, ..)| key) == Some(0xb), "{answer:?}");
            sent_back += 1;
            continue;
        }
        let value = value_of(&answer.data[FROM - from..][..LEN]);
        let value = value.unwrap_or_else(|(a, b)| panic!("a READ has {a} and {b}"));
        assert!(value >= last || value == 0, "{value} after {last}");
        last = value;
    }
    sent_back
}

#[test]
fn readers_on_all_shards_see_all_of_it_or_none() {
    let server = serve("0,1");
    for (name, options, block) in DISKS {
        let iqn = server.ready_target(name, options);
        let (portal, block) = (server.portals[0], *block);
        let mut client = Client::ready(portal, &Wishes::to_target(&iqn).session(1), 0).expect("a session");
        // The first one finds nothing there, or half of it with a parent.
        if *name == "child" {
            let answer =
                client.write(0, &cdb(0x8a, 3 * MIB, 32 << 10, block), &pattern(1, 32 << 10)).expect("an answer");
            assert_eq!(answer.status, 0, "{answer:?}");
        }
        let end = Arc::new(AtomicBool::new(false));
        let readers: Vec<_> = (0..4)
            .map(|number| {
                let (wishes, end) = (Wishes::to_target(&iqn).session(10 + number), Arc::clone(&end));
                std::thread::spawn(move || look(portal, &wishes, block, number % 2 == 1, &end))
            })
            .collect();
        for value in 2..60 {
            let answer = write_atomic(&mut client, FROM, &pattern(value, LEN), block).expect("an answer");
            assert_eq!(answer.status, 0, "{name}: {answer:?}");
        }
        end.store(true, Ordering::Relaxed);
        let sent_back: u32 = readers.into_iter().map(|reader| reader.join().expect("no reader failed")).sum();
        println!("{name}: {sent_back} long reads were sent back");
        let answer = client.read(0, &cdb(0x88, FROM - 4096, LEN + 8192, block), LEN as u32 + 8192).expect("an answer");
        assert_eq!(value_of(&answer.data[4096..][..LEN]), Ok(59), "{name}");
        let around = if *name == "child" { pattern(1, 4096) } else { vec![0; 4096] };
        assert_eq!(answer.data[..4096], around, "{name}: what lies before it");
        assert_eq!(answer.data[LEN + 4096..], vec![0; 4096], "{name}: what lies behind it");
    }
}

/// What a writer has got an answer for, and what it has sent; the second of each: the page that is written over.
#[derive(Default)]
struct Sent {
    begun: AtomicU32,
    ended: AtomicU32,
    over_begun: AtomicU32,
    over_ended: AtomicU32,
}

/// The page inside that an ordinary write goes to right after each atomic one.
const OVER: usize = 20 << 10;

fn write_until_killed(portal: SocketAddr, wishes: &Wishes, first: u32, sent: &Sent) {
    let Ok(mut client) = Client::ready(portal, wishes, 0) else { return };
    for value in first.. {
        sent.begun.store(value, Ordering::SeqCst);
        match write_atomic(&mut client, FROM, &pattern(value, LEN), 512) {
            Ok(answer) => assert_eq!(answer.status, 0, "{answer:?}"),
            Err(_) => return,
        }
        sent.ended.store(value, Ordering::SeqCst);
        sent.over_begun.store(value, Ordering::SeqCst);
        let cdb = cdb(0x8a, FROM + OVER, 4096, 512);
        match client.write(0, &cdb, &pattern(value | 1 << 31, 4096)) {
            Ok(answer) => assert_eq!(answer.status, 0, "{answer:?}"),
            Err(_) => return,
        }
        sent.over_ended.store(value, Ordering::SeqCst);
    }
}

/// What is there must be one of what may be there.
fn judge(who: &str, bytes: &[u8], sent: &Sent) -> u32 {
    let [begun, ended, over_begun, over_ended] =
        [&sent.begun, &sent.ended, &sent.over_begun, &sent.over_ended].map(|value| value.load(Ordering::SeqCst));
    let rest = [&bytes[..OVER], &bytes[OVER + 4096..]].concat();
    let value = value_of(&rest).unwrap_or_else(|(a, b)| panic!("{who} finds {a} and {b}"));
    let over =
        value_of(&bytes[OVER..][..4096]).unwrap_or_else(|(a, b)| panic!("{who} finds {a:x} and {b:x} in a page"));
    let told = format!("{who} finds {value} and {over:x}: atomic {ended}..{begun}, over it {over_ended}..{over_begun}");
    assert!(value == ended || value == begun, "{told}");
    let is_over = over == value | 1 << 31;
    assert!(over == value || is_over && over_begun >= value, "{told}");
    assert!(is_over || over_ended < value || value == 0, "what was written over it is lost: {told}");
    value
}

#[test]
fn kill_9_leaves_all_of_it_or_none_for_us_and_for_qemu() {
    let mut random = Random::new(9);
    for (name, options) in [("vhdx", DISKS[2].1), ("child", DISKS[5].1)] {
        let mut server = serve("0,1");
        let iqn = server.ready_target("victim", options);
        let sent = Arc::new(Sent::default());
        let parent_has = if name == "child" { 1 } else { 0 };
        // Readers of the golden half would find two values: begin with one.
        let mut client = Client::ready(server.portals[0], &Wishes::to_target(&iqn).session(7), 0).expect("a session");
        assert_eq!(write_atomic(&mut client, FROM, &pattern(0, LEN), 512).expect("an answer").status, 0);
        drop(client);
        for kill in 0..count("LUNARING_KILLS", 10) {
            let first = sent.begun.load(Ordering::SeqCst) + 1 + parent_has;
            let worker = {
                let (portal, sent) = (server.portals[0], Arc::clone(&sent));
                let wishes = Wishes::to_target(&iqn).session(100 + kill as u32);
                std::thread::spawn(move || write_until_killed(portal, &wishes, first, &sent))
            };
            let began = std::time::Instant::now();
            while sent.ended.load(Ordering::SeqCst) < first + 1 {
                assert!(began.elapsed() < Duration::from_secs(30) && !worker.is_finished(), "nothing is written");
                std::thread::sleep(Duration::from_micros(100));
            }
            std::thread::sleep(Duration::from_micros(random.below(20_000)));
            server.kill_9();
            worker.join().expect("no answer was wrong");
            let theirs = (name == "vhdx").then(|| {
                let (copy, raw) = (server.file("copy.vhdx"), server.file("raw.img"));
                fs::copy(server.disk_file("victim"), &copy).expect("a copy");
                tool_ok("qemu-img", &["check", "-r", "all", "-f", "vhdx", text(&copy)]);
                tool_ok("qemu-img", &["convert", "-f", "vhdx", "-O", "raw", text(&copy), text(&raw)]);
                let bytes = fs::read(&raw).expect("what it reads");
                judge("QEMU", &bytes[FROM..][..LEN], &sent)
            });
            server.start_again();
            let wishes = Wishes::to_target(&iqn).session(500 + kill as u32);
            let mut client = Client::ready(server.portals[0], &wishes, 0).expect("a session");
            let answer = client.read(0, &cdb(0x88, FROM, LEN, 512), LEN as u32).expect("an answer");
            let ours = judge("the server", &answer.data, &sent);
            assert_eq!(theirs.unwrap_or(ours), ours, "QEMU and the server find the same");
            for value in [&sent.begun, &sent.ended] {
                value.store(ours, Ordering::SeqCst);
            }
            let over = u32::from_be_bytes(answer.data[OVER..][..4].try_into().expect("four bytes"));
            for value in [&sent.over_begun, &sent.over_ended] {
                value.store(if over == ours { 0 } else { ours }, Ordering::SeqCst);
            }
        }
        println!("{name}: {} atomic writes", sent.ended.load(Ordering::SeqCst));
    }
}

#[test]
fn what_is_offered_is_told() {
    let server = serve("0");
    for (name, options, block) in DISKS {
        let iqn = server.ready_target(name, options);
        let mut client = Client::ready(server.portals[0], &Wishes::to_target(&iqn), 0).expect("a session");
        let support = client.read(0, &[0xa3, 0x0c, 1, 0x9c, 0, 0, 0, 0, 0, 64, 0, 0], 64).expect("an answer");
        assert_eq!(support.data[1] & 7, 3, "{name}");
        let limits = client.read(0, &[0x12, 1, 0xb0, 0, 64, 0], 64).expect("an answer").data;
        let field = |at: usize| u32::from_be_bytes(limits[at..at + 4].try_into().expect("four bytes")) as usize;
        let in_memory = name.starts_with("memory");
        let (most, step) = if in_memory { (1 << 20, *block) } else { (128 << 10, 4096) };
        let told = if step == *block { 0 } else { step / block };
        assert_eq!([44, 48, 52, 56, 60].map(field), [most / block, told, told, 0, 0], "{name}");
        let shown = server.json(&["disk", "show", name]);
        assert_eq!(shown["atomic_write_bytes"], most, "{shown}");
        let answer = write_atomic(&mut client, 5 * MIB, &pattern(5, most), *block).expect("an answer");
        assert_eq!(answer.status, 0, "{name}: {answer:?}");
        let long = write_atomic(&mut client, 5 * MIB, &pattern(5, most + step), *block).expect("an answer");
        assert_eq!(long.sense_triple(), Some((5, 0x24, 0)), "{name}");
        if step > *block {
            let shifted = write_atomic(&mut client, 5 * MIB + block, &pattern(5, step), *block).expect("an answer");
            assert_eq!(shifted.sense_triple(), Some((5, 0x24, 0)), "{name}");
        }
        // With less data than blocks nothing is written.
        let mut short = atomic_cdb((9 * MIB / block) as u64, 2 * step / block);
        short[0] = 0x9c;
        let answer = client.write(0, &short, &pattern(5, step)).expect("an answer");
        assert_eq!(answer.sense_triple().map(|(key, ..)| key), Some(5), "{name}: {answer:?}");
        let answer = client.read(0, &cdb(0x88, 9 * MIB, step, *block), step as u32).expect("an answer");
        assert_eq!(value_of(&answer.data), Ok(0), "{name}");
    }
    for (name, options) in [("raw", ["--format", "raw"]), ("vhd", ["--format", "vhd"])] {
        let iqn = server.ready_target(name, &[&["--size", "64M"], &options[..]].concat());
        let mut client = Client::ready(server.portals[0], &Wishes::to_target(&iqn), 0).expect("a session");
        let answer = write_atomic(&mut client, 0, &pattern(5, 4096), 512).expect("an answer");
        assert_eq!(answer.sense_triple(), Some((5, 0x20, 0)), "{name}");
        assert_eq!(server.json(&["disk", "show", name])["atomic_write_bytes"], 0);
    }
}

/// Write at the disk's end over and over; how often that was refused because the end was gone.
fn write_at_the_end(portal: SocketAddr, wishes: &Wishes, number: usize, end: &AtomicBool) -> u32 {
    let mut client = Client::ready(portal, wishes, 0).expect("a session");
    let mut refused = 0;
    while !end.load(Ordering::Relaxed) {
        let answer = write_atomic(&mut client, 40 * MIB + number % 4 * LEN, &pattern(7, LEN), 512).expect("an answer");
        match (answer.status, answer.sense_triple()) {
            (0, _) => {}
            (_, Some((5, 0x21, 0))) => refused += 1,
            // It is told of the new size.
            (_, Some((6, ..))) => {}
            _ => panic!("{answer:?}"),
        }
    }
    refused
}

/// Some of the writes have their blocks to themselves and wait for the change of size to end: what they looked at
/// before is another disk then.
#[test]
fn a_disk_that_shrinks_refuses_writes_that_have_begun() {
    for (name, options) in [("vhdx", DISKS[2].1), ("child", DISKS[5].1)] {
        let mut server = serve("0,1");
        let iqn = server.ready_target(name, options);
        let portal = server.portals[0];
        let end = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..8)
            .map(|number| {
                let (wishes, end) = (Wishes::to_target(&iqn).session(10 + number as u32), Arc::clone(&end));
                std::thread::spawn(move || write_at_the_end(portal, &wishes, number, &end))
            })
            .collect();
        for _ in 0..6 {
            std::thread::sleep(Duration::from_millis(50));
            server.ok(&["disk", "resize", name, "--size", "32M", "--allow-shrink"]);
            server.ok(&["disk", "resize", name, "--size", "64M"]);
        }
        end.store(true, Ordering::Relaxed);
        let refused: u32 = writers.into_iter().map(|writer| writer.join().expect("no writer failed")).sum();
        assert!(refused > 0 && server.is_alive(), "{name}: {refused} writes were refused");
        let mut client = Client::ready(portal, &Wishes::to_target(&iqn), 0).expect("a session");
        let answer = write_atomic(&mut client, 40 * MIB, &pattern(8, LEN), 512).expect("an answer");
        assert_eq!(answer.status, 0, "{name}: {answer:?}");
    }
}
