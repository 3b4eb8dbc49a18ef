//! The servers that are compared: started on a CPU of their own with everything they keep in one folder, and ended.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a server may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long it may take to end before it is killed.
const END_LIMIT: Duration = Duration::from_secs(5);

/// A process that ends with this value.
#[derive(Debug)]
struct Process(Child);

impl Process {
    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.pid().to_string()).stderr(Stdio::null()).status();
        let began = Instant::now();
        while began.elapsed() < END_LIMIT {
            if !matches!(self.0.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `program` on these CPUs.
fn pinned(program: &Path, cpus: &str) -> Command {
    let mut command = Command::new("taskset");
    command.arg("-c").arg(cpus).arg(program).stdin(Stdio::null());
    command
}

fn spawn(mut command: Command) -> Result<Process, String> {
    let what = format!("{command:?}");
    command.spawn().map(Process).map_err(|e| format!("{what}: {e}"))
}

/// Run to its end; what it wrote to standard error is the error.
fn run(mut command: Command) -> Result<(), String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim_end()))
}

fn free_port() -> Result<u16, String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|e| format!("no free port: {e}"))?;
    Ok(listener.local_addr().map_err(|e| format!("no free port: {e}"))?.port())
}

/// A running `perf bare`.
#[derive(Debug)]
pub struct Bare {
    process: Process,
    /// Where it listens.
    pub portal: SocketAddr,
}

impl Bare {
    /// Start it on this CPU; spinning, or with a file behind it.
    pub fn start(cpus: &str, spin: bool, file: Option<&Path>) -> Result<Bare, String> {
        let own = std::env::current_exe().map_err(|e| format!("the path of this program: {e}"))?;
        let mut command = pinned(&own, cpus);
        command.args(["bare", "--portal", "127.0.0.1:0"]).stdout(Stdio::piped());
        if spin {
            command.arg("--spin");
        }
        if let Some(file) = file {
            command.arg("--file").arg(file);
        }
        let mut process = spawn(command)?;
        let mut line = String::new();
        if let Some(out) = process.0.stdout.take() {
            BufReader::new(out).read_line(&mut line).map_err(|e| format!("perf bare: {e}"))?;
        }
        let portal = line.strip_prefix("perf bare: ").and_then(|rest| rest.split(',').next()?.parse().ok());
        let portal = portal.ok_or_else(|| format!("perf bare did not say where it listens: '{line}'"))?;
        Ok(Bare { process, portal })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }
}

/// The program under test, and the CPUs that its own threads and clients may use.
#[derive(Clone, Debug)]
pub struct Launcher {
    program: PathBuf,
    allowed: String,
}

impl Launcher {
    /// This program on the CPUs that this process may use now; what is started inherits a later pin otherwise.
    pub fn new(program: &Path) -> Launcher {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        Launcher { program: program.to_owned(), allowed: allowed.unwrap_or("0").trim().to_owned() }
    }

    fn command(&self) -> Command {
        pinned(&self.program, &self.allowed)
    }
}

/// A running `lunaring serve` and its client commands.
#[derive(Debug)]
pub struct Lunaring {
    process: Option<Process>,
    launcher: Launcher,
    folder: PathBuf,
    cpus: String,
    /// Where it listens.
    pub portal: SocketAddr,
}

/// The target that all disks of a [`Lunaring`] belong to.
pub const TARGET: &str = "iqn.2026-11.io.lunaring:compare";

impl Lunaring {
    /// Start it with a shard on each of these CPUs; its state goes into a new folder.
    pub fn start(launcher: &Launcher, folder: &Path, cpus: &str) -> Result<Lunaring, String> {
        fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        let mut server = Lunaring {
            process: None,
            launcher: launcher.clone(),
            folder: folder.to_owned(),
            cpus: cpus.to_owned(),
            portal: SocketAddr::from(([127, 0, 0, 1], free_port()?)),
        };
        server.start_again()?;
        server.command(&["target", "create", "compare", "--iqn", TARGET])?;
        server.command(&["target", "allow", "compare", "any"])?;
        Ok(server)
    }

    /// Start one whose `config.json` is this.
    pub fn start_configured(launcher: &Launcher, folder: &Path, cpus: &str, config: &str) -> Result<Lunaring, String> {
        let state = folder.join("state");
        fs::create_dir_all(&state).map_err(|e| format!("{}: {e}", state.display()))?;
        fs::write(state.join("config.json"), config).map_err(|e| format!("{}: {e}", state.display()))?;
        let mut server = Lunaring {
            process: None,
            launcher: launcher.clone(),
            folder: folder.to_owned(),
            cpus: cpus.to_owned(),
            portal: SocketAddr::from(([127, 0, 0, 1], free_port()?)),
        };
        server.start_again()?;
        Ok(server)
    }

