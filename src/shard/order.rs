//! Task attributes (SAM-5 clause 8.6): which command of a task set may begin, and which waits for others to end.
//!
//! Order is kept among the commands of one I_T nexus on one logical unit: what an initiator can rely on. A command that
//! has to wait is *dormant*: it has its place and its data, and nothing of it has been looked at. Whether it may begin
//! is asked in the order of arrival, when a command of the session has ended.

use super::session::{Immediate, Session, Step, Work};
use crate::iscsi::pdu::TaskAttribute;
use crate::iscsi::session::ConnectionSlot;
use crate::iscsi::transfer::TaskId;
use crate::limits::{BURST_LENGTH_MAX, COMMANDS_PER_SESSION_MAX, CONNECTIONS_PER_SESSION_MAX, IMMEDIATE_REQUESTS_MAX};
use crate::ring::Ring;
use crate::scsi;
use crate::units::Lun;

/// The commands of one I_T nexus on one unit that have begun.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Begun {
    /// All of them.
    commands: u16,
    /// Those that others wait for: ORDERED and HEAD OF QUEUE.
    first: u16,
}

/// A task's share in [`Begun`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    lun: Lun,
    is_first: bool,
}

/// A command that waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dormant {
    /// Its connection, and its task there.
    pub(crate) slot: ConnectionSlot,
    pub(crate) task: TaskId,
    lun: Option<Lun>,
    attribute: TaskAttribute,
    /// Tells which came first.
    number: u64,
}

/// Commands of one session that may wait: the window's, and immediate ones of each connection.
pub(crate) const DORMANT_MAX: usize =
    COMMANDS_PER_SESSION_MAX as usize + CONNECTIONS_PER_SESSION_MAX * IMMEDIATE_REQUESTS_MAX as usize;

fn is_first(attribute: TaskAttribute) -> bool {
    matches!(attribute, TaskAttribute::ORDERED | TaskAttribute::HEAD_OF_QUEUE)
}

impl Begun {
    /// Whether a command may begin beside these; `older`: one that came before it is dormant.
    #[inline]
    fn admits(self, attribute: TaskAttribute, older: bool) -> bool {
        match attribute {
            TaskAttribute::HEAD_OF_QUEUE => true,
            TaskAttribute::ORDERED => self.commands == 0 && !older,
            _ => self.first == 0 && !older,
        }
    }
}

impl Session {
    fn attribute_of(&self, task: TaskId) -> (Option<Lun>, TaskAttribute) {
        let command = self.connection.command(task);
        (scsi::lun::decode(command.lun_raw), command.attribute)
    }

    fn begun(&self, lun: Option<Lun>) -> Begun {
        lun.and_then(|lun| self.lun_index(lun)).map_or(Begun::default(), |index| self.luns[index].begun)
    }

    /// A dormant command on this unit.
    fn has_dormant(&self, lun: Option<Lun>) -> bool {
        self.dormant.iter().any(|dormant| dormant.lun == lun)
    }

    /// Whether a command that has just come may begin at once; `index` is its unit's, where it has one.
    #[inline]
    pub(crate) fn may_begin(&self, lun: Option<Lun>, index: Option<usize>, attribute: TaskAttribute) -> bool {
        let begun = index.map_or(Begun::default(), |index| self.luns[index].begun);
        let older = !self.dormant.is_empty() && self.has_dormant(lun);
        begun.admits(attribute, older)
    }

    /// A command begins on this unit: its share, to be given back when it has ended.
    #[inline]
    pub(crate) fn begin(&mut self, index: usize, attribute: TaskAttribute) -> Share {
        let entry = &mut self.luns[index];
        let is_first = is_first(attribute);
        entry.begun.commands += 1;
        entry.begun.first += u16::from(is_first);
        Share { lun: entry.lun, is_first }
    }

