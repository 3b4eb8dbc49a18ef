//! Memory that the kernel may read and write: the arena's buffers, and the memory disk.
//!
//! An [`Arena`] belongs to one shard and hands out page-aligned buffers of power-of-two classes. A [`Buf`] is the only
//! handle to its bytes and may be written; [`Buf::freeze`] makes it a [`Slice`], which can be shared and is never
//! written again. Neither can leave its thread. Taking and dropping one costs a few nanoseconds and never the system
//! allocator. [`SharedMemory`] is the opposite: one large area that all shards read and write, like a disk.
//!
//! **May know:** the system's memory calls. Nothing of rings, protocols or disks.
#![allow(unsafe_code)]

mod arena;
mod mapping;
mod shared;

pub use arena::{Arena, ArenaConfig, ArenaError, ArenaStats, Buf, Slice};
pub use arena::{BUFFER_ALIGNMENT, BUFFER_LENGTH_MAX, CHUNK_LENGTH};
pub use shared::{SHARED_PAGE_BYTES, SharedMemory, SharedMemoryError};
