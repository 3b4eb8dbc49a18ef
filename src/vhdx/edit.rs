//! Changing the structures of a file that nobody else uses: all of a change becomes visible at one instant, or none.
//!
//! The order, with one flush behind each line:
//!
//! 1. one header: new FileWriteGuid, no log;
//! 2. the other header; whatever goes to space that nothing refers to: a moved table, a long item, the payload of new
//!    blocks; the log entries with every page that changes in place, under a new LogGuid, from the start of the ring;
//! 3. one header with that LogGuid, and a new DataWriteGuid where the guest can notice the change: **this is the
//!    instant**. Before it no header names the log, behind it every reader replays it;
//! 4. the other header; the pages in place;
//! 5. one header without the log;
//! 6. the other header.
//!
//! Whatever is not flushed may be there, be lost or be garbage: it is a header whose other copy still tells the old or
//! the new story in full, or space that nobody looks at, or a page that the log heals. `tests/vhdx_files` leaves each
//! of these flushes out and sees the loss.

use std::collections::BTreeMap;
use std::ops::Range;

use super::GuidSource;
use super::check::{CheckReport, Severity, check};
use super::error::{EditError, OpenError, first};
use super::format::{Guid, MIB, PAGE, REGION_TABLE_LEN, REGION_TABLE_OFFSETS};
use super::geometry::Geometry;
use super::header::{CurrentHeader, FILE_LEN_MAX, read_headers, read_identifier};
use super::log::{NewEntry, seal};
use super::metadata::{Items, read_metadata};
use super::open::persist_replay;
use super::region::{Place, read_regions, with_region};
use super::replay::Overlay;
use super::storage::Storage;

const PAGE_LEN: u64 = PAGE as u64;

/// Pages of one log entry: what fits beside one descriptor sector. Other readers are known to fail above it.
pub(super) const PAGES_PER_ENTRY: usize = 126;

/// Bytes written to free space at once.
const WRITE_LEN: usize = 1 << 20;

/// A sound file whose log has been replayed into it.
pub(super) struct Edit<'a> {
    pub storage: &'a mut dyn Storage,
    pub geometry: Geometry,
    pub bat: Place,
    pub items: Items,
    /// What the file was found to be.
    pub report: CheckReport,
    current: CurrentHeader,
    guids: GuidSource,
    region_table: Vec<u8>,
    /// FileWriteGuid has changed, and the file may be.
    begun: bool,
    /// Behind everything that is referred to or reserved; whole MiB.
    end_bytes: u64,
    len_bytes: u64,
    pages: BTreeMap<u64, Box<[u8; PAGE]>>,
}

impl<'a> Edit<'a> {
    /// Open a file that keeps every rule. A pending log is replayed into it; nothing else is written.
    pub fn open(storage: &'a mut dyn Storage, guids: GuidSource) -> Result<Self, EditError> {
        let report = check(storage)?;
        refuse_damaged(&report, report.count(Severity::Error))?;
        Self::open_checked(storage, guids, report)
    }

    /// The same for a file whose check has been judged.
    pub fn open_checked(
        storage: &'a mut dyn Storage,
        mut guids: GuidSource,
        report: CheckReport,
    ) -> Result<Self, EditError> {
        let (len_bytes, _) = read_identifier(storage)?;
        let mut current = read_headers(storage, len_bytes, &mut Vec::new())?;
        let (log_start, log_guid) = (current.header.log_offset.get(), current.header.log_guid);
        let mut begun = false;
        let storage = if log_guid == Guid::ZERO {
            storage
        } else {
            let log = log_start..log_start + u64::from(current.header.log_length.get());
            let overlay = Overlay::replayed(storage, log, log_guid)?;
            begun = true;
            persist_replay(overlay, &mut current, &mut guids)?
        };
        let regions = read_regions(storage, &mut Vec::new())?;
        let valid = usize::from(regions.repair.as_ref().is_some_and(|repair| repair.is_first()));
        let mut region_table = vec![0; REGION_TABLE_LEN];
        storage.read_at(REGION_TABLE_OFFSETS[valid], &mut region_table)?;
        let metadata = read_metadata(storage, regions.metadata, regions.bat.offset_bytes)?;
        let items = first(|report| Items::read(storage, regions.metadata, report))??;
        let rule = "it cannot be read";
        let items = items.ok_or(OpenError::MetadataTable { offset_bytes: regions.metadata.offset_bytes, rule })?;
        let len_bytes = storage.len_bytes()?;
        // A block that the end of the file cuts short still has its whole place.
        let objects_end = report.file_len_bytes - report.tail_bytes;
        let end_bytes = objects_end.max(report.repairs.file_len_bytes.unwrap_or(0)).next_multiple_of(MIB);
        Ok(Self {
            storage,
            geometry: metadata.geometry,
            bat: regions.bat,
            items,
            report,
            current,
            guids,
            region_table,
            begun,
            end_bytes,
            len_bytes,
            pages: BTreeMap::new(),
        })
    }

