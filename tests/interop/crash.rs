//! The promise of GOOD: killing the process at any instant loses nothing that was acknowledged.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use perf::random::Random;
use perf::verify::{Plan, Progress, Verifier};

use crate::server::{Options, Server, count, text, tool_ok, vhdx_log_is_empty};

/// Kill and restart a server so often under a verifying write load, then compare everything, over iSCSI and in the
/// file.
fn kills(disk: &[&str], image_format: &str, options: Options, kills: u64, seed: u64) {
    let mut server = Server::start_with(options);
    let iqn = server.ready_target("victim", disk);
    let plan = Plan {
        portal: server.portals[0],
        wishes: server.wishes(&iqn),
        lun: 0,
        first_byte: 0,
        len_bytes: 0,
        unit_bytes: 4096,
        io_units_max: 32,
        depth: 16,
        write_percent: 75,
        flush_one_in: 100,
        writer: 3,
        over_ring: true,
        seed,
    };
    let verifier = Verifier::open(plan).expect("a session");
    let progress = Arc::new(Progress::default());
    let worker = {
        let (mut verifier, progress) = (verifier, progress.clone());
        // What a thread has in flight on a ring ends with that thread: all of it happens in this one.
        std::thread::spawn(move || {
            let patience = Duration::from_secs(30);
            verifier.run(&progress, patience)?;
            if !verifier.is_connected() {
                verifier.reconnect_within(patience)?;
            }
            verifier.check_all().map_err(|e| format!("the whole region can not be read: {e}"))?;
            Ok::<Verifier, String>(verifier)
        })
    };
    let mut random = Random::new(seed);
    for kill in 0..kills {
        // Some writes of this life, then a moment more that is never the same.
        let target = progress.writes.load(Ordering::Relaxed) + 1 + random.below(150);
        let began = Instant::now();
        while progress.writes.load(Ordering::Relaxed) < target {
            assert!(!worker.is_finished(), "the verifier gave up before kill {kill}");
            assert!(began.elapsed() < Duration::from_secs(30), "no writes are acknowledged before kill {kill}");
            std::thread::sleep(Duration::from_micros(200));
        }
        std::thread::sleep(Duration::from_micros(random.below(3000)));
        server.kill_9();
        server.start_again();
    }
    progress.stop.store(true, Ordering::Relaxed);
    let mut verifier = worker.join().expect("the verifier's thread").unwrap_or_else(|e| panic!("{e}"));
    let summary = verifier.summary().clone();
    assert_eq!(summary.finding_count, 0, "{summary}");
    assert!(summary.reconnects >= kills, "{summary}");
    assert!(summary.writes > kills, "{summary}");

    // One more kill, then the file as others see it after a clean stop.
    server.kill_9();
    server.start_again();
    server.stop();
    let file = server.disk_file("victim");
    if image_format == "vhdx" {
        assert!(vhdx_log_is_empty(&file), "the log holds something after a clean stop");
        tool_ok("qemu-img", &["check", "-f", "vhdx", text(&file)]);
    }
    let raw = server.file("raw.img");
    tool_ok("qemu-img", &["convert", "-f", image_format, "-O", "raw", text(&file), text(&raw)]);
    verifier.check_image(&mut std::fs::File::open(raw).expect("the copy")).expect("the copy can be read");
    assert_eq!(verifier.summary().finding_count, 0, "in the file: {}", verifier.summary());
    println!("{kills} kills: {summary}");
}

#[test]
fn kill_9_loses_nothing_acknowledged_on_a_dynamic_vhdx() {
    // Small blocks on a disk that is large enough for new blocks to be allocated up to the last kill.
    let count = count("LUNARING_KILLS", 10);
    let size = format!("{}M", (count * 20).clamp(256, 2048));
    let disk = ["--size", &size, "--kind", "dynamic", "--block-size", "1M"];
    let options = Options { cores: Some("0,1"), ..Options::default() };
    kills(&disk, "vhdx", options, count, 1);
}

