//! Many sockets, and reads and writes of one file, over one io_uring. The only `unsafe` of the instrument.
//!
//! What makes it sound: every buffer that the kernel may touch belongs to this module. Bytes to be sent are moved in,
//! bytes received are lent out only while no receive is under way on that socket, file buffers are lent out only while
//! no operation is under way, and nothing is freed before its last completion has come (else it is leaked).
#![allow(unsafe_code)]

use std::fmt;
use std::fs::File;
use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, opcode, squeue};

/// Bytes of each socket's receive buffer: what a whole command window brings, and more than any PDU that must be whole.
const INPUT_LEN: usize = 512 * 1024;
/// The same when there are many sockets.
const INPUT_LEN_OF_MANY: usize = 160 * 1024;
/// More sockets than this are many.
const FEW: u32 = 64;
/// Entries of the submission queue; it is handed over when it is full.
const ENTRIES: u32 = 256;

/// What an operation was, in its user data: the number of its socket or buffer, twice, plus this.
const RECEIVE: u64 = 0;
const SEND: u64 = 1;

/// The ring, and the one system call that moves it.
struct Ring {
    ring: IoUring,
    in_flight: usize,
}

impl Ring {
    fn new(completions: u32) -> io::Result<Ring> {
        let newest = IoUring::builder()
            .setup_cqsize(completions)
            .setup_submit_all()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(ENTRIES);
        newest.map_or_else(|_| Ring::movable(completions), |ring| Ok(Ring { ring, in_flight: 0 }))
    }

    /// One that may be used by another thread than the one that made it.
    fn movable(completions: u32) -> io::Result<Ring> {
        Ok(Ring { ring: IoUring::builder().setup_cqsize(completions).build(ENTRIES)?, in_flight: 0 })
    }

    /// Queue an operation.
    ///
    /// # Safety
    /// What the entry points to stays valid, and unused by others, until its completion was taken.
    unsafe fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        if self.ring.submission().is_full() {
            self.enter()?;
        }
        // SAFETY: the caller's promise.
        let pushed = unsafe { self.ring.submission().push(entry) };
        pushed.map_err(|_| io::Error::other("the submission queue stays full"))?;
        self.in_flight += 1;
        Ok(())
    }

    /// Hand over what is queued, and let the kernel finish what it can at once.
    fn enter(&mut self) -> io::Result<()> {
        let queued = self.ring.submission().len() as u32;
        // SAFETY: no argument is given; what the queued entries point to was promised when they were pushed.
        let entered = unsafe { self.ring.submitter().enter::<()>(queued, 0, EnterFlags::GETEVENTS.bits(), None) };
        transient(entered)
    }

    /// The same, and wait up to `limit` for `count` completions.
    fn wait(&mut self, count: usize, limit: Duration) -> io::Result<()> {
        let time = Timespec::from(limit);
        transient(self.ring.submitter().submit_with_args(count, &SubmitArgs::new().timespec(&time)))
    }

    /// Hand over, then wait as told: first without sleeping for `spin`, then asleep, until `until` at most.
    fn turn(&mut self, spin: Duration, until: Instant) -> io::Result<()> {
        if !self.ring.completion().is_empty() {
            return self.enter();
        }
        let mut now = Instant::now();
        let spin_until = (now + spin).min(until);
        while now < spin_until {
            self.enter()?;
            if !self.ring.completion().is_empty() {
                return Ok(());
            }
            now = Instant::now();
        }
        if until > now { self.wait(1, until - now) } else { self.enter() }
    }

    /// The next completion: (user data, result).
    fn take(&mut self) -> Option<(u64, i32)> {
        let entry = self.ring.completion().next()?;
        self.in_flight -= 1;
        Some((entry.user_data(), entry.result()))
    }
}

/// A wait that ended early is no failure: what was not taken stays queued.
fn transient(entered: io::Result<usize>) -> io::Result<()> {
    match entered {
        Err(e) if !matches!(e.raw_os_error(), Some(libc::EINTR | libc::ETIME | libc::EBUSY | libc::EAGAIN)) => Err(e),
        _ => Ok(()),
    }
}

fn outcome(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}

struct Line {
    socket: TcpStream,
    input: Vec<u8>,
    start: usize,
    end: usize,
    receiving: bool,
    output: Vec<u8>,
    sent: usize,
    sending: bool,
}

impl fmt::Debug for Sockets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sockets({} in flight on {} sockets)", self.ring.in_flight, self.lines.len())
    }
}

