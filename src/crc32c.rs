//! CRC-32C (Castagnoli): the digest of iSCSI (RFC 7143 section 13.1) and of VHDX structures.
//!
//! A leaf that every module may use. The work is done by `crc-fast`; the tests compare it with the `crc32c` crate.

use crc_fast::{CrcAlgorithm, Digest};

/// The CRC-32C of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// A CRC-32C computed over several pieces.
#[derive(Clone, Copy, Debug, Default)]
pub struct Crc32c(u32);

impl Crc32c {
    /// The digest of no bytes.
    #[inline]
    pub const fn new() -> Self {
        Self(0)
    }

    /// Go on behind bytes whose CRC-32C is `value`.
    #[inline]
    pub const fn continuing(value: u32) -> Self {
        Self(value)
    }

    /// Append `bytes`.
    #[inline]
    pub fn update(&mut self, bytes: &[u8]) {
        if self.0 == 0 {
            // The register is as at the beginning, which needs less to be set up.
            self.0 = crc32c(bytes);
        } else if !bytes.is_empty() {
            let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc32Iscsi, u64::from(!self.0));
            digest.update(bytes);
            self.0 = digest.finalize() as u32;
        }
    }

    /// The value over everything appended so far.
    #[inline]
    pub const fn value(&self) -> u32 {
        self.0
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
        for cut in 0..600 {
            let mut rest = Crc32c::continuing(crc32c(&bytes[..cut]));
            rest.update(&[]);
            rest.update(&bytes[cut..]);
            assert_eq!(rest.value(), crc32c(&bytes));
        }
    }
}
