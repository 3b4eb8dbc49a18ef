//! Task management (RFC 7143 sections 4.2.3, 11.5 and 11.6).

use super::*;
use crate::iscsi::pdu::TaskManagementFunction as Function;
use crate::iscsi::pdu::TaskManagementResponseCode as Code;

/// A task management request; immediate ones carry the next CmdSN.
fn request(session: &mut Session, function: Function, immediate: bool) -> Bhs {
    let mut bhs = session.request(Opcode::TASK_MANAGEMENT_REQUEST, function.0, immediate);
    bhs.set_bytes(8, &LUN_1);
    bhs
}

fn abort_task(session: &mut Session, referenced_task_tag: u32, ref_cmd_sn: u32) -> Bhs {
    let mut bhs = request(session, Function::ABORT_TASK, true);
    bhs.set_u32(20, referenced_task_tag);
    bhs.set_u32(32, ref_cmd_sn);
    bhs
}

/// The engine's own answer.
fn answered(session: &mut Session, bhs: Bhs) -> Code {
    assert_eq!(session.send(bhs, &[]), []);
    let sent = session.only_sent();
    assert_eq!(
        (sent.opcode(), sent.bhs.initiator_task_tag()),
        (Opcode::TASK_MANAGEMENT_RESPONSE, bhs.initiator_task_tag())
    );
    Code(sent.bhs.0[2])
}

fn to_carry_out(session: &mut Session, bhs: Bhs) -> TaskId {
    match session.event(bhs, &[]) {
        Event::TaskManagement { task } => task,
        event => panic!("{event:?}"),
    }
}

/// An aborted task gets no response, keeps its `TaskId` until released, and frees its tag and, then, its place in the
/// window.
#[test]
fn abort_task_names_its_task_and_frees_it_in_two_steps() {
    let mut session = Session::new(parameters());
    let read = session.read(512);
    let victim = session.start(read, &[]);
    let bhs = abort_task(&mut session, read.initiator_task_tag(), read.cmd_sn());
    let task = to_carry_out(&mut session, bhs);
    let management = session.connection.task_management(task);
    assert_eq!((management.function, management.referenced), (Function::ABORT_TASK, Some(victim)));
    assert!(!session.connection.abort(victim));
    assert_eq!(session.connection.tasks().count(), 0);
    assert!(session.connection.send_task_management_response(task, Code::FUNCTION_COMPLETE, &mut session.sink));
    let sent = session.only_sent();
    assert_eq!((sent.bhs.0[2], sent.stat_sn(), sent.max_cmd_sn()), (0, 500, 227), "the place is still taken");
    // The tag may be used again at once; the entry may not.
    let mut again = session.read(512);
    again.set_u32(16, read.initiator_task_tag());
    let other = session.start(again, &[]);
    assert_ne!(other, victim);
    session.connection.release(victim);
    session.connection.check_invariants();
    assert_eq!(session.good(other, 512).max_cmd_sn(), 229);
}

/// Windows' deviation 12, section 11.6.1: of a task that is not here, the RefCmdSN decides. In the window and before
/// the request: it counts as received, and the answer is "function complete". Outside: "task does not exist".
#[test]
fn abort_task_of_a_task_that_is_not_here() {
    let mut session = Session::new(parameters());
    let done = session.read(512);
    let task = session.start(done, &[]);
    session.good(task, 512);
    let bhs = abort_task(&mut session, done.initiator_task_tag(), done.cmd_sn());
    assert_eq!(answered(&mut session, bhs), Code::TASK_DOES_NOT_EXIST);
    let bhs = abort_task(&mut session, 0x7777, 5000);
    assert_eq!(answered(&mut session, bhs), Code::TASK_DOES_NOT_EXIST);
    let next = session.cmd_sn;
    let bhs = abort_task(&mut session, 0x7777, next);
    assert_eq!(answered(&mut session, bhs), Code::TASK_DOES_NOT_EXIST, "not before the request itself");

    // A command is lost, the next one is held, and the abort of the lost one lets it through.
    let lost = session.read(512);
    let next = session.read(512);
    assert!(matches!(session.event(next, &[]), Event::Held { .. }));
    let bhs = abort_task(&mut session, lost.initiator_task_tag(), lost.cmd_sn());
    let got = session.send(bhs, &[]);
    assert!(matches!(got[..], [Got { event: Event::Command { .. }, .. }]), "{got:?}");
    assert_eq!(session.only_sent().bhs.0[2], Code::FUNCTION_COMPLETE.0);
    assert_eq!(session.send(lost, &[]), [], "it has been considered received");
    // RefCmdSN of a command that is here under another tag does not abort that one.
    let early = session.read(512);
    session.cmd_sn += 1;
    let early_too = session.read(512);
    assert!(matches!(session.event(early_too, &[]), Event::Held { .. }));
    let bhs = abort_task(&mut session, 0x7777, early_too.cmd_sn());
    assert_eq!(answered(&mut session, bhs), Code::TASK_DOES_NOT_EXIST);
    session.start(early, &[]);
}

