//! Files made here, field by field from the specifications and by no code of `src/`, together with what is on them.
//! They reach what no program at hand writes: differencing disks of every shape, sectors of 4096 bytes, anchors,
//! regions in any order, and logs of any legal shape.

use std::collections::BTreeMap;

use crate::reference::vhdx::{self, Guid};
use crate::vhdx_support::{MIB, Random, SparseFile};

const KIB_64: u64 = 64 << 10;

/// What a disk holds: one value for each sector, which fills it; 0 is a sector of zeros.
pub type Content = Vec<u64>;

/// The bytes of some sectors.
pub fn bytes_of(values: &[u64], sector_bytes: u64) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes().repeat(sector_bytes as usize / 8)).collect()
}

/// A GUID as Windows writes it.
pub fn guid_text(guid: &Guid) -> String {
    let mut ordered = *guid;
    ordered[0..4].reverse();
    ordered[4..6].reverse();
    ordered[6..8].reverse();
    let digits: String = ordered.iter().map(|byte| format!("{byte:02X}")).collect();
    format!("{{{}-{}-{}-{}-{}}}", &digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..])
}

fn random_guid(random: &mut Random) -> Guid {
    let mut guid = [0; 16];
    guid[..8].copy_from_slice(&(random.next() | 1).to_le_bytes());
    guid[8..].copy_from_slice(&random.next().to_le_bytes());
    guid
}

#[derive(Clone)]
pub struct Recipe {
    pub size_bytes: u64,
    pub block_bytes: u64,
    pub sector_bytes: u64,
    pub physical_bytes: u64,
    pub fixed: bool,
    /// DataWriteGuid and file name of the parent.
    pub parent: Option<(Guid, String)>,
}

impl Recipe {
    pub fn dynamic(size_bytes: u64, block_bytes: u64, sector_bytes: u64) -> Self {
        Self { size_bytes, block_bytes, sector_bytes, physical_bytes: 4096, fixed: false, parent: None }
    }

    pub fn sectors(&self) -> u64 {
        self.size_bytes / self.sector_bytes
    }

    fn blocks(&self) -> u64 {
        self.size_bytes.div_ceil(self.block_bytes)
    }

    fn chunk_ratio(&self) -> u64 {
        (1 << 23) * self.sector_bytes / self.block_bytes
    }
}

/// A VHDX in the making.
pub struct Made {
    pub file: SparseFile,
    pub recipe: Recipe,
    pub data_write_guid: Guid,
    pub log: u64,
    pub bat: u64,
    bitmaps: BTreeMap<u64, u64>,
    random: Random,
}

impl Made {
    /// A file with no block.
    pub fn new(recipe: Recipe, seed: u64) -> Self {
        let mut random = Random(seed);
        let chunks = recipe.blocks().div_ceil(recipe.chunk_ratio());
        let bat_len = (chunks * (recipe.chunk_ratio() + 1) * 8).next_multiple_of(MIB);
        // The log, the metadata and the table, in any order.
        let mut order = [(0, MIB), (1, MIB), (2, bat_len)];
        order.rotate_left(random.below(3) as usize);
        let (mut next, mut places) = (MIB, [0; 3]);
        for (which, len) in order {
            places[which] = next;
            next += len;
        }
        let [log, metadata, bat] = places;
        let data_write_guid = random_guid(&mut random);
        let mut made =
            Self { file: SparseFile::default(), recipe, data_write_guid, log, bat, bitmaps: BTreeMap::new(), random };
        made.file.set_len(next);
        made.file.write(0, b"vhdxfile");
        made.file.write(8, &utf16("made from the specification"));
        made.headers([0; 16]);
        let regions = [
            (bat, bat_len, "2DC27766-F623-4200-9D64-115E9BFD4A08"),
            (metadata, MIB, "8B7CA206-4790-4B9A-B8FE-575F050F886E"),
        ];
        let mut table = [&b"regi"[..], &[0; 4], &2u32.to_le_bytes(), &[0; 4]].concat();
        for (offset, len, id) in regions {
            table.extend(vhdx::guid(id).expect("a constant"));
            table.extend(offset.to_le_bytes());
            table.extend((len as u32).to_le_bytes());
            table.extend(1u32.to_le_bytes());
        }
        seal(&mut table, KIB_64 as usize);
        made.file.write(3 * KIB_64, &table);
        made.file.write(4 * KIB_64, &table);
        made.metadata(metadata);
        made
    }

    /// Both headers; the second is the newer one.
    pub fn headers(&mut self, log_guid: Guid) {
        for (sequence, at) in [(70u64, KIB_64), (71, 2 * KIB_64)] {
            let mut header = [&b"head"[..], &[0; 4], &sequence.to_le_bytes(), &random_guid(&mut self.random)].concat();
            header.extend(self.data_write_guid);
            header.extend(log_guid);
            header.extend([0, 0, 1, 0]);
            header.extend((MIB as u32).to_le_bytes());
            header.extend(self.log.to_le_bytes());
            seal(&mut header, 4096);
            self.file.write(at, &header);
        }
    }

