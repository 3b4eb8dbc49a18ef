//! The loop of the generator: what arrived, what may start, what is to be sent.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::choice::{Action, Chooser, Io};
use super::report::{Report, Tally};
use super::trace::Trace;
use super::{Pace, Plan};
use crate::bare::BareExchange;
use crate::cost::{self, Usage};
use crate::exchange::{Done, Exchange, Request, Want};
use crate::pdu::{self, cdb};
use crate::pipeline::Pipeline;
use crate::random::Random;
use crate::uring::Sockets;

/// I/Os that are due may take so long after the end of an open-loop run.
const DRAIN: Duration = Duration::from_secs(10);
/// What the payload of writes consists of.
const FILL: u8 = 0x5a;
/// The mark of an I/O that writes; the rest of a mark is when it was due, in nanoseconds since the start.
const MARK_WRITE: u64 = 1 << 63;

/// One connection's protocol.
enum Peer {
    Iscsi(Box<Exchange>),
    Bare(BareExchange),
}

impl Peer {
    fn has_room(&self) -> bool {
        match self {
            Peer::Iscsi(exchange) => exchange.has_room(),
            Peer::Bare(bare) => bare.has_room(),
        }
    }

    fn out(&mut self) -> &mut Vec<u8> {
        match self {
            Peer::Iscsi(exchange) => &mut exchange.out,
            Peer::Bare(bare) => &mut bare.out,
        }
    }
}

/// When the next I/O of an open loop is due, in nanoseconds since the start.
struct Schedule {
    interval: f64,
    random: Option<Random>,
    due: f64,
}

impl Schedule {
    fn new(pace: Pace, seed: u64) -> Option<Schedule> {
        let (rate, random) = match pace {
            Pace::Closed => return None,
            Pace::Even(rate) => (rate, None),
            Pace::Random(rate) => (rate, Some(Random::new(seed ^ 0x5eed))),
            // The trace has its own times; see Run::next_due.
            Pace::Trace(_) => (1.0, None),
        };
        Some(Schedule { interval: 1e9 / rate.max(1e-3), random, due: 0.0 })
    }

    fn advance(&mut self) {
        let factor = match &mut self.random {
            None => 1.0,
            Some(random) => -((random.next_u64() >> 11) as f64 / (1u64 << 53) as f64).max(1e-18).ln(),
        };
        self.due += self.interval * factor;
    }
}

/// What is measured: from when to when, in nanoseconds since the start.
#[derive(Clone, Copy)]
struct Window {
    from: u64,
    to: u64,
}

struct Run<'a> {
    plan: &'a Plan,
    sockets: Sockets,
    peers: Vec<Peer>,
    block_len: u64,
    chooser: Chooser,
    schedule: Option<Schedule>,
    tally: Tally,
    began: Instant,
    now: u64,
    window: Option<Window>,
    in_flight: u64,
    started: u64,
    /// Start no more than this.
    ios_max: u64,
    /// The next record of the trace.
    next_record: usize,
    /// Where an open loop looks for room first.
    turn_of: usize,
    done: Vec<Done>,
    buffers: Vec<Vec<u8>>,
}

/// Run a plan on the calling thread.
pub(super) fn run(plan: &Plan) -> Result<Report, String> {
    let mut run = Run::open(plan)?;
    if plan.trace.is_none() {
        run.go(plan.warm_up)?;
    }
    let usage = |pid: Option<u32>| pid.map(Usage::of).transpose().map_err(|e| format!("the server's /proc entry: {e}"));
    let own = || cost::own_cpu().map_err(|e| format!("/proc/thread-self: {e}"));
    run.tally = Tally::new()?;
    let (before, own_before) = (usage(plan.server_pid)?, own()?);
    let from = run.clock();
    let to = from + plan.duration.as_nanos() as u64;
    run.window = Some(Window { from, to });
    run.go(plan.duration)?;
    let elapsed = Duration::from_nanos(run.now - from);
    let used = usage(plan.server_pid)?.zip(before).map(|(after, before)| after.since(&before));
    let own_used = own()?.saturating_sub(own_before);
    let overdue = run.drain(to)?;
    run.tally.close_second(elapsed)?;
    let mut report = run.tally.report(elapsed, used, own_used)?;
    report.overdue = overdue;
    report.rate_asked = match plan.pace {
        Pace::Closed | Pace::Trace(_) => None,
        Pace::Even(rate) | Pace::Random(rate) => Some(rate),
    };
    Ok(report)
}

