//! What persistent reservations must come to (SPC-4 clause 5.13): a small model, written from the standard alone, that
//! several initiators hold the server's answers against.
//!
//! Changes that overlap may have happened in any order that their answers allow, and one without an answer may have
//! happened or not: the model keeps every state that is possible. What a write or a question hears while nothing
//! changes must agree with one of them.

use std::collections::BTreeMap;

/// Changes that may be under way at once, or wait for one that is.
const BATCH_MAX: usize = 3;

/// Types of reservations that are used.
pub(super) const KINDS: [u8; 4] = [1, 3, 5, 6];

/// A change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// REGISTER AND IGNORE EXISTING KEY with the node's key.
    Register {
        persist: bool,
    },
    /// REGISTER with a new key of zero.
    Unregister,
    Reserve(u8),
    Release(u8),
    /// PREEMPT, or PREEMPT AND ABORT, of a node's key.
    Preempt {
        victim: usize,
        kind: u8,
        abort: bool,
    },
    Clear,
}

/// How a change was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answered {
    Good,
    Conflict,
    /// CHECK CONDITION that says what is wrong with it.
    Wrong,
    /// It was not looked at (BUSY, unit attention).
    NotDone,
    /// Nobody knows.
    Lost,
}

/// A state of the reservations. A node's key tells which node it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct State {
    registered: Vec<usize>,
    reservation: Option<(usize, u8)>,
    persist: bool,
}

impl State {
    fn is_registered(&self, node: usize) -> bool {
        self.registered.contains(&node)
    }

    fn remove(&mut self, node: usize) {
        self.registered.retain(|other| *other != node);
        if self.reservation.is_some_and(|(holder, _)| holder == node) {
            self.reservation = None;
        }
    }

    fn apply(&mut self, node: usize, operation: Operation) -> Answered {
        if let Operation::Register { persist } = operation {
            if !self.is_registered(node) {
                self.registered.push(node);
                self.registered.sort_unstable();
            }
            self.persist = persist;
            return Answered::Good;
        }
        if !self.is_registered(node) {
            return Answered::Conflict;
        }
        match operation {
            Operation::Register { .. } => {}
            Operation::Unregister => {
                self.remove(node);
                self.persist = false;
            }
            Operation::Reserve(kind) => match self.reservation {
                None => self.reservation = Some((node, kind)),
                Some(held) if held == (node, kind) => {}
                Some(_) => return Answered::Conflict,
            },
            Operation::Release(kind) => match self.reservation {
                Some((holder, held)) if holder == node && held != kind => return Answered::Wrong,
                Some((holder, _)) if holder == node => self.reservation = None,
                _ => {}
            },
            Operation::Preempt { victim, kind, .. } => {
                if !self.is_registered(victim) {
                    return Answered::Conflict;
                }
                let takes = self.reservation.is_some_and(|(holder, _)| holder == victim);
                self.remove(victim);
                if takes {
                    self.reservation = Some((node, kind));
                }
            }
            Operation::Clear => {
                self.registered.clear();
                self.reservation = None;
            }
        }
        Answered::Good
    }

    fn may_write(&self, node: usize) -> bool {
        match self.reservation {
            None => true,
            Some((holder, kind)) => holder == node || (matches!(kind, 5 | 6) && self.is_registered(node)),
        }
    }

