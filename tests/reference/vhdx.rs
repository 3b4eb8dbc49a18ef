//! One VHDX file, by [MS-VHDX]: headers, region table, metadata, block allocation table, sector bitmaps.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::log::Ring;
use super::{Broken, Place, Source, broken, bytes, rule, vector};

const MIB: u64 = 1 << 20;
const KIB_64: u64 = 64 << 10;

pub const FILE_PARAMETERS: &str = "CAA16737-FA36-4D43-B3B6-33F0AA44E76B";
pub const VIRTUAL_DISK_SIZE: &str = "2FA54224-CD1B-4876-B211-5DBED83BF4B8";
pub const VIRTUAL_DISK_ID: &str = "BECA12AB-B2E6-4523-93EF-C309E000C746";
pub const LOGICAL_SECTOR_SIZE: &str = "8141BF1D-A96F-4709-BA47-F233A8FAAB5F";
pub const PHYSICAL_SECTOR_SIZE: &str = "CDA348C7-445D-4471-9CC9-E9885251C556";
pub const PARENT_LOCATOR: &str = "A8D35F2D-B30B-454D-ABF7-D3D84834AB0C";
const LOCATOR_TYPE: &str = "B04AEFB7-D19E-4A81-B789-25B8E9445913";
const REGION_BAT: &str = "2DC27766-F623-4200-9D64-115E9BFD4A08";
const REGION_METADATA: &str = "8B7CA206-4790-4B9A-B8FE-575F050F886E";

pub type Guid = [u8; 16];

/// From the text form, with or without braces, to the order of bytes that Windows stores.
pub fn guid(text: &str) -> Option<Guid> {
    let digits: String = text.trim().trim_start_matches('{').trim_end_matches('}').replace('-', "");
    let value = u128::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 32)?;
    let mut guid = value.to_be_bytes();
    guid[0..4].reverse();
    guid[4..6].reverse();
    guid[6..8].reverse();
    Some(guid)
}

fn known(text: &str) -> Guid {
    guid(text).expect("a constant")
}

/// Section 2.2.2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub sequence: u64,
    pub file_write_guid: Guid,
    pub data_write_guid: Guid,
    pub log_guid: Guid,
    log_version: u16,
    version: u16,
    pub log_len: u64,
    pub log_offset: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    pub guid: Guid,
    pub offset: u64,
    pub len: u64,
    required: bool,
}

/// Section 2.6.1.2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    pub guid: Guid,
    pub user: bool,
    pub virtual_disk: bool,
    pub required: bool,
    pub value: Vec<u8>,
}

pub struct Image {
    /// With its log replayed.
    pub file: Arc<dyn Source>,
    pub header: Header,
    /// Of the two header slots, those that are valid.
    pub valid_headers: usize,
    /// Entries that had to be replayed; none if the log was clean.
    pub entries_replayed: Option<usize>,
    pub regions: Vec<Region>,
    pub items: Vec<Item>,
    pub size_bytes: u64,
    pub block_bytes: u64,
    pub sector_bytes: u64,
    pub leave_blocks_allocated: bool,
    pub has_parent: bool,
    pub virtual_disk_id: Guid,
    pub parent: Vec<(String, String)>,
    /// Payload blocks by state.
    pub states: [u64; 8],
    bat_offset: u64,
}

