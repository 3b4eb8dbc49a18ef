//! Status codes and sense data (SAM-5 clause 5.3, SPC-5 clause 4.4): one table of named conditions, and their two
//! encodings.
//!
//! Nothing else in the server builds sense bytes.

use std::fmt;
use std::ops::Deref;

/// A SCSI status code (SAM-5 clause 5.3.1). Open: any byte is representable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub u8);

impl Status {
    /// The command did what it says.
    pub const GOOD: Self = Self(0x00);
    /// Sense data says why the command failed.
    pub const CHECK_CONDITION: Self = Self(0x02);
    /// Not now; send it again later.
    pub const BUSY: Self = Self(0x08);
    /// A reservation of another I_T nexus forbids it.
    pub const RESERVATION_CONFLICT: Self = Self(0x18);
    /// No room in the task set.
    pub const TASK_SET_FULL: Self = Self(0x28);
    /// Another I_T nexus aborted the command, and TAS is one.
    pub const TASK_ABORTED: Self = Self(0x40);
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The status byte.
    pub status: Status,
    /// The reason; present exactly with CHECK CONDITION.
    pub sense: Option<Sense>,
}

impl Outcome {
    /// GOOD.
    pub const GOOD: Self = Self::status(Status::GOOD);

    /// A status that carries no sense. Not for CHECK CONDITION.
    pub const fn status(status: Status) -> Self {
        assert!(status.0 != Status::CHECK_CONDITION.0, "CHECK CONDITION carries sense");
        Self { status, sense: None }
    }

    /// CHECK CONDITION with this sense.
    pub const fn check_condition(sense: Sense) -> Self {
        Self { status: Status::CHECK_CONDITION, sense: Some(sense) }
    }

    /// The sense data bytes that go with the status, if any do.
    pub fn sense_data(self, format: SenseFormat) -> Option<SenseData> {
        self.sense.map(|sense| sense.encode(format))
    }
}

impl From<Sense> for Outcome {
    fn from(sense: Sense) -> Self {
        Self::check_condition(sense)
    }
}

/// Which of the two encodings an initiator gets: the D_SENSE bit of the Control mode page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SenseFormat {
    /// Response code 70h.
    #[default]
    Fixed,
    /// Response code 72h.
    Descriptor,
}

/// A sense key (SPC-5 table "Sense key descriptions"). Open: any value is representable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SenseKey(pub u8);

impl SenseKey {
    /// Nothing to report.
    pub const NO_SENSE: Self = Self(0x0);
    /// The unit is not accessible.
    pub const NOT_READY: Self = Self(0x2);
    /// The medium failed.
    pub const MEDIUM_ERROR: Self = Self(0x3);
    /// The device failed.
    pub const HARDWARE_ERROR: Self = Self(0x4);
    /// The command is wrong.
    pub const ILLEGAL_REQUEST: Self = Self(0x5);
    /// Something changed that the initiator must know.
    pub const UNIT_ATTENTION: Self = Self(0x6);
    /// Writing is not allowed.
    pub const DATA_PROTECT: Self = Self(0x7);
    /// A copy between units ended before it was complete.
    pub const COPY_ABORTED: Self = Self(0xa);
    /// The target gave the command up; it may be sent again.
    pub const ABORTED_COMMAND: Self = Self(0xb);
    /// Compared data differ.
    pub const MISCOMPARE: Self = Self(0xe);
}

/// A named condition: sense key, additional sense code and its qualifier.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SenseCode {
    /// The sense key.
    pub key: SenseKey,
    /// ADDITIONAL SENSE CODE.
    pub asc: u8,
    /// ADDITIONAL SENSE CODE QUALIFIER.
    pub ascq: u8,
}

