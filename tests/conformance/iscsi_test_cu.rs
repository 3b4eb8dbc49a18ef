//! libiscsi's `iscsi-test-cu` 1.20, one process per test, against the table of expected verdicts beside this file.
//!
//! The program counts a test that it could not run as passed, and only a `[SKIPPED]` line of that test tells. So a
//! verdict is one of `pass`, `skip` and `fail`, and each one that is not the table's fails the run: a new failure, a
//! new skip, and a new pass too, which asks for the table to be brought up to date. `LUNARING_TEST_CU_TABLE=FILE`
//! writes it anew from what is found; `LUNARING_TEST_CU=full` runs all configurations instead of those that cover each
//! pair of choices.
//!
//! Seen to fail: whenever commands were switched on after the table was written, each by its name; and by the server
//! that a WRITE SAME had ended.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use crate::server::{Options, Server};
use crate::table::write_table;

const TABLE: &str = include_str!("iscsi_test_cu.tsv");

/// Tests that may run at a time: most of the time they wait.
const WORKERS: usize = 4;

/// The test that wants to find SANITIZE still at work five seconds later, and then waits by the minute: it has a disk
/// of its own, too large to be overwritten so fast, and runs beside the others.
const LONG_TEST: &str = "Sanitize.Reset";

/// A disk and a way to it. The table names these words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Configuration {
    format: &'static str,
    sector: &'static str,
    paths: &'static str,
    digest: &'static str,
}

impl Configuration {
    /// As the table writes it.
    pub fn name(&self) -> String {
        [self.format, self.sector, self.paths, self.digest].join("+")
    }

    /// Whether a row of the table is about this: `*`, or words of ours joined by `+`.
    pub fn matches(&self, place: &str) -> bool {
        let ours = [self.format, self.sector, self.paths, self.digest];
        place == "*" || place.split('+').all(|word| ours.contains(&word))
    }

    pub fn all() -> Vec<Configuration> {
        let mut all = vec![];
        for format in ["vhdx", "memory", "raw"] {
            for sector in ["512", "4096"] {
                for paths in ["one-path", "two-paths"] {
                    for digest in ["no-digest", "header-digest"] {
                        all.push(Configuration { format, sector, paths, digest });
                    }
                }
            }
        }
        all
    }

    /// Each pair of two choices is in one of these.
    fn pairs() -> Vec<Configuration> {
        let of = |format, sector, paths, digest| Configuration { format, sector, paths, digest };
        vec![
            of("vhdx", "512", "one-path", "no-digest"),
            of("vhdx", "4096", "two-paths", "header-digest"),
            of("memory", "4096", "one-path", "no-digest"),
            of("memory", "512", "two-paths", "header-digest"),
            of("raw", "512", "two-paths", "no-digest"),
            of("raw", "4096", "one-path", "header-digest"),
        ]
    }
}

/// One row: what is expected of a test in the configurations that `place` names.
#[derive(Clone, Copy, Debug)]
struct Row {
    test: &'static str,
    place: &'static str,
    verdict: &'static str,
    reason: &'static str,
}

fn table() -> Vec<Row> {
    let rows = TABLE.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    rows.map(|line| {
        let mut fields = line.split('\t');
        let mut field = || fields.next().unwrap_or_else(|| panic!("too few fields: {line}"));
        let row = Row { test: field(), place: field(), verdict: field(), reason: field() };
        assert!(["pass", "skip", "fail"].contains(&row.verdict), "{line}");
        assert!(row.verdict == "pass" || row.reason.len() > 10, "what does not pass has its reason: {line}");
        row
    })
    .collect()
}

/// The program: with the loader and the libraries that came with it.
fn program() -> Command {
    let run = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("iscsi-test-cu").join("run");
    assert!(run.exists(), "{} is missing: tests/unpack leaves it there (see tests/run)", run.display());
    let mut command = Command::new(run);
    command.arg("iscsi-test-cu");
    command
}

