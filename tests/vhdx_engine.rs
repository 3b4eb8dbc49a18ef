//! The engine as its shard sees it: groups, tickets, failures, flags and GUIDs.

mod vhdx_support;

use std::sync::Arc;

use lunaring::blocks::{
    Asked, BlockMap, Done, Engine as _, EngineError, Event, IoFailure, MetadataIoKind, Ticket, WritePlan,
};
use lunaring::vhdx::format::Guid;
use lunaring::vhdx::{Access, DiskKind, Engine, NewParent, ParentLocator, VhdxParent, create};
use vhdx_support::{Change, Host, MIB, RecordedFile, SparseFile, create_options, open_with};

fn host(blocks: u64, kind: DiskKind) -> Host {
    let mut start = SparseFile::default();
    create(&create_options(blocks * MIB, kind, MIB), &mut start).expect("creates");
    Host::open(RecordedFile::new(start), 7)
}

fn open_host(blocks: u64) -> Host {
    let mut host = host(blocks, DiskKind::Dynamic);
    host.engine.begin_write_session().expect("healthy");
    host.settle();
    assert_eq!(std::mem::take(&mut host.events), [Event::WriteSession(Ok(()))]);
    host
}

/// Ask for the space of one block.
fn allocate(host: &mut Host, block: u32, ticket: Ticket) -> Result<Asked, EngineError> {
    host.engine.prepare(u64::from(block) * MIB, MIB, ticket)
}

fn guids(file: &SparseFile, header: u64) -> (u64, Guid, Guid, Guid) {
    let mut bytes = [0; 64];
    file.read(header, &mut bytes);
    let guid = |at: usize| Guid(bytes[at..at + 16].try_into().expect("16 bytes"));
    (u64::from_le_bytes(bytes[8..16].try_into().expect("8 bytes")), guid(16), guid(32), guid(48))
}

/// Metadata written since `from`: log entries and everything else.
fn writes_since(host: &Host, from: usize) -> (usize, usize) {
    let offsets = host.file.history[from..].iter().filter_map(|change| match change {
        Change::Write { offset, .. } => Some(*offset),
        _ => None,
    });
    let (log, rest): (Vec<u64>, Vec<u64>) = offsets.partition(|offset| (MIB..2 * MIB).contains(offset));
    (log.len(), rest.len())
}

#[test]
fn the_engine_can_move_to_its_home_shard() {
    fn sent<T: Send + 'static>() {}
    fn shared<T: Send + Sync + 'static>() {}
    sent::<Engine>();
    shared::<Arc<BlockMap>>();
    assert!(size_of::<Result<Asked, EngineError>>() <= 2, "errors of the data path are small");
    assert!(size_of::<Event>() <= 24);
}

#[test]
fn many_allocations_share_one_entry() {
    let mut host = open_host(100);
    let before = host.file.history.len();
    for block in 0..40 {
        assert_eq!(allocate(&mut host, block, Ticket(u64::from(block))), Ok(Asked::Queued));
        assert_eq!(allocate(&mut host, block, Ticket(1000 + u64::from(block))), Ok(Asked::Queued));
        assert!(!host.map.entry(block).expect("resident").is_present(), "nothing shows before its entry is written");
    }
    host.settle();
    assert_eq!(writes_since(&host, before), (1, 0), "one log entry, and nothing else");
    let done = |ticket| Event::Done { ticket: Ticket(ticket), result: Ok(Done::Ok) };
    let expected: Vec<Event> = (0..40).flat_map(|block| [done(block), done(1000 + block)]).collect();
    assert_eq!(host.events, expected);
    assert_eq!((host.map.blocks_allocated(), allocate(&mut host, 3, Ticket(1))), (40, Ok(Asked::Already)));
    assert!(host.engine.is_idle() || !host.events.is_empty());
}

/// A block that is asked for while its entry is being written comes with that entry; another one waits for the next.
#[test]
fn requests_join_the_group_that_has_their_block() {
    let mut host = open_host(100);
    assert_eq!(allocate(&mut host, 1, Ticket(1)), Ok(Asked::Queued));
    let mut ids = Vec::new();
    // Everything in front of the log entry is carried out; the entry stays in flight.
    while let Some(io) = host.engine.poll_io() {
        let (id, is_entry) = (io.id, matches!(io.kind, MetadataIoKind::Write { .. }));
        if let MetadataIoKind::Extend { to_bytes, .. } = io.kind {
            host.file.apply(Change::SetLen { len: to_bytes });
        }
        if is_entry { ids.push(id) } else { host.engine.complete(id, Ok(())) }
    }
    assert_eq!(ids.len(), 1);
    assert_eq!(allocate(&mut host, 1, Ticket(2)), Ok(Asked::Queued));
    assert_eq!(allocate(&mut host, 2, Ticket(3)), Ok(Asked::Queued));
    assert!(host.engine.poll_io().is_none() && host.engine.poll_event().is_none());
    assert!(!host.map.metadata_unflushed());
    host.engine.complete(ids[0], Ok(()));
    assert!(host.map.metadata_unflushed(), "the entry has left the process and is not durable");
    let done = |ticket| Some(Event::Done { ticket: Ticket(ticket), result: Ok(Done::Ok) });
    assert_eq!(
        [host.engine.poll_event(), host.engine.poll_event(), host.engine.poll_event()],
        [done(1), done(2), None]
    );
    host.settle();
    assert_eq!(host.events, [done(3).expect("some")]);
}