    fn metadata(&mut self, at: u64) {
        let recipe = self.recipe.clone();
        let flags = u32::from(recipe.fixed) | u32::from(recipe.parent.is_some()) << 1;
        let parameters = [(recipe.block_bytes as u32).to_le_bytes(), flags.to_le_bytes()].concat();
        let mut items = vec![
            (vhdx::FILE_PARAMETERS, 4u32, parameters),
            (vhdx::VIRTUAL_DISK_SIZE, 6, recipe.size_bytes.to_le_bytes().to_vec()),
            (vhdx::VIRTUAL_DISK_ID, 6, random_guid(&mut self.random).to_vec()),
            (vhdx::LOGICAL_SECTOR_SIZE, 6, (recipe.sector_bytes as u32).to_le_bytes().to_vec()),
            (vhdx::PHYSICAL_SECTOR_SIZE, 6, (recipe.physical_bytes as u32).to_le_bytes().to_vec()),
        ];
        if let Some((linkage, name)) = &recipe.parent {
            let pairs = [
                ("parent_linkage", guid_text(linkage)),
                ("parent_linkage2", "{00000000-0000-0000-0000-000000000000}".to_owned()),
                ("relative_path", format!(".\\{name}")),
                ("absolute_win32_path", format!("X:\\nowhere\\{name}")),
            ];
            items.push((vhdx::PARENT_LOCATOR, 4, locator(&pairs)));
        }
        let mut table = [&b"metadata"[..], &[0; 2], &(items.len() as u16).to_le_bytes(), &[0; 20]].concat();
        // Items need no alignment.
        let mut offset = KIB_64 + self.random.below(9);
        for (id, flags, value) in items {
            table.extend(vhdx::guid(id).expect("a constant"));
            table.extend((offset as u32).to_le_bytes());
            table.extend((value.len() as u32).to_le_bytes());
            table.extend(flags.to_le_bytes());
            table.extend([0; 4]);
            self.file.write(at + offset, &value);
            offset += value.len() as u64;
        }
        self.file.write(at, &table);
    }

    /// Space at the end of the file, full of what was there before.
    fn space(&mut self, len: u64) -> u64 {
        let at = self.file.len.next_multiple_of(MIB);
        self.file.set_len(at + len);
        at
    }

    fn set_word(&mut self, index: u64, state: u64, offset: u64) {
        self.file.write(self.bat + 8 * index, &(offset | state).to_le_bytes());
    }

    /// A block's state, with an offset if it has one.
    pub fn state(&mut self, block: u64, state: u64, offset: u64) {
        self.set_word(block + block / self.recipe.chunk_ratio(), state, offset);
    }

    /// A block that holds all its sectors.
    pub fn full(&mut self, block: u64, values: &[u64]) {
        let at = self.space(self.recipe.block_bytes);
        self.file.write(at, &bytes_of(values, self.recipe.sector_bytes));
        self.state(block, 6, at);
        // Bits of a full block mean nothing.
        if self.recipe.parent.is_some() && self.random.below(2) == 0 {
            let noise: Vec<bool> = values.iter().map(|_| self.random.below(2) == 0).collect();
            self.bits(block, &noise);
        }
    }

    /// A block that holds some of its sectors; what lies in the places of the others means nothing.
    pub fn partial(&mut self, block: u64, values: &[Option<u64>]) {
        let at = self.space(self.recipe.block_bytes);
        let noise = self.random.next();
        let stored: Vec<u64> = values.iter().map(|value| value.unwrap_or(noise)).collect();
        self.file.write(at, &bytes_of(&stored, self.recipe.sector_bytes));
        self.state(block, 7, at);
        let bits: Vec<bool> = values.iter().map(Option::is_some).collect();
        self.bits(block, &bits);
    }

    fn bits(&mut self, block: u64, bits: &[bool]) {
        let ratio = self.recipe.chunk_ratio();
        let chunk = block / ratio;
        let bitmap = match self.bitmaps.get(&chunk) {
            Some(at) => *at,
            None => {
                let at = self.space(MIB);
                self.set_word((chunk + 1) * (ratio + 1) - 1, 6, at);
                self.bitmaps.insert(chunk, at);
                at
            }
        };
        let first = block % ratio * (self.recipe.block_bytes / self.recipe.sector_bytes);
        let packed: Vec<u8> = bits
            .chunks(8)
            .map(|byte| byte.iter().enumerate().fold(0, |packed, (bit, set)| packed | u8::from(*set) << bit))
            .collect();
        self.file.write(bitmap + first / 8, &packed);
    }
}

