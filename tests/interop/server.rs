//! A real `lunaring serve` process in a folder of its own, and the client commands as people type them.

use std::fs;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use perf::cost::Usage;
use perf::login::Wishes;

/// The program under test.
pub const LUNARING: &str = env!("CARGO_BIN_EXE_lunaring");

/// How a server is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Addresses to listen on; each gets a free port.
    pub addresses: Vec<IpAddr>,
    /// `--cores`, if not the default.
    pub cores: Option<&'static str>,
    /// Only the io_uring features of the oldest kernel.
    pub baseline: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { addresses: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)], cores: None, baseline: false }
    }
}

/// The four ways in which the whole client story is run.
pub fn every_way() -> Vec<(&'static str, Options)> {
    let normal = Options::default();
    vec![
        ("default", normal.clone()),
        ("one shard", Options { cores: Some("0"), ..normal.clone() }),
        ("two shards", Options { cores: Some("0,1"), ..normal.clone() }),
        ("baseline features", Options { baseline: true, ..normal }),
    ]
}

/// A running server; killed when dropped.
#[derive(Debug)]
pub struct Server {
    child: Option<Child>,
    options: Options,
    /// Where it keeps everything.
    pub folder: tempfile::TempDir,
    /// Its portals, in the order of the options' addresses.
    pub portals: Vec<SocketAddr>,
}

impl Server {
    /// Start one on IPv4 loopback.
    pub fn start() -> Server {
        Server::start_with(Options::default())
    }

    /// Start one.
    pub fn start_with(options: Options) -> Server {
        let folder = tempfile::Builder::new().prefix("interop-").tempdir_in(env!("CARGO_TARGET_TMPDIR"));
        let folder = folder.expect("a folder under target/");
        let portals = options.addresses.iter().map(|address| free_port(*address)).collect();
        let mut server = Server { child: None, options, folder, portals };
        server.start_again();
        server
    }

    /// Start the same server again after it ended, with the same folder and portals.
    pub fn start_again(&mut self) {
        self.child = Some(self.spawn());
        self.await_ready();
    }

