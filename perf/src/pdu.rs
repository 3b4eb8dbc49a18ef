//! The wire format of RFC 7143 section 11, as far as an initiator needs it.

/// Opcodes of the initiator (RFC 7143 section 11.2.1.2), without the immediate bit.
pub mod request {
    /// NOP-Out.
    pub const NOP_OUT: u8 = 0x00;
    /// SCSI Command.
    pub const SCSI_COMMAND: u8 = 0x01;
    /// Task Management Function Request.
    pub const TASK_MANAGEMENT: u8 = 0x02;
    /// Login Request.
    pub const LOGIN: u8 = 0x03;
    /// Text Request.
    pub const TEXT: u8 = 0x04;
    /// SCSI Data-Out.
    pub const DATA_OUT: u8 = 0x05;
    /// Logout Request.
    pub const LOGOUT: u8 = 0x06;
    /// SNACK Request.
    pub const SNACK: u8 = 0x10;
}

/// Opcodes of the target (RFC 7143 section 11.2.1.2).
pub mod response {
    /// NOP-In.
    pub const NOP_IN: u8 = 0x20;
    /// SCSI Response.
    pub const SCSI_RESPONSE: u8 = 0x21;
    /// Task Management Function Response.
    pub const TASK_MANAGEMENT: u8 = 0x22;
    /// Login Response.
    pub const LOGIN: u8 = 0x23;
    /// Text Response.
    pub const TEXT: u8 = 0x24;
    /// SCSI Data-In.
    pub const DATA_IN: u8 = 0x25;
    /// Logout Response.
    pub const LOGOUT: u8 = 0x26;
    /// Ready To Transfer.
    pub const R2T: u8 = 0x31;
    /// Asynchronous Message.
    pub const ASYNC_MESSAGE: u8 = 0x32;
    /// Reject.
    pub const REJECT: u8 = 0x3f;
}

/// The immediate-delivery bit of a request's first byte.
pub const IMMEDIATE: u8 = 0x40;
/// The final bit of the second byte.
pub const FINAL: u8 = 0x80;
/// The reserved tag.
pub const TAG_NONE: u32 = 0xffff_ffff;
/// Bytes of a basic header segment.
pub const HEADER_LEN: usize = 48;

/// A basic header segment: 48 bytes with the fields that several PDUs share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header(pub [u8; HEADER_LEN]);

impl Header {
    /// A header of zeros with this opcode and second byte.
    pub fn new(opcode: u8, flags: u8) -> Header {
        let mut bytes = [0; HEADER_LEN];
        bytes[0] = opcode;
        bytes[1] = flags;
        Header(bytes)
    }

    /// The first 48 of these bytes, if there are so many.
    pub fn parse(bytes: &[u8]) -> Option<Header> {
        bytes.first_chunk::<HEADER_LEN>().map(|b| Header(*b))
    }

    /// The opcode without the immediate bit.
    pub fn opcode(&self) -> u8 {
        self.0[0] & 0x3f
    }

    /// The second byte.
    pub fn flags(&self) -> u8 {
        self.0[1]
    }

    /// Bytes of additional header segments.
    pub fn ahs_len(&self) -> usize {
        usize::from(self.0[4]) * 4
    }

    /// DataSegmentLength, without padding.
    pub fn data_len(&self) -> usize {
        usize::from(self.0[5]) << 16 | usize::from(self.0[6]) << 8 | usize::from(self.0[7])
    }

    /// Write DataSegmentLength (24 bits; higher bits of `len` are lost).
    pub fn with_data_len(mut self, len: usize) -> Header {
        let bytes = (len as u32).to_be_bytes();
        self.0[5..8].copy_from_slice(&bytes[1..]);
        self
    }

    /// The 32-bit word at `at`.
    pub fn word(&self, at: usize) -> u32 {
        u32::from_be_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }

    /// Write the 32-bit word at `at`.
    pub fn with_word(mut self, at: usize, value: u32) -> Header {
        self.0[at..at + 4].copy_from_slice(&value.to_be_bytes());
        self
    }

    /// Write the LUN field as single-level flat or peripheral addressing (SAM-5 clause 4.7).
    pub fn with_lun(mut self, lun: u16) -> Header {
        self.0[8..16].copy_from_slice(&lun_bytes(lun));
        self
    }

    /// Initiator Task Tag.
    pub fn task_tag(&self) -> u32 {
        self.word(16)
    }

    /// StatSN of a response.
    pub fn stat_sn(&self) -> u32 {
        self.word(24)
    }

    /// ExpCmdSN of a response.
    pub fn exp_cmd_sn(&self) -> u32 {
        self.word(28)
    }

    /// MaxCmdSN of a response.
    pub fn max_cmd_sn(&self) -> u32 {
        self.word(32)
    }
}

/// A LUN field: peripheral device addressing below 256, flat space addressing above.
pub fn lun_bytes(lun: u16) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..2].copy_from_slice(&if lun < 256 { lun } else { 0x4000 | lun }.to_be_bytes());
    bytes
}

/// Bytes that fill a segment of `len` up to a multiple of four.
pub fn pad_len(len: usize) -> usize {
    len.wrapping_neg() & 3
}

