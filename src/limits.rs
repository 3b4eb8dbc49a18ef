//! Every bound of the server, with its derivation. What is full refuses by protocol; nothing grows without a bound.
//!
//! A leaf that every module may use.

/// SCSI commands one session may have outstanding: the CmdSN window (RFC 7143 section 4.2.2.1). Linux asks for 128 by
/// default, and ESXi and Windows for at most that; a slot costs some 300 bytes.
pub const COMMANDS_PER_SESSION_MAX: u32 = 128;

/// Immediate requests (task management, NOP-Out, Logout, Text) that may wait beside the window. RFC 7143 section
/// 4.2.2.1 lets a target refuse more with Reject "too many immediate commands".
pub const IMMEDIATE_REQUESTS_MAX: u32 = 8;

/// Bytes of one PDU's data segment that we accept (our MaxRecvDataSegmentLength).
pub const RECEIVE_SEGMENT_LENGTH_MAX: u32 = 256 * 1024;

/// MaxBurstLength that we offer: one R2T's payload, and so one burst buffer of the arena's largest class.
pub const BURST_LENGTH_MAX: u32 = 1024 * 1024;

/// FirstBurstLength that we offer. A command with its immediate data must fit a connection's largest stream buffer.
pub const FIRST_BURST_LENGTH_MAX: u32 = 256 * 1024;

/// R2Ts outstanding for one task that we accept (MaxOutstandingR2T).
pub const OUTSTANDING_R2T_MAX: u16 = 4;

/// Connections of one session that may be configured (MaxConnections). Initiators that use several open one for each
/// path; what more of them would bring, more sessions bring as well.
pub const CONNECTIONS_PER_SESSION_MAX: usize = 8;

/// Connections of one shard in full feature phase, and so its sessions where each has one connection.
pub const SESSIONS_PER_SHARD_MAX: u32 = 4096;

/// Connections of one shard that have not logged in. When one more comes, the oldest of them is turned away: a login
/// takes milliseconds, so the oldest of so many is one that does not log in. Some 20 MiB of buffers.
pub const LOGINS_PER_SHARD_MAX: usize = 512;

/// A connection that has not finished its login after this long is closed.
pub const LOGIN_TIMEOUT_MS: u64 = 15_000;

/// Bytes of one text or login negotiation, over all its continued PDUs (RFC 7143 section 6.1 asks for at least 8 KiB).
pub const NEGOTIATION_BYTES_MAX: usize = 64 * 1024;

/// MAXIMUM TRANSFER LENGTH of a unit: bytes that one SCSI command may move. No initiator that we know splits later than
/// here (Linux stops at 4 MiB unless told otherwise); the shard works through them in bursts, so that it holds no
/// memory for the rest.
pub const TRANSFER_BYTES_MAX: u32 = 32 * 1024 * 1024;

/// Blocks of all the ranges of one UNMAP (MAXIMUM UNMAP LBA COUNT): 512 MiB of short blocks, 4 GiB of long ones. 2,048
/// of the usual 2 MiB blocks are released in a fraction of a second, far within the 30 s that initiators wait, and test
/// suites take a greater number for a mistake.
pub const UNMAP_BLOCKS_MAX: u32 = 1024 * 1024;

/// Descriptors of one UNMAP (MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT): a list of 4 KiB and its header.
pub const UNMAP_DESCRIPTORS_MAX: usize = 256;

/// Bytes that one WRITE SAME may fill (MAXIMUM WRITE SAME LENGTH): what a slow disk writes in a few seconds, and all
/// that the ten-byte form can name.
pub const WRITE_SAME_BYTES_MAX: u32 = 256 * 1024 * 1024;

/// Blocks of one COMPARE AND WRITE (MAXIMUM COMPARE AND WRITE LENGTH): all that its one-byte field can name. Twice as
/// many come as Data-Out, 2 MiB of the longest blocks.
pub const COMPARE_AND_WRITE_BLOCKS_MAX: u8 = u8::MAX;