macro_rules! sense_codes {
    ($($name:ident = $key:ident, $asc:literal, $ascq:literal, $text:literal;)*) => {
        impl SenseCode {
            $(
                #[doc = concat!($text, ".")]
                pub const $name: Self = Self { key: SenseKey::$key, asc: $asc, ascq: $ascq };
            )*

            /// Every named condition with T10's text for it.
            pub const ALL: &[(Self, &'static str)] = &[$((Self::$name, $text)),*];
        }
    };
}

sense_codes! {
    NO_ADDITIONAL_SENSE_INFORMATION = NO_SENSE, 0x00, 0x00, "NO ADDITIONAL SENSE INFORMATION";
    OPERATION_IN_PROGRESS = ILLEGAL_REQUEST, 0x00, 0x16, "OPERATION IN PROGRESS";
    COPY_ENDED = COPY_ABORTED, 0x00, 0x00, "NO ADDITIONAL SENSE INFORMATION";
    LOGICAL_UNIT_NOT_READY_MANUAL_INTERVENTION_REQUIRED =
        NOT_READY, 0x04, 0x03, "LOGICAL UNIT NOT READY, MANUAL INTERVENTION REQUIRED";
    LOGICAL_UNIT_NOT_READY_FORMAT_IN_PROGRESS = NOT_READY, 0x04, 0x04, "LOGICAL UNIT NOT READY, FORMAT IN PROGRESS";
    ASYMMETRIC_ACCESS_STATE_TRANSITION =
        NOT_READY, 0x04, 0x0a, "LOGICAL UNIT NOT ACCESSIBLE, ASYMMETRIC ACCESS STATE TRANSITION";
    TARGET_PORT_IN_STANDBY_STATE =
        NOT_READY, 0x04, 0x0b, "LOGICAL UNIT NOT ACCESSIBLE, TARGET PORT IN STANDBY STATE";
    TARGET_PORT_IN_UNAVAILABLE_STATE =
        NOT_READY, 0x04, 0x0c, "LOGICAL UNIT NOT ACCESSIBLE, TARGET PORT IN UNAVAILABLE STATE";
    LOGICAL_UNIT_NOT_READY_OFFLINE = NOT_READY, 0x04, 0x12, "LOGICAL UNIT NOT READY, OFFLINE";
    LOGICAL_UNIT_NOT_READY_SANITIZE_IN_PROGRESS =
        NOT_READY, 0x04, 0x1b, "LOGICAL UNIT NOT READY, SANITIZE IN PROGRESS";
    LOGICAL_UNIT_COMMUNICATION_TIME_OUT = ABORTED_COMMAND, 0x08, 0x01, "LOGICAL UNIT COMMUNICATION TIME-OUT";
    WRITE_ERROR = MEDIUM_ERROR, 0x0c, 0x00, "WRITE ERROR";
    WRITE_ERROR_UNEXPECTED_UNSOLICITED_DATA = ABORTED_COMMAND, 0x0c, 0x0c, "WRITE ERROR - UNEXPECTED UNSOLICITED DATA";
    WRITE_ERROR_NOT_ENOUGH_UNSOLICITED_DATA = ABORTED_COMMAND, 0x0c, 0x0d, "WRITE ERROR - NOT ENOUGH UNSOLICITED DATA";
    THIRD_PARTY_DEVICE_FAILURE = COPY_ABORTED, 0x0d, 0x01, "THIRD PARTY DEVICE FAILURE";
    COPY_TARGET_DEVICE_NOT_REACHABLE = COPY_ABORTED, 0x0d, 0x02, "COPY TARGET DEVICE NOT REACHABLE";
    INCORRECT_COPY_TARGET_DEVICE_TYPE = COPY_ABORTED, 0x0d, 0x03, "INCORRECT COPY TARGET DEVICE TYPE";
    INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT =
        ILLEGAL_REQUEST, 0x0e, 0x03, "INVALID FIELD IN COMMAND INFORMATION UNIT";
    UNRECOVERED_READ_ERROR = MEDIUM_ERROR, 0x11, 0x00, "UNRECOVERED READ ERROR";
    PARAMETER_LIST_LENGTH_ERROR = ILLEGAL_REQUEST, 0x1a, 0x00, "PARAMETER LIST LENGTH ERROR";
    MISCOMPARE_DURING_VERIFY_OPERATION = MISCOMPARE, 0x1d, 0x00, "MISCOMPARE DURING VERIFY OPERATION";
    INVALID_COMMAND_OPERATION_CODE = ILLEGAL_REQUEST, 0x20, 0x00, "INVALID COMMAND OPERATION CODE";
    LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE = ILLEGAL_REQUEST, 0x21, 0x00, "LOGICAL BLOCK ADDRESS OUT OF RANGE";
    INVALID_TOKEN_UNSUPPORTED_TYPE = ILLEGAL_REQUEST, 0x23, 0x01, "INVALID TOKEN OPERATION, UNSUPPORTED TOKEN TYPE";
    INVALID_TOKEN_UNKNOWN = ILLEGAL_REQUEST, 0x23, 0x04, "INVALID TOKEN OPERATION, TOKEN UNKNOWN";
    INVALID_TOKEN_CORRUPT = ILLEGAL_REQUEST, 0x23, 0x05, "INVALID TOKEN OPERATION, TOKEN CORRUPT";
    INVALID_TOKEN_REVOKED = ILLEGAL_REQUEST, 0x23, 0x06, "INVALID TOKEN OPERATION, TOKEN REVOKED";
    INVALID_TOKEN_EXPIRED = ILLEGAL_REQUEST, 0x23, 0x07, "INVALID TOKEN OPERATION, TOKEN EXPIRED";
    INVALID_TOKEN_CANCELLED = ILLEGAL_REQUEST, 0x23, 0x08, "INVALID TOKEN OPERATION, TOKEN CANCELLED";
    INVALID_TOKEN_DELETED = ILLEGAL_REQUEST, 0x23, 0x09, "INVALID TOKEN OPERATION, TOKEN DELETED";
    INVALID_TOKEN_LENGTH = ILLEGAL_REQUEST, 0x23, 0x0a, "INVALID TOKEN OPERATION, INVALID TOKEN LENGTH";
    INVALID_FIELD_IN_CDB = ILLEGAL_REQUEST, 0x24, 0x00, "INVALID FIELD IN CDB";
    LOGICAL_UNIT_NOT_SUPPORTED = ILLEGAL_REQUEST, 0x25, 0x00, "LOGICAL UNIT NOT SUPPORTED";
    INVALID_FIELD_IN_PARAMETER_LIST = ILLEGAL_REQUEST, 0x26, 0x00, "INVALID FIELD IN PARAMETER LIST";
    INVALID_RELEASE_OF_PERSISTENT_RESERVATION =
        ILLEGAL_REQUEST, 0x26, 0x04, "INVALID RELEASE OF PERSISTENT RESERVATION";
    TOO_MANY_TARGET_DESCRIPTORS = ILLEGAL_REQUEST, 0x26, 0x06, "TOO MANY TARGET DESCRIPTORS";
    UNSUPPORTED_TARGET_DESCRIPTOR_TYPE_CODE =
        ILLEGAL_REQUEST, 0x26, 0x07, "UNSUPPORTED TARGET DESCRIPTOR TYPE CODE";
    TOO_MANY_SEGMENT_DESCRIPTORS = ILLEGAL_REQUEST, 0x26, 0x08, "TOO MANY SEGMENT DESCRIPTORS";
    UNSUPPORTED_SEGMENT_DESCRIPTOR_TYPE_CODE =
        ILLEGAL_REQUEST, 0x26, 0x09, "UNSUPPORTED SEGMENT DESCRIPTOR TYPE CODE";
    UNEXPECTED_INEXACT_SEGMENT = COPY_ABORTED, 0x26, 0x0a, "UNEXPECTED INEXACT SEGMENT";
    INLINE_DATA_LENGTH_EXCEEDED = ILLEGAL_REQUEST, 0x26, 0x0b, "INLINE DATA LENGTH EXCEEDED";
    INVALID_OPERATION_FOR_COPY_SOURCE_OR_DESTINATION =
        COPY_ABORTED, 0x26, 0x0c, "INVALID OPERATION FOR COPY SOURCE OR DESTINATION";
    COPY_SEGMENT_GRANULARITY_VIOLATION = COPY_ABORTED, 0x26, 0x0d, "COPY SEGMENT GRANULARITY VIOLATION";
    WRITE_PROTECTED = DATA_PROTECT, 0x27, 0x00, "WRITE PROTECTED";
    LOGICAL_UNIT_SOFTWARE_WRITE_PROTECTED = DATA_PROTECT, 0x27, 0x02, "LOGICAL UNIT SOFTWARE WRITE PROTECTED";
    SPACE_ALLOCATION_FAILED_WRITE_PROTECT = DATA_PROTECT, 0x27, 0x07, "SPACE ALLOCATION FAILED WRITE PROTECT";
    POWER_ON_OR_RESET_OCCURRED = UNIT_ATTENTION, 0x29, 0x00, "POWER ON, RESET, OR BUS DEVICE RESET OCCURRED";
    BUS_DEVICE_RESET_FUNCTION_OCCURRED = UNIT_ATTENTION, 0x29, 0x03, "BUS DEVICE RESET FUNCTION OCCURRED";
    I_T_NEXUS_LOSS_OCCURRED = UNIT_ATTENTION, 0x29, 0x07, "I_T NEXUS LOSS OCCURRED";
    MODE_PARAMETERS_CHANGED = UNIT_ATTENTION, 0x2a, 0x01, "MODE PARAMETERS CHANGED";
    LOG_PARAMETERS_CHANGED = UNIT_ATTENTION, 0x2a, 0x02, "LOG PARAMETERS CHANGED";
    RESERVATIONS_PREEMPTED = UNIT_ATTENTION, 0x2a, 0x03, "RESERVATIONS PREEMPTED";
    RESERVATIONS_RELEASED = UNIT_ATTENTION, 0x2a, 0x04, "RESERVATIONS RELEASED";
    REGISTRATIONS_PREEMPTED = UNIT_ATTENTION, 0x2a, 0x05, "REGISTRATIONS PREEMPTED";
    ASYMMETRIC_ACCESS_STATE_CHANGED = UNIT_ATTENTION, 0x2a, 0x06, "ASYMMETRIC ACCESS STATE CHANGED";
    CAPACITY_DATA_HAS_CHANGED = UNIT_ATTENTION, 0x2a, 0x09, "CAPACITY DATA HAS CHANGED";
    COMMAND_SEQUENCE_ERROR = ILLEGAL_REQUEST, 0x2c, 0x00, "COMMAND SEQUENCE ERROR";
    COMMANDS_CLEARED_BY_ANOTHER_INITIATOR = UNIT_ATTENTION, 0x2f, 0x00, "COMMANDS CLEARED BY ANOTHER INITIATOR";
    COMMANDS_CLEARED_BY_DEVICE_SERVER = COPY_ABORTED, 0x2f, 0x02, "COMMANDS CLEARED BY DEVICE SERVER";
    MEDIUM_FORMAT_CORRUPTED = MEDIUM_ERROR, 0x31, 0x00, "MEDIUM FORMAT CORRUPTED";
    FORMAT_COMMAND_FAILED = MEDIUM_ERROR, 0x31, 0x01, "FORMAT COMMAND FAILED";
    SANITIZE_COMMAND_FAILED = MEDIUM_ERROR, 0x31, 0x03, "SANITIZE COMMAND FAILED";
    SAVING_PARAMETERS_NOT_SUPPORTED = ILLEGAL_REQUEST, 0x39, 0x00, "SAVING PARAMETERS NOT SUPPORTED";
    LOGICAL_UNIT_FAILURE = MEDIUM_ERROR, 0x3e, 0x01, "LOGICAL UNIT FAILURE";
    THIN_PROVISIONING_SOFT_THRESHOLD_REACHED = UNIT_ATTENTION, 0x38, 0x07, "THIN PROVISIONING SOFT THRESHOLD REACHED";
    INQUIRY_DATA_HAS_CHANGED = UNIT_ATTENTION, 0x3f, 0x03, "INQUIRY DATA HAS CHANGED";
    ECHO_BUFFER_OVERWRITTEN = ABORTED_COMMAND, 0x3f, 0x0f, "ECHO BUFFER OVERWRITTEN";
    REPORTED_LUNS_DATA_HAS_CHANGED = UNIT_ATTENTION, 0x3f, 0x0e, "REPORTED LUNS DATA HAS CHANGED";
    INVALID_MESSAGE_ERROR = ILLEGAL_REQUEST, 0x49, 0x00, "INVALID MESSAGE ERROR";
    INTERNAL_TARGET_FAILURE = HARDWARE_ERROR, 0x44, 0x00, "INTERNAL TARGET FAILURE";
    PROTOCOL_SERVICE_CRC_ERROR = ABORTED_COMMAND, 0x47, 0x05, "PROTOCOL SERVICE CRC ERROR";
    COMMAND_ABORTED = ABORTED_COMMAND, 0x00, 0x00, "NO ADDITIONAL SENSE INFORMATION";
    INSUFFICIENT_REGISTRATION_RESOURCES = ILLEGAL_REQUEST, 0x55, 0x04, "INSUFFICIENT REGISTRATION RESOURCES";
    INSUFFICIENT_RESOURCES = ILLEGAL_REQUEST, 0x55, 0x03, "INSUFFICIENT RESOURCES";
}

impl SenseCode {
    /// T10's text for the condition, or an empty one for a code that has no name here.
    pub fn text(self) -> &'static str {
        Self::ALL.iter().find(|(code, _)| *code == self).map_or("", |(_, text)| text)
    }
}

impl fmt::Debug for SenseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}h/{:02x}h/{:02x}h {}", self.key.0, self.asc, self.ascq, self.text())
    }
}

