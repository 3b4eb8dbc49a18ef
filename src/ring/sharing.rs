//! Having a file share another's blocks: the one operation on files that io_uring does not have.
//!
//! FICLONERANGE waits until nobody reads or writes either file directly, and then for the file system's journal, so it
//! runs on a thread of its own; what comes of it goes through a bounded queue, and the ring is woken. A thread is made
//! for all operations between two files that are submitted together: that costs some 30 µs, which the megabytes that
//! are not moved are worth. There are at most [`THREADS_MAX`] at once in the process. When all are taken, perhaps by a
//! file system that does not answer, an operation is refused at once (EAGAIN), and its caller moves the bytes itself:
//! nobody waits for another's file system.
//!
//! A thread owns duplicates of both descriptors, and no memory of the ring's. So a ring can go while the kernel still
//! has such an operation, a descriptor that is closed meanwhile never means another file to it, and the lock of a file
//! (flock) is held until nothing changes it any more.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_queue::ArrayQueue;

use super::slots::Entry;
use super::waker::UringWaker;
use super::{Fd, Token, Wake, file};

/// Threads of this process that carry them out, at once.
pub(super) const THREADS_MAX: usize = 8;

/// Operations of one ring that have been begun and whose end was not taken: several times what the most fragmented
/// chunk of a copy is shared in.
const IN_FLIGHT_MAX: usize = 256;

/// Their threads need little more than a system call does.
const STACK_BYTES: usize = 128 * 1024;

static THREADS: AtomicUsize = AtomicUsize::new(0);

/// What one ring has asked for.
#[derive(Debug)]
pub(super) struct Sharing {
    /// A place for each that is in flight.
    done: Arc<ArrayQueue<(u64, i32)>>,
    in_flight: usize,
    /// Submitted together, and not begun.
    gathered: Vec<(Token, SharedRange)>,
}

/// A range of bytes of one file, and where they are to be in another.
#[derive(Clone, Copy, Debug)]
pub(super) struct SharedRange {
    pub(super) from: Fd,
    pub(super) from_bytes: u64,
    pub(super) file: Fd,
    pub(super) offset_bytes: u64,
    pub(super) len_bytes: u64,
}

impl Sharing {
    pub(super) fn new() -> Self {
        let gathered = Vec::with_capacity(IN_FLIGHT_MAX);
        Self { done: Arc::new(ArrayQueue::new(IN_FLIGHT_MAX)), in_flight: 0, gathered }
    }

    /// Operations that were begun and whose end was not taken.
    #[inline]
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Something has been done that was not taken.
    #[inline]
    pub(super) fn is_ready(&self) -> bool {
        self.in_flight > 0 && !self.done.is_empty()
    }

    /// One more, for the next [`Self::begin`]. `Err`: an errno value negated, as completions have it.
    pub(super) fn gather(&mut self, token: Token, range: SharedRange) -> Result<(), i32> {
        if self.in_flight + self.gathered.len() == IN_FLIGHT_MAX {
            return Err(-libc::EAGAIN);
        }
        self.gathered.push((token, range));
        Ok(())
    }

    /// Begin with what was gathered; those for which that fails are `refused`, with a negated errno value.
    #[inline]
    pub(super) fn begin(&mut self, waker: &UringWaker, refused: impl FnMut(Token, i32)) {
        // As nearly always, and this is asked in every turn.
        if !self.gathered.is_empty() {
            self.begin_gathered(waker, refused);
        }
    }

    #[cold]
    fn begin_gathered(&mut self, waker: &UringWaker, mut refused: impl FnMut(Token, i32)) {
        let mut gathered = std::mem::take(&mut self.gathered);
        let of_same_files =
            |a: &(Token, SharedRange), b: &(Token, SharedRange)| (a.1.from, a.1.file) == (b.1.from, b.1.file);
        for together in gathered.chunk_by(of_same_files) {
            match self.begin_together(together, waker) {
                Ok(()) => self.in_flight += together.len(),
                Err(errno) => together.iter().for_each(|&(token, _)| refused(token, errno)),
            }
        }
        gathered.clear();
        self.gathered = gathered;
    }

