//! CHAP with every algorithm in both directions, discovery with its own authentication, redirection, and portals that
//! are told by another address. Responses are computed by Python's hashlib.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use perf::login::{LoginError, Wire, discover, pairs};
use perf::pdu::{Header, IMMEDIATE, request, response};

use crate::server::{Options, Server, both_loopbacks, free_port, text, tool, tool_ok};

const SECRET: &str = "correct-horse-battery";
const MUTUAL: &str = "staple-of-the-target";
const NAME: &str = "iqn.2026-11.com.example:chap";

/// The hash functions by their numbers in IANA's registry "PPP Authentication Algorithms", and as Python calls them.
const ALGORITHMS: [(u8, &str, &str); 4] =
    [(5, "md5", "md5"), (6, "sha1", "sha1"), (7, "sha256", "sha256"), (8, "sha3-256", "sha3_256")];

/// A login that is taken step by step.
struct Steps {
    wire: Wire,
}

/// The answer to one step: flags, status and text.
struct Answer {
    flags: u8,
    status: u16,
    text: Vec<u8>,
}

impl Answer {
    fn key(&self, key: &str) -> String {
        let found = pairs(&self.text).find(|(name, _)| *name == key).map(|(_, value)| value.to_owned());
        found.unwrap_or_else(|| panic!("no {key} in {:?}", String::from_utf8_lossy(&self.text)))
    }
}

impl Steps {
    fn new(portal: SocketAddr) -> Steps {
        Steps { wire: Wire::connect(portal, Duration::from_secs(5)).expect("connected") }
    }

    /// Send one Login Request: stage and transition as in its second byte, keys with `|` for the zero bytes.
    fn step(&mut self, flags: u8, keys: &str) -> Answer {
        let mut header = Header::new(request::LOGIN | IMMEDIATE, flags)
            .with_word(16, 1)
            .with_word(24, self.wire.cmd_sn)
            .with_word(28, self.wire.exp_stat_sn);
        header.0[8..14].copy_from_slice(&[0x80, 0, 0, 7, 0, 0]);
        self.wire.send(header, keys.replace('|', "\0").as_bytes()).expect("sent");
        let answer = self.wire.receive().expect("an answer");
        assert_eq!(answer.header.opcode(), response::LOGIN);
        let status = u16::from_be_bytes([answer.header.0[36], answer.header.0[37]]);
        Answer { flags: answer.header.flags(), status, text: answer.data }
    }
}

/// The response to a challenge, in hexadecimal digits.
fn python(algorithm: &str, identifier: &str, secret: &str, challenge: &str) -> String {
    let program = "import hashlib,sys; a,i,s,c=sys.argv[1:]; \
                   print(hashlib.new(a, bytes([int(i)])+s.encode()+bytes.fromhex(c[2:])).hexdigest())";
    tool_ok("python3", &["-c", program, algorithm, identifier, secret, challenge]).trim().to_owned()
}

/// Ask for CHAP with this one algorithm; the target's challenge, or the status that refuses.
fn challenge(steps: &mut Steps, who: &str, offered: &str) -> Result<Answer, u16> {
    let method = steps.step(0x00, &format!("InitiatorName={NAME}|{who}AuthMethod=CHAP,None|"));
    assert_eq!((method.status, method.key("AuthMethod").as_str()), (0, "CHAP"));
    let answer = steps.step(0x00, &format!("CHAP_A={offered}|"));
    if answer.status == 0 { Ok(answer) } else { Err(answer.status) }
}

/// Log in by CHAP with one algorithm, in both directions when `mutual`; the status that refuses, if any does.
fn log_in(portal: SocketAddr, who: &str, number: u8, of_python: &str, mutual: bool) -> Result<Wire, u16> {
    let mut steps = Steps::new(portal);
    let asked = challenge(&mut steps, who, &number.to_string())?;
    assert_eq!(asked.key("CHAP_A"), number.to_string());
    let response = python(of_python, &asked.key("CHAP_I"), SECRET, &asked.key("CHAP_C"));
    let ours = "0x00112233445566778899aabbccddeeff0123456789";
    let question = if mutual { format!("CHAP_I=77|CHAP_C={ours}|") } else { String::new() };
    let proven = steps.step(0x81, &format!("CHAP_N=alice|CHAP_R=0x{response}|{question}"));
    if proven.status != 0 {
        return Err(proven.status);
    }
    assert_eq!(proven.flags & 0x83, 0x81, "on to the operational stage");
    if mutual {
        let expected = python(of_python, "77", MUTUAL, ours);
        assert_eq!(proven.key("CHAP_R").to_lowercase(), format!("0x{expected}"));
        assert_eq!(proven.key("CHAP_N"), "server");
    }
    let last = steps.step(0x87, "");
    assert_eq!((last.status, last.flags & 0x83), (0, 0x83));
    Ok(steps.wire)
}

