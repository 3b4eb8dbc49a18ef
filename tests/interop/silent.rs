//! Peers that connect and say nothing, on the portal and on the control socket: they hold up nobody, and they go.

use std::io::Read;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use perf::login::Wire;

use crate::server::{Options, Server};

/// How long one login takes.
fn login_time(server: &Server, iqn: &str) -> Duration {
    let began = Instant::now();
    let mut wire = Wire::connect(server.portals[0], Duration::from_secs(5)).expect("connected");
    wire.login(&server.wishes(iqn)).unwrap_or_else(|e| panic!("{e}"));
    let took = began.elapsed();
    wire.logout().expect("logged out");
    took
}

/// Whether the peer has closed the connection.
fn is_closed(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_millis(1))).expect("a time-out");
    match stream.read(&mut [0; 1]) {
        Ok(0) => true,
        Ok(_) => panic!("the server speaks first"),
        Err(e) => !matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut),
    }
}

#[test]
fn silent_connections_delay_no_login_and_are_closed_after_fifteen_seconds() {
    let server = Server::start_with(Options { cores: Some("0"), ..Options::default() });
    let iqn = server.ready_target("heard", &["--size", "64M"]);
    login_time(&server, &iqn);
    let began = Instant::now();
    let connect = || TcpStream::connect(server.portals[0]).expect("connected");
    let mut silent: Vec<TcpStream> = (0..200).map(|_| connect()).collect();
    for _ in 0..10 {
        let took = login_time(&server, &iqn);
        assert!(took < Duration::from_millis(100), "a login beside 200 silent connections took {took:?}");
    }
    std::thread::sleep(Duration::from_secs(13).saturating_sub(began.elapsed()));
    assert!(silent.iter_mut().all(|stream| !is_closed(stream)), "closed before its time");
    while !silent.iter_mut().all(is_closed) {
        assert!(began.elapsed() < Duration::from_secs(18), "still open after 18 s");
        std::thread::sleep(Duration::from_millis(100));
    }
    login_time(&server, &iqn);
}

#[test]
fn the_oldest_silent_connection_makes_way_when_there_are_too_many() {
    let server = Server::start_with(Options { cores: Some("0"), ..Options::default() });
    let iqn = server.ready_target("crowded", &["--size", "64M"]);
    let connect = || TcpStream::connect(server.portals[0]).expect("connected");
    // The server keeps 512.
    let mut silent: Vec<TcpStream> = (0..700).map(|_| connect()).collect();
    let took = login_time(&server, &iqn);
    assert!(took < Duration::from_millis(100), "a login beside 700 silent connections took {took:?}");
    let closed: Vec<bool> = silent.iter_mut().map(is_closed).collect();
    assert!(closed[..188].iter().all(|closed| *closed), "the oldest did not make way");
    assert!(!closed[200..].contains(&true), "a newer one was turned away");
}

#[test]
fn silent_control_connections_do_not_block_the_control_socket() {
    let server = Server::start();
    let connect = || UnixStream::connect(server.socket()).expect("connected");
    let mut silent: Vec<UnixStream> = (0..64).map(|_| connect()).collect();
    let quick = |what: &str| {
        let began = Instant::now();
        server.ok(&["session", "list"]);
        let took = began.elapsed();
        assert!(took < Duration::from_secs(1), "a command beside {what} took {took:?}");
    };
    let began = Instant::now();
    quick("64 silent connections");
    silent.extend((0..400).map(|_| connect()));
    quick("464 silent connections");
    // Those that are left are closed when their time is over.
    for stream in &mut silent {
        stream.set_read_timeout(Some(Duration::from_secs(15))).expect("a time-out");
        let end = stream.read_to_end(&mut Vec::new());
        assert!(!matches!(&end, Err(e) if e.kind() == std::io::ErrorKind::WouldBlock), "still open after 15 s");
    }
    assert!(began.elapsed() < Duration::from_secs(15));
}