    fn start_again(&mut self) -> Result<(), String> {
        let log = self.folder.join("log");
        let log_file = File::options().create(true).append(true).open(&log).map_err(|e| format!("{log:?}: {e}"))?;
        let log_twin = log_file.try_clone().map_err(|e| format!("{log:?}: {e}"))?;
        let mut command = self.launcher.command();
        command.arg("serve").arg("--state").arg(self.folder.join("state"));
        command.args(["--portal", &self.portal.to_string(), "--cores", &self.cpus]);
        command.stdin(Stdio::null()).stdout(log_file).stderr(log_twin);
        let mut process = spawn(command)?;
        let began = Instant::now();
        while self.command(&["session", "list"]).is_err() {
            if began.elapsed() > START_LIMIT || !matches!(process.0.try_wait(), Ok(None)) {
                let said = fs::read_to_string(&log).unwrap_or_default();
                return Err(format!("{} does not serve:\n{said}", self.launcher.program.display()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.process = Some(process);
        Ok(())
    }

    /// Run a client command.
    pub fn command(&self, arguments: &[&str]) -> Result<(), String> {
        let mut command = self.launcher.command();
        command.args(arguments).env("LUNARING_SOCKET", self.folder.join("state/control.sock"));
        run(command)
    }

    /// Create a disk and map it as this LUN.
    pub fn disk(&self, name: &str, lun: u16, options: &[&str]) -> Result<(), String> {
        self.command(&[&["disk", "create", name], options].concat())?;
        self.command(&["target", "map", "compare", name, "--lun", &lun.to_string()])
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().map_or(0, Process::pid)
    }
}

/// A running tgtd, as Debian packages it.
#[derive(Debug)]
pub struct Tgt {
    process: Process,
    /// Where it listens.
    pub portal: SocketAddr,
}

/// The name of tgt's target.
pub const TGT_TARGET: &str = "iqn.2026-11.io.lunaring:compare-tgt";

impl Tgt {
    /// Start `tgtd`, with a null disk as LUN 1 and this file as LUN 2. `runner` starts programs that are only unpacked.
    pub fn start(runner: Option<&Path>, folder: &Path, cpus: &str, file: &Path) -> Result<Tgt, String> {
        fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        let port = free_port()?;
        let portal = SocketAddr::from(([127, 0, 0, 1], port));
        let socket = folder.join("tgtd.socket");
        let program = |name: &str| {
            let mut command = Command::new("taskset");
            command.args(["-c", cpus]).args(runner).arg(name).env("TGT_IPC_SOCKET", &socket);
            command.stdin(Stdio::null()).stdout(Stdio::null());
            command
        };
        let mut daemon = program("tgtd");
        daemon.args(["-f", "--iscsi", &format!("portal={portal}")]).stderr(Stdio::null());
        let process = spawn(daemon)?;
        let administer = |arguments: &str| {
            let mut command = program("tgtadm");
            command.args(["--lld", "iscsi"]).args(arguments.split(' ')).stderr(Stdio::piped());
            run(command)
        };
        let new_target = format!("--op new --mode target --tid 1 -T {TGT_TARGET}");
        let began = Instant::now();
        while let Err(e) = administer(&new_target) {
            if began.elapsed() > Duration::from_secs(5) {
                return Err(format!("tgtd does not start: {e}"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let file = file.display();
        administer("--op new --mode logicalunit --tid 1 --lun 1 --bstype null -b null")?;
        administer(&format!("--op new --mode logicalunit --tid 1 --lun 2 --bstype aio -b {file}"))
            .or_else(|_| administer(&format!("--op new --mode logicalunit --tid 1 --lun 2 -b {file}")))?;
        for digest in ["HeaderDigest", "DataDigest"] {
            administer(&format!("--op update --mode target --tid 1 --name {digest} --value CRC32C,None"))?;
        }
        administer("--op bind --mode target --tid 1 -I ALL")?;
        let reachable = TcpStream::connect_timeout(&portal, Duration::from_secs(1));
        reachable.map_err(|e| format!("tgtd at {portal}: {e}"))?;
        Ok(Tgt { process, portal })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }
}

/// A new file of so many bytes, all of them written, for direct I/O in place.
pub fn written_file(path: &Path, bytes: u64) -> Result<(), String> {
    let write = || {
        let mut file = File::create(path)?;
        let block = vec![0x5a; 1 << 20];
        for _ in 0..bytes.div_ceil(1 << 20) {
            std::io::Write::write_all(&mut file, &block)?;
        }
        file.sync_all()
    };
    write().map_err(|e| format!("{}: {e}", path.display()))
}
