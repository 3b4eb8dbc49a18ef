//! Chains, snapshots and merges: what they show and what files they leave, on stand-ins for the shards that read and
//! write real files.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use futures_lite::future::block_on;

use super::commands::{disk, existing, lun, target};
use super::fake::{FakePlane, started};
use crate::control::api::{ExportSnapshot, NewDisk, Resize};
use crate::control::controller::{Controller, LiveDisk};
use crate::control::error::ErrorKind;
use crate::jobs::Progress;
use crate::medium::{Disk, DiskFormat, DiskKind};

const MIB: u64 = 1 << 20;

/// A differencing disk over another.
pub fn child(name: &str, parent: &str) -> NewDisk {
    NewDisk {
        size_bytes: None,
        format: None,
        kind: Some(DiskKind::Differencing),
        parent: Some(parent.to_owned()),
        ..disk(name, DiskFormat::Vhdx, 0)
    }
}

pub fn small(name: &str, format: DiskFormat) -> NewDisk {
    NewDisk { block_size_bytes: (format == DiskFormat::Vhdx).then_some(MIB), ..disk(name, format, 8 * MIB) }
}

pub fn live(controller: &Controller, name: &str) -> Arc<Disk> {
    match &controller.disks[name] {
        LiveDisk::Online(disk) => Arc::clone(disk),
        LiveDisk::Offline(why) => panic!("disk '{name}' is offline: {why}"),
    }
}

/// Every sector of a disk, by the number that it was filled with.
pub fn contents(controller: &Controller, plane: &FakePlane, name: &str) -> Vec<u8> {
    let disk = live(controller, name);
    plane.read(&disk, 0, disk.size_bytes() as usize)
}

pub fn fill(controller: &Controller, plane: &FakePlane, name: &str, at: u64, len: usize, byte: u8) {
    plane.write(&live(controller, name), at, &vec![byte; len]);
}

/// Do everything that a merge job would.
pub async fn merge_all(controller: &mut Controller, name: &str) {
    for round in 0.. {
        let Some(work) = controller.merge_next(name, round).await.unwrap() else { return };
        work.run(&Progress::default()).unwrap();
        controller.merge_copied(name).await.unwrap();
    }
}

fn files(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir.join("disks")).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

async fn take(controller: &mut Controller, name: &str, snapshot: &str) {
    controller.snapshot_take(vec![name.to_owned()], Some(snapshot.to_owned())).await.unwrap();
}

#[test]
fn children_share_a_parent_that_is_frozen_as_long_as_there_are_any() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (mut c, plane) = started(dir.path()).await;
        c.disk_new(small("golden", DiskFormat::Vhdx)).await.unwrap();
        fill(&c, &plane, "golden", MIB, 4096, 1);
        c.target_new(target("t")).await.unwrap();
        c.target_map("t", lun("golden", None)).await.unwrap();
        let refused = c.disk_new(child("a", "golden")).await.unwrap_err();
        assert!(refused.message.contains("LUN 0 of target 't'"), "{refused}");
        c.target_unmap("t", 0, None).await.unwrap();
        for name in ["a", "b"] {
            c.disk_new(child(name, "golden")).await.unwrap();
        }
        assert!(live(&c, "golden").read_only());
        let golden = contents(&c, &plane, "golden");
        fill(&c, &plane, "a", MIB + 512, 512, 2);
        assert_eq!(contents(&c, &plane, "b"), golden);
        let mut wanted = golden.clone();
        wanted[MIB as usize + 512..][..512].fill(2);
        assert_eq!(contents(&c, &plane, "a"), wanted);
        let refused = c.target_map("t", lun("golden", None)).await.unwrap_err();
        assert!(refused.message.contains("the parent of a, b"), "{refused}");
        let refused = c.disk_delete("golden", false).await.unwrap_err();
        assert_eq!((refused.kind, refused.message.contains("the parent of a, b")), (ErrorKind::Conflict, true));
        let size = Resize { size_bytes: 16 * MIB, allow_shrink: false };
        assert!(c.disk_resize("golden", size).await.unwrap_err().message.contains("which would lose it"));
        drop(c);
        let (mut c, plane) = started(dir.path()).await;
        assert_eq!(contents(&c, &plane, "a"), wanted, "after a restart");
        for name in ["a", "b"] {
            c.disk_delete(name, false).await.unwrap();
        }
        assert!(!live(&c, "golden").read_only(), "without children it can be written again");
        fill(&c, &plane, "golden", 0, 512, 3);
        assert_eq!(files(dir.path()), ["golden.vhdx"]);
    });
}

