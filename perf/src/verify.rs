//! Writes that are remembered, and reads that must find them.
//!
//! A [`Verifier`] owns a region of a logical unit and keeps a journal of which generation of each unit was
//! acknowledged. A write that was acknowledged must be found; one that was in flight when the connection broke may or
//! may not be, and what it turned out to be is found by reading and must then stay. The server may be killed and
//! restarted at any time.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::login::{LoginError, Wishes};
use crate::pdu::{self, cdb};
use crate::pipeline::{Done, Pipeline, Request, Want};
use crate::random::Random;
use crate::stamp::{self, BLOCK_LEN, Content, Stamp};

/// What to write where.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The server.
    pub portal: SocketAddr,
    /// How to log in.
    pub wishes: Wishes,
    /// Logical unit.
    pub lun: u16,
    /// First byte of the region.
    pub first_byte: u64,
    /// Bytes of the region; 0 is up to the end of the logical unit.
    pub len_bytes: u64,
    /// The unit of the journal and the smallest I/O, in bytes: a multiple of the logical block and of 512.
    pub unit_bytes: u32,
    /// The largest I/O, in units.
    pub io_units_max: u32,
    /// Commands in flight.
    pub depth: u32,
    /// Writes among a hundred I/Os.
    pub write_percent: u8,
    /// One SYNCHRONIZE CACHE among so many I/Os; 0 is never.
    pub flush_one_in: u32,
    /// Who is written into each block.
    pub writer: u32,
    /// Seed of all choices.
    pub seed: u64,
    /// Over an io_uring of its own, as the load generator does; else on a plain socket. What is in flight on a ring
    /// ends with the thread that started it.
    pub over_ring: bool,
}

/// What was found wrong.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What kind: lost, stale, torn, misdirected, foreign, unknown generation, failed command.
    pub kind: &'static str,
    /// The whole story in one line.
    pub detail: String,
}

/// Findings that are told in full.
const FINDINGS_MAX: usize = 20;

/// What a run gave.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// Writes acknowledged.
    pub writes: u64,
    /// Reads checked.
    pub reads: u64,
    /// Flushes acknowledged.
    pub flushes: u64,
    /// Connections that broke and were made again.
    pub reconnects: u64,
    /// Writes whose fate was unknown when a connection broke.
    pub uncertain: u64,
    /// Of those, units found half old and half new (allowed: they were not acknowledged).
    pub half_written: u64,
    /// Everything wrong (the first twenty).
    pub findings: Vec<Finding>,
    /// How many findings there were.
    pub finding_count: u64,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} writes, {} reads, {} flushes, {} reconnects, {} uncertain, {} half written, {} findings",
            self.writes,
            self.reads,
            self.flushes,
            self.reconnects,
            self.uncertain,
            self.half_written,
            self.finding_count
        )?;
        for finding in &self.findings {
            write!(f, "\n  {}: {}", finding.kind, finding.detail)?;
        }
        Ok(())
    }
}

/// What others may see and change while a run goes on.
#[derive(Debug, Default)]
pub struct Progress {
    /// Set to end the run.
    pub stop: AtomicBool,
    /// Writes acknowledged so far.
    pub writes: AtomicU64,
    /// I/Os of any kind that ended so far.
    pub ios: AtomicU64,
}

/// The generation of a unit that held something before this verifier came.
const ANYTHING: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Resolve,
    Write { generation: u32 },
    Flush,
}

#[derive(Clone, Copy, Debug)]
struct Running {
    kind: Kind,
    first: u32,
    units: u32,
}

/// One region under test. See the module's documentation.
#[derive(Debug)]
pub struct Verifier {
    plan: Plan,
    block_len: u32,
    acknowledged: Vec<u32>,
    busy: Vec<bool>,
    /// Units whose content may be any of these generations.
    uncertain: HashMap<u32, Vec<u32>>,
    to_resolve: Vec<u32>,
    to_rewrite: Vec<u32>,
    running: Vec<Option<Running>>,
    generation: u32,
    random: Random,
    pipeline: Option<Pipeline>,
    done: Vec<Done>,
    summary: Summary,
}

