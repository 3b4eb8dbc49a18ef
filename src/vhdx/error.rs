//! Why a disk could not be opened or created: one variant for each rule of the format, and what to do about it.

use super::format::{Guid, HEADER_OFFSETS, REGION_TABLE_OFFSETS};
use super::storage::StorageError;

/// Classes of [`OpenError`], for callers that decide by kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenErrorKind {
    /// The file is not a VHDX.
    NotVhdx,
    /// The file breaks a rule of the format.
    Corrupt,
    /// The file may be sound, but needs something that is not there (yet).
    Unsupported,
    /// Reading or writing the file failed.
    Storage,
}

/// Where a BAT entry is wrong.
pub type BlockNumber = u32;

/// Why a disk could not be opened. Every text says what is wrong and where; [`OpenError::advice`] what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Section 2.2.1.
    #[error("not a VHDX file: the first 8 bytes are not 'vhdxfile'")]
    NotVhdx,
    /// Section 2.2: the header section takes the first MiB.
    #[error("the file has {len_bytes} bytes and ends inside its header section (the first 1 MiB)")]
    TooShort {
        /// The file's size.
        len_bytes: u64,
    },
    /// No file system holds such a file.
    #[error("the file claims {len_bytes} bytes, more than any file can have")]
    TooLong {
        /// The file's size.
        len_bytes: u64,
    },
    /// Section 2.2.2: SequenceNumber must never wrap.
    #[error("header: sequence number {sequence_number} leaves no room to count on")]
    HeaderSequence {
        /// What the header says.
        sequence_number: u64,
    },
    /// Section 2.2.2: neither header has its signature and checksum.
    #[error("neither header (at 64 KiB and at 128 KiB) is valid")]
    NoValidHeader,
    /// Section 2.2.2: equal sequence numbers, different content.
    #[error("both headers (at 64 KiB and at 128 KiB) carry sequence number {sequence_number} but differ")]
    HeadersAmbiguous {
        /// The number.
        sequence_number: u64,
    },
    /// Section 2.2.2.
    #[error("header: format version {version} is not known (1 is)")]
    Version {
        /// What the header says.
        version: u16,
    },
    /// Section 2.2.2.
    #[error("header: log version {log_version} is not known (0 is), and the log is not empty")]
    LogVersion {
        /// What the header says.
        log_version: u16,
    },
    /// Section 2.2.2: LogOffset and LogLength.
    #[error("header: the log ({len_bytes} bytes at {offset_bytes}) is misplaced: {rule}")]
    LogPlace {
        /// LogOffset.
        offset_bytes: u64,
        /// LogLength.
        len_bytes: u64,
        /// The broken rule.
        rule: &'static str,
    },
    /// Section 2.3.3: LogGuid promises entries.
    #[error(
        "the log at {offset_bytes} must be replayed (LogGuid {log_guid}) but holds no complete sequence of entries"
    )]
    LogWithoutSequence {
        /// LogOffset.
        offset_bytes: u64,
        /// The header's.
        log_guid: Guid,
    },
    /// The scan of section 2.3.3 exceeded its bound.
    #[error("the log at {offset_bytes} is laid out so that finding its entries takes unreasonably long")]
    LogUnreasonable {
        /// LogOffset.
        offset_bytes: u64,
    },
    /// Section 2.3.3: FlushedFileOffset.
    #[error("the file was cut: it has {len_bytes} bytes, and its log says that {flushed_bytes} were on stable storage")]
    Truncated {
        /// The file's size.
        len_bytes: u64,
        /// FlushedFileOffset of the newest log entry.
        flushed_bytes: u64,
    },
    /// Section 2.3: the log may not change the headers or itself.
    #[error("log entry {sequence_number} would change {len_bytes} bytes at {offset_bytes}: {rule}")]
    LogTarget {
        /// The entry.
        sequence_number: u64,
        /// Where it writes.
        offset_bytes: u64,
        /// How much.
        len_bytes: u64,
        /// The broken rule.
        rule: &'static str,
    },
    /// Section 2.2.3: neither region table is valid.
    #[error("neither region table (at 192 KiB and at 256 KiB) is valid: {rule}")]
    NoValidRegionTable {
        /// What is wrong with the first.
        rule: &'static str,
    },
    /// Section 2.2.3.2.
    #[error("region {guid} ({len_bytes} bytes at {offset_bytes}): {rule}")]
    Region {
        /// Which.
        guid: Guid,
        /// Its place.
        offset_bytes: u64,
        /// Its size.
        len_bytes: u64,
        /// The broken rule.
        rule: &'static str,
    },
    /// Section 2.2.3.2: a required region of an unknown kind.
    #[error("the file needs region {guid}, which this version does not know")]
    RegionUnknown {
        /// Which.
        guid: Guid,
    },
    /// Section 2.2: BAT or metadata region missing.
    #[error("the region table has no {name} region")]
    RegionMissing {
        /// Which.
        name: &'static str,
    },
    /// Section 2.6.1.1.
    #[error("metadata table at {offset_bytes}: {rule}")]
    MetadataTable {
        /// Where the metadata region is.
        offset_bytes: u64,
        /// The broken rule.
        rule: &'static str,
    },
    /// Section 2.6.1.2.
    #[error("metadata item {item} (offset {offset_bytes} in the metadata region, {len_bytes} bytes): {rule}")]
    MetadataItem {
        /// Which.
        item: Guid,
        /// Offset in the region.
        offset_bytes: u64,
        /// Its size.
        len_bytes: u64,
        /// The broken rule.
        rule: &'static str,
    },
    /// Section 2.6.1.2: a required item of an unknown kind.
    #[error("the file needs metadata item {item}, which this version does not know")]
    MetadataUnknown {
        /// Which.
        item: Guid,
    },
    /// Section 2.6.2: a required item missing.
    #[error("the metadata has no {name} item")]
    MetadataMissing {
        /// Which.
        name: &'static str,
    },
    /// Section 2.6.2: an item's value.
    #[error("metadata item {name} is {value}: {rule}")]
    MetadataValue {
        /// Which.
        name: &'static str,
        /// What it says.
        value: u64,
        /// The broken rule.
        rule: &'static str,
    },
    /// Section 2.6.2.6: the parent locator.
    #[error("metadata item Parent Locator: {reason}")]
    ParentLocator {
        /// What is wrong with it.
        reason: LocatorError,
    },
    /// The creating program marks files that are not finished.
    #[error("the file's creation was never finished")]
    Incomplete,
    /// Section 2.5: the BAT region is too small for the disk.
    #[error("the block allocation table at {offset_bytes} has room for {entries} entries; the disk needs {needed}")]
    BatTooSmall {
        /// Where it is.
        offset_bytes: u64,
        /// Entries that fit.
        entries: u64,
        /// Entries needed.
        needed: u64,
    },
    /// Section 2.5.1: an entry of the table.
    #[error("block {block} (table entry {entry:#018x} at {offset_bytes}): {rule}")]
    Block {
        /// The payload block.
        block: BlockNumber,
        /// The entry.
        entry: u64,
        /// Where the entry is in the file.
        offset_bytes: u64,
        /// The broken rule.
        rule: &'static str,
    },
    /// Section 2.5.1.2: the entry of a sector bitmap block.
    #[error("sector bitmap of chunk {chunk} (table entry {entry:#018x} at {offset_bytes}): {rule}")]
    Bitmap {
        /// The chunk.
        chunk: u32,
        /// The entry.
        entry: u64,
        /// Where the entry is in the file.
        offset_bytes: u64,
        /// The broken rule.
        rule: &'static str,
    },
    /// Section 2.1: two objects at one place.
    #[error("{first} and {second} overlap at byte {offset_bytes} of the file")]
    Overlap {
        /// One.
        first: String,
        /// The other.
        second: String,
        /// Where.
        offset_bytes: u64,
    },
    /// A pending log cannot be replayed in memory.
    #[error("the log must be replayed before the disk can be read: {rule}")]
    ReadOnlyReplay {
        /// Why not in memory.
        rule: &'static str,
    },
    /// Reading or writing failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Run a list of rules for the first that is broken.