#[test]
fn a_snapshot_shows_what_was_and_the_disk_goes_on() {
    for format in [DiskFormat::Vhdx, DiskFormat::Raw, DiskFormat::Vhd] {
        let dir = tempfile::tempdir().unwrap();
        block_on(async {
            let (mut c, plane) = started(dir.path()).await;
            c.disk_new(small("d", format)).await.unwrap();
            let mut states = vec![contents(&c, &plane, "d")];
            for number in 1..5u8 {
                fill(&c, &plane, "d", u64::from(number) * MIB / 2, 100 * 512, number);
                states.push(contents(&c, &plane, "d"));
                take(&mut c, "d", &format!("s{number}")).await;
                assert_eq!(contents(&c, &plane, "d"), states[usize::from(number)], "a snapshot changes nothing");
            }
            fill(&c, &plane, "d", 0, 512, 9);
            for (number, state) in states.iter().enumerate().skip(1) {
                let export = ExportSnapshot { name: format!("e{number}"), writable: number % 2 == 0 };
                c.snapshot_export("d", &format!("s{number}"), export).await.unwrap();
                assert_eq!(contents(&c, &plane, &format!("e{number}")), *state, "{format:?}");
            }
            drop(c);
            let (mut c, plane) = started(dir.path()).await;
            assert_eq!(contents(&c, &plane, "e2"), states[2]);
            fill(&c, &plane, "e2", 0, 512, 7);
            let refused = c.snapshot_delete("d", "s2").await.unwrap_err();
            assert!(refused.message.contains("needed by e2"), "{refused}");
            for number in 1..5 {
                c.disk_delete(&format!("e{number}"), false).await.unwrap();
            }
            c.snapshot_restore("d", "s2").await.unwrap();
            assert_eq!(contents(&c, &plane, "d"), states[2], "{format:?}");
            c.snapshot_restore("d", "s4").await.unwrap();
            assert_eq!(contents(&c, &plane, "d"), states[4], "{format:?}");
        });
    }
}

#[test]
fn deleted_snapshots_leave_one_file_with_the_present_state() {
    for (format, order) in [
        (DiskFormat::Vhdx, [1, 2, 3]),
        (DiskFormat::Vhdx, [2, 3, 1]),
        (DiskFormat::Raw, [3, 1, 2]),
        (DiskFormat::Vhd, [2, 1, 3]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        block_on(async {
            let (mut c, plane) = started(dir.path()).await;
            c.disk_new(small("d", format)).await.unwrap();
            let before = files(dir.path());
            let mut states = vec![Vec::new()];
            for number in 1..4u8 {
                fill(&c, &plane, "d", u64::from(number) * MIB / 2, 1500 * 512, number);
                states.push(contents(&c, &plane, "d"));
                take(&mut c, "d", &format!("s{number}")).await;
            }
            fill(&c, &plane, "d", 0, 512, 9);
            let wanted = contents(&c, &plane, "d");
            for (done, number) in order.into_iter().enumerate() {
                let more = c.snapshot_delete("d", &format!("s{number}")).await.unwrap();
                assert!(more, "its file is merged");
                merge_all(&mut c, "d").await;
                assert_eq!(contents(&c, &plane, "d"), wanted, "{format:?} {order:?} after s{number}");
                for left in &order[done + 1..] {
                    c.snapshot_export("d", &format!("s{left}"), ExportSnapshot { name: "e".into(), writable: false })
                        .await
                        .unwrap();
                    assert_eq!(contents(&c, &plane, "e"), states[*left], "{format:?} {order:?} s{left}");
                    c.disk_delete("e", false).await.unwrap();
                }
            }
            assert_eq!(files(dir.path()), before, "one file, and the first one's name");
            assert_eq!(c.config.disks["d"].format, format);
            drop(c);
            let (c, plane) = started(dir.path()).await;
            assert_eq!(contents(&c, &plane, "d"), wanted, "after a restart");
        });
    }
}

#[test]
fn a_child_is_merged_into_its_parent_and_keeps_its_identity() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (mut c, plane) = started(dir.path()).await;
        c.disk_new(small("golden", DiskFormat::Vhdx)).await.unwrap();
        fill(&c, &plane, "golden", MIB, 4096, 1);
        c.disk_new(child("a", "golden")).await.unwrap();
        let uuid = live(&c, "a").uuid();
        fill(&c, &plane, "a", 3 * MIB + 512, 4096, 2);
        c.disk_resize("a", Resize { size_bytes: 12 * MIB, allow_shrink: false }).await.unwrap();
        fill(&c, &plane, "a", 11 * MIB, 4096, 3);
        let wanted = contents(&c, &plane, "a");
        c.merge_begin("a").await.unwrap();
        merge_all(&mut c, "a").await;
        assert_eq!(contents(&c, &plane, "a"), wanted);
        assert_eq!((live(&c, "a").uuid(), live(&c, "a").layers().len()), (uuid, 1));
        assert!(!c.config.disks.contains_key("golden"), "its file is the disk's now");
        assert_eq!(files(dir.path()), ["golden.vhdx"]);
        assert!(c.merge_begin("a").await.unwrap_err().message.contains("no parent"));
    });
}

