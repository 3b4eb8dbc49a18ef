//! Checking a disk's file: every rule of the format that it breaks, with the place and the section, and where its
//! bytes go. Unlike opening, a check goes on behind the first problem, as far as what is left can be understood.

mod structures;
mod table;

use std::fmt;

use super::error::OpenError;
use super::format::{Guid, HEADER_SECTION_LEN};
use super::geometry::Geometry;
use super::header::{CurrentHeader, read_headers};
use super::locator::ParentLocator;
use super::open::ReplaySummary;
use super::storage::{Storage, StorageError};
use crate::blocks::checksums;

/// Problems of one kind that are listed one by one; further ones are counted.
pub const FINDINGS_PER_KIND_MAX: u64 = 16;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Worth knowing; no rule is broken.
    Note,
    /// A rule is broken or a copy is lost, and the disk can be used all the same.
    Warning,
    /// The disk cannot be opened.
    Error,
}

/// Something that a check has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The section of [MS-VHDX] that holds the rule; empty where the format has none.
    pub section: &'static str,
    /// Where in the file, in bytes, as far as it is one place.
    pub offset_bytes: Option<u64>,
    /// What is wrong there.
    pub text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        write!(f, "{severity}")?;
        if let Some(offset_bytes) = self.offset_bytes {
            write!(f, " at byte {offset_bytes}")?;
        }
        write!(f, ": {}", self.text)?;
        if self.section.is_empty() { Ok(()) } else { write!(f, " [MS-VHDX {}]", self.section) }
    }
}

/// How often a kind of problem was met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally {
    /// How bad each is.
    pub severity: Severity,
    /// The section that holds the rule.
    pub section: &'static str,
    /// The rule.
    pub rule: &'static str,
    /// How often it is broken, listed or not.
    pub count: u64,
}

/// One of the two headers (section 2.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderFacts {
    /// SequenceNumber.
    pub sequence_number: u64,
    /// FileWriteGuid.
    pub file_write_guid: Guid,
    /// DataWriteGuid: what children of this disk refer to.
    pub data_write_guid: Guid,
    /// LogGuid: zero where nothing is to be replayed.
    pub log_guid: Guid,
    /// LogOffset in bytes.
    pub log_offset_bytes: u64,
    /// LogLength in bytes.
    pub log_len_bytes: u64,
}

/// An entry of the region table (section 2.2.3.2), broken or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionFacts {
    /// Which.
    pub guid: Guid,
    /// What it is called.
    pub name: String,
    /// FileOffset.
    pub offset_bytes: u64,
    /// Length.
    pub len_bytes: u64,
    /// Whether a reader must know it.
    pub required: bool,
}

/// An entry of the metadata table (section 2.6.1.2), broken or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ItemFacts {
    /// Which.
    pub id: Guid,
    /// IsUser.
    pub is_user: bool,
    /// IsVirtualDisk.
    pub is_virtual_disk: bool,
    /// IsRequired.
    pub is_required: bool,
    /// Its place in the file.
    pub offset_bytes: u64,
    /// Its length.
    pub len_bytes: u64,
}

/// What the log holds (section 2.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFacts {
    /// Nothing to replay.
    #[default]
    Empty,
    /// Entries that the next writable open will replay. The report shows the disk as it is after that.
    Pending(ReplaySummary),
    /// Entries are promised, and cannot be replayed. The report shows the disk without them.
    Broken,
}

/// Payload blocks by state (section 2.5.1.1), and sector bitmap blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockCounts {
    /// Content in the file.
    pub fully_present: u32,
    /// Some sectors in the file, the others in the parent.
    pub partially_present: u32,
    /// Never written: the parent's, or zeros.
    pub not_present: u32,
    /// Known to be zeros.
    pub zero: u32,
    /// Trimmed.
    pub unmapped: u32,
    /// Undefined content.
    pub undefined: u32,
    /// In a reserved state.
    pub reserved: u32,
    /// Sectors that partially present blocks have in the file.
    pub partial_sectors: u64,
    /// Sector bitmap blocks in the file.
    pub bitmaps: u32,
}

