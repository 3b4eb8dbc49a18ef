//! The blocking boundary of control-plane work on a layer: what create, open, replay, check and resize need of a file.

use crate::crc32c::crc32c;

/// Why a storage operation failed. The text names the operation, the place and the system's reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StorageError {
    /// The operating system refused or failed.
    #[error("{0}")]
    Failed(String),
    /// No space is left where the file lives (also: quota, largest file size).
    #[error("no space is left for the file; free some or move the disk")]
    OutOfSpace,
    /// A read passed the end of the file.
    #[error("the file ends before byte {0}")]
    UnexpectedEnd(u64),
}

/// A file as create, open, replay and check see it. Calls block; none is made on a data path.
///
/// Duties of the implementation: reads and writes are complete or an error; a write past the end extends the file,
/// and bytes never written read as zeros; after `flush` everything written before, and the size, survive a power cut.
/// Duties of the caller: nobody else changes the file meanwhile.
pub trait Storage {
    /// The file's size in bytes.
    fn len_bytes(&mut self) -> Result<u64, StorageError>;
    /// Fill `into` from `offset_bytes`; [`StorageError::UnexpectedEnd`] when the file ends before that.
    fn read_at(&mut self, offset_bytes: u64, into: &mut [u8]) -> Result<(), StorageError>;
    /// Write all of `bytes` at `offset_bytes`.
    fn write_at(&mut self, offset_bytes: u64, bytes: &[u8]) -> Result<(), StorageError>;
    /// Make everything written, and the size, durable.
    fn flush(&mut self) -> Result<(), StorageError>;
    /// Set the size; new bytes read as zeros.
    fn set_len(&mut self, len_bytes: u64) -> Result<(), StorageError>;
    /// Have these bytes, which the file has, read as zeros. Where there may be many, an implementation does better than
    /// to write them.
    fn zero(&mut self, offset_bytes: u64, len_bytes: u64) -> Result<(), StorageError> {
        write_zeros(offset_bytes, len_bytes, |at, zeros| self.write_at(at, zeros))
    }
}

/// Write zeros to a range, piece by piece: `write` is given each piece's place and bytes.
pub fn write_zeros(
    offset_bytes: u64,
    len_bytes: u64,
    mut write: impl FnMut(u64, &[u8]) -> Result<(), StorageError>,
) -> Result<(), StorageError> {
    let nothing = vec![0; len_bytes.min(256 * 1024) as usize];
    let (mut at, end) = (offset_bytes, offset_bytes.saturating_add(len_bytes));
    while at < end {
        let len = (end - at).min(nothing.len() as u64);
        write(at, &nothing[..len as usize])?;
        at += len;
    }
    Ok(())
}

/// The file's length and checksums (CRC-32C) of these ranges (from, to), each in pieces of 1 MiB: whether two looks at
/// a file saw the same.
pub fn checksums(storage: &mut dyn Storage, ranges: &[(u64, u64)]) -> Result<Vec<u32>, StorageError> {
    let len_bytes = storage.len_bytes()?;
    let mut sums = vec![len_bytes as u32, (len_bytes >> 32) as u32];
    let mut bytes = vec![0; 1 << 20];
    for (from, to) in ranges {
        let mut at = *from;
        while at < *to {
            let part = &mut bytes[..(to - at).min(1 << 20) as usize];
            storage.read_at(at, part)?;
            sums.push(crc32c(part));
            at += part.len() as u64;
        }
    }
    Ok(sums)
}
