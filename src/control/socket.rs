//! The control socket: who may connect, and HTTP over what connects.
//!
//! A thread waits in `accept`, asks the kernel who the peer is (which glommio's sockets cannot), and hands the
//! connection to the executor. Idle costs nothing.

use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;
use std::{fs, thread};

use axum::Router;
use axum::body::Body;
use futures_channel::mpsc;
use futures_lite::StreamExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use tower_service::Service;

use super::api::ErrorBody;
use super::error::Refused;
use super::executor::{self, Stream};
use crate::limits::CONTROL_CONNECTIONS_MAX;

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
        let (sender, mut connections) = mpsc::channel::<UnixStream>(CONTROL_CONNECTIONS_MAX);
        let listener = Arc::clone(&self.listener);
        let places = Arc::new(Places::new());
        let of_thread = Arc::clone(&places);
        thread::Builder::new()
            .name("control-accept".to_owned())
            .spawn(move || accept(&listener, &of_thread, sender))
            .map_err(|e| Refused::failed(format!("cannot start a thread: {e}")))?;
        executor::spawn(async move {
            while let Some(connection) = connections.next().await {
                let (router, place) = (router.clone(), Place(Arc::clone(&places)));
                executor::spawn(async move {
                    converse(connection, router).await;
                    drop(place);
                });
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

/// How many connections may still be accepted.
struct Places {
    free: Mutex<usize>,
    freed: Condvar,
}

impl Places {
    fn new() -> Places {
        Places { free: Mutex::new(CONTROL_CONNECTIONS_MAX), freed: Condvar::new() }
    }

    fn take(&self) {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = self.freed.wait_while(free, |free| *free == 0).unwrap_or_else(PoisonError::into_inner);
        *free -= 1;
    }

    fn give_back(&self) {
        *self.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.freed.notify_one();
    }
}

/// A connection's place; free again when dropped.
struct Place(Arc<Places>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.give_back();
    }
}

fn accept(listener: &UnixListener, places: &Places, mut connections: mpsc::Sender<UnixStream>) {
    loop {
        places.take();
        let connection = match listener.accept() {
            Ok((connection, _)) => connection,
            // EINVAL: the socket was shut down.
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => return,
            Err(_) => {
                // Out of descriptors, for example: give the server a moment to close some.
                thread::sleep(Duration::from_millis(100));
                places.give_back();
                continue;
            }
        };
        if let Err(refused) = check_peer(&connection) {
            turn_away(&connection, &refused);
            places.give_back();
            continue;
        }
        // There are as many slots as places, so a full channel is impossible; closed, the server is ending.
        if connections.try_send(connection).is_err() {
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

async fn converse(connection: UnixStream, router: Router) {
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let mut router = router.clone();
        async move { router.call(request.map(Body::new)).await }
    });
    // A client that goes away in the middle is its own affair.
    let _ = hyper::server::conn::http1::Builder::new()
        .header_read_timeout(None)
        .serve_connection(Stream::new(connection), service)
        .await;
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
