//! The codes of RFC 7143 section 11: opcodes, reasons, functions, statuses. Open: a peer may send any value of the
//! field.
//!
//! May know: nothing.

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
        /// All active tasks of the LUN are being terminated: only where TaskReporting=FastAbort.
        TASK_TERMINATION = 5,
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
