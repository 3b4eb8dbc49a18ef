//! The PDU formats of RFC 7143 section 11, in two levels.
//!
//! [`Bhs`] is any 48 bytes, with safe accessors after one length check. The request types ([`ScsiCommandRequest`] and its
//! siblings) hold only legal requests, and their `parse` is the only door from one to the other; a refused request names
//! the [`RejectReason`] to answer with. What a target sends is built by the response types' `encode`, which starts from
//! zeros. Sequence numbers that belong to the connection ([`Sequence`]) are filled in at emission.
//!
//! May know: nothing of connections, sockets or SCSI's meaning.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of the Basic Header Segment (section 11.2).
pub const BHS_LEN: usize = 48;

/// Bytes of a header or data digest (section 11.2.3).
pub const DIGEST_LEN: usize = 4;

/// The reserved value of Initiator Task Tag and Target Transfer Tag (section 11.2.1.8).
pub const TAG_RESERVED: u32 = 0xffff_ffff;

/// Bytes that pad `len` to a multiple of four (section 11.2).
#[inline]
pub const fn pad_len(len: usize) -> usize {
    len.wrapping_neg() & 3
}

macro_rules! open_enum {
    ($(#[$outer:meta])* $name:ident { $($(#[$inner:meta])* $constant:ident = $value:expr,)* }) => {
        $(#[$outer])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
        #[repr(transparent)]
        pub struct $name(pub u8);
        impl $name {
            $($(#[$inner])* pub const $constant: Self = Self($value);)*
        }
    };
}

open_enum! {
    /// The opcode of a PDU (section 11.2.1.2), without the immediate bit. Any value of six bits may come from a peer.
    Opcode {
        /// NOP-Out.
        NOP_OUT = 0x00,
        /// SCSI Command.
        SCSI_COMMAND = 0x01,
        /// SCSI Task Management Function Request.
        TASK_MANAGEMENT_REQUEST = 0x02,
        /// Login Request.
        LOGIN_REQUEST = 0x03,
        /// Text Request.
        TEXT_REQUEST = 0x04,
        /// SCSI Data-Out.
        DATA_OUT = 0x05,
        /// Logout Request.
        LOGOUT_REQUEST = 0x06,
        /// SNACK Request.
        SNACK_REQUEST = 0x10,
        /// NOP-In.
        NOP_IN = 0x20,
        /// SCSI Response.
        SCSI_RESPONSE = 0x21,
        /// SCSI Task Management Function Response.
        TASK_MANAGEMENT_RESPONSE = 0x22,
        /// Login Response.
        LOGIN_RESPONSE = 0x23,
        /// Text Response.
        TEXT_RESPONSE = 0x24,
        /// SCSI Data-In.
        DATA_IN = 0x25,
        /// Logout Response.
        LOGOUT_RESPONSE = 0x26,
        /// Ready To Transfer.
        R2T = 0x31,
        /// Asynchronous Message.
        ASYNC_MESSAGE = 0x32,
        /// Reject.
        REJECT = 0x3f,
    }
}

open_enum! {
    /// Why a PDU was rejected (section 11.17.1).
    RejectReason {
        /// The data digest did not match; the PDU may be sent again.
        DATA_DIGEST_ERROR = 0x02,
        /// A SNACK cannot be served.
        SNACK_REJECT = 0x03,
        /// The request breaks the protocol in its context.
        PROTOCOL_ERROR = 0x04,
        /// The opcode is not one that this target serves.
        COMMAND_NOT_SUPPORTED = 0x05,
        /// Too many immediate commands.
        IMMEDIATE_COMMAND_REJECT = 0x06,
        /// A task with this Initiator Task Tag is in progress.
        TASK_IN_PROGRESS = 0x07,
        /// A Data ACK SNACK that acknowledges nothing.
        INVALID_DATA_ACK = 0x08,
        /// A field of the PDU has an illegal value.
        INVALID_PDU_FIELD = 0x09,
        /// No Target Transfer Tag can be made for now.
        LONG_OPERATION_REJECT = 0x0a,
        /// The target has asked for a logout and takes no more requests.
        WAITING_FOR_LOGOUT = 0x0c,
    }
}

open_enum! {
    /// ATTR of a SCSI Command (section 11.3.1).
    TaskAttribute {
        /// Untagged.
        UNTAGGED = 0,
        /// Simple.
        SIMPLE = 1,
        /// Ordered.
        ORDERED = 2,
        /// Head of queue.
        HEAD_OF_QUEUE = 3,
        /// ACA.
        ACA = 4,
    }
}

open_enum! {
    /// Function of a Task Management Function Request (section 11.5.1).
    TaskManagementFunction {
        /// ABORT TASK.
        ABORT_TASK = 1,
        /// ABORT TASK SET.
        ABORT_TASK_SET = 2,
        /// CLEAR ACA.
        CLEAR_ACA = 3,
        /// CLEAR TASK SET.
        CLEAR_TASK_SET = 4,
        /// LOGICAL UNIT RESET.
        LOGICAL_UNIT_RESET = 5,
        /// TARGET WARM RESET.
        TARGET_WARM_RESET = 6,
        /// TARGET COLD RESET.
        TARGET_COLD_RESET = 7,
        /// TASK REASSIGN.
        TASK_REASSIGN = 8,
    }
}

open_enum! {
    /// Response of a Task Management Function Response (section 11.6.1).
    TaskManagementResponseCode {
        /// Function complete.
        FUNCTION_COMPLETE = 0,
        /// Task does not exist.
        TASK_DOES_NOT_EXIST = 1,
        /// LUN does not exist.
        LUN_DOES_NOT_EXIST = 2,
        /// Task still allegiant.
        TASK_STILL_ALLEGIANT = 3,
        /// Task allegiance reassignment not supported.
        REASSIGNMENT_NOT_SUPPORTED = 4,
        /// Task management function not supported.
        FUNCTION_NOT_SUPPORTED = 5,
        /// Function authorization failed.
        AUTHORIZATION_FAILED = 6,
        /// Function rejected.
        FUNCTION_REJECTED = 255,
    }
}

open_enum! {
    /// Reason of a Logout Request (section 11.14.1).
    LogoutReason {
        /// Close the session.
        CLOSE_SESSION = 0,
        /// Close the connection.
        CLOSE_CONNECTION = 1,
        /// Remove the connection for recovery.
        REMOVE_FOR_RECOVERY = 2,
    }
}

open_enum! {
    /// Response of a Logout Response (section 11.15.1).
    LogoutResponseCode {
        /// Connection or session closed.
        CLOSED = 0,
        /// CID not found.
        CID_NOT_FOUND = 1,
        /// Connection recovery is not supported (ErrorRecoveryLevel below 2).
        RECOVERY_NOT_SUPPORTED = 2,
        /// Cleanup failed.
        CLEANUP_FAILED = 3,
    }
}

open_enum! {
    /// Type of a SNACK Request (section 11.16.1).
    SnackKind {
        /// Data or R2T PDUs are to be sent again.
        DATA_OR_R2T = 0,
        /// Responses are to be sent again.
        STATUS = 1,
        /// Data-In PDUs have arrived.
        DATA_ACK = 2,
        /// Data-In PDUs are to be sent again in other sizes.
        R_DATA = 3,
    }
}

open_enum! {
    /// AsyncEvent of an Asynchronous Message (section 11.9.1).
    AsyncEvent {
        /// A SCSI asynchronous event; sense data is attached.
        SCSI = 0,
        /// The target asks this connection to log out within Parameter3 seconds.
        LOGOUT_REQUEST = 1,
        /// The target will drop the connection of CID Parameter1.
        CONNECTION_DROP = 2,
        /// The target will drop all connections of this session.
        SESSION_DROP = 3,
        /// The target asks for parameter negotiation within Parameter3 seconds.
        NEGOTIATION_REQUEST = 4,
        /// Vendor-specific.
        VENDOR = 255,
    }
}

open_enum! {
    /// iSCSI response of a SCSI Response (section 11.4.3).
    ServiceResponse {
        /// Command completed at target.
        COMPLETED = 0x00,
        /// Target failure.
        TARGET_FAILURE = 0x01,
    }
}

open_enum! {
    /// SCSI status (SAM-5 clause 5.3, section 11.4.2).
    ScsiStatus {
        /// GOOD.
        GOOD = 0x00,
        /// CHECK CONDITION.
        CHECK_CONDITION = 0x02,
        /// CONDITION MET.
        CONDITION_MET = 0x04,
        /// BUSY.
        BUSY = 0x08,
        /// RESERVATION CONFLICT.
        RESERVATION_CONFLICT = 0x18,
        /// TASK SET FULL.
        TASK_SET_FULL = 0x28,
        /// ACA ACTIVE.
        ACA_ACTIVE = 0x30,
        /// TASK ABORTED.
        TASK_ABORTED = 0x40,
    }
}

open_enum! {
    /// A login stage, as CSG and NSG name it (section 11.12.3). The value 2 is reserved.
    LoginStage {
        /// SecurityNegotiation.
        SECURITY_NEGOTIATION = 0,
        /// LoginOperationalNegotiation.
        OPERATIONAL_NEGOTIATION = 1,
        /// FullFeaturePhase.
        FULL_FEATURE_PHASE = 3,
    }
}

/// Status-Class and Status-Detail of a Login Response (section 11.13.5): the class in the high byte.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct LoginStatus(pub u16);

impl LoginStatus {
    /// Success.
    pub const SUCCESS: Self = Self(0x0000);
    /// Target moved temporarily.
    pub const MOVED_TEMPORARILY: Self = Self(0x0101);
    /// Target moved permanently.
    pub const MOVED_PERMANENTLY: Self = Self(0x0102);
    /// Initiator error, not otherwise described.
    pub const INITIATOR_ERROR: Self = Self(0x0200);
    /// Authentication failure.
    pub const AUTHENTICATION_FAILURE: Self = Self(0x0201);
    /// Authorization failure: this initiator may not use this target.
    pub const AUTHORIZATION_FAILURE: Self = Self(0x0202);
    /// Target not found.
    pub const NOT_FOUND: Self = Self(0x0203);
    /// Target removed.
    pub const TARGET_REMOVED: Self = Self(0x0204);
    /// Unsupported version.
    pub const UNSUPPORTED_VERSION: Self = Self(0x0205);
    /// Too many connections in this session.
    pub const TOO_MANY_CONNECTIONS: Self = Self(0x0206);
    /// Missing parameter.
    pub const MISSING_PARAMETER: Self = Self(0x0207);
    /// The session cannot include this connection.
    pub const CANNOT_INCLUDE_IN_SESSION: Self = Self(0x0208);
    /// Session type not supported.
    pub const SESSION_TYPE_NOT_SUPPORTED: Self = Self(0x0209);
    /// Session does not exist.
    pub const SESSION_DOES_NOT_EXIST: Self = Self(0x020a);
    /// Invalid request during login.
    pub const INVALID_DURING_LOGIN: Self = Self(0x020b);
    /// Target error.
    pub const TARGET_ERROR: Self = Self(0x0300);
    /// Service unavailable: the target is not in service now.
    pub const SERVICE_UNAVAILABLE: Self = Self(0x0301);
    /// Out of resources.
    pub const OUT_OF_RESOURCES: Self = Self(0x0302);

    /// Status-Class.
    pub const fn class(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Status-Detail.
    pub const fn detail(self) -> u8 {
        self.0 as u8
    }
}

/// Bits of byte 1, by PDU.
pub mod flags {
    /// F, Final: every request and response that has one.
    pub const FINAL: u8 = 0x80;
    /// R of a SCSI Command.
    pub const READ: u8 = 0x40;
    /// W of a SCSI Command.
    pub const WRITE: u8 = 0x20;
    /// ATTR of a SCSI Command.
    pub const ATTRIBUTE_MASK: u8 = 0x07;
    /// A of Data-In.
    pub const ACKNOWLEDGE: u8 = 0x40;
    /// S of Data-In: status is present.
    pub const STATUS: u8 = 0x01;
    /// U of SCSI Response and Data-In: residual underflow.
    pub const UNDERFLOW: u8 = 0x02;
    /// O of SCSI Response and Data-In: residual overflow.
    pub const OVERFLOW: u8 = 0x04;
    /// u of SCSI Response: bidirectional read residual underflow.
    pub const READ_UNDERFLOW: u8 = 0x08;
    /// o of SCSI Response: bidirectional read residual overflow.
    pub const READ_OVERFLOW: u8 = 0x10;
    /// T, Transit, of Login.
    pub const TRANSIT: u8 = 0x80;
    /// C, Continue, of Login and Text.
    pub const CONTINUE: u8 = 0x40;
}

/// A Basic Header Segment as it is on the wire: any 48 bytes.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(transparent)]
pub struct Bhs(pub [u8; BHS_LEN]);

const _: () = assert!(size_of::<Bhs>() == BHS_LEN);

impl core::fmt::Debug for Bhs {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Bhs(")?;
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        f.write_str(")")
    }
}

impl Bhs {
    /// A header of zeros with `opcode` and byte 1.
    #[inline]
    pub const fn new(opcode: Opcode, byte1: u8) -> Self {
        let mut bytes = [0; BHS_LEN];
        bytes[0] = opcode.0;
        bytes[1] = byte1;
        Self(bytes)
    }

    /// The header at the start of `bytes`; `None` when fewer than 48 are there.
    #[inline]
    pub fn from_prefix(bytes: &[u8]) -> Option<&Self> {
        Self::ref_from_prefix(bytes).ok().map(|(bhs, _)| bhs)
    }

    /// Opcode (section 11.2.1.2).
    #[inline]
    pub const fn opcode(&self) -> Opcode {
        Opcode(self.0[0] & 0x3f)
    }

    /// I, immediate delivery (section 11.2.1.1).
    #[inline]
    pub const fn immediate(&self) -> bool {
        self.0[0] & 0x40 != 0
    }

    /// Byte 1: F and the opcode's own flags.
    #[inline]
    pub const fn flags(&self) -> u8 {
        self.0[1]
    }

    /// F, Final (section 11.2.1.3).
    #[inline]
    pub const fn is_final(&self) -> bool {
        self.0[1] & flags::FINAL != 0
    }

    /// TotalAHSLength in bytes: 0..=1020 (section 11.2.1.5).
    #[inline]
    pub const fn ahs_len(&self) -> usize {
        self.0[4] as usize * 4
    }

    /// DataSegmentLength in bytes, without padding: below 2^24 (section 11.2.1.6).
    #[inline]
    pub const fn data_segment_len(&self) -> usize {
        u32::from_be_bytes([0, self.0[5], self.0[6], self.0[7]]) as usize
    }

    /// Set DataSegmentLength.
    ///
    /// # Panics
    /// When `len` does not fit 24 bits: the caller splits by MaxRecvDataSegmentLength, which does.
    #[inline]
    pub fn set_data_segment_len(&mut self, len: usize) {
        assert!(len < 1 << 24);
        let bytes = (len as u32).to_be_bytes();
        self.0[5..8].copy_from_slice(&bytes[1..]);
    }

    /// LUN (section 11.2.1.7), raw.
    #[inline]
    pub fn lun(&self) -> [u8; 8] {
        self.array(8)
    }

    /// Initiator Task Tag (section 11.2.1.8).
    #[inline]
    pub fn initiator_task_tag(&self) -> u32 {
        self.u32_at(16)
    }

    /// Target Transfer Tag, where the PDU has one (bytes 20..24).
    #[inline]
    pub fn target_transfer_tag(&self) -> u32 {
        self.u32_at(20)
    }

    /// CmdSN of a request that has one (bytes 24..28).
    #[inline]
    pub fn cmd_sn(&self) -> u32 {
        self.u32_at(24)
    }

    /// ExpStatSN of a request (bytes 28..32).
    #[inline]
    pub fn exp_stat_sn(&self) -> u32 {
        self.u32_at(28)
    }

    /// The big-endian word at byte `at`.
    #[inline]
    pub fn u32_at(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.array(at))
    }

    /// Put a big-endian word at byte `at`.
    #[inline]
    pub fn set_u32(&mut self, at: usize, value: u32) {
        self.0[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }

    /// The big-endian half-word at byte `at`.
    #[inline]
    pub fn u16_at(&self, at: usize) -> u16 {
        u16::from_be_bytes(self.array(at))
    }

    /// Put a big-endian half-word at byte `at`.
    #[inline]
    pub fn set_u16(&mut self, at: usize, value: u16) {
        self.0[at..at + 2].copy_from_slice(&value.to_be_bytes());
    }

    /// Put `bytes` at byte `at`.
    #[inline]
    pub fn set_bytes(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    #[inline]
    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut out = [0; N];
        out.copy_from_slice(&self.0[at..at + N]);
        out
    }
}

/// SCSI Command (section 11.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScsiCommandRequest {
    /// I: delivered at once, outside the CmdSN order.
    pub immediate: bool,
    /// F: no unsolicited Data-Out PDUs follow.
    pub is_final: bool,
    /// R: data is expected from the target.
    pub read: bool,
    /// W: data is expected from the initiator.
    pub write: bool,
    /// ATTR.
    pub attribute: TaskAttribute,
    /// LUN, raw (SAM-5 clause 4.7).
    pub lun: [u8; 8],
    /// Initiator Task Tag.
    pub initiator_task_tag: u32,
    /// Expected Data Transfer Length in bytes (the write length when bidirectional).
    pub expected_data_transfer_length: u32,
    /// CmdSN.
    pub cmd_sn: u32,
    /// ExpStatSN.
    pub exp_stat_sn: u32,
    /// The first 16 bytes of the CDB.
    pub cdb: [u8; 16],
}

impl ScsiCommandRequest {
    /// Read a SCSI Command from `bhs`, whose opcode the caller has seen.
    #[inline]
    pub fn parse(bhs: &Bhs) -> Result<Self, RejectReason> {
        let flag = bhs.flags();
        let request = Self {
            immediate: bhs.immediate(),
            is_final: flag & flags::FINAL != 0,
            read: flag & flags::READ != 0,
            write: flag & flags::WRITE != 0,
            attribute: TaskAttribute(flag & flags::ATTRIBUTE_MASK),
            lun: bhs.lun(),
            initiator_task_tag: bhs.initiator_task_tag(),
            expected_data_transfer_length: bhs.u32_at(20),
            cmd_sn: bhs.cmd_sn(),
            exp_stat_sn: bhs.exp_stat_sn(),
            cdb: bhs.array(32),
        };
        // Section 11.3.1: ATTR 5 to 7 are reserved, and F may be 0 only where W is 1. Section 11.2.1.8: no reserved tag.
        let legal = request.attribute.0 <= TaskAttribute::ACA.0
            && (request.is_final || request.write)
            && request.initiator_task_tag != TAG_RESERVED;
        if legal { Ok(request) } else { Err(RejectReason::INVALID_PDU_FIELD) }
    }
}

/// What the Additional Header Segments of a SCSI Command say (section 11.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct CommandAhs {
    /// Bytes of the CDB beyond the first 16 (Extended CDB AHS): 0 when absent.
    pub extended_cdb_len: u16,
    /// Expected Bidirectional Read Data Length in bytes.
    pub read_data_length: Option<u32>,
}

impl CommandAhs {
    /// Read all AHS in `bytes` (exactly TotalAHSLength of them). A length that does not fit, an unknown type or a doubled one is
    /// an invalid PDU field.
    pub fn parse(mut bytes: &[u8]) -> Result<Self, RejectReason> {
        const EXTENDED_CDB: u8 = 1;
        const BIDIRECTIONAL_READ_LENGTH: u8 = 2;
        let mut ahs = Self::default();
        while let [high, low, kind, rest @ ..] = bytes {
            // AHSLength counts the bytes after the type, at least the one specific byte; the whole is padded to words.
            let len = usize::from(u16::from_be_bytes([*high, *low]));
            let padded = len + pad_len(3 + len);
            let body = rest.get(..len).ok_or(RejectReason::INVALID_PDU_FIELD)?;
            match (*kind, body) {
                (EXTENDED_CDB, [_, cdb @ ..]) if !cdb.is_empty() && ahs.extended_cdb_len == 0 => {
                    ahs.extended_cdb_len = cdb.len() as u16;
                }
                (BIDIRECTIONAL_READ_LENGTH, [_, a, b, c, d]) if ahs.read_data_length.is_none() => {
                    ahs.read_data_length = Some(u32::from_be_bytes([*a, *b, *c, *d]));
                }
                _ => return Err(RejectReason::INVALID_PDU_FIELD),
            }
            bytes = rest.get(padded..).ok_or(RejectReason::INVALID_PDU_FIELD)?;
        }
        if bytes.is_empty() { Ok(ahs) } else { Err(RejectReason::INVALID_PDU_FIELD) }
    }
}

/// Task Management Function Request (section 11.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskManagementRequest {
    /// I: delivered at once.
    pub immediate: bool,
    /// Function; any value of seven bits.
    pub function: TaskManagementFunction,
    /// LUN, raw; means nothing for target resets.
    pub lun: [u8; 8],
    /// Initiator Task Tag of this request.
    pub initiator_task_tag: u32,
    /// Referenced Task Tag: the task to abort or reassign, else reserved.
    pub referenced_task_tag: u32,
    /// CmdSN.
    pub cmd_sn: u32,
    /// ExpStatSN.
    pub exp_stat_sn: u32,
    /// RefCmdSN: CmdSN of the task to abort.
    pub ref_cmd_sn: u32,
}

impl TaskManagementRequest {
    /// Read a Task Management Function Request.
    pub fn parse(bhs: &Bhs) -> Result<Self, RejectReason> {
        if bhs.initiator_task_tag() == TAG_RESERVED || bhs.data_segment_len() != 0 {
            return Err(RejectReason::INVALID_PDU_FIELD);
        }
        Ok(Self {
            immediate: bhs.immediate(),
            function: TaskManagementFunction(bhs.flags() & 0x7f),
            lun: bhs.lun(),
            initiator_task_tag: bhs.initiator_task_tag(),
            referenced_task_tag: bhs.u32_at(20),
            cmd_sn: bhs.cmd_sn(),
            exp_stat_sn: bhs.exp_stat_sn(),
            ref_cmd_sn: bhs.u32_at(32),
        })
    }
}

/// SCSI Data-Out (section 11.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataOut {
    /// F: the last PDU of its sequence.
    pub is_final: bool,
    /// LUN, raw; meaningful when a Target Transfer Tag is given.
    pub lun: [u8; 8],
    /// Initiator Task Tag of the command.
    pub initiator_task_tag: u32,
    /// Target Transfer Tag of the R2T it answers; [`TAG_RESERVED`] for unsolicited data.
    pub target_transfer_tag: u32,
    /// ExpStatSN.
    pub exp_stat_sn: u32,
    /// DataSN: its place in the sequence.
    pub data_sn: u32,
    /// Buffer Offset in bytes within the command's data.
    pub buffer_offset: u32,
    /// Bytes of data.
    pub len: u32,
}

impl DataOut {
    /// Read a Data-Out.
    pub fn parse(bhs: &Bhs) -> Result<Self, RejectReason> {
        if bhs.initiator_task_tag() == TAG_RESERVED {
            return Err(RejectReason::INVALID_PDU_FIELD);
        }
        Ok(Self {
            is_final: bhs.is_final(),
            lun: bhs.lun(),
            initiator_task_tag: bhs.initiator_task_tag(),
            target_transfer_tag: bhs.target_transfer_tag(),
            exp_stat_sn: bhs.exp_stat_sn(),
            data_sn: bhs.u32_at(36),
            buffer_offset: bhs.u32_at(40),
            len: bhs.data_segment_len() as u32,
        })
    }
}

/// Login Request (section 11.12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoginRequest {
    /// T: the initiator is ready to move to `next_stage`.
    pub transit: bool,
    /// C: the text goes on in the next request.
    pub continues: bool,
    /// CSG; the reserved value 2 is possible.
    pub current_stage: LoginStage,
    /// NSG; means something only with `transit`.
    pub next_stage: LoginStage,
    /// Version-max.
    pub version_max: u8,
    /// Version-min.
    pub version_min: u8,
    /// ISID.
    pub isid: [u8; 6],
    /// TSIH; zero asks for a new session.
    pub tsih: u16,
    /// Initiator Task Tag.
    pub initiator_task_tag: u32,
    /// CID.
    pub connection_id: u16,
    /// CmdSN.
    pub cmd_sn: u32,
    /// ExpStatSN.
    pub exp_stat_sn: u32,
}

