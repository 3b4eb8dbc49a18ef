//! What can go wrong on the medium behind a unit, and the one total mapping to status and sense.

use super::sense::{Outcome, Sense, SenseCode, Status};
use crate::units::Lba;

/// Why the medium could not do what an [`Action`](super::Action) asked. Small and `Copy`: it travels on the data path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MediumError {
    /// The host could not read the block. UNRECOVERED READ ERROR, with the address.
    ReadFailed {
        /// The first block that could not be read.
        lba: Lba,
    },
    /// The host could not write the block. WRITE ERROR, with the address.
    WriteFailed {
        /// The first block that could not be written.
        lba: Lba,
    },
    /// The host could not make written data durable. WRITE ERROR without an address.
    FlushFailed,
    /// The host has no space for a new block. SPACE ALLOCATION FAILED WRITE PROTECT.
    OutOfSpace,
    /// The unit is read-only, which showed only at the medium. WRITE PROTECTED.
    ReadOnly,
    /// An earlier failure left the medium's metadata in doubt; it serves nothing until reopened. LOGICAL UNIT
    /// FAILURE, as a MEDIUM ERROR.
    Poisoned,
    /// Metadata of the image contradicts itself. MEDIUM FORMAT CORRUPTED.
    Corrupt,
    /// The compared bytes differ. MISCOMPARE DURING VERIFY OPERATION.
    Miscompare {
        /// Bytes from the start of the Data-Out buffer to the first one that differs.
        offset: u64,
    },
    /// The host did not answer in time. LOGICAL UNIT COMMUNICATION TIME-OUT.
    Timeout,
    /// The unit is mapped, but its medium is not open. LOGICAL UNIT NOT READY, MANUAL INTERVENTION REQUIRED.
    Offline,
    /// The unit was unmapped while the command ran. LOGICAL UNIT NOT SUPPORTED.
    Removed,
    /// The target gave the command up; it may be sent again. ABORTED COMMAND without further explanation.
    Aborted,
    /// No memory or queue place for the command now; the initiator sends it again. BUSY, without sense.
    Busy,
}

impl MediumError {
    /// The status and sense that the command ends with.
    pub const fn outcome(self) -> Outcome {
        let sense = match self {
            Self::ReadFailed { lba } => Sense::new(SenseCode::UNRECOVERED_READ_ERROR).with_information(lba.0),
            Self::WriteFailed { lba } => Sense::new(SenseCode::WRITE_ERROR).with_information(lba.0),
            Self::FlushFailed => Sense::new(SenseCode::WRITE_ERROR),
            Self::OutOfSpace => Sense::new(SenseCode::SPACE_ALLOCATION_FAILED_WRITE_PROTECT),
            Self::ReadOnly => Sense::new(SenseCode::WRITE_PROTECTED),
            Self::Poisoned => Sense::new(SenseCode::LOGICAL_UNIT_FAILURE),
            Self::Corrupt => Sense::new(SenseCode::MEDIUM_FORMAT_CORRUPTED),
            Self::Miscompare { offset } => {
                Sense::new(SenseCode::MISCOMPARE_DURING_VERIFY_OPERATION).with_information(offset)
            }
            Self::Timeout => Sense::new(SenseCode::LOGICAL_UNIT_COMMUNICATION_TIME_OUT),
            Self::Offline => Sense::new(SenseCode::LOGICAL_UNIT_NOT_READY_MANUAL_INTERVENTION_REQUIRED),
            Self::Removed => Sense::new(SenseCode::LOGICAL_UNIT_NOT_SUPPORTED),
            Self::Aborted => Sense::new(SenseCode::COMMAND_ABORTED),
            Self::Busy => return Outcome::status(Status::BUSY),
        };
        Outcome::check_condition(sense)
    }
}

impl From<MediumError> for Outcome {
    fn from(error: MediumError) -> Self {
        error.outcome()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_stays_small() {
        assert_eq!(size_of::<MediumError>(), 16);
        assert_eq!(size_of::<Result<(), MediumError>>(), 16);
    }

    #[test]
    fn only_a_failed_block_names_its_address() {
        let outcome = MediumError::ReadFailed { lba: Lba(0x1234) }.outcome();
        assert_eq!(outcome.sense.map(|sense| sense.code()), Some(SenseCode::UNRECOVERED_READ_ERROR));
        assert_eq!(outcome.sense.and_then(|sense| sense.information()), Some(0x1234));
        assert_eq!(MediumError::OutOfSpace.outcome().sense.and_then(|sense| sense.information()), None);
        assert_eq!(MediumError::Busy.outcome(), Outcome::status(Status::BUSY));
    }
}
