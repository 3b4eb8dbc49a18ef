//! One VHD file, by Microsoft's Virtual Hard Disk Image Format Specification 1.0: fixed, dynamic, differencing.

use std::sync::Arc;

use super::{Broken, Place, Source, broken, bytes, rule, vector};

const SECTOR: u64 = 512;

pub struct Image {
    pub file: Arc<dyn Source>,
    pub size_bytes: u64,
    /// 2 fixed, 3 dynamic, 4 differencing.
    pub kind: u32,
    pub unique_id: [u8; 16],
    /// The footer at the end is the one that was used (else its copy at the start).
    pub footer_at_end: bool,
    pub block_bytes: u64,
    pub parent_unique_id: [u8; 16],
    pub parent_name: String,
    /// Code and content of each parent locator.
    pub locators: Vec<([u8; 4], Vec<u8>)>,
    table_offset: u64,
    blocks: u64,
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

/// The one's complement of the sum of all bytes but the checksum's own.
fn checksum_holds(raw: &[u8], at: usize) -> bool {
    let sum: u32 = raw.iter().enumerate().filter(|(i, _)| !(at..at + 4).contains(i)).map(|(_, b)| u32::from(*b)).sum();
    be32(raw, at) == !sum
}

fn footer(file: &dyn Source, offset: u64, len: usize) -> Option<Vec<u8>> {
    let mut raw = vector(file, offset, len as u64);
    raw.resize(512, 0);
    (&raw[..8] == b"conectix" && checksum_holds(&raw, 64)).then_some(raw)
}

/// Whether a cookie is at either place.
pub fn looks_like_one(file: &dyn Source) -> bool {
    let end = file.len_bytes();
    [Some(0), end.checked_sub(512), end.checked_sub(511)]
        .into_iter()
        .flatten()
        .any(|at| &bytes::<8>(file, at) == b"conectix")
}

impl Image {
    pub fn open(file: Arc<dyn Source>) -> Result<Self, Broken> {
        let end = file.len_bytes();
        rule!(end >= 512, "too short for a footer");
        let last = footer(&*file, end - 512, 512).or_else(|| footer(&*file, end - 511, 511));
        let footer_at_end = last.is_some();
        let Some(footer) = last.or_else(|| footer(&*file, 0, 512)) else { broken!("no valid footer") };
        rule!(be32(&footer, 12) >> 16 == 1, "another version of the format");
        let kind = be32(&footer, 60);
        rule!((2..=4).contains(&kind), "kind {kind}");
        let mut image = Self {
            file,
            size_bytes: be64(&footer, 48),
            kind,
            unique_id: footer[68..84].try_into().expect("16 bytes"),
            footer_at_end,
            block_bytes: 0,
            parent_unique_id: [0; 16],
            parent_name: String::new(),
            locators: Vec::new(),
            table_offset: 0,
            blocks: 0,
        };
        let size = image.size_bytes;
        rule!(size.is_multiple_of(SECTOR) && size <= 2040 << 30, "a disk of {size} bytes");
        if kind == 2 {
            rule!(image.size_bytes <= end, "a fixed disk that is longer than its file");
        } else {
            image.open_header(be64(&footer, 16))?;
        }
        Ok(image)
    }

