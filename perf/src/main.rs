//! The instrument's command line.

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use perf::compare::{self, Part};
use perf::load::{self, Mix, Order, Pace, Trace};
use perf::login::Wishes;
use perf::verify::{self, Progress, Verifier};
use perf::{bare, cost, login, storm};

#[derive(Parser)]
#[command(about = "An iSCSI initiator that measures, verifies and misbehaves")]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Load on logical units of one target (or on the reference server with --bare)
    Load(Load),
    /// Serve the bare reference protocol
    Bare {
        /// Where to listen
        #[arg(long, default_value = "127.0.0.1:3270")]
        portal: String,
        /// CPU to stay on
        #[arg(long)]
        pin_core: Option<usize>,
        /// Spin instead of waiting
        #[arg(long)]
        spin: bool,
        /// Serve the bytes of this file by direct io_uring operations, instead of the same bytes from memory
        #[arg(long)]
        file: Option<PathBuf>,
    },
    /// Ask a target for what a trace holds, at its pace or faster
    Replay(Replay),
    /// Print a trace as text, or make one from text
    Trace {
        /// The trace
        file: PathBuf,
        /// Make the trace from this text: `disk BLOCKS BYTES`, then lines `MICROSECONDS COMMAND LBA BLOCKS`
        #[arg(long)]
        from: Option<PathBuf>,
    },
    /// Measure servers beside the bare reference in one run, keep a history, draw a page of plots
    Compare(Compare),
    /// Write stamped blocks and find every acknowledged one again, across server restarts
    Verify(Verify),
    /// Many sessions at once doing verified I/O from one process
    Sessions(Sessions),
    /// Mutated PDUs in every phase
    Storm(Storm),
    /// List targets by SendTargets=All
    Discover {
        /// The server
        #[arg(long, default_value = "127.0.0.1:3260")]
        portal: String,
    },
}

#[derive(Args, Clone)]
struct Peer {
    /// The server
    #[arg(long, default_value = "127.0.0.1:3260")]
    portal: String,
    /// Target name
    #[arg(long, default_value = "iqn.2026-11.io.lunaring:demo")]
    target: String,
    /// Logical unit
    #[arg(long, default_value_t = 0)]
    lun: u16,
    /// CHAP user name, if the target demands CHAP (MD5)
    #[arg(long, requires = "chap_secret_file")]
    chap_user: Option<String>,
    /// File with the CHAP secret; a line end at its end does not count
    #[arg(long, requires = "chap_user")]
    chap_secret_file: Option<PathBuf>,
    /// Our own name
    #[arg(long, default_value = "iqn.2026-11.io.lunaring:perf")]
    initiator: String,
    /// Negotiate HeaderDigest=CRC32C
    #[arg(long)]
    header_digest: bool,
    /// Negotiate DataDigest=CRC32C
    #[arg(long)]
    data_digest: bool,
    /// Negotiate InitialR2T=Yes
    #[arg(long)]
    initial_r2t: bool,
    /// Negotiate ImmediateData=No
    #[arg(long)]
    no_immediate_data: bool,
}