impl Verifier {
    /// Log in and learn the region's size. The region must read as zeros, unless [`Verifier::adopt`] comes next.
    pub fn open(mut plan: Plan) -> Result<Verifier, LoginError> {
        let mut pipeline = Pipeline::open(plan.portal, &plan.wishes, plan.depth)?;
        let (blocks, block_len) = pipeline.capacity(plan.lun)?;
        let capacity = blocks * u64::from(block_len);
        if plan.len_bytes == 0 {
            plan.len_bytes = capacity.saturating_sub(plan.first_byte);
        }
        let end = plan.first_byte + plan.len_bytes;
        if end > capacity || !plan.unit_bytes.is_multiple_of(block_len) || !plan.unit_bytes.is_multiple_of(512) {
            let what = format!("bytes {}..{end} in units of {} do not fit the LUN", plan.first_byte, plan.unit_bytes);
            return Err(LoginError::Protocol(what));
        }
        let units = (plan.len_bytes / u64::from(plan.unit_bytes)) as usize;
        if plan.over_ring {
            pipeline = pipeline.over_ring()?;
        }
        Ok(Verifier {
            block_len,
            acknowledged: vec![0; units],
            busy: vec![false; units],
            uncertain: HashMap::new(),
            to_resolve: vec![],
            to_rewrite: vec![],
            running: vec![None; plan.depth as usize],
            generation: 0,
            random: Random::new(plan.seed),
            pipeline: Some(pipeline),
            done: vec![],
            summary: Summary::default(),
            plan,
        })
    }

    /// Take what the region holds now as acknowledged, whatever it is.
    pub fn adopt(&mut self) -> io::Result<()> {
        let Some(mut pipeline) = self.pipeline.take() else { return Err(io::ErrorKind::NotConnected.into()) };
        let all = self.acknowledged.len() as u32;
        let mut first = 0;
        while first < all {
            let units = self.units_at_once().min(all - first);
            let request = self.request(Running { kind: Kind::Read, first, units }, 0);
            let done = pipeline.run(request)?;
            for (number, bytes) in done.data.chunks_exact(self.plan.unit_bytes as usize).enumerate() {
                self.adopt_unit(first + number as u32, bytes);
            }
            first += units;
        }
        self.pipeline = Some(pipeline);
        Ok(())
    }

    fn adopt_unit(&mut self, unit: u32, bytes: &[u8]) {
        let mut generations: Vec<u32> = vec![];
        for (number, bytes) in bytes.chunks_exact(BLOCK_LEN).enumerate() {
            let block = self.first_block(unit) + number as u64;
            generations.push(match stamp::read(bytes) {
                Content::Zeros => 0,
                Content::Stamped(s) if s.block == block && s.writer == self.plan.writer => s.generation,
                _ => ANYTHING,
            });
        }
        generations.dedup();
        let generation = if let [generation] = generations[..] { generation } else { ANYTHING };
        self.acknowledged[unit as usize] = generation;
        if generation != ANYTHING {
            self.generation = self.generation.max(generation);
        }
    }

    /// Units in one read of 256 KiB.
    fn units_at_once(&self) -> u32 {
        (262_144 / self.plan.unit_bytes).max(1)
    }

    fn first_block(&self, unit: u32) -> u64 {
        (self.plan.first_byte + u64::from(unit) * u64::from(self.plan.unit_bytes)) / BLOCK_LEN as u64
    }

    /// What was seen up to now.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Whether there is a connection.
    pub fn is_connected(&self) -> bool {
        self.pipeline.is_some()
    }

    /// Send, receive, check what arrived, start as much as fits if `fresh`. Returns whether anything moved. A broken
    /// connection is an error; the verifier can then [`Verifier::reconnect`].
    pub fn turn(&mut self, fresh: bool) -> io::Result<bool> {
        let Some(mut pipeline) = self.pipeline.take() else {
            return Err(io::Error::new(io::ErrorKind::NotConnected, "not connected"));
        };
        let mut done = std::mem::take(&mut self.done);
        let moved = pipeline.turn(&mut done);
        for ended in done.drain(..) {
            self.ended(ended);
        }
        self.done = done;
        let moved = match moved {
            Ok(moved) => moved,
            Err(e) => {
                self.broken();
                return Err(e);
            }
        };
        while pipeline.has_room() && self.start_one(&mut pipeline, fresh) {}
        let flushed = pipeline.flush();
        self.pipeline = Some(pipeline);
        if flushed.is_err() {
            self.broken();
        }
        flushed.map(|sent| sent || moved)
    }

