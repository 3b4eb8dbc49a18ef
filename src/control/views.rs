//! What readers are shown: resources made from a [`View`] and from the shards' counters.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::iscsi::chap::{ALGORITHMS, Algorithm};
use crate::medium::{Disk, Health};
use crate::observe::prometheus::{Kind, Page};
use crate::observe::{DiskStats, DiskSummary, OpSummary, Operation, ShardSummary};
use crate::shard::message::{SessionInfo, ToShard};
use crate::units::HumanBytes;

use super::api;
use super::config::{AuthConfig, SnapshotConfig, TargetConfig};
use super::controller::{Handle, LiveDisk, View};
use super::dataplane::{ask, ask_all, shards};
use super::error::Refused;
use super::executor::blocking;
use super::images::children_of;
use super::merges::exports_of;
use super::ports::api_ports;
use super::snapshots::above;
use super::targets::target_name;

impl View {
    /// All disks.
    pub fn api_disks(&self) -> api::Disks {
        let mut mapped = std::collections::BTreeMap::<&str, Vec<api::DiskMapping>>::new();
        for (target, config) in &self.config.targets {
            for (_, lun, unit) in config.all_luns() {
                let mapping = api::DiskMapping { target: target.clone(), lun };
                let mappings = mapped.entry(&unit.disk).or_default();
                if !mappings.contains(&mapping) {
                    mappings.push(mapping);
                }
            }
        }
        let disks = self.config.disks.keys().filter_map(|name| {
            let mut disk = self.api_disk(name).ok()?;
            disk.mapped = mapped.remove(name.as_str()).unwrap_or_default();
            Some(disk)
        });
        api::Disks { disks: disks.collect() }
    }

    /// One disk, without where it is mapped.
    fn api_disk(&self, name: &str) -> Result<api::Disk, Refused> {
        let Some(config) = self.config.disks.get(name) else {
            return Err(Refused::not_found(format!("there is no disk '{name}'; see 'lunaring disk list'")));
        };
        let mut disk = api::Disk {
            name: name.to_owned(),
            format: config.format,
            kind: config.kind,
            size_bytes: config.size_bytes,
            allocated_bytes: 0,
            sector_size_bytes: config.sector_size_bytes,
            block_size_bytes: None,
            atomic_write_bytes: 0,
            file: config.file.clone(),
            parent: config.parent.as_deref().map(|file| self.state.join(file)),
            chain: Vec::new(),
            space: None,
            children: Vec::new(),
            snapshots: config.listed_snapshots().count(),
            job: self.busy.get(name).copied(),
            uuid: config.uuid,
            cache: config.cache,
            reservations_file: config.reservations.as_deref().map(|file| self.state.join(file)),
            read_only: config.read_only,
            added: config.added,
            state: api::DiskState::Offline,
            reason: None,
            notes: Vec::new(),
            mapped: Vec::new(),
        };
        match self.disks.get(name) {
            Some(LiveDisk::Online(live)) => {
                disk.size_bytes = live.size_bytes();
                disk.sector_size_bytes = live.block_length();
                disk.block_size_bytes = live.payload_block_bytes();
                disk.atomic_write_bytes = live.atomic_write_bytes();
                disk.allocated_bytes = live.allocated_bytes();
                disk.uuid = live.uuid();
                disk.file = live.path().map(Path::to_owned);
                disk.notes = live.notes().to_vec();
                disk.notes.extend(want_of_space(live));
                (disk.state, disk.reason) = match live.health() {
                    Health::Good => (api::DiskState::Online, None),
                    Health::Poisoned => (api::DiskState::Failed, Some(why_failed(live))),
                };
            }
            Some(LiveDisk::Offline(reason)) => disk.reason = Some(reason.clone()),
            None => disk.reason = Some("it is being opened".to_owned()),
        }
        Ok(disk)
    }

