//! How a page of a block map comes from the layer's file.

use super::map::{BlockMap, Fault};
use super::pages::PAGE_BYTES;

/// Pieces of a file that one page may come from: a page of bits covers 32 blocks of 512 KiB, the smallest.
pub const PIECES_MAX: usize = 32;

/// A part of a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// Byte offset in the file; `None`: zeros, nothing is read.
    pub offset_bytes: Option<u64>,
    /// Length in bytes.
    pub len_bytes: u32,
}

/// The pieces of a page, in order.
#[derive(Clone, Copy, Debug, Default)]
pub struct PieceList {
    pieces: [Piece; PIECES_MAX],
    count: u8,
}

impl PieceList {
    /// No piece.
    pub fn new() -> Self {
        Self::default()
    }

    /// Add a piece; at most [`PIECES_MAX`].
    pub fn push(&mut self, piece: Piece) {
        self.pieces[usize::from(self.count)] = piece;
        self.count += 1;
    }

    /// Forget all pieces.
    pub fn clear(&mut self) {
        self.count = 0;
    }

    /// The pieces.
    pub fn as_slice(&self) -> &[Piece] {
        &self.pieces[..usize::from(self.count)]
    }

    /// Bytes of all pieces; those of a complete list are one page.
    pub fn len_bytes(&self) -> usize {
        self.as_slice().iter().map(|piece| piece.len_bytes as usize).sum()
    }
}

/// What the format of a layer knows about loading pages of its map. Whoever serves a [`Fault`] asks for the pieces,
/// reads them one behind the other into a page, and has them decoded: a home shard with ring operations, or blocking
/// code ([`load_blocking`]).
pub trait PageSource: Send + Sync {
    /// Where the page is in the file: pieces in order, together one page. What lies behind the end of the file's table
    /// or was never written there is a piece of zeros. `Err`: that other page has to be loaded first.
    fn pieces(&self, map: &BlockMap, fault: Fault, into: &mut PieceList) -> Result<(), Fault>;

    /// Turn what was read into little-endian words, the least significant bit first.
    fn decode(&self, fault: Fault, bytes: &mut [u8; PAGE_BYTES]);
}

/// Reads a layer's file: from this byte offset on, all of the buffer.
pub type ReadAt<'a, E> = dyn FnMut(u64, &mut [u8]) -> Result<(), E> + 'a;

/// Load a page, and those that have to be loaded before it, with a function that reads the layer's file at a byte
/// offset. For openers, offline work and tests; it blocks as long as `read` does.
pub fn load_blocking<E>(map: &BlockMap, fault: Fault, read: &mut ReadAt<'_, E>) -> Result<(), E> {
    let mut pieces = PieceList::new();
    while let Err(other) = map.source().pieces(map, fault, &mut pieces) {
        assert!(other != fault, "a page does not wait for itself");
        load_blocking(map, other, read)?;
        pieces.clear();
    }
    assert_eq!(pieces.len_bytes(), PAGE_BYTES, "the pieces of a page are a page");
    let mut bytes = [0; PAGE_BYTES];
    let mut at = 0;
    for piece in pieces.as_slice() {
        let part = &mut bytes[at..at + piece.len_bytes as usize];
        if let Some(offset_bytes) = piece.offset_bytes {
            read(offset_bytes, part)?;
        }
        at += part.len();
    }
    map.source().decode(fault, &mut bytes);
    // Refused only while another thread fills, which is a matter of a microsecond.
    while !map.table(fault.table).fill(fault.page, &bytes) {
        std::hint::spin_loop();
    }
    Ok(())
}
