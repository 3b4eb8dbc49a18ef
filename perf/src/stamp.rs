//! Blocks that say what they are: every 512 bytes carry their place, their generation, their writer and a checksum, so
//! that whatever is read back can be told apart: right, old, torn, or somebody else's.

/// Bytes of one stamped block.
pub const BLOCK_LEN: usize = 512;

const MAGIC: u64 = 0x4c55_4e41_5354_4d50;

/// What a stamped block says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The block's number on the logical unit, in blocks of 512 bytes.
    pub block: u64,
    /// Counts the writes of one writer; 0 is never written.
    pub generation: u32,
    /// Who wrote it.
    pub writer: u32,
}

/// What stands in 512 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// All zeros: never written.
    Zeros,
    /// A whole stamped block.
    Stamped(Stamp),
    /// A stamped block's head, but not its checksum: part old, part new.
    Torn(Stamp),
    /// Nothing that a writer of ours made.
    Foreign,
}

/// Fill these 512 bytes.
pub fn write(bytes: &mut [u8], stamp: Stamp) {
    bytes[0..8].copy_from_slice(&MAGIC.to_le_bytes());
    bytes[8..16].copy_from_slice(&stamp.block.to_le_bytes());
    bytes[16..20].copy_from_slice(&stamp.generation.to_le_bytes());
    bytes[20..24].copy_from_slice(&stamp.writer.to_le_bytes());
    let mut word = stamp.block ^ u64::from(stamp.generation) << 32 ^ u64::from(stamp.writer);
    for chunk in bytes[24..504].chunks_exact_mut(8) {
        word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    bytes[504..508].fill(0);
    let crc = crc32c::crc32c(&bytes[..508]);
    bytes[508..512].copy_from_slice(&crc.to_le_bytes());
}

/// Say what these 512 bytes are.
pub fn read(bytes: &[u8]) -> Content {
    let word = |at: usize| bytes[at..at + 8].iter().rev().fold(0u64, |value, b| value << 8 | u64::from(*b));
    let half = |at: usize| word(at) as u32;
    if word(0) != MAGIC {
        return if bytes.iter().all(|b| *b == 0) { Content::Zeros } else { Content::Foreign };
    }
    let stamp = Stamp { block: word(8), generation: half(16), writer: half(20) };
    let crc = u32::from_le_bytes([bytes[508], bytes[509], bytes[510], bytes[511]]);
    if crc32c::crc32c(&bytes[..508]) == crc { Content::Stamped(stamp) } else { Content::Torn(stamp) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_told_apart_from_zeros_from_a_torn_one_and_from_strangers() {
        let stamp = Stamp { block: 77, generation: 3, writer: 9 };
        let mut bytes = [0; BLOCK_LEN];
        assert_eq!(read(&bytes), Content::Zeros);
        write(&mut bytes, stamp);
        assert_eq!(read(&bytes), Content::Stamped(stamp));
        let mut newer = [0; BLOCK_LEN];
        write(&mut newer, Stamp { generation: 4, ..stamp });
        bytes[256..].copy_from_slice(&newer[256..]);
        assert_eq!(read(&bytes), Content::Torn(stamp));
        assert_eq!(read(&[1; BLOCK_LEN]), Content::Foreign);
    }
}
