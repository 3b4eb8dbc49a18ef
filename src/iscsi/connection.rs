//! One connection in full feature phase (RFC 7143 at ErrorRecoveryLevel 0, one connection per session).
//!
//! Sans-IO. Bytes come in by [`Connection::receive`], PDUs go out by the `send_*` methods and [`Connection::poll_transmit`]
//! to a [`Transmit`], time is an argument. Nothing is allocated after [`Connection::new`].
//!
//! The order of calls in one turn: `receive` until the stream is used up (after each PDU `poll_ready` until `None`), the
//! `send_*` of whatever has finished, `poll_transmit`. Every `send_*` returns whether its PDU was emitted; `false` means that the
//! sink had no room, nothing has changed, and the call is to be repeated later.

use super::pdu::{AsyncMessage, LogoutResponseCode, RejectReason, TaskManagementResponseCode, TextRequest};
use super::receive::{Event, Receive};
use super::refusal::Refusal;
use super::session::{Logout, SessionParameters};
use super::task_management::TaskManagement;
use super::transfer::{R2tSpan, ScsiCommand, TaskId};
use super::transmit::{DataInSent, Ending, Transmit};

/// A connection in full feature phase.
pub struct Connection {
    parameters: SessionParameters,
}

#[allow(clippy::todo, unused_variables, clippy::missing_const_for_fn)]
impl Connection {
    /// A connection that enters full feature phase now.
    pub fn new(parameters: SessionParameters, now_ms: u64) -> Self {
        todo!()
    }

    /// The parameters it runs with.
    pub fn parameters(&self) -> &SessionParameters {
        &self.parameters
    }

    // --- Receive

    /// Look at the PDU at the head of `bytes`, which are all bytes received so far and not consumed.
    ///
    /// # Errors
    /// A [`Refusal`] ends the connection.
    pub fn receive(&mut self, bytes: &[u8], now_ms: u64) -> Result<Receive, Refusal> {
        todo!()
    }

    /// The payload of the last [`Receive::Bulk`] is in place. `data_crc` is its CRC-32C (padding not included), needed only
    /// with DataDigest; `trailer` are the bytes after it. Gives `DataOut`, `TaskDataError`, `DataOutDrained` or `Handled` (the
    /// task has ended meanwhile, or the digest was wrong).
    ///
    /// # Errors
    /// A [`Refusal`] ends the connection.
    pub fn bulk_done(&mut self, data_crc: Option<u32>, trailer: &[u8]) -> Result<Event, Refusal> {
        todo!()
    }

    /// The next request whose turn has come: held for its CmdSN until now. Call until `None` after each `receive`.
    pub fn poll_ready(&mut self) -> Option<Event> {
        todo!()
    }

    // --- What requests say

    /// The command of a task.
    ///
    /// # Panics
    /// When `task` is not a SCSI command that is alive: a fault of the caller.
    pub fn command(&self, task: TaskId) -> &ScsiCommand {
        todo!()
    }

    /// The task management request of a task. Panics like [`Self::command`].
    pub fn task_management(&self, task: TaskId) -> TaskManagement {
        todo!()
    }

    /// The text request of a task. Panics like [`Self::command`].
    pub fn text_request(&self, task: TaskId) -> TextRequest {
        todo!()
    }

    /// The logout request of a task. Panics like [`Self::command`].
    pub fn logout(&self, task: TaskId) -> Logout {
        todo!()
    }

    /// All SCSI commands that are alive, held ones included, aborted ones not.
    pub fn tasks(&self) -> impl Iterator<Item = (TaskId, &ScsiCommand)> {
        core::iter::empty()
    }

    /// This connection's commands that a task management request of this connection affects (sections 4.2.3.2 and 11.5.1):
    /// those before its CmdSN and, unless it is a target reset, on its LUN; for ABORT TASK the referenced one. The shard aborts
    /// each. (Only the raw LUN bytes are compared.)
    pub fn affected_tasks(&self, task_management: &TaskManagement) -> impl Iterator<Item = TaskId> {
        core::iter::empty()
    }

    // --- Data-Out

    /// Want only `len` bytes from the initiator, when the command's CDB asks for less than its Expected Data Transfer Length.
    /// (More is clamped.) To be called before the first R2T.
    pub fn limit_data_out(&mut self, task: TaskId, len: u32) {
        todo!()
    }

    /// The next span for which an R2T may go now: unsolicited data has come in full, fewer than MaxOutstandingR2T are
    /// outstanding, and data is missing that no R2T asks for yet.
    pub fn want_r2t(&self, task: TaskId) -> Option<R2tSpan> {
        todo!()
    }

    /// Send an R2T for the first `len` bytes of [`Self::want_r2t`]'s span.
    ///
    /// # Panics
    /// When there is no such span, or `len` is zero or longer than it.
    pub fn send_r2t(&mut self, task: TaskId, len: u32, tx: &mut impl Transmit) -> bool {
        todo!()
    }

    /// Whether all data that the command wants has come (true for a command without write data).
    pub fn data_out_complete(&self, task: TaskId) -> bool {
        todo!()
    }

