//! A logical unit as the command handlers see it: its description, and what one initiator has pending on it.
//!
//! A [`Unit`] is plain shared data, replaced (never changed in place) when a disk is resized or changes its caching;
//! whoever replaces it raises the matching [`Attention`](super::Attention) for every I_T nexus.

use super::attention::{Attention, Attentions};
use super::command_table::{AccessRule, ReservationRule};
use super::port_groups::AccessState;
use super::reservations::Standing;
use super::sense::SenseFormat;
use crate::limits;
use crate::units::Lba;

/// LOGICAL BLOCK LENGTH: the two sizes that are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockLength {
    /// 512 bytes.
    B512,
    /// 4096 bytes.
    B4096,
}

impl BlockLength {
    /// Bytes of one block.
    pub const fn bytes(self) -> u32 {
        1 << self.shift()
    }

    /// log2 of the bytes of one block.
    pub const fn shift(self) -> u32 {
        match self {
            Self::B512 => 9,
            Self::B4096 => 12,
        }
    }

    /// The block length of this many bytes, if it is one of the two.
    pub const fn from_bytes(bytes: u32) -> Option<Self> {
        match bytes {
            512 => Some(Self::B512),
            4096 => Some(Self::B4096),
            _ => None,
        }
    }
}

/// What whoever owns the medium carries out beyond reading, writing, flushing and WRITE SAME. A command that needs a
/// feature which a unit does not have is not served there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(u32);

impl Features {
    /// None of them.
    pub const NONE: Self = Self(0);
    /// [`Action::CompareAndWrite`](super::Action::CompareAndWrite).
    pub const COMPARE_AND_WRITE: Self = Self(1 << 0);
    /// [`Action::OrWrite`](super::Action::OrWrite).
    pub const OR_WRITE: Self = Self(1 << 1);
    /// [`Action::ReserveIn`](super::Action::ReserveIn), [`Action::ReserveOut`](super::Action::ReserveOut) and
    /// [`Action::ReserveUnit`](super::Action::ReserveUnit).
    pub const RESERVATIONS: Self = Self(1 << 2);
    /// [`Action::Format`](super::Action::Format).
    pub const FORMAT: Self = Self(1 << 3);
    /// [`Action::Sanitize`](super::Action::Sanitize) and
    /// [`Action::ExitSanitizeFailure`](super::Action::ExitSanitizeFailure). Not where other files hold some of what the
    /// unit's blocks read as.
    pub const SANITIZE: Self = Self(1 << 4);
    /// [`Action::ModeSelect`](super::Action::ModeSelect).
    pub const MODE_SELECT: Self = Self(1 << 5);
    /// [`Action::ReportPortGroups`](super::Action::ReportPortGroups): the unit has target port groups, whose states the
    /// target changes.
    pub const PORT_GROUPS: Self = Self(1 << 6);
    /// [`Action::SetPortGroups`](super::Action::SetPortGroups): initiators change them too. With `PORT_GROUPS` only.
    pub const EXPLICIT_ACCESS: Self = Self(1 << 7);
    /// [`Action::LogSense`](super::Action::LogSense).
    pub const LOG_DATA: Self = Self(1 << 8);
    /// [`Action::ReportTimestamp`](super::Action::ReportTimestamp).
    pub const TIMESTAMP: Self = Self(1 << 9);
    /// [`Action::CopyOut`](super::Action::CopyOut), [`Action::CopyAbort`](super::Action::CopyAbort) and
    /// [`Action::CopyIn`](super::Action::CopyIn).
    pub const COPY: Self = Self(1 << 10);
    /// [`Action::WriteEcho`](super::Action::WriteEcho) and [`Action::ReadEcho`](super::Action::ReadEcho).
    pub const ECHO_BUFFER: Self = Self(1 << 11);
    /// All of them.
    pub const ALL: Self = Self((1 << 12) - 1);
    /// Blocks can be unmapped: [`UnitConfig::thin_provisioned`] says so.
    pub(super) const UNMAP: Self = Self(1 << 30);
    /// [`Unit::with_atomic_writes`] says so.
    pub(super) const WRITE_ATOMIC: Self = Self(1 << 31);

