//! Bad input gives one clear line, exit status 1 (2 for usage), and changes nothing.

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use crate::server::{Server, free_port, lunaring, one_clear_line, text, tool, tool_ok};

/// Everything that a refused command must not change: the configuration and the files beside it.
fn state_of(server: &Server) -> (String, Vec<(String, u64)>) {
    let config = fs::read_to_string(server.state().join("config.json")).unwrap_or_default();
    let mut files: Vec<(String, u64)> = fs::read_dir(server.state().join("disks"))
        .map(|dir| {
            dir.flatten().map(|e| (e.file_name().to_string_lossy().into_owned(), e.metadata().map_or(0, |m| m.len())))
        })
        .map(Iterator::collect)
        .unwrap_or_default();
    files.sort();
    (config, files)
}

#[test]
fn a_refused_command_says_why_in_one_line_and_changes_nothing() {
    let server = Server::start();
    server.ready_target("there", &["--size", "64M"]);
    let missing = server.file("missing.vhdx");
    let secret = server.file("short-secret");
    fs::write(&secret, "short\n").expect("a file");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().expect("its address").to_string();
    let before = state_of(&server);
    let cases: &[(&[&str], &[&str])] = &[
        (&["disk", "create", "odd", "--size", "1000"], &["512"]),
        (&["disk", "create", "none", "--size", "0"], &[]),
        (&["disk", "create", "huge", "--size", "65T"], &["64"]),
        (&["disk", "create", "blocks", "--size", "64M", "--block-size", "3M"], &["block"]),
        (&["disk", "create", "there", "--size", "64M"], &["there"]),
        (&["disk", "create", "../evil", "--size", "64M"], &["name"]),
        (&["disk", "add", "lost", "--file", text(&missing)], &["missing.vhdx"]),
        (&["disk", "show", "nobody"], &["nobody"]),
        (&["disk", "delete", "nobody"], &["nobody"]),
        (&["disk", "delete", "there"], &["there"]),
        (&["target", "create", "bad", "--iqn", "not-an-iqn"], &["not-an-iqn"]),
        (&["target", "create", "there"], &["there"]),
        (&["target", "show", "nobody"], &["nobody"]),
        (&["target", "map", "nobody", "there"], &["nobody"]),
        (&["target", "map", "there", "nothing"], &["nothing"]),
        (&["target", "map", "there", "there", "--lun", "0"], &["0"]),
        (&["target", "unmap", "there", "--lun", "5"], &["5"]),
        (&["target", "allow", "there", "ip:300.0.0.0/8"], &["300.0.0.0"]),
        (&["target", "auth", "there", "--chap-user", "u", "--chap-secret-file", text(&secret)], &["12"]),
        (&["target", "auth", "there", "--chap-user", "u", "--chap-secret-file", text(&missing)], &["missing.vhdx"]),
        (&["portal", "add", &taken], &[&taken]),
        (&["portal", "remove", "127.0.0.1:1"], &["127.0.0.1:1"]),
        (&["session", "drop", "4711"], &["4711"]),
    ];
    for (arguments, says) in cases {
        let line = server.refused(arguments);
        for word in *says {
            assert!(line.contains(word), "{arguments:?}: the line does not say '{word}': {line}");
        }
        assert_eq!(state_of(&server), before, "{arguments:?} changed something");
    }
}