    /// Commands in flight.
    pub fn in_flight(&self) -> usize {
        self.pipeline.as_ref().map_or(0, Pipeline::in_flight)
    }

    /// Connect again; what was in flight will be read first.
    pub fn reconnect(&mut self) -> Result<(), LoginError> {
        let mut pipeline = Pipeline::open(self.plan.portal, &self.plan.wishes, self.plan.depth)?;
        pipeline.capacity(self.plan.lun)?;
        self.pipeline = Some(if self.plan.over_ring { pipeline.over_ring()? } else { pipeline });
        self.summary.reconnects += 1;
        Ok(())
    }

    /// The connection is gone: writes in flight become uncertain.
    fn broken(&mut self) {
        self.pipeline = None;
        for slot in 0..self.running.len() {
            let Some(running) = self.running[slot].take() else { continue };
            self.release(running);
            if let Kind::Write { generation } = running.kind {
                self.make_uncertain(running, generation);
            } else if running.kind == Kind::Resolve {
                self.to_resolve.push(running.first);
            }
        }
    }

    fn make_uncertain(&mut self, running: Running, generation: u32) {
        self.summary.uncertain += 1;
        for unit in running.first..running.first + running.units {
            let acknowledged = self.acknowledged[unit as usize];
            self.uncertain.entry(unit).or_insert_with(|| vec![acknowledged]).push(generation);
            self.to_resolve.push(unit);
        }
    }

    fn release(&mut self, running: Running) {
        for unit in running.first..running.first + running.units {
            self.busy[unit as usize] = false;
        }
    }

    /// Start one I/O; false when nothing should start now.
    fn start_one(&mut self, pipeline: &mut Pipeline, fresh: bool) -> bool {
        let Some(slot) = self.running.iter().position(Option::is_none) else { return false };
        let running = if let Some(unit) = take_idle(&mut self.to_resolve, &self.busy) {
            Running { kind: Kind::Resolve, first: unit, units: 1 }
        } else if let Some(unit) = take_idle(&mut self.to_rewrite, &self.busy) {
            Running { kind: self.next_write(), first: unit, units: 1 }
        } else if fresh {
            match self.choose() {
                Some(running) => running,
                None => return false,
            }
        } else {
            return false;
        };
        for unit in running.first..running.first + running.units {
            self.busy[unit as usize] = true;
        }
        self.running[slot] = Some(running);
        let request = self.request(running, slot as u64);
        pipeline.start(request);
        true
    }

    fn next_write(&mut self) -> Kind {
        self.generation += 1;
        Kind::Write { generation: self.generation }
    }

    fn choose(&mut self) -> Option<Running> {
        if self.plan.flush_one_in > 0 && self.random.one_in(u64::from(self.plan.flush_one_in)) {
            return Some(Running { kind: Kind::Flush, first: 0, units: 0 });
        }
        let all = self.acknowledged.len() as u64;
        for _ in 0..16 {
            let units = 1 + self.random.below(u64::from(self.plan.io_units_max)).min(all - 1);
            let first = self.random.below(all - units + 1) as u32;
            let units = units as u32;
            if (first..first + units).any(|unit| self.busy[unit as usize]) {
                continue;
            }
            let write = self.random.below(100) < u64::from(self.plan.write_percent);
            let kind = if write { self.next_write() } else { Kind::Read };
            return Some(Running { kind, first, units });
        }
        None
    }

