//! Task management requests after the engine has resolved what they refer to (RFC 7143 sections 11.5 and 11.6).

use super::pdu::TaskManagementFunction;
use super::transfer::TaskId;

/// A task management request for the shard to carry out. TASK REASSIGN, unknown functions, and ABORT TASK of a task that does not
/// exist (any more) never come here: the engine answers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskManagement {
    /// ABORT TASK, ABORT TASK SET, CLEAR ACA, CLEAR TASK SET, LOGICAL UNIT RESET, TARGET WARM RESET or TARGET COLD RESET.
    pub function: TaskManagementFunction,
    /// LUN, raw; means nothing for target resets.
    pub lun_raw: [u8; 8],
    /// For ABORT TASK, the task to abort; else `None`, and `Connection::affected_tasks` names this connection's.
    pub referenced: Option<TaskId>,
    /// Initiator Task Tag of the request.
    pub initiator_task_tag: u32,
    /// CmdSN of the request: only commands before it are affected.
    pub cmd_sn: u32,
}
