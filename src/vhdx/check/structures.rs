//! Headers, log, region tables and metadata: what has to be understood before the table can be.

use super::{CheckReport, HeaderFacts, ItemFacts, LogFacts, RegionFacts};
use crate::vhdx::error::OpenError;
use crate::vhdx::format::{
    Guid, HEADER_OFFSETS, HEADER_SECTION_LEN, Header, ITEM_PARENT_LOCATOR, LOG_VERSION, METADATA_IS_REQUIRED,
    METADATA_IS_VIRTUAL_DISK, MIB, PAGE, REGION_TABLE_LEN, REGION_TABLE_OFFSETS, RegionTableEntry,
};
use crate::vhdx::header::{header_rules, parse, read_identifier};
use crate::vhdx::locator::ParentLocator;
use crate::vhdx::metadata::{Items, Metadata, metadata_rules};
use crate::vhdx::region::{Place, Span, entries_of, name_of, region_rules};
use crate::vhdx::replay::Overlay;
use crate::vhdx::storage::{Storage, StorageError};

/// A file as far as it could be understood.
pub(super) struct Structures<'a> {
    /// The file, its log replayed.
    pub overlay: Overlay<'a>,
    /// The table's region, where it is sound.
    pub bat: Option<Place>,
    /// Header section, log and regions.
    pub spans: Vec<Span>,
}

/// Check everything but the table. `None` where the file is no VHDX at all.
pub(super) fn check<'a>(
    storage: &'a mut dyn Storage,
    report: &mut CheckReport,
) -> Result<Option<Structures<'a>>, StorageError> {
    report.file_len_bytes = storage.len_bytes()?;
    report.creator = match read_identifier(storage) {
        Ok((_, creator)) => creator,
        Err(error) => {
            settle(report, error)?;
            return Ok(None);
        }
    };
    let header = check_headers(storage, report)?;
    let len_bytes = report.file_len_bytes;
    if !len_bytes.is_multiple_of(MIB) {
        let text = format!("the file has {len_bytes} bytes, which is not whole MiB; some readers refuse such files");
        report.odd("2.1", len_bytes, "file size is not whole MiB", text);
        report.repairs.file_len_bytes = Some(len_bytes.next_multiple_of(MIB));
    }
    let mut spans = vec![Span { start: 0, end: HEADER_SECTION_LEN, name: "the header section".to_owned() }];
    let mut overlay = match header.filter(|header| has_log_place(header, len_bytes)) {
        Some(header) => {
            let (start, len) = (header.log_offset.get(), u64::from(header.log_length.get()));
            spans.push(Span { start, end: start + len, name: "the log".to_owned() });
            replay(storage, &header, report)?
        }
        None => clean(storage)?,
    };
    report.file_len_bytes = overlay.len_bytes()?.max(len_bytes);
    let (bat, metadata) = check_regions(&mut overlay, &mut spans, report)?;
    check_disjoint(&mut spans, report);
    if let Some(metadata) = metadata {
        check_metadata(&mut overlay, metadata, bat.map_or(0, |bat| bat.offset_bytes), report)?;
    }
    Ok(Some(Structures { overlay, bat, spans }))
}

/// A broken rule is a finding, a failure of the storage is an error.
fn settle(report: &mut CheckReport, error: OpenError) -> Result<(), StorageError> {
    match error {
        OpenError::Storage(error @ (StorageError::Failed(_) | StorageError::OutOfSpace)) => Err(error),
        error => {
            report.broken(&error);
            Ok(())
        }
    }
}

fn clean(storage: &mut dyn Storage) -> Result<Overlay<'_>, StorageError> {
    Overlay::clean(storage).map_err(storage_error)
}

fn storage_error(error: OpenError) -> StorageError {
    match error {
        OpenError::Storage(error) => error,
        other => StorageError::Failed(other.to_string()),
    }
}

fn has_log_place(header: &Header, file_len_bytes: u64) -> bool {
    let mut sound = true;
    header_rules(header, file_len_bytes, &mut |error| sound &= !matches!(error, OpenError::LogPlace { .. }));
    sound
}

