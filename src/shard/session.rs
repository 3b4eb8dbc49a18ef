//! A connection in full feature phase: its session's LUNs, and its tasks.
//!
//! Nearly every session has one connection. What the connections of a session share otherwise is in one of them at a
//! time ([`Session::swap_shared`]; `group` has it where it is wanted).

use std::net::SocketAddr;
use std::sync::Arc;

use super::copy::{Copies, CopyLedger, SESSION_TASKS};
use super::core::{Core, DiskTable};
use super::exclusive::ByteRange;
use super::fence::Fence;
use super::link::LinkState;
use super::message::Configuration;
use super::order::{Begun, Dormant, Share};
use super::output::Tx;
use super::parameters::List;
use super::peer::LinkKey;
use super::provision::Provision;
use crate::bounded::{Key, Queue};
use crate::iscsi::access::Caller;
use crate::iscsi::connection::{Connection, Counters};
use crate::iscsi::discovery::TextExchange;
use crate::iscsi::names::IscsiName;
use crate::iscsi::pdu::{LogoutResponseCode, TaskManagementResponseCode};
use crate::iscsi::transfer::TaskId;
use crate::mem::{Buf, Slice};
use crate::observe::{Operation, SessionStats, ShardStats};
use crate::ring::{Nanos, Ring};
use crate::scsi::reservations::{Nexus, ReserveOut};
use crate::scsi::{ByteCheck, CopyOut, MediumError, NexusUnit, Outcome};
use crate::units::{DiskId, Lun, ShardId, TargetId};

/// One LUN as one session sees it.
pub(crate) struct LunEntry {
    pub(crate) lun: Lun,
    pub(crate) disk: u32,
    pub(crate) read_only: bool,
    pub(crate) nexus: NexusUnit,
    /// Its commands that have begun.
    pub(crate) begun: Begun,
}

/// A session as one connection of it has it.
pub(crate) struct Session {
    pub(crate) connection: Connection,
    pub(crate) tasks: Box<[Task]>,
    /// Ascending.
    pub(crate) luns: Vec<LunEntry>,
    pub(crate) lun_numbers: Vec<Lun>,
    pub(crate) target: Option<(TargetId, IscsiName)>,
    pub(crate) initiator: IscsiName,
    /// Names the session for the operator.
    pub(crate) id: u64,
    pub(crate) tsih: u16,
    pub(crate) portal_group_tag: u16,
    /// The relative number of its target port.
    pub(crate) target_port: u16,
    /// Its I_T nexus; `None` in a discovery session.
    pub(crate) nexus: Option<Nexus>,
    /// Ours and the initiator's.
    pub(crate) addresses: (SocketAddr, SocketAddr),
    /// The same of the session's leading connection: they decide which LUNs it sees.
    pub(crate) seen_from: (SocketAddr, SocketAddr),
    /// Present where the session has several connections.
    pub(crate) group: Option<Key>,
    /// Of those, by the bits of their slots, the ones with dormant commands that may begin.
    pub(crate) roused: u8,
    pub(crate) text: TextExchange,
    /// Tasks with something to send that did not fit. Each is in here at most once.
    pub(crate) ready: Queue<TaskId>,
    /// A PDU at the head of the stream that waits for memory; nothing more is looked at before it.
    pub(crate) stalled: Option<Stalled>,
    /// Tasks in [`Step::Dormant`] in the order in which they came, and how many there have been.
    pub(crate) dormant: Queue<Dormant>,
    pub(crate) dormancies: u64,
    /// Some of them may be able to begin.
    pub(crate) rouse: bool,
    /// What task management functions of other sessions wait for here.
    pub(crate) fences: Vec<Fence>,
    /// When what those, or functions of this session, wait for is no longer waited for.
    pub(crate) patience_ends_ms: Option<u64>,
    /// Tasks in [`Step::Starved`].
    pub(crate) starved: u32,
    /// Tasks in [`Step::Paused`].
    pub(crate) held: u32,
    /// Tasks that are at work on a disk's files.
    pub(crate) at_work: u32,
    /// Tasks that were aborted and of which operations are still in flight.
    pub(crate) lingering: u32,
    /// Bytes of R2Ts that have not come yet: large ones are received straight into place.
    pub(crate) solicited_bytes: u64,
    /// For replies of commands that move no blocks.
    pub(crate) scratch: Option<Buf>,
    pub(crate) stats: Arc<SessionStats>,
    pub(crate) copies: Copies,
    pub(crate) ledger: CopyLedger,
    /// What was last written to the echo buffer, and the unit that it was written to.
    pub(crate) echo: Option<(Lun, Slice)>,
    /// What of the engine's counters the shard's have taken over.
    pub(crate) counted: Counters,
    pub(crate) since_ms: u64,
}

