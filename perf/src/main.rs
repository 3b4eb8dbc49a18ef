//! The instrument's command line.

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use perf::load::{self, Pattern};
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
    /// Closed-loop load on one logical unit (or on the reference server with --bare)
    Load(Load),
    /// Serve the bare reference protocol
    Bare {
        /// Where to listen
        #[arg(long, default_value = "127.0.0.1:3270")]
        portal: String,
        /// CPU to stay on
        #[arg(long)]
        pin_core: Option<usize>,
    },
    /// Alternate between the reference server and targets in one run, and give ratios
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

#[derive(Args, Clone)]
struct Shape {
    /// Bytes per I/O (K, M: powers of two)
    #[arg(long, default_value = "4K", value_parser = size)]
    block_size: u64,
    /// Commands in flight on each connection
    #[arg(long, default_value_t = 32)]
    depth: u32,
    /// Which I/O
    #[arg(long, value_enum, default_value = "random-read")]
    pattern: Pattern,
    /// How long to measure
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Load before the measuring starts
    #[arg(long, default_value_t = 0.5)]
    warm_up_seconds: f64,
    /// Stay within the first so many bytes of the logical unit (0: all of it)
    #[arg(long, default_value = "0", value_parser = size)]
    span: u64,
    /// CPU for the instrument to stay on
    #[arg(long)]
    pin_core: Option<usize>,
    /// JSON instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Load {
    #[command(flatten)]
    peer: Peer,
    #[command(flatten)]
    shape: Shape,
    /// Sessions
    #[arg(long, default_value_t = 1)]
    connections: u32,
    /// The server's process, for its CPU time
    #[arg(long)]
    server_pid: Option<u32>,
    /// The server is `perf bare`
    #[arg(long)]
    bare: bool,
}

#[derive(Args)]
struct Compare {
    #[command(flatten)]
    shape: Shape,
    /// The reference server and its process: ADDR:PORT,PID
    #[arg(long)]
    bare: String,
    /// A target: LABEL=ADDR:PORT,IQN,LUN,PID (repeat)
    #[arg(long = "with", required = true)]
    with: Vec<String>,
    /// How often each is measured; the median counts
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Negotiate both digests
    #[arg(long)]
    digests: bool,
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
    #[arg(long, default_value = "0", value_parser = size)]
    offset: u64,
    /// Bytes of the region (0: to the end)
    #[arg(long, default_value = "0", value_parser = size)]
    len: u64,
}

#[derive(Args, Clone)]
struct Work {
    /// Smallest I/O and unit of the journal
    #[arg(long, default_value = "4K", value_parser = size)]
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
    #[arg(long, default_value = "256K", value_parser = size)]
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
        Verb::Bare { portal, pin_core } => run_bare(&portal, pin_core),
        Verb::Compare(args) => run_compare(&args),
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

fn size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().map(|n| n << shift).map_err(|e| format!("'{text}' is not a size: {e}"))
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let found = text.to_socket_addrs().map_err(|e| format!("{text}: {e}"))?.next();
    found.ok_or_else(|| format!("{text}: no address"))
}

impl Peer {
    fn wishes(&self) -> Wishes {
        Wishes {
            initiator_name: self.initiator.clone(),
            header_digest: self.header_digest,
            data_digest: self.data_digest,
            initial_r2t: self.initial_r2t,
            immediate_data: !self.no_immediate_data,
            ..Wishes::to_target(&self.target)
        }
    }
}

fn pin(core: Option<usize>) -> Result<(), String> {
    match core {
        Some(core) if !cost::pin(core) => Err(format!("CPU {core} can not be used")),
        _ => Ok(()),
    }
}

fn plan_of(shape: &Shape, portal: SocketAddr) -> load::Plan {
    load::Plan {
        portal,
        wishes: None,
        lun: 0,
        block_size: shape.block_size as u32,
        depth: shape.depth,
        pattern: shape.pattern,
        connections: 1,
        duration: Duration::from_secs_f64(shape.seconds),
        warm_up: Duration::from_secs_f64(shape.warm_up_seconds),
        server_pid: None,
        span_bytes: shape.span,
    }
}

