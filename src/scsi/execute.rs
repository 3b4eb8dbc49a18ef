//! From a CDB to what must be done: checks that hold for every command, dispatch through the command table, and
//! [`Action`].

use super::cdb::Cdb;
use super::command_table::{self, Command, Handler};
use super::condition::Condition;
use super::copy::{CopyIn, CopyOut};
use super::lba_status::ReportType;
use super::parameter_list::ParameterList;
use super::reservations::{ReserveIn, ReserveOut};
use super::sanitize::SanitizeMethod;
use super::sense::{Outcome, Sense, SenseCode, SenseFormat, Status};
use super::unit::{BlockLength, NexusUnit, Unit};
use crate::units::{Lba, Lun};

/// A command as it came from the initiator.
#[derive(Clone, Copy, Debug)]
pub struct CommandRequest<'a> {
    /// The CDB as it stands in the PDU; bytes after the command's own length are not looked at.
    pub cdb: &'a [u8; 16],
    /// Bytes of Data-Out that the initiator means to send, if the transport tells.
    pub data_out_bytes: Option<u32>,
}

/// What the commands that look beyond their logical unit (REPORT LUNS, the device identification page) see of the
/// target.
#[derive(Clone, Copy, Debug)]
pub struct TargetView<'a> {
    /// The iSCSI name of the target, at most 223 bytes.
    pub name: &'a str,
    /// RELATIVE TARGET PORT IDENTIFIER, from 1.
    pub relative_target_port: u16,
    /// The target portal group tag of the port (RFC 7143), which names the port.
    pub portal_group_tag: u16,
    /// TARGET PORT GROUP of the port, as REPORT TARGET PORT GROUPS has it.
    pub target_port_group: u16,
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
    /// Whether it serves at all.
    pub condition: Condition,
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
    /// The reply is longer than the buffer: nothing was done, call again with a parameter list over at least `bytes`.
    /// Only for REPORT LUNS, and never with a buffer of [`ParameterList::BYTES_MAX`].
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
    /// Compare the blocks with the first half of Data-Out; if they are equal, write the second half, otherwise the
    /// answer is [`MediumError::Miscompare`](super::MediumError::Miscompare) and nothing is written. No other command
    /// reads or writes any of the blocks in between (SBC-4 clause 5.3), on any shard.
    CompareAndWrite {
        /// The first block.
        lba: Lba,
        /// How many; Data-Out has twice as many.
        blocks: u8,
        /// DPO.
        dpo: bool,
        /// FUA.
        fua: bool,
    },
    /// Replace the blocks with the bitwise OR of themselves and Data-Out. No other command reads or writes any of the
    /// blocks in between (SBC-4 clause 5.8), on any shard.
    OrWrite {
        /// The first block.
        lba: Lba,
        /// How many.
        blocks: u32,
        /// DPO.
        dpo: bool,
        /// FUA.
        fua: bool,
    },
    /// Write blocks from Data-Out so that after any failure, a power cut among them, all of them are there or none. At
    /// most [`Unit::atomic_write_blocks_max`].
    WriteAtomic {
        /// The first block.
        lba: Lba,
        /// How many.
        blocks: u32,
        /// DPO.
        dpo: bool,
        /// FUA.
        fua: bool,
    },
    /// Take the parameter list as Data-Out, ask [`unmap::parse`](super::unmap::parse) for its ranges, and unmap them:
    /// afterwards they read as zeros. Only on units that are thin provisioned.
    Unmap {
        /// Bytes of Data-Out, at least 8.
        list_bytes: u16,
    },
    /// Write one block over and over. At most [`Unit::write_same_blocks_max`] blocks.
    WriteSame {
        /// The first block.
        lba: Lba,
        /// How many.
        blocks: u32,
        /// UNMAP: blocks may be unmapped instead of written when the block is all zeros, which is what they read as
        /// afterwards. Any other block is written.
        unmap: bool,
        /// NDOB: there is no Data-Out, and the block is all zeros. Otherwise Data-Out is the one block.
        no_data_out: bool,
    },
    /// Answer from the unit's [`PortGroups`](super::PortGroups) with its `report`.
    ReportPortGroups {
        /// With the extended header.
        extended: bool,
        /// ALLOCATION LENGTH: the most bytes of Data-In.
        allocation_length: u32,
    },
    /// Take the parameter list as Data-Out and `set` the unit's [`PortGroups`](super::PortGroups); then all shards
    /// learn of it; then answer.
    SetPortGroups {
        /// Bytes of Data-Out, 4 to 1028.
        list_bytes: u16,
    },
    /// Answer with [`log::report`](super::log::report) and the unit's numbers.
    LogSense {
        /// PAGE CODE.
        page: u8,
        /// ALLOCATION LENGTH: the most bytes of Data-In.
        allocation_length: u16,
    },
    /// From now on count anew for [`log::report`](super::log::report); every other I_T nexus learns of it by
    /// [`Attention::LogParametersChanged`](super::Attention::LogParametersChanged).
    LogReset,
    /// Answer with [`timestamp::report`](super::timestamp::report) and the clock.
    ReportTimestamp {
        /// ALLOCATION LENGTH: the most bytes of Data-In.
        allocation_length: u32,
    },
    /// Take the parameter list as Data-Out, ask [`mode_select::parse`](super::mode_select::parse), and replace the unit
    /// by one [`with_write_cache`](Unit::with_write_cache) and
    /// [`with_write_protection`](Unit::with_write_protection); if that changes it, every other I_T nexus learns of it
    /// by [`Attention::ModeParametersChanged`](super::Attention::ModeParametersChanged). While WCE is zero, a write is
    /// durable before it is answered; before SWP is one, all that was answered is made durable.
    ModeSelect {
        /// Bytes of Data-Out, at least a header's.
        list_bytes: u16,
        /// It is MODE SELECT(10)'s.
        long: bool,
        /// SP: the values outlast a restart.
        save: bool,
    },
    /// Take Data-Out into the nexus's echo buffer for this unit.
    WriteEcho {
        /// Bytes of Data-Out, 1 to [`limits::ECHO_BUFFER_BYTES`](crate::limits::ECHO_BUFFER_BYTES).
        list_bytes: u16,
    },
    /// Answer with what was last written to the nexus's echo buffer for this unit, with COMMAND SEQUENCE ERROR if
    /// nothing was, or with ECHO BUFFER OVERWRITTEN if it holds something else now.
    ReadEcho {
        /// ALLOCATION LENGTH: the most bytes of Data-In.
        allocation_length: u32,
    },
    /// Take a parameter list as Data-Out, ask [`format::parse`](super::format::parse), and make every block read as
    /// zeros: unmapped where blocks can be unmapped, written elsewhere. All commands in between are given
    /// [`Condition::Formatting`].
    Format {
        /// Bytes of Data-Out: 0, 4 or 8. What the initiator offers beyond is not wanted.
        list_bytes: u8,
    },
    /// Remove what every block holds, so that it cannot be had back. All commands in between are given
    /// [`Condition::Sanitizing`], and after a failure [`Condition::SanitizeFailed`].
    Sanitize {
        /// How.
        method: SanitizeMethod,
        /// IMMED: answer GOOD as soon as the work has begun.
        immed: bool,
        /// AUSE: after a failure, EXIT FAILURE MODE is allowed.
        may_exit: bool,
    },
    /// Set the unit's condition to what [`Condition::exit_failure_mode`] says, or answer with its sense.
    ExitSanitizeFailure,
    /// Answer from the unit's [`Reservations`](super::reservations::Reservations) with its `report`.
    ReserveIn {
        /// Which reply.
        what: ReserveIn,
        /// ALLOCATION LENGTH: the most bytes of Data-In.
        allocation_length: u16,
    },
    /// Take the parameter list as Data-Out and `apply` it to the unit's
    /// [`Reservations`](super::reservations::Reservations), at home; then all shards learn of it; then answer.
    ReserveOut {
        /// What it asks for.
        service_action: ReserveOut,
        /// SCOPE and TYPE.
        scope_type: u8,
        /// Bytes of Data-Out, 24 to 64 KiB.
        list_bytes: u32,
    },
    /// RESERVE or RELEASE of the unit: `reserve` or `release` of its
    /// [`Reservations`](super::reservations::Reservations), as with `ReserveOut`.
    ReserveUnit {
        /// RELEASE.
        release: bool,
    },
    /// Take the parameter list as Data-Out, read it ([`ExtendedCopy`](super::copy::ExtendedCopy),
    /// [`PopulateToken`](super::copy::PopulateToken), [`WriteUsingToken`](super::copy::WriteUsingToken)), and do what
    /// it asks for on units that are mapped for this very I_T nexus, as if that had sent the reads and writes itself:
    /// where its standing or a read-only mapping refuses them, the copy ends.
    CopyOut {
        /// Which command.
        what: CopyOut,
        /// LIST IDENTIFIER of the token commands; EXTENDED COPY has it in its list.
        list_identifier: u32,
        /// Bytes of Data-Out, 1 to 16 KiB.
        list_bytes: u32,
    },
    /// Abort the copy operation that the nexus began under this number, or answer INVALID FIELD IN CDB (byte 2). The
    /// answer waits until nothing of the operation is underway.
    CopyAbort {
        /// LIST IDENTIFIER.
        list_identifier: u32,
    },
    /// Answer from the copy operation that the nexus began under this number, with
    /// [`CopyStatus::report`](super::CopyStatus::report); or INVALID FIELD IN CDB (byte 2).
    CopyIn {
        /// Which reply.
        what: CopyIn,
        /// LIST IDENTIFIER.
        list_identifier: u32,
        /// ALLOCATION LENGTH: the most bytes of Data-In.
        allocation_length: u32,
    },
    /// Tell which blocks are mapped, from an address on: [`LbaStatusReply`](super::LbaStatusReply) makes Data-In of
    /// what the medium says. Only on units that are thin provisioned.
    GetLbaStatus {
        /// The first block.
        lba: Lba,
        /// ALLOCATION LENGTH: the most bytes of Data-In.
        allocation_length: u32,
        /// REPORT TYPE: which blocks it is about.
        report_type: ReportType,
    },
}

