//! The structures on disk, field by field ([MS-VHDX] section 2). All integers are little-endian.

use std::fmt;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// 1 KiB.
pub const KIB: u64 = 1 << 10;
/// 1 MiB: the alignment of every object behind the header section (section 2.1).
pub const MIB: u64 = 1 << 20;
/// The unit of the log and of metadata writes (section 2.3.1).
pub const PAGE: usize = 4096;

/// Magic of the file type identifier (section 2.2.1).
pub const FILE_MAGIC: [u8; 8] = *b"vhdxfile";
/// The header section: everything below is not a region (section 2.2).
pub const HEADER_SECTION_LEN: u64 = MIB;
/// Where the two headers are (section 2.2).
pub const HEADER_OFFSETS: [u64; 2] = [64 * KIB, 128 * KIB];
/// Magic of a header (section 2.2.2).
pub const HEADER_MAGIC: [u8; 4] = *b"head";
/// The only Version of the format (section 2.2.2).
pub const FORMAT_VERSION: u16 = 1;
/// The only LogVersion (section 2.2.2).
pub const LOG_VERSION: u16 = 0;
/// Where the two region tables are (section 2.2).
pub const REGION_TABLE_OFFSETS: [u64; 2] = [192 * KIB, 256 * KIB];
/// Bytes of a region table, all covered by its checksum (section 2.2.3).
pub const REGION_TABLE_LEN: usize = 64 * 1024;
/// Magic of a region table (section 2.2.3.1).
pub const REGION_TABLE_MAGIC: [u8; 4] = *b"regi";
/// Entries that a region table may have (section 2.2.3.1).
pub const REGIONS_MAX: usize = 2047;
/// Magic of the metadata table (section 2.6.1.1).
pub const METADATA_TABLE_MAGIC: [u8; 8] = *b"metadata";
/// Bytes of the metadata table; items follow it (section 2.6.1).
pub const METADATA_TABLE_LEN: usize = 64 * 1024;
/// Entries that the metadata table may have (section 2.6.1.1).
pub const METADATA_ITEMS_MAX: usize = 2047;
/// User items among them (section 2.6.1.2).
pub const METADATA_USER_ITEMS_MAX: usize = 1024;
/// Bytes of one metadata item at most (section 2.6.1.2).
pub const METADATA_ITEM_LEN_MAX: u64 = MIB;
/// Magic of a log entry (section 2.3.1.1).
pub const LOG_ENTRY_MAGIC: [u8; 4] = *b"loge";
/// Magic of a zero descriptor (section 2.3.1.2).
pub const ZERO_DESCRIPTOR_MAGIC: [u8; 4] = *b"zero";
/// Magic of a data descriptor (section 2.3.1.3).
pub const DATA_DESCRIPTOR_MAGIC: [u8; 4] = *b"desc";
/// Magic of a data sector (section 2.3.1.4).
pub const DATA_SECTOR_MAGIC: [u8; 4] = *b"data";
/// Bytes of a log entry's header in front of its descriptors (section 2.3.1.1).
pub const LOG_ENTRY_HEADER_LEN: usize = 64;
/// Bytes of a log descriptor of either kind (sections 2.3.1.2 and 2.3.1.3).
pub const LOG_DESCRIPTOR_LEN: usize = 32;
/// Largest virtual disk: 64 TiB (section 2.6.2.2).
pub const DISK_SIZE_MAX: u64 = 64 << 40;
/// Smallest payload block (section 2.6.2.1).
pub const BLOCK_SIZE_MIN: u64 = MIB;
/// Largest payload block (section 2.6.2.1).
pub const BLOCK_SIZE_MAX: u64 = 256 * MIB;
/// Sectors that one sector bitmap block describes: 2^23, one bit each in 1 MiB (section 2.4).
pub const SECTORS_PER_BITMAP_BLOCK: u64 = 1 << 23;

/// A GUID in the file's (Windows') byte order: the first three fields little-endian.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(transparent)]
pub struct Guid(pub [u8; 16]);

impl Guid {
    /// All zeros: "none".
    pub const ZERO: Self = Self([0; 16]);

