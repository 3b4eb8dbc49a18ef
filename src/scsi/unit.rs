//! A logical unit as the command handlers see it: its description, and what one initiator has pending on it.
//!
//! A [`Unit`] is plain shared data, replaced (never changed in place) when a disk is resized or changes its caching; whoever replaces
//! it raises the matching [`Attention`](super::Attention) for every I_T nexus.

use super::attention::{Attention, Attentions};
use super::sense::SenseFormat;

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
    /// LBPME: blocks may be unmapped.
    pub thin_provisioned: bool,
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
}

/// Description of a logical unit. Immutable; sizes about 100 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    block_length: BlockLength,
    physical_block_exponent: u8,
    capacity_blocks: u64,
    transfer_blocks_max: u32,
    read_only: bool,
    write_cache_enabled: bool,
    thin_provisioned: bool,
    sense_format: SenseFormat,
    disk_uuid: [u8; 16],
    product: [u8; 16],
}

impl Unit {
    /// Check a description.
    pub fn new(config: &UnitConfig<'_>) -> Result<Self, UnitError> {
        let _ = config;
        todo!()
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

    /// Writes are refused.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// The encoding of this unit's sense data.
    pub fn sense_format(&self) -> SenseFormat {
        self.sense_format
    }
}

/// What one initiator has pending on one unit: one per session and mapped LUN. Plain data, two bytes at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NexusUnit {
    attentions: Attentions,
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

    /// The pending conditions.
    pub fn attentions(&self) -> Attentions {
        self.attentions
    }

    pub(super) fn attentions_mut(&mut self) -> &mut Attentions {
        &mut self.attentions
    }
}
