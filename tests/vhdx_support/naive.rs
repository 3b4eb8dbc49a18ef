//! A reader of VHDX files that was written from [MS-VHDX] alone: slow, whole, without any of our code. It replays the
//! log in a copy and reads through the tables, parents included.

use std::collections::BTreeMap;

use super::{MIB, SparseFile};

const BAT: [u8; 16] = [0x66, 0x77, 0xC2, 0x2D, 0x23, 0xF6, 0x00, 0x42, 0x9D, 0x64, 0x11, 0x5E, 0x9B, 0xFD, 0x4A, 0x08];
const METADATA: [u8; 16] =
    [0x06, 0xA2, 0x7C, 0x8B, 0x90, 0x47, 0x9A, 0x4B, 0xB8, 0xFE, 0x57, 0x5F, 0x05, 0x0F, 0x88, 0x6E];
const FILE_PARAMETERS: [u8; 4] = [0x37, 0x67, 0xA1, 0xCA];
const DISK_SIZE: [u8; 4] = [0x24, 0x42, 0xA5, 0x2F];
const SECTOR_SIZE: [u8; 4] = [0x1D, 0xBF, 0x41, 0x81];

pub struct NaiveDisk {
    file: SparseFile,
    bat: u64,
    block_size: u64,
    sector_size: u64,
    size: u64,
    has_parent: bool,
}

fn bytes(file: &SparseFile, at: u64, len: usize) -> Vec<u8> {
    let mut into = vec![0; len];
    file.read(at, &mut into);
    into
}

fn le32(from: &[u8], at: usize) -> u64 {
    u64::from(u32::from_le_bytes(from[at..at + 4].try_into().expect("four bytes")))
}

fn le64(from: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(from[at..at + 8].try_into().expect("eight bytes"))
}

fn sum_is_right(structure: &[u8]) -> bool {
    let mut copy = structure.to_vec();
    copy[4..8].fill(0);
    u64::from(crc32c::crc32c(&copy)) == le32(structure, 4)
}

/// An entry of the log: position, length, tail, number, flushed and last file offset, and its bytes.
struct Entry {
    at: u64,
    tail: u64,
    number: u64,
    flushed: u64,
    last: u64,
    bytes: Vec<u8>,
}

/// The valid entry at a place of the ring.
fn entry_at(ring: &[u8], at: u64, guid: &[u8]) -> Option<Entry> {
    let sector = |number: u64| &ring[((at + number * 4096) % ring.len() as u64) as usize..][..4096];
    let first = sector(0);
    let (len, count, number) = (le32(first, 8), le32(first, 24), le64(first, 16));
    if &first[..4] != b"loge" || &first[32..48] != guid || len == 0 || len % 4096 != 0 || len > ring.len() as u64 {
        return None;
    }
    let bytes: Vec<u8> = (0..len / 4096).flat_map(|number| sector(number).to_vec()).collect();
    let descriptors = (64 + 32 * count).div_ceil(4096) * 4096;
    if !sum_is_right(&bytes) || descriptors > len || number == 0 {
        return None;
    }
    for descriptor in 0..count as usize {
        let part = &bytes[64 + 32 * descriptor..][..32];
        if le64(part, 24) != number || !(&part[..4] == b"desc" || &part[..4] == b"zero") {
            return None;
        }
    }
    for data in bytes[descriptors as usize..].chunks(4096) {
        if &data[..4] != b"data" || le32(data, 4) << 32 | le32(data, 4092) != number {
            return None;
        }
    }
    let (flushed, last) = (le64(first, 48), le64(first, 56));
    Some(Entry { at, tail: le32(first, 12), number, flushed, last, bytes })
}

fn replay(file: &mut SparseFile, ring: &[u8], guid: &[u8]) -> Result<(), String> {
    let entries: BTreeMap<u64, Entry> =
        (0..ring.len() as u64 / 4096).filter_map(|at| Some((at * 4096, entry_at(ring, at * 4096, guid)?))).collect();
    // The sequence whose head has the largest number and whose tail is part of it.
    let mut best: Option<Vec<u64>> = None;
    for start in entries.keys() {
        let (mut run, mut at) = (Vec::new(), *start);
        while let Some(entry) = entries.get(&at) {
            let follows = run.last().is_none_or(|last| entries[last].number + 1 == entry.number);
            if !follows || run.contains(&at) {
                break;
            }
            run.push(at);
            at = (at + entry.bytes.len() as u64) % ring.len() as u64;
        }
        // A run is also complete without its last entries; the longest complete one counts.
        let head = &entries[run.last().expect("it has its start")];
        let newer = best.as_ref().is_none_or(|best| entries[best.last().expect("has one")].number < head.number);
        if run.contains(&head.tail) && newer {
            best = Some(run);
        }
    }
    let run = best.ok_or("the log has no complete sequence")?;
    let head = &entries[run.last().expect("has one")];
    if head.flushed > file.len {
        return Err(format!("the file has {} bytes, and had {} flushed", file.len, head.flushed));
    }
    let from = run.iter().position(|at| entries[at].at == head.tail).expect("complete");
    for at in &run[from..] {
        apply(file, &entries[at]);
    }
    Ok(())
}

