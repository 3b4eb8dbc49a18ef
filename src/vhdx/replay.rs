//! Replaying the log (section 2.3.3): finding the active sequence, and its effect as an overlay over the file.
//!
//! The overlay comes first and is validated like a file; only then is it written. A file that cannot be opened is
//! therefore left as it was, and a read-only open needs no write at all.

use std::collections::BTreeMap;
use std::ops::Range;

use super::error::OpenError;
use super::format::{DATA_DESCRIPTOR_MAGIC, LOG_ENTRY_HEADER_LEN, PAGE, REGION_TABLE_OFFSETS};
use super::header::FILE_LEN_MAX;
use super::log::{Entry, Ring, descriptors_in, page_of};
use super::open::ReplaySummary;
use super::storage::{Storage, StorageError};

const PAGE_LEN: u64 = PAGE as u64;

/// Pages that a replay may hold in memory: 1 GiB, the largest log that Microsoft's engine accepts.
const PAGES_MAX: usize = 1 << 18;

/// The active sequence, oldest first: from the entry at the head's Tail to the head.
pub(super) fn active_sequence(ring: &mut Ring<'_>) -> Result<Vec<Entry>, OpenError> {
    let mut best: Option<Vec<Entry>> = None;
    let mut tail = 0;
    // Each round moves the tail forward, so one pass over the ring sees every start of a run: no round begins twice.
    while tail < ring.len_bytes {
        let run = run_from(ring, tail)?;
        let Some(head) = run.last().copied() else {
            tail += PAGE_LEN;
            continue;
        };
        tail = head.at + head.len_bytes + if head.at < tail { ring.len_bytes } else { 0 };
        let Some(first) = run.iter().position(|entry| entry.at == head.tail) else {
            // Incomplete. A shorter run inside it can be complete only from a later start, which has a smaller number
            // of entries but the same head: incomplete too.
            continue;
        };
        if best.as_ref().and_then(|best| best.last()).is_none_or(|best| head.sequence_number > best.sequence_number) {
            best = Some(run[first..].to_vec());
        }
    }
    best.ok_or(OpenError::LogWithoutSequence { offset_bytes: ring.offset_bytes, log_guid: ring.log_guid })
}

/// The longest run of entries, each right behind the one before it and with the next number, from ring offset `start`.
fn run_from(ring: &mut Ring<'_>, start: u64) -> Result<Vec<Entry>, OpenError> {
    let mut run: Vec<Entry> = Vec::new();
    let (mut at, mut used) = (start, 0);
    while let Some(entry) = ring.entry(at)? {
        let follows = run.last().is_none_or(|last| last.sequence_number.checked_add(1) == Some(entry.sequence_number));
        used += entry.len_bytes;
        if !follows || used > ring.len_bytes {
            break;
        }
        at = (at + entry.len_bytes) % ring.len_bytes;
        run.push(entry);
        if used == ring.len_bytes {
            break;
        }
    }
    Ok(run)
}

/// A file as it will be once its log has been replayed.
pub(super) struct Overlay<'a> {
    base: &'a mut dyn Storage,
    base_len: u64,
    len: u64,
    pages: BTreeMap<u64, Box<[u8; PAGE]>>,
    /// Disjoint ranges of zeros, start to end. A page wins over them.
    zeros: BTreeMap<u64, u64>,
    pub summary: Option<ReplaySummary>,
}

impl<'a> Overlay<'a> {
    /// The file itself, nothing replayed.
    pub fn clean(base: &'a mut dyn Storage) -> Result<Self, OpenError> {
        let len = base.len_bytes()?;
        Ok(Self { base, base_len: len, len, pages: BTreeMap::new(), zeros: BTreeMap::new(), summary: None })
    }

    /// The file with the active sequence of its log applied.
    pub fn replayed(
        base: &'a mut dyn Storage,
        log: Range<u64>,
        log_guid: super::format::Guid,
    ) -> Result<Self, OpenError> {
        let mut overlay = Self::clean(base)?;
        let mut ring = Ring::new(&mut *overlay.base, log.start, log.end - log.start, log_guid);
        let sequence = active_sequence(&mut ring)?;
        let head = sequence.last().expect("a sequence has a head");
        if head.flushed_file_offset > overlay.len {
            return Err(OpenError::Truncated { len_bytes: overlay.len, flushed_bytes: head.flushed_file_offset });
        }
        let mut summary = ReplaySummary { entries: 0, descriptors: 0 };
        for entry in &sequence {
            overlay.apply(entry, &log, log_guid)?;
            if entry.last_file_offset > FILE_LEN_MAX {
                return Err(OpenError::TooLong { len_bytes: entry.last_file_offset });
            }
            overlay.len = overlay.len.max(entry.last_file_offset);
            summary.entries += 1;
            summary.descriptors += entry.descriptor_count;
        }
        overlay.summary = Some(summary);
        Ok(overlay)
    }

