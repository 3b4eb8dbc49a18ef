//! What one gathered send carries: headers copied in, payload slices shared.

use std::fmt;

use crate::mem::{Arena, BUFFER_ALIGNMENT, BUFFER_LENGTH_MAX, Buf, Slice};

/// Segments that one gathered send of the kernel takes at most (`UIO_MAXIOV`).
pub const BATCH_SEGMENTS_MAX: usize = 1024;
/// Header bytes reserved for each segment, unless told otherwise: a 48-byte header with digests, and some to spare for
/// sense data and small parameter lists.
const HEADER_BYTES_PER_SEGMENT: usize = 64;

/// A batch has no room for what was pushed; it is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the send batch is full")]
pub struct BatchFull;

/// A list of byte ranges to send in order. Small to move; allocates nothing after `new`.
pub struct SendBatch {
    inner: Box<Inner>,
}

enum Segment {
    /// A range of the header buffer.
    Header {
        start: u32,
        len: u32,
    },
    Payload(Slice),
    /// Sent, or never used.
    Empty,
}

struct Inner {
    headers: Buf,
    header_used: usize,
    segments: Box<[Segment]>,
    /// The same segments as the kernel reads them. Always derived from `headers` and `segments`.
    iovecs: Box<[libc::iovec]>,
    /// Segments before this one have been sent.
    first: usize,
    end: usize,
    len_bytes: usize,
}

const EMPTY_IOVEC: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

impl SendBatch {
    /// A batch of up to `segments_max` segments (at most [`BATCH_SEGMENTS_MAX`]) with 64 header bytes for each, at
    /// least 4 KiB. `None` when the arena is at its bound.
    pub fn new(arena: &Arena, segments_max: usize) -> Option<SendBatch> {
        Self::with_header_bytes(arena, segments_max, segments_max * HEADER_BYTES_PER_SEGMENT)
    }

    /// The same with room for `header_bytes` bytes pushed with [`push_bytes`](Self::push_bytes), rounded up to a power
    /// of two of at least 4 KiB.
    pub fn with_header_bytes(arena: &Arena, segments_max: usize, header_bytes: usize) -> Option<SendBatch> {
        assert!(segments_max > 0 && segments_max <= BATCH_SEGMENTS_MAX, "a batch of {segments_max} segments");
        let header_bytes = header_bytes.max(BUFFER_ALIGNMENT).next_power_of_two();
        assert!(header_bytes <= BUFFER_LENGTH_MAX, "a batch with {header_bytes} header bytes");
        let inner = Inner {
            headers: arena.take(header_bytes)?,
            header_used: 0,
            segments: std::iter::repeat_with(|| Segment::Empty).take(segments_max).collect(),
            iovecs: vec![EMPTY_IOVEC; segments_max].into_boxed_slice(),
            first: 0,
            end: 0,
            len_bytes: 0,
        };
        Some(SendBatch { inner: Box::new(inner) })
    }

    /// Append a copy of `bytes`, as part of the segment before where that ends at the same place.
    #[inline]
    pub fn push_bytes(&mut self, bytes: &[u8]) -> Result<(), BatchFull> {
        let inner = &mut *self.inner;
        let start = inner.header_used;
        if bytes.len() > inner.headers.len() - start {
            return Err(BatchFull);
        }
        if bytes.is_empty() {
            return Ok(());
        }
        let merge = match inner.segments.get_mut(inner.end.wrapping_sub(1)) {
            Some(Segment::Header { start: before, len }) if (*before + *len) as usize == start => {
                *len += bytes.len() as u32;
                true
            }
            _ => false,
        };
        if merge {
            inner.iovecs[inner.end - 1].iov_len += bytes.len();
        } else {
            if inner.end == inner.segments.len() {
                return Err(BatchFull);
            }
            let iov_base = inner.headers[start..].as_mut_ptr().cast();
            inner.iovecs[inner.end] = libc::iovec { iov_base, iov_len: bytes.len() };
            inner.segments[inner.end] = Segment::Header { start: start as u32, len: bytes.len() as u32 };
            inner.end += 1;
        }
        inner.headers[start..][..bytes.len()].copy_from_slice(bytes);
        inner.header_used += bytes.len();
        inner.len_bytes += bytes.len();
        Ok(())
    }