impl LoginRequest {
    /// Read a Login Request. Which combinations of T, C and stages are legal is the login's own judgement, since it answers with
    /// a login status instead of a Reject.
    pub fn parse(bhs: &Bhs) -> Self {
        Self {
            transit: bhs.flags() & flags::TRANSIT != 0,
            continues: bhs.flags() & flags::CONTINUE != 0,
            current_stage: LoginStage(bhs.flags() >> 2 & 3),
            next_stage: LoginStage(bhs.flags() & 3),
            version_max: bhs.0[2],
            version_min: bhs.0[3],
            isid: bhs.array(8),
            tsih: bhs.u16_at(14),
            initiator_task_tag: bhs.initiator_task_tag(),
            connection_id: bhs.u16_at(20),
            cmd_sn: bhs.cmd_sn(),
            exp_stat_sn: bhs.exp_stat_sn(),
        }
    }
}

/// Text Request (section 11.10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextRequest {
    /// I: delivered at once.
    pub immediate: bool,
    /// F: the initiator has no more to ask in this negotiation.
    pub is_final: bool,
    /// C: the text goes on in the next request.
    pub continues: bool,
    /// LUN, raw; goes with the Target Transfer Tag.
    pub lun: [u8; 8],
    /// Initiator Task Tag, the same over one negotiation.
    pub initiator_task_tag: u32,
    /// Target Transfer Tag; [`TAG_RESERVED`] starts (or restarts) a negotiation.
    pub target_transfer_tag: u32,
    /// CmdSN.
    pub cmd_sn: u32,
    /// ExpStatSN.
    pub exp_stat_sn: u32,
}