impl Run<'_> {
    fn open(plan: &Plan) -> Result<Run<'_>, String> {
        let at = |e: &dyn std::fmt::Display| format!("{}: {e}", plan.portal);
        let connections = plan.connections.max(1);
        let mut sockets = Sockets::new(connections).map_err(|e| format!("io_uring: {e}"))?;
        sockets.spin = plan.spin;
        let (mut peers, mut span, mut block_len) = (vec![], plan.span_bytes, 1);
        for number in 0..connections {
            let Some(wishes) = &plan.wishes else {
                let socket = TcpStream::connect(plan.portal).map_err(|e| at(&e))?;
                socket.set_nodelay(true).and_then(|()| sockets.add(socket)).map_err(|e| at(&e))?;
                peers.push(Peer::Bare(BareExchange::new(plan.depth)));
                span = if span == 0 { 1 << 30 } else { span };
                continue;
            };
            let wishes = wishes.clone().session(number + 1);
            let mut pipeline = Pipeline::open(plan.portal, &wishes, plan.depth).map_err(|e| at(&e))?;
            for lun in &plan.luns {
                let (blocks, len) = pipeline.capacity(*lun).map_err(|e| format!("LUN {lun}: {e}"))?;
                let bytes = blocks.saturating_mul(u64::from(len));
                span = if span == 0 { bytes } else { span.min(bytes) };
                block_len = block_len.max(u64::from(len));
            }
            let (socket, exchange) = pipeline.into_parts().ok_or("the session is not idle after READ CAPACITY")?;
            sockets.add(socket).map_err(|e| at(&e))?;
            peers.push(Peer::Iscsi(Box::new(exchange)));
        }
        if let Some(trace) = &plan.trace {
            fits(trace, span, block_len)?;
        }
        let chooser = Chooser::new(&plan.mix, plan.write_percent, plan.order, span, plan.luns.len() as u32, plan.seed);
        if u64::from(plan.mix.max_bytes()) > span || !chooser.unit().is_multiple_of(block_len) {
            return Err(format!("these block sizes do not fit {span} bytes in blocks of {block_len}"));
        }
        Ok(Run {
            plan,
            sockets,
            peers,
            block_len,
            chooser,
            schedule: Schedule::new(plan.pace, plan.seed),
            tally: Tally::new()?,
            began: Instant::now(),
            now: 0,
            window: None,
            in_flight: 0,
            started: 0,
            ios_max: plan.trace.as_ref().map_or(plan.ios_max, |t| Some(t.records.len() as u64)).unwrap_or(u64::MAX),
            next_record: 0,
            turn_of: 0,
            done: Vec::with_capacity(plan.depth as usize),
            buffers: vec![],
        })
    }

    fn clock(&mut self) -> u64 {
        self.now = self.began.elapsed().as_nanos() as u64;
        self.now
    }

    /// Drive for so long.
    fn go(&mut self, duration: Duration) -> Result<(), String> {
        let began = self.clock();
        let end = began + duration.as_nanos() as u64;
        let mut second_end = began + 1_000_000_000;
        for number in 0..self.peers.len() {
            self.fill(number)?;
        }
        let mut moved = vec![];
        while self.now < end && (self.in_flight > 0 || self.started < self.ios_max) {
            if self.now >= second_end && second_end < end {
                second_end += 1_000_000_000;
                self.tally.close_second(Duration::from_nanos(self.now - began))?;
            }
            self.start_due(end)?;
            let due = self.schedule.as_ref().map_or(end, |schedule| schedule.due as u64);
            let room = self.peers.iter().any(Peer::has_room);
            let until = if room { end.min(second_end).min(due) } else { end.min(second_end) };
            self.turn(until, &mut moved)?;
        }
        Ok(())
    }

    /// Of an open loop: wait for what was due before `end`; what is still missing after [`DRAIN`].
    fn drain(&mut self, end: u64) -> Result<u64, String> {
        if self.schedule.is_none() {
            return Ok(0);
        }
        let limit = self.clock() + DRAIN.as_nanos() as u64;
        let mut moved = vec![];
        loop {
            self.start_due(end)?;
            let missing = self.schedule.as_ref().map_or(0.0, |s| ((end as f64 - s.due) / s.interval).ceil().max(0.0));
            let missing = (missing as u64).min(self.ios_max - self.started) + self.in_flight;
            if missing == 0 || self.now >= limit {
                return Ok(missing);
            }
            self.turn(limit, &mut moved)?;
        }
    }

    /// Let the kernel work until `until` at most, then handle what arrived.
    fn turn(&mut self, until: u64, moved: &mut Vec<usize>) -> Result<(), String> {
        let until = self.began + Duration::from_nanos(until);
        moved.clear();
        self.sockets.turn(until, moved).map_err(|e| self.at(&e))?;
        self.clock();
        for number in moved.drain(..) {
            self.handle(number)?;
            self.fill(number)?;
        }
        Ok(())
    }

    fn at(&self, e: &dyn std::fmt::Display) -> String {
        format!("{}: {e}", self.plan.portal)
    }

    /// Take what arrived on a connection.
    fn handle(&mut self, number: usize) -> Result<(), String> {
        let input = self.sockets.input(number);
        if input.is_empty() {
            return Ok(());
        }
        let (window, now, open) = (self.window, self.now, self.schedule.is_some());
        let (tally, in_flight) = (&mut self.tally, &mut self.in_flight);
        let mut ended = |mark: u64, bytes: u32, good: bool| {
            *in_flight -= 1;
            let due = mark & !MARK_WRITE;
            // A closed loop counts what ended while it measured; an open loop what was due then.
            let counts = window.is_none_or(|w| if open { due >= w.from && due < w.to } else { now < w.to });
            if counts {
                tally.record(Duration::from_nanos(now.saturating_sub(due)), mark & MARK_WRITE != 0, bytes, good);
            }
        };
        let used = match &mut self.peers[number] {
            Peer::Bare(bare) => bare.receive(input, |mark, bytes| ended(mark, bytes, true)),
            Peer::Iscsi(exchange) => {
                let used = exchange.receive(input, &mut self.done);
                for done in self.done.drain(..) {
                    ended(done.mark, done.received + done.data_out.len() as u32, done.status == 0);
                    if done.data_out.capacity() > 0 {
                        self.buffers.push(done.data_out);
                    }
                }
                used.map_err(|e| format!("{}: {e}", self.plan.portal))?
            }
        };
        self.sockets.receive_more(number, used).map_err(|e| self.at(&e))
    }

    /// Of a closed loop: start as much as fits. Send whatever waits.
    fn fill(&mut self, number: usize) -> Result<(), String> {
        if self.schedule.is_none() {
            while self.peers[number].has_room() && self.started < self.ios_max {
                self.start(number, self.now);
            }
        }
        self.sockets.send(number, self.peers[number].out()).map_err(|e| self.at(&e))
    }

    /// Of an open loop: start what is due by now and before `end`, as far as there is room.
    fn start_due(&mut self, end: u64) -> Result<(), String> {
        let Some(mut schedule) = self.schedule.take() else { return Ok(()) };
        self.follow_trace(&mut schedule);
        let last = self.now.min(end - 1) as f64;
        while schedule.due <= last {
            let all = self.peers.len();
            let free = (0..all).map(|step| (self.turn_of + step) % all).find(|number| self.peers[*number].has_room());
            let Some(number) = free else { break };
            self.turn_of = (number + 1) % all;
            self.start(number, schedule.due as u64);
            self.sockets.send(number, self.peers[number].out()).map_err(|e| self.at(&e))?;
            schedule.advance();
            self.follow_trace(&mut schedule);
        }
        self.schedule = Some(schedule);
        Ok(())
    }

    /// A trace says itself when its next record is due.
    fn follow_trace(&self, schedule: &mut Schedule) {
        let (Some(trace), Pace::Trace(speed)) = (&self.plan.trace, self.plan.pace) else { return };
        let next = trace.records.get(self.next_record);
        let from = self.window.map_or(0, |window| window.from);
        schedule.due = next.map_or(f64::MAX, |record| from as f64 + record.at_us as f64 * 1000.0 / speed);
    }

    fn next_io(&mut self) -> Io {
        let Some(trace) = &self.plan.trace else { return self.chooser.next_io() };
        let record = trace.records[self.next_record.min(trace.records.len() - 1)];
        self.next_record += 1;
        let block_len = u64::from(trace.block_len);
        let len = (u64::from(record.blocks) * block_len) as u32;
        Io { offset: record.lba * block_len, len, action: record.action, fua: record.fua, lun_index: 0 }
    }

    fn start(&mut self, number: usize, due: u64) {
        let io = self.next_io();
        let mark = due | if io.action == Action::Read { 0 } else { MARK_WRITE };
        self.in_flight += 1;
        self.started += 1;
        match &mut self.peers[number] {
            Peer::Bare(bare) => bare.start(io, FILL, mark),
            Peer::Iscsi(exchange) => {
                let mut data_out = vec![];
                if io.action == Action::Write {
                    data_out = self.buffers.pop().unwrap_or_default();
                    data_out.resize(io.len as usize, FILL);
                }
                exchange.start(request(self.plan, self.block_len, io, data_out, mark));
            }
        }
    }
}