#[derive(Args)]
struct Load {
    #[command(flatten)]
    peer: Peer,
    /// Bytes per I/O, or a mix with weights: 4K:70,64K:30 (K, M: powers of two)
    #[arg(long, default_value = "4K", value_parser = Mix::parse)]
    block_size: Mix,
    /// Commands in flight on each connection
    #[arg(long, default_value_t = 32)]
    depth: u32,
    /// Sessions
    #[arg(long, default_value_t = 1)]
    connections: u32,
    /// Logical units from --lun on, used equally often
    #[arg(long, default_value_t = 1)]
    luns: u16,
    /// Writes among a hundred I/Os; the others are reads
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(..=100))]
    write_percent: u8,
    /// random, sequential, zipf or zipf:EXPONENT
    #[arg(long, default_value = "random", value_parser = Order::parse)]
    order: Order,
    /// Open loop: so many I/Os per second on all connections together, whatever the server does
    #[arg(long)]
    rate: Option<f64>,
    /// Open loop: at random moments (Poisson), not evenly
    #[arg(long, requires = "rate")]
    poisson: bool,
    /// How long to measure
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Load before the measuring starts
    #[arg(long, default_value_t = 0.5)]
    warm_up_seconds: f64,
    /// Stay within the first so many bytes of each logical unit (0: all of it)
    #[arg(long, default_value = "0", value_parser = load::size)]
    span: u64,
    /// Microseconds to spin before sleeping while nothing arrives (by default 20; for ever with --rate)
    #[arg(long)]
    spin_us: Option<u64>,
    /// Seed of all choices
    #[arg(long, default_value_t = 0x1f2e)]
    seed: u64,
    /// CPU for the instrument to stay on
    #[arg(long)]
    pin_core: Option<usize>,
    /// The server's process, for its CPU time
    #[arg(long)]
    server_pid: Option<u32>,
    /// The server is `perf bare`
    #[arg(long)]
    bare: bool,
    /// JSON instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Replay {
    /// The trace
    file: PathBuf,
    #[command(flatten)]
    peer: Peer,
    /// So many times as fast as it was recorded
    #[arg(long, default_value_t = 1.0)]
    speed: f64,
    /// In the trace's order, but each command as soon as there is room for it
    #[arg(long, conflicts_with = "speed")]
    fast: bool,
    /// Commands in flight at most
    #[arg(long, default_value_t = 128)]
    depth: u32,
    /// CPU for the instrument to stay on
    #[arg(long)]
    pin_core: Option<usize>,
    /// The server's process, for its CPU time
    #[arg(long)]
    server_pid: Option<u32>,
    /// JSON instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Compare {
    /// What to compare
    #[arg(value_enum, default_values_t = compare::ALL_PARTS)]
    parts: Vec<Part>,
    /// The server under test; `lunaring` beside this program unless said otherwise
    #[arg(long)]
    lunaring: Option<PathBuf>,
    /// tgt takes part
    #[arg(long)]
    tgt: bool,
    /// What starts tgt's programs, if they are not installed: a file that tests/unpack made
    #[arg(long)]
    tgt_runner: Option<PathBuf>,
    /// Another target: LABEL=ADDR:PORT,IQN,LUN or LABEL=ADDR:PORT,IQN,LUN,PID (repeat)
    #[arg(long)]
    with: Vec<String>,
    /// Folder for the disks and everything temporary; the file system that is measured
    #[arg(long, default_value = "target")]
    folder: PathBuf,
    /// Folder with history.jsonl and report.html (with --quick: the folder for everything temporary)
    #[arg(long)]
    out: Option<PathBuf>,
    /// Each measurement
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// How often each is measured; the median counts
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// A trial of all parts in less than a minute: its figures mean nothing
    #[arg(long)]
    quick: bool,
    /// CPU of the servers
    #[arg(long, default_value_t = 0)]
    server_core: usize,
    /// CPU of the generator
    #[arg(long, default_value_t = 1)]
    own_core: usize,
}

#[derive(Args)]
struct Verify {
    #[command(flatten)]
    peer: Peer,
    #[command(flatten)]
    work: Work,
    /// How long
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// How long a broken connection may take to come back
    #[arg(long, default_value_t = 30)]
    reconnect_seconds: u64,
    /// First byte of the region
    #[arg(long, default_value = "0", value_parser = load::size)]
    offset: u64,
    /// Bytes of the region (0: to the end)
    #[arg(long, default_value = "0", value_parser = load::size)]
    len: u64,
}

#[derive(Args, Clone)]
struct Work {
    /// Smallest I/O and unit of the journal
    #[arg(long, default_value = "4K", value_parser = load::size)]
    unit: u64,
    /// Largest I/O, in units
    #[arg(long, default_value_t = 16)]
    units_max: u32,
    /// Commands in flight on each session
    #[arg(long, default_value_t = 16)]
    depth: u32,
    /// Writes among a hundred I/Os
    #[arg(long, default_value_t = 60)]
    write_percent: u8,
    /// One SYNCHRONIZE CACHE among so many I/Os (0: never)
    #[arg(long, default_value_t = 200)]
    flush_one_in: u32,
    /// Seed of all choices
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The region must read as zeros first; otherwise what it holds is taken as it is
    #[arg(long)]
    fresh: bool,
    /// JSON instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Sessions {
    #[command(flatten)]
    peer: Peer,
    #[command(flatten)]
    work: Work,
    /// How many sessions
    #[arg(long, default_value_t = 600)]
    count: u32,
    /// Bytes of each session's region
    #[arg(long, default_value = "256K", value_parser = load::size)]
    region: u64,
    /// How long
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
}

#[derive(Args)]
struct Storm {
    #[command(flatten)]
    peer: Peer,
    /// Another target whose first 16 MiB a healthy session may use meanwhile
    #[arg(long)]
    healthy_target: Option<String>,
    /// Mutated PDUs in each phase
    #[arg(long, default_value_t = 100_000)]
    pdus: u64,
    /// Seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The server's process, for memory and descriptors
    #[arg(long)]
    server_pid: Option<u32>,
    /// JSON instead of text
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Verb::Load(args) => run_load(&args),
        Verb::Bare { portal, pin_core, spin, file } => run_bare(&portal, pin_core, spin, file.as_deref()),
        Verb::Replay(args) => run_replay(&args),
        Verb::Trace { file, from } => run_trace(&file, from.as_deref()),
        Verb::Compare(args) => run_compare(args),
        Verb::Verify(args) => run_verify(&args),
        Verb::Sessions(args) => run_sessions(&args),
        Verb::Storm(args) => run_storm(&args),
        Verb::Discover { portal } => run_discover(&portal),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("perf: {message}");
            ExitCode::FAILURE
        }
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let found = text.to_socket_addrs().map_err(|e| format!("{text}: {e}"))?.next();
    found.ok_or_else(|| format!("{text}: no address"))
}