pub(super) fn first<T>(rules: impl FnOnce(&mut dyn FnMut(OpenError)) -> T) -> Result<T, OpenError> {
    let mut broken = None;
    let value = rules(&mut |error| {
        broken.get_or_insert(error);
    });
    match broken {
        Some(error) => Err(error),
        None => Ok(value),
    }
}

impl OpenError {
    /// The class.
    pub fn kind(&self) -> OpenErrorKind {
        match self {
            Self::NotVhdx => OpenErrorKind::NotVhdx,
            Self::Version { .. }
            | Self::LogVersion { .. }
            | Self::RegionUnknown { .. }
            | Self::MetadataUnknown { .. }
            | Self::ParentLocator { reason: LocatorError::Type { .. } }
            | Self::ReadOnlyReplay { .. } => OpenErrorKind::Unsupported,
            Self::Storage(StorageError::UnexpectedEnd(_)) => OpenErrorKind::Corrupt,
            Self::Storage(_) => OpenErrorKind::Storage,
            _ => OpenErrorKind::Corrupt,
        }
    }

    /// The section of [MS-VHDX] that holds the rule; empty where no rule of the format is broken.
    pub fn section(&self) -> &'static str {
        match self {
            Self::NotVhdx => "2.2.1",
            Self::TooShort { .. } => "2.2",
            Self::HeaderSequence { .. }
            | Self::NoValidHeader
            | Self::HeadersAmbiguous { .. }
            | Self::Version { .. }
            | Self::LogVersion { .. }
            | Self::LogPlace { .. } => "2.2.2",
            Self::LogWithoutSequence { .. } | Self::LogUnreasonable { .. } | Self::Truncated { .. } => "2.3.3",
            Self::LogTarget { .. } => "2.3",
            Self::NoValidRegionTable { .. } => "2.2.3.1",
            Self::Region { .. } | Self::RegionUnknown { .. } => "2.2.3.2",
            Self::RegionMissing { .. } => "2.2",
            Self::MetadataTable { .. } => "2.6.1.1",
            Self::MetadataItem { .. } | Self::MetadataUnknown { .. } => "2.6.1.2",
            Self::MetadataMissing { .. } | Self::MetadataValue { .. } => "2.6.2",
            Self::ParentLocator { .. } => "2.6.2.6",
            Self::BatTooSmall { .. } => "2.5",
            Self::Block { .. } => "2.5.1.1",
            Self::Bitmap { .. } => "2.5.1.2",
            Self::Overlap { .. } => "2.1",
            Self::TooLong { .. } | Self::Incomplete | Self::ReadOnlyReplay { .. } | Self::Storage(_) => "",
        }
    }

    /// The broken rule without the place: errors with the same are of one kind.
    pub fn rule(&self) -> &'static str {
        match self {
            Self::LogPlace { rule, .. }
            | Self::LogTarget { rule, .. }
            | Self::NoValidRegionTable { rule }
            | Self::Region { rule, .. }
            | Self::MetadataTable { rule, .. }
            | Self::MetadataItem { rule, .. }
            | Self::MetadataValue { rule, .. }
            | Self::Block { rule, .. }
            | Self::Bitmap { rule, .. }
            | Self::ReadOnlyReplay { rule } => rule,
            Self::NotVhdx => "the file is not a VHDX",
            Self::TooShort { .. } => "the header section takes the first MiB",
            Self::TooLong { .. } => "no file is so long",
            Self::HeaderSequence { .. } => "the sequence number never wraps",
            Self::NoValidHeader => "one header is valid",
            Self::HeadersAmbiguous { .. } => "the headers have different sequence numbers",
            Self::Version { .. } => "the format has version 1",
            Self::LogVersion { .. } => "the log has version 0",
            Self::LogWithoutSequence { .. } => "a LogGuid promises a sequence of entries",
            Self::LogUnreasonable { .. } => "the log can be scanned in one pass",
            Self::Truncated { .. } => "the file is as long as its log says",
            Self::RegionUnknown { .. } => "required regions are known",
            Self::RegionMissing { .. } => "both required regions are there",
            Self::MetadataUnknown { .. } => "required items are known",
            Self::MetadataMissing { .. } => "all required items are there",
            Self::ParentLocator { .. } => "the parent locator can be read",
            Self::Incomplete => "the file's creation was finished",
            Self::BatTooSmall { .. } => "the table has room for every block",
            Self::Overlap { .. } => "objects do not share bytes",
            Self::Storage(StorageError::UnexpectedEnd(_)) => "the file holds what it refers to",
            Self::Storage(_) => "storage",
        }
    }

    /// Where in the file the rule is broken, as far as that is one place.
    pub fn offset_bytes(&self) -> Option<u64> {
        match self {
            Self::NotVhdx | Self::TooShort { .. } => Some(0),
            Self::NoValidHeader | Self::HeadersAmbiguous { .. } | Self::Version { .. } | Self::LogVersion { .. } => {
                Some(HEADER_OFFSETS[0])
            }
            Self::NoValidRegionTable { .. } | Self::RegionMissing { .. } => Some(REGION_TABLE_OFFSETS[0]),
            Self::LogPlace { offset_bytes, .. }
            | Self::LogWithoutSequence { offset_bytes, .. }
            | Self::LogUnreasonable { offset_bytes }
            | Self::LogTarget { offset_bytes, .. }
            | Self::Region { offset_bytes, .. }
            | Self::MetadataTable { offset_bytes, .. }
            | Self::BatTooSmall { offset_bytes, .. }
            | Self::Block { offset_bytes, .. }
            | Self::Bitmap { offset_bytes, .. }
            | Self::Overlap { offset_bytes, .. } => Some(*offset_bytes),
            Self::Truncated { len_bytes, .. } => Some(*len_bytes),
            _ => None,
        }
    }

    /// What the operator can do.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::NotVhdx => "check the path, or name the file's real format",
            Self::ReadOnlyReplay { .. } => "open it writable once, or let the program that wrote it close it",
            Self::Incomplete => "create or copy the disk again",
            _ => match self.kind() {
                OpenErrorKind::Unsupported => "use the program that made it to convert it",
                OpenErrorKind::Storage => "check the host's storage and permissions",
                _ => "the file is damaged and was left as it is: restore a copy of it",
            },
        }
    }
}

