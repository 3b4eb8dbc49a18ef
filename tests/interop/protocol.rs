//! What our own initiator can ask for and the tools cannot: every transfer mode, digests on data, discovery of several
//! targets, reinstatement, and answers to single commands.

use std::time::{Duration, Instant};

use perf::login::{self, LoginError, Wire, Wishes};
use perf::pdu::{self, FINAL, Header, IMMEDIATE, cdb, request, response};
use perf::pipeline::{Pipeline, Request};
use perf::verify::{Plan, Verifier, pause_unless};

use crate::server::{Options, Server, every_way};

/// Verified I/O with these wishes until so many writes are acknowledged.
fn verified_io(server: &Server, wishes: Wishes, units_max: u32, writes: u64) {
    let label = format!("{wishes:?}");
    let plan = Plan {
        wishes,
        io_units_max: units_max,
        depth: 16,
        len_bytes: 24 << 20,
        ..perf::storm::healthy_plan(server.portals[0], "")
    };
    let mut verifier = Verifier::open(plan).unwrap_or_else(|e| panic!("{label}: {e}"));
    verifier.adopt().unwrap_or_else(|e| panic!("{label}: {e}"));
    let began = Instant::now();
    while verifier.summary().writes < writes {
        pause_unless(verifier.turn(true).unwrap_or_else(|e| panic!("{label}: {e}")));
        assert!(began.elapsed().as_secs() < 30, "{label}: only {}", verifier.summary());
    }
    verifier.check_all().unwrap_or_else(|e| panic!("{label}: {e}"));
    assert_eq!(verifier.summary().finding_count, 0, "{label}: {}", verifier.summary());
}

#[test]
fn every_transfer_mode_moves_the_right_bytes() {
    for (_, options) in every_way() {
        let mut server = Server::start_with(options);
        let iqn = server.ready_target("modes", &["--size", "64M"]);
        for modes in 0..16u32 {
            let bit = |n: u32| modes >> n & 1 == 1;
            let wishes = Wishes {
                initial_r2t: bit(0),
                immediate_data: bit(1),
                header_digest: bit(2),
                data_digest: bit(3),
                outstanding_r2t_max: 1 + modes % 4,
                // 8 KiB segments split bursts; 256 KiB is what modern initiators ask for.
                segment_len_max: if modes % 3 == 0 { 8192 } else { 256 * 1024 },
                ..Wishes::to_target(&iqn)
            };
            // Up to 2 MiB: several R2Ts for one command.
            verified_io(&server, wishes.clone(), if modes % 4 == 0 { 512 } else { 16 }, 60);
        }
        server.stop();
    }
}

#[test]
fn discovery_lists_every_target_over_several_answers() {
    let server = Server::start();
    let names: Vec<String> = (0..150).map(|n| format!("iqn.2026-11.io.lunaring:long-name-of-target-{n:04}")).collect();
    for (number, iqn) in names.iter().enumerate() {
        let name = format!("t{number}");
        server.ok(&["target", "create", &name, "--iqn", iqn]);
        server.ok(&["target", "allow", &name, "any"]);
    }
    let mut found = login::discover(server.portals[0], "iqn.2026-11.io.lunaring:perf").expect("discovery works");
    found.sort();
    let found_names: Vec<&String> = found.iter().map(|(name, _)| name).collect();
    assert_eq!(found_names, names.iter().collect::<Vec<_>>());
    let portal = server.portals[0].to_string();
    for (name, addresses) in &found {
        assert!(addresses.iter().any(|address| address.starts_with(&portal)), "{name}: {addresses:?}");
    }
    // Short segments on our side: the answer must come in pieces.
    let mut wishes = Wishes::to_target("");
    (wishes.target_name, wishes.segment_len_max) = (None, 1024);
    let mut wire = Wire::connect(server.portals[0], wishes.timeout).expect("a connection");
    wire.login(&wishes).expect("a discovery session");
    let text = wire.text(b"SendTargets=All\0").expect("an answer in pieces");
    assert_eq!(login::pairs(&text).filter(|(key, _)| *key == "TargetName").count(), names.len());
    assert_eq!(wire.logout().expect("a logout"), 0);
}