impl TextRequest {
    /// Read a Text Request. F and C together are an invalid PDU field (section 11.10.2).
    pub fn parse(bhs: &Bhs) -> Result<Self, RejectReason> {
        let request = Self {
            immediate: bhs.immediate(),
            is_final: bhs.is_final(),
            continues: bhs.flags() & flags::CONTINUE != 0,
            lun: bhs.lun(),
            initiator_task_tag: bhs.initiator_task_tag(),
            target_transfer_tag: bhs.target_transfer_tag(),
            cmd_sn: bhs.cmd_sn(),
            exp_stat_sn: bhs.exp_stat_sn(),
        };
        let legal = request.initiator_task_tag != TAG_RESERVED && !(request.is_final && request.continues);
        if legal { Ok(request) } else { Err(RejectReason::INVALID_PDU_FIELD) }
    }
}

/// Logout Request (section 11.14).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogoutRequest {
    /// I: delivered at once.
    pub immediate: bool,
    /// Reason; only the three defined ones are parsed.
    pub reason: LogoutReason,
    /// Initiator Task Tag.
    pub initiator_task_tag: u32,
    /// CID; means nothing when the session is closed.
    pub connection_id: u16,
    /// CmdSN.
    pub cmd_sn: u32,
    /// ExpStatSN.
    pub exp_stat_sn: u32,
}

