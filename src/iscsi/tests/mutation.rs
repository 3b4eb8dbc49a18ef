//! A hostile initiator: correct PDUs, mutated and interleaved at random, against a shard that does everything a shard
//! may do. Nothing panics, the engine's state stays consistent, and what it sends can be parsed.

use super::*;
use crate::iscsi::pdu::{LogoutResponseCode, RejectReason, TaskManagementResponseCode};

const SESSIONS: u64 = 1000;
const PDUS_PER_SESSION: u64 = 200;

/// xorshift64*: deterministic, seeded.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 16) % bound
    }
    fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }
    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

/// What the shard remembers between turns.
#[derive(Default)]
struct Shard {
    commands: Vec<TaskId>,
    management: Vec<TaskId>,
    aborted: Vec<TaskId>,
    r2ts: Vec<Sent>,
    /// The last write, and how much immediate data it had.
    write: Option<(Bhs, u32)>,
    /// How often each kind of event came, so that the run is known to reach everything.
    heard: [u32; KINDS],
}

const KINDS: usize = 10;

/// A PDU that an initiator could send, of any kind, then perhaps with a few bytes changed.
fn pdu(random: &mut Random, session: &mut Session, shard: &mut Shard) -> (Bhs, Vec<u8>) {
    let lens = [0u64, 4, 512, 1000, 2048, 4096];
    let (mut bhs, data) = match random.below(14) {
        0..=2 => (session.read(random.pick(&lens) as u32), Vec::new()),
        3 | 4 => {
            let flag = random.pick(&[flags::WRITE, flags::WRITE | flags::FINAL]);
            let write = session.command(flag, random.pick(&lens) as u32 * 2);
            let immediate = pattern(random.pick(&[0, 4, 512, 2048]));
            shard.write = Some((write, immediate.len() as u32));
            (write, immediate)
        }
        5..=8 if !shard.r2ts.is_empty() => {
            let at = random.below(shard.r2ts.len() as u64) as usize;
            let r2t = shard.r2ts.swap_remove(at).bhs;
            let data = session.data_out(&r2t, r2t.target_transfer_tag(), 0, r2t.u32_at(40), true);
            (data, pattern(r2t.u32_at(44) as usize))
        }
        5..=9 => {
            let (write, offset) = shard.write.unwrap_or((Bhs::new(Opcode::SCSI_COMMAND, 0), 0));
            let rest = 2048u32.min(write.u32_at(20)).saturating_sub(offset);
            let len = random.pick(&[rest, rest, rest, 0, 512]);
            (session.data_out(&write, TAG_RESERVED, 0, offset, !random.one_in(4)), pattern(len as usize))
        }
        10 => {
            let function = random.below(10) as u8;
            let mut bhs = session.request(Opcode::TASK_MANAGEMENT_REQUEST, function, random.one_in(2));
            bhs.set_bytes(8, &LUN_1);
            bhs.set_u32(20, session.next_tag.wrapping_sub(1 + random.below(4) as u32));
            bhs.set_u32(32, session.cmd_sn.wrapping_sub(random.below(4) as u32));
            (bhs, Vec::new())
        }
        11 => (session.request(Opcode::NOP_OUT, 0, random.one_in(2)), pattern(random.pick(&[0, 0, 7, 1500]))),
        12 => (session.request(Opcode::TEXT_REQUEST, 0, random.one_in(2)), b"SendTargets=All\0".to_vec()),
        13 if random.one_in(4) => (session.request(Opcode::LOGOUT_REQUEST, random.below(4) as u8, true), Vec::new()),
        _ => (snack(random, session), Vec::new()),
    };
    if random.one_in(2) {
        bhs.set_u32(28, session.connection.stat_sn().wrapping_sub(random.below(3) as u32));
    }
    if random.one_in(3) {
        for _ in 0..=random.below(3) {
            // The length fields are left alone mostly, so that the stream stays in step for long.
            let at = random.pick(&[0, 1, 2, 8, 16, 19, 20, 23, 24, 27, 31, 35, 39, 40, 43, 47]);
            bhs.0[at] ^= 1 << random.below(8);
        }
    }
    if random.one_in(8) {
        // A gap in CmdSN, or a repetition.
        session.cmd_sn = session.cmd_sn.wrapping_add(random.pick(&[1, u32::MAX]));
    }
    (bhs, data)
}

