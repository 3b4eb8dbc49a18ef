//! The log of a VHDX and what it makes of the file: [MS-VHDX] sections 2.3.1 to 2.3.3. The file itself is not changed.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Broken, Source, broken, rule, vector};

const SECTOR: u64 = 4096;

/// One change that an entry makes, by its offset in the file.
#[derive(Clone)]
enum Change {
    Data { offset: u64, bytes: Vec<u8> },
    Zero { offset: u64, len: u64 },
}

/// A valid entry (section 2.3.1).
struct Entry {
    /// Its place in the ring.
    position: u64,
    len: u64,
    tail: u64,
    sequence: u64,
    flushed_file_offset: u64,
    last_file_offset: u64,
    changes: Vec<Change>,
}

/// The place of the log, from the header.
pub struct Ring {
    pub offset: u64,
    pub len: u64,
    pub guid: [u8; 16],
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

impl Ring {
    /// Bytes of the ring, which wrap at its end.
    fn read(&self, file: &dyn Source, position: u64, len: u64) -> Vec<u8> {
        let first = len.min(self.len - position);
        let mut bytes = vector(file, self.offset + position, first);
        bytes.extend(vector(file, self.offset, len - first));
        bytes
    }

    /// The entry at a position, if there is a valid one.
    fn entry(&self, file: &dyn Source, position: u64) -> Option<Entry> {
        let head = self.read(file, position, SECTOR);
        let len = u64::from(u32_at(&head, 8));
        let fits = len >= SECTOR && len.is_multiple_of(SECTOR) && len <= self.len;
        if &head[..4] != b"loge" || !fits || head[32..48] != self.guid {
            return None;
        }
        let mut bytes = self.read(file, position, len);
        let checksum = u32_at(&bytes, 4);
        bytes[4..8].fill(0);
        let (tail, sequence) = (u64::from(u32_at(&bytes, 12)), u64_at(&bytes, 16));
        let sound = crc32c::crc32c(&bytes) == checksum && sequence > 0;
        if !sound || !tail.is_multiple_of(SECTOR) || tail >= self.len {
            return None;
        }
        Some(Entry {
            position,
            len,
            tail,
            sequence,
            flushed_file_offset: u64_at(&bytes, 48),
            last_file_offset: u64_at(&bytes, 56),
            changes: changes(&bytes, u64::from(u32_at(&bytes, 24)), sequence)?,
        })
    }

    /// The longest run of entries that begins at a position: each right behind the one before, with the next number.
    fn run(&self, file: &dyn Source, start: u64) -> Vec<Entry> {
        let (mut run, mut position, mut used) = (Vec::<Entry>::new(), start, 0);
        while let Some(entry) = self.entry(file, position) {
            let follows = run.last().is_none_or(|last| last.sequence.checked_add(1) == Some(entry.sequence));
            // It may not bite its own start.
            if !follows || used + entry.len > self.len {
                break;
            }
            used += entry.len;
            position = (position + entry.len) % self.len;
            run.push(entry);
        }
        run
    }

    /// The active sequence (section 2.3.3): the complete run with the greatest number at its head.
    fn active(&self, file: &dyn Source) -> Option<Vec<Entry>> {
        let (mut tail, mut best) = (0, None::<Vec<Entry>>);
        loop {
            let run = self.run(file, tail);
            let step = run.iter().map(|entry| entry.len).sum::<u64>();
            let complete = run.last().is_some_and(|head| run.iter().any(|entry| entry.position == head.tail));
            let next = if complete { tail + step } else { tail + SECTOR };
            let head = |run: &[Entry]| run.last().map_or(0, |head| head.sequence);
            if complete && best.as_deref().is_none_or(|best| head(best) < head(&run)) {
                best = Some(run);
            }
            tail = next;
            if tail >= self.len {
                return best;
            }
        }
    }