    /// Both.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// All of the other's features are among these.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// What a [`Unit`] is made from.
#[derive(Clone, Debug)]
pub struct UnitConfig<'a> {
    /// Bytes of a logical block.
    pub block_length: BlockLength,
    /// LOGICAL BLOCKS PER PHYSICAL BLOCK EXPONENT (0..=15): 3 for 512-byte blocks on 4096-byte sectors.
    pub physical_block_exponent: u8,
    /// Blocks of the unit, 1..=2^63 / block length.
    pub capacity_blocks: u64,
    /// Writes are refused with WRITE PROTECTED, and mode data say so.
    pub read_only: bool,
    /// WCE: a write is answered before it is durable; SYNCHRONIZE CACHE and FUA make it so.
    pub write_cache_enabled: bool,
    /// LBPME: blocks may be unmapped, and read as zeros then.
    pub thin_provisioned: bool,
    /// OPTIMAL UNMAP GRANULARITY: the logical blocks that the medium allocates and releases at once, from block 0 on.
    /// At least 1 on a unit that is thin provisioned, and without meaning on another.
    pub unmap_granularity_blocks: u32,
    /// The disk's identity (the VHDX page 83 data GUID); every designator and the serial number come from it.
    pub disk_uuid: [u8; 16],
    /// PRODUCT IDENTIFICATION: 1..=16 printable ASCII characters, for example "VHDX disk".
    pub product: &'a str,
    /// The encoding of sense data (D_SENSE).
    pub sense_format: SenseFormat,
}

/// Why a [`UnitConfig`] describes no unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// No blocks, or more bytes than a signed file offset can address.
    #[error("a disk has at least one block and at most 2^63 bytes")]
    Capacity,
    /// More than 15.
    #[error("the physical block exponent is at most 15")]
    PhysicalBlockExponent,
    /// Empty, longer than 16, or not printable ASCII.
    #[error("the product identification is 1 to 16 printable ASCII characters")]
    Product,
    /// A thin provisioned unit that releases no blocks at once.
    #[error("a thin provisioned disk releases at least one block at once")]
    UnmapGranularity,
}

/// WCE: whether there is anything that it could switch, its current and its saved value.
#[derive(Clone, Debug, PartialEq, Eq)]
struct WriteCache {
    exists: bool,
    enabled: bool,
    saved: bool,
}

/// SWP: its current and its saved value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct WriteProtection {
    enabled: bool,
    saved: bool,
}

/// Description of a logical unit. Immutable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    block_length: BlockLength,
    physical_block_exponent: u8,
    capacity_blocks: u64,
    transfer_blocks_max: u32,
    read_only: bool,
    write_cache: WriteCache,
    write_protection: WriteProtection,
    thin_provisioned: bool,
    unmap_granularity_blocks: u32,
    atomic_write_blocks_max: u32,
    atomic_write_granularity_blocks: u32,
    features: Features,
    sense_format: SenseFormat,
    disk_uuid: [u8; 16],
    product: [u8; 16],
}

impl Unit {
    /// Check a description.
    pub fn new(config: &UnitConfig<'_>) -> Result<Self, UnitError> {
        let shift = config.block_length.shift();
        if config.capacity_blocks == 0 || config.capacity_blocks > 1 << (63 - shift) {
            return Err(UnitError::Capacity);
        }
        if config.physical_block_exponent > 15 {
            return Err(UnitError::PhysicalBlockExponent);
        }
        if config.thin_provisioned && config.unmap_granularity_blocks == 0 {
            return Err(UnitError::UnmapGranularity);
        }
        let text = config.product.as_bytes();
        let printable = text.iter().all(|byte| (0x20..=0x7e).contains(byte));
        let mut product = [b' '; 16];
        match product.get_mut(..text.len()) {
            Some(field) if printable && !text.is_empty() => field.copy_from_slice(text),
            _ => return Err(UnitError::Product),
        }
        Ok(Self {
            block_length: config.block_length,
            physical_block_exponent: config.physical_block_exponent,
            capacity_blocks: config.capacity_blocks,
            transfer_blocks_max: limits::TRANSFER_BYTES_MAX >> shift,
            read_only: config.read_only,
            write_cache: WriteCache {
                exists: config.write_cache_enabled,
                enabled: config.write_cache_enabled,
                saved: config.write_cache_enabled,
            },
            write_protection: WriteProtection::default(),
            thin_provisioned: config.thin_provisioned,
            unmap_granularity_blocks: if config.thin_provisioned { config.unmap_granularity_blocks } else { 0 },
            atomic_write_blocks_max: 0,
            atomic_write_granularity_blocks: 1,
            features: if config.thin_provisioned { Features::UNMAP } else { Features::NONE },
            sense_format: config.sense_format,
            disk_uuid: config.disk_uuid,
            product,
        })
    }

