//! What a plan consists of: extents, and what is missing for one.

use super::map::Fault;

/// Most extents of one plan.
pub const EXTENTS_MAX: usize = 16;

/// Where a part of a range is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// No space in any file: reads as zeros.
    Zeros {
        /// Length in bytes.
        len_bytes: u32,
    },
    /// Bytes of a layer's file.
    File {
        /// Which layer of the chain, 0 for the leaf.
        layer: u16,
        /// Byte offset in the file.
        offset_bytes: u64,
        /// Length in bytes.
        len_bytes: u32,
    },
}

impl Extent {
    /// Its length in bytes.
    pub fn len_bytes(&self) -> u32 {
        let (Self::Zeros { len_bytes } | Self::File { len_bytes, .. }) = self;
        *len_bytes
    }

    /// Make it longer by `next` when that continues it.
    fn join(&mut self, next: Extent) -> bool {
        match (self, next) {
            (Self::Zeros { len_bytes }, Self::Zeros { len_bytes: more }) => *len_bytes += more,
            (
                Self::File { layer, offset_bytes, len_bytes },
                Self::File { layer: next_layer, offset_bytes: next_offset, len_bytes: more },
            ) if *layer == next_layer && *offset_bytes + u64::from(*len_bytes) == next_offset => *len_bytes += more,
            _ => return false,
        }
        true
    }
}

/// Extents in order, neighbours merged.
#[derive(Clone, Copy, Debug)]
pub struct ExtentList {
    extents: [Extent; EXTENTS_MAX],
    count: u8,
}

impl ExtentList {
    /// No extent.
    pub const EMPTY: Self = Self { extents: [Extent::Zeros { len_bytes: 0 }; EXTENTS_MAX], count: 0 };

    /// A list of one.
    pub fn one(extent: Extent) -> Self {
        let mut list = Self::EMPTY;
        list.extents[0] = extent;
        list.count = 1;
        list
    }

    /// Add an extent, merged with the last where it continues that. `false`: the list is full.
    pub fn push(&mut self, extent: Extent) -> bool {
        let count = usize::from(self.count);
        if count > 0 && self.extents[count - 1].join(extent) {
            return true;
        }
        if count == EXTENTS_MAX {
            return false;
        }
        self.extents[count] = extent;
        self.count += 1;
        true
    }

    /// The extents.
    pub fn as_slice(&self) -> &[Extent] {
        &self.extents[..usize::from(self.count)]
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes of the range that they cover, from its start: less than was asked for when the range is in more than
    /// [`EXTENTS_MAX`] pieces, or where a page of the map is missing further on. Plan the rest when this is done.
    pub fn covered_bytes(&self) -> u32 {
        self.as_slice().iter().map(Extent::len_bytes).sum()
    }

    /// Whether all that they cover reads as zeros.
    pub fn is_zeros(&self) -> bool {
        self.as_slice().iter().all(|extent| matches!(extent, Extent::Zeros { .. }))
    }
}

/// A page of one level's map that has to be loaded before a plan can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LevelFault {
    /// Which level of the chain.
    pub level: u16,
    /// Which page of that level's map.
    pub fault: Fault,
}

/// How to read a range.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::large_enum_variant, reason = "on the stack of a task; a box would be an allocation a plan")]
pub enum ReadPlan {
    /// Read these extents. They cover at least the range's first sector.
    Extents(ExtentList),
    /// Load this page, then plan again.
    Fault(LevelFault),
    /// Some of the range may be half of an atomic write ([`BlockMap::mark_torn`](super::BlockMap::mark_torn)).
    Torn,
}

/// How to write a range.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::large_enum_variant, reason = "on the stack of a task; a box would be an allocation a plan")]
pub enum WritePlan {
    /// Every byte that the extents cover has a place in the leaf; none is [`Extent::Zeros`].
    Ready {
        /// Where to write.
        extents: ExtentList,
        /// Some of it is not visible yet: when the data has been written, have the engine commit the covered range.
        commit: bool,
        /// For the commit.
        epoch: u32,
    },
    /// The engine must be asked first (write session, space, a busy block); then plan again.
    Prepare,
    /// Load this page of the leaf, then plan again.
    Fault(LevelFault),
    /// The leaf takes no more writes.
    Poisoned,
}