/// A sync makes durable what was published when it started, not what came while it ran.
#[test]
fn a_flush_covers_what_was_published_before_it_started() {
    let mut host = open_host(10);
    host.write(0, &[1; 512]).expect("writes");
    assert!(host.map.metadata_unflushed());
    let early = host.map.flush_started();
    host.write(MIB, &[1; 512]).expect("writes");
    host.map.flush_done(early);
    assert!(host.map.metadata_unflushed());
    let late = host.engine.flush_started();
    host.engine.flush_done(late, Ok(()));
    assert!(!host.map.metadata_unflushed());
    host.map.flush_done(early);
    assert!(!host.map.metadata_unflushed(), "an old mark takes nothing back");
}

/// One page of the table names 512 blocks. A group that is spread over many pages carries as many as its entry holds,
/// and a replay brings all of them back.
#[test]
fn a_group_spans_several_pages_of_the_table() {
    let mut host = open_host(1 << 22);
    let blocks: Vec<u32> = (0..80).map(|at| (at * 7919 + 13) * 6).collect();
    let before = host.file.history.len();
    for block in &blocks {
        assert_eq!(allocate(&mut host, *block, Ticket(0)), Ok(Asked::Queued));
    }
    host.settle();
    assert_eq!(writes_since(&host, before), (2, 0), "an entry carries 63 pages; the others come with the next group");
    let entry = |change: &Change| matches!(change, Change::Write { bytes, .. } if bytes.len() == 64 * 4096);
    assert!(host.file.history[before..].iter().any(entry));
    assert_eq!(host.events.len(), 80);
    let again = Host::open(RecordedFile::new(host.file.now), 9);
    assert_eq!(again.map.blocks_allocated(), 80);
    for block in blocks {
        assert_eq!(again.map.entry(block), host.map.entry(block));
    }
}

#[test]
fn what_waits_is_bounded() {
    let mut host = open_host(3000);
    let mut queued = 0;
    let refusal = loop {
        match allocate(&mut host, queued as u32, Ticket(queued)) {
            Ok(_) => queued += 1,
            Err(refusal) => break refusal,
        }
    };
    assert_eq!((refusal, queued), (EngineError::Busy, 1024));
    let before = host.file.history.len();
    host.settle();
    assert_eq!(host.events.len(), 1024, "every accepted ticket comes back, once");
    assert_eq!(writes_since(&host, before), (4, 0), "256 changes share an entry");
    host.events.clear();
    assert_eq!(allocate(&mut host, 1500, Ticket(1)), Ok(Asked::Queued), "and there is room again");
}

#[test]
fn guids_change_once_a_session_and_not_without_one() {
    let mut start = SparseFile::default();
    create(&create_options(16 * MIB, DiskKind::Dynamic, MIB), &mut start).expect("creates");
    let (first, _) = Host::open(RecordedFile::new(start.clone()), 1).close();
    assert!(first.history.is_empty(), "a session that writes nothing changes nothing");
    let mut host = Host::open(RecordedFile::new(start.clone()), 1);
    host.write(0, &[1; 512]).expect("writes");
    let open = [guids(&host.file.now, 64 << 10), guids(&host.file.now, 128 << 10)];
    host.write(9 * MIB, &[1; 512]).expect("writes");
    let dirty = host.file.now.clone();
    let (file, _) = host.close();
    let closed = [guids(&file.now, 64 << 10), guids(&file.now, 128 << 10)];
    let before = guids(&start, 64 << 10);
    for header in open.iter().chain(&closed) {
        assert!(header.1 != before.1 && header.2 != before.2);
        assert_eq!((header.1, header.2), (open[0].1, open[0].2), "both slots, the whole session");
    }
    assert_eq!((open[0].3, open[0].3 == Guid::ZERO), (open[1].3, false));
    assert_eq!((closed[0].3, closed[1].3), (Guid::ZERO, Guid::ZERO));
    assert_eq!(closed[0].0.abs_diff(closed[1].0), 1, "one slot for each flush");

    // A replay changes FileWriteGuid; the session that follows does not change it again. The data did not change.
    let mut host = Host::open(RecordedFile::new(dirty), 2);
    let replayed = guids(&host.file.now, 64 << 10);
    assert!(replayed.1 != open[0].1 && replayed.2 == open[0].2 && replayed.3 == Guid::ZERO);
    host.write(0, &[2; 512]).expect("writes");
    let written = guids(&host.file.now, 64 << 10);
    assert!(written.1 == replayed.1 && written.2 != replayed.2);
}

