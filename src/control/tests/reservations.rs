//! Files beside disks' images that reservations are kept in: which are a disk's, and go with it.

use std::fs;
use std::path::Path;

use futures_lite::future::block_on;
use uuid::Uuid;

use super::commands::disk;
use super::fake::started;
use crate::medium::DiskFormat;
use crate::scsi::reservations::place::{self, Owner};

/// Put a file there as a home shard of that disk would have written it.
fn keep(path: &Path, uuid: Uuid, name: &str) {
    let owner = Owner { uuid: *uuid.as_bytes(), name: name.into() };
    let state = [&b"LUNARPR1"[..], &[0; 4]].concat();
    let state = [&state[..], &crate::crc32c::crc32c(&state).to_le_bytes()].concat();
    fs::write(path, place::copy(&owner, 2, &state)).unwrap();
}

#[test]
fn only_its_own_reservations_go_with_a_disk() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (mut controller, _plane) = started(dir.path()).await;
        for name in ["own", "others", "empty", "recorded"] {
            controller.disk_new(disk(name, DiskFormat::Raw, 1 << 20)).await.unwrap();
        }
        let beside = |name: &str| dir.path().join(format!("disks/{name}.raw.reservations"));
        keep(&beside("own"), controller.config.disks["own"].uuid, "own");
        // Of a disk that has been here, or whose leaf's name begins so.
        keep(&beside("others"), Uuid::from_u128(7), "others");
        fs::write(beside("empty"), "").unwrap();
        fs::write(beside("recorded"), "").unwrap();
        let recorded = Some("disks/recorded.raw.reservations".into());
        controller.config.disks.get_mut("recorded").unwrap().reservations = recorded;
        for (name, stays) in [("own", false), ("others", true), ("empty", true), ("recorded", false)] {
            controller.disk_delete(name, false).await.unwrap();
            assert_eq!(beside(name).exists(), stays, "{name}");
            assert!(!dir.path().join(format!("disks/{name}.raw")).exists());
        }
    });
}
