//! Copy offload: EXTENDED COPY (SPC-4 clauses 5.17, 6.4, 6.5) and tokens (SBC-4 clauses 5.12, 5.25, 5.59: what Windows
//! calls ODX).
//!
//! The engine reads parameter lists, says where segments lie, writes tokens and replies, and keeps which tokens are
//! valid ([`TokenTable`]). Which units an initiator may name, and the copying itself, are its caller's.
//!
//! **Tokens.** A token is 512 bytes with 256 bits that nobody can guess; whoever has it may copy from it, as the
//! standard means it to be. Tokens are of the type *point in time copy - change vulnerable* (00800001h): one that may
//! be asked for as "default" or "any" too. The data is not kept anywhere; instead a token is revoked before the first
//! byte of what it stands for is written, so that it never yields anything but the data of its moment. Windows falls
//! back to an ordinary copy then. The well-known zero token (FFFF0001h) is taken, and by the standard never given.
//!
//! | file | subject |
//! |---|---|
//! | `commands` | the rows of the command table |
//! | `extended` | parameter lists of EXTENDED COPY |
//! | `ranges` | parameter lists of POPULATE TOKEN and WRITE USING TOKEN |
//! | `token` | the bytes of a token |
//! | `tokens` | which tokens of a disk are valid |
//! | `status` | replies about copies |
//! | `third_party` | limits: page 8Fh, RECEIVE COPY OPERATING PARAMETERS |

pub(super) mod commands;
pub mod extended;
pub mod ranges;
pub mod status;
pub(super) mod third_party;
pub mod token;
pub mod tokens;

pub use commands::{CopyIn, CopyOut};
pub use extended::{Cscd, ExtendedCopy, ListIdUsage, Placement, Segment, SegmentKind};
pub use ranges::{PopulateToken, Ranges, WriteUsingToken};
pub use status::{CopyState, CopyStatus};
pub use token::{TOKEN_BYTES, TokenKind};
pub use tokens::{NewToken, TokenKey, TokenTable};

/// The 16-bit big-endian number at `at`; the caller has checked that it is there.
fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from(be16(bytes, at)) << 16 | u32::from(be16(bytes, at + 2))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from(be32(bytes, at)) << 32 | u64::from(be32(bytes, at + 4))
}

/// The first byte of `bytes[range]` that is not zero: reserved fields are refused when somebody means something by
/// them.
fn first_nonzero(bytes: &[u8], range: std::ops::Range<usize>) -> Option<usize> {
    range.into_iter().find(|at| bytes[*at] != 0)
}

#[cfg(test)]
mod tests;
