//! Every command: what it changes in the configuration, on the shards and in the file system, and what it refuses.

use std::fs;
use std::path::Path;

use futures_lite::future::block_on;

use super::fake::{FakePlane, free_portal, started};
use crate::control::api::{NewAuth, NewDisk, NewLun, NewPortal, NewTarget};
use crate::control::controller::Controller;
use crate::control::error::{ErrorKind, Refused};
use crate::medium::{DiskFormat, Doing};

pub fn disk(name: &str, format: DiskFormat, size_bytes: u64) -> NewDisk {
    NewDisk {
        name: name.into(),
        existing: false,
        size_bytes: Some(size_bytes),
        format: Some(format),
        kind: None,
        block_size_bytes: None,
        parent: None,
        sector_size_bytes: None,
        file: None,
        cache: None,
        read_only: false,
    }
}

pub fn existing(name: &str, file: &Path) -> NewDisk {
    NewDisk {
        size_bytes: None,
        format: None,
        existing: true,
        file: Some(file.to_owned()),
        ..disk(name, DiskFormat::Raw, 0)
    }
}

pub fn target(name: &str) -> NewTarget {
    NewTarget { name: name.into(), iqn: None }
}

pub fn lun(disk: &str, lun: Option<u16>) -> NewLun {
    NewLun { disk: disk.into(), lun, read_only: false, only_for: None }
}

fn refused(result: Result<impl std::fmt::Debug, Refused>, kind: ErrorKind, said: &str) {
    let refused = result.unwrap_err();
    assert_eq!(refused.kind, kind, "{refused}");
    assert!(refused.message.contains(said), "'{refused}' does not say '{said}'");
}

/// What a restart of the server would bring up.
fn after_restart(controller: Controller, dir: &Path) -> (Controller, std::sync::Arc<FakePlane>) {
    drop(controller);
    block_on(started(dir))
}

#[test]
fn a_disk_becomes_a_lun_of_a_target_and_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (mut controller, plane) = started(dir.path()).await;
        controller.disk_new(disk("d", DiskFormat::Raw, 1 << 20)).await.unwrap();
        assert_eq!(fs::metadata(dir.path().join("disks/d.raw")).unwrap().len(), 1 << 20);
        assert_eq!(plane.told(0).disks.len() + plane.told(1).disks.len(), 2, "every shard knows the disk");
        controller.target_new(target("t")).await.unwrap();
        assert_eq!(controller.target_map("t", lun("d", None)).await, Ok(0));
        controller.target_allow("t", "any").await.unwrap();
        let wanted = vec![("iqn.2026-11.io.lunaring:t".to_owned(), vec![0], vec!["any".to_owned()])];
        assert_eq!((plane.known_targets(0), plane.known_targets(1)), (wanted.clone(), wanted.clone()));
        let (_controller, plane) = after_restart(controller, dir.path());
        assert_eq!(plane.known_targets(1), wanted);
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(!left.contains(&"change.json".into()), "{left:?}");
    });
}

#[test]
fn impossible_disks_are_refused_and_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (mut controller, plane) = started(dir.path()).await;
        let mut no_size = disk("d", DiskFormat::Raw, 0);
        no_size.size_bytes = None;
        let mut odd_sector = disk("d", DiskFormat::Raw, 4096);
        odd_sector.sector_size_bytes = Some(520);
        let mut relative = disk("d", DiskFormat::Raw, 4096);
        relative.file = Some("x.raw".into());
        let mut file_of_memory = disk("d", DiskFormat::Memory, 4096);
        file_of_memory.file = Some("/x".into());
        let mut nowhere = disk("d", DiskFormat::Raw, 4096);
        nowhere.file = Some(dir.path().join("no/such/folder/x.raw"));
        for (new, kind, said) in [
            (no_size, ErrorKind::Invalid, "needs a size"),
            (disk("d", DiskFormat::Raw, 0), ErrorKind::Invalid, "positive multiple"),
            (disk("d", DiskFormat::Null, 1000), ErrorKind::Invalid, "multiple of the sector size"),
            (odd_sector, ErrorKind::Invalid, "use 512 or 4096"),
            (relative, ErrorKind::Invalid, "absolute"),
            (file_of_memory, ErrorKind::Invalid, "--file is for vhdx, vhd and raw disks"),
            (nowhere, ErrorKind::NotFound, "no such file or folder"),
            (disk("a/b", DiskFormat::Null, 4096), ErrorKind::Invalid, "contains '/'"),
            (disk("..", DiskFormat::Null, 4096), ErrorKind::Invalid, "must start with"),
            (disk("", DiskFormat::Null, 4096), ErrorKind::Invalid, "1 to 223"),
            (disk(&"x".repeat(224), DiskFormat::Null, 4096), ErrorKind::Invalid, "1 to 223"),
            (existing("d", &dir.path().join("missing.raw")), ErrorKind::NotFound, "missing.raw"),
        ] {
            refused(controller.disk_new(new).await, kind, said);
        }
        assert!(controller.config.disks.is_empty() && plane.told(0).disks.is_empty());
        assert_eq!(fs::read_dir(dir.path().join("disks")).unwrap().count(), 0);
        assert!(!dir.path().join("change.json").exists());
    });
}

