//! Opening: footers, dynamic header, block allocation table, parent, all validated. Nothing is written.

use std::sync::Arc;

use uuid::Uuid;
use zerocopy::FromBytes;

use super::engine::{Engine, FileState};
use super::error::OpenError;
use super::format::{
    BLOCK_SIZE_DEFAULT, BLOCK_SIZE_MAX, BLOCK_SIZE_MIN, DISK_SIZE_MAX, DynamicHeader, FOOTER_COOKIE, FOOTER_LEN,
    FOOTER_LEN_OLD, Footer, HEADER_COOKIE, HEADER_LEN, SECTOR, TYPE_DIFFERENCING, TYPE_DYNAMIC, TYPE_FIXED,
    VERSION_MAJOR, table_bytes,
};
use super::parent::{VhdParent, read_parent};
use super::spans::Span;
use super::table::{Blocks, TablePlace, load_table, new_map};
use crate::blocks::{BlockMap, MapLimits, Shape, Storage};

/// What will be done with the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing is written.
    ReadOnly,
    /// An engine is made.
    ReadWrite,
}

/// How to open.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    /// Read only or read-write.
    pub access: Access,
    /// Sector bits in memory. The block table always is: 8 bytes for each block.
    pub limits: MapLimits,
}

/// How a disk's space is managed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Byte n of the disk is byte n of the file.
    Fixed,
    /// Blocks get space when they are first written.
    Dynamic,
    /// The same, and what is not here is the parent's.
    Differencing,
}

/// Something unusual that does not stop the disk from being used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Warning {
    /// The next write session writes it anew.
    #[error("the footer at the end of the file is missing or damaged; its copy at the start is used")]
    EndFooterInvalid,
    /// The next write session writes it anew.
    #[error("the footer's copy at the start of the file is damaged; the footer at the end is used")]
    FooterCopyInvalid,
    /// A change was interrupted. The next write session makes them the same.
    #[error("the footer and its copy at the start of the file differ; the one at the end counts")]
    FootersDiffer,
    /// The path is not used.
    #[error("parent locator {number} (at byte {offset_bytes}) is longer than any path")]
    LocatorTooLong {
        /// Which, 0 to 7.
        number: u8,
        /// Where its path should be.
        offset_bytes: u64,
    },
    /// The surplus is ignored.
    #[error("the block allocation table has {entries} entries; the disk needs {needed}")]
    TableTooLarge {
        /// What the header says.
        entries: u32,
        /// Blocks of the disk.
        needed: u32,
    },
    /// Writing to the disk would break what was saved.
    #[error("the disk belongs to a virtual machine in saved state")]
    SavedState,
}

/// An open disk.
pub struct OpenVhd {
    /// Its shape. Sectors have 512 bytes. For fixed disks the block size means nothing.
    pub shape: Shape,
    /// How its space is managed.
    pub kind: Kind,
    /// Where its blocks are; `None` for fixed disks.
    pub map: Option<Arc<BlockMap>>,
    /// Opened for writing, and not fixed.
    pub engine: Option<Box<Engine>>,
    /// Its identity, the bytes in the order of the file. Children name it.
    pub unique_id: Uuid,
    /// Creation, in seconds since the start of 2000.
    pub timestamp: u32,
    /// For differencing disks.
    pub parent: Option<VhdParent>,
    /// Who made the file; for people only.
    pub creator: String,
    /// Oddities for the operator.
    pub warnings: Vec<Warning>,
}

/// What the file says without its blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// How its space is managed.
    pub kind: Kind,
    /// Size of the disk in bytes.
    pub size_bytes: u64,
    /// Bytes of a block; `None` for fixed disks.
    pub block_size_bytes: Option<u64>,
    /// Its identity.
    pub unique_id: Uuid,
    /// Creation, in seconds since the start of 2000.
    pub timestamp: u32,
    /// For differencing disks.
    pub parent: Option<VhdParent>,
    /// Who made the file; for people only.
    pub creator: String,
    /// Oddities for the operator.
    pub warnings: Vec<Warning>,
}

/// Both footers as they were found.
#[derive(Clone, Debug)]
pub(super) struct Footers {
    /// The one that counts.
    pub footer: Footer,
    /// Where the end footer is, if it is valid; 512 bytes long.
    pub end_offset: Option<u64>,
    /// Whether the end footer is as the one that counts, 512 bytes long and at the very end.
    pub end_good: bool,
    /// Whether the copy at 0 is (always, for fixed disks: they have none).
    pub copy_good: bool,
}

