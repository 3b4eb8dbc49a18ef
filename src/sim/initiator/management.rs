//! Task management as the initiator uses it (RFC 7143 sections 11.5 and 11.6): tasks end without an answer, and what
//! they wrote may be there or not, but may not come later.
//!
//! **May know:** the sibling modules.

use super::command::Task;
use super::pdu::{FINAL, NO_TAG, Pdu, is_before, request};
use super::session::Session;
use crate::sim::Random;

/// What a function covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Function {
    AbortTask,
    AbortTaskSet,
    LogicalUnitReset,
}

/// A function that waits for its response.
#[derive(Clone, Copy, Debug)]
pub(super) struct Management {
    tag: u32,
    function: Function,
    /// Index among the initiator's logical units.
    unit: usize,
    /// The task to abort.
    referenced: u32,
    /// Commands before this one are covered.
    cmd_sn: u32,
}

/// Response codes (RFC 7143 section 11.6.1).
mod code {
    pub const COMPLETE: u8 = 0;
    pub const NO_SUCH_TASK: u8 = 1;
    pub const REJECTED: u8 = 255;
}

impl Session {
    /// Send a function that concerns one of the running tasks, if there is one and no other function waits.
    pub fn manage(&mut self, lun_of: impl Fn(usize) -> u8, resets_units: bool, random: &mut Random) {
        if self.management.is_some() || self.task_count() == 0 || self.is_leaving() {
            return;
        }
        let at = random.index(self.task_count());
        let Some((&referenced, task)) = self.tasks.iter().nth(at) else { return };
        let (unit, ref_cmd_sn) = (task.unit, task.cmd_sn);
        let (function, number) = match random.below(5) {
            0 if resets_units => (Function::LogicalUnitReset, 5),
            1 => (Function::AbortTaskSet, 2),
            _ => (Function::AbortTask, 1),
        };
        let is_one = function == Function::AbortTask;
        let tag = self.new_tag(random);
        let pdu = Pdu::new(request::TASK_MANAGEMENT | request::IMMEDIATE, FINAL | number)
            .set_bytes(8, &[0, lun_of(unit)])
            .set_word(16, tag)
            .set_word(20, if is_one { referenced } else { NO_TAG })
            .set_word(24, self.cmd_sn)
            .set_word(32, if is_one { ref_cmd_sn } else { 0 });
        self.management = Some(Management { tag, function, unit, referenced, cmd_sn: self.cmd_sn });
        self.put(pdu);
    }

    /// The response to a function: the tasks that it ended. A task that the target does not know was answered before,
    /// or aborted by another initiator's reset.
    pub fn managed(&mut self, pdu: &Pdu) -> Result<Vec<Task>, String> {
        let waiting = self.management.take().filter(|management| management.tag == pdu.initiator_task_tag());
        let management = waiting.ok_or("a task management response that nobody waits for")?;
        match (pdu.bhs[2], management.function) {
            (code::COMPLETE, Function::AbortTask) => Ok(self.forget(|tag, _| tag == management.referenced)),
            (code::COMPLETE, Function::AbortTaskSet | Function::LogicalUnitReset) => {
                Ok(self.forget_before(management.unit, management.cmd_sn))
            }
            (code::NO_SUCH_TASK, Function::AbortTask) => {
                let gone = self.forget(|tag, _| tag == management.referenced);
                if gone.is_empty() || self.may_lose_commands {
                    return Ok(gone);
                }
                Err(format!("the target does not know {gone:?}, which it has not answered"))
            }
            (code::REJECTED, _) => Ok(Vec::new()),
            (code, function) => Err(format!("{function:?} was answered with {code}")),
        }
    }

    /// The tasks of a logical unit that were sent before this command are gone: aborted by a function of ours, or of
    /// another initiator, as a unit attention has told.
    pub fn forget_before(&mut self, unit: usize, cmd_sn: u32) -> Vec<Task> {
        self.forget(|_, task| task.unit == unit && is_before(task.cmd_sn, cmd_sn))
    }

    fn forget(&mut self, is_gone: impl Fn(u32, &Task) -> bool) -> Vec<Task> {
        let gone: Vec<u32> =
            self.tasks.iter().filter(|&(&tag, task)| is_gone(tag, task)).map(|(&tag, _)| tag).collect();
        self.unsolicited.retain(|burst| !gone.contains(&burst.task_tag));
        self.solicited.retain(|burst| !gone.contains(&burst.task_tag));
        gone.iter().filter_map(|tag| self.tasks.remove(tag)).collect()
    }
}