/// A disk whose blocks have all the states that they may have, over what its parent holds.
pub fn random_disk(recipe: Recipe, below: Option<&Content>, seed: u64) -> (Made, Content) {
    let mut made = Made::new(recipe.clone(), seed);
    let mut random = Random(seed ^ 0x5eed);
    let per_block = recipe.block_bytes / recipe.sector_bytes;
    let mut content = below.cloned().unwrap_or_default();
    content.resize(recipe.sectors() as usize, 0);
    let mut order: Vec<u64> = (0..recipe.blocks()).collect();
    for at in 0..order.len() {
        let with = at as u64 + random.below((order.len() - at) as u64);
        order.swap(at, with as usize);
    }
    for block in order {
        let range = (block * per_block) as usize..((block + 1) * per_block).min(recipe.sectors()) as usize;
        let here = &mut content[range];
        let states: &[u64] = if below.is_some() { &[0, 1, 2, 3, 6, 7, 7, 7] } else { &[0, 1, 2, 3, 6, 6] };
        match states[random.below(states.len() as u64) as usize] {
            0 => {}
            state @ 1..=3 => {
                here.fill(0);
                made.state(block, state, 0);
            }
            6 => {
                here.iter_mut().for_each(|value| *value = random.next() * random.below(2));
                made.full(block, here);
            }
            _ => {
                // Runs of sectors, from single ones to hundreds.
                let (mut set, mut left) = (false, 0);
                let mut values: Vec<Option<u64>> = Vec::new();
                for value in here.iter_mut() {
                    if left == 0 {
                        (set, left) = (!set, 1 << random.below(9));
                    }
                    left -= 1;
                    let new = random.next() * random.below(3).min(1);
                    values.push(set.then_some(new));
                    *value = if set { new } else { *value };
                }
                made.partial(block, &values);
            }
        }
    }
    (made, content)
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

fn locator(pairs: &[(&str, String)]) -> Vec<u8> {
    let mut head = vhdx::guid("B04AEFB7-D19E-4A81-B789-25B8E9445913").expect("a constant").to_vec();
    head.extend([0, 0]);
    head.extend((pairs.len() as u16).to_le_bytes());
    let (mut strings, base) = (Vec::new(), 20 + 12 * pairs.len());
    for (key, value) in pairs {
        let (key, value) = (utf16(key), utf16(value));
        head.extend(((base + strings.len()) as u32).to_le_bytes());
        head.extend(((base + strings.len() + key.len()) as u32).to_le_bytes());
        head.extend((key.len() as u16).to_le_bytes());
        head.extend((value.len() as u16).to_le_bytes());
        strings.extend(key);
        strings.extend(value);
    }
    head.extend(strings);
    head
}

/// Pad a structure and set its checksum, which is at its fifth byte.
pub fn seal(structure: &mut Vec<u8>, len: usize) {
    structure.resize(len, 0);
    structure[4..8].fill(0);
    let checksum = crc32c::crc32c(structure);
    structure[4..8].copy_from_slice(&checksum.to_le_bytes());
}

/// What an entry does to one place of the file.
pub enum Change {
    Page(Vec<u8>),
    /// So many bytes of zeros.
    Zeros(u64),
}

/// By offset in the file.
type Changes = Vec<(u64, Change)>;

/// One entry of a log.
pub struct Entry {
    pub guid: Guid,
    pub sequence: u64,
    pub tail: u64,
    pub flushed_file_offset: u64,
    pub last_file_offset: u64,
    pub changes: Changes,
}

impl Entry {
    pub fn encode(&self) -> Vec<u8> {
        let mut head = [&b"loge"[..], &[0; 8], &(self.tail as u32).to_le_bytes()].concat();
        head.extend(self.sequence.to_le_bytes());
        head.extend((self.changes.len() as u32).to_le_bytes());
        head.extend([0; 4]);
        head.extend(self.guid);
        head.extend(self.flushed_file_offset.to_le_bytes());
        head.extend(self.last_file_offset.to_le_bytes());
        let mut sectors = Vec::new();
        for (offset, change) in &self.changes {
            match change {
                Change::Page(page) => {
                    head.extend([&b"desc"[..], &page[4092..], &page[..8]].concat());
                    let (high, low) = ((self.sequence >> 32) as u32, self.sequence as u32);
                    sectors.extend([&b"data"[..], &high.to_le_bytes(), &page[8..4092], &low.to_le_bytes()].concat());
                }
                Change::Zeros(len) => head.extend([&b"zero"[..], &[0; 4], &len.to_le_bytes()].concat()),
            }
            head.extend(offset.to_le_bytes());
            head.extend(self.sequence.to_le_bytes());
        }
        head.resize(head.len().next_multiple_of(4096), 0);
        head.extend(sectors);
        let len = head.len();
        head[8..12].copy_from_slice(&(len as u32).to_le_bytes());
        seal(&mut head, len);
        head
    }
}

impl Made {
    /// Put an encoded entry into the ring, over its end if need be.
    fn put(&mut self, position: u64, encoded: &[u8]) {
        for (at, sector) in encoded.chunks(4096).enumerate() {
            self.file.write(self.log + (position + 4096 * at as u64) % MIB, sector);
        }
    }

    fn page(&self, offset: u64) -> Vec<u8> {
        let mut page = vec![0; 4096];
        self.file.read(offset, &mut page);
        page
    }

    /// Take pages of the table and of the bitmaps out of the file and into a log, among all that may lie in a ring:
    /// entries that were applied before and must not be again, older runs, runs without an end, entries of other
    /// logs, and a torn one behind the head. What replay makes of the file is what it was before.
    pub fn move_to_log(&mut self, seed: u64) {
        let mut random = Random(seed);
        let (guid, len) = (random_guid(&mut random), self.file.len);
        let table_len = (self.recipe.blocks() + self.recipe.blocks() / self.recipe.chunk_ratio() + 1) * 8;
        let mut pages: Vec<u64> = (0..table_len.div_ceil(4096)).map(|page| self.bat + 4096 * page).collect();
        pages.extend(self.bitmaps.values().flat_map(|at| (0..256).step_by(37).map(move |page| at + 4096 * page)));
        // The same pages several times over: only what was written last counts.
        let many = random.below(6) == 0;
        let count = 1 + random.below(6);
        let mut entries: Vec<Changes> = Vec::new();
        for number in 0..count {
            let last = number + 1 == count;
            let mut changes = Vec::new();
            for page in &pages {
                let truth = self.page(*page);
                if last && truth == [0; 4096] {
                    changes.push((*page, Change::Zeros(4096)));
                } else if last {
                    changes.push((*page, Change::Page(truth)));
                } else if random.below(2) == 0 {
                    changes.push((*page, Change::Page(random.next().to_le_bytes().repeat(512))));
                } else if random.below(4) == 0 {
                    changes.push((*page, Change::Zeros(4096)));
                }
            }
            if last && many {
                // More descriptors than the first sector of an entry holds.
                changes.splice(0..0, (0..130).map(|_| (pages[0], Change::Zeros(4096))));
            }
            entries.push(changes);
        }
        // What was applied long ago, and is wrong by now.
        let applied = random.below(3);
        for _ in 0..applied {
            entries.insert(0, vec![(KIB_64 * 3, Change::Page(vec![0xbb; 4096])), (self.bat, Change::Zeros(4096))]);
        }
        for page in &pages {
            self.file.write(*page, &random.next().to_le_bytes().repeat(512));
        }
        self.write_ring(&mut random, guid, len, entries, applied as usize);
        self.headers(guid);
    }

    fn write_ring(&mut self, random: &mut Random, guid: Guid, len: u64, entries: Vec<Changes>, tail_index: usize) {
        let first_sequence = 1000 + (random.next() >> 8);
        let start = 4096 * random.below(256);
        let (mut position, mut tail) = (start, start);
        for (number, changes) in entries.into_iter().enumerate() {
            if number <= tail_index {
                tail = position;
            }
            let (flushed, last) = (random.below(len / MIB + 1) * MIB, len);
            let sequence = first_sequence + number as u64;
            let entry =
                Entry { guid, sequence, tail, flushed_file_offset: flushed, last_file_offset: last, changes }.encode();
            self.put(position, &entry);
            position = (position + entry.len() as u64) % MIB;
        }
        let wrong = |sequence, tail, guid, random: &mut Random| Entry {
            guid,
            sequence,
            tail,
            flushed_file_offset: 0,
            last_file_offset: len,
            changes: vec![(KIB_64 * 3, Change::Page(random.next().to_le_bytes().repeat(512)))],
        };
        // Behind the head: the next entry, torn.
        let mut torn = wrong(first_sequence + 50, tail, guid, random).encode();
        torn[5000] ^= 1;
        self.put(position, &torn);
        // An older run of this log, with a tail inside it, right behind.
        position = (position + 4096 * (2 + random.below(3))) % MIB;
        self.put(position, &wrong(random.below(900) + 1, position, guid, random).encode());
        // A run with greater numbers whose tail is in none of its entries.
        position = (position + 4096 * (2 + random.below(3))) % MIB;
        let nowhere = (position + 4096 * 20) % MIB;
        self.put(position, &wrong(u64::MAX - 9, nowhere, guid, random).encode());
        // A greater number, but of another log.
        position = (position + 4096 * (2 + random.below(3))) % MIB;
        let foreign = random_guid(random);
        self.put(position, &wrong(u64::MAX - 99, position, foreign, random).encode());
    }
}
