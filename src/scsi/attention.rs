//! Unit attention conditions (SAM-5 clause 5.14): which are pending for one initiator on one unit, and which is told
//! first.

use super::sense::SenseCode;

/// A unit attention condition, in the order in which they are told: the ones that reset most come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Attention {
    /// POWER ON, RESET, OR BUS DEVICE RESET OCCURRED: the first command of a new I_T nexus learns that earlier state is
    /// gone. The general code, because widely used initiators (libiscsi) try again after it, but not after the narrower
    /// POWER ON OCCURRED.
    PowerOn = 0,
    /// BUS DEVICE RESET FUNCTION OCCURRED: a LOGICAL UNIT RESET or target reset was done.
    DeviceReset = 1,
    /// I_T NEXUS LOSS OCCURRED: the initiator's session ended without logout and came back.
    NexusLoss = 2,
    /// COMMANDS CLEARED BY ANOTHER INITIATOR: CLEAR TASK SET aborted this initiator's commands.
    CommandsCleared = 3,
    /// RESERVATIONS PREEMPTED: CLEAR removed the initiator's registration.
    ReservationsPreempted = 4,
    /// RESERVATIONS RELEASED: a reservation that the initiator shared is no more, or of another type.
    ReservationsReleased = 5,
    /// REGISTRATIONS PREEMPTED: another initiator removed this one's registration.
    RegistrationsPreempted = 6,
    /// ASYMMETRIC ACCESS STATE CHANGED: a target port group is in another state.
    AccessStateChanged = 7,
    /// REPORTED LUNS DATA HAS CHANGED: units were mapped or unmapped.
    ReportedLunsChanged = 8,
    /// CAPACITY DATA HAS CHANGED: the unit was resized.
    CapacityChanged = 9,
    /// MODE PARAMETERS CHANGED: write protection or caching changed.
    ModeParametersChanged = 10,
    /// INQUIRY DATA HAS CHANGED: identity or provisioning changed.
    InquiryChanged = 11,
    /// THIN PROVISIONING SOFT THRESHOLD REACHED: little space is left behind the unit.
    ThinProvisioningThreshold = 12,
    /// LOG PARAMETERS CHANGED: another initiator has set back what was counted.
    LogParametersChanged = 13,
}

impl Attention {
    /// Every condition, most urgent first.
    pub const ALL: [Self; 14] = [
        Self::PowerOn,
        Self::DeviceReset,
        Self::NexusLoss,
        Self::CommandsCleared,
        Self::ReservationsPreempted,
        Self::ReservationsReleased,
        Self::RegistrationsPreempted,
        Self::AccessStateChanged,
        Self::ReportedLunsChanged,
        Self::CapacityChanged,
        Self::ModeParametersChanged,
        Self::InquiryChanged,
        Self::ThinProvisioningThreshold,
        Self::LogParametersChanged,
    ];

    /// The sense that tells it.
    pub const fn sense_code(self) -> SenseCode {
        match self {
            Self::PowerOn => SenseCode::POWER_ON_OR_RESET_OCCURRED,
            Self::DeviceReset => SenseCode::BUS_DEVICE_RESET_FUNCTION_OCCURRED,
            Self::NexusLoss => SenseCode::I_T_NEXUS_LOSS_OCCURRED,
            Self::CommandsCleared => SenseCode::COMMANDS_CLEARED_BY_ANOTHER_INITIATOR,
            Self::ReservationsPreempted => SenseCode::RESERVATIONS_PREEMPTED,
            Self::ReservationsReleased => SenseCode::RESERVATIONS_RELEASED,
            Self::RegistrationsPreempted => SenseCode::REGISTRATIONS_PREEMPTED,
            Self::AccessStateChanged => SenseCode::ASYMMETRIC_ACCESS_STATE_CHANGED,
            Self::ReportedLunsChanged => SenseCode::REPORTED_LUNS_DATA_HAS_CHANGED,
            Self::CapacityChanged => SenseCode::CAPACITY_DATA_HAS_CHANGED,
            Self::ModeParametersChanged => SenseCode::MODE_PARAMETERS_CHANGED,
            Self::InquiryChanged => SenseCode::INQUIRY_DATA_HAS_CHANGED,
            Self::ThinProvisioningThreshold => SenseCode::THIN_PROVISIONING_SOFT_THRESHOLD_REACHED,
            Self::LogParametersChanged => SenseCode::LOG_PARAMETERS_CHANGED,
        }
    }

    const fn bit(self) -> u16 {
        1 << self as u8
    }
}

/// The conditions pending for one initiator on one unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attentions(u16);

impl Attentions {
    /// None pending.
    pub const NONE: Self = Self(0);

    /// Nothing is pending.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// This one is pending.
    pub const fn contains(self, attention: Attention) -> bool {
        self.0 & attention.bit() != 0
    }

    /// Establish a condition. A reset hides nothing else, but POWER ON says all that the other resets say (SAM-5 clause
    /// 5.14.2), so those are not added to it, and it takes their place.
    pub fn raise(&mut self, attention: Attention) {
        const RESETS: u16 =
            Attention::DeviceReset.bit() | Attention::NexusLoss.bit() | Attention::CommandsCleared.bit();
        if self.contains(Attention::PowerOn) && attention.bit() & RESETS != 0 {
            return;
        }
        if attention == Attention::PowerOn {
            self.0 &= !RESETS;
        }
        self.0 |= attention.bit();
    }

    /// Take a condition back, told or not.
    pub fn clear(&mut self, attention: Attention) {
        self.0 &= !attention.bit();
    }

    /// The most urgent condition, left pending.
    pub fn first(self) -> Option<Attention> {
        Attention::ALL.get(self.0.trailing_zeros() as usize).copied()
    }

    /// The most urgent condition, which is thereby told and cleared.
    pub fn take_first(&mut self) -> Option<Attention> {
        let first = self.first()?;
        self.clear(first);
        Some(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_told_once_each_and_most_urgent_first() {
        let mut pending = Attentions::NONE;
        for attention in Attention::ALL.into_iter().rev() {
            pending.raise(attention);
            pending.raise(attention);
        }
        let told: Vec<_> = std::iter::from_fn(|| pending.take_first()).collect();
        let expected = [
            Attention::PowerOn,
            Attention::ReservationsPreempted,
            Attention::ReservationsReleased,
            Attention::RegistrationsPreempted,
            Attention::AccessStateChanged,
            Attention::ReportedLunsChanged,
            Attention::CapacityChanged,
            Attention::ModeParametersChanged,
            Attention::InquiryChanged,
            Attention::ThinProvisioningThreshold,
            Attention::LogParametersChanged,
        ];
        assert_eq!(told, expected, "POWER ON takes the place of the lesser resets");
        assert!(pending.is_empty());
    }

    #[test]
    fn a_lesser_reset_is_told_when_it_comes_alone_and_not_after_power_on() {
        for reset in [Attention::DeviceReset, Attention::NexusLoss, Attention::CommandsCleared] {
            let mut pending = Attentions::NONE;
            pending.raise(reset);
            assert_eq!(pending.first(), Some(reset));
            pending.raise(Attention::PowerOn);
            pending.raise(reset);
            assert_eq!(pending.take_first(), Some(Attention::PowerOn));
            assert_eq!(pending.take_first(), None);
        }
    }

    #[test]
    fn a_cleared_condition_is_not_told() {
        let mut pending = Attentions::NONE;
        pending.raise(Attention::InquiryChanged);
        pending.clear(Attention::InquiryChanged);
        assert_eq!(pending.first(), None);
    }
}