/// The PDU that waits for memory.
pub(crate) struct Stalled {
    pub(crate) task: TaskId,
    /// Bytes to consume once it is dealt with.
    pub(crate) len: usize,
    /// Its data, counted from the head of the stream.
    pub(crate) data: std::ops::Range<usize>,
    /// The command is ahead of its CmdSN: only its data is to be kept.
    pub(crate) held: bool,
    /// Since when it waits.
    pub(crate) since_ms: u64,
    /// It has been aborted: there is nothing left to do but to pass over it.
    pub(crate) is_over: bool,
}

/// The data that came with a command.
#[derive(Clone, Copy)]
pub(crate) enum Immediate<'a> {
    /// It is in the stream.
    Bytes(&'a [u8]),
    /// So many bytes are in the task's buffer already.
    Placed(u32),
}

impl Immediate<'_> {
    pub(crate) fn len(self) -> u32 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u32,
            Self::Placed(len) => len,
        }
    }
}

/// What a task is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// No task.
    Idle,
    /// Ahead of its CmdSN.
    Held,
    /// Waits for other commands of its task set, by its task attribute.
    Dormant,
    /// Wants memory, a place in the ring, or a place among the home requests; will do this when it is tried again.
    Starved(Resume),
    /// Its disk is paused; will do this when the disk goes on.
    Paused(Resume),
    /// Data-Out of the window is coming.
    Receiving,
    /// The home shard has been asked for what a plan needs; then this.
    Asking(Resume),
    /// The medium is being written.
    Writing,
    /// The home shard makes visible what has been written.
    Committing,
    /// The medium is being read.
    Reading,
    /// The home shard flushes: before the first read, or after the last write.
    Flushing,
    /// Has something to send.
    Sending,
    /// The answer waits until the last Data-Out underway has come.
    Draining,
    /// A task management function or logout that waits for tasks to end.
    Managing,
    /// A copy that waits for its connection's turn, or a command that waits for a copy to end.
    Copying,
}

/// What a task does next that is starved or paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resume {
    OpenWindow,
    WriteOut,
    ReadIn,
    Commit,
    Flush,
    Provision,
    FillSame,
    Exclude,
    AskRange,
    LbaStatus,
    SettingChanged,
    Copy,
    Erased,
    Agreement,
    Answer,
}

/// What a task will answer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Answer {
    /// Not known yet.
    None,
    /// What was read is payload; when the command is through, GOOD.
    DataIn,
    /// What was read is part of what is sent again.
    Resend,
    /// A SCSI Response.
    Response(Outcome),
    /// Text Response with what is in `read`.
    Text { is_final: bool, continues: bool, target_transfer_tag: u32, transmit_segment_length_max: Option<u32> },
    /// NOP-In with what is in `read`.
    NopIn,
    /// Logout Response; the connection ends after it.
    Logout(LogoutResponseCode),
    /// Task Management Function Response.
    Management(TaskManagementResponseCode),
}

/// What a command does with the medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing.
    None,
    Read,
    Write,
    Verify(ByteCheck),
    WriteAndVerify {
        compare: bool,
    },
    /// One half of the data is compared, the other written.
    CompareAndWrite,
    OrWrite,
    WriteAtomic,
    Flush,
    /// Ranges of a list are to read as zeros.
    Unmap,
    /// One range is to read as zeros.
    Zero,
    /// Something is done with a parameter list.
    List(List),
    /// A parameter list of copy offload.
    CopyCommand {
        what: CopyOut,
        list_identifier: u32,
    },
    /// A copy reads its source, or writes its destination.
    Copy,
    /// One block is written over and over.
    WriteSame {
        unmap: bool,
    },
    /// Nothing: it changes who may use the medium.
    ReserveOut {
        service_action: ReserveOut,
        scope_type: u8,
    },
    ReserveUnit {
        release: bool,
    },
    /// Nothing: it changes by which ports the medium is reached.
    SetPortGroups,
}

