//! The two queues shared with the kernel and the one system call that moves them.

use std::io;
use std::os::fd::AsRawFd;

use io_uring::{EnterFlags, IoUring, squeue};

use super::probe::{self, Features, RingError};
use super::slots::Entry;
use super::{Errno, Nanos};

/// `IORING_REGISTER_RING_FDS` of io_uring_register(2).
const REGISTER_RING_FDS: libc::c_uint = 20;
/// `IORING_UNREGISTER_RING_FDS`.
const UNREGISTER_RING_FDS: libc::c_uint = 21;

/// `struct io_uring_rsrc_update`.
#[repr(C)]
struct RingFdUpdate {
    offset: u32,
    reserved: u32,
    data: u64,
}

/// `struct io_uring_getevents_arg`.
#[repr(C)]
struct WaitArgument {
    signal_mask: u64,
    signal_mask_bytes: u32,
    minimum_wait_us: u32,
    timespec: u64,
}

/// `struct __kernel_timespec`.
#[repr(C)]
struct KernelTimespec {
    seconds: i64,
    nanoseconds: i64,
}

/// How a call into the kernel may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KernelWait {
    /// Not at all.
    None,
    /// For one completion or this long.
    For(Nanos),
    /// For one completion.
    Completion,
}

pub(super) struct Kernel {
    ring: IoUring,
    /// The registered index of the ring, or its descriptor.
    enter_fd: i32,
    /// Always given: REGISTERED_RING, NO_IOWAIT.
    enter_flags: EnterFlags,
    /// There may be [`FILE_WORKERS_MAX`] threads.
    has_file_workers: bool,
}

/// Kernel threads that may work on files for a ring that has files which may hang: more than the commands of a session,
/// which may all be of one of those. Other rings keep what the kernel thinks right, which is few: where many threads
/// write to one file, all but one wait.
const FILE_WORKERS_MAX: u32 = 2 * crate::limits::COMMANDS_PER_SESSION_MAX;

impl Kernel {
    pub(super) fn new(features: &Features, submissions: u32, completions: u32) -> Result<Kernel, RingError> {
        let mut builder = features.builder();
        builder.setup_cqsize(completions.max(submissions * 2));
        let ring = builder.build(submissions).map_err(probe::setup_error)?;
        let (mut enter_fd, mut enter_flags) = (ring.as_raw_fd(), EnterFlags::empty());
        if features.no_iowait {
            enter_flags |= EnterFlags::NO_IOWAIT;
        }
        if features.registered_ring
            && let Some(index) = register_ring_fd(enter_fd)
        {
            enter_fd = index;
            enter_flags |= EnterFlags::REGISTERED_RING;
        }
        Ok(Kernel { ring, enter_fd, enter_flags, has_file_workers: false })
    }

    /// A file is used that may hang. What never answers keeps its kernel thread; the work of other files needs some
    /// too.
    #[inline]
    pub(super) fn allow_file_workers(&mut self) {
        if !std::mem::replace(&mut self.has_file_workers, true) {
            // A kernel that refuses has as many as it thinks right.
            let _ = self.ring.submitter().register_iowq_max_workers(&mut [FILE_WORKERS_MAX, 0]);
        }
    }

