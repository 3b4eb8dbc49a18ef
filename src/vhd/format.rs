//! The structures on disk, field by field (Virtual Hard Disk Image Format Specification 1.0, October 2006; the clauses
//! are named by their headings). All integers are big-endian.

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The sector of the format, always: disks, tables and footers are counted in it.
pub const SECTOR: u64 = 512;
/// 1 MiB.
pub const MIB: u64 = 1 << 20;
/// Bytes of a footer.
pub const FOOTER_LEN: u64 = 512;
/// Bytes of a footer written before 2004 ("Hard Disk Footer Format").
pub const FOOTER_LEN_OLD: u64 = 511;
/// Bytes of the dynamic header.
pub const HEADER_LEN: u64 = 1024;
/// Cookie of a footer.
pub const FOOTER_COOKIE: [u8; 8] = *b"conectix";
/// Cookie of a dynamic header.
pub const HEADER_COOKIE: [u8; 8] = *b"cxsparse";
/// File Format Version and Header Version, upper half: a reader must refuse another one.
pub const VERSION_MAJOR: u32 = 1;
/// The whole field.
pub const VERSION: u32 = 0x0001_0000;
/// "No further structure": DataOffset of a fixed disk's footer, and of every dynamic header.
pub const NO_OFFSET: u64 = u64::MAX;
/// Features: always set.
pub const FEATURE_RESERVED: u32 = 2;
/// A table entry without a block.
pub const UNUSED: u32 = u32::MAX;
/// Largest disk: 2040 GiB, what Windows accepts; table entries are 32-bit sector numbers.
pub const DISK_SIZE_MAX: u64 = 2040 << 30;
/// Smallest block that is read or made.
pub const BLOCK_SIZE_MIN: u64 = 512 << 10;
/// Largest block that is read.
pub const BLOCK_SIZE_MAX: u64 = 256 * MIB;
/// What new disks get unless they are told otherwise, and the largest that Windows accepts.
pub const BLOCK_SIZE_DEFAULT: u64 = 2 * MIB;
/// Seconds from the start of 1970 to the start of 2000, from where time stamps count.
pub const EPOCH_UNIX_SECONDS: u64 = 946_684_800;
/// Sectors that the largest geometry can name.
pub const CHS_SECTORS_MAX: u64 = 65535 * 16 * 255;

/// Disk Type of a fixed disk.
pub const TYPE_FIXED: u32 = 2;
/// Disk Type of a dynamic disk.
pub const TYPE_DYNAMIC: u32 = 3;
/// Disk Type of a differencing disk.
pub const TYPE_DIFFERENCING: u32 = 4;

/// Windows relative path, UTF-16LE.
pub const LOCATOR_W2RU: [u8; 4] = *b"W2ru";
/// Windows absolute path, UTF-16LE.
pub const LOCATOR_W2KU: [u8; 4] = *b"W2ku";
/// Windows relative path in an 8-bit code page, obsolete.
pub const LOCATOR_WI2R: [u8; 4] = *b"Wi2r";
/// Windows absolute path in an 8-bit code page, obsolete.
pub const LOCATOR_WI2K: [u8; 4] = *b"Wi2k";
/// Places for parent locators in a dynamic header.
pub const LOCATORS_MAX: usize = 8;

/// The footer: the last 512 bytes of every file, and the first of those that are not fixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Footer {
    /// [`FOOTER_COOKIE`].
    pub cookie: [u8; 8],
    /// [`FEATURE_RESERVED`], and bit 0: a temporary disk.
    pub features: U32,
    /// [`VERSION`].
    pub version: U32,
    /// Where the dynamic header is; [`NO_OFFSET`] for fixed disks.
    pub data_offset: U64,
    /// Of creation, in seconds since the start of 2000 UTC.
    pub timestamp: U32,
    /// Who made the file.
    pub creator_application: [u8; 4],
    /// Its version.
    pub creator_version: U32,
    /// `Wi2k` or `Mac `.
    pub creator_host: [u8; 4],
    /// Size of the disk when it was created.
    pub original_size: U64,
    /// Size of the disk in bytes.
    pub current_size: U64,
    /// Geometry: cylinders.
    pub cylinders: U16,
    /// Geometry: heads.
    pub heads: u8,
    /// Geometry: sectors for each track.
    pub sectors_per_track: u8,
    /// Disk Type.
    pub disk_type: U32,
    /// One's complement of the sum of all other bytes.
    pub checksum: U32,
    /// The disk's identity; children name it.
    pub unique_id: [u8; 16],
    /// 1: the disk belongs to a virtual machine in saved state.
    pub saved_state: u8,
    /// Zeros. The last of them is missing in files written before 2004.
    pub reserved: [u8; 427],
}

/// Where a path to the parent is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Locator {
    /// What kind of path; zeros: none.
    pub code: [u8; 4],
    /// Room for the path. In sectors by the specification; Windows writes bytes. Nothing here depends on it.
    pub space: U32,
    /// Bytes of the path.
    pub length: U32,
    /// Zero.
    pub reserved: U32,
    /// Where in the file.
    pub offset: U64,
}