impl Action {
    /// Bytes of Data-Out that the action consumes.
    pub fn data_out_bytes(&self, block_length: BlockLength) -> u64 {
        let blocks = match *self {
            Self::Write { blocks, .. }
            | Self::WriteAndVerify { blocks, .. }
            | Self::OrWrite { blocks, .. }
            | Self::WriteAtomic { blocks, .. }
            | Self::Verify { blocks, byte_check: ByteCheck::DataOut, .. } => blocks,
            Self::Verify { byte_check: ByteCheck::Single, .. } | Self::WriteSame { no_data_out: false, .. } => 1,
            Self::CompareAndWrite { blocks, .. } => 2 * u32::from(blocks),
            Self::Unmap { list_bytes } => return u64::from(list_bytes),
            Self::ReserveOut { list_bytes, .. } => return u64::from(list_bytes),
            Self::ModeSelect { list_bytes, .. } => return u64::from(list_bytes),
            Self::WriteEcho { list_bytes } => return u64::from(list_bytes),
            Self::CopyOut { list_bytes, .. } => return u64::from(list_bytes),
            Self::SetPortGroups { list_bytes } => return u64::from(list_bytes),
            Self::Format { list_bytes } => return u64::from(list_bytes),
            Self::Sanitize { method: SanitizeMethod::Overwrite { list_bytes }, .. } => return u64::from(list_bytes),
            Self::Verify { byte_check: ByteCheck::None, .. }
            | Self::Done(_)
            | Self::DataIn
            | Self::NeedsBuffer { .. }
            | Self::Read { .. }
            | Self::Flush { .. }
            | Self::WriteSame { no_data_out: true, .. }
            | Self::ReserveIn { .. }
            | Self::ReserveUnit { .. }
            | Self::Sanitize { method: SanitizeMethod::BlockErase, .. }
            | Self::ExitSanitizeFailure
            | Self::ReportPortGroups { .. }
            | Self::LogSense { .. }
            | Self::ReportTimestamp { .. }
            | Self::ReadEcho { .. }
            | Self::LogReset
            | Self::CopyAbort { .. }
            | Self::CopyIn { .. }
            | Self::GetLbaStatus { .. } => 0,
        };
        u64::from(blocks) << block_length.shift()
    }

