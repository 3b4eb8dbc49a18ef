//! What every ring must do alike.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lunaring::mem::Arena;
use lunaring::ring::{AllocateMode, Errno, Fd, Nanos, Op, Ring, SendBatch, Tag, Wait, Wake, Window};

use crate::harness::{Exercise, Harness};

const KIB: usize = 1024;

/// Bytes that tell where they belong.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 251 + at) as u8).collect()
}

fn buffer(arena: &Arena, len: usize) -> Window {
    let mut buf = arena.take(len).expect("the arena has room");
    buf.fill(0xEE);
    Window::whole(buf)
}

fn write<H: Harness>(exercise: &mut Exercise<H>, file: Fd, offset_bytes: u64, bytes: &[u8], durable: bool) {
    let from = exercise.slice(bytes);
    let done = exercise.run(Op::Write { file, offset_bytes, from, durable });
    assert_eq!(done.result, Ok(bytes.len() as u32));
    let Some(Op::Write { from, .. }) = done.op else { panic!("{done:?}") };
    assert_eq!(&*from, bytes, "the slice comes back untouched");
}

/// Read `len` bytes at most; those that there are.
fn read<H: Harness>(exercise: &mut Exercise<H>, file: Fd, offset_bytes: u64, len: usize) -> Vec<u8> {
    let into = buffer(exercise.harness.arena(), len);
    let done = exercise.run(Op::Read { file, offset_bytes, into });
    let count = done.result.expect("a readable file") as usize;
    let Some(Op::Read { into, .. }) = done.op else { panic!("{done:?}") };
    assert!(into.bytes()[count..].iter().all(|byte| *byte == 0xEE), "bytes beyond the count were touched");
    into.bytes()[..count].to_vec()
}

fn batch<H: Harness>(exercise: &Exercise<H>, segments_max: usize) -> SendBatch {
    SendBatch::new(exercise.harness.arena(), segments_max).expect("the arena has room")
}

pub fn file_bytes_come_back_and_reads_end_at_the_end_of_the_file<H: Harness>(harness: H) {
    let mut exercise = Exercise::new(harness);
    let file = exercise.harness.new_file();
    let bytes = pattern(300 * KIB);
    write(&mut exercise, file, 0, &bytes[..256 * KIB], false);
    write(&mut exercise, file, 256 * KIB as u64, &bytes[256 * KIB..], true);
    assert_eq!(exercise.run(Op::Sync { file }).result, Ok(0));
    assert_eq!(read(&mut exercise, file, 0, 300 * KIB), bytes);
    assert_eq!(read(&mut exercise, file, 299 * KIB as u64, 4 * KIB), bytes[299 * KIB..], "a short read at the end");
    assert_eq!(read(&mut exercise, file, 300 * KIB as u64, 512), [0u8; 0], "nothing beyond");
    write(&mut exercise, file, 4 * KIB as u64, &[7; 512], false);
    let mut expected = bytes[4 * KIB..5 * KIB].to_vec();
    expected[..512].fill(7);
    assert_eq!(read(&mut exercise, file, 4 * KIB as u64, KIB), expected);

    let mut into = buffer(exercise.harness.arena(), 4 * KIB);
    (into.at, into.len) = (100, 50);
    let done = exercise.run(Op::Read { file, offset_bytes: 0, into });
    let Some(Op::Read { into, .. }) = done.op else { panic!("{done:?}") };
    assert_eq!((into.bytes(), into.buf[99], into.buf[150]), (&bytes[..50], 0xEE, 0xEE), "only the window is filled");
}

