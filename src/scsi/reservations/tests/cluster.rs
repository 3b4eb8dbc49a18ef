//! What clusters do with reservations, step by step: the storage tests of Windows' cluster validation, its live
//! failover, and Linux nodes that fence each other; and RESERVE and RELEASE beside it.

use super::{apply, list, nexus};
use crate::scsi::fixture::{DISK, run_on, unit};
use crate::scsi::reservations::{Effect, Nexus, Reservations, ReserveOut};
use crate::scsi::{Action, Attention, NexusUnit, Outcome, Status};

const CONFLICT: Outcome = Outcome::status(Status::RESERVATION_CONFLICT);
/// Write exclusive, registrants only: what Windows clusters use.
const WERO: u8 = 5;

struct Cluster {
    state: Reservations,
}

impl Cluster {
    fn new() -> Self {
        Self { state: Reservations::new() }
    }

    fn out(&mut self, node: u8, action: ReserveOut, kind: u8, key: u64, action_key: u64) -> Outcome {
        self.told(node, action, kind, key, action_key).0
    }

    fn told(
        &mut self,
        node: u8,
        action: ReserveOut,
        kind: u8,
        key: u64,
        action_key: u64,
    ) -> (Outcome, Vec<(Nexus, Effect)>) {
        apply(&mut self.state, &nexus(node, 1), action, kind, &list(key, action_key, 0))
    }

    /// Whether a node's read and its write are let through.
    fn access(&self, node: u8) -> (bool, bool) {
        let mut nexus_unit = NexusUnit::default();
        nexus_unit.set_standing(self.state.standing(&nexus(node, 1)));
        let mut passes = |opcode: u8| {
            let cdb = [opcode, 0, 0, 0, 0, 0, 0, 0, 1, 0];
            match run_on(Some(&unit(&DISK)), &mut nexus_unit, &cdb).0 {
                Action::Read { .. } | Action::Write { .. } => true,
                action => {
                    assert_eq!(action, Action::Done(CONFLICT));
                    false
                }
            }
        };
        (passes(0x28), passes(0x2a))
    }
}

/// "Validate SCSI-3 Persistent Reservation": each node registers, the first reserves, the others may write but not
/// reserve; keys are changed; one node is put out by another and comes back.
#[test]
fn windows_cluster_validation() {
    use ReserveOut as R;
    let mut cluster = Cluster::new();
    let (one, two, new_one) = (0xa1, 0xb2, 0xa3);
    assert_eq!(cluster.out(1, R::RegisterAndIgnoreExistingKey, 0, 0, one), Outcome::GOOD);
    assert_eq!(cluster.out(2, R::RegisterAndIgnoreExistingKey, 0, 0, two), Outcome::GOOD);
    assert_eq!(cluster.out(1, R::Register, 0, 0xbad, new_one), CONFLICT, "a wrong old key");
    assert_eq!(cluster.out(1, R::Reserve, WERO, one, 0), Outcome::GOOD);
    assert_eq!(cluster.out(1, R::Reserve, WERO, one, 0), Outcome::GOOD, "again");
    assert_eq!(cluster.out(2, R::Reserve, WERO, two, 0), CONFLICT);
    assert_eq!(cluster.out(3, R::Reserve, WERO, 0, 0), CONFLICT, "not registered");
    assert_eq!((cluster.access(1), cluster.access(2), cluster.access(3)), ((true, true), (true, true), (true, false)));

    // The holder changes its key, and still holds.
    assert_eq!(cluster.out(1, R::Register, 0, one, new_one), Outcome::GOOD);
    assert_eq!(cluster.out(1, R::Reserve, WERO, one, 0), CONFLICT, "the old key");
    assert_eq!(cluster.out(2, R::Release, WERO, two, 0), Outcome::GOOD, "not the holder: nothing");
    assert!(cluster.state.reservation().is_some());

    // The second node takes the disk.
    let (outcome, told) = cluster.told(2, R::Preempt, WERO, two, new_one);
    assert_eq!(outcome, Outcome::GOOD);
    assert_eq!(told, [(nexus(1, 1), Effect::Attention(Attention::RegistrationsPreempted))]);
    assert_eq!((cluster.access(1), cluster.access(2)), ((true, false), (true, true)));
    assert_eq!(cluster.out(1, R::Release, WERO, new_one, 0), CONFLICT);

    // The first one comes back, and may write again.
    assert_eq!(cluster.out(1, R::RegisterAndIgnoreExistingKey, 0, 0, one), Outcome::GOOD);
    assert_eq!(cluster.access(1), (true, true));
    assert_eq!(cluster.out(1, R::Reserve, WERO, one, 0), CONFLICT);

    let (outcome, told) = cluster.told(2, R::Release, WERO, two, 0);
    assert_eq!(
        (outcome, told),
        (Outcome::GOOD, vec![(nexus(1, 1), Effect::Attention(Attention::ReservationsReleased))])
    );
    assert_eq!(cluster.out(1, R::Reserve, WERO, one, 0), Outcome::GOOD);
    let (outcome, told) = cluster.told(2, R::Clear, 0, two, 0);
    assert_eq!(
        (outcome, told),
        (Outcome::GOOD, vec![(nexus(1, 1), Effect::Attention(Attention::ReservationsPreempted))])
    );
    assert_eq!(cluster.state.registrations().count(), 0);
    assert_eq!((cluster.access(1), cluster.access(3)), ((true, true), (true, true)));
}