    /// The same unit, whose owner carries out these features too.
    pub fn with_features(mut self, features: Features) -> Self {
        self.features = self.features.and(features);
        self
    }

    /// The same unit, where WRITE ATOMIC writes up to `blocks` blocks so that even a power cut leaves all of them or
    /// none; it begins at, and writes, a multiple of `granularity` blocks. Zero blocks: nothing of the kind is
    /// promised.
    pub fn with_atomic_writes(mut self, blocks: u32, granularity: u32) -> Self {
        self.atomic_write_blocks_max = blocks.min(self.transfer_blocks_max);
        self.atomic_write_granularity_blocks = granularity.max(1);
        if self.atomic_write_blocks_max > 0 {
            self.features = self.features.and(Features::WRITE_ATOMIC);
        }
        self
    }

    /// The same unit, with WCE set by MODE SELECT; `saved` is the value that it starts with next time. On a unit that
    /// was described without a write cache nothing changes.
    pub fn with_write_cache(mut self, enabled: bool, saved: bool) -> Self {
        if self.write_cache.exists {
            self.write_cache.enabled = enabled;
            self.write_cache.saved = saved;
        }
        self
    }

    /// The same unit, with SWP set by MODE SELECT; `saved` is the value that it starts with next time.
    pub fn with_write_protection(mut self, enabled: bool, saved: bool) -> Self {
        self.write_protection = WriteProtection { enabled, saved };
        self
    }

    /// What can be done on the unit beyond the basic commands.
    pub fn features(&self) -> Features {
        self.features
    }

    /// The most blocks of one WRITE ATOMIC, zero if it is not served.
    pub fn atomic_write_blocks_max(&self) -> u32 {
        self.atomic_write_blocks_max
    }

    /// WRITE ATOMIC begins at, and writes, a multiple of this many blocks.
    pub fn atomic_write_granularity_blocks(&self) -> u32 {
        self.atomic_write_granularity_blocks
    }

    /// Bytes of a logical block.
    pub fn block_length(&self) -> BlockLength {
        self.block_length
    }

    /// Blocks of the unit.
    pub fn capacity_blocks(&self) -> u64 {
        self.capacity_blocks
    }

    /// The most blocks that one command may transfer (MAXIMUM TRANSFER LENGTH).
    pub fn transfer_blocks_max(&self) -> u32 {
        self.transfer_blocks_max
    }

    /// The last address of the unit.
    pub fn last_lba(&self) -> Lba {
        Lba(self.capacity_blocks - 1)
    }

    /// log2 of the logical blocks of one physical block.
    pub fn physical_block_exponent(&self) -> u8 {
        self.physical_block_exponent
    }

    /// Writes are refused: the unit was described so, or SWP is one.
    pub fn read_only(&self) -> bool {
        self.read_only || self.write_protection.enabled
    }

    /// Writes are refused whatever SWP says.
    pub fn always_read_only(&self) -> bool {
        self.read_only
    }

    /// SWP.
    pub fn write_protected(&self) -> bool {
        self.write_protection.enabled
    }

    /// The value of SWP that was saved by MODE SELECT.
    pub fn write_protection_saved(&self) -> bool {
        self.write_protection.saved
    }

    /// A write is answered before it is durable (WCE).
    pub fn write_cache_enabled(&self) -> bool {
        self.write_cache.enabled
    }

    /// The value of WCE that was saved by MODE SELECT.
    pub fn write_cache_saved(&self) -> bool {
        self.write_cache.saved
    }

    /// WCE can be one: there is something between an answered write and the medium. It is one unless it was changed.
    pub fn write_cache_exists(&self) -> bool {
        self.write_cache.exists
    }