/// Footer and header of a file.
pub(super) struct Front {
    pub footers: Footers,
    pub kind: Kind,
    pub shape: Shape,
    /// With its place; not for fixed disks.
    pub header: Option<(DynamicHeader, u64)>,
    pub parent: Option<VhdParent>,
    /// Everything that has a place and is no block, in no order.
    pub spans: Vec<Span>,
    /// Room (from, to) that others keep for longer paths to the parent. Nothing is put there; what is there is no
    /// fault.
    pub rooms: Vec<(u64, u64)>,
    pub warnings: Vec<Warning>,
    pub len_bytes: u64,
}

impl Front {
    /// The table's place; for disks that have one.
    pub fn table(&self) -> TablePlace {
        let (header, _) = self.header.as_ref().expect("a disk that is not fixed has a header");
        TablePlace { offset_bytes: header.table_offset.get(), blocks: self.shape.blocks() }
    }
}

fn read_footer(storage: &mut dyn Storage, offset: u64, len: u64) -> Result<Footer, OpenError> {
    let mut bytes = [0; FOOTER_LEN as usize];
    storage.read_at(offset, &mut bytes[..len as usize])?;
    Ok(Footer::read_from_bytes(&bytes).expect("a footer has this length"))
}

/// Find the footer that counts.
pub(super) fn read_footers(storage: &mut dyn Storage, warnings: &mut Vec<Warning>) -> Result<Footers, OpenError> {
    let len = storage.len_bytes()?;
    if !(FOOTER_LEN_OLD..=1 << 62).contains(&len) {
        return Err(OpenError::NotVhd);
    }
    let mut damaged = None;
    let mut valid = |footer: Footer, offset| {
        if footer.cookie == FOOTER_COOKIE && !footer.is_valid() {
            damaged.get_or_insert((footer, offset));
        }
        footer.is_valid().then_some((footer, offset))
    };
    let old = read_footer(storage, len - FOOTER_LEN_OLD, FOOTER_LEN_OLD)?;
    let (mut end, mut copy) = (None, None);
    if len >= FOOTER_LEN {
        end = valid(read_footer(storage, len - FOOTER_LEN, FOOTER_LEN)?, len - FOOTER_LEN);
        copy = valid(read_footer(storage, 0, FOOTER_LEN)?, 0).filter(|(copy, _)| copy.disk_type.get() != TYPE_FIXED);
    }
    let whole = end.is_some();
    let end = end.or_else(|| valid(old, len - FOOTER_LEN_OLD));
    let Some((footer, _)) = end.or(copy) else {
        let Some((footer, offset_bytes)) = damaged else { return Err(OpenError::NotVhd) };
        let (found, expected) = (footer.checksum.get(), footer.expected_checksum());
        let other = if offset_bytes == 0 { "; there is none at the end" } else { "; no valid copy is at the start" };
        return Err(OpenError::FooterChecksum { offset_bytes, found, expected, other });
    };
    let fixed = footer.disk_type.get() == TYPE_FIXED;
    match (end, copy) {
        (None, _) => warnings.push(Warning::EndFooterInvalid),
        (_, None) if !fixed => warnings.push(Warning::FooterCopyInvalid),
        (Some((end, _)), Some((copy, _))) if !fixed && end != copy => warnings.push(Warning::FootersDiffer),
        _ => {}
    }
    let copy_good = fixed || copy.is_some_and(|(copy, _)| copy == footer);
    Ok(Footers { footer, end_offset: end.map(|(_, offset)| offset), end_good: whole, copy_good })
}