/// The header to go on with.
fn check_headers(storage: &mut dyn Storage, report: &mut CheckReport) -> Result<Option<Header>, StorageError> {
    let mut pages = [[0; PAGE]; 2];
    for (page, offset_bytes) in pages.iter_mut().zip(HEADER_OFFSETS) {
        storage.read_at(offset_bytes, page)?;
    }
    let headers = pages.each_ref().map(parse);
    report.headers = headers.map(|header| header.as_ref().map(facts_of));
    let current = match headers {
        [None, None] => {
            report.broken(&OpenError::NoValidHeader);
            return Ok(None);
        }
        [Some(_), None] => 0,
        [None, Some(_)] => 1,
        [Some(a), Some(b)] if a.sequence_number == b.sequence_number => {
            let sequence_number = a.sequence_number.get();
            if pages[0] == pages[1] {
                let text = format!("both headers carry sequence number {sequence_number} and are alike");
                report.note("2.2.2", HEADER_OFFSETS[0], "headers are twins", text);
                report.repairs.headers = true;
            } else {
                report.broken(&OpenError::HeadersAmbiguous { sequence_number });
            }
            0
        }
        [Some(a), Some(b)] => usize::from(b.sequence_number.get() > a.sequence_number.get()),
    };
    report.current_header = Some(current);
    let other = current ^ 1;
    match headers[other] {
        None => {
            let text = format!("header {} has no valid signature and checksum; the other one is used", other + 1);
            report.odd("2.2.2", HEADER_OFFSETS[other], "a header is not valid", text);
            report.repairs.headers = true;
        }
        Some(header) => header_rules(&header, report.file_len_bytes, &mut |error| {
            let text = format!("header {}, which is not the current one: {error}", other + 1);
            report.odd("2.2.2", HEADER_OFFSETS[other], "the older header is not usable", text);
            report.repairs.headers = true;
        }),
    }
    let header = headers[current];
    if let Some(header) = &header {
        header_rules(header, report.file_len_bytes, &mut |error| report.broken(&error));
        check_identities(&headers, report);
    }
    Ok(header)
}

fn check_identities(headers: &[Option<Header>; 2], report: &mut CheckReport) {
    if let [Some(a), Some(b)] = headers
        && a.data_write_guid != b.data_write_guid
    {
        let text = "the headers have different DataWriteGuids: children that refer to this file may lose it".to_owned();
        report.note("2.2.2", HEADER_OFFSETS[0] + 32, "the DataWriteGuids of the headers differ", text);
    }
    if report.header().is_some_and(|header| header.data_write_guid == Guid::ZERO) {
        let text = "DataWriteGuid is zero: no child can refer to this file".to_owned();
        report.odd("2.2.2", HEADER_OFFSETS[report.current_header.unwrap_or(0)] + 32, "DataWriteGuid is zero", text);
    }
}

fn facts_of(header: &Header) -> HeaderFacts {
    HeaderFacts {
        sequence_number: header.sequence_number.get(),
        file_write_guid: header.file_write_guid,
        data_write_guid: header.data_write_guid,
        log_guid: header.log_guid,
        log_offset_bytes: header.log_offset.get(),
        log_len_bytes: u64::from(header.log_length.get()),
    }
}

/// The file with its log replayed in memory, or as it is where that is not possible.
fn replay<'a>(
    storage: &'a mut dyn Storage,
    header: &Header,
    report: &mut CheckReport,
) -> Result<Overlay<'a>, StorageError> {
    if header.log_guid == Guid::ZERO {
        return clean(storage);
    }
    report.log = LogFacts::Broken;
    if header.log_version.get() != LOG_VERSION {
        return clean(storage); // The header's rules have said so.
    }
    let start = header.log_offset.get();
    let log = start..start + u64::from(header.log_length.get());
    if let Err(error) = Overlay::replayed(&mut *storage, log.clone(), header.log_guid) {
        settle(report, error)?;
        return clean(storage);
    }
    let overlay = Overlay::replayed(storage, log, header.log_guid).map_err(storage_error)?;
    report.log = overlay.summary.map_or(LogFacts::Empty, LogFacts::Pending);
    if let Some(summary) = overlay.summary {
        let text = format!(
            "the log holds {} entries with {} changes that the next writable open applies",
            summary.entries, summary.descriptors
        );
        report.note("2.3.3", start, "the log is not empty", text);
    }
    Ok(overlay)
}

