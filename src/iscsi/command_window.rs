//! The command window (RFC 7143 section 4.2.2.1): which CmdSN may come, which has come early, and what is open.
//!
//! It belongs to the session. Where a session has several connections it is lent to whichever of them runs, so it knows
//! of each request that came early on which connection that was ([`ConnectionSlot`]).
//!
//! Serial-number arithmetic throughout (RFC 1982, 32 bits). May know: nothing but numbers and task ids.

use super::session::ConnectionSlot;
use super::transfer::TaskId;
use crate::limits::COMMANDS_PER_SESSION_MAX;

const LEN: usize = COMMANDS_PER_SESSION_MAX as usize;
const _: () = assert!(LEN.is_power_of_two(), "CmdSN wraps at 2^32, so the ring's length must divide it");

/// Where a CmdSN stands against the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// It is ExpCmdSN.
    Next,
    /// It is in the window, and others before it are missing.
    Ahead,
    /// It is outside the window, or has come before: to be ignored silently.
    Ignore,
}

/// What is known of a CmdSN in the window that is not ExpCmdSN's predecessor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Missing,
    Held(ConnectionSlot, TaskId),
    /// Considered received: its request was aborted before it came, or came and was aborted.
    Plugged,
}

/// The window of one session.
pub(crate) struct CommandWindow {
    exp_cmd_sn: u32,
    /// Requests delivered in order and not yet completed: each keeps one place of the window closed.
    delivered: u32,
    /// How many of `ahead` are not missing.
    early: u32,
    ahead: [Place; LEN],
}

/// Whether serial number `a` comes before `b`.
#[inline]
pub(super) fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

impl CommandWindow {
    pub(super) fn new(exp_cmd_sn: u32) -> Self {
        Self { exp_cmd_sn, delivered: 0, early: 0, ahead: [Place::Missing; LEN] }
    }

    #[inline]
    pub(super) fn exp_cmd_sn(&self) -> u32 {
        self.exp_cmd_sn
    }

    /// ExpCmdSN - 1 when the window is closed. It never moves back: delivering takes one place and gives one number.
    #[inline]
    pub(super) fn max_cmd_sn(&self) -> u32 {
        self.exp_cmd_sn.wrapping_add(COMMANDS_PER_SESSION_MAX - self.delivered).wrapping_sub(1)
    }

    #[inline]
    pub(super) fn contains(&self, cmd_sn: u32) -> bool {
        cmd_sn.wrapping_sub(self.exp_cmd_sn) < COMMANDS_PER_SESSION_MAX - self.delivered
    }

    #[inline]
    pub(super) fn arrival(&self, cmd_sn: u32) -> Arrival {
        if !self.contains(cmd_sn) {
            Arrival::Ignore
        } else if self.early != 0 && self.ahead[place(cmd_sn)] != Place::Missing {
            // Section 4.2.2.1: duplicates within the window are ignored too. ExpCmdSN itself can be here, between its
            // plugging and the poll that passes it.
            Arrival::Ignore
        } else if cmd_sn == self.exp_cmd_sn {
            Arrival::Next
        } else {
            Arrival::Ahead
        }
    }

    /// The request with ExpCmdSN has come and is delivered.
    #[inline]
    pub(super) fn deliver_next(&mut self) {
        debug_assert!(self.delivered < COMMANDS_PER_SESSION_MAX);
        self.exp_cmd_sn = self.exp_cmd_sn.wrapping_add(1);
        self.delivered += 1;
    }

    /// Keep a request that came early.
    pub(super) fn hold(&mut self, cmd_sn: u32, slot: ConnectionSlot, task: TaskId) {
        assert_eq!(self.ahead[place(cmd_sn)], Place::Missing);
        self.ahead[place(cmd_sn)] = Place::Held(slot, task);
        self.early += 1;
    }

    /// Consider `cmd_sn` (in the window) received although its request will never be executed. False when another
    /// request has come with it.
    pub(super) fn plug(&mut self, cmd_sn: u32) -> bool {
        assert!(self.contains(cmd_sn));
        match self.ahead[place(cmd_sn)] {
            Place::Held(..) => false,
            Place::Plugged => true,
            Place::Missing => {
                self.ahead[place(cmd_sn)] = Place::Plugged;
                self.early += 1;
                true
            }
        }
    }

    /// A held request is gone for good before its turn; its number stays received.
    pub(super) fn forget(&mut self, cmd_sn: u32) {
        assert!(matches!(self.ahead[place(cmd_sn)], Place::Held(..)));
        self.ahead[place(cmd_sn)] = Place::Plugged;
    }

    /// A held request has gone with its connection. Its number has not been acknowledged, so it is missing again: the
    /// initiator sends the request anew on another connection, or aborts it there (section 7.2.1).
    pub(super) fn withdraw(&mut self, cmd_sn: u32) {
        assert!(matches!(self.ahead[place(cmd_sn)], Place::Held(..)));
        self.ahead[place(cmd_sn)] = Place::Missing;
        self.early -= 1;
    }