/// The CRC32C of what `crc` covers followed by `bytes`; 0 covers nothing.
#[inline]
pub fn crc_append(crc: u32, bytes: &[u8]) -> u32 {
    // Folding by carry-less multiplication wins on payloads only, and starts afresh.
    if crc == 0 && bytes.len() >= 256 { crc_fast::crc32_iscsi(bytes) } else { crc32c::crc32c_append(crc, bytes) }
}

/// The digest of RFC 7143 section 13.1 in wire order.
#[inline]
pub fn digest(parts: &[&[u8]]) -> [u8; 4] {
    parts.iter().fold(0, |crc, part| crc_append(crc, part)).to_le_bytes()
}

/// Append a whole PDU: header with its length field set, digests where asked, segment and padding.
pub fn append(out: &mut Vec<u8>, header: Header, data: &[u8], header_digest: bool, data_digest: bool) {
    let header = header.with_data_len(data.len());
    out.extend_from_slice(&header.0);
    if header_digest {
        out.extend_from_slice(&digest(&[&header.0]));
    }
    if data.is_empty() {
        return;
    }
    out.extend_from_slice(data);
    let pad = &[0; 3][..pad_len(data.len())];
    out.extend_from_slice(pad);
    if data_digest {
        out.extend_from_slice(&digest(&[data, pad]));
    }
}

/// A SCSI Command header.
#[derive(Clone, Copy, Debug)]
pub struct Command {
    /// Logical unit.
    pub lun: u16,
    /// The command descriptor block, zero-filled.
    pub cdb: [u8; 16],
    /// Initiator Task Tag.
    pub task_tag: u32,
    /// CmdSN.
    pub cmd_sn: u32,
    /// ExpStatSN.
    pub exp_stat_sn: u32,
    /// Expected Data Transfer Length.
    pub expected_len: u32,
    /// Data comes from the target.
    pub read: bool,
    /// Data goes to the target.
    pub write: bool,
    /// No unsolicited Data-Out follows.
    pub last: bool,
}

impl Command {
    /// As a header with the SIMPLE task attribute.
    pub fn header(&self) -> Header {
        let flags = if self.last { FINAL } else { 0 }
            | if self.read { 0x40 } else { 0 }
            | if self.write { 0x20 } else { 0 }
            | 0x01;
        let mut header = Header::new(request::SCSI_COMMAND, flags)
            .with_lun(self.lun)
            .with_word(16, self.task_tag)
            .with_word(20, self.expected_len)
            .with_word(24, self.cmd_sn)
            .with_word(28, self.exp_stat_sn);
        header.0[32..48].copy_from_slice(&self.cdb);
        header
    }
}

/// READ (16) or WRITE (16) with this operation code (SBC-4): FUA as asked.
pub fn cdb_transfer_16(opcode: u8, lba: u64, blocks: u32, fua: bool) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = opcode;
    cdb[1] = if fua { 0x08 } else { 0 };
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

/// SCSI operation codes that the instrument uses.
pub mod cdb {
    /// TEST UNIT READY.
    pub const TEST_UNIT_READY: u8 = 0x00;
    /// SYNCHRONIZE CACHE (10).
    pub const SYNCHRONIZE_CACHE_10: u8 = 0x35;
    /// UNMAP.
    pub const UNMAP: u8 = 0x42;
    /// READ (16).
    pub const READ_16: u8 = 0x88;
    /// WRITE (16).
    pub const WRITE_16: u8 = 0x8a;
    /// SERVICE ACTION IN (16), which holds READ CAPACITY (16).
    pub const SERVICE_ACTION_IN_16: u8 = 0x9e;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_matches_the_vectors_of_the_standard() {
        // RFC 7143 appendix A.4: bytes as they go on the wire.
        assert_eq!(digest(&[&[0; 32]]), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(digest(&[&[0xff; 32]]), [0x43, 0xab, 0xa8, 0x62]);
        let rising: Vec<u8> = (0..32).collect();
        assert_eq!(digest(&[&rising[..16], &rising[16..]]), [0x4e, 0x79, 0xdd, 0x46]);
    }

    #[test]
    fn the_two_ways_to_the_crc_agree() {
        let bytes: Vec<u8> = (0..9000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for len in [0, 1, 47, 48, 255, 256, 257, 511, 4096, 8999] {
            assert_eq!(crc_append(0, &bytes[..len]), crc32c::crc32c(&bytes[..len]), "{len} bytes");
            let first = crc_append(0, &bytes[..len]);
            assert_eq!(crc_append(first, &bytes[len..]), crc32c::crc32c(&bytes), "cut at {len}");
        }
    }

    #[test]
    fn a_pdu_is_padded_and_digested_in_the_right_places() {
        let mut out = vec![];
        append(&mut out, Header::new(request::NOP_OUT | IMMEDIATE, FINAL), b"hello", true, true);
        assert_eq!(out.len(), 48 + 4 + 8 + 4);
        assert_eq!(out[5..8], [0, 0, 5]);
        assert_eq!(out[48..52], digest(&[&out[..48]]));
        assert_eq!(out[60..64], digest(&[b"hello\0\0\0"]));
    }
}