    /// Before the first change: FileWriteGuid in both headers, and a file of whole MiB.
    fn begin(&mut self) -> Result<(), EditError> {
        if !self.begun {
            self.current.header.file_write_guid = (self.guids)();
            self.write_headers()?;
            self.begun = true;
        }
        if self.len_bytes < self.end_bytes {
            self.set_len(self.end_bytes)?;
        }
        self.set_len(self.len_bytes.next_multiple_of(MIB))
    }

    fn set_len(&mut self, len_bytes: u64) -> Result<(), EditError> {
        if len_bytes != self.len_bytes {
            self.storage.set_len(len_bytes)?;
            self.len_bytes = len_bytes;
        }
        Ok(())
    }

    /// Space behind everything else, whole MiB that read as zeros. Whatever stood behind the last object is gone.
    pub fn reserve(&mut self, len_bytes: u64) -> Result<u64, EditError> {
        self.begin()?;
        let offset_bytes = self.end_bytes;
        let end = offset_bytes.saturating_add(len_bytes.next_multiple_of(MIB));
        if end > FILE_LEN_MAX {
            return Err(OpenError::TooLong { len_bytes: end }.into());
        }
        // Cutting first makes the space read as zeros.
        self.set_len(offset_bytes)?;
        self.set_len(end)?;
        self.end_bytes = end;
        Ok(offset_bytes)
    }

    /// Write to space that nothing refers to yet.
    pub fn write_free(&mut self, offset_bytes: u64, bytes: &[u8]) -> Result<(), EditError> {
        self.begin()?;
        for (at, part) in (offset_bytes..).step_by(WRITE_LEN).zip(bytes.chunks(WRITE_LEN)) {
            self.storage.write_at(at, part)?;
        }
        Ok(())
    }

    /// Make a range read as zeros that nobody can see yet. Space that is zero already is not touched.
    pub fn zero_free(&mut self, range: Range<u64>) -> Result<(), EditError> {
        self.begin()?;
        self.set_len(self.len_bytes.max(range.end.next_multiple_of(MIB)))?;
        let (mut bytes, nothing) = (vec![0; WRITE_LEN], vec![0; WRITE_LEN]);
        let mut at = range.start;
        while at < range.end {
            let len = (range.end - at).min(WRITE_LEN as u64) as usize;
            self.storage.read_at(at, &mut bytes[..len])?;
            if bytes[..len] != nothing[..len] {
                self.storage.write_at(at, &nothing[..len])?;
            }
            at += len as u64;
        }
        Ok(())
    }

