//! One shard on an [`InstantRing`], one disk, one session.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use super::requests::{self, Access, HEADER_LEN, SPAN_BYTES, Workload};
use super::ring::{InstantRing, Wire};
use crate::iscsi::directory::{AccessRule, Authentication, Directory, Portal, Target};
use crate::iscsi::names::IscsiName;
use crate::medium::{self, Cache, CreateSpec, DiskFormat, DiskKind, OpenSpec, Parents};
use crate::mem::{Arena, ArenaConfig};
use crate::observe::ShardStats;
use crate::ring::{Fd, Ring};
use crate::shard::{Configuration, LunMap, Mapping, Parts, Senders, Shard, mailbox};
use crate::units::{DiskId, Lun, PortalId, ShardId, TargetId};

/// Commands that arrive together, like those of an initiator that keeps as many in flight.
pub const COMMANDS_PER_TURN: u32 = 32;

const TARGET: &str = "iqn.2026-11.io.lunaring:rig";

/// Size of the disk.
const DISK_BYTES: u64 = 64 << 20;

/// Turns that a batch of commands may take: file operations complete a turn later.
const TURNS_MAX: usize = 64;

/// A session with a server of one shard.
pub struct Rig {
    shard: Shard<InstantRing>,
    wire: Rc<RefCell<Wire>>,
    workload: Workload,
    cmd_sn: u32,
    stat_sn: u32,
    random: u64,
    /// Bytes of answers to one batch.
    answer_bytes: u64,
}

impl Rig {
    /// A server with a disk of this format, and a session that is logged in and has met no error. The file of a disk
    /// that has one is made at `path`.
    ///
    /// # Errors
    /// A sentence: the disk cannot be made, the login or a first command failed.
    pub fn new(format: DiskFormat, path: &Path, workload: Workload) -> Result<Rig, String> {
        let wire = Rc::new(RefCell::new(Wire { keeps_answers: true, ..Wire::default() }));
        let shard = shard(Rc::clone(&wire), format, path)?;
        let mut rig = Rig { shard, wire, workload, cmd_sn: 1, stat_sn: 0, random: 0x9e37_79b9, answer_bytes: 0 };
        rig.log_in()?;
        rig.answer_bytes = u64::MAX;
        // The first batch meets the unit attention of a new session; the second takes space where there was none.
        for access in [Access::Write, Access::Write, workload.access, workload.access] {
            rig.workload.access = access;
            rig.wire.borrow_mut().answers.clear();
            rig.offer();
            rig.turn();
        }
        let (good, other) = requests::count_statuses(&rig.wire.borrow().answers, workload.digests);
        if (good, other) != (COMMANDS_PER_TURN as usize, 0) {
            return Err(format!("of {COMMANDS_PER_TURN} commands {good} ended well and {other} did not"));
        }
        rig.answer_bytes = rig.wire.borrow().answers.len() as u64;
        rig.wire.borrow_mut().keeps_answers = false;
        Ok(rig)
    }

    /// Have the initiator send [`COMMANDS_PER_TURN`] commands. Not measured.
    #[inline(never)]
    pub fn offer(&mut self) {
        let wire = &mut *self.wire.borrow_mut();
        wire.requests.clear();
        wire.taken = 0;
        wire.answered_bytes = 0;
        for _ in 0..COMMANDS_PER_TURN {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            let offset = self.random % (SPAN_BYTES / u64::from(self.workload.len_bytes));
            let lba = (offset * u64::from(self.workload.len_bytes) / 512) as u32;
            requests::command(&mut wire.requests, &self.workload, self.cmd_sn, self.stat_sn, lba);
            self.cmd_sn = self.cmd_sn.wrapping_add(1);
        }
        self.stat_sn = self.stat_sn.wrapping_add(COMMANDS_PER_TURN);
    }

    /// Have the shard answer them: what is measured, under this name.
    ///
    /// # Panics
    /// When it does not: a fault of the server.
    #[inline(never)]
    pub fn turn(&mut self) {
        for _ in 0..TURNS_MAX {
            let wait = self.shard.turn();
            self.shard.enter(wait).expect("this ring cannot fail");
            if self.wire.borrow().answered_bytes == self.answer_bytes {
                return;
            }
        }
        assert!(self.answer_bytes == u64::MAX, "the commands were not answered in full");
    }