impl Image {
    pub fn open(source: Arc<dyn Source>) -> Result<Self, Broken> {
        rule!(&bytes::<8>(&*source, 0) == b"vhdxfile", "not a VHDX");
        let (header, valid_headers) = current_header(&*source)?;
        rule!(header.version == 1, "version {}", header.version);
        let aligned = header.log_len.is_multiple_of(MIB) && header.log_offset.is_multiple_of(MIB);
        let log_end = header.log_offset.checked_add(header.log_len);
        let inside = header.log_len > 0 && log_end.is_some_and(|end| end <= source.len_bytes());
        rule!(aligned && inside && header.log_offset >= MIB, "the log is misplaced");
        let (file, entries_replayed): (Arc<dyn Source>, _) = if header.log_guid == [0; 16] {
            (source, None)
        } else {
            rule!(header.log_version == 0, "log version {}", header.log_version);
            let ring = Ring { offset: header.log_offset, len: header.log_len, guid: header.log_guid };
            let (replayed, count) = ring.replay(source)?;
            (Arc::new(replayed), Some(count))
        };
        let regions = regions(&*file)?;
        let place = |text| regions.iter().find(|region| region.guid == known(text)).cloned();
        let (Some(bat), Some(metadata)) = (place(REGION_BAT), place(REGION_METADATA)) else {
            broken!("a required region is missing")
        };
        let items = items(&*file, &metadata)?;
        let mut image = Self {
            file,
            header,
            valid_headers,
            entries_replayed,
            regions,
            items,
            size_bytes: 0,
            block_bytes: 0,
            sector_bytes: 0,
            leave_blocks_allocated: false,
            has_parent: false,
            virtual_disk_id: [0; 16],
            parent: Vec::new(),
            states: [0; 8],
            bat_offset: bat.offset,
        };
        image.interpret_items()?;
        rule!(image.table_entries() * 8 <= bat.len, "the block allocation table is too short");
        image.check_table()?;
        Ok(image)
    }

    fn item<const N: usize>(&self, text: &str) -> Result<[u8; N], Broken> {
        let item = self.items.iter().find(|item| item.guid == known(text) && !item.user);
        match item.map(|item| <[u8; N]>::try_from(item.value.as_slice())) {
            Some(Ok(value)) => Ok(value),
            Some(Err(_)) => broken!("the item {text} has another length"),
            None => broken!("the item {text} is missing"),
        }
    }

    fn interpret_items(&mut self) -> Result<(), Broken> {
        let parameters = self.item::<8>(FILE_PARAMETERS)?;
        self.block_bytes = u64::from(u32::from_le_bytes(parameters[..4].try_into().expect("4 bytes")));
        rule!(self.block_bytes.is_power_of_two(), "a block of {} bytes", self.block_bytes);
        rule!((MIB..=256 * MIB).contains(&self.block_bytes), "a block of {} bytes", self.block_bytes);
        self.leave_blocks_allocated = parameters[4] & 1 != 0;
        self.has_parent = parameters[4] & 2 != 0;
        self.sector_bytes = u64::from(u32::from_le_bytes(self.item(LOGICAL_SECTOR_SIZE)?));
        rule!([512, 4096].contains(&self.sector_bytes), "sectors of {} bytes", self.sector_bytes);
        let physical = u32::from_le_bytes(self.item(PHYSICAL_SECTOR_SIZE)?);
        rule!([512, 4096].contains(&physical), "physical sectors of {physical} bytes");
        self.size_bytes = u64::from_le_bytes(self.item(VIRTUAL_DISK_SIZE)?);
        let whole = self.size_bytes > 0 && self.size_bytes.is_multiple_of(self.sector_bytes);
        rule!(whole && self.size_bytes <= 64 << 40, "a disk of {} bytes", self.size_bytes);
        self.virtual_disk_id = self.item(VIRTUAL_DISK_ID)?;
        if self.has_parent {
            let id = known(PARENT_LOCATOR);
            let Some(locator) = self.items.iter().find(|item| item.guid == id && !item.user) else {
                broken!("the parent locator is missing")
            };
            self.parent = parse_locator(&locator.value)?;
        }
        Ok(())
    }

    pub fn locator(&self, key: &str) -> Option<String> {
        self.parent.iter().find(|pair| pair.0 == key).map(|pair| pair.1.clone())
    }

    /// Section 2.6.2.6.3: the parent's DataWriteGuid is one of the two that the child names.
    pub fn accepts(&self, parent: &Self) -> Result<(), Broken> {
        let named = ["parent_linkage", "parent_linkage2"].map(|key| self.locator(key).and_then(|text| guid(&text)));
        rule!(named[0].is_some(), "the locator has no parent_linkage");
        let identity = parent.header.data_write_guid;
        let same = identity != [0; 16] && named.contains(&Some(identity));
        rule!(same, "the parent is not the one that the child names: {named:02x?}, found {identity:02x?}");
        rule!(parent.sector_bytes == self.sector_bytes, "child and parent have other sectors");
        Ok(())
    }

