//! From an owned operation to the kernel's submission entry.

use io_uring::{Submitter, opcode, squeue, types};

use super::file::is_remote;
use super::fixed::FixedBuffers;
use super::probe::Features;
use super::slots::Lifetime;
use super::{AllocateMode, Fd, Op, SendBatch, Window};
use crate::mem::Slice;

/// `IORING_SEND_ZC_REPORT_USAGE`: the notification says whether the kernel copied.
const SEND_ZC_REPORT_USAGE: u16 = 1 << 3;

/// What a slot keeps in place for the kernel beside the buffers. It is read at submission; that of a `recvmsg` is
/// written to at completion.
pub(super) struct Headers {
    message: libc::msghdr,
    windows: [libc::iovec; 2],
    time: types::Timespec,
}

impl Headers {
    pub(super) fn new() -> Headers {
        const NO_BYTES: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        // SAFETY: `msghdr` is integers and pointers, for which zeros are a value.
        let message = unsafe { std::mem::zeroed() };
        Headers { message, windows: [NO_BYTES; 2], time: types::Timespec::new() }
    }
}

/// Whether somebody else than this kernel carries an operation out, and may never do so.
#[inline]
pub(super) fn may_hang(op: &Op) -> bool {
    matches!(op, Op::Read { file, .. } | Op::Write { file, .. } if is_remote(*file))
}

/// How an operation will end on a ring with these features.
#[inline]
pub(super) fn lifetime(op: &Op, features: &Features) -> Lifetime {
    match op {
        Op::Accept { .. } if features.multishot_accept => Lifetime::Multishot,
        Op::Send { zero_copy: true, .. } if features.zero_copy_send => Lifetime::ZeroCopy,
        _ => Lifetime::Single,
    }
}

/// The submission entry of an operation, without its key; `None` for one that the ring carries out itself. The entry
/// names memory that belongs to `op` and to `headers`.
#[inline]
pub(super) fn entry(
    op: &mut Op,
    headers: &mut Headers,
    fixed: &mut FixedBuffers,
    features: &Features,
    submitter: &Submitter<'_>,
) -> Option<squeue::Entry> {
    Some(match op {
        Op::Recv { socket, bulk, stream } => recv(*socket, bulk.as_mut(), stream, headers),
        Op::Send { socket, batch, zero_copy } => send(*socket, batch, *zero_copy && features.zero_copy_send, headers),
        Op::Read { file, offset_bytes, into } => {
            let (fd, buf) = (types::Fd(file.0), start_of(into));
            let entry = match fixed.of_buf(&into.buf, submitter) {
                Some(index) => opcode::ReadFixed::new(fd, buf, into.len, index).offset(*offset_bytes).build(),
                None => opcode::Read::new(fd, buf, into.len).offset(*offset_bytes).build(),
            };
            off_thread(*file, entry)
        }
        Op::Write { file, offset_bytes, from, durable } => {
            let index = fixed.of_slice(from, submitter);
            off_thread(*file, write(*file, *offset_bytes, from, *durable, index))
        }
        Op::Accept { listener } => {
            let (fd, flags) = (types::Fd(listener.0), libc::SOCK_CLOEXEC);
            if features.multishot_accept {
                opcode::AcceptMulti::new(fd).flags(flags).build()
            } else {
                opcode::Accept::new(fd, std::ptr::null_mut(), std::ptr::null_mut()).flags(flags).build()
            }
        }
        Op::Sync { file } => opcode::Fsync::new(types::Fd(file.0)).flags(types::FsyncFlags::DATASYNC).build(),
        Op::Allocate { file, mode, offset_bytes, len_bytes } => {
            let mode = match mode {
                AllocateMode::Extend => 0,
                AllocateMode::ZeroRange => libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
                AllocateMode::PunchHole => libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
            };
            opcode::Fallocate::new(types::Fd(file.0), *len_bytes).offset(*offset_bytes).mode(mode).build()
        }
        Op::Truncate { file, len_bytes } if features.truncate => {
            opcode::Ftruncate::new(types::Fd(file.0), *len_bytes).build()
        }
        // The kernel would hand a shutdown to a worker thread, which costs more than doing it here.
        Op::Truncate { .. } | Op::Shutdown { .. } | Op::Share { .. } => return None,
        Op::Close { fd } => opcode::Close::new(types::Fd(fd.0)).build(),
        Op::Timeout { after } => {
            let (seconds, nanoseconds) = (after.0 / 1_000_000_000, after.0 % 1_000_000_000);
            headers.time = types::Timespec::new().sec(seconds).nsec(nanoseconds as u32);
            opcode::Timeout::new(&raw const headers.time).build()
        }
    })
}

