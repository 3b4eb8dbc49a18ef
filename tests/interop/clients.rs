//! libiscsi's tools and QEMU against a server, in each way it can run.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::server::{Options, Server, both_loopbacks, every_way, text, tool, tool_ok, vhdx_log_is_empty};

/// A raw ext4 image with files in it.
fn file_system_image(path: &Path, folder: &Path) {
    let content = folder.join("content");
    fs::create_dir_all(&content).expect("a folder");
    for number in 0..64u32 {
        let bytes: Vec<u8> = (0..number * 4099).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        fs::write(content.join(format!("file-{number}")), bytes).expect("a file");
    }
    let file = fs::File::create(path).expect("the image");
    file.set_len(96 << 20).expect("its size");
    tool_ok("mkfs.ext4", &["-q", "-F", "-d", text(&content), text(path)]);
}

#[test]
fn libiscsi_sees_a_target_and_its_logical_unit() {
    for (way, options) in every_way() {
        let mut server = Server::start_with(options);
        let iqn = server.ready_target("one", &["--size", "1G"]);
        let url = server.url(&iqn, 0);
        let portal = format!("iscsi://{}", server.portals[0]);

        let listing = tool_ok("iscsi-ls", &["-s", &portal]);
        assert!(listing.contains(&iqn), "{way}: {listing}");
        assert!(listing.contains("Lun:0") && listing.contains("DIRECT_ACCESS"), "{way}: {listing}");

        let standard = tool_ok("iscsi-inq", &[&url]);
        assert!(standard.contains("Peripheral Qualifier:CONNECTED"), "{way}: {standard}");
        assert!(standard.contains("DIRECT_ACCESS") && standard.contains("CmdQue:1"), "{way}: {standard}");
        let pages = tool_ok("iscsi-inq", &["-e", "1", "-c", "0", &url]);
        for page in ["0x00", "0x80", "0x83", "0xb0", "0xb1", "0xb2"] {
            assert!(pages.contains(&format!("Page:{page}")), "{way}: page {page} is not supported:\n{pages}");
        }
        let expected = [
            ("128", "Unit Serial Number:["),
            ("131", "DEVICE DESIGNATOR #0"),
            ("176", "maximum transfer length:"),
            ("177", "otation rate:"),
            ("178", "provisioning type:"),
        ];
        for (page, says) in expected {
            let (ok, told) = tool("iscsi-inq", &["-e", "1", "-c", page, &url]);
            assert!(ok && told.to_lowercase().contains(&says.to_lowercase()), "{way}: page {page}:\n{told}");
        }
        let capacity = tool_ok("iscsi-readcapacity16", &[&url]);
        assert!(capacity.contains("RETURNED LOGICAL BLOCK ADDRESS:2097151"), "{way}: {capacity}");
        assert!(capacity.contains("Total size:1073741824"), "{way}: {capacity}");

        let speed = tool_ok("iscsi-perf", &["-t", "1", "-m", "32", "-b", "8", "-r", &url]);
        assert!(speed.contains("iops average") && !speed.contains("iops average 0 "), "{way}: {speed}");
        server.stop();
    }
}

