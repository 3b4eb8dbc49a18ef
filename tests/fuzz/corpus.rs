//! The files that a guided search found worth keeping: each is a list of case numbers, whose changes are made one after
//! the other to the seed that the first one decides. A file `corpus/NAME.txt` has one of them on each line.

use std::fmt::Write as _;
use std::path::PathBuf;

use crate::vhdx_support::Random;

/// Changes that are made one after the other, by their numbers.
pub type History = Vec<u64>;

/// More changes make no file more interesting.
const CHANGES_MAX: usize = 6;

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name).with_extension("txt")
}

/// What has been kept under a name.
pub fn load(name: &str) -> Vec<History> {
    let text = std::fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{}: {error}", path(name).display()));
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(parse).collect()
}

/// The other way round.
pub fn parse(line: &str) -> History {
    let number = |text: &str| text.parse().unwrap_or_else(|_| panic!("'{line}' is not a list of numbers"));
    line.split(',').map(|text| number(text.trim())).collect()
}

/// As a line.
pub fn line(history: &History) -> String {
    history.iter().map(u64::to_string).collect::<Vec<_>>().join(",")
}

/// Keep these.
pub fn keep(name: &str, histories: &[History]) {
    let mut text = format!(
        "# Case numbers that reach something each, found by tests/fuzz/guided. They mean what seeds.rs and mutate.rs\n\
         # make of them: after a change there, find others.\n# {} of {name}\n",
        histories.len()
    );
    for history in histories {
        writeln!(text, "{}", line(history)).expect("a string takes everything");
    }
    std::fs::write(path(name), text).unwrap_or_else(|error| panic!("{}: {error}", path(name).display()));
}

/// Something new, mostly made of what is there.
pub fn child(random: &mut Random, corpus: &[History]) -> History {
    if corpus.is_empty() || random.below(8) == 0 {
        return vec![random.next() >> 32];
    }
    let pick = |random: &mut Random| &corpus[random.below(corpus.len() as u64) as usize];
    let mut history = pick(random).clone();
    match random.below(4) {
        0 if history.len() > 1 => drop(history.remove(random.below(history.len() as u64) as usize)),
        1 => {
            let at = random.below(history.len() as u64) as usize;
            history[at] = random.next() >> 32;
        }
        2 => history.extend(&pick(random)[1..]),
        _ => history.push(random.next() >> 32),
    }
    history.truncate(CHANGES_MAX);
    history
}