#[test]
fn an_image_whose_parent_has_moved_is_added_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (mut c, plane) = started(dir.path()).await;
        c.disk_new(small("golden", DiskFormat::Vhdx)).await.unwrap();
        fill(&c, &plane, "golden", MIB, 4096, 1);
        c.disk_new(child("a", "golden")).await.unwrap();
        let wanted = contents(&c, &plane, "a");
        c.disk_delete("a", true).await.unwrap();
        c.disk_delete("golden", true).await.unwrap();
        let (old, moved) = (dir.path().join("disks/golden.vhdx"), dir.path().join("elsewhere.vhdx"));
        fs::rename(&old, &moved).unwrap();
        let image = dir.path().join("disks/a.vhdx");
        assert_eq!(c.disk_new(existing("a", &image)).await.unwrap_err().kind, ErrorKind::Invalid);
        let named = NewDisk { parent: Some(moved.to_str().unwrap().into()), ..existing("a", &image) };
        c.disk_new(named).await.unwrap();
        assert_eq!(contents(&c, &plane, "a"), wanted);
        drop(c);
        let (c, plane) = started(dir.path()).await;
        assert_eq!(contents(&c, &plane, "a"), wanted, "and after a restart");
    });
}

#[test]
fn a_group_is_one_instant_and_names_are_free() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (mut c, _plane) = started(dir.path()).await;
        for name in ["a", "b"] {
            c.disk_new(small(name, DiskFormat::Vhdx)).await.unwrap();
        }
        c.disk_new(disk("m", DiskFormat::Memory, MIB)).await.unwrap();
        let both = || vec!["a".to_owned(), "b".to_owned()];
        c.snapshot_take(both(), Some("s".into())).await.unwrap();
        let (a, b) = (&c.config.disks["a"].snapshots["s"], &c.config.disks["b"].snapshots["s"]);
        assert!(a.group.is_some() && a.group == b.group && a.created == b.created);
        let before = c.config.clone();
        assert!(c.snapshot_take(both(), Some("s".into())).await.unwrap_err().message.contains("already"));
        assert!(c.snapshot_take(vec!["m".into()], None).await.unwrap_err().message.contains("no snapshots"));
        assert!(c.snapshot_take(vec!["a".into(), "a".into()], None).await.unwrap_err().message.contains("twice"));
        assert!(c.snapshot_restore("a", "x").await.unwrap_err().message.contains("no snapshot 'x'"));
        assert_eq!(c.config, before, "a refusal changes nothing");
        for _ in 0..3 {
            c.snapshot_take(vec!["a".into()], None).await.unwrap();
        }
        assert_eq!(c.config.disks["a"].snapshots.len(), 4);
    });
}