    /// Begin operations between the same two files.
    fn begin_together(&mut self, together: &[(Token, SharedRange)], waker: &UringWaker) -> Result<(), i32> {
        let Some(&(_, SharedRange { from, file, .. })) = together.first() else { return Ok(()) };
        let place = Place::take().ok_or(-libc::EAGAIN)?;
        let files = duplicate(from).and_then(|from| Ok((from, duplicate(file)?)));
        let (from_file, into) = files.map_err(|error| negated(&error))?;
        // Another machine may be able to copy what it cannot share. A kernel that copies is no better than we are.
        let may_copy = file::is_remote(from) && file::is_remote(file);
        let (done, waker, together) = (Arc::clone(&self.done), waker.clone(), together.to_vec());
        let run = move || {
            run_where_the_process_does();
            let mut results = Vec::with_capacity(together.len());
            let mut result = 0;
            for (token, range) in &together {
                // What one was refused for, the next would be refused for too.
                if result == 0 {
                    result = share(&from_file, &into, range, may_copy);
                }
                results.push((token.0, result));
            }
            drop((from_file, into));
            // Before it is told, so that whoever hears of it finds the place free.
            drop(place);
            for ended in results {
                done.push(ended).expect("each that is in flight has a place");
            }
            waker.wake();
        };
        let thread = std::thread::Builder::new().name("share".into()).stack_size(STACK_BYTES).spawn(run);
        thread.map(drop).map_err(|error| negated(&error))
    }

    /// The end of an operation.
    #[inline]
    pub(super) fn take(&mut self) -> Option<Entry> {
        if self.in_flight == 0 {
            return None;
        }
        let (user_data, result) = self.done.pop()?;
        self.in_flight -= 1;
        Some(Entry { user_data, result, flags: 0 })
    }
}

/// One of the process's places for threads; free again when dropped.
struct Place;

impl Place {
    fn take() -> Option<Self> {
        let more = |taken| (taken < THREADS_MAX).then_some(taken + 1);
        THREADS.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok().map(|_| Self)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        THREADS.fetch_sub(1, Ordering::AcqRel);
    }
}

fn negated(error: &io::Error) -> i32 {
    -error.raw_os_error().unwrap_or(libc::EIO)
}

fn duplicate(fd: Fd) -> io::Result<File> {
    if fd.0 < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: not -1; whether it is open is for the kernel to say, which is all that is asked of it here.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd.0) };
    borrowed.try_clone_to_owned().map(OwnedFd::into)
}

/// A thread is pinned as the one is that made it; that is a shard. Do as the process's first thread does.
fn run_where_the_process_does() {
    // SAFETY: a set of CPUs is an array of integers, for which zeros are a value.
    let mut cpus: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: no memory is passed.
    let process = unsafe { libc::getpid() };
    // SAFETY: the set is ours to fill, and has the size that is told.
    if unsafe { libc::sched_getaffinity(process, size_of_val(&cpus), &raw mut cpus) } == 0 {
        // SAFETY: the set was filled by the kernel. It is refused at worst: then the thread stays where it is.
        unsafe { libc::sched_setaffinity(0, size_of_val(&cpus), &raw const cpus) };
    }
}

/// Share, or have the other machine copy. 0, or an errno value negated.
fn share(from: &File, into: &File, range: &SharedRange, may_copy: bool) -> i32 {
    let request = libc::file_clone_range {
        src_fd: i64::from(from.as_raw_fd()),
        src_offset: range.from_bytes,
        src_length: range.len_bytes,
        dest_offset: range.offset_bytes,
    };
    // SAFETY: the request is what FICLONERANGE reads, both descriptors are open, and no other memory is named.
    if unsafe { libc::ioctl(into.as_raw_fd(), libc::FICLONERANGE, &raw const request) } == 0 {
        return 0;
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::ENOTTY | libc::EINVAL) if may_copy => copy(from, into, range),
        _ => negated(&error),
    }
}

