//! The one place where commands change anything, one after another.
//!
//! The order of every command: check the whole new configuration; do what can fail and can be undone (create a file,
//! bind a socket); replace `config.json`, which is the moment the command counts; apply it to the running shards;
//! answer. What readers see is a [`View`], replaced as a whole after each command, so that they never wait for one.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use futures_channel::{mpsc, oneshot};
use futures_lite::{StreamExt, stream};

use super::attachment;
use super::config::{AuthConfig, Config, LunConfig};
use super::dataplane::{DataPlane, ask_all, shards, tell};
use super::error::Refused;
use super::executor::{self, blocking};
use super::isns::Isns;
use super::keeping;
use super::ledger::Ledger;
use super::ports::ports_of_disks;
use super::state::StateDir;
use crate::iscsi::access::AccessRule;
use crate::iscsi::directory::{self, Authentication, Directory};
use crate::iscsi::names::IscsiName;
use crate::jobs::{JobId, Registry};
use crate::limits::CONTROL_CONNECTIONS_MAX;
use crate::medium::offline;
use crate::medium::{self, DiskFormat};
use crate::shard::message::{Configuration, LunMap, Mapping, Mask, ToShard};
use crate::shard::{Keeper, PlaceMaker, PlaceWanted};
use crate::units::{DiskId, Lun, PortalId, ShardId, TargetId};

/// A disk of the configuration, as it is now.
#[derive(Clone)]
pub enum LiveDisk {
    /// Open and attached to every shard.
    Online(Arc<medium::Disk>),
    /// It could not be opened: why.
    Offline(String),
}

/// A portal, as it is now.
#[derive(Clone, Debug)]
pub struct LivePortal {
    /// Where it listens or should.
    pub address: SocketAddr,
    /// Its portal group.
    pub group: u16,
    /// Its number while it listens, or why it does not.
    pub listening: Result<PortalId, String>,
    /// It is not in the configuration.
    pub temporary: bool,
}

/// Everything that readers need, at one moment.
#[derive(Clone, Default)]
pub struct View {
    /// The configuration in force.
    pub config: Config,
    /// Its disks.
    pub disks: BTreeMap<String, LiveDisk>,
    /// Its portals and the temporary ones.
    pub portals: Vec<LivePortal>,
    /// The job that works on a disk.
    pub busy: BTreeMap<String, JobId>,
    /// The state folder: what relative files are relative to.
    pub state: PathBuf,
}

/// Makes changes. There is one, and it makes one change at a time.
pub struct Controller {
    pub(super) state: Arc<StateDir>,
    pub(super) plane: Arc<dyn DataPlane>,
    pub(super) config: Config,
    pub(super) disks: BTreeMap<String, LiveDisk>,
    /// Layers that disks stand on.
    pub(super) parents: Arc<medium::Parents>,
    pub(super) portals: Vec<LivePortal>,
    /// What works in the background.
    pub(super) jobs: Registry,
    /// The job that works on a disk.
    pub(super) busy: BTreeMap<String, JobId>,
    /// A disk that is about to become a parent: it is opened read-only.
    pub(super) frozen: Option<String>,
    /// Reservations that outlast the server.
    pub(super) ledger: Ledger,
    targets: HashMap<String, TargetId>,
    disk_next: u32,
    target_next: u32,
    portal_next: u32,
    view: Arc<Mutex<Arc<View>>>,
    /// Takes what shards want kept, and where it comes out.
    keeper: Keeper,
    kept: Option<mpsc::Receiver<Job>>,
    record: mpsc::Sender<Job>,
    /// Takes what shards ask for places, and where it comes out.
    place_maker: PlaceMaker,
    places_wanted: Option<mpsc::Receiver<PlaceWanted>>,
    /// What is registered with an iSNS server.
    pub(super) isns: Isns,
}

pub(super) type Job = Box<dyn for<'a> FnOnce(&'a mut Controller) -> Pin<Box<dyn Future<Output = ()> + 'a>> + Send>;

