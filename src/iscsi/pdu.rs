//! The PDU formats of RFC 7143 section 11, in two levels.
//!
//! [`Bhs`] is any 48 bytes, with safe accessors after one length check. The request types ([`ScsiCommandRequest`] and
//! its siblings) hold only legal requests, and their `parse` is the only door from one to the other; a refused
//! request names the [`RejectReason`] to answer with. What a target sends is built by the response types' `encode`,
//! which starts from zeros. Sequence numbers that belong to the connection ([`Sequence`]) are filled in at emission.
//!
//! May know: nothing of connections, sockets or SCSI's meaning.

mod codes;
mod request;
mod response;

pub use codes::*;
pub use request::*;
pub use response::*;

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
