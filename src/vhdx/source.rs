//! How the pages of a VHDX layer's map come from its file (`blocks::PageSource`): pages of the block allocation table,
//! and of the sector bitmap blocks that the table names.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use super::format::{BatEntry, PAGE, SECTORS_PER_BITMAP_BLOCK};
use super::geometry::Geometry;
use crate::blocks::{BlockMap, Fault, PAGE_BYTES, PageSource, Piece, PieceList, Table};

const PAGE_LEN: u64 = PAGE as u64;

/// Pages of a sector bitmap block: 1 MiB.
pub(super) const BITMAP_PAGES: u32 = (SECTORS_PER_BITMAP_BLOCK / 8 / PAGE_LEN) as u32;

/// A word of the table as it is in memory: the state, and the offset where there is content. What reserved bits and the
/// offsets of blocks without content say (soft anchors, garbage) has no meaning there. `limit_bytes` is where the file
/// ends that readers have: whole blocks behind it, which only a replay would create, read as zeros. Of a block that is
/// partly behind it, or partly the parent's, whoever reads takes what is behind the end for zeros.
pub(super) fn settled(word: u64, limit_bytes: u64) -> u64 {
    let state = word & 7;
    if state < 6 {
        return state;
    }
    let offset_bytes = word & BatEntry::OFFSET_MASK;
    if offset_bytes >= limit_bytes && state == 6 { 2 } else { offset_bytes | state }
}

/// Where a page of sector bits is in the file, when its bitmap block is at `block_bytes`.
pub(super) fn bits_page_offset(block_bytes: u64, page: u32) -> u64 {
    block_bytes + u64::from(page % BITMAP_PAGES) * PAGE_LEN
}

/// Pages as a replay that stays in memory leaves them.
pub(super) type ReplayedPages = HashMap<Fault, Box<[u8; PAGE_BYTES]>>;

/// The source of one file. Shared with the opener, which completes it.
#[derive(Debug)]
pub(super) struct Source {
    pub geometry: Geometry,
    /// What the file that is read ends at; `u64::MAX` when a replay has been written to it.
    pub limit_bytes: u64,
    pub replayed: OnceLock<ReplayedPages>,
}

/// As the map holds it.
pub(super) struct SharedSource(pub Arc<Source>);

impl PageSource for SharedSource {
    fn pieces(&self, map: &BlockMap, fault: Fault, into: &mut PieceList) -> Result<(), Fault> {
        let source = &self.0;
        let offset_bytes = match fault.table {
            Table::Entries => Some(source.geometry.bat_offset_bytes + u64::from(fault.page) * PAGE_LEN),
            Table::Bits => {
                let entry = map.bitmap_entry(fault.page / BITMAP_PAGES)?;
                entry.is_present().then(|| bits_page_offset(entry.offset_bytes(), fault.page))
            }
        };
        let there = match offset_bytes {
            Some(offset_bytes) => source.limit_bytes.saturating_sub(offset_bytes).min(PAGE_LEN) as u32,
            None => 0,
        };
        if there > 0 {
            into.push(Piece { offset_bytes, len_bytes: there });
        }
        if there < PAGE as u32 {
            into.push(Piece { offset_bytes: None, len_bytes: PAGE as u32 - there });
        }
        Ok(())
    }

    fn decode(&self, fault: Fault, bytes: &mut [u8; PAGE_BYTES]) {
        if let Some(page) = self.0.replayed.get().and_then(|pages| pages.get(&fault)) {
            bytes.copy_from_slice(&page[..]);
        }
        if fault.table == Table::Entries {
            settle(bytes, self.0.limit_bytes);
        }
    }
}

/// A page of the table as it is in memory.
pub(super) fn settle(bytes: &mut [u8; PAGE_BYTES], limit_bytes: u64) {
    for word in bytes.as_chunks_mut::<8>().0 {
        *word = settled(u64::from_le_bytes(*word), limit_bytes).to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_lose_what_has_no_meaning_in_memory() {
        let mib = 1 << 20;
        for (word, expected) in [
            (0, 0),
            (5 * mib, 0),
            (5 * mib + 3, 3),
            (5 * mib + 2, 2),
            (5 * mib + 6, 5 * mib + 6),
            (5 * mib + 0xf_ffff, 5 * mib + 7),
            (100 * mib + 6, 2),
            (100 * mib + 7, 100 * mib + 7),
        ] {
            assert_eq!(settled(word, 100 * mib), expected, "{word:#x}");
        }
    }
}