    /// Change bytes in place, with the next commit.
    pub fn patch(&mut self, offset_bytes: u64, bytes: &[u8]) -> Result<(), EditError> {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset_bytes + done as u64;
            let (page, within) = (at / PAGE_LEN * PAGE_LEN, (at % PAGE_LEN) as usize);
            let len = (PAGE - within).min(bytes.len() - done);
            if !self.pages.contains_key(&page) {
                let mut old = Box::new([0; PAGE]);
                self.storage.read_at(page, &mut old[..])?;
                self.pages.insert(page, old);
            }
            let pending = self.pages.get_mut(&page).expect("it was put there");
            pending[within..within + len].copy_from_slice(&bytes[done..done + len]);
            done += len;
        }
        Ok(())
    }

    /// Pages that wait for the commit.
    pub fn pages_pending(&self) -> usize {
        self.pages.len()
    }

    /// Another place for a region, with the next commit.
    pub fn move_region(&mut self, guid: Guid, place: Place) -> Result<(), EditError> {
        self.region_table = with_region(&self.region_table, guid, place);
        self.rewrite_region_tables()
    }

    /// Both copies of the region table as this file uses it, with the next commit.
    pub fn rewrite_region_tables(&mut self) -> Result<(), EditError> {
        for offset_bytes in REGION_TABLE_OFFSETS {
            let mut old = vec![0; REGION_TABLE_LEN];
            self.storage.read_at(offset_bytes, &mut old)?;
            let table = std::mem::take(&mut self.region_table);
            for (at, (old, new)) in old.chunks(PAGE).zip(table.chunks(PAGE)).enumerate() {
                if old != new {
                    self.patch(offset_bytes + at as u64 * PAGE_LEN, new)?;
                }
            }
            self.region_table = table;
        }
        Ok(())
    }

    /// Make every patch visible at one instant. `visible`: the guest, or a child of this disk, can notice
    /// (section 2.2.2 on DataWriteGuid).
    pub fn commit(&mut self, visible: bool) -> Result<(), EditError> {
        self.begin()?;
        let log_guid = (self.guids)();
        self.write_entries(log_guid)?;
        self.storage.flush()?;
        if visible {
            self.current.header.data_write_guid = (self.guids)();
        }
        self.current.header.log_guid = log_guid;
        self.write_headers()?;
        for (offset_bytes, page) in std::mem::take(&mut self.pages) {
            self.storage.write_at(offset_bytes, &page[..])?;
        }
        self.storage.flush()?;
        self.current.header.log_guid = Guid::ZERO;
        self.write_headers()?;
        self.storage.flush()?;
        Ok(())
    }

    /// Both headers; the second is durable with the next flush.
    fn write_headers(&mut self) -> Result<(), EditError> {
        let (offset_bytes, page) = self.current.advance();
        self.storage.write_at(offset_bytes, &page)?;
        self.storage.flush()?;
        let (offset_bytes, page) = self.current.advance();
        self.storage.write_at(offset_bytes, &page)?;
        Ok(())
    }

    /// The log entries, from the start of the ring; each one's Tail is the first.
    fn write_entries(&mut self, log_guid: Guid) -> Result<(), EditError> {
        let (log, ring_len) = (self.current.header.log_offset.get(), u64::from(self.current.header.log_length.get()));
        let pages: Vec<(&u64, &Box<[u8; PAGE]>)> = self.pages.iter().collect();
        let mut groups = pages.chunks(PAGES_PER_ENTRY).collect::<Vec<_>>();
        if groups.is_empty() {
            groups.push(&[]);
        }
        let mut at = 0;
        for (sequence_number, group) in (1..).zip(groups) {
            let mut bytes = vec![0; (1 + group.len()) * PAGE];
            for (sector, (_, page)) in bytes[PAGE..].as_chunks_mut::<PAGE>().0.iter_mut().zip(group) {
                *sector = ***page;
            }
            // Before a header names the entry it is flushed, and the size with it; the size covers everything.
            let new = NewEntry {
                tail: 0,
                sequence_number,
                log_guid,
                flushed_file_offset: self.len_bytes,
                last_file_offset: self.len_bytes,
            };
            seal(&new, group.iter().map(|(offset_bytes, _)| **offset_bytes), &mut bytes);
            assert!(at + bytes.len() as u64 + 2 * PAGE_LEN <= ring_len, "a change of so many pages is split before");
            self.storage.write_at(log + at, &bytes)?;
            at += bytes.len() as u64;
        }
        Ok(())
    }

    /// Give back what is behind the last object; only right behind a commit, when no log can promise a size.
    pub fn cut_tail(&mut self, end_bytes: u64) -> Result<(), EditError> {
        assert!(self.pages.is_empty() && self.current.header.log_guid == Guid::ZERO);
        if end_bytes < self.len_bytes {
            self.set_len(end_bytes)?;
            self.storage.flush()?;
        }
        Ok(())
    }

    /// The identity of the disk's content now.
    pub fn data_write_guid(&self) -> Guid {
        self.current.header.data_write_guid
    }

    /// Behind everything that is referred to.
    pub fn end_bytes(&self) -> u64 {
        self.end_bytes
    }

    /// The file's size now.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }
}

/// Refuse a file with this many errors that nothing is to be done about.
pub(super) fn refuse_damaged(report: &CheckReport, errors: u64) -> Result<(), EditError> {
    if errors == 0 {
        return Ok(());
    }
    let finding = report.findings.iter().find(|finding| finding.severity == Severity::Error);
    Err(EditError::Damaged { errors, first: finding.map_or_else(String::new, ToString::to_string) })
}