/// The header of dynamic and differencing disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DynamicHeader {
    /// [`HEADER_COOKIE`].
    pub cookie: [u8; 8],
    /// [`NO_OFFSET`].
    pub data_offset: U64,
    /// Where the block allocation table is.
    pub table_offset: U64,
    /// [`VERSION`].
    pub version: U32,
    /// Entries of the table.
    pub max_table_entries: U32,
    /// Bytes of a block, without its bitmap.
    pub block_size: U32,
    /// One's complement of the sum of all other bytes.
    pub checksum: U32,
    /// The parent's identity.
    pub parent_unique_id: [u8; 16],
    /// The parent file's modification time, in seconds since the start of 2000 UTC. Real files hold zero here.
    pub parent_timestamp: U32,
    /// Zero.
    pub reserved: U32,
    /// The parent's file name, UTF-16BE.
    pub parent_name: [u8; 512],
    /// Paths to the parent.
    pub locators: [Locator; LOCATORS_MAX],
    /// Zeros.
    pub reserved2: [u8; 256],
}

const _: () = assert!(size_of::<Footer>() == FOOTER_LEN as usize);
const _: () = assert!(size_of::<Locator>() == 24);
const _: () = assert!(size_of::<DynamicHeader>() == HEADER_LEN as usize);
// Every block of the largest disk has a sector number, with its bitmap in a page of 4 KiB of its own.
const _: () =
    assert!(DISK_SIZE_MAX / BLOCK_SIZE_DEFAULT * (BLOCK_SIZE_DEFAULT / SECTOR + 8) < UNUSED as u64 - (1 << 16));

/// One's complement of the sum of the bytes ("Checksum").
fn checksum_of(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)))
}

impl Footer {
    /// All fields zero.
    pub fn zeroed() -> Self {
        Self::new_zeroed()
    }

    /// The checksum that these fields should carry.
    pub fn expected_checksum(&self) -> u32 {
        checksum_of(Self { checksum: U32::ZERO, ..*self }.as_bytes())
    }

    /// Cookie and checksum are right.
    pub fn is_valid(&self) -> bool {
        self.cookie == FOOTER_COOKIE && self.checksum.get() == self.expected_checksum()
    }

    /// The same fields with the checksum that belongs to them.
    pub fn sealed(self) -> Self {
        Self { checksum: U32::new(self.expected_checksum()), ..self }
    }

    /// Set the geometry that belongs to a size.
    pub fn set_geometry(&mut self, geometry: Chs) {
        self.cylinders = U16::new(geometry.cylinders);
        self.heads = geometry.heads;
        self.sectors_per_track = geometry.sectors_per_track;
    }

    /// The geometry.
    pub fn geometry(&self) -> Chs {
        Chs { cylinders: self.cylinders.get(), heads: self.heads, sectors_per_track: self.sectors_per_track }
    }

    /// Who made the file, for people.
    pub fn creator(&self) -> String {
        let printable = |byte: &u8| if (32..127).contains(byte) { char::from(*byte) } else { ' ' };
        let name: String = self.creator_application.iter().map(printable).collect();
        let version = self.creator_version.get();
        format!("{} {}.{}", name.trim_end(), version >> 16, version & 0xffff).trim_start().to_owned()
    }
}

impl DynamicHeader {
    /// All fields zero.
    pub fn zeroed() -> Self {
        Self::new_zeroed()
    }

    /// The checksum that these fields should carry.
    pub fn expected_checksum(&self) -> u32 {
        checksum_of(Self { checksum: U32::ZERO, ..*self }.as_bytes())
    }

    /// Cookie and checksum are right.
    pub fn is_valid(&self) -> bool {
        self.cookie == HEADER_COOKIE && self.checksum.get() == self.expected_checksum()
    }

    /// The same fields with the checksum that belongs to them.
    pub fn sealed(self) -> Self {
        Self { checksum: U32::new(self.expected_checksum()), ..self }
    }
}

/// A geometry of cylinders, heads and sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chs {
    /// Cylinders.
    pub cylinders: u16,
    /// Heads.
    pub heads: u8,
    /// Sectors for each track.
    pub sectors_per_track: u8,
}

impl Chs {
    /// The geometry of 65535 cylinders, 16 heads and 255 sectors: readers take it to mean that the size counts.
    pub const LARGEST: Self = Self { cylinders: 65535, heads: 16, sectors_per_track: 255 };

