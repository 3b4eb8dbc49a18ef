//! The program as its operator meets it: start, commands from several clients, crashes between commands, and the end.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

const LUNARING: &str = env!("CARGO_BIN_EXE_lunaring");

/// A server that runs until it is ended or dropped.
struct Server {
    child: Child,
    /// What it said when it was ready.
    ready: Value,
}

impl Server {
    fn start(arguments: &[&str]) -> Server {
        let mut child = Command::new(LUNARING)
            .args(arguments)
            .arg("--json")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().expect("its output"));
        out.read_line(&mut line).expect("its first line");
        let ready = serde_json::from_str(&line).unwrap_or_else(|_| {
            let mut error = String::new();
            let mut stderr = child.stderr.take().expect("its errors");
            let _ = stderr.read_to_string(&mut error);
            panic!("it did not start: {line}{error}")
        });
        Server { child, ready }
    }

    fn serve(state: &Path) -> Server {
        Server::start(&["serve", "--state", state.to_str().expect("text")])
    }

    fn socket(&self) -> PathBuf {
        PathBuf::from(self.ready["socket"].as_str().expect("the socket"))
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().expect("kill runs").success());
    }

    /// SIGTERM; gives the exit status, how long it took and what was said on standard error.
    fn end(mut self) -> (Option<i32>, Duration, String) {
        let begun = Instant::now();
        self.signal("-TERM");
        let status = self.child.wait().expect("it ends");
        let took = begun.elapsed();
        let mut said = String::new();
        self.child.stderr.take().expect("its errors").read_to_string(&mut said).expect("text");
        (status.code(), took, said)
    }

    fn kill_9(mut self) {
        self.child.kill().expect("it is killed");
        self.child.wait().expect("it is gone");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn client(socket: &Path, arguments: &[&str]) -> Output {
    Command::new(LUNARING).args(arguments).arg("--socket").arg(socket).output().expect("the client runs")
}

/// A client command that must succeed; gives what it printed.
fn ok(socket: &Path, arguments: &[&str]) -> String {
    let output = client(socket, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn json(socket: &Path, arguments: &[&str]) -> Value {
    let text = ok(socket, &[arguments, &["--json"]].concat());
    serde_json::from_str(&text).unwrap_or_else(|_| panic!("{arguments:?} did not print JSON: {text}"))
}

/// The one line on standard error of a command that must be refused.
fn refused(socket: &Path, arguments: &[&str]) -> String {
    let output = client(socket, arguments);
    let said = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
    assert!(said.starts_with("lunaring: ") && said.trim_end().lines().count() == 1, "{arguments:?}: {said}");
    said
}

fn free_portal() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address")
}

#[test]
fn every_command_prints_json_when_asked() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = Server::serve(dir.path());
    let socket = server.socket();
    let secret = dir.path().join("secret");
    fs::write(&secret, "a-secret-of-length\n").expect("a file");
    let secret = secret.to_str().expect("text");
    let portal = free_portal().to_string();
    for (arguments, field) in [
        (&["disk", "create", "d", "--size", "1M", "--format", "memory"][..], "name"),
        (&["disk", "list"], "disks"),
        (&["disk", "show", "d"], "state"),
        (&["target", "create", "t"], "iqn"),
        (&["target", "map", "t", "d"], "lun"),
        (&["target", "allow", "t", "any"], "allow"),
        (&["target", "auth", "t", "--chap-user", "u", "--chap-secret-file", secret], "auth"),
        (&["target", "auth", "t", "--none"], "auth"),
        (&["discovery", "auth", "--chap-user", "u", "--chap-secret-file", secret], "auth"),
        (&["discovery", "show"], "auth"),
        (&["chap", "algorithms", "sha256,sha3-256"], "algorithms"),
        (&["chap", "show"], "algorithms"),
        (&["isns", "set", "127.0.0.1:9"], "entity"),
        (&["isns", "show"], "registered"),
        (&["isns", "set", "none"], "registered"),
        (&["discovery", "auth", "--none"], "auth"),
        (&["target", "redirect", "t", "192.0.2.1:3260", "--permanent"], "redirects"),
        (&["target", "redirect", "t", "--none"], "redirects"),
        (&["target", "list"], "targets"),
        (&["target", "show", "t"], "luns"),
        (&["target", "deny", "t", "any"], "allow"),
        (&["portal", "add", &portal], "portals"),
        (&["portal", "list"], "portals"),
        (&["session", "list"], "sessions"),
        (&["stats"], "shards"),
        (&["stats", "--disk", "d"], "disks"),
    ] {
        let answer = json(&socket, arguments);
        assert!(answer.get(field).is_some(), "{arguments:?}: no '{field}' in {answer}");
        assert!(!answer.to_string().contains("a-secret-of-length"), "{arguments:?} shows a secret");
    }
    let v6 = TcpListener::bind("[::1]:0").expect("a port").local_addr().expect("its address").to_string();
    ok(&socket, &["portal", "add", &v6]);
    TcpStream::connect(&v6).expect("it listens there");
    for arguments in [
        &["portal", "remove", &portal][..],
        &["portal", "remove", &v6],
        &["target", "unmap", "t", "--lun", "0"],
        &["target", "delete", "t"],
        &["disk", "delete", "d"],
    ] {
        assert!(json(&socket, arguments).is_object(), "{arguments:?}");
    }
}

#[test]
fn the_end_is_clean_and_quick_even_with_a_connection_in_login() {
    let dir = tempfile::tempdir().expect("a folder");
    let portal = free_portal();
    let server =
        Server::start(&["serve", "--state", dir.path().to_str().expect("text"), "--portal", &portal.to_string()]);
    let socket = server.socket();
    ok(&socket, &["disk", "create", "d", "--size", "64M"]);
    let _connection = TcpStream::connect(portal).expect("the portal listens");
    let (status, took, said) = server.end();
    assert_eq!((status, said.as_str()), (Some(0), ""));
    assert!(took < Duration::from_secs(2), "it took {took:?}");
    assert!(!socket.exists(), "the control socket is gone");
    assert!(TcpStream::connect(portal).is_err(), "nothing listens any more");
    assert!(client(&socket, &["disk", "list"]).status.code() == Some(1));
}

#[test]
fn a_server_that_was_killed_leaves_nothing_in_the_way_of_the_next() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = Server::serve(dir.path());
    let socket = server.socket();
    ok(&socket, &["target", "create", "t"]);
    server.kill_9();
    assert!(socket.exists(), "as a killed server leaves it");
    assert!(refused(&socket, &["target", "list"]).contains("no server listens"));
    let server = Server::serve(dir.path());
    assert_eq!(json(&server.socket(), &["target", "list"])["targets"][0]["name"], "t");
}

