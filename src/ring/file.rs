//! Files as the data plane needs them: how direct I/O must be aligned, who else has the file open.

use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::AsRawFd;

/// What direct I/O on a file asks for (statx, STATX_DIOALIGN; Linux 6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DioAlignment {
    /// Buffers must start at a multiple of this, in bytes.
    pub memory: u32,
    /// Offsets and lengths must be multiples of this, in bytes.
    pub offset: u32,
}

/// The alignment direct I/O needs on this file; `None` when the kernel does not tell or the file has no direct I/O.
pub fn direct_io_alignment(file: &File) -> Option<DioAlignment> {
    // SAFETY: `statx` is a structure of integers, for which zeros are a value.
    let mut answer: libc::statx = unsafe { std::mem::zeroed() };
    let (fd, mask) = (file.as_raw_fd(), libc::STATX_DIOALIGN);
    // SAFETY: the path is an empty C string, and the answer has the size that the kernel fills.
    let result = unsafe { libc::statx(fd, c"".as_ptr(), libc::AT_EMPTY_PATH, mask, &raw mut answer) };
    let (memory, offset) = (answer.stx_dio_mem_align, answer.stx_dio_offset_align);
    let known = result == 0 && answer.stx_mask & libc::STATX_DIOALIGN != 0 && memory != 0 && offset != 0;
    known.then_some(DioAlignment { memory, offset })
}

/// Take the file for this process: exclusive, or shared among readers (flock). Held until every descriptor of this
/// opening is closed. `Ok(false)` when someone else has it.
pub fn lock(file: &File, exclusive: bool) -> io::Result<bool> {
    let result = if exclusive { file.try_lock() } else { file.try_lock_shared() };
    match result {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Set a file's size in this thread: 0, or an errno value negated as completions have it.
pub(super) fn truncate(file: super::Fd, len_bytes: u64) -> i32 {
    let Ok(len) = libc::off_t::try_from(len_bytes) else { return -libc::EFBIG };
    // SAFETY: no memory is passed; a descriptor that is not open is an error.
    match unsafe { libc::ftruncate(file.0, len) } {
        0 => 0,
        _ => -io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_one_writer_or_many_readers() {
        let dir = tempfile::tempdir().unwrap();
        let open = || File::options().read(true).write(true).create(true).truncate(false).open(dir.path().join("f"));
        let (first, second, third) = (open().unwrap(), open().unwrap(), open().unwrap());
        assert!(lock(&first, true).unwrap());
        assert!(!lock(&second, true).unwrap() && !lock(&second, false).unwrap());
        drop(first);
        assert!(lock(&second, false).unwrap() && lock(&third, false).unwrap());
        assert!(!lock(&third, true).unwrap());
    }

    #[test]
    fn the_alignment_of_direct_io_is_a_power_of_two_or_unknown() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("f")).unwrap();
        if let Some(alignment) = direct_io_alignment(&file) {
            assert!(alignment.memory.is_power_of_two() && alignment.offset.is_power_of_two(), "{alignment:?}");
        }
        assert_eq!(direct_io_alignment(&File::open("/proc/self/status").unwrap()), None);
    }
}
