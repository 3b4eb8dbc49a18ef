//! Mutated files: every structure of the formats that is read from a disk, changed by a mutator that knows where its
//! fields are and makes checksums right again. No file may make us panic, allocate or read without bound, contradict
//! the reader from the specification, or be left in a state that it refuses.
//!
//! A case is a list of numbers ([`corpus`]): the first decides the seed file, each of them changes. Without more words
//! the same cases run each time: those of the corpus, and others made from them; a slow machine does not get through
//! all of them, which is no failure. `LUNARING_FUZZ_SECONDS` searches for so long instead, from a place chosen at
//! random (or `LUNARING_FUZZ_START`); `LUNARING_FUZZ_CASE` runs one case alone. `tests/fuzz/guided` searches with the
//! compiler counting branches ([`coverage`]): what takes a new one joins the corpus.
#![allow(
    unsafe_code,
    reason = "a counting global allocator is an unsafe impl by definition, and so are LLVM's counters"
)]

mod corpus;
mod coverage;
#[path = "../judges/made.rs"]
#[allow(dead_code, reason = "only files in memory are made here")]
mod made;
#[path = "../judges/made_vhd.rs"]
#[allow(dead_code, reason = "only files in memory are made here")]
mod made_vhd;
mod mutate;
#[path = "../reference/mod.rs"]
mod reference;
mod seeds;
mod target;
mod target_vhd;
#[path = "../vhdx_support/mod.rs"]
mod vhdx_support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use corpus::History;
use coverage::Coverage;
use mutate::{Field, Mutation, fields, mutation};
use seeds::Start;
use target::{Outcome, without_numbers};
use vhdx_support::{Random, SparseFile};

/// What one case may hold at a time, and what it may never ask for.
const MEMORY_MAX_BYTES: u64 = 192 << 20;
const MEMORY_FATAL_BYTES: u64 = 4 << 30;
/// How many cases run however long they take, and how long the others may take.
const CASES_MIN: u64 = 100;
const CASES_TIME_MAX: Duration = Duration::from_secs(60);
/// CPU time of one case. Unoptimised code on a slow machine reading the largest table there can be.
const CPU_MAX: Duration = Duration::from_secs(30);

thread_local! {
    static HELD: Cell<u64> = const { Cell::new(0) };
    static PEAK: Cell<u64> = const { Cell::new(0) };
    static CASE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// The system's allocator, which knows what each thread holds.
struct Counting;

fn add(bytes: usize) {
    let held = HELD.get().saturating_add(bytes as u64);
    HELD.set(held);
    PEAK.set(PEAK.get().max(held));
    if held > MEMORY_FATAL_BYTES {
        HELD.set(0);
        CASE.with_borrow(|case| eprintln!("case {case} asks for {bytes} bytes and holds {held}"));
        std::process::abort();
    }
}

fn subtract(bytes: usize) {
    HELD.set(HELD.get().saturating_sub(bytes as u64));
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        subtract(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        subtract(layout.size());
        add(size);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// CPU time of this thread, in clock ticks of 10 ms.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").expect("Linux tells");
    let fields: Vec<&str> = stat[stat.rfind(')').expect("a name")..].split_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<u64>().expect("a number");
    Duration::from_millis(10 * (ticks(12) + ticks(13)))
}

/// A file to begin with, and the places of its fields.
struct Seed {
    start: Start,
    fields: Vec<Field>,
}

/// What is done with a file and the bytes behind it.
type Target = fn(&SparseFile, Option<&SparseFile>) -> Outcome;

fn with_fields(starts: Vec<Start>) -> Vec<Seed> {
    starts.into_iter().map(|start| Seed { fields: fields(&start.file), start }).collect()
}

/// What went wrong with a file, if anything.
fn trouble(target: Target, file: &SparseFile, parent: Option<&SparseFile>) -> Result<Outcome, String> {
    let (began, before) = (cpu_time(), HELD.get());
    PEAK.set(before);
    let outcome = catch_unwind(AssertUnwindSafe(|| target(file, parent))).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
    })?;
    let (peak, took) = (PEAK.get() - before, cpu_time() - began);
    if peak > MEMORY_MAX_BYTES {
        return Err(format!("{peak} bytes of memory"));
    }
    if took > CPU_MAX {
        return Err(format!("{took:?} of CPU time"));
    }
    Ok(outcome)
}