impl Peer {
    fn wishes(&self) -> Result<Wishes, String> {
        let secret = |path: &PathBuf| {
            let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
            Ok::<_, String>(text.trim_end_matches(['\r', '\n']).to_owned())
        };
        let secret = self.chap_secret_file.as_ref().map(secret).transpose()?;
        Ok(Wishes {
            chap: self.chap_user.clone().zip(secret),
            initiator_name: self.initiator.clone(),
            header_digest: self.header_digest,
            data_digest: self.data_digest,
            initial_r2t: self.initial_r2t,
            immediate_data: !self.no_immediate_data,
            ..Wishes::to_target(&self.target)
        })
    }
}

fn pin(core: Option<usize>) -> Result<(), String> {
    match core {
        Some(core) if !cost::pin(core) => Err(format!("CPU {core} can not be used")),
        _ => Ok(()),
    }
}

fn print_json(value: &impl serde::Serialize) -> Result<(), String> {
    println!("{}", serde_json::to_string_pretty(value).map_err(|e| e.to_string())?);
    Ok(())
}

fn run_load(args: &Load) -> Result<(), String> {
    pin(args.pin_core)?;
    let spin = args.spin_us.unwrap_or(if args.rate.is_some() { u64::MAX >> 24 } else { 20 });
    let plan = load::Plan {
        wishes: if args.bare { None } else { Some(args.peer.wishes()?) },
        luns: (args.peer.lun..args.peer.lun.saturating_add(args.luns.max(1))).collect(),
        mix: args.block_size.clone(),
        write_percent: args.write_percent,
        order: args.order,
        pace: match args.rate {
            None => Pace::Closed,
            Some(rate) if args.poisson => Pace::Random(rate),
            Some(rate) => Pace::Even(rate),
        },
        depth: args.depth,
        connections: args.connections,
        duration: Duration::from_secs_f64(args.seconds),
        warm_up: Duration::from_secs_f64(args.warm_up_seconds),
        server_pid: args.server_pid,
        span_bytes: args.span,
        spin: Duration::from_micros(spin),
        seed: args.seed,
        ..load::Plan::new(address(&args.peer.portal)?)
    };
    let report = plan.run()?;
    if args.json {
        return print_json(&report);
    }
    println!("{report}");
    Ok(())
}

fn read_trace(path: &Path) -> Result<Trace, String> {
    let bytes = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
    Trace::parse(&bytes).map_err(|e| format!("{}: {e}", path.display()))
}

fn run_replay(args: &Replay) -> Result<(), String> {
    pin(args.pin_core)?;
    if !(args.speed > 0.0 && args.speed.is_finite()) {
        return Err("--speed takes a number above 0".to_owned());
    }
    let trace = read_trace(&args.file)?;
    if trace.missing > 0 {
        eprintln!("perf: the trace lacks {} commands", trace.missing);
    }
    let recorded = Duration::from_micros(trace.records.last().map_or(0, |record| record.at_us));
    let plan = load::Plan {
        wishes: Some(args.peer.wishes()?),
        luns: vec![args.peer.lun],
        pace: if args.fast { Pace::Closed } else { Pace::Trace(args.speed) },
        depth: args.depth,
        // It ends with the trace; this is for a server that stands still.
        duration: recorded.div_f64(args.speed) + Duration::from_secs(60),
        server_pid: args.server_pid,
        spin: Duration::from_millis(if args.fast { 0 } else { 1 }),
        trace: Some(trace.into()),
        ..load::Plan::new(address(&args.peer.portal)?)
    };
    let report = plan.run()?;
    if args.json {
        return print_json(&report);
    }
    println!("{report}");
    Ok(())
}

fn run_trace(file: &Path, from: Option<&Path>) -> Result<(), String> {
    let Some(from) = from else {
        print!("{}", read_trace(file)?.to_text());
        return Ok(());
    };
    let text = std::fs::read_to_string(from).map_err(|e| format!("{}: {e}", from.display()))?;
    let trace = Trace::from_text(&text).map_err(|e| format!("{}: {e}", from.display()))?;
    std::fs::write(file, trace.to_bytes()).map_err(|e| format!("{}: {e}", file.display()))
}

