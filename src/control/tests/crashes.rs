//! A crash between any two steps of any command: the next start finds the state before or after it, and the files
//! agree.

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use futures_lite::future::block_on;

use super::commands::{disk, existing, lun, target};
use super::fake::{free_portal, started};
use crate::control::api::NewPortal;
use crate::control::config::Config;
use crate::control::controller::Controller;
use crate::control::crash::armed;
use crate::control::error::Refused;
use crate::medium::DiskFormat;

/// A state folder with a disk that is mapped, one that is not, and an image of somebody else's.
fn furnish(dir: &Path) {
    fs::write(dir.join("theirs.raw"), vec![9; 4096]).unwrap();
    block_on(async {
        let (mut controller, _plane) = started(&dir.join("state")).await;
        controller.disk_new(disk("mapped", DiskFormat::Raw, 4096)).await.unwrap();
        controller.disk_new(disk("spare", DiskFormat::Raw, 8192)).await.unwrap();
        controller.target_new(target("t")).await.unwrap();
        controller.target_map("t", lun("mapped", None)).await.unwrap();
    });
}

/// All that lasts: the configuration without what is random, and which image files there are.
#[derive(Clone, Debug, PartialEq)]
struct Lasting {
    config: Config,
    files: BTreeSet<String>,
}

fn lasting(dir: &Path, controller: &Controller) -> Lasting {
    let mut config = controller.config.clone();
    for disk in config.disks.values_mut() {
        disk.uuid = uuid::Uuid::nil();
        disk.file = disk.file.take().map(|file| match file.strip_prefix(dir) {
            Ok(inside) => inside.to_owned(),
            Err(_) => file,
        });
    }
    let names = |folder: &Path| -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().path().strip_prefix(dir).unwrap().display().to_string()).collect()
    };
    let mut files: BTreeSet<String> = names(&dir.join("state")).into_iter().collect();
    files.extend(names(&dir.join("state/disks")));
    files.extend(names(dir));
    // Half-written replacements are overwritten by the next one.
    files.retain(|name| !name.ends_with(".json.new"));
    Lasting { config, files }
}

/// Run a command in a fresh copy of the furnished folder for every step at which it can crash.
fn crash_everywhere(command: impl AsyncFn(&mut Controller, &Path) -> Result<(), Refused>) -> usize {
    let run = |steps: Option<usize>| {
        let dir = tempfile::tempdir().unwrap();
        furnish(dir.path());
        let state = dir.path().join("state");
        let (before, crashed) = {
            let (mut controller, _plane) = block_on(started(&state));
            let before = lasting(dir.path(), &controller);
            armed::arm(steps);
            let run = AssertUnwindSafe(|| block_on(command(&mut controller, dir.path())));
            let crashed = match catch_unwind(run) {
                Ok(result) => {
                    result.unwrap();
                    false
                }
                Err(_) => true,
            };
            (before, crashed)
        };
        let passed = armed::passed();
        armed::arm(None);
        let (controller, _plane) = block_on(started(&state));
        assert!(!state.join("change.json").exists(), "the record of the change is closed");
        assert_eq!(fs::read(dir.path().join("theirs.raw")).unwrap(), vec![9; 4096], "nobody else's file is touched");
        (before, lasting(dir.path(), &controller), crashed, passed)
    };
    let (before, after, crashed, passed) = run(None);
    assert!(!crashed && before != after && !passed.is_empty(), "the command does something, in steps");
    let mut seen_before = 0;
    for (step, name) in passed.iter().enumerate() {
        let (_, found, crashed, _) = run(Some(step));
        assert!(crashed);
        assert!(
            found == before || found == after,
            "after a crash at '{name}' the state is neither the one before nor the one after:\n{found:#?}"
        );
        seen_before += usize::from(found == before);
    }
    assert!(seen_before > 0, "some crash comes before the command counts");
    passed.len()
}

#[test]
fn disk_create() {
    assert!(crash_everywhere(async |c, _| c.disk_new(disk("new", DiskFormat::Raw, 4096)).await) >= 6);
}

#[test]
fn disk_create_elsewhere() {
    crash_everywhere(async |c, dir| {
        let mut new = disk("new", DiskFormat::Raw, 4096);
        new.file = Some(dir.canonicalize().unwrap().join("elsewhere.raw"));
        c.disk_new(new).await
    });
}

#[test]
fn disk_add() {
    crash_everywhere(async |c, dir| c.disk_new(existing("added", &dir.join("theirs.raw"))).await);
}

#[test]
fn disk_delete() {
    assert!(crash_everywhere(async |c, _| c.disk_delete("spare", false).await.map(drop)) >= 3);
}

#[test]
fn target_commands() {
    crash_everywhere(async |c, _| c.target_new(target("u")).await);
    crash_everywhere(async |c, _| c.target_delete("t").await);
    crash_everywhere(async |c, _| c.target_map("t", lun("spare", None)).await.map(drop));
    crash_everywhere(async |c, _| c.target_unmap("t", 0, None).await);
    crash_everywhere(async |c, _| c.target_allow("t", "any").await);
}

#[test]
fn portal_add() {
    let portal = free_portal().to_string();
    let new = move || NewPortal { address: portal.clone(), group: None, advertise: None };
    crash_everywhere(async move |c, _| c.portal_add(new()).await);
}
