//! Images that other programs made (Hyper-V, Disk2vhd, Windows, QEMU), served read-only: every byte as their makers
//! meant it, and not a byte of the file changed. Runs where `LUNARING_IMAGES` names the collection.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::server::{Server, lunaring, text, tool_ok};

/// Larger ones take long to hash and show nothing more.
const VIRTUAL_SIZE_MAX: u64 = 1 << 30;

fn collection() -> Option<(PathBuf, Vec<serde_json::Value>)> {
    let folder = PathBuf::from(std::env::var_os("LUNARING_IMAGES")?);
    let manifest = fs::read_to_string(folder.join("manifest.json")).expect("the collection's manifest.json");
    Some((folder, serde_json::from_str(&manifest).expect("a list of images")))
}

fn unpack(packed: &Path, to: &Path) {
    let file = fs::File::create(to).expect("the image");
    let status = Command::new("xz").arg("-dc").arg(packed).stdout(file).stdin(Stdio::null()).status();
    assert!(status.expect("xz runs (package xz-utils)").success(), "{}", packed.display());
}

fn sha256(path: &Path) -> String {
    tool_ok("sha256sum", &["-b", text(path)]).split(' ').next().expect("a sum").to_owned()
}

/// What an initiator reads, as a hash.
fn content(server: &Server, iqn: &str, virtual_size: u64) -> String {
    let raw = server.file("content.raw");
    tool_ok("qemu-img", &["convert", "-f", "raw", "-O", "raw", &server.url(iqn, 0), text(&raw)]);
    assert_eq!(fs::metadata(&raw).expect("the content").len(), virtual_size, "{iqn}");
    sha256(&raw)
}

fn is_empty(server: &Server, iqn: &str, virtual_size: u64) {
    let last = format!("read -P 0 {} 1M", virtual_size - (1 << 20));
    tool_ok("qemu-io", &["-r", "-f", "raw", "-c", "read -P 0 0 4M", "-c", &last, &server.url(iqn, 0)]);
    let info = tool_ok("qemu-img", &["info", "-f", "raw", "--output=json", &server.url(iqn, 0)]);
    assert!(info.contains(&format!("\"virtual-size\": {virtual_size}")), "{iqn}: {info}");
}

#[test]
fn images_of_others_are_served_byte_by_byte() {
    let Some((folder, images)) = collection() else {
        println!("LUNARING_IMAGES is not set; nothing to serve");
        return;
    };
    let mut server = Server::start();
    let mut served = 0;
    for image in images {
        let of = |key: &str| image[key].as_str().unwrap_or("").to_owned();
        let (name, format, expect) = (of("name"), of("format"), of("expect"));
        let virtual_size = image["virtual_size"].as_u64().unwrap_or(u64::MAX);
        if format == "vhdx" && virtual_size > VIRTUAL_SIZE_MAX {
            continue;
        }
        let short = name.replace(['/', '.'], "-");
        let path = server.file(&short).with_extension(&format);
        unpack(&folder.join(&name), &path);
        let before = sha256(&path);
        // A check needs no server.
        let checked = lunaring(&["disk", "check", text(&path)]);
        assert_eq!(checked.status.success(), expect == "open", "{name}: {checked:?}");
        if expect == "refuse" {
            let line = server.refused(&["disk", "add", &short, "--file", text(&path)]);
            assert!(line.contains(&short), "{name}: {line}");
        } else {
            server.ok(&["disk", "add", &short, "--file", text(&path), "--read-only"]);
            let iqn = server.target_with(&short, &short);
            match image["content_sha256"].as_str() {
                Some(expected) => assert_eq!(content(&server, &iqn, virtual_size), expected, "{name}: other bytes"),
                // Empty, and too large to be read whole.
                None => is_empty(&server, &iqn, virtual_size),
            }
            served += 1;
        }
        assert_eq!(sha256(&path), before, "{name}: the file was changed");
        fs::remove_file(&path).expect("it is there");
    }
    assert!(served > 0, "no image of the collection was served");
    server.stop();
}
