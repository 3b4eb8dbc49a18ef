//! The shard's buffers: size classes on 2 MiB chunks, free lists, shared and unique handles.
//!
//! A chunk is carved into slots of one class. Each slot has one word of metadata, indexed by its first page: the number
//! of handles while it is taken, the next free slot while it is not. A chunk whose slots are all free may take another
//! class. Everything is sized when the arena is made.

use std::cell::Cell;
use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::rc::Rc;

use super::mapping::Mapping;
use crate::units::HumanBytes;

/// Every buffer starts at a multiple of this, and no class is smaller.
pub const BUFFER_ALIGNMENT: usize = 4096;
/// The largest buffer.
pub const BUFFER_LENGTH_MAX: usize = 1 << 20;
/// Bytes of a chunk: the unit of carving, of huge pages and of registration with the kernel.
pub const CHUNK_LENGTH: usize = 2 << 20;

/// 4 KiB, 8 KiB … 1 MiB.
const CLASS_COUNT: usize = 9;
const PAGES_PER_CHUNK: u32 = (CHUNK_LENGTH / BUFFER_ALIGNMENT) as u32;
/// Ends every list of slots and of chunks.
const NONE: u32 = u32::MAX;
/// The first half of chunk 0 is the zero area.
const ZERO_CHUNK: u32 = 0;

const _: () = assert!(BUFFER_ALIGNMENT << (CLASS_COUNT - 1) == BUFFER_LENGTH_MAX);
const _: () = assert!(BUFFER_LENGTH_MAX <= CHUNK_LENGTH);

/// How large an arena may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArenaConfig {
    /// Bytes of buffers at most; rounded up to whole chunks of 2 MiB. Only address space until touched.
    pub bytes_max: usize,
    /// Ask the kernel for transparent huge pages: fewer TLB misses, but memory is committed 2 MiB at a time.
    pub hugepages: bool,
}

/// Why an arena could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ArenaError {
    /// No such address range.
    #[error(
        "cannot reserve {bytes} of address space for buffers ({source}); \
         lower the memory limit of the server or raise `ulimit -v`",
        bytes = HumanBytes(*bytes as u64)
    )]
    Reserve {
        /// What was asked for.
        bytes: usize,
        /// The system's answer.
        source: std::io::Error,
    },
    /// More than an arena can index.
    #[error("an arena of {bytes} is more than the 1T that one shard can use", bytes = HumanBytes(*bytes as u64))]
    TooLarge {
        /// What was asked for.
        bytes: usize,
    },
}

/// What an arena holds now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ArenaStats {
    /// The bound, in whole chunks.
    pub bytes_max: usize,
    /// Bytes of chunks that were ever carved; memory that may be resident.
    pub bytes_committed: usize,
    /// Bytes of slots in use (whole slots, not the lengths asked for).
    pub bytes_taken: usize,
    /// The highest `bytes_taken` so far.
    pub bytes_taken_max: usize,
    /// How often `take` found no room.
    pub refusals: u64,
}

/// A slot's word: handles while taken, else the next free slot of its chunk (a page index).
struct Page {
    handles: Cell<u32>,
    next_free: Cell<u32>,
}

/// One chunk's state. `class` is meaningless while the chunk is in the pool of free chunks.
struct Chunk {
    class: Cell<u8>,
    /// Slots taken.
    taken: Cell<u32>,
    /// Slots handed out at least once since the chunk got its class; those after are free without being listed.
    carved: Cell<u32>,
    free_first: Cell<u32>,
    /// Neighbours in the class's list of chunks with free slots; `next` also links the pool of free chunks.
    next: Cell<u32>,
    previous: Cell<u32>,
}

struct Inner {
    mapping: Mapping,
    base: NonNull<u8>,
    pages: Box<[Page]>,
    chunks: Box<[Chunk]>,
    /// First chunk with a free slot, by class.
    partial: [Cell<u32>; CLASS_COUNT],
    /// First chunk that belongs to no class.
    pool: Cell<u32>,
    /// Chunks used at least once; those after are fresh.
    chunks_fresh: Cell<u32>,
    stats: Cell<ArenaStats>,
}

/// Page-aligned buffers of one shard. Cloning gives another handle to the same arena.
#[derive(Clone)]
pub struct Arena {
    inner: Rc<Inner>,
}