impl LogoutRequest {
    /// Read a Logout Request.
    pub fn parse(bhs: &Bhs) -> Result<Self, RejectReason> {
        let reason = LogoutReason(bhs.flags() & 0x7f);
        let legal = reason.0 <= LogoutReason::REMOVE_FOR_RECOVERY.0
            && bhs.initiator_task_tag() != TAG_RESERVED
            && bhs.data_segment_len() == 0;
        if !legal {
            return Err(RejectReason::INVALID_PDU_FIELD);
        }
        Ok(Self {
            immediate: bhs.immediate(),
            reason,
            initiator_task_tag: bhs.initiator_task_tag(),
            connection_id: bhs.u16_at(20),
            cmd_sn: bhs.cmd_sn(),
            exp_stat_sn: bhs.exp_stat_sn(),
        })
    }
}

/// SNACK Request (section 11.16), as far as it is needed to refuse it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnackRequest {
    /// Type.
    pub kind: SnackKind,
    /// Initiator Task Tag of the command, or [`TAG_RESERVED`].
    pub initiator_task_tag: u32,
    /// BegRun: the first number of the run.
    pub begin: u32,
    /// RunLength; 0: all from `begin` on.
    pub run_length: u32,
}

impl SnackRequest {
    /// Read a SNACK Request.
    pub fn parse(bhs: &Bhs) -> Self {
        Self {
            kind: SnackKind(bhs.flags() & 0x0f),
            initiator_task_tag: bhs.initiator_task_tag(),
            begin: bhs.u32_at(40),
            run_length: bhs.u32_at(44),
        }
    }
}