    fn request(&mut self, running: Running, mark: u64) -> Request {
        let unit_bytes = self.plan.unit_bytes;
        let byte = self.plan.first_byte + u64::from(running.first) * u64::from(unit_bytes);
        let (lba, blocks) = (byte / u64::from(self.block_len), running.units * unit_bytes / self.block_len);
        let len = running.units * unit_bytes;
        let lun = self.plan.lun;
        match running.kind {
            Kind::Flush => Request { mark, ..Request::bare(lun, cdb::SYNCHRONIZE_CACHE_10) },
            Kind::Read | Kind::Resolve => {
                let cdb = pdu::cdb_transfer_16(cdb::READ_16, lba, blocks, false);
                Request { mark, ..Request::reading(lun, &cdb, len) }
            }
            Kind::Write { generation } => {
                let mut data_out = vec![0; len as usize];
                for (number, bytes) in data_out.chunks_exact_mut(BLOCK_LEN).enumerate() {
                    let block = byte / BLOCK_LEN as u64 + number as u64;
                    stamp::write(bytes, Stamp { block, generation, writer: self.plan.writer });
                }
                let cdb = pdu::cdb_transfer_16(cdb::WRITE_16, lba, blocks, self.random.one_in(16));
                Request { lun, cdb, data_out, read_len: 0, want: Want::Discard, mark }
            }
        }
    }

    fn ended(&mut self, done: Done) {
        let Some(running) = self.running.get_mut(done.mark as usize).and_then(Option::take) else { return };
        self.release(running);
        if done.status != 0 {
            self.refused(running, &done);
            return;
        }
        match running.kind {
            Kind::Flush => self.summary.flushes += 1,
            Kind::Write { generation } => {
                self.summary.writes += 1;
                for unit in running.first..running.first + running.units {
                    self.acknowledged[unit as usize] = generation;
                    self.uncertain.remove(&unit);
                }
            }
            Kind::Read | Kind::Resolve => {
                self.summary.reads += 1;
                let expected = running.units * self.plan.unit_bytes;
                if done.received != expected {
                    self.find("short read", format!("{} of {expected} bytes at unit {}", done.received, running.first));
                    return;
                }
                for (number, bytes) in done.data.chunks_exact(self.plan.unit_bytes as usize).enumerate() {
                    self.check_unit(running.first + number as u32, bytes);
                }
            }
        }
    }

    /// A command that did not end GOOD. Busy, task set full and unit attentions are told again; the rest is a finding.
    fn refused(&mut self, running: Running, done: &Done) {
        if let Kind::Write { generation } = running.kind {
            self.make_uncertain(running, generation);
        } else if running.kind == Kind::Resolve {
            self.to_resolve.push(running.first);
        }
        let unit_attention = done.sense_triple().is_some_and(|(key, ..)| key == 6);
        let again = matches!(done.status, 0x08 | 0x28) || (done.status == 0x02 && unit_attention);
        if !again {
            let detail = format!(
                "{:?} of {} units at unit {}: status {:#04x}, sense {:02x?}",
                running.kind,
                running.units,
                running.first,
                done.status,
                done.sense_triple()
            );
            self.find("failed command", detail);
        }
    }

    /// Compare one unit with the journal; settle it if it was uncertain.
    fn check_unit(&mut self, unit: u32, bytes: &[u8]) {
        let first_block = (self.plan.first_byte + u64::from(unit) * u64::from(self.plan.unit_bytes)) / BLOCK_LEN as u64;
        let allowed = self.uncertain.get(&unit).cloned().unwrap_or_else(|| vec![self.acknowledged[unit as usize]]);
        if allowed.contains(&ANYTHING) {
            self.uncertain.remove(&unit);
            return;
        }
        let mut generations = vec![];
        for (number, block) in bytes.chunks_exact(BLOCK_LEN).enumerate() {
            match judge(stamp::read(block), first_block + number as u64, self.plan.writer, &allowed) {
                Ok(generation) => generations.push(generation),
                Err((kind, detail)) => {
                    self.find(kind, format!("unit {unit}, block {}: {detail}", first_block + number as u64));
                    return;
                }
            }
        }
        if !self.uncertain.contains_key(&unit) {
            return;
        }
        generations.dedup();
        if let [generation] = generations[..] {
            self.acknowledged[unit as usize] = generation;
            self.uncertain.remove(&unit);
        } else {
            self.summary.half_written += 1;
            self.to_rewrite.push(unit);
        }
    }

