//! Sockets as the data plane uses them: listeners, one a shard, and what an accepted socket says about itself.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::Fd;

/// How long a connection that has been shut down may go without the peer taking any of what is left.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(10);

/// How to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenOptions {
    /// Share the address with the other shards' listeners (SO_REUSEPORT).
    pub reuse_port: bool,
    /// Connections that may wait to be accepted.
    pub backlog: u32,
    /// Prefer connections whose packets this CPU receives (SO_INCOMING_CPU). A hint: kernels before 6.2 ignore it among
    /// listeners that share a port, and [`steer_by_cpu`] overrides it.
    pub incoming_cpu: Option<usize>,
}

/// A listening TCP socket for [`Op::Accept`](super::Op::Accept). IPv6 sockets take IPv6 only.
pub fn listen(address: SocketAddr, options: ListenOptions) -> io::Result<OwnedFd> {
    // Blocking mode: io_uring answers EAGAIN on a nonblocking listener instead of waiting.
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.cloexec(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // A restarted server must not wait for the old connections' TIME_WAIT to end.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(options.reuse_port)?;
    // Accepted sockets inherit it.
    socket.set_tcp_nodelay(true)?;
    if let Some(cpu) = options.incoming_cpu {
        socket.set_cpu_affinity(cpu)?;
    }
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(options.backlog).unwrap_or(i32::MAX))?;
    Ok(socket.into())
}

/// Steer connections among the listeners of one shared port by the CPU that received them: CPU `c` goes to the listener
/// `listener_of_cpu[c]`, counted in the order of their `listen` calls; other CPUs are spread by the kernel's hash. Set
/// on any one listener of the group, after all of them listen. When a listener of the group closes, the last one takes
/// its number, so steer anew after such changes.
pub fn steer_by_cpu(listener: BorrowedFd<'_>, listener_of_cpu: &[u32]) -> io::Result<()> {
    let mut program = steering_program(listener_of_cpu)?;
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the kernel reads a `sock_fprog` of the given size and the instructions it points to, all of which live
    // until the call returns.
    let result = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A classic BPF program whose result is a listener's number: load the CPU, one comparison and return for each that is
/// listed, then a number that no listener has, for which the kernel falls back to its hash.
fn steering_program(listener_of_cpu: &[u32]) -> io::Result<Vec<libc::sock_filter>> {
    const INSTRUCTIONS_MAX: usize = 4096;
    /// `SKF_AD_OFF + SKF_AD_CPU` as the program's unsigned operand.
    const CPU_OFFSET: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_CPU) as u32;
    let instruction = |code: u32, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf, k };
    let mut program = vec![instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, CPU_OFFSET)];
    for (cpu, listener) in listener_of_cpu.iter().enumerate() {
        program.push(instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, cpu as u32));
        program.push(instruction(libc::BPF_RET | libc::BPF_K, 0, *listener));
    }
    program.push(instruction(libc::BPF_RET | libc::BPF_K, 0, u32::MAX));
    if program.len() > INSTRUCTIONS_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "more CPUs than a steering program can list (2047)"));
    }
    Ok(program)
}

/// The address a listener is bound to (with the port the system chose, for port 0).
pub fn local_address(socket: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    let address = SockRef::from(&socket).local_addr()?;
    address.as_socket().ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))
}

/// Local and peer address of a connected socket; `None` once it has none (the peer is gone, or it is no IP socket).
pub(super) fn addresses(socket: Fd) -> Option<(SocketAddr, SocketAddr)> {
    let borrowed = borrow(socket)?;
    let socket = SockRef::from(&borrowed);
    Some((socket.local_addr().ok()?.as_socket()?, socket.peer_addr().ok()?.as_socket()?))
}

/// Make an accepted socket send at once. Fails only for a socket that is already dead, which its first use will show.
pub(super) fn send_at_once(socket: Fd) {
    if let Some(borrowed) = borrow(socket) {
        let _ = SockRef::from(&borrowed).set_tcp_nodelay(true);
    }
}

/// Shut both directions down: 0, or an errno value negated as completions have it. What was sent still arrives, but a
/// peer that takes nothing for [`LAST_WORDS_TIMEOUT`] is given up, so that buffers of zero-copy sends come back.
pub(super) fn shutdown(socket: Fd) -> i32 {
    let Some(borrowed) = borrow(socket) else { return -libc::EBADF };
    let socket = SockRef::from(&borrowed);
    // Fails for what is no TCP socket, which needs no limit.
    let _ = socket.set_tcp_user_timeout(Some(LAST_WORDS_TIMEOUT));
    match socket.shutdown(std::net::Shutdown::Both) {
        Ok(()) => 0,
        Err(error) => -error.raw_os_error().unwrap_or(libc::EIO),
    }
}

fn borrow(socket: Fd) -> Option<BorrowedFd<'static>> {
    if socket.0 < 0 {
        return None;
    }
    // SAFETY: not -1. The caller of the ring keeps the descriptor open while it uses it; used after that, it names
    // another open file or none, on which the socket calls here fail or act harmlessly, never on memory.
    Some(unsafe { BorrowedFd::borrow_raw(socket.0) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::net::TcpStream;
    use std::os::fd::AsFd;

    fn options(reuse_port: bool) -> ListenOptions {
        ListenOptions { reuse_port, backlog: 16, incoming_cpu: Some(0) }
    }

    #[test]
    fn an_ipv6_listener_leaves_ipv4_to_another() {
        let v6 = listen("[::]:0".parse().unwrap(), options(false)).unwrap();
        let port = local_address(v6.as_fd()).unwrap().port();
        let v4 = listen(SocketAddr::from(([0, 0, 0, 0], port)), options(false)).unwrap();
        assert_eq!(local_address(v4.as_fd()).unwrap().port(), port);
    }

    #[test]
    fn connections_go_to_the_listener_that_the_program_names() {
        let first = listen("127.0.0.1:0".parse().unwrap(), options(true)).unwrap();
        let address = local_address(first.as_fd()).unwrap();
        let second = listen(address, options(true)).unwrap();
        for (chosen, other, number) in [(&first, &second, 0), (&second, &first, 1)] {
            steer_by_cpu(first.as_fd(), &[number; 1024]).unwrap();
            for socket in [chosen, other] {
                SockRef::from(&socket.as_fd()).set_nonblocking(true).unwrap();
            }
            let clients: Vec<TcpStream> = (0..8).map(|_| TcpStream::connect(address).unwrap()).collect();
            for client in &clients {
                let (_, peer) = SockRef::from(&chosen.as_fd()).accept().unwrap();
                assert_eq!(peer.as_socket().unwrap().ip(), client.local_addr().unwrap().ip());
            }
            assert!(SockRef::from(&other.as_fd()).accept().is_err());
        }
        assert!(steer_by_cpu(first.as_fd(), &[0; 3000]).is_err());
    }
}