/// All tests that the program knows, `SUITE.TEST`.
fn tests() -> Vec<String> {
    let output = program().arg("--list").output().expect("iscsi-test-cu runs");
    let list = String::from_utf8_lossy(&output.stdout).into_owned();
    let names = list.lines().filter_map(|line| line.trim().strip_prefix("ALL."));
    let names: Vec<String> = names.filter(|name| name.contains('.')).map(str::to_owned).collect();
    assert_eq!(names.len(), 238, "iscsi-test-cu 1.20 has 238 tests");
    names
}

/// What a test's own part of the output says, and why.
fn verdict(said: &str) -> (&'static str, String) {
    let mut own = String::new();
    let mut lines = said.lines().skip_while(|line| !line.starts_with("  Test: "));
    let first = lines.next().and_then(|line| line.split_once("...")).map_or("", |(_, rest)| rest);
    for line in std::iter::once(first).chain(lines) {
        let ended = ["passed", "FAILED"].into_iter().find(|word| line.starts_with(word));
        match ended {
            Some("FAILED") => return ("fail", own),
            Some(_) => {
                let skipped = own.lines().find_map(|line| line.trim().strip_prefix("[SKIPPED] "));
                return skipped.map_or(("pass", String::new()), |why| ("skip", why.to_owned()));
            }
            None => own = own + line + "\n",
        }
    }
    ("fail", format!("no verdict:\n{said}"))
}

/// A server with what a run needs: two portals, and three ways to one disk.
struct Bench {
    server: Server,
    configuration: Configuration,
}

impl Bench {
    fn start(configuration: Configuration) -> Bench {
        let addresses = vec![IpAddr::V4(Ipv4Addr::LOCALHOST); 2];
        let server = Server::start_with(Options { addresses, cores: Some("0"), ..Options::default() });
        let disk = ["--size", "64M", "--sector-size", configuration.sector, "--format", configuration.format];
        server.ready_target("plain", &disk);
        server.ok(&["target", "create", "shown", "--iqn", "iqn.2026-11.io.lunaring:shown"]);
        server.ok(&["target", "map", "shown", "plain", "--lun", "0", "--read-only"]);
        server.ok(&["target", "allow", "shown", "any"]);
        let large = ["--size", "128T", "--sector-size", configuration.sector, "--format", "null"];
        server.ready_target("large", &large);
        server.target_with("chap", "plain");
        let secret = server.file("secret");
        std::fs::write(&secret, "a secret of more bytes\n").expect("a file");
        let secret = secret.to_str().expect("UTF-8");
        // The program offers all algorithms, and as Debian builds it knows the oldest only.
        let demand = ["target", "auth", "chap", "--chap-user", "tester", "--chap-secret-file", secret];
        server.ok(&[&demand[..], &["--chap-algorithms", "md5"]].concat());
        Bench { server, configuration }
    }

    /// The URL of the test's logical unit at one portal.
    fn url(&self, test: &str, portal: usize) -> String {
        let portal = self.server.portals[portal];
        let digest = if self.configuration.digest == "header-digest" { "?header_digest=crc32c" } else { "" };
        match test {
            _ if test.starts_with("iSCSICHAP.") => {
                format!("iscsi://tester%a secret of more bytes@{portal}/iqn.2026-11.io.lunaring:chap/0{digest}")
            }
            LONG_TEST => format!("iscsi://{portal}/iqn.2026-11.io.lunaring:large/0{digest}"),
            _ if test.starts_with("ReadOnly.") => format!("iscsi://{portal}/iqn.2026-11.io.lunaring:shown/0{digest}"),
            _ => format!("iscsi://{portal}/iqn.2026-11.io.lunaring:plain/0{digest}"),
        }
    }

    fn begin(&self, test: &str, expected: &str) -> Child {
        let program = program();
        // A failure that is expected may be a test that hangs.
        let limit = match test {
            LONG_TEST => "280",
            _ if expected == "fail" => "5",
            _ => "60",
        };
        let mut command = Command::new("timeout");
        command.arg("-k").arg("1").arg(limit).arg(program.get_program()).args(program.get_args());
        command.args(["--dataloss", "--allow-sanitize", "-t", &format!("ALL.{test}")]).arg(self.url(test, 0));
        if self.configuration.paths == "two-paths" {
            command.arg(self.url(test, 1));
        }
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("timeout (coreutils) runs")
    }