/// Reads the view and hands commands to the controller. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    jobs: mpsc::Sender<Job>,
    view: Arc<Mutex<Arc<View>>>,
    /// The shards, for what is asked of them directly.
    pub plane: Arc<dyn DataPlane>,
    /// The state folder.
    pub state: PathBuf,
    /// What works in the background.
    pub registry: Registry,
    /// What is registered with an iSNS server.
    pub isns: Isns,
}

impl Controller {
    /// Bring up what the state folder's configuration says: finish interrupted file changes, open and attach disks,
    /// configure the shards. Disks that cannot be opened are offline, and say why. Nothing listens yet.
    ///
    /// # Errors
    /// The configuration cannot be read, or the shards do not answer.
    pub async fn start(state: StateDir, plane: Arc<dyn DataPlane>) -> Result<Controller, Refused> {
        let state = Arc::new(state);
        let (config, ledger) = {
            let state = Arc::clone(&state);
            blocking(move || {
                let mut config = state.load()?;
                config.number_ports()?;
                let interrupted = state.recover(&config)?;
                restamp_raw_files(&state, &config, interrupted);
                let path = state.path().join("reservations");
                let ledger = Ledger::open(&path, |name| config.disks.contains_key(name))?;
                Ok((config, ledger))
            })
            .await?
        };
        let (keeper, record, kept) = keeping::keeper();
        let (place_maker, places_wanted) = keeping::place_maker();
        let mut controller = Controller {
            keeper,
            kept: Some(kept),
            record,
            place_maker,
            places_wanted: Some(places_wanted),
            state,
            plane,
            config,
            disks: BTreeMap::new(),
            parents: medium::Parents::new(),
            portals: Vec::new(),
            jobs: Registry::default(),
            busy: BTreeMap::new(),
            frozen: None,
            ledger,
            targets: HashMap::new(),
            disk_next: 0,
            target_next: 0,
            portal_next: 0,
            view: Arc::default(),
            isns: Isns::default(),
        };
        controller.bring_up().await?;
        controller.apply().await?;
        Ok(controller)
    }

    /// Carry out commands until every [`Handle`] is gone.
    pub async fn run(mut self, jobs: Jobs) {
        let (Some(kept), Some(wanted)) = (self.kept.take(), self.places_wanted.take()) else { return };
        executor::spawn(keeping::make_places(Arc::clone(&self.plane), wanted, self.record.clone()));
        // What shards want kept comes in between; only the end of the commands is the end.
        let commands = jobs.0.map(Some).chain(stream::once(None));
        let mut all = stream::or(commands, kept.map(Some));
        while let Some(Some(job)) = all.next().await {
            job(&mut self).await;
        }
    }

    /// A handle, and the commands that come through it and its clones.
    pub fn handle(&self) -> (Handle, Jobs) {
        // Every clone of a sender has a slot of its own beside these.
        let (sender, receiver) = mpsc::channel(CONTROL_CONNECTIONS_MAX);
        let handle = Handle {
            jobs: sender,
            view: Arc::clone(&self.view),
            plane: Arc::clone(&self.plane),
            state: self.state.path().to_owned(),
            registry: self.jobs.clone(),
            isns: self.isns.clone(),
        };
        (handle, Jobs(receiver))
    }

    /// Where the view is put, for whoever only looks.
    pub(super) fn view_place(&self) -> Arc<Mutex<Arc<View>>> {
        Arc::clone(&self.view)
    }

    /// Replace `config.json`: the moment from which a command counts.
    pub(super) async fn persist(&mut self, mut config: Config) -> Result<(), Refused> {
        config.number_ports()?;
        config.check()?;
        let state = Arc::clone(&self.state);
        let saved = config.clone();
        blocking(move || state.save(&saved)).await?;
        self.config = config;
        Ok(())
    }