/// A SNACK for something that is or was there, mostly.
fn snack(random: &mut Random, session: &mut Session) -> Bhs {
    let mut bhs = session.request(Opcode::SNACK_REQUEST, random.below(4) as u8, true);
    bhs.set_u32(16, session.next_tag.wrapping_sub(random.below(8) as u32));
    bhs.set_u32(40, random.below(3) as u32);
    if bhs.flags() & 0x0f == 1 {
        bhs.set_u32(16, TAG_RESERVED);
        bhs.set_u32(40, session.connection.stat_sn().wrapping_sub(random.below(4) as u32));
    }
    bhs.set_u32(44, random.below(3) as u32);
    bhs
}

/// Take a task out at random.
fn take(random: &mut Random, tasks: &mut Vec<TaskId>) -> Option<TaskId> {
    (!tasks.is_empty()).then(|| tasks.swap_remove(random.below(tasks.len() as u64) as usize))
}

impl Shard {
    fn hear(&mut self, random: &mut Random, session: &mut Session, got: &Got) -> Result<(), Refusal> {
        self.heard[kind(got.event)] += 1;
        let connection = &mut session.connection;
        match got.event {
            Event::Command { task } => {
                if random.one_in(8) {
                    connection.limit_data_out(task, random.below(3000) as u32);
                }
                self.commands.push(task);
            }
            Event::TaskDataError { task, .. } => {
                self.commands.retain(|other| *other != task);
                assert!(connection.send_response(task, Ending::good(0), &[1; 18], &mut session.sink));
            }
            Event::DataOut { task, buffer_offset, len, .. } => {
                assert_eq!(got.data.len(), len as usize);
                assert!(
                    buffer_offset.saturating_add(len)
                        <= connection.command(task).expected_write_length().max(buffer_offset)
                );
            }
            Event::TaskManagement { task } => {
                let management = connection.task_management(task);
                let affected: Vec<TaskId> = connection.affected_tasks(&management).collect();
                for victim in affected {
                    connection.abort(victim);
                    self.commands.retain(|other| *other != victim);
                    self.aborted.push(victim);
                }
                self.management.push(task);
            }
            Event::Text { task } if random.one_in(2) => connection.reject(task, RejectReason::PROTOCOL_ERROR)?,
            Event::Text { task } => {
                let sent = connection.send_text_response(task, true, false, TAG_RESERVED, 0, &mut session.sink);
                assert!(sent);
            }
            Event::NopOut { task } => {
                session.sink.payload = got.data.clone();
                session.sink.payload.resize(2048, 0);
                assert!(connection.send_nop_in(task, got.data.len(), &mut session.sink));
            }
            // Mostly the session goes on, so that the run is long.
            Event::Logout { task } => {
                let code = LogoutResponseCode::CLEANUP_FAILED;
                assert!(connection.send_logout_response(task, code, &mut session.sink));
            }
            Event::Handled | Event::Held { .. } | Event::DataOutDrained { .. } | Event::DataOutLost { .. } => {}
        }
        Ok(())
    }

