//! The bytes of a ROD token (SPC-4 clauses 5.17.6.4 and 5.17.6.5, SBC-4 clauses 4.28.4 and 6.7).
//!
//! What a token stands for is not in it: it says which disk made it and under which number, and has 256 random bits;
//! whether it is valid is known by its digest only.

use sha2::{Digest, Sha256};

use super::{be16, be32, be64};
use crate::scsi::sense::{Sense, SenseCode};
use crate::scsi::unit::Unit;

/// Bytes of a token.
pub const TOKEN_BYTES: usize = 512;

/// ROD TOKEN LENGTH: what follows the header.
const LENGTH: u16 = 0x1f8;

/// ROD TYPE values.
pub(super) const DEFAULT: u32 = 0x0080_0000;
pub(super) const CHANGE_VULNERABLE: u32 = 0x0080_0001;
pub(super) const ANY: u32 = 0x0080_ffff;
pub(super) const ZERO: u32 = 0xffff_0001;

/// Where the target's name begins in a token, and the random bits, which are its end.
const TARGET_AT: usize = 128;
const SECRET_AT: usize = TOKEN_BYTES - 32;

/// The longest SCSI name string of a target: 223 bytes, a zero, and padding.
const NAME_BYTES_MAX: usize = 224;
const _: () = assert!(TARGET_AT + 4 + NAME_BYTES_MAX <= SECRET_AT);

/// What a token that is presented may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// As many zeros as anybody wants.
    Zero,
    /// One that a disk may have made: COPY MANAGER ROD TOKEN IDENTIFIER says which.
    Made {
        /// COPY MANAGER ROD TOKEN IDENTIFIER.
        identifier: u64,
    },
}

impl TokenKind {
    /// Look at a token that is presented.
    pub fn of(token: &[u8; TOKEN_BYTES]) -> Result<Self, Sense> {
        if be16(token, 6) != LENGTH {
            return Err(Sense::new(SenseCode::INVALID_TOKEN_LENGTH));
        }
        match be32(token, 0) {
            ZERO => Ok(Self::Zero),
            CHANGE_VULNERABLE => Ok(Self::Made { identifier: be64(token, 8) }),
            _ => Err(Sense::new(SenseCode::INVALID_TOKEN_UNSUPPORTED_TYPE)),
        }
    }

    /// Whether a token may be asked for with this ROD TYPE. It is a change vulnerable one then.
    pub(super) fn can_be_created_as(rod_type: u32) -> bool {
        matches!(rod_type, DEFAULT | CHANGE_VULNERABLE | ANY)
    }
}

/// A token: of `len_bytes` bytes of this unit, under a number that no other token has, with `secret`. `target` is the
/// target through which it was made.
pub(super) fn write(
    unit: &Unit,
    target: &str,
    identifier: u64,
    len_bytes: u64,
    secret: &[u8; 32],
) -> [u8; TOKEN_BYTES] {
    let mut token = [0; TOKEN_BYTES];
    token[0..4].copy_from_slice(&CHANGE_VULNERABLE.to_be_bytes());
    token[6..8].copy_from_slice(&LENGTH.to_be_bytes());
    token[8..16].copy_from_slice(&identifier.to_be_bytes());
    // CREATOR LOGICAL UNIT DESCRIPTOR: binary, NAA.
    token[16..24].copy_from_slice(&[super::extended::IDENTIFICATION_DESCRIPTOR, 0, 0, 0, 1, 3, 0, 16]);
    token[24..40].copy_from_slice(&unit.naa_identifier());
    token[45..48].copy_from_slice(&unit.block_length().bytes().to_be_bytes()[1..]);
    // NUMBER OF BYTES REPRESENTED has sixteen bytes.
    token[56..64].copy_from_slice(&len_bytes.to_be_bytes());
    // Device type specific data: as READ CAPACITY(16).
    token[96..100].copy_from_slice(&unit.block_length().bytes().to_be_bytes());
    token[101] = unit.physical_block_exponent();
    token[102] = if unit.thin_provisioned() { 0xc0 } else { 0 };
    // TARGET DEVICE DESCRIPTOR: iSCSI, UTF-8, of the target device, a SCSI name string.
    let padded = (target.len() + 1).next_multiple_of(4).min(NAME_BYTES_MAX);
    let name = &target.as_bytes()[..target.len().min(padded - 1)];
    token[TARGET_AT..TARGET_AT + 4].copy_from_slice(&[0x53, 0xa8, 0, padded as u8]);
    token[TARGET_AT + 4..TARGET_AT + 4 + name.len()].copy_from_slice(name);
    token[SECRET_AT..].copy_from_slice(secret);
    token
}

/// What is kept of a token to know it again.
pub(super) fn digest(token: &[u8; TOKEN_BYTES]) -> [u8; 32] {
    Sha256::digest(token).into()
}