    /// One disk.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn api_disk_mapped(&self, name: &str) -> Result<api::Disk, Refused> {
        let mut disk = self.api_disk(name)?;
        let mapping = |(target, lun): (&str, u16)| api::DiskMapping { target: target.to_owned(), lun };
        disk.mapped = self.config.mappings_of(name).into_iter().map(mapping).collect();
        disk.children = self.children_of_disk(name);
        disk.chain = self.chain_of(name);
        Ok(disk)
    }

    /// Disks that are based on one of a disk's files.
    fn children_of_disk(&self, name: &str) -> Vec<String> {
        let Some(config) = self.config.disks.get(name) else { return Vec::new() };
        let of = |file: &Path| children_of(&self.config, &self.state.join(file), |file| self.state.join(file), name);
        let mut children: Vec<String> = config.own_files().flat_map(of).collect();
        children.sort_unstable();
        children.dedup();
        children
    }

    /// The files of a disk that is open, the one that is written first.
    fn chain_of(&self, name: &str) -> Vec<api::Layer> {
        let Some(LiveDisk::Online(live)) = self.disks.get(name) else { return Vec::new() };
        let mut snapshots: HashMap<PathBuf, &str> = HashMap::new();
        if let Some(config) = self.config.disks.get(name) {
            let named = config.listed_snapshots();
            snapshots = named.map(|(name, of)| (self.state.join(&of.file), name.as_str())).collect();
        }
        let files = self.config.disks.iter().filter(|(other, _)| *other != name);
        let owners: HashMap<PathBuf, &str> = files
            .flat_map(|(other, disk)| disk.own_files().map(move |file| (file, other.as_str())))
            .map(|(file, other)| (self.state.join(file), other))
            .collect();
        let layer = |layer: &std::sync::Arc<crate::medium::LayerFile>| api::Layer {
            file: layer.path().to_owned(),
            format: layer.format(),
            size_bytes: layer.size_bytes(),
            allocated_bytes: layer.allocated_bytes(),
            file_bytes: layer.file_len_bytes(),
            identifier: Some(layer.identity().to_string()),
            snapshot: snapshots.get(layer.path()).map(|name| (*name).to_owned()),
            disk: owners.get(layer.path()).map(|name| (*name).to_owned()),
        };
        live.layers().iter().map(layer).collect()
    }

    /// The snapshots of a disk, oldest first.
    ///
    /// # Errors
    /// There is no such disk.
    pub fn api_snapshots(&self, name: &str) -> Result<api::Snapshots, Refused> {
        let Some(disk) = self.config.disks.get(name) else {
            return Err(Refused::not_found(format!("there is no disk '{name}'; see 'lunaring disk list'")));
        };
        // What is merged without ever having been a snapshot is nobody's business.
        let shown = disk.snapshots.iter().filter(|(name, of)| !(of.deleting && name.starts_with("merge-")));
        let mut snapshots: Vec<api::Snapshot> = shown.map(|(snapshot, of)| self.snapshot(name, snapshot, of)).collect();
        snapshots.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
        Ok(api::Snapshots { snapshots })
    }

    /// One snapshot.
    ///
    /// # Errors
    /// There is none.
    pub fn api_snapshot(&self, disk: &str, name: &str) -> Result<api::Snapshot, Refused> {
        match self.config.disks.get(disk).and_then(|of| of.snapshots.get(name)) {
            Some(of) => Ok(self.snapshot(disk, name, of)),
            None => Err(Refused::not_found(format!("disk '{disk}' has no snapshot '{name}'"))),
        }
    }

    fn snapshot(&self, disk: &str, name: &str, of: &SnapshotConfig) -> api::Snapshot {
        let file = self.state.join(&of.file);
        let blocks = file.metadata().map_or(0, |found| std::os::unix::fs::MetadataExt::blocks(&found));
        api::Snapshot {
            name: name.to_owned(),
            disk: disk.to_owned(),
            created: of.created,
            parent: of.parent.clone(),
            current: self.config.disks.get(disk).is_some_and(|config| config.base.as_deref() == Some(name)),
            group: of.group,
            size_bytes: of.size_bytes,
            format: of.format,
            allocated_bytes: blocks.saturating_mul(512),
            file,
            exports: exports_of(&self.config, disk, name),
            deleting: of.deleting,
            kept_for: if of.deleting { self.kept_for(disk, name, of) } else { Vec::new() },
        }
    }

    /// What a deleted snapshot's file is kept for; nothing where it is merged into the one thing that came after it.
    fn kept_for(&self, disk: &str, name: &str, of: &SnapshotConfig) -> Vec<String> {
        let Some(config) = self.config.disks.get(disk) else { return Vec::new() };
        let (snapshots, leaf) = above(config, name);
        let mut after: Vec<String> = snapshots.iter().map(|name| format!("snapshot '{name}'")).collect();
        if leaf {
            after.push(format!("disk '{disk}' as it is now"));
        }
        let join = |file: &Path| self.state.join(file);
        let others = children_of(&self.config, &join(&of.file), join, disk);
        after.extend(others.iter().map(|disk| format!("disk '{disk}'")));
        if after.len() > 1 { after } else { Vec::new() }
    }

    /// All targets.
    pub fn api_targets(&self) -> api::Targets {
        let algorithms = self.algorithms();
        let targets = self.config.targets.iter().map(|(name, target)| api_target(name, target, &algorithms));
        api::Targets { targets: targets.collect() }
    }

    /// One target, by name or iSCSI name.
    ///
    /// # Errors
    /// There is none.
    pub fn api_target(&self, named: &str) -> Result<api::Target, Refused> {
        let name = target_name(&self.config, named)?;
        match self.config.targets.get(&name) {
            Some(target) => Ok(api_target(&name, target, &self.algorithms())),
            None => Err(Refused::not_found(format!("there is no target '{name}'"))),
        }
    }

    /// The ports of a target, by name or iSCSI name.
    ///
    /// # Errors
    /// There is none.
    pub fn api_target_ports(&self, named: &str) -> Result<api::TargetPorts, Refused> {
        let name = target_name(&self.config, named)?;
        let target = self.config.targets.get(&name);
        let target = target.ok_or_else(|| Refused::not_found(format!("there is no target '{name}'")))?;
        let limited_to = target.portal_groups.iter().copied().collect();
        Ok(api::TargetPorts { limited_to, ports: api_ports(&self.config, target) })
    }

    /// The CHAP algorithms that the server allows.
    fn algorithms(&self) -> Vec<Algorithm> {
        match self.config.server_algorithms() {
            Ok(algorithms) if !algorithms.is_empty() => algorithms,
            _ => ALGORITHMS.to_vec(),
        }
    }

    /// What is demanded in discovery sessions.
    pub fn api_discovery(&self) -> api::Discovery {
        api::Discovery { auth: self.config.discovery_auth.as_ref().map(|auth| api_auth(auth, &self.algorithms())) }
    }

    /// The CHAP algorithms that the server allows.
    pub fn api_chap(&self) -> api::ChapPolicy {
        api::ChapPolicy { algorithms: self.algorithms().iter().map(ToString::to_string).collect() }
    }

    /// All portals.
    pub fn api_portals(&self) -> api::Portals {
        let portals = self.portals.iter().map(|portal| api::Portal {
            address: portal.address,
            group: portal.group,
            advertise: self.config.advertised.get(&portal.address).copied(),
            listening: portal.listening.is_ok(),
            reason: portal.listening.as_ref().err().cloned(),
            temporary: portal.temporary,
        });
        api::Portals { portals: portals.collect() }
    }

    /// The counters of every disk that is open.
    fn counters(&self) -> impl Iterator<Item = (&str, Vec<&DiskStats>)> {
        self.disks.iter().filter_map(|(name, live)| match live {
            LiveDisk::Online(disk) => Some((name.as_str(), disk.all_stats().collect())),
            LiveDisk::Offline(_) => None,
        })
    }
}