/// NOP-Out (section 11.18).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NopOut {
    /// I: delivered at once.
    pub immediate: bool,
    /// LUN, raw; goes back with the Target Transfer Tag.
    pub lun: [u8; 8],
    /// Initiator Task Tag; [`TAG_RESERVED`] asks for no answer.
    pub initiator_task_tag: u32,
    /// Target Transfer Tag of the NOP-In it answers, else [`TAG_RESERVED`].
    pub target_transfer_tag: u32,
    /// CmdSN.
    pub cmd_sn: u32,
    /// ExpStatSN.
    pub exp_stat_sn: u32,
}

impl NopOut {
    /// Read a NOP-Out. Without an Initiator Task Tag it must be immediate (section 11.18.1).
    pub fn parse(bhs: &Bhs) -> Result<Self, RejectReason> {
        if bhs.initiator_task_tag() == TAG_RESERVED && !bhs.immediate() {
            return Err(RejectReason::INVALID_PDU_FIELD);
        }
        Ok(Self {
            immediate: bhs.immediate(),
            lun: bhs.lun(),
            initiator_task_tag: bhs.initiator_task_tag(),
            target_transfer_tag: bhs.target_transfer_tag(),
            cmd_sn: bhs.cmd_sn(),
            exp_stat_sn: bhs.exp_stat_sn(),
        })
    }
}