pub fn files_are_extended_zeroed_punched_and_truncated<H: Harness>(harness: H) {
    let mut exercise = Exercise::new(harness);
    let file = exercise.harness.new_file();
    let block = 64 * KIB;
    let allocate = |mode, blocks: u64, count: u64| {
        let (offset_bytes, len_bytes) = (blocks * block as u64, count * block as u64);
        Op::Allocate { file, mode, offset_bytes, len_bytes }
    };
    assert_eq!(exercise.run(allocate(AllocateMode::Extend, 0, 4)).result, Ok(0));
    assert_eq!(read(&mut exercise, file, 0, 5 * block), vec![0; 4 * block], "fresh space is zeros");
    write(&mut exercise, file, 0, &vec![1; 4 * block], false);
    assert_eq!(exercise.run(allocate(AllocateMode::Extend, 3, 2)).result, Ok(0));
    assert_eq!(exercise.run(allocate(AllocateMode::ZeroRange, 1, 1)).result, Ok(0));
    assert_eq!(exercise.run(allocate(AllocateMode::PunchHole, 2, 1)).result, Ok(0));
    let whole: Vec<u8> = [1, 0, 0, 1, 0].iter().flat_map(|byte| vec![*byte; block]).collect();
    assert_eq!(read(&mut exercise, file, 0, 10 * block), whole, "what was there stays, and the size is five blocks");
    assert_eq!(exercise.run(allocate(AllocateMode::PunchHole, 4, 10)).result, Ok(0));
    assert_eq!(exercise.run(allocate(AllocateMode::ZeroRange, 4, 10)).result, Ok(0));
    assert_eq!(read(&mut exercise, file, 0, 10 * block).len(), 5 * block, "neither grows the file");

    for (len_bytes, left) in [(block + 100, block), (3 * block, block)] {
        assert_eq!(exercise.run(Op::Truncate { file, len_bytes: len_bytes as u64 }).result, Ok(0));
        let mut expected = vec![1; left];
        expected.resize(len_bytes, 0);
        assert_eq!(read(&mut exercise, file, 0, 10 * block), expected);
    }
}

pub fn blocks_are_shared_or_left_as_they_are<H: Harness>(harness: H) {
    let mut exercise = Exercise::new(harness);
    let (from, into) = (exercise.harness.new_file(), exercise.harness.new_file());
    let (bytes, before) = (pattern(256 * KIB), vec![7; 128 * KIB]);
    write(&mut exercise, from, 0, &bytes, false);
    write(&mut exercise, into, 0, &before, false);
    let (from_bytes, offset_bytes, len_bytes) = (64 * KIB as u64, 32 * KIB as u64, 64 * KIB as u64);
    let done = exercise.run(Op::Share { from, from_bytes, file: into, offset_bytes, len_bytes });
    assert!(matches!(done.op, Some(Op::Share { .. })), "{done:?}");
    let mut expected = before.clone();
    match done.result {
        Ok(result) => {
            assert_eq!(result, 0);
            expected[32 * KIB..96 * KIB].copy_from_slice(&bytes[64 * KIB..128 * KIB]);
        }
        // This file system cannot.
        Err(Errno(errno)) => assert!([libc::EOPNOTSUPP, libc::ENOTTY].contains(&errno), "{done:?}"),
    }
    assert_eq!(read(&mut exercise, into, 0, 128 * KIB), expected);
    // Each goes its own way from here.
    write(&mut exercise, from, from_bytes, &[9; 4096], false);
    assert_eq!(exercise.run(Op::Sync { file: into }).result, Ok(0));
    assert_eq!(read(&mut exercise, into, 0, 128 * KIB), expected);
    for (offset_bytes, len_bytes) in [(100, 4096), (0, 1 << 20)] {
        let odd = Op::Share { from, from_bytes: 0, file: into, offset_bytes, len_bytes };
        let result = exercise.run(odd).result;
        let refused = [libc::EINVAL, libc::EOPNOTSUPP, libc::ENOTTY].map(|errno| Err(Errno(errno)));
        assert!(refused.contains(&result), "no whole blocks, or more than there is: {result:?}");
    }
    assert_eq!(read(&mut exercise, into, 0, 128 * KIB), expected);
}