    /// Append a slice, shared until it is sent.
    #[inline]
    pub fn push_slice(&mut self, slice: Slice) -> Result<(), BatchFull> {
        let inner = &mut *self.inner;
        if inner.end == inner.segments.len() {
            return Err(BatchFull);
        }
        if slice.is_empty() {
            return Ok(());
        }
        inner.iovecs[inner.end] = libc::iovec { iov_base: slice.address().cast_mut().cast(), iov_len: slice.len() };
        inner.len_bytes += slice.len();
        inner.segments[inner.end] = Segment::Payload(slice);
        inner.end += 1;
        Ok(())
    }

    /// Bytes that [`push_bytes`](Self::push_bytes) still has room for.
    pub fn bytes_free(&self) -> usize {
        self.inner.headers.len() - self.inner.header_used
    }

    /// Segments that still fit.
    pub fn segments_free(&self) -> usize {
        self.inner.segments.len() - self.inner.end
    }

    /// Bytes still to send.
    pub fn len_bytes(&self) -> usize {
        self.inner.len_bytes
    }

    /// Nothing is left to send.
    pub fn is_empty(&self) -> bool {
        self.inner.len_bytes == 0
    }

    /// The byte ranges still to send, in order.
    pub fn segments(&self) -> impl Iterator<Item = &[u8]> {
        let inner = &*self.inner;
        inner.segments[inner.first..inner.end].iter().map(|segment| match segment {
            Segment::Header { start, len } => &inner.headers[*start as usize..][..*len as usize],
            Segment::Payload(slice) => slice,
            Segment::Empty => &[],
        })
    }

    /// Take `sent` bytes (at most [`len_bytes`](Self::len_bytes)) off the front. Slices that are wholly sent are let
    /// go; an empty batch has all its room again.
    pub fn advance(&mut self, sent: usize) {
        let inner = &mut *self.inner;
        assert!(sent <= inner.len_bytes, "{sent} bytes sent of a batch of {}", inner.len_bytes);
        if sent == inner.len_bytes {
            return self.clear();
        }
        inner.len_bytes -= sent;
        let mut left = sent;
        loop {
            let iovec = &mut inner.iovecs[inner.first];
            if left < iovec.iov_len {
                iovec.iov_base = iovec.iov_base.wrapping_byte_add(left);
                iovec.iov_len -= left;
                break inner.segments[inner.first].skip(left);
            }
            left -= iovec.iov_len;
            inner.segments[inner.first] = Segment::Empty;
            inner.first += 1;
        }
    }

    /// Let go of everything unsent.
    pub fn clear(&mut self) {
        let inner = &mut *self.inner;
        for segment in &mut inner.segments[inner.first..inner.end] {
            *segment = Segment::Empty;
        }
        inner.first = 0;
        inner.end = 0;
        inner.header_used = 0;
        inner.len_bytes = 0;
    }

    /// The ranges still to send, for the kernel: valid while the batch is neither changed nor dropped.
    pub(super) fn iovecs(&mut self) -> &mut [libc::iovec] {
        let inner = &mut *self.inner;
        &mut inner.iovecs[inner.first..inner.end]
    }
}

impl Segment {
    /// Drop the first `count` bytes (fewer than the segment has).
    fn skip(&mut self, count: usize) {
        match self {
            Segment::Header { start, len } => {
                *start += count as u32;
                *len -= count as u32;
            }
            Segment::Payload(slice) => *slice = slice.slice(count..slice.len()),
            Segment::Empty => assert!(count == 0, "an empty segment had bytes"),
        }
    }
}