/// Read footers and header, and check them.
pub(super) fn read_front(storage: &mut dyn Storage) -> Result<Front, OpenError> {
    let mut warnings = Vec::new();
    let len_bytes = storage.len_bytes()?;
    let footers = read_footers(storage, &mut warnings)?;
    let footer = &footers.footer;
    if footer.version.get() >> 16 != VERSION_MAJOR {
        return Err(OpenError::Version { version: footer.version.get() });
    }
    let kind = match footer.disk_type.get() {
        TYPE_FIXED => Kind::Fixed,
        TYPE_DYNAMIC => Kind::Dynamic,
        TYPE_DIFFERENCING => Kind::Differencing,
        disk_type => return Err(OpenError::DiskType { disk_type }),
    };
    let size_bytes = footer.current_size.get();
    let refused = |rule| Err(OpenError::Size { size_bytes, rule });
    if size_bytes == 0 || !size_bytes.is_multiple_of(SECTOR) {
        return refused("a disk is one sector of 512 bytes or more, and whole sectors");
    }
    if size_bytes > DISK_SIZE_MAX {
        return refused("2040 GiB is the limit of the format");
    }
    if footer.saved_state != 0 {
        warnings.push(Warning::SavedState);
    }
    let shape = |block_bytes: u64| Shape {
        size_bytes,
        block_shift: block_bytes.trailing_zeros() as u8,
        sector_shift: SECTOR.trailing_zeros() as u8,
        chunk_blocks: u32::MAX,
        has_parent: kind == Kind::Differencing,
    };
    if kind == Kind::Fixed {
        let available_bytes = footers.end_offset.unwrap_or(len_bytes);
        if size_bytes > available_bytes {
            return Err(OpenError::FixedTooShort { size_bytes, available_bytes });
        }
        let shape = shape(BLOCK_SIZE_DEFAULT);
        let (spans, rooms) = (vec![], vec![]);
        return Ok(Front { footers, kind, shape, header: None, parent: None, spans, rooms, warnings, len_bytes });
    }
    let (header, header_offset) = read_header(storage, footer.data_offset.get(), len_bytes)?;
    let shape = shape(u64::from(header.block_size.get()));
    let mut spans = check_header(&header, header_offset, &shape, len_bytes, &mut warnings)?;
    let (mut parent, mut rooms) = (None, vec![]);
    if kind == Kind::Differencing {
        let read = read_parent(storage, &header, &mut warnings)?;
        (parent, rooms) = (Some(read.parent), read.rooms);
        spans.extend(read.spans);
    }
    check_spans(&spans, footers.end_offset, len_bytes)?;
    let header = Some((header, header_offset));
    Ok(Front { footers, kind, shape, header, parent, spans, rooms, warnings, len_bytes })
}

fn read_header(storage: &mut dyn Storage, offset_bytes: u64, len: u64) -> Result<(DynamicHeader, u64), OpenError> {
    let refused = |rule| Err(OpenError::Header { offset_bytes, rule });
    let inside = offset_bytes.checked_add(HEADER_LEN).is_some_and(|end| end <= len);
    if !inside || offset_bytes < FOOTER_LEN || !offset_bytes.is_multiple_of(SECTOR) {
        return refused("it must be whole sectors inside the file, behind the copy of the footer");
    }
    let mut bytes = [0; HEADER_LEN as usize];
    storage.read_at(offset_bytes, &mut bytes)?;
    let header = DynamicHeader::read_from_bytes(&bytes).expect("a header has this length");
    if header.cookie != HEADER_COOKIE {
        return refused("it does not begin with 'cxsparse'");
    }
    if !header.is_valid() {
        return refused("its checksum does not fit its content");
    }
    if header.version.get() >> 16 != VERSION_MAJOR {
        return refused("its version is not known (0x00010000 is)");
    }
    Ok((header, offset_bytes))
}

/// Block size and table.
fn check_header(
    header: &DynamicHeader,
    header_offset: u64,
    shape: &Shape,
    len_bytes: u64,
    warnings: &mut Vec<Warning>,
) -> Result<Vec<Span>, OpenError> {
    let block_bytes = header.block_size.get();
    if !block_bytes.is_power_of_two() || !(BLOCK_SIZE_MIN..=BLOCK_SIZE_MAX).contains(&u64::from(block_bytes)) {
        return Err(OpenError::BlockSize { block_bytes });
    }
    let (entries, needed) = (header.max_table_entries.get(), shape.blocks());
    if entries < needed {
        return Err(OpenError::TableTooSmall { entries, needed });
    }
    if entries > needed {
        warnings.push(Warning::TableTooLarge { entries, needed });
    }
    let (offset_bytes, table_len) = (header.table_offset.get(), table_bytes(u64::from(needed)));
    let refused = |rule| Err(OpenError::TablePlace { offset_bytes, len_bytes: table_len, rule });
    if offset_bytes < FOOTER_LEN || !offset_bytes.is_multiple_of(SECTOR) {
        return refused("it must start at a whole sector behind the copy of the footer");
    }
    // The padding of the last sector may be missing at the end of a file without footer.
    if offset_bytes.checked_add(u64::from(needed) * 4).is_none_or(|end| end > len_bytes) {
        return refused("it lies behind the end of the file");
    }
    let header_end = header_offset + HEADER_LEN;
    let span = |start, end, name: &str| Span { start, end, name: name.to_owned() };
    Ok(vec![
        span(0, FOOTER_LEN, "the copy of the footer"),
        span(header_offset, header_end, "the dynamic header"),
        span(offset_bytes, offset_bytes + table_len, "the block allocation table"),
    ])
}