/// Sockets over one ring. A socket has a number, in the order in which they were added.
pub struct Sockets {
    ring: Ring,
    lines: Vec<Line>,
    input_len: usize,
    /// How long [`Sockets::turn`] spins before it sleeps.
    pub spin: Duration,
}

impl Sockets {
    /// A ring for at most so many sockets.
    pub fn new(sockets_max: u32) -> io::Result<Sockets> {
        let ring = Ring::new((sockets_max * 2).max(2 * ENTRIES).next_power_of_two())?;
        let input_len = if sockets_max > FEW { INPUT_LEN_OF_MANY } else { INPUT_LEN };
        Ok(Sockets { ring, lines: vec![], input_len, spin: Duration::ZERO })
    }

    /// A ring for one socket that may change threads.
    pub fn of_one() -> io::Result<Sockets> {
        let ring = Ring::movable(2 * ENTRIES)?;
        Ok(Sockets { ring, lines: vec![], input_len: INPUT_LEN, spin: Duration::ZERO })
    }

    /// Take a socket over, and begin to receive.
    pub fn add(&mut self, socket: TcpStream) -> io::Result<usize> {
        // A socket that does not block would end a receive with EAGAIN instead of waiting for bytes.
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(None)?;
        socket.set_write_timeout(None)?;
        self.lines.push(Line {
            socket,
            input: vec![0; self.input_len],
            start: 0,
            end: 0,
            receiving: false,
            output: vec![],
            sent: 0,
            sending: false,
        });
        let number = self.lines.len() - 1;
        self.receive(number)?;
        Ok(number)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.lines.len()
    }

    /// What arrived and was not used up; empty while a receive is under way.
    pub fn input(&self, number: usize) -> &[u8] {
        let line = &self.lines[number];
        if line.receiving { &[] } else { &line.input[line.start..line.end] }
    }

    /// Drop `used` bytes of the input and receive more behind the rest.
    pub fn receive_more(&mut self, number: usize, used: usize) -> io::Result<()> {
        let line = &mut self.lines[number];
        if line.receiving {
            return Ok(());
        }
        line.start = (line.start + used).min(line.end);
        if line.start == line.end {
            (line.start, line.end) = (0, 0);
        } else if line.end == line.input.len() {
            line.input.copy_within(line.start..line.end, 0);
            (line.start, line.end) = (0, line.end - line.start);
        }
        self.receive(number)
    }

    fn receive(&mut self, number: usize) -> io::Result<()> {
        let line = &mut self.lines[number];
        let room = &mut line.input[line.end..];
        let entry = opcode::Recv::new(Fd(line.socket.as_raw_fd()), room.as_mut_ptr(), room.len() as u32).build();
        let entry = entry.user_data(number as u64 * 2 + RECEIVE);
        line.receiving = true;
        // SAFETY: the buffer belongs to the line, which is never removed; nobody reads or writes it while `receiving`,
        // and Drop waits for the completion or leaks it.
        unsafe { self.ring.push(&entry) }
    }

    /// Send all of `bytes`, leaving it empty, unless an earlier send is under way: then it stays as it is.
    pub fn send(&mut self, number: usize, bytes: &mut Vec<u8>) -> io::Result<()> {
        let line = &mut self.lines[number];
        if line.sending || bytes.is_empty() {
            return Ok(());
        }
        line.output.clear();
        line.sent = 0;
        std::mem::swap(&mut line.output, bytes);
        self.send_rest(number)
    }

    fn send_rest(&mut self, number: usize) -> io::Result<()> {
        let line = &mut self.lines[number];
        let rest = &line.output[line.sent..];
        let entry = opcode::Send::new(Fd(line.socket.as_raw_fd()), rest.as_ptr(), rest.len() as u32);
        let entry = entry.flags(libc::MSG_NOSIGNAL).build().user_data(number as u64 * 2 + SEND);
        line.sending = true;
        // SAFETY: the bytes belong to the line, which is never removed; they are not changed while `sending`, and Drop
        // waits for the completion or leaks them.
        unsafe { self.ring.push(&entry) }
    }

    /// Hand everything to the kernel, and do not wait.
    pub fn hand_over(&mut self) -> io::Result<()> {
        self.ring.enter()
    }

