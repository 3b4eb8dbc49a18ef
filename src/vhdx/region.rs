//! The region table (section 2.2.3), and the rule that no two objects of the file share a byte (section 2.1).

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::error::{OpenError, first};
use super::format::{
    Guid, MIB, REGION_BAT, REGION_METADATA, REGION_TABLE_LEN, REGION_TABLE_MAGIC, REGION_TABLE_OFFSETS, REGIONS_MAX,
    RegionTableEntry, RegionTableHeader,
};
use super::header::checksum_is_right;
use super::open::Warning;
use super::storage::Storage;

/// One object of the file: bytes `start .. end`.
#[derive(Clone, Debug)]
pub(super) struct Span {
    pub start: u64,
    pub end: u64,
    pub name: String,
}

/// Where a region is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub offset_bytes: u64,
    pub len_bytes: u64,
}

/// The regions that we know, and every region as an occupied span.
#[derive(Clone, Debug)]
pub(super) struct Regions {
    pub bat: Place,
    pub metadata: Place,
    pub spans: Vec<Span>,
    /// The copy of the table that is not valid, and what belongs there.
    pub repair: Option<TableRepair>,
}

/// A copy of the region table that a write session writes anew.
#[derive(Clone, Debug)]
pub(super) struct TableRepair {
    pub offset_bytes: u64,
    pub table: Vec<u8>,
}

impl TableRepair {
    /// Whether the first copy is the one that is not valid.
    pub fn is_first(&self) -> bool {
        self.offset_bytes == REGION_TABLE_OFFSETS[0]
    }
}

/// The entries of a copy with the right signature and checksum, or why it is not valid.
pub(super) fn entries_of(table: &[u8]) -> Result<Vec<RegionTableEntry>, &'static str> {
    let Ok((header, rest)) = RegionTableHeader::read_from_prefix(table) else {
        return Err("it is too short");
    };
    if header.signature != REGION_TABLE_MAGIC {
        return Err("its signature is not 'regi'");
    }
    if !checksum_is_right(table) {
        return Err("its checksum is wrong");
    }
    let count = header.entry_count.get() as usize;
    if count > REGIONS_MAX {
        return Err("it claims more than 2047 entries");
    }
    match <[RegionTableEntry]>::ref_from_prefix_with_elems(rest, count) {
        Ok((entries, _)) => Ok(entries.to_vec()),
        Err(_) => Err("its entries pass its end"),
    }
}

/// Read the region table: the first copy, or the second where the first is not valid.
pub(super) fn read_regions(storage: &mut dyn Storage, warnings: &mut Vec<Warning>) -> Result<Regions, OpenError> {
    let mut tables = [const { Vec::new() }; 2];
    for (table, offset_bytes) in tables.iter_mut().zip(REGION_TABLE_OFFSETS) {
        *table = vec![0; REGION_TABLE_LEN];
        storage.read_at(offset_bytes, table)?;
    }
    let (entries, invalid) = match (entries_of(&tables[0]), entries_of(&tables[1])) {
        (Ok(entries), Ok(_)) => (entries, None),
        (Ok(entries), Err(_)) => (entries, Some(1)),
        (Err(_), Ok(entries)) => (entries, Some(0)),
        (Err(rule), Err(_)) => return Err(OpenError::NoValidRegionTable { rule }),
    };
    let repair = invalid.map(|invalid| {
        warnings.push(Warning::RegionTableCopyInvalid { copy: invalid as u8 + 1 });
        TableRepair { offset_bytes: REGION_TABLE_OFFSETS[invalid], table: std::mem::take(&mut tables[invalid ^ 1]) }
    });
    Ok(Regions { repair, ..check(&entries, storage.len_bytes()?)? })
}

fn check(entries: &[RegionTableEntry], file_len_bytes: u64) -> Result<Regions, OpenError> {
    let found = first(|report| region_rules(entries, file_len_bytes, report))?;
    let bat = found.bat.ok_or(OpenError::RegionMissing { name: "block allocation table" })?;
    let metadata = found.metadata.ok_or(OpenError::RegionMissing { name: "metadata" })?;
    Ok(Regions { bat, metadata, spans: found.spans, repair: None })
}