    fn apply(&mut self, entry: &Entry, log: &Range<u64>, log_guid: super::format::Guid) -> Result<(), OpenError> {
        let mut left = entry.descriptor_count;
        let mut data_at = entry.at + entry.descriptor_sectors() * PAGE_LEN;
        for index in 0..entry.descriptor_sectors() {
            // A fresh ring each time: its reading bound was for the scan.
            let mut ring = Ring::new(&mut *self.base, log.start, log.end - log.start, log_guid);
            let sector = ring.sector(entry.at + index * PAGE_LEN)?;
            let skip = if index == 0 { LOG_ENTRY_HEADER_LEN } else { 0 };
            for descriptor in descriptors_in(&sector[skip..], &mut left) {
                let offset_bytes = descriptor.file_offset.get();
                let is_data = descriptor.signature == DATA_DESCRIPTOR_MAGIC;
                let len_bytes = if is_data { PAGE_LEN } else { u64::from_le_bytes(descriptor.leading_bytes) };
                check_target(entry.sequence_number, offset_bytes, len_bytes, log)?;
                if is_data {
                    let mut ring = Ring::new(&mut *self.base, log.start, log.end - log.start, log_guid);
                    let page = page_of(descriptor, &ring.sector(data_at)?);
                    data_at += PAGE_LEN;
                    self.put_page(offset_bytes, page, log.start)?;
                } else {
                    self.put_zeros(offset_bytes..offset_bytes + len_bytes);
                }
            }
        }
        Ok(())
    }

    fn put_page(&mut self, offset_bytes: u64, page: [u8; PAGE], log_offset_bytes: u64) -> Result<(), OpenError> {
        self.pages.insert(offset_bytes, Box::new(page));
        if self.pages.len() > PAGES_MAX {
            return Err(OpenError::LogUnreasonable { offset_bytes: log_offset_bytes });
        }
        self.len = self.len.max(offset_bytes + PAGE_LEN);
        Ok(())
    }

    fn put_zeros(&mut self, mut range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let covered: Vec<u64> = self.pages.range(range.clone()).map(|(at, _)| *at).collect();
        for at in covered {
            self.pages.remove(&at);
        }
        // Join with every range that touches this one; those before it first.
        while let Some((start, end)) = self.zeros.range(..=range.end).next_back().map(|(start, end)| (*start, *end)) {
            if end < range.start {
                break;
            }
            range = range.start.min(start)..range.end.max(end);
            self.zeros.remove(&start);
        }
        self.zeros.insert(range.start, range.end);
    }

    /// Whether the replay changes a byte of `range`.
    pub fn touches(&self, range: Range<u64>) -> bool {
        let page = self.pages.range(range.start.saturating_sub(PAGE_LEN - 1)..range.end).next().is_some();
        page || self.zeros.range(..range.end).next_back().is_some_and(|(_, end)| *end > range.start)
    }

    /// Every range that the replay changes.
    pub fn changed_ranges(&self) -> impl Iterator<Item = Range<u64>> {
        let pages = self.pages.keys().map(|at| *at..at + PAGE_LEN);
        pages.chain(self.zeros.iter().map(|(start, end)| *start..*end))
    }

    /// The file's size before the replay.
    pub fn base_len(&self) -> u64 {
        self.base_len
    }

    /// The file below.
    pub fn base(&mut self) -> &mut dyn Storage {
        self.base
    }

    /// Write the replay's effect to the file and flush. Repeating it does no harm.
    pub fn write_back(self) -> Result<&'a mut dyn Storage, StorageError> {
        if self.len > self.base_len {
            self.base.set_len(self.len)?;
        }
        for (start, end) in self.zeros {
            let end = end.min(self.base_len);
            if start < end {
                self.base.zero(start, end - start)?;
            }
        }
        for (at, page) in self.pages {
            self.base.write_at(at, &page[..])?;
        }
        self.base.flush()?;
        Ok(self.base)
    }
}

