//! Disks put together by hand, and read by hand: table words, bitmap bits and payload as section 2 of the format has
//! them.

use lunaring::vhdx::{
    CreateOptions, DiskKind, Geometry, Guid, GuidSource, NewParent, ParentLocator, ResizeOptions, VhdxParent, check,
    create,
};

use crate::vhdx_support::{MIB, SECTOR, SparseFile, create_options, guids};

/// DataWriteGuid of the parents that are only imagined.
pub const PARENT: Guid = Guid([0x55; 16]);

pub fn locator(name: &str) -> ParentLocator {
    ParentLocator::Vhdx(VhdxParent {
        linkage: PARENT,
        linkage2: None,
        relative_path: Some(format!(".\\{name}")),
        volume_path: None,
        absolute_win32_path: None,
        others: Vec::new(),
    })
}

pub fn child_options(size_bytes: u64, parent_bytes: u64, block_size_bytes: u64) -> CreateOptions {
    let parent = NewParent {
        locator: locator("golden.vhdx"),
        size_bytes: parent_bytes,
        logical_sector_bytes: 512,
        items: Vec::new(),
    };
    CreateOptions { parent: Some(parent), ..create_options(size_bytes, DiskKind::Dynamic, block_size_bytes) }
}

pub fn made(options: &CreateOptions) -> SparseFile {
    let mut file = SparseFile::default();
    create(options, &mut file).expect("creates");
    file
}

pub fn dynamic(size_bytes: u64) -> SparseFile {
    made(&create_options(size_bytes, DiskKind::Dynamic, MIB))
}

pub fn child(size_bytes: u64) -> SparseFile {
    made(&child_options(size_bytes, size_bytes, MIB))
}

pub fn geometry(file: &SparseFile) -> Geometry {
    check(&mut file.clone()).expect("read").geometry.expect("the metadata is sound")
}

pub fn resize_options(seed: u64) -> ResizeOptions {
    ResizeOptions { allow_cut: false, parent_size_bytes: None, guids: source(seed) }
}

pub fn source(seed: u64) -> GuidSource {
    guids(seed ^ 0xabcd)
}

pub fn word(file: &SparseFile, offset: u64) -> u64 {
    let mut bytes = [0; 8];
    file.read(offset, &mut bytes);
    u64::from_le_bytes(bytes)
}

pub fn entry_at(geometry: &Geometry, block: u32) -> u64 {
    geometry.bat_offset_bytes + geometry.bat_index(block) * 8
}

fn append(file: &mut SparseFile, len: u64) -> u64 {
    let at = file.len.next_multiple_of(MIB);
    file.set_len(at + len);
    at
}

/// Give a block space in a state; the space reads as zeros.
pub fn put_block(file: &mut SparseFile, block: u32, state: u64) -> u64 {
    let shape = geometry(file);
    let at = append(file, u64::from(shape.block_size_bytes));
    file.write(entry_at(&shape, block), &(at | state).to_le_bytes());
    if state == 7 {
        let index = shape.bat_offset_bytes + shape.bitmap_index(block / shape.chunk_ratio) * 8;
        if word(file, index) == 0 {
            let bitmap = append(file, MIB);
            file.write(index, &(bitmap | 6).to_le_bytes());
        }
    }
    at
}

/// Write a sector of a block that has space; sets its bit where the block is partially present.
pub fn put_sector(file: &mut SparseFile, sector: u64, value: u8) {
    let shape = geometry(file);
    let block = ((sector * SECTOR) >> shape.block_shift) as u32;
    let entry = word(file, entry_at(&shape, block));
    let within = (sector * SECTOR) & (u64::from(shape.block_size_bytes) - 1);
    file.write((entry & !(MIB - 1)) + within, &[value; SECTOR as usize]);
    if entry & 7 == 7 {
        let at = bit_at(file, &shape, sector);
        let mut byte = [0];
        file.read(at, &mut byte);
        file.write(at, &[byte[0] | 1 << (sector % 8)]);
    }
}

fn bit_at(file: &SparseFile, shape: &Geometry, sector: u64) -> u64 {
    let chunk = (sector >> 23) as u32;
    let bitmap = word(file, shape.bat_offset_bytes + shape.bitmap_index(chunk) * 8) & !(MIB - 1);
    bitmap + (sector & ((1 << 23) - 1)) / 8
}

/// What a parent shows at a sector: everywhere something else than zeros, up to its end.
pub fn parent_sector(sector: u64, parent_bytes: u64) -> u8 {
    if sector * SECTOR < parent_bytes { 0x80 | (sector % 97) as u8 } else { 0 }
}

/// The first byte of a sector of the disk. The file's log must be empty.
pub fn read_sector(file: &SparseFile, shape: &Geometry, sector: u64, parent_bytes: u64) -> u8 {
    assert!(sector * SECTOR < shape.disk_size_bytes);
    let block = ((sector * SECTOR) >> shape.block_shift) as u32;
    let entry = word(file, entry_at(shape, block));
    let place = (entry & !(MIB - 1)) + ((sector * SECTOR) & (u64::from(shape.block_size_bytes) - 1));
    let mut byte = [0];
    match entry & 7 {
        6 => file.read(place, &mut byte),
        7 => {
            let mut bits = [0];
            file.read(bit_at(file, shape, sector), &mut bits);
            if bits[0] & 1 << (sector % 8) != 0 {
                file.read(place, &mut byte);
            } else {
                byte[0] = parent_sector(sector, parent_bytes);
            }
        }
        0 if shape.has_parent => byte[0] = parent_sector(sector, parent_bytes),
        _ => {}
    }
    byte[0]
}

/// Sectors that tell the content of a disk: some of each block, and those around every end. Of a large disk, blocks at
/// both ends and here and there.
pub fn samples(shape: &Geometry) -> Vec<u64> {
    let last = shape.disk_size_bytes / SECTOR - 1;
    let per_block = u64::from(shape.block_size_bytes) / SECTOR;
    let blocks = last / per_block;
    let few = |block: &u64| blocks < 2000 || *block < 64 || block + 64 > blocks || block.is_multiple_of(blocks / 500);
    let each = (0..=blocks).filter(few).flat_map(|block| {
        [0, 1, 7, 8, per_block / 2 - 1, per_block / 2, per_block - 9, per_block - 1].map(|at| block * per_block + at)
    });
    each.chain([last.saturating_sub(1), last]).filter(|sector| *sector <= last).collect()
}