    fn open_header(&mut self, at: u64) -> Result<(), Broken> {
        let end = self.file.len_bytes();
        rule!(at.checked_add(1024).is_some_and(|at| at <= end), "the header is behind the end of the file");
        let raw = vector(&*self.file, at, 1024);
        rule!(&raw[..8] == b"cxsparse" && checksum_holds(&raw, 36), "no valid header of a dynamic disk");
        self.table_offset = be64(&raw, 16);
        self.block_bytes = u64::from(be32(&raw, 32));
        rule!(self.block_bytes.is_power_of_two() && self.block_bytes >= SECTOR, "blocks of {}", self.block_bytes);
        self.blocks = self.size_bytes.div_ceil(self.block_bytes);
        rule!(u64::from(be32(&raw, 28)) >= self.blocks, "the table is too short for the disk");
        let table_end = self.table_offset.checked_add(4 * u64::from(be32(&raw, 28)));
        rule!(table_end.is_some_and(|at| at <= end), "the table is behind the end of the file");
        self.parent_unique_id = raw[40..56].try_into().expect("16 bytes");
        let units = raw[64..576].chunks(2).map(|c| u16::from_be_bytes([c[0], c[1]]));
        self.parent_name = String::from_utf16_lossy(&units.take_while(|unit| *unit != 0).collect::<Vec<_>>());
        let table_len = (4 * u64::from(be32(&raw, 28))).next_multiple_of(SECTOR);
        let mut taken = vec![(0, SECTOR), (at, 1024), (self.table_offset, table_len)];
        if self.footer_at_end {
            taken.push((end - 511, 511));
        }
        for entry in raw[576..768].chunks(24) {
            let (len, offset) = (be32(entry, 8), be64(entry, 16));
            if entry[..4] != [0; 4] && self.has_parent() {
                let inside = offset.checked_add(u64::from(len)).is_some_and(|at| at <= end);
                rule!(inside && len <= 64 << 10, "a locator is behind the end of the file");
                let content = vector(&*self.file, offset, u64::from(len));
                self.locators.push((entry[..4].try_into().expect("4 bytes"), content));
                if len > 0 {
                    // One without bytes lies over nothing.
                    taken.push((offset, u64::from(len)));
                }
            }
        }
        self.check_table(taken)
    }

    /// Blocks lie inside the file, in front of the footer; nothing lies over anything else.
    fn check_table(&self, mut taken: Vec<(u64, u64)>) -> Result<(), Broken> {
        let end = self.file.len_bytes() - if self.footer_at_end { 511 } else { 0 };
        for block in 0..self.blocks {
            let Some(at) = self.block(block) else { continue };
            let visible = self.bitmap_bytes() + self.block_bytes.min(self.size_bytes - block * self.block_bytes);
            rule!(at + visible <= end, "block {block} is behind the end of the file");
            // The last block may be cut where the file ends.
            taken.push((at, (self.bitmap_bytes() + self.block_bytes).min(end - at)));
        }
        taken.sort_unstable();
        let overlap = taken.windows(2).find(|pair| pair[0].0 + pair[0].1 > pair[1].0);
        rule!(overlap.is_none(), "what is at {overlap:?} overlaps");
        Ok(())
    }

    pub fn has_parent(&self) -> bool {
        self.kind == 4
    }

    pub fn accepts(&self, parent: &Self) -> Result<(), Broken> {
        let same = self.parent_unique_id == parent.unique_id;
        rule!(same, "the parent is not the one that the child names");
        Ok(())
    }

    /// The locator `W2ru`, in UTF-16, little-endian.
    pub fn relative_path(&self) -> Option<String> {
        let (_, content) = self.locators.iter().find(|(code, _)| code == b"W2ru")?;
        let units: Vec<u16> = content.chunks_exact(2).map(|c| u16::from_le_bytes([c[0], c[1]])).collect();
        String::from_utf16(&units).ok()
    }

    fn bitmap_bytes(&self) -> u64 {
        (self.block_bytes / SECTOR).div_ceil(8).next_multiple_of(SECTOR)
    }

    /// Where a block's bitmap begins, with the data behind it.
    pub fn block(&self, block: u64) -> Option<u64> {
        let sector = u32::from_be_bytes(bytes(&*self.file, self.table_offset + 4 * block));
        (sector != u32::MAX).then_some(u64::from(sector) * SECTOR)
    }

    pub fn place(&self, offset: u64) -> (Place, u64) {
        if self.kind == 2 {
            return (Place::File(offset), self.size_bytes - offset);
        }
        let elsewhere = if self.has_parent() { Place::Parent } else { Place::Zeros };
        let within = offset % self.block_bytes;
        let Some(at) = self.block(offset / self.block_bytes) else { return (elsewhere, self.block_bytes - within) };
        // The highest bit of a byte is its first sector.
        let bit = |sector: u64| bytes::<1>(&*self.file, at + sector / 8)[0] << (sector % 8) & 0x80 != 0;
        let (first, sectors) = (within / SECTOR, self.block_bytes / SECTOR);
        let here = bit(first);
        // As many of the sectors behind it as are in the same place.
        let end = (first + 1..sectors).find(|next| bit(*next) != here).unwrap_or(sectors);
        let place = if here { Place::File(at + self.bitmap_bytes() + within) } else { elsewhere };
        (place, end * SECTOR - within)
    }
}
