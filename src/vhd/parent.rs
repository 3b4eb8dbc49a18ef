//! How a differencing disk names its parent: identity, file name and paths.

use uuid::Uuid;
use zerocopy::FromZeros;
use zerocopy::big_endian::{U32, U64};

use super::error::{CreateError, OpenError};
use super::format::{
    DynamicHeader, LOCATOR_W2KU, LOCATOR_W2RU, LOCATOR_WI2K, LOCATOR_WI2R, LOCATORS_MAX, Locator, SECTOR,
};
use super::open::Warning;
use super::spans::{LOCATOR, Span};
use crate::blocks::Storage;

/// Longest path that is read: more than any file system has.
const PATH_BYTES_MAX: u32 = 64 << 10;

/// Largest room for a path that is believed.
const ROOM_BYTES_MAX: u64 = 256 << 10;

/// Room for each path in files that are made here: PATH_MAX characters.
pub(super) const LOCATOR_ROOM: u64 = 8 << 10;

/// The parent of a differencing disk as the disk's file names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VhdParent {
    /// Unique id in the parent's footer, its bytes in the order of the file. The parent is the right one when its own
    /// is the same. It does not change when the parent is written, which is why that goes unnoticed.
    pub unique_id: Uuid,
    /// The parent file's modification time in seconds since the start of 2000; 0 in real files. Fit for a warning only.
    pub timestamp: u32,
    /// The parent's file name.
    pub name: String,
    /// Paths relative to the directory of this file (`W2ru`, `Wi2r`), as they stand there: Windows' separators.
    pub relative_paths: Vec<String>,
    /// Absolute paths (`W2ku`, `Wi2k`), as they stand there.
    pub absolute_paths: Vec<String>,
}

/// Bytes that are kept free for a path to grow. The field counts sectors by the specification, and bytes in files of
/// Windows; no path has room of 256 KiB or of less than a sector, so each number can be only one of the two.
fn room_of(locator: &Locator) -> u64 {
    let space = u64::from(locator.space.get());
    let bytes = if space < SECTOR { space * SECTOR } else { space };
    bytes.min(ROOM_BYTES_MAX).max(u64::from(locator.length.get()))
}

/// What a header says of the parent.
pub(super) struct ReadParent {
    pub parent: VhdParent,
    /// The places of its paths.
    pub spans: Vec<Span>,
    /// The room (from, to) that is kept for them.
    pub rooms: Vec<(u64, u64)>,
}

/// Read what a header says. A path that lies behind the end of the file is refused: blocks to come would take its
/// place.
pub(super) fn read_parent(
    storage: &mut dyn Storage,
    header: &DynamicHeader,
    warnings: &mut Vec<Warning>,
) -> Result<ReadParent, OpenError> {
    let len_bytes = storage.len_bytes()?;
    let (mut spans, mut rooms) = (Vec::new(), Vec::new());
    let mut parent = VhdParent {
        unique_id: Uuid::from_bytes(header.parent_unique_id),
        timestamp: header.parent_timestamp.get(),
        name: text_of(header.parent_name.as_chunks::<2>().0.iter().map(|unit| u16::from_be_bytes(*unit))),
        ..VhdParent::default()
    };
    for (number, locator) in header.locators.iter().enumerate() {
        if locator.code == [0; 4] {
            continue;
        }
        let (offset, length) = (locator.offset.get(), locator.length.get());
        if offset.checked_add(u64::from(length)).is_none_or(|end| end > len_bytes) {
            let rule = "it lies behind the end of the file";
            return Err(OpenError::Locator { number: number as u8, offset_bytes: offset, len_bytes: length, rule });
        }
        if length > 0 {
            spans.push(Span { start: offset, end: offset + u64::from(length), name: format!("{LOCATOR} {number}") });
        }
        rooms.push((offset, offset + room_of(locator)));
        if length > PATH_BYTES_MAX {
            warnings.push(Warning::LocatorTooLong { number: number as u8, offset_bytes: offset });
            continue;
        }
        let mut bytes = vec![0; length as usize];
        storage.read_at(offset, &mut bytes)?;
        let wide = || text_of(bytes.as_chunks::<2>().0.iter().map(|unit| u16::from_le_bytes(*unit)));
        // An 8-bit code page that nothing names: what is not ASCII is a guess.
        let narrow = || text_of(bytes.iter().map(|byte| u16::from(*byte)));
        match locator.code {
            LOCATOR_W2RU => parent.relative_paths.push(wide()),
            LOCATOR_W2KU => parent.absolute_paths.push(wide()),
            LOCATOR_WI2R => parent.relative_paths.push(narrow()),
            LOCATOR_WI2K => parent.absolute_paths.push(narrow()),
            _ => {}
        }
    }
    Ok(ReadParent { parent, spans, rooms })
}