#[test]
fn after_a_kill_between_disk_commands_files_and_configuration_agree() {
    let dir = tempfile::tempdir().expect("a folder");
    let elsewhere = dir.path().join("elsewhere");
    fs::create_dir(&elsewhere).expect("a folder");
    let state = dir.path().join("state");
    let mut socket = PathBuf::new();
    for round in 0..8u64 {
        let server = Server::serve(&state);
        socket = server.socket();
        agree(&socket, &state, &elsewhere, round);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let file = elsewhere.join(format!("e{round}.raw"));
                let file = file.to_str().expect("text");
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let name = format!("d{round}-{number}");
                    let _ = client(&socket, &["disk", "create", &name, "--size", "8M"]);
                    let _ =
                        client(&socket, &["disk", "create", "e", "--size", "1M", "--format", "raw", "--file", file]);
                    let _ = client(&socket, &["disk", "delete", "e"]);
                    if number % 2 == 0 {
                        let _ = client(&socket, &["disk", "delete", &name]);
                    }
                }
            });
            std::thread::sleep(Duration::from_millis(60 + round * 37));
            server.kill_9();
            stop.store(true, Ordering::Relaxed);
        });
    }
    let _server = Server::serve(&state);
    agree(&socket, &state, &elsewhere, 8);
}

/// Every disk has its file and is online; every file has its disk; nothing else is left.
fn agree(socket: &Path, state: &Path, elsewhere: &Path, round: u64) {
    let listed = json(socket, &["disk", "list"]);
    let disks = listed["disks"].as_array().expect("a list");
    assert!(disks.iter().all(|disk| disk["state"] == "online"), "round {round}: {listed}");
    let wanted: BTreeSet<PathBuf> =
        disks.iter().map(|disk| PathBuf::from(disk["file"].as_str().expect("a file"))).collect();
    let found: BTreeSet<PathBuf> = [state.join("disks"), elsewhere.to_owned()]
        .iter()
        .flat_map(|folder| fs::read_dir(folder).expect("a folder"))
        .map(|entry| entry.expect("an entry").path().canonicalize().expect("a path"))
        .collect();
    assert_eq!(found, wanted, "round {round}");
    assert!(!state.join("change.json").exists(), "round {round}");
}

