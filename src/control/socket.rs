//! The control socket: who may connect, and HTTP over what connects.
//!
//! A thread waits in `accept`, asks the kernel who the peer is (which glommio's sockets cannot), and hands the
//! connection to the executor. Idle costs nothing.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fs, thread};

use axum::Router;
use axum::body::Body;
use futures_channel::{mpsc, oneshot};
use futures_lite::StreamExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use tower_service::Service;

use super::api::ErrorBody;
use super::error::Refused;
use super::executor::{self, Stream};
use crate::limits::{CONTROL_CONNECTIONS_MAX, CONTROL_HEAD_TIMEOUT_MS};

/// The longest path that fits a socket address, with its final NUL (unix(7)).
const PATH_BYTES_MAX: usize = 107;

/// How long a peer that will be refused may take to say what it wants.
const TURN_AWAY_PATIENCE: Duration = Duration::from_millis(500);

/// A listening control socket; its file goes when this does.
pub struct ControlSocket {
    path: PathBuf,
    listener: Arc<UnixListener>,
}

impl ControlSocket {
    /// Listen at `path`, in place of the socket of a server that is gone.
    ///
    /// # Errors
    /// Another server listens there, something else has that name, or the file system refuses.
    pub fn bind(path: &Path) -> Result<ControlSocket, Refused> {
        let shown = path.display();
        if path.as_os_str().len() > PATH_BYTES_MAX {
            return Err(Refused::invalid(format!(
                "the control socket's path {shown} is too long for the system ({PATH_BYTES_MAX} bytes); choose a \
                 shorter one with --socket"
            )));
        }
        clear(path)?;
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.exists()) {
            fs::create_dir(folder)
                .map_err(|e| Refused::failed(format!("cannot make the folder {}: {e}", folder.display())))?;
        }
        let failed = |e: io::Error| Refused::failed(format!("cannot listen on the control socket {shown}: {e}"));
        let listener = UnixListener::bind(path).map_err(failed)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(ControlSocket { path: path.to_owned(), listener: Arc::new(listener) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Serve connections on the running executor until this is dropped.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn serve(&self, router: Router) -> Result<(), Refused> {
        let (sender, mut connections) = mpsc::channel::<(UnixStream, Place)>(CONTROL_CONNECTIONS_MAX);
        let listener = Arc::clone(&self.listener);
        thread::Builder::new()
            .name("control-accept".to_owned())
            .spawn(move || accept(&listener, &Guests::new(), sender))
            .map_err(|e| Refused::failed(format!("cannot start a thread: {e}")))?;
        executor::spawn(async move {
            while let Some((connection, place)) = connections.next().await {
                let router = router.clone();
                executor::spawn(converse(connection, router, place));
            }
        });
        Ok(())
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // Wakes the accepting thread, which then ends.
        let _ = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both);
        let _ = fs::remove_file(&self.path);
    }
}

/// Make way for a socket, if nothing that lives is there.
fn clear(path: &Path) -> Result<(), Refused> {
    let shown = path.display();
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(Refused::conflict(format!("{shown} is not a socket; choose another path with --socket")));
    }
    match UnixStream::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(|e| {
            Refused::failed(format!("cannot replace the control socket {shown} of a server that is gone: {e}"))
        }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Refused::failed(format!("cannot look at the control socket {shown}: {e}"))),
        Ok(_) => Err(Refused::conflict(format!(
            "another server listens on the control socket {shown}; stop it, or choose another with --socket"
        ))),
    }
}

/// The connections that are being served. A thread accepts them, the executor serves them.
struct Guests {
    table: Mutex<Table>,
    freed: Condvar,
}

#[derive(Default)]
struct Table {
    guests: HashMap<u64, Guest>,
    /// Counts arrivals and answers, so that one can be told to be longer ago than another.
    moment: u64,
}

/// One connection.
struct Guest {
    /// When it became silent; `None` while a request of it is at work.
    silent_since: Option<u64>,
    /// Ends it, once.
    leave: Option<oneshot::Sender<()>>,
}

impl Table {
    fn now(&mut self) -> u64 {
        self.moment += 1;
        self.moment
    }

    /// End the connection that has been silent longest.
    fn turn_out(&mut self) {
        let silent = self.guests.values_mut().filter(|guest| guest.silent_since.is_some() && guest.leave.is_some());
        if let Some(leave) = silent.min_by_key(|guest| guest.silent_since).and_then(|guest| guest.leave.take()) {
            let _ = leave.send(());
        }
    }
}

impl Guests {
    fn new() -> Arc<Guests> {
        Arc::new(Guests { table: Mutex::default(), freed: Condvar::new() })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more connection; waits while all are taken by connections that are at work.
    fn take(self: &Arc<Guests>) -> Place {
        let mut table = self.table();
        while table.guests.len() >= CONTROL_CONNECTIONS_MAX {
            table.turn_out();
            table = self.freed.wait(table).unwrap_or_else(PoisonError::into_inner);
        }
        let (leave, left) = oneshot::channel();
        let id = table.now();
        table.guests.insert(id, Guest { silent_since: Some(id), leave: Some(leave) });
        Place { guests: Arc::clone(self), id, left }
    }
}

/// A connection's place; free again when dropped.
struct Place {
    guests: Arc<Guests>,
    id: u64,
    /// Says that the place is wanted for another.
    left: oneshot::Receiver<()>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.guests.table().guests.remove(&self.id);
        self.guests.freed.notify_one();
    }
}

/// A request that is at work: its connection is not silent as long as this lives.
struct Working {
    guests: Arc<Guests>,
    id: u64,
}