#[test]
fn kill_9_loses_nothing_acknowledged_on_a_raw_file() {
    let options = Options { cores: Some("0"), ..Options::default() };
    kills(&["--size", "64M", "--format", "raw"], "raw", options, count("LUNARING_KILLS", 10) / 4 + 1, 2);
}

#[test]
fn kill_9_loses_nothing_acknowledged_on_a_fixed_vhdx_with_baseline_features() {
    let disk = ["--size", "64M", "--kind", "fixed"];
    let options = Options { baseline: true, ..Options::default() };
    kills(&disk, "vhdx", options, count("LUNARING_KILLS", 10) / 4 + 1, 3);
}

#[test]
fn damage_is_found_by_the_verifier() {
    // The instrument itself must be able to fail: bytes changed behind the server's back are a finding.
    let mut server = Server::start();
    let iqn = server.ready_target("damaged", &["--size", "16M", "--format", "raw"]);
    let mut plan = perf::storm::healthy_plan(server.portals[0], &iqn);
    // Small enough for every unit to be written.
    (plan.len_bytes, plan.write_percent) = (1 << 20, 100);
    let mut verifier = Verifier::open(plan).expect("a session");
    let began = Instant::now();
    while verifier.summary().writes < 2000 {
        perf::verify::pause_unless(verifier.turn(true).expect("I/O works"));
        assert!(began.elapsed() < Duration::from_secs(20), "{}", verifier.summary());
    }
    verifier.check_all().expect("the region can be read");
    assert_eq!(verifier.summary().finding_count, 0, "{}", verifier.summary());
    server.stop();
    let file = server.disk_file("damaged");
    let mut bytes = std::fs::read(&file).expect("the image");
    bytes[1_000_000] ^= 1;
    bytes.copy_within(8192..12288, 40960);
    std::fs::write(&file, bytes).expect("the image");
    server.start_again();
    verifier.reconnect_within(Duration::from_secs(10)).unwrap_or_else(|e| panic!("{e}"));
    verifier.check_all().expect("the region can be read");
    let kinds: Vec<&str> = verifier.summary().findings.iter().map(|finding| finding.kind).collect();
    assert!(kinds.contains(&"torn") && kinds.contains(&"misdirected"), "{}", verifier.summary());
}

#[test]
fn a_clean_stop_is_quick_and_complete_under_load() {
    for signal in ["TERM", "INT"] {
        let mut server = Server::start();
        let iqn = server.ready_target("busy", &["--size", "1G", "--block-size", "1M"]);
        let mut plan = perf::storm::healthy_plan(server.portals[0], &iqn);
        (plan.len_bytes, plan.depth) = (0, 32);
        let mut verifier = Verifier::open(plan).expect("a session");
        let progress = Arc::new(Progress::default());
        let worker = {
            let progress = progress.clone();
            std::thread::spawn(move || verifier.run(&progress, Duration::from_secs(30)).map(|()| verifier))
        };
        std::thread::sleep(Duration::from_millis(500));
        let took = server.signal_and_wait(signal);
        assert!(took < Duration::from_secs(2), "SIG{signal} under load took {took:?}");
        let file = server.disk_file("busy");
        assert!(vhdx_log_is_empty(&file), "SIG{signal}: the log holds something");
        tool_ok("qemu-img", &["check", "-f", "vhdx", text(&file)]);
        server.start_again();
        progress.stop.store(true, Ordering::Relaxed);
        let mut verifier = worker.join().expect("the verifier's thread").unwrap_or_else(|e| panic!("{e}"));
        while verifier.check_all().is_err() {
            verifier.reconnect_within(Duration::from_secs(10)).unwrap_or_else(|e| panic!("{e}"));
        }
        assert_eq!(verifier.summary().finding_count, 0, "{}", verifier.summary());
        assert!(verifier.summary().writes > 0, "{}", verifier.summary());
    }
}