/// Why a command failed: a named condition, and what it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sense {
    code: SenseCode,
    detail: Detail,
}

/// What a sense says beyond its code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Detail {
    None,
    /// INFORMATION: a block address, or a byte offset for a miscompare.
    Information(u64),
    /// The field pointer of an INVALID FIELD IN CDB: byte, and bit where the field is smaller than a byte.
    CdbField {
        byte: u8,
        bit: Option<u8>,
    },
    /// The same of an INVALID FIELD IN PARAMETER LIST: it points into Data-Out.
    ListField {
        byte: u16,
        bit: Option<u8>,
    },
    /// PROGRESS INDICATION, with NOT READY.
    Progress(u16),
    /// Where a copy ended: the segment's number, the blocks of it that were not written (if some were), and the byte of
    /// the parameter list that is wrong (SPC-4 clause 5.17.7.4).
    Segment {
        number: u16,
        residual: Option<u32>,
        byte: Option<u16>,
    },
}

impl Sense {
    /// The condition alone.
    pub const fn new(code: SenseCode) -> Self {
        Self { code, detail: Detail::None }
    }

    /// INVALID FIELD IN CDB for the field that starts at `byte`; `bit` is its most significant bit if it is not a whole
    /// byte.
    pub const fn invalid_field_in_cdb(byte: u8, bit: Option<u8>) -> Self {
        Self { code: SenseCode::INVALID_FIELD_IN_CDB, detail: Detail::CdbField { byte, bit } }
    }