pub fn a_bad_descriptor_is_an_error_and_gives_the_operation_back<H: Harness>(harness: H) {
    let mut exercise = Exercise::new(harness);
    let (file, socket) = (Fd(i32::MAX), Fd(i32::MAX));
    let into = buffer(exercise.harness.arena(), KIB);
    let from = exercise.slice(b"bytes");
    let mut unsendable = batch(&exercise, 1);
    unsendable.push_bytes(b"bytes").unwrap();
    for op in [
        Op::Read { file, offset_bytes: 0, into },
        Op::Write { file, offset_bytes: 0, from, durable: false },
        Op::Sync { file },
        Op::Truncate { file, len_bytes: 0 },
        Op::Share { from: file, from_bytes: 0, file, offset_bytes: 0, len_bytes: 4096 },
        Op::Send { socket, batch: unsendable, zero_copy: false },
        Op::Shutdown { socket },
        Op::Accept { listener: socket },
        Op::Close { fd: socket },
    ] {
        let kind = std::mem::discriminant(&op);
        let done = exercise.run(op);
        assert_eq!(done.result, Err(Errno(libc::EBADF)), "{done:?}");
        assert_eq!(done.op.as_ref().map(std::mem::discriminant), Some(kind));
    }
}

pub fn several_connections_are_accepted_and_talk<H: Harness>(harness: H) {
    let mut exercise = Exercise::new(harness);
    let listener = exercise.harness.listen();
    let mut accept = exercise.submit(Op::Accept { listener });
    let mut connections = Vec::new();
    for number in 0..5u8 {
        let peer = exercise.harness.connect(listener);
        let accepted = exercise.completion(accept);
        let socket = Fd(accepted.result.expect("a connection") as i32);
        if !accepted.more {
            accept = exercise.submit(Op::Accept { listener });
        }
        let (local, remote) = exercise.harness.ring().addresses(socket).expect("a connected socket has addresses");
        assert_ne!(local, remote);
        connections.push((number, socket, peer));
    }
    for (number, socket, peer) in connections.iter().copied() {
        exercise.peer_write_all(peer, &[number; 100]);
        let stream = buffer(exercise.harness.arena(), 4 * KIB);
        let done = exercise.run(Op::Recv { socket, bulk: None, stream });
        let Some(Op::Recv { stream, .. }) = done.op else { panic!("{done:?}") };
        let count = done.result.unwrap() as usize;
        assert!(count > 0 && stream.bytes()[..count].iter().all(|byte| *byte == number));
    }
    for (_, socket, _) in connections {
        assert_eq!(exercise.run(Op::Close { fd: socket }).result, Ok(0));
    }
}

pub fn a_gathered_send_arrives_in_order<H: Harness>(harness: H) {
    let mut exercise = Exercise::new(harness);
    let (socket, peer) = exercise.connection();
    for segments in [1, 7, 60] {
        let mut batch = batch(&exercise, 64);
        let mut expected = Vec::new();
        for number in 0..segments {
            let bytes = vec![number; 50 + usize::from(number)];
            if number % 2 == 0 {
                batch.push_bytes(&bytes).unwrap();
            } else {
                batch.push_slice(exercise.slice(&bytes)).unwrap();
            }
            expected.extend(bytes);
        }
        let done = exercise.run(Op::Send { socket, batch, zero_copy: false });
        assert_eq!(done.result, Ok(expected.len() as u32));
        let Some(Op::Send { mut batch, .. }) = done.op else { panic!("{done:?}") };
        batch.advance(expected.len());
        assert!(batch.is_empty());
        assert_eq!(exercise.peer_read_exactly(peer, expected.len()), expected);
    }
}