    /// Blocks of a chunk: 2^23 sectors (section 2.5).
    pub fn chunk_ratio(&self) -> u64 {
        (1 << 23) * self.sector_bytes / self.block_bytes
    }

    pub fn blocks(&self) -> u64 {
        self.size_bytes.div_ceil(self.block_bytes)
    }

    fn table_entries(&self) -> u64 {
        if self.has_parent {
            self.blocks().div_ceil(self.chunk_ratio()) * (self.chunk_ratio() + 1)
        } else {
            self.blocks() + (self.blocks() - 1) / self.chunk_ratio()
        }
    }

    fn word(&self, index: u64) -> (u64, u64) {
        let word = u64::from_le_bytes(bytes(&*self.file, self.bat_offset + 8 * index));
        (word & 7, word >> 20 << 20)
    }

    /// State and offset of a payload block.
    pub fn block(&self, block: u64) -> (u64, u64) {
        self.word(block + block / self.chunk_ratio())
    }

    /// State and offset of a chunk's sector bitmap.
    pub fn bitmap(&self, chunk: u64) -> (u64, u64) {
        self.word((chunk + 1) * (self.chunk_ratio() + 1) - 1)
    }

    /// Every object is behind the first MiB, inside the file, and over no other one.
    fn check_table(&mut self) -> Result<(), Broken> {
        let mut taken = BTreeMap::new();
        let mut take = |name: String, offset: u64, len: u64| {
            rule!(offset >= MIB, "{name} lies in the header section");
            rule!(offset.checked_add(len).is_some(), "{name} has no end");
            let before = taken.range(..offset + len).next_back().map(|(at, (len, name))| (*at + *len, name));
            if let Some((end, other)) = before.filter(|(end, _): &(u64, &String)| *end > offset) {
                broken!("{name} at {offset} overlaps {other}, which ends at {end}");
            }
            taken.insert(offset, (len, name));
            Ok(())
        };
        take("the log".to_owned(), self.header.log_offset, self.header.log_len)?;
        for region in &self.regions {
            take(format!("the region {:02x?}", region.guid), region.offset, region.len)?;
        }
        let (entries, ratio) = (self.table_entries(), self.chunk_ratio());
        let mut partial = None;
        for (index, word) in table_words(&*self.file, self.bat_offset, entries) {
            let (state, offset) = (word & 7, word >> 20 << 20);
            rule!(word & 0xf_fff8 == 0, "entry {index} has reserved bits set");
            let (chunk, within) = (index / (ratio + 1), index % (ratio + 1));
            if within == ratio {
                rule!(state == 0 || state == 6, "bitmap {chunk} has the state {state}");
                rule!(state == 0 || self.has_parent, "bitmap {chunk} is there, but no parent");
                if state == 6 {
                    take(format!("bitmap {chunk}"), offset, MIB)?;
                    rule!(offset + MIB <= self.file.len_bytes(), "bitmap {chunk} is behind the end of the file");
                }
                rule!(state == 6 || partial != Some(chunk), "chunk {chunk} has partial blocks but no bitmap");
                continue;
            }
            let block = chunk * ratio + within;
            if block >= self.blocks() {
                continue;
            }
            self.states[state as usize] += 1;
            rule!(state != 4 && state != 5, "block {block} has the reserved state {state}");
            rule!(state != 7 || self.has_parent, "block {block} is partial, but no parent");
            if state == 7 {
                partial = Some(chunk);
                rule!(self.bitmap(chunk).0 == 6, "chunk {chunk} has partial blocks but no bitmap");
            }
            if state >= 6 {
                take(format!("block {block}"), offset, self.block_bytes)?;
                let visible = self.block_bytes.min(self.size_bytes - block * self.block_bytes);
                rule!(offset + visible <= self.file.len_bytes(), "block {block} is behind the end of the file");
            }
        }
        self.states[0] = self.blocks() - self.states[1..].iter().sum::<u64>();
        Ok(())
    }

