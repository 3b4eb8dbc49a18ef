//! iSCSI PDUs as an initiator writes and reads them (RFC 7143 section 11), written from the standard alone.
//!
//! It shares nothing with the server's code, so that a mistake would have to be made twice, alike, to stay unseen.
//!
//! **May know:** nothing.

/// Bytes of a basic header segment.
pub(super) const BHS_BYTES: usize = 48;

/// Initiator opcodes (RFC 7143 section 11.2.1.2).
pub(super) mod request {
    pub const NOP_OUT: u8 = 0x00;
    pub const SCSI_COMMAND: u8 = 0x01;
    pub const TASK_MANAGEMENT: u8 = 0x02;
    pub const LOGIN: u8 = 0x03;
    pub const DATA_OUT: u8 = 0x05;
    pub const LOGOUT: u8 = 0x06;
    /// To be sent now, outside of the command order.
    pub const IMMEDIATE: u8 = 0x40;
}

/// Target opcodes (RFC 7143 section 11.2.1.2).
pub(super) mod response {
    pub const NOP_IN: u8 = 0x20;
    pub const SCSI_RESPONSE: u8 = 0x21;
    pub const TASK_MANAGEMENT: u8 = 0x22;
    pub const LOGIN: u8 = 0x23;
    pub const DATA_IN: u8 = 0x25;
    pub const LOGOUT: u8 = 0x26;
    pub const R2T: u8 = 0x31;
    pub const ASYNC_MESSAGE: u8 = 0x32;
    pub const REJECT: u8 = 0x3f;
}

/// The tag that stands for none.
pub(super) const NO_TAG: u32 = 0xffff_ffff;

/// The final bit of byte 1.
pub(super) const FINAL: u8 = 0x80;

/// One PDU: basic header and data segment (without padding). No additional header segments are used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pdu {
    pub bhs: [u8; BHS_BYTES],
    pub data: Vec<u8>,
}

impl Pdu {
    /// A PDU of this opcode and these flags, the rest zero.
    pub fn new(opcode: u8, flags: u8) -> Pdu {
        let mut bhs = [0; BHS_BYTES];
        bhs[0] = opcode;
        bhs[1] = flags;
        Pdu { bhs, data: Vec::new() }
    }

    pub fn opcode(&self) -> u8 {
        self.bhs[0] & 0x3f
    }

    pub fn word(&self, at: usize) -> u32 {
        u32::from_be_bytes(std::array::from_fn(|i| self.bhs[at + i]))
    }

    pub fn set_word(mut self, at: usize, value: u32) -> Pdu {
        self.bhs[at..at + 4].copy_from_slice(&value.to_be_bytes());
        self
    }

