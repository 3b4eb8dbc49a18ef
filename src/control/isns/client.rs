//! The conversation with an iSNS server: register, renew, answer its inquiries, take the registration back.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::Duration;

use async_io::{Async, Timer};
use futures_lite::future::or;
use futures_lite::io::{AsyncReadExt, AsyncWriteExt};

use super::message::{self, DEV_ATTR_REG, DEV_DEREG, ESI, HEADER_BYTES, Header, RESPONSE, Registration};
use crate::control::executor::blocking;

/// How long connecting, and each answer of the server, may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long taking a registration back may take when the server ends.
pub const FAREWELL_PATIENCE: Duration = Duration::from_millis(300);

/// How long a registration is valid without being renewed.
const PERIOD_S: u32 = 60;

/// How often the server may ask whether we live.
const INQUIRY_INTERVAL_S: u32 = 60;

/// Bytes of one answer; answers repeat what was registered.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// What is to be registered where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The iSNS server: address or name, with a port.
    pub server: String,
    /// The entity's identifier.
    pub entity: String,
    /// Name and alias of each target.
    pub targets: Vec<(String, String)>,
    /// Where they are reached, with the portal group tag; a wildcard stands for the address that the server sees.
    pub portals: Vec<(SocketAddr, u16)>,
}

/// A registration that stands.
pub struct Standing {
    wanted: Wanted,
    source: String,
    /// Where the server asks whether we live.
    inquiries: Option<Async<TcpListener>>,
}

/// Give up after a while.
async fn within<T>(patience: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let late = async {
        Timer::after(patience).await;
        Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"))
    };
    or(work, late).await
}

struct Conversation {
    stream: Async<TcpStream>,
    transaction: u16,
}

