//! Where the bytes of a disk are, for every format: block tables, chains of layers, plans, and the contract of engines.
//!
//! A **layer** is one file; a **chain** is a leaf and its parents, leaf first. Each layer that maps blocks has a
//! [`BlockMap`]: a paged, bounded, lock-free view of its block table, in the words of the VHDX block allocation table
//! ([`Entry`]), whatever the format. A [`Chain`] turns byte ranges of the disk into extents of files, in a few
//! nanoseconds, without allocation or lock, on any shard. What it needs and is not in memory it names as a [`Fault`];
//! the caller loads that page ([`PageSource`]) and plans again. Deep chains are folded into one lookup ([`FlatMap`]).
//!
//! An [`Engine`] changes the map of a writable layer; there is one, on the disk's home shard.
//!
//! **May know:** nothing but the leaf modules. Used by the formats, the medium, the shard and what is above. Sans-IO:
//! no files, clocks or threads; everything shared is atomics.
#![forbid(unsafe_code)]

mod chain;
mod engine;
mod entry;
mod flat;
mod map;
mod pages;
mod plan;
mod source;
mod storage;
#[cfg(test)]
mod tests;

pub use chain::{Chain, LEVELS_MAX, Level, Status};
pub use engine::{
    ATOMIC_WRITE_BYTES, Asked, Done, Engine, EngineError, Event, IoFailure, IoId, METADATA_IO_BYTES_MAX, MetadataIo,
    MetadataIoKind, Payload, SpaceReport, Ticket,
};
pub use entry::{Entry, State};
pub use flat::FlatMap;
pub use map::{BlockMap, Fault, FlushMark, MapLimits, Shape, TORN_MAX, Table};
pub use pages::{PAGE_BYTES, PagedTable, PinRefused, WORDS_PER_PAGE};
pub use plan::{EXTENTS_MAX, Extent, ExtentList, LevelFault, ReadPlan, WritePlan};
pub use source::{PIECES_MAX, PageSource, Piece, PieceList, ReadAt, load_blocking};
pub use storage::{Storage, StorageError, checksums, write_zeros};
