//! Putting right what is wrong with a file where nothing has to be guessed: pending logs, lost copies, sizes, and table
//! entries that say more than their state allows. A file with any other error is left exactly as it is.

use std::ops::Range;

use super::GuidSource;
use super::check::{CheckReport, Finding, LogFacts, Severity, check};
use super::edit::{Edit, PAGES_PER_ENTRY};
use super::error::EditError;
use super::format::{BatEntry, MIB};
use super::geometry::Slot;
use super::scan::{Met, Scan, SpaceMap};
use super::storage::{Storage, StorageError};

/// What a repair has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepairReport {
    /// What was wrong before.
    pub before: CheckReport,
    /// What was done, in order; empty when nothing was.
    pub done: Vec<String>,
    /// What was not touched, because it cannot be put right without guessing.
    pub refused: Vec<Finding>,
    /// What a check says now.
    pub after: CheckReport,
}

/// Repair a file. Nothing is written to a file that is sound, nor to one with an error that a repair cannot mend. Power
/// may fail at any time, and the repair may be repeated.
pub fn repair(storage: &mut dyn Storage, guids: GuidSource) -> Result<RepairReport, EditError> {
    let before = check(storage)?;
    // Entries of sector bitmaps in a disk that has none are the one kind of error that means nothing.
    let mendable = before.repairs.errors;
    if before.count(Severity::Error) > mendable {
        let refused = before.findings.iter().filter(|finding| finding.severity == Severity::Error).cloned().collect();
        return Ok(RepairReport { after: before.clone(), before, done: Vec::new(), refused });
    }
    let mut done = Vec::new();
    let mut edit = Edit::open_checked(storage, guids, before.clone())?;
    if let LogFacts::Pending(replay) = before.log {
        done.push(format!("replayed {} log entries with {} changes", replay.entries, replay.descriptors));
    }
    let repairs = before.repairs.clone();
    if let Some(copy) = repairs.region_table {
        edit.rewrite_region_tables()?;
        done.push(format!("wrote region table {} anew from the other one", copy + 1));
    }
    if let Some(len_bytes) = repairs.file_len_bytes.filter(|len| *len > edit.len_bytes()) {
        done.push(format!("extended the file from {} to {len_bytes} bytes", edit.len_bytes()));
    }
    if repairs.entries > 0 {
        let cleared = clear_entries(&mut edit)?;
        done.push(format!("cleared what {cleared} table entries said beyond their state"));
    }
    if repairs.headers {
        done.push("wrote both headers anew".to_owned());
    }
    if !done.is_empty() {
        edit.commit(false)?;
    }
    let after = check(storage)?;
    let refused = after.findings.iter().filter(|finding| finding.severity > Severity::Note).cloned().collect();
    Ok(RepairReport { before, done, refused, after })
}

/// Clear entries, many to a log entry; how many were.
fn clear_entries(edit: &mut Edit<'_>) -> Result<u64, EditError> {
    let geometry = edit.geometry;
    let claimed = |met: &Met| -> Option<Range<u64>> {
        let len = match met.slot {
            Slot::Block(_) if matches!(met.entry.0 & 7, 6 | 7) => u64::from(geometry.block_size_bytes),
            Slot::Bitmap(_) if met.entry.0 & 7 == 6 && geometry.has_parent => MIB,
            _ => return None,
        };
        Some(met.entry.offset_bytes()..met.entry.offset_bytes() + len)
    };
    let file_len = edit.report.file_len_bytes;
    let mut taken = SpaceMap::new(file_len);
    each(edit, |_, met| {
        claimed(&met).map(|range| taken.take(range));
        Ok(())
    })?;
    let mut cleared = 0;
    each(edit, |edit, met| {
        let offset_bytes = met.entry.offset_bytes();
        let anchor = offset_bytes..offset_bytes.saturating_add(u64::from(geometry.block_size_bytes));
        let keeps_offset = match (met.slot, met.entry.0 & 7) {
            (Slot::Block(_), 6 | 7) => true,
            (Slot::Block(_), 1 | 3) => offset_bytes >= MIB && anchor.end <= file_len && !taken.is_taken(anchor),
            (Slot::Bitmap(_), 6) => geometry.has_parent,
            _ => false,
        };
        let state = if matches!(met.slot, Slot::Bitmap(_)) && !geometry.has_parent { 0 } else { met.entry.0 & 7 };
        let entry = BatEntry(state | if keeps_offset { offset_bytes } else { 0 });
        if entry == met.entry || met.slot == Slot::Unused {
            return Ok(());
        }
        cleared += 1;
        edit.patch(met.offset_bytes, &entry.0.to_le_bytes())?;
        if edit.pages_pending() + 1 >= PAGES_PER_ENTRY { edit.commit(false) } else { Ok(()) }
    })?;
    Ok(cleared)
}

fn each<'a>(
    edit: &mut Edit<'a>,
    mut visit: impl FnMut(&mut Edit<'a>, Met) -> Result<(), EditError>,
) -> Result<(), EditError> {
    let mut scan = Scan::new(edit.geometry, 0..edit.geometry.bat_entries());
    loop {
        let met: Result<_, StorageError> = scan.next(edit.storage);
        match met? {
            Some(met) => visit(edit, met)?,
            None => return Ok(()),
        }
    }
}