    /// It has ended.
    #[inline]
    pub(crate) fn end(&mut self, share: Share) {
        self.rouse |= !self.dormant.is_empty();
        // The unit may have been unmapped meanwhile, or another be in its place.
        if let Some(index) = self.lun_index(share.lun) {
            let begun = &mut self.luns[index].begun;
            begun.commands = begun.commands.saturating_sub(1);
            begun.first = begun.first.saturating_sub(u16::from(share.is_first));
        }
    }
}

impl<R: Ring> Work<'_, R> {
    /// Keep a command that may not begin yet, with the data that has come. False: no memory, nothing was done.
    pub(crate) fn lay_dormant(&mut self, task: TaskId, data: Immediate<'_>) -> bool {
        let expected = self.session.connection.command(task).expected_write_length();
        let len = data.len();
        if self.task(task).buf.is_none() && expected.max(len) > 0 {
            let window = expected.clamp(len, BURST_LENGTH_MAX.max(len)) as usize;
            let Some(buf) = self.core.io.arena.take(window) else { return false };
            self.task(task).buf = Some(buf);
        }
        if let (Immediate::Bytes(bytes), Some(buf)) = (data, self.task(task).buf.as_mut()) {
            buf[..bytes.len()].copy_from_slice(bytes);
        }
        self.session.dormancies += 1;
        let (lun, attribute) = self.session.attribute_of(task);
        let (slot, number) = (self.session.connection.slot(), self.session.dormancies);
        self.task(task).received = len;
        self.set_step(task, Step::Dormant);
        let kept = self.session.dormant.push(Dormant { slot, task, lun, attribute, number }).is_ok();
        assert!(kept, "the queue has a place for every task");
        true
    }

    /// Commands have ended: begin those that may now, in their order.
    pub(crate) fn rouse_dormant(&mut self) {
        while std::mem::take(&mut self.session.rouse) {
            for _ in 0..self.session.dormant.len() {
                let Some(dormant) = self.session.dormant.pop() else { break };
                let Dormant { slot, task, lun, attribute, number } = dormant;
                // Those that came before it and still wait are at the end of the queue again, those after it in front.
                let older = self.session.dormant.iter().any(|other| other.number < number && other.lun == lun);
                let admitted = self.session.begun(lun).admits(attribute, older);
                if admitted && slot == self.session.connection.slot() {
                    self.end_dormancy(task);
                } else {
                    // Another connection's command begins when that connection has its turn.
                    self.session.roused |= u8::from(admitted) << slot.0;
                    let kept = self.session.dormant.push(dormant).is_ok();
                    assert!(kept, "the place it came from is free");
                }
            }
        }
    }

    fn end_dormancy(&mut self, task: TaskId) {
        let received = std::mem::take(&mut self.task(task).received);
        self.set_step(task, Step::Idle);
        let data = if received > 0 { Immediate::Placed(received) } else { Immediate::Bytes(&[]) };
        let (lun, _) = self.session.attribute_of(task);
        let lun_index = lun.and_then(|lun| self.session.lun_index(lun));
        if !self.begin_command(task, lun_index, data) {
            self.turn_away(task, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SAM-5 clause 8.6: SIMPLE waits for older ORDERED and for HEAD OF QUEUE, ORDERED for everything, HEAD OF QUEUE
    /// for nothing.
    #[test]
    fn who_waits_for_whom() {
        use TaskAttribute as A;
        let idle = Begun::default();
        let simple = Begun { commands: 2, first: 0 };
        let first = Begun { commands: 1, first: 1 };
        for attribute in [A::UNTAGGED, A::SIMPLE] {
            assert!(idle.admits(attribute, false) && simple.admits(attribute, false));
            assert!(!first.admits(attribute, false) && !idle.admits(attribute, true));
        }
        assert!(idle.admits(A::ORDERED, false) && !idle.admits(A::ORDERED, true));
        assert!(!simple.admits(A::ORDERED, false) && !first.admits(A::ORDERED, false));
        assert!(first.admits(A::HEAD_OF_QUEUE, true) && simple.admits(A::HEAD_OF_QUEUE, true));
    }
}