    /// The geometry for this many sectors ("CHS Calculation"). It may name fewer sectors than there are.
    pub fn of_sectors(sectors: u64) -> Self {
        let sectors = sectors.min(CHS_SECTORS_MAX);
        let (mut heads, mut track, mut cylinder_heads);
        if sectors >= 65535 * 16 * 63 {
            (heads, track) = (16, 255);
            cylinder_heads = sectors / track;
        } else {
            track = 17;
            cylinder_heads = sectors / track;
            heads = cylinder_heads.div_ceil(1024).max(4);
            if cylinder_heads >= heads * 1024 || heads > 16 {
                (heads, track) = (16, 31);
                cylinder_heads = sectors / track;
            }
            if cylinder_heads >= heads * 1024 {
                (heads, track) = (16, 63);
                cylinder_heads = sectors / track;
            }
        }
        Self { cylinders: (cylinder_heads / heads) as u16, heads: heads as u8, sectors_per_track: track as u8 }
    }

    /// Sectors that it names.
    pub fn sectors(&self) -> u64 {
        u64::from(self.cylinders) * u64::from(self.heads) * u64::from(self.sectors_per_track)
    }

    /// The geometry for a new disk's footer: the calculated one where it names every sector, else the largest, so that
    /// readers that go by geometry (QEMU, for creators that it does not know) see the size that was asked for.
    pub fn for_size(size_bytes: u64) -> Self {
        let calculated = Self::of_sectors(size_bytes / SECTOR);
        if calculated.sectors() * SECTOR == size_bytes { calculated } else { Self::LARGEST }
    }
}

/// A time stamp of the format, from seconds since the start of 1970 UTC; 0 before 2000, saturated in 2136.
pub fn timestamp_of(unix_seconds: u64) -> u32 {
    unix_seconds.saturating_sub(EPOCH_UNIX_SECONDS).min(u64::from(u32::MAX)) as u32
}

/// Seconds since the start of 1970 UTC, from a time stamp of the format.
pub fn unix_seconds_of(timestamp: u32) -> u64 {
    EPOCH_UNIX_SECONDS + u64::from(timestamp)
}

/// Bytes of the bitmap in front of a block: one bit for each sector, whole sectors.
pub fn bitmap_bytes(block_bytes: u64) -> u64 {
    (block_bytes / SECTOR / 8).next_multiple_of(SECTOR)
}

/// Bytes that a table of this many entries takes in the file, padded to a sector.
pub fn table_bytes(entries: u64) -> u64 {
    (entries * 4).next_multiple_of(SECTOR)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Geometries that stand in files written by Windows, Virtual PC and QEMU.
    #[test]
    fn the_geometry_is_that_of_others() {
        for (size_bytes, cylinders, heads, track) in
            [(4_194_304, 120, 4, 17), (4_212_736, 121, 4, 17), (104_448, 3, 4, 17), (136_365_211_648, 65278, 16, 255)]
        {
            let chs = Chs { cylinders, heads, sectors_per_track: track };
            assert_eq!(Chs::of_sectors(size_bytes / SECTOR), chs, "{size_bytes}");
        }
        assert_eq!(Chs::of_sectors(u64::MAX), Chs::LARGEST);
        assert_eq!(Chs::of_sectors(0).sectors(), 0);
    }

    #[test]
    fn a_new_disks_geometry_never_names_another_size() {
        assert_eq!(Chs::for_size(121 * 4 * 17 * 512), Chs { cylinders: 121, heads: 4, sectors_per_track: 17 });
        assert_eq!(Chs::for_size(4_194_304), Chs::LARGEST);
    }

    /// The arithmetic stays inside its types for every size: a million sizes over all magnitudes.
    #[test]
    fn the_geometry_never_names_more_than_there_is() {
        let mut sectors = 1u64;
        for step in 0..1_000_000u64 {
            assert!(Chs::of_sectors(sectors).sectors() <= sectors);
            sectors = (sectors + sectors / 30_000 + step % 7 + 1).min(1 << 33);
        }
    }

    #[test]
    fn checksums_cover_every_byte_but_themselves() {
        let mut footer = Footer { cookie: FOOTER_COOKIE, ..Footer::zeroed() }.sealed();
        assert!(footer.is_valid());
        footer.reserved[426] = 1;
        assert!(!footer.is_valid());
        let header = DynamicHeader { cookie: HEADER_COOKIE, ..DynamicHeader::zeroed() }.sealed();
        assert!(header.is_valid() && !DynamicHeader { max_table_entries: U32::new(1), ..header }.is_valid());
    }

    #[test]
    fn time_counts_from_the_year_2000() {
        assert_eq!(timestamp_of(EPOCH_UNIX_SECONDS + 5), 5);
        assert_eq!((timestamp_of(0), timestamp_of(u64::MAX)), (0, u32::MAX));
        assert_eq!(unix_seconds_of(0), EPOCH_UNIX_SECONDS);
    }

    #[test]
    fn bitmaps_and_tables_are_whole_sectors() {
        assert_eq!((bitmap_bytes(512 << 10), bitmap_bytes(2 * MIB), bitmap_bytes(4 * MIB)), (512, 512, 1024));
        assert_eq!((table_bytes(1), table_bytes(128), table_bytes(129)), (512, 512, 1024));
    }
}
