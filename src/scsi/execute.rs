//! From a CDB to what must be done: checks that hold for every command, dispatch through the command table, and [`Action`].

use super::parameter_list::ParameterList;
use super::sense::{Outcome, Sense, SenseFormat};
use super::unit::{BlockLength, NexusUnit, Unit};
use crate::units::{Lba, Lun};

/// A command as it came from the initiator.
#[derive(Clone, Copy, Debug)]
pub struct CommandRequest<'a> {
    /// The CDB as received: 16 bytes for iSCSI without an AHS; bytes after the command's own length are not looked at.
    pub cdb: &'a [u8],
}

/// What the commands that look beyond their logical unit (REPORT LUNS, the device identification page) see of the target.
#[derive(Clone, Copy, Debug)]
pub struct TargetView<'a> {
    /// The iSCSI name of the target, at most 223 bytes.
    pub name: &'a str,
    /// RELATIVE TARGET PORT IDENTIFIER, from 1.
    pub relative_target_port: u16,
    /// The target portal group tag of the port (RFC 7143), which names the port and is its TARGET PORT GROUP.
    pub portal_group_tag: u16,
    /// The units that this initiator may see, ascending.
    pub luns: &'a [Lun],
}

/// The logical unit that the command addresses, with what is pending for the initiator.
#[derive(Debug)]
pub struct LogicalUnit<'a> {
    /// Its description.
    pub unit: &'a Unit,
    /// This initiator's state on it.
    pub nexus: &'a mut NexusUnit,
}

/// What VERIFY compares with (BYTCHK).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteCheck {
    /// 00b: nothing; the blocks must only be readable. No Data-Out.
    None,
    /// 01b: every block with its block of Data-Out.
    DataOut,
    /// 11b: every block with the single block of Data-Out.
    Single,
}

/// What the caller does next. Ranges lie within the unit, and lengths are 1..=[`Unit::transfer_blocks_max`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The command is complete, without data.
    Done(Outcome),
    /// The command is complete with GOOD; the parameter list is its Data-In.
    DataIn,
    /// The reply is longer than the buffer: nothing was done, call again with a parameter list over at least `bytes`. Only for REPORT
    /// LUNS, and never with a buffer of [`ParameterList::BYTES_MAX`].
    NeedsBuffer {
        /// The size that is needed.
        bytes: u32,
    },
    /// Read blocks into Data-In.
    Read {
        /// The first block.
        lba: Lba,
        /// How many.
        blocks: u32,
        /// DPO: the blocks will hardly be read again.
        dpo: bool,
        /// FUA: the blocks come from the medium; cached writes of them are made durable first.
        fua: bool,
    },
    /// Write blocks from Data-Out.
    Write {
        /// The first block.
        lba: Lba,
        /// How many.
        blocks: u32,
        /// DPO: the blocks will hardly be read soon.
        dpo: bool,
        /// FUA: the blocks are durable before GOOD.
        fua: bool,
    },
    /// Read blocks and compare as asked; a difference is [`MediumError::Miscompare`](super::MediumError::Miscompare).
    Verify {
        /// The first block.
        lba: Lba,
        /// How many.
        blocks: u32,
        /// With what to compare.
        byte_check: ByteCheck,
        /// DPO.
        dpo: bool,
    },
    /// Write blocks from Data-Out durably, then read them back; with `compare`, they must equal Data-Out.
    WriteAndVerify {
        /// The first block.
        lba: Lba,
        /// How many.
        blocks: u32,
        /// BYTCHK is one.
        compare: bool,
        /// DPO.
        dpo: bool,
    },
    /// Make every answered write of the range durable.
    Flush {
        /// The first block.
        lba: Lba,
        /// How many, to the unit's end if the command said so.
        blocks: u64,
        /// IMMED: answer GOOD as soon as the flush is started.
        immed: bool,
    },
}

impl Action {
    /// Bytes of Data-Out that the action consumes.
    pub fn data_out_bytes(&self, block_length: BlockLength) -> u64 {
        let _ = block_length;
        todo!()
    }

    /// Bytes of Data-In that the medium gives (a parameter list has its own length).
    pub fn data_in_bytes(&self, block_length: BlockLength) -> u64 {
        let _ = block_length;
        todo!()
    }
}

impl From<Sense> for Action {
    fn from(sense: Sense) -> Self {
        Self::Done(Outcome::check_condition(sense))
    }
}

/// The encoding of sense data for a command to `unit`; a LUN without a unit gets the fixed format.
pub fn sense_format(unit: Option<&Unit>) -> SenseFormat {
    unit.map_or(SenseFormat::Fixed, Unit::sense_format)
}

/// Check a command and finish it, or say what the medium must do.
///
/// `unit` is `None` when the LUN field is not one that [`lun::decode`](super::lun::decode) knows, or no unit is mapped there for this
/// initiator. `out` is filled exactly when the answer is [`Action::DataIn`]; a buffer of [`ParameterList::BYTES_MIN`] is enough for
/// all but long REPORT LUNS.
pub fn execute(
    request: &CommandRequest<'_>,
    target: &TargetView<'_>,
    unit: Option<LogicalUnit<'_>>,
    out: &mut ParameterList<'_>,
) -> Action {
    let _ = (request, target, unit, out);
    todo!()
}
