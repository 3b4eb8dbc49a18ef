//! Every request in every state that three nexuses with two keys can reach, against the rules written a second time: as
//! sets, clause by clause (SPC-5 clause 5.14), without a look at how the engine does it.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

use super::{apply, list, list_with, move_list, nexus};
use crate::scsi::reservations::{Effect, Nexus, ReservationKind, Reservations, ReserveOut};
use crate::scsi::{Attention, Outcome, Status};

/// Two initiators; the first reaches the unit by two ports.
const A: Who = (1, 1);
const B: Who = (2, 1);
const C: Who = (1, 2);
const EVERYONE: [Who; 3] = [A, B, C];
type Who = (u8, u16);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Model {
    keys: BTreeMap<Who, u64>,
    /// TYPE, and the holder where there is only one.
    reservation: Option<(u8, Option<Who>)>,
    persist: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Good,
    Conflict,
    Check(u8, u8),
}

const INVALID_FIELD_IN_CDB: Answer = Answer::Check(0x24, 0x00);
const INVALID_FIELD_IN_LIST: Answer = Answer::Check(0x26, 0x00);
const INVALID_RELEASE: Answer = Answer::Check(0x26, 0x04);

#[derive(Clone, Copy, Debug)]
struct Request {
    from: Who,
    action: ReserveOut,
    kind: u8,
    key: u64,
    action_key: u64,
    persist: bool,
    all_ports: bool,
    /// SPEC_I_PT names the other initiator.
    names_other: bool,
    /// REGISTER AND MOVE.
    to: Who,
    unregister: bool,
}