    /// The GUID with this text's value, as an RFC 9562 integer.
    pub const fn from_u128(value: u128) -> Self {
        let b = value.to_be_bytes();
        Self([b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]])
    }

    /// The same identifier as RFC 9562 writes it.
    pub fn from_uuid(uuid: uuid::Uuid) -> Self {
        Self(uuid.to_bytes_le())
    }

    /// The same identifier as RFC 9562 writes it.
    pub fn to_uuid(self) -> uuid::Uuid {
        uuid::Uuid::from_bytes_le(self.0)
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.to_uuid(), f)
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The BAT region (section 2.2.3.2).
pub const REGION_BAT: Guid = Guid::from_u128(0x2DC27766_F623_4200_9D64_115E9BFD4A08);
/// The metadata region (section 2.2.3.2).
pub const REGION_METADATA: Guid = Guid::from_u128(0x8B7CA206_4790_4B9A_B8FE_575F050F886E);
/// File Parameters item (section 2.6.2.1).
pub const ITEM_FILE_PARAMETERS: Guid = Guid::from_u128(0xCAA16737_FA36_4D43_B3B6_33F0AA44E76B);
/// Virtual Disk Size item (section 2.6.2.2).
pub const ITEM_VIRTUAL_DISK_SIZE: Guid = Guid::from_u128(0x2FA54224_CD1B_4876_B211_5DBED83BF4B8);
/// Virtual Disk ID item (section 2.6.2.3).
pub const ITEM_VIRTUAL_DISK_ID: Guid = Guid::from_u128(0xBECA12AB_B2E6_4523_93EF_C309E000C746);
/// Logical Sector Size item (section 2.6.2.4).
pub const ITEM_LOGICAL_SECTOR_SIZE: Guid = Guid::from_u128(0x8141BF1D_A96F_4709_BA47_F233A8FAAB5F);
/// Physical Sector Size item (section 2.6.2.5).
pub const ITEM_PHYSICAL_SECTOR_SIZE: Guid = Guid::from_u128(0xCDA348C7_445D_4471_9CC9_E9885251C556);
/// Parent Locator item (section 2.6.2.6).
pub const ITEM_PARENT_LOCATOR: Guid = Guid::from_u128(0xA8D35F2D_B30B_454D_ABF7_D3D84834AB0C);
/// Marks a file whose creation has not finished (not in the published text; Microsoft's engine refuses to open it).
pub const ITEM_INCOMPLETE_FILE: Guid = Guid::from_u128(0x71CC85F0_1B69_4E28_9558_C3BF83AE75D3);

/// A header's fields (section 2.2.2); zeros follow up to 4 KiB, all covered by the checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header {
    /// [`HEADER_MAGIC`].
    pub signature: [u8; 4],
    /// CRC-32C of the 4 KiB with this field zero.
    pub checksum: U32,
    /// The valid header with the larger number is current.
    pub sequence_number: U64,
    /// Changes before the first modification of an open session.
    pub file_write_guid: Guid,
    /// Changes before the first modification that a guest could notice; children refer to it.
    pub data_write_guid: Guid,
    /// Non-zero: the log holds entries with this GUID that must be replayed.
    pub log_guid: Guid,
    /// [`LOG_VERSION`].
    pub log_version: U16,
    /// [`FORMAT_VERSION`].
    pub version: U16,
    /// Bytes of the log: a multiple of 1 MiB.
    pub log_length: U32,
    /// Where the log is: a multiple of 1 MiB.
    pub log_offset: U64,
}

/// The start of a region table (section 2.2.3.1).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RegionTableHeader {
    /// [`REGION_TABLE_MAGIC`].
    pub signature: [u8; 4],
    /// CRC-32C of the 64 KiB with this field zero.
    pub checksum: U32,
    /// Entries that follow, at most [`REGIONS_MAX`].
    pub entry_count: U32,
    /// Zero.
    pub reserved: U32,
}

/// One region (section 2.2.3.2).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RegionTableEntry {
    /// What it holds.
    pub guid: Guid,
    /// Where it is: a multiple of 1 MiB, at least 1 MiB.
    pub file_offset: U64,
    /// Bytes: a multiple of 1 MiB.
    pub length: U32,
    /// Bit 0: a reader that does not know the GUID must refuse the file.
    pub required: U32,
}

