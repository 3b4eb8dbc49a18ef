//! Registration with an iSNS server, judged by Debian's open-isns: its server and its client.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::server::{Server, free_port, text, tool};

/// Programs for administrators may not be in the path.
fn program(name: &str) -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    let found = path.split(':').chain(["/usr/sbin", "/sbin"]).map(|folder| format!("{folder}/{name}"));
    found.into_iter().find(|file| fs::metadata(file).is_ok()).unwrap_or_else(|| name.to_owned())
}

/// An iSNS server that keeps everything in memory; killed when dropped.
struct Isnsd {
    child: Child,
    folder: tempfile::TempDir,
    address: String,
}

impl Isnsd {
    fn start(address: &str) -> Isnsd {
        let folder = tempfile::tempdir().expect("a folder");
        let file = |name: &str| folder.path().join(name);
        let common = "Security = 0\nSLPRegister = 0\n";
        let server = format!(
            "SourceName = iqn.2026-11.com.example:isnsd\n{common}BindAddress = {address}\nDefaultDiscoveryDomain = 1\n\
             PIDFile = {}\nControlSocket = {}\nESIMinInterval = 1s\nESIMaxInterval = 2s\nESIRetries = 2\n",
            file("pid").display(),
            file("control").display()
        );
        let asker = format!("SourceName = iqn.2026-11.com.example:asker\nServerAddress = {address}\n{common}");
        fs::write(file("isnsd.conf"), server).expect("a file");
        fs::write(file("isnsadm.conf"), asker).expect("a file");
        let log = fs::File::create(file("log")).expect("a file");
        let child = Command::new(program("isnsd"))
            .args(["-f", "-4", "-d", "esi", "-d", "socket", "-c", text(&file("isnsd.conf"))])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log"))
            .stderr(log)
            .spawn()
            .expect("isnsd starts; tests/run installs what the tests need");
        let isnsd = Isnsd { child, folder, address: address.to_owned() };
        let began = Instant::now();
        // Only who is registered is told about others.
        while !isnsd.admin(&["--register", "initiator=iqn.2026-11.com.example:asker"]).0 {
            assert!(began.elapsed() < Duration::from_secs(10), "{}", isnsd.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        isnsd
    }

    fn admin(&self, arguments: &[&str]) -> (bool, String) {
        let config = self.folder.path().join("isnsadm.conf");
        tool(&program("isnsadm"), &[&["-c", text(&config)], arguments].concat())
    }

    /// What there is of a type of object.
    fn list(&self, kind: &str) -> String {
        let (_, said) = self.admin(&["--list", kind]);
        said
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Wait until a node is there, or is not.
    fn await_node(&self, name: &str, there: bool) {
        let began = Instant::now();
        while self.list("nodes").contains(&format!("\"{name}\"")) != there {
            assert!(
                began.elapsed() < Duration::from_secs(10),
                "{name} there: {}; {}{}",
                !there,
                self.list("nodes"),
                self.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Isnsd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn targets_are_registered_and_kept_as_the_configuration_says() {
    let address = free_port("127.0.0.1".parse().expect("an address")).to_string();
    let mut server = Server::start();
    let first = server.ready_target("first", &["--size", "1M", "--format", "memory"]);
    // Nobody is there yet: the command is done at once, and the server says what is wrong.
    let began = Instant::now();
    server.ok(&["isns", "set", &address]);
    assert!(began.elapsed() < Duration::from_secs(1));
    std::thread::sleep(Duration::from_millis(300));
    let shown = server.ok(&["isns", "show"]);
    assert!(shown.contains("not registered") && shown.contains("refused"), "{shown}");
    // It tries again until somebody is.
    let isnsd = Isnsd::start(&address);
    assert_eq!(isnsd.address, address);
    isnsd.await_node(&first, true);
    assert_eq!(server.json(&["isns", "show"])["registered"], true);
    assert!(isnsd.list("nodes").contains("Target"), "{}", isnsd.list("nodes"));
    let portals = isnsd.list("portals");
    assert!(portals.contains("= 127.0.0.1\n"), "{portals}");
    assert!(portals.contains(&format!("= {}/tcp\n", server.portals[0].port())), "{portals}");
    // Changes are told.
    server.ok(&["target", "create", "second"]);
    isnsd.await_node("iqn.2026-11.io.lunaring:second", true);
    server.ok(&["target", "delete", "first"]);
    isnsd.await_node(&first, false);
    let extra = free_port("127.0.0.1".parse().expect("an address"));
    server.ok(&["portal", "add", &extra.to_string(), "--advertise", "203.0.113.9:3260"]);
    let began = Instant::now();
    while !isnsd.list("portals").contains("= 203.0.113.9\n") {
        assert!(began.elapsed() < Duration::from_secs(5), "{}", isnsd.list("portals"));
        std::thread::sleep(Duration::from_millis(50));
    }
    // The server asks every two seconds whether we live, and drops who does not answer; and the registration is renewed
    // after 20 seconds, by which nothing comes or goes (a node's index would change).
    let (before, messages) = (isnsd.list("nodes"), || isnsd.log().matches("func=DevAttrReg").count());
    let (registered, began) = (messages(), Instant::now());
    while messages() == registered {
        assert!(began.elapsed() < Duration::from_secs(25), "never renewed: {}", isnsd.log());
        std::thread::sleep(Duration::from_millis(200));
    }
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(isnsd.list("nodes"), before);
    assert_eq!(server.json(&["isns", "show"])["registered"], true);
    assert!(isnsd.log().contains("Good ESI response"), "no inquiry: {}", isnsd.log());
    assert!(!isnsd.log().contains("timed out"), "{}", isnsd.log());
    // At the end it is taken back, at the next start made again, and `none` takes it back as well.
    assert!(server.stop() < Duration::from_secs(2));
    isnsd.await_node("iqn.2026-11.io.lunaring:second", false);
    server.start_again();
    isnsd.await_node("iqn.2026-11.io.lunaring:second", true);
    server.ok(&["isns", "set", "none"]);
    isnsd.await_node("iqn.2026-11.io.lunaring:second", false);
    assert_eq!(server.ok(&["isns", "show"]).trim(), "registering nowhere");
}

#[test]
fn a_thousand_targets_are_registered_in_several_messages() {
    let address = free_port("127.0.0.1".parse().expect("an address")).to_string();
    let isnsd = Isnsd::start(&address);
    let mut server = Server::start();
    server.stop();
    let config = server.state().join("config.json");
    let mut json: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&config).unwrap_or_else(|_| r#"{"version":1}"#.to_owned()))
            .expect("JSON");
    for number in 0..1000 {
        let iqn = format!("iqn.2026-11.io.lunaring:one-of-a-thousand-targets-{number:04}");
        json["targets"][format!("t{number}")] = serde_json::json!({ "iqn": iqn });
    }
    fs::write(&config, json.to_string()).expect("a file");
    server.start_again();
    server.ok(&["isns", "set", &address]);
    let began = Instant::now();
    while server.json(&["isns", "show"])["targets"] != 1000 {
        assert!(began.elapsed() < Duration::from_secs(30), "{}", server.ok(&["isns", "show"]));
        std::thread::sleep(Duration::from_millis(100));
    }
    let query = ["--query", "iscsi-name=iqn.2026-11.io.lunaring:one-of-a-thousand-targets-0999"];
    let (ok, said) = isnsd.admin(&query);
    assert!(ok && said.contains("0999"), "{said}");
    // A silent server never holds the end up.
    crate::server::signal_process(isnsd.child.id(), "STOP");
    let ended = server.stop();
    crate::server::signal_process(isnsd.child.id(), "CONT");
    assert!(ended < Duration::from_secs(2), "{ended:?}");
}