fn print_json(value: &impl serde::Serialize) -> Result<(), String> {
    println!("{}", serde_json::to_string_pretty(value).map_err(|e| e.to_string())?);
    Ok(())
}

fn run_load(args: &Load) -> Result<(), String> {
    pin(args.shape.pin_core)?;
    let mut plan = plan_of(&args.shape, address(&args.peer.portal)?);
    plan.lun = args.peer.lun;
    plan.connections = args.connections;
    plan.server_pid = args.server_pid;
    plan.wishes = (!args.bare).then(|| args.peer.wishes());
    let report = load::run(&plan)?;
    if args.shape.json {
        return print_json(&report);
    }
    println!("{report}");
    Ok(())
}

fn run_bare(portal: &str, pin_core: Option<usize>) -> Result<(), String> {
    pin(pin_core)?;
    let listener = TcpListener::bind(address(portal)?).map_err(|e| format!("{portal}: {e}"))?;
    println!("perf bare: {portal}, process {}", std::process::id());
    bare::serve(&listener).map_err(|e| e.to_string())
}

/// One side of a comparison.
struct Side {
    label: String,
    plan: load::Plan,
    cpu_us: Vec<f64>,
    iops: Vec<f64>,
}

fn run_compare(args: &Compare) -> Result<(), String> {
    pin(args.shape.pin_core)?;
    let mut sides = vec![];
    let (portal, pid) = args.bare.split_once(',').ok_or("--bare takes ADDR:PORT,PID")?;
    let mut plan = plan_of(&args.shape, address(portal)?);
    plan.server_pid = Some(pid.parse().map_err(|e| format!("'{pid}' is not a process: {e}"))?);
    sides.push(Side { label: "bare".to_owned(), plan, cpu_us: vec![], iops: vec![] });
    for text in &args.with {
        let form = "--with takes LABEL=ADDR:PORT,IQN,LUN,PID";
        let (label, rest) = text.split_once('=').ok_or(form)?;
        let [portal, target, lun, pid] = rest.split(',').collect::<Vec<_>>()[..] else { return Err(form.to_owned()) };
        let mut plan = plan_of(&args.shape, address(portal)?);
        let mut wishes = Wishes::to_target(target);
        (wishes.header_digest, wishes.data_digest) = (args.digests, args.digests);
        plan.wishes = Some(wishes);
        plan.lun = lun.parse().map_err(|e| format!("'{lun}' is not a LUN: {e}"))?;
        plan.server_pid = Some(pid.parse().map_err(|e| format!("'{pid}' is not a process: {e}"))?);
        sides.push(Side { label: label.to_owned(), plan, cpu_us: vec![], iops: vec![] });
    }
    for _ in 0..args.rounds.max(1) {
        for side in &mut sides {
            let report = load::run(&side.plan).map_err(|e| format!("{}: {e}", side.label))?;
            side.cpu_us.extend(report.server_cpu_us_per_io);
            side.iops.push(report.iops);
        }
    }
    let reference = median(&mut sides[0].cpu_us);
    println!("{:<12} {:>12} {:>16} {:>10}", "", "IOPS", "CPU µs per I/O", "ratio");
    for side in &mut sides {
        let (iops, cpu) = (median(&mut side.iops), median(&mut side.cpu_us));
        println!("{:<12} {iops:>12.0} {cpu:>16.3} {:>10.2}", side.label, cpu / reference);
    }
    Ok(())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn verify_plan(peer: &Peer, work: &Work, portal: SocketAddr) -> verify::Plan {
    verify::Plan {
        portal,
        wishes: peer.wishes(),
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
    }
}

fn run_verify(args: &Verify) -> Result<(), String> {
    let mut plan = verify_plan(&args.peer, &args.work, address(&args.peer.portal)?);
    (plan.first_byte, plan.len_bytes) = (args.offset, args.len);
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
        template: verify_plan(&args.peer, &args.work, portal),
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
    let mut wishes = args.peer.wishes();
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