#[test]
fn discovery_hides_targets_from_whom_they_refuse() {
    let server = Server::start();
    for (name, rule) in [("mine", "iqn:iqn.2026-11.io.lunaring:me"), ("open", "any"), ("other", "ip:10.0.0.0/8")] {
        server.ok(&["target", "create", name, "--iqn", &format!("iqn.2026-11.io.lunaring:{name}")]);
        server.ok(&["target", "allow", name, rule]);
    }
    let seen = |initiator: &str| {
        let found = login::discover(server.portals[0], initiator).expect("discovery works");
        let mut names: Vec<String> = found.into_iter().map(|(name, _)| name).collect();
        names.sort();
        names
    };
    let full = |names: &[&str]| names.iter().map(|n| format!("iqn.2026-11.io.lunaring:{n}")).collect::<Vec<_>>();
    assert_eq!(seen("iqn.2026-11.io.lunaring:me"), full(&["mine", "open"]));
    assert_eq!(seen("iqn.2026-11.io.lunaring:you"), full(&["open"]));
}

#[test]
fn the_same_session_again_replaces_the_old_one() {
    let server = Server::start_with(Options { cores: Some("0,1"), ..Options::default() });
    let iqn = server.ready_target("again", &["--size", "64M"]);
    let wishes = Wishes::to_target(&iqn);
    let mut old = Pipeline::open(server.portals[0], &wishes, 4).expect("a session");
    old.capacity(0).expect("it works");
    let mut new = Pipeline::open(server.portals[0], &wishes, 4).expect("the session again");
    new.capacity(0).expect("it works");
    let began = Instant::now();
    let mut done = vec![];
    while old.turn(&mut done).is_ok() {
        assert!(began.elapsed().as_secs() < 5, "the replaced session's connection is still open after 5 s");
        std::thread::sleep(Duration::from_millis(5));
    }
    new.capacity(0).expect("the new one still works");
    let mut other = Pipeline::open(server.portals[0], &wishes.clone().session(9), 4).expect("another ISID");
    other.capacity(0).expect("it works");
    new.capacity(0).expect("and the new one still works");
}

#[test]
fn single_commands_are_answered_as_the_standards_say() {
    let server = Server::start();
    let iqn = server.ready_target("single", &["--size", "64M"]);
    let mut pipeline = Pipeline::open(server.portals[0], &Wishes::to_target(&iqn), 4).expect("a session");
    assert_eq!(pipeline.capacity(0).expect("READ CAPACITY (16)"), (131_072, 512));
    let mut sense = |request: Request| pipeline.run(request).expect("an answer").sense_triple();
    // LBA out of range: ILLEGAL REQUEST, LOGICAL BLOCK ADDRESS OUT OF RANGE.
    let read = |lba, blocks| Request::reading(0, &pdu::cdb_transfer_16(cdb::READ_16, lba, blocks, false), blocks * 512);
    assert_eq!(sense(read(131_072, 1)), Some((5, 0x21, 0)));
    assert_eq!(sense(read(131_071, 2)), Some((5, 0x21, 0)));
    assert_eq!(sense(read(u64::MAX, 1)), Some((5, 0x21, 0)));
    assert_eq!(sense(read(131_071, 1)), None);
    // An operation code that nobody knows, and a logical unit that is not there.
    assert_eq!(sense(Request::bare(0, 0xc1)), Some((5, 0x20, 0)));
    assert_eq!(sense(Request::bare(7, cdb::TEST_UNIT_READY)), Some((5, 0x25, 0)));
    // REPORT LUNS answers on every LUN, INQUIRY too: peripheral qualifier 011b where nothing is.
    let report = Request::reading(7, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 64], 64);
    let inquiry = Request::reading(7, &[0x12, 0, 0, 0, 36], 36);
    let mut answer = |request: Request| pipeline.run(request).expect("an answer");
    let luns = answer(report);
    assert_eq!((luns.status, &luns.data[..4]), (0, &[0, 0, 0, 8][..]));
    let standard = answer(inquiry);
    assert_eq!((standard.status, standard.data[0]), (0, 0x7f));
    // Residuals: fewer bytes than asked for.
    let short = answer(Request::reading(0, &[0x12, 0, 0, 0, 36], 255));
    assert_eq!((short.status, short.received), (0, 36));
}

