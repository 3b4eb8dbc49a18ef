//! After start-up the ring, the arena and the send batches never go to the allocator.
#![allow(clippy::unwrap_used, unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd};

use lunaring::mem::{Arena, ArenaConfig};
use lunaring::ring::net::{self, ListenOptions};
use lunaring::ring::{
    Completion, Fd, FeatureLimit, Features, Nanos, Op, Ring, SendBatch, Tag, UringConfig, UringRing, Wait, Wake, Window,
};

/// The system's allocator, counting what this thread asks of it.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn complete(ring: &mut UringRing, tag: Tag) -> Completion {
    loop {
        ring.enter(Wait::Forever).unwrap();
        while let Some(completion) = ring.reap() {
            if completion.tag == tag && !completion.more {
                return completion;
            }
        }
    }
}

/// One turn of everything: receive, send, write, read, sync, time out, be woken, cancel.
fn turn(
    ring: &mut UringRing,
    arena: &Arena,
    file: Fd,
    socket: Fd,
    peer: &mut TcpStream,
    batch: SendBatch,
) -> SendBatch {
    let window = |len| Window::whole(arena.take(len).unwrap());
    peer.write_all(&[7; 1000]).unwrap();
    ring.submit(Tag(1), Op::Recv { socket, bulk: Some(window(500)), stream: window(4096) }).unwrap();
    let Some(Op::Recv { bulk: Some(bulk), .. }) = complete(ring, Tag(1)).op else { panic!("a receive") };
    let from = bulk.buf.freeze();
    let mut batch = batch;
    batch.push_bytes(&[1; 48]).unwrap();
    batch.push_slice(from.slice(0..400)).unwrap();
    ring.submit(Tag(2), Op::Write { file, offset_bytes: 0, from, durable: false }).unwrap();
    assert_eq!(complete(ring, Tag(2)).result, Ok(500));
    ring.submit(Tag(3), Op::Read { file, offset_bytes: 0, into: window(65_536) }).unwrap();
    let Some(Op::Read { into, .. }) = complete(ring, Tag(3)).op else { panic!("a read") };
    batch.push_slice(into.buf.freeze().slice(0..500)).unwrap();
    ring.submit(Tag(4), Op::Sync { file }).unwrap();
    ring.submit(Tag(5), Op::Send { socket, batch, zero_copy: false }).unwrap();
    let sent = complete(ring, Tag(5));
    let Some(Op::Send { mut batch, .. }) = sent.op else { panic!("a send") };
    batch.advance(sent.result.unwrap() as usize);
    peer.read_exact(&mut [0; 948]).unwrap();
    let token = ring.submit(Tag(6), Op::Timeout { after: Nanos(1 << 50) }).unwrap();
    ring.submit(Tag(7), Op::Timeout { after: Nanos(1000) }).unwrap();
    complete(ring, Tag(7));
    ring.cancel(token);
    complete(ring, Tag(6));
    ring.waker().wake();
    ring.enter(Wait::Forever).unwrap();
    ring.enter(Wait::Until(Nanos(ring.now().0 + 1000))).unwrap();
    batch
}

#[test]
fn nothing_is_allocated_after_start_up() {
    let arena = Arena::new(ArenaConfig { bytes_max: 16 << 20, hugepages: false }).unwrap();
    let file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let options = ListenOptions { reuse_port: false, backlog: 4, incoming_cpu: None };
    let listener = net::listen("127.0.0.1:0".parse().unwrap(), options).unwrap();
    for limit in [FeatureLimit::Full, FeatureLimit::Baseline] {
        let features = Features::probe(limit).unwrap();
        let mut ring = UringRing::new(UringConfig { slots: 64, submissions: 8, features }, &arena).unwrap();
        let mut peer = TcpStream::connect(net::local_address(listener.as_fd()).unwrap()).unwrap();
        ring.submit(Tag(0), Op::Accept { listener: Fd(listener.as_raw_fd()) }).unwrap();
        ring.enter(Wait::Forever).unwrap();
        let socket = Fd(ring.reap().unwrap().result.unwrap() as i32);
        let mut batch = SendBatch::new(&arena, 8).unwrap();
        let before = ALLOCATIONS.get();
        for _ in 0..50 {
            batch = turn(&mut ring, &arena, as_fd(&file), socket, &mut peer, batch);
        }
        assert_eq!(ALLOCATIONS.get(), before, "{limit:?}");
    }
}

fn as_fd(file: &File) -> Fd {
    Fd(file.as_raw_fd())
}