impl Handle {
    /// Look at what is, files included, beside the control thread: a file system that hangs keeps who asks about it,
    /// and nobody else.
    ///
    /// # Errors
    /// What is looked for is not there.
    pub async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&View) -> Result<T, Refused> + Send + 'static,
    ) -> Result<T, Refused> {
        let view = self.view();
        blocking(move || look(&view)).await
    }

    /// One disk, with what its home shard knows of its space.
    ///
    /// # Errors
    /// There is none of this name, or the shard does not answer.
    pub async fn api_disk(&self, name: &str) -> Result<api::Disk, Refused> {
        let named = name.to_owned();
        let mut disk = self.look(move |view| view.api_disk_mapped(&named)).await?;
        let view = self.view();
        let Some(LiveDisk::Online(live)) = view.disks.get(name) else { return Ok(disk) };
        if disk.chain.is_empty() {
            return Ok(disk);
        }
        let id = live.id();
        let report = ask(&*self.plane, live.home(), |reply| ToShard::ReportEngine { disk: id, reply }).await;
        // A disk that has just been taken away from its shard has nobody who knows.
        let report = report.wait().await?.unwrap_or_default();
        disk.space = Some(api::Space {
            file_bytes: disk.chain[0].file_bytes,
            chain_allocated_bytes: disk.chain.iter().map(|layer| layer.allocated_bytes).sum(),
            block_bytes: report.space.map(|space| space.allocated_bytes),
            free_inside_bytes: report.space.map(|space| space.free_inside_bytes),
            given_up_bytes: report.space.map(|space| space.condemned_bytes),
            files_closing: report.space.map(|_| report.retiring),
        });
        Ok(disk)
    }

    /// All sessions, by id.
    ///
    /// # Errors
    /// A shard does not answer.
    pub async fn sessions(&self) -> Result<api::Sessions, Refused> {
        let lists = ask_all(&*self.plane, |reply| ToShard::ListSessions { reply }).await?;
        let mut sessions: Vec<api::Session> = lists.into_iter().flatten().map(|info| api_session(&info)).collect();
        sessions.sort_by_key(|session| session.id);
        Ok(api::Sessions { sessions })
    }

    /// Drop a session.
    ///
    /// # Errors
    /// There is none of this number.
    pub async fn session_drop(&self, id: u64) -> Result<(), Refused> {
        let found = ask_all(&*self.plane, |reply| ToShard::DropSession { id, reply }).await?;
        if found.contains(&true) {
            return Ok(());
        }
        Err(Refused::not_found(format!("there is no session {id}; see 'lunaring session list'")))
    }

    /// Counters of every shard.
    fn shard_summaries(&self) -> Vec<ShardSummary> {
        shards(&*self.plane).map(|shard| self.plane.stats(shard).summary()).collect()
    }

    /// Counters of everything, or of one disk.
    ///
    /// # Errors
    /// There is no such disk, or it is offline.
    pub fn api_stats(&self, disk: Option<&str>) -> Result<api::Stats, Refused> {
        let view = self.view();
        let live = disk.map(|name| (name, view.disks.get(name)));
        match live {
            None | Some((_, Some(LiveDisk::Online(_)))) => {}
            Some((name, None)) => {
                return Err(Refused::not_found(format!("there is no disk '{name}'; see 'lunaring disk list'")));
            }
            Some((name, Some(LiveDisk::Offline(_)))) => {
                return Err(Refused::conflict(format!(
                    "disk '{name}' is offline, so nothing is counted; see 'lunaring disk show'"
                )));
            }
        }
        let asked = view.counters().filter(|(name, _)| disk.is_none_or(|disk| disk == *name));
        let disks = asked.map(|(disk, shards)| {
            let summary = DiskSummary::merge(shards);
            api::DiskStats {
                disk: disk.to_owned(),
                read: api_operation(summary.of(Operation::Read)),
                write: api_operation(summary.of(Operation::Write)),
                flush: api_operation(summary.of(Operation::Flush)),
                other: api_operation(summary.of(Operation::Other)),
            }
        });
        let shards = if disk.is_none() { self.shard_summaries() } else { Vec::new() };
        Ok(api::Stats { disks: disks.collect(), shards })
    }

    /// Everything that is counted, as Prometheus text.
    pub fn metrics(&self) -> String {
        let view = self.view();
        let mut page = Page::new();
        let version = [([("version", env!("CARGO_PKG_VERSION"))], 1)];
        page.metric("info", Kind::Gauge, "The program's version, as a label.", version);
        let none = || [] as [(&str, &str); 0];
        let count = |number: usize| [(none(), number as u64)];
        page.metric("targets", Kind::Gauge, "Targets of the configuration.", count(view.config.targets.len()));
        page.metric("disks", Kind::Gauge, "Disks of the configuration.", count(view.config.disks.len()));
        let online = view.disks.iter().map(|(name, live)| {
            let good = matches!(live, LiveDisk::Online(disk) if disk.health() == Health::Good);
            ([("disk", name.as_str())], u64::from(good))
        });
        page.metric("disk_online", Kind::Gauge, "1 while the disk is open and sound.", online);
        page.shards(&self.shard_summaries());
        page.disks(view.counters());
        page.finish()
    }
}