    /// One Login Request takes the session to full feature phase.
    fn log_in(&mut self) -> Result<(), String> {
        let login = requests::login(TARGET, self.workload.digests, self.cmd_sn);
        self.wire.borrow_mut().connects = true;
        self.wire.borrow_mut().requests = login;
        self.answer_bytes = u64::MAX;
        self.turn();
        let wire = &mut *self.wire.borrow_mut();
        let Some(header) = wire.answers.first_chunk::<HEADER_LEN>() else {
            return Err("the Login Request was not answered".to_owned());
        };
        let (transit, status) = (header[1], u16::from_be_bytes([header[36], header[37]]));
        if transit != 0x87 || status != 0 {
            return Err(format!("the login was answered with flags {transit:#04x} and status {status:#06x}"));
        }
        self.stat_sn = u32::from_be_bytes([header[24], header[25], header[26], header[27]]).wrapping_add(1);
        Ok(())
    }
}

/// A shard that listens and serves one disk as LUN 0 of a target that is open to all.
fn shard(wire: Rc<RefCell<Wire>>, format: DiskFormat, path: &Path) -> Result<Shard<InstantRing>, String> {
    let ring = InstantRing::new(wire);
    let arena = Arena::new(ArenaConfig { bytes_max: 64 << 20, hugepages: false }).map_err(|error| error.to_string())?;
    let (sender, mailbox) = mailbox(ring.waker());
    let senders = Senders(vec![sender]);
    let stats = Arc::new(ShardStats::new());
    let parts = Parts { id: ShardId(0), shards: 1, senders, mailbox, stats, zero_copy: false };
    let mut shard = Shard::new(ring, arena, parts);
    let id = DiskId(1);
    let opened = open(id, format, path)?;
    shard.attach(opened.disk, opened.engine);
    let configuration = configuration(id).map_err(|error| format!("the configuration: {error}"))?;
    shard.configure(Arc::new(configuration));
    shard.listen(PortalId(1), 1, Fd(3), None);
    Ok(shard)
}

fn open(id: DiskId, format: DiskFormat, path: &Path) -> Result<medium::Opened, String> {
    let path = format.has_file().then(|| path.to_owned());
    if let Some(path) = &path {
        let spec = CreateSpec {
            path: path.clone(),
            format,
            kind: DiskKind::Dynamic,
            size_bytes: DISK_BYTES,
            block_size_bytes: None,
            sector_size_bytes: 512,
            parent: None,
            disk_id: None,
        };
        medium::create_file(&spec).map_err(|error| error.to_string())?;
    }
    let spec = OpenSpec {
        id,
        name: "rig".to_owned(),
        uuid: uuid::Uuid::from_u128(1),
        format,
        kind: None,
        path,
        parent: None,
        parents: Parents::new(),
        predecessor: None,
        size_bytes: DISK_BYTES,
        sector_size_bytes: 512,
        read_only: false,
        cache: Cache::Buffered,
        home: ShardId(0),
        shards: 1,
    };
    medium::open(spec).map_err(|error| error.to_string())
}

fn configuration(disk: DiskId) -> Result<Configuration, String> {
    let target = Target {
        id: TargetId(1),
        name: IscsiName::new(TARGET).map_err(|error| error.to_string())?,
        alias: None,
        access: vec![AccessRule::Any],
        authentication: Authentication::None,
        portal_groups: Vec::new(),
        redirects: Vec::new(),
        error_recovery_level: 0,
        connections_max: 1,
    };
    let listen = std::net::SocketAddr::from(([192, 0, 2, 1], 3260));
    let portal = Portal { id: PortalId(1), listen, portal_group_tag: 1, advertise: None };
    let directory =
        Directory::new(vec![target], vec![portal], Authentication::None).map_err(|error| error.to_string())?;
    let luns = LunMap::from([(Lun(0), Mapping { disk, read_only: false })]);
    let luns: HashMap<TargetId, LunMap> = BTreeMap::from([(TargetId(1), luns)]).into_iter().collect();
    Ok(Configuration { directory: Arc::new(directory), luns, ..Configuration::default() })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_load_is_answered_in_full_again_and_again() {
        let directory = tempfile::tempdir().unwrap();
        for (number, format) in [DiskFormat::Null, DiskFormat::Memory, DiskFormat::Vhdx].into_iter().enumerate() {
            for (access, digests) in [(Access::Write, true), (Access::Write, false), (Access::Read, true)] {
                let path = directory.path().join(format!("{number}{access:?}{digests}.vhdx"));
                let mut rig = Rig::new(format, &path, Workload { access, len_bytes: 4096, digests }).unwrap();
                for _ in 0..10 {
                    rig.offer();
                    rig.turn();
                }
            }
        }
    }
}
