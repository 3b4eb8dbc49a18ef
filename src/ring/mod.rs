//! The boundary to the kernel: owned operations in, completions out.
//!
//! [`Ring`] has two implementations: [`uring`] (the kernel's io_uring) and `crate::sim` (in memory, seeded). The shard
//! is generic over it, so the code that is simulated is the code that runs.
//!
//! **Ownership.** An [`Op`] owns every buffer that the kernel may touch. [`Ring::submit`] moves it in; the
//! [`Completion`] moves it back. Nothing in safe code can lend memory to the kernel, and dropping a ring waits for what
//! is in flight (or leaks it on purpose), so no buffer is freed under the kernel's hands.
//!
//! **Keys.** The caller marks an operation with a [`Tag`], which comes back unchanged. The ring's own key ([`Token`])
//! carries a generation, so a stale or doubled completion trips an assertion instead of completing a stranger.
//!
//! **May know:** `mem`, `bounded` and the kernel. Nothing of iSCSI, SCSI or disks.
#![allow(unsafe_code)]

pub mod batch;
pub mod file;
mod fixed;
mod kernel;
pub mod net;
mod prepare;
pub mod probe;
mod sharing;
mod slots;
pub mod uring;
mod waker;

use std::fmt;
use std::net::SocketAddr;

use crate::mem::{Buf, Slice};

pub use batch::{BatchFull, SendBatch};
pub use probe::{FeatureLimit, Features, RingError};
pub use uring::{UringConfig, UringRing};
pub use waker::UringWaker;

/// A file or socket descriptor (in the simulator: a handle of the same shape). Copyable; who opened it closes it, a
/// socket that came from [`Op::Accept`] by [`Op::Close`] after everything on it has completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fd(pub i32);

/// What the caller wants to read on the completion: opaque to the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tag(pub u64);

/// The ring's key of one operation in flight: slot index and generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token(pub u64);

impl Window {
    /// The whole of a buffer.
    pub fn whole(buf: Buf) -> Window {
        let len = buf.len() as u32;
        Window { buf, at: 0, len }
    }

    /// Bytes `at .. at + len` of `buf`. The range must lie inside the buffer.
    pub fn part(buf: Buf, at: usize, len: usize) -> Window {
        assert!(at <= buf.len() && len <= buf.len() - at, "window {at}+{len} outside a buffer of {}", buf.len());
        Window { buf, at: at as u32, len: len as u32 }
    }

    /// The bytes of the window.
    pub fn bytes(&self) -> &[u8] {
        &self.buf[self.at as usize..][..self.len as usize]
    }

    /// The bytes of the window, to fill.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buf[self.at as usize..][..self.len as usize]
    }
}

/// Monotonic time in nanoseconds since an arbitrary start (the simulator's is virtual).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Nanos(pub u64);

/// A part of an owned buffer that the kernel may fill: bytes `at .. at + len` of `buf`.
#[derive(Debug)]
pub struct Window {
    /// The buffer, owned while the operation runs.
    pub buf: Buf,
    /// First byte to fill.
    pub at: u32,
    /// How many bytes at most.
    pub len: u32,
}

/// How [`Op::Allocate`] changes a file range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllocateMode {
    /// Reserve space and grow the file to cover the range; fresh space reads as zeros.
    Extend,
    /// Make the range read as zeros, keeping it allocated where the file system can.
    ZeroRange,
    /// Give the space back; the range reads as zeros and the size stays.
    PunchHole,
}