#[test]
fn a_ping_comes_back_with_its_data_and_a_logout_closes() {
    let server = Server::start();
    let iqn = server.ready_target("ping", &["--size", "64M"]);
    let wishes = Wishes { header_digest: true, data_digest: true, ..Wishes::to_target(&iqn) };
    let mut wire = Wire::connect(server.portals[0], wishes.timeout).expect("a connection");
    wire.login(&wishes).expect("a session");
    for len in [0usize, 1, 4, 1000, 8192] {
        let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
        let header = Header::new(request::NOP_OUT | IMMEDIATE, FINAL)
            .with_word(16, 99)
            .with_word(20, pdu::TAG_NONE)
            .with_word(24, wire.cmd_sn)
            .with_word(28, wire.exp_stat_sn);
        wire.send(header, &payload).expect("sent");
        let answer = wire.receive().expect("an answer");
        assert_eq!((answer.header.opcode(), answer.header.task_tag()), (response::NOP_IN, 99));
        assert_eq!(answer.data, payload);
    }
    assert_eq!(wire.logout().expect("a logout response"), 0);
    assert!(is_closed(&mut wire), "the connection is closed after the logout");
}

#[test]
fn sessions_are_told_before_the_server_ends() {
    let mut server = Server::start();
    let iqn = server.ready_target("told", &["--size", "64M"]);
    let mut pipeline = Pipeline::open(server.portals[0], &Wishes::to_target(&iqn), 4).expect("a session");
    pipeline.capacity(0).expect("it works");
    assert!(server.stop() < Duration::from_secs(2));
    let mut done = vec![];
    let began = Instant::now();
    while pipeline.turn(&mut done).is_ok() && began.elapsed().as_secs() < 5 {}
    // RFC 7143 section 11.9.1: 1 asks for logout, 2 says the connection will be dropped, 3 all connections.
    assert!(matches!(pipeline.async_event, Some(1..=3)), "no asynchronous message: {:?}", pipeline.async_event);
}

#[test]
fn a_stranger_who_says_nothing_is_closed() {
    let server = Server::start();
    let began = Instant::now();
    let silent = Wire::connect(server.portals[0], Duration::from_secs(40)).expect("a connection");
    let mut silent = silent;
    assert!(silent.receive().is_err());
    assert!(began.elapsed() < Duration::from_secs(30), "a silent connection stayed for {:?}", began.elapsed());
    assert!(began.elapsed() > Duration::from_secs(2), "a slow login must have its time: {:?}", began.elapsed());
}

#[test]
fn an_unknown_target_is_not_found() {
    let server = Server::start();
    match Pipeline::open(server.portals[0], &Wishes::to_target("iqn.2026-11.io.lunaring:nowhere"), 1) {
        Err(LoginError::Refused { class: 2, detail: 3 }) => {}
        other => panic!("an unknown target must be 0203, not {other:?}"),
    }
}

#[test]
fn sectors_of_4096_bytes_and_every_kind_of_disk_hold_what_was_written() {
    let server = Server::start_with(Options { cores: Some("0,1"), ..Options::default() });
    let disks: &[(&str, &[&str])] = &[
        ("dynamic-4k", &["--size", "64M", "--sector-size", "4096"]),
        ("fixed-4k", &["--size", "64M", "--sector-size", "4096", "--kind", "fixed"]),
        ("raw-4k", &["--size", "64M", "--sector-size", "4096", "--format", "raw"]),
        ("memory-4k", &["--size", "64M", "--sector-size", "4096", "--format", "memory"]),
        ("raw", &["--size", "64M", "--format", "raw"]),
        ("raw-fixed", &["--size", "64M", "--format", "raw", "--kind", "fixed"]),
        ("large-blocks", &["--size", "64M", "--block-size", "256M"]),
        ("buffered", &["--size", "64M", "--cache", "buffered"]),
    ];
    for (name, disk) in disks {
        let iqn = server.ready_target(name, disk);
        verified_io(&server, Wishes::to_target(&iqn), 64, 300);
    }
}