/// One task. All of a session's tasks are allocated at login.
pub(crate) struct Task {
    pub(crate) step: Step,
    pub(crate) answer: Answer,
    pub(crate) kind: Kind,
    /// The disk's slot, when the task holds it.
    pub(crate) disk: Option<u32>,
    pub(crate) operation: Operation,
    pub(crate) started: Nanos,
    /// Where on the disk, in bytes.
    pub(crate) offset_bytes: u64,
    /// Bytes of the disk that the command covers and that will be moved.
    pub(crate) total: u32,
    /// Of those, through.
    pub(crate) done: u32,
    /// Bytes of the present window.
    pub(crate) window: u32,
    /// Bytes of Data-Out that are wanted in all.
    pub(crate) data_total: u32,
    /// Bytes of the window's Data-Out that have come.
    pub(crate) received: u32,
    /// Bytes that the CDB asks for, for residuals.
    pub(crate) transfer_length: u64,
    /// FUA.
    pub(crate) durable: bool,
    /// What is being written has to be committed, with this epoch of its plan.
    pub(crate) commits: bool,
    pub(crate) epoch: u32,
    /// The window's Data-Out as it comes.
    pub(crate) buf: Option<Buf>,
    /// The window's Data-Out, complete; for VERIFY with a single block, that block.
    pub(crate) data: Option<Slice>,
    /// What COMPARE AND WRITE writes, while `data` is what it compares with.
    pub(crate) second: Option<Slice>,
    /// The range of the disk that the command has to itself.
    pub(crate) range: Option<u8>,
    /// What is written is what was there: WRITE ATOMIC has it in the leaf's file first.
    pub(crate) fills: bool,
    /// Bytes of the disk that were written atomically since this READ began, where it had begun with them.
    pub(crate) torn: Option<ByteRange>,
    /// Ranges, by the bits of their numbers, that are granted when this command's window has ended.
    pub(crate) impedes: u8,
    /// Bytes of the window that the medium has, or that have been compared with it.
    pub(crate) through: u32,
    /// Bytes behind those that are being read or written now.
    pub(crate) planned: u32,
    /// Where it is with ranges that are to read as zeros.
    pub(crate) provision: Provision,
    /// What was read, or is to be sent; UNMAP's list.
    pub(crate) read: Option<Slice>,
    /// How many bytes of it have been sent.
    pub(crate) sent: u32,
    /// Operations of this task that are with the ring, the home shard or the receiver.
    pub(crate) operations: u16,
    /// When the present ones began, or when the task was held.
    pub(crate) waits_since: Nanos,
    /// How often this place has left operations behind.
    pub(crate) generation: u8,
    pub(crate) error: Option<MediumError>,
    /// Counted as at work on the disk's files.
    pub(crate) at_work: bool,
    /// Counted as at work on the disk's map.
    pub(crate) changes: bool,
    /// File operations run; their plan was made in this epoch of the disk.
    pub(crate) plan: Option<bool>,
    /// No answer will go.
    pub(crate) aborted: bool,
    /// Another initiator has aborted it: it ends with TASK ABORTED.
    pub(crate) terminated: bool,
    /// Aborted; its initiator still owes data that R2Ts have asked for, which is waited for.
    pub(crate) awaits_data: bool,
    /// Its place among the commands of its unit.
    pub(crate) share: Option<Share>,
    /// Atomic writes that the disk had seen when the read began.
    pub(crate) atomics: u32,
    /// Where the last read here began, by disk and byte: it may have to be sent again.
    pub(crate) origin: Option<(DiskId, u64)>,
    /// Counted as lingering: aborted, with operations in flight.
    pub(crate) lingers: bool,
    /// The connection ends when the answer has left.
    pub(crate) ends_session: bool,
    /// Bytes of this task's R2Ts that have not come yet.
    pub(crate) solicited_bytes: u32,
    /// It is ahead of its CmdSN, and there was no memory for its data.
    pub(crate) unkept: bool,
    /// In `Session::ready`.
    pub(crate) queued: bool,
    /// The task management function that waits for this task's end.
    pub(crate) job: Option<Key>,
}

impl Kind {
    /// Its list goes to the home shard, for all shards to agree on what it asks for.
    pub(crate) fn is_agreed_on(self) -> bool {
        matches!(self, Self::ReserveOut { .. } | Self::ReserveUnit { .. } | Self::SetPortGroups)
    }

    /// One block of data serves for all of the medium.
    pub(crate) fn repeats_data(self) -> bool {
        matches!(self, Self::Verify(ByteCheck::Single) | Self::WriteSame { .. })
    }
}