    /// INVALID FIELD IN PARAMETER LIST for the field of Data-Out that starts at `byte`; `bit` is its most significant
    /// bit if it is not whole bytes.
    pub const fn invalid_field_in_list(byte: u16, bit: Option<u8>) -> Self {
        Self { code: SenseCode::INVALID_FIELD_IN_PARAMETER_LIST, detail: Detail::ListField { byte, bit } }
    }

    /// With the INFORMATION field: the block address, or the byte offset of a miscompare.
    pub const fn with_information(self, information: u64) -> Self {
        Self { code: self.code, detail: Detail::Information(information) }
    }

    /// With how much of what the unit is busy with is done, in 65,536ths. Only with NOT READY.
    pub const fn with_progress(self, progress: u16) -> Self {
        Self { code: self.code, detail: Detail::Progress(progress) }
    }

    /// With where a copy ended: the number of the segment descriptor, from zero; of its blocks, those that were not
    /// written, if some were; and the byte of the parameter list that is wrong, if one is. Only with COPY ABORTED.
    pub const fn with_segment(self, number: u16, residual: Option<u32>, byte: Option<u16>) -> Self {
        Self { code: self.code, detail: Detail::Segment { number, residual, byte } }
    }

    /// The named condition.
    pub const fn code(self) -> SenseCode {
        self.code
    }

