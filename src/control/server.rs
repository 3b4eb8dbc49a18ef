//! The server from start to end.

use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{flag, low_level::pipe};

use super::api;
use super::controller::{Controller, Handle};
use super::dataplane::DataPlane;
use super::error::Refused;
use super::executor::{self, Stream};
use super::routes::{self, Server};
use super::socket::ControlSocket;
use super::state::StateDir;
use super::watch;

/// How long commands in flight may take when the server ends.
const QUIESCE_PATIENCE_MS: u64 = 1000;

/// How long ending may take in all. What is not closed by then is repaired at the next start.
const ENDING_MAX: Duration = Duration::from_millis(1800);

/// What to run.
pub struct Options {
    /// The state folder.
    pub state: PathBuf,
    /// Portals for this run, besides those of the configuration.
    pub portals: Vec<SocketAddr>,
    /// The control socket; `control.sock` in the state folder unless said otherwise.
    pub socket: Option<PathBuf>,
    /// The CPU of the control plane.
    pub control_cpu: Option<usize>,
    /// The CPU of each shard.
    pub cores: Vec<usize>,
}

/// The shards that a server runs on.
pub struct Plane {
    /// Their mailboxes.
    pub shards: Arc<dyn DataPlane>,
    /// The io_uring features in use, in one line.
    pub io_uring: String,
}

/// A server that is up.
pub struct Ready {
    /// What it says about itself.
    pub about: api::Version,
    /// The control socket.
    pub socket: PathBuf,
    /// Commands and views.
    pub handle: Handle,
}

/// Ends a server: bytes on it, or its end.
pub type Ending = UnixStream;

/// The two signals that end the server cleanly, as bytes on a socket; the second one ends the process at once.
///
/// # Errors
/// The system refuses.
pub fn ending_on_signals() -> Result<Ending, Refused> {
    let failed = |e: std::io::Error| Refused::failed(format!("cannot handle signals: {e}"));
    let (ending, signalled) = UnixStream::pair().map_err(failed)?;
    let again = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first signal finds the flag down, and raises it.
        flag::register_conditional_shutdown(signal, 1, Arc::clone(&again)).map_err(failed)?;
        flag::register(signal, Arc::clone(&again)).map_err(failed)?;
        pipe::register(signal, signalled.try_clone().map_err(failed)?).map_err(failed)?;
    }
    Ok(ending)
}

/// Serve until `ending` says so. `prepare` may change the state folder's content through the running controller before
/// anything listens; `ready` is called when everything does. Gives what did not end cleanly.
///
/// # Errors
/// Why the server did not start.
pub fn serve(
    options: Options,
    start: impl FnOnce() -> Result<Plane, Refused>,
    prepare: impl AsyncFnOnce(&mut Controller) -> Result<(), Refused>,
    ready: impl FnOnce(&Ready),
    ending: Ending,
) -> Result<Vec<String>, Refused> {
    let state = StateDir::open(&options.state)?;
    state.load()?;
    let socket_path = options.socket.unwrap_or_else(|| state.path().join("control.sock"));
    let socket = ControlSocket::bind(&socket_path)?;
    let plane = start()?;
    let about = api::Version {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        state: state.path().to_owned(),
        uptime_seconds: 0,
        shards: plane.shards.count(),
        cores: options.cores,
        io_uring: plane.io_uring,
    };
    let portals = options.portals;
    let life = async move {
        let mut controller = Controller::start(state, plane.shards).await?;
        let (handle, jobs) = controller.handle();
        let up = match prepare(&mut controller).await {
            Ok(()) => controller.listen_all(&portals).await,
            Err(refused) => Err(refused),
        };
        if let Err(refused) = up {
            stop(&handle).await;
            return Err(refused);
        }
        let server = Server { handle: handle.clone(), about: about.clone(), started: Instant::now() };
        socket.serve(routes::router(server))?;
        executor::spawn(watch::space(controller.view_place(), Arc::clone(&controller.plane)));
        executor::spawn(controller.run(jobs));
        executor::spawn(handle.isns.clone().run());
        handle.resume_merges().await;
        ready(&Ready { about, socket: socket.path().to_owned(), handle: handle.clone() });
        Stream::new(ending).notified().await;
        // No command comes in any more while the disks are closed.
        drop(socket);
        handle.registry.cancel_all();
        handle.isns.end().await;
        Ok(stop(&handle).await)
    };
    executor::run(options.control_cpu, life).map_err(Refused::failed)?
}

/// Stop the shards, within [`ENDING_MAX`].
async fn stop(handle: &Handle) -> Vec<String> {
    let late = async {
        async_io::Timer::after(ENDING_MAX).await;
        vec!["the shards did not end in time; the next start repairs what they left open".to_owned()]
    };
    futures_lite::future::or(handle.stop(QUIESCE_PATIENCE_MS), late).await
}
