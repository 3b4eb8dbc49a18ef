//! Registration with an iSNS server (RFC 4171): initiators that ask it find this server's targets.
//!
//! One task of the control plane keeps what is registered as the configuration says it: it registers anew after every
//! change, renews in time, tries again ever more slowly while the server is not reached, and takes the registration
//! back at the end. Nobody waits for it.

mod client;
mod message;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_io::Timer;
use futures_channel::mpsc;
use futures_lite::StreamExt;
use futures_lite::future::or;
use uuid::Uuid;

use super::api;
use super::config::{Config, IsnsConfig};
use super::controller::{Controller, LivePortal};
use super::error::Refused;
use client::{FAREWELL_PATIENCE, Standing, Wanted};

/// The port of iSNS servers (RFC 4171 section 2.9).
const PORT: u16 = 3205;

/// The first wait after a failure, and the longest; each is twice the one before.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// What the task is told, and what it tells. Cheap to clone.
#[derive(Clone)]
pub struct Isns {
    shared: Arc<Mutex<Shared>>,
    /// Wakes the task; one signal is enough for any number of changes.
    signal: mpsc::Sender<()>,
}

#[derive(Default)]
struct Shared {
    wanted: Option<Wanted>,
    ending: bool,
    /// What is registered.
    registered: Option<Wanted>,
    /// Why nothing is, or not what is wanted.
    failure: Option<String>,
    waiter: Option<mpsc::Receiver<()>>,
}

impl Default for Isns {
    /// Nothing is registered yet.
    fn default() -> Isns {
        let (signal, waiter) = mpsc::channel(0);
        let shared = Shared { waiter: Some(waiter), ..Shared::default() };
        Isns { shared: Arc::new(Mutex::new(shared)), signal }
    }
}

impl Isns {
    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is to be registered now; `None` at the end.
    fn next_wanted(&self) -> Option<Option<Wanted>> {
        let shared = self.shared();
        (!shared.ending).then(|| shared.wanted.clone())
    }

    fn wake(&self) {
        // A signal that waits already is enough.
        let _ = self.signal.clone().try_send(());
    }

    /// Say what is to be registered.
    fn want(&self, wanted: Option<Wanted>) {
        let mut shared = self.shared();
        if shared.wanted != wanted {
            shared.wanted = wanted;
            drop(shared);
            self.wake();
        }
    }

    /// Keep the registration until [`Self::end`]; gives at once when it runs already.
    pub async fn run(self) {
        let Some(mut waiter) = self.shared().waiter.take() else { return };
        let mut standing: Option<Standing> = None;
        let mut retry = RETRY_MIN;
        while let Some(wanted) = self.next_wanted() {
            let outcome = follow(&mut standing, wanted).await;
            let pause = match &outcome {
                Ok(()) => Some(Standing::renew_after()).filter(|_| standing.is_some()),
                Err(_) => Some(retry),
            };
            retry = if outcome.is_ok() { RETRY_MIN } else { (retry * 2).min(RETRY_MAX) };
            self.tell(&standing, outcome);
            let due = async {
                match pause {
                    Some(time) => pass(time).await,
                    None => std::future::pending().await,
                }
            };
            let inquiries = async {
                match &standing {
                    Some(standing) => standing.answer_inquiries().await,
                    None => std::future::pending().await,
                }
            };
            or(async { waiter.next().await.unwrap_or_default() }, or(due, inquiries)).await;
        }
        if let Some(standing) = standing {
            let farewell = async { drop(standing.withdraw().await) };
            or(farewell, pass(FAREWELL_PATIENCE)).await;
        }
        self.shared().waiter = Some(waiter);
    }

    fn tell(&self, standing: &Option<Standing>, outcome: Result<(), String>) {
        let mut shared = self.shared();
        shared.registered = standing.as_ref().map(|standing| standing.wanted().clone());
        if let Err(failure) = &outcome
            && shared.failure.as_ref() != Some(failure)
        {
            tracing::warn!("not registered with the iSNS server: {failure}");
        }
        shared.failure = outcome.err();
    }

    /// Take the registration back and end, in a fraction of a second.
    pub async fn end(&self) {
        self.shared().ending = true;
        self.wake();
        let gone = async {
            while self.shared().waiter.is_none() {
                pass(Duration::from_millis(5)).await;
            }
        };
        or(gone, pass(2 * FAREWELL_PATIENCE)).await;
    }

