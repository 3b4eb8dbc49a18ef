//! Changes of a disk that nobody uses: its size, its parent, and damaged copies of its footer.
//!
//! # Why these are safe
//!
//! What changes is written to a free place and flushed; then one footer is made to name it and flushed, then the other.
//! A footer is one sector, and is written whole or not at all. At every instant at least one footer is valid and names
//! structures that are whole: before the first footer's write both name the old ones; between the two, the footer at
//! the end names the new ones and counts, the copy still names the old ones, which are still there; the next write
//! session makes the copy follow. New structures behind the old end of the file push the end footer out of its place
//! for a while; the copy at the start serves then.
//!
//! A fixed disk has one footer, and growing moves it: until the new one is durable, a power cut may leave a file that
//! ends in zeros. [`repair`] finds the old footer behind the old data and gives the disk its old size back.

use zerocopy::IntoBytes;
use zerocopy::big_endian::{U32, U64};

use super::create::check_size;
use super::error::{ChangeError, OpenError};
use super::format::{Chs, FOOTER_LEN, Footer, HEADER_LEN, SECTOR, TYPE_FIXED, UNUSED, table_bytes};
use super::open::{Front, Kind, Loaded, load_blocks, read_front};
use super::parent::{EncodedParent, VhdParent};
use super::spans::free_place;
use super::table::BlockLayout;
use crate::blocks::{MapLimits, Storage, StorageError};

/// Bytes of a table that are copied at once, and zeros that are written at once.
const COPY_LEN: usize = 256 << 10;

/// Bits are not looked at.
const LIMITS: MapLimits = MapLimits { entry_pages_max: 2, bit_pages_max: 2 };

/// What a repair has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repaired {
    /// Nothing was wrong that a repair can mend.
    Nothing,
    /// A footer was written anew from the other.
    Footer,
    /// Growing a fixed disk was interrupted: it has its old size again, in bytes.
    InterruptedGrowth(u64),
}

/// Make both footers valid and the same, the one at the end right behind everything else.
fn mend_footers(storage: &mut dyn Storage, front: &Front, objects_end: u64) -> Result<bool, StorageError> {
    let footer = &front.footers.footer;
    let mut mended = false;
    if !front.footers.copy_good {
        storage.write_at(0, footer.as_bytes())?;
        storage.flush()?;
        mended = true;
    }
    let end = objects_end + FOOTER_LEN;
    if !front.footers.end_good || front.len_bytes != end {
        if front.len_bytes < end {
            storage.set_len(end)?;
        }
        storage.write_at(objects_end, footer.as_bytes())?;
        storage.flush()?;
        if front.len_bytes > end {
            storage.set_len(end)?;
            storage.flush()?;
        }
        mended = true;
    }
    Ok(mended)
}

/// A disk whose structures can be replaced: the places that are taken, and where everything ends.
struct Workshop<'a> {
    storage: &'a mut dyn Storage,
    loaded: Loaded,
    blocks: Vec<(u64, u64)>,
    taken: Vec<(u64, u64)>,
    end: u64,
}

impl<'a> Workshop<'a> {
    /// Check the disk, and mend its footers.
    fn open(storage: &'a mut dyn Storage, front: Front) -> Result<Self, ChangeError> {
        let loaded = load_blocks(storage, front, LIMITS)?;
        let end = loaded.blocks.objects_end;
        mend_footers(storage, &loaded.front, end)?;
        let layout = BlockLayout::new(loaded.front.shape.block_bytes());
        let placed = loaded.blocks.placed.iter();
        let blocks = placed.map(|at| (u64::from(at.sector) * SECTOR, layout.data_of(at.sector) + layout.block_bytes));
        let blocks = blocks.collect();
        let taken = loaded.front.rooms.iter().copied().chain([(end, end + FOOTER_LEN)]).collect();
        Ok(Self { storage, loaded, blocks, taken, end })
    }

    /// A free place of this length.
    fn place(&mut self, len: u64) -> u64 {
        let used: Vec<(u64, u64)> = self.blocks.iter().chain(&self.taken).copied().collect();
        let at = free_place(&self.loaded.front.spans, &used, FOOTER_LEN, len, SECTOR);
        self.taken.push((at, at + len));
        if at + len > self.end {
            self.end = (at + len).next_multiple_of(SECTOR);
        }
        at
    }