/// The write that does not fit fails; everything else goes on, and later there is space again.
#[test]
fn no_space_fails_the_tickets_that_need_it_and_nothing_else() {
    let mut host = host(200, DiskKind::Dynamic);
    let objects_end = host.file.now.len;
    host.file.len_max = Some(objects_end + 5 * MIB + MIB / 2);
    for block in 0..4 {
        host.write(block * MIB, &[block as u8; 512]).expect("there is space for five");
    }
    for block in 10..14 {
        allocate(&mut host, block, Ticket(u64::from(block))).expect("healthy");
    }
    host.settle();
    let result = |ticket, result: Result<(), EngineError>| Event::Done {
        ticket: Ticket(ticket),
        result: result.map(|()| Done::Ok),
    };
    let none = Err(EngineError::OutOfSpace);
    host.events.retain(|event| matches!(event, Event::Done { .. }));
    host.events.sort_by_key(|event| if let Event::Done { ticket, .. } = event { ticket.0 } else { 0 });
    assert_eq!(host.events, [result(10, Ok(())), result(11, none), result(12, none), result(13, none)]);
    host.events.clear();
    host.write(2 * MIB, &[9; 4096]).expect("a block that has space is written");
    assert!(!host.map.poisoned() && matches!(host.write(50 * MIB, &[1; 512]), Err(Some(_))));
    host.file.len_max = None;
    host.write(50 * MIB, &[1; 512]).expect("there is space again");
    let (file, closed) = host.close();
    assert_eq!(closed, Event::Closed(Ok(())));
    assert_eq!(file.now.len, objects_end + 6 * MIB, "what was held ahead is given back");
    open_with(&mut file.now.clone(), Access::ReadOnly, 1).expect("sound");
}

/// Any failure of metadata I/O, at every operation of a life: nothing is acknowledged after it, and what was
/// acknowledged before it is there when the disk is opened again.
#[test]
fn a_failed_operation_poisons_the_disk_and_loses_nothing() {
    let mut lives = 0;
    for fail_after in 0.. {
        let mut host = host(200, DiskKind::Dynamic);
        host.file.fail_after = Some(fail_after);
        let mut acknowledged = Vec::new();
        let failed = (0..140).find_map(|block| {
            let written = host.write(block * MIB, &[block as u8 + 1; 512]);
            if written.is_ok() {
                acknowledged.push(block)
            }
            written.err()
        });
        if failed.is_some() {
            assert!(host.map.poisoned());
            assert!(host.write(0, &[1; 512]).is_err() && allocate(&mut host, 199, Ticket(1)).is_err());
            assert!(matches!(host.plan_write(0, 512), WritePlan::Poisoned));
        }
        let (mut file, closed) = host.close();
        assert!(closed == Event::Closed(Ok(())) || closed == Event::Closed(Err(EngineError::Poisoned)));
        assert!(failed.is_none() || closed != Event::Closed(Ok(())), "a poisoned disk does not close well");
        file.fail_after = None;
        let mut host = Host::open(RecordedFile::new(file.now), 3);
        for block in acknowledged {
            let mut bytes = [0; 512];
            host.read(block * MIB, &mut bytes);
            assert_eq!(bytes, [block as u8 + 1; 512], "block {block} after operation {fail_after} failed");
        }
        lives += 1;
        if failed.is_none() && closed == Event::Closed(Ok(())) {
            break;
        }
    }
    assert!(lives > 150, "{lives}");
}

/// A poisoned view (a payload write or sync that failed elsewhere) stops the engine, tickets and all.
#[test]
fn poison_from_another_shard_reaches_everyone_who_waits() {
    let mut host = open_host(10);
    allocate(&mut host, 1, Ticket(1)).expect("healthy");
    host.map.poison();
    host.settle();
    assert_eq!(host.events, [Event::Done { ticket: Ticket(1), result: Err(EngineError::Poisoned) }]);
    assert_eq!(host.engine.begin_write_session(), Err(EngineError::Poisoned));
    let mark = host.engine.flush_started();
    host.engine.flush_done(mark, Err(IoFailure::Failed));
    assert_eq!(host.close().1, Event::Closed(Err(EngineError::Poisoned)));
}

