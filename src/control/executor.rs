//! The executor of the control plane: the only module that names glommio.
//!
//! One thread, parked in the kernel while nothing happens. Other threads wake it by waking a task's `Waker` (glommio
//! rings its eventfd); nothing here polls.

use std::future::Future;
use std::io;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_lite::io::{AsyncRead, AsyncWrite};
use glommio::net::TcpStream;
use glommio::{LocalExecutorBuilder, Placement};

/// Entries of each ring: the control plane has few operations in flight.
const RING_DEPTH: usize = 64;
/// Memory that glommio registers for direct file I/O, which the control plane does not do.
const IO_MEMORY_BYTES: usize = 64 * 1024;

/// How far the control plane stands back (nice(2)) where it shares a CPU with a shard.
const NICE: i32 = 10;

/// Run a future to its end on this thread, on `cpu` when one is named.
///
/// # Errors
/// The kernel refuses io_uring or the memory for it: one line that says what to change.
pub fn run<T>(cpu: Option<usize>, future: impl Future<Output = T>) -> Result<T, String> {
    // Threads that are started from here stand back, too. A refusal costs only that.
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE);
    let placement = cpu.map_or(Placement::Unbound, Placement::Fixed);
    let executor = LocalExecutorBuilder::new(placement)
        .name("control")
        .ring_depth(RING_DEPTH)
        .io_memory(IO_MEMORY_BYTES)
        .make()
        .map_err(|error| {
            format!(
                "cannot set up io_uring for the control plane ({error}); check that the kernel allows io_uring \
                 (sysctl kernel.io_uring_disabled=0) and raise the locked memory limit (ulimit -l) to 8192 or more"
            )
        })?;
    Ok(executor.run(future))
}

/// Start a task on the running executor; it lives until it ends or the executor does.
pub fn spawn(future: impl Future<Output = ()> + 'static) {
    glommio::spawn_local(future).detach();
}

/// Time, for what waits on the running executor.
#[derive(Clone, Copy, Debug)]
pub struct Clock;

/// Ends at its time.
struct Sleep(async_io::Timer);

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.0).poll(context).map(drop)
    }
}

impl hyper::rt::Sleep for Sleep {}

impl hyper::rt::Timer for Clock {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(Sleep(async_io::Timer::after(duration)))
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(Sleep(async_io::Timer::at(deadline)))
    }
}

/// A connected unix socket on the running executor.
pub struct Stream(TcpStream);

impl Stream {
    /// Take over a connected socket. (glommio makes streams from sockets under this name only; it asks nothing of TCP
    /// of them.)
    pub fn new(socket: UnixStream) -> Stream {
        Stream(TcpStream::from(glommio_socket::Socket::from(socket)))
    }

    /// Wait for some bytes, as a signal; `false` at the end of the stream.
    pub async fn notified(&mut self) -> bool {
        let mut bytes = [0u8; 64];
        let read = std::future::poll_fn(|context| Pin::new(&mut self.0).poll_read(context, &mut bytes)).await;
        matches!(read, Ok(1..))
    }
}

impl hyper::rt::Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        // Through the stack: the cursor's memory may be uninitialised, and requests are small.
        let mut bytes = [0u8; 8192];
        let room = buffer.remaining().min(bytes.len());
        let read = Pin::new(&mut self.0).poll_read(context, &mut bytes[..room]);
        read.map_ok(|len| buffer.put_slice(&bytes[..len.min(room)]))
    }
}

impl hyper::rt::Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_close(context)
    }
}

/// Start blocking work on a thread of its own; the future waits for it without blocking the executor.
pub fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> impl Future<Output = T> {
    let (done, result) = futures_channel::oneshot::channel();
    let job = Arc::new(Mutex::new(Some((work, done))));
    let of_thread = Arc::clone(&job);
    let started = std::thread::Builder::new().name("control-file".to_owned()).spawn(move || carry_out(&of_thread));
    if started.is_err() {
        // The system gives no thread: a control plane that blocks is better than none.
        carry_out(&job);
    }
    async { result.await.expect("blocking work does not panic") }
}

/// Do the work if nobody has, and tell its result.
fn carry_out<T, W: FnOnce() -> T>(job: &Mutex<Option<(W, futures_channel::oneshot::Sender<T>)>>) {
    let job = job.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some((work, done)) = job {
        // The receiver waits as long as the command does; when the server is ending nobody needs the value.
        let _ = done.send(work());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// CPU time of this thread so far.
    fn thread_cpu() -> Duration {
        let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        Duration::from_nanos(stat.split_whitespace().next().unwrap().parse().unwrap())
    }

    fn switches() -> u64 {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).unwrap();
        line.split_whitespace().last().unwrap().parse().unwrap()
    }

    #[test]
    fn another_thread_wakes_the_executor_and_waiting_costs_nothing() {
        let (waited, cpu, switched) = run(None, async {
            let (sender, receiver) = futures_channel::oneshot::channel();
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(700));
                sender.send(Instant::now()).unwrap();
            });
            let (cpu, switched) = (thread_cpu(), switches());
            let sent: Instant = receiver.await.unwrap();
            (sent.elapsed(), thread_cpu() - cpu, switches() - switched)
        })
        .unwrap();
        assert!(waited < Duration::from_millis(100), "woken {waited:?} after the answer was sent");
        assert!(cpu < Duration::from_millis(20), "waiting cost {cpu:?} of CPU time");
        assert!(switched < 10, "waiting woke up {switched} times");
    }

    #[test]
    fn bytes_on_a_socket_are_a_signal_and_so_is_its_end() {
        let seen = run(None, async {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let thread = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(50));
                io::Write::write_all(&mut &theirs, b"x").unwrap();
                std::thread::sleep(Duration::from_millis(50));
            });
            let mut stream = Stream::new(ours);
            let seen = (stream.notified().await, stream.notified().await);
            thread.join().unwrap();
            seen
        });
        assert_eq!(seen, Ok((true, false)));
    }

    #[test]
    fn blocking_work_leaves_the_executor_free() {
        let order = run(None, async {
            let (sender, mut receiver) = futures_channel::mpsc::unbounded();
            let late = sender.clone();
            spawn(async move {
                blocking(|| std::thread::sleep(Duration::from_millis(200))).await;
                late.unbounded_send("file").unwrap();
            });
            spawn(async move {
                async_io::Timer::after(Duration::from_millis(20)).await;
                sender.unbounded_send("other").unwrap();
            });
            let mut order = Vec::new();
            for _ in 0..2 {
                order.push(futures_lite::StreamExt::next(&mut receiver).await.unwrap());
            }
            order
        });
        assert_eq!(order, Ok(vec!["other", "file"]));
    }
}