/// Send everything while the peer reads along; the operation is carried on after each short count.
fn send_all<H: Harness>(exercise: &mut Exercise<H>, pieces: usize, zero_copy: bool) -> usize {
    let (socket, peer) = exercise.connection();
    let expected = pattern(pieces * 1024 * KIB);
    let mut batch = batch(exercise, 64);
    for piece in expected.chunks(1024 * KIB) {
        batch.push_bytes(&piece[..48]).unwrap();
        batch.push_slice(exercise.slice(&piece[48..])).unwrap();
    }
    let mut received = Vec::new();
    let mut sends = 0;
    let mut next = Some(batch);
    while let Some(batch) = next.take() {
        let token = exercise.submit(Op::Send { socket, batch, zero_copy });
        sends += 1;
        if sends == 1 && pieces >= 8 {
            exercise.assert_pending(token);
        }
        // A ring may wait for the peer before it completes anything, so read along.
        let in_flight = exercise.harness.ring().in_flight();
        exercise.until("the end of the send", |exercise| {
            received.extend(exercise.harness.peer_read(peer).expect("the stream goes on"));
            (exercise.harness.ring().in_flight() < in_flight).then_some(())
        });
        let done = exercise.last(token);
        let count = done.result.expect("the peer is there") as usize;
        let Some(Op::Send { mut batch, .. }) = done.op else { panic!("{done:?}") };
        assert!(count > 0 && count <= batch.len_bytes());
        batch.advance(count);
        next = Some(batch).filter(|batch| !batch.is_empty());
    }
    let rest = expected.len() - received.len();
    received.extend(exercise.peer_read_exactly(peer, rest));
    assert!(received == expected, "the bytes arrive in order");
    sends
}

pub fn a_send_larger_than_the_socket_takes_is_carried_on<H: Harness>(harness: H) {
    let mut exercise = Exercise::new(harness);
    let sends = send_all(&mut exercise, 6, false);
    assert!(sends < 6 * 1024, "short counts are not tiny");
}

pub fn zero_copy_sends_give_their_buffers_back_last<H: Harness>(harness: H) {
    let mut exercise = Exercise::new(harness);
    let taken = exercise.harness.arena().stats().bytes_taken;
    send_all(&mut exercise, 2, true);
    assert_eq!(exercise.harness.arena().stats().bytes_taken, taken, "every buffer came back");
}

pub fn bulk_is_filled_before_the_stream<H: Harness>(harness: H) {
    let mut exercise = Exercise::new(harness);
    let (socket, peer) = exercise.connection();
    let sent = pattern(9000);
    exercise.peer_write_all(peer, &sent);
    let (mut bulk_left, mut placed, mut streamed) = (5000, Vec::new(), Vec::new());
    while placed.len() + streamed.len() < sent.len() {
        let arena = exercise.harness.arena();
        let stream = Window::part(arena.take(4 * KIB).unwrap(), 100, 3000);
        let bulk = (bulk_left > 0).then(|| Window::part(arena.take(8 * KIB).unwrap(), 8 * KIB - bulk_left, bulk_left));
        let done = exercise.run(Op::Recv { socket, bulk, stream });
        let count = done.result.expect("bytes") as usize;
        let Some(Op::Recv { bulk, stream, .. }) = done.op else { panic!("{done:?}") };
        assert!(count > 0);
        let into_bulk = count.min(bulk_left);
        assert!(count - into_bulk <= 3000);
        placed.extend_from_slice(bulk.as_ref().map_or(&[], |bulk| &bulk.bytes()[..into_bulk]));
        streamed.extend_from_slice(&stream.bytes()[..count - into_bulk]);
        bulk_left -= into_bulk;
    }
    assert_eq!((placed, streamed), (sent[..5000].to_vec(), sent[5000..].to_vec()));
}

pub fn the_end_of_the_stream_is_a_receive_of_nothing<H: Harness>(harness: H) {
    let mut exercise = Exercise::new(harness);
    let (socket, peer) = exercise.connection();
    exercise.peer_write_all(peer, b"last words");
    exercise.harness.peer_close(peer);
    let mut received = Vec::new();
    loop {
        let stream = buffer(exercise.harness.arena(), 4 * KIB);
        let done = exercise.run(Op::Recv { socket, bulk: None, stream });
        let Some(Op::Recv { stream, .. }) = done.op else { panic!("{done:?}") };
        match done.result.expect("an orderly end") {
            0 => break,
            count => received.extend_from_slice(&stream.bytes()[..count as usize]),
        }
    }
    assert_eq!(received, b"last words");
}