/// A held command can be aborted; its CmdSN is passed when its turn comes, released before or after.
#[test]
fn a_held_command_can_be_aborted() {
    for release_first in [true, false] {
        let mut session = Session::new(parameters());
        let (first, second, third) = (session.read(512), session.read(512), session.read(512));
        let Event::Held { task: victim } = session.event(second, &[]) else { panic!("early") };
        assert!(matches!(session.event(third, &[]), Event::Held { .. }));
        let bhs = abort_task(&mut session, second.initiator_task_tag(), second.cmd_sn());
        let task = to_carry_out(&mut session, bhs);
        assert_eq!(session.connection.task_management(task).referenced, Some(victim));
        session.connection.abort(victim);
        if release_first {
            session.connection.release(victim);
        }
        assert_eq!(session.send(first, &[]).len(), 2, "the first and the third");
        if !release_first {
            session.connection.release(victim);
        }
        assert!(session.connection.send_task_management_response(task, Code::FUNCTION_COMPLETE, &mut session.sink));
        let sent = session.only_sent();
        assert_eq!((sent.exp_cmd_sn(), sent.max_cmd_sn()), (103, 228));
    }
}

/// Section 11.5.1: a task management request cannot be aborted. Section 11.5.3: the LUN is part of the name.
#[test]
fn abort_task_of_something_else() {
    let mut session = Session::new(parameters());
    let reset = request(&mut session, Function::LOGICAL_UNIT_RESET, true);
    to_carry_out(&mut session, reset);
    let bhs = abort_task(&mut session, reset.initiator_task_tag(), reset.cmd_sn());
    assert_eq!(answered(&mut session, bhs), Code::FUNCTION_REJECTED);
    let read = session.read(512);
    session.start(read, &[]);
    let mut bhs = abort_task(&mut session, read.initiator_task_tag(), read.cmd_sn());
    bhs.set_bytes(8, &LUN_2);
    assert_eq!(answered(&mut session, bhs), Code::TASK_DOES_NOT_EXIST);
}

/// Section 11.6.1: TASK REASSIGN needs ErrorRecoveryLevel 2, and unknown functions are not supported. The functions of
/// iSCSIProtocolLevel 2 are not negotiated here.
#[test]
fn functions_that_are_not_supported() {
    let mut session = Session::new(parameters());
    for (function, code) in [
        (Function::TASK_REASSIGN, Code::REASSIGNMENT_NOT_SUPPORTED),
        (Function(0), Code::FUNCTION_NOT_SUPPORTED),
        (Function(9), Code::FUNCTION_NOT_SUPPORTED),
        (Function(127), Code::FUNCTION_NOT_SUPPORTED),
    ] {
        let bhs = request(&mut session, function, true);
        assert_eq!(answered(&mut session, bhs), code);
    }
}

/// Sections 4.2.3.2 and 11.5.1: what affects many tasks affects those before it on its LUN, or on all for a target
/// reset, held ones included, and nothing after it.
#[test]
fn many_tasks_are_affected_by_lun_and_cmd_sn() {
    let mut session = Session::new(parameters());
    let mut bhs = [session.read(512), session.read(512), session.read(512)];
    bhs[1].set_bytes(8, &LUN_2);
    let tasks = bhs.map(|bhs| session.start(bhs, &[]));
    let reset = |session: &mut Session, function| {
        let bhs = request(session, function, true);
        let task = to_carry_out(session, bhs);
        (task, session.connection.task_management(task))
    };
    let (lun_reset, management) = reset(&mut session, Function::LOGICAL_UNIT_RESET);
    let later = session.read(512);
    let later = session.start(later, &[]);
    let affected: Vec<TaskId> = session.connection.affected_tasks(&management).collect();
    assert_eq!(affected, [tasks[0], tasks[2]]);
    let (_, management) = reset(&mut session, Function::TARGET_WARM_RESET);
    let affected: Vec<TaskId> = session.connection.affected_tasks(&management).collect();
    assert_eq!(affected, [tasks[0], tasks[1], tasks[2], later]);
    let (_, management) = reset(&mut session, Function::CLEAR_ACA);
    assert_eq!(session.connection.affected_tasks(&management).count(), 0);
    for task in [tasks[0], tasks[2]] {
        session.connection.abort(task);
        session.connection.release(task);
    }
    assert!(session.connection.send_task_management_response(lun_reset, Code::FUNCTION_COMPLETE, &mut session.sink));
    assert_eq!(session.only_sent().bhs.0[2], 0);
}

/// Windows' deviation 19, section 4.2.3.3: an immediate request that affects many tasks waits for the commands before
/// it that are missing, and one in order simply has its place.
#[test]
fn an_immediate_reset_waits_for_the_commands_before_it() {
    let mut session = Session::new(parameters());
    let (first, second) = (session.read(512), session.read(512));
    assert!(matches!(session.event(second, &[]), Event::Held { .. }));
    let reset = request(&mut session, Function::ABORT_TASK_SET, true);
    assert_eq!(session.send(reset, &[]), [], "the first command is missing");
    assert_eq!(session.sent(), []);
    let got = session.send(first, &[]);
    let [.., Got { event: Event::TaskManagement { task }, .. }] = got[..] else { panic!("{got:?}") };
    assert_eq!(got.len(), 3);
    let management = session.connection.task_management(task);
    assert_eq!(session.connection.affected_tasks(&management).count(), 2);

    let mut session = Session::new(parameters());
    let (first, reset) = (session.read(512), request(&mut session, Function::CLEAR_TASK_SET, false));
    assert!(matches!(session.event(reset, &[]), Event::Held { .. }));
    let got = session.send(first, &[]);
    assert!(matches!(
        got[..],
        [Got { event: Event::Command { .. }, .. }, Got { event: Event::TaskManagement { .. }, .. }]
    ));
}