    /// Section 2.5.1.1.
    pub fn place(&self, offset: u64) -> (Place, u64) {
        let (block, within) = (offset / self.block_bytes, offset % self.block_bytes);
        let rest = self.block_bytes - within;
        match self.block(block) {
            (0, _) if self.has_parent => (Place::Parent, rest),
            (0..=3, _) => (Place::Zeros, rest),
            (6, at) => (Place::File(at + within), rest),
            (7, at) => {
                // Section 2.5.1.2 and 2.5.2: one bit for each sector of the chunk, the lowest bit first.
                let ratio = self.chunk_ratio();
                let sector = (block % ratio * self.block_bytes + within) / self.sector_bytes;
                let bitmap = self.bitmap(block / ratio).1;
                let bit = |sector: u64| bytes::<1>(&*self.file, bitmap + sector / 8)[0] >> (sector % 8) & 1 == 1;
                let here = bit(sector);
                // As many of the sectors behind it as are in the same place.
                let sectors = rest.div_ceil(self.sector_bytes);
                let run = (1..sectors).find(|next| bit(sector + next) != here).unwrap_or(sectors);
                let place = if here { Place::File(at + within) } else { Place::Parent };
                (place, (run * self.sector_bytes - within % self.sector_bytes).min(rest))
            }
            (state, _) => unreachable!("checked when opened: {state}"),
        }
    }
}

/// The words of the table that are not zero.
fn table_words(file: &dyn Source, offset: u64, entries: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
    const STEP: u64 = 64 << 10;
    (0..entries).step_by(STEP as usize).flat_map(move |first| {
        let bytes = vector(file, offset + 8 * first, 8 * STEP.min(entries - first));
        let words: Vec<(u64, u64)> = if bytes == vec![0; bytes.len()] {
            Vec::new()
        } else {
            let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
            (first..).zip(bytes.chunks(8).map(word)).filter(|(_, word)| *word != 0).collect()
        };
        words
    })
}

fn header(file: &dyn Source, offset: u64) -> Option<(Header, Vec<u8>)> {
    let raw = vector(file, offset, 4096);
    let mut content = raw.clone();
    content[4..8].fill(0);
    let valid = &raw[..4] == b"head" && crc32c::crc32c(&content).to_le_bytes() == raw[4..8];
    let guid = |at: usize| Guid::try_from(&raw[at..at + 16]).expect("16 bytes");
    let header = Header {
        sequence: u64::from_le_bytes(raw[8..16].try_into().expect("8 bytes")),
        file_write_guid: guid(16),
        data_write_guid: guid(32),
        log_guid: guid(48),
        log_version: u16::from_le_bytes([raw[64], raw[65]]),
        version: u16::from_le_bytes([raw[66], raw[67]]),
        log_len: u64::from(u32::from_le_bytes(raw[68..72].try_into().expect("4 bytes"))),
        log_offset: u64::from_le_bytes(raw[72..80].try_into().expect("8 bytes")),
    };
    valid.then_some((header, raw))
}

/// The header that counts, and how many are valid (section 2.2.2).
fn current_header(file: &dyn Source) -> Result<(Header, usize), Broken> {
    match (header(file, KIB_64), header(file, 2 * KIB_64)) {
        (Some((first, _)), None) => Ok((first, 1)),
        (None, Some((second, _))) => Ok((second, 1)),
        (None, None) => broken!("no valid header"),
        (Some((first, _)), Some((second, _))) if first.sequence > second.sequence => Ok((first, 2)),
        (Some((first, _)), Some((second, _))) if first.sequence < second.sequence => Ok((second, 2)),
        // The letter of the specification knows no current header then. Disk2vhd leaves two equal ones.
        (Some((first, a)), Some((_, b))) if a == b => Ok((first, 2)),
        _ => broken!("two headers with one sequence number"),
    }
}