pub fn a_send_to_a_peer_that_is_gone_fails<H: Harness>(harness: H) {
    let mut exercise = Exercise::new(harness);
    let (socket, peer) = exercise.connection();
    exercise.harness.peer_close(peer);
    let error = exercise.until("refusal of a send", |exercise| {
        let mut batch = batch(exercise, 4);
        batch.push_slice(exercise.slice(&pattern(64 * KIB))).unwrap();
        batch.push_bytes(b"more").unwrap();
        let done = exercise.run(Op::Send { socket, batch, zero_copy: false });
        assert!(matches!(done.op, Some(Op::Send { .. })));
        done.result.err()
    });
    assert!([libc::EPIPE, libc::ECONNRESET].contains(&error.0), "{error:?}");
}

pub fn what_waits_can_be_cancelled<H: Harness>(harness: H) {
    let mut exercise = Exercise::new(harness);
    let (socket, peer) = exercise.connection();
    let listener = exercise.harness.listen();
    let stream = buffer(exercise.harness.arena(), KIB);
    let receive = exercise.submit(Op::Recv { socket, bulk: None, stream });
    let accept = exercise.submit(Op::Accept { listener });
    let timeout = exercise.submit(Op::Timeout { after: Nanos(3_600_000_000_000) });
    exercise.assert_pending(receive);
    for token in [receive, accept, timeout] {
        exercise.harness.ring().cancel(token);
        let done = exercise.completion(token);
        assert_eq!((done.result, done.more), (Err(Errno(libc::ECANCELED)), false), "{done:?}");
        exercise.harness.ring().cancel(token);
    }
    assert_eq!(exercise.harness.ring().in_flight(), 0);

    // Cancelled before it was even submitted; and the socket still works.
    let stream = buffer(exercise.harness.arena(), KIB);
    let receive = exercise.submit(Op::Recv { socket, bulk: None, stream });
    exercise.harness.ring().cancel(receive);
    assert_eq!(exercise.completion(receive).result, Err(Errno(libc::ECANCELED)));
    exercise.peer_write_all(peer, b"still here");
    let stream = buffer(exercise.harness.arena(), KIB);
    let done = exercise.run(Op::Recv { socket, bulk: None, stream });
    assert_eq!(done.result, Ok(10), "stale cancellations hit nobody");
}

pub fn timeouts_pass_in_order_and_waits_end_on_time<H: Harness>(harness: H) {
    let mut exercise = Exercise::new(harness);
    let start = exercise.now();
    let later = exercise.submit(Op::Timeout { after: Nanos(30_000_000) });
    let sooner = exercise.submit(Op::Timeout { after: Nanos(5_000_000) });
    assert_eq!(exercise.completion(sooner).result, Ok(0));
    assert!(exercise.now().0 >= start.0 + 5_000_000);
    assert_eq!(exercise.harness.ring().in_flight(), 1, "the later one has not passed");
    assert_eq!(exercise.completion(later).result, Ok(0));
    assert!(exercise.now().0 >= start.0 + 30_000_000);

    let until = Nanos(exercise.now().0 + 7_000_000);
    exercise.harness.ring().enter(Wait::Until(until)).unwrap();
    assert!(exercise.now() >= until, "a wait ends at its moment, not before");
    assert!(exercise.harness.ring().reap().is_none());
    exercise.harness.ring().enter(Wait::Until(start)).unwrap();
    exercise.harness.ring().enter(Wait::Poll).unwrap();
}