impl Task {
    pub(crate) fn idle() -> Self {
        Self {
            step: Step::Idle,
            answer: Answer::None,
            kind: Kind::None,
            disk: None,
            operation: Operation::Other,
            started: Nanos(0),
            offset_bytes: 0,
            total: 0,
            done: 0,
            window: 0,
            data_total: 0,
            received: 0,
            transfer_length: 0,
            durable: false,
            commits: false,
            epoch: 0,
            buf: None,
            data: None,
            second: None,
            range: None,
            fills: false,
            torn: None,
            impedes: 0,
            through: 0,
            planned: 0,
            provision: Provision::default(),
            read: None,
            sent: 0,
            operations: 0,
            waits_since: Nanos(0),
            generation: 0,
            error: None,
            at_work: false,
            changes: false,
            plan: None,
            aborted: false,
            terminated: false,
            awaits_data: false,
            share: None,
            atomics: 0,
            origin: None,
            lingers: false,
            ends_session: false,
            solicited_bytes: 0,
            unkept: false,
            queued: false,
            job: None,
        }
    }

    /// It holds memory for its Data-Out, or the receiver does for it.
    pub(crate) fn holds_data(&self) -> bool {
        self.buf.is_some() || self.operations > 0
    }

    /// Let go of what was read.
    pub(crate) fn clear_read(&mut self) {
        self.read = None;
        self.sent = 0;
    }

    /// What is to be sent, or compared.
    pub(crate) fn set_read(&mut self, bytes: Slice) {
        self.read = Some(bytes);
        self.sent = 0;
    }
}

/// The session with all that its commands need: methods of commands live on this.
pub(crate) struct Work<'a, R: Ring> {
    pub(crate) session: &'a mut Session,
    pub(crate) tx: &'a mut Tx,
    pub(crate) core: &'a mut Core<R>,
    pub(crate) key: LinkKey,
    /// Of the connection: what its teardown waits for.
    pub(crate) operations: &'a mut u32,
    pub(crate) state: &'a mut LinkState,
}

impl<R: Ring> Work<'_, R> {
    /// A task of the session.
    #[inline]
    pub(crate) fn task(&mut self, task: TaskId) -> &mut Task {
        &mut self.session.tasks[usize::from(task.0)]
    }

    /// An operation of a task has been handed on.
    pub(crate) fn begin_operation(&mut self, task: TaskId) {
        let now = self.core.now;
        let entry = self.task(task);
        entry.operations += 1;
        entry.waits_since = now;
        *self.operations += 1;
        self.core.task_operations += 1;
    }

    /// An operation of a task has come back.
    pub(crate) fn end_operation(&mut self, task: TaskId) {
        let entry = self.task(task);
        assert!(entry.operations > 0, "an operation ends once");
        entry.operations -= 1;
        *self.operations -= 1;
        self.core.task_operations -= 1;
    }

    /// The task cannot go on now; it is tried again when something has been freed.
    pub(crate) fn starve(&mut self, task: TaskId, resume: Resume) {
        if resume.plans_anew() {
            self.end_work(task);
        }
        self.set_step(task, Step::Starved(resume));
    }

    /// What the task is doing from now on. The session counts those that wait to be told to go on.
    #[inline]
    pub(crate) fn set_step(&mut self, task: TaskId, step: Step) {
        let former = std::mem::replace(&mut self.task(task).step, step);
        if former.is_counted() | step.is_counted() {
            self.count_step(task, former, step);
        }
    }

    #[inline(never)]
    fn count_step(&mut self, task: TaskId, former: Step, step: Step) {
        match former {
            Step::Starved(_) => self.session.starved -= 1,
            Step::Paused(_) => {
                self.session.held -= 1;
                self.core.task_operations -= 1;
            }
            Step::Dormant => {
                let slot = self.session.connection.slot();
                self.session.dormant.retain(|other| (other.slot, other.task) != (slot, task));
                self.session.rouse = true;
            }
            _ => {}
        }
        match step {
            Step::Starved(_) => self.session.starved += 1,
            Step::Paused(_) => {
                self.session.held += 1;
                self.core.task_operations += 1;
            }
            _ => {}
        }
    }

    /// Try again every task that is starved.
    pub(crate) fn feed_starved(&mut self) {
        if self.session.starved == 0 {
            return;
        }
        for index in 0..SESSION_TASKS as u16 {
            let task = TaskId(index);
            let Step::Starved(resume) = self.task(task).step else { continue };
            self.set_step(task, Step::Idle);
            self.resume(task, resume);
        }
    }

    /// Go on with a task that had to wait.
    pub(crate) fn resume(&mut self, task: TaskId, resume: Resume) {
        match resume {
            Resume::OpenWindow => self.open_window(task),
            Resume::WriteOut => self.write_out(task),
            Resume::ReadIn => self.read_in(task),
            Resume::Commit => self.ask_commit(task),
            Resume::Flush => self.ask_flush(task),
            Resume::Provision => self.provision(task),
            Resume::FillSame => self.fill_same_again(task),
            Resume::Exclude => self.exclude(task),
            Resume::AskRange => self.ask_range(task),
            Resume::LbaStatus => self.lba_status_again(task),
            Resume::SettingChanged => self.setting_changed(task),
            Resume::Copy => self.copy_go_on(task),
            Resume::Erased => self.complete(task, Outcome::GOOD),
            Resume::Agreement => self.ask_agreement(task),
            Resume::Answer => self.send_when_drained(task),
        }
    }
}

