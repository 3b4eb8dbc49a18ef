//! Files as the data plane needs them: how direct I/O must be aligned, who else has the file open, whether somebody
//! else than this kernel answers for them.

use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};

/// Descriptors that [`note_remote`] can note. The data plane's files are opened long before there are so many.
const NOTED_MAX: usize = 1 << 16;

/// By descriptor: its file is on a file system of [`REMOTE`].
static NOTED: [AtomicU64; NOTED_MAX / 64] = [const { AtomicU64::new(0) }; NOTED_MAX / 64];

/// Magic numbers (statfs(2)) of file systems where another program or machine answers: FUSE, NFS, SMB (three), Ceph,
/// 9P, AFS (two), Lustre, GPFS. A read of a FUSE file waits for its answer within io_uring_enter (seen on Linux 6.18).
const REMOTE: [u32; 11] = [
    0x6573_5546,
    0x6969,
    0x517b,
    0xff53_4d42,
    0xfe53_4d42,
    0x00c3_6400,
    0x0102_1997,
    0x5346_414f,
    0x6b41_4653,
    0x0bd0_0bd0,
    0x4750_4653,
];

/// Note whether another program or machine answers for this file, as it may never do: reads and writes of it then go
/// to the kernel's worker threads at once, so that a shard does not wait in its submission. Called for every file that
/// is opened for a ring; one that is not noted is as before, and at worst slower or waited for.
pub fn note_remote(file: &File) {
    // SAFETY: `statfs` is a structure of integers, for which zeros are a value.
    let mut answer: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, and the answer has the size that the kernel fills.
    let known = unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut answer) } == 0;
    note(super::Fd(file.as_raw_fd()), known && REMOTE.contains(&(answer.f_type as u32)));
}

/// Undo O_NONBLOCK of an opening. io_uring takes it for a promise that nothing on the file waits.
pub fn clear_nonblocking(file: &File) -> io::Result<()> {
    let fd = file.as_raw_fd();
    // SAFETY: no memory is passed; the descriptor is open.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    // SAFETY: the same.
    if flags < 0 || unsafe { libc::fcntl(fd, libc::F_SETFL, flags & !libc::O_NONBLOCK) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn note(fd: super::Fd, is_remote: bool) {
    let fd = fd.0 as usize;
    let Some(word) = NOTED.get(fd / 64) else { return };
    if is_remote {
        word.fetch_or(1 << (fd % 64), Ordering::Relaxed);
    } else {
        word.fetch_and(!(1 << (fd % 64)), Ordering::Relaxed);
    }
}

/// What was noted of this descriptor.
#[inline]
pub(super) fn is_remote(fd: super::Fd) -> bool {
    let fd = fd.0 as usize;
    NOTED.get(fd / 64).is_some_and(|word| word.load(Ordering::Relaxed) >> (fd % 64) & 1 == 1)
}

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
    fn a_descriptor_is_noted_for_the_file_that_it_is_now() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::options().read(true).write(true).create_new(true).open(dir.path().join("f")).unwrap();
        let fd = crate::ring::Fd(file.as_raw_fd());
        note(fd, true);
        assert!(is_remote(fd) && !is_remote(crate::ring::Fd(-1)) && !is_remote(crate::ring::Fd(i32::MAX)));
        note_remote(&file);
        assert!(!is_remote(fd), "a temporary folder is on a file system of this machine");
    }

    #[test]
    fn nonblocking_is_undone() {
        use std::os::unix::fs::OpenOptionsExt;
        let dir = tempfile::tempdir().unwrap();
        let mut options = File::options();
        let file =
            options.write(true).create(true).truncate(true).custom_flags(libc::O_NONBLOCK).open(dir.path().join("f"));
        let file = file.unwrap();
        clear_nonblocking(&file).unwrap();
        let flags = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).unwrap();
        let flags = flags.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
        assert_eq!(i32::from_str_radix(flags, 8).unwrap() & libc::O_NONBLOCK, 0, "{flags}");
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