#[test]
fn small_and_odd_places_hold_what_was_written() {
    // Units of one sector, at any sector: what direct I/O and 4096-byte pages must not mix up.
    let server = Server::start();
    for (name, disk) in [("vhdx", &["--size", "64M"][..]), ("raw", &["--size", "64M", "--format", "raw"])] {
        let iqn = server.ready_target(name, disk);
        let plan = Plan {
            wishes: Wishes::to_target(&iqn),
            unit_bytes: 512,
            io_units_max: 19,
            first_byte: 512 * 7,
            len_bytes: 4 << 20,
            depth: 32,
            ..perf::storm::healthy_plan(server.portals[0], "")
        };
        let mut verifier = Verifier::open(plan).expect("a session");
        let began = Instant::now();
        while verifier.summary().writes < 3000 {
            pause_unless(verifier.turn(true).expect("I/O works"));
            assert!(began.elapsed().as_secs() < 30, "{}", verifier.summary());
        }
        verifier.check_all().expect("the region can be read");
        assert_eq!(verifier.summary().finding_count, 0, "{name}: {}", verifier.summary());
    }
}

#[test]
fn a_read_only_mapping_takes_no_writes_and_a_high_lun_works() {
    let server = Server::start();
    let iqn = server.ready_target("roles", &["--size", "64M"]);
    let viewers = "iqn.2026-11.io.lunaring:viewers";
    server.ok(&["target", "create", "viewers", "--iqn", viewers]);
    server.ok(&["target", "map", "viewers", "roles", "--lun", "300", "--read-only"]);
    server.ok(&["target", "allow", "viewers", "any"]);
    let mut pipeline = Pipeline::open(server.portals[0], &Wishes::to_target(&iqn), 4).expect("a session");
    let mut viewer = Pipeline::open(server.portals[0], &Wishes::to_target(viewers), 4).expect("a session");
    assert_eq!(pipeline.capacity(0).expect("LUN 0").0, viewer.capacity(300).expect("LUN 300").0);
    let write = |lun| {
        let cdb = pdu::cdb_transfer_16(cdb::WRITE_16, 8, 1, false);
        Request { lun, data_out: vec![0x77; 512], read_len: 0, ..Request::reading(lun, &cdb, 0) }
    };
    assert_eq!(pipeline.run(write(0)).expect("an answer").status, 0);
    // DATA PROTECT, WRITE PROTECTED.
    assert_eq!(viewer.run(write(300)).expect("an answer").sense_triple(), Some((7, 0x27, 0)));
    let read = Request::reading(300, &pdu::cdb_transfer_16(cdb::READ_16, 8, 1, false), 512);
    assert_eq!(viewer.run(read).expect("an answer").data, vec![0x77; 512]);
    let report = viewer.run(Request::reading(0, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0], 256)).expect("an answer");
    assert_eq!(report.data[..16], [0, 0, 0, 8, 0, 0, 0, 0, 0x41, 0x2c, 0, 0, 0, 0, 0, 0]);
}

/// The server has closed the connection; that nothing comes for a while is not enough.
fn is_closed(wire: &mut Wire) -> bool {
    use std::io::ErrorKind::{ConnectionReset, UnexpectedEof};
    matches!(wire.receive().map_err(|error| error.kind()), Err(UnexpectedEof | ConnectionReset))
}

/// A SCSI command's header with CmdSN taken.
fn command(wire: &mut Wire, tag: u32, flags: u8, len: u32, cdb: &[u8; 16]) -> Header {
    let mut header = Header::new(request::SCSI_COMMAND, flags | 1)
        .with_word(16, tag)
        .with_word(20, len)
        .with_word(24, wire.cmd_sn)
        .with_word(28, wire.exp_stat_sn);
    header.0[32..48].copy_from_slice(cdb);
    wire.cmd_sn = wire.cmd_sn.wrapping_add(1);
    header
}