/// An operation of a file that may never answer is handed to a worker thread at once, and the submission does not wait.
#[inline]
fn off_thread(file: Fd, entry: squeue::Entry) -> squeue::Entry {
    if is_remote(file) { entry.flags(squeue::Flags::ASYNC) } else { entry }
}

#[inline]
fn recv(socket: Fd, bulk: Option<&mut Window>, stream: &mut Window, headers: &mut Headers) -> squeue::Entry {
    let fd = types::Fd(socket.0);
    let Some(bulk) = bulk else {
        return opcode::Recv::new(fd, start_of(stream), stream.len).build();
    };
    headers.windows =
        [bulk, stream].map(|window| libc::iovec { iov_base: start_of(window).cast(), iov_len: window.len as usize });
    headers.message.msg_iov = headers.windows.as_mut_ptr();
    headers.message.msg_iovlen = headers.windows.len() as _;
    headers.message.msg_controllen = 0;
    opcode::RecvMsg::new(fd, &raw mut headers.message).build()
}

#[inline]
fn send(socket: Fd, batch: &mut SendBatch, zero_copy: bool, headers: &mut Headers) -> squeue::Entry {
    let fd = types::Fd(socket.0);
    let flags = (libc::MSG_WAITALL | libc::MSG_NOSIGNAL) as u32;
    let segments = batch.iovecs();
    if let ([one], false) = (&*segments, zero_copy) {
        let len = u32::try_from(one.iov_len).expect("a segment lies in a buffer of at most 1 MiB");
        return opcode::Send::new(fd, one.iov_base.cast(), len).flags(flags as i32).build();
    }
    headers.message.msg_iov = segments.as_mut_ptr();
    headers.message.msg_iovlen = segments.len() as _;
    headers.message.msg_controllen = 0;
    let message = &raw const headers.message;
    if zero_copy {
        opcode::SendMsgZc::new(fd, message).ioprio(SEND_ZC_REPORT_USAGE).flags(flags).build()
    } else {
        opcode::SendMsg::new(fd, message).flags(flags).build()
    }
}

#[inline]
fn write(file: Fd, offset_bytes: u64, from: &Slice, durable: bool, fixed_index: Option<u16>) -> squeue::Entry {
    let (fd, buf, len) = (types::Fd(file.0), from.address(), from.len() as u32);
    let flags = if durable { libc::RWF_DSYNC } else { 0 };
    match fixed_index {
        Some(index) => opcode::WriteFixed::new(fd, buf, len, index).offset(offset_bytes).rw_flags(flags).build(),
        None => opcode::Write::new(fd, buf, len).offset(offset_bytes).rw_flags(flags as _).build(),
    }
}

/// The address the kernel fills from; checks that the window lies in its buffer, which the kernel cannot.
#[inline]
fn start_of(window: &mut Window) -> *mut u8 {
    window.bytes_mut().as_mut_ptr()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::mem::{Arena, ArenaConfig};

    /// The per-operation flags of an entry: the eighth word of `struct io_uring_sqe`.
    fn operation_flags(entry: squeue::Entry) -> u32 {
        const { assert!(size_of::<squeue::Entry>() == 64) };
        // SAFETY: an entry is 64 bytes of integers, all initialised.
        let words: [u32; 16] = unsafe { std::mem::transmute_copy(&entry) };
        words[7]
    }

    #[test]
    fn a_durable_write_says_so_in_either_form() {
        let arena = Arena::new(ArenaConfig { bytes_max: 1 << 21, hugepages: false }).unwrap();
        for index in [None, Some(0)] {
            for (durable, flags) in [(false, 0), (true, libc::RWF_DSYNC as u32)] {
                assert_eq!(operation_flags(write(Fd(1), 0, &arena.zeros(10), durable, index)), flags);
            }
        }
    }
}