/// Why a parent locator (section 2.6.2.6) could not be read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocatorError {
    /// Section 2.6.2.6.1: LocatorType.
    #[error("the parent is of a kind ({locator_type}) that this version does not know")]
    Type {
        /// What it says.
        locator_type: Guid,
    },
    /// Sections 2.6.2.6.1 and 2.6.2.6.2: counts, offsets and lengths.
    #[error("{rule}")]
    Layout {
        /// The broken rule.
        rule: &'static str,
    },
    /// Section 2.6.2.6.3: a key that must be there.
    #[error("it has no key {key}")]
    Missing {
        /// Which.
        key: &'static str,
    },
    /// Section 2.6.2.6.2: keys are unique.
    #[error("it has key {key} twice")]
    Twice {
        /// Which.
        key: String,
    },
    /// Section 2.6.2.6.3: a value.
    #[error("its key {key} is '{value}': {rule}")]
    Value {
        /// Which.
        key: &'static str,
        /// What it says.
        value: String,
        /// The broken rule.
        rule: &'static str,
    },
    /// Section 2.6.2.6.2: a string has at most 65535 bytes, the item 1 MiB.
    #[error("the parent's path is too long to be written down (a path may have 32767 characters)")]
    TooLong,
}

/// Why a disk could not be created. Nothing usable has been written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    /// 3 MiB to 64 TiB.
    #[error("a VHDX disk of {size_bytes} bytes is not possible; choose 3M to 64T")]
    Size {
        /// What was asked for.
        size_bytes: u64,
    },
    /// A child shows all of its parent.
    #[error("a child of {size_bytes} bytes would hide the end of its parent, which has {parent_bytes}")]
    SmallerThanParent {
        /// What was asked for.
        size_bytes: u64,
        /// The parent's size.
        parent_bytes: u64,
    },
    /// Section 2.6.2.4: child and parent have the same logical sectors.
    #[error("a child has its parent's logical sectors of {parent_bytes} bytes, not {logical_bytes}")]
    ParentSector {
        /// What was asked for.
        logical_bytes: u32,
        /// The parent's.
        parent_bytes: u32,
    },
    /// Section 2.6.2.1: LeaveBlocksAllocated means nothing where there is a parent.
    #[error("a disk with a parent holds changes only; it cannot be fixed")]
    FixedWithParent,
    /// Section 2.6.2.6.
    #[error("the parent cannot be written down: {0}")]
    Locator(#[from] LocatorError),
    /// Section 2.6.1.2.
    #[error("the items taken over from the parent do not fit beside its locator ({len_bytes} bytes)")]
    Items {
        /// Their length together.
        len_bytes: u64,
    },
    /// Section 2.6.2.2: whole logical sectors.
    #[error(
        "{size_bytes} bytes is not a whole number of {sector_bytes}-byte sectors; the next size up is {next_bytes}"
    )]
    SizeNotSectors {
        /// What was asked for.
        size_bytes: u64,
        /// The logical sector.
        sector_bytes: u32,
        /// A size that is possible.
        next_bytes: u64,
    },
    /// Section 2.6.2.1.
    #[error("a block size of {block_size_bytes} bytes is not possible; choose a power of two from 1M to 256M")]
    BlockSize {
        /// What was asked for.
        block_size_bytes: u64,
    },
    /// Sections 2.6.2.4 and 2.6.2.5.
    #[error(
        "sectors of {logical_bytes} bytes (logical) and {physical_bytes} (physical) are not possible; \
         choose 512 or 4096, the physical not below the logical"
    )]
    Sector {
        /// Logical.
        logical_bytes: u32,
        /// Physical.
        physical_bytes: u32,
    },
    /// Section 2.2.2.
    #[error("a log of {log_len_bytes} bytes is not possible; choose whole megabytes from 1M to 64M")]
    LogLength {
        /// What was asked for.
        log_len_bytes: u64,
    },
    /// Writing failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Why a disk's file could not be changed. Unless the storage failed, the file is as it was, but for a pending log that