    /// Everything new has been written: make the footers name it.
    fn name(&mut self, footer: Footer) -> Result<(), StorageError> {
        let footer = footer.sealed();
        self.storage.flush()?;
        if self.storage.len_bytes()? < self.end + FOOTER_LEN {
            self.storage.set_len(self.end + FOOTER_LEN)?;
        }
        self.storage.write_at(self.end, footer.as_bytes())?;
        self.storage.flush()?;
        self.storage.write_at(0, footer.as_bytes())?;
        self.storage.flush()
    }

    fn zero(&mut self, from: u64, to: u64) -> Result<(), StorageError> {
        zero(self.storage, from, to)
    }

    /// What the last block holds behind the disk's present end would become visible: make it zeros.
    fn clear_behind_the_end(&mut self) -> Result<(), StorageError> {
        let shape = self.loaded.front.shape;
        let within = shape.size_bytes % shape.block_bytes();
        let last = shape.blocks() - 1;
        let Some(at) = self.loaded.blocks.placed.iter().find(|at| at.block == last) else { return Ok(()) };
        if within != 0 {
            let data = BlockLayout::new(shape.block_bytes()).data_of(at.sector);
            self.zero(data + within, data + shape.block_bytes())?;
            self.storage.flush()?;
        }
        Ok(())
    }

    /// A table with room for `entries`, with all that the present one has. Gives its place.
    fn larger_table(&mut self, entries: u32) -> Result<u64, StorageError> {
        let old = self.loaded.front.table();
        let blocks = u64::from(old.blocks);
        let to = self.place(table_bytes(u64::from(entries)));
        let mut bytes = vec![0; COPY_LEN];
        let end = table_bytes(u64::from(entries));
        for at in (0..end).step_by(COPY_LEN) {
            let part = &mut bytes[..(end - at).min(COPY_LEN as u64) as usize];
            part.fill(0xff);
            let known = (blocks * 4).saturating_sub(at).min(part.len() as u64) as usize;
            if known > 0 {
                self.storage.read_at(old.offset_bytes + at, &mut part[..known])?;
            }
            self.storage.write_at(to + at, part)?;
        }
        Ok(to)
    }
}

fn zero(storage: &mut dyn Storage, from: u64, to: u64) -> Result<(), StorageError> {
    let zeros = vec![0; COPY_LEN.min(to.saturating_sub(from) as usize)];
    for at in (from..to).step_by(COPY_LEN) {
        storage.write_at(at, &zeros[..(to - at).min(COPY_LEN as u64) as usize])?;
    }
    Ok(())
}

/// Give the disk a new size: more than it has, at most 2040 GiB. New space reads as zeros.
pub fn resize(storage: &mut dyn Storage, size_bytes: u64) -> Result<(), ChangeError> {
    let front = read_front(storage)?;
    let old_bytes = front.shape.size_bytes;
    if size_bytes < old_bytes {
        return Err(ChangeError::Shrink { size_bytes: old_bytes, asked_bytes: size_bytes });
    }
    check_size(size_bytes)?;
    if size_bytes == old_bytes {
        return Ok(());
    }
    let mut footer = front.footers.footer;
    footer.current_size = U64::new(size_bytes);
    footer.set_geometry(Chs::for_size(size_bytes));
    if front.kind == Kind::Fixed {
        return grow_fixed(storage, &front, footer);
    }
    let (mut header, _) = front.header.expect("only fixed disks have none");
    let entries = size_bytes.div_ceil(front.shape.block_bytes()) as u32;
    let mut workshop = Workshop::open(storage, front)?;
    workshop.clear_behind_the_end()?;
    if entries > header.max_table_entries.get() {
        header.table_offset = U64::new(workshop.larger_table(entries)?);
        header.max_table_entries = U32::new(entries);
        let at = workshop.place(HEADER_LEN);
        workshop.storage.write_at(at, header.sealed().as_bytes())?;
        footer.data_offset = U64::new(at);
    } else {
        forget_surplus(&mut workshop, entries)?;
    }
    Ok(workshop.name(footer)?)
}

