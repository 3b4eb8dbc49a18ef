//! The one writer of reply data: every byte is written here, starts as zero, and stops at ALLOCATION LENGTH.
//!
//! Knows nothing of any reply's layout. It never allocates: it fills a buffer of the caller.

/// A reply under construction in a caller's buffer. Fields are appended; what lies beyond the allocation length or the
/// buffer is counted but not stored, so the untruncated length is always known.
#[derive(Debug)]
pub struct ParameterList<'a> {
    buffer: &'a mut [u8],
    /// The initiator's ALLOCATION LENGTH.
    allocation_length: usize,
    /// Bytes appended, stored or not.
    total_len: usize,
}

impl<'a> ParameterList<'a> {
    /// A buffer of this size holds every reply except REPORT LUNS with more than 511 units.
    pub const BYTES_MIN: usize = 4096;
    /// A buffer of this size holds every reply: REPORT LUNS with 16,384 units.
    pub const BYTES_MAX: usize = 8 + 16_384 * 8;

    /// An empty list over `buffer`, whose contents do not matter and are only overwritten as far as the reply goes.
    pub fn new(buffer: &'a mut [u8]) -> Self {
        Self { buffer, allocation_length: 0, total_len: 0 }
    }

    /// Start over, for a command with this ALLOCATION LENGTH.
    pub(super) fn begin(&mut self, allocation_length: u32) {
        self.allocation_length = usize::try_from(allocation_length).unwrap_or(usize::MAX);
        self.total_len = 0;
    }

    /// The Data-In payload: what was appended, cut at ALLOCATION LENGTH.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[..self.len()]
    }

    /// Bytes of Data-In payload: the reply cut at ALLOCATION LENGTH.
    pub fn len(&self) -> usize {
        self.stored(self.total_len)
    }

    /// Nothing is to be sent.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the reply before it was cut.
    pub fn total_len(&self) -> usize {
        self.total_len
    }

    /// The buffer's size that this reply would have needed, if the buffer (and not ALLOCATION LENGTH) cut it.
    pub fn bytes_missing(&self) -> Option<usize> {
        let wanted = self.total_len.min(self.allocation_length);
        (wanted > self.buffer.len()).then_some(wanted)
    }

    /// Append bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let start = self.stored(self.total_len);
        let end = self.stored(self.total_len + bytes.len());
        self.buffer[start..end].copy_from_slice(&bytes[..end - start]);
        self.total_len += bytes.len();
    }

    /// Append one byte.
    pub(super) fn push_u8(&mut self, value: u8) {
        self.push(&[value]);
    }

    /// Append a big-endian 16-bit field.
    pub(super) fn push_u16(&mut self, value: u16) {
        self.push(&value.to_be_bytes());
    }

    /// Append a big-endian 32-bit field.
    pub(super) fn push_u32(&mut self, value: u32) {
        self.push(&value.to_be_bytes());
    }

    /// Append a big-endian 64-bit field.
    pub(super) fn push_u64(&mut self, value: u64) {
        self.push(&value.to_be_bytes());
    }

    /// Append zeros.
    pub(super) fn push_zeros(&mut self, count: usize) {
        let start = self.stored(self.total_len);
        let end = self.stored(self.total_len + count);
        self.buffer[start..end].fill(0);
        self.total_len += count;
    }

    /// Append left-aligned ASCII padded with spaces to `width` (SPC-5 clause 4.3.1). `text` is at most `width` bytes.
    pub(super) fn push_ascii(&mut self, text: &str, width: usize) {
        assert!(text.len() <= width, "a text longer than its field");
        self.push(text.as_bytes());
        for _ in text.len()..width {
            self.push_u8(b' ');
        }
    }

    /// Overwrite a length field that was appended at `offset` before its value was known.
    pub(super) fn set_u16(&mut self, offset: usize, value: u16) {
        self.set(offset, &value.to_be_bytes());
    }

    /// Overwrite a one-byte length field that was appended at `offset` before its value was known.
    pub(super) fn set_u8(&mut self, offset: usize, value: u8) {
        self.set(offset, &[value]);
    }

    /// Overwrite a 32-bit length field that was appended at `offset` before its value was known.
    pub(super) fn set_u32(&mut self, offset: usize, value: u32) {
        self.set(offset, &value.to_be_bytes());
    }

    fn set(&mut self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.total_len, "a field that was not appended yet");
        let start = self.stored(offset);
        let end = self.stored(offset + bytes.len());
        self.buffer[start..end].copy_from_slice(&bytes[..end - start]);
    }

    /// How much of the first `len` bytes is stored.
    fn stored(&self, len: usize) -> usize {
        len.min(self.allocation_length).min(self.buffer.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_cut_at_the_allocation_length_and_knows_its_whole_length() {
        let mut buffer = [0xee; 16];
        let mut list = ParameterList::new(&mut buffer);
        list.begin(5);
        list.push_u16(0);
        list.push_u32(0x0102_0304);
        list.push_zeros(2);
        list.set_u16(0, 6);
        assert_eq!(list.bytes(), [0, 6, 1, 2, 3]);
        assert_eq!((list.len(), list.total_len(), list.bytes_missing()), (5, 8, None));
        assert_eq!(buffer[5..], [0xee; 11], "nothing beyond the reply is touched");
    }

    #[test]
    fn a_length_field_may_itself_be_cut() {
        let mut buffer = [0xee; 8];
        let mut list = ParameterList::new(&mut buffer);
        list.begin(1);
        list.push_u16(0);
        list.set_u16(0, 0x0102);
        assert_eq!(list.bytes(), [1]);
    }

    #[test]
    fn stale_bytes_of_the_buffer_never_leave() {
        let mut buffer = [0xee; 8];
        let mut list = ParameterList::new(&mut buffer);
        list.begin(100);
        list.push_zeros(3);
        list.push_ascii("ab", 4);
        assert_eq!(list.bytes(), *b"\0\0\0ab  ");
    }

    #[test]
    fn a_small_buffer_says_what_it_lacks() {
        let mut buffer = [0; 4];
        let mut list = ParameterList::new(&mut buffer);
        list.begin(100);
        list.push_u64(1);
        assert_eq!(list.bytes_missing(), Some(8));
        list.begin(4);
        list.push_u64(1);
        assert_eq!(list.bytes_missing(), None);
        list.begin(0);
        list.push_u64(1);
        assert!(list.is_empty());
    }
}
