//! Byte streams between a listener's world and its clients: bounded, in order, cut anywhere.
//!
//! A connection is two pipes. What one side writes is on its way first and arrives later, in pieces cut at any byte;
//! the other side reads only what has arrived. An orderly end follows the bytes; a reset destroys them.
//!
//! **May know:** nothing but bytes. The world decides when pieces arrive.

use std::collections::VecDeque;

/// One direction of a connection.
#[derive(Debug)]
pub(super) struct Pipe {
    bytes: VecDeque<u8>,
    arrived: usize,
    capacity: usize,
    /// The writer has ended the stream.
    ended: bool,
    /// The end has arrived behind the last byte.
    end_arrived: bool,
}

impl Pipe {
    pub(super) fn new(capacity_bytes: usize) -> Pipe {
        assert!(capacity_bytes > 0, "a pipe without room would never move");
        Pipe {
            bytes: VecDeque::with_capacity(capacity_bytes),
            arrived: 0,
            capacity: capacity_bytes,
            ended: false,
            end_arrived: false,
        }
    }

    /// Bytes that can be written now.
    pub(super) fn room(&self) -> usize {
        self.capacity - self.bytes.len()
    }

    /// Bytes that can be read now.
    pub(super) fn readable(&self) -> usize {
        self.arrived
    }

    /// Whether a reader gets an answer now: bytes, or the end.
    pub(super) fn has_news(&self) -> bool {
        self.arrived > 0 || self.end_arrived
    }

    /// Whether bytes were written that nobody has read.
    pub(super) fn is_unread(&self) -> bool {
        !self.bytes.is_empty()
    }

    pub(super) fn write(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= self.room());
        assert!(!self.ended, "no bytes follow the end");
        self.bytes.extend(bytes);
    }

    /// `count` more bytes have arrived. After a reset there may be fewer; then nothing happens.
    pub(super) fn arrive(&mut self, count: usize) {
        self.arrived = (self.arrived + count).min(self.bytes.len());
    }

    /// Read up to `into.len()` arrived bytes.
    pub(super) fn read(&mut self, into: &mut [u8]) -> usize {
        let count = into.len().min(self.arrived);
        let (front, back) = self.bytes.as_slices();
        let split = count.min(front.len());
        into[..split].copy_from_slice(&front[..split]);
        into[split..count].copy_from_slice(&back[..count - split]);
        self.bytes.drain(..count);
        self.arrived -= count;
        count
    }

    /// The writer ends the stream.
    pub(super) fn end(&mut self) {
        self.ended = true;
    }

    pub(super) fn is_ended(&self) -> bool {
        self.ended
    }

    /// The end arrives; everything before it has.
    pub(super) fn arrive_end(&mut self) {
        self.arrived = self.bytes.len();
        self.end_arrived = true;
    }

    /// Lose everything that was not read.
    pub(super) fn destroy(&mut self) {
        self.bytes.clear();
        self.arrived = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_in_order_once_they_have_arrived() {
        let mut pipe = Pipe::new(8);
        pipe.write(b"abcdef");
        assert_eq!((pipe.room(), pipe.readable(), pipe.has_news()), (2, 0, false));
        pipe.arrive(2);
        let mut into = [0; 8];
        assert_eq!(pipe.read(&mut into), 2);
        assert_eq!(&into[..2], b"ab");
        pipe.write(b"gh");
        pipe.end();
        pipe.arrive_end();
        assert_eq!(pipe.read(&mut into), 6);
        assert_eq!(&into[..6], b"cdefgh");
        assert!(pipe.has_news() && pipe.readable() == 0, "the end is news for ever");
    }
}
