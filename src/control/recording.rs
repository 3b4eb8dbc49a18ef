//! `lunaring trace record`: what a disk is asked for, into a file. The format is described in `perf/README.md`.

use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_io::Timer;
use futures_channel::oneshot;
use uuid::Uuid;

use super::api;
use super::controller::{Handle, LiveDisk};
use super::dataplane::{ask, shards};
use super::error::Refused;
use super::executor::{self, blocking};
use crate::limits::{TRACE_COMMANDS_MAX, TRACE_ROOM_COMMANDS, TRACE_SECONDS_MAX};
use crate::shard::ToShard;
use crate::shard::record::{Asked, Note, Notes};
use crate::units::DiskId;

/// Between two exchanges of the room for notes.
const EXCHANGE_EVERY: Duration = Duration::from_millis(50);

/// What was gathered from all shards.
#[derive(Default)]
struct Gathered {
    notes: Vec<Note>,
    missing: u64,
    /// The earliest time at which a shard began to take notes, in its nanoseconds.
    began: Option<u64>,
}

impl Gathered {
    fn add(&mut self, notes: &Notes) {
        self.began = Some(self.began.unwrap_or(u64::MAX).min(notes.since.0));
        let room = TRACE_COMMANDS_MAX.saturating_sub(self.notes.len()).min(notes.taken.len());
        self.notes.extend_from_slice(&notes.taken[..room]);
        self.missing += notes.missed + (notes.taken.len() - room) as u64;
    }
}

/// The disk that is recorded.
struct Recorded {
    name: String,
    id: DiskId,
    block_bytes: u32,
    blocks: u64,
}

impl Handle {
    /// Record what a disk is asked for from now on.
    ///
    /// # Errors
    /// There is no such disk online, somebody records it already, or the file exists or can not be written.
    pub async fn record(&self, name: &str, wanted: api::RecordTrace) -> Result<api::RecordedTrace, Refused> {
        if !(1..=TRACE_SECONDS_MAX).contains(&wanted.seconds) {
            return Err(Refused::invalid(format!("a trace takes 1 to {TRACE_SECONDS_MAX} seconds")));
        }
        if !wanted.to.is_absolute() {
            return Err(Refused::invalid(format!("'{}' is no absolute path", wanted.to.display())));
        }
        let view = self.view();
        let named = name.to_owned();
        let shown = self.look(move |view| view.api_disk_mapped(&named)).await?;
        let Some(LiveDisk::Online(disk)) = view.disks.get(name) else {
            return Err(Refused::conflict(format!("disk '{name}' is offline, so nobody asks it for anything")));
        };
        let (id, block_bytes) = (disk.id(), shown.sector_size_bytes);
        // On its own, so that it also ends well when nobody waits for it any more: shards take notes until told.
        let (mut done, recorded) = oneshot::channel();
        let (of_task, name) = (self.clone(), name.to_owned());
        executor::spawn(async move {
            let disk = Recorded { name, id, block_bytes, blocks: shown.size_bytes / u64::from(block_bytes.max(1)) };
            let outcome = of_task.record_to(&disk, &wanted, &mut done).await;
            // Whoever has gone does not want to know.
            let _ = done.send(outcome);
        });
        recorded.await.unwrap_or_else(|_| Err(Refused::failed("the server is ending")))
    }