impl Working {
    fn new(guests: &Arc<Guests>, id: u64) -> Working {
        if let Some(guest) = guests.table().guests.get_mut(&id) {
            guest.silent_since = None;
        }
        Working { guests: Arc::clone(guests), id }
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        let mut table = self.guests.table();
        let now = table.now();
        if let Some(guest) = table.guests.get_mut(&self.id) {
            guest.silent_since = Some(now);
        }
        drop(table);
        // Whoever waits for a place looks again for one that is silent.
        self.guests.freed.notify_one();
    }
}

fn accept(listener: &UnixListener, guests: &Arc<Guests>, mut connections: mpsc::Sender<(UnixStream, Place)>) {
    loop {
        let place = guests.take();
        let connection = match listener.accept() {
            Ok((connection, _)) => connection,
            // EINVAL: the socket was shut down.
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => return,
            Err(_) => {
                // Out of descriptors, for example: give the server a moment to close some.
                thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        if let Err(refused) = check_peer(&connection) {
            turn_away(&connection, &refused);
            continue;
        }
        // There are as many slots as places, so a full channel is impossible; closed, the server is ending.
        if connections.try_send((connection, place)).is_err() {
            return;
        }
    }
}

/// Only root and the user who runs the server may give commands.
fn check_peer(connection: &UnixStream) -> Result<(), Refused> {
    let own = rustix::process::geteuid();
    let peer = rustix::net::sockopt::socket_peercred(connection)
        .map_err(|e| Refused::failed(format!("the kernel does not say who is connecting: {e}")))?
        .uid;
    allowed(peer, own)
}

fn allowed(peer: rustix::process::Uid, own: rustix::process::Uid) -> Result<(), Refused> {
    if peer.is_root() || peer == own {
        return Ok(());
    }
    Err(Refused::invalid(format!(
        "user {} may not control this server; only root and the user who runs it (uid {}) may",
        peer.as_raw(),
        own.as_raw()
    )))
}

/// Refuse a connection in HTTP, so that any client can show why.
fn turn_away(mut connection: &UnixStream, refused: &Refused) {
    // An answer before the question confuses clients. One that does not ask soon needs no answer.
    let _ = connection.set_read_timeout(Some(TURN_AWAY_PATIENCE));
    let mut request = [0u8; 4096];
    let _ = connection.read(&mut request);
    let body = serde_json::to_string(&ErrorBody { error: refused.message.clone() }).unwrap_or_default();
    let head = "HTTP/1.1 403 Forbidden\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length:";
    // A small answer fits the socket's buffer; a peer that is gone does not need it.
    let _ = write!(connection, "{head} {}\r\n\r\n{body}", body.len());
}

async fn converse(connection: UnixStream, router: Router, mut place: Place) {
    let (guests, id) = (Arc::clone(&place.guests), place.id);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let mut router = router.clone();
        let working = Working::new(&guests, id);
        async move {
            let answer = router.call(request.map(Body::new)).await;
            drop(working);
            answer
        }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(executor::Clock)
        .header_read_timeout(Duration::from_millis(CONTROL_HEAD_TIMEOUT_MS))
        .serve_connection(Stream::new(connection), service);
    // A client that goes away in the middle is its own affair.
    let served = async { drop(served.await) };
    let left = async { (&mut place.left).await.unwrap_or_default() };
    futures_lite::future::or(served, left).await;
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_servers_socket_is_replaced_and_a_living_ones_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s/control.sock");
        let living = ControlSocket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let refused = ControlSocket::bind(&path).err().unwrap();
        assert!(refused.message.contains("another server listens"), "{refused}");
        // As after kill -9: the file stays, nobody listens.
        drop(UnixListener::bind(dir.path().join("dead")).unwrap());
        ControlSocket::bind(&dir.path().join("dead")).unwrap();
        drop(living);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_is_not_taken_for_a_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "precious").unwrap();
        assert!(ControlSocket::bind(&path).err().unwrap().message.contains("is not a socket"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        let long = dir.path().join("x".repeat(120));
        assert!(ControlSocket::bind(&long).err().unwrap().message.contains("too long"));
    }

    #[test]
    fn the_longest_silent_connection_makes_way_and_a_busy_one_does_not() {
        let guests = Guests::new();
        let mut places: Vec<Place> = (0..CONTROL_CONNECTIONS_MAX).map(|_| guests.take()).collect();
        let at_work = Working::new(&guests, places[0].id);
        let of_thread = Arc::clone(&guests);
        let newcomer = thread::spawn(move || of_thread.take().id);
        let oldest_silent = futures_lite::future::block_on(async { (&mut places[1].left).await });
        assert_eq!(oldest_silent, Ok(()));
        assert_eq!(places[0].left.try_recv(), Ok(None), "a request is at work on it");
        drop(places.remove(1));
        newcomer.join().unwrap();
        // It has been answered just now: others have been silent for longer.
        drop(at_work);
        guests.table().turn_out();
        assert_eq!(places[0].left.try_recv(), Ok(None));
        assert_eq!(places[1].left.try_recv(), Ok(Some(())));
    }

    #[test]
    fn other_users_are_told_why_not() {
        let uid = rustix::process::Uid::from_raw;
        assert!(allowed(uid(0), uid(1000)).is_ok());
        assert!(allowed(uid(1000), uid(1000)).is_ok());
        let refused = allowed(uid(1001), uid(1000)).unwrap_err();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        turn_away(&ours, &refused);
        drop(ours);
        let mut answer = String::new();
        theirs.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
        assert!(answer.ends_with("(uid 1000) may\"}"), "{answer}");
    }
}