#[test]
fn a_file_system_image_goes_there_and_back_and_the_vhdx_is_sound() {
    for (way, options) in every_way() {
        for kind in ["dynamic", "fixed"] {
            let mut server = Server::start_with(options.clone());
            let (image, back) = (server.file("ext4.img"), server.file("back.img"));
            file_system_image(&image, server.folder.path());
            let iqn = server.ready_target("fs", &["--size", "96M", "--kind", kind]);
            let url = server.url(&iqn, 0);

            let there = ["convert", "-n", "-f", "raw", "-O", "raw", text(&image), &url];
            tool_ok("qemu-img", &there);
            tool_ok("qemu-img", &["convert", "-f", "raw", "-O", "raw", &url, text(&back)]);
            tool_ok("cmp", &[text(&image), text(&back)]);
            tool_ok("e2fsck", &["-fn", text(&back)]);

            server.stop();
            let vhdx = server.disk_file("fs");
            assert!(vhdx_log_is_empty(&vhdx), "{way}, {kind}: the log holds something after a clean stop");
            let check = tool_ok("qemu-img", &["check", "-f", "vhdx", text(&vhdx)]);
            assert!(check.contains("No errors"), "{way}, {kind}: {check}");
            tool_ok("qemu-img", &["compare", "-f", "raw", "-F", "vhdx", text(&image), text(&vhdx)]);

            // And once more after a restart, from the file.
            server.start_again();
            fs::remove_file(&back).expect("the first copy");
            tool_ok("qemu-img", &["convert", "-f", "raw", "-O", "raw", &url, text(&back)]);
            tool_ok("cmp", &[text(&image), text(&back)]);
            server.stop();
        }
    }
}

#[test]
fn qemu_io_reads_the_patterns_that_it_wrote() {
    for (way, options) in every_way() {
        for disk in
            [&["--size", "64M"][..], &["--size", "64M", "--format", "raw"], &["--size", "64M", "--format", "memory"]]
        {
            let mut server = Server::start_with(options.clone());
            let iqn = server.ready_target("patterns", disk);
            let url = server.url(&iqn, 0);
            let script = [
                "read -P 0 0 1M",
                "write -P 0x11 0 512",
                "write -P 0x22 512 3584",
                "write -P 0x33 1M 3M",
                "write -P 0x44 4194304 64k",
                "write -P 0x55 33553920 1024",
                "write -P 0x66 67108352 512",
                "flush",
                "read -P 0x11 0 512",
                "read -P 0x22 512 3584",
                "read -P 0 4096 1044480",
                "read -P 0x33 1M 3M",
                "read -P 0x44 4194304 64k",
                "read -P 0x55 33553920 1024",
                "read -P 0 33554944 512",
                "read -P 0x66 67108352 512",
            ];
            let mut arguments = vec!["-f", "raw"];
            for line in &script {
                arguments.extend(["-c", line]);
            }
            arguments.push(&url);
            let said = tool_ok("qemu-io", &arguments);
            assert!(!said.contains("verification failed"), "{way}, {disk:?}: {said}");
            server.stop();
        }
    }
}

#[test]
fn header_digests_work_with_qemu() {
    let server = Server::start();
    let iqn = server.ready_target("digest", &["--size", "64M"]);
    for digest in ["none", "crc32c", "none-crc32c", "crc32c-none"] {
        let image = format!(
            "json:{{\"driver\":\"raw\",\"file\":{{\"driver\":\"iscsi\",\"transport\":\"tcp\",\"portal\":\"{}\",\
             \"target\":\"{iqn}\",\"lun\":0,\"header-digest\":\"{digest}\"}}}}",
            server.portals[0]
        );
        let said = tool_ok("qemu-io", &["-c", "write -P 7 1M 2M", "-c", "read -P 7 1M 2M", &image]);
        assert!(!said.contains("verification failed"), "{digest}: {said}");
    }
}

#[test]
fn several_clients_at_once_over_both_address_families() {
    let mut server = Server::start_with(Options { addresses: both_loopbacks(), ..Options::default() });
    let iqn = server.ready_target("both", &["--size", "64M"]);
    let listing = tool_ok("iscsi-ls", &["-s", &format!("iscsi://{}", server.portals[1])]);
    assert!(listing.contains(&iqn), "{listing}");
    let clients: Vec<_> = (0..6u64)
        .map(|number| {
            let url = format!("iscsi://{}/{iqn}/0", server.portals[(number % 2) as usize]);
            let at = (number * 10) << 20;
            let mut command = Command::new("timeout");
            command.args(["60", "qemu-io", "-f", "raw"]);
            for _ in 0..8 {
                command.arg("-c").arg(format!("write -P {} {at} 8M", number + 1));
                command.arg("-c").arg(format!("read -P {} {at} 8M", number + 1));
            }
            command.arg(url).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("qemu-io runs")
        })
        .collect();
    for client in clients {
        let output = client.wait_with_output().expect("qemu-io ends");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && !said.contains("verification failed"), "{output:?}");
    }
    server.stop();
}

