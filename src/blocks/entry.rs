//! A word of a block table: the state of a block and where it is in the file.

use std::fmt;

/// What a block's entry says about its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing here: the parent's content, or zeros where there is no parent.
    Absent,
    /// Reads as zeros, whatever the parent holds.
    Zeros,
    /// All of it is in this file.
    Full,
    /// Each sector is in this file when its bit is set, else it is the parent's.
    Partial,
}

/// The word of one block in memory: the VHDX BAT word ([MS-VHDX] section 2.5.1), for all formats. Bits 0 to 2 hold the
/// state, bit 3 says [busy](Self::is_busy), bits 9 to 63 the byte offset in the file, a multiple of 512. VHDX offsets
/// are multiples of 1 MiB, so an entry of a VHDX file is a valid word as it is.
///
/// An entry that is `Absent` or `Zeros` and has an offset has space that readers do not look at: it is reserved for the
/// block, data may be on its way there ("staged"). No file's table gets such a word.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Entry(pub u64);

impl Entry {
    /// Nothing here and no space.
    pub const ABSENT: Self = Self(0);
    /// Zeros, and no space (VHDX: PAYLOAD_BLOCK_ZERO).
    pub const ZEROS: Self = Self(2);

    /// The bits that hold the offset.
    pub const OFFSET_MASK: u64 = !0x1ff;
    /// The bits that hold the state.
    pub const STATE_MASK: u64 = 7;
    const BUSY: u64 = 8;

    /// An entry of this state, at this byte offset (a multiple of 512; 0: no space).
    pub fn new(state: State, offset_bytes: u64) -> Self {
        assert!(offset_bytes & !Self::OFFSET_MASK == 0, "offsets are multiples of 512");
        let code = match state {
            State::Absent => 0,
            State::Zeros => 2,
            State::Full => 6,
            State::Partial => 7,
        };
        Self(offset_bytes | code)
    }

    /// What it says. The reserved codes 4 and 5, which openers refuse, count as `Zeros` (5 was "unmapped" in a draft).
    pub fn state(self) -> State {
        match self.0 & Self::STATE_MASK {
            0 => State::Absent,
            6 => State::Full,
            7 => State::Partial,
            _ => State::Zeros,
        }
    }

    /// Byte offset of the block in the file; 0 without space.
    pub fn offset_bytes(self) -> u64 {
        self.0 & Self::OFFSET_MASK
    }

    /// Whether readers find content of this block in the file.
    pub fn is_present(self) -> bool {
        self.0 & Self::STATE_MASK >= 6
    }

    /// Whether the block has space in the file, seen by readers or staged.
    pub fn has_space(self) -> bool {
        self.offset_bytes() != 0
    }

    /// Whether the engine is working on the block: writes wait for it, reads go on as the entry says. In memory only.
    pub fn is_busy(self) -> bool {
        self.0 & Self::BUSY != 0
    }

    /// The same entry, busy or not.
    pub fn with_busy(self, busy: bool) -> Self {
        Self(if busy { self.0 | Self::BUSY } else { self.0 & !Self::BUSY })
    }

    /// The same entry with another state.
    pub fn with_state(self, state: State) -> Self {
        Self::new(state, self.offset_bytes()).with_busy(self.is_busy())
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}@{:#x}", self.state(), self.offset_bytes())?;
        if self.is_busy() { f.write_str(" busy") } else { Ok(()) }
    }
}