/// Bytes of one WRITE ATOMIC on a disk whose log carries them (MAXIMUM ATOMIC TRANSFER LENGTH): several pages of every
/// database that we know, and a tenth of the smallest log.
pub const ATOMIC_WRITE_BYTES_MAX: u32 = 128 * 1024;

/// CSCD descriptors of one EXTENDED COPY (MAXIMUM CSCD DESCRIPTOR COUNT): no initiator that we know uses more than two.
pub const COPY_CSCDS_MAX: u16 = 64;

/// Segment descriptors of one EXTENDED COPY (MAXIMUM SEGMENT DESCRIPTOR COUNT).
pub const COPY_SEGMENTS_MAX: u16 = 256;

/// Bytes of both descriptor lists together (MAXIMUM DESCRIPTOR LIST LENGTH): the most segments there may be, with all
/// the CSCD descriptors that anybody uses.
pub const COPY_DESCRIPTORS_BYTES_MAX: u32 = 8 * 1024;

/// Bytes that one segment may write (MAXIMUM SEGMENT LENGTH): what one READ may read, and all that the two-byte count
/// of short blocks can name.
pub const COPY_SEGMENT_BYTES_MAX: u32 = TRANSFER_BYTES_MAX;

/// Bytes that a copy has the file system share at once: a block of a VHDX as it is made, and little enough for those
/// who wait for their turn on either file.
pub const SHARE_BYTES_MAX: u32 = 32 * 1024 * 1024;

/// Bytes of a parameter list of EXTENDED COPY, POPULATE TOKEN or WRITE USING TOKEN that are taken at all: one
/// descriptor too many is still told from a list that is too long.
pub const COPY_LIST_BYTES_MAX: u32 = 16 * 1024;

/// Copies that one session may have underway. Each has a task of its own and at most one burst of memory.
pub const COPIES_PER_SESSION_MAX: usize = 8;

/// Results of copies that a session keeps until they are asked for; the oldest goes first.
pub const COPY_RESULTS_MAX: usize = 32;

/// Ranges of one token, and of one WRITE USING TOKEN (MAXIMUM RANGE DESCRIPTORS).
pub const TOKEN_RANGES_MAX: usize = 64;

/// Tokens of one disk that are valid at once; a further one cancels the one that was idle longest. A host that copies
/// many small files leaves one behind for each, until it expires.
pub const TOKENS_PER_DISK_MAX: usize = 256;

/// Bytes that one token stands for, and that one WRITE USING TOKEN writes (MAXIMUM TOKEN TRANSFER SIZE).
pub const TOKEN_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// Bytes that one WRITE USING TOKEN best writes (OPTIMAL TRANSFER COUNT): Windows' own default, which is through well
/// within the four seconds that it is content with.
pub const TOKEN_BYTES_OPTIMAL: u64 = 64 * 1024 * 1024;

/// A token that nobody has used for this long expires, unless its creator asked for another time-out...
pub const TOKEN_TIMEOUT_DEFAULT_S: u32 = 60;

/// ... of at most this.
pub const TOKEN_TIMEOUT_MAX_S: u32 = 900;

/// A token expires after this however often it is used (MAXIMUM TOKEN LIFETIME).
pub const TOKEN_LIFETIME_MAX_S: u32 = 24 * 60 * 60;

const _: () = assert!(COPY_SEGMENT_BYTES_MAX >= 65_535 * 512);
const _: () = assert!(COPY_DESCRIPTORS_BYTES_MAX >= COPY_SEGMENTS_MAX as u32 * 28 + 4 * 32);
const _: () = assert!(COPY_LIST_BYTES_MAX >= 48 + COPY_DESCRIPTORS_BYTES_MAX + 32);

/// OPTIMAL TRANSFER LENGTH of a unit: one burst.
pub const TRANSFER_BYTES_OPTIMAL: u32 = BURST_LENGTH_MAX;

const _: () = assert!(TRANSFER_BYTES_OPTIMAL <= TRANSFER_BYTES_MAX);
/// Targets of one server: what Windows Server publishes as its limit is 256.
pub const TARGETS_MAX: usize = 4096;

/// Disks of one server.
pub const DISKS_MAX: usize = 16_384;

