//! Changes to a disk's file that a reader must survive: fields of every structure set to values that mean something to
//! it, and checksums made right again, so that what lies behind them is reached.

use crate::vhdx_support::{MIB, Random, SparseFile};

const KIB_64: u64 = 64 << 10;

/// One change: bytes at a place. With the length, it is all that makes a failing file out of its seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    pub offset: u64,
    pub bytes: Vec<u8>,
}

/// All changes of one file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mutation {
    pub edits: Vec<Edit>,
    pub len: Option<u64>,
    /// Leave the checksums as they fall.
    pub unsealed: bool,
}

impl Mutation {
    pub fn apply(&self, seed: &SparseFile) -> SparseFile {
        let mut file = seed.clone();
        for edit in &self.edits {
            file.write(edit.offset, &edit.bytes);
        }
        if let Some(len) = self.len {
            file.set_len(len);
        }
        if !self.unsealed {
            seal(&mut file);
        }
        file
    }
}

/// A field of a structure.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    offset: u64,
    len: u64,
    big_endian: bool,
}

pub fn number(file: &SparseFile, offset: u64, len: u64) -> u64 {
    let mut bytes = [0; 8];
    file.read(offset, &mut bytes[..len as usize]);
    u64::from_le_bytes(bytes)
}

fn big(file: &SparseFile, offset: u64, len: u64) -> u64 {
    let mut bytes = [0; 8];
    file.read(offset, &mut bytes[8 - len as usize..]);
    u64::from_be_bytes(bytes)
}

fn magic(file: &SparseFile, offset: u64, text: &[u8]) -> bool {
    let mut bytes = vec![0; text.len()];
    file.read(offset, &mut bytes);
    bytes == text
}

/// Where the structures of a sound file are.
pub fn fields(file: &SparseFile) -> Vec<Field> {
    let mut fields = Vec::new();
    if magic(file, 0, b"vhdxfile") {
        vhdx_fields(file, &mut fields)
    } else {
        vhd_fields(file, &mut fields)
    }
    // What a pending log makes good may point anywhere before.
    fields.retain(|field| field.offset < file.len);
    fields
}

fn add(fields: &mut Vec<Field>, base: u64, lens: &[u64], big_endian: bool) {
    let mut offset = base;
    for len in lens {
        fields.push(Field { offset, len: *len, big_endian });
        offset += len;
    }
}

fn vhdx_fields(file: &SparseFile, fields: &mut Vec<Field>) {
    add(fields, 0, &[8, 8], false);
    for header in [KIB_64, 2 * KIB_64] {
        add(fields, header, &[4, 4, 8, 16, 16, 16, 2, 2, 4, 8], false);
    }
    for table in [3 * KIB_64, 4 * KIB_64] {
        add(fields, table, &[4, 4, 4, 4], false);
        (0..3).for_each(|entry| add(fields, table + 16 + 32 * entry, &[16, 8, 4, 4], false));
    }
    let (log_len, log) = (number(file, 2 * KIB_64 + 68, 4), number(file, 2 * KIB_64 + 72, 8));
    for sector in (0..log_len).step_by(4096).map(|at| log + at) {
        if magic(file, sector, b"loge") {
            add(fields, sector, &[4, 4, 4, 4, 8, 4, 4, 16, 8, 8], false);
            (0..4).for_each(|at| add(fields, sector + 64 + 32 * at, &[4, 4, 8, 8, 8], false));
        } else if magic(file, sector, b"data") {
            add(fields, sector, &[4, 4], false);
            add(fields, sector + 4092, &[4], false);
        }
    }
    let regions = [0, 1].map(|at| number(file, 3 * KIB_64 + 16 + 32 * at + 16, 8));
    for region in regions {
        if magic(file, region, b"metadata") {
            add(fields, region, &[8, 2, 2, 4], false);
            for entry in 0..8 {
                let at = region + 32 + 32 * entry;
                add(fields, at, &[16, 4, 4, 4, 4], false);
                let (offset, len) = (number(file, at + 16, 4), number(file, at + 20, 4));
                for word in (0..len.min(1024)).step_by(4) {
                    add(fields, region + offset + word, &[4], false);
                }
            }
        } else {
            (0..24).for_each(|word| add(fields, region + 8 * word, &[8], false));
            // The bitmap entry of the first chunk, for the block sizes that are tried.
            for ratio in [4096, 2048, 128, 32768, 16384, 1024] {
                add(fields, region + 8 * ratio, &[8], false);
                let bitmap = number(file, region + 8 * ratio, 8) >> 20 << 20;
                if bitmap != 0 {
                    (0..64).for_each(|word| add(fields, bitmap + 33 * word, &[1], false));
                }
            }
        }
    }
}