#[test]
fn a_file_that_exists_is_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (mut controller, _plane) = started(dir.path()).await;
        let precious = dir.path().join("disks/d.raw");
        fs::write(&precious, "precious").unwrap();
        refused(controller.disk_new(disk("d", DiskFormat::Raw, 4096)).await, ErrorKind::Conflict, "exists already");
        assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
    });
}

#[test]
fn an_added_image_is_served_as_it_is_and_stays_when_its_disk_is_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image.raw");
    fs::write(&image, vec![7; 8192]).unwrap();
    block_on(async {
        let (mut controller, _plane) = started(&dir.path().join("state")).await;
        controller.disk_new(existing("d", &image)).await.unwrap();
        assert_eq!(controller.config.disks["d"].size_bytes, 8192);
        let twice = controller.disk_new(existing("e", &image)).await;
        refused(twice, ErrorKind::Conflict, "the file of another disk");
        let deleted = controller.disk_delete("d", false).await.unwrap();
        assert_eq!(deleted.kept_file.as_deref(), Some(image.as_path()));
        assert_eq!(fs::read(&image).unwrap(), vec![7; 8192]);
        fs::write(&image, vec![7; 1000]).unwrap();
        refused(controller.disk_new(existing("d", &image)).await, ErrorKind::Invalid, "whole number of sectors");
    });
}

#[test]
fn deleting_a_disk_takes_its_file_unless_that_is_kept_or_a_target_needs_it() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (mut controller, plane) = started(dir.path()).await;
        for name in ["a", "b"] {
            controller.disk_new(disk(name, DiskFormat::Raw, 4096)).await.unwrap();
        }
        controller.target_new(target("t")).await.unwrap();
        controller.target_map("t", lun("a", Some(5))).await.unwrap();
        refused(controller.disk_delete("a", false).await, ErrorKind::Conflict, "LUN 5 of target 't'");
        controller.target_unmap("t", 5, None).await.unwrap();
        assert_eq!(controller.disk_delete("a", false).await.unwrap().kept_file, None);
        let kept = controller.disk_delete("b", true).await.unwrap().kept_file;
        assert_eq!(kept, Some(dir.path().canonicalize().unwrap().join("disks/b.raw")));
        assert!(!dir.path().join("disks/a.raw").exists() && dir.path().join("disks/b.raw").exists());
        assert!(plane.told(0).disks.is_empty() && plane.told(1).disks.is_empty());
        refused(controller.disk_delete("a", false).await, ErrorKind::NotFound, "there is no disk 'a'");
    });
}

#[test]
fn luns_take_the_lowest_free_number_and_never_double() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (mut controller, _plane) = started(dir.path()).await;
        for name in ["a", "b", "c", "d"] {
            controller.disk_new(disk(name, DiskFormat::Null, 1 << 30)).await.unwrap();
        }
        controller.target_new(target("t")).await.unwrap();
        assert_eq!(controller.target_map("t", lun("a", Some(1))).await, Ok(1));
        assert_eq!(controller.target_map("t", lun("b", None)).await, Ok(0));
        assert_eq!(controller.target_map("t", lun("c", None)).await, Ok(2));
        refused(controller.target_map("t", lun("d", Some(1))).await, ErrorKind::Conflict, "is disk 'a' already");
        refused(controller.target_map("t", lun("a", Some(9))).await, ErrorKind::Conflict, "is LUN 1 of target");
        refused(controller.target_map("t", lun("d", Some(16384))).await, ErrorKind::Invalid, "use 0 to 16383");
        refused(controller.target_map("t", lun("x", None)).await, ErrorKind::NotFound, "there is no disk 'x'");
        refused(controller.target_map("x", lun("d", None)).await, ErrorKind::NotFound, "there is no target 'x'");
        refused(controller.target_unmap("t", 7, None).await, ErrorKind::NotFound, "has no LUN 7");
    });
}

