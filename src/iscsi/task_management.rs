//! Task management requests: what they refer to on this connection (RFC 7143 sections 11.5 and 11.6).

use super::command_window::before;
use super::connection::Connection;
use super::pdu::{TaskManagementFunction, TaskManagementRequest, TaskManagementResponseCode};
use super::receive::Event;
use super::task_table::{Answer, Phase, Request};
use super::transfer::{ScsiCommand, TaskId};
use crate::limits::{COMMANDS_PER_SESSION_MAX, IMMEDIATE_REQUESTS_MAX};

/// A task management request for the shard to carry out. TASK REASSIGN, unknown functions, and ABORT TASK of a task
/// that does not exist (any more) never come here: the engine answers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskManagement {
    /// ABORT TASK, ABORT TASK SET, CLEAR ACA, CLEAR TASK SET, LOGICAL UNIT RESET, TARGET WARM RESET or TARGET COLD
    /// RESET.
    pub function: TaskManagementFunction,
    /// LUN, raw; means nothing for target resets.
    pub lun_raw: [u8; 8],
    /// For ABORT TASK, the task to abort (`None` when it has ended since the event: then the answer is that the task
    /// does not exist), which may have been aborted already and not have ended; for all else `None`, and
    /// `Connection::affected_tasks` names this connection's.
    pub referenced: Option<TaskId>,
    /// Initiator Task Tag of the request.
    pub initiator_task_tag: u32,
    /// CmdSN of the request: only commands before it are affected.
    pub cmd_sn: u32,
}

/// Immediate requests that wait until every command before them has come.
#[derive(Clone, Copy, Default)]
pub(super) struct Waiting {
    tasks: [Option<TaskId>; IMMEDIATE_REQUESTS_MAX as usize],
}

impl Waiting {
    pub(super) fn any(&self) -> bool {
        self.tasks.iter().any(Option::is_some)
    }
}

impl Connection {
    /// The task management request of a task. Panics like [`Self::command`].
    pub fn task_management(&self, task: TaskId) -> TaskManagement {
        let request = self.task_management_request(task);
        let referenced = match request.function {
            TaskManagementFunction::ABORT_TASK => self.referenced(&request),
            _ => None,
        };
        TaskManagement {
            function: request.function,
            lun_raw: request.lun,
            referenced,
            initiator_task_tag: request.initiator_task_tag,
            cmd_sn: request.cmd_sn,
        }
    }

    /// This connection's commands that a task management request of this connection affects (sections 4.2.3.2 and
    /// 11.5.1): those before its CmdSN and, unless it is a target reset, on its LUN; for ABORT TASK the referenced
    /// one; for CLEAR ACA none. The shard aborts each. (Only the raw LUN bytes are compared.)
    pub fn affected_tasks(&self, task_management: &TaskManagement) -> impl Iterator<Item = TaskId> {
        let TaskManagement { function, lun_raw, referenced, cmd_sn, .. } = *task_management;
        let affects = move |task: TaskId, command: &ScsiCommand| match function {
            TaskManagementFunction::ABORT_TASK => referenced == Some(task),
            TaskManagementFunction::CLEAR_ACA => false,
            _ => {
                // An immediate command carries the CmdSN of the next one, and has come before this request.
                let earlier = before(command.cmd_sn, cmd_sn) || (command.immediate && command.cmd_sn == cmd_sn);
                earlier && (is_target_reset(function) || command.lun_raw == lun_raw)
            }
        };
        self.tasks().filter(move |(task, command)| affects(*task, command)).map(|(task, _)| task)
    }

    /// A task management request's turn has come.
    pub(super) fn deliver_task_management(&mut self, task: TaskId) -> Event {
        use TaskManagementFunction as Function;
        let request = self.task_management_request(task);
        let code = match request.function {
            Function::ABORT_TASK => return self.deliver_abort_task(task, &request),
            Function::CLEAR_ACA => return Event::TaskManagement { task },
            Function::ABORT_TASK_SET
            | Function::CLEAR_TASK_SET
            | Function::LOGICAL_UNIT_RESET
            | Function::TARGET_WARM_RESET
            | Function::TARGET_COLD_RESET => {
                if self.misses_commands_before(&request) {
                    self.wait(task);
                    return Event::Handled;
                }
                return Event::TaskManagement { task };
            }
            Function::TASK_REASSIGN => TaskManagementResponseCode::REASSIGNMENT_NOT_SUPPORTED,
            _ => TaskManagementResponseCode::FUNCTION_NOT_SUPPORTED,
        };
        self.answer(task, Answer::TaskManagement(code))
    }

