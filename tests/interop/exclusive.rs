//! COMPARE AND WRITE and ORWRITE from several connections at once: nobody comes in between.

use perf::client::{Answer, Client};
use perf::login::Wishes;

use crate::server::{Options, Server};

/// Disks of every kind, and their block length.
const DISKS: &[(&str, &[&str], usize)] = &[
    ("memory", &["--format", "memory"], 512),
    ("memory-4k", &["--format", "memory", "--sector-size", "4096"], 4096),
    ("raw", &["--format", "raw"], 512),
    ("vhdx", &[], 512),
    ("vhdx-4k", &["--sector-size", "4096"], 4096),
];

fn cdb(opcode: u8, lba: u64, blocks: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = opcode;
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

fn compare_and_write(client: &mut Client, lba: u64, from: &[u8], to: &[u8], block: usize) -> Answer {
    let data = [from, to].concat();
    client.write(0, &cdb(0x89, lba, (from.len() / block) as u32), &data).expect("an answer")
}

fn read(client: &mut Client, lba: u64, blocks: usize, block: usize) -> Vec<u8> {
    let answer = client.read(0, &cdb(0x88, lba, blocks as u32), (blocks * block) as u32).expect("an answer");
    assert_eq!(answer.status, 0, "{answer:?}");
    answer.data
}

/// Add one to a counter that fills some blocks, so often; how often somebody else was faster.
fn count_up(client: &mut Client, lba: u64, blocks: usize, block: usize, times: u32) -> u32 {
    let mut misses = 0;
    let mut present = read(client, lba, blocks, block);
    for _ in 0..times {
        loop {
            let value = u64::from_be_bytes(present[..8].try_into().expect("eight bytes"));
            assert!(present.chunks(8).all(|copy| copy == value.to_be_bytes()), "a torn counter at {value}");
            let next = (value + 1).to_be_bytes().repeat(present.len() / 8);
            let answer = compare_and_write(client, lba, &present, &next, block);
            match answer.sense_triple() {
                None if answer.status == 0 => {
                    present = next;
                    break;
                }
                Some((0xe, 0x1d, 0)) => {
                    misses += 1;
                    present = read(client, lba, blocks, block);
                }
                _ => panic!("{answer:?}"),
            }
        }
    }
    misses
}

#[test]
fn a_counter_that_many_connections_raise_loses_nothing() {
    const CLIENTS: u32 = 6;
    const TIMES: u32 = 120;
    for cores in ["0", "0,1"] {
        let server = Server::start_with(Options { cores: Some(cores), ..Options::default() });
        for (name, options, block) in DISKS {
            let iqn = server.ready_target(name, &[&["--size", "64M"], *options].concat());
            let portal = server.portals[0];
            let threads: Vec<_> = (0..CLIENTS)
                .map(|number| {
                    let wishes = Wishes::to_target(&iqn).session(number);
                    let block = *block;
                    std::thread::spawn(move || {
                        let mut client = Client::ready(portal, &wishes, 0).expect("a session");
                        // Three blocks, so that half of a write could be seen.
                        count_up(&mut client, 100, 3, block, TIMES)
                    })
                })
                .collect();
            let misses: u32 = threads.into_iter().map(|thread| thread.join().expect("no client failed")).sum();
            let mut client = Client::ready(portal, &Wishes::to_target(&iqn).session(99), 0).expect("a session");
            let end = read(&mut client, 100, 1, *block);
            let value = u64::from_be_bytes(end[..8].try_into().expect("eight bytes"));
            assert_eq!(value, u64::from(CLIENTS * TIMES), "{name} on cores {cores}");
            assert!(misses > 0, "{name} on cores {cores}: nobody was ever too late");
        }
    }
}

#[test]
fn all_255_blocks_are_compared_and_the_first_difference_is_told() {
    let server = Server::start();
    for (name, options, block) in DISKS {
        let iqn = server.ready_target(name, &[&["--size", "64M"], *options].concat());
        for (number, immediate_data) in [(1, true), (2, false)] {
            let wishes = Wishes { immediate_data, initial_r2t: !immediate_data, ..Wishes::to_target(&iqn) };
            let mut client = Client::ready(server.portals[0], &wishes.session(number), 0).expect("a session");
            let len = 255 * block;
            let lba = 1000 + u64::from(number) * 300;
            let zeros = vec![0; len];
            let first: Vec<u8> = (0..len).map(|at| (at / 7) as u8).collect();
            assert_eq!(compare_and_write(&mut client, lba, &zeros, &first, *block).status, 0, "{name}");
            assert_eq!(read(&mut client, lba, 255, *block), first, "{name}");
            for at in [0, 1, block + 3, 130 * block, len - 1] {
                let mut other = first.clone();
                other[at] ^= 0x10;
                let answer = compare_and_write(&mut client, lba, &other, &zeros, *block);
                assert_eq!(answer.sense_triple(), Some((0xe, 0x1d, 0)), "{name} {at}");
                assert_eq!(answer.sense_information(), Some(at as u32), "{name}: the offset of the difference");
            }
            assert_eq!(read(&mut client, lba, 255, *block), first, "{name}: a miscompare writes nothing");
            // With less data than twice the blocks there is nothing to compare.
            let short = client.write(0, &cdb(0x89, lba, 2), &first[..2 * block]).expect("an answer");
            assert_eq!(short.sense_triple().map(|(key, ..)| key), Some(5), "{name}");
            let beyond = compare_and_write(&mut client, u64::MAX, &zeros[..*block], &zeros[..*block], *block);
            assert_eq!(beyond.sense_triple(), Some((5, 0x21, 0)), "{name}");
            // With none there is nothing to do.
            assert_eq!(client.bare(0, &cdb(0x89, lba, 0)).expect("an answer").status, 0);
        }
    }
}

#[test]
fn or_write_sets_bits_and_clears_none() {
    let server = Server::start_with(Options { cores: Some("0,1"), ..Options::default() });
    for (name, options, block) in DISKS {
        let iqn = server.ready_target(name, &[&["--size", "64M"], *options].concat());
        let portal = server.portals[0];
        // Each connection sets bits of its own, over and over; none may get lost to another's read and write.
        let threads: Vec<_> = (0..4u8)
            .map(|number| {
                let wishes = Wishes::to_target(&iqn).session(u32::from(number));
                let block = *block;
                std::thread::spawn(move || {
                    let mut client = Client::ready(portal, &wishes, 0).expect("a session");
                    for round in 0..60u64 {
                        for bit in [number * 2, number * 2 + 1] {
                            let data = vec![1 << bit; block];
                            let answer = client.write(0, &cdb(0x8b, 50 + round % 4, 1), &data).expect("an answer");
                            assert_eq!(answer.status, 0, "{answer:?}");
                            let seen = read(&mut client, 50 + round % 4, 1, block);
                            assert!(seen.iter().all(|byte| byte & 1 << bit != 0), "bit {bit} was lost");
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().expect("no client failed"));
        let mut client = Client::ready(portal, &Wishes::to_target(&iqn).session(99), 0).expect("a session");
        assert_eq!(read(&mut client, 50, 4, *block), vec![0xff; 4 * block], "{name}");
        // More than one window.
        let len = 3 << 20;
        let (mut low, mut high) = (vec![0x01u8; len], vec![0x30u8; len]);
        for at in (0..len).step_by(4099) {
            (low[at], high[at]) = ((at / 4099) as u8, (at / 7) as u8);
        }
        let blocks = (len / block) as u32;
        for data in [&low, &high] {
            assert_eq!(client.write(0, &cdb(0x8b, 2000, blocks), data).expect("an answer").status, 0, "{name}");
        }
        let expected: Vec<u8> = low.iter().zip(&high).map(|(low, high)| low | high).collect();
        assert_eq!(read(&mut client, 2000, blocks as usize, *block), expected, "{name}");
    }
}

#[test]
fn both_commands_are_reported() {
    let server = Server::start();
    let iqn = server.ready_target("reported", &["--size", "64M"]);
    let mut client = Client::ready(server.portals[0], &Wishes::to_target(&iqn), 0).expect("a session");
    for opcode in [0x89, 0x8b] {
        let answer = client.read(0, &[0xa3, 0x0c, 1, opcode, 0, 0, 0, 0, 0, 64, 0, 0], 64).expect("an answer");
        assert_eq!((answer.status, answer.data[1] & 7), (0, 3), "{opcode:02x} is supported");
    }
    // MAXIMUM COMPARE AND WRITE LENGTH of VPD B0h.
    let limits = client.read(0, &[0x12, 1, 0xb0, 0, 64, 0], 64).expect("an answer");
    assert_eq!(limits.data[5], 255);
}
