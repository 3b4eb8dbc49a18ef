//! The block allocation table, sector bitmaps, and the map of the file's space.

use std::ops::Range;

use super::structures::Structures;
use super::{CheckReport, FINDINGS_PER_KIND_MAX};
use crate::vhdx::error::OpenError;
use crate::vhdx::format::{BatEntry, BlockState, MIB};
use crate::vhdx::geometry::{Geometry, Slot};
use crate::vhdx::region::Span;
use crate::vhdx::scan::{Met, Scan, SpaceMap};
use crate::vhdx::storage::{Storage, StorageError};

/// Bits of an entry between state and offset (section 2.5.1): zero.
const RESERVED_BITS: u64 = !(BatEntry::OFFSET_MASK | 7);

struct Walk<'r> {
    geometry: Geometry,
    report: &'r mut CheckReport,
    taken: SpaceMap,
    /// Space that trimmed blocks still name.
    anchored: SpaceMap,
    anchors: u64,
    /// Places of blocks and bitmaps that were taken already; the first few.
    collisions: Vec<(Met, Range<u64>)>,
    collision_count: u64,
    /// Partially present blocks of the chunk that is being walked.
    partial: Vec<u32>,
    blocks_met: u32,
}

/// Check the table as far as it is there, and account for the file's bytes.
pub(super) fn check(structures: &mut Structures<'_>, report: &mut CheckReport) -> Result<(), StorageError> {
    let (Some(geometry), Some(bat)) = (report.geometry, structures.bat) else {
        return Ok(());
    };
    let (needed, entries) = (geometry.bat_entries(), bat.len_bytes / 8);
    if entries < needed {
        report.broken(&OpenError::BatTooSmall { offset_bytes: bat.offset_bytes, entries, needed });
    }
    let file_len = report.file_len_bytes;
    let mut taken = SpaceMap::new(file_len);
    for span in &structures.spans {
        taken.take(span.start..span.end);
    }
    let mut walk = Walk {
        geometry,
        report,
        taken,
        anchored: SpaceMap::new(file_len),
        anchors: 0,
        collisions: Vec::new(),
        collision_count: 0,
        partial: Vec::new(),
        blocks_met: 0,
    };
    let overlay = &mut structures.overlay;
    let mut scan = Scan::new(geometry, 0..needed.min(entries));
    while let Some(met) = scan.next(overlay)? {
        match met.slot {
            Slot::Block(block) => walk.block(met, block),
            Slot::Bitmap(chunk) => walk.bitmap(met, chunk, overlay)?,
            Slot::Unused => {}
        }
    }
    walk.report.blocks.not_present += geometry.block_count - walk.blocks_met;
    walk.name_collisions(overlay, &structures.spans, needed.min(entries))?;
    walk.account();
    Ok(())
}