    /// Blocks may be unmapped (LBPME).
    pub fn thin_provisioned(&self) -> bool {
        self.thin_provisioned
    }

    /// The logical blocks that the medium releases at once, from block 0 on; zero on a unit that is not thin
    /// provisioned.
    pub fn unmap_granularity_blocks(&self) -> u32 {
        self.unmap_granularity_blocks
    }

    /// The most blocks that one UNMAP may name in all its descriptors (MAXIMUM UNMAP LBA COUNT).
    pub fn unmap_blocks_max(&self) -> u32 {
        limits::UNMAP_BLOCKS_MAX
    }

    /// The most blocks that one WRITE SAME may name (MAXIMUM WRITE SAME LENGTH).
    pub fn write_same_blocks_max(&self) -> u32 {
        limits::WRITE_SAME_BYTES_MAX >> self.block_length.shift()
    }

    /// The encoding of this unit's sense data.
    pub fn sense_format(&self) -> SenseFormat {
        self.sense_format
    }

    /// PRODUCT SERIAL NUMBER: the disk's UUID as 32 hexadecimal digits.
    pub fn serial_number(&self) -> [u8; 32] {
        upper_hex(self.disk_uuid)
    }

    /// An NAA IEEE Registered Extended identifier (SPC-5 clause 7.7.6.6.5) with a locally administered company id: the
    /// nibble 6, 24 bits of `COMPANY_ID`, and the last 100 bits of the disk's UUID.
    pub fn naa_identifier(&self) -> [u8; 16] {
        const KEPT_BITS: u32 = 100;
        let prefix = 0x6 << 24 | COMPANY_ID;
        let kept = u128::from_be_bytes(self.disk_uuid) & ((1 << KEPT_BITS) - 1);
        (prefix << KEPT_BITS | kept).to_be_bytes()
    }

    /// TPGS: who changes the states of target port groups; bit 0 the target, bit 1 initiators.
    pub(super) fn target_port_group_support(&self) -> u8 {
        let has = |features| u8::from(self.features.contains(features));
        has(Features::PORT_GROUPS) | has(Features::PORT_GROUPS.and(Features::EXPLICIT_ACCESS)) << 1
    }

    /// THRESHOLD EXPONENT: log2 of the blocks of a threshold set, in which the log counts space; 1 MiB each. Zero:
    /// space is not told of.
    pub(super) fn threshold_exponent(&self) -> u8 {
        const MIB_SHIFT: u32 = 20;
        let told = self.features.contains(Features::LOG_DATA.and(Features::UNMAP));
        if told { (MIB_SHIFT - self.block_length.shift()) as u8 } else { 0 }
    }

    /// PRODUCT IDENTIFICATION, padded with spaces.
    pub(super) fn product(&self) -> &[u8; 16] {
        &self.product
    }

    /// OPTIMAL TRANSFER LENGTH GRANULARITY: a physical block, and at least the 4 KiB that the host's file systems work
    /// in.
    pub(super) fn optimal_granularity_blocks(&self) -> u16 {
        (1 << self.physical_block_exponent).max(4096 >> self.block_length.shift())
    }
}

/// T10 VENDOR IDENTIFICATION.
pub(super) const VENDOR: &str = "LUNARING";

/// PRODUCT REVISION LEVEL: the server's version without its patch level, at most four characters.
pub(super) const REVISION: &str = concat!(env!("CARGO_PKG_VERSION_MAJOR"), ".", env!("CARGO_PKG_VERSION_MINOR"));
const _: () = assert!(REVISION.len() <= 4);

/// A company id that nobody can be assigned: its first byte has the "locally administered" bit (02h) set, followed by
/// "LU".
const COMPANY_ID: u128 = 0x02_4c55;

/// Two upper-case hexadecimal digits for each byte, left-aligned in what is left as spaces.
pub(super) fn upper_hex<const BYTES: usize>(bytes: [u8; BYTES]) -> [u8; 32] {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let mut text = [b' '; 32];
    for (pair, byte) in text.chunks_exact_mut(2).zip(bytes) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 0xf)];
    }
    text
}