#[test]
fn clients_at_once_all_get_their_own() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = Server::serve(dir.path());
    let socket = server.socket();
    std::thread::scope(|scope| {
        for client in 0..4 {
            let socket = &socket;
            scope.spawn(move || {
                for number in 0..4 {
                    let (disk, target) = (format!("d{client}-{number}"), format!("t{client}-{number}"));
                    ok(socket, &["disk", "create", &disk, "--size", "1G", "--format", "null"]);
                    ok(socket, &["target", "create", &target]);
                    ok(socket, &["target", "map", &target, &disk]);
                }
            });
        }
    });
    let targets = json(&socket, &["target", "list"]);
    let targets = targets["targets"].as_array().expect("a list");
    assert_eq!(targets.len(), 16);
    for target in targets {
        let name = target["name"].as_str().expect("a name");
        assert_eq!(target["luns"][0]["disk"], name.replace('t', "d"));
    }
}

#[test]
fn another_user_is_told_that_the_socket_is_not_theirs() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = Server::serve(&dir.path().join("state"));
    let socket = server.socket();
    let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode(&socket), 0o600);
    assert_eq!(mode(&dir.path().join("state")), 0o700);
    assert_eq!(mode(&dir.path().join("state/config.json").with_file_name("lock")), 0o600);
    // Only root can be another user; for anybody else the modes above are the whole proof.
    if !Command::new("id").arg("-u").output().is_ok_and(|id| id.stdout == b"0\n") {
        return;
    }
    for folder in [dir.path(), &dir.path().join("state")] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).expect("a mode");
    }
    let program = dir.path().join("lunaring");
    fs::copy(LUNARING, &program).expect("a copy that everybody can run");
    let as_nobody = |socket: &Path| {
        let mut list = Command::new(&program);
        list.args(["disk", "list", "--socket"]).arg(socket).uid(65534).gid(65534);
        // A process that another test forks may hold the fresh copy open for a moment.
        let output = (0..100).find_map(|_| match list.output() {
            Err(e) if e.kind() == ErrorKind::ExecutableFileBusy => {
                std::thread::sleep(Duration::from_millis(20));
                None
            }
            result => Some(result),
        });
        let output = output.expect("the copy is not busy any more").expect("the client runs");
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).expect("text")
    };
    // The mode stops everyone but a process that kept root's right to ignore modes; the server stops that one.
    let said = as_nobody(&socket);
    assert!(said.contains("is not yours") || said.contains("may not control this server"), "{said}");
    // Even if somebody opens the socket's mode, the server looks at who it is.
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).expect("a mode");
    assert!(as_nobody(&socket).contains("user 65534 may not control this server"), "{}", as_nobody(&socket));
}

#[test]
fn an_idle_server_does_not_wake_up() {
    let dir = tempfile::tempdir().expect("a folder");
    let portal = free_portal();
    let server =
        Server::start(&["serve", "--state", dir.path().to_str().expect("text"), "--portal", &portal.to_string()]);
    ok(&server.socket(), &["disk", "create", "d", "--size", "64M"]);
    std::thread::sleep(Duration::from_millis(300));
    let before = wake_ups(server.child.id());
    std::thread::sleep(Duration::from_millis(1500));
    let after = wake_ups(server.child.id());
    assert!(after - before <= 2, "{} wake-ups in 1.5 s of idleness", after - before);
}

/// How often the threads of a process have gone to sleep so far.
fn wake_ups(pid: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("its threads");
    let of_thread = |path: PathBuf| -> u64 {
        let status = fs::read_to_string(path.join("status")).expect("its status");
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).expect("the count");
        line.trim().parse().expect("a number")
    };
    tasks.map(|task| of_thread(task.expect("a thread").path())).sum()
}

#[test]
fn the_demo_names_its_port_and_keeps_its_disk() {
    let dir = tempfile::tempdir().expect("a folder");
    // Whoever has it: the usual port is taken now.
    let _taken = TcpListener::bind("127.0.0.1:3260");
    let demo = || Server::start(&["demo", "--dir", dir.path().to_str().expect("text")]);
    let first = demo();
    let portal: SocketAddr =
        first.ready["portals"][0]["address"].as_str().expect("a portal").parse().expect("an address");
    assert!(portal.port() > 3260 && portal.port() < 3300, "{portal}");
    TcpStream::connect(portal).expect("it listens there");
    let uuid = first.ready["disks"][0]["uuid"].clone();
    assert_eq!(first.ready["targets"][0]["iqn"], "iqn.2026-11.io.lunaring:demo");
    assert_eq!(first.ready["disks"][0]["size_bytes"], 10u64 << 30);
    assert_eq!(first.end().0, Some(0));
    let again = demo();
    assert_eq!(again.ready["disks"][0]["uuid"], uuid);
    assert_eq!(again.ready["disks"].as_array().map(Vec::len), Some(1));
}