    /// The INFORMATION field, if there is one.
    pub const fn information(self) -> Option<u64> {
        match self.detail {
            Detail::Information(information) => Some(information),
            Detail::Segment { residual: Some(residual), .. } => Some(residual as u64),
            Detail::None
            | Detail::CdbField { .. }
            | Detail::ListField { .. }
            | Detail::Segment { .. }
            | Detail::Progress(_) => None,
        }
    }

    /// The sense data bytes.
    pub fn encode(self, format: SenseFormat) -> SenseData {
        match format {
            SenseFormat::Fixed => self.encode_fixed(),
            SenseFormat::Descriptor => self.encode_descriptor(),
        }
    }

    /// Fixed format (SPC-5 clause 4.4.3), always 18 bytes.
    fn encode_fixed(self) -> SenseData {
        let mut data = SenseData { bytes: [0; SenseData::BYTES_MAX], len: 18 };
        let bytes = &mut data.bytes;
        bytes[0] = 0x70;
        bytes[2] = self.code.key.0;
        bytes[7] = 10;
        bytes[12] = self.code.asc;
        bytes[13] = self.code.ascq;
        match self.detail {
            Detail::None => {}
            Detail::Information(information) => {
                // An address that needs more than the four bytes leaves VALID at zero.
                if let Ok(short) = u32::try_from(information) {
                    bytes[0] |= 0x80;
                    bytes[3..7].copy_from_slice(&short.to_be_bytes());
                }
            }
            Detail::CdbField { byte, bit } => {
                bytes[15..18].copy_from_slice(&field_pointer(IN_CDB, u16::from(byte), bit));
            }
            Detail::ListField { byte, bit } => bytes[15..18].copy_from_slice(&field_pointer(IN_LIST, byte, bit)),
            Detail::Progress(progress) => bytes[15..18].copy_from_slice(&progress_indication(progress)),
            Detail::Segment { number, residual, byte } => {
                if let Some(residual) = residual {
                    bytes[0] |= 0x80;
                    bytes[3..7].copy_from_slice(&residual.to_be_bytes());
                }
                bytes[10..12].copy_from_slice(&number.to_be_bytes());
                if let Some(byte) = byte {
                    bytes[15..18].copy_from_slice(&segment_pointer(byte));
                }
            }
        }
        data
    }

    /// Descriptor format (SPC-5 clause 4.4.2).
    fn encode_descriptor(self) -> SenseData {
        let mut data = SenseData { bytes: [0; SenseData::BYTES_MAX], len: 8 };
        let bytes = &mut data.bytes;
        bytes[0] = 0x72;
        bytes[1] = self.code.key.0;
        bytes[2] = self.code.asc;
        bytes[3] = self.code.ascq;
        match self.detail {
            Detail::None => {}
            Detail::Information(information) => data.push_information(information),
            Detail::CdbField { byte, bit } => {
                data.push_key_specific(field_pointer(IN_CDB, u16::from(byte), bit));
            }
            Detail::ListField { byte, bit } => data.push_key_specific(field_pointer(IN_LIST, byte, bit)),
            Detail::Progress(progress) => data.push_key_specific(progress_indication(progress)),
            Detail::Segment { number, residual, byte } => {
                if let Some(residual) = residual {
                    data.push_information(u64::from(residual));
                }
                let [high, low] = number.to_be_bytes();
                data.push(&[0x01, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, high, low]);
                if let Some(byte) = byte {
                    data.push_key_specific(segment_pointer(byte));
                }
            }
        }
        data.bytes[7] = data.len - 8;
        data
    }
}

impl From<SenseCode> for Sense {
    fn from(code: SenseCode) -> Self {
        Self::new(code)
    }
}