    /// Hand everything to the kernel and wait until `until` at most for something to move. The numbers of the sockets
    /// that have new input or can send again go into `moved` (perhaps twice). A closed or broken socket is an error.
    pub fn turn(&mut self, until: Instant, moved: &mut Vec<usize>) -> io::Result<()> {
        self.ring.turn(self.spin, until)?;
        while let Some((user_data, result)) = self.ring.take() {
            let number = (user_data / 2) as usize;
            let line = &mut self.lines[number];
            if user_data % 2 == RECEIVE {
                line.receiving = false;
                match outcome(result)? {
                    0 => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection")),
                    n => line.end += n,
                }
                moved.push(number);
                continue;
            }
            line.sending = false;
            line.sent += outcome(result)?;
            if line.sent < line.output.len() {
                self.send_rest(number)?;
            } else {
                moved.push(number);
            }
        }
        Ok(())
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        for line in &self.lines {
            let _ = line.socket.shutdown(Shutdown::Both);
        }
        let limit = Instant::now() + Duration::from_secs(2);
        while self.ring.in_flight > 0 && Instant::now() < limit && self.ring.wait(1, Duration::from_millis(10)).is_ok()
        {
            while self.ring.take().is_some() {}
        }
        if self.ring.in_flight > 0 {
            // The kernel may still use the buffers: better lost than freed.
            for line in self.lines.drain(..) {
                line.input.leak();
                line.output.leak();
            }
        }
    }
}

/// Bytes that start at a multiple of 4,096, for direct I/O.
#[repr(C, align(4096))]
#[derive(Clone, Copy)]
struct Page([u8; 4096]);

/// A read or write of a [`BatchFile`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileOperation {
    /// First byte in the file.
    pub offset: u64,
    /// Bytes; at most the buffers' length.
    pub len: usize,
    /// Direction.
    pub write: bool,
}

/// A file that is read and written in batches of blocks, each through a buffer of its own.
pub struct BatchFile {
    ring: Ring,
    file: File,
    buffers: Vec<Vec<Page>>,
    block_len: usize,
}

impl BatchFile {
    /// Serve this file with `depth` buffers of `block_len` bytes, a multiple of 4,096.
    pub fn new(file: File, depth: u32, block_len: usize) -> io::Result<BatchFile> {
        let buffer = || vec![Page([0; 4096]); block_len.div_ceil(4096)];
        let buffers = (0..depth).map(|_| buffer()).collect();
        Ok(BatchFile { ring: Ring::new(2 * ENTRIES)?, file, buffers, block_len })
    }

    /// Buffers, and so the largest batch.
    pub fn depth(&self) -> usize {
        self.buffers.len()
    }

    /// What buffer `number` holds.
    pub fn buffer(&self, number: usize) -> &[u8] {
        let pages = &self.buffers[number];
        // SAFETY: pages are plain bytes one behind the other, and no operation is under way outside `run`.
        unsafe { std::slice::from_raw_parts(pages.as_ptr().cast(), self.block_len) }
    }

    /// The same, to be filled.
    pub fn buffer_mut(&mut self, number: usize) -> &mut [u8] {
        let pages = &mut self.buffers[number];
        // SAFETY: as in `buffer`, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(pages.as_mut_ptr().cast(), self.block_len) }
    }

    /// Carry out one operation for each of the first buffers, all at once, and wait for all of them.
    pub fn run(&mut self, operations: &[FileOperation]) -> io::Result<()> {
        let done = self.try_run(operations);
        if self.ring.in_flight > 0 {
            // The ring failed, and the kernel may still use the buffers: better lost than lent out.
            std::mem::take(&mut self.buffers).leak();
        }
        done
    }

    fn try_run(&mut self, operations: &[FileOperation]) -> io::Result<()> {
        let fd = Fd(self.file.as_raw_fd());
        for (number, (pages, operation)) in self.buffers.iter_mut().zip(operations).enumerate() {
            let start = pages.as_mut_ptr().cast::<u8>();
            let len = operation.len.min(self.block_len) as u32;
            let entry = if operation.write {
                opcode::Write::new(fd, start, len).offset(operation.offset).build()
            } else {
                opcode::Read::new(fd, start, len).offset(operation.offset).build()
            };
            let entry = entry.user_data(number as u64);
            // SAFETY: the buffer is ours and one operation uses it; `run`, our only caller, returns when all operations
            // have ended, or leaks the buffers.
            unsafe { self.ring.push(&entry) }?;
        }
        let mut wrong = None;
        while self.ring.in_flight > 0 {
            self.ring.wait(self.ring.in_flight, Duration::from_secs(10))?;
            while let Some((number, result)) = self.ring.take() {
                match outcome(result) {
                    Ok(n) if n == operations[number as usize].len => {}
                    Ok(n) => wrong = Some(io::Error::other(format!("{:?}: {n} bytes", operations[number as usize]))),
                    Err(e) => wrong = Some(e),
                }
            }
        }
        wrong.map_or(Ok(()), Err)
    }
}