/// The places of the table and of the metadata.
fn check_regions(
    overlay: &mut Overlay<'_>,
    spans: &mut Vec<Span>,
    report: &mut CheckReport,
) -> Result<(Option<Place>, Option<Place>), StorageError> {
    let mut tables = [const { Vec::new() }; 2];
    for (table, offset_bytes) in tables.iter_mut().zip(REGION_TABLE_OFFSETS) {
        *table = vec![0; REGION_TABLE_LEN];
        overlay.read_at(offset_bytes, table)?;
    }
    let mut lost = |copy: usize, rule: &str| {
        let text = format!("region table {} is not valid: {rule}; the other one is used", copy + 1);
        report.odd("2.2.3", REGION_TABLE_OFFSETS[copy], "a region table is not valid", text);
        report.repairs.region_table = Some(copy);
    };
    let entries = match (entries_of(&tables[0]), entries_of(&tables[1])) {
        (Ok(entries), Ok(_)) => {
            if tables[0] != tables[1] {
                lost(1, "it differs from the first");
            }
            entries
        }
        (Ok(entries), Err(rule)) => {
            lost(1, rule);
            entries
        }
        (Err(rule), Ok(entries)) => {
            lost(0, rule);
            entries
        }
        (Err(rule), Err(_)) => {
            report.broken(&OpenError::NoValidRegionTable { rule });
            return Ok((None, None));
        }
    };
    report.regions = entries.iter().map(region_facts).collect();
    let len_bytes = overlay.len_bytes()?;
    let mut found = region_rules(&entries, len_bytes, &mut |error| report.broken(&error));
    spans.append(&mut found.spans);
    for (guid, name) in [
        (crate::vhdx::format::REGION_BAT, "block allocation table"),
        (crate::vhdx::format::REGION_METADATA, "metadata"),
    ] {
        if !entries.iter().any(|entry| entry.guid == guid) {
            report.broken(&OpenError::RegionMissing { name });
        }
    }
    Ok((found.bat, found.metadata))
}

fn region_facts(entry: &RegionTableEntry) -> RegionFacts {
    RegionFacts {
        guid: entry.guid,
        name: name_of(entry.guid),
        offset_bytes: entry.file_offset.get(),
        len_bytes: u64::from(entry.length.get()),
        required: entry.required.get() & 1 != 0,
    }
}

fn check_disjoint(spans: &mut [Span], report: &mut CheckReport) {
    spans.sort_by_key(|span| span.start);
    let mut reaches = 0;
    for at in 1..spans.len() {
        if spans[at - 1].end > spans[reaches].end {
            reaches = at - 1;
        }
        if spans[at].start < spans[reaches].end {
            let (first, second) = (spans[reaches].name.clone(), spans[at].name.clone());
            report.broken(&OpenError::Overlap { first, second, offset_bytes: spans[at].start });
        }
    }
}

fn check_metadata(
    overlay: &mut Overlay<'_>,
    region: Place,
    bat_offset_bytes: u64,
    report: &mut CheckReport,
) -> Result<(), StorageError> {
    let metadata = metadata_rules(overlay, region, bat_offset_bytes, &mut |error| report.broken(&error))?;
    let items = Items::read(overlay, region, &mut |_| ())?.map(|items| items.items).unwrap_or_default();
    report.items = items
        .iter()
        .map(|item| ItemFacts {
            id: item.id,
            is_user: item.is_user(),
            is_virtual_disk: item.flags & METADATA_IS_VIRTUAL_DISK != 0,
            is_required: item.flags & METADATA_IS_REQUIRED != 0,
            offset_bytes: region.offset_bytes + item.offset_bytes,
            len_bytes: item.len_bytes,
        })
        .collect();
    let Some(Metadata { geometry, virtual_disk_id, parent, .. }) = metadata else {
        return Ok(());
    };
    let locator = report.items.iter().find(|item| item.id == ITEM_PARENT_LOCATOR && !item.is_user).copied();
    if let Some(locator) = locator.filter(|_| !geometry.has_parent) {
        let text = "there is a parent locator, and HasParent is not set: it means nothing".to_owned();
        report.odd("2.6.2.6", locator.offset_bytes, "a locator without a parent", text);
    }
    if let (Some(parent), Some(locator)) = (&parent, locator) {
        check_locator(parent, locator.offset_bytes, report);
    }
    if geometry.physical_sector_bytes < geometry.logical_sector_bytes {
        let text = "the physical sector is smaller than the logical one".to_owned();
        report.odd("2.6.2.5", region.offset_bytes, "physical sector below the logical", text);
    }
    (report.geometry, report.virtual_disk_id, report.parent) = (Some(geometry), virtual_disk_id, parent);
    Ok(())
}

fn check_locator(parent: &ParentLocator, offset_bytes: u64, report: &mut CheckReport) {
    if let ParentLocator::Vhdx(parent) = parent {
        if parent.linkage == Guid::ZERO {
            let text = "parent_linkage is zero: no file can be this disk's parent".to_owned();
            report.odd("2.6.2.6.3", offset_bytes, "parent_linkage is zero", text);
        }
        if [&parent.relative_path, &parent.volume_path, &parent.absolute_win32_path].iter().all(|path| path.is_none()) {
            let text = "the parent locator has no path: the parent must be named when the disk is opened".to_owned();
            report.odd("2.6.2.6.3", offset_bytes, "a locator without a path", text);
        }
    }
}
