//! A client's end of a simulated connection: another computer, whose kernel is not simulated.
//!
//! **May know:** the simulated kernel.

use std::cell::RefCell;
use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;

use super::allocation::Inside;
use super::kernel::{CLIENT, ConnectionId, Kernel, StreamError};

/// A connected byte stream that never blocks. Dropping it closes it.
pub struct Stream {
    kernel: Rc<RefCell<Kernel>>,
    id: ConnectionId,
    local: SocketAddr,
    peer: SocketAddr,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stream({} to {})", self.local, self.peer)
    }
}

impl Stream {
    pub(super) fn new(kernel: Rc<RefCell<Kernel>>, id: ConnectionId, local: SocketAddr, peer: SocketAddr) -> Stream {
        Stream { kernel, id, local, peer }
    }

    /// Write as much as there is room for; returns how much that was, at least one byte.
    pub fn write(&mut self, bytes: &[u8]) -> Result<usize, StreamError> {
        let _inside = Inside::enter();
        self.kernel.borrow_mut().client_write(self.id, bytes)
    }

    /// Read what has arrived, at least one byte; 0 is the end of the stream.
    pub fn read(&mut self, into: &mut [u8]) -> Result<usize, StreamError> {
        assert!(!into.is_empty(), "a read into nothing cannot be told from the end of the stream");
        let _inside = Inside::enter();
        self.kernel.borrow_mut().client_read(self.id, into)
    }

    /// End our direction; the peer's goes on.
    pub fn end(&mut self) {
        let _inside = Inside::enter();
        self.kernel.borrow_mut().client_end(self.id);
    }

    /// Reset the connection: both directions are lost at once.
    pub fn reset(self) {
        let _inside = Inside::enter();
        self.kernel.borrow_mut().reset(self.id);
    }

    /// Our address.
    pub fn local_address(&self) -> SocketAddr {
        self.local
    }

    /// The server's address.
    pub fn peer_address(&self) -> SocketAddr {
        self.peer
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _inside = Inside::enter();
        if let Ok(mut kernel) = self.kernel.try_borrow_mut() {
            kernel.close_side(self.id, CLIENT);
        }
    }
}