/// The start of the metadata table (section 2.6.1.1).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct MetadataTableHeader {
    /// [`METADATA_TABLE_MAGIC`].
    pub signature: [u8; 8],
    /// Zero.
    pub reserved: U16,
    /// Entries that follow, at most [`METADATA_ITEMS_MAX`].
    pub entry_count: U16,
    /// Zero.
    pub reserved2: [u8; 20],
}

/// One metadata item (section 2.6.1.2).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct MetadataTableEntry {
    /// What it is.
    pub item_id: Guid,
    /// Where it is, from the start of the region: at least 64 KiB, or zero for an empty item.
    pub offset: U32,
    /// Bytes, at most 1 MiB.
    pub length: U32,
    /// [`METADATA_IS_USER`], [`METADATA_IS_VIRTUAL_DISK`], [`METADATA_IS_REQUIRED`].
    pub flags: U32,
    /// Zero.
    pub reserved: U32,
}

/// Flag of a metadata item: user metadata, not the system's (section 2.6.1.2).
pub const METADATA_IS_USER: u32 = 1;
/// Flag of a metadata item: belongs to the virtual disk rather than to the file (section 2.6.1.2).
pub const METADATA_IS_VIRTUAL_DISK: u32 = 2;
/// Flag of a metadata item: a reader that does not know it must refuse the file (section 2.6.1.2).
pub const METADATA_IS_REQUIRED: u32 = 4;
/// Bit of File Parameters: LeaveBlocksAllocated (section 2.6.2.1).
pub const FILE_LEAVE_BLOCKS_ALLOCATED: u32 = 1;
/// Bit of File Parameters: HasParent (section 2.6.2.1).
pub const FILE_HAS_PARENT: u32 = 2;

/// The start of a log entry (section 2.3.1.1).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct LogEntryHeader {
    /// [`LOG_ENTRY_MAGIC`].
    pub signature: [u8; 4],
    /// CRC-32C of the whole entry with this field zero.
    pub checksum: U32,
    /// Bytes of the entry: a multiple of 4 KiB.
    pub entry_length: U32,
    /// Where in the ring replay starts: the oldest entry that may not have been applied.
    pub tail: U32,
    /// Larger than zero; the next entry has the next number.
    pub sequence_number: U64,
    /// Descriptors; may be zero.
    pub descriptor_count: U32,
    /// Zero.
    pub reserved: U32,
    /// Equals the header's while the entry means something.
    pub log_guid: Guid,
    /// A file size that was durable when the entry was written.
    pub flushed_file_offset: U64,
    /// A file size that covers every object; replay extends the file to it.
    pub last_file_offset: U64,
}

/// Either descriptor (sections 2.3.1.2 and 2.3.1.3), told apart by `signature`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct LogDescriptor {
    /// [`DATA_DESCRIPTOR_MAGIC`] or [`ZERO_DESCRIPTOR_MAGIC`].
    pub signature: [u8; 4],
    /// Data: the page's last four bytes. Zero: reserved.
    pub trailing_bytes: [u8; 4],
    /// Data: the page's first eight bytes. Zero: the length in bytes.
    pub leading_bytes: [u8; 8],
    /// Where the page or the zeros go: a multiple of 4 KiB.
    pub file_offset: U64,
    /// The entry's number.
    pub sequence_number: U64,
}

/// A logged page without its first eight and last four bytes (section 2.3.1.4).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct LogDataSector {
    /// [`DATA_SECTOR_MAGIC`].
    pub signature: [u8; 4],
    /// Upper half of the entry's number.
    pub sequence_high: U32,
    /// Bytes 8 to 4091 of the page.
    pub data: [u8; 4084],
    /// Lower half of the entry's number.
    pub sequence_low: U32,
}