fn run_bare(portal: &str, pin_core: Option<usize>, spin: bool, file: Option<&Path>) -> Result<(), String> {
    pin(pin_core)?;
    let listener = TcpListener::bind(address(portal)?).map_err(|e| format!("{portal}: {e}"))?;
    let portal = listener.local_addr().map_err(|e| format!("{portal}: {e}"))?;
    let open = |path: &Path| bare::open_direct(path).map_err(|e| format!("{}: {e}", path.display()));
    let file = file.map(open).transpose()?;
    println!("perf bare: {portal}, process {}", std::process::id());
    bare::serve(&listener, spin, file).map_err(|e| e.to_string())
}

fn run_compare(args: Compare) -> Result<(), String> {
    let own = std::env::current_exe().map_err(|e| format!("the path of this program: {e}"))?;
    let options = compare::Options {
        lunaring: args.lunaring.unwrap_or_else(|| own.with_file_name("lunaring")),
        tgt: args.tgt || args.tgt_runner.is_some(),
        tgt_runner: args.tgt_runner,
        with: args.with,
        out: args.out.unwrap_or_else(|| if args.quick { args.folder.clone() } else { PathBuf::from("perf") }),
        folder: args.folder,
        parts: if args.quick { compare::ALL_PARTS.to_vec() } else { args.parts },
        seconds: if args.quick { 0.1 } else { args.seconds },
        rounds: if args.quick { 1 } else { args.rounds },
        quick: args.quick,
        server_cpu: args.server_core,
        own_cpu: args.own_core,
    };
    compare::run(&options).map(|_| ())
}

fn verify_plan(peer: &Peer, work: &Work, portal: SocketAddr) -> Result<verify::Plan, String> {
    Ok(verify::Plan {
        portal,
        wishes: peer.wishes()?,
        lun: peer.lun,
        first_byte: 0,
        len_bytes: 0,
        unit_bytes: work.unit as u32,
        io_units_max: work.units_max,
        depth: work.depth,
        write_percent: work.write_percent,
        flush_one_in: work.flush_one_in,
        writer: 1,
        seed: work.seed,
        over_ring: false,
    })
}

fn run_verify(args: &Verify) -> Result<(), String> {
    let mut plan = verify_plan(&args.peer, &args.work, address(&args.peer.portal)?)?;
    (plan.first_byte, plan.len_bytes, plan.over_ring) = (args.offset, args.len, true);
    let mut verifier = Verifier::open(plan).map_err(|e| e.to_string())?;
    if !args.work.fresh {
        verifier.adopt().map_err(|e| e.to_string())?;
    }
    let progress = Progress::default();
    let patience = Duration::from_secs(args.reconnect_seconds);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_secs_f64(args.seconds));
            progress.stop.store(true, Ordering::Relaxed);
        });
        verifier.run(&progress, patience)
    })?;
    while let Err(e) = verifier.check_all() {
        eprintln!("perf: {e}; connecting again");
        verifier.reconnect_within(patience)?;
    }
    conclude(verifier.summary(), args.work.json)
}

fn conclude(summary: &verify::Summary, json: bool) -> Result<(), String> {
    if json {
        print_json(summary)?;
    } else {
        println!("{summary}");
    }
    match summary.finding_count {
        0 => Ok(()),
        n => Err(format!("{n} findings")),
    }
}

fn run_sessions(args: &Sessions) -> Result<(), String> {
    let portal = address(&args.peer.portal)?;
    let plan = verify::Sessions {
        template: verify_plan(&args.peer, &args.work, portal)?,
        count: args.count,
        region_bytes: args.region,
        duration: Duration::from_secs_f64(args.seconds),
        adopt: !args.work.fresh,
    };
    let began = Instant::now();
    let summary = plan.run()?;
    if !args.work.json {
        println!("{} sessions in {:.1} s", args.count, began.elapsed().as_secs_f64());
    }
    conclude(&summary, args.work.json)
}

fn run_storm(args: &Storm) -> Result<(), String> {
    let portal = address(&args.peer.portal)?;
    let healthy = args.healthy_target.as_ref().map(|target| storm::healthy_plan(portal, target));
    let mut wishes = args.peer.wishes()?;
    wishes.initiator_name = format!("{}-storm", args.peer.initiator);
    let plan = storm::Plan {
        portal,
        wishes,
        lun: args.peer.lun,
        pdus_per_phase: args.pdus,
        seed: args.seed,
        healthy,
        server_pid: args.server_pid,
    };
    let summary = storm::run(&plan)?;
    if args.json {
        print_json(&summary)?;
    } else {
        println!("{summary}");
    }
    match summary.complaints.len() {
        0 => Ok(()),
        n => Err(format!("{n} complaints")),
    }
}

fn run_discover(portal: &str) -> Result<(), String> {
    let targets = login::discover(address(portal)?, "iqn.2026-11.io.lunaring:perf").map_err(|e| e.to_string())?;
    for (name, addresses) in targets {
        println!("{name} {}", addresses.join(" "));
    }
    Ok(())
}