    /// Put the configuration into force on every shard, and show it to readers.
    pub(super) async fn apply(&mut self) -> Result<(), Refused> {
        let configuration = Arc::new(self.configuration()?);
        self.publish();
        self.register_with_isns();
        ask_all(&*self.plane, |reply| ToShard::Configure { configuration: Arc::clone(&configuration), reply }).await?;
        Ok(())
    }

    /// Show readers what is.
    pub(super) fn publish(&self) {
        let view = View {
            config: self.config.clone(),
            disks: self.disks.clone(),
            portals: self.portals.clone(),
            busy: self.busy.clone(),
            state: self.state.path().to_owned(),
        };
        *self.view.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(view);
    }

    /// The configuration in the shards' terms.
    fn configuration(&mut self) -> Result<Configuration, Refused> {
        self.targets.retain(|name, _| self.config.targets.contains_key(name));
        let mut targets = Vec::with_capacity(self.config.targets.len());
        let mut luns = HashMap::with_capacity(self.config.targets.len());
        let mut ports = HashMap::with_capacity(self.config.targets.len());
        let mut masks = HashMap::new();
        let algorithms = self.config.server_algorithms()?;
        let demand = |auth: &Option<AuthConfig>| match auth {
            None => Ok(Authentication::None),
            Some(auth) => auth.credentials(&algorithms).map(Authentication::Chap),
        };
        for (name, target) in &self.config.targets {
            let id = *self.targets.entry(name.clone()).or_insert_with(|| {
                self.target_next += 1;
                TargetId(self.target_next)
            });
            let access = target.allow.iter().map(|rule| rule.parse()).collect::<Result<_, _>>();
            targets.push(directory::Target {
                id,
                name: IscsiName::new(&target.iqn).map_err(Refused::invalid)?,
                alias: Some(name.clone()),
                access: access.map_err(Refused::invalid)?,
                authentication: demand(&target.auth)?,
                portal_groups: target.portal_groups.iter().copied().collect(),
                redirects: target.redirects.iter().map(|redirect| redirect.redirect(&self.config)).collect(),
                error_recovery_level: target.error_recovery_level.unwrap_or(self.config.error_recovery_level),
                connections_max: target.max_connections.or(self.config.max_connections).unwrap_or(1),
            });
            ports.insert(id, target.target_ports());
            luns.insert(id, self.lun_map(&target.luns));
            let mut narrow_first = Vec::with_capacity(target.luns_for.len());
            for (rule, luns) in &target.luns_for {
                let rule: AccessRule = rule.parse().map_err(Refused::invalid)?;
                narrow_first.push(Mask { rule, luns: self.lun_map(luns) });
            }
            narrow_first.sort_by_key(|mask| std::cmp::Reverse(mask.rule.rank()));
            if !narrow_first.is_empty() {
                masks.insert(id, narrow_first);
            }
        }
        let portals = self.portals.iter().filter_map(|portal| {
            let id = *portal.listening.as_ref().ok()?;
            let advertise = self.config.advertised.get(&portal.address).copied();
            Some(directory::Portal { id, listen: portal.address, portal_group_tag: portal.group, advertise })
        });
        let discovery = demand(&self.config.discovery_auth)?;
        let directory = Directory::new(targets, portals.collect(), discovery).map_err(Refused::invalid)?;
        let (disks, keeper) = (self.disk_settings(), Some(self.keeper.clone()));
        let place_maker = Some(self.place_maker.clone());
        let io_deadline_ms = self.config.io_deadline_seconds.map(|seconds| u64::from(seconds) * 1000);
        let disk_ports = ports_of_disks(&luns, &masks, &ports);
        let directory = Arc::new(directory);
        Ok(Configuration { directory, luns, ports, disk_ports, masks, disks, keeper, place_maker, io_deadline_ms })
    }