fn apply(file: &mut SparseFile, entry: &Entry) {
    let count = le32(&entry.bytes, 24) as usize;
    let mut data = (64 + 32 * count).div_ceil(4096) * 4096;
    for descriptor in 0..count {
        let part = &entry.bytes[64 + 32 * descriptor..][..32];
        let target = le64(part, 16);
        if &part[..4] == b"zero" {
            let len = le64(part, 8);
            file.write(target, &vec![0; len as usize]);
        } else {
            let mut page = entry.bytes[data..data + 4096].to_vec();
            page[..8].copy_from_slice(&part[8..16]);
            page[4092..].copy_from_slice(&part[4..8]);
            file.write(target, &page);
            data += 4096;
        }
    }
    file.len = file.len.max(entry.last);
}

impl NaiveDisk {
    pub fn open(file: &SparseFile) -> Result<Self, String> {
        let mut file = file.clone();
        let headers: Vec<Vec<u8>> = [64 << 10, 128 << 10]
            .map(|at| bytes(&file, at, 4096))
            .into_iter()
            .filter(|header| &header[..4] == b"head" && sum_is_right(header))
            .collect();
        let header = headers.iter().max_by_key(|header| le64(header, 8)).ok_or("no valid header")?;
        if header[48..64] != [0; 16] {
            let ring = bytes(&file, le64(header, 72), le32(header, 68) as usize);
            replay(&mut file, &ring, &header[48..64])?;
        }
        let tables = [192 << 10, 256 << 10].map(|at| bytes(&file, at, 65536));
        let table = tables.iter().find(|table| &table[..4] == b"regi" && sum_is_right(table)).ok_or("no regions")?;
        let region = |guid: [u8; 16]| {
            let entry = (0..le32(table, 8) as usize).map(|at| &table[16 + 32 * at..]).find(|entry| entry[..16] == guid);
            entry.map(|entry| le64(entry, 16)).ok_or("a region is missing")
        };
        let (bat, metadata) = (region(BAT)?, region(METADATA)?);
        let items = bytes(&file, metadata, 65536);
        let item = |id: [u8; 4]| {
            let count = usize::from(u16::from_le_bytes([items[10], items[11]]));
            let entry = (0..count).map(|at| &items[32 + 32 * at..]).find(|entry| entry[..4] == id);
            entry.map(|entry| bytes(&file, metadata + le32(entry, 16), 8)).ok_or("an item is missing")
        };
        let parameters = item(FILE_PARAMETERS)?;
        let size = le64(&item(DISK_SIZE)?, 0);
        let sector_size = le32(&item(SECTOR_SIZE)?, 0);
        let (block_size, has_parent) = (le32(&parameters, 0), parameters[4] & 2 != 0);
        Ok(Self { file, bat, block_size, sector_size, size, has_parent })
    }

    /// Read a sector of 512 bytes.
    pub fn read(&self, parent: Option<&SparseFile>, sector: u64, into: &mut [u8; 512]) {
        let offset = sector * 512;
        assert!(offset + 512 <= self.size);
        let ratio = (1 << 23) * self.sector_size / self.block_size;
        let block = offset / self.block_size;
        let word = le64(&bytes(&self.file, self.bat + (block + block / ratio) * 8, 8), 0);
        let place = (word >> 20 << 20) + offset % self.block_size;
        let mut from_parent = || match parent {
            Some(parent) if offset + 512 <= parent.len => parent.read(offset, into),
            _ => into.fill(0),
        };
        match word & 7 {
            6 => self.file.read(place, into),
            7 => {
                let chunk = block / ratio;
                let bitmap = le64(&bytes(&self.file, self.bat + ((chunk + 1) * (ratio + 1) - 1) * 8, 8), 0);
                assert_eq!(bitmap & 7, 6, "a chunk with partial blocks has a bitmap");
                let number = offset / self.sector_size - chunk * (1 << 23);
                let byte = bytes(&self.file, (bitmap >> 20 << 20) + number / 8, 1)[0];
                if byte >> (number % 8) & 1 == 1 { self.file.read(place, into) } else { from_parent() }
            }
            0 if self.has_parent => from_parent(),
            _ => into.fill(0),
        }
    }

    /// Every object's place is whole MiB inside the file and no byte belongs to two blocks.
    pub fn blocks_are_apart(&self) -> Result<(), String> {
        let ratio = (1 << 23) * self.sector_size / self.block_size;
        let mut places = BTreeMap::new();
        for block in 0..self.size.div_ceil(self.block_size) {
            let word = le64(&bytes(&self.file, self.bat + (block + block / ratio) * 8, 8), 0);
            if word & 7 >= 6 {
                for mib in 0..self.block_size / MIB {
                    if let Some(other) = places.insert((word >> 20) + mib, block) {
                        return Err(format!("blocks {other} and {block} share MiB {}", (word >> 20) + mib));
                    }
                }
            }
        }
        Ok(())
    }
}