impl Walk<'_> {
    fn broken_block(&mut self, met: Met, block: u32, rule: &'static str) {
        let (entry, offset_bytes) = (met.entry.0, met.offset_bytes);
        self.report.broken(&OpenError::Block { block, entry, offset_bytes, rule });
    }

    fn block(&mut self, met: Met, block: u32) {
        self.blocks_met += 1;
        let entry = met.entry;
        self.reserved_bits(met);
        let counts = &mut self.report.blocks;
        match entry.state() {
            None => {
                counts.reserved += 1;
                self.broken_block(met, block, "its state is reserved");
            }
            Some(BlockState::FullyPresent) => {
                counts.fully_present += 1;
                self.place(met, block);
            }
            Some(BlockState::PartiallyPresent) => {
                counts.partially_present += 1;
                if self.geometry.has_parent {
                    self.partial.push(block);
                } else {
                    self.broken_block(met, block, "partially present, in a disk without a parent");
                }
                self.place(met, block);
            }
            Some(state @ (BlockState::NotPresent | BlockState::Zero)) => {
                let zero = state == BlockState::Zero;
                *(if zero { &mut counts.zero } else { &mut counts.not_present }) += 1;
                if entry.offset_bytes() != 0 {
                    self.idle(met, format!("block {block} names a place and has no content"));
                }
            }
            Some(state @ (BlockState::Undefined | BlockState::Unmapped)) => {
                let unmapped = state == BlockState::Unmapped;
                *(if unmapped { &mut counts.unmapped } else { &mut counts.undefined }) += 1;
                self.anchor(met, block);
            }
        }
    }

    fn range_of(&self, entry: BatEntry) -> Range<u64> {
        let start = entry.offset_bytes();
        start..start.saturating_add(u64::from(self.geometry.block_size_bytes))
    }

    /// The place of a block with content.
    fn place(&mut self, met: Met, block: u32) {
        let range = self.range_of(met.entry);
        let visible_end = range.start.saturating_add(self.geometry.visible_len_bytes(block));
        if range.start < MIB {
            return self.broken_block(met, block, "it lies inside the header section");
        }
        if visible_end > self.report.file_len_bytes {
            return self.broken_block(met, block, "it passes the end of the file");
        }
        if range.end > self.report.file_len_bytes {
            let text = format!("block {block} is cut short by the end of the file, behind what the disk shows of it");
            self.report.odd("2.5.1", met.offset_bytes, "a block is cut short", text);
            let end = range.end.max(self.report.repairs.file_len_bytes.unwrap_or(0));
            self.report.repairs.file_len_bytes = Some(end);
        }
        self.take(met, range);
    }

    fn take(&mut self, met: Met, range: Range<u64>) {
        if self.taken.take(range.clone()) {
            self.collision_count += 1;
            if self.collisions.len() < FINDINGS_PER_KIND_MAX as usize {
                self.collisions.push((met, range));
            }
        }
    }

    /// A trimmed block may keep a claim on its old space.
    fn anchor(&mut self, met: Met, block: u32) {
        let range = self.range_of(met.entry);
        if range.start == 0 {
            return;
        }
        if range.end > self.report.file_len_bytes || range.start < MIB {
            return self.idle(met, format!("trimmed block {block} keeps a place that is not in the file"));
        }
        self.anchors += 1;
        self.anchored.take(range);
    }

    fn idle(&mut self, met: Met, text: String) {
        let text = format!("{text} (entry {:#018x})", met.entry.0);
        self.report.odd("2.5.1", met.offset_bytes, "an entry says more than its state allows", text);
        self.report.repairs.entries += 1;
    }

    fn reserved_bits(&mut self, met: Met) {
        if met.entry.0 & RESERVED_BITS != 0 {
            self.idle(met, "reserved bits of a table entry are set".to_owned());
        }
    }

    fn bitmap(&mut self, met: Met, chunk: u32, storage: &mut dyn Storage) -> Result<(), StorageError> {
        let partial = std::mem::take(&mut self.partial);
        let (entry, offset_bytes) = (met.entry.0, met.offset_bytes);
        let file_len = self.report.file_len_bytes;
        let mut broken = |rule| self.report.broken(&OpenError::Bitmap { chunk, entry, offset_bytes, rule });
        if !self.geometry.has_parent {
            if entry & 7 != 0 {
                broken("a disk without a parent has no sector bitmaps");
                self.report.repairs.entries += 1;
                self.report.repairs.errors += 1;
            }
            return Ok(());
        }
        match entry & 7 {
            0 if partial.is_empty() => {}
            0 => broken("it is absent, and the chunk has partially present blocks"),
            6 => {
                let start = met.entry.offset_bytes();
                if start < MIB {
                    broken("it lies inside the header section");
                } else if start.saturating_add(MIB) > file_len {
                    broken("it passes the end of the file");
                } else {
                    self.report.blocks.bitmaps += 1;
                    self.take(met, start..start + MIB);
                    self.bits(start, &partial, storage)?;
                }
            }
            _ => broken("its state is reserved"),
        }
        self.partial = partial;
        self.partial.clear();
        self.reserved_bits(met);
        if entry & 7 == 0 && met.entry.offset_bytes() != 0 {
            self.idle(met, format!("the sector bitmap of chunk {chunk} names a place and is absent"));
        }
        Ok(())
    }

    /// Count what partially present blocks have in the file.
    fn bits(&mut self, bitmap_bytes: u64, partial: &[u32], storage: &mut dyn Storage) -> Result<(), StorageError> {
        let sector = u64::from(self.geometry.logical_sector_bytes);
        let len = u64::from(self.geometry.block_size_bytes) / sector / 8;
        let mut bytes = vec![0; len as usize];
        for block in partial {
            let at = bitmap_bytes + u64::from(block % self.geometry.chunk_ratio) * len;
            storage.read_at(at, &mut bytes)?;
            let visible = self.geometry.visible_len_bytes(*block) / sector;
            let ones: u64 = bytes[..(visible / 8) as usize].iter().map(|byte| u64::from(byte.count_ones())).sum();
            let last = bytes.get((visible / 8) as usize).map_or(0, |byte| byte & ((1 << (visible % 8)) - 1));
            let ones = ones + u64::from(last.count_ones());
            self.report.blocks.partial_sectors += ones;
            if ones == visible || ones == 0 {
                let which = if ones == 0 { "none" } else { "all" };
                let text = format!("block {block} is partially present, and {which} of its sectors are in this file");
                self.report.note("2.5.1.1", at, "a partially present block could be simpler", text);
            }
        }
        Ok(())
    }

    /// Who else is where the colliding blocks are.
    fn name_collisions(&mut self, storage: &mut dyn Storage, spans: &[Span], entries: u64) -> Result<(), StorageError> {
        if self.collisions.is_empty() && self.anchors == 0 {
            return Ok(());
        }
        let mut others: Vec<Option<String>> = vec![None; self.collisions.len()];
        for ((_, range), other) in self.collisions.iter().zip(&mut others) {
            let span = spans.iter().find(|span| span.start < range.end && span.end > range.start);
            *other = span.map(|span| span.name.clone());
        }
        let mut scan = Scan::new(self.geometry, 0..entries);
        while let Some(met) = scan.next(storage)? {
            let Some(range) = self.occupied(&met) else { continue };
            if !met.entry.is_present() && met.entry.0 & 7 != 7 {
                if self.taken.is_taken(range) {
                    self.idle(met, format!("{} was trimmed, and the space that it keeps is in use", name_of(&met)));
                }
                continue;
            }
            for ((of, collision), other) in self.collisions.iter().zip(&mut others) {
                let overlaps = collision.start < range.end && collision.end > range.start;
                if overlaps && met.index != of.index && other.is_none() {
                    *other = Some(name_of(&met));
                }
            }
        }
        for ((met, range), other) in std::mem::take(&mut self.collisions).into_iter().zip(others) {
            let (first, second) = (other.unwrap_or_else(|| "another object".to_owned()), name_of(&met));
            self.report.broken(&OpenError::Overlap { first, second, offset_bytes: range.start });
        }
        for _ in FINDINGS_PER_KIND_MAX..self.collision_count {
            let (first, second) = ("an object".to_owned(), "a block".to_owned());
            self.report.broken(&OpenError::Overlap { first, second, offset_bytes: 0 });
        }
        Ok(())
    }

    /// The bytes that an entry claims inside the file.
    fn occupied(&self, met: &Met) -> Option<Range<u64>> {
        let range = match met.slot {
            Slot::Block(_) if matches!(met.entry.0 & 7, 1 | 3 | 6 | 7) => self.range_of(met.entry),
            Slot::Bitmap(_) if met.entry.0 & 7 == 6 && self.geometry.has_parent => {
                met.entry.offset_bytes()..met.entry.offset_bytes().saturating_add(MIB)
            }
            _ => return None,
        };
        (range.start >= MIB && range.start < self.report.file_len_bytes).then_some(range)
    }

    /// What neither an object nor a trimmed block claims.
    fn account(&mut self) {
        let mut taken = std::mem::replace(&mut self.taken, SpaceMap::new(0));
        if self.anchors != 0 {
            taken.join(&self.anchored);
        }
        let file_len = self.report.file_len_bytes;
        for free in taken.free() {
            if free.end >= file_len {
                self.report.tail_bytes = file_len - free.start;
                continue;
            }
            let len = free.end - free.start;
            self.report.unreferenced_bytes += len;
            let text = format!("{len} bytes that nothing refers to; the next allocations use them");
            self.report.note("2.1", free.start, "unreferenced space", text);
        }
    }
}

fn name_of(met: &Met) -> String {
    match met.slot {
        Slot::Block(block) => format!("block {block}"),
        Slot::Bitmap(chunk) => format!("the sector bitmap of chunk {chunk}"),
        Slot::Unused => "an unused entry".to_owned(),
    }
}
