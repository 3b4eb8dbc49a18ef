//! Checking a disk's file: everything that is wrong with it, each thing with its place and the rule that it breaks.

use uuid::Uuid;

use super::error::OpenError;
use super::format::{Chs, FOOTER_LEN, HEADER_LEN, SECTOR, UNUSED};
use super::open::{Front, Kind, Warning, read_front};
use super::parent::VhdParent;
use super::spans::Span;
use super::table::{BlockLayout, PlacedBlock, read_table};
use crate::blocks::{Storage, StorageError, checksums};

/// Findings that a report lists; more are counted.
pub const FINDINGS_MAX: usize = 1000;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Odd, and harmless here.
    Note,
    /// The disk can be used; the next write session or [`repair`](super::repair) mends it.
    Mendable,
    /// The disk cannot be used as it is.
    Corrupt,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// Where in the file.
    pub offset_bytes: u64,
    /// What, and against which rule.
    pub text: String,
}

/// What a check has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// The first [`FINDINGS_MAX`].
    pub findings: Vec<Finding>,
    /// All of them.
    pub findings_count: u64,
    /// How bad the worst of all is.
    pub worst: Option<Severity>,
    /// How the disk's space is managed, where that could be read.
    pub kind: Option<Kind>,
    /// Size of the disk, 0 where it could not be read.
    pub size_bytes: u64,
    /// Its identity.
    pub unique_id: Option<Uuid>,
    /// Who made the file; for people only.
    pub creator: String,
    /// For differencing disks.
    pub parent: Option<VhdParent>,
    /// Blocks that are in the file.
    pub blocks_present: u32,
    /// Of them, those whose bitmap is not all ones: only parts of them count.
    pub blocks_partial: u32,
    /// Size of the file.
    pub file_len_bytes: u64,
    /// Bytes of the file that nothing refers to.
    pub unreferenced_bytes: u64,
}

impl CheckReport {
    /// Whether the disk can be used as it is.
    pub fn is_sound(&self) -> bool {
        self.worst.is_none_or(|worst| worst < Severity::Corrupt)
    }

    fn find(&mut self, severity: Severity, offset_bytes: u64, text: String) {
        self.worst = self.worst.max(Some(severity));
        self.findings_count += 1;
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(Finding { severity, offset_bytes, text });
        }
    }
}

/// Check a disk's file. Nothing is written. `Err` only when the file cannot be read.
pub fn check(storage: &mut dyn Storage) -> Result<CheckReport, StorageError> {
    let mut report = CheckReport { file_len_bytes: storage.len_bytes()?, ..CheckReport::default() };
    let front = match read_front(storage) {
        Ok(front) => front,
        Err(OpenError::Storage(error)) if !matches!(error, StorageError::UnexpectedEnd(_)) => return Err(error),
        Err(error) => {
            report.find(Severity::Corrupt, place_of(&error), error.to_string());
            return Ok(report);
        }
    };
    let footer = front.footers.footer;
    report.kind = Some(front.kind);
    report.size_bytes = front.shape.size_bytes;
    report.unique_id = Some(Uuid::from_bytes(footer.unique_id));
    report.creator = footer.creator();
    report.parent = front.parent.clone();
    check_front(&front, &mut report);
    if front.kind == Kind::Fixed {
        report.unreferenced_bytes = report.file_len_bytes.saturating_sub(report.size_bytes + FOOTER_LEN);
        return Ok(report);
    }
    check_blocks(storage, &front, &mut report)?;
    Ok(report)
}

/// What distinguishes two states of the structures of a file that is being served: its length, footers, header and
/// block table. While this stays the same, a check sees one state, whatever is written to the file beside it.
pub fn metadata_mark(storage: &mut dyn Storage) -> Result<Vec<u32>, StorageError> {
    let len_bytes = storage.len_bytes()?;
    let mut ranges = vec![(0, len_bytes.min(4096)), (len_bytes.saturating_sub(FOOTER_LEN), len_bytes)];
    if let Ok(front) = read_front(storage)
        && front.kind != Kind::Fixed
    {
        let (_, header) = front.header.as_ref().expect("only fixed disks have none");
        let table = front.table();
        ranges.push((*header, header + HEADER_LEN));
        ranges.push((table.offset_bytes, table.entry_offset(table.blocks)));
    }
    checksums(storage, &ranges)
}

/// Where an error of opening points to.
fn place_of(error: &OpenError) -> u64 {
    match error {
        OpenError::FooterChecksum { offset_bytes, .. }
        | OpenError::Header { offset_bytes, .. }
        | OpenError::TablePlace { offset_bytes, .. }
        | OpenError::Locator { offset_bytes, .. }
        | OpenError::Overlap { offset_bytes, .. } => *offset_bytes,
        OpenError::Block { entry_offset_bytes, .. } => *entry_offset_bytes,
        _ => 0,
    }
}