/// Why a disk takes no more writes.
fn why_failed(disk: &Disk) -> String {
    let why = disk.trouble().told().unwrap_or_else(|| "its file could not be written or closed".to_owned());
    format!("{why}; it refuses writes until the server has been restarted")
}

/// What became of writes for which there was no space.
fn want_of_space(disk: &Disk) -> Option<String> {
    let refused = Some(disk.trouble().out_of_space()).filter(|refused| *refused > 0)?;
    let path = disk.path()?;
    let left = rustix::fs::statvfs(path).map_or(String::new(), |found| {
        format!("; {} are free there now", HumanBytes(found.f_bavail.saturating_mul(found.f_frsize)))
    });
    let times = if refused == 1 { "once".to_owned() } else { format!("{refused} times") };
    Some(format!(
        "no space was left for {} {times}, and what needed it was refused{left}; make room, or raise the quota; what \
         has its space already can be written meanwhile",
        path.display()
    ))
}

fn api_target(name: &str, target: &TargetConfig, of_server: &[Algorithm]) -> api::Target {
    let redirect = |redirect: &super::config::RedirectConfig| api::Redirect {
        to: redirect.to.clone(),
        permanent: redirect.permanent,
        portal: redirect.portal,
    };
    let lun = |(rule, number, lun): (Option<&str>, u16, &super::config::LunConfig)| api::TargetLun {
        lun: number,
        disk: lun.disk.clone(),
        read_only: lun.read_only,
        only_for: rule.map(str::to_owned),
    };
    api::Target {
        name: name.to_owned(),
        iqn: target.iqn.clone(),
        luns: target.all_luns().map(lun).collect(),
        allow: target.allow.clone(),
        auth: target.auth.as_ref().map(|auth| api_auth(auth, of_server)),
        redirects: target.redirects.iter().map(redirect).collect(),
        portal_groups: target.portal_groups.iter().copied().collect(),
    }
}

