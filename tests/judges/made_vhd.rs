//! VHD files made from Microsoft's specification of the format, with what is on them.

use crate::made::{Content, bytes_of};
use crate::vhdx_support::{Random, SparseFile};

const SECTOR: u64 = 512;
const HEADER: u64 = 512;
const LOCATORS: u64 = 512 + 1024;
const TABLE: u64 = LOCATORS + 2 * 512;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Fixed = 2,
    Dynamic = 3,
    Differencing = 4,
}

/// The unique identifier and the file name of a parent.
pub type Parent = ([u8; 16], String);

pub struct MadeVhd {
    pub file: SparseFile,
    pub unique_id: [u8; 16],
}

fn checksum(structure: &mut [u8], at: usize) {
    structure[at..at + 4].fill(0);
    let sum: u32 = structure.iter().map(|byte| u32::from(*byte)).sum();
    structure[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
}

fn footer(kind: Kind, size: u64, unique_id: [u8; 16]) -> Vec<u8> {
    let data_offset = if kind == Kind::Fixed { u64::MAX } else { HEADER };
    let mut footer = [&b"conectix"[..], &2u32.to_be_bytes(), &0x1_0000u32.to_be_bytes()].concat();
    footer.extend(data_offset.to_be_bytes());
    footer.extend(7u32.to_be_bytes());
    footer.extend(b"win \x00\x06\x00\x03Wi2k");
    footer.extend(size.to_be_bytes());
    footer.extend(size.to_be_bytes());
    // Any geometry: the size is what counts.
    footer.extend([0, 2, 4, 17]);
    footer.extend((kind as u32).to_be_bytes());
    footer.extend([0; 4]);
    footer.extend(unique_id);
    footer.resize(512, 0);
    checksum(&mut footer, 64);
    footer
}

/// The dynamic header, with a relative and an absolute locator of the parent behind it.
fn header(file: &mut SparseFile, entries: u32, block: u64, parent: Option<&Parent>) {
    let mut header = [&b"cxsparse"[..], &[0xff; 8], &TABLE.to_be_bytes(), &0x1_0000u32.to_be_bytes()].concat();
    header.extend(entries.to_be_bytes());
    header.extend((block as u32).to_be_bytes());
    header.extend([0; 4]);
    header.extend(parent.map_or([0; 16], |parent| parent.0));
    header.extend([0; 8]);
    if let Some((_, name)) = parent {
        header.extend(name.encode_utf16().flat_map(u16::to_be_bytes));
        header.resize(576, 0);
        let paths = [(b"W2ru", format!(".\\{name}")), (b"W2ku", format!("X:\\nowhere\\{name}"))];
        for (at, (code, path)) in paths.into_iter().enumerate() {
            let (place, bytes) = (LOCATORS + 512 * at as u64, path.encode_utf16().flat_map(u16::to_le_bytes));
            let bytes: Vec<u8> = bytes.collect();
            file.write(place, &bytes);
            header.extend(code);
            header.extend(512u32.to_be_bytes());
            header.extend((bytes.len() as u32).to_be_bytes());
            header.extend([0; 4]);
            header.extend(place.to_be_bytes());
        }
    }
    header.resize(1024, 0);
    checksum(&mut header, 36);
    file.write(HEADER, &header);
}

/// A disk with blocks that are absent, full or partial, over what its parent holds.
pub fn random_vhd(
    kind: Kind,
    size: u64,
    block: u64,
    parent: Option<&Parent>,
    below: &Content,
    seed: u64,
) -> (MadeVhd, Content) {
    let mut random = Random(seed);
    let mut unique_id = [0x11; 16];
    unique_id[..8].copy_from_slice(&random.next().to_le_bytes());
    let mut file = SparseFile::default();
    let mut content = below.clone();
    content.resize((size / SECTOR) as usize, 0);
    if kind == Kind::Fixed {
        content.iter_mut().for_each(|value| *value = random.next() * random.below(2));
        file.write(0, &bytes_of(&content, SECTOR));
        file.set_len(size);
        file.write(size, &footer(kind, size, unique_id));
        return (MadeVhd { file, unique_id }, content);
    }
    let entries = size.div_ceil(block);
    file.write(0, &footer(kind, size, unique_id));
    header(&mut file, entries as u32, block, parent);
    let table_len = (4 * entries).next_multiple_of(SECTOR);
    file.write(TABLE, &vec![0xff; table_len as usize]);
    let mut next = TABLE + table_len;
    let per_block = (block / SECTOR) as usize;
    for (number, values) in content.chunks_mut(per_block).enumerate().collect::<Vec<_>>().into_iter().rev() {
        if random.below(3) == 0 {
            continue;
        }
        next += SECTOR * random.below(9);
        file.write(TABLE + 4 * number as u64, &((next / SECTOR) as u32).to_be_bytes());
        let bitmap_len = (block / SECTOR).div_ceil(8).next_multiple_of(SECTOR);
        let (mut bitmap, mut stored) = (vec![0u8; bitmap_len as usize], vec![0; per_block]);
        let whole = kind == Kind::Dynamic || random.below(4) == 0;
        for (at, value) in values.iter_mut().enumerate() {
            // Runs of one sector to eight, so that bits change within bytes.
            if whole || (at >> random.below(4)).is_multiple_of(3) {
                *value = random.next() * random.below(3).min(1);
                bitmap[at / 8] |= 0x80 >> (at % 8);
            }
            stored[at] = *value;
        }
        if kind == Kind::Dynamic {
            bitmap[..per_block / 8].fill(0xff);
        }
        file.write(next, &bitmap);
        file.write(next + bitmap_len, &bytes_of(&stored, SECTOR));
        next += bitmap_len + block;
    }
    file.set_len(next);
    file.write(next, &footer(kind, size, unique_id));
    (MadeVhd { file, unique_id }, content)
}