fn case<'a>(history: &History, seeds: &'a [Seed]) -> (&'a Seed, Mutation) {
    let mut random = Random(history[0]);
    let seed = &seeds[random.below(seeds.len() as u64) as usize];
    let mut all = mutation(&mut random, &seed.start.file, &seed.fields);
    for &number in &history[1..] {
        let Mutation { edits, len, unsealed } = mutation(&mut Random(number), &seed.start.file, &seed.fields);
        all.edits.extend(edits);
        all.len = len.or(all.len);
        all.unsealed |= unsealed;
    }
    (seed, all)
}

fn trouble_with(target: Target, seed: &Seed, mutation: &Mutation) -> Result<Outcome, String> {
    trouble(target, &mutation.apply(&seed.start.file), seed.start.parent.as_ref())
}

/// The changes without which nothing goes wrong any more.
fn smallest(target: Target, seed: &Seed, mut mutation: Mutation) -> Mutation {
    let fails = |mutation: &Mutation| trouble_with(target, seed, mutation).is_err();
    for at in (0..mutation.edits.len()).rev() {
        let mut less = mutation.clone();
        less.edits.remove(at);
        if fails(&less) {
            mutation = less;
        }
    }
    let less = Mutation { len: None, ..mutation.clone() };
    if fails(&less) { less } else { mutation }
}