fn vhd_fields(file: &SparseFile, fields: &mut Vec<Field>) {
    let footer = [8, 4, 4, 8, 4, 4, 4, 4, 8, 8, 2, 1, 1, 4, 4, 16, 1];
    add(fields, file.len.saturating_sub(512), &footer, true);
    if !magic(file, 0, b"conectix") {
        return;
    }
    add(fields, 0, &footer, true);
    let header = big(file, 16, 8);
    add(fields, header, &[8, 8, 8, 4, 4, 4, 4, 16, 4, 4, 2, 2, 2], true);
    for locator in 0..8 {
        add(fields, header + 576 + 24 * locator, &[4, 4, 4, 4, 8], true);
        let content = big(file, header + 576 + 24 * locator + 16, 8);
        if content != 0 {
            add(fields, content, &[2; 16], true);
        }
    }
    let table = big(file, header + 16, 8);
    for block in 0..16 {
        add(fields, table + 4 * block, &[4], true);
        let sector = big(file, table + 4 * block, 4);
        if sector != 0 && sector != u64::from(u32::MAX) {
            add(fields, sector * 512, &[1; 8], true);
        }
    }
}

/// A value that a reader may trip over.
fn tempting(random: &mut Random, field: &Field, file: &SparseFile, fields: &[Field]) -> u64 {
    let old = if field.big_endian {
        big(file, field.offset, field.len.min(8))
    } else {
        number(file, field.offset, field.len.min(8))
    };
    let power = 1u64 << random.below(64);
    match random.below(14) {
        0 => 0,
        1 => 1 + random.below(8),
        2 => u64::MAX,
        3 => power,
        4 => power.wrapping_sub(1 << random.below(21)),
        5 => old.wrapping_add(1 << random.below(24)),
        6 => old.wrapping_sub(1 << random.below(24)),
        7 => old ^ power,
        8 => MIB * random.below(2 * file.len.div_ceil(MIB) + 2),
        9 => (MIB * random.below(file.len.div_ceil(MIB) + 2)) | random.below(8),
        10 => file.len.wrapping_add(random.below(3)).wrapping_sub(1),
        11 => 4096 * random.below(600),
        12 => {
            let other = fields[random.below(fields.len() as u64) as usize];
            number(file, other.offset, other.len.min(8))
        }
        _ => random.next(),
    }
}

fn edit(random: &mut Random, file: &SparseFile, fields: &[Field]) -> Edit {
    let field = fields[random.below(fields.len() as u64) as usize];
    match random.below(12) {
        // One field takes the bytes of another.
        0 => {
            let other = fields[random.below(fields.len() as u64) as usize];
            let mut bytes = vec![0; field.len as usize];
            file.read(other.offset, &mut bytes);
            Edit { offset: field.offset, bytes }
        }
        // A page of a structure comes to lie over another, or is gone.
        1 => {
            let other = fields[random.below(fields.len() as u64) as usize];
            let mut bytes = vec![0; 4096];
            if random.below(3) > 0 {
                file.read(other.offset / 4096 * 4096, &mut bytes);
            }
            Edit { offset: field.offset / 4096 * 4096, bytes }
        }
        2 => {
            let mut bytes = [0; 1];
            let offset = field.offset + random.below(64);
            file.read(offset, &mut bytes);
            Edit { offset, bytes: vec![bytes[0] ^ 1 << random.below(8)] }
        }
        _ => {
            let value = tempting(random, &field, file, fields);
            let bytes = match (field.len, field.big_endian) {
                (16, _) => [value.to_le_bytes(), random.next().to_le_bytes()].concat(),
                (len, true) => value.to_be_bytes()[8 - len as usize..].to_vec(),
                (len, false) => value.to_le_bytes()[..len as usize].to_vec(),
            };
            Edit { offset: field.offset, bytes }
        }
    }
}

