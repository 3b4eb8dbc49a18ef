//! The bare reference: what a server costs that only moves bytes.
//!
//! A read is 48 bytes answered with 48 + payload; a write is 48 + payload answered with 48. The server parses all that
//! arrived, then sends all answers with one call. It waits in `read` (a server that asks epoll first makes one more
//! call) or spins. With a file behind it, all reads and writes of one turn go to the file as one io_uring batch, direct
//! and in place. Ratios to it, taken in the same run, are steady where times are not.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::load::{Action, Io};
use crate::uring::{BatchFile, FileOperation};

/// Bytes of a request and of an answer without payload.
const HEADER_LEN: usize = 48;
/// First byte of a request to read.
const READ: u8 = 1;
/// First byte of a request to write.
const WRITE: u8 = 2;
/// Answers in one send at most.
const ANSWERS_MAX: usize = 128;
/// Bytes of the server's receive buffer.
const SERVER_INPUT_LEN: usize = 256 * 1024;
/// The largest payload, in bytes.
const PAYLOAD_MAX: usize = 1 << 20;
/// The largest payload with a file behind it, in bytes.
const FILE_PAYLOAD_MAX: usize = 128 * 1024;
/// Operations on the file at a time.
const FILE_DEPTH: u32 = 64;

/// Open a file for [`serve`].
pub fn open_direct(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).custom_flags(libc::O_DIRECT).open(path)
}