const _: () = assert!(size_of::<Header>() == 80);
const _: () = assert!(size_of::<RegionTableHeader>() == 16);
const _: () = assert!(size_of::<RegionTableEntry>() == 32);
const _: () = assert!(size_of::<MetadataTableHeader>() == 32);
const _: () = assert!(size_of::<MetadataTableEntry>() == 32);
const _: () = assert!(size_of::<LogEntryHeader>() == LOG_ENTRY_HEADER_LEN);
const _: () = assert!(size_of::<LogDescriptor>() == LOG_DESCRIPTOR_LEN);
const _: () = assert!(size_of::<LogDataSector>() == PAGE);
const _: () = assert!(16 + REGIONS_MAX * 32 <= REGION_TABLE_LEN);
const _: () = assert!(32 + METADATA_ITEMS_MAX * 32 <= METADATA_TABLE_LEN);

/// A payload block's state (section 2.5.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockState {
    /// 0: never written; without a parent it reads as zeros here.
    NotPresent,
    /// 1: content undefined; reads as zeros here. The offset may be a soft anchor.
    Undefined,
    /// 2: zeros.
    Zero,
    /// 3: trimmed; reads as zeros here. The offset may be a soft anchor.
    Unmapped,
    /// 6: in the file.
    FullyPresent,
    /// 7: partly in the file, partly in the parent: differencing disks only.
    PartiallyPresent,
}

/// An entry of the block allocation table (section 2.5.1): state in bits 0 to 2, file offset in bits 20 to 63.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct BatEntry(pub u64);

impl BatEntry {
    /// Bits 20 to 63: as a number, the byte offset itself.
    pub const OFFSET_MASK: u64 = !(MIB - 1);

    /// A block whose content is at this offset, a multiple of 1 MiB.
    pub fn fully_present(offset_bytes: u64) -> Self {
        assert!(offset_bytes.is_multiple_of(MIB) && offset_bytes != 0, "payload blocks are 1 MiB-aligned");
        Self(offset_bytes | 6)
    }

    /// The state; `None` for the reserved values 4 and 5.
    pub fn state(self) -> Option<BlockState> {
        match self.0 & 7 {
            0 => Some(BlockState::NotPresent),
            1 => Some(BlockState::Undefined),
            2 => Some(BlockState::Zero),
            3 => Some(BlockState::Unmapped),
            6 => Some(BlockState::FullyPresent),
            7 => Some(BlockState::PartiallyPresent),
            _ => None,
        }
    }

    /// Whether the file holds the block's content.
    pub fn is_present(self) -> bool {
        self.0 & 7 == 6
    }

    /// The byte offset in the file; 0 for none.
    pub fn offset_bytes(self) -> u64 {
        self.0 & Self::OFFSET_MASK
    }
}

/// A page of zeros that begins with `head`.
pub fn page_with(head: &(impl IntoBytes + Immutable)) -> [u8; PAGE] {
    let mut page = [0; PAGE];
    let bytes = head.as_bytes();
    page[..bytes.len()].copy_from_slice(bytes);
    page
}

impl Header {
    /// The 4 KiB as written, checksum included.
    pub fn to_page(self) -> [u8; PAGE] {
        let mut page = page_with(&Self { checksum: U32::ZERO, ..self });
        let checksum = crate::crc32c::crc32c(&page);
        page[4..8].copy_from_slice(&checksum.to_le_bytes());
        page
    }
}

impl LogEntryHeader {
    /// All fields zero.
    pub fn zeroed() -> Self {
        Self::new_zeroed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The GUIDs' bytes as they stand in files written by others (section 2.2.3.2).
    #[test]
    fn guids_are_mixed_endian() {
        assert_eq!(REGION_BAT.0[..8], [0x66, 0x77, 0xC2, 0x2D, 0x23, 0xF6, 0x00, 0x42]);
        assert_eq!(REGION_BAT.to_string(), "2dc27766-f623-4200-9d64-115e9bfd4a08");
        assert_eq!(Guid::from_uuid(REGION_BAT.to_uuid()), REGION_BAT);
    }

    #[test]
    fn entries_take_states_and_offsets_apart() {
        let entry = BatEntry(0x0000_0000_0030_0006);
        assert_eq!((entry.state(), entry.offset_bytes()), (Some(BlockState::FullyPresent), 3 * MIB));
        assert_eq!(BatEntry::fully_present(3 * MIB), entry);
        assert_eq!((BatEntry(4).state(), BatEntry(5).state()), (None, None));
        assert!(!BatEntry(0x0030_0003).is_present());
    }
}
