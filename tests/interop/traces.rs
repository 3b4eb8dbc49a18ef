//! What a disk is asked for, recorded by the server and read by the instrument's own reader.

use std::time::{Duration, Instant};

use perf::load::{Action, Pace, Plan, Trace};

use crate::server::{Server, text};

/// Commands in a known order.
fn script() -> Trace {
    let mut random = perf::random::Random::new(9);
    let mut text = "disk 131072 512\n".to_owned();
    for number in 0..150 {
        let (lba, blocks) = (random.below(100_000), 8 << random.below(4));
        let line = match random.below(6) {
            0 => format!("{number} write {lba} {blocks}\n"),
            1 => format!("{number} write-fua {lba} {blocks}\n"),
            2 => format!("{number} flush 0 0\n"),
            3 => format!("{number} unmap {lba} {blocks}\n"),
            _ => format!("{number} read {lba} {blocks}\n"),
        };
        text.push_str(&line);
    }
    Trace::from_text(&text).expect("a trace")
}

/// What was asked for, without when.
fn asked(trace: &Trace) -> Vec<(Action, bool, u64, u32)> {
    trace.records.iter().map(|r| (r.action, r.fua, r.lba, r.blocks)).collect()
}

/// Record a disk of this format while a script is replayed on it.
fn recorded_as_asked(format: &str) {
    let server = Server::start();
    let iqn = "iqn.2026-11.io.lunaring:traces";
    server.ok(&["target", "create", "t", "--iqn", iqn]);
    server.ok(&["target", "allow", "t", "any"]);
    server.ok(&["disk", "create", "d", "--size", "64M", "--format", format]);
    server.ok(&["target", "map", "t", "d"]);
    let script = script();
    let expected = asked(&script);
    let file = server.folder.path().join("d.trace");
    let file_name = file.to_str().expect("text").to_owned();
    let record = || server.lunaring(&["trace", "record", "d", "--seconds", "10", "--to", &file_name, "--json"]);
    let began = Instant::now();
    std::thread::scope(|scope| {
        let recorder = scope.spawn(record);
        std::thread::sleep(Duration::from_millis(1500));
        let mut plan = Plan::new(server.portals[0]);
        (plan.wishes, plan.luns, plan.depth) = (Some(server.wishes(iqn)), vec![0], 1);
        (plan.pace, plan.trace) = (Pace::Closed, Some(script.clone().into()));
        let report = plan.run().expect("a replay");
        assert_eq!((report.ios as usize, report.errors), (script.records.len(), 0), "{report}");
        assert!(began.elapsed() < Duration::from_secs(9), "the replay must end before the recording does");
        let recorded = recorder.join().expect("the recorder");
        assert!(recorded.status.success(), "{}", String::from_utf8_lossy(&recorded.stderr));
    });
    let trace = Trace::parse(&std::fs::read(&file).expect("the trace")).expect("a trace");
    assert_eq!((trace.block_len, trace.disk_blocks, trace.missing), (512, 131_072, 0));
    assert_eq!(asked(&trace), expected);
    let (first, last) = (trace.records[0].at_us, trace.records[expected.len() - 1].at_us);
    assert!(first > 1_000_000 && last > first && last < 10_000_000, "from {first} to {last} us");
    // A file that exists is not written over.
    let said = server.refused(&["trace", "record", "d", "--seconds", "1", "--to", &file_name]);
    assert!(said.contains("d.trace"), "{said}");
}

#[test]
fn a_trace_holds_what_a_memory_disk_was_asked_for() {
    recorded_as_asked("memory");
}

#[test]
fn a_trace_holds_what_a_vhdx_was_asked_for() {
    recorded_as_asked("vhdx");
}

#[test]
fn one_recorder_at_a_time() {
    let server = Server::start();
    server.ok(&["disk", "create", "d", "--size", "64M", "--format", "memory"]);
    let file = |name: &str| server.folder.path().join(name).to_str().expect("text").to_owned();
    std::thread::scope(|scope| {
        let first = scope.spawn(|| server.lunaring(&["trace", "record", "d", "--seconds", "3", "--to", &file("a")]));
        std::thread::sleep(Duration::from_millis(1000));
        let second = server.lunaring(&["trace", "record", "d", "--seconds", "1", "--to", &file("b")]);
        let said = String::from_utf8_lossy(&second.stderr).into_owned();
        assert!(!second.status.success() && said.contains("recorded already"), "{said}");
        assert!(!std::path::Path::new(&file("b")).exists(), "what was not recorded leaves no file");
        assert!(first.join().expect("the recorder").status.success());
    });
    server.ok(&["trace", "record", "d", "--seconds", "1", "--to", &file("b")]);
}

/// Somebody who presses Ctrl-C leaves nothing behind: no file, and a disk that can be recorded.
#[test]
fn a_recording_ends_with_who_wanted_it() {
    let server = Server::start();
    server.ok(&["disk", "create", "d", "--size", "64M", "--format", "memory"]);
    let (given_up, whole) = (server.folder.path().join("given-up"), server.folder.path().join("whole"));
    let mut first = std::process::Command::new(crate::server::LUNARING)
        .args(["trace", "record", "d", "--seconds", "60", "--to", text(&given_up)])
        .env("LUNARING_SOCKET", server.socket())
        .spawn()
        .expect("the recorder");
    let patience = Instant::now() + Duration::from_secs(10);
    while !given_up.exists() {
        assert!(Instant::now() < patience, "the recording has not begun");
        std::thread::sleep(Duration::from_millis(20));
    }
    first.kill().expect("it can be ended");
    first.wait().expect("it has ended");
    while given_up.exists() {
        assert!(Instant::now() < patience, "the file of a recording that was given up is still there");
        std::thread::sleep(Duration::from_millis(20));
    }
    server.ok(&["trace", "record", "d", "--seconds", "1", "--to", text(&whole)]);
}