fn secrets(server: &Server) -> [String; 2] {
    [("secret", SECRET), ("mutual", MUTUAL)].map(|(name, secret)| {
        let file = server.file(name);
        fs::write(&file, format!("{secret}\n")).expect("a file");
        text(&file).to_owned()
    })
}

#[test]
fn chap_works_with_every_algorithm_in_both_directions_and_a_policy_forbids_weak_ones() {
    let server = Server::start();
    let iqn = server.ready_target("locked", &["--size", "1M", "--format", "memory"]);
    let [secret, back] = secrets(&server);
    let chap = ["--chap-user", "alice", "--chap-secret-file", &secret, "--mutual-user", "server"];
    let demand = [&["target", "auth", "locked"], &chap[..], &["--mutual-secret-file", &back]].concat();
    server.ok(&demand);
    let who = format!("TargetName={iqn}|SessionType=Normal|");
    let admitted =
        || ALGORITHMS.map(|(number, _, python)| log_in(server.portals[0], &who, number, python, true).is_ok());
    assert_eq!(admitted(), [true; 4]);
    for (number, _, python) in ALGORITHMS {
        assert!(log_in(server.portals[0], &who, number, python, false).is_ok(), "one-way with {number}");
    }
    // The strongest of those that are offered is taken, whatever their order.
    let strongest = challenge(&mut Steps::new(server.portals[0]), &who, "5,6,8,7").expect("a challenge");
    assert_eq!(strongest.key("CHAP_A"), "8");
    // Our challenge sent back: refused, although the response to it is right.
    let mut steps = Steps::new(server.portals[0]);
    let asked = challenge(&mut steps, &who, "7").expect("a challenge");
    let response = python("sha256", &asked.key("CHAP_I"), SECRET, &asked.key("CHAP_C"));
    let reflected = format!("CHAP_N=alice|CHAP_R=0x{response}|CHAP_I=1|CHAP_C={}|", asked.key("CHAP_C"));
    assert_eq!(steps.step(0x81, &reflected).status, 0x0201, "reflection");
    // The response of another algorithm, and of another secret.
    let mut steps = Steps::new(server.portals[0]);
    let asked = challenge(&mut steps, &who, "7").expect("a challenge");
    let response = python("sha256", &asked.key("CHAP_I"), MUTUAL, &asked.key("CHAP_C"));
    assert_eq!(steps.step(0x81, &format!("CHAP_N=alice|CHAP_R=0x{response}|")).status, 0x0201);
    // Policies: of the target, of the server, of both.
    server.ok(&[&demand[..], &["--chap-algorithms", "sha256,sha3-256"]].concat());
    assert_eq!(admitted(), [false, false, true, true]);
    assert!(server.ok(&["target", "show", "locked"]).contains("sha3-256, sha256"));
    server.ok(&["chap", "algorithms", "sha256,sha1"]);
    assert_eq!(admitted(), [false, false, true, false]);
    let refused = server.refused(&["chap", "algorithms", "md5"]);
    assert!(refused.contains("no CHAP algorithm is left"), "{refused}");
    server.refused(&["chap", "algorithms", "md4"]);
    server.ok(&demand);
    assert_eq!(admitted(), [false, true, true, false]);
    server.ok(&["chap", "algorithms", "all"]);
    assert_eq!(admitted(), [true; 4]);
    // Nobody is shown a secret.
    let shown = server.ok(&["target", "show", "locked", "--json"]) + &server.ok(&["target", "list", "--json"]);
    for secret in [SECRET, MUTUAL] {
        assert!(!shown.contains(secret) && !server.log().contains(secret));
    }
}

#[test]
fn discovery_has_its_own_authentication() {
    let mut server = Server::start();
    let iqn = server.ready_target("open", &["--size", "1M", "--format", "memory"]);
    let [secret, back] = secrets(&server);
    let portal = server.portals[0];
    let listed = |portal| discover(portal, NAME).map(|targets| targets.len());
    assert_eq!(listed(portal).ok(), Some(1));
    server.ok(&["discovery", "auth", "--chap-user", "alice", "--chap-secret-file", &secret, "--mutual-user", "server"]
        .iter()
        .chain(&["--mutual-secret-file", &back])
        .copied()
        .collect::<Vec<_>>());
    server.stop();
    server.start_again();
    assert!(matches!(listed(portal), Err(LoginError::Refused { class: 2, detail: 1 })), "discovery without CHAP");
    for (number, _, python) in ALGORITHMS {
        let mut wire = log_in(portal, "SessionType=Discovery|", number, python, true).expect("a discovery session");
        let text = wire.text(b"SendTargets=All\0").expect("an answer");
        assert_eq!(pairs(&text).next(), Some(("TargetName", iqn.as_str())));
    }
    // libiscsi proves itself in discovery sessions as well.
    let (ok, said) = tool("iscsi-ls", &[&format!("iscsi://alice%{SECRET}@{portal}")]);
    assert!(ok && said.contains(&iqn), "{said}");
    let (ok, said) = tool("iscsi-ls", &[&format!("iscsi://alice%not-the-secret@{portal}")]);
    assert!(!ok || !said.contains(&iqn), "{said}");
    // The target itself demands nothing.
    tool_ok("iscsi-inq", &[&server.url(&iqn, 0)]);
    assert!(server.ok(&["discovery", "show"]).contains("chap alice, mutual server"));
    assert!(!server.ok(&["discovery", "show", "--json"]).contains(SECRET));
    server.ok(&["discovery", "auth", "--none"]);
    assert_eq!(listed(portal).ok(), Some(1));
}

