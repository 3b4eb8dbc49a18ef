//! Sockets as the data plane uses them: listeners, one a shard, and what an accepted socket says about itself.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};

/// How to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenOptions {
    /// Share the address with the other shards' listeners (SO_REUSEPORT).
    pub reuse_port: bool,
    /// Connections that may wait to be accepted.
    pub backlog: u32,
    /// Prefer connections whose packets this CPU receives (SO_INCOMING_CPU). A hint: kernels before 6.2 ignore it among
    /// listeners that share a port.
    pub incoming_cpu: Option<usize>,
}

/// A listening TCP socket for [`Op::Accept`](super::Op::Accept). IPv6 sockets take IPv6 only.
pub fn listen(address: SocketAddr, options: ListenOptions) -> io::Result<OwnedFd> {
    let _ = (address, options);
    todo!()
}

/// Steer connections among the listeners of one shared port by the CPU that received them: CPU `c` goes to the listener
/// `listener_of_cpu[c]`, counted in the order of their `listen` calls; others are spread by hash. Set on any one listener of
/// the group, after all of them listen.
pub fn steer_by_cpu(listener: BorrowedFd<'_>, listener_of_cpu: &[u32]) -> io::Result<()> {
    let _ = (listener, listener_of_cpu);
    todo!()
}

/// The address a listener is bound to (with the port the system chose, for port 0).
pub fn local_address(socket: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    let _ = socket;
    todo!()
}
