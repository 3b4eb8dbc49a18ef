//! Disks behind a real server: chains made from the specification, read by an initiator byte by byte; and what
//! initiators, snapshots and conversions leave in files, read by all who may be believed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::judge::{Format, Verdict};
use crate::made::Recipe;
use crate::server::{Server, text, tool_ok};
use crate::specification::{MadeChain, judge_all, verdict_of};
use crate::trust::Subject;
use crate::vhdx_support::MIB;

fn verdict_of_file(path: &Path) -> Verdict {
    let file = File::open(path).expect("the file is there");
    let size = file.metadata().expect("a size").len();
    Verdict::of(size, |offset, into| std::os::unix::fs::FileExt::read_exact_at(&file, into, offset))
}

/// What an initiator reads.
fn initiator(server: &Server, iqn: &str, lun: u16) -> Verdict {
    let raw = server.file("read.raw");
    tool_ok("qemu-img", &["convert", "-f", "raw", "-O", "raw", &server.url(iqn, lun), text(&raw)]);
    verdict_of_file(&raw)
}

#[test]
fn made_chains_are_served_byte_by_byte() {
    let mut server = Server::start();
    for (number, (sector, sizes, dirty)) in [
        (512, vec![5 * MIB; 3], false),
        (512, vec![7 * MIB], true),
        (4096, vec![5 * MIB; 2], false),
        (512, vec![5 * MIB; 2], true),
        (512, vec![3 * MIB, 5 * MIB], false),
    ]
    .into_iter()
    .enumerate()
    {
        let mut chain = MadeChain::new(&Recipe::dynamic(0, MIB, sector), &sizes, 40 + number as u64);
        if dirty {
            chain.made[0].move_to_log(number as u64);
            chain.save();
        }
        let before: Vec<Verdict> = chain.paths.iter().map(|path| verdict_of_file(path)).collect();
        let name = format!("made{number}");
        server.ok(&["disk", "add", &name, "--file", text(&chain.paths[0]), "--read-only"]);
        let iqn = server.target_with(&name, &name);
        let expected = verdict_of(&chain.content, sector);
        assert_eq!(initiator(&server, &iqn, 0), expected, "sectors {sector}, sizes {sizes:?}, dirty {dirty}");
        let after: Vec<Verdict> = chain.paths.iter().map(|path| verdict_of_file(path)).collect();
        assert_eq!(after, before, "served read-only, the files stay as they are");
        server.ok(&["target", "delete", &name]);
        server.ok(&["disk", "delete", &name, "--keep-file"]);
    }
    server.stop();
}

/// A golden disk, a child, snapshots of the child; each file and its parents say what the initiator read.
#[test]
fn what_a_server_leaves_is_read_alike_by_all() {
    let mut server = Server::start();
    server.ok(&["disk", "create", "golden", "--size", "12M", "--block-size", "1M"]);
    let iqn = server.target_with("golden", "golden");
    let write = |server: &Server, iqn: &str, commands: &[&str]| {
        let mut arguments = vec!["-f", "raw"];
        commands.iter().for_each(|command| arguments.extend(["-c", command]));
        let url = server.url(iqn, 0);
        tool_ok("qemu-io", &[&arguments[..], &["-c", "flush", &url]].concat());
    };
    write(&server, &iqn, &["write -P 1 0 3M", "write -P 2 5001k 100k", "write -P 3 11M 1M"]);
    server.ok(&["target", "delete", "golden"]);
    server.ok(&["disk", "create", "child", "--kind", "differencing", "--parent", "golden", "--block-size", "1M"]);
    let iqn = server.target_with("child", "child");
    write(&server, &iqn, &["write -P 4 4k 8k", "write -P 5 2M 1M", "write -P 6 5000k 4k"]);
    server.ok(&["snapshot", "create", "child", "one"]);
    write(&server, &iqn, &["write -P 7 8k 4k", "discard 2M 1M", "write -P 8 11M 512"]);
    server.ok(&["snapshot", "create", "child", "two"]);
    write(&server, &iqn, &["write -P 9 11M 4k", "write -P 10 7M 64k"]);
    server.ok(&["disk", "compact", "child"]);
    let expected = initiator(&server, &iqn, 0);
    let copy = server.file("copy.vhdx");
    server.ok(&["disk", "convert", "child", "--to", text(&copy)]);
    let leaf = server.json(&["disk", "show", "child"])["file"].as_str().map(PathBuf::from).expect("a file");
    server.stop();

    let subject = Subject { size_bytes: 12 * MIB, other_items: true, ..Subject::new(Format::Vhdx) };
    judge_all(&subject, &[&copy], &expected);
    // All in one directory, as some judges want it; the leaf's chain is four files deep.
    let directory = leaf.parent().expect("a directory");
    assert_eq!(fs::read_dir(directory).expect("a directory").count(), 4);
    let chain = Subject { depth: 4, any_states: true, ..subject };
    judge_all(&chain, &[&leaf], &expected);
}

/// The same for the older format: a dynamic disk and a child, written by an initiator.
#[test]
fn vhd_that_a_server_leaves_is_read_alike_by_all() {
    let mut server = Server::start();
    server.ok(&["disk", "create", "old", "--size", "9M", "--format", "vhd"]);
    let iqn = server.target_with("old", "old");
    let commands = ["-c", "write -P 1 0 3M", "-c", "write -P 2 5001k 100k", "-c", "discard 2M 2M", "-c", "flush"];
    tool_ok("qemu-io", &[&["-f", "raw"], &commands[..], &[&server.url(&iqn, 0)]].concat());
    let expected = initiator(&server, &iqn, 0);
    server.ok(&["target", "delete", "old"]);
    server.ok(&["disk", "create", "young", "--kind", "differencing", "--parent", "old", "--format", "vhd"]);
    let iqn = server.target_with("young", "young");
    let commands = ["-c", "write -P 4 512 1k", "-c", "write -P 5 8M 1M", "-c", "flush"];
    tool_ok("qemu-io", &[&["-f", "raw"], &commands[..], &[&server.url(&iqn, 0)]].concat());
    let expected_young = initiator(&server, &iqn, 0);
    let (parent, leaf) = (server.disk_file("old"), server.disk_file("young"));
    server.stop();
    assert_ne!(expected, expected_young);
    let subject = Subject { size_bytes: 9 * MIB, ..Subject::new(Format::Vhd) };
    judge_all(&subject, &[&parent], &expected);
    judge_all(&Subject { depth: 2, ..subject }, &[&leaf, &parent], &expected_young);
}
