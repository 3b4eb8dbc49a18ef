//! Why a disk could not be opened, created or changed: one variant for each rule, and what to do about it.

use crate::blocks::StorageError;

/// Classes of [`OpenError`], for callers that decide by kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenErrorKind {
    /// The file is not a VHD.
    NotVhd,
    /// The file breaks a rule of the format.
    Corrupt,
    /// The file may be sound, but needs something that this version does not do.
    Unsupported,
    /// Reading or writing the file failed.
    Storage,
}

/// Why a disk could not be opened. Every text says what is wrong and where; [`OpenError::advice`] what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// No footer at either place.
    #[error("not a VHD file: neither the last 512 bytes nor the first begin with 'conectix'")]
    NotVhd,
    /// There is a footer, but none whose checksum holds.
    #[error("the footer at byte {offset_bytes} has checksum {found:#010x}, its content gives {expected:#010x}{other}")]
    FooterChecksum {
        /// Where it is.
        offset_bytes: u64,
        /// What it says.
        found: u32,
        /// What it should say.
        expected: u32,
        /// What is known of the other copy.
        other: &'static str,
    },
    /// File Format Version.
    #[error("footer: format version {version:#010x} is not known (0x00010000 is)")]
    Version {
        /// What the footer says.
        version: u32,
    },
    /// Disk Type.
    #[error("footer: disk type {disk_type} is not known (2 fixed, 3 dynamic and 4 differencing are)")]
    DiskType {
        /// What the footer says.
        disk_type: u32,
    },
    /// Current Size.
    #[error("footer: a disk of {size_bytes} bytes: {rule}")]
    Size {
        /// What the footer says.
        size_bytes: u64,
        /// The broken rule.
        rule: &'static str,
    },
    /// A fixed disk is larger than its file.
    #[error("the disk has {size_bytes} bytes, but its file has only {available_bytes} in front of the footer")]
    FixedTooShort {
        /// Size of the disk.
        size_bytes: u64,
        /// Bytes that are there.
        available_bytes: u64,
    },
    /// The dynamic header.
    #[error("the dynamic header at byte {offset_bytes}: {rule}")]
    Header {
        /// Where it is, or should be.
        offset_bytes: u64,
        /// The broken rule.
        rule: &'static str,
    },
    /// Block Size.
    #[error("dynamic header: blocks of {block_bytes} bytes; powers of two from 512 KiB to 256 MiB are known")]
    BlockSize {
        /// What the header says.
        block_bytes: u32,
    },
    /// Max Table Entries is too small for the disk.
    #[error("the block allocation table has {entries} entries; the disk needs {needed}")]
    TableTooSmall {
        /// What the header says.
        entries: u32,
        /// Blocks of the disk.
        needed: u32,
    },
    /// The table is not where a table can be.
    #[error("the block allocation table ({len_bytes} bytes at {offset_bytes}): {rule}")]
    TablePlace {
        /// Table Offset.
        offset_bytes: u64,
        /// Its length.
        len_bytes: u64,
        /// The broken rule.
        rule: &'static str,
    },
    /// A table entry.
    #[error("block {block} (sector {sector:#x} in the table, byte {entry_offset_bytes} of the file): {rule}")]
    Block {
        /// Which block.
        block: u32,
        /// Its entry.
        sector: u32,
        /// Where the entry is in the file.
        entry_offset_bytes: u64,
        /// The broken rule.
        rule: &'static str,
    },
    /// A path to the parent.
    #[error("parent locator {number} ({len_bytes} bytes at {offset_bytes}): {rule}")]
    Locator {
        /// Which, 0 to 7.
        number: u8,
        /// Where its path should be.
        offset_bytes: u64,
        /// How long it should be.
        len_bytes: u32,
        /// The broken rule.
        rule: &'static str,
    },
    /// Two structures at one place.
    #[error("{first} and {second} overlap at byte {offset_bytes} of the file: no two structures may share bytes")]
    Overlap {
        /// One.
        first: String,
        /// The other.
        second: String,
        /// Where.
        offset_bytes: u64,
    },
    /// Reading or writing failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl OpenError {
    /// The class.
    pub fn kind(&self) -> OpenErrorKind {
        match self {
            Self::NotVhd => OpenErrorKind::NotVhd,
            Self::Version { .. } | Self::DiskType { .. } | Self::BlockSize { .. } => OpenErrorKind::Unsupported,
            Self::Storage(StorageError::UnexpectedEnd(_)) => OpenErrorKind::Corrupt,
            Self::Storage(_) => OpenErrorKind::Storage,
            _ => OpenErrorKind::Corrupt,
        }
    }

    /// What the operator can do.
    pub fn advice(&self) -> &'static str {
        match self.kind() {
            OpenErrorKind::NotVhd => "check the path, or name the file's real format",
            OpenErrorKind::Unsupported => "use the program that made it to convert it",
            OpenErrorKind::Storage => "check the host's storage and permissions",
            OpenErrorKind::Corrupt => "the file is damaged and was left as it is: restore a copy of it",
        }
    }
}

/// Why a disk could not be created. Nothing usable has been written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    /// The size.
    #[error("a VHD disk of {size_bytes} bytes is not possible; choose 1M to 2040G (a VHDX goes to 64T)")]
    Size {
        /// What was asked for.
        size_bytes: u64,
    },
    /// Whole sectors.
    #[error("{size_bytes} bytes is not a whole number of 512-byte sectors; the next size up is {next_bytes}")]
    SizeNotSectors {
        /// What was asked for.
        size_bytes: u64,
        /// The next possible size.
        next_bytes: u64,
    },
    /// The block size.
    #[error("blocks of {block_size_bytes} bytes are not possible; choose 512K or 2M")]
    BlockSize {
        /// What was asked for.
        block_size_bytes: u64,
    },
    /// With their bitmaps, the last of them would lie behind what a table entry can name.
    #[error("a disk of {size_bytes} bytes cannot have blocks of {block_size_bytes} bytes; choose 2M")]
    BlocksTooSmall {
        /// What was asked for.
        block_size_bytes: u64,
        /// Size of the disk.
        size_bytes: u64,
    },
    /// A path to the parent that does not fit.
    #[error("the {what} of the parent takes {len_bytes} bytes in the file; at most {max_bytes} fit")]
    ParentPath {
        /// Which text.
        what: &'static str,
        /// Its length in UTF-16.
        len_bytes: usize,
        /// What fits.
        max_bytes: usize,
    },
    /// A differencing disk without any path to its parent.
    #[error("a differencing disk needs a path to its parent")]
    ParentPathMissing,
    /// Writing failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Why a disk could not be changed (size, parent, repair). The file is as usable as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// It cannot even be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The new size is not possible.
    #[error("{0}")]
    Create(#[from] CreateError),
    /// Smaller than now.
    #[error("the disk has {size_bytes} bytes; VHD disks can grow but not shrink (asked for {asked_bytes})")]
    Shrink {
        /// What it has.
        size_bytes: u64,
        /// What was asked for.
        asked_bytes: u64,
    },
    /// The parent of a disk that has none.
    #[error("the disk has no parent: it is not differencing")]
    NotDifferencing,
    /// Reading or writing failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}