/// One operation, owning what it needs.
#[derive(Debug)]
pub enum Op {
    /// Accept connections; the completion's result is the new socket (close-on-exec, TCP_NODELAY; in blocking mode,
    /// since older kernels answer EAGAIN on a nonblocking one instead of waiting). Multishot where the kernel has it
    /// (`Completion::more`), otherwise one connection for each submission: submit again whenever `more` is false.
    Accept {
        /// A listening socket.
        listener: Fd,
    },
    /// Receive bytes: first into `bulk` when there is one, the rest into `stream`. The result is the total; 0 is end
    /// of stream. A short count is normal.
    Recv {
        /// A connected socket.
        socket: Fd,
        /// Placed payload, filled first.
        bulk: Option<Window>,
        /// The connection's receive buffer.
        stream: Window,
    },
    /// One gathered send of everything in the batch. The result may be short; the caller advances the batch and submits
    /// the rest.
    ///
    /// A zero-copy send that sent something completes twice: first without its batch and with `more` set, as soon as
    /// the socket has taken the bytes, so that the next send of that socket may be submitted (with another batch); then
    /// finally, with the same count, once the kernel needs the buffers no longer. A send that was not done with zero
    /// copy completes once.
    Send {
        /// A connected socket.
        socket: Fd,
        /// Headers and payload slices.
        batch: SendBatch,
        /// Ask for zero-copy transmission where the kernel has it.
        zero_copy: bool,
    },
    /// Read file bytes. The result may be short at end of file.
    Read {
        /// An open file.
        file: Fd,
        /// Byte offset in the file.
        offset_bytes: u64,
        /// Where the bytes go.
        into: Window,
    },
    /// Write file bytes; `durable` makes data and the metadata needed to read it back stable before completion
    /// (RWF_DSYNC).
    Write {
        /// An open file.
        file: Fd,
        /// Byte offset in the file.
        offset_bytes: u64,
        /// The bytes, frozen.
        from: Slice,
        /// Write through to stable storage.
        durable: bool,
    },
    /// Make all completed writes of the file, and the metadata needed to read them back, durable (fdatasync).
    Sync {
        /// An open file.
        file: Fd,
    },
    /// Change a file range (fallocate).
    Allocate {
        /// An open file.
        file: Fd,
        /// What to do with the range.
        mode: AllocateMode,
        /// First byte.
        offset_bytes: u64,
        /// Length in bytes.
        len_bytes: u64,
    },
    /// Have a range of one file hold what a range of another (or of the same, where they do not meet) holds now, by
    /// sharing its blocks (FICLONERANGE), or, where another machine has the files, by its copying them
    /// (copy_file_range). The ring moves no bytes: where the file system cannot do it, or everything that could wait
    /// for it is taken (EAGAIN), the completion is an error, the bytes of the range are as before or as they were to
    /// be, and the caller copies. Like a write it is durable with the next [`Op::Sync`] of `file`. It cannot be
    /// cancelled.
    Share {
        /// The open file that has the bytes.
        from: Fd,
        /// First byte there.
        from_bytes: u64,
        /// The open file that is to have them, on the same file system.
        file: Fd,
        /// First byte there. Both must be multiples of the file system's block, and so must the length.
        offset_bytes: u64,
        /// Length in bytes.
        len_bytes: u64,
    },
    /// Set the file's size (ftruncate).
    Truncate {
        /// An open file.
        file: Fd,
        /// The new size in bytes.
        len_bytes: u64,
    },
    /// Shut both directions of a socket down, so that pending receives and sends complete. What the socket has taken
    /// still goes to the peer, as long as that takes some of it every ten seconds.
    Shutdown {
        /// A connected socket.
        socket: Fd,
    },
    /// Close a socket. Only after every other operation on it has completed.
    Close {
        /// The socket.
        fd: Fd,
    },
    /// Complete after `after` has passed, with `Ok(0)`.
    Timeout {
        /// Relative time in nanoseconds.
        after: Nanos,
    },
}

/// An operation's end (or, with `more`, one of several results of a multishot operation).
#[derive(Debug)]
pub struct Completion {
    /// The caller's mark.
    pub tag: Tag,
    /// The ring's key, valid until `more` is false.
    pub token: Token,
    /// The operation with its buffers; `None` while `more` is set.
    pub op: Option<Op>,
    /// Bytes, descriptor or zero; or the error.
    pub result: Result<u32, Errno>,
    /// Further completions of this operation will come.
    pub more: bool,
    /// A zero-copy send for which the kernel copied after all.
    pub copied: bool,
}

/// An errno value from the kernel, positive (as in `libc::EIO`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&std::io::Error::from_raw_os_error(self.0), f)
    }
}

/// How long [`Ring::enter`] may wait for a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Not at all: publish what is queued and pick up what is done.
    Poll,
    /// Until something completes, the ring is woken, or this moment is reached.
    Until(Nanos),
    /// Until something completes or the ring is woken.
    Forever,
}

/// Wakes a ring that waits in [`Ring::enter`], from any thread. Wakes are not counted: many may become one.
pub trait Wake: Clone + Send + Sync + 'static {
    /// Make the ring's current or next `enter` return.
    fn wake(&self);
}

/// Owned operations in, completions out. One ring belongs to one thread.
///
/// Duties of the implementation: every submitted operation completes exactly once with `more == false`; buffers come
/// back with it; operations may complete in any order. Duties of the caller: no two receives and no two sends at once
/// on one socket (a zero-copy send that waits only for its buffers does not count); a socket is closed only after all
/// its operations have completed; after every return of [`Ring::enter`], look at whatever the waker may have announced.
pub trait Ring {
    /// Wakes this ring from other threads.
    type Waker: Wake;

    /// Queue an operation. `Err` gives the operation back when every slot is in use: retry after completions.
    fn submit(&mut self, tag: Tag, op: Op) -> Result<Token, Op>;

    /// Ask for an operation to end early. It still completes (with `ECANCELED`, or its result if it was faster).
    fn cancel(&mut self, token: Token);

    /// Publish queued operations to the kernel and wait as told. Returns at once when completions are ready.
    fn enter(&mut self, wait: Wait) -> Result<(), RingError>;

    /// The next completion that is ready, if any.
    fn reap(&mut self) -> Option<Completion>;

    /// The time now.
    fn now(&self) -> Nanos;

    /// A waker for other threads.
    fn waker(&self) -> Self::Waker;

    /// Operations submitted and not yet finally completed.
    fn in_flight(&self) -> usize;

    /// Operations that can still be submitted before `submit` refuses.
    fn slots_free(&self) -> usize;

    /// Local and peer address of an accepted socket.
    fn addresses(&self, socket: Fd) -> Option<(SocketAddr, SocketAddr)>;
}