/// copy_file_range: all of it.
fn copy(from: &File, into: &File, range: &SharedRange) -> i32 {
    let (Ok(mut from_at), Ok(mut at)) = (i64::try_from(range.from_bytes), i64::try_from(range.offset_bytes)) else {
        return -libc::EINVAL;
    };
    let mut left = usize::try_from(range.len_bytes).unwrap_or(usize::MAX);
    while left > 0 {
        let (from, into) = (from.as_raw_fd(), into.as_raw_fd());
        // SAFETY: both descriptors are open, and both offsets are ours to be moved on by the kernel.
        let copied = unsafe { libc::copy_file_range(from, &raw mut from_at, into, &raw mut at, left, 0) };
        match usize::try_from(copied) {
            // The source ends here.
            Ok(0) => return -libc::EINVAL,
            Ok(copied) => left -= copied,
            Err(_) => return negated(&io::Error::last_os_error()),
        }
    }
    0
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::os::unix::fs::FileExt;

    fn two_files() -> (tempfile::TempDir, File, File) {
        let dir = tempfile::tempdir().unwrap();
        let open = |name| File::options().read(true).write(true).create_new(true).open(dir.path().join(name)).unwrap();
        let (from, into) = (open("from"), open("into"));
        let bytes: Vec<u8> = (0..1 << 20).map(|n: u32| (n / 4096) as u8 ^ n as u8).collect();
        from.write_all_at(&bytes, 0).unwrap();
        into.write_all_at(&vec![7; 1 << 20], 0).unwrap();
        (dir, from, into)
    }

    fn range(from: &File, into: &File) -> SharedRange {
        SharedRange {
            from: Fd(from.as_raw_fd()),
            from_bytes: 8192,
            file: Fd(into.as_raw_fd()),
            offset_bytes: 4096,
            len_bytes: 300_000,
        }
    }

    #[test]
    fn what_another_machine_copies_is_copied_whole_and_nothing_else() {
        let (_dir, from, into) = two_files();
        assert_eq!(copy(&from, &into, &range(&from, &into)), 0);
        let (mut there, mut here) = (vec![0; 300_000], vec![0; 300_000]);
        from.read_exact_at(&mut there, 8192).unwrap();
        into.read_exact_at(&mut here, 4096).unwrap();
        assert!(there == here, "the bytes are there");
        let mut around = [0; 2];
        into.read_exact_at(&mut around[..1], 4095).unwrap();
        into.read_exact_at(&mut around[1..], 304_096).unwrap();
        assert_eq!(around, [7, 7]);
        let past = SharedRange { from_bytes: (1 << 20) - 4096, ..range(&from, &into) };
        assert_eq!(copy(&from, &into, &past), -libc::EINVAL, "there is not so much");
    }

    #[test]
    fn a_file_that_is_closed_meanwhile_is_not_mistaken_for_another() {
        let (_dir, from, into) = two_files();
        let (mut sharing, waker) = (Sharing::new(), UringWaker::new().unwrap());
        let nobody = SharedRange { from: Fd(-1), ..range(&from, &into) };
        let mut refused = Vec::new();
        sharing.gather(Token(1), nobody).unwrap();
        sharing.begin(&waker, |token, errno| refused.push((token, errno)));
        assert_eq!((sharing.in_flight(), refused), (0, vec![(Token(1), -libc::EBADF)]));
        sharing.gather(Token(1), range(&from, &into)).unwrap();
        sharing.begin(&waker, |token, errno| panic!("{token:?} was refused: {errno}"));
        drop((from, into));
        let entry = await_one(&mut sharing);
        // Whether it can be done is the file system's to say; 300,000 bytes are no whole blocks of any.
        assert_eq!((entry.user_data, sharing.in_flight()), (1, 0));
        assert!([-libc::EOPNOTSUPP, -libc::ENOTTY, -libc::EINVAL].contains(&entry.result), "{entry:?}");
    }

    fn await_one(sharing: &mut Sharing) -> Entry {
        loop {
            match sharing.take() {
                Some(entry) => break entry,
                None => std::thread::yield_now(),
            }
        }
    }

    #[test]
    fn as_many_as_there_is_room_for_end_though_nobody_takes_them_meanwhile() {
        let (_dir, from, into) = two_files();
        let (mut sharing, waker) = (Sharing::new(), UringWaker::new().unwrap());
        let mut begun = BTreeSet::new();
        // Pairs of files take turns, so that each is a thread of its own.
        let pairs = [range(&from, &into), range(&into, &from)];
        let mut number = 0;
        while begun.len() < IN_FLIGHT_MAX {
            sharing.gather(Token(number), pairs[number as usize % 2]).unwrap();
            let mut refused = None;
            sharing.begin(&waker, |_, errno| refused = Some(errno));
            match refused {
                None => assert!(begun.insert(number)),
                // Every thread is taken: that passes.
                Some(errno) => {
                    assert_eq!(errno, -libc::EAGAIN);
                    std::thread::yield_now();
                }
            }
            number += 1;
        }
        assert_eq!(sharing.gather(Token(number), pairs[0]), Err(-libc::EAGAIN), "no more than there are places");
        let ended: BTreeSet<u64> = (0..IN_FLIGHT_MAX).map(|_| await_one(&mut sharing).user_data).collect();
        assert_eq!((ended, sharing.in_flight()), (begun, 0));
        // Together they take one thread.
        for number in 0..31 {
            sharing.gather(Token(number), pairs[0]).unwrap();
        }
        sharing.begin(&waker, |_, errno| assert_eq!(errno, -libc::EAGAIN));
        (0..sharing.in_flight()).for_each(|_| assert!(await_one(&mut sharing).result < 0));
    }
}