    /// Requests that wait for nothing any more.
    #[inline]
    pub(super) fn poll_waiting(&mut self) -> Option<Event> {
        // Only immediate ones wait.
        if self.immediates == 0 { None } else { self.poll_immediates() }
    }

    fn poll_immediates(&mut self) -> Option<Event> {
        for at in 0..self.waiting.tasks.len() {
            let Some(task) = self.waiting.tasks[at] else { continue };
            if !self.misses_commands_before(&self.task_management_request(task)) {
                self.waiting.tasks[at] = None;
                self.tasks.entry_mut(task).phase = Phase::Active;
                return Some(Event::TaskManagement { task });
            }
        }
        None
    }

    fn wait(&mut self, task: TaskId) {
        self.tasks.entry_mut(task).phase = Phase::Waiting;
        let place = self.waiting.tasks.iter_mut().find(|place| place.is_none());
        *place.expect("as many places as immediate requests") = Some(task);
    }

    /// Section 4.2.3.3: a request that affects many tasks waits until all of those are received. Only an immediate
    /// one can come before them, when a CmdSN before it is missing.
    fn misses_commands_before(&self, request: &TaskManagementRequest) -> bool {
        let missing = request.cmd_sn.wrapping_sub(self.window.exp_cmd_sn());
        request.immediate && (1..=COMMANDS_PER_SESSION_MAX).contains(&missing)
    }

    /// Section 11.6.1 on ABORT TASK: a task that is not here is either one that is still to come, whose CmdSN then
    /// counts as received, or does not exist.
    fn deliver_abort_task(&mut self, task: TaskId, request: &TaskManagementRequest) -> Event {
        if self.referenced(request).is_some() {
            return Event::TaskManagement { task };
        }
        let ref_cmd_sn = request.ref_cmd_sn;
        let code = if self.names_other_request(request) {
            TaskManagementResponseCode::FUNCTION_REJECTED
        } else if self.window.contains(ref_cmd_sn) && before(ref_cmd_sn, request.cmd_sn) && self.window.plug(ref_cmd_sn)
        {
            TaskManagementResponseCode::FUNCTION_COMPLETE
        } else {
            TaskManagementResponseCode::TASK_DOES_NOT_EXIST
        };
        self.answer(task, Answer::TaskManagement(code))
    }

    /// Section 11.5.1: a task management request cannot be aborted; nor can text, logout and pings, which are
    /// answered at once.
    fn names_other_request(&self, request: &TaskManagementRequest) -> bool {
        let named = self.tasks.find(request.referenced_task_tag);
        named.is_some_and(|named| matches!(self.tasks.entry(named).request, Request::Other(_)))
    }

    fn referenced(&self, request: &TaskManagementRequest) -> Option<TaskId> {
        let task = self.tasks.find(request.referenced_task_tag)?;
        let entry = self.tasks.entry(task);
        // One that something else has aborted is under way as long as it is here.
        let alive = matches!(entry.phase, Phase::Active | Phase::Held | Phase::Aborted | Phase::AbortedHeld);
        let named = matches!(&entry.request, Request::Scsi(command) if command.lun_raw == request.lun);
        (alive && named).then_some(task)
    }

    fn task_management_request(&self, task: TaskId) -> TaskManagementRequest {
        TaskManagementRequest::parse(self.header(task)).expect("parsed when it came")
    }
}

fn is_target_reset(function: TaskManagementFunction) -> bool {
    matches!(function, TaskManagementFunction::TARGET_WARM_RESET | TaskManagementFunction::TARGET_COLD_RESET)
}