/// Serve connections one after another, for ever: from memory, or from this file, which must be open for direct I/O.
pub fn serve(listener: &TcpListener, spin: bool, file: Option<File>) -> io::Result<()> {
    let mut file = file.map(|file| BatchFile::new(file, FILE_DEPTH, FILE_PAYLOAD_MAX)).transpose()?;
    loop {
        let (socket, _) = listener.accept()?;
        socket.set_nodelay(true)?;
        socket.set_nonblocking(spin)?;
        let served = match &mut file {
            None => serve_connection(socket),
            Some(file) => serve_file(socket, file),
        };
        match served {
            Err(e) if !matches!(e.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => {
                eprintln!("perf bare: {e}")
            }
            _ => {} // A client that goes away ends its connection, not the server.
        }
    }
}

fn serve_connection(mut socket: TcpStream) -> io::Result<()> {
    let mut input = vec![0; SERVER_INPUT_LEN];
    let payload = vec![0; PAYLOAD_MAX];
    let mut headers = Vec::with_capacity(ANSWERS_MAX * HEADER_LEN);
    let mut answers: Vec<usize> = Vec::with_capacity(ANSWERS_MAX);
    let (mut filled, mut skip) = (0, 0);
    loop {
        let n = read_some(&mut socket, &mut input[filled..])?;
        if n == 0 {
            return Ok(());
        }
        filled += n;
        let mut at = 0;
        loop {
            let skipped = skip.min(filled - at);
            at += skipped;
            skip -= skipped;
            if skip > 0 || filled - at < HEADER_LEN {
                break;
            }
            let len = payload_len(&input[at..]);
            if answers.len() == ANSWERS_MAX {
                send_answers(&mut socket, &mut headers, &mut answers, &payload)?;
            }
            headers.extend_from_slice(&input[at..at + HEADER_LEN]);
            answers.push(if input[at] == READ { len } else { 0 });
            skip = if input[at] == WRITE { len } else { 0 };
            at += HEADER_LEN;
        }
        send_answers(&mut socket, &mut headers, &mut answers, &payload)?;
        input.copy_within(at..filled, 0);
        filled -= at;
    }
}

/// One gathered send: each header with its payload, all of them from the same bytes.
fn send_answers(
    socket: &mut TcpStream,
    headers: &mut Vec<u8>,
    answers: &mut Vec<usize>,
    payload: &[u8],
) -> io::Result<()> {
    let mut segments: [IoSlice<'_>; 2 * ANSWERS_MAX] = [IoSlice::new(&[]); 2 * ANSWERS_MAX];
    let mut count = 0;
    for (header, len) in headers.chunks_exact(HEADER_LEN).zip(answers.iter()) {
        segments[count] = IoSlice::new(header);
        count += 1;
        if *len > 0 {
            segments[count] = IoSlice::new(&payload[..*len]);
            count += 1;
        }
    }
    headers_and_payload(socket, &mut segments[..count])?;
    headers.clear();
    answers.clear();
    Ok(())
}

fn headers_and_payload(socket: &mut TcpStream, mut left: &mut [IoSlice<'_>]) -> io::Result<()> {
    while !left.is_empty() {
        match socket.write_vectored(left) {
            Ok(sent) => IoSlice::advance_slices(&mut left, sent),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Read; a socket that does not block is asked until something comes.
fn read_some(socket: &mut TcpStream, room: &mut [u8]) -> io::Result<usize> {
    loop {
        match socket.read(room) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => std::hint::spin_loop(),
            outcome => return outcome,
        }
    }
}

/// Serve one connection from a file: each turn takes the whole requests that arrived, up to the batch's size.
fn serve_file(mut socket: TcpStream, file: &mut BatchFile) -> io::Result<()> {
    let mut input = vec![0; SERVER_INPUT_LEN];
    let mut operations = Vec::with_capacity(file.depth());
    let mut headers = Vec::with_capacity(file.depth() * HEADER_LEN);
    let (mut start, mut filled) = (0, 0);
    loop {
        operations.clear();
        headers.clear();
        while operations.len() < file.depth() && filled - start >= HEADER_LEN {
            let header = &input[start..start + HEADER_LEN];
            let (len, write) = (payload_len(header), header[0] == WRITE);
            if len > FILE_PAYLOAD_MAX {
                return Err(io::Error::other(format!("a request for {len} bytes")));
            }
            let end = start + HEADER_LEN + if write { len } else { 0 };
            if filled < end {
                break;
            }
            if write {
                file.buffer_mut(operations.len())[..len].copy_from_slice(&input[start + HEADER_LEN..end]);
            }
            operations.push(FileOperation { offset: offset(header), len, write });
            headers.extend_from_slice(header);
            start = end;
        }
        if operations.is_empty() {
            input.copy_within(start..filled, 0);
            (start, filled) = (0, filled - start);
            match read_some(&mut socket, &mut input[filled..])? {
                0 => return Ok(()),
                n => filled += n,
            }
            continue;
        }
        file.run(&operations)?;
        let mut segments = Vec::with_capacity(2 * operations.len());
        for (number, (header, operation)) in headers.chunks_exact(HEADER_LEN).zip(&operations).enumerate() {
            segments.push(IoSlice::new(header));
            if !operation.write {
                segments.push(IoSlice::new(&file.buffer(number)[..operation.len]));
            }
        }
        headers_and_payload(&mut socket, &mut segments)?;
    }
}

fn offset(header: &[u8]) -> u64 {
    header[8..16].iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn payload_len(header: &[u8]) -> usize {
    (u32::from_be_bytes([header[4], header[5], header[6], header[7]]) as usize).min(PAYLOAD_MAX)
}

/// A client's side of one connection, without its socket: at most `depth` requests in flight, answered in their order.
#[derive(Debug)]
pub struct BareExchange {
    depth: usize,
    /// Of each request in flight: its mark, its payload, and the bytes of its answer.
    in_flight: VecDeque<(u64, u32, usize)>,
    /// Bytes of the oldest answer that were used up already.
    taken: usize,
    /// Bytes to be sent; whoever sends them takes them out.
    pub out: Vec<u8>,
}

impl BareExchange {
    /// Nothing is in flight.
    pub fn new(depth: u32) -> BareExchange {
        let depth = depth as usize;
        BareExchange { depth, in_flight: VecDeque::with_capacity(depth), taken: 0, out: vec![] }
    }

    /// Whether another request can start.
    pub fn has_room(&self) -> bool {
        self.in_flight.len() < self.depth
    }

    /// Append a request to what is to be sent; writes carry this byte over and over.
    pub fn start(&mut self, io: Io, fill: u8, mark: u64) {
        let mut header = [0; HEADER_LEN];
        // It knows nothing but these two; traces are not replayed on it.
        let write = io.action == Action::Write;
        header[0] = if write { WRITE } else { READ };
        header[4..8].copy_from_slice(&io.len.to_be_bytes());
        header[8..16].copy_from_slice(&io.offset.to_be_bytes());
        self.out.extend_from_slice(&header);
        if write {
            self.out.resize(self.out.len() + io.len as usize, fill);
        }
        let answer_len = HEADER_LEN + if write { 0 } else { io.len as usize };
        self.in_flight.push_back((mark, io.len, answer_len));
    }

    /// Use up what arrived, and tell of each request that ended its mark and its payload's length.
    pub fn receive(&mut self, bytes: &[u8], mut ended: impl FnMut(u64, u32)) -> usize {
        let mut left = bytes.len() + self.taken;
        while let Some((mark, len, answer_len)) = self.in_flight.front().copied() {
            if left < answer_len {
                break;
            }
            left -= answer_len;
            self.in_flight.pop_front();
            ended(mark, len);
        }
        self.taken = left;
        bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Plan;
    use std::net::TcpListener;
    use std::os::unix::fs::FileExt;
    use std::time::Duration;

    fn io(offset: u64, write: bool) -> Io {
        let action = if write { Action::Write } else { Action::Read };
        Io { offset, len: 4096, action, fua: false, lun_index: 0 }
    }

    /// Send what the exchange has and read exactly this many bytes of answer.
    fn converse(socket: &mut TcpStream, exchange: &mut BareExchange, answer_len: usize) -> (Vec<u8>, Vec<u64>) {
        socket.write_all(&std::mem::take(&mut exchange.out)).expect("sent");
        let mut answer = vec![0; answer_len];
        socket.read_exact(&mut answer).expect("an answer");
        let mut marks = vec![];
        // In two pieces, as TCP may deliver them.
        for piece in [&answer[..100], &answer[100..]] {
            exchange.receive(piece, |mark, _| marks.push(mark));
        }
        (answer, marks)
    }

    #[test]
    fn a_file_behind_the_reference_is_really_written_and_read() {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(1 << 20).expect("room");
        file.write_all_at(&[7; 4096], 8192).expect("content");
        let served = file.try_clone().expect("a descriptor");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let portal = listener.local_addr().expect("its address");
        std::thread::spawn(move || serve(&listener, false, Some(served)));
        let mut socket = TcpStream::connect(portal).expect("a connection");
        let mut exchange = BareExchange::new(4);
        exchange.start(io(4096, true), 9, 11);
        exchange.start(io(8192, false), 0, 12);
        let (answer, marks) = converse(&mut socket, &mut exchange, 48 + 48 + 4096);
        assert_eq!(marks, [11, 12]);
        assert_eq!(answer[96..], [7; 4096]);
        let mut found = [0; 4096];
        file.read_exact_at(&mut found, 4096).expect("content");
        assert_eq!(found, [9; 4096]);
    }

    #[test]
    fn the_generator_drives_the_reference_in_both_loops() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let portal = listener.local_addr().expect("its address");
        std::thread::spawn(move || serve(&listener, false, None));
        let mut plan = Plan::new(portal);
        (plan.duration, plan.warm_up) = (Duration::from_millis(300), Duration::from_millis(20));
        let report = plan.run().expect("a closed loop");
        assert!(report.ios > 10 && report.latency_us.p50 > 0.0, "{report}");
        plan.pace = crate::load::Pace::Even(1000.0);
        plan.write_percent = 50;
        let report = plan.run().expect("an open loop");
        assert!((299..=301).contains(&(report.ios + report.overdue)), "{report}");
        assert!(report.read_latency_us.is_some() && report.write_latency_us.is_some());
    }

    /// A server that stands still for 200 ms is charged with every I/O that was due meanwhile.
    #[test]
    fn an_open_loop_does_not_omit_what_a_pause_delays() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let portal = listener.local_addr().expect("its address");
        std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().expect("a connection");
            let (mut request, mut answered) = ([0; HEADER_LEN], 0);
            while socket.read_exact(&mut request).is_ok() {
                answered += 1;
                if answered == 100 {
                    std::thread::sleep(Duration::from_millis(200));
                }
                let answer = [0; HEADER_LEN + 512];
                if socket.write_all(&answer).is_err() {
                    return;
                }
            }
        });
        let mut plan = Plan::new(portal);
        (plan.duration, plan.warm_up) = (Duration::from_secs(1), Duration::ZERO);
        (plan.mix, plan.depth) = (crate::load::Mix::of(512), 1);
        plan.pace = crate::load::Pace::Even(1000.0);
        let report = plan.run().expect("a run");
        // About 200 of 1,000 were due in the pause; with one in flight a closed loop would have seen one slow I/O.
        assert!(report.latency_us.p90 > 50_000.0, "{report}");
        assert!(report.latency_us.max > 190_000.0, "{report}");
    }
}