/// Section 2.2.3: the first valid copy.
fn regions(file: &dyn Source) -> Result<Vec<Region>, Broken> {
    for copy in [3 * KIB_64, 4 * KIB_64] {
        let mut raw = vector(file, copy, KIB_64);
        let checksum = u32::from_le_bytes(raw[4..8].try_into().expect("4 bytes"));
        raw[4..8].fill(0);
        if &raw[..4] != b"regi" || crc32c::crc32c(&raw) != checksum {
            continue;
        }
        let count = u32::from_le_bytes(raw[8..12].try_into().expect("4 bytes"));
        rule!(count <= 2047, "{count} regions");
        let mut regions = Vec::new();
        for entry in raw[16..].chunks(32).take(count as usize) {
            let region = Region {
                guid: entry[..16].try_into().expect("16 bytes"),
                offset: u64::from_le_bytes(entry[16..24].try_into().expect("8 bytes")),
                len: u64::from(u32::from_le_bytes(entry[24..28].try_into().expect("4 bytes"))),
                required: entry[28] & 1 == 1,
            };
            let aligned = region.offset.is_multiple_of(MIB) && region.len.is_multiple_of(MIB);
            rule!(aligned && region.len > 0, "a region is not aligned");
            let end = region.offset.checked_add(region.len);
            rule!(end.is_some_and(|end| end <= file.len_bytes()), "a region is behind the end of the file");
            let ours = [REGION_BAT, REGION_METADATA].map(known).contains(&region.guid);
            rule!(ours || !region.required, "an unknown region is required");
            regions.push(region);
        }
        return Ok(regions);
    }
    broken!("no valid region table")
}

/// Section 2.6.1.
fn items(file: &dyn Source, region: &Region) -> Result<Vec<Item>, Broken> {
    let table = vector(file, region.offset, KIB_64);
    rule!(&table[..8] == b"metadata", "no metadata table");
    let count = u16::from_le_bytes([table[10], table[11]]);
    rule!(count <= 2047, "{count} metadata items");
    let mut items = Vec::<Item>::new();
    for entry in table[32..].chunks(32).take(usize::from(count)) {
        let number = |at: usize| u64::from(u32::from_le_bytes(entry[at..at + 4].try_into().expect("4 bytes")));
        let (offset, len) = (number(16), number(20));
        let placed = if len == 0 { offset == 0 } else { offset >= KIB_64 && offset + len <= region.len };
        rule!(placed && len <= MIB, "a metadata item is misplaced");
        let item = Item {
            guid: entry[..16].try_into().expect("16 bytes"),
            user: entry[24] & 1 != 0,
            virtual_disk: entry[24] & 2 != 0,
            required: entry[24] & 4 != 0,
            value: vector(file, region.offset + offset, len),
        };
        let system = [
            FILE_PARAMETERS,
            VIRTUAL_DISK_SIZE,
            VIRTUAL_DISK_ID,
            LOGICAL_SECTOR_SIZE,
            PHYSICAL_SECTOR_SIZE,
            PARENT_LOCATOR,
        ];
        let ours = system.map(known).contains(&item.guid) && !item.user;
        rule!(ours || !item.required, "an unknown metadata item is required");
        let twice = items.iter().any(|other| other.guid == item.guid && other.user == item.user);
        rule!(!twice, "a metadata item is there twice");
        items.push(item);
    }
    Ok(items)
}

/// Section 2.6.2.6.
fn parse_locator(item: &[u8]) -> Result<Vec<(String, String)>, Broken> {
    rule!(item.len() >= 20 && item[..16] == known(LOCATOR_TYPE), "an unknown kind of parent locator");
    let count = usize::from(u16::from_le_bytes([item[18], item[19]]));
    let mut pairs = Vec::<(String, String)>::new();
    for entry in 0..count {
        let Some(entry) = item.get(20 + 12 * entry..32 + 12 * entry) else { broken!("the locator is cut short") };
        let offset = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().expect("4 bytes")) as usize;
        let len = |at: usize| usize::from(u16::from_le_bytes([entry[at], entry[at + 1]]));
        let text = |offset: usize, len: usize| {
            let units: Vec<u16> =
                item.get(offset..offset + len)?.chunks_exact(2).map(|c| u16::from_le_bytes([c[0], c[1]])).collect();
            String::from_utf16(&units).ok()
        };
        let (Some(key), Some(value)) = (text(offset(0), len(8)), text(offset(4), len(10))) else {
            broken!("the locator has a string that is none")
        };
        rule!(len(8) > 0 && len(10) > 0, "the locator has an empty string");
        rule!(!pairs.iter().any(|pair| pair.0 == key), "the locator has {key} twice");
        pairs.push((key, value));
    }
    let paths = ["relative_path", "volume_path", "absolute_win32_path"];
    rule!(pairs.iter().any(|pair| paths.contains(&pair.0.as_str())), "the locator has no path");
    Ok(pairs)
}