type Told = BTreeSet<(Who, &'static str)>;

fn all_registrants(kind: u8) -> bool {
    kind == 7 || kind == 8
}

impl Model {
    fn holders(&self) -> BTreeSet<Who> {
        match self.reservation {
            None => BTreeSet::new(),
            Some((_, Some(holder))) => [holder].into(),
            Some((_, None)) => self.keys.keys().copied().collect(),
        }
    }

    fn reserve(&mut self, who: Who, kind: u8) {
        self.reservation = Some((kind, (!all_registrants(kind)).then_some(who)));
    }

    /// Everyone registered but `who` is told.
    fn tell_others(&self, who: Who, what: &'static str) -> Told {
        self.keys.keys().filter(|other| **other != who).map(|other| (*other, what)).collect()
    }

    /// Registrations go away; so does a reservation without a holder, of which those who shared it are told.
    fn remove(&mut self, gone: &BTreeSet<Who>, by: Who) -> Told {
        self.keys.retain(|who, _| !gone.contains(who));
        let Some((kind, holder)) = self.reservation else { return Told::new() };
        let stays = holder.map_or(!self.keys.is_empty(), |holder| self.keys.contains_key(&holder));
        if stays {
            return Told::new();
        }
        self.reservation = None;
        if kind >= 5 { self.tell_others(by, "released") } else { Told::new() }
    }

    fn step(&self, request: &Request) -> (Answer, Self, Told) {
        let mut after = self.clone();
        match after.change(request) {
            Ok(told) => (Answer::Good, after, told),
            Err(answer) => (answer, self.clone(), Told::new()),
        }
    }

    fn change(&mut self, request: &Request) -> Result<Told, Answer> {
        use ReserveOut as R;
        let names_kind = matches!(request.action, R::Reserve | R::Preempt | R::PreemptAndAbort);
        if names_kind && ReservationKind::from_code(request.kind).is_none() {
            return Err(INVALID_FIELD_IN_CDB);
        }
        let own_key = self.keys.get(&request.from).copied();
        let ignores = request.action == R::RegisterAndIgnoreExistingKey;
        if !matches!(request.action, R::Register | R::RegisterAndIgnoreExistingKey) && own_key != Some(request.key) {
            // An unregistered nexus may only register; a registered one gives its key.
            return Err(Answer::Conflict);
        }
        match request.action {
            R::Register | R::RegisterAndIgnoreExistingKey => self.register(request, own_key, ignores),
            R::Reserve => match self.reservation {
                None => {
                    self.reserve(request.from, request.kind);
                    Ok(Told::new())
                }
                Some((kind, _)) if kind == request.kind && self.holders().contains(&request.from) => Ok(Told::new()),
                Some(_) => Err(Answer::Conflict),
            },
            R::Release => match self.reservation {
                Some((kind, _)) if self.holders().contains(&request.from) => {
                    if kind != request.kind {
                        return Err(INVALID_RELEASE);
                    }
                    self.reservation = None;
                    Ok(if kind >= 5 { self.tell_others(request.from, "released") } else { Told::new() })
                }
                _ => Ok(Told::new()),
            },
            R::Clear => {
                let told = self.tell_others(request.from, "cleared");
                self.keys.clear();
                self.reservation = None;
                Ok(told)
            }
            R::Preempt | R::PreemptAndAbort => self.preempt(request),
            R::RegisterAndMove => self.move_to(request),
        }
    }

    fn register(&mut self, request: &Request, own_key: Option<u64>, ignores: bool) -> Result<Told, Answer> {
        if !ignores && request.key != own_key.unwrap_or(0) {
            return Err(Answer::Conflict);
        }
        if request.names_other && own_key.is_some() {
            return Err(INVALID_FIELD_IN_CDB);
        }
        let ports: &[u16] = if request.all_ports { &[1, 2] } else { &[request.from.1] };
        let mine: BTreeSet<Who> = ports.iter().map(|port| (request.from.0, *port)).collect();
        if !ignores && mine.iter().any(|who| self.keys.get(who).is_some_and(|key| *key != request.key)) {
            return Err(Answer::Conflict);
        }
        self.persist = request.persist;
        match request.action_key {
            0 if own_key.is_none() => Ok(Told::new()),
            0 => Ok(self.remove(&mine, request.from)),
            key => {
                self.keys.extend(mine.iter().map(|who| (*who, key)));
                if request.names_other {
                    let other = 3 - request.from.0;
                    for port in ports {
                        self.keys.entry((other, *port)).or_insert(key);
                    }
                }
                Ok(Told::new())
            }
        }
    }

    fn preempt(&mut self, request: &Request) -> Result<Told, Answer> {
        let all = self.reservation.is_some_and(|(kind, _)| all_registrants(kind));
        if request.action_key == 0 && !all {
            return Err(INVALID_FIELD_IN_LIST);
        }
        let mut named: BTreeSet<Who> = EVERYONE.into_iter().chain([(2, 2)]).collect();
        named.retain(|who| self.keys.get(who).is_some_and(|key| request.action_key == 0 || *key == request.action_key));
        if named.is_empty() {
            return Err(Answer::Conflict);
        }
        let takes = if all { request.action_key == 0 } else { !self.holders().is_disjoint(&named) };
        let mut told = Told::new();
        if takes {
            named.remove(&request.from);
        }
        for who in named.iter().filter(|who| **who != request.from) {
            told.insert((*who, "preempted"));
            if request.action == ReserveOut::PreemptAndAbort {
                told.insert((*who, "aborted"));
            }
        }
        let before = self.reservation.map(|(kind, _)| kind);
        self.keys.retain(|who, _| !named.contains(who));
        if takes {
            self.reserve(request.from, request.kind);
            if before != Some(request.kind) {
                told.extend(self.tell_others(request.from, "released"));
            }
        } else if self.keys.is_empty() {
            self.reservation = None;
        }
        Ok(told)
    }

    fn move_to(&mut self, request: &Request) -> Result<Told, Answer> {
        let Some((kind, holder)) = self.reservation else { return Err(INVALID_FIELD_IN_CDB) };
        if holder != Some(request.from) {
            return Err(Answer::Conflict);
        }
        if request.action_key == 0 || request.to == request.from {
            return Err(INVALID_FIELD_IN_LIST);
        }
        self.keys.insert(request.to, request.action_key);
        self.reservation = Some((kind, Some(request.to)));
        self.persist = request.persist;
        Ok(if request.unregister { self.remove(&[request.from].into(), request.from) } else { Told::new() })
    }
}

/// Every request that is not the same as another one.
fn requests() -> Vec<Request> {
    use ReserveOut as R;
    let mut all = Vec::new();
    let keys = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)];
    for from in EVERYONE {
        for (key, action_key) in keys {
            let plain = Request {
                from,
                action: R::Clear,
                kind: 0,
                key,
                action_key,
                persist: false,
                all_ports: false,
                names_other: false,
                to: A,
                unregister: false,
            };
            all.push(plain);
            for flags in 0..8 {
                let (persist, all_ports, names_other) = (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0);
                let register = Request { action: R::Register, persist, all_ports, names_other, ..plain };
                all.push(register);
                if !names_other {
                    all.push(Request { action: R::RegisterAndIgnoreExistingKey, ..register });
                }
            }
            for kind in [0, 1, 2, 3, 5, 6, 7, 8] {
                for action in [R::Preempt, R::PreemptAndAbort] {
                    all.push(Request { action, kind, ..plain });
                }
                if action_key == 0 {
                    all.push(Request { action: R::Reserve, kind, ..plain });
                    all.push(Request { action: R::Release, kind, ..plain });
                }
            }
            for to in EVERYONE {
                for unregister in [false, true] {
                    all.push(Request { action: R::RegisterAndMove, to, unregister, ..plain });
                }
            }
        }
    }
    all
}