    fn survives(&mut self) {
        if !self.persist {
            *self = State::default();
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    node: usize,
    operation: Operation,
    began: u64,
    ended: Option<(u64, Answered)>,
}

/// When a command was sent, for what may be expected of its answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark(Option<u64>);

/// The model, shared by the initiators of a world.
#[derive(Debug)]
pub(super) struct Model {
    possible: Vec<State>,
    batch: BTreeMap<u64, Entry>,
    /// Counts beginnings and ends of changes.
    clock: u64,
    /// Answers that were held against the model.
    pub(super) checked: u64,
}

impl Default for Model {
    fn default() -> Model {
        Model { possible: vec![State::default()], batch: BTreeMap::new(), clock: 0, checked: 0 }
    }
}

impl Model {
    /// A change is about to be sent; `None`: not now.
    pub fn begin(&mut self, node: usize, operation: Operation) -> Option<u64> {
        if self.batch.len() >= BATCH_MAX {
            return None;
        }
        self.clock += 1;
        self.batch.insert(self.clock, Entry { node, operation, began: self.clock, ended: None });
        Some(self.clock)
    }

    /// A change has been answered.
    pub fn ended(&mut self, change: u64, answered: Answered) -> Result<(), String> {
        self.clock += 1;
        match self.batch.get_mut(&change) {
            Some(_) if answered == Answered::NotDone => drop(self.batch.remove(&change)),
            Some(entry) => entry.ended = Some((self.clock, answered)),
            None => return Ok(()),
        }
        self.settle()
    }

    /// The server has ended: what is without an answer may have happened.
    pub fn crashed(&mut self) -> Result<(), String> {
        self.clock += 1;
        for entry in self.batch.values_mut().filter(|entry| entry.ended.is_none()) {
            entry.ended = Some((self.clock, Answered::Lost));
        }
        self.settle()?;
        self.possible.iter_mut().for_each(State::survives);
        self.tidy();
        Ok(())
    }

    /// When all of the batch are answered, find what is possible now.
    fn settle(&mut self) -> Result<(), String> {
        if self.batch.values().any(|entry| entry.ended.is_none()) {
            return Ok(());
        }
        let entries: Vec<Entry> = std::mem::take(&mut self.batch).into_values().collect();
        let before = std::mem::take(&mut self.possible);
        for state in &before {
            orders(state, &entries, &mut self.possible);
        }
        self.tidy();
        self.checked += entries.len() as u64;
        match self.possible.is_empty() {
            true => Err(format!("no order of {entries:?} explains their answers; before: {before:?}")),
            false => Ok(()),
        }
    }

    fn tidy(&mut self) {
        self.possible.sort();
        self.possible.dedup();
    }

    /// A command that changes nothing is about to be sent.
    pub fn mark(&self) -> Mark {
        Mark(self.batch.is_empty().then_some(self.clock))
    }

    fn is_undisturbed(&self, mark: Mark) -> bool {
        mark.0 == Some(self.clock)
    }

    /// A write was answered.
    pub fn written(&mut self, mark: Mark, node: usize, good: bool) -> Result<(), String> {
        if !self.is_undisturbed(mark) {
            return Ok(());
        }
        self.checked += 1;
        let before = self.possible.clone();
        self.possible.retain(|state| state.may_write(node) == good);
        match self.possible.is_empty() {
            true => Err(format!("a write of node {node} was {}: {before:?}", if good { "taken" } else { "refused" })),
            false => Ok(()),
        }
    }

    /// Whether a node may not write, and could not at any moment since.
    pub fn is_kept_out(&self, mark: Mark, node: usize) -> bool {
        self.is_undisturbed(mark) && self.possible.iter().all(|state| !state.may_write(node))
    }

    /// Registered nodes and the holder with its type were reported.
    pub fn seen(&mut self, mark: Mark, mut nodes: Vec<usize>, held: Option<Option<(usize, u8)>>) -> Result<(), String> {
        if !self.is_undisturbed(mark) {
            return Ok(());
        }
        self.checked += 1;
        nodes.sort_unstable();
        let before = self.possible.clone();
        match held {
            Some(held) => self.possible.retain(|state| state.reservation == held),
            None => self.possible.retain(|state| state.registered == nodes),
        }
        match self.possible.is_empty() {
            true => Err(format!("reported: {nodes:?} registered, {held:?} held; possible: {before:?}")),
            false => Ok(()),
        }
    }
}

/// Every state that the entries lead to in an order which agrees with their answers and times.
fn orders(state: &State, left: &[Entry], found: &mut Vec<State>) {
    if left.is_empty() {
        return found.push(state.clone());
    }
    for (index, entry) in left.iter().enumerate() {
        let is_first = left.iter().all(|other| other.ended.is_none_or(|(ended, _)| ended > entry.began));
        let Some((_, answered)) = entry.ended.filter(|_| is_first) else { continue };
        let rest: Vec<Entry> =
            left.iter().enumerate().filter(|(other, _)| *other != index).map(|(_, entry)| *entry).collect();
        let mut next = state.clone();
        let outcome = next.apply(entry.node, entry.operation);
        if answered == Answered::Lost {
            orders(state, &rest, found);
            orders(&next, &rest, found);
        } else if answered == outcome {
            orders(if outcome == Answered::Good { &next } else { state }, &rest, found);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_changes_are_explained_by_some_order_and_writes_by_what_came_of_it() {
        let mut model = Model::default();
        let done = |model: &mut Model, node, operation, answered| {
            let change = model.begin(node, operation).unwrap();
            model.ended(change, answered)
        };
        done(&mut model, 0, Operation::Register { persist: false }, Answered::Good).unwrap();
        done(&mut model, 1, Operation::Register { persist: false }, Answered::Good).unwrap();
        let (a, b) = (model.begin(0, Operation::Reserve(1)).unwrap(), model.begin(1, Operation::Reserve(1)).unwrap());
        model.ended(a, Answered::Conflict).unwrap();
        model.ended(b, Answered::Good).unwrap();
        let mark = model.mark();
        assert!(model.written(mark, 0, true).is_err(), "node 1 holds it");
        let mut model = Model::default();
        assert!(done(&mut model, 0, Operation::Reserve(1), Answered::Good).is_err(), "it is not registered");
    }

    #[test]
    fn what_is_lost_may_have_happened_or_not_until_something_tells() {
        let mut model = Model::default();
        let register = model.begin(0, Operation::Register { persist: true }).unwrap();
        model.ended(register, Answered::Good).unwrap();
        model.begin(0, Operation::Reserve(1)).unwrap();
        model.crashed().unwrap();
        let mark = model.mark();
        model.written(mark, 1, false).unwrap();
        assert!(model.written(mark, 1, true).is_err(), "it is known to have happened");
    }
}