/// A buffer that nobody else can see: read it, write it, hand it to the kernel. Fresh buffers hold whatever their last
/// user left; write before showing bytes to anyone.
pub struct Buf {
    inner: Rc<Inner>,
    start: NonNull<u8>,
    len: u32,
    /// First page of the slot.
    page: u32,
}

/// A view of frozen bytes. Clones share them; the slot is free when the last handle goes.
pub struct Slice {
    inner: Rc<Inner>,
    start: NonNull<u8>,
    len: u32,
    page: u32,
}

impl Arena {
    /// Reserve address space for `bytes_max` bytes of buffers. Nothing is committed yet.
    pub fn new(config: ArenaConfig) -> Result<Arena, ArenaError> {
        let bytes = config.bytes_max;
        let chunk_count = bytes.div_ceil(CHUNK_LENGTH).saturating_add(1);
        if bytes > 1 << 40 {
            return Err(ArenaError::TooLarge { bytes });
        }
        let mapping = Mapping::new(chunk_count * CHUNK_LENGTH, CHUNK_LENGTH)
            .map_err(|source| ArenaError::Reserve { bytes, source })?;
        if config.hugepages {
            mapping.advise_hugepages();
        }
        let chunk = || Chunk {
            class: Cell::new(0),
            taken: Cell::new(0),
            carved: Cell::new(0),
            free_first: Cell::new(NONE),
            next: Cell::new(NONE),
            previous: Cell::new(NONE),
        };
        let page = || Page { handles: Cell::new(0), next_free: Cell::new(NONE) };
        let inner = Inner {
            base: mapping.base(),
            mapping,
            pages: std::iter::repeat_with(page).take(chunk_count * PAGES_PER_CHUNK as usize).collect(),
            chunks: std::iter::repeat_with(chunk).take(chunk_count).collect(),
            partial: [const { Cell::new(NONE) }; CLASS_COUNT],
            pool: Cell::new(NONE),
            chunks_fresh: Cell::new(1),
            stats: Cell::new(ArenaStats { bytes_max: (chunk_count - 1) * CHUNK_LENGTH, ..ArenaStats::default() }),
        };
        // The zero area is a slot that is taken for good.
        inner.pages[0].handles.set(1);
        Ok(Arena { inner: Rc::new(inner) })
    }

    /// A buffer of exactly `len` bytes (1 byte to 1 MiB) in the smallest slot that holds it. `None` when the arena is
    /// at its bound; never waits.
    #[inline]
    pub fn take(&self, len: usize) -> Option<Buf> {
        assert!(len > 0 && len <= BUFFER_LENGTH_MAX, "no class for a buffer of {len} bytes");
        let class = class_of(len);
        let chunk = match self.inner.partial[class].get() {
            NONE => self.inner.chunk_for(class)?,
            chunk => chunk,
        };
        let page = self.inner.take_slot(chunk, class);
        Some(Buf { inner: self.inner.clone(), start: self.inner.page_start(page), len: len as u32, page })
    }

    /// `len` zero bytes (at most 1 MiB), shared by all who ask.
    pub fn zeros(&self, len: usize) -> Slice {
        assert!(len <= BUFFER_LENGTH_MAX, "the zero area has 1 MiB, not {len} bytes");
        self.inner.retain(0);
        Slice { inner: self.inner.clone(), start: self.inner.base, len: len as u32, page: 0 }
    }

    /// What is held now.
    pub fn stats(&self) -> ArenaStats {
        let mut stats = self.inner.stats.get();
        stats.bytes_committed = (self.inner.chunks_fresh.get() as usize - 1) * CHUNK_LENGTH;
        stats
    }

    /// How many chunks the arena can ever have: chunk indices are below this.
    pub fn chunk_count(&self) -> u32 {
        self.inner.chunks.len() as u32
    }

    /// Start and length of a chunk, for registration with the kernel. The memory stays mapped as long as any handle to
    /// the arena or its buffers lives.
    pub fn chunk_area(&self, index: u32) -> (*mut u8, usize) {
        assert!(index < self.chunk_count());
        (self.inner.page_start(index * PAGES_PER_CHUNK).as_ptr(), CHUNK_LENGTH)
    }

    /// The index of the chunk that holds a buffer, if the buffer is of this arena.
    #[inline]
    pub fn chunk_of_buf(&self, buf: &Buf) -> Option<u32> {
        Rc::ptr_eq(&self.inner, &buf.inner).then_some(buf.page / PAGES_PER_CHUNK)
    }