    /// The held request of this connection whose turn has come. It counts as delivered.
    #[inline]
    pub(super) fn poll(&mut self, slot: ConnectionSlot) -> Option<TaskId> {
        while self.early != 0 {
            let place = &mut self.ahead[place(self.exp_cmd_sn)];
            match *place {
                Place::Missing => return None,
                Place::Held(owner, _) if owner != slot => return None,
                found => {
                    *place = Place::Missing;
                    self.early -= 1;
                    self.exp_cmd_sn = self.exp_cmd_sn.wrapping_add(1);
                    if let Place::Held(_, task) = found {
                        self.delivered += 1;
                        return Some(task);
                    }
                }
            }
        }
        None
    }

    /// The connection whose held request is the next to be delivered, if there is one.
    pub(crate) fn next_slot(&self) -> Option<ConnectionSlot> {
        match self.ahead[place(self.exp_cmd_sn)] {
            Place::Held(owner, _) if self.early != 0 => Some(owner),
            _ => None,
        }
    }

    /// A delivered request is completed: its place opens.
    #[inline]
    pub(super) fn complete(&mut self) {
        assert!(self.delivered > 0);
        self.delivered -= 1;
    }

    #[cfg(test)]
    pub(super) fn counts(&self) -> (u32, u32) {
        assert_eq!(self.ahead.iter().filter(|place| **place != Place::Missing).count(), self.early as usize);
        let held = self.ahead.iter().filter(|place| matches!(place, Place::Held(..))).count();
        (self.delivered, held as u32)
    }
}

#[inline]
fn place(cmd_sn: u32) -> usize {
    cmd_sn as usize % LEN
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT: ConnectionSlot = ConnectionSlot(0);

    /// RFC 7143 section 4.2.2.1: numbers wrap at 2^32, and what is outside the window, or twice in it, is ignored.
    #[test]
    fn the_window_wraps_holds_and_ignores() {
        let mut window = CommandWindow::new(u32::MAX - 1);
        assert_eq!(window.max_cmd_sn(), COMMANDS_PER_SESSION_MAX - 3);
        assert_eq!(window.arrival(u32::MAX - 2), Arrival::Ignore);
        assert_eq!(window.arrival(window.max_cmd_sn().wrapping_add(1)), Arrival::Ignore);
        assert_eq!(window.arrival(window.max_cmd_sn()), Arrival::Ahead);
        window.hold(0, SLOT, TaskId(7));
        window.hold(u32::MAX, SLOT, TaskId(8));
        assert_eq!(window.arrival(0), Arrival::Ignore);
        assert_eq!(window.poll(SLOT), None);
        let max_cmd_sn = window.max_cmd_sn();
        assert_eq!(window.arrival(u32::MAX - 1), Arrival::Next);
        window.deliver_next();
        assert_eq!((window.poll(SLOT), window.poll(SLOT), window.poll(SLOT)), (Some(TaskId(8)), Some(TaskId(7)), None));
        assert_eq!((window.exp_cmd_sn(), window.max_cmd_sn()), (1, max_cmd_sn));
        window.complete();
        assert_eq!(window.max_cmd_sn(), max_cmd_sn.wrapping_add(1));
    }

    /// A full window is closed (MaxCmdSN = ExpCmdSN - 1), and a plugged gap lets the rest through without taking a
    /// place.
    #[test]
    fn the_window_closes_when_full_and_plugs_count_nothing() {
        let mut window = CommandWindow::new(10);
        assert!(window.plug(10));
        assert!(window.plug(12));
        window.hold(11, SLOT, TaskId(1));
        assert!(!window.plug(11));
        assert_eq!((window.poll(SLOT), window.poll(SLOT), window.exp_cmd_sn()), (Some(TaskId(1)), None, 13));
        for _ in 1..COMMANDS_PER_SESSION_MAX {
            assert_eq!(window.arrival(window.exp_cmd_sn()), Arrival::Next);
            window.deliver_next();
        }
        assert_eq!(window.max_cmd_sn(), window.exp_cmd_sn().wrapping_sub(1));
        assert_eq!(window.arrival(window.exp_cmd_sn()), Arrival::Ignore);
    }

    /// RFC 7143 section 4.2.2.1: delivery is in the order of CmdSN over all connections of the session, and what went
    /// with its connection before its turn is missing again.
    #[test]
    fn requests_of_several_connections_are_delivered_in_one_order() {
        let (one, other) = (ConnectionSlot(0), ConnectionSlot(1));
        let mut window = CommandWindow::new(5);
        window.hold(6, other, TaskId(1));
        window.hold(7, one, TaskId(2));
        window.hold(8, other, TaskId(3));
        assert_eq!((window.next_slot(), window.poll(other)), (None, None));
        window.deliver_next();
        assert_eq!((window.next_slot(), window.poll(one), window.exp_cmd_sn()), (Some(other), None, 6));
        assert_eq!((window.poll(other), window.next_slot(), window.poll(other)), (Some(TaskId(1)), Some(one), None));
        assert_eq!((window.poll(one), window.poll(one), window.exp_cmd_sn()), (Some(TaskId(2)), None, 8));
        window.withdraw(8);
        assert_eq!((window.next_slot(), window.arrival(8), window.counts()), (None, Arrival::Next, (3, 0)));
    }
}