#[test]
fn wrong_data_while_a_window_is_written_ends_the_command_with_its_sense() {
    let server = Server::start();
    let iqn = server.ready_target("wrong", &["--size", "64M", "--block-size", "1M"]);
    let wishes = Wishes { immediate_data: false, ..Wishes::to_target(&iqn) };
    let mut wire = Wire::connect(server.portals[0], wishes.timeout).expect("a connection");
    wire.login(&wishes).expect("a session");
    // The first command only learns of the power-on.
    let ready = command(&mut wire, 1, FINAL, 0, &[0; 16]);
    wire.send(ready, &[]).expect("sent");
    wire.receive().expect("an answer");
    // A write of several windows on fresh blocks, so that the first window is underway for a while.
    let len = 3 << 20;
    let write = command(&mut wire, 2, FINAL | 0x20, len, &pdu::cdb_transfer_16(cdb::WRITE_16, 0, len / 512, false));
    wire.send(write, &[]).expect("sent");
    let mut out = vec![];
    let first = wire.receive().expect("an R2T");
    assert_eq!(first.header.opcode(), response::R2T);
    let (tag, asked) = (first.header.word(20), first.header.word(44) as usize);
    let payload = vec![7u8; asked];
    for (number, piece) in payload.chunks(65_536).enumerate() {
        let last = (number + 1) * 65_536 >= asked;
        let header = Header::new(request::DATA_OUT, if last { FINAL } else { 0 })
            .with_word(16, 2)
            .with_word(20, tag)
            .with_word(28, wire.exp_stat_sn)
            .with_word(36, number as u32)
            .with_word(40, number as u32 * 65_536);
        pdu::append(&mut out, header, piece, false, false);
    }
    // And in the same breath data that nobody asked for.
    let stray = Header::new(request::DATA_OUT, FINAL)
        .with_word(16, 2)
        .with_word(20, pdu::TAG_NONE)
        .with_word(28, wire.exp_stat_sn)
        .with_word(40, asked as u32);
    pdu::append(&mut out, stray, &[9; 512], false, false);
    std::io::Write::write_all(&mut wire.socket, &out).expect("sent");
    let answer = loop {
        let answer = wire.receive().expect("the command is answered, and does not wait for ever");
        if answer.header.opcode() == response::SCSI_RESPONSE {
            break answer;
        }
    };
    // RFC 7143 section 11.4.7.2: ABORTED COMMAND, unexpected unsolicited data.
    assert_eq!((answer.header.0[3], answer.data[4] & 0x0f, answer.data[14], answer.data[15]), (2, 0x0b, 0x0c, 0x0c));
    assert_eq!(wire.logout().expect("the session goes on until its logout"), 0);
}

#[test]
fn a_target_cold_reset_is_answered_and_then_ends_every_session() {
    let server = Server::start_with(Options { cores: Some("0,1"), ..Options::default() });
    let iqn = server.ready_target("cold", &["--size", "64M"]);
    let wishes = Wishes::to_target(&iqn);
    let mut wire = Wire::connect(server.portals[0], wishes.timeout).expect("a connection");
    wire.login(&wishes).expect("a session");
    let mut other = Pipeline::open(server.portals[0], &wishes.clone().session(5), 4).expect("another session");
    other.capacity(0).expect("it works");
    // RFC 7143 section 11.5.1: function 7.
    let reset = Header::new(request::TASK_MANAGEMENT | IMMEDIATE, FINAL | 7)
        .with_word(16, 50)
        .with_word(20, pdu::TAG_NONE)
        .with_word(24, wire.cmd_sn)
        .with_word(28, wire.exp_stat_sn);
    wire.send(reset, &[]).expect("sent");
    let answer = wire.receive().expect("an answer");
    assert_eq!((answer.header.opcode(), answer.header.0[2]), (response::TASK_MANAGEMENT, 0));
    assert!(is_closed(&mut wire), "the connection that asked is closed after its answer");
    let began = Instant::now();
    let mut done = vec![];
    while other.turn(&mut done).is_ok() {
        assert!(began.elapsed().as_secs() < 5, "another session of the target is still open after 5 s");
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut again = Pipeline::open(server.portals[0], &wishes, 4).expect("a session after the reset");
    again.capacity(0).expect("it works");
}