#[test]
fn targets_are_named_once_and_found_by_either_name() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (mut controller, plane) = started(dir.path()).await;
        controller.target_new(target("Web_1")).await.unwrap();
        assert_eq!(controller.config.targets["Web_1"].iqn, "iqn.2026-11.io.lunaring:web-1");
        refused(controller.target_new(target("Web_1")).await, ErrorKind::Conflict, "already");
        refused(controller.target_new(target("web_1")).await, ErrorKind::Conflict, "give 'web_1' another with --iqn");
        let bad = NewTarget { name: "x".into(), iqn: Some("disk1".into()) };
        refused(controller.target_new(bad).await, ErrorKind::Invalid, "is not an iSCSI name");
        controller.target_allow("iqn.2026-11.io.lunaring:WEB-1", "ip:10.0.0.0/8").await.unwrap();
        controller.target_allow("Web_1", "ip:10.0.0.0/8").await.unwrap();
        assert_eq!(controller.config.targets["Web_1"].allow, ["ip:10.0.0.0/8"]);
        for rule in ["ip:10.0.0.0/33", "host", "iqn:host"] {
            let result = controller.target_allow("Web_1", rule).await;
            assert_eq!(result.unwrap_err().kind, ErrorKind::Invalid, "{rule}");
        }
        refused(controller.target_deny("Web_1", "any").await, ErrorKind::NotFound, "its rules: ip:10.0.0.0/8");
        controller.target_deny("Web_1", "ip:10.0.0.0/8").await.unwrap();
        controller.target_delete("Web_1").await.unwrap();
        assert!(plane.known_targets(0).is_empty());
        refused(controller.target_delete("Web_1").await, ErrorKind::NotFound, "there is no target");
    });
}

#[test]
fn chap_secrets_are_checked_stored_and_never_shown() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (mut controller, plane) = started(dir.path()).await;
        let (handle, _jobs) = controller.handle();
        controller.target_new(target("t")).await.unwrap();
        let auth = |secret: &str, mutual: Option<&str>| {
            Some(NewAuth {
                chap_user: "user".into(),
                chap_secret: secret.into(),
                mutual_user: mutual.map(|_| "server".into()),
                mutual_secret: mutual.map(Into::into),
                algorithms: vec![],
            })
        };
        for (new, said) in [
            (auth("elevenchars", None), "12 to 255"),
            (auth(&"x".repeat(256), None), "12 to 255"),
            (auth("twelve chars", Some("twelve chars")), "must be different"),
        ] {
            refused(controller.target_auth("t", new).await, ErrorKind::Invalid, said);
        }
        let mut half = auth("twelve chars", None).unwrap();
        half.mutual_user = Some("server".into());
        refused(controller.target_auth("t", Some(half)).await, ErrorKind::Invalid, "both a user and a secret");
        controller.target_auth("t", auth("secret-twelve", Some("secret-mutual"))).await.unwrap();
        let shown = serde_json::to_string(&handle.view().api_targets()).unwrap();
        assert!(shown.contains("server") && !shown.contains("secret-"), "{shown}");
        assert!(!format!("{:?} {:?}", controller.config, plane.told(0).configuration).contains("secret-"));
        assert!(fs::read_to_string(dir.path().join("config.json")).unwrap().contains("secret-twelve"));
        controller.target_auth("t", None).await.unwrap();
        assert!(!fs::read_to_string(dir.path().join("config.json")).unwrap().contains("secret-"));
    });
}

