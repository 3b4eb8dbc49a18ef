//! The whole control plane behind its socket: real sockets and files, shards that only remember.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use serde_json::{Value, json};

use super::fake::{FakePlane, free_portal};
use crate::control::error::Refused;
use crate::control::routes::ROUTES;
use crate::control::server::{Options, Plane, serve};

/// A running server.
struct Running {
    dir: tempfile::TempDir,
    plane: Arc<FakePlane>,
    end: UnixStream,
    thread: JoinHandle<Result<Vec<String>, Refused>>,
}

impl Running {
    fn start() -> Running {
        let dir = tempfile::tempdir().unwrap();
        let plane = FakePlane::new();
        let (ending, end) = UnixStream::pair().unwrap();
        let (up, is_up) = std::sync::mpsc::channel();
        let options = options(dir.path());
        let shards = Arc::<FakePlane>::clone(&plane);
        let thread = std::thread::spawn(move || {
            let start = || Ok(Plane { shards, io_uring: "none".into() });
            serve(options, start, async |_| Ok(()), |_| up.send(()).unwrap(), ending)
        });
        is_up.recv().unwrap();
        Running { dir, plane, end, thread }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("control.sock")
    }

    fn ask(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let (status, text) = self.ask_raw(method, path, &body.map_or(String::new(), |body| body.to_string()));
        (status, if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap_or(Value::String(text)) })
    }

    fn ask_raw(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: l\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        // The server may refuse and close before it has read everything.
        let _ = stream.write_all(body.as_bytes());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    fn end(self) -> Vec<String> {
        drop(self.end);
        self.thread.join().unwrap().unwrap()
    }
}

fn options(dir: &Path) -> Options {
    Options { state: dir.to_owned(), portals: Vec::new(), socket: None, control_cpu: None, cores: vec![0, 1] }
}

#[test]
fn every_verb_works_over_the_socket() {
    let server = Running::start();
    let portal = free_portal();
    let created =
        server.ask("POST", "/v1/disks", Some(json!({"name": "d", "format": "memory", "size_bytes": 1 << 20})));
    assert_eq!((created.0, &created.1["state"]), (201, &json!("online")), "{}", created.1);
    assert_eq!(server.ask("POST", "/v1/targets", Some(json!({"name": "t"}))).0, 201);
    let mapped = server.ask("POST", "/v1/targets/t/luns", Some(json!({"disk": "d"})));
    assert_eq!(mapped, (201, json!({"lun": 0, "disk": "d", "read_only": false})));
    let allowed = server.ask("POST", "/v1/targets/t/access", Some(json!({"rule": "any"})));
    assert_eq!((allowed.0, &allowed.1["allow"]), (200, &json!(["any"])));
    let secret = json!({"chap_user": "u", "chap_secret": "secret-of-length"});
    let auth = server.ask("PUT", "/v1/targets/t/auth", Some(secret));
    let shown = json!({"chap_user": "u", "mutual_user": null, "algorithms": ["sha3-256", "sha256", "sha1", "md5"]});
    assert_eq!((auth.0, &auth.1["auth"]), (200, &shown));
    assert_eq!(server.ask("POST", "/v1/portals", Some(json!({"address": portal}))).0, 201);
    assert_eq!(server.ask("GET", "/v1/disks/d", None).1["mapped"], json!([{"target": "t", "lun": 0}]));
    assert_eq!(server.ask("GET", "/v1/disks", None).1["disks"][0]["mapped"][0]["lun"], 0);
    assert_eq!(server.ask("GET", "/v1/targets", None).1["targets"][0]["luns"][0]["disk"], "d");
    assert_eq!(server.ask("GET", "/v1/portals", None).1["portals"][0]["listening"], true);
    assert_eq!(server.ask("GET", "/v1/version", None).1["shards"], 2);
    let stats = server.ask("GET", "/v1/stats?disk=d", None).1;
    assert_eq!(stats["disks"][0]["read"]["operations"], 0, "{stats}");
    server.plane.log_in(1, 4, "iqn.2026-11.io.lunaring:t");
    server.plane.log_in(0, 3, "iqn.2026-11.io.lunaring:t");
    let sessions = server.ask("GET", "/v1/sessions", None).1;
    assert_eq!((&sessions["sessions"][0]["id"], &sessions["sessions"][1]["commands"]), (&json!(3), &json!(40)));
    assert_eq!(server.ask("DELETE", "/v1/sessions/4", None).0, 204);
    assert_eq!(server.ask("DELETE", "/v1/sessions/4", None).0, 404);
    let metrics = server.ask_raw("GET", "/metrics", "").1;
    assert!(metrics.contains("lunaring_disk_online{disk=\"d\"} 1\n"), "{metrics}");
    assert_eq!(server.ask("DELETE", "/v1/targets/t/access?rule=any", None).0, 200);
    assert_eq!(server.ask("DELETE", "/v1/targets/t/auth", None).1["auth"], Value::Null);
    assert_eq!(server.ask("DELETE", "/v1/disks/d", None).0, 409);
    assert_eq!(server.ask("DELETE", "/v1/targets/t/luns/0", None).0, 204);
    assert_eq!(server.ask("DELETE", &format!("/v1/portals/{portal}"), None).0, 204);
    assert_eq!(server.ask("DELETE", "/v1/targets/t", None).0, 204);
    assert_eq!(server.ask("DELETE", "/v1/disks/d?keep_file=true", None).0, 200);
    let plane = Arc::clone(&server.plane);
    assert_eq!(server.end(), Vec::<String>::new());
    assert!(plane.told(0).stopped && plane.told(1).stopped);
}