    /// Logical units in the shards' terms; those whose disks are offline are absent.
    fn lun_map(&self, luns: &BTreeMap<u16, LunConfig>) -> LunMap {
        let mapping = |(number, lun): (&u16, &LunConfig)| match self.disks.get(&lun.disk) {
            Some(LiveDisk::Online(disk)) => Some((Lun(*number), Mapping { disk: disk.id(), read_only: lun.read_only })),
            _ => None,
        };
        luns.iter().filter_map(mapping).collect()
    }

    /// A number for a disk about to be opened, and the shard that will be its home.
    pub(super) fn disk_id(&mut self) -> (DiskId, ShardId) {
        self.disk_next += 1;
        let home = (self.disk_next - 1) % u32::from(self.plane.count().max(1));
        (DiskId(self.disk_next), ShardId(u16::try_from(home).unwrap_or(0)))
    }

    /// A number for a portal about to listen.
    pub(super) fn portal_id(&mut self) -> PortalId {
        self.portal_next += 1;
        PortalId(self.portal_next)
    }
}

/// Raw files below a disk's own images are known by their last change. A crash may have come between a write to one and
/// the record of that: who wrote it was this server.
fn restamp_raw_files(state: &StateDir, config: &Config, interrupted: bool) {
    for disk in config.disks.values().filter(|disk| interrupted || disk.merge.is_some()) {
        let raw = |parent: &Path| {
            disk.snapshots.values().any(|of| of.format == DiskFormat::Raw && of.file.as_path() == parent)
        };
        let of_snapshots = disk.snapshots.values().map(|of| (Some(of.file.as_path()), of.file_parent.as_deref()));
        let pairs = of_snapshots.chain([(disk.file.as_deref(), disk.parent.as_deref())]);
        for (file, parent) in pairs.filter_map(|(file, parent)| Some((file?, parent?))).filter(|pair| raw(pair.1)) {
            let restamped = offline::restamp_raw_parent(&state.absolute(file), &state.absolute(parent));
            if let Err(error) = restamped {
                tracing::warn!("{error}");
            }
        }
    }
}

/// Commands on their way to the controller.
pub struct Jobs(mpsc::Receiver<Job>);

impl Handle {
    /// What is, at this moment.
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Carry out a command. It is carried out to its end even if nobody waits for it any more.
    ///
    /// # Errors
    /// What the command says, or that the server is ending.
    pub async fn change<T, W>(&self, work: W) -> Result<T, Refused>
    where
        T: Send + 'static,
        W: for<'a> FnOnce(&'a mut Controller) -> Pin<Box<dyn Future<Output = Result<T, Refused>> + 'a>>,
        W: Send + 'static,
    {
        let (done, result) = oneshot::channel();
        let job: Job = Box::new(move |controller| {
            Box::pin(async move {
                // The client may have gone; the change stands.
                let _ = done.send(work(controller).await);
            })
        });
        let ending = || Refused::failed("the server is ending; nothing was changed");
        self.jobs.clone().try_send(job).map_err(|_| ending())?;
        result.await.map_err(|_| ending())?
    }

    /// End: tell sessions, finish what is in flight, close every disk and stop the shards. Gives what went wrong.
    pub async fn stop(&self, patience_ms: u64) -> Vec<String> {
        let mut troubles = Vec::new();
        let plane = &*self.plane;
        if let Err(refused) = ask_all(plane, |reply| ToShard::Quiesce { patience_ms, reply }).await {
            troubles.push(refused.message);
        }
        let view = self.view();
        let open = view.disks.values().filter_map(|live| match live {
            LiveDisk::Online(disk) => Some(&**disk),
            LiveDisk::Offline(_) => None,
        });
        for (disk, refused) in attachment::detach(plane, open).await {
            let name = disk.name();
            troubles.push(format!("disk '{name}' was not closed cleanly: {refused}; the next start repairs it"));
        }
        for shard in shards(plane) {
            tell(plane, shard, ToShard::Stop).await;
        }
        troubles
    }
}
