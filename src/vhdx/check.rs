//! Checking a disk's file: every rule that opening checks, and where its bytes go.

use std::sync::atomic::Ordering;

use super::error::OpenError;
use super::format::{BatEntry, BlockState, Guid};
use super::geometry::Geometry;
use super::open::{Loaded, ReplaySummary, Warning, load};
use super::storage::Storage;

/// Payload blocks by state (section 2.5.1.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockCounts {
    /// Content in the file.
    pub fully_present: u32,
    /// Never written.
    pub not_present: u32,
    /// Known to be zeros.
    pub zero: u32,
    /// Trimmed.
    pub unmapped: u32,
    /// Undefined content.
    pub undefined: u32,
}

/// What a check has found in a file that keeps every rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckReport {
    /// The disk's shape.
    pub geometry: Geometry,
    /// Its identity.
    pub virtual_disk_id: Guid,
    /// Who made the file; for people only.
    pub creator: String,
    /// Its blocks.
    pub blocks: BlockCounts,
    /// The log was not empty: what the next writable open will replay. The report shows the disk as it is after that.
    pub pending_replay: Option<ReplaySummary>,
    /// Oddities.
    pub warnings: Vec<Warning>,
    /// The file's size in bytes.
    pub file_len_bytes: u64,
    /// Bytes between objects that nothing refers to: lost until the disk is copied.
    pub unreferenced_bytes: u64,
    /// Bytes behind the last object: used by the next allocations, or given back at the next close.
    pub tail_bytes: u64,
}

/// Check a disk's file. Nothing is written. A broken rule is the error that opening gives.
pub fn check(storage: &mut dyn Storage) -> Result<CheckReport, OpenError> {
    let Loaded { mut overlay, geometry, virtual_disk_id, table, spans, creator, warnings, .. } = load(storage)?;
    let mut blocks = BlockCounts::default();
    for entry in &table.entries {
        let count = match BatEntry(entry.load(Ordering::Relaxed)).state() {
            Some(BlockState::FullyPresent) => &mut blocks.fully_present,
            Some(BlockState::Zero) => &mut blocks.zero,
            Some(BlockState::Unmapped) => &mut blocks.unmapped,
            Some(BlockState::Undefined) => &mut blocks.undefined,
            Some(BlockState::NotPresent) => &mut blocks.not_present,
            Some(BlockState::PartiallyPresent) | None => unreachable!("refused by read_table"),
        };
        *count += 1;
    }
    let payload = u64::from(table.present) * u64::from(geometry.block_size_bytes);
    let structures: u64 = spans.iter().map(|span| span.end - span.start).sum();
    let file_len_bytes = overlay.len_bytes()?;
    Ok(CheckReport {
        geometry,
        virtual_disk_id,
        creator,
        blocks,
        pending_replay: overlay.summary,
        warnings,
        file_len_bytes,
        unreferenced_bytes: table.objects_end.saturating_sub(payload + structures),
        tail_bytes: file_len_bytes.saturating_sub(table.objects_end),
    })
}