/// Whether a trace can be replayed on a disk of so many bytes.
fn fits(trace: &Trace, disk_bytes: u64, block_len: u64) -> Result<(), String> {
    let needs = trace.disk_blocks * u64::from(trace.block_len);
    if !u64::from(trace.block_len).is_multiple_of(block_len) || needs > disk_bytes {
        let wants = format!("{needs} bytes in blocks of {}", trace.block_len);
        return Err(format!("the trace is of a disk with {wants}, this one has {disk_bytes} in blocks of {block_len}"));
    }
    let largest = trace.records.iter().map(|r| u64::from(r.blocks) * u64::from(trace.block_len)).max().unwrap_or(0);
    if largest > u64::from(u32::MAX) || trace.records.is_empty() {
        return Err(format!("the trace has {} commands, the largest of {largest} bytes", trace.records.len()));
    }
    Ok(())
}

fn request(plan: &Plan, block_len: u64, io: Io, mut data_out: Vec<u8>, mark: u64) -> Request {
    let (lba, blocks) = (io.offset / block_len, (u64::from(io.len) / block_len) as u32);
    let mut cdb = match io.action {
        Action::Read => pdu::cdb_transfer_16(cdb::READ_16, lba, blocks, io.fua),
        Action::Write => pdu::cdb_transfer_16(cdb::WRITE_16, lba, blocks, io.fua),
        Action::Flush | Action::Unmap => [0; 16],
    };
    if io.action == Action::Flush {
        cdb[0] = cdb::SYNCHRONIZE_CACHE_10;
    }
    if io.action == Action::Unmap {
        // SBC-4: a parameter list of one descriptor.
        (cdb[0], cdb[8]) = (cdb::UNMAP, 24);
        data_out = [&[0, 22, 0, 16, 0, 0, 0, 0][..], &lba.to_be_bytes(), &blocks.to_be_bytes(), &[0; 4]].concat();
    }
    Request {
        lun: plan.luns.get(io.lun_index as usize).copied().unwrap_or(0),
        cdb,
        data_out,
        read_len: if io.action == Action::Read { io.len } else { 0 },
        want: Want::Discard,
        mark,
    }
}