#[test]
fn the_demo_serves_a_disk_and_keeps_it() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let portal = crate::server::free_port("127.0.0.1".parse().expect("an address"));
    let url = format!("iscsi://{portal}/iqn.2026-11.io.lunaring:demo/0");
    for round in 0..2 {
        let log = folder.path().join(format!("demo-{round}.log"));
        let file = fs::File::create(&log).expect("the log");
        let mut demo = Command::new(crate::server::LUNARING)
            .args(["demo", "--dir"])
            .arg(folder.path().join("demo"))
            .args(["--portal", &portal.to_string()])
            .stdout(file.try_clone().expect("the log"))
            .stderr(file)
            .spawn()
            .expect("lunaring demo starts");
        let began = std::time::Instant::now();
        while std::net::TcpStream::connect(portal).is_err() {
            assert!(
                began.elapsed().as_secs() < 20,
                "the demo is not ready:\n{}",
                fs::read_to_string(&log).expect("log")
            );
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let script: &[&str] = if round == 0 {
            &["-f", "raw", "-c", "write -P 9 5G 1M", "-c", "read -P 9 5G 1M", &url]
        } else {
            &["-f", "raw", "-c", "read -P 9 5G 1M", &url]
        };
        let said = tool("qemu-io", script);
        crate::server::signal_process(demo.id(), if round == 0 { "INT" } else { "TERM" });
        let began = std::time::Instant::now();
        while demo.try_wait().expect("wait").is_none() {
            if began.elapsed().as_secs() >= 2 {
                let _ = demo.kill();
                let _ = demo.wait();
                panic!("the demo still ran 2 s after the signal");
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert!(said.0 && !said.1.contains("verification failed"), "round {round}: {}", said.1);
        let told = fs::read_to_string(&log).expect("the log");
        for word in ["iscsi-ls", "qemu-img", "iscsiadm", "io_uring", &portal.to_string()] {
            assert!(told.contains(word), "the demo does not say {word}:\n{told}");
        }
    }
}

#[test]
fn the_demo_names_another_port_when_its_own_is_taken() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    // Taken by us now, or by somebody else already.
    let portal = "127.0.0.1:3260";
    let _taken = std::net::TcpListener::bind(portal);
    let log = folder.path().join("demo.log");
    let file = fs::File::create(&log).expect("the log");
    let mut demo = Command::new(crate::server::LUNARING)
        .args(["demo", "--dir"])
        .arg(folder.path().join("demo"))
        .stdout(file.try_clone().expect("the log"))
        .stderr(file)
        .spawn()
        .expect("lunaring demo starts");
    let began = std::time::Instant::now();
    let url = loop {
        let told = fs::read_to_string(&log).expect("the log");
        let found = told.split_whitespace().find(|w| w.contains("iscsi://127.0.0.1:"));
        if let Some(url) = found.filter(|_| told.contains("iscsiadm")) {
            break url[url.find("iscsi://").expect("found")..].trim_matches(['"', '\'', ',']).to_owned();
        }
        if demo.try_wait().expect("wait").is_some() || began.elapsed().as_secs() > 20 {
            let _ = demo.kill();
            panic!("no other port was offered:\n{told}");
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    };
    assert!(!url.contains(&format!("{portal}/")), "{url}");
    let portal_only: String = url.split('/').take(3).collect::<Vec<_>>().join("/");
    let listing = tool("iscsi-ls", &["-s", &portal_only]);
    crate::server::signal_process(demo.id(), "TERM");
    demo.wait().expect("wait");
    assert!(listing.0 && listing.1.contains("iqn.2026-11.io.lunaring:demo"), "{url}: {}", listing.1);
}