fn who(nexus: &Nexus) -> Who {
    (nexus.initiator.isid()[5], nexus.target_port)
}

/// The engine's state in the model's terms.
fn seen(state: &Reservations) -> Model {
    let keys: BTreeMap<_, _> = state.registrations().map(|(nexus, key)| (who(nexus), key)).collect();
    assert_eq!(keys.len(), state.registrations().count());
    let holder = state.registrations.iter().find(|registration| registration.holder);
    let holder = holder.map(|registration| who(&registration.nexus));
    Model { keys, reservation: state.reservation().map(|kind| (kind as u8, holder)), persist: state.persist }
}

/// The parameter list of a request.
fn encoded(request: &Request) -> Vec<u8> {
    let flags = u8::from(request.persist) | u8::from(request.all_ports) << 2;
    let other = nexus(3 - request.from.0, 1).initiator;
    match request.action {
        ReserveOut::RegisterAndMove => {
            let to = nexus(request.to.0, request.to.1);
            let flags = u8::from(request.persist) | u8::from(request.unregister) << 1;
            move_list(request.key, request.action_key, flags, &to)
        }
        _ if request.names_other => list_with(request.key, request.action_key, flags, &[&other]),
        _ => list(request.key, request.action_key, flags),
    }
}

fn carry_out(state: &mut Reservations, request: &Request, from: &Nexus, list: &[u8]) -> (Answer, Told) {
    let (outcome, effects) = apply(state, from, request.action, request.kind, list);
    let told: Told = effects.iter().map(|(nexus, effect)| (who(nexus), name(*effect))).collect();
    assert_eq!(told.len(), effects.len(), "nobody is told twice");
    (answer(outcome), told)
}

fn name(effect: Effect) -> &'static str {
    match effect {
        Effect::AbortCommands => "aborted",
        Effect::Attention(Attention::ReservationsReleased) => "released",
        Effect::Attention(Attention::ReservationsPreempted) => "cleared",
        Effect::Attention(Attention::RegistrationsPreempted) => "preempted",
        Effect::Attention(other) => panic!("{other:?} says nothing of reservations"),
    }
}

fn answer(outcome: Outcome) -> Answer {
    match (outcome.status, outcome.sense) {
        (Status::GOOD, _) => Answer::Good,
        (Status::RESERVATION_CONFLICT, _) => Answer::Conflict,
        (_, Some(sense)) => Answer::Check(sense.code().asc, sense.code().ascq),
        (status, None) => panic!("{status:?}"),
    }
}

#[test]
fn every_request_in_every_state_does_what_the_rules_say() {
    let requests: Vec<_> = requests()
        .into_iter()
        .map(|request| (request, nexus(request.from.0, request.from.1), encoded(&request)))
        .collect();
    let start = Reservations::new();
    let mut known: HashSet<Model> = [seen(&start)].into();
    let mut open: VecDeque<Reservations> = [start].into();
    let mut steps = 0;
    while let Some(state) = open.pop_front() {
        let model = seen(&state);
        for (request, from, list) in &requests {
            let mut after = state.clone();
            let (answer, told) = carry_out(&mut after, request, from, list);
            let (expected_answer, expected, expected_told) = model.step(request);
            let context = || format!("{model:?}\n{request:?}");
            assert_eq!(answer, expected_answer, "{}", context());
            assert_eq!(seen(&after), expected, "{}", context());
            assert_eq!(told, expected_told, "{}", context());
            assert!(after.is_possible(), "{}", context());
            let counts = !matches!(request.action, ReserveOut::Reserve | ReserveOut::Release);
            let generations = u32::from(answer == Answer::Good && counts);
            assert_eq!(after.generation(), state.generation() + generations, "{}", context());
            if answer != Answer::Good {
                assert_eq!(after, state, "{}", context());
            }
            steps += 1;
            // Nothing but what is stored depends on APTPL.
            if known.insert(Model { persist: false, ..expected }) {
                open.push_back(after);
            }
        }
        check_storing(&state);
    }
    // Registrations of 4 nexuses (SPEC_I_PT reaches the fourth) under 2 keys, times what they can hold.
    assert!(known.len() > 800, "{}", known.len());
    assert_eq!(steps, known.len() * requests.len());
}

/// What is stored comes back, but for PRGENERATION.
fn check_storing(state: &Reservations) {
    assert_eq!(state.to_bytes().is_some(), state.persist);
    let stored = Reservations { generation: 0, persist: true, ..state.clone() };
    let bytes = stored.to_bytes().expect("APTPL");
    assert_eq!(Reservations::from_bytes(&bytes), Ok(stored));
}
