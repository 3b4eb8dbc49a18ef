//! What is told of a copy operation: RECEIVE COPY STATUS, RECEIVE COPY FAILURE DETAILS and RECEIVE ROD TOKEN
//! INFORMATION (SPC-4 clauses 6.23 to 6.26, SBC-4 clause 5.25).

use super::commands::{CopyIn, CopyOut};
use super::token::TOKEN_BYTES;
use crate::scsi::parameter_list::ParameterList;
use crate::scsi::sense::{Outcome, Sense, SenseFormat, Status};

/// Where a copy operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyState {
    /// Going on.
    Running,
    /// It has done or failed to do what it says.
    Done(Outcome),
    /// It has done less than it was asked for, since the token stands for no more.
    Short,
    /// It was aborted.
    Terminated,
}

/// A copy operation, as its initiator may know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyStatus {
    /// The command that began it.
    pub what: CopyOut,
    /// Where it is.
    pub state: CopyState,
    /// Its command has been answered, or will be before it ends.
    pub background: bool,
    /// Bytes written, or that a token stands for.
    pub transferred_bytes: u64,
    /// log2 of the bytes in which they are told by RECEIVE ROD TOKEN INFORMATION: the unit's block length.
    pub block_shift: u32,
    /// Segments begun.
    pub segments: u16,
    /// Reads and writes done so far, wrapping.
    pub operations: u16,
}

/// After this many milliseconds it is worth asking again.
const UPDATE_DELAY_MS: u32 = 20;

/// ESTIMATED STATUS UPDATE DELAY of an operation that has ended.
const NO_UPDATE: u32 = 0xffff_fffe;

/// TRANSFER COUNT UNITS.
const BYTES: u8 = 0x00;
const KIBIBYTES: u8 = 0x01;
const BLOCKS: u8 = 0xf1;

impl CopyStatus {
    /// The longest reply.
    pub const REPLY_BYTES_MAX: usize = 1024;

    /// An operation that begins.
    pub fn new(what: CopyOut, background: bool, block_shift: u32) -> Self {
        let state = CopyState::Running;
        Self { what, state, background, transferred_bytes: 0, block_shift, segments: 0, operations: 0 }
    }

    /// It goes on.
    pub fn is_running(&self) -> bool {
        self.state == CopyState::Running
    }

    /// COPY OPERATION STATUS (SPC-4 table 249).
    fn operation_status(&self) -> u8 {
        match self.state {
            CopyState::Running if self.background => 0x12,
            CopyState::Running => 0x11,
            CopyState::Done(Outcome::GOOD) => 0x01,
            CopyState::Done(_) => 0x02,
            CopyState::Short => 0x03,
            CopyState::Terminated => 0x60,
        }
    }

    fn outcome(&self) -> Outcome {
        match self.state {
            CopyState::Running | CopyState::Short => Outcome::GOOD,
            CopyState::Done(outcome) => outcome,
            CopyState::Terminated => Outcome::status(Status::TASK_ABORTED),
        }
    }

    /// Write a reply, cut at `allocation_length`. `token` is one that POPULATE TOKEN has made.
    pub fn report(
        &self,
        reply: CopyIn,
        token: Option<&[u8; TOKEN_BYTES]>,
        allocation_length: u32,
        format: SenseFormat,
        out: &mut ParameterList<'_>,
    ) -> Result<(), Sense> {
        out.begin(allocation_length);
        match reply {
            CopyIn::StatusLid1 => self.status_lid1(out),
            CopyIn::FailureDetailsLid1 if self.is_running() => return Err(Sense::invalid_field_in_cdb(2, None)),
            CopyIn::FailureDetailsLid1 => self.failure_details(format, out),
            CopyIn::StatusLid4 => self.status_header(format, out),
            CopyIn::TokenInformation => {
                self.status_header(format, out);
                self.token_descriptors(token, out);
            }
        }
        let available = u32::try_from(out.total_len() - 4).unwrap_or(u32::MAX);
        out.set_u32(0, available);
        Ok(())
    }

    fn status_lid1(&self, out: &mut ParameterList<'_>) {
        let status = match self.state {
            CopyState::Running => 0x00,
            CopyState::Done(Outcome::GOOD) | CopyState::Short => 0x01,
            CopyState::Done(_) | CopyState::Terminated => 0x02,
        };
        out.push_u32(0);
        out.push_u8(status);
        out.push_u16(self.segments);
        match u32::try_from(self.transferred_bytes) {
            Ok(bytes) => {
                out.push_u8(BYTES);
                out.push_u32(bytes);
            }
            Err(_) => {
                out.push_u8(KIBIBYTES);
                out.push_u32(u32::try_from(self.transferred_bytes >> 10).unwrap_or(u32::MAX));
            }
        }
    }

    /// Of a copy that has not failed there are none.
    fn failure_details(&self, format: SenseFormat, out: &mut ParameterList<'_>) {
        out.push_u32(0);
        let outcome = self.outcome();
        let Some(sense) = outcome.sense_data(format) else { return };
        out.push_zeros(52);
        out.push(&[outcome.status.0, 0]);
        out.push_u16(sense.len() as u16);
        out.push(&sense);
    }

    /// The header that the four-byte replies share.
    fn status_header(&self, format: SenseFormat, out: &mut ParameterList<'_>) {
        let outcome = self.outcome();
        let sense = outcome.sense_data(format);
        let sense = sense.as_deref().unwrap_or_default();
        let field_bytes = sense.len().next_multiple_of(4);
        out.push_u32(0);
        out.push(&[self.what as u8, self.operation_status()]);
        out.push_u16(self.operations);
        out.push_u32(if self.is_running() { UPDATE_DELAY_MS } else { NO_UPDATE });
        out.push(&[outcome.status.0, field_bytes as u8, sense.len() as u8]);
        match self.what {
            CopyOut::PopulateToken | CopyOut::WriteUsingToken => {
                out.push_u8(BLOCKS);
                out.push_u64(self.transferred_bytes >> self.block_shift);
                out.push_u16(0);
            }
            CopyOut::ExtendedCopyLid1 | CopyOut::ExtendedCopyLid4 => {
                out.push_u8(BYTES);
                out.push_u64(self.transferred_bytes);
                out.push_u16(self.segments);
            }
        }
        out.push_zeros(6);
        out.push(sense);
        out.push_zeros(field_bytes - sense.len());
    }

    fn token_descriptors(&self, token: Option<&[u8; TOKEN_BYTES]>, out: &mut ParameterList<'_>) {
        let told = matches!(self.state, CopyState::Done(Outcome::GOOD) | CopyState::Short);
        match token.filter(|_| told) {
            Some(token) => {
                out.push_u32(2 + TOKEN_BYTES as u32);
                out.push_u16(0);
                out.push(token);
            }
            None => out.push_u32(0),
        }
    }
}