pub fn a_wake_from_another_thread_ends_the_wait<H: Harness>(harness: H) {
    let mut exercise = Exercise::new(harness);
    let ring = exercise.harness.ring();
    let waker = ring.waker();
    waker.wake();
    waker.wake();
    ring.enter(Wait::Forever).expect("woken before it waited");
    for round in 0..200 {
        let done = Arc::new(AtomicBool::new(false));
        let other = {
            let (done, waker) = (done.clone(), ring.waker());
            std::thread::spawn(move || {
                if round % 4 == 0 {
                    std::thread::sleep(Duration::from_micros(round * 10));
                }
                done.store(true, Ordering::Relaxed);
                waker.wake();
            })
        };
        while !done.load(Ordering::Relaxed) {
            ring.enter(Wait::Forever).expect("the ring can be entered");
        }
        other.join().unwrap();
        assert!(ring.reap().is_none(), "a wake is no completion");
    }
    drop(exercise);
    waker.wake();
}

pub fn shutting_down_completes_what_is_pending<H: Harness>(harness: H) {
    let mut exercise = Exercise::new(harness);
    let (socket, peer) = exercise.connection();
    let stream = buffer(exercise.harness.arena(), KIB);
    let receive = exercise.submit(Op::Recv { socket, bulk: None, stream });
    exercise.assert_pending(receive);
    assert_eq!(exercise.run(Op::Shutdown { socket }).result, Ok(0));
    assert_eq!(exercise.completion(receive).result, Ok(0));
    assert_eq!(exercise.run(Op::Close { fd: socket }).result, Ok(0));
    exercise.until("the end of the peer's stream", |exercise| match exercise.harness.peer_read(peer) {
        Some(bytes) => {
            assert!(bytes.is_empty());
            None
        }
        None => Some(()),
    });
}

pub fn a_full_ring_gives_the_operation_back<H: Harness>(harness: H) {
    let mut exercise = Exercise::new(harness);
    let slots = exercise.harness.ring().slots_free();
    assert!((16..=1024).contains(&slots));
    let after = Nanos(3_600_000_000_000);
    let tokens: Vec<_> = (0..slots).map(|_| exercise.submit(Op::Timeout { after })).collect();
    let ring = exercise.harness.ring();
    assert_eq!((ring.slots_free(), ring.in_flight()), (0, slots));
    let refused = ring.submit(Tag(0), Op::Sync { file: Fd(77) });
    assert!(matches!(refused, Err(Op::Sync { file: Fd(77) })));
    for token in &tokens {
        exercise.harness.ring().cancel(*token);
    }
    for token in tokens {
        assert_eq!(exercise.completion(token).result, Err(Errno(libc::ECANCELED)));
    }
    assert_eq!(exercise.harness.ring().slots_free(), slots);
}

pub fn a_ring_dropped_with_operations_in_flight_frees_their_buffers<H: Harness>(harness: H) {
    let mut exercise = Exercise::new(harness);
    let (socket, _peer) = exercise.connection();
    let file = exercise.harness.new_file();
    let listener = exercise.harness.listen();
    exercise.submit(Op::Accept { listener });
    exercise.harness.connect(listener);
    exercise.turn();
    let arena = exercise.harness.arena().clone();
    let taken = arena.stats().bytes_taken;
    let (stream, bulk) = (buffer(&arena, 64 * KIB), buffer(&arena, 256 * KIB));
    exercise.submit(Op::Recv { socket, bulk: Some(bulk), stream });
    exercise.submit(Op::Timeout { after: Nanos(3_600_000_000_000) });
    let mut stuck = batch(&exercise, 64);
    for _ in 0..8 {
        stuck.push_slice(exercise.slice(&vec![1; 1024 * KIB])).unwrap();
    }
    exercise.submit(Op::Send { socket, batch: stuck, zero_copy: false });
    exercise.turn();
    let from = exercise.slice(&pattern(128 * KIB));
    exercise.submit(Op::Write { file, offset_bytes: 0, from, durable: true });
    exercise.submit(Op::Sync { file });
    exercise.submit(Op::Shutdown { socket });
    assert!(arena.stats().bytes_taken > taken + 8 * 1024 * KIB);
    let Exercise { harness, .. } = exercise;
    drop(harness.drop_ring());
    assert_eq!(arena.stats().bytes_taken, taken, "a dropped ring gives every buffer back");
}