/// Whether each structure has its place to itself. Two paths to the parent may share theirs: neither is written.
fn check_spans(spans: &[Span], footer: Option<u64>, len_bytes: u64) -> Result<(), OpenError> {
    let footer = footer.map(|start| Span { start, end: len_bytes, name: "the footer".to_owned() });
    let all: Vec<&Span> = spans.iter().chain(&footer).collect();
    for (number, one) in all.iter().enumerate() {
        for other in &all[..number] {
            let paths = one.is_locator() && other.is_locator();
            if !paths && one.start < other.end && other.start < one.end {
                let (first, second) = (other.name.clone(), one.name.clone());
                return Err(OpenError::Overlap { first, second, offset_bytes: one.start.max(other.start) });
            }
        }
    }
    Ok(())
}

/// A file that has passed every check.
pub(super) struct Loaded {
    pub front: Front,
    pub map: BlockMap,
    pub blocks: Blocks,
}

/// Read the blocks of a disk that is not fixed.
pub(super) fn load_blocks(storage: &mut dyn Storage, front: Front, limits: MapLimits) -> Result<Loaded, OpenError> {
    let map = new_map(front.shape, limits);
    let data_end = front.footers.end_offset.unwrap_or(front.len_bytes);
    let mut blocks = load_table(storage, front.table(), &map, &front.spans, data_end)?;
    // What a table has beyond the disk's need, and room for paths, stay untouched where they are plausible.
    let (header, _) = front.header.as_ref().expect("only fixed disks have none");
    let surplus = header.table_offset.get() + table_bytes(u64::from(header.max_table_entries.get()));
    let reserved = front.rooms.iter().map(|(_, end)| *end).chain([surplus]);
    for end in reserved.filter(|end| *end <= data_end) {
        blocks.objects_end = blocks.objects_end.max(end.next_multiple_of(SECTOR));
    }
    Ok(Loaded { front, map, blocks })
}

/// Open a disk. The file is not modified, whatever the access.
pub fn open(storage: &mut dyn Storage, options: OpenOptions) -> Result<OpenVhd, OpenError> {
    let front = read_front(storage)?;
    let footer = front.footers.footer;
    let (shape, kind) = (front.shape, front.kind);
    let open = |map, engine, front: Front| OpenVhd {
        shape,
        kind,
        map,
        engine,
        unique_id: Uuid::from_bytes(footer.unique_id),
        timestamp: footer.timestamp.get(),
        parent: front.parent,
        creator: footer.creator(),
        warnings: front.warnings,
    };
    if kind == Kind::Fixed {
        return Ok(open(None, None, front));
    }
    let Loaded { front, map, blocks } = load_blocks(storage, front, options.limits)?;
    let map = Arc::new(map);
    let engine = (options.access == Access::ReadWrite).then(|| {
        let file = FileState {
            footer,
            end_good: front.footers.end_good,
            copy_good: front.footers.copy_good,
            len_bytes: front.len_bytes,
            objects_end_bytes: blocks.objects_end,
            table_offset_bytes: front.table().offset_bytes,
        };
        Box::new(Engine::new(Arc::clone(&map), file))
    });
    Ok(open(Some(map), engine, front))
}

/// Read what the file says of itself, without looking at its blocks.
pub fn describe(storage: &mut dyn Storage) -> Result<Description, OpenError> {
    let Front { footers, kind, shape, parent, warnings, .. } = read_front(storage)?;
    Ok(Description {
        kind,
        size_bytes: shape.size_bytes,
        block_size_bytes: (kind != Kind::Fixed).then(|| shape.block_bytes()),
        unique_id: Uuid::from_bytes(footers.footer.unique_id),
        timestamp: footers.footer.timestamp.get(),
        parent,
        creator: footers.footer.creator(),
        warnings,
    })
}