    /// Take no more data for the task, because it will fail: no R2T goes, what comes is dropped. True when data is still
    /// underway: then wait for [`Event::DataOutDrained`] before answering (section 11.17.1 wants the last Data-Out seen
    /// before the response); false: answer at once.
    pub fn discard_data_out(&mut self, task: TaskId) -> bool {
        todo!()
    }

    // --- Ending tasks

    /// Send payload of a read command, and with an `ending` its end. The payload `0..payload_len` (of `tx`) continues where the
    /// last call's stopped. Splits by the initiator's MaxRecvDataSegmentLength and MaxBurstLength; drops what exceeds the expected length.
    /// GOOD travels in the last Data-In (section 11.4.2: phase collapse); another status, or no data, takes a SCSI
    /// Response. For an ending with sense use [`Self::send_response`].
    pub fn send_data_in(
        &mut self,
        task: TaskId,
        payload_len: usize,
        ending: Option<Ending>,
        tx: &mut impl Transmit,
    ) -> DataInSent {
        todo!()
    }

    /// Send a SCSI Response, which ends the task. `sense` is the sense data without length prefix, at most 252 bytes, often empty.
    pub fn send_response(&mut self, task: TaskId, ending: Ending, sense: &[u8], tx: &mut impl Transmit) -> bool {
        todo!()
    }

    /// The command is aborted: no response will go, its Initiator Task Tag is forgotten, what still comes for it is dropped. The
    /// `TaskId` stays taken until [`Self::release`]. True when Data-Out is still underway ([`Event::DataOutDrained`] may tell when it has
    /// come; initiators often do not send it, so never wait without a limit).
    pub fn abort(&mut self, task: TaskId) -> bool {
        todo!()
    }

    /// Give an aborted task's `TaskId` back. Its place in the command window opens.
    pub fn release(&mut self, task: TaskId) {
        todo!()
    }

    // --- Other answers

    /// Answer a task management request.
    pub fn send_task_management_response(
        &mut self,
        task: TaskId,
        response: TaskManagementResponseCode,
        tx: &mut impl Transmit,
    ) -> bool {
        todo!()
    }

    /// Answer a Text Request with the text `0..payload_len` of `tx`, at most the initiator's MaxRecvDataSegmentLength. Not
    /// final: `target_transfer_tag` is for the initiator's next request; final: it must be the reserved tag.
    pub fn send_text_response(
        &mut self,
        task: TaskId,
        is_final: bool,
        continues: bool,
        target_transfer_tag: u32,
        payload_len: usize,
        tx: &mut impl Transmit,
    ) -> bool {
        todo!()
    }

    /// Answer a logout. After `CLOSED` nothing more is received or sent.
    pub fn send_logout_response(&mut self, task: TaskId, response: LogoutResponseCode, tx: &mut impl Transmit) -> bool {
        todo!()
    }

    /// Answer a ping with the data `0..payload_len` of `tx`, which is what came; cut to the initiator's MaxRecvDataSegmentLength.
    pub fn send_nop_in(&mut self, task: TaskId, payload_len: usize, tx: &mut impl Transmit) -> bool {
        todo!()
    }

    /// Refuse a request that got an event (Text mostly): a Reject with the request's header is queued, and its task ends.
    ///
    /// # Errors
    /// [`Refusal::TooManyRejects`].
    pub fn reject(&mut self, task: TaskId, reason: RejectReason) -> Result<(), Refusal> {
        todo!()
    }

    /// Send an Asynchronous Message. `message.data_segment_len` must be `data.len()`; `data` (sense behind its two-byte length for
    /// [`super::pdu::AsyncEvent::SCSI`]) is copied, at most 512 bytes.
    pub fn send_async_message(&mut self, message: &AsyncMessage, data: &[u8], tx: &mut impl Transmit) -> bool {
        todo!()
    }

    /// Ask the initiator to log out within `seconds` (an Asynchronous Message that `poll_transmit` emits); when it has not, `on_time` gives
    /// [`Refusal::LogoutTimeout`]. New commands are still served meanwhile.
    pub fn request_logout(&mut self, seconds: u16, now_ms: u64) {
        todo!()
    }

    /// Emit what the engine owes by itself: Rejects, answers to empty pings, pings of ours, logout requests and task
    /// management answers that need no shard. False when the sink was full before all was emitted.
    pub fn poll_transmit(&mut self, tx: &mut impl Transmit) -> bool {
        todo!()
    }

    /// Whether `poll_transmit` has something to emit.
    pub fn wants_transmit(&self) -> bool {
        todo!()
    }

    // --- Time

    /// When `on_time` has something to do, if ever. Changes with every call.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        todo!()
    }

    /// Time has come to `now_ms`: queues a ping when the initiator was silent for long.
    ///
    /// # Errors
    /// [`Refusal::PingTimeout`] or [`Refusal::LogoutTimeout`].
    pub fn on_time(&mut self, now_ms: u64) -> Result<(), Refusal> {
        todo!()
    }
}
