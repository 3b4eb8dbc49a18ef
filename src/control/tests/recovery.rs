//! A crash between any two steps of a command on chains: the next start shows the same disk, finishes what was begun,
//! and leaves no file that nobody names.

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use futures_lite::future::block_on;

use super::fake::{FakePlane, started};
use super::snapshots::{child, contents, fill, merge_all, small};
use crate::control::api::{ExportSnapshot, Resize};
use crate::control::controller::Controller;
use crate::control::crash::armed;
use crate::control::error::Refused;
use crate::medium::DiskFormat;

const MIB: u64 = 1 << 20;

/// The files of all disks are what is in the folder, and nothing is under way.
fn assert_tidy(dir: &Path, controller: &Controller, step: &str) {
    assert!(!dir.join("change.json").exists(), "after '{step}' the record of the change is open");
    let own = controller.config.disks.values().flat_map(|disk| disk.own_files().map(|file| dir.join(file)));
    let named: BTreeSet<PathBuf> = own.map(|file| file.canonicalize().unwrap()).collect();
    let entries = fs::read_dir(dir.join("disks")).unwrap();
    let found: BTreeSet<PathBuf> = entries.map(|e| e.unwrap().path().canonicalize().unwrap()).collect();
    assert_eq!(named, found, "after a crash at '{step}'");
    for disk in controller.config.disks.values() {
        assert!(disk.merge.is_none(), "after '{step}' a merge is left");
    }
}

/// Run a command in a fresh folder for every step at which it can crash. `shown` is one of the contents that disk `d`
/// may have afterwards; merges that are left are done as the server does them.
fn crash_everywhere(
    prepare: impl AsyncFn(&mut Controller, &FakePlane),
    command: impl AsyncFn(&mut Controller) -> Result<(), Refused>,
) -> usize {
    let run = |steps: Option<usize>| {
        let dir = tempfile::tempdir().unwrap();
        let before = block_on(async {
            let (mut controller, plane) = started(dir.path()).await;
            prepare(&mut controller, &plane).await;
            let before = contents(&controller, &plane, "d");
            armed::arm(steps);
            let work = AssertUnwindSafe(|| block_on(command(&mut controller)));
            let crashed = catch_unwind(work).map(|result| result.unwrap()).is_err();
            assert_eq!(crashed, steps.is_some());
            before
        });
        let passed = armed::passed();
        armed::arm(None);
        let name = steps.map_or("the end", |step| passed[step]);
        block_on(async {
            let (mut controller, plane) = started(dir.path()).await;
            for disk in controller.merges_left() {
                merge_all(&mut controller, &disk).await;
            }
            let after = contents(&controller, &plane, "d");
            // What is shorter or longer is compared as far as both go.
            let len = before.len().min(after.len());
            assert!(before[..len] == after[..len], "after a crash at '{name}' the disk shows something else");
            assert_tidy(dir.path(), &controller, name);
            drop(controller);
            let (controller, plane) = started(dir.path()).await;
            assert!(contents(&controller, &plane, "d") == after, "'{name}': and after another restart");
        });
        passed
    };
    let passed = run(None);
    for step in 0..passed.len() {
        run(Some(step));
    }
    passed.len()
}

/// Disk `d` with something in it, and these snapshots with changes in between.
async fn furnish(c: &mut Controller, plane: &FakePlane, format: DiskFormat, snapshots: u8) {
    c.disk_new(small("d", format)).await.unwrap();
    for number in 1..=snapshots {
        fill(c, plane, "d", u64::from(number) * MIB / 2, 1500 * 512, number);
        c.snapshot_take(vec!["d".into()], Some(format!("s{number}"))).await.unwrap();
    }
    fill(c, plane, "d", 512, 512, 99);
    fill(c, plane, "d", 5 * MIB, 3000 * 512, 98);
}

#[test]
fn a_snapshot() {
    for format in [DiskFormat::Vhdx, DiskFormat::Raw, DiskFormat::Vhd] {
        let prepare = async |c: &mut Controller, plane: &FakePlane| furnish(c, plane, format, 1).await;
        let steps = crash_everywhere(prepare, async |c| c.snapshot_take(vec!["d".into()], None).await.map(drop));
        assert!(steps >= 7, "{steps}");
        let first = async |c: &mut Controller, plane: &FakePlane| furnish(c, plane, format, 0).await;
        crash_everywhere(first, async |c| c.snapshot_take(vec!["d".into()], None).await.map(drop));
    }
}

#[test]
fn a_deleted_snapshot_with_its_merges() {
    for (format, snapshot) in [(DiskFormat::Vhdx, "s1"), (DiskFormat::Vhdx, "s3"), (DiskFormat::Raw, "s1")] {
        let prepare = async |c: &mut Controller, plane: &FakePlane| furnish(c, plane, format, 3).await;
        let steps = crash_everywhere(prepare, async |c| {
            c.snapshot_delete("d", snapshot).await?;
            merge_all(c, "d").await;
            Ok(())
        });
        assert!(steps >= 5, "{format:?} {snapshot}: {steps}");
    }
}

#[test]
fn the_last_snapshot_of_a_raw_disk() {
    let prepare = async |c: &mut Controller, plane: &FakePlane| furnish(c, plane, DiskFormat::Raw, 1).await;
    crash_everywhere(prepare, async |c| {
        c.snapshot_delete("d", "s1").await?;
        merge_all(c, "d").await;
        Ok(())
    });
}

#[test]
fn a_restore_to_the_present_state() {
    let prepare = async |c: &mut Controller, plane: &FakePlane| {
        furnish(c, plane, DiskFormat::Vhdx, 1).await;
        c.snapshot_take(vec!["d".into()], Some("now".into())).await.unwrap();
    };
    assert!(crash_everywhere(prepare, async |c| c.snapshot_restore("d", "now").await.map(drop)) >= 6);
}

#[test]
fn an_export_and_a_child() {
    let prepare = async |c: &mut Controller, plane: &FakePlane| furnish(c, plane, DiskFormat::Vhdx, 2).await;
    let export = |writable| ExportSnapshot { name: "e".into(), writable };
    crash_everywhere(prepare, async |c| c.snapshot_export("d", "s1", export(false)).await);
    crash_everywhere(prepare, async |c| c.snapshot_export("d", "s1", export(true)).await);
    let bare = async |c: &mut Controller, plane: &FakePlane| furnish(c, plane, DiskFormat::Vhdx, 0).await;
    crash_everywhere(bare, async |c| c.disk_new(child("e", "d")).await);
}

#[test]
fn another_size() {
    for size_bytes in [16 * MIB, 7 * MIB] {
        let prepare = async |c: &mut Controller, plane: &FakePlane| furnish(c, plane, DiskFormat::Vhdx, 1).await;
        crash_everywhere(prepare, async |c| c.disk_resize("d", Resize { size_bytes, allow_shrink: true }).await);
    }
}

#[test]
fn a_merge_into_the_parent() {
    let prepare = async |c: &mut Controller, plane: &FakePlane| {
        c.disk_new(small("golden", DiskFormat::Vhdx)).await.unwrap();
        fill(c, plane, "golden", MIB, 4096, 1);
        c.disk_new(child("d", "golden")).await.unwrap();
        fill(c, plane, "d", 3 * MIB + 512, 4096, 2);
    };
    crash_everywhere(prepare, async |c| {
        c.merge_begin("d").await?;
        merge_all(c, "d").await;
        Ok(())
    });
}