#[test]
fn a_fixed_disk_never_asks_for_space() {
    let mut host = host(8, DiskKind::Fixed);
    assert_eq!(host.map.blocks_allocated(), 8);
    assert!(matches!(host.plan_write(0, 512), WritePlan::Prepare));
    host.write(3 * MIB, &[3; 512]).expect("writes");
    let before = host.file.history.len();
    host.write(0, &vec![4; 8 * MIB as usize]).expect("writes");
    assert_eq!(host.file.history.len(), before + 1, "one extent, no metadata");
    let len = host.file.now.len;
    assert_eq!(host.close().0.now.len, len);
}

/// An atomic write of two blocks, broken off after every operation: as long as the process lives nobody reads some of
/// the new content and some of the old, and what lies beside it is read as ever.
#[test]
fn half_an_atomic_write_is_never_read() {
    const OLD: [u8; 4096] = [1; 4096];
    const NEW: [u8; 4096] = [2; 4096];
    let (from, pages) = (MIB - 8 * 4096, 16);
    let (mut lives, mut refused) = (0, 0);
    for fail_after in 0.. {
        let mut host = open_host(10);
        host.write(0, &OLD.repeat(2 * MIB as usize / 4096)).expect("writes");
        host.file.fail_after = Some(fail_after);
        let result = host.write_atomics(&[(from, NEW.repeat(pages))]);
        assert_eq!(result.is_err(), host.map.poisoned());
        let page = |at: u64| {
            let mut bytes = [0; 4096];
            host.try_read(at, &mut bytes).then_some(bytes)
        };
        let found: Vec<_> = (0..pages as u64).map(|number| page(from + number * 4096)).collect();
        let is = |what: Option<[u8; 4096]>| found.iter().all(|page| *page == what);
        assert!(is(Some(OLD)) || is(Some(NEW)) || is(None), "torn after operation {fail_after}: {result:?}");
        assert!(result.is_err() || is(Some(NEW)));
        assert_eq!([page(from - 4096), page(from + pages as u64 * 4096)], [Some(OLD); 2]);
        (lives, refused) = (lives + 1, refused + u32::from(is(None)));
        if result.is_ok() {
            break;
        }
    }
    assert!(lives > 10 && refused > 1, "{lives} lives, {refused} with an unreadable range");
}

/// A child with blocks of 256 MiB over nothing, some of whose bits are in the file and none in memory.
fn child_with_large_blocks() -> Host {
    let size = 8 * 256 * MIB;
    let mut options = create_options(size, DiskKind::Dynamic, 256 * MIB);
    let locator = ParentLocator::Vhdx(VhdxParent {
        linkage: Guid([7; 16]),
        linkage2: None,
        relative_path: Some("parent.vhdx".into()),
        volume_path: None,
        absolute_win32_path: None,
        others: Vec::new(),
    });
    options.parent = Some(NewParent { locator, size_bytes: size, logical_sector_bytes: 512, items: Vec::new() });
    let mut start = SparseFile::default();
    create(&options, &mut start).expect("creates");
    let parent = SparseFile { len: size, ..SparseFile::default() };
    let mut host = Host::open_over(RecordedFile::new(start), Some(parent.clone()), 7);
    host.write(0, &[1; 4096]).expect("writes");
    Host::open_over(RecordedFile::new(host.close().0.now), Some(parent), 8)
}

/// First writes of several blocks at once want more pages together than an entry carries, and all of them have to be
/// loaded: one after the other has its entry.
#[test]
fn writes_that_wait_for_many_pages_do_not_wait_for_each_other() {
    let mut host = child_with_large_blocks();
    let blocks = 1..6_u64;
    for block in blocks.clone() {
        host.engine.prepare(block * 256 * MIB, 4096, Ticket(block)).expect("healthy");
    }
    host.settle();
    host.events.clear();
    for block in blocks.clone() {
        let WritePlan::Ready { commit: true, epoch, .. } = host.plan_write(block * 256 * MIB, 4096) else {
            panic!("block {block} has space that nobody sees yet");
        };
        let asked = host.engine.commit(block * 256 * MIB, 4096, epoch, Ticket(block));
        assert_eq!(asked, Ok(Asked::Queued), "its bits are not in memory");
    }
    host.settle();
    let mut done: Vec<Event> = std::mem::take(&mut host.events);
    done.sort_by_key(|event| if let Event::Done { ticket, .. } = event { ticket.0 } else { 0 });
    let expected: Vec<Event> =
        blocks.map(|block| Event::Done { ticket: Ticket(block), result: Ok(Done::Ok) }).collect();
    assert_eq!(done, expected);
}