    /// The index of the chunk that holds a slice, if the slice is of this arena.
    #[inline]
    pub fn chunk_of_slice(&self, slice: &Slice) -> Option<u32> {
        Rc::ptr_eq(&self.inner, &slice.inner).then_some(slice.page / PAGES_PER_CHUNK)
    }
}

#[inline]
fn class_of(len: usize) -> usize {
    let pages = len.div_ceil(BUFFER_ALIGNMENT);
    pages.next_power_of_two().trailing_zeros() as usize
}

const fn pages_of(class: usize) -> u32 {
    1 << class
}

const fn slots_of(class: usize) -> u32 {
    PAGES_PER_CHUNK >> class
}

impl Inner {
    fn page_start(&self, page: u32) -> NonNull<u8> {
        assert!((page as usize) < self.pages.len());
        // SAFETY: the mapping covers every page that has metadata.
        unsafe { self.base.add(page as usize * BUFFER_ALIGNMENT) }
    }

    /// Take a free slot of a chunk that has one.
    #[inline]
    fn take_slot(&self, index: u32, class: usize) -> u32 {
        let chunk = &self.chunks[index as usize];
        let page = match chunk.free_first.get() {
            NONE => {
                let carved = chunk.carved.get();
                assert!(carved < slots_of(class), "a chunk without free slots was in the list");
                chunk.carved.set(carved + 1);
                index * PAGES_PER_CHUNK + carved * pages_of(class)
            }
            page => {
                chunk.free_first.set(self.pages[page as usize].next_free.get());
                page
            }
        };
        let handles = &self.pages[page as usize].handles;
        assert!(handles.get() == 0, "a free slot had handles");
        handles.set(1);
        chunk.taken.set(chunk.taken.get() + 1);
        if chunk.taken.get() == slots_of(class) {
            self.unlink(index, class);
        }
        let mut stats = self.stats.get();
        stats.bytes_taken += BUFFER_ALIGNMENT << class;
        stats.bytes_taken_max = stats.bytes_taken_max.max(stats.bytes_taken);
        self.stats.set(stats);
        page
    }

    #[inline]
    fn retain(&self, page: u32) {
        let handles = &self.pages[page as usize].handles;
        handles.set(handles.get().checked_add(1).expect("fewer than 2^32 handles to one slot"));
    }

    #[inline]
    fn release(&self, page: u32) {
        let handles = &self.pages[page as usize].handles;
        let left = handles.get().checked_sub(1).expect("a taken slot has handles");
        handles.set(left);
        if left == 0 {
            self.free_slot(page);
        }
    }

    #[inline]
    fn free_slot(&self, page: u32) {
        let index = page / PAGES_PER_CHUNK;
        let chunk = &self.chunks[index as usize];
        let class = chunk.class.get() as usize;
        let taken = chunk.taken.get();
        self.pages[page as usize].next_free.set(chunk.free_first.get());
        chunk.free_first.set(page);
        chunk.taken.set(taken - 1);
        let mut stats = self.stats.get();
        stats.bytes_taken -= BUFFER_ALIGNMENT << class;
        self.stats.set(stats);
        if taken == slots_of(class) {
            self.link(index, class);
        }
        // One free chunk stays with its class, so that a single buffer going to and fro moves no chunk.
        if taken == 1 && (self.partial[class].get() != index || chunk.next.get() != NONE) {
            self.unlink(index, class);
            chunk.next.set(self.pool.get());
            self.pool.set(index);
        }
    }

    /// A chunk with a free slot for a class that has none: from the pool, fresh, or an idle one of another class.
    #[cold]
    fn chunk_for(&self, class: usize) -> Option<u32> {
        let index = self.chunk_from_pool().or_else(|| self.chunk_fresh()).or_else(|| self.chunk_from_classes());
        let Some(index) = index else {
            let mut stats = self.stats.get();
            stats.refusals += 1;
            self.stats.set(stats);
            return None;
        };
        let chunk = &self.chunks[index as usize];
        assert!(chunk.taken.get() == 0, "a chunk changed class with slots taken");
        chunk.class.set(class as u8);
        chunk.carved.set(0);
        chunk.free_first.set(NONE);
        self.link(index, class);
        Some(index)
    }