/// The regions that keep the rules.
#[derive(Debug, Default)]
pub(super) struct FoundRegions {
    pub bat: Option<Place>,
    pub metadata: Option<Place>,
    pub spans: Vec<Span>,
}

/// Every rule of section 2.2.3.2, for each entry of a valid table.
pub(super) fn region_rules(
    entries: &[RegionTableEntry],
    file_len_bytes: u64,
    report: &mut dyn FnMut(OpenError),
) -> FoundRegions {
    let mut found = FoundRegions::default();
    for (at, entry) in entries.iter().enumerate() {
        let (guid, offset_bytes, len_bytes) = (entry.guid, entry.file_offset.get(), u64::from(entry.length.get()));
        let mut sound = true;
        let mut broken = |rule| {
            sound = false;
            report(OpenError::Region { guid, offset_bytes, len_bytes, rule });
        };
        if entries[..at].iter().any(|earlier| earlier.guid == guid) {
            broken("it is listed twice");
        }
        if offset_bytes < MIB || !offset_bytes.is_multiple_of(MIB) {
            broken("it must start at a whole MiB behind the first");
        }
        if len_bytes == 0 || !len_bytes.is_multiple_of(MIB) {
            broken("its length must be whole MiB");
        }
        let end = offset_bytes.saturating_add(len_bytes);
        if end > file_len_bytes {
            broken("it passes the end of the file");
        }
        if !sound {
            continue;
        }
        let place = Place { offset_bytes, len_bytes };
        match guid {
            REGION_BAT => found.bat = Some(place),
            REGION_METADATA => found.metadata = Some(place),
            _ if entry.required.get() & 1 != 0 => report(OpenError::RegionUnknown { guid }),
            _ => {}
        }
        found.spans.push(Span { start: offset_bytes, end, name: name_of(guid) });
    }
    found
}

pub(super) fn name_of(guid: Guid) -> String {
    match guid {
        REGION_BAT => "the block allocation table".to_owned(),
        REGION_METADATA => "the metadata region".to_owned(),
        _ => format!("region {guid}"),
    }
}

/// Sort the spans and refuse two that share a byte.
pub(super) fn sort_disjoint(spans: &mut [Span]) -> Result<(), OpenError> {
    spans.sort_by_key(|span| span.start);
    for pair in spans.windows(2) {
        if pair[1].start < pair[0].end {
            return Err(OpenError::Overlap {
                first: pair[0].name.clone(),
                second: pair[1].name.clone(),
                offset_bytes: pair[1].start,
            });
        }
    }
    Ok(())
}

/// A region table as written, checksum included.
pub(super) fn table_of(bat: Place, metadata: Place) -> Vec<u8> {
    let mut table = vec![0; REGION_TABLE_LEN];
    let header = RegionTableHeader {
        signature: REGION_TABLE_MAGIC,
        checksum: U32::ZERO,
        entry_count: U32::new(2),
        reserved: U32::ZERO,
    };
    table[..16].copy_from_slice(header.as_bytes());
    for (at, (guid, place)) in [(REGION_BAT, bat), (REGION_METADATA, metadata)].into_iter().enumerate() {
        let entry = RegionTableEntry {
            guid,
            file_offset: U64::new(place.offset_bytes),
            length: U32::new(u32::try_from(place.len_bytes).expect("regions of a new disk are below 4 GiB")),
            required: U32::new(1),
        };
        table[16 + 32 * at..][..32].copy_from_slice(entry.as_bytes());
    }
    let checksum = crate::crc32c::crc32c(&table);
    table[4..8].copy_from_slice(&checksum.to_le_bytes());
    table
}

/// A region table, valid as given, with another place for a region that it has.
pub(super) fn with_region(table: &[u8], guid: Guid, place: Place) -> Vec<u8> {
    let mut table = table.to_vec();
    for slot in table[16..].as_chunks_mut::<32>().0.iter_mut().filter(|slot| slot[..16] == guid.0) {
        slot[16..24].copy_from_slice(&place.offset_bytes.to_le_bytes());
        let len = u32::try_from(place.len_bytes).expect("regions that are moved are below 4 GiB");
        slot[24..28].copy_from_slice(&len.to_le_bytes());
    }
    table[4..8].fill(0);
    let checksum = crate::crc32c::crc32c(&table);
    table[4..8].copy_from_slice(&checksum.to_le_bytes());
    table
}