/// What a check has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Every problem and oddity, in the order of the file's structures; at most [`FINDINGS_PER_KIND_MAX`] of a kind.
    pub findings: Vec<Finding>,
    /// Every kind of problem with its number.
    pub tallies: Vec<Tally>,
    /// Who made the file; for people only.
    pub creator: String,
    /// The file's size in bytes.
    pub file_len_bytes: u64,
    /// The two headers; `None` for one that is not valid.
    pub headers: [Option<HeaderFacts>; 2],
    /// Which of them is current, 0 or 1.
    pub current_header: Option<usize>,
    /// The log.
    pub log: LogFacts,
    /// The regions of the table that is used.
    pub regions: Vec<RegionFacts>,
    /// The metadata items.
    pub items: Vec<ItemFacts>,
    /// The disk's shape, where the metadata tells it.
    pub geometry: Option<Geometry>,
    /// Its identity.
    pub virtual_disk_id: Guid,
    /// Its parent.
    pub parent: Option<ParentLocator>,
    /// Its blocks.
    pub blocks: BlockCounts,
    /// Bytes between objects that nothing refers to: the next allocations use them.
    pub unreferenced_bytes: u64,
    /// Bytes behind the last object: used by the next allocations, or given back at the next close.
    pub tail_bytes: u64,
    /// Oddities that a repair can put right without guessing.
    pub(super) repairs: Repairs,
}

/// What a repair can do about a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Repairs {
    /// A header that is not valid while the other is: both will be written.
    pub headers: bool,
    /// A copy of the region table that is not valid or differs, while the other is used: its index.
    pub region_table: Option<usize>,
    /// Entries of the table that say more than their state allows: what is dropped means nothing to a reader.
    pub entries: u64,
    /// Of those, how many are errors.
    pub errors: u64,
    /// The size that the file should have, where it is too short or not whole MiB.
    pub file_len_bytes: Option<u64>,
}

impl CheckReport {
    /// Whether the disk can be used: no finding is an error.
    pub fn is_sound(&self) -> bool {
        self.tallies.iter().all(|tally| tally.severity < Severity::Error)
    }

    /// The current header.
    pub fn header(&self) -> Option<&HeaderFacts> {
        self.headers[self.current_header?].as_ref()
    }

    /// Findings of one severity, listed or not.
    pub fn count(&self, severity: Severity) -> u64 {
        self.tallies.iter().filter(|tally| tally.severity == severity).map(|tally| tally.count).sum()
    }

    /// Add a finding; `rule` is its kind.
    fn add(&mut self, rule: &'static str, finding: Finding) {
        let Finding { severity, section, .. } = finding;
        let same = |tally: &&mut Tally| (tally.severity, tally.section, tally.rule) == (severity, section, rule);
        let count = match self.tallies.iter_mut().find(same) {
            Some(tally) => {
                tally.count += 1;
                tally.count
            }
            None => {
                self.tallies.push(Tally { severity, section, rule, count: 1 });
                1
            }
        };
        if count <= FINDINGS_PER_KIND_MAX {
            self.findings.push(finding);
        }
    }

    /// A rule that stops the disk from being opened.
    fn broken(&mut self, error: &OpenError) {
        let (section, offset_bytes) = (error.section(), error.offset_bytes());
        let finding = Finding { severity: Severity::Error, section, offset_bytes, text: error.to_string() };
        self.add(error.rule(), finding);
    }

    /// Something that does not.
    fn odd(&mut self, section: &'static str, offset_bytes: u64, rule: &'static str, text: String) {
        let finding = Finding { severity: Severity::Warning, section, offset_bytes: Some(offset_bytes), text };
        self.add(rule, finding);
    }

    fn note(&mut self, section: &'static str, offset_bytes: u64, rule: &'static str, text: String) {
        self.add(rule, Finding { severity: Severity::Note, section, offset_bytes: Some(offset_bytes), text });
    }
}

/// Check a disk's file. Nothing is written. What is wrong with the file is in the report; an error is a failure of the
/// storage below.
pub fn check(storage: &mut dyn Storage) -> Result<CheckReport, StorageError> {
    let mut report = CheckReport::default();
    match examine(storage, &mut report) {
        // The file was cut short in the middle of a structure.
        Err(error @ StorageError::UnexpectedEnd(_)) => report.broken(&OpenError::Storage(error)),
        other => other?,
    }
    Ok(report)
}

/// What distinguishes two states of the metadata of a file that is being served: its length, headers, region tables and
/// the log. Metadata changes in place only after the log says so (section 2.3); while this stays the same, a check sees
/// one state, whatever is written to the file beside it.
pub fn metadata_mark(storage: &mut dyn Storage) -> Result<Vec<u32>, StorageError> {
    let len_bytes = storage.len_bytes()?;
    let mut ranges = vec![(0, HEADER_SECTION_LEN.min(len_bytes))];
    if let Ok(CurrentHeader { header, .. }) = read_headers(storage, len_bytes, &mut Vec::new()) {
        let (start, len) = (header.log_offset.get(), u64::from(header.log_length.get()));
        ranges.push((start.min(len_bytes), start.saturating_add(len).min(len_bytes)));
    }
    checksums(storage, &ranges)
}

fn examine(storage: &mut dyn Storage, report: &mut CheckReport) -> Result<(), StorageError> {
    if let Some(mut structures) = structures::check(storage, report)? {
        table::check(&mut structures, report)?;
    }
    Ok(())
}