fn check_target(sequence_number: u64, offset_bytes: u64, len_bytes: u64, log: &Range<u64>) -> Result<(), OpenError> {
    let refused = |rule| Err(OpenError::LogTarget { sequence_number, offset_bytes, len_bytes, rule });
    if offset_bytes < REGION_TABLE_OFFSETS[0] {
        return refused("the headers are not changed through the log");
    }
    match offset_bytes.checked_add(len_bytes) {
        Some(end) if end > FILE_LEN_MAX => refused("it is outside of any file"),
        None => refused("it is outside of any file"),
        Some(end) if offset_bytes < log.end && end > log.start => refused("the log does not change itself"),
        Some(_) => Ok(()),
    }
}

impl Storage for Overlay<'_> {
    fn len_bytes(&mut self) -> Result<u64, StorageError> {
        Ok(self.len)
    }

    fn read_at(&mut self, offset_bytes: u64, into: &mut [u8]) -> Result<(), StorageError> {
        let end = offset_bytes.saturating_add(into.len() as u64);
        if end > self.len {
            return Err(StorageError::UnexpectedEnd(end));
        }
        if self.summary.is_none() {
            return self.base.read_at(offset_bytes, into);
        }
        let mut done = 0;
        while done < into.len() {
            let at = offset_bytes + done as u64;
            let page = at - at % PAGE_LEN;
            let len = ((page + PAGE_LEN - at) as usize).min(into.len() - done);
            let part = &mut into[done..done + len];
            if let Some(bytes) = self.pages.get(&page) {
                part.copy_from_slice(&bytes[(at - page) as usize..][..len]);
            } else if self.zeros.range(..=at).next_back().is_some_and(|(_, end)| *end > at) {
                part.fill(0);
            } else {
                let inside = self.base_len.saturating_sub(at).min(len as u64) as usize;
                self.base.read_at(at, &mut part[..inside])?;
                part[inside..].fill(0);
            }
            done += len;
        }
        Ok(())
    }

    fn write_at(&mut self, offset_bytes: u64, _bytes: &[u8]) -> Result<(), StorageError> {
        Err(StorageError::Failed(format!("write at {offset_bytes}: the file is open for reading")))
    }

    fn flush(&mut self) -> Result<(), StorageError> {
        Ok(())
    }

    fn set_len(&mut self, len_bytes: u64) -> Result<(), StorageError> {
        Err(StorageError::Failed(format!("set the size to {len_bytes}: the file is open for reading")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vhdx::format::{
        Guid, LOG_DESCRIPTOR_LEN, LOG_ENTRY_MAGIC, LogDescriptor, LogEntryHeader, MIB, ZERO_DESCRIPTOR_MAGIC,
    };
    use crate::vhdx::log::{NewEntry, seal};
    use zerocopy::IntoBytes;
    use zerocopy::little_endian::{U32, U64};

    const GUID: Guid = Guid([7; 16]);
    const LOG: Range<u64> = MIB..2 * MIB;
    const TARGET: u64 = 3 * MIB;

    /// A file of 4 MiB with its log in the second.
    struct Memory(Vec<u8>);

    impl Storage for Memory {
        fn len_bytes(&mut self) -> Result<u64, StorageError> {
            Ok(self.0.len() as u64)
        }
        fn read_at(&mut self, offset_bytes: u64, into: &mut [u8]) -> Result<(), StorageError> {
            let from = self.0.get(offset_bytes as usize..offset_bytes as usize + into.len());
            into.copy_from_slice(from.ok_or(StorageError::UnexpectedEnd(offset_bytes))?);
            Ok(())
        }
        fn write_at(&mut self, offset_bytes: u64, bytes: &[u8]) -> Result<(), StorageError> {
            self.0[offset_bytes as usize..][..bytes.len()].copy_from_slice(bytes);
            Ok(())
        }
        fn flush(&mut self) -> Result<(), StorageError> {
            Ok(())
        }
        fn set_len(&mut self, len_bytes: u64) -> Result<(), StorageError> {
            self.0.resize(len_bytes as usize, 0);
            Ok(())
        }
    }

    impl Memory {
        fn new() -> Self {
            Self(vec![0; 4 << 20])
        }

        /// Put bytes into the ring, wrapping at its end.
        fn put(&mut self, at: u64, bytes: &[u8]) {
            for (index, byte) in bytes.iter().enumerate() {
                self.0[(LOG.start + (at + index as u64) % MIB) as usize] = *byte;
            }
        }

        /// An entry at ring offset `at` that fills the pages at `TARGET` with its number; the offset behind it.
        fn entry(&mut self, at: u64, sequence_number: u64, tail: u64, pages: usize) -> u64 {
            let new = NewEntry {
                tail,
                sequence_number,
                log_guid: GUID,
                flushed_file_offset: 4 * MIB,
                last_file_offset: 4 * MIB,
            };
            let mut bytes = vec![sequence_number as u8; (1 + pages) * PAGE];
            seal(&new, (0..pages).map(|page| TARGET + page as u64 * PAGE_LEN), &mut bytes);
            self.put(at, &bytes);
            (at + bytes.len() as u64) % MIB
        }

        fn sequence(&mut self) -> Result<Vec<u64>, OpenError> {
            let entries = active_sequence(&mut Ring::new(self, LOG.start, MIB, GUID))?;
            Ok(entries.iter().map(|entry| entry.sequence_number).collect())
        }

        /// The first byte of the first page, once the log is replayed.
        fn replayed(&mut self) -> u8 {
            let mut byte = [0];
            let mut overlay = Overlay::replayed(self, LOG, GUID).expect("replays");
            overlay.read_at(TARGET + 100, &mut byte).expect("inside the file");
            let storage = overlay.write_back().expect("writes");
            let mut stored = [0];
            storage.read_at(TARGET + 100, &mut stored).expect("inside the file");
            assert_eq!(byte, stored, "memory and file agree");
            byte[0]
        }
    }

    /// Section 2.3.3 replays from the head's Tail: entries of the run in front of it have been applied, and newer
    /// pages with them.
    #[test]
    fn replay_begins_at_the_tail() {
        let mut file = Memory::new();
        let second = file.entry(0, 5, 0, 3);
        let third = file.entry(second, 6, 0, 1);
        file.entry(third, 7, third, 0);
        assert_eq!(file.sequence(), Ok(vec![7]));
        assert_eq!(file.replayed(), 0, "the empty head says that nothing is left to do");
        file.entry(third, 7, second, 0);
        assert_eq!(file.sequence(), Ok(vec![6, 7]));
        assert_eq!(file.replayed(), 6);
    }

    #[test]
    fn a_sequence_may_wrap_and_an_entry_too() {
        for start in [MIB - 4096, MIB - 8192, MIB - 12288, MIB / 2] {
            let mut file = Memory::new();
            let second = file.entry(start, 1 << 40, start, 2);
            file.entry(second, (1 << 40) + 1, start, 1);
            assert_eq!(file.sequence(), Ok(vec![1 << 40, (1 << 40) + 1]), "from {start}");
            assert_eq!(file.replayed(), 1);
        }
    }

    /// The ring's every sector is used, so the scan comes back to where it began.
    #[test]
    fn a_full_ring_ends_the_scan() {
        for start in [0, 8192, MIB - 8192] {
            let mut file = Memory::new();
            let mut at = start;
            for sequence_number in 1..=128 {
                at = file.entry(at, sequence_number, start, 1);
            }
            assert_eq!(at, start);
            assert_eq!(file.sequence().map(|sequence| sequence.len()), Ok(128), "from {start}");
            assert_eq!(file.replayed(), 128);
        }
    }

    /// Older runs of the same log lie around; the newest complete one counts, wherever it is.
    #[test]
    fn the_newest_complete_sequence_wins() {
        let mut file = Memory::new();
        file.entry(64 << 10, 40, 64 << 10, 1);
        file.entry(256 << 10, 90, 256 << 10, 1);
        file.entry(512 << 10, 60, 512 << 10, 1);
        assert_eq!(file.sequence(), Ok(vec![90]));
        // A newer entry whose Tail is gone does not.
        file.entry(768 << 10, 91, 0, 1);
        assert_eq!(file.sequence(), Ok(vec![90]));
        // Nor does a stale entry right behind the head join it: its number does not follow.
        file.entry((256 << 10) + 8192, 12, 256 << 10, 1);
        assert_eq!((file.sequence(), file.replayed()), (Ok(vec![90]), 90));
        file.put(256 << 10, &[0; 4]);
        assert_eq!(file.sequence(), Ok(vec![60]));
    }

    #[test]
    fn a_log_without_a_complete_sequence_is_refused() {
        let mut file = Memory::new();
        let lost = OpenError::LogWithoutSequence { offset_bytes: MIB, log_guid: GUID };
        assert_eq!(file.sequence(), Err(lost.clone()));
        file.entry(4096, 2, 0, 1);
        assert_eq!(file.sequence(), Err(lost));
    }

    /// An entry of more than 126 descriptors, as Windows writes them: descriptors go on in a second sector, and some
    /// are zeros.
    #[test]
    fn long_entries_and_zero_descriptors_are_replayed() {
        let (mut file, zeros) = (Memory::new(), 200);
        file.0[TARGET as usize..][..zeros * PAGE].fill(0xaa);
        let mut bytes = vec![0; 2 * PAGE];
        let header = LogEntryHeader {
            signature: LOG_ENTRY_MAGIC,
            entry_length: U32::new(2 * PAGE as u32),
            sequence_number: U64::new(9),
            descriptor_count: U32::new(zeros as u32),
            log_guid: GUID,
            last_file_offset: U64::new(5 * MIB),
            ..LogEntryHeader::zeroed()
        };
        bytes[..64].copy_from_slice(header.as_bytes());
        for index in 0..zeros {
            let descriptor = LogDescriptor {
                signature: ZERO_DESCRIPTOR_MAGIC,
                trailing_bytes: [0; 4],
                leading_bytes: (PAGE_LEN * u64::from(index % 3 == 0)).to_le_bytes(),
                file_offset: U64::new(TARGET + index as u64 * PAGE_LEN),
                sequence_number: U64::new(9),
            };
            bytes[64 + index * LOG_DESCRIPTOR_LEN..][..LOG_DESCRIPTOR_LEN].copy_from_slice(descriptor.as_bytes());
        }
        let checksum = crate::crc32c::crc32c(&bytes);
        bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
        file.put(0, &bytes);
        assert_eq!(file.replayed(), 0);
        assert_eq!(file.0.len(), 5 << 20, "the file was extended to LastFileOffset");
        for index in 0..zeros {
            let expected = if index % 3 == 0 { 0 } else { 0xaa };
            assert_eq!(file.0[TARGET as usize + index * PAGE + 4095], expected, "page {index}");
        }
    }

    /// Zeros behind a page hide it, a page behind zeros shows, and ranges join.
    #[test]
    fn an_overlay_keeps_the_order() {
        let mut file = Memory::new();
        file.0[TARGET as usize..].fill(0xaa);
        let mut overlay = Overlay::clean(&mut file).expect("opens");
        overlay.summary = Some(ReplaySummary { entries: 0, descriptors: 0 });
        overlay.put_page(TARGET, [1; PAGE], 0).expect("few pages");
        overlay.put_zeros(TARGET..TARGET + 8192);
        overlay.put_zeros(TARGET + 16384..TARGET + 20480);
        overlay.put_zeros(TARGET + 8192..TARGET + 12288);
        overlay.put_page(TARGET + 4096, [2; PAGE], 0).expect("few pages");
        assert_eq!(
            overlay.zeros.iter().collect::<Vec<_>>(),
            [(&TARGET, &(TARGET + 12288)), (&(TARGET + 16384), &(TARGET + 20480))]
        );
        let mut bytes = vec![0xff; 6 * PAGE];
        overlay.read_at(TARGET, &mut bytes).expect("inside");
        let firsts: Vec<u8> = bytes.chunks(PAGE).map(|page| page[17]).collect();
        assert_eq!(firsts, [0, 2, 0, 0xaa, 0, 0xaa]);
        let touched = [TARGET..TARGET + 1, TARGET + 12288..TARGET + 16384, TARGET + 4095..TARGET + 4097];
        assert_eq!(touched.map(|range| overlay.touches(range)), [true, false, true]);
        drop(overlay.write_back().expect("writes").flush());
        assert_eq!(bytes, file.0[TARGET as usize..][..6 * PAGE]);
    }

    /// A ring made so that every sector looks like the start of a long entry, whose checksum fails at the very end.
    #[test]
    fn the_scan_is_bounded() {
        let mut file = Memory::new();
        for at in (0..MIB).step_by(PAGE) {
            let sectors = (MIB - 4096) / PAGE_LEN;
            let header = LogEntryHeader {
                signature: LOG_ENTRY_MAGIC,
                entry_length: U32::new((sectors * PAGE_LEN) as u32),
                sequence_number: U64::new(1),
                descriptor_count: U32::new((sectors * 128 - 2) as u32),
                log_guid: GUID,
                ..LogEntryHeader::zeroed()
            };
            file.put(at, header.as_bytes());
        }
        // Descriptors are looked at first, so the attack must be sound there too; this one stops early and cheaply.
        let lost = OpenError::LogWithoutSequence { offset_bytes: MIB, log_guid: GUID };
        assert_eq!(file.sequence(), Err(lost));
        let mut ring = Ring::new(&mut file, LOG.start, MIB, GUID);
        let refusal = (0..).find_map(|_| ring.sector(0).err());
        assert_eq!(refusal, Some(OpenError::LogUnreasonable { offset_bytes: MIB }));
    }
}