    /// Work on something: ask for data, send data, finish, answer, release.
    fn work(&mut self, random: &mut Random, session: &mut Session) {
        session.sink.payload = vec![0xa5; 8192];
        let connection = &mut session.connection;
        let sink = &mut session.sink;
        if random.one_in(2)
            && let Some(task) = take(random, &mut self.aborted)
        {
            connection.release(task);
        }
        if let Some(task) = take(random, &mut self.management) {
            assert!(connection.send_task_management_response(task, TaskManagementResponseCode(0), sink));
        }
        if let Some(task) = connection.poll_resend() {
            while let Some(span) = connection.resend_span(task) {
                assert!(span.offset + span.len <= 3000 * 200);
                let left = if random.one_in(4) { 0 } else { span.len.min(8192) as usize };
                connection.resend_data_in(task, span.offset, left, sink);
                if left == 0 {
                    break;
                }
            }
            let done = connection.resend_span(task).is_none();
            _ = connection.end_resend(task, done);
        }
        let Some(task) = take(random, &mut self.commands) else { return };
        if let Some(span) = connection.want_r2t(task) {
            assert!(connection.send_r2t(task, 1 + random.below(span.len.into()) as u32, sink));
            self.commands.push(task);
            return;
        }
        match random.below(4) {
            0 if connection.command(task).read => {
                connection.send_data_in(task, random.below(3000) as usize, None, sink);
                self.commands.push(task);
            }
            1 if !connection.data_out_complete(task) => {
                connection.discard_data_out(task);
                assert!(connection.send_response(task, Ending::good(0), &[], sink));
            }
            2 => {
                sink.pdus_left.set(Some(random.below(3) as usize));
                if !connection.send_data_in(task, 2000, Some(Ending::good(2000)), sink).done {
                    self.commands.push(task);
                }
                sink.pdus_left.set(None);
            }
            _ => assert!(connection.send_response(task, Ending::good(512), &[], sink)),
        }
    }
}

fn kind(event: Event) -> usize {
    match event {
        Event::Handled => 0,
        Event::Command { .. } => 1,
        Event::Held { .. } => 2,
        Event::DataOut { .. } => 3,
        Event::TaskDataError { .. } => 4,
        Event::DataOutDrained { .. } => 5,
        Event::TaskManagement { .. } => 6,
        Event::Text { .. } | Event::NopOut { .. } => 7,
        Event::Logout { .. } => 8,
        Event::DataOutLost { .. } => 9,
    }
}

/// One session's life; gives how many PDUs it took, and how often each kind of event came.
fn live(seed: u64) -> (u64, [u32; KINDS]) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let parameters = SessionParameters {
        header_digest: random.one_in(4),
        data_digest: random.one_in(4),
        initial_r2t: random.one_in(2),
        error_recovery_level: random.below(2) as u8,
        immediate_data: !random.one_in(4),
        session_type: if random.one_in(16) { SessionType::Discovery } else { SessionType::Normal },
        exp_cmd_sn: random.next() as u32,
        ..parameters()
    };
    let mut session = Session::new(parameters);
    let mut shard = Shard::default();
    for count in 0..PDUS_PER_SESSION {
        let (bhs, data) = pdu(&mut random, &mut session, &mut shard);
        let mut bytes = session.wire(bhs, &[], &data);
        if random.one_in(20) {
            let at = random.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << random.below(8);
        }
        let heard = session.arrive_at(&mut shard, &mut random, &bytes);
        if heard.is_err() {
            return (count, shard.heard);
        }
        for _ in 0..=random.below(2) {
            shard.work(&mut random, &mut session);
        }
        let sent = session.sent();
        shard.r2ts.extend(sent.into_iter().filter(|sent| sent.opcode() == Opcode::R2T));
        let excess = shard.r2ts.len().saturating_sub(8);
        shard.r2ts.drain(..excess);
        if random.one_in(4) {
            session.cmd_sn = session.connection.exp_cmd_sn_for_test();
        }
    }
    (PDUS_PER_SESSION, shard.heard)
}