pub fn mutation(random: &mut Random, seed: &SparseFile, fields: &[Field]) -> Mutation {
    let count = [1, 1, 1, 2, 2, 3, 5][random.below(7) as usize];
    let mut mutation = Mutation { unsealed: random.below(16) == 0, ..Mutation::default() };
    let mut file = seed.clone();
    for _ in 0..count {
        let edit = edit(random, &file, fields);
        file.write(edit.offset, &edit.bytes);
        mutation.edits.push(edit);
        // What a header says, its twin says too.
        let last = mutation.edits.last().expect("just pushed").clone();
        let twin = match last.offset {
            at if (KIB_64..2 * KIB_64).contains(&at) => Some(at + KIB_64),
            at if (3 * KIB_64..4 * KIB_64).contains(&at) => Some(at + KIB_64),
            _ => None,
        };
        if let Some(offset) = twin.filter(|_| random.below(3) > 0) {
            file.write(offset, &last.bytes);
            mutation.edits.push(Edit { offset, bytes: last.bytes });
        }
    }
    if random.below(12) == 0 {
        let len = match random.below(4) {
            0 => random.below(seed.len + 1),
            1 => random.below(seed.len / MIB + 1) * MIB,
            2 => seed.len + random.below(4096),
            _ => 1 << (20 + random.below(30)),
        };
        mutation.len = Some(len);
    }
    mutation
}

fn seal(file: &mut SparseFile) {
    if magic(file, 0, b"vhdxfile") { seal_vhdx(file) } else { seal_vhd(file) }
}

fn seal_range(file: &mut SparseFile, pieces: &[(u64, u64)]) {
    let mut bytes = Vec::new();
    for (offset, len) in pieces {
        let mut part = vec![0; *len as usize];
        file.read(*offset, &mut part);
        bytes.extend(part);
    }
    bytes[4..8].fill(0);
    // Nothing past the end is made longer by its checksum.
    if pieces[0].0 + 8 <= file.len {
        file.write(pieces[0].0 + 4, &crc32c::crc32c(&bytes).to_le_bytes());
    }
}

fn seal_vhdx(file: &mut SparseFile) {
    let (log_len, log) = (number(file, 2 * KIB_64 + 68, 4), number(file, 2 * KIB_64 + 72, 8));
    if log_len <= 4 * MIB && log.checked_add(log_len).is_some_and(|end| end <= file.len) {
        for position in (0..log_len).step_by(4096) {
            let len = number(file, log + position + 8, 4);
            if magic(file, log + position, b"loge") && len >= 4096 && len <= log_len {
                let first = len.min(log_len - position);
                seal_range(file, &[(log + position, first), (log, len - first)]);
            }
        }
    }
    for header in [KIB_64, 2 * KIB_64] {
        seal_range(file, &[(header, 4096)]);
    }
    for table in [3 * KIB_64, 4 * KIB_64] {
        seal_range(file, &[(table, KIB_64)]);
    }
}

fn seal_vhd(file: &mut SparseFile) {
    let header = big(file, 16, 8);
    let mut places = vec![(0, 512, 64)];
    places.extend(file.len.checked_sub(512).map(|at| (at, 512, 64)));
    if header.checked_add(1024).is_some_and(|end| end <= file.len) {
        places.push((header, 1024, 36));
    }
    for (offset, len, at) in places {
        if offset + len > file.len || !(magic(file, offset, b"conectix") || magic(file, offset, b"cxsparse")) {
            continue;
        }
        let mut bytes = vec![0; len as usize];
        file.read(offset, &mut bytes);
        bytes[at..at + 4].fill(0);
        let sum: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
        file.write(offset + at as u64, &(!sum).to_be_bytes());
    }
}