/// What one initiator has pending on one unit, and what the unit's reservations mean for it: one per session and mapped
/// LUN. Plain data of a few bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NexusUnit {
    attentions: Attentions,
    standing: Standing,
    access: AccessState,
}

impl NexusUnit {
    /// A new I_T nexus, or a unit newly mapped to it: POWER ON OCCURRED is pending.
    pub fn new() -> Self {
        let mut nexus = Self::default();
        nexus.raise(Attention::PowerOn);
        nexus
    }

    /// Establish a unit attention condition.
    pub fn raise(&mut self, attention: Attention) {
        self.attentions.raise(attention);
    }

    /// Take a condition back.
    pub fn clear(&mut self, attention: Attention) {
        self.attentions.clear(attention);
    }

    /// The unit's reservations have changed, or are learned of: this is what they mean for the nexus.
    pub fn set_standing(&mut self, standing: Standing) {
        self.standing = standing;
    }

    /// What the unit's reservations mean for the nexus.
    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// The target port that the nexus came through leads to the unit in this state now.
    pub fn set_access(&mut self, access: AccessState) {
        self.access = access;
    }

    /// The state in which the nexus's target port leads to the unit.
    pub fn access(&self) -> AccessState {
        self.access
    }

    /// A copy that the nexus has asked for may not read this unit, or write it: a reservation or the state of the
    /// target port group is against it.
    pub fn refuses_copy(&self, writes: bool) -> bool {
        let rule = if writes { ReservationRule::Write } else { ReservationRule::Read };
        self.standing.conflicts(rule, 0) || self.access.refusal(AccessRule::Active).is_some()
    }

    /// The pending conditions.
    pub fn attentions(&self) -> Attentions {
        self.attentions
    }

    pub(super) fn attentions_mut(&mut self) -> &mut Attentions {
        &mut self.attentions
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::fixture::DISK;

    #[test]
    fn identity_comes_from_the_uuid_alone() {
        let unit = Unit::new(&DISK).expect("a valid description");
        assert_eq!(unit.serial_number(), *b"0123456789AB4DEF8EDCBA9876543210");
        // 6, company id 024C55, and 25 hexadecimal digits of the UUID.
        let expected = b"\x60\x24\xc5\x57\x89\xab\x4d\xef\x8e\xdc\xba\x98\x76\x54\x32\x10";
        assert_eq!(unit.naa_identifier(), *expected);
        let resized = Unit::new(&UnitConfig { capacity_blocks: 1, read_only: true, ..DISK }).expect("valid too");
        assert_eq!(resized.naa_identifier(), unit.naa_identifier());
    }

    #[test]
    fn impossible_descriptions_are_refused() {
        let error = |config: UnitConfig<'_>| Unit::new(&config).expect_err("refused");
        assert_eq!(error(UnitConfig { capacity_blocks: 0, ..DISK }), UnitError::Capacity);
        assert_eq!(error(UnitConfig { capacity_blocks: (1 << 54) + 1, ..DISK }), UnitError::Capacity);
        let long = UnitConfig { block_length: BlockLength::B4096, capacity_blocks: (1 << 51) + 1, ..DISK };
        assert_eq!(error(long), UnitError::Capacity);
        assert_eq!(error(UnitConfig { physical_block_exponent: 16, ..DISK }), UnitError::PhysicalBlockExponent);
        let thin = UnitConfig { thin_provisioned: true, unmap_granularity_blocks: 0, ..DISK };
        assert_eq!(error(thin), UnitError::UnmapGranularity);
        for product in ["", "seventeen letters", "tab\t", "größe"] {
            assert_eq!(error(UnitConfig { product, ..DISK }), UnitError::Product, "{product:?}");
        }
        assert!(Unit::new(&UnitConfig { capacity_blocks: 1 << 54, ..DISK }).is_ok());
    }

    #[test]
    fn one_command_moves_32_mib_at_most() {
        let unit = Unit::new(&DISK).expect("a valid description");
        assert_eq!(unit.transfer_blocks_max(), 65_536);
        let unit = Unit::new(&UnitConfig { block_length: BlockLength::B4096, ..DISK }).expect("a valid description");
        assert_eq!(unit.transfer_blocks_max(), 8_192);
    }
}