    /// The file as it is when the log has been replayed, and the number of entries that were.
    pub fn replay(&self, file: Arc<dyn Source>) -> Result<(Replayed, usize), Broken> {
        let Some(run) = self.active(&*file) else { broken!("the header names a log but it has no complete sequence") };
        let head = run.last().expect("a run is not empty");
        rule!(head.flushed_file_offset <= file.len_bytes(), "the file is shorter than its log says it was");
        let first = run.iter().position(|entry| entry.position == head.tail).expect("the run is complete");
        let len = file.len_bytes().max(head.last_file_offset);
        let mut replayed = Replayed { file, len, order: 0, pages: BTreeMap::new(), zeros: Vec::new() };
        for change in run[first..].iter().flat_map(|entry| &entry.changes) {
            replayed.apply(change);
        }
        Ok((replayed, run.len() - first))
    }
}

/// The changes that an entry's descriptors and data sectors describe, or none if any of them is not right.
fn changes(entry: &[u8], count: u64, sequence: u64) -> Option<Vec<Change>> {
    let descriptor_sectors = (64 + 32 * count).div_ceil(SECTOR);
    if descriptor_sectors * SECTOR > entry.len() as u64 {
        return None;
    }
    let (mut changes, mut data_sector) = (Vec::new(), descriptor_sectors * SECTOR);
    for index in 0..count as usize {
        let descriptor = &entry[64 + 32 * index..][..32];
        let offset = u64_at(descriptor, 16);
        if u64_at(descriptor, 24) != sequence || !offset.is_multiple_of(SECTOR) {
            return None;
        }
        match &descriptor[..4] {
            b"zero" => {
                let len = u64_at(descriptor, 8);
                if !len.is_multiple_of(SECTOR) || offset.checked_add(len).is_none() {
                    return None;
                }
                changes.push(Change::Zero { offset, len });
            }
            b"desc" => {
                let data = entry.get(data_sector as usize..(data_sector + SECTOR) as usize)?;
                let number = u64::from(u32_at(data, 4)) << 32 | u64::from(u32_at(data, 4092));
                if &data[..4] != b"data" || number != sequence {
                    return None;
                }
                // The first 8 bytes and the last 4 are kept in the descriptor.
                let bytes = [&descriptor[8..16], &data[8..4092], &descriptor[4..8]].concat();
                changes.push(Change::Data { offset, bytes });
                data_sector += SECTOR;
            }
            _ => return None,
        }
    }
    // The length is that of these sectors, no more.
    (data_sector == entry.len() as u64).then_some(changes)
}

/// A file with changes over it.
pub struct Replayed {
    file: Arc<dyn Source>,
    len: u64,
    order: u64,
    /// By page: when it was written, and what.
    pages: BTreeMap<u64, (u64, Vec<u8>)>,
    /// When, from, to.
    zeros: Vec<(u64, u64, u64)>,
}

impl Replayed {
    fn apply(&mut self, change: &Change) {
        self.order += 1;
        match change {
            Change::Data { offset, bytes } => {
                self.pages.insert(*offset, (self.order, bytes.clone()));
                self.len = self.len.max(offset + SECTOR);
            }
            Change::Zero { offset, len } => {
                self.zeros.push((self.order, *offset, offset + len));
                self.len = self.len.max(offset + len);
            }
        }
    }

    fn page(&self, offset: u64) -> Vec<u8> {
        let inside = |zero: &&(u64, u64, u64)| zero.1 <= offset && offset < zero.2;
        let zeroed = self.zeros.iter().filter(inside).map(|zero| zero.0).max();
        let page = self.pages.get(&offset);
        match (page, zeroed) {
            (Some((written, bytes)), zeroed) if zeroed.is_none_or(|zeroed| zeroed < *written) => bytes.clone(),
            (_, Some(_)) => vec![0; SECTOR as usize],
            _ => vector(&*self.file, offset, SECTOR),
        }
    }
}

impl Source for Replayed {
    fn len_bytes(&self) -> u64 {
        self.len
    }

    fn read(&self, offset_bytes: u64, into: &mut [u8]) {
        let mut done = 0;
        while done < into.len() {
            let at = offset_bytes + done as u64;
            let within = (at % SECTOR) as usize;
            let len = (SECTOR as usize - within).min(into.len() - done);
            into[done..done + len].copy_from_slice(&self.page(at - within as u64)[within..within + len]);
            done += len;
        }
    }
}