impl Session {
    /// Like `arrive`, with a shard that acts on each event before the next. A length field may have been mutated, and
    /// then whatever is missing never comes.
    fn arrive_at(&mut self, shard: &mut Shard, random: &mut Random, bytes: &[u8]) -> Result<(), Refusal> {
        let mut stream = bytes.to_vec();
        loop {
            let got = match self.connection.receive(&stream, NOW_MS)? {
                Receive::NeedBytes(_) => return Ok(()),
                Receive::Bulk { trailer_len, .. } => {
                    stream.clear();
                    let event = self.connection.bulk_done(Some(1), &vec![0; trailer_len])?;
                    let len = if let Event::DataOut { len, .. } = event { len as usize } else { 0 };
                    Got { event, data: vec![0; len] }
                }
                Receive::Pdu { len, event, data } => {
                    let data = stream[data].to_vec();
                    stream.drain(..len);
                    Got { event, data }
                }
            };
            self.connection.check_invariants();
            shard.hear(random, self, &got)?;
            while let Some(event) = self.connection.poll_ready() {
                self.connection.check_invariants();
                shard.hear(random, self, &Got { event, data: Vec::new() })?;
            }
        }
    }
}

#[test]
fn mutated_pdus_never_break_the_engine() {
    let mut received = 0;
    let mut heard = [0; KINDS];
    for seed in 1..=SESSIONS {
        let (pdus, events) = live(seed);
        received += pdus;
        heard.iter_mut().zip(events).for_each(|(sum, count)| *sum += count);
    }
    assert!(heard.iter().all(|count| *count > 30), "every kind of event must come often: {heard:?}");
    assert!(received > 100_000, "sessions must live long enough to be worth something: {received}");
}

/// A whole window arrives in any order; some of it is aborted while held, some is lost and aborted by its CmdSN.
/// Everything else comes out once, in order, and the window is whole again afterwards.
#[test]
fn a_full_window_in_any_order_comes_out_in_order() {
    const WINDOW: usize = crate::limits::COMMANDS_PER_SESSION_MAX as usize;
    for seed in 1..=50 {
        let mut random = Random(seed);
        let mut session = Session::new(parameters());
        let mut order: Vec<Bhs> = (0..WINDOW).map(|_| session.read(512)).collect();
        (1..WINDOW).for_each(|at| order.swap(at, random.below(at as u64 + 1) as usize));
        let mut delivered = Vec::new();
        let mut aborted = Vec::new();
        for bhs in order {
            let lost = random.one_in(10);
            let mut got = if lost { Vec::new() } else { session.send(bhs, &[]) };
            if lost || random.one_in(10) {
                let mut abort = session.request(Opcode::TASK_MANAGEMENT_REQUEST, 1, true);
                abort.set_bytes(8, &LUN_1);
                abort.set_u32(20, bhs.initiator_task_tag());
                abort.set_u32(32, bhs.cmd_sn());
                got.extend(session.send(abort, &[]));
            }
            for got in got {
                match got.event {
                    Event::Command { task } => delivered.push(task),
                    Event::TaskManagement { task } => {
                        let victim = session.connection.task_management(task).referenced.expect("it is here");
                        session.connection.abort(victim);
                        delivered.retain(|other| *other != victim);
                        aborted.push(victim);
                        let code = TaskManagementResponseCode::FUNCTION_COMPLETE;
                        assert!(session.connection.send_task_management_response(task, code, &mut session.sink));
                    }
                    event => assert!(matches!(event, Event::Held { .. })),
                }
            }
            if random.one_in(2)
                && let Some(task) = take(&mut random, &mut aborted)
            {
                session.connection.release(task);
            }
            session.sent();
        }
        let numbers: Vec<u32> = delivered.iter().map(|task| session.connection.command(*task).cmd_sn).collect();
        assert!(numbers.is_sorted() && numbers.len() > WINDOW / 2);
        aborted.into_iter().for_each(|task| session.connection.release(task));
        let last = delivered.into_iter().map(|task| session.good(task, 512)).last().expect("some");
        assert_eq!((last.exp_cmd_sn(), last.max_cmd_sn()), (228, 228 + WINDOW as u32 - 1));
    }
}
