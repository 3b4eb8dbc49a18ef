//! What keeps a unit as a whole from serving: it is being formatted or sanitized, or that has failed (SBC-4 clauses
//! 4.33 and 4.11). Who carries it out keeps the condition and gives it with every command.

use super::sense::{Sense, SenseCode};

/// The condition of a unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    /// It serves.
    #[default]
    Ready,
    /// FORMAT UNIT is at work.
    Formatting {
        /// PROGRESS INDICATION: how much is done, in 65,536ths.
        progress: u16,
    },
    /// FORMAT UNIT has failed; only another one, or SANITIZE, makes the unit usable.
    FormatFailed,
    /// FORMAT UNIT was interrupted, by a power loss for one; the same makes the unit usable.
    FormatInterrupted,
    /// SANITIZE is at work.
    Sanitizing {
        /// PROGRESS INDICATION: how much is done, in 65,536ths.
        progress: u16,
    },
    /// SANITIZE has failed; only another one makes the unit usable.
    SanitizeFailed {
        /// AUSE was one: SANITIZE with EXIT FAILURE MODE makes the unit usable too.
        may_exit: bool,
    },
}

impl Condition {
    /// What a command hears that has to wait, or cannot be done any more.
    pub fn sense(self) -> Option<Sense> {
        match self {
            Self::Ready => None,
            Self::Formatting { progress } => {
                Some(Sense::new(SenseCode::LOGICAL_UNIT_NOT_READY_FORMAT_IN_PROGRESS).with_progress(progress))
            }
            Self::FormatFailed => Some(Sense::new(SenseCode::FORMAT_COMMAND_FAILED)),
            Self::FormatInterrupted => Some(Sense::new(SenseCode::MEDIUM_FORMAT_CORRUPTED)),
            Self::Sanitizing { progress } => {
                Some(Sense::new(SenseCode::LOGICAL_UNIT_NOT_READY_SANITIZE_IN_PROGRESS).with_progress(progress))
            }
            Self::SanitizeFailed { .. } => Some(Sense::new(SenseCode::SANITIZE_COMMAND_FAILED)),
        }
    }

    /// A command of this operation code is served all the same.
    pub(super) fn allows(self, opcode: u8) -> bool {
        const FORMAT_UNIT: u8 = 0x04;
        const SANITIZE: u8 = 0x48;
        match self {
            Self::Ready => true,
            Self::Formatting { .. } | Self::Sanitizing { .. } => false,
            Self::FormatFailed | Self::FormatInterrupted => matches!(opcode, FORMAT_UNIT | SANITIZE),
            Self::SanitizeFailed { .. } => opcode == SANITIZE,
        }
    }

    /// The condition after SANITIZE with EXIT FAILURE MODE. Where nothing has failed, nothing changes.
    pub fn exit_failure_mode(self) -> Result<Self, Sense> {
        match self {
            Self::SanitizeFailed { may_exit: true } => Ok(Self::Ready),
            // The restricted completion mode has no way out but sanitizing again.
            Self::SanitizeFailed { may_exit: false } => Err(Sense::invalid_field_in_cdb(1, Some(4))),
            other => Ok(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::command_table::COMMANDS;
    use crate::scsi::fixture::{DISK, run_in, unit};
    use crate::scsi::{Action, SenseFormat};

    fn conditions() -> [Condition; 6] {
        [
            Condition::Formatting { progress: 0x8001 },
            Condition::FormatFailed,
            Condition::FormatInterrupted,
            Condition::Sanitizing { progress: 7 },
            Condition::SanitizeFailed { may_exit: false },
            Condition::SanitizeFailed { may_exit: true },
        ]
    }

    #[test]
    fn only_what_leads_out_is_served() {
        for condition in conditions() {
            let sense = condition.sense().expect("not ready");
            for command in COMMANDS.iter().filter(|command| command.is_served_on(&unit(&DISK))) {
                let cdb = [command.opcode, command.service_action.unwrap_or(0)];
                let (action, _) = run_in(condition, &cdb);
                let served = match condition {
                    _ if matches!(command.opcode, 0x03 | 0x12 | 0xa0) => true,
                    Condition::FormatFailed | Condition::FormatInterrupted => matches!(command.opcode, 0x04 | 0x48),
                    Condition::SanitizeFailed { .. } => command.opcode == 0x48,
                    _ => false,
                };
                assert_eq!(action != sense.into(), served, "{} {condition:?}", command.name);
            }
        }
    }

    #[test]
    fn request_sense_tells_the_progress() {
        let (action, data) = run_in(Condition::Formatting { progress: 0x8001 }, &[3, 0, 0, 0, 255]);
        assert_eq!(action, Action::DataIn);
        assert_eq!(data, [0x70, 0, 2, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x04, 0x04, 0, 0x80, 0x80, 0x01]);
        let sense = Condition::Sanitizing { progress: 7 }.sense().expect("not ready");
        assert_eq!(*sense.encode(SenseFormat::Descriptor), [0x72, 2, 4, 0x1b, 0, 0, 0, 8, 2, 6, 0, 0, 0x80, 0, 7, 0]);
    }

    #[test]
    fn a_failure_is_left_only_if_it_was_allowed() {
        assert_eq!(Condition::SanitizeFailed { may_exit: true }.exit_failure_mode(), Ok(Condition::Ready));
        assert!(Condition::SanitizeFailed { may_exit: false }.exit_failure_mode().is_err());
        assert_eq!(Condition::Ready.exit_failure_mode(), Ok(Condition::Ready));
        assert_eq!(Condition::FormatFailed.exit_failure_mode(), Ok(Condition::FormatFailed));
    }
}