    /// Bytes of Data-In that the medium gives (a parameter list, the LBA status among them, has its own length).
    pub fn data_in_bytes(&self, block_length: BlockLength) -> u64 {
        match *self {
            Self::Read { blocks, .. } => u64::from(blocks) << block_length.shift(),
            _ => 0,
        }
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
/// `unit` is `None` when the LUN field is not one that [`lun::decode`](super::lun::decode) knows, or no unit is mapped
/// there for this initiator. `out` is filled exactly when the answer is [`Action::DataIn`]; a buffer of
/// [`ParameterList::BYTES_MIN`] is enough for all but long REPORT LUNS.
pub fn execute(
    request: &CommandRequest<'_>,
    target: &TargetView<'_>,
    unit: Option<LogicalUnit<'_>>,
    out: &mut ParameterList<'_>,
) -> Action {
    let command = command_table::find(request.cdb);
    if let Some(command) = command
        && let Handler::Any(handler) = command.handler
    {
        return match check_reserved_bits(request, command) {
            Ok(()) => with_whole_reply(handler(Cdb(request.cdb), target, unit, out), out),
            Err(sense) => sense.into(),
        };
    }
    let Some(LogicalUnit { unit, nexus, condition }) = unit else {
        return Sense::new(SenseCode::LOGICAL_UNIT_NOT_SUPPORTED).into();
    };
    if let Some(attention) = nexus.attentions_mut().take_first() {
        return Sense::new(attention.sense_code()).into();
    }
    let Some(command) = command.filter(|command| command.is_served_on(unit)) else {
        return not_served(request.cdb[0], unit).into();
    };
    if let Some(code) = nexus.access().refusal(command.access) {
        return Sense::new(code).into();
    }
    if nexus.standing().conflicts(command.reservation, request.cdb[4]) {
        return Action::Done(Outcome::status(Status::RESERVATION_CONFLICT));
    }
    if let Some(sense) = condition.sense()
        && !condition.allows(command.opcode)
    {
        return sense.into();
    }
    if let Err(sense) = check_reserved_bits(request, command) {
        return sense.into();
    }
    match command.handler {
        Handler::Medium(handler) => with_offered_data(handler(Cdb(request.cdb), unit), request, unit),
        Handler::Reply(handler) => with_whole_reply(handler(Cdb(request.cdb), unit, out), out),
        Handler::Any(_) => unreachable!("answered above"),
    }
}

/// Why there is no such command. Where service actions are the ways of one command, and it is served, the field is
/// wrong; elsewhere they are commands of their own.
#[cold]
fn not_served(opcode: u8, unit: &Unit) -> Sense {
    const ONE_COMMAND: [u8; 5] = [0x48, 0x5e, 0x5f, 0x83, 0x84];
    let served = |command: &&Command| command.opcode == opcode && command.is_served_on(unit);
    if ONE_COMMAND.contains(&opcode) && command_table::COMMANDS.iter().any(|command| served(&command)) {
        return Sense::invalid_field_in_cdb(1, Some(4));
    }
    Sense::new(SenseCode::INVALID_COMMAND_OPERATION_CODE)
}

/// Every bit that the command does not evaluate is zero; the field pointer names the first that is not.
#[inline]
fn check_reserved_bits(request: &CommandRequest<'_>, command: &Command) -> Result<(), Sense> {
    let offending = u128::from_be_bytes(*request.cdb) & command.reserved_bits;
    if offending == 0 {
        return Ok(());
    }
    let position = offending.leading_zeros();
    Err(Sense::invalid_field_in_cdb((position / 8) as u8, Some(7 - (position % 8) as u8)))
}

/// WRITE SAME has one block, no more and no less: with another length an initiator means something else than it says.
/// For all other commands the transport tells of what is missing or left over.
#[inline]
fn with_offered_data(action: Action, request: &CommandRequest<'_>, unit: &Unit) -> Action {
    match (action, request.data_out_bytes) {
        (Action::WriteSame { no_data_out: false, .. }, Some(offered)) if offered != unit.block_length().bytes() => {
            Sense::new(SenseCode::INVALID_FIELD_IN_CDB).into()
        }
        _ => action,
    }
}

/// A reply that only the caller's buffer cut short is asked for again.
fn with_whole_reply(action: Action, out: &ParameterList<'_>) -> Action {
    match (action, out.bytes_missing()) {
        (Action::DataIn, Some(bytes)) => {
            Action::NeedsBuffer { bytes: u32::try_from(bytes).expect("at most ParameterList::BYTES_MAX") }
        }
        (action, _) => action,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::fixture::{DISK, TARGET, THIN, cdb, invalid_field, refused, run, run_on, unit};
    use crate::scsi::{Attention, Attentions, UnitConfig};

    #[test]
    fn an_action_stays_small() {
        assert!(size_of::<Action>() <= 32);
    }

    #[test]
    fn unknown_operation_codes_and_service_actions() {
        for bytes in [&[0x43][..], &[0xff], &[0x3f], &[0x9f, 0x11], &[0x9e, 0x13], &[0xa3, 0x0b], &[0x7f]] {
            assert_eq!(run(&DISK, bytes), refused(SenseCode::INVALID_COMMAND_OPERATION_CODE), "{bytes:02x?}");
        }
        let plain = Unit::new(&DISK).expect("valid");
        for bytes in [[0x48, 0x03], [0x5e, 0x04], [0x5f, 0x08], [0x5f, 0x1f], [0x83, 0x02], [0x84, 0x01], [0x84, 0x06]]
        {
            assert_eq!(run(&DISK, &bytes), invalid_field(1, Some(4)), "{bytes:02x?}");
            let (action, _) = run_on(Some(&plain), &mut NexusUnit::default(), &bytes);
            assert_eq!(action, refused(SenseCode::INVALID_COMMAND_OPERATION_CODE), "{bytes:02x?}");
        }
    }

    #[test]
    fn bytes_beyond_the_command_are_not_looked_at() {
        let read_10 = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        assert_eq!(run(&DISK, &read_10), Action::Read { lba: Lba(0), blocks: 1, dpo: false, fua: false });
    }

    #[test]
    fn where_no_unit_is_only_three_commands_are_answered() {
        for opcode in 0..=0xff {
            let (action, _) = run_on(None, &mut NexusUnit::default(), &[opcode]);
            match opcode {
                0x03 | 0x12 | 0xa0 => assert_eq!(action, Action::DataIn, "{opcode:02x}"),
                _ => assert_eq!(action, refused(SenseCode::LOGICAL_UNIT_NOT_SUPPORTED), "{opcode:02x}"),
            }
        }
    }

    #[test]
    fn a_unit_attention_stops_each_command_once_but_never_the_three() {
        let unit = unit(&DISK);
        for opcode in 0..=0xff {
            let mut nexus = NexusUnit::default();
            nexus.raise(Attention::CapacityChanged);
            let (first, _) = run_on(Some(&unit), &mut nexus, &[opcode]);
            match opcode {
                0x12 | 0xa0 => {
                    assert_eq!(first, Action::DataIn);
                    assert!(nexus.attentions().contains(Attention::CapacityChanged));
                }
                0x03 => {
                    assert_eq!(first, Action::DataIn);
                    assert_eq!(nexus.attentions(), Attentions::NONE, "told as data");
                }
                _ => {
                    assert_eq!(first, refused(SenseCode::CAPACITY_DATA_HAS_CHANGED), "{opcode:02x}");
                    let (second, _) = run_on(Some(&unit), &mut nexus, &[opcode]);
                    assert_ne!(second, first, "{opcode:02x}");
                }
            }
        }
    }

    #[test]
    fn a_new_nexus_hears_of_power_on_first() {
        let unit = unit(&DISK);
        let mut nexus = NexusUnit::new();
        let test_unit_ready = [0; 6];
        let (first, _) = run_on(Some(&unit), &mut nexus, &test_unit_ready);
        assert_eq!(first, refused(SenseCode::POWER_ON_OR_RESET_OCCURRED));
        let (second, _) = run_on(Some(&unit), &mut nexus, &test_unit_ready);
        assert_eq!(second, Action::Done(Outcome::GOOD));
    }

    #[test]
    fn the_field_pointer_names_the_first_wrong_bit() {
        assert_eq!(run(&DISK, &[0x28, 0x07, 0, 0, 0, 0, 0x1f, 0, 1, 0xff]), invalid_field(1, Some(2)));
        assert_eq!(run(&DISK, &[0xa0, 0, 0, 0, 0x40, 0, 0, 0, 0, 16]), invalid_field(4, Some(6)));
    }

    /// A small deterministic generator (xorshift64*), so that a failure can be run again.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
        }

        fn below(&mut self, end: usize) -> usize {
            (self.next() % end as u64) as usize
        }

        /// Half of the time a served operation code and mostly zero fields, so that the handlers behind the checks are
        /// reached.
        fn cdb(&mut self) -> [u8; 16] {
            let (high, low) = (u128::from(self.next()), u128::from(self.next()));
            let mut bytes = (high << 64 | low).to_be_bytes();
            let style = self.below(5);
            if style == 0 {
                return bytes;
            }
            let command = &command_table::COMMANDS[self.below(command_table::COMMANDS.len())];
            for (byte, usage) in bytes.iter_mut().zip(command.cdb_usage).skip(1) {
                match style {
                    1 => {}
                    2 => *byte &= usage,
                    3 if self.0 >> (*byte & 31) & 3 == 0 => *byte &= usage,
                    4 if self.0 >> (*byte & 31) & 3 == 0 => *byte = 1 << (*byte & 7) & usage,
                    _ => *byte = 0,
                }
            }
            bytes[0] = command.opcode;
            if let Some(service_action) = command.service_action
                && style != 1
            {
                bytes[1] = bytes[1] & 0xe0 | service_action;
            }
            bytes
        }
    }

    /// The action is one that a medium can carry out on this unit.
    fn check_action(action: &Action, cdb: &[u8; 16], unit: &Unit) {
        let range = match *action {
            Action::Read { lba, blocks, .. } | Action::Verify { lba, blocks, .. } => Some((lba, u64::from(blocks))),
            Action::Write { lba, blocks, .. } | Action::WriteAndVerify { lba, blocks, .. } => {
                assert!(!unit.read_only(), "{cdb:02x?}");
                Some((lba, u64::from(blocks)))
            }
            Action::Flush { lba, blocks, .. } => Some((lba, blocks)),
            Action::OrWrite { lba, blocks, .. } => {
                assert!(!unit.read_only(), "{cdb:02x?}");
                Some((lba, u64::from(blocks)))
            }
            Action::CompareAndWrite { lba, blocks, .. } => {
                assert!(!unit.read_only(), "{cdb:02x?}");
                Some((lba, u64::from(blocks)))
            }
            Action::WriteAtomic { lba, blocks, .. } => {
                assert!(!unit.read_only() && blocks <= unit.atomic_write_blocks_max(), "{cdb:02x?}");
                Some((lba, u64::from(blocks)))
            }
            Action::Unmap { list_bytes } => {
                assert!(list_bytes >= 8 && unit.thin_provisioned() && !unit.read_only(), "{cdb:02x?}");
                None
            }
            Action::WriteSame { lba, blocks, unmap, .. } => {
                assert!(!unit.read_only() && (unit.thin_provisioned() || !unmap), "{cdb:02x?}");
                assert!(blocks <= unit.write_same_blocks_max(), "{cdb:02x?}");
                Some((lba, u64::from(blocks)))
            }
            Action::GetLbaStatus { lba, .. } => Some((lba, 1)),
            Action::ReserveOut { list_bytes, .. } => {
                assert!((24..=65_536).contains(&list_bytes), "{cdb:02x?}");
                None
            }
            Action::ReserveIn { .. } | Action::ReserveUnit { .. } | Action::ExitSanitizeFailure => None,
            Action::ReportPortGroups { .. } | Action::LogSense { .. } | Action::ReportTimestamp { .. } => None,
            Action::ReadEcho { .. } | Action::LogReset => None,
            Action::WriteEcho { list_bytes } => {
                assert!((1..=crate::limits::ECHO_BUFFER_BYTES).contains(&list_bytes), "{cdb:02x?}");
                None
            }
            Action::CopyOut { list_bytes, .. } => {
                assert!((1..=crate::limits::COPY_LIST_BYTES_MAX).contains(&list_bytes), "{cdb:02x?}");
                None
            }
            Action::CopyAbort { .. } | Action::CopyIn { .. } => None,
            Action::SetPortGroups { list_bytes } => {
                assert!((4..=1028).contains(&list_bytes), "{cdb:02x?}");
                None
            }
            Action::ModeSelect { list_bytes, long, .. } => {
                assert!(list_bytes >= if long { 8 } else { 4 }, "{cdb:02x?}");
                None
            }
            Action::Format { .. } | Action::Sanitize { .. } => {
                assert!(!unit.read_only(), "{cdb:02x?}");
                None
            }
            Action::Done(_) | Action::DataIn | Action::NeedsBuffer { .. } => None,
        };
        let Some((lba, blocks)) = range else { return };
        assert!(blocks > 0, "{cdb:02x?}");
        assert!(lba.0.checked_add(blocks).is_some_and(|end| end <= unit.capacity_blocks()), "{cdb:02x?}");
        if !matches!(action, Action::Flush { .. } | Action::WriteSame { .. }) {
            assert!(blocks <= u64::from(unit.transfer_blocks_max()), "{cdb:02x?}");
        }
        let bytes = action.data_in_bytes(unit.block_length()) + action.data_out_bytes(unit.block_length());
        assert!(bytes <= u64::from(crate::limits::TRANSFER_BYTES_MAX), "{cdb:02x?}");
    }

    fn units() -> Vec<Unit> {
        let long = UnitConfig { block_length: BlockLength::B4096, physical_block_exponent: 15, ..DISK };
        [
            DISK,
            UnitConfig { capacity_blocks: 1, read_only: true, ..DISK },
            UnitConfig { capacity_blocks: 1 << 54, ..THIN },
            UnitConfig { capacity_blocks: 1 << 51, sense_format: SenseFormat::Descriptor, ..long },
        ]
        .map(|config| unit(&config))
        .into()
    }

    #[test]
    fn a_million_mutated_cdbs_stay_within_every_bound() {
        const FILL: u8 = 0xa5;
        let units = units();
        let mut random = Random(0x6c75_6e61_7269_6e67);
        let mut buffer = vec![FILL; ParameterList::BYTES_MIN];
        let mut accepted = vec![0u32; command_table::COMMANDS.len()];
        for round in 0..1_000_000 {
            let cdb = random.cdb();
            let unit = &units[random.below(units.len())];
            let mut nexus = if round % 64 == 0 { NexusUnit::new() } else { NexusUnit::default() };
            let capacity = if round % 8 == 0 { random.below(64) } else { ParameterList::BYTES_MIN };
            let mut out = ParameterList::new(&mut buffer[..capacity]);
            let logical_unit =
                (round % 16 != 1).then_some(LogicalUnit { unit, nexus: &mut nexus, condition: Condition::Ready });
            let action = execute(&CommandRequest { cdb: &cdb, data_out_bytes: None }, &TARGET, logical_unit, &mut out);
            check_action(&action, &cdb, unit);
            let row = command_table::find(&cdb);
            let written = match action {
                Action::DataIn => {
                    assert_eq!(row.map(|row| row.direction), Some(command_table::DataDirection::In), "{cdb:02x?}");
                    out.len()
                }
                Action::NeedsBuffer { bytes } => {
                    assert!(bytes as usize > capacity, "{cdb:02x?}");
                    capacity
                }
                Action::Done(outcome) => {
                    assert_eq!(outcome.sense.is_some(), outcome.status == Status::CHECK_CONDITION, "{cdb:02x?}");
                    capacity
                }
                _ => 0,
            };
            assert!(buffer[written..].iter().all(|byte| *byte == FILL), "written beyond the reply: {cdb:02x?}");
            buffer[..written].fill(FILL);
            if let Some(row) = row
                && !matches!(action, Action::Done(Outcome { sense: Some(_), .. }))
            {
                let index = command_table::COMMANDS.iter().position(|command| std::ptr::eq(command, row));
                accepted[index.expect("a row of the table")] += 1;
            }
        }
        for (command, accepted) in command_table::COMMANDS.iter().zip(accepted) {
            assert!(accepted > 10, "{} was accepted only {accepted} times", command.name);
        }
    }

    #[test]
    fn every_byte_of_a_reply_was_written_by_it() {
        let unit = unit(&DISK);
        for command in command_table::COMMANDS {
            for page in 0..=0xff {
                let mut bytes = command.cdb_usage;
                if command.service_action.is_none() {
                    bytes[1] &= 0x09;
                }
                bytes[2] = page;
                let replies = [0x00, 0xff].map(|stale| {
                    let mut buffer = vec![stale; ParameterList::BYTES_MIN];
                    let mut out = ParameterList::new(&mut buffer);
                    let mut nexus = NexusUnit::default();
                    let logical_unit = LogicalUnit { unit: &unit, nexus: &mut nexus, condition: Condition::Ready };
                    let request = CommandRequest { cdb: &cdb(&bytes), data_out_bytes: None };
                    let action = execute(&request, &TARGET, Some(logical_unit), &mut out);
                    if action == Action::DataIn { out.bytes().to_vec() } else { Vec::new() }
                });
                assert_eq!(replies[0], replies[1], "{} page {page:02x}", command.name);
            }
        }
    }
}