impl Step {
    /// The session knows how many tasks do this.
    #[inline]
    fn is_counted(self) -> bool {
        matches!(self, Self::Starved(_) | Self::Paused(_) | Self::Dormant)
    }
}

impl Resume {
    /// The disk may change before the task goes on, which is not at work meanwhile. A commit stays at work; a WRITE
    /// ATOMIC that waits for its own is not, and looks at the disk again.
    fn plans_anew(self) -> bool {
        self != Self::Commit
    }
}

impl Session {
    /// Take what the engine has counted over into the shard's counters.
    pub(crate) fn count(&mut self, stats: &ShardStats) {
        let counters = self.connection.counters();
        stats.rejects.add(counters.rejects - self.counted.rejects);
        stats.data_digest_errors.add(counters.data_digest_errors - self.counted.data_digest_errors);
        self.counted = counters;
    }

    /// The slots of disks that a RESERVE command of this session has reserved.
    pub(crate) fn reserved_units(&self, disks: &DiskTable) -> Vec<u32> {
        let Some(nexus) = &self.nexus else { return Vec::new() };
        let reserved = |slot: &u32| disks.at(*slot).is_some_and(|entry| entry.is_reserved_by(nexus));
        self.luns.iter().map(|unit| unit.disk).filter(reserved).collect()
    }

    /// The LUN's entry.
    #[inline]
    pub(crate) fn lun_index(&self, lun: Lun) -> Option<usize> {
        // LUNs are mostly numbered without gaps.
        let guess = usize::from(lun.0);
        if self.luns.get(guess).is_some_and(|entry| entry.lun == lun) {
            return Some(guess);
        }
        self.luns.binary_search_by_key(&lun, |entry| entry.lun).ok()
    }

    /// Who it is, for access rules.
    pub(crate) fn caller(&self) -> Caller<'_> {
        Caller { name: &self.initiator, peer: self.addresses.1.ip(), local: self.addresses.0 }
    }

    /// What the connections of a session share changes hands.
    pub(crate) fn swap_shared(&mut self, other: &mut Session) {
        self.connection.swap_session(&mut other.connection);
        std::mem::swap(&mut self.luns, &mut other.luns);
        std::mem::swap(&mut self.lun_numbers, &mut other.lun_numbers);
        std::mem::swap(&mut self.seen_from, &mut other.seen_from);
        std::mem::swap(&mut self.dormant, &mut other.dormant);
        std::mem::swap(&mut self.dormancies, &mut other.dormancies);
        std::mem::swap(&mut self.ledger, &mut other.ledger);
    }

    /// Take the LUNs of a new configuration. True when they differ from what the initiator knows.
    pub(crate) fn map_luns(&mut self, configuration: &Configuration, disks: &DiskTable, shard: ShardId) -> bool {
        let mut former = std::mem::take(&mut self.luns);
        let caller = Caller { name: &self.initiator, peer: self.seen_from.1.ip(), local: self.seen_from.0 };
        let map = self.target.as_ref().map(|(id, _)| configuration.luns_seen_by(*id, &caller));
        let mut changed = false;
        for (lun, mapping) in map.as_deref().into_iter().flatten() {
            let Some(disk) = disks.find(mapping.disk) else { continue };
            let same = former.iter().position(|entry| entry.lun == *lun && entry.disk == disk);
            let entry = match same {
                Some(index) => {
                    let mut entry = former.swap_remove(index);
                    if entry.read_only != mapping.read_only {
                        entry.read_only = mapping.read_only;
                        entry.nexus.raise(crate::scsi::Attention::ModeParametersChanged);
                    }
                    entry
                }
                None => {
                    changed = true;
                    // Its counters are made now, so that no command has to.
                    disks.of_task(disk).stats(shard);
                    LunEntry {
                        lun: *lun,
                        disk,
                        read_only: mapping.read_only,
                        nexus: NexusUnit::new(),
                        begun: Begun::default(),
                    }
                }
            };
            self.luns.push(entry);
        }
        changed |= !former.is_empty();
        self.lun_numbers = self.luns.iter().map(|entry| entry.lun).collect();
        changed
    }
}
