//! CRC-32C (Castagnoli): the digest of iSCSI (RFC 7143 section 13.1) and of VHDX structures.
//!
//! A leaf that every module may use. The work is done by `crc-fast`; the tests compare it with the `crc32c` crate.

use crc_fast::{CrcAlgorithm, Digest};

/// The CRC-32C of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// A CRC-32C computed over several pieces.
pub struct Crc32c(Digest);

impl Crc32c {
    /// An empty digest.
    pub fn new() -> Self {
        Self(Digest::new(CrcAlgorithm::Crc32Iscsi))
    }

    /// Append `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The value over everything appended so far.
    pub fn value(&self) -> u32 {
        self.0.finalize() as u32
    }
}

impl Default for Crc32c {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7143 appendix A.4's digest examples, and the other implementation on every length up to two pages.
    #[test]
    fn agrees_with_the_standard_and_another_implementation() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        let bytes: Vec<u8> = (0..8192u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for len in 0..bytes.len() {
            assert_eq!(crc32c(&bytes[..len]), ::crc32c::crc32c(&bytes[..len]));
        }
        let mut pieces = Crc32c::new();
        for piece in bytes.chunks(77) {
            pieces.update(piece);
        }
        assert_eq!(pieces.value(), crc32c(&bytes));
    }
}