/// The sequence numbers of a target's PDU, taken from the connection at emission (sections 4.2.2.1 and 4.2.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Sequence {
    /// StatSN (bytes 24..28).
    pub stat_sn: u32,
    /// ExpCmdSN (bytes 28..32).
    pub exp_cmd_sn: u32,
    /// MaxCmdSN (bytes 32..36).
    pub max_cmd_sn: u32,
}

impl Sequence {
    #[inline]
    fn put(self, bhs: &mut Bhs) {
        bhs.set_u32(24, self.stat_sn);
        bhs.set_u32(28, self.exp_cmd_sn);
        bhs.set_u32(32, self.max_cmd_sn);
    }
}

/// The residual of a transfer (section 11.4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Residual {
    /// As much was transferred as was expected.
    #[default]
    None,
    /// That many bytes of the expected were not transferred.
    Underflow(u32),
    /// That many bytes were not transferred because the initiator expected too few.
    Overflow(u32),
}

impl Residual {
    /// From what the initiator expects and what SCSI wants to transfer, in bytes. A residual beyond 32 bits saturates.
    #[inline]
    pub fn of(expected: u32, wanted: u64) -> Self {
        let expected = u64::from(expected);
        match wanted.cmp(&expected) {
            core::cmp::Ordering::Equal => Self::None,
            core::cmp::Ordering::Less => Self::Underflow((expected - wanted) as u32),
            core::cmp::Ordering::Greater => Self::Overflow(u32::try_from(wanted - expected).unwrap_or(u32::MAX)),
        }
    }

    #[inline]
    fn count(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Underflow(count) | Self::Overflow(count) => count,
        }
    }

    #[inline]
    fn flags(self, underflow: u8, overflow: u8) -> u8 {
        match self {
            Self::None => 0,
            Self::Underflow(_) => underflow,
            Self::Overflow(_) => overflow,
        }
    }
}

/// SCSI Response (section 11.4). Sense goes into the data segment, behind its two-byte length (section 11.4.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ScsiResponse {
    /// iSCSI service response.
    pub response: ServiceResponse,
    /// SCSI status.
    pub status: ScsiStatus,
    /// Initiator Task Tag.
    pub initiator_task_tag: u32,
    /// ExpDataSN: how many Data-In and R2T PDUs were sent for the task, but 0 when no Data-In was (section 11.4.8).
    pub exp_data_sn: u32,
    /// Residual of the write direction, or of the only one.
    pub residual: Residual,
    /// Residual of the read direction of a bidirectional command.
    pub read_residual: Residual,
    /// Bytes of the data segment.
    pub data_segment_len: usize,
}

