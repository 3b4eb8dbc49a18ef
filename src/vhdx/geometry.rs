//! The shape of a disk, and where in its block allocation table (section 2.5) each entry stands.

use super::format::{MIB, SECTORS_PER_BITMAP_BLOCK};

/// The shape of an open disk. Never changes while it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// The virtual disk's size in bytes: a multiple of the logical sector, 1 sector to 64 TiB (section 2.6.2.2).
    pub disk_size_bytes: u64,
    /// Payload block size in bytes: a power of two, 1 to 256 MiB (section 2.6.2.1).
    pub block_size_bytes: u32,
    /// Base-two logarithm of `block_size_bytes`.
    pub block_shift: u8,
    /// 512 or 4096 (section 2.6.2.4).
    pub logical_sector_bytes: u32,
    /// 512 or 4096 (section 2.6.2.5).
    pub physical_sector_bytes: u32,
    /// Payload blocks of the disk: `disk_size_bytes` in blocks, rounded up; at most 2^26.
    pub block_count: u32,
    /// LeaveBlocksAllocated: the disk is meant to stay fully allocated ("fixed", section 2.6.2.1). False when the disk
    /// has a parent, whatever the file says: the bit means nothing then.
    pub fixed: bool,
    /// HasParent: a differencing disk, whose absent blocks and sectors are the parent's (section 2.6.2.1).
    pub has_parent: bool,
    /// Where the BAT region starts in the file.
    pub bat_offset_bytes: u64,
    /// Payload entries between two sector bitmap entries (chunk ratio, section 2.5).
    pub chunk_ratio: u32,
}

/// What an index of the block allocation table stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// The entry of this payload block.
    Block(u32),
    /// The entry of this chunk's sector bitmap block.
    Bitmap(u32),
    /// Interleaved where a chunk is not full: no block of the disk has this entry, and what it holds means nothing.
    Unused,
}

impl Geometry {
    /// The index in the BAT of a payload block's entry (section 2.5: a bitmap entry follows every chunk).
    pub fn bat_index(&self, block: u32) -> u64 {
        u64::from(block) + u64::from(block / self.chunk_ratio)
    }

    /// The index in the BAT of the entry of a chunk's sector bitmap block.
    pub fn bitmap_index(&self, chunk: u32) -> u64 {
        (u64::from(chunk) + 1) * (u64::from(self.chunk_ratio) + 1) - 1
    }

    /// The payload block whose entry is at `index` of the BAT; `None` for bitmap entries and past the last block.
    pub fn block_at(&self, index: u64) -> Option<u32> {
        match self.slot_at(index) {
            Slot::Block(block) => Some(block),
            Slot::Bitmap(_) | Slot::Unused => None,
        }
    }

    /// What the entry at `index` of the BAT is for.
    pub fn slot_at(&self, index: u64) -> Slot {
        let ratio = u64::from(self.chunk_ratio);
        let (chunk, within) = (index / (ratio + 1), index % (ratio + 1));
        let block = chunk * ratio + within;
        if within == ratio {
            if chunk < u64::from(self.chunk_count()) { Slot::Bitmap(chunk as u32) } else { Slot::Unused }
        } else if block < u64::from(self.block_count) {
            Slot::Block(block as u32)
        } else {
            Slot::Unused
        }
    }

    /// Chunks of the disk: 2^23 sectors each, the last one rounded up.
    pub fn chunk_count(&self) -> u32 {
        self.block_count.div_ceil(self.chunk_ratio)
    }

    /// BAT entries that the disk needs. With a parent: every chunk in full, because the last bitmap's entry must exist
    /// (the closed formula printed in section 2.5 gives less, and no writer follows it). Without one: up to the last
    /// block's.
    pub fn bat_entries(&self) -> u64 {
        if self.has_parent {
            return u64::from(self.chunk_count()) * (u64::from(self.chunk_ratio) + 1);
        }
        match self.block_count.checked_sub(1) {
            Some(last) => self.bat_index(last) + 1,
            None => 0,
        }
    }

    /// Bytes of the BAT region that these entries take: whole MiB.
    pub fn bat_region_len_bytes(&self) -> u64 {
        (self.bat_entries() * 8).next_multiple_of(MIB)
    }

    /// How much of a block the guest can see: less than the block size only for the last.
    pub fn visible_len_bytes(&self, block: u32) -> u64 {
        let start = u64::from(block) << self.block_shift;
        self.disk_size_bytes.saturating_sub(start).min(u64::from(self.block_size_bytes))
    }

    /// The same disk with another size.
    pub(super) fn with_size(&self, disk_size_bytes: u64) -> Self {
        let block_count = disk_size_bytes.div_ceil(u64::from(self.block_size_bytes));
        let block_count = u32::try_from(block_count).expect("64 TiB have 2^26 blocks of 1 MiB");
        Self { disk_size_bytes, block_count, ..*self }
    }
}

/// Payload blocks that share a sector bitmap block.
pub(super) fn chunk_ratio(logical_sector_bytes: u32, block_size_bytes: u32) -> u32 {
    let ratio = SECTORS_PER_BITMAP_BLOCK * u64::from(logical_sector_bytes) / u64::from(block_size_bytes);
    u32::try_from(ratio).expect("at most 32768")
}