    fn spawn(&self) -> Child {
        let mut command = Command::new(LUNARING);
        command.arg("serve").arg("--state").arg(self.state());
        for portal in &self.portals {
            command.arg("--portal").arg(portal.to_string());
        }
        if let Some(cores) = self.options.cores {
            command.args(["--cores", cores]);
        }
        if self.options.baseline {
            command.args(["--ring-features", "baseline"]);
        }
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_path()).expect("the log file");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("the log file")).stderr(log);
        command.spawn().expect("lunaring starts")
    }

    /// Wait until its portals and its control socket answer.
    fn await_ready(&mut self) {
        let began = Instant::now();
        loop {
            let listening =
                self.portals.iter().all(|p| TcpStream::connect_timeout(p, Duration::from_millis(200)).is_ok());
            if listening && self.lunaring(&["session", "list"]).status.success() {
                return;
            }
            let child = self.child.as_mut().expect("a running server");
            if let Some(status) = child.try_wait().expect("wait") {
                panic!("lunaring serve ended with {status}:\n{}", self.log());
            }
            assert!(began.elapsed() < Duration::from_secs(20), "not ready after 20 s:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Its state folder.
    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// Its default control socket.
    pub fn socket(&self) -> PathBuf {
        self.state().join("control.sock")
    }

    /// A file beside its state folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("serve.log")
    }

    /// What it has said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("a running server").id()
    }

    /// What it has used so far.
    pub fn usage(&self) -> Usage {
        Usage::of(self.pid()).unwrap_or_else(|e| panic!("the server is gone ({e}):\n{}", self.log()))
    }

    /// Whether it still runs.
    pub fn is_alive(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().expect("wait").is_none())
    }

    /// Run a client command, whatever comes of it.
    pub fn lunaring(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(LUNARING);
        command.args(arguments).arg("--socket").arg(self.socket());
        command.output().expect("lunaring runs")
    }

    /// Run a client command that must succeed; what it printed.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.lunaring(arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "lunaring {arguments:?}: {}\n{text}{errors}\n{}", output.status, self.log());
        text
    }

    /// Run a client command with `--json`.
    pub fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let text = self.ok(&[arguments, &["--json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("lunaring {arguments:?} --json: {e}:\n{text}"))
    }

    /// Run a client command that must be refused with one clear line and exit status 1; the line.
    pub fn refused(&self, arguments: &[&str]) -> String {
        one_clear_line(&self.lunaring(arguments), arguments)
    }

    /// Create a disk, a target with it as LUN 0, and allow everybody; the target's IQN.
    pub fn ready_target(&self, name: &str, disk: &[&str]) -> String {
        self.ok(&[&["disk", "create", name], disk].concat());
        self.target_with(name, name)
    }

    /// Create a target with an existing disk as LUN 0, and allow everybody; the target's IQN.
    pub fn target_with(&self, name: &str, disk: &str) -> String {
        let iqn = format!("iqn.2026-11.io.lunaring:{name}");
        self.ok(&["target", "create", name, "--iqn", &iqn]);
        self.ok(&["target", "map", name, disk, "--lun", "0"]);
        self.ok(&["target", "allow", name, "any"]);
        iqn
    }

    /// The file of a disk in the state folder.
    pub fn disk_file(&self, name: &str) -> PathBuf {
        let found = fs::read_dir(self.state().join("disks")).expect("disks/").flatten().map(|entry| entry.path());
        let named = found.into_iter().find(|path| path.file_stem().is_some_and(|stem| stem == name));
        named.unwrap_or_else(|| panic!("no file of disk {name} in disks/"))
    }

    /// The URL of a logical unit on the first portal, as libiscsi and QEMU read it.
    pub fn url(&self, iqn: &str, lun: u16) -> String {
        format!("iscsi://{}/{iqn}/{lun}", self.portals[0])
    }

    /// Plain wishes for a session to this target.
    pub fn wishes(&self, iqn: &str) -> Wishes {
        Wishes::to_target(iqn)
    }

    /// Ask it to end (SIGTERM), and wait; how long it took.
    pub fn stop(&mut self) -> Duration {
        self.signal_and_wait("TERM")
    }

    /// Send this signal and wait for a clean end; how long it took.
    pub fn signal_and_wait(&mut self, signal: &str) -> Duration {
        let began = Instant::now();
        signal_process(self.pid(), signal);
        let mut child = self.child.take().expect("a running server");
        loop {
            if let Some(status) = child.try_wait().expect("wait") {
                assert!(status.success(), "ended with {status} after SIG{signal}:\n{}", self.log());
                return began.elapsed();
            }
            if began.elapsed() > Duration::from_secs(30) {
                let _ = child.kill();
                let _ = child.wait();
                panic!("still running 30 s after SIG{signal}:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// End it like a power switch ends a process.
    pub fn kill_9(&mut self) {
        let mut child = self.child.take().expect("a running server");
        child.kill().expect("kill");
        child.wait().expect("wait");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- what the server said:\n{}", self.log());
        }
    }
}

/// Run the program with these arguments to its end, at most 20 seconds.
pub fn lunaring(arguments: &[&str]) -> Output {
    let mut child = Command::new(LUNARING)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("lunaring starts");
    let began = Instant::now();
    while child.try_wait().expect("wait").is_none() {
        if began.elapsed() > Duration::from_secs(20) {
            let _ = child.kill();
            let mut said = String::new();
            let _ = child.stderr.take().expect("piped").read_to_string(&mut said);
            let _ = child.wait();
            panic!("lunaring {arguments:?} did not end:\n{said}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.wait_with_output().expect("output")
}

/// Exit status 1 and one line on stderr, which is returned.
pub fn one_clear_line(output: &Output, what: &[&str]) -> String {
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{what:?} must be refused with exit status 1; stderr:\n{errors}");
    let lines: Vec<&str> = errors.lines().collect();
    assert_eq!(lines.len(), 1, "{what:?} must be refused with one line, not:\n{errors}");
    assert!(lines[0].len() > 20 && !lines[0].contains("panicked"), "{what:?}: not a clear line: {}", lines[0]);
    lines[0].to_owned()
}

/// An address with a port that nobody listens on now. Below the ephemeral range, so that no outgoing connection takes
/// it while a server is restarted.
pub fn free_port(address: IpAddr) -> SocketAddr {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = 20_000 + (std::process::id() % 100) as u16 * 100;
    for _ in 0..1000 {
        let port = start + NEXT.fetch_add(1, Ordering::Relaxed) % 1000;
        if TcpListener::bind((address, port)).is_ok() {
            return SocketAddr::new(address, port);
        }
    }
    panic!("no free port from {start} on");
}

/// IPv4 and IPv6 loopback.
pub fn both_loopbacks() -> Vec<IpAddr> {
    vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]
}

/// Send a signal to one process.
pub fn signal_process(pid: u32, signal: &str) {
    let command = format!("kill -{signal} {pid}");
    assert!(Command::new("sh").args(["-c", &command]).status().expect("sh runs").success(), "{command}");
}

/// Run a tool of another project for at most a minute; its output, whether it succeeded or not.
pub fn tool(name: &str, arguments: &[&str]) -> (bool, String) {
    let output = Command::new("timeout").arg("60").arg(name).args(arguments).stdin(Stdio::null()).output();
    let output = output.expect("timeout (coreutils) runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert_ne!(output.status.code(), Some(127), "{name} is missing; tests/run installs what the tests need");
    assert_ne!(output.status.code(), Some(124), "{name} {arguments:?} did not end within a minute:\n{text}");
    (output.status.success(), text)
}

/// Run a tool that must succeed; what it said.
pub fn tool_ok(name: &str, arguments: &[&str]) -> String {
    let (ok, text) = tool(name, arguments);
    assert!(ok, "{name} {arguments:?} failed:\n{text}");
    text
}

/// A path as text.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("a path of ours is UTF-8")
}

/// A number from the environment, so that the same test is short in everyday use and long in `tests/run`.
pub fn count(variable: &str, everyday: u64) -> u64 {
    std::env::var(variable).ok().map_or(everyday, |v| v.parse().unwrap_or_else(|e| panic!("{variable}={v}: {e}")))
}

/// The LogGuid of a VHDX file's current header, and whether the log is empty (MS-VHDX 2.2.2: LogGuid zero).
pub fn vhdx_log_is_empty(path: &Path) -> bool {
    let mut bytes = vec![0; 1 << 20];
    fs::File::open(path).and_then(|mut file| file.read_exact(&mut bytes)).expect("the VHDX file's first megabyte");
    let current = [0x1_0000usize, 0x2_0000]
        .into_iter()
        .filter(|at| &bytes[*at..*at + 4] == b"head")
        .max_by_key(|at| u64::from_le_bytes(bytes[*at + 8..*at + 16].try_into().expect("8 bytes")))
        .expect("a VHDX header");
    bytes[current + 48..current + 64].iter().all(|b| *b == 0)
}
