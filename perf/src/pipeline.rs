//! One session with many commands in flight, on a non-blocking socket or over an io_uring.
//!
//! [`Pipeline::start`] queues a command, [`Pipeline::turn`] sends what is queued and handles what arrived. Nothing
//! waits; the caller decides whether to spin or to sleep.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use crate::exchange::Exchange;
pub use crate::exchange::{Done, Request, Want};
use crate::login::{LoginError, Wire, Wishes};
use crate::pdu::cdb;
use crate::uring::Sockets;

/// A logged-in session.
#[derive(Debug)]
pub struct Pipeline {
    line: Line,
    exchange: Exchange,
    /// The last asynchronous message's event code, if one came.
    pub async_event: Option<u8>,
}

/// What moves the bytes.
#[derive(Debug)]
enum Line {
    Plain(Plain),
    /// The only socket of this ring.
    Ring(Box<Sockets>),
}

/// A socket that does not block.
#[derive(Debug)]
struct Plain {
    socket: TcpStream,
    out_sent: usize,
    input: Vec<u8>,
    input_start: usize,
    input_end: usize,
}

/// Bytes of the receive buffer. Larger than the largest header plus digests by far, so a full buffer always progresses.
const INPUT_LEN: usize = 512 * 1024;

impl Pipeline {
    /// Connect and log in; at most `depth` commands will be in flight.
    pub fn open(portal: SocketAddr, wishes: &Wishes, depth: u32) -> Result<Pipeline, LoginError> {
        let mut wire = Wire::connect(portal, wishes.timeout)?;
        let parameters = wire.login(wishes)?;
        wire.socket.set_nonblocking(true)?;
        let exchange = Exchange::new(&wire, parameters, depth);
        let plain = Plain { socket: wire.socket, out_sent: 0, input: vec![0; INPUT_LEN], input_start: 0, input_end: 0 };
        Ok(Pipeline { line: Line::Plain(plain), exchange, async_event: None })
    }

    /// Go on over an io_uring, as the load generator does. Call while nothing is in flight.
    pub fn over_ring(self) -> io::Result<Pipeline> {
        let async_event = self.async_event;
        let (socket, exchange) = self.into_parts().ok_or_else(|| io::Error::other("the session is not idle"))?;
        let mut sockets = Sockets::of_one()?;
        sockets.add(socket)?;
        Ok(Pipeline { line: Line::Ring(Box::new(sockets)), exchange, async_event })
    }

    /// The socket and the session's state, for another driver; none when something is in flight, or not yet sent or
    /// handled, or the session is over a ring.
    pub fn into_parts(self) -> Option<(TcpStream, Exchange)> {
        let Line::Plain(plain) = self.line else { return None };
        let is_quiet = self.exchange.out.is_empty() && plain.input_start == plain.input_end;
        (self.exchange.in_flight() == 0 && is_quiet).then_some((plain.socket, self.exchange))
    }

    /// How many commands are in flight.
    pub fn in_flight(&self) -> usize {
        self.exchange.in_flight()
    }

    /// Whether another command can start: a free slot, and room in the target's command window.
    pub fn has_room(&self) -> bool {
        self.exchange.has_room()
    }

    /// Queue a command; it leaves with the next [`Pipeline::turn`]. Call only while [`Pipeline::has_room`].
    pub fn start(&mut self, request: Request) {
        self.exchange.start(request);
    }

    /// Send what is queued, handle what arrived, hand over what ended. Returns whether anything moved.
    pub fn turn(&mut self, done: &mut Vec<Done>) -> io::Result<bool> {
        self.exchange.now = Instant::now();
        match &mut self.line {
            Line::Plain(plain) => {
                let sent = plain.flush(&mut self.exchange.out)?;
                let received = plain.fill()?;
                if received {
                    self.exchange.now = Instant::now();
                    let handled = self.exchange.receive(&plain.input[plain.input_start..plain.input_end], done);
                    self.async_event = self.exchange.async_event;
                    plain.input_start += handled?;
                }
                Ok(sent || received)
            }
            Line::Ring(sockets) => {
                sockets.send(0, &mut self.exchange.out)?;
                let mut moved = vec![];
                sockets.turn(self.exchange.now, &mut moved)?;
                let input = sockets.input(0);
                if !input.is_empty() {
                    self.exchange.now = Instant::now();
                    let handled = self.exchange.receive(input, done);
                    self.async_event = self.exchange.async_event;
                    sockets.receive_more(0, handled?)?;
                }
                Ok(!moved.is_empty())
            }
        }
    }

    /// Send as much of the queued bytes as the socket takes.
    pub fn flush(&mut self) -> io::Result<bool> {
        match &mut self.line {
            Line::Plain(plain) => plain.flush(&mut self.exchange.out),
            Line::Ring(sockets) => {
                sockets.send(0, &mut self.exchange.out)?;
                sockets.hand_over()?;
                Ok(false)
            }
        }
    }

    /// When the last bytes arrived: the completion time of what the last [`Pipeline::turn`] handed over.
    pub fn now(&self) -> Instant {
        self.exchange.now
    }

    /// Run one command alone and wait for it, at most ten seconds.
    pub fn run(&mut self, request: Request) -> io::Result<Done> {
        let mut done = vec![];
        let began = Instant::now();
        self.start(request);
        while done.is_empty() {
            if !self.turn(&mut done)? {
                std::thread::yield_now();
            }
            if began.elapsed().as_secs() >= 10 {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer within ten seconds"));
            }
        }
        done.pop().ok_or_else(|| io::Error::other("nothing ended"))
    }

    /// TEST UNIT READY until pending unit attentions are told; then READ CAPACITY (16): (blocks, bytes per block).
    pub fn capacity(&mut self, lun: u16) -> io::Result<(u64, u32)> {
        for _ in 0..8 {
            if self.run(Request::bare(lun, cdb::TEST_UNIT_READY))?.status == 0 {
                break;
            }
        }
        let mut command = [0; 16];
        command[0] = cdb::SERVICE_ACTION_IN_16;
        command[1] = 0x10;
        command[13] = 32;
        let done = self.run(Request::reading(lun, &command, 32))?;
        if done.status != 0 || done.received < 12 {
            return Err(io::Error::other(format!("READ CAPACITY (16): status {:#x}", done.status)));
        }
        let word =
            |at: usize| u32::from_be_bytes([done.data[at], done.data[at + 1], done.data[at + 2], done.data[at + 3]]);
        let last = u64::from(word(0)) << 32 | u64::from(word(4));
        Ok((last.wrapping_add(1), word(8)))
    }
}

impl Plain {
    fn flush(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        let mut moved = false;
        while self.out_sent < out.len() {
            match self.socket.write(&out[self.out_sent..]) {
                Ok(n) => {
                    self.out_sent += n;
                    moved = true;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(moved),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        out.clear();
        self.out_sent = 0;
        Ok(moved)
    }

    fn fill(&mut self) -> io::Result<bool> {
        if self.input_start == self.input_end {
            (self.input_start, self.input_end) = (0, 0);
        } else if self.input_end == self.input.len() {
            self.input.copy_within(self.input_start..self.input_end, 0);
            (self.input_start, self.input_end) = (0, self.input_end - self.input_start);
        }
        match self.socket.read(&mut self.input[self.input_end..]) {
            Ok(0) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the target closed the connection")),
            Ok(n) => {
                self.input_end += n;
                Ok(true)
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(false),
            Err(e) => Err(e),
        }
    }
}