/// UTF-16 up to the first zero.
fn text_of(units: impl Iterator<Item = u16>) -> String {
    char::decode_utf16(units.take_while(|unit| *unit != 0)).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}

/// A parent as it is written: the header's fields, and the bytes that its locators name, [`LOCATOR_ROOM`] for each.
#[derive(Debug)]
pub(super) struct EncodedParent {
    name: [u8; 512],
    paths: Vec<([u8; 4], Vec<u8>)>,
}

impl EncodedParent {
    pub fn of(parent: &VhdParent) -> Result<Self, CreateError> {
        let wide: Vec<u8> = parent.name.encode_utf16().flat_map(u16::to_be_bytes).collect();
        let mut name = [0; 512];
        let refused = |what, len_bytes, max_bytes| CreateError::ParentPath { what, len_bytes, max_bytes };
        // The last unit stays zero.
        let Some(place) = name.get_mut(..wide.len()).filter(|_| wide.len() <= 510) else {
            return Err(refused("file name", wide.len(), 510));
        };
        place.copy_from_slice(&wide);
        let mut paths = Vec::new();
        for (code, texts) in [(LOCATOR_W2RU, &parent.relative_paths), (LOCATOR_W2KU, &parent.absolute_paths)] {
            for text in texts {
                let bytes: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
                if bytes.len() as u64 > LOCATOR_ROOM {
                    return Err(refused("path", bytes.len(), LOCATOR_ROOM as usize));
                }
                paths.push((code, bytes));
            }
        }
        if paths.is_empty() {
            return Err(CreateError::ParentPathMissing);
        }
        if paths.len() > LOCATORS_MAX {
            return Err(refused("number of paths", paths.len(), LOCATORS_MAX));
        }
        Ok(Self { name, paths })
    }

    /// Bytes that the paths take in the file.
    pub fn room_bytes(&self) -> u64 {
        self.paths.len() as u64 * LOCATOR_ROOM
    }

    /// Put the parent into a header whose paths will be at `room_offset`. The header must be sealed afterwards.
    pub fn fill(&self, parent: &VhdParent, header: &mut DynamicHeader, room_offset: u64) {
        header.parent_unique_id = *parent.unique_id.as_bytes();
        header.parent_timestamp = U32::new(parent.timestamp);
        header.parent_name = self.name;
        header.locators = [Locator::new_zeroed(); LOCATORS_MAX];
        for (at, (code, bytes)) in self.paths.iter().enumerate() {
            header.locators[at] = Locator {
                code: *code,
                space: U32::new(LOCATOR_ROOM as u32),
                length: U32::new(bytes.len() as u32),
                reserved: U32::ZERO,
                offset: U64::new(room_offset + at as u64 * LOCATOR_ROOM),
            };
        }
    }

    /// What goes to `room_offset`.
    pub fn room(&self) -> Vec<u8> {
        let mut room = vec![0; self.room_bytes() as usize];
        for ((_, bytes), place) in self.paths.iter().zip(room.chunks_mut(LOCATOR_ROOM as usize)) {
            place[..bytes.len()].copy_from_slice(bytes);
        }
        room
    }
}