#[test]
fn portals_listen_and_stop_and_a_port_in_use_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (mut controller, plane) = started(dir.path()).await;
        let portal = free_portal();
        let new = |address: &str| NewPortal { address: address.into(), group: None, advertise: None };
        controller.portal_add(new(&portal.to_string())).await.unwrap();
        std::net::TcpStream::connect(portal).unwrap();
        assert_eq!(plane.told(0).configuration.directory.portals().len(), 1);
        refused(controller.portal_add(new(&portal.to_string())).await, ErrorKind::Conflict, "there already");
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let in_use = controller.portal_add(new(&taken.local_addr().unwrap().to_string())).await;
        refused(in_use, ErrorKind::Conflict, "the port is in use");
        let foreign = controller.portal_add(new("192.0.2.1:3260")).await;
        refused(foreign, ErrorKind::Conflict, "does not have that address");
        for bad in ["127.0.0.1", "127.0.0.1:0", "::1:3260x", "host:3260", "[::1]", "224.0.0.1:3260", ""] {
            assert_eq!(controller.portal_add(new(bad)).await.unwrap_err().kind, ErrorKind::Invalid, "{bad}");
        }
        assert_eq!(controller.config.portals, [portal]);
        controller.portal_remove(&portal.to_string()).await.unwrap();
        assert!(std::net::TcpStream::connect(portal).is_err());
        refused(controller.portal_remove(&portal.to_string()).await, ErrorKind::NotFound, "there is no portal");
    });
}

#[test]
fn a_portal_of_the_command_line_is_not_kept_until_it_is_added() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (mut controller, _plane) = started(dir.path()).await;
        let portal = free_portal();
        controller.listen_all(&[portal]).await.unwrap();
        assert!(controller.config.portals.is_empty() && controller.portals[0].temporary);
        let new = NewPortal { address: portal.to_string(), group: None, advertise: None };
        controller.portal_add(new).await.unwrap();
        assert!(controller.config.portals == [portal] && !controller.portals[0].temporary);
    });
}

#[test]
fn a_disk_whose_file_is_gone_is_offline_and_disturbs_no_other() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (mut controller, _plane) = started(dir.path()).await;
        for name in ["a", "b"] {
            controller.disk_new(disk(name, DiskFormat::Raw, 4096)).await.unwrap();
        }
        controller.target_new(target("t")).await.unwrap();
        for name in ["a", "b"] {
            controller.target_map("t", lun(name, None)).await.unwrap();
        }
        drop(controller);
        fs::remove_file(dir.path().join("disks/a.raw")).unwrap();
        let (mut controller, plane) = started(dir.path()).await;
        assert_eq!(plane.known_targets(0)[0].1, [1], "LUN 1 is served without LUN 0");
        let (handle, _jobs) = controller.handle();
        let shown = handle.view().api_disk_mapped("a").unwrap();
        assert_eq!(shown.state, crate::control::api::DiskState::Offline);
        assert!(shown.reason.unwrap().contains("no such file"));
        controller.target_unmap("t", 0, None).await.unwrap();
        controller.disk_delete("a", false).await.unwrap();
        assert_eq!(controller.config.disks.len(), 1, "an offline disk can be deleted");
    });
}

#[test]
fn what_the_host_did_to_a_disk_is_told() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (mut controller, _plane) = started(dir.path()).await;
        controller.disk_new(disk("a", DiskFormat::Raw, 4096)).await.unwrap();
        let live = controller.online("a").unwrap();
        let (handle, _jobs) = controller.handle();
        let shown = || handle.view().api_disk_mapped("a").unwrap();
        assert_eq!(shown().notes, [""; 0]);
        live.trouble().note(Doing::WritingData, libc::ENOSPC);
        live.trouble().note(Doing::WritingMetadata, libc::EDQUOT);
        let note = shown().notes.join(" ");
        assert!(note.contains("a.raw 2 times") && note.contains("free there now"), "{note}");
        assert_eq!(shown().state, crate::control::api::DiskState::Online, "what has space is written");
        live.trouble().note(Doing::Flushing, libc::EIO);
        live.poison();
        let shown = shown();
        assert_eq!(shown.state, crate::control::api::DiskState::Failed);
        let reason = shown.reason.unwrap();
        assert!(reason.starts_with("flushing its file failed: input/output error (EIO)"), "{reason}");
    });
}

#[test]
fn a_full_mailbox_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (mut controller, plane) = started(dir.path()).await;
        plane.told(0).refusals = 5;
        plane.told(1).refusals = 3;
        controller.target_new(target("t")).await.unwrap();
        assert_eq!((plane.known_targets(0).len(), plane.known_targets(1).len()), (1, 1));
    });
}