/// Nodes that fence: each registers a key of its own; who fences preempts and aborts.
#[test]
fn a_fenced_node_loses_its_commands_and_its_writes() {
    use ReserveOut as R;
    let mut cluster = Cluster::new();
    for node in 1..=3 {
        assert_eq!(cluster.out(node, R::Register, 0, 0, u64::from(node)), Outcome::GOOD);
    }
    assert_eq!(cluster.out(1, R::Reserve, 7, 1, 0), Outcome::GOOD, "write exclusive, all registrants");
    let (outcome, told) = cluster.told(2, R::PreemptAndAbort, 7, 2, 1);
    assert_eq!(outcome, Outcome::GOOD);
    let expected =
        [Effect::Attention(Attention::RegistrationsPreempted), Effect::AbortCommands].map(|it| (nexus(1, 1), it));
    assert_eq!(told, expected);
    assert_eq!((cluster.access(1), cluster.access(2), cluster.access(3)), ((true, false), (true, true), (true, true)));
    assert_eq!(cluster.out(2, R::Preempt, 7, 2, 1), CONFLICT, "nobody has that key any more");
    // The last registrant takes the reservation with it.
    assert_eq!(cluster.out(2, R::Register, 0, 2, 0), Outcome::GOOD);
    assert!(cluster.state.reservation().is_some());
    assert_eq!(cluster.out(3, R::Register, 0, 3, 0), Outcome::GOOD);
    assert!(cluster.state.reservation().is_none());
    assert_eq!(cluster.access(1), (true, true));
}

#[test]
fn reserve_and_release_without_registrations() {
    let mut state = Reservations::new();
    let (one, two) = (nexus(1, 1), nexus(2, 1));
    assert_eq!(
        (state.reserve(&one), state.reserve(&one), state.reserve(&two)),
        (Outcome::GOOD, Outcome::GOOD, CONFLICT)
    );
    let (outcome, _) = apply(&mut state, &one, ReserveOut::Register, 0, &list(0, 1, 0));
    assert_eq!(outcome, CONFLICT, "persistent reservations are shut out");
    assert_eq!(state.release(&two), Outcome::GOOD, "which releases nothing");
    assert_eq!(state.reserve(&two), CONFLICT);
    assert_eq!(state.release(&one), Outcome::GOOD);
    assert_eq!(state.reserve(&two), Outcome::GOOD);
    assert!(!state.nexus_lost(&one) && state.nexus_lost(&two));
    assert_eq!(state, Reservations::new());
    assert_eq!(state.reserve(&one), Outcome::GOOD);
    assert!(state.reset() && !state.reset());
}

#[test]
fn reserve_and_release_beside_registrations_change_nothing() {
    for (kind, registered_is_good) in [(1, false), (3, false), (5, true), (6, true), (7, true), (8, true)] {
        let mut cluster = Cluster::new();
        for node in 1..=2 {
            assert_eq!(cluster.out(node, ReserveOut::Register, 0, 0, 9), Outcome::GOOD);
            assert_eq!(cluster.state.reserve(&nexus(node, 1)), CONFLICT, "registered, and nothing reserved");
        }
        assert_eq!(cluster.out(1, ReserveOut::Reserve, kind, 9, 0), Outcome::GOOD);
        let before = cluster.state.clone();
        for (node, good) in [(1, true), (2, registered_is_good), (3, false)] {
            let expected = if good { Outcome::GOOD } else { CONFLICT };
            assert_eq!(cluster.state.reserve(&nexus(node, 1)), expected, "type {kind} node {node}");
            assert_eq!(cluster.state.release(&nexus(node, 1)), expected, "type {kind} node {node}");
        }
        assert_eq!(cluster.state, before);
    }
}