/// SKSV, with C/D one (the pointer is into the CDB) and zero (into the parameter list).
const IN_CDB: u8 = 0xc0;
const IN_LIST: u8 = 0x80;

/// Sense-key-specific bytes of ILLEGAL REQUEST (SPC-5 clause 4.4.2.4.2): SKSV and C/D, BPV, bit and field pointer.
fn field_pointer(flags: u8, byte: u16, bit: Option<u8>) -> [u8; 3] {
    let bit_pointer = bit.map_or(0, |bit| 0x08 | (bit & 0x07));
    let [high, low] = byte.to_be_bytes();
    [flags | bit_pointer, high, low]
}

/// Sense-key-specific bytes of COPY ABORTED (SPC-4 clause 4.5.2.4.5): SKSV, SD zero (the pointer is into the parameter
/// list), BPV zero, and the field pointer.
fn segment_pointer(byte: u16) -> [u8; 3] {
    let [high, low] = byte.to_be_bytes();
    [0x80, high, low]
}

/// Sense-key-specific bytes of NOT READY (SPC-5 clause 4.4.2.4.4): SKSV, and PROGRESS INDICATION.
fn progress_indication(progress: u16) -> [u8; 3] {
    let [high, low] = progress.to_be_bytes();
    [0x80, high, low]
}

/// Encoded sense data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SenseData {
    bytes: [u8; Self::BYTES_MAX],
    len: u8,
}

impl SenseData {
    /// The longest sense data that is ever made.
    pub const BYTES_MAX: usize = 40;

    fn push(&mut self, descriptor: &[u8]) {
        let start = usize::from(self.len);
        self.bytes[start..start + descriptor.len()].copy_from_slice(descriptor);
        self.len += descriptor.len() as u8;
    }

    /// The information descriptor.
    fn push_information(&mut self, information: u64) {
        self.push(&[0x00, 0x0a, 0x80, 0]);
        self.push(&information.to_be_bytes());
    }

    /// The sense-key-specific descriptor.
    fn push_key_specific(&mut self, bytes: [u8; 3]) {
        self.push(&[0x02, 0x06, 0, 0]);
        self.push(&bytes);
        self.push(&[0]);
    }
}

