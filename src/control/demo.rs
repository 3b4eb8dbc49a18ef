//! What `lunaring demo` sets up: one target with one dynamic VHDX, open to all.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use super::api::{NewDisk, NewLun, NewTarget};
use super::controller::Controller;
use super::error::Refused;
use super::targets::IQN_PREFIX;
use crate::medium::{DiskFormat, DiskKind};

/// The name of the demo's disk and target.
pub const NAME: &str = "demo";

/// Size of the demo's disk.
const SIZE_BYTES: u64 = 10 << 30;

/// The usual iSCSI port (RFC 7143 section 16), and where to look for another when it is taken.
const PORTS: std::ops::Range<u16> = 3260..3300;

/// The demo's target.
pub fn iqn() -> String {
    format!("{IQN_PREFIX}{NAME}")
}

/// Make what is missing of the demo's disk and target; what an earlier run made stays as it is.
///
/// # Errors
/// The disk cannot be created.
pub async fn prepare(controller: &mut Controller) -> Result<(), Refused> {
    if !controller.config.disks.contains_key(NAME) {
        let disk = NewDisk {
            name: NAME.to_owned(),
            existing: false,
            size_bytes: Some(SIZE_BYTES),
            format: Some(DiskFormat::Vhdx),
            kind: Some(DiskKind::Dynamic),
            block_size_bytes: None,
            parent: None,
            sector_size_bytes: None,
            file: None,
            cache: None,
            read_only: false,
        };
        controller.disk_new(disk).await?;
    }
    if !controller.config.targets.contains_key(NAME) {
        controller.target_new(NewTarget { name: NAME.to_owned(), iqn: Some(iqn()) }).await?;
    }
    let target = controller.config.targets.get(NAME);
    if target.is_some_and(|target| target.luns.is_empty()) {
        let lun = NewLun { disk: NAME.to_owned(), lun: Some(0), read_only: false, only_for: None };
        controller.target_map(NAME, lun).await?;
    }
    controller.target_allow(NAME, "any").await
}

/// The first port of the demo's range that nobody listens on.
///
/// # Errors
/// All are taken, or the system refuses to listen.
pub fn free_portal() -> Result<SocketAddr, Refused> {
    for port in PORTS {
        let portal = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        match TcpListener::bind(portal) {
            Ok(_) => return Ok(portal),
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {}
            Err(e) => return Err(Refused::failed(format!("cannot listen on {portal}: {e}"))),
        }
    }
    Err(Refused::conflict(format!(
        "ports {} to {} of 127.0.0.1 are all in use; name another portal with --portal",
        PORTS.start,
        PORTS.end - 1
    )))
}