#[test]
fn wrong_usage_has_exit_status_2() {
    let server = Server::start();
    let before = state_of(&server);
    let cases: &[&[&str]] = &[
        &["disk", "create"],
        &["disk", "create", "x", "--size", "lots"],
        &["disk", "create", "x", "--size", "64M", "--format", "floppy"],
        &["target", "map", "x"],
        &["target", "unmap", "x"],
        &["disk", "frobnicate"],
        &["session", "drop"],
    ];
    for arguments in cases {
        let output = server.lunaring(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert!(!output.stderr.is_empty(), "{arguments:?} says nothing");
        assert_eq!(state_of(&server), before, "{arguments:?} changed something");
    }
}

/// A sound dynamic VHDX of 64 MiB made by QEMU, spoilt by `spoil`.
fn spoilt_vhdx(path: &Path, spoil: impl FnOnce(&mut Vec<u8>)) {
    tool_ok("qemu-img", &["create", "-q", "-f", "vhdx", "-o", "block_size=1M", text(path), "64M"]);
    let mut bytes = fs::read(path).expect("the image");
    spoil(&mut bytes);
    fs::write(path, bytes).expect("the image");
}

#[test]
fn a_truncated_or_corrupt_image_is_refused_and_left_alone() {
    let server = Server::start();
    type Spoil = fn(&mut Vec<u8>);
    let cases: &[(&str, Spoil)] = &[
        ("empty", |bytes| bytes.clear()),
        ("short", |bytes| bytes.truncate(70_000)),
        ("half", |bytes| bytes.truncate(1 << 20)),
        ("signature", |bytes| bytes[0] ^= 0xff),
        ("both-headers", |bytes| {
            bytes[0x1_0000 + 100] ^= 1;
            bytes[0x2_0000 + 100] ^= 1;
        }),
        ("both-region-tables", |bytes| {
            bytes[0x3_0000 + 40] ^= 1;
            bytes[0x4_0000 + 40] ^= 1;
        }),
        ("metadata", |bytes| {
            let at = bytes.windows(8).position(|w| w == b"metadata").expect("the metadata table");
            bytes[at] ^= 0xff;
        }),
    ];
    for (name, spoil) in cases {
        let path = server.file(&format!("{name}.vhdx"));
        spoilt_vhdx(&path, spoil);
        let before = (fs::read(&path).expect("the image"), state_of(&server));
        let line = server.refused(&["disk", "add", name, "--file", text(&path)]);
        assert!(line.contains(&format!("{name}.vhdx")), "{name}: the line does not say which file: {line}");
        assert!(before == (fs::read(&path).expect("the image"), state_of(&server)), "{name}: something changed");
    }
    // A damaged VHD served as a raw disk would be destroyed by its first write.
    for (name, kind) in [("dynamic.vhd", "dynamic"), ("fixed.vhd", "fixed")] {
        let path = server.file(name);
        tool_ok("qemu-img", &["create", "-q", "-f", "vpc", "-o", &format!("subformat={kind}"), text(&path), "16M"]);
        let mut bytes = fs::read(&path).expect("the image");
        let footers: Vec<usize> = (0..bytes.len() - 8).filter(|at| &bytes[*at..*at + 8] == b"conectix").collect();
        for at in footers {
            bytes[at + 70] ^= 1;
        }
        fs::write(&path, bytes).expect("a file");
        let line = server.refused(&["disk", "add", "old", "--file", text(&path)]);
        assert!(line.contains(name) && line.contains("footer"), "{line}");
    }
    let odd = server.file("odd.img");
    fs::write(&odd, [1; 1000]).expect("a file");
    let line = server.refused(&["disk", "add", "odd", "--file", text(&odd)]);
    assert!(line.contains("odd.img") && line.contains("1000"), "{line}");
    // A sound one is taken, whoever made it.
    let path = server.file("sound.vhdx");
    spoilt_vhdx(&path, |_| {});
    server.ok(&["disk", "add", "sound", "--file", text(&path)]);
    let iqn = server.target_with("sound", "sound");
    let url = server.url(&iqn, 0);
    tool_ok("qemu-io", &["-f", "raw", "-c", "write -P 3 5M 3M", "-c", "read -P 3 5M 3M", "-c", "read -P 0 0 5M", &url]);
}

#[test]
fn a_differencing_image_that_names_no_parent_is_refused() {
    // MS-VHDX 2.6.2.1: HasParent is bit 1 of the flags behind BlockSize. QEMU makes no differencing VHDX itself.
    const FILE_PARAMETERS: [u8; 16] =
        [0x37, 0x67, 0xa1, 0xca, 0x36, 0xfa, 0x43, 0x4d, 0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b];
    let server = Server::start();
    let path = server.file("child.vhdx");
    spoilt_vhdx(&path, |bytes| {
        let region = bytes.windows(8).position(|w| w == b"metadata").expect("the metadata table");
        let entry = bytes.windows(16).position(|w| w == FILE_PARAMETERS).expect("the file parameters' entry");
        let offset = u32::from_le_bytes(bytes[entry + 16..entry + 20].try_into().expect("4 bytes")) as usize;
        bytes[region + offset + 4] |= 2;
    });
    let before = (fs::read(&path).expect("the image"), state_of(&server));
    let line = server.refused(&["disk", "add", "child", "--file", text(&path)]);
    assert!(line.contains("Parent Locator") && line.contains("child.vhdx"), "{line}");
    assert!(before == (fs::read(&path).expect("the image"), state_of(&server)), "something changed");
}

#[test]
fn two_servers_never_open_the_same_file_or_folder() {
    let first = Server::start();
    first.ready_target("mine", &["--size", "64M"]);
    let file = first.disk_file("mine");
    let before = fs::read(&file).expect("the image");

    let second = Server::start();
    let line = second.refused(&["disk", "add", "yours", "--file", text(&file)]);
    assert!(line.contains("mine"), "{line}");

    let portal = free_port("127.0.0.1".parse().expect("an address")).to_string();
    let state = first.state();
    let same_folder = ["serve", "--state", text(&state), "--portal", &portal];
    one_clear_line(&lunaring(&same_folder), &same_folder);
    assert_eq!(fs::read(&file).expect("the image"), before);
    first.ok(&["disk", "list"]);
}

#[test]
fn serve_refuses_what_it_can_not_serve_in_one_line() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let state = folder.path().join("state");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let portal = taken.local_addr().expect("its address").to_string();
    let arguments = ["serve", "--state", text(&state), "--portal", &portal];
    let line = one_clear_line(&lunaring(&arguments), &arguments);
    assert!(line.contains(&portal), "{line}");

    let arguments = ["serve", "--state", text(&state), "--portal", "192.0.2.1:3260"];
    let line = one_clear_line(&lunaring(&arguments), &arguments);
    assert!(line.contains("192.0.2.1"), "{line}");

    let free = free_port("127.0.0.1".parse().expect("an address")).to_string();
    let arguments = ["serve", "--state", text(&state), "--portal", &free, "--cores", "4000"];
    let line = one_clear_line(&lunaring(&arguments), &arguments);
    assert!(line.contains("4000"), "{line}");

    let broken = folder.path().join("broken");
    fs::create_dir_all(&broken).expect("a folder");
    fs::write(broken.join("config.json"), "{ \"version\": 1, ").expect("a file");
    let arguments = ["serve", "--state", text(&broken), "--portal", &free];
    let line = one_clear_line(&lunaring(&arguments), &arguments);
    assert!(line.contains("config.json"), "{line}");
    assert_eq!(fs::read_to_string(broken.join("config.json")).expect("the file"), "{ \"version\": 1, ");

    let file = folder.path().join("a-file");
    fs::write(&file, "").expect("a file");
    let arguments = ["serve", "--state", text(&file), "--portal", &free];
    one_clear_line(&lunaring(&arguments), &arguments);
}

#[test]
fn a_client_without_a_server_says_so() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let socket = folder.path().join("control.sock");
    let arguments = ["disk", "list", "--socket", text(&socket)];
    let line = one_clear_line(&lunaring(&arguments), &arguments);
    assert!(line.contains("control.sock"), "{line}");
}

#[test]
fn a_disk_whose_image_is_gone_takes_nothing_else_down() {
    let mut server = Server::start();
    server.ready_target("good", &["--size", "64M"]);
    let lost = server.ready_target("lost", &["--size", "64M"]);
    let good = "iqn.2026-11.io.lunaring:good";
    server.stop();
    fs::remove_file(server.disk_file("lost")).expect("the image");
    server.start_again();
    tool_ok("qemu-io", &["-f", "raw", "-c", "write -P 1 0 1M", &server.url(good, 0)]);
    let (ok, said) = tool("iscsi-readcapacity16", &[&server.url(&lost, 0)]);
    assert!(!ok || !said.contains("Total size"), "a lost disk is served:\n{said}");
    assert!(server.log().contains("lost"), "the server does not say which image is missing:\n{}", server.log());
}