    pub fn set_bytes(mut self, at: usize, bytes: &[u8]) -> Pdu {
        self.bhs[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    pub fn with_data(mut self, data: Vec<u8>) -> Pdu {
        assert!(data.len() < 1 << 24);
        self.data = data;
        self
    }

    /// Whether bit `mask` of byte 1 is set.
    pub fn flag(&self, mask: u8) -> bool {
        self.bhs[1] & mask != 0
    }

    pub fn initiator_task_tag(&self) -> u32 {
        self.word(16)
    }

    pub fn target_transfer_tag(&self) -> u32 {
        self.word(20)
    }

    pub fn stat_sn(&self) -> u32 {
        self.word(24)
    }

    /// Append the PDU's bytes as they go over the line.
    pub fn encode(&self, digests: Digests, out: &mut Vec<u8>) {
        let mut bhs = self.bhs;
        bhs[5..8].copy_from_slice(&(self.data.len() as u32).to_be_bytes()[1..]);
        out.extend_from_slice(&bhs);
        if digests.header {
            out.extend_from_slice(&crc32c(&bhs).to_le_bytes());
        }
        if self.data.is_empty() {
            return;
        }
        let start = out.len();
        out.extend_from_slice(&self.data);
        out.resize(start + self.data.len().next_multiple_of(4), 0);
        if digests.data {
            let digest = crc32c(&out[start..]);
            out.extend_from_slice(&digest.to_le_bytes());
        }
    }

    /// The PDU at the head of `bytes` and its length on the line; `None` while it is not all there.
    pub fn decode(bytes: &[u8], digests: Digests) -> Result<Option<(Pdu, usize)>, String> {
        let header_bytes = BHS_BYTES + if digests.header { 4 } else { 0 };
        if bytes.len() < header_bytes {
            return Ok(None);
        }
        let bhs: [u8; BHS_BYTES] = std::array::from_fn(|i| bytes[i]);
        if digests.header && bytes[BHS_BYTES..header_bytes] != crc32c(&bhs).to_le_bytes() {
            return Err(format!("a wrong header digest over {bhs:02x?}"));
        }
        if bhs[4] != 0 {
            return Err(format!("additional header segments from a target: {bhs:02x?}"));
        }
        let data_len = u32::from_be_bytes([0, bhs[5], bhs[6], bhs[7]]) as usize;
        let padded_len = data_len.next_multiple_of(4);
        let digest_len = if digests.data && data_len > 0 { 4 } else { 0 };
        let len = header_bytes + padded_len + digest_len;
        if bytes.len() < len {
            return Ok(None);
        }
        let padded = &bytes[header_bytes..header_bytes + padded_len];
        if digest_len > 0 && bytes[len - 4..len] != crc32c(padded).to_le_bytes() {
            return Err(format!("a wrong data digest, header {bhs:02x?}"));
        }
        if padded[data_len..].iter().any(|&byte| byte != 0) {
            return Err(format!("padding that is not zero, header {bhs:02x?}"));
        }
        Ok(Some((Pdu { bhs, data: padded[..data_len].to_vec() }, len)))
    }
}

/// Which digests are in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Digests {
    pub header: bool,
    pub data: bool,
}

/// CRC32C (RFC 7143 section 13.1: polynomial 0x1edc6f41), from a table made at compile time.
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = table();
    !bytes.iter().fold(!0u32, |crc, byte| TABLE[usize::from(crc as u8 ^ byte)] ^ (crc >> 8))
}

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

/// Whether serial number `a` is before `b` (RFC 1982, 32 bits).
pub(super) fn is_before(a: u32, b: u32) -> bool {
    a != b && b.wrapping_sub(a) < 1 << 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_the_standard() {
        // RFC 3720 appendix B.4: 32 bytes of zeros, of ones, and counting up; digest bytes in wire order.
        assert_eq!(crc32c(&[0; 32]).to_le_bytes(), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(crc32c(&[0xff; 32]).to_le_bytes(), [0x43, 0xab, 0xa8, 0x62]);
        let up: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&up).to_le_bytes(), [0x4e, 0x79, 0xdd, 0x46]);
    }

    #[test]
    fn what_is_written_can_be_read_and_a_flipped_bit_is_seen() {
        for digests in [Digests::default(), Digests { header: true, data: true }] {
            let pdu = Pdu::new(request::SCSI_COMMAND, FINAL).set_word(16, 7).with_data(b"seven by".to_vec());
            let mut pdu = Pdu { data: pdu.data[..7].to_vec(), ..pdu };
            let mut line = Vec::new();
            pdu.encode(digests, &mut line);
            assert_eq!(line.len(), 56 + if digests.header { 8 } else { 0 });
            pdu.bhs[7] = 7;
            assert_eq!(Pdu::decode(&line, digests), Ok(Some((pdu, line.len()))));
            assert_eq!(Pdu::decode(&line[..line.len() - 1], digests), Ok(None));
            if digests.header {
                line[20] ^= 1;
                assert!(Pdu::decode(&line, digests).is_err());
            }
        }
    }

    #[test]
    fn serial_numbers_wrap() {
        assert!(is_before(0xffff_ffff, 3) && !is_before(3, 0xffff_ffff) && !is_before(5, 5));
    }
}
