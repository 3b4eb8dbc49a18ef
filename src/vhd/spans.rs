//! Places in the file that something uses, and what is free between them.

/// A used range of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub start: u64,
    /// Behind the last byte.
    pub end: u64,
    /// What is there, for messages.
    pub name: String,
}

/// How the name of a path to the parent begins.
pub(super) const LOCATOR: &str = "parent locator";

impl Span {
    /// Whether it is a path to the parent.
    pub fn is_locator(&self) -> bool {
        self.name.starts_with(LOCATOR)
    }
}

/// The first offset, a multiple of `align` and not below `from`, where `len` bytes touch none of the spans; the end of
/// all of them is always free.
pub(super) fn free_place(spans: &[Span], blocks: &[(u64, u64)], from: u64, len: u64, align: u64) -> u64 {
    let mut used: Vec<(u64, u64)> =
        spans.iter().map(|span| (span.start, span.end)).chain(blocks.iter().copied()).collect();
    used.sort_unstable();
    let mut at = from.next_multiple_of(align);
    for (start, end) in used {
        if at + len <= start {
            break;
        }
        at = at.max(end.next_multiple_of(align));
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_gap_that_is_large_enough_is_taken() {
        let span = |start, end| Span { start, end, name: String::new() };
        let spans = [span(4096, 5000), span(0, 512)];
        assert_eq!(free_place(&spans, &[(8192, 16384)], 0, 512, 512), 512);
        assert_eq!(free_place(&spans, &[(8192, 16384)], 0, 3584, 512), 512);
        assert_eq!(free_place(&spans, &[(8192, 16384)], 0, 3585, 512), 16384);
        assert_eq!(free_place(&spans, &[(8192, 16384)], 0, 3000, 4096), 16384);
        assert_eq!(free_place(&spans, &[], 0, 9000, 512), 5120);
    }
}
