//! The bare reference: what a server costs that only moves bytes.
//!
//! A read is 48 bytes answered with 48 + payload; a write is 48 + payload answered with 48. The server parses all that
//! arrived, then sends all answers with one call. Ratios to it, taken in the same run, are steady where times are not.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

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
/// Bytes of the client's buffers, and the largest payload.
const BUFFER_LEN: usize = 1 << 20;

/// Serve connections one after another, for ever.
pub fn serve(listener: &TcpListener) -> io::Result<()> {
    loop {
        let (socket, _) = listener.accept()?;
        socket.set_nodelay(true)?;
        match serve_connection(socket) {
            Err(e) if !matches!(e.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => {
                eprintln!("perf bare: {e}")
            }
            _ => {} // A client that goes away ends its connection, not the server.
        }
    }
}

fn serve_connection(mut socket: TcpStream) -> io::Result<()> {
    let mut input = vec![0; SERVER_INPUT_LEN];
    let payload = vec![0; BUFFER_LEN];
    let mut headers = Vec::with_capacity(ANSWERS_MAX * HEADER_LEN);
    let mut answers: Vec<usize> = Vec::with_capacity(ANSWERS_MAX);
    let (mut filled, mut skip) = (0, 0);
    loop {
        let n = socket.read(&mut input[filled..])?;
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
    let mut left = &mut segments[..count];
    while !left.is_empty() {
        let sent = socket.write_vectored(left)?;
        IoSlice::advance_slices(&mut left, sent);
    }
    headers.clear();
    answers.clear();
    Ok(())
}

fn payload_len(header: &[u8]) -> usize {
    (u32::from_be_bytes([header[4], header[5], header[6], header[7]]) as usize).min(BUFFER_LEN)
}

/// A client of the reference server that keeps `depth` requests in flight.
#[derive(Debug)]
pub struct BareClient {
    socket: TcpStream,
    block_size: usize,
    depth: usize,
    in_flight: VecDeque<(Instant, bool)>,
    output: Vec<u8>,
    output_sent: usize,
    input: Vec<u8>,
    unread: usize,
}

impl BareClient {
    /// Connect to a reference server.
    pub fn connect(portal: SocketAddr, block_size: u32, depth: u32) -> io::Result<BareClient> {
        let socket = TcpStream::connect(portal)?;
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        let (block_size, depth) = (block_size as usize, depth as usize);
        Ok(BareClient {
            socket,
            block_size,
            depth,
            in_flight: VecDeque::with_capacity(depth),
            output: Vec::with_capacity(BUFFER_LEN),
            output_sent: 0,
            input: vec![0; BUFFER_LEN],
            unread: 0,
        })
    }

    /// Receive, report latencies, fill up with new requests, send. Answers come in the order of the requests.
    pub fn turn(&mut self, mut is_write: impl FnMut() -> bool, mut ended: impl FnMut(Duration)) -> io::Result<()> {
        match self.socket.read(&mut self.input) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the reference server closed")),
            Ok(n) => self.unread += n,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(e) => return Err(e),
        }
        let now = Instant::now();
        while let Some((started, write)) = self.in_flight.front().copied() {
            let len = HEADER_LEN + if write { 0 } else { self.block_size };
            if self.unread < len {
                break;
            }
            self.unread -= len;
            self.in_flight.pop_front();
            ended(now.saturating_duration_since(started));
        }
        while self.in_flight.len() < self.depth {
            let write = is_write();
            let mut header = [0; HEADER_LEN];
            header[0] = if write { WRITE } else { READ };
            header[4..8].copy_from_slice(&(self.block_size as u32).to_be_bytes());
            self.output.extend_from_slice(&header);
            if write {
                self.output.resize(self.output.len() + self.block_size, 0x5a);
            }
            self.in_flight.push_back((now, write));
        }
        while self.output_sent < self.output.len() {
            match self.socket.write(&self.output[self.output_sent..]) {
                Ok(n) => self.output_sent += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        self.output.clear();
        self.output_sent = 0;
        Ok(())
    }
}