/// Logical units of one target: all numbers of the 14-bit flat addressing method (SAM-5 clause 4.7.7.5).
pub const LUNS_PER_TARGET_MAX: usize = 16_384;

/// Snapshots of one disk: what Windows Server publishes as its limit is 512. One flat map resolves at most 4096 layers,
/// and a disk may have some below its first snapshot.
pub const SNAPSHOTS_PER_DISK_MAX: usize = 2048;

/// Disks of one group that are snapshotted at one instant: all of them are paused together.
pub const SNAPSHOT_GROUP_MAX: usize = 64;

/// Jobs that run at once: each has a thread, and more would only wait for the same drives.
pub const JOBS_RUNNING_MAX: usize = 16;

/// Jobs that have ended and are still listed.
pub const JOBS_FINISHED_MAX: usize = 256;

/// Bytes of one user metadata item (MS-VHDX section 2.6.1.2).
pub const USER_METADATA_BYTES_MAX: usize = 1024 * 1024;

/// Listening portals of one server.
pub const PORTALS_MAX: usize = 256;

/// Access rules of one target: one for every session that a target can have.
pub const ACCESS_RULES_PER_TARGET_MAX: usize = 4096;

/// Bytes of one request's body on the control socket: names, a path and two secrets fit many times over.
pub const CONTROL_BODY_BYTES_MAX: usize = 64 * 1024;

/// The longest configuration that the control socket takes, in bytes: as many disks, targets and logical units as there
/// can be fit.
pub const CONTROL_CONFIG_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Connections to the control socket that are served at once. When one more comes, the one that has been silent longest
/// is closed; where all are busy it waits in the backlog.
pub const CONTROL_CONNECTIONS_MAX: usize = 256;

/// A connection to the control socket that has not sent a whole request head after this long is closed.
pub const CONTROL_HEAD_TIMEOUT_MS: u64 = 10_000;

const _: () = assert!(FIRST_BURST_LENGTH_MAX <= BURST_LENGTH_MAX);
const _: () = assert!(RECEIVE_SEGMENT_LENGTH_MAX <= BURST_LENGTH_MAX);

/// Login Requests of one login. The longest text needs eight full ones and the longest answer 128 of the shortest
/// segment length; no initiator needs more than ten, and one that never comes to an end is refused.
pub const LOGIN_REQUESTS_MAX: u32 = 256;

/// A session whose initiator has been silent this long is asked whether it lives (NOP-In). Deadlines are looked at in
/// common, so idle sessions do not wake a shard more than once in a while.
pub const PING_INTERVAL_MS: u64 = 30_000;

/// A session whose initiator does not answer a ping within this is dropped.
pub const PING_TIMEOUT_MS: u64 = 30_000;

/// A request for which there is no memory holds up its connection at most this long; then it is turned away, and its
/// initiator sends it again.
pub const STALL_TIMEOUT_MS: u64 = 1_000;

/// A task management function waits at most this long for what initiators owe it: data that R2Ts have asked for, and
/// the acknowledgement of TASK ABORTED (RFC 7143 section 4.2.3.3). Widely used initiators do not send the former.
pub const MANAGEMENT_PATIENCE_MS: u64 = 1_000;

/// Bytes of the echo buffer that each I_T nexus has: as many as its descriptor can tell of without reserved bits.
pub const ECHO_BUFFER_BYTES: u16 = 4096;

/// A connection whose last answer (to a logout or a refused login) is not taken within this is closed.
pub const FINISH_TIMEOUT_MS: u64 = 10_000;

/// The longest trace, in seconds.
pub const TRACE_SECONDS_MAX: u32 = 3600;

/// Commands of a trace: what is in memory while it is recorded is this many notes of 24 bytes, 192 MiB.
pub const TRACE_COMMANDS_MAX: usize = 8 << 20;

/// Commands of one disk on one shard between two exchanges of the room for notes (every 50 ms): 2.6 million each
/// second, more than a shard can carry out. 3 MiB of room.
pub const TRACE_ROOM_COMMANDS: usize = 1 << 17;
