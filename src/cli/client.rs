//! HTTP over the control socket, from the client's side.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use async_io::Async;
use futures_lite::io::{AsyncRead, AsyncWrite};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request};
use serde_json::Value;

use super::SOCKET_DEFAULT;

/// Why a command failed: one line, what is wrong and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientError {
    pub(super) message: String,
    /// What was found out nevertheless, for standard output.
    pub printed: Option<String>,
}

impl ClientError {
    /// One line.
    pub fn new(message: impl Into<String>) -> ClientError {
        ClientError { message: message.into(), printed: None }
    }

    /// The command did its work and printed this, but what it found is bad.
    pub fn after(printed: String, message: impl Into<String>) -> ClientError {
        ClientError { message: message.into(), printed: Some(printed) }
    }
}

/// A server's control socket.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// The server with this control socket.
    pub fn new(socket: PathBuf) -> Client {
        Client { socket }
    }

    /// Send a request and wait for its answer: a JSON value, `Null` when the server has nothing to say.
    ///
    /// # Errors
    /// The server is not there, or refuses: its own words.
    pub fn request(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, ClientError> {
        let connection = UnixStream::connect(&self.socket).map_err(|e| self.unreachable(&e))?;
        let (status, text) = async_io::block_on(exchange(connection, method, path, body))
            .map_err(|e| ClientError::new(format!("the server at {} gave no answer: {e}", self.socket.display())))?;
        let answer: Value = match text.is_empty() {
            true => Value::Null,
            false => serde_json::from_slice(&text)
                .map_err(|_| ClientError::new(format!("{} does not speak this protocol", self.socket.display())))?,
        };
        if (200..300).contains(&status) {
            return Ok(answer);
        }
        let said =
            answer["error"].as_str().map_or_else(|| format!("the server refused with status {status}"), str::to_owned);
        Err(ClientError::new(said))
    }

    fn unreachable(&self, error: &io::Error) -> ClientError {
        let shown = self.socket.display();
        let hint = match self.socket == Path::new(SOCKET_DEFAULT) {
            true => {
                "name another socket with --socket or LUNARING_SOCKET (a server's default is control.sock in its state \
                 folder)"
            }
            false => "is the path right?",
        };
        ClientError::new(match error.kind() {
            io::ErrorKind::NotFound => format!(
                "there is no control socket {shown}; start a server with \
                 'lunaring serve --state DIR --socket {shown}', or {hint}"
            ),
            io::ErrorKind::ConnectionRefused => format!(
                "no server listens on the control socket {shown}; start it again with \
                 'lunaring serve --state DIR --socket {shown}'"
            ),
            io::ErrorKind::PermissionDenied => format!(
                "the control socket {shown} is not yours; give commands as the user who runs the server, or as root"
            ),
            _ => format!("cannot reach a server on the control socket {shown}: {error}"),
        })
    }
}

async fn exchange(
    connection: UnixStream,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Result<(u16, Bytes), Box<dyn std::error::Error>> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(Socket(Async::new(connection)?)).await?;
    let text = body.map(Value::to_string).unwrap_or_default();
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "lunaring")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(text)))?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await?.to_bytes();
        Ok::<_, hyper::Error>((status, bytes))
    };
    // The connection moves the bytes; it never ends first with an answer still due.
    let moved = async {
        connection.await?;
        std::future::pending().await
    };
    Ok(futures_lite::future::or(answer, moved).await?)
}

/// hyper's view of a socket.
struct Socket(Async<UnixStream>);

impl hyper::rt::Read for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut bytes = [0u8; 16 * 1024];
        let room = buffer.remaining().min(bytes.len());
        let read = Pin::new(&mut self.0).poll_read(context, &mut bytes[..room]);
        read.map_ok(|len| buffer.put_slice(&bytes[..len.min(room)]))
    }
}

impl hyper::rt::Write for Socket {
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

/// A name as one segment of a path.
pub fn segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = std::fmt::Write::write_fmt(&mut out, format_args!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    fn answered_with(answer: &'static str) -> Result<Value, ClientError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let len = stream.read(&mut request).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8_lossy(&request[..len]).into_owned()
        });
        let result = Client::new(path).request(Method::GET, "/v1/disks", None);
        assert!(thread.join().unwrap().starts_with("GET /v1/disks HTTP/1.1\r\n"));
        result
    }

    #[test]
    fn answers_refusals_and_nonsense_are_told_apart() {
        let good = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{\"disks\":1";
        assert!(answered_with(good).unwrap_err().message.contains("does not speak"));
        let good = "HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n{\"disks\":1}";
        assert_eq!(answered_with(good).unwrap()["disks"], 1);
        let refusal = "HTTP/1.1 409 Conflict\r\ncontent-length: 18\r\n\r\n{\"error\":\"in use\"}";
        assert_eq!(answered_with(refusal), Err(ClientError::new("in use")));
        assert!(answered_with("").unwrap_err().message.contains("gave no answer"));
    }

    #[test]
    fn a_server_that_is_not_there_is_said_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let ask = || Client::new(path.clone()).request(Method::GET, "/", None).unwrap_err().message;
        assert!(ask().contains("there is no control socket") && ask().contains("lunaring serve --state DIR"));
        drop(UnixListener::bind(&path).unwrap());
        assert!(ask().contains("no server listens"), "{}", ask());
    }

    #[test]
    fn names_cannot_change_the_path() {
        assert_eq!(segment("a/b?c d%"), "a%2Fb%3Fc%20d%25");
        assert_eq!(segment("iqn.2026-11.io.x:a"), "iqn.2026-11.io.x:a");
        assert_eq!(segment("[::1]:3260"), "%5B::1%5D:3260");
    }
}