/// The table has entries for more blocks than the disk had: they name none.
fn forget_surplus(workshop: &mut Workshop<'_>, entries: u32) -> Result<(), ChangeError> {
    let table = workshop.loaded.front.table();
    let (from, to) = (table.entry_offset(table.blocks), table.entry_offset(entries));
    let end = table.offset_bytes + table_bytes(u64::from(entries));
    let others = workshop.loaded.front.spans.iter().filter(|span| span.start != table.offset_bytes);
    let others = others.map(|span| (span.start, span.end));
    let mut used = others.chain(workshop.blocks.iter().copied()).chain(workshop.taken.iter().copied());
    if let Some((start, _)) = used.find(|(start, stop)| *start < end && table.offset_bytes < *stop) {
        let first = "the block allocation table that the new size needs".to_owned();
        let second = "another structure".to_owned();
        return Err(OpenError::Overlap { first, second, offset_bytes: start }.into());
    }
    for at in (from..to).step_by(COPY_LEN) {
        let len = (to - at).min(COPY_LEN as u64) as usize;
        workshop.storage.write_at(at, &UNUSED.to_be_bytes().repeat(len / 4))?;
    }
    Ok(workshop.storage.flush()?)
}

fn grow_fixed(storage: &mut dyn Storage, front: &Front, footer: Footer) -> Result<(), ChangeError> {
    let (old_end, new_end) = (front.shape.size_bytes, footer.current_size.get());
    let old_footer = front.footers.end_offset.unwrap_or(old_end);
    // Between data and footer there may be bytes of nobody.
    zero(storage, old_end, old_footer.min(new_end))?;
    if front.len_bytes < new_end + FOOTER_LEN {
        storage.set_len(new_end + FOOTER_LEN)?;
    }
    storage.write_at(new_end, footer.sealed().as_bytes())?;
    storage.flush()?;
    storage.set_len(new_end + FOOTER_LEN)?;
    if old_footer < new_end {
        zero(storage, old_footer, front.len_bytes.min(new_end))?;
    }
    Ok(storage.flush()?)
}

/// Give a differencing disk another parent: the same content at another place, or (after a merge) another file with
/// what the old one had.
pub fn set_parent(storage: &mut dyn Storage, parent: &VhdParent) -> Result<(), ChangeError> {
    let front = read_front(storage)?;
    if front.kind != Kind::Differencing {
        return Err(ChangeError::NotDifferencing);
    }
    let encoded = EncodedParent::of(parent)?;
    let (mut header, _) = front.header.expect("only fixed disks have none");
    let mut footer = front.footers.footer;
    let mut workshop = Workshop::open(storage, front)?;
    // In one piece, so that what is left behind has room for the next change.
    let at = workshop.place(HEADER_LEN + encoded.room_bytes());
    encoded.fill(parent, &mut header, at + HEADER_LEN);
    workshop.storage.write_at(at, header.sealed().as_bytes())?;
    workshop.storage.write_at(at + HEADER_LEN, &encoded.room())?;
    footer.data_offset = U64::new(at);
    Ok(workshop.name(footer)?)
}

/// Mend what can be mended without guessing: a footer that is missing, damaged or behind the times, and the size of a
/// fixed disk whose growth was interrupted. Everything else that [`check`](super::check) finds needs a backup.
pub fn repair(storage: &mut dyn Storage) -> Result<Repaired, ChangeError> {
    let front = match read_front(storage) {
        Err(OpenError::NotVhd) => return undo_growth(storage),
        front => front?,
    };
    if front.kind == Kind::Fixed {
        return Ok(Repaired::Nothing);
    }
    let loaded = load_blocks(storage, front, LIMITS)?;
    let mended = mend_footers(storage, &loaded.front, loaded.blocks.objects_end)?;
    Ok(if mended { Repaired::Footer } else { Repaired::Nothing })
}

/// The last bytes of the file that are not zero must be a footer of a fixed disk that ends there.
fn undo_growth(storage: &mut dyn Storage) -> Result<Repaired, ChangeError> {
    let mut end = storage.len_bytes()?;
    let mut bytes = vec![0; COPY_LEN];
    while end > 0 {
        let part = &mut bytes[..end.min(COPY_LEN as u64) as usize];
        let start = end - part.len() as u64;
        storage.read_at(start, part)?;
        if let Some(last) = part.iter().rposition(|byte| *byte != 0) {
            // The last byte of a footer that is not zero is at most the saved state's.
            let offset = (start + last as u64) / SECTOR * SECTOR;
            let mut footer = Footer::zeroed();
            storage.read_at(offset, footer.as_mut_bytes())?;
            let fits = footer.is_valid()
                && footer.disk_type.get() == TYPE_FIXED
                && footer.current_size.get() == offset
                && offset + FOOTER_LEN < storage.len_bytes()?;
            if !fits {
                break;
            }
            storage.set_len(offset + FOOTER_LEN)?;
            storage.flush()?;
            return Ok(Repaired::InterruptedGrowth(offset));
        }
        end = start;
    }
    Err(OpenError::NotVhd.into())
}