/// CHAP without the secrets.
fn api_auth(auth: &AuthConfig, of_server: &[Algorithm]) -> api::TargetAuth {
    let algorithms = auth.algorithms_left(of_server).unwrap_or_default();
    api::TargetAuth {
        chap_user: auth.chap_user.clone(),
        mutual_user: auth.mutual_user.clone(),
        algorithms: algorithms.iter().map(ToString::to_string).collect(),
    }
}

fn api_session(info: &SessionInfo) -> api::Session {
    api::Session {
        id: info.id,
        tsih: info.tsih,
        initiator: info.initiator.clone(),
        target: info.target.clone(),
        peer: info.peer,
        portal: info.local,
        shard: info.shard.0,
        header_digest: info.header_digest,
        data_digest: info.data_digest,
        age_seconds: info.age_seconds,
        commands: info.stats.commands.value(),
        bytes_read: info.stats.bytes_read.value(),
        bytes_written: info.stats.bytes_written.value(),
        errors: info.stats.errors.value(),
        connections: info
            .connections
            .iter()
            .map(|of| api::SessionConnection { cid: of.connection_id, peer: of.peer, portal: of.local })
            .collect(),
    }
}

fn api_operation(summary: &OpSummary) -> api::OperationStats {
    // Tenths of a microsecond are more than the histogram resolves.
    let us = |ns: f64| (ns / 100.0).round() / 10.0;
    let quantile = |q| us(summary.latency.value_at_quantile(q) as f64);
    let mean_ns = match summary.latency.len() {
        0 => 0.0,
        count => summary.latency_sum_ns as f64 / count as f64,
    };
    api::OperationStats {
        operations: summary.operations,
        bytes: summary.bytes,
        errors: summary.errors,
        latency_mean_us: us(mean_ns),
        latency_p50_us: quantile(0.5),
        latency_p99_us: quantile(0.99),
        latency_p999_us: quantile(0.999),
        latency_max_us: us(summary.latency.max() as f64),
    }
}