    /// How it stands.
    pub fn status(&self, config: &Config) -> api::Isns {
        let shared = self.shared();
        let registered = shared.registered.as_ref().filter(|_| shared.registered == shared.wanted);
        let reason = shared.failure.clone().or_else(|| {
            let nothing = shared.wanted.as_ref().is_some_and(|wanted| wanted.targets.is_empty());
            nothing.then(|| "there is no target to register".to_owned())
        });
        api::Isns {
            server: config.isns.as_ref().map(|isns| isns.server.clone()),
            entity: config.isns.as_ref().map(|isns| isns.entity.clone()),
            registered: registered.is_some() && config.isns.is_some(),
            reason: reason.filter(|_| config.isns.is_some()),
            targets: registered.map_or(0, |wanted| wanted.targets.len()),
        }
    }
}

/// Let time pass.
async fn pass(time: Duration) {
    let _ = Timer::after(time).await;
}

/// Make what is registered what is wanted; renew what is.
async fn follow(standing: &mut Option<Standing>, wanted: Option<Wanted>) -> Result<(), String> {
    let wanted = wanted.filter(|wanted| !wanted.targets.is_empty());
    let stays = |former: &Standing, wanted: &Wanted| {
        (&former.wanted().server, &former.wanted().entity) == (&wanted.server, &wanted.entity)
    };
    if let Some(former) = standing.take_if(|former| !wanted.as_ref().is_some_and(|wanted| stays(former, wanted))) {
        // Where it cannot be taken back, its period ends.
        let _ = former.withdraw().await;
    }
    if let Some(wanted) = wanted {
        let server = wanted.server.clone();
        // Registering anew would tell every initiator that the targets went and came.
        if let Some(former) = standing.as_ref().filter(|former| *former.wanted() == wanted)
            && former.renew().await.map_err(|why| format!("{server}: {why}"))?
        {
            return Ok(());
        }
        let registered = Standing::register(wanted, standing.as_ref()).await;
        *standing = Some(registered.map_err(|why| format!("{server}: {why}"))?);
    }
    Ok(())
}

impl Controller {
    /// Register with this iSNS server, or with none.
    pub async fn isns_set(&mut self, new: api::NewIsns) -> Result<(), Refused> {
        let isns = new.server.as_deref().map(parse_server).transpose()?.map(|server| {
            let former = self.config.isns.as_ref().map(|former| former.entity.clone());
            IsnsConfig { server, entity: former.unwrap_or_else(|| format!("lunaring:{}", Uuid::new_v4())) }
        });
        self.commit(Config { isns, ..self.config.clone() }).await
    }

    /// Tell the task what is to be registered now.
    pub(super) fn register_with_isns(&self) {
        let told = |portal: &LivePortal| {
            portal.listening.as_ref().ok()?;
            let address = self.config.advertised.get(&portal.address).copied().unwrap_or(portal.address);
            Some((address, portal.group))
        };
        let wanted = self.config.isns.as_ref().map(|isns| Wanted {
            server: isns.server.clone(),
            entity: isns.entity.clone(),
            targets: self.config.targets.iter().map(|(name, target)| (target.iqn.clone(), name.clone())).collect(),
            portals: self.portals.iter().filter_map(told).collect(),
        });
        self.isns.want(wanted);
    }
}

/// An iSNS server as people write it, with its port.
fn parse_server(text: &str) -> Result<String, Refused> {
    let text = text.trim();
    let with_port = match text.parse::<std::net::IpAddr>() {
        Ok(address) => std::net::SocketAddr::new(address, PORT).to_string(),
        Err(_) if text.contains(':') => text.to_owned(),
        Err(_) => format!("{text}:{PORT}"),
    };
    super::config::check_destination(&with_port).map_err(|_| {
        Refused::invalid(format!(
            "'{}' is not an iSNS server; write ADDRESS, NAME or either with :PORT, for example 192.0.2.5",
            text.escape_debug()
        ))
    })?;
    Ok(with_port)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_an_address_or_a_name_with_or_without_a_port() {
        for (written, meant) in [
            ("192.0.2.5", "192.0.2.5:3205"),
            ("192.0.2.5:99", "192.0.2.5:99"),
            ("2001:db8::5", "[2001:db8::5]:3205"),
            ("[2001:db8::5]:99", "[2001:db8::5]:99"),
            ("isns.example.com", "isns.example.com:3205"),
            ("isns.example.com:99", "isns.example.com:99"),
        ] {
            assert_eq!(parse_server(written).unwrap(), meant);
        }
        for bad in ["", "a b", "host:0", "host:x", "0.0.0.0"] {
            assert!(parse_server(bad).is_err(), "{bad}");
        }
    }
}