#[test]
fn bad_requests_get_one_clear_line_and_their_status() {
    let server = Running::start();
    for (method, path, body, status, said) in [
        ("GET", "/v1/nothing", "", 404, "there is no /v1/nothing"),
        ("PATCH", "/v1/disks", "", 405, "PATCH is not possible"),
        ("POST", "/v1/disks", "{", 400, "EOF"),
        ("POST", "/v1/disks", "{}", 400, "missing field `name`"),
        ("POST", "/v1/disks", "{\"name\": \"d\", \"colour\": 1}", 400, "unknown field `colour`"),
        ("POST", "/v1/disks", "{\"name\": \"d\", \"format\": \"vmdk\"}", 400, "unknown variant `vmdk`"),
        ("GET", "/v1/disks/x", "", 404, "there is no disk 'x'"),
        ("DELETE", "/v1/disks/x?keep_file=perhaps", "", 400, "keep_file"),
        ("DELETE", "/v1/sessions/abc", "", 400, "abc"),
        ("DELETE", "/v1/targets/t/luns/70000", "", 400, "70000"),
        ("GET", "/v1/stats?disk=x", "", 404, "there is no disk 'x'"),
        ("DELETE", "/v1/portals/here", "", 400, "is not a portal"),
    ] {
        let (found, answer) = server.ask_raw(method, path, body);
        let answer: Value = serde_json::from_str(&answer).unwrap_or_else(|_| panic!("not JSON: {answer}"));
        let error = answer["error"].as_str().unwrap();
        assert_eq!(found, status, "{method} {path}: {error}");
        assert!(error.contains(said) && !error.contains('\n'), "{method} {path}: {error}");
    }
    let (status, answer) = server.ask_raw("POST", "/v1/disks", &format!("{{\"name\": \"{}\"}}", "x".repeat(100_000)));
    assert_eq!(status, 400, "{answer}");
    assert!(server.ask("GET", "/v1/disks", None).1["disks"].as_array().unwrap().is_empty());
    server.end();
}

#[test]
fn the_list_of_routes_is_what_the_router_has() {
    let server = Running::start();
    for (path, methods) in ROUTES {
        let path = path.replace("{lun}", "0").replace("{session}", "1").replace(['{', '}'], "");
        for method in ["get", "post", "put", "delete"] {
            // With a body that no route takes, nothing is changed.
            let (status, answer) = server.ask_raw(&method.to_uppercase(), &path, "[]");
            assert_eq!(status != 405, methods.contains(&method), "{method} {path}: {status} {answer}");
        }
    }
    server.end();
}

#[test]
fn many_clients_at_once_are_served_one_after_another() {
    let server = Running::start();
    std::thread::scope(|scope| {
        for client in 0..8 {
            let server = &server;
            scope.spawn(move || {
                for number in 0..5 {
                    let name = format!("t{client}-{number}");
                    assert_eq!(server.ask("POST", "/v1/targets", Some(json!({"name": name}))).0, 201);
                    let (status, _) = server.ask("POST", "/v1/targets", Some(json!({"name": "contended"})));
                    assert!(status == 201 || status == 409);
                }
            });
        }
    });
    let targets = server.ask("GET", "/v1/targets", None).1;
    assert_eq!(targets["targets"].as_array().unwrap().len(), 41);
    let saved = std::fs::read_to_string(server.dir.path().join("config.json")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&saved).unwrap()["targets"].as_object().unwrap().len(), 41);
    assert_eq!(server.plane.known_targets(1).len(), 41);
    server.end();
}

#[test]
fn a_second_server_on_the_same_state_or_socket_is_refused() {
    let server = Running::start();
    let start = || -> Result<Plane, Refused> { panic!("nothing is started") };
    let (ending, _end) = UnixStream::pair().unwrap();
    let refused = serve(options(server.dir.path()), start, async |_| Ok(()), |_| {}, ending).unwrap_err();
    assert!(refused.message.contains("another lunaring server uses the state folder"), "{refused}");
    let other = tempfile::tempdir().unwrap();
    let (ending, _end) = UnixStream::pair().unwrap();
    let shared = Options { socket: Some(server.socket()), ..options(other.path()) };
    let refused = serve(shared, start, async |_| Ok(()), |_| {}, ending).unwrap_err();
    assert!(refused.message.contains("another server listens on the control socket"), "{refused}");
    assert_eq!(server.ask("GET", "/v1/version", None).0, 200, "the first is undisturbed");
    server.end();
}