/// may have been replayed; where the storage failed, it is as it was or changed in full.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// The file breaks a rule of the format.
    #[error("the file has {errors} errors and was left as it is; the first is: {first}")]
    Damaged {
        /// How many.
        errors: u64,
        /// What a check says of the first.
        first: String,
    },
    /// The file could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Section 2.6.2.1: HasParent.
    #[error("the disk has no parent, so none can be put in its place")]
    NoParent,
    /// Section 2.6.2.6.
    #[error("the parent cannot be written down: {0}")]
    Locator(#[from] LocatorError),
    /// Section 2.6.1.2.
    #[error("an item of {len_bytes} bytes is not possible; an item has at most 1 MiB")]
    ItemTooLong {
        /// What was asked for.
        len_bytes: u64,
    },
    /// Section 2.6.1.2.
    #[error("the file has {count} user items already, and 1024 is the most; delete one first")]
    TooManyItems {
        /// How many there are.
        count: usize,
    },
    /// What Microsoft's engine accepts.
    #[error("the user items would have {len_bytes} bytes together, and 40 MiB is the most; delete one first")]
    ItemsTooLong {
        /// What they would be.
        len_bytes: u64,
    },
    /// There is no such item.
    #[error("the file has no user item {id}")]
    NoItem {
        /// Which.
        id: Guid,
    },
    /// 3 MiB to 64 TiB.
    #[error("a VHDX disk of {size_bytes} bytes is not possible; choose 3M to 64T")]
    Size {
        /// What was asked for.
        size_bytes: u64,
    },
    /// Section 2.6.2.2: whole logical sectors.
    #[error(
        "{size_bytes} bytes is not a whole number of {sector_bytes}-byte sectors; the next size up is {next_bytes}"
    )]
    SizeNotSectors {
        /// What was asked for.
        size_bytes: u64,
        /// The logical sector.
        sector_bytes: u32,
        /// A size that is possible.
        next_bytes: u64,
    },
    /// Shrinking would cut off data.
    #[error("{what} at byte {offset_bytes} of the disk would be cut off; allow it, or choose {least_bytes} or more")]
    WouldCut {
        /// What is there.
        what: &'static str,
        /// Where, of the virtual disk.
        offset_bytes: u64,
        /// A size that keeps it.
        least_bytes: u64,
    },
    /// Reading or writing failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}