    fn find(&mut self, kind: &'static str, detail: String) {
        self.summary.finding_count += 1;
        if self.summary.findings.len() < FINDINGS_MAX {
            self.summary.findings.push(Finding { kind, detail });
        }
    }

    /// Wait for what is in flight, then read the whole region and compare it with the journal.
    pub fn check_all(&mut self) -> io::Result<()> {
        let began = Instant::now();
        while self.in_flight() > 0 || !self.to_resolve.is_empty() || !self.to_rewrite.is_empty() {
            pause_unless(self.turn(false)?);
            if began.elapsed() > Duration::from_secs(30) {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "commands did not end within 30 seconds"));
            }
        }
        let Some(mut pipeline) = self.pipeline.take() else { return Err(io::ErrorKind::NotConnected.into()) };
        let step = self.units_at_once();
        let all = self.acknowledged.len() as u32;
        let mut first = 0;
        while first < all {
            let running = Running { kind: Kind::Read, first, units: step.min(all - first) };
            let request = self.request(running, 0);
            let done = pipeline.run(request)?;
            self.running[0] = Some(running);
            self.ended(done);
            first += running.units;
        }
        self.pipeline = Some(pipeline);
        Ok(())
    }

    /// Compare the journal with the bytes of a raw image of the logical unit, after [`Verifier::check_all`].
    pub fn check_image(&mut self, image: &mut impl io::Read) -> io::Result<()> {
        io::copy(&mut io::Read::take(&mut *image, self.plan.first_byte), &mut io::sink())?;
        let mut bytes = vec![0; self.plan.unit_bytes as usize];
        for unit in 0..self.acknowledged.len() as u32 {
            image.read_exact(&mut bytes)?;
            self.check_unit(unit, &bytes);
        }
        Ok(())
    }

    /// Run until stopped, connecting again for up to `patience` whenever the connection breaks.
    pub fn run(&mut self, progress: &Progress, patience: Duration) -> Result<(), String> {
        while !progress.stop.load(Ordering::Relaxed) {
            match self.turn(true) {
                Ok(moved) => pause_unless(moved),
                Err(_) => self.reconnect_within(patience)?,
            }
            progress.writes.store(self.summary.writes, Ordering::Relaxed);
            progress.ios.store(self.summary.writes + self.summary.reads + self.summary.flushes, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Connect again, trying for so long.
    pub fn reconnect_within(&mut self, patience: Duration) -> Result<(), String> {
        let began = Instant::now();
        loop {
            match self.reconnect() {
                Ok(()) => return Ok(()),
                Err(e) if began.elapsed() > patience => {
                    return Err(format!("no new connection within {} s: {e}", patience.as_secs()));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

/// Many sessions to one target at once, each with a region of its own, driven by the calling thread.
#[derive(Clone, Debug)]
pub struct Sessions {
    /// Of every session; its region, writer, seed and ISID are replaced.
    pub template: Plan,
    /// How many.
    pub count: u32,
    /// Bytes of each session's region.
    pub region_bytes: u64,
    /// How long all of them work together.
    pub duration: Duration,
    /// The regions may hold anything; otherwise they must read as zeros.
    pub adopt: bool,
}

impl Sessions {
    /// Log all of them in, let them work at once, check every region. The counts are summed up.
    pub fn run(&self) -> Result<Summary, String> {
        let mut verifiers = self.open()?;
        let began = Instant::now();
        while began.elapsed() < self.duration {
            turn_all(&mut verifiers, true)?;
        }
        while verifiers.iter().any(|verifier| verifier.in_flight() > 0) {
            turn_all(&mut verifiers, false)?;
            if began.elapsed() > self.duration + Duration::from_secs(60) {
                return Err("commands did not end within 60 seconds".to_owned());
            }
        }
        let mut total = Summary::default();
        for (number, verifier) in verifiers.iter_mut().enumerate() {
            verifier.check_all().map_err(|e| format!("session {number}: {e}"))?;
            let one = verifier.summary();
            if one.writes == 0 {
                return Err(format!("session {number} wrote nothing"));
            }
            total.writes += one.writes;
            total.reads += one.reads;
            total.flushes += one.flushes;
            total.finding_count += one.finding_count;
            let room = FINDINGS_MAX - total.findings.len().min(FINDINGS_MAX);
            total.findings.extend(one.findings.iter().take(room).cloned());
        }
        Ok(total)
    }

    /// Log all of them in, and leave them idle.
    pub fn open(&self) -> Result<Vec<Verifier>, String> {
        (0..self.count)
            .map(|number| {
                let mut plan = self.template.clone();
                plan.wishes = plan.wishes.session(number + 1);
                plan.first_byte += u64::from(number) * self.region_bytes;
                plan.len_bytes = self.region_bytes;
                plan.writer += number;
                plan.seed = plan.seed.wrapping_add(u64::from(number) << 20);
                let mut verifier = Verifier::open(plan).map_err(|e| format!("session {number}: {e}"))?;
                if self.adopt {
                    verifier.adopt().map_err(|e| format!("session {number}: {e}"))?;
                }
                Ok(verifier)
            })
            .collect()
    }
}

fn turn_all(verifiers: &mut [Verifier], fresh: bool) -> Result<(), String> {
    let mut moved = false;
    for (number, verifier) in verifiers.iter_mut().enumerate() {
        moved |= verifier.turn(fresh).map_err(|e| format!("session {number} broke: {e}"))?;
    }
    pause_unless(moved);
    Ok(())
}

/// Leave the CPU to others for a moment when nothing moved.
pub fn pause_unless(moved: bool) {
    if !moved {
        std::thread::sleep(Duration::from_micros(20));
    }
}

fn take_idle(list: &mut Vec<u32>, busy: &[bool]) -> Option<u32> {
    let at = list.iter().position(|unit| !busy[*unit as usize])?;
    Some(list.swap_remove(at))
}

/// The generation of a block that may stand here, or what is wrong with it.
fn judge(content: Content, block: u64, writer: u32, allowed: &[u32]) -> Result<u32, (&'static str, String)> {
    let newest = allowed.iter().max().copied().unwrap_or(0);
    match content {
        Content::Zeros if allowed.contains(&0) => Ok(0),
        Content::Zeros => Err(("lost", format!("zeros where generation {allowed:?} was written"))),
        Content::Foreign => Err(("foreign", "neither zeros nor a stamped block".to_owned())),
        Content::Torn(stamp) => Err(("torn", format!("the checksum of generation {} is wrong", stamp.generation))),
        Content::Stamped(stamp) if stamp.block != block || stamp.writer != writer => {
            Err(("misdirected", format!("it is block {} of writer {}", stamp.block, stamp.writer)))
        }
        Content::Stamped(stamp) if allowed.contains(&stamp.generation) => Ok(stamp.generation),
        Content::Stamped(stamp) if stamp.generation < newest => {
            Err(("stale", format!("generation {} where {allowed:?} was written", stamp.generation)))
        }
        Content::Stamped(stamp) => {
            Err(("unknown generation", format!("generation {} where {allowed:?} was written", stamp.generation)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_damage_has_its_name() {
        let stamp = Stamp { block: 8, generation: 5, writer: 1 };
        let kind = |content, allowed: &[u32]| judge(content, 8, 1, allowed).map_err(|(kind, _)| kind);
        assert_eq!(kind(Content::Stamped(stamp), &[5]), Ok(5));
        assert_eq!(kind(Content::Stamped(stamp), &[4, 5]), Ok(5));
        assert_eq!(kind(Content::Zeros, &[0, 5]), Ok(0));
        assert_eq!(kind(Content::Zeros, &[5]), Err("lost"));
        assert_eq!(kind(Content::Stamped(stamp), &[6]), Err("stale"));
        assert_eq!(kind(Content::Stamped(stamp), &[4]), Err("unknown generation"));
        assert_eq!(kind(Content::Torn(stamp), &[5]), Err("torn"));
        assert_eq!(kind(Content::Stamped(Stamp { block: 9, ..stamp }), &[5]), Err("misdirected"));
        assert_eq!(kind(Content::Foreign, &[5]), Err("foreign"));
    }
}