impl ScsiResponse {
    /// Build the header.
    pub fn encode(&self, sequence: Sequence) -> Bhs {
        let residual_flags = self.residual.flags(flags::UNDERFLOW, flags::OVERFLOW)
            | self.read_residual.flags(flags::READ_UNDERFLOW, flags::READ_OVERFLOW);
        let mut bhs = Bhs::new(Opcode::SCSI_RESPONSE, flags::FINAL | residual_flags);
        bhs.0[2] = self.response.0;
        bhs.0[3] = self.status.0;
        bhs.set_data_segment_len(self.data_segment_len);
        bhs.set_u32(16, self.initiator_task_tag);
        sequence.put(&mut bhs);
        bhs.set_u32(36, self.exp_data_sn);
        bhs.set_u32(40, self.read_residual.count());
        bhs.set_u32(44, self.residual.count());
        bhs
    }
}

/// SCSI Data-In (section 11.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct DataIn {
    /// F: the last PDU of its sequence.
    pub is_final: bool,
    /// S: the status and residual when this is the last PDU of the command. StatSN is sent only then.
    pub status: Option<(ScsiStatus, Residual)>,
    /// Initiator Task Tag.
    pub initiator_task_tag: u32,
    /// DataSN.
    pub data_sn: u32,
    /// Buffer Offset in bytes.
    pub buffer_offset: u32,
    /// Bytes of data.
    pub data_segment_len: usize,
}

impl DataIn {
    /// Build the header. `sequence.stat_sn` is used only with a status.
    #[inline]
    pub fn encode(&self, sequence: Sequence) -> Bhs {
        let mut byte1 = if self.is_final { flags::FINAL } else { 0 };
        let mut bhs = Bhs::new(Opcode::DATA_IN, 0);
        sequence.put(&mut bhs);
        match self.status {
            Some((status, residual)) => {
                byte1 |= flags::STATUS | residual.flags(flags::UNDERFLOW, flags::OVERFLOW);
                bhs.0[3] = status.0;
                bhs.set_u32(44, residual.count());
            }
            None => bhs.set_u32(24, 0),
        }
        bhs.0[1] = byte1;
        bhs.set_data_segment_len(self.data_segment_len);
        bhs.set_u32(16, self.initiator_task_tag);
        bhs.set_u32(20, TAG_RESERVED);
        bhs.set_u32(36, self.data_sn);
        bhs.set_u32(40, self.buffer_offset);
        bhs
    }
}

/// Ready To Transfer (section 11.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct R2t {
    /// LUN of the command, raw.
    pub lun: [u8; 8],
    /// Initiator Task Tag.
    pub initiator_task_tag: u32,
    /// Target Transfer Tag, not the reserved one.
    pub target_transfer_tag: u32,
    /// R2TSN.
    pub r2t_sn: u32,
    /// Buffer Offset in bytes.
    pub buffer_offset: u32,
    /// Desired Data Transfer Length in bytes: 1..=MaxBurstLength.
    pub desired_data_transfer_length: u32,
}

impl R2t {
    /// Build the header.
    pub fn encode(&self, sequence: Sequence) -> Bhs {
        let mut bhs = Bhs::new(Opcode::R2T, flags::FINAL);
        bhs.set_bytes(8, &self.lun);
        bhs.set_u32(16, self.initiator_task_tag);
        bhs.set_u32(20, self.target_transfer_tag);
        sequence.put(&mut bhs);
        bhs.set_u32(36, self.r2t_sn);
        bhs.set_u32(40, self.buffer_offset);
        bhs.set_u32(44, self.desired_data_transfer_length);
        bhs
    }
}

/// Task Management Function Response (section 11.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskManagementResponse {
    /// Response.
    pub response: TaskManagementResponseCode,
    /// Initiator Task Tag of the request.
    pub initiator_task_tag: u32,
}

impl TaskManagementResponse {
    /// Build the header.
    pub fn encode(&self, sequence: Sequence) -> Bhs {
        let mut bhs = Bhs::new(Opcode::TASK_MANAGEMENT_RESPONSE, flags::FINAL);
        bhs.0[2] = self.response.0;
        bhs.set_u32(16, self.initiator_task_tag);
        sequence.put(&mut bhs);
        bhs
    }
}

/// Login Response (section 11.13).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct LoginResponse {
    /// T: the target agrees to move to `next_stage`.
    pub transit: bool,
    /// C: the text goes on in the next response.
    pub continues: bool,
    /// CSG.
    pub current_stage: LoginStage,
    /// NSG; zero without `transit`.
    pub next_stage: LoginStage,
    /// Version-max.
    pub version_max: u8,
    /// Version-active.
    pub version_active: u8,
    /// ISID of the request.
    pub isid: [u8; 6],
    /// TSIH: zero until the final response of a new session.
    pub tsih: u16,
    /// Initiator Task Tag.
    pub initiator_task_tag: u32,
    /// Status-Class and Status-Detail.
    pub status: LoginStatus,
    /// Bytes of the data segment.
    pub data_segment_len: usize,
}

