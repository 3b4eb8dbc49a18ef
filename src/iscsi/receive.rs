//! What the connection makes of received bytes.

use core::ops::Range;

use super::transfer::{DataError, TaskId};

/// What [`super::connection::Connection::receive`] found at the head of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Receive {
    /// Nothing can be done before this many bytes, counted from the head, are there. At most 48 + 1020 + 4 + our
    /// MaxRecvDataSegmentLength + 3 + 4.
    NeedBytes(usize),
    /// A whole PDU was handled.
    Pdu {
        /// Bytes to consume.
        len: usize,
        /// What it meant.
        event: Event,
        /// Its data segment within the bytes given, without padding. Empty unless the event uses data.
        data: Range<usize>,
    },
    /// A valid Data-Out whose data is not all here. The shard consumes `header_len` bytes, moves `len` bytes of payload (from
    /// the stream or straight from the socket) to `buffer_offset` of the task's data, collects `trailer_len` bytes more, and
    /// calls `bulk_done`. Until then `receive` must not be called.
    Bulk {
        /// Bytes of header (with its digest) to consume.
        header_len: usize,
        /// The command.
        task: TaskId,
        /// Where in the command's data the payload goes.
        buffer_offset: u32,
        /// Bytes of payload.
        len: usize,
        /// Bytes after the payload: padding and data digest, 0..=7.
        trailer_len: usize,
    },
}

/// What a request asks of the shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Nothing to do: the PDU was ignored or answered by the engine (see `poll_transmit`).
    Handled,
    /// A command to execute; `Connection::command` describes it. `data` of the PDU is its immediate data. When it came
    /// out of `poll_ready`, its immediate data is what the shard stored at [`Event::Held`].
    Command {
        /// The command.
        task: TaskId,
    },
    /// A request arrived ahead of its CmdSN. The shard stores the PDU's `data` (often none) for the task, and executes nothing:
    /// `poll_ready` gives it out in its turn, or `abort` and `release` end it before.
    Held {
        /// The request.
        task: TaskId,
    },
    /// Data of a command has arrived and is correct: the PDU's `data`, or the payload of the `Bulk` just finished.
    DataOut {
        /// The command.
        task: TaskId,
        /// Where in the command's data it goes, in bytes.
        buffer_offset: u32,
        /// Bytes.
        len: u32,
        /// An R2T's data, or the command's unsolicited data, is complete with this PDU.
        burst_complete: bool,
    },
    /// The command's data was wrong, and the last of what was underway has now come. The shard ends the command with
    /// CHECK CONDITION and `error.sense()`. No R2T goes out and no data event comes any more. This can be the first event
    /// of a command (instead of `Command`).
    TaskDataError {
        /// The command.
        task: TaskId,
        /// What was wrong.
        error: DataError,
    },
    /// The last Data-Out PDU that was underway for a task under `discard_data_out` or `abort` has come and was dropped.
    DataOutDrained {
        /// The command.
        task: TaskId,
    },
    /// A task management function to carry out; `Connection::task_management` describes it. Answer with
    /// `send_task_management_response`.
    TaskManagement {
        /// The request.
        task: TaskId,
    },
    /// A Text Request; `Connection::text_request` describes it, `data` is its text. Answer with `send_text_response` or
    /// `reject`.
    Text {
        /// The request.
        task: TaskId,
    },
    /// The session is to end. Abort and release its tasks, answer with `send_logout_response`, then close when sent.
    Logout {
        /// The request.
        task: TaskId,
    },
    /// A ping with data to echo: keep `data` and answer with `send_nop_in`. (Pings without data the engine answers itself.)
    NopOut {
        /// The request.
        task: TaskId,
    },
}