impl Deref for SenseData {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// T10's assignments ("asc-num", SPC-5 annex F), typed from the list: code, qualifier, text.
    const T10: &[(u8, u8, &str)] = &[
        (0x00, 0x00, "NO ADDITIONAL SENSE INFORMATION"),
        (0x00, 0x16, "OPERATION IN PROGRESS"),
        (0x04, 0x00, "LOGICAL UNIT NOT READY, CAUSE NOT REPORTABLE"),
        (0x04, 0x01, "LOGICAL UNIT IS IN PROCESS OF BECOMING READY"),
        (0x04, 0x02, "LOGICAL UNIT NOT READY, INITIALIZING COMMAND REQUIRED"),
        (0x04, 0x03, "LOGICAL UNIT NOT READY, MANUAL INTERVENTION REQUIRED"),
        (0x04, 0x04, "LOGICAL UNIT NOT READY, FORMAT IN PROGRESS"),
        (0x04, 0x0a, "LOGICAL UNIT NOT ACCESSIBLE, ASYMMETRIC ACCESS STATE TRANSITION"),
        (0x04, 0x0b, "LOGICAL UNIT NOT ACCESSIBLE, TARGET PORT IN STANDBY STATE"),
        (0x04, 0x0c, "LOGICAL UNIT NOT ACCESSIBLE, TARGET PORT IN UNAVAILABLE STATE"),
        (0x04, 0x12, "LOGICAL UNIT NOT READY, OFFLINE"),
        (0x04, 0x1b, "LOGICAL UNIT NOT READY, SANITIZE IN PROGRESS"),
        (0x08, 0x00, "LOGICAL UNIT COMMUNICATION FAILURE"),
        (0x08, 0x01, "LOGICAL UNIT COMMUNICATION TIME-OUT"),
        (0x0c, 0x00, "WRITE ERROR"),
        (0x0c, 0x0c, "WRITE ERROR - UNEXPECTED UNSOLICITED DATA"),
        (0x0c, 0x0d, "WRITE ERROR - NOT ENOUGH UNSOLICITED DATA"),
        (0x0d, 0x01, "THIRD PARTY DEVICE FAILURE"),
        (0x0d, 0x02, "COPY TARGET DEVICE NOT REACHABLE"),
        (0x0d, 0x03, "INCORRECT COPY TARGET DEVICE TYPE"),
        (0x0e, 0x03, "INVALID FIELD IN COMMAND INFORMATION UNIT"),
        (0x11, 0x00, "UNRECOVERED READ ERROR"),
        (0x1a, 0x00, "PARAMETER LIST LENGTH ERROR"),
        (0x1d, 0x00, "MISCOMPARE DURING VERIFY OPERATION"),
        (0x20, 0x00, "INVALID COMMAND OPERATION CODE"),
        (0x21, 0x00, "LOGICAL BLOCK ADDRESS OUT OF RANGE"),
        (0x23, 0x01, "INVALID TOKEN OPERATION, UNSUPPORTED TOKEN TYPE"),
        (0x23, 0x04, "INVALID TOKEN OPERATION, TOKEN UNKNOWN"),
        (0x23, 0x05, "INVALID TOKEN OPERATION, TOKEN CORRUPT"),
        (0x23, 0x06, "INVALID TOKEN OPERATION, TOKEN REVOKED"),
        (0x23, 0x07, "INVALID TOKEN OPERATION, TOKEN EXPIRED"),
        (0x23, 0x08, "INVALID TOKEN OPERATION, TOKEN CANCELLED"),
        (0x23, 0x09, "INVALID TOKEN OPERATION, TOKEN DELETED"),
        (0x23, 0x0a, "INVALID TOKEN OPERATION, INVALID TOKEN LENGTH"),
        (0x24, 0x00, "INVALID FIELD IN CDB"),
        (0x25, 0x00, "LOGICAL UNIT NOT SUPPORTED"),
        (0x26, 0x00, "INVALID FIELD IN PARAMETER LIST"),
        (0x26, 0x04, "INVALID RELEASE OF PERSISTENT RESERVATION"),
        (0x26, 0x06, "TOO MANY TARGET DESCRIPTORS"),
        (0x26, 0x07, "UNSUPPORTED TARGET DESCRIPTOR TYPE CODE"),
        (0x26, 0x08, "TOO MANY SEGMENT DESCRIPTORS"),
        (0x26, 0x09, "UNSUPPORTED SEGMENT DESCRIPTOR TYPE CODE"),
        (0x26, 0x0a, "UNEXPECTED INEXACT SEGMENT"),
        (0x26, 0x0b, "INLINE DATA LENGTH EXCEEDED"),
        (0x26, 0x0c, "INVALID OPERATION FOR COPY SOURCE OR DESTINATION"),
        (0x26, 0x0d, "COPY SEGMENT GRANULARITY VIOLATION"),
        (0x27, 0x00, "WRITE PROTECTED"),
        (0x27, 0x02, "LOGICAL UNIT SOFTWARE WRITE PROTECTED"),
        (0x27, 0x07, "SPACE ALLOCATION FAILED WRITE PROTECT"),
        (0x29, 0x00, "POWER ON, RESET, OR BUS DEVICE RESET OCCURRED"),
        (0x29, 0x01, "POWER ON OCCURRED"),
        (0x29, 0x03, "BUS DEVICE RESET FUNCTION OCCURRED"),
        (0x29, 0x07, "I_T NEXUS LOSS OCCURRED"),
        (0x2a, 0x01, "MODE PARAMETERS CHANGED"),
        (0x2a, 0x02, "LOG PARAMETERS CHANGED"),
        (0x2a, 0x03, "RESERVATIONS PREEMPTED"),
        (0x2a, 0x04, "RESERVATIONS RELEASED"),
        (0x2a, 0x05, "REGISTRATIONS PREEMPTED"),
        (0x2a, 0x06, "ASYMMETRIC ACCESS STATE CHANGED"),
        (0x2a, 0x09, "CAPACITY DATA HAS CHANGED"),
        (0x2c, 0x00, "COMMAND SEQUENCE ERROR"),
        (0x2f, 0x00, "COMMANDS CLEARED BY ANOTHER INITIATOR"),
        (0x2f, 0x02, "COMMANDS CLEARED BY DEVICE SERVER"),
        (0x31, 0x00, "MEDIUM FORMAT CORRUPTED"),
        (0x31, 0x01, "FORMAT COMMAND FAILED"),
        (0x31, 0x03, "SANITIZE COMMAND FAILED"),
        (0x38, 0x07, "THIN PROVISIONING SOFT THRESHOLD REACHED"),
        (0x39, 0x00, "SAVING PARAMETERS NOT SUPPORTED"),
        (0x3e, 0x01, "LOGICAL UNIT FAILURE"),
        (0x3f, 0x03, "INQUIRY DATA HAS CHANGED"),
        (0x3f, 0x0e, "REPORTED LUNS DATA HAS CHANGED"),
        (0x3f, 0x0f, "ECHO BUFFER OVERWRITTEN"),
        (0x44, 0x00, "INTERNAL TARGET FAILURE"),
        (0x49, 0x00, "INVALID MESSAGE ERROR"),
        (0x47, 0x05, "PROTOCOL SERVICE CRC ERROR"),
        (0x55, 0x03, "INSUFFICIENT RESOURCES"),
        (0x55, 0x04, "INSUFFICIENT REGISTRATION RESOURCES"),
    ];