    fn chunk_from_pool(&self) -> Option<u32> {
        let index = self.pool.get();
        if index == NONE {
            return None;
        }
        self.pool.set(self.chunks[index as usize].next.get());
        Some(index)
    }

    fn chunk_fresh(&self) -> Option<u32> {
        let index = self.chunks_fresh.get();
        if index as usize == self.chunks.len() {
            return None;
        }
        self.chunks_fresh.set(index + 1);
        Some(index)
    }

    /// The one wholly free chunk that a class may have kept. It is the class's only partial chunk, or one among few.
    fn chunk_from_classes(&self) -> Option<u32> {
        for class in 0..CLASS_COUNT {
            let mut index = self.partial[class].get();
            while index != NONE {
                if self.chunks[index as usize].taken.get() == 0 {
                    self.unlink(index, class);
                    return Some(index);
                }
                index = self.chunks[index as usize].next.get();
            }
        }
        None
    }

    fn link(&self, index: u32, class: usize) {
        assert!(index != ZERO_CHUNK, "the zero area is never given out");
        let first = self.partial[class].replace(index);
        let chunk = &self.chunks[index as usize];
        chunk.next.set(first);
        chunk.previous.set(NONE);
        if first != NONE {
            self.chunks[first as usize].previous.set(index);
        }
    }

    fn unlink(&self, index: u32, class: usize) {
        let chunk = &self.chunks[index as usize];
        let (previous, next) = (chunk.previous.get(), chunk.next.get());
        if previous == NONE {
            assert!(self.partial[class].get() == index, "the chunk was not in its class's list");
            self.partial[class].set(next);
        } else {
            self.chunks[previous as usize].next.set(next);
        }
        if next != NONE {
            self.chunks[next as usize].previous.set(previous);
        }
    }

    fn slot_length(&self, page: u32) -> usize {
        BUFFER_ALIGNMENT << self.chunks[(page / PAGES_PER_CHUNK) as usize].class.get()
    }
}

impl Buf {
    /// Bytes of this buffer.
    #[allow(clippy::len_without_is_empty)]
    #[inline]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Split into `..at` and `at..`; `self` keeps the first part. Both are unique; the slot is free when both are gone.
    #[must_use]
    pub fn split_off(&mut self, at: usize) -> Buf {
        assert!(at <= self.len(), "cannot split a buffer of {} at {at}", self.len);
        self.inner.retain(self.page);
        // SAFETY: `at` is inside this buffer's part of the slot, or at its end.
        let start = unsafe { self.start.add(at) };
        let tail = Buf { inner: self.inner.clone(), start, len: self.len - at as u32, page: self.page };
        self.len = at as u32;
        tail
    }

    /// Forget the bytes from `len` on. A longer `len` changes nothing.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len.min(BUFFER_LENGTH_MAX) as u32);
    }

    /// Bytes of the slot this buffer lies in.
    pub fn slot_len(&self) -> usize {
        self.inner.slot_length(self.page)
    }

    /// The whole slot again, from its start, after splits and truncations: `Err` gives the buffer back while another
    /// part of the slot lives.
    pub fn into_whole_slot(mut self) -> Result<Buf, Buf> {
        if self.inner.pages[self.page as usize].handles.get() != 1 {
            return Err(self);
        }
        self.start = self.inner.page_start(self.page);
        self.len = self.slot_len() as u32;
        Ok(self)
    }

    /// End writing: the bytes can be shared from now on.
    #[inline]
    pub fn freeze(self) -> Slice {
        let buf = std::mem::ManuallyDrop::new(self);
        // SAFETY: `buf` is never used or dropped again, so its handle to the arena moves into the slice.
        let inner = unsafe { std::ptr::read(&buf.inner) };
        Slice { inner, start: buf.start, len: buf.len, page: buf.page }
    }

    /// The first byte's address, for the kernel. Valid as long as this buffer (or what it becomes) lives.
    #[inline]
    pub fn address(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }
}

impl Slice {
    /// Bytes of this view.
    #[inline]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether the view has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether this is a view of the zeros of [`Arena::zeros`], which never change.
    #[inline]
    pub fn is_zero_area(&self) -> bool {
        self.page / PAGES_PER_CHUNK == ZERO_CHUNK
    }