#[test]
fn initiators_are_sent_elsewhere_and_follow() {
    let first = Server::start_with(Options { addresses: both_loopbacks(), ..Options::default() });
    let second = Server::start();
    let iqn = "iqn.2026-11.io.lunaring:moving";
    for server in [&first, &second] {
        server.ok(&["disk", "create", "d", "--size", "1M", "--format", "memory"]);
        server.target_with("moving", "d");
    }
    let sent = |portal: SocketAddr, expected: u16, to: &str| {
        let mut steps = Steps::new(portal);
        let answer = steps.step(0x81, &format!("InitiatorName={NAME}|TargetName={iqn}|AuthMethod=None|"));
        assert_eq!(answer.status, expected);
        if expected != 0 {
            assert_eq!(answer.key("TargetAddress"), to);
            assert_eq!(answer.flags & 0xc0, 0);
        }
    };
    let there = second.portals[0].to_string();
    first.ok(&["target", "redirect", "moving", &there]);
    sent(first.portals[0], 0x0101, &there);
    // libiscsi goes where it is sent (it follows 0101 only), and finds the target there.
    tool_ok("iscsi-inq", &[&first.url(iqn, 0)]);
    let logins: u64 = second.json(&["stats"])["shards"]
        .as_array()
        .expect("shards")
        .iter()
        .filter_map(|shard| shard["logins"].as_u64())
        .sum();
    assert!(logins > 0, "nobody came");
    first.ok(&["target", "redirect", "moving", &there, "--permanent"]);
    sent(first.portals[0], 0x0102, &there);
    assert!(first.ok(&["target", "show", "moving"]).contains("permanently"));
    // Only those that come in through one portal.
    first.ok(&["target", "redirect", "moving", "--none"]);
    let [four, six] = [first.portals[0], first.portals[1]];
    first.ok(&["target", "redirect", "moving", "array-2.example.com:3260", "--portal", &six.to_string()]);
    sent(four, 0, "");
    sent(six, 0x0101, "array-2.example.com:3260");
    first.ok(&["target", "redirect", "moving", "--none", "--portal", &six.to_string()]);
    sent(six, 0, "");
    for bad in ["nowhere", "0.0.0.0:3260", "host:0"] {
        first.refused(&["target", "redirect", "moving", bad]);
    }
    let own = free_port("127.0.0.1".parse().expect("an address")).to_string();
    first.ok(&["portal", "add", &own]);
    assert!(first.refused(&["target", "redirect", "moving", &own]).contains("in circles"));
}

#[test]
fn a_portal_is_told_by_another_address() {
    let mut server = Server::start();
    server.ready_target("nat", &["--size", "1M", "--format", "memory"]);
    let own = free_port("127.0.0.1".parse().expect("an address"));
    let told = |server: &Server| {
        let targets = discover(server.portals[0], NAME).unwrap_or_else(|e| panic!("{e}"));
        targets[0].1.join(" ")
    };
    server.ok(&["portal", "add", &own.to_string(), "--advertise", "203.0.113.5:860"]);
    let expected = format!("{},1 203.0.113.5:860,1", server.portals[0]);
    assert_eq!(told(&server), expected);
    assert!(server.ok(&["portal", "list"]).contains("advertised as 203.0.113.5:860"));
    server.stop();
    server.start_again();
    assert_eq!(told(&server), expected);
    // A redirect to the portal itself goes by the address that initiators can reach.
    let first = server.portals[0].to_string();
    server.ok(&["target", "redirect", "nat", &own.to_string(), "--portal", &first]);
    let mut steps = Steps::new(server.portals[0]);
    let iqn = "iqn.2026-11.io.lunaring:nat";
    let answer = steps.step(0x81, &format!("InitiatorName={NAME}|TargetName={iqn}|AuthMethod=None|"));
    assert_eq!((answer.status, answer.key("TargetAddress").as_str()), (0x0101, "203.0.113.5:860"));
    // It is changed and taken back where the portal is.
    server.ok(&["portal", "add", &own.to_string(), "--advertise", "[2001:db8::5]:3260"]);
    assert_eq!(told(&server), format!("{},1 [2001:db8::5]:3260,1", server.portals[0]));
    server.ok(&["portal", "add", &own.to_string(), "--advertise", &own.to_string()]);
    assert_eq!(told(&server), format!("{},1 {own},1", server.portals[0]));
    server.refused(&["portal", "add", &own.to_string(), "--advertise", "0.0.0.0:3260"]);
    server.refused(&["portal", "add", &own.to_string()]);
}