impl LoginResponse {
    /// Build the header. StatSN is valid only when the status class is success; the caller gives zero otherwise.
    pub fn encode(&self, sequence: Sequence) -> Bhs {
        let mut byte1 = (self.current_stage.0 & 3) << 2;
        if self.transit {
            byte1 |= flags::TRANSIT | self.next_stage.0 & 3;
        }
        if self.continues {
            byte1 |= flags::CONTINUE;
        }
        let mut bhs = Bhs::new(Opcode::LOGIN_RESPONSE, byte1);
        bhs.0[2] = self.version_max;
        bhs.0[3] = self.version_active;
        bhs.set_data_segment_len(self.data_segment_len);
        bhs.set_bytes(8, &self.isid);
        bhs.set_u16(14, self.tsih);
        bhs.set_u32(16, self.initiator_task_tag);
        sequence.put(&mut bhs);
        bhs.0[36] = self.status.class();
        bhs.0[37] = self.status.detail();
        bhs
    }
}

/// Text Response (section 11.11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextResponse {
    /// F: the negotiation is over.
    pub is_final: bool,
    /// C: the text goes on in the next response.
    pub continues: bool,
    /// LUN, raw; goes with the Target Transfer Tag.
    pub lun: [u8; 8],
    /// Initiator Task Tag.
    pub initiator_task_tag: u32,
    /// Target Transfer Tag: [`TAG_RESERVED`] exactly when `is_final` (section 11.11.4).
    pub target_transfer_tag: u32,
    /// Bytes of the data segment.
    pub data_segment_len: usize,
}

impl TextResponse {
    /// Build the header.
    pub fn encode(&self, sequence: Sequence) -> Bhs {
        let mut byte1 = if self.is_final { flags::FINAL } else { 0 };
        if self.continues {
            byte1 |= flags::CONTINUE;
        }
        let mut bhs = Bhs::new(Opcode::TEXT_RESPONSE, byte1);
        bhs.set_data_segment_len(self.data_segment_len);
        bhs.set_bytes(8, &self.lun);
        bhs.set_u32(16, self.initiator_task_tag);
        bhs.set_u32(20, self.target_transfer_tag);
        sequence.put(&mut bhs);
        bhs
    }
}

/// Logout Response (section 11.15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogoutResponse {
    /// Response.
    pub response: LogoutResponseCode,
    /// Initiator Task Tag.
    pub initiator_task_tag: u32,
    /// Time2Wait in seconds.
    pub time2wait: u16,
    /// Time2Retain in seconds.
    pub time2retain: u16,
}

impl LogoutResponse {
    /// Build the header.
    pub fn encode(&self, sequence: Sequence) -> Bhs {
        let mut bhs = Bhs::new(Opcode::LOGOUT_RESPONSE, flags::FINAL);
        bhs.0[2] = self.response.0;
        bhs.set_u32(16, self.initiator_task_tag);
        sequence.put(&mut bhs);
        bhs.set_u16(40, self.time2wait);
        bhs.set_u16(42, self.time2retain);
        bhs
    }
}

/// NOP-In (section 11.19).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NopIn {
    /// LUN, raw: the request's when answering, any with a Target Transfer Tag.
    pub lun: [u8; 8],
    /// Initiator Task Tag of the NOP-Out, or [`TAG_RESERVED`] for a ping of ours.
    pub initiator_task_tag: u32,
    /// Target Transfer Tag of a ping of ours, else [`TAG_RESERVED`].
    pub target_transfer_tag: u32,
    /// Bytes of the data segment.
    pub data_segment_len: usize,
}

impl NopIn {
    /// Build the header.
    pub fn encode(&self, sequence: Sequence) -> Bhs {
        let mut bhs = Bhs::new(Opcode::NOP_IN, flags::FINAL);
        bhs.set_data_segment_len(self.data_segment_len);
        bhs.set_bytes(8, &self.lun);
        bhs.set_u32(16, self.initiator_task_tag);
        bhs.set_u32(20, self.target_transfer_tag);
        sequence.put(&mut bhs);
        bhs
    }
}

/// Asynchronous Message (section 11.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct AsyncMessage {
    /// AsyncEvent.
    pub event: AsyncEvent,
    /// AsyncVCode: only with [`AsyncEvent::VENDOR`].
    pub vendor_code: u8,
    /// LUN, raw: only with [`AsyncEvent::SCSI`].
    pub lun: [u8; 8],
    /// Parameter1.
    pub parameter1: u16,
    /// Parameter2.
    pub parameter2: u16,
    /// Parameter3.
    pub parameter3: u16,
    /// Bytes of the data segment.
    pub data_segment_len: usize,
}

impl AsyncMessage {
    /// Build the header.
    pub fn encode(&self, sequence: Sequence) -> Bhs {
        let mut bhs = Bhs::new(Opcode::ASYNC_MESSAGE, flags::FINAL);
        bhs.set_data_segment_len(self.data_segment_len);
        bhs.set_bytes(8, &self.lun);
        bhs.set_u32(16, TAG_RESERVED);
        sequence.put(&mut bhs);
        bhs.0[36] = self.event.0;
        bhs.0[37] = self.vendor_code;
        bhs.set_u16(38, self.parameter1);
        bhs.set_u16(40, self.parameter2);
        bhs.set_u16(42, self.parameter3);
        bhs
    }
}

/// Reject (section 11.17). The rejected header is its data segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reject {
    /// Reason.
    pub reason: RejectReason,
    /// The data segment: the rejected PDU's 48 bytes (no AHS, no digests).
    pub data_segment_len: usize,
}

impl Reject {
    /// Build the header.
    pub fn encode(&self, sequence: Sequence) -> Bhs {
        let mut bhs = Bhs::new(Opcode::REJECT, flags::FINAL);
        bhs.0[2] = self.reason.0;
        bhs.set_data_segment_len(self.data_segment_len);
        bhs.set_u32(16, TAG_RESERVED);
        sequence.put(&mut bhs);
        bhs
    }
}