    /// A part of this view, which shares its bytes. The range must lie inside.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Slice {
        assert!(range.start <= range.end && range.end <= self.len(), "slice {range:?} of {}", self.len);
        let mut part = self.clone();
        // SAFETY: `range.start` is inside the view, or at its end.
        part.start = unsafe { self.start.add(range.start) };
        part.len = (range.end - range.start) as u32;
        part
    }

    /// Writable again, when no other handle to the slot is left.
    pub fn try_thaw(self) -> Result<Buf, Slice> {
        if self.is_zero_area() || self.inner.pages[self.page as usize].handles.get() != 1 {
            return Err(self);
        }
        let slice = std::mem::ManuallyDrop::new(self);
        // SAFETY: `slice` is never used or dropped again, so its handle to the arena moves into the buffer.
        let inner = unsafe { std::ptr::read(&slice.inner) };
        Ok(Buf { inner, start: slice.start, len: slice.len, page: slice.page })
    }

    /// The first byte's address, for the kernel to read. Valid as long as any handle to these bytes lives.
    #[inline]
    pub fn address(&self) -> *const u8 {
        self.start.as_ptr()
    }
}

impl Deref for Buf {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: `start .. start + len` lies in a taken slot of a mapping that `inner` keeps alive, the bytes are
        // initialised (the mapping starts as zeros), and no other handle covers them: a slot is given to one `Buf`, and
        // `split_off` makes disjoint ones. The kernel writes to them only while the ring owns the `Buf`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len as usize) }
    }
}

