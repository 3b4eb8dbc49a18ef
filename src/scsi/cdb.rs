//! Reading fields of a command descriptor block (SPC-5 clause 4.2). Offsets are the standards' byte numbers.

/// A CDB in 16 bytes; what lies beyond the command's own length is never looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cdb<'a>(pub(super) &'a [u8; 16]);

impl Cdb<'_> {
    pub(super) fn byte(self, offset: usize) -> u8 {
        self.0[offset]
    }

    /// The bit `bit` (7 is the most significant) of a byte.
    pub(super) fn bit(self, offset: usize, bit: u8) -> bool {
        self.0[offset] >> bit & 1 != 0
    }

    pub(super) fn be16(self, offset: usize) -> u16 {
        u16::from_be_bytes([self.0[offset], self.0[offset + 1]])
    }

    pub(super) fn be32(self, offset: usize) -> u32 {
        u32::from_be_bytes([self.0[offset], self.0[offset + 1], self.0[offset + 2], self.0[offset + 3]])
    }

    pub(super) fn be64(self, offset: usize) -> u64 {
        u64::from(self.be32(offset)) << 32 | u64::from(self.be32(offset + 4))
    }
}