impl fmt::Debug for SendBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.inner;
        write!(f, "SendBatch({} bytes in {} segments)", inner.len_bytes, inner.end - inner.first)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::mem::ArenaConfig;

    fn arena() -> Arena {
        Arena::new(ArenaConfig { bytes_max: 4 << 20, hugepages: false }).unwrap()
    }

    fn slice(arena: &Arena, bytes: &[u8]) -> Slice {
        let mut buf = arena.take(bytes.len()).unwrap();
        buf.copy_from_slice(bytes);
        buf.freeze()
    }

    fn content(batch: &SendBatch) -> Vec<u8> {
        batch.segments().flatten().copied().collect()
    }

    /// What the kernel would send.
    fn kernel_view(batch: &mut SendBatch) -> Vec<u8> {
        let mut bytes = Vec::new();
        for iovec in batch.iovecs() {
            // SAFETY: the batch promises that its ranges are valid while it is not changed.
            bytes.extend_from_slice(unsafe { std::slice::from_raw_parts(iovec.iov_base.cast::<u8>(), iovec.iov_len) });
        }
        bytes
    }

    #[test]
    fn headers_next_to_each_other_become_one_segment() {
        let arena = arena();
        let mut batch = SendBatch::new(&arena, 4).unwrap();
        batch.push_bytes(b"ab").unwrap();
        batch.push_bytes(b"cd").unwrap();
        batch.push_slice(slice(&arena, b"payload")).unwrap();
        batch.push_bytes(b"ef").unwrap();
        assert_eq!((batch.segments().count(), batch.segments_free(), batch.len_bytes()), (3, 1, 13));
        assert_eq!((content(&batch), kernel_view(&mut batch)), (b"abcdpayloadef".to_vec(), b"abcdpayloadef".to_vec()));
    }

    #[test]
    fn a_batch_can_be_sent_in_pieces_of_any_size() {
        let arena = arena();
        let whole = b"abcdpayloadefmore payload".to_vec();
        for piece in 1..=whole.len() {
            let mut batch = SendBatch::new(&arena, 4).unwrap();
            batch.push_bytes(b"abcd").unwrap();
            batch.push_slice(slice(&arena, b"payload")).unwrap();
            batch.push_bytes(b"ef").unwrap();
            batch.push_slice(slice(&arena, b"more payload")).unwrap();
            let mut sent = 0;
            while !batch.is_empty() {
                assert_eq!(content(&batch), whole[sent..]);
                assert_eq!(kernel_view(&mut batch), whole[sent..]);
                let step = piece.min(batch.len_bytes());
                batch.advance(step);
                sent += step;
            }
            assert_eq!((batch.segments_free(), batch.bytes_free()), (4, 4096));
        }
    }

    #[test]
    fn sent_slices_are_let_go_at_once() {
        let arena = arena();
        let mut batch = SendBatch::new(&arena, 4).unwrap();
        let empty = arena.stats().bytes_taken;
        batch.push_slice(slice(&arena, b"first")).unwrap();
        batch.push_slice(slice(&arena, b"second")).unwrap();
        assert_eq!(arena.stats().bytes_taken, empty + 2 * 4096);
        batch.advance(5);
        assert_eq!(arena.stats().bytes_taken, empty + 4096);
        batch.clear();
        assert_eq!(arena.stats().bytes_taken, empty);
    }

    #[test]
    fn a_full_batch_refuses_and_is_unchanged() {
        let arena = arena();
        let mut batch = SendBatch::new(&arena, 2).unwrap();
        batch.push_slice(slice(&arena, b"x")).unwrap();
        batch.push_bytes(&[1; 4000]).unwrap();
        assert_eq!(batch.push_bytes(&[2; 97]), Err(BatchFull));
        batch.push_bytes(&[2; 96]).unwrap();
        assert_eq!((batch.push_slice(slice(&arena, b"y")), batch.bytes_free()), (Err(BatchFull), 0));
        assert_eq!(batch.len_bytes(), 4097);
        let mut batch = SendBatch::new(&arena, 1).unwrap();
        batch.push_slice(slice(&arena, b"x")).unwrap();
        assert_eq!(batch.push_bytes(b"no segment left"), Err(BatchFull));
        assert_eq!((content(&batch), batch.bytes_free()), (b"x".to_vec(), 4096));
    }

    #[test]
    fn nothing_is_no_segment() {
        let arena = arena();
        let mut batch = SendBatch::new(&arena, 1).unwrap();
        batch.push_bytes(b"").unwrap();
        batch.push_slice(arena.zeros(0)).unwrap();
        assert!(batch.is_empty() && batch.segments().next().is_none());
        batch.advance(0);
    }
}