/// Footers, geometry, paths.
fn check_front(front: &Front, report: &mut CheckReport) {
    let end = front.footers.end_offset.unwrap_or(front.len_bytes);
    for warning in &front.warnings {
        let (severity, offset_bytes) = match warning {
            Warning::EndFooterInvalid => (Severity::Mendable, end),
            Warning::FooterCopyInvalid | Warning::FootersDiffer => (Severity::Mendable, 0),
            Warning::LocatorTooLong { offset_bytes, .. } => (Severity::Note, *offset_bytes),
            Warning::TableTooLarge { .. } => (Severity::Note, front.table().offset_bytes),
            Warning::SavedState => (Severity::Note, end),
        };
        report.find(severity, offset_bytes, warning.to_string());
    }
    let (chs, size_bytes) = (front.footers.footer.geometry(), front.shape.size_bytes);
    let named = chs.sectors() * SECTOR;
    if named != size_bytes && chs != Chs::LARGEST && chs != Chs::of_sectors(size_bytes / SECTOR) {
        let text = format!("the footer's geometry names {named} bytes, its current size {size_bytes}; the size counts");
        report.find(Severity::Note, end, text);
    }
    if front.kind == Kind::Differencing {
        let parent = front.parent.as_ref().expect("a differencing disk has a parent");
        if parent.relative_paths.is_empty() && parent.absolute_paths.is_empty() && parent.name.is_empty() {
            report.find(Severity::Note, 0, "nothing in the file says where the parent is".to_owned());
        }
    }
}

/// Every entry of the table, against the file, the structures and the other blocks.
fn check_blocks(storage: &mut dyn Storage, front: &Front, report: &mut CheckReport) -> Result<(), StorageError> {
    let table = front.table();
    let layout = BlockLayout::new(front.shape.block_bytes());
    let mut placed = Vec::new();
    let read = read_table(storage, table, |page, entries| {
        let first = page * crate::blocks::WORDS_PER_PAGE as u32;
        let present = (first..).zip(entries).filter(|(_, sector)| **sector != UNUSED);
        placed.extend(present.map(|(block, sector)| PlacedBlock { sector: *sector, block }));
    });
    match read {
        Ok(()) => {}
        Err(OpenError::Storage(error)) => return Err(error),
        Err(error) => report.find(Severity::Corrupt, place_of(&error), error.to_string()),
    }
    placed.sort_unstable();
    report.blocks_present = placed.len() as u32;
    let data_end = front.footers.end_offset.unwrap_or(front.len_bytes);
    let mut used: u64 = front.spans.iter().map(|span| span.end - span.start).sum();
    let mut previous: Option<PlacedBlock> = None;
    for at in placed {
        let start = u64::from(at.sector) * SECTOR;
        let end = start + layout.unit_bytes();
        let entry = table.entry_offset(at.block);
        used += layout.unit_bytes();
        let visible = (front.shape.size_bytes - u64::from(at.block) * layout.block_bytes).min(layout.block_bytes);
        if layout.data_of(at.sector) + visible > data_end {
            let text = format!("block {} (byte {start}) lies behind the end of the file ({data_end})", at.block);
            report.find(Severity::Corrupt, entry, text);
            continue;
        }
        if let Some(span) = front.spans.iter().find(|span| span.start < end && start < span.end) {
            overlap(report, entry, at, start, &span.name);
        }
        if let Some(before) = previous.filter(|before| start < layout.data_of(before.sector) + layout.block_bytes) {
            overlap(report, entry, at, start, &format!("block {}", before.block));
        }
        previous = Some(at);
        check_bitmap(storage, front.kind, layout, at, report)?;
    }
    shared_locators(&front.spans, report);
    report.unreferenced_bytes = report.file_len_bytes.saturating_sub(used + FOOTER_LEN);
    Ok(())
}

fn overlap(report: &mut CheckReport, entry: u64, at: PlacedBlock, start: u64, other: &str) {
    let text = format!("block {} (byte {start}) overlaps {other}: no two structures may share bytes", at.block);
    report.find(Severity::Corrupt, entry, text);
}

/// Paths to the parent that share their place; every other sharing is an error of opening.
fn shared_locators(spans: &[Span], report: &mut CheckReport) {
    for (number, one) in spans.iter().enumerate() {
        for other in &spans[..number] {
            if one.start < other.end && other.start < one.end {
                let text = format!("{} and {} share bytes", other.name, one.name);
                report.find(Severity::Note, one.start.max(other.start), text);
            }
        }
    }
}

/// Where sectors of a block do not count, readers that ignore bitmaps read something else than those that look.
fn check_bitmap(
    storage: &mut dyn Storage,
    kind: Kind,
    layout: BlockLayout,
    at: PlacedBlock,
    report: &mut CheckReport,
) -> Result<(), StorageError> {
    let offset_bytes = u64::from(at.sector) * SECTOR;
    let mut bits = vec![0; (layout.block_bytes / SECTOR / 8) as usize];
    storage.read_at(offset_bytes, &mut bits)?;
    if bits.iter().all(|byte| *byte == 0xff) {
        return Ok(());
    }
    report.blocks_partial += 1;
    if kind == Kind::Dynamic {
        let text = format!(
            "block {}: its bitmap leaves sectors out; they read as zeros here, and as what is stored with programs \
             that ignore bitmaps",
            at.block
        );
        report.find(Severity::Note, offset_bytes, text);
    }
    Ok(())
}