    fn end(&mut self, test: &str, child: Child) -> (&'static str, String) {
        let output = child.wait_with_output().expect("timeout (coreutils) runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        if !self.server.is_alive() {
            let log = self.server.log();
            panic!("{test} of {} ended the server:\n{said}\n{log}", self.configuration.name());
        }
        verdict(&said)
    }
}

/// What was found.
#[derive(Clone, Debug)]
pub struct Finding {
    pub test: String,
    pub configuration: Configuration,
    pub verdict: &'static str,
    /// Why it was not a pass.
    pub why: String,
}

/// All that was found, and what of it is not as the table says.
fn run(configuration: Configuration, names: &[String]) -> (Vec<Finding>, Vec<String>) {
    let mut bench = Bench::start(configuration);
    let table = table();
    let (mut wrong, mut all, mut counts) = (vec![], vec![], BTreeMap::new());
    let expected = |test: &str| {
        let row = table.iter().find(|row| row.test == test && configuration.matches(row.place));
        row.map_or("nothing", |row| row.verdict)
    };
    let mut long = Some(bench.begin(LONG_TEST, expected(LONG_TEST)));
    let others = names.iter().filter(|test| *test != LONG_TEST);
    for test in others.chain(names.iter().filter(|test| *test == LONG_TEST)) {
        let expected = expected(test);
        let child = if test == LONG_TEST { long.take() } else { None };
        let child = child.unwrap_or_else(|| bench.begin(test, expected));
        let (found, why) = bench.end(test, child);
        *counts.entry(found).or_insert(0) += 1;
        let why = why.trim().lines().next().unwrap_or_default().trim().to_owned();
        if found != expected {
            wrong.push(format!("{test} in {}: {found}, expected {expected}: {why}", configuration.name()));
        }
        all.push(Finding { test: test.clone(), configuration, verdict: found, why });
    }
    println!("{}: {counts:?}", configuration.name());
    bench.server.stop();
    (all, wrong)
}

#[test]
#[ignore = "takes minutes and needs iscsi-test-cu 1.20; tests/run fetches that and runs this"]
fn every_test_ends_as_the_table_says() {
    let full = std::env::var("LUNARING_TEST_CU").is_ok_and(|which| which == "full");
    let names = tests();
    let waiting = Mutex::new(if full { Configuration::all() } else { Configuration::pairs() });
    let results = Mutex::new((vec![], vec![]));
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Some(configuration) = { waiting.lock().expect("a lock").pop() } {
                    let (all, wrong) = run(configuration, &names);
                    let mut results = results.lock().expect("a lock");
                    results.0.extend(all);
                    results.1.extend(wrong);
                }
            });
        }
    });
    let (all, wrong) = results.into_inner().expect("a lock");
    if let Ok(path) = std::env::var("LUNARING_TEST_CU_TABLE") {
        let old = table().into_iter().map(|row| (row.test, row.place, row.verdict, row.reason)).collect::<Vec<_>>();
        std::fs::write(&path, write_table(&names, &all, &old)).unwrap_or_else(|e| panic!("{path}: {e}"));
    }
    assert!(wrong.is_empty(), "{} not as the table says:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_table_has_a_row_for_each_test_in_each_configuration() {
    let table = table();
    let mut names: Vec<&str> = table.iter().map(|row| row.test).collect();
    names.dedup();
    assert_eq!(names.len(), 238, "iscsi-test-cu 1.20 has 238 tests, each with its rows together");
    for test in names {
        for configuration in Configuration::all() {
            let row = table.iter().find(|row| row.test == test && configuration.matches(row.place));
            assert!(row.is_some(), "no row of {test} for {}", configuration.name());
        }
    }
}
