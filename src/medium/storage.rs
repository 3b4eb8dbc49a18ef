//! A file as the format engines see it while they create, open or replay: blocking, through the page cache.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, fallocate};

use crate::blocks::write_zeros;
use crate::vhdx::{Storage, StorageError};

/// More zeros than these are not written: a descriptor of a log may ask for as many as the file is long.
const ZEROS_WRITTEN_MAX: u64 = 4 << 20;

/// Blocking access to an open file.
pub(super) struct FileStorage<'a>(pub(super) &'a File);

impl Storage for FileStorage<'_> {
    fn len_bytes(&mut self) -> Result<u64, StorageError> {
        self.0.metadata().map(|metadata| metadata.len()).map_err(|error| failed("cannot get the size", &error))
    }

    fn read_at(&mut self, offset_bytes: u64, into: &mut [u8]) -> Result<(), StorageError> {
        self.0.read_exact_at(into, offset_bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => StorageError::UnexpectedEnd(offset_bytes.saturating_add(into.len() as u64)),
            _ => failed(&format!("cannot read {} bytes at {offset_bytes}", into.len()), &error),
        })
    }

    fn write_at(&mut self, offset_bytes: u64, bytes: &[u8]) -> Result<(), StorageError> {
        self.0
            .write_all_at(bytes, offset_bytes)
            .map_err(|error| failed(&format!("cannot write {} bytes at {offset_bytes}", bytes.len()), &error))
    }

    fn flush(&mut self) -> Result<(), StorageError> {
        self.0.sync_all().map_err(|error| failed("cannot flush", &error))
    }

    fn set_len(&mut self, len_bytes: u64) -> Result<(), StorageError> {
        self.0.set_len(len_bytes).map_err(|error| failed(&format!("cannot set the size to {len_bytes}"), &error))
    }

    fn zero(&mut self, offset_bytes: u64, len_bytes: u64) -> Result<(), StorageError> {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if len_bytes > ZEROS_WRITTEN_MAX && fallocate(self.0, hole, offset_bytes, len_bytes).is_ok() {
            return Ok(());
        }
        // There is little to write, or the file system makes no holes.
        write_zeros(offset_bytes, len_bytes, |at, zeros| self.write_at(at, zeros))
    }
}

fn failed(what: &str, error: &io::Error) -> StorageError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            StorageError::OutOfSpace
        }
        _ => StorageError::Failed(format!("{what}: {error}")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn many_zeros_take_neither_time_nor_space() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 8192], 4096).unwrap();
        file.set_len(1 << 40).unwrap();
        let mut storage = FileStorage(&file);
        storage.zero(6000, (1 << 40) - 6000).unwrap();
        storage.zero(4096, 100).unwrap();
        let mut found = [1; 16384];
        storage.read_at(0, &mut found).unwrap();
        let expected: Vec<u8> = (0..16384).map(|at| if (4196..6000).contains(&at) { 7 } else { 0 }).collect();
        assert!(found[..] == expected[..]);
        assert!(file.metadata().unwrap().blocks() * 512 < 1 << 20 && storage.len_bytes() == Ok(1 << 40));
    }
}