    pub(super) fn submitter(&self) -> io_uring::Submitter<'_> {
        self.ring.submitter()
    }

    #[cfg(test)]
    pub(super) fn is_registered(&self) -> bool {
        self.enter_flags.contains(EnterFlags::REGISTERED_RING)
    }

    /// Whether a submission fits, after handing those before to the kernel if need be.
    #[inline]
    pub(super) fn make_room(&mut self) -> bool {
        if !self.ring.submission().is_full() {
            return true;
        }
        let entered = self.enter(KernelWait::None);
        entered.is_ok() && !self.ring.submission().is_full()
    }

    /// Queue a submission; there must be room.
    ///
    /// # Safety
    /// All memory that the entry names stays valid, and unused by others where the kernel writes, until its last
    /// completion.
    #[inline]
    pub(super) unsafe fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: the caller's promise.
        let pushed = unsafe { self.ring.submission().push(entry) };
        assert!(pushed.is_ok(), "pushed to a full submission queue");
    }

    /// Completions are in the queue.
    #[inline]
    pub(super) fn ready(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    /// A call into the kernel would do something: submissions are queued, or completions wait to be brought in.
    #[inline]
    pub(super) fn has_work(&mut self) -> bool {
        let queue = self.ring.submission();
        !queue.is_empty() || queue.taskrun() || queue.cq_overflow()
    }

    /// Take completions into `entries`, as many as fit; their number.
    #[inline]
    pub(super) fn take(&mut self, entries: &mut [Entry]) -> usize {
        let queue = self.ring.completion();
        entries.iter_mut().zip(queue).fold(0, |count, (entry, raw)| {
            *entry = Entry { user_data: raw.user_data(), result: raw.result(), flags: raw.flags() };
            count + 1
        })
    }

    /// Hand queued submissions over, let the kernel finish what it can, and wait as told.
    pub(super) fn enter(&mut self, wait: KernelWait) -> Result<(), RingError> {
        let submit = self.ring.submission().len() as libc::c_uint;
        // Deferred work and overflown completions are brought in only by a call that asks for events.
        let flags = self.enter_flags | EnterFlags::GETEVENTS;
        let time = match wait {
            KernelWait::For(time) => time.0,
            KernelWait::None | KernelWait::Completion => 0,
        };
        let timespec =
            KernelTimespec { seconds: (time / 1_000_000_000) as i64, nanoseconds: (time % 1_000_000_000) as i64 };
        let timespec = (&raw const timespec).expose_provenance() as u64;
        let argument = WaitArgument { signal_mask: 0, signal_mask_bytes: 0, minimum_wait_us: 0, timespec };
        let (flags, pointer, size) = match wait {
            KernelWait::For(_) => (flags | EnterFlags::EXT_ARG, &raw const argument, size_of::<WaitArgument>()),
            KernelWait::None | KernelWait::Completion => (flags, std::ptr::null(), 0),
        };
        let minimum = libc::c_uint::from(wait != KernelWait::None);
        // SAFETY: the descriptor is our ring's, or its registered index with the flag that says so. The argument and
        // the time it points to live until the call returns. What the submissions name is kept valid by whoever pushed
        // them.
        let result = unsafe {
            libc::syscall(libc::SYS_io_uring_enter, self.enter_fd, submit, minimum, flags.bits(), pointer, size)
        };
        if result >= 0 {
            return Ok(());
        }
        match io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO) {
            // A signal or the time limit ended the wait; or the kernel wants completions taken (EBUSY) or is short of
            // memory for now (EAGAIN): what it did not take stays queued.
            libc::EINTR | libc::ETIME | libc::EBUSY | libc::EAGAIN => Ok(()),
            errno => Err(RingError::System { what: "io_uring_enter", errno: Errno(errno) }),
        }
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        if self.enter_flags.contains(EnterFlags::REGISTERED_RING) {
            // The registration keeps the ring alive beyond its descriptor, and a thread has few of them.
            let mut update = RingFdUpdate { offset: self.enter_fd.cast_unsigned(), reserved: 0, data: 0 };
            register_ring_call(self.ring.as_raw_fd(), UNREGISTER_RING_FDS, &mut update);
        }
    }
}

/// Have the kernel keep the ring's descriptor at hand for this thread; its index there.
fn register_ring_fd(ring: i32) -> Option<i32> {
    let mut update = RingFdUpdate { offset: u32::MAX, reserved: 0, data: u64::try_from(ring).ok()? };
    let registered = register_ring_call(ring, REGISTER_RING_FDS, &mut update);
    registered.then_some(update.offset.cast_signed())
}

fn register_ring_call(ring: i32, operation: libc::c_uint, update: &mut RingFdUpdate) -> bool {
    let count: libc::c_uint = 1;
    // SAFETY: one update is read and written, and is ours until the call returns.
    let result = unsafe { libc::syscall(libc::SYS_io_uring_register, ring, operation, &raw mut *update, count) };
    result == 1
}