impl DerefMut for Buf {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`; and `&mut self` is the only way to these bytes.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len as usize) }
    }
}

impl Deref for Slice {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: as for `Buf`, except that other slices may cover the bytes: nobody writes to them while one lives,
        // since `Buf::freeze` gave the only writer up and `try_thaw` asks for the last handle. A `Buf` that was split
        // off the same slot covers other bytes.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len as usize) }
    }
}

impl Clone for Slice {
    #[inline]
    fn clone(&self) -> Slice {
        self.inner.retain(self.page);
        Slice { inner: self.inner.clone(), start: self.start, len: self.len, page: self.page }
    }
}

impl Drop for Buf {
    #[inline]
    fn drop(&mut self) {
        self.inner.release(self.page);
    }
}

impl Drop for Slice {
    #[inline]
    fn drop(&mut self) {
        self.inner.release(self.page);
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena").field("stats", &self.stats()).field("len", &self.inner.mapping.len()).finish()
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buf({} bytes in slot {})", self.len, self.page)
    }
}

impl fmt::Debug for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slice({} bytes in slot {})", self.len, self.page)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn arena(chunks: usize) -> Arena {
        Arena::new(ArenaConfig { bytes_max: chunks * CHUNK_LENGTH, hugepages: false }).unwrap()
    }

    /// Everything of one class until the arena is full.
    fn take_all(arena: &Arena, len: usize) -> Vec<Buf> {
        std::iter::from_fn(|| arena.take(len)).collect()
    }

    #[test]
    fn a_buffer_has_the_length_asked_for_in_the_smallest_slot_that_holds_it() {
        let arena = arena(1);
        for (len, slot) in [(1, 4096), (4096, 4096), (4097, 8192), (70_000, 131_072), (1 << 20, 1 << 20)] {
            let buf = arena.take(len).unwrap();
            assert_eq!((buf.len(), buf.slot_len(), buf.as_ptr().addr() % BUFFER_ALIGNMENT), (len, slot, 0));
            assert_eq!(arena.stats().bytes_taken, slot);
        }
        assert_eq!(arena.stats().bytes_taken, 0);
    }

    #[test]
    fn buffers_are_disjoint_and_the_bound_is_kept() {
        let arena = arena(2);
        let mut buffers = take_all(&arena, 256 * 1024);
        assert_eq!(buffers.len(), 16);
        assert_eq!((arena.stats().bytes_taken, arena.stats().refusals), (2 * CHUNK_LENGTH, 1));
        for (number, buf) in buffers.iter_mut().enumerate() {
            buf[0] = number as u8;
            *buf.last_mut().unwrap() = number as u8;
        }
        assert!(buffers.iter().enumerate().all(|(n, buf)| buf[0] == n as u8 && *buf.last().unwrap() == n as u8));
        assert!(arena.take(4096).is_none(), "no chunk is left for another class");
        buffers.truncate(15);
        assert_eq!(take_all(&arena, 256 * 1024).len(), 1, "the freed slot is used again");
    }

    #[test]
    fn free_chunks_change_class() {
        let arena = arena(3);
        for _ in 0..3 {
            for len in [4096, 1 << 20, 65_536] {
                let buffers = take_all(&arena, len);
                assert_eq!(buffers.len() * len, 3 * CHUNK_LENGTH);
            }
        }
        let small: Vec<Buf> = [4096, 8192, 16_384].map(|len| arena.take(len).unwrap()).into();
        assert!(arena.take(32_768).is_none(), "each chunk holds a buffer of another class");
        drop(small);
        assert_eq!(take_all(&arena, 32_768).len(), 3 * CHUNK_LENGTH / 32_768);
    }

    #[test]
    fn parts_of_a_slot_are_disjoint_and_free_it_together() {
        let arena = arena(1);
        let mut head = arena.take(8192).unwrap();
        head.fill(1);
        let mut tail = head.split_off(5000);
        tail.fill(2);
        assert_eq!((head.len(), tail.len()), (5000, 3192));
        assert!(head.iter().all(|b| *b == 1) && tail.iter().all(|b| *b == 2));
        let head = head.freeze();
        drop(tail);
        assert_eq!(arena.stats().bytes_taken, 8192);
        let head = head.try_thaw().unwrap().into_whole_slot().unwrap();
        assert_eq!((head.len(), head[4999], head[5000]), (8192, 1, 2));
        drop(head);
        assert_eq!(arena.stats().bytes_taken, 0);
    }

    #[test]
    fn a_slice_thaws_only_when_it_is_the_last_handle() {
        let arena = arena(1);
        let mut buf = arena.take(4096).unwrap();
        buf[..5].copy_from_slice(b"hello");
        let whole = buf.freeze();
        let part = whole.slice(1..4);
        assert_eq!((&*part, &*part.slice(1..2), part.slice(3..3).is_empty()), (&b"ell"[..], &b"l"[..], true));
        let whole = whole.try_thaw().unwrap_err();
        drop(whole);
        let thawed = part.try_thaw().unwrap();
        assert_eq!((&*thawed, arena.stats().bytes_taken), (&b"ell"[..], 4096));
    }

    #[test]
    fn zeros_are_zero_and_stay_so() {
        let arena = arena(1);
        let zeros = arena.zeros(BUFFER_LENGTH_MAX);
        assert!(zeros.iter().all(|b| *b == 0));
        assert_eq!(zeros.len(), BUFFER_LENGTH_MAX);
        let again = arena.zeros(10);
        drop(zeros);
        assert!(again.try_thaw().is_err(), "nobody may write to the zero area");
        assert!(take_all(&arena, 4096).iter().all(|buf| arena.chunk_of_buf(buf) != Some(ZERO_CHUNK)));
    }

    #[test]
    fn buffers_keep_the_memory_alive_and_know_their_arena() {
        let (first, second) = (arena(1), arena(1));
        let mut buf = first.take(4096).unwrap();
        assert_eq!((first.chunk_of_buf(&buf), second.chunk_of_buf(&buf)), (Some(1), None));
        let (start, len) = first.chunk_area(1);
        assert!((start.addr()..start.addr() + len).contains(&buf.as_ptr().addr()));
        drop(first);
        buf.fill(7);
        let slice = buf.freeze();
        assert!(slice.iter().all(|b| *b == 7));
        assert_eq!(second.chunk_of_slice(&slice), None);
    }

    #[test]
    fn any_order_of_taking_and_dropping_keeps_the_books() {
        let arena = arena(4);
        let mut held: Vec<Buf> = Vec::new();
        let mut random = 12345u32;
        let rounds = if cfg!(miri) { 300 } else { 20_000 };
        for _ in 0..rounds {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let choice = random >> 16;
            if choice & 3 != 0 {
                held.extend(arena.take(BUFFER_ALIGNMENT << ((choice >> 4) % 9)));
            } else if !held.is_empty() {
                held.swap_remove(choice as usize % held.len());
            }
            if held.len() > 200 {
                held.clear();
            }
            assert_eq!(arena.stats().bytes_taken, held.iter().map(Buf::slot_len).sum::<usize>());
        }
        drop(held);
        assert_eq!(take_all(&arena, 1 << 20).len(), 8, "everything came back");
    }

    #[test]
    fn handles_are_small() {
        assert_eq!(size_of::<Option<Buf>>(), 24);
        assert_eq!(size_of::<Option<Slice>>(), 24);
    }
}