    #[test]
    fn every_constant_is_the_one_that_t10_assigned() {
        for (code, text) in SenseCode::ALL {
            let assigned = T10.iter().find(|(asc, ascq, _)| (*asc, *ascq) == (code.asc, code.ascq));
            assert_eq!(assigned.map(|(_, _, assigned)| assigned), Some(text), "{code:?}");
        }
    }

    #[test]
    fn no_two_constants_are_the_same() {
        for (index, (code, _)) in SenseCode::ALL.iter().enumerate() {
            assert!(SenseCode::ALL[..index].iter().all(|(earlier, _)| earlier != code), "{code:?}");
        }
    }

    #[test]
    fn fixed_format() {
        let sense = Sense::new(SenseCode::WRITE_PROTECTED);
        let expected = [0x70, 0, 7, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x27, 0, 0, 0, 0, 0];
        assert_eq!(*sense.encode(SenseFormat::Fixed), expected);

        let sense = Sense::new(SenseCode::LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE).with_information(0x1234_5678);
        let expected = [0xf0, 0, 5, 0x12, 0x34, 0x56, 0x78, 10, 0, 0, 0, 0, 0x21, 0, 0, 0, 0, 0];
        assert_eq!(*sense.encode(SenseFormat::Fixed), expected);

        let expected = [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x24, 0, 0, 0xcf, 0, 1];
        assert_eq!(*Sense::invalid_field_in_cdb(1, Some(7)).encode(SenseFormat::Fixed), expected);

        let expected = [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x26, 0, 0, 0x80, 0x10, 0x08];
        assert_eq!(*Sense::invalid_field_in_list(0x1008, None).encode(SenseFormat::Fixed), expected);
    }

    #[test]
    fn fixed_format_leaves_out_an_address_that_it_cannot_hold() {
        let sense = Sense::new(SenseCode::UNRECOVERED_READ_ERROR).with_information(1 << 32);
        let data = sense.encode(SenseFormat::Fixed);
        assert_eq!((data[0], &data[3..7]), (0x70, &[0; 4][..]));
    }

    #[test]
    fn descriptor_format() {
        let sense = Sense::new(SenseCode::POWER_ON_OR_RESET_OCCURRED);
        assert_eq!(*sense.encode(SenseFormat::Descriptor), [0x72, 6, 0x29, 0, 0, 0, 0, 0]);

        let sense = Sense::new(SenseCode::UNRECOVERED_READ_ERROR).with_information(0x0123_4567_89ab_cdef);
        let expected = [0x72, 3, 0x11, 0, 0, 0, 0, 12, 0, 10, 0x80, 0, 0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef];
        assert_eq!(*sense.encode(SenseFormat::Descriptor), expected);

        let expected = [0x72, 5, 0x24, 0, 0, 0, 0, 8, 2, 6, 0, 0, 0xc0, 0, 7, 0];
        assert_eq!(*Sense::invalid_field_in_cdb(7, None).encode(SenseFormat::Descriptor), expected);

        let expected = [0x72, 5, 0x26, 0, 0, 0, 0, 8, 2, 6, 0, 0, 0x8b, 0x01, 0x18, 0];
        assert_eq!(*Sense::invalid_field_in_list(0x118, Some(3)).encode(SenseFormat::Descriptor), expected);
    }

    #[test]
    fn a_copy_that_ended_names_its_segment() {
        let sense = Sense::new(SenseCode::COPY_TARGET_DEVICE_NOT_REACHABLE).with_segment(0x0102, None, Some(0x0830));
        let expected = [0x70, 0, 0xa, 0, 0, 0, 0, 10, 0, 0, 1, 2, 0x0d, 2, 0, 0x80, 8, 0x30];
        assert_eq!(*sense.encode(SenseFormat::Fixed), expected);
        let expected = [
            &[0x72, 0xa, 0x0d, 2, 0, 0, 0, 20][..],
            &[1, 10, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2],
            &[2, 6, 0, 0, 0x80, 8, 0x30, 0],
        ];
        assert_eq!(*sense.encode(SenseFormat::Descriptor), expected.concat());

        let sense = Sense::new(SenseCode::THIRD_PARTY_DEVICE_FAILURE).with_segment(3, Some(0x1_0002), None);
        assert_eq!(sense.information(), Some(0x1_0002));
        let expected = [0xf0, 0, 0xa, 0, 1, 0, 2, 10, 0, 0, 0, 3, 0x0d, 1, 0, 0, 0, 0];
        assert_eq!(*sense.encode(SenseFormat::Fixed), expected);
        let expected = [
            &[0x72, 0xa, 0x0d, 1, 0, 0, 0, 24][..],
            &[0, 10, 0x80, 0, 0, 0, 0, 0, 0, 1, 0, 2],
            &[1, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3],
        ];
        assert_eq!(*sense.encode(SenseFormat::Descriptor), expected.concat());
    }

    #[test]
    fn an_outcome_is_small_enough_for_the_data_path() {
        assert!(size_of::<Outcome>() <= 32);
    }
}
