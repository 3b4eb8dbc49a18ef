//! Files beside disks' images that reservations are kept in: which are a disk's, and go with it.

use std::fs;
use std::path::Path;

use futures_lite::future::block_on;
use uuid::Uuid;

use super::commands::{disk, existing};
use super::fake::{FakePlane, started};
use super::snapshots::{live, small};
use crate::control::api::NewDisk;
use crate::control::controller::Controller;
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

/// Whether some shard was told that reservations of a disk last.
fn lasts(controller: &Controller, plane: &FakePlane, name: &str) -> bool {
    let id = live(controller, name).id();
    (0..2).any(|shard| plane.told(shard).reservations.get(&id).is_some_and(|kept| kept.persists()))
}

/// Two disks of one identity, as an image and its copy are, in a fresh folder.
async fn twins(dir: &Path) -> Uuid {
    let (mut controller, _plane) = started(dir).await;
    for name in ["a", "b"] {
        controller.disk_new(disk(name, DiskFormat::Raw, 1 << 20)).await.unwrap();
    }
    let mut config = controller.config.clone();
    let uuid = config.disks["a"].uuid;
    config.disks.get_mut("b").unwrap().uuid = uuid;
    controller.persist(config).await.unwrap();
    uuid
}

/// A crash comes between what a shard has stored and the record of where that is.
#[test]
fn of_two_disks_with_one_identity_each_finds_what_was_kept_for_it() {
    for (name, other) in [("a", "b"), ("b", "a")] {
        let dir = tempfile::tempdir().unwrap();
        block_on(async {
            let uuid = twins(dir.path()).await;
            let of_both = dir.path().join(format!("disks/{uuid}.reservations"));
            keep(&of_both, uuid, name);
            // Nobody's: which of the two it was made for is not known.
            fs::write(dir.path().join(format!("disks/{other}.raw.reservations")), "").unwrap();
            let (mut controller, plane) = started(dir.path()).await;
            assert_eq!((lasts(&controller, &plane, name), lasts(&controller, &plane, other)), (true, false));
            let recorded = |name: &str| controller.config.disks[name].reservations.as_ref();
            assert_eq!(recorded(name).map(|path| dir.path().join(path)), Some(of_both.clone()));
            assert_eq!(recorded(other), None);
            controller.disk_delete(other, false).await.unwrap();
            assert!(of_both.exists(), "the other disk's");
            controller.disk_delete(name, false).await.unwrap();
            assert!(!of_both.exists());
        });
    }
}

#[test]
fn what_moves_beside_a_disk_is_found_again_though_another_has_its_identity() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let uuid = twins(dir.path()).await;
        keep(&dir.path().join("reservations"), uuid, "a");
        for start in 0..3 {
            let (controller, plane) = started(dir.path()).await;
            assert_eq!((lasts(&controller, &plane, "a"), lasts(&controller, &plane, "b")), (true, false), "{start}");
            assert!(dir.path().join("disks/a.raw.reservations").exists());
        }
    });
}

/// A disk that came with its reservations had another name where they were written.
#[test]
fn reservations_that_came_with_a_disk_stay_its_when_its_copy_comes() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (mut controller, _plane) = started(dir.path()).await;
        let images = ["came", "copy"].map(|name| dir.path().join(format!("{name}.vhdx")));
        let named = |name: &str, at: usize| NewDisk { file: Some(images[at].clone()), ..small(name, DiskFormat::Vhdx) };
        controller.disk_new(named("former", 0)).await.unwrap();
        let uuid = controller.config.disks["former"].uuid;
        controller.disk_delete("former", true).await.unwrap();
        fs::copy(&images[0], &images[1]).unwrap();
        keep(&dir.path().join(format!("{uuid}.reservations")), uuid, "former");
        controller.disk_new(existing("came", &images[0])).await.unwrap();
        controller.disk_new(existing("copy", &images[1])).await.unwrap();
        drop(controller);
        let (controller, plane) = started(dir.path()).await;
        assert_eq!(controller.config.disks["copy"].uuid, uuid);
        assert_eq!((lasts(&controller, &plane, "came"), lasts(&controller, &plane, "copy")), (true, false));
    });
}