    async fn record_to(
        &self,
        disk: &Recorded,
        wanted: &api::RecordTrace,
        done: &mut oneshot::Sender<Result<api::RecordedTrace, Refused>>,
    ) -> Result<api::RecordedTrace, Refused> {
        let at = |e: std::io::Error| Refused::failed(format!("{}: {e}", wanted.to.display()));
        // Beside the control thread, for a file system may hang.
        let to = wanted.to.clone();
        let mut file = blocking(move || File::create_new(to)).await.map_err(at)?;
        let began_us = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64);
        let time = Duration::from_secs(wanted.seconds.into());
        let gathered = self.gather(&disk.name, disk.id, time, || done.is_canceled()).await;
        if gathered.is_err() || done.is_canceled() {
            let to = wanted.to.clone();
            let _ = blocking(move || std::fs::remove_file(to)).await;
        }
        let gathered = gathered?;
        let (commands, missing) = (gathered.notes.len() as u64, gathered.missing);
        let (block_bytes, blocks) = (disk.block_bytes, disk.blocks);
        let written = blocking(move || {
            let bytes = encode(gathered, block_bytes, blocks, began_us);
            file.write_all(&bytes).map(|()| bytes.len() as u64)
        });
        let file_bytes = written.await.map_err(at)?;
        Ok(api::RecordedTrace { file: wanted.to.clone(), commands, missing, file_bytes })
    }

    /// Notes of all shards, for some time, or until it was `given_up`.
    async fn gather(
        &self,
        name: &str,
        disk: DiskId,
        time: Duration,
        given_up: impl Fn() -> bool,
    ) -> Result<Gathered, Refused> {
        let recorder = Uuid::new_v4().as_u128();
        let end = Instant::now() + time;
        let mut gathered = Gathered::default();
        loop {
            let is_last = Instant::now() >= end || given_up();
            let mut owed = vec![];
            for shard in shards(&*self.plane) {
                let room = (!is_last).then(|| Box::new(Notes::with_room(recorder, TRACE_ROOM_COMMANDS)));
                owed.push(ask(&*self.plane, shard, |reply| ToShard::Record { disk, recorder, room, reply }).await);
            }
            for answer in owed {
                let exchanged = answer.wait().await?;
                let former = exchanged.map_err(|e| Refused::conflict(format!("disk '{name}': {e}")))?;
                former.iter().for_each(|notes| gathered.add(notes));
            }
            if is_last {
                return Ok(gathered);
            }
            Timer::after(EXCHANGE_EVERY.min(end.saturating_duration_since(Instant::now()))).await;
        }
    }
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value > 0x7f {
        out.push(0x80 | (value & 0x7f) as u8);
        value >>= 7;
    }
    out.push(value as u8);
}

/// The file's bytes.
fn encode(mut gathered: Gathered, block_bytes: u32, disk_blocks: u64, began_us: u64) -> Vec<u8> {
    // Each shard's notes are in order; those of several are not.
    gathered.notes.sort_by_key(|note| note.at);
    let mut out = Vec::with_capacity(32 + 8 * gathered.notes.len());
    out.extend_from_slice(b"LUNTRACE");
    out.extend_from_slice(&[1, 0, 0, 0]);
    out.extend_from_slice(&block_bytes.to_le_bytes());
    out.extend_from_slice(&disk_blocks.to_le_bytes());
    out.extend_from_slice(&began_us.to_le_bytes());
    let began = gathered.began.unwrap_or(0);
    let (mut last_us, mut place, mut length) = (0, 0u64, 0u32);
    for note in &gathered.notes {
        let command = match note.asked {
            Asked::Read => 0,
            Asked::Write => 1,
            Asked::Flush => 2,
            Asked::Unmap => 3,
            Asked::Other => 15,
        };
        let distance = note.lba.wrapping_sub(place).cast_signed();
        let fua = if note.fua { 0x10 } else { 0 };
        let here = if distance == 0 { 0x20 } else { 0 };
        let as_long = if note.blocks == length { 0x40 } else { 0 };
        out.push(command | fua | here | as_long);
        let at_us = note.at.0.saturating_sub(began) / 1000;
        varint(&mut out, at_us - last_us);
        if here == 0 {
            varint(&mut out, (distance << 1 ^ distance >> 63).cast_unsigned());
        }
        if as_long == 0 {
            varint(&mut out, note.blocks.into());
        }
        (last_us, place, length) = (at_us, note.lba + u64::from(note.blocks), note.blocks);
    }
    if gathered.missing > 0 {
        out.extend_from_slice(&[14, 0, 0]);
        varint(&mut out, gathered.missing);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::Nanos;

    /// The generator's reader was written from the same description, by itself.
    #[test]
    fn another_reader_finds_what_was_noted() {
        let note =
            |at_us: u64, asked, lba, blocks, fua| Note { at: Nanos(7_000 + at_us * 1000), lba, blocks, asked, fua };
        let notes = vec![
            note(310, Asked::Write, 208, 8, true),
            note(10, Asked::Read, 200, 8, false),
            note(400, Asked::Other, 1 << 30, 1, false),
            note(500, Asked::Flush, 0, 0, false),
            note(500, Asked::Unmap, 16, 300_000, false),
            note(70_000, Asked::Read, 0, 8, false),
        ];
        let bytes = encode(Gathered { notes, missing: 3, began: Some(7_000) }, 512, 1 << 31, 99);
        let trace = perf::load::Trace::parse(&bytes).expect("a trace");
        let lines = "10 read 200 8\n310 write-fua 208 8\n500 flush 0 0\n500 unmap 16 300000\n70000 read 0 8\n";
        assert_eq!(trace.to_text(), format!("disk {} 512\n{lines}", 1u64 << 31));
        assert_eq!((trace.began_us, trace.missing), (99, 4)); // The other command, and the three.
    }
}