impl Conversation {
    async fn open(server: &str) -> io::Result<Conversation> {
        let named = server.to_owned();
        // Looking a name up may take its time.
        let addresses: Vec<SocketAddr> = blocking(move || named.to_socket_addrs().map(Iterator::collect)).await?;
        let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in addresses {
            match within(PATIENCE, Async::<TcpStream>::connect(address)).await {
                Ok(stream) => return Ok(Conversation { stream, transaction: 0 }),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    fn local(&self) -> io::Result<IpAddr> {
        Ok(self.stream.get_ref().local_addr()?.ip().to_canonical())
    }

    /// Send one message; the status of its response.
    async fn ask(&mut self, function: u16, replace: bool, payload: &[u8]) -> io::Result<u32> {
        self.transaction = self.transaction.wrapping_add(1);
        let transaction = self.transaction;
        within(PATIENCE, async {
            self.stream.write_all(&message::encode(function, replace, transaction, payload)).await?;
            let (header, answer) = receive(&mut self.stream).await?;
            if (header.function, header.transaction) != (function | RESPONSE, transaction) {
                return Err(io::Error::other("the answer is for another message"));
            }
            message::status(&answer).ok_or_else(|| io::Error::other("the answer has no status"))
        })
        .await
    }
}

/// Receive a whole message.
async fn receive(stream: &mut Async<TcpStream>) -> io::Result<(Header, Vec<u8>)> {
    let mut payload = Vec::new();
    loop {
        let mut bytes = [0; HEADER_BYTES];
        stream.read_exact(&mut bytes).await?;
        let header = Header::parse(&bytes).ok_or_else(|| io::Error::other("a message of an unknown version"))?;
        let at = payload.len();
        if at + header.payload_bytes > ANSWER_BYTES_MAX {
            return Err(io::Error::other("a message that is too long"));
        }
        payload.resize(at + header.payload_bytes, 0);
        stream.read_exact(&mut payload[at..]).await?;
        if header.last {
            return Ok((header, payload));
        }
    }
}

impl Standing {
    /// Register, in place of what stands.
    ///
    /// # Errors
    /// The server is not reached, or refuses: why.
    pub async fn register(wanted: Wanted, former: Option<&Standing>) -> Result<Standing, String> {
        let failed = |e: io::Error| e.to_string();
        let mut conversation = Conversation::open(&wanted.server).await.map_err(failed)?;
        let local = conversation.local().map_err(failed)?;
        let reached = |portal: SocketAddr| {
            if portal.ip().is_unspecified() { SocketAddr::new(local, portal.port()) } else { portal }
        };
        let portals = wanted.portals.iter().map(|(portal, group)| (reached(*portal), *group)).collect();
        let mut registration = Registration {
            entity: wanted.entity.clone(),
            targets: wanted.targets.clone(),
            portals,
            period_s: PERIOD_S,
            inquiry: None,
        };
        // Who is registered already may speak for the entity.
        let known = former.map(|former| former.source.as_str());
        let Some(source) = registration.source().map(str::to_owned) else {
            return Err("there is no target to register".to_owned());
        };
        let inquiries = registration.portals.first().and_then(|(portal, _)| listen(portal.ip()));
        if let Some(port) = inquiries.as_ref().and_then(|listener| listener.get_ref().local_addr().ok()) {
            registration.inquiry = Some((port.port(), INQUIRY_INTERVAL_S));
        }
        let mut status = send(&mut conversation, &registration, known.unwrap_or(&source)).await.map_err(failed)?;
        let mut inquiries = inquiries;
        if status != 0 && registration.inquiry.take().is_some() {
            // A server that makes no inquiries may refuse to be asked for them.
            inquiries = None;
            status = send(&mut conversation, &registration, known.unwrap_or(&source)).await.map_err(failed)?;
        }
        match status {
            0 => Ok(Standing { wanted, source, inquiries }),
            status => Err(format!("it refuses: {}", message::status_text(status))),
        }
    }

    /// What is registered.
    pub fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    /// When to renew it.
    pub fn renew_after() -> Duration {
        Duration::from_secs(u64::from(PERIOD_S / 3))
    }

    /// Say that it still holds. False: the server knows nothing of it any more.
    ///
    /// # Errors
    /// The server is not reached: why.
    pub async fn renew(&self) -> Result<bool, String> {
        let mut conversation = Conversation::open(&self.wanted.server).await.map_err(|e| e.to_string())?;
        let payload = message::renewal(&self.source, &self.wanted.entity, PERIOD_S);
        let status = conversation.ask(DEV_ATTR_REG, false, &payload).await.map_err(|e| e.to_string())?;
        if status != 0 {
            tracing::debug!("the iSNS server does not renew: {}", message::status_text(status));
        }
        Ok(status == 0)
    }

    /// Take it back.
    ///
    /// # Errors
    /// The server is not reached, or refuses: why.
    pub async fn withdraw(&self) -> Result<(), String> {
        let mut conversation = Conversation::open(&self.wanted.server).await.map_err(|e| e.to_string())?;
        let payload = message::deregistration(&self.source, &self.wanted.entity);
        match conversation.ask(DEV_DEREG, false, &payload).await {
            Ok(0) => Ok(()),
            Ok(status) => Err(format!("it refuses: {}", message::status_text(status))),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Answer the server's inquiries; never ends.
    pub async fn answer_inquiries(&self) {
        let Some(listener) = &self.inquiries else { return std::future::pending().await };
        loop {
            match listener.accept().await {
                // Its own time-out tells the server that an inquiry went wrong.
                Ok((stream, _)) => drop(within(PATIENCE, answer_inquiry(stream)).await),
                Err(_) => {
                    Timer::after(PATIENCE).await;
                }
            }
        }
    }
}

/// A socket for inquiries, on the address of a portal.
fn listen(address: IpAddr) -> Option<Async<TcpListener>> {
    Async::<TcpListener>::bind((address, 0)).ok()
}

async fn send(conversation: &mut Conversation, registration: &Registration, source: &str) -> io::Result<u32> {
    for (replaces, payload) in registration.payloads(source) {
        match conversation.ask(DEV_ATTR_REG, replaces, &payload).await? {
            0 => {}
            status => return Ok(status),
        }
    }
    Ok(0)
}

/// Section 5.7.5.13: the response repeats what the inquiry said.
async fn answer_inquiry(mut stream: Async<TcpStream>) -> io::Result<()> {
    loop {
        let (header, inquiry) = receive(&mut stream).await?;
        if header.function != ESI {
            return Err(io::Error::other("not an inquiry"));
        }
        let mut answer = 0u32.to_be_bytes().to_vec();
        answer.extend_from_slice(&inquiry);
        stream.write_all(&message::encode(ESI | RESPONSE, false, header.transaction, &answer)).await?;
    }
}
