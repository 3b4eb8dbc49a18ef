//! A file as the format engines see it while they create, open or replay: blocking, through the page cache.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::vhdx::{Storage, StorageError};

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
}

fn failed(what: &str, error: &io::Error) -> StorageError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            StorageError::OutOfSpace
        }
        _ => StorageError::Failed(format!("{what}: {error}")),
    }
}