fn number_from(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

#[test]
fn mutated_vhdx_are_survived() {
    run("vhdx", target::examine_vhdx, &with_fields(seeds::all()), 1500);
}

#[test]
fn mutated_vhd_are_survived() {
    run("vhd", target_vhd::examine_vhd, &with_fields(seeds::all_vhd()), 500);
}

#[test]
fn mutated_images_of_others_are_survived() {
    for (format, target, cases) in
        [("vhdx", target::examine_vhdx as Target, 500), ("vhd", target_vhd::examine_vhd as Target, 200)]
    {
        match with_fields(seeds::images(format)) {
            seeds if seeds.is_empty() => println!("LUNARING_IMAGES is not set: nothing was tried"),
            seeds => run("", target, &seeds, cases),
        }
    }
}

/// Files that something went wrong with once: the seed's name, the edit and the length.
#[test]
fn former_troubles_stay_away() {
    let cut = Mutation { len: Some(300_000), ..Mutation::default() };
    let edit = |offset, bytes: &[u8]| Mutation {
        edits: vec![mutate::Edit { offset, bytes: bytes.to_vec() }],
        ..Mutation::default()
    };
    for (target, seeds, name, mutation) in [
        // A check took the end of the file for a failure of the storage.
        (target::examine_vhdx as Target, seeds::all(), "made 1, dirty", cut),
        // A parent's path under the footer.
        (target_vhd::examine_vhd, seeds::all_vhd(), "made VHD 5", edit(0x450, &[0, 0, 0, 0, 0, 0x20, 0x3e, 0])),
        // Zeros that a log wants written, over more than anybody can write.
        (
            target::examine_vhdx,
            seeds::all(),
            "made 5, dirty",
            Mutation { len: Some(1 << 47), ..edit(0x20_a088, &[0, 0, 0x10, 0, 1, 0, 0, 0]) },
        ),
        // An entry of the log without descriptors, longer than it needs to be.
        (target::examine_vhdx, seeds::all(), "ours, dirty", edit(0x10_3018, &[0; 4])),
        // A dirty file that ends before blocks which its log creates: they are shown as zeros.
        (target::examine_vhdx, seeds::all(), "made 6, dirty", Mutation { len: Some(5 << 20), ..Mutation::default() }),
    ] {
        let seed = with_fields(seeds).into_iter().find(|seed| seed.start.name == name).expect("a seed of that name");
        trouble_with(target, &seed, &mutation).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

/// Which cases are tried.
struct Search {
    first: u64,
    count: u64,
    limit: Duration,
}

fn search(cases: u64) -> Search {
    let start = number_from("LUNARING_FUZZ_START");
    match number_from("LUNARING_FUZZ_SECONDS") {
        Some(seconds) => {
            let random = RandomState::new().hash_one(std::process::id());
            Search { first: start.unwrap_or(random), count: u64::MAX, limit: Duration::from_secs(seconds) }
        }
        None => Search { first: start.unwrap_or(1), count: cases, limit: CASES_TIME_MAX },
    }
}

/// What came of the cases that were tried: of each kind how many, and one of them.
#[derive(Default)]
struct Results {
    opinions: BTreeMap<String, (u64, History)>,
    failures: BTreeMap<String, (u64, History)>,
}

impl Results {
    fn add(&mut self, result: Result<Outcome, String>, history: &History) {
        let (kinds, kind) = match result {
            Ok(outcome) => (&mut self.opinions, format!("{outcome:?}")),
            Err(error) => (&mut self.failures, without_numbers(&error)),
        };
        kinds.entry(kind).or_insert_with(|| (0, history.clone())).0 += 1;
    }

    fn report(&self, target: Target, seeds: &[Seed]) {
        for (outcome, (count, example)) in &self.opinions {
            println!("{count:8}  {outcome} (case {})", corpus::line(example));
        }
        for (error, (count, history)) in &self.failures {
            let (seed, mutation) = case(history, seeds);
            let least = smallest(target, seed, mutation);
            println!(
                "{count:8}  FAILED {error}\n          case {}, {}: {least:x?}",
                corpus::line(history),
                seed.start.name
            );
        }
        assert!(self.failures.is_empty(), "see above");
    }
}

fn attempt(target: Target, history: &History, seeds: &[Seed]) -> Result<Outcome, String> {
    CASE.set(corpus::line(history));
    let (seed, mutation) = case(history, seeds);
    trouble_with(target, seed, &mutation)
}

/// Try all seeds, everything in the corpus of this name (if it has one), and so many cases made of those.
fn run(name: &str, target: Target, seeds: &[Seed], cases: u64) {
    for seed in seeds {
        let Start { name, file, parent } = &seed.start;
        let outcome = trouble(target, file, parent.as_ref()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(outcome, Outcome::Read, "{name}");
    }
    if let Ok(text) = std::env::var("LUNARING_FUZZ_CASE") {
        let (seed, mutation) = case(&corpus::parse(&text), seeds);
        println!("{}: {mutation:x?}", seed.start.name);
        println!("{:?}", trouble_with(target, seed, &mutation));
        return;
    }
    let known = if name.is_empty() { Vec::new() } else { corpus::load(name) };
    if Coverage::is_known() && !name.is_empty() {
        return run_guided(name, target, seeds, known);
    }
    let Search { first, count, limit } = search(cases);
    let (next, results, began) = (AtomicU64::new(0), Mutex::new(Results::default()), Instant::now());
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count.saturating_add(known.len() as u64) || index >= CASES_MIN && began.elapsed() > limit {
                break;
            }
            let history = match known.get(index as usize) {
                Some(history) => history.clone(),
                None => corpus::child(&mut Random(first.wrapping_add(index)), &known),
            };
            let result = attempt(target, &history, seeds);
            results.lock().expect("no thread panics while it counts").add(result, &history);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        scope.spawn(work);
    });
    let results = results.into_inner().expect("all threads have ended");
    let total: u64 = results.opinions.values().map(|(count, _)| count).sum();
    println!("{total} cases, {} of them from the corpus, from {first} on", known.len());
    results.report(target, seeds);
}

/// Search for files that make the code take branches which none has taken.
fn run_guided(name: &str, target: Target, seeds: &[Seed], known: Vec<History>) {
    let Search { first, limit, .. } = search(0);
    let mut random = Random(first);
    let (mut taken, mut results, began) = (Coverage::default(), Results::default(), Instant::now());
    Coverage::reset();
    for seed in seeds {
        drop(trouble(target, &seed.start.file, seed.start.parent.as_ref()));
    }
    taken.take();
    let (mut kept, mut tried, seeds_edges): (Vec<History>, u64, usize) = (Vec::new(), 0, taken.edges());
    let mut waiting = known.into_iter();
    while began.elapsed() < limit {
        let history = waiting.next().unwrap_or_else(|| corpus::child(&mut random, &kept));
        Coverage::reset();
        let result = attempt(target, &history, seeds);
        if taken.take() > 0 && result.is_ok() {
            kept.push(history.clone());
        }
        results.add(result, &history);
        tried += 1;
    }
    println!(
        "{name}: {tried} cases from {first} on; {} kept; {} edges taken, {seeds_edges} of them by the seeds themselves",
        kept.len(),
        taken.edges()
    );
    if std::env::var_os("LUNARING_FUZZ_KEEP").is_some() {
        corpus::keep(name, &kept);
    }
    results.report(target, seeds);
}
